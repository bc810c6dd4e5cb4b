//! What a key says of itself: a signing request, or a certificate that it signs itself.

use std::time::Duration;

use claviger_token::{PublicKey, Signature};
use rand_core::{OsRng, RngCore};
use signature::Keypair;
use spki::{
    AlgorithmIdentifierOwned, Document, DynSignatureAlgorithmIdentifier, EncodePublicKey,
    ObjectIdentifier, SubjectPublicKeyInfoOwned,
};
use x509_cert::builder::{Builder, CertificateBuilder, Profile, RequestBuilder};
use x509_cert::certificate::{Certificate, TbsCertificate, Version};
use x509_cert::der::asn1::BitString;
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{Decode, Encode, EncodePem, Tag};
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
};
use x509_cert::request::{CertReq, CertReqInfo};
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::Validity;

use super::error::malformed;
use super::names::{AlternativeName, Subject};
use super::{CertificateError, algorithm};

/// RFC 5280 §4.2.1.12: to be a server, or a client, of TLS.
const SERVER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

/// The length of a serial number in bytes: random, and positive as it stands.
const SERIAL: usize = 16;

/// What is to be signed by its own key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsigned {
    der: Vec<u8>,
    key: PublicKey,
}

/// A request of `key` for a certificate (RFC 2986). With `names`, it asks for them as alternative
/// names.
///
/// # Errors
/// [`CertificateError::Unsupported`].
pub fn request(
    key: &PublicKey,
    subject: &Subject,
    names: &[AlternativeName],
) -> Result<Unsigned, CertificateError> {
    let described = Described::of(key)?;
    let build = || -> Result<Vec<u8>, x509_cert::builder::Error> {
        let mut builder = RequestBuilder::new(subject.0.clone(), &described)?;
        if !names.is_empty() {
            builder.add_extension(&alternative(names))?;
        }
        Ok(builder.finalize()?)
    };
    Ok(Unsigned {
        der: build().map_err(|error| malformed(&error))?,
        key: key.clone(),
    })
}

/// A certificate of `key` by itself (RFC 5280), for a server or a client of TLS, from now on for so
/// many days.
///
/// # Errors
/// [`CertificateError::Unsupported`], [`CertificateError::BadPeriod`].
pub fn self_signed(
    key: &PublicKey,
    subject: &Subject,
    names: &[AlternativeName],
    days: u32,
) -> Result<Unsigned, CertificateError> {
    let described = Described::of(key)?;
    let period = Duration::from_secs(u64::from(days) * 24 * 60 * 60);
    let validity = match days {
        0 => None,
        _ => Validity::from_now(period).ok(),
    };
    let validity = validity.ok_or(CertificateError::BadPeriod { days })?;
    let build = || -> Result<Vec<u8>, x509_cert::builder::Error> {
        let mut builder = CertificateBuilder::new(
            Profile::Manual { issuer: None },
            serial()?,
            validity,
            subject.0.clone(),
            SubjectPublicKeyInfoOwned::from_key(described.clone())?,
            &described,
        )?;
        builder.add_extension(&BasicConstraints {
            ca: false,
            path_len_constraint: None,
        })?;
        builder.add_extension(&KeyUsage(KeyUsages::DigitalSignature.into()))?;
        builder.add_extension(&ExtendedKeyUsage(vec![SERVER, CLIENT]))?;
        if !names.is_empty() {
            builder.add_extension(&alternative(names))?;
        }
        Ok(builder.finalize()?)
    };
    Ok(Unsigned {
        der: build().map_err(|error| malformed(&error))?,
        key: key.clone(),
    })
}

/// Whether `der` is what `key` says of itself, to be signed by it: a request for a certificate of
/// this key, or a certificate of this key that names its subject as its issuer.
///
/// # Errors
/// What is wrong with it, as a part of a sentence.
pub fn is_of_key(der: &[u8], key: &PublicKey) -> Result<(), &'static str> {
    let (_, wanted) = algorithm::of(key).map_err(|_| "no certificate is signed by such a key")?;
    let its = key.to_der();
    let is_its = |found: &SubjectPublicKeyInfoOwned| found.to_der().ok() == its;
    if let Ok(request) = CertReqInfo::from_der(der) {
        return match is_its(&request.public_key) {
            true => Ok(()),
            false => Err("the request is for another key"),
        };
    }
    let certificate = TbsCertificate::from_der(der)
        .map_err(|_| "the data is neither a request for a certificate nor a certificate")?;
    match certificate {
        of if of.version != Version::V3 => Err("the certificate is not of version 3"),
        of if !is_its(&of.subject_public_key_info) => Err("the certificate is for another key"),
        of if of.subject != of.issuer => Err("the certificate names somebody else as its issuer"),
        of if of.signature != wanted => Err("the certificate names another kind of signature"),
        _ => Ok(()),
    }
}

