//! The Encryption engine: chooses the recipients of a plaintext, and tracks pending requests.
//!
//! Without Reads For it is stateless: a request is answered at once, on its sender's task. With
//! Reads For, requests wait in `Pending` until the configured Reads For engine has answered or
//! timed out. Both are pure; the node sends the messages and keeps the time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use claviger_token::{Algorithm, PublicKey};

use crate::evidence::{Evidence, KeysId, Party, PublicKeys};
use crate::reads_for::as_reader;
use crate::{EngineError, EngineId, EngineName};

/// The maximum number of recipients of one ciphertext: as many as decryption tries.
pub const MOST_RECIPIENTS: usize = claviger_formats::envelope::MOST_ATTEMPTS;

/// The recipients that a sender wants if evidence leaves a choice. The default is the identity
/// itself, and nobody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preference {
    /// Add everyone who provably reads for the identity. Each of them opens the ciphertext with a
    /// key of their own. The identity, or one of its readers, has granted them that.
    pub readers: bool,
    /// Who may become the recipient in place of the identity, if the identity provably reads for
    /// them. The cheapest is chosen, the identity itself included.
    pub via: Via,
    /// The maximum length of a chain of evidence.
    pub depth: usize,
}

/// Who may receive data in place of an identity that reads for them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Via {
    /// Nobody.
    #[default]
    Nobody,
    /// These, named by the sender.
    Named(Vec<EngineId>),
    /// Anyone.
    Anyone,
}

impl Preference {
    /// The identity itself, and nobody else.
    pub const ITSELF: Preference = Preference {
        readers: false,
        via: Via::Nobody,
        depth: usize::MAX,
    };
    /// The identity itself, and everyone who provably reads for it.
    pub const WITH_READERS: Preference = Preference {
        readers: true,
        ..Preference::ITSELF
    };
    /// The cheapest of the identity and all those that it provably reads for.
    pub const CHEAPEST: Preference = Preference {
        via: Via::Anyone,
        ..Preference::ITSELF
    };
}

impl Default for Preference {
    fn default() -> Self {
        Preference::ITSELF
    }
}

/// A recipient: a key and its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recipient {
    /// The owner of the key, by the name here or, if there is none, by the name in the evidence.
    pub name: EngineName,
    /// The key.
    pub key: PublicKey,
}

/// Requests that wait for evidence, by identity. `T` answers one of them.
pub(crate) struct Pending<T> {
    batches: HashMap<EngineId, Batch<T>>,
    next: u64,
}

struct Batch<T> {
    number: u64,
    waiting: Vec<T>,
}

/// The evidence for a batch, or the error.
pub(crate) type Answer = Result<Arc<Vec<Evidence>>, EngineError>;

/// What a message leads to.
#[derive(Debug)]
pub(crate) enum Effect<T> {
    /// Ask the Reads For engine about the identity, and start the timer of this batch.
    Query { identity: EngineId, batch: u64 },
    /// Continue with these requests.
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

    /// Whether a reply from `sender` about an identity is pending.
    pub(crate) fn expects(
        &self,
        sender: &EngineId,
        configured: &EngineId,
        identity: &EngineId,
    ) -> bool {
        sender == configured && self.batches.contains_key(identity)
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
        if !self.expects(sender, configured, identity) {
            return None;
        }
        let Batch { waiting, .. } = self.batches.remove(identity)?;
        Some(Effect::Answer { waiting, with })
    }

    /// The timer of a batch has ended. Ignored if the batch was answered.
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

/// What is asked of [`choose`].
pub(crate) struct Choice<'a> {
    pub(crate) preference: &'a Preference,
    /// The keys of those whom the preference [names](Via::Named).
    pub(crate) named: &'a [PublicKeys],
    /// When: evidence has an end.
    pub(crate) moment: u64,
}

