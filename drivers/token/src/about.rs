//! What a driver says of itself to people: front-ends, help and diagnostics use it, and have no
//! texts of their own for a kind of token.

use crate::usb::UsbFamily;

/// What a driver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct About {
    /// The scheme of the backend strings that it serves, such as `pkcs11`.
    pub scheme: &'static str,
    /// One token of its kind in words, with an article: `a PIV smartcard`.
    pub kind: &'static str,
    /// How its backend strings are written: `piv:[serial=NUMBER][;slot=SLOT]`.
    pub syntax: &'static str,
    /// Backend strings of each form that people use, simple ones first.
    pub examples: &'static [Example],
    /// What to do when no token is found, one step each; a verb first, no full stop.
    pub when_none: &'static [&'static str],
    /// The USB devices that are tokens of its kind.
    pub usb: &'static [UsbFamily],
}

/// A backend string, and what it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Example {
    /// The string.
    pub backend: &'static str,
    /// What it names, in a few words.
    pub names: &'static str,
}

impl About {
    /// A driver for `kind`, with the bare scheme as its only backend.
    pub const fn new(scheme: &'static str, kind: &'static str) -> Self {
        About {
            scheme,
            kind,
            syntax: "",
            examples: &[],
            when_none: &[],
            usb: &[],
        }
    }

    /// The same with how its backends are written.
    #[must_use]
    pub const fn written(mut self, syntax: &'static str, examples: &'static [Example]) -> Self {
        self.syntax = syntax;
        self.examples = examples;
        self
    }

    /// The same with what to do when no token is found.
    #[must_use]
    pub const fn when_none(mut self, steps: &'static [&'static str]) -> Self {
        self.when_none = steps;
        self
    }

    /// The same with the USB devices that are tokens of its kind.
    #[must_use]
    pub const fn usb(mut self, families: &'static [UsbFamily]) -> Self {
        self.usb = families;
        self
    }

    /// Whether `backend` has the scheme of this driver.
    pub fn serves(&self, backend: &str) -> bool {
        let scheme = backend.split(':').next();
        scheme == Some(self.scheme)
    }
}

impl Example {
    /// `backend` names this.
    pub const fn new(backend: &'static str, names: &'static str) -> Self {
        Example { backend, names }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_serves_backends_of_its_scheme_and_no_other() {
        let about = About::new("piv", "a PIV smartcard");
        assert!(about.serves("piv:") && about.serves("piv:serial=1") && about.serves("piv"));
        for other in ["", "pivot:", "pkcs11:token=piv:"] {
            assert!(!about.serves(other), "{other}");
        }
    }
}
