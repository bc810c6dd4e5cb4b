//! Evidence of version 2: numbers, ends, revocations, what version 1 left, and names that
//! stand for other keys here.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of tests are tests"
)]

mod common;

use std::time::{Duration, Instant};

use claviger_engine::evidence::{BadEvidence, Statement, from_text, now, statement, to_text};
use claviger_engine::message::{
    Msg, ReplyReadsForEvidence, RequestCommitment, SubmitReadsForEvidence,
};
use claviger_engine::node::{ENCRYPTION, READS_FOR};
use claviger_engine::reads_for::EvidenceAbout;
use claviger_engine::{
    Backend, Capabilities, EngineError, Evidence, EvidenceFile, IdParams, Node, Party, Preference,
    PublicKeys, Purpose, Revocation, Standing, Terms, Via,
};
use claviger_token::{Signature, SignatureScheme};
use common::*;
use sha2::{Digest, Sha256};

const MEMORY: Backend = Backend::LocalMemory;

async fn node_with(names: &[&str]) -> Node {
    let node = memory_node();
    for name in names {
        let both = Capabilities::CommitAndDecrypt;
        let reply = generate(&node, name, &MEMORY, IdParams::P256, both).await;
        assert!(reply.err.is_none(), "{:?}", reply.err);
    }
    node
}

async fn grant(node: &Node, reader: &str, by: &str, until: Option<u64>) -> Evidence {
    let granted = node
        .grant_reads_for(
            &claviger_engine::EngineId::program(),
            &id(reader),
            &id(by),
            until,
            &call(),
        )
        .await;
    granted.unwrap()
}

fn reads(node: &Node, a: &str, b: &str) -> bool {
    node.reads_for(&claviger_engine::EngineId::program(), &id(a), &id(b))
        .unwrap()
}

fn party(node: &Node, name: &str) -> Party {
    Party {
        name: name.into(),
        keys: node.public_keys(&id(name)).unwrap().unwrap(),
    }
}

/// Whom something for `to` is encrypted to.
async fn recipients(node: &Node, to: &str, preference: Preference) -> Vec<String> {
    let found = node
        .recipients(
            &claviger_engine::EngineId::program(),
            &id(to),
            true,
            &preference,
            &call(),
        )
        .await;
    found.unwrap().iter().map(|r| r.name.to_string()).collect()
}

/// The whole of what a node knows, as a file.
fn export(node: &Node) -> EvidenceFile {
    let file = EvidenceFile {
        evidence: node.registry().all_evidence().unwrap(),
        revocations: node.registry().all_revocations().unwrap(),
    };
    let text = to_text(&file).unwrap();
    assert_eq!(from_text(text.as_bytes()), Ok(file.clone()));
    file
}

/// Evidence of version 1, as an earlier version of the program had it signed.
async fn of_version_1(node: &Node, from: &str, to: &str) -> Evidence {
    let evidence = as_another_program_signs(node, from, to, Terms::V1).await;
    assert_eq!(evidence.verify(), Ok(()));
    evidence
}

/// Evidence that this program would not make, with the right signature.
async fn as_another_program_signs(node: &Node, from: &str, to: &str, terms: Terms) -> Evidence {
    let (from, to) = (party(node, from), party(node, to));
    let info = node.registry().identity(&id(&to.name)).unwrap().unwrap();
    let said = statement(&from, &to, &terms);
    let request = RequestCommitment {
        data: Sha256::digest(said).to_vec(),
        purpose: Purpose::Prehash,
    };
    let engine = info.commitment_engine.unwrap();
    let proof = node
        .commit_for(&id(&to.name), &engine, request, &call())
        .await;
    Evidence {
        from_identity: from,
        to_identity: to,
        terms,
        proof: proof.unwrap(),
    }
}

