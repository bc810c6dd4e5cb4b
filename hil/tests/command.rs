//! The command as it is run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn hil(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claviger-hil"));
    command.current_dir(folder).args(args).stdin(Stdio::null());
    command
}

#[track_caller]
fn fails(output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "no {words:?} in {said}");
}

#[test]
fn bad_input_is_told_before_anything_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let run = |args: &[&str]| hil(path, args).output().unwrap();
    fails(
        &run(&["--config", "none.toml"]),
        1,
        "there is no configuration at none.toml",
    );
    fs::write(
        path.join("bad.toml"),
        "[[device]]\nserial = \"1\"\npin = \"271828\"\n",
    )
    .unwrap();
    let output = run(&["--config", "bad.toml"]);
    fails(&output, 1, "line 3");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("271828"));
    fs::write(path.join("file"), "").unwrap();
    fails(
        &run(&["--virtual", "--out", "file"]),
        1,
        "file/results.jsonl cannot be written",
    );
    fails(
        &run(&["--virtual", "--only", "nobody"]),
        1,
        "no device fits `nobody`",
    );
    fails(
        &run(&["--virtual", "--only", "yubikey-5.7.1,nobody"]),
        1,
        "there are: softhsm, kryoptic",
    );
    fails(
        &run(&["--virtual", "--check", "nothing"]),
        1,
        "no check `nothing`",
    );
    fails(&run(&["--virtual", "--attached"]), 2, "cannot be used with");
    fails(&run(&["--seconds", "-1"]), 2, "");
    fails(&run(&["compare", "file", "file"]), 1, "it is empty");
    fails(&run(&["replay", "file"]), 1, "line 1");
}

#[test]
fn a_device_that_is_named_and_does_not_start_fails_and_one_that_is_not_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let run = |app: &str| {
        let args = ["--virtual", "--no-measure", "--only", "ledger-emulator"];
        let mut command = hil(folder.path(), &args);
        command.env("CLAVIGER_TEST_QUICK", "0");
        command.env("LEDGER_ETH_ELF", app).output().unwrap()
    };
    fails(&run(""), 0, "SKIPPED: LEDGER_ETH_ELF is not set");
    fails(&run("none.elf"), 1, "LEDGER_ETH_ELF=none.elf is no file");
}

