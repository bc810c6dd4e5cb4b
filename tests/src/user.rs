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
/// namespaces are forbidden, as in many containers, root keeps its number, which [`is_user`]
/// says, and loses what it may do beyond a user.
pub fn as_user(program: impl AsRef<OsStr>) -> Command {
    match way() {
        Way::Itself | Way::Root => Command::new(program),
        Way::Mapped => mapped(USER, program),
        Way::Powerless => powerless(program),
    }
}

/// Whether what [`as_user`] runs has the number of an ordinary user.
pub fn is_user() -> bool {
    matches!(way(), Way::Itself | Way::Mapped)
}

/// Whether what [`as_user`] runs may do no more than an ordinary user.
pub fn is_powerless() -> bool {
    way() != Way::Root
}

/// Whether `test` is to be skipped, since it needs a user's configuration. Says so.
pub fn needs_user(test: &str) -> bool {
    if !is_user() {
        eprintln!("SKIPPED {test}: it is run by root, and user namespaces are forbidden");
    }
    !is_user()
}

/// How a program becomes one of an ordinary user.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The tests are run by one.
    Itself,
    /// In a namespace.
    Mapped,
    /// As root without capabilities.
    Powerless,
    /// Not at all.
    Root,
}

fn way() -> Way {
    static WAY: OnceLock<Way> = OnceLock::new();
    let works = |mut command: Command| command.output().is_ok_and(|o| o.status.success());
    *WAY.get_or_init(|| {
        if !geteuid().is_root() {
            Way::Itself
        } else if works(mapped(USER, "true")) {
            Way::Mapped
        } else if works(powerless("true")) {
            Way::Powerless
        } else {
            Way::Root
        }
    })
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

fn powerless(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-all", "--inh-caps=-all", "--"])
        .arg(program);
    command
}
