//! What an operator does to a daemon that serves: reloads it, reads its log and its figures.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use claviger_client::blocking::{Call, Client};
use claviger_client::daemon::Status;
use claviger_client::request::{committer, raw};
use claviger_client::{Error, Options};
use claviger_tests::SoftHsm;
use claviger_token::{PublicKey, Signature};
use rustix::process::Signal;
use serde_json::Value;

use super::common::{Daemon, Stage};
use super::{Ends, options, program, wait_until};

/// What is waited for comes by then, or never.
const LONG: Duration = Duration::from_secs(60);

/// Writes the configuration.
fn configure(stage: &Stage, text: &str) {
    let folder = stage.path("config/claviger");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.toml"), text).unwrap();
}

/// What systemd is for a daemon.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// Starts a daemon that has this manager.
    fn start(stage: &Stage) -> (Self, Daemon) {
        Manager::start_with(stage, stage.claviger(["--json", "serve"]))
    }

    fn start_with(stage: &Stage, mut command: Command) -> (Self, Daemon) {
        let path = stage.runtime().join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        command.env("NOTIFY_SOCKET", &path);
        let daemon = Daemon::run(stage, command);
        let manager = Manager { socket };
        manager.hears("READY=1");
        (manager, daemon)
    }

    /// Waits for a message with this in a line of its own.
    fn hears(&self, what: &str) -> String {
        loop {
            let mut message = [0; 512];
            let length = self.socket.recv(&mut message).unwrap();
            let message = String::from_utf8(message[..length].to_vec()).unwrap();
            if message.lines().any(|line| line == what) {
                return message;
            }
        }
    }

    /// Reloads the daemon, and waits until it is done.
    fn reload(&self, daemon: &Daemon) {
        daemon.signal(Signal::HUP);
        let reloading = self.hears("RELOADING=1");
        // From version 253 on systemd wants it.
        assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
        self.hears("READY=1");
    }
}

fn audit_mode(client: &Client) -> String {
    client.ask(&Status, &Call::default()).unwrap().audit
}

/// Connects, and does not try again where it is refused.
fn connect(stage: &Stage) -> Result<Client, Error> {
    Client::connect(Options {
        patience: Duration::from_millis(1),
        ..options(stage)
    })
}

/// How often the log has this.
fn count(daemon: &Daemon, what: &str) -> usize {
    daemon.log().matches(what).count()
}

const READ_AGAIN: &str = "the configuration was read again";

