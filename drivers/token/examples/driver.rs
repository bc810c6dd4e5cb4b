//! A driver in about a hundred lines: one token with one Ed25519 key, made when the driver is. It only
//! signs; other requests get errors of their own.
//!
//! Test a real driver with the conformance suite, `claviger_conformance`.

use std::sync::Arc;

use claviger_token::{
    About, Algorithm, Call, Decryptor, Deletion, Detail, Driver, Error, GeneratedKey, KeyRef,
    KeySpec, KeyUse, Listed, Listing, NewKey, Pace, PublicKey, Signature, SignatureScheme, Signer,
    SlotId, SlotInfo, Token, TokenId, TokenInfo, Unfinished, possession,
};
use ed25519_dalek::{Signer as _, SigningKey};

struct OneKeyDriver(Arc<OneKey>);

struct OneKey {
    info: TokenInfo,
    key: Arc<Key>,
}

struct Key(TokenId, SigningKey, PublicKey);

impl OneKeyDriver {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let id = TokenId {
            kind: "onekey".into(),
            manufacturer: "Example".into(),
            serial: "1".into(),
        };
        let key = SigningKey::generate(&mut rand_core::OsRng);
        let public = PublicKey::from_bytes(Algorithm::Ed25519, key.verifying_key().as_bytes())?;
        let mut info = TokenInfo::new(id.clone(), "onekey:");
        info.uses = vec![KeySpec::sign(Algorithm::Ed25519)];
        (info.durable, info.pace) = (false, Pace::Quick);
        let key = Arc::new(Key(id, key, public));
        Ok(OneKeyDriver(Arc::new(OneKey { info, key })))
    }
}

impl Driver for OneKeyDriver {
    fn about(&self) -> About {
        About::new("onekey", "a token with one key")
    }

    fn look(&self, _: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        let info = self.0.info.clone();
        let found = Listed::with_slots(info, detail, |_| self.0.slots(call));
        Ok(Listing::new([found], []))
    }

    fn named_slot(&self, _: &str) -> Result<Option<SlotId>, Error> {
        Ok(None)
    }

    fn open(&self, _: &str, _: &Call) -> Result<Arc<dyn Token>, Error> {
        Ok(self.0.clone())
    }
}

impl Token for OneKey {
    fn info(&self) -> &TokenInfo {
        &self.info
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        call.check()?;
        let mut slot = SlotInfo::occupied(SlotId::new("1")).with_key(self.key.2.clone());
        slot.uses = vec![KeyUse::Sign];
        Ok(vec![slot])
    }

    fn free_slots(&self, specs: &[KeySpec], _: &[SlotId], _: &Call) -> Result<Vec<SlotId>, Error> {
        // It makes no keys, so this refuses every kind.
        (specs.iter()).try_for_each(|spec| self.info.check_makes(*spec))?;
        Ok(vec![])
    }

    fn generate(&self, new: &NewKey<'_>, _: &Call) -> Result<GeneratedKey, Error> {
        self.info.check_makes(new.spec)?;
        let token = self.info.id.clone();
        Err(Error::TokenFull { token })
    }

    fn name(&self, _: &KeyRef, _: &str, _: &Call) -> Result<(), Error> {
        Ok(())
    }

    fn delete(&self, _: &KeyRef, _: &Call) -> Result<Deletion, Error> {
        Ok(Deletion::Foreign)
    }

    fn discard(&self, _: &Unfinished, _: &Call) -> Result<Deletion, Error> {
        Ok(Deletion::NothingThere)
    }

    fn signer(&self, wanted: &KeyRef, _: &Call) -> Result<Arc<dyn Signer>, Error> {
        // A key is identified by its public key, in whichever slot it is.
        match wanted.public_key == self.key.2 {
            true => Ok(self.key.clone()),
            false => Err(self.missing(wanted)),
        }
    }

    fn decryptor(&self, wanted: &KeyRef, _: &Call) -> Result<Arc<dyn Decryptor>, Error> {
        let algorithm = wanted.public_key.algorithm();
        self.info.check_uses(KeySpec::decrypt(algorithm))?;
        Err(self.missing(wanted))
    }
}

impl OneKey {
    fn missing(&self, wanted: &KeyRef) -> Error {
        Error::KeyNotFound {
            token: self.info.id.clone(),
            key: wanted.public_key.fingerprint().to_string(),
        }
    }
}

impl Signer for Key {
    fn public_key(&self) -> &PublicKey {
        &self.2
    }

    fn slot(&self) -> SlotId {
        SlotId::new("1")
    }

    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error> {
        call.check()?;
        let signature = self.1.sign(message).to_bytes().to_vec();
        let signature = Signature::new(SignatureScheme::Ed25519, signature);
        signature.map_err(|bad| Error::MalformedReply {
            token: self.0.clone(),
            call: "sign".into(),
            reason: bad.to_string(),
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let call = Call::unlimited();
    let token = OneKeyDriver::new()?.open("onekey:", &call)?;
    let id = &token.info().id;
    let key = token.slots(&call)?[0].key_ref().ok_or("no public key")?;
    let signer = token.signer(&key, &call)?;
    possession::of_signer(&*signer, id, &call)?;
    println!("{id} has the key {}", signer.public_key().fingerprint());
    Ok(())
}
