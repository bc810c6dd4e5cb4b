//! A key in use: its handle is a cache, and its signatures are verified.
//!
//! Another program may destroy our object, and a module may give its handle to another object at
//! once. So a signature is returned only after the public key has verified it. The exception are
//! tokens that never reuse handles
//! ([`Quirks::unique_handles`](crate::quirks::Quirks::unique_handles)), once this handle has proven
//! to be the key's. A key agreement is proven by the file that it opens; if the file does not open,
//! [`Decryptor::confirm`] checks the key.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use claviger_token::agreement;
use claviger_token::sync::lock;
use claviger_token::{
    Call, Decryptor, DigestSigner, Error, KeyRef, KeySpec, KeyUse, PublicKey, Secret, Signature,
    SignatureScheme, Signer, SlotId, Unwrap,
};
use cryptoki::session::Session;

use crate::error::{Fault, is_stale_handle};
use crate::find::{Found, Proof, Search, Trial, Wanted, place};
use crate::object::{KeyObject, Read, vanished};
use crate::operate::{KeyHandle, Text};
use crate::token::Pkcs11Token;

/// A key on a token. Its handle counts for one epoch of the connection, and is found again
/// by the public key.
struct Key {
    token: Arc<Pkcs11Token>,
    public_key: PublicKey,
    spec: KeySpec,
    /// Where it was found last.
    slot: Mutex<SlotId>,
    cached: Mutex<Option<Cached>>,
    /// Whether a handle has turned out to be another key's: then none is presumed.
    was_deceived: AtomicBool,
}

#[derive(Clone, Copy)]
struct Cached {
    epoch: u64,
    handle: KeyHandle,
    proof: Proof,
}

impl Key {
    /// Runs `operation` with the key's handle, and says which. If the handle is stale the key
    /// is looked for once.
    fn with<T>(
        &self,
        call: &Call,
        operation: impl Fn(&Session, KeyHandle) -> Result<T, Fault>,
    ) -> Result<(T, Cached), Error> {
        self.token.connection.run(call, |session, epoch| {
            if let Some(cached) = self.cached(epoch) {
                match operation(session, cached.handle) {
                    Err(Fault::Module(error)) if is_stale_handle(&error) => {}
                    other => return Ok((other?, cached)),
                }
            }
            let found = self.find(session, epoch)?;
            let done = operation(session, found.handle).map_err(vanished)?;
            Ok((done, found))
        })
    }

    fn cached(&self, epoch: u64) -> Option<Cached> {
        lock(&self.cached).filter(|cached| cached.epoch == epoch)
    }

    /// Finds the key on the token and remembers it.
    fn find(&self, session: &Session, epoch: u64) -> Result<Cached, Fault> {
        *lock(&self.cached) = None;
        let slot = lock(&self.slot).clone();
        let wanted = match self.was_deceived.load(Ordering::Relaxed) {
            true => Wanted::Tried,
            false => Wanted::Presumed,
        };
        let search = Search::new(&self.token, session, &self.public_key, wanted);
        let mut findings = search.run(&slot)?;
        // Of several with one public half, one that may be used like this.
        let usable = |found: &Found| found.read.key.refuses(self.spec).is_none();
        let which = findings.found.iter().position(usable).unwrap_or(0);
        if findings.found.is_empty() {
            // Without a login, or a token, nothing would have been found either.
            self.token.connection.confirm(session)?;
            let missing = findings.missing(&self.token, &self.public_key, &slot);
            return Err(Fault::Ours(missing));
        }
        let found = findings.found.swap_remove(which);
        if let Some(reason) = found.read.key.refuses(self.spec) {
            return Err(Fault::Ours(self.token.not_usable(self.spec, reason)));
        }
        let cached = Cached {
            epoch,
            handle: found.handle(),
            proof: found.proof,
        };
        *lock(&self.slot) = place(&found, &self.public_key);
        *lock(&self.cached) = Some(cached);
        Ok(cached)
    }

    /// Notes that the handle has done what only this key can do.
    fn prove(&self, used: Cached) {
        self.change(used, |cached| {
            cached.map(|c| Cached {
                proof: Proof::Proven,
                ..c
            })
        });
    }

    /// Notes that the handle is another key's.
    fn disprove(&self, used: Cached) {
        tracing::warn!(
            token = %self.token.info.id, key = %self.public_key.fingerprint(),
            "the handle refers to another key; searching for the key"
        );
        self.was_deceived.store(true, Ordering::Relaxed);
        self.change(used, |_| None);
    }

    /// Changes what is cached, if that is still what was used.
    fn change(&self, used: Cached, change: impl FnOnce(Option<Cached>) -> Option<Cached>) {
        let mut cached = lock(&self.cached);
        let is_it = |c: &Cached| c.epoch == used.epoch && c.handle.object == used.handle.object;
        if cached.as_ref().is_some_and(is_it) {
            *cached = change(*cached);
        }
    }

    /// Whether the handle cannot be another key's.
    fn is_certain(&self, used: Cached) -> bool {
        used.proof == Proof::Proven && self.token.quirks.unique_handles
    }

    fn slot(&self) -> SlotId {
        lock(&self.slot).clone()
    }
}

impl Pkcs11Token {
    fn key(&self, key: &KeyRef, usage: KeyUse, call: &Call) -> Result<Key, Error> {
        let spec = KeySpec {
            algorithm: key.public_key.algorithm(),
            usage,
        };
        self.info.check_uses(spec)?;
        let found = Key {
            token: self.me.upgrade().ok_or_else(|| Error::TokenUnavailable {
                token: self.info.id.clone(),
                reason: "it is being closed".into(),
            })?,
            public_key: key.public_key.clone(),
            spec,
            slot: Mutex::new(key.slot.clone()),
            cached: Mutex::new(None),
            was_deceived: AtomicBool::new(false),
        };
        self.connection
            .run(call, |session, epoch| found.find(session, epoch))?;
        Ok(found)
    }