#[test]
fn a_reload_changes_what_can_change_and_names_what_cannot() {
    let stage = Stage::with_alice();
    let audit = stage.path("audit.jsonl").display().to_string();
    configure(&stage, &format!("[serve.audit]\nfile = '{audit}'\n"));
    let (manager, daemon) = Manager::start(&stage);
    let held = [program(&stage), program(&stage)];
    assert_eq!(audit_mode(&held[0]), "required");
    manager.reload(&daemon);
    assert_eq!(count(&daemon, READ_AGAIN), 1);

    configure(
        &stage,
        &format!(
            "[serve]\nlog-level = 'error'\n[serve.audit]\nfile = '{audit}'\n\
             mode = 'best-effort'\n[serve.limits]\nconnections-of-caller = 1\n"
        ),
    );
    manager.reload(&daemon);
    // Who is connected stays so; nobody else comes in.
    assert_eq!(audit_mode(&held[0]), "best-effort");
    assert_eq!(audit_mode(&held[1]), "best-effort");
    assert_eq!(connect(&stage).err().unwrap().code(), "busy");
    assert_eq!(count(&daemon, READ_AGAIN), 1, "it logs errors only");

    let socket = stage.path("other.sock").display().to_string();
    configure(
        &stage,
        &format!(
            "home = '/elsewhere'\n[serve]\nlog = 'json'\n[[serve.socket]]\nname = 'other'\n\
             path = '{socket}'\n[serve.audit]\nfile = '{audit}.other'\n\
             [serve.metrics]\nsocket = '{socket}.metrics'\n"
        ),
    );
    manager.reload(&daemon);
    // What can change did, also beside what cannot.
    connect(&stage).unwrap();
    assert_eq!(audit_mode(&held[0]), "required");
    assert_eq!(count(&daemon, READ_AGAIN), 2, "it logs more again");
    let log = daemon.log();
    for setting in [
        "home",
        "serve.log",
        "serve.socket",
        "serve.audit.file",
        "serve.metrics.socket",
    ] {
        let named = format!("setting=\"{setting}\"");
        assert!(log.contains(&named), "{setting}: {log}");
    }
    assert_eq!(log.matches("setting=").count(), 5, "{log}");
    for path in [
        &socket,
        &format!("{audit}.other"),
        &format!("{socket}.metrics"),
    ] {
        assert!(!fs::exists(path).unwrap(), "{path}");
    }
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn a_configuration_that_is_wrong_changes_nothing() {
    let stage = Stage::with_alice();
    let audit = stage.path("audit.jsonl").display().to_string();
    let right = format!("[serve.audit]\nfile = '{audit}'\n");
    configure(&stage, &right);
    let (manager, daemon) = Manager::start(&stage);
    let client = program(&stage);
    let limits = "[serve.limits]\nconnections-of-caller = 1\n";
    for (wrong, reason) in [
        ("[serve]\nloud = true\n", "`serve.loud` is no setting"),
        (
            "[serve.audit]\nmode = 'no'\n",
            "`serve.audit.mode` must be one of",
        ),
        ("pin_source = 'prompt'\n", "`pin_source` is no setting"),
        ("[serve\n", "line "),
    ] {
        // What is right in it does not count either.
        configure(&stage, &format!("{wrong}{limits}"));
        manager.reload(&daemon);
        let log = daemon.log();
        let said = log.lines().last().unwrap_or_default();
        assert!(said.contains("nothing was changed"), "{wrong}: {log}");
        assert!(said.contains(reason), "{wrong}: {log}");
        assert_eq!(audit_mode(&client), "required");
        connect(&stage).unwrap();
    }
    fs::remove_file(stage.path("config/claviger/config.toml")).unwrap();
    manager.reload(&daemon);
    let log = daemon.log();
    assert!(log.contains("is not there any more"), "{log}");
    assert_eq!(audit_mode(&client), "required");
    assert_eq!(count(&daemon, READ_AGAIN), 0, "{log}");
    configure(&stage, &right);
    manager.reload(&daemon);
    assert_eq!(count(&daemon, READ_AGAIN), 1, "{log}");
}

/// How many programs sign, and how often the daemon is reloaded under them.
const PROGRAMS: usize = 4;
const RELOADS: usize = 12;

#[test]
fn no_request_is_lost_while_the_daemon_reloads() {
    let stage = Stage::new();
    let audit = stage.path("audit.jsonl").display().to_string();
    let configured = |limit: usize, mode: &str| {
        format!(
            "[serve.audit]\nfile = '{audit}'\nmode = '{mode}'\njournal = false\n\
             [serve.limits]\nrequests-of-caller = {limit}\n"
        )
    };
    configure(&stage, &configured(100, "required"));
    let (manager, daemon) = Manager::start(&stage);
    let made = stage.json(&["generate", "brief", "--backend", "memory:"]);
    let key = made["keys"][0]["public_key"].as_str().unwrap();
    let key = PublicKey::from_text(key).unwrap();
    let (ends, signed) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _ends = Ends(&ends);
        for number in 0..PROGRAMS {
            let (stage, key, ends, signed) = (&stage, &key, &ends, &signed);
            scope.spawn(move || {
                let client = program(stage);
                let mut turn = 0;
                while !ends.load(Ordering::Relaxed) {
                    let message = format!("program {number}, turn {turn}");
                    turn += 1;
                    let call = Call::default();
                    let bytes = message.as_bytes();
                    let made = client.commit(&committer("brief"), bytes, &raw(), &call);
                    let made = made.unwrap_or_else(|error| panic!("{message}: {error}"));
                    let scheme = made.scheme.parse().unwrap();
                    let signature = Signature::new(scheme, made.bytes).unwrap();
                    key.verify(bytes, &signature).unwrap();
                    signed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for number in 0..RELOADS {
            let enough = signed.load(Ordering::Relaxed) + PROGRAMS;
            wait_until("a signature", || signed.load(Ordering::Relaxed) >= enough);
            let mode = ["best-effort", "required"][number % 2];
            configure(&stage, &configured(100 + number, mode));
            manager.reload(&daemon);
        }
    });
    assert_eq!(daemon.stop().code(), Some(0));
    // The log of them all is one chain.
    let mut parts: Vec<String> = (stage.files().into_iter())
        .filter(|name| name.starts_with("audit.jsonl."))
        .collect();
    parts.sort();
    assert_eq!(parts.len(), RELOADS, "{parts:?}");
    parts.push("audit.jsonl".into());
    let words = ["--json", "audit", "verify"].map(String::from);
    let report = stage
        .run([words.to_vec(), parts].concat())
        .succeeds()
        .json();
    assert_eq!(report["whole"], true, "{report}");
    assert_eq!(report["closed"], true, "{report}");
}

/// A daemon with this form of log does all kinds of things; what it logged.
fn log_of(form: &str) -> (String, String) {
    let stage = Stage::with_alice();
    let wrong = "97531864";
    stage.write("wrong", wrong);
    stage.write("letter", "the message itself");
    let settings = format!("[serve]\nlog = '{form}'\nlog-level = 'trace'\n");
    configure(&stage, &settings);
    let (manager, daemon) = Manager::start(&stage);
    let backend = stage.token.backend();
    stage
        .run(["--pin-source", "file:wrong", "unlock", &backend])
        .fails(1, "rejected the PIN");
    stage.run_with_pin(&["unlock", &backend]).succeeds();
    let sign = ["sign", "alice", "letter", "-o", "sig"];
    stage.run(sign).succeeds();
    stage.run(["sign", "nobody", "letter"]).fails(1, "nobody");
    stage.run(["lock"]).succeeds();
    configure(&stage, &format!("{settings}pin = '{wrong}'\n"));
    manager.reload(&daemon);
    configure(&stage, "[serve]\nlog-level = 'info'\n");
    manager.reload(&daemon);
    // A second one says why it does not start.
    configure(&stage, &settings);
    let words = ["serve", "--socket", "second.sock"];
    let second = stage.run(words).fails(1, "serves").err();
    let log = format!("{}{second}", daemon.log());
    for secret in [SoftHsm::PIN, wrong, "the message itself"] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
    (log, second)
}

#[test]
fn each_line_of_the_log_is_an_object_and_has_no_secret() {
    let (log, second) = log_of("json");
    let mut levels: Vec<String> = Vec::new();
    for line in log.lines().filter(|line| !second.contains(line)) {
        let event: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}\nin {log}"));
        for field in ["timestamp", "level", "target"] {
            assert!(event[field].is_string(), "{field}: {line}");
        }
        levels.push(event["level"].as_str().unwrap().to_owned());
    }
    for level in ["DEBUG", "INFO", "ERROR"] {
        assert!(levels.iter().any(|found| found == level), "{level}: {log}");
    }
    let failed: Value = serde_json::from_str(second.lines().last().unwrap()).unwrap();
    assert_eq!(failed["error"]["code"], "daemon-running", "{second}");
}

#[test]
fn a_log_of_text_has_no_colours_and_no_secret() {
    let (log, _) = log_of("text");
    assert!(log.contains(" ERROR ") && log.contains(READ_AGAIN), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
    let is_object = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|v| v.is_object());
    assert!(!log.lines().any(is_object), "{log}");
}

/// What a daemon answers to who asks for its figures.
fn figures(mut stream: impl Read + Write) -> String {
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    answer
}

#[test]
fn the_figures_of_a_daemon_are_at_its_socket_and_name_tokens_only_if_that_is_wanted() {
    let stage = Stage::with_alice();
    let socket = stage.path("metrics.sock");
    let port = {
        let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        any.local_addr().unwrap().port()
    };
    let path = socket.display();
    let configured = format!("[serve.metrics]\nsocket = '{path}'\nport = {port}\n");
    configure(&stage, &configured);
    let (manager, daemon) = Manager::start(&stage);
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    stage.write("letter", "x");
    stage.write("wrong", "97531864");
    let sign = ["sign", "alice", "letter", "-o", "sig"];
    let by_wrong = [&["--pin-source", "file:wrong"], &sign[..]].concat();
    stage.run(by_wrong).fails(1, "rejected the PIN");
    stage.run_with_pin(&sign).succeeds();
    stage
        .run_with_pin(&["unlock", &stage.token.backend()])
        .succeeds();
    let shown = || {
        let stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        figures(stream)
    };
    let text = shown();
    for line in [
        r#"claviger_requests_total{operation="sign",outcome="ok"} 1"#,
        r#"claviger_requests_total{operation="sign",outcome="pin-wrong"} 1"#,
        r#"claviger_requests_total{operation="unlock",outcome="ok"} 1"#,
        r#"claviger_request_duration_seconds_count{operation="sign",kind="pkcs11",token=""} 2"#,
        r#"claviger_pins_rejected_total{by="token"} 1"#,
        r#"claviger_tokens{kind="pkcs11",state="ready",token=""} 1"#,
        r#"claviger_token_queue{kind="pkcs11",token=""} 0"#,
        "claviger_tokens_unlocked 1",
        "claviger_audit_failing 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let serial = stage.json(&["status"])["tokens"][0]["token"].clone();
    let serial = serial.as_str().unwrap();
    assert!(!text.contains(serial) && !text.contains("alice"), "{text}");
    // Another process may have had the port, which is said in the log.
    if !daemon.log().contains("figures are not shown at the port") {
        wait_until("the port", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        assert!(figures(stream).contains("\nclaviger_tokens_unlocked 1\n"));
    }
    configure(&stage, &format!("{configured}names = true\n"));
    manager.reload(&daemon);
    assert!(shown().contains(serial), "{}", shown());
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn figures_are_shown_at_the_loopback_interface_only() {
    let stage = Stage::with_alice();
    for address in ["'0.0.0.0:9464'", "'127.0.0.1:9464'", "70000"] {
        configure(&stage, &format!("[serve.metrics]\nport = {address}\n"));
        let refused = stage.run(["--json", "serve"]);
        refused.fails(1, "\"code\":\"bad-config\"");
    }
    configure(&stage, "[serve.metrics]\naddress = '0.0.0.0'\n");
    stage
        .run(["serve"])
        .fails(1, "`serve.metrics.address` is no setting");
}

#[test]
fn a_daemon_tells_of_the_places_that_it_cannot_read() {
    let stage = Stage::with_alice();
    let modules = stage.path("config/pkcs11/modules");
    fs::create_dir_all(&modules).unwrap();
    fs::write(
        modules.join("broken.module"),
        "module: /nowhere/module.so\n",
    )
    .unwrap();
    let tokens = ["tokens", "--backend", "pkcs11:"];
    let alone = stage.run(tokens).succeeds();
    assert!(
        alone.err().contains("/nowhere/module.so"),
        "{}",
        alone.err()
    );
    assert!(alone.err().contains("hint: "), "{}", alone.err());
    let _daemon = Daemon::start(&stage);
    let by_daemon = stage.run(tokens).succeeds();
    assert_eq!(by_daemon.err(), alone.err());
    assert_eq!(by_daemon.out(), alone.out());
}

/// A pinentry that notes what it is told, and answers what a file says.
const SCRIPTED: &str = r#"#!/bin/sh
echo "OK Pleased to meet you"
while read -r line; do
    echo "$line" >> told
    case "$line" in
        CONFIRM*)
            case "$(cat answer)" in
                allow) echo "OK" ;;
                silence) echo $$ > running; exec sleep 60 ;;
                *) echo "ERR 83886179 Operation cancelled <Pinentry>" ;;
            esac ;;
        BYE) echo "OK closing connection"; exit ;;
        *) echo "OK" ;;
    esac
