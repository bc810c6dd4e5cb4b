//! The certificate object of a slot, and the marks of keys that Claviger makes.
//!
//! A PIV slot has no label, and nothing in it tells who made its key. So the slot's certificate
//! object holds an X.509 certificate (RFC 5280) that describes each key of ours: issuer
//! `CN=Claviger`, subject the label, the public key, the key usage, and as serial number the
//! [`Mark`] of the generation. The certificate is written before the key is made, with an issuer
//! that says so and a meaningless public key. If the card shows no public keys, the public key of
//! the new key follows as soon as it is known. When the key is named, the certificate becomes
//! final. A throw-away key signs it, so the certificate vouches for nothing.
//!
//! If a card cannot delete, an emptied slot holds a *filler*: a key that belongs to nobody and has
//! replaced the destroyed one. Its certificate has the subject `CN=empty (Claviger)` and the
//! filler's public key, which shows that no other program has made a key in the slot since.
//!
//! `ykman piv info` and OpenSC's tools list such a slot with this certificate, and so as used.
//! PKCS#11 modules that rely on certificates find the key by it.

use std::borrow::Cow;
use std::io::Read;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use claviger_token::key::to_hex;
use claviger_token::{Algorithm, KeyUse, PublicKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use spki::{AlgorithmIdentifierOwned, ObjectIdentifier, SubjectPublicKeyInfoOwned};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::certificate::{Certificate, TbsCertificate, Version};
use x509_cert::der::asn1::{
    Any, BitString, GeneralizedTime, OctetString, SetOfVec, UtcTime, Utf8StringRef,
};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::KeyUsage;
use x509_cert::name::{Name, RelativeDistinguishedName};
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::{Time, Validity};

use crate::slot::Mark;
use crate::tlv;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");

/// The issuer of the certificates of finished keys.
const ISSUER: &str = "Claviger";
/// The issuer while the key is being made.
const UNFINISHED: &str = "Claviger: unfinished";
/// The issuer when the key is made and not named yet, on cards that do not show its public
/// half.
const UNNAMED: &str = "Claviger: unnamed";
/// The issuer while the key is being overwritten.
const DOOMED: &str = "Claviger: being destroyed";
/// The issuer where the key is a filler.
const VOID: &str = "Claviger: empty";
/// The subject there, for those who look at the slot with other tools.
const VOID_LABEL: &str = "empty (Claviger)";
/// The most characters of a common name (RFC 5280 appendix A.1, `ub-common-name`).
const LONGEST_NAME: usize = 64;
/// The first byte of our serial numbers: positive, not zero, and so as long as it looks.
const SERIAL_PREFIX: u8 = 0x43;

/// What is in a certificate object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Object {
    /// Claviger's own.
    Ours(Marker),
    /// Claviger's own, of a slot whose key was destroyed by this filler.
    Void(PublicKey),
    /// A certificate of others.
    Certificate {
        public_key: Option<PublicKey>,
        /// What its key usage allows, if it says anything of that.
        uses: Option<Vec<KeyUse>>,
        label: String,
    },
    /// Something else, or a certificate that cannot be read.
    Other,
}

/// A certificate of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) mark: Mark,
    pub(crate) label: String,
    pub(crate) usage: KeyUse,
    /// `None` while the key is being made, or overwritten.
    pub(crate) public_key: Option<PublicKey>,
    pub(crate) stage: Stage,
}

/// How far Claviger has come with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is being made, or is made and has no name yet.
    Unfinished,
    /// It was named: it belongs to an identity.
    Named,
    /// It is being overwritten: what is there is the key, or the filler in its place.
    Doomed,
}

impl Object {
    /// Reads a certificate object (SP 800-73-4 part 1, table 9 and following).
    pub(crate) fn parse(content: &[u8]) -> Object {
        match certificate(content).and_then(|der| Certificate::from_der(&der).ok()) {
            None => Object::Other,
            Some(certificate) => of_certificate(&certificate),
        }
    }
}

