//! Key agreement: what a driver checks of the request and of what its device answers.
//!
//! A peer's key is checked where it becomes a [`PublicKey`]: it is on its curve, in its one
//! form, and of no small order.

use crate::{Algorithm, Error, PublicKey, Secret};

/// The length of a shared secret in bytes: the x-coordinate of P-256, or the output of X25519.
pub const SECRET_LENGTH: usize = 32;

/// The peer's key in the form that a device takes, for a key of the algorithm `own`: P-256, the
/// uncompressed point (SEC 1 §2.3.3), 65 bytes; X25519, 32 bytes (RFC 7748 §5).
///
/// # Errors
/// [`Error::DecryptionFailed`] if the algorithms differ or have no key agreement.
pub fn peer_bytes(own: Algorithm, peer: &PublicKey) -> Result<&[u8], Error> {
    match own {
        Algorithm::P256 | Algorithm::X25519 if peer.algorithm() == own => Ok(peer.as_bytes()),
        _ => Err(Error::DecryptionFailed),
    }
}

/// The shared secret that a device returned. A secret of zeros is refused: no valid peer yields it.
///
/// # Errors
/// [`Error::DecryptionFailed`].
pub fn unknown_to_others(secret: Secret) -> Result<Secret, Error> {
    // Every byte is looked at, whatever it is.
    match secret.iter().fold(0, |all, byte| all | byte) {
        0 => Err(Error::DecryptionFailed),
        _ => Ok(secret),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_agrees_with_keys_of_its_own_algorithm_only() {
        let x25519 = PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap();
        assert_eq!(peer_bytes(Algorithm::X25519, &x25519).unwrap(), [9; 32]);
        for own in [Algorithm::P256, Algorithm::P384, Algorithm::Rsa2048] {
            let refused = peer_bytes(own, &x25519);
            assert!(matches!(refused, Err(Error::DecryptionFailed)), "{own}");
        }
    }

    #[test]
    fn zeros_are_no_secret() {
        assert!(unknown_to_others(vec![0; 32].into()).is_err());
        assert!(unknown_to_others(vec![].into()).is_err());
        assert_eq!(*unknown_to_others(vec![0, 1].into()).unwrap(), [0, 1]);
    }
}
