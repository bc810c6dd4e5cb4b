//! Enters an identity for keys that are already on a token.
//!
//! Both keys of a lost identity are entered in one step, since evidence is about both. Nothing is
//! entered before the token has used each key.
//!
//! Everything here blocks, and runs on a thread that may block.

use std::sync::Arc;

use claviger_token::{
    Call, Error, Fingerprint, KeyRef, KeySpec, KeyUse, PublicKey, SlotId, SlotInfo, TokenInfo,
};

use crate::identity_management::Sought;
use crate::inner::Inner;
use crate::lifecycle::{check_free_name, refusal};
use crate::registry::NewIdentity;
use crate::resolving::resolve;
use crate::tokens::{OpenToken, Opened};
use crate::trial::{Trial, prove};
use crate::types::{Origin, engine_name};
use crate::{Backend, Capabilities, EngineError, EngineId, Engines, KeyInfo};

/// A key on the token, and what it is to be used for.
struct KeyToAdopt {
    spec: KeySpec,
    key: KeyRef,
}

/// Enters an identity for keys on a token that is open, at whose turn we are.
pub(crate) fn adopt(
    node: &Inner,
    who: &EngineId,
    (token, named_slot): Opened,
    (backend, sought): (&Backend, &Sought),
    call: &Call,
) -> Result<Engines, EngineError> {
    call.check()?;
    // While the request waited somebody may have taken the name, or a key.
    check_free_name(node, who)?;
    check_owners(node, sought)?;
    if named_slot.is_some() && sought.fingerprints().len() > 1 {
        return Err(EngineError::OneSlotForTwoKeys {
            backend: backend.to_string(),
        });
    }
    resolve(node, &token, call)?;
    let mut info = token.token.info().clone();
    node.registry.take_account(&mut info)?;
    let device = Arc::clone(&token.token);
    let slots = token.work_apart(call, move |call| device.slots(call))?;
    let found = match sought {
        Sought::One(fingerprint, usage) => {
            let (slot, public_key) = in_slot(&token, &slots, named_slot.as_ref(), fingerprint)?;
            vec![found(slot, public_key, *usage)]
        }
        Sought::Both(both) => pair(&token, &info, &slots, both)?,
    };
    let not_usable = |reason| EngineError::KeyNotUsable { reason };
    for found in &found {
        info.check_uses(found.spec).map_err(not_usable)?;
    }
    let keys = found
        .into_iter()
        .map(|found| proven(node, &token, who, found, call))
        .collect::<Result<Vec<_>, _>>()?;

    let reached_by = info.backend.clone();
    let has = |usage| keys.iter().any(|key: &KeyInfo| key.usage == usage);
    let new = NewIdentity {
        who,
        backend: &Backend::from(reached_by.clone()),
        capabilities: match (has(KeyUse::Sign), has(KeyUse::Decrypt)) {
            (true, true) => Capabilities::CommitAndDecrypt,
            (true, false) => Capabilities::Commit,
            _ => Capabilities::Decrypt,
        },
        volatile: !info.durable,
        derived: info.derives,
        maker: node.maker(),
    };
    node.registry
        .insert_adopted(&new, &reached_by, &keys)
        .map_err(|e| unless_seen(node, refusal(e, who)))?;
    node.refresh(who);
    let engine = |of| has(of).then(|| EngineId::local(engine_name(of, who)));
    Ok(Engines {
        commitment_engine: engine(KeyUse::Sign),
        decryption_engine: engine(KeyUse::Decrypt),
    })
}

/// Refuses keys that belong to somebody: before a token is opened for them, and again before it
/// is asked for anything.
///
/// # Errors
/// [`EngineError::KeyHasOwner`].
pub(crate) fn check_owners(node: &Inner, sought: &Sought) -> Result<(), EngineError> {
    for fingerprint in sought.fingerprints() {
        if let Some(owner) = node.registry.owner_of(fingerprint)? {
            return Err(unless_seen(
                node,
                EngineError::KeyHasOwner {
                    fingerprint: *fingerprint,
                    owner: Some(owner),
                },
            ));
        }
    }
    Ok(())
}

/// `error`, without the name of an identity that the sender may not see.
fn unless_seen(node: &Inner, mut error: EngineError) -> EngineError {
    if let EngineError::KeyHasOwner { owner, .. } = &mut error {
        *owner = owner
            .take()
            .filter(|owner| node.policy.may_see(owner).unwrap_or(false));
    }
    error
}

