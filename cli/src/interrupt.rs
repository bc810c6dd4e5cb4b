//! Ctrl-C, and being asked to end.
//!
//! | meanwhile | the first signal | the second |
//! | --- | --- | --- |
//! | anything else | ends the process, without the file that was being written | |
//! | keys are made or destroyed | has the engine undo or finish it | ends the process; the next start settles it |
//! | a PIN is asked for | Ctrl-C ends the question, and with it the command | ends the process |

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::screen::Screen;

/// What a signal means at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Mode {
    AtOnce,
    Tidy,
    Prompt,
}

/// What becomes of the process after a signal.
#[cfg(unix)]
#[derive(Debug, PartialEq, Eq)]
enum Reaction {
    /// Nothing yet: the prompt notices by itself.
    Wait,
    /// The engine undoes or finishes what it does.
    Tidy,
    /// It ends.
    End,
}

const TIDYING: &str =
    "interrupted: tidying up on the token (once more to leave that to the next start)";

/// What signals do to this process.
pub(crate) struct Interrupt {
    mode: AtomicU8,
    cancelled: Arc<AtomicBool>,
    /// A file that is not to be left behind.
    unfinished: Mutex<Option<PathBuf>>,
    screen: Screen,
}

impl Interrupt {
    /// Listens to signals from now on.
    pub(crate) fn listen(screen: Screen) -> Arc<Self> {
        let interrupt = Arc::new(Interrupt {
            mode: AtomicU8::new(Mode::AtOnce as u8),
            cancelled: Arc::default(),
            unfinished: Mutex::default(),
            screen,
        });
        #[cfg(unix)]
        interrupt.start_listening();
        interrupt
    }

    #[cfg(unix)]
    fn start_listening(self: &Arc<Self>) {
        use signal_hook::consts::{SIGINT, SIGTERM};
        // Without a listener signals end the process, which is what they should do.
        let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) else {
            return;
        };
        let interrupt = Arc::clone(self);
        std::thread::spawn(move || {
            for signal in signals.forever() {
                match interrupt.reaction(signal) {
                    Reaction::Wait => {}
                    Reaction::Tidy => interrupt.screen.line(TIDYING),
                    Reaction::End => {
                        interrupt.forget_unfinished();
                        // The C libraries of tokens may be at work: their clean-up at exit
                        // would pull the ground from under them.
                        signal_hook::low_level::exit(128 + signal);
                    }
                }
            }
        });
    }

    #[cfg(unix)]
    fn reaction(&self, signal: i32) -> Reaction {
        let mode = self.mode.load(Ordering::SeqCst);
        let again = self.cancelled.swap(true, Ordering::SeqCst);
        if again {
            Reaction::End
        } else if mode == Mode::Tidy as u8 {
            Reaction::Tidy
        } else if mode == Mode::Prompt as u8 && signal == signal_hook::consts::SIGINT {
            Reaction::Wait
        } else {
            Reaction::End
        }
    }

    /// True once a signal came that the process may still react to.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// Whether such a signal came.
    pub(crate) fn came(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// For as long as the result lives, keys are being made or destroyed.
    pub(crate) fn tidily(self: &Arc<Self>) -> Phase {
        self.enter(Mode::Tidy)
    }

    /// For as long as the result lives, a PIN is being asked for.
    pub(crate) fn prompting(self: &Arc<Self>) -> Phase {
        self.enter(Mode::Prompt)
    }

    fn enter(self: &Arc<Self>, mode: Mode) -> Phase {
        Phase {
            before: self.mode.swap(mode as u8, Ordering::SeqCst),
            interrupt: Arc::clone(self),
        }
    }

    /// Has `path` removed if the process is ended by a signal.
    pub(crate) fn remember_unfinished(&self, path: &Path) {
        *self.lock() = Some(path.into());
    }

    /// The file is finished, or removed.
    pub(crate) fn finished(&self) {
        *self.lock() = None;
    }

    #[cfg(unix)]
    fn forget_unfinished(&self) {
        if let Some(path) = self.lock().take() {
            let _ = std::fs::remove_file(path);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<PathBuf>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A time in which signals mean something else.
pub(crate) struct Phase {
    before: u8,
    interrupt: Arc<Interrupt>,
}

impl Drop for Phase {
    fn drop(&mut self) {
        self.interrupt.mode.store(self.before, Ordering::SeqCst);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use signal_hook::consts::{SIGINT, SIGTERM};

    fn quiet() -> Arc<Interrupt> {
        Arc::new(Interrupt {
            mode: AtomicU8::new(Mode::AtOnce as u8),
            cancelled: Arc::default(),
            unfinished: Mutex::default(),
            screen: Screen::new(),
        })
    }

    #[test]
    fn only_work_on_the_token_and_prompts_can_wait_and_only_once() {
        assert_eq!(quiet().reaction(SIGINT), Reaction::End);

        let interrupt = quiet();
        let phase = interrupt.tidily();
        assert_eq!(interrupt.reaction(SIGTERM), Reaction::Tidy);
        assert!(interrupt.came());
        assert_eq!(interrupt.reaction(SIGINT), Reaction::End);
        drop(phase);

        let interrupt = quiet();
        let _phase = interrupt.prompting();
        assert_eq!(interrupt.reaction(SIGINT), Reaction::Wait);
        let interrupt = quiet();
        let _phase = interrupt.prompting();
        assert_eq!(interrupt.reaction(SIGTERM), Reaction::End);
    }

    #[test]
    fn a_phase_within_a_phase_leads_back_to_it() {
        let interrupt = quiet();
        let _outer = interrupt.tidily();
        drop(interrupt.prompting());
        assert_eq!(interrupt.mode.load(Ordering::SeqCst), Mode::Tidy as u8);
    }
}
