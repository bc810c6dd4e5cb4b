//! Running commands: shown before they run, checked after.

use std::borrow::Cow;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::screen::{self, Style};
use crate::{Failure, Result};

/// The workspace's folder.
pub(crate) fn workspace() -> PathBuf {
    // Cargo says where the package is now; the place it was built at is the second best.
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or(package.clone(), Path::to_path_buf)
}

/// The target folder: the one that this program was built in, as the tests are.
pub(crate) fn target() -> Result<PathBuf> {
    let program = env::current_exe().unwrap_or_default();
    let folder = { program.ancestors() }.find(|folder| folder.join("CACHEDIR.TAG").exists());
    folder
        .map(Path::to_path_buf)
        .ok_or_else(|| Failure::new("xtask does not run from a target folder"))
}

/// The cargo that runs us, in the workspace, with our own package's variables removed.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Shows the command on standard error and runs it to its end.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    show(command);
    let shown = display(command);
    let status = command
        .status()
        .map_err(|error| could_not_start(command, &error))?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::new(format!("`{shown}` failed ({status})")))
    }
}

/// Shows the command on standard error.
pub(crate) fn show(command: &Command) {
    screen::note(Style::Command, format_args!("$ {}", display(command)));
}

/// Whether the command runs and succeeds; what it prints is thrown away.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

pub(crate) fn could_not_start(command: &Command, error: &io::Error) -> Failure {
    let program = command.get_program().to_string_lossy();
    Failure::new(format!("{program} could not be started: {error}"))
}

/// Where a program is on the search path. Folders that an administrator has and a
/// user's path often lacks (`/usr/sbin`) count as well.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The command as one would type it: its name, without variables and folders.
pub(crate) fn display(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    quote_all(std::iter::once(name).chain(command.get_args()))
}

/// Words as a shell wants them.
pub(crate) fn quote_all<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> String {
    let mut line = OsString::new();
    for word in words {
        if !line.is_empty() {
            line.push(" ");
        }
        line.push(quote(&word.to_string_lossy()).as_ref());
    }
    line.to_string_lossy().into_owned()
}

fn quote(word: &str) -> Cow<'_, str> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_=./,:@+%".contains(c);
    if !word.is_empty() && word.chars().all(harmless) {
        Cow::Borrowed(word)
    } else {
        Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("/some/where/claviger");
        command.args([
            "generate",
            "alice",
            "--backend",
            "pkcs11:token=a?pin=b&c",
            "it's",
            "",
        ]);
        assert_eq!(
            display(&command),
            r"claviger generate alice --backend 'pkcs11:token=a?pin=b&c' 'it'\''s' ''"
        );
    }

    #[test]
    fn the_workspace_is_the_folder_that_holds_the_lock_file() {
        assert!(workspace().join("Cargo.lock").is_file());
    }

    #[test]
    fn a_program_that_nobody_has_is_not_found() {
        assert!(find_program("sh").is_some());
        assert!(find_program("claviger-no-such-program").is_none());
    }
}
