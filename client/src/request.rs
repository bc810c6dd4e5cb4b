//! Requests as types, each with the type of its answer. Both clients send them.

use zeroize::Zeroizing;

use crate::answer::{Answer, unexpected};
use crate::error::{Error, Refusal};
use crate::wire::{
    self, Deletion, EngineId, EngineMsg, KeyUse, Preference, Purpose, Signature, engine_msg::Msg,
    frame::Content,
};

/// A request, and how its answer is read.
pub trait Request {
    /// What the daemon's answer is.
    type Reply;

    /// What is sent. With `follows` the data comes after it.
    fn content(&self, follows: bool) -> Content;

    /// The data of the request, which goes in chunks if it is long.
    fn data(&self) -> &[u8] {
        &[]
    }

    /// Reads the answer.
    ///
    /// # Errors
    /// The daemon's own, and `Protocol` if it is not an answer to this.
    fn reply(&self, answer: Answer) -> Result<Self::Reply, Error>;
}

/// The engine of this name on the daemon's node.
pub fn local(name: impl Into<String>) -> EngineId {
    EngineId {
        node: Vec::new(),
        name: name.into(),
    }
}

/// The engine that signs for an identity that was generated or connected under this name.
pub fn committer(identity: &str) -> EngineId {
    local(format!("{identity}_committer_{identity}"))
}

/// The engine that decrypts for an identity that was generated or connected under this name.
pub fn decryptor(identity: &str) -> EngineId {
    local(format!("{identity}_decryptor_{identity}"))
}

/// The signature of a message, as it is.
pub fn raw() -> Purpose {
    Purpose {
        purpose: Some(wire::purpose::Purpose::Raw(true)),
    }
}

/// The signature of a request for a certificate of the key, or of a certificate that it signs
/// itself.
pub fn certificate() -> Purpose {
    Purpose {
        purpose: Some(wire::purpose::Purpose::Certificate(true)),
    }
}

/// The signature of a digest whose message the daemon does not see. It needs a grant of its own.
pub fn prehash() -> Purpose {
    Purpose {
        purpose: Some(wire::purpose::Purpose::Prehash(true)),
    }
}

/// Sign.
#[derive(Debug, Clone)]
pub struct Commit<'a> {
    /// The engine: [`committer`].
    pub engine: &'a EngineId,
    /// The data to sign: a message, or what the purpose requires.
    pub data: &'a [u8],
    /// What the signature is for.
    pub purpose: Purpose,
}

impl Request for Commit<'_> {
    type Reply = Signature;

    fn content(&self, follows: bool) -> Content {
        let msg = Msg::RequestCommitment(wire::RequestCommitment {
            data: inline(self.data, follows),
            purpose: Some(self.purpose.clone()),
        });
        engine(self.engine.clone(), "", follows, msg)
    }

    fn data(&self) -> &[u8] {
        self.data
    }

    fn reply(&self, answer: Answer) -> Result<Signature, Error> {
        signature(answer)
    }
}

/// A request to sign what follows in chunks.
pub(crate) fn announced(target: &EngineId, purpose: &Purpose) -> Content {
    let msg = Msg::RequestCommitment(wire::RequestCommitment {
        data: Vec::new(),
        purpose: Some(purpose.clone()),
    });
    engine(target.clone(), "", true, msg)
}

pub(crate) fn signature(answer: Answer) -> Result<Signature, Error> {
    match answer.engine()?.0.msg {
        Some(Msg::ReplyCommitment(reply)) => {
            refused(reply.err)?;
            reply.commitment.ok_or_else(unexpected)
        }
        _ => Err(unexpected()),
    }
}

/// Decrypt an age file, or open the header of one.
#[derive(Debug, Clone)]
pub struct Decrypt<'a> {
    /// The engine: [`decryptor`]. Without a name: whichever the caller may use that opens it.
    pub engine: &'a EngineId,
    /// The age file, or its header.
    pub data: &'a [u8],
    /// The data is a header, and the answer its file key.
    pub header_only: bool,
}

