//! Loaded modules: one instance for each file, for the life of the process.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use claviger_pkcs11_once::{InitArgument, TokenInfos, initialise};
use claviger_token::shelf::{Places, Shelf};
use claviger_token::sync::lock;
use claviger_token::{Call, Error};
use cryptoki::context::{CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as Ck, RvError};
use cryptoki::slot::{Slot, TokenInfo};

use crate::absence;
use crate::error::{Fault, describe, has_lost_its_tokens, is_gone, is_uninitialised};
use crate::gate::{Entered, Gate};
use crate::library::Library;
use crate::mechanism_cache::MechanismCache;
use crate::quirks::{self, is_blank};
use crate::seen::LastSlots;
use crate::trouble::{Patience, Trouble};

/// So often at most is a module initialised anew to look for a token. Whoever comes
/// too early waits: not for long, since it may be on a task that others need.
const RESET_INTERVAL: Duration = Duration::from_millis(20);

/// So long a deletion waits for others to leave the module; nobody enters meanwhile.
const RESTART_PATIENCE: Duration = Duration::from_secs(2);

/// So often at most a token without a serial is asked for what it says of itself.
const MOST_READS: usize = 4;

/// So long is a module new to its process.
const FRESH: Duration = Duration::from_secs(1);

/// How the libraries of p11-kit begin to say who made them: with a connection, and without.
const P11_KIT: [&str; 2] = ["PKCS#11 Kit", "p11-kit"];

/// A PKCS#11 module. It is never unloaded, and finalised only by [`Module::restart`].
pub(crate) struct Module {
    /// The file itself, whatever links lead to it.
    pub(crate) path: PathBuf,
    pub(crate) pkcs11: Pkcs11,
    /// What the module says of itself, since it was initialised last.
    library: Mutex<Arc<Library>>,
    /// What `C_Initialize` gets.
    argument: Option<InitArgument>,
    /// Whether the module takes one call at a time, since it has no locks.
    one_by_one: AtomicBool,
    /// Everyone who calls the module enters beside others, and [`Module::reset`] alone, since
    /// `C_Finalize` must not run beside another call (PKCS#11 v2.40 §5.4). Where calls come one
    /// by one, everyone enters alone.
    gate: Gate,
    connections: Shelf<dyn Sessions>,
    last_reset: Mutex<Option<Instant>>,
    /// Whether the next that can be alone restarts it.
    is_restart_due: AtomicBool,
    times_initialised: AtomicU64,
    loaded: Instant,
    /// When it failed to show its slots, where it did the last time.
    trouble: Mutex<Option<Trouble>>,
    /// What the tokens said of their mechanisms.
    pub(crate) mechanisms: MechanismCache,
    pub(crate) seen: LastSlots,
    /// For tokens that `cryptoki` cannot read.
    token_infos: OnceLock<Option<TokenInfos>>,
}

/// Who has sessions with a token of a module.
pub(crate) trait Sessions: Send + Sync {
    /// They have ended: the module is initialised anew.
    fn forget_sessions(&self, alone: &Entered<'_>);

    /// Handles of objects may refer to others from now on.
    fn forget_handles(&self);
}

/// How the slots of a module stand.
pub(crate) struct Sight {
    /// Those with an initialised token.
    pub(crate) tokens: Vec<(Slot, TokenInfo)>,
    /// Those with a token that cannot tell about itself.
    pub(crate) unreadable: Vec<(Slot, Ck)>,
}

/// A module, or how often it could not be loaded.
#[derive(Default)]
struct Cell {
    module: Option<Arc<Module>>,
    failed: Option<Failed>,
}

/// A module that could not be loaded when that was tried last.
struct Failed {
    argument: Option<CString>,
    error: Error,
    trouble: Trouble,
}

/// The modules by their real paths.
static MODULES: LazyLock<Places<PathBuf, Mutex<Cell>>> = LazyLock::new(Places::default);

impl Module {
    /// The module in the file `path`, loaded and initialised with `argument` if it was not yet.
    pub(crate) fn load(
        path: &Path,
        argument: Option<&str>,
        patience: Patience,
        call: &Call,
    ) -> Result<Arc<Self>, Error> {
        let bad = |reason: String| Error::BadModule {
            path: path.display().to_string(),
            reason,
        };
        let real = path.canonicalize().map_err(|e| bad(e.to_string()))?;
        if !real.is_file() {
            return Err(bad("it is not a file".into()));
        }
        let argument = argument.map(CString::new).transpose();
        let argument = argument.map_err(|e| bad(e.to_string()))?;
        let cell = MODULES.of(&real);
        // Two threads do not load one file at the same time; other files do not wait.
        let mut cell = call.lock(&cell)?;
        if let Some(module) = &cell.module {
            return match module.is_initialised_with(argument.as_ref()) {
                true => Ok(module.clone()),
                false => Err(bad(
                    "this process has already initialised it with another argument".into(),
                )),
            };
        }
        // What it is to be initialised with may be what was wrong.
        let failed = cell.failed.take().filter(|f| f.argument == argument);
        if let Some(early) = failed.as_ref().filter(|f| f.trouble.is_too_early(patience)) {
            let error = early.error.clone();
            cell.failed = failed;
            return Err(error);
        }
        match Module::new(real.clone(), argument.clone()) {
            Ok(module) => Ok(cell.module.insert(Arc::new(module)).clone()),
            Err(error) => {
                let before = failed.as_ref().map(|f| &f.trouble);
                let trouble = Trouble::after(before, Some(describe(&error)));
                let error = absence::of_module(path, &real, &error);
                cell.failed = Some(Failed {
                    argument,
                    error: error.clone(),
                    trouble,
                });
                Err(error)
            }
        }
    }

