//! Each request becomes one call of the node, and its result the answer.

use std::io::{Cursor, ErrorKind};
use std::sync::Arc;

use claviger_client::wire::{self, engine_msg::Msg as Wire};
use claviger_engine::message::{
    Msg, ReplyCommitment, ReplyDecryption, RequestCommitment, RequestDecryption,
};
use claviger_engine::opener::Opener;
use claviger_engine::types::owner_by_name;
use claviger_engine::{CommitStreamError, EngineError, EngineId, Node, Purpose};
use claviger_formats::envelope::{Sealed, UnwrappedKey, read_error};
use claviger_token::token::Secret;
use claviger_token::{Algorithm, Error, KeyUse};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::administration::coded;
use crate::audit::{AuditError, Outcome};
use crate::auditing::{self, Begun, Noted};
use crate::metered::Metered;
use crate::replies::{self, Answer};
use crate::request::{Asked, Request};
use crate::session::Session;
use crate::streams::{Hashed, Incoming, read_whole};
use crate::{Refusal, confirming, convert};

/// The bytes of the nonce with which the payload of an age file begins.
const PAYLOAD_NONCE: usize = 16;

impl Request {
    /// The answer. `data` is that of the request, where it comes in chunks.
    pub(crate) async fn answer(self, asked: Asked, data: Option<Incoming>) -> Answer {
        let metered = Metered::begin(&self.session, &asked);
        let answered = match asked {
            Asked::Engine(message) => self.ask_engine(message, data).await,
            Asked::Daemon(request) => self.ask_daemon(request).await,
        };
        let answer = answered.unwrap_or_else(Answer::from);
        if let Some(metered) = metered {
            metered.end(&answer);
        }
        answer
    }

    async fn ask_engine(
        self,
        message: wire::EngineMsg,
        data: Option<Incoming>,
    ) -> Result<Answer, Refusal> {
        let wire::EngineMsg {
            target,
            identity,
            data_follows,
            msg,
            ..
        } = message;
        let target = convert::engine_id(target.unwrap_or_default()).map_err(Refusal::BadRequest)?;
        let msg = msg.ok_or(Refusal::BadRequest("its message is unknown"))?;
        let who = who(identity, &target, &msg).map_err(Refusal::BadRequest)?;
        if data_follows && data.is_none() {
            return Err(Refusal::BadRequest("its data cannot come in chunks"));
        }
        match (msg, data) {
            (Wire::RequestCommitment(request), Some(message)) => {
                let purpose = convert::purpose(request.purpose).map_err(Refusal::BadRequest)?;
                if purpose != Purpose::Raw {
                    return Err(Refusal::BadRequest("only a message comes in chunks"));
                }
                self.sign_stream(who, target, message).await
            }
            (Wire::RequestDecryption(mut request), data) => {
                if let Some(incoming) = data {
                    request.data = std::mem::take(&mut *self.gathered(incoming).await?);
                }
                match target.name.is_empty() || request.header_only {
                    _ if request.unattended && !target.name.is_empty() => Err(Refusal::BadRequest(
                        "a key that is named is not used unattended",
                    )),
                    true => Ok(self.open(who, target, request).await),
                    false => {
                        self.ask(&who, &target, Wire::RequestDecryption(request))
                            .await
                    }
                }
            }
            (Wire::RequestEncrypt(mut request), Some(incoming)) => {
                request.data = std::mem::take(&mut *self.gathered(incoming).await?);
                self.ask(&who, &target, Wire::RequestEncrypt(request)).await
            }
            (msg, _) => self.ask(&who, &target, msg).await,
        }
    }

