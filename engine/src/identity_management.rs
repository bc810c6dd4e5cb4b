//! Identity Management: decides what each message leads to.
//!
//! What is here is pure: it maps the entries and a request to an action, or to the reason why
//! there is none. The [`lifecycle`](crate::lifecycle) carries the action out.

use claviger_token::{Fingerprint, KeySpec, KeyUse};

use crate::message::{RequestConnectIdentity, RequestDeleteIdentity, RequestGenerateIdentity};
use crate::policy::{Permission, Policy};
use crate::types::{Origin, check_name};
use crate::{Backend, Capabilities, EngineError, EngineId, IdentityInfo};

/// Make keys and enter an identity for them.
#[derive(Debug)]
pub(crate) struct Generate {
    pub(crate) backend: Backend,
    pub(crate) keys: Vec<KeySpec>,
    pub(crate) capabilities: Capabilities,
}

/// What Connect leads to.
#[derive(Debug)]
pub(crate) enum Connect {
    /// Enter an identity that uses the engines of another.
    Copy {
        original: EngineId,
        info: IdentityInfo,
    },
    /// Enter an identity for keys that are on a token.
    Adopt { backend: Backend, keys: Sought },
}

/// What Delete leads to.
#[derive(Debug)]
pub(crate) enum Delete {
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

type Entry = Result<Option<IdentityInfo>, EngineError>;

/// What a request to generate leads to. `entry` looks an identity up, here and below.
pub(crate) fn generate(
    who_asked: &EngineId,
    request: RequestGenerateIdentity,
    policy: &dyn Policy,
    entry: impl Fn(&EngineId) -> Entry,
) -> Result<Generate, EngineError> {
    let RequestGenerateIdentity {
        backend,
        params,
        capabilities,
    } = request;
    let access = Permission::Generate { backend: &backend };
    policy.check(who_asked, access)?;
    may_enter(who_asked, &entry)?;
    let keys = capabilities
        .uses()
        .map(|usage| {
            params
                .key(usage)
                .ok_or(EngineError::CannotDecrypt { params })
        })
        .collect::<Result<_, _>>()?;
    Ok(Generate {
        backend,
        keys,
        capabilities,
    })
}

/// What a request to connect leads to.
pub(crate) fn connect(
    who_asked: &EngineId,
    request: RequestConnectIdentity,
    policy: &dyn Policy,
    entry: impl Fn(&EngineId) -> Entry,
) -> Result<Connect, EngineError> {
    let RequestConnectIdentity {
        external_identity: original,
        backend,
        capabilities,
    } = request;
    // Who is denied does not learn what there is.
    let found = entry(&original);
    let keys = named_keys(&original).filter(|_| matches!(found, Ok(None)));
    if let Some(fingerprints) = keys {
        policy.check(who_asked, Permission::Adopt)?;
        may_enter(who_asked, &entry)?;
        return adopt(&fingerprints, backend, capabilities);
    }
    policy.check(who_asked, Permission::Connect(&original))?;
    may_enter(who_asked, &entry)?;
    let available = found?.ok_or(EngineError::ExternalIdentityNotFound)?;
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
    Ok(Connect::Copy { original, info })
}

/// The keys that `original` names, if that is what it is.
fn named_keys(original: &EngineId) -> Option<Vec<Fingerprint>> {
    let named = original.name.split(',').map(str::parse);
    let named = named.collect::<Result<_, _>>().ok();
    named.filter(|_| original.node.is_none())
}

fn adopt(
    fingerprints: &[Fingerprint],
    backend: Backend,
    capabilities: Capabilities,
) -> Result<Connect, EngineError> {
    let keys = match (fingerprints, capabilities) {
        ([one], Capabilities::Commit) => Sought::One(*one, KeyUse::Sign),
        ([one], Capabilities::Decrypt) => Sought::One(*one, KeyUse::Decrypt),
        ([one, other], Capabilities::CommitAndDecrypt) if one != other => {
            Sought::Both([*one, *other])
        }
        ([_] | [_, _], _) => return Err(EngineError::CapabilitiesNotAvailable),
        _ => return Err(EngineError::ExternalIdentityNotFound),
    };
    Ok(Connect::Adopt { backend, keys })
}

/// What a request to delete leads to.
pub(crate) fn delete(
    who_asked: &EngineId,
    request: RequestDeleteIdentity,
    policy: &dyn Policy,
    entry: impl Fn(&EngineId) -> Entry,
) -> Result<Delete, EngineError> {
    let identity = request.external_identity;
    // Who is denied does not learn what there is.
    let found = entry(&identity);
    policy.check(who_asked, Permission::Delete(&identity))?;
    let info = found?.ok_or(EngineError::IdentityDoesNotExist)?;
    let own = info
        .keys
        .iter()
        .any(|key| key.owner == identity && key.origin == Origin::Generated && !key.deleted);
    Ok(match own {
        true => Delete::Destroy { identity, info },
        false => Delete::Release { identity, info },
    })
}

/// The two conditions for a new entry: the requester has none, and its name can be one.
fn may_enter(who_asked: &EngineId, entry: &impl Fn(&EngineId) -> Entry) -> Result<(), EngineError> {
    if entry(who_asked)?.is_some() {
        return Err(EngineError::IdentityExists);
    }
    check_name(&who_asked.name).map_err(|reason| EngineError::BadName { reason })
}