    fn new(path: PathBuf, argument: Option<CString>) -> Result<Self, Ck> {
        let pkcs11 = Pkcs11::new(&path)?;
        let argument = argument.map(InitArgument::new);
        let one_by_one = start(&pkcs11, argument.as_ref())?;
        let library = Library::of(&pkcs11);
        tracing::debug!(path = %path.display(), ?library, one_by_one, "module loaded");
        Ok(Module {
            path,
            pkcs11,
            library: Mutex::new(Arc::new(library)),
            argument,
            one_by_one: AtomicBool::new(one_by_one),
            gate: Gate::default(),
            connections: Shelf::default(),
            last_reset: Mutex::default(),
            is_restart_due: AtomicBool::new(false),
            times_initialised: AtomicU64::new(1),
            loaded: Instant::now(),
            trouble: Mutex::default(),
            mechanisms: MechanismCache::default(),
            seen: LastSlots::default(),
            token_infos: OnceLock::new(),
        })
    }

    /// What the module says of itself.
    pub(crate) fn library(&self) -> Arc<Library> {
        lock(&self.library).clone()
    }

    /// Who does not say what with takes it as it is.
    fn is_initialised_with(&self, argument: Option<&CString>) -> bool {
        argument.is_none_or(|wanted| {
            let given = self.argument.as_ref();
            given.is_some_and(|given| given.text() == wanted.as_c_str())
        })
    }

    /// To be held while the module is called.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`], [`Error::Cancelled`]: whoever calls the module meanwhile may
    /// wait for a device.
    pub(crate) fn enter(&self, call: &Call) -> Result<Entered<'_>, Error> {
        if self.is_restart_due.load(Ordering::Relaxed) {
            // Not now, if others are inside.
            let _ = self.restart_if(&Call::within(Duration::ZERO), |_| true);
        }
        match self.one_by_one.load(Ordering::Relaxed) {
            false => self.gate.beside(call),
            true => self.gate.alone(call),
        }
    }

    /// Notes a connection whose sessions a [restart](Module::restart) ends; none may come
    /// between its first session and this.
    pub(crate) fn watch(&self, connection: Weak<dyn Sessions>, _: &Entered<'_>) {
        self.connections.add(connection);
    }

    /// Enters the module and looks at its slots. A module that has lost what is behind it,
    /// such as a server, is initialised anew first, which is what it takes to find that again.
    ///
    /// # Errors
    /// What the module says, as [`Fault::Gone`]; the end of the call, as [`Fault::Ours`].
    pub(crate) fn look(
        &self,
        patience: Patience,
        call: &Call,
    ) -> Result<(Entered<'_>, Sight), Fault> {
        let trouble = lock(&self.trouble).clone();
        let early = trouble.as_ref().filter(|t| t.is_too_early(patience));
        if let Some(error) = early.and_then(|early| early.said.clone()) {
            return Err(Fault::Gone(error));
        }
        let mut looked = self.look_or_restart(call);
        // It does not look for its server by itself.
        if early.is_none() && looked.is_ok() && self.has_nothing_behind() {
            drop(looked);
            self.restart_if(call, |_| true)?;
            looked = self.look_or_restart(call);
        }
        let said = match &looked {
            Err(Fault::Module(error)) => Some(describe(error)),
            Ok(_) => None,
            // That says nothing of the module.
            Err(_) => return looked,
        };
        let looked = looked.map_err(|fault| said.clone().map_or(fault, Fault::Gone));
        if early.is_none() {
            let is_troubled = said.is_some() || self.has_nothing_behind();
            let after = || Trouble::after(trouble.as_ref(), said);
            *lock(&self.trouble) = is_troubled.then(after);
        }
        looked
    }

