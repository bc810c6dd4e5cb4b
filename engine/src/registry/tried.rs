//! The outcomes of trials on tokens: a kind of key that works or does not, a missing slot.
//!
//! A token states what it offers, and some state too much. The outcome of a generation or an
//! adoption is recorded for the token, or for all tokens of its model and version, as its driver
//! decides ([`TokenInfo::remembered_as`]).

use claviger_token::{KeySpec, SlotId, SlotInfo, SlotName, TokenInfo};
use rusqlite::{OptionalExtension, Row, params};

use super::digests::TRIED;
use super::{Registry, RegistryError, Result};

/// Something that a token states and that can be tried.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What<'a> {
    /// A kind of key.
    Kind(KeySpec),
    /// A slot.
    Slot(&'a SlotName),
}

impl std::fmt::Display for What<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            What::Kind(spec) => write!(f, "{spec}"),
            What::Slot(slot) => write!(f, "slot {slot}"),
        }
    }
}

impl Registry {
    /// Notes what came of trying.
    pub(crate) fn note_tried(&self, token: &TokenInfo, what: What<'_>, works: bool) -> Result<()> {
        let what = what.to_string();
        if token.remembered_as.is_empty() || self.tried(token, &what)? == Some(works) {
            return Ok(());
        }
        self.write_here::<_, RegistryError>(|db| {
            db.prepare_cached(
                "INSERT OR REPLACE INTO tried (model, what, works) VALUES (?, ?, ?)",
            )?
            .execute(params![token.remembered_as, what, works])?;
            Ok(())
        })
    }

    fn tried(&self, token: &TokenInfo, what: &str) -> Result<Option<bool>> {
        self.read(|db| {
            Ok(db
                .prepare_cached(&TRIED.select("WHERE model = ? AND what = ?"))?
                .query_row(
                    params![token.remembered_as, what],
                    |row| Ok(outcome(row)?.1),
                )
                .optional()?)
        })
    }

    /// The slots that a token turned out not to have.
    pub(crate) fn missing_slots(&self, token: &TokenInfo) -> Result<Vec<SlotId>> {
        let tried = self.all_tried(token)?;
        let slots = tried.into_iter().filter(|(_, works)| !works);
        Ok(slots
            .filter_map(|(what, _)| Some(SlotId::new(what.strip_prefix("slot ")?)))
            .collect())
    }

    /// Takes what was tried before into what a token states of itself: a kind that works is
    /// not untried any more, and one that does not is none that it offers.
    pub(crate) fn take_account(&self, token: &mut TokenInfo) -> Result<()> {
        if token.untried.is_empty() {
            return Ok(());
        }
        let tried = self.all_tried(token)?;
        let outcome = |spec: &KeySpec| {
            let what = What::Kind(*spec).to_string();
            let found = tried.iter().find(|(tried, _)| *tried == what);
            found.map(|(_, works)| *works)
        };
        let failed: Vec<KeySpec> = (token.untried.iter().copied())
            .filter(|spec| outcome(spec) == Some(false))
            .collect();
        token.untried.retain(|spec| outcome(spec).is_none());
        token.makes.retain(|spec| !failed.contains(spec));
        token.uses.retain(|spec| !failed.contains(spec));
        if !failed.is_empty() {
            let failed: Vec<String> = failed.iter().map(KeySpec::to_string).collect();
            token
                .notes
                .push(("tried_in_vain".into(), failed.join(", ")));
        }
        Ok(())
    }

    /// Takes what was tried before into what is said of slots: one that has held a key is not
    /// untried any more, and of one that turned out not to be there that is said.
    pub(crate) fn take_account_of_slots(
        &self,
        token: &TokenInfo,
        slots: &mut [SlotInfo],
    ) -> Result<()> {
        let tried = self.all_tried(token)?;
        for slot in slots {
            let what = What::Slot(&slot.slot).to_string();
            let Some((_, works)) = tried.iter().find(|(tried, _)| *tried == what) else {
                continue;
            };
            let untried = |note: &(String, String)| note.0 == "slot" && note.1 == "not tried";
            if let Some(at) = slot.notes.iter().position(untried) {
                match works {
                    true => drop(slot.notes.remove(at)),
                    false => slot.notes[at].1 = "the token does not have it".into(),
                }
            }
        }
        Ok(())
    }

    fn all_tried(&self, token: &TokenInfo) -> Result<Vec<(String, bool)>> {
        if token.remembered_as.is_empty() {
            return Ok(Vec::new());
        }
        self.read(|db| {
            Ok(db
                .prepare_cached(&TRIED.select("WHERE model = ?"))?
                .query_map([&token.remembered_as], outcome)?
                .collect::<rusqlite::Result<_>>()?)
        })
    }
}

/// What was tried, and whether it works: a row that [`TRIED`] selects.
fn outcome(row: &Row<'_>) -> rusqlite::Result<(String, bool)> {
    TRIED.check(row)?;
    Ok((row.get("what")?, row.get("works")?))
}
