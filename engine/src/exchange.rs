//! Carries out Encryption and Reads For: connects the senders, the registry and the pure parts of
//! the two engines.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use claviger_formats::envelope;
use claviger_token::sync::{lock, read, write};
use claviger_token::{Call, Error, PublicKey, Secret};
use tokio::sync::oneshot;

use crate::encryption::{self, Answer, Choice, Effect, Preference, Recipient, Via};
use crate::evidence::{Evidence, PublicKeys, now};
use crate::inner::{ENCRYPTION, Inner, READS_FOR};
use crate::message::{ReplyReadsForEvidence, RequestEncrypt};
use crate::node::Node;
use crate::policy;
use crate::reads_for::{EvidenceAbout, ReadsFor};
use crate::registry::{Known, RegistryError};
use crate::{EngineError, EngineId};

/// Plaintexts longer than this are not encrypted on an async task.
const LONG_PLAINTEXT: usize = 1 << 20;

/// Nor is anything for more recipients than this, nor is more evidence verified there: each
/// takes a good part of a millisecond.
const FEW: usize = 8;

impl Node {
    /// The id of this node's Encryption engine.
    pub fn encryption(&self) -> EngineId {
        EngineId::local(ENCRYPTION)
    }

    /// The id of this node's own Reads For engine.
    pub fn reads_for_engine(&self) -> EngineId {
        EngineId::local(READS_FOR)
    }

    /// Encrypts to an identity or a contact.
    ///
    /// # Errors
    /// [`EngineError::ExternalIdentityNotFound`], [`EngineError::NoEncryptionKey`],
    /// [`EngineError::TooManyRecipients`]; with Reads For also what its engine answers,
    /// [`EngineError::NotProven`] and [`EngineError::ReadsForSilent`].
    pub async fn encrypt(
        &self,
        who: &EngineId,
        request: RequestEncrypt,
        call: &Call,
    ) -> Result<Vec<u8>, EngineError> {
        let RequestEncrypt {
            data,
            external_identity,
            use_reads_for,
            preference,
        } = request;
        let recipients = self.recipients(who, &external_identity, use_reads_for, &preference, call);
        let keys: Vec<_> = recipients.await?.into_iter().map(|r| r.key).collect();
        if data.len() <= LONG_PLAINTEXT && keys.len() <= FEW {
            return seal(&keys, &data);
        }
        tokio::task::spawn_blocking(move || seal(&keys, &data))
            .await
            .unwrap_or_else(|_| Err(Error::Cancelled.into()))
    }

    /// The keys that a plaintext would be encrypted to, for plaintexts that are too long
    /// for a message: to be given to [`encrypt_stream`](envelope::encrypt_stream).
    ///
    /// # Errors
    /// As [`Node::encrypt`].
    pub async fn recipients(
        &self,
        who: &EngineId,
        identity: &EngineId,
        use_reads_for: bool,
        preference: &Preference,
        call: &Call,
    ) -> Result<Vec<Recipient>, EngineError> {
        call.check()?;
        (self.0.policy).check(who, policy::Permission::Encrypt(identity))?;
        let mut known = self.0.must_know(identity)?;
        let (mut evidence, mut named) = (Arc::default(), Vec::new());
        let mut preference = preference.clone();
        if use_reads_for {
            if let Via::Named(names) = &preference.via {
                for name in names {
                    // To whom it is hidden it is as if nobody had the name.
                    if !self.0.policy.may_see(name)? {
                        return Err(EngineError::ExternalIdentityNotFound);
                    }
                    named.push(self.0.must_know(name)?.party.keys.clone());
                }
            }
            evidence = self.evidence_for(identity, call).await?;
            // It may have been made anew meanwhile.
            known = self.0.must_know(identity)?;
        } else {
            preference = Preference::ITSELF;
        }
        let (who, keys) = (identity.clone(), known.party.keys.clone());
        let few = evidence.len() <= FEW;
        let choose = move || {
            let choice = Choice {
                preference: &preference,
                named: &named,
                moment: now(),
            };
            encryption::choose(&who, &keys, &evidence, &choice)
        };
        let chosen = match few {
            true => choose(),
            false => tokio::task::spawn_blocking(choose)
                .await
                .unwrap_or_else(|_| Err(Error::Cancelled.into())),
        };
        match (chosen, &known.deleted_with) {
            (Err(EngineError::NoEncryptionKey { .. }), Some(owner)) => {
                Err(EngineError::IdentityDeleted {
                    identity: owner.clone(),
                })
            }
            (chosen, _) => self.0.named_here(chosen?),
        }
    }