#[tokio::test]
async fn an_end_that_the_registry_cannot_hold_is_refused_whichever_way_it_comes() {
    let node = node_with(&["safe", "yk"]).await;
    for end in [Terms::LATEST + 1, u64::MAX] {
        let terms = Terms::V2 {
            number: [7; 16],
            until: Some(end),
        };
        let piece = as_another_program_signs(&node, "safe", "yk", terms).await;
        let signer = piece.to_identity.keys.sign.as_ref().unwrap();
        assert_eq!(signer.verify(&piece.statement(), &piece.proof), Ok(()));
        assert_eq!(piece.verify(), Err(BadEvidence::Malformed));
        let refused = node
            .import_evidence(&claviger_engine::EngineId::program(), vec![piece.clone()])
            .await
            .unwrap_err();
        assert!(matches!(
            refused.error,
            EngineError::InvalidEvidence {
                reason: BadEvidence::Malformed
            }
        ));
        let text = to_text(&vec![piece.clone()].into()).unwrap();
        let refused = from_text(text.as_bytes()).unwrap_err();
        assert_eq!(refused, BadEvidence::Malformed);
        assert_eq!(refused.code(), "evidence-malformed");
        let info = node.registry().identity(&id("yk")).unwrap().unwrap();
        let request = RequestCommitment {
            data: piece.statement(),
            purpose: Purpose::Evidence,
        };
        let engine = info.commitment_engine.unwrap();
        let signed = node.commit_for(&id("yk"), &engine, request, &call()).await;
        assert!(matches!(signed, Err(EngineError::NotForPurpose { .. })));
        let msg = Msg::SubmitReadsForEvidence(SubmitReadsForEvidence { evidence: piece });
        let reply = node.ask(&id("x"), &id(READS_FOR), msg, &call()).await;
        let Some(Msg::ReplySubmitReadsForEvidence(reply)) = reply else {
            panic!("{reply:?}");
        };
        assert!(matches!(
            reply.err,
            Some(EngineError::InvalidEvidence { .. })
        ));
    }
    // What is there can still be read; the latest end that there is can be had.
    assert_eq!(node.registry().all_evidence().unwrap(), []);
    assert!(!reads(&node, "safe", "yk"));
    grant(&node, "safe", "yk", Some(u64::MAX)).await;
    assert!(reads(&node, "safe", "yk"));
}

#[tokio::test]
async fn two_grants_of_the_same_are_two() {
    let node = node_with(&["a", "b"]).await;
    let first = grant(&node, "a", "b", Some(now() + 1000)).await;
    let second = grant(&node, "a", "b", None).await;
    assert_ne!(first.statement_id(), second.statement_id());
    // One that lasts as long or longer is there already.
    for until in [None, Some(now() + 5000)] {
        let again = node
            .grant_reads_for(
                &claviger_engine::EngineId::program(),
                &id("a"),
                &id("b"),
                until,
                &call(),
            )
            .await;
        assert!(matches!(again, Err(EngineError::EvidenceExists)));
    }
}

