//! Slots: an account and one of its two keys.

use std::fmt;
use std::ops::RangeInclusive;

use claviger_token::backend::bad;
use claviger_token::{Access, Algorithm, Error, KeySpec, SlotId};

/// The last account: a hardened index has 31 bits (BIP 32).
pub(crate) const LAST_ACCOUNT: u32 = (1 << 31) - 1;

/// The accounts for the keys that are generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accounts {
    /// This one.
    Named(u32),
    /// This one, or the first behind it that is free.
    From(u32),
}

impl Accounts {
    /// The one that a backend names, or those from the first that may be used on.
    pub(crate) fn of(named: Option<u32>, access: &Access) -> Self {
        match named {
            Some(account) => Accounts::Named(account),
            None => Accounts::From(access.first_account.min(LAST_ACCOUNT)),
        }
    }

    pub(crate) fn named(self) -> Option<u32> {
        match self {
            Accounts::Named(account) => Some(account),
            Accounts::From(_) => None,
        }
    }

    pub(crate) fn range(self) -> RangeInclusive<u32> {
        match self {
            Accounts::Named(account) => account..=account,
            Accounts::From(first) => first..=LAST_ACCOUNT,
        }
    }
}

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
                account: parse_account(account)?,
                kind: kinds.find(|kind| kind.spec().algorithm.name() == algorithm)?,
            })
        };
        const SLOTS: &str = "a Ledger has the slots N/secp256k1 and N/x25519";
        parsed().ok_or_else(|| bad(name.name(), SLOTS))
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

/// The number of an account, in its one decimal form.
pub(crate) fn parse_account(value: &str) -> Option<u32> {
    let number: u32 = value.parse().ok()?;
    (number <= LAST_ACCOUNT && number.to_string() == value).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_those_from_the_first_on_or_the_one_that_is_named() {
        let mut access = Access::without_pin();
        assert_eq!(Accounts::of(None, &access).range(), 0..=LAST_ACCOUNT);
        access.first_account = 7_000;
        assert_eq!(Accounts::of(None, &access).range(), 7_000..=LAST_ACCOUNT);
        assert_eq!(Accounts::of(Some(3), &access).range(), 3..=3);
        access.first_account = u32::MAX;
        assert_eq!(Accounts::of(None, &access).range().count(), 1);
    }

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
