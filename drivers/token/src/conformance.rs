//! What every driver has to do: checks written once, run against every token.
//!
//! A token *declares* what it makes and uses ([`TokenInfo::makes`], [`TokenInfo::uses`]); the checks see to it that
//! it does what it declares and refuses the rest. Whoever writes a driver describes a
//! token of the new kind as a [`Subject`] and runs [`CHECKS`] on it:
//!
//! ```
//! # use claviger_token::conformance::{CHECKS, Outcome, Subject};
//! fn conforms(subject: &dyn Subject) {
//!     for check in CHECKS {
//!         match check.run(subject) {
//!             Outcome::Passed => println!("{} ok", check.name),
//!             Outcome::Skipped(why) => eprintln!("SKIPPED {}: {why}", check.name),
//!         }
//!     }
//! }
//! ```
//!
//! A check that fails panics, as a test does. It deletes the keys that it made, whether
//! it fails or not, and touches no others. Never run this on a token that matters: a
//! wrong PIN is tried, once, where the subject allows it.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a check that fails panics"
)]

mod others;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use p256::elliptic_curve::sec1::ToEncodedPoint;

pub use self::others::Others;

use crate::envelope::SSH_RSA_LABEL;
use crate::possession::Challenge;
use crate::{
    Access, Algorithm, Call, Decryptor, Deletion, Driver, Error, GeneratedKey, KeyRef, KeySpec,
    KeyUse, NewKey, Protection, PublicKey, SignatureScheme, Signer, SlotId, SlotInfo, SlotState,
    Token, TokenInfo, Unfinished, Unwrap, envelope, interop, unfinished_mark, verdict,
};

/// A token under test, and what can be done to it.
///
/// Each of the faults has a default that says why it cannot be shown; the checks that
/// need it are then skipped with these words. Whether a fault can be brought about is
/// asked before the token is; the answers must not need it.
pub trait Subject: Send + Sync {
    /// The driver, the same one each time.
    fn driver(&self) -> Arc<dyn Driver>;

    /// A backend string that names just this token.
    fn backend(&self) -> String;

    /// The right PIN.
    fn access(&self) -> Access;

    /// What the token promises about the keys it makes.
    fn protection(&self) -> Protection {
        Protection::FULL
    }

    /// A PIN that could be right but is not; nobody may have logged in to the token
    /// before the check that uses it.
    ///
    /// # Errors
    /// Why there is none.
    fn wrong_access(&self) -> Result<Access, &'static str> {
        Err("a wrong PIN is not to be tried on this token")
    }

    /// A backend string that is well-formed but fits no token.
    ///
    /// # Errors
    /// Why there is none.
    fn absent_backend(&self) -> Result<String, &'static str> {
        Err("no other token can be asked for")
    }

    /// How many keys of the first supported kind fill the token when it is empty.
    ///
    /// # Errors
    /// Why it cannot be filled.
    fn capacity(&self) -> Result<usize, &'static str> {
        Err("the token has no bound that a test could reach")
    }

    /// The longest message in bytes that the token signs with Ed25519, which needs all
    /// of it on the token. Longer ones it must refuse.
    fn longest_ed25519_message(&self) -> usize {
        usize::MAX
    }

    /// The longest message in bytes that the token signs with any key. Longer ones it
    /// must refuse.
    fn longest_message(&self) -> usize {
        usize::MAX
    }

    /// Another tool that works on the token.
    ///
    /// # Errors
    /// Why there is none.
    fn others(&self) -> Result<&dyn Others, &'static str> {
        Err("no other tool works on the keys of this token")
    }

    /// Whether [`Subject::restart`] can be done.
    ///
    /// # Errors
    /// Why not.
    fn can_restart(&self) -> Result<(), &'static str> {
        Err("nothing stands behind the token that could restart")
    }

    /// Restarts what stands behind the token, such as its daemon or its module, under the
    /// running process.
    ///
    /// # Errors
    /// Why that cannot be done.
    fn restart(&self) -> Result<(), &'static str> {
        self.can_restart()
    }

    /// Whether [`Subject::generates_none`] can be had.
    ///
    /// # Errors
    /// Why not.
    fn can_generate_none(&self) -> Result<(), &'static str> {
        Err("a token of this kind that generates no keys cannot be had")
    }

    /// The token as it is where it generates no keys, with one that it has and what that is
    /// for.
    ///
    /// # Errors
    /// Why it always generates, or never.
    fn generates_none(&self) -> Result<(Box<dyn Subject>, KeyRef, KeyUse), &'static str> {
        Err("a token of this kind that generates no keys cannot be had")
    }

    /// What pulls the token out and puts it back.
    ///
    /// # Errors
    /// Why it cannot be removed.
    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        Err("the token cannot be removed by a program")
    }
}

/// Pulls a token out and puts it back.
pub trait Plug {
    /// Takes the token away, as from under a running process.
    fn remove(&self);

    /// Brings it back with everything that was on it.
    fn insert(&self);
}

/// One statement about tokens.
pub struct Check {
    /// The statement, as a sentence with underscores.
    pub name: &'static str,
    needs: fn(&dyn Subject) -> Result<(), &'static str>,
    body: fn(&dyn Subject) -> Result<(), Skip>,
}

