//! The command as it is run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::io::Write as _;
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

/// SoftHSM2, treated as somebody's: in a store of its own, with what was there before.
#[test]
fn a_listed_hsm_is_benched_and_one_with_the_same_label_is_only_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::create_dir(path.join("tokens")).unwrap();
    let tokens = path.join("tokens");
    let conf = format!(
        "directories.tokendir = {}\nlog.level = ERROR\n",
        tokens.display()
    );
    fs::write(path.join("softhsm2.conf"), conf).unwrap();
    let with_store = |command: &mut Command| {
        command
            .env("SOFTHSM2_CONF", path.join("softhsm2.conf"))
            .output()
            .unwrap()
    };
    for _ in 0..2 {
        let made = with_store(Command::new("softhsm2-util").args([
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
    let module = claviger_tests::SoftHsm::module();
    let shown = with_store(Command::new("softhsm2-util").arg("--show-slots"));
    let shown = String::from_utf8(shown.stdout).unwrap();
    let serials: Vec<&str> = shown
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Serial number:"))
        .map(str::trim)
        .filter(|serial| !serial.is_empty())
        .collect();
    let [listed, unlisted] = serials[..] else {
        panic!("{shown}");
    };
    // A key that was there before, on each.
    for index in ["0", "1"] {
        let made = with_store(
            Command::new("pkcs11-tool")
                .args([
                    "--module",
                    module,
                    "--slot-index",
                    index,
                    "--login",
                    "--pin",
                    "tr0mb0ne",
                ])
                .args(["--keypairgen", "--key-type", "EC:prime256v1", "--id", "01"])
                .arg("--usage-sign"),
        );
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
    }
    let files = |folder: &Path| -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.display().to_string(), fs::read(&path).unwrap()))
            .collect();
        files.sort();
        files
    };
    // SoftHSM names the folder of a token after the end of its serial.
    let home = |serial: &str| {
        fs::read_dir(&tokens)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| {
                path.display()
                    .to_string()
                    .replace('-', "")
                    .ends_with(serial)
            })
            .unwrap()
    };
    let before = files(&home(unlisted));

    let mut pin = fs::File::create(path.join("pin")).unwrap();
    writeln!(pin, "tr0mb0ne").unwrap();
    let config = format!(
        "modules = [\"{module}\"]\n[[device]]\nserial = \"{listed}\"\nname = \"hsm\"\n\
         pin = \"file:{}\"\nmax-keys = 12\n",
        path.join("pin").display()
    );
    fs::write(path.join("hil.toml"), config).unwrap();
    let mut run = hil(path, &["--attached", "--seconds", "0.05"]);
    run.args(["--record", "--check"]);
    run.arg(
        "a_token_is_found_by_the_name_that_it_gives,a_decryptor_agrees_with_what_its_peer_computes",
    );
    let output = with_store(&mut run);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("its serial is not listed: it was only read"),
        "{said}"
    );
    assert_eq!(files(&home(unlisted)), before);
    // The token itself and the halves of the key, each with its lock.
    assert!(before.len() >= 6, "{}", before.len());

    let results = fs::read_to_string(path.join("hil-report/results.jsonl")).unwrap();
    for words in [
        "\"what_was_there_is_still_there\",\"capability\":\"device\",\"outcome\":\"passed\"",
        "\"nothing_is_left_behind\",\"capability\":\"device\",\"outcome\":\"passed\"",
        "\"unit\":\"pkcs11\"",
        "\"keys\":12",
    ] {
        assert!(results.contains(words), "{words}");
    }

    // What the spy saw, without what it knows.
    let calls = path.join("hil-report/transcripts/hsm/pkcs11-calls.txt");
    let calls = fs::read_to_string(calls).unwrap();
    assert!(calls.contains("C_Login -> CKR_OK"), "{calls}");
    assert!(calls.contains("C_SignInit CKM_ECDSA -> CKR_OK"), "{calls}");
    for secret in ["tr0mb0ne", "7472306D62306E65", "7472306d62306e65"] {
        assert!(!calls.contains(secret));
    }

    // Only where its owner says so, room is made on the listed one, and only there.
    let objects = |serial: &str| {
        let files = files(&home(serial)).into_iter();
        files.filter(|(name, _)| name.ends_with(".object")).count()
    };
    let (kept, others) = (objects(listed), objects(unlisted));
    let config = fs::read_to_string(path.join("hil.toml")).unwrap();
    fs::write(path.join("hil.toml"), format!("{config}wipe = true\n")).unwrap();
    let mut run = hil(path, &["--attached", "--no-measure", "--check"]);
    let output = with_store(run.arg("a_token_is_found_by_the_name_that_it_gives"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // The two halves of the key are gone; the token itself is an object as well.
    assert_eq!((kept, objects(listed)), (3, 1));
    assert_eq!(objects(unlisted), others);
    assert_eq!(files(&home(unlisted)), before);
}
