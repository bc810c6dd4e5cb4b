//! Public keys in a file from somebody else: PEM, certificates, SSH keys, age recipients, or the
//! output of another machine's `claviger show --json`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use claviger_engine::PublicKeys;
use claviger_formats::envelope;
use claviger_formats::foreign::{ForeignKey, Useless};
use claviger_token::{KeyUse, PublicKey};
use serde::Deserialize;

use crate::allowed_signers::fields;

/// The maximum length of a file in bytes; a page of keys is a hundredth of it.
pub(crate) const LONGEST: usize = 64 << 10;

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";
/// RFC 4716.
const BEGIN_SSH2: &str = "---- BEGIN SSH2 PUBLIC KEY ----";
const END_SSH2: &str = "---- END SSH2 PUBLIC KEY ----";

/// The relevant fields of `show --json`.
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

/// The keys in a file.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// The usable keys, each with its uses.
    pub(crate) keys: PublicKeys,
    /// Other content that is not used, each as the beginning of a sentence.
    pub(crate) left: Vec<String>,
}

/// The keys in the file, each with its uses.
///
/// A key that could have both uses (P-256, RSA in PEM) gets those that no other key in the file
/// has: the first signs, the second decrypts, and a single one does both.
///
/// # Errors
/// What is wrong with it, as a sentence that begins in lower case.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.contains("PRIVATE KEY-----") || text.to_ascii_uppercase().contains("AGE-SECRET-KEY-") {
        return Err("it is a private key, which nobody but its owner should have".into());
    }
    let parsed = match text.starts_with('{') {
        true => Parsed {
            keys: shown(text)?,
            left: Vec::new(),
        },
        false => in_any_order(text)?,
    };
    if let Some(key) = &parsed.keys.decrypt
        && envelope::recipient_text(key).is_none()
    {
        let algorithm = key.algorithm();
        return Err(format!("a key of {algorithm} cannot be encrypted to"));
    }
    match (parsed.keys.is_empty(), parsed.left.is_empty()) {
        (false, _) => Ok(parsed),
        (true, true) => Err("there is no public key in it".into()),
        (true, false) => Err(parsed.left.join("; ")),
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

fn in_any_order(text: &str) -> Result<Parsed, String> {
    let (found, mut left) = find(text)?;
    let mut found = distinct(found);
    // An authority's certificate comes along with the one that it certifies.
    let is_authority = |found: &ForeignKey| found.is_authority;
    if !found.iter().all(is_authority) && found.iter().any(is_authority) {
        found.retain(|found| !found.is_authority);
        left.push("the certificate of an authority is not taken".into());
    }
    let mut keys = PublicKeys::default();
    let mut either = Vec::new();
    for found in found {
        match (found.signs, found.decrypts) {
            (true, true) => either.push(found.key),
            (true, false) => put(&mut keys, KeyUse::Sign, found.key)?,
            (false, _) => put(&mut keys, KeyUse::Decrypt, found.key)?,
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
    Ok(Parsed { keys, left })
}

/// Each key once, with all its uses: a key may occur in several forms.
fn distinct(found: Vec<ForeignKey>) -> Vec<ForeignKey> {
    let mut distinct: Vec<ForeignKey> = Vec::new();
    for found in found {
        match distinct.iter_mut().find(|known| known.key == found.key) {
            Some(known) => {
                known.signs |= found.signs;
                known.decrypts |= found.decrypts;
                known.is_authority &= found.is_authority;
            }
            None => distinct.push(found),
        }
    }
    distinct
}

fn put(keys: &mut PublicKeys, usage: KeyUse, key: PublicKey) -> Result<(), String> {
    let (place, what) = match usage {
        KeyUse::Sign => (&mut keys.sign, "signs"),
        KeyUse::Decrypt => (&mut keys.decrypt, "decrypts"),
    };
    let new = key.fingerprint();
    match place.replace(key) {
        Some(old) => Err(format!(
            "there is more than one key in it that {what}: {} and {new}",
            old.fingerprint()
        )),
        None => Ok(()),
    }
}

/// The keys, and content that looks like a key but cannot be used.
fn find(text: &str) -> Result<(Vec<ForeignKey>, Vec<String>), String> {
    let has_pem = text.contains(BEGIN);
    let (mut found, mut left) = (Vec::new(), Vec::new());
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = if let Some(label) = line.strip_prefix(BEGIN) {
            let label = label.trim_end_matches(DASHES);
            match pem(label, &mut lines)? {
                Some(key) => key,
                None => continue,
            }
        } else if line == BEGIN_SSH2 {
            ssh2(&mut lines)?
        } else if line
            .get(..4)
            .is_some_and(|begin| begin.eq_ignore_ascii_case("age1"))
        {
            ForeignKey::from_age(line)
        } else if let Some(key) = ssh_line(line) {
            key
        } else if let Ok(key) = PublicKey::from_text(line) {
            Ok(ForeignKey::of_any_use(key))
        } else if has_pem {
            // Other programs say in words what the PEM beside them is.
            continue;
        } else {
            return Err(
                "it holds something that is neither a public key in PEM, nor a certificate, an \
                 SSH public key, an age recipient or what `claviger show --json` prints"
                    .into(),
            );
        };
        match key {
            Ok(key) => found.push(key),
            Err(useless @ Useless::Malformed(_)) => return Err(useless.to_string()),
            Err(useless) => left.push(useless.to_string()),
        }
    }
    Ok((found, left))
}

/// The content up to the end of a PEM block, with lines of any width; `None` if it cannot be a key.
fn pem<'a>(
    label: &str,
    lines: &mut impl Iterator<Item = &'a str>,
) -> Result<Option<Result<ForeignKey, Useless>>, String> {
    let end = format!("-----END {label}-----");
    let mut text = String::new();
    loop {
        match lines.next() {
            Some(line) if line == end => break,
            // A header, as RFC 1421 has them: a colon is no base64.
            Some(line) if line.contains(':') => {}
            // The checksum of OpenPGP.
            Some(line) if line.starts_with('=') && line.len() == 5 => {}
            Some(line) => text.extend(line.split_ascii_whitespace()),
            None => return Err(format!("the PEM of `{label}` in it has no end")),
        }
    }
    let malformed = || format!("the PEM of `{label}` in it is malformed");
    match BASE64_STANDARD.decode(text) {
        Ok(der) => Ok(ForeignKey::from_pem(label, &der)),
        // What is of no use may be malformed.
        Err(_) => match ForeignKey::from_pem(label, &[]) {
            Some(Err(useless @ Useless::Kind(_))) => Ok(Some(Err(useless))),
            _ => Err(malformed()),
        },
    }
}

/// The rest of a key as RFC 4716 has it.
fn ssh2<'a>(
    lines: &mut impl Iterator<Item = &'a str>,
) -> Result<Result<ForeignKey, Useless>, String> {
    let mut text = String::new();
    let mut is_header = false;
    loop {
        match lines.next() {
            Some(END_SSH2) => return Ok(ForeignKey::from_ssh(&text)),
            // A header goes on behind a backslash.
            Some(line) if is_header || line.contains(':') => is_header = line.ends_with('\\'),
            Some(line) => text.push_str(line),
            None => return Err("the SSH2 public key in it has no end".into()),
        }
    }
}

