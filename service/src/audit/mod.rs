//! The log of who used which key: two lines for each use, one for each refusal.
//!
//! The line *begin* is written before the device is asked and *end* after, with one id. The lines
//! are JSON, and each holds the hash of the one before it. `docs/audit.md` has the format, and what
//! it does not defend against.
//!
//! | module | idea |
//! | --- | --- |
//! | `line` | what a line says |
//! | `file` | the file that lines are appended to: its chain, its syncs, its rotation |
//! | `found` | the file as a crash left it |
//! | `journal` | the journal, which gets the same |
//! | `refusals` | which refusals have a line |
//! | `seal` | signatures over the chain |
//! | [`verify`] | finds what was changed |

mod file;
mod found;
mod journal;
mod line;
mod refusals;
mod seal;
pub mod verify;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use claviger_engine::EngineError;
use claviger_token::TokenId;
use claviger_token::sync::lock;
use sha2::{Digest, Sha256};

use self::file::LogFile;
use self::line::Content;
use self::refusals::Refusals;
use crate::Caller;

pub use self::journal::{JOURNAL_SOCKET, Journal};
pub use self::seal::Sealer;

/// So often the file is brought to the disk, if something was written.
const SYNC_EACH: Duration = Duration::from_secs(1);

/// The operations after which the lines are on the disk before the caller is told.
const DURABLE: [&str; 8] = [
    "connect",
    "delete",
    "generate",
    "grant-add",
    "grant-remove",
    "lock",
    "sign-evidence",
    "unlock",
];

/// The id of a use that is not in the log.
const NOT_WRITTEN: u64 = 0;

/// How the log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSettings {
    /// The file.
    pub file: PathBuf,
    /// Whether keys are used even if nothing can be written.
    pub is_best_effort: bool,
    /// A file of more bytes is moved aside, and another one begun.
    pub longest: u64,
}

impl AuditSettings {
    /// The default for a file: nothing is signed that is not written down; 64 MiB.
    pub fn of(file: impl Into<PathBuf>) -> Self {
        AuditSettings {
            file: file.into(),
            is_best_effort: false,
            longest: 64 << 20,
        }
    }
}

/// Why something is not written down, and so was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The file cannot be written.
    #[error("the audit log `{}` cannot be written: {reason}", path.display())]
    Unavailable {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// It must be kept, and there is no place for it.
    #[error("the audit log is required, and there is no place for it: no file is named, and {why}")]
    NoPlace {
        /// Why it is not in the journal.
        why: String,
    },
    /// The identity that is to seal it does not.
    #[error("`{identity}` cannot seal the audit log: {reason}")]
    CannotSeal {
        /// The identity.
        identity: String,
        /// Why not.
        reason: String,
    },
}

impl AuditError {
    /// A stable code: see ERRORS.md.
    pub fn code(&self) -> &'static str {
        match self {
            AuditError::Unavailable { .. } => "audit-unavailable",
            AuditError::NoPlace { .. } => "audit-no-place",
            AuditError::CannotSeal { .. } => "audit-cannot-seal",
        }
    }
}

/// What a key is to be used for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Use<'a> {
    /// The identity; empty where there is none.
    pub identity: &'a str,
    /// `sign`, `decrypt`, `generate` …
    pub operation: &'a str,
    /// The name of the purpose, with the namespace of an SSH signature: `sshsig:file`.
    pub purpose: &'a str,
    /// The SHA-256 of what is to be signed, where it is known already.
    pub digest: Option<&'a [u8]>,
    /// The token, where it is known already.
    pub token: Option<&'a TokenId>,
    /// Whether a person was asked, and confirmed it.
    pub is_confirmed: bool,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was not, with the code of the error.
    Failed(&'static str),
}

