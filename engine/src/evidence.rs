//! Evidence that one identity reads for another, and the text in which it travels.
//!
//! *A reads for B*: whoever holds A's decryptor can decrypt what is encrypted to B. It is
//! B that says so, with its signing key, over the keys and the names of both:
//!
//! | field | |
//! | --- | --- |
//! | domain | `claviger reads-for evidence v1` |
//! | reader's name | UTF-8 |
//! | reader's signing key, reader's decryption key | each empty, or *algorithm* and *key* |
//! | name, signing key, decryption key of whom it reads for | likewise |
//!
//! Every field, and within a key the algorithm's name and the key's
//! [bytes](PublicKey::as_bytes), is preceded by its length in bytes as four bytes,
//! big-endian. So no two statements have the same encoding, and nothing else that is
//! signed has one of these.
//!
//! Evidence is about keys: an identity that was deleted and made anew has other keys and
//! none of the old one's evidence.

use claviger_token::key::{from_hex, to_hex};
use claviger_token::{PublicKey, Signature, SignatureScheme};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::EngineName;
use crate::types::check_name;

const DOMAIN: &[u8] = b"claviger reads-for evidence v1";
/// The version of the text form.
const VERSION: u32 = 1;

/// The public keys by which an identity is known: one for each use, where it has one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PublicKeys {
    /// The key whose signatures are the identity's.
    pub sign: Option<PublicKey>,
    /// The key that one encrypts to.
    pub decrypt: Option<PublicKey>,
}

impl PublicKeys {
    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.sign.is_none() && self.decrypt.is_none()
    }

    /// Whether these cannot be the keys of the same identity: for some use both have a
    /// key, and not the same.
    pub fn contradict(&self, other: &PublicKeys) -> bool {
        let differ = |a: &Option<PublicKey>, b: &Option<PublicKey>| match (a, b) {
            (Some(a), Some(b)) => a != b,
            _ => false,
        };
        differ(&self.sign, &other.sign) || differ(&self.decrypt, &other.decrypt)
    }

    /// The decryption key alone: what was granted to it holds for whoever has it.
    pub(crate) fn decryptor(&self) -> PublicKeys {
        PublicKeys {
            sign: None,
            decrypt: self.decrypt.clone(),
        }
    }

    /// What stands for these keys among others.
    pub(crate) fn id(&self) -> KeysId {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        KeysId(Sha256::digest(bytes).into())
    }

    fn encode(&self, to: &mut Vec<u8>) {
        for key in [&self.sign, &self.decrypt] {
            let mut field = Vec::new();
            if let Some(key) = key {
                push(&mut field, key.algorithm().name().as_bytes());
                push(&mut field, key.as_bytes());
            }
            push(to, &field);
        }
    }
}

/// A digest over an identity's public keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KeysId(pub(crate) [u8; 32]);

/// An identity as others know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// Its name.
    pub name: EngineName,
    /// Its public keys.
    pub keys: PublicKeys,
}

impl Party {
    fn encode(&self, to: &mut Vec<u8>) {
        push(to, self.name.as_bytes());
        self.keys.encode(to);
    }
}

/// A field: its length, and itself.
fn push(to: &mut Vec<u8>, field: &[u8]) {
    // Names and keys are far shorter than 4 GiB.
    let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(field);
}

/// What has to be signed, by `to`, so that it is evidence that `from` reads for `to`.
pub fn statement(from: &Party, to: &Party) -> Vec<u8> {
    let mut bytes = Vec::new();
    push(&mut bytes, DOMAIN);
    from.encode(&mut bytes);
    to.encode(&mut bytes);
    bytes
}

/// Evidence that one identity reads for another. What is in it may be anything until it
/// is [verified](Evidence::verify).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub struct Evidence {
    /// Who reads.
    pub from_identity: Party,
    /// For whom; the one who says so.
    pub to_identity: Party,
    /// The signature of `to_identity` over the [statement].
    pub proof: Signature,
}

impl Evidence {
    /// Checks that `to_identity` signed just this.
    ///
    /// # Errors
    /// [`BadEvidence`] says what is wrong.
    pub fn verify(&self) -> Result<(), BadEvidence> {
        for party in [&self.from_identity, &self.to_identity] {
            check_name(&party.name).map_err(BadEvidence::Name)?;
        }
        if self.from_identity.keys.is_empty() {
            return Err(BadEvidence::NoReader);
        }
        let signer = self.to_identity.keys.sign.as_ref();
        let signer = signer.ok_or(BadEvidence::NoSigner)?;
        let statement = statement(&self.from_identity, &self.to_identity);
        signer
            .verify(&statement, &self.proof)
            .map_err(|_| BadEvidence::Signature)
    }

    /// A digest over the statement: two pieces with the same one say the same.
    pub(crate) fn statement_id(&self) -> [u8; 32] {
        Sha256::digest(statement(&self.from_identity, &self.to_identity)).into()
    }
}

/// What is wrong with a piece of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadEvidence {
    /// The text is none, or of another version.
    #[error("it is malformed")]
    Malformed,
    /// A name that cannot be one.
    #[error("a name in it cannot be one: {0}")]
    Name(&'static str),
    /// The reader has no keys.
    #[error("it is about a reader without keys")]
    NoReader,
    /// The identity that it is about has no key that signs, so nobody can have said it.
    #[error("it is about an identity without a key that signs")]
    NoSigner,
    /// The signature is not that of the identity that it is about, over these names and keys.
    #[error("the signature is not one over these names and keys")]
    Signature,
    /// A name in it belongs to an identity or a contact here that has other keys.
    #[error("it is about other keys than those that a name in it stands for here")]
    OtherKeys,
}

