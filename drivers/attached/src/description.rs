//! What a device states of itself.

use claviger_token::key::to_hex;
use claviger_token::{Algorithm, KeySpec, KeyUse, Pace, PublicKey, TokenId, TokenInfo};
use sha2::{Digest, Sha256};

/// The longest label of a device or of a key, in bytes.
pub const LONGEST_LABEL: usize = 1024;

/// So many keys a device holds at most: all of them are in each list.
pub const MOST_KEYS: usize = 1024;

/// The maker of each attached device, as far as anybody knows. What a device says of that is no
/// part of its name.
const MANUFACTURER: &str = "program";

/// How many operations a device handles at a time.
const WORKERS: usize = 4;

/// What a device states of itself, as it comes.
#[derive(Debug, Clone)]
pub struct Statement {
    /// The scheme of its backends.
    pub kind: String,
    /// What it is called, for people.
    pub label: String,
    /// What it is, for people.
    pub model: String,
    /// Its identity key, which has answered a challenge.
    pub identity: PublicKey,
    /// The kinds of key that it makes.
    pub makes: Vec<KeySpec>,
    /// The kinds of key that it uses.
    pub uses: Vec<KeySpec>,
    /// Whether it signs digests, where the scheme has one. Else it is given whole messages.
    pub takes_digests: bool,
    /// The longest message that it is given, in bytes.
    pub longest_message: usize,
    /// How many keys it holds.
    pub most_keys: usize,
}

/// What a device states of itself, within its bounds.
#[derive(Debug, Clone)]
pub struct Description {
    stated: Statement,
    serial: String,
}

/// A statement that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device is described wrongly: {0}")]
pub struct BadDescription(pub &'static str);

impl Description {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`BadDescription`].
    pub fn new(stated: Statement) -> Result<Self, BadDescription> {
        let Some(identity) = stated.identity.to_der() else {
            return Err(BadDescription("its identity key has no usual encoding"));
        };
        if !stated.identity.algorithm().can(KeyUse::Sign) {
            return Err(BadDescription("its identity key does not sign"));
        }
        if [&stated.label, &stated.model]
            .iter()
            .any(|text| text.len() > LONGEST_LABEL || text.chars().any(char::is_control))
        {
            return Err(BadDescription(
                "a name is too long or has control characters",
            ));
        }
        check_specs(&stated.uses)?;
        check_specs(&stated.makes)?;
        if stated.uses.is_empty() || !stated.makes.iter().all(|spec| stated.uses.contains(spec)) {
            return Err(BadDescription("it makes keys that it does not use"));
        }
        if stated.most_keys == 0 || stated.most_keys > MOST_KEYS {
            return Err(BadDescription("it holds 1 to 1,024 keys"));
        }
        Ok(Description {
            serial: to_hex(&Sha256::digest(identity)),
            stated,
        })
    }

    /// The fingerprint of its identity key: SHA-256 over the DER of the SubjectPublicKeyInfo, in 64
    /// hexadecimal digits.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The scheme of its backends.
    pub fn kind(&self) -> &str {
        &self.stated.kind
    }

    /// The identity key.
    pub fn identity(&self) -> &PublicKey {
        &self.stated.identity
    }

    pub(crate) fn stated(&self) -> &Statement {
        &self.stated
    }

    /// The token's name.
    pub fn token(&self) -> TokenId {
        TokenId {
            kind: self.stated.kind.clone(),
            manufacturer: MANUFACTURER.into(),
            serial: self.serial.clone(),
        }
    }

    /// The backend that names just this one.
    pub(crate) fn backend(&self) -> String {
        format!("{}:serial={}", self.stated.kind, self.serial)
    }

    pub(crate) fn info(&self) -> TokenInfo {
        let mut info = TokenInfo::new(self.token(), self.backend());
        info.model.clone_from(&self.stated.model);
        info.label.clone_from(&self.stated.label);
        info.makes.clone_from(&self.stated.makes);
        info.uses.clone_from(&self.stated.uses);
        info.untried.clone_from(&self.stated.uses);
        info.remembered_as = format!("{} {}", self.stated.kind, self.serial);
        info.pace = Pace::Slow { workers: WORKERS };
        info
    }
}

fn check_specs(specs: &[KeySpec]) -> Result<(), BadDescription> {
    for (at, spec) in specs.iter().enumerate() {
        if !spec.algorithm.can(spec.usage) || specs[..at].contains(spec) {
            return Err(BadDescription("a kind of key is impossible or named twice"));
        }
        let agrees = matches!(spec.algorithm, Algorithm::P256 | Algorithm::X25519);
        if spec.usage == KeyUse::Decrypt && !agrees {
            return Err(BadDescription(
                "a key that decrypts agrees: with P-256 or X25519",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated() -> Statement {
        let bytes = from("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        Statement {
            kind: "attached".into(),
            label: "browser".into(),
            model: String::new(),
            identity: PublicKey::from_bytes(Algorithm::Ed25519, &bytes).unwrap(),
            makes: vec![KeySpec::sign(Algorithm::P256)],
            uses: vec![
                KeySpec::sign(Algorithm::P256),
                KeySpec::decrypt(Algorithm::X25519),
            ],
            takes_digests: true,
            longest_message: 1000,
            most_keys: 10,
        }
    }

    fn from(hex: &str) -> Vec<u8> {
        claviger_token::key::from_hex(hex).unwrap()
    }

    #[test]
    fn a_device_is_called_by_the_fingerprint_of_its_identity_key() {
        let one = Description::new(stated()).unwrap();
        let other = Statement {
            label: "another".into(),
            model: "another".into(),
            most_keys: 1,
            ..stated()
        };
        let other = Description::new(other).unwrap();
        assert_eq!(one.token(), other.token());
        assert_eq!(one.serial().len(), 64);
        assert_eq!(one.backend(), format!("attached:serial={}", one.serial()));
    }

    #[test]
    fn a_statement_out_of_its_bounds_is_refused() {
        let refused = |change: fn(&mut Statement)| {
            let mut altered = stated();
            change(&mut altered);
            Description::new(altered).unwrap_err();
        };
        refused(|it| it.label = "a\nb".into());
        refused(|it| it.model = "a".repeat(LONGEST_LABEL + 1));
        refused(|it| it.makes.push(KeySpec::sign(Algorithm::P384)));
        refused(|it| it.uses.push(KeySpec::sign(Algorithm::P256)));
        refused(|it| it.uses.push(KeySpec::sign(Algorithm::X25519)));
        refused(|it| it.uses.push(KeySpec::decrypt(Algorithm::Rsa2048)));
        refused(|it| it.uses.clear());
        refused(|it| it.most_keys = 0);
        refused(|it| it.most_keys = MOST_KEYS + 1);
        refused(|it| {
            let bytes = from("0900000000000000000000000000000000000000000000000000000000000000");
            it.identity = PublicKey::from_bytes(Algorithm::X25519, &bytes).unwrap();
        });
    }
}
