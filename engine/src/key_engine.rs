//! The Commitment and Decryption engines: each is bound to one key on one token.
//!
//! They are stateless, so a request runs on the requester's task. A quick token is called in
//! place; calls to other tokens go to the threads of the token.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use claviger_formats::envelope;
use claviger_formats::envelope::{Stanzas, UnwrappedKey};
use claviger_token::token::Secret;
use claviger_token::{
    Call, Decryptor, Error, KeyUse, Signature, SignatureScheme, Signer, SlotId, TokenId,
};
use tokio::sync::OwnedMutexGuard;

use crate::asking::Asking;
use crate::opening::Wanted;
use crate::pacer::Pacer;
use crate::purpose::ToSign;
use crate::registry::KeyRecord;
use crate::routed::{Routed, apart};
use crate::token_state::is_absence;
use crate::tokens::{OpenToken, Tokens};
use crate::turns::{apart as apart_in_time, in_time};
use crate::wants::Wants;
use crate::{EngineError, EngineId};

/// Payloads longer than this are not decrypted on an async task.
const LONG_PAYLOAD: usize = 1 << 20;

/// What another process does to an identity is noticed within this time, in milliseconds.
const LOOK_AGAIN: u64 = 1_000;

/// A request to a key's engine: whose login it uses, its circumstances, and what it wants.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) who: &'a EngineId,
    pub(crate) call: &'a Call,
    pub(crate) wants: Wants<'a>,
}

/// An engine that signs or decrypts with one key.
pub(crate) struct KeyEngine {
    pub(crate) key: KeyRecord,
    /// Who is connected to an earlier key of this engine's name.
    stale: Vec<EngineId>,
    bound: RwLock<Option<Arc<Bound>>>,
    /// Where the key was found, if that is not where the registry has it.
    moved: Mutex<Option<SlotId>>,
    /// Held by the one who gets the handle from the token; why that failed the last time.
    binding: Arc<tokio::sync::Mutex<Option<EngineError>>>,
    /// How often the token was found to be away.
    absences: AtomicU64,
    pacer: Arc<Pacer>,
    /// When it was made of what the registry says.
    made: Instant,
    /// When it was looked up there last: in milliseconds since.
    seen: AtomicU64,
}

/// The key's handle on its token, once it has been asked for.
struct Bound {
    token: Arc<OpenToken>,
    handle: DeviceKey,
}

#[derive(Clone)]
enum DeviceKey {
    Signer(Arc<dyn Signer>),
    Decryptor(Arc<dyn Decryptor>),
}

impl KeyEngine {
    pub(crate) fn new(key: KeyRecord, stale: Vec<EngineId>) -> Self {
        KeyEngine {
            key,
            stale,
            bound: RwLock::default(),
            moved: Mutex::default(),
            binding: Arc::default(),
            absences: AtomicU64::default(),
            pacer: Arc::default(),
            made: Instant::now(),
            seen: AtomicU64::default(),
        }
    }

