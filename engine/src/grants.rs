//! Grants: what a daemon lets a user or a group do.
//!
//! A grant names a subject, a right and, if the right is about one, an identity. Its operation and
//! purpose are written as on the command line:
//!
//! | operation | of an identity | what it allows |
//! | --- | --- | --- |
//! | `sign` | yes | to sign for the purpose: `raw`, `sshsig`, `sshsig:NAMESPACE`, `ssh`, `ssh:HOST`, `ssh-forwarded`, `ssh-forwarded:HOST`, `ssh-certificate`, `evidence`, `proof`, `tls`, `node`, `certificate`, `prehash`; without one for each but `ssh-forwarded`, `ssh-certificate` and `prehash` |
//! | `decrypt` | yes | to open files |
//! | `encrypt` | yes | to encrypt to it, and to read the evidence about it |
//! | `connect` | yes | to enter identities that use its keys |
//! | `delete` | yes | to destroy its keys |
//! | `grant` | yes | to grant others to read for it, and to revoke that; what is signed then takes `sign` for `evidence`, too |
//! | `generate` | no | to have keys made |
//! | `adopt` | no | to enter identities for keys on a token |
//! | `list-tokens` | no | to list the tokens |
//! | `submit-evidence` | no | to have evidence stored |
//! | `attach-device` | no | to attach devices of one's own, which then are tokens for everybody |
//! | `use-login` | either | to use tokens that somebody else's PIN opened: for the keys of one identity, or for all |

use std::fmt;

use crate::policy::{Operation, Permission};
use crate::{EngineName, Purpose};

/// Who is granted something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A user.
    Uid(u32),
    /// A group: whoever has it as the primary group.
    Gid(u32),
}

/// What is granted to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewGrant {
    /// To whom.
    pub subject: Subject,
    /// Only on the socket of this name.
    pub socket: Option<String>,
    /// The identity that it is about.
    pub identity: Option<EngineName>,
    /// What.
    pub right: Right,
    /// Whether a person is asked before each use: of `sign` and `decrypt`.
    pub is_confirmed: bool,
}

/// What stands behind an operation whose uses a person confirms. It is part of the name, so that
/// nobody who does not know of it takes the grant for one without.
pub const CONFIRMED: &str = "+confirm";

/// An operation and whether its uses are confirmed, from [`NewGrant::operation`].
pub(crate) fn confirmed(operation: &str) -> (&str, bool) {
    match operation.strip_suffix(CONFIRMED) {
        Some(operation) => (operation, true),
        None => (operation, false),
    }
}

/// A grant in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Grant {
    /// Its number. None is used twice.
    pub id: i64,
    /// What it grants.
    pub what: NewGrant,
}

/// What can be granted: see the table of the [module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table above has them")]
#[non_exhaustive]
pub enum Right {
    Sign(Signs),
    Decrypt,
    Encrypt,
    Connect,
    Delete,
    Grant,
    Generate,
    Adopt,
    ListTokens,
    SubmitEvidence,
    AttachDevice,
    UseLogin,
}

/// The purposes that a key signs for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signs {
    /// Each but those that must be named: `prehash`, since whoever may have digests signed can obtain
    /// any signature; `ssh-forwarded` and `ssh-certificate`, since others log in by them.
    Any,
    /// [`Purpose::Raw`].
    Raw,
    /// [`Purpose::SshSig`], in one namespace or in all.
    SshSig(Option<String>),
    /// [`Purpose::SshLogin`].
    Ssh {
        /// Only to the host of this fingerprint.
        host: Option<String>,
        /// Also through an agent that was forwarded to another machine.
        forwarded: bool,
    },
    /// [`Purpose::SshCertificate`].
    SshCertificate,
    /// [`Purpose::Evidence`].
    Evidence,
    /// [`Purpose::Proof`].
    Proof,
    /// [`Purpose::Tls`], of either side.
    Tls,
    /// [`Purpose::Node`].
    Node,
    /// [`Purpose::Certificate`].
    Certificate,
    /// [`Purpose::Prehash`].
    Prehash,
}

