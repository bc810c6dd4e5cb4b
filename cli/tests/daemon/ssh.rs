//! The daemon as an ssh-agent, used by OpenSSH and git.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use claviger_tests::{Sshd, is_user};
use rustix::process::geteuid;

use crate::common::{Daemon, Outcome, Stage};

/// A daemon whose token is unlocked, and what SSH programs need to use it.
struct Agent {
    daemon: Daemon,
    stage: Stage,
}

impl Agent {
    /// With `alice`, whose key is P-256.
    fn new() -> Self {
        let stage = Stage::with_alice();
        Agent::of(stage)
    }

    fn of(stage: Stage) -> Self {
        let daemon = Daemon::start(&stage);
        let backend = stage.token.backend();
        stage.run_with_pin(&["unlock", &backend]).succeeds();
        Agent { daemon, stage }
    }

    /// Another identity, in the daemon's memory.
    fn generate(&self, name: &str, params: &str) {
        let words = ["generate", name, "--backend", "memory:", "--params", params];
        let outcome = self
            .stage
            .run([&words[..], &["--capabilities", "commit"]].concat());
        outcome.succeeds();
    }

    /// A program of others with this agent.
    fn program(&self, name: &str, words: &[&str]) -> Command {
        let mut command = Command::new(name);
        command.args(words);
        self.prepare(&mut command);
        command
    }

    fn prepare(&self, command: &mut Command) {
        command
            .current_dir(self.stage.folder())
            .env(
                "SSH_AUTH_SOCK",
                self.stage.runtime().join("claviger/ssh.sock"),
            )
            .env("HOME", self.stage.folder())
            .env_remove("SSH_ASKPASS")
            .env_remove("DISPLAY")
            .stdin(Stdio::null());
    }

    fn run(&self, name: &str, words: &[&str]) -> Outcome {
        Outcome::of(&mut self.program(name, words))
    }

    /// The line of a public key.
    fn key(&self, name: &str) -> String {
        self.stage.run(["ssh-key", name]).succeeds().out()
    }

    /// `ssh-add` asks a program for the passphrase.
    fn with_passphrase(&self, option: &str, passphrase: &str) -> Outcome {
        let asks = self
            .stage
            .write("askpass", format!("#!/bin/sh\necho '{passphrase}'\n"));
        fs::set_permissions(&asks, Permissions::from_mode(0o700)).unwrap();
        let mut command = self.program("setsid", &["-w", "ssh-add", option]);
        command.env("SSH_ASKPASS", asks);
        command.env("SSH_ASKPASS_REQUIRE", "force");
        Outcome::of(&mut command)
    }

    /// The shell blocks of a document, which are run with the programs of this stage.
    fn script(&self, document: &str, blocks: &[usize], sshd: Option<&Sshd>) -> Outcome {
        let all: Vec<&str> = document
            .split("```sh\n")
            .skip(1)
            .map(|block| block.split("```").next().unwrap())
            .collect();
        let chosen: Vec<&str> = blocks.iter().map(|block| all[*block]).collect();
        let uid = uid();
        let script = chosen
            .concat()
            .replace(
                "claviger unlock 'pkcs11:token=bench'",
                &format!(
                    "claviger unlock --pin-source file:pin '{}'",
                    self.stage.token.backend()
                ),
            )
            .replace("--uid 1000", &format!("--uid {uid}"));
        let script = match sshd {
            Some(sshd) => {
                let key = sshd.host_key().display().to_string();
                script.replace("/etc/ssh/ssh_host_ed25519_key.pub", &key)
            }
            None => script,
        };
        let mut command = self.stage.script(&script, "");
        if let Some(sshd) = sshd {
            let wrapper = self.stage.path("bin/ssh");
            // By its name it would find itself.
            let found = Outcome::of(Command::new("sh").args(["-c", "command -v ssh"]));
            let (ssh, config) = (found.succeeds().out(), sshd.config());
            let line = format!("exec '{}' -F '{}' \"$@\"", ssh.trim(), config.display());
            fs::write(&wrapper, format!("#!/bin/sh\n{line}\n")).unwrap();
            fs::set_permissions(&wrapper, Permissions::from_mode(0o700)).unwrap();
        }
        command
            .env("HOME", self.stage.folder())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("GIT_DIR")
            .env_remove("GIT_PREFIX");
        Outcome::of(&mut command)
    }
}

