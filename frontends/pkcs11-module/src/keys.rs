//! Public keys as PKCS#11 has them, and the mechanisms that they have.

use cryptoki_sys::{
    CK_KEY_TYPE, CK_MECHANISM_INFO, CK_MECHANISM_TYPE, CK_ULONG, CKF_EC_F_P, CKF_EC_OID,
    CKF_EC_UNCOMPRESS, CKF_HW, CKF_SIGN, CKK_EC, CKK_EC_EDWARDS, CKK_RSA, CKM_ECDSA,
    CKM_ECDSA_SHA256, CKM_ECDSA_SHA384, CKM_EDDSA, CKM_RSA_PKCS, CKM_SHA256_RSA_PKCS,
    CKR_DATA_INVALID, CKR_DATA_LEN_RANGE,
};
use sha2::{Digest, Sha256};
use x509_cert::der::asn1::{ObjectIdentifier, OctetStringRef, UintRef};
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use crate::entry::Done;

const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const SECP256K1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.10");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// A SHA-256 digest as a `DigestInfo` in DER, up to the digest (RFC 8017 §9.2, note 1).
const SHA256_DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    /// The DER of its SubjectPublicKeyInfo.
    pub(crate) der: Vec<u8>,
    pub(crate) kind: Kind,
}

/// What kind of key it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// On a curve with a name; `params` and `point` as PKCS#11 has them.
    Ec {
        curve: Curve,
        params: Vec<u8>,
        point: Vec<u8>,
    },
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
    Secp256k1,
    Ed25519,
}

/// A way to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mechanism {
    pub(crate) number: CK_MECHANISM_TYPE,
    /// Whether a digest is handed in.
    pub(crate) is_of_digests: bool,
}

const ECDSA: Mechanism = of_digests(CKM_ECDSA);
const P256_MECHANISMS: &[Mechanism] = &[ECDSA, of_messages(CKM_ECDSA_SHA256)];
const P384_MECHANISMS: &[Mechanism] = &[ECDSA, of_messages(CKM_ECDSA_SHA384)];
const ED25519_MECHANISMS: &[Mechanism] = &[of_messages(CKM_EDDSA)];
const RSA_MECHANISMS: &[Mechanism] = &[of_digests(CKM_RSA_PKCS), of_messages(CKM_SHA256_RSA_PKCS)];

const fn of_digests(number: CK_MECHANISM_TYPE) -> Mechanism {
    Mechanism {
        number,
        is_of_digests: true,
    }
}

const fn of_messages(number: CK_MECHANISM_TYPE) -> Mechanism {
    Mechanism {
        number,
        is_of_digests: false,
    }
}

impl PublicKey {
    /// The key with this SubjectPublicKeyInfo, if the module knows its kind.
    pub(crate) fn from_der(der: &[u8]) -> Option<Self> {
        let info = SubjectPublicKeyInfoRef::from_der(der).ok()?;
        let bits = info.subject_public_key.as_bytes()?;
        let oid = info.algorithm.oid;
        let ec = |curve, params: ObjectIdentifier| {
            Some(Kind::Ec {
                curve,
                params: params.to_der().ok()?,
                point: OctetStringRef::new(bits).ok()?.to_der().ok()?,
            })
        };
        let kind = match oid {
            EC => match info.algorithm.parameters_oid().ok()? {
                P256 => ec(Curve::P256, P256),
                P384 => ec(Curve::P384, P384),
                SECP256K1 => ec(Curve::Secp256k1, SECP256K1),
                _ => None,
            },
            ED25519 => ec(Curve::Ed25519, ED25519),
            RSA => rsa(bits),
            _ => None,
        };
        Some(PublicKey {
            der: der.to_vec(),
            kind: kind?,
        })
    }

