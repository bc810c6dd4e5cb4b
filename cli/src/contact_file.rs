//! The public keys in a file that somebody handed over: PEM, SSH lines, age recipients, or
//! what another machine's `claviger show --json` printed.

use claviger_engine::PublicKeys;
use claviger_token::{Algorithm, KeyUse, PublicKey, envelope};
use serde::Deserialize;

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";

/// What `show --json` prints, as far as it matters here.
#[derive(Deserialize)]
struct Shown {
    keys: Vec<ShownKey>,
}

#[derive(Deserialize)]
struct ShownKey {
    r#use: KeyUse,
    public_key: String,
    #[serde(default)]
    deleted: bool,
}

/// The keys in the file, each with what it is for.
///
/// A key that could serve both uses (P-256, RSA in PEM) takes the ones that no other key in
/// the file takes: the first signs, the second decrypts, and one alone does both.
///
/// # Errors
/// What is wrong with it, as a sentence that begins in lower case.
pub(crate) fn parse(bytes: &[u8]) -> Result<PublicKeys, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.contains("PRIVATE KEY-----") || text.to_ascii_uppercase().contains("AGE-SECRET-KEY-") {
        return Err("it is a private key, which nobody but its owner should have".into());
    }
    let keys = match text.starts_with('{') {
        true => shown(text)?,
        false => in_any_order(text)?,
    };
    if let Some(key) = &keys.decrypt
        && envelope::recipient_text(key).is_none()
    {
        let algorithm = key.algorithm();
        return Err(format!("one cannot encrypt to a key of {algorithm}"));
    }
    match keys.is_empty() {
        true => Err("there is no public key in it".into()),
        false => Ok(keys),
    }
}

fn shown(text: &str) -> Result<PublicKeys, String> {
    let shown: Shown = serde_json::from_str(text)
        .map_err(|_| "it is JSON, but not what `claviger show --json` prints")?;
    let mut keys = PublicKeys::default();
    for key in shown.keys.iter().filter(|key| !key.deleted) {
        let parsed = PublicKey::from_text(&key.public_key)
            .map_err(|_| "a key in it is not a valid public key")?;
        put(&mut keys, key.r#use, parsed)?;
    }
    Ok(keys)
}

/// What a key in a text may be used for.
enum Found {
    For(KeyUse, PublicKey),
    Either(PublicKey),
}

fn in_any_order(text: &str) -> Result<PublicKeys, String> {
    let mut keys = PublicKeys::default();
    let mut either = Vec::new();
    for found in find(text)? {
        match found {
            Found::For(usage, key) => put(&mut keys, usage, key)?,
            Found::Either(key) => either.push(key),
        }
    }
    let alone = either.len() == 1 && keys.is_empty();
    for key in either {
        let usage = match keys.sign {
            None => KeyUse::Sign,
            Some(_) => KeyUse::Decrypt,
        };
        if alone {
            put(&mut keys, KeyUse::Decrypt, key.clone())?;
        }
        put(&mut keys, usage, key)?;
    }
    Ok(keys)
}

fn put(keys: &mut PublicKeys, usage: KeyUse, key: PublicKey) -> Result<(), String> {
    let (place, what) = match usage {
        KeyUse::Sign => (&mut keys.sign, "signs"),
        KeyUse::Decrypt => (&mut keys.decrypt, "decrypts"),
    };
    match place.replace(key) {
        Some(_) => Err(format!("there is more than one key in it that {what}")),
        None => Ok(()),
    }
}

fn find(text: &str) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        found.push(if line.starts_with(BEGIN) {
            let mut pem = format!("{line}\n");
            for line in lines.by_ref() {
                pem.push_str(line);
                pem.push('\n');
                if line.starts_with(END) {
                    break;
                }
            }
            of_either_use(&pem)?
        } else if line.starts_with("age1") {
            let key = envelope::parse_recipient(line).map_err(|_| {
                "an age recipient in it is not one of an X25519 or a P-256 key (age1…, age1tag1…)"
            })?;
            Found::For(KeyUse::Decrypt, key)
        } else if line.starts_with("ssh-") || line.starts_with("ecdsa-") {
            let key = PublicKey::from_ssh_line(line)
                .map_err(|_| "an SSH key in it is malformed, or of a kind that is not known")?;
            match key.algorithm().rsa_bits() {
                // age encrypts to such keys, too.
                Some(_) => Found::Either(key),
                None => Found::For(KeyUse::Sign, key),
            }
        } else {
            of_either_use(line)?
        });
    }
    Ok(found)
}