/// The user of the daemon, as it knows its callers.
fn uid() -> String {
    let uid = match is_user() && geteuid().is_root() {
        true => 1000,
        false => geteuid().as_raw(),
    };
    uid.to_string()
}

#[test]
fn openssh_lists_the_keys_and_only_a_grant_lets_it_sign_raw_data() {
    let agent = Agent::new();
    agent.generate("bob", "ed25519");
    agent.generate("carol", "p384");
    let listed = agent.run("ssh-add", &["-L"]).succeeds().out();
    let keys: Vec<String> = ["alice", "bob", "carol"].map(|name| agent.key(name)).into();
    assert_eq!(listed, keys.concat());
    assert!(
        agent
            .run("ssh-add", &["-l"])
            .succeeds()
            .out()
            .contains("384 SHA256:")
    );
    for name in ["alice", "bob", "carol"] {
        let public = agent.stage.write("key.pub", agent.key(name));
        let path = public.display().to_string();
        let refused = agent.run("ssh-add", &["-T", &path]);
        assert_eq!(refused.code(), Some(1), "{}", refused.err());
        let uid = uid();
        let grant = [
            "grant",
            "add",
            "--uid",
            &uid,
            "--identity",
            name,
            "--may",
            "sign",
        ];
        agent
            .stage
            .run([&grant[..], &["--purpose", "raw"]].concat())
            .succeeds();
        agent.run("ssh-add", &["-T", &path]).succeeds();
    }
    assert!(
        agent.daemon.log().contains("--purpose raw"),
        "{}",
        agent.daemon.log()
    );
}

#[test]
fn openssh_locks_and_unlocks_the_agent_and_removes_no_key() {
    let agent = Agent::new();
    let key = agent.key("alice");
    agent.with_passphrase("-x", "words").succeeds();
    let listed = agent.run("ssh-add", &["-L"]);
    assert!(!listed.out().contains(key.trim()), "{}", listed.out());
    assert_ne!(agent.with_passphrase("-X", "others").code(), Some(0));
    agent.with_passphrase("-X", "words").succeeds();
    assert_eq!(agent.run("ssh-add", &["-L"]).succeeds().out(), key);
    agent.run("ssh-add", &["-D"]).succeeds();
    assert_eq!(agent.run("ssh-add", &["-L"]).succeeds().out(), key);
    let status = agent.stage.json(&["status"]);
    assert_eq!(status["tokens"][0]["unlocked"], false, "{status}");
    assert_eq!(agent.stage.private_keys(), 2);
    let made = ["-q", "-t", "ed25519", "-N", "", "-f", "foreign"];
    agent.run("ssh-keygen", &made).succeeds();
    assert_ne!(agent.run("ssh-add", &["foreign"]).code(), Some(0));
    let public = agent.stage.write("alice.pub", key.as_bytes());
    let public = public.display().to_string();
    assert_ne!(agent.run("ssh-add", &["-d", &public]).code(), Some(0));
    assert_eq!(agent.run("ssh-add", &["-L"]).succeeds().out(), key);
    let log = agent.daemon.log();
    assert!(
        log.contains("a key is not added: keys are made on tokens"),
        "{log}"
    );
    assert!(log.contains("a key is not removed"), "{log}");
}