    /// Whether it is time to look whether another process has deleted the identity. Says
    /// so to one caller only, each time.
    pub(crate) fn is_due(&self) -> bool {
        let now = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
        let seen = self.seen.load(Ordering::Relaxed);
        now.saturating_sub(seen) >= LOOK_AGAIN
            && (self.seen)
                .compare_exchange(seen, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Whether it serves the same key to the same callers.
    pub(crate) fn is_still(&self, key: &KeyRecord, stale: &[EngineId]) -> bool {
        self.key == *key && self.stale == stale
    }

    /// Where the key was found, if that is not where the registry has it. Says so once.
    pub(crate) fn moved_to(&self) -> Option<SlotId> {
        self.moved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(crate) fn usage(&self) -> KeyUse {
        self.key.info.usage
    }

    /// Refuses everybody when the key's identity was deleted, and those who were
    /// connected to an identity of the same name that was.
    ///
    /// # Errors
    /// [`EngineError::IdentityDeleted`].
    pub(crate) fn check_alive(&self, sender: &EngineId) -> Result<(), EngineError> {
        if self.key.info.deleted || self.stale.contains(sender) {
            return Err(EngineError::IdentityDeleted {
                identity: self.key.info.owner.clone(),
            });
        }
        Ok(())
    }

    /// Signs `text`; waits for the token where it is away and there is a deadline.
    pub(crate) async fn sign(
        self: &Arc<Self>,
        tokens: &Arc<Tokens>,
        text: Arc<ToSign>,
        by: Request<'_>,
    ) -> Result<Signature, EngineError> {
        loop {
            match self.try_to_sign(tokens, Arc::clone(&text), by).await {
                Err(error) if is_absence(&error) => self.wait(tokens, by, error).await?,
                done => return done,
            }
        }
    }

    async fn try_to_sign(
        self: &Arc<Self>,
        tokens: &Arc<Tokens>,
        text: Arc<ToSign>,
        by: Request<'_>,
    ) -> Result<Signature, EngineError> {
        let (bound, call) = (self.bound(tokens, by).await?, by.call);
        let DeviceKey::Signer(signer) = bound.handle.clone() else {
            return Err(self.no_such_engine());
        };
        let result = if self.in_place(&bound) {
            by.wants.check(self.owner())?;
            self.timed(call, |call| text.sign(&*signer, call))
        } else {
            let (call, wants) = (bound.token.noting(call), by.wants.later(self.owner()));
            let pacer = Arc::clone(&self.pacer);
            let sign = move |call: &Call| match wants.check() {
                Ok(()) => pacer.timed(|| text.sign(&*signer, call)).map(Ok),
                Err(refused) => Ok(Err(refused)),
            };
            match bound.token.work(tokens.caller(), &call, sign).await {
                Ok(Err(refused)) => return Err(refused),
                Ok(Ok(signature)) => Ok(signature),
                Err(error) => Err(error),
            }
        };
        self.checked(&bound, result)
    }

    /// The scheme of the key's signatures, where it signs digests that were made here. Waits
    /// for the token where it is away and there is a deadline.
    pub(crate) async fn hashes_here(
        self: &Arc<Self>,
        tokens: &Arc<Tokens>,
        by: Request<'_>,
    ) -> Result<Option<SignatureScheme>, EngineError> {
        match self.bound_in_time(tokens, by).await?.handle.clone() {
            DeviceKey::Signer(signer) => Ok(signer.of_digests().and(signer.scheme())),
            DeviceKey::Decryptor(_) => Err(self.no_such_engine()),
        }
    }

    /// Opens the age file `data`; waits for the token where it is away and there is a
    /// deadline.
    pub(crate) async fn decrypt(
        self: &Arc<Self>,
        tokens: &Arc<Tokens>,
        data: Arc<Vec<u8>>,
        by: Request<'_>,
    ) -> Result<Secret, EngineError> {
        loop {
            match self.try_to_decrypt(tokens, Arc::clone(&data), by).await {
                Err(error) if is_absence(&error) => self.wait(tokens, by, error).await?,
                done => return done,
            }
        }
    }

    async fn try_to_decrypt(
        self: &Arc<Self>,
        tokens: &Arc<Tokens>,
        data: Arc<Vec<u8>>,
        by: Request<'_>,
    ) -> Result<Secret, EngineError> {
        let (bound, call) = (self.bound(tokens, by).await?, by.call);
        let DeviceKey::Decryptor(decryptor) = bound.handle.clone() else {
            return Err(self.no_such_engine());
        };
        let result = if self.in_place(&bound) && data.len() <= LONG_PAYLOAD {
            by.wants.check(self.owner())?;
            self.timed(call, |call| envelope::decrypt(&*decryptor, &data, call))
        } else {
            let open = move |key: &Routed, call: &Call| envelope::decrypt(key, &data, call);
            let key = self.routed(&bound, decryptor, tokens, by);
            self.allowed(apart(key, call, open).await, by)?
        };
        self.checked(&bound, result)
    }

    /// Unwraps the key of a file that may be for the engine's key; waits for the token as
    /// [`KeyEngine::decrypt`] does.
    pub(crate) async fn unwrap(
        self: &Arc<Self>,
        tokens: &Arc<Tokens>,
        stanzas: &Stanzas,
        by: Request<'_>,
    ) -> Result<Option<UnwrappedKey>, EngineError> {
        loop {
            match self.try_to_unwrap(tokens, stanzas.clone(), by).await {
                Err(error) if is_absence(&error) => self.wait(tokens, by, error).await?,
                done => return done,
            }
        }
    }

    async fn try_to_unwrap(
        self: &Arc<Self>,
        tokens: &Arc<Tokens>,
        stanzas: Stanzas,
        by: Request<'_>,
    ) -> Result<Option<UnwrappedKey>, EngineError> {
        let (bound, call) = (self.bound(tokens, by).await?, by.call);
        let DeviceKey::Decryptor(decryptor) = bound.handle.clone() else {
            return Err(self.no_such_engine());
        };
        let unwrap = move |key: &Routed, call: &Call| stanzas.unwrap(key, call);
        let key = self.routed(&bound, decryptor, tokens, by);
        let result = self.allowed(apart(key, call, unwrap).await, by)?;
        self.checked(&bound, result)
    }

    async fn wait(
        &self,
        tokens: &Arc<Tokens>,
        by: Request<'_>,
        absence: EngineError,
    ) -> Result<(), EngineError> {
        tokens.wait_for(self.wanted(), by, absence).await
    }

    /// Which token its key is on.
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            backend: &self.key.backend,
            token: Some(&self.key.info.token),
        }
    }

    /// The key as a decryptor for callers that may block.
    pub(crate) async fn decryptor(
        self: &Arc<Self>,
        tokens: &Arc<Tokens>,
        by: Request<'_>,
    ) -> Result<Arc<dyn Decryptor>, EngineError> {
        let bound = self.bound_in_time(tokens, by).await?;
        match bound.handle.clone() {
            DeviceKey::Decryptor(decryptor) => {
                Ok(Arc::new(self.routed(&bound, decryptor, tokens, by)))
            }
            DeviceKey::Signer(_) => Err(self.no_such_engine()),
        }
    }

    fn routed(
        &self,
        bound: &Bound,
        decryptor: Arc<dyn Decryptor>,
        tokens: &Arc<Tokens>,
        by: Request<'_>,
    ) -> Routed {
        Routed {
            decryptor,
            in_place: self.in_place(bound),
            token: Arc::clone(&bound.token),
            tokens: Arc::clone(tokens),
            who: by.who.clone(),
            wants: by.wants.later(self.owner()),
            pacer: Arc::clone(&self.pacer),
        }
    }

    /// `result`, unless it failed since the policy does not allow the request any more.
    fn allowed<T>(
        &self,
        result: Result<T, Error>,
        by: Request<'_>,
    ) -> Result<Result<T, Error>, EngineError> {
        match result {
            Err(_) => by.wants.check(self.owner()).map(|()| result),
            done => Ok(done),
        }
    }

    /// The identity that the key was made or adopted for.
    fn owner(&self) -> &EngineId {
        &self.key.info.owner
    }

    fn no_such_engine(&self) -> EngineError {
        let engine = crate::types::engine_name(self.usage(), &self.key.info.owner);
        EngineError::NoSuchEngine {
            engine: EngineId::local(engine),
        }
    }

    fn in_place(&self, bound: &Bound) -> bool {
        bound.token.is_quick() && !self.pacer.is_slow()
    }

    fn timed<T>(
        &self,
        call: &Call,
        job: impl FnOnce(&Call) -> Result<T, Error>,
    ) -> Result<T, Error> {
        call.check()?;
        self.pacer.timed(|| job(call))
    }

    /// Lets go of a handle that an error shows to be dead; the next request gets a new one.
    fn checked<T>(&self, bound: &Bound, result: Result<T, Error>) -> Result<T, EngineError> {
        bound.token.note(&result);
        if let Err(Error::TokenUnavailable { .. } | Error::KeyNotFound { .. }) = &result {
            *self.bound.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Ok(result?)
    }

    /// The handle; waits for the token where it is away and there is a deadline.
    async fn bound_in_time(
        self: &Arc<Self>,
        tokens: &Arc<Tokens>,
        by: Request<'_>,
    ) -> Result<Arc<Bound>, EngineError> {
        loop {
            match self.bound(tokens, by).await {
                Err(error) if is_absence(&error) => self.wait(tokens, by, error).await?,
                bound => return bound,
            }
        }
    }

    /// The handle; got from the token the first time.
    ///
    /// # Errors
    /// What the token says; [`EngineError::NotAllowed`] where it is open by somebody else's PIN.
    async fn bound(
        self: &Arc<Self>,
        tokens: &Arc<Tokens>,
        by: Request<'_>,
    ) -> Result<Arc<Bound>, EngineError> {
        let bound = match self.known() {
            Some(bound) => bound,
            None => self.bind_asking(tokens, by).await?,
        };
        tokens.admit(&bound.token, by.who, by.call).await?;
        Ok(bound)
    }

    /// Gets the handle from the token; a person who has to give the PIN keeps nobody else waiting.
    async fn bind_asking(
        self: &Arc<Self>,
        tokens: &Arc<Tokens>,
        by: Request<'_>,
    ) -> Result<Arc<Bound>, EngineError> {
        let mut asking = Asking::of(tokens, by.call);
        loop {
            let call = &asking.call().clone();
            let bound = self.bind(tokens, Request { call, ..by }).await;
            if !asking.goes_on(tokens, by.who, &bound).await? {
                return bound;
            }
        }
    }

    /// Gets the handle from the token. Of several who want it one does.
    async fn bind(
        self: &Arc<Self>,
        tokens: &Arc<Tokens>,
        Request { who, call, .. }: Request<'_>,
    ) -> Result<Arc<Bound>, EngineError> {
        let absences = self.absences.load(Ordering::Acquire);
        let turn = Arc::clone(&self.binding).lock_owned();
        let turn = in_time(call, turn).await?;
        if let Some(bound) = self.known() {
            return Ok(bound);
        }
        // It was looked for in the meantime.
        if let Some(absence) = &*turn
            && self.absences.load(Ordering::Acquire) != absences
        {
            return Err(absence.clone());
        }
        // The turns go along: where a token does not answer, one thread waits for it, however
        // many requests give up meanwhile.
        let binding = Binding {
            engine: Arc::clone(self),
            turn,
        };
        binding.bind(tokens, who, call).await
    }

    /// Lets go of the handle, if it is of this token: the next request gets a new one.
    pub(crate) fn unbind(&self, token: &TokenId) {
        let mut bound = self.bound.write().unwrap_or_else(PoisonError::into_inner);
        if bound
            .as_ref()
            .is_some_and(|bound| bound.token.id() == token)
        {
            *bound = None;
        }
    }

    /// Its token, where it is time to look whether something was abandoned there.
    pub(crate) fn token_to_resolve(&self) -> Option<Arc<OpenToken>> {
        let bound = self.bound.read().unwrap_or_else(PoisonError::into_inner);
        let token = &bound.as_ref()?.token;
        token.due.is_now().then(|| Arc::clone(token))
    }

    /// The handle, where somebody got it from the token.
    fn known(&self) -> Option<Arc<Bound>> {
        let bound = self.bound.read().unwrap_or_else(PoisonError::into_inner);
        bound.clone()
    }

    fn open(
        &self,
        tokens: &Tokens,
        who: &EngineId,
        call: &Call,
    ) -> Result<Arc<OpenToken>, EngineError> {
        call.check()?;
        let info = &self.key.info;
        let (token, _) = tokens.open(Some(who), self.wanted(), call)?;
        let is_it = *token.id() == info.token || token.token.info().formerly.contains(&info.token);
        if !is_it {
            return Err(EngineError::Token(Error::TokenUnavailable {
                token: info.token.clone(),
                reason: format!("{} is there instead", token.id()),
            }));
        }
        Ok(token)
    }

    fn find(&self, token: Arc<OpenToken>, call: &Call) -> Result<Arc<Bound>, EngineError> {
        let info = &self.key.info;
        let key = info.key_ref();
        let (device, usage) = (Arc::clone(&token.token), info.usage);
        let handle = token.work_blocking(call, move |call| match usage {
            KeyUse::Sign => device.signer(&key, call).map(DeviceKey::Signer),
            KeyUse::Decrypt => device.decryptor(&key, call).map(DeviceKey::Decryptor),
        })?;
        let found = match &handle {
            DeviceKey::Signer(signer) => signer.slot(),
            DeviceKey::Decryptor(decryptor) => decryptor.slot(),
        };
        if found.name() != info.slot.name() {
            *self.moved.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(found.marked_as(&info.slot));
        }
        let bound = Arc::new(Bound { token, handle });
        *self.bound.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&bound));
        Ok(bound)
    }
}

