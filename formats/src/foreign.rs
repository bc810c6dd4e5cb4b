//! Public keys in the forms of other programs: SubjectPublicKeyInfo, PKCS#1, certificates, SSH keys
//! and age recipients. An error names the kind of a key that cannot be used.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use claviger_token::{KeyUse, PublicKey};
use rsa::BigUint;
use spki::SubjectPublicKeyInfoRef;
use spki::der::asn1::{AnyRef, ObjectIdentifier, UintRef};
use spki::der::{Decode, Encode, Reader, SliceReader, Tag, TagNumber, Tagged};

use crate::{envelope, ssh};

/// A public key of somebody else, and its intended use.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForeignKey {
    /// The key.
    pub key: PublicKey,
    /// Whether it may be used to verify signatures.
    pub signs: bool,
    /// Whether it may be used to encrypt.
    pub decrypts: bool,
    /// Whether it is in the certificate of an authority, which certifies other keys.
    pub is_authority: bool,
}

/// Why a public key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Useless {
    /// A key of an unsupported kind, named as people name it.
    #[error("{0} cannot be used")]
    Kind(String),
    /// It is malformed, or not safe to use (RFC 7748 §6.1, SEC 1 §3.2.2).
    #[error("{0} is malformed or not safe to use")]
    Malformed(&'static str),
    /// The certificate allows its key neither to sign nor to decrypt.
    #[error("the certificate lets its key neither sign nor decrypt")]
    NoUse,
}

impl Useless {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Useless::Kind(_) => "foreign-key-kind",
            Useless::Malformed(_) => "foreign-key-malformed",
            Useless::NoUse => "foreign-key-no-use",
        }
    }
}

impl ForeignKey {
    /// A key in a form that does not state its use.
    pub fn of_any_use(key: PublicKey) -> Self {
        ForeignKey {
            signs: key.algorithm().can(KeyUse::Sign),
            decrypts: key.algorithm().can(KeyUse::Decrypt),
            is_authority: false,
            key,
        }
    }

    /// A key in PEM, as [`PublicKey::to_text`] or another program writes it: the label after
    /// `BEGIN`, and the bytes. `None` if the content is not a key (parameters of a curve).
    ///
    /// # Errors
    /// [`Useless`].
    pub fn from_pem(label: &str, der: &[u8]) -> Option<Result<Self, Useless>> {
        Some(match label {
            "PUBLIC KEY" => from_info(der).map(ForeignKey::of_any_use),
            "RSA PUBLIC KEY" => from_pkcs1(der).map(ForeignKey::of_any_use),
            "CERTIFICATE" | "X509 CERTIFICATE" | "TRUSTED CERTIFICATE" => from_certificate(der),
            "PGP PUBLIC KEY BLOCK" => Err(Useless::Kind("an OpenPGP key".into())),
            "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => {
                Err(Useless::Kind("a certificate request".into()))
            }
            _ => return None,
        })
    }

    /// A key as SSH encodes it (RFC 4253 §6.6), in the base64 of a `.pub` file or of RFC 4716.
    ///
    /// # Errors
    /// [`Useless`].
    pub fn from_ssh(base64: &str) -> Result<Self, Useless> {
        let malformed = Useless::Malformed("an SSH key");
        let blob = BASE64_STANDARD
            .decode(base64)
            .map_err(|_| malformed.clone())?;
        let kind = <String as ssh_encoding::Decode>::decode(&mut blob.as_slice())
            .map_err(|_| malformed.clone())?;
        if let Some(name) = useless_ssh_kind(&kind) {
            return Err(Useless::Kind(name));
        }
        let key = ssh::from_line(&format!("{kind} {base64}"));
        let key = key.map_err(|_| ssh_rsa(&blob).unwrap_or(malformed))?;
        Ok(ForeignKey {
            signs: true,
            // age encrypts to such keys, too.
            decrypts: key.algorithm().rsa_bits().is_some(),
            is_authority: false,
            key,
        })
    }

    /// An age recipient, of either case.
    ///
    /// # Errors
    /// [`Useless`].
    pub fn from_age(text: &str) -> Result<Self, Useless> {
        let lower = text.to_ascii_lowercase();
        // Bech32 (BIP 173) is of one case.
        let text = match text.chars().any(|c| c.is_ascii_lowercase()) {
            true => text,
            false => &lower,
        };
        match envelope::parse_recipient(text) {
            Ok(key) => Ok(ForeignKey {
                key,
                signs: false,
                decrypts: true,
                is_authority: false,
            }),
            // What stands before the last 1 is the kind; X25519's is `age` alone.
            Err(_) => Err(match lower.rsplit_once('1') {
                Some((kind, _)) if kind != "age" && kind != "age1tag" => Useless::Kind(format!(
                    "an age recipient of the kind {}",
                    kind.chars().take(40).collect::<String>()
                )),
                _ => Useless::Malformed("an age recipient"),
            }),
        }
    }
}

