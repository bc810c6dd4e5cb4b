//! What engines answer, as messages of the wire.

use claviger_client::frame::{CHUNK, LIMIT};
use claviger_client::wire::{self, engine_msg::Msg as Wire, event::Kind, frame::Content};
use claviger_engine::evidence::{EvidenceFile, to_text};
use claviger_engine::message::Msg;
use claviger_engine::{Capabilities, EngineError, EngineId, IdentityInfo, KeyInfo, Origin};
use claviger_token::{Deletion, Event, KeyUse, Signature, TokenId, Unreadable};

/// Beside the data of a reply a frame has room for so much.
const ROOM: usize = LIMIT - (64 << 10);

/// The frames of one answer: the first, and what goes on after it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) first: Content,
    pub(crate) then: Vec<Content>,
}

impl From<Content> for Answer {
    fn from(first: Content) -> Self {
        Answer {
            first,
            then: Vec::new(),
        }
    }
}

impl From<crate::Refusal> for Answer {
    fn from(refusal: crate::Refusal) -> Self {
        Content::Error(refusal.to_wire()).into()
    }
}

/// What the front-end tells of an error: what a person can do.
pub(crate) type Hints = fn(&EngineError) -> String;

/// An engine's error as its reply has it.
pub(crate) fn engine_error(error: &EngineError, hints: Hints) -> wire::EngineError {
    let wire::Error {
        code,
        message,
        hint,
        fields,
    } = plain_error(error, hints);
    wire::EngineError {
        code,
        message,
        hint,
        fields,
    }
}

/// An engine's error in place of a reply.
pub(crate) fn plain_error(error: &EngineError, hints: Hints) -> wire::Error {
    let mut answer = wire::Error {
        code: error.code().to_owned(),
        message: error.to_string(),
        hint: hints(error),
        ..wire::Error::default()
    };
    if let Some(token) = token_of(error) {
        answer.fields.insert("token".to_owned(), token.to_string());
    }
    answer
}

/// A place that cannot be read.
pub(crate) fn unreadable(
    Unreadable { place, error, .. }: Unreadable,
    hints: Hints,
) -> wire::UnreadablePlace {
    let error = plain_error(&error.into(), hints);
    wire::UnreadablePlace {
        place,
        code: error.code,
        message: error.message,
        hint: error.hint,
    }
}

fn token_of(error: &EngineError) -> Option<&TokenId> {
    match error {
        EngineError::Token(error)
        | EngineError::KeyNotUsable { reason: error }
        | EngineError::DeletionUnfinished { reason: error, .. } => error.token(),
        EngineError::DerivesNothing { token } => Some(token),
        _ => None,
    }
}

/// The reply of `target`.
pub(crate) fn reply(target: &EngineId, reply: Msg, hints: Hints) -> Answer {
    let err = |err: Option<EngineError>| err.map(|error| engine_error(&error, hints));
    let id = |id: Option<EngineId>| id.as_ref().map(engine_id);
    let mut chunks = Vec::new();
    let msg = match reply {
        Msg::ReplyGenerateIdentity(reply) => {
            Wire::ReplyGenerateIdentity(wire::ReplyGenerateIdentity {
                commitment_engine: id(reply.commitment_engine),
                decryption_engine: id(reply.decryption_engine),
                external_identity: Some(engine_id(&reply.external_identity)),
                err: err(reply.err),
            })
        }
        Msg::ReplyConnectIdentity(reply) => {
            Wire::ReplyConnectIdentity(wire::ReplyConnectIdentity {
                commitment_engine: id(reply.commitment_engine),
                decryption_engine: id(reply.decryption_engine),
                err: err(reply.err),
            })
        }
        Msg::ReplyDeleteIdentity(reply) => Wire::ReplyDeleteIdentity(wire::ReplyDeleteIdentity {
            keys: reply.keys.iter().map(|key| deletion(*key).into()).collect(),
            err: err(reply.err),
        }),
        Msg::ReplyCommitment(reply) => Wire::ReplyCommitment(wire::ReplyCommitment {
            commitment: reply.commitment.as_ref().map(signature),
            err: err(reply.err),
        }),
        Msg::ReplyDecryption(mut reply) => {
            let data = split(std::mem::take(&mut *reply.data), &mut chunks);
            Wire::ReplyDecryption(wire::ReplyDecryption {
                data,
                err: err(reply.err),
                data_follows: !chunks.is_empty(),
            })
        }
        Msg::ReplyEncrypt(reply) => Wire::ReplyEncrypt(wire::ReplyEncrypt {
            ciphertext: split(reply.ciphertext, &mut chunks),
            err: err(reply.err),
            data_follows: !chunks.is_empty(),
        }),
        Msg::ReplyReadsFor(reply) => Wire::ReplyReadsFor(wire::ReplyReadsFor {
            reads_for: reply.reads_for,
            err: err(reply.err),
        }),
        Msg::ReplySubmitReadsForEvidence(reply) => {
            Wire::ReplySubmitReadsForEvidence(wire::ReplySubmitReadsForEvidence {
                err: err(reply.err),
            })
        }
        Msg::ReplyReadsForEvidence(reply) => {
            let error = err(reply.err);
            let pieces = evidence(reply.evidence);
            return evidence_reply(target, &reply.external_identity, pieces, error);
        }
        _ => return crate::Refusal::BadRequest("it is no request").into(),
    };
    Answer {
        first: from_engine(target, msg),
        then: chunks,
    }
}

