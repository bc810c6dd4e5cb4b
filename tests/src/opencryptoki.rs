//! Soft tokens of opencryptoki that belong to one test process.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, OnceLock};

use claviger_token::sync::lock;
use claviger_token::{Access, FixedPin};
use cryptoki::context::Pkcs11;
use cryptoki::session::UserType;
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use crate::unpacked::place;
use crate::{folder, private, token};

/// What is not installed but unpacked.
const PACKAGES: [&str; 2] = ["opencryptoki", "libopencryptoki0"];

/// So many tokens can be made in one process: the daemon is told all of them when it is
/// started.
const MOST: usize = 32;

/// The folders of the tokens, which are their names in the configuration.
pub(crate) static TOKENS: LazyLock<Vec<String>> =
    LazyLock::new(|| (0..MOST).map(|number| format!("token{number}")).collect());

/// The PINs of a token that was never initialised. Public knowledge.
const FIRST_SO_PIN: &str = "87654321";
/// The longest that it takes.
const SO_PIN: &str = "0ph1cle1";

/// The daemon, another one for each line of the standard input, until that ends, that is,
/// until this process does, in whatever way.
const SCRIPT: &str = r#"
start() {
    pkcsslotd </dev/null >&2 || exit 1
    for _ in $(seq 500); do
        test -S /run/pkcsslotd.socket && test -s /run/pkcsslotd.pid && break
        sleep 0.01
    done
    echo ready
}
end() {
    test -e /run/pkcsslotd.pid || return
    pid=$(cat /run/pkcsslotd.pid)
    # SIGTERM it heeds only when it has no clients.
    kill -KILL $pid
    for _ in $(seq 500); do test -e /proc/$pid/exe || break; sleep 0.01; done
    rm -f /run/pkcsslotd.pid /run/pkcsslotd.socket
}
trap end EXIT
trap 'exit 1' INT TERM HUP
start
while read -r _; do end; start; done
"#;

/// A token of its own for one test, kept by opencryptoki, whose daemon belongs to this
/// process.
///
/// Paths of the daemon and of the module are compiled in, so the process needs a view of
/// the system of its own: its `main` calls [`private::enter`]. All tokens have the same
/// serial.
///
/// ```no_run
/// claviger_tests::private::enter();
/// let token = claviger_tests::OpenCryptoki::new();
/// let backend = token.backend(); // pkcs11:token=…?module-path=…
/// ```
pub struct OpenCryptoki {
    label: String,
    slot: u64,
}

impl OpenCryptoki {
    /// The user PIN of every such token: eight characters are the most that it takes.
    pub const PIN: &str = token::PIN;

    /// Why tests that need it are to be skipped, if they are.
    pub fn skipped() -> Option<&'static str> {
        private::skipped()
    }

    /// A new, empty token.
    ///
    /// # Panics
    /// Where the process has no view of its own, or opencryptoki does not work.
    #[expect(clippy::new_without_default, reason = "it starts something")]
    pub fn new() -> OpenCryptoki {
        let made = &Daemon::of_this_process().made;
        let number = made.fetch_add(1, Ordering::Relaxed);
        assert!(number < MOST, "the process has {MOST} tokens already");
        let (label, slot) = (token::label(), number as u64);
        // Through the driver's instance of the module, which is not to be initialised anew
        // meanwhile.
        claviger_pkcs11::with_module(&OpenCryptoki::module(), |module| {
            let slots = module.get_all_slots().unwrap();
            let found = slots.into_iter().find(|found| found.id() == slot);
            initialise(module, found.unwrap(), &label);
        })
        .unwrap();
        OpenCryptoki { label, slot }
    }

    /// Starts the daemon.
    pub fn prepare() {
        Daemon::of_this_process();
    }

    /// Ends the daemon and starts another one in its place.
    ///
    /// # Panics
    /// If it does not come back.
    pub fn restart_daemon() {
        let daemon = Daemon::of_this_process();
        let mut pipes = lock(&daemon.pipes);
        pipes.0.write_all(b"\n").unwrap();
        wait_until_ready(&mut pipes.1, &daemon.folder);
    }

    /// The token's label, which no other token has.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The number of the token's slot.
    pub fn slot(&self) -> u64 {
        self.slot
    }

    /// The backend string of the token.
    pub fn backend(&self) -> String {
        OpenCryptoki::backend_for(&self.label)
    }

    /// The backend string of a token with `label`, whether it exists or not.
    pub fn backend_for(label: &str) -> String {
        let module = OpenCryptoki::module();
        format!("pkcs11:token={label}?module-path={}", module.display())
    }

    /// Access with the right PIN.
    pub fn access(&self) -> Access {
        Access::with(FixedPin::new(OpenCryptoki::PIN))
    }

    /// The PKCS#11 module. It is there where the process has a view of its own.
    pub fn module() -> PathBuf {
        place("opencryptoki/libopencryptoki.so.0")
    }
}

/// The programs in the target folder.
pub(crate) fn unpacked() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let unpack = || crate::unpacked::unpacked("opencryptoki", &PACKAGES);
    FOLDER.get_or_init(unpack).clone()
}

/// Where the copies of the soft token's library are, one for each token: what a process
/// does to one token happens to all that are in one library, their objects included.
pub(crate) const LIBRARIES: &str = "/run/opencryptoki";

/// `opencryptoki.conf` with a soft token in each slot.
pub(crate) fn configuration() -> String {
    let mut text = String::from("version opencryptoki-3.1\n");
    for (slot, token) in TOKENS.iter().enumerate() {
        writeln!(
            text,
            "slot {slot}\n{{\nstdll = {LIBRARIES}/{token}.so\ntokname = {token}\n}}"
        )
        .unwrap();
    }
    text
}

fn initialise(module: &Pkcs11, slot: Slot, label: &str) {
    let [first, so_pin, pin] =
        [FIRST_SO_PIN, SO_PIN, OpenCryptoki::PIN].map(|pin| AuthPin::new(pin.into()));
    module.init_token(slot, &first, label).unwrap();
    let session = module.open_rw_session(slot).unwrap();
    session.login(UserType::So, Some(&first)).unwrap();
    session.set_pin(&first, &so_pin).unwrap();
    session.init_pin(&pin).unwrap();
    session.logout().unwrap();
}

/// The daemon of this process, with its log in `opencryptoki-PID` in the target folder.
struct Daemon {
    made: AtomicUsize,
    folder: PathBuf,
    /// Its standard input is what keeps it alive.
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    _child: Child,
}

impl Daemon {
    fn of_this_process() -> &'static Daemon {
        static DAEMON: OnceLock<Daemon> = OnceLock::new();
        DAEMON.get_or_init(|| {
            assert!(
                private::is_inside(),
                "this process has no view of the system of its own: `private::enter`"
            );
            Daemon::start(folder::of_this_process("opencryptoki"))
        })
    }

    fn start(folder: PathBuf) -> Daemon {
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.join("log")).unwrap())
            // A Ctrl-C is for this process, which may still need it to tidy up.
            .process_group(0)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        wait_until_ready(&mut output, &folder);
        Daemon {
            made: AtomicUsize::new(0),
            folder,
            pipes: Mutex::new((input, output)),
            _child: child,
        }
    }
}

fn wait_until_ready(output: &mut BufReader<ChildStdout>, folder: &Path) {
    let mut said = String::new();
    output.read_line(&mut said).unwrap();
    let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    assert_eq!(said, "ready\n", "pkcsslotd does not start\n{log}");
}
