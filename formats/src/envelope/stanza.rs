//! Stanzas: file keys that are wrapped for our keys. The device does one operation to unwrap a file
//! key, and the host does the rest.

use age_core::format::{FILE_KEY_BYTES, FileKey, Stanza};
use age_core::primitives::aead_decrypt;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use chacha20poly1305::aead::{Aead, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use claviger_token::possession::SSH_RSA_LABEL;
use claviger_token::{Algorithm, PublicKey, Secret, Unwrap};
use hkdf::Hkdf;
use hpke::kdf::{HkdfSha256, LabeledExpand, extract_and_expand, labeled_extract};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::recipient::compressed;
use crate::ssh;

const P256TAG: &str = "p256tag";
const P256TAG_INFO: &[u8] = b"age-encryption.org/p256tag";
const X25519: &str = "X25519";
const X25519_LABEL: &[u8] = b"age-encryption.org/v1/X25519";
const SSH_RSA: &str = "ssh-rsa";

/// The bytes of a file key with the tag of its AEAD.
const BODY: usize = FILE_KEY_BYTES + 16;

/// Whether a key of ours may open stanzas of this type.
pub(super) fn is_known(stanza: &Stanza) -> bool {
    [P256TAG, X25519, SSH_RSA].contains(&&*stanza.tag)
}

/// Whether a stanza of a type that we open has a form that no key opens.
pub(super) fn is_malformed(stanza: &Stanza) -> bool {
    let is_point = |algorithm, bytes: &[u8]| PublicKey::from_bytes(algorithm, bytes).is_ok();
    let is_fine = match (stanza.tag.as_str(), stanza.args.as_slice()) {
        (P256TAG, [tag, enc]) => {
            stanza.body.len() == BODY
                && decoded::<4>(tag).is_some()
                && decoded::<65>(enc).is_some_and(|enc| is_point(Algorithm::P256, &enc))
        }
        (X25519, [share]) => {
            stanza.body.len() == BODY
                && decoded::<32>(share).is_some_and(|share| is_point(Algorithm::X25519, &share))
        }
        (SSH_RSA, [tag]) => !stanza.body.is_empty() && decoded::<4>(tag).is_some(),
        _ => !is_known(stanza),
    };
    !is_fine
}

/// A file key wrapped for a key of ours, parsed out of a stanza.
pub(super) enum Wrapped {
    /// HPKE base mode, DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305.
    P256Tag {
        enc: PublicKey,
        body: Vec<u8>,
    },
    X25519 {
        share: PublicKey,
        body: Vec<u8>,
    },
    SshRsa {
        body: Vec<u8>,
    },
}

impl Wrapped {
    /// Parses a stanza; `None` if it is malformed or not for `key`.
    pub(super) fn for_key(key: &PublicKey, stanza: &Stanza) -> Option<Wrapped> {
        let body = || stanza.body.clone();
        match (key.algorithm(), stanza.tag.as_str(), stanza.args.as_slice()) {
            (Algorithm::P256, P256TAG, [tag, enc]) if stanza.body.len() == BODY => {
                let tag: [u8; 4] = decoded(tag)?;
                let enc: [u8; 65] = decoded(enc)?;
                let is_for_key = tag == p256_tag(key, &enc)?;
                let enc = PublicKey::from_bytes(Algorithm::P256, &enc).ok()?;
                is_for_key.then(|| Wrapped::P256Tag { enc, body: body() })
            }
            (Algorithm::X25519, X25519, [share]) if stanza.body.len() == BODY => {
                let share: [u8; 32] = decoded(share)?;
                // With such a share no secret is zero, whatever the key (C2SP age, X25519).
                let share = PublicKey::from_bytes(Algorithm::X25519, &share).ok()?;
                Some(Wrapped::X25519 {
                    share,
                    body: body(),
                })
            }
            (Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096, SSH_RSA, [tag])
                if Some(stanza.body.len() * 8) == key.algorithm().rsa_bits() =>
            {
                let tag: [u8; 4] = decoded(tag)?;
                (tag == ssh_tag(key)?).then(|| Wrapped::SshRsa { body: body() })
            }
            _ => None,
        }
    }

    /// The operation for the device.
    pub(super) fn request(&self) -> Unwrap<'_> {
        match self {
            Wrapped::P256Tag { enc, .. } => Unwrap::Agree { peer: enc },
            Wrapped::X25519 { share, .. } => Unwrap::Agree { peer: share },
            Wrapped::SshRsa { body } => Unwrap::Oaep {
                ciphertext: body,
                label: SSH_RSA_LABEL,
            },
        }
    }

    /// The file key, from the device's answer.
    pub(super) fn open(&self, key: &PublicKey, answer: Secret) -> Option<FileKey> {
        let file_key = match self {
            Wrapped::P256Tag { enc, body } => open_p256tag(key, enc.as_bytes(), &answer, body)?,
            Wrapped::X25519 { share, body } => {
                let mut salt = [0; 64];
                salt[..32].copy_from_slice(share.as_bytes());
                salt[32..].copy_from_slice(key.as_bytes());
                let wrap_key =
                    Zeroizing::new(age_core::primitives::hkdf(&salt, X25519_LABEL, &answer));
                Zeroizing::new(aead_decrypt(&wrap_key, FILE_KEY_BYTES, body).ok()?)
            }
            Wrapped::SshRsa { .. } => answer,
        };
        (file_key.len() == FILE_KEY_BYTES)
            .then(|| FileKey::init_with_mut(|bytes| bytes.copy_from_slice(&file_key)))
    }
}