    async fn ask(self, who: &EngineId, target: &EngineId, msg: Wire) -> Result<Answer, Refusal> {
        let request = convert::request(msg).map_err(Refusal::BadRequest)?;
        let (session, hints) = (&self.session, self.session.shared.hints);
        let begun = match self.begin(who, target, &request).await {
            Ok(begun) => begun,
            Err(answer) => return Ok(answer),
        };
        let reply = session.node.ask(who, target, request, &self.call).await;
        if let Some(mut begun) = begun {
            begun.on(session.node.token_of(target));
            begun.end(auditing::outcome(reply.as_ref())).await;
        }
        Ok(match reply {
            Some(reply) => replies::reply(target, reply, hints),
            None => self.failed(&EngineError::NoSuchEngine {
                engine: target.clone(),
            }),
        })
    }

    /// Writes down that a key is about to be used, where it is.
    ///
    /// # Errors
    /// The answer to a request that is not carried out.
    async fn begin(
        &self,
        who: &EngineId,
        target: &EngineId,
        request: &Msg,
    ) -> Result<Option<Begun>, Answer> {
        let session = &self.session;
        let (audit, audits) = (&session.shared.audit, session.shared.audits);
        if !audits && !session.policy.may_want_confirmation() {
            return Ok(None);
        }
        let Some(noted) = Noted::of(who, target, request) else {
            return Ok(None);
        };
        let is_confirmed = match self.check_and_confirm(who, target, request).await {
            Ok(is_confirmed) => is_confirmed,
            Err(error) => {
                noted.refused(audit, &session.caller, error.code());
                let hints = session.shared.hints;
                let refusal = auditing::refusal(who, request, error.clone());
                return Err(match refusal {
                    Some(reply) => replies::reply(target, reply, hints),
                    None => self.failed(&error),
                });
            }
        };
        if !audits {
            return Ok(None);
        }
        let noted = noted.with_digest(request).confirmed(is_confirmed);
        match noted.begin(audit, &session.caller).await {
            Ok(begun) => Ok(Some(begun)),
            Err(error) => Err(self.not_noted(&error)),
        }
    }

    /// Whether the use of a key that is allowed was also confirmed by a person.
    async fn check_and_confirm(
        &self,
        who: &EngineId,
        target: &EngineId,
        request: &Msg,
    ) -> Result<bool, EngineError> {
        let session = &self.session;
        auditing::check(&session.policy, who, target, request)?;
        match session.policy.may_want_confirmation() {
            true => confirming::confirm(session, target, request, &self.call).await,
            false => Ok(false),
        }
    }

    /// Signs a message that comes in chunks. It is hashed as it comes, on a thread of its own.
    async fn sign_stream(
        self,
        who: EngineId,
        target: EngineId,
        message: Incoming,
    ) -> Result<Answer, Refusal> {
        let audits = self.session.shared.audits;
        // What it says of itself is known in the end.
        let empty = Msg::RequestCommitment(RequestCommitment::raw(Vec::new()));
        let begun = match self.begin(&who, &target, &empty).await {
            Ok(begun) => begun,
            Err(answer) => return Ok(answer),
        };
        let (session, call) = (Arc::clone(&self.session), self.call.clone());
        let (runtime, engine) = (Handle::current(), target.clone());
        let most = session.shared.limits().gathered;
        let signed = spawn_blocking(move || {
            let message = match is_hashed(&session.node, &engine) {
                true => message,
                false => message.at_most(most),
            };
            let mut message = Hashed::new(message, audits);
            let signed = session
                .node
                .commit_stream(&who, &engine, &mut message, &call);
            (runtime.block_on(signed), message.digest())
        });
        let (signed, digest) = match signed.await {
            Ok((signed, digest)) => (Some(signed), digest),
            Err(_) => (None, None),
        };
        let (commitment, err) = match signed {
            Some(Ok(commitment)) => (Some(commitment), None),
            Some(Err(CommitStreamError::Engine(error))) => (None, Some(error)),
            Some(Err(CommitStreamError::Message(error)))
                if error.kind() == ErrorKind::FileTooLarge =>
            {
                let refusal = Refusal::DataTooLong { most };
                if let Some(begun) = begun {
                    begun.end(Outcome::Failed("data-too-long")).await;
                }
                return Err(refusal);
            }
            Some(Err(CommitStreamError::Message(_))) | None => (None, Some(self.ended())),
        };
        let reply = Msg::ReplyCommitment(ReplyCommitment { commitment, err });
        if let Some(mut begun) = begun {
            if let Some(digest) = digest {
                begun.signed(digest);
            }
            begun.on(self.session.node.token_of(&target));
            begun.end(auditing::outcome(Some(&reply))).await;
        }
        Ok(replies::reply(&target, reply, self.session.shared.hints))
    }

