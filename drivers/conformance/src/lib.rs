//! The conformance suite: checks that every driver runs against every token.
//!
//! A token *declares* what it makes and uses ([`makes`](claviger_token::TokenInfo::makes),
//! [`uses`](claviger_token::TokenInfo::uses)). The checks verify that it does what it declares and
//! refuses the rest. To test a driver, describe a token of its kind as a [`Subject`] and run
//! [`CHECKS`] on it:
//!
//! ```
//! # use claviger_conformance::{CHECKS, Outcome, Subject};
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
//! A failing check panics, as a test does. Each check deletes the keys that it made, also if it
//! fails, and touches no others. Never run it on a token that matters: it tries one wrong PIN if
//! the subject allows it.
//!
//! | module | theme |
//! | --- | --- |
//! | `finding` | tokens are found by their names |
//! | `pin` | a PIN is asked for when it is needed, and a rejected one is not sent twice |
//! | `keys` | keys are made, listed, told apart and deleted |
//! | `signing`, `decryption` | keys sign and decrypt |
//! | `deadlines`, `full`, `removal` | late calls, full tokens, unplugged tokens |
//! | `others` | keys that other tools changed |
#![forbid(unsafe_code)]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a check that fails panics"
)]

mod bench;
mod check;
mod deadlines;
mod decryption;
mod finding;
mod full;
mod keys;
mod others;
mod pin;
mod removal;
mod signing;
mod subject;

pub use check::{Check, Outcome, Theme};
pub use subject::{Others, Plug, Subject};

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
    ($($module:ident::$name:ident $(needs $fault:ident)?;)*) => {
        /// Every check, in the order in which their statements build on each other.
        pub const CHECKS: &[Check] = &[$(Check {
            name: stringify!($name),
            theme: $module::THEME,
            needs: |_subject| {
                $(needs!(_subject, $fault);)?
                Ok(())
            },
            body: $module::$name,
        }),*];
    };
}

checks! {
    finding::a_token_is_found_by_the_name_that_it_gives;
    finding::a_backend_that_fits_nothing_finds_no_token needs absent_backend;
    finding::a_malformed_backend_is_refused;
    pin::a_token_that_needs_a_pin_says_so needs wrong_access;
    pin::a_refused_pin_is_not_sent_twice needs wrong_access;
    pin::a_token_that_is_open_opens_again_without_a_pin;
    keys::a_key_lives_from_generate_to_delete;
    keys::a_kind_of_key_that_is_not_offered_is_refused_and_nothing_changes;
    keys::slots_for_several_keys_are_several;
    keys::an_occupied_slot_is_not_overwritten;
    keys::a_slot_name_that_makes_no_sense_does_no_harm;
    keys::a_label_may_be_anything;
    keys::a_key_is_protected_as_the_token_promises;
    signing::a_signature_verifies_and_an_altered_message_does_not;
    signing::a_handle_is_a_key_of_the_signature_crate;
    decryption::a_decryptor_agrees_with_what_its_peer_computes;
    decryption::what_does_not_open_says_only_that;
    decryption::an_envelope_opens_for_its_recipient_alone;
    keys::a_key_has_one_use;
    keys::a_key_that_is_not_the_one_remembered_is_not_used;
    keys::a_key_that_was_named_is_not_discarded;
    others::a_deletion_leaves_a_foreign_key_in_the_same_place needs others;
    others::what_replaced_a_key_is_neither_used_nor_deleted needs others;
    others::an_unfinished_key_is_discarded_and_a_foreign_one_beside_it_is_not needs others;
    others::a_pair_that_is_no_pair_proves_nothing needs others;
    others::a_key_that_was_moved_is_found_and_deleted needs others;
    others::a_key_without_a_name_is_found_and_deleted needs others;
    others::a_key_is_used_on_a_token_that_generates_none needs generates_none;
    removal::what_stands_behind_the_token_may_restart needs restart;
    signing::eight_threads_sign_at_once;
    deadlines::a_call_that_is_late_or_given_up_changes_nothing;
    full::a_full_token_says_so needs capacity;
    removal::a_token_that_went_away_works_again_when_it_is_back needs plug;
}
