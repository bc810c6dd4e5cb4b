//! The identities, durable: one SQLite file, safe for several processes at once.
//!
//! Before a token is touched an [`Intent`] is written, and what came of it after. An
//! intent whose writer is dead is settled by looking at the token: a generation is
//! undone, a deletion is done. So neither a key without an identity nor an identity
//! without a key remains.
//!
//! The registry holds public keys and the names of tokens and slots, and no secret; of
//! PINs that tokens refused it holds a [slow hash](crate::refused).

mod contacts;
mod evidence;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use claviger_token::{Fingerprint, KeyUse, PublicKey, SlotId, TokenId};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use crate::lease::Lease;
use crate::refused::RefusedPinRecords;
use crate::types::{KeyInfo, NodeId, Origin, engine_name};
use crate::{Backend, Capabilities, EngineId, IdentityInfo};

pub use contacts::ContactError;
pub(crate) use contacts::{Known, Revision};

/// `CLAV`: tells a registry from any other SQLite file.
const APPLICATION_ID: i32 = 0x434c_4156;
/// The version of the schema that this program writes.
const SCHEMA_VERSION: i32 = 2;
/// How long to wait for another process that is writing.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// The lease of an intent that was left open.
const NOBODY: &str = "";

/// The identities of one home folder, or of one process.
pub struct Registry {
    writer: Arc<Mutex<Connection>>,
    /// Another connection to the same file: who looks something up does not wait for
    /// those who write.
    reader: Arc<Mutex<Connection>>,
    refused_pins: RefusedPinRecords,
    lease: Lease,
    /// Intents that this process is working on at this moment.
    under_way: UnderWay,
    /// How often this process has written.
    writes: AtomicU64,
}

type UnderWay = Arc<Mutex<HashSet<i64>>>;

/// The right to work on an intent. As long as somebody in this process holds it, nobody
/// settles the intent.
#[derive(Debug)]
pub(crate) struct Claim {
    id: i64,
    under_way: UnderWay,
}

impl Claim {
    fn new(id: i64, under_way: &UnderWay) -> Arc<Self> {
        locked(under_way).insert(id);
        Arc::new(Claim {
            id,
            under_way: Arc::clone(under_way),
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        locked(&self.under_way).remove(&self.id);
    }
}

/// A panic elsewhere leaves nothing half done: a transaction is rolled back when it is
/// dropped.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why the registry could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// There is something else where the home folder should be.
    #[error("`{}` is not a folder", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// There is a file where the registry should be, and it is none.
    #[error("`{}` is not a registry of Claviger", path.display())]
    NotARegistry {
        /// The path.
        path: PathBuf,
    },
    /// The registry was written by a newer program.
    #[error("the registry has version {found}; this program knows version {known}")]
    Newer {
        /// The version in the file.
        found: i32,
        /// The version that this program knows.
        known: i32,
    },
    /// No space is left.
    #[error("no space is left for the registry")]
    DiskFull,
    /// The file or its folder cannot be written to.
    #[error("the registry cannot be written to")]
    ReadOnly,
    /// Another process has been writing for too long.
    #[error("another process holds the registry")]
    Busy,
    /// What is in it makes no sense.
    #[error("the registry is damaged: {reason}")]
    Damaged {
        /// What makes no sense.
        reason: String,
    },
    /// Any other failure of the file system or of SQLite.
    #[error("the registry cannot be used: {reason}")]
    Other {
        /// What the system said.
        reason: String,
    },
}

impl RegistryError {
    /// One sentence for a person: what to do next. Empty where nothing is to be said.
    pub fn hint(&self) -> String {
        match self {
            RegistryError::NotAFolder { .. } | RegistryError::NotARegistry { .. } => {
                "name another folder with --home or CLAVIGER_HOME".into()
            }
            RegistryError::Newer { .. } => "use the newer program; nothing was changed".into(),
            RegistryError::DiskFull => "free some space; nothing is lost".into(),
            RegistryError::ReadOnly => "check the permissions of the home folder".into(),
            RegistryError::Busy => "try again in a moment".into(),
            RegistryError::Damaged { .. } => {
                "put registry.sqlite of a backup in its place; a key that is on a token can be \
                 connected again: `claviger connect --to FINGERPRINT`"
                    .into()
            }
            RegistryError::Other { .. } => String::new(),
        }
    }