/// The answer to [`Decrypt`].
pub struct Decrypted {
    /// The plaintext, or the file key (16 bytes).
    pub data: Zeroizing<Vec<u8>>,
    /// The identity that opened it, where none was named.
    pub identity: String,
}

impl Request for Decrypt<'_> {
    type Reply = Decrypted;

    fn content(&self, follows: bool) -> Content {
        let msg = Msg::RequestDecryption(wire::RequestDecryption {
            data: inline(self.data, follows),
            header_only: self.header_only,
            unattended: false,
        });
        engine(self.engine.clone(), "", follows, msg)
    }

    fn data(&self) -> &[u8] {
        self.data
    }

    fn reply(&self, answer: Answer) -> Result<Decrypted, Error> {
        decrypted(answer)
    }
}

/// Open the header of an age file with any key that the caller may use and that needs no person:
/// its token is unlocked, and it wants neither a touch nor an approval.
#[derive(Debug, Clone)]
pub struct OpenUnattended<'a> {
    /// The header.
    pub header: &'a [u8],
}

impl Request for OpenUnattended<'_> {
    type Reply = Decrypted;

    fn content(&self, follows: bool) -> Content {
        let msg = Msg::RequestDecryption(wire::RequestDecryption {
            data: inline(self.header, follows),
            header_only: true,
            unattended: true,
        });
        engine(local(""), "", follows, msg)
    }

    fn data(&self) -> &[u8] {
        self.header
    }

    fn reply(&self, answer: Answer) -> Result<Decrypted, Error> {
        decrypted(answer)
    }
}

fn decrypted(answer: Answer) -> Result<Decrypted, Error> {
    let (message, followed) = answer.engine()?;
    let identity = message.identity;
    match message.msg {
        Some(Msg::ReplyDecryption(mut reply)) => {
            refused(reply.err.take())?;
            let data = match reply.data_follows {
                true => followed,
                false => Zeroizing::new(std::mem::take(&mut reply.data)),
            };
            Ok(Decrypted { data, identity })
        }
        _ => Err(unexpected()),
    }
}

/// Encrypt to an identity or a contact.
#[derive(Clone)]
pub struct Encrypt<'a> {
    /// The plaintext.
    pub data: &'a [u8],
    /// The recipient.
    pub to: &'a EngineId,
    /// Whether to use evidence of who reads for whom.
    pub use_reads_for: bool,
    /// Who is preferred where evidence leaves a choice.
    pub preference: Option<Preference>,
}

impl Request for Encrypt<'_> {
    type Reply = Vec<u8>;

    fn content(&self, follows: bool) -> Content {
        let msg = Msg::RequestEncrypt(wire::RequestEncrypt {
            data: inline(self.data, follows),
            external_identity: Some(self.to.clone()),
            use_reads_for: self.use_reads_for,
            preference: self.preference.clone(),
        });
        engine(local("encryption"), "", follows, msg)
    }

    fn data(&self) -> &[u8] {
        self.data
    }

    fn reply(&self, answer: Answer) -> Result<Vec<u8>, Error> {
        let (message, mut followed) = answer.engine()?;
        match message.msg {
            Some(Msg::ReplyEncrypt(reply)) => {
                refused(reply.err)?;
                Ok(match reply.data_follows {
                    true => std::mem::take(&mut *followed),
                    false => reply.ciphertext,
                })
            }
            _ => Err(unexpected()),
        }
    }
}

/// Make an identity.
#[derive(Debug, Clone)]
pub struct Generate<'a> {
    /// Its name.
    pub identity: &'a str,
    /// The token for its keys.
    pub backend: &'a str,
    /// Its cryptosystem: `p256`, `ed25519` …
    pub params: &'a str,
    /// What it can do.
    pub capabilities: &'a [KeyUse],
}

