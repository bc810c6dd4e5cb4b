//! Kryoptic tokens that belong to one test process.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use claviger_token::{Access, FixedPin};

use crate::{folder, token};

/// The variable that tells Kryoptic where its configuration is.
const CONF: &str = "KRYOPTIC_CONF";

/// So many tokens can be made in one process: the slots are in the configuration, which
/// is read once.
const MOST: usize = 64;

/// The length of the header of SQLite's files, in bytes.
const HEADER: usize = 100;

/// A token of its own for one test, in a file of its own.
///
/// It counts wrong PINs: after six it says that few tries are left, after nine that one
/// is, and after ten it is locked. It says so to the process that sent them only; others
/// learn it when they send one.
///
/// ```no_run
/// let token = claviger_tests::Kryoptic::new();
/// let backend = token.backend(); // pkcs11:token=…?module-path=…
/// let (variable, file) = token.environment(); // for processes that the test starts
/// ```
pub struct Kryoptic {
    label: String,
    file: PathBuf,
}

impl Kryoptic {
    /// The user PIN of every such token.
    pub const PIN: &str = token::PIN;

    /// Why tests that need it are to be skipped, if they are.
    pub fn skipped() -> Option<&'static str> {
        let quick = std::env::var_os("CLAVIGER_TEST_QUICK").is_some_and(|value| value == "1");
        match (quick, Kryoptic::module().is_file()) {
            (true, _) => Some("CLAVIGER_TEST_QUICK is 1, and Kryoptic takes long to build"),
            (false, false) => Some("Kryoptic has not been built: `cargo xtask setup` does"),
            (false, true) => None,
        }
    }

    /// A new, empty token.
    ///
    /// # Panics
    /// Where Kryoptic was not built, or does not work.
    #[expect(clippy::new_without_default, reason = "it starts something")]
    pub fn new() -> Kryoptic {
        let store = Store::of_this_process();
        let label = token::label();
        let number = store.made.fetch_add(1, Ordering::Relaxed);
        assert!(number < MOST, "the process has {MOST} tokens already");
        // Through the driver's instance of the module, which is not to be initialised anew
        // meanwhile.
        claviger_pkcs11::with_module(&Kryoptic::module(), |module| {
            let slots = module.get_slots_with_token().unwrap();
            let slot = slots.iter().find(|slot| slot.id() == number as u64);
            token::initialise(module, *slot.unwrap(), &label);
        })
        .unwrap();
        let file = store.token(number);
        Kryoptic { label, file }
    }

    /// Makes the store and points this process to it. A test program that does this
    /// before it starts threads need not wonder who reads the environment meanwhile.
    pub fn prepare() {
        Store::of_this_process();
    }

    /// Another token, which says of itself what this one says: a copy in another slot. It
    /// ends every session of the module.
    ///
    /// # Panics
    /// Where Kryoptic does not work.
    pub fn twin(&self) -> Kryoptic {
        let store = Store::of_this_process();
        let number = store.made.fetch_add(1, Ordering::Relaxed);
        assert!(number < MOST, "the process has {MOST} tokens already");
        let file = store.token(number);
        claviger_pkcs11::with_module(&Kryoptic::module(), |module| {
            module.clone().finalize().unwrap();
            fs::copy(&self.file, &file).unwrap();
        })
        .unwrap();
        let label = self.label.clone();
        Kryoptic { label, file }
    }

    /// The number of the token's slot.
    pub fn slot(&self) -> u64 {
        let number = self.file.file_stem().and_then(|stem| stem.to_str());
        number.and_then(|number| number.parse().ok()).unwrap()
    }

    /// The token's label, which no other token has.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The backend string of the token.
    pub fn backend(&self) -> String {
        Kryoptic::backend_for(&self.label)
    }

    /// The backend string of a token with `label`, whether it exists or not.
    pub fn backend_for(label: &str) -> String {
        let module = Kryoptic::module();
        format!("pkcs11:token={label}?module-path={}", module.display())
    }

    /// Access with the right PIN.
    pub fn access(&self) -> Access {
        Access::with(FixedPin::new(Kryoptic::PIN))
    }

    /// The variable with which another process sees the same tokens, and its value.
    pub fn environment(&self) -> (&'static str, PathBuf) {
        (CONF, Store::of_this_process().conf())
    }

    /// Makes the token's file unreadable, as under a running process: the process keeps
    /// the file open, and would not notice if it went away.
    pub fn remove(&self) {
        fs::copy(&self.file, self.aside()).unwrap();
        self.overwrite(&[0; HEADER]);
    }

    /// Makes the file readable again that [`Kryoptic::remove`] made unreadable.
    pub fn insert(&self) {
        self.overwrite(&fs::read(self.aside()).unwrap()[..HEADER]);
    }

    fn overwrite(&self, header: &[u8]) {
        let mut file = fs::File::options().write(true).open(&self.file).unwrap();
        file.write_all(header).unwrap();
    }

    fn aside(&self) -> PathBuf {
        self.file.with_extension("removed")
    }

    /// The PKCS#11 module, where `cargo xtask setup` puts it.
    pub fn module() -> PathBuf {
        let target = folder::target().unwrap_or_default();
        let name = format!("libkryoptic{}", std::env::consts::DLL_SUFFIX);
        target.join("kryoptic/debug").join(name)
    }
}

/// The token store of this process: `kryoptic-PID` in the target folder.
struct Store {
    folder: PathBuf,
    made: AtomicUsize,
}

impl Store {
    fn of_this_process() -> &'static Store {
        static STORE: OnceLock<Store> = OnceLock::new();
        STORE.get_or_init(|| {
            let module = Kryoptic::module();
            assert!(
                module.is_file(),
                "Kryoptic has not been built: run `cargo xtask setup`"
            );
            let store = Store {
                folder: folder::of_this_process("kryoptic"),
                made: AtomicUsize::new(0),
            };
            let mut text = String::new();
            for number in 0..MOST {
                let file = store.token(number);
                writeln!(text, "[[slots]]\nslot = {number}\ndbtype = \"sqlite\"").unwrap();
                writeln!(text, "dbargs = {file:?}").unwrap();
            }
            fs::write(store.conf(), text).unwrap();
            // SAFETY: setting a variable races with code that reads the environment
            // without the standard library's lock, that is, C code and modules with a
            // standard library of their own. This runs once, before the process loads
            // Kryoptic, which is what reads this variable; programs that load other
            // modules too call `prepare` first.
            unsafe { std::env::set_var(CONF, store.conf()) };
            store
        })
    }

    fn conf(&self) -> PathBuf {
        self.folder.join("kryoptic.conf")
    }

    fn token(&self, number: usize) -> PathBuf {
        self.folder.join(format!("{number}.sql"))
    }
}
