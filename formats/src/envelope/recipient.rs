//! Public keys as recipients of age files.

use age_core::primitives::{bech32_decode, bech32_encode};
use claviger_token::key::BadPublicKey;
use claviger_token::{Algorithm, PublicKey};
use p256::elliptic_curve::sec1::ToEncodedPoint;

use crate::ssh;

/// The key cannot be encrypted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key of {0} cannot be a recipient")]
pub struct NoRecipient(pub Algorithm);

/// The age recipient of a key as text, for other age programs; `None` if the key cannot be
/// encrypted to.
pub fn recipient_text(key: &PublicKey) -> Option<String> {
    let hrp = bech32::Hrp::parse_unchecked;
    match key.algorithm() {
        Algorithm::P256 => Some(bech32_encode(hrp("age1tag"), &compressed(key)?)),
        Algorithm::X25519 => Some(bech32_encode(hrp("age"), key.as_bytes())),
        Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => ssh::to_line(key, ""),
        _ => None,
    }
}

/// The key of an age recipient, written by [`recipient_text`] or another program.
///
/// # Errors
/// [`BadPublicKey`] if it is malformed, or of an unknown kind (age plugins, post-quantum
/// recipients).
pub fn parse_recipient(text: &str) -> Result<PublicKey, BadPublicKey> {
    let text = text.trim();
    if text.starts_with("ssh-") {
        return ssh::from_line(text);
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
/// [`NoRecipient`] if the key cannot be encrypted to.
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

pub(crate) fn compressed(key: &PublicKey) -> Option<Vec<u8>> {
    let key = p256::PublicKey::from_sec1_bytes(key.as_bytes()).ok()?;
    Some(key.to_encoded_point(true).as_bytes().to_vec())
}
