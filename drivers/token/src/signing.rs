//! Signatures: their schemes and encodings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha384, Sha512};
use sha3::Keccak256;

use crate::{Algorithm, Error};

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
    /// ECDSA over secp256k1 over an Ethereum personal message ([`eip191_digest`]), with a
    /// low s. r and s, 32 bytes each, big-endian.
    Eip191Secp256k1,
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017 §8.2). As long as the modulus.
    RsaPkcs1Sha256,
    /// The same with SHA-512, as OpenSSH signs by default (`rsa-sha2-512`, RFC 8332). Tokens make it
    /// where it is asked for: [`Signer::sign_in`](crate::Signer::sign_in).
    RsaPkcs1Sha512,
    /// The basic BLS scheme, signatures in G2, compressed, 96 bytes
    /// (draft-irtf-cfrg-bls-signature, `BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_NUL_`).
    Bls12381G2Basic,
}

impl SignatureScheme {
    const ALL: [SignatureScheme; 8] = [
        SignatureScheme::Ed25519,
        SignatureScheme::EcdsaP256Sha256,
        SignatureScheme::EcdsaP384Sha384,
        SignatureScheme::EcdsaSecp256k1Sha256,
        SignatureScheme::Eip191Secp256k1,
        SignatureScheme::RsaPkcs1Sha256,
        SignatureScheme::RsaPkcs1Sha512,
        SignatureScheme::Bls12381G2Basic,
    ];

    /// The name in JSON and in text.
    pub fn name(self) -> &'static str {
        match self {
            SignatureScheme::Ed25519 => "ed25519",
            SignatureScheme::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            SignatureScheme::EcdsaP384Sha384 => "ecdsa-p384-sha384",
            SignatureScheme::EcdsaSecp256k1Sha256 => "ecdsa-secp256k1-sha256",
            SignatureScheme::Eip191Secp256k1 => "eip191-secp256k1",
            SignatureScheme::RsaPkcs1Sha256 => "rsa-pkcs1-sha256",
            SignatureScheme::RsaPkcs1Sha512 => "rsa-pkcs1-sha512",
            SignatureScheme::Bls12381G2Basic => "bls12-381-g2-basic",
        }
    }

    /// The scheme in which most tokens sign with keys of `algorithm`; `None` for X25519.
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

    /// The length of the signed digest in bytes; `None` if the message itself is signed (Ed25519,
    /// BLS).
    pub fn digest_length(self) -> Option<usize> {
        match self {
            SignatureScheme::EcdsaP256Sha256
            | SignatureScheme::EcdsaSecp256k1Sha256
            | SignatureScheme::Eip191Secp256k1
            | SignatureScheme::RsaPkcs1Sha256 => Some(32),
            SignatureScheme::EcdsaP384Sha384 => Some(48),
            SignatureScheme::RsaPkcs1Sha512 => Some(64),
            SignatureScheme::Ed25519 | SignatureScheme::Bls12381G2Basic => None,
        }
    }

    /// The digest of `message` that is signed; `None` if the message itself is signed.
    pub fn digest(self, message: &[u8]) -> Option<Vec<u8>> {
        Some(match self {
            SignatureScheme::EcdsaP256Sha256
            | SignatureScheme::EcdsaSecp256k1Sha256
            | SignatureScheme::RsaPkcs1Sha256 => Sha256::digest(message).to_vec(),
            SignatureScheme::EcdsaP384Sha384 => Sha384::digest(message).to_vec(),
            SignatureScheme::RsaPkcs1Sha512 => Sha512::digest(message).to_vec(),
            SignatureScheme::Eip191Secp256k1 => eip191_digest(message).to_vec(),
            SignatureScheme::Ed25519 | SignatureScheme::Bls12381G2Basic => return None,
        })
    }

    /// That a token does not sign so.
    pub fn not_made_by_token(self) -> Error {
        Error::BadMessage {
            reason: format!("the token makes no {self} signatures with this key"),
        }
    }

    /// Checks the length of `digest`.
    ///
    /// # Errors
    /// [`Error::BadMessage`].
    pub fn check_digest(self, digest: &[u8]) -> Result<(), Error> {
        match self.digest_length() {
            Some(length) if length == digest.len() => Ok(()),
            Some(length) => Err(Error::BadMessage {
                reason: format!(
                    "a digest for {self} has {length} bytes, not {}",
                    digest.len()
                ),
            }),
            None => Err(Error::BadMessage {
                reason: format!("{self} does not sign digests"),
            }),
        }
    }

    /// The digest as a `DigestInfo` in DER, as RSASSA-PKCS1-v1_5 signs it (RFC 8017 §9.2, note 1),
    /// for tokens that do not encode it themselves; `None` for other schemes.
    pub fn digest_info(self, digest: &[u8]) -> Option<Vec<u8>> {
        let begin: [u8; 19] = match self {
            SignatureScheme::RsaPkcs1Sha256 => [
                0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
                0x01, 0x05, 0x00, 0x04, 0x20,
            ],
            SignatureScheme::RsaPkcs1Sha512 => [
                0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
                0x03, 0x05, 0x00, 0x04, 0x40,
            ],
            _ => return None,
        };
        let fits = self.digest_length() == Some(digest.len());
        fits.then(|| [&begin[..], digest].concat())
    }

    /// Every scheme in which signatures of keys of `algorithm` are verified, beginning with the
    /// [usual](SignatureScheme::of) one.
    ///
    /// A signature that does not name its scheme may be verified in each: they hash differently, so
    /// a signature in one scheme is not valid in another.
    pub fn all_of(algorithm: Algorithm) -> impl Iterator<Item = Self> {
        let other = match algorithm {
            Algorithm::Secp256k1 => Some(SignatureScheme::Eip191Secp256k1),
            Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => {
                Some(SignatureScheme::RsaPkcs1Sha512)
            }
            _ => None,
        };
        SignatureScheme::of(algorithm).into_iter().chain(other)
    }
}

