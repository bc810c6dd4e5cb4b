//! Programs that run as an ordinary user, whoever runs the tests.

use std::ffi::OsStr;
use std::process::Command;

use rustix::process::geteuid;

/// The number of the user that root becomes.
const USER: u32 = 1000;

/// A command that is not root: for root, p11-kit and Claviger read no configuration of a user,
/// which is how tests keep the modules of this machine out.
///
/// Root's files stay its own, since it is a namespace in which the number differs.
///
/// # Panics
/// Later, for root where namespaces are forbidden: `unshare` says so.
pub fn as_user(program: impl AsRef<OsStr>) -> Command {
    match geteuid().is_root() {
        false => Command::new(program),
        true => mapped(USER, program),
    }
}

/// A command that is root, as far as it can see.
pub fn as_root(program: impl AsRef<OsStr>) -> Command {
    match geteuid().is_root() {
        true => Command::new(program),
        false => mapped(0, program),
    }
}

fn mapped(user: u32, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command
        .arg("--user")
        .arg(format!("--map-user={user}"))
        .arg("--")
        .arg(program);
    command
}
