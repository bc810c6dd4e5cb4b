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
//! What the token has begun is waited for, since it cannot be undone before it has ended:
//! a request may be answered [`PATIENCE`] after its deadline. Where even that is not
//! enough, the intent stays claimed until the token has ended it.
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
use crate::lane::StillAtIt;
use crate::message::{Msg, ReplyConnectIdentity, ReplyDeleteIdentity, ReplyGenerateIdentity};
use crate::node::Inner;
use crate::registry::{Action, BeginError, Claim, Intent, NewIdentity};
use crate::tokens::OpenToken;
use crate::types::{Origin, engine_name};
use crate::{Backend, Capabilities, EngineError, EngineId, IdentityInfo, KeyInfo};

/// How long the token may take to end what it has begun, and for each thing that is tidied
/// up, whatever the caller's deadline.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a generation begins anew where others are quicker.
const ATTEMPTS: usize = 8;

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
    let new = NewIdentity {
        who,
        backend: &match backend {
            Backend::LocalConnection { .. } => Backend::LocalConnection {
                subtype: reached_by.clone(),
            },
            other => other.clone(),
        },
        capabilities,
        volatile: !token.token.info().durable,
        derived: token.token.info().derives,
    };
    let mut attempts = ATTEMPTS;
    loop {
        let slots = match &named_slot {
            Some(slot) => vec![slot.clone()],
            None => free_slots(node, &token, specs, call)?,
        };
        let begun = node
            .registry
            .begin(Action::Generate, who, token.id(), &reached_by, &slots);
        let (intent, claim) = match begun {
            Ok(begun) => begun,
            // Another process was quicker.
            Err(BeginError::SlotTaken { .. }) if named_slot.is_none() => {
                call.check()?;
                continue;
            }
            Err(error) => return Err(refusal(error, who)),
        };
        let entered = make_keys(&token, who, specs, &slots, &claim, call).and_then(|keys| {
            node.registry
                .finish_generate(&intent, &new, &keys)
                .map_err(|e| Stopped::after(slots.len(), refusal(e, who)))
        });
        let Err(stopped) = entered else { break };
        if !stopped.still_at_it {
            undo(node, &token, &intent, &slots[..stopped.touched], &claim);
        }
        attempts -= 1;
        match stopped.error {
            // The same, of one that keeps another registry.
            EngineError::Token(Error::SlotOccupied { .. })
                if named_slot.is_none() && attempts > 0 =>
            {
                call.check()?;
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

fn make_keys(
    token: &OpenToken,
    who: &EngineId,
    specs: &[KeySpec],
    slots: &[SlotId],
    claim: &Arc<Claim>,
    call: &Call,
) -> Result<Vec<KeyInfo>, Stopped> {
    let info = token.token.info();
    let mut keys = Vec::with_capacity(specs.len());
    for (spec, slot) in specs.iter().copied().zip(slots) {
        let (device, label, its_slot) = (Arc::clone(&token.token), who.name.clone(), slot.clone());
        let its_claim = Arc::clone(claim);
        let made = token.carry_through(call, PATIENCE, move |call| {
            let _claim = its_claim;
            device.generate(&its_slot, spec, &label, call)
        });
        let key = match made {
            Ok(Ok(key)) => key,
            // What somebody put into the slot in the meantime is not ours.
            Ok(Err(error @ Error::SlotOccupied { .. })) => {
                return Err(Stopped::after(keys.len(), error));
            }
            Ok(Err(error)) => return Err(Stopped::after(keys.len() + 1, error)),
            Err(StillAtIt) => {
                return Err(Stopped {
                    still_at_it: true,
                    ..Stopped::after(keys.len() + 1, Error::DeadlineExceeded)
                });
            }
        };
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
            let error = Error::NotProtected { token, reason };
            return Err(Stopped::after(keys.len(), error));
        }
    }
    // Who has given up in the meantime does not get an identity.
    call.check()
        .map_err(|error| Stopped::after(keys.len(), error))?;
    Ok(keys)
}

/// Removes what a generation left in `slots`. Where that fails the intent stays.
fn undo(node: &Inner, token: &OpenToken, intent: &Intent, slots: &[SlotId], claim: &Arc<Claim>) {
    let undone = destroy_slots(node, token, intent, slots, claim)
        .map_err(|not| not.error.into())
        .and_then(|_| {
            node.registry
                .abandon(intent)
                .inspect_err(|_| node.registry.leave_open(intent))
                .map_err(EngineError::from)
        });
    if let Err(error) = undone {
        tracing::warn!(identity = %intent.identity, %error, "a generation is undone later");
    }
}

/// Keys that were to be destroyed, and were not.
struct NotDestroyed {
    /// How many were before.
    done: usize,
    error: Error,
}

/// Destroys the keys in `slots`. Where that does not come to its end the intent is left
/// open.
fn destroy_slots(
    node: &Inner,
    token: &OpenToken,
    intent: &Intent,
    slots: &[SlotId],
    claim: &Arc<Claim>,
) -> Result<Vec<Deletion>, NotDestroyed> {
    let keys = entered_keys(node, intent);
    let mut done = Vec::with_capacity(slots.len());
    for slot in slots {
        let mut keys = keys.iter();
        let key = keys.find(|key| key.slot.as_str() == slot.as_str()).cloned();
        let (device, slot, its_claim) = (Arc::clone(&token.token), slot.clone(), Arc::clone(claim));
        let call = Call::within(PATIENCE);
        let deleted = token.carry_through(&call, PATIENCE, move |call| {
            let _claim = its_claim;
            match key {
                Some(key) => device.delete_key(&key, call),
                None => device.delete(&slot, call),
            }
        });
        let error = match deleted {
            Ok(Ok(deletion)) => {
                done.push(deletion);
                continue;
            }
            Ok(Err(error)) => {
                node.registry.leave_open(intent);
                error
            }
            // It stays claimed for as long as the token is at it.
            Err(StillAtIt) => Error::DeadlineExceeded,
        };
        let done = done.len();
        return Err(NotDestroyed { done, error });
    }
    match check_gone(token, &keys, slots, &done) {
        Ok(()) => Ok(done),
        Err(error) => {
            node.registry.leave_open(intent);
            let done = done.iter().filter(|d| **d != Deletion::NothingThere);
            Err(NotDestroyed {
                done: done.count(),
                error,
            })
        }
    }
}

/// The keys of the identity that is being deleted: those of a generation are not known yet.
fn entered_keys(node: &Inner, intent: &Intent) -> Vec<KeyRef> {
    let info = match intent.action {
        Action::Generate => None,
        Action::Delete => node.registry.identity(&intent.identity).ok().flatten(),
    };
    let keys = info.into_iter().flat_map(|info| info.keys);
    let keys = keys.filter(|key| key.token == intent.token);
    keys.map(|key| KeyRef {
        slot: key.slot,
        public_key: key.public_key,
    })
    .collect()
}

/// Where the token says that nothing was there to be deleted, it must not show the key
/// anywhere.
fn check_gone(
    token: &OpenToken,
    keys: &[KeyRef],
    slots: &[SlotId],
    done: &[Deletion],
) -> Result<(), Error> {
    let missed = slots.iter().zip(done);
    let missed = missed.filter(|(_, deletion)| **deletion == Deletion::NothingThere);
    let missed: Vec<&KeyRef> = missed
        .filter_map(|(slot, _)| keys.iter().find(|key| key.slot.as_str() == slot.as_str()))
        .collect();
    if missed.is_empty() {
        return Ok(());
    }
    let device = Arc::clone(&token.token);
    let seen = token.work_blocking(&Call::within(PATIENCE), move |call| device.slots(call))?;
    let is_shown = |key: &&&KeyRef| {
        let mut seen = seen.iter();
        seen.any(|slot| slot.public_key.as_ref() == Some(&key.public_key))
    };
    match missed.iter().find(is_shown) {
        None => Ok(()),
        Some(key) => Err(Error::CannotDestroy {
            token: token.id().clone(),
            slot: key.slot.to_string(),
        }),
    }
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
    settle(node, &token)?;
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
    // It may be that a deletion was begun earlier.
    for Settled { intent, result } in settle(node, &token)? {
        if intent.identity != *identity || intent.action != Action::Delete {
            continue;
        }
        match result {
            Ok(keys) if node.registry.identity(identity)?.is_none() => {
                return Ok(deleted(as_far_as_known(&token, keys)));
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
    if node.registry.identity(identity)?.is_none() {
        return Err(EngineError::IdentityDoesNotExist);
    }
    call.check()?;
    let (intent, claim) = node
        .registry
        .begin(Action::Delete, identity, token.id(), &backend, &slots)
        .map_err(|e| refusal(e, identity))?;
    match destroy_slots(node, &token, &intent, &slots, &claim) {
        Ok(keys) => {
            if let Err(error) = node.registry.finish_delete(&intent) {
                node.registry.leave_open(&intent);
                return Err(error.into());
            }
            node.refresh(identity);
            Ok(deleted(as_far_as_known(&token, keys)))
        }
        // The token said no before anything happened.
        Err(NotDestroyed { done: 0, error })
            if matches!(
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

/// What can be said of keys of which the token only says that they are not there.
fn as_far_as_known(token: &OpenToken, mut keys: Vec<Deletion>) -> Vec<Deletion> {
    if token.token.info().derives {
        keys.fill(Deletion::Derivable);
    }
    keys
}

fn release(node: &Inner, identity: &EngineId, info: &IdentityInfo) -> Result<Msg, EngineError> {
    if !node.registry.release(identity, info)? {
        return Err(EngineError::InProgress {
            identity: identity.clone(),
        });
    }
    node.refresh_engines(info);
    Ok(deleted(Vec::new()))
}

fn deleted(keys: Vec<Deletion>) -> Msg {
    Msg::ReplyDeleteIdentity(ReplyDeleteIdentity { keys, err: None })
}

/// What came of an intent that was open.
pub(crate) struct Settled {
    pub(crate) intent: Intent,
    pub(crate) result: Result<Vec<Deletion>, EngineError>,
}

/// Settles what dead processes, or failures of the token, left open on `token`. What
/// cannot be settled stays, and keeps nobody from using the token.
///
/// # Errors
/// [`EngineError::Registry`].
pub(crate) fn settle(node: &Inner, token: &OpenToken) -> Result<Vec<Settled>, EngineError> {
    let open = node.registry.open_intents()?;
    let its_own = open
        .into_iter()
        .filter(|intent| intent.token == *token.id());
    let mut settled = Vec::new();
    for intent in its_own {
        if let Some(result) = settle_one(node, token, &intent).transpose() {
            if let Err(error) = &result {
                tracing::warn!(identity = %intent.identity, %error, "not settled");
            }
            settled.push(Settled { intent, result });
        }
    }
    Ok(settled)
}

/// Settles one of them. None where somebody else does.
///
/// # Errors
/// What keeps it from being settled; it stays.
pub(crate) fn settle_one(
    node: &Inner,
    token: &OpenToken,
    intent: &Intent,
) -> Result<Option<Vec<Deletion>>, EngineError> {
    let Some(claim) = node.registry.claim(intent)? else {
        return Ok(None);
    };
    let keys = destroy_slots(node, token, intent, &intent.slots, &claim).map_err(|n| n.error)?;
    let settled = match intent.action {
        Action::Generate => node.registry.abandon(intent),
        Action::Delete => node.registry.finish_delete(intent),
    };
    settled.inspect_err(|_| node.registry.leave_open(intent))?;
    node.refresh(&intent.identity);
    tracing::info!(identity = %intent.identity, action = ?intent.action, "settled");
    Ok(Some(keys))
}

fn refusal(error: BeginError, who: &EngineId) -> EngineError {
    match error {
        BeginError::Exists => EngineError::IdentityExists,
        BeginError::IsContact => EngineError::NameIsContact,
        BeginError::InProgress => EngineError::InProgress {
            identity: who.clone(),
        },
        BeginError::HasOwner { fingerprint, owner } => {
            EngineError::KeyHasOwner { fingerprint, owner }
        }
        BeginError::SlotTaken { token, slot } => Error::SlotOccupied {
            token,
            slot: slot.to_string(),
        }
        .into(),
        BeginError::Registry(error) => error.into(),
    }
}