/// The digest of `message` as an Ethereum personal message (EIP-191, version 0x45):
/// Keccak-256 over `"\x19Ethereum Signed Message:\n"`, the length of the message in decimal
/// digits, and the message.
pub fn eip191_digest(message: &[u8]) -> [u8; 32] {
    Keccak256::new()
        .chain_update(eip191_prefix(message.len() as u64))
        .chain_update(message)
        .finalize()
        .into()
}

/// The prefix of an Ethereum personal message of this length in bytes.
pub fn eip191_prefix(length: u64) -> String {
    format!("\x19Ethereum Signed Message:\n{length}")
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
    /// A signature from bytes in the form that the [scheme](SignatureScheme) describes.
    ///
    /// # Errors
    /// [`BadSignature`] if the length is wrong.
    pub fn new(scheme: SignatureScheme, bytes: Vec<u8>) -> Result<Self, BadSignature> {
        let fits = match scheme {
            SignatureScheme::Ed25519
            | SignatureScheme::EcdsaP256Sha256
            | SignatureScheme::EcdsaSecp256k1Sha256
            | SignatureScheme::Eip191Secp256k1 => bytes.len() == 64,
            SignatureScheme::EcdsaP384Sha384 | SignatureScheme::Bls12381G2Basic => {
                bytes.len() == 96
            }
            SignatureScheme::RsaPkcs1Sha256 | SignatureScheme::RsaPkcs1Sha512 => {
                matches!(bytes.len(), 256 | 384 | 512)
            }
        };
        if fits {
            Ok(Signature { scheme, bytes })
        } else {
            Err(BadSignature)
        }
    }

    /// A signature from DER: `ECDSA-Sig-Value` (RFC 3279 §2.2.3) for ECDSA, the usual encoding for
    /// other schemes.
    ///
    /// # Errors
    /// [`BadSignature`] if the DER is malformed.
    pub fn from_der(scheme: SignatureScheme, der: &[u8]) -> Result<Self, BadSignature> {
        let bytes = match scheme {
            SignatureScheme::EcdsaP256Sha256 => p256::ecdsa::Signature::from_der(der)
                .map_err(|_| BadSignature)?
                .to_bytes()
                .to_vec(),
            SignatureScheme::EcdsaSecp256k1Sha256 | SignatureScheme::Eip191Secp256k1 => {
                k256::ecdsa::Signature::from_der(der)
                    .map_err(|_| BadSignature)?
                    .to_bytes()
                    .to_vec()
            }
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
    /// [`BadSignature`] if r or s is zero or not below the order of the group.
    pub fn to_der(&self) -> Result<Vec<u8>, BadSignature> {
        let bad = |_| BadSignature;
        Ok(match self.scheme {
            SignatureScheme::EcdsaP256Sha256 => p256::ecdsa::Signature::from_slice(&self.bytes)
                .map_err(bad)?
                .to_der()
                .as_bytes()
                .to_vec(),
            SignatureScheme::EcdsaSecp256k1Sha256 | SignatureScheme::Eip191Secp256k1 => {
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

/// The bytes are not a signature, or not by this key over this message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid signature")]
pub struct BadSignature;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PublicKey;
    use crate::key::from_hex;

    /// What the Ethereum app 1.23.0 of a Ledger answered.
    #[test]
    fn a_personal_message_signed_by_a_ledger_verifies_as_such_and_as_nothing_else() {
        let hex = |text| from_hex(text).unwrap();
        let key = "04ef5b152e3f15eb0c50c9916161c2309e54bd87b9adce722d69716bcdef85f547\
                   678e15ab40a78919c7284e67a17ee9a96e8b9886b60f767d93023bac8dbc16e4";
        let key = PublicKey::from_bytes(Algorithm::Secp256k1, &hex(key)).unwrap();
        let bytes = "f50caff5283a683b73516d5739fbb24b4facee070e9118cbe325d55325a0b446\
                     4b2627880ca558f5472c1b4aaac0930ac117cb6e824d18d53cd1dfda831e271a";
        let message = b"identity challenge";
        let signature = |scheme| Signature::new(scheme, hex(bytes)).unwrap();
        let eip191 = signature(SignatureScheme::Eip191Secp256k1);
        assert_eq!(key.verify(message, &eip191), Ok(()));
        assert!(key.verify(b"identity challenge.", &eip191).is_err());
        let der = eip191.to_der().unwrap();
        assert_eq!(Signature::from_der(eip191.scheme(), &der), Ok(eip191));
        let sha256 = signature(SignatureScheme::EcdsaSecp256k1Sha256);
        assert!(key.verify(message, &sha256).is_err());
    }

    #[test]
    fn a_digest_is_wrapped_as_rsa_signs_it() {
        use rsa::pkcs1v15::Pkcs1v15Sign;
        use rsa::sha2::{Sha256, Sha512};
        for (scheme, padding) in [
            (
                SignatureScheme::RsaPkcs1Sha256,
                Pkcs1v15Sign::new::<Sha256>(),
            ),
            (
                SignatureScheme::RsaPkcs1Sha512,
                Pkcs1v15Sign::new::<Sha512>(),
            ),
        ] {
            let digest = vec![7; scheme.digest_length().unwrap()];
            let info = scheme.digest_info(&digest).unwrap();
            assert_eq!(info, [&padding.prefix[..], &digest].concat(), "{scheme}");
            assert_eq!(scheme.digest_info(&digest[1..]), None);
        }
        assert_eq!(SignatureScheme::EcdsaP256Sha256.digest_info(&[7; 32]), None);
    }

    #[test]
    fn every_scheme_has_a_name_and_an_algorithm() {
        for scheme in SignatureScheme::ALL {
            assert_eq!(scheme.name().parse(), Ok(scheme));
            let mut algorithms = Algorithm::ALL.into_iter();
            assert!(algorithms.any(|a| SignatureScheme::all_of(a).any(|s| s == scheme)));
        }
    }
}
