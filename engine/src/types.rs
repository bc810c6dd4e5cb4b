//! The vocabulary: engine ids, backends, capabilities, identities.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use claviger_token::{
    Algorithm, Attestation, KeyRef, KeySpec, KeyUse, Protection, PublicKey, Signature, SlotId,
    TokenId, Unfinished,
};
use serde::{Deserialize, Serialize};
use unicode_normalization::is_nfc;

/// A node, named by its public key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeId(pub Arc<PublicKey>);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.fingerprint())
    }
}

/// An opaque string that names an engine on its node.
pub type EngineName = Arc<str>;

/// A name on a node: of a sender, a receiver or an identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EngineId {
    /// The node; `None` is this one.
    pub node: Option<NodeId>,
    /// The name on that node.
    pub name: EngineName,
}

impl EngineId {
    /// The program that holds a node, when it asks for itself: `program`.
    pub fn program() -> Self {
        EngineId::local("program")
    }

    /// The engine called `name` on this node.
    pub fn local(name: impl Into<EngineName>) -> Self {
        EngineId {
            node: None,
            name: name.into(),
        }
    }
}

impl fmt::Display for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{}@{node}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// The longest name of an identity, in bytes of UTF-8.
pub const LONGEST_NAME: usize = 128;

/// Checks that `name` can be the name of an identity. It has 1 to [`LONGEST_NAME`] bytes in Unicode's
/// normalization form C (UAX #15), so that names that people see as the same are the same. It has no
/// invisible characters (control and format characters, changes of direction, unassigned code
/// points), and no white space at its ends.
///
/// # Errors
/// What is wrong with the name, as the end of a sentence.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("it is empty"),
        _ if name.len() > LONGEST_NAME => Err("it is longer than 128 bytes"),
        _ if name.chars().any(char::is_control) => Err("it contains control characters"),
        _ if name.chars().any(is_unseen) => Err("it contains invisible or formatting characters"),
        _ if !is_nfc(name) => Err("it is not in Unicode's normalization form C (NFC)"),
        _ if name.trim() != name => Err("it begins or ends with white space"),
        _ if name.starts_with(claviger_token::Fingerprint::PREFIX) => {
            Err("it looks like a key's fingerprint")
        }
        _ => Ok(()),
    }
}

/// Whether a character is invisible: it formats or separates others, or is private or unassigned.
fn is_unseen(c: char) -> bool {
    use unicode_properties::{GeneralCategory as Category, UnicodeGeneralCategory};
    matches!(
        c.general_category(),
        Category::Control
            | Category::Format
            | Category::LineSeparator
            | Category::ParagraphSeparator
            | Category::PrivateUse
            | Category::Surrogate
            | Category::Unassigned
    )
}

/// The name of an engine of an identity:
/// `name ++ "_" ++ kind ++ "_" ++ addr.name`, with `name` the requester's.
pub fn engine_name(usage: KeyUse, who_asked: &EngineId) -> EngineName {
    let (name, kind) = (&who_asked.name, kind(usage));
    format!("{name}_{kind}_{name}").into()
}

/// What stands in the name of an engine that does this.
fn kind(usage: KeyUse) -> &'static str {
    match usage {
        KeyUse::Sign => "committer",
        KeyUse::Decrypt => "decryptor",
    }
}

/// The identity on this node whose engine for `usage` would be called `engine`, if such an engine
/// can be called so.
pub fn owner_by_name(usage: KeyUse, engine: &str) -> Option<EngineId> {
    let kind = kind(usage);
    // Between the two names there are the kind and two underscores.
    let twice = engine.len().checked_sub(kind.len() + 2)?;
    let (name, rest) = engine.split_at_checked(twice / 2)?;
    let rest = rest.strip_prefix('_')?.strip_prefix(kind)?;
    (rest.strip_prefix('_')? == name).then(|| EngineId::local(name))
}

/// The place of an identity's keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum Backend {
    /// In the memory of this process, as long as it runs.
    LocalMemory,
    /// On a device attached to this machine.
    LocalConnection {
        /// Which device: a backend string such as `pkcs11:token=bench`.
        subtype: String,
    },
    /// On another machine, under another identity.
    RemoteConnection {
        /// The identity on that machine.
        external_identity: String,
    },
}

const MEMORY: &str = "memory:";
const REMOTE: &str = "remote:";

impl From<String> for Backend {
    fn from(text: String) -> Self {
        match text.strip_prefix(REMOTE) {
            Some(identity) => Backend::RemoteConnection {
                external_identity: identity.into(),
            },
            None if text == MEMORY => Backend::LocalMemory,
            None => Backend::LocalConnection { subtype: text },
        }
    }
}

impl From<&str> for Backend {
    fn from(text: &str) -> Self {
        Backend::from(text.to_owned())
    }
}

impl From<Backend> for String {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::LocalMemory => MEMORY.into(),
            Backend::LocalConnection { subtype } => subtype,
            Backend::RemoteConnection { external_identity } => {
                format!("{REMOTE}{external_identity}")
            }
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from(self.clone()))
    }
}

