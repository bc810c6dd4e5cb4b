//! The guard between the bench and a driver: every call goes through it.
//!
//! It ends calls on Ctrl-C (except those that clean up), tells the person at the device what to do,
//! records which keys the bench has made and not deleted yet, and writes the transcript.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use claviger_token::key::to_hex;
use claviger_token::sync::lock;
use claviger_token::{
    About, Call, Decryptor, Deletion, Detail, DigestSigner, Driver, Error, GeneratedKey, KeyRef,
    KeySpec, Listing, NewKey, Pin, PinSource, PublicKey, Secret, Signature, SignatureScheme,
    Signer, SlotId, SlotInfo, Token, TokenId, TokenInfo, TriesLeft, Unfinished, Unwrap,
};
use serde_json::{Value, json};

use crate::journal::Journal;
use crate::screen::{self, Interrupt};
use crate::transcript::{Line, Tap, shown};

/// What all calls to one device have in common.
#[derive(Clone)]
pub(crate) struct Guard {
    /// What reports call the device.
    pub(crate) name: Arc<str>,
    pub(crate) tap: Arc<Tap>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) interrupt: Interrupt,
    /// The slots that the device turned out not to have.
    pub(crate) missing: Arc<Mutex<Vec<SlotId>>>,
}

impl Guard {
    /// `driver`, guarded.
    pub(crate) fn driver(&self, driver: Arc<dyn Driver>) -> Arc<dyn Driver> {
        Arc::new(GuardedDriver {
            guard: self.clone(),
            inner: driver,
            opened: AtomicUsize::new(0),
            noting: Arc::new(Noting {
                tap: Arc::clone(&self.tap),
                management_keys: Mutex::default(),
            }),
        })
    }

    /// # Errors
    /// [`Error::Cancelled`] where the run is to end.
    fn check(&self) -> Result<(), Error> {
        match self.interrupt.came() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    /// The call, for something that tidies up: the person at the device is told.
    fn told(&self, call: &Call) -> Call {
        let name = Arc::clone(&self.name);
        (call.clone()).also_watched_by(Arc::new(move |event| screen::prompt(&name, event)))
    }

    /// The call, for anything else: Ctrl-C ends the wait for that person as well.
    fn watched(&self, call: &Call) -> Call {
        match call.is_cancelled() {
            // By the check itself.
            true => self.told(call),
            false => self.told(call).cancelled_by(self.interrupt.flag()),
        }
    }

    fn done<T>(
        &self,
        result: Result<T, Error>,
        shown: impl FnOnce(&T) -> Value,
    ) -> Result<T, Error> {
        self.tap.write(|| Line::Done {
            result: outcome(&result, shown),
        });
        result
    }
}

/// What came of a call, as transcripts have it.
pub(crate) fn outcome<T>(result: &Result<T, Error>, shown: impl FnOnce(&T) -> Value) -> Value {
    match result {
        Ok(value) => json!({ "ok": shown(value) }),
        Err(error) => json!({ "error": variant(error) }),
    }
}

/// The name of an error's variant.
fn variant(error: &Error) -> String {
    let text = format!("{error:?}");
    let end = text.find(|c: char| !c.is_ascii_alphanumeric());
    text[..end.unwrap_or(text.len())].to_owned()
}

/// What transcripts show of what calls answer. Serialising such plain data cannot fail;
/// if it did, a null would be seen in the transcript.
pub(crate) mod show {
    use super::*;

    pub(crate) fn listing(listing: &Listing) -> Value {
        let found = listing.tokens.iter().map(|found| {
            json!({
                "token": serde_json::to_value(&found.info).unwrap_or_default(),
                "slots": found.slots.as_deref().map_or(Value::Null, slots),
            })
        });
        found.collect()
    }

    pub(crate) fn slots(slots: &[SlotInfo]) -> Value {
        serde_json::to_value(slots).unwrap_or_default()
    }

    /// Without the marks in them, which are random.
    pub(crate) fn names(slots: &[SlotId]) -> Value {
        slots.iter().map(|slot| slot.name()).collect()
    }

    pub(crate) fn generated(key: &GeneratedKey) -> Value {
        json!({
            "public_key": key.public_key.to_text(),
            "protection": key.protection,
            "facts": key.attestation.as_ref().map(|attestation| &attestation.facts),
        })
    }

    pub(crate) fn deletion(deletion: &Deletion) -> Value {
        serde_json::to_value(deletion).unwrap_or_default()
    }

    pub(crate) fn signature(signature: &Signature) -> Value {
        Value::String(to_hex(signature.as_bytes()))
    }

    pub(crate) fn secret(secret: &Secret) -> Value {
        json!({ "bytes": secret.len() })
    }

