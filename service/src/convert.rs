//! Requests of the wire as the engines take them.

use claviger_client::wire::{self, engine_msg::Msg as Wire, purpose::Purpose as WirePurpose};
use claviger_engine::evidence::from_text;
use claviger_engine::message::{
    Msg, QueryReadsForEvidence, RequestCommitment, RequestConnectIdentity, RequestDecryption,
    RequestDeleteIdentity, RequestEncrypt, RequestGenerateIdentity, RequestReadsFor,
    SubmitReadsForEvidence,
};
use claviger_engine::purpose::TlsSide;
use claviger_engine::{Backend, Capabilities, EngineId, NodeId, Preference, Purpose, Via};
use claviger_formats::sshsig::Hash;
use claviger_token::{PublicKey, Zeroizing};

/// So many identities a preference may name: each is looked up.
const MOST_VIA: usize = 64;

/// What is wrong with a request.
pub(crate) type Malformed = &'static str;

type Converted<T> = Result<T, Malformed>;

/// A request to an engine.
pub(crate) fn request(msg: Wire) -> Converted<Msg> {
    Ok(match msg {
        Wire::RequestGenerateIdentity(request) => {
            Msg::RequestGenerateIdentity(RequestGenerateIdentity {
                backend: Backend::from(request.backend),
                params: (request.params.parse()).map_err(|_| "its cryptosystem is unknown")?,
                capabilities: capabilities(&request.capabilities)?,
            })
        }
        Wire::RequestConnectIdentity(request) => {
            Msg::RequestConnectIdentity(RequestConnectIdentity {
                external_identity: needed(request.external_identity)?,
                backend: Backend::from(request.backend),
                capabilities: capabilities(&request.capabilities)?,
            })
        }
        Wire::RequestDeleteIdentity(request) => Msg::RequestDeleteIdentity(RequestDeleteIdentity {
            external_identity: needed(request.external_identity)?,
            backend: Backend::from(request.backend),
        }),
        Wire::RequestCommitment(request) => Msg::RequestCommitment(RequestCommitment {
            data: request.data,
            purpose: purpose(request.purpose)?,
        }),
        Wire::RequestDecryption(request) => {
            Msg::RequestDecryption(RequestDecryption { data: request.data })
        }
        Wire::RequestEncrypt(mut request) => Msg::RequestEncrypt(RequestEncrypt {
            data: Zeroizing::new(std::mem::take(&mut request.data)),
            external_identity: needed(request.external_identity.take())?,
            use_reads_for: request.use_reads_for,
            preference: preference(request.preference.take())?,
        }),
        Wire::RequestReadsFor(request) => Msg::RequestReadsFor(RequestReadsFor {
            a: needed(request.a)?,
            b: needed(request.b)?,
        }),
        Wire::SubmitReadsForEvidence(request) => {
            let file = from_text(&request.evidence).map_err(|_| "its evidence cannot be read")?;
            let (mut pieces, revocations) = (file.evidence, file.revocations);
            match (pieces.pop(), pieces.is_empty() && revocations.is_empty()) {
                (Some(evidence), true) => {
                    Msg::SubmitReadsForEvidence(SubmitReadsForEvidence { evidence })
                }
                _ => return Err("its evidence is not one grant"),
            }
        }
        Wire::QueryReadsForEvidence(request) => Msg::QueryReadsForEvidence(QueryReadsForEvidence {
            external_identity: needed(request.external_identity)?,
        }),
        _ => return Err("it is a reply"),
    })
}

fn needed(id: Option<wire::EngineId>) -> Converted<EngineId> {
    engine_id(id.ok_or("a name is missing")?)
}

/// A name, of this node or of another one.
pub(crate) fn engine_id(id: wire::EngineId) -> Converted<EngineId> {
    let node = match id.node.is_empty() {
        true => None,
        false => {
            let key = PublicKey::from_der(&id.node).map_err(|_| "a node is no public key")?;
            Some(NodeId(key.into()))
        }
    };
    Ok(EngineId {
        node,
        name: id.name.into(),
    })
}

