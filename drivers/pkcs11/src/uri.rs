//! PKCS#11 URIs (RFC 7512): parsing and writing.
//!
//! The parser is strict, since a misread URI selects the wrong token. It refuses, with a reason,
//! what the grammar does not allow, and attributes that are not in the standard. Attributes whose
//! names begin with `x-` belong to vendors and are ignored, except p11-kit's
//! [`x-init-reserved`](Uri::init_reserved).

use std::fmt;
use std::path::PathBuf;

use claviger_token::{Error, StoredPin};

/// A parsed PKCS#11 URI (RFC 7512 §2.3). An absent attribute matches everything.
///
/// [`fmt::Display`] writes the URI with everything escaped that must be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Uri {
    /// `token`: the token's label.
    pub token: Option<String>,
    /// `manufacturer`: the token's manufacturer.
    pub manufacturer: Option<String>,
    /// `model`: the token's model.
    pub model: Option<String>,
    /// `serial`: the token's serial number.
    pub serial: Option<String>,
    /// `library-manufacturer`.
    pub library_manufacturer: Option<String>,
    /// `library-description`.
    pub library_description: Option<String>,
    /// `library-version`: major and minor.
    pub library_version: Option<(u8, u8)>,
    /// `slot-id`: the module's number for a slot. It is parsed and never written, since it changes
    /// when a token is plugged in elsewhere.
    pub slot_id: Option<u64>,
    /// `slot-description`.
    pub slot_description: Option<String>,
    /// `slot-manufacturer`.
    pub slot_manufacturer: Option<String>,
    /// `id`: the `CKA_ID` of an object.
    pub id: Option<Vec<u8>>,
    /// `object`: the label of an object.
    pub object: Option<String>,
    /// `type`: the class of an object.
    pub class: Option<Class>,
    /// `module-path`: the module's file.
    pub module_path: Option<PathBuf>,
    /// `module-name`: p11-kit's name of the module, or its file name without `lib` and `.so`.
    pub module_name: Option<String>,
    /// `pin-source`: the source of the PIN.
    pub pin_source: Option<StoredPin>,
    /// `x-init-reserved`: the reserved argument of the module's `C_Initialize`, by p11-kit's name
    /// for it (`pkcs11.conf(5)`). NSS expects its database here.
    pub init_reserved: Option<String>,
}

/// The classes of objects that `type` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `public`
    Public,
    /// `private`
    Private,
    /// `cert`
    Certificate,
    /// `secret-key`
    SecretKey,
    /// `data`
    Data,
}

impl Class {
    const NAMES: [(&'static str, Class); 5] = [
        ("public", Class::Public),
        ("private", Class::Private),
        ("cert", Class::Certificate),
        ("secret-key", Class::SecretKey),
        ("data", Class::Data),
    ];
}

/// The scheme, without its colon.
pub const SCHEME: &str = "pkcs11";

/// A longer text is not quoted in an error.
const LONGEST_SHOWN: usize = 200;

impl Uri {
    /// Parses a URI.
    ///
    /// # Errors
    /// [`Error::BadBackend`] with the reason. A URI with a `pin-value` is refused and not quoted in
    /// the error.
    pub fn parse(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|reason| Error::BadBackend {
            backend: match text.contains("pin-value") {
                true => format!("{SCHEME}:…"),
                false => text.chars().take(LONGEST_SHOWN).collect(),
            },
            reason,
        })
    }
}

impl Uri {
    /// The first attribute that names a file, an argument of a module, or the source of a PIN.
    /// `module-name` is none of them: it chooses among the modules that are configured, all of
    /// which are loaded where it is absent.
    pub(crate) fn names_more(&self) -> Option<&'static str> {
        let named = [
            ("module-path", self.module_path.is_some()),
            ("pin-source", self.pin_source.is_some()),
            ("x-init-reserved", self.init_reserved.is_some()),
        ];
        let mut named = named.into_iter();
        named.find_map(|(name, is_there)| is_there.then_some(name))
    }
}

