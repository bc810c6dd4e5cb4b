//! An open token and the keys on it.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, Weak};

use claviger_token::key::{from_hex, to_hex};
use claviger_token::{
    Algorithm, Call, Decryptor, Deletion, Error, GeneratedKey, KeyRef, KeySpec, KeyUse, NewKey,
    PublicKey, Secret, Signature, SignatureScheme, Signer, SlotId, SlotInfo, SlotState, Token,
    TokenInfo, Unfinished, Unwrap,
};
use cryptoki::context::Function;
use cryptoki::error::{Error as Ck, RvError};
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use rand_core::{OsRng, RngCore};
use sha2::{Digest, Sha256, Sha384};
use zeroize::Zeroizing;

use crate::error::{Fault, blames_input, is_stale_handle, made_nothing};
use crate::keys::{self, KeyObject};
use crate::module::lock;
use crate::quirks::{Generate, Quirks};
use crate::session::Connection;

/// The length of the `CKA_ID`s that we choose, in bytes: as long as a SHA-1, which is
/// what others put there.
const ID_LENGTH: usize = 20;

/// An open token.
pub(crate) struct Pkcs11Token {
    pub(crate) me: Weak<Pkcs11Token>,
    pub(crate) info: TokenInfo,
    pub(crate) quirks: &'static Quirks,
    pub(crate) write_protected: bool,
    pub(crate) connection: Arc<Connection>,
    /// After the connection, so that the token is closed when this is dropped.
    pub(crate) _living: Living,
}

/// The place of one token in the process: it is opened once, and shared.
#[derive(Default)]
pub(crate) struct Place {
    pub(crate) state: Mutex<PlaceState>,
    pub(crate) closed: Condvar,
}

#[derive(Default)]
pub(crate) struct PlaceState {
    pub(crate) token: Weak<Pkcs11Token>,
    /// How many are open, those that are just being closed included: only after
    /// that does a login say anything about its PIN.
    pub(crate) living: usize,
}

/// Counts an open token.
pub(crate) struct Living(pub(crate) Arc<Place>);

impl Drop for Living {
    fn drop(&mut self) {
        lock(&self.0.state).living -= 1;
        self.0.closed.notify_all();
    }
}

/// The classes of the objects that make up a key of ours; the private half goes first, so
/// that where it cannot be destroyed nothing is.
const PAIR: [ObjectClass; 2] = [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY];

/// The classes of the objects that are in a key's way.
const KEY_CLASSES: [ObjectClass; 3] = [
    ObjectClass::PRIVATE_KEY,
    ObjectClass::PUBLIC_KEY,
    ObjectClass::SECRET_KEY,
];

impl Token for Pkcs11Token {
    fn info(&self) -> &TokenInfo {
        &self.info
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        self.connection.run(call, |session, _| {
            let private = read_keys(session, ObjectClass::PRIVATE_KEY)?;
            let public = read_keys(session, ObjectClass::PUBLIC_KEY)?;
            let secret = read_keys(session, ObjectClass::SECRET_KEY)?;
            if private.is_empty() {
                self.connection.confirm(session)?;
            }
            let halves = public_halves(&private, &public);
            let slots = private.iter().zip(halves);
            let mut slots: Vec<_> = slots
                .map(|(key, half)| slot_info(key, half, key.private_uses()))
                .collect();
            // What else is in the way of a new key. It is none that could be used.
            let public = public.iter().map(|key| (key, "a public key alone"));
            let others = public.chain(secret.iter().map(|key| (key, "a secret key")));
            let mut seen: HashSet<&[u8]> = private.iter().map(|key| &*key.id).collect();
            for (key, what) in others.filter(|(key, _)| !key.id.is_empty()) {
                if seen.insert(&key.id) {
                    slots.push(SlotInfo {
                        notes: vec![("holds".into(), what.into())],
                        ..slot_info(key, None, Vec::new())
                    });
                }
            }
            Ok(slots)
        })
    }

