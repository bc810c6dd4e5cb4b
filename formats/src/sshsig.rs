//! SSH signatures (OpenSSH `PROTOCOL.sshsig`): the armored files that
//! `ssh-keygen -Y verify` reads.
//!
//! It reads what `ssh-keygen -Y sign` of OpenSSH 9 writes for keys that Claviger supports: Ed25519,
//! ECDSA over P-256 and P-384, `rsa-sha2-512` and `rsa-sha2-256`, over messages hashed with SHA-512
//! or SHA-256, in armor of any width.
//!
//! A signature file is malleable: white space in the armor, text after it, and (ECDSA) the sign of
//! s. So do not identify a document by its signature file.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use claviger_token::signing::BadSignature;
use claviger_token::{PublicKey, Signature, SignatureScheme};
use sha2::{Digest, Sha256, Sha512};
use ssh_encoding::{Decode, Encode};
use ssh_key::{HashAlg, LineEnding, SshSig};

use crate::{ssh, ssh_signature};

/// The namespace of `ssh-keygen -Y sign` and `git` for plain files.
pub const FILE_NAMESPACE: &str = "file";

const BEGIN: &[u8] = b"-----BEGIN SSH SIGNATURE-----";
const END: &[u8] = b"-----END SSH SIGNATURE-----";
/// The prefix of the data that an SSH signature signs, and of the content of its armor.
pub const MAGIC: &[u8] = b"SSHSIG";
const VERSION: u32 = 1;

/// `ssh-keygen` accepts base64 with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The hash of a message under an SSH signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-512, which new signatures use.
    Sha512,
}

impl Hash {
    /// The name in a signature (`PROTOCOL.sshsig`).
    pub fn name(self) -> &'static str {
        match self {
            Hash::Sha256 => "sha256",
            Hash::Sha512 => "sha512",
        }
    }

    /// The length of its digests in bytes.
    pub fn length(self) -> usize {
        match self {
            Hash::Sha256 => 32,
            Hash::Sha512 => 64,
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Hash::Sha256, Hash::Sha512]
            .into_iter()
            .find(|hash| hash.name() == name)
    }

    fn digest(self, message: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha256 => Sha256::digest(message).to_vec(),
            Hash::Sha512 => Sha512::digest(message).to_vec(),
        }
    }
}

/// The bytes to sign, so that [`to_pem`] makes an SSH signature over `message`.
///
/// # Errors
/// [`BadSignature`] where the namespace is empty.
pub fn signed_data(namespace: &str, message: &[u8]) -> Result<Vec<u8>, BadSignature> {
    signed_data_of(namespace, Hash::Sha512, &Hash::Sha512.digest(message))
}

/// The same for a message of which only the digest is known.
///
/// # Errors
/// [`BadSignature`] where the namespace is empty.
pub fn signed_data_of(namespace: &str, hash: Hash, digest: &[u8]) -> Result<Vec<u8>, BadSignature> {
    if namespace.is_empty() {
        return Err(BadSignature);
    }
    let mut data = MAGIC.to_vec();
    for part in [namespace.as_bytes(), b"", hash.name().as_bytes(), digest] {
        part.encode(&mut data).map_err(|_| BadSignature)?;
    }
    Ok(data)
}

/// The armored file for a `signature` over [`signed_data`].
///
/// # Errors
/// [`BadSignature`] if SSH has no such keys (secp256k1, BLS12-381).
pub fn to_pem(
    key: &PublicKey,
    namespace: &str,
    signature: &Signature,
) -> Result<String, BadSignature> {
    let data = ssh::key_data(key).ok_or(BadSignature)?;
    let signature = ssh_signature::to_ssh(signature)?;
    SshSig::new(data, namespace, HashAlg::Sha512, signature)
        .and_then(|sig| sig.to_pem(LineEnding::LF))
        .map_err(|_| BadSignature)
}

