//! What builds of the command cost and weigh: processor time, sizes, and how much of a binary is
//! of which crate.
//!
//! Each build starts from an empty target folder, which goes away again. The processor time is
//! that of cargo and of all that it starts, as the kernel counts it, so other work on the machine
//! changes it little.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::against::Other;
use crate::process::{self, could_not_start};
use crate::{Failure, Result, screen};

/// How many crates the table shows.
const SHOWN: usize = 25;

/// What of the command is built.
#[derive(Clone, Copy)]
enum Extent {
    /// With every driver.
    Full,
    /// With the driver for PKCS#11 alone, which links no C library of the system.
    Pkcs11,
}

/// Measures the builds of this tree and, where one is given, the full one of another revision.
pub(crate) fn run(other: Option<&Other>) -> Result<()> {
    let other = other.map(|other| {
        let mut cargo = other.cargo();
        debug_build(&mut cargo, "other", Extent::Full)
    });
    let other = other.transpose()?;
    let small = debug_build(&mut process::cargo(), "pkcs11", Extent::Pkcs11)?;
    let full = debug_build(&mut process::cargo(), "full", Extent::Full)?;
    let binaries = [Extent::Full, Extent::Pkcs11].map(release_build);
    let [full_binary, small_binary] = binaries;
    let (full_binary, small_binary) = (full_binary?, small_binary?);

    let mut table = format!(
        "{:<26} {:>9}  {:<8} what it is\n",
        "figure", "value", "wanted"
    );
    let mut row = |name: &str, value: f64, wanted: &str, what: &str| {
        let _ = writeln!(table, "{name:<26} {value:>9.3}  {wanted:<8} {what}");
    };
    let what = "a clean debug build, in seconds of processor time:";
    row(
        "build_full_cpu_s",
        full,
        "",
        &format!("{what} every driver"),
    );
    row(
        "build_pkcs11_cpu_s",
        small,
        "",
        &format!("{what} PKCS#11 alone"),
    );
    if let Some(other) = other {
        row(
            "build_other_cpu_s",
            other,
            "",
            &format!("{what} the other revision"),
        );
        row(
            "build_full_against",
            full / other,
            "≤ 1.00",
            "every driver / the other revision",
        );
        row(
            "build_pkcs11_against",
            small / other,
            "≤ 0.80",
            "PKCS#11 alone / the other revision",
        );
    }
    let mebibytes = |size: u64| size as f64 / f64::from(1 << 20);
    let (full, small) = (mebibytes(full_binary.size), mebibytes(small_binary.size));
    let what = "the command, built with --release, in MiB:";
    row("binary_full_mib", full, "", &format!("{what} every driver"));
    row(
        "binary_pkcs11_mib",
        small,
        "",
        &format!("{what} PKCS#11 alone"),
    );
    row(
        "binary_pkcs11_ratio",
        small / full,
        "≤ 0.85",
        "PKCS#11 alone / every driver",
    );
    screen::print(&table);
    screen::print(&weights(&full_binary.crates, &small_binary.crates));
    Ok(())
}

impl Extent {
    fn choose(self, cargo: &mut Command) -> &mut Command {
        cargo.args(["--locked", "--quiet", "--package", "claviger"]);
        match self {
            Extent::Full => cargo,
            Extent::Pkcs11 => cargo.args(["--no-default-features", "--features", "pkcs11"]),
        }
    }
}

/// A target folder of one build.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let folder = process::target()?.join("builds").join(name);
        match fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::new(format!("{}: {e}", folder.display())))
            }
            _ => Ok(Folder(folder)),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Builds the command for debugging, from nothing. Returns the seconds of processor time.
fn debug_build(cargo: &mut Command, name: &str, extent: Extent) -> Result<f64> {
    let folder = Folder::new(name)?;
    // What is downloaded is no part of it.
    let mut fetch = Command::new(cargo.get_program());
    fetch.current_dir(cargo.get_current_dir().unwrap_or(&process::workspace()));
    process::run(fetch.args(["fetch", "--locked", "--quiet"]))?;
    cargo.arg("build").env("CARGO_TARGET_DIR", &folder.0);
    let before = children()?;
    process::run(extent.choose(cargo))?;
    Ok(children()? - before)
}

/// The processor time of the processes that this one has waited for, and of theirs, in seconds.
fn children() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat");
    let stat = stat.map_err(|e| Failure::new(format!("/proc/self/stat: {e}")))?;
    seconds_of_children(&stat).ok_or_else(|| Failure::new("/proc/self/stat is no stat"))
}

/// The fields `cutime` and `cstime` of `proc_pid_stat(5)`, which Linux gives user space in
/// hundredths of a second.
fn seconds_of_children(stat: &str) -> Option<f64> {
    // The name of the program may have anything in it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(13);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / 100.0)
}

/// A binary as it is installed.
struct Binary {
    size: u64,
    /// How many bytes of its symbols are of which crate.
    crates: BTreeMap<String, u64>,
}

fn release_build(extent: Extent) -> Result<Binary> {
    let folder = Folder::new("release")?;
    let mut cargo = process::cargo();
    cargo
        .args(["build", "--release"])
        .env("CARGO_TARGET_DIR", &folder.0);
    process::run(extent.choose(&mut cargo))?;
    let file = folder.0.join("release/claviger");
    let size = fs::metadata(&file).map_err(|e| Failure::new(format!("{}: {e}", file.display())))?;
    Ok(Binary {
        size: size.len(),
        crates: crates_of(&file)?,
    })
}

