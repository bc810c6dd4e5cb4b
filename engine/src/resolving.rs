//! Resolves abandoned intents: undoes generations, completes deletions, names keys.
//!
//! Only keys that an intent proves to be meant are destroyed. A deletion identifies the key by its
//! public key, a generation by the mark that was recorded before it
//! ([`Token::discard`](claviger_token::Token::discard)). Keys that neither identifies are left and
//! reported.

use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_token::{Call, Deletion, Error, KeyRef, Unfinished};

use crate::inner::Inner;
use crate::lane::{NotDone, PATIENCE};
use crate::registry::{Action, Claim, Intent, RegistryError};
use crate::tokens::OpenToken;
use crate::{EngineError, KeyInfo};

/// How long a request whose deadline is over waits until the token cleans up after it.
const A_MOMENT: Duration = Duration::from_secs(2);

/// Removes what a generation left of the first `touched` keys of `intent`. Where that fails the
/// intent stays.
pub(crate) fn undo(
    node: &Inner,
    token: &OpenToken,
    intent: &Intent,
    touched: usize,
    claim: &Arc<Claim>,
    call: &Call,
) {
    let begun = Intent {
        keys: intent.keys[..touched].to_vec(),
        ..intent.clone()
    };
    let undone = destroy_keys(node, token, &begun, claim, &cleaning_up(call))
        .map_err(|not| not.error.into())
        .and_then(|_| {
            node.registry
                .abandon(intent)
                .inspect_err(|_| node.registry.leave_open(intent))
                .map_err(EngineError::from)
        });
    if let Err(error) = undone {
        tracing::warn!(identity = %intent.identity, %error, "the generation will be undone later");
    }
}

/// Gives the keys of an identity that was just entered its name. Where that fails it is done
/// later: they work all the same.
pub(crate) fn name_keys(
    node: &Inner,
    token: &OpenToken,
    intent: &Intent,
    keys: &[KeyInfo],
    claim: &Arc<Claim>,
    call: &Call,
) {
    let keys: Vec<KeyRef> = keys.iter().map(KeyInfo::key_ref).collect();
    let named = name(token, intent, keys, claim, &cleaning_up(call));
    let named = named.map_err(EngineError::from);
    let named = named.and_then(|()| Ok(node.registry.abandon(intent)?));
    if let Err(error) = named {
        node.registry.leave_open(intent);
        tracing::warn!(identity = %intent.identity, %error, "its keys will be named later");
    }
}

fn name(
    token: &OpenToken,
    intent: &Intent,
    keys: Vec<KeyRef>,
    claim: &Arc<Claim>,
    call: &Call,
) -> Result<(), Error> {
    for key in keys {
        let (device, label) = (Arc::clone(&token.token), intent.identity.name.clone());
        let its_claim = Arc::clone(claim);
        let named = token.carry_through(call, PATIENCE, move |call| {
            let _claim = its_claim;
            let call = call.to_tidy_up().no_longer_than(PATIENCE);
            device.name(&key, &label, &call)
        });
        match named {
            Ok(Ok(())) => {}
            // It may come back, and is named then.
            Ok(Err(error @ (Error::TokenUnavailable { .. } | Error::Busy { .. }))) => {
                return Err(error);
            }
            // A token that keeps no names has keys without a name.
            Ok(Err(error)) => {
                tracing::warn!(identity = %intent.identity, %error, "a key keeps another name");
            }
            Err(NotDone::NotBegun(error)) => return Err(error),
            Err(NotDone::StillAtIt) => return Err(Error::DeadlineExceeded),
        }
    }
    Ok(())
}

/// Keys that were to be destroyed, and were not.
pub(crate) struct NotDestroyed {
    /// Whether the token was asked at all.
    pub(crate) begun: bool,
    /// How many were before.
    pub(crate) done: usize,
    pub(crate) error: Error,
}

/// Destroys the keys of `intent`. Where that does not come to its end the intent is left
/// open.
pub(crate) fn destroy_keys(
    node: &Inner,
    token: &OpenToken,
    intent: &Intent,
    claim: &Arc<Claim>,
    call: &Call,
) -> Result<Vec<Deletion>, NotDestroyed> {
    let entered = entered_keys(node, intent);
    let mut done = Vec::with_capacity(intent.keys.len());
    for key in &intent.keys {
        let (device, its_claim) = (Arc::clone(&token.token), Arc::clone(claim));
        let left = key.clone();
        let doomed = match intent.action {
            Action::Generate | Action::Name => None,
            Action::Delete => known(key, &entered),
        };
        if intent.action == Action::Delete && doomed.is_none() {
            // Its identity has gone, and with it what could prove anything.
            done.push(Deletion::NothingThere);
            continue;
        }
        let deleted = token.carry_through(call, PATIENCE, move |call| {
            let _claim = its_claim;
            // Once it is begun it is to come to its end.
            let call = &call.to_tidy_up().no_longer_than(PATIENCE);
            match doomed {
                Some(key) => device.delete(&key, call),
                None => device.discard(&left, call),
            }
        });
        let (begun, error) = match deleted {
            Ok(Ok(deletion)) => {
                if deletion == Deletion::Foreign {
                    tracing::warn!(
                        identity = %intent.identity, token = %intent.token, slot = %key.slot,
                        "the objects found are not provably Claviger's and were left"
                    );
                }
                done.push(deletion);
                continue;
            }
            Ok(Err(error)) => {
                node.registry.leave_open(intent);
                (true, error)
            }
            Err(NotDone::NotBegun(error)) => {
                node.registry.leave_open(intent);
                (false, error)
            }
            // It stays claimed for as long as the token is at it.
            Err(NotDone::StillAtIt) => (true, Error::DeadlineExceeded),
        };
        return Err(NotDestroyed {
            begun,
            done: done.len(),
            error,
        });
    }
    match check_gone(token, intent, &entered, &done, call) {
        Ok(()) => Ok(done),
        Err(error) => {
            node.registry.leave_open(intent);
            let done = done.iter().filter(|d| **d != Deletion::NothingThere);
            Err(NotDestroyed {
                begun: true,
                done: done.count(),
                error,
            })
        }
    }
}

