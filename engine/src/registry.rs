//! The identities on disk: one SQLite file, safe for several processes at once.
//!
//! An [`Intent`] is written before a token is changed, and the outcome after. An abandoned intent
//! is resolved by looking at the token: a generation is undone, a deletion is completed. So no key
//! without an identity and no identity without a key remains.
//!
//! The registry holds public keys, names of tokens and slots, and [slow hashes](refused_pins) of
//! rejected PINs. It holds no secrets.

mod backup;
mod certificates;
mod check;
mod connections;
mod contacts;
pub(crate) mod digests;
mod error;
mod evidence;
mod home;
mod intents;
mod moves;
mod ours;
pub mod refused_pins;
mod revocations;
mod rights;
mod rows;
mod schema;
mod sent_pins;
mod snapshot;
mod takeover;
mod tried;
pub(crate) mod unnoted;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};

use claviger_token::{Fingerprint, KeyUse};
use rusqlite::{
    CachedStatement, Connection, OptionalExtension, Row, Statement, Transaction,
    TransactionBehavior, params,
};

use self::check::check_rows;
use self::connections::Connections;
use self::digests::{IDENTITY, KEY, OF_DECRYPT_KEY, OF_SIGN_KEY, RowDigest, Sum, Unchecked};
use self::home::HomeMark;
use self::intents::{UnderWay, entered, intents_of};
use self::ours::Ours;
use self::rows::{NotAsWritten, damaged, engine_id, json, key_of, key_record, origin_name, parsed};
use self::schema::{check_small, create_private_folder, open_shared, prepare, prepare_new};
use crate::lease::Lease;
use crate::pin_note::PinNotes;
use crate::types::{KeyInfo, engine_name};
use crate::{Backend, Capabilities, EngineId, IdentityInfo};

pub use backup::{Backup, Content, Restored};
pub use certificates::CertificateEntryError;
pub use contacts::ContactError;
pub(crate) use contacts::{Known, Revision};
pub use error::RegistryError;
pub(crate) use evidence::Edge;
pub use home::{ACCOUNTS, STARTS};
pub use intents::{Action, Intent};
pub(crate) use intents::{BeginError, Claim};
pub use rights::{GrantError, Rights, RightsMark};
pub use sent_pins::PinNote;
pub(crate) use tried::What;

use self::refused_pins::RefusedPinRecords;

/// The name of its file in the home folder.
pub const FILE: &str = "registry.sqlite";

/// The identities of one home folder, or of one process.
pub struct Registry {
    connections: Arc<Connections>,
    refused_pins: RefusedPinRecords,
    lease: Lease,
    /// The intents that this process is working on.
    under_way: UnderWay,
    /// The number of writes of this process.
    writes: AtomicU64,
    /// Its folder; `None` in memory.
    place: Option<HomeMark>,
    /// Whether the folder was moved or copied.
    is_copy: AtomicBool,
    /// The first of the accounts that the home takes of a seed.
    first_account: AtomicU32,
    /// Why nothing can be written; then this is a copy of the file in memory.
    read_only: Option<RegistryError>,
}

/// A key of an identity, and the backend of its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRecord {
    pub(crate) id: i64,
    pub(crate) info: KeyInfo,
    pub(crate) backend: String,
}

/// An identity that is about to be entered.
pub(crate) struct NewIdentity<'a> {
    pub(crate) who: &'a EngineId,
    pub(crate) backend: &'a Backend,
    pub(crate) capabilities: Capabilities,
    /// Whether the keys die with this process.
    pub(crate) volatile: bool,
    /// Whether the token derives the keys, so that they can be derived again.
    pub(crate) derived: bool,
    /// The user who makes it, where a daemon is asked for it.
    pub(crate) maker: Option<u32>,
}

/// The outcome of removing an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Released {
    Done,
    /// It was removed meanwhile.
    Gone,
    /// It was replaced meanwhile.
    Another,
}

type Result<T, E = RegistryError> = std::result::Result<T, E>;

/// A registry of at most this size, in bytes, is checked when it is opened; a larger one only by
/// [`Registry::check`].
const LOOKED_THROUGH: u64 = 1 << 20;