/// Evidence as it is written: one JSON object.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    reader: PartyText,
    reads_for: PartyText,
    /// The scheme of the signature, by its name.
    scheme: SignatureScheme,
    /// In hexadecimal.
    signature: String,
}

/// Keys as [`PublicKey::to_text`] writes them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartyText {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sign: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    decrypt: Option<String>,
}

impl From<Party> for PartyText {
    fn from(party: Party) -> Self {
        let text = |key: Option<PublicKey>| key.map(|key| key.to_text());
        PartyText {
            name: party.name.to_string(),
            sign: text(party.keys.sign),
            decrypt: text(party.keys.decrypt),
        }
    }
}

impl TryFrom<PartyText> for Party {
    type Error = BadEvidence;

    fn try_from(text: PartyText) -> Result<Self, BadEvidence> {
        let key = |text: Option<String>| {
            let key = text.as_deref().map(PublicKey::from_text);
            key.transpose().map_err(|_| BadEvidence::Malformed)
        };
        Ok(Party {
            name: text.name.into(),
            keys: PublicKeys {
                sign: key(text.sign)?,
                decrypt: key(text.decrypt)?,
            },
        })
    }
}

impl From<Evidence> for Text {
    fn from(evidence: Evidence) -> Self {
        Text {
            reader: evidence.from_identity.into(),
            reads_for: evidence.to_identity.into(),
            scheme: evidence.proof.scheme(),
            signature: to_hex(evidence.proof.as_bytes()),
        }
    }
}

impl TryFrom<Text> for Evidence {
    type Error = BadEvidence;

    fn try_from(text: Text) -> Result<Self, BadEvidence> {
        let signature = from_hex(&text.signature).ok_or(BadEvidence::Malformed)?;
        Ok(Evidence {
            from_identity: text.reader.try_into()?,
            to_identity: text.reads_for.try_into()?,
            proof: Signature::new(text.scheme, signature).map_err(|_| BadEvidence::Malformed)?,
        })
    }
}

#[derive(Serialize)]
struct FileOut<'a> {
    claviger_evidence: u32,
    evidence: &'a [Evidence],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileIn {
    claviger_evidence: u32,
    evidence: Vec<Evidence>,
}

/// The text in which evidence travels from machine to machine: JSON.
///
/// # Errors
/// [`BadEvidence::Malformed`] never, as far as names are text.
pub fn to_text(evidence: &[Evidence]) -> Result<String, BadEvidence> {
    let file = FileOut {
        claviger_evidence: VERSION,
        evidence,
    };
    let mut text = serde_json::to_string_pretty(&file).map_err(|_| BadEvidence::Malformed)?;
    text.push('\n');
    Ok(text)
}

/// Parses what [`to_text`] wrote. Nothing is verified yet.
///
/// # Errors
/// [`BadEvidence::Malformed`].
pub fn from_text(text: &[u8]) -> Result<Vec<Evidence>, BadEvidence> {
    let file: FileIn = serde_json::from_slice(text).map_err(|_| BadEvidence::Malformed)?;
    match file.claviger_evidence {
        VERSION => Ok(file.evidence),
        _ => Err(BadEvidence::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_token::Algorithm;

    fn keys(sign: Option<u8>, decrypt: Option<u8>) -> PublicKeys {
        // Any 32 bytes are an X25519 key, whatever they are used for here.
        let key = |byte| PublicKey::from_bytes(Algorithm::X25519, &[byte; 32]).unwrap();
        PublicKeys {
            sign: sign.map(key),
            decrypt: decrypt.map(key),
        }
    }

    fn party(name: &str, sign: Option<u8>, decrypt: Option<u8>) -> Party {
        Party {
            name: name.into(),
            keys: keys(sign, decrypt),
        }
    }

    #[test]
    fn no_two_statements_are_encoded_alike() {
        let parties = [
            party("a", Some(1), Some(2)),
            party("a", Some(2), Some(1)),
            party("a", Some(1), None),
            party("a", None, Some(1)),
            party("ab", Some(1), Some(2)),
            party("b", Some(1), Some(2)),
            party("", None, None),
        ];
        let mut seen = std::collections::HashSet::new();
        for from in &parties {
            for to in &parties {
                assert!(seen.insert(statement(from, to)), "{from:?} {to:?}");
            }
        }
    }

    #[test]
    fn keys_contradict_only_where_both_have_one() {
        let full = keys(Some(1), Some(2));
        for (other, contradicts) in [
            (keys(Some(1), Some(2)), false),
            (keys(None, Some(2)), false),
            (keys(Some(1), None), false),
            (keys(None, Some(1)), true),
            (keys(Some(1), Some(3)), true),
        ] {
            assert_eq!(full.contradict(&other), contradicts, "{other:?}");
        }
    }

    #[test]
    fn what_is_no_text_of_evidence_is_malformed() {
        let texts = [
            "",
            "{}",
            "[]",
            r#"{"claviger_evidence":2,"evidence":[]}"#,
            r#"{"claviger_evidence":1,"evidence":[{}]}"#,
            r#"{"claviger_evidence":1,"evidence":[],"more":1}"#,
        ];
        for text in texts {
            assert_eq!(
                from_text(text.as_bytes()),
                Err(BadEvidence::Malformed),
                "{text}"
            );
        }
        let empty = to_text(&[]).unwrap();
        assert_eq!(from_text(empty.as_bytes()), Ok(Vec::new()));
    }
}
