//! The abilities of cards, as data: by firmware for Yubico's cards; for all others what they state,
//! which counts as untried.

use std::fmt;

use claviger_token::{Algorithm, KeySpec};

/// The version that GET VERSION gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u8, pub(crate) u8, pub(crate) u8);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The version of software cards that answer GET VERSION without being YubiKeys
/// (piv-authenticator). They are treated as cards of the plain standard.
const NOT_A_YUBIKEY: Version = Version(6, 6, 6);

/// Something of Yubico's that came with a firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feature {
    /// PIN and touch policies at generation.
    Policies,
    /// ATTEST.
    Attestation,
    /// GET SERIAL in the PIV application.
    Serial,
    /// GET METADATA.
    Metadata,
    /// MOVE KEY, which also deletes.
    Delete,
}

const FEATURES: [(Feature, Version); 5] = [
    (Feature::Policies, Version(4, 0, 0)),
    (Feature::Attestation, Version(4, 3, 0)),
    (Feature::Serial, Version(5, 0, 0)),
    (Feature::Metadata, Version(5, 3, 0)),
    (Feature::Delete, Version(5, 7, 0)),
];

/// An algorithm with its identifier (SP 800-78-4 table 6-2; Yubico's from 0xE0 on, and
/// for RSA-3072 and RSA-4096).
struct Offer {
    algorithm: Algorithm,
    id: u8,
    since: Version,
    spec: &'static [KeySpec],
}

/// In the order in which they are offered.
const OFFERS: [Offer; 7] = [
    Offer {
        algorithm: Algorithm::P256,
        id: 0x11,
        since: Version(1, 0, 0),
        spec: &[
            KeySpec::sign(Algorithm::P256),
            KeySpec::decrypt(Algorithm::P256),
        ],
    },
    Offer {
        algorithm: Algorithm::P384,
        id: 0x14,
        since: Version(4, 0, 0),
        spec: &[KeySpec::sign(Algorithm::P384)],
    },
    Offer {
        algorithm: Algorithm::Ed25519,
        id: 0xe0,
        since: Version(5, 7, 0),
        spec: &[KeySpec::sign(Algorithm::Ed25519)],
    },
    Offer {
        algorithm: Algorithm::X25519,
        id: 0xe1,
        since: Version(5, 7, 0),
        spec: &[KeySpec::decrypt(Algorithm::X25519)],
    },
    Offer {
        algorithm: Algorithm::Rsa2048,
        id: 0x07,
        since: Version(1, 0, 0),
        spec: &[KeySpec::sign(Algorithm::Rsa2048)],
    },
    Offer {
        algorithm: Algorithm::Rsa3072,
        id: 0x05,
        since: Version(5, 7, 0),
        spec: &[KeySpec::sign(Algorithm::Rsa3072)],
    },
    Offer {
        algorithm: Algorithm::Rsa4096,
        id: 0x16,
        since: Version(5, 7, 0),
        spec: &[KeySpec::sign(Algorithm::Rsa4096)],
    },
];

/// Firmware whose RSA keys can be computed from their public half (CVE-2017-15361):
/// from the first of these on, and before the second.
const WEAK_RSA: (Version, Version) = (Version(4, 2, 6), Version(4, 3, 5));

/// What the standard calls the algorithm; `None` for those that no PIV card has.
pub(crate) fn algorithm_id(algorithm: Algorithm) -> Option<u8> {
    OFFERS
        .iter()
        .find(|offer| offer.algorithm == algorithm)
        .map(|offer| offer.id)
}

/// The algorithm behind an identifier, where Claviger knows it.
pub(crate) fn algorithm(id: u8) -> Option<Algorithm> {
    OFFERS
        .iter()
        .find(|offer| offer.id == id)
        .map(|offer| offer.algorithm)
}

/// What a card is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Make {
    /// Yubico's: the chain of its attestation key ends at Yubico's root.
    Yubico(Version),
    /// One that answers GET VERSION with this, and is not known to be Yubico's. Several
    /// cards of others do, and do not have what such a firmware has.
    Stated {
        version: Version,
        /// The algorithms that it names when selected, if it does.
        named: Vec<u8>,
    },
    /// Any other card.
    Plain {
        /// As of [`Make::Stated`].
        named: Vec<u8>,
    },
}

impl Make {
    /// What a card is as far as it says.
    pub(crate) fn new(version: Option<Version>, named: Vec<u8>) -> Self {
        match version {
            Some(version) if version != NOT_A_YUBIKEY => Make::Stated { version, named },
            _ => Make::Plain { named },
        }
    }

    /// The same card when it is known that Yubico made it.
    pub(crate) fn proven(self) -> Self {
        match self {
            Make::Stated { version, .. } => Make::Yubico(version),
            other => other,
        }
    }

    /// Whether it is known that Yubico made it.
    pub(crate) fn is_yubicos(&self) -> bool {
        matches!(self, Make::Yubico(_))
    }

    pub(crate) fn version(&self) -> Option<Version> {
        match self {
            Make::Yubico(version) | Make::Stated { version, .. } => Some(*version),
            Make::Plain { .. } => None,
        }
    }

