//! Backend strings, `scheme:name=value;name=value`, and the one token that such a string names.

use std::collections::HashSet;

use crate::Error;

/// The part of a string that an error shows, in characters.
const SHOWN: usize = 80;

/// The scheme and the rest of a backend string.
///
/// # Errors
/// [`Error::BadBackend`] if there is no scheme.
pub fn split(backend: &str) -> Result<(&str, &str), Error> {
    match backend.split_once(':') {
        Some((scheme, rest))
            if !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric()) =>
        {
            Ok((scheme, rest))
        }
        _ => Err(bad(backend, "it does not begin with a scheme and a colon")),
    }
}

/// The attributes of a backend string of this scheme, `name=value` separated by `;`, in order. The
/// driver knows the names and values, and refuses the first attribute that it does not know.
///
/// An item is [`Error::BadBackend`] if the attribute is malformed, or its name appeared before.
///
/// # Errors
/// [`Error::BadBackend`] if the string has another scheme.
pub fn attributes<'a>(
    scheme: &str,
    backend: &'a str,
) -> Result<impl Iterator<Item = Result<(&'a str, &'a str), Error>>, Error> {
    let rest = of_scheme(scheme, backend)?;
    let mut names = HashSet::new();
    let attributes = rest.split(';').filter(|_| !rest.is_empty());
    Ok(attributes.map(move |attribute| {
        let (name, value) = attribute
            .split_once('=')
            .ok_or_else(|| bad(backend, "an attribute is not of the form NAME=VALUE"))?;
        match names.insert(name) {
            true => Ok((name, value)),
            false => Err(bad(backend, "an attribute is given twice")),
        }
    }))
}

/// What follows the colon in a backend string of this scheme.
///
/// # Errors
/// [`Error::BadBackend`] if it has another scheme.
pub fn of_scheme<'a>(scheme: &str, backend: &'a str) -> Result<&'a str, Error> {
    match split(backend)? {
        (own, rest) if own == scheme => Ok(rest),
        _ => Err(bad(backend, &format!("it does not begin with {scheme}:"))),
    }
}

/// The error for an invalid backend string.
pub fn bad(backend: &str, reason: &str) -> Error {
    Error::BadBackend {
        backend: backend.chars().take(SHOWN).collect(),
        reason: reason.into(),
    }
}

/// The only one that matches `backend`; `None` if there is none. `names` returns a backend string
/// for each candidate.
///
/// # Errors
/// [`Error::AmbiguousToken`] if several match.
pub fn the_one<T>(
    backend: &str,
    mut fitting: Vec<T>,
    names: impl FnOnce(&[T]) -> Vec<String>,
) -> Result<Option<T>, Error> {
    match fitting.len() {
        0 | 1 => Ok(fitting.pop()),
        _ => Err(Error::AmbiguousToken {
            wanted: backend.into(),
            candidates: names(&fitting),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn all<'a>(scheme: &str, backend: &'a str) -> Result<Vec<(&'a str, &'a str)>, Error> {
        attributes(scheme, backend)?.collect()
    }

    #[test]
    fn attributes_come_in_their_order_and_once() {
        let two = all("piv", "piv:serial=1;slot=9c").unwrap();
        assert_eq!(two, [("serial", "1"), ("slot", "9c")]);
        assert_eq!(all("piv", "piv:").unwrap(), []);
        for text in [
            "",
            ":",
            "piv",
            "pivx:",
            " piv:",
            "piv:;",
            "piv:a",
            "piv:a=1;",
            "piv:a=1;a=1",
        ] {
            let refused = all("piv", text);
            assert!(matches!(refused, Err(Error::BadBackend { .. })), "{text}");
        }
    }

    #[test]
    fn an_attribute_is_given_out_before_what_follows_is_looked_at() {
        let mut attributes = attributes("piv", "piv:colour=red;;slot").unwrap();
        assert_eq!(attributes.next().unwrap().unwrap(), ("colour", "red"));
        attributes.next().unwrap().unwrap_err();
    }

    #[test]
    fn as_many_attributes_as_anybody_writes_take_no_long_time() {
        let many: Vec<String> = (0..200_000).map(|number| format!("{number}=")).collect();
        let backend = format!("piv:{}", many.join(";"));
        let begun = Instant::now();
        assert_eq!(all("piv", &backend).unwrap().len(), 200_000);
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn of_several_none_is_taken() {
        let names = |all: &[u8]| all.iter().map(u8::to_string).collect();
        assert_eq!(the_one("piv:", vec![], names).unwrap(), None);
        assert_eq!(the_one("piv:", vec![1], names).unwrap(), Some(1));
        let refused = the_one("piv:", vec![1, 2], names);
        let Err(Error::AmbiguousToken { candidates, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(candidates, ["1", "2"]);
    }
}