/// The cryptosystem of an identity, which decides the algorithms of its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdParams {
    /// Signs with Ed25519, decrypts with an X25519 key beside it.
    Ed25519,
    /// Signs with secp256k1, decrypts with an X25519 key beside it.
    Secp256k1,
    /// Signs with BLS12-381; does not decrypt.
    Bls,
    /// Signs with P-256, decrypts with a second P-256 key.
    P256,
    /// Signs with P-384; does not decrypt.
    P384,
    /// Signs and decrypts with two RSA keys of 2048 bits.
    Rsa2048,
    /// Signs and decrypts with two RSA keys of 3072 bits.
    Rsa3072,
    /// Signs and decrypts with two RSA keys of 4096 bits.
    Rsa4096,
}

impl IdParams {
    /// All of them, in the order of display.
    pub const ALL: [IdParams; 8] = [
        IdParams::P256,
        IdParams::P384,
        IdParams::Ed25519,
        IdParams::Secp256k1,
        IdParams::Rsa2048,
        IdParams::Rsa3072,
        IdParams::Rsa4096,
        IdParams::Bls,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            IdParams::Bls => "bls",
            other => other.signing().name(),
        }
    }

    fn signing(self) -> Algorithm {
        match self {
            IdParams::Ed25519 => Algorithm::Ed25519,
            IdParams::Secp256k1 => Algorithm::Secp256k1,
            IdParams::Bls => Algorithm::Bls12381,
            IdParams::P256 => Algorithm::P256,
            IdParams::P384 => Algorithm::P384,
            IdParams::Rsa2048 => Algorithm::Rsa2048,
            IdParams::Rsa3072 => Algorithm::Rsa3072,
            IdParams::Rsa4096 => Algorithm::Rsa4096,
        }
    }

    /// The key for `usage`, or `None` if this cryptosystem has none.
    pub fn key(self, usage: KeyUse) -> Option<KeySpec> {
        let algorithm = match (usage, self) {
            (KeyUse::Sign, _) => self.signing(),
            (KeyUse::Decrypt, IdParams::Ed25519 | IdParams::Secp256k1) => Algorithm::X25519,
            (KeyUse::Decrypt, IdParams::Bls | IdParams::P384) => return None,
            (KeyUse::Decrypt, _) => self.signing(),
        };
        Some(KeySpec { algorithm, usage })
    }
}

impl fmt::Display for IdParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for IdParams {
    type Err = String;

    /// Parses a [name](IdParams::name).
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        IdParams::ALL
            .into_iter()
            .find(|p| p.name() == s)
            .ok_or_else(|| {
                let names: Vec<_> = IdParams::ALL.iter().map(|p| p.name()).collect();
                format!("known are {}", names.join(", "))
            })
    }
}

/// The capabilities of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capabilities {
    /// Commit, that is sign.
    Commit,
    /// Decrypt.
    Decrypt,
    /// Both, with a key for each.
    CommitAndDecrypt,
}

impl Capabilities {
    /// Whether the key use is among them.
    pub fn include(self, usage: KeyUse) -> bool {
        match self {
            Capabilities::Commit => usage == KeyUse::Sign,
            Capabilities::Decrypt => usage == KeyUse::Decrypt,
            Capabilities::CommitAndDecrypt => true,
        }
    }

    /// The key uses of these capabilities.
    pub fn uses(self) -> impl Iterator<Item = KeyUse> {
        [KeyUse::Sign, KeyUse::Decrypt]
            .into_iter()
            .filter(move |u| self.include(*u))
    }

    /// Whether each of them is among `available`.
    pub fn subset_of(self, available: Capabilities) -> bool {
        self.uses().all(|usage| available.include(usage))
    }

    /// `["commit"]`, `["decrypt"]` or both.
    pub fn names(self) -> Vec<&'static str> {
        self.uses()
            .map(|usage| match usage {
                KeyUse::Sign => "commit",
                KeyUse::Decrypt => "decrypt",
            })
            .collect()
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(","))
    }
}

impl FromStr for Capabilities {
    type Err = &'static str;

    /// Parses `commit`, `decrypt`, or both, separated by a comma.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "commit" => Ok(Capabilities::Commit),
            "decrypt" => Ok(Capabilities::Decrypt),
            "commit,decrypt" | "decrypt,commit" => Ok(Capabilities::CommitAndDecrypt),
            _ => Err("capabilities are commit, decrypt or commit,decrypt"),
        }
    }
}

/// A signature together with its algorithm.
pub type Commitment = Signature;

/// An identity: its keys, capabilities and engines.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdentityInfo {
    /// The place of its keys.
    pub backend: Backend,
    /// What it can do.
    pub capabilities: Capabilities,
    /// The engine that signs for it.
    pub commitment_engine: Option<EngineId>,
    /// The engine that decrypts for it.
    pub decryption_engine: Option<EngineId>,
    /// The keys of its engines, one for each capability.
    pub keys: Vec<KeyInfo>,
}

