//! No recipient, header or file makes a library panic: inputs that were good once, altered.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the helpers of tests are tests"
)]

use std::io::{Read, Write};
use std::sync::{Arc, LazyLock};

use claviger_engine::evidence::{Statement, from_text, to_text};
use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::{Backend, Capabilities, EngineId, EvidenceFile, IdParams, Node, Registry};
use claviger_formats::envelope::{self, Sealed};
use claviger_formats::foreign::ForeignKey;
use claviger_formats::ssh;
use claviger_formats::sshsig::{self, SshSignature};
use claviger_formats::verdict::Presented;
use claviger_memory::MemoryDriver;
use claviger_tests::mutated;
use claviger_token::{
    Access, Algorithm, Call, Decryptor, Driver as _, KeyRef, KeySpec, NewKey, PublicKey, Signer,
    Token, unfinished_mark,
};

const TEXT: &[u8] = b"Meet me where the keys are kept.";

/// How many variants of each input.
const COUNT: usize = 4_000;

/// Its keys live as long as it does.
static TOKEN: LazyLock<Arc<dyn Token>> = LazyLock::new(|| {
    let access = Access::without_pin();
    let token = MemoryDriver::new().open("memory:", &Call::unlimited().using(access));
    token.unwrap()
});

fn key(spec: KeySpec) -> KeyRef {
    let call = Call::unlimited();
    let slot = TOKEN.free_slots(&[spec], &[], &call).unwrap().remove(0);
    let new = NewKey {
        slot: &slot,
        spec,
        mark: &unfinished_mark(),
    };
    let public_key = TOKEN.generate(&new, &call).unwrap().public_key;
    KeyRef { slot, public_key }
}

fn decryptor(algorithm: Algorithm) -> Arc<dyn Decryptor> {
    TOKEN
        .decryptor(&key(KeySpec::decrypt(algorithm)), &Call::unlimited())
        .unwrap()
}

fn signer(algorithm: Algorithm) -> Arc<dyn Signer> {
    TOKEN
        .signer(&key(KeySpec::sign(algorithm)), &Call::unlimited())
        .unwrap()
}

/// An RSA key that nobody has: a modulus is a number.
fn rsa() -> PublicKey {
    let mut modulus = vec![0xc5; 256];
    modulus[255] = 0x01;
    PublicKey::from_rsa(&modulus, &[1, 0, 1]).unwrap()
}

fn armored(file: &[u8]) -> Vec<u8> {
    let format = age::armor::Format::AsciiArmor;
    let mut armored = age::armor::ArmoredWriter::wrap_output(Vec::new(), format).unwrap();
    armored.write_all(file).unwrap();
    armored.finish().unwrap()
}

#[test]
fn an_age_file_that_was_altered_opens_as_it_was_or_not_at_all() {
    let (p256, x25519) = (decryptor(Algorithm::P256), decryptor(Algorithm::X25519));
    let keys = [p256.public_key(), x25519.public_key(), &rsa()];
    let file = envelope::encrypt(&keys, TEXT).unwrap();
    let call = Call::unlimited();
    let mut opened = 0;
    for good in [file.clone(), armored(&file)] {
        for bad in mutated(&good, COUNT) {
            for decryptor in [&p256, &x25519] {
                if let Ok(text) = envelope::decrypt(&**decryptor, &bad, &call) {
                    assert_eq!(*text, TEXT);
                    opened += 1;
                }
            }
            if let Ok(sealed) = Sealed::read(&bad[..]) {
                for key in keys {
                    let _ = sealed.fits(key);
                }
            }
        }
    }
    // Some were altered where it does not matter: at the end of the armor.
    assert!(opened > 0 && opened < COUNT, "{opened}");
}

#[test]
fn a_recipient_that_was_altered_is_one_that_can_be_encrypted_to_or_none() {
    let keys = [
        decryptor(Algorithm::P256).public_key().clone(),
        decryptor(Algorithm::X25519).public_key().clone(),
        rsa(),
    ];
    let mut taken = 0;
    for key in &keys {
        let texts = [
            envelope::recipient_text(key),
            ssh::to_line(key, "me"),
            Some(key.to_text()),
        ];
        for text in texts.into_iter().flatten() {
            for bad in mutated(text.as_bytes(), COUNT) {
                let bad = String::from_utf8_lossy(&bad);
                let found = [
                    envelope::parse_recipient(&bad).ok(),
                    ssh::from_line(&bad).ok(),
                    PublicKey::from_text(&bad).ok(),
                    ForeignKey::from_age(&bad).ok().map(|found| found.key),
                    ForeignKey::from_ssh(&bad).ok().map(|found| found.key),
                ];
                for key in found.into_iter().flatten() {
                    taken += 1;
                    // A key that got in can be used.
                    if envelope::recipient_text(&key).is_some() {
                        assert!(envelope::encrypt(&[&key], TEXT).is_ok(), "{bad}");
                    }
                }
            }
        }
    }
    assert!(taken > 0);
}