    /// Waits with others for the evidence about an identity.
    async fn evidence_for(&self, identity: &EngineId, call: &Call) -> Answer {
        let (waiting, answer) = oneshot::channel();
        let effect = self.0.exchange.pending().request(identity, waiting);
        if let Some(Effect::Query { identity, batch }) = effect {
            // On a task of its own: others wait for it, too, and this caller may go away.
            tokio::spawn(query(Arc::downgrade(self.0.whole()), identity, batch));
        }
        let answer = match call.deadline() {
            None => answer.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answer)
                .await
                .map_err(|_| Error::DeadlineExceeded)?,
        };
        // Dropped unanswered: the node is gone.
        answer.unwrap_or_else(|_| Err(Error::Cancelled.into()))
    }

    /// Whether `a` reads for `b`.
    ///
    /// # Errors
    /// [`EngineError::ExternalIdentityNotFound`], [`EngineError::Registry`].
    pub fn reads_for(
        &self,
        who: &EngineId,
        a: &EngineId,
        b: &EngineId,
    ) -> Result<bool, EngineError> {
        self.may_read(who, [a, b])?;
        let (a, b) = (self.0.must_know(a)?, self.0.must_know(b)?);
        let now = self.0.registry.revision()?;
        let keys = (&a.party.keys, &b.party.keys);
        Ok(self
            .0
            .relation()
            .reads_for(&self.0.registry, now, keys.0, keys.1)?)
    }

    /// The evidence, piece after piece, by which `a` reads for `b`: empty where both have
    /// the same keys, `None` where it does not.
    ///
    /// # Errors
    /// As [`Node::reads_for`].
    pub fn reads_for_chain(
        &self,
        who: &EngineId,
        a: &EngineId,
        b: &EngineId,
    ) -> Result<Option<Vec<Evidence>>, EngineError> {
        self.may_read(who, [a, b])?;
        let (a, b) = (self.0.must_know(a)?, self.0.must_know(b)?);
        let now = self.0.registry.revision()?;
        let keys = (&a.party.keys, &b.party.keys);
        Ok(self
            .0
            .relation()
            .chain(&self.0.registry, now, keys.0, keys.1)?)
    }

    /// The evidence about an identity or a contact.
    ///
    /// # Errors
    /// As [`Node::reads_for`].
    pub fn evidence_about(
        &self,
        who: &EngineId,
        identity: &EngineId,
    ) -> Result<EvidenceAbout, EngineError> {
        self.may_read(who, [identity])?;
        self.0.evidence_about(identity)
    }

    /// Takes a piece of evidence, if it verifies and is new.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`], [`EngineError::InvalidEvidence`],
    /// [`EngineError::EvidenceExists`], [`EngineError::Registry`].
    pub fn submit_evidence(&self, who: &EngineId, evidence: &Evidence) -> Result<(), EngineError> {
        (self.0.policy).check(who, policy::Permission::SubmitEvidence)?;
        self.0.submit(evidence)
    }

    fn may_read<const N: usize>(
        &self,
        who: &EngineId,
        about: [&EngineId; N],
    ) -> Result<(), EngineError> {
        let mut about = about.into_iter();
        about.try_for_each(|about| {
            let access = policy::Permission::ReadEvidence(about);
            self.0.policy.check(who, access)
        })
    }

    /// The public keys of an identity or a contact; none of those that were deleted.
    ///
    /// # Errors
    /// [`EngineError::Registry`].
    pub fn public_keys(&self, who: &EngineId) -> Result<Option<PublicKeys>, EngineError> {
        let known = self.0.know(who)?;
        Ok(known.map(|known| known.party.keys.clone()))
    }
}

impl Inner {
    /// A reply of a Reads For engine to the Encryption engine.
    pub(crate) async fn take_evidence(
        self: &Arc<Self>,
        sender: &EngineId,
        reply: ReplyReadsForEvidence,
    ) {
        let ReplyReadsForEvidence {
            external_identity,
            evidence,
            err,
        } = reply;
        let configured = &self.exchange.reads_for;
        // Of what nobody waits for nothing is verified.
        let is_expected = (self.exchange.pending()).expects(sender, configured, &external_identity);
        if !is_expected {
            return;
        }
        let answer = match err {
            Some(err) => Err(err),
            None => self.verified(evidence).await,
        };
        let mut pending = self.exchange.pending();
        let effect = pending.reply(sender, configured, &external_identity, answer);
        drop(pending);
        answer_all(effect);
    }

