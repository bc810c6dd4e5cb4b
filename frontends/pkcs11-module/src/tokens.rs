//! Identities as tokens.

use claviger_client::wire::{Identity, KeyUse, StatusReply, TokenId};
use cryptoki_sys::{
    CK_SLOT_INFO, CK_TOKEN_INFO, CK_ULONG, CK_VERSION, CKF_HW_SLOT, CKF_LOGIN_REQUIRED,
    CKF_REMOVABLE_DEVICE, CKF_RNG, CKF_TOKEN_INITIALIZED, CKF_TOKEN_PRESENT,
    CKF_USER_PIN_INITIALIZED, CKF_WRITE_PROTECTED,
};

use crate::keys::PublicKey;
use crate::objects::Objects;

pub(crate) const MANUFACTURER: &str = "Claviger";

/// So long a PIN may be, in bytes: the daemon knows what its token takes.
const LONGEST_PIN: CK_ULONG = 255;

/// An identity with a key that signs.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) name: String,
    /// The engine that signs.
    pub(crate) engine: String,
    pub(crate) backend: String,
    /// The device with the key.
    pub(crate) device: TokenId,
    pub(crate) objects: Objects,
    /// Whether the daemon still knows the identity.
    pub(crate) is_there: bool,
    pub(crate) needs_login: bool,
    pub(crate) is_logged_in: bool,
}

impl Token {
    /// The token that an identity is; `None` if it has no key here that signs.
    pub(crate) fn of(identity: Identity) -> Option<Self> {
        let name = identity.id.filter(|id| id.node.is_empty())?.name;
        let mut keys = identity.keys.into_iter();
        let key = keys.find(|key| key.usage() == KeyUse::Sign && !key.deleted)?;
        let public = PublicKey::from_der(&key.public_key)?;
        let mut objects = Objects::new(&name, public);
        objects.set_certificates(identity.certificates);
        Some(Token {
            engine: identity.commitment_engine?.name,
            backend: identity.backend,
            device: key.token?,
            objects,
            is_there: true,
            needs_login: true,
            is_logged_in: false,
            name,
        })
    }

    /// Whether both are the same identity, with the same key.
    pub(crate) fn is_same(&self, other: &Token) -> bool {
        self.name == other.name && self.objects.key() == other.objects.key()
    }

    /// Whether the daemon has to be given a PIN before the key can sign: its token is neither
    /// unlocked nor open. A login does not outlast that: the daemon was locked, or started anew.
    pub(crate) fn look_at(&mut self, status: &StatusReply) {
        let mut tokens = status.tokens.iter();
        let known = tokens.find(|known| known.token.as_ref() == Some(&self.device));
        self.needs_login = !known.is_some_and(|known| {
            known.is_unlocked || matches!(known.state.as_str(), "ready" | "person")
        });
        self.is_logged_in &= !self.needs_login;
    }

    pub(crate) fn slot_info(&self) -> CK_SLOT_INFO {
        let present = if self.is_there { CKF_TOKEN_PRESENT } else { 0 };
        CK_SLOT_INFO {
            slotDescription: padded(&format!("Claviger identity {}", self.name)),
            manufacturerID: padded(MANUFACTURER),
            flags: CKF_HW_SLOT | CKF_REMOVABLE_DEVICE | present,
            hardwareVersion: VERSION,
            firmwareVersion: VERSION,
        }
    }

    pub(crate) fn token_info(&self, sessions: CK_ULONG) -> CK_TOKEN_INFO {
        let login = if self.needs_login {
            CKF_LOGIN_REQUIRED
        } else {
            0
        };
        let none = CK_ULONG::MAX;
        CK_TOKEN_INFO {
            label: padded(&self.name),
            manufacturerID: padded(MANUFACTURER),
            model: padded("identity"),
            serialNumber: padded(&self.serial()),
            flags: CKF_RNG
                | CKF_TOKEN_INITIALIZED
                | CKF_USER_PIN_INITIALIZED
                | CKF_WRITE_PROTECTED
                | login,
            ulMaxSessionCount: 0,
            ulSessionCount: sessions,
            ulMaxRwSessionCount: 0,
            ulRwSessionCount: 0,
            ulMaxPinLen: LONGEST_PIN,
            ulMinPinLen: 1,
            ulTotalPublicMemory: none,
            ulFreePublicMemory: none,
            ulTotalPrivateMemory: none,
            ulFreePrivateMemory: none,
            hardwareVersion: VERSION,
            firmwareVersion: VERSION,
            utcTime: padded(""),
        }
    }

    /// The first 8 bytes of the key's fingerprint, in hexadecimal.
    fn serial(&self) -> String {
        let fingerprint = self.objects.key().fingerprint();
        fingerprint[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// The version of this module.
pub(crate) const VERSION: CK_VERSION = CK_VERSION { major: 0, minor: 1 };

/// A text in a field of a certain length, padded with spaces; a longer one is cut between two
/// characters.
pub(crate) fn padded<const LENGTH: usize>(text: &str) -> [u8; LENGTH] {
    let mut end = text.len().min(LENGTH);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut field = [b' '; LENGTH];
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_between_two_characters() {
        assert_eq!(&padded::<4>("ab"), b"ab  ");
        assert_eq!(&padded::<4>("abcdef"), b"abcd");
        assert_eq!(&padded::<4>("abcü"), b"abc ");
    }
}
