//! Who reads for whom, and what proves it.

use std::time::{Duration, Instant};

use claviger_engine::Capabilities::{Commit, CommitAndDecrypt};
use claviger_engine::encryption::MOST_RECIPIENTS;
use claviger_engine::evidence::{from_text, statement, to_text};
use claviger_engine::message::*;
use claviger_engine::node::READS_FOR;
use claviger_engine::{
    BadEvidence, EngineError, Evidence, EvidenceFile, IdParams, Imported, Msg, Node, Party,
    Preference, PublicKeys, Purpose, Registry, Terms,
};
use claviger_memory::MemoryDriver;
use claviger_token::{Algorithm, PublicKey, Signature, SignatureScheme};

use crate::common::*;
use crate::stage::*;

#[tokio::test]
async fn it_is_a_partial_order() {
    let node = memory_node();
    make_all(&node, &["a", "b", "c"]).await;
    for who in ["a", "b", "c"] {
        assert!(reads_for(&node, who, who).await, "reflexive");
    }
    assert!(!reads_for(&node, "a", "b").await);
    grant(&node, "a", "b").await;
    assert!(reads_for(&node, "a", "b").await);
    assert!(!reads_for(&node, "b", "a").await, "not symmetric");
    grant(&node, "b", "c").await;
    assert!(reads_for(&node, "a", "c").await, "transitive");
    assert!(!reads_for(&node, "c", "a").await);
    // A cycle is as good as any.
    grant(&node, "c", "a").await;
    for (a, b) in [("c", "b"), ("b", "a"), ("a", "a")] {
        assert!(reads_for(&node, a, b).await);
    }
    let chain = node
        .reads_for_chain(&claviger_engine::EngineId::program(), &id("a"), &id("c"))
        .unwrap()
        .unwrap();
    let names: Vec<_> = chain.iter().map(|e| &*e.to_identity.name).collect();
    assert_eq!(names, ["b", "c"]);
    let msg = Msg::RequestReadsFor(RequestReadsFor {
        a: id("a"),
        b: id("nobody"),
    });
    let reply = node.ask(&id("x"), &id(READS_FOR), msg, &call()).await;
    let Some(Msg::ReplyReadsFor(reply)) = reply else {
        panic!("{reply:?}");
    };
    assert!(!reply.reads_for);
    assert_eq!(text(reply.err), "External identity not found");
}

#[tokio::test]
async fn only_verified_evidence_is_stored_and_once() {
    let node = memory_node();
    make_all(&node, &["a", "b", "mallory"]).await;
    let (a, b) = (party(&node, "a"), party(&node, "b"));
    let good = signed(&node, "b", a.clone(), b.clone()).await;

    // Signed by somebody else: by the reader, by a third.
    for signer in ["a", "mallory"] {
        let forged = signed(&node, signer, a.clone(), b.clone()).await;
        assert_eq!(submit(&node, forged).await, "Invalid evidence provided.");
    }
    // Replayed under another name, for other keys, the other way round.
    let mut renamed = good.clone();
    renamed.from_identity.name = "somebody".into();
    let mut swapped = good.clone();
    std::mem::swap(&mut swapped.from_identity, &mut swapped.to_identity);
    let mut rekeyed = good.clone();
    rekeyed.from_identity.keys = party(&node, "mallory").keys;
    let mut without = good.clone();
    without.to_identity.keys.sign = None;
    let mut nobody = good.clone();
    nobody.from_identity.keys = PublicKeys::default();
    let mut unnamed = good.clone();
    unnamed.from_identity.name = "".into();
    let mut altered = good.clone();
    let mut bytes = altered.proof.as_bytes().to_vec();
    bytes[5] ^= 1;
    altered.proof = Signature::new(altered.proof.scheme(), bytes).unwrap();
    let mut other_scheme = good.clone();
    let bytes = other_scheme.proof.as_bytes().to_vec();
    other_scheme.proof = Signature::new(SignatureScheme::Ed25519, bytes).unwrap();
    for bad in [
        renamed,
        swapped,
        rekeyed,
        without,
        nobody,
        unnamed,
        altered,
        other_scheme,
    ] {
        assert_eq!(
            submit(&node, bad.clone()).await,
            "Invalid evidence provided.",
            "{bad:?}"
        );
    }
    // A name that stands for other keys here, though the signature is right.
    let posing = Party {
        name: "b".into(),
        keys: party(&node, "mallory").keys,
    };
    let posing = signed(&node, "mallory", a.clone(), posing).await;
    assert!(posing.verify().is_ok());
    assert_eq!(submit(&node, posing).await, "Invalid evidence provided.");
    assert!(node.registry().all_evidence().unwrap().is_empty());
    assert!(!reads_for(&node, "a", "b").await);

    assert_eq!(submit(&node, good.clone()).await, "");
    assert_eq!(
        submit(&node, good.clone()).await,
        "Evidence already exists."
    );
    // The same said again, with another signature, is the same.
    let again = signed_with(&node, "b", a, b, good.terms).await;
    assert_eq!(submit(&node, again).await, "Evidence already exists.");
    assert_eq!(node.registry().all_evidence().unwrap(), [good]);
    assert!(reads_for(&node, "a", "b").await);
}

