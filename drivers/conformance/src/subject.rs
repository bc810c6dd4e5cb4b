//! The subject of a test: a token, and what a test can do to it.

use std::sync::Arc;

use claviger_token::{Access, Driver, KeyRef, KeySpec, KeyUse, Protection, PublicKey};

/// A token under test, and the faults that a test can cause.
///
/// Each fault has a default that states why it cannot be caused; the checks that need it are then
/// skipped with this reason. The answers must not use the token.
pub trait Subject: Send + Sync {
    /// The driver, the same one each time.
    fn driver(&self) -> Arc<dyn Driver>;

    /// A backend string that matches only this token.
    fn backend(&self) -> String;

    /// The right PIN.
    fn access(&self) -> Access;

    /// The protection that the token states for the keys that it makes.
    fn protection(&self) -> Protection {
        Protection::FULL
    }

    /// A well-formed wrong PIN. Nobody may have logged in to the token before the check that uses
    /// it.
    ///
    /// # Errors
    /// Why there is none.
    fn wrong_access(&self) -> Result<Access, &'static str> {
        Err("a wrong PIN is not to be tried on this token")
    }

    /// A well-formed backend string that matches no token.
    ///
    /// # Errors
    /// Why there is none.
    fn absent_backend(&self) -> Result<String, &'static str> {
        Err("no other token can be asked for")
    }

    /// The number of keys of the first supported kind that fill the empty token.
    ///
    /// # Errors
    /// Why it cannot be filled.
    fn capacity(&self) -> Result<usize, &'static str> {
        Err("the token has no bound that a test could reach")
    }

    /// The longest message in bytes that the token signs with Ed25519, which needs all of it on the
    /// token. The token must refuse longer ones.
    fn longest_ed25519_message(&self) -> usize {
        usize::MAX
    }

    /// The longest message in bytes that the token signs with any key. The token must refuse longer
    /// ones.
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

    /// Restarts the service behind the token, such as its daemon or its module, under the running
    /// process.
    ///
    /// # Errors
    /// Why that cannot be done.
    fn restart(&self) -> Result<(), &'static str> {
        self.can_restart()
    }

    /// Whether [`Subject::generates_none`] is available.
    ///
    /// # Errors
    /// Why not.
    fn can_generate_none(&self) -> Result<(), &'static str> {
        Err("a token of this kind that generates no keys cannot be had")
    }

    /// The token in a form that generates no keys, with one of its keys and the use of that.
    ///
    /// # Errors
    /// Why it always generates, or never.
    fn generates_none(&self) -> Result<(Box<dyn Subject>, KeyRef, KeyUse), &'static str> {
        Err("a token of this kind that generates no keys cannot be had")
    }

    /// A handle that unplugs the token and plugs it in.
    ///
    /// # Errors
    /// Why it cannot be removed.
    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        Err("the token cannot be removed by a program")
    }
}

/// Unplugs a token and plugs it in.
pub trait Plug {
    /// Unplugs the token under a running process.
    fn remove(&self);

    /// Plugs it in again, with everything that was on it.
    fn insert(&self);
}

/// Another tool that works on the token under test. Like such tools, it identifies keys by their
/// slots.
///
/// What it cannot do on this token returns an error; the checks that need it are then skipped with
/// this reason.
pub trait Others {
    /// Makes a key of its own, of any kind, in the slot of `key`, beside it.
    ///
    /// # Errors
    /// Why it cannot.
    fn add_beside(&self, key: &KeyRef) -> Result<PublicKey, &'static str>;

    /// Destroys `key` and makes one of its own of the same kind in the slot.
    ///
    /// # Errors
    /// Why it cannot.
    fn replace(&self, key: &KeyRef) -> Result<PublicKey, &'static str>;

    /// Moves `key` to another slot.
    ///
    /// # Errors
    /// Why it cannot.
    fn move_key(&self, key: &KeyRef) -> Result<(), &'static str>;

    /// Removes the slot's name from `key`, such as its `CKA_ID`.
    ///
    /// # Errors
    /// Why it cannot.
    fn unname(&self, key: &KeyRef) -> Result<(), &'static str>;

    /// Puts a public key and the private key of another pair on the token as if they were a pair,
    /// and returns the public key. [`Others::remove`] removes both.
    ///
    /// # Errors
    /// Why it cannot.
    fn mismatch(&self, spec: KeySpec) -> Result<KeyRef, &'static str>;

    /// Whether a key of its own is complete.
    fn has(&self, key: &PublicKey) -> bool;

    /// Removes a key of its own.
    fn remove(&self, key: &PublicKey);
}
