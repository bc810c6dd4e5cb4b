//! Ciphertexts: age files (C2SP `age`), opened with a device's private key.
//!
//! Encryption is the `age` crate's own, to the recipient that belongs to a public key:
//!
//! | key | recipient | stanza | what the device does |
//! | --- | --- | --- | --- |
//! | P-256 | `age1tag1…` | `p256tag` | ECDH; the rest of HPKE (RFC 9180) happens on the host |
//! | X25519 | `age1…` | `X25519` | X25519 |
//! | RSA | `ssh-rsa …` | `ssh-rsa` | RSAES-OAEP with SHA-256 |
//!
//! So anything in the age world can encrypt to an identity, and what is encrypted here
//! opens with other people's tools.
//!
//! Everything about a ciphertext that keeps it from opening gives the one error
//! [`Error::DecryptionFailed`]. A stanza that the device processes and that does not
//! open goes on with a random file key, so that it fails where a wrong header fails.

use std::cell::RefCell;
use std::io::{self, BufRead, Read, Write};

use age::armor::ArmoredReader;
use age::{DecryptError, stream};
use age_core::format::{FILE_KEY_BYTES, FileKey, Stanza};
use age_core::primitives::{aead_decrypt, bech32_decode, bech32_encode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use chacha20poly1305::aead::{Aead, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use hkdf::Hkdf;
use hpke::kdf::{HkdfSha256, LabeledExpand, extract_and_expand, labeled_extract};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use rand_core::{OsRng, RngCore};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::key::BadPublicKey;
use crate::token::Secret;
use crate::{Algorithm, Call, Decryptor, Error, PublicKey, Unwrap};

/// The most private-key operations that opening one file may take.
///
/// Stanzas of type `X25519` do not say for whom they are, so each is tried.
pub const MOST_ATTEMPTS: usize = 1000;

/// The longest header that is read, in bytes: room for ten thousand stanzas of the
/// longest kind, and an end to what somebody makes up.
pub const LONGEST_HEADER: usize = 16 << 20;

/// A line of armor has 64 characters; others are more generous, within reason.
const LONGEST_ARMOR_LINE: usize = 1024;

const P256TAG: &str = "p256tag";
const P256TAG_INFO: &[u8] = b"age-encryption.org/p256tag";
const X25519: &str = "X25519";
const X25519_LABEL: &[u8] = b"age-encryption.org/v1/X25519";
const SSH_RSA: &str = "ssh-rsa";
const SSH_RSA_LABEL: &[u8] = b"age-encryption.org/v1/ssh-rsa";

/// The key cannot be encrypted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("one cannot encrypt to a key of {0}")]
pub struct NoRecipient(pub Algorithm);

/// The age recipient of a key, as text that other age programs read; `None` where one
/// cannot encrypt to such a key.
pub fn recipient_text(key: &PublicKey) -> Option<String> {
    let hrp = bech32::Hrp::parse_unchecked;
    match key.algorithm() {
        Algorithm::P256 => Some(bech32_encode(hrp("age1tag"), &compressed(key)?)),
        Algorithm::X25519 => Some(bech32_encode(hrp("age"), key.as_bytes())),
        Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => key.to_ssh_line(""),
        _ => None,
    }
}

/// The key of an age recipient: what [`recipient_text`] gave, or another program.
///
/// # Errors
/// [`BadPublicKey`] where it is none, or of a kind that Claviger does not know (those of
/// age plugins, post-quantum ones).
pub fn parse_recipient(text: &str) -> Result<PublicKey, BadPublicKey> {
    let text = text.trim();
    if text.starts_with("ssh-") {
        return PublicKey::from_ssh_line(text);
    }
    bech32_decode(
        text,
        |_| BadPublicKey,
        |_| Ok(()),
        |hrp, bytes| {
            let algorithm = match hrp.as_str() {
                "age" => Algorithm::X25519,
                "age1tag" => Algorithm::P256,
                _ => return Err(BadPublicKey),
            };
            PublicKey::from_bytes(algorithm, &bytes.collect::<Vec<u8>>())
        },
    )
}

/// The age recipient of a key.
///
/// # Errors
/// [`NoRecipient`] where one cannot encrypt to such a key.
pub fn recipient(key: &PublicKey) -> Result<Box<dyn age::Recipient + Send>, NoRecipient> {
    let unfit = NoRecipient(key.algorithm());
    let text = recipient_text(key).ok_or(unfit)?;
    match key.algorithm() {
        Algorithm::P256 => text
            .parse::<age::tag::Recipient>()
            .map(|r| Box::new(r) as _)
            .map_err(|_| unfit),
        Algorithm::X25519 => text
            .parse::<age::x25519::Recipient>()
            .map(|r| Box::new(r) as _)
            .map_err(|_| unfit),
        _ => text
            .trim()
            .parse::<age::ssh::Recipient>()
            .map(|r| Box::new(r) as _)
            .map_err(|_| unfit),
    }
}

/// Encrypts a stream to `recipients`: what is written to the result goes, encrypted, to
/// `output`. The file is complete only after [`StreamWriter::finish`](stream::StreamWriter::finish).
///
/// # Errors
/// [`EncryptError`].
pub fn encrypt_stream<W: Write>(
    recipients: &[&PublicKey],
    output: W,
) -> Result<stream::StreamWriter<W>, EncryptError> {
    let recipients = recipients
        .iter()
        .map(|key| recipient(key))
        .collect::<Result<Vec<_>, _>>()?;
    age::Encryptor::with_recipients(recipients.iter().map(|r| r.as_ref() as &dyn age::Recipient))
        .map_err(|e| EncryptError::Recipients(e.to_string()))?
        .wrap_output(output)
        .map_err(EncryptError::Output)
}

/// Encrypts `plaintext` to `recipients`.
///
/// # Errors
/// [`EncryptError`].
pub fn encrypt(recipients: &[&PublicKey], plaintext: &[u8]) -> Result<Vec<u8>, EncryptError> {
    let mut file = Vec::with_capacity(plaintext.len() + 512);
    let mut writer = encrypt_stream(recipients, &mut file)?;
    writer.write_all(plaintext).map_err(EncryptError::Output)?;
    writer.finish().map_err(EncryptError::Output)?;
    Ok(file)
}

/// Why something could not be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum EncryptError {
    /// A key is of a kind that cannot be encrypted to.
    #[error(transparent)]
    NoRecipient(#[from] NoRecipient),
    /// The recipients do not go together, or there are none.
    #[error("the recipients do not go together: {0}")]
    Recipients(String),
    /// The output could not be written.
    #[error("the output cannot be written: {0}")]
    Output(#[source] io::Error),
}

/// Opens an age file, binary or armored.
///
/// # Errors
/// [`Error::DecryptionFailed`] for all that depends on the ciphertext; otherwise what
/// the decryptor says.
pub fn decrypt(decryptor: &dyn Decryptor, file: &[u8], call: &Call) -> Result<Secret, Error> {
    let mut plaintext = Zeroizing::new(Vec::with_capacity(file.len()));
    let mut reader = decrypt_stream(decryptor, file, call)?;
    // `read_to_end` would leave copies of the plaintext behind as it grows; there is
    // room for all of it.
    reader
        .read_to_end(&mut plaintext)
        .map_err(|e| read_error(&e))?;
    Ok(plaintext)
}

/// Opens the header of an age file, binary or armored; the payload is decrypted as it
/// is read. What has been read is authentic, but the file may still turn out to be cut
/// short: only an end without an error is the end. [`read_error`] tells the errors apart.
///
/// # Errors
/// As [`decrypt`]; [`Error::System`] where `input` cannot be read.
pub fn decrypt_stream<R: Read>(
    decryptor: &dyn Decryptor,
    input: R,
    call: &Call,
) -> Result<stream::StreamReader<Body<R>>, Error> {
    let file = Sealed::read(input)?;
    if file.fits(decryptor.public_key()) == Fit::No {
        return Err(Error::DecryptionFailed);
    }
    let file_key = file.unwrap(decryptor, call)?;
    // A file key that nobody has: the header's MAC fails.
    file.open(
        file_key.unwrap_or_else(|| FileKey::init_with_mut(|bytes| OsRng.fill_bytes(bytes)).into()),
    )
}

/// An age file, binary or armored, whose header has been read and whose payload has not:
/// to find out for whom it is before anything is opened.
pub struct Sealed<R: Read> {
    stanzas: Vec<Stanza>,
    body: Body<R>,
}

/// Whether a key opens a file, as far as can be told without its private half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It does not.
    No,
    /// It may: the stanzas do not say for whom they are (`X25519`).
    Maybe,
    /// A stanza says that it is for this key (`p256tag`, `ssh-rsa`).
    Yes,
}

/// What the payload of a file is encrypted under. Wiped when dropped.
pub struct UnwrappedKey(FileKey);

impl From<FileKey> for UnwrappedKey {
    fn from(key: FileKey) -> Self {
        UnwrappedKey(key)
    }
}

impl<R: Read> Sealed<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error::DecryptionFailed`] where it is none; [`Error::System`] where `input`
    /// cannot be read.
    pub fn read(input: R) -> Result<Self, Error> {
        let mut rest = ArmoredReader::new(ArmorLines::new(input));
        let header = read_header(&mut rest).map_err(|e| read_error(&e))?;
        let seen = Seen::default();
        // The `age` crate shows stanzas to identities only.
        let opened = age::Decryptor::new_buffered(Header::new(&header))
            .and_then(|file| file.decrypt(std::iter::once(&seen as &dyn age::Identity)));
        match opened {
            Err(DecryptError::NoMatchingKeys) => Ok(Sealed {
                stanzas: seen.0.into_inner(),
                body: Body {
                    header: io::Cursor::new(header),
                    rest,
                },
            }),
            _ => Err(Error::DecryptionFailed),
        }
    }

    /// Whether `key` opens it, as far as can be told without the private half.
    pub fn fits(&self, key: &PublicKey) -> Fit {
        if self.for_key(key).next().is_none() {
            Fit::No
        } else if key.algorithm() == Algorithm::X25519 {
            Fit::Maybe
        } else {
            Fit::Yes
        }
    }

    /// Lets the device unwrap what may be for its key, stanza by stanza and not more than
    /// [`MOST_ATTEMPTS`]. `None`: nothing is, or nothing opened.
    ///
    /// # Errors
    /// What the decryptor says that does not depend on the ciphertext.
    pub fn unwrap(
        &self,
        decryptor: &dyn Decryptor,
        call: &Call,
    ) -> Result<Option<UnwrappedKey>, Error> {
        let key = decryptor.public_key();
        for wrapped in self.for_key(key).take(MOST_ATTEMPTS) {
            call.check()?;
            match decryptor.unwrap(wrapped.request(), call) {
                Ok(secret) => {
                    if let Some(file_key) = wrapped.open(key, secret) {
                        return Ok(Some(UnwrappedKey(file_key)));
                    }
                }
                Err(Error::DecryptionFailed) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(None)
    }

    /// The payload, decrypted as it is read; see [`decrypt_stream`].
    ///
    /// # Errors
    /// [`Error::DecryptionFailed`] where the header is not the one that the key belongs to.
    pub fn open(self, key: UnwrappedKey) -> Result<stream::StreamReader<Body<R>>, Error> {
        let known = Known(RefCell::new(Some(key.0)));
        age::Decryptor::new_buffered(self.body)
            .and_then(|file| file.decrypt(std::iter::once(&known as &dyn age::Identity)))
            .map_err(|error| match error {
                DecryptError::Io(e) => read_error(&e),
                _ => Error::DecryptionFailed,
            })
    }

    fn for_key<'a>(&'a self, key: &'a PublicKey) -> impl Iterator<Item = Wrapped> + 'a {
        let stanzas = self.stanzas.iter();
        stanzas.filter_map(move |stanza| Wrapped::for_key(key, stanza))
    }
}

/// The header and the nonce behind it. The last line of a header is the first that begins
/// with `---`.
fn read_header(input: &mut impl BufRead) -> io::Result<Vec<u8>> {
    const NONCE: u64 = 16;
    let mut header = Vec::new();
    loop {
        let line = header.len();
        let room = (LONGEST_HEADER - line) as u64;
        input.by_ref().take(room).read_until(b'\n', &mut header)?;
        if !header[line..].ends_with(b"\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if header[line..].starts_with(b"---") {
            break;
        }
    }
    input.by_ref().take(NONCE).read_to_end(&mut header)?;
    Ok(header)
}

/// A header in memory, which goes to its parser in one piece: the parser asks for line
/// after line and begins anew after each.
struct Header<'a>(io::Cursor<&'a [u8]>);

impl<'a> Header<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Header(io::Cursor::new(bytes))
    }
}

impl Read for Header<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl BufRead for Header<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }

    fn read_until(&mut self, _: u8, bytes: &mut Vec<u8>) -> io::Result<usize> {
        whole_header(&mut self.0, bytes)
    }
}

/// Hands out all but the nonce at once.
fn whole_header<T: AsRef<[u8]>>(
    header: &mut io::Cursor<T>,
    bytes: &mut Vec<u8>,
) -> io::Result<usize> {
    let all = header.get_ref().as_ref();
    // The MAC's line is the last but for the nonce, which may hold line breaks, too.
    let mut end = 0;
    for line in all.split_inclusive(|byte| *byte == b'\n') {
        end += line.len();
        if line.starts_with(b"---") {
            break;
        }
    }
    let begin = usize::try_from(header.position()).unwrap_or(end).min(end);
    bytes.extend_from_slice(&all[begin..end]);
    header.set_position(end as u64);
    Ok(end - begin)
}

/// The file as it came: the header that was read already, and what follows.
pub struct Body<R: Read> {
    header: io::Cursor<Vec<u8>>,
    rest: ArmoredReader<io::BufReader<ArmorLines<R>>>,
}

impl<R: Read> Body<R> {
    fn is_in_header(&self) -> bool {
        self.header.position() < self.header.get_ref().len() as u64
    }
}

impl<R: Read> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_in_header() {
            return self.header.read(buffer);
        }
        self.rest.read(buffer)
    }
}

impl<R: Read> BufRead for Body<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.is_in_header() {
            return self.header.fill_buf();
        }
        self.rest.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if self.is_in_header() {
            self.header.consume(count);
        } else {
            self.rest.consume(count);
        }
    }

    fn read_until(&mut self, _: u8, bytes: &mut Vec<u8>) -> io::Result<usize> {
        whole_header(&mut self.header, bytes)
    }
}

/// What `ArmoredReader` reads from: it takes an armored line into memory, however long it
/// is, and no line of a real file is longer than [`LONGEST_ARMOR_LINE`].
struct ArmorLines<R> {
    input: R,
    /// How many bytes look like the beginning of an armored file; none once one does not.
    begins: Option<usize>,
    /// Of the line that is being read.
    length: usize,
}

impl<R> ArmorLines<R> {
    const BEGIN: &[u8] = b"-----BEGIN AGE ENCRYPTED FILE-----";

    fn new(input: R) -> Self {
        ArmorLines {
            input,
            begins: Some(0),
            length: 0,
        }
    }
}

impl<R: Read> Read for ArmorLines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        for byte in &buffer[..count] {
            let Some(begins) = &mut self.begins else {
                break;
            };
            match Self::BEGIN.get(*begins) {
                Some(wanted) if wanted == byte => *begins += 1,
                // Binary files have lines of any length.
                Some(_) => self.begins = None,
                None => {}
            }
            self.length = if *byte == b'\n' { 0 } else { self.length + 1 };
            if self.length > LONGEST_ARMOR_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(count)
    }
}

/// What an error while reading a payload means.
pub fn read_error(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
            Error::DecryptionFailed
        }
        _ => Error::System {
            what: "the ciphertext cannot be read".into(),
            reason: error.to_string(),
        },
    }
}

/// Keeps the stanzas that it is shown, and opens none.
#[derive(Default)]
struct Seen(RefCell<Vec<Stanza>>);

impl age::Identity for Seen {
    fn unwrap_stanza(&self, _: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        None
    }

    fn unwrap_stanzas(&self, stanzas: &[Stanza]) -> Option<Result<FileKey, DecryptError>> {
        let copies = stanzas.iter().map(|stanza| Stanza {
            tag: stanza.tag.clone(),
            args: stanza.args.clone(),
            body: stanza.body.clone(),
        });
        self.0.borrow_mut().extend(copies);
        None
    }
}

/// A file key that has been unwrapped, for once.
struct Known(RefCell<Option<FileKey>>);

impl age::Identity for Known {
    fn unwrap_stanza(&self, _: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        self.0.take().map(Ok)
    }

    fn unwrap_stanzas(&self, _: &[Stanza]) -> Option<Result<FileKey, DecryptError>> {
        self.0.take().map(Ok)
    }
}

/// A file key wrapped for a key of ours, parsed out of a stanza.
enum Wrapped {
    /// HPKE base mode, DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305.
    P256Tag {
        enc: [u8; 65],
        body: Vec<u8>,
    },
    X25519 {
        share: [u8; 32],
        body: Vec<u8>,
    },
    SshRsa {
        body: Vec<u8>,
    },
}

impl Wrapped {
    /// The stanza, if it is well-formed and may be for `key`.
    fn for_key(key: &PublicKey, stanza: &Stanza) -> Option<Wrapped> {
        const BODY: usize = FILE_KEY_BYTES + 16;
        let body = || stanza.body.clone();
        match (key.algorithm(), stanza.tag.as_str(), stanza.args.as_slice()) {
            (Algorithm::P256, P256TAG, [tag, enc]) if stanza.body.len() == BODY => {
                let tag: [u8; 4] = decoded(tag)?;
                let enc: [u8; 65] = decoded(enc)?;
                // Also checks that the share is on the curve.
                PublicKey::from_bytes(Algorithm::P256, &enc).ok()?;
                (tag == p256_tag(key, &enc)?).then(|| Wrapped::P256Tag { enc, body: body() })
            }
            (Algorithm::X25519, X25519, [share]) if stanza.body.len() == BODY => {
                Some(Wrapped::X25519 {
                    share: decoded(share)?,
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

    /// What the device has to do.
    fn request(&self) -> Unwrap<'_> {
        match self {
            Wrapped::P256Tag { enc, .. } => Unwrap::Agree { peer: enc },
            Wrapped::X25519 { share, .. } => Unwrap::Agree { peer: share },
            Wrapped::SshRsa { body } => Unwrap::Oaep {
                ciphertext: body,
                label: SSH_RSA_LABEL,
            },
        }
    }

    /// The file key, from what the device answered.
    fn open(&self, key: &PublicKey, answer: Secret) -> Option<FileKey> {
        let file_key = match self {
            Wrapped::P256Tag { enc, body } => open_p256tag(key, enc, &answer, body)?,
            Wrapped::X25519 { share, body } => {
                let mut salt = [0; 64];
                salt[..32].copy_from_slice(share);
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
fn open_p256tag(key: &PublicKey, enc: &[u8; 65], dh: &[u8], body: &[u8]) -> Option<Secret> {
    // kem_id 0x0010; kdf_id 0x0001, aead_id 0x0003.
    const KEM_SUITE: &[u8] = b"KEM\x00\x10";
    const SUITE: &[u8] = b"HPKE\x00\x10\x00\x01\x00\x03";

    let mut shared_secret = Zeroizing::new([0u8; 32]);
    let kem_context = [enc.as_slice(), key.as_bytes()].concat();
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

/// The tag by which a `p256tag` stanza says for whom it is (C2SP age, p256tag).
fn p256_tag(key: &PublicKey, enc: &[u8; 65]) -> Option<[u8; 4]> {
    let ikm = [enc.as_slice(), &Sha256::digest(compressed(key)?)[..4]].concat();
    let (tag, _) = Hkdf::<Sha256>::extract(Some(P256TAG_INFO), &ikm);
    tag[..4].try_into().ok()
}

/// The tag of an `ssh-rsa` stanza (C2SP age, ssh-rsa).
fn ssh_tag(key: &PublicKey) -> Option<[u8; 4]> {
    let wire = ssh_key::PublicKey::from(key.to_ssh()?).to_bytes().ok()?;
    Sha256::digest(wire)[..4].try_into().ok()
}

fn compressed(key: &PublicKey) -> Option<Vec<u8>> {
    let key = p256::PublicKey::from_sec1_bytes(key.as_bytes()).ok()?;
    Some(key.to_encoded_point(true).as_bytes().to_vec())
}

/// Canonical base64 of exactly `N` bytes.
fn decoded<const N: usize>(text: &str) -> Option<[u8; N]> {
    BASE64_STANDARD_NO_PAD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use p256::elliptic_curve::sec1::FromEncodedPoint;

    /// A device made of a P-256 key, to compare with the age crate's own encryption.
    struct Soft {
        secret: p256::SecretKey,
        public: PublicKey,
    }

    impl Soft {
        fn new(seed: u8) -> Self {
            let secret = p256::SecretKey::from_slice(&[seed; 32]).unwrap();
            let public =
                PublicKey::from_bytes(Algorithm::P256, &secret.public_key().to_sec1_bytes())
                    .unwrap();
            Soft { secret, public }
        }
    }

    impl Decryptor for Soft {
        fn public_key(&self) -> &PublicKey {
            &self.public
        }

        fn unwrap(&self, request: Unwrap<'_>, _: &Call) -> Result<Secret, Error> {
            let Unwrap::Agree { peer } = request else {
                return Err(Error::DecryptionFailed);
            };
            let point = p256::EncodedPoint::from_bytes(peer).unwrap();
            let peer = p256::PublicKey::from_encoded_point(&point).unwrap();
            let shared =
                p256::ecdh::diffie_hellman(self.secret.to_nonzero_scalar(), peer.as_affine());
            Ok(Zeroizing::new(shared.raw_secret_bytes().to_vec()))
        }
    }

    fn failed(device: &Soft, file: &[u8]) -> bool {
        matches!(
            decrypt(device, file, &Call::unlimited()),
            Err(Error::DecryptionFailed)
        )
    }

    #[test]
    fn what_the_age_crate_encrypts_to_a_tagged_recipient_opens() {
        let device = Soft::new(3);
        for length in [0, 1, 64 * 1024, 200_000] {
            let plaintext = vec![7; length];
            let file = encrypt(&[&device.public], &plaintext).unwrap();
            assert_eq!(
                *decrypt(&device, &file, &Call::unlimited()).unwrap(),
                plaintext
            );
        }
    }

    /// A device made of an RSA key.
    struct SoftRsa {
        secret: rsa::RsaPrivateKey,
        public: PublicKey,
    }

    impl Decryptor for SoftRsa {
        fn public_key(&self) -> &PublicKey {
            &self.public
        }

        fn unwrap(&self, request: Unwrap<'_>, _: &Call) -> Result<Secret, Error> {
            let Unwrap::Oaep { ciphertext, label } = request else {
                return Err(Error::DecryptionFailed);
            };
            let padding =
                rsa::Oaep::new_with_label::<Sha256, _>(std::str::from_utf8(label).unwrap());
            let opened = self.secret.decrypt(padding, ciphertext);
            opened
                .map(Zeroizing::new)
                .map_err(|_| Error::DecryptionFailed)
        }
    }

    #[test]
    fn what_the_age_crate_encrypts_to_an_ssh_rsa_key_opens() {
        use rsa::traits::PublicKeyParts;
        let secret = rsa::RsaPrivateKey::new(&mut OsRng, 2048).unwrap();
        let public =
            PublicKey::from_rsa(&secret.n().to_bytes_be(), &secret.e().to_bytes_be()).unwrap();
        let device = SoftRsa { secret, public };
        let file = encrypt(&[&device.public, &Soft::new(3).public], b"hello").unwrap();
        let opened = decrypt(&device, &file, &Call::unlimited()).unwrap();
        assert_eq!(*opened, b"hello");
        assert_eq!(
            *decrypt(&Soft::new(3), &file, &Call::unlimited()).unwrap(),
            b"hello"
        );
        let other = encrypt(&[&Soft::new(3).public], b"hello").unwrap();
        let failed = decrypt(&device, &other, &Call::unlimited());
        assert!(matches!(failed, Err(Error::DecryptionFailed)));
    }

    #[test]
    fn every_alteration_and_every_truncation_fails_alike() {
        let device = Soft::new(3);
        let file = encrypt(&[&device.public], b"attack at dawn").unwrap();
        for end in 0..file.len() {
            assert!(failed(&device, &file[..end]), "cut at {end}");
        }
        for i in 0..file.len() {
            let mut altered = file.clone();
            altered[i] ^= 1;
            assert!(failed(&device, &altered), "altered at {i}");
        }
        assert!(failed(&Soft::new(4), &file));
        assert!(failed(&device, &[file.as_slice(), b"more"].concat()));
    }

    #[test]
    fn an_armored_file_opens() {
        let device = Soft::new(3);
        let key = recipient(&device.public).unwrap();
        let file = age::Encryptor::with_recipients(std::iter::once(key.as_ref() as _)).unwrap();
        let mut armored =
            age::armor::ArmoredWriter::wrap_output(Vec::new(), age::armor::Format::AsciiArmor)
                .unwrap();
        let mut writer = file.wrap_output(&mut armored).unwrap();
        writer.write_all(b"hello").unwrap();
        writer.finish().unwrap();
        let armored = armored.finish().unwrap();
        assert_eq!(
            *decrypt(&device, &armored, &Call::unlimited()).unwrap(),
            b"hello"
        );
    }

    #[test]
    fn an_endless_armored_line_is_not_read_to_its_end() {
        let mut endless = io::repeat(b'A').take(1 << 30);
        let begin = &b"-----BEGIN AGE ENCRYPTED FILE-----\n"[..];
        let refused = Sealed::read(begin.chain(&mut endless)).err();
        assert!(matches!(refused, Some(Error::DecryptionFailed)));
        assert!(endless.limit() > (1 << 30) - (1 << 20));
    }

    #[test]
    fn a_recipient_reads_back_and_what_is_none_does_not() {
        let x25519 = PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap();
        for key in [Soft::new(3).public, x25519] {
            let text = recipient_text(&key).unwrap();
            assert_eq!(parse_recipient(&text), Ok(key));
            assert!(parse_recipient(&text[..text.len() - 1]).is_err());
        }
        for text in [
            "",
            "age1",
            "age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t",
        ] {
            assert_eq!(parse_recipient(text), Err(BadPublicKey), "{text}");
        }
    }

    #[test]
    fn a_file_says_for_whom_it_is_where_its_stanzas_do() {
        let x25519 = PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap();
        let fits = |keys: &[&PublicKey]| {
            let file = encrypt(keys, b"hello").unwrap();
            let file = Sealed::read(file.as_slice()).unwrap();
            [&Soft::new(3).public, &Soft::new(4).public, &x25519].map(|key| file.fits(key))
        };
        let (p256, other) = (Soft::new(3).public, Soft::new(4).public);
        assert_eq!(fits(&[&p256]), [Fit::Yes, Fit::No, Fit::No]);
        assert_eq!(fits(&[&other]), [Fit::No, Fit::Yes, Fit::No]);
        assert_eq!(fits(&[&p256, &x25519]), [Fit::Yes, Fit::No, Fit::Maybe]);
    }

    #[test]
    fn ten_thousand_stanzas_are_no_burden_and_none_is_no_file() {
        let stanza = |share: &str| format!("-> X25519 {share}\n{}\n", "A".repeat(43));
        let share = BASE64_STANDARD_NO_PAD.encode([9u8; 32]);
        let mac = format!("--- {}\n", "A".repeat(43));
        let of = |count: usize| {
            let header = stanza(&share).repeat(count);
            format!("age-encryption.org/v1\n{header}{mac}0123456789abcdef0123456789abcdef")
        };
        let key = PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap();
        let begun = std::time::Instant::now();
        let file = of(10_000);
        let file = Sealed::read(file.as_bytes()).unwrap();
        assert_eq!(file.stanzas.len(), 10_000);
        assert_eq!(file.fits(&key), Fit::Maybe);
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
        assert!(Sealed::read(of(1).as_bytes()).is_ok());
        let none = of(0);
        assert!(failed(&Soft::new(3), none.as_bytes()));
        // A header without an end is not read for ever.
        let endless = io::Read::chain("age-encryption.org/v1\n-> ".as_bytes(), io::repeat(b'a'));
        assert!(matches!(
            Sealed::read(endless),
            Err(Error::DecryptionFailed)
        ));
    }

    #[test]
    fn keys_that_only_sign_have_no_recipient() {
        let key = k256::SecretKey::from_slice(&[1; 32]).unwrap().public_key();
        let key = PublicKey::from_bytes(Algorithm::Secp256k1, &key.to_sec1_bytes()).unwrap();
        assert!(recipient(&key).is_err());
        assert!(matches!(
            encrypt(&[&key], b""),
            Err(EncryptError::NoRecipient(_))
        ));
    }
}