/// Why a grant says nothing that can be granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this cannot be granted: {reason}")]
#[non_exhaustive]
pub struct BadGrant {
    /// What is wrong with it.
    pub reason: String,
}

impl BadGrant {
    fn because(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        BadGrant { reason }
    }

    /// The stable name, for programs.
    pub fn code(&self) -> &'static str {
        "bad-grant"
    }
}

/// The operations but `sign`, whether each is about an identity.
const OPERATIONS: [(&str, Right, IsAbout); 11] = [
    ("decrypt", Right::Decrypt, IsAbout::Identity),
    ("encrypt", Right::Encrypt, IsAbout::Identity),
    ("connect", Right::Connect, IsAbout::Identity),
    ("delete", Right::Delete, IsAbout::Identity),
    ("grant", Right::Grant, IsAbout::Identity),
    ("generate", Right::Generate, IsAbout::None),
    ("adopt", Right::Adopt, IsAbout::None),
    ("list-tokens", Right::ListTokens, IsAbout::None),
    ("submit-evidence", Right::SubmitEvidence, IsAbout::None),
    ("attach-device", Right::AttachDevice, IsAbout::None),
    ("use-login", Right::UseLogin, IsAbout::Either),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum IsAbout {
    Identity,
    None,
    Either,
}

impl NewGrant {
    /// A grant, from its parts as the command and the wire have them; an empty one is not there.
    ///
    /// # Errors
    /// [`BadGrant`].
    pub fn parse(
        subject: Subject,
        socket: &str,
        identity: &str,
        operation: &str,
        purpose: &str,
    ) -> Result<Self, BadGrant> {
        let (operation, is_confirmed) = confirmed(operation);
        let right = Right::parse(operation, purpose)?;
        if is_confirmed && !matches!(right, Right::Sign(_) | Right::Decrypt) {
            return Err(BadGrant::because(format!(
                "`{operation}` uses no key, so that there is nothing to confirm"
            )));
        }
        match (right.is_about(), identity.is_empty()) {
            (IsAbout::Identity, true) => Err(BadGrant::because(format!(
                "`{operation}` is about an identity, and none is named"
            ))),
            (IsAbout::None, false) => Err(BadGrant::because(format!(
                "`{operation}` is not about an identity"
            ))),
            _ => Ok(NewGrant {
                subject,
                socket: Some(socket.to_owned()).filter(|socket| !socket.is_empty()),
                identity: Some(identity)
                    .filter(|identity| !identity.is_empty())
                    .map(EngineName::from),
                right,
                is_confirmed,
            }),
        }
    }

    /// What [`NewGrant::parse`] takes for the operation: its name, with `+confirm` if its uses are
    /// confirmed.
    pub fn operation(&self) -> String {
        let confirmed = if self.is_confirmed { CONFIRMED } else { "" };
        format!("{}{confirmed}", self.right.operation())
    }

    /// Whether it allows this to its subject. `sender` is the identity that the request is about,
    /// for what the permission does not say.
    pub fn allows(&self, sender: &str, wanted: Permission<'_>) -> bool {
        let about = match (wanted, &self.right) {
            (
                Permission::Use {
                    identity,
                    operation: Operation::Sign(purpose),
                },
                Right::Sign(signs),
            ) if signs.include(purpose) => Some(identity),
            (
                Permission::Use {
                    identity,
                    operation: Operation::Decrypt,
                },
                Right::Decrypt,
            )
            | (
                Permission::Encrypt(identity) | Permission::ReadEvidence(identity),
                Right::Encrypt,
            )
            | (Permission::Connect(identity), Right::Connect)
            | (Permission::Delete(identity), Right::Delete)
            | (
                Permission::Grant { by: identity, .. } | Permission::Revoke { by: identity, .. },
                Right::Grant,
            ) => Some(identity),
            (Permission::Generate { .. }, Right::Generate)
            | (Permission::Adopt, Right::Adopt)
            | (Permission::ListTokens, Right::ListTokens)
            | (Permission::SubmitEvidence, Right::SubmitEvidence)
            | (Permission::AttachDevice, Right::AttachDevice) => None,
            (Permission::UseLogin { .. }, Right::UseLogin) => {
                return self.identity.as_deref().is_none_or(|only| only == sender);
            }
            _ => return false,
        };
        match about {
            Some(about) => about.node.is_none() && self.identity.as_deref() == Some(&*about.name),
            None => true,
        }
    }
}

impl Right {
    /// What these words say.
    ///
    /// # Errors
    /// [`BadGrant`].
    pub fn parse(operation: &str, purpose: &str) -> Result<Self, BadGrant> {
        if operation == "sign" {
            return Signs::parse(purpose).map(Right::Sign);
        }
        let known = OPERATIONS.into_iter().find(|(name, ..)| *name == operation);
        let (_, right, _) = known
            .ok_or_else(|| BadGrant::because(format!("there is no operation `{operation}`")))?;
        match purpose.is_empty() {
            true => Ok(right),
            false => Err(BadGrant::because(format!("`{operation}` has no purpose"))),
        }
    }

    /// Its name.
    pub fn operation(&self) -> &'static str {
        let known = OPERATIONS.iter().find(|(_, right, _)| right == self);
        known.map_or("sign", |(name, ..)| name)
    }

    /// The purpose of `sign`; else empty.
    pub fn purpose(&self) -> String {
        match self {
            Right::Sign(signs) => signs.to_string(),
            _ => String::new(),
        }
    }

    fn is_about(&self) -> IsAbout {
        let known = OPERATIONS.iter().find(|(_, right, _)| right == self);
        known.map_or(IsAbout::Identity, |(_, _, about)| *about)
    }
}

