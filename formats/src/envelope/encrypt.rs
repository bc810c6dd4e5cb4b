//! Encrypting to public keys.

use std::io::{self, Write};

use age::stream;
use claviger_token::PublicKey;

use super::recipient::{NoRecipient, recipient};

/// Encrypts a stream to `recipients`: data written to the result is encrypted and written to
/// `output`. The file is complete only after
/// [`StreamWriter::finish`](stream::StreamWriter::finish).
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

/// Why data could not be encrypted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptError {
    /// A key is of a kind that cannot be encrypted to.
    #[error(transparent)]
    NoRecipient(#[from] NoRecipient),
    /// The recipients cannot be combined in one file, or there are none.
    #[error("the recipients cannot be combined: {0}")]
    Recipients(String),
    /// The output could not be written.
    #[error("the output cannot be written: {0}")]
    Output(#[source] io::Error),
}

impl EncryptError {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            EncryptError::NoRecipient(_) => "not-a-recipient",
            EncryptError::Recipients(_) => "cannot-encrypt",
            EncryptError::Output(_) => "output-lost",
        }
    }
}
