//! The conformance suite notices what is wrong with a token: each fault, put into a
//! token that is otherwise right, fails the check that is there for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use claviger_conformance::{CHECKS, Subject};
use claviger_memory::MemoryDriver;
use claviger_token::{
    About, Access, Algorithm, Call, Decryptor, Deletion, Detail, Driver, Error, GeneratedKey,
    KeyRef, KeySpec, Listing, NewKey, Protection, PublicKey, Secret, Signature, Signer, SlotId,
    SlotInfo, Token, TokenInfo, Unfinished, Unwrap,
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    SignsAnotherMessage,
    AgreesOnAnything,
    SaysWhyItDoesNotOpen,
    OnlySaysThatItDeleted,
    OffersMoreThanItDoes,
    DoesMoreThanItOffers,
    ForgetsTheDeadline,
    TrustsTheSlot,
    ChangesThingsBeforeItRefuses,
}

#[track_caller]
fn fails(fault: Fault, name: &str) {
    let check = CHECKS.iter().find(|check| check.name == name);
    let check = check.expect("a check of this name");
    let run = |fault| {
        let subject = Faulty::new(fault);
        catch_unwind(AssertUnwindSafe(|| check.run(&subject))).is_err()
    };
    assert!(!run(Fault::None), "{name} fails without a fault");
    assert!(run(fault), "{name} does not notice that a token {fault:?}");
}

#[test]
fn a_wrong_signature_is_noticed() {
    fails(
        Fault::SignsAnotherMessage,
        "a_signature_verifies_and_an_altered_message_does_not",
    );
}

#[test]
fn a_secret_out_of_nothing_is_noticed() {
    fails(Fault::AgreesOnAnything, "what_does_not_open_says_only_that");
}

#[test]
fn an_oracle_is_noticed() {
    fails(
        Fault::SaysWhyItDoesNotOpen,
        "what_does_not_open_says_only_that",
    );
}

#[test]
fn a_key_that_outlives_its_deletion_is_noticed() {
    fails(
        Fault::OnlySaysThatItDeleted,
        "a_key_lives_from_generate_to_delete",
    );
}

#[test]
fn an_empty_promise_is_noticed() {
    fails(
        Fault::OffersMoreThanItDoes,
        "a_key_lives_from_generate_to_delete",
    );
}

#[test]
fn an_undeclared_kind_of_key_is_noticed() {
    fails(
        Fault::DoesMoreThanItOffers,
        "a_kind_of_key_that_is_not_offered_is_refused_and_nothing_changes",
    );
}

#[test]
fn a_forgotten_deadline_is_noticed() {
    fails(
        Fault::ForgetsTheDeadline,
        "a_call_that_is_late_or_given_up_changes_nothing",
    );
}

#[test]
fn a_key_that_is_not_compared_is_noticed() {
    fails(
        Fault::TrustsTheSlot,
        "a_key_that_is_not_the_one_remembered_is_not_used",
    );
}

#[test]
fn a_refusal_that_comes_too_late_is_noticed() {
    fails(
        Fault::ChangesThingsBeforeItRefuses,
        "an_occupied_slot_is_not_overwritten",
    );
}

/// Local memory with a fault; subject, driver, token and handle in one.
#[derive(Clone)]
struct Faulty<T> {
    fault: Fault,
    inner: T,
}

impl Faulty<Arc<MemoryDriver>> {
    fn new(fault: Fault) -> Self {
        Faulty {
            fault,
            inner: Arc::new(MemoryDriver::new()),
        }
    }
}

impl<T> Faulty<T> {
    fn with<U: ?Sized>(&self, inner: Arc<U>) -> Arc<Faulty<Arc<U>>> {
        let fault = self.fault;
        Arc::new(Faulty { fault, inner })
    }

    fn info(&self, mut info: TokenInfo) -> TokenInfo {
        match self.fault {
            Fault::OffersMoreThanItDoes => {
                info.makes.push(KeySpec::sign(Algorithm::Rsa2048));
                info.uses.push(KeySpec::sign(Algorithm::Rsa2048));
            }
            Fault::DoesMoreThanItOffers => {
                info.makes.truncate(2);
                info.uses.truncate(2);
            }
            _ => {}
        }
        info
    }
}

