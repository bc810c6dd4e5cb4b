//! A certificate of a key, with those that issued it, as a file or a registry has them.

use claviger_token::PublicKey;
use x509_cert::certificate::Certificate;
use x509_cert::der::pem::{self, LineEnding};
use x509_cert::der::{Decode, Encode, Header, SliceReader};
use x509_cert::ext::pkix::SubjectAltName;

use super::CertificateError;
use super::error::malformed;
use super::names::AlternativeName;

/// The most certificates that a file may have.
pub const LONGEST_CHAIN: usize = 16;

/// The most bytes that a file may have.
pub const LONGEST_FILE: usize = 128 << 10;

const LABEL: &str = "CERTIFICATE";

/// A certificate, and those that issued it and each other, in this order. Their signatures are not
/// checked: who relies on the certificate does that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    leaf: Certificate,
    ders: Vec<Vec<u8>>,
}

impl Chain {
    /// The certificate for `key` in a file, and the others in it: one in DER, or several in PEM, in
    /// any order.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`], [`CertificateError::OtherKey`],
    /// [`CertificateError::NotInChain`].
    pub fn read(file: &[u8], key: &PublicKey) -> Result<Self, CertificateError> {
        let ders = match std::str::from_utf8(file) {
            Ok(text) if text.contains("-----BEGIN ") => from_pem(text)?,
            _ => vec![file.to_vec()],
        };
        Chain::of(ders, key)
    }

    /// The certificate for `key` among these, in DER, and the others.
    ///
    /// # Errors
    /// As [`Chain::read`].
    pub fn of(ders: Vec<Vec<u8>>, key: &PublicKey) -> Result<Self, CertificateError> {
        if ders.is_empty() || ders.len() > LONGEST_CHAIN {
            return Err(malformed(&format!(
                "it has {} certificates, and 1 to {LONGEST_CHAIN} are a chain",
                ders.len()
            )));
        }
        let mut rest = Vec::with_capacity(ders.len());
        for der in ders {
            rest.push((Certificate::from_der(&der).map_err(|e| malformed(&e))?, der));
        }
        let wanted = key.to_der();
        let is_its = |(certificate, _): &(Certificate, Vec<u8>)| {
            let found = &certificate.tbs_certificate.subject_public_key_info;
            wanted.is_some() && found.to_der().ok() == wanted
        };
        let Some(at) = rest.iter().position(is_its) else {
            let wanted = key.fingerprint();
            return Err(CertificateError::OtherKey { wanted });
        };
        let (leaf, der) = rest.remove(at);
        let (mut ders, mut last) = (vec![der], leaf.clone());
        while let Some(at) = rest.iter().position(|(next, _)| issued(next, &last)) {
            let (issuer, der) = rest.remove(at);
            ders.push(der);
            last = issuer;
        }
        match rest.first() {
            None => Ok(Chain { leaf, ders }),
            Some((stranger, _)) => Err(CertificateError::NotInChain {
                subject: stranger.tbs_certificate.subject.to_string(),
            }),
        }
    }

    /// Certificates in DER that stand one behind the other; `None` if they are cut, or too many.
    pub fn split(mut ders: &[u8]) -> Option<Vec<Vec<u8>>> {
        let mut all = Vec::new();
        while !ders.is_empty() && all.len() <= LONGEST_CHAIN {
            let mut reader = SliceReader::new(ders).ok()?;
            let header = Header::decode(&mut reader).ok()?;
            let length = (header.encoded_len().ok()? + header.length).ok()?;
            let (first, rest) = ders.split_at_checked(usize::try_from(length).ok()?)?;
            all.push(first.to_vec());
            ders = rest;
        }
        (all.len() <= LONGEST_CHAIN).then_some(all)
    }

    /// The certificates in DER, that of the key first.
    pub fn ders(&self) -> &[Vec<u8>] {
        &self.ders
    }

