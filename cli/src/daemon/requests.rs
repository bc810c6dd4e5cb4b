//! What commands ask of a daemon, in the types of the engine.

use std::time::Duration;

use claviger_client::daemon as own;
use claviger_client::request::{self, Commit, Connect, Decrypt, Delete, Generate};
use claviger_client::wire::{self, Grant, StatusReply, TokensReply, purpose};
use claviger_engine::message::{
    RequestCommitment, RequestConnectIdentity, RequestGenerateIdentity,
};
use claviger_engine::{EngineId, IdentityInfo, Purpose};
use claviger_formats::certificate::Chain;
use claviger_formats::envelope::UnwrappedKey;
use claviger_token::{Deletion, PublicKey, Signature, TokenId};

use super::Daemon;
use super::convert::{self, Malformed};
use crate::failure::Failure;
use crate::input::Input;

/// An identity that a daemon knows.
pub(crate) struct Known {
    pub(crate) who: EngineId,
    pub(crate) info: IdentityInfo,
    pub(crate) first_account: Option<u32>,
}

impl Daemon {
    /// The identity of this name that the user may use.
    pub(crate) fn identity(&self, name: &str) -> Result<Option<Known>, Failure> {
        // No identity has this name, and on the wire it stands for all.
        if name.is_empty() {
            return Ok(None);
        }
        Ok(self.list(name)?.into_iter().next())
    }

    /// All identities that the user may use.
    pub(crate) fn identities(&self) -> Result<Vec<Known>, Failure> {
        self.list("")
    }

    fn list(&self, name: &str) -> Result<Vec<Known>, Failure> {
        let known = |identity| {
            let (who, info, first_account) = convert::identity(identity)?;
            Ok(Known {
                who,
                info,
                first_account,
            })
        };
        let listed = self.ask(&own::Identities { name })?;
        listed.into_iter().map(known).collect()
    }

    /// Makes an identity.
    pub(crate) fn generate(
        &self,
        who: &EngineId,
        request: &RequestGenerateIdentity,
    ) -> Result<(), Failure> {
        self.ask_tidily(&Generate {
            identity: &who.name,
            backend: &request.backend.to_string(),
            params: request.params.name(),
            capabilities: &convert::to_key_uses(request.capabilities),
        })?;
        Ok(())
    }

    /// Connects an identity.
    pub(crate) fn connect(
        &self,
        who: &EngineId,
        request: &RequestConnectIdentity,
    ) -> Result<(), Failure> {
        self.ask(&Connect {
            identity: &who.name,
            to: &request::local(&*request.external_identity.name),
            backend: &request.backend.to_string(),
            capabilities: &convert::to_key_uses(request.capabilities),
        })?;
        Ok(())
    }

    /// Deletes an identity; what became of each of its keys.
    pub(crate) fn delete(&self, who: &EngineId) -> Result<Vec<Deletion>, Failure> {
        let keys = self.ask_tidily(&Delete {
            identity: &who.name,
        })?;
        let keys = keys.into_iter().map(convert::deletion);
        Ok(keys.collect::<Result<_, _>>()?)
    }

    /// Signs for a purpose.
    pub(crate) fn commit_for(
        &self,
        engine: &EngineId,
        request: &RequestCommitment,
    ) -> Result<Signature, Failure> {
        let purpose = match &request.purpose {
            Purpose::Raw => purpose::Purpose::Raw(true),
            Purpose::SshSig { namespace, hash } => purpose::Purpose::SshSig(purpose::SshSig {
                namespace: namespace.to_string(),
                hash: hash.name().into(),
            }),
            Purpose::Evidence => purpose::Purpose::Evidence(true),
            Purpose::Certificate => purpose::Purpose::Certificate(true),
            _ => return Err(Malformed("a purpose that no command has").into()),
        };
        let signature = self.ask(&Commit {
            engine: &request::local(&*engine.name),
            data: &request.data,
            purpose: wire::Purpose {
                purpose: Some(purpose),
            },
        })?;
        Ok(convert::signature(signature)?)
    }

