//! What a simulated device is, and what its app can.

/// A device and the Ethereum app on it, as far as they differ from others.
///
/// ```
/// use claviger_ledger_emulator::{Configuration, Ethereum};
///
/// let flex = Ethereum::configured(Configuration::flex());
/// assert_eq!(flex.configuration().longest_message, 13_368);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The device.
    pub hardware: Hardware,
    /// The version of the app.
    pub version: String,
    /// The longest personal message in bytes that it takes; for a longer one it has not
    /// enough memory.
    pub longest_message: usize,
    /// Whether it agrees on keys (EIP-1024), as it does from version 1.9.18 on.
    pub agrees: bool,
}

impl Configuration {
    /// The app that the recording was made of, 1.23.0-dev, on a Nano S Plus.
    pub fn nano_s_plus() -> Self {
        Configuration::of(Hardware::NanoSPlus, "1.23.0-dev")
    }

    /// The app 1.22.0-dev on a Flex.
    pub fn flex() -> Self {
        Configuration::of(Hardware::Flex, "1.22.0-dev")
    }

    /// An app that signs, and does not agree on keys yet.
    pub fn before_eip_1024() -> Self {
        Configuration {
            agrees: false,
            ..Configuration::of(Hardware::NanoSPlus, "1.9.17")
        }
    }

    fn of(hardware: Hardware, version: &str) -> Self {
        Configuration {
            hardware,
            version: version.into(),
            longest_message: hardware.longest_message(),
            agrees: true,
        }
    }

    /// The version as the app's own configuration has it: three numbers of one byte.
    pub(crate) fn numbers(&self) -> [u8; 3] {
        let release = self.version.split('-').next().unwrap_or_default();
        let mut parts = release.split('.').map(|part| part.parse().unwrap_or(0));
        [(); 3].map(|()| parts.next().unwrap_or(0))
    }
}

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// Two buttons.
    NanoX,
    /// Two buttons.
    NanoSPlus,
    /// A touch screen.
    Stax,
    /// A touch screen.
    Flex,
}

impl Hardware {
    /// The device that an app was built for, by the name that its ELF gives it.
    pub(crate) fn of_target(target: &str) -> Option<Self> {
        match target {
            "nanox" => Some(Hardware::NanoX),
            "nanosp" | "nanos2" => Some(Hardware::NanoSPlus),
            "stax" => Some(Hardware::Stax),
            "flex" => Some(Hardware::Flex),
            _ => None,
        }
    }

    /// The longest personal message in bytes that the Ethereum app was seen to take on it,
    /// as the first one after its start: printable text, on a Nano S Plus with 1.23.0-dev
    /// and on a Flex with 1.22.0-dev. On the others nobody has measured it; the lower figure
    /// stands for them.
    pub fn longest_message(self) -> usize {
        match self {
            Hardware::Flex => 13_368,
            _ => 9_012,
        }
    }

    /// The size of its touch screen in pixels, if it has one.
    pub(crate) fn touch_screen(self) -> Option<(u32, u32)> {
        match self {
            Hardware::NanoX | Hardware::NanoSPlus => None,
            Hardware::Stax => Some((400, 672)),
            Hardware::Flex => Some((480, 600)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_states_its_version_without_what_follows_it() {
        assert_eq!(Configuration::flex().numbers(), [1, 22, 0]);
        assert_eq!(Configuration::before_eip_1024().numbers(), [1, 9, 17]);
    }
}
