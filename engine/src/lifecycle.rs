//! Making, connecting and destroying identities: between the token and the registry.
//!
//! | step | Generate | Delete |
//! | --- | --- | --- |
//! | 1 | look at the token: does it offer this, is there room | open the token |
//! | 2 | write the intent | write the intent |
//! | 3 | make the keys | destroy the keys |
//! | 4 | enter the identity, forget the intent | remove the entry, forget the intent |
//!
//! Whatever stops a generation after step 2 undoes it; whatever stops a deletion leaves
//! it to be finished. If the process dies, or the token cannot be asked, the intent
//! stays, and [`settle`] does the same later.
//!
//! Everything here blocks, and runs on a thread that may.

use std::sync::Arc;
use std::time::Duration;

use claviger_token::{
    Call, Deletion, Error, Fingerprint, KeyRef, KeySpec, KeyUse, SlotId, SlotState,
};

use crate::identity_management::{
    Decision, decide, refuse_connect, refuse_delete, refuse_generate,
};
use crate::message::{Msg, ReplyConnectIdentity, ReplyDeleteIdentity, ReplyGenerateIdentity};
use crate::node::Inner;
use crate::registry::{Action, BeginError, Intent, NewIdentity};
use crate::tokens::OpenToken;
use crate::types::{Origin, engine_name};
use crate::{Backend, Capabilities, EngineError, EngineId, IdentityInfo, KeyInfo};

/// How long tidying up may take, whatever the caller's deadline.
const TIDY_LIMIT: Duration = Duration::from_secs(60);

/// Handles one message to Identity Management. `None`: no guard accepts it.
pub(crate) fn handle(node: &Inner, who: &EngineId, msg: Msg, call: &Call) -> Option<Msg> {
    let entry = |id: &EngineId| Ok(node.registry.identity(id)?);
    Some(match decide(who, msg, &*node.policy, entry)? {
        Decision::Reply(reply) => reply,
        Decision::Generate {
            backend,
            keys,
            capabilities,
        } => generate(node, who, &backend, &keys, capabilities, call)
            .unwrap_or_else(|err| refuse_generate(who, err)),
        Decision::Connect { original, info } => {
            connect(node, who, &original, info).unwrap_or_else(refuse_connect)
        }
        Decision::Adopt {
            backend,
            fingerprint,
            usage,
        } => adopt(node, who, &backend, &fingerprint, usage, call).unwrap_or_else(refuse_connect),
        Decision::Destroy { identity, info } => {
            destroy(node, &identity, &info, call).unwrap_or_else(refuse_delete)
        }
        Decision::Release { identity, info } => {
            release(node, &identity, &info).unwrap_or_else(refuse_delete)
        }
    })
}

fn generate(
    node: &Inner,
    who: &EngineId,
    backend: &Backend,
    specs: &[KeySpec],
    capabilities: Capabilities,
    call: &Call,
) -> Result<Msg, EngineError> {
    let (token, named_slot) = node.tokens.open(&backend.to_string(), call)?;
    settle(node, &token)?;
    if named_slot.is_some() && specs.len() > 1 {
        return Err(EngineError::OneSlotForTwoKeys {
            backend: backend.to_string(),
        });
    }
    for spec in specs {
        token.token.info().check_supports(*spec)?;
    }
    let named_slot = named_slot
        .map(|slot| check_free(&token, slot, call))
        .transpose()?;
    let reached_by = token.token.info().backend.clone();
    let (intent, slots) = loop {
        let slots = match &named_slot {
            Some(slot) => vec![slot.clone()],
            None => free_slots(node, &token, specs, call)?,
        };
        let begun = node
            .registry
            .begin(Action::Generate, who, token.id(), &reached_by, &slots);
        match begun {
            // Another process was quicker.
            Err(BeginError::SlotTaken { .. }) if named_slot.is_none() => call.check()?,
            Err(error) => return Err(refusal(error, who)),
            Ok(intent) => break (intent, slots),
        }
    };

    let new = NewIdentity {
        who,
        backend: &match backend {
            Backend::LocalConnection { .. } => Backend::LocalConnection {
                subtype: reached_by,
            },
            other => other.clone(),
        },
        capabilities,
        volatile: !token.token.info().durable,
        derived: token.token.info().derives,
    };
    let entered = make_keys(&token, who, specs, &slots, call).and_then(|keys| {
        node.registry
            .finish_generate(&intent, &new, &keys)
            .map_err(|e| Stopped {
                touched: slots.len(),
                error: refusal(e, who),
            })
    });
    if let Err(Stopped { touched, error }) = entered {
        undo(node, &token, &intent, &slots[..touched]);
        return Err(error);
    }
    node.refresh(who);
    let engine = |usage| {
        capabilities
            .include(usage)
            .then(|| EngineId::local(engine_name(usage, who)))
    };
    Ok(Msg::ReplyGenerateIdentity(ReplyGenerateIdentity {
        commitment_engine: engine(KeyUse::Sign),
        decryption_engine: engine(KeyUse::Decrypt),
        external_identity: who.clone(),
        err: None,
    }))
}

