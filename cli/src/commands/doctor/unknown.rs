//! Keys on tokens that no identity here uses, perhaps from a lost registry.

use claviger_engine::types::check_name;
use claviger_engine::{EngineId, Registry};
use claviger_token::token::UNFINISHED;
use claviger_token::{KeyUse, SlotInfo, TokenInfo, shell};

use super::{AttachedTokens, Findings};

/// More than so many are not shown of a token.
const MOST: usize = 10;

/// Says which keys there are, and how to adopt them.
pub(super) fn check(registry: &Registry, seen: &AttachedTokens, findings: &mut Findings) {
    for (token, slots) in seen.values() {
        match token.derives {
            true if registry.is_copy() => findings.note(
                format!(
                    "keys that were derived on {} after the backup cannot be seen",
                    token.id
                ),
                format!(
                    "find them by their public keys: claviger doctor --backend {} \
                     --find-accounts FILE",
                    shell::quoted(&token.backend)
                ),
            ),
            // It has a key in every place, whoever uses it.
            true => {}
            false => check_token(registry, token, slots, findings),
        }
    }
}

fn check_token(
    registry: &Registry,
    token: &TokenInfo,
    slots: &[SlotInfo],
    findings: &mut Findings,
) {
    let unknown: Vec<Key<'_>> = slots
        .iter()
        .filter_map(Key::of)
        .filter(|key| is_unknown(registry, key))
        .collect();
    if unknown.is_empty() {
        return;
    }
    let name = match token.label.as_str() {
        "" => token.id.to_string(),
        label => format!("{label} ({})", token.id),
    };
    let keys = match unknown.len() {
        1 => "a key".to_owned(),
        several => format!("{several} keys"),
    };
    let mut lines: Vec<String> = offers(&unknown)
        .iter()
        .map(|offer| offer.command(registry, token))
        .collect();
    let more = lines.len().saturating_sub(MOST);
    lines.truncate(MOST);
    if more > 0 {
        lines.push(format!(
            "and {more} more: claviger tokens --backend {}",
            shell::quoted(&token.backend)
        ));
    }
    findings.note(
        format!("the token {name} has {keys} that no identity here uses"),
        format!("if they are yours, adopt them:\n  {}", lines.join("\n  ")),
    );
}

/// Whether it is of no identity, and nobody is making it.
fn is_unknown(registry: &Registry, key: &Key<'_>) -> bool {
    let open = registry.open_intents().unwrap_or_default();
    let mut begun = open.iter().flat_map(|intent| &intent.keys);
    let is_begun = begun.any(|other| {
        let public_key = other.public_key.as_ref();
        public_key.is_some_and(|other| other.fingerprint().to_string() == key.fingerprint)
    });
    let is_owned = key.slot.notes.iter().any(|(name, _)| name == "identity");
    !is_owned && !is_begun && !key.slot.label.starts_with(UNFINISHED)
}

struct Key<'a> {
    slot: &'a SlotInfo,
    fingerprint: &'a str,
}

impl<'a> Key<'a> {
    fn of(slot: &'a SlotInfo) -> Option<Self> {
        slot.public_key.as_ref().filter(|_| !slot.uses.is_empty())?;
        let fingerprint = slot.fingerprint.as_deref()?;
        Some(Key { slot, fingerprint })
    }

    fn is_only_for(&self, usage: KeyUse) -> bool {
        self.slot.uses == [usage]
    }
}

/// What can be adopted in one step.
struct Offer<'a> {
    label: &'a str,
    /// One key, or the one that signs and the one that decrypts.
    keys: Vec<&'a str>,
}

/// Two keys of one name, of which one signs and one decrypts, are those of an identity.
fn offers<'a>(keys: &[Key<'a>]) -> Vec<Offer<'a>> {
    let mut offers: Vec<Offer<'a>> = Vec::new();
    for key in keys {
        let label = key.slot.label.as_str();
        let is_of_name = |other: &&Key<'a>| !label.is_empty() && other.slot.label == label;
        let of_name: Vec<&Key<'a>> = keys.iter().filter(is_of_name).collect();
        let of_use = |usage| of_name.iter().find(|key| key.is_only_for(usage));
        let both = match (of_name.len(), of_use(KeyUse::Sign), of_use(KeyUse::Decrypt)) {
            (2, Some(sign), Some(decrypt)) => vec![sign.fingerprint, decrypt.fingerprint],
            _ => vec![key.fingerprint],
        };
        if !offers.iter().any(|offer| offer.keys == both) {
            offers.push(Offer { label, keys: both });
        }
    }
    offers
}

impl Offer<'_> {
    fn command(&self, registry: &Registry, token: &TokenInfo) -> String {
        let is_free = |name: &&str| {
            let taken = registry.identity(&EngineId::local(*name));
            check_name(name).is_ok() && matches!(taken, Ok(None))
        };
        let name = Some(self.label).filter(is_free).unwrap_or("NAME");
        format!(
            "claviger connect {} --to {} --backend {}",
            shell::quoted(name),
            self.keys.join(","),
            shell::quoted(&token.backend)
        )
    }
}
