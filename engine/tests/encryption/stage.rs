//! Identities, and what they grant each other.

use claviger_engine::Capabilities::CommitAndDecrypt;
use claviger_engine::evidence::statement;
use claviger_engine::message::*;
use claviger_engine::node::READS_FOR;
use claviger_engine::{
    Capabilities, EngineError, Evidence, IdParams, Msg, Node, Party, Preference, PublicKeys,
    Purpose, Terms,
};
use claviger_token::{Algorithm, Secret, Signature};

use crate::common::*;

pub(crate) const MEMORY: claviger_engine::Backend = claviger_engine::Backend::LocalMemory;

pub(crate) fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

pub(crate) fn request(to: &str, use_reads_for: bool, preference: Preference) -> RequestEncrypt {
    RequestEncrypt {
        data: secret("attack at dawn"),
        external_identity: id(to),
        use_reads_for,
        preference,
    }
}

/// Encrypts to `to` with the default preference.
pub(crate) async fn seal(
    node: &Node,
    to: &str,
    use_reads_for: bool,
) -> Result<Vec<u8>, EngineError> {
    let request = request(to, use_reads_for, Preference::default());
    node.encrypt(&claviger_engine::EngineId::program(), request, &call())
        .await
}

/// Whether the identity's Decryption engine opens the file.
pub(crate) async fn opens(node: &Node, who: &str, file: &[u8]) -> bool {
    let info = node.registry().identity(&id(who)).unwrap().unwrap();
    let engine = info.decryption_engine.unwrap();
    let (who, call) = (id(who), call());
    match node.decrypt(&who, &engine, file.to_vec(), &call).await {
        Ok(data) => {
            assert_eq!(*data, b"attack at dawn");
            true
        }
        Err(error) => {
            assert_eq!(error.to_string(), "Decryption Failed");
            false
        }
    }
}

pub(crate) async fn make_all(node: &Node, names: &[&str]) {
    for name in names {
        make_with(node, name, IdParams::P256, CommitAndDecrypt).await;
    }
}

pub(crate) async fn make_with(
    node: &Node,
    name: &str,
    params: IdParams,
    capabilities: Capabilities,
) {
    let reply = generate(node, name, &MEMORY, params, capabilities).await;
    assert!(reply.err.is_none(), "{:?}", reply.err);
}

pub(crate) async fn grant(node: &Node, reader: &str, by: &str) -> Evidence {
    node.grant_reads_for(
        &claviger_engine::EngineId::program(),
        &id(reader),
        &id(by),
        None,
        &call(),
    )
    .await
    .unwrap()
}

pub(crate) async fn submit(node: &Node, evidence: Evidence) -> String {
    let msg = Msg::SubmitReadsForEvidence(SubmitReadsForEvidence { evidence });
    match node.ask(&id("x"), &id(READS_FOR), msg, &call()).await {
        Some(Msg::ReplySubmitReadsForEvidence(reply)) => text(reply.err),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn reads_for(node: &Node, a: &str, b: &str) -> bool {
    let msg = Msg::RequestReadsFor(RequestReadsFor { a: id(a), b: id(b) });
    match node.ask(&id("x"), &id(READS_FOR), msg, &call()).await {
        Some(Msg::ReplyReadsFor(reply)) => {
            assert!(reply.err.is_none(), "{:?}", reply.err);
            reply.reads_for
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn about(node: &Node, who: &str) -> ReplyReadsForEvidence {
    let msg = Msg::QueryReadsForEvidence(QueryReadsForEvidence {
        external_identity: id(who),
    });
    match node.ask(&id("x"), &id(READS_FOR), msg, &call()).await {
        Some(Msg::ReplyReadsForEvidence(reply)) => reply,
        other => panic!("{other:?}"),
    }
}

/// What another machine would know of an identity.
pub(crate) fn party(node: &Node, name: &str) -> Party {
    let info = node.registry().identity(&id(name)).unwrap().unwrap();
    let key = |usage| info.key(usage).map(|key| key.public_key.clone());
    Party {
        name: name.into(),
        keys: PublicKeys {
            sign: key(claviger_token::KeyUse::Sign),
            decrypt: key(claviger_token::KeyUse::Decrypt),
        },
    }
}

/// Evidence signed with the key of `signer`, whatever it says.
pub(crate) async fn signed(node: &Node, signer: &str, from: Party, to: Party) -> Evidence {
    signed_with(node, signer, from, to, Terms::new(None)).await
}

pub(crate) async fn signed_with(
    node: &Node,
    signer: &str,
    from: Party,
    to: Party,
    terms: Terms,
) -> Evidence {
    let said = statement(&from, &to, &terms);
    Evidence {
        from_identity: from,
        to_identity: to,
        terms,
        proof: forged(node, signer, said).await,
    }
}

/// What no engine signs for anybody: whoever hands in a digest has any signature of the key.
pub(crate) async fn forged(node: &Node, signer: &str, said: Vec<u8>) -> Signature {
    use sha2::Digest;
    let info = node.registry().identity(&id(signer)).unwrap().unwrap();
    let engine = info.commitment_engine.clone().unwrap();
    let key = info.key(claviger_token::KeyUse::Sign).unwrap();
    assert_eq!(key.public_key.algorithm(), Algorithm::P256, "{signer}");
    let request = RequestCommitment {
        data: sha2::Sha256::digest(said).to_vec(),
        purpose: Purpose::Prehash,
    };
    let signed = node
        .commit_for(&id(signer), &engine, request, &call())
        .await;
    signed.unwrap()
}