    /// Whether it says that there is no server behind it.
    fn has_nothing_behind(&self) -> bool {
        absence::stated(&self.path, &self.library()).is_some()
    }

    fn look_or_restart(&self, call: &Call) -> Result<(Entered<'_>, Sight), Fault> {
        let entered = self.enter(call)?;
        match self.sight(&entered) {
            Err(error) if has_lost_its_tokens(&error) => {
                drop(entered);
                self.restart_if(call, |_| true)?;
                let entered = self.enter(call)?;
                let sight = self.sight(&entered)?;
                Ok((entered, sight))
            }
            other => Ok((entered, other?)),
        }
    }

    /// The slots with an initialised token. A token that cannot tell about itself does
    /// not hide the others.
    pub(crate) fn sight(&self, _: &Entered<'_>) -> Result<Sight, Ck> {
        let slots = match self.pkcs11.get_slots_with_token() {
            Err(error) if is_uninitialised(&error) => {
                self.initialise()?;
                self.pkcs11.get_slots_with_token()
            }
            other => other,
        }?;
        let mut sight = Sight {
            tokens: Vec::new(),
            unreadable: Vec::new(),
        };
        for slot in slots {
            match self.token_info(slot) {
                Ok(info) if info.token_initialized() => sight.tokens.push((slot, info)),
                Ok(_) => {}
                // It was pulled out since.
                Err(error) if is_gone(&error) => {}
                Err(error) => sight.unreadable.push((slot, error)),
            }
        }
        Ok(sight)
    }

    /// What the token in `slot` says of itself. One without a serial says it twice: SoftHSM
    /// 2.6.1 leaves out what it cannot read any more of a token that vanishes meanwhile.
    pub(crate) fn token_info(&self, slot: Slot) -> Result<TokenInfo, Ck> {
        let mut info = self.token_info_now(slot)?;
        for _ in 1..MOST_READS {
            if !is_blank(info.serial_number()) {
                break;
            }
            let before = std::mem::replace(&mut info, self.token_info_now(slot)?);
            if says_the_same(&before, &info) {
                break;
            }
        }
        Ok(info)
    }

    /// Without its clock where that makes no sense (opencryptoki 3.8.1), since nobody here
    /// wants to know the time.
    fn token_info_now(&self, slot: Slot) -> Result<TokenInfo, Ck> {
        match self.pkcs11.get_token_info(slot) {
            Err(error) if !matches!(error, Ck::Pkcs11(..)) => {
                let infos = || TokenInfos::of(&self.path).ok();
                let infos = self.token_infos.get_or_init(infos).as_ref();
                infos.map_or(Err(error), |infos| infos.without_clock(slot))
            }
            other => other,
        }
    }

    /// Whether a token that went away is found again only after a [reset](Module::reset).
    /// p11-kit's client finds no server that is started after it.
    pub(crate) fn forgets_tokens(&self, entered: &Entered<'_>) -> bool {
        self.always_forgets_tokens() || self.is_p11_kit() && self.has_no_slots(entered)
    }

    /// [`Module::forgets_tokens`] for one who has not entered.
    fn forgets_tokens_outside(&self, call: &Call) -> Result<bool, Error> {
        Ok(self.always_forgets_tokens()
            || self.is_p11_kit() && self.has_no_slots(&self.enter(call)?))
    }

    fn always_forgets_tokens(&self) -> bool {
        quirks::library_forgets_tokens(&self.library().manufacturer)
    }

    fn is_p11_kit(&self) -> bool {
        let maker = &self.library().manufacturer;
        P11_KIT.iter().any(|name| maker.starts_with(name))
    }

    fn has_no_slots(&self, _: &Entered<'_>) -> bool {
        let slots = self.pkcs11.get_all_slots();
        slots.is_ok_and(|slots| slots.is_empty())
    }

    /// How often it was initialised. Each time ends all sessions, whose handles are given out
    /// again.
    pub(crate) fn times_initialised(&self) -> u64 {
        self.times_initialised.load(Ordering::SeqCst)
    }

    /// Whether it was loaded a moment ago and nobody has sessions with its tokens yet, so that
    /// a [reset](Module::reset_unused) is felt by nobody.
    pub(crate) fn is_fresh(&self) -> bool {
        self.is_unused() && self.loaded.elapsed() < FRESH
    }

