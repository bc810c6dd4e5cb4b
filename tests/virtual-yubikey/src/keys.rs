//! Asymmetric keys: what the card does with them, and how they are encoded.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use claviger_token::sync::lock;
use ed25519_dalek::Signer as _;
use p256::ecdsa::signature::hazmat::PrehashSigner as _;
use rand_core::OsRng;
use rsa::signature::SignatureEncoding as _;
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, RsaPrivateKey};
use sha2::{Digest as _, Sha256, Sha384};

use crate::apdu::{Outcome, Status};
use crate::tlv;

/// A slot's kind of key, by its reference (SP 800-78-4 §5.3; Yubico's since 5.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Algorithm {
    Rsa1024 = 0x06,
    Rsa2048 = 0x07,
    Rsa3072 = 0x05,
    Rsa4096 = 0x16,
    P256 = 0x11,
    P384 = 0x14,
    Ed25519 = 0xe0,
    X25519 = 0xe1,
}

impl Algorithm {
    const ALL: [Algorithm; 8] = [
        Algorithm::Rsa1024,
        Algorithm::Rsa2048,
        Algorithm::Rsa3072,
        Algorithm::Rsa4096,
        Algorithm::P256,
        Algorithm::P384,
        Algorithm::Ed25519,
        Algorithm::X25519,
    ];

    pub(crate) fn from_reference(reference: u8) -> Option<Algorithm> {
        (Algorithm::ALL.into_iter()).find(|algorithm| *algorithm as u8 == reference)
    }

    /// The modulus's bits, where it is RSA.
    fn modulus_bits(self) -> Option<usize> {
        match self {
            Algorithm::Rsa1024 => Some(1024),
            Algorithm::Rsa2048 => Some(2048),
            Algorithm::Rsa3072 => Some(3072),
            Algorithm::Rsa4096 => Some(4096),
            _ => None,
        }
    }
}

/// A private key on the card, or on its way to it. Those of curves are with their public half,
/// which takes as long to compute as a signature.
#[derive(Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub enum PrivateKey {
    Rsa(Box<RsaPrivateKey>),
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    Ed25519(ed25519_dalek::SigningKey),
    X25519(x25519_dalek::StaticSecret),
}