/// Its keys: P-256 and RSA on a token, Ed25519 and P-384 in memory.
#[test]
fn openssh_logs_in_and_makes_signatures_with_keys_of_each_kind() {
    let stage = Stage::with_alice();
    stage
        .generate("rosa", &["--params", "rsa2048", "--capabilities", "commit"])
        .succeeds();
    let agent = Agent::of(stage);
    agent.generate("bob", "ed25519");
    agent.generate("carol", "p384");
    let folder = agent.stage.path("server");
    fs::create_dir(&folder).unwrap();
    let sshd = Sshd::new(&folder);
    agent.stage.write("letter", "a letter");
    for name in ["alice", "bob", "carol", "rosa"] {
        let public = agent.stage.write("key.pub", agent.key(name));
        let path = public.display().to_string();
        let _ = fs::remove_file(agent.stage.path("letter.sig"));
        let sign = ["-Y", "sign", "-n", "file", "-f", &path, "letter"];
        agent.run("ssh-keygen", &sign).succeeds();
        let words = ["verify", name, "--signature", "letter.sig", "letter"];
        agent.stage.run(words).succeeds();
        let allowed = agent.stage.run(["allowed-signers", name]).succeeds().out();
        agent.stage.write("allowed", allowed);
        let verify = [
            "-Y",
            "verify",
            "-n",
            "file",
            "-f",
            "allowed",
            "-I",
            name,
            "-s",
            "letter.sig",
        ];
        let mut command = agent.program("ssh-keygen", &verify);
        command.stdin(fs::File::open(agent.stage.path("letter")).unwrap());
        Outcome::of(&mut command).succeeds();
        let Some(sshd) = &sshd else {
            continue;
        };
        fs::write(sshd.authorized_keys(), agent.key(name)).unwrap();
        let mut login = sshd.client();
        agent.prepare(&mut login);
        let outcome = Outcome::of(login.args(["server", "echo", "hello"])).succeeds();
        assert_eq!(outcome.out(), "hello\n", "{name}");
    }
}

#[test]
fn a_host_that_no_grant_names_is_not_logged_in_to() {
    let agent = Agent::new();
    let folder = agent.stage.path("server");
    fs::create_dir(&folder).unwrap();
    let Some(sshd) = Sshd::new(&folder) else {
        return;
    };
    fs::write(sshd.authorized_keys(), agent.key("alice")).unwrap();
    let logs_in = || {
        let mut login = sshd.client();
        agent.prepare(&mut login);
        Outcome::of(login.args(["server", "echo", "hello"])).out() == "hello\n"
    };
    let uid = uid();
    let grant = |host: &str| {
        let words = [
            "grant",
            "add",
            "--uid",
            &uid,
            "--socket",
            "ssh",
            "--identity",
            "alice",
        ];
        let what = ["--may", "sign", "--purpose", "ssh", "--host", host];
        agent.stage.run([&words[..], &what].concat()).succeeds();
    };
    let made = ["-q", "-t", "ed25519", "-N", "", "-f", "other"];
    agent.run("ssh-keygen", &made).succeeds();
    assert!(logs_in());
    let other = agent.stage.path("other.pub").display().to_string();
    grant(&other);
    assert!(!logs_in());
    let log = agent.daemon.log();
    assert!(
        log.contains("log in as this identity to this host"),
        "{log}"
    );
    let line = fs::read_to_string(sshd.host_key()).unwrap();
    grant(line.trim());
    assert!(logs_in());
}

#[test]
fn the_worked_example_of_ssh_works_as_written() {
    let stage = Stage::with_alice();
    let daemon = Daemon::start(&stage);
    let agent = Agent { daemon, stage };
    fs::create_dir(agent.stage.path(".ssh")).unwrap();
    let folder = agent.stage.path("server");
    fs::create_dir(&folder).unwrap();
    let Some(sshd) = Sshd::new(&folder) else {
        return;
    };
    fs::remove_file(sshd.authorized_keys()).unwrap();
    let file = agent.stage.path(".ssh/authorized_keys");
    std::os::unix::fs::symlink(file, sshd.authorized_keys()).unwrap();
    let document = include_str!("../../../docs/ssh.md");
    let outcome = agent.script(document, &[0, 1], Some(&sshd)).succeeds();
    let out = outcome.out();
    assert!(out.contains("\nlogged in\n"), "{out}");
    assert!(out.contains("\nstill logged in\n"), "{out}");
}