    /// The certificates as PEM, that of the key first.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`], if one of them is too long.
    pub fn to_pem(&self) -> Result<String, CertificateError> {
        let encode = |der: &Vec<u8>| pem::encode_string(LABEL, LineEnding::LF, der);
        let all: Result<Vec<String>, _> = self.ders.iter().map(encode).collect();
        all.map(|all| all.concat()).map_err(|e| malformed(&e))
    }

    /// Whom it names.
    pub fn subject(&self) -> String {
        self.leaf.tbs_certificate.subject.to_string()
    }

    /// Who issued it.
    pub fn issuer(&self) -> String {
        self.leaf.tbs_certificate.issuer.to_string()
    }

    /// The serial number, in hexadecimal.
    pub fn serial(&self) -> String {
        claviger_token::key::to_hex(self.leaf.tbs_certificate.serial_number.as_bytes())
    }

    /// The DER of the subject, of the issuer, and of the serial number, as PKCS#11 has them.
    ///
    /// # Errors
    /// [`CertificateError::Malformed`]; what was read can be written.
    pub fn names_in_der(&self) -> Result<[Vec<u8>; 3], CertificateError> {
        let certificate = &self.leaf.tbs_certificate;
        Ok([
            certificate.subject.to_der().map_err(|e| malformed(&e))?,
            certificate.issuer.to_der().map_err(|e| malformed(&e))?,
            certificate
                .serial_number
                .to_der()
                .map_err(|e| malformed(&e))?,
        ])
    }

    /// Its other names.
    pub fn names(&self) -> Vec<String> {
        let extension = self.leaf.tbs_certificate.get::<SubjectAltName>();
        let names = extension.ok().flatten().map(|(_, names)| names.0);
        let names = names.into_iter().flatten();
        names
            .map(|name| AlternativeName(name).to_string())
            .collect()
    }

    /// When it begins to be valid, in seconds since the beginning of 1970 (UTC).
    pub fn not_before(&self) -> u64 {
        let validity = &self.leaf.tbs_certificate.validity;
        validity.not_before.to_unix_duration().as_secs()
    }

    /// When it ends to be valid, in seconds since the beginning of 1970 (UTC).
    pub fn not_after(&self) -> u64 {
        let validity = &self.leaf.tbs_certificate.validity;
        validity.not_after.to_unix_duration().as_secs()
    }

    /// The same as people write it.
    pub fn shown_times(&self) -> [String; 2] {
        let validity = &self.leaf.tbs_certificate.validity;
        [
            validity.not_before.to_string(),
            validity.not_after.to_string(),
        ]
    }

    /// Refuses one whose time is over at `now`, in seconds since the beginning of 1970 (UTC).
    ///
    /// # Errors
    /// [`CertificateError::Expired`].
    pub fn check_time(&self, now: u64) -> Result<(), CertificateError> {
        match self.not_after() < now {
            false => Ok(()),
            true => {
                let [_, on] = self.shown_times();
                Err(CertificateError::Expired { on })
            }
        }
    }
}

/// Whether `issuer` is named as the issuer of `issued`, and is another one.
fn issued(issuer: &Certificate, issued: &Certificate) -> bool {
    let (issuer, issued) = (&issuer.tbs_certificate, &issued.tbs_certificate);
    issuer.subject == issued.issuer && issuer.subject != issued.subject
}

fn from_pem(text: &str) -> Result<Vec<Vec<u8>>, CertificateError> {
    const END: &str = "-----END CERTIFICATE-----";
    let mut ders = Vec::new();
    for part in text.split_inclusive(END).filter(|part| part.ends_with(END)) {
        let Some(begin) = part.find("-----BEGIN CERTIFICATE-----") else {
            continue;
        };
        let lines: Vec<&str> = part[begin..].lines().map(str::trim_end).collect();
        let (_, der) = pem::decode_vec(lines.join("\n").as_bytes()).map_err(|e| malformed(&e))?;
        ders.push(der);
    }
    match ders.is_empty() {
        true => Err(malformed(&"there is no CERTIFICATE in it")),
        false => Ok(ders),
    }
}