#[tokio::test]
async fn a_query_gives_all_evidence_in_which_the_identity_stands_on_either_side() {
    let node = memory_node();
    make_all(&node, &["a", "b", "c", "d", "e"]).await;
    let ab = grant(&node, "a", "b").await;
    let bc = grant(&node, "b", "c").await;
    let cd = grant(&node, "c", "d").await;
    grant(&node, "e", "d").await;
    let reply = about(&node, "b").await;
    assert_eq!(reply.external_identity, id("b"));
    assert!(reply.err.is_none());
    assert_eq!(reply.evidence.direct, [ab, bc]);
    assert_eq!(reply.evidence.onward, [cd]);
    let nobody = about(&node, "nobody").await;
    assert_eq!(text(nobody.err), "External identity not found");
    assert!(nobody.evidence.direct.is_empty());
}

#[tokio::test]
async fn every_cryptosystem_that_signs_can_grant() {
    let node = memory_node();
    make_all(&node, &["reader"]).await;
    for (name, params) in [
        ("p256", IdParams::P256),
        ("p384", IdParams::P384),
        ("ed25519", IdParams::Ed25519),
        ("secp256k1", IdParams::Secp256k1),
        ("bls", IdParams::Bls),
    ] {
        make_with(&node, name, params, Commit).await;
        let evidence = grant(&node, "reader", name).await;
        assert!(reads_for(&node, "reader", name).await);
        let file = EvidenceFile::from(vec![evidence]);
        let text = to_text(&file).unwrap();
        assert_eq!(from_text(text.as_bytes()).unwrap(), file);
    }
    for (reader, code) in [
        ("nobody", "external-identity-not-found"),
        ("reader", "evidence-exists"),
    ] {
        let who = claviger_engine::EngineId::program();
        let (reader, by) = (id(reader), id("p256"));
        let granted = node
            .grant_reads_for(&who, &reader, &by, None, &call())
            .await;
        assert_eq!(granted.unwrap_err().code(), code);
    }
}

#[tokio::test]
async fn an_identity_that_was_made_anew_does_not_inherit_evidence() {
    let node = memory_node();
    make_all(&node, &["a", "b"]).await;
    let old = grant(&node, "a", "b").await;
    for who in ["a", "b"] {
        delete(&node, who, who).await.unwrap();
        make_all(&node, &[who]).await;
        assert!(!reads_for(&node, "a", "b").await);
        assert_eq!(
            submit(&node, old.clone()).await,
            "Invalid evidence provided."
        );
    }
    // What is said of the new ones is new.
    grant(&node, "a", "b").await;
    assert!(reads_for(&node, "a", "b").await);
}

#[tokio::test]
async fn evidence_outlives_the_process_and_is_seen_by_others() {
    let (device, home) = (Device::new(), tempfile::tempdir().unwrap());
    let (here, there) = (node(home.path(), &device), node(home.path(), &device));
    make(&here, "a", &device.backend()).await;
    make(&here, "b", &device.backend()).await;
    assert!(!reads_for(&there, "a", "b").await);
    grant(&here, "a", "b").await;
    assert!(reads_for(&there, "a", "b").await);
    drop((here, there));
    assert!(reads_for(&node(home.path(), &device), "a", "b").await);
}