/// HPKE's OpenBase (RFC 9180 §6.1) from the Diffie-Hellman value on: Decap's
/// ExtractAndExpand (§4.1), the key schedule (§5.1), and the AEAD with the first nonce.
fn open_p256tag(key: &PublicKey, enc: &[u8], dh: &[u8], body: &[u8]) -> Option<Secret> {
    // kem_id 0x0010; kdf_id 0x0001, aead_id 0x0003.
    const KEM_SUITE: &[u8] = b"KEM\x00\x10";
    const SUITE: &[u8] = b"HPKE\x00\x10\x00\x01\x00\x03";

    let mut shared_secret = Zeroizing::new([0u8; 32]);
    let kem_context = [enc, key.as_bytes()].concat();
    extract_and_expand::<HkdfSha256>(dh, KEM_SUITE, &kem_context, shared_secret.as_mut()).ok()?;

    let (psk_id_hash, _) = labeled_extract::<HkdfSha256>(&[], SUITE, b"psk_id_hash", &[]);
    let (info_hash, _) = labeled_extract::<HkdfSha256>(&[], SUITE, b"info_hash", P256TAG_INFO);
    const MODE_BASE: u8 = 0;
    let context = [&[MODE_BASE], psk_id_hash.as_slice(), info_hash.as_slice()].concat();
    let (mut prk, secret) =
        labeled_extract::<HkdfSha256>(shared_secret.as_ref(), SUITE, b"secret", &[]);
    prk.zeroize();
    let mut aead_key = Zeroizing::new([0u8; 32]);
    let mut nonce = [0u8; 12];
    secret
        .labeled_expand(SUITE, b"key", &context, aead_key.as_mut())
        .ok()?;
    secret
        .labeled_expand(SUITE, b"base_nonce", &context, &mut nonce)
        .ok()?;

    let cipher = ChaCha20Poly1305::new(Key::from_slice(aead_key.as_slice()));
    cipher
        .decrypt(Nonce::from_slice(&nonce), body)
        .ok()
        .map(Zeroizing::new)
}

/// The tag by which a `p256tag` stanza names its recipient (C2SP age, p256tag).
fn p256_tag(key: &PublicKey, enc: &[u8; 65]) -> Option<[u8; 4]> {
    let ikm = [enc.as_slice(), &Sha256::digest(compressed(key)?)[..4]].concat();
    let (tag, _) = Hkdf::<Sha256>::extract(Some(P256TAG_INFO), &ikm);
    tag[..4].try_into().ok()
}

/// The tag of an `ssh-rsa` stanza (C2SP age, ssh-rsa).
fn ssh_tag(key: &PublicKey) -> Option<[u8; 4]> {
    Sha256::digest(ssh::to_wire(key)?)[..4].try_into().ok()
}

/// Canonical base64 of exactly `N` bytes.
fn decoded<const N: usize>(text: &str) -> Option<[u8; N]> {
    BASE64_STANDARD_NO_PAD.decode(text).ok()?.try_into().ok()
}
