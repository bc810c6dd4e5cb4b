//! Keys on tokens as keys of the crate `signature`, for other crates.
//!
//! A [`SigningKey`] wraps a [`Signer`] and implements the traits of [`signature`]. Code that is
//! generic over them (certificate and token builders, protocol stacks) can sign with a key on a
//! token:
//!
//! ```
//! use std::sync::Arc;
//! use claviger_token::{Call, Signer, interop::SigningKey};
//! use signature::{Keypair, Signer as _, Verifier};
//!
//! fn sign(handle: Arc<dyn Signer>) -> Result<p256::ecdsa::Signature, Box<dyn std::error::Error>> {
//!     let key = SigningKey::<p256::ecdsa::Signature>::new(handle, Call::unlimited())?;
//!     let signature = key.try_sign(b"message")?;
//!     key.verifying_key().verify(b"message", &signature)?;
//!     Ok(signature)
//! }
//! ```

use std::sync::Arc;

use signature::hazmat::PrehashVerifier;
use signature::{Keypair, SignatureEncoding, Verifier};

use crate::signing::eip191_digest;
use crate::{Algorithm, Call, PublicKey, SignatureScheme, Signer};

/// The crates whose signatures and traits these are.
pub use {ed25519_dalek, k256, p256, p384, rsa, signature};

/// A signature type that tokens can make.
pub trait Scheme: SignatureEncoding {
    /// The scheme of these signatures.
    const SCHEME: SignatureScheme;

    /// The type of the verifying key.
    type VerifyingKey: Clone;

    /// The verifying key of a public key.
    ///
    /// # Errors
    /// If the key has another scheme.
    fn verifying_key(key: &PublicKey) -> signature::Result<Self::VerifyingKey>;
}

macro_rules! ecdsa {
    ($curve:ident, $scheme:ident) => {
        impl Scheme for $curve::ecdsa::Signature {
            const SCHEME: SignatureScheme = SignatureScheme::$scheme;
            type VerifyingKey = $curve::ecdsa::VerifyingKey;

            fn verifying_key(key: &PublicKey) -> signature::Result<Self::VerifyingKey> {
                $curve::ecdsa::VerifyingKey::from_sec1_bytes(key.as_bytes())
            }
        }
    };
}
ecdsa!(p256, EcdsaP256Sha256);
ecdsa!(p384, EcdsaP384Sha384);
ecdsa!(k256, EcdsaSecp256k1Sha256);

/// A signature over an Ethereum personal message
/// ([`SignatureScheme::Eip191Secp256k1`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eip191Signature(k256::ecdsa::Signature);

impl TryFrom<&[u8]> for Eip191Signature {
    type Error = signature::Error;

    fn try_from(bytes: &[u8]) -> signature::Result<Self> {
        k256::ecdsa::Signature::from_slice(bytes).map(Eip191Signature)
    }
}

impl From<Eip191Signature> for [u8; 64] {
    fn from(signature: Eip191Signature) -> Self {
        signature.0.to_bytes().into()
    }
}

impl SignatureEncoding for Eip191Signature {
    type Repr = [u8; 64];
}

/// The verifying key of an [`Eip191Signature`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eip191VerifyingKey(k256::ecdsa::VerifyingKey);

impl Verifier<Eip191Signature> for Eip191VerifyingKey {
    fn verify(&self, message: &[u8], signature: &Eip191Signature) -> signature::Result<()> {
        self.0.verify_prehash(&eip191_digest(message), &signature.0)
    }
}

impl Scheme for Eip191Signature {
    const SCHEME: SignatureScheme = SignatureScheme::Eip191Secp256k1;
    type VerifyingKey = Eip191VerifyingKey;

    fn verifying_key(key: &PublicKey) -> signature::Result<Self::VerifyingKey> {
        k256::ecdsa::VerifyingKey::from_sec1_bytes(key.as_bytes()).map(Eip191VerifyingKey)
    }
}

impl Scheme for ed25519_dalek::Signature {
    const SCHEME: SignatureScheme = SignatureScheme::Ed25519;
    type VerifyingKey = ed25519_dalek::VerifyingKey;

    fn verifying_key(key: &PublicKey) -> signature::Result<Self::VerifyingKey> {
        ed25519_dalek::VerifyingKey::try_from(key.as_bytes())
    }
}

impl Scheme for rsa::pkcs1v15::Signature {
    const SCHEME: SignatureScheme = SignatureScheme::RsaPkcs1Sha256;
    type VerifyingKey = rsa::pkcs1v15::VerifyingKey<rsa::sha2::Sha256>;

    fn verifying_key(key: &PublicKey) -> signature::Result<Self::VerifyingKey> {
        use rsa::pkcs1::DecodeRsaPublicKey;
        rsa::RsaPublicKey::from_pkcs1_der(key.as_bytes())
            .map(rsa::pkcs1v15::VerifyingKey::new)
            .map_err(signature::Error::from_source)
    }
}

/// A key on a token that makes signatures of the type `S`.
///
/// An [error](crate::Error) of the token is the [source](std::error::Error::source) of the
/// [`signature::Error`].
#[derive(Clone)]
pub struct SigningKey<S: Scheme> {
    signer: Arc<dyn Signer>,
    verifying_key: S::VerifyingKey,
    call: Call,
}

impl<S: Scheme> SigningKey<S> {
    /// Wraps `signer`; every signature is made under the circumstances of `call`.
    ///
    /// # Errors
    /// [`WrongScheme`] if the key does not make signatures of the type `S`.
    pub fn new(signer: Arc<dyn Signer>, call: Call) -> Result<Self, WrongScheme> {
        let key = signer.public_key();
        let wrong = WrongScheme {
            key: key.algorithm(),
            signature: S::SCHEME,
        };
        if signer.scheme() != Some(S::SCHEME) {
            return Err(wrong);
        }
        let verifying_key = S::verifying_key(key).map_err(|_| wrong)?;
        Ok(SigningKey {
            signer,
            verifying_key,
            call,
        })
    }
}

/// The key does not make the requested signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key of {key} cannot make signatures of {signature}")]
pub struct WrongScheme {
    /// The key's algorithm.
    pub key: Algorithm,
    /// The requested scheme.
    pub signature: SignatureScheme,
}

impl<S: Scheme> signature::Signer<S> for SigningKey<S> {
    fn try_sign(&self, message: &[u8]) -> signature::Result<S> {
        let signature = self
            .signer
            .sign(message, &self.call)
            .map_err(signature::Error::from_source)?;
        S::try_from(signature.as_bytes()).map_err(|_| signature::Error::new())
    }
}

impl<S: Scheme> Keypair for SigningKey<S> {
    type VerifyingKey = S::VerifyingKey;

    fn verifying_key(&self) -> S::VerifyingKey {
        self.verifying_key.clone()
    }
}
