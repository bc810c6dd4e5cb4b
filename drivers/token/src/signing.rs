//! Signatures: with which scheme, and in which encodings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Algorithm;

/// How a message becomes a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SignatureScheme {
    /// Ed25519 (RFC 8032 §5.1.6), pure. 64 bytes.
    Ed25519,
    /// ECDSA over P-256 with SHA-256 (FIPS 186-5). r and s, 32 bytes each, big-endian.
    EcdsaP256Sha256,
    /// ECDSA over P-384 with SHA-384. r and s, 48 bytes each, big-endian.
    EcdsaP384Sha384,
    /// ECDSA over secp256k1 with SHA-256 and a low s. r and s, 32 bytes each, big-endian.
    EcdsaSecp256k1Sha256,
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017 §8.2). As long as the modulus.
    RsaPkcs1Sha256,
    /// The basic BLS scheme, signatures in G2, compressed, 96 bytes
    /// (draft-irtf-cfrg-bls-signature, `BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_NUL_`).
    Bls12381G2Basic,
}

impl SignatureScheme {
    const ALL: [SignatureScheme; 6] = [
        SignatureScheme::Ed25519,
        SignatureScheme::EcdsaP256Sha256,
        SignatureScheme::EcdsaP384Sha384,
        SignatureScheme::EcdsaSecp256k1Sha256,
        SignatureScheme::RsaPkcs1Sha256,
        SignatureScheme::Bls12381G2Basic,
    ];

    /// The name in JSON and in text.
    pub fn name(self) -> &'static str {
        match self {
            SignatureScheme::Ed25519 => "ed25519",
            SignatureScheme::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            SignatureScheme::EcdsaP384Sha384 => "ecdsa-p384-sha384",
            SignatureScheme::EcdsaSecp256k1Sha256 => "ecdsa-secp256k1-sha256",
            SignatureScheme::RsaPkcs1Sha256 => "rsa-pkcs1-sha256",
            SignatureScheme::Bls12381G2Basic => "bls12-381-g2-basic",
        }
    }

    /// The scheme with which tokens sign for keys of `algorithm`; `None` for X25519.
    pub fn of(algorithm: Algorithm) -> Option<Self> {
        match algorithm {
            Algorithm::Ed25519 => Some(SignatureScheme::Ed25519),
            Algorithm::P256 => Some(SignatureScheme::EcdsaP256Sha256),
            Algorithm::P384 => Some(SignatureScheme::EcdsaP384Sha384),
            Algorithm::Secp256k1 => Some(SignatureScheme::EcdsaSecp256k1Sha256),
            Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => {
                Some(SignatureScheme::RsaPkcs1Sha256)
            }
            Algorithm::Bls12381 => Some(SignatureScheme::Bls12381G2Basic),
            Algorithm::X25519 => None,
        }
    }
}

impl fmt::Display for SignatureScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SignatureScheme {
    type Err = BadSignature;

    /// Parses a [name](SignatureScheme::name).
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        SignatureScheme::ALL
            .into_iter()
            .find(|x| x.name() == s)
            .ok_or(BadSignature)
    }
}

/// A signature together with the scheme it was made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    scheme: SignatureScheme,
    bytes: Vec<u8>,
}

impl Signature {
    /// Takes the bytes in the form that the [scheme](SignatureScheme) describes.
    ///
    /// # Errors
    /// [`BadSignature`] where the length cannot be right.
    pub fn new(scheme: SignatureScheme, bytes: Vec<u8>) -> Result<Self, BadSignature> {
        let fits = match scheme {
            SignatureScheme::Ed25519
            | SignatureScheme::EcdsaP256Sha256
            | SignatureScheme::EcdsaSecp256k1Sha256 => bytes.len() == 64,
            SignatureScheme::EcdsaP384Sha384 | SignatureScheme::Bls12381G2Basic => {
                bytes.len() == 96
            }
            SignatureScheme::RsaPkcs1Sha256 => matches!(bytes.len(), 256 | 384 | 512),
        };
        if fits {
            Ok(Signature { scheme, bytes })
        } else {
            Err(BadSignature)
        }
    }

    /// Takes an ECDSA signature in DER (`ECDSA-Sig-Value`, RFC 3279 §2.2.3), or any
    /// other in its usual encoding.
    ///
    /// # Errors
    /// [`BadSignature`] where it is no such DER.
    pub fn from_der(scheme: SignatureScheme, der: &[u8]) -> Result<Self, BadSignature> {
        let bytes = match scheme {
            SignatureScheme::EcdsaP256Sha256 => p256::ecdsa::Signature::from_der(der)
                .map_err(|_| BadSignature)?
                .to_bytes()
                .to_vec(),
            SignatureScheme::EcdsaSecp256k1Sha256 => k256::ecdsa::Signature::from_der(der)
                .map_err(|_| BadSignature)?
                .to_bytes()
                .to_vec(),
            SignatureScheme::EcdsaP384Sha384 => p384::ecdsa::Signature::from_der(der)
                .map_err(|_| BadSignature)?
                .to_bytes()
                .to_vec(),
            _ => der.to_vec(),
        };
        Signature::new(scheme, bytes)
    }

    /// The scheme.
    pub fn scheme(&self) -> SignatureScheme {
        self.scheme
    }

    /// The bytes, in the form that the [scheme](SignatureScheme) describes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// ECDSA as `ECDSA-Sig-Value` in DER (RFC 3279 §2.2.3), which is what `openssl`
    /// reads; every other scheme has one encoding and gives [`Signature::as_bytes`].
    ///
    /// # Errors
    /// [`BadSignature`] where r or s is zero or not below the order of the group.
    pub fn to_der(&self) -> Result<Vec<u8>, BadSignature> {
        let bad = |_| BadSignature;
        Ok(match self.scheme {
            SignatureScheme::EcdsaP256Sha256 => p256::ecdsa::Signature::from_slice(&self.bytes)
                .map_err(bad)?
                .to_der()
                .as_bytes()
                .to_vec(),
            SignatureScheme::EcdsaSecp256k1Sha256 => {
                k256::ecdsa::Signature::from_slice(&self.bytes)
                    .map_err(bad)?
                    .to_der()
                    .as_bytes()
                    .to_vec()
            }
            SignatureScheme::EcdsaP384Sha384 => p384::ecdsa::Signature::from_slice(&self.bytes)
                .map_err(bad)?
                .to_der()
                .as_bytes()
                .to_vec(),
            _ => self.bytes.clone(),
        })
    }
}

/// The bytes are no signature, or not one of this key over this message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid signature")]
pub struct BadSignature;
