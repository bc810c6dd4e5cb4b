//! Makes, connects and destroys identities, between the token and the registry.
//!
//! | step | Generate | Delete |
//! | --- | --- | --- |
//! | 1 | check that the token offers this and has room | open the token |
//! | 2 | write the intent, with a mark for each key | write the intent, with the public keys |
//! | 3 | make the keys, marked; record their public keys | destroy the keys |
//! | 4 | use each key once, as proof of possession | |
//! | 5 | enter the identity; the intent is now to name the keys | remove the entry and the intent |
//! | 6 | name the keys, remove the intent | |
//!
//! A generation that fails between steps 2 and 5 is undone; a deletion that fails is completed
//! later. If the process dies, or the token is not available, the intent stays, and
//! [`resolve`](crate::resolving::resolve) resolves it later.
//!
//! # Order
//! The specification has Identity Management handle one message at a time. Here requests about
//! different identities on different tokens run at once, and the outcome is the same: each of
//! them reads and changes the map of identities in transactions of the registry, one that checks
//! that there may be such an entry and writes the intent, and one that makes or removes the
//! entry. So they take effect in the order of their last transactions, as if each had been
//! handled alone at that moment. Requests about one identity, and those about one token, take
//! [turns](crate::turns): of two that want the same name the second finds the entry of the first.
//! Only then is a token asked for anything, and it was opened before, so that nobody waits for
//! somebody else's PIN.
//!
//! # Deadlines
//! A request ends at its deadline. What the token has begun must end before it can be undone, so a request may be answered
//! [`PATIENCE`] after it. If even that is not enough, the intent stays claimed until the
//! token has ended the operation.
//!
//! Everything here blocks, and runs on a thread that may block.

use std::sync::Arc;

use claviger_token::{
    Call, Deletion, Error, GeneratedKey, KeySpec, KeyUse, NewKey, SlotId, SlotName, SlotState,
    TokenId, TokenInfo, Unfinished, unfinished_mark,
};

use crate::identity_management::Generate;
use crate::inner::Inner;
use crate::lane::{NotDone, PATIENCE};
use crate::registry::{
    Action, BeginError, Claim, Intent, NewIdentity, RegistryError, Released, What,
};
use crate::resolving::{NotDestroyed, Resolved, destroy_keys, name_keys, resolve, undo};
use crate::tokens::{OpenToken, Opened};
use crate::trial::{Trial, prove};
use crate::types::{Origin, engine_name};
use crate::{Backend, EngineError, EngineId, Engines, IdentityInfo, KeyInfo};

/// How often a generation begins anew where others are quicker.
const ATTEMPTS: usize = 8;

/// Makes keys on a token that is open, at whose turn we are, and enters an identity for them.
pub(crate) fn generate(
    node: &Inner,
    who: &EngineId,
    (token, named_slot): Opened,
    wanted: &Generate,
    call: &Call,
) -> Result<Engines, EngineError> {
    let Generate {
        backend,
        keys: specs,
        capabilities,
    } = wanted;
    call.check()?;
    check_free_name(node, who)?;
    resolve(node, &token, call)?;
    if named_slot.is_some() && specs.len() > 1 {
        return Err(EngineError::OneSlotForTwoKeys {
            backend: backend.to_string(),
        });
    }
    // Without what was tried here before and does not work.
    let mut info = token.token.info().clone();
    node.registry.take_account(&mut info)?;
    for spec in specs {
        info.check_makes(*spec)?;
    }
    check_accounts(node, &info, backend)?;
    let named_slot = named_slot
        .map(|slot| check_free(&token, slot, call))
        .transpose()?;
    let reached_by = info.backend.clone();
    let new = NewIdentity {
        who,
        backend: &match backend {
            Backend::LocalConnection { .. } => Backend::LocalConnection {
                subtype: reached_by.clone(),
            },
            other => other.clone(),
        },
        capabilities: *capabilities,
        volatile: !info.durable,
        derived: info.derives,
        maker: node.maker(),
    };
    let mut attempts = ATTEMPTS;
    loop {
        let slots = match &named_slot {
            Some(slot) => vec![slot.clone()],
            None => free_slots(node, &token, specs, call)?,
        };
        let planned: Vec<Unfinished> = slots.into_iter().map(planned).collect();
        let begun = node
            .registry
            .begin(Action::Generate, who, token.id(), &reached_by, &planned);
        let (mut intent, claim) = match begun {
            Ok(begun) => begun,
            // Another process was quicker.
            Err(BeginError::SlotTaken { .. }) if named_slot.is_none() => {
                call.check()?;
                continue;
            }
            Err(error) => return Err(refusal(error, who)),
        };
        let entered =
            make_keys(node, &token, who, specs, &mut intent, &claim, call).and_then(|keys| {
                node.registry
                    .finish_generate(&intent, &new, &keys)
                    .map_err(|e| Stopped::after(intent.keys.len(), refusal(e, who)))?;
                Ok(keys)
            });
        let stopped = match entered {
            Ok(keys) => {
                name_keys(node, &token, &intent, &keys, &claim, call);
                note_slots(node, &token, &intent);
                break;
            }
            Err(stopped) => stopped,
        };
        if !stopped.still_at_it {
            undo(node, &token, &intent, stopped.touched, &claim, call);
        }
        attempts -= 1;
        match stopped.error {
            // The same, of one that keeps another registry.
            EngineError::Token(Error::SlotOccupied { .. })
                if named_slot.is_none() && attempts > 0 =>
            {
                call.check()?;
            }
            EngineError::Token(Error::NoSuchSlot { slot, .. })
                if named_slot.is_none() && attempts > 0 =>
            {
                call.check()?;
                let slot = SlotName::new(slot);
                node.registry.note_tried(&info, What::Slot(&slot), false)?;
            }
            error => return Err(error),
        }
    }
    node.refresh(who);
    let engine = |usage| {
        capabilities
            .include(usage)
            .then(|| EngineId::local(engine_name(usage, who)))
    };
    Ok(Engines {
        commitment_engine: engine(KeyUse::Sign),
        decryption_engine: engine(KeyUse::Decrypt),
    })
}

