//! Authentication with the management key, which the card needs to make keys and write objects.
//!
//! Both sides prove that they have the key (mutual authentication, SP 800-73-4 part 2, appendix
//! A.1): the card sends a witness that only the key decrypts, and answers a challenge.

use aes::{Aes128, Aes192, Aes256};
use claviger_token::key::from_hex;
use claviger_token::{Error, TokenId};
use des::TdesEde3;
use des::cipher::generic_array::GenericArray;
use des::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};
use rand_core::{OsRng, RngCore};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::apdu::Status;
use crate::card::{Card, MANAGEMENT};
use crate::error::Fault;
use crate::tlv;

/// The algorithm of a management key (SP 800-78-4 table 6-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cipher {
    /// Three-key triple DES.
    Tdes,
    /// AES with a key of this many bytes.
    Aes(usize),
}

impl Cipher {
    pub(crate) fn from_id(id: u8) -> Option<Self> {
        match id {
            0x00 | 0x03 => Some(Cipher::Tdes),
            0x08 => Some(Cipher::Aes(16)),
            0x0a => Some(Cipher::Aes(24)),
            0x0c => Some(Cipher::Aes(32)),
            _ => None,
        }
    }

    fn id(self) -> u8 {
        match self {
            Cipher::Tdes => 0x03,
            Cipher::Aes(16) => 0x08,
            Cipher::Aes(24) => 0x0a,
            Cipher::Aes(_) => 0x0c,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Cipher::Tdes => "3des",
            Cipher::Aes(16) => "aes128",
            Cipher::Aes(24) => "aes192",
            Cipher::Aes(_) => "aes256",
        }
    }

    fn key_length(self) -> usize {
        match self {
            Cipher::Tdes => 24,
            Cipher::Aes(length) => length,
        }
    }

    fn block_length(self) -> usize {
        match self {
            Cipher::Tdes => 8,
            Cipher::Aes(_) => 16,
        }
    }