impl Subject for Faulty<Arc<MemoryDriver>> {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.clone())
    }

    fn backend(&self) -> String {
        "memory:".into()
    }

    fn access(&self) -> Access {
        Access::without_pin()
    }

    fn protection(&self) -> Protection {
        Protection::NONE
    }
}

impl Driver for Faulty<Arc<MemoryDriver>> {
    fn about(&self) -> About {
        self.inner.about()
    }

    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        let mut listing = self.inner.look(backend, detail, call)?;
        for found in &mut listing.tokens {
            found.info = self.info(found.info.clone());
        }
        Ok(listing)
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        self.inner.named_slot(backend)
    }

    fn names_more(&self, backend: &str) -> Result<Option<&'static str>, Error> {
        self.inner.names_more(backend)
    }

    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        let token = self.inner.open(backend, call)?;
        let info = self.info(token.info().clone());
        let inner = (token, info);
        let fault = self.fault;
        Ok(Arc::new(Faulty { fault, inner }))
    }
}

impl Token for Faulty<(Arc<dyn Token>, TokenInfo)> {
    fn info(&self) -> &TokenInfo {
        &self.inner.1
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        self.inner.0.slots(call)
    }

    fn free_slots(
        &self,
        specs: &[KeySpec],
        taken: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error> {
        self.inner.0.free_slots(specs, taken, call)
    }

    fn generate(&self, new: &NewKey<'_>, call: &Call) -> Result<GeneratedKey, Error> {
        let made = self.inner.0.generate(new, call);
        if self.fault == Fault::ChangesThingsBeforeItRefuses && made.is_err() {
            let slots = self.inner.0.slots(call)?;
            let there = slots.into_iter().find(|slot| new.slot.is_in(&slot.slot));
            if let Some(key) = there.and_then(|slot| slot.key_ref()) {
                self.inner.0.delete(&key, call)?;
            }
        }
        made
    }

    fn name(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error> {
        self.inner.0.name(key, label, call)
    }

    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        match self.fault {
            Fault::OnlySaysThatItDeleted => Ok(Deletion::Destroyed),
            _ => self.inner.0.delete(key, call),
        }
    }

    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        self.inner.0.discard(left, call)
    }

    fn signer(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error> {
        let mut key = key.clone();
        if self.fault == Fault::TrustsTheSlot {
            let slots = self.inner.0.slots(call)?;
            let found = slots.into_iter().find(|slot| key.slot.is_in(&slot.slot));
            if let Some(public_key) = found.and_then(|slot| slot.public_key) {
                key.public_key = public_key;
            }
        }
        Ok(self.with(self.inner.0.signer(&key, call)?))
    }

    fn decryptor(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Decryptor>, Error> {
        Ok(self.with(self.inner.0.decryptor(key, call)?))
    }
}

impl Signer for Faulty<Arc<dyn Signer>> {
    fn public_key(&self) -> &PublicKey {
        self.inner.public_key()
    }

    fn slot(&self) -> SlotId {
        self.inner.slot()
    }

    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error> {
        match self.fault {
            Fault::SignsAnotherMessage => self.inner.sign(&[message, b"."].concat(), call),
            Fault::ForgetsTheDeadline => self.inner.sign(message, &Call::unlimited()),
            _ => self.inner.sign(message, call),
        }
    }
}

impl Decryptor for Faulty<Arc<dyn Decryptor>> {
    fn public_key(&self) -> &PublicKey {
        self.inner.public_key()
    }

    fn slot(&self) -> SlotId {
        self.inner.slot()
    }

    fn confirm(&self, call: &Call) -> Result<(), Error> {
        self.inner.confirm(call)
    }

    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error> {
        let answer = self.inner.unwrap(request, call);
        match (self.fault, answer) {
            (Fault::AgreesOnAnything, Err(Error::DecryptionFailed)) => Ok(Secret::new(vec![0; 32])),
            (Fault::SaysWhyItDoesNotOpen, Err(Error::DecryptionFailed)) => Err(Error::BadMessage {
                reason: "not on the curve".into(),
            }),
            (_, answer) => answer,
        }
    }
}