/// Whether `file` looks like an armored SSH signature.
pub fn is_sshsig(file: &[u8]) -> bool {
    file.trim_ascii_start().starts_with(BEGIN)
}

/// Verifies that `pem` is an SSH signature of `key` over `message` in `namespace`.
///
/// # Errors
/// [`BadSignature`], without a reason; [`SshSignature`] gives reasons.
pub fn verify(
    key: &PublicKey,
    namespace: &str,
    message: &[u8],
    pem: &[u8],
) -> Result<(), BadSignature> {
    let signature = SshSignature::parse(pem).map_err(|_| BadSignature)?;
    if signature.namespace() != namespace || !signature.names(key) {
        return Err(BadSignature);
    }
    signature
        .verify(key, &signature.hash().digest(message))
        .map(drop)
}

/// A parsed SSH signature, well-formed but not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSignature {
    /// The public key in SSH's encoding.
    key: Vec<u8>,
    namespace: String,
    hash: Hash,
    algorithm: String,
    blob: Vec<u8>,
}

/// Why an SSH signature cannot be verified at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// The armor or its content is damaged.
    #[error("the SSH signature is malformed: {0}")]
    Malformed(&'static str),
    /// Its version is unknown.
    #[error("the SSH signature has version {0}; only version 1 is supported")]
    Version(u32),
    /// Its hash is not supported.
    #[error("the SSH signature uses the hash `{0}`; only sha256 and sha512 are supported")]
    Hash(String),
    /// Its algorithm is unknown, or not considered secure.
    #[error("the SSH signature uses the algorithm `{0}`, which is not supported")]
    Algorithm(String),
}

impl Unreadable {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Unreadable::Malformed(_) => "ssh-signature-malformed",
            Unreadable::Version(_) => "ssh-signature-version",
            Unreadable::Hash(_) => "ssh-signature-hash",
            Unreadable::Algorithm(_) => "ssh-signature-algorithm",
        }
    }
}

impl SshSignature {
    /// Parses an armored signature. White space in it and anything after it are skipped, as by
    /// `ssh-keygen`.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn parse(file: &[u8]) -> Result<Self, Unreadable> {
        let malformed = Unreadable::Malformed;
        let armored = file
            .trim_ascii_start()
            .strip_prefix(BEGIN)
            .ok_or(malformed("it has no first line"))?;
        let end = armored
            .windows(END.len())
            .position(|part| part == END)
            .ok_or(malformed("it has no last line"))?;
        let text: Vec<u8> = armored[..end]
            .iter()
            .copied()
            .filter(|byte| !byte.is_ascii_whitespace())
            .collect();
        let bytes = BASE64
            .decode(text)
            .map_err(|_| malformed("it is not base64"))?;
        SshSignature::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Unreadable> {
        let cut = |_| Unreadable::Malformed("it is truncated or too long");
        let mut rest = bytes
            .strip_prefix(MAGIC)
            .ok_or(Unreadable::Malformed("it does not begin with SSHSIG"))?;
        let version = u32::decode(&mut rest).map_err(cut)?;
        if version != VERSION {
            return Err(Unreadable::Version(version));
        }
        let key = Vec::decode(&mut rest).map_err(cut)?;
        let namespace = String::decode(&mut rest).map_err(cut)?;
        let _reserved = Vec::<u8>::decode(&mut rest).map_err(cut)?;
        let hash = String::decode(&mut rest).map_err(cut)?;
        let signature = Vec::<u8>::decode(&mut rest).map_err(cut)?;
        let mut inner = signature.as_slice();
        let algorithm = String::decode(&mut inner).map_err(cut)?;
        let blob = Vec::decode(&mut inner).map_err(cut)?;
        if namespace.is_empty() {
            return Err(Unreadable::Malformed("its namespace is empty"));
        }
        // What follows the signature of a security key is for such keys only.
        if !rest.is_empty() || (!inner.is_empty() && !algorithm.starts_with("sk-")) {
            return Err(Unreadable::Malformed("it is truncated or too long"));
        }
        Ok(SshSignature {
            key,
            namespace,
            hash: Hash::named(&hash).ok_or(Unreadable::Hash(hash))?,
            algorithm,
            blob,
        })
    }

