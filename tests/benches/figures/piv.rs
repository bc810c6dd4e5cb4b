//! What a PIV card is asked for: counted, not timed, because the card is the limit.
//!
//! The card is virtual, the pcscd between is real. It keeps a log of the commands that
//! reach it; so the counts hold for other programs too.

use std::process::Command;
use std::time::Instant;

use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Registry};
use claviger_formats::envelope;
use claviger_piv::PivDriver;
use claviger_tests::CountedReaders;
use claviger_token::{Access, Call, FixedPin, KeyUse};
use claviger_virtual_yubikey::{Card, Inserted, Pcscd};
use sha2::{Digest, Sha256};

use crate::{Figure, MESSAGE, median, micros, timed};

const PIN: &str = "246802";
/// GENERAL AUTHENTICATE (SP 800-73-4 part 2, §3.2.4).
const GENERAL_AUTHENTICATE: u8 = 0x87;
/// How often an operation is repeated to see what it needs in the steady state.
const REPEATED: usize = 10;

pub(crate) async fn figures() -> Vec<Figure> {
    let card = Pcscd::insert(Card::builder().pin(PIN).build());
    let mut access = Access::with(FixedPin::new(PIN));
    access.factory_defaults = true;
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(PivDriver::new())
        .access(access)
        .build();
    let (who, call) = (EngineId::local("bench"), Call::unlimited());

    let request = RequestGenerateIdentity {
        backend: Backend::from(format!("piv:serial={}", card.card().serial())),
        params: IdParams::P256,
        capabilities: Capabilities::CommitAndDecrypt,
    };
    card.faults().clear_log();
    let made = node.generate(&who, request, &call).await.unwrap();
    let generate = card.faults().log().len();
    let (signer, decryptor) = (
        made.commitment_engine.unwrap(),
        made.decryption_engine.unwrap(),
    );
    let info = node.registry().identity(&who).unwrap().unwrap();

    let sign = async || {
        node.commit(&who, &signer, MESSAGE.to_vec(), &call)
            .await
            .map(drop)
            .unwrap();
    };
    sign().await;
    card.faults().clear_log();
    for _ in 0..REPEATED {
        sign().await;
    }
    let signing = per_operation(&card);

    let key = &info.key(KeyUse::Decrypt).unwrap().public_key;
    let file = envelope::encrypt(&[key], MESSAGE).unwrap();
    let open = async || {
        node.decrypt(&who, &decryptor, file.clone(), &call)
            .await
            .map(drop)
            .unwrap();
    };
    open().await;
    card.faults().clear_log();
    for _ in 0..REPEATED {
        open().await;
    }
    let decrypting = per_operation(&card);

    let (once, transactions) = one_signature(&card).await;
    // It has logged out.
    sign().await;

    // The bare exchange as others do it, in a transaction, and no check of what comes
    // back; the commitment includes the check with the public key.
    let (mut exchange, mut engine) = (Vec::new(), Vec::new());
    {
        let context = pcsc::Context::establish(pcsc::Scope::User).unwrap();
        let reader = std::ffi::CString::new(card.reader()).unwrap();
        let mut bare = context
            .connect(&reader, pcsc::ShareMode::Shared, pcsc::Protocols::ANY)
            .unwrap();
        let command = authenticate(&Sha256::digest(MESSAGE));
        for _ in 0..1000 {
            let mut buffer = [0; 512];
            timed(&mut exchange, || {
                let transaction = bare.transaction().unwrap();
                let reply = transaction.transmit(&command, &mut buffer).unwrap();
                assert!(reply.ends_with(&[0x90, 0x00]));
            });
            let begun = Instant::now();
            sign().await;
            engine.push(begun.elapsed());
        }
    }
    let [exchange, engine] = [exchange, engine].map(|mut samples| micros(median(&mut samples)));

    // For the others: OpenSC looks for keys in the retired slots only where the card has a
    // list of them.
    let request = RequestGenerateIdentity {
        backend: Backend::from(format!("piv:serial={};slot=9a", card.card().serial())),
        params: IdParams::P256,
        capabilities: Capabilities::Commit,
    };
    node.generate(&EngineId::local("others"), request, &call)
        .await
        .unwrap();
    drop(node);

    vec![
        counted(
            "piv_sign_apdus",
            signing,
            "= 1",
            "commands for a signature in the steady state",
        ),
        counted(
            "piv_sign_once_apdus",
            once as f64,
            "≤ 9",
            "commands of a process that is started for one signature",
        ),
        counted(
            "piv_sign_once_transactions",
            transactions as f64,
            "= 1",
            "PC/SC transactions that these take, single commands counted as one each",
        ),
        counted(
            "piv_decrypt_apdus",
            decrypting,
            "= 1",
            "commands to open a file in the steady state",
        ),
        counted(
            "piv_generate_apdus",
            generate as f64,
            "",
            "commands to make an identity with two keys",
        ),
        counted(
            "piv_sign_apdus_opensc",
            opensc(&card) as f64,
            "",
            "what `pkcs11-tool --sign` of OpenSC needs, all in all",
        ),
        counted(
            "piv_sign_apdus_yubikey",
            yubikey(&card) as f64,
            "",
            "what the crate `yubikey` needs: open, PIN, sign",
        ),
        Figure {
            name: "piv_commit_ratio",
            value: engine / exchange,
            wanted: "≤ 1.10",
            what: format!(
                "a commitment, checked, {engine:.0} µs / the bare exchange in a transaction \
                 {exchange:.0} µs"
            ),
        },
    ]
}

