//! Changes of other tools to the keys on a token, and what must not follow from them.

use claviger_token::{
    Deletion, Error, KeySpec, PublicKey, SlotInfo, Unfinished, possession, unfinished_mark,
};

use crate::bench::{Bench, OpenKey, refused};
use crate::check::{Skip, Theme};
use crate::subject::Others;
use crate::subject::Subject;

/// What these checks are about.
pub(crate) const THEME: Theme = Theme::OtherTools;

pub(crate) fn a_deletion_leaves_a_foreign_key_in_the_same_place(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let others = subject.others().map_err(Skip)?;
    let bench = Bench::open(subject);
    for spec in bench.one_spec_of_each_use() {
        let made = bench.make(spec);
        let foreign = Foreign(others, others.add_beside(&made.key).map_err(Skip)?);
        let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
        handle.work(&bench.call).unwrap();
        let deleted = bench.token.delete(&made.key, &bench.call).unwrap();
        assert_eq!(deleted, Deletion::Destroyed, "{spec}");
        assert!(foreign.is_there(), "{spec}: it was destroyed, too");
        refused!(
            OpenKey::of(&*bench.token, &made.key, spec.usage),
            Error::KeyNotFound { .. } | Error::KeyMismatch { .. }
        );
    }
    Ok(())
}

pub(crate) fn what_replaced_a_key_is_neither_used_nor_deleted(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let others = subject.others().map_err(Skip)?;
    let bench = Bench::open(subject);
    for spec in bench.one_spec_of_each_use() {
        let made = bench.make(spec);
        // A handle that was freed may be given to what replaces the key.
        let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
        handle.work(&bench.call).unwrap();
        let foreign = Foreign(others, others.replace(&made.key).map_err(Skip)?);
        for _ in 0..2 {
            refused!(
                handle.confirmed(&bench.call),
                Error::KeyNotFound { .. } | Error::KeyMismatch { .. }
            );
        }
        refused!(
            OpenKey::of(&*bench.token, &made.key, spec.usage),
            Error::KeyNotFound { .. } | Error::KeyMismatch { .. }
        );
        let deleted = bench.token.delete(&made.key, &bench.call).unwrap();
        assert!(
            matches!(deleted, Deletion::NothingThere | Deletion::Foreign),
            "{spec}: {deleted:?}"
        );
        assert!(foreign.is_there(), "{spec}: it was destroyed");
    }
    Ok(())
}

pub(crate) fn an_unfinished_key_is_discarded_and_a_foreign_one_beside_it_is_not(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let others = subject.others().map_err(Skip)?;
    let bench = Bench::open(subject);
    for spec in bench.one_spec_of_each_use() {
        let (made, left) = bench.begin(spec);
        let foreign = Foreign(others, others.add_beside(&made.key).map_err(Skip)?);
        let unknown = Unfinished {
            mark: unfinished_mark(),
            public_key: None,
            ..left.clone()
        };
        let discarded = bench.token.discard(&unknown, &bench.call).unwrap();
        assert_ne!(discarded, Deletion::Destroyed, "{spec}: by its place");
        let discarded = bench.token.discard(&left, &bench.call).unwrap();
        assert_eq!(discarded, Deletion::Destroyed, "{spec}");
        assert!(foreign.is_there(), "{spec}: it was destroyed, too");
    }
    Ok(())
}

pub(crate) fn a_pair_that_is_no_pair_proves_nothing(subject: &dyn Subject) -> Result<(), Skip> {
    let others = subject.others().map_err(Skip)?;
    let bench = Bench::open(subject);
    let id = bench.token.info().id.clone();
    for spec in bench.one_spec_of_each_use() {
        let key = others.mismatch(spec).map_err(Skip)?;
        let _foreign = Foreign(others, key.public_key.clone());
        let proven = match OpenKey::of(&*bench.token, &key, spec.usage) {
            Err(error) => Err(error),
            Ok(OpenKey::Signs(signer)) => possession::of_signer(&*signer, &id, &bench.call),
            Ok(OpenKey::Decrypts(decryptor)) => {
                possession::of_decryptor(&*decryptor, &id, &bench.call)
            }
        };
        match proven {
            Err(
                Error::NoPossession { .. }
                | Error::KeyNotFound { .. }
                | Error::KeyMismatch { .. }
                | Error::MalformedReply { .. },
            ) => {}
            other => panic!("{spec}: {other:?}"),
        }
    }
    Ok(())
}

pub(crate) fn a_key_that_was_moved_is_found_and_deleted(subject: &dyn Subject) -> Result<(), Skip> {
    let others = subject.others().map_err(Skip)?;
    let bench = Bench::open(subject);
    for spec in bench.one_spec_of_each_use() {
        let made = bench.make(spec);
        let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
        others.move_key(&made.key).map_err(Skip)?;
        handle.work(&bench.call).unwrap();
        let again = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
        again.work(&bench.call).unwrap();
        assert_ne!(
            again.slot().name(),
            made.key.slot.name(),
            "{spec}: where it is now is not said"
        );
        let deleted = bench.token.delete(&made.key, &bench.call).unwrap();
        assert_eq!(deleted, Deletion::Destroyed, "{spec}");
    }
    Ok(())
}

pub(crate) fn a_key_without_a_name_is_found_and_deleted(subject: &dyn Subject) -> Result<(), Skip> {
    let others = subject.others().map_err(Skip)?;
    let bench = Bench::open(subject);
    for spec in bench.one_spec_of_each_use() {
        let made = bench.make(spec);
        others.unname(&made.key).map_err(Skip)?;
        let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
        handle.work(&bench.call).unwrap();
        let listed = bench.slots().into_iter();
        let is_it = |slot: &SlotInfo| slot.public_key.as_ref() == Some(&made.key.public_key);
        assert_eq!(listed.filter(is_it).count(), 1, "{spec}: it is not listed");
        let deleted = bench.token.delete(&made.key, &bench.call).unwrap();
        assert_eq!(deleted, Deletion::Destroyed, "{spec}");
    }
    Ok(())
}

pub(crate) fn a_key_is_used_on_a_token_that_generates_none(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let (subject, key, usage) = subject.generates_none().map_err(Skip)?;
    let bench = Bench::open(&*subject);
    let info = bench.token.info();
    let spec = KeySpec {
        algorithm: key.public_key.algorithm(),
        usage,
    };
    assert!(!info.makes.contains(&spec), "{spec} can be made");
    assert!(info.uses.contains(&spec), "{spec} is not used");
    refused!(
        bench.token.free_slots(&[spec], &[], &bench.call),
        Error::Unsupported { .. }
    );
    let handle = OpenKey::of(&*bench.token, &key, usage).unwrap();
    handle.work(&bench.call).unwrap();
    Ok(())
}

/// Removes what the other tool made when the check is done with it.
struct Foreign<'a>(&'a dyn Others, PublicKey);

impl Foreign<'_> {
    fn is_there(&self) -> bool {
        self.0.has(&self.1)
    }
}

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        self.0.remove(&self.1);
    }
}
