//! Grants: what a daemon lets a user or a group do.
//!
//! A grant names a subject, a right and, if the right is about one, an identity. Its operation and
//! purpose are written as on the command line:
//!
//! | operation | of an identity | what it allows |
//! | --- | --- | --- |
//! | `sign` | yes | to sign for the purpose: `raw`, `sshsig`, `sshsig:NAMESPACE`, `evidence`, `proof`, `tls`, `node`, `certificate`, `prehash`; without one for each but `prehash` |
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
pub struct NewGrant {
    /// To whom.
    pub subject: Subject,
    /// Only on the socket of this name.
    pub socket: Option<String>,
    /// The identity that it is about.
    pub identity: Option<EngineName>,
    /// What.
    pub right: Right,
}

/// A grant in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Each but `prehash`: whoever may have digests signed can obtain any signature.
    Any,
    /// [`Purpose::Raw`].
    Raw,
    /// [`Purpose::SshSig`], in one namespace or in all.
    SshSig(Option<String>),
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
        let right = Right::parse(operation, purpose)?;
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
            }),
        }
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

impl Signs {
    fn parse(purpose: &str) -> Result<Self, BadGrant> {
        Ok(match purpose {
            "" => Signs::Any,
            "raw" => Signs::Raw,
            "sshsig" => Signs::SshSig(None),
            "evidence" => Signs::Evidence,
            "proof" => Signs::Proof,
            "tls" => Signs::Tls,
            "node" => Signs::Node,
            "certificate" => Signs::Certificate,
            "prehash" => Signs::Prehash,
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
            (Signs::Any, Purpose::Prehash | Purpose::Seal) => false,
            (Signs::Any | Signs::SshSig(None), Purpose::SshSig { .. }) => true,
            (Signs::SshSig(Some(only)), Purpose::SshSig { namespace, .. }) => only == namespace,
            (Signs::Any, _)
            | (Signs::Raw, Purpose::Raw)
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
    fn a_grant_that_says_nothing_is_refused() {
        for (identity, operation, purpose) in [
            ("alice", "", ""),
            ("alice", "sing", ""),
            ("alice", "sign", "ssh"),
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