fn counted(name: &'static str, value: f64, wanted: &'static str, what: &str) -> Figure {
    Figure {
        name,
        value,
        wanted,
        what: what.into(),
    }
}

/// Commands for one of the operations that were repeated.
fn per_operation(card: &Inserted) -> f64 {
    assert_eq!(card.faults().count(GENERAL_AUTHENTICATE), REPEATED);
    card.faults().log().len() as f64 / REPEATED as f64
}

/// Counts the commands and transactions of a node that is made for one signature, with its
/// PIN; in as many commands the second time as the first.
async fn one_signature(card: &Inserted) -> (usize, usize) {
    let (home, readers) = (tempfile::tempdir().unwrap(), CountedReaders::default());
    let (who, call) = (EngineId::local("once"), Call::unlimited());
    let node = || {
        let mut access = Access::with(FixedPin::new(PIN));
        access.factory_defaults = true;
        Node::builder(Registry::open(home.path()).unwrap())
            .driver(PivDriver::with_readers(readers.clone()))
            .access(access)
            .build()
    };
    let request = RequestGenerateIdentity {
        backend: Backend::from(format!("piv:serial={}", card.card().serial())),
        params: IdParams::P256,
        capabilities: Capabilities::Commit,
    };
    let made = node().generate(&who, request, &call).await;
    let signer = made.unwrap().commitment_engine.unwrap();
    card.faults().clear_log();
    let begun = || readers.transactions() + readers.single_commands();
    let before = begun();
    let node = node();
    node.commit(&who, &signer, MESSAGE.to_vec(), &call)
        .await
        .map(drop)
        .unwrap();
    drop(node);
    (card.faults().log().len(), begun() - before)
}

/// The command that signs a digest with the P-256 key in slot 82.
fn authenticate(digest: &[u8]) -> Vec<u8> {
    let mut command = vec![
        0x00,
        GENERAL_AUTHENTICATE,
        0x11,
        0x82,
        38,
        0x7c,
        36,
        0x82,
        0x00,
    ];
    command.extend([0x81, 32]);
    command.extend(digest);
    command.push(0);
    command
}

/// Counts what OpenSC's tool sends for one signature with a key on the card.
fn opensc(card: &Inserted) -> usize {
    card.faults().clear_log();
    let folder = tempfile::tempdir().unwrap();
    let digest = folder.path().join("digest");
    std::fs::write(&digest, Sha256::digest(MESSAGE)).unwrap();
    let (variable, socket) = Pcscd::environment();
    let output = Command::new("pkcs11-tool")
        .args([
            "--login",
            "--pin",
            PIN,
            "--sign",
            "--mechanism",
            "ECDSA",
            "--id",
            "01",
        ])
        .arg("--input-file")
        .arg(&digest)
        .arg("--output-file")
        .arg(folder.path().join("signature"))
        .env(variable, socket)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    card.faults().log().len()
}

/// Counts what the crate `yubikey` sends for one signature.
fn yubikey(card: &Inserted) -> usize {
    use yubikey::piv::{AlgorithmId, SlotId, sign_data};
    card.faults().clear_log();
    let mut yubikey = yubikey::YubiKey::open().unwrap();
    yubikey.verify_pin(PIN.as_bytes()).unwrap();
    sign_data(
        &mut yubikey,
        &Sha256::digest(MESSAGE),
        AlgorithmId::EccP256,
        SlotId::Authentication,
    )
    .unwrap();
    drop(yubikey);
    card.faults().log().len()
}
