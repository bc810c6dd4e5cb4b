//! The little that the demo reads out of JSON.
//!
//! A person would use `jq`. It finds strings in well-formed JSON that our own command
//! or cargo wrote, and is no parser.

/// The PEM of the key whose `use` is `sign`, out of `claviger --json show`.
pub(super) fn signing_key(json: &str) -> Option<String> {
    objects(json)
        .into_iter()
        .filter(|object| string_after(object, "use").as_deref() == Some("sign"))
        .filter_map(|object| string_after(object, "public_key"))
        .map(|pem| pem.trim_end().to_owned() + "\n")
        .next()
}

/// The string that stands first behind a key of this name.
pub(super) fn string_after(json: &str, key: &str) -> Option<String> {
    let marker = format!("\"{key}\"");
    json.match_indices(&marker).find_map(|(at, _)| {
        let rest = json.get(at + marker.len()..)?.trim_start();
        let value = rest.strip_prefix(':')?.trim_start();
        unescape(value.strip_prefix('"')?)
    })
}

/// Every object, inner ones before those that hold them.
fn objects(json: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut open = Vec::new();
    let (mut in_string, mut escaped) = (false, false);
    for (at, c) in json.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            '{' if !in_string => open.push(at),
            '}' if !in_string => found.extend(open.pop().and_then(|start| json.get(start..=at))),
            _ => {}
        }
    }
    found
}

/// A JSON string from behind its opening quote to its closing one.
fn unescape(text: &str) -> Option<String> {
    let mut string = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some(string),
            '\\' => match chars.next()? {
                'n' => string.push('\n'),
                'r' => string.push('\r'),
                't' => string.push('\t'),
                'u' => {
                    let digits: String = chars.by_ref().take(4).collect();
                    string.push(char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?);
                }
                other => string.push(other),
            },
            other => string.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = r#"{
        "name": "alice {\"use\": \"sign\"}",
        "keys": [
            { "use": "decrypt", "token": { "serial": "1" }, "public_key": "-----D-----\nAA\n" },
            { "public_key": "-----S-----\nB\u0042\n", "token": { "serial": "1" }, "use" : "sign" }
        ]
    }"#;

    #[test]
    fn the_signing_key_is_found_in_whatever_order_the_fields_come() {
        assert_eq!(
            signing_key(SHOWN).as_deref(),
            Some("-----S-----\nBB\n"),
            "{SHOWN}"
        );
    }

    #[test]
    fn an_identity_that_cannot_sign_has_no_signing_key() {
        let shown = r#"{"keys":[{"use":"decrypt","public_key":"D"}]}"#;
        assert_eq!(signing_key(shown), None);
    }

    #[test]
    fn a_null_is_not_a_string() {
        assert_eq!(string_after(r#"{"executable":null}"#, "executable"), None);
        assert_eq!(
            string_after(r#"{"executable":"/t/claviger"}"#, "executable").as_deref(),
            Some("/t/claviger")
        );
    }
}