/// SubjectPublicKeyInfo (RFC 5280 §4.1).
fn from_info(der: &[u8]) -> Result<PublicKey, Useless> {
    PublicKey::from_der(der).map_err(|_| useless_info(der))
}

/// `RSAPublicKey` (RFC 8017 §A.1.1).
fn from_pkcs1(der: &[u8]) -> Result<PublicKey, Useless> {
    let malformed = Useless::Malformed("an RSA key");
    let (modulus, exponent) = rsa_numbers(der).ok_or(malformed.clone())?;
    PublicKey::from_rsa(modulus, exponent)
        .map_err(|_| useless_rsa(modulus, exponent).unwrap_or(malformed))
}

fn rsa_numbers(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut numbers = elements(AnyRef::from_der(der).ok()?)?.into_iter();
    let mut number = || {
        let number = numbers.next()?.decode_as::<UintRef<'_>>().ok()?;
        Some(number.as_bytes())
    };
    Some((number()?, number()?))
}

/// Why the size of an RSA key prevents its use, if it does.
fn useless_rsa(modulus: &[u8], exponent: &[u8]) -> Option<Useless> {
    let bits = BigUint::from_bytes_be(modulus).bits();
    let exponent = BigUint::from_bytes_be(exponent);
    let what = match bits {
        2048 | 3072 | 4096 if exponent == BigUint::from(65537_u32) => return None,
        2048 | 3072 | 4096 if exponent.bits() <= 64 => {
            format!("an RSA key with the exponent {exponent}, not 65537,")
        }
        2048 | 3072 | 4096 => "an RSA key with an exponent that is not 65537".into(),
        bits => format!("an RSA key of {bits} bits, not 2048, 3072 or 4096,"),
    };
    Some(Useless::Kind(what))
}

fn ssh_rsa(blob: &[u8]) -> Option<Useless> {
    let mut rest = blob;
    let kind = <String as ssh_encoding::Decode>::decode(&mut rest).ok()?;
    let mut number = || <ssh_key::Mpint as ssh_encoding::Decode>::decode(&mut rest).ok();
    let (exponent, modulus) = (number()?, number()?);
    match kind.as_str() {
        "ssh-rsa" => useless_rsa(modulus.as_positive_bytes()?, exponent.as_positive_bytes()?),
        _ => None,
    }
}

