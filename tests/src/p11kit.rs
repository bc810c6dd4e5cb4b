//! SoftHSM2 tokens behind p11-kit: over its client and server, and over its proxy.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use claviger_token::sync::lock;
use claviger_token::{Access, FixedPin};

use crate::softhsm::{self, SoftHsm};
use crate::unpacked::{library, place};
use crate::{folder, private, token};

/// What is not installed but unpacked.
const PACKAGES: [&str; 2] = ["p11-kit", "p11-kit-modules"];

/// Ends the server with the standard input, that is, with this process, in whatever way,
/// and with it those that it has started for its clients.
const SCRIPT: &str = r#"
trap 'kill -KILL 0' EXIT
"$@" </dev/null &
cat >/dev/null
"#;

/// The variable that tells p11-kit-client where the server listens.
const ADDRESS: &str = "P11_KIT_SERVER_ADDRESS";

/// A SoftHSM2 token of its own for one test, reached over `p11-kit-client.so` and a
/// `p11-kit server` of this process.
///
/// ```no_run
/// let token = claviger_tests::P11KitClient::new();
/// let backend = token.backend(); // pkcs11:token=…?module-path=…/p11-kit-client.so
/// ```
pub struct P11KitClient {
    label: String,
}

impl P11KitClient {
    /// The user PIN of every such token.
    pub const PIN: &str = token::PIN;

    /// Why tests that need it are to be skipped, if they are.
    pub fn skipped() -> Option<&'static str> {
        let quick = std::env::var_os("CLAVIGER_TEST_QUICK").is_some_and(|value| value == "1");
        quick.then_some("CLAVIGER_TEST_QUICK is 1, and it takes packages from the network")
    }

    /// A new, empty token.
    ///
    /// # Panics
    /// Where p11-kit or SoftHSM2 do not work.
    #[expect(clippy::new_without_default, reason = "it starts something")]
    pub fn new() -> P11KitClient {
        let server = Server::of_this_process();
        let _guard = lock(&server.adding);
        let label = token::label();
        claviger_pkcs11::with_module(&P11KitClient::module(), |module| {
            softhsm::initialise(module, &label);
        })
        .unwrap();
        P11KitClient { label }
    }

    /// Starts the server and points this process to it. A test program that does this
    /// before it starts threads need not wonder who reads the environment meanwhile.
    pub fn prepare() {
        Server::of_this_process();
    }

    /// Kills the server and everything that serves a client. All tokens are away until
    /// [`P11KitClient::insert`].
    pub fn remove(&self) {
        Server::of_this_process().stop();
    }

    /// Starts a server where [`P11KitClient::remove`] has ended one.
    pub fn insert(&self) {
        Server::of_this_process().start();
    }

    /// The token's label, which no other token has.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The backend string of the token.
    pub fn backend(&self) -> String {
        P11KitClient::backend_for(&self.label)
    }

    /// The backend string of a token with `label`, whether it exists or not.
    pub fn backend_for(label: &str) -> String {
        let module = P11KitClient::module();
        format!("pkcs11:token={label}?module-path={}", module.display())
    }

    /// Access with the right PIN.
    pub fn access(&self) -> Access {
        Access::with(FixedPin::new(P11KitClient::PIN))
    }

    /// Where the server of this process listens, as long as it runs.
    pub fn socket() -> PathBuf {
        Server::of_this_process().socket()
    }

    /// The PKCS#11 module.
    pub fn module() -> PathBuf {
        library(&unpacked(), "pkcs11/p11-kit-client.so").unwrap()
    }

    /// A server of SoftHSM2's tokens at `socket`, to be started with SoftHSM's variable. It prints
    /// a line when it listens, and ends with its standard input.
    pub fn server(socket: &Path) -> Command {
        let private = unpacked().join("usr/libexec/p11-kit");
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "sh"])
            .arg(private.join("p11-kit-server"))
            .args(["--foreground", "--sh", "--name"])
            .arg(socket)
            .args(["--provider", SoftHsm::module(), "pkcs11:"])
            .env("P11_KIT_PRIVATEDIR", private)
            // What is killed is the whole group.
            .process_group(0);
        command
    }

    /// The variable with which the module finds the server at `socket`, and its value.
    pub fn address(socket: &Path) -> (&'static str, String) {
        (ADDRESS, format!("unix:path={}", socket.display()))
    }
}

/// A SoftHSM2 token of its own for one test, reached over `p11-kit-proxy.so`.
///
/// As root, p11-kit reads only the system's configuration, so the process needs a view of
/// the system of its own: its `main` calls [`private::enter`].
///
/// ```no_run
/// claviger_tests::private::enter();
/// let token = claviger_tests::P11KitProxy::new();
/// let backend = token.backend(); // pkcs11:token=…?module-path=…/p11-kit-proxy.so
/// ```
pub struct P11KitProxy {
    label: String,
}

