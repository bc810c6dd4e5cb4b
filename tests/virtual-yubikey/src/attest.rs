//! Attestation: a certificate that says how a key came into its slot.
//!
//! The chain is root → attestation key (slot F9) → key. The root is made with the card
//! and its private half is dropped at once, as a factory would keep it elsewhere.
//! See <https://developers.yubico.com/PIV/Introduction/PIV_attestation.html>.

use sha2::{Digest as _, Sha256};

use crate::apdu::{Outcome, Status};
use crate::auth::{PinPolicy, TouchPolicy};
use crate::keys::{Algorithm, PrivateKey};
use crate::objects::Slot;
use crate::tlv::{all, only, read, write};

const SEQUENCE: u32 = 0x30;
const SET: u32 = 0x31;
const INTEGER: u32 = 0x02;
const BIT_STRING: u32 = 0x03;
const OCTET_STRING: u32 = 0x04;
const OID: u32 = 0x06;
const UTF8_STRING: u32 = 0x0c;

/// 1.3.6.1.4.1.41482.3: Yubico's arc for attestation; one more number follows.
const YUBICO: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0xc4, 0x0a, 0x03];
const FIRMWARE: u8 = 3;
const SERIAL: u8 = 7;
const POLICY: u8 = 8;
const FORM_FACTOR: u8 = 9;
/// A USB-A keychain.
const KEYCHAIN: u8 = 1;

/// What the root's private half is made of. No secret: whoever trusts [`ROOT`] trusts every
/// virtual card.
const ROOT_SCALAR: [u8; 32] = *b"claviger virtual yubikey: root 1";

/// What a factory puts on a card.
pub(crate) struct Factory {
    pub(crate) root: Vec<u8>,
    pub(crate) key: PrivateKey,
    pub(crate) certificate: Vec<u8>,
}

impl Factory {
    /// Makes an attestation key whose certificate leads to the one root of all virtual cards.
    /// The key is of P-256, whatever the firmware (real ones before 5.7 have RSA-2048), so
    /// that making a card is quick.
    pub(crate) fn new() -> Result<Factory, Status> {
        let root = p256::ecdsa::SigningKey::from_slice(&ROOT_SCALAR);
        let root = root.map_err(|_| Status::INTERNAL)?;
        Factory::under(&PrivateKey::P256(root), "Virtual YubiKey PIV Root CA")
    }

    /// [`Factory::new`], under a root that nobody knows.
    pub(crate) fn of_another_maker() -> Result<Factory, Status> {
        let root = PrivateKey::try_generate(Algorithm::P256)?;
        Factory::under(&root, "Another Maker's Root CA")
    }

    fn under(root_key: &PrivateKey, root_name: &str) -> Result<Factory, Status> {
        let key = PrivateKey::try_generate(Algorithm::P256)?;
        let root_name = name(root_name);
        let root = Body {
            issuer: &root_name,
            subject: &root_name,
            spki: &root_key.spki(),
            dates: &validity(),
            extensions: &authority(),
        };
        let root = root.signed(root_key, &[1])?;
        let certificate = certificate(
            root_key,
            &root_name,
            &name("Virtual YubiKey PIV Attestation"),
            &key.spki(),
            &validity(),
            &authority(),
        )?;
        Ok(Factory {
            root,
            key,
            certificate,
        })
    }
}

/// A certificate of a key by itself, or, where it does not sign, by one that is thrown away.
pub(crate) fn self_made(key: &PrivateKey) -> Outcome {
    let other;
    let signer = match key {
        PrivateKey::Ed25519(_) | PrivateKey::X25519(_) => {
            other = PrivateKey::try_generate(Algorithm::P256)?;
            &other
        }
        key => key,
    };
    let own = name("Made by the card");
    certificate(signer, &own, &own, &key.spki(), &validity(), &[])
}

/// What an attestation says about a key.
pub(crate) struct Statement<'a> {
    pub(crate) slot: Slot,
    pub(crate) key: &'a PrivateKey,
    pub(crate) pin: PinPolicy,
    pub(crate) touch: TouchPolicy,
    pub(crate) version: [u8; 3],
    /// Absent before 5.0.
    pub(crate) serial: Option<u32>,
}

impl Statement<'_> {
    /// The statement as a certificate, signed with the attestation key. Issuer and dates
    /// are those of that key's certificate.
    pub(crate) fn sign(&self, attestation_key: &PrivateKey, certificate_of_it: &[u8]) -> Outcome {
        let (issuer, dates) = subject_and_validity(certificate_of_it).ok_or(Status::CONDITIONS)?;
        let mut extensions = yubico(FIRMWARE, &self.version);
        if let Some(serial) = self.serial {
            let integer = write(INTEGER, &[&positive(&serial.to_be_bytes())]);
            extensions.extend(yubico(SERIAL, &integer));
        }
        extensions.extend(yubico(POLICY, &[self.pin as u8, self.touch as u8]));
        if self.serial.is_some() {
            extensions.extend(yubico(FORM_FACTOR, &[KEYCHAIN]));
        }
        let subject = name(&format!(
            "YubiKey PIV Attestation {:x}",
            self.slot.reference()
        ));
        certificate(
            attestation_key,
            issuer,
            &subject,
            &self.key.spki(),
            dates,
            &extensions,
        )
    }
}