    pub(crate) fn io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => RegistryError::DiskFull,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => RegistryError::ReadOnly,
            _ => RegistryError::Other {
                reason: error.to_string(),
            },
        }
    }
}

impl From<rusqlite::Error> for RegistryError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        let extended = error.sqlite_error().map(|e| e.extended_code);
        match error.sqlite_error_code() {
            // The index of the write-ahead log could not grow.
            _ if extended == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) => RegistryError::DiskFull,
            Some(ErrorCode::DiskFull) => RegistryError::DiskFull,
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                RegistryError::ReadOnly
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => RegistryError::Busy,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => RegistryError::Damaged {
                reason: error.to_string(),
            },
            _ => match error {
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..) => RegistryError::Damaged {
                    reason: error.to_string(),
                },
                _ => RegistryError::Other {
                    reason: error.to_string(),
                },
            },
        }
    }
}

/// What a process is about to do on a token, or was when it died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    pub(crate) id: i64,
    /// What.
    pub action: Action,
    /// For which identity.
    pub identity: EngineId,
    /// On which token.
    pub token: TokenId,
    /// How the token is reached.
    pub backend: String,
    /// In which slots.
    pub slots: Vec<SlotId>,
}

/// What an [`Intent`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Keys are being made.
    Generate,
    /// Keys are being destroyed.
    Delete,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Action::Generate => "generate",
            Action::Delete => "delete",
        }
    }
}

/// A key of an identity, and how its token is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRecord {
    pub(crate) id: i64,
    pub(crate) info: KeyInfo,
    pub(crate) backend: String,
}

/// Why an intent was not written.
#[derive(Debug)]
pub(crate) enum BeginError {
    Exists,
    /// A contact has the name.
    IsContact,
    InProgress,
    /// The key belongs to an identity.
    HasOwner {
        fingerprint: Fingerprint,
        owner: EngineId,
    },
    /// Somebody else was given one of the slots in the meantime.
    SlotTaken {
        token: TokenId,
        slot: SlotId,
    },
    Registry(RegistryError),
}

impl<E: Into<RegistryError>> From<E> for BeginError {
    fn from(error: E) -> Self {
        BeginError::Registry(error.into())
    }
}

/// An entry that is about to be made.
pub(crate) struct NewIdentity<'a> {
    pub(crate) who: &'a EngineId,
    pub(crate) backend: &'a Backend,
    pub(crate) capabilities: Capabilities,
    /// Whether the keys die with this process.
    pub(crate) volatile: bool,
    /// Whether the token derives the keys, so that they can be had again.
    pub(crate) derived: bool,
}

type Result<T, E = RegistryError> = std::result::Result<T, E>;