fn capabilities(uses: &[i32]) -> Converted<Capabilities> {
    let has = |usage: wire::KeyUse| uses.contains(&usage.into());
    if uses.len() > 2 {
        return Err("its capabilities are unknown");
    }
    match (
        has(wire::KeyUse::Sign),
        has(wire::KeyUse::Decrypt),
        uses.len(),
    ) {
        (true, true, _) => Ok(Capabilities::CommitAndDecrypt),
        (true, false, 1) => Ok(Capabilities::Commit),
        (false, true, 1) => Ok(Capabilities::Decrypt),
        _ => Err("its capabilities are unknown"),
    }
}

/// What a signature is for; absent, it is a message.
pub(crate) fn purpose(purpose: Option<wire::Purpose>) -> Converted<Purpose> {
    let Some(purpose) = purpose else {
        return Ok(Purpose::Raw);
    };
    Ok(match purpose.purpose.ok_or("its purpose is unknown")? {
        WirePurpose::Raw(_) => Purpose::Raw,
        WirePurpose::SshSig(sshsig) => Purpose::SshSig {
            hash: [Hash::Sha256, Hash::Sha512]
                .into_iter()
                .find(|hash| hash.name() == sshsig.hash)
                .ok_or("the hash of its SSH signature is unknown")?,
            namespace: sshsig.namespace,
        },
        WirePurpose::Evidence(_) => Purpose::Evidence,
        WirePurpose::Proof(_) => Purpose::Proof,
        WirePurpose::Tls(side) => match wire::purpose::TlsSide::try_from(side) {
            Ok(wire::purpose::TlsSide::Server) => Purpose::Tls(TlsSide::Server),
            Ok(wire::purpose::TlsSide::Client) => Purpose::Tls(TlsSide::Client),
            _ => return Err("its side of TLS is unknown"),
        },
        WirePurpose::Node(_) => Purpose::Node,
        WirePurpose::Prehash(_) => Purpose::Prehash,
        WirePurpose::Certificate(_) => Purpose::Certificate,
    })
}

fn preference(wanted: Option<wire::Preference>) -> Converted<Preference> {
    let Some(wanted) = wanted else {
        return Ok(Preference::ITSELF);
    };
    let via = match (wanted.via_anyone, wanted.via) {
        (true, named) if !named.is_empty() => return Err("its preference contradicts itself"),
        (_, named) if named.len() > MOST_VIA => {
            return Err("its preference names more than 64 identities");
        }
        (true, _) => Via::Anyone,
        (false, named) if named.is_empty() => Via::Nobody,
        (false, named) => Via::Named(named.into_iter().map(engine_id).collect::<Converted<_>>()?),
    };
    Ok(Preference {
        readers: wanted.readers,
        via,
        depth: match wanted.depth {
            0 => usize::MAX,
            depth => depth as usize,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_version_does_not_know_is_refused_and_never_taken_for_something_else() {
        assert!(capabilities(&[]).is_err());
        assert!(capabilities(&[0]).is_err());
        assert!(capabilities(&[1, 7]).is_err());
        assert!(capabilities(&[1, 2, 7]).is_err());
        assert!(capabilities(&[1; 1000]).is_err());
        assert_eq!(capabilities(&[2, 1]), Ok(Capabilities::CommitAndDecrypt));
        let via = |names| wire::Preference {
            via: vec![wire::EngineId::default(); names],
            ..wire::Preference::default()
        };
        assert!(preference(Some(via(MOST_VIA))).is_ok());
        assert!(preference(Some(via(MOST_VIA + 1))).is_err());
        assert!(preference(Some(via(200_000))).is_err());
        // A purpose of a later version has no known field.
        assert!(purpose(Some(wire::Purpose { purpose: None })).is_err());
        let tls = |side| {
            purpose(Some(wire::Purpose {
                purpose: Some(WirePurpose::Tls(side)),
            }))
        };
        assert!(tls(0).is_err() && tls(9).is_err());
        assert_eq!(tls(2), Ok(Purpose::Tls(TlsSide::Client)));
        assert_eq!(purpose(None), Ok(Purpose::Raw));
    }
}
