//! Stanzas without a file, as the plugins of age programs get and give them (C2SP `age-plugin`).

use std::collections::BTreeSet;

use age_core::format::{Stanza, read};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use claviger_token::PublicKey;

use super::encrypt::EncryptError;
use super::recipient::recipient;
use super::sealed::{Stanzas, UnwrappedKey};
use super::stanza::{Wrapped, is_known, is_malformed};

/// The characters of a full line of a stanza's body.
const COLUMNS: usize = 64;

impl From<Vec<Stanza>> for Stanzas {
    fn from(stanzas: Vec<Stanza>) -> Self {
        Stanzas(stanzas.into())
    }
}

impl Stanzas {
    /// The places of those that are of a type that is opened here and have a form that no key
    /// opens, from 0.
    pub fn malformed(&self) -> impl Iterator<Item = usize> + '_ {
        let all = self.0.iter().enumerate();
        all.filter_map(|(place, stanza)| is_malformed(stanza).then_some(place))
    }

    /// The place of the first one that may be for `key`, from 0.
    pub fn first_for(&self, key: &PublicKey) -> Option<usize> {
        let mut all = self.0.iter();
        all.position(|stanza| Wrapped::for_key(key, stanza).is_some())
    }

    /// An age header with those that are of a type that is opened here, and with a MAC of zero
    /// bytes, since only who has the file key knows the real one. `None` if there are none.
    pub fn to_header(&self) -> Option<Vec<u8>> {
        let mut header = b"age-encryption.org/v1\n".to_vec();
        let before = header.len();
        for stanza in self.0.iter().filter(|stanza| is_known(stanza)) {
            write_stanza(&stanza.tag, &stanza.args, &stanza.body, &mut header);
        }
        if header.len() == before {
            return None;
        }
        header.extend_from_slice(b"--- ");
        header.extend_from_slice(BASE64_STANDARD_NO_PAD.encode([0; 32]).as_bytes());
        header.push(b'\n');
        Some(header)
    }
}

/// A file key that is wrapped for one key.
pub struct WrappedKey {
    /// The stanzas: one.
    pub stanzas: Vec<Stanza>,
    /// The labels, which all recipients of a file need to have.
    pub labels: BTreeSet<String>,
}

/// Wraps a file key for a public key, as native stanzas.
///
/// # Errors
/// [`EncryptError::NoRecipient`]; [`EncryptError::Recipients`] if the key is of a form that cannot be
/// encrypted to.
pub fn wrap(key: &PublicKey, file_key: &UnwrappedKey) -> Result<WrappedKey, EncryptError> {
    let wrapped = recipient(key)?.wrap_file_key(&file_key.0);
    let (stanzas, labels) = wrapped.map_err(|e| EncryptError::Recipients(e.to_string()))?;
    Ok(WrappedKey {
        stanzas,
        labels: labels.into_iter().collect(),
    })
}

/// A stanza from its text, which ends after it; `None` if it is malformed.
pub fn read_stanza(text: &[u8]) -> Option<Stanza> {
    match read::age_stanza(text) {
        Ok(([], stanza)) => Some(stanza.into()),
        _ => None,
    }
}

/// Writes a stanza as text. Its type and its arguments have to be strings of printable characters of
/// ASCII without a space, and not empty.
pub fn write_stanza<S: AsRef<str>>(kind: &str, arguments: &[S], body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"-> ");
    out.extend_from_slice(kind.as_bytes());
    for argument in arguments {
        out.push(b' ');
        out.extend_from_slice(argument.as_ref().as_bytes());
    }
    out.push(b'\n');
    let encoded = BASE64_STANDARD_NO_PAD.encode(body);
    for line in encoded.as_bytes().chunks(COLUMNS) {
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    // The last line is shorter than the others.
    if encoded.len().is_multiple_of(COLUMNS) {
        out.push(b'\n');
    }
}
