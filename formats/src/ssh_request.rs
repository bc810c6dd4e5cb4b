//! What an agent for SSH is asked to sign, told apart: a login (RFC 4252 §7), an SSH signature
//! (OpenSSH `PROTOCOL.sshsig`), a certificate (OpenSSH `PROTOCOL.certkeys`), or anything else.

use ssh_encoding::Decode;

use crate::sshsig::{self, Hash};

/// The number of the message that asks for a login (RFC 4252 §6).
const SSH_MSG_USERAUTH_REQUEST: u8 = 50;

/// The service that a login is for.
const SERVICE: &str = "ssh-connection";

/// A login with a public key (RFC 4252 §7).
const PUBLIC_KEY: &str = "publickey";

/// The same, which names the key of the host, too (OpenSSH `PROTOCOL` §3.1).
const HOST_BOUND: &str = "publickey-hostbound-v00@openssh.com";

/// The end of the name of every kind of certificate.
const CERTIFICATE: &[u8] = b"-cert-v01@openssh.com";

/// The longest name of a kind of key, in bytes (RFC 4251 §6).
const LONGEST_NAME: usize = 64;

/// What is to be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SshRequest {
    /// A login.
    Login(SshLogin),
    /// An SSH signature.
    Signature {
        /// Its namespace, which is not empty.
        namespace: String,
        /// The hash of the message.
        hash: Hash,
        /// The digest of the message, as long as the hash's.
        digest: Vec<u8>,
    },
    /// A certificate.
    Certificate,
    /// Anything else.
    Raw,
}

/// What is signed for a login.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SshLogin {
    /// The id of the session.
    pub session: Vec<u8>,
    /// The user on the other machine.
    pub user: String,
    /// SSH's name of how it is signed: `rsa-sha2-512`.
    pub algorithm: String,
    /// The key that logs in, in SSH's wire format.
    pub key: Vec<u8>,
    /// The key of the host, in SSH's wire format, where the request names it.
    pub host: Option<Vec<u8>>,
}

impl SshRequest {
    /// What `data` is. What only resembles one of the kinds is [`SshRequest::Raw`].
    pub fn of(data: &[u8]) -> Self {
        if let Some(login) = SshLogin::parse(data) {
            return SshRequest::Login(login);
        }
        if let Some(signature) = signature(data) {
            return signature;
        }
        match is_certificate(data) {
            true => SshRequest::Certificate,
            false => SshRequest::Raw,
        }
    }
}

impl SshLogin {
    /// The login that `data` is signed for; `None` if it is none.
    pub fn parse(mut data: &[u8]) -> Option<Self> {
        let rest = &mut data;
        let session = string(rest)?;
        let number = u8::decode(rest).ok()?;
        let user = text(rest)?;
        let service = text(rest)?;
        let method = text(rest)?;
        let has_signature = u8::decode(rest).ok()?;
        let login = SshLogin {
            session,
            user,
            algorithm: text(rest)?,
            key: string(rest)?,
            host: match &*method {
                PUBLIC_KEY => None,
                HOST_BOUND => Some(string(rest)?),
                _ => return None,
            },
        };
        let is_one = number == SSH_MSG_USERAUTH_REQUEST
            && service == SERVICE
            && has_signature == 1
            && !login.session.is_empty()
            && rest.is_empty();
        is_one.then_some(login)
    }
}

/// Whether `data` begins like a certificate: with the name of its kind.
pub fn is_certificate(data: &[u8]) -> bool {
    let Some((length, rest)) = data.split_first_chunk() else {
        return false;
    };
    let name = usize::try_from(u32::from_be_bytes(*length))
        .ok()
        .filter(|length| *length <= LONGEST_NAME)
        .and_then(|length| rest.get(..length));
    name.is_some_and(|name| name.ends_with(CERTIFICATE))
}

/// What is signed for an SSH signature. One that says anything in its reserved field is none.
fn signature(data: &[u8]) -> Option<SshRequest> {
    let mut rest = data.strip_prefix(sshsig::MAGIC)?;
    let rest = &mut rest;
    let namespace = text(rest)?;
    let reserved = string(rest)?;
    let name = text(rest)?;
    let hash = [Hash::Sha256, Hash::Sha512]
        .into_iter()
        .find(|hash| hash.name() == name)?;
    let digest = string(rest)?;
    let is_one = !namespace.is_empty()
        && reserved.is_empty()
        && digest.len() == hash.length()
        && rest.is_empty();
    is_one.then_some(SshRequest::Signature {
        namespace,
        hash,
        digest,
    })
}

