//! Identity Management: decides what each message leads to.
//!
//! [`decide`] is pure: it maps the entries and a message to an action. The
//! [`lifecycle`](crate::lifecycle) carries the action out and makes the reply from its result.

use claviger_token::{Fingerprint, KeySpec, KeyUse};

use crate::message::{
    Msg, ReplyConnectIdentity, ReplyDeleteIdentity, ReplyGenerateIdentity, RequestConnectIdentity,
    RequestDeleteIdentity, RequestGenerateIdentity,
};
use crate::policy::{Access, Policy};
use crate::types::{Origin, check_name};
use crate::{Backend, Capabilities, EngineError, EngineId, IdentityInfo};

/// What a message to Identity Management leads to.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Nothing changes; this is the reply.
    Reply(Msg),
    /// Make keys and enter an identity for them.
    Generate {
        backend: Backend,
        keys: Vec<KeySpec>,
        capabilities: Capabilities,
    },
    /// Enter an identity that uses the engines of another.
    Connect {
        original: EngineId,
        info: IdentityInfo,
    },
    /// Enter an identity for keys that are on a token.
    Adopt { backend: Backend, keys: Sought },
    /// Destroy an identity's keys and remove its entry.
    Destroy {
        identity: EngineId,
        info: IdentityInfo,
    },
    /// Remove an entry; its keys are not its own.
    Release {
        identity: EngineId,
        info: IdentityInfo,
    },
}

/// The keys that are to be adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sought {
    /// One, for this use.
    One(Fingerprint, KeyUse),
    /// Both keys of an identity: one that signs and one that decrypts, in any order.
    Both([Fingerprint; 2]),
}

impl Sought {
    /// All of them.
    pub(crate) fn fingerprints(&self) -> &[Fingerprint] {
        match self {
            Sought::One(fingerprint, _) => std::slice::from_ref(fingerprint),
            Sought::Both(both) => both,
        }
    }
}

/// Decides on a message from `who_asked`. `None`: no guard accepts it.
///
/// `entry` looks an identity up; an error of it becomes the reply.
pub(crate) fn decide(
    who_asked: &EngineId,
    msg: Msg,
    policy: &dyn Policy,
    entry: impl Fn(&EngineId) -> Result<Option<IdentityInfo>, EngineError>,
) -> Option<Decision> {
    Some(match msg {
        Msg::RequestGenerateIdentity(request) => generate(who_asked, request, entry)
            .unwrap_or_else(|err| Decision::Reply(refuse_generate(who_asked, err))),
        Msg::RequestConnectIdentity(request) => connect(who_asked, request, policy, entry)
            .unwrap_or_else(|err| Decision::Reply(refuse_connect(err))),
        Msg::RequestDeleteIdentity(request) => delete(who_asked, request, policy, entry)
            .unwrap_or_else(|err| Decision::Reply(refuse_delete(err))),
        _ => return None,
    })
}

type Entry = Result<Option<IdentityInfo>, EngineError>;

fn generate(
    who_asked: &EngineId,
    request: RequestGenerateIdentity,
    entry: impl Fn(&EngineId) -> Entry,
) -> Result<Decision, EngineError> {
    may_enter(who_asked, &entry)?;
    let RequestGenerateIdentity {
        backend,
        params,
        capabilities,
    } = request;
    let keys = capabilities
        .uses()
        .map(|usage| {
            params
                .key(usage)
                .ok_or(EngineError::CannotDecrypt { params })
        })
        .collect::<Result<_, _>>()?;
    Ok(Decision::Generate {
        backend,
        keys,
        capabilities,
    })
}