#[test]
fn ctrl_c_ends_a_run_with_the_reports_of_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = hil(
        folder.path(),
        &["--virtual", "--only", "yubikey-5.7.1", "--out", "o"],
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let results = folder.path().join("o/results.jsonl");
    let end = Instant::now() + Duration::from_secs(60);
    let lines = || {
        fs::read_to_string(&results)
            .unwrap_or_default()
            .lines()
            .count()
    };
    while lines() < 4 {
        assert!(Instant::now() < end, "it does not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let text = fs::read_to_string(&results).unwrap();
    assert!(text.lines().last().unwrap().contains("\"complete\":false"));
    assert!(
        text.contains(
            "\"nothing_is_left_behind\",\"capability\":\"device\",\"outcome\":\"passed\""
        )
    );
    let page = fs::read_to_string(folder.path().join("o/report.html")).unwrap();
    assert!(page.contains("The run was interrupted"));
    assert!(
        fs::read_to_string(folder.path().join("o/junit.xml"))
            .unwrap()
            .contains("interrupted")
    );
}

/// SoftHSM2, treated as somebody's: tokens in a store of its own, which all have the same
/// label.
struct Store {
    folder: tempfile::TempDir,
    serials: Vec<String>,
}

impl Store {
    fn with(tokens: usize) -> Store {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("tokens")).unwrap();
        let mut store = Store {
            folder,
            serials: Vec::new(),
        };
        let conf = format!(
            "directories.tokendir = {}\nlog.level = ERROR\n",
            store.path().join("tokens").display()
        );
        fs::write(store.path().join("softhsm2.conf"), conf).unwrap();
        fs::write(store.path().join("pin"), "tr0mb0ne\n").unwrap();
        for _ in 0..tokens {
            let made = store.run(Command::new("softhsm2-util").args([
                "--init-token",
                "--free",
                "--label",
                "same",
                "--pin",
                "tr0mb0ne",
                "--so-pin",
                "12345678",
            ]));
            assert!(made.status.success());
        }
        let shown = store.run(Command::new("softhsm2-util").arg("--show-slots"));
        let shown = String::from_utf8(shown.stdout).unwrap();
        store.serials = shown
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Serial number:"))
            .map(|serial| serial.trim().to_owned())
            .filter(|serial| !serial.is_empty())
            .collect();
        assert_eq!(store.serials.len(), tokens, "{shown}");
        store
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a program that sees this store.
    fn run(&self, command: &mut Command) -> Output {
        self.seen_by(command).output().unwrap()
    }

    fn seen_by<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("SOFTHSM2_CONF", self.path().join("softhsm2.conf"))
    }

    /// Makes a key, of others, on a token.
    fn make_key(&self, index: usize) {
        let made = self.run(
            Command::new("pkcs11-tool")
                .args(["--module", claviger_tests::SoftHsm::module(), "--login"])
                .args(["--slot-index", &index.to_string(), "--pin", "tr0mb0ne"])
                .args(["--keypairgen", "--key-type", "EC:prime256v1", "--id", "01"])
                .arg("--usage-sign"),
        );
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
    }

    /// Lists the first token, with this besides.
    fn list(&self, besides: &str) {
        let config = format!(
            "modules = [\"{}\"]\n[[device]]\nserial = \"{}\"\nname = \"hsm\"\n\
             pin = \"file:{}\"\n{besides}",
            claviger_tests::SoftHsm::module(),
            self.serials[0],
            self.path().join("pin").display()
        );
        fs::write(self.path().join("hil.toml"), config).unwrap();
    }

    /// What is in the folder of a token, which SoftHSM names after the end of its serial.
    fn files(&self, serial: &str) -> Vec<(String, Vec<u8>)> {
        let homes = fs::read_dir(self.path().join("tokens")).unwrap();
        let home = homes
            .map(|entry| entry.unwrap().path())
            .find(|path| {
                let name = path.display().to_string().replace('-', "");
                name.ends_with(serial)
            })
            .unwrap();
        let mut files: Vec<_> = fs::read_dir(home)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            // What is being deleted just now may be gone.
            .filter_map(|path| Some((path.display().to_string(), fs::read(&path).ok()?)))
            .collect();
        files.sort();
        files
    }

    /// How many objects there are: the token itself, and two for each pair of keys. Those
    /// that SoftHSM has begun to write are none yet.
    fn objects(&self, serial: &str) -> usize {
        let is_object =
            |(name, text): &&(String, Vec<u8>)| name.ends_with(".object") && !text.is_empty();
        self.files(serial).iter().filter(is_object).count()
    }
}

#[test]
fn a_listed_hsm_is_benched_and_one_with_the_same_label_is_only_read() {
    let store = Store::with(2);
    let path = store.path();
    let [listed, unlisted] = &store.serials[..] else {
        panic!("not two tokens");
    };
    // A key that was there before, on each.
    store.make_key(0);
    store.make_key(1);
    let before = store.files(unlisted);
    store.list("max-keys = 12\n");

    let mut run = hil(path, &["--attached", "--seconds", "0.05"]);
    run.args(["--record", "--check"]);
    run.arg(
        "a_token_is_found_by_the_name_that_it_gives,a_decryptor_agrees_with_what_its_peer_computes",
    );
    let output = store.run(&mut run);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("its serial is not listed: it was only read"),
        "{said}"
    );
    assert_eq!(store.files(unlisted), before);
    // The token itself and the halves of the key, each with its lock.
    assert!(before.len() >= 6, "{}", before.len());

    let results = path.join("hil-report/results.jsonl");
    let text = fs::read_to_string(&results).unwrap();
    for words in [
        "\"what_was_there_is_still_there\",\"capability\":\"device\",\"outcome\":\"passed\"",
        "\"nothing_is_left_behind\",\"capability\":\"device\",\"outcome\":\"passed\"",
        "\"unit\":\"pkcs11\"",
        "\"keys\":12",
    ] {
        assert!(text.contains(words), "{words}");
    }
    let records = claviger_hil::results::read(&results).unwrap();
    let same = claviger_hil::compare::compare(&records, &records);
    assert!(same.changes.is_empty(), "{same}");

    // What the spy saw, without what it knows.
    let calls = path.join("hil-report/transcripts/hsm/pkcs11-calls.txt");
    let calls = fs::read_to_string(calls).unwrap();
    assert!(calls.contains("C_Login -> CKR_OK"), "{calls}");
    assert!(calls.contains("C_SignInit CKM_ECDSA -> CKR_OK"), "{calls}");
    for secret in ["tr0mb0ne", "7472306D62306E65", "7472306d62306e65"] {
        assert!(!calls.contains(secret));
    }

    // Only where its owner says so, room is made on the listed one, and only there.
    let (kept, others) = (store.objects(listed), store.objects(unlisted));
    store.list("max-keys = 12\nwipe = true\n");
    let mut run = hil(path, &["--attached", "--no-measure", "--check"]);
    let output = store.run(run.arg("a_token_is_found_by_the_name_that_it_gives"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // The two halves of the key are gone; the token itself is an object as well.
    assert_eq!((kept, store.objects(listed)), (3, 1));
    assert_eq!(store.objects(unlisted), others);
    assert_eq!(store.files(unlisted), before);
}

/// A module is in a process once, and looks into one store.
#[test]
fn a_listed_hsm_is_found_where_a_virtual_one_would_hide_it() {
    let store = Store::with(1);
    store.list("");
    let args = ["--no-measure", "--only", "softhsm,hsm", "--check"];
    let mut run = hil(store.path(), &args);
    let output = store.run(run.arg("a_token_is_found_by_the_name_that_it_gives"));
    fails(&output, 0, "softhsm: SKIPPED: hsm is listed");
    let results = store.path().join("hil-report/results.jsonl");
    let text = fs::read_to_string(results).unwrap();
    assert!(text.contains("\"nothing_is_left_behind\"") && !text.contains("it_is_plugged_in"));
}

#[test]
fn what_is_not_looked_into_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = hil(folder.path(), &["--attached", "--no-measure"]);
    run.env("PCSCLITE_CSOCK_NAME", folder.path().join("none"));
    let said = "not looked into: the smartcard service cannot be reached: pcscd is not running";
    fails(&run.output().unwrap(), 0, said);
}

/// The process that counts PKCS#11 calls for this one, if it is there.
#[cfg(target_os = "linux")]
fn counter_of(parent: u32) -> Option<String> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let children = children.unwrap_or_default();
    let is_counter = |pid: &&str| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == b"spied")
    };
    children.split_whitespace().find(is_counter).map(Into::into)
}