fn string(rest: &mut &[u8]) -> Option<Vec<u8>> {
    Vec::decode(rest).ok()
}

fn text(rest: &mut &[u8]) -> Option<String> {
    String::decode(rest).ok()
}

#[cfg(test)]
mod tests {
    use ssh_encoding::Encode;

    use super::*;

    /// By hand, as RFC 4252 §7 has it.
    fn login(method: &str, flag: u8, host: Option<&[u8]>) -> Vec<u8> {
        let mut data = Vec::new();
        let mut put = |part: &[u8]| part.encode(&mut data).unwrap();
        put(&[7; 32]);
        data.push(50);
        let mut put = |part: &[u8]| part.encode(&mut data).unwrap();
        for part in ["git", "ssh-connection", method] {
            put(part.as_bytes());
        }
        data.push(flag);
        let mut put = |part: &[u8]| part.encode(&mut data).unwrap();
        for part in [&b"ssh-ed25519"[..], b"key"].into_iter().chain(host) {
            put(part);
        }
        data
    }

    #[test]
    fn a_login_shows_its_session_its_key_and_its_host() {
        let SshRequest::Login(plain) = SshRequest::of(&login(PUBLIC_KEY, 1, None)) else {
            panic!("no login");
        };
        assert_eq!((&*plain.user, &*plain.algorithm), ("git", "ssh-ed25519"));
        assert_eq!((plain.session, plain.key), (vec![7; 32], b"key".to_vec()));
        assert_eq!(plain.host, None);
        let SshRequest::Login(bound) = SshRequest::of(&login(HOST_BOUND, 1, Some(b"host"))) else {
            panic!("no login");
        };
        assert_eq!(bound.host, Some(b"host".to_vec()));
    }

    #[test]
    fn what_only_resembles_a_login_is_none() {
        for data in [
            login(PUBLIC_KEY, 0, None),
            login(PUBLIC_KEY, 2, None),
            login(PUBLIC_KEY, 1, Some(b"host")),
            login(HOST_BOUND, 1, None),
            login("password", 1, None),
            login("hostbased", 1, None),
        ] {
            assert_eq!(SshRequest::of(&data), SshRequest::Raw);
        }
        let whole = login(HOST_BOUND, 1, Some(b"host"));
        for end in 0..whole.len() {
            assert_eq!(SshRequest::of(&whole[..end]), SshRequest::Raw, "{end}");
        }
    }

    #[test]
    fn a_signature_shows_its_namespace_and_its_digest() {
        let data = sshsig::signed_data("git", b"hello").unwrap();
        let SshRequest::Signature {
            namespace, digest, ..
        } = SshRequest::of(&data)
        else {
            panic!("no signature");
        };
        let again = sshsig::signed_data_of(&namespace, Hash::Sha512, &digest).unwrap();
        assert_eq!((&*namespace, again), ("git", data.clone()));
        for end in 0..data.len() {
            assert_eq!(SshRequest::of(&data[..end]), SshRequest::Raw, "{end}");
        }
        // What the reserved field says would be lost.
        let mut reserved = sshsig::MAGIC.to_vec();
        for part in [&b"git"[..], b"x", b"sha512", &[7; 64]] {
            part.encode(&mut reserved).unwrap();
        }
        assert_eq!(SshRequest::of(&reserved), SshRequest::Raw);
    }

    #[test]
    fn a_certificate_begins_with_its_kind() {
        let begins = |name: &str| {
            let mut data = Vec::new();
            name.as_bytes().encode(&mut data).unwrap();
            data.extend_from_slice(b"more");
            SshRequest::of(&data)
        };
        for kind in [
            "ssh-ed25519-cert-v01@openssh.com",
            "ecdsa-sha2-nistp256-cert-v01@openssh.com",
            "sk-ssh-ed25519-cert-v01@openssh.com",
        ] {
            assert_eq!(begins(kind), SshRequest::Certificate);
        }
        assert_eq!(begins("ssh-ed25519"), SshRequest::Raw);
        assert_eq!(SshRequest::of(&[0xff; 40]), SshRequest::Raw);
        assert_eq!(SshRequest::of(b""), SshRequest::Raw);
    }
}