#[test]
fn the_worked_example_of_git_works_as_written_and_an_altered_commit_does_not_verify() {
    let agent = Agent::new();
    let git = |words: &[&str]| {
        let mut command = agent.program("git", words);
        command
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env_remove("GIT_DIR");
        command
    };
    for words in [
        &["init", "-q"][..],
        &["config", "user.name", "Alice"],
        &["config", "user.email", "alice@example.org"],
        &["add", "letter"],
    ] {
        agent.stage.write("letter", "a letter");
        Outcome::of(&mut git(words)).succeeds();
    }
    let document = include_str!("../../../docs/git.md");
    let outcome = agent.script(document, &[0, 1, 2], None).succeeds();
    let good = "Good \"git\" signature for alice@example.org with ECDSA key";
    assert_eq!(outcome.err().matches(good).count(), 2, "{}", outcome.err());
    for commit in ["HEAD", "HEAD~1", "HEAD~2"] {
        let verified = Outcome::of(&mut git(&["verify-commit", commit])).succeeds();
        assert!(verified.err().contains(good), "{}", verified.err());
    }
    let raw = Outcome::of(&mut git(&["cat-file", "commit", "HEAD"]))
        .succeeds()
        .out();
    let altered = raw.replace("By the public key", "By somebody else");
    let mut store = git(&["hash-object", "-t", "commit", "-w", "--stdin"]);
    store.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut store = store.spawn().unwrap();
    store
        .stdin
        .take()
        .unwrap()
        .write_all(altered.as_bytes())
        .unwrap();
    let stored = Outcome::from(store.wait_with_output().unwrap())
        .succeeds()
        .out();
    let refused = Outcome::of(&mut git(&["verify-commit", stored.trim()]));
    assert_eq!(refused.code(), Some(1), "{}", refused.err());
}

#[test]
fn a_shell_is_told_of_the_agent_only_where_there_is_one() {
    let stage = Stage::new();
    let absent = stage.run(["agent-env"]);
    absent.fails(1, "no daemon of yours serves SSH");
    let _daemon = Daemon::start(&stage);
    let said = stage.run(["agent-env"]).succeeds().out();
    let socket = stage.runtime().join("claviger/ssh.sock");
    let line = format!(
        "SSH_AUTH_SOCK={}; export SSH_AUTH_SOCK;\n",
        socket.display()
    );
    assert_eq!(said, line);
    let json = stage.json(&["agent-env"]);
    assert_eq!(json["ssh_auth_sock"], socket.display().to_string());
    let mode = fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[test]
fn keys_are_printed_for_ssh_and_for_git_and_signers_for_those_who_verify() {
    let stage = Stage::with_alice();
    stage
        .generate("ethan", &["--params", "secp256k1"])
        .succeeds();
    let line = stage.run(["ssh-key", "alice"]).succeeds().out();
    assert!(
        line.starts_with("ecdsa-sha2-nistp256 ") && line.ends_with(" alice\n"),
        "{line}"
    );
    let mut by_git = stage.claviger(["ssh-key", "alice"]);
    by_git.env("GIT_PREFIX", "");
    let for_git = Outcome::of(&mut by_git).succeeds().out();
    assert_eq!(for_git, format!("key::{line}"));
    assert_eq!(stage.json(&["ssh-key", "alice"])["key"], line.trim());
    stage
        .run(["ssh-key", "ethan"])
        .fails(1, "no signing key of a kind that SSH knows");
    let key = line.trim().trim_end_matches(" alice");
    let all = stage.run(["allowed-signers"]).succeeds().out();
    assert_eq!(all, format!("alice {key}\n"));
    let named = ["allowed-signers", "alice", "--principal", "Alice A."];
    assert_eq!(
        stage.run(named).succeeds().out(),
        format!("\"Alice A.\" {key}\n")
    );
    stage
        .run(["allowed-signers", "alice", "--principal", "*"])
        .fails(1, "cannot be a principal");
    stage
        .run(["allowed-signers", "ethan"])
        .fails(1, "SSH knows");
}
