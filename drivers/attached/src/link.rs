//! What a device is asked for, and what it answers.

use std::time::Duration;

use claviger_token::{
    Algorithm, Call, Error, KeySpec, KeyUse, Protection, PublicKey, Secret, SignatureScheme,
};

use crate::description::LONGEST_LABEL;

/// The longest name of a slot, in bytes.
const LONGEST_SLOT: usize = 64;

/// The way to one device.
pub trait Link: Send + Sync {
    /// Asks the device, and blocks until it answers.
    ///
    /// When the call of `asked` ends, the device is told that nobody waits any more. Its answer is
    /// then waited for as long as [`Asked::patience`] says, and still counts.
    ///
    /// # Errors
    /// [`Failure`].
    fn ask(&self, asked: &Asked<'_>) -> Result<Reply, Failure>;

    /// Ends the attachment of a device that broke the rules.
    fn end(&self, why: &'static str);
}

/// A request to a device, and its circumstances.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// What it is asked for.
    pub request: Request<'a>,
    /// How long it may take, and whether it was given up.
    pub call: &'a Call,
    /// How long its answer is waited for after that.
    pub patience: Duration,
    /// Who hears what the device says before it answers.
    pub heard: &'a dyn Fn(Happening),
}

/// What a device is asked for.
#[derive(Clone, Copy)]
pub enum Request<'a> {
    /// All its keys.
    List,
    /// To make a key in a slot.
    Generate {
        /// The slot, whose name nobody could guess.
        slot: &'a str,
        /// The kind of key.
        spec: KeySpec,
        /// The label of the key.
        label: &'a str,
    },
    /// To give a key another label.
    SetLabel {
        /// The key's slot.
        slot: &'a str,
        /// The key.
        public_key: &'a PublicKey,
        /// Its new label.
        label: &'a str,
    },
    /// To sign with a key.
    Sign {
        /// The key's slot.
        slot: &'a str,
        /// The key.
        public_key: &'a PublicKey,
        /// How.
        scheme: SignatureScheme,
        /// The message, or its digest.
        data: &'a [u8],
        /// Whether the data is the digest of the scheme.
        is_digest: bool,
    },
    /// To agree on a secret.
    Agree {
        /// The key's slot.
        slot: &'a str,
        /// The key.
        public_key: &'a PublicKey,
        /// With whom: a key of the same algorithm.
        peer: &'a PublicKey,
    },
    /// To destroy a key.
    Delete {
        /// The key's slot.
        slot: &'a str,
        /// The key.
        public_key: &'a PublicKey,
    },
}

impl Request<'_> {
    /// Its name in errors and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Request::List => "list",
            Request::Generate { .. } => "generate",
            Request::SetLabel { .. } => "set-label",
            Request::Sign { .. } => "sign",
            Request::Agree { .. } => "agree",
            Request::Delete { .. } => "delete",
        }
    }
}

/// What a device answers.
pub enum Reply {
    /// All its keys.
    Keys(Vec<StatedKey>),
    /// The new key.
    Generated {
        /// Its public half.
        public_key: PublicKey,
        /// What the device states of the private one.
        protection: Protection,
    },
    /// The signature, in the form that its scheme has.
    Signature(Vec<u8>),
    /// The secret of an agreement.
    Secret(Secret),
    /// It is done; of a deletion whether there was such a key.
    Done(bool),
}

/// A key as a device states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatedKey {
    pub(crate) slot: String,
    pub(crate) usage: KeyUse,
    pub(crate) public_key: PublicKey,
    pub(crate) label: String,
}

impl StatedKey {
    /// A key in a slot, whose public half is in the form of [`public_key`](Self::public_key).
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        slot: String,
        spec: KeySpec,
        public_key: &[u8],
        label: String,
    ) -> Result<Self, &'static str> {
        if slot.is_empty() || slot.len() > LONGEST_SLOT || !slot.bytes().all(is_of_slot) {
            return Err("a slot is 1 to 64 letters, digits, `-` and `_`");
        }
        if label.len() > LONGEST_LABEL {
            return Err("a label is longer than 1,024 bytes");
        }
        if !spec.algorithm.can(spec.usage) {
            return Err("a key has a use that it cannot have");
        }
        Ok(StatedKey {
            slot,
            usage: spec.usage,
            public_key: StatedKey::public_key(spec.algorithm, public_key)?,
            label,
        })
    }

    /// A public key as a device states it: the DER of its SubjectPublicKeyInfo, of BLS12-381 the
    /// compressed point.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn public_key(algorithm: Algorithm, bytes: &[u8]) -> Result<PublicKey, &'static str> {
        let key = match algorithm {
            Algorithm::Bls12381 => PublicKey::from_bytes(algorithm, bytes),
            _ => PublicKey::from_der(bytes),
        };
        key.ok()
            .filter(|key| key.algorithm() == algorithm)
            .ok_or("a public key is none, or of another algorithm")
    }
}

fn is_of_slot(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// What a device says before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// It waits to be touched.
    TouchNeeded,
    /// It waits for somebody to approve.
    ApprovalNeeded,
    /// The person has done it.
    PersonDone,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The device answers that it does not do it.
    Refused {
        /// Why, by a stable code.
        code: String,
        /// Why, for people.
        message: String,
    },
    /// The answer is none.
    Malformed(&'static str),
    /// The device is not attached any more.
    Gone,
    /// The device has too many requests.
    Busy,
    /// The call has ended, and nobody knows what the device did.
    Ended(Error),
    /// The call has ended before the device was asked.
    NotBegun(Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_out_of_its_bounds_is_none() {
        let point = {
            let bytes = [9; 32];
            PublicKey::from_bytes(Algorithm::X25519, &bytes).unwrap()
        };
        let der = point.to_der().unwrap();
        let spec = KeySpec::decrypt(Algorithm::X25519);
        let new = |slot: &str, spec, key: &[u8], label: &str| {
            StatedKey::new(slot.into(), spec, key, label.into())
        };
        assert_eq!(new("a-1_Z", spec, &der, "").unwrap().public_key, point);
        for slot in ["", "a#b", "a b", "é", &"a".repeat(65)] {
            new(slot, spec, &der, "").unwrap_err();
        }
        new("a", spec, &der, &"l".repeat(LONGEST_LABEL + 1)).unwrap_err();
        new("a", spec, &der[1..], "").unwrap_err();
        new("a", KeySpec::sign(Algorithm::X25519), &der, "").unwrap_err();
        new("a", KeySpec::decrypt(Algorithm::P256), &der, "").unwrap_err();
    }
}