fn parse(text: &str) -> Result<Uri, String> {
    let rest = text
        .strip_prefix(SCHEME)
        .and_then(|rest| rest.strip_prefix(':'))
        .ok_or("it does not begin with pkcs11:")?;
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    let mut uri = Uri::default();
    let mut seen = Vec::new();
    for part in path.split(';').filter(|_| !path.is_empty()) {
        let (name, value) = attribute(part, &mut seen, b"&")?;
        uri.set_path(name, value)?;
    }
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        for part in query.split('&') {
            let (name, value) = attribute(part, &mut seen, b"/?|")?;
            uri.set_query(name, value)?;
        }
    }
    Ok(uri)
}

/// Splits `name=value` and decodes the value.
fn attribute<'a>(
    part: &'a str,
    seen: &mut Vec<&'a str>,
    extra: &[u8],
) -> Result<(&'a str, Vec<u8>), String> {
    let (name, value) = part.split_once('=').ok_or_else(|| {
        if part.is_empty() {
            "an attribute is empty".to_owned()
        } else {
            format!("`{part}` is not name=value")
        }
    })?;
    let named = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.is_empty() || !name.bytes().all(named) {
        return Err(format!("`{name}` is not the name of an attribute"));
    }
    if seen.contains(&name) {
        return Err(format!("`{name}` is given twice"));
    }
    seen.push(name);
    let value = decode(value, extra).map_err(|reason| format!("`{name}` {reason}"))?;
    Ok((name, value))
}

/// Characters that need no escape anywhere: `unreserved` and `pk11-res-avail`
/// (RFC 7512 §2.3).
fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]@!$'()*+,=".contains(&byte)
}

fn decode(text: &str, extra: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = text.bytes();
    let mut value = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
            let (Some(high), Some(low)) = (digit(), digit()) else {
                return Err("has a % without two hexadecimal digits after it".into());
            };
            value.push((high * 16 + low) as u8);
        } else if plain(byte) || extra.contains(&byte) {
            value.push(byte);
        } else {
            return Err(format!(
                "has a character that must be written as %{byte:02X}"
            ));
        }
    }
    Ok(value)
}

fn text(name: &str, value: Vec<u8>) -> Result<Option<String>, String> {
    String::from_utf8(value)
        .map(Some)
        .map_err(|_| format!("`{name}` is not UTF-8"))
}

impl Uri {
    fn set_path(&mut self, name: &str, value: Vec<u8>) -> Result<(), String> {
        match name {
            "token" => self.token = text(name, value)?,
            "manufacturer" => self.manufacturer = text(name, value)?,
            "model" => self.model = text(name, value)?,
            "serial" => self.serial = text(name, value)?,
            "library-manufacturer" => self.library_manufacturer = text(name, value)?,
            "library-description" => self.library_description = text(name, value)?,
            "library-version" => {
                let version = text(name, value)?.and_then(|v| parse_version(&v));
                self.library_version = Some(version.ok_or("`library-version` is not like 2.6")?);
            }
            "slot-id" => {
                let number = text(name, value)?.filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
                let number = number.and_then(|v| v.parse().ok());
                self.slot_id = Some(number.ok_or("`slot-id` is not a number")?);
            }
            "slot-description" => self.slot_description = text(name, value)?,
            "slot-manufacturer" => self.slot_manufacturer = text(name, value)?,
            "id" => self.id = Some(value),
            "object" => self.object = text(name, value)?,
            "type" => {
                let class = Class::NAMES.iter().find(|(n, _)| n.as_bytes() == value);
                let (_, class) =
                    class.ok_or("`type` is not public, private, cert, secret-key or data")?;
                self.class = Some(*class);
            }
            "x-init-reserved" => {
                return Err("`x-init-reserved` belongs after the question mark".into());
            }
            _ => return unknown(name),
        }
        Ok(())
    }

    fn set_query(&mut self, name: &str, value: Vec<u8>) -> Result<(), String> {
        match name {
            "module-path" => {
                let path = text(name, value)?.filter(|p| p.starts_with('/'));
                self.module_path =
                    Some(path.ok_or("`module-path` is not an absolute path")?.into());
            }
            "module-name" => {
                let module = text(name, value)?.filter(|n| !n.is_empty() && !n.contains('/'));
                self.module_name = Some(module.ok_or("`module-name` is not the name of a file")?);
            }
            "pin-source" => {
                let source = text(name, value)?.and_then(|s| s.parse().ok());
                self.pin_source =
                    Some(source.ok_or("`pin-source` is not env:VAR, file:PATH or fd:N")?);
            }
            "x-init-reserved" => {
                let argument = text(name, value)?.filter(|text| !text.contains('\0'));
                self.init_reserved =
                    Some(argument.ok_or("`x-init-reserved` contains a zero byte")?);
            }
            "pin-value" => {
                return Err(
                    "`pin-value` shows the PIN to everyone who sees the URI (shell history, \
                     process list, registry)"
                        .into(),
                );
            }
            _ => return unknown(name),
        }
        Ok(())
    }
}