/// Names the kind of a refused key, as far as it states it.
fn useless_info(der: &[u8]) -> Useless {
    let malformed = Useless::Malformed("a public key");
    let Ok(info) = SubjectPublicKeyInfoRef::from_der(der) else {
        return malformed;
    };
    let curve = info.algorithm.parameters_oid().ok();
    let oid = info.algorithm.oid.to_string();
    if oid == EC_PUBLIC_KEY && curve.is_none() {
        return Useless::Kind("an elliptic-curve key that does not name its curve".into());
    }
    if oid == RSA {
        let numbers = info.subject_public_key.as_bytes().and_then(rsa_numbers);
        let useless = numbers.and_then(|(modulus, exponent)| useless_rsa(modulus, exponent));
        return useless.unwrap_or(malformed);
    }
    let name = match (oid.as_str(), curve.map(|curve| curve.to_string())) {
        (EC_PUBLIC_KEY, Some(curve)) if KNOWN_CURVES.contains(&&*curve) => return malformed,
        (EC_PUBLIC_KEY, Some(curve)) => named(&curve)
            .map(|name| format!("a {name} key"))
            .unwrap_or(format!("a key on the curve {curve}")),
        ("1.3.101.110" | "1.3.101.112", _) => return malformed,
        _ => named(&oid)
            .map(|name| format!("a {name} key"))
            .unwrap_or(format!("a key of the algorithm {oid}")),
    };
    Useless::Kind(name)
}

const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const RSA: &str = "1.2.840.113549.1.1.1";
/// P-256, P-384, secp256k1.
const KNOWN_CURVES: [&str; 3] = ["1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.10"];

/// Algorithms and curves that occur and are not supported.
fn named(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "1.3.132.0.35" => "P-521",
        "1.3.132.0.33" => "P-224",
        "1.2.840.10045.3.1.1" => "P-192",
        "1.3.36.3.3.2.8.1.1.7" => "brainpoolP256r1",
        "1.3.36.3.3.2.8.1.1.11" => "brainpoolP384r1",
        "1.3.36.3.3.2.8.1.1.13" => "brainpoolP512r1",
        "1.2.156.10197.1.301" => "SM2",
        "1.3.101.111" => "X448",
        "1.3.101.113" => "Ed448",
        "1.2.840.10040.4.1" => "DSA",
        "1.2.840.10046.2.1" | "1.2.840.113549.1.3.1" => "Diffie-Hellman",
        "1.2.840.113549.1.1.7" => "RSAES-OAEP",
        "1.2.840.113549.1.1.10" => "RSASSA-PSS",
        "2.16.840.1.101.3.4.3.17" => "ML-DSA-44",
        "2.16.840.1.101.3.4.3.18" => "ML-DSA-65",
        "2.16.840.1.101.3.4.3.19" => "ML-DSA-87",
        "2.16.840.1.101.3.4.4.1" => "ML-KEM-512",
        "2.16.840.1.101.3.4.4.2" => "ML-KEM-768",
        "2.16.840.1.101.3.4.4.3" => "ML-KEM-1024",
        _ => return None,
    })
}

/// Names the kind of an unsupported SSH key.
fn useless_ssh_kind(kind: &str) -> Option<String> {
    let name = match kind {
        "ssh-ed25519" | "ssh-rsa" | "ecdsa-sha2-nistp256" | "ecdsa-sha2-nistp384" => return None,
        "ecdsa-sha2-nistp521" => "a P-521 key",
        "ssh-dss" => "a DSA key",
        "ssh-ed448" => "an Ed448 key",
        _ if kind.contains("-cert-v0") => "an SSH certificate",
        _ if kind.starts_with("sk-") => "a security key (FIDO)",
        _ => "an SSH key",
    };
    let kind: String = kind.chars().take(64).collect();
    Some(format!("{name} ({kind})"))
}

/// The key in a certificate (RFC 5280). Neither its issuer nor its validity period is checked; its
/// key usage is respected.
fn from_certificate(der: &[u8]) -> Result<ForeignKey, Useless> {
    let certificate = Certificate::parse(der).ok_or(Useless::Malformed("a certificate"))?;
    let mut found = ForeignKey::of_any_use(from_info(&certificate.info)?);
    found.is_authority = certificate.is_authority;
    if let Some(usage) = certificate.key_usage {
        found.signs &= usage & (DIGITAL_SIGNATURE | CONTENT_COMMITMENT) != 0;
        found.decrypts &= usage & (KEY_ENCIPHERMENT | DATA_ENCIPHERMENT | KEY_AGREEMENT) != 0;
    }
    match found.signs || found.decrypts {
        true => Ok(found),
        false => Err(Useless::NoUse),
    }
}