    fn free_slots(
        &self,
        specs: &[KeySpec],
        _: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error> {
        call.check()?;
        for spec in specs {
            self.info.check_makes(*spec)?;
        }
        self.check_writable()?;
        let slots = specs.iter().map(|_| {
            let mut id = [0; ID_LENGTH];
            OsRng.fill_bytes(&mut id);
            SlotId::new(to_hex(&id))
        });
        Ok(slots.collect())
    }

    fn generate(
        &self,
        &NewKey {
            slot,
            spec,
            mark: label,
        }: &NewKey<'_>,
        call: &Call,
    ) -> Result<GeneratedKey, Error> {
        self.info.check_makes(spec)?;
        self.check_writable()?;
        let id = parse_slot(slot)?;
        self.connection.run(call, |session, _| {
            if !key_objects(session, &KEY_CLASSES, &id)?.is_empty() {
                return Err(Fault::Ours(Error::SlotOccupied {
                    token: self.info.id.clone(),
                    slot: slot.to_string(),
                }));
            }
            // Private keys do not show without a login.
            self.connection.confirm(session)
        })?;
        let attempt = || {
            let begun = Cell::new(false);
            let made = self.connection.run_once(call, |session, _| {
                let made = self.make(session, spec, &id, label, &begun);
                made.map_err(|fault| self.not_kept(fault))
            });
            // Whoever gave up meanwhile does not get the key.
            let made = made.and_then(|made| call.check().map(|()| made));
            made.map_err(|error| (error, !begun.get() || self.clean_up(slot)))
        };
        let made = match attempt() {
            // SoftHSM fails now and then while other threads search the token.
            Err((Error::Device { .. }, true)) if self.quirks.generate == Generate::ViaSession => {
                attempt()
            }
            other => other,
        };
        made.map_err(|(error, _)| error)
    }

    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        self.destroy(&key.slot, call)
    }

    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        self.destroy(&left.slot, call)
    }

    fn name(&self, _: &KeyRef, _label: &str, call: &Call) -> Result<(), Error> {
        call.check()
    }

    fn signer(&self, key: &KeyRef) -> Result<Arc<dyn Signer>, Error> {
        Ok(Arc::new(TokenSigner(self.key(key, KeyUse::Sign)?)))
    }

    fn decryptor(&self, key: &KeyRef) -> Result<Arc<dyn Decryptor>, Error> {
        Ok(Arc::new(TokenDecryptor(self.key(key, KeyUse::Decrypt)?)))
    }
}