impl Registry {
    /// Opens the registry in `home`, or makes one there.
    ///
    /// A registry that cannot be written, since its folder or file is read-only or the disk is
    /// full, is read as it is now, and writing fails: see [`Registry::check_writable`].
    ///
    /// # Errors
    /// [`RegistryError`]. Nothing is changed in a folder or file that is not Claviger's.
    pub fn open(home: &Path) -> Result<Self> {
        // Files are opened later, too, when the process may have another current folder.
        let home = std::path::absolute(home).map_err(|e| RegistryError::io(&e))?;
        let path = home.join(FILE);
        match Registry::open_to_write(&home, &path) {
            Err(why @ (RegistryError::ReadOnly | RegistryError::DiskFull)) if path.exists() => {
                Registry::open_to_read(&home, &path, why)
            }
            opened => opened,
        }
    }

    fn open_to_write(home: &Path, path: &Path) -> Result<Self> {
        if home.exists() && !home.is_dir() {
            return Err(RegistryError::NotAFolder { path: home.into() });
        }
        create_private_folder(home).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotADirectory | std::io::ErrorKind::AlreadyExists => {
                RegistryError::NotAFolder { path: home.into() }
            }
            _ => RegistryError::io(&e),
        })?;
        let ours = Ours::check(home)?;
        if path.exists() {
            Ours::check(path)?;
        }
        let (lease, file, reader) = open_shared(path, &home.join("run"))?;
        ours.is_still_there()?;
        let size = path.metadata().map_err(|e| RegistryError::io(&e))?.len();
        if size <= LOOKED_THROUGH {
            check_small(&reader)?;
        }
        let connections = Connections::to_file(path.into(), file, reader);
        let mut registry = Registry::with(connections, lease, Some(PinNotes::of_home(home)));
        registry.place = Some(HomeMark::of(home)?);
        registry.recognise_home()?;
        registry.forget_volatile()?;
        Ok(registry)
    }

    fn open_to_read(home: &Path, path: &Path, why: RegistryError) -> Result<Self> {
        let ours = [Ours::check(home)?, Ours::check(path)?];
        let copy = snapshot::of_file(path)?;
        ours.iter().try_for_each(Ours::is_still_there)?;
        prepare(&copy)?;
        let only = Connections::to_memory(copy);
        let lease = Lease::observe(&home.join("run"));
        let mut registry = Registry::with(only, lease, Some(PinNotes::of_home(home)));
        registry.place = Some(HomeMark::of(home)?);
        registry.refused_pins = registry.refused_pins.read_only(why.clone());
        registry.read_only = Some(why);
        registry.recognise_home()?;
        Ok(registry)
    }

    /// A registry that lives as long as this process.
    ///
    /// # Errors
    /// [`RegistryError::Other`] if SQLite has no memory.
    pub fn in_memory() -> Result<Self> {
        let connection = Connection::open_in_memory()?;
        prepare_new(&connection)?;
        let only = Connections::to_memory(connection);
        Ok(Registry::with(only, Lease::unseen(), None))
    }

    fn with(connections: Connections, lease: Lease, pins: Option<PinNotes>) -> Self {
        let connections = Arc::new(connections);
        Registry {
            refused_pins: RefusedPinRecords::new(Arc::clone(&connections), pins),
            connections,
            lease,
            under_way: UnderWay::default(),
            writes: AtomicU64::default(),
            place: None,
            is_copy: AtomicBool::default(),
            first_account: AtomicU32::default(),
            read_only: None,
        }
    }

    /// A connection for one query; [`Registry::read`] is for several.
    fn db(&self) -> MutexGuard<'_, Connection> {
        self.connections.reader()
    }

    /// Reads in one transaction.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let db = self.db();
        let moment = db.unchecked_transaction()?;
        work(&moment)
    }

    fn write<T, E: From<rusqlite::Error> + From<RegistryError>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.check_writable()?;
        self.write_here(work)
    }

    /// The same where what was read is in memory, too: then it is changed there and nowhere
    /// else. For what is found out again by the next who looks.
    fn write_here<T, E: From<rusqlite::Error> + From<RegistryError>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.connections.write(|db| {
            let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            self.writes.fetch_add(1, Ordering::Relaxed);
            Ok(value)
        })
    }

    /// The name of the lease, for a record that other processes read.
    fn shown_lease(&self) -> Result<&str> {
        self.lease.show().map_err(|e| RegistryError::io(&e))
    }

    /// Fails if the registry cannot be written.
    ///
    /// # Errors
    /// [`RegistryError::ReadOnly`], [`RegistryError::DiskFull`].
    pub fn check_writable(&self) -> Result<()> {
        self.read_only.clone().map_or(Ok(()), Err)
    }

    /// The records of rejected PINs.
    pub fn refused_pins(&self) -> &RefusedPinRecords {
        &self.refused_pins
    }

    /// All identities, by name.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn identities(&self) -> Result<Vec<(EngineId, IdentityInfo)>> {
        let mut identities = Vec::new();
        self.each_identity(|who, info| identities.push((who, info)))?;
        Ok(identities)
    }

    /// Hands each identity to `take`, by name: 20,000 of them at once take 40 MB. `take` must not use
    /// the registry, whose connection is in use meanwhile.
    ///
    /// # Errors
    /// [`RegistryError`]. Then what was handed out may not be all, and is not to be used.
    pub fn each_identity(&self, mut take: impl FnMut(EngineId, IdentityInfo)) -> Result<()> {
        const LEASE: usize = IDENTITY.at("lease");
        self.read(|db| {
            let mut sum = Sum::of(&IDENTITY);
            let mut entries = db.prepare_cached(&IDENTITY.select("ORDER BY name, node"))?;
            let mut rows = entries.query([])?;
            let mut find = find_key(db)?;
            while let Some(row) = rows.next()? {
                sum.add(row)?;
                // What is volatile is of no use to any but its own process.
                let lease: Option<String> = row.get(LEASE)?;
                if lease.is_some_and(|lease| !self.is_own(&lease)) {
                    continue;
                }
                let entry = Entry::of(row)?;
                let who = entry.who.clone();
                let (keys, mut info) = entry.and_keys(&mut find)?;
                info.keys = keys.into_iter().map(|key| key.info).collect();
                take(who, info);
            }
            sum.check(db)
        })
    }

    fn is_own(&self, lease: &str) -> bool {
        lease == self.lease.name()
    }

    /// One identity.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn identity(&self, who: &EngineId) -> Result<Option<IdentityInfo>> {
        self.read(|db| Ok(identity(db, who)?.map(|(_, info)| info)))
    }

    /// The living identity that a key belongs to, if any.
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
            // Without LIMIT: with it, SQLite makes a table to sort them, and a cache for that.
            let select = KEY.select("WHERE engine = ? ORDER BY deleted, id DESC");
            let key = db
                .prepare_cached(&select)?
                .query_row([engine], |row| {
                    Ok((key_record(row)?, row.get::<_, String>("engine")?))
                })
                .optional()?;
            let Some((key, found)) = key else {
                return Ok(None);
            };
            is_asked_for(engine, &found)?;
            let stale = db
                .prepare_cached(
                    "SELECT node, name FROM identity JOIN key \
                     ON key.id = identity.sign_key OR key.id = identity.decrypt_key \
                     WHERE key.engine = ? AND key.id <> ?",
                )?
                .query_map(params![engine, key.id], |row| {
                    engine_id(row, "node", "name")
                })?
                .collect::<Result<_, _>>()?;
            Ok(Some((key, stale)))
        })
    }

    /// The keys are made: enters the identity, and notes that the keys are to get its name, in
    /// one step.
    pub(crate) fn finish_generate(
        &self,
        intent: &Intent,
        new: &NewIdentity<'_>,
        keys: &[KeyInfo],
    ) -> Result<(), BeginError> {
        self.write(|db| {
            self.insert_with_keys(db, new, &intent.backend, keys)?;
            match entered(db, intent)? {
                true => Ok(()),
                // Somebody took us for dead, and has destroyed the keys or is going to.
                false => Err(BeginError::InProgress),
            }
        })
    }

    /// Enters an identity with keys that were found on a token.
    pub(crate) fn insert_adopted(
        &self,
        new: &NewIdentity<'_>,
        backend: &str,
        keys: &[KeyInfo],
    ) -> Result<(), BeginError> {
        self.write(|db| {
            for key in keys {
                let fingerprint = key.public_key.fingerprint();
                if let Some(owner) = owner_of(db, &fingerprint)? {
                    return Err(BeginError::HasOwner { fingerprint, owner });
                }
                // A key that is being made, or is to be undone.
                let intents = intents_of(db, &key.token)?;
                let mut spoken_for = intents.iter().flat_map(|intent| &intent.keys);
                if spoken_for.any(|other| {
                    other.public_key.as_ref() == Some(&key.public_key)
                        || (other.public_key.is_none() && other.slot == key.slot)
                }) {
                    return Err(BeginError::InProgress);
                }
            }
            self.insert_with_keys(db, new, backend, keys)
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
            let Some((keys, now)) = identity(db, original)? else {
                return Err(BeginError::InProgress);
            };
            // It may have been made anew since it was looked up.
            if !new.capabilities.subset_of(now.capabilities) {
                return Err(BeginError::NotAvailable);
            }
            if let Some(key) = now.keys.into_iter().find(|key| key.deleted) {
                return Err(BeginError::Deleted { owner: key.owner });
            }
            if now.backend != *new.backend {
                return Err(BeginError::InProgress);
            }
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
            new.volatile.then(|| self.shown_lease()).transpose()?,
        ])?;
        rights::enter_maker(db, new.who, new.maker)?;
        Ok(())
    }

    /// The backend of the token with an identity's keys.
    pub(crate) fn reached_by(&self, who: &EngineId) -> Result<Option<String>> {
        let found = self.read(|db| Ok(identity(db, who)?))?;
        Ok(found
            .and_then(|(keys, _)| keys.into_iter().next())
            .map(|key| key.backend))
    }

    /// Removes an entry without keys of its own to destroy, if it is still as it was read.
    pub(crate) fn release(&self, who: &EngineId, seen: &IdentityInfo) -> Result<Released> {
        self.write(|db| match identity(db, who)? {
            None => Ok(Released::Gone),
            Some((_, now)) if now != *seen => Ok(Released::Another),
            Some(_) => {
                remove_entry(db, who)?;
                Ok(Released::Done)
            }
        })
    }

    /// Removes the identities whose keys ended with their process. An altered entry stays, since
    /// nothing shows that its keys ended.
    fn forget_volatile(&self) -> Result<()> {
        if self.read(|db| self.dead(db))?.is_empty() {
            return Ok(());
        }
        self.write(|db| {
            for who in self.dead(db)? {
                remove_entry(db, &who)?;
            }
            Ok(())
        })
    }

    /// The identities whose keys ended with their process.
    fn dead(&self, db: &Connection) -> Result<Vec<EngineId>> {
        let mut volatile = db.prepare_cached(&IDENTITY.select("WHERE lease IS NOT NULL"))?;
        let mut rows = volatile.query([])?;
        let (mut find, mut dead) = (None, Vec::new());
        while let Some(row) = rows.next()? {
            // Most registries have none, and no key is looked up.
            let find = match &mut find {
                Some(find) => find,
                none => none.insert(find_key(db)?),
            };
            let whole = Entry::of(row).and_then(|entry| {
                let (who, lease) = (entry.who.clone(), row.get::<_, String>("lease")?);
                entry.with_keys(find).map(|_| (who, lease))
            });
            match whole.map_err(RegistryError::from) {
                Ok((who, lease)) if !self.lease.is_alive(&lease) => dead.push(who),
                Ok(_) => {}
                Err(error @ (RegistryError::Damaged { .. } | RegistryError::Altered { .. })) => {
                    tracing::warn!(%error, "an identity of a dead process is not forgotten");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(dead)
    }
}

fn entry_exists(db: &Connection, who: &EngineId) -> rusqlite::Result<bool> {
    let (node, name) = key_of(who);
    db.prepare_cached("SELECT 1 FROM identity WHERE node = ? AND name = ?")?
        .exists(params![node, name])
}

/// Refuses a name that is taken.
fn check_new(db: &Connection, who: &EngineId) -> Result<(), BeginError> {
    if entry_exists(db, who)? {
        return Err(BeginError::Exists);
    }
    if who.node.is_none() && contacts::contact_of(db, &who.name)?.is_some() {
        return Err(BeginError::IsContact);
    }
    Ok(())
}

/// Refuses a name whose engine names are taken by an identity of the same name on another node.
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
    let asked = fingerprint.to_string();
    db.prepare_cached(&KEY.select("WHERE fingerprint = ? AND NOT deleted"))?
        .query_row([&asked], |row| {
            KEY.check(row)?;
            is_asked_for(&asked, &row.get::<_, String>("fingerprint")?)?;
            engine_id(row, "owner_node", "owner_name")
        })
        .optional()
}

/// Refuses a row to which a damaged index has led.
fn is_asked_for(asked: &str, found: &str) -> rusqlite::Result<()> {
    match asked == found {
        true => Ok(()),
        false => Err(NotAsWritten::error("key", found)),
    }
}

/// Finds a key by its number.
fn find_key(db: &Connection) -> rusqlite::Result<CachedStatement<'_>> {
    db.prepare_cached(&KEY.select("WHERE id = ?"))
}

