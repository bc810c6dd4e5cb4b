//! Purposes of signatures, and the bytes that are signed for each.
//!
//! A key signs documents, statements of this program, SSH signatures and more, all with the same
//! hash. A document must not pass as one of the others, by accident or by design. So the
//! Commitment engine makes or checks the bytes that it signs. For each purpose except
//! [`Raw`](Purpose::Raw) and [`Prehash`](Purpose::Prehash) they begin with a prefix of that
//! purpose. A raw message that begins like one of these is refused.

use claviger_formats::certificate;
use claviger_formats::ssh_request::{SshLogin, is_certificate};
use claviger_formats::sshsig::{self, Hash};
use claviger_formats::{ssh, ssh_signature};
use claviger_token::key::to_hex;
use claviger_token::{PublicKey, SignatureScheme, possession};

use crate::EngineError;
use crate::evidence::Statement;

/// The purpose of a signature.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Purpose {
    /// The data is a message and is signed as it is. It must not begin like the data of another
    /// purpose.
    #[default]
    Raw,
    /// The data is the digest of a message, for an SSH signature (OpenSSH
    /// `PROTOCOL.sshsig`).
    SshSig {
        /// The namespace of the SSH signature: `file`, `git` …
        namespace: String,
        /// The hash of the digest.
        hash: Hash,
    },
    /// The data is what an SSH login signs, by the key that logs in (RFC 4252 §7, OpenSSH `PROTOCOL`
    /// §3.1). No caller of a daemon can ask for this by its wire: only an agent knows the session.
    SshLogin {
        /// The fingerprint of the host's key ([`ssh::fingerprint`]); `None`: it is not known.
        host: Option<String>,
        /// Whether the request came, or may have come, through an agent that was forwarded to another machine.
        forwarded: bool,
    },
    /// The data is an OpenSSH certificate that the key issues (OpenSSH `PROTOCOL.certkeys`). No
    /// caller of a daemon can ask for this by its wire.
    SshCertificate,
    /// The data is a grant, or the revocation of one, by the key that signs it: [`Statement`].
    Evidence,
    /// The data is a challenge of 16 bytes, to prove possession of the key ([`possession`]).
    Proof,
    /// The data is the transcript hash of a TLS 1.3 handshake (RFC 8446 §4.4.3).
    Tls(TlsSide),
    /// The data is a statement of a node about itself, for other nodes.
    Node,
    /// The data is a request for a certificate of this key, or a certificate of this key that it
    /// signs itself, without the signature ([`certificate`]).
    Certificate,
    /// The data is the number of a line of an audit log, a space, and the hash of that line in
    /// hexadecimal: what a daemon seals its log with. No caller of a daemon can ask for this.
    Seal,
    /// The data is a digest, made with the hash of the key's scheme. Its message stays unknown, so
    /// whoever may ask for this can obtain any signature of the key.
    Prehash,
}

/// The side of a TLS connection that signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsSide {
    /// The server.
    Server,
    /// The client.
    Client,
}

/// The prefix of a node's statements.
pub const NODE_PREFIX: &str = "Claviger: node statement\n";

/// The prefix of what seals an audit log.
pub const SEAL_PREFIX: &str = "Claviger: audit seal\n";

/// The prefix of what proves the identity key of a device that is attached. No engine signs it.
const DEVICE_PREFIX: &str = "Claviger: device attachment";

/// What the key signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToSign {
    Message(Vec<u8>),
    /// A message, and a scheme other than the usual one of the key.
    InScheme(SignatureScheme, Vec<u8>),
    Digest(Vec<u8>),
}

impl ToSign {
    /// The message `bytes` in this scheme.
    fn in_scheme(bytes: Vec<u8>, scheme: SignatureScheme, key: &PublicKey) -> Self {
        match SignatureScheme::of(key.algorithm()) == Some(scheme) {
            true => ToSign::Message(bytes),
            false => ToSign::InScheme(scheme, bytes),
        }
    }