fn free_slots(
    node: &Inner,
    token: &OpenToken,
    specs: &[KeySpec],
    call: &Call,
) -> Result<Vec<SlotId>, EngineError> {
    let taken = node.registry.taken_slots(token.id())?;
    let (device, specs) = (Arc::clone(&token.token), specs.to_vec());
    Ok(token.work_blocking(call, move |call| device.free_slots(&specs, &taken, call))?)
}

/// A slot that the backend names must be free before anything is written down: what is
/// undone later must not be somebody else's key.
fn check_free(token: &OpenToken, slot: SlotId, call: &Call) -> Result<SlotId, EngineError> {
    let device = Arc::clone(&token.token);
    let slots = token.work_blocking(call, move |call| device.slots(call))?;
    match slots.iter().find(|s| s.slot == slot) {
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
}

fn make_keys(
    token: &OpenToken,
    who: &EngineId,
    specs: &[KeySpec],
    slots: &[SlotId],
    call: &Call,
) -> Result<Vec<KeyInfo>, Stopped> {
    let info = token.token.info();
    let mut keys = Vec::with_capacity(specs.len());
    for (spec, slot) in specs.iter().copied().zip(slots) {
        let (device, label, its_slot) = (Arc::clone(&token.token), who.name.clone(), slot.clone());
        let key = token
            .work_blocking(call, move |call| {
                device.generate(&its_slot, spec, &label, call)
            })
            .map_err(|error| Stopped {
                // What somebody put into the slot in the meantime is not ours.
                touched: keys.len() + usize::from(!matches!(error, Error::SlotOccupied { .. })),
                error: error.into(),
            })?;
        keys.push(KeyInfo {
            usage: spec.usage,
            token: info.id.clone(),
            slot: slot.clone(),
            public_key: key.public_key,
            origin: Origin::Generated,
            protection: Some(key.protection),
            attestation: key.attestation,
            owner: who.clone(),
            deleted: false,
        });
        if let Some(reason) = key.protection.missing().filter(|_| info.durable) {
            let (token, reason) = (info.id.clone(), reason.into());
            let error = Error::NotProtected { token, reason }.into();
            return Err(Stopped {
                touched: keys.len(),
                error,
            });
        }
    }
    // Who has given up in the meantime does not get an identity.
    call.check().map_err(|error| Stopped {
        touched: keys.len(),
        error: error.into(),
    })?;
    Ok(keys)
}

/// Removes what a generation left in `slots`. Where that fails the intent stays.
fn undo(node: &Inner, token: &OpenToken, intent: &Intent, slots: &[SlotId]) {
    let undone = destroy_slots(token, slots)
        .map_err(|(_, e)| EngineError::from(e))
        .and_then(|_| Ok(node.registry.abandon(intent)?));
    if let Err(error) = undone {
        node.registry.leave_open(intent);
        tracing::warn!(identity = %intent.identity, %error, "a generation is undone later");
    }
}

/// Destroys the keys in `slots`; on an error also says how many were done.
fn destroy_slots(token: &OpenToken, slots: &[SlotId]) -> Result<Vec<Deletion>, (usize, Error)> {
    let mut done = Vec::with_capacity(slots.len());
    for slot in slots {
        let (device, slot) = (Arc::clone(&token.token), slot.clone());
        let deletion = token
            .work_blocking(&Call::within(TIDY_LIMIT), move |call| {
                device.delete(&slot, call)
            })
            .map_err(|e| (done.len(), e))?;
        done.push(deletion);
    }
    Ok(done)
}

fn connect(
    node: &Inner,
    who: &EngineId,
    original: &EngineId,
    info: IdentityInfo,
) -> Result<Msg, EngineError> {
    let volatile = info.backend == Backend::LocalMemory;
    let new = NewIdentity {
        who,
        backend: &info.backend,
        capabilities: info.capabilities,
        volatile,
        derived: false,
    };
    node.registry
        .insert_connected(&new, original)
        .map_err(|e| refusal(e, who))?;
    node.refresh_engines(&info);
    Ok(Msg::ReplyConnectIdentity(ReplyConnectIdentity {
        commitment_engine: info.commitment_engine,
        decryption_engine: info.decryption_engine,
        err: None,
    }))
}

fn adopt(
    node: &Inner,
    who: &EngineId,
    backend: &Backend,
    fingerprint: &Fingerprint,
    usage: KeyUse,
    call: &Call,
) -> Result<Msg, EngineError> {
    if let Some(owner) = node.registry.owner_of(fingerprint)? {
        return Err(EngineError::KeyHasOwner {
            fingerprint: *fingerprint,
            owner,
        });
    }
    let (token, named_slot) = node.tokens.open(&backend.to_string(), call)?;
    let device = Arc::clone(&token.token);
    let slots = token.work_blocking(call, move |call| device.slots(call))?;
    let is_it = |key: &claviger_token::PublicKey| key.fingerprint() == *fingerprint;
    let found = match &named_slot {
        None => slots
            .iter()
            .find(|s| s.public_key.as_ref().is_some_and(is_it)),
        Some(named) => match slots.iter().find(|s| s.slot == *named) {
            Some(slot) if slot.public_key.as_ref().is_some_and(is_it) => Some(slot),
            Some(slot) if slot.fingerprint.is_some() => {
                return Err(EngineError::Token(Error::KeyMismatch {
                    token: token.id().clone(),
                    slot: named.to_string(),
                    expected: fingerprint.to_string(),
                    found: slot.fingerprint.clone().unwrap_or_default(),
                }));
            }
            _ => None,
        },
    };
    let Some((slot, public_key)) = found.and_then(|s| Some((s, s.public_key.clone()?))) else {
        return Err(EngineError::ExternalIdentityNotFound);
    };
    let spec = KeySpec {
        algorithm: public_key.algorithm(),
        usage,
    };
    if !slot.uses.contains(&usage) || !token.token.info().supports.contains(&spec) {
        return Err(EngineError::CapabilitiesNotAvailable);
    }
    let key = KeyRef {
        slot: slot.slot.clone(),
        public_key: public_key.clone(),
    };
    let device = Arc::clone(&token.token);
    token.work_blocking(call, move |_| match usage {
        KeyUse::Sign => device.signer(&key).map(drop),
        KeyUse::Decrypt => device.decryptor(&key).map(drop),
    })?;

    let reached_by = token.token.info().backend.clone();
    let new = NewIdentity {
        who,
        backend: &Backend::from(reached_by.clone()),
        capabilities: match usage {
            KeyUse::Sign => Capabilities::Commit,
            KeyUse::Decrypt => Capabilities::Decrypt,
        },
        volatile: !token.token.info().durable,
        derived: token.token.info().derives,
    };
    let key = KeyInfo {
        usage,
        token: token.id().clone(),
        slot: slot.slot.clone(),
        public_key,
        origin: Origin::Adopted,
        protection: None,
        attestation: None,
        owner: who.clone(),
        deleted: false,
    };
    node.registry
        .insert_adopted(&new, &reached_by, &key)
        .map_err(|e| refusal(e, who))?;
    node.refresh(who);
    let engine = |of| (of == usage).then(|| EngineId::local(engine_name(of, who)));
    Ok(Msg::ReplyConnectIdentity(ReplyConnectIdentity {
        commitment_engine: engine(KeyUse::Sign),
        decryption_engine: engine(KeyUse::Decrypt),
        err: None,
    }))
}

fn destroy(
    node: &Inner,
    identity: &EngineId,
    info: &IdentityInfo,
    call: &Call,
) -> Result<Msg, EngineError> {
    let Some(backend) = node.registry.reached_by(identity)? else {
        return Err(EngineError::IdentityDoesNotExist);
    };
    let (token, _) = node.tokens.open(&backend, call)?;
    if let Some(key) = info.keys.iter().find(|key| key.token != *token.id()) {
        return Err(EngineError::Token(Error::TokenUnavailable {
            token: key.token.clone(),
            reason: format!("{} is there instead", token.id()),
        }));
    }
    let slots: Vec<SlotId> = info.keys.iter().map(|key| key.slot.clone()).collect();
    settle(node, &token)?;
    if node.registry.identity(identity)?.is_none() {
        // A deletion that was begun earlier has just been finished.
        return Ok(deleted(vec![Deletion::Destroyed; slots.len()]));
    }
    call.check()?;
    let intent = node
        .registry
        .begin(Action::Delete, identity, token.id(), &backend, &slots)
        .map_err(|e| refusal(e, identity))?;
    match destroy_slots(&token, &slots) {
        Ok(keys) => {
            if let Err(error) = node.registry.finish_delete(&intent) {
                node.registry.leave_open(&intent);
                return Err(error.into());
            }
            node.refresh(identity);
            Ok(deleted(keys))
        }
        // The token said no before anything happened.
        Err((0, error))
            if matches!(
                error,
                Error::TokenReadOnly { .. } | Error::Busy { .. } | Error::CannotDestroy { .. }
            ) =>
        {
            node.registry.abandon(&intent)?;
            Err(error.into())
        }
        Err((_, reason)) => {
            node.registry.leave_open(&intent);
            Err(EngineError::DeletionUnfinished {
                identity: identity.clone(),
                reason,
            })
        }
    }
}

fn release(node: &Inner, identity: &EngineId, info: &IdentityInfo) -> Result<Msg, EngineError> {
    node.registry.release(identity)?;
    node.refresh_engines(info);
    Ok(deleted(Vec::new()))
}

fn deleted(keys: Vec<Deletion>) -> Msg {
    Msg::ReplyDeleteIdentity(ReplyDeleteIdentity { keys, err: None })
}

/// Settles what dead processes, or failures of the token, left open on `token`.
///
/// # Errors
/// What keeps it from being settled; the intents stay.
pub(crate) fn settle(node: &Inner, token: &OpenToken) -> Result<usize, EngineError> {
    let open = node.registry.open_intents()?;
    let mut settled = 0;
    for intent in open.iter().filter(|intent| intent.token == *token.id()) {
        destroy_slots(token, &intent.slots).map_err(|(_, e)| e)?;
        match intent.action {
            Action::Generate => node.registry.abandon(intent)?,
            Action::Delete => node.registry.finish_delete(intent)?,
        }
        node.refresh(&intent.identity);
        tracing::info!(identity = %intent.identity, action = ?intent.action, "settled");
        settled += 1;
    }
    Ok(settled)
}

fn refusal(error: BeginError, who: &EngineId) -> EngineError {
    match error {
        BeginError::Exists => EngineError::IdentityExists,
        BeginError::IsContact => EngineError::NameIsContact,
        BeginError::InProgress => EngineError::InProgress {
            identity: who.clone(),
        },
        BeginError::SlotTaken { token, slot } => Error::SlotOccupied {
            token,
            slot: slot.to_string(),
        }
        .into(),
        BeginError::Registry(error) => error.into(),
    }
}
