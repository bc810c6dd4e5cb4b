//! Public keys: encodings, fingerprints and verification.

use std::fmt;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use ring::signature::UnparsedPublicKey;
use rsa::pkcs1::{DecodeRsaPublicKey, EncodeRsaPublicKey};
use rsa::traits::PublicKeyParts;
use sha2::{Digest, Sha256, Sha512};
use signature::hazmat::PrehashVerifier;
use spki::der::asn1::{AnyRef, BitString, Null, ObjectIdentifier};
use spki::der::{Decode, Encode, EncodePem};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef};

use crate::signing::BadSignature;
use crate::{Algorithm, Signature, SignatureScheme};

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const SECP256K1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.10");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const X25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.110");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// The domain separation tag of the basic BLS scheme
/// (draft-irtf-cfrg-bls-signature §4.2.1, minimal-pubkey-size).
pub const BLS_DST: &[u8] = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_NUL_";

/// The prefix of [`PublicKey::to_text`] for BLS keys.
const BLS_PREFIX: &str = "bls12-381:";

/// A validated public key.
///
/// Elliptic-curve points are on their curve and not the identity (SEC 1 §3.2.2). Those of
/// Curve25519 are canonically encoded and not of small order, so an X25519 agreement never yields
/// zero (RFC 7748 §6.1). RSA moduli are odd and have the length that the algorithm names, and the
/// exponent is 65537. BLS points are in the right subgroup.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl PublicKey {
    /// A key from its algorithm's plain form:
    ///
    /// | algorithm | bytes |
    /// | --- | --- |
    /// | P-256, P-384, secp256k1 | a point, compressed or not (SEC 1 §2.3.3) |
    /// | Ed25519, X25519 | 32 bytes (RFC 8032 §5.1.2, RFC 7748 §5) |
    /// | RSA | `RSAPublicKey` in DER (RFC 8017 §A.1.1) |
    /// | BLS12-381 | a compressed point in G1, 48 bytes |
    ///
    /// # Errors
    /// [`BadPublicKey`] if the bytes are not such a key.
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Result<Self, BadPublicKey> {
        let bad = |_| BadPublicKey;
        let bytes = match algorithm {
            Algorithm::P256 => p256::PublicKey::from_sec1_bytes(bytes)
                .map_err(bad)?
                .to_sec1_uncompressed(),
            Algorithm::P384 => p384::PublicKey::from_sec1_bytes(bytes)
                .map_err(bad)?
                .to_sec1_uncompressed(),
            Algorithm::Secp256k1 => k256::PublicKey::from_sec1_bytes(bytes)
                .map_err(bad)?
                .to_sec1_uncompressed(),
            Algorithm::Ed25519 => {
                let bytes: [u8; 32] = bytes.try_into().map_err(|_| BadPublicKey)?;
                let key =
                    ed25519_dalek::VerifyingKey::from_bytes(&bytes).map_err(|_| BadPublicKey)?;
                // The sign of x is the highest bit.
                let [.., last] = bytes;
                if key.is_weak() || !is_reduced(&[&bytes[..31], &[last & 0x7f]].concat()) {
                    return Err(BadPublicKey);
                }
                bytes.to_vec()
            }
            Algorithm::X25519 => {
                let bytes: [u8; 32] = bytes.try_into().map_err(|_| BadPublicKey)?;
                if !is_reduced(&bytes) || is_of_small_order(&bytes) {
                    return Err(BadPublicKey);
                }
                bytes.to_vec()
            }
            Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => {
                let key = rsa::RsaPublicKey::from_pkcs1_der(bytes).map_err(|_| BadPublicKey)?;
                if rsa_algorithm(&key) != Some(algorithm) {
                    return Err(BadPublicKey);
                }
                key.to_pkcs1_der()
                    .map_err(|_| BadPublicKey)?
                    .as_bytes()
                    .to_vec()
            }
            Algorithm::Bls12381 => blst::min_pk::PublicKey::key_validate(bytes)
                .map_err(|_| BadPublicKey)?
                .compress()
                .to_vec(),
        };
        Ok(PublicKey { algorithm, bytes })
    }

    /// An RSA key from its big-endian modulus and exponent.
    ///
    /// # Errors
    /// [`BadPublicKey`] if the modulus is not 2048, 3072 or 4096 bits long or the exponent is not
    /// 65537.
    pub fn from_rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, BadPublicKey> {
        let key = rsa::RsaPublicKey::new(
            rsa::BigUint::from_bytes_be(modulus),
            rsa::BigUint::from_bytes_be(exponent),
        )
        .map_err(|_| BadPublicKey)?;
        let algorithm = rsa_algorithm(&key).ok_or(BadPublicKey)?;
        let bytes = key
            .to_pkcs1_der()
            .map_err(|_| BadPublicKey)?
            .as_bytes()
            .to_vec();
        Ok(PublicKey { algorithm, bytes })
    }

    /// Parses a SubjectPublicKeyInfo (RFC 5280 §4.1) in DER.
    ///
    /// # Errors
    /// [`BadPublicKey`] if it is malformed, or of an unknown algorithm.
    pub fn from_der(der: &[u8]) -> Result<Self, BadPublicKey> {
        let info = SubjectPublicKeyInfoRef::from_der(der).map_err(|_| BadPublicKey)?;
        let bits = info.subject_public_key.as_bytes().ok_or(BadPublicKey)?;
        let algorithm = match info.algorithm.oid {
            EC_PUBLIC_KEY => match info.algorithm.parameters_oid().map_err(|_| BadPublicKey)? {
                P256 => Algorithm::P256,
                P384 => Algorithm::P384,
                SECP256K1 => Algorithm::Secp256k1,
                _ => return Err(BadPublicKey),
            },
            ED25519 => Algorithm::Ed25519,
            X25519 => Algorithm::X25519,
            RSA_ENCRYPTION => {
                let key = rsa::RsaPublicKey::from_pkcs1_der(bits).map_err(|_| BadPublicKey)?;
                rsa_algorithm(&key).ok_or(BadPublicKey)?
            }
            _ => return Err(BadPublicKey),
        };
        PublicKey::from_bytes(algorithm, bits)
    }

    /// Parses what [`PublicKey::to_text`] wrote: PEM, or `bls12-381:` and hexadecimal.
    ///
    /// # Errors
    /// [`BadPublicKey`].
    pub fn from_text(text: &str) -> Result<Self, BadPublicKey> {
        let text = text.trim();
        if let Some(hex) = text.strip_prefix(BLS_PREFIX) {
            let bytes = from_hex(hex).ok_or(BadPublicKey)?;
            return PublicKey::from_bytes(Algorithm::Bls12381, &bytes);
        }
        let (label, der) = spki::der::pem::decode_vec(text.as_bytes()).map_err(|_| BadPublicKey)?;
        if label != "PUBLIC KEY" {
            return Err(BadPublicKey);
        }
        PublicKey::from_der(&der)
    }

    /// The key's algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key in the plain form that [`PublicKey::from_bytes`] describes; points are
    /// uncompressed (BLS: compressed).
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn info(&self) -> Option<SubjectPublicKeyInfoOwned> {
        let curve = |oid: &ObjectIdentifier| (EC_PUBLIC_KEY, Some(AnyRef::from(oid).into()));
        let (oid, parameters) = match self.algorithm {
            Algorithm::P256 => curve(&P256),
            Algorithm::P384 => curve(&P384),
            Algorithm::Secp256k1 => curve(&SECP256K1),
            Algorithm::Ed25519 => (ED25519, None),
            Algorithm::X25519 => (X25519, None),
            Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => {
                (RSA_ENCRYPTION, Some(AnyRef::from(Null).into()))
            }
            Algorithm::Bls12381 => return None,
        };
        Some(SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned { oid, parameters },
            subject_public_key: BitString::from_bytes(&self.bytes).ok()?,
        })
    }

    /// The key as SubjectPublicKeyInfo (RFC 5280 §4.1, RFC 5480, RFC 8410) in DER;
    /// `None` for BLS, for which no such form is defined.
    pub fn to_der(&self) -> Option<Vec<u8>> {
        self.info()?.to_der().ok()
    }

    /// The key as text: SubjectPublicKeyInfo as PEM (RFC 7468 §13) with a final line
    /// break; for BLS `bls12-381:` and the key in hexadecimal.
    pub fn to_text(&self) -> String {
        match self
            .info()
            .and_then(|info| info.to_pem(spki::der::pem::LineEnding::LF).ok())
        {
            Some(pem) => pem,
            None => format!("{BLS_PREFIX}{}", to_hex(&self.bytes)),
        }
    }

    /// `SHA256:` and base64 without padding over the DER of [`PublicKey::to_der`]
    /// (BLS: over [`PublicKey::as_bytes`]).
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = match self.to_der() {
            Some(der) => Sha256::digest(der),
            None => Sha256::digest(&self.bytes),
        };
        Fingerprint(digest.into())
    }

    fn rsa(&self) -> Option<rsa::RsaPublicKey> {
        rsa::RsaPublicKey::from_pkcs1_der(&self.bytes).ok()
    }

    /// Verifies `signature` over the message with this digest, which is made with the hash of the
    /// signature's scheme.
    ///
    /// # Errors
    /// [`BadSignature`], without a reason, also for schemes that do not sign digests (Ed25519,
    /// BLS).
    pub fn verify_digest(&self, digest: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        use rsa::Pkcs1v15Sign;
        let scheme = signature.scheme();
        if !SignatureScheme::all_of(self.algorithm).any(|known| known == scheme) {
            return Err(BadSignature);
        }
        let (point, bytes) = (self.bytes.as_slice(), signature.as_bytes());
        let bad = |_: signature::Error| BadSignature;
        let with_rsa = |padding: Pkcs1v15Sign| {
            let key = self.rsa().ok_or(BadSignature)?;
            key.verify(padding, digest, bytes).map_err(|_| BadSignature)
        };
        match scheme {
            SignatureScheme::EcdsaP256Sha256 => p256::ecdsa::VerifyingKey::from_sec1_bytes(point)
                .and_then(|key| {
                    key.verify_prehash(digest, &p256::ecdsa::Signature::from_slice(bytes)?)
                })
                .map_err(bad),
            SignatureScheme::EcdsaP384Sha384 => p384::ecdsa::VerifyingKey::from_sec1_bytes(point)
                .and_then(|key| {
                    key.verify_prehash(digest, &p384::ecdsa::Signature::from_slice(bytes)?)
                })
                .map_err(bad),
            SignatureScheme::EcdsaSecp256k1Sha256 | SignatureScheme::Eip191Secp256k1 => {
                k256::ecdsa::VerifyingKey::from_sec1_bytes(point)
                    .and_then(|key| {
                        let signature = k256::ecdsa::Signature::from_slice(bytes)?;
                        // Both s and -s verify; other people's signers do not always give
                        // the low one.
                        let signature = signature.normalize_s().unwrap_or(signature);
                        key.verify_prehash(digest, &signature)
                    })
                    .map_err(bad)
            }
            SignatureScheme::RsaPkcs1Sha256 => with_rsa(Pkcs1v15Sign::new::<Sha256>()),
            SignatureScheme::RsaPkcs1Sha512 => with_rsa(Pkcs1v15Sign::new::<Sha512>()),
            SignatureScheme::Ed25519 | SignatureScheme::Bls12381G2Basic => Err(BadSignature),
        }
    }

    /// Verifies `signature` over `message`.
    ///
    /// ECDSA is malleable: anybody can turn r and s into r and -s, which verifies as well. In the
    /// other schemes nobody without the private key can make a second signature over the same
    /// message.
    ///
    ///
    /// # Errors
    /// [`BadSignature`], without a reason.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        let scheme = signature.scheme();
        if !SignatureScheme::all_of(self.algorithm).any(|known| known == scheme) {
            return Err(BadSignature);
        }
        let bytes = signature.as_bytes();
        let bad = |_: signature::Error| BadSignature;
        match self.algorithm {
            Algorithm::Ed25519 => {
                let key = self.bytes.as_slice().try_into().map_err(|_| BadSignature)?;
                let key = ed25519_dalek::VerifyingKey::from_bytes(key).map_err(bad)?;
                let signature = ed25519_dalek::Signature::from_slice(bytes).map_err(bad)?;
                key.verify_strict(message, &signature).map_err(bad)
            }
            // `ring` takes a third of the time that the pure Rust of `p256` takes.
            Algorithm::P256 => {
                UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, &self.bytes)
                    .verify(message, bytes)
                    .map_err(|_| BadSignature)
            }
            Algorithm::P384 => {
                UnparsedPublicKey::new(&ring::signature::ECDSA_P384_SHA384_FIXED, &self.bytes)
                    .verify(message, bytes)
                    .map_err(|_| BadSignature)
            }
            Algorithm::Secp256k1 | Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => {
                let digest = scheme.digest(message).ok_or(BadSignature)?;
                self.verify_digest(&digest, signature)
            }
            Algorithm::Bls12381 => {
                let key =
                    blst::min_pk::PublicKey::from_bytes(&self.bytes).map_err(|_| BadSignature)?;
                let signature =
                    blst::min_pk::Signature::sig_validate(bytes, true).map_err(|_| BadSignature)?;
                match signature.verify(false, message, BLS_DST, &[], &key, false) {
                    blst::BLST_ERROR::BLST_SUCCESS => Ok(()),
                    _ => Err(BadSignature),
                }
            }
            Algorithm::X25519 => Err(BadSignature),
        }
    }
}

