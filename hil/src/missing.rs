//! The slots that a card does not have.
//!
//! A card of another maker does not say which slots it has, and refuses a key in a missing one
//! ([`Error::NoSuchSlot`]). So untried slots are tried before the checks, which then use only
//! existing slots. The search begins with the last slot: existing slots are contiguous, so the
//! first that exists ends it.

use claviger_token::{
    Call, Error, KeySpec, NewKey, SlotId, SlotInfo, SlotName, SlotState, Token, Unfinished,
    unfinished_mark,
};

/// Tries free slots of which the token says that nobody has, and gives those that are not
/// there. Nothing is left in the one that is.
///
/// # Errors
/// What else the token says.
pub(crate) fn find(
    token: &dyn Token,
    slots: &[SlotInfo],
    call: &Call,
) -> Result<Vec<SlotId>, Error> {
    let Some(spec) = token.info().makes.first().copied() else {
        return Ok(Vec::new());
    };
    let mut missing = Vec::new();
    for slot in slots.iter().rev().filter(|slot| is_untried(slot)) {
        if is_there(token, slots, &slot.slot, spec, call)? {
            break;
        }
        missing.push(slot.slot.clone().into());
    }
    Ok(missing)
}

fn is_untried(slot: &SlotInfo) -> bool {
    let says_so = |(name, value): &(String, String)| name == "slot" && value == "not tried";
    slot.state == SlotState::Free && slot.notes.iter().any(says_so)
}

fn is_there(
    token: &dyn Token,
    slots: &[SlotInfo],
    slot: &SlotName,
    spec: KeySpec,
    call: &Call,
) -> Result<bool, Error> {
    let others = slots.iter().filter(|other| other.slot != *slot);
    let others: Vec<SlotId> = others.map(|other| other.slot.clone().into()).collect();
    let name = match token.free_slots(&[spec], &others, call) {
        Ok(free) => free.into_iter().next(),
        Err(Error::TokenFull { .. } | Error::OnlyNamedSlots { .. }) => None,
        Err(error) => return Err(error),
    };
    let Some(name) = name else {
        // Somebody has taken it: it is there.
        return Ok(true);
    };
    let mark = unfinished_mark();
    let new = NewKey {
        slot: &name,
        spec,
        mark: &mark,
    };
    let made = match token.generate(&new, call) {
        Ok(made) => made,
        Err(Error::NoSuchSlot { .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    let left = Unfinished {
        slot: name,
        mark,
        public_key: Some(made.public_key),
    };
    token.discard(&left, call)?;
    Ok(true)
}
