//! Rejected PINs, recorded in the registry so that no process sends them again.
//!
//! The record of a rejected PIN is a hash that is slow on purpose (scrypt, RFC 7914), since PINs
//! are short and a reader of the file may try them all. Before a PIN is sent, a record says that
//! one *is being* sent, without any trace of the PIN: it may be the right one. If the answer never
//! came, nobody can tell whether the next PIN is the same. Then none is sent, unless a person
//! [confirms it](claviger_token::PinSource::sends_unsettled).

use std::fs::{File, TryLockError};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use claviger_token::refused::nothing_was_lost;
use claviger_token::{Call, Error, Pin, PinTurn, PinVerdict, RefusedPins, TokenId, TriesLeft};
use rand_core::{OsRng, RngCore};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::connections::Connections;
use super::digests::{REFUSED_PIN, SENT_PIN};
use super::error::RegistryError;
use super::rows::token_id;
use super::unnoted::{Tell, Unnoted, is_unwritable};
use crate::pin_note::{Note, PinNotes};

/// How long to wait for somebody else who is sending a PIN to the same token.
const LONGEST_TURN: Duration = Duration::from_secs(30);
/// So often it is looked whether their turn is over.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What it takes to make a hash. 128 MiB and a few tenths of a second: what OWASP's
/// password storage cheat sheet asks for. It is made for tokens with a refused PIN only.
const COST: Cost = Cost {
    log_n: 17,
    r: 8,
    p: 1,
};
/// Nobody else's file makes us take more memory than this: 1 GiB.
const HIGHEST_COST: u64 = 1 << 30;

/// The refused PINs of a registry. Clones are the same.
///
/// A node uses those of its registry by itself; whoever opens tokens without a node puts
/// them into [`Access::refused_pins`](claviger_token::Access).
#[derive(Clone)]
pub struct RefusedPinRecords {
    connections: Arc<Connections>,
    /// The files that are locked while a PIN is sent, and say so; `None` where no other
    /// process shares the registry.
    pub(super) files: Option<PinNotes>,
    /// Why nothing can be written down, where that is known from the start.
    pub(super) unwritable: Option<RegistryError>,
    /// Whether PINs are sent all the same where nothing can be written down.
    unnoted: Option<Unnoted>,
}

/// What is on record of one token.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedPinRecord {
    /// The token.
    pub token: TokenId,
    /// How many PINs it refused.
    pub refused: u32,
    /// Whether a PIN was sent to it whose answer never came.
    pub unsettled: bool,
}

impl RefusedPinRecords {
    pub(super) fn new(connections: Arc<Connections>, files: Option<PinNotes>) -> Self {
        RefusedPinRecords {
            connections,
            files,
            unwritable: None,
            unnoted: None,
        }
    }

    /// The same, of which nothing can be changed.
    pub(crate) fn read_only(self, why: RegistryError) -> Self {
        RefusedPinRecords {
            unwritable: Some(why),
            ..self
        }
    }

    /// The same, with which PINs are sent without a note where none can be made.
    pub(crate) fn unnoted(self, tell: Tell) -> Self {
        RefusedPinRecords {
            unnoted: Some(Unnoted::new(tell)),
            ..self
        }
    }

