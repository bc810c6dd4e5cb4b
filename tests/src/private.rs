//! A view of the system that only one test process has: modules, daemons and
//! configuration at the paths that are compiled into them, though nothing is installed.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::folder;
use crate::opencryptoki;
use crate::p11kit;

/// Names, for a process that has such a view and for its children, the folder of it.
const INSIDE: &str = "CLAVIGER_TESTS_PRIVATE";

/// Without and with the rights of root; the first that works is taken.
const WAYS: [&[&str]; 2] = [&[], &["--user", "--map-root-user"]];

/// What is tried to find out whether it works.
const PROBE: &str = "
mount -t tmpfs tmpfs /run && mkdir /run/lower &&
mount -t overlay -o lowerdir=/run/lower:/usr overlay /usr";

/// Puts the unpacked packages over `/usr`, and empty folders in place of those that
/// daemons and modules write to. Then the program follows.
const SCRIPT: &str = r#"
set -e
etc=$1/etc; shift
over() { mount -t overlay -o "lowerdir=$1" overlay "$2"; }
over "$OPENCRYPTOKI/usr:$P11_KIT/usr:/usr" /usr
over "$etc:/etc" /etc
over "$OPENCRYPTOKI/var/lib:/var/lib" /var/lib
for folder in /run /dev/shm /var/lib/opencryptoki /usr/share/p11-kit/modules; do
    mount -t tmpfs tmpfs $folder
done
mkdir -p /run/lock/opencryptoki /run/pcscd "$LIBRARIES"
for token in $TOKENS; do
    cp /usr/lib/*/opencryptoki/stdll/libpkcs11_sw.so "$LIBRARIES/$token.so"
    mkdir -p /var/lib/opencryptoki/$token/TOK_OBJ /run/lock/opencryptoki/$token
done
chmod -R ug=rwX,o= /var/lib/opencryptoki /run/lock/opencryptoki
exec "$@"
"#;

/// Why tests that need it are to be skipped, if they are.
pub fn skipped() -> Option<&'static str> {
    let quick = std::env::var_os("CLAVIGER_TEST_QUICK").is_some_and(|value| value == "1");
    match (quick, is_inside() || way().is_some()) {
        (true, _) => Some("CLAVIGER_TEST_QUICK is 1, and it takes packages from the network"),
        (false, false) => Some("namespaces are forbidden here (unshare, mount -t overlay)"),
        (false, true) => None,
    }
}

/// Whether this process has such a view.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Starts this program anew with such a view, in the same process and with the same
/// arguments. It returns where that has been done, or where it is [`skipped`]. It has to
/// come before everything else in `main`: what was started is started again.
///
/// # Panics
/// Where it is possible, and fails.
pub fn enter() {
    if is_inside() || skipped().is_some() {
        return;
    }
    let program = std::env::current_exe().unwrap();
    let mut command = command(&program);
    command.args(std::env::args_os().skip(1));
    let error = command.exec();
    panic!("{command:?}: {error}");
}

/// A command that runs `program` with such a view.
///
/// # Panics
/// Where it is [`skipped`], or where packages cannot be had.
pub fn command(program: &Path) -> Command {
    let Some(way) = way() else {
        panic!("namespaces are forbidden here");
    };
    let folder = folder::of_this_process("private");
    configure(&folder);
    let mut command = Command::new("unshare");
    command
        .args(way)
        .args(["--mount", "--ipc", "--propagation", "private"])
        .args(["sh", "-c", SCRIPT, "sh"])
        .args([folder.as_path(), program])
        .env("OPENCRYPTOKI", opencryptoki::unpacked())
        .env("P11_KIT", p11kit::unpacked())
        .env("LIBRARIES", opencryptoki::LIBRARIES)
        .env("TOKENS", opencryptoki::TOKENS.join(" "))
        .env(INSIDE, &folder);
    command
}

fn way() -> Option<&'static [&'static str]> {
    static WAY: OnceLock<Option<&'static [&'static str]>> = OnceLock::new();
    *WAY.get_or_init(|| WAYS.into_iter().find(|way| works(way)))
}

fn works(way: &[&str]) -> bool {
    let mut probe = Command::new("unshare");
    probe
        .args(way)
        .args(["--mount", "--ipc", "--propagation", "private"])
        .args(["sh", "-c", PROBE]);
    probe.output().is_ok_and(|output| output.status.success())
}

/// What is put over `/etc`: a group of opencryptoki's, its tokens, and no configuration of
/// p11-kit.
fn configure(folder: &Path) {
    let etc: PathBuf = folder.join("etc");
    for sub in ["opencryptoki", "pkcs11/modules"] {
        fs::create_dir_all(etc.join(sub)).unwrap();
    }
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let others = groups.lines().filter(|line| !line.starts_with("pkcs11:"));
    let others: String = others.map(|line| format!("{line}\n")).collect();
    // Nobody but root is inside, and root is in it.
    fs::write(etc.join("group"), others + "pkcs11:x:0:root\n").unwrap();
    fs::write(etc.join("pkcs11/pkcs11.conf"), "user-config: none\n").unwrap();
    let slots = opencryptoki::configuration();
    fs::write(etc.join("opencryptoki/opencryptoki.conf"), slots).unwrap();
}
