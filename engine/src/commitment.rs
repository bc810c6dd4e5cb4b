//! Signing through the Commitment engines, each time for a purpose.

use std::io::{self, Read};
use std::sync::Arc;

use claviger_formats::verdict;
use claviger_token::{Algorithm, Call, Error, SignatureScheme};

use crate::key_engine::KeyEngine;
use crate::message::RequestCommitment;
use crate::node::{Done, Node, Work, no_such};
use crate::policy::Operation;
use crate::purpose::{LONGEST_RESERVED, Purpose, ToSign, check_raw};
use crate::{Commitment, EngineError, EngineId};

/// The longest message that is taken whole for a token which hashes by itself and signs with
/// ECDSA, in bytes: devices that do so (Ledgers) take some thousand.
const LONGEST_WHOLE: u64 = 1 << 20;

/// A message of this length, in bytes, or a shorter one is not hashed as it is read: a signature
/// over a message is verified in half the time of one over a digest (see
/// [`PublicKey::verify`](claviger_token::PublicKey::verify)).
const SHORT: usize = 16 << 10;

/// Why a message that was read was not signed.
#[derive(Debug, thiserror::Error)]
pub enum CommitStreamError {
    /// It cannot be read.
    #[error("the message cannot be read: {0}")]
    Message(#[source] io::Error),
    /// What the engine answers.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl CommitStreamError {
    /// The stable name of the variant, for programs; what the engine answers has its own.
    pub fn code(&self) -> &'static str {
        match self {
            CommitStreamError::Message(_) => "io",
            CommitStreamError::Engine(error) => error.code(),
        }
    }
}

impl Node {
    /// Signs the message `data` with the Commitment engine `engine`.
    ///
    /// # Errors
    /// As [`Node::commit_for`].
    pub async fn commit(
        &self,
        who: &EngineId,
        engine: &EngineId,
        data: Vec<u8>,
        call: &Call,
    ) -> Result<Commitment, EngineError> {
        let request = RequestCommitment::raw(data);
        self.commit_for(who, engine, request, call).await
    }

    /// Signs for a purpose with the Commitment engine `engine`.
    ///
    /// # Errors
    /// What the engine answers; [`EngineError::ReservedMessage`] and
    /// [`EngineError::NotForPurpose`] before the token is asked;
    /// [`EngineError::NoSuchEngine`] where there is none.
    pub async fn commit_for(
        &self,
        who: &EngineId,
        engine: &EngineId,
        request: RequestCommitment,
        call: &Call,
    ) -> Result<Commitment, EngineError> {
        self.commit_as((who, who), engine, request, call).await
    }

    /// The same in another scheme than the usual one of the key: RSA keys sign with SHA-512, too.
    ///
    /// # Errors
    /// As [`Node::commit_for`]; [`EngineError::NotForPurpose`] if the key does not sign so for this
    /// purpose.
    pub async fn commit_in(
        &self,
        who: &EngineId,
        engine: &EngineId,
        request: RequestCommitment,
        scheme: Option<SignatureScheme>,
        call: &Call,
    ) -> Result<Commitment, EngineError> {
        self.commit_with(((who, who), scheme), engine, request, call)
            .await
    }

    /// The same for `asker`, in the name of the identity `signer`.
    pub(crate) async fn commit_as(
        &self,
        by: (&EngineId, &EngineId),
        engine: &EngineId,
        request: RequestCommitment,
        call: &Call,
    ) -> Result<Commitment, EngineError> {
        self.commit_with((by, None), engine, request, call).await
    }

    async fn commit_with(
        &self,
        ((asker, signer), scheme): ((&EngineId, &EngineId), Option<SignatureScheme>),
        engine: &EngineId,
        request: RequestCommitment,
        call: &Call,
    ) -> Result<Commitment, EngineError> {
        let RequestCommitment { data, purpose } = request;
        let found = self.usable_as((asker, signer), engine, Operation::Sign(&purpose), call);
        let found = found.await?.ok_or_else(|| no_such(engine))?;
        let key = &found.key.info.public_key;
        let text = purpose.to_be_signed(data, key)?.with(scheme, key);
        let text = text.ok_or(EngineError::NotForPurpose {
            purpose: purpose.name(),
            reason: "the key does not sign in this scheme",
        })?;
        self.sign((asker, &purpose), engine, found, text, call)
            .await
    }