fn yubico(number: u8, value: &[u8]) -> Vec<u8> {
    write(
        SEQUENCE,
        &[
            &write(OID, &[YUBICO, &[number]]),
            &write(OCTET_STRING, &[value]),
        ],
    )
}

/// Basic constraints, critical: a certificate authority (RFC 5280 §4.2.1.9).
fn authority() -> Vec<u8> {
    let constraints = write(SEQUENCE, &[&[0x01, 0x01, 0xff]]);
    write(
        SEQUENCE,
        &[
            &write(OID, &[&[0x55, 0x1d, 0x13]]),
            &[0x01, 0x01, 0xff],
            &write(OCTET_STRING, &[&constraints]),
        ],
    )
}

/// A certificate, version 3 (RFC 5280 §4.1).
fn certificate(
    issuer_key: &PrivateKey,
    issuer: &[u8],
    subject: &[u8],
    spki: &[u8],
    dates: &[u8],
    extensions: &[u8],
) -> Outcome {
    // What says the same is the same certificate, which is signed once.
    let said = Sha256::digest([issuer, subject, spki, dates, extensions].concat());
    let mut serial: [u8; 16] = std::array::from_fn(|i| said[i]);
    serial[0] |= 1;
    let body = Body {
        issuer,
        subject,
        spki,
        dates,
        extensions,
    };
    body.signed(issuer_key, &serial)
}

/// What a certificate says, each as a whole element; the extensions without their sequence.
struct Body<'a> {
    issuer: &'a [u8],
    subject: &'a [u8],
    spki: &'a [u8],
    dates: &'a [u8],
    extensions: &'a [u8],
}

impl Body<'_> {
    fn signed(&self, issuer_key: &PrivateKey, serial: &[u8]) -> Outcome {
        // It is named within what is signed, too.
        let algorithm = issuer_key.certificate_algorithm()?;
        let extensions = match self.extensions {
            [] => Vec::new(),
            some => write(0xa3, &[&write(SEQUENCE, &[some])]),
        };
        let body = write(
            SEQUENCE,
            &[
                &[0xa0, 0x03, 0x02, 0x01, 0x02],
                &write(INTEGER, &[&positive(serial)]),
                &algorithm,
                self.issuer,
                self.dates,
                self.subject,
                self.spki,
                &extensions,
            ],
        );
        let signature = issuer_key.sign_certificate(&body)?;
        let signature = write(BIT_STRING, &[&[0], &signature]);
        Ok(write(SEQUENCE, &[&body, &algorithm, &signature]))
    }
}

fn name(common_name: &str) -> Vec<u8> {
    let attribute = write(
        SEQUENCE,
        &[
            &write(OID, &[&[0x55, 0x04, 0x03]]),
            &write(UTF8_STRING, &[common_name.as_bytes()]),
        ],
    );
    write(SEQUENCE, &[&write(SET, &[&attribute])])
}

/// UTCTime up to 2049, GeneralizedTime from 2050 (RFC 5280 §4.1.2.5).
fn validity() -> Vec<u8> {
    write(
        SEQUENCE,
        &[
            &write(0x17, &[b"160314000000Z"]),
            &write(0x18, &[b"20520417000000Z"]),
        ],
    )
}

/// The content of a positive INTEGER, as short as DER wants it.
fn positive(bytes: &[u8]) -> Vec<u8> {
    let start = (bytes.iter().position(|&byte| byte != 0)).unwrap_or(bytes.len());
    let significant = &bytes[start..];
    match significant.first() {
        Some(first) if first & 0x80 == 0 => significant.to_vec(),
        _ => [&[0], significant].concat(),
    }
}

/// Subject and validity of a certificate, whole elements.
fn subject_and_validity(certificate: &[u8]) -> Option<(&[u8], &[u8])> {
    let parts = all(only(certificate, SEQUENCE)?)?;
    let &(SEQUENCE, body) = parts.first()? else {
        return None;
    };
    // Version, serial, algorithm and issuer come before validity and subject.
    let mut rest = body;
    for _ in 0..4 {
        rest = read(rest)?.2;
    }
    let after_validity = read(rest)?.2;
    let after_subject = read(after_validity)?.2;
    let validity = &rest[..rest.len() - after_validity.len()];
    let subject = &after_validity[..after_validity.len() - after_subject.len()];
    Some((subject, validity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_that_is_published_is_the_cards() {
        let text: String = crate::ROOT
            .lines()
            .filter(|line| !line.starts_with('-'))
            .collect();
        let factory = Factory::new().unwrap();
        assert_eq!(text, base64(&factory.root));
        let other = Factory::of_another_maker().unwrap();
        assert_ne!(other.root, factory.root);
    }

    /// RFC 4648 §4.
    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let group = |chunk: &[u8]| {
            let n =
                chunk.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
            let digit = |i: usize| match i <= chunk.len() {
                true => char::from(DIGITS[(n >> (18 - 6 * i)) as usize & 63]),
                false => '=',
            };
            [digit(0), digit(1), digit(2), digit(3)]
        };
        bytes.chunks(3).flat_map(group).collect()
    }
}