    /// Whether nobody has sessions with its tokens, and one that was seen before is not there:
    /// only a [reset](Module::reset_unused) shows whether it is back.
    pub(crate) fn misses_a_token(&self, there: &[(Slot, TokenInfo)], call: &Call) -> bool {
        self.is_unused()
            // Who was not waited for is not missed.
            && self.forgets_tokens_outside(call).unwrap_or(false)
            && self.seen.is_to_be_looked_for(there)
    }

    fn is_unused(&self) -> bool {
        self.connections.is_empty()
    }

    /// Finalises and initialises the module, so that it looks for its tokens again, and
    /// says whether it did: only modules that otherwise would not are. Every session of
    /// the module ends; the connections make new ones when they are used next.
    ///
    /// # Errors
    /// The end of the call, as [`Module::enter`]: then it did not.
    pub(crate) fn reset(&self, call: &Call) -> Result<bool, Error> {
        Ok(self.forgets_tokens_outside(call)? && self.restart_if(call, |_| true)?)
    }

    /// [`Module::reset`] where nobody has sessions that it would end.
    ///
    /// # Errors
    /// As [`Module::reset`].
    pub(crate) fn reset_unused(&self, call: &Call) -> Result<bool, Error> {
        Ok(self.forgets_tokens_outside(call)? && self.restart_if(call, <[_]>::is_empty)?)
    }

    /// What [`Module::reset`] does, for every module. Where others do not leave it soon, the
    /// next that can be alone does it; until then every key is looked for anew.
    pub(crate) fn restart(&self) {
        self.is_restart_due.store(true, Ordering::Relaxed);
        if let Err(error) = self.restart_if(&Call::within(RESTART_PATIENCE), |_| true) {
            tracing::debug!(%error, "the module is not reinitialised yet");
            for connection in self.connections.all() {
                connection.forget_handles();
            }
        }
    }

    /// Says whether it did, as `may` it be with these connections. None comes in between.
    fn restart_if(
        &self,
        call: &Call,
        may: impl FnOnce(&[Arc<dyn Sessions>]) -> bool,
    ) -> Result<bool, Error> {
        let mut last = call.lock(&self.last_reset)?;
        if let Some(last) = *last {
            std::thread::sleep(RESET_INTERVAL.saturating_sub(last.elapsed()));
        }
        // Dropped last: with the last reference a connection enters the module.
        let connections: Vec<Arc<dyn Sessions>>;
        let alone = self.gate.alone(call)?;
        connections = self.connections.all();
        if !may(&connections) {
            return Ok(false);
        }
        // Before, not after: the module gives the same session handles out again.
        for connection in &connections {
            connection.forget_sessions(&alone);
        }
        tracing::info!(module = %self.path.display(), "reinitialising the module");
        *last = Some(Instant::now());
        self.is_restart_due.store(false, Ordering::Relaxed);
        if let Err(error) = self.pkcs11.clone().finalize() {
            // It may have failed to be initialised the last time.
            let error = describe(&error);
            tracing::debug!(module = %self.path.display(), error, "module not finalised");
        }
        if let Err(error) = self.initialise() {
            // Whoever needs the module next tries again.
            let error = describe(&error);
            tracing::warn!(module = %self.path.display(), error, "module not initialised");
        }
        Ok(true)
    }

    fn initialise(&self) -> Result<(), Ck> {
        // Before, since no session is to be closed after it that was opened earlier.
        self.times_initialised.fetch_add(1, Ordering::SeqCst);
        let one_by_one = start(&self.pkcs11, self.argument.as_ref())?;
        self.one_by_one.store(one_by_one, Ordering::Relaxed);
        *lock(&self.library) = Arc::new(Library::of(&self.pkcs11));
        Ok(())
    }
}

/// Whether two answers name one token.
fn says_the_same(one: &TokenInfo, other: &TokenInfo) -> bool {
    one.token_initialized() == other.token_initialized()
        && one.label() == other.label()
        && one.serial_number() == other.serial_number()
        && one.manufacturer_id() == other.manufacturer_id()
}

/// Initialises a module, and says whether it is to be called by one thread at a time: it says
/// so (`CKR_CANT_LOCK`) where it has no locks of its own (PKCS#11 v2.40 §5.4).
fn start(pkcs11: &Pkcs11, argument: Option<&InitArgument>) -> Result<bool, Ck> {
    let with = |flags| match initialise(pkcs11, flags, argument) {
        Err(Ck::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        other => other,
    };
    match with(CInitializeFlags::OS_LOCKING_OK) {
        Err(Ck::Pkcs11(RvError::CantLock, _)) => {
            with(CInitializeFlags::empty())?;
            Ok(true)
        }
        other => other.map(|()| false),
    }
}
