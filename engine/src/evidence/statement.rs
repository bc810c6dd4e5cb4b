//! The encoding of statements, which are what is signed.
//!
//! | field of a grant | |
//! | --- | --- |
//! | domain | `claviger reads-for grant v2` |
//! | number | 16 random bytes |
//! | end | empty, or seconds since the beginning of 1970 as eight bytes, big-endian: at most [`Terms::LATEST`] |
//! | reader's name | UTF-8 |
//! | reader's signing key, reader's decryption key | each empty, or *algorithm* and *key* |
//! | name, signing key, decryption key of whom it reads for | likewise |
//!
//! | field of a revocation | |
//! | --- | --- |
//! | domain | `claviger reads-for revocation v2` |
//! | what is revoked | the SHA-256 of the statement |
//! | whose it is | *algorithm* and *key* |
//!
//! Every field, and within a key the algorithm's name and the key's
//! [bytes](PublicKey::as_bytes), is preceded by its length in bytes as four bytes,
//! big-endian. So no two statements have the same encoding. Version 1 had the domain
//! `claviger reads-for evidence v1`, and neither number nor end.
//!
//! Every domain begins with `claviger reads-for `. No Commitment engine signs a raw message that
//! has this after four bytes ([`Purpose`](crate::Purpose)).

use claviger_token::{Algorithm, PublicKey};

use super::{Party, PublicKeys, Terms};
use crate::types::check_name;

/// The prefix of every domain, in this version and in those to come.
pub(crate) const DOMAINS: &[u8] = b"claviger reads-for ";

const GRANT_V1: &[u8] = b"claviger reads-for evidence v1";
const GRANT: &[u8] = b"claviger reads-for grant v2";
const REVOCATION: &[u8] = b"claviger reads-for revocation v2";

/// A signed statement about who reads for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Statement {
    /// A grant: one identity reads for another, which signs this.
    Grant {
        /// The reader.
        from: Party,
        /// The identity that it reads for.
        to: Party,
        /// The terms.
        terms: Terms,
    },
    /// A revocation of a statement.
    Revocation {
        /// The SHA-256 of the statement.
        statement: [u8; 32],
        /// The key that signed it.
        by: PublicKey,
    },
}

impl Statement {
    /// The signed bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Statement::Grant { from, to, terms } => grant(from, to, terms),
            Statement::Revocation { statement, by } => {
                let mut bytes = Vec::new();
                push(&mut bytes, REVOCATION);
                push(&mut bytes, statement);
                push(&mut bytes, &encoded(by));
                bytes
            }
        }
    }

    /// Parses the output of [`Statement::to_bytes`], but no statement of version 1.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence in lower case.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let parsed = Fields(bytes)
            .statement()
            .ok_or("it is not a statement of this kind")?;
        // Of what is read leniently there is another encoding.
        match parsed.to_bytes() == bytes {
            true => Ok(parsed),
            false => Err("its encoding is not canonical"),
        }
    }

    /// The key that must sign it.
    pub fn signer(&self) -> Option<&PublicKey> {
        match self {
            Statement::Grant { to, .. } => to.keys.sign.as_ref(),
            Statement::Revocation { by, .. } => Some(by),
        }
    }
}

pub(super) fn grant(from: &Party, to: &Party, terms: &Terms) -> Vec<u8> {
    let mut bytes = Vec::new();
    match terms {
        Terms::V1 => push(&mut bytes, GRANT_V1),
        Terms::V2 { number, until } => {
            push(&mut bytes, GRANT);
            push(&mut bytes, number);
            let end = until.map(u64::to_be_bytes);
            push(&mut bytes, end.as_ref().map_or(&[], |end| &end[..]));
        }
    }
    for party in [from, to] {
        push(&mut bytes, party.name.as_bytes());
        party.keys.encode(&mut bytes);
    }
    bytes
}

fn encoded(key: &PublicKey) -> Vec<u8> {
    let mut field = Vec::new();
    push(&mut field, key.algorithm().name().as_bytes());
    push(&mut field, key.as_bytes());
    field
}

/// A field: its length, and itself.
pub(super) fn push(to: &mut Vec<u8>, field: &[u8]) {
    // Names and keys are far shorter than 4 GiB.
    let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(field);
}

/// The bytes that are left to parse.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (field, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    fn statement(mut self) -> Option<Statement> {
        let statement = match self.next()? {
            GRANT => {
                let number = self.next()?.try_into().ok()?;
                let until = match self.next()? {
                    [] => None,
                    end => Some(u64::from_be_bytes(end.try_into().ok()?)),
                };
                let terms = Terms::V2 { number, until };
                if !terms.are_possible() {
                    return None;
                }
                Statement::Grant {
                    from: self.party()?,
                    to: self.party()?,
                    terms,
                }
            }
            REVOCATION => Statement::Revocation {
                statement: self.next()?.try_into().ok()?,
                by: key(self.next()?)?,
            },
            _ => return None,
        };
        self.0.is_empty().then_some(statement)
    }

    fn party(&mut self) -> Option<Party> {
        let name = std::str::from_utf8(self.next()?).ok()?;
        check_name(name).ok()?;
        let mut optional = || match self.next()? {
            [] => Some(None),
            field => Some(Some(key(field)?)),
        };
        let keys = PublicKeys {
            sign: optional()?,
            decrypt: optional()?,
        };
        let name = name.into();
        Some(Party { name, keys })
    }
}

fn key(field: &[u8]) -> Option<PublicKey> {
    let mut fields = Fields(field);
    let algorithm = std::str::from_utf8(fields.next()?).ok()?;
    let algorithm: Algorithm = algorithm.parse().ok()?;
    let key = PublicKey::from_bytes(algorithm, fields.next()?).ok()?;
    fields.0.is_empty().then_some(key)
}
