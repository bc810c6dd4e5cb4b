//! Slots: an account, and which of its two keys.

use std::fmt;

use claviger_token::{Algorithm, Error, KeySpec, SlotId};

use crate::backend;

/// The last account: a hardened index has 31 bits (BIP 32).
pub(crate) const LAST_ACCOUNT: u32 = (1 << 31) - 1;

/// Which of an account's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The secp256k1 key, for Ethereum personal messages (EIP-191).
    Signing,
    /// The X25519 key (EIP-1024).
    Decryption,
}

impl Kind {
    pub(crate) const ALL: [Kind; 2] = [Kind::Signing, Kind::Decryption];

    pub(crate) fn spec(self) -> KeySpec {
        match self {
            Kind::Signing => KeySpec::sign(Algorithm::Secp256k1),
            Kind::Decryption => KeySpec::decrypt(Algorithm::X25519),
        }
    }

    pub(crate) fn of(spec: KeySpec) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.spec() == spec)
    }
}

/// A slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot {
    pub(crate) account: u32,
    pub(crate) kind: Kind,
}

impl Slot {
    /// Both of an account's.
    pub(crate) fn of(account: u32) -> [Slot; 2] {
        Kind::ALL.map(|kind| Slot { account, kind })
    }

    /// The slot with this name, such as `0/secp256k1`.
    pub(crate) fn parse(name: &SlotId) -> Result<Slot, Error> {
        let parsed = || {
            let (account, algorithm) = name.as_str().split_once('/')?;
            let mut kinds = Kind::ALL.into_iter();
            Some(Slot {
                account: backend::account(account)?,
                kind: kinds.find(|kind| kind.spec().algorithm.name() == algorithm)?,
            })
        };
        parsed().ok_or_else(|| Error::BadBackend {
            backend: name.name().chars().take(80).collect(),
            reason: "a Ledger has the slots N/secp256k1 and N/x25519".into(),
        })
    }

    pub(crate) fn id(self) -> SlotId {
        SlotId::new(self.to_string())
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.account, self.kind.spec().algorithm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_reads_back() {
        for account in [0, 1, LAST_ACCOUNT] {
            for slot in Slot::of(account) {
                assert_eq!(Slot::parse(&slot.id()).unwrap(), slot);
            }
        }
        for name in [
            "",
            "0",
            "0/",
            "0/p256",
            "00/x25519",
            "0/x25519#1",
            "2147483648/x25519",
        ] {
            assert!(Slot::parse(&SlotId::new(name)).is_err(), "{name}");
        }
    }
}