    pub(crate) fn nothing<T>(_: &T) -> Value {
        Value::Null
    }
}

struct GuardedDriver {
    guard: Guard,
    inner: Arc<dyn Driver>,
    /// Names tokens and keys in transcripts.
    opened: AtomicUsize,
    noting: Arc<Noting>,
}

impl Driver for GuardedDriver {
    fn about(&self) -> About {
        self.inner.about()
    }

    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        let Guard { tap, .. } = &self.guard;
        let slots = detail == Detail::Slots;
        tap.call(
            "look",
            || json!({ "backend": brief(backend), "slots": slots }),
        );
        let found = self.inner.look(backend, detail, call);
        self.guard.done(found, show::listing)
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        self.inner.named_slot(backend)
    }

    fn names_more(&self, backend: &str) -> Result<Option<&'static str>, Error> {
        self.inner.names_more(backend)
    }

    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        self.guard.check()?;
        let guard = &self.guard;
        let noted = self.noting.noted(&guard.watched(call));
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        (guard.tap).call(
            "open",
            || json!({ "backend": brief(backend), "as": number }),
        );
        let opened = self.inner.open(backend, &noted);
        let inner = guard.done(opened, show::nothing)?;
        Ok(Arc::new(GuardedToken {
            guard: guard.clone(),
            inner,
            number,
            handles: Arc::default(),
            noting: Arc::clone(&self.noting),
        }))
    }
}

/// A backend string that is no longer than a line.
fn brief(backend: &str) -> Value {
    shown_text(backend)
}

fn shown_text(text: &str) -> Value {
    match text.len() {
        0..=300 => text.into(),
        _ => json!({ "utf8": shown(text.as_bytes()) }),
    }
}

type Source = Arc<dyn PinSource>;

/// Writes down which secrets calls are given.
struct Noting {
    tap: Arc<Tap>,
    /// Each source with the one that notes it: always the same one, by which drivers know it.
    management_keys: Mutex<Vec<(Source, Source)>>,
}

impl Noting {
    /// The call, noted.
    fn noted(&self, call: &Call) -> Call {
        let mut access = call.access().clone();
        access.pins = self.source(&access.pins, true);
        access.management_keys = self.management_keys(&access.management_keys);
        call.clone().using(access)
    }

    fn management_keys(&self, source: &Source) -> Source {
        let mut known = lock(&self.management_keys);
        if let Some((_, noted)) = known.iter().find(|(known, _)| Arc::ptr_eq(known, source)) {
            return Arc::clone(noted);
        }
        let noted = self.source(source, false);
        known.push((Arc::clone(source), Arc::clone(&noted)));
        noted
    }

    fn source(&self, inner: &Source, is_pin: bool) -> Source {
        Arc::new(Noted {
            tap: Arc::clone(&self.tap),
            inner: Arc::clone(inner),
            is_pin,
        })
    }
}

/// Writes down that a secret was asked for.
struct Noted {
    tap: Arc<Tap>,
    inner: Arc<dyn PinSource>,
    is_pin: bool,
}

impl Noted {
    fn note(&self, answer: Result<Pin, Error>) -> Result<Pin, Error> {
        match self.is_pin {
            true => self.tap.pin(answer.as_ref().ok()),
            false => self.tap.write(|| Line::ManagementKey {
                given: answer.is_ok(),
            }),
        }
        answer
    }
}

impl PinSource for Noted {
    fn pin(&self, token: &TokenId, label: &str, call: &Call) -> Result<Pin, Error> {
        self.note(self.inner.pin(token, label, call))
    }

    fn pin_with_tries(
        &self,
        token: &TokenId,
        label: &str,
        tries: TriesLeft,
        call: &Call,
    ) -> Result<Pin, Error> {
        self.note(self.inner.pin_with_tries(token, label, tries, call))
    }

    fn sends_unsettled(&self, token: &TokenId, label: &str, call: &Call) -> Result<bool, Error> {
        self.inner.sends_unsettled(token, label, call)
    }

    fn is_one_for_all(&self) -> bool {
        self.inner.is_one_for_all()
    }
}

struct GuardedToken {
    guard: Guard,
    inner: Arc<dyn Token>,
    number: usize,
    handles: Arc<AtomicUsize>,
    noting: Arc<Noting>,
}

impl Drop for GuardedToken {
    fn drop(&mut self) {
        // What it takes to close it comes after.
        (self.guard.tap).call("close", || json!({ "token": self.number }));
    }
}

impl GuardedToken {
    fn handle(&self) -> String {
        let number = self.handles.fetch_add(1, Ordering::Relaxed);
        format!("{}.{number}", self.number)
    }