#[test]
fn bytes_of_a_key_are_a_key_that_can_be_encrypted_to_or_none() {
    let keys = [
        decryptor(Algorithm::P256).public_key().clone(),
        decryptor(Algorithm::X25519).public_key().clone(),
        rsa(),
    ];
    for key in &keys {
        for bad in mutated(key.as_bytes(), COUNT) {
            for algorithm in Algorithm::ALL {
                let Ok(key) = PublicKey::from_bytes(algorithm, &bad) else {
                    continue;
                };
                if envelope::recipient_text(&key).is_some() {
                    assert!(envelope::encrypt(&[&key], TEXT).is_ok(), "{bad:02x?}");
                }
            }
        }
        let Some(der) = key.to_der() else { continue };
        for bad in mutated(&der, COUNT) {
            let _ = PublicKey::from_der(&bad);
            for label in ["PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE"] {
                let _ = ForeignKey::from_pem(label, &bad);
            }
        }
    }
}

#[test]
fn a_signature_that_was_altered_is_valid_over_its_own_message_only() {
    for algorithm in [Algorithm::P256, Algorithm::Ed25519] {
        let signer = signer(algorithm);
        let (key, call) = (signer.public_key(), Call::unlimited());
        let data = sshsig::signed_data("file", TEXT).unwrap();
        let signature = signer.sign(&data, &call).unwrap();
        let pem = sshsig::to_pem(key, "file", &signature).unwrap();
        let plain = signer.sign(TEXT, &call).unwrap();
        let files = [
            pem.into_bytes(),
            plain.as_bytes().to_vec(),
            plain.to_der().unwrap(),
        ];
        for good in files {
            for bad in mutated(&good, COUNT / 4) {
                let _ = SshSignature::parse(&bad);
                let Ok(presented) = Presented::read(&bad) else {
                    continue;
                };
                let verdict = presented.judge(key, "file", &b"another"[..], Some(7));
                let verdict = format!("{:?}", verdict.unwrap());
                assert!(!verdict.starts_with("Valid"), "{bad:02x?}");
                let _ = presented.judge(key, "file", TEXT, None).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn evidence_that_was_altered_is_evidence_of_nothing_else() {
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(MemoryDriver::new())
        .build();
    for name in ["safe", "yk"] {
        let request = RequestGenerateIdentity {
            backend: Backend::LocalMemory,
            params: IdParams::P256,
            capabilities: Capabilities::CommitAndDecrypt,
        };
        let who = EngineId::local(name);
        let made = node.generate(&who, request, &Call::unlimited()).await;
        made.unwrap();
    }
    let (safe, yk) = (EngineId::local("safe"), EngineId::local("yk"));
    let call = Call::unlimited();
    node.grant_reads_for(&EngineId::program(), &safe, &yk, None, &call)
        .await
        .unwrap();
    node.revoke_reads_for(&EngineId::program(), &safe, &yk, &call)
        .await
        .unwrap();
    let file = EvidenceFile {
        evidence: node.registry().all_evidence().unwrap(),
        revocations: node.registry().all_revocations().unwrap(),
    };
    let statement = file.evidence[0].statement();
    for bad in mutated(&statement, COUNT) {
        if let Ok(read) = Statement::parse(&bad) {
            assert_eq!(read.to_bytes(), bad);
        }
    }
    for bad in mutated(to_text(&file).unwrap().as_bytes(), COUNT) {
        let Ok(read) = from_text(&bad) else { continue };
        for piece in read.evidence {
            assert!(piece.verify().is_err() || file.evidence.contains(&piece));
        }
        for revocation in read.revocations {
            assert!(revocation.verify().is_err() || file.revocations.contains(&revocation));
        }
    }
}

#[test]
fn a_header_of_the_longest_size_is_no_burden() {
    let line = b"-> X25519 a\n";
    let mut file = b"age-encryption.org/v1\n".to_vec();
    file.extend(line.repeat((envelope::LONGEST_HEADER - 200) / line.len()));
    file.extend_from_slice(b"--- AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n0123456789abcdef");
    let begun = std::time::Instant::now();
    let _ = Sealed::read(&file[..]);
    let mut endless = file[..100].chain(std::io::repeat(b'\n'));
    assert!(Sealed::read(&mut endless).is_err());
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}