impl Pkcs11Token {
    fn destroy(&self, slot: &SlotId, call: &Call) -> Result<Deletion, Error> {
        let id = parse_slot(slot)?;
        let destroyed = Cell::new(false);
        let deleted = self.connection.run(call, |session, _| {
            let objects = key_objects(session, &PAIR, &id)?;
            if !objects.is_empty() {
                self.check_writable()?;
            }
            for object in objects {
                match session.destroy_object(object) {
                    Ok(()) => destroyed.set(true),
                    // Somebody else was quicker.
                    Err(error) if is_stale_handle(&error) => {}
                    Err(Ck::Pkcs11(RvError::ActionProhibited, _)) if !destroyed.get() => {
                        return Err(Fault::Ours(Error::CannotDestroy {
                            token: self.info.id.clone(),
                            slot: slot.to_string(),
                        }));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            let remain = !key_objects(session, &PAIR, &id)?.is_empty();
            self.connection.confirm(session)?;
            match (remain, destroyed.get()) {
                (true, _) => Err(Fault::Ours(Error::Device {
                    token: self.info.id.clone(),
                    call: "C_DestroyObject".into(),
                    status: "CKR_OK, but the object is still there".into(),
                })),
                (false, true) => Ok(Deletion::Destroyed),
                (false, false) => Ok(Deletion::NothingThere),
            }
        });
        if destroyed.get() && self.quirks.reuses_handles {
            self.connection.restart_module();
        }
        deleted
    }

    fn check_writable(&self) -> Result<(), Error> {
        match self.write_protected {
            true => Err(Error::TokenReadOnly {
                token: self.info.id.clone(),
            }),
            false => Ok(()),
        }
    }

    /// Removes what a failed generation left, and says whether that worked.
    fn clean_up(&self, slot: &SlotId) -> bool {
        match self.destroy(slot, &Call::unlimited()) {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(token = %self.info.id, %slot, %error, "a failed generation may have left something");
                false
            }
        }
    }

    /// Makes a key pair and reads back what the token says of it. `begun` tells whether
    /// something may be on the token since.
    fn make(
        &self,
        session: &Session,
        spec: KeySpec,
        id: &[u8],
        label: &str,
        begun: &Cell<bool>,
    ) -> Result<GeneratedKey, Fault> {
        let direct = self.quirks.generate == Generate::Direct;
        let (public, private) = keys::templates(spec, self.quirks, id, label, direct);
        let Some(mechanism) = keys::generation(spec, self.quirks) else {
            return Err(Fault::Ours(self.unsupported(spec)));
        };
        let pair = || session.generate_key_pair(&mechanism, &public, &private);
        let (public, private) = match self.quirks.generate {
            Generate::Direct => beginning(begun, pair)?,
            Generate::ViaSession => {
                let (public, private) = pair()?;
                let keep = [Attribute::Token(true)];
                let private_copy = beginning(begun, || session.copy_object(private, &keep))?;
                let public_copy = session.copy_object(public, &keep)?;
                session.destroy_object(private)?;
                session.destroy_object(public)?;
                (public_copy, private_copy)
            }
        };
        let public_key = KeyObject::read(session, public)?.public_key();
        let public_key = public_key.filter(|key| key.algorithm() == spec.algorithm);
        Ok(GeneratedKey {
            public_key: public_key.ok_or_else(|| {
                self.malformed(
                    "C_GenerateKeyPair",
                    "it made no valid public key of this kind",
                )
            })?,
            protection: KeyObject::read(session, private)?.protection(),
            attestation: None,
        })
    }

    /// A token that cannot store a new object may say so only when that is used.
    fn not_kept(&self, fault: Fault) -> Fault {
        match fault {
            Fault::Module(error) if is_stale_handle(&error) => Fault::Ours(Error::Device {
                token: self.info.id.clone(),
                call: "C_GenerateKeyPair".into(),
                status: "CKR_OK, but the key was not kept: is the token's disk full?".into(),
            }),
            other => other,
        }
    }

    fn unsupported(&self, wanted: KeySpec) -> Error {
        Error::Unsupported {
            token: self.info.id.clone(),
            wanted,
            supported: self.info.uses.clone(),
        }
    }

    fn malformed(&self, call: &str, reason: &str) -> Error {
        Error::MalformedReply {
            token: self.info.id.clone(),
            call: call.into(),
            reason: reason.into(),
        }
    }

    fn key(&self, key: &KeyRef, usage: KeyUse) -> Result<Key, Error> {
        let spec = KeySpec {
            algorithm: key.public_key.algorithm(),
            usage,
        };
        self.info.check_uses(spec)?;
        let found = Key {
            id: parse_slot(&key.slot)?,
            public_key: key.public_key.clone(),
            spec,
            cached: Mutex::new(None),
            token: self.me.upgrade().ok_or_else(|| Error::TokenUnavailable {
                token: self.info.id.clone(),
                reason: "it is being closed".into(),
            })?,
        };
        let call = Call::unlimited();
        self.connection.run(&call, |session, epoch| {
            let handle = found.find(session, &found.id)?;
            found.remember(session, epoch, handle)
        })?;
        Ok(found)
    }
}

/// Makes something on the token, and notes that unless it was refused at once.
fn beginning<T>(begun: &Cell<bool>, make: impl FnOnce() -> Result<T, Ck>) -> Result<T, Ck> {
    let made = make();
    begun.set(!made.as_ref().is_err_and(made_nothing));
    made
}

/// The `CKA_ID` that a slot's name stands for.
fn parse_slot(slot: &SlotId) -> Result<Vec<u8>, Error> {
    let id = from_hex(slot.as_str()).filter(|id| !id.is_empty());
    id.ok_or_else(|| Error::BadBackend {
        backend: slot.to_string(),
        reason: "a slot of a PKCS#11 token is a CKA_ID in hexadecimal".into(),
    })
}

fn key_objects(
    session: &Session,
    classes: &[ObjectClass],
    id: &[u8],
) -> Result<Vec<ObjectHandle>, Ck> {
    let mut objects = Vec::new();
    for class in classes {
        // Without CKA_TOKEN: where SoftHSM is killed while it makes a key, one may remain
        // on the token that says that it is not there.
        let template = [Attribute::Class(*class), Attribute::Id(id.to_vec())];
        objects.extend(session.find_objects(&template)?);
    }
    Ok(objects)
}

/// Reads all keys of one class. What vanishes meanwhile is left out.
pub(crate) fn read_keys(session: &Session, class: ObjectClass) -> Result<Vec<KeyObject>, Ck> {
    let mut found = Vec::new();
    for handle in keys::find(session, class, [])? {
        match KeyObject::read(session, handle) {
            Ok(key) => found.push(key),
            Err(error) if is_stale_handle(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Reads an object that was found just now. Where it has vanished since, so may have the
/// token; it is not to be called a key that is not there before that is known.
fn read_found(session: &Session, handle: ObjectHandle) -> Result<KeyObject, Fault> {
    KeyObject::read(session, handle).map_err(|error| vanished(error.into()))
}

fn vanished(fault: Fault) -> Fault {
    match fault {
        Fault::Module(error) if is_stale_handle(&error) => {
            Fault::Gone("an object vanished just after it was found".into())
        }
        other => other,
    }
}

/// The public halves of the `private` keys, where they are certain: what a private key itself
/// tells, or the one `public` key with its `CKA_ID` that can be the half of no other.
fn public_halves(private: &[KeyObject], public: &[KeyObject]) -> Vec<Option<PublicKey>> {
    #[derive(Default)]
    struct Named {
        told: Vec<PublicKey>,
        silent: Vec<Option<Algorithm>>,
        public: Vec<PublicKey>,
    }
    let mut named: HashMap<&[u8], Named> = HashMap::new();
    for key in private {
        let named = named.entry(&key.id).or_default();
        match key.public_key() {
            Some(half) => named.told.push(half),
            None => named.silent.push(key.algorithm()),
        }
    }
    for key in public {
        if let (Some(named), Some(half)) = (named.get_mut(&*key.id), key.public_key())
            && !named.public.contains(&half)
        {
            named.public.push(half);
        }
    }
    let fit = |one: Option<Algorithm>, other: Option<Algorithm>| {
        one.is_none() || other.is_none() || one == other
    };
    let half = |key: &KeyObject| {
        if let Some(half) = key.public_key() {
            return Some(half);
        }
        let (named, algorithm) = (named.get(&*key.id)?, key.algorithm());
        let rivals = (named.silent.iter()).filter(|other| fit(algorithm, **other));
        let mut halves = (named.public.iter())
            .filter(|half| fit(algorithm, Some(half.algorithm())) && !named.told.contains(half));
        match (rivals.count(), halves.next(), halves.next()) {
            (1, Some(half), None) if !key.id.is_empty() => Some(half.clone()),
            _ => None,
        }
    };
    private.iter().map(half).collect()
}

/// What is shown of a key.
pub(crate) fn slot_info(
    key: &KeyObject,
    public_key: Option<PublicKey>,
    uses: Vec<KeyUse>,
) -> SlotInfo {
    SlotInfo {
        slot: SlotId::new(to_hex(&key.id)),
        state: SlotState::Occupied,
        algorithm: public_key
            .as_ref()
            .map(PublicKey::algorithm)
            .or(key.algorithm()),
        fingerprint: public_key.as_ref().map(|k| k.fingerprint().to_string()),
        public_key,
        uses,
        label: key.label.clone(),
        notes: Vec::new(),
    }
}

/// A key on a token. Its handle is a cache: it counts for one epoch of the
/// connection, and is found again by the slot and by the public key.
struct Key {
    token: Arc<Pkcs11Token>,
    id: Vec<u8>,
    public_key: PublicKey,
    spec: KeySpec,
    cached: Mutex<Option<(u64, ObjectHandle)>>,
}

impl Key {
    /// Runs `operation` with the key's handle. If the handle is stale the key is
    /// looked for once.
    fn with<T>(
        &self,
        call: &Call,
        operation: impl Fn(&Session, ObjectHandle) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        self.token.connection.run(call, |session, epoch| {
            let cached = lock(&self.cached).filter(|(e, _)| *e == epoch);
            if let Some((_, handle)) = cached {
                match operation(session, handle) {
                    Err(Fault::Module(error)) if is_stale_handle(&error) => {}
                    other => return other,
                }
            }
            let found = self.resolve(session, epoch)?;
            operation(session, found).map_err(vanished)
        })
    }

    /// Finds the key again: in its slot, or else by its public key alone.
    fn resolve(&self, session: &Session, epoch: u64) -> Result<ObjectHandle, Fault> {
        *lock(&self.cached) = None;
        let mut found = self.find(session, &self.id)?;
        if found.is_none() {
            found = self.find_elsewhere(session)?;
        }
        self.remember(session, epoch, found)
    }

    fn remember(
        &self,
        session: &Session,
        epoch: u64,
        found: Option<ObjectHandle>,
    ) -> Result<ObjectHandle, Fault> {
        let Some(handle) = found else {
            self.token.connection.confirm(session)?;
            return Err(Fault::Ours(Error::KeyNotFound {
                token: self.token.info.id.clone(),
                key: self.public_key.fingerprint().to_string(),
            }));
        };
        *lock(&self.cached) = Some((epoch, handle));
        Ok(handle)
    }

    /// The private key with this `CKA_ID`, if there is one; it must be ours.
    fn find(&self, session: &Session, id: &[u8]) -> Result<Option<ObjectHandle>, Fault> {
        let objects = |class| -> Result<(Vec<ObjectHandle>, Vec<KeyObject>), Fault> {
            let handles = keys::find(session, class, [Attribute::Id(id.to_vec())])?;
            let read = handles.iter().map(|handle| read_found(session, *handle));
            let read = read.collect::<Result<_, _>>()?;
            Ok((handles, read))
        };
        let (_, public) = objects(ObjectClass::PUBLIC_KEY)?;
        let (handles, private) = objects(ObjectClass::PRIVATE_KEY)?;
        let halves = public_halves(&private, &public);
        for ((handle, key), half) in handles.into_iter().zip(&private).zip(&halves) {
            if half.as_ref() == Some(&self.public_key) {
                self.check_use(key)?;
                return Ok(Some(handle));
            }
        }
        if private.is_empty() {
            return Ok(None);
        }
        // The private half may have been seen just before the token went away, and the
        // public one not any more.
        self.token.connection.confirm(session)?;
        let found = halves.into_iter().flatten().next();
        Err(Fault::Ours(Error::KeyMismatch {
            token: self.token.info.id.clone(),
            slot: to_hex(id),
            expected: self.public_key.fingerprint().to_string(),
            found: found.map_or("a key whose public half is not certain".into(), |key| {
                key.fingerprint().to_string()
            }),
        }))
    }

    /// The private key by its public half, whatever its `CKA_ID`.
    fn find_elsewhere(&self, session: &Session) -> Result<Option<ObjectHandle>, Fault> {
        let classes = [ObjectClass::PUBLIC_KEY, ObjectClass::PRIVATE_KEY];
        for template in keys::public_templates(&self.public_key) {
            for class in classes {
                for handle in keys::find(session, class, [template.clone()])? {
                    let id = read_found(session, handle)?.id;
                    if id.is_empty() {
                        continue;
                    }
                    match self.find(session, &id) {
                        Ok(None) | Err(Fault::Ours(Error::KeyMismatch { .. })) => {}
                        found => return found,
                    }
                }
            }
        }
        Ok(None)
    }

    fn check_use(&self, key: &KeyObject) -> Result<(), Error> {
        // A PIN for each operation would have to go between C_SignInit and C_Sign,
        // which is not offered.
        let usable = key.allows(self.spec.algorithm, self.spec.usage) && !key.always_authenticate;
        match usable {
            true => Ok(()),
            false => Err(self.token.unsupported(self.spec)),
        }
    }
}

struct TokenSigner(Key);

/// `DigestInfo` of SHA-256, without the digest (RFC 8017 §9.2, note 1).
const SHA256_DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

impl Signer for TokenSigner {
    fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    fn slot(&self) -> SlotId {
        SlotId::new(to_hex(&self.0.id))
    }

    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error> {
        call.check()?;
        let key = &self.0;
        let algorithm = key.spec.algorithm;
        let unsupported = || key.token.unsupported(key.spec);
        let scheme = SignatureScheme::of(algorithm).ok_or_else(unsupported)?;
        let digest;
        let (mechanism, input) = match scheme {
            SignatureScheme::Ed25519 => {
                let pure = EddsaParams::new(EddsaSignatureScheme::Pure);
                (Mechanism::Eddsa(pure), message)
            }
            SignatureScheme::EcdsaP256Sha256 | SignatureScheme::EcdsaSecp256k1Sha256 => {
                digest = Sha256::digest(message).to_vec();
                (Mechanism::Ecdsa, digest.as_slice())
            }
            SignatureScheme::EcdsaP384Sha384 => {
                digest = Sha384::digest(message).to_vec();
                (Mechanism::Ecdsa, digest.as_slice())
            }
            SignatureScheme::RsaPkcs1Sha256 if key.token.quirks.rsa_hashes => {
                (Mechanism::Sha256RsaPkcs, message)
            }
            SignatureScheme::RsaPkcs1Sha256 => {
                digest = [&SHA256_DIGEST_INFO[..], &Sha256::digest(message)].concat();
                (Mechanism::RsaPkcs, digest.as_slice())
            }
            _ => return Err(unsupported()),
        };
        let signature = key.with(call, |session, handle| {
            Ok(session.sign(&mechanism, handle, input)?)
        })?;
        let signature = finished(scheme, signature).ok_or_else(|| {
            key.token
                .malformed("C_Sign", "it is not a signature of this kind")
        })?;
        // Between a deletion and the module's restart others may have made keys.
        if key.token.quirks.reuses_handles && key.public_key.verify(message, &signature).is_err() {
            return Err(key.token.malformed("C_Sign", "it is not by this key"));
        }
        Ok(signature)
    }
}

/// The signature as the scheme wants it.
fn finished(scheme: SignatureScheme, bytes: Vec<u8>) -> Option<Signature> {
    let bytes = match scheme {
        SignatureScheme::EcdsaSecp256k1Sha256 => {
            let signature = k256::ecdsa::Signature::from_slice(&bytes).ok()?;
            signature
                .normalize_s()
                .map_or(bytes, |low| low.to_bytes().to_vec())
        }
        _ => bytes,
    };
    Signature::new(scheme, bytes).ok()
}

struct TokenDecryptor(Key);

impl Decryptor for TokenDecryptor {
    fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    fn slot(&self) -> SlotId {
        SlotId::new(to_hex(&self.0.id))
    }

    fn confirm(&self, call: &Call) -> Result<(), Error> {
        call.check()
    }

    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error> {
        call.check()?;
        let bits = self.0.spec.algorithm.rsa_bits();
        match (request, bits) {
            (Unwrap::Agree { peer }, None) => self.agree(peer, call),
            (Unwrap::Oaep { ciphertext, label }, Some(bits)) if ciphertext.len() * 8 == bits => {
                self.decrypt(ciphertext, label, call)
            }
            _ => Err(Error::DecryptionFailed),
        }
    }
}

impl TokenDecryptor {
    fn agree(&self, peer: &[u8], call: &Call) -> Result<Secret, Error> {
        let key = &self.0;
        if !keys::is_sound_peer(key.spec.algorithm, peer) {
            return Err(Error::DecryptionFailed);
        }
        let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), peer));
        let secret = key.with(call, |session, handle| {
            let secret = session
                .derive_key(&mechanism, handle, &keys::agreed_secret())
                .map_err(|e| {
                    if blames_input(&e) {
                        Fault::Input
                    } else {
                        e.into()
                    }
                })?;
            let value = session.get_attributes(secret, &[AttributeType::Value]);
            // Of a session that fails here nothing is left: it is closed.
            session.destroy_object(secret)?;
            Ok(value?.into_iter().find_map(|attribute| match attribute {
                Attribute::Value(value) => Some(Zeroizing::new(value)),
                _ => None,
            }))
        })?;
        let secret = secret.filter(|secret| secret.len() == 32).ok_or_else(|| {
            key.token.malformed(
                "C_DeriveKey",
                "the secret cannot be read or is not 32 bytes long",
            )
        })?;
        // Every byte is looked at, whatever it is.
        match secret.iter().fold(0, |all, byte| all | byte) {
            0 => Err(Error::DecryptionFailed),
            _ => Ok(secret),
        }
    }

    fn decrypt(&self, ciphertext: &[u8], label: &[u8], call: &Call) -> Result<Secret, Error> {
        let key = &self.0;
        let source = match label.is_empty() {
            true => PkcsOaepSource::empty(),
            false => PkcsOaepSource::data_specified(label),
        };
        let oaep = PkcsOaepParams::new(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, source);
        let mechanism = Mechanism::RsaPkcsOaep(oaep);
        key.with(call, |session, handle| {
            let error = match session.decrypt(&mechanism, handle, ciphertext) {
                Ok(plaintext) => return Ok(Zeroizing::new(plaintext)),
                Err(error) => error,
            };
            // Some modules have one answer for bad padding and for a lost token.
            let vague = matches!(
                error,
                Ck::Pkcs11(
                    RvError::GeneralError | RvError::DeviceError,
                    Function::Decrypt
                )
            );
            let at_fault =
                blames_input(&error) || (vague && key.token.connection.confirm(session).is_ok());
            Err(if at_fault { Fault::Input } else { error.into() })
        })
    }
}