    /// Signs a message that may be longer than memory: it is hashed as it is read, on this
    /// task, in a buffer. Raw signatures with Ed25519 and BLS are over the message itself, so
    /// that all of it is held in memory; so it is for a token that hashes by itself.
    ///
    /// # Errors
    /// [`CommitStreamError`]; as [`Node::commit_for`], and where `message` cannot be read. A
    /// message that is reserved is refused after its first bytes.
    pub async fn commit_stream(
        &self,
        who: &EngineId,
        engine: &EngineId,
        mut message: impl Read,
        call: &Call,
    ) -> Result<Commitment, CommitStreamError> {
        let unreadable = CommitStreamError::Message;
        let mut head = Vec::with_capacity(LONGEST_RESERVED);
        let begins = message.by_ref().take(LONGEST_RESERVED as u64);
        read_all(begins, &mut head).map_err(unreadable)?;
        check_raw(&head)?;
        let found = self.usable(who, engine, Operation::Sign(&Purpose::Raw), call);
        let found = found.await?.ok_or_else(|| no_such(engine))?;
        let by = self.request(who, &found, Operation::Sign(&Purpose::Raw), call);
        let scheme = found.hashes_here(&self.0.tokens, by).await?;
        // What came to its end so early is all there is: a file that grows meanwhile, or a
        // terminal, would give more, and nobody would look at its beginning.
        if head.len() == LONGEST_RESERVED {
            let more = message.by_ref().take((SHORT - head.len()) as u64);
            read_all(more, &mut head).map_err(unreadable)?;
        }
        let text = match head.len() < SHORT {
            true => ToSign::Message(head),
            false => {
                let mut message = io::Cursor::new(head).chain(message);
                let digest = match scheme {
                    Some(scheme) => verdict::digest_of(scheme, &mut message).map_err(unreadable)?,
                    None => None,
                };
                match digest {
                    Some(digest) => ToSign::Digest(digest),
                    None => {
                        let algorithm = found.key.info.public_key.algorithm();
                        ToSign::Message(whole(algorithm, message)?)
                    }
                }
            }
        };
        let signed = self.sign((who, &Purpose::Raw), engine, found, text, call);
        Ok(signed.await?)
    }

    async fn sign(
        &self,
        (sender, purpose): (&EngineId, &Purpose),
        name: &EngineId,
        engine: Arc<KeyEngine>,
        text: ToSign,
        call: &Call,
    ) -> Result<Commitment, EngineError> {
        let work = (Work::Sign(Arc::new(text)), Operation::Sign(purpose));
        match self.work(sender, name, engine, work, call).await? {
            Done::Signed(commitment) => Ok(commitment),
            Done::Opened(_) => Err(no_such(name)),
        }
    }
}

/// All of a message, for keys that are given it.
fn whole(algorithm: Algorithm, message: impl Read) -> Result<Vec<u8>, CommitStreamError> {
    let longest = match algorithm {
        Algorithm::P256 | Algorithm::P384 | Algorithm::Secp256k1 => LONGEST_WHOLE,
        _ => u64::MAX,
    };
    let mut bytes = Vec::new();
    let most = longest.saturating_add(1);
    read_all(message.take(most), &mut bytes).map_err(CommitStreamError::Message)?;
    if bytes.len() as u64 > longest {
        return Err(EngineError::Token(Error::BadMessage {
            reason: "it is longer than 1 MiB, and this token signs only whole messages".into(),
        })
        .into());
    }
    Ok(bytes)
}

fn read_all(mut from: impl Read, to: &mut Vec<u8>) -> io::Result<()> {
    from.read_to_end(to).map(drop)
}
