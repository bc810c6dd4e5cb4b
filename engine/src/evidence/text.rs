//! The text form of evidence and revocations, for other machines: JSON.

use claviger_token::key::{from_hex, to_hex};
use claviger_token::{PublicKey, Signature, SignatureScheme};
use serde::{Deserialize, Serialize};

use super::{BadEvidence, Evidence, Party, PublicKeys, Revocation, Terms};

/// The version that is written; earlier ones are read.
const VERSION: u32 = 2;

/// The content of a file of evidence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EvidenceFile {
    /// The evidence.
    pub evidence: Vec<Evidence>,
    /// Revocations of that or of other evidence.
    pub revocations: Vec<Revocation>,
}

impl From<Vec<Evidence>> for EvidenceFile {
    fn from(evidence: Vec<Evidence>) -> Self {
        EvidenceFile {
            evidence,
            revocations: Vec::new(),
        }
    }
}

#[derive(Serialize)]
struct FileOut<'a> {
    claviger_evidence: u32,
    evidence: &'a [Evidence],
    revocations: &'a [Revocation],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileIn {
    claviger_evidence: u32,
    evidence: Vec<Evidence>,
    #[serde(default)]
    revocations: Vec<Revocation>,
}

/// The text of a file.
///
/// # Errors
/// [`BadEvidence::Malformed`], which does not occur if names are text.
pub fn to_text(file: &EvidenceFile) -> Result<String, BadEvidence> {
    let file = FileOut {
        claviger_evidence: VERSION,
        evidence: &file.evidence,
        revocations: &file.revocations,
    };
    let mut text = serde_json::to_string_pretty(&file).map_err(|_| BadEvidence::Malformed)?;
    text.push('\n');
    Ok(text)
}

/// Parses the output of [`to_text`]. It verifies nothing.
///
/// # Errors
/// [`BadEvidence::Malformed`].
pub fn from_text(text: &[u8]) -> Result<EvidenceFile, BadEvidence> {
    let file: FileIn = serde_json::from_slice(text).map_err(|_| BadEvidence::Malformed)?;
    let is_old = |piece: &Evidence| piece.terms == Terms::V1;
    let fits = match file.claviger_evidence {
        1 => file.revocations.is_empty() && file.evidence.iter().all(is_old),
        version => version == VERSION,
    };
    match fits {
        true => Ok(EvidenceFile {
            evidence: file.evidence,
            revocations: file.revocations,
        }),
        false => Err(BadEvidence::Malformed),
    }
}

/// Evidence as one JSON object.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Piece {
    reader: PartyText,
    reads_for: PartyText,
    /// In hexadecimal; version 1 has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    number: Option<String>,
    /// Seconds since the beginning of 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
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

/// A revocation as one JSON object.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RevocationText {
    /// The SHA-256 of the statement, in hexadecimal.
    statement: String,
    /// The key as [`PublicKey::to_text`] writes it.
    by: String,
    scheme: SignatureScheme,
    signature: String,
}

fn signature(scheme: SignatureScheme, hex: &str) -> Result<Signature, BadEvidence> {
    let bytes = from_hex(hex).ok_or(BadEvidence::Malformed)?;
    Signature::new(scheme, bytes).map_err(|_| BadEvidence::Malformed)
}

fn fixed<const N: usize>(hex: &str) -> Result<[u8; N], BadEvidence> {
    let bytes = from_hex(hex).ok_or(BadEvidence::Malformed)?;
    bytes.try_into().map_err(|_| BadEvidence::Malformed)
}

fn key(text: &str) -> Result<PublicKey, BadEvidence> {
    PublicKey::from_text(text).map_err(|_| BadEvidence::Malformed)
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
        let key = |text: Option<String>| text.as_deref().map(key).transpose();
        Ok(Party {
            name: text.name.into(),
            keys: PublicKeys {
                sign: key(text.sign)?,
                decrypt: key(text.decrypt)?,
            },
        })
    }
}

impl From<Evidence> for Piece {
    fn from(evidence: Evidence) -> Self {
        let (number, until) = match evidence.terms {
            Terms::V1 => (None, None),
            Terms::V2 { number, until } => (Some(to_hex(&number)), until),
        };
        Piece {
            reader: evidence.from_identity.into(),
            reads_for: evidence.to_identity.into(),
            number,
            until,
            scheme: evidence.proof.scheme(),
            signature: to_hex(evidence.proof.as_bytes()),
        }
    }
}

impl TryFrom<Piece> for Evidence {
    type Error = BadEvidence;

    fn try_from(text: Piece) -> Result<Self, BadEvidence> {
        let terms = match (&text.number, text.until) {
            (None, None) => Terms::V1,
            (Some(number), until) => Terms::V2 {
                number: fixed(number)?,
                until,
            },
            (None, Some(_)) => return Err(BadEvidence::Malformed),
        };
        if !terms.are_possible() {
            return Err(BadEvidence::Malformed);
        }
        Ok(Evidence {
            from_identity: text.reader.try_into()?,
            to_identity: text.reads_for.try_into()?,
            terms,
            proof: signature(text.scheme, &text.signature)?,
        })
    }
}

impl From<Revocation> for RevocationText {
    fn from(revocation: Revocation) -> Self {
        RevocationText {
            statement: to_hex(&revocation.statement),
            by: revocation.by.to_text(),
            scheme: revocation.proof.scheme(),
            signature: to_hex(revocation.proof.as_bytes()),
        }
    }
}

impl TryFrom<RevocationText> for Revocation {
    type Error = BadEvidence;

    fn try_from(text: RevocationText) -> Result<Self, BadEvidence> {
        Ok(Revocation {
            statement: fixed(&text.statement)?,
            by: key(&text.by)?,
            proof: signature(text.scheme, &text.signature)?,
        })
    }
}
