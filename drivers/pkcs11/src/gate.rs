//! Who may call a module: many beside each other, or one alone.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use claviger_token::sync::lock;
use claviger_token::{Call, Error};

/// So often a waiting call looks whether it was given up.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A lock for readers and writers that is waited for no longer than a call lasts: whoever is
/// inside may wait for a device that never answers. Who wants to be alone goes first.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    beside: usize,
    alone: bool,
    /// How many wait to be alone.
    wanting: usize,
    waiting: usize,
}

/// Shows that its holder may call the module. Not to be taken twice by one thread.
pub(crate) struct Entered<'a> {
    gate: &'a Gate,
    alone: bool,
}

impl Gate {
    /// Enters beside others.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`], [`Error::Cancelled`].
    pub(crate) fn beside(&self, call: &Call) -> Result<Entered<'_>, Error> {
        self.enter(false, call)
    }

    /// Enters when nobody else is inside.
    ///
    /// # Errors
    /// As [`Gate::beside`].
    pub(crate) fn alone(&self, call: &Call) -> Result<Entered<'_>, Error> {
        self.enter(true, call)
    }

    fn enter(&self, alone: bool, call: &Call) -> Result<Entered<'_>, Error> {
        let mut state = lock(&self.state);
        state.wanting += usize::from(alone);
        let over = loop {
            let is_free = match alone {
                true => !state.alone && state.beside == 0,
                false => !state.alone && state.wanting == 0,
            };
            if is_free {
                break None;
            }
            if let Err(over) = call.check() {
                break Some(over);
            }
            state.waiting += 1;
            let pause = call.at_most(LOOK_AGAIN);
            let waited = self.changed.wait_timeout(state, pause);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        };
        state.wanting -= usize::from(alone);
        if let Some(over) = over {
            // Those who let it go first need not wait any longer.
            if state.waiting > 0 {
                self.changed.notify_all();
            }
            return Err(over);
        }
        match alone {
            true => state.alone = true,
            false => state.beside += 1,
        }
        Ok(Entered { gate: self, alone })
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.gate.state);
        match self.alone {
            true => state.alone = false,
            false => state.beside -= 1,
        }
        if state.waiting > 0 {
            self.gate.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    const SOON: Duration = Duration::from_millis(20);

    fn is_late<T>(entered: &Result<T, Error>) -> bool {
        matches!(entered, Err(Error::DeadlineExceeded))
    }

    #[test]
    fn one_is_alone_and_many_are_beside_each_other() {
        let gate = Gate::default();
        let soon = || Call::within(SOON);
        let both = (gate.beside(&soon()).unwrap(), gate.beside(&soon()).unwrap());
        assert!(is_late(&gate.alone(&soon())));
        drop(both);
        let alone = gate.alone(&soon()).unwrap();
        assert!(is_late(&gate.beside(&soon())));
        assert!(is_late(&gate.alone(&soon())));
        drop(alone);
        // Who gave up has left nothing behind.
        drop(gate.beside(&soon()).unwrap());
        drop(gate.alone(&soon()).unwrap());
    }

    #[test]
    fn who_waits_is_let_in_when_the_other_leaves_and_a_given_up_call_ends() {
        let gate = Gate::default();
        let given_up = Arc::new(AtomicBool::new(true));
        let inside = gate.alone(&Call::unlimited()).unwrap();
        let cancelled = Call::unlimited().cancelled_by(given_up);
        assert!(matches!(gate.beside(&cancelled), Err(Error::Cancelled)));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| gate.beside(&Call::unlimited()).map(drop));
            while lock(&gate.state).waiting == 0 {
                std::thread::yield_now();
            }
            drop(inside);
            waits.join().unwrap().unwrap();
        });
    }

    #[test]
    fn never_are_two_inside_of_whom_one_is_alone() {
        let (gate, inside) = (Gate::default(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for i in 0..4 {
                let (gate, inside) = (&gate, &inside);
                scope.spawn(move || {
                    for _ in 0..1000 {
                        let call = Call::unlimited();
                        let alone = i % 2 == 0;
                        let entered = match alone {
                            true => gate.alone(&call),
                            false => gate.beside(&call),
                        };
                        let entered = entered.unwrap();
                        let before = inside.fetch_add(1, Ordering::SeqCst);
                        assert!(!alone || before == 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(entered);
                    }
                });
            }
        });
    }
}