fn found(slot: &SlotInfo, public_key: PublicKey, usage: KeyUse) -> KeyToAdopt {
    KeyToAdopt {
        spec: KeySpec {
            algorithm: public_key.algorithm(),
            usage,
        },
        key: KeyRef {
            slot: slot.slot.clone().into(),
            public_key,
        },
    }
}

fn with_fingerprint<'a>(
    slots: &'a [SlotInfo],
    fingerprint: &Fingerprint,
) -> Option<(&'a SlotInfo, PublicKey)> {
    let is_it = |key: &&PublicKey| key.fingerprint() == *fingerprint;
    let mut slots = slots.iter();
    slots.find_map(|slot| Some((slot, slot.public_key.as_ref().filter(is_it)?.clone())))
}

/// The slot with the key: the one that the backend names, if it names one.
fn in_slot<'a>(
    token: &OpenToken,
    slots: &'a [SlotInfo],
    named: Option<&SlotId>,
    fingerprint: &Fingerprint,
) -> Result<(&'a SlotInfo, PublicKey), EngineError> {
    let Some(named) = named else {
        return with_fingerprint(slots, fingerprint).ok_or(EngineError::ExternalIdentityNotFound);
    };
    let at = slots.iter().position(|slot| named.is_in(&slot.slot));
    let slot = at.map(|at| &slots[at..=at]).unwrap_or_default();
    match (with_fingerprint(slot, fingerprint), slot) {
        (Some(found), _) => Ok(found),
        (None, [slot]) if slot.fingerprint.is_some() => Err(Error::KeyMismatch {
            token: token.id().clone(),
            slot: named.to_string(),
            expected: fingerprint.to_string(),
            found: slot.fingerprint.clone().unwrap_or_default(),
        }
        .into()),
        (None, _) => Err(EngineError::ExternalIdentityNotFound),
    }
}

/// Both keys of an identity, the one that signs first. Which is which the token says; where it
/// says nothing of it, they are taken in the order in which they were named.
fn pair(
    token: &OpenToken,
    info: &TokenInfo,
    slots: &[SlotInfo],
    both: &[Fingerprint; 2],
) -> Result<Vec<KeyToAdopt>, EngineError> {
    let look = |fingerprint: &Fingerprint| {
        with_fingerprint(slots, fingerprint).ok_or_else(|| Error::KeyNotFound {
            token: token.id().clone(),
            key: fingerprint.to_string(),
        })
    };
    let (first, second) = (look(&both[0])?, look(&both[1])?);
    let can = |(slot, key): &(&SlotInfo, PublicKey), usage| {
        let algorithm = key.algorithm();
        let says_so = slot.uses.is_empty() || slot.uses.contains(&usage);
        says_so && info.check_uses(KeySpec { algorithm, usage }).is_ok()
    };
    let (sign, decrypt) = (KeyUse::Sign, KeyUse::Decrypt);
    let (signing, decrypting) = if can(&first, sign) && can(&second, decrypt) {
        (first, second)
    } else if can(&second, sign) && can(&first, decrypt) {
        (second, first)
    } else {
        let usage = match can(&first, sign) || can(&second, sign) {
            true => decrypt,
            false => sign,
        };
        return Err(EngineError::NoPair { missing: usage });
    };
    Ok(vec![
        found(signing.0, signing.1, sign),
        found(decrypting.0, decrypting.1, decrypt),
    ])
}

/// The key, once it has proven that the token can use it.
fn proven(
    node: &Inner,
    token: &OpenToken,
    who: &EngineId,
    found: KeyToAdopt,
    call: &Call,
) -> Result<KeyInfo, EngineError> {
    let KeyToAdopt { spec, key } = found;
    let public_key = key.public_key.clone();
    let slot = prove(node, token, Trial { spec, key }, &(), call).map_err(|error| match error {
        EngineError::Token(reason @ (Error::NotUsable { .. } | Error::Unsupported { .. })) => {
            EngineError::KeyNotUsable { reason }
        }
        other => other,
    })?;
    Ok(KeyInfo {
        usage: spec.usage,
        token: token.id().clone(),
        slot,
        public_key,
        origin: Origin::Adopted,
        protection: None,
        attestation: None,
        owner: who.clone(),
        deleted: false,
    })
}