#[tokio::test]
async fn evidence_travels_between_machines_that_know_each_others_public_keys() {
    let (mine, yours) = (memory_node(), memory_node());
    make_all(&mine, &["yk"]).await;
    make_all(&yours, &["safe"]).await;
    mine.registry().add_contact(&party(&yours, "safe")).unwrap();
    let evidence = grant(&mine, "safe", "yk").await;

    let mut file = party(&mine, "yk");
    // There it is called something else; the keys count.
    file.name = "your key".into();
    yours.registry().add_contact(&file).unwrap();
    let imported = yours
        .import_evidence(
            &claviger_engine::EngineId::program(),
            vec![evidence.clone()],
        )
        .await
        .unwrap();
    let counts = |imported: Imported| (imported.added, imported.known, imported.revocations);
    assert_eq!(counts(imported), (1, 0, 0));
    let again = yours
        .import_evidence(&claviger_engine::EngineId::program(), vec![evidence])
        .await
        .unwrap();
    assert_eq!(counts(again), (0, 1, 0));
    assert!(reads_for(&yours, "safe", "your key").await);
    let request = request("your key", true, Preference::WITH_READERS);
    let sealed = yours
        .encrypt(&claviger_engine::EngineId::program(), request, &call())
        .await
        .unwrap();
    assert!(opens(&mine, "yk", &sealed).await);
    assert!(opens(&yours, "safe", &sealed).await);
}

#[tokio::test]
async fn what_was_granted_to_a_decryption_key_alone_holds_for_its_owner_and_goes_no_further() {
    let node = memory_node();
    make_all(&node, &["safe", "yk", "mallory"]).await;
    // The safe was known by its age recipient only.
    let mut bare = party(&node, "safe");
    bare.keys.sign = None;
    let piece = signed(&node, "yk", bare, party(&node, "yk")).await;
    assert_eq!(submit(&node, piece).await, "");
    assert!(reads_for(&node, "safe", "yk").await);
    assert!(!reads_for(&node, "yk", "safe").await);
    // Mallory claims the safe's decryption key for her own, and grants herself to read.
    let posing = Party {
        name: "vault".into(),
        keys: PublicKeys {
            sign: party(&node, "mallory").keys.sign,
            decrypt: party(&node, "safe").keys.decrypt,
        },
    };
    let piece = signed(&node, "mallory", party(&node, "mallory"), posing).await;
    assert_eq!(submit(&node, piece).await, "");
    assert!(!reads_for(&node, "mallory", "yk").await);
    let request = request("yk", true, Preference::WITH_READERS);
    let file = node
        .encrypt(&claviger_engine::EngineId::program(), request, &call())
        .await
        .unwrap();
    assert!(opens(&node, "safe", &file).await);
    assert!(!opens(&node, "mallory", &file).await);
}

#[tokio::test]
async fn of_an_import_all_is_taken_or_nothing() {
    let node = memory_node();
    make_all(&node, &["a", "b", "c"]).await;
    let good = signed(&node, "b", party(&node, "a"), party(&node, "b")).await;
    let mut bad = signed(&node, "c", party(&node, "a"), party(&node, "c")).await;
    bad.from_identity.name = "b".into();
    let error = node
        .import_evidence(&claviger_engine::EngineId::program(), vec![good, bad])
        .await
        .unwrap_err();
    assert_eq!(error.piece, Some(1));
    assert!(matches!(
        error.error,
        EngineError::InvalidEvidence {
            reason: BadEvidence::Signature
        }
    ));
    assert!(node.registry().all_evidence().unwrap().is_empty());
}

