//! Who may open a file, and which of their tokens are attached.

use std::collections::HashMap;

use claviger_formats::envelope::{Fit, Stanzas};
use claviger_token::{Call, Error, KeyUse, SlotInfo, TokenId, TokenInfo};

use super::{Away, Candidate};
use crate::policy::{self, Operation};
use crate::{EngineError, EngineId, IdentityInfo, KeyInfo, Node, RegistryError};

/// A token, and what of its slots is seen without a PIN; or why nothing is, where that is known.
type Shown = Result<(TokenInfo, Vec<SlotInfo>), Option<String>>;

/// The identities that may open the file and whose token is here, and those whose is not.
pub(super) async fn candidates(
    node: &Node,
    asker: &EngineId,
    stanzas: &Stanzas,
    call: &Call,
) -> Result<(Vec<Candidate>, Vec<Away>), EngineError> {
    let (mut here, mut away): (Vec<Candidate>, Vec<_>) = Default::default();
    let mut tokens: HashMap<TokenId, Shown> = HashMap::new();
    let mut refused = None;
    for (who, info, key, fit) in holders(node, stanzas).await? {
        // What the asker may not use is not looked for.
        let access = policy::Permission::Use {
            identity: &key.owner,
            operation: Operation::Decrypt,
        };
        if let Err(error) = node.0.policy.check(asker, access) {
            refused.get_or_insert(error);
            continue;
        }
        let token = key.token.clone();
        if !tokens.contains_key(&token) {
            let seen = see(node, asker, &token, &info.backend.to_string(), call).await;
            tokens.insert(token.clone(), seen);
        }
        let unreadable = match &tokens[&token] {
            Ok(_) => None,
            Err(unreadable) => unreadable.clone(),
        };
        let (Ok((token, slots)), Some(engine)) = (&tokens[&token], info.decryption_engine) else {
            away.push(Away {
                who,
                token,
                fit,
                unreadable,
            });
            continue;
        };
        here.push(Candidate {
            needs_person: needs_person(&key, slots),
            needs_pin: token.login_required,
            who,
            engine,
            token: key.token,
            fit,
        });
    }
    match refused.filter(|_| here.is_empty() && away.is_empty()) {
        Some(refused) => Err(refused),
        None => Ok((here, away)),
    }
}

/// The token, which `backend` leads to.
async fn see(node: &Node, asker: &EngineId, wanted: &TokenId, backend: &str, call: &Call) -> Shown {
    let found = node.look_for(asker, Some(backend), Some(wanted), call);
    let found = found.await.map_err(|error| Some(error.to_string()))?;
    let is_it = |token: &TokenInfo| token.id == *wanted || token.formerly.contains(wanted);
    let it = found.tokens.into_iter().find(|(token, _)| is_it(token));
    it.ok_or_else(|| {
        let reasons = found.unreadable.iter().map(|place| place.error.to_string());
        Some(reasons.collect::<Vec<_>>().join("; ")).filter(|reasons| !reasons.is_empty())
    })
}

/// The identities whose key may open the file, each key once: who it was made for goes before
/// those who are connected to it.
async fn holders(
    node: &Node,
    stanzas: &Stanzas,
) -> Result<Vec<(EngineId, IdentityInfo, KeyInfo, Fit)>, EngineError> {
    let mut identities = blocking(node, |node| node.registry().identities()).await?;
    identities.sort_by_key(|(who, info)| {
        info.key(KeyUse::Decrypt)
            .is_some_and(|key| key.owner != *who)
    });
    let mut holders: Vec<(EngineId, IdentityInfo, KeyInfo, Fit)> = Vec::new();
    for (who, info) in identities {
        let Some(key) = info
            .key(KeyUse::Decrypt)
            .filter(|key| !key.deleted)
            .cloned()
        else {
            continue;
        };
        let fit = stanzas.fits(&key.public_key);
        let is_known = (holders.iter()).any(|(_, _, known, _)| known.public_key == key.public_key);
        if fit != Fit::No && !is_known {
            holders.push((who, info, key, fit));
        }
    }
    Ok(holders)
}

/// Reads the registry, which may block.
pub(super) async fn blocking<T: Send + 'static>(
    node: &Node,
    read: impl FnOnce(&Node) -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, EngineError> {
    let node = node.clone();
    let done = tokio::task::spawn_blocking(move || read(&node)).await;
    Ok(done.map_err(|_| Error::Cancelled)??)
}

/// Whether a person has to touch or approve when the key is used, or may have to.
fn needs_person(key: &KeyInfo, slots: &[SlotInfo]) -> bool {
    let slot = slots.iter().find(|slot| key.slot.is_in(&slot.slot));
    let noted = slot.map_or(&[][..], |slot| &slot.notes);
    let attested = key.attestation.as_ref().map_or(&[][..], |a| &a.facts);
    let mut facts = noted.iter().chain(attested);
    match facts.find(|(what, _)| what == "touch_policy") {
        Some((_, policy)) => policy != "never",
        None => matches!(&*key.token.kind, "piv" | "ledger"),
    }
}
