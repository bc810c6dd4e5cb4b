//! The Encryption engine: which key a plaintext is encrypted to, and who waits for what.
//!
//! Without Reads For there is no state: a request is answered at once, on its sender's
//! task. With it, requests wait in `Pending` until the configured Reads For engine has
//! answered, or has been silent for too long. Both are pure; the node does the sending and
//! keeps the time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use claviger_token::{Algorithm, PublicKey};

use crate::evidence::{Evidence, KeysId, PublicKeys};
use crate::reads_for::as_reader;
use crate::{EngineError, EngineId};

/// The most recipients that one ciphertext is made for: as many as are tried when it is
/// opened.
pub const MOST_RECIPIENTS: usize = claviger_token::envelope::MOST_ATTEMPTS;

/// To whom a sender wants its plaintext encrypted, where evidence leaves a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Preference {
    /// The identity itself, and nobody else.
    #[default]
    Itself,
    /// The cheapest of the identity and those that it provably reads for. The sender does not
    /// name them, and so says that the data may be disclosed to any of them.
    Cheapest,
    /// The identity itself, and beside it everyone who provably reads for it: each of them
    /// opens the ciphertext with a key of their own.
    WithReaders,
}

/// Requests that wait for evidence, by identity. `T` is how one of them is answered.
pub(crate) struct Pending<T> {
    batches: HashMap<EngineId, Batch<T>>,
    next: u64,
}

struct Batch<T> {
    number: u64,
    waiting: Vec<T>,
}

/// The evidence for a batch, or why there is none.
pub(crate) type Answer = Result<Arc<Vec<Evidence>>, EngineError>;

/// What a message leads to.
#[derive(Debug)]
pub(crate) enum Effect<T> {
    /// Ask the Reads For engine about the identity, and keep the time for this batch.
    Query { identity: EngineId, batch: u64 },
    /// Go on with these requests.
    Answer { waiting: Vec<T>, with: Answer },
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Pending {
            batches: HashMap::new(),
            next: 0,
        }
    }
}

impl<T> Pending<T> {
    /// A request that uses Reads For. Only the first for an identity sends a query.
    pub(crate) fn request(&mut self, identity: &EngineId, waiting: T) -> Option<Effect<T>> {
        if let Some(batch) = self.batches.get_mut(identity) {
            batch.waiting.push(waiting);
            return None;
        }
        let number = self.next;
        self.next += 1;
        let waiting = vec![waiting];
        self.batches
            .insert(identity.clone(), Batch { number, waiting });
        Some(Effect::Query {
            identity: identity.clone(),
            batch: number,
        })
    }

    /// A reply from `sender`. One that is not from the `configured` engine, or for which
    /// nothing is pending, is dropped.
    pub(crate) fn reply(
        &mut self,
        sender: &EngineId,
        configured: &EngineId,
        identity: &EngineId,
        with: Answer,
    ) -> Option<Effect<T>> {
        if sender != configured {
            return None;
        }
        let Batch { waiting, .. } = self.batches.remove(identity)?;
        Some(Effect::Answer { waiting, with })
    }

    /// The time for a batch is over. Nothing happens where it was answered.
    pub(crate) fn silence(
        &mut self,
        configured: &EngineId,
        identity: &EngineId,
        batch: u64,
    ) -> Option<Effect<T>> {
        if self.batches.get(identity)?.number != batch {
            return None;
        }
        let silent = EngineError::ReadsForSilent {
            engine: configured.clone(),
        };
        self.reply(configured, configured, identity, Err(silent))
    }
}

/// The keys that a plaintext for `identity` is to be encrypted to. Of the evidence only
/// what verifies counts.
///
/// An identity without a key that decrypts reads for nobody, whatever evidence says: who grants
/// it to read for them would else become the recipient of what is meant for it.
///
/// # Errors
/// [`EngineError::NoEncryptionKey`] where there is none, [`EngineError::TooManyRecipients`].
pub(crate) fn choose(
    who: &EngineId,
    identity: &PublicKeys,
    evidence: &[Evidence],
    preference: Preference,
) -> Result<Vec<PublicKey>, EngineError> {
    if rank(identity).is_none() {
        return Err(EngineError::NoEncryptionKey {
            identity: who.clone(),
        });
    }
    let itself = identity.clone();
    let chosen = match preference {
        Preference::Itself | Preference::WithReaders => itself,
        Preference::Cheapest => {
            let others = reach(
                as_reader(identity),
                evidence,
                Direction::ReadFor,
                usize::MAX,
            );
            let able = std::iter::once(itself.clone()).chain(others);
            let able = able.filter_map(|keys| Some((rank(&keys)?, keys)));
            // The first of the cheapest: the nearest.
            able.min_by_key(|(rank, _)| *rank)
                .map_or(itself, |(_, keys)| keys)
        }
    };
    let mut recipients: Vec<PublicKey> = chosen.decrypt.iter().cloned().collect();
    if preference == Preference::WithReaders {
        let readers = reach(
            std::iter::once(chosen.id()),
            evidence,
            Direction::Readers,
            MOST_RECIPIENTS + 1,
        );
        let mut seen: HashSet<PublicKey> = recipients.iter().cloned().collect();
        let keys = readers.into_iter().filter(|reader| rank(reader).is_some());
        let keys = keys.filter_map(|reader| reader.decrypt);
        recipients.extend(keys.filter(|key| seen.insert(key.clone())));
    }
    if recipients.len() > MOST_RECIPIENTS {
        return Err(EngineError::TooManyRecipients);
    }
    Ok(recipients)
}

