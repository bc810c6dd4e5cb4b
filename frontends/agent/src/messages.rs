//! The messages of the protocol (draft-ietf-sshm-ssh-agent §5, OpenSSH `PROTOCOL.agent` §1).

use ssh_encoding::{Decode, Encode};
use zeroize::Zeroizing;

/// The longest message, in bytes, without its length: that of OpenSSH.
pub const LIMIT: usize = 256 << 10;

/// So many keys OpenSSH takes at once.
const MOST_KEYS: usize = 2048;

const FAILURE: u8 = 5;
const SUCCESS: u8 = 6;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const ADD_IDENTITY: u8 = 17;
const REMOVE_IDENTITY: u8 = 18;
const REMOVE_ALL_IDENTITIES: u8 = 19;
const ADD_SMARTCARD_KEY: u8 = 20;
const REMOVE_SMARTCARD_KEY: u8 = 21;
const LOCK: u8 = 22;
const UNLOCK: u8 = 23;
const ADD_ID_CONSTRAINED: u8 = 25;
const ADD_SMARTCARD_KEY_CONSTRAINED: u8 = 26;
const EXTENSION: u8 = 27;
const EXTENSION_FAILURE: u8 = 28;

const SESSION_BIND: &str = "session-bind@openssh.com";

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// The keys.
    List,
    /// A signature.
    Sign(SignRequest),
    /// That a connection is for an SSH session.
    Bind(SessionBind),
    /// That nothing is signed until the same passphrase comes again.
    Lock(Passphrase),
    /// That keys are used again.
    Unlock(Passphrase),
    /// That all keys are forgotten.
    RemoveAll,
    /// What this agent never does: the end of a sentence says what and why.
    Never(&'static str),
    /// An extension that is not known.
    UnknownExtension(String),
    /// A message that is not known, by its number.
    Unknown(u8),
}

/// A signature that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignRequest {
    /// The public key, in SSH's wire format.
    pub key: Vec<u8>,
    /// What is to be signed.
    pub data: Vec<u8>,
    /// How, for RSA keys.
    pub flags: u32,
}

/// An SSH session that a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionBind {
    /// The host's key, in SSH's wire format.
    pub host: Vec<u8>,
    /// The id of the session.
    pub session: Vec<u8>,
    /// The host's signature over it, in SSH's wire format.
    pub signature: Vec<u8>,
    /// Whether the connection is forwarded to that host.
    pub forwarding: bool,
}

/// What locks the agent; wiped when it is dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(pub(crate) Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase")
    }
}

/// A message that is truncated or too long for its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl Request {
    /// Parses a message without its length.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let (kind, mut rest) = message.split_first().ok_or(Malformed)?;
        let rest = &mut rest;
        let request = match *kind {
            REQUEST_IDENTITIES => Request::List,
            SIGN_REQUEST => Request::Sign(SignRequest {
                key: string(rest)?,
                data: string(rest)?,
                flags: u32::decode(rest).map_err(|_| Malformed)?,
            }),
            LOCK => Request::Lock(passphrase(rest)?),
            UNLOCK => Request::Unlock(passphrase(rest)?),
            REMOVE_ALL_IDENTITIES => Request::RemoveAll,
            EXTENSION => return Request::extension(rest),
            ADD_IDENTITY | ADD_ID_CONSTRAINED => {
                return Ok(Request::Never(
                    "a key is not added: keys are made on tokens, by `claviger generate`",
                ));
            }
            ADD_SMARTCARD_KEY | ADD_SMARTCARD_KEY_CONSTRAINED => {
                return Ok(Request::Never(
                    "a smartcard is not added: its keys are adopted by `claviger connect`",
                ));
            }
            REMOVE_IDENTITY | REMOVE_SMARTCARD_KEY => {
                return Ok(Request::Never(
                    "a key is not removed: `claviger grant remove` stops its use, `claviger delete` \
                     destroys it",
                ));
            }
            unknown => return Ok(Request::Unknown(unknown)),
        };
        match rest.is_empty() {
            true => Ok(request),
            false => Err(Malformed),
        }
    }

    fn extension(rest: &mut &[u8]) -> Result<Self, Malformed> {
        let name = String::decode(rest).map_err(|_| Malformed)?;
        if name != SESSION_BIND {
            return Ok(Request::UnknownExtension(name));
        }
        let bind = SessionBind {
            host: string(rest)?,
            session: string(rest)?,
            signature: string(rest)?,
            forwarding: match u8::decode(rest).map_err(|_| Malformed)? {
                0 => false,
                1 => true,
                _ => return Err(Malformed),
            },
        };
        match rest.is_empty() {
            true => Ok(Request::Bind(bind)),
            false => Err(Malformed),
        }
    }
}

/// Whether a message that is malformed may be one that binds a session.
pub fn may_bind(message: &[u8]) -> bool {
    message.first() == Some(&EXTENSION)
}

fn string(rest: &mut &[u8]) -> Result<Vec<u8>, Malformed> {
    Vec::decode(rest).map_err(|_| Malformed)
}

fn passphrase(rest: &mut &[u8]) -> Result<Passphrase, Malformed> {
    string(rest).map(|bytes| Passphrase(Zeroizing::new(bytes)))
}

