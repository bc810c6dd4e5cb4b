//! Whether a crate that is built in has a known weakness, or nobody who looks after it: what
//! `cargo deny` finds in RustSec's advisory database.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::{Failure, Result, process};

/// RustSec's advisory database.
const DATABASE: &str = "https://github.com/RustSec/advisory-db";

/// What the command line says of advisories.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// They are not looked at.
    No,
    /// They are looked at, wherever they can be had.
    Anywhere,
    /// They are in this clone of the database.
    In(PathBuf),
}

/// Parses what follows `lint`: nothing, or `--advisories [DB]`.
pub(crate) fn parse(args: &[OsString]) -> Result<Wanted> {
    let unexpected = |arg: &OsString| {
        let arg = arg.to_string_lossy();
        Failure::usage(format!("{arg:?} was not expected here"))
    };
    match args {
        [] => Ok(Wanted::No),
        [option] if option == "--advisories" => Ok(Wanted::Anywhere),
        [option, database] if option == "--advisories" => Ok(Wanted::In(database.into())),
        [option, _, more, ..] if option == "--advisories" => Err(unexpected(more)),
        [other, ..] => Err(unexpected(other)),
    }
}

/// Where the database is.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// `cargo deny` fetches it.
    Network,
    /// In the folder in which `cargo deny` left it the last time.
    Kept,
    /// In a clone that was named.
    Clone(PathBuf),
}

/// The check, or why it is to be skipped.
///
/// # Errors
/// The database that was named is none, or what `cargo deny` is to read cannot be written.
pub(crate) fn check(
    wanted: &Wanted,
    has_deny: bool,
) -> Result<std::result::Result<Command, String>> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let source = match choose(wanted, has_deny, is_reachable, home.as_deref())? {
        Ok(source) => source,
        Err(why) => return Ok(Err(why)),
    };
    let mut deny = process::cargo();
    deny.arg("deny");
    match source {
        Source::Network => {}
        Source::Kept => drop(deny.arg("--offline")),
        Source::Clone(database) => drop(deny.arg("--config").arg(configured(&database)?)),
    }
    deny.args(["check", "--hide-inclusion-graph", "advisories"]);
    Ok(Ok(deny))
}

/// Where to take the database from; else why there is none.
fn choose(
    wanted: &Wanted,
    has_deny: bool,
    is_reachable: impl FnOnce() -> bool,
    cargo_home: Option<&Path>,
) -> Result<std::result::Result<Source, String>> {
    if let Wanted::In(database) = wanted
        && !is_clone(database)
    {
        let shown = database.display();
        return Err(
            Failure::new(format!("{shown} is no clone of the advisory database"))
                .hint(format!("make one: git clone {DATABASE}")),
        );
    }
    if !has_deny {
        return Ok(Err(
            "cargo-deny is not installed (cargo install --locked cargo-deny)".into(),
        ));
    }
    let kept = cargo_home.map(|home| home.join("advisory-dbs"));
    Ok(match wanted {
        Wanted::In(database) => Ok(Source::Clone(database.clone())),
        _ if is_reachable() => Ok(Source::Network),
        _ if kept.is_some_and(|folder| has_database(&folder)) => Ok(Source::Kept),
        _ => Err(format!(
            "the advisory database is not here, and {DATABASE} cannot be reached \
             (name a clone of it: cargo xtask lint --advisories DB)"
        )),
    })
}

/// Whether it is a git repository, with a work tree or without, in which there are advisories.
fn is_clone(folder: &Path) -> bool {
    let mut git = Command::new("git");
    git.arg("-C").arg(folder);
    process::succeeds(git.args(["rev-parse", "--verify", "--quiet", "HEAD:crates"]))
}

fn is_reachable() -> bool {
    let mut git = Command::new("git");
    // A server that says nothing is given up.
    git.args(["-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=20"]);
    git.args(["ls-remote", "--exit-code", DATABASE, "HEAD"]);
    process::succeeds(git.env("GIT_TERMINAL_PROMPT", "0"))
}

fn has_database(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    { entries }.any(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("advisory-db")
    })
}

