//! Backend strings: `piv:[serial=N][;slot=9c][;pin-policy=…][;touch-policy=…]`.

use claviger_token::{Error, backend};

use crate::policy::{PinPolicy, Policies, TouchPolicy};
use crate::slot::Slot;

/// The scheme of the backend strings.
pub(crate) const SCHEME: &str = "piv";

/// A backend string, parsed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Backend {
    /// The token's serial, as it is listed.
    pub(crate) serial: Option<String>,
    pub(crate) slot: Option<Slot>,
    /// For the keys that are generated.
    pub(crate) policies: Policies,
}

impl Backend {
    /// Parses strictly: every attribute is known, is there once and has a value.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let bad = |reason: &str| backend::bad(text, reason);
        let mut backend = Backend::default();
        for attribute in backend::attributes(SCHEME, text)? {
            let (name, value) = attribute?;
            match name {
                "serial" => backend.serial = Some(serial(value).ok_or_else(|| bad(SERIAL))?),
                "slot" => {
                    let slot = Slot::parse(&value.to_ascii_lowercase());
                    backend.slot = Some(slot.ok_or_else(|| bad(SLOT))?);
                }
                "pin-policy" => {
                    let policy = PinPolicy::parse(value);
                    backend.policies.pin = Some(policy.ok_or_else(|| bad(PIN_POLICY))?);
                }
                "touch-policy" => {
                    let policy = TouchPolicy::parse(value);
                    backend.policies.touch = Some(policy.ok_or_else(|| bad(TOUCH_POLICY))?);
                }
                _ => {
                    return Err(bad(
                        "the attributes are serial, slot, pin-policy and touch-policy",
                    ));
                }
            }
        }
        Ok(backend)
    }

    /// The string that names the token with this serial.
    pub(crate) fn for_serial(serial: &str) -> String {
        format!("{SCHEME}:serial={serial}")
    }
}

const SERIAL: &str = "a serial is a number, or the hexadecimal identifier of a card without one";
const SLOT: &str = "a slot is 9a, 9c, 9d, 9e or 82 to 95";
const PIN_POLICY: &str = "a PIN policy is never, once or always";
const TOUCH_POLICY: &str = "a touch policy is never, always or cached";

/// A GUID has 32 digits, and nothing is longer.
const LONGEST_SERIAL: usize = 64;

fn serial(value: &str) -> Option<String> {
    let fits = !value.is_empty()
        && value.len() <= LONGEST_SERIAL
        && value.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| value.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_attribute_is_read() {
        let all = Backend::parse("piv:serial=123;slot=9c;pin-policy=always;touch-policy=cached");
        let all = all.unwrap();
        assert_eq!(all.serial.as_deref(), Some("123"));
        assert_eq!(all.slot, Slot::parse("9c"));
        assert_eq!(all.policies.pin, Some(PinPolicy::Always));
        assert_eq!(all.policies.touch, Some(TouchPolicy::Cached));
        assert_eq!(Backend::parse("piv:").unwrap(), Backend::default());
        assert_eq!(Backend::parse("piv:slot=82").unwrap().serial, None);
        let upper = Backend::parse("piv:slot=9C").unwrap();
        assert_eq!(upper.slot, Slot::parse("9c"));
    }

    #[test]
    fn nothing_else_is_accepted() {
        for text in [
            "",
            ":",
            "piv",
            "pivx:",
            "pkcs11:",
            " piv:",
            "piv: ",
            "piv:;",
            "piv:serial=1;",
            "piv:serial=",
            "piv:serial=%",
            "piv:serial",
            "piv:serial=1;serial=1",
            "piv:slot=9b",
            "piv:slot=9G",
            "piv:pin-policy=x",
            "piv:reader=x",
            "piv:serial=g1",
        ] {
            assert!(
                matches!(Backend::parse(text), Err(Error::BadBackend { .. })),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_string_panics(text: String, rest: String) {
            let _ = Backend::parse(&text);
            let _ = Backend::parse(&format!("piv:{rest}"));
        }
    }
}