    pub(super) fn db(&self) -> MutexGuard<'_, Connection> {
        self.connections.reader()
    }

    /// The tokens with something on record.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn all(&self) -> Result<Vec<RefusedPinRecord>, RegistryError> {
        let records = self
            .db()
            .prepare_cached(
                "SELECT kind, manufacturer, serial, sum(refused) AS refused, \
                 max(unsettled) AS unsettled FROM \
                 (SELECT kind, manufacturer, serial, 1 AS refused, 0 AS unsettled \
                  FROM refused_pin \
                  UNION ALL SELECT kind, manufacturer, serial, 0, 1 FROM sent_pin) \
                 GROUP BY kind, manufacturer, serial",
            )?
            .query_map([], |row| {
                Ok(RefusedPinRecord {
                    token: token_id(row)?,
                    refused: row.get("refused")?,
                    unsettled: row.get("unsettled")?,
                })
            })?
            .collect::<Result<Vec<RefusedPinRecord>, _>>()?;
        self.with_notes(records)
    }

    /// Adds the tokens whose last answer is not known.
    fn with_notes(
        &self,
        mut records: Vec<RefusedPinRecord>,
    ) -> Result<Vec<RefusedPinRecord>, RegistryError> {
        for token in self.notes()?.into_iter().filter_map(|note| note.token) {
            match records.iter_mut().find(|record| record.token == token) {
                Some(record) => record.unsettled = true,
                None => records.push(RefusedPinRecord {
                    token,
                    refused: 0,
                    unsettled: true,
                }),
            }
        }
        Ok(records)
    }

    /// Forgets what is on record of `token`, so that any PIN may be sent to it again.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn forget(&self, token: &TokenId) -> Result<(), RegistryError> {
        if let Some(why) = &self.unwritable {
            return Err(why.clone());
        }
        self.forget_rows(token)?;
        match &self.files {
            Some(files) => files.forget(token).map_err(|e| RegistryError::io(&e)),
            None => Ok(()),
        }
    }

    /// What there is of `token` in the tables. Mostly nothing is, and nothing is written.
    fn forget_rows(&self, token: &TokenId) -> Result<(), RegistryError> {
        let is_there = self
            .db()
            .prepare_cached(
                "SELECT 1 FROM sent_pin WHERE kind = ?1 AND manufacturer = ?2 AND serial = ?3 \
                 UNION ALL SELECT 1 FROM refused_pin \
                 WHERE kind = ?1 AND manufacturer = ?2 AND serial = ?3",
            )?
            .exists(name(token))?;
        if !is_there {
            return Ok(());
        }
        self.write(|db| {
            forget_sent(db, token)?;
            forget_refused(db, token)
        })
    }

    fn forget_sent_row(&self, token: &TokenId) -> Result<(), RegistryError> {
        match self.unsettled_row(token) {
            Ok(None) => Ok(()),
            _ => self.write(|db| forget_sent(db, token)),
        }
    }

    fn write(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), RegistryError> {
        if let Some(why) = &self.unwritable {
            return Err(why.clone());
        }
        self.connections.write(|db| {
            let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            work(&transaction)?;
            Ok(transaction.commit()?)
        })
    }

    fn hashes(&self, token: &TokenId) -> Result<Vec<Hash>, RegistryError> {
        let hashes = self
            .db()
            .prepare_cached(&REFUSED_PIN.select(OF_TOKEN))?
            .query_map(name(token), hash)?
            .collect::<Result<_, _>>()?;
        Ok(hashes)
    }

    /// How many tries were left when the PIN was sent whose answer never came, if there is
    /// one.
    fn unsettled(&self, token: &TokenId) -> Result<Option<Option<u8>>, RegistryError> {
        let (noted, row) = (self.note_of(token)?, self.unsettled_row(token)?);
        Ok(match (noted, row) {
            // They are of two PINs: what was left before both is not known.
            (Some(_), Some(_)) => Some(None),
            (noted, row) => row.or(noted.map(|note| note.tries)),
        })
    }

    /// The same where it is noted in the table: by earlier versions, in a restored registry,
    /// and where no other process shares it.
    fn unsettled_row(&self, token: &TokenId) -> Result<Option<Option<u8>>, RegistryError> {
        Ok(self
            .db()
            .prepare_cached(&SENT_PIN.select(OF_TOKEN))?
            .query_row(name(token), |row| {
                SENT_PIN.check(row)?;
                row.get("tries")
            })
            .optional()?)
    }
}

impl RefusedPins for RefusedPinRecords {
    fn turn(&self, token: &TokenId, call: &Call) -> Result<Box<dyn PinTurn + '_>, Error> {
        let file = self.lock_file(token)?;
        if let Some(file) = &file {
            wait_for(&file.file, token, call)?;
        }
        Ok(self.locked(token, file))
    }

    fn turn_at_once(&self, token: &TokenId) -> Result<Option<Box<dyn PinTurn + '_>>, Error> {
        let file = self.lock_file(token)?;
        Ok(match &file {
            Some(locked) if !is_locked_by_us(&locked.file, token)? => None,
            _ => Some(self.locked(token, file)),
        })
    }
}

impl RefusedPinRecords {
    /// The file that is locked by who sends a PIN to the token. None where nobody else can, or
    /// no file can be made, and it is sent all the same.
    fn lock_file(&self, token: &TokenId) -> Result<Option<Lock>, Error> {
        let Some(files) = &self.files else {
            return Ok(None);
        };
        let file = match files.open(token).map_err(|e| RegistryError::io(&e)) {
            Ok(file) => file,
            Err(error) if self.unnoted.is_some() && is_unwritable(&error) => {
                // Others may have made it, who could write.
                return Ok(files.open_to_read(token).ok().map(Lock::of_others));
            }
            Err(error) => return Err(not_noted(token, &error)),
        };
        Ok(Some(Lock {
            file,
            is_ours: true,
        }))
    }

