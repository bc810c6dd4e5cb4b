//! The reports of a small run: read by machines, and opened in a real browser.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use claviger_conformance::Theme;
use claviger_hil::HilError;
use claviger_hil::compare::{Verdict, compare};
use claviger_hil::report::readme;
use claviger_hil::results::{Finding, Results};
use claviger_hil::{report, results};
use claviger_virtual_yubikey::{Card, Device, Fault, Firmware, Rule, Status, ins};

use common::{Desk, PIN, failures};

/// A listed card, measured; one that is not listed; and one that says nonsense when it
/// deletes. The last has a name that would like to be more.
fn small_run() -> (Desk, Results) {
    let card = |serial| Card::builder().serial(serial).firmware(Firmware::V5_4_3);
    let good = Device::new(card(1).pin(PIN).build());
    let unlisted = Device::new(card(2).pin(PIN).build());
    let bad = Device::new(card(3).pin(PIN).build());
    let nonsense = Fault::Status(Status(0x6f00));
    bad.faults()
        .add(Rule::new(nonsense).on(ins::AUTHENTICATE).after(20).times(1));
    let mut desk = Desk::with(&[&good, &unlisted, &bad]).only_checks(&[
        "a_token_is_found_by_the_name_that_it_gives",
        "a_refused_pin_is_not_sent_twice",
        "a_key_lives_from_generate_to_delete",
        "a_decryptor_agrees_with_what_its_peer_computes",
    ]);
    desk.measure = true;
    let results = desk.run(
        "[[device]]\nserial = \"1\"\nname = \"good\"\n\
         [[device]]\nserial = \"3\"\nname = '<script>alert(\"&\")</script>'\n",
    );
    report::write(&desk.out(), results.records()).unwrap();
    (desk, results)
}