impl Outcome {
    /// That of a call of the node.
    pub fn of<T>(result: &Result<T, EngineError>) -> Self {
        match result {
            Ok(_) => Outcome::Done,
            Err(error) => Outcome::Failed(error.code()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Failed(code) => code,
        }
    }
}

/// The SHA-256 of what is signed, for [`Use::digest`].
pub fn digest_of(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

/// The log. Clones are the same one.
#[derive(Clone)]
pub struct Audit {
    file: Option<Arc<Shared>>,
    journal: Option<Arc<Journal>>,
    is_best_effort: Arc<AtomicBool>,
    refusals: Arc<Mutex<Refusals>>,
}

struct Shared {
    settings: AuditSettings,
    file: Mutex<LogFile>,
    /// Held by who syncs the file. Locked before `file`, which nobody holds while a disk works.
    syncing: Mutex<()>,
    /// Ends the thread that syncs when it is dropped.
    _syncing: Sender<()>,
    /// Told when so much was written that it is time for a seal.
    is_time: tokio::sync::Notify,
}

impl Audit {
    /// None: nothing is written.
    pub fn off() -> Self {
        Audit {
            file: None,
            journal: None,
            is_best_effort: Arc::default(),
            refusals: Arc::default(),
        }
    }

    /// The journal alone. Unless it is kept as far as possible only, nothing is signed that the
    /// journal does not take.
    pub fn to_journal(journal: Journal, is_best_effort: bool) -> Self {
        Audit {
            journal: Some(Arc::new(journal)),
            is_best_effort: Arc::new(is_best_effort.into()),
            ..Audit::off()
        }
    }

    /// The file, and the journal as far as it takes lines.
    #[must_use]
    pub fn with_journal(mut self, journal: Option<Journal>) -> Self {
        self.journal = journal.map(Arc::new);
        self
    }

    /// Opens the file, or makes it, and goes on with its chain. A last line that was cut short by a
    /// crash is moved to a file beside it.
    ///
    /// # Errors
    /// [`AuditError::Unavailable`]: also if another process has it open, others can write to it, or
    /// it is no log.
    pub fn open(settings: AuditSettings) -> Result<Self, AuditError> {
        let file = LogFile::open(&settings.file, settings.longest)?;
        let (syncing, ended) = channel();
        let shared = Arc::new(Shared {
            settings,
            file: Mutex::new(file),
            syncing: Mutex::new(()),
            _syncing: syncing,
            is_time: tokio::sync::Notify::new(),
        });
        let of = Arc::downgrade(&shared);
        let started = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || sync_regularly(&of, &ended));
        match started {
            Ok(_) => Ok(Audit {
                is_best_effort: Arc::new(shared.settings.is_best_effort.into()),
                file: Some(shared),
                ..Audit::off()
            }),
            Err(error) => Err(AuditError::Unavailable {
                path: shared.settings.file.clone(),
                reason: error.to_string(),
            }),
        }
    }

    /// Whether keys are used from now on even if nothing can be written.
    pub fn as_far_as_possible(&self, is_best_effort: bool) {
        self.is_best_effort.store(is_best_effort, Relaxed);
    }

    /// `off`, `journal` alone, `best-effort` or `required`, and why it cannot be written, if it
    /// cannot.
    pub fn status(&self) -> (&'static str, Option<String>) {
        match (&self.file, &self.journal) {
            (None, None) => ("off", None),
            (None, Some(journal)) => ("journal", journal.failure()),
            (Some(shared), _) => {
                let mode = match self.is_best_effort.load(Relaxed) {
                    true => "best-effort",
                    false => "required",
                };
                (mode, lock(&shared.file).failure())
            }
        }
    }

    /// Writes that a key is about to be used. Blocks for a write, and where the operation destroys
    /// or grants something until it is on the disk.
    ///
    /// # Errors
    /// [`AuditError::Unavailable`]: the key is not to be used. None where the log is kept as far as
    /// possible.
    pub fn begin(&self, caller: &Caller, what: &Use<'_>) -> Result<Entry, AuditError> {
        let is_durable = DURABLE.contains(&what.operation);
        self.count_refusals(Some(Instant::now()))?;
        let id = self.write(is_durable, || Content::begin(caller, what))?;
        Ok(Entry {
            log: self.clone(),
            id,
            is_durable,
            digest: None,
            identity: String::new(),
            token: None,
            is_confirmed: false,
            outcome: None,
        })
    }

    /// Writes that something was refused. Of many refusals of one user within a second most are
    /// counted, and their number is written with a later line.
    ///
    /// # Errors
    /// As [`Audit::begin`].
    pub fn refused(&self, caller: &Caller, what: &Use<'_>, code: &str) -> Result<(), AuditError> {
        let now = Instant::now();
        self.count_refusals(Some(now))?;
        if !lock(&self.refusals).has_line(caller, now) {
            return Ok(());
        }
        let written = self.write(false, || Content::refused(caller, what, code));
        written.map(drop)
    }

    /// Moves the file aside and begins another one; or, where it was moved already, begins one.
    ///
    /// # Errors
    /// [`AuditError::Unavailable`].
    pub fn rotate(&self) -> Result<(), AuditError> {
        match &self.file {
            None => Ok(()),
            Some(shared) => lock(&shared.file).rotate(),
        }
    }

    /// Writes that the log ends here, and brings it to the disk. What is written later goes on.
    ///
    /// # Errors
    /// [`AuditError::Unavailable`].
    pub fn close(&self) -> Result<(), AuditError> {
        self.count_refusals(None)?;
        self.write_all(true, Content::close).map(drop)
    }

    /// Writes how many were refused without a line of their own.
    fn count_refusals(&self, now: Option<Instant>) -> Result<(), AuditError> {
        let counted = lock(&self.refusals).end(now);
        for (caller, count) in counted {
            self.write(false, || Content::refused_more(&caller, count))?;
        }
        Ok(())
    }

    /// Writes a line, and tells its number. What is written as far as possible may be lost.
    fn write<'a>(
        &self,
        is_durable: bool,
        content: impl Fn() -> Content<'a>,
    ) -> Result<u64, AuditError> {
        match self.write_all(is_durable, content) {
            Err(error) if self.is_best_effort.load(Relaxed) => {
                tracing::warn!(%error, "a use of a key is not in the audit log");
                Ok(NOT_WRITTEN)
            }
            written => written,
        }
    }

