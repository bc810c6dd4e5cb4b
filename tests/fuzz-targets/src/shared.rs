//! Shared by the fuzz targets: a source of bytes, and misbehaving cards.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use claviger_piv::PivDriver;
use claviger_piv::apdu::{Lost, Transport};
use claviger_piv::reader::{Link, Readers, Unreachable};
use claviger_token::sync::lock;
use claviger_token::{
    Access, Algorithm, Call, Detail, Driver as _, FixedPin, GeneratedKey, KeyRef, KeySpec, NewKey,
    RefusedInProcess, SlotState, Unfinished, Unwrap, unfinished_mark,
};

/// The fuzzer's bytes, taken one after another.
#[derive(Debug, Default)]
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// As many of the next `count` bytes as there are.
    pub(crate) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A number below `limit`, or 0.
    fn below(&mut self, limit: usize) -> usize {
        let number = self
            .bytes(2)
            .iter()
            .fold(0, |n, &b| n << 8 | usize::from(b));
        number.checked_rem(limit).unwrap_or(0)
    }

    /// Changes `valid`: a few places, its length, or not at all.
    pub(crate) fn patch(&mut self, valid: &[u8]) -> Vec<u8> {
        let mut patched = valid.to_vec();
        while let Some(what) = self.byte() {
            let at = self.below(patched.len() + 1);
            match (what % 5, patched.get_mut(at)) {
                (0, Some(byte)) => *byte ^= self.byte().unwrap_or(1),
                (1, Some(byte)) => *byte = self.byte().unwrap_or(0),
                (2, _) => patched.truncate(at),
                (3, Some(_)) => drop(patched.remove(at)),
                _ => {
                    let length = usize::from(what / 5);
                    let inserted = self.bytes(length).to_vec();
                    patched.splice(at..at, inserted);
                }
            }
        }
        patched
    }
}

/// The bytes of a certificate as PEM.
pub(crate) fn to_pem(der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let body: Vec<_> = lines.collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        body.join("\n")
    )
}

/// The bytes of a certificate in PEM.
pub(crate) fn from_pem(pem: &str) -> Vec<u8> {
    let lines = pem.lines().filter(|line| !line.starts_with("-----"));
    BASE64.decode(lines.collect::<String>()).unwrap()
}

/// Who answers commands.
pub(crate) trait Answers: Send {
    /// The reply, or nothing where the card is gone.
    fn answer(&mut self, command: &[u8]) -> Option<Vec<u8>>;
}

impl<F: FnMut(&[u8]) -> Option<Vec<u8>> + Send> Answers for F {
    fn answer(&mut self, command: &[u8]) -> Option<Vec<u8>> {
        self(command)
    }
}

/// One reader with one card.
#[derive(Clone)]
struct Reader(Arc<Mutex<dyn Answers>>);

impl Readers for Reader {
    fn list(&self) -> Result<Vec<String>, Unreachable> {
        Ok(vec!["Reader".into()])
    }

    fn connect(&self, _: &str) -> Result<Box<dyn Link>, Lost> {
        Ok(Box::new(self.clone()))
    }
}

impl Link for Reader {
    fn begin(&mut self) -> Result<Box<dyn Transport + '_>, Lost> {
        Ok(Box::new(Transaction(&self.0)))
    }
}

/// It keeps nobody out. The driver goes on with a transaction for a moment, for which others
/// would wait, and there are no others.
struct Transaction<'a>(&'a Mutex<dyn Answers>);

impl Transport for Transaction<'_> {
    fn transmit(&mut self, apdu: &[u8]) -> Result<Vec<u8>, Lost> {
        let reply = lock(self.0).answer(apdu);
        reply.ok_or_else(|| Lost::new("removed"))
    }

    fn reset(self: Box<Self>) -> Result<(), Lost> {
        Ok(())
    }
}

/// A driver for one card, which takes the virtual ones for YubiKeys.
pub(crate) fn driver(card: impl Answers + 'static) -> PivDriver {
    let readers = Reader(Arc::new(Mutex::new(card)));
    PivDriver::with_readers_and_roots(readers, claviger_virtual_yubikey::ROOT)
        .expect("the root is a certificate")
}

/// The PIN and the management key of a card as it is delivered. What a card refused is
/// forgotten with it: the next one has the same name.
pub(crate) fn access() -> Access {
    Access {
        refused_pins: Arc::new(RefusedInProcess::default()),
        management_keys: Arc::new(FixedPin::new(
            "010203040506070801020304050607080102030405060708",
        )),
        ..Access::with(FixedPin::new("123456"))
    }
}

/// Asks a card for all that it shows without a PIN. Any error will do, here and below.
pub(crate) fn look(driver: &PivDriver) {
    let _ = driver.look("piv:", Detail::Slots, &Call::unlimited());
}

/// Uses every key on a card.
pub(crate) fn use_keys(driver: &PivDriver) {
    let call = Call::unlimited();
    let Ok(token) = driver.open("piv:", &Call::unlimited().using(access())) else {
        return;
    };
    for found in token.slots(&call).unwrap_or_default() {
        let Some(key) = found.key_ref() else {
            continue;
        };
        assert_eq!(found.state, SlotState::Occupied);
        if let Ok(signer) = token.signer(&key, &Call::unlimited()) {
            let _ = signer.sign(b"message", &call);
        }
        if let Ok(decryptor) = token.decryptor(&key, &Call::unlimited()) {
            let _ = decryptor.confirm(&call);
            let peer = &key.public_key;
            let _ = decryptor.unwrap(Unwrap::Agree { peer }, &call);
        }
    }
}

/// Slots in which keys are made, as a backend names them.
pub(crate) const SLOTS: [&str; 2] = ["piv:slot=9c", "piv:slot=82"];

/// Makes a key in one slot, and destroys it.
pub(crate) fn make_key(driver: &PivDriver, backend: &str) {
    let (spec, call) = (
        KeySpec::sign(Algorithm::P256),
        Call::unlimited().using(access()),
    );
    let Ok(token) = driver.open(backend, &call) else {
        return;
    };
    let _ = token.free_slots(&[spec], &[], &call);
    let Ok(Some(slot)) = driver.named_slot(backend) else {
        return;
    };
    let mark = unfinished_mark();
    let new = NewKey {
        slot: &slot,
        spec,
        mark: &mark,
    };
    if let Ok(GeneratedKey { public_key, .. }) = token.generate(&new, &call) {
        let slot = slot.clone();
        let key = KeyRef { slot, public_key };
        let _ = token.name(&key, "label", &call);
        let _ = token.delete(&key, &call);
    }
    let left = Unfinished {
        slot,
        mark,
        public_key: None,
    };
    let _ = token.discard(&left, &call);
}
