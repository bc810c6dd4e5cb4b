//! Loaded modules: one instance for each file, for the life of the process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use claviger_token::Error;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as Ck, RvError};
use cryptoki::slot::{Slot, TokenInfo};

use crate::error::{describe, is_uninitialised};
use crate::quirks;
use crate::session::Connection;

/// So often at most is a module initialised anew to look for a token. Whoever comes
/// too early waits: not for long, since it may be on a task that others need.
const RESET_INTERVAL: Duration = Duration::from_millis(20);

/// A PKCS#11 module. It is never unloaded, and finalised only by [`Module::restart`].
pub(crate) struct Module {
    pub(crate) path: PathBuf,
    pub(crate) pkcs11: Pkcs11,
    pub(crate) library: Library,
    /// Held for reading by everyone who calls the module and for writing by
    /// [`Module::reset`], since `C_Finalize` must not run beside another call
    /// (PKCS#11 v2.40 §5.4).
    gate: RwLock<()>,
    connections: Mutex<Vec<Weak<Connection>>>,
    last_reset: Mutex<Option<Instant>>,
}

/// What a module says of itself (`C_GetInfo`).
#[derive(Debug, Default)]
pub(crate) struct Library {
    pub(crate) manufacturer: String,
    pub(crate) description: String,
    pub(crate) version: (u8, u8),
}

/// Shows that its holder may call the module. Not to be taken twice by one thread.
pub(crate) struct Entered<'a>(#[allow(dead_code)] RwLockReadGuard<'a, ()>);

/// Takes a lock that no panic can leave in disorder.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Cell = Arc<Mutex<Option<Arc<Module>>>>;

/// The modules by their real paths.
static MODULES: LazyLock<Mutex<HashMap<PathBuf, Cell>>> = LazyLock::new(Mutex::default);

impl Module {
    /// The module in the file `path`, loaded and initialised if it was not yet.
    pub(crate) fn load(path: &Path) -> Result<Arc<Self>, Error> {
        let bad = |reason: String| Error::BadModule {
            path: path.display().to_string(),
            reason,
        };
        let real = path.canonicalize().map_err(|e| bad(e.to_string()))?;
        if !real.is_file() {
            return Err(bad("it is not a file".into()));
        }
        let cell = lock(&MODULES).entry(real.clone()).or_default().clone();
        // Two threads do not load one file at the same time; other files do not wait.
        let mut module = lock(&cell);
        if let Some(module) = &*module {
            return Ok(module.clone());
        }
        let loaded = Arc::new(Module::new(real).map_err(|e| bad(describe(&e)))?);
        Ok(module.insert(loaded).clone())
    }

    fn new(path: PathBuf) -> Result<Self, Ck> {
        let pkcs11 = Pkcs11::new(&path)?;
        initialise(&pkcs11)?;
        let library = match pkcs11.get_library_info() {
            Ok(info) => Library {
                manufacturer: info.manufacturer_id().into(),
                description: info.library_description().into(),
                version: (
                    info.library_version().major(),
                    info.library_version().minor(),
                ),
            },
            Err(_) => Library::default(),
        };
        tracing::debug!(path = %path.display(), ?library, "module loaded");
        Ok(Module {
            path,
            pkcs11,
            library,
            gate: RwLock::default(),
            connections: Mutex::default(),
            last_reset: Mutex::default(),
        })
    }

    /// To be held while the module is called.
    pub(crate) fn enter(&self) -> Entered<'_> {
        Entered(self.gate.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes a connection whose sessions a [restart](Module::restart) ends; none may come
    /// between its first session and this.
    pub(crate) fn watch(&self, connection: &Arc<Connection>, _: &Entered<'_>) {
        let mut connections = lock(&self.connections);
        connections.retain(|c| c.strong_count() > 0);
        connections.push(Arc::downgrade(connection));
    }

    /// The slots with an initialised token. A token that cannot tell about itself does
    /// not hide the others.
    pub(crate) fn tokens(&self, _: &Entered<'_>) -> Result<Vec<(Slot, TokenInfo)>, Ck> {
        let slots = match self.pkcs11.get_slots_with_token() {
            Err(error) if is_uninitialised(&error) => {
                initialise(&self.pkcs11)?;
                self.pkcs11.get_slots_with_token()
            }
            other => other,
        }?;
        let tokens = slots.into_iter().filter_map(|slot| {
            match self.pkcs11.get_token_info(slot) {
                Ok(info) => Some((slot, info)),
                Err(error) => {
                    let error = describe(&error);
                    tracing::warn!(module = %self.path.display(), slot = slot.id(), error, "token skipped");
                    None
                }
            }
        });
        Ok(tokens
            .filter(|(_, info)| info.token_initialized())
            .collect())
    }

    /// Whether a token that went away is found again only after a [reset](Module::reset).
    pub(crate) fn forgets_tokens(&self) -> bool {
        let maker = self.library.manufacturer.as_str();
        quirks::of(maker, maker, "").forgets_tokens
    }

    /// Finalises and initialises the module, so that it looks for its tokens again, and
    /// says whether it did: only modules that otherwise would not are. Every session of
    /// the module ends; the connections make new ones when they are used next.
    pub(crate) fn reset(&self) -> bool {
        let forgets = self.forgets_tokens();
        if forgets {
            self.restart();
        }
        forgets
    }

    /// What [`Module::reset`] does, for every module.
    pub(crate) fn restart(&self) {
        let mut last = lock(&self.last_reset);
        if let Some(last) = *last {
            std::thread::sleep(RESET_INTERVAL.saturating_sub(last.elapsed()));
        }
        // Dropped last: with the last reference a connection enters the module.
        let connections: Vec<_>;
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        connections = (lock(&self.connections).iter())
            .filter_map(Weak::upgrade)
            .collect();
        // Before, not after: the module gives the same session handles out again.
        for connection in &connections {
            connection.forget_sessions();
        }
        tracing::info!(module = %self.path.display(), "module is initialised anew");
        *last = Some(Instant::now());
        let done = self.pkcs11.clone().finalize();
        if let Err(error) = done.and_then(|()| initialise(&self.pkcs11)) {
            // Whoever needs the module next tries again.
            let error = describe(&error);
            tracing::warn!(module = %self.path.display(), error, "module not initialised");
        }
    }
}

fn initialise(pkcs11: &Pkcs11) -> Result<(), Ck> {
    match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Err(Ck::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        other => other,
    }
}
