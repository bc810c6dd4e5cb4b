//! Attestation: a card's certificate that it made a key itself (Yubico, *PIV
//! attestation*).
//!
//! The statement is an X.509 certificate of the key, signed by the card's attestation key in slot
//! F9, whose own certificate the maker signed. The driver checks that the statement is about this
//! key and this card, and signed by the F9 of the card. [`verify_chain`] follows the chain to a
//! root that the operator trusts.

use std::sync::Arc;

use claviger_token::{Attestation, PublicKey};
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use spki::ObjectIdentifier;
use x509_cert::certificate::Certificate;
use x509_cert::der::pem::{self, LineEnding};
use x509_cert::der::{Decode, Encode, EncodePem};

use crate::firmware::Version;
use crate::policy::{PinPolicy, TouchPolicy};
use crate::tlv;

const FIRMWARE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.41482.3.3");
const SERIAL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.41482.3.7");
const POLICIES: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.41482.3.8");
const FORM_FACTOR: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.41482.3.9");

const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const RSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const RSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");

const RSA_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// An attestation or a root certificate is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadAttestation {
    /// A text is not an X.509 certificate in PEM.
    #[error("`{0}` is not an X.509 certificate in PEM")]
    NotACertificate(&'static str),
    /// The attestation has no certificates.
    #[error("the attestation has no certificates")]
    Empty,
    /// The first certificate is for another key.
    #[error("the attestation is about another key")]
    OtherKey,
}

impl BadAttestation {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            BadAttestation::NotACertificate(_) => "attestation-not-a-certificate",
            BadAttestation::Empty => "attestation-empty",
            BadAttestation::OtherKey => "attestation-other-key",
        }
    }
}

/// Whether `attestation` is for `key` and leads to one of `roots` (X.509 certificates as PEM, each
/// trusted as it is, self-signed or not).
///
/// Checks names (RFC 5280 §6.1.3) and signatures: RSA PKCS #1 v1.5, and ECDSA with P-256 or P-384,
/// with SHA-256, SHA-384 or SHA-512. Dates are ignored, since a statement about the making of a key
/// does not expire. `Ok(false)` if the chain breaks or leads elsewhere.
///
/// # Errors
/// [`BadAttestation`] if there is no chain to check.
pub fn verify_chain(
    attestation: &Attestation,
    key: &PublicKey,
    roots: &[impl AsRef<str>],
) -> Result<bool, BadAttestation> {
    let chain = attestation
        .certificates
        .iter()
        .map(|pem| from_pem(pem, "attestation"))
        .collect::<Result<Vec<_>, _>>()?;
    let roots = roots
        .iter()
        .map(|pem| from_pem(pem.as_ref(), "root"))
        .collect::<Result<Vec<_>, _>>()?;
    let (Some(leaf), Some(last)) = (chain.first(), chain.last()) else {
        return Err(BadAttestation::Empty);
    };
    if public_key(leaf).as_ref() != Some(key) {
        return Err(BadAttestation::OtherKey);
    }
    let whole = chain
        .windows(2)
        .all(|pair| is_signed_by(&pair[0], &pair[1]));
    // The card's own certificate may be the root: then it must be trusted as it is.
    let trusted = roots
        .iter()
        .any(|root| (chain.len() > 1 && root == last) || is_signed_by(last, root));
    Ok(whole && trusted)
}

/// Checks that each of `roots` is an X.509 certificate in PEM, as [`verify_chain`] expects.
///
/// # Errors
/// [`BadAttestation::NotACertificate`].
pub fn check_roots(roots: &[impl AsRef<str>]) -> Result<(), BadAttestation> {
    for root in roots {
        from_pem(root.as_ref(), "root")?;
    }
    Ok(())
}

/// The trusted makers of cards: the certificates to which the chain of a card's attestation key
/// must lead.
#[derive(Debug, Clone, Default)]
pub(crate) struct Makers(Vec<Arc<Certificate>>);

/// Yubico's roots for PIV attestations, and what lies between them and the cards since
/// firmware 5.7.4, which the cards themselves do not hold. As Yubico publishes them
/// (<https://developers.yubico.com/PKI/>), taken from the crate `sshcerts` 0.15.4.
pub(crate) const YUBICO: &str = include_str!("../roots/yubico.pem");