/// The recipients of a plaintext for `identity`. Only evidence that verifies and has not ended
/// counts; revoked evidence is not in it.
///
/// An identity without a decryption key reads for nobody, whatever evidence says. Otherwise anybody
/// could become the recipient of its data by granting it to read for them.
///
/// # Errors
/// [`EngineError::NoEncryptionKey`] if there is none, [`EngineError::NotProven`],
/// [`EngineError::TooManyRecipients`].
pub(crate) fn choose(
    who: &EngineId,
    identity: &PublicKeys,
    evidence: &[Evidence],
    choice: &Choice<'_>,
) -> Result<Vec<Party>, EngineError> {
    if rank(identity).is_none() {
        return Err(EngineError::NoEncryptionKey {
            identity: who.clone(),
        });
    }
    let itself = Party {
        name: who.name.clone(),
        keys: identity.clone(),
    };
    let mut recipients = vec![itself.clone()];
    if choice.preference.via != Via::Nobody {
        let nearest = Search {
            direction: Direction::ReadFor,
            depth: choice.preference.depth,
            enough: usize::MAX,
            moment: choice.moment,
        };
        let mut others = nearest.reach(as_reader(identity), evidence);
        if let Via::Named(named) = &choice.preference.via {
            others.retain(|other| {
                let mut named = choice.named.iter();
                named.any(|keys| keys.decrypt.is_some() && keys.decrypt == other.keys.decrypt)
            });
            let itself_is_named = choice.named.contains(identity);
            if others.is_empty() && !itself_is_named {
                return Err(EngineError::NotProven {
                    identity: who.clone(),
                    via: named.clone(),
                });
            }
        }
        let able = std::iter::once(itself).chain(others);
        let able = able.filter_map(|party| Some((rank(&party.keys)?, party)));
        // The first of the cheapest: the nearest.
        let cheapest = able.min_by_key(|(rank, _)| *rank);
        recipients = cheapest.map(|(_, party)| party).into_iter().collect();
    }
    if choice.preference.readers {
        let all = Search {
            direction: Direction::Readers,
            depth: choice.preference.depth,
            enough: MOST_RECIPIENTS + 1,
            moment: choice.moment,
        };
        let readers = all.reach(std::iter::once(identity.id()), evidence);
        let known = recipients.iter().map(|party| party.keys.decrypt.clone());
        let mut seen: HashSet<Option<PublicKey>> = known.collect();
        let readers = readers
            .into_iter()
            .filter(|reader| rank(&reader.keys).is_some());
        recipients.extend(readers.filter(|reader| seen.insert(reader.keys.decrypt.clone())));
    }
    if recipients.len() > MOST_RECIPIENTS {
        return Err(EngineError::TooManyRecipients);
    }
    Ok(recipients)
}

/// The relative cost of opening a file with the decryption key; `None` if nobody can encrypt to it.
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

/// A search for whoever is reached by evidence that counts.
struct Search {
    direction: Direction,
    /// How many pieces a chain may have.
    depth: usize,
    /// As soon as there are so many keys to encrypt to, the rest is left out.
    enough: usize,
    moment: u64,
}

impl Search {
    /// Those who are reached from `starts`, nearest first.
    fn reach(&self, starts: impl Iterator<Item = KeysId>, evidence: &[Evidence]) -> Vec<Party> {
        let mut onward: HashMap<KeysId, Vec<&Evidence>> = HashMap::new();
        for piece in evidence {
            let (begin, _) = self.direction.ends(piece);
            onward.entry(begin.keys.id()).or_default().push(piece);
        }
        let mut queue: Vec<(KeysId, usize)> = starts.map(|id| (id, 0)).collect();
        let mut seen: HashSet<KeysId> = queue.iter().map(|(id, _)| *id).collect();
        let mut reached = Vec::new();
        let (mut done, mut able) = (0, HashSet::new());
        while let Some((at, steps)) = queue.get(done).copied() {
            done += 1;
            if steps >= self.depth {
                continue;
            }
            for piece in onward.get(&at).into_iter().flatten() {
                let (_, end) = self.direction.ends(piece);
                let id = end.keys.id();
                if able.len() >= self.enough {
                    return reached;
                }
                if !seen.contains(&id) && piece.holds_at(self.moment) {
                    able.extend(
                        end.keys
                            .decrypt
                            .as_ref()
                            .filter(|_| rank(&end.keys).is_some()),
                    );
                    seen.insert(id);
                    queue.push((id, steps + 1));
                    reached.push(end.clone());
                }
            }
        }
        reached
    }
}

impl Direction {
    /// Where one comes from, and whom one comes to.
    fn ends(self, piece: &Evidence) -> (&Party, &Party) {
        match self {
            Direction::ReadFor => (&piece.from_identity, &piece.to_identity),
            Direction::Readers => (&piece.to_identity, &piece.from_identity),
        }
    }
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