    /// Opens a file with one identity, or with whichever can; or its header only.
    async fn open(
        self,
        who: EngineId,
        target: EngineId,
        request: wire::RequestDecryption,
    ) -> Answer {
        let whole = Msg::RequestDecryption(RequestDecryption { data: Vec::new() });
        let only = (!target.name.is_empty()).then_some(&who);
        // Of a file for anybody it shows later whose key is used; each is asked about then.
        let begun = match only {
            Some(who) => self.begin(who, &target, &whole).await,
            None => self.begin_for_anybody().await,
        };
        let begun = match begun {
            Ok(begun) => begun,
            Err(answer) => return answer,
        };
        let opened = self.opened(only, request).await;
        if let Some(mut begun) = begun {
            match (&opened, only) {
                (Ok((by, _, is_confirmed)), None) => {
                    begun.confirmed(*is_confirmed);
                    self.note_opener(&mut begun, by).await;
                }
                _ => begun.on(self.session.node.token_of(&target)),
            }
            begun.end(Outcome::of(&opened)).await;
        }
        let (by, data, err) = match opened {
            Ok((by, data, _)) => (Some(by), data, None),
            Err(error) => (None, Secret::default(), Some(error)),
        };
        let reply = Msg::ReplyDecryption(ReplyDecryption { data, err });
        let mut answer = replies::reply(&target, reply, self.session.shared.hints);
        if let (wire::frame::Content::Engine(message), Some(by)) = (&mut answer.first, by) {
            message.identity = (*by.name).to_owned();
        }
        answer
    }

    async fn begin_for_anybody(&self) -> Result<Option<Begun>, Answer> {
        let session = &self.session;
        if !session.shared.audits {
            return Ok(None);
        }
        let noted = Noted::new("decrypt", "");
        let begun = noted.begin(&session.shared.audit, &session.caller).await;
        begun.map(Some).map_err(|error| self.not_noted(&error))
    }

    /// Who opened the file, what is in it, and whether a person confirmed that.
    async fn opened(
        &self,
        who: Option<&EngineId>,
        mut request: wire::RequestDecryption,
    ) -> Result<(EngineId, Secret, bool), EngineError> {
        let Session {
            node,
            keeper,
            caller,
            ..
        } = &*self.session;
        let (header, unattended) = (request.header_only, request.unattended);
        let mut file = std::mem::take(&mut request.data);
        let call = self.call.clone();
        let call = match unattended {
            true => call.using(keeper.access_unattended(caller)),
            false => call,
        };
        if header {
            // A payload begins with its nonce, without which the header is not read.
            file.resize(file.len() + PAYLOAD_NONCE, 0);
        }
        let sealed = Sealed::read(Cursor::new(file))?;
        let asker = EngineId::program();
        let opener = match who {
            Some(who) => Opener::only(node, &asker, who, sealed.stanzas()).await?,
            None => Opener::anybody(node, &asker, sealed.stanzas(), &call).await?,
        };
        // Of a key that is named it was asked before.
        let mut is_confirmed = false;
        let opener = match (who, unattended) {
            (Some(_), _) => opener,
            (None, true) => {
                (opener.unattended()).without(|one| confirming::is_needed(&self.session, one))
            }
            (None, false) => {
                is_confirmed = confirming::confirm_opening(&self.session, &opener, &call).await?;
                opener
            }
        };
        let opened = opener.open(&call).await.map_err(|not| not.error)?;
        let data = match header {
            true => Secret::new(opened.file_key.expose_bytes().to_vec()),
            false => payload(sealed, opened.file_key).await?,
        };
        Ok((opened.who, data, is_confirmed))
    }

