//! Resolves abandoned intents: undoes generations, completes deletions, names keys.
//!
//! Only keys that an intent proves to be meant are destroyed. A deletion identifies the key by its
//! public key, a generation by the mark that was recorded before it
//! ([`Token::discard`](claviger_token::Token::discard)). Keys that neither identifies are left and
//! reported.

use std::collections::HashSet;
use std::sync::Arc;

use claviger_token::{Call, Deletion, Error, KeyRef, TokenId, Unfinished};

use crate::lane::StillAtIt;
use crate::lifecycle::PATIENCE;
use crate::node::Inner;
use crate::registry::{Action, Claim, Intent, RegistryError};
use crate::tokens::OpenToken;
use crate::{EngineError, KeyInfo};

/// Settles every open intent that can be settled, and hands back the others. PINs go to the
/// tokens in `with_pins`, or to all; but one PIN for whichever token asks goes to none where
/// there are several.
pub(crate) fn settle_all(
    node: &Inner,
    with_pins: Option<&[TokenId]>,
    call: &Call,
) -> Result<Vec<(Intent, EngineError)>, EngineError> {
    let open = node.registry.open_intents()?;
    let may_have = |token: &TokenId| with_pins.is_none_or(|tokens| tokens.contains(token));
    let asked: HashSet<&TokenId> = (open.iter().map(|intent| &intent.token))
        .filter(|token| may_have(token))
        .collect();
    let is_for_one = asked.len() > 1 && node.tokens.has_one_pin_for_all(call);
    let mut left = Vec::new();
    for intent in &open {
        let call = match may_have(&intent.token) && !is_for_one {
            true => call.clone(),
            false => node.tokens.without_pin(call),
        };
        let settled = node
            .open_this(&intent.token, &intent.backend, &call)
            .and_then(|(token, _)| match *token.id() == intent.token {
                true => settle_one(node, &token, intent),
                false => Err(EngineError::Token(Error::TokenUnavailable {
                    token: intent.token.clone(),
                    reason: format!("{} is there instead", token.id()),
                })),
            });
        match settled {
            Ok(_) => {}
            Err(EngineError::Token(Error::PinNeeded { .. })) if is_for_one => {
                let holders = Vec::new();
                left.push((intent.clone(), EngineError::PinForSeveralTokens { holders }));
            }
            Err(error) => left.push((intent.clone(), error)),
        }
    }
    Ok(left)
}

/// Removes what a generation left of the first `touched` keys of `intent`. Where that fails the
/// intent stays.
pub(crate) fn undo(
    node: &Inner,
    token: &OpenToken,
    intent: &Intent,
    touched: usize,
    claim: &Arc<Claim>,
) {
    let begun = Intent {
        keys: intent.keys[..touched].to_vec(),
        ..intent.clone()
    };
    let undone = destroy_keys(node, token, &begun, claim)
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

/// Gives the keys of an identity that was just entered its name. Where that fails it is done
/// later: they work all the same.
pub(crate) fn name_keys(
    node: &Inner,
    token: &OpenToken,
    intent: &Intent,
    keys: &[KeyInfo],
    claim: &Arc<Claim>,
) {
    let keys: Vec<KeyRef> = keys.iter().map(KeyInfo::key_ref).collect();
    let named = name(token, intent, keys, claim).map_err(EngineError::from);
    let named = named.and_then(|()| Ok(node.registry.abandon(intent)?));
    if let Err(error) = named {
        node.registry.leave_open(intent);
        tracing::warn!(identity = %intent.identity, %error, "its keys are named later");
    }
}

fn name(
    token: &OpenToken,
    intent: &Intent,
    keys: Vec<KeyRef>,
    claim: &Arc<Claim>,
) -> Result<(), Error> {
    for key in keys {
        let (device, label) = (Arc::clone(&token.token), intent.identity.name.clone());
        let its_claim = Arc::clone(claim);
        let named = token.carry_through(&Call::within(PATIENCE), PATIENCE, move |call| {
            let _claim = its_claim;
            device.name(&key, &label, call)
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
            Err(StillAtIt) => return Err(Error::DeadlineExceeded),
        }
    }
    Ok(())
}

/// Keys that were to be destroyed, and were not.
pub(crate) struct NotDestroyed {
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
        let call = Call::within(PATIENCE);
        let deleted = token.carry_through(&call, PATIENCE, move |call| {
            let _claim = its_claim;
            match doomed {
                Some(key) => device.delete(&key, call),
                None => device.discard(&left, call),
            }
        });
        let error = match deleted {
            Ok(Ok(deletion)) => {
                if deletion == Deletion::Foreign {
                    tracing::warn!(
                        identity = %intent.identity, token = %intent.token, slot = %key.slot,
                        "what is there cannot be shown to be ours, and was left alone"
                    );
                }
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
    match check_gone(token, intent, &entered, &done) {
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
            let is_it = |other: &&KeyRef| other.slot.as_str() == key.slot.as_str();
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
    let seen = token.work_blocking(&Call::within(PATIENCE), move |call| device.slots(call))?;
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
    if node.registry.is_copy() {
        return Err(RegistryError::Copy.into());
    }
    let Some(claim) = node.registry.claim(intent)? else {
        return Ok(None);
    };
    let keys = match intent.action {
        Action::Name => {
            let keys = intent.keys.iter().filter_map(|key| known(key, &[]));
            name(token, intent, keys.collect(), &claim)
                .inspect_err(|_| node.registry.leave_open(intent))?;
            Vec::new()
        }
        Action::Generate | Action::Delete => {
            destroy_keys(node, token, intent, &claim).map_err(|n| n.error)?
        }
    };
    let settled = match intent.action {
        Action::Generate | Action::Name => node.registry.abandon(intent),
        Action::Delete => node.registry.finish_delete(intent),
    };
    settled.inspect_err(|_| node.registry.leave_open(intent))?;
    node.refresh(&intent.identity);
    tracing::info!(identity = %intent.identity, action = ?intent.action, "settled");
    Ok(Some(keys))
}
