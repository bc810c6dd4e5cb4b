//! Whom a certificate names.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use spki::ObjectIdentifier;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{Ia5String, PrintableStringRef};
use x509_cert::der::{Tag, Tagged};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;

use super::CertificateError;

/// The attributes of a subject, each with the most characters that it may have (RFC 5280, upper
/// bounds of appendix A.1; RFC 4519).
const ATTRIBUTES: [(ObjectIdentifier, usize); 13] = [
    (ObjectIdentifier::new_unwrap("2.5.4.3"), 64),  // CN
    (ObjectIdentifier::new_unwrap("2.5.4.4"), 40),  // SN
    (ObjectIdentifier::new_unwrap("2.5.4.5"), 64),  // serialNumber
    (COUNTRY, 2),                                   // C
    (ObjectIdentifier::new_unwrap("2.5.4.7"), 128), // L
    (ObjectIdentifier::new_unwrap("2.5.4.8"), 128), // ST
    (ObjectIdentifier::new_unwrap("2.5.4.9"), 128), // STREET
    (ObjectIdentifier::new_unwrap("2.5.4.10"), 64), // O
    (ObjectIdentifier::new_unwrap("2.5.4.11"), 64), // OU
    (ObjectIdentifier::new_unwrap("2.5.4.12"), 64), // title
    (ObjectIdentifier::new_unwrap("2.5.4.42"), 64), // givenName
    (
        ObjectIdentifier::new_unwrap("0.9.2342.19200300.100.1.1"),
        256,
    ), // UID
    (
        ObjectIdentifier::new_unwrap("0.9.2342.19200300.100.1.25"),
        63,
    ), // DC
];

const COUNTRY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.6");

/// A subject: at least one attribute, each of them whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject(pub(super) Name);

impl FromStr for Subject {
    type Err = CertificateError;

    /// A distinguished name as RFC 4514 writes it: `CN=alice,O=Example`.
    fn from_str(text: &str) -> Result<Self, CertificateError> {
        if text.trim().is_empty() {
            return Err(CertificateError::EmptySubject);
        }
        let bad = |reason| CertificateError::BadSubject {
            subject: shown(text),
            reason,
        };
        let name = Name::from_str(text)
            .map_err(|_| bad("it is not written as in CN=alice,O=Example (RFC 4514)"))?;
        let attributes = name.0.iter().flat_map(|part| part.0.iter());
        for attribute in attributes {
            check(attribute).map_err(bad)?;
        }
        Ok(Subject(name))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The library takes any bytes for a value, and any object that has a name for an attribute.
fn check(attribute: &AttributeTypeAndValue) -> Result<(), &'static str> {
    let known = ATTRIBUTES.iter().find(|(oid, _)| *oid == attribute.oid);
    let Some((oid, most)) = known else {
        return Err("a subject has CN, O, OU, C, ST, L, STREET, DC, UID and few others");
    };
    let text = std::str::from_utf8(attribute.value.value()).map_err(|_| "a value is not text")?;
    let of_its_kind = match attribute.value.tag() {
        Tag::Utf8String => true,
        Tag::PrintableString => PrintableStringRef::new(text).is_ok(),
        Tag::Ia5String => text.is_ascii(),
        _ => return Err("a value is not text"),
    };
    match text.chars().count() {
        0 => Err("a value is empty"),
        length if length > *most => Err("a value is too long for its attribute"),
        length if *oid == COUNTRY && length != 2 => Err("a country has two letters"),
        _ if !of_its_kind => Err("a value has characters that its attribute cannot have"),
        _ if text.chars().any(char::is_control) => Err("a value has control characters"),
        _ if text.trim() != text => Err("a value begins or ends with a space"),
        _ => Ok(()),
    }
}

/// Another name of whom a certificate names: of a host, an address, a mailbox or a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlternativeName(pub(super) GeneralName);

impl FromStr for AlternativeName {
    type Err = CertificateError;