/// What it costs to open something with the decryption key, relative to others; `None`
/// where one cannot encrypt to it.
fn rank(keys: &PublicKeys) -> Option<usize> {
    match keys.decrypt.as_ref()?.algorithm() {
        Algorithm::X25519 => Some(0),
        Algorithm::P256 => Some(1),
        other => other.rsa_bits(),
    }
}

#[derive(Clone, Copy)]
enum Direction {
    /// To those whom one reads for.
    ReadFor,
    /// To those who read for one.
    Readers,
}

/// Whoever is reached from `starts` by evidence that verifies, nearest first; as soon as
/// there are `enough` keys to encrypt to, the rest is left out.
fn reach(
    starts: impl Iterator<Item = KeysId>,
    evidence: &[Evidence],
    direction: Direction,
    enough: usize,
) -> Vec<PublicKeys> {
    let mut onward: HashMap<KeysId, Vec<&Evidence>> = HashMap::new();
    for piece in evidence {
        let begin = match direction {
            Direction::ReadFor => &piece.from_identity,
            Direction::Readers => &piece.to_identity,
        };
        onward.entry(begin.keys.id()).or_default().push(piece);
    }
    let mut queue: Vec<KeysId> = starts.collect();
    let mut seen: HashSet<KeysId> = queue.iter().copied().collect();
    let mut reached = Vec::new();
    let (mut done, mut able) = (0, HashSet::new());
    while let Some(at) = queue.get(done).copied() {
        done += 1;
        for piece in onward.get(&at).into_iter().flatten() {
            let end = match direction {
                Direction::ReadFor => &piece.to_identity.keys,
                Direction::Readers => &piece.from_identity.keys,
            };
            let id = end.id();
            if able.len() >= enough {
                return reached;
            }
            if !seen.contains(&id) && piece.verify().is_ok() {
                able.extend(end.decrypt.as_ref().filter(|_| rank(end).is_some()));
                seen.insert(id);
                queue.push(id);
                reached.push(end.clone());
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> EngineId {
        EngineId::local(name)
    }

    fn answered<T>(effect: Option<Effect<T>>) -> Vec<T> {
        match effect {
            Some(Effect::Answer { waiting, .. }) => waiting,
            _ => Vec::new(),
        }
    }

    fn evidence() -> Answer {
        Ok(Arc::default())
    }

    #[test]
    fn only_the_first_request_for_an_identity_sends_a_query() {
        let mut pending = Pending::default();
        let (a, b, reads_for) = (id("a"), id("b"), id("reads_for"));
        assert!(matches!(
            pending.request(&a, 1),
            Some(Effect::Query { identity, batch: 0 }) if identity == a
        ));
        assert!(pending.request(&a, 2).is_none());
        assert!(matches!(
            pending.request(&b, 3),
            Some(Effect::Query { identity, batch: 1 }) if identity == b
        ));
        let effect = pending.reply(&reads_for, &reads_for, &a, evidence());
        assert_eq!(answered(effect), [1, 2]);
        // The list was cleared: the next one asks again.
        assert!(matches!(
            pending.request(&a, 4),
            Some(Effect::Query { batch: 2, .. })
        ));
    }

    #[test]
    fn a_reply_from_somebody_else_or_for_nothing_is_dropped() {
        let mut pending = Pending::default();
        let (a, reads_for) = (id("a"), id("reads_for"));
        let effect = pending.reply(&reads_for, &reads_for, &a, evidence());
        assert!(effect.is_none());
        pending.request(&a, 1);
        let effect = pending.reply(&id("mallory"), &reads_for, &a, evidence());
        assert!(effect.is_none());
        let effect = pending.reply(&reads_for, &reads_for, &id("b"), evidence());
        assert!(effect.is_none());
        let effect = pending.reply(&reads_for, &reads_for, &a, evidence());
        assert_eq!(answered(effect), [1]);
    }

    #[test]
    fn silence_answers_its_own_batch_and_no_later_one() {
        let mut pending = Pending::default();
        let (a, reads_for) = (id("a"), id("reads_for"));
        pending.request(&a, 1);
        pending.reply(&reads_for, &reads_for, &a, evidence());
        pending.request(&a, 2);
        assert!(pending.silence(&reads_for, &a, 0).is_none());
        let Some(Effect::Answer { waiting, with }) = pending.silence(&reads_for, &a, 1) else {
            panic!("nobody was answered");
        };
        assert_eq!(waiting, [2]);
        assert!(matches!(with, Err(EngineError::ReadsForSilent { .. })));
        assert!(pending.silence(&reads_for, &a, 1).is_none());
    }
}