#[tokio::test]
async fn a_name_stands_for_one_identity_or_contact() {
    let node = memory_node();
    make_all(&node, &["a"]).await;
    let mut contact = party(&node, "a");
    assert!(node.registry().add_contact(&contact).is_err());
    contact.name = "b".into();
    node.registry().add_contact(&contact).unwrap();
    assert!(node.registry().add_contact(&contact).is_err());
    let reply = generate(&node, "b", &MEMORY, IdParams::Ed25519, Commit).await;
    assert_eq!(text(reply.err), "a contact has this name");
    let reply = connect(&node, "b", "a", &MEMORY, Commit).await;
    assert_eq!(text(reply.err), "a contact has this name");
    assert_eq!(node.registry().contacts().unwrap(), [contact]);
    assert!(node.registry().remove_contact("b").unwrap());
    assert!(!node.registry().remove_contact("b").unwrap());
    make_all(&node, &["b"]).await;
}

fn x25519(n: u32) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    PublicKey::from_bytes(Algorithm::X25519, &bytes).unwrap()
}

#[tokio::test]
async fn a_hundred_thousand_pieces_are_taken_and_asked_in_microseconds() {
    // A build for debugging verifies so many in seconds, and on a busy machine in more.
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        .reads_for_deadline(Duration::from_secs(300))
        .build();
    // Quick to sign with.
    make_with(&node, "hub", IdParams::Ed25519, CommitAndDecrypt).await;
    make_with(&node, "spoke", IdParams::Ed25519, CommitAndDecrypt).await;
    let info = node.registry().identity(&id("hub")).unwrap().unwrap();
    let (engine, hub) = (info.commitment_engine.unwrap(), party(&node, "hub"));
    let mut evidence = Vec::new();
    for n in 0..100_000 {
        let from = Party {
            name: format!("reader {n}").into(),
            keys: PublicKeys {
                sign: None,
                decrypt: Some(x25519(n)),
            },
        };
        let terms = Terms::new(None);
        let request = RequestCommitment {
            data: statement(&from, &hub, &terms),
            purpose: Purpose::Evidence,
        };
        let proof = node.commit_for(&id("hub"), &engine, request, &call()).await;
        evidence.push(Evidence {
            from_identity: from,
            to_identity: hub.clone(),
            terms,
            proof: proof.unwrap(),
        });
        // As many as there may be: the hub itself, and one less than that.
        if n as usize + 2 == MOST_RECIPIENTS {
            node.import_evidence(
                &claviger_engine::EngineId::program(),
                std::mem::take(&mut evidence),
            )
            .await
            .unwrap();
            let keys = node
                .recipients(
                    &claviger_engine::EngineId::program(),
                    &id("hub"),
                    true,
                    &Preference::WITH_READERS,
                    &call(),
                )
                .await;
            assert_eq!(keys.unwrap().len(), MOST_RECIPIENTS);
        }
    }
    let imported = node
        .import_evidence(&claviger_engine::EngineId::program(), evidence)
        .await
        .unwrap();
    assert_eq!(imported.added, 100_001 - MOST_RECIPIENTS);
    assert_eq!((imported.known, imported.revocations), (0, 0));
    grant(&node, "hub", "spoke").await;
    let reader = Party {
        name: "reader".into(),
        keys: PublicKeys {
            sign: None,
            decrypt: Some(x25519(77_777)),
        },
    };
    node.registry().add_contact(&reader).unwrap();
    assert!(reads_for(&node, "reader", "spoke").await);
    let mut quickest = Duration::MAX;
    for _ in 0..100 {
        let begun = Instant::now();
        assert!(
            node.reads_for(
                &claviger_engine::EngineId::program(),
                &id("reader"),
                &id("spoke")
            )
            .unwrap()
        );
        assert!(
            !node
                .reads_for(
                    &claviger_engine::EngineId::program(),
                    &id("spoke"),
                    &id("hub")
                )
                .unwrap()
        );
        quickest = quickest.min(begun.elapsed() / 2);
    }
    assert!(quickest < Duration::from_millis(1), "{quickest:?}");
    // So many cannot all be recipients; that is said, and nobody is left out silently.
    let keys = node
        .recipients(
            &claviger_engine::EngineId::program(),
            &id("hub"),
            true,
            &Preference::WITH_READERS,
            &call(),
        )
        .await;
    assert!(
        matches!(keys, Err(EngineError::TooManyRecipients)),
        "{keys:?}"
    );
}