/// The length of the message at the beginning of `buffer`, once that is there.
///
/// # Errors
/// [`Malformed`] if it is empty, or longer than [`LIMIT`].
pub fn length(buffer: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(length) = buffer.first_chunk() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| Malformed)?;
    match (1..=LIMIT).contains(&length) {
        true => Ok(Some(length)),
        false => Err(Malformed),
    }
}

/// What a client is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Failure,
    ExtensionFailure,
    Success,
    /// Public keys in SSH's wire format, and what they are called.
    Identities(Vec<(Vec<u8>, String)>),
    /// A signature in SSH's wire format.
    Signature(Vec<u8>),
}

impl Reply {
    /// The message with its length. Keys for which there is no room are left out.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut body = match self {
            Reply::Failure => vec![FAILURE],
            Reply::ExtensionFailure => vec![EXTENSION_FAILURE],
            Reply::Success => vec![SUCCESS],
            Reply::Identities(keys) => identities(keys),
            Reply::Signature(signature) => {
                let mut body = vec![SIGN_RESPONSE];
                put(&mut body, signature);
                body
            }
        };
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        body.splice(0..0, length.to_be_bytes());
        body
    }
}

fn identities(keys: &[(Vec<u8>, String)]) -> Vec<u8> {
    let (mut count, mut listed) = (0u32, Vec::new());
    for (key, name) in keys.iter().take(MOST_KEYS) {
        if listed.len() + key.len() + name.len() + 16 > LIMIT {
            break;
        }
        put(&mut listed, key);
        put(&mut listed, name.as_bytes());
        count += 1;
    }
    [&[IDENTITIES_ANSWER][..], &count.to_be_bytes(), &listed].concat()
}

fn put(body: &mut Vec<u8>, part: &[u8]) {
    // Only what is longer than 4 GiB cannot be written.
    let _ = part.encode(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, parts: &[&[u8]], end: &[u8]) -> Vec<u8> {
        let mut message = vec![kind];
        for part in parts {
            put(&mut message, part);
        }
        message.extend_from_slice(end);
        message
    }

    #[test]
    fn requests_are_what_openssh_sends_and_no_part_of_one_is_one() {
        let signs = message(SIGN_REQUEST, &[b"key", b"data"], &[0, 0, 0, 4]);
        let bind = [SESSION_BIND.as_bytes(), b"host", b"session", b"signature"];
        let bind = message(EXTENSION, &bind, &[1]);
        let lock = message(LOCK, &[b"secret"], &[]);
        for (whole, is_it) in [
            (
                &signs,
                matches!(
                    Request::parse(&signs),
                    Ok(Request::Sign(SignRequest { flags: 4, .. }))
                ),
            ),
            (
                &bind,
                matches!(
                    Request::parse(&bind),
                    Ok(Request::Bind(SessionBind {
                        forwarding: true,
                        ..
                    }))
                ),
            ),
            (&lock, matches!(Request::parse(&lock), Ok(Request::Lock(_)))),
        ] {
            assert!(is_it, "{whole:?}");
            for end in 0..whole.len() {
                assert_eq!(Request::parse(&whole[..end]), Err(Malformed), "{end}");
            }
            let longer = [&whole[..], b"."].concat();
            assert_eq!(Request::parse(&longer), Err(Malformed));
        }
        assert_eq!(Request::parse(&[200]), Ok(Request::Unknown(200)));
        assert!(matches!(Request::parse(&[17, 1]), Ok(Request::Never(_))));
        let unknown = message(EXTENSION, &[b"query"], &[]);
        let named = Request::UnknownExtension("query".into());
        assert_eq!(Request::parse(&unknown), Ok(named));
        // A flag that is neither yes nor no.
        let odd = [&bind[..bind.len() - 1], &[2]].concat();
        assert_eq!(Request::parse(&odd), Err(Malformed));
    }

    #[test]
    fn a_passphrase_is_not_shown() {
        let lock = Request::parse(&message(LOCK, &[b"secret"], &[]));
        assert_eq!(format!("{lock:?}"), "Ok(Lock(Passphrase))");
    }

    #[test]
    fn a_length_is_known_from_four_bytes_and_is_limited() {
        let of = |length: usize| super::length(&u32::try_from(length).unwrap().to_be_bytes());
        assert_eq!(super::length(&[0, 0, 0]), Ok(None));
        assert_eq!((of(1), of(LIMIT)), (Ok(Some(1)), Ok(Some(LIMIT))));
        assert_eq!((of(0), of(LIMIT + 1)), (Err(Malformed), Err(Malformed)));
        assert_eq!(super::length(&[0xff; 4]), Err(Malformed));
    }

    #[test]
    fn keys_for_which_there_is_no_room_are_left_out() {
        let keys = |count, length| {
            Reply::Identities(vec![(vec![7; length], "name".into()); count]).to_bytes()
        };
        for (count, length) in [(0, 0), (3, 51), (5000, 51), (5000, 1000), (1, LIMIT)] {
            let bytes = keys(count, length);
            assert!(bytes.len() <= LIMIT + 4);
            assert_eq!(super::length(&bytes), Ok(Some(bytes.len() - 4)));
            let listed = u32::from_be_bytes(bytes[5..9].try_into().unwrap()) as usize;
            assert_eq!(bytes.len(), 9 + listed * (length + 4 + 4 + 4));
            assert_eq!(listed == count, count <= 3 && length < LIMIT);
        }
    }
}