    fn locked(&self, token: &TokenId, lock: Option<Lock>) -> Box<dyn PinTurn + '_> {
        Box::new(Turn {
            records: self,
            token: token.clone(),
            is_noted: true,
            stays_unsettled: false,
            lock,
        })
    }
}

pub(super) fn wait_for(file: &File, token: &TokenId, call: &Call) -> Result<(), Error> {
    let give_up = Instant::now() + LONGEST_TURN;
    while !is_locked_by_us(file, token)? {
        call.check()?;
        if Instant::now() >= give_up {
            return Err(Error::Busy {
                token: token.clone(),
            });
        }
        std::thread::sleep(call.at_most(LOOK_AGAIN));
    }
    Ok(())
}

/// Locks the file, and says whether that is so: somebody else may have it.
fn is_locked_by_us(file: &File, token: &TokenId) -> Result<bool, Error> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(not_noted(token, &RegistryError::io(&e))),
    }
}

fn not_noted(token: &TokenId, error: &RegistryError) -> Error {
    Error::PinNotNoted {
        token: token.clone(),
        reason: error.to_string(),
    }
}

struct Turn<'a> {
    records: &'a RefusedPinRecords,
    token: TokenId,
    /// Whether it is written down that the PIN is being sent.
    is_noted: bool,
    /// Whether it stays unknown what became of an earlier PIN, whatever becomes of this one.
    stays_unsettled: bool,
    /// Locked until the turn ends, and by the system until the process does.
    lock: Option<Lock>,
}

/// A file that is locked, with the note of what is sent.
struct Lock {
    file: File,
    /// Whether it can be written.
    is_ours: bool,
}

impl Lock {
    fn of_others(file: File) -> Self {
        Lock {
            file,
            is_ours: false,
        }
    }
}

impl PinTurn for Turn<'_> {
    fn begin(&mut self, pin: &Pin, tries: TriesLeft) -> Result<(), Error> {
        let failed = |error: RegistryError| not_noted(&self.token, &error);
        let token = self.token.clone();
        match self.records.unsettled(&token).map_err(failed)? {
            Some(before) if !nothing_was_lost(before, tries) => Err(Error::PinUnsettled { token }),
            earlier => self.begin_after(earlier, pin, tries),
        }
    }

    fn begin_anyway(&mut self, pin: &Pin, tries: TriesLeft) -> Result<(), Error> {
        let earlier = self.records.unsettled(&self.token);
        let earlier = earlier.map_err(|error| not_noted(&self.token, &error))?;
        self.begin_after(earlier, pin, tries)
    }

    fn end(self: Box<Self>, pin: &Pin, verdict: PinVerdict) {
        if let (false, Some(unnoted)) = (self.is_noted, &self.records.unnoted) {
            if verdict == PinVerdict::Refused {
                unnoted.note_refusal(&self.token);
            }
            return;
        }
        let done = match verdict {
            // Of two PINs the last one cost nothing.
            PinVerdict::NotJudged if self.stays_unsettled => {
                return warn_unless(&self.token, verdict, self.note_sent(None, true));
            }
            PinVerdict::Accepted => self.records.forget_rows(&self.token),
            PinVerdict::NotJudged => self.records.forget_sent_row(&self.token),
            PinVerdict::Refused => self.note_refused(pin),
        };
        // Last, so that nothing is lost where the process ends in between.
        let done = done.and_then(|()| self.note_answered());
        warn_unless(&self.token, verdict, done);
    }
}

fn warn_unless(token: &TokenId, verdict: PinVerdict, written: Result<(), RegistryError>) {
    if let Err(error) = written {
        tracing::warn!(
            %token, ?verdict, %error,
            "the outcome of a PIN could not be recorded"
        );
    }
}

