//! Backend strings, `scheme:name=value;name=value`, and the one token that such a string names.

use crate::Error;

/// How much of a string an error shows, in characters.
const SHOWN: usize = 80;

/// The scheme and the rest of a backend string.
///
/// # Errors
/// [`Error::BadBackend`] where there is no scheme.
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

/// The attributes of a backend string of this scheme, `name=value` with `;` between them, in
/// their order and no name twice. Which names there are, and what their values may be, the
/// driver knows.
///
/// # Errors
/// [`Error::BadBackend`] where it has another scheme or is written in another way.
pub fn attributes<'a>(scheme: &str, backend: &'a str) -> Result<Vec<(&'a str, &'a str)>, Error> {
    let (own, rest) = split(backend)?;
    if own != scheme {
        return Err(bad(backend, &format!("it does not begin with {scheme}:")));
    }
    let mut attributes: Vec<(&str, &str)> = Vec::new();
    for attribute in rest.split(';').filter(|_| !rest.is_empty()) {
        let (name, value) = attribute
            .split_once('=')
            .ok_or_else(|| bad(backend, "an attribute is a name, = and a value"))?;
        if attributes.iter().any(|(earlier, _)| *earlier == name) {
            return Err(bad(backend, "an attribute is there twice"));
        }
        attributes.push((name, value));
    }
    Ok(attributes)
}

/// The error for a backend string that cannot be used, for `reason`.
pub fn bad(backend: &str, reason: &str) -> Error {
    Error::BadBackend {
        backend: backend.chars().take(SHOWN).collect(),
        reason: reason.into(),
    }
}

/// The only one of those that fit `backend`; `None` where none does, of which the driver
/// knows why. `names` are backend strings that tell them apart.
///
/// # Errors
/// [`Error::AmbiguousToken`] where several fit.
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
    use super::*;

    #[test]
    fn attributes_come_in_their_order_and_once() {
        let all = attributes("piv", "piv:serial=1;slot=9c").unwrap();
        assert_eq!(all, [("serial", "1"), ("slot", "9c")]);
        assert_eq!(attributes("piv", "piv:").unwrap(), []);
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
            let refused = attributes("piv", text);
            assert!(matches!(refused, Err(Error::BadBackend { .. })), "{text}");
        }
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