impl Makers {
    /// Parses one or more certificates in PEM.
    ///
    /// # Errors
    /// [`BadAttestation::NotACertificate`].
    pub(crate) fn parse(text: &str) -> Result<Self, BadAttestation> {
        let ends = text.match_indices(END).map(|(at, _)| at + END.len());
        let mut begin = 0;
        let mut all = Vec::new();
        for end in ends {
            all.push(Arc::new(from_pem(text[begin..end].trim_start(), "root")?));
            begin = end;
        }
        match text[begin..].trim().is_empty() && !all.is_empty() {
            true => Ok(Makers(all)),
            false => Err(BadAttestation::NotACertificate("root")),
        }
    }

    pub(crate) fn also(&mut self, others: Makers) {
        self.0.extend(others.0);
    }

    /// Whether one of them signed this certificate of an attestation key (DER).
    pub(crate) fn made(&self, attestation_key: &[u8]) -> bool {
        Certificate::from_der(attestation_key)
            .is_ok_and(|certificate| self.0.iter().any(|maker| is_signed_by(&certificate, maker)))
    }
}

/// How a certificate in PEM ends.
const END: &str = "-----END CERTIFICATE-----";

/// A certificate from its PEM form.
///
/// Not with `DecodePem`: its reader (der 0.7) never comes back from a certificate that is
/// cut short.
fn from_pem(text: &str, what: &'static str) -> Result<Certificate, BadAttestation> {
    let bad = BadAttestation::NotACertificate(what);
    let (label, der) = pem::decode_vec(text.as_bytes()).map_err(|_| bad)?;
    match Certificate::from_der(&der) {
        Ok(certificate) if label == "CERTIFICATE" => Ok(certificate),
        _ => Err(bad),
    }
}