// RFC 5280 §4.2.1.3: the first byte of a bit string, whose first bit is the highest.
const DIGITAL_SIGNATURE: u8 = 0x80;
const CONTENT_COMMITMENT: u8 = 0x40;
const KEY_ENCIPHERMENT: u8 = 0x20;
const DATA_ENCIPHERMENT: u8 = 0x10;
const KEY_AGREEMENT: u8 = 0x08;

/// The relevant fields of a certificate. The parser is ours, since a key is useful even if the
/// serial number is longer than the standard allows.
struct Certificate {
    info: Vec<u8>,
    key_usage: Option<u8>,
    is_authority: bool,
}

impl Certificate {
    fn parse(der: &[u8]) -> Option<Self> {
        const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
        const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
        // OpenSSL's trusted certificates have something behind them.
        let mut reader = SliceReader::new(der).ok()?;
        let whole = <AnyRef<'_> as Decode>::decode(&mut reader).ok()?;
        let signed = *elements(whole)?.first()?;
        let fields = elements(signed)?;
        let is_context = |field: &AnyRef<'_>, number| {
            let number = TagNumber::new(number);
            let constructed = true;
            field.tag()
                == Tag::ContextSpecific {
                    constructed,
                    number,
                }
        };
        let version = usize::from(is_context(fields.first()?, 0));
        // The serial number, the algorithm, the issuer, the validity, the subject.
        let info = fields.get(version + 5)?.to_der().ok()?;
        let mut found = Certificate {
            info,
            key_usage: None,
            is_authority: false,
        };
        let Some(extensions) = fields.iter().find(|field| is_context(field, 3)) else {
            return Some(found);
        };
        let list = AnyRef::from_der(extensions.value()).ok()?;
        for extension in elements(list)? {
            let parts = elements(extension)?;
            let name = parts.first()?.decode_as::<ObjectIdentifier>().ok()?;
            let value = AnyRef::from_der(parts.last()?.value()).ok();
            if name == KEY_USAGE {
                // How many bits of the last byte are unused, and the bits.
                found.key_usage = Some(value?.value().get(1).copied().unwrap_or(0));
            } else if name == BASIC_CONSTRAINTS {
                let first = elements(value?)?.first().copied();
                found.is_authority =
                    first.is_some_and(|first| first.tag() == Tag::Boolean && first.value() != [0]);
            }
        }
        Some(found)
    }
}