    fn call(&self, name: &str, with: impl FnOnce() -> Value) {
        self.guard.tap.call(name, || {
            let mut with = with();
            with["token"] = self.number.into();
            with
        });
    }
}

impl Token for GuardedToken {
    fn info(&self) -> &TokenInfo {
        self.inner.info()
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        self.guard.check()?;
        self.call("slots", || json!({ "late": is_late(call) }));
        self.guard
            .done(self.inner.slots(call), |found| show::slots(found))
    }

    fn free_slots(
        &self,
        specs: &[KeySpec],
        taken: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error> {
        self.guard.check()?;
        let missing = lock(&self.guard.missing).clone();
        let taken = [taken, &self.guard.journal.taken(self.info()), &missing].concat();
        self.call("free_slots", || {
            json!({
                "specs": specs,
                "taken": taken.iter().map(SlotId::as_str).collect::<Vec<_>>(),
                "late": is_late(call),
            })
        });
        let found = self.inner.free_slots(specs, &taken, call);
        self.guard.done(found, |found| show::names(found))
    }

    fn generate(&self, new: &NewKey<'_>, call: &Call) -> Result<GeneratedKey, Error> {
        let NewKey { slot, spec, mark } = *new;
        self.guard.check()?;
        self.call("generate", || {
            json!({
                "slot": slot.as_str(),
                "spec": spec,
                "mark": shown(mark.as_bytes()),
                "late": is_late(call),
            })
        });
        let journal = &self.guard.journal;
        // Before it is made, so that a run that dies leaves a note of it.
        let noted = journal.makes(&self.info().id, slot, mark);
        let made = self
            .inner
            .generate(new, &self.noting.noted(&self.guard.watched(call)));
        let nothing_came_of_it = matches!(
            made,
            Err(Error::SlotOccupied { .. }
                | Error::NoSuchSlot { .. }
                | Error::Unsupported { .. }
                | Error::TokenFull { .. }
                | Error::BadBackend { .. }
                | Error::Cancelled
                | Error::DeadlineExceeded)
        );
        match &made {
            Ok(made) => journal.made(&self.info().id, slot, mark, &made.public_key),
            Err(_) if nothing_came_of_it && noted => {
                journal.is_discarded(self.info(), slot, mark);
            }
            Err(_) => {}
        }
        self.guard.done(made, show::generated)
    }

    fn name(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error> {
        self.guard.check()?;
        self.call("name", || {
            let mut with = of_key(key);
            with["label"] = shown(label.as_bytes());
            with["late"] = json!(is_late(call));
            with
        });
        let named = self
            .inner
            .name(key, label, &self.noting.noted(&self.guard.watched(call)));
        self.guard.done(named, show::nothing)
    }

    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        // Whoever was interrupted still tidies up.
        self.call("delete", || {
            let mut with = of_key(key);
            with["late"] = json!(is_late(call));
            with
        });
        let deleted = self
            .inner
            .delete(key, &self.noting.noted(&self.guard.told(call)));
        if deleted.as_ref().is_ok_and(is_gone) {
            (self.guard.journal).is_deleted(self.info(), &key.public_key);
        }
        self.guard.done(deleted, show::deletion)
    }

    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        self.call("discard", || {
            json!({
                "slot": name(&left.slot),
                "mark": shown(left.mark.as_bytes()),
                "public_key": left.public_key.as_ref().map(PublicKey::to_text),
                "late": is_late(call),
            })
        });
        let discarded = self
            .inner
            .discard(left, &self.noting.noted(&self.guard.told(call)));
        if discarded.as_ref().is_ok_and(is_gone) {
            (self.guard.journal).is_discarded(self.info(), &left.slot, &left.mark);
        }
        self.guard.done(discarded, show::deletion)
    }

