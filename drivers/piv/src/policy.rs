//! PIN and touch policies of keys (Yubico's extension of GENERATE ASYMMETRIC KEY PAIR and GET
//! METADATA).

use crate::slot::Slot;

/// When a key wants the PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PinPolicy {
    /// Never.
    Never,
    /// Once after the application was selected.
    Once,
    /// Right before each operation.
    Always,
}

impl PinPolicy {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        [PinPolicy::Never, PinPolicy::Once, PinPolicy::Always]
            .into_iter()
            .find(|policy| policy.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            PinPolicy::Never => "never",
            PinPolicy::Once => "once",
            PinPolicy::Always => "always",
        }
    }

    pub(crate) fn id(self) -> u8 {
        match self {
            PinPolicy::Never => 1,
            PinPolicy::Once => 2,
            PinPolicy::Always => 3,
        }
    }

    /// With a fingerprint instead (4, 5) the PIN is taken as well.
    pub(crate) fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(PinPolicy::Never),
            2 | 4 => Some(PinPolicy::Once),
            3 | 5 => Some(PinPolicy::Always),
            _ => None,
        }
    }

    /// What holds for keys whose card does not say (SP 800-73-4 part 1, table 4b).
    pub(crate) fn customary(slot: Slot) -> Self {
        match slot.reference() {
            0x9c => PinPolicy::Always,
            0x9e => PinPolicy::Never,
            _ => PinPolicy::Once,
        }
    }
}

/// When a key wants to be touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TouchPolicy {
    /// Never.
    Never,
    /// For each operation.
    Always,
    /// For each operation, except within 15 s of the last touch.
    Cached,
}

impl TouchPolicy {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        [TouchPolicy::Never, TouchPolicy::Always, TouchPolicy::Cached]
            .into_iter()
            .find(|policy| policy.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            TouchPolicy::Never => "never",
            TouchPolicy::Always => "always",
            TouchPolicy::Cached => "cached",
        }
    }

    pub(crate) fn id(self) -> u8 {
        match self {
            TouchPolicy::Never => 1,
            TouchPolicy::Always => 2,
            TouchPolicy::Cached => 3,
        }
    }

    pub(crate) fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(TouchPolicy::Never),
            2 => Some(TouchPolicy::Always),
            3 => Some(TouchPolicy::Cached),
            _ => None,
        }
    }
}

/// What a backend asks for the keys that are generated: the PIN once and the card's
/// own touch policy unless it says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Policies {
    pub(crate) pin: Option<PinPolicy>,
    pub(crate) touch: Option<TouchPolicy>,
}