impl Check {
    /// Why the check cannot be run on `subject`, found without touching the token.
    pub fn skipped(&self, subject: &dyn Subject) -> Option<&'static str> {
        (self.needs)(subject).err()
    }

    /// Runs the check.
    ///
    /// # Panics
    /// Where the token does not do what the statement says.
    pub fn run(&self, subject: &dyn Subject) -> Outcome {
        let outcome = (self.needs)(subject)
            .map_err(Skip)
            .and_then(|()| (self.body)(subject));
        match outcome {
            Ok(()) => Outcome::Passed,
            Err(Skip(why)) => Outcome::Skipped(why),
        }
    }
}

/// What became of a check that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The token does what the check says.
    Passed,
    /// The check does not apply to this token, or cannot be made on it, and why.
    Skipped(&'static str),
}

/// What a check needs, without bringing about what it would change.
macro_rules! needs {
    ($subject:ident, restart) => {
        $subject.can_restart()?
    };
    ($subject:ident, generates_none) => {
        $subject.can_generate_none()?
    };
    ($subject:ident, $fault:ident) => {
        $subject.$fault().map(drop)?
    };
}

macro_rules! checks {
    ($($name:ident $(needs $fault:ident)?;)*) => {
        /// Every check, in the order in which their statements build on each other.
        pub const CHECKS: &[Check] = &[$(Check {
            name: stringify!($name),
            needs: |_subject| {
                $(needs!(_subject, $fault);)?
                Ok(())
            },
            body: $name,
        }),*];
    };
}

use others::{
    a_deletion_leaves_a_foreign_key_in_the_same_place,
    a_key_is_used_on_a_token_that_generates_none, a_key_that_was_moved_is_found_and_deleted,
    a_key_that_was_named_is_not_discarded, a_key_without_a_name_is_found_and_deleted,
    a_pair_that_is_no_pair_proves_nothing,
    an_unfinished_key_is_discarded_and_a_foreign_one_beside_it_is_not,
    what_replaced_a_key_is_neither_used_nor_deleted, what_stands_behind_the_token_may_restart,
};

checks! {
    a_token_is_found_by_the_name_that_it_gives;
    a_backend_that_fits_nothing_finds_no_token needs absent_backend;
    a_malformed_backend_is_refused;
    a_token_that_needs_a_pin_says_so needs wrong_access;
    a_refused_pin_is_not_sent_twice needs wrong_access;
    a_token_that_is_open_opens_again_without_a_pin;
    a_key_lives_from_generate_to_delete;
    a_kind_of_key_that_is_not_offered_is_refused_and_nothing_changes;
    slots_for_several_keys_are_several;
    an_occupied_slot_is_not_overwritten;
    a_slot_name_that_makes_no_sense_does_no_harm;
    a_label_may_be_anything;
    a_key_is_protected_as_the_token_promises;
    a_signature_verifies_and_an_altered_message_does_not;
    a_handle_is_a_key_of_the_signature_crate;
    a_decryptor_agrees_with_what_its_peer_computes;
    what_does_not_open_says_only_that;
    an_envelope_opens_for_its_recipient_alone;
    a_key_has_one_use;
    a_key_that_is_not_the_one_remembered_is_not_used;
    a_key_that_was_named_is_not_discarded;
    a_deletion_leaves_a_foreign_key_in_the_same_place needs others;
    what_replaced_a_key_is_neither_used_nor_deleted needs others;
    an_unfinished_key_is_discarded_and_a_foreign_one_beside_it_is_not needs others;
    a_pair_that_is_no_pair_proves_nothing needs others;
    a_key_that_was_moved_is_found_and_deleted needs others;
    a_key_without_a_name_is_found_and_deleted needs others;
    a_key_is_used_on_a_token_that_generates_none needs generates_none;
    what_stands_behind_the_token_may_restart needs restart;
    eight_threads_sign_at_once;
    a_call_that_is_late_or_given_up_changes_nothing;
    a_full_token_says_so needs capacity;
    a_token_that_went_away_works_again_when_it_is_back needs plug;
}