/// The key to be destroyed, with its public half as the intent has it; else, where an earlier
/// version noted none, as the entry has it.
fn known(key: &Unfinished, entered: &[KeyRef]) -> Option<KeyRef> {
    match &key.public_key {
        Some(public_key) => Some(KeyRef {
            slot: key.slot.clone(),
            public_key: public_key.clone(),
        }),
        None => {
            let mut entered = entered.iter();
            let is_it = |other: &&KeyRef| other.slot == key.slot;
            entered.find(is_it).cloned()
        }
    }
}

/// The keys of the identity that is being deleted: those of a generation are not known yet.
fn entered_keys(node: &Inner, intent: &Intent) -> Vec<KeyRef> {
    let info = match intent.action {
        Action::Generate | Action::Name => None,
        Action::Delete => node.registry.identity(&intent.identity).ok().flatten(),
    };
    let keys = info.into_iter().flat_map(|info| info.keys);
    let keys = keys.filter(|key| key.token == intent.token);
    keys.map(|key| key.key_ref()).collect()
}

/// Where the token says that nothing was there to be deleted, it must not show the key
/// anywhere.
fn check_gone(
    token: &OpenToken,
    intent: &Intent,
    entered: &[KeyRef],
    done: &[Deletion],
    call: &Call,
) -> Result<(), Error> {
    if intent.action != Action::Delete {
        return Ok(());
    }
    let missed: Vec<KeyRef> = (intent.keys.iter().zip(done))
        .filter(|(_, deletion)| **deletion == Deletion::NothingThere)
        .filter_map(|(key, _)| known(key, entered))
        .collect();
    if missed.is_empty() {
        return Ok(());
    }
    let device = Arc::clone(&token.token);
    let seen = token.work_apart(call, move |call| device.slots(call))?;
    let is_shown = |key: &&KeyRef| {
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

/// The circumstances of what is tidied up on behalf of a request: nobody is asked, and what is
/// not begun when its deadline is over is left.
fn tidying(call: &Call) -> Call {
    let tidying = call.to_tidy_up().no_longer_than(PATIENCE);
    match call.deadline() {
        None => tidying,
        Some(deadline) => {
            tidying.no_longer_than(deadline.saturating_duration_since(Instant::now()))
        }
    }
}

/// The circumstances of what a request has begun itself and cleans up: where the token has not
/// begun that a moment after the deadline, it is left, too.
fn cleaning_up(call: &Call) -> Call {
    let cleaning = call.to_tidy_up().no_longer_than(PATIENCE);
    match call.deadline() {
        None => cleaning,
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            cleaning.no_longer_than(left.max(A_MOMENT))
        }
    }
}

/// What came of an intent that was open.
pub(crate) struct Resolved {
    pub(crate) intent: Intent,
    pub(crate) result: Result<Vec<Deletion>, EngineError>,
}

/// Settles what dead processes, or failures of the token, left open on `token`. What
/// cannot be resolved stays, and keeps nobody from using the token.
///
/// # Errors
/// [`EngineError::Registry`].
pub(crate) fn resolve(
    node: &Inner,
    token: &OpenToken,
    call: &Call,
) -> Result<Vec<Resolved>, EngineError> {
    let open = node.registry.open_intents()?;
    let its_own = open
        .into_iter()
        .filter(|intent| intent.token == *token.id());
    let mut resolved = Vec::new();
    for intent in its_own {
        if let Some(result) = resolve_one(node, token, &intent, call).transpose() {
            if let Err(error) = &result {
                tracing::warn!(identity = %intent.identity, %error, "not resolved");
            }
            resolved.push(Resolved { intent, result });
        }
    }
    Ok(resolved)
}

/// Settles one of them. None where somebody else does.
///
/// # Errors
/// What keeps it from being resolved; it stays.
pub(crate) fn resolve_one(
    node: &Inner,
    token: &OpenToken,
    intent: &Intent,
    call: &Call,
) -> Result<Option<Vec<Deletion>>, EngineError> {
    let call = &tidying(call);
    if node.registry.is_copy() {
        return Err(RegistryError::Copy.into());
    }
    let Some(claim) = node.registry.claim(intent)? else {
        return Ok(None);
    };
    let keys = match intent.action {
        Action::Name => {
            let keys = intent.keys.iter().filter_map(|key| known(key, &[]));
            name(token, intent, keys.collect(), &claim, call)
                .inspect_err(|_| node.registry.leave_open(intent))?;
            Vec::new()
        }
        Action::Generate | Action::Delete => {
            destroy_keys(node, token, intent, &claim, call).map_err(|n| n.error)?
        }
    };
    let resolved = match intent.action {
        Action::Generate | Action::Name => node.registry.abandon(intent),
        Action::Delete => node.registry.finish_delete(intent),
    };
    resolved.inspect_err(|_| node.registry.leave_open(intent))?;
    node.refresh(&intent.identity);
    tracing::info!(identity = %intent.identity, action = ?intent.action, "resolved");
    Ok(Some(keys))
}