/// Whether a message begins like a request for a certificate, or like a certificate of version 3,
/// of any key, without its signature. Its first 32 bytes are enough.
pub fn begins_like_one(message: &[u8]) -> bool {
    /// `[0] { INTEGER 2 }` (RFC 5280 §4.1).
    const VERSION_3: &[u8] = &[0xa0, 3, 2, 1, 2];
    /// `INTEGER 0` (RFC 2986 §4.1). A name follows: a SEQUENCE of SETs, or an empty one.
    const VERSION_OF_REQUEST: &[u8] = &[2, 1, 0];
    let Some((_, content)) = sequence(message) else {
        return false;
    };
    let name = content.strip_prefix(VERSION_OF_REQUEST);
    let begins_like_name =
        |(length, parts): (usize, &[u8])| length == 0 || parts.first() == Some(&u8::from(Tag::Set));
    content.starts_with(VERSION_3) || name.and_then(sequence).is_some_and(begins_like_name)
}

/// The length that a SEQUENCE in DER says it has, and what there is of its content.
fn sequence(der: &[u8]) -> Option<(usize, &[u8])> {
    let (header, rest) = der.split_at_checked(2)?;
    if header[0] != u8::from(Tag::Sequence) {
        return None;
    }
    let octets = match header[1] {
        short @ 0..0x80 => return Some((usize::from(short), rest)),
        // The indefinite form, and lengths that no message has.
        0x80 | 0x85.. => return None,
        long => usize::from(long & 0x7f),
    };
    let (length, content) = rest.split_at_checked(octets)?;
    let length = length
        .iter()
        .fold(0, |sum, octet| sum << 8 | usize::from(*octet));
    Some((length, content))
}

impl Unsigned {
    /// The bytes that the key signs.
    pub fn bytes(&self) -> &[u8] {
        &self.der
    }

    /// The request or the certificate, as PEM.
    ///
    /// # Errors
    /// [`CertificateError::OtherScheme`]; [`CertificateError::Malformed`], if the key did not make
    /// the signature.
    pub fn signed(&self, signature: &Signature) -> Result<String, CertificateError> {
        let (needed, signed_by) = algorithm::of(&self.key)?;
        let found = signature.scheme();
        if found != needed {
            return Err(CertificateError::OtherScheme { needed, found });
        }
        let checked = self.key.verify(&self.der, signature);
        checked.map_err(|error| malformed(&error))?;
        let signature = signature.to_der().map_err(|error| malformed(&error))?;
        let signature = BitString::from_bytes(&signature).map_err(|error| malformed(&error))?;
        let pem = match CertReqInfo::from_der(&self.der) {
            Ok(info) => CertReq {
                info,
                algorithm: signed_by,
                signature,
            }
            .to_pem(LineEnding::LF),
            Err(_) => TbsCertificate::from_der(&self.der).and_then(|tbs_certificate| {
                Certificate {
                    tbs_certificate,
                    signature_algorithm: signed_by,
                    signature,
                }
                .to_pem(LineEnding::LF)
            }),
        };
        pem.map_err(|error| malformed(&error))
    }
}

fn serial() -> Result<SerialNumber, x509_cert::der::Error> {
    let mut bytes = [0; SERIAL];
    OsRng.fill_bytes(&mut bytes);
    // Neither negative nor shorter than it is long.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::new(&bytes)
}

fn alternative(names: &[AlternativeName]) -> SubjectAltName {
    SubjectAltName(names.iter().map(|name| name.0.clone()).collect())
}

/// A key as the builders of `x509-cert` want the signer: they ask it who it is.
#[derive(Clone)]
struct Described {
    der: Vec<u8>,
    algorithm: AlgorithmIdentifierOwned,
}