/// Asks binutils, which come with every linker, for the sizes of symbols.
fn crates_of(binary: &Path) -> Result<BTreeMap<String, u64>> {
    let mut nm = Command::new("nm");
    nm.args(["--print-size", "--defined-only", "--radix=d", "--demangle"]);
    nm.arg(binary).stderr(Stdio::inherit());
    let listed = nm.output().map_err(|e| could_not_start(&nm, &e))?;
    let mut crates = BTreeMap::new();
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        if let Some((size, name)) = symbol(line) {
            *crates.entry(crate_of(name).to_owned()).or_default() += size;
        }
    }
    match crates.is_empty() {
        false => Ok(crates),
        true => Err(Failure::new(format!(
            "nm finds no symbols in {}",
            binary.display()
        ))),
    }
}

/// The size and the name in a line `ADDRESS SIZE TYPE NAME`.
fn symbol(line: &str) -> Option<(u64, &str)> {
    let mut parts = line.splitn(4, ' ').skip(1);
    let size = parts.next()?.parse().ok()?;
    Some((size, parts.nth(1)?))
}

/// The crate whose source a symbol comes from: code that is generic counts as that of the crate
/// which has it, not of the one that uses it. What has no path is C, or data without a name.
fn crate_of(name: &str) -> &str {
    if name.starts_with("anon.") {
        return "(constants)";
    }
    let is_path = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let start = name.trim_start_matches(['<', '&', '*', '(', '[', ' ']);
    let start = { ["mut ", "dyn ", "const "].iter() }
        .find_map(|word| start.strip_prefix(word))
        .unwrap_or(start);
    let end = start.find(|c| !is_path(c)).unwrap_or(start.len());
    let (first, rest) = start.split_at(end);
    // With a version of the mangling it stands behind the name: `serde[9a7b…]::de`.
    let rest = match rest.strip_prefix('[') {
        Some(hash) => hash.split_once(']').map_or("", |(_, rest)| rest),
        None => rest,
    };
    match (rest.starts_with("::"), name.starts_with('<')) {
        (true, _) if !first.is_empty() => first,
        // An implementation for a primitive type: `<u8 as serde::Serialize>::serialize`.
        (_, true) => name
            .split_once(" as ")
            .map_or("core", |(_, of)| crate_of(of)),
        _ => "(C)",
    }
}

fn weights(full: &BTreeMap<String, u64>, small: &BTreeMap<String, u64>) -> String {
    let mut sorted: Vec<(&str, u64)> = full.iter().map(|(name, size)| (&**name, *size)).collect();
    sorted.sort_by_key(|(name, size)| (std::cmp::Reverse(*size), *name));
    let kibibytes = |size: u64| size as f64 / 1024.0;
    let mut table = format!(
        "\n{:<26} {:>9} {:>9}  KiB of symbols\n",
        "crate", "full", "pkcs11"
    );
    let mut row = |name: &str, full: u64, small: u64| {
        let (full, small) = (kibibytes(full), kibibytes(small));
        let _ = writeln!(table, "{name:<26} {full:>9.1} {small:>9.1}");
    };
    let in_small = |name: &str| small.get(name).copied().unwrap_or_default();
    for (name, size) in sorted.iter().take(SHOWN) {
        row(name, *size, in_small(name));
    }
    let rest = sorted.iter().skip(SHOWN);
    let rest = rest.fold((0, 0), |sum, (name, size)| {
        (sum.0 + size, sum.1 + in_small(name))
    });
    row("(all others)", rest.0, rest.1);
    row("(together)", full.values().sum(), small.values().sum());
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_children_is_read_behind_a_name_with_blanks_and_parentheses() {
        let stat = "7 (a b) c) R 1 2 3 4 5 6 7 8 9 10 11 12 345 55 20 0 1 0 9 9 9";
        assert_eq!(seconds_of_children(stat), Some(4.0));
        assert_eq!(seconds_of_children("7 (a"), None);
        let before = children().unwrap();
        let spin = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        assert!(process::succeeds(Command::new("sh").args(["-c", spin])));
        assert!(children().unwrap() > before);
    }

    #[test]
    fn a_symbol_counts_for_the_crate_that_has_its_source() {
        for (name, wanted) in [
            ("claviger_engine::node::Node::sign", "claviger_engine"),
            ("<alloc::vec::Vec<T> as core::clone::Clone>::clone", "alloc"),
            (
                "<&mut serde_json::Serializer<W> as serde::Serializer>::collect",
                "serde_json",
            ),
            ("<u8 as serde::Serialize>::serialize", "serde"),
            ("<[T] as core::fmt::Debug>::fmt", "core"),
            ("<clap_builder[1f2e]::Command>::new", "clap_builder"),
            ("core::ptr::drop_in_place::<x>", "core"),
            ("sqlite3VdbeExec", "(C)"),
            ("anon.01909e20d4756fa5.3137.llvm.123", "(constants)"),
            (
                "claviger_token::login::<impl claviger_token::Card>::end",
                "claviger_token",
            ),
            ("main", "(C)"),
        ] {
            assert_eq!(crate_of(name), wanted, "{name}");
        }
        let line = "0000000000123456 0000000000000042 t core::fmt::write with blanks";
        assert_eq!(symbol(line), Some((42, "core::fmt::write with blanks")));
        assert_eq!(symbol("0000000000123456 T no_size"), None);
    }

    #[test]
    fn the_table_adds_up() {
        let full = [("a".to_owned(), 2048), ("b".to_owned(), 1024)].into();
        let small = [("a".to_owned(), 1024)].into();
        let table = weights(&full, &small);
        let last = table.lines().last().unwrap();
        assert!(last.contains("3.0") && last.contains("1.0"), "{table}");
    }
}
