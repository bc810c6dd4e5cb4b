//! Names that look alike.

use claviger_engine::{Registry, RegistryError};
use unicode_security::confusable_detection::skeleton;

use crate::output;

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
    let picture = |text: &str| skeleton(&text.to_lowercase()).collect::<String>();
    known != name && picture(known) == picture(name)
}

#[cfg(test)]
mod tests {
    use super::*;

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
