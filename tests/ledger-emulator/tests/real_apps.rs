//! Real apps in the emulator: that the fixture works, and that the recording and the
//! model are true.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests and what they share"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use claviger_ledger_emulator::{
    App, Approver, Button, Emulator, Ethereum, Hardware, Recording, Running,
};
use libtest_mimic::{Arguments, Trial};

const A_WHILE: Duration = Duration::from_secs(20);

/// Set in a process that starts an emulator, prints where it is, and waits to be killed.
const VICTIM: &str = "CLAVIGER_TEST_VICTIM";

fn main() -> ExitCode {
    if std::env::var_os(VICTIM).is_some() {
        let emulator = Emulator::start(App::Boil);
        println!("{}", emulator.apdu_address());
        thread::sleep(A_WHILE * 10);
        return ExitCode::FAILURE;
    }
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let mut add = |name: &str, skipped: Option<&str>, run: fn()| {
        if let Some(why) = skipped {
            eprintln!("SKIPPED {name}: {why}");
        }
        let test = move || {
            run();
            Ok(())
        };
        trials.push(Trial::test(name, test).with_ignored_flag(skipped.is_some()));
    };
    let quick = Emulator::skipped();
    add(
        "boil_says_who_it_is_and_the_model_says_the_same",
        quick,
        boil,
    );
    add("a_prompt_is_approved_and_rejected", quick, prompts);
    add(
        "who_approves_stops_when_the_review_is_over",
        quick,
        no_further,
    );
    add(
        "a_command_is_answered_while_the_user_is_asked_whose_answer_is_lost",
        quick,
        while_asked,
    );
    add("two_emulators_are_two_and_end_when_dropped", quick, two);
    add("an_emulator_ends_with_a_killed_process", quick, killed);
    add("nobody_but_this_machine_reaches_it", quick, loopback);
    add("what_is_no_app_fails_loudly", quick, no_app);
    let ethereum = App::ethereum().err();
    add("the_ethereum_app_answers_as_recorded", ethereum, recorded);
    add(
        "the_ethereum_app_takes_no_for_an_answer",
        ethereum,
        rejected,
    );
    libtest_mimic::run(&arguments, trials).exit_code()
}

const NAME_AND_VERSION: [u8; 5] = [0xb0, 1, 0, 0, 0];

fn boil() {
    let emulator = Emulator::start(App::Boil);
    let name = emulator.exchange(&NAME_AND_VERSION);
    assert_eq!(&name[2..13], b"Boilerplate");
    assert_eq!(emulator.screen_text(), "Boilerplate app is ready");

    let model = Ethereum::new();
    model.open(Running::Other {
        name: "Boilerplate".into(),
        refusal: 0x6d00,
    });
    for recorded in Recording::ethereum().exchanges() {
        // These, Boilerplate takes for something else.
        if recorded.apdu[0] == 0xe0 && !matches!(recorded.apdu[1], 0x06 | 0x08) {
            let (real, model) = (&emulator, &model);
            assert_eq!(
                real.exchange(&recorded.apdu),
                model.answer(&recorded.apdu),
                "{}",
                recorded.name
            );
        }
    }
    assert_eq!(emulator.exchange(&[0x80, 2, 0, 0, 0]), [0x6e, 0]);
    // As the model has it, too.
    for malformed in [&[0xe0][..], &[0xe0, 3, 0, 0, 9], &[0xe0, 3, 0, 0, 0, 0]] {
        assert_eq!(
            emulator.exchange(malformed),
            Ethereum::new().answer(malformed)
        );
    }
}

/// A public key of m/44'/1'/0', shown to the user first.
const SHOW_KEY: [u8; 18] = [
    0xe0, 5, 1, 0, 13, 3, 0x80, 0, 0, 44, 0x80, 0, 0, 1, 0x80, 0, 0, 0,
];

fn prompts() {
    let emulator = Emulator::start(App::Boil);
    emulator.learn_home();
    let ask = |decide: fn(&Emulator)| {
        thread::scope(|scope| {
            let asked = scope.spawn(|| emulator.exchange(&SHOW_KEY));
            emulator.wait_for_text("Verify", A_WHILE);
            decide(&emulator);
            asked.join().unwrap()
        })
    };
    let approved = ask(Emulator::approve);
    assert_eq!(approved.last_chunk(), Some(&[0x90, 0]));
    emulator.wait_for_text("ready", A_WHILE);
    assert_eq!(ask(Emulator::reject), [0x69, 0x85]);
    emulator.wait_for_text("ready", A_WHILE);
    emulator.press(Button::Right);
    assert_ne!(emulator.screen_text(), "Boilerplate app is ready");
    emulator.press(Button::Left);
    emulator.wait_for_text("ready", A_WHILE);
}