/// The checked statement of a card about the key in a slot.
pub(crate) enum Checked {
    /// The card made the key itself.
    Attested(Attestation),
    /// The statement cannot be parsed.
    Unreadable(&'static str),
    /// The statement is false.
    Contradicts(&'static str),
}

/// Checks a statement about `key` against the card it came from. `serial` is the card's,
/// where the card tells it.
pub(crate) fn check(
    leaf_der: &[u8],
    signer_der: &[u8],
    key: &PublicKey,
    serial: Option<u32>,
    firmware: Version,
) -> Checked {
    let (Ok(leaf), Ok(signer)) = (
        Certificate::from_der(leaf_der),
        Certificate::from_der(signer_der),
    ) else {
        return Checked::Unreadable("it is not an X.509 certificate");
    };
    let pem = |certificate: &Certificate| certificate.to_pem(LineEnding::LF).ok();
    let (Some(leaf_pem), Some(signer_pem)) = (pem(&leaf), pem(&signer)) else {
        return Checked::Unreadable("it has no PEM form");
    };
    if public_key(&leaf).as_ref() != Some(key) {
        return Checked::Contradicts("the attestation is about another key");
    }
    if !is_signed_by(&leaf, &signer) {
        return Checked::Contradicts("the attestation is not signed by the card's key");
    }
    let stated = Facts::of(&leaf);
    if stated.firmware.is_some_and(|stated| stated != firmware) {
        return Checked::Contradicts("the attestation is about another firmware");
    }
    if let (Some(stated), Some(serial)) = (stated.serial, serial)
        && stated != serial
    {
        return Checked::Contradicts("the attestation is about another card");
    }
    let certificates = vec![leaf_pem, signer_pem];
    Checked::Attested(Attestation::new(certificates, stated.named()))
}

/// The public key of a certificate, where it is one that Claviger knows.
pub(crate) fn key_of(der: &[u8]) -> Option<PublicKey> {
    public_key(&Certificate::from_der(der).ok()?)
}

/// The policies of the key that an attestation is about.
pub(crate) fn policies_of(der: &[u8]) -> (Option<PinPolicy>, Option<TouchPolicy>) {
    match Certificate::from_der(der) {
        Ok(leaf) => {
            let facts = Facts::of(&leaf);
            (facts.pin, facts.touch)
        }
        Err(_) => (None, None),
    }
}

/// What the extensions of an attestation state.
#[derive(Default)]
struct Facts {
    firmware: Option<Version>,
    serial: Option<u32>,
    pin: Option<PinPolicy>,
    touch: Option<TouchPolicy>,
    form_factor: Option<u8>,
}

impl Facts {
    fn of(leaf: &Certificate) -> Facts {
        let extensions = leaf.tbs_certificate.extensions.as_deref();
        let value = |oid| {
            let mut all = extensions.unwrap_or_default().iter();
            all.find(|e| e.extn_id == oid)
                .map(|e| e.extn_value.as_bytes())
        };
        let (pin, touch) = match value(POLICIES) {
            Some(&[pin, touch]) => (PinPolicy::from_id(pin), TouchPolicy::from_id(touch)),
            _ => (None, None),
        };
        Facts {
            firmware: match value(FIRMWARE) {
                Some(&[major, minor, patch]) => Some(Version(major, minor, patch)),
                _ => None,
            },
            serial: value(SERIAL).and_then(integer),
            pin,
            touch,
            form_factor: match value(FORM_FACTOR) {
                Some(&[form]) => Some(form),
                _ => None,
            },
        }
    }

    fn named(&self) -> Vec<(String, String)> {
        let form = |form: u8| match form & 0x7f {
            1 => "USB-A keychain".into(),
            2 => "USB-A nano".into(),
            3 => "USB-C keychain".into(),
            4 => "USB-C nano".into(),
            5 => "USB-C and Lightning".into(),
            6 => "USB-A with fingerprint reader".into(),
            7 => "USB-C with fingerprint reader".into(),
            other => format!("{other}"),
        };
        let all = [
            ("serial", self.serial.map(|serial| serial.to_string())),
            ("firmware", self.firmware.map(|v| v.to_string())),
            ("pin_policy", self.pin.map(|p| p.name().into())),
            ("touch_policy", self.touch.map(|p| p.name().into())),
            ("form_factor", self.form_factor.map(form)),
        ];
        all.into_iter()
            .filter_map(|(name, value)| Some((name.into(), value?)))
            .collect()
    }
}

/// An INTEGER in DER that is not negative and fits.
fn integer(der: &[u8]) -> Option<u32> {
    let value = tlv::find(der, 0x02)?;
    let digits = value.strip_prefix(&[0]).unwrap_or(value);
    (!value.is_empty() && digits.len() <= 4 && value[0] < 0x80)
        .then(|| digits.iter().fold(0, |n, d| n << 8 | u32::from(*d)))
}

fn public_key(certificate: &Certificate) -> Option<PublicKey> {
    let info = &certificate.tbs_certificate.subject_public_key_info;
    PublicKey::from_der(&info.to_der().ok()?).ok()
}

/// Whether `issuer` is who signed `certificate`, by name and by signature.
fn is_signed_by(certificate: &Certificate, issuer: &Certificate) -> bool {
    let tbs = &certificate.tbs_certificate;
    tbs.issuer == issuer.tbs_certificate.subject
        && tbs.signature == certificate.signature_algorithm
        && signature_is_valid(certificate, issuer).is_some()
}

/// `None`: the signature does not verify, or is of no kind that is known here.
fn signature_is_valid(certificate: &Certificate, issuer: &Certificate) -> Option<()> {
    let message = certificate.tbs_certificate.to_der().ok()?;
    let signed = certificate.signature.as_bytes()?;
    let oid = certificate.signature_algorithm.oid;
    let info = &issuer.tbs_certificate.subject_public_key_info;
    let curve = match info.algorithm.oid {
        EC_KEY => Some(info.algorithm.parameters.as_ref()?.decode_as().ok()?),
        RSA_KEY => None,
        _ => return None,
    };
    let algorithm: &dyn VerificationAlgorithm = match (curve, oid) {
        (None, RSA_SHA256) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (None, RSA_SHA384) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (None, RSA_SHA512) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (Some(P256), ECDSA_SHA256) => &signature::ECDSA_P256_SHA256_ASN1,
        (Some(P256), ECDSA_SHA384) => &signature::ECDSA_P256_SHA384_ASN1,
        (Some(P384), ECDSA_SHA256) => &signature::ECDSA_P384_SHA256_ASN1,
        (Some(P384), ECDSA_SHA384) => &signature::ECDSA_P384_SHA384_ASN1,
        _ => return None,
    };
    let key = UnparsedPublicKey::new(algorithm, info.subject_public_key.as_bytes()?);
    key.verify(&message, signed).ok()
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use proptest::prelude::*;

    /// Fingerprints (SHA-256) as others list them.
    const PUBLISHED: [(&str, &str); 8] = [
        (
            "Yubico PIV Root CA Serial 263751",
            "63ece914e54dd87915f34033c85af4c0696ba1512f8add66ced738331207b546",
        ),
        (
            "Yubico U2F Root CA Serial 457200631",
            "0fa1386f80eb8713263ae5c1d84deb455bdf08aea50ab05503cefee82b092d42",
        ),
        (
            "Yubico Attestation Root 1",
            "62760c6a6ef91679f454c8902b80fd009825b3f25da90f1fbace2ec6586cd5a8",
        ),
        (
            "Yubico Attestation Intermediate A 1",
            "4698a1d3389c3ec60016c216250f1d0439922832d65142327436376dc2942b55",
        ),
        (
            "Yubico Attestation Intermediate B 1",
            "d4cc3f456fdaf4e7812a21aab1dfe9d8e27d24e2fd2d6f21c9940109f0daa754",
        ),
        (
            "Yubico PIV Attestation A 1",
            "6de693f05376f5d8ca29069261e1c8626c75d503bd2edbfd75354cad1f722870",
        ),
        (
            "Yubico PIV Attestation B 1",
            "2d55b7998f4e42569d6d8fa382b6dc77d1dacf07358b19701163892922b17052",
        ),
        (
            "Yubico PIV Attestation B2 1",
            "0c90b7d184a36edf50a35f9be935f0c5689bfdcfe5bdd073366cafb49061a440",
        ),
    ];

    #[test]
    fn yubicos_certificates_are_those_that_it_publishes_and_lead_to_its_roots() {
        let makers = Makers::parse(YUBICO).unwrap();
        let found = makers.0.iter().map(|certificate| {
            let der = certificate.to_der().unwrap();
            let name = certificate.tbs_certificate.subject.to_string();
            let print = claviger_token::key::to_hex(&Sha256::digest(der));
            (name.trim_start_matches("CN=").to_owned(), print)
        });
        let expected = PUBLISHED.map(|(name, print)| (name.to_owned(), print.to_owned()));
        assert_eq!(found.collect::<Vec<_>>(), expected);
        // Each is signed by one of them, the roots by themselves.
        for certificate in &makers.0 {
            assert!(makers.made(&certificate.to_der().unwrap()));
        }
    }

    #[test]
    fn attestation_keys_of_real_yubikeys_are_known_and_a_stranger_s_is_not() {
        let makers = Makers::parse(YUBICO).unwrap();
        let der = |text: &str| pem::decode_vec(text.as_bytes()).unwrap().1;
        for f9 in [
            include_str!("../roots/tests/f9-5.4.3.pem"),
            include_str!("../roots/tests/f9-4.3.7.pem"),
            include_str!("../roots/tests/f9-5.7.4.pem"),
        ] {
            assert!(makers.made(&der(f9)));
        }
        let virtual_root = include_str!("../../../tests/virtual-yubikey/root.pem");
        assert!(!makers.made(&der(virtual_root)));
        let mut more = makers;
        more.also(Makers::parse(virtual_root).unwrap());
        assert!(more.made(&der(virtual_root)));
        for broken in ["", "x", &YUBICO[1..], &YUBICO[..400]] {
            assert!(Makers::parse(broken).is_err());
        }
    }

    #[test]
    fn an_integer_is_read_if_it_is_one() {
        assert_eq!(integer(&[0x02, 0x01, 0x05]), Some(5));
        assert_eq!(integer(&[0x02, 0x05, 0, 0xff, 0, 0, 1]), Some(0xff00_0001));
        for bad in [
            &[][..],
            &[0x02, 0],
            &[0x02, 1, 0x80],
            &[0x04, 1, 1],
            &[2, 5, 1, 0, 0, 0, 0],
        ] {
            assert_eq!(integer(bad), None);
        }
    }

    #[test]
    fn an_attestation_without_certificates_is_none() {
        let key = PublicKey::from_bytes(claviger_token::Algorithm::X25519, &[9; 32]).unwrap();
        let attestation = |certificates| Attestation::new(certificates, Vec::new());
        let roots: [&str; 0] = [];
        assert_eq!(
            verify_chain(&attestation(vec![]), &key, &roots),
            Err(BadAttestation::Empty)
        );
        assert_eq!(
            verify_chain(&attestation(vec!["x".into()]), &key, &roots),
            Err(BadAttestation::NotACertificate("attestation"))
        );
    }

    #[test]
    fn a_certificate_that_is_cut_short_is_none() {
        for body in ["", "MA==\n", "MIIB\n", "MIIBMAE=\n"] {
            let pem = format!("-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n");
            assert_eq!(
                check_roots(&[pem]),
                Err(BadAttestation::NotACertificate("root"))
            );
        }
    }

    proptest! {
        #[test]
        fn no_certificate_panics(leaf: Vec<u8>, signer: Vec<u8>) {
            let key = PublicKey::from_bytes(claviger_token::Algorithm::X25519, &[9; 32]).unwrap();
            let checked = check(&leaf, &signer, &key, Some(1), Version(5, 7, 1));
            prop_assert!(matches!(checked, Checked::Unreadable(_)));
            let _ = policies_of(&leaf);
        }
    }
}