/// The engines of an identity.
#[derive(Debug, Clone, PartialEq)]
pub struct Engines {
    /// The identity.
    pub identity: Option<EngineId>,
    /// The engine that signs for it.
    pub commitment: Option<EngineId>,
    /// The engine that decrypts for it.
    pub decryption: Option<EngineId>,
}

impl Request for Generate<'_> {
    type Reply = Engines;

    fn content(&self, _: bool) -> Content {
        let msg = Msg::RequestGenerateIdentity(wire::RequestGenerateIdentity {
            backend: self.backend.into(),
            params: self.params.into(),
            capabilities: uses(self.capabilities),
        });
        engine(local(MANAGEMENT), self.identity, false, msg)
    }

    fn reply(&self, answer: Answer) -> Result<Engines, Error> {
        match answer.engine()?.0.msg {
            Some(Msg::ReplyGenerateIdentity(reply)) => {
                refused(reply.err)?;
                Ok(Engines {
                    identity: reply.external_identity,
                    commitment: reply.commitment_engine,
                    decryption: reply.decryption_engine,
                })
            }
            _ => Err(unexpected()),
        }
    }
}

/// Use an existing identity under another name, or adopt keys.
#[derive(Debug, Clone)]
pub struct Connect<'a> {
    /// The new name.
    pub identity: &'a str,
    /// The identity; or the fingerprints of the keys, separated by a comma.
    pub to: &'a EngineId,
    /// The token of the keys to adopt.
    pub backend: &'a str,
    /// What it shall be able to do.
    pub capabilities: &'a [KeyUse],
}

impl Request for Connect<'_> {
    type Reply = Engines;

    fn content(&self, _: bool) -> Content {
        let msg = Msg::RequestConnectIdentity(wire::RequestConnectIdentity {
            external_identity: Some(self.to.clone()),
            backend: self.backend.into(),
            capabilities: uses(self.capabilities),
        });
        engine(local(MANAGEMENT), self.identity, false, msg)
    }

    fn reply(&self, answer: Answer) -> Result<Engines, Error> {
        match answer.engine()?.0.msg {
            Some(Msg::ReplyConnectIdentity(reply)) => {
                refused(reply.err)?;
                Ok(Engines {
                    identity: None,
                    commitment: reply.commitment_engine,
                    decryption: reply.decryption_engine,
                })
            }
            _ => Err(unexpected()),
        }
    }
}

/// Remove an identity, and destroy the keys that were made for it.
#[derive(Debug, Clone)]
pub struct Delete<'a> {
    /// Its name.
    pub identity: &'a str,
}

impl Request for Delete<'_> {
    type Reply = Vec<Deletion>;

    fn content(&self, _: bool) -> Content {
        let msg = Msg::RequestDeleteIdentity(wire::RequestDeleteIdentity {
            external_identity: Some(local(self.identity)),
            backend: String::new(),
        });
        engine(local(MANAGEMENT), self.identity, false, msg)
    }

    fn reply(&self, answer: Answer) -> Result<Vec<Deletion>, Error> {
        match answer.engine()?.0.msg {
            Some(Msg::ReplyDeleteIdentity(reply)) => {
                let keys = reply.keys().collect();
                refused(reply.err).map(|()| keys)
            }
            _ => Err(unexpected()),
        }
    }
}

/// The engine that manages identities.
const MANAGEMENT: &str = "identity_management";

fn engine(target: EngineId, identity: &str, data_follows: bool, msg: Msg) -> Content {
    Content::Engine(EngineMsg {
        target: Some(target),
        mailbox: None,
        identity: identity.into(),
        data_follows,
        msg: Some(msg),
    })
}

fn inline(data: &[u8], follows: bool) -> Vec<u8> {
    match follows {
        true => Vec::new(),
        false => data.to_vec(),
    }
}

fn uses(capabilities: &[KeyUse]) -> Vec<i32> {
    capabilities.iter().map(|each| *each as i32).collect()
}

pub(crate) fn refused(error: Option<wire::EngineError>) -> Result<(), Error> {
    error.map_or(Ok(()), |error| Err(Refusal::from(error).into()))
}
