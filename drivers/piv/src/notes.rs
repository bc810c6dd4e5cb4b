//! Notes on a card for the operator, as far as the card shows them without a PIN.

use crate::card::{Card, MANAGEMENT, Tries};
use crate::error::{Fault, told};
use crate::firmware::{Feature, Make};
use crate::management::Cipher;

/// What an operator wants to know of a card, as far as it tells without a PIN.
pub(crate) fn notes(card: &mut Card<'_>, make: &Make) -> Result<Vec<(String, String)>, Fault> {
    let mut notes: Vec<(String, String)> = Vec::new();
    let mut note = |name: &str, value: String| notes.push((name.into(), value));
    if let Some(version) = make.version() {
        note("firmware", version.to_string());
    }
    let metadata = make.has(Feature::Metadata);
    let pin = match metadata {
        true => told(card.pin_metadata())?.flatten(),
        false => None,
    };
    let counted = pin.as_ref().and_then(|pin| pin.tries).map(|(_, left)| left);
    let left = match counted {
        Some(left) => Some(left),
        None => match told(card.tries())? {
            Some(Tries::Left(left)) => Some(left),
            // It does not count while the PIN is given.
            Some(Tries::Verified) | None => None,
        },
    };
    if let Some(left) = left {
        note("pin_tries", left.to_string());
    }
    if left == Some(0) {
        note("pin_locked", "true".into());
    }
    if pin.and_then(|pin| pin.default) == Some(true) {
        note("pin_is_default", "true".into());
    }
    if metadata {
        if let Some(left) = told(card.puk_tries())?.flatten() {
            note("puk_tries", left.to_string());
            if left == 0 {
                note("puk_locked", "true".into());
            }
        }
        if let Some(key) = told(card.metadata(MANAGEMENT))?.flatten() {
            if let Some(id) = key.algorithm {
                let cipher = Cipher::from_id(id);
                note(
                    "management_key",
                    cipher.map_or("unknown", Cipher::name).into(),
                );
            }
            if key.default == Some(true) {
                note("management_key_is_default", "true".into());
            }
        }
    }
    if make.version().is_some()
        && let Some(protected) = told(card.management_key_is_protected())?
    {
        note("management_key_protected", protected.to_string());
    }
    Ok(notes)
}
