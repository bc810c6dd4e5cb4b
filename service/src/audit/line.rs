//! What a line of the log says.

use chrono::{SecondsFormat, Utc};
use claviger_token::TokenId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Use;
use crate::Caller;

/// The longest name in a line, in characters: callers choose some of them.
const LONGEST_NAME: usize = 256;

/// No line is longer, in bytes, with its end.
pub(super) const LONGEST: usize = 16 << 10;

/// The hash of a line, or what stands in its place before the first.
pub(super) type Hash = [u8; 32];

/// The hash before the first line of a log.
pub(super) const NOTHING: Hash = [0; 32];

/// That of a line, without its end.
pub(super) fn hash_of(line: &[u8]) -> Hash {
    Sha256::digest(line).into()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.extend([digit(byte >> 4), digit(byte & 15)]);
    }
    text
}

/// A line as it is written. The order of the fields is that of the file.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    n: u64,
    time: String,
    #[serde(flatten)]
    content: Content<'a>,
    prev: String,
}

impl<'a> Line<'a> {
    /// The line of this number, now.
    pub(super) fn now(n: u64, prev: &Hash, content: Content<'a>) -> Self {
        Line {
            n,
            time: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
            content,
            prev: hex(prev),
        }
    }
}

/// A line as the journal gets it.
#[derive(Serialize)]
pub(super) struct Event<'a> {
    n: u64,
    #[serde(flatten)]
    content: Content<'a>,
}

impl<'a> Event<'a> {
    pub(super) fn new(n: u64, content: Content<'a>) -> Self {
        Event { n, content }
    }
}

/// What is in a line besides its number, its time and the hash of the one before.
#[derive(Default, Serialize)]
pub(super) struct Content<'a> {
    kind: &'static str,
    /// The number of the line *begin* that an *end* belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<By<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    identity: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    operation: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    purpose: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    confirmed: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seal: Option<&'a Seal>,
}

/// Who called.
#[derive(Serialize, Clone, Copy)]
pub(super) struct By<'a> {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) socket: &'a str,
}

impl<'a> By<'a> {
    pub(super) fn of(caller: &'a Caller) -> Self {
        By {
            uid: caller.uid,
            gid: caller.gid,
            socket: shortened(&caller.socket),
        }
    }
}

/// A signature over the chain up to a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seal {
    /// The number of the last line that it covers.
    pub(super) upto: u64,
    /// The hash of that line.
    pub(super) hash: String,
    /// The fingerprint of the key.
    pub(super) key: String,
    pub(super) scheme: String,
    /// Hexadecimal.
    pub(super) signature: String,
}

impl<'a> Content<'a> {
    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    /// The number of the line with which the use of this one began, whose own number is given.
    pub(super) fn use_of(&self, number: u64) -> u64 {
        self.id.unwrap_or(number)
    }

    pub(super) fn begin(caller: &'a Caller, what: &Use<'a>) -> Self {
        Content {
            kind: "begin",
            caller: Some(By::of(caller)),
            identity: shortened(what.identity),
            operation: shortened(what.operation),
            purpose: shortened(what.purpose),
            digest: what.digest.map(hex),
            token: what.token.map(ToString::to_string),
            confirmed: what.is_confirmed,
            ..Content::default()
        }
    }

    pub(super) fn refused(caller: &'a Caller, what: &Use<'a>, code: &'a str) -> Self {
        Content {
            kind: "refused",
            outcome: code,
            ..Content::begin(caller, what)
        }
    }

    /// So many more requests were refused.
    pub(super) fn refused_more(caller: &'a Caller, count: u64) -> Self {
        Content {
            kind: "refused",
            caller: Some(By::of(caller)),
            count: Some(count),
            ..Content::default()
        }
    }

    pub(super) fn end(
        id: u64,
        identity: &'a str,
        outcome: &'a str,
        (digest, token): (Option<&Hash>, Option<&TokenId>),
    ) -> Self {
        Content {
            kind: "end",
            id: Some(id),
            identity: shortened(identity),
            outcome,
            digest: digest.map(|digest| hex(digest)),
            token: token.map(ToString::to_string),
            ..Content::default()
        }
    }

    /// With whether a person was asked, and confirmed it.
    pub(super) fn confirmed(self, confirmed: bool) -> Self {
        Content { confirmed, ..self }
    }

    /// The first line of a file.
    pub(super) fn open() -> Self {
        Content {
            kind: "open",
            ..Content::default()
        }
    }

    pub(super) fn close() -> Self {
        Content {
            kind: "close",
            ..Content::default()
        }
    }

    /// So many bytes at the end of the file were no whole line, and were moved aside.
    pub(super) fn recovered(cut: u64) -> Self {
        Content {
            kind: "recovered",
            cut: Some(cut),
            ..Content::default()
        }
    }

    pub(super) fn seal(seal: &'a Seal) -> Self {
        Content {
            kind: "seal",
            seal: Some(seal),
            ..Content::default()
        }
    }
}

/// As much of a name as is written.
fn shortened(name: &str) -> &str {
    match name.char_indices().nth(LONGEST_NAME) {
        Some((end, _)) => &name[..end],
        None => name,
    }
}

/// What is read of a line again.
#[derive(Debug, Deserialize)]
pub(super) struct Read {
    pub(super) n: u64,
    pub(super) kind: String,
    pub(super) id: Option<u64>,
    pub(super) seal: Option<Seal>,
    pub(super) prev: String,
}

impl Read {
    pub(super) fn of(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}