impl Turn<'_> {
    /// Begins, where `earlier` is how many tries were left before a PIN whose answer is not
    /// known, if there is one.
    fn begin_after(
        &mut self,
        earlier: Option<Option<u8>>,
        pin: &Pin,
        tries: TriesLeft,
    ) -> Result<(), Error> {
        let failed = |error: RegistryError| not_noted(&self.token, &error);
        let (records, token) = (self.records, self.token.clone());
        let mut made: Option<Hash> = None;
        for hash in records.hashes(&token).map_err(failed)? {
            let same = match made.take().filter(|made| made.recipe == hash.recipe) {
                Some(made) => made,
                None => Hash::new(hash.recipe, pin).map_err(failed)?,
            };
            if same.hash == hash.hash {
                return Err(Error::PinRefusedBefore { token });
            }
            made = Some(same);
        }
        let before = match tries {
            TriesLeft::Exactly(left) => Some(left),
            _ => None,
        };
        let stays_unsettled = earlier.is_some_and(|earlier| !nothing_was_lost(earlier, tries));
        let done = self.note_sent(before, earlier.is_some());
        self.stays_unsettled = stays_unsettled;
        match (done, &records.unnoted) {
            (Err(error), Some(unnoted)) if is_unwritable(&error) => {
                self.is_noted = false;
                unnoted.begin(&token)
            }
            (done, _) => done.map_err(failed),
        }
    }

    /// Notes on the disk that a PIN is being sent. `was_open` is whether that is noted of an
    /// earlier one.
    fn note_sent(&self, tries: Option<u8>, was_open: bool) -> Result<(), RegistryError> {
        let (records, token) = (self.records, &self.token);
        if let Some(why) = &records.unwritable {
            return Err(why.clone());
        }
        let Some(files) = &records.files else {
            return records.write(|db| insert_sent(db, token, tries));
        };
        let Some(lock) = self.lock.as_ref().filter(|lock| lock.is_ours) else {
            return Err(RegistryError::ReadOnly);
        };
        let token = token.clone();
        let noted = files.begin(&lock.file, &Note { token, tries }, was_open);
        noted.map_err(|e| RegistryError::io(&e))
    }

    /// Notes that the token has answered.
    fn note_answered(&self) -> Result<(), RegistryError> {
        match (&self.records.files, &self.lock) {
            (Some(files), Some(lock)) => {
                (files.end(&lock.file, &self.token)).map_err(|e| RegistryError::io(&e))
            }
            _ => Ok(()),
        }
    }

    fn note_refused(&self, pin: &Pin) -> Result<(), RegistryError> {
        // All of a token have one salt, so that to look whether a PIN is among them costs
        // one hash.
        let known = self.records.hashes(&self.token)?;
        let like = known.into_iter().find(|like| like.recipe.with_length);
        let recipe = like.map_or_else(Recipe::new, |like| like.recipe);
        let Hash { recipe, hash } = Hash::new(recipe, pin)?;
        let Recipe { salt, cost, .. } = recipe;
        let token = &self.token;
        self.records.write(|db| {
            db.prepare_cached(
                "INSERT OR REPLACE INTO refused_pin \
                 (kind, manufacturer, serial, salt, log_n, r, p, hash, length_in) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1)",
            )?
            .execute(params![
                token.kind,
                token.manufacturer,
                token.serial,
                salt,
                cost.log_n,
                cost.r,
                cost.p,
                hash
            ])?;
            forget_sent(db, token)
        })
    }
}

/// The rows about one token.
const OF_TOKEN: &str = "WHERE kind = ? AND manufacturer = ? AND serial = ?";

fn name(token: &TokenId) -> [&str; 3] {
    [&token.kind, &token.manufacturer, &token.serial]
}

pub(super) fn insert_sent(
    db: &Connection,
    token: &TokenId,
    tries: Option<u8>,
) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO sent_pin (kind, manufacturer, serial, tries) VALUES (?, ?, ?, ?)",
    )?
    .execute(params![token.kind, token.manufacturer, token.serial, tries])?;
    Ok(())
}

fn forget_sent(db: &Connection, token: &TokenId) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM sent_pin WHERE kind = ? AND manufacturer = ? AND serial = ?")?
        .execute(name(token))?;
    Ok(())
}

fn forget_refused(db: &Connection, token: &TokenId) -> rusqlite::Result<()> {
    db.prepare_cached(
        "DELETE FROM refused_pin WHERE kind = ? AND manufacturer = ? AND serial = ?",
    )?
    .execute(name(token))?;
    Ok(())
}

/// The parameters of scrypt (RFC 7914 §2), N by its logarithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    log_n: u8,
    r: u32,
    p: u32,
}

/// How a hash is made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Recipe {
    salt: Vec<u8>,
    cost: Cost,
    /// Whether the PIN's length is hashed, too. scrypt takes the PIN as a key of HMAC, which
    /// fills it up with zeros (RFC 2104 §2): without its length `1234` has the hash of `1234`
    /// and a zero byte. So it was up to version 0.1.
    with_length: bool,
}

