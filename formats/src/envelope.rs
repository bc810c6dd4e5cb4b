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
//! So any age program can encrypt to an identity, and other tools can open files that are
//! encrypted here.
//!
//! Every fault of a ciphertext gives the same error, [`Error::DecryptionFailed`]. If a stanza that
//! the device has processed does not open, decryption continues with a random file key, so that it
//! fails where a wrong header fails.

mod header;
mod recipient;
mod stanza;

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::sync::Arc;

use age::armor::ArmoredReader;
use age::{DecryptError, stream};
use age_core::format::{FileKey, Stanza};
use claviger_token::{Algorithm, Call, Decryptor, Error, PublicKey, Secret};
use rand_core::{OsRng, RngCore};
use zeroize::Zeroizing;

use self::header::{ArmorLines, Header, NoHeader, read_header};
use self::stanza::Wrapped;

pub use header::{Body, LONGEST_HEADER};
pub use recipient::{NoRecipient, parse_recipient, recipient, recipient_text};

/// The most private-key operations that opening one file may take.
///
/// Stanzas of type `X25519` do not say for whom they are, so each is tried.
pub const MOST_ATTEMPTS: usize = 1000;

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
    let file = Sealed::read(input).map_err(|error| match error {
        // That depends on the ciphertext, too.
        Error::HeaderTooLong { .. } => Error::DecryptionFailed,
        other => other,
    })?;
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
    stanzas: Stanzas,
    body: Body<R>,
}

/// The stanzas of a file's header, which say for whom it is. Clones share them.
#[derive(Clone)]
pub struct Stanzas(Arc<[Stanza]>);

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
    /// [`Error::DecryptionFailed`] where it is none; [`Error::HeaderTooLong`], which says
    /// nothing of any key; [`Error::System`] where `input` cannot be read.
    pub fn read(input: R) -> Result<Self, Error> {
        let mut rest = ArmoredReader::new(ArmorLines::new(input));
        let header = read_header(&mut rest).map_err(|no_header| match no_header {
            NoHeader::Unreadable(error) => read_error(&error),
            NoHeader::TooLong => Error::HeaderTooLong {
                longest: LONGEST_HEADER,
            },
        })?;
        let seen = StanzaRecorder::default();
        // The `age` crate shows stanzas to identities only.
        let opened = age::Decryptor::new_buffered(Header::new(&header))
            .and_then(|file| file.decrypt(std::iter::once(&seen as &dyn age::Identity)));
        match opened {
            Err(DecryptError::NoMatchingKeys) => Ok(Sealed {
                stanzas: Stanzas(seen.0.into_inner().into()),
                body: Body::new(header, rest),
            }),
            _ => Err(Error::DecryptionFailed),
        }
    }

    /// For whom it is.
    pub fn stanzas(&self) -> &Stanzas {
        &self.stanzas
    }

    /// As [`Stanzas::fits`].
    pub fn fits(&self, key: &PublicKey) -> Fit {
        self.stanzas.fits(key)
    }

    /// As [`Stanzas::unwrap`].
    ///
    /// # Errors
    /// As there.
    pub fn unwrap(
        &self,
        decryptor: &dyn Decryptor,
        call: &Call,
    ) -> Result<Option<UnwrappedKey>, Error> {
        self.stanzas.unwrap(decryptor, call)
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
}