#[test]
#[cfg(target_os = "linux")]
fn a_run_that_is_killed_while_it_counts_leaves_no_pin_and_the_next_deletes_its_keys() {
    let store = Store::with(1);
    let (path, serial) = (store.path(), &*store.serials[0]);
    store.make_key(0);
    store.list("max-keys = 2\n");
    let temporary = path.join("tmp");
    fs::create_dir(&temporary).unwrap();
    let before = store.files(serial);

    let args = ["--attached", "--seconds", "0.01", "--check"];
    let mut run = hil(path, &args);
    run.arg("a_token_is_found_by_the_name_that_it_gives");
    run.env("TMPDIR", &temporary);
    run.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = store.seen_by(&mut run).spawn().unwrap();
    let signal = |signal: &str, pid: &str| {
        let sent = Command::new("kill").args([signal, pid]).status().unwrap();
        assert!(sent.success() || signal != "-STOP", "{signal} {pid}");
    };
    let end = Instant::now() + Duration::from_secs(120);
    let counter = loop {
        assert!(Instant::now() < end, "no key was seen while it counts");
        std::thread::sleep(Duration::from_millis(2));
        let Some(counter) = counter_of(child.id()) else {
            assert_eq!(child.try_wait().unwrap(), None, "it is over");
            continue;
        };
        if store.objects(serial) >= 5 {
            signal("-STOP", &counter);
            std::thread::sleep(Duration::from_millis(20));
            if store.objects(serial) >= 5 {
                break counter;
            }
            signal("-CONT", &counter);
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    signal("-KILL", &counter);

    let note = path.join("hil-report/left-behind.json");
    assert!(fs::read_to_string(&note).unwrap().contains(serial));
    let holds_the_pin = Command::new("grep")
        .args(["-rlE", "tr0mb0ne|74 72 30 6D 62 30 6E 65"])
        .args([&temporary, &path.join("hil-report")])
        .output()
        .unwrap();
    let found = String::from_utf8_lossy(&holds_the_pin.stdout);
    assert_eq!(found, "");

    let mut run = hil(path, &["--attached", "--no-measure", "--check"]);
    let output = store.run(run.arg("a_token_is_found_by_the_name_that_it_gives"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!note.exists());
    assert_eq!(store.objects(serial), 3);
    // The key of others is as it was; the token counts its changes.
    let objects = |name: &str| name.ends_with(".object") && !name.ends_with("token.object");
    for file in before.iter().filter(|(name, _)| objects(name)) {
        assert!(store.files(serial).contains(file), "{}", file.0);
    }
}

/// Runs the bench with a pipe as its configuration, and meanwhile opens its memory as a process
/// of the same user, which started it.
#[cfg(target_os = "linux")]
const LOOK: &str = "mkfifo pipe; \"$0\" --config pipe --only nobody 2> /dev/null & bench=$!
    exec 3> pipe
    if (: < /proc/$bench/mem) 2> /dev/null; then echo open; else echo closed; fi
    grep 'Max core' /proc/$bench/limits
    exec 3>&-; wait $bench; rm pipe";

#[cfg(target_os = "linux")]
#[test]
fn other_processes_of_the_user_do_not_see_the_memory_of_the_bench() {
    let looked = |value: &str| {
        let folder = tempfile::tempdir().unwrap();
        let done = claviger_tests::as_user("sh")
            .args(["-c", LOOK, env!("CARGO_BIN_EXE_claviger-hil")])
            .current_dir(folder.path())
            .env("CLAVIGER_DEBUG_DUMPABLE", value)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    let shown = looked("");
    // Whoever has root's rights sees it anyhow.
    if claviger_tests::is_powerless() {
        assert!(shown.starts_with("closed\n"), "{shown}");
        assert!(looked("1").starts_with("open\n"));
    }
    let limit: Vec<_> = shown.split_whitespace().collect();
    assert_eq!(limit[5..7], ["0", "0"], "{shown}");
}
