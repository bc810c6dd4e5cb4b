//! Files whose headers have been read: for whom they are, and opening them.

use std::cell::RefCell;
use std::io::{self, Read};
use std::sync::Arc;

use age::armor::ArmoredReader;
use age::{DecryptError, stream};
use age_core::format::{FILE_KEY_BYTES, FileKey, Stanza};
use age_core::secrecy::ExposeSecret;
use claviger_token::{Algorithm, Call, Decryptor, Error, PublicKey};

use super::header::{ArmorLines, Body, Header, LONGEST_HEADER, NoHeader, read_header};
use super::stanza::Wrapped;

/// The maximum number of private-key operations to open one file.
///
/// Stanzas of type `X25519` do not name their recipient, so each is tried.
pub const MOST_ATTEMPTS: usize = 1000;

/// An age file, binary or armored, whose header has been read: it shows the recipients before
/// anything is decrypted.
pub struct Sealed<R: Read> {
    stanzas: Stanzas,
    body: Body<R>,
}

/// The stanzas of a file's header, one for each recipient. Clones share them.
#[derive(Clone)]
pub struct Stanzas(pub(super) Arc<[Stanza]>);

/// Whether a key opens a file, as far as its public key shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It does not open it.
    No,
    /// It may: the stanzas do not name their recipient (`X25519`).
    Maybe,
    /// A stanza names this key (`p256tag`, `ssh-rsa`).
    Yes,
}

/// The key of a file's payload. Wiped when dropped.
pub struct UnwrappedKey(pub(super) FileKey);

impl From<FileKey> for UnwrappedKey {
    fn from(key: FileKey) -> Self {
        UnwrappedKey(key)
    }
}

impl UnwrappedKey {
    /// The key that another process unwrapped.
    pub fn from_bytes(bytes: &[u8; FILE_KEY_BYTES]) -> Self {
        UnwrappedKey(FileKey::init_with_mut(|key| key.copy_from_slice(bytes)))
    }

    /// Its bytes, for another process that decrypts the payload. Whoever has them reads the file.
    pub fn expose_bytes(&self) -> &[u8; FILE_KEY_BYTES] {
        self.0.expose_secret()
    }
}

impl<R: Read> Sealed<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error::DecryptionFailed`] if there is none; [`Error::HeaderTooLong`], which depends on no
    /// key; [`Error::System`] if `input` cannot be read.
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

    /// The header as it was read, without armor: an age file that ends where its payload begins.
    pub fn header(&self) -> &[u8] {
        self.body.header()
    }

    /// The stanzas of its recipients.
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
    /// As [`Stanzas::unwrap`].
    pub fn unwrap(
        &self,
        decryptor: &dyn Decryptor,
        call: &Call,
    ) -> Result<Option<UnwrappedKey>, Error> {
        self.stanzas.unwrap(decryptor, call)
    }

    /// The payload, decrypted as it is read; see [`decrypt_stream`](super::decrypt_stream).
    ///
    /// # Errors
    /// [`Error::DecryptionFailed`] if the key does not belong to this header.
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
    /// Whether `key` opens the file, as far as the public key shows.
    pub fn fits(&self, key: &PublicKey) -> Fit {
        if self.for_key(key).next().is_none() {
            Fit::No
        } else if key.algorithm() == Algorithm::X25519 {
            Fit::Maybe
        } else {
            Fit::Yes
        }
    }

    /// Has the device unwrap the stanzas that may be for its key, one after another, at most
    /// [`MOST_ATTEMPTS`]. `None`: none is for it, or none opened although the right key was used
    /// ([`Decryptor::confirm`]).
    ///
    /// # Errors
    /// Those of the decryptor that do not depend on the ciphertext.
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

/// The meaning of an error while a payload is read.
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

/// Records the stanzas that it is shown, and opens none.
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

/// An unwrapped file key, for one use.
struct Known(RefCell<Option<FileKey>>);

impl age::Identity for Known {
    fn unwrap_stanza(&self, _: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        self.0.take().map(Ok)
    }

    fn unwrap_stanzas(&self, _: &[Stanza]) -> Option<Result<FileKey, DecryptError>> {
        self.0.take().map(Ok)
    }
}