/// The statement does not apply.
struct Skip(&'static str);

/// Panics unless the call is refused with the error that is named.
macro_rules! refused {
    ($call:expr, $error:pat) => {
        match $call {
            Err($error) => {}
            Err(other) => panic!(
                "{} gave {other:?}, not {}",
                stringify!($call),
                stringify!($error)
            ),
            Ok(_) => panic!("{} was not refused", stringify!($call)),
        }
    };
}

use refused;

/// The token under test, open.
struct Bench {
    token: Arc<dyn Token>,
    call: Call,
}

/// A key that a check made; it is deleted when the check is done with it.
struct Made {
    token: Arc<dyn Token>,
    key: KeyRef,
    protection: Protection,
}

impl Bench {
    fn open(subject: &dyn Subject) -> Bench {
        Bench {
            token: subject
                .driver()
                .open(&subject.backend(), &subject.access(), &Call::unlimited())
                .unwrap(),
            call: Call::unlimited(),
        }
    }

    /// What the token offers for `usage`; nothing is a reason to skip.
    fn specs(&self, usage: KeyUse) -> Result<Vec<KeySpec>, Skip> {
        let specs: Vec<KeySpec> = (self.token.info().makes.iter().copied())
            .filter(|spec| spec.usage == usage)
            .collect();
        match (specs.is_empty(), usage) {
            (false, _) => Ok(specs),
            (true, KeyUse::Sign) => Err(Skip("the token offers no key that signs")),
            (true, KeyUse::Decrypt) => Err(Skip("the token offers no key that decrypts")),
        }
    }

    /// The kind of key for checks that want any.
    fn any_spec(&self) -> Result<KeySpec, Skip> {
        let first = self.token.info().makes.first().copied();
        first.ok_or(Skip("the token generates no keys"))
    }

    fn free_slot(&self, spec: KeySpec) -> SlotId {
        self.token
            .free_slots(&[spec], &[], &self.call)
            .unwrap()
            .remove(0)
    }

    fn make(&self, spec: KeySpec) -> Made {
        let slot = self.free_slot(spec);
        self.make_in(&slot, spec, "conformance")
    }

    fn make_in(&self, slot: &SlotId, spec: KeySpec, label: &str) -> Made {
        let made = self.begin_in(slot, spec, &unfinished_mark());
        self.token.name(&made.key, label, &self.call).unwrap();
        made
    }

    /// Makes a key, does not finish it, and says what would be noted of it.
    fn begin(&self, spec: KeySpec) -> (Made, Unfinished) {
        let (slot, mark) = (self.free_slot(spec), unfinished_mark());
        let made = self.begin_in(&slot, spec, &mark);
        let public_key = Some(made.key.public_key.clone());
        let left = Unfinished {
            slot,
            mark,
            public_key,
        };
        (made, left)
    }

    /// Makes a key, and does not finish it.
    fn begin_in(&self, slot: &SlotId, spec: KeySpec, mark: &str) -> Made {
        let made = self.generate(slot, spec, mark, &self.call);
        let made = made.unwrap_or_else(|e| panic!("{spec} is offered, but: {e}"));
        assert_eq!(made.public_key.algorithm(), spec.algorithm);
        Made {
            token: self.token.clone(),
            key: KeyRef {
                slot: slot.clone(),
                public_key: made.public_key,
            },
            protection: made.protection,
        }
    }

    fn generate(
        &self,
        slot: &SlotId,
        spec: KeySpec,
        mark: &str,
        call: &Call,
    ) -> Result<GeneratedKey, Error> {
        self.token.generate(&NewKey { slot, spec, mark }, call)
    }

    /// All slots; without what an operator is told of those that are free, such as that
    /// a key was destroyed there.
    fn slots(&self) -> Vec<SlotInfo> {
        let mut slots = self.token.slots(&self.call).unwrap();
        let free = slots.iter_mut().filter(|s| s.state == SlotState::Free);
        free.for_each(|slot| slot.notes.clear());
        slots.sort_by(|a, b| a.slot.cmp(&b.slot));
        slots
    }

    fn occupied(&self, slot: &SlotId) -> Option<SlotInfo> {
        (self.slots().into_iter()).find(|s| s.slot == *slot && s.state == SlotState::Occupied)
    }
}

impl Made {
    fn signer(&self) -> Arc<dyn Signer> {
        let signer = self.token.signer(&self.key).unwrap();
        assert_eq!(*signer.public_key(), self.key.public_key);
        signer
    }

    fn decryptor(&self) -> Arc<dyn Decryptor> {
        let decryptor = self.token.decryptor(&self.key).unwrap();
        assert_eq!(*decryptor.public_key(), self.key.public_key);
        decryptor
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(e) = self.token.delete(&self.key, &Call::unlimited()) {
            eprintln!("left behind in slot {}: {e}", self.key.slot);
        }
    }
}

/// Any private-key operation, for checks to which it does not matter which.
enum Handle {
    Signs(Arc<dyn Signer>),
    Decrypts(Arc<dyn Decryptor>),
}

impl Handle {
    fn of(token: &dyn Token, key: &KeyRef, usage: KeyUse) -> Result<Handle, Error> {
        Ok(match usage {
            KeyUse::Sign => Handle::Signs(token.signer(key)?),
            KeyUse::Decrypt => Handle::Decrypts(token.decryptor(key)?),
        })
    }

    /// Whose signatures and agreements these are.
    fn public_key(&self) -> &PublicKey {
        match self {
            Handle::Signs(signer) => signer.public_key(),
            Handle::Decrypts(decryptor) => decryptor.public_key(),
        }
    }

    /// Where the key was found.
    fn slot(&self) -> SlotId {
        match self {
            Handle::Signs(signer) => signer.slot(),
            Handle::Decrypts(decryptor) => decryptor.slot(),
        }
    }

    /// Uses the key; whether an agreement is of another key shows when it is asked for.
    fn confirmed(&self, call: &Call) -> Result<(), Error> {
        match self {
            Handle::Signs(_) => self.work(call),
            Handle::Decrypts(decryptor) => {
                let challenge = challenge(decryptor.public_key());
                match decryptor.unwrap(challenge.request(), call) {
                    Ok(answer) if challenge.is_answered_by(&answer) => Ok(()),
                    Ok(_) | Err(Error::DecryptionFailed) => decryptor.confirm(call),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Uses the key and checks what comes of it.
    fn work(&self, call: &Call) -> Result<(), Error> {
        match self {
            Handle::Signs(signer) => {
                let signature = signer.sign(b"conformance", call)?;
                (signer.public_key().verify(b"conformance", &signature)).unwrap();
            }
            Handle::Decrypts(decryptor) => {
                let challenge = challenge(decryptor.public_key());
                let answer = decryptor.unwrap(challenge.request(), call)?;
                assert!(challenge.is_answered_by(&answer), "another secret");
            }
        }
        Ok(())
    }
}

fn challenge(key: &PublicKey) -> Challenge {
    Challenge::new(key).unwrap_or_else(|| panic!("{} does not decrypt", key.algorithm()))
}

fn a_token_is_found_by_the_name_that_it_gives(subject: &dyn Subject) -> Result<(), Skip> {
    let driver = subject.driver();
    let backend = subject.backend();
    assert!(backend.starts_with(&format!("{}:", driver.scheme())));

    let found = driver.tokens(&backend).unwrap();
    assert_eq!(found.len(), 1, "{backend} is to name one token: {found:?}");
    let TokenInfo {
        id,
        backend: own,
        makes,
        uses,
        untried,
        ..
    } = &found[0];
    assert_eq!(id.kind, driver.scheme());
    assert!(!id.serial.is_empty());
    for specs in [makes, uses, untried] {
        for spec in specs {
            assert!(spec.algorithm.can(spec.usage), "{spec} is impossible");
            assert_eq!(specs.iter().filter(|s| *s == spec).count(), 1);
        }
    }
    assert!(!uses.is_empty());
    assert!(makes.iter().all(|spec| uses.contains(spec)));
    assert!(untried.iter().all(|spec| uses.contains(spec)));

    assert_eq!(driver.tokens(own).unwrap(), found, "by its own name {own}");
    let token = driver
        .open(own, &subject.access(), &Call::unlimited())
        .unwrap();
    assert_eq!(token.info().id, *id);
    driver.slots(token.info()).unwrap();
    Ok(())
}

fn a_backend_that_fits_nothing_finds_no_token(subject: &dyn Subject) -> Result<(), Skip> {
    let backend = subject.absent_backend().map_err(Skip)?;
    assert_eq!(subject.driver().tokens(&backend).unwrap(), []);
    refused!(
        subject
            .driver()
            .open(&backend, &subject.access(), &Call::unlimited()),
        Error::NoToken { .. }
    );
    Ok(())
}

fn a_malformed_backend_is_refused(subject: &dyn Subject) -> Result<(), Skip> {
    let driver = subject.driver();
    let scheme = driver.scheme();
    for backend in [
        String::new(),
        ":".into(),
        scheme.into(),
        format!("{scheme}:%zz=1"),
        format!("{scheme}:serial=%"),
        format!("{scheme}x:"),
        format!(" {}", subject.backend()),
        "é".repeat(10_000),
    ] {
        refused!(driver.tokens(&backend), Error::BadBackend { .. });
        refused!(driver.named_slot(&backend), Error::BadBackend { .. });
        refused!(
            driver.open(&backend, &subject.access(), &Call::unlimited()),
            Error::BadBackend { .. }
        );
    }
    Ok(())
}

fn a_token_that_needs_a_pin_says_so(subject: &dyn Subject) -> Result<(), Skip> {
    let driver = subject.driver();
    let found = driver.tokens(&subject.backend()).unwrap();
    assert!(found.iter().all(|token| token.login_required));
    refused!(
        driver.open(
            &subject.backend(),
            &Access::without_pin(),
            &Call::unlimited()
        ),
        Error::PinNeeded { .. }
    );
    Bench::open(subject).slots();
    Ok(())
}

fn a_refused_pin_is_not_sent_twice(subject: &dyn Subject) -> Result<(), Skip> {
    let driver = subject.driver();
    let wrong = subject.wrong_access().map_err(Skip)?;
    refused!(
        driver.open(&subject.backend(), &wrong, &Call::unlimited()),
        Error::PinWrong { .. }
    );
    for _ in 0..3 {
        refused!(
            driver.open(&subject.backend(), &wrong, &Call::unlimited()),
            Error::PinRefusedBefore { .. }
        );
    }

    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let handle = Handle::of(&*bench.token, &made.key, spec.usage).unwrap();
    handle.work(&bench.call).unwrap();
    Ok(())
}

fn a_token_that_is_open_opens_again_without_a_pin(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let again = subject
        .driver()
        .open(
            &subject.backend(),
            &Access::without_pin(),
            &Call::unlimited(),
        )
        .unwrap();
    assert_eq!(again.info().id, bench.token.info().id);
    let handle = Handle::of(&*again, &made.key, spec.usage).unwrap();
    drop(again);
    handle.work(&bench.call).unwrap();
    let handle = Handle::of(&*bench.token, &made.key, spec.usage).unwrap();
    handle.work(&bench.call).unwrap();
    Ok(())
}

fn a_key_lives_from_generate_to_delete(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let before = bench.slots();
    bench.any_spec()?;
    for spec in bench.token.info().makes.clone() {
        let slot = bench.free_slot(spec);
        assert_eq!(bench.slots(), before, "asking for a slot changed something");

        let made = bench.make_in(&slot, spec, "conformance");
        let listed = bench.occupied(&slot).expect("a new key is listed");
        let fingerprint = made.key.public_key.fingerprint().to_string();
        assert_eq!(listed.algorithm, Some(spec.algorithm));
        assert_eq!(listed.uses, [spec.usage], "{spec}");
        assert_eq!(listed.public_key.as_ref(), Some(&made.key.public_key));
        assert_eq!(listed.fingerprint, Some(fingerprint));
        assert!(["conformance", ""].contains(&&*listed.label));

        let handle = Handle::of(&*bench.token, &made.key, spec.usage).unwrap();
        handle.work(&bench.call).unwrap();

        let deleted = bench.token.delete(&made.key, &bench.call).unwrap();
        let expected = match bench.token.info().derives {
            true => Deletion::Derivable,
            false => Deletion::Destroyed,
        };
        assert_eq!(deleted, expected, "{spec}");
        assert_eq!(bench.slots(), before, "{spec} left something behind");
        let again = bench.token.delete(&made.key, &bench.call).unwrap();
        assert_eq!(again, Deletion::NothingThere);
        refused!(
            Handle::of(&*bench.token, &made.key, spec.usage),
            Error::KeyNotFound { .. }
        );
        for _ in 0..2 {
            refused!(handle.work(&bench.call), Error::KeyNotFound { .. });
        }
    }
    Ok(())
}

fn a_kind_of_key_that_is_not_offered_is_refused_and_nothing_changes(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let before = bench.slots();
    let offered = &bench.token.info().makes;
    let slot = bench.free_slot(bench.any_spec()?);
    for spec in Algorithm::ALL
        .into_iter()
        .flat_map(|a| [KeySpec::sign(a), KeySpec::decrypt(a)])
        .filter(|spec| !offered.contains(spec))
    {
        let by_slot = bench.token.free_slots(&[spec], &[], &bench.call).map(drop);
        let by_key = bench.generate(&slot, spec, "", &bench.call).map(drop);
        for refusal in [by_slot, by_key] {
            match refusal {
                Err(Error::Unsupported {
                    wanted, supported, ..
                }) => {
                    assert_eq!(wanted, spec);
                    assert_eq!(supported, *offered);
                }
                other => panic!("{spec} is not offered, but: {other:?}"),
            }
        }
    }
    assert_eq!(bench.slots(), before);
    Ok(())
}

fn slots_for_several_keys_are_several(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let offered = bench.token.info().makes.clone();
    let unique = |specs: &[KeySpec]| {
        let slots = bench.token.free_slots(specs, &[], &bench.call).unwrap();
        assert_eq!(slots.len(), specs.len());
        slots.into_iter().collect::<BTreeSet<_>>().len()
    };
    assert_eq!(unique(&[]), 0);
    assert_eq!(unique(&[bench.any_spec()?; 2]), 2);
    assert_eq!(unique(&offered), offered.len());

    let slots = bench.token.free_slots(&offered, &[], &bench.call).unwrap();
    let made = |(slot, spec): (&SlotId, &KeySpec)| bench.make_in(slot, *spec, "conformance");
    let made: Vec<Made> = slots.iter().zip(&offered).map(made).collect();
    for (made, spec) in made.iter().zip(&offered) {
        let handle = Handle::of(&*bench.token, &made.key, spec.usage).unwrap();
        handle.work(&bench.call).unwrap();
    }

    let impossible = KeySpec::decrypt(Algorithm::Ed25519);
    refused!(
        bench
            .token
            .free_slots(&[offered[0], impossible], &[], &bench.call),
        Error::Unsupported { .. }
    );
    Ok(())
}

fn an_occupied_slot_is_not_overwritten(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let before = bench.slots();
    for other in bench.token.info().makes.clone() {
        refused!(
            bench.generate(&made.key.slot, other, "", &bench.call),
            Error::SlotOccupied { .. }
        );
        assert_ne!(bench.free_slot(other), made.key.slot);
    }
    assert_eq!(bench.slots(), before);
    let handle = Handle::of(&*bench.token, &made.key, spec.usage).unwrap();
    handle.work(&bench.call).unwrap();
    Ok(())
}

fn a_slot_name_that_makes_no_sense_does_no_harm(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let before = bench.slots();
    for name in ["", "0", "zz", "é", "../..", "\0", &"7".repeat(100_001)] {
        let slot = SlotId::new(name);
        let left = Unfinished {
            slot: slot.clone(),
            mark: unfinished_mark(),
            public_key: None,
        };
        assert!(!matches!(
            bench.token.discard(&left, &bench.call),
            Ok(Deletion::Destroyed | Deletion::Derivable)
        ));
        let key = KeyRef {
            slot,
            public_key: made.key.public_key.clone(),
        };
        // The public half names the key; where it is found by that, it is the one.
        if let Ok(handle) = Handle::of(&*bench.token, &key, spec.usage) {
            handle.work(&bench.call).unwrap();
        }
    }
    assert_eq!(bench.slots(), before);
    Ok(())
}

fn a_label_may_be_anything(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    for label in ["", "Schlüssel für Ωμέγα 🗝", "a\0b\nc", &"long ".repeat(200)] {
        let slot = bench.free_slot(spec);
        let made = bench.make_in(&slot, spec, label);
        assert!(bench.occupied(&slot).is_some());
        let handle = Handle::of(&*bench.token, &made.key, spec.usage).unwrap();
        handle.work(&bench.call).unwrap();
    }
    Ok(())
}

fn a_key_is_protected_as_the_token_promises(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    bench.any_spec()?;
    for spec in bench.token.info().makes.clone() {
        assert_eq!(bench.make(spec).protection, subject.protection(), "{spec}");
    }
    Ok(())
}

fn a_signature_verifies_and_an_altered_message_does_not(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    for spec in bench.specs(KeyUse::Sign)? {
        let made = bench.make(spec);
        let public = &made.key.public_key;
        let signer = made.signer();
        let longest = match spec.algorithm {
            Algorithm::Ed25519 => subject.longest_ed25519_message(),
            _ => usize::MAX,
        };
        let longest = longest.min(subject.longest_message());
        let mut earlier = None;
        let long = vec![0xa5; 1 << 20];
        let bound = vec![0x5a; if longest < long.len() { longest } else { 1000 }];
        for message in [&b""[..], b"a", &[0; 200], &bound, &long] {
            if message.len() > longest {
                refused!(signer.sign(message, &bench.call), Error::BadMessage { .. });
                continue;
            }
            let signature = signer.sign(message, &bench.call).unwrap();
            assert_eq!(Some(signature.scheme()), signer.scheme());
            assert!(SignatureScheme::all_of(spec.algorithm).any(|s| s == signature.scheme()));
            (public.verify(message, &signature))
                .unwrap_or_else(|_| panic!("{spec}, {} bytes", message.len()));
            let altered = [message, b"."].concat();
            assert!(public.verify(&altered, &signature).is_err(), "{spec}");
            if let Some(earlier) = earlier.replace(signature) {
                assert!(public.verify(message, &earlier).is_err(), "{spec}");
            }
            if let Some(digests) = signer.of_digests() {
                let scheme = signer.scheme().unwrap();
                let digest = verdict::digest_of(scheme, message).unwrap().unwrap();
                let signature = digests.sign_digest(&digest, &bench.call).unwrap();
                assert_eq!(public.verify(message, &signature), Ok(()), "{spec}");
                refused!(
                    digests.sign_digest(&digest[1..], &bench.call),
                    Error::BadMessage { .. }
                );
            }
        }
        if spec.algorithm == Algorithm::Secp256k1 {
            for i in 0..16 {
                let signature = signer.sign(&[i], &bench.call).unwrap();
                let signature = k256::ecdsa::Signature::from_slice(signature.as_bytes()).unwrap();
                assert!(signature.normalize_s().is_none(), "s is high");
            }
        }
    }
    Ok(())
}

fn a_handle_is_a_key_of_the_signature_crate(subject: &dyn Subject) -> Result<(), Skip> {
    fn signs<S>(handle: Arc<dyn Signer>, call: &Call)
    where
        S: interop::Scheme,
        S::VerifyingKey: signature::Verifier<S>,
    {
        use signature::{Keypair, Signer, Verifier};
        let key = interop::SigningKey::<S>::new(handle, call.clone()).unwrap();
        let signature = key.try_sign(b"conformance").unwrap();
        key.verifying_key()
            .verify(b"conformance", &signature)
            .unwrap();
    }

    let bench = Bench::open(subject);
    for spec in bench.specs(KeyUse::Sign)? {
        let made = bench.make(spec);
        let call = &bench.call;
        match made.signer().scheme() {
            Some(SignatureScheme::Ed25519) => {
                signs::<ed25519_dalek::Signature>(made.signer(), call);
            }
            Some(SignatureScheme::EcdsaP256Sha256) => {
                signs::<p256::ecdsa::Signature>(made.signer(), call);
            }
            Some(SignatureScheme::EcdsaP384Sha384) => {
                signs::<p384::ecdsa::Signature>(made.signer(), call);
            }
            Some(SignatureScheme::EcdsaSecp256k1Sha256) => {
                signs::<k256::ecdsa::Signature>(made.signer(), call);
            }
            Some(SignatureScheme::Eip191Secp256k1) => {
                signs::<interop::Eip191Signature>(made.signer(), call);
            }
            Some(SignatureScheme::RsaPkcs1Sha256) => {
                signs::<rsa::pkcs1v15::Signature>(made.signer(), call);
            }
            // The crate knows no type for these.
            Some(SignatureScheme::Bls12381G2Basic | SignatureScheme::RsaPkcs1Sha512) => {
                let key =
                    interop::SigningKey::<p256::ecdsa::Signature>::new(made.signer(), call.clone());
                assert!(key.is_err());
            }
            None => panic!("{spec} does not sign"),
        }
    }
    Ok(())
}

fn a_decryptor_agrees_with_what_its_peer_computes(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    for spec in bench.specs(KeyUse::Decrypt)? {
        let made = bench.make(spec);
        let handle = Handle::Decrypts(made.decryptor());
        for _ in 0..8 {
            handle.work(&bench.call).unwrap();
        }
    }
    Ok(())
}

fn what_does_not_open_says_only_that(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    for spec in bench.specs(KeyUse::Decrypt)? {
        let made = bench.make(spec);
        let decryptor = made.decryptor();
        let good = challenge(&made.key.public_key);
        let mut inputs: Vec<Vec<u8>> = [0, 1, 31, 32, 33, 64, 65, 66, 97, 256, 384, 512, 5000]
            .map(|length| vec![0; length])
            .into();
        inputs.push(good.sent()[1..].to_vec());
        inputs.push([good.sent(), &[0]].concat());
        match spec.algorithm {
            Algorithm::P256 => {
                inputs.push([&[4][..], &[0; 64]].concat());
                let mut off_curve = good.sent().to_vec();
                off_curve[64] ^= 1;
                inputs.push(off_curve);
                let point = p256::PublicKey::from_sec1_bytes(good.sent()).unwrap();
                inputs.push(point.to_encoded_point(true).as_bytes().to_vec());
                inputs.push([&[6], &good.sent()[1..]].concat());
            }
            Algorithm::X25519 => {
                inputs.extend(X25519_LOW_ORDER.map(|hex| crate::key::from_hex(hex).unwrap()));
            }
            _ => {
                let mut altered = good.sent().to_vec();
                altered[100] ^= 1;
                inputs.push(altered);
                inputs.push(vec![0xff; good.sent().len()]);
                refused!(
                    decryptor.unwrap(
                        Unwrap::Oaep {
                            ciphertext: good.sent(),
                            label: b"another label"
                        },
                        &bench.call
                    ),
                    Error::DecryptionFailed
                );
            }
        }
        for input in &inputs {
            for request in [
                Unwrap::Agree { peer: input },
                Unwrap::Oaep {
                    ciphertext: input,
                    label: SSH_RSA_LABEL,
                },
            ] {
                match decryptor.unwrap(request, &bench.call) {
                    Err(Error::DecryptionFailed) => {}
                    Err(other) => panic!("{spec}: {request:?} gave {other:?}"),
                    Ok(_) => panic!("{spec}: {request:?} opened"),
                }
            }
        }
        let answer = decryptor.unwrap(good.request(), &bench.call).unwrap();
        assert!(
            good.is_answered_by(&answer),
            "{spec} is spoilt by bad input"
        );
    }
    Ok(())
}

/// The points of small order (RFC 7748 §6.1), besides zero: 1, two of order 8, p - 1, p, p + 1.
const X25519_LOW_ORDER: [&str; 6] = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

fn an_envelope_opens_for_its_recipient_alone(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    for spec in bench.specs(KeyUse::Decrypt)? {
        let (made, other) = (bench.make(spec), bench.make(spec));
        let decryptor = made.decryptor();
        let open = |file: &[u8]| envelope::decrypt(&*decryptor, file, &bench.call);

        for length in [0, 1, 65_536, 200_000] {
            let plaintext = vec![7; length];
            let file = envelope::encrypt(&[&made.key.public_key], &plaintext).unwrap();
            assert!(*open(&file).unwrap() == plaintext, "{spec}, {length} bytes");
        }

        let both = [&other.key.public_key, &made.key.public_key];
        let file = envelope::encrypt(&both, b"for two").unwrap();
        assert_eq!(**open(&file).unwrap(), *b"for two");

        let foreign = envelope::encrypt(&[&other.key.public_key], b"for another").unwrap();
        refused!(open(&foreign), Error::DecryptionFailed);
        refused!(open(b""), Error::DecryptionFailed);
        refused!(open(&[b'a'; 1000]), Error::DecryptionFailed);

        let file = envelope::encrypt(&[&made.key.public_key], b"conformance").unwrap();
        for i in (0..file.len()).step_by(7).chain([file.len() - 1]) {
            refused!(open(&file[..i]), Error::DecryptionFailed);
            let mut altered = file.clone();
            altered[i] ^= 1;
            refused!(open(&altered), Error::DecryptionFailed);
        }
        assert_eq!(**open(&file).unwrap(), *b"conformance");
    }
    Ok(())
}

fn a_key_has_one_use(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    bench.any_spec()?;
    for spec in bench.token.info().makes.clone() {
        let made = bench.make(spec);
        let refusal = match spec.usage {
            KeyUse::Sign => bench.token.decryptor(&made.key).map(drop),
            KeyUse::Decrypt => bench.token.signer(&made.key).map(drop),
        };
        refused!(refusal, Error::Unsupported { .. } | Error::NotUsable { .. });
    }
    Ok(())
}

fn a_key_that_is_not_the_one_remembered_is_not_used(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let (made, other) = (bench.make(spec), bench.make(spec));
    let key = |slot: &SlotId, made: &Made| KeyRef {
        slot: slot.clone(),
        public_key: made.key.public_key.clone(),
    };
    let free = bench.free_slot(spec);
    for moved in [key(&made.key.slot, &other), key(&free, &made)] {
        match Handle::of(&*bench.token, &moved, spec.usage) {
            // By its public half, wherever it is.
            Ok(handle) => {
                assert_eq!(*handle.public_key(), moved.public_key);
                handle.work(&bench.call).unwrap();
            }
            Err(Error::KeyMismatch { .. } | Error::KeyNotFound { .. }) => {}
            Err(other) => panic!("{moved:?} gave {other:?}"),
        }
    }

    // The slot is used again, for another key or for the same derived again: the handle
    // on the one that was deleted does not sign with it.
    let handle = Handle::of(&*bench.token, &made.key, spec.usage).unwrap();
    handle.work(&bench.call).unwrap();
    bench.token.delete(&made.key, &bench.call).unwrap();
    let successor = bench.make_in(&made.key.slot, spec, "conformance");
    refused!(
        handle.work(&bench.call),
        Error::KeyNotFound { .. } | Error::KeyMismatch { .. }
    );
    let handle = Handle::of(&*bench.token, &successor.key, spec.usage).unwrap();
    handle.work(&bench.call).unwrap();
    Ok(())
}

fn eight_threads_sign_at_once(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    for spec in bench.specs(KeyUse::Sign)? {
        let (made, other) = (bench.make(spec), bench.make(spec));
        let handles = [made.signer(), other.signer()];
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let signer = handles[usize::from(thread % 2)].clone();
                let call = &bench.call;
                scope.spawn(move || {
                    for i in 0..16 {
                        let message = [thread, i];
                        let signature = signer.sign(&message, call).unwrap();
                        (signer.public_key().verify(&message, &signature)).unwrap();
                    }
                });
            }
        });
    }
    Ok(())
}

fn a_call_that_is_late_or_given_up_changes_nothing(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let handle = Handle::of(&*bench.token, &made.key, spec.usage).unwrap();
    let free = bench.free_slot(spec);
    let before = bench.slots();

    let attempts = |call: &Call| {
        [
            bench.token.slots(call).map(drop),
            bench.token.free_slots(&[spec], &[], call).map(drop),
            bench.generate(&free, spec, "", call).map(drop),
            bench.token.delete(&made.key, call).map(drop),
            handle.work(call),
        ]
    };
    for attempt in attempts(&Call::within(Duration::ZERO)) {
        refused!(attempt, Error::DeadlineExceeded);
    }
    let given_up = Call::unlimited().cancelled_by(Arc::new(AtomicBool::new(true)));
    for attempt in attempts(&given_up) {
        refused!(attempt, Error::Cancelled);
    }

    assert_eq!(bench.slots(), before);
    handle.work(&bench.call).unwrap();
    Ok(())
}

fn a_full_token_says_so(subject: &dyn Subject) -> Result<(), Skip> {
    let capacity = subject.capacity().map_err(Skip)?;
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let mut made: Vec<Made> = (0..capacity).map(|_| bench.make(spec)).collect();
    let before = bench.slots();
    refused!(
        bench.token.free_slots(&[spec], &[], &bench.call),
        Error::TokenFull { .. } | Error::OnlyNamedSlots { .. }
    );
    assert_eq!(bench.slots(), before);

    drop(made.pop());
    let last = bench.make(spec);
    let handle = Handle::of(&*bench.token, &last.key, spec.usage).unwrap();
    handle.work(&bench.call).unwrap();
    Ok(())
}

fn a_token_that_went_away_works_again_when_it_is_back(subject: &dyn Subject) -> Result<(), Skip> {
    let plug = subject.plug().map_err(Skip)?;
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let handle = Handle::of(&*bench.token, &made.key, spec.usage).unwrap();
    for _ in 0..3 {
        handle.work(&bench.call).unwrap();
        let out = Out(plug);
        plug.remove();
        refused!(handle.work(&bench.call), Error::TokenUnavailable { .. });
        drop(out);
        handle.work(&bench.call).unwrap();
    }
    Ok(())
}

/// A token that is out. Dropped, it is back, also where the check fails: before the keys
/// on it are deleted.
struct Out<'a>(&'a dyn Plug);

impl Drop for Out<'_> {
    fn drop(&mut self) {
        let insert = AssertUnwindSafe(|| self.0.insert());
        match std::thread::panicking() {
            false => insert(),
            // The check says already what failed.
            true => drop(catch_unwind(insert)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_out_is_put_back_where_a_check_fails() {
        struct Counted(std::sync::atomic::AtomicUsize);
        impl Plug for Counted {
            fn remove(&self) {}

            fn insert(&self) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                panic!("nobody put it in");
            }
        }
        let plug = Counted(0.into());
        let failed = catch_unwind(AssertUnwindSafe(|| {
            let _out = Out(&plug);
            panic!("the check");
        }));
        assert_eq!(failed.unwrap_err().downcast_ref(), Some(&"the check"));
        assert_eq!(plug.0.into_inner(), 1);
    }
}