impl Registry {
    /// Opens the registry in `home`, or makes one there.
    ///
    /// # Errors
    /// [`RegistryError`]. Nothing is changed in a folder or file that is not Claviger's.
    pub fn open(home: &Path) -> Result<Self> {
        if home.exists() && !home.is_dir() {
            return Err(RegistryError::NotAFolder { path: home.into() });
        }
        create_private_folder(home).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotADirectory | std::io::ErrorKind::AlreadyExists => {
                RegistryError::NotAFolder { path: home.into() }
            }
            _ => RegistryError::io(&e),
        })?;
        let path = home.join("registry.sqlite");
        let is_new = !path.exists();
        let connection = Connection::open(&path)?;
        if is_new {
            make_private(&path).map_err(|e| RegistryError::io(&e))?;
        }
        prepare(&connection).map_err(|e| match e {
            RegistryError::Damaged { .. } => RegistryError::NotARegistry { path: path.clone() },
            other => other,
        })?;
        let run = home.join("run");
        let lease = Lease::hold(&run).map_err(|e| RegistryError::io(&e))?;
        lease.sweep();
        let reader = Connection::open(&path)?;
        reader.busy_timeout(BUSY_TIMEOUT)?;
        let reader = Arc::new(Mutex::new(reader));
        let writer = Arc::new(Mutex::new(connection));
        let registry = Registry::with(writer, reader, lease, Some(run));
        registry.forget_volatile()?;
        Ok(registry)
    }

    /// A registry that lives as long as this process.
    ///
    /// # Errors
    /// [`RegistryError::Other`] where SQLite has no memory.
    pub fn in_memory() -> Result<Self> {
        let connection = Connection::open_in_memory()?;
        prepare(&connection)?;
        let only = Arc::new(Mutex::new(connection));
        let lease = Lease::unseen();
        Ok(Registry::with(Arc::clone(&only), only, lease, None))
    }

    fn with(
        writer: Arc<Mutex<Connection>>,
        reader: Arc<Mutex<Connection>>,
        lease: Lease,
        run: Option<PathBuf>,
    ) -> Self {
        Registry {
            refused_pins: RefusedPinRecords::new(Arc::clone(&writer), run),
            writer,
            reader,
            lease,
            under_way: UnderWay::default(),
            writes: AtomicU64::default(),
        }
    }

    /// For one query; [`Registry::read`] is for several.
    fn db(&self) -> MutexGuard<'_, Connection> {
        locked(&self.reader)
    }

    /// Reads from one moment.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let db = self.db();
        let moment = db.unchecked_transaction()?;
        work(&moment)
    }

    fn write<T, E: From<rusqlite::Error>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut db = locked(&self.writer);
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = work(&transaction)?;
        transaction.commit()?;
        self.writes.fetch_add(1, Ordering::Relaxed);
        Ok(value)
    }

    /// The PINs that tokens refused.
    pub fn refused_pins(&self) -> &RefusedPinRecords {
        &self.refused_pins
    }

    /// All identities, by name.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn identities(&self) -> Result<Vec<(EngineId, IdentityInfo)>> {
        self.read(|db| {
            // What is volatile is of no use to any but its own process.
            let ids: Vec<EngineId> = db
                .prepare_cached(
                    "SELECT node, name FROM identity WHERE lease IS NULL OR lease = ? \
                     ORDER BY name, node",
                )?
                .query_map([self.lease.name()], |row| engine_id(row, "node", "name"))?
                .collect::<Result<_, _>>()?;
            ids.into_iter()
                .filter_map(|id| identity(db, &id).transpose().map(|info| Ok((id, info?.1))))
                .collect()
        })
    }

    fn is_own(&self, lease: &str) -> bool {
        lease == self.lease.name()
    }

    /// What is known of one identity.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn identity(&self, who: &EngineId) -> Result<Option<IdentityInfo>> {
        self.read(|db| Ok(identity(db, who)?.map(|(_, info)| info)))
    }

    /// The identity that a key belongs to, if it is one of a living identity.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn owner_of(&self, fingerprint: &Fingerprint) -> Result<Option<EngineId>> {
        Ok(owner_of(&self.db(), fingerprint)?)
    }

    /// The key that an engine serves: the living one, else the last that was deleted;
    /// and those who are connected to an earlier key of the same engine.
    pub(crate) fn engine(&self, engine: &str) -> Result<Option<(KeyRecord, Vec<EngineId>)>> {
        self.read(|db| {
            let key = db
                .prepare_cached(
                    "SELECT * FROM key WHERE engine = ? ORDER BY deleted, id DESC LIMIT 1",
                )?
                .query_row([engine], key_record)
                .optional()?;
            let Some(key) = key else { return Ok(None) };
            let stale = db
                .prepare_cached(
                    "SELECT node, name FROM identity JOIN key \
                     ON key.id IN (identity.sign_key, identity.decrypt_key) \
                     WHERE key.engine = ? AND key.id <> ?",
                )?
                .query_map(params![engine, key.id], |row| {
                    engine_id(row, "node", "name")
                })?
                .collect::<Result<_, _>>()?;
            Ok(Some((key, stale)))
        })
    }

    /// Writes down that keys are about to be made in `slots`, or destroyed there.
    pub(crate) fn begin(
        &self,
        action: Action,
        who: &EngineId,
        token: &TokenId,
        backend: &str,
        slots: &[SlotId],
    ) -> Result<(Intent, Arc<Claim>), BeginError> {
        let claim = self.write::<_, BeginError>(|db| {
            let (node, name) = key_of(who);
            match action {
                Action::Generate => {
                    check_new(db, who)?;
                    check_engines(db, who, &[KeyUse::Sign, KeyUse::Decrypt])?;
                }
                // A dead entry that another process is just removing.
                Action::Delete if !entry_exists(db, who)? => return Err(BeginError::InProgress),
                _ => {}
            }
            let others: Vec<(i64, String)> = db
                .prepare_cached("SELECT id, lease FROM intent WHERE node = ? AND name = ?")?
                .query_map(params![node, name], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?;
            if others
                .iter()
                .any(|(id, lease)| self.is_under_way(*id, lease))
            {
                return Err(BeginError::InProgress);
            }
            if action == Action::Generate {
                let taken = taken_slots(db, token)?;
                let is_taken = |slot: &SlotId| taken.iter().any(|t| t.as_str() == slot.as_str());
                if let Some(slot) = slots.iter().find(|slot| is_taken(slot)) {
                    return Err(BeginError::SlotTaken {
                        token: token.clone(),
                        slot: slot.clone(),
                    });
                }
            }
            db.prepare_cached(
                "INSERT INTO intent \
                 (action, lease, node, name, kind, manufacturer, serial, backend, slots) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                action.name(),
                self.lease.name(),
                node,
                name,
                token.kind,
                token.manufacturer,
                token.serial,
                backend,
                json(&slots),
            ])?;
            Ok(Claim::new(db.last_insert_rowid(), &self.under_way))
        })?;
        let intent = Intent {
            id: claim.id,
            action,
            identity: who.clone(),
            token: token.clone(),
            backend: backend.into(),
            slots: slots.into(),
        };
        Ok((intent, claim))
    }

    /// The right to settle an intent; none where somebody else has it, or has settled it.
    pub(crate) fn claim(&self, intent: &Intent) -> Result<Option<Arc<Claim>>> {
        self.write(|db| {
            let lease: Option<String> = db
                .prepare_cached("SELECT lease FROM intent WHERE id = ?")?
                .query_row([intent.id], |row| row.get(0))
                .optional()?;
            match lease {
                Some(lease) if !self.is_under_way(intent.id, &lease) => {}
                _ => return Ok(None),
            }
            db.prepare_cached("UPDATE intent SET lease = ? WHERE id = ?")?
                .execute(params![self.lease.name(), intent.id])?;
            Ok(Some(Claim::new(intent.id, &self.under_way)))
        })
    }

    /// The slots of `token` that were given to keys, now or before.
    pub(crate) fn taken_slots(&self, token: &TokenId) -> Result<Vec<SlotId>> {
        self.read(|db| Ok(taken_slots(db, token)?))
    }

    fn is_under_way(&self, id: i64, lease: &str) -> bool {
        match lease {
            NOBODY => false,
            _ if self.is_own(lease) => locked(&self.under_way).contains(&id),
            _ => self.lease.is_alive(lease),
        }
    }

    /// The keys are made: enters the identity and forgets the intent, in one step.
    pub(crate) fn finish_generate(
        &self,
        intent: &Intent,
        new: &NewIdentity<'_>,
        keys: &[KeyInfo],
    ) -> Result<(), BeginError> {
        self.write(|db| {
            self.insert_with_keys(db, new, &intent.backend, keys)?;
            match remove_intent(db, intent)? {
                true => Ok(()),
                // Somebody took us for dead, and has destroyed the keys or is going to.
                false => Err(BeginError::InProgress),
            }
        })
    }

    /// Enters an identity that is bound to a key found on a token.
    pub(crate) fn insert_adopted(
        &self,
        new: &NewIdentity<'_>,
        backend: &str,
        key: &KeyInfo,
    ) -> Result<(), BeginError> {
        self.write(|db| {
            let fingerprint = key.public_key.fingerprint();
            if let Some(owner) = owner_of(db, &fingerprint)? {
                return Err(BeginError::HasOwner { fingerprint, owner });
            }
            // A key that is being made, or is to be undone.
            let intents = intents_of(db, &key.token)?;
            let mut spoken_for = intents.iter().flat_map(|intent| &intent.slots);
            if spoken_for.any(|slot| slot.as_str() == key.slot.as_str()) {
                return Err(BeginError::InProgress);
            }
            self.insert_with_keys(db, new, backend, std::slice::from_ref(key))
        })
    }

    fn insert_with_keys(
        &self,
        db: &Transaction<'_>,
        new: &NewIdentity<'_>,
        backend: &str,
        keys: &[KeyInfo],
    ) -> Result<(), BeginError> {
        let usages: Vec<KeyUse> = keys.iter().map(|key| key.usage).collect();
        check_engines(db, new.who, &usages)?;
        let (mut sign, mut decrypt) = (None, None);
        for key in keys {
            let (node, name) = key_of(new.who);
            db.prepare_cached(
                "INSERT INTO key (usage, engine, kind, manufacturer, serial, backend, slot, \
                 public_key, fingerprint, origin, protection, attestation, owner_node, owner_name, derived) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                key.usage.name(),
                &*engine_name(key.usage, new.who),
                key.token.kind,
                key.token.manufacturer,
                key.token.serial,
                backend,
                key.slot.as_str(),
                key.public_key.to_text(),
                key.public_key.fingerprint().to_string(),
                origin_name(key.origin),
                key.protection.as_ref().and_then(json),
                key.attestation.as_ref().and_then(json),
                node,
                name,
                new.derived,
            ])?;
            match key.usage {
                KeyUse::Sign => sign = Some(db.last_insert_rowid()),
                KeyUse::Decrypt => decrypt = Some(db.last_insert_rowid()),
            }
        }
        self.insert(db, new, sign, decrypt)
    }

    /// Enters an identity that uses the keys of `original`.
    pub(crate) fn insert_connected(
        &self,
        new: &NewIdentity<'_>,
        original: &EngineId,
    ) -> Result<(), BeginError> {
        self.write(|db| {
            let Some((keys, _)) = identity(db, original)? else {
                return Err(BeginError::InProgress);
            };
            let id = |usage| {
                keys.iter()
                    .find(|k| k.info.usage == usage && new.capabilities.include(usage))
                    .map(|k| k.id)
            };
            self.insert(db, new, id(KeyUse::Sign), id(KeyUse::Decrypt))
        })
    }

    fn insert(
        &self,
        db: &Transaction<'_>,
        new: &NewIdentity<'_>,
        sign: Option<i64>,
        decrypt: Option<i64>,
    ) -> Result<(), BeginError> {
        check_new(db, new.who)?;
        let (node, name) = key_of(new.who);
        db.prepare_cached(
            "INSERT INTO identity (node, name, backend, capabilities, sign_key, decrypt_key, lease) \
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            node,
            name,
            new.backend.to_string(),
            new.capabilities.to_string(),
            sign,
            decrypt,
            new.volatile.then(|| self.lease.name()),
        ])?;
        Ok(())
    }

    /// Nothing of the intent is left on the token: forgets it.
    pub(crate) fn abandon(&self, intent: &Intent) -> Result<()> {
        self.write(|db| remove_intent(db, intent).map(drop))
    }

    /// This process stops working on an intent that it leaves open, for any process to
    /// settle. Where that cannot be written down, others wait until this one ends.
    pub(crate) fn leave_open(&self, intent: &Intent) {
        let left = self.write::<_, RegistryError>(|db| {
            db.prepare_cached("UPDATE intent SET lease = ? WHERE id = ? AND lease = ?")?
                .execute(params![NOBODY, intent.id, self.lease.name()])?;
            Ok(())
        });
        if let Err(error) = left {
            tracing::debug!(identity = %intent.identity, %error, "an intent stays ours");
        }
    }

    /// How the token that an identity's keys are on is reached.
    pub(crate) fn reached_by(&self, who: &EngineId) -> Result<Option<String>> {
        let found = self.read(|db| Ok(identity(db, who)?))?;
        Ok(found
            .and_then(|(keys, _)| keys.into_iter().next())
            .map(|key| key.backend))
    }

    /// The keys are destroyed: removes the entry and forgets the intent, in one step.
    pub(crate) fn finish_delete(&self, intent: &Intent) -> Result<()> {
        self.write::<_, RegistryError>(|db| {
            // An entry with other keys is another identity, made since.
            let is_it = identity(db, &intent.identity)?.is_some_and(|(keys, _)| {
                keys.iter().all(|k| {
                    k.info.token == intent.token
                        && intent
                            .slots
                            .iter()
                            .any(|slot| slot.as_str() == k.info.slot.as_str())
                })
            });
            if is_it {
                remove_entry(db, &intent.identity)?;
            }
            remove_intent(db, intent)?;
            Ok(())
        })
    }

    /// Removes an entry that has no keys of its own to destroy, and was like this when it
    /// was looked at. False: it is another one by now.
    pub(crate) fn release(&self, who: &EngineId, seen: &IdentityInfo) -> Result<bool> {
        self.write(|db| {
            match identity(db, who)? {
                Some((_, now)) if now != *seen => return Ok(false),
                _ => remove_entry(db, who)?,
            }
            Ok(true)
        })
    }

    /// The intents that nobody works on any more.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn open_intents(&self) -> Result<Vec<Intent>> {
        let all: Vec<(Intent, String)> = self
            .db()
            .prepare_cached("SELECT * FROM intent ORDER BY id")?
            .query_map([], |row| Ok((intent(row)?, row.get("lease")?)))?
            .collect::<Result<_, _>>()?;
        Ok(all
            .into_iter()
            .filter(|(intent, lease)| !self.is_under_way(intent.id, lease))
            .map(|(intent, _)| intent)
            .collect())
    }

    /// Forgets the identities whose keys died with their process.
    fn forget_volatile(&self) -> Result<()> {
        let select = "SELECT node, name, lease FROM identity WHERE lease IS NOT NULL";
        if !self.db().prepare_cached(select)?.exists([])? {
            return Ok(());
        }
        self.write(|db| {
            let volatile: Vec<(EngineId, String)> = db
                .prepare_cached(select)?
                .query_map([], |row| {
                    Ok((engine_id(row, "node", "name")?, row.get("lease")?))
                })?
                .collect::<Result<_, _>>()?;
            for (who, lease) in volatile {
                if !self.lease.is_alive(&lease) {
                    remove_entry(db, &who)?;
                }
            }
            Ok(())
        })
    }
}

