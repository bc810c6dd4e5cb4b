//! Evidence that one identity reads for another, revocations of it, and the text in which
//! both travel.
//!
//! *A reads for B*: whoever holds A's decryptor can decrypt what is encrypted to B. B signs this
//! with its signing key, over the keys and the names of both, a random number and, if there is
//! one, an end ([`Statement`] has the encoding). B can revoke it: a [`Revocation`] names one
//! statement by its digest. A later grant has another number, so the revocation does not cover it.
//!
//! Evidence is about keys: an identity that was deleted and made again has other keys, and none
//! of the old evidence.
//!
//! Statements of version 1 had neither number nor end, and could be obtained as the signature of a
//! document. They are kept, and never relied on.

mod statement;
mod text;

use std::time::{SystemTime, UNIX_EPOCH};

use claviger_token::{PublicKey, Signature};
use rand_core::{OsRng, RngCore};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::EngineName;
use crate::types::check_name;

pub(crate) use self::statement::DOMAINS;
pub use self::statement::Statement;
use self::statement::push;
pub use self::text::{EvidenceFile, from_text, to_text};

/// The public keys that identify an identity: at most one for each use.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PublicKeys {
    /// The signing key.
    pub sign: Option<PublicKey>,
    /// The encryption key.
    pub decrypt: Option<PublicKey>,
}

impl PublicKeys {
    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.sign.is_none() && self.decrypt.is_none()
    }

    /// Whether these cannot be the keys of one identity: for some use both have a key, and the keys
    /// differ.
    pub fn contradict(&self, other: &PublicKeys) -> bool {
        let differ = |a: &Option<PublicKey>, b: &Option<PublicKey>| match (a, b) {
            (Some(a), Some(b)) => a != b,
            _ => false,
        };
        differ(&self.sign, &other.sign) || differ(&self.decrypt, &other.decrypt)
    }

    /// The decryption key alone: a grant to it holds for whoever has the key.
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

/// An identity by its name and public keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// Its name.
    pub name: EngineName,
    /// Its public keys.
    pub keys: PublicKeys,
}

/// The current time in seconds since the beginning of 1970 (UTC). If the clock is before 1970 it is
/// [`u64::MAX`], so that no grant with an end counts.
pub fn now() -> u64 {
    seconds(SystemTime::now())
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(u64::MAX, |since| since.as_secs())
}

/// The terms of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Terms {
    /// None: the grant is of version 1 and not relied on.
    V1,
    /// Version 2.
    V2 {
        /// A random number that makes the grant unique.
        number: [u8; 16],
        /// The end, in seconds since the beginning of 1970 (UTC), at most [`Terms::LATEST`]. `None`:
        /// no end.
        until: Option<u64>,
    },
}

impl Terms {
    /// The latest possible end: SQLite's integers are signed.
    pub const LATEST: u64 = i64::MAX as u64;

    /// Terms of a new grant, with a unique number.
    pub fn new(until: Option<u64>) -> Self {
        let mut number = [0; 16];
        OsRng.fill_bytes(&mut number);
        let until = until.map(|end| end.min(Terms::LATEST));
        Terms::V2 { number, until }
    }

    /// Whether the terms are valid: an end is at most [`Terms::LATEST`].
    pub(crate) fn are_possible(&self) -> bool {
        match self {
            Terms::V1 => true,
            Terms::V2 { until, .. } => until.is_none_or(|end| end <= Terms::LATEST),
        }
    }

    /// Whether a grant with these terms counts at a time, unless it is revoked.
    pub fn hold_at(&self, moment: u64) -> bool {
        match self {
            Terms::V1 => false,
            Terms::V2 { until, .. } => until.is_none_or(|end| moment < end),
        }
    }
}

/// The statement that `to` signs as evidence that `from` reads for `to`.
pub fn statement(from: &Party, to: &Party, terms: &Terms) -> Vec<u8> {
    statement::grant(from, to, terms)
}

/// Evidence that one identity reads for another. Do not rely on it before it is
/// [verified](Evidence::verify). Verified evidence may have ended or be revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "text::Piece", into = "text::Piece")]
pub struct Evidence {
    /// The reader.
    pub from_identity: Party,
    /// The identity that it reads for, which grants it.
    pub to_identity: Party,
    /// The terms.
    pub terms: Terms,
    /// The signature of `to_identity` over the [statement].
    pub proof: Signature,
}

impl Evidence {
    /// Checks that `to_identity` signed exactly this.
    ///
    /// # Errors
    /// [`BadEvidence`] with what is wrong.
    pub fn verify(&self) -> Result<(), BadEvidence> {
        for party in [&self.from_identity, &self.to_identity] {
            check_name(&party.name).map_err(BadEvidence::Name)?;
        }
        if !self.terms.are_possible() {
            return Err(BadEvidence::Malformed);
        }
        if self.from_identity.keys.is_empty() {
            return Err(BadEvidence::NoReader);
        }
        let signer = self.to_identity.keys.sign.as_ref();
        let signer = signer.ok_or(BadEvidence::NoSigner)?;
        signer
            .verify(&self.statement(), &self.proof)
            .map_err(|_| BadEvidence::Signature)
    }

    /// Whether it verifies and counts now, unless it is revoked.
    pub(crate) fn holds_at(&self, moment: u64) -> bool {
        self.reader_can_decrypt() && self.terms.hold_at(moment) && self.verify().is_ok()
    }