impl P11KitProxy {
    /// The user PIN of every such token.
    pub const PIN: &str = token::PIN;

    /// Why tests that need it are to be skipped, if they are.
    pub fn skipped() -> Option<&'static str> {
        private::skipped()
    }

    /// A new, empty token.
    ///
    /// # Panics
    /// Where the process has no view of its own, or p11-kit or SoftHSM2 do not work.
    #[expect(clippy::new_without_default, reason = "it starts something")]
    pub fn new() -> P11KitProxy {
        static ADDING: Mutex<()> = Mutex::new(());
        let _guard = lock(&ADDING);
        P11KitProxy::prepare();
        let label = token::label();
        claviger_pkcs11::with_module(&P11KitProxy::module(), |module| {
            softhsm::initialise(module, &label);
        })
        .unwrap();
        P11KitProxy { label }
    }

    /// Makes the store, and points this process to it. A test program that does this
    /// before it starts threads need not wonder who reads the environment meanwhile.
    pub fn prepare() {
        static PREPARED: OnceLock<()> = OnceLock::new();
        PREPARED.get_or_init(|| {
            assert!(
                private::is_inside(),
                "this process has no view of the system of its own: `private::enter`"
            );
            SoftHsm::prepare();
            // An instance of its own: what is done to the one that tests load directly
            // is not felt here.
            let copy = Path::new("/run/libsofthsm2-proxied.so");
            fs::copy(SoftHsm::module(), copy).unwrap();
            let configuration = format!("module: {}\n", copy.display());
            fs::write("/usr/share/p11-kit/modules/softhsm2.module", configuration).unwrap();
        });
    }

    /// The token's label, which no other token has.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The backend string of the token.
    pub fn backend(&self) -> String {
        P11KitProxy::backend_for(&self.label)
    }

    /// The backend string of a token with `label`, whether it exists or not.
    pub fn backend_for(label: &str) -> String {
        let module = P11KitProxy::module();
        format!("pkcs11:token={label}?module-path={}", module.display())
    }

    /// Access with the right PIN.
    pub fn access(&self) -> Access {
        Access::with(FixedPin::new(P11KitProxy::PIN))
    }

    /// The PKCS#11 module. It is there where the process has a view of its own.
    pub fn module() -> PathBuf {
        place("p11-kit-proxy.so")
    }
}

/// The programs in the target folder.
pub(crate) fn unpacked() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let unpack = || crate::unpacked::unpacked("p11-kit", &PACKAGES);
    FOLDER.get_or_init(unpack).clone()
}

/// The server of this process, in `p11-kit-PID` in the target folder, with a store of
/// SoftHSM2 of its own.
struct Server {
    adding: Mutex<()>,
    folder: PathBuf,
    /// Its standard input is what keeps it alive.
    child: Mutex<Option<Child>>,
}

impl Server {
    fn of_this_process() -> &'static Server {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| {
            let server = Server {
                adding: Mutex::new(()),
                folder: folder::of_this_process("p11-kit"),
                child: Mutex::new(None),
            };
            softhsm::make_store(&server.folder);
            server.start();
            let (variable, address) = P11KitClient::address(&server.socket());
            // SAFETY: setting a variable races with code that reads the environment
            // without the standard library's lock, that is, C code. This runs once, before
            // the process loads p11-kit-client, which is what reads this variable;
            // programs that load other modules too call `prepare` first.
            unsafe { std::env::set_var(variable, address) };
            server
        })
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    fn start(&self) {
        let log = File::create(self.folder.join("log")).unwrap();
        let _ = fs::remove_file(self.socket());
        let mut child = P11KitClient::server(&self.socket())
            .env(softhsm::CONF, softhsm::configuration(&self.folder))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        // It says where it listens once it does.
        let mut said = String::new();
        let output = child.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut said).unwrap();
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        assert!(
            said.contains(ADDRESS),
            "p11-kit server does not start\n{log}"
        );
        *lock(&self.child) = Some(child);
    }

    fn stop(&self) {
        if let Some(mut child) = lock(&self.child).take() {
            drop(child.stdin.take());
            let _ = child.wait();
            // The shell may be gone before those that it has killed, and one of them could
            // still take a connection.
            let group = rustix::process::Pid::from_child(&child);
            let give_up = Instant::now() + Duration::from_secs(20);
            while rustix::process::test_kill_process_group(group).is_ok() {
                assert!(Instant::now() < give_up, "p11-kit server does not end");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
