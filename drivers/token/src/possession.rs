//! Proofs that a token has the private key of a public key.
//!
//! A token shows a public key and a private key under one name. Using them proves that they are a
//! pair, before anybody relies on it. A signing key signs a text of this module. A decrypting key
//! answers a [`Challenge`], whose answer this module computes as well.

use rand_core::{OsRng, RngCore};
use rsa::pkcs1::DecodeRsaPublicKey;
use zeroize::Zeroizing;

use crate::key::to_hex;
use crate::token::Secret;
use crate::{Algorithm, Call, Decryptor, Error, PublicKey, Signer, TokenId, Unwrap};

/// The prefix of every text that is signed to prove possession. No other text with this prefix is
/// signed.
pub const PREFIX: &str = "Claviger: proof of possession";

/// The label *L* of the OAEP with which RSA keys are tried: that of age's stanza `ssh-rsa` (C2SP
/// age), which such keys decrypt.
pub const SSH_RSA_LABEL: &[u8] = b"age-encryption.org/v1/ssh-rsa";

/// Has the key sign a fresh text, and verifies the signature.
///
/// The text is readable, since a device may show it for approval: [`PREFIX`], a space and 32 random
/// hexadecimal digits.
///
/// # Errors
/// [`Error::NoPossession`] if the signature does not verify; otherwise those of [`Signer::sign`].
pub fn of_signer(signer: &dyn Signer, token: &TokenId, call: &Call) -> Result<(), Error> {
    let mut random = [0; 16];
    OsRng.fill_bytes(&mut random);
    let text = format!("{PREFIX} {}", to_hex(&random));
    let public_key = signer.public_key();
    let signature = signer.sign(text.as_bytes(), call)?;
    public_key
        .verify(text.as_bytes(), &signature)
        .map_err(|_| none(token, public_key, "its signature does not verify"))
}

/// Has the key answer a [`Challenge`].
///
/// # Errors
/// [`Error::NoPossession`] if the answer is wrong or missing; otherwise those of
/// [`Decryptor::unwrap`].
pub fn of_decryptor(decryptor: &dyn Decryptor, token: &TokenId, call: &Call) -> Result<(), Error> {
    let public_key = decryptor.public_key();
    let Some(challenge) = Challenge::new(public_key) else {
        return Err(none(token, public_key, "a key of this kind cannot decrypt"));
    };
    match decryptor.unwrap(challenge.request(), call) {
        Ok(answer) if challenge.is_answered_by(&answer) => Ok(()),
        Ok(_) => Err(none(token, public_key, "it derives another shared secret")),
        Err(Error::DecryptionFailed) => Err(none(
            token,
            public_key,
            "it does not decrypt what is encrypted to it",
        )),
        Err(error) => Err(error),
    }
}

fn none(token: &TokenId, key: &PublicKey, reason: &str) -> Error {
    Error::NoPossession {
        token: token.clone(),
        key: key.fingerprint().to_string(),
        reason: reason.into(),
    }
}

/// A ciphertext or a peer for a decrypting key, with the expected answer.
pub struct Challenge {
    sent: Sent,
    answer: Secret,
}

enum Sent {
    Peer(PublicKey),
    Ciphertext(Vec<u8>),
}

impl Challenge {
    /// A new challenge, or `None` for a key that cannot decrypt.
    ///
    /// P-256 and X25519: a key agreement with a fresh peer. RSA: an OAEP (SHA-256) of 16 random
    /// bytes, with [`SSH_RSA_LABEL`].
    pub fn new(key: &PublicKey) -> Option<Challenge> {
        Some(match key.algorithm() {
            Algorithm::P256 => {
                let own = p256::SecretKey::random(&mut OsRng);
                let key = p256::PublicKey::from_sec1_bytes(key.as_bytes()).ok()?;
                let shared = p256::ecdh::diffie_hellman(own.to_nonzero_scalar(), key.as_affine());
                let peer = own.public_key().to_sec1_bytes();
                Challenge {
                    sent: Sent::Peer(PublicKey::from_bytes(Algorithm::P256, &peer).ok()?),
                    answer: Zeroizing::new(shared.raw_secret_bytes().to_vec()),
                }
            }
            Algorithm::X25519 => {
                let own = x25519_dalek::StaticSecret::random_from_rng(OsRng);
                let key = <[u8; 32]>::try_from(key.as_bytes()).ok()?;
                let peer = x25519_dalek::PublicKey::from(&own).to_bytes();
                Challenge {
                    sent: Sent::Peer(PublicKey::from_bytes(Algorithm::X25519, &peer).ok()?),
                    answer: Zeroizing::new(own.diffie_hellman(&key.into()).to_bytes().to_vec()),
                }
            }
            Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => {
                let key = rsa::RsaPublicKey::from_pkcs1_der(key.as_bytes()).ok()?;
                let label = std::str::from_utf8(SSH_RSA_LABEL).ok()?;
                let mut answer = Zeroizing::new(vec![0; 16]);
                OsRng.fill_bytes(&mut answer);
                let padding = rsa::Oaep::new_with_label::<sha2::Sha256, _>(label);
                Challenge {
                    sent: Sent::Ciphertext(key.encrypt(&mut OsRng, padding, &answer).ok()?),
                    answer,
                }
            }
            _ => return None,
        })
    }

    /// The request to the key's [`Decryptor`].
    pub fn request(&self) -> Unwrap<'_> {
        match &self.sent {
            Sent::Peer(peer) => Unwrap::Agree { peer },
            Sent::Ciphertext(ciphertext) => Unwrap::Oaep {
                ciphertext,
                label: SSH_RSA_LABEL,
            },
        }
    }

    /// The bytes that are sent: the peer's public key, or the ciphertext.
    pub fn sent(&self) -> &[u8] {
        match &self.sent {
            Sent::Peer(peer) => peer.as_bytes(),
            Sent::Ciphertext(ciphertext) => ciphertext,
        }
    }

    /// Whether this is the expected answer.
    pub fn is_answered_by(&self, secret: &[u8]) -> bool {
        secret == self.answer.as_slice()
    }
}
