//! Uses a key once, as proof of possession, before its identity is entered.

use std::sync::Arc;

use claviger_token::{Call, Error, Event, KeyRef, KeySpec, KeyUse, SlotId, possession};

use crate::EngineError;
use crate::inner::Inner;
use crate::lane::{NotDone, PATIENCE};
use crate::registry::What;
use crate::tokens::OpenToken;

/// A key that is to be tried.
pub(crate) struct Trial {
    pub(crate) spec: KeySpec,
    pub(crate) key: KeyRef,
}

/// Proves that the token has the private half of the key and can use it, and says where it
/// found it. What comes of it is remembered where the token only states that it can.
///
/// `held` is kept until the token has ended what it was asked.
///
/// # Errors
/// [`Error::NoPossession`] and what the token says.
pub(crate) fn prove<T: Clone + Send + 'static>(
    node: &Inner,
    token: &OpenToken,
    trial: Trial,
    held: &T,
    call: &Call,
) -> Result<SlotId, EngineError> {
    let Trial { spec, key } = trial;
    call.tell(&Event::ProofNeeded {
        token: token.id().clone(),
        usage: spec.usage,
    });
    let (device, id, its_hold) = (Arc::clone(&token.token), token.id().clone(), held.clone());
    let call = token.noting(call);
    let proven = token.carry_through(&call, PATIENCE, move |call| {
        let _hold = its_hold;
        match spec.usage {
            KeyUse::Sign => {
                let signer = device.signer(&key, call)?;
                possession::of_signer(&*signer, &id, call)?;
                Ok(signer.slot())
            }
            KeyUse::Decrypt => {
                let decryptor = device.decryptor(&key, call)?;
                possession::of_decryptor(&*decryptor, &id, call)?;
                Ok(decryptor.slot())
            }
        }
    });
    let proven = proven.unwrap_or_else(|not| match not {
        NotDone::NotBegun(error) => Err(error),
        NotDone::StillAtIt => Err(Error::DeadlineExceeded),
    });
    let info = token.token.info();
    if info.untried.contains(&spec) {
        match &proven {
            Ok(_) => node.registry.note_tried(info, What::Kind(spec), true)?,
            Err(Error::NoPossession { .. }) => {
                node.registry.note_tried(info, What::Kind(spec), false)?;
            }
            Err(_) => {}
        }
    }
    Ok(proven?)
}
