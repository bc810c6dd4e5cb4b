//! PINs that were sent and whose answer is not known, as far as [files](crate::pin_note) say so.

use std::path::PathBuf;
use std::time::Duration;

use claviger_token::{Call, TokenId};
use rusqlite::Connection;

use super::digests;
use super::error::RegistryError;
use super::moves::TABLES;
use super::refused_pins::{RefusedPinRecords, insert_sent, wait_for};
use super::rows::token_id;
use crate::pin_note::{self, FoundNote, Note};

/// How long who renames a note waits for who is sending a PIN.
const LONGEST_RENAMING: Duration = Duration::from_secs(5);

/// A file in the home which notes that a PIN was sent to a token and that its answer is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PinNote {
    /// The file.
    pub file: PathBuf,
    /// The token. `None`: the note was damaged, and the registry knows no token that it may be
    /// about. The token that it is about gets no PIN from a source that nobody types into.
    pub token: Option<TokenId>,
    /// Whether the note was damaged.
    pub is_damaged: bool,
    /// How many tries were left before, where that is known.
    pub(crate) tries: Option<u8>,
}

impl RefusedPinRecords {
    /// The notes of PINs whose answer is not known, also those that were damaged.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn notes(&self) -> Result<Vec<PinNote>, RegistryError> {
        let Some(files) = &self.files else {
            return Ok(Vec::new());
        };
        let found = files.all().map_err(|e| RegistryError::io(&e))?;
        let known = match found.iter().any(|found| found.note.is_none()) {
            true => self.known_tokens()?,
            false => Vec::new(),
        };
        let of = |FoundNote { file, note }| match note {
            Some(Note { token, tries }) => PinNote {
                file,
                token: Some(token),
                is_damaged: false,
                tries,
            },
            None => PinNote {
                token: (known.iter().find(|token| pin_note::is_about(&file, token))).cloned(),
                file,
                is_damaged: true,
                tries: None,
            },
        };
        Ok(found.into_iter().map(of).collect())
    }

    /// Forgets what a note says, so that any PIN may be sent to its token again as far as the
    /// note is concerned.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn forget_note(&self, note: &PinNote) -> Result<(), RegistryError> {
        if let Some(why) = &self.unwritable {
            return Err(why.clone());
        }
        pin_note::forget(&note.file).map_err(|e| RegistryError::io(&e))
    }

    /// The tokens of which the registry knows anything.
    fn known_tokens(&self) -> Result<Vec<TokenId>, RegistryError> {
        let of = |table| format!("SELECT kind, manufacturer, serial FROM {table}");
        let query = TABLES.map(of).join(" UNION ");
        let db = self.db();
        let mut query = db.prepare_cached(&query)?;
        let tokens = query.query_map([], token_id)?.collect::<Result<_, _>>()?;
        Ok(tokens)
    }

    /// Enters what is noted in files into the table of a backup. A note of which it is not known
    /// what token it is about stays in the home.
    pub(crate) fn note_in(&self, backup: &Connection) -> Result<(), RegistryError> {
        let notes = self.notes()?;
        if notes.is_empty() {
            return Ok(());
        }
        digests::keep(backup)?;
        for note in &notes {
            let Some(token) = &note.token else {
                tracing::warn!(
                    file = %note.file.display(),
                    "the record of a PIN that was sent cannot be read, and is not in the backup"
                );
                continue;
            };
            // Of two PINs it is not known what was left before both.
            let is_one = notes
                .iter()
                .filter(|other| other.token == note.token)
                .count()
                == 1;
            insert_sent(backup, token, note.tries.filter(|_| is_one))?;
        }
        Ok(())
    }

    /// Whether a PIN was sent to `token` whose answer is not known, as its file says.
    pub(crate) fn has_note_of(&self, token: &TokenId) -> Result<bool, RegistryError> {
        Ok(self.note_of(token)?.is_some())
    }

    /// What is noted of the token `former` is of the token `now`. Waits for who is sending a PIN
    /// to it.
    pub(crate) fn rename_note(&self, former: &TokenId, now: &TokenId) -> Result<(), RegistryError> {
        let (Some(files), Some(note)) = (&self.files, self.note_of(former)?) else {
            return Ok(());
        };
        let file = files.open(now).map_err(|e| RegistryError::io(&e))?;
        let turn = wait_for(&file, now, &Call::within(LONGEST_RENAMING));
        turn.map_err(|error| RegistryError::Other {
            reason: error.to_string(),
        })?;
        let other = self.note_of(now)?;
        let note = Note {
            token: now.clone(),
            // They are of two PINs: what was left before both is not known.
            tries: note.tries.filter(|_| other.is_none()),
        };
        let renamed = files
            .begin(&file, &note, other.is_some())
            .and_then(|()| files.forget(former));
        renamed.map_err(|e| RegistryError::io(&e))
    }

    pub(super) fn note_of(&self, token: &TokenId) -> Result<Option<Note>, RegistryError> {
        match &self.files {
            Some(files) => files.of_token(token).map_err(|e| RegistryError::io(&e)),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use claviger_token::{Pin, RefusedPins, TriesLeft};

    use super::*;

    #[test]
    fn of_two_notes_of_a_token_that_was_renamed_no_number_of_tries_is_left() {
        let home = tempfile::tempdir().unwrap();
        let registry = crate::Registry::open(home.path()).unwrap();
        let records = registry.refused_pins();
        let [former, now] = ["former", "now"].map(|serial| TokenId {
            kind: "k".into(),
            manufacturer: "m".into(),
            serial: serial.into(),
        });
        let send = |token: &TokenId, tries| {
            let mut turn = records.turn(token, &Call::unlimited()).unwrap();
            let pin = Pin::from("246802");
            turn.begin(&pin, TriesLeft::Exactly(tries)).unwrap();
        };
        let tries = |token| records.note_of(token).unwrap().map(|note| note.tries);
        send(&former, 2);
        records.rename_note(&former, &now).unwrap();
        assert_eq!((tries(&former), tries(&now)), (None, Some(Some(2))));
        send(&former, 1);
        records.rename_note(&former, &now).unwrap();
        assert_eq!((tries(&former), tries(&now)), (None, Some(None)));
    }
}