fn create_private_folder(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// SQLite gives the files that it puts beside it the same permissions. The file is not
/// opened here: closing it would take the locks away that SQLite has on it.
#[cfg(unix)]
fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

#[cfg(not(unix))]
fn make_private(_: &Path) -> std::io::Result<()> {
    Ok(())
}

fn prepare(db: &Connection) -> Result<()> {
    db.busy_timeout(BUSY_TIMEOUT)?;
    let pragma = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    // All from one moment: another process may be making the tables.
    db.execute_batch("BEGIN")?;
    let seen = pragma("application_id").and_then(|application| {
        let empty: bool = db.query_row(
            "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)",
            [],
            |row| row.get(0),
        )?;
        Ok((application, pragma("user_version")?, empty))
    });
    // SQLite has rolled back by itself after some errors.
    let _ = db.execute_batch("ROLLBACK");
    let (application, version, empty) = seen?;
    if application != APPLICATION_ID && !empty {
        return Err(RegistryError::Damaged {
            reason: "another program's file".into(),
        });
    }
    if version > SCHEMA_VERSION {
        return Err(RegistryError::Newer {
            found: version,
            known: SCHEMA_VERSION,
        });
    }
    switch_to_wal(db)?;
    // An intent must be on the disk before the token is touched.
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    // What is forgotten is overwritten.
    db.pragma_update(None, "secure_delete", true)?;
    if version < SCHEMA_VERSION {
        // Two processes may come here at once; the second finds the first's tables.
        db.execute_batch("BEGIN IMMEDIATE")?;
        let made = pragma("user_version")
            .map_err(RegistryError::from)
            .and_then(|version| {
                if version < SCHEMA_VERSION {
                    if version == 1 {
                        db.execute_batch(
                            "ALTER TABLE key ADD COLUMN derived INTEGER NOT NULL DEFAULT 0",
                        )?;
                    }
                    db.execute_batch(include_str!("schema.sql"))?;
                    db.pragma_update(None, "application_id", APPLICATION_ID)?;
                    db.pragma_update(None, "user_version", SCHEMA_VERSION)?;
                }
                Ok(())
            });
        match made {
            Ok(()) => db.execute_batch("COMMIT")?,
            Err(error) => {
                let _ = db.execute_batch("ROLLBACK");
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Switches to the write-ahead log. SQLite itself does not wait here for another process
/// that does the same.
fn switch_to_wal(db: &Connection) -> Result<()> {
    let give_up = Instant::now() + BUSY_TIMEOUT;
    loop {
        match db
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(RegistryError::from)
        {
            Err(RegistryError::Busy) if Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

/// An id as it stands in the tables.
fn key_of(who: &EngineId) -> (String, &str) {
    (
        who.node
            .as_ref()
            .map(|node| node.0.to_text())
            .unwrap_or_default(),
        &who.name,
    )
}

fn entry_exists(db: &Connection, who: &EngineId) -> rusqlite::Result<bool> {
    let (node, name) = key_of(who);
    db.prepare_cached("SELECT 1 FROM identity WHERE node = ? AND name = ?")?
        .exists(params![node, name])
}

/// Refuses a name that stands for somebody already.
fn check_new(db: &Connection, who: &EngineId) -> Result<(), BeginError> {
    if entry_exists(db, who)? {
        return Err(BeginError::Exists);
    }
    if who.node.is_none() && contacts::contact_of(db, &who.name)?.is_some() {
        return Err(BeginError::IsContact);
    }
    Ok(())
}

/// Refuses a name whose engines' names are taken: an identity of the same name on another
/// node has them.
fn check_engines(db: &Connection, who: &EngineId, usages: &[KeyUse]) -> Result<(), BeginError> {
    let (node, _) = key_of(who);
    let mut taken = db
        .prepare_cached("SELECT 1 FROM key WHERE engine = ? AND NOT deleted AND owner_node <> ?")?;
    for usage in usages {
        if taken.exists(params![&*engine_name(*usage, who), node])? {
            return Err(BeginError::Exists);
        }
    }
    Ok(())
}

fn owner_of(db: &Connection, fingerprint: &Fingerprint) -> rusqlite::Result<Option<EngineId>> {
    db.prepare_cached(
        "SELECT owner_node, owner_name FROM key WHERE fingerprint = ? AND NOT deleted",
    )?
    .query_row([fingerprint.to_string()], |row| {
        engine_id(row, "owner_node", "owner_name")
    })
    .optional()
}

fn identity(
    db: &Connection,
    who: &EngineId,
) -> rusqlite::Result<Option<(Vec<KeyRecord>, IdentityInfo)>> {
    let (node, name) = key_of(who);
    let entry = db
        .prepare_cached("SELECT * FROM identity WHERE node = ? AND name = ?")?
        .query_row(params![node, name], |row| {
            Ok((
                Backend::from(row.get::<_, String>("backend")?),
                parsed::<Capabilities>(row, "capabilities")?,
                row.get::<_, Option<i64>>("sign_key")?,
                row.get::<_, Option<i64>>("decrypt_key")?,
            ))
        })
        .optional()?;
    let Some((backend, capabilities, sign, decrypt)) = entry else {
        return Ok(None);
    };
    let mut keys = Vec::with_capacity(2);
    let (mut commitment_engine, mut decryption_engine) = (None, None);
    for id in [sign, decrypt].into_iter().flatten() {
        let (key, engine) = db
            .prepare_cached("SELECT * FROM key WHERE id = ?")?
            .query_row([id], |row| {
                Ok((key_record(row)?, row.get::<_, String>("engine")?))
            })?;
        match key.info.usage {
            KeyUse::Sign => commitment_engine = Some(EngineId::local(engine)),
            KeyUse::Decrypt => decryption_engine = Some(EngineId::local(engine)),
        }
        keys.push(key);
    }
    let info = IdentityInfo {
        backend,
        capabilities,
        commitment_engine,
        decryption_engine,
        keys: keys.iter().map(|k| k.info.clone()).collect(),
    };
    Ok(Some((keys, info)))
}

/// Removes an entry; its own keys are marked as deleted, and forgotten as soon as no
/// other entry refers to them.
fn remove_entry(db: &Connection, who: &EngineId) -> Result<()> {
    let (node, name) = key_of(who);
    db.prepare_cached("DELETE FROM identity WHERE node = ? AND name = ?")?
        .execute(params![node, name])?;
    db.prepare_cached(
        "INSERT OR IGNORE INTO spent_slot (kind, manufacturer, serial, slot) \
         SELECT kind, manufacturer, serial, slot FROM key \
         WHERE owner_node = ? AND owner_name = ? AND derived",
    )?
    .execute(params![node, name])?;
    db.prepare_cached("UPDATE key SET deleted = 1 WHERE owner_node = ? AND owner_name = ?")?
        .execute(params![node, name])?;
    db.prepare_cached(
        "DELETE FROM key WHERE deleted AND id NOT IN \
         (SELECT sign_key FROM identity WHERE sign_key IS NOT NULL \
          UNION SELECT decrypt_key FROM identity WHERE decrypt_key IS NOT NULL)",
    )?
    .execute([])?;
    Ok(())
}

fn taken_slots(db: &Connection, token: &TokenId) -> rusqlite::Result<Vec<SlotId>> {
    let of_token = params![token.kind, token.manufacturer, token.serial];
    let mut taken: Vec<SlotId> = db
        .prepare_cached(
            "SELECT slot FROM key WHERE kind = ?1 AND manufacturer = ?2 AND serial = ?3 \
             UNION SELECT slot FROM spent_slot \
             WHERE kind = ?1 AND manufacturer = ?2 AND serial = ?3",
        )?
        .query_map(of_token, |row| Ok(SlotId::new(row.get::<_, String>(0)?)))?
        .collect::<Result<_, _>>()?;
    let intents = intents_of(db, token)?;
    taken.extend(intents.into_iter().flat_map(|intent| intent.slots));
    Ok(taken)
}

fn intents_of(db: &Connection, token: &TokenId) -> rusqlite::Result<Vec<Intent>> {
    db.prepare_cached("SELECT * FROM intent WHERE kind = ? AND manufacturer = ? AND serial = ?")?
        .query_map(
            params![token.kind, token.manufacturer, token.serial],
            intent,
        )?
        .collect()
}

/// Whether it was still there.
fn remove_intent(db: &Connection, intent: &Intent) -> Result<bool> {
    let removed = db
        .prepare_cached("DELETE FROM intent WHERE id = ?")?
        .execute([intent.id])?;
    Ok(removed > 0)
}

fn damaged(column: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(
        0,
        rusqlite::types::Type::Text,
        format!("`{column}` cannot be read").into(),
    )
}

fn parsed<T: FromStr>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    row.get::<_, String>(column)?
        .parse()
        .map_err(|_| damaged(column))
}

fn engine_id(row: &Row<'_>, node: &str, name: &str) -> rusqlite::Result<EngineId> {
    let text: String = row.get(node)?;
    let id = match text.as_str() {
        "" => None,
        key => {
            let key = PublicKey::from_text(key).map_err(|_| damaged(node))?;
            Some(NodeId(Arc::new(key)))
        }
    };
    Ok(EngineId {
        node: id,
        name: row.get::<_, String>(name)?.into(),
    })
}

pub(crate) fn token_id(row: &Row<'_>) -> rusqlite::Result<TokenId> {
    Ok(TokenId {
        kind: row.get("kind")?,
        manufacturer: row.get("manufacturer")?,
        serial: row.get("serial")?,
    })
}

fn key_record(row: &Row<'_>) -> rusqlite::Result<KeyRecord> {
    let public_key: String = row.get("public_key")?;
    Ok(KeyRecord {
        id: row.get("id")?,
        backend: row.get("backend")?,
        info: KeyInfo {
            usage: match row.get::<_, String>("usage")?.as_str() {
                "sign" => KeyUse::Sign,
                "decrypt" => KeyUse::Decrypt,
                _ => return Err(damaged("usage")),
            },
            token: token_id(row)?,
            slot: SlotId::new(row.get::<_, String>("slot")?),
            public_key: PublicKey::from_text(&public_key).map_err(|_| damaged("public_key"))?,
            origin: match row.get::<_, String>("origin")?.as_str() {
                "generated" => Origin::Generated,
                "adopted" => Origin::Adopted,
                _ => return Err(damaged("origin")),
            },
            protection: from_json(row, "protection")?,
            attestation: from_json(row, "attestation")?,
            owner: engine_id(row, "owner_node", "owner_name")?,
            deleted: row.get("deleted")?,
        },
    })
}

/// What is written of a structure: names and numbers, so it can be.
fn json(value: &impl serde::Serialize) -> Option<String> {
    serde_json::to_string(value).ok()
}

fn from_json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: &str,
) -> rusqlite::Result<Option<T>> {
    row.get::<_, Option<String>>(column)?
        .map(|json| serde_json::from_str(&json).map_err(|_| damaged(column)))
        .transpose()
}

fn origin_name(origin: Origin) -> &'static str {
    match origin {
        Origin::Generated => "generated",
        Origin::Adopted => "adopted",
    }
}

fn intent(row: &Row<'_>) -> rusqlite::Result<Intent> {
    Ok(Intent {
        id: row.get("id")?,
        action: match row.get::<_, String>("action")?.as_str() {
            "generate" => Action::Generate,
            "delete" => Action::Delete,
            _ => return Err(damaged("action")),
        },
        identity: engine_id(row, "node", "name")?,
        token: token_id(row)?,
        backend: row.get("backend")?,
        slots: from_json(row, "slots")?.ok_or_else(|| damaged("slots"))?,
    })
}