impl IdentityInfo {
    /// An identity with these keys, and no engines yet.
    pub fn new(backend: Backend, capabilities: Capabilities, keys: Vec<KeyInfo>) -> Self {
        IdentityInfo {
            backend,
            capabilities,
            commitment_engine: None,
            decryption_engine: None,
            keys,
        }
    }

    /// The key for a use.
    pub fn key(&self, usage: KeyUse) -> Option<&KeyInfo> {
        self.keys.iter().find(|k| k.usage == usage)
    }
}

/// A key that an identity's engine is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyInfo {
    /// The use of the key.
    pub usage: KeyUse,
    /// Its token.
    pub token: TokenId,
    /// Its slot.
    pub slot: SlotId,
    /// Its public key.
    pub public_key: PublicKey,
    /// Its origin.
    pub origin: Origin,
    /// What the token stated about its private key when it was made or adopted.
    pub protection: Option<Protection>,
    /// The token's own certificate of that, if it has one.
    pub attestation: Option<Attestation>,
    /// The identity that the key was made or adopted for.
    pub owner: EngineId,
    /// The key was destroyed, or released, when its owner was deleted.
    pub deleted: bool,
}

impl KeyInfo {
    /// A key for one use, and where it is. Nothing is stated about its private key yet.
    pub fn new(
        usage: KeyUse,
        key: KeyRef,
        token: TokenId,
        (origin, owner): (Origin, EngineId),
    ) -> Self {
        KeyInfo {
            usage,
            token,
            slot: key.slot,
            public_key: key.public_key,
            origin,
            protection: None,
            attestation: None,
            owner,
            deleted: false,
        }
    }

    /// The key as its token is asked for it.
    pub(crate) fn key_ref(&self) -> KeyRef {
        KeyRef {
            slot: self.slot.clone(),
            public_key: self.public_key.clone(),
        }
    }

    /// The key as an intent to destroy it has it.
    pub(crate) fn doomed(&self) -> Unfinished {
        Unfinished {
            slot: self.slot.clone(),
            mark: String::new(),
            public_key: Some(self.public_key.clone()),
        }
    }
}

/// The origin of a key, which decides what happens to it when its identity is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Generated for its identity: destroyed with it.
    Generated,
    /// Found on the token: released, never destroyed.
    Adopted,
}

/// The engines of an identity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Engines {
    /// The one that signs for it.
    pub commitment_engine: Option<EngineId>,
    /// The one that decrypts for it.
    pub decryption_engine: Option<EngineId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_names_are_derived_from_the_requester() {
        let alice = EngineId::local("alice");
        assert_eq!(&*engine_name(KeyUse::Sign, &alice), "alice_committer_alice");
        assert_eq!(
            &*engine_name(KeyUse::Decrypt, &alice),
            "alice_decryptor_alice"
        );
    }

    #[test]
    fn the_owner_is_found_by_the_name_of_its_engine_and_by_no_other_name() {
        for name in ["alice", "", "é", "a_committer_a", "_", "committer"] {
            for usage in [KeyUse::Sign, KeyUse::Decrypt] {
                let owner = EngineId::local(name);
                let engine = engine_name(usage, &owner);
                assert_eq!(owner_by_name(usage, &engine), Some(owner), "{engine}");
            }
        }
        for other in [
            "",
            "committer",
            "_committer",
            "alice_committer_bob",
            "alice_committer_alic",
            "alice_committer_alicee",
            "alice_decryptor_alice",
            "alice-committer_alice",
            "é_committer_e",
            "identity_management",
        ] {
            assert_eq!(owner_by_name(KeyUse::Sign, other), None, "{other}");
        }
    }

    #[test]
    fn capabilities_only_shrink() {
        use Capabilities::*;
        let all = [Commit, Decrypt, CommitAndDecrypt];
        for asked in all {
            for available in all {
                let expected = asked == available || available == CommitAndDecrypt;
                assert_eq!(
                    asked.subset_of(available),
                    expected,
                    "{asked} of {available}"
                );
            }
        }
    }

    #[test]
    fn backends_read_back() {
        for text in ["memory:", "pkcs11:token=a", "remote:x"] {
            assert_eq!(Backend::from(text).to_string(), text);
        }
        assert_eq!(Backend::from("memory:"), Backend::LocalMemory);
    }

    #[test]
    fn names_that_would_harm_are_refused() {
        for name in ["", " a", "a\n", &"x".repeat(129), "SHA256:abc"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for unseen in [
            '\u{200b}', '\u{202e}', '\u{2066}', '\u{ad}', '\u{feff}', '\u{e000}',
        ] {
            assert!(check_name(&format!("a{unseen}b")).is_err(), "{unseen:?}");
        }
        // An e and an accent are not the letter with the accent.
        assert!(check_name("Rene\u{301}e").is_err());
        for name in [
            "a",
            "Ελένη",
            "Ren\u{e9}e",
            "李雷",
            "build bot 7",
            &"x".repeat(128),
        ] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }
}
