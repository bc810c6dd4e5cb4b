//! Status words (ISO/IEC 7816-4 §5).

use std::fmt;

/// A status word, as the Ethereum app and the system of the device mean it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u16);

impl Status {
    pub(crate) const OK: Status = Status(0x9000);
    pub(crate) const LOCKED: Status = Status(0x5515);
    pub(crate) const NO_APP: Status = Status(0x6511);
    pub(crate) const REJECTED: Status = Status(0x6985);
    /// The app is not done with something else.
    pub(crate) const OCCUPIED: Status = Status(0x6986);
    pub(crate) const WRONG_DATA: Status = Status(0x6a80);
    pub(crate) const NO_MEMORY: Status = Status(0x6a84);
    pub(crate) const NO_INSTRUCTION: Status = Status(0x6d00);
    pub(crate) const NO_CLASS: Status = Status(0x6e00);

    fn meaning(self) -> &'static str {
        match self.0 {
            0x5515 => "the device is locked",
            0x6511 => "no app is open",
            0x6700 => "wrong length",
            0x6982 => "security status not satisfied",
            0x6985 => "rejected by the user",
            0x6986 => "the app is busy with something else",
            0x6a15 => "the app does not allow this derivation path",
            0x6a80 => "incorrect data",
            0x6a84 => "not enough memory",
            0x6b00 => "incorrect parameter in P1 or P2",
            0x6d00 => "instruction not supported by the app that is open",
            0x6e00 => "class not supported by the app that is open",
            0x6f00 => "no precise diagnosis",
            0x9000 => "success",
            _ => "not documented",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04X} ({})", self.0, self.meaning())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_shows_its_number() {
        assert_eq!(
            Status(0x6a15).to_string(),
            "6A15 (the app does not allow this derivation path)"
        );
        assert_eq!(Status(0x1234).to_string(), "1234 (not documented)");
    }
}