pub(crate) fn from_engine(target: &EngineId, msg: Wire) -> Content {
    Content::Engine(wire::EngineMsg {
        target: Some(engine_id(target)),
        msg: Some(msg),
        ..wire::EngineMsg::default()
    })
}

/// Data that fits into its reply; or nothing, and the data in chunks.
pub(crate) fn split(data: Vec<u8>, chunks: &mut Vec<Content>) -> Vec<u8> {
    if data.len() <= ROOM {
        return data;
    }
    let data = claviger_token::Zeroizing::new(data);
    let parts = data.chunks(CHUNK);
    let last = parts.len().saturating_sub(1);
    chunks.extend(parts.enumerate().map(|(index, part)| {
        Content::Chunk(wire::Chunk {
            data: part.to_vec(),
            last: index == last,
        })
    }));
    Vec::new()
}

/// Each piece of evidence and each revocation, as a file of its own.
fn evidence(about: claviger_engine::reads_for::EvidenceAbout) -> Vec<Vec<u8>> {
    let alone = |evidence, revocations| EvidenceFile {
        evidence,
        revocations,
    };
    let evidence = about.direct.into_iter().chain(about.onward);
    let evidence = evidence.map(|piece| alone(vec![piece], vec![]));
    let revocations = about.revocations.into_iter();
    let files = evidence.chain(revocations.map(|one| alone(vec![], vec![one])));
    // What was read from the registry can be written.
    files
        .filter_map(|file| to_text(&file).ok())
        .map(String::into_bytes)
        .collect()
}

fn evidence_reply(
    target: &EngineId,
    about: &EngineId,
    pieces: Vec<Vec<u8>>,
    err: Option<wire::EngineError>,
) -> Answer {
    let mut replies = vec![wire::ReplyReadsForEvidence {
        external_identity: Some(engine_id(about)),
        evidence: Vec::new(),
        err,
        more: false,
    }];
    let mut room = ROOM;
    for piece in pieces {
        let length = piece.len() + 8;
        if length > room
            && let Some(last) = replies.last_mut()
        {
            last.more = true;
            replies.push(wire::ReplyReadsForEvidence {
                external_identity: Some(engine_id(about)),
                ..wire::ReplyReadsForEvidence::default()
            });
            room = ROOM;
        }
        room = room.saturating_sub(length);
        if let Some(last) = replies.last_mut() {
            last.evidence.push(piece);
        }
    }
    let mut contents =
        (replies.into_iter()).map(|one| from_engine(target, Wire::ReplyReadsForEvidence(one)));
    match contents.next() {
        Some(first) => Answer {
            first,
            then: contents.collect(),
        },
        None => crate::Refusal::BadRequest("there is no reply").into(),
    }
}

fn signature(signature: &Signature) -> wire::Signature {
    wire::Signature {
        scheme: signature.scheme().name().to_owned(),
        bytes: signature.as_bytes().to_vec(),
    }
}

fn deletion(deletion: Deletion) -> wire::Deletion {
    match deletion {
        Deletion::Destroyed => wire::Deletion::Destroyed,
        Deletion::NothingThere => wire::Deletion::NothingThere,
        Deletion::Foreign => wire::Deletion::Foreign,
        Deletion::Derivable => wire::Deletion::Derived,
    }
}

/// An engine's name, or an identity's.
pub(crate) fn engine_id(id: &EngineId) -> wire::EngineId {
    let node = id.node.as_ref().and_then(|node| node.0.to_der());
    wire::EngineId {
        node: node.unwrap_or_default(),
        name: (*id.name).to_owned(),
    }
}