/// An SSH login from this machine.
const SSH: &str = "ssh";

/// An SSH login from another machine, too.
const SSH_FORWARDED: &str = "ssh-forwarded";

/// A purpose of SSH logins: to every host, or to that of a fingerprint.
fn ssh(purpose: &str) -> Result<Signs, BadGrant> {
    let (name, host) = match purpose.split_once(':') {
        None => (purpose, None),
        Some((name, host)) => (name, Some(host)),
    };
    let forwarded = match name {
        SSH => false,
        SSH_FORWARDED => true,
        _ => {
            return Err(BadGrant::because(format!(
                "there is no purpose `{purpose}`"
            )));
        }
    };
    if host.is_some_and(|host| !is_ssh_fingerprint(host)) {
        return Err(BadGrant::because(
            "the host is not the fingerprint of a host's key, as `ssh-keygen -l` shows it",
        ));
    }
    Ok(Signs::Ssh {
        host: host.map(str::to_owned),
        forwarded,
    })
}

/// Whether this is `SHA256:` and 32 bytes in base64 without padding.
fn is_ssh_fingerprint(text: &str) -> bool {
    let digits = text.strip_prefix("SHA256:").unwrap_or_default();
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    digits.len() == 43 && digits.bytes().all(is_digit)
}

impl Right {
    /// Whether it names this purpose, and is not for each.
    pub fn names(&self, purpose: &Purpose) -> bool {
        matches!(self, Right::Sign(signs) if *signs != Signs::Any && signs.include(purpose))
    }
}

impl Signs {
    fn parse(purpose: &str) -> Result<Self, BadGrant> {
        Ok(match purpose {
            "" => Signs::Any,
            "raw" => Signs::Raw,
            "sshsig" => Signs::SshSig(None),
            "ssh-certificate" => Signs::SshCertificate,
            "evidence" => Signs::Evidence,
            "proof" => Signs::Proof,
            "tls" => Signs::Tls,
            "node" => Signs::Node,
            "certificate" => Signs::Certificate,
            "prehash" => Signs::Prehash,
            _ if purpose.starts_with("ssh") && !purpose.starts_with("sshsig") => ssh(purpose)?,
            _ => match purpose.strip_prefix("sshsig:") {
                Some("") => return Err(BadGrant::because("the namespace is empty")),
                Some(namespace) => Signs::SshSig(Some(namespace.into())),
                None => {
                    return Err(BadGrant::because(format!(
                        "there is no purpose `{purpose}`"
                    )));
                }
            },
        })
    }

