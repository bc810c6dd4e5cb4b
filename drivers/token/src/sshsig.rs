//! SSH signatures (OpenSSH `PROTOCOL.sshsig`): the armored files that
//! `ssh-keygen -Y verify` reads.

use ssh_encoding::Encode;
use ssh_key::{HashAlg, LineEnding, Mpint, SshSig};

use crate::signing::BadSignature;
use crate::{PublicKey, Signature, SignatureScheme};

/// The namespace that `ssh-keygen -Y sign` and `git` know for plain files.
pub const FILE_NAMESPACE: &str = "file";

/// What has to be signed so that [`to_pem`] makes an SSH signature over `message`.
///
/// # Errors
/// [`BadSignature`] where the namespace is empty.
pub fn signed_data(namespace: &str, message: &[u8]) -> Result<Vec<u8>, BadSignature> {
    SshSig::signed_data(namespace, HashAlg::Sha512, message).map_err(|_| BadSignature)
}

/// The armored file for a `signature` over [`signed_data`].
///
/// # Errors
/// [`BadSignature`] where SSH has no such keys (secp256k1, BLS12-381).
pub fn to_pem(
    key: &PublicKey,
    namespace: &str,
    signature: &Signature,
) -> Result<String, BadSignature> {
    let data = key.to_ssh().ok_or(BadSignature)?;
    let signature = to_ssh(signature)?;
    SshSig::new(data, namespace, HashAlg::Sha512, signature)
        .and_then(|sig| sig.to_pem(LineEnding::LF))
        .map_err(|_| BadSignature)
}

/// Whether `file` looks like an armored SSH signature.
pub fn is_sshsig(file: &[u8]) -> bool {
    file.trim_ascii_start()
        .starts_with(b"-----BEGIN SSH SIGNATURE-----")
}

/// Checks that `pem` is an SSH signature of `key` over `message` in `namespace`.
///
/// # Errors
/// [`BadSignature`], without a reason.
pub fn verify(
    key: &PublicKey,
    namespace: &str,
    message: &[u8],
    pem: &[u8],
) -> Result<(), BadSignature> {
    let sig = SshSig::from_pem(pem).map_err(|_| BadSignature)?;
    if sig.namespace() != namespace || Some(sig.public_key()) != key.to_ssh().as_ref() {
        return Err(BadSignature);
    }
    let data = SshSig::signed_data(namespace, sig.hash_alg(), message).map_err(|_| BadSignature)?;
    key.verify(&data, &from_ssh(key, sig.signature())?)
}

/// The signature as the blob that SSH puts into its messages (RFC 4253 §6.6,
/// RFC 5656 §3.1.2, RFC 8332, RFC 8709).
fn to_ssh(signature: &Signature) -> Result<ssh_key::Signature, BadSignature> {
    let (name, blob) = match signature.scheme() {
        SignatureScheme::Ed25519 => ("ssh-ed25519", signature.as_bytes().to_vec()),
        SignatureScheme::RsaPkcs1Sha256 => ("rsa-sha2-256", signature.as_bytes().to_vec()),
        SignatureScheme::EcdsaP256Sha256 => {
            ("ecdsa-sha2-nistp256", two_integers(signature.as_bytes())?)
        }
        SignatureScheme::EcdsaP384Sha384 => {
            ("ecdsa-sha2-nistp384", two_integers(signature.as_bytes())?)
        }
        SignatureScheme::EcdsaSecp256k1Sha256
        | SignatureScheme::Eip191Secp256k1
        | SignatureScheme::Bls12381G2Basic => return Err(BadSignature),
    };
    let algorithm = ssh_key::Algorithm::new(name).map_err(|_| BadSignature)?;
    ssh_key::Signature::new(algorithm, blob).map_err(|_| BadSignature)
}

fn from_ssh(key: &PublicKey, signature: &ssh_key::Signature) -> Result<Signature, BadSignature> {
    let scheme = SignatureScheme::of(key.algorithm()).ok_or(BadSignature)?;
    let blob = signature.as_bytes();
    let name = signature.algorithm();
    match (scheme, name.as_str()) {
        (SignatureScheme::EcdsaP256Sha256, "ecdsa-sha2-nistp256") => {
            Signature::new(scheme, fixed_width(blob, 32)?)
        }
        (SignatureScheme::EcdsaP384Sha384, "ecdsa-sha2-nistp384") => {
            Signature::new(scheme, fixed_width(blob, 48)?)
        }
        (SignatureScheme::Ed25519, "ssh-ed25519")
        | (SignatureScheme::RsaPkcs1Sha256, "rsa-sha2-256") => {
            Signature::new(scheme, blob.to_vec())
        }
        _ => Err(BadSignature),
    }
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
    use ssh_encoding::Decode;
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