    /// What counts of the evidence in a reply; that takes long where much was revoked.
    async fn verified(self: &Arc<Self>, evidence: EvidenceAbout) -> Answer {
        let node = Arc::clone(self);
        match tokio::task::spawn_blocking(move || node.what_counts(evidence)).await {
            Ok(counts) => Ok(Arc::new(counts?)),
            Err(_) => Err(Error::Cancelled.into()),
        }
    }

    pub(crate) fn evidence_about(&self, identity: &EngineId) -> Result<EvidenceAbout, EngineError> {
        let known = self.must_know(identity)?;
        let now = self.registry.revision()?;
        Ok(self
            .relation()
            .about(&self.registry, now, &known.party.keys)?)
    }

    pub(crate) fn relation(&self) -> std::sync::MutexGuard<'_, ReadsFor> {
        // A panic in between leaves pieces out at worst, and they are asked for again.
        let relation = &self.exchange.relation;
        lock(relation)
    }

    /// The keys that a name stands for here.
    pub(crate) fn keys_of(&self, name: &str) -> Result<Option<PublicKeys>, RegistryError> {
        let known = self.know(&EngineId::local(name))?;
        Ok(known.map(|known| known.party.keys.clone()))
    }

    pub(crate) fn must_know(&self, who: &EngineId) -> Result<Arc<Known>, EngineError> {
        self.know(who)?.ok_or(EngineError::ExternalIdentityNotFound)
    }

    /// Who is known here by this id. The registry is read again only after it changed.
    pub(crate) fn know(&self, who: &EngineId) -> Result<Option<Arc<Known>>, RegistryError> {
        let now = self.registry.revision()?;
        let cache = &self.exchange.known;
        let seen = read(cache);
        if seen.0 == now
            && let Some(known) = seen.1.get(who)
        {
            return Ok(Some(Arc::clone(known)));
        }
        drop(seen);
        let Some(known) = self.registry.known(who)?.map(Arc::new) else {
            return Ok(None);
        };
        let mut seen = write(cache);
        if seen.0 != now {
            *seen = (now, HashMap::new());
        }
        seen.1.insert(who.clone(), Arc::clone(&known));
        Ok(Some(known))
    }
}

/// Asks the configured Reads For engine about an identity, and sees that those who wait
/// for the answer do not wait for ever.
async fn query(node: Weak<Inner>, identity: EngineId, batch: u64) {
    let Some(inner) = node.upgrade() else { return };
    let (reads_for, deadline) = (inner.exchange.reads_for.clone(), inner.exchange.deadline);
    if reads_for == EngineId::local(READS_FOR) {
        let (asked, about) = (Arc::clone(&inner), identity.clone());
        drop(inner);
        let answer = tokio::task::spawn_blocking(move || {
            let answer = asked.evidence_about(&about);
            (asked, answer)
        });
        if let Ok(Ok((asked, answer))) = tokio::time::timeout(deadline, answer).await {
            let (evidence, err) = match answer {
                Ok(evidence) => (evidence, None),
                Err(err) => (EvidenceAbout::default(), Some(err)),
            };
            let reply = ReplyReadsForEvidence {
                external_identity: identity,
                evidence,
                err,
            };
            asked.take_evidence(&reads_for, reply).await;
            return;
        }
    } else {
        inner.ask_for_evidence(&reads_for, &identity);
        drop(inner);
        tokio::time::sleep(deadline).await;
    }
    if let Some(inner) = node.upgrade() {
        let mut pending = inner.exchange.pending();
        let effect = pending.silence(&reads_for, &identity, batch);
        drop(pending);
        answer_all(effect);
    }
}

/// Lets those who waited go on, each on its own task.
fn answer_all(effect: Option<Effect<oneshot::Sender<Answer>>>) {
    if let Some(Effect::Answer { waiting, with }) = effect {
        for waiting in waiting {
            // It may have gone away.
            let _ = waiting.send(with.clone());
        }
    }
}

/// Encrypts to all of `keys`.
fn seal(keys: &[PublicKey], data: &Secret) -> Result<Vec<u8>, EngineError> {
    let keys: Vec<&PublicKey> = keys.iter().collect();
    envelope::encrypt(&keys, data).map_err(|error| EngineError::CannotEncrypt {
        reason: error.to_string(),
    })
}
