//! Whether a signature is valid: three verdicts, for messages of any length.
//!
//! A message is read once and hashed as it is read, in a fixed buffer. Ed25519 and BLS12-381 need
//! the whole message in memory, except in an SSH signature, which is over a digest.

use std::io::{self, Read};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use claviger_token::key::from_hex;
use claviger_token::signing::{BadSignature, eip191_digest, eip191_prefix};
use claviger_token::{Algorithm, PublicKey, Signature, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};
use sha3::Keccak256;

use crate::sshsig::{self, Hash, SshSignature};

/// The size of a read in bytes.
const BUFFER: usize = 1 << 16;

/// The maximum length in bytes of an Ethereum personal message whose length is known only at its
/// end. Ledgers sign up to 32,766.
const LONGEST_EIP191: usize = 1 << 20;

/// The form of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// The bytes as the scheme defines them.
    Raw,
    /// ECDSA in DER.
    Der,
    /// An SSH signature.
    Ssh,
}

impl Form {
    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Form::Raw => "raw",
            Form::Der => "der",
            Form::Ssh => "sshsig",
        }
    }
}

/// The verdict on a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Valid: the key made it over this message.
    Valid {
        /// The form of the signature.
        form: Form,
        /// The scheme in which it is valid.
        scheme: SignatureScheme,
    },
    /// Not valid: a well-formed signature, but not by this key over this message.
    NotValid(NotValid),
    /// Undecided.
    CannotJudge(CannotJudge),
}

/// Why a signature is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotValid {
    /// Another message or another key was signed.
    #[error("the key did not make this signature over this message")]
    Mismatch,
    /// The SSH signature names another key.
    #[error("another key made the SSH signature")]
    AnotherKey,
}

/// Why a signature cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CannotJudge {
    /// The file has no known form of a signature by such a key.
    #[error("the file is not a signature of a key of {algorithm}{}", guess(*looks))]
    UnknownForm {
        /// The algorithm of the key.
        algorithm: Algorithm,
        /// What the file looks like.
        looks: Option<Looks>,
    },
    /// The SSH signature is damaged or not supported.
    #[error(transparent)]
    Ssh(#[from] sshsig::Unreadable),
    /// The SSH signature is for another namespace.
    #[error("the SSH signature is for the namespace `{found}`, not `{wanted}`")]
    Namespace {
        /// Its namespace.
        found: String,
        /// The expected namespace.
        wanted: String,
    },
    /// Whether it is over an Ethereum personal message depends on the length, which is not known
    /// when the message begins.
    #[error(
        "a message of more than 1 MiB that is not a file cannot be checked as an Ethereum \
             message"
    )]
    LengthUnknown,
    /// The message grew or shrank while it was read.
    #[error("the message changed while it was read")]
    Changed,
}

impl NotValid {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            NotValid::Mismatch => "not-valid",
            NotValid::AnotherKey => "not-valid-another-key",
        }
    }
}

impl CannotJudge {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            CannotJudge::UnknownForm { .. } => "cannot-judge-unknown-form",
            CannotJudge::Ssh(_) => "cannot-judge-ssh-signature",
            CannotJudge::Namespace { .. } => "cannot-judge-namespace",
            CannotJudge::LengthUnknown => "cannot-judge-length-unknown",
            CannotJudge::Changed => "cannot-judge-changed",
        }
    }
}

/// What a file that is not a signature looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looks {
    /// It is empty.
    Empty,
    /// A signature, encoded as base64.
    Base64,
    /// A signature, encoded in hexadecimal.
    Hex,
    /// PEM, but not an SSH signature: perhaps an OpenPGP one.
    Armor,
}

fn guess(looks: Option<Looks>) -> &'static str {
    match looks {
        Some(Looks::Empty) => ": it is empty",
        Some(Looks::Base64) => ": it is base64",
        Some(Looks::Hex) => ": it is hexadecimal",
        Some(Looks::Armor) => ": it is in the armor of another program",
        None => "",
    }
}

