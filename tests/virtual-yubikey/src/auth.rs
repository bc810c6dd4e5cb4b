//! What opens the card: PIN, PUK, management key, and the policies of a key.

use std::time::Duration;

use aes::cipher::{Block, BlockCipher, BlockDecrypt, BlockEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use des::TdesEde3;

use crate::apdu::Status;

/// A PIN or a PUK, padded with FF to eight bytes, and its counter.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    value: [u8; 8],
    pub(crate) tries: u8,
    pub(crate) left: u8,
    pub(crate) is_default: bool,
}

impl Reference {
    pub(crate) const PIN: &[u8] = b"123456";
    pub(crate) const PUK: &[u8] = b"12345678";

    /// `value` has at most eight bytes: more are cut off.
    pub(crate) fn new(value: &[u8], tries: u8, default: &[u8]) -> Reference {
        Reference {
            value: pad(value),
            tries,
            left: tries,
            is_default: value == default,
        }
    }

    /// Compares, and counts.
    pub(crate) fn check(&mut self, candidate: &[u8]) -> Result<(), Status> {
        if self.left == 0 {
            return Err(Status::BLOCKED);
        }
        if candidate != self.value {
            self.left -= 1;
            return Err(Status::wrong(self.left));
        }
        self.left = self.tries;
        Ok(())
    }

    /// Sets another value, padded as it came, and the counter to its full height.
    pub(crate) fn change(&mut self, padded: &[u8], default: &[u8]) -> Result<(), Status> {
        let value: [u8; 8] = padded.try_into().map_err(|_| Status::WRONG_LENGTH)?;
        let length = (value.iter().position(|&byte| byte == 0xff)).unwrap_or(8);
        if length < 6 || value[length..].iter().any(|&byte| byte != 0xff) {
            return Err(Status::WRONG_DATA);
        }
        *self = Reference::new(&value[..length], self.tries, default);
        Ok(())
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.left == 0
    }
}

fn pad(value: &[u8]) -> [u8; 8] {
    let mut padded = [0xff; 8];
    for (to, from) in padded.iter_mut().zip(value) {
        *to = *from;
    }
    padded
}

/// The kind of a management key, by its reference (SP 800-78-4 table 6-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ManagementAlgorithm {
    TripleDes = 0x03,
    Aes128 = 0x08,
    Aes192 = 0x0a,
    Aes256 = 0x0c,
}

impl ManagementAlgorithm {
    pub(crate) fn from_reference(reference: u8) -> Option<ManagementAlgorithm> {
        match reference {
            // "The default cryptographic algorithm": SP 800-78-4 lets 00 stand for it.
            0x00 | 0x03 => Some(ManagementAlgorithm::TripleDes),
            0x08 => Some(ManagementAlgorithm::Aes128),
            0x0a => Some(ManagementAlgorithm::Aes192),
            0x0c => Some(ManagementAlgorithm::Aes256),
            _ => None,
        }
    }

    /// Bytes of the key.
    pub fn key_size(self) -> usize {
        match self {
            ManagementAlgorithm::Aes128 => 16,
            ManagementAlgorithm::TripleDes | ManagementAlgorithm::Aes192 => 24,
            ManagementAlgorithm::Aes256 => 32,
        }
    }

    /// Bytes of a block, which a challenge is as long as.
    pub fn block_size(self) -> usize {
        match self {
            ManagementAlgorithm::TripleDes => 8,
            _ => 16,
        }
    }
}

/// A management key. Its methods are what a test's client needs, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagementKey {
    algorithm: ManagementAlgorithm,
    key: Vec<u8>,
}

impl ManagementKey {
    /// The published default of every YubiKey: 01 to 08, three times.
    pub const DEFAULT: [u8; 24] = [
        1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8,
    ];

    /// `None` where the length does not fit.
    pub fn new(algorithm: ManagementAlgorithm, key: &[u8]) -> Option<ManagementKey> {
        (key.len() == algorithm.key_size()).then(|| ManagementKey {
            algorithm,
            key: key.to_vec(),
        })
    }

    /// What every YubiKey before 5.7 leaves the factory with.
    pub(crate) fn factory_triple_des() -> ManagementKey {
        ManagementKey {
            algorithm: ManagementAlgorithm::TripleDes,
            key: ManagementKey::DEFAULT.to_vec(),
        }
    }

    /// What kind of key it is.
    pub fn algorithm(&self) -> ManagementAlgorithm {
        self.algorithm
    }

    pub(crate) fn is_default(&self) -> bool {
        self.key == ManagementKey::DEFAULT
    }

    /// Encrypts one block; `None` where it is not one.
    pub fn encrypt(&self, block: &[u8]) -> Option<Vec<u8>> {
        match self.algorithm {
            ManagementAlgorithm::TripleDes => encrypt::<TdesEde3>(&self.key, block),
            ManagementAlgorithm::Aes128 => encrypt::<Aes128>(&self.key, block),
            ManagementAlgorithm::Aes192 => encrypt::<Aes192>(&self.key, block),
            ManagementAlgorithm::Aes256 => encrypt::<Aes256>(&self.key, block),
        }
    }

    /// Decrypts one block; `None` where it is not one.
    pub fn decrypt(&self, block: &[u8]) -> Option<Vec<u8>> {
        match self.algorithm {
            ManagementAlgorithm::TripleDes => decrypt::<TdesEde3>(&self.key, block),
            ManagementAlgorithm::Aes128 => decrypt::<Aes128>(&self.key, block),
            ManagementAlgorithm::Aes192 => decrypt::<Aes192>(&self.key, block),
            ManagementAlgorithm::Aes256 => decrypt::<Aes256>(&self.key, block),
        }
    }
}