/// The elements of a sequence.
fn elements(sequence: AnyRef<'_>) -> Option<Vec<AnyRef<'_>>> {
    if sequence.tag() != Tag::Sequence {
        return None;
    }
    let mut reader = SliceReader::new(sequence.value()).ok()?;
    let mut elements = Vec::new();
    while !reader.is_finished() {
        elements.push(<AnyRef<'_> as Decode>::decode(&mut reader).ok()?);
    }
    Some(elements)
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_token::Algorithm;

    /// Made by `openssl req -x509 -addext keyUsage=digitalSignature,keyAgreement`.
    const CERTIFICATE: &str = "\
        MIIBeTCCASCgAwIBAgIUFTOSyir3WhJ1qWXsYOWR8duVDeMwCgYIKoZIzj0EAwIwDDEKMAgGA1UEAwwB\
        eDAeFw0yNjExMzAwNzAwNDlaFw0zNjExMjcwNzAwNDlaMAwxCjAIBgNVBAMMAXgwWTATBgcqhkjOPQIB\
        BggqhkjOPQMBBwNCAASA2PS98eTOYbrcHE3dB4wpSXtgA4vWNt8OB+jZ7U8uRyycTmzrIEYuD3LgO1WZ\
        9U9PhLOCV/eYiJflMm1OsMn8o2AwXjAdBgNVHQ4EFgQUOtbgXxINm/ajXBPjkMGFeVzPclYwHwYDVR0j\
        BBgwFoAUOtbgXxINm/ajXBPjkMGFeVzPclYwDwYDVR0TAQH/BAUwAwEB/zALBgNVHQ8EBAMCA4gwCgYI\
        KoZIzj0EAwIDRwAwRAIgNAJAZTyrKCwASraOyuuCZRhiYHjuOIYkO85PQdxpiusCIEBiDMbHkQcFUEHs\
        aWGjZ/9PhCCi4LTXCJibpmcWYtqR";

    fn der() -> Vec<u8> {
        BASE64_STANDARD.decode(CERTIFICATE).unwrap()
    }

    #[test]
    fn a_certificate_says_what_its_key_is_for() {
        let found = ForeignKey::from_pem("CERTIFICATE", &der())
            .unwrap()
            .unwrap();
        assert_eq!(found.key.algorithm(), Algorithm::P256);
        assert!(found.signs && found.decrypts && found.is_authority);
    }

    #[test]
    fn whatever_is_altered_in_a_key_nothing_panics() {
        let (der, mut keys) = (der(), 0);
        let info = Certificate::parse(&der).unwrap().info;
        let pkcs1 = {
            let n = [&[0x02, 0x82, 1, 1, 0][..], &[0xff; 256]].concat();
            let numbers = [&n[..], &[2, 3, 1, 0, 1]].concat();
            [&[0x30, 0x82, 1, 10][..], &numbers].concat()
        };
        for (label, der) in [
            ("CERTIFICATE", &der),
            ("PUBLIC KEY", &info),
            ("RSA PUBLIC KEY", &pkcs1),
        ] {
            let mut check = |bytes: &[u8]| {
                let found = ForeignKey::from_pem(label, bytes).unwrap();
                keys += usize::from(found.is_ok());
            };
            for at in 0..der.len() {
                check(&der[..at]);
                for bit in 0..8 {
                    let mut altered = der.clone();
                    altered[at] ^= 1 << bit;
                    check(&altered);
                }
                for value in [0, 0x7f, 0x80, 0xff] {
                    let mut altered = der.clone();
                    altered[at] = value;
                    check(&altered);
                }
            }
        }
        // What was altered beside the key leaves it as it is.
        assert!(keys > 0);
    }

    #[test]
    fn whatever_is_altered_in_an_ssh_key_nothing_panics() {
        let secret = p256::SecretKey::from_slice(&[7; 32]).unwrap();
        let key = secret.public_key().to_sec1_bytes();
        let key = PublicKey::from_bytes(Algorithm::P256, &key).unwrap();
        let line = ssh::to_line(&key, "").unwrap();
        let blob = BASE64_STANDARD
            .decode(line.split(' ').nth(1).unwrap())
            .unwrap();
        let found = ForeignKey::from_ssh(&BASE64_STANDARD.encode(&blob)).unwrap();
        assert_eq!((found.key, found.decrypts), (key, false));
        for at in 0..blob.len() {
            let cut = BASE64_STANDARD.encode(&blob[..at]);
            assert!(ForeignKey::from_ssh(&cut).is_err());
            for value in 0..=u8::MAX {
                let mut altered = blob.clone();
                altered[at] = value;
                let _ = ForeignKey::from_ssh(&BASE64_STANDARD.encode(altered));
            }
        }
    }

    #[test]
    fn a_kind_is_named() {
        for (text, name) in [
            (
                "age1pq1qqqq",
                "an age recipient of the kind age1pq cannot be used",
            ),
            (
                "AGE1QQQQ",
                "an age recipient is malformed or not safe to use",
            ),
        ] {
            assert_eq!(ForeignKey::from_age(text).unwrap_err().to_string(), name);
        }
        let sk = [&[0, 0, 0, 26][..], b"sk-ssh-ed25519@openssh.com"].concat();
        let refused = ForeignKey::from_ssh(&BASE64_STANDARD.encode(sk)).unwrap_err();
        assert!(refused.to_string().contains("security key"), "{refused}");
    }
}