/// A signature from a file.
#[derive(Debug, Clone)]
pub enum Presented {
    /// An SSH signature.
    Ssh(SshSignature),
    /// Anything else.
    Bytes(Vec<u8>),
}

impl Presented {
    /// Parses the content of a file.
    ///
    /// # Errors
    /// If it is an SSH signature that cannot be parsed.
    pub fn read(file: &[u8]) -> Result<Self, CannotJudge> {
        match sshsig::is_sshsig(file) {
            true => Ok(Presented::Ssh(SshSignature::parse(file)?)),
            false => Ok(Presented::Bytes(file.to_vec())),
        }
    }

    /// Judges whether it is a signature of `key` over `message` and, if it is an SSH signature, for
    /// `namespace`. `length` is that of the message in bytes, if known.
    ///
    /// # Errors
    /// If the message cannot be read.
    pub fn judge(
        &self,
        key: &PublicKey,
        namespace: &str,
        message: impl Read,
        length: Option<u64>,
    ) -> io::Result<Verdict> {
        match self {
            Presented::Ssh(signature) => ssh(signature, key, namespace, message),
            Presented::Bytes(bytes) => plain(bytes, key, message, length),
        }
    }
}

fn ssh(
    signature: &SshSignature,
    key: &PublicKey,
    namespace: &str,
    message: impl Read,
) -> io::Result<Verdict> {
    if !signature.names(key) {
        return Ok(Verdict::NotValid(NotValid::AnotherKey));
    }
    if let Err(reason) = signature.scheme(key) {
        return Ok(Verdict::CannotJudge(reason.into()));
    }
    if signature.namespace() != namespace {
        return Ok(Verdict::CannotJudge(CannotJudge::Namespace {
            found: signature.namespace().into(),
            wanted: namespace.into(),
        }));
    }
    let digest = match signature.hash() {
        Hash::Sha256 => hashed::<Sha256>(message)?,
        Hash::Sha512 => hashed::<Sha512>(message)?,
    };
    Ok(match signature.verify(key, &digest) {
        Ok(scheme) => Verdict::Valid {
            form: Form::Ssh,
            scheme,
        },
        Err(BadSignature) => Verdict::NotValid(NotValid::Mismatch),
    })
}

fn plain(
    bytes: &[u8],
    key: &PublicKey,
    message: impl Read,
    length: Option<u64>,
) -> io::Result<Verdict> {
    let candidates = candidates(bytes, key);
    if candidates.is_empty() {
        return Ok(Verdict::CannotJudge(CannotJudge::UnknownForm {
            algorithm: key.algorithm(),
            looks: looks(bytes, key),
        }));
    }
    let schemes: Vec<_> = candidates.iter().map(|(_, s)| s.scheme()).collect();
    let message = match Message::read(&schemes, message, length)? {
        Ok(message) => message,
        Err(reason) => return Ok(Verdict::CannotJudge(reason)),
    };
    let valid = candidates
        .iter()
        .find(|(_, signature)| message.is_signed(key, signature));
    Ok(match valid {
        Some((form, signature)) => Verdict::Valid {
            form: *form,
            scheme: signature.scheme(),
        },
        None if message.is_too_long_for_eip191 => Verdict::CannotJudge(CannotJudge::LengthUnknown),
        None => Verdict::NotValid(NotValid::Mismatch),
    })
}

/// The signatures of the key that the bytes may be.
fn candidates(bytes: &[u8], key: &PublicKey) -> Vec<(Form, Signature)> {
    let algorithm = key.algorithm();
    let width = algorithm.rsa_bits().map(|bits| bits / 8);
    SignatureScheme::all_of(algorithm)
        .flat_map(|scheme| {
            [
                (Form::Raw, Signature::new(scheme, bytes.to_vec())),
                (Form::Der, Signature::from_der(scheme, bytes)),
            ]
        })
        .filter_map(|(form, signature)| Some((form, signature.ok()?)))
        .filter(|(_, signature)| width.is_none_or(|width| signature.as_bytes().len() == width))
        .collect()
}