/// An identity's row, whose digest is over its keys, too.
struct Entry {
    who: EngineId,
    backend: Backend,
    capabilities: Capabilities,
    sign: Option<i64>,
    decrypt: Option<i64>,
    unchecked: Unchecked,
}

impl Entry {
    /// A row that [`IDENTITY`] selects.
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        const WHO: (usize, usize) = (IDENTITY.at("node"), IDENTITY.at("name"));
        const CAPABILITIES: usize = IDENTITY.at("capabilities");
        Ok(Entry {
            unchecked: IDENTITY.unchecked(row)?,
            who: engine_id(row, WHO.0, WHO.1)?,
            backend: Backend::from(row.get::<_, String>(const { IDENTITY.at("backend") })?),
            capabilities: parsed(row, CAPABILITIES, "capabilities")?,
            sign: row.get(const { IDENTITY.at("sign_key") })?,
            decrypt: row.get(const { IDENTITY.at("decrypt_key") })?,
        })
    }

    /// The keys, and what is known of the identity. `find` is what [`find_key`] gives.
    fn with_keys(
        self,
        find: &mut Statement<'_>,
    ) -> rusqlite::Result<(Vec<KeyRecord>, IdentityInfo)> {
        let (keys, mut info) = self.and_keys(find)?;
        info.keys = keys.iter().map(|key| key.info.clone()).collect();
        Ok((keys, info))
    }

    /// The same without the keys in what is known of the identity.
    fn and_keys(
        mut self,
        find: &mut Statement<'_>,
    ) -> rusqlite::Result<(Vec<KeyRecord>, IdentityInfo)> {
        let mut keys = Vec::with_capacity(2);
        let (mut commitment_engine, mut decryption_engine) = (None, None);
        for (id, of_key) in [(self.sign, OF_SIGN_KEY), (self.decrypt, OF_DECRYPT_KEY)] {
            let Some(id) = id else {
                self.unchecked.bind(of_key, None);
                continue;
            };
            let found = find
                .query_row([id], |row| {
                    let engine: String = row.get(const { KEY.at("engine") })?;
                    Ok((key_record(row)?, engine, row.get(KEY.digest_at())?))
                })
                .optional()?;
            let Some((key, engine, digest)) = found else {
                return Err(damaged(of_key.0));
            };
            self.unchecked.bind(of_key, Some::<&RowDigest>(&digest));
            match key.info.usage {
                KeyUse::Sign => commitment_engine = Some(EngineId::local(engine)),
                KeyUse::Decrypt => decryption_engine = Some(EngineId::local(engine)),
            }
            keys.push(key);
        }
        if !self.unchecked.is_whole() {
            return Err(NotAsWritten::error(IDENTITY.name, &self.who.name));
        }
        let info = IdentityInfo {
            backend: self.backend,
            capabilities: self.capabilities,
            commitment_engine,
            decryption_engine,
            keys: Vec::new(),
        };
        Ok((keys, info))
    }
}

fn identity(
    db: &Connection,
    who: &EngineId,
) -> rusqlite::Result<Option<(Vec<KeyRecord>, IdentityInfo)>> {
    let (node, name) = key_of(who);
    let entry = db
        .prepare_cached(&IDENTITY.select("WHERE node = ? AND name = ?"))?
        .query_row(params![node, name], Entry::of)
        .optional()?;
    match entry {
        None => Ok(None),
        Some(entry) if entry.who != *who => Err(NotAsWritten::error("identity", &entry.who.name)),
        Some(entry) => entry.with_keys(&mut *find_key(db)?).map(Some),
    }
}

/// Removes an entry; its own keys are marked as deleted, and forgotten as soon as no
/// other entry refers to them.
fn remove_entry(db: &Connection, who: &EngineId) -> Result<()> {
    let (node, name) = key_of(who);
    db.prepare_cached("DELETE FROM identity WHERE node = ? AND name = ?")?
        .execute(params![node, name])?;
    rights::remove_rights(db, who)?;
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
    certificates::remove_strays(db)?;
    Ok(())
}