/// Whether a number in little-endian bytes is below 2^255 - 19: each element of the field
/// has one such name.
fn is_reduced(number: &[u8]) -> bool {
    match number {
        [low, middle @ .., 0x7f] => *low < 0xed || middle.iter().any(|byte| *byte != 0xff),
        [.., high] => *high < 0x80,
        [] => false,
    }
}

/// Whether every agreement with this point gives zero (RFC 7748 §6.1): the u-coordinates of
/// the points of order 1, 2, 4 and 8 on Curve25519 and on its twist. One is zero, the next
/// one, the last -1.
fn is_of_small_order(u: &[u8; 32]) -> bool {
    const ORDER_8: [[u8; 32]; 2] = [
        [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f,
            0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16,
            0x5f, 0x49, 0xb8, 0x00,
        ],
        [
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83,
            0xef, 0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd,
            0xd0, 0x9f, 0x11, 0x57,
        ],
    ];
    let [low, rest @ ..] = u;
    let is_small = *low < 2 && rest.iter().all(|byte| *byte == 0);
    let is_minus_one = matches!(u, [0xec, middle @ .., 0x7f] if middle.iter().all(|b| *b == 0xff));
    is_small || is_minus_one || ORDER_8.contains(u)
}

trait Uncompressed {
    fn to_sec1_uncompressed(&self) -> Vec<u8>;
}