impl PrivateKey {
    /// Makes a key. RSA takes as long as it does on a real card.
    ///
    /// # Panics
    /// Where this system's source of randomness fails.
    pub fn generate(algorithm: Algorithm) -> PrivateKey {
        match PrivateKey::try_generate(algorithm) {
            Ok(key) => key,
            #[expect(
                clippy::panic,
                reason = "documented; the card itself does not call this"
            )]
            Err(_) => panic!("no {algorithm:?} key could be made"),
        }
    }

    pub(crate) fn try_generate(algorithm: Algorithm) -> Result<PrivateKey, Status> {
        Ok(match algorithm {
            Algorithm::P256 => PrivateKey::P256(p256::ecdsa::SigningKey::random(&mut OsRng)),
            Algorithm::P384 => PrivateKey::P384(p384::ecdsa::SigningKey::random(&mut OsRng)),
            Algorithm::Ed25519 => {
                PrivateKey::Ed25519(ed25519_dalek::SigningKey::generate(&mut OsRng))
            }
            Algorithm::X25519 => {
                PrivateKey::X25519(x25519_dalek::StaticSecret::random_from_rng(OsRng))
            }
            rsa => {
                let bits = rsa.modulus_bits().ok_or(Status::INTERNAL)?;
                let key = RsaPrivateKey::new(&mut OsRng, bits).map_err(|_| Status::INTERNAL)?;
                PrivateKey::Rsa(Box::new(key))
            }
        })
    }

    /// Reads the elements of IMPORT ASYMMETRIC KEY: 01 to 05 are p, q, dP, dQ and qInv,
    /// each half as long as the modulus; 06, 07 and 08 are the private values of
    /// ECDSA/ECDH, Ed25519 and X25519. The public exponent is always 65537.
    pub(crate) fn import(
        algorithm: Algorithm,
        elements: &[(u32, &[u8])],
    ) -> Result<PrivateKey, Status> {
        let element = |tag| tlv::find(elements, tag).ok_or(Status::WRONG_DATA);
        let wrong = |_| Status::WRONG_DATA;
        // The crates would take shorter ones, too.
        let scalar = |size| match element(0x06)? {
            bytes if bytes.len() == size => Ok(bytes),
            _ => Err(Status::WRONG_DATA),
        };
        Ok(match algorithm {
            Algorithm::P256 => PrivateKey::P256(
                p256::ecdsa::SigningKey::from_slice(scalar(32)?).map_err(|_| Status::WRONG_DATA)?,
            ),
            Algorithm::P384 => PrivateKey::P384(
                p384::ecdsa::SigningKey::from_slice(scalar(48)?).map_err(|_| Status::WRONG_DATA)?,
            ),
            Algorithm::Ed25519 => {
                let seed: [u8; 32] = element(0x07)?.try_into().map_err(wrong)?;
                PrivateKey::Ed25519(seed.into())
            }
            Algorithm::X25519 => {
                let scalar: [u8; 32] = element(0x08)?.try_into().map_err(wrong)?;
                PrivateKey::X25519(scalar.into())
            }
            rsa => {
                let bits = rsa.modulus_bits().ok_or(Status::INTERNAL)?;
                let prime = |tag| {
                    let bytes = element(tag)?;
                    // A prime of exactly half the bits, so that its predecessor is not
                    // negative and the product is as long as it has to be.
                    let right = bytes.len() == bits / 16
                        && bytes.first().is_some_and(|first| first & 0x80 != 0)
                        && bytes.last().is_some_and(|last| last & 1 != 0);
                    let prime = BigUint::from_bytes_be(bytes);
                    right.then_some(prime).ok_or(Status::WRONG_DATA)
                };
                for tag in 0x03..=0x05 {
                    if element(tag)?.len() != bits / 16 {
                        return Err(Status::WRONG_DATA);
                    }
                }
                let (p, q) = (prime(0x01)?, prime(0x02)?);
                let key = RsaPrivateKey::from_p_q(p, q, BigUint::from(65_537_u32))
                    .map_err(|_| Status::WRONG_DATA)?;
                if key.n().bits() != bits {
                    return Err(Status::WRONG_DATA);
                }
                PrivateKey::Rsa(Box::new(key))
            }
        })
    }

    /// The elements with which `PrivateKey::import` takes this key, for tests that
    /// import it with a command.
    ///
    /// # Panics
    /// If an RSA key does not have two primes.
    pub fn import_elements(&self) -> Vec<u8> {
        match self {
            PrivateKey::Rsa(key) => {
                use rsa::traits::PrivateKeyParts as _;
                let [p, q] = key.primes() else {
                    #[expect(clippy::panic, reason = "documented; for tests")]
                    {
                        panic!("not two primes");
                    }
                };
                let half = key.size() / 2;
                let one = BigUint::from(1_u8);
                let inverse = q.modpow(&(p - BigUint::from(2_u8)), p);
                let values = [
                    p.clone(),
                    q.clone(),
                    key.d() % (p - &one),
                    key.d() % (q - &one),
                    inverse,
                ];
                let mut tag = 0;
                let encoded = values.iter().map(|value| {
                    tag += 1;
                    tlv::write(tag, &[&padded(&value.to_bytes_be(), half)])
                });
                encoded.collect::<Vec<_>>().concat()
            }
            PrivateKey::P256(key) => tlv::write(0x06, &[&key.to_bytes()]),
            PrivateKey::P384(key) => tlv::write(0x06, &[&key.to_bytes()]),
            PrivateKey::Ed25519(key) => tlv::write(0x07, &[&key.to_bytes()]),
            PrivateKey::X25519(key) => tlv::write(0x08, &[&key.to_bytes()]),
        }
    }

    /// What kind of key it is.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            PrivateKey::Rsa(key) => match key.size() {
                128 => Algorithm::Rsa1024,
                384 => Algorithm::Rsa3072,
                512 => Algorithm::Rsa4096,
                _ => Algorithm::Rsa2048,
            },
            PrivateKey::P256(_) => Algorithm::P256,
            PrivateKey::P384(_) => Algorithm::P384,
            PrivateKey::Ed25519(_) => Algorithm::Ed25519,
            PrivateKey::X25519(_) => Algorithm::X25519,
        }
    }

    /// The public point, or the 32 bytes that stand for it; nothing for RSA.
    fn public_point(&self) -> Vec<u8> {
        match self {
            PrivateKey::Rsa(_) => Vec::new(),
            PrivateKey::P256(key) => {
                (key.verifying_key().to_encoded_point(false).as_bytes()).into()
            }
            PrivateKey::P384(key) => {
                (key.verifying_key().to_encoded_point(false).as_bytes()).into()
            }
            PrivateKey::Ed25519(key) => key.verifying_key().as_bytes().to_vec(),
            PrivateKey::X25519(key) => x25519_dalek::PublicKey::from(key).as_bytes().to_vec(),
        }
    }

    /// The public key as GENERATE and GET METADATA give it: 81 and 82 are modulus and
    /// exponent, 86 is the point (SP 800-73-4 part 2, table 11).
    pub(crate) fn public_elements(&self) -> Vec<u8> {
        match self {
            PrivateKey::Rsa(key) => [
                tlv::write(0x81, &[&key.n().to_bytes_be()]),
                tlv::write(0x82, &[&key.e().to_bytes_be()]),
            ]
            .concat(),
            _ => tlv::write(0x86, &[&self.public_point()]),
        }
    }

    /// The public key as SubjectPublicKeyInfo, DER (RFC 5280 §4.1; RFC 5480, RFC 8410).
    pub fn spki(&self) -> Vec<u8> {
        const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
        const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
        const SECP256R1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        const SECP384R1: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
        let algorithm = match self {
            PrivateKey::Rsa(_) => [tlv::write(0x06, &[RSA_ENCRYPTION]), vec![0x05, 0x00]].concat(),
            PrivateKey::P256(_) => [
                tlv::write(0x06, &[EC_PUBLIC_KEY]),
                tlv::write(0x06, &[SECP256R1]),
            ]
            .concat(),
            PrivateKey::P384(_) => [
                tlv::write(0x06, &[EC_PUBLIC_KEY]),
                tlv::write(0x06, &[SECP384R1]),
            ]
            .concat(),
            PrivateKey::Ed25519(_) => tlv::write(0x06, &[&[0x2b, 0x65, 0x70]]),
            PrivateKey::X25519(_) => tlv::write(0x06, &[&[0x2b, 0x65, 0x6e]]),
        };
        let bits = match self {
            // A leading zero keeps an INTEGER positive; a modulus has its first bit set.
            PrivateKey::Rsa(key) => tlv::write(
                0x30,
                &[
                    &tlv::write(0x02, &[&[0], &key.n().to_bytes_be()]),
                    &tlv::write(0x02, &[&key.e().to_bytes_be()]),
                ],
            ),
            _ => self.public_point(),
        };
        tlv::write(
            0x30,
            &[
                &tlv::write(0x30, &[&algorithm]),
                &tlv::write(0x03, &[&[0], &bits]),
            ],
        )
    }

    /// What GENERAL AUTHENTICATE does with a challenge: ECDSA over a digest (shorter
    /// ones are padded on the left, longer ones refused), Ed25519 over a message, and
    /// for RSA the private operation on a block as long as the modulus.
    pub(crate) fn sign(&self, challenge: &[u8]) -> Outcome {
        let digest = |size| match challenge.len() {
            length if length <= size => Ok(padded(challenge, size)),
            _ => Err(Status::WRONG_DATA),
        };
        match self {
            PrivateKey::Rsa(key) => {
                let block = BigUint::from_bytes_be(challenge);
                if challenge.len() != key.size() || &block >= key.n() {
                    return Err(Status::WRONG_DATA);
                }
                let result = rsa::hazmat::rsa_decrypt_and_check(&**key, Some(&mut OsRng), &block)
                    .map_err(|_| Status::INTERNAL)?;
                Ok(padded(&result.to_bytes_be(), key.size()))
            }
            PrivateKey::P256(key) => signed_once(key, &digest(32)?),
            PrivateKey::P384(key) => {
                let signature: p384::ecdsa::Signature = key
                    .sign_prehash(&digest(48)?)
                    .map_err(|_| Status::INTERNAL)?;
                Ok(signature.to_der().as_bytes().to_vec())
            }
            PrivateKey::Ed25519(key) => Ok(key.sign(challenge).to_bytes().to_vec()),
            PrivateKey::X25519(_) => Err(Status::WRONG_DATA),
        }
    }

    /// What GENERAL AUTHENTICATE does with a peer's public key: the x-coordinate, or the
    /// X25519 secret. A point off the curve is refused; an X25519 peer of low order is
    /// not, and gives zeros, so that it is the caller who has to refuse them.
    pub(crate) fn agree(&self, peer: &[u8]) -> Outcome {
        match self {
            PrivateKey::P256(key) => {
                let peer = (peer.len() == 65)
                    .then(|| p256::PublicKey::from_sec1_bytes(peer).ok())
                    .flatten()
                    .ok_or(Status::WRONG_DATA)?;
                let secret = p256::ecdh::diffie_hellman(key.as_nonzero_scalar(), peer.as_affine());
                Ok(secret.raw_secret_bytes().to_vec())
            }
            PrivateKey::P384(key) => {
                let peer = (peer.len() == 97)
                    .then(|| p384::PublicKey::from_sec1_bytes(peer).ok())
                    .flatten()
                    .ok_or(Status::WRONG_DATA)?;
                let secret = p384::ecdh::diffie_hellman(key.as_nonzero_scalar(), peer.as_affine());
                Ok(secret.raw_secret_bytes().to_vec())
            }
            PrivateKey::X25519(key) => {
                let peer: [u8; 32] = peer.try_into().map_err(|_| Status::WRONG_DATA)?;
                Ok(key.diffie_hellman(&peer.into()).to_bytes().to_vec())
            }
            PrivateKey::Rsa(_) | PrivateKey::Ed25519(_) => Err(Status::WRONG_DATA),
        }
    }

    /// With what it signs certificates: an AlgorithmIdentifier, DER.
    pub(crate) fn certificate_algorithm(&self) -> Outcome {
        let oid = |oid: &[u8]| tlv::write(0x06, &[oid]);
        let parts = match self {
            PrivateKey::Rsa(_) => {
                let sha256_with_rsa = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
                [oid(&sha256_with_rsa), vec![0x05, 0x00]].concat()
            }
            PrivateKey::P256(_) => oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]),
            PrivateKey::P384(_) => oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03]),
            PrivateKey::Ed25519(_) | PrivateKey::X25519(_) => return Err(Status::CONDITIONS),
        };
        Ok(tlv::write(0x30, &[&parts]))
    }

    /// The signature of a certificate.
    pub(crate) fn sign_certificate(&self, body: &[u8]) -> Outcome {
        match self {
            PrivateKey::Rsa(key) => {
                use rsa::signature::Signer as _;
                let signer = rsa::pkcs1v15::SigningKey::<Sha256>::new((**key).clone());
                let signature = signer.try_sign(body).map_err(|_| Status::INTERNAL)?;
                Ok(signature.to_vec())
            }
            PrivateKey::P256(_) => self.sign(&Sha256::digest(body)),
            PrivateKey::P384(_) => self.sign(&Sha384::digest(body)),
            PrivateKey::Ed25519(_) | PrivateKey::X25519(_) => Err(Status::CONDITIONS),
        }
    }
}