/// The certificate in a certificate object, in DER. `CertInfo` (SP 800-73-4 part 1, table 9)
/// says whether it is compressed, with gzip (RFC 1952).
pub(crate) fn certificate(content: &[u8]) -> Option<Cow<'_, [u8]>> {
    let stored = tlv::find(content, 0x70)?;
    match tlv::find(content, 0x71) {
        Some(&[info]) if info & 1 != 0 => decompressed(stored).map(Cow::Owned),
        _ => Some(Cow::Borrowed(stored)),
    }
}

/// `None` also where it grows beyond all certificates.
fn decompressed(stored: &[u8]) -> Option<Vec<u8>> {
    const LONGEST: u64 = 1 << 16;
    let mut plain = Vec::new();
    let mut reader = flate2::read::GzDecoder::new(stored).take(LONGEST);
    reader.read_to_end(&mut plain).ok()?;
    Some(plain)
}

fn of_certificate(certificate: &Certificate) -> Object {
    let tbs = &certificate.tbs_certificate;
    let public_key = tbs
        .subject_public_key_info
        .to_der()
        .ok()
        .and_then(|der| PublicKey::from_der(&der).ok());
    let uses: Option<Vec<KeyUse>> = tbs.get::<KeyUsage>().ok().flatten().map(|(_, usage)| {
        let signs = usage.digital_signature() || usage.non_repudiation();
        let opens = usage.key_agreement() || usage.key_encipherment();
        let all = [(signs, KeyUse::Sign), (opens, KeyUse::Decrypt)];
        all.into_iter().filter(|u| u.0).map(|u| u.1).collect()
    });
    let label = common_name(&tbs.subject).unwrap_or_default();
    let issuer = common_name(&tbs.issuer);
    // Whether the public key is that of the key, and how far it is.
    let ours = match issuer.as_deref() {
        Some(ISSUER) => Some((true, Stage::Named)),
        Some(UNNAMED) => Some((true, Stage::Unfinished)),
        Some(UNFINISHED) => Some((false, Stage::Unfinished)),
        Some(DOOMED) => Some((false, Stage::Doomed)),
        _ => None,
    };
    let mark = match tbs.serial_number.as_bytes() {
        [SERIAL_PREFIX, mark @ ..] => Mark::from_bytes(mark),
        _ => None,
    };
    match (ours, mark, &uses) {
        (None, Some(_), _) if issuer.as_deref() == Some(VOID) && public_key.is_some() => {
            public_key.map_or(Object::Other, Object::Void)
        }
        (Some((made, stage)), Some(mark), Some(uses)) if uses.len() == 1 => Object::Ours(Marker {
            mark,
            label,
            usage: uses[0],
            public_key: public_key.filter(|_| made),
            stage,
        }),
        _ => Object::Certificate {
            public_key,
            uses,
            label,
        },
    }
}

fn common_name(name: &Name) -> Option<String> {
    let mut all = name.0.iter().flat_map(|names| names.0.iter());
    let value = &all.find(|name| name.oid == COMMON_NAME)?.value;
    // Whatever the kind of string, ASCII and UTF-8 are read.
    String::from_utf8(value.value().to_vec()).ok()
}

fn name(common_name: &str) -> Option<Name> {
    let short: String = common_name.chars().take(LONGEST_NAME).collect();
    if short.is_empty() {
        return Some(Name::default());
    }
    let value = Any::from(Utf8StringRef::new(&short).ok()?);
    let named = AttributeTypeAndValue {
        oid: COMMON_NAME,
        value,
    };
    let names = SetOfVec::try_from(vec![named]).ok()?;
    Some(x509_cert::name::RdnSequence(vec![
        RelativeDistinguishedName(names),
    ]))
}

/// The content of the certificate object for a key that is going to be overwritten.
pub(crate) fn doomed(mark: &Mark, usage: KeyUse, label: &str) -> Option<Vec<u8>> {
    object(DOOMED, mark, usage, label, None)
}

/// The content of the certificate object for a key that is going to be made.
pub(crate) fn unfinished(mark: &Mark, usage: KeyUse, label: &str) -> Option<Vec<u8>> {
    object(UNFINISHED, mark, usage, label, None)
}