#[tokio::test]
async fn a_grant_that_has_ended_is_not_relied_on() {
    let node = node_with(&["safe", "yk", "heir"]).await;
    grant(&node, "heir", "safe", None).await;
    let mut lasts = 2;
    let end = loop {
        let end = now() + lasts;
        grant(&node, "safe", "yk", Some(end)).await;
        let counts = reads(&node, "safe", "yk") && reads(&node, "heir", "yk");
        let all = recipients(&node, "yk", Preference::WITH_READERS).await;
        if now() < end {
            assert!(counts);
            assert_eq!(all, ["yk", "safe", "heir"]);
            break end;
        }
        // It ended while it was looked at, on a machine that is busy.
        lasts *= 4;
        assert!(lasts < 200);
    };
    while now() < end {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(!reads(&node, "safe", "yk") && !reads(&node, "heir", "yk"));
    assert_eq!(
        node.reads_for_chain(
            &claviger_engine::EngineId::program(),
            &id("safe"),
            &id("yk")
        )
        .unwrap(),
        None
    );
    assert_eq!(
        recipients(&node, "yk", Preference::WITH_READERS).await,
        ["yk"]
    );
    let kept = node
        .evidence_about(&claviger_engine::EngineId::program(), &id("yk"))
        .unwrap()
        .direct;
    assert_eq!(node.standing(&kept).unwrap(), [Standing::Ended]);
    // It can be granted anew.
    grant(&node, "safe", "yk", None).await;
    assert!(reads(&node, "heir", "yk"));
}

#[tokio::test]
async fn a_revocation_wins_and_a_later_grant_stands() {
    let node = node_with(&["safe", "yk"]).await;
    grant(&node, "safe", "yk", Some(now() + 1000)).await;
    grant(&node, "safe", "yk", None).await;
    let before = export(&node);
    let revoked = node
        .revoke_reads_for(
            &claviger_engine::EngineId::program(),
            &id("safe"),
            &id("yk"),
            &call(),
        )
        .await
        .unwrap();
    assert_eq!(revoked.len(), 2);
    assert!(!reads(&node, "safe", "yk"));
    assert_eq!(
        recipients(&node, "yk", Preference::WITH_READERS).await,
        ["yk"]
    );
    let standing = node.standing(&before.evidence).unwrap();
    assert_eq!(standing, [Standing::Revoked, Standing::Revoked]);
    // What was revoked does not come back with the old file.
    node.import_evidence(&claviger_engine::EngineId::program(), before)
        .await
        .unwrap();
    assert!(!reads(&node, "safe", "yk"));
    let again = node
        .revoke_reads_for(
            &claviger_engine::EngineId::program(),
            &id("safe"),
            &id("yk"),
            &call(),
        )
        .await;
    assert!(matches!(again, Err(EngineError::NoSuchGrant { .. })));
    grant(&node, "safe", "yk", None).await;
    assert!(reads(&node, "safe", "yk"));
}

#[tokio::test]
async fn a_revocation_wins_in_every_order_of_import() {
    let mine = node_with(&["safe", "yk"]).await;
    grant(&mine, "safe", "yk", None).await;
    let granted = export(&mine);
    mine.revoke_reads_for(
        &claviger_engine::EngineId::program(),
        &id("safe"),
        &id("yk"),
        &call(),
    )
    .await
    .unwrap();
    let both = export(&mine);
    let only = EvidenceFile {
        evidence: Vec::new(),
        revocations: both.revocations.clone(),
    };
    grant(&mine, "safe", "yk", None).await;
    let anew = export(&mine);
    for files in [
        vec![&granted, &only],
        vec![&only, &granted],
        vec![&both],
        vec![&granted, &both],
        vec![&both, &granted],
    ] {
        let yours = memory_node();
        for name in ["safe", "yk"] {
            yours.registry().add_contact(&party(&mine, name)).unwrap();
        }
        for file in files {
            yours
                .import_evidence(&claviger_engine::EngineId::program(), file.clone())
                .await
                .unwrap();
            // Looked at in between, too: what is in memory follows.
            let _ = reads(&yours, "safe", "yk");
        }
        assert!(!reads(&yours, "safe", "yk"));
        assert_eq!(
            recipients(&yours, "yk", Preference::WITH_READERS).await,
            ["yk"]
        );
        yours
            .import_evidence(&claviger_engine::EngineId::program(), anew.clone())
            .await
            .unwrap();
        assert!(reads(&yours, "safe", "yk"));
    }
}

#[tokio::test]
async fn a_revocation_of_another_key_or_that_does_not_verify_revokes_nothing() {
    let node = node_with(&["safe", "yk", "mallory"]).await;
    let granted = grant(&node, "safe", "yk", None).await;
    grant(&node, "safe", "mallory", None).await;
    node.revoke_reads_for(
        &claviger_engine::EngineId::program(),
        &id("safe"),
        &id("mallory"),
        &call(),
    )
    .await
    .unwrap();
    let mut theirs = export(&node).revocations.remove(0);
    // In the name of the one who granted it, and signed by somebody else.
    theirs.statement = granted.statement_id();
    for by in ["yk", "mallory"] {
        let mut forged = theirs.clone();
        forged.by = party(&node, by).keys.sign.unwrap();
        let file = EvidenceFile {
            evidence: Vec::new(),
            revocations: vec![forged],
        };
        assert!(
            node.import_evidence(&claviger_engine::EngineId::program(), file)
                .await
                .is_err()
        );
    }
    // Mallory can say of any statement that it is hers.
    let info = node.registry().identity(&id("mallory")).unwrap().unwrap();
    let engine = info.commitment_engine.unwrap();
    let by = party(&node, "mallory").keys.sign.unwrap();
    let said = Statement::Revocation {
        statement: granted.statement_id(),
        by: by.clone(),
    };
    let request = RequestCommitment {
        data: said.to_bytes(),
        purpose: Purpose::Evidence,
    };
    let proof = node
        .commit_for(&id("mallory"), &engine, request, &call())
        .await
        .unwrap();
    let file = EvidenceFile {
        evidence: Vec::new(),
        revocations: vec![claviger_engine::Revocation {
            statement: granted.statement_id(),
            by,
            proof,
        }],
    };
    node.import_evidence(&claviger_engine::EngineId::program(), file)
        .await
        .unwrap();
    assert!(reads(&node, "safe", "yk"));
    assert_eq!(node.standing(&[granted]).unwrap(), [Standing::Counts]);
}

#[tokio::test]
async fn what_version_1_signed_is_kept_and_not_relied_on() {
    let node = node_with(&["safe", "yk"]).await;
    let old = of_version_1(&node, "safe", "yk").await;
    let text = to_text(&EvidenceFile::from(vec![old.clone()])).unwrap();
    // As version 1 of the text had it.
    let text = text.replace("\"claviger_evidence\": 2", "\"claviger_evidence\": 1");
    let text = text.replace(",\n  \"revocations\": []", "");
    let imported = node
        .import_evidence(
            &claviger_engine::EngineId::program(),
            from_text(text.as_bytes()).unwrap(),
        )
        .await;
    let imported = imported.unwrap();
    assert_eq!((imported.added, imported.of_version_1), (1, 1));
    let pieces = std::slice::from_ref(&old);
    assert_eq!(node.registry().all_evidence().unwrap(), pieces);
    assert_eq!(node.standing(pieces).unwrap(), [Standing::OldFormat]);
    assert!(!reads(&node, "safe", "yk"));
    assert_eq!(
        recipients(&node, "yk", Preference::WITH_READERS).await,
        ["yk"]
    );
    // Nor where somebody takes the number or the end of another for it.
    for terms in [Terms::new(None), Terms::new(Some(now() + 9))] {
        let posing = Evidence {
            terms,
            ..old.clone()
        };
        assert!(posing.verify().is_err());
    }
    grant(&node, "safe", "yk", None).await;
    assert!(reads(&node, "safe", "yk"));
}

#[tokio::test]
async fn a_name_that_stands_for_other_keys_here_is_imported_under_another() {
    let (mine, yours) = (node_with(&["safe", "yk"]).await, node_with(&["safe"]).await);
    grant(&mine, "safe", "yk", None).await;
    let imported = yours
        .import_evidence(&claviger_engine::EngineId::program(), export(&mine))
        .await
        .unwrap();
    assert_eq!(imported.added, 1);
    let [(old, new)] = &imported.renamed[..] else {
        panic!("{imported:?}");
    };
    let fingerprint = party(&mine, "safe").keys.sign.unwrap().fingerprint();
    let telling: String = fingerprint.to_string()["SHA256:".len()..]
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(8)
        .collect();
    assert_eq!(
        (&**old, new.to_string()),
        ("safe", format!("safe@{telling}"))
    );
    let contact = yours.registry().contact(new).unwrap().unwrap();
    assert_eq!(contact.keys, party(&mine, "safe").keys);
    yours.registry().add_contact(&party(&mine, "yk")).unwrap();
    assert!(reads(&yours, new, "yk") && !reads(&yours, "safe", "yk"));
    assert_eq!(
        recipients(&yours, "yk", Preference::WITH_READERS).await,
        ["yk", new]
    );
    // It can be called something better, and importing again changes nothing.
    assert!(yours.registry().rename_contact(new, "vault").unwrap());
    assert!(!yours.registry().rename_contact(new, "vault").unwrap());
    assert!(yours.registry().rename_contact("vault", "safe").is_err());
    assert!(yours.registry().rename_contact("vault", "yk").is_err());
    let again = yours
        .import_evidence(&claviger_engine::EngineId::program(), export(&mine))
        .await
        .unwrap();
    assert!(again.renamed.is_empty());
    assert!(reads(&yours, "vault", "yk"));
}

#[tokio::test]
async fn data_is_disclosed_only_to_whom_the_sender_names() {
    let node = node_with(&["bob"]).await;
    for name in ["team", "club"] {
        let both = Capabilities::CommitAndDecrypt;
        generate(&node, name, &MEMORY, IdParams::Ed25519, both).await;
    }
    grant(&node, "bob", "team", None).await;
    let via = |names: &[&str]| Preference {
        via: Via::Named(names.iter().map(|name| id(name)).collect()),
        ..Preference::ITSELF
    };
    for (preference, expected) in [
        (Preference::ITSELF, "bob"),
        (Preference::WITH_READERS, "bob"),
        (via(&["team"]), "team"),
        (via(&["club", "team"]), "team"),
        (Preference::CHEAPEST, "team"),
    ] {
        let found = recipients(&node, "bob", preference.clone()).await;
        assert_eq!(found, [expected], "{preference:?}");
    }
    let refused = node
        .recipients(
            &claviger_engine::EngineId::program(),
            &id("bob"),
            true,
            &via(&["club"]),
            &call(),
        )
        .await;
    assert!(matches!(refused, Err(EngineError::NotProven { .. })));
    let unknown = node
        .recipients(
            &claviger_engine::EngineId::program(),
            &id("bob"),
            true,
            &via(&["eve"]),
            &call(),
        )
        .await;
    assert!(matches!(
        unknown,
        Err(EngineError::ExternalIdentityNotFound)
    ));
}

#[tokio::test]
async fn the_closure_is_as_deep_as_it_is_asked_for() {
    let node = node_with(&["a", "b", "c", "d"]).await;
    for (reader, by) in [("b", "a"), ("c", "b"), ("d", "c")] {
        grant(&node, reader, by, None).await;
    }
    for (depth, expected) in [
        (1, &["a", "b"][..]),
        (2, &["a", "b", "c"]),
        (3, &["a", "b", "c", "d"]),
        (usize::MAX, &["a", "b", "c", "d"]),
    ] {
        let preference = Preference {
            depth,
            ..Preference::WITH_READERS
        };
        assert_eq!(recipients(&node, "a", preference).await, expected);
    }
    // The other way round, too.
    let deep = |depth| Preference {
        via: Via::Named(vec![id("a")]),
        depth,
        ..Preference::ITSELF
    };
    assert!(
        node.recipients(
            &claviger_engine::EngineId::program(),
            &id("d"),
            true,
            &deep(3),
            &call()
        )
        .await
        .is_ok()
    );
    let refused = node
        .recipients(
            &claviger_engine::EngineId::program(),
            &id("d"),
            true,
            &deep(2),
            &call(),
        )
        .await;
    assert!(matches!(refused, Err(EngineError::NotProven { .. })));
}

#[tokio::test]
async fn evidence_with_nothing_but_zeros_for_a_signature_is_refused() {
    let node = node_with(&["a", "b"]).await;
    let zeros = Signature::new(SignatureScheme::EcdsaP256Sha256, vec![0; 64]).unwrap();
    let evidence = Evidence {
        from_identity: party(&node, "a"),
        to_identity: party(&node, "b"),
        terms: Terms::new(None),
        proof: zeros,
    };
    assert!(
        node.import_evidence(&claviger_engine::EngineId::program(), vec![evidence])
            .await
            .is_err()
    );
    assert!(!reads(&node, "a", "b"));
    let nobody = PublicKeys::default();
    assert!(nobody.is_empty());
}

// --- Revoking ------------------------------------------------------------------------

#[tokio::test]
async fn the_signing_key_alone_revokes_what_it_granted() {
    let node = node_with(&["safe", "yk"]).await;
    let granted = grant(&node, "safe", "yk", None).await;
    let reply = connect(&node, "signer", "yk", &MEMORY, Capabilities::Commit).await;
    assert!(reply.err.is_none(), "{:?}", reply.err);
    assert_eq!(party(&node, "signer").keys.decrypt, None);
    let revoked = node
        .revoke_reads_for(
            &claviger_engine::EngineId::program(),
            &id("safe"),
            &id("signer"),
            &call(),
        )
        .await
        .unwrap();
    assert_eq!(revoked.len(), 1);
    assert_eq!(revoked[0].statement, granted.statement_id());
    assert!(!reads(&node, "safe", "yk"));
    let again = node
        .revoke_reads_for(
            &claviger_engine::EngineId::program(),
            &id("safe"),
            &id("signer"),
            &call(),
        )
        .await;
    assert!(matches!(again, Err(EngineError::NoSuchGrant { .. })));
}

/// Another machine's clock may be behind.
#[tokio::test]
async fn a_grant_that_has_ended_here_can_be_revoked() {
    let node = node_with(&["safe", "yk"]).await;
    let granted = grant(&node, "safe", "yk", Some(1)).await;
    let pieces = std::slice::from_ref(&granted);
    assert_eq!(node.standing(pieces).unwrap(), [Standing::Ended]);
    let revoked = node
        .revoke_reads_for(
            &claviger_engine::EngineId::program(),
            &id("safe"),
            &id("yk"),
            &call(),
        )
        .await
        .unwrap();
    assert_eq!(revoked[0].statement, granted.statement_id());
    assert_eq!(node.standing(pieces).unwrap(), [Standing::Revoked]);
}

/// Revocations by `by` of statements that nobody knows.
async fn of_nothing(node: &Node, by: &str, count: u8) -> Vec<Revocation> {
    let info = node.registry().identity(&id(by)).unwrap().unwrap();
    let (engine, key) = (info.commitment_engine.unwrap(), party(node, by).keys.sign);
    let key = key.unwrap();
    let mut revocations = Vec::new();
    for n in 0..count {
        let statement = Statement::Revocation {
            statement: [n; 32],
            by: key.clone(),
        };
        let request = RequestCommitment {
            data: statement.to_bytes(),
            purpose: Purpose::Evidence,
        };
        let proof = node.commit_for(&id(by), &engine, request, &call()).await;
        revocations.push(Revocation {
            statement: [n; 32],
            by: key.clone(),
            proof: proof.unwrap(),
        });
    }
    revocations
}

fn verifying(revocations: &[Revocation]) -> Duration {
    let begun = Instant::now();
    for revocation in revocations {
        std::hint::black_box(revocation.verify()).ok();
    }
    begun.elapsed()
}

#[tokio::test]
async fn revocations_of_other_evidence_do_not_slow_encryption_down() {
    let node = node_with(&["safe", "yk", "other"]).await;
    grant(&node, "safe", "yk", None).await;
    let file = EvidenceFile {
        evidence: Vec::new(),
        revocations: of_nothing(&node, "other", 200).await,
    };
    node.import_evidence(&claviger_engine::EngineId::program(), file.clone())
        .await
        .unwrap();
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        let found = recipients(&node, "yk", Preference::WITH_READERS).await;
        assert_eq!(found, ["yk", "safe"]);
        quickest = quickest.min(begun.elapsed());
    }
    let all = verifying(&file.revocations);
    assert!(quickest < all / 2, "{quickest:?}, and {all:?} for all");
}

