//! Public keys, in every form in which they come.

use claviger_formats::foreign::ForeignKey;
use claviger_formats::{envelope, ssh};
use claviger_token::{Algorithm, Fingerprint, PublicKey};

/// One input.
pub fn run(data: &[u8]) {
    let mut keys: Vec<PublicKey> = Vec::new();
    keys.extend(PublicKey::from_der(data));
    if let Ok(text) = std::str::from_utf8(data) {
        keys.extend(PublicKey::from_text(text));
        keys.extend(ssh::from_line(text));
        keys.extend(envelope::parse_recipient(text));
        let _ = text.parse::<Fingerprint>();
    }
    let mut foreign: Vec<ForeignKey> = Vec::new();
    for label in ["PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE"] {
        foreign.extend(ForeignKey::from_pem(label, data).and_then(Result::ok));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        foreign.extend(ForeignKey::from_ssh(text));
        foreign.extend(ForeignKey::from_age(text));
    }
    keys.extend(foreign.into_iter().map(|found| found.key));
    for algorithm in Algorithm::ALL {
        keys.extend(PublicKey::from_bytes(algorithm, data));
    }
    let (modulus, exponent) = data.split_at(data.len().saturating_sub(3));
    keys.extend(PublicKey::from_rsa(modulus, exponent));
    for key in keys {
        let text = key.to_text();
        assert_eq!(PublicKey::from_text(&text).as_ref(), Ok(&key));
        if let Some(der) = key.to_der() {
            assert_eq!(PublicKey::from_der(&der).as_ref(), Ok(&key));
        }
        let fingerprint = key.fingerprint();
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        if let Some(line) = ssh::to_line(&key, "comment") {
            assert_eq!(ssh::from_line(&line).as_ref(), Ok(&key));
        }
        if let Some(text) = envelope::recipient_text(&key) {
            assert_eq!(envelope::parse_recipient(&text).as_ref(), Ok(&key));
            // Whatever was taken for a recipient is one.
            assert!(envelope::encrypt(&[&key], b"").is_ok());
        }
    }
}