/// What a file that is not a signature of the key looks like.
fn looks(bytes: &[u8], key: &PublicKey) -> Option<Looks> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text: String = text.split_ascii_whitespace().collect();
    let is_signature = |bytes: Vec<u8>| !candidates(&bytes, key).is_empty();
    if text.is_empty() {
        Some(Looks::Empty)
    } else if text.starts_with("-----BEGIN") {
        Some(Looks::Armor)
    } else if from_hex(text.trim_start_matches("0x")).is_some_and(is_signature) {
        Some(Looks::Hex)
    } else if BASE64_STANDARD.decode(&text).is_ok_and(is_signature) {
        Some(Looks::Base64)
    } else {
        None
    }
}

/// The parts of a message that signatures need.
#[derive(Default)]
struct Message {
    sha256: Option<Vec<u8>>,
    sha384: Option<Vec<u8>>,
    sha512: Option<Vec<u8>>,
    eip191: Option<Vec<u8>>,
    /// The whole message, if a scheme does not sign a digest that is computed here.
    whole: Option<Vec<u8>>,
    is_too_long_for_eip191: bool,
}

impl Message {
    fn read(
        schemes: &[SignatureScheme],
        mut message: impl Read,
        length: Option<u64>,
    ) -> io::Result<Result<Self, CannotJudge>> {
        use SignatureScheme as Scheme;
        let any = |wanted: &[Scheme]| schemes.iter().any(|scheme| wanted.contains(scheme));
        if !schemes.iter().copied().all(is_hashed_here) {
            let mut whole = Vec::new();
            message.read_to_end(&mut whole)?;
            return Ok(Ok(Message {
                whole: Some(whole),
                ..Message::default()
            }));
        }
        let mut sha256 = any(&[
            Scheme::EcdsaP256Sha256,
            Scheme::EcdsaSecp256k1Sha256,
            Scheme::RsaPkcs1Sha256,
        ])
        .then(Sha256::new);
        let mut sha384 = any(&[Scheme::EcdsaP384Sha384]).then(Sha384::new);
        let mut sha512 = any(&[Scheme::RsaPkcs1Sha512]).then(Sha512::new);
        let mut eip191 = any(&[Scheme::Eip191Secp256k1]).then(|| Eip191::new(length));
        let mut total = 0_u64;
        each_part(&mut message, |part| {
            total += part.len() as u64;
            feed(&mut sha256, part);
            feed(&mut sha384, part);
            feed(&mut sha512, part);
            if let Some(hash) = &mut eip191 {
                hash.update(part);
            }
        })?;
        if length.is_some_and(|length| length != total) {
            return Ok(Err(CannotJudge::Changed));
        }
        Ok(Ok(Message {
            sha256: finished(sha256),
            sha384: finished(sha384),
            sha512: finished(sha512),
            is_too_long_for_eip191: matches!(eip191, Some(Eip191::TooLong)),
            eip191: eip191.and_then(Eip191::finish),
            whole: None,
        }))
    }

    fn is_signed(&self, key: &PublicKey, signature: &Signature) -> bool {
        if let Some(whole) = &self.whole {
            return key.verify(whole, signature).is_ok();
        }
        let digest = match signature.scheme() {
            SignatureScheme::EcdsaP256Sha256
            | SignatureScheme::EcdsaSecp256k1Sha256
            | SignatureScheme::RsaPkcs1Sha256 => &self.sha256,
            SignatureScheme::EcdsaP384Sha384 => &self.sha384,
            SignatureScheme::RsaPkcs1Sha512 => &self.sha512,
            SignatureScheme::Eip191Secp256k1 => &self.eip191,
            // Not hashed here: then there is the whole message, and this is not reached.
            _ => &None,
        };
        let digest = digest.as_ref();
        digest.is_some_and(|digest| key.verify_digest(digest, signature).is_ok())
    }
}