macro_rules! uncompressed {
    ($($key:ty),*) => {$(
        impl Uncompressed for $key {
            fn to_sec1_uncompressed(&self) -> Vec<u8> {
                use p256::elliptic_curve::sec1::ToEncodedPoint;
                self.to_encoded_point(false).as_bytes().to_vec()
            }
        }
    )*};
}
uncompressed!(p256::PublicKey, p384::PublicKey, k256::PublicKey);

fn rsa_algorithm(key: &rsa::RsaPublicKey) -> Option<Algorithm> {
    if *key.e() != rsa::BigUint::from(65537u32) {
        return None;
    }
    [Algorithm::Rsa2048, Algorithm::Rsa3072, Algorithm::Rsa4096]
        .into_iter()
        .find(|a| a.rsa_bits() == Some(key.n().bits()))
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} {})", self.algorithm, self.fingerprint())
    }
}

/// The bytes or the text are not a public key that Claviger knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid public key")]
pub struct BadPublicKey;

/// The SHA-256 fingerprint of a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The prefix of a fingerprint.
    pub const PREFIX: &'static str = "SHA256:";
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{}",
            Self::PREFIX,
            BASE64_STANDARD_NO_PAD.encode(self.0)
        )
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = BadFingerprint;

    /// Parses `SHA256:` and base64, with or without padding.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let text = s.strip_prefix(Self::PREFIX).ok_or(BadFingerprint)?;
        let bytes = BASE64_STANDARD_NO_PAD
            .decode(text)
            .or_else(|_| BASE64_STANDARD.decode(text))
            .map_err(|_| BadFingerprint)?;
        Ok(Fingerprint(bytes.try_into().map_err(|_| BadFingerprint)?))
    }
}