    /// The same in another scheme, where one was asked for; `None` where it cannot be had.
    pub(crate) fn with(self, scheme: Option<SignatureScheme>, key: &PublicKey) -> Option<Self> {
        let Some(scheme) = scheme else {
            return Some(self);
        };
        let has_it = SignatureScheme::all_of(key.algorithm()).any(|known| known == scheme);
        match self {
            ToSign::Message(bytes) if has_it => Some(ToSign::in_scheme(bytes, scheme, key)),
            ToSign::InScheme(named, _) if named == scheme => Some(self),
            _ => None,
        }
    }
}

impl Purpose {
    /// The name for people and programs.
    pub fn name(&self) -> &'static str {
        match self {
            Purpose::Raw => "raw",
            Purpose::SshSig { .. } => "sshsig",
            Purpose::SshLogin {
                forwarded: false, ..
            } => "ssh",
            Purpose::SshLogin {
                forwarded: true, ..
            } => "ssh-forwarded",
            Purpose::SshCertificate => "ssh-certificate",
            Purpose::Evidence => "evidence",
            Purpose::Proof => "proof",
            Purpose::Tls(_) => "tls",
            Purpose::Node => "node",
            Purpose::Certificate => "certificate",
            Purpose::Seal => "seal",
            Purpose::Prehash => "prehash",
        }
    }

    /// The bytes that `key` signs for this purpose.
    ///
    /// # Errors
    /// [`EngineError::ReservedMessage`], [`EngineError::NotForPurpose`].
    pub(crate) fn to_be_signed(
        &self,
        data: Vec<u8>,
        key: &PublicKey,
    ) -> Result<ToSign, EngineError> {
        let not_for = |reason| EngineError::NotForPurpose {
            purpose: self.name(),
            reason,
        };
        Ok(ToSign::Message(match self {
            Purpose::Raw => {
                check_raw(&data)?;
                data
            }
            Purpose::SshSig { namespace, hash } => {
                if data.len() != hash.length() {
                    return Err(not_for("the digest does not have the length of its hash"));
                }
                sshsig::signed_data_of(namespace, *hash, &data)
                    .map_err(|_| not_for("the namespace is empty"))?
            }
            Purpose::SshLogin { host, .. } => {
                let scheme = login_scheme(&data, host.as_deref(), key).map_err(not_for)?;
                return Ok(ToSign::in_scheme(data, scheme, key));
            }
            Purpose::SshCertificate => {
                if !is_certificate(&data) {
                    return Err(not_for("the data is no OpenSSH certificate"));
                }
                if !ends_with_key(&data, key) {
                    return Err(not_for("another key issues the certificate"));
                }
                data
            }
            Purpose::Evidence => {
                let statement = Statement::parse(&data).map_err(not_for)?;
                if statement.signer() != Some(key) {
                    return Err(not_for("it must be signed by another key"));
                }
                data
            }
            Purpose::Proof => {
                if data.len() != 16 {
                    return Err(not_for("the challenge is not 16 bytes long"));
                }
                format!("{} {}", possession::PREFIX, to_hex(&data)).into_bytes()
            }
            Purpose::Tls(side) => {
                if !matches!(data.len(), 32 | 48 | 64) {
                    return Err(not_for("the data is not a transcript hash"));
                }
                tls(*side, &data)
            }
            Purpose::Node => [NODE_PREFIX.as_bytes(), &data].concat(),
            Purpose::Certificate => {
                certificate::is_of_key(&data, key).map_err(not_for)?;
                data
            }
            Purpose::Seal => {
                if !is_place_in_log(&data) {
                    return Err(not_for("the data is not a place in an audit log"));
                }
                [SEAL_PREFIX.as_bytes(), &data].concat()
            }
            Purpose::Prehash => return Ok(ToSign::Digest(data)),
        }))
    }
}

