//! The allowed signers: the file that `ssh-keygen -Y verify -f` reads (ssh-keygen(1),
//! "ALLOWED SIGNERS").

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::{DateTime, Local, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use claviger_formats::ssh;
use claviger_formats::sshsig::SshSignature;
use claviger_token::PublicKey;

use crate::failure::Failure;

/// The key that `signature` names, if `name` may sign with it now and in its namespace. `None` if
/// `name` has keys in the list and this is not one of them.
///
/// # Errors
/// If `name` is not in the list, or may not sign like this.
pub(crate) fn find(
    list: &[u8],
    name: &str,
    signature: &SshSignature,
) -> Result<Option<PublicKey>, Failure> {
    find_at(list, name, signature, Utc::now())
}

fn find_at(
    list: &[u8],
    name: &str,
    signature: &SshSignature,
    now: DateTime<Utc>,
) -> Result<Option<PublicKey>, Failure> {
    let mut is_known = false;
    let mut refused = None;
    for (number, line) in list.split(|byte| *byte == b'\n').enumerate() {
        let text = String::from_utf8_lossy(line);
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let line = Line::parse(text).ok_or_else(|| {
            Failure::new(format!(
                "line {} of the allowed signers is malformed",
                number + 1
            ))
            .coded("bad-allowed-signers")
            .hint("a line is: principals [options] key-type base64-key")
        })?;
        if !matches_list(&line.principals, name) {
            continue;
        }
        is_known = true;
        if line.is_authority
            || BASE64_STANDARD.decode(&line.key).ok().as_deref() != Some(signature.key_blob())
        {
            continue;
        }
        match line.check(signature, now) {
            Ok(key) => return Ok(Some(key)),
            Err(reason) => refused = Some(reason),
        }
    }
    match refused {
        Some(reason) => Err(
            Failure::new(format!("the signature cannot be judged: {reason}"))
                .coded("signer-not-allowed"),
        ),
        None if is_known => Ok(None),
        None => Err(Failure::new(
            "the signature cannot be judged: the allowed signers do not have this name",
        )
        .coded("no-identity")),
    }
}

struct Line {
    principals: String,
    /// Whether the key belongs to an authority, which certifies the signing keys.
    is_authority: bool,
    namespaces: Option<String>,
    valid_after: Option<DateTime<Utc>>,
    valid_before: Option<DateTime<Utc>>,
    kind: String,
    key: String,
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = fields(text).into_iter();
        let principals = unquoted(&fields.next()?);
        let (options, kind) = match fields.next()? {
            first if is_kind(&first) => (String::new(), first),
            options => (options, fields.next().filter(|kind| is_kind(kind))?),
        };
        let mut line = Line {
            principals,
            is_authority: false,
            namespaces: None,
            valid_after: None,
            valid_before: None,
            kind,
            key: fields.next()?,
        };
        for option in split(&options, ',').iter().filter(|text| !text.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = unquoted(value);
            match name.to_ascii_lowercase().as_str() {
                "cert-authority" => line.is_authority = true,
                "namespaces" => line.namespaces = Some(value),
                "valid-after" => line.valid_after = Some(time(&value)?),
                "valid-before" => line.valid_before = Some(time(&value)?),
                // What is not understood may restrict.
                _ => return None,
            }
        }
        Some(line)
    }

    fn check(&self, signature: &SshSignature, now: DateTime<Utc>) -> Result<PublicKey, String> {
        let namespace = signature.namespace();
        if let Some(allowed) = &self.namespaces
            && !matches_list(allowed, namespace)
        {
            return Err(format!(
                "the key may not sign for the namespace `{namespace}`"
            ));
        }
        if self.valid_after.is_some_and(|time| now < time) {
            return Err("the key is not valid yet".into());
        }
        if self.valid_before.is_some_and(|time| now > time) {
            return Err("the key is no longer valid".into());
        }
        ssh::from_line(&format!("{} {}", self.kind, self.key))
            .map_err(|_| format!("keys of the kind {} cannot be used", self.kind))
    }
}

fn is_kind(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-"]
        .iter()
        .any(|begin| word.starts_with(begin))
}

/// The words of a line; quoted text is one word.
pub(crate) fn fields(text: &str) -> Vec<String> {
    let words = split(&text.replace('\t', " "), ' ');
    words.into_iter().filter(|word| !word.is_empty()).collect()
}

fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut is_quoted, mut is_escaped) = (false, false);
    for c in text.chars() {
        is_quoted ^= c == '"' && !is_escaped;
        is_escaped = c == '\\' && is_quoted && !is_escaped;
        match parts.last_mut() {
            Some(part) if c != separator || is_quoted => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    parts
}

fn unquoted(text: &str) -> String {
    text.trim_matches('"').to_owned()
}

/// `YYYYMMDD` or `YYYYMMDDHHMM[SS]`, in UTC with a `Z`, else in the time of this machine.
fn time(text: &str) -> Option<DateTime<Utc>> {
    let (digits, is_utc) = match text.strip_suffix(['Z', 'z']) {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let time = match digits.len() {
        8 => NaiveDate::parse_from_str(digits, "%Y%m%d")
            .ok()?
            .and_time(NaiveTime::MIN),
        12 => NaiveDateTime::parse_from_str(&format!("{digits}00"), "%Y%m%d%H%M%S").ok()?,
        14 => NaiveDateTime::parse_from_str(digits, "%Y%m%d%H%M%S").ok()?,
        _ => return None,
    };
    match is_utc {
        true => Some(time.and_utc()),
        false => Some(time.and_local_timezone(Local).earliest()?.to_utc()),
    }
}

/// Whether a list of patterns matches (ssh_config(5), "PATTERNS"): one matches, and no negated one
/// does.
fn matches_list(patterns: &str, text: &str) -> bool {
    let fits = |pattern: &str| matches(pattern.as_bytes(), text.as_bytes());
    let mut any = false;
    for pattern in patterns.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if fits(pattern) => return false,
            Some(_) => {}
            None => any |= fits(pattern),
        }
    }
    any
}

/// Whether a pattern matches, in which `*` stands for any bytes and `?` for one.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last star was, and how much it stands for so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_ssh() {
        for (patterns, text, fits) in [
            ("alice", "alice", true),
            ("alice,bob", "bob", true),
            ("*@example.org", "a@example.org", true),
            ("*@example.org,!b@example.org", "b@example.org", false),
            ("a?c*e", "abcde", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("", "a", false),
            ("!a", "b", false),
        ] {
            assert_eq!(matches_list(patterns, text), fits, "{patterns} {text}");
        }
    }

    #[test]
    fn a_line_has_principals_options_and_a_key() {
        let line = Line::parse(
            "\"a b\",c namespaces=\"file,git\",valid-before=\"20300101Z\" ssh-ed25519 AAAA me at home",
        )
        .unwrap();
        assert_eq!(line.namespaces.as_deref(), Some("file,git"));
        assert_eq!(line.valid_before, time("203001010000Z"));
        assert_eq!((&*line.kind, &*line.key), ("ssh-ed25519", "AAAA"));
        assert!(
            Line::parse("a cert-authority ssh-rsa AAAA")
                .unwrap()
                .is_authority
        );
        for bad in [
            "a",
            "a ssh-rsa",
            "a no-such-option ssh-rsa AAAA",
            "a valid-after=\"x\" ssh-rsa AAAA",
        ] {
            assert!(Line::parse(bad).is_none(), "{bad}");
        }
    }
}
