//! Recipients and identities of the age plugin `claviger`, as text.
//!
//! Both hold a public key: nobody needs a token or a daemon to encrypt, and a file shows whether it
//! is for an identity. Their data is:
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 1 | the form of the key: 1 is X25519, 2 a compressed point of P-256, 3 the DER of an RSA key's SubjectPublicKeyInfo |
//! | 2 | the length of the key, big-endian |
//! | | the key |
//! | the rest | of an identity its name, as UTF-8, by which it is looked for first; may be empty |
//!
//! An identity without any data is [`Identity::Unattended`].

use age_core::primitives::{bech32_decode, bech32_encode};
use bech32::Hrp;
use claviger_token::{Algorithm, PublicKey};

use crate::envelope::compressed;

const RECIPIENT: &str = "age1claviger";
const IDENTITY: &str = "AGE-PLUGIN-CLAVIGER-";

/// The longest name in an identity, in bytes.
const LONGEST_NAME: usize = 128;

/// An identity of the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// Any whose token is unlocked and needs no person: what `age -d -j claviger` means.
    Unattended,
    /// The one with this key.
    Key {
        /// The public key of the key that decrypts.
        key: PublicKey,
        /// What the identity was called when this was written; may be empty.
        name: String,
    },
}

/// The text is no recipient or identity of the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadText {
    /// It is not Bech32, or of another plugin.
    #[error("it does not begin with `{expected}1`, or was altered")]
    Other {
        /// How it would begin.
        expected: &'static str,
    },
    /// What is in it is malformed, or of a later version.
    #[error("the key in it is malformed, or of a later version")]
    Malformed,
}

/// The recipient for a key; `None` if the key cannot be encrypted to.
pub fn recipient_text(key: &PublicKey) -> Option<String> {
    Some(bech32_encode(
        Hrp::parse_unchecked(RECIPIENT),
        &encode(key)?,
    ))
}

/// The identity with a key; `None` if the key cannot be encrypted to.
pub fn identity_text(key: &PublicKey, name: &str) -> Option<String> {
    let mut data = encode(key)?;
    data.extend_from_slice(name.as_bytes());
    let text = bech32_encode(Hrp::parse_unchecked(IDENTITY), &data);
    Some(text.to_ascii_uppercase())
}

/// The key of a recipient.
///
/// # Errors
/// [`BadText`].
pub fn parse_recipient(text: &str) -> Result<PublicKey, BadText> {
    match decode(&data(text, RECIPIENT)?)? {
        (key, []) => Ok(key),
        _ => Err(BadText::Malformed),
    }
}

/// An identity.
///
/// # Errors
/// [`BadText`].
pub fn parse_identity(text: &str) -> Result<Identity, BadText> {
    let data = data(text, IDENTITY)?;
    if data.is_empty() {
        return Ok(Identity::Unattended);
    }
    let (key, name) = decode(&data)?;
    let name = std::str::from_utf8(name).map_err(|_| BadText::Malformed)?;
    match name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
        true => Err(BadText::Malformed),
        false => Ok(Identity::Key {
            key,
            name: name.to_owned(),
        }),
    }
}

fn data(text: &str, expected: &'static str) -> Result<Vec<u8>, BadText> {
    let other = BadText::Other { expected };
    bech32_decode(
        text,
        |_| other,
        |hrp| match hrp.as_str() == expected {
            true => Ok(()),
            false => Err(other),
        },
        |_, bytes| Ok(bytes.collect()),
    )
}

fn encode(key: &PublicKey) -> Option<Vec<u8>> {
    let (form, bytes) = match key.algorithm() {
        Algorithm::X25519 => (1, key.as_bytes().to_vec()),
        Algorithm::P256 => (2, compressed(key)?),
        Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => (3, key.to_der()?),
        _ => return None,
    };
    let mut data = vec![form];
    data.extend_from_slice(&u16::try_from(bytes.len()).ok()?.to_be_bytes());
    data.extend_from_slice(&bytes);
    Some(data)
}