/// The text is not a fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is SHA256: and 43 characters of base64")]
pub struct BadFingerprint;

/// Lower-case hexadecimal, two digits a byte.
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
            // Writing to a String cannot fail.
            let _ = write!(s, "{b:02x}");
            s
        })
}

/// The bytes of a hexadecimal string in either case; `None` if it is malformed.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_der_and_bytes_name_the_same_key() {
        let secret = p256::SecretKey::from_slice(&[7; 32]).unwrap();
        let key =
            PublicKey::from_bytes(Algorithm::P256, &secret.public_key().to_sec1_bytes()).unwrap();
        assert_eq!(PublicKey::from_der(&key.to_der().unwrap()).unwrap(), key);
        assert_eq!(PublicKey::from_text(&key.to_text()).unwrap(), key);
        use p256::pkcs8::EncodePublicKey;
        assert_eq!(
            secret.public_key().to_public_key_der().unwrap().as_bytes(),
            key.to_der().unwrap()
        );
    }

    #[test]
    fn a_bls_key_is_text_with_a_prefix() {
        let secret = blst::min_pk::SecretKey::key_gen(&[1; 32], &[]).unwrap();
        let key =
            PublicKey::from_bytes(Algorithm::Bls12381, &secret.sk_to_pk().compress()).unwrap();
        assert!(key.to_text().starts_with("bls12-381:"));
        assert_eq!(PublicKey::from_text(&key.to_text()).unwrap(), key);
        assert_eq!(key.to_der(), None);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for algorithm in Algorithm::ALL {
            for bytes in [&[][..], &[0; 31], &[4; 65], &[0xff; 48]] {
                assert_eq!(PublicKey::from_bytes(algorithm, bytes), Err(BadPublicKey));
            }
        }
        assert_eq!(PublicKey::from_text("bls12-381:zz"), Err(BadPublicKey));
        assert_eq!(PublicKey::from_text(""), Err(BadPublicKey));
    }

    #[test]
    fn a_point_that_is_not_on_its_curve_or_written_in_another_form_is_refused() {
        let secret = p256::SecretKey::from_slice(&[7; 32]).unwrap();
        let point = secret.public_key().to_sec1_uncompressed();
        let read = |point: &[u8]| PublicKey::from_bytes(Algorithm::P256, point);
        assert_eq!(read(&point).unwrap().as_bytes(), point);
        let mut bent = point.clone();
        bent[64] ^= 1;
        assert_eq!(read(&bent), Err(BadPublicKey));
        // The hybrid form, 6 or 7 by the last bit of y (X9.62 §4.3.6), which SEC 1 has not.
        for form in [6, 7] {
            let mut hybrid = point.clone();
            hybrid[0] = form;
            assert_eq!(read(&hybrid), Err(BadPublicKey));
        }
        assert_eq!(read(&[0]), Err(BadPublicKey));
        let elsewhere = PublicKey::from_bytes(Algorithm::Secp256k1, &point);
        assert_eq!(elsewhere, Err(BadPublicKey));
    }

    #[test]
    fn an_x25519_key_with_which_every_agreement_gives_zero_is_refused() {
        let last = |low: u8| {
            let mut u = [0xff; 32];
            (u[0], u[31]) = (low, 0x7f);
            u
        };
        let of_order_8 = [
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        ];
        let bytes = |hex| <[u8; 32]>::try_from(from_hex(hex).unwrap()).unwrap();
        let of_order_8 = of_order_8.map(bytes);
        let mut small = vec![[0; 32], last(0xec), last(0xed), last(0xee)];
        small.extend(of_order_8);
        small.push(std::array::from_fn(|i| u8::from(i == 0)));
        for u in small.clone() {
            for high in [0, 0x80] {
                let mut u = u;
                u[31] |= high;
                // RFC 7748 §6.1: this is what must not be taken for a secret.
                assert_eq!(x25519_dalek::x25519([7; 32], u), [0; 32], "{u:02x?}");
                let refused = PublicKey::from_bytes(Algorithm::X25519, &u);
                assert_eq!(refused, Err(BadPublicKey), "{u:02x?}");
            }
        }
        // Two names for one key are one too many.
        assert!(PublicKey::from_bytes(Algorithm::X25519, &last(0xf0)).is_err());
        let base = std::array::from_fn::<u8, 32, _>(|i| if i == 0 { 9 } else { 0 });
        assert!(PublicKey::from_bytes(Algorithm::X25519, &base).is_ok());
    }

    #[test]
    fn an_ed25519_key_that_signs_anything_is_refused() {
        let identity = std::array::from_fn::<u8, 32, _>(|i| u8::from(i == 0));
        let minus_one = std::array::from_fn::<u8, 32, _>(|i| match i {
            0 => 0xec,
            31 => 0x7f,
            _ => 0xff,
        });
        // y = p + 1: the identity again, by another name.
        let mut unreduced = minus_one;
        unreduced[0] = 0xee;
        for key in [identity, minus_one, unreduced, [0; 32]] {
            let refused = PublicKey::from_bytes(Algorithm::Ed25519, &key);
            assert_eq!(refused, Err(BadPublicKey), "{key:02x?}");
        }
    }

    #[test]
    fn a_digest_is_checked_as_the_message_is() {
        let secret = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let public = secret.verifying_key().to_encoded_point(false);
        let key = PublicKey::from_bytes(Algorithm::P256, public.as_bytes()).unwrap();
        let signature: p256::ecdsa::Signature = signature::Signer::sign(&secret, b"hello");
        let bytes = signature.to_bytes().to_vec();
        let signature = Signature::new(SignatureScheme::EcdsaP256Sha256, bytes).unwrap();
        assert_eq!(key.verify(b"hello", &signature), Ok(()));
        let digest = Sha256::digest(b"hello");
        assert_eq!(key.verify_digest(&digest, &signature), Ok(()));
        assert!(
            key.verify_digest(&Sha256::digest(b"hell"), &signature)
                .is_err()
        );
        assert!(key.verify_digest(&digest[..8], &signature).is_err());
    }

    #[test]
    fn a_fingerprint_reads_back() {
        let key = PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap();
        let text = key.fingerprint().to_string();
        assert_eq!(text.len(), 50);
        assert_eq!(text.parse(), Ok(key.fingerprint()));
        assert_eq!("SHA256:".parse::<Fingerprint>(), Err(BadFingerprint));
    }

    #[test]
    fn hexadecimal_goes_both_ways() {
        assert_eq!(to_hex(&[0, 255, 16]), "00ff10");
        assert_eq!(from_hex("00FF10"), Some(vec![0, 255, 16]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("é"), None);
    }
}
