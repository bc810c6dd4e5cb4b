//! Attestation: a certificate that says how a key came into its slot.
//!
//! The chain is root → attestation key (slot F9) → key. The root is made with the card
//! and its private half is dropped at once, as a factory would keep it elsewhere.
//! See <https://developers.yubico.com/PIV/Introduction/PIV_attestation.html>.

use rand_core::{OsRng, RngCore as _};

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

/// What a factory puts on a card.
pub(crate) struct Factory {
    pub(crate) root: Vec<u8>,
    pub(crate) key: PrivateKey,
    pub(crate) certificate: Vec<u8>,
}

impl Factory {
    /// Makes root, attestation key and its certificate. The key is of P-256, whatever the
    /// firmware (real ones before 5.7 have RSA-2048), so that making a card is quick.
    pub(crate) fn new() -> Result<Factory, Status> {
        let root_key = PrivateKey::try_generate(Algorithm::P256)?;
        let key = PrivateKey::try_generate(Algorithm::P256)?;
        let root_name = name("Virtual YubiKey PIV Root CA");
        let root = certificate(
            &root_key,
            &root_name,
            &root_name,
            &root_key.spki(),
            &validity(),
            &authority(),
        )?;
        let certificate = certificate(
            &root_key,
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
    let mut serial = [0; 16];
    OsRng
        .try_fill_bytes(&mut serial)
        .map_err(|_| Status::INTERNAL)?;
    serial[0] |= 1;
    // The algorithm is named within what is signed, too.
    let (algorithm, _) = issuer_key.sign_certificate(&[])?;
    let body = write(
        SEQUENCE,
        &[
            &[0xa0, 0x03, 0x02, 0x01, 0x02],
            &write(INTEGER, &[&positive(&serial)]),
            &algorithm,
            issuer,
            dates,
            subject,
            spki,
            &write(0xa3, &[&write(SEQUENCE, &[extensions])]),
        ],
    );
    let (algorithm, signature) = issuer_key.sign_certificate(&body)?;
    let signature = write(BIT_STRING, &[&[0], &signature]);
    Ok(write(SEQUENCE, &[&body, &algorithm, &signature]))
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
