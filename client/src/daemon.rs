//! Requests to the daemon itself.

use crate::answer::{Answer, unexpected};
use crate::error::Error;
use crate::request::Request;
use crate::wire::{
    self, DaemonRequest, Grant, Identity, StatusReply, TokenId, daemon_reply::Reply,
    daemon_request::Request as Asked, frame::Content,
};

/// How the daemon and its tokens are.
#[derive(Debug, Clone)]
pub struct Status;

impl Request for Status {
    type Reply = StatusReply;

    fn content(&self, _: bool) -> Content {
        asked(Asked::Status(wire::Status {}))
    }

    fn reply(&self, answer: Answer) -> Result<StatusReply, Error> {
        match only(answer)? {
            Reply::Status(reply) => Ok(reply),
            _ => Err(unexpected()),
        }
    }
}

/// The identities that the caller may use.
#[derive(Debug, Clone)]
pub struct Identities<'a> {
    /// Only the one of this name; empty: all.
    pub name: &'a str,
}

impl Request for Identities<'_> {
    type Reply = Vec<Identity>;

    fn content(&self, _: bool) -> Content {
        let name = self.name.into();
        asked(Asked::ListIdentities(wire::ListIdentities { name }))
    }

    fn reply(&self, answer: Answer) -> Result<Vec<Identity>, Error> {
        let mut identities = Vec::new();
        for reply in answer.daemon().0 {
            match reply? {
                Reply::Identities(reply) => identities.extend(reply.identities),
                _ => return Err(unexpected()),
            }
        }
        Ok(identities)
    }
}

/// The tokens that are attached, as JSON that `claviger --json tokens` prints.
#[derive(Debug, Clone)]
pub struct Tokens<'a> {
    /// Only those that this backend string matches; empty: all.
    pub backend: &'a str,
}

impl Request for Tokens<'_> {
    /// Its `json` is whole.
    type Reply = wire::TokensReply;

    fn content(&self, _: bool) -> Content {
        let backend = self.backend.into();
        asked(Asked::ListTokens(wire::ListTokens { backend }))
    }

    fn reply(&self, answer: Answer) -> Result<wire::TokensReply, Error> {
        let (mut replies, mut followed) = answer.daemon();
        match replies.next() {
            Some(Ok(Reply::Tokens(mut reply))) if reply.data_follows => {
                let text = String::from_utf8(std::mem::take(&mut *followed));
                reply.json = text.map_err(|_| unexpected())?;
                Ok(reply)
            }
            Some(Ok(Reply::Tokens(reply))) => Ok(reply),
            _ => Err(unexpected()),
        }
    }
}

/// Give the daemon a token's PIN to keep. The daemon asks the listener for it.
#[derive(Debug, Clone)]
pub struct Unlock<'a> {
    /// The token, by a backend string.
    pub backend: &'a str,
    /// How long, in seconds; 0: until it is locked or goes.
    pub for_s: u64,
}

impl Request for Unlock<'_> {
    type Reply = TokenId;

    fn content(&self, _: bool) -> Content {
        asked(Asked::Unlock(wire::Unlock {
            backend: self.backend.into(),
            for_s: self.for_s,
        }))
    }

    fn reply(&self, answer: Answer) -> Result<TokenId, Error> {
        match only(answer)? {
            Reply::Unlock(reply) => reply.token.ok_or_else(unexpected),
            _ => Err(unexpected()),
        }
    }
}

/// Drop the PIN of a token, and log out.
#[derive(Debug, Clone)]
pub struct Lock<'a> {
    /// The token; empty: all.
    pub backend: &'a str,
}

impl Request for Lock<'_> {
    type Reply = Vec<TokenId>;

    fn content(&self, _: bool) -> Content {
        let backend = self.backend.into();
        asked(Asked::Lock(wire::Lock { backend }))
    }

    fn reply(&self, answer: Answer) -> Result<Vec<TokenId>, Error> {
        match only(answer)? {
            Reply::Lock(reply) => Ok(reply.tokens),
            _ => Err(unexpected()),
        }
    }
}

/// Keep a certificate of an identity's signing key.
#[derive(Debug, Clone)]
pub struct ImportCertificate<'a> {
    /// The identity.
    pub identity: &'a str,
    /// The certificate and those that issued it, in DER and in any order.
    pub certificates: &'a [Vec<u8>],
}

impl Request for ImportCertificate<'_> {
    type Reply = Vec<Vec<u8>>;

    fn content(&self, _: bool) -> Content {
        asked(Asked::ImportCertificate(wire::ImportCertificate {
            identity: self.identity.into(),
            certificates: self.certificates.to_vec(),
        }))
    }

    fn reply(&self, answer: Answer) -> Result<Vec<Vec<u8>>, Error> {
        match only(answer)? {
            Reply::ImportCertificate(reply) => Ok(reply.certificates),
            _ => Err(unexpected()),
        }
    }
}

/// All grants.
#[derive(Debug, Clone)]
pub struct Grants;

impl Request for Grants {
    type Reply = Vec<Grant>;

    fn content(&self, _: bool) -> Content {
        asked(Asked::ListGrants(wire::ListGrants {}))
    }

    fn reply(&self, answer: Answer) -> Result<Vec<Grant>, Error> {
        grants(answer)
    }
}

/// Add a grant; the answer is the grant with its id.
#[derive(Debug, Clone)]
pub struct AddGrant {
    /// The grant, without an id.
    pub grant: Grant,
}

impl Request for AddGrant {
    type Reply = Vec<Grant>;

    fn content(&self, _: bool) -> Content {
        let grant = Some(self.grant.clone());
        asked(Asked::AddGrant(wire::AddGrant { grant }))
    }

    fn reply(&self, answer: Answer) -> Result<Vec<Grant>, Error> {
        grants(answer)
    }
}

/// Remove a grant; the answer is the grant that was removed.
#[derive(Debug, Clone)]
pub struct RemoveGrant {
    /// Its id.
    pub id: u64,
}

impl Request for RemoveGrant {
    type Reply = Vec<Grant>;

    fn content(&self, _: bool) -> Content {
        asked(Asked::RemoveGrant(wire::RemoveGrant { id: self.id }))
    }

    fn reply(&self, answer: Answer) -> Result<Vec<Grant>, Error> {
        grants(answer)
    }
}

fn asked(request: Asked) -> Content {
    Content::DaemonRequest(DaemonRequest {
        request: Some(request),
    })
}

fn only(answer: Answer) -> Result<Reply, Error> {
    answer
        .daemon()
        .0
        .next()
        .unwrap_or_else(|| Err(unexpected()))
}

fn grants(answer: Answer) -> Result<Vec<Grant>, Error> {
    let mut grants = Vec::new();
    for reply in answer.daemon().0 {
        match reply? {
            Reply::Grants(reply) => grants.extend(reply.grants),
            _ => return Err(unexpected()),
        }
    }
    Ok(grants)
}
