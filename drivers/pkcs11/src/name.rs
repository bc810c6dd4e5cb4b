//! What tokens are called, by what they say of themselves.

use claviger_token::TokenId;
use cryptoki::slot::TokenInfo as CkTokenInfo;

use crate::quirks::{Quirks, is_blank};
use crate::uri;

/// The name of a token, by what it says of itself.
pub(crate) fn token_id(token: &CkTokenInfo, quirks: &Quirks) -> TokenId {
    named(token, telling_serial(token, quirks))
}

/// The names that earlier versions gave a token.
pub(crate) fn former_ids(token: &CkTokenInfo, quirks: &Quirks) -> Vec<TokenId> {
    let serial = token.serial_number();
    let had_no_label = !quirks.unique_serial && !is_blank(serial) && !token.label().is_empty();
    had_no_label
        .then(|| named(token, serial.into()))
        .into_iter()
        .collect()
}

fn named(token: &CkTokenInfo, serial: String) -> TokenId {
    TokenId {
        kind: uri::SCHEME.into(),
        manufacturer: token.manufacturer_id().into(),
        serial,
    }
}

/// Whether two tokens have one name and one label.
pub(crate) fn are_twins(one: &CkTokenInfo, other: &CkTokenInfo) -> bool {
    one.label() == other.label()
        && one.serial_number() == other.serial_number()
        && one.manufacturer_id() == other.manufacturer_id()
}

fn telling_serial(token: &CkTokenInfo, quirks: &Quirks) -> String {
    serial_and_label(token.serial_number(), token.label(), quirks.unique_serial)
}

/// The serial, or where that tells nothing, as with all tokens of tpm2-pkcs11, NSS and
/// opencryptoki, `SERIAL/LABEL`.
fn serial_and_label(serial: &str, label: &str, is_unique: bool) -> String {
    match is_unique && !is_blank(serial) || label.is_empty() {
        true => serial.into(),
        false => format!("{}/{label}", serial.trim_matches([' ', '\0'])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_that_tells_nothing_is_told_apart_by_the_label() {
        for (serial, label, unique, told) in [
            ("0a1b", "label", true, "0a1b"),
            ("0000000000000000", "label", true, "0000000000000000/label"),
            ("", "label", true, "/label"),
            ("\0\0 ", "a/b", true, "/a/b"),
            ("0000", "", true, "0000"),
            ("", "", true, ""),
            ("123", "label", false, "123/label"),
            ("123", "", false, "123"),
        ] {
            assert_eq!(serial_and_label(serial, label, unique), told);
        }
    }
}
