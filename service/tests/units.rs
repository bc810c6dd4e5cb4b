//! The units for systemd, as systemd's own tools judge them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// The units of one folder, which start a program that is there.
fn units(folder: &str) -> (TempDir, Vec<String>) {
    let units = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("systemd")
        .join(folder);
    let copies = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for unit in fs::read_dir(units).unwrap() {
        let unit = unit.unwrap();
        let text = fs::read_to_string(unit.path()).unwrap();
        let name = unit.file_name().into_string().unwrap();
        fs::write(
            copies.path().join(&name),
            text.replace("/usr/bin/claviger", "/bin/true"),
        )
        .unwrap();
        // What is a template has an instance for each user.
        let instance = name.replace('@', "@1000");
        names.push(copies.path().join(instance).display().to_string());
    }
    names.sort();
    (copies, names)
}

fn analyze(arguments: &[&str]) -> (bool, String) {
    let runtime = tempfile::tempdir().unwrap();
    let done = Command::new("systemd-analyze")
        .args(arguments)
        .env("SYSTEMD_COLORS", "0")
        .env("XDG_RUNTIME_DIR", runtime.path())
        .output()
        .unwrap_or_else(|error| panic!("systemd-analyze: {error}: run `cargo xtask setup`"));
    let said = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    for (folder, user, count) in [("system", "--system", 5), ("user", "--user", 3)] {
        let (_copies, names) = units(folder);
        assert_eq!(names.len(), count, "{names:?}");
        let mut arguments = vec!["verify", user, "--man=no"];
        arguments.extend(names.iter().map(String::as_str));
        let (is_fine, said) = analyze(&arguments);
        assert!(is_fine, "{folder}: {said}");
        let ours: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("claviger"))
            .collect();
        assert!(ours.is_empty(), "{folder}: {said}");
    }
    // It would say so.
    let (copies, _) = units("system");
    let unit = copies.path().join("claviger.service");
    let text = fs::read_to_string(&unit).unwrap();
    fs::write(&unit, text.replace("Type=notify", "Type=notice")).unwrap();
    let unit = unit.display().to_string();
    let (_, said) = analyze(&["verify", "--man=no", &unit]);
    assert!(said.contains("notice"), "{said}");
}

#[test]
fn the_daemon_of_the_system_is_exposed_by_two_of_ten_at_most() {
    let (_copies, names) = units("system");
    let unit = names
        .iter()
        .find(|name| name.ends_with("/claviger.service"));
    let unit = unit.unwrap();
    let judge = |threshold: &str| {
        let threshold = format!("--threshold={threshold}");
        analyze(&["security", "--offline=yes", "--no-pager", &threshold, unit])
    };
    let (is_safe, said) = judge("20");
    assert!(is_safe, "{said}");
    assert!(
        said.contains("Overall exposure level for claviger.service"),
        "{said}"
    );
    // The threshold counts.
    assert!(!judge("1").0);
}

#[test]
fn no_unit_hides_from_the_daemon_who_calls() {
    // In a user namespace SO_PEERCRED shows the user nobody for all.
    for folder in ["system", "user"] {
        let (copies, _) = units(folder);
        for unit in fs::read_dir(copies.path()).unwrap() {
            let text = fs::read_to_string(unit.unwrap().path()).unwrap();
            let sets = text.lines().any(|line| line.starts_with("PrivateUsers="));
            assert!(!sets, "{text}");
        }
    }
}