/// The home menu is a row of screens as a review is.
fn no_further() {
    let approver = Approver::start(App::Boil);
    let emulator = approver.emulator();
    assert_eq!(emulator.hardware(), Some(Hardware::NanoX));
    let home = emulator.screen_text();
    let approved = || {
        assert_eq!(emulator.exchange(&SHOW_KEY).last_chunk(), Some(&[0x90, 0]));
    };
    approved();
    // Where a review that ended by itself may have left somebody.
    emulator.press(Button::Right);
    emulator.wait_for_text("ready", A_WHILE);
    for _ in 0..3 {
        approved();
    }
    emulator.wait_for_text(&home, A_WHILE);
    emulator.press(Button::Right);
    emulator.approve();
    emulator.wait_for_text(&home, A_WHILE);
}

/// What the model does as well.
fn while_asked() {
    let emulator = Emulator::start(App::Boil);
    emulator.learn_home();
    let stream = TcpStream::connect(emulator.apdu_address()).unwrap();
    stream.set_read_timeout(Some(A_WHILE)).unwrap();
    let send = |apdu: &[u8]| {
        let length = (apdu.len() as u32).to_be_bytes();
        (&stream).write_all(&[&length, apdu].concat()).unwrap();
    };
    let name = || {
        let mut name = [0; 27];
        (&stream).read_exact(&mut name).unwrap();
        assert_eq!(&name[6..17], b"Boilerplate");
    };
    send(&SHOW_KEY);
    emulator.wait_for_text("Verify", A_WHILE);
    send(&NAME_AND_VERSION);
    name();
    // The question is still there, but its answer goes nowhere.
    emulator.approve();
    emulator.wait_for_text("ready", A_WHILE);
    send(&NAME_AND_VERSION);
    name();
}

fn two() {
    let first = Emulator::start(App::Boil);
    let second = Emulator::start(App::Boil);
    assert_ne!(first.apdu_address(), second.apdu_address());
    let address = first.apdu_address();
    drop(first);
    wait_until_gone(address);
    assert_eq!(
        second.exchange(&NAME_AND_VERSION).last_chunk(),
        Some(&[0x90, 0])
    );
}

fn killed() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = victim.stdout.take().unwrap();
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let address: SocketAddr = str::from_utf8(&line).unwrap().trim().parse().unwrap();
    TcpStream::connect(address).unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_until_gone(address);
}

fn wait_until_gone(address: SocketAddr) {
    let end = Instant::now() + A_WHILE;
    while TcpStream::connect(address).is_ok() {
        assert!(Instant::now() < end, "the emulator is still there");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whatever its process group listens on is loopback.
fn loopback() {
    let emulator = Emulator::start(App::Boil);
    let port = format!(":{:04X}", emulator.apdu_address().port());
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    let bound: Vec<_> = (sockets.lines().filter_map(local))
        .filter(|address| address.ends_with(&port))
        .collect();
    assert!(!bound.is_empty());
    assert!(
        bound.iter().all(|address| address.starts_with("0100007F")),
        "{bound:?}"
    );
}

fn no_app() {
    let app = App::Elf(std::env::current_exe().unwrap());
    let started = std::panic::catch_unwind(|| drop(Emulator::start(app)));
    let text = started.unwrap_err().downcast::<String>().unwrap();
    assert!(text.contains("does not start"), "{text}");
    assert!(text.contains("Parsing binary"), "{text}");
}

// --- The Ethereum app -------------------------------------------------------------------

fn asks(apdu: &[u8]) -> bool {
    match apdu {
        [0xe0, 0x18, p1, ..] => *p1 == 1,
        // The first piece of a longer message.
        [0xe0, 0x08, 0x00, _, 0xff, ..] => false,
        [0xe0, 0x08, ..] => true,
        _ => false,
    }
}

fn ask(emulator: &Emulator, apdu: &[u8], decide: fn(&Emulator)) -> Vec<u8> {
    thread::scope(|scope| {
        let home = emulator.screen_text();
        let asked = scope.spawn(|| emulator.exchange(apdu));
        let end = Instant::now() + A_WHILE;
        while emulator.screen_text() == home {
            assert!(Instant::now() < end, "it does not ask");
            thread::sleep(Duration::from_millis(5));
        }
        decide(emulator);
        let reply = asked.join().unwrap();
        emulator.wait_for_text(&home, A_WHILE);
        reply
    })
}

fn recorded() {
    let emulator = Emulator::start(App::ethereum().unwrap());
    emulator.learn_home();
    for recorded in Recording::ethereum().exchanges() {
        let reply = if asks(&recorded.apdu) {
            ask(&emulator, &recorded.apdu, Emulator::approve)
        } else {
            emulator.exchange(&recorded.apdu)
        };
        assert_eq!(reply, recorded.reply, "{}", recorded.name);
    }
}

fn rejected() {
    let emulator = Emulator::start(App::ethereum().unwrap());
    emulator.learn_home();
    for recorded in Recording::ethereum().exchanges() {
        if asks(&recorded.apdu) && recorded.apdu[2] != 0x80 {
            let reply = ask(&emulator, &recorded.apdu, Emulator::reject);
            assert_eq!(reply, [0x69, 0x85], "{}", recorded.name);
        }
    }
}