    /// The SHA-256 of its SubjectPublicKeyInfo.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    pub(crate) fn key_type(&self) -> CK_KEY_TYPE {
        match &self.kind {
            Kind::Ec {
                curve: Curve::Ed25519,
                ..
            } => CKK_EC_EDWARDS,
            Kind::Ec { .. } => CKK_EC,
            Kind::Rsa { .. } => CKK_RSA,
        }
    }

    /// The length of its signatures in bytes.
    pub(crate) fn signature_length(&self) -> usize {
        match &self.kind {
            Kind::Ec { curve, .. } => 2 * curve.length(),
            Kind::Rsa { modulus, .. } => modulus.len(),
        }
    }

    /// The length of its private half, or of its modulus, in bits.
    fn bits(&self) -> CK_ULONG {
        let bytes = match &self.kind {
            Kind::Ec { curve, .. } => curve.length(),
            Kind::Rsa { modulus, .. } => modulus.len(),
        };
        8 * bytes as CK_ULONG
    }

    /// The scheme of its signatures, as the daemon calls it.
    pub(crate) fn scheme(&self) -> &'static str {
        match &self.kind {
            Kind::Ec { curve, .. } => match curve {
                Curve::P256 => "ecdsa-p256-sha256",
                Curve::P384 => "ecdsa-p384-sha384",
                Curve::Secp256k1 => "ecdsa-secp256k1-sha256",
                Curve::Ed25519 => "ed25519",
            },
            Kind::Rsa { .. } => "rsa-pkcs1-sha256",
        }
    }

    pub(crate) fn mechanisms(&self) -> &'static [Mechanism] {
        match &self.kind {
            Kind::Ec { curve, .. } => match curve {
                Curve::P256 | Curve::Secp256k1 => P256_MECHANISMS,
                Curve::P384 => P384_MECHANISMS,
                Curve::Ed25519 => ED25519_MECHANISMS,
            },
            Kind::Rsa { .. } => RSA_MECHANISMS,
        }
    }

    pub(crate) fn mechanism(&self, number: CK_MECHANISM_TYPE) -> Option<Mechanism> {
        let mut known = self.mechanisms().iter();
        known.find(|known| known.number == number).copied()
    }

    pub(crate) fn mechanism_info(&self) -> CK_MECHANISM_INFO {
        let of_curves = match &self.kind {
            Kind::Ec { .. } => CKF_EC_F_P | CKF_EC_OID | CKF_EC_UNCOMPRESS,
            Kind::Rsa { .. } => 0,
        };
        CK_MECHANISM_INFO {
            ulMinKeySize: self.bits(),
            ulMaxKeySize: self.bits(),
            flags: CKF_HW | CKF_SIGN | of_curves,
        }
    }

    /// The digest that the daemon signs, of what is handed in as one.
    ///
    /// # Errors
    /// `CKR_DATA_LEN_RANGE`, `CKR_DATA_INVALID`.
    pub(crate) fn digest(&self, handed_in: &[u8]) -> Done<Vec<u8>> {
        match &self.kind {
            // ECDSA takes the leftmost bits of a longer digest, and a shorter one as a number
            // (FIPS 186-5 §6.4.1).
            Kind::Ec { curve, .. } => match (handed_in.len(), curve.length()) {
                (0, _) => Err(CKR_DATA_LEN_RANGE),
                (length, wanted) if length >= wanted => Ok(handed_in[..wanted].to_vec()),
                (length, wanted) => Ok([&vec![0; wanted - length][..], handed_in].concat()),
            },
            // Another hash than SHA-256 would be signed as SHA-256.
            Kind::Rsa { .. } => match handed_in.strip_prefix(&SHA256_DIGEST_INFO) {
                Some(digest) if digest.len() == 32 => Ok(digest.to_vec()),
                _ => Err(CKR_DATA_INVALID),
            },
        }
    }
}

impl Curve {
    /// The length of a number of it in bytes.
    fn length(self) -> usize {
        match self {
            Curve::P384 => 48,
            Curve::P256 | Curve::Secp256k1 | Curve::Ed25519 => 32,
        }
    }
}

/// RSAPublicKey (RFC 8017, appendix A.1.1).
fn rsa(der: &[u8]) -> Option<Kind> {
    let mut reader = SliceReader::new(der).ok()?;
    let (modulus, exponent) = reader
        .sequence(|reader| Ok((UintRef::decode(reader)?, UintRef::decode(reader)?)))
        .ok()?;
    Some(Kind::Rsa {
        modulus: modulus.as_bytes().to_vec(),
        exponent: exponent.as_bytes().to_vec(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn key(curve: Curve) -> PublicKey {
        PublicKey {
            der: Vec::new(),
            kind: Kind::Ec {
                curve,
                params: Vec::new(),
                point: Vec::new(),
            },
        }
    }

    #[test]
    fn a_digest_of_another_length_is_taken_as_ecdsa_takes_it() {
        let p256 = key(Curve::P256);
        assert_eq!(p256.digest(&[7; 32]), Ok(vec![7; 32]));
        assert_eq!(p256.digest(&[7; 64]), Ok(vec![7; 32]));
        let short = p256.digest(&[7; 20]).unwrap();
        assert_eq!((&short[..12], &short[12..]), (&[0; 12][..], &[7; 20][..]));
        assert_eq!(p256.digest(&[]), Err(CKR_DATA_LEN_RANGE));
        assert_eq!(key(Curve::P384).digest(&[7; 64]), Ok(vec![7; 48]));
    }

    #[test]
    fn of_rsa_only_a_digest_of_sha_256_is_signed() {
        let rsa = PublicKey {
            der: Vec::new(),
            kind: Kind::Rsa {
                modulus: vec![0xff; 256],
                exponent: vec![1, 0, 1],
            },
        };
        let info = [&SHA256_DIGEST_INFO[..], &[7; 32]].concat();
        assert_eq!(rsa.digest(&info), Ok(vec![7; 32]));
        for bad in [&info[..50], &[&info[..], &[0]].concat(), &[7; 32], &[]] {
            assert_eq!(rsa.digest(bad), Err(CKR_DATA_INVALID));
        }
        // SHA-384, with a digest that is cut.
        let mut other = info;
        other[14] = 2;
        assert_eq!(rsa.digest(&other), Err(CKR_DATA_INVALID));
    }
}