impl Stanzas {
    /// Whether `key` opens the file, as far as can be told without the private half.
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
    /// [`MOST_ATTEMPTS`]. `None`: nothing is, or nothing opened, though it was this key that
    /// was asked ([`Decryptor::confirm`]).
    ///
    /// # Errors
    /// What the decryptor says that does not depend on the ciphertext.
    pub fn unwrap(
        &self,
        decryptor: &dyn Decryptor,
        call: &Call,
    ) -> Result<Option<UnwrappedKey>, Error> {
        let key = decryptor.public_key();
        let mut was_asked = false;
        for wrapped in self.for_key(key).take(MOST_ATTEMPTS) {
            call.check()?;
            was_asked = true;
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
        if was_asked {
            decryptor.confirm(call)?;
        }
        Ok(None)
    }

    fn for_key<'a>(&'a self, key: &'a PublicKey) -> impl Iterator<Item = Wrapped> + 'a {
        let stanzas = self.0.iter();
        stanzas.filter_map(move |stanza| Wrapped::for_key(key, stanza))
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
struct StanzaRecorder(RefCell<Vec<Stanza>>);

impl age::Identity for StanzaRecorder {
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

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD_NO_PAD;
    use claviger_token::key::BadPublicKey;
    use claviger_token::{SlotId, Unwrap};
    use sha2::Sha256;

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

        fn slot(&self) -> SlotId {
            SlotId::new("soft")
        }

        fn confirm(&self, _: &Call) -> Result<(), Error> {
            Ok(())
        }

        fn unwrap(&self, request: Unwrap<'_>, _: &Call) -> Result<Secret, Error> {
            let Unwrap::Agree { peer } = request else {
                return Err(Error::DecryptionFailed);
            };
            let peer = p256::PublicKey::from_sec1_bytes(peer.as_bytes()).unwrap();
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

        fn slot(&self) -> SlotId {
            SlotId::new("soft")
        }

        fn confirm(&self, _: &Call) -> Result<(), Error> {
            Ok(())
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
        assert_eq!(file.stanzas.0.len(), 10_000);
        assert_eq!(file.fits(&key), Fit::Maybe);
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
        assert!(Sealed::read(of(1).as_bytes()).is_ok());
        let none = of(0);
        assert!(failed(&Soft::new(3), none.as_bytes()));
    }

    #[test]
    fn a_header_without_an_end_is_refused_before_it_is_in_memory() {
        let lines = b"-> X25519 a\n".repeat(2 << 20);
        for rest in [&lines[..], &b"a".repeat(16 << 20)] {
            for armor in [false, true] {
                let file = [b"age-encryption.org/v1\n-> x ", rest].concat();
                let file = match armor {
                    false => file,
                    true => armored(&file),
                };
                let mut left = &file[..];
                let refused = Sealed::read(&mut left).err();
                let longest = LONGEST_HEADER;
                assert!(
                    matches!(refused, Some(Error::HeaderTooLong { longest: l }) if l == longest)
                );
                let read = file.len() - left.len();
                assert!(read < 2 * LONGEST_HEADER, "{read} bytes were read");
                // Of a decryption it is said as little as of any.
                assert!(failed(&Soft::new(3), &file));
            }
        }
        // What does not begin like a header is no header, however long.
        let mut zeros = io::repeat(0).take(1 << 30);
        let refused = Sealed::read(&mut zeros).err();
        assert!(matches!(refused, Some(Error::DecryptionFailed)));
        assert!(zeros.limit() > (1 << 30) - (1 << 20));
    }

    fn armored(file: &[u8]) -> Vec<u8> {
        let format = age::armor::Format::AsciiArmor;
        let mut armored = age::armor::ArmoredWriter::wrap_output(Vec::new(), format).unwrap();
        armored.write_all(file).unwrap();
        armored.finish().unwrap()
    }

    #[test]
    fn a_share_that_makes_every_secret_zero_is_for_nobody() {
        let key = PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap();
        let fit = |share: [u8; 32]| {
            let share = BASE64_STANDARD_NO_PAD.encode(share);
            let body = "A".repeat(43);
            let text = format!("age-encryption.org/v1\n-> X25519 {share}\n{body}\n--- {body}\n");
            let file = [text.as_bytes(), &[0; 16]].concat();
            Sealed::read(file.as_slice()).unwrap().fits(&key)
        };
        assert_eq!(fit([9; 32]), Fit::Maybe);
        assert_eq!(fit([0; 32]), Fit::No);
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