#[tokio::test]
async fn nothing_is_verified_of_a_reply_that_nobody_asked_this_sender_for() {
    let node = node_with(&["safe", "yk"]).await;
    let granted = grant(&node, "safe", "yk", None).await;
    let forged = Revocation {
        statement: granted.statement_id(),
        by: granted.to_identity.keys.sign.clone().unwrap(),
        proof: granted.proof.clone(),
    };
    let forged = vec![forged; 200];
    for sender in ["mallory", READS_FOR] {
        let msg = || {
            let mut evidence = EvidenceAbout::default();
            evidence.direct.push(granted.clone());
            evidence.revocations.clone_from(&forged);
            Msg::ReplyReadsForEvidence(ReplyReadsForEvidence {
                external_identity: id("yk"),
                evidence,
                err: None,
            })
        };
        let mut quickest = Duration::MAX;
        for _ in 0..5 {
            let msg = msg();
            let begun = Instant::now();
            let reply = node.ask(&id(sender), &id(ENCRYPTION), msg, &call()).await;
            quickest = quickest.min(begun.elapsed());
            assert!(reply.is_none());
        }
        let all = verifying(&forged);
        assert!(
            quickest < all / 2,
            "{sender}: {quickest:?}, and {all:?} for all"
        );
    }
}

// --- Without an encryption key -------------------------------------------------------

