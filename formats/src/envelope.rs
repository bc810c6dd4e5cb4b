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

mod bare;
mod encrypt;
mod header;
mod recipient;
mod sealed;
mod stanza;
#[cfg(test)]
mod tests;

use std::io::Read;

use age::stream;
use age_core::format::FileKey;
use claviger_token::{Call, Decryptor, Error, Secret};
use rand_core::{OsRng, RngCore};
use zeroize::Zeroizing;

pub use age_core::format::Stanza;
pub use bare::{WrappedKey, read_stanza, wrap, write_stanza};
pub use encrypt::{EncryptError, encrypt, encrypt_stream};
pub use header::{Body, LONGEST_HEADER};
pub(crate) use recipient::compressed;
pub use recipient::{NoRecipient, parse_recipient, recipient, recipient_text};
pub use sealed::{Fit, MOST_ATTEMPTS, Sealed, Stanzas, UnwrappedKey, read_error};

/// Decrypts an age file, binary or armored.
///
/// # Errors
/// [`Error::DecryptionFailed`] for every fault of the ciphertext; otherwise those of the decryptor.
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

/// Opens the header of an age file, binary or armored. The payload is decrypted as it is read. Data
/// that was read is authentic, but the file may be truncated: it is complete only if reading ends
/// without an error. [`read_error`] tells the errors apart.
///
/// # Errors
/// As [`decrypt`]; [`Error::System`] if `input` cannot be read.
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