/// Headless Chromium, without a network and with nothing of the user's.
fn chromium(page: &Path, flags: &[&str]) -> Vec<u8> {
    let home = tempfile::tempdir().unwrap();
    // As `cargo xtask setup` looks for it.
    let is_there = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    let name = ["chromium", "chromium-browser"].into_iter().find(is_there);
    let output = Command::new(name.unwrap_or("chromium"))
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
        ])
        .args(["--no-first-run", "--disable-background-networking"])
        .args([
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
        ])
        .arg("--host-resolver-rules=MAP * ~NOTFOUND")
        .arg(format!("--user-data-dir={}", home.path().display()))
        .args(flags)
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap_or_else(|e| panic!("chromium: {e}; is it installed (`cargo xtask setup`)?"));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// The width and height of a PNG.
fn size(png: &[u8]) -> (u32, u32) {
    assert!(png.starts_with(b"\x89PNG"));
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn a_browser_shows_the_page_and_loads_nothing_for_it() {
    let (desk, results) = small_run();
    let said = failures(&results);
    assert!(said.iter().any(|why| why.contains("6F00")), "{said:?}");
    let page = desk.out().join("report.html");

    let text = std::fs::read_to_string(&page).unwrap();
    for elsewhere in [
        "http:", "https:", "src=", "@import", "url(", "<link", "<script",
    ] {
        assert!(!text.contains(elsewhere), "{elsewhere}");
    }

    let dom = String::from_utf8(chromium(&page, &["--dump-dom"])).unwrap();
    for part in [
        "verdict",
        "failures",
        "matrix",
        "across",
        "figures",
        "keys",
        "endurance",
        "left-out",
    ] {
        assert!(dom.contains(&format!("id=\"{part}\"")), "{part}");
    }
    for capability in Theme::ALL {
        assert!(dom.contains(&format!(">{capability}</th>")), "{capability}");
    }
    assert!(dom.contains("not listed: only read"));
    assert!(dom.contains("&lt;script&gt;"));
    // A browser that had to mend the page would have moved something: every element that
    // was opened is there, as often.
    for element in ["<svg", "<tr", "<td", "<rect", "<section", "<figure"] {
        assert_eq!(
            dom.matches(element).count(),
            text.matches(element).count(),
            "{element}"
        );
    }
    assert!(dom.matches("<svg").count() > 30);

    let shot = |name: &str, flags: &[&str]| -> Vec<u8> {
        let file: PathBuf = desk.out().join(name);
        let option = format!("--screenshot={}", file.display());
        chromium(&page, &[flags, &[&option]].concat());
        std::fs::read(file).unwrap()
    };
    let wide = shot("wide.png", &["--window-size=1200,1600"]);
    assert_eq!(size(&wide), (1200, 1600));
    // More than an empty page.
    assert!(wide.len() > 40_000, "{}", wide.len());
    let dark = shot(
        "dark.png",
        &[
            "--window-size=1200,1600",
            "--blink-settings=preferredColorScheme=0",
        ],
    );
    assert_ne!(wide, dark);

    let pdf = desk.out().join("page.pdf");
    chromium(
        &page,
        &[
            "--no-pdf-header-footer",
            &format!("--print-to-pdf={}", pdf.display()),
        ],
    );
    let pdf = std::fs::read(pdf).unwrap();
    assert!(pdf.starts_with(b"%PDF") && pdf.len() > 20_000);
}

#[test]
fn machines_read_the_same() {
    let (desk, results) = small_run();
    let records = results::read(&desk.out().join("results.jsonl")).unwrap();
    assert!(records == results.records());
    let has = |fits: fn(&Finding) -> bool| records.iter().any(|record| fits(&record.finding));
    assert!(has(|f| matches!(f, Finding::Throughput { callers: 8, .. })));
    assert!(has(|f| matches!(f, Finding::Latency { keys: 10, .. })));
    assert!(has(|f| matches!(f, Finding::Latency { keys: 20, .. })));
    assert!(has(|f| matches!(
        f,
        Finding::Endurance {
            operations: 1..,
            ..
        }
    )));
    // As docs/figures.md says, and the standard has it.
    assert!(has(|f| matches!(f, Finding::Calls { of, calls, .. }
        if of.to_string() == "sign p256" && *calls == 1.0)));

    let junit = std::fs::read_to_string(desk.out().join("junit.xml")).unwrap();
    let failed = failures(&results).len();
    assert_eq!(junit.matches("<testsuite ").count(), 3);
    assert_eq!(junit.matches("<failure ").count(), failed);
    assert!(junit.contains(&format!("failures=\"{failed}\"")));
    assert!(junit.contains("&lt;script&gt;") && !junit.contains("<script>"));

    let same = compare(&records, &records);
    assert!(same.changes.is_empty(), "{same}");
    // What failed passes, and a device has gone.
    let mut mended = records.clone();
    mended.retain(|record| record.device() != "piv-2");
    for record in &mut mended {
        if let Finding::Check { outcome, .. } = &mut record.finding {
            *outcome = claviger_hil::results::Outcome::Passed;
        }
    }
    let comparison = compare(&records, &mended);
    assert!(!comparison.is_worse());
    assert!(
        comparison
            .changes
            .iter()
            .any(|change| change.verdict == Verdict::Better)
    );
    assert!(comparison.to_string().contains("not in the second run"));
    assert!(compare(&mended, &records).is_worse());
}

/// The rows of the quick devices; the others are looked at by
/// `cargo xtask hil --virtual --no-measure --check-readme`.
#[test]
fn the_table_in_the_documents_is_as_the_suite_says() {
    let folder = tempfile::tempdir().unwrap();
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/tokens.md");
    let checked = |readme: &Path| {
        Command::new(env!("CARGO_BIN_EXE_claviger-hil"))
            .args(["--virtual", "--no-measure", "--check-readme"])
            .args(["--only", "yubikey-4.3.5,ledger-model", "--readme"])
            .arg(readme)
            .arg("--out")
            .arg(folder.path().join("out"))
            .output()
            .unwrap()
    };
    let output = checked(&readme);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let stale = folder.path().join("tokens.md");
    let text = std::fs::read_to_string(readme).unwrap();
    std::fs::write(
        &stale,
        text.replace("| `ledger-model` | 3 |", "| `ledger-model` | 4 |"),
    )
    .unwrap();
    let output = checked(&stale);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--write-readme"));
}

#[test]
fn a_device_of_the_table_that_does_not_run_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/tokens.md");
    let output = Command::new(env!("CARGO_BIN_EXE_claviger-hil"))
        .args(["--virtual", "--no-measure", "--check-readme"])
        .args(["--only", "kryoptic,ledger-model", "--readme"])
        .arg(&readme)
        .arg("--out")
        .arg(folder.path().join("out"))
        // Kryoptic is left out of quick runs.
        .env("CLAVIGER_TEST_QUICK", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let told = "these devices did not run: kryoptic\n";
    assert!(said.contains(told), "{said}");

    // Those are not missing that another process runs.
    let missing = readme::check(&readme, &[], |name| name == "nss");
    assert!(
        matches!(&missing, Err(HilError::NotRun { missing, .. }) if *missing == ["nss"]),
        "{missing:?}"
    );
    assert!(readme::check(&readme, &[], |_| false).is_ok());
}
