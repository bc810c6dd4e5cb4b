//! SoftHSM2 tokens that belong to one test process.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use claviger_token::sync::lock;
use claviger_token::{Access, FixedPin};
use cryptoki::context::Pkcs11;

use crate::{folder, token};

/// Where distributions put the module: Debian and Ubuntu, Fedora, Arch.
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm.so",
    "/usr/lib/pkcs11/libsofthsm2.so",
];

/// The variable that tells SoftHSM where its configuration is.
pub(crate) const CONF: &str = "SOFTHSM2_CONF";

/// A token of its own for one test, in a store of its own for one process.
///
/// ```no_run
/// let token = claviger_tests::SoftHsm::new();
/// let backend = token.backend(); // pkcs11:token=…?module-path=…
/// let (variable, file) = token.environment(); // for processes that the test starts
/// ```
pub struct SoftHsm {
    label: String,
    folder: PathBuf,
}

impl SoftHsm {
    /// The user PIN of every such token.
    pub const PIN: &str = token::PIN;
    /// The security officer's PIN of every such token.
    pub const SO_PIN: &str = token::SO_PIN;

    /// A new, empty token.
    ///
    /// # Panics
    /// Where SoftHSM2 is not installed, or does not work.
    #[expect(clippy::new_without_default, reason = "it starts something")]
    pub fn new() -> SoftHsm {
        let store = Store::of_this_process();
        let label = token::label();
        let folder = store.add(&label);
        SoftHsm { label, folder }
    }

    /// Makes the store and points this process to it. A test program that does this
    /// before it starts threads need not wonder who reads the environment meanwhile.
    pub fn prepare() {
        Store::of_this_process();
    }

    /// The token's label, which no other token has.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The backend string of the token.
    pub fn backend(&self) -> String {
        SoftHsm::backend_for(&self.label)
    }

    /// The backend string of a token with `label`, whether it exists or not.
    pub fn backend_for(label: &str) -> String {
        format!("pkcs11:token={label}?module-path={}", SoftHsm::module())
    }

    /// Access with the right PIN.
    pub fn access(&self) -> Access {
        Access::with(FixedPin::new(SoftHsm::PIN))
    }

    /// The variable with which another process sees the same tokens, and its value.
    pub fn environment(&self) -> (&'static str, PathBuf) {
        (CONF, Store::of_this_process().conf())
    }

    /// The PKCS#11 module.
    ///
    /// # Panics
    /// Where it is not installed.
    pub fn module() -> &'static str {
        MODULES
            .into_iter()
            .find(|path| Path::new(path).exists())
            .unwrap_or_else(|| panic!("SoftHSM2 is not installed: run `cargo xtask setup`"))
    }

    /// Takes the token's files away, as from under a running process.
    pub fn remove(&self) {
        fs::rename(&self.folder, self.aside()).unwrap();
    }

    /// Puts the files back that [`SoftHsm::remove`] took away.
    pub fn insert(&self) {
        fs::rename(self.aside(), &self.folder).unwrap();
    }

    fn aside(&self) -> PathBuf {
        let store = &Store::of_this_process().folder;
        store.join(format!("{}.removed", self.label))
    }
}

/// The token store of this process: `softhsm-PID` in the target folder.
struct Store {
    folder: PathBuf,
    /// Two threads that look for an uninitialised slot find the same one.
    adding: Mutex<()>,
}

impl Store {
    fn of_this_process() -> &'static Store {
        static STORE: OnceLock<Store> = OnceLock::new();
        STORE.get_or_init(|| {
            SoftHsm::module();
            let folder = folder::of_this_process("softhsm");
            make_store(&folder);
            let store = Store {
                folder,
                adding: Mutex::new(()),
            };
            // SAFETY: setting a variable races with code that reads the environment
            // without the standard library's lock, that is, C code. This runs once, before
            // the process loads its first C library of ours (the module, which is the one
            // that reads this variable), and the test harness calls no other.
            unsafe { std::env::set_var(CONF, store.conf()) };
            store
        })
    }

    fn conf(&self) -> PathBuf {
        configuration(&self.folder)
    }

    fn tokens(&self) -> PathBuf {
        self.folder.join("tokens")
    }

    /// Makes a token; the answer is the folder that it lives in.
    fn add(&self, label: &str) -> PathBuf {
        let _guard = lock(&self.adding);
        let before = folder::content(&self.tokens());
        // Through the driver's instance of the module, so that the driver does not
        // initialise it anew meanwhile.
        let path = Path::new(SoftHsm::module());
        claviger_pkcs11::with_module(path, |module| initialise(module, label)).unwrap();
        (folder::content(&self.tokens()).into_iter())
            .find(|folder| !before.contains(folder))
            .unwrap()
    }
}

/// Makes an empty store in `folder`.
pub(crate) fn make_store(folder: &Path) {
    let tokens = folder.join("tokens");
    fs::create_dir(&tokens).unwrap();
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    fs::write(configuration(folder), text).unwrap();
}

/// The configuration of the store in `folder`.
pub(crate) fn configuration(folder: &Path) -> PathBuf {
    folder.join("softhsm2.conf")
}

/// Makes the one slot whose token is not initialised into a token. It must happen in
/// this process: SoftHSM does not see what another one adds after it has been started.
pub(crate) fn initialise(module: &Pkcs11, label: &str) {
    let slot = *module.get_slots_with_token().unwrap().last().unwrap();
    token::initialise(module, slot, label);
    // This is what makes SoftHSM give the token its slot for good, and open another for
    // the next.
    module.get_slots_with_token().unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_made_by_two_threads_are_two_and_another_process_sees_them() {
        let labels = [(); 2]
            .map(|()| std::thread::spawn(|| SoftHsm::new().label().to_owned()))
            .map(|thread| thread.join().unwrap());
        let (variable, file) = SoftHsm::new().environment();
        let seen = std::process::Command::new("softhsm2-util")
            .arg("--show-slots")
            .env(variable, file)
            .output()
            .unwrap();
        let seen = String::from_utf8(seen.stdout).unwrap();
        assert_ne!(labels[0], labels[1]);
        for label in labels {
            assert_eq!(seen.matches(&label).count(), 1, "{seen}");
        }
    }
}
