//! One key on an attached device.

use claviger_token::possession;
use claviger_token::{
    Algorithm, Call, Decryptor, DigestSigner, Error, KeyRef, PublicKey, Secret, Signature,
    SignatureScheme, Signer, SlotId, Unwrap, agreement,
};

use crate::device::Device;
use crate::link::{Reply, Request, StatedKey};

/// A key, which is used by its public half.
pub(crate) struct AttachedKey {
    device: Device,
    key: StatedKey,
}

impl AttachedKey {
    pub(crate) fn new(device: Device, key: StatedKey) -> Self {
        AttachedKey { device, key }
    }

    fn slot(&self) -> SlotId {
        SlotId::new(&*self.key.slot)
    }

    /// The key is still there, as far as the device shows.
    fn is_listed(&self, call: &Call) -> Result<(), Error> {
        let key = KeyRef {
            slot: self.slot(),
            public_key: self.key.public_key.clone(),
        };
        match self.device.find(&key, call)? {
            Some(_) => Ok(()),
            None => Err(self.device.not_found(&self.key.public_key)),
        }
    }

    /// Has the message or its digest signed, and verifies that.
    fn signed(&self, data: &[u8], is_digest: bool, call: &Call) -> Result<Signature, Error> {
        let scheme = self.scheme().ok_or_else(|| Error::BadMessage {
            reason: "the key does not sign".into(),
        })?;
        let key = &self.key.public_key;
        let request = Request::Sign {
            slot: &self.key.slot,
            public_key: key,
            scheme,
            data,
            is_digest,
        };
        let Reply::Signature(bytes) = self.device.ask(request, call)? else {
            let reason = "it is the answer to something else";
            return Err(self.device.malformed("sign", reason));
        };
        let signature = Signature::new(scheme, bytes).and_then(with_low_s);
        let verified = signature.and_then(|signature| {
            match is_digest {
                true => key.verify_digest(data, &signature)?,
                false => key.verify(data, &signature)?,
            }
            Ok(signature)
        });
        verified.or_else(|_| {
            // It may be that of another key, in its place.
            self.is_listed(call)?;
            let reason = "the signature does not verify";
            Err(self.device.malformed("sign", reason))
        })
    }

    /// Whether the device is given the digest of a message.
    fn takes_digests(&self) -> bool {
        let stated = self.device.description().stated();
        let hashes = |scheme: SignatureScheme| scheme.digest_length().is_some();
        stated.takes_digests && self.scheme().is_some_and(hashes)
    }
}

/// The same signature with the lower of two values of s, where the scheme has it so.
fn with_low_s(signature: Signature) -> Result<Signature, claviger_token::signing::BadSignature> {
    if signature.scheme() != SignatureScheme::EcdsaSecp256k1Sha256 {
        return Ok(signature);
    }
    let parsed = k256::ecdsa::Signature::from_slice(signature.as_bytes());
    let parsed = parsed.map_err(|_| claviger_token::signing::BadSignature)?;
    match parsed.normalize_s() {
        Some(low) => Signature::new(signature.scheme(), low.to_bytes().to_vec()),
        None => Ok(signature),
    }
}

impl Signer for AttachedKey {
    fn public_key(&self) -> &PublicKey {
        &self.key.public_key
    }

    fn slot(&self) -> SlotId {
        AttachedKey::slot(self)
    }

    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error> {
        let digest = self.scheme().and_then(|scheme| scheme.digest(message));
        if let Some(digest) = digest.filter(|_| self.takes_digests()) {
            return self.signed(&digest, true, call);
        }
        let longest = self.device.description().stated().longest_message;
        if message.len() > longest {
            return Err(Error::BadMessage {
                reason: format!("the device takes messages of up to {longest} bytes"),
            });
        }
        self.signed(message, false, call)
    }

    fn of_digests(&self) -> Option<&dyn DigestSigner> {
        self.takes_digests().then_some(self as _)
    }
}

impl DigestSigner for AttachedKey {
    fn sign_digest(&self, digest: &[u8], call: &Call) -> Result<Signature, Error> {
        self.scheme()
            .map_or(Ok(()), |scheme| scheme.check_digest(digest))?;
        self.signed(digest, true, call)
    }
}

impl Decryptor for AttachedKey {
    fn public_key(&self) -> &PublicKey {
        &self.key.public_key
    }

    fn slot(&self) -> SlotId {
        AttachedKey::slot(self)
    }

    /// What the device lists proves nothing, so it answers a challenge as well.
    fn confirm(&self, call: &Call) -> Result<(), Error> {
        self.is_listed(call)?;
        let id = &self.device.description().token();
        match possession::of_decryptor(self, id, call) {
            Err(Error::NoPossession { .. }) => Err(self.device.not_found(&self.key.public_key)),
            other => other,
        }
    }

    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error> {
        call.check()?;
        let own = self.key.public_key.algorithm();
        let peer = match request {
            Unwrap::Agree { peer } if matches!(own, Algorithm::P256 | Algorithm::X25519) => peer,
            _ => return Err(Error::DecryptionFailed),
        };
        agreement::peer_bytes(own, peer)?;
        let request = Request::Agree {
            slot: &self.key.slot,
            public_key: &self.key.public_key,
            peer,
        };
        match self.device.ask(request, call)? {
            Reply::Secret(secret) if secret.len() == agreement::SECRET_LENGTH => {
                agreement::unknown_to_others(secret)
            }
            Reply::Secret(_) => Err(self.device.malformed("agree", "a secret has 32 bytes")),
            _ => {
                let reason = "it is the answer to something else";
                Err(self.device.malformed("agree", reason))
            }
        }
    }
}