fn encrypt<C: BlockCipher + BlockEncrypt + KeyInit>(key: &[u8], input: &[u8]) -> Option<Vec<u8>> {
    let cipher = C::new_from_slice(key).ok()?;
    let mut block = block::<C>(input)?;
    cipher.encrypt_block(&mut block);
    Some(block.to_vec())
}

fn decrypt<C: BlockCipher + BlockDecrypt + KeyInit>(key: &[u8], input: &[u8]) -> Option<Vec<u8>> {
    let cipher = C::new_from_slice(key).ok()?;
    let mut block = block::<C>(input)?;
    cipher.decrypt_block(&mut block);
    Some(block.to_vec())
}

fn block<C: BlockCipher>(input: &[u8]) -> Option<Block<C>> {
    (input.len() == C::block_size()).then(|| Block::<C>::clone_from_slice(input))
}

/// When the PIN is wanted. The numbers are those on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PinPolicy {
    /// Never.
    Never = 1,
    /// Once in a session.
    Once = 2,
    /// For each use, just before it.
    Always = 3,
}

/// When a touch is wanted. The numbers are those on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TouchPolicy {
    /// Never.
    Never = 1,
    /// For each use.
    Always = 2,
    /// Unless the last touch was within 15 seconds.
    Cached = 3,
}

impl PinPolicy {
    pub(crate) fn from_wire(value: u8) -> Option<PinPolicy> {
        match value {
            1 => Some(PinPolicy::Never),
            2 => Some(PinPolicy::Once),
            3 => Some(PinPolicy::Always),
            _ => None,
        }
    }
}

impl TouchPolicy {
    /// How long a touch counts where it is cached.
    pub(crate) const CACHED_FOR: Duration = Duration::from_secs(15);

    pub(crate) fn from_wire(value: u8) -> Option<TouchPolicy> {
        match value {
            1 => Some(TouchPolicy::Never),
            2 => Some(TouchPolicy::Always),
            3 => Some(TouchPolicy::Cached),
            _ => None,
        }
    }
}

/// The person at the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// Touches it when it wants to be touched, after so long.
    After(Duration),
    /// Does not; the card gives up after so long (a real one after some 15 seconds) with
    /// "security status not satisfied", as for a missing PIN.
    Never(Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NIST SP 800-38A, F.1.1, F.1.3 and F.1.5, first block each.
    #[test]
    fn aes_agrees_with_the_published_examples() {
        let plain = hex("6bc1bee22e409f96e93d7e117393172a");
        for (algorithm, key, cipher) in [
            (
                ManagementAlgorithm::Aes128,
                "2b7e151628aed2a6abf7158809cf4f3c",
                "3ad77bb40d7a3660a89ecaf32466ef97",
            ),
            (
                ManagementAlgorithm::Aes192,
                "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b",
                "bd334f1d6e45f25ff712a214571fa5cc",
            ),
            (
                ManagementAlgorithm::Aes256,
                "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
                "f3eed1bdb5d2a03c064b5a7e3db181f8",
            ),
        ] {
            let key = ManagementKey::new(algorithm, &hex(key)).unwrap();
            assert_eq!(key.encrypt(&plain).unwrap(), hex(cipher));
            assert_eq!(key.decrypt(&hex(cipher)).unwrap(), plain);
            assert_eq!(key.encrypt(&plain[1..]), None);
        }
    }

    /// The example that goes with NIST SP 800-67: "The qufck brown fox jump", first block.
    #[test]
    fn triple_des_agrees_with_the_published_example() {
        let key = hex("0123456789abcdef23456789abcdef01456789abcdef0123");
        let key = ManagementKey::new(ManagementAlgorithm::TripleDes, &key).unwrap();
        assert_eq!(key.encrypt(b"The qufc").unwrap(), hex("a826fd8ce53b855f"));
        assert_eq!(key.decrypt(&hex("a826fd8ce53b855f")).unwrap(), b"The qufc");
    }

    #[test]
    fn a_wrong_value_costs_a_try_and_a_right_one_gives_all_back() {
        let mut pin = Reference::new(b"123456", 3, Reference::PIN);
        assert!(pin.is_default);
        assert_eq!(pin.check(b"123456"), Err(Status(0x63c2)));
        assert_eq!(pin.check(b"123456\xff\xff"), Ok(()));
        assert_eq!(pin.left, 3);
        for left in [2, 1, 0] {
            assert_eq!(pin.check(&[0xff; 8]), Err(Status::wrong(left)));
        }
        assert_eq!(pin.check(b"123456\xff\xff"), Err(Status::BLOCKED));
        assert!(pin.is_blocked());
    }

    #[test]
    fn a_new_value_is_six_to_eight_bytes_and_padded_at_its_end() {
        let mut pin = Reference::new(b"123456", 3, Reference::PIN);
        for bad in [
            &b"12345\xff\xff\xff"[..],
            b"123456\xff7",
            &[0xff; 8],
            b"123456",
        ] {
            assert!(pin.change(bad, Reference::PIN).is_err());
        }
        assert_eq!(pin.change(b"tr0mbone", Reference::PIN), Ok(()));
        assert!(!pin.is_default);
        assert_eq!(pin.check(b"tr0mbone"), Ok(()));
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }
}