pub(crate) fn token(token: &TokenId) -> wire::TokenId {
    wire::TokenId {
        kind: token.kind.to_string(),
        manufacturer: token.manufacturer.to_string(),
        serial: token.serial.to_string(),
    }
}

fn key_use(usage: KeyUse) -> wire::KeyUse {
    match usage {
        KeyUse::Sign => wire::KeyUse::Sign,
        KeyUse::Decrypt => wire::KeyUse::Decrypt,
    }
}

fn capabilities(of: Capabilities) -> Vec<i32> {
    of.uses().map(|usage| key_use(usage).into()).collect()
}

/// What a request waits for; `None` is what this version of the wire has no word for.
pub(crate) fn event(event: &Event) -> Option<wire::Event> {
    let about = |kind: Kind, its: &TokenId| wire::Event {
        kind: kind.into(),
        token: Some(token(its)),
        ..wire::Event::default()
    };
    Some(match event {
        Event::TouchNeeded { token } => about(Kind::TouchNeeded, token),
        Event::ApprovalNeeded { token } => about(Kind::ApprovalNeeded, token),
        Event::TokenNeeded { token } => about(Kind::TokenNeeded, token),
        Event::PersonDone { token } => about(Kind::PersonDone, token),
        Event::ProofNeeded { token, usage } => wire::Event {
            detail: usage.name().to_owned(),
            ..about(Kind::ProofNeeded, token)
        },
        Event::UnlockNeeded { device } => wire::Event {
            kind: Kind::UnlockNeeded.into(),
            device: device.clone(),
            ..wire::Event::default()
        },
        Event::AppNeeded { device, app } => wire::Event {
            kind: Kind::AppNeeded.into(),
            device: device.clone(),
            detail: app.clone(),
            ..wire::Event::default()
        },
        _ => return None,
    })
}

/// An identity.
pub(crate) fn identity(id: &EngineId, info: &IdentityInfo) -> wire::Identity {
    wire::Identity {
        id: Some(engine_id(id)),
        backend: info.backend.to_string(),
        capabilities: capabilities(info.capabilities),
        commitment_engine: info.commitment_engine.as_ref().map(engine_id),
        decryption_engine: info.decryption_engine.as_ref().map(engine_id),
        keys: info.keys.iter().map(key).collect(),
        first_account: None,
        certificates: Vec::new(),
    }
}

fn key(key: &KeyInfo) -> wire::Key {
    let bytes = || key.public_key.as_bytes().to_vec();
    let attestation = key.attestation.as_ref();
    wire::Key {
        usage: key_use(key.usage).into(),
        token: Some(token(&key.token)),
        slot: key.slot.to_string(),
        public_key: key.public_key.to_der().unwrap_or_else(bytes),
        algorithm: key.public_key.algorithm().name().to_owned(),
        origin: match key.origin {
            Origin::Generated => "generated".to_owned(),
            Origin::Adopted => "adopted".to_owned(),
        },
        owner: Some(engine_id(&key.owner)),
        deleted: key.deleted,
        protection: key.protection.map(|stated| wire::Protection {
            local: stated.local,
            sensitive: stated.sensitive,
            never_extractable: stated.never_extractable,
        }),
        attestation_json: attestation
            .and_then(|attestation| serde_json::to_string(attestation).ok())
            .unwrap_or_default(),
    }
}

/// Identities, in as many replies as they need; of a single one with its certificates.
pub(crate) fn identities(found: &[(EngineId, IdentityInfo)], certificates: &[Vec<u8>]) -> Answer {
    use prost::Message;
    let mut replies = vec![wire::IdentitiesReply::default()];
    let mut room = ROOM;
    for (id, info) in found {
        let mut identity = identity(id, info);
        identity.certificates = certificates.to_vec();
        let length = identity.encoded_len() + 8;
        if length > room
            && let Some(last) = replies.last_mut()
        {
            last.more = true;
            replies.push(wire::IdentitiesReply::default());
            room = ROOM;
        }
        room = room.saturating_sub(length);
        if let Some(last) = replies.last_mut() {
            last.identities.push(identity);
        }
    }
    let mut contents = replies
        .into_iter()
        .map(|reply| from_daemon(wire::daemon_reply::Reply::Identities(reply)));
    match contents.next() {
        Some(first) => Answer {
            first,
            then: contents.collect(),
        },
        None => from_daemon(wire::daemon_reply::Reply::Identities(
            wire::IdentitiesReply::default(),
        ))
        .into(),
    }
}

pub(crate) fn from_daemon(reply: wire::daemon_reply::Reply) -> Content {
    Content::DaemonReply(wire::DaemonReply { reply: Some(reply) })
}
