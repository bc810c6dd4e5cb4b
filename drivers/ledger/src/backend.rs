//! Backend strings: `ledger:[serial=HEX][;account=N][;tcp=HOST:PORT]`.

use claviger_token::{Error, backend};

use crate::slot::parse_account;

/// The scheme of the backend strings.
pub(crate) const SCHEME: &str = "ledger";

/// A backend string, parsed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Backend {
    /// The token's serial, as it is listed.
    pub(crate) serial: Option<String>,
    /// For the keys that are generated.
    pub(crate) account: Option<u32>,
    /// Where an emulator answers, instead of devices on USB.
    pub(crate) tcp: Option<String>,
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
                "account" => {
                    backend.account = Some(parse_account(value).ok_or_else(|| bad(ACCOUNT))?);
                }
                "tcp" => backend.tcp = Some(address(value).ok_or_else(|| bad(TCP))?),
                _ => return Err(bad("the attributes are serial, account and tcp")),
            }
        }
        Ok(backend)
    }

    /// The attribute that names an address, if there is one.
    pub(crate) fn names_more(&self) -> Option<&'static str> {
        self.tcp.as_ref().map(|_| "tcp")
    }

    /// Whether a token with this serial is meant.
    pub(crate) fn fits(&self, serial: &str) -> bool {
        self.serial.as_ref().is_none_or(|wanted| wanted == serial)
    }

    /// The string that names the token with this serial, and how to reach it.
    pub(crate) fn of(serial: &str, tcp: Option<&str>) -> String {
        let attributes = [("serial", serial), ("tcp", tcp.unwrap_or_default())];
        let attributes = attributes.iter().filter(|(_, value)| !value.is_empty());
        let attributes: Vec<String> = attributes.map(|(n, v)| format!("{n}={v}")).collect();
        format!("{SCHEME}:{}", attributes.join(";"))
    }
}

/// How many digits a serial has.
pub(crate) const SERIAL_DIGITS: usize = 16;

const SERIAL: &str = "a serial is 16 hexadecimal digits";
const ACCOUNT: &str = "an account is a number below 2147483648, without leading zeros";
const TCP: &str = "tcp is a host, a colon and a port";

fn serial(value: &str) -> Option<String> {
    let fits = value.len() == SERIAL_DIGITS && value.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| value.to_ascii_lowercase())
}

fn address(value: &str) -> Option<String> {
    let (host, port) = value.rsplit_once(':')?;
    let name = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let allowed = |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_') || name.is_some() && b == b':'
    };
    let host = name.unwrap_or(host);
    let fits = !host.is_empty() && host.len() <= 253 && host.bytes().all(allowed);
    let port = port
        .parse::<u16>()
        .is_ok_and(|number| number > 0 && number.to_string() == port);
    (fits && port).then(|| value.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_attribute_is_read() {
        let all = Backend::parse("ledger:serial=0123456789ABCDEF;account=7;tcp=[::1]:9999");
        let all = all.unwrap();
        assert_eq!(all.serial.as_deref(), Some("0123456789abcdef"));
        assert_eq!(all.account, Some(7));
        assert_eq!(all.tcp.as_deref(), Some("[::1]:9999"));
        assert_eq!(Backend::parse("ledger:").unwrap(), Backend::default());
        let tcp = Backend::parse("ledger:tcp=localhost:1").unwrap();
        assert_eq!(tcp.tcp.as_deref(), Some("localhost:1"));
        for text in [
            "ledger:",
            "ledger:tcp=a:1",
            "ledger:serial=0123456789abcdef;tcp=a:1",
        ] {
            let Backend { serial, tcp, .. } = Backend::parse(text).unwrap();
            assert_eq!(
                Backend::of(&serial.unwrap_or_default(), tcp.as_deref()),
                text
            );
        }
    }

    #[test]
    fn an_address_is_more_than_a_token() {
        let more = |text| Backend::parse(text).unwrap().names_more();
        assert_eq!(more("ledger:"), None);
        assert_eq!(more("ledger:serial=0123456789abcdef;account=7"), None);
        assert_eq!(more("ledger:account=7;tcp=localhost:1"), Some("tcp"));
    }

    #[test]
    fn nothing_else_is_accepted() {
        for text in [
            "",
            ":",
            "ledger",
            "ledgerx:",
            "piv:",
            " ledger:",
            "ledger: ",
            "ledger:;",
            "ledger:serial=0123456789abcdef;",
            "ledger:serial=",
            "ledger:serial=123",
            "ledger:serial=0123456789abcdeg",
            "ledger:serial",
            "ledger:account=1;account=1",
            "ledger:account=",
            "ledger:account=01",
            "ledger:account=+1",
            "ledger:account=-1",
            "ledger:account=2147483648",
            "ledger:slot=0/secp256k1",
            "ledger:tcp=",
            "ledger:tcp=:1",
            "ledger:tcp=host",
            "ledger:tcp=host:0",
            "ledger:tcp=host:65536",
            "ledger:tcp=::1:99",
            "ledger:tcp=a b:99",
            "ledger:path=/dev/hidraw0",
        ] {
            assert!(
                matches!(Backend::parse(text), Err(Error::BadBackend { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn an_unknown_name_is_said_before_what_follows_it() {
        let refused = Backend::parse("ledger:path=1;serial");
        let Err(Error::BadBackend { reason, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(reason, "the attributes are serial, account and tcp");
    }

    proptest! {
        #[test]
        fn no_string_panics(text: String, rest: String) {
            let _ = Backend::parse(&text);
            let _ = Backend::parse(&format!("ledger:{rest}"));
        }
    }
}
