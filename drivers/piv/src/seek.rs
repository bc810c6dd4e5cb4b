//! Finding a key by its public key, in any slot.
//!
//! Other tools move keys from slot to slot (MOVE KEY), and the certificate stays behind. So a key
//! is found by what the card itself shows. If it shows nothing, a certificate says where to look,
//! and using the key proves that it is there.

use claviger_token::PublicKey;

use crate::card::Shown;
use crate::content::{Content, holds, inspect, key_may_be_there};
use crate::error::Fault;
use crate::firmware::{Feature, Make};
use crate::marker::Object;
use crate::session::Session;
use crate::slot::{KeyName, Slot};

/// Whether a key is in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// It is.
    Yes,
    /// Its certificate is, and perhaps the key.
    Perhaps,
    /// There is another key.
    Another,
    /// There is none.
    Nothing,
    /// The card shows nothing, and there may be one.
    Hidden,
}

/// Where a key is.
pub(crate) enum Sought {
    /// In this slot. `Match::Yes` or, where nothing more was to be known, `Match::Perhaps`.
    At(Slot, Content, Match),
    /// Nowhere; in the slot that was named there is this.
    Gone(Content, Match),
}

/// Whether `key` is what is in a slot, as far as it shows.
pub(crate) fn matches(content: &Content, name: &KeyName, key: &PublicKey) -> Match {
    match (content.public_key(), content.is_certain()) {
        (Some(found), true) if found == key => Match::Yes,
        (Some(found), false) if found == key => Match::Perhaps,
        _ if content.has_key() => Match::Another,
        (_, true) => Match::Nothing,
        (None, false) => match &content.object {
            // Being made, or overwritten: it does not name the key yet, or any more.
            Some(Object::Ours(marker))
                if marker.mark == name.mark() && marker.public_key.is_none() =>
            {
                Match::Perhaps
            }
            _ => Match::Hidden,
        },
        (Some(_), false) => Match::Hidden,
    }
}

/// What is not shown, proven by the key's own work. Needs the PIN.
pub(crate) fn prove(
    session: &mut Session<'_>,
    make: &Make,
    slot: Slot,
    found: Match,
    key: &PublicKey,
) -> Result<Match, Fault> {
    Ok(match found {
        Match::Yes | Match::Another | Match::Nothing => found,
        Match::Perhaps | Match::Hidden if holds(session, slot, key)? => Match::Yes,
        Match::Perhaps | Match::Hidden => match key_may_be_there(session, make, slot)? {
            true => Match::Another,
            false => Match::Nothing,
        },
    })
}

/// Looks for `key`, first where it is said to be. With `proof` only what is proven counts,
/// for which the PIN is needed where the card does not show its keys.
pub(crate) fn seek(
    session: &mut Session<'_>,
    make: &Make,
    name: &KeyName,
    key: &PublicKey,
    proof: bool,
) -> Result<Sought, Fault> {
    let content = inspect(&mut session.card, make, name.slot)?;
    let found = matches(&content, name, key);
    let found = match (proof, found) {
        // Others may have deleted its certificate.
        (true, _) | (false, Match::Hidden) => prove(session, make, name.slot, found, key)?,
        (false, found) => found,
    };
    if matches!(found, Match::Yes | Match::Perhaps) {
        return Ok(Sought::At(name.slot, content, found));
    }
    match elsewhere(session, make, name, key)? {
        Some((slot, content)) => Ok(Sought::At(slot, content, Match::Yes)),
        None => Ok(Sought::Gone(content, found)),
    }
}

fn elsewhere(
    session: &mut Session<'_>,
    make: &Make,
    name: &KeyName,
    key: &PublicKey,
) -> Result<Option<(Slot, Content)>, Fault> {
    for slot in Slot::all().filter(|slot| *slot != name.slot) {
        // Most slots are done with after this.
        let shown = match make.has(Feature::Metadata) {
            true => session.card.shown(slot)?,
            false => Shown::Silent,
        };
        let other = match &shown {
            Shown::Nothing => true,
            Shown::Key(metadata) => metadata.public_key.as_ref().is_some_and(|k| k != key),
            Shown::Silent => false,
        };
        if other {
            continue;
        }
        let content = inspect(&mut session.card, make, slot)?;
        let unnamed = name.in_slot(slot);
        let found = match matches(&content, &unnamed, key) {
            // Without so much as a certificate of it, nobody would look there.
            Match::Perhaps if content.public_key().is_some() => {
                prove(session, make, slot, Match::Perhaps, key)?
            }
            found => found,
        };
        if found == Match::Yes {
            return Ok(Some((slot, content)));
        }
    }
    Ok(None)
}