impl Described {
    fn of(key: &PublicKey) -> Result<Self, CertificateError> {
        let (_, algorithm) = algorithm::of(key)?;
        let unsupported = CertificateError::Unsupported {
            algorithm: key.algorithm(),
        };
        let der = key.to_der().ok_or(unsupported)?;
        Ok(Described { der, algorithm })
    }
}

impl Keypair for Described {
    type VerifyingKey = Described;

    fn verifying_key(&self) -> Described {
        self.clone()
    }
}

impl EncodePublicKey for Described {
    fn to_public_key_der(&self) -> spki::Result<Document> {
        Ok(Document::try_from(self.der.as_slice())?)
    }
}

impl DynSignatureAlgorithmIdentifier for Described {
    fn signature_algorithm_identifier(&self) -> spki::Result<AlgorithmIdentifierOwned> {
        Ok(self.algorithm.clone())
    }
}

#[cfg(test)]
mod tests {
    use claviger_token::{Algorithm, SignatureScheme};
    use signature::Signer;

    use super::*;
    use crate::certificate::Chain;

    fn key(seed: u8) -> (p256::ecdsa::SigningKey, PublicKey) {
        let secret = p256::ecdsa::SigningKey::from_slice(&[seed; 32]).unwrap();
        let point = secret.verifying_key().to_encoded_point(false);
        let public = PublicKey::from_bytes(Algorithm::P256, point.as_bytes()).unwrap();
        (secret, public)
    }

    fn signed(secret: &p256::ecdsa::SigningKey, message: &[u8]) -> Signature {
        let signature: p256::ecdsa::Signature = secret.sign(message);
        let bytes = signature.to_bytes().to_vec();
        Signature::new(SignatureScheme::EcdsaP256Sha256, bytes).unwrap()
    }

    #[test]
    fn what_a_key_says_of_itself_is_told_from_what_it_says_of_others() {
        let (secret, public) = key(7);
        let (_, other) = key(9);
        let subject: Subject = "CN=alice,O=Example".parse().unwrap();
        let names: Vec<AlternativeName> = vec!["alice.example".parse().unwrap()];
        let request = request(&public, &subject, &names).unwrap();
        let certificate = self_signed(&public, &subject, &names, 30).unwrap();
        for unsigned in [&request, &certificate] {
            assert_eq!(is_of_key(unsigned.bytes(), &public), Ok(()));
            assert!(is_of_key(unsigned.bytes(), &other).is_err());
            assert!(is_of_key(&unsigned.bytes()[1..], &public).is_err());
            let by_other = signed(&key(9).0, unsigned.bytes());
            let refused = unsigned.signed(&by_other).unwrap_err();
            assert_eq!(refused.code(), "certificate-malformed");
        }
        let pem = request.signed(&signed(&secret, request.bytes())).unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"));
        let pem = certificate.signed(&signed(&secret, certificate.bytes()));
        let chain = Chain::read(pem.unwrap().as_bytes(), &public).unwrap();
        assert_eq!(chain.subject(), "CN=alice,O=Example");
        assert_eq!(chain.issuer(), "CN=alice,O=Example");
        assert_eq!(chain.names(), ["DNS:alice.example"]);
        let thirty = 30 * 24 * 60 * 60;
        assert_eq!(chain.not_after() - chain.not_before(), thirty);
        // For somebody else, by this key.
        let mut of_other = TbsCertificate::from_der(certificate.bytes()).unwrap();
        of_other.subject = "CN=bob".parse::<Subject>().unwrap().0;
        let der = of_other.to_der().unwrap();
        assert!(is_of_key(&der, &public).unwrap_err().contains("issuer"));
    }

    #[test]
    fn a_certificate_is_valid_for_a_time_that_can_be_written() {
        let (_, public) = key(7);
        let subject: Subject = "CN=alice".parse().unwrap();
        for days in [0, u32::MAX] {
            let refused = self_signed(&public, &subject, &[], days).unwrap_err();
            assert_eq!(refused, CertificateError::BadPeriod { days });
        }
        // Beyond 2050 the time has another form.
        for days in [1, 36_500] {
            self_signed(&public, &subject, &[], days).unwrap();
        }
    }
}