fn unknown(name: &str) -> Result<(), String> {
    match name.starts_with("x-") {
        true => Ok(()),
        false => Err(format!("`{name}` is not an attribute of RFC 7512")),
    }
}

fn parse_version(text: &str) -> Option<(u8, u8)> {
    let number = |s: &str| match s.bytes().all(|b| b.is_ascii_digit()) {
        true => s.parse().ok(),
        false => None,
    };
    match text.split_once('.') {
        Some((major, minor)) => Some((number(major)?, number(minor)?)),
        None => Some((number(text)?, 0)),
    }
}

fn escape(value: &[u8], extra: &[u8]) -> String {
    use fmt::Write as _;
    value.iter().fold(String::new(), |mut out, &byte| {
        if plain(byte) || extra.contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.library_version.map(|(a, b)| format!("{a}.{b}"));
        let slot_id = self.slot_id.map(|id| id.to_string());
        let class = self.class.and_then(|class| {
            let entry = Class::NAMES.iter().find(|(_, c)| *c == class);
            entry.map(|(name, _)| (*name).to_owned())
        });
        let path = [
            ("manufacturer", &self.manufacturer),
            ("model", &self.model),
            ("serial", &self.serial),
            ("token", &self.token),
            ("library-manufacturer", &self.library_manufacturer),
            ("library-description", &self.library_description),
            ("library-version", &version),
            ("slot-id", &slot_id),
            ("slot-description", &self.slot_description),
            ("slot-manufacturer", &self.slot_manufacturer),
            ("object", &self.object),
            ("type", &class),
        ];
        let mut attributes: Vec<String> = path
            .iter()
            .filter_map(|(name, value)| Some((name, value.as_ref()?)))
            .map(|(name, value)| format!("{name}={}", escape(value.as_bytes(), b"&")))
            .collect();
        if let Some(id) = &self.id {
            // All of it is escaped, as RFC 7512 §2.3 recommends.
            let id: String = id.iter().map(|byte| format!("%{byte:02X}")).collect();
            attributes.push(format!("id={id}"));
        }
        write!(f, "{SCHEME}:{}", attributes.join(";"))?;
        let query = [
            (
                "module-path",
                self.module_path.as_ref().map(|p| p.display().to_string()),
            ),
            ("module-name", self.module_name.clone()),
            (
                "pin-source",
                self.pin_source.as_ref().map(StoredPin::to_string),
            ),
            ("x-init-reserved", self.init_reserved.clone()),
        ];
        let query: Vec<String> = query
            .iter()
            .filter_map(|(name, value)| Some((name, value.as_ref()?)))
            .map(|(name, value)| format!("{name}={}", escape(value.as_bytes(), b"/?|")))
            .collect();
        if !query.is_empty() {
            write!(f, "?{}", query.join("&"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bare_scheme_fits_everything() {
        assert_eq!(Uri::parse("pkcs11:").unwrap(), Uri::default());
        assert_eq!(Uri::parse("pkcs11:?").unwrap(), Uri::default());
    }

    #[test]
    fn attributes_are_decoded() {
        let uri = Uri::parse(
            "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;\
             model=1.0;serial=0a;object=my-certificate;type=cert;id=%69%95%3E%00;\
             library-version=3.11;slot-id=327;x-vendor=anything\
             ?module-path=/usr/lib/x.so&pin-source=file:/etc/token&x-muppet=cookie",
        )
        .unwrap();
        assert_eq!(uri.token.as_deref(), Some("The Software PKCS#11 Softtoken"));
        assert_eq!(uri.manufacturer.as_deref(), Some("Snake Oil, Inc."));
        assert_eq!(uri.id, Some(vec![0x69, 0x95, 0x3e, 0]));
        assert_eq!(uri.class, Some(Class::Certificate));
        assert_eq!(uri.library_version, Some((3, 11)));
        assert_eq!(uri.slot_id, Some(327));
        assert_eq!(uri.module_path, Some("/usr/lib/x.so".into()));
        assert_eq!(uri.pin_source, Some(StoredPin::File("/etc/token".into())));
    }

    #[test]
    fn a_written_uri_reads_back_as_the_same() {
        for text in [
            "pkcs11:",
            "pkcs11:manufacturer=a%3Bb;serial=%25;token=%C3%A9%20%2F%3F%23%26",
            "pkcs11:library-description=d;library-version=2.6;slot-id=0;object=o;type=secret-key;id=%00%FF",
            "pkcs11:?module-path=/a%26b/c.so&module-name=p&pin-source=env:PIN",
            "pkcs11:?module-path=/a.so&x-init-reserved=configDir='sql:/d'%20flags=readOnly",
        ] {
            let uri = Uri::parse(text).unwrap();
            assert_eq!(Uri::parse(&uri.to_string()).unwrap(), uri, "{text}");
        }
        assert_eq!(
            Uri::parse("pkcs11:token=a;serial=1?module-path=/l.so")
                .unwrap()
                .to_string(),
            "pkcs11:serial=1;token=a?module-path=/l.so"
        );
    }

    #[test]
    fn what_the_grammar_forbids_is_refused() {
        for text in [
            "",
            "pkcs11",
            "PIV:",
            "pkcs11:token",
            "pkcs11:token=a;",
            "pkcs11:;token=a",
            "pkcs11:token=a;token=b",
            "pkcs11:token=a?module-path=/a&module-path=/b",
            "pkcs11:token=%",
            "pkcs11:token=%4",
            "pkcs11:token=%4g",
            "pkcs11:token=%+4",
            "pkcs11:token=%FF",
            "pkcs11:token=a b",
            "pkcs11:token=é",
            "pkcs11:tokne=a",
            "pkcs11:=a",
            "pkcs11:type=key",
            "pkcs11:slot-id=+1",
            "pkcs11:slot-id=",
            "pkcs11:slot-id=99999999999999999999999",
            "pkcs11:library-version=1.2.3",
            "pkcs11:library-version=300",
            "pkcs11:module-path=/a",
            "pkcs11:?token=a",
            "pkcs11:?module-path=a.so",
            "pkcs11:?module-path=",
            "pkcs11:?module-name=a/b",
            "pkcs11:?pin-source=1234",
            "pkcs11:?x-init-reserved=a%00b",
            "pkcs11:x-init-reserved=a",
            "pkcs11:?&",
        ] {
            assert!(
                matches!(Uri::parse(text), Err(Error::BadBackend { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn files_arguments_and_sources_of_pins_are_more_than_a_token() {
        for (text, more) in [
            ("pkcs11:", None),
            (
                "pkcs11:manufacturer=m;model=o;serial=1;token=t;library-manufacturer=l;\
                 library-description=d;library-version=1;slot-id=1;slot-description=s;\
                 slot-manufacturer=m;id=%01;object=o;type=private;x-vendor=v\
                 ?module-name=softhsm2&x-vendor2=v",
                None,
            ),
            ("pkcs11:?module-path=/a.so", Some("module-path")),
            ("pkcs11:?module%2Dpath=/a.so", None),
            ("pkcs11:token=t?pin-source=env:PIN", Some("pin-source")),
            ("pkcs11:?pin-source=file:/pin", Some("pin-source")),
            ("pkcs11:?pin-source=fd:3", Some("pin-source")),
            ("pkcs11:?x-init-reserved=", Some("x-init-reserved")),
            (
                "pkcs11:?module-name=n&module-path=%2Fa.so",
                Some("module-path"),
            ),
        ] {
            // What is written differently is no attribute at all.
            let found = Uri::parse(text).map_or(None, |uri| uri.names_more());
            assert_eq!(found, more, "{text}");
        }
        assert!(Uri::parse("pkcs11:?module%2Dpath=/a.so").is_err());
    }

    #[test]
    fn a_pin_in_the_uri_is_refused_and_not_repeated() {
        for text in [
            "pkcs11:token=a?pin-value=tr0mb0ne",
            "pkcs11:token=a?pin-value=tr0mb0ne%",
        ] {
            let error = Uri::parse(text).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("pin-"), "{shown}");
            assert!(!shown.contains("tr0mb0ne"), "{shown}");
        }
    }
}