/// Refuses a name that was taken while the request waited: before the token is asked for anything.
///
/// # Errors
/// [`EngineError::IdentityExists`].
pub(crate) fn check_free_name(node: &Inner, who: &EngineId) -> Result<(), EngineError> {
    match node.registry.identity(who)? {
        Some(_) => Err(EngineError::IdentityExists),
        None => Ok(()),
    }
}

/// Refuses to derive keys in a copy of a home: the other one may derive the same. An account
/// that the backend names is taken as it is.
fn check_accounts(node: &Inner, info: &TokenInfo, backend: &Backend) -> Result<(), EngineError> {
    let is_named = backend.to_string().contains("account=");
    match info.derives && node.registry.is_copy() && !is_named {
        true => Err(RegistryError::Copy.into()),
        false => Ok(()),
    }
}

/// Notes that the slots of `intent` are there, where a slot has a name that outlives its key
/// and the token does not say which it has. It is only for people to see.
fn note_slots(node: &Inner, token: &OpenToken, intent: &Intent) {
    let named = intent.keys.iter().map(|key| &key.slot);
    for slot in named.filter(|slot| slot.mark().is_some()) {
        let noted = (node.registry).note_tried(token.token.info(), What::Slot(&slot.into()), true);
        if let Err(error) = noted {
            tracing::warn!(%slot, %error, "that the slot is there is not noted");
        }
    }
}

/// A key that is about to be made in `slot`.
fn planned(slot: SlotId) -> Unfinished {
    Unfinished {
        slot,
        mark: unfinished_mark(),
        public_key: None,
    }
}

fn free_slots(
    node: &Inner,
    token: &OpenToken,
    specs: &[KeySpec],
    call: &Call,
) -> Result<Vec<SlotId>, EngineError> {
    let mut taken = node.registry.taken_slots(token.id())?;
    taken.extend(node.registry.missing_slots(token.token.info())?);
    let (device, specs) = (Arc::clone(&token.token), specs.to_vec());
    Ok(token.work_apart(call, move |call| device.free_slots(&specs, &taken, call))?)
}

/// A slot that the backend names must be free before anything is written down: what is
/// undone later must not be somebody else's key.
fn check_free(token: &OpenToken, slot: SlotId, call: &Call) -> Result<SlotId, EngineError> {
    let device = Arc::clone(&token.token);
    let slots = token.work_apart(call, move |call| device.slots(call))?;
    match slots.iter().find(|s| slot.is_in(&s.slot)) {
        Some(found) if found.state == SlotState::Occupied => Err(Error::SlotOccupied {
            token: token.id().clone(),
            slot: slot.to_string(),
        }
        .into()),
        _ => Ok(slot),
    }
}

/// A generation that did not come to its end.
struct Stopped {
    /// In how many of its slots something may have been made.
    touched: usize,
    error: EngineError,
    /// Whether the token has not ended it yet.
    still_at_it: bool,
}