/// Writes our `deny.toml` with another database in it, and says where that is.
fn configured(database: &Path) -> Result<PathBuf> {
    let failed = |path: &Path, e: std::io::Error| Failure::new(format!("{}: {e}", path.display()));
    let ours = process::workspace().join("deny.toml");
    let folder = process::workspace().join("target/advisories");
    let database = database.canonicalize().map_err(|e| failed(database, e))?;
    let text = fs::read_to_string(&ours).map_err(|e| failed(&ours, e))?;
    let text = with_database(&text, &folder, &database)
        .ok_or_else(|| Failure::new("deny.toml has no section [advisories]"))?;
    fs::create_dir_all(&folder).map_err(|e| failed(&folder, e))?;
    let path = folder.join("deny.toml");
    fs::write(&path, text).map_err(|e| failed(&path, e))?;
    Ok(path)
}

/// The configuration with `database` in it, of which `cargo deny` makes a copy in `folder`.
fn with_database(config: &str, folder: &Path, database: &Path) -> Option<String> {
    const SECTION: &str = "[advisories]\n";
    let (before, after) = config.split_once(SECTION)?;
    let folder = folder.to_str()?.escape_default();
    let database = database.to_str()?.escape_default();
    Some(format!(
        "{before}{SECTION}db-path = \"{folder}\"\ndb-urls = [\"file://{database}\"]\n{after}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn lint_takes_advisories_with_and_without_a_database_and_nothing_else() {
        assert_eq!(parse(&[]).unwrap(), Wanted::No);
        let wanted = parse(&words(&["--advisories"])).unwrap();
        assert_eq!(wanted, Wanted::Anywhere);
        let wanted = parse(&words(&["--advisories", "db"])).unwrap();
        assert_eq!(wanted, Wanted::In("db".into()));
        for bad in [&["--fast"][..], &["--advisories", "db", "more"]] {
            let failure = parse(&words(bad)).unwrap_err();
            assert!(failure.to_string().contains(bad[bad.len() - 1]));
        }
    }

    #[test]
    fn a_database_that_is_nowhere_is_skipped_with_the_reason() {
        let empty = Scratch::new("advisories").unwrap();
        let home = Some(empty.path());
        let chosen = |has_deny, reaches: bool| {
            choose(&Wanted::Anywhere, has_deny, || reaches, home).unwrap()
        };
        assert!(chosen(false, true).unwrap_err().contains("cargo install"));
        assert!(chosen(true, false).unwrap_err().contains("--advisories DB"));
        assert_eq!(chosen(true, true), Ok(Source::Network));
        fs::create_dir_all(empty.path().join("advisory-dbs/advisory-db-1")).unwrap();
        assert_eq!(chosen(true, false), Ok(Source::Kept));
    }

    #[test]
    fn a_database_that_is_named_has_to_be_one() {
        let folder = Scratch::new("advisories").unwrap();
        let wanted = Wanted::In(folder.path().into());
        let unreachable = || unreachable!("it was named");
        let failure = choose(&wanted, true, unreachable, None).unwrap_err();
        assert!(failure.to_string().contains("git clone"), "{failure}");

        fs::create_dir(folder.path().join("crates")).unwrap();
        folder.write("crates/one", "").unwrap();
        for args in [
            &["init", "--quiet"][..],
            &["add", "."],
            &[
                "-c",
                "user.name=x",
                "-c",
                "user.email=x@localhost",
                "commit",
                "--quiet",
                "-m",
                "x",
            ],
        ] {
            let mut git = Command::new("git");
            assert!(process::succeeds(
                git.arg("-C").arg(folder.path()).args(args)
            ));
        }
        let chosen = choose(&wanted, true, unreachable, None).unwrap();
        assert_eq!(chosen, Ok(Source::Clone(folder.path().into())));
    }

    #[test]
    fn our_configuration_is_kept_but_for_the_database() {
        let ours = fs::read_to_string(process::workspace().join("deny.toml")).unwrap();
        let text = with_database(&ours, Path::new("/t"), Path::new("/d")).unwrap();
        assert!(text.contains("[advisories]\ndb-path = \"/t\"\ndb-urls = [\"file:///d\"]\n"));
        let ours: Vec<&str> = ours.lines().collect();
        let kept: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("db-"))
            .collect();
        assert_eq!(kept, ours);
    }
}