/// The scheme in which `key` signs the login `data` to the host of this fingerprint.
fn login_scheme(
    data: &[u8],
    host: Option<&str>,
    key: &PublicKey,
) -> Result<SignatureScheme, &'static str> {
    let login = SshLogin::parse(data).ok_or("the data is no SSH login")?;
    if ssh::to_wire(key).as_ref() != Some(&login.key) {
        return Err("another key logs in");
    }
    // One that does not name its host was judged by who asks.
    let named = login.host.as_deref().map(ssh::fingerprint);
    if named.is_some() && named.as_deref() != host {
        return Err("the login is to another host");
    }
    ssh_signature::scheme_named(&login.algorithm)
        .filter(|scheme| SignatureScheme::all_of(key.algorithm()).any(|known| known == *scheme))
        .ok_or("the key does not sign in the way that the login names")
}

/// Whether the last thing in a certificate is this key: who issues it.
fn ends_with_key(data: &[u8], key: &PublicKey) -> bool {
    let Some(wire) = ssh::to_wire(key) else {
        return false;
    };
    let length = u32::try_from(wire.len()).unwrap_or(u32::MAX);
    data.ends_with(&[&length.to_be_bytes()[..], &wire].concat())
}

/// Whether this is a number, a space, and a hash of 32 bytes in hexadecimal.
fn is_place_in_log(data: &[u8]) -> bool {
    let mut parts = data.splitn(2, |byte| *byte == b' ');
    let (Some(number), Some(hash)) = (parts.next(), parts.next()) else {
        return false;
    };
    !number.is_empty()
        && number.iter().all(u8::is_ascii_digit)
        && hash.len() == 64
        && hash.iter().all(u8::is_ascii_hexdigit)
}

/// The content that is signed in a TLS 1.3 handshake (RFC 8446 §4.4.3).
fn tls(side: TlsSide, transcript: &[u8]) -> Vec<u8> {
    let side = match side {
        TlsSide::Server => "server",
        TlsSide::Client => "client",
    };
    let context = format!("TLS 1.3, {side} CertificateVerify\0");
    [&TLS_PADDING[..], context.as_bytes(), transcript].concat()
}

/// The prefix of everything that TLS 1.3 signs: a handshake (RFC 8446 §4.4.3), a delegated
/// credential (RFC 9345 §4), an exported authenticator (RFC 9261 §5.2.2).
const TLS_PADDING: [u8; 64] = [b' '; 64];

/// A beginning that is reserved, so that no raw message with it is signed.
struct Reserved {
    begins: Beginning,
    what: &'static str,
    kind: &'static str,
}