/// The key, and what follows it.
fn decode(data: &[u8]) -> Result<(PublicKey, &[u8]), BadText> {
    let (&[form, high, low], rest) = data.split_first_chunk().ok_or(BadText::Malformed)?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let (bytes, rest) = rest.split_at_checked(length).ok_or(BadText::Malformed)?;
    let key = match form {
        1 => PublicKey::from_bytes(Algorithm::X25519, bytes),
        2 => PublicKey::from_bytes(Algorithm::P256, bytes),
        3 => PublicKey::from_der(bytes),
        _ => return Err(BadText::Malformed),
    };
    let key = key.map_err(|_| BadText::Malformed)?;
    // One key has one text.
    let is_it = encode(&key).is_some_and(|again| again == data[..3 + length]);
    is_it.then_some((key, rest)).ok_or(BadText::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> [PublicKey; 2] {
        let p256 = p256::SecretKey::from_slice(&[7; 32]).unwrap().public_key();
        [
            PublicKey::from_bytes(Algorithm::P256, &p256.to_sec1_bytes()).unwrap(),
            PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap(),
        ]
    }

    #[test]
    fn a_recipient_and_an_identity_read_back() {
        for key in keys() {
            let recipient = recipient_text(&key).unwrap();
            assert!(recipient.starts_with("age1claviger1"), "{recipient}");
            assert_eq!(parse_recipient(&recipient), Ok(key.clone()));
            for name in ["", "alice", "Zoë of the vault"] {
                let text = identity_text(&key, name).unwrap();
                assert!(text.starts_with("AGE-PLUGIN-CLAVIGER-1"), "{text}");
                let (key, name) = (key.clone(), name.to_owned());
                assert_eq!(parse_identity(&text), Ok(Identity::Key { key, name }));
            }
        }
    }

    #[test]
    fn an_identity_without_data_is_whichever_needs_no_person() {
        let empty = bech32_encode(Hrp::parse_unchecked(IDENTITY), &[]).to_uppercase();
        assert_eq!(parse_identity(&empty), Ok(Identity::Unattended));
    }

    #[test]
    fn what_was_altered_or_has_another_length_is_refused() {
        let [key, _] = keys();
        let good = encode(&key).unwrap();
        let text = |data: &[u8]| bech32_encode(Hrp::parse_unchecked(RECIPIENT), data);
        assert!(parse_recipient(&text(&good)).is_ok());
        let mut lying = good.clone();
        lying[2] += 1;
        let mut longer = good.clone();
        longer.push(0);
        let mut other = good.clone();
        other[0] = 9;
        let uncompressed = [&[2, 0, 65], key.as_bytes()].concat();
        for bad in [
            &[][..],
            &good[..2],
            &good[..9],
            &lying,
            &longer,
            &other,
            &uncompressed,
        ] {
            assert_eq!(
                parse_recipient(&text(bad)),
                Err(BadText::Malformed),
                "{bad:?}"
            );
        }
        let altered = text(&good).replacen('q', "p", 1);
        for other in ["", "age1", "age1yubikey1qqqq", &*altered] {
            assert!(
                matches!(parse_recipient(other), Err(BadText::Other { .. })),
                "{other}"
            );
        }
    }

    #[test]
    fn a_name_that_no_identity_has_is_refused() {
        let [key, _] = keys();
        for name in ["\u{1b}[31m", &"a".repeat(129)] {
            let text = identity_text(&key, name).unwrap();
            assert_eq!(parse_identity(&text), Err(BadText::Malformed), "{name:?}");
        }
    }

    #[test]
    fn a_key_that_only_signs_has_neither() {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key();
        let key = PublicKey::from_bytes(Algorithm::Ed25519, key.as_bytes()).unwrap();
        assert_eq!(
            (recipient_text(&key), identity_text(&key, "a")),
            (None, None)
        );
    }
}
