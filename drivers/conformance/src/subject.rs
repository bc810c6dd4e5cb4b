//! The subject of a test: a token, and what a test can do to it.

use std::sync::Arc;

use claviger_token::{Access, Driver, KeyRef, KeySpec, KeyUse, Protection, PublicKey};

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

/// Another tool that works on the token under test. It goes by places, as such tools do.
///
/// What it cannot do on this token it says; the checks that need it are then skipped with these
/// words.
pub trait Others {
    /// Makes a key of its own, of any kind, in the place of `key`, beside it.
    ///
    /// # Errors
    /// Why it cannot.
    fn add_beside(&self, key: &KeyRef) -> Result<PublicKey, &'static str>;

    /// Destroys `key` and makes one of its own of the same kind in the place.
    ///
    /// # Errors
    /// Why it cannot.
    fn replace(&self, key: &KeyRef) -> Result<PublicKey, &'static str>;

    /// Gives `key` another place.
    ///
    /// # Errors
    /// Why it cannot.
    fn move_key(&self, key: &KeyRef) -> Result<(), &'static str>;

    /// Takes the name of its place from `key`, such as an empty `CKA_ID`.
    ///
    /// # Errors
    /// Why it cannot.
    fn unname(&self, key: &KeyRef) -> Result<(), &'static str>;

    /// Puts a public half and the private half of another key on the token as if they were a
    /// pair, and says what the public half is. [`Others::remove`] removes both.
    ///
    /// # Errors
    /// Why it cannot.
    fn mismatch(&self, spec: KeySpec) -> Result<KeyRef, &'static str>;

    /// Whether a key of its own is there, both halves.
    fn has(&self, key: &PublicKey) -> bool;

    /// Removes a key of its own.
    fn remove(&self, key: &PublicKey);
}
