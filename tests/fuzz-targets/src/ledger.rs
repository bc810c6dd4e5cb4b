//! A Ledger some of whose replies, and of whose frames, are altered.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use crate::shared::Input;
use claviger_ledger::LedgerDriver;
use claviger_ledger::frame::{Assembler, FRAME, frames};
use claviger_ledger::transport::{Attached, Broken, Devices, Transport, Unreachable};
use claviger_ledger_emulator::{Exchange, Recording};
use claviger_token::sync::lock;
use claviger_token::{
    Algorithm, Call, Detail, Driver as _, KeyRef, KeySpec, NewKey, PublicKey, Token, Unfinished,
    Unwrap, possession, unfinished_mark,
};
use zeroize::Zeroizing;

static RECORDED: LazyLock<Vec<Exchange>> = LazyLock::new(|| Recording::ethereum().exchanges());

/// What an honest device says to a command of this kind.
fn honest(apdu: &[u8]) -> &'static [u8] {
    let mut exchanges = RECORDED.iter();
    let found = exchanges.find(|exchange| exchange.apdu.get(..4) == apdu.get(..4));
    found.map_or(&[0x6d, 0x00], |exchange| &exchange.reply)
}

#[derive(Clone)]
struct Device(Arc<Mutex<VecDeque<u8>>>);

impl Devices for Device {
    fn list(&self) -> Result<Vec<Attached>, Unreachable> {
        Ok(vec![Attached {
            path: "usb".into(),
            model: "Nano X".into(),
        }])
    }

    fn connect(&self, _: &str) -> Result<Box<dyn Transport>, Broken> {
        Ok(Box::new(Open {
            device: self.clone(),
            assembler: Assembler::default(),
            replies: VecDeque::new(),
        }))
    }
}

struct Open {
    device: Device,
    assembler: Assembler,
    replies: VecDeque<Result<Zeroizing<Vec<u8>>, Broken>>,
}

impl Open {
    /// The next of the fuzzer's bytes.
    fn bytes(&self, count: usize) -> Vec<u8> {
        let mut bytes = lock(&self.device.0);
        let count = count.min(bytes.len());
        bytes.drain(..count).collect()
    }
}

impl Transport for Open {
    fn send(&mut self, apdu: &[u8]) -> Result<(), Broken> {
        let how = self.bytes(1).first().copied().unwrap_or(0);
        let patch = self.bytes(usize::from(how & 0x3f));
        let reply = honest(apdu);
        let reply = match how >> 6 {
            1 => Input(&patch).patch(reply),
            2 => patch.clone(),
            _ => reply.to_vec(),
        };
        let mut wire = frames(&reply).map_or(Vec::new(), |frames| frames.concat());
        if how >> 6 == 3 {
            wire = Input(&patch).patch(&wire);
        }
        for frame in wire.chunks(FRAME) {
            match self.assembler.push(frame) {
                Ok(None) => {}
                Ok(Some(reply)) => self.replies.push_back(Ok(reply)),
                Err(e) => self
                    .replies
                    .push_back(Err(Broken::Malformed(e.to_string()))),
            }
        }
        Ok(())
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Zeroizing<Vec<u8>>>, Broken> {
        match self.replies.pop_front() {
            Some(reply) => reply.map(Some),
            None if wait.is_zero() => Ok(None),
            None => Err(Broken::Lost("unplugged".into())),
        }
    }
}

/// Too short to wait for a person.
fn call() -> Call {
    Call::within(Duration::from_millis(400))
}

/// One input: its first byte says what the keys are used for, since that takes longer than all
/// else; the others are the device's.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let how = input.byte().unwrap_or(0);
    let bytes = input.0.iter().copied().collect();
    let driver = LedgerDriver::with_devices(Device(Arc::new(Mutex::new(bytes))));
    let _ = driver.look("ledger:", Detail::Slots, &Call::unlimited());
    let Ok(token) = driver.open("ledger:", &call()) else {
        return;
    };
    let specs = [
        KeySpec::sign(Algorithm::Secp256k1),
        KeySpec::decrypt(Algorithm::X25519),
    ];
    let slots = token.free_slots(&specs, &[], &call()).unwrap_or_default();
    for (slot, spec) in slots.into_iter().zip(specs) {
        let mark = unfinished_mark();
        let new = NewKey {
            slot: &slot,
            spec,
            mark: &mark,
        };
        let Ok(made) = token.generate(&new, &call()) else {
            continue;
        };
        let public_key = made.public_key;
        let key = KeyRef { slot, public_key };
        use_key(&*token, &key, how);
        let _ = token.name(&key, "fuzz", &call());
        let _ = token.delete(&key, &call());
        let left = Unfinished {
            slot: key.slot,
            mark,
            public_key: Some(key.public_key),
        };
        let _ = token.discard(&left, &call());
    }
}

fn use_key(token: &dyn Token, key: &KeyRef, how: u8) {
    let id = &token.info().id;
    if let Ok(signer) = token.signer(key, &Call::unlimited()) {
        match how % 4 {
            0 => {
                let message = b"identity challenge";
                if let Ok(signature) = signer.sign(message, &call()) {
                    assert_eq!(key.public_key.verify(message, &signature), Ok(()));
                }
            }
            1 => drop(possession::of_signer(&*signer, id, &call())),
            _ => {}
        }
    }
    if let Ok(decryptor) = token.decryptor(key, &Call::unlimited()) {
        match how % 4 {
            2 => {
                if let Ok(peer) = PublicKey::from_bytes(Algorithm::X25519, &[9; 32]) {
                    let _ = decryptor.unwrap(Unwrap::Agree { peer: &peer }, &call());
                }
                let _ = decryptor.confirm(&call());
            }
            3 => drop(possession::of_decryptor(&*decryptor, id, &call())),
            _ => {}
        }
    }
}
