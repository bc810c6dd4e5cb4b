//! What a Ledger is asked for: counted, not timed, because a person is the limit.
//!
//! The device is simulated, and keeps a log of the commands that reach it.

use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Registry};
use claviger_formats::envelope;
use claviger_ledger::LedgerDriver;
use claviger_ledger_emulator::Ethereum;
use claviger_token::{Call, KeyUse};

use crate::{Figure, MESSAGE};

/// How often an operation is repeated to see what it needs in the steady state.
const REPEATED: usize = 10;

pub(crate) async fn figures() -> Vec<Figure> {
    let app = Ethereum::new();
    let server = app.serve();
    let node = Node::builder(Registry::in_memory().unwrap())
        .driver(LedgerDriver::new())
        .build();
    let (who, call) = (EngineId::local("bench"), Call::unlimited());
    let request = RequestGenerateIdentity {
        backend: Backend::from(format!("ledger:tcp={}", server.address())),
        params: IdParams::Secp256k1,
        capabilities: Capabilities::CommitAndDecrypt,
    };
    let made = node.generate(&who, request, &call).await.unwrap();
    let (signer, decryptor) = (
        made.commitment_engine.unwrap(),
        made.decryption_engine.unwrap(),
    );
    let info = node.registry().identity(&who).unwrap().unwrap();
    let key = &info.key(KeyUse::Decrypt).unwrap().public_key;
    let file = envelope::encrypt(&[key], MESSAGE).unwrap();

    let sign = async || {
        let message = MESSAGE.to_vec();
        let signed = node.commit(&who, &signer, message, &call).await;
        signed.map(drop).unwrap();
    };
    let open = async || {
        let opened = node.decrypt(&who, &decryptor, file.clone(), &call).await;
        opened.map(drop).unwrap();
    };
    sign().await;
    open().await;
    let begun = app.exchanges().len();
    for _ in 0..REPEATED {
        sign().await;
    }
    let signed = app.exchanges().len();
    for _ in 0..REPEATED {
        open().await;
    }
    let opened = app.exchanges().len();
    let figure = |name, count: usize, what: &str| Figure {
        name,
        value: count as f64 / REPEATED as f64,
        wanted: "= 1",
        what: what.into(),
    };
    vec![
        figure(
            "ledger_sign_apdus",
            signed - begun,
            "commands for a signature in the steady state",
        ),
        figure(
            "ledger_decrypt_apdus",
            opened - signed,
            "commands to open a file in the steady state",
        ),
    ]
}
