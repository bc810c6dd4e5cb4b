//! Key algorithms and uses of keys.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The cryptosystem of one key.
///
/// A key signs or agrees, never both. [`Algorithm::can`] says what the algorithm allows, a token's
/// [`uses`](crate::TokenInfo::uses) what the token offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Algorithm {
    /// Ed25519 (RFC 8032), signing only.
    Ed25519,
    /// X25519 (RFC 7748), key agreement only.
    X25519,
    /// The curve P-256 (FIPS 186-5, SEC 2 `secp256r1`).
    P256,
    /// The curve P-384 (FIPS 186-5, SEC 2 `secp384r1`), signing only.
    P384,
    /// The curve secp256k1 (SEC 2), signing only.
    Secp256k1,
    /// RSA with a modulus of 2048 bits and the exponent 65537.
    Rsa2048,
    /// RSA with a modulus of 3072 bits and the exponent 65537.
    Rsa3072,
    /// RSA with a modulus of 4096 bits and the exponent 65537.
    Rsa4096,
    /// BLS12-381 signatures, public keys in G1 (draft-irtf-cfrg-bls-signature), signing only.
    #[serde(rename = "bls12-381")]
    Bls12381,
}

impl Algorithm {
    /// Every algorithm, in the order in which they are shown to people.
    pub const ALL: [Algorithm; 9] = [
        Algorithm::P256,
        Algorithm::P384,
        Algorithm::Ed25519,
        Algorithm::X25519,
        Algorithm::Secp256k1,
        Algorithm::Rsa2048,
        Algorithm::Rsa3072,
        Algorithm::Rsa4096,
        Algorithm::Bls12381,
    ];

    /// The name used on the command line, in JSON and in the registry.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Ed25519 => "ed25519",
            Algorithm::X25519 => "x25519",
            Algorithm::P256 => "p256",
            Algorithm::P384 => "p384",
            Algorithm::Secp256k1 => "secp256k1",
            Algorithm::Rsa2048 => "rsa2048",
            Algorithm::Rsa3072 => "rsa3072",
            Algorithm::Rsa4096 => "rsa4096",
            Algorithm::Bls12381 => "bls12-381",
        }
    }

    /// Whether a key of this algorithm can serve `usage` at all.
    pub fn can(self, usage: KeyUse) -> bool {
        match self {
            Algorithm::P256 | Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => true,
            Algorithm::X25519 => usage == KeyUse::Decrypt,
            Algorithm::Ed25519 | Algorithm::P384 | Algorithm::Secp256k1 | Algorithm::Bls12381 => {
                usage == KeyUse::Sign
            }
        }
    }

    /// The modulus length in bits of an RSA algorithm, `None` for all others.
    pub fn rsa_bits(self) -> Option<usize> {
        match self {
            Algorithm::Rsa2048 => Some(2048),
            Algorithm::Rsa3072 => Some(3072),
            Algorithm::Rsa4096 => Some(4096),
            _ => None,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    /// Parses a [name](Algorithm::name).
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Algorithm::ALL
            .into_iter()
            .find(|a| a.name() == s)
            .ok_or(UnknownAlgorithm)
    }
}

/// The string does not name a known algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown algorithm")]
pub struct UnknownAlgorithm;

/// What a key is for. One key has one use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyUse {
    /// The key signs (commits).
    Sign,
    /// The key opens ciphertexts, by key agreement or by RSA-OAEP.
    Decrypt,
}

impl KeyUse {
    /// `sign` or `decrypt`.
    pub fn name(self) -> &'static str {
        match self {
            KeyUse::Sign => "sign",
            KeyUse::Decrypt => "decrypt",
        }
    }
}

impl fmt::Display for KeyUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An algorithm together with the use that a key of it is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeySpec {
    /// The key's cryptosystem.
    pub algorithm: Algorithm,
    /// What the key is for.
    #[serde(rename = "use")]
    pub usage: KeyUse,
}

impl KeySpec {
    /// A key of `algorithm` that signs.
    pub const fn sign(algorithm: Algorithm) -> Self {
        KeySpec {
            algorithm,
            usage: KeyUse::Sign,
        }
    }

    /// A key of `algorithm` that opens ciphertexts.
    pub const fn decrypt(algorithm: Algorithm) -> Self {
        KeySpec {
            algorithm,
            usage: KeyUse::Decrypt,
        }
    }
}

impl fmt::Display for KeySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.algorithm, self.usage)
    }
}
