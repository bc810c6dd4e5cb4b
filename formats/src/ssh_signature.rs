//! Signatures in SSH's wire format: RFC 4253 §6.6, RFC 5656 §3.1.2 (ECDSA), RFC 8332 (RSA),
//! RFC 8709 (Ed25519).

use claviger_token::signing::BadSignature;
use claviger_token::{PublicKey, Signature, SignatureScheme};
use ssh_encoding::{Decode, Encode};
use ssh_key::Mpint;

/// The scheme that SSH calls `name`; `None` for what is not supported, such as `ssh-rsa`, which is
/// SHA-1.
pub fn scheme_named(name: &str) -> Option<SignatureScheme> {
    Some(match name {
        "ssh-ed25519" => SignatureScheme::Ed25519,
        "ecdsa-sha2-nistp256" => SignatureScheme::EcdsaP256Sha256,
        "ecdsa-sha2-nistp384" => SignatureScheme::EcdsaP384Sha384,
        "rsa-sha2-256" => SignatureScheme::RsaPkcs1Sha256,
        "rsa-sha2-512" => SignatureScheme::RsaPkcs1Sha512,
        _ => return None,
    })
}

/// The signature in SSH's wire format.
///
/// # Errors
/// [`BadSignature`] if SSH has no keys that sign so.
pub fn to_wire(signature: &Signature) -> Result<Vec<u8>, BadSignature> {
    let mut wire = Vec::new();
    to_ssh(signature)?
        .encode(&mut wire)
        .map_err(|_| BadSignature)?;
    Ok(wire)
}

/// Verifies that `wire` is a signature of `key` over `message`.
///
/// # Errors
/// [`BadSignature`], without a reason.
pub fn verify(key: &PublicKey, message: &[u8], mut wire: &[u8]) -> Result<(), BadSignature> {
    let name = String::decode(&mut wire).map_err(|_| BadSignature)?;
    let blob = Vec::<u8>::decode(&mut wire).map_err(|_| BadSignature)?;
    let scheme = scheme_named(&name).ok_or(BadSignature)?;
    if !wire.is_empty() {
        return Err(BadSignature);
    }
    key.verify(message, &from_blob(scheme, &blob, key)?)
}

/// The signature of `key` in a blob, without its name.
pub(crate) fn from_blob(
    scheme: SignatureScheme,
    blob: &[u8],
    key: &PublicKey,
) -> Result<Signature, BadSignature> {
    let bytes = match scheme {
        SignatureScheme::EcdsaP256Sha256 => fixed_width(blob, 32)?,
        SignatureScheme::EcdsaP384Sha384 => fixed_width(blob, 48)?,
        // OpenSSH takes those whose zeros at the beginning were left away.
        SignatureScheme::RsaPkcs1Sha256 | SignatureScheme::RsaPkcs1Sha512 => {
            let width = key.algorithm().rsa_bits().unwrap_or_default() / 8;
            let padding = width.checked_sub(blob.len()).ok_or(BadSignature)?;
            [&vec![0; padding][..], blob].concat()
        }
        _ => blob.to_vec(),
    };
    Signature::new(scheme, bytes)
}

pub(crate) fn to_ssh(signature: &Signature) -> Result<ssh_key::Signature, BadSignature> {
    let (name, blob) = match signature.scheme() {
        SignatureScheme::Ed25519 => ("ssh-ed25519", signature.as_bytes().to_vec()),
        SignatureScheme::RsaPkcs1Sha256 => ("rsa-sha2-256", signature.as_bytes().to_vec()),
        SignatureScheme::RsaPkcs1Sha512 => ("rsa-sha2-512", signature.as_bytes().to_vec()),
        SignatureScheme::EcdsaP256Sha256 => {
            ("ecdsa-sha2-nistp256", two_integers(signature.as_bytes())?)
        }
        SignatureScheme::EcdsaP384Sha384 => {
            ("ecdsa-sha2-nistp384", two_integers(signature.as_bytes())?)
        }
        // SSH has no keys that sign so.
        _ => return Err(BadSignature),
    };
    let algorithm = ssh_key::Algorithm::new(name).map_err(|_| BadSignature)?;
    ssh_key::Signature::new(algorithm, blob).map_err(|_| BadSignature)
}

/// r and s as two SSH integers.
fn two_integers(bytes: &[u8]) -> Result<Vec<u8>, BadSignature> {
    let (r, s) = bytes.split_at(bytes.len() / 2);
    let mut blob = Vec::new();
    for half in [r, s] {
        Mpint::from_positive_bytes(half)
            .map_err(|_| BadSignature)?
            .encode(&mut blob)
            .map_err(|_| BadSignature)?;
    }
    Ok(blob)
}

/// Two SSH integers as r and s of `width` bytes each.
fn fixed_width(mut blob: &[u8], width: usize) -> Result<Vec<u8>, BadSignature> {
    let mut out = Vec::with_capacity(2 * width);
    for _ in 0..2 {
        let number = Mpint::decode(&mut blob).map_err(|_| BadSignature)?;
        let bytes = number.as_positive_bytes().ok_or(BadSignature)?;
        let padding = width.checked_sub(bytes.len()).ok_or(BadSignature)?;
        out.resize(out.len() + padding, 0);
        out.extend_from_slice(bytes);
    }
    if blob.is_empty() {
        Ok(out)
    } else {
        Err(BadSignature)
    }
}

#[cfg(test)]
mod tests {
    use claviger_token::Algorithm;

    use super::*;

    #[test]
    fn a_signature_on_the_wire_verifies_and_an_altered_one_does_not() {
        use ed25519_dalek::Signer;
        let secret = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let public = secret.verifying_key();
        let key = PublicKey::from_bytes(Algorithm::Ed25519, public.as_bytes()).unwrap();
        let bytes = secret.sign(b"session").to_bytes().to_vec();
        let signature = Signature::new(SignatureScheme::Ed25519, bytes).unwrap();
        let wire = to_wire(&signature).unwrap();
        assert_eq!(verify(&key, b"session", &wire), Ok(()));
        assert!(verify(&key, b"another", &wire).is_err());
        assert!(verify(&key, b"session", &[&wire[..], b"."].concat()).is_err());
        for end in 0..wire.len() {
            assert!(verify(&key, b"session", &wire[..end]).is_err(), "{end}");
        }
        let mut sha1 = Vec::new();
        b"ssh-rsa"[..].encode(&mut sha1).unwrap();
        [0; 256][..].encode(&mut sha1).unwrap();
        assert!(verify(&key, b"session", &sha1).is_err());
    }
}