    fn include(&self, purpose: &Purpose) -> bool {
        match (self, purpose) {
            (Signs::Any, Purpose::Prehash | Purpose::Seal | Purpose::SshCertificate) => false,
            (Signs::Any, Purpose::SshLogin { forwarded, .. }) => !forwarded,
            (
                Signs::Ssh { host, forwarded },
                Purpose::SshLogin {
                    host: to,
                    forwarded: is,
                },
            ) => (host.is_none() || host == to) && (*forwarded || !is),
            (Signs::Any | Signs::SshSig(None), Purpose::SshSig { .. }) => true,
            (Signs::SshSig(Some(only)), Purpose::SshSig { namespace, .. }) => only == namespace,
            (Signs::Any, _)
            | (Signs::Raw, Purpose::Raw)
            | (Signs::SshCertificate, Purpose::SshCertificate)
            | (Signs::Evidence, Purpose::Evidence)
            | (Signs::Proof, Purpose::Proof)
            | (Signs::Tls, Purpose::Tls(_))
            | (Signs::Node, Purpose::Node)
            | (Signs::Certificate, Purpose::Certificate)
            | (Signs::Prehash, Purpose::Prehash) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Signs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Signs::Any => "",
            Signs::Raw => "raw",
            Signs::SshSig(None) => "sshsig",
            Signs::SshSig(Some(namespace)) => return write!(f, "sshsig:{namespace}"),
            Signs::Ssh { host, forwarded } => {
                f.write_str(if *forwarded { SSH_FORWARDED } else { SSH })?;
                return host.iter().try_for_each(|host| write!(f, ":{host}"));
            }
            Signs::SshCertificate => "ssh-certificate",
            Signs::Evidence => "evidence",
            Signs::Proof => "proof",
            Signs::Tls => "tls",
            Signs::Node => "node",
            Signs::Certificate => "certificate",
            Signs::Prehash => "prehash",
        })
    }
}

#[cfg(test)]
mod tests {
    use claviger_formats::sshsig::Hash;

    use super::*;
    use crate::EngineId;
    use crate::purpose::TlsSide;

    fn purposes() -> Vec<Purpose> {
        let sshsig = |namespace: &str| Purpose::SshSig {
            namespace: namespace.into(),
            hash: Hash::Sha512,
        };
        vec![
            Purpose::Raw,
            sshsig("file"),
            sshsig("git"),
            Purpose::Evidence,
            Purpose::Proof,
            Purpose::Tls(TlsSide::Server),
            Purpose::Tls(TlsSide::Client),
            Purpose::Node,
            Purpose::Certificate,
            Purpose::Prehash,
        ]
    }

    #[test]
    fn a_grant_to_sign_is_for_the_purpose_that_it_names_and_digests_must_be_named() {
        for (purpose, signs) in [
            (
                "",
                "raw file git evidence proof server client node certificate",
            ),
            ("raw", "raw"),
            ("sshsig", "file git"),
            ("sshsig:file", "file"),
            ("sshsig:other", ""),
            ("evidence", "evidence"),
            ("proof", "proof"),
            ("tls", "server client"),
            ("node", "node"),
            ("certificate", "certificate"),
            ("prehash", "prehash"),
        ] {
            let grant = NewGrant::parse(Subject::Uid(1), "", "alice", "sign", purpose).unwrap();
            assert_eq!(grant.right.purpose(), purpose);
            let [alice, bob] = ["alice", "bob"].map(EngineId::local);
            let allowed = |identity: &EngineId| -> Vec<String> {
                let named = purposes().into_iter().filter(|purpose| {
                    let operation = Operation::Sign(purpose);
                    grant.allows(
                        "alice",
                        Permission::Use {
                            identity,
                            operation,
                        },
                    )
                });
                named
                    .map(|purpose| match purpose {
                        Purpose::SshSig { namespace, .. } => namespace,
                        Purpose::Tls(TlsSide::Server) => "server".into(),
                        Purpose::Tls(TlsSide::Client) => "client".into(),
                        other => other.name().into(),
                    })
                    .collect()
            };
            assert_eq!(allowed(&alice).join(" "), signs, "{purpose}");
            assert!(allowed(&bob).is_empty());
            let decrypts = Permission::Use {
                identity: &alice,
                operation: Operation::Decrypt,
            };
            assert!(!grant.allows("alice", decrypts));
        }
    }

