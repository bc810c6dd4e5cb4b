//! A PKCS#11 module in front of another one; tests alter its replies while it runs.
//!
//! [`AlteredModule`] puts a copy of the module into a folder of its own, so that each copy is
//! loaded separately, and controls it by a file beside it. The module writes the name of each
//! called function into another file.
//!
//! ```no_run
//! use claviger_altered_module::AlteredModule;
//!
//! let module = AlteredModule::of("/usr/lib/softhsm/libsofthsm2.so".as_ref());
//! module.alter(&["token serial 123", "answer C_GetMechanismList 0x6"]);
//! println!("pkcs11:?module-path={}", module.path().display());
//! println!("{} logins", module.calls("C_Login"));
//! ```
//!
//! | line | effect |
//! | --- | --- |
//! | `answer FUNCTION 0xRV` | the function does nothing and returns this |
//! | `wait FUNCTION` | the function waits as long as this line is there |
//! | `die FUNCTION` | the process dies in the function, before it does anything |
//! | `only LABEL` | hides all tokens without this label; several lines add up |
//! | `token serial TEXT` | every token states this; likewise `manufacturer`, `model`, `label` |
//! | `token set 0xFLAGS`, `token clear 0xFLAGS` | flags of every token |
//! | `token pin MIN MAX` | the lengths of PINs that every token states |
//! | `token vanishes` | at the first query a token states its label and no serial; from then on it is not initialised |
//! | `clock malformed` | every token has a clock that shows `03:24:04` and zero bytes |
//! | `slot manufacturer TEXT` | every slot states this; likewise `description` |
//! | `library TEXT` | the library states this manufacturer |
//! | `wants TEXT` | `C_Initialize` requires this as its reserved argument |
//! | `cannot lock` | `C_Initialize` refuses `CKF_OS_LOCKING_OK` |
//! | `dead` | everything fails with `CKR_DEVICE_ERROR` until `C_Initialize` is called without this line |
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a fixture that fails is a test that fails"
)]

mod module;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The name of the file with the lines.
pub(crate) const CONTROL: &str = "control";
/// The name of the file with the calls.
pub(crate) const CALLS: &str = "calls";
/// What is written among the calls when two run at the same time.
pub(crate) const OVERLAP: &str = "OVERLAP";

/// A module of its own for one test.
pub struct AlteredModule {
    folder: PathBuf,
    inner: PathBuf,
}

impl AlteredModule {
    /// A module in front of a copy of the one in the file `inner`, so that it has nothing
    /// in common with another instance of that.
    ///
    /// # Panics
    /// Where the files cannot be copied.
    pub fn of(inner: &Path) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("altered-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        // A process with our number may have left one behind.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let copy = folder.join("inner.so");
        fs::copy(inner, &copy).unwrap();
        let module = AlteredModule {
            inner: copy,
            folder,
        };
        fs::copy(built(), module.path()).unwrap();
        module.alter(&[]);
        module
    }

    /// The module's file.
    pub fn path(&self) -> PathBuf {
        self.folder.join("altered.so")
    }

    /// The folder with the module, for what a test wants to put beside it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// From now on the module does what these lines say, and nothing that was said before.
    ///
    /// # Panics
    /// Where the file cannot be written.
    pub fn alter(&self, lines: &[&str]) {
        let inner = format!("inner {}", self.inner.display());
        let text = [&[&*inner], lines].concat().join("\n");
        // Replaced, so that nobody reads half of it.
        let fresh = self.folder.join("control.new");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.folder.join(CONTROL)).unwrap();
    }

    /// How often a function was called.
    pub fn calls(&self, function: &str) -> usize {
        let calls = fs::read_to_string(self.folder.join(CALLS)).unwrap_or_default();
        calls.lines().filter(|line| *line == function).count()
    }

    /// The functions that were called, one after the other.
    pub fn all_calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.folder.join(CALLS)).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// Whether two calls were ever at work at the same time.
    pub fn overlapped(&self) -> bool {
        self.calls(OVERLAP) > 0
    }

    /// Forgets what was called.
    pub fn forget_calls(&self) {
        let _ = fs::remove_file(self.folder.join(CALLS));
    }
}

impl Drop for AlteredModule {
    fn drop(&mut self) {
        // It stays loaded; the file is not needed for that.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Where cargo put the module when it built this crate.
fn built() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let file = format!(
        "{}claviger_altered_module{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    (program.ancestors().skip(1).take(2))
        .flat_map(|folder| [folder.join(&file), folder.join("deps").join(&file)])
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{file} is not beside {}", program.display()))
}
