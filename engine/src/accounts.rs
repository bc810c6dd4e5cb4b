//! Finds keys on a token that derives its keys, after the registry with their accounts is lost.
//!
//! Each home takes its accounts from one of [`STARTS`] places on. So the search compares the first
//! account of each place, then the second of each, and so on. Where it finds a key, it continues
//! there first, since the other keys of the same home are near.
//!
//! A derivation takes the device some time, so the search reports its progress, and the caller can
//! end it at any account.

use std::collections::HashSet;
use std::sync::Arc;

use claviger_token::{Algorithm, Call, Error, Fingerprint, KeySpec, PublicKey, SlotId, TokenInfo};

use crate::EngineError;
use crate::registry::{ACCOUNTS, STARTS};
use crate::tokens::OpenToken;

/// The number of accounts of each home that are searched if none of its keys is found.
const FIRST: u32 = 5;

/// The number of accounts of a home that are searched in a row after one of its keys was found.
const NEAR: u32 = 50;

/// A key to search for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SoughtKey {
    /// Which.
    pub fingerprint: Fingerprint,
    /// Its algorithm, if known: then no other keys are derived.
    pub algorithm: Option<Algorithm>,
}

impl From<Fingerprint> for SoughtKey {
    /// A key of which no more is known.
    fn from(fingerprint: Fingerprint) -> Self {
        SoughtKey {
            fingerprint,
            algorithm: None,
        }
    }
}

impl From<&PublicKey> for SoughtKey {
    fn from(key: &PublicKey) -> Self {
        SoughtKey {
            fingerprint: key.fingerprint(),
            algorithm: Some(key.algorithm()),
        }
    }
}

/// A key that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FoundKey {
    /// Which.
    pub fingerprint: Fingerprint,
    /// Its algorithm and use.
    pub spec: KeySpec,
    /// Its account.
    pub account: u32,
    /// Its slot.
    pub slot: SlotId,
    /// Its token.
    pub token: TokenInfo,
}

/// The progress of a search.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Search<'a> {
    /// The number of accounts searched so far.
    pub looked: u32,
    /// The maximum number of accounts, if nothing more is found.
    pub of: u32,
    /// The keys in the last searched account.
    pub found: &'a [FoundKey],
}

/// Searches the token for `sought`. Blocks.
///
/// # Errors
/// [`EngineError::DerivesNothing`], and those of the token.
pub(crate) fn find(
    token: &OpenToken,
    sought: &[SoughtKey],
    call: &Call,
    tell: &dyn Fn(Search<'_>),
) -> Result<Vec<FoundKey>, EngineError> {
    if token.token.derives().is_none() {
        return Err(EngineError::DerivesNothing {
            token: token.id().clone(),
        });
    }
    let mut look = Look {
        specs: specs(token.token.info(), sought),
        left: sought.iter().map(|key| key.fingerprint).collect(),
        seen: HashSet::new(),
        found: Vec::new(),
        token,
        call,
        tell,
    };
    for nth in 0..FIRST {
        for start in (0..STARTS).map(|start| start * ACCOUNTS) {
            if look.is_over() {
                return Ok(look.found);
            }
            if look.at(start + nth)? {
                look.near(start)?;
            }
        }
    }
    Ok(look.found)
}

/// The kinds of key that the search has to derive.
fn specs(token: &TokenInfo, sought: &[SoughtKey]) -> Vec<KeySpec> {
    let may_be = |spec: &KeySpec| {
        let mut algorithms = sought.iter().map(|key| key.algorithm);
        algorithms.any(|algorithm| algorithm.is_none_or(|it| it == spec.algorithm))
    };
    token.makes.iter().copied().filter(may_be).collect()
}

struct Look<'a> {
    specs: Vec<KeySpec>,
    left: HashSet<Fingerprint>,
    seen: HashSet<u32>,
    found: Vec<FoundKey>,
    token: &'a OpenToken,
    call: &'a Call,
    tell: &'a dyn Fn(Search<'_>),
}

impl Look<'_> {
    fn is_over(&self) -> bool {
        self.left.is_empty() || self.specs.is_empty()
    }

    /// Searches an account. Returns whether a key is in it.
    fn at(&mut self, account: u32) -> Result<bool, Error> {
        if !self.seen.insert(account) {
            return Ok(false);
        }
        let before = self.found.len();
        for spec in self.specs.clone() {
            let device = Arc::clone(&self.token.token);
            let derived = self.token.work_apart(self.call, move |call| {
                let derives = device.derives();
                derives
                    .map(|derives| derives.derived(account, spec, call))
                    .transpose()
            })?;
            let Some((slot, key)) = derived else { continue };
            let fingerprint = key.fingerprint();
            if self.left.remove(&fingerprint) {
                self.found.push(FoundKey {
                    fingerprint,
                    spec,
                    account,
                    slot,
                    token: self.token.token.info().clone(),
                });
            }
        }
        let looked = u32::try_from(self.seen.len()).unwrap_or(u32::MAX);
        (self.tell)(Search {
            looked,
            of: looked.max(FIRST * STARTS),
            found: &self.found[before..],
        });
        Ok(self.found.len() > before)
    }

    /// Searches the accounts of the home that begins at `start`.
    fn near(&mut self, start: u32) -> Result<(), Error> {
        let mut end = start + NEAR;
        let mut next = start;
        while next < end && !self.is_over() {
            if self.at(next)? {
                end = next + NEAR;
            }
            next += 1;
        }
        Ok(())
    }
}
