//! A software TPM that belongs to one test process, and tokens kept by it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};

use claviger_token::sync::lock;
use claviger_token::{Access, FixedPin};

use crate::unpacked::{library, unpacked};
use crate::{folder, token};

/// What is not installed but unpacked.
const PACKAGES: [&str; 2] = ["libtpm2-pkcs11-1", "tpm2-abrmd"];

/// The TPM and what lets it serve more than three keys at a time, which is what a system has
/// in its kernel. All end with the standard input, that is, with this process, in whatever
/// way.
const SCRIPT: &str = r#"
trap 'kill $started' EXIT
trap 'exit 1' INT TERM HUP
until_there() { for _ in $(seq 500); do "$@" && return; sleep 0.02; done; exit 1; }
swtpm socket --tpm2 --tpmstate dir=. --flags not-need-init,startup-clear \
    --server type=unixio,path=tpm --ctrl type=unixio,path=tpm.ctrl </dev/null >&2 &
started=$!
dbus-daemon --session --nofork --nopidfile --address="unix:path=$PWD/bus" </dev/null >&2 &
started="$started $!"
export DBUS_SESSION_BUS_ADDRESS="unix:path=$PWD/bus"
ask() {
    dbus-send --session --print-reply --dest=org.freedesktop.DBus / "org.freedesktop.DBus.$@"
}
until_there test -S tpm.ctrl
until_there ask GetId >&2
"$ABRMD" --session --allow-root --max-transients=100 \
    --tcti=swtpm:path=tpm </dev/null >&2 &
started="$started $!"
is_served() { ask NameHasOwner string:com.intel.tss2.Tabrmd | grep -q true; }
until_there is_served
echo ready
cat >/dev/null
"#;

/// A token of its own for one test, kept by tpm2-pkcs11 in a software TPM of this process.
///
/// ```no_run
/// let token = claviger_tests::Tpm::new();
/// let backend = token.backend(); // pkcs11:token=…?module-path=…
/// ```
pub struct Tpm {
    label: String,
}

impl Tpm {
    /// The user PIN of every such token.
    pub const PIN: &str = token::PIN;

    /// Why tests that need it are to be skipped, if they are.
    pub fn skipped() -> Option<&'static str> {
        let quick = std::env::var_os("CLAVIGER_TEST_QUICK").is_some_and(|value| value == "1");
        quick.then_some("CLAVIGER_TEST_QUICK is 1, and it takes an emulator")
    }

    /// A new, empty token.
    ///
    /// # Panics
    /// Where swtpm is not installed, or tpm2-pkcs11 cannot be fetched or does not work.
    #[expect(clippy::new_without_default, reason = "it starts something")]
    pub fn new() -> Tpm {
        // Two threads that look for an uninitialised slot find the same one.
        let adding = &Emulator::of_this_process().adding;
        let _guard = lock(adding);
        let label = token::label();
        // Through the driver's instance of the module, which is not to be initialised anew
        // meanwhile.
        claviger_pkcs11::with_module(Tpm::module(), |module| {
            // The last one waits to become a token.
            let slot = *module.get_slots_with_token().unwrap().last().unwrap();
            token::initialise(module, slot, &label);
        })
        .unwrap();
        Tpm { label }
    }

    /// Starts the TPM and points this process to it. A test program that does this before
    /// it starts threads need not wonder who reads the environment meanwhile.
    pub fn prepare() {
        Emulator::of_this_process();
    }

    /// The token's label, which no other token has.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The backend string of the token.
    pub fn backend(&self) -> String {
        Tpm::backend_for(&self.label)
    }

    /// The backend string of a token with `label`, whether it exists or not.
    pub fn backend_for(label: &str) -> String {
        format!(
            "pkcs11:token={label}?module-path={}",
            Tpm::module().display()
        )
    }

    /// Access with the right PIN.
    pub fn access(&self) -> Access {
        Access::with(FixedPin::new(Tpm::PIN))
    }

    /// The PKCS#11 module.
    pub fn module() -> &'static Path {
        &Unpacked::once().module
    }
}

/// The programs in the target folder.
struct Unpacked {
    module: PathBuf,
    abrmd: PathBuf,
}

impl Unpacked {
    fn once() -> &'static Unpacked {
        static UNPACKED: OnceLock<Unpacked> = OnceLock::new();
        UNPACKED.get_or_init(|| {
            let folder = unpacked("tpm2-pkcs11", &PACKAGES);
            Unpacked {
                module: library(&folder, "libtpm2_pkcs11.so.1").unwrap(),
                abrmd: folder.join("usr/sbin/tpm2-abrmd"),
            }
        })
    }
}

/// The TPM of this process, in `tpm-PID` in the target folder.
struct Emulator {
    adding: Mutex<()>,
    /// Its standard input is what keeps it alive.
    _child: Child,
}

impl Emulator {
    fn of_this_process() -> &'static Emulator {
        static EMULATOR: OnceLock<Emulator> = OnceLock::new();
        EMULATOR.get_or_init(|| {
            let Unpacked { abrmd, .. } = Unpacked::once();
            let folder = folder::of_this_process("tpm");
            let child = start(&folder, abrmd);
            let bus = format!("unix:path={}", folder.join("bus").display());
            // SAFETY: setting a variable races with code that reads the environment
            // without the standard library's lock, that is, C code. This runs once, before
            // the process loads tpm2-pkcs11, which is what reads these variables; programs
            // that load other modules too call `prepare` first.
            unsafe {
                std::env::set_var("TPM2_PKCS11_STORE", &folder);
                std::env::set_var("TPM2_PKCS11_TCTI", "tabrmd:bus_type=session");
                std::env::set_var("DBUS_SESSION_BUS_ADDRESS", bus);
            }
            Emulator {
                adding: Mutex::new(()),
                _child: child,
            }
        })
    }
}

fn start(folder: &Path, abrmd: &Path) -> Child {
    let log = folder.join("log");
    let mut child = Command::new("sh")
        .args(["-c", SCRIPT])
        .env("ABRMD", abrmd)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(&log).unwrap())
        // A Ctrl-C is for this process, which may still need the TPM to tidy up.
        .process_group(0)
        .spawn()
        .unwrap();
    let mut said = String::new();
    let output = child.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut said).unwrap();
    assert_eq!(
        said,
        "ready\n",
        "swtpm or tpm2-abrmd does not start; is swtpm installed (`cargo xtask setup`)?\n{}",
        fs::read_to_string(log).unwrap_or_default()
    );
    child
}