    /// Whose numbers its serial is one of. A card with Yubico's extensions has a serial of
    /// that kind, whoever made it; so its name stays what it is when more is known of it.
    pub(crate) fn manufacturer(&self) -> &'static str {
        match self {
            Make::Yubico(_) | Make::Stated { .. } => "Yubico",
            Make::Plain { .. } => "PIV",
        }
    }

    pub(crate) fn model(&self) -> String {
        match self {
            Make::Yubico(version) => format!("YubiKey {version}"),
            Make::Stated { version, .. } => format!("PIV card (states firmware {version})"),
            Make::Plain { .. } => "PIV card".into(),
        }
    }

    /// Whether the card has it, or, where it is not known to be Yubico's, may have it, so
    /// that it is worth asking. What a card is asked to do without being asked for it
    /// (policies) only Yubico's are.
    pub(crate) fn has(&self, feature: Feature) -> bool {
        match (self, feature) {
            (Make::Plain { .. }, _) | (Make::Stated { .. }, Feature::Policies) => false,
            (Make::Stated { .. }, _) => true,
            (Make::Yubico(version), _) => {
                let since = FEATURES.iter().find(|(f, _)| *f == feature);
                since.is_some_and(|(_, since)| version >= since)
            }
        }
    }

    /// Whether a SELECT takes away what rights PINs and keys gave, also where the
    /// application is selected already. `None`: that has to be seen.
    pub(crate) fn select_ends_rights(&self) -> Option<bool> {
        match self {
            Make::Yubico(_) => Some(true),
            Make::Stated { .. } => None,
            Make::Plain { .. } => Some(false),
        }
    }

    /// The kinds of key that such a card states that it has. See [`Make::untried`].
    pub(crate) fn supports(&self) -> Vec<KeySpec> {
        let by_version = |offer: &Offer, version: &Version| {
            let weak =
                offer.algorithm.rsa_bits().is_some() && (WEAK_RSA.0..WEAK_RSA.1).contains(version);
            *version >= offer.since && !weak
        };
        let offered = |offer: &&Offer| match self {
            Make::Yubico(version) => by_version(offer, version),
            Make::Stated { version, named } => {
                by_version(offer, version) || named.contains(&offer.id)
            }
            Make::Plain { named } if named.is_empty() => {
                // What SP 800-78-4 lets every card have.
                matches!(offer.id, 0x07 | 0x11 | 0x14)
            }
            Make::Plain { named } => named.contains(&offer.id),
        };
        OFFERS
            .iter()
            .filter(offered)
            .flat_map(|offer| offer.spec.iter().copied())
            .collect()
    }

    /// Those of them that nobody can know to work before they were tried.
    pub(crate) fn untried(&self) -> Vec<KeySpec> {
        match self {
            Make::Yubico(_) => Vec::new(),
            Make::Stated { .. } | Make::Plain { .. } => self.supports(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yubikey(a: u8, b: u8, c: u8) -> Make {
        Make::new(Some(Version(a, b, c)), Vec::new()).proven()
    }

    #[test]
    fn firmware_decides_what_is_offered() {
        let new = yubikey(5, 7, 1).supports();
        assert_eq!(new.len(), 8);
        assert_eq!(new[0], KeySpec::sign(Algorithm::P256));
        let old = yubikey(5, 4, 3);
        assert_eq!(old.supports().len(), 4);
        assert!(old.has(Feature::Metadata) && !old.has(Feature::Delete));
        assert!(!yubikey(4, 3, 5).has(Feature::Metadata));
        assert!(yubikey(6, 0, 0).has(Feature::Delete));
    }

    #[test]
    fn what_a_card_states_is_not_believed_before_it_was_tried() {
        let stated = Make::new(Some(Version(5, 7, 0)), Vec::new());
        assert_eq!(stated.supports(), yubikey(5, 7, 0).supports());
        assert_eq!(stated.untried(), stated.supports());
        assert_eq!(yubikey(5, 7, 0).untried(), []);
        assert!(!stated.has(Feature::Policies) && !stated.is_yubicos());
        assert!(!stated.model().contains("YubiKey"));
        let of_others = Make::new(None, vec![0x11]);
        assert_eq!(of_others.clone().proven(), of_others);
        assert_eq!(of_others.untried(), of_others.supports());
    }

    #[test]
    fn weak_rsa_keys_are_not_made() {
        let rsa = KeySpec::sign(Algorithm::Rsa2048);
        assert!(!yubikey(4, 3, 4).supports().contains(&rsa));
        assert!(yubikey(4, 3, 5).supports().contains(&rsa));
    }

    #[test]
    fn a_card_that_only_looks_like_a_yubikey_is_a_plain_one() {
        let card = Make::new(Some(NOT_A_YUBIKEY), vec![0x11, 0x07]);
        assert_eq!(card.manufacturer(), "PIV");
        assert_eq!(card.supports().len(), 3);
        assert!(!card.has(Feature::Metadata));
    }
}