/// The content of the certificate object for a key that has been made and has no name yet.
pub(crate) fn unnamed(
    mark: &Mark,
    usage: KeyUse,
    label: &str,
    public_key: &PublicKey,
) -> Option<Vec<u8>> {
    object(UNNAMED, mark, usage, label, Some(public_key))
}

/// The content of the certificate object for a key that has been made and named.
pub(crate) fn finished(
    mark: &Mark,
    usage: KeyUse,
    label: &str,
    public_key: &PublicKey,
) -> Option<Vec<u8>> {
    object(ISSUER, mark, usage, label, Some(public_key))
}

/// The content of the certificate object for a slot where `filler` took the place of the
/// key that `mark` names.
pub(crate) fn void(mark: &Mark, filler: &PublicKey) -> Option<Vec<u8>> {
    object(VOID, mark, KeyUse::Sign, VOID_LABEL, Some(filler))
}

/// `None` where an encoder refuses, which it has no reason to.
fn object(
    issuer: &str,
    mark: &Mark,
    usage: KeyUse,
    label: &str,
    public_key: Option<&PublicKey>,
) -> Option<Vec<u8>> {
    let random = SystemRandom::new();
    let signer = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).ok()?;
    let signer =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, signer.as_ref(), &random).ok()?;
    let meaningless = signer.public_key().as_ref();
    let meaningless = PublicKey::from_bytes(Algorithm::P256, meaningless).ok()?;
    let spki = public_key.unwrap_or(&meaningless).to_der()?;
    let subject_public_key_info = SubjectPublicKeyInfoOwned::from_der(&spki).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    // Bits 0 and 4 of KeyUsage (RFC 5280 §4.2.1.3).
    let bits: &[u8] = match usage {
        KeyUse::Sign => &[0x03, 0x02, 0x07, 0x80],
        KeyUse::Decrypt => &[0x03, 0x02, 0x03, 0x08],
    };
    let algorithm = AlgorithmIdentifierOwned {
        oid: ECDSA_WITH_SHA256,
        parameters: None,
    };
    let tbs_certificate = TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::new(&[&[SERIAL_PREFIX], mark.as_bytes()].concat()).ok()?,
        signature: algorithm.clone(),
        issuer: name(issuer)?,
        validity: Validity {
            not_before: time(now)?,
            not_after: Time::INFINITY,
        },
        subject: name(label)?,
        subject_public_key_info,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(vec![Extension {
            extn_id: KEY_USAGE,
            critical: true,
            extn_value: OctetString::new(bits).ok()?,
        }]),
    };
    let signature = signer.sign(&random, &tbs_certificate.to_der().ok()?).ok()?;
    let certificate = Certificate {
        tbs_certificate,
        signature_algorithm: algorithm,
        signature: BitString::from_bytes(signature.as_ref()).ok()?,
    };
    let mut content = Vec::new();
    tlv::push(&mut content, 0x70, &certificate.to_der().ok()?);
    // Not compressed, and no error detection code.
    content.extend_from_slice(&[0x71, 0x01, 0x00, 0xfe, 0x00]);
    Some(content)
}

