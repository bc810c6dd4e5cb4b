//! The way to a card, and what comes back: status words (ISO/IEC 7816-4).

use std::fmt;

/// The connection to a card during one transaction: bytes out, bytes back.
///
/// The bytes contain PINs, so they must not be logged.
pub trait Transport {
    /// Sends one command APDU and returns the response APDU with its status word.
    ///
    /// # Errors
    /// [`Lost`]; the card may or may not have received the command.
    fn transmit(&mut self, apdu: &[u8]) -> Result<Vec<u8>, Lost>;

    /// Ends the transaction with a reset of the card, which ends all rights before another program
    /// can use the card. Its users have to connect again.
    ///
    /// # Errors
    /// [`Lost`] if the card was not reset.
    fn reset(self: Box<Self>) -> Result<(), Lost>;
}

/// The card was reset or removed, or the connection is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The error of the layer below.
    pub reason: String,
    /// Whether a card is there nevertheless: it does not answer, or another program has it for
    /// itself.
    pub present: bool,
}

impl Lost {
    /// A card that is lost for this reason.
    pub fn new(reason: impl fmt::Display) -> Self {
        Lost {
            reason: reason.to_string(),
            present: false,
        }
    }

    /// A card that is there and cannot be used for this reason.
    pub fn unusable(reason: impl fmt::Display) -> Self {
        Lost {
            present: true,
            ..Lost::new(reason)
        }
    }
}

/// A status word (ISO/IEC 7816-4 §5.6, SP 800-73-4 part 1 §5.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

impl Status {
    pub(crate) const OK: Status = Status(0x9000);
    /// As `63Cx`, from cards that do not report the remaining attempts (ISO/IEC 7816-4 §5.6).
    pub(crate) const NOT_VERIFIED: Status = Status(0x6300);
    pub(crate) const WRONG_LENGTH: Status = Status(0x6700);
    pub(crate) const SECURITY: Status = Status(0x6982);
    pub(crate) const BLOCKED: Status = Status(0x6983);
    pub(crate) const CONDITIONS: Status = Status(0x6985);
    pub(crate) const WRONG_DATA: Status = Status(0x6a80);
    pub(crate) const NOT_SUPPORTED: Status = Status(0x6a81);
    pub(crate) const NOT_FOUND: Status = Status(0x6a82);
    pub(crate) const FULL: Status = Status(0x6a84);
    pub(crate) const WRONG_P1_P2: Status = Status(0x6a86);
    pub(crate) const NO_REFERENCE: Status = Status(0x6a88);
    pub(crate) const NO_INSTRUCTION: Status = Status(0x6d00);
    pub(crate) const NO_CLASS: Status = Status(0x6e00);

    /// The remaining attempts, if the status reports them (`63Cx`).
    pub(crate) fn tries(self) -> Option<u8> {
        match self.0 & 0xfff0 {
            // Four bits.
            0x63c0 => Some((self.0 & 0x000f) as u8),
            _ => None,
        }
    }

    fn meaning(self) -> &'static str {
        match self.0 {
            0x9000 => "success",
            0x6300 => "verification failed",
            0x63c0..=0x63cf => "verification failed, tries left",
            0x6700 => "wrong length",
            0x6881 => "logical channel not supported",
            0x6882 => "secure messaging not supported",
            0x6883 => "last command of the chain expected",
            0x6884 => "command chaining not supported",
            0x6982 => "security status not satisfied",
            0x6983 => "authentication method blocked",
            0x6985 => "conditions of use not satisfied",
            0x6987 => "expected secure messaging data objects are missing",
            0x6988 => "secure messaging data objects are incorrect",
            0x6a80 => "incorrect parameter in the data field",
            0x6a81 => "function not supported",
            0x6a82 => "data object or application not found",
            0x6a84 => "not enough memory",
            0x6a86 => "incorrect parameter in P1 or P2",
            0x6a88 => "referenced data or key not found",
            0x6d00 => "instruction not supported",
            0x6e00 => "class not supported",
            0x6f00 => "no precise diagnosis",
            _ => "not in the standard",
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
    fn every_status_word_is_distinct_and_shows_its_number() {
        assert_eq!(
            Status(0x6982).to_string(),
            "6982 (security status not satisfied)"
        );
        assert_eq!(Status(0x1234).to_string(), "1234 (not in the standard)");
        assert_eq!(Status(0x63c2).tries(), Some(2));
        assert_eq!(Status(0x6300).tries(), None);
    }
}
