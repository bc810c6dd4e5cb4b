//! Tokens of NSS's soft token that belong to one test process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use claviger_pkcs11::modules::Locations;
use claviger_token::{Access, FixedPin};

use crate::unpacked::library;
use crate::{folder, token};

/// So many tokens can be made in one process: the module is told all of them when it is
/// initialised.
const MOST: usize = 64;

/// The files of a database.
const FILES: [&str; 3] = ["cert9.db", "key4.db", "pkcs11.txt"];

/// A token of its own for one test: a database that `certutil` made.
///
/// The module wants an argument when it is initialised (`pReserved` of
/// `CK_C_INITIALIZE_ARGS`): which databases there are. It is in a configuration of p11-kit,
/// as `x-init-reserved`, see [`Nss::places`]. All tokens have the same serial, all zeros.
///
/// ```no_run
/// use claviger_pkcs11::Pkcs11Driver;
///
/// let token = claviger_tests::Nss::new();
/// let driver = Pkcs11Driver::with_locations(claviger_tests::Nss::places());
/// let backend = token.backend(); // pkcs11:token=…
/// ```
pub struct Nss {
    label: String,
    folder: PathBuf,
}

impl Nss {
    /// The user PIN of every such token.
    pub const PIN: &str = token::PIN;

    /// Why tests that need it are to be skipped, if they are.
    pub fn skipped() -> Option<&'static str> {
        None
    }

    /// A new, empty token.
    ///
    /// # Panics
    /// Where NSS or its tools are not installed, or where they do not work.
    #[expect(clippy::new_without_default, reason = "it starts something")]
    pub fn new() -> Nss {
        let store = Store::of_this_process();
        let number = store.made.fetch_add(1, Ordering::Relaxed);
        assert!(number < MOST, "the process has {MOST} tokens already");
        Nss {
            label: store.labels[number].clone(),
            folder: store.database(number),
        }
    }

    /// The token's label, which no other token has.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The folder of the token's database.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The backend string of the token, for a driver with [`Nss::places`].
    pub fn backend(&self) -> String {
        Nss::backend_for(&self.label)
    }

    /// The backend string of a token with `label`, whether it exists or not.
    pub fn backend_for(label: &str) -> String {
        format!("pkcs11:token={label}")
    }

    /// Access with the right PIN.
    pub fn access(&self) -> Access {
        Access::with(FixedPin::new(Nss::PIN))
    }

    /// A configuration of p11-kit with the one module, and its argument.
    pub fn places() -> Locations {
        Locations {
            system_modules: Nss::configuration().join("pkcs11/modules"),
            ..Locations::default()
        }
    }

    /// The folder with the configuration as that of a user, for processes that the test
    /// starts: it is what `XDG_CONFIG_HOME` names.
    pub fn configuration() -> PathBuf {
        Store::of_this_process().folder.join("config")
    }

    /// The argument of the module.
    pub fn init_argument() -> String {
        Store::of_this_process().argument()
    }

    /// The PKCS#11 module.
    ///
    /// # Panics
    /// Where it is not installed.
    pub fn module() -> PathBuf {
        library(Path::new("/"), "libsoftokn3.so")
            .or_else(|| library(Path::new("/"), "nss/libsoftokn3.so"))
            .unwrap_or_else(|| panic!("NSS is not installed: run `cargo xtask setup`"))
    }
}

/// The databases of this process, in `nss-PID` in the target folder.
struct Store {
    folder: PathBuf,
    labels: Vec<String>,
    made: AtomicUsize,
}

impl Store {
    fn of_this_process() -> &'static Store {
        static STORE: OnceLock<Store> = OnceLock::new();
        STORE.get_or_init(|| {
            let store = Store {
                folder: folder::of_this_process("nss"),
                labels: (0..MOST).map(|_| token::label()).collect(),
                made: AtomicUsize::new(0),
            };
            store.make_databases();
            let modules = store.folder.join("config/pkcs11/modules");
            fs::create_dir_all(&modules).unwrap();
            let configuration = format!(
                "module: {}\nx-init-reserved: {}\n",
                Nss::module().display(),
                store.argument()
            );
            fs::write(modules.join("nss.module"), configuration).unwrap();
            store
        })
    }

    /// One by `certutil`, and copies of it.
    fn make_databases(&self) {
        let original = self.database(0);
        fs::create_dir_all(&original).unwrap();
        let pin = self.folder.join("pin");
        fs::write(&pin, format!("{}\n", Nss::PIN)).unwrap();
        let output = Command::new("certutil")
            .args(["-N", "-f"])
            .arg(&pin)
            .arg("-d")
            .arg(format!("sql:{}", original.display()))
            .output()
            .unwrap_or_else(|error| panic!("certutil: {error}: run `cargo xtask setup`"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "certutil: {said}");
        for number in 1..MOST {
            let copy = self.database(number);
            fs::create_dir(&copy).unwrap();
            for file in FILES {
                fs::copy(original.join(file), copy.join(file)).unwrap();
            }
        }
    }

    fn database(&self, number: usize) -> PathBuf {
        self.folder.join(number.to_string())
    }

    /// What the module is told: which databases there are, and their labels.
    fn argument(&self) -> String {
        let tokens = (0..MOST).map(|number| {
            let (slot, database) = (0x10 + number, self.database(number));
            let (label, database) = (&self.labels[number], database.display());
            format!("{slot:#x}=[configDir=sql:{database} tokenDescription={label}]")
        });
        format!(
            "configDir='' certPrefix='' keyPrefix='' secmod='' flags=noModDB,noCertDB tokens=<{}>",
            tokens.collect::<Vec<_>>().join(" ")
        )
    }
}