    fn signer(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error> {
        self.guard.check()?;
        let handle = self.handle();
        self.call("signer", || of_handle(key, &handle));
        let signer = self.inner.signer(key, &self.guard.watched(call));
        let inner = self.guard.done(signer, show::nothing)?;
        Ok(Arc::new(GuardedSigner(GuardedKey {
            guard: self.guard.clone(),
            inner,
            handle,
        })))
    }

    fn decryptor(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Decryptor>, Error> {
        self.guard.check()?;
        let handle = self.handle();
        self.call("decryptor", || of_handle(key, &handle));
        let decryptor = self.inner.decryptor(key, &self.guard.watched(call));
        let inner = self.guard.done(decryptor, show::nothing)?;
        Ok(Arc::new(GuardedDecryptor(GuardedKey {
            guard: self.guard.clone(),
            inner,
            handle,
        })))
    }
}

/// Whether nothing of the key is left that could be removed.
pub(crate) fn is_gone(deletion: &Deletion) -> bool {
    match deletion {
        Deletion::Destroyed | Deletion::NothingThere | Deletion::Derivable => true,
        Deletion::Foreign => false,
    }
}

fn of_key(key: &KeyRef) -> Value {
    json!({
        "slot": name(&key.slot),
        "public_key": key.public_key.to_text(),
    })
}

fn of_handle(key: &KeyRef, handle: &str) -> Value {
    let mut with = of_key(key);
    with["as"] = handle.into();
    with
}

fn name(slot: &SlotId) -> Value {
    shown_text(slot.as_str())
}

/// Whether a call is given up before it is begun.
fn is_late(call: &Call) -> Option<&'static str> {
    match call.check() {
        Ok(()) => None,
        Err(Error::Cancelled) => Some("cancelled"),
        Err(_) => Some("deadline"),
    }
}

/// A signer or a decryptor.
struct GuardedKey<T: ?Sized> {
    guard: Guard,
    inner: Arc<T>,
    handle: String,
}

impl<T: ?Sized> Drop for GuardedKey<T> {
    fn drop(&mut self) {
        (self.guard.tap).call("drop", || json!({ "handle": self.handle }));
    }
}

struct GuardedSigner(GuardedKey<dyn Signer>);

impl Signer for GuardedSigner {
    fn public_key(&self) -> &PublicKey {
        self.0.inner.public_key()
    }

    fn slot(&self) -> SlotId {
        self.0.inner.slot()
    }

    fn scheme(&self) -> Option<SignatureScheme> {
        self.0.inner.scheme()
    }

    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error> {
        let GuardedKey { guard, handle, .. } = &self.0;
        guard.check()?;
        guard.tap.call(
            "sign",
            || json!({ "handle": handle, "message": shown(message), "late": is_late(call) }),
        );
        let signature = self.0.inner.sign(message, &guard.watched(call));
        guard.done(signature, show::signature)
    }

    fn sign_in(
        &self,
        scheme: SignatureScheme,
        message: &[u8],
        call: &Call,
    ) -> Result<Signature, Error> {
        let GuardedKey { guard, handle, .. } = &self.0;
        guard.check()?;
        guard.tap.call(
            "sign_in",
            || json!({ "handle": handle, "scheme": scheme.name(), "message": shown(message), "late": is_late(call) }),
        );
        let signature = (self.0.inner).sign_in(scheme, message, &guard.watched(call));
        guard.done(signature, show::signature)
    }

    fn of_digests(&self) -> Option<&dyn DigestSigner> {
        self.0.inner.of_digests().map(|_| self as _)
    }
}

impl DigestSigner for GuardedSigner {
    fn sign_digest(&self, digest: &[u8], call: &Call) -> Result<Signature, Error> {
        let GuardedKey { guard, handle, .. } = &self.0;
        guard.check()?;
        guard.tap.call(
            "sign_digest",
            || json!({ "handle": handle, "digest": shown(digest), "late": is_late(call) }),
        );
        let signature = match self.0.inner.of_digests() {
            Some(inner) => inner.sign_digest(digest, &guard.watched(call)),
            None => Err(Error::BadMessage {
                reason: "the token signs no digests".into(),
            }),
        };
        guard.done(signature, show::signature)
    }
}

struct GuardedDecryptor(GuardedKey<dyn Decryptor>);

impl Decryptor for GuardedDecryptor {
    fn public_key(&self) -> &PublicKey {
        self.0.inner.public_key()
    }

    fn slot(&self) -> SlotId {
        self.0.inner.slot()
    }

    fn confirm(&self, call: &Call) -> Result<(), Error> {
        let GuardedKey { guard, handle, .. } = &self.0;
        guard.check()?;
        guard.tap.call(
            "confirm",
            || json!({ "handle": handle, "late": is_late(call) }),
        );
        let confirmed = self.0.inner.confirm(&guard.watched(call));
        guard.done(confirmed, show::nothing)
    }

    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error> {
        let GuardedKey { guard, handle, .. } = &self.0;
        guard.check()?;
        guard.tap.call("unwrap", || match request {
            Unwrap::Agree { peer } => {
                json!({ "handle": handle, "peer": shown(peer.as_bytes()), "late": is_late(call) })
            }
            Unwrap::Oaep { ciphertext, label } => json!({
                "handle": handle,
                "ciphertext": shown(ciphertext),
                "label": shown(label),
                "late": is_late(call),
            }),
        });
        let secret = self.0.inner.unwrap(request, &guard.watched(call));
        guard.done(secret, show::secret)
    }
}
