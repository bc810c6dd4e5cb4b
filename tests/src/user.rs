//! Programs that run as an ordinary user, whoever runs the tests.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::geteuid;

/// The number of the user that root becomes.
const USER: u32 = 1000;

/// A command that is not root: for root, p11-kit and Claviger read no configuration of a user,
/// which is how tests keep the modules of this machine out.
///
/// Root's files stay its own, since it is a namespace in which the number differs. Where
/// namespaces are forbidden root stays root, and [`is_user`] says so.
pub fn as_user(program: impl AsRef<OsStr>) -> Command {
    match geteuid().is_root() && is_user() {
        false => Command::new(program),
        true => mapped(USER, program),
    }
}

/// Whether what [`as_user`] runs is an ordinary user.
pub fn is_user() -> bool {
    static IS_USER: OnceLock<bool> = OnceLock::new();
    let is_mapped = || {
        mapped(USER, "true")
            .output()
            .is_ok_and(|o| o.status.success())
    };
    *IS_USER.get_or_init(|| !geteuid().is_root() || is_mapped())
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