    /// Notes whose key opened a file for anybody, and on which token.
    async fn note_opener(&self, begun: &mut Begun, by: &EngineId) {
        let (session, by) = (Arc::clone(&self.session), by.clone());
        let found = spawn_blocking(move || session.node.registry().identity(&by));
        let info = found.await.ok().and_then(Result::ok).flatten();
        if let Some(key) = info.as_ref().and_then(|info| info.key(KeyUse::Decrypt)) {
            begun.by(&key.owner.name);
            begun.on(Some(key.token.clone()));
        }
    }

    /// Data that is held whole, and comes in chunks.
    async fn gathered(&self, incoming: Incoming) -> Result<Secret, Refusal> {
        let most = self.session.shared.limits().gathered;
        let gathered = spawn_blocking(move || incoming.whole(most)).await;
        let ended = Refusal::BadRequest("its data did not come");
        match gathered {
            Ok(Ok(data)) => Ok(data),
            Ok(Err(refusal)) => Err(refusal.unwrap_or(ended)),
            Err(_) => Err(ended),
        }
    }

    /// Why data did not come: the request is over.
    pub(crate) fn ended(&self) -> EngineError {
        EngineError::Token(self.call.check().err().unwrap_or(Error::Cancelled))
    }

    pub(crate) fn failed(&self, error: &EngineError) -> Answer {
        let error = replies::plain_error(error, self.session.shared.hints);
        wire::frame::Content::Error(error).into()
    }

    /// What cannot be written down is not done.
    pub(crate) fn not_noted(&self, error: &AuditError) -> Answer {
        coded(error.code(), error.to_string())
    }
}

/// The identity that a request is about: of a key that is used its owner, who alone may be named;
/// otherwise the one that is named.
fn who(identity: String, target: &EngineId, msg: &Wire) -> Result<EngineId, &'static str> {
    let usage = match msg {
        Wire::RequestCommitment(_) => KeyUse::Sign,
        Wire::RequestDecryption(_) => KeyUse::Decrypt,
        _ if identity.is_empty() => return Ok(EngineId::program()),
        _ => return Ok(EngineId::local(identity)),
    };
    let owner = owner_by_name(usage, &target.name);
    match owner {
        _ if identity.is_empty() => Ok(owner.unwrap_or_else(EngineId::program)),
        Some(owner) if *owner.name == *identity => Ok(owner),
        _ => Err("its identity is not the one whose engine it asks"),
    }
}

/// Whether a long message is hashed as it comes. All of it is held where its key signs the message
/// itself. (For an ECDSA token that hashes by itself the engine has a limit.)
fn is_hashed(node: &Node, engine: &EngineId) -> bool {
    let owner = owner_by_name(KeyUse::Sign, &engine.name);
    let info = owner.and_then(|owner| node.registry().identity(&owner).ok().flatten());
    let key = info.as_ref().and_then(|info| info.key(KeyUse::Sign));
    key.is_some_and(|key| {
        matches!(
            key.public_key.algorithm(),
            Algorithm::P256 | Algorithm::P384 | Algorithm::Secp256k1
        )
    })
}

/// The payload of a file that is held whole.
async fn payload(
    sealed: Sealed<Cursor<Vec<u8>>>,
    file_key: UnwrappedKey,
) -> Result<Secret, EngineError> {
    let read = spawn_blocking(move || -> Result<Secret, Error> {
        let payload = sealed.open(file_key)?;
        read_whole(payload).map_err(|error| read_error(&error))
    });
    match read.await {
        Ok(data) => Ok(data?),
        Err(_) => Err(Error::Cancelled.into()),
    }
}