    /// Encrypts or decrypts one block in place; `None` where a length is wrong.
    fn apply(self, direction: Direction, key: &[u8], block: &mut [u8]) -> Option<()> {
        if block.len() != self.block_length() {
            return None;
        }
        macro_rules! with {
            ($cipher:ty) => {{
                let cipher = <$cipher>::new_from_slice(key).ok()?;
                // As long as the cipher's block: checked above.
                let block = GenericArray::from_mut_slice(block);
                match direction {
                    Direction::Encrypt => cipher.encrypt_block(block),
                    Direction::Decrypt => cipher.decrypt_block(block),
                }
            }};
        }
        match self {
            Cipher::Tdes => with!(TdesEde3),
            Cipher::Aes(16) => with!(Aes128),
            Cipher::Aes(24) => with!(Aes192),
            Cipher::Aes(_) => with!(Aes256),
        }
        Some(())
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Encrypt,
    Decrypt,
}

/// The key with which cards are delivered. Public knowledge.
pub(crate) const FACTORY_DEFAULT: [u8; 24] = [
    1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8,
];

/// A management key as people write it: hexadecimal, with or without `0x` before it, and
/// with colons, hyphens or blanks between digits.
pub(crate) fn parse_key(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text = text.trim();
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let digits: Zeroizing<String> = Zeroizing::new(
        digits
            .unwrap_or(text)
            .chars()
            .filter(|c| !matches!(c, ':' | '-') && !c.is_whitespace())
            .map(|c| c.to_ascii_lowercase())
            .collect(),
    );
    from_hex(&digits).map(Zeroizing::new)
}

/// Shows the card that we have its management key, and makes the card show the same.
///
/// # Errors
/// [`Error::ManagementKeyWrong`]; a key of the wrong length is not used at all.
pub(crate) fn authenticate(
    card: &mut Card<'_>,
    cipher: Cipher,
    key: &[u8],
    token: &TokenId,
) -> Result<(), Fault> {
    const NAME: &str = "GENERAL AUTHENTICATE";
    let wrong = |reason: String| {
        Fault::Ours(Error::ManagementKeyWrong {
            token: token.clone(),
            reason,
        })
    };
    if key.len() != cipher.key_length() {
        let (name, wanted) = (cipher.name(), cipher.key_length());
        return Err(wrong(format!(
            "the key has {} bytes, the card's has {wanted} ({name})",
            key.len()
        )));
    }
    let (id, length) = (cipher.id(), cipher.block_length());
    let mut witness = card.authenticate(id, MANAGEMENT, &[0x80, 0x00], 0x80)?;
    cipher
        .apply(Direction::Decrypt, key, &mut witness)
        .ok_or_else(|| Fault::malformed(NAME, "the witness is not one block"))?;

    let mut challenge = Zeroizing::new(vec![0; length]);
    OsRng.fill_bytes(&mut challenge);
    let mut template = Zeroizing::new(Vec::with_capacity(2 * length + 8));
    tlv::push(&mut template, 0x80, &witness);
    tlv::push(&mut template, 0x81, &challenge);
    // No empty 82 to ask for the response: other clients send none, and some cards refuse
    // it.
    let answer = match card.authenticate(id, MANAGEMENT, &template, 0x82) {
        Err(fault) if fault.status().is_some_and(means_wrong) => {
            let status = fault.status().map(|s| s.to_string()).unwrap_or_default();
            return Err(wrong(status));
        }
        answer => answer?,
    };
    cipher
        .apply(Direction::Encrypt, key, &mut challenge)
        .ok_or_else(|| Fault::malformed(NAME, "the key has another length"))?;
    if bool::from(challenge.ct_eq(&answer)) {
        Ok(())
    } else {
        Err(wrong("the card does not have it".into()))
    }
}

/// What a card says to the witness that a wrong key gives.
fn means_wrong(status: Status) -> bool {
    matches!(
        status,
        Status::SECURITY | Status::WRONG_DATA | Status::NOT_VERIFIED
    ) || status.tries().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apdu::{Lost, Transport};
    use crate::script::Script;
    use claviger_token::Call;
    use proptest::prelude::*;

    fn token() -> TokenId {
        TokenId {
            kind: "piv".into(),
            manufacturer: "Yubico".into(),
            serial: "1".into(),
        }
    }

    #[test]
    fn the_ciphers_are_those_of_the_standards() {
        // FIPS 197, appendix C; NIST SP 800-20, table A.1 (as triple DES with one key).
        let aes = "00112233445566778899aabbccddeeff";
        for (cipher, key, plain, encrypted) in [
            (
                Cipher::Aes(16),
                "000102030405060708090a0b0c0d0e0f",
                aes,
                "69c4e0d86a7b0430d8cdb78070b4c55a",
            ),
            (
                Cipher::Aes(24),
                "000102030405060708090a0b0c0d0e0f1011121314151617",
                aes,
                "dda97ca4864cdfe06eaf70a0ec0d7191",
            ),
            (
                Cipher::Aes(32),
                "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
                aes,
                "8ea2b7ca516745bfeafc49904b496089",
            ),
            (
                Cipher::Tdes,
                "010101010101010101010101010101010101010101010101",
                "8000000000000000",
                "95f8a5e5dd31d900",
            ),
        ] {
            let [key, plain, encrypted] = [key, plain, encrypted].map(|hex| from_hex(hex).unwrap());
            let mut block = plain.clone();
            cipher.apply(Direction::Encrypt, &key, &mut block).unwrap();
            assert_eq!(block, encrypted, "{}", cipher.name());
            cipher.apply(Direction::Decrypt, &key, &mut block).unwrap();
            assert_eq!(block, plain, "{}", cipher.name());
            assert!(
                cipher
                    .apply(Direction::Encrypt, &key, &mut [0; 3])
                    .is_none()
            );
            assert!(
                cipher
                    .apply(Direction::Encrypt, &[0; 5], &mut block)
                    .is_none()
            );
        }
    }

    #[test]
    fn a_key_is_read_as_people_write_it() {
        let key = Some(vec![0x01, 0xab, 0xcd]);
        for text in [
            "01abcd",
            "01ABCD",
            "0x01abcd",
            "0X01ABCD",
            "01:ab:cd",
            "01 AB CD\n",
            "0x01-ab-cd",
            " 01ab\tcd ",
        ] {
            assert_eq!(parse_key(text).map(|key| key.to_vec()), key, "{text:?}");
        }
        for text in ["01abc", "xx", "0y01", "01,ab", "0x0x01"] {
            assert!(parse_key(text).is_none(), "{text:?}");
        }
    }

    /// A card that has `key` and speaks the protocol; `honest` or not.
    struct Peer {
        cipher: Cipher,
        key: Vec<u8>,
        witness: Vec<u8>,
        honest: bool,
    }

    impl Transport for Peer {
        fn transmit(&mut self, apdu: &[u8]) -> Result<Vec<u8>, Lost> {
            let data = &apdu[5..apdu.len() - 1];
            let template = tlv::find(data, 0x7c).unwrap();
            let mut block;
            let tag = match tlv::find(template, 0x81) {
                None => {
                    block = self.witness.clone();
                    0x80
                }
                Some(challenge) => {
                    if tlv::find(template, 0x80).unwrap() != self.witness {
                        return Ok(vec![0x69, 0x82]);
                    }
                    block = challenge.to_vec();
                    0x82
                }
            };
            (self.cipher)
                .apply(Direction::Encrypt, &self.key, &mut block)
                .unwrap();
            block[0] ^= u8::from(!self.honest && tag == 0x82);
            let mut reply = tlv::encode(0x7c, &tlv::encode(tag, &block)).to_vec();
            reply.extend_from_slice(&[0x90, 0x00]);
            Ok(reply)
        }

        fn reset(self: Box<Self>) -> Result<(), Lost> {
            Ok(())
        }
    }

    #[test]
    fn both_sides_show_that_they_have_the_key() {
        for cipher in [
            Cipher::Tdes,
            Cipher::Aes(16),
            Cipher::Aes(24),
            Cipher::Aes(32),
        ] {
            let key: Vec<u8> = (0..cipher.key_length() as u8).map(|i| 2 * i).collect();
            let peer = |honest| Peer {
                cipher,
                key: key.clone(),
                witness: vec![0x5a; cipher.block_length()],
                honest,
            };
            let call = Call::unlimited();
            let attempt = |mut peer: Peer, key: &[u8]| {
                authenticate(&mut Card::new(&mut peer, &call), cipher, key, &token())
            };
            attempt(peer(true), &key).unwrap();
            let mut other = key.clone();
            other[5] ^= 0x10;
            for refused in [
                attempt(peer(true), &other),
                attempt(peer(false), &key),
                attempt(peer(true), &key[1..]),
            ] {
                assert!(matches!(
                    refused,
                    Err(Fault::Ours(Error::ManagementKeyWrong { .. }))
                ));
            }
        }
    }

    proptest! {
        #[test]
        fn no_witness_panics(reply: Vec<u8>) {
            let call = Call::unlimited();
            let reply = [&reply[..], &[0x90, 0x00]].concat();
            let wrapped = tlv::encode(0x7c, &tlv::encode(0x80, &reply));
            for reply in [&reply[..], &[&wrapped[..], &[0x90, 0x00]].concat()] {
                let mut script = Script::always(reply);
                let mut card = Card::new(&mut script, &call);
                prop_assert!(authenticate(&mut card, Cipher::Tdes, &FACTORY_DEFAULT, &token()).is_err());
            }
        }
    }
}