fn connect(
    who_asked: &EngineId,
    request: RequestConnectIdentity,
    policy: &dyn Policy,
    entry: impl Fn(&EngineId) -> Entry,
) -> Result<Decision, EngineError> {
    may_enter(who_asked, &entry)?;
    let RequestConnectIdentity {
        external_identity: original,
        backend,
        capabilities,
    } = request;
    let Some(available) = entry(&original)? else {
        return adopt(who_asked, &original, backend, capabilities, policy);
    };
    policy.check(who_asked, Access::Connect(&original))?;
    if !capabilities.subset_of(available.capabilities) {
        return Err(EngineError::CapabilitiesNotAvailable);
    }
    if let Some(key) = available.keys.iter().find(|key| key.deleted) {
        return Err(EngineError::IdentityDeleted {
            identity: key.owner.clone(),
        });
    }
    let copied = |usage, engine: Option<EngineId>| engine.filter(|_| capabilities.include(usage));
    let info = IdentityInfo {
        backend: available.backend,
        capabilities,
        commitment_engine: copied(KeyUse::Sign, available.commitment_engine),
        decryption_engine: copied(KeyUse::Decrypt, available.decryption_engine),
        keys: available
            .keys
            .into_iter()
            .filter(|k| capabilities.include(k.usage))
            .collect(),
    };
    Ok(Decision::Connect { original, info })
}

fn adopt(
    who_asked: &EngineId,
    original: &EngineId,
    backend: Backend,
    capabilities: Capabilities,
    policy: &dyn Policy,
) -> Result<Decision, EngineError> {
    let named: Result<Vec<Fingerprint>, _> = original.name.split(',').map(str::parse).collect();
    let fingerprints = match named {
        Ok(fingerprints) if original.node.is_none() => fingerprints,
        _ => return Err(EngineError::ExternalIdentityNotFound),
    };
    policy.check(who_asked, Access::Adopt)?;
    let keys = match (fingerprints.as_slice(), capabilities) {
        ([one], Capabilities::Commit) => Sought::One(*one, KeyUse::Sign),
        ([one], Capabilities::Decrypt) => Sought::One(*one, KeyUse::Decrypt),
        ([one, other], Capabilities::CommitAndDecrypt) if one != other => {
            Sought::Both([*one, *other])
        }
        ([_] | [_, _], _) => return Err(EngineError::CapabilitiesNotAvailable),
        _ => return Err(EngineError::ExternalIdentityNotFound),
    };
    Ok(Decision::Adopt { backend, keys })
}

fn delete(
    who_asked: &EngineId,
    request: RequestDeleteIdentity,
    policy: &dyn Policy,
    entry: impl Fn(&EngineId) -> Entry,
) -> Result<Decision, EngineError> {
    let identity = request.external_identity;
    let info = entry(&identity)?.ok_or(EngineError::IdentityDoesNotExist)?;
    policy.check(who_asked, Access::Delete(&identity))?;
    let own = info
        .keys
        .iter()
        .any(|key| key.owner == identity && key.origin == Origin::Generated && !key.deleted);
    Ok(match own {
        true => Decision::Destroy { identity, info },
        false => Decision::Release { identity, info },
    })
}

/// The two conditions for a new entry: the requester has none, and its name can be one.
fn may_enter(who_asked: &EngineId, entry: &impl Fn(&EngineId) -> Entry) -> Result<(), EngineError> {
    if entry(who_asked)?.is_some() {
        return Err(EngineError::IdentityExists);
    }
    check_name(&who_asked.name).map_err(|reason| EngineError::BadName { reason })
}

pub(crate) fn refuse_generate(who_asked: &EngineId, err: EngineError) -> Msg {
    Msg::ReplyGenerateIdentity(ReplyGenerateIdentity {
        commitment_engine: None,
        decryption_engine: None,
        external_identity: who_asked.clone(),
        err: Some(err),
    })
}

pub(crate) fn refuse_connect(err: EngineError) -> Msg {
    Msg::ReplyConnectIdentity(ReplyConnectIdentity {
        commitment_engine: None,
        decryption_engine: None,
        err: Some(err),
    })
}

pub(crate) fn refuse_delete(err: EngineError) -> Msg {
    Msg::ReplyDeleteIdentity(ReplyDeleteIdentity {
        keys: Vec::new(),
        err: Some(err),
    })
}
