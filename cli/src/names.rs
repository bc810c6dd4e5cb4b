//! Names that look alike.

use claviger_engine::{Registry, RegistryError};
use unicode_normalization::UnicodeNormalization;

use crate::output;

// What each character looks like that looks like others, in order; made by `build.rs`.
include!(concat!(env!("OUT_DIR"), "/looks.rs"));

/// Says so where a new name looks like one that there is: what is meant for the one would go
/// to the other (UTS #39 §4, confusable detection).
pub(crate) fn warn_of_lookalikes(registry: &Registry, name: &str) -> Result<(), RegistryError> {
    let identities = registry.identities()?.into_iter().map(|(who, _)| who.name);
    let contacts = registry.contacts()?.into_iter().map(|contact| contact.name);
    if let Some(other) = identities
        .chain(contacts)
        .find(|known| looks_like(known, name))
    {
        output::warn(
            &format!("`{name}` looks like `{other}`, and is another name"),
            "compare them letter by letter: `claviger identities` and `claviger contact list` \
             list the names",
        );
    }
    Ok(())
}

fn looks_like(known: &str, name: &str) -> bool {
    // What differs in case alone looks different enough only to those who look.
    let picture = |text: &str| picture(&text.to_lowercase());
    known != name && picture(known) == picture(name)
}

/// How a text looks (its skeleton, UTS #39 §4): what looks the same has the same.
fn picture(text: &str) -> String {
    let mut seen = String::new();
    for one in text.nfd() {
        match look_of(one) {
            Some(look) => seen.push_str(look),
            None => seen.push(one),
        }
    }
    seen.nfd().collect()
}

fn look_of(one: char) -> Option<&'static str> {
    let at = CHARS.binary_search(&one).ok()?;
    let begin = at.checked_sub(1).map_or(0, |before| ENDS[before]);
    LOOKS.get(begin.into()..ENDS[at].into())
}

#[cfg(test)]
mod tests {
    use unicode_security::confusable_detection::skeleton;

    use super::*;

    #[test]
    fn each_character_looks_as_unicode_has_it() {
        // Of the last planes, which nothing but private use is in, one in a hundred.
        let rest = ('\u{40000}'..=char::MAX).step_by(100);
        let special = '\u{e0000}'..='\u{e0fff}';
        for one in ('\0'..='\u{3ffff}').chain(special).chain(rest) {
            let mut text = [0; 4];
            let text = one.encode_utf8(&mut text);
            if text.nfd().all(|part| look_of(part).is_none()) {
                assert!(skeleton(text).eq(text.nfd()), "{one:?}");
                continue;
            }
            // Also beside a mark that is put in order with those that it looks like.
            for text in [text.to_owned(), format!("{one}\u{323}a\u{307}{one}")] {
                assert!(skeleton(&text).eq(picture(&text).chars()), "{one:?}");
            }
        }
    }

    #[test]
    fn names_that_look_alike_are_told() {
        for (one, other) in [
            ("alice", "\u{430}lice"),
            ("paypal", "p\u{430}yp\u{430}l"),
            ("alice", "Alice"),
            ("bank", "b\u{251}nk"),
        ] {
            assert!(looks_like(one, other), "{one} {other}");
        }
        for (one, other) in [("alice", "alice"), ("alice", "bob"), ("a1", "a2")] {
            assert!(!looks_like(one, other), "{one} {other}");
        }
    }
}