/// A line of a `.pub` file or of `authorized_keys`, with or without options; `None` where it
/// is none.
fn ssh_line(line: &str) -> Option<Result<ForeignKey, Useless>> {
    let is_kind = |word: &str| {
        let begins = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];
        begins.iter().any(|begin| word.starts_with(begin))
    };
    let fields = fields(line);
    let at = fields.iter().take(2).position(|word| is_kind(word))?;
    let options = fields[..at].concat();
    if options.starts_with("@revoked") {
        return Some(Err(Useless::Kind("a revoked SSH key".into())));
    }
    if options.contains("cert-authority") {
        let name = "the SSH key of an authority".to_owned();
        return Some(Err(Useless::Kind(name)));
    }
    let key = fields
        .get(at + 1)
        .map(|base64| ForeignKey::from_ssh(base64));
    Some(key.unwrap_or(Err(Useless::Malformed("an SSH key"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_formats::ssh;
    use claviger_token::Algorithm;

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
        let keys = parse(text.as_bytes()).unwrap().keys;
        (keys.sign, keys.decrypt)
    }

    #[test]
    fn each_form_is_told_by_its_looks() {
        let (key, other) = (p256(0), p256(1));
        let (pem, second) = (key.to_text(), other.to_text());
        assert_eq!(keys(&pem), (Some(key.clone()), Some(key.clone())));
        let both = (Some(key.clone()), Some(other.clone()));
        assert_eq!(keys(&format!("{pem}\n{second}")), both);
        let ssh = ssh::to_line(&key, "me").unwrap();
        assert_eq!(keys(&ssh), (Some(key.clone()), None));
        let age = envelope::recipient_text(&other).unwrap();
        assert_eq!(keys(&age), (None, Some(other)));
        assert_eq!(keys(&format!("# mine\r\n{age}\r\n\r\n{ssh}\r\n")), both);
        let age = envelope::recipient_text(&x25519()).unwrap();
        assert_eq!(keys(&format!("{pem}{age}")), (Some(key), Some(x25519())));
        assert_eq!(keys(&x25519().to_text()), (None, Some(x25519())));
    }

    #[test]
    fn pem_may_be_of_any_width_and_have_words_around_it() {
        let pem = p256(0).to_text();
        let lines: Vec<&str> = pem.lines().collect();
        let body = lines[1..lines.len() - 1].concat();
        for width in [1, 30, 64, 76, 1000] {
            let text: Vec<&str> = (0..body.len())
                .step_by(width)
                .map(|i| &body[i..body.len().min(i + width)])
                .collect();
            let (first, last) = (lines[0], lines[lines.len() - 1]);
            let text = format!(
                "Bag Attributes\n    friendlyName: x\n{first}\r\n{}\r\n{last}\nbye",
                text.join("\r\n")
            );
            assert_eq!(keys(&text), (Some(p256(0)), Some(p256(0))), "{width}");
        }
    }

    #[test]
    fn ssh_keys_have_options_and_other_forms() {
        let line = ssh::to_line(&p256(0), "me").unwrap();
        let base64 = line.split(' ').nth(1).unwrap();
        let signs = (Some(p256(0)), None);
        assert_eq!(keys(&format!("from=\"a b,c\",no-pty {line}")), signs);
        let (one, other) = base64.split_at(70);
        let ssh2 = format!(
            "{BEGIN_SSH2}\nComment: \"a \\\nssh-rsa b\"\nx-y: z\n{one}\n{other}\n{END_SSH2}\n"
        );
        assert_eq!(keys(&ssh2), signs);
        // The same key in two forms is one key, of all the uses that the forms allow.
        let pem = p256(0).to_text();
        let both = (Some(p256(0)), Some(p256(0)));
        assert_eq!(keys(&format!("{line}\n{pem}")), both);
        let age = envelope::recipient_text(&x25519()).unwrap().to_uppercase();
        assert_eq!(keys(&age), (None, Some(x25519())));
    }

    #[test]
    fn what_is_beside_the_keys_is_said() {
        let line = ssh::to_line(&p256(0), "me").unwrap();
        let other = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAA";
        let parsed = parse(format!("{line}\n{other}\n").as_bytes()).unwrap();
        assert_eq!(parsed.keys.sign, Some(p256(0)));
        assert!(parsed.left[0].contains("security key"), "{:?}", parsed.left);
    }

    #[test]
    fn whatever_is_altered_in_a_file_what_is_taken_can_be_encrypted_to() {
        let (pem, ssh) = (p256(0).to_text(), ssh::to_line(&p256(1), "me").unwrap());
        let age = envelope::recipient_text(&x25519()).unwrap();
        let shown = serde_json::json!({"keys": [
            {"use": "decrypt", "public_key": p256(0).to_text()},
        ]});
        let mut taken = 0;
        for good in [
            pem.clone(),
            format!("from=\"a b\" {ssh}"),
            age.clone(),
            shown.to_string(),
            format!("{pem}{age}\n# x\n"),
        ] {
            for bad in claviger_tests::mutated(good.as_bytes(), 3000) {
                let Ok(parsed) = parse(&bad) else { continue };
                if let Some(key) = parsed.keys.decrypt {
                    assert!(envelope::encrypt(&[&key], b"x").is_ok());
                    taken += 1;
                }
            }
        }
        assert!(taken > 0);
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
            (
                &format!("{age}\n{}", envelope::recipient_text(&p256(0)).unwrap()),
                "more than one",
            ),
            ("age1yubikey1qqqq", "age recipient"),
            ("ssh-ed25519 AAAA", "SSH key"),
            ("age1pq1qqqq", "age1pq"),
            ("AGE-SECRET-KEY-1QQQ", "private key"),
            (
                "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----",
                "private key",
            ),
            ("-----BEGIN PUBLIC KEY-----\nAA==", "no end"),
        ] {
            let refused = parse(text.as_bytes()).unwrap_err();
            assert!(refused.contains(words), "{text}: {refused}");
        }
    }
}