    /// The namespace that it states, which is signed, too.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The hash that it states, which is signed, too.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// The public key that it names, in SSH's encoding (RFC 4253 §6.6).
    pub fn key_blob(&self) -> &[u8] {
        &self.key
    }

    /// Whether it names this key.
    pub fn names(&self, key: &PublicKey) -> bool {
        ssh::to_wire(key).as_deref() == Some(&self.key)
    }

    /// The algorithm of the key that it names, by SSH's name: `ssh-ed25519`.
    pub fn key_type(&self) -> String {
        String::decode(&mut self.key.as_slice()).unwrap_or_default()
    }

    /// The scheme, if signatures of `key` are verified in it.
    ///
    /// # Errors
    /// [`Unreadable::Algorithm`] for others, such as `ssh-rsa`, which is SHA-1.
    pub fn scheme(&self, key: &PublicKey) -> Result<SignatureScheme, Unreadable> {
        ssh_signature::scheme_named(&self.algorithm)
            .filter(|scheme| SignatureScheme::all_of(key.algorithm()).any(|s| s == *scheme))
            .ok_or_else(|| Unreadable::Algorithm(self.algorithm.clone()))
    }

    /// Verifies that it is a signature of `key` over the message with this digest (made with its
    /// [hash](SshSignature::hash)), and returns its scheme.
    ///
    /// The caller checks the key that it [names](SshSignature::names) and its
    /// [namespace](SshSignature::namespace).
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify(&self, key: &PublicKey, digest: &[u8]) -> Result<SignatureScheme, BadSignature> {
        let scheme = self.scheme(key).map_err(|_| BadSignature)?;
        let signature = ssh_signature::from_blob(scheme, &self.blob, key)?;
        let data = signed_data_of(&self.namespace, self.hash, digest)?;
        key.verify(&data, &signature)?;
        Ok(scheme)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_token::Algorithm;

    fn file(message: &[u8]) -> (PublicKey, String) {
        use ed25519_dalek::Signer;
        let secret = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let public = secret.verifying_key();
        let key = PublicKey::from_bytes(Algorithm::Ed25519, public.as_bytes()).unwrap();
        let data = signed_data(FILE_NAMESPACE, message).unwrap();
        let signature = secret.sign(&data).to_bytes().to_vec();
        let signature = Signature::new(SignatureScheme::Ed25519, signature).unwrap();
        let pem = to_pem(&key, FILE_NAMESPACE, &signature).unwrap();
        (key, pem)
    }

    /// A signature file by hand: to have it say what `ssh-keygen` would not.
    fn armored(key: &PublicKey, hash: &str, algorithm: &str, blob: &[u8]) -> String {
        let (mut signature, mut bytes) = (Vec::new(), MAGIC.to_vec());
        let key_blob = ssh::to_wire(key).unwrap();
        for part in [algorithm.as_bytes(), blob] {
            part.encode(&mut signature).unwrap();
        }
        VERSION.encode(&mut bytes).unwrap();
        for part in [&key_blob[..], b"file", b"", hash.as_bytes(), &signature] {
            part.encode(&mut bytes).unwrap();
        }
        let text = BASE64.encode(bytes);
        format!("-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n")
    }

    #[test]
    fn a_message_whose_digest_is_known_is_signed_like_one_that_is_at_hand() {
        let whole = SshSig::signed_data("git", HashAlg::Sha512, b"hello").unwrap();
        assert_eq!(signed_data("git", b"hello").unwrap(), whole);
        let whole = SshSig::signed_data("git", HashAlg::Sha256, b"hello").unwrap();
        let digest = Hash::Sha256.digest(b"hello");
        assert_eq!(signed_data_of("git", Hash::Sha256, &digest).unwrap(), whole);
        assert_eq!(signed_data("", b"hello"), Err(BadSignature));
    }

    #[test]
    fn armor_may_be_of_any_width_and_have_anything_behind_it() {
        let (key, pem) = file(b"hello");
        let lines: Vec<&str> = pem.lines().collect();
        let (first, last) = (lines[0], lines[lines.len() - 1]);
        let body = lines[1..lines.len() - 1].concat();
        for width in [1, 64, 70, 76, 1000] {
            for end in ["\n", "\r\n"] {
                let text: Vec<&str> = (0..body.len())
                    .step_by(width)
                    .map(|i| &body[i..body.len().min(i + width)])
                    .collect();
                let text = text.join(end);
                let wide = format!("\n{first}{end}{end}{text}{end}{last}{end}{end}behind it");
                let verdict = verify(&key, FILE_NAMESPACE, b"hello", wide.as_bytes());
                assert_eq!(verdict, Ok(()), "{width} {end:?}");
                assert!(verify(&key, FILE_NAMESPACE, b"hell", wide.as_bytes()).is_err());
                assert!(verify(&key, "git", b"hello", wide.as_bytes()).is_err());
            }
        }
    }

    #[test]
    fn rsa_signs_with_sha_512_and_with_sha_256_and_sha_1_is_not_taken() {
        use rsa::traits::PublicKeyParts;
        use rsa::{Pkcs1v15Sign, sha2 as hashes};
        let secret = rsa::RsaPrivateKey::new(&mut rand_core::OsRng, 2048).unwrap();
        let numbers = (secret.n().to_bytes_be(), secret.e().to_bytes_be());
        let key = PublicKey::from_rsa(&numbers.0, &numbers.1).unwrap();
        for hash in [Hash::Sha256, Hash::Sha512] {
            let data = signed_data_of("file", hash, &hash.digest(b"hello")).unwrap();
            let sha256 = Pkcs1v15Sign::new::<hashes::Sha256>();
            let sha512 = Pkcs1v15Sign::new::<hashes::Sha512>();
            let with_256 = secret.sign(sha256, &Sha256::digest(&data)).unwrap();
            let with_512 = secret.sign(sha512, &Sha512::digest(&data)).unwrap();
            for (algorithm, blob) in [("rsa-sha2-256", &with_256), ("rsa-sha2-512", &with_512)] {
                let pem = armored(&key, hash.name(), algorithm, blob);
                assert_eq!(verify(&key, "file", b"hello", pem.as_bytes()), Ok(()));
                assert!(verify(&key, "file", b"hell", pem.as_bytes()).is_err());
            }
            let swapped = armored(&key, hash.name(), "rsa-sha2-256", &with_512);
            assert!(verify(&key, "file", b"hello", swapped.as_bytes()).is_err());
            let old = armored(&key, hash.name(), "ssh-rsa", &with_256);
            let old = SshSignature::parse(old.as_bytes()).unwrap();
            let refused = old.scheme(&key);
            assert_eq!(refused, Err(Unreadable::Algorithm("ssh-rsa".into())));
        }
    }

    #[test]
    fn what_cannot_be_judged_has_a_reason() {
        let (key, pem) = file(b"hello");
        let unknown = armored(&key, "sha384", "ssh-ed25519", &[0; 64]);
        let refused = SshSignature::parse(unknown.as_bytes()).unwrap_err();
        assert_eq!(refused, Unreadable::Hash("sha384".into()));
        assert_eq!(refused.code(), "ssh-signature-hash");
        for end in 0..pem.trim_end().len() {
            let cut = SshSignature::parse(&pem.as_bytes()[..end]);
            assert!(matches!(cut, Err(Unreadable::Malformed(_))), "{end}");
        }
        let read = SshSignature::parse(pem.as_bytes()).unwrap();
        assert!(read.names(&key));
        assert_eq!((read.namespace(), read.hash()), ("file", Hash::Sha512));
        assert_eq!(read.key_type(), "ssh-ed25519");
    }
}