/// A key in the form that says nothing of its use.
fn of_either_use(text: &str) -> Result<Found, String> {
    let key = PublicKey::from_text(text).map_err(|_| {
        "it holds something that is neither a public key in PEM, nor an SSH public key, an age \
         recipient or what `claviger show --json` prints"
    })?;
    let algorithm: Algorithm = key.algorithm();
    Ok(
        match (algorithm.can(KeyUse::Sign), algorithm.can(KeyUse::Decrypt)) {
            (true, true) => Found::Either(key),
            (false, _) => Found::For(KeyUse::Decrypt, key),
            (true, false) => Found::For(KeyUse::Sign, key),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    // Points on P-256 from RFC 6979 A.2.5 and RFC 5903 8.1.
    const P256: [&str; 2] = [
        "0360fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6",
        "03dad0b65394221cf9b051e1feca5787d098dfe637fc90b9ef945d0c3772581180",
    ];

    fn p256(which: usize) -> PublicKey {
        let bytes = claviger_token::key::from_hex(P256[which]).unwrap();
        PublicKey::from_bytes(Algorithm::P256, &bytes).unwrap()
    }

    fn x25519() -> PublicKey {
        PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap()
    }

    fn keys(text: &str) -> (Option<PublicKey>, Option<PublicKey>) {
        let keys = parse(text.as_bytes()).unwrap();
        (keys.sign, keys.decrypt)
    }

    #[test]
    fn each_form_is_told_by_its_looks() {
        let (key, other) = (p256(0), p256(1));
        let (pem, second) = (key.to_text(), other.to_text());
        assert_eq!(keys(&pem), (Some(key.clone()), Some(key.clone())));
        let both = (Some(key.clone()), Some(other.clone()));
        assert_eq!(keys(&format!("{pem}\n{second}")), both);
        let ssh = key.to_ssh_line("me").unwrap();
        assert_eq!(keys(&ssh), (Some(key.clone()), None));
        let age = envelope::recipient_text(&other).unwrap();
        assert_eq!(keys(&age), (None, Some(other)));
        assert_eq!(keys(&format!("# mine\r\n{age}\r\n\r\n{ssh}\r\n")), both);
        let age = envelope::recipient_text(&x25519()).unwrap();
        assert_eq!(keys(&format!("{pem}{age}")), (Some(key), Some(x25519())));
        assert_eq!(keys(&x25519().to_text()), (None, Some(x25519())));
    }

    #[test]
    fn what_is_shown_as_json_is_read_with_its_uses() {
        let shown = serde_json::json!({"name": "x", "keys": [
            {"use": "decrypt", "public_key": p256(0).to_text(), "more": 1},
            {"use": "sign", "public_key": p256(1).to_text(), "deleted": false},
        ]});
        assert_eq!(keys(&shown.to_string()), (Some(p256(1)), Some(p256(0))));
    }

    #[test]
    fn what_is_of_no_use_is_said() {
        let age = envelope::recipient_text(&x25519()).unwrap();
        for (text, words) in [
            ("", "no public key"),
            ("# nothing\n", "no public key"),
            ("hello", "neither"),
            ("{}", "JSON"),
            (r#"{"keys":[]}"#, "no public key"),
            (
                r#"{"keys":[{"use":"sign","public_key":"x"}]}"#,
                "not a valid",
            ),
            (&format!("{age}\n{age}"), "more than one"),
            ("age1yubikey1qqqq", "age recipient"),
            ("ssh-ed25519 AAAA", "SSH key"),
            ("AGE-SECRET-KEY-1QQQ", "private key"),
            (
                "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----",
                "private key",
            ),
            ("-----BEGIN PUBLIC KEY-----\nAA==", "neither"),
        ] {
            let refused = parse(text.as_bytes()).unwrap_err();
            assert!(refused.contains(words), "{text}: {refused}");
        }
    }
}