/// The turn to get the handle of a key from its token.
struct Binding {
    engine: Arc<KeyEngine>,
    /// Why that failed the last time.
    turn: OwnedMutexGuard<Option<EngineError>>,
}

/// How far an opening comes on its thread.
enum Step {
    Bound(Arc<Bound>),
    /// As many look for keys on the token as may.
    Opened(Arc<OpenToken>, Binding),
}

impl Binding {
    /// Opens the token and finds the key. Where the token does not answer, the search takes a
    /// thread of the token's, however many of its keys are wanted, and none of those that open
    /// tokens.
    async fn bind(
        mut self,
        tokens: &Arc<Tokens>,
        who: &EngineId,
        call: &Call,
    ) -> Result<Arc<Bound>, EngineError> {
        let engine = Arc::clone(&self.engine);
        let (its_tokens, asker, its_call) = (Arc::clone(tokens), who.clone(), call.clone());
        let open = move |opening| {
            let opened = self.engine.open(&its_tokens, &asker, &its_call);
            let token = self.noted(opened)?;
            // Others may open it while its key is looked for.
            drop(opening);
            match token.waiting.take_at_once() {
                Some(_thread) => self.find(token, &its_call).map(Step::Bound),
                None => Ok(Step::Opened(token, self)),
            }
        };
        let counted = tokens.counted(who);
        let opened = (tokens.openings).run(Some(&counted), engine.wanted(), call, open);
        match opened.await?? {
            Step::Bound(bound) => Ok(bound),
            Step::Opened(token, mut binding) => {
                let thread = token.waiting.take_for_key(call).await?;
                let its_call = call.clone();
                let find = move || {
                    let _thread = thread;
                    binding.find(token, &its_call)
                };
                apart_in_time(call, find).await?
            }
        }
    }

    fn find(&mut self, token: Arc<OpenToken>, call: &Call) -> Result<Arc<Bound>, EngineError> {
        let found = self.engine.find(token, call);
        self.noted(found)
    }

    /// Notes for the others that the token is away.
    fn noted<T>(&mut self, done: Result<T, EngineError>) -> Result<T, EngineError> {
        if let Err(error) = &done
            && is_absence(error)
        {
            *self.turn = Some(error.clone());
            self.engine.absences.fetch_add(1, Ordering::Release);
        }
        done
    }
}

impl ToSign {
    fn sign(&self, signer: &dyn Signer, call: &Call) -> Result<Signature, Error> {
        match self {
            ToSign::Message(message) => signer.sign(message, call),
            ToSign::InScheme(scheme, message) => signer.sign_in(*scheme, message, call),
            ToSign::Digest(digest) => match signer.of_digests() {
                Some(signer) => signer.sign_digest(digest, call),
                None => Err(Error::BadMessage {
                    reason: "the token does not sign digests with this key".into(),
                }),
            },
        }
    }
}