    pub(crate) fn signer_of(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error> {
        Ok(Arc::new(TokenSigner(self.key(key, KeyUse::Sign, call)?)))
    }

    pub(crate) fn decryptor_of(
        &self,
        key: &KeyRef,
        call: &Call,
    ) -> Result<Arc<dyn Decryptor>, Error> {
        let key = self.key(key, KeyUse::Decrypt, call)?;
        Ok(Arc::new(TokenDecryptor(key)))
    }
}

struct TokenSigner(Key);

impl Signer for TokenSigner {
    fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    fn slot(&self) -> SlotId {
        self.0.slot()
    }

    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error> {
        self.sign_text(Text::Message(message), None, call)
    }

    fn sign_in(
        &self,
        scheme: SignatureScheme,
        message: &[u8],
        call: &Call,
    ) -> Result<Signature, Error> {
        let is_rsa = self.0.spec.algorithm.rsa_bits().is_some();
        let is_made = match scheme {
            SignatureScheme::RsaPkcs1Sha512 => is_rsa,
            _ => self.scheme() == Some(scheme),
        };
        match is_made {
            true => self.sign_text(Text::Message(message), Some(scheme), call),
            false => Err(scheme.not_made_by_token()),
        }
    }

    fn of_digests(&self) -> Option<&dyn DigestSigner> {
        let Key { token, spec, .. } = &self.0;
        let scheme = self.scheme().filter(|s| s.digest_length().is_some());
        scheme
            .filter(|_| !token.hashes.contains(&spec.algorithm))
            .map(|_| self as _)
    }
}

impl DigestSigner for TokenSigner {
    fn sign_digest(&self, digest: &[u8], call: &Call) -> Result<Signature, Error> {
        self.scheme()
            .map_or(Ok(()), |scheme| scheme.check_digest(digest))?;
        self.sign_text(Text::Digest(digest), None, call)
    }
}

impl TokenSigner {
    fn sign_text(
        &self,
        text: Text<'_>,
        scheme: Option<SignatureScheme>,
        call: &Call,
    ) -> Result<Signature, Error> {
        let Key {
            token,
            spec,
            public_key,
            ..
        } = &self.0;
        // Once more where the handle has become another key's.
        for _ in 0..2 {
            call.check()?;
            let (signature, used) = self.0.with(call, |session, handle| {
                token.sign_with(session, handle, (spec.algorithm, scheme), text, call)
            })?;
            if self.0.is_certain(used) {
                return Ok(signature);
            }
            let verified = match text {
                Text::Message(message) => public_key.verify(message, &signature),
                Text::Digest(digest) => public_key.verify_digest(digest, &signature),
            };
            if verified.is_ok() {
                self.0.prove(used);
                return Ok(signature);
            }
            self.0.disprove(used);
        }
        Err(token.malformed("C_Sign", "the signature was not made by this key"))
    }
}

struct TokenDecryptor(Key);

impl Decryptor for TokenDecryptor {
    fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    fn slot(&self) -> SlotId {
        self.0.slot()
    }

    fn confirm(&self, call: &Call) -> Result<(), Error> {
        let Key {
            token, public_key, ..
        } = &self.0;
        token.connection.run(call, |session, epoch| {
            let cached = match self.0.cached(epoch) {
                Some(cached) => cached,
                None => self.0.find(session, epoch)?,
            };
            if self.0.is_certain(cached) {
                return Ok(());
            }
            match look_at(token, session, public_key, cached)? {
                Trial::Ours => self.0.prove(cached),
                Trial::Inconclusive(_) => {}
                Trial::NotOurs => {
                    self.0.disprove(cached);
                    self.0.find(session, epoch)?;
                    return Err(Fault::Ours(Error::TokenUnavailable {
                        token: token.info.id.clone(),
                        reason: "the handle referred to another key, which was found again".into(),
                    }));
                }
            }
            Ok(())
        })
    }

    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error> {
        call.check()?;
        let algorithm = self.0.spec.algorithm;
        let fits = match (request, algorithm.rsa_bits()) {
            (Unwrap::Agree { peer }, None) => agreement::peer_bytes(algorithm, peer).is_ok(),
            (Unwrap::Oaep { ciphertext, .. }, Some(bits)) => ciphertext.len() * 8 == bits,
            _ => false,
        };
        if !fits {
            return Err(Error::DecryptionFailed);
        }
        let token = &self.0.token;
        let opened = self.0.with(call, |session, handle| {
            token.unwrap_with(session, handle, algorithm, request, call)
        });
        opened.map(|(secret, _)| secret)
    }
}

/// Whether the handle is that of the public key's private half: by what it tells, or else by
/// what it does.
fn look_at(
    token: &Pkcs11Token,
    session: &Session,
    public_key: &PublicKey,
    cached: Cached,
) -> Result<Trial, Fault> {
    let handle = cached.handle.object;
    let key = match KeyObject::read(session, handle) {
        Ok(key) => key,
        Err(error) if is_stale_handle(&error) => {
            token.connection.confirm(session)?;
            return Ok(Trial::NotOurs);
        }
        Err(error) => return Err(error.into()),
    };
    match key.public_key() {
        Some(told) if told == *public_key => Ok(Trial::Ours),
        Some(_) => Ok(Trial::NotOurs),
        None => {
            let search = Search::new(token, session, public_key, Wanted::Tried);
            search.try_key(&Read { handle, key })
        }
    }
}