    #[test]
    fn a_grant_of_logins_is_for_its_host_and_for_forwarded_ones_only_if_it_says_so() {
        let [one, other] = ["A", "B"].map(|digit| format!("SHA256:{}", digit.repeat(43)));
        let all = [
            (None, false),
            (Some(&one), false),
            (Some(&other), false),
            (None, true),
            (Some(&one), true),
            (Some(&other), true),
        ];
        for (purpose, allowed) in [
            (String::new(), [true, true, true, false, false, false]),
            ("ssh".into(), [true, true, true, false, false, false]),
            (
                format!("ssh:{one}"),
                [false, true, false, false, false, false],
            ),
            ("ssh-forwarded".into(), [true; 6]),
            (
                format!("ssh-forwarded:{one}"),
                [false, true, false, false, true, false],
            ),
            ("sshsig".into(), [false; 6]),
            ("ssh-certificate".into(), [false; 6]),
        ] {
            let right = Right::parse("sign", &purpose).unwrap();
            assert_eq!(right.purpose(), purpose);
            let Right::Sign(signs) = &right else {
                panic!("{purpose}");
            };
            let found = all.map(|(host, forwarded)| {
                let host = host.cloned();
                signs.include(&Purpose::SshLogin { host, forwarded })
            });
            assert_eq!(found, allowed, "{purpose}");
            let certificate = purpose == "ssh-certificate";
            assert_eq!(signs.include(&Purpose::SshCertificate), certificate);
            assert_eq!(right.names(&Purpose::SshCertificate), certificate);
        }
        let names_raw = |purpose| Right::parse("sign", purpose).unwrap().names(&Purpose::Raw);
        assert_eq!(["", "raw", "ssh"].map(names_raw), [false, true, false]);
    }

    #[test]
    fn a_grant_whose_uses_are_confirmed_says_so_in_its_operation() {
        let grant = |operation| NewGrant::parse(Subject::Uid(1), "", "alice", operation, "");
        for (operation, is_confirmed) in [
            ("sign", false),
            ("sign+confirm", true),
            ("decrypt+confirm", true),
        ] {
            let grant = grant(operation).unwrap();
            assert_eq!(grant.is_confirmed, is_confirmed);
            assert_eq!(grant.operation(), operation);
        }
        let without = grant("sign").unwrap();
        assert_eq!(grant("sign+confirm").unwrap().right, without.right);
        // What uses no key is not confirmed, and who does not know the word refuses it.
        for operation in ["delete+confirm", "sign+confirmed", "+confirm"] {
            assert!(grant(operation).is_err(), "{operation}");
        }
        assert!(Right::parse("sign+confirm", "").is_err());
    }

    #[test]
    fn a_grant_that_says_nothing_is_refused() {
        for (identity, operation, purpose) in [
            ("alice", "", ""),
            ("alice", "sing", ""),
            ("alice", "sign", "sshx"),
            ("alice", "sign", "ssh:"),
            ("alice", "sign", "ssh:example.org"),
            ("alice", "sign", "ssh:SHA256:short"),
            ("alice", "sign", "ssh-certificate:SHA256:x"),
            ("alice", "sign", "sshsig:"),
            ("alice", "decrypt", "raw"),
            ("", "sign", "raw"),
            ("", "delete", ""),
            ("alice", "generate", ""),
            ("alice", "list-tokens", ""),
        ] {
            let bad = NewGrant::parse(Subject::Uid(1), "", identity, operation, purpose);
            assert!(bad.is_err(), "{identity} {operation} {purpose}");
        }
        for (operation, right, about) in OPERATIONS {
            assert_eq!(right.operation(), operation);
            let identity = if about == IsAbout::None { "" } else { "alice" };
            NewGrant::parse(Subject::Gid(1), "", identity, operation, "").unwrap();
        }
    }
}