/// UTCTime up to 2049, GeneralizedTime from 2050 (RFC 5280 §4.1.2.5).
fn time(since_1970: Duration) -> Option<Time> {
    match UtcTime::from_unix_duration(since_1970) {
        Ok(time) => Some(Time::UtcTime(time)),
        Err(_) => GeneralizedTime::from_unix_duration(since_1970)
            .ok()
            .map(Time::GeneralTime),
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&to_hex(self.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_token::Algorithm;
    use proptest::prelude::*;

    fn key() -> PublicKey {
        PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap()
    }

    #[test]
    fn a_marker_reads_back() {
        let mark = Mark::random();
        for usage in [KeyUse::Sign, KeyUse::Decrypt] {
            for label in ["", "alice", "Schlüssel 🗝", "a\0b\n,=+"] {
                let done = finished(&mark, usage, label, &key()).unwrap();
                let marker = Marker {
                    mark,
                    label: label.into(),
                    usage,
                    public_key: Some(key()),
                    stage: Stage::Named,
                };
                assert_eq!(Object::parse(&done), Object::Ours(marker.clone()));
                let marker = Marker {
                    stage: Stage::Unfinished,
                    ..marker
                };
                let made = unnamed(&mark, usage, label, &key()).unwrap();
                assert_eq!(Object::parse(&made), Object::Ours(marker.clone()));
                let begun = unfinished(&mark, usage, label).unwrap();
                let marker = Marker {
                    public_key: None,
                    ..marker
                };
                assert_eq!(Object::parse(&begun), Object::Ours(marker.clone()));
                let ending = doomed(&mark, usage, label).unwrap();
                let marker = Marker {
                    stage: Stage::Doomed,
                    ..marker
                };
                assert_eq!(Object::parse(&ending), Object::Ours(marker));
            }
        }
        let long = finished(&mark, KeyUse::Sign, &"long ".repeat(200), &key()).unwrap();
        let Object::Ours(marker) = Object::parse(&long) else {
            panic!("{long:02x?}")
        };
        assert_eq!(marker.label.chars().count(), LONGEST_NAME);
        assert!(long.len() < 600);
    }

    #[test]
    fn an_emptied_slot_names_its_filler_and_is_no_label_of_a_key() {
        let object = Object::parse(&void(&Mark::random(), &key()).unwrap());
        assert_eq!(object, Object::Void(key()));
        let named = finished(&Mark::random(), KeyUse::Sign, VOID_LABEL, &key()).unwrap();
        assert!(matches!(Object::parse(&named), Object::Ours(_)));
    }

    #[test]
    fn what_others_put_there_is_not_ours() {
        for content in [&[][..], &[0x70, 0], &[0x70, 2, 0x30, 0], &[0x53], b"hello"] {
            assert_eq!(Object::parse(content), Object::Other);
        }
        let mut mislabelled = finished(&Mark::random(), KeyUse::Sign, "", &key()).unwrap();
        let flag = mislabelled.len() - 3;
        mislabelled[flag] = 1;
        assert_eq!(Object::parse(&mislabelled), Object::Other);
    }

    fn compressed(plain: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::best();
        let mut gzip = flate2::read::GzEncoder::new(plain, level);
        let mut content = Vec::new();
        gzip.read_to_end(&mut content).unwrap();
        let content = tlv::encode(0x70, &content);
        [&content[..], &[0x71, 1, 1, 0xfe, 0]].concat()
    }

    #[test]
    fn a_compressed_certificate_is_read() {
        let plain = finished(&Mark::random(), KeyUse::Decrypt, "alice", &key()).unwrap();
        let packed = compressed(&certificate(&plain).unwrap());
        assert_ne!(packed, plain);
        assert_eq!(Object::parse(&packed), Object::parse(&plain));
        assert!(matches!(Object::parse(&packed), Object::Ours(_)));
        // A megabyte of zeros in a kilobyte.
        let bomb = compressed(&vec![0; 1 << 20]);
        assert!(bomb.len() < 2000);
        assert!(certificate(&bomb).unwrap().len() <= 1 << 16);
        assert_eq!(Object::parse(&bomb), Object::Other);
    }

    #[test]
    fn dates_from_2050_on_have_four_digits_of_a_year() {
        let at = |seconds| time(Duration::from_secs(seconds)).unwrap();
        assert!(matches!(at(1_800_000_000), Time::UtcTime(_)));
        // 2049-12-31 23:59:59 and the second after it.
        assert!(matches!(at(2_524_607_999), Time::UtcTime(_)));
        let later = at(2_524_608_000);
        assert!(matches!(later, Time::GeneralTime(_)));
        let der = later.to_der().unwrap();
        assert_eq!(der, b"\x18\x0f20500101000000Z");
    }

    proptest! {
        #[test]
        fn no_object_panics(content: Vec<u8>, at: usize, value: u8) {
            let _ = Object::parse(&content);
            let mut ours = finished(&Mark::random(), KeyUse::Sign, "x", &key()).unwrap();
            let at = at % ours.len();
            ours[at] = value;
            let _ = Object::parse(&ours);
            let _ = Object::parse(&ours[..at]);
            let _ = Object::parse(&[tlv::encode(0x70, &content).as_slice(), &[0x71, 1, 1]].concat());
        }
    }
}