impl Stopped {
    fn after(touched: usize, error: impl Into<EngineError>) -> Self {
        Stopped {
            touched,
            error: error.into(),
            still_at_it: false,
        }
    }
}

/// Makes the keys of `intent`, and uses each of them once: what the token cannot do with a key
/// that it has made shows here, and not when something depends on it.
fn make_keys(
    node: &Inner,
    token: &OpenToken,
    who: &EngineId,
    specs: &[KeySpec],
    intent: &mut Intent,
    claim: &Arc<Claim>,
    call: &Call,
) -> Result<Vec<KeyInfo>, Stopped> {
    let info = token.token.info();
    let mut keys = Vec::with_capacity(specs.len());
    for (at, spec) in specs.iter().copied().enumerate() {
        let key = make_key(token, spec, &intent.keys[at], claim, call).map_err(|not| Stopped {
            touched: at + not.touched,
            ..not
        })?;
        let all_so_far = |error: EngineError| Stopped::after(at + 1, error);
        intent.keys[at].public_key = Some(key.public_key.clone());
        node.registry
            .note_keys(intent)
            .map_err(|error| all_so_far(error.into()))?;
        keys.push(KeyInfo {
            usage: spec.usage,
            token: info.id.clone(),
            slot: intent.keys[at].slot.clone(),
            public_key: key.public_key,
            origin: Origin::Generated,
            protection: Some(key.protection),
            attestation: key.attestation,
            owner: who.clone(),
            deleted: false,
        });
        // That it was made on the token nobody knows better than we do.
        let missing = key.protection.made_here().missing();
        if let Some(reason) = missing.filter(|_| info.durable) {
            let (token, reason) = (info.id.clone(), reason.into());
            return Err(all_so_far(Error::NotProtected { token, reason }.into()));
        }
    }
    let all = |error: EngineError| Stopped::after(keys.len(), error);
    for (spec, key) in specs.iter().zip(&keys) {
        let trial = Trial {
            spec: *spec,
            key: key.key_ref(),
        };
        prove(node, token, trial, claim, call).map_err(all)?;
    }
    // Who has given up in the meantime does not get an identity.
    call.check().map_err(|error| all(error.into()))?;
    Ok(keys)
}

fn make_key(
    token: &OpenToken,
    spec: KeySpec,
    planned: &Unfinished,
    claim: &Arc<Claim>,
    call: &Call,
) -> Result<GeneratedKey, Stopped> {
    let (device, planned, its_claim) =
        (Arc::clone(&token.token), planned.clone(), Arc::clone(claim));
    let made = token.carry_through(call, PATIENCE, move |call| {
        let _claim = its_claim;
        let new = NewKey {
            slot: &planned.slot,
            spec,
            mark: &planned.mark,
        };
        device.generate(&new, call)
    });
    match made {
        Ok(Ok(key)) => Ok(key),
        // What somebody put into the slot in the meantime is not ours; where there is no slot
        // there is nothing.
        Ok(Err(error @ (Error::SlotOccupied { .. } | Error::NoSuchSlot { .. }))) => {
            Err(Stopped::after(0, error))
        }
        Ok(Err(error)) => Err(Stopped::after(1, error)),
        Err(NotDone::NotBegun(error)) => Err(Stopped::after(0, error)),
        Err(NotDone::StillAtIt) => Err(Stopped {
            still_at_it: true,
            ..Stopped::after(1, Error::DeadlineExceeded)
        }),
    }
}

/// Enters an identity that uses the engines of `original`.
pub(crate) fn connect(
    node: &Inner,
    who: &EngineId,
    original: &EngineId,
    info: IdentityInfo,
) -> Result<Engines, EngineError> {
    let volatile = info.backend == Backend::LocalMemory;
    let new = NewIdentity {
        who,
        backend: &info.backend,
        capabilities: info.capabilities,
        volatile,
        derived: false,
        maker: node.maker(),
    };
    node.registry
        .insert_connected(&new, original)
        .map_err(|e| refusal(e, who))?;
    node.refresh_engines(&info);
    Ok(Engines {
        commitment_engine: info.commitment_engine,
        decryption_engine: info.decryption_engine,
    })
}

