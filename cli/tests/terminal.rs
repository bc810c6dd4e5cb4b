//! What a person at a terminal sees, and how the terminal is left.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use claviger_altered_module::AlteredModule;
use claviger_tests::SoftHsm;
use common::Stage;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, tcgetattr, tcgetpgrp};

const PATIENCE: Duration = Duration::from_secs(60);

/// What no command writes: a file separator.
const END: u8 = 0x1c;

/// A terminal with the command at it.
struct Terminal {
    keyboard: File,
    line: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Terminal {
    fn start(stage: &Stage, words: &[&str]) -> Self {
        Terminal::start_with(stage, words, None)
    }

    /// In a shell that runs `script`, to which the command is given as its arguments.
    fn start_in_shell(stage: &Stage, words: &[&str], script: &str) -> Self {
        Terminal::start_with(stage, words, Some(script))
    }

    fn start_with(stage: &Stage, words: &[&str], script: Option<&str>) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let line = ioctl_tiocgptpeer(&master, flags).unwrap();
        let other = || line.try_clone().unwrap();
        let claviger = stage.claviger(words);
        // The terminal becomes that of the command, or of the shell that starts it.
        let mut command = Command::new("setsid");
        command.arg("--ctty");
        if let Some(script) = script {
            command.args(["bash", "-m", "-c", script, "bash"]);
        }
        command.arg(claviger.get_program());
        command.args(claviger.get_args());
        command.current_dir(stage.folder());
        for (name, value) in claviger.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let child = command.stdin(other()).stdout(other()).stderr(other());
        let child = child.spawn().unwrap();
        let keyboard = File::from(master);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, seen) = (keyboard.try_clone().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                seen.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Terminal {
            keyboard,
            line,
            shown,
            child,
        }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    #[track_caller]
    fn wait_for(&self, words: &str) {
        let begun = Instant::now();
        while !self.shown().contains(words) {
            assert!(begun.elapsed() < PATIENCE, "no {words:?}: {}", self.shown());
            sleep(Duration::from_millis(10));
        }
    }

    /// Waits until `words` were shown so many times.
    #[track_caller]
    fn wait_for_times(&self, words: &str, times: usize) {
        let begun = Instant::now();
        while self.shown().matches(words).count() < times {
            let shown = self.shown();
            assert!(
                begun.elapsed() < PATIENCE,
                "not {times} × {words:?}: {shown}"
            );
            sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn wait_until_it_shows_what_is_typed(&self, shows: bool) {
        let begun = Instant::now();
        while self.shows_what_is_typed() != shows {
            assert!(begun.elapsed() < PATIENCE, "{shows}: {}", self.shown());
            sleep(Duration::from_millis(10));
        }
    }

    fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    fn shows_what_is_typed(&self) -> bool {
        let modes = tcgetattr(&self.line).unwrap().local_modes;
        modes.contains(LocalModes::ECHO)
    }

    fn send(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.unwrap().success());
    }

    /// Sends the signal to whoever has the terminal.
    fn send_to_foreground(&self, signal: &str) {
        let group = tcgetpgrp(&self.keyboard).unwrap().as_raw_nonzero();
        let sent = Command::new("kill")
            .args([signal, "--", &format!("-{group}")])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Waits until all is shown that was written: what this writes comes last.
    #[track_caller]
    fn wait_for_the_end(&self) {
        rustix::io::write(&self.line, &[END]).unwrap();
        let begun = Instant::now();
        while !self.shown.lock().unwrap().contains(&END) {
            assert!(begun.elapsed() < PATIENCE, "no end: {}", self.shown());
            sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn ends(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.wait_for_the_end();
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "no end: {}", self.shown());
            sleep(Duration::from_millis(10));
        }
    }
}

/// At the question for a PIN.
fn asked(stage: &Stage, options: &[&str]) -> Terminal {
    let sign = ["sign", "alice", "letter", "-o", "sig"];
    let terminal = Terminal::start(stage, &[options, &sign].concat());
    terminal.wait_for("PIN for");
    assert!(!terminal.shows_what_is_typed());
    terminal
}

fn with_letter() -> Stage {
    let stage = Stage::with_alice();
    stage.write("letter", "x");
    stage
}

#[test]
fn who_types_the_pin_decides_where_the_answer_to_the_last_one_never_came() {
    let stage = Stage::new();
    stage.write("letter", "x");
    // A token that does not tell how many wrong PINs there were.
    let module = AlteredModule::of(SoftHsm::module().as_ref());
    let only = format!("only {}", stage.token.label());
    let lines = [&*only, "token manufacturer Somebody", "library Somebody"];
    module.alter(&lines);
    let backend = format!("pkcs11:?module-path={}", module.path().display());
    stage
        .run_with_pin(&["generate", "alice", "--backend", &backend])
        .succeeds();
    let sign = ["sign", "alice", "letter", "-o", "sig"];
    module.alter(&[&lines[..], &["die C_Login"]].concat());
    assert_eq!(stage.run_with_pin(&sign).code(), None);
    module.alter(&lines);
    let logins = module.calls("C_Login");
    let said = stage
        .run_with_pin(&sign)
        .fails(1, "it is not known whether")
        .err();
    assert!(said.contains("--pin-source prompt"), "{said}");
    assert_eq!(module.calls("C_Login"), logins);

    let answer = |answer: &str| {
        let mut terminal = asked(&stage, &[]);
        terminal.type_in(&format!("{}\n", SoftHsm::PIN));
        terminal.wait_for("Type yes to send it");
        terminal.type_in(&format!("{answer}\n"));
        terminal.ends().code()
    };
    // What was typed before the question confirms nothing.
    let mut terminal = asked(&stage, &[]);
    terminal.type_in(&format!("{}\nyes\n", SoftHsm::PIN));
    terminal.wait_for("Type yes to send it");
    sleep(Duration::from_millis(200));
    terminal.type_in("no\n");
    assert_eq!(terminal.ends().code(), Some(1), "{}", terminal.shown());
    assert_eq!(module.calls("C_Login"), logins);
    assert_eq!(answer("y"), Some(1));
    assert_eq!(module.calls("C_Login"), logins);
    assert_eq!(answer("yes"), Some(0));
    assert_eq!(module.calls("C_Login"), logins + 1);
    stage.run_with_pin(&sign).succeeds();
}

#[test]
fn a_pin_is_typed_unseen() {
    let stage = with_letter();
    let mut terminal = asked(&stage, &[]);
    terminal.type_in(&format!("{}\n", SoftHsm::PIN));
    assert_eq!(terminal.ends().code(), Some(0), "{}", terminal.shown());
    assert!(terminal.shows_what_is_typed());
    assert!(!terminal.shown().contains(SoftHsm::PIN));
    stage
        .run(["verify", "alice", "--signature", "sig", "letter"])
        .succeeds();
}

#[test]
fn whatever_ends_the_question_for_a_pin_the_terminal_shows_again_what_is_typed() {
    let stage = with_letter();
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let mut terminal = asked(&stage, &[]);
        terminal.send(signal);
        assert_eq!(terminal.ends().code(), Some(code), "{}", terminal.shown());
        assert!(terminal.shows_what_is_typed(), "{signal}");
    }
    let mut terminal = asked(&stage, &[]);
    terminal.type_in("\u{3}");
    assert_eq!(terminal.ends().code(), Some(130));
    assert!(terminal.shows_what_is_typed());

    let mut terminal = asked(&stage, &[]);
    terminal.type_in("\u{4}");
    assert_eq!(terminal.ends().code(), Some(1));
    assert!(terminal.shown().contains("nothing was typed"));
    assert!(terminal.shows_what_is_typed());
    assert_eq!(stage.files(), ["letter"]);
}

#[test]
fn what_was_typed_before_the_question_is_no_pin() {
    let stage = with_letter();
    // It is typed while the command finds the token, and the shell leaves it for it.
    let script = "read -r _; sleep 0.3; \"$@\"";
    let words = ["sign", "alice", "letter", "-o", "sig"];
    let mut terminal = Terminal::start_in_shell(&stage, &words, script);
    terminal.type_in("go\n987654\n");
    terminal.wait_for("PIN for");
    terminal.wait_until_it_shows_what_is_typed(false);
    sleep(Duration::from_millis(200));
    terminal.type_in(&format!("{}\n", SoftHsm::PIN));
    assert_eq!(terminal.ends().code(), Some(0), "{}", terminal.shown());
    assert!(!stage.run(["doctor"]).out().contains("refused"));
}

#[test]
fn who_stops_the_command_at_its_question_has_a_terminal_that_shows_and_is_asked_again() {
    let stage = with_letter();
    let words = ["sign", "alice", "letter", "-o", "sig"];
    // By the terminal's own key, and by a signal that no process can handle: after that the
    // shell puts the terminal right, as those do that a person sits at.
    for (stop, tidies) in [("\u{1a}", ""), ("SIGSTOP", "stty echo;")] {
        let script = format!(
            "\"$@\"; stopped=$?; {tidies} echo stopped $stopped; read -r _; fg >/dev/null; \
             echo ended $?"
        );
        let mut terminal = Terminal::start_in_shell(&stage, &words, &script);
        terminal.wait_for("PIN for");
        terminal.wait_until_it_shows_what_is_typed(false);
        terminal.type_in("9876");
        match stop {
            "SIGSTOP" => terminal.send_to_foreground("-STOP"),
            key => terminal.type_in(key),
        }
        terminal.wait_for("stopped 14");
        assert!(terminal.shows_what_is_typed());
        terminal.type_in("go\n");
        terminal.wait_for_times("PIN for", 2);
        terminal.wait_until_it_shows_what_is_typed(false);
        terminal.type_in(&format!("{}\n", SoftHsm::PIN));
        terminal.wait_for("ended 0");
        terminal.ends();
        assert!(terminal.shows_what_is_typed());
        assert!(!terminal.shown().contains(SoftHsm::PIN));
    }
}

#[test]
fn a_job_in_the_background_asks_when_it_is_in_the_foreground_and_enter_ends_its_question() {
    let stage = with_letter();
    let words = ["sign", "alice", "letter", "-o", "sig"];
    // As a shell has its terminal while a line is edited, and as it has it for a job.
    let script = "stty -icanon -echo -icrnl; \"$@\" & \
                  while [ -z \"$(jobs -sp)\" ]; do sleep 0.05; done; \
                  stty sane; fg >/dev/null; echo ended $?";
    let mut terminal = Terminal::start_in_shell(&stage, &words, script);
    terminal.wait_for("PIN for");
    terminal.wait_until_it_shows_what_is_typed(false);
    sleep(Duration::from_millis(200));
    terminal.type_in(&format!("{}\r", SoftHsm::PIN));
    terminal.wait_for("ended 0");
    terminal.ends();
    let modes = tcgetattr(&terminal.line).unwrap().local_modes;
    assert!(modes.contains(LocalModes::ECHO | LocalModes::ICANON));
}

#[test]
fn what_keys_type_that_stand_for_no_character_is_not_sent() {
    let stage = with_letter();
    for typed in ["\u{1b}[A", "\u{16}\r"] {
        let mut terminal = asked(&stage, &[]);
        terminal.type_in(&format!("{}{typed}\n", SoftHsm::PIN));
        assert_eq!(terminal.ends().code(), Some(1), "{}", terminal.shown());
        assert!(terminal.shown().contains("control character"));
        assert!(!terminal.shown().contains(SoftHsm::PIN));
    }
    assert!(!stage.run(["doctor"]).out().contains("refused"));
}

#[test]
fn where_nobody_could_let_it_go_on_the_command_is_not_stopped() {
    let stage = with_letter();
    // It leads its session, as under `ssh -t host claviger`: there is no shell.
    let mut terminal = asked(&stage, &[]);
    terminal.type_in("\u{1a}");
    terminal.wait_for_times("PIN for", 2);
    terminal.wait_until_it_shows_what_is_typed(false);
    terminal.type_in(&format!("{}\n", SoftHsm::PIN));
    assert_eq!(terminal.ends().code(), Some(0), "{}", terminal.shown());
    assert!(terminal.shows_what_is_typed());
}

#[test]
fn a_generation_that_ends_at_the_question_for_a_pin_leaves_nothing() {
    let stage = Stage::new();
    let backend = stage.token.backend();
    let timeout = ["--timeout", "5"];
    for (options, signal, code) in [
        (&[][..], Some("-TERM"), 143),
        (&[], Some("-INT"), 130),
        (&timeout, None, 1),
    ] {
        let words = ["generate", "alice", "--backend", &backend];
        let mut terminal = Terminal::start(&stage, &[options, &words].concat());
        terminal.wait_for("PIN for");
        if let Some(signal) = signal {
            terminal.send(signal);
        }
        assert_eq!(terminal.ends().code(), Some(code), "{}", terminal.shown());
        terminal.wait_for("nothing of it is left on the token");
        assert!(terminal.shows_what_is_typed());
    }
    assert!(stage.names().is_empty());
    assert_eq!(stage.private_keys(), 0);
    let doctor = stage.run(["doctor"]).out();
    assert!(
        doctor.contains("there are no abandoned intents"),
        "{doctor}"
    );
}

#[test]
fn a_question_for_a_pin_ends_when_the_time_is_over() {
    let stage = with_letter();
    let mut terminal = asked(&stage, &["--timeout", "5"]);
    assert_eq!(terminal.ends().code(), Some(1));
    terminal.wait_for("the deadline passed");
    assert!(terminal.shows_what_is_typed());
}

#[test]
fn a_question_for_a_pin_ends_before_the_process_may_end_with_its_time() {
    let stage = with_letter();
    // A busy machine may take longer, once.
    let ended_ahead = (0..10).any(|_| {
        let begun = Instant::now();
        let mut terminal = asked(&stage, &["--timeout", "3"]);
        assert_eq!(terminal.child.wait().unwrap().code(), Some(1));
        let took = begun.elapsed();
        assert!(terminal.shows_what_is_typed());
        took < Duration::from_secs(3)
    });
    assert!(ended_ahead);
}

#[test]
fn a_plaintext_that_would_command_the_terminal_is_not_shown() {
    let stage = Stage::with_alice();
    stage.write("text", "Meet me\n\tat nine, Ελένη\n");
    stage.write("escape", "Meet me\n\u{1b}[2J");
    let decrypt = |name: &str, more: &[&str]| {
        let sealed = format!("{name}.age");
        let to = ["encrypt", "alice", name, "-o", &sealed];
        stage.run(to).succeeds();
        let words = ["--pin-source", "file:pin", "decrypt", &sealed];
        let mut terminal = Terminal::start(&stage, &[&words[..], more].concat());
        let code = terminal.ends().code();
        (code, terminal.shown())
    };
    let (code, shown) = decrypt("text", &[]);
    assert_eq!(code, Some(0));
    assert!(shown.contains("Ελένη"), "{shown}");
    let (code, shown) = decrypt("escape", &[]);
    assert_eq!(code, Some(2));
    assert!(!shown.contains("[2J"), "{shown}");
    assert!(shown.contains("-o - insists"), "{shown}");
    let (code, shown) = decrypt("escape", &["-o", "-"]);
    assert_eq!(code, Some(0));
    assert!(shown.contains("\u{1b}[2J"), "{shown}");
}

#[test]
fn what_a_crash_leaves_holds_no_pin() {
    let stage = with_letter();
    let mut terminal = asked(&stage, &[]);
    let limits = format!("/proc/{}/limits", terminal.child.id());
    let limits = std::fs::read_to_string(limits).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core"));
    let core: Vec<&str> = core.unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"]);
    terminal.send("-TERM");
    terminal.ends();
}