/// Whether the digest of the scheme is computed here while the message is read. For all other
/// schemes, future ones included, the message is taken as a whole.
fn is_hashed_here(scheme: SignatureScheme) -> bool {
    matches!(
        scheme,
        SignatureScheme::EcdsaP256Sha256
            | SignatureScheme::EcdsaP384Sha384
            | SignatureScheme::EcdsaSecp256k1Sha256
            | SignatureScheme::Eip191Secp256k1
            | SignatureScheme::RsaPkcs1Sha256
            | SignatureScheme::RsaPkcs1Sha512
    )
}

fn feed<D: Digest>(hash: &mut Option<D>, part: &[u8]) {
    if let Some(hash) = hash {
        hash.update(part);
    }
}

fn finished<D: Digest>(hash: Option<D>) -> Option<Vec<u8>> {
    hash.map(|hash| hash.finalize().to_vec())
}

/// The digest of an Ethereum personal message, which begins with the length.
enum Eip191 {
    Begun(Box<Keccak256>),
    /// The length is known only at the end: the message so far.
    Kept(Vec<u8>),
    TooLong,
}

impl Eip191 {
    fn new(length: Option<u64>) -> Self {
        match length {
            Some(length) => {
                let begun = Keccak256::new().chain_update(eip191_prefix(length));
                Eip191::Begun(Box::new(begun))
            }
            None => Eip191::Kept(Vec::new()),
        }
    }

    fn update(&mut self, part: &[u8]) {
        match self {
            Eip191::Begun(hash) => hash.update(part),
            Eip191::Kept(kept) if kept.len() + part.len() <= LONGEST_EIP191 => {
                kept.extend_from_slice(part);
            }
            Eip191::Kept(_) | Eip191::TooLong => *self = Eip191::TooLong,
        }
    }

    fn finish(self) -> Option<Vec<u8>> {
        match self {
            Eip191::Begun(hash) => Some(hash.finalize().to_vec()),
            Eip191::Kept(kept) => Some(eip191_digest(&kept).to_vec()),
            Eip191::TooLong => None,
        }
    }
}

/// The digest of a whole message that `scheme` signs, computed in a fixed buffer. `None` if the
/// scheme signs no digest, or one that depends on the length (EIP-191).
///
/// # Errors
/// Where it cannot be read.
pub fn digest_of(scheme: SignatureScheme, message: impl Read) -> io::Result<Option<Vec<u8>>> {
    Ok(Some(match scheme {
        SignatureScheme::EcdsaP256Sha256
        | SignatureScheme::EcdsaSecp256k1Sha256
        | SignatureScheme::RsaPkcs1Sha256 => hashed::<Sha256>(message)?,
        SignatureScheme::EcdsaP384Sha384 => hashed::<Sha384>(message)?,
        SignatureScheme::RsaPkcs1Sha512 => hashed::<Sha512>(message)?,
        // No digest, or none that can be begun here: the message itself signs in every scheme.
        _ => return Ok(None),
    }))
}

/// The digest of a whole message, computed in a fixed buffer.
///
/// # Errors
/// Where it cannot be read.
pub fn hashed<D: Digest>(mut message: impl Read) -> io::Result<Vec<u8>> {
    let mut hash = D::new();
    each_part(&mut message, |part| hash.update(part))?;
    Ok(hash.finalize().to_vec())
}