#[tokio::test]
async fn who_has_no_encryption_key_reads_for_nobody() {
    let node = node_with(&["yk", "heir"]).await;
    let reply = generate(&node, "mute", &MEMORY, IdParams::P256, Capabilities::Commit).await;
    assert!(reply.err.is_none(), "{:?}", reply.err);
    let refused = node
        .grant_reads_for(
            &claviger_engine::EngineId::program(),
            &id("mute"),
            &id("yk"),
            None,
            &call(),
        )
        .await;
    let Err(EngineError::NoEncryptionKey { identity }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(identity, id("mute"));

    // Another program may have granted it.
    let piece = as_another_program_signs(&node, "mute", "yk", Terms::new(None)).await;
    node.import_evidence(&claviger_engine::EngineId::program(), vec![piece.clone()])
        .await
        .unwrap();
    assert!(!reads(&node, "mute", "yk"));
    assert_eq!(
        node.reads_for_chain(
            &claviger_engine::EngineId::program(),
            &id("mute"),
            &id("yk")
        )
        .unwrap(),
        None
    );
    assert!(reads(&node, "mute", "mute"));
    // Nor is it a step on the way to somebody else.
    grant(&node, "heir", "mute", None).await;
    assert!(reads(&node, "heir", "mute"));
    assert!(!reads(&node, "heir", "yk"));
    assert_eq!(
        recipients(&node, "yk", Preference::WITH_READERS).await,
        ["yk"]
    );
    let standing = node.standing(&[piece]).unwrap();
    assert_eq!(standing, [Standing::ReaderCannotDecrypt]);
    for preference in [Preference::CHEAPEST, Preference::WITH_READERS] {
        let refused = node
            .recipients(
                &claviger_engine::EngineId::program(),
                &id("mute"),
                true,
                &preference,
                &call(),
            )
            .await;
        assert!(matches!(refused, Err(EngineError::NoEncryptionKey { .. })));
    }
    let via = Preference {
        via: Via::Named(vec![id("yk")]),
        ..Preference::ITSELF
    };
    let refused = node
        .recipients(
            &claviger_engine::EngineId::program(),
            &id("heir"),
            true,
            &via,
            &call(),
        )
        .await;
    assert!(matches!(refused, Err(EngineError::NotProven { .. })));
}
