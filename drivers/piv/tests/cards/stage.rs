//! Cards, and what tests do with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use claviger_token::{
    Algorithm, Call, Deletion, Driver, Error, GeneratedKey, KeyRef, KeySpec, NewKey, SlotId, Token,
    Unfinished,
};
use claviger_virtual_yubikey::{Card, Device, Firmware, PrivateKey, Slot, object};

use crate::common::*;

pub(crate) const P256: KeySpec = KeySpec::sign(Algorithm::P256);

pub(crate) fn yubikey() -> Device {
    Device::new(Card::builder().pin(PIN).build())
}

pub(crate) fn old(firmware: Firmware) -> Device {
    Device::new(Card::builder().firmware(firmware).pin(PIN).build())
}

/// Cards that have no command to destroy a key.
pub(crate) const CANNOT_DELETE: [fn() -> Device; 4] = [
    || old(Firmware::V5_4_3),
    || old(Firmware::V5_2_4),
    || old(Firmware::V4_3_5),
    plain_card,
];

pub(crate) fn open(desk: &Desk) -> Arc<dyn Token> {
    desk.driver().open("piv:", &call().using(access())).unwrap()
}

/// The label of keys that are not named yet.
pub(crate) const MARK: &str = "claviger-unfinished-00112233445566778899aabbccddeeff";

/// Makes a key that is not named yet.
pub(crate) fn generate(
    token: &dyn Token,
    slot: &SlotId,
    spec: KeySpec,
) -> Result<GeneratedKey, Error> {
    generate_by(token, slot, spec, &call())
}

/// The same on a request.
pub(crate) fn generate_by(
    token: &dyn Token,
    slot: &SlotId,
    spec: KeySpec,
    call: &Call,
) -> Result<GeneratedKey, Error> {
    let mark = MARK;
    token.generate(&NewKey { slot, spec, mark }, call)
}

/// Makes a key and names it.
pub(crate) fn make(token: &dyn Token, spec: KeySpec) -> KeyRef {
    let slot = token.free_slots(&[spec], &[], &call()).unwrap().remove(0);
    let public_key = generate(token, &slot, spec).unwrap().public_key;
    let key = KeyRef { slot, public_key };
    token.name(&key, "alice", &call()).unwrap();
    key
}

/// Removes what a generation left of which no more is known than its slot.
pub(crate) fn discard(token: &dyn Token, slot: &SlotId) -> Result<Deletion, Error> {
    let left = Unfinished {
        slot: slot.clone(),
        mark: MARK.into(),
        public_key: None,
    };
    token.discard(&left, &call())
}

/// How many commands `work` takes, by instruction.
pub(crate) fn counted(device: &Device, work: impl FnOnce()) -> BTreeMap<u8, usize> {
    device.faults().clear_log();
    work();
    let mut counts = BTreeMap::new();
    for exchange in device.faults().log() {
        *counts.entry(exchange.instruction().unwrap()).or_default() += 1;
    }
    counts
}

/// What is on the card, as a test sees it.
pub(crate) fn inventory(device: &Device) -> Vec<(Slot, bool, bool)> {
    let card = device.card();
    Slot::all()
        .map(|slot| {
            let object = object::certificate(slot);
            (
                slot,
                card.key(slot).is_some(),
                card.object(object).is_some(),
            )
        })
        .collect()
}

/// The public key of what is in 82.
pub(crate) fn key_in_82(device: &Device) -> Option<Vec<u8>> {
    let card = device.card();
    card.key(Slot::new(0x82).unwrap()).map(PrivateKey::spki)
}

/// Ways to lose our certificate in 82: it is deleted, replaced, overwritten with something
/// else.
pub(crate) fn losses(device: &Device) -> [Vec<u8>; 3] {
    let card = device.card();
    let theirs = card.attestation_certificate().unwrap();
    let certificate = [
        &[0x70][..],
        &length(theirs.len()),
        theirs,
        &[0x71, 1, 0, 0xfe, 0],
    ];
    [Vec::new(), certificate.concat(), vec![0x70, 1, 0]]
}

/// Speaks to the card with the management key, as another program does.
pub(crate) fn as_administrator(device: &Device) -> impl Fn(&[u8]) -> Vec<u8> {
    let key = device.card().management_key().clone();
    let send = |apdu: &[u8]| match device.transmit(apdu) {
        claviger_virtual_yubikey::Answer::Reply(reply, _) => reply,
        claviger_virtual_yubikey::Answer::Removed(_) => panic!("removed"),
    };
    send(&[0, 0xa4, 4, 0, 5, 0xa0, 0, 0, 3, 8]);
    let algorithm = key.algorithm() as u8;
    let witness = send(&[0, 0x87, algorithm, 0x9b, 4, 0x7c, 2, 0x80, 0]);
    let size = key.algorithm().block_size();
    let witness = key.decrypt(&witness[4..4 + size]).unwrap();
    let size = size as u8;
    let template = [
        &[0x7c, 2 * size + 4, 0x80, size][..],
        &witness,
        &[0x81, size],
    ]
    .concat();
    let template = [template, vec![0x5a; usize::from(size)]].concat();
    let header = [0, 0x87, algorithm, 0x9b, template.len() as u8];
    assert!(send(&[&header[..], &template].concat()).ends_with(&[0x90, 0]));
    send
}

pub(crate) fn length(n: usize) -> [u8; 3] {
    [0x82, (n >> 8) as u8, n as u8]
}

/// Writes a slot's certificate object, as another program does; nothing removes it.
pub(crate) fn put_object(device: &Device, reference: u8, content: &[u8]) {
    let send = as_administrator(device);
    let id = [0x5c, 3, 0x5f, 0xc1, 0x0d + reference - 0x82, 0x53];
    let data = [&id[..], &length(content.len()), content].concat();
    let mut chunks = data.chunks(255).peekable();
    while let Some(chunk) = chunks.next() {
        let class = if chunks.peek().is_some() { 0x10 } else { 0 };
        let header = [class, 0xdb, 0x3f, 0xff, chunk.len() as u8];
        assert!(send(&[&header[..], chunk].concat()).ends_with(&[0x90, 0]));
    }
}
