//! What a card is given for a signature.

use std::borrow::Cow;

use claviger_token::{Algorithm, SignatureScheme};

/// EMSA-PKCS1-v1_5 (RFC 8017 §9.2): cards take the block as it is.
fn padded(scheme: SignatureScheme, digest: &[u8], length: usize) -> Option<Vec<u8>> {
    let info = scheme.digest_info(digest)?;
    let padding = length.checked_sub(info.len() + 3).filter(|n| *n >= 8)?;
    Some([&[0, 1][..], &vec![0xff; padding], &[0], &info].concat())
}

/// What the card is given for a signature of `message` in this scheme; `None` where its keys of
/// this kind make none.
pub(crate) fn to_be_signed(
    algorithm: Algorithm,
    scheme: SignatureScheme,
    message: &[u8],
) -> Option<Cow<'_, [u8]>> {
    match scheme {
        SignatureScheme::Ed25519 => Some(message.into()),
        _ => digest_to_be_signed(algorithm, scheme, &scheme.digest(message)?).map(Cow::from),
    }
}

/// The same for the message with this digest.
pub(crate) fn digest_to_be_signed(
    algorithm: Algorithm,
    scheme: SignatureScheme,
    digest: &[u8],
) -> Option<Vec<u8>> {
    match scheme {
        SignatureScheme::EcdsaP256Sha256 | SignatureScheme::EcdsaP384Sha384 => {
            Some(digest.to_vec())
        }
        SignatureScheme::RsaPkcs1Sha256 | SignatureScheme::RsaPkcs1Sha512 => {
            padded(scheme, digest, algorithm.rsa_bits()? / 8)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_padded_to_the_length_of_the_modulus() {
        for (scheme, digest) in [
            (SignatureScheme::RsaPkcs1Sha256, 32),
            (SignatureScheme::RsaPkcs1Sha512, 64),
        ] {
            let block = padded(scheme, &vec![7; digest], 256).unwrap();
            assert_eq!(block.len(), 256);
            assert_eq!(block[..3], [0, 1, 0xff]);
            assert_eq!(block[256 - digest - 20], 0);
            assert!(padded(scheme, &vec![7; digest], digest + 28).is_none());
        }
    }
}
