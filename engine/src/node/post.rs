//! Messages: each becomes one call, and its result the reply.

use std::sync::Arc;

use claviger_token::Call;
use claviger_token::token::Secret;

use super::Node;
use crate::inner::{ENCRYPTION, IDENTITY_MANAGEMENT, Inner, READS_FOR};
use crate::mailboxes::SendError;
use crate::message::{
    EngineMsg, Msg, QueryReadsForEvidence, ReplyCommitment, ReplyConnectIdentity, ReplyDecryption,
    ReplyDeleteIdentity, ReplyEncrypt, ReplyGenerateIdentity, ReplyReadsFor, ReplyReadsForEvidence,
    ReplySubmitReadsForEvidence,
};
use crate::policy::Operation;
use crate::{EngineError, EngineId, Engines};

impl Node {
    /// Sends a message. Returns when it is handled; the reply, if any, is then in
    /// mailbox 0 of the sender, if it is [attached](Node::attach). A message that no
    /// engine accepts is dropped.
    ///
    /// The node believes [`EngineMsg::sender`]: whoever calls this states who sends. A message
    /// that came from outside the process is for [`Node::let_in`].
    ///
    /// # Errors
    /// [`SendError::MailboxFull`]: the target's mailbox, or the sender's, for whom there
    /// would be a reply; then nothing was done.
    pub async fn send(&self, message: EngineMsg, call: &Call) -> Result<(), SendError> {
        if self.0.participant(&message.target).is_some() {
            return self.0.deliver(message);
        }
        let EngineMsg {
            sender,
            target,
            msg,
            ..
        } = message;
        let mailboxes = self.0.participant(&sender);
        let place = mailboxes.as_ref().map(|m| m.reserve()).transpose()?;
        let reply = self.ask(&sender, &target, msg, call).await;
        if let (Some(place), Some(msg)) = (place, reply) {
            place.put(
                0,
                EngineMsg {
                    sender: target,
                    target: sender,
                    mailbox: Some(0),
                    msg,
                },
            );
        }
        Ok(())
    }

    /// Lets a message in that came from outside the process, from `who`: on a socket whoever the
    /// peer's credentials name, from another node the id that the transport has authenticated.
    /// What the message itself says of its sender counts for nothing.
    ///
    /// The reply is handed back, for `who`. A message that no engine accepts is dropped. If the
    /// policy denies `who` the use of the engine, the reply says so, whether the engine is there
    /// or not.
    ///
    /// # Errors
    /// [`SendError::Busy`]: the target takes part in the node, and too many messages that were
    /// let in wait in its mailboxes, of this sender or of all. [`SendError::MailboxFull`]: too
    /// many wait there anyway.
    pub async fn let_in(
        &self,
        who: &EngineId,
        message: EngineMsg,
        call: &Call,
    ) -> Result<Option<Msg>, SendError> {
        let message = EngineMsg {
            sender: who.clone(),
            ..message
        };
        if let Some(mailboxes) = self.0.participant(&message.target) {
            let place = mailboxes.reserve_for_outside(who.into())?;
            place.put(message.mailbox.unwrap_or(0), message);
            return Ok(None);
        }
        let EngineMsg { target, msg, .. } = message;
        let denied = self.denied(who, &target, &msg);
        Ok(self.ask(who, &target, msg, call).await.or(denied))
    }

    /// What is answered in place of an engine that is not there: to whom the policy denies its
    /// use, what they are told where it is; else nothing.
    fn denied(&self, who: &EngineId, target: &EngineId, msg: &Msg) -> Option<Msg> {
        let denied = |operation| self.may_use_absent(who, target, operation).err();
        Some(match msg {
            Msg::RequestCommitment(request) => Msg::ReplyCommitment(ReplyCommitment {
                commitment: None,
                err: Some(denied(Operation::Sign(&request.purpose))?),
            }),
            Msg::RequestDecryption(_) => Msg::ReplyDecryption(ReplyDecryption {
                data: Secret::default(),
                err: Some(denied(Operation::Decrypt)?),
            }),
            _ => return None,
        })
    }

    /// Sends a message to an engine and hands back what it replies to the sender.
    ///
    /// `None`: no engine of that name accepts such a message, and it was dropped.
    ///
    /// The node believes that `sender` sends it: whoever calls this has authenticated them.
    pub async fn ask(
        &self,
        sender: &EngineId,
        target: &EngineId,
        msg: Msg,
        call: &Call,
    ) -> Option<Msg> {
        if target.node.is_some() {
            return None;
        }
        match &*target.name {
            IDENTITY_MANAGEMENT => self.to_identity_management(sender, msg, call).await,
            ENCRYPTION => self.to_encryption(sender, msg, call).await,
            READS_FOR => self.to_reads_for(sender, msg).await,
            _ => self.to_key_engine(sender, target, msg, call).await,
        }
    }

