//! Public keys in SSH's form: lines of `authorized_keys` and of `.pub` files.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD as STANDARD_NO_PAD;
use claviger_token::key::BadPublicKey;
use claviger_token::{Algorithm, PublicKey};
use rsa::pkcs1::DecodeRsaPublicKey;
use rsa::traits::PublicKeyParts;
use sha2::{Digest, Sha256};
use ssh_encoding::{Decode, Encode};
use ssh_key::Mpint;
use ssh_key::public::{EcdsaPublicKey, Ed25519PublicKey, KeyData, RsaPublicKey};

/// Whether SSH has keys of this algorithm: it has none of X25519, secp256k1 and BLS12-381.
pub fn has(algorithm: Algorithm) -> bool {
    !matches!(
        algorithm,
        Algorithm::X25519 | Algorithm::Secp256k1 | Algorithm::Bls12381
    )
}

/// The key as a line of `authorized_keys`; `None` if SSH has no such keys.
pub fn to_line(key: &PublicKey, comment: &str) -> Option<String> {
    ssh_key::PublicKey::new(key_data(key)?, comment)
        .to_openssh()
        .ok()
}

/// Parses a line of `authorized_keys` or of a `.pub` file, without options. The comment is ignored.
///
/// # Errors
/// [`BadPublicKey`] if it is malformed, or of an unknown algorithm.
pub fn from_line(line: &str) -> Result<PublicKey, BadPublicKey> {
    let key = ssh_key::PublicKey::from_openssh(line.trim()).map_err(|_| BadPublicKey)?;
    from_key_data(key.key_data())
}

/// Parses a key in SSH's wire format.
///
/// # Errors
/// [`BadPublicKey`] if it is malformed, or of an unknown algorithm: a certificate, too.
pub fn from_wire(mut wire: &[u8]) -> Result<PublicKey, BadPublicKey> {
    let data = KeyData::decode(&mut wire).map_err(|_| BadPublicKey)?;
    match wire.is_empty() {
        true => from_key_data(&data),
        false => Err(BadPublicKey),
    }
}

/// The fingerprint of a key in SSH's wire format, as `ssh-keygen -l` shows it: `SHA256:` and base64
/// without padding. Another one than [`PublicKey::fingerprint`].
pub fn fingerprint(wire: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(wire)))
}

fn from_key_data(data: &KeyData) -> Result<PublicKey, BadPublicKey> {
    match data {
        KeyData::Ecdsa(key) => {
            let algorithm = match key.curve() {
                ssh_key::EcdsaCurve::NistP256 => Algorithm::P256,
                ssh_key::EcdsaCurve::NistP384 => Algorithm::P384,
                ssh_key::EcdsaCurve::NistP521 => return Err(BadPublicKey),
            };
            PublicKey::from_bytes(algorithm, key.as_sec1_bytes())
        }
        KeyData::Ed25519(key) => PublicKey::from_bytes(Algorithm::Ed25519, &key.0),
        KeyData::Rsa(key) => {
            let number = |n: &Mpint| n.as_positive_bytes().map(<[u8]>::to_vec);
            let modulus = number(&key.n).ok_or(BadPublicKey)?;
            PublicKey::from_rsa(&modulus, &number(&key.e).ok_or(BadPublicKey)?)
        }
        _ => Err(BadPublicKey),
    }
}

/// The key in SSH's wire format (RFC 4253 §6.6, RFC 5656, RFC 8709); `None` if SSH has no such
/// keys.
pub fn to_wire(key: &PublicKey) -> Option<Vec<u8>> {
    let mut wire = Vec::new();
    key_data(key)?.encode(&mut wire).ok()?;
    Some(wire)
}

pub(crate) fn key_data(key: &PublicKey) -> Option<KeyData> {
    match key.algorithm() {
        Algorithm::P256 | Algorithm::P384 => EcdsaPublicKey::from_sec1_bytes(key.as_bytes())
            .ok()
            .map(KeyData::Ecdsa),
        Algorithm::Ed25519 => {
            let bytes = key.as_bytes().try_into().ok()?;
            Some(KeyData::Ed25519(Ed25519PublicKey(bytes)))
        }
        Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => {
            let key = rsa::RsaPublicKey::from_pkcs1_der(key.as_bytes()).ok()?;
            Some(KeyData::Rsa(RsaPublicKey {
                e: Mpint::from_positive_bytes(&key.e().to_bytes_be()).ok()?,
                n: Mpint::from_positive_bytes(&key.n().to_bytes_be()).ok()?,
            }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back() {
        let p256 = p256::SecretKey::from_slice(&[7; 32]).unwrap().public_key();
        let ed25519 = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key();
        let keys = [
            PublicKey::from_bytes(Algorithm::P256, &p256.to_sec1_bytes()),
            PublicKey::from_bytes(Algorithm::Ed25519, ed25519.as_bytes()),
        ];
        for key in keys.map(Result::unwrap) {
            let line = to_line(&key, "me@there").unwrap();
            let wire = to_wire(&key).unwrap();
            assert_eq!(from_wire(&wire).as_ref(), Ok(&key));
            assert!(from_wire(&[&wire[..], b"."].concat()).is_err());
            let shown = ssh_key::PublicKey::from_openssh(&line).unwrap();
            let shown = shown.fingerprint(ssh_key::HashAlg::Sha256).to_string();
            assert_eq!(fingerprint(&wire), shown);
            assert_eq!(from_line(&line), Ok(key));
        }
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            "ssh-dss AAAAB3NzaC1kc3M=",
        ] {
            assert_eq!(from_line(bad), Err(BadPublicKey), "{bad}");
        }
    }

    #[test]
    fn ssh_has_no_keys_that_only_agree() {
        let key = PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap();
        assert!(!has(key.algorithm()));
        assert_eq!((to_line(&key, ""), to_wire(&key)), (None, None));
    }
}