done
"#;

/// A stage with a key in the memory of its daemon and that pinentry; each use of the key is
/// confirmed.
fn confirmed() -> (Stage, Daemon) {
    let stage = Stage::new();
    configure(&stage, "[serve]\nconfirm = ['brief']\n");
    let pinentry = stage.path("bin/pinentry");
    fs::create_dir(stage.path("bin")).unwrap();
    fs::write(&pinentry, SCRIPTED).unwrap();
    fs::set_permissions(&pinentry, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = stage.claviger(["--json", "serve"]);
    let others = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{others}", stage.path("bin").display()));
    let daemon = Daemon::run(&stage, command);
    let generate = ["generate", "brief", "--backend", "memory:"];
    stage.run(generate).succeeds();
    stage.write("letter", "Meet me\n");
    (stage, daemon)
}

#[test]
fn each_use_of_a_key_is_confirmed_by_a_pinentry() {
    let (stage, _daemon) = confirmed();
    let sign = ["--json", "sign", "brief", "letter", "-o", "sig"];
    stage.write("answer", "allow");
    stage.run(sign).succeeds();
    let told = || String::from_utf8(stage.read("told")).unwrap();
    assert_eq!(told().matches("CONFIRM").count(), 1, "{}", told());
    for word in ["SETOK Allow", "`brief`", "sign"] {
        assert!(told().contains(word), "{word}: {}", told());
    }
    stage.write("answer", "decline");
    let code = "\"code\":\"use-not-confirmed\"";
    fs::remove_file(stage.path("sig")).unwrap();
    stage.run(sign).fails(1, code);
    assert_eq!(told().matches("CONFIRM").count(), 2, "{}", told());
    assert!(!stage.path("sig").exists());
    // One that does not answer is ended with the request: here whoever asked goes away.
    stage.write("answer", "silence");
    let mut asks = stage.claviger(sign).spawn().unwrap();
    wait_until("a question", || {
        stage
            .path("running")
            .metadata()
            .is_ok_and(|found| found.len() > 1)
    });
    asks.kill().unwrap();
    asks.wait().unwrap();
    let id = String::from_utf8(stage.read("running")).unwrap();
    let process = format!("/proc/{}/stat", id.trim());
    // What has ended and was not waited for has the state Z.
    wait_until("the end of the pinentry", || {
        fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z "))
    });
    fs::remove_file(stage.path("bin/pinentry")).unwrap();
    let others = std::env::var("PATH").unwrap();
    let mut folders = others.split(':');
    if folders.any(|folder| fs::exists(format!("{folder}/pinentry")).unwrap_or(true)) {
        eprintln!("SKIPPED: this machine has a pinentry of its own");
        return;
    }
    let refused = stage.run(sign).fails(1, code).err();
    assert!(
        refused.contains("there is no program `pinentry`"),
        "{refused}"
    );
}

#[test]
fn a_grant_with_confirmation_is_added_listed_and_removed() {
    let stage = Stage::with_alice();
    let _daemon = Daemon::start(&stage);
    let add = |may| {
        let words = [
            "grant",
            "add",
            "--uid",
            "1001",
            "--identity",
            "alice",
            "--may",
        ];
        [&["--json"], &words[..], &[may, "--confirm"]].concat()
    };
    let added = stage.run(add("sign")).succeeds().json();
    assert_eq!(
        (&added[0]["may"], &added[0]["confirm"]),
        (&"sign".into(), &true.into())
    );
    assert_eq!(stage.json(&["grant", "list"]), added);
    let listed = stage.run(["grant", "list"]).succeeds().out();
    assert!(listed.contains("each use"), "{listed}");
    // What uses no key has nothing to confirm.
    stage.run(add("delete")).fails(1, "\"code\":\"bad-grant\"");
    let id = added[0]["id"].to_string();
    stage.run(["grant", "remove", &id]).succeeds();
    assert_eq!(stage.run(["grant", "list"]).succeeds().out(), "no grants\n");
}
