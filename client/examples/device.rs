//! A device whose keys are in the memory of this program.
//!
//! It attaches to your own daemon and serves until that ends:
//!
//! ```sh
//! claviger serve &
//! cargo run -p claviger-client --example device
//! claviger generate alice --backend attached:
//! ```
//!
//! A real device keeps its identity key and its other keys where nobody can read them.

use std::collections::BTreeMap;

use claviger_client::Options;
use claviger_client::blocking::device::Attachment;
use claviger_client::device::{
    self, Device, DeviceAgree, DeviceDelete, DeviceFailure, DeviceGenerate, DeviceGenerated,
    DeviceKey, DeviceSetLabel, DeviceSign, KeySpec, KeyUse, Keys, failure, spec,
};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use p256::pkcs8::{DecodePublicKey, EncodePublicKey};
use rand_core::OsRng;
use zeroize::Zeroizing;

/// The beginning of each Ed25519 key in DER (RFC 8410 §4).
const ED25519: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Keys in the memory of this program.
pub struct MemoryDevice {
    identity: p256::ecdsa::SigningKey,
    keys: BTreeMap<String, Key>,
}

struct Key {
    spec: KeySpec,
    private: Private,
    public: Vec<u8>,
    label: String,
}

enum Private {
    P256(p256::ecdsa::SigningKey),
    P256Agree(p256::SecretKey),
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

impl MemoryDevice {
    /// A new one, without keys.
    pub fn new() -> Self {
        MemoryDevice {
            identity: p256::ecdsa::SigningKey::random(&mut OsRng),
            keys: BTreeMap::new(),
        }
    }

    /// What it states of itself.
    pub fn describe(&self) -> Device {
        let public_key = self.identity.verifying_key().to_public_key_der();
        let keys = [
            spec("p256", KeyUse::Sign),
            spec("ed25519", KeyUse::Sign),
            spec("p256", KeyUse::Decrypt),
        ];
        let device = device::device(
            "example device",
            public_key.map(|der| der.into_vec()).unwrap_or_default(),
            &keys,
        );
        Device {
            takes_digests: true,
            most_keys: 12,
            ..device
        }
    }

    /// Signs with its identity key.
    pub fn prove(&self, text: &[u8]) -> Vec<u8> {
        let signature: p256::ecdsa::Signature = self.identity.sign(text);
        signature.to_vec()
    }

    /// The key in a slot, if it is the one that is meant.
    fn key(&mut self, slot: &str, public_key: &[u8]) -> Result<&mut Key, DeviceFailure> {
        let found = self.keys.get_mut(slot);
        found
            .filter(|key| key.public == public_key)
            .ok_or_else(|| failure("key-not-found", "there is no such key"))
    }
}

impl Default for MemoryDevice {
    fn default() -> Self {
        MemoryDevice::new()
    }
}

impl Keys for MemoryDevice {
    fn list(&mut self) -> Vec<DeviceKey> {
        let shown = |(slot, key): (&String, &Key)| DeviceKey {
            slot: slot.clone(),
            spec: Some(key.spec.clone()),
            public_key: key.public.clone(),
            label: key.label.clone(),
        };
        self.keys.iter().map(shown).collect()
    }

    fn generate(&mut self, wanted: &DeviceGenerate) -> Result<DeviceGenerated, DeviceFailure> {
        if self.keys.contains_key(&wanted.slot) {
            return Err(failure("slot-occupied", "there is a key in the slot"));
        }
        let spec = wanted.spec.clone().unwrap_or_default();
        let (private, public) = match (&*spec.algorithm, spec.usage()) {
            ("p256", KeyUse::Sign) => {
                let key = p256::ecdsa::SigningKey::random(&mut OsRng);
                let der = key.verifying_key().to_public_key_der();
                (Private::P256(key), der.map(|der| der.into_vec()))
            }
            ("p256", KeyUse::Decrypt) => {
                let key = p256::SecretKey::random(&mut OsRng);
                let der = key.public_key().to_public_key_der();
                (Private::P256Agree(key), der.map(|der| der.into_vec()))
            }
            ("ed25519", KeyUse::Sign) => {
                let key = ed25519_dalek::SigningKey::generate(&mut OsRng);
                let der = [&ED25519[..], key.verifying_key().as_bytes()].concat();
                (Private::Ed25519(Box::new(key)), Ok(der))
            }
            _ => return Err(failure("unsupported", "it makes no such key")),
        };
        let public = public.map_err(|_| failure("device", "the key has no encoding"))?;
        let key = Key {
            spec,
            private,
            public: public.clone(),
            label: wanted.label.clone(),
        };
        self.keys.insert(wanted.slot.clone(), key);
        Ok(DeviceGenerated {
            public_key: public,
            // No request to this program gives them out.
            is_sensitive: true,
            is_never_extractable: true,
        })
    }

    fn set_label(&mut self, wanted: &DeviceSetLabel) -> Result<(), DeviceFailure> {
        let key = self.key(&wanted.slot, &wanted.public_key)?;
        key.label.clone_from(&wanted.label);
        Ok(())
    }

    fn sign(&mut self, wanted: &DeviceSign) -> Result<Vec<u8>, DeviceFailure> {
        let bad = |_| failure("bad-message", "this cannot be signed");
        match &self.key(&wanted.slot, &wanted.public_key)?.private {
            Private::P256(key) => {
                let signed: Result<p256::ecdsa::Signature, _> = match wanted.is_digest {
                    true => key.sign_prehash(&wanted.data),
                    false => key.try_sign(&wanted.data),
                };
                Ok(signed.map_err(bad)?.to_vec())
            }
            Private::Ed25519(key) if !wanted.is_digest => {
                Ok(key.try_sign(&wanted.data).map_err(bad)?.to_vec())
            }
            _ => Err(failure("bad-message", "the key does not sign this")),
        }
    }

    fn agree(&mut self, wanted: &DeviceAgree) -> Result<Zeroizing<Vec<u8>>, DeviceFailure> {
        let key = self.key(&wanted.slot, &wanted.public_key)?;
        let peer = p256::PublicKey::from_public_key_der(&wanted.peer);
        match (&key.private, peer) {
            (Private::P256Agree(key), Ok(peer)) => {
                let shared = p256::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
                Ok(Zeroizing::new(shared.raw_secret_bytes().to_vec()))
            }
            _ => Err(failure("decryption-failed", "the key does not agree")),
        }
    }

    fn delete(&mut self, wanted: &DeviceDelete) -> bool {
        let is_there = self.key(&wanted.slot, &wanted.public_key).is_ok();
        is_there && self.keys.remove(&wanted.slot).is_some()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::own().ok_or("XDG_RUNTIME_DIR is not set")?;
    let mut keys = MemoryDevice::new();
    let (device, prover) = (keys.describe(), &keys);
    let mut attachment = Attachment::open(&options, device, |text| prover.prove(text))?;
    println!("attached:serial={}", attachment.serial());
    Ok(attachment.serve(&mut keys)?)
}