    /// Whether the reader has a decryption key. Without one it reads for nobody.
    pub(crate) fn reader_can_decrypt(&self) -> bool {
        self.from_identity.keys.decrypt.is_some()
    }

    /// The signed statement.
    pub fn statement(&self) -> Vec<u8> {
        statement(&self.from_identity, &self.to_identity, &self.terms)
    }

    /// The SHA-256 of the statement. Two pieces with the same digest say the same. A [`Revocation`]
    /// names it.
    pub fn statement_id(&self) -> [u8; 32] {
        Sha256::digest(self.statement()).into()
    }
}

/// A revocation of a grant, signed by the key that made the grant. Do not rely on it before it is
/// [verified](Revocation::verify).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "text::RevocationText", into = "text::RevocationText")]
pub struct Revocation {
    /// The [digest](Evidence::statement_id) of the revoked statement.
    pub statement: [u8; 32],
    /// The key that signed the statement. Signed by another key, it revokes nothing.
    pub by: PublicKey,
    /// The signature of that key.
    pub proof: Signature,
}

impl Revocation {
    /// Checks that the key signed exactly this.
    ///
    /// # Errors
    /// [`BadEvidence::Signature`].
    pub fn verify(&self) -> Result<(), BadEvidence> {
        let statement = Statement::Revocation {
            statement: self.statement,
            by: self.by.clone(),
        };
        self.by
            .verify(&statement.to_bytes(), &self.proof)
            .map_err(|_| BadEvidence::Signature)
    }
}

/// What is wrong with a piece of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadEvidence {
    /// The text is malformed or of another version, or its end is after [`Terms::LATEST`].
    #[error("it is malformed")]
    Malformed,
    /// An invalid name.
    #[error("it contains an invalid name: {0}")]
    Name(&'static str),
    /// The reader has no keys.
    #[error("its reader has no keys")]
    NoReader,
    /// The granting identity has no signing key, so it cannot have signed this.
    #[error("its granter has no signing key")]
    NoSigner,
    /// The granting identity did not sign these names and keys.
    #[error("its signature does not verify over these names and keys")]
    Signature,
    /// A name in it belongs to an identity or a contact here with other keys.
    #[error("a name in it belongs to other keys here")]
    OtherKeys,
}

impl BadEvidence {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            BadEvidence::Malformed => "evidence-malformed",
            BadEvidence::Name(_) => "evidence-bad-name",
            BadEvidence::NoReader => "evidence-no-reader",
            BadEvidence::NoSigner => "evidence-no-signer",
            BadEvidence::Signature => "evidence-bad-signature",
            BadEvidence::OtherKeys => "evidence-other-keys",
        }
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
                for terms in [
                    Terms::V1,
                    Terms::new(None),
                    Terms::new(None),
                    Terms::new(Some(7)),
                ] {
                    let said = statement(from, to, &terms);
                    assert!(seen.insert(said), "{from:?} {to:?} {terms:?}");
                }
            }
        }
    }

    #[test]
    fn a_grant_counts_up_to_its_end_and_one_of_version_1_never() {
        let ends = Terms::new(Some(100));
        assert_eq!(
            [99, 100, 101].map(|at| ends.hold_at(at)),
            [true, false, false]
        );
        assert!(Terms::new(None).hold_at(u64::MAX));
        assert!(!Terms::V1.hold_at(0));
    }

    #[test]
    fn by_a_clock_before_1970_no_grant_with_an_end_counts() {
        let second = std::time::Duration::from_secs(1);
        assert_eq!(seconds(UNIX_EPOCH + second), 1);
        let before = seconds(UNIX_EPOCH - second);
        for end in [1, Terms::LATEST] {
            assert!(!Terms::new(Some(end)).hold_at(before), "{end}");
        }
        assert!(Terms::new(None).hold_at(before));
    }

    #[test]
    fn a_statement_reads_back_and_nothing_else_is_one() {
        let to = party("b", Some(3), None);
        for until in [None, Some(0), Some(Terms::LATEST)] {
            let from = party("a", None, Some(2));
            let terms = Terms::new(until);
            let said = statement(&from, &to, &terms);
            let read = Statement::parse(&said).unwrap();
            assert_eq!(read.to_bytes(), said);
            assert_eq!(read.signer(), to.keys.sign.as_ref());
            for end in 0..said.len() {
                assert!(Statement::parse(&said[..end]).is_err(), "{end}");
            }
            assert!(Statement::parse(&[&said[..], b"."].concat()).is_err());
            for at in 0..said.len() {
                let mut altered = said.clone();
                altered[at] ^= 0x80;
                if let Ok(other) = Statement::parse(&altered) {
                    assert_eq!(other.to_bytes(), altered, "{at}");
                }
            }
        }
        let old = statement(&party("a", Some(1), None), &to, &Terms::V1);
        assert!(Statement::parse(&old).is_err());
        let revocation = Statement::Revocation {
            statement: [7; 32],
            by: to.keys.sign.unwrap(),
        };
        assert_eq!(Statement::parse(&revocation.to_bytes()), Ok(revocation));
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
            r#"{"claviger_evidence":3,"evidence":[]}"#,
            r#"{"claviger_evidence":1,"evidence":[],"revocations":[{}]}"#,
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
        let empty = to_text(&EvidenceFile::default()).unwrap();
        assert_eq!(from_text(empty.as_bytes()), Ok(EvidenceFile::default()));
        let old = br#"{"claviger_evidence":1,"evidence":[]}"#;
        assert_eq!(from_text(old), Ok(EvidenceFile::default()));
    }
}