/// Destroys the keys of an identity on a token that is open, at whose turn we are, and removes
/// its entry.
pub(crate) fn destroy(
    node: &Inner,
    identity: &EngineId,
    info: &IdentityInfo,
    (token, backend): (Arc<OpenToken>, &str),
    call: &Call,
) -> Result<Vec<Deletion>, EngineError> {
    call.check()?;
    let is_it =
        |named: &TokenId| named == token.id() || token.token.info().formerly.contains(named);
    if let Some(key) = info.keys.iter().find(|key| !is_it(&key.token)) {
        return Err(EngineError::Token(Error::TokenUnavailable {
            token: key.token.clone(),
            reason: format!("{} is there instead", token.id()),
        }));
    }
    // By now the token may have another name than `info` says.
    let doomed: Vec<Unfinished> = info.keys.iter().map(KeyInfo::doomed).collect();
    // It may be that a deletion was begun earlier.
    for Resolved { intent, result } in resolve(node, &token, call)? {
        if intent.identity != *identity || intent.action != Action::Delete {
            continue;
        }
        match result {
            Ok(keys) if node.registry.identity(identity)?.is_none() => {
                return Ok(as_far_as_known(&token, keys));
            }
            Err(EngineError::Token(reason)) => {
                return Err(EngineError::DeletionUnfinished {
                    identity: identity.clone(),
                    reason,
                });
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    check_is_still(node, identity, info)?;
    call.check()?;
    let (intent, claim) = node
        .registry
        .begin(Action::Delete, identity, token.id(), backend, &doomed)
        .map_err(|e| refusal(e, identity))?;
    match destroy_keys(node, &token, &intent, &claim, call) {
        Ok(keys) => {
            if let Err(error) = node.registry.finish_delete(&intent) {
                node.registry.leave_open(&intent);
                return Err(error.into());
            }
            node.refresh(identity);
            Ok(as_far_as_known(&token, keys))
        }
        // The token said no before anything happened.
        Err(NotDestroyed {
            done: 0,
            begun,
            error,
        }) if !begun
            || matches!(
                error,
                Error::TokenReadOnly { .. }
                    | Error::Busy { .. }
                    | Error::CannotDestroy { .. }
                    | Error::KeyMismatch { .. }
            ) =>
        {
            // Where that fails it stays open, and is tried again.
            node.registry.abandon(&intent)?;
            Err(error.into())
        }
        Err(NotDestroyed { error: reason, .. }) => Err(EngineError::DeletionUnfinished {
            identity: identity.clone(),
            reason,
        }),
    }
}

/// Refuses to destroy what was made anew under the name since it was looked up as `seen`.
fn check_is_still(
    node: &Inner,
    identity: &EngineId,
    seen: &IdentityInfo,
) -> Result<(), EngineError> {
    let now = node.registry.identity(identity)?;
    let now = now.ok_or(EngineError::IdentityDoesNotExist)?;
    // The token may have another name by now; its keys are the same.
    let now = now.keys.iter().map(|key| &key.public_key);
    match now.eq(seen.keys.iter().map(|key| &key.public_key)) {
        true => Ok(()),
        false => Err(EngineError::InProgress {
            identity: identity.clone(),
        }),
    }
}

/// What can be said of keys of which the token only says that they are not there.
fn as_far_as_known(token: &OpenToken, mut keys: Vec<Deletion>) -> Vec<Deletion> {
    if token.token.info().derives {
        keys.fill(Deletion::Derivable);
    }
    keys
}

/// Removes the entry of an identity whose keys are not its own.
pub(crate) fn release(
    node: &Inner,
    identity: &EngineId,
    info: &IdentityInfo,
) -> Result<Vec<Deletion>, EngineError> {
    match node.registry.release(identity, info)? {
        Released::Done => {}
        Released::Gone => return Err(EngineError::IdentityDoesNotExist),
        Released::Another => {
            return Err(EngineError::InProgress {
                identity: identity.clone(),
            });
        }
    }
    node.refresh_engines(info);
    Ok(Vec::new())
}

pub(crate) fn refusal(error: BeginError, who: &EngineId) -> EngineError {
    match error {
        BeginError::Exists => EngineError::IdentityExists,
        BeginError::IsContact => EngineError::NameIsContact,
        BeginError::NotAvailable => EngineError::CapabilitiesNotAvailable,
        BeginError::Deleted { owner } => EngineError::IdentityDeleted { identity: owner },
        BeginError::InProgress => EngineError::InProgress {
            identity: who.clone(),
        },
        BeginError::HasOwner { fingerprint, owner } => EngineError::KeyHasOwner {
            fingerprint,
            owner: Some(owner),
        },
        BeginError::SlotTaken { token, slot } => Error::SlotOccupied {
            token,
            slot: slot.to_string(),
        }
        .into(),
        BeginError::Registry(error) => error.into(),
    }
}