enum Beginning {
    /// These bytes stand at this place; what is before them may be anything.
    Bytes(usize, &'static [u8]),
    /// The id of a session, which is a hash, with its length as four bytes, big-endian; and
    /// the number of the message that asks for the login (RFC 4252 §7).
    SshLogin,
    /// The name of a kind of certificate of SSH, with its length as four bytes, big-endian.
    SshCertificate,
    /// A certificate or a request for one, without its signature: [`certificate`].
    Certificate,
}

impl Beginning {
    fn is_of(&self, message: &[u8]) -> bool {
        match self {
            Beginning::Bytes(at, bytes) => {
                let rest = message.get(*at..);
                rest.is_some_and(|rest| rest.starts_with(bytes))
            }
            Beginning::SshCertificate => is_certificate(message),
            Beginning::SshLogin => {
                let Some(([0, 0, 0, length], rest)) = message.split_first_chunk() else {
                    return false;
                };
                SESSION_IDS.contains(length)
                    && rest.get(usize::from(*length)) == Some(&SSH_MSG_USERAUTH_REQUEST)
            }
            Beginning::Certificate => certificate::begins_like_one(message),
        }
    }
}

/// How long the hashes are that name an SSH session: SHA-1 and SHA-2.
const SESSION_IDS: [u8; 5] = [20, 28, 32, 48, 64];

const SSH_MSG_USERAUTH_REQUEST: u8 = 50;

/// The beginnings of everything that is signed for a purpose other than [`Purpose::Raw`], in this
/// version and in those to come.
const RESERVED: [Reserved; 10] = [
    Reserved {
        begins: Beginning::Bytes(0, possession::PREFIX.as_bytes()),
        what: "a proof of possession",
        kind: "proof",
    },
    Reserved {
        // After its length.
        begins: Beginning::Bytes(4, crate::evidence::DOMAINS),
        what: "a statement of who reads for whom",
        kind: "evidence",
    },
    Reserved {
        begins: Beginning::Bytes(0, NODE_PREFIX.as_bytes()),
        what: "a statement of a node",
        kind: "node",
    },
    Reserved {
        begins: Beginning::Bytes(0, DEVICE_PREFIX.as_bytes()),
        what: "the proof of a device that is attached",
        kind: "device",
    },
    Reserved {
        begins: Beginning::Bytes(0, SEAL_PREFIX.as_bytes()),
        what: "the seal of an audit log",
        kind: "seal",
    },
    Reserved {
        begins: Beginning::Bytes(0, sshsig::MAGIC),
        what: "what an SSH signature signs",
        kind: "sshsig",
    },
    Reserved {
        begins: Beginning::SshLogin,
        what: "what an SSH login signs",
        kind: "ssh-login",
    },
    Reserved {
        begins: Beginning::SshCertificate,
        what: "what an OpenSSH certificate signs",
        kind: "ssh-certificate",
    },
    Reserved {
        begins: Beginning::Bytes(0, &TLS_PADDING),
        what: "what TLS 1.3 signs, with 64 spaces",
        kind: "tls",
    },
    Reserved {
        begins: Beginning::Certificate,
        what: "a certificate or a request for one",
        kind: "certificate",
    },
];

/// The number of bytes that decide whether the beginning of a message is reserved.
pub(crate) const LONGEST_RESERVED: usize = 128;

/// Refuses a raw message that begins like something that another purpose signs. Its first
/// [`LONGEST_RESERVED`] bytes are enough.
///
/// # Errors
/// [`EngineError::ReservedMessage`].
pub(crate) fn check_raw(message: &[u8]) -> Result<(), EngineError> {
    match RESERVED.iter().find(|it| it.begins.is_of(message)) {
        None => Ok(()),
        Some(Reserved { what, kind, .. }) => Err(EngineError::ReservedMessage { what, kind }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reserved_beginning_is_seen_in_the_first_bytes() {
        for reserved in &RESERVED {
            let beginnings = match &reserved.begins {
                Beginning::Bytes(at, bytes) => vec![[&vec![7; *at][..], bytes].concat()],
                Beginning::SshLogin => SESSION_IDS
                    .iter()
                    .map(|n| [&[0, 0, 0, *n][..], &vec![7; usize::from(*n)], &[50]].concat())
                    .collect(),
                Beginning::SshCertificate => {
                    let longest = format!("{}-cert-v01@openssh.com", "x".repeat(43));
                    ["ssh-ed25519-cert-v01@openssh.com", &longest]
                        .map(|name| [&[0, 0, 0, name.len() as u8][..], name.as_bytes()].concat())
                        .to_vec()
                }
                Beginning::Certificate => vec![
                    b"\x30\x82\x01\x00\xa0\x03\x02\x01\x02".to_vec(),
                    b"\x30\x81\x90\x02\x01\x00\x30\x10\x31".to_vec(),
                    b"\x30\x55\x02\x01\x00\x30\x82\x00\x90\x31".to_vec(),
                    b"\x30\x55\x02\x01\x00\x30\x00".to_vec(),
                ],
            };
            for whole in beginnings {
                assert!(whole.len() <= LONGEST_RESERVED);
                assert!(check_raw(&whole).is_err(), "{}", reserved.what);
                assert!(check_raw(&[&whole[..], b"more"].concat()).is_err());
                assert!(check_raw(&whole[..whole.len() - 1]).is_ok());
                assert!(check_raw(&[&b"."[..], &whole].concat()).is_ok());
            }
        }
        assert!(check_raw(b"").is_ok());
    }

    /// The example of RFC 8446 §4.4.3.
    #[test]
    fn a_tls_handshake_is_signed_as_the_standard_has_it() {
        let transcript = [1; 32];
        let mut expected = vec![0x20; 64];
        expected.extend_from_slice(b"TLS 1.3, server CertificateVerify");
        expected.push(0);
        expected.extend_from_slice(&transcript);
        assert_eq!(tls(TlsSide::Server, &transcript), expected);
    }
}
