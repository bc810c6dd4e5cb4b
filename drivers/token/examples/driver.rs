//! A driver: one token with one Ed25519 key, made when it is opened. It only signs; other requests
//! get errors of their own.
//!
//! Test a real driver with the conformance suite, `claviger_conformance`.

use std::sync::Arc;

use claviger_token::{
    About, Algorithm, Call, Decryptor, Deletion, Detail, Driver, Error, GeneratedKey, KeyRef,
    KeySpec, KeyUse, Listed, Listing, NewKey, Pace, PublicKey, Signature, SignatureScheme, Signer,
    SlotId, SlotInfo, SlotState, Token, TokenId, TokenInfo, Unfinished, possession,
};
use ed25519_dalek::Signer as _;
use ed25519_dalek::SigningKey;
use rand_core::OsRng;

const SIGNS: KeySpec = KeySpec::sign(Algorithm::Ed25519);

struct OneKey {
    info: TokenInfo,
    key: SigningKey,
    public: PublicKey,
}

struct OneKeyDriver(Arc<OneKey>);

impl OneKeyDriver {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let key = SigningKey::generate(&mut OsRng);
        let public = PublicKey::from_bytes(SIGNS.algorithm, key.verifying_key().as_bytes())?;
        let info = TokenInfo {
            id: TokenId {
                kind: "onekey".into(),
                manufacturer: "Example".into(),
                serial: "1".into(),
            },
            model: "One key".into(),
            label: String::new(),
            backend: "onekey:".into(),
            makes: vec![],
            uses: vec![SIGNS],
            untried: vec![],
            remembered_as: "onekey".into(),
            formerly: vec![],
            durable: false,
            derives: false,
            pace: Pace::Quick,
            login_required: false,
            notes: vec![],
        };
        Ok(OneKeyDriver(Arc::new(OneKey { info, key, public })))
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
        Ok(vec![SlotInfo {
            slot: SlotId::new("1"),
            state: SlotState::Occupied,
            public_key: Some(self.public.clone()),
            algorithm: Some(SIGNS.algorithm),
            fingerprint: Some(self.public.fingerprint().to_string()),
            uses: vec![KeyUse::Sign],
            label: String::new(),
            notes: vec![],
        }])
    }

    fn free_slots(&self, specs: &[KeySpec], _: &[SlotId], _: &Call) -> Result<Vec<SlotId>, Error> {
        // Nothing is made here, so that this refuses whatever is asked for.
        specs
            .iter()
            .try_for_each(|spec| self.info.check_makes(*spec))?;
        Ok(vec![])
    }

    fn generate(&self, new: &NewKey<'_>, _: &Call) -> Result<GeneratedKey, Error> {
        self.info.check_makes(new.spec)?;
        Err(Error::TokenFull {
            token: self.info.id.clone(),
        })
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
        // A key is its public key, wherever it is said to be.
        match wanted.public_key == self.public {
            true => Ok(Arc::new(ExampleKey {
                token: self.info.id.clone(),
                key: self.key.clone(),
                public: self.public.clone(),
            })),
            false => Err(Error::KeyNotFound {
                token: self.info.id.clone(),
                key: wanted.public_key.fingerprint().to_string(),
            }),
        }
    }

    fn decryptor(&self, wanted: &KeyRef, _: &Call) -> Result<Arc<dyn Decryptor>, Error> {
        let algorithm = wanted.public_key.algorithm();
        self.info.check_uses(KeySpec::decrypt(algorithm))?;
        Err(Error::KeyNotFound {
            token: self.info.id.clone(),
            key: wanted.public_key.fingerprint().to_string(),
        })
    }
}

struct ExampleKey {
    token: TokenId,
    key: SigningKey,
    public: PublicKey,
}

impl Signer for ExampleKey {
    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn slot(&self) -> SlotId {
        SlotId::new("1")
    }

    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error> {
        call.check()?;
        let signature = self.key.sign(message).to_bytes();
        Signature::new(SignatureScheme::Ed25519, signature.to_vec()).map_err(|bad| {
            Error::MalformedReply {
                token: self.token.clone(),
                call: "sign".into(),
                reason: bad.to_string(),
            }
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let call = Call::unlimited();
    let token = OneKeyDriver::new()?.open("onekey:", &call)?;
    let found = token.slots(&call)?.remove(0);
    let key = KeyRef {
        slot: found.slot,
        public_key: found.public_key.ok_or("a silent key")?,
    };
    possession::of_signer(
        &*token.signer(&key, &Call::unlimited())?,
        &token.info().id,
        &call,
    )?;
    println!(
        "{} has the key {}",
        token.info().id,
        key.public_key.fingerprint()
    );
    Ok(())
}