    /// `DNS:host`, `IP:address`, `email:mailbox` or `URI:resource`; without what it is, it is told
    /// by its form.
    fn from_str(text: &str) -> Result<Self, CertificateError> {
        let parsed = match text.split_once(':') {
            Some((kind, rest)) if kind.eq_ignore_ascii_case("dns") => dns(rest),
            Some((kind, rest)) if kind.eq_ignore_ascii_case("ip") => ip(rest),
            Some((kind, rest)) if kind.eq_ignore_ascii_case("email") => email(rest),
            Some((kind, rest)) if kind.eq_ignore_ascii_case("uri") => uri(rest),
            _ if text.parse::<IpAddr>().is_ok() => ip(text),
            _ if text.contains("://") => uri(text),
            _ if text.contains('@') => email(text),
            _ => dns(text),
        };
        parsed
            .map(AlternativeName)
            .map_err(|reason| CertificateError::BadAlternativeName {
                name: shown(text),
                reason,
            })
    }
}

impl fmt::Display for AlternativeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            GeneralName::DnsName(name) => write!(f, "DNS:{name}"),
            GeneralName::Rfc822Name(name) => write!(f, "email:{name}"),
            GeneralName::UniformResourceIdentifier(name) => write!(f, "URI:{name}"),
            GeneralName::IpAddress(octets) => match address(octets.as_bytes()) {
                Some(address) => write!(f, "IP:{address}"),
                None => f.write_str("IP:?"),
            },
            GeneralName::DirectoryName(name) => write!(f, "dirName:{name}"),
            _ => f.write_str("another kind of name"),
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

type Parsed = Result<GeneralName, &'static str>;

/// RFC 5280 §4.2.1.6, RFC 1034 §3.5; also with underscores, and with `*` for the first label.
fn dns(name: &str) -> Parsed {
    if !name.is_ascii() {
        return Err("a host name is written in ASCII (xn--…)");
    }
    let is_label = |label: &str| {
        let of_label = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len())
            && label.bytes().all(of_label)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let labels = name.strip_prefix("*.").unwrap_or(name);
    if name.len() > 253 || !labels.split('.').all(is_label) {
        return Err("it is not a host name");
    }
    Ok(GeneralName::DnsName(ia5(name)?))
}

fn ip(text: &str) -> Parsed {
    let address: IpAddr = text.parse().map_err(|_| "it is not an IP address")?;
    Ok(GeneralName::from(address))
}

fn email(text: &str) -> Parsed {
    let is_it = text.rsplit_once('@').is_some_and(|(mailbox, host)| {
        !mailbox.is_empty() && is_visible(mailbox) && dns(host).is_ok()
    });
    match is_it {
        true => Ok(GeneralName::Rfc822Name(ia5(text)?)),
        false => Err("it is not a mailbox"),
    }
}

fn uri(text: &str) -> Parsed {
    let is_it = text.split_once(':').is_some_and(|(scheme, rest)| {
        let of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(of_scheme)
            && !rest.is_empty()
            && is_visible(rest)
    });
    match is_it {
        true => Ok(GeneralName::UniformResourceIdentifier(ia5(text)?)),
        false => Err("it is not a URI"),
    }
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn ia5(text: &str) -> Result<Ia5String, &'static str> {
    Ia5String::new(text).map_err(|_| "it is not ASCII, or too long")
}

/// What an error repeats of a text.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(80).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_names_somebody_by_attributes_that_subjects_have() {
        for text in [
            "CN=alice",
            "CN=alice,O=Example",
            "CN=Ada Lovelace+UID=ada,OU=Engines,O=Example\\, Inc.,C=GB",
            "CN=Ünal,DC=example,DC=org",
        ] {
            let subject: Subject = text.parse().unwrap();
            assert_eq!(subject.to_string().parse(), Ok(subject), "{text}");
        }
        for text in ["", "  "] {
            assert_eq!(text.parse::<Subject>(), Err(CertificateError::EmptySubject));
        }
        for text in [
            "alice",
            "/CN=alice",
            "CN=",
            "CN=alice,",
            "CN=alice, O=Example",
            "FOO=alice",
            // It has an object identifier, and is nothing that a subject has.
            "rsaEncryption=alice",
            "C=GBR",
            "C=ü",
            "CN=\\ff",
            "CN=a\\00b",
            "CN=#0c0161ff",
            "CN= alice",
        ] {
            let code = text.parse::<Subject>().unwrap_err().code();
            assert_eq!(code, "certificate-bad-subject", "{text}");
        }
        let long = format!("CN={}", "x".repeat(65));
        assert!(long.parse::<Subject>().is_err());
        assert!(long[..67].parse::<Subject>().is_ok());
    }

    #[test]
    fn an_alternative_name_is_told_by_its_form_or_by_what_it_says_it_is() {
        for (text, shown) in [
            ("alice.example", "DNS:alice.example"),
            ("DNS:alice.example", "DNS:alice.example"),
            ("*.example", "DNS:*.example"),
            ("localhost", "DNS:localhost"),
            ("127.0.0.1", "IP:127.0.0.1"),
            ("IP:::1", "IP:::1"),
            ("::1", "IP:::1"),
            ("alice@example.org", "email:alice@example.org"),
            ("https://example.org/alice", "URI:https://example.org/alice"),
            ("URI:urn:x:y", "URI:urn:x:y"),
        ] {
            let name: AlternativeName = text.parse().unwrap();
            assert_eq!(name.to_string(), shown, "{text}");
        }
        for text in [
            "",
            "DNS:",
            "a b",
            "-a",
            "a..b",
            "*",
            "a.*.b",
            "älice.example",
            "IP:alice",
            "IP:1.2.3",
            "email:alice",
            "@example.org",
            "URI:",
            "URI:nothing",
            "a\nb",
        ] {
            let code = text.parse::<AlternativeName>().unwrap_err().code();
            assert_eq!(code, "certificate-bad-name", "{text:?}");
        }
    }
}