    /// Signs a message of any length.
    pub(crate) fn commit_stream(
        &self,
        engine: &EngineId,
        message: &mut Input,
    ) -> Result<Signature, Failure> {
        let engine = request::local(&*engine.name);
        Ok(convert::signature(self.stream(&engine, message)?)?)
    }

    /// Opens the header of an age file, with the engine of one identity, or with any that can: the
    /// identity, and the key of what follows. No PIN is given if there is a reason to withhold it.
    pub(crate) fn open(
        &self,
        engine: Option<&EngineId>,
        header: &[u8],
        withheld: Option<Failure>,
    ) -> Result<(EngineId, UnwrappedKey), Failure> {
        self.listener.withhold(withheld);
        let opened = self.ask(&Decrypt {
            engine: &request::local(engine.map_or("", |engine| &engine.name)),
            data: header,
            header_only: true,
        });
        self.listener.withhold(None);
        let opened = opened?;
        let key = opened.data.as_slice().try_into();
        let key = key.map_err(|_| Malformed("a file key of another length"))?;
        Ok((
            EngineId::local(opened.identity.as_str()),
            UnwrappedKey::from_bytes(key),
        ))
    }

    /// The certificate of an identity's signing key, with those that issued it.
    pub(crate) fn certificate(
        &self,
        who: &EngineId,
        key: &PublicKey,
    ) -> Result<Option<Chain>, Failure> {
        let listed = self.ask(&own::Identities { name: &who.name })?;
        let ders = listed.into_iter().next().map(|one| one.certificates);
        match ders.unwrap_or_default() {
            none if none.is_empty() => Ok(None),
            ders => match Chain::of(ders, key) {
                Ok(chain) => Ok(Some(chain)),
                Err(_) => Err(Malformed("a certificate of another key").into()),
            },
        }
    }

    /// Has a certificate kept.
    pub(crate) fn import_certificate(
        &self,
        who: &EngineId,
        certificates: &[Vec<u8>],
    ) -> Result<(), Failure> {
        let identity = &*who.name;
        self.ask(&own::ImportCertificate {
            identity,
            certificates,
        })?;
        Ok(())
    }

    /// The attached tokens, as `claviger --json tokens` prints them, and what cannot be read.
    pub(crate) fn tokens(&self, backend: Option<&str>) -> Result<TokensReply, Failure> {
        let backend = backend.unwrap_or_default();
        self.ask(&own::Tokens { backend })
    }

    /// How the daemon and its tokens are.
    pub(crate) fn status(&self) -> Result<StatusReply, Failure> {
        self.ask(&own::Status)
    }

    /// Gives the daemon the PIN of a token, for which it asks.
    pub(crate) fn unlock(&self, backend: &str, time: Option<Duration>) -> Result<TokenId, Failure> {
        let for_s = time.map_or(0, |time| time.as_secs());
        self.ask(&own::Unlock { backend, for_s })
            .map(convert::token)
    }

    /// Has the daemon forget the PIN of one token, or of all (``): the tokens that were locked.
    pub(crate) fn lock(&self, backend: &str) -> Result<Vec<TokenId>, Failure> {
        let locked = self.ask(&own::Lock { backend })?;
        Ok(locked.into_iter().map(convert::token).collect())
    }

    /// Adds a grant: the grant with its number.
    pub(crate) fn add_grant(&self, grant: Grant) -> Result<Vec<Grant>, Failure> {
        self.ask(&own::AddGrant { grant })
    }

    /// The grants.
    pub(crate) fn grants(&self) -> Result<Vec<Grant>, Failure> {
        self.ask(&own::Grants)
    }

    /// Removes a grant: the grant that was removed.
    pub(crate) fn remove_grant(&self, id: u64) -> Result<Vec<Grant>, Failure> {
        self.ask(&own::RemoveGrant { id })
    }
}

impl From<Malformed> for Failure {
    fn from(Malformed(what): Malformed) -> Self {
        Failure::new(format!("the daemon broke the protocol: it sent {what}"))
            .coded("daemon-protocol")
            .hint(crate::hints::by_code("daemon-protocol"))
    }
}