    /// To the file, and to the journal, which only has to take it where there is no file.
    fn write_all<'a>(
        &self,
        is_durable: bool,
        content: impl Fn() -> Content<'a>,
    ) -> Result<u64, AuditError> {
        let number = match (&self.file, &self.journal) {
            (Some(shared), _) => shared.write(is_durable, content())?,
            (None, Some(journal)) => journal.number(),
            (None, None) => return Ok(NOT_WRITTEN),
        };
        let Some(journal) = &self.journal else {
            return Ok(number);
        };
        match journal.tell(number, content()) {
            Err(error) if self.file.is_some() => {
                tracing::warn!(%error, "a line of the audit log is not in the journal");
                Ok(number)
            }
            told => told.map(|()| number),
        }
    }
}

impl Shared {
    /// Writes a line, and tells its number.
    fn write(&self, is_durable: bool, content: Content<'_>) -> Result<u64, AuditError> {
        let mut file = lock(&self.file);
        let number = file.append(|_| content)?;
        if file.wants_seal() {
            self.is_time.notify_one();
        }
        drop(file);
        if is_durable {
            self.sync()?;
        }
        Ok(number)
    }

    /// Brings what was written to the disk. Lines can be written meanwhile.
    fn sync(&self) -> Result<(), AuditError> {
        // Whoever waits here finds most often that its lines are there already.
        let _syncing = lock(&self.syncing);
        let Some(what) = lock(&self.file).take_unsynced()? else {
            return Ok(());
        };
        let synced = what.sync();
        lock(&self.file).synced(&what, &synced)
    }
}

/// A use of a key that has begun. Dropped without its end it ends as `unknown`.
pub struct Entry {
    log: Audit,
    id: u64,
    is_durable: bool,
    digest: Option<[u8; 32]>,
    identity: String,
    token: Option<TokenId>,
    is_confirmed: bool,
    outcome: Option<Outcome>,
}

impl Entry {
    /// Adds what was signed, where that is known only now: the SHA-256.
    pub fn signed(&mut self, digest: [u8; 32]) {
        self.digest = Some(digest);
    }

    /// Adds whose key it was, where that is known only now.
    pub fn by(&mut self, identity: &str) {
        identity.clone_into(&mut self.identity);
    }

    /// Adds whether a person was asked, and confirmed it, where that is known only now.
    pub fn confirmed(&mut self, is_confirmed: bool) {
        self.is_confirmed = is_confirmed;
    }

    /// Adds the token, where that is known only now.
    pub fn on(&mut self, token: &TokenId) {
        self.token = Some(token.clone());
    }

    /// Writes the end. Where that fails it is told in the log of the daemon, and nothing more is
    /// begun until lines can be written again.
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.id == NOT_WRITTEN {
            return;
        }
        let outcome = self.outcome.map_or("unknown", Outcome::name);
        let (digest, token) = (self.digest.as_ref(), self.token.as_ref());
        let content = || {
            let end = Content::end(self.id, &self.identity, outcome, (digest, token));
            end.confirmed(self.is_confirmed)
        };
        if let Err(error) = self.log.write_all(self.is_durable, content) {
            tracing::error!(%error, id = self.id, "the end of a use is not in the audit log");
        }
    }
}

fn sync_regularly(log: &std::sync::Weak<Shared>, ended: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(SYNC_EACH) {
        let Some(shared) = log.upgrade() else { return };
        if let Err(error) = shared.sync() {
            tracing::error!(%error, "the audit log is not on the disk");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn while_lines_are_brought_to_the_disk_others_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::open(AuditSettings::of(folder.path().join("log"))).unwrap();
        let caller = Caller {
            uid: 1001,
            gid: 100,
            socket: "api".into(),
        };
        let of = |operation| Use {
            operation,
            ..Use::default()
        };
        let shared = Arc::clone(audit.file.as_ref().unwrap());
        let next = || lock(&shared.file).to_seal().map(|(last, _)| last);
        std::thread::scope(|threads| {
            // The disk works.
            let syncing = lock(&shared.syncing);
            let before = next();
            let (told, tells) = channel();
            let (other, by) = (audit.clone(), caller.clone());
            threads.spawn(move || {
                let begun = other.begin(&by, &of("sign-evidence")).unwrap();
                told.send(()).unwrap();
                begun.end(Outcome::Done);
            });
            let limit = Instant::now() + Duration::from_secs(60);
            while next() == before {
                assert!(Instant::now() < limit, "its line was not written");
                std::thread::yield_now();
            }
            // The one that waits for the disk is not told, and holds nobody up.
            audit
                .begin(&caller, &of("sign"))
                .unwrap()
                .end(Outcome::Done);
            assert!(tells.try_recv().is_err());
            drop(syncing);
            tells.recv_timeout(Duration::from_secs(60)).unwrap();
        });
    }
}