fn each_part(message: &mut impl Read, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match message.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => take(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p256() -> (p256::ecdsa::SigningKey, PublicKey) {
        let secret = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let public = secret.verifying_key().to_encoded_point(false);
        let key = PublicKey::from_bytes(Algorithm::P256, public.as_bytes()).unwrap();
        (secret, key)
    }

    fn judge(key: &PublicKey, signature: &[u8], message: &[u8], is_known: bool) -> Verdict {
        let length = is_known.then_some(message.len() as u64);
        let presented = Presented::read(signature).unwrap();
        presented.judge(key, "file", message, length).unwrap()
    }

    #[test]
    fn a_signature_in_another_encoding_is_no_forgery() {
        let (secret, key) = p256();
        let signature: p256::ecdsa::Signature = signature::Signer::sign(&secret, b"hello");
        let der = signature.to_der().as_bytes().to_vec();
        let raw = signature.to_bytes().to_vec();
        for (form, bytes) in [(Form::Raw, &raw), (Form::Der, &der)] {
            let scheme = SignatureScheme::EcdsaP256Sha256;
            let valid = Verdict::Valid { form, scheme };
            assert_eq!(judge(&key, bytes, b"hello", true), valid);
            let mismatch = Verdict::NotValid(NotValid::Mismatch);
            assert_eq!(judge(&key, bytes, b"hell", true), mismatch);
            let unknown = |looks| {
                Verdict::CannotJudge(CannotJudge::UnknownForm {
                    algorithm: Algorithm::P256,
                    looks,
                })
            };
            let base64 = BASE64_STANDARD.encode(bytes);
            let (one, other) = base64.split_at(40);
            let base64 = format!("{one}\n{other}\n");
            let hex = claviger_token::key::to_hex(bytes).to_uppercase();
            for (text, looks) in [(base64, Some(Looks::Base64)), (hex, Some(Looks::Hex))] {
                assert_eq!(judge(&key, text.as_bytes(), b"hello", true), unknown(looks));
            }
            assert_eq!(judge(&key, b"\n", b"", true), unknown(Some(Looks::Empty)));
            assert_eq!(judge(&key, &bytes[1..], b"", true), unknown(None));
        }
    }

    #[test]
    fn a_message_of_unknown_length_is_checked_as_an_ethereum_message_up_to_a_bound() {
        use signature::hazmat::PrehashSigner;
        let secret = k256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let public = secret.verifying_key().to_encoded_point(false);
        let key = PublicKey::from_bytes(Algorithm::Secp256k1, public.as_bytes()).unwrap();
        let (short, long) = (vec![7; 5], vec![7; LONGEST_EIP191 + 1]);
        for (message, is_known) in [(&short, false), (&short, true), (&long, true)] {
            let signature: k256::ecdsa::Signature =
                secret.sign_prehash(&eip191_digest(message)).unwrap();
            let valid = Verdict::Valid {
                form: Form::Raw,
                scheme: SignatureScheme::Eip191Secp256k1,
            };
            assert_eq!(judge(&key, &signature.to_bytes(), message, is_known), valid);
        }
        let unknown = Verdict::CannotJudge(CannotJudge::LengthUnknown);
        assert_eq!(judge(&key, &[1; 64], &long, false), unknown);
    }

    #[test]
    fn every_scheme_that_signs_a_digest_is_hashed_while_the_message_is_read() {
        for algorithm in Algorithm::ALL {
            for scheme in SignatureScheme::all_of(algorithm) {
                let is_digest = scheme.digest_length().is_some();
                assert_eq!(is_hashed_here(scheme), is_digest, "{scheme}");
                let begins_with_length = scheme == SignatureScheme::Eip191Secp256k1;
                let digest = scheme.digest(b"hello").filter(|_| !begins_with_length);
                assert_eq!(
                    digest_of(scheme, &b"hello"[..]).unwrap(),
                    digest,
                    "{scheme}"
                );
            }
        }
    }

    #[test]
    fn a_message_that_changes_while_it_is_read_is_not_judged() {
        let (_, key) = p256();
        let presented = Presented::read(&[1; 64]).unwrap();
        let verdict = presented.judge(&key, "file", &b"hello"[..], Some(4));
        assert_eq!(verdict.unwrap(), Verdict::CannotJudge(CannotJudge::Changed));
    }
}