impl Recipe {
    fn new() -> Self {
        let mut salt = vec![0; 16];
        OsRng.fill_bytes(&mut salt);
        Recipe {
            salt,
            cost: COST,
            with_length: true,
        }
    }
}

/// What is kept of a refused PIN.
struct Hash {
    recipe: Recipe,
    hash: Vec<u8>,
}

/// A row that [`REFUSED_PIN`] selects.
fn hash(row: &Row<'_>) -> rusqlite::Result<Hash> {
    REFUSED_PIN.check(row)?;
    Ok(Hash {
        recipe: Recipe {
            salt: row.get("salt")?,
            cost: Cost {
                log_n: row.get("log_n")?,
                r: row.get("r")?,
                p: row.get("p")?,
            },
            with_length: row.get::<_, Option<bool>>("length_in")?.unwrap_or(false),
        },
        hash: row.get("hash")?,
    })
}

impl Hash {
    fn new(recipe: Recipe, pin: &Pin) -> Result<Self, RegistryError> {
        let Cost { log_n, r, p } = recipe.cost;
        let damaged = || RegistryError::Damaged {
            reason: "the cost parameters of a hash are invalid".into(),
        };
        let memory = 1_u64.checked_shl(log_n.into()).ok_or_else(damaged)?;
        let memory = memory.saturating_mul(128).saturating_mul(r.into());
        if memory.saturating_mul(p.into()) > HIGHEST_COST {
            return Err(damaged());
        }
        // Beside it there are a few small buffers.
        check_memory(memory.saturating_add(memory / 16))?;
        let pin = pin.expose_secret().as_bytes();
        let mut hashed = Zeroizing::new(Vec::with_capacity(size_of::<u64>() + pin.len()));
        if recipe.with_length {
            hashed.extend_from_slice(&(pin.len() as u64).to_be_bytes());
        }
        hashed.extend_from_slice(pin);
        let mut hash = vec![0; 32];
        let params = scrypt::Params::new(log_n, r, p, hash.len()).map_err(|_| damaged())?;
        scrypt::scrypt(&hashed, &recipe.salt, &params, &mut hash).map_err(|_| damaged())?;
        Ok(Hash { recipe, hash })
    }
}

/// Fails where so many bytes are not to be had: `scrypt` would take the process down with it.
/// They are taken and given back; another thread that takes them in between is not ruled out.
fn check_memory(bytes: u64) -> Result<(), RegistryError> {
    let too_much = || RegistryError::Other {
        reason: format!(
            "comparing rejected PINs needs {} MiB of memory, which are not available",
            bytes >> 20
        ),
    };
    let bytes = usize::try_from(bytes).map_err(|_| too_much())?;
    // The compiler may not leave out what fails.
    let mut trial: Vec<u8> = Vec::new();
    trial.try_reserve_exact(bytes).map_err(|_| too_much())?;
    std::hint::black_box(&mut trial);
    Ok(())
}

#[cfg(test)]
mod tests {
    use claviger_token::key::to_hex;

    use super::*;

    #[test]
    fn memory_that_is_not_to_be_had_is_an_error() {
        assert!(check_memory(1 << 20).is_ok());
        let refused = check_memory(u64::MAX / 4);
        assert!(matches!(refused, Err(RegistryError::Other { .. })));
    }

    #[test]
    fn the_hash_is_the_one_of_rfc_7914() {
        // §12, the third vector, as far as it is kept here.
        let pin = Pin::from("pleaseletmein");
        let cost = Cost {
            log_n: 14,
            r: 8,
            p: 1,
        };
        let recipe = Recipe {
            salt: b"SodiumChloride".to_vec(),
            cost,
            with_length: false,
        };
        let hash = Hash::new(recipe, &pin).unwrap();
        assert_eq!(
            to_hex(&hash.hash),
            "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        );
    }

    #[test]
    fn a_cost_that_nobody_can_pay_is_damage() {
        let pin = Pin::from("1");
        for (log_n, r, p) in [
            (63, 8, 1),
            (64, 8, 1),
            (30, 8, 1),
            (10, 0, 1),
            (10, 1, u32::MAX),
        ] {
            let recipe = Recipe {
                cost: Cost { log_n, r, p },
                ..Recipe::new()
            };
            let hash = Hash::new(recipe, &pin);
            assert!(matches!(hash, Err(RegistryError::Damaged { .. })));
        }
    }
}