    async fn to_identity_management(
        &self,
        sender: &EngineId,
        msg: Msg,
        call: &Call,
    ) -> Option<Msg> {
        Some(match msg {
            Msg::RequestGenerateIdentity(request) => {
                let (engines, err) = parts(self.generate(sender, request, call).await);
                let Engines {
                    commitment_engine,
                    decryption_engine,
                } = engines;
                Msg::ReplyGenerateIdentity(ReplyGenerateIdentity {
                    commitment_engine,
                    decryption_engine,
                    external_identity: sender.clone(),
                    err,
                })
            }
            Msg::RequestConnectIdentity(request) => {
                let (engines, err) = parts(self.connect(sender, request, call).await);
                let Engines {
                    commitment_engine,
                    decryption_engine,
                } = engines;
                Msg::ReplyConnectIdentity(ReplyConnectIdentity {
                    commitment_engine,
                    decryption_engine,
                    err,
                })
            }
            Msg::RequestDeleteIdentity(request) => {
                let (keys, err) = parts(self.delete(sender, request, call).await);
                Msg::ReplyDeleteIdentity(ReplyDeleteIdentity { keys, err })
            }
            _ => return None,
        })
    }

    /// `None`: there is no such engine, or it does not do this.
    async fn to_key_engine(
        &self,
        sender: &EngineId,
        target: &EngineId,
        msg: Msg,
        call: &Call,
    ) -> Option<Msg> {
        Some(match msg {
            Msg::RequestCommitment(request) => {
                let done = self.commit_for(sender, target, request, call).await;
                let (commitment, err) = parts(accepted(done)?.map(Some));
                Msg::ReplyCommitment(ReplyCommitment { commitment, err })
            }
            Msg::RequestDecryption(request) => {
                let done = self.decrypt(sender, target, request.data, call).await;
                let (data, err): (Secret, _) = parts(accepted(done)?);
                Msg::ReplyDecryption(ReplyDecryption { data, err })
            }
            _ => return None,
        })
    }

    async fn to_encryption(&self, sender: &EngineId, msg: Msg, call: &Call) -> Option<Msg> {
        match msg {
            Msg::RequestEncrypt(request) => {
                let (ciphertext, err) = parts(self.encrypt(sender, request, call).await);
                Some(Msg::ReplyEncrypt(ReplyEncrypt { ciphertext, err }))
            }
            Msg::ReplyReadsForEvidence(reply) => {
                self.0.take_evidence(sender, reply).await;
                None
            }
            _ => None,
        }
    }

    async fn to_reads_for(&self, sender: &EngineId, msg: Msg) -> Option<Msg> {
        let (node, sender) = (self.clone(), sender.clone());
        let handled = tokio::task::spawn_blocking(move || {
            Some(match msg {
                Msg::RequestReadsFor(request) => {
                    let (reads_for, err) = parts(node.reads_for(&sender, &request.a, &request.b));
                    Msg::ReplyReadsFor(ReplyReadsFor { reads_for, err })
                }
                Msg::SubmitReadsForEvidence(request) => {
                    let ((), err) = parts(node.submit_evidence(&sender, &request.evidence));
                    Msg::ReplySubmitReadsForEvidence(ReplySubmitReadsForEvidence { err })
                }
                Msg::QueryReadsForEvidence(QueryReadsForEvidence { external_identity }) => {
                    let (evidence, err) = parts(node.evidence_about(&sender, &external_identity));
                    Msg::ReplyReadsForEvidence(ReplyReadsForEvidence {
                        external_identity,
                        evidence,
                        err,
                    })
                }
                _ => return None,
            })
        });
        handled.await.ok().flatten()
    }
}

impl Inner {
    /// The Encryption engine asks a Reads For engine that is not the node's own. One that is not
    /// there, or whose mailbox is full, is as silent as any.
    pub(crate) fn ask_for_evidence(self: &Arc<Self>, reads_for: &EngineId, about: &EngineId) {
        let delivered = self.deliver(EngineMsg {
            sender: EngineId::local(ENCRYPTION),
            target: reads_for.clone(),
            mailbox: None,
            msg: Msg::QueryReadsForEvidence(QueryReadsForEvidence {
                external_identity: about.clone(),
            }),
        });
        drop(delivered);
    }
}

/// What a reply says: with an error it is empty.
fn parts<T: Default>(result: Result<T, EngineError>) -> (T, Option<EngineError>) {
    match result {
        Ok(value) => (value, None),
        Err(error) => (T::default(), Some(error)),
    }
}

/// The answer of an engine; `None` where there is none that does this.
fn accepted<T>(result: Result<T, EngineError>) -> Option<Result<T, EngineError>> {
    match result {
        Err(EngineError::NoSuchEngine { .. }) => None,
        answer => Some(answer),
    }
}