/// The signature of a digest, which is the same each time (RFC 6979) and computed once: without
/// optimisation it takes longer than all else that a card does.
fn signed_once(key: &p256::ecdsa::SigningKey, digest: &[u8]) -> Outcome {
    /// Enough for the certificates and challenges of a fuzzer's cards.
    const MOST: usize = 4096;
    static SIGNED: LazyLock<Mutex<HashMap<Vec<u8>, Vec<u8>>>> = LazyLock::new(Mutex::default);
    let what = [&key.to_bytes(), digest].concat();
    if let Some(signature) = lock(&SIGNED).get(&what) {
        return Ok(signature.clone());
    }
    let signature = key.sign_prehash(digest).map_err(|_| Status::INTERNAL)?;
    let signature: p256::ecdsa::DerSignature = p256::ecdsa::Signature::to_der(&signature);
    let signature = signature.as_bytes().to_vec();
    let mut signed = lock(&SIGNED);
    if signed.len() >= MOST {
        signed.clear();
    }
    signed.insert(what, signature.clone());
    Ok(signature)
}

/// Zeros in front, up to `size` bytes.
fn padded(bytes: &[u8], size: usize) -> Vec<u8> {
    let mut out = vec![0; size.saturating_sub(bytes.len())];
    out.extend_from_slice(bytes);
    out
}
