//! How X.509 names the signatures of a key.

use claviger_token::{Algorithm, PublicKey, SignatureScheme};
use spki::{AlgorithmIdentifierOwned, ObjectIdentifier};
use x509_cert::der::asn1::Any;

use super::CertificateError;

/// RFC 5758 §3.2.
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
/// RFC 4055 §5.
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
/// RFC 8410 §3.
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// The scheme in which a key signs certificates, and the name that X.509 has for it.
///
/// # Errors
/// [`CertificateError::Unsupported`].
pub(super) fn of(
    key: &PublicKey,
) -> Result<(SignatureScheme, AlgorithmIdentifierOwned), CertificateError> {
    let (scheme, oid, parameters) = match key.algorithm() {
        Algorithm::P256 => (SignatureScheme::EcdsaP256Sha256, ECDSA_SHA256, None),
        Algorithm::Secp256k1 => (SignatureScheme::EcdsaSecp256k1Sha256, ECDSA_SHA256, None),
        Algorithm::P384 => (SignatureScheme::EcdsaP384Sha384, ECDSA_SHA384, None),
        Algorithm::Ed25519 => (SignatureScheme::Ed25519, ED25519, None),
        Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => {
            let null = Some(Any::null());
            (SignatureScheme::RsaPkcs1Sha256, RSA_SHA256, null)
        }
        algorithm => return Err(CertificateError::Unsupported { algorithm }),
    };
    Ok((scheme, AlgorithmIdentifierOwned { oid, parameters }))
}
