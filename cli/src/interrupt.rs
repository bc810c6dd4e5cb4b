//! Signals: Ctrl-C, termination, a lost terminal; and the end of `--timeout`.
//!
//! | in progress | the first signal | the second |
//! | --- | --- | --- |
//! | anything else | ends the process and removes the unfinished file | |
//! | keys are made or destroyed | has the engine undo or complete it | ends the process; the next start resolves it |
//! | a PIN prompt | ends the prompt and the command | ends the process |
//!
//! The terminal is restored however the process ends, and while it is stopped (Ctrl-Z). When it
//! continues, it prompts again.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use claviger_token::Error;
use claviger_token::sync::lock;

use crate::failure::Failure;
use crate::output;
use crate::screen::Screen;

/// What a signal means at this moment: of what is going on, what comes first here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A stored PIN is being read, or nothing of the others goes on.
    AtOnce,
    /// A person is being asked.
    Prompt,
    /// Keys are being made or destroyed.
    Tidy,
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::AtOnce, Mode::Prompt, Mode::Tidy];
}

/// So long before the time is over a question is given up: the process may end with its time,
/// and the terminal is to be put right, and a window to go, first.
#[cfg(unix)]
pub(crate) const AHEAD: Duration = Duration::from_millis(200);

/// How long after its deadline the process may take to end by itself.
const GRACE: Duration = Duration::from_secs(1);

/// The same where it undoes on a token what it began.
const TIDY_GRACE: Duration = Duration::from_secs(5);

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
    "interrupted: tidying up on the token (press Ctrl-C again to leave that to the next command)";

/// What signals do to this process.
pub(crate) struct Interrupt {
    /// How many phases of each mode go on: threads enter and leave them in any order.
    phases: [AtomicUsize; Mode::ALL.len()],
    cancelled: Arc<AtomicBool>,
    /// The first signal that came, or 0.
    signal: AtomicI32,
    /// Whether the process was stopped and went on: what a terminal showed may be gone.
    #[cfg(unix)]
    went_on: AtomicBool,
    /// A file that is not to be left behind.
    unfinished: Mutex<Option<PathBuf>>,
    /// A terminal that does not show what is typed, and how it was before.
    #[cfg(unix)]
    silenced: Mutex<Option<crate::questions::Silenced>>,
    /// Programs that ask a person, and are not to be left behind.
    #[cfg(unix)]
    pinentries: Mutex<Vec<crate::questions::Started>>,
    screen: Screen,
    /// Who gets the signals instead.
    #[cfg(unix)]
    heir: Mutex<Option<Heir>>,
    #[cfg(unix)]
    at_once: AtOnce,
}

/// Who gets the signals of a process that goes on after them.
#[cfg(unix)]
type Heir = Box<dyn Fn(i32) + Send>;

impl Interrupt {
    /// Listens to signals from now on.
    pub(crate) fn listen(screen: Screen) -> Arc<Self> {
        let interrupt = Arc::new(Interrupt::deaf(screen));
        #[cfg(unix)]
        interrupt.start_listening();
        interrupt
    }

    /// Listens to signals as soon as there is something that they are not to cut short, or that is
    /// not to be left behind. Until then they end the process at once, which takes no thread.
    pub(crate) fn listen_when_needed(screen: Screen) -> Arc<Self> {
        let interrupt = Arc::new(Interrupt::deaf(screen));
        #[cfg(unix)]
        if interrupt.at_once.begin().is_err() {
            interrupt.start_listening();
        }
        interrupt
    }

    /// To be called before anything begins that a signal is not to cut short.
    fn listen_now(self: &Arc<Self>) {
        #[cfg(unix)]
        if self.at_once.is_over_with() {
            self.start_listening();
            self.at_once.end();
        }
    }

    fn deaf(screen: Screen) -> Self {
        Interrupt {
            phases: Default::default(),
            cancelled: Arc::default(),
            signal: AtomicI32::new(0),
            #[cfg(unix)]
            went_on: AtomicBool::new(false),
            unfinished: Mutex::default(),
            #[cfg(unix)]
            silenced: Mutex::default(),
            #[cfg(unix)]
            pinentries: Mutex::default(),
            screen,
            #[cfg(unix)]
            heir: Mutex::default(),
            #[cfg(unix)]
            at_once: AtOnce::default(),
        }
    }

    /// From now on signals go to `heir`, and do nothing else: a daemon ends in its own way.
    #[cfg(unix)]
    pub(crate) fn hand_over(self: &Arc<Self>, heir: impl Fn(i32) + Send + 'static) {
        self.listen_now();
        *lock(&self.heir) = Some(Box::new(heir));
    }

    #[cfg(unix)]
    fn start_listening(self: &Arc<Self>) {
        use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
        // `nohup` says that the first of these is nothing to this process, and a shell without
        // jobs that the last is.
        let others = [SIGHUP, SIGQUIT, SIGTSTP].into_iter();
        let others = others.filter(|signal| !claviger_streams::is_ignored(*signal));
        let all = [SIGINT, SIGTERM, SIGCONT].into_iter().chain(others);
        // Without a listener signals end the process, which is what they should do.
        let Ok(mut signals) = signal_hook::iterator::Signals::new(all) else {
            return;
        };
        let interrupt = Arc::clone(self);
        std::thread::spawn(move || {
            for signal in signals.forever() {
                match signal {
                    SIGTSTP => interrupt.stop(),
                    SIGCONT => interrupt.went_on.store(true, Ordering::SeqCst),
                    _ => interrupt.react(signal),
                }
            }
        });
    }

    /// Stops the process, at a terminal that shows what is typed.
    #[cfg(unix)]
    fn stop(&self) {
        if let Some(silenced) = &*self.silenced() {
            silenced.show();
        }
        claviger_streams::stop();
        self.went_on.store(true, Ordering::SeqCst);
    }

    #[cfg(unix)]
    fn react(&self, signal: i32) {
        if let Some(heir) = &*lock(&self.heir) {
            return heir(signal);
        }
        match self.reaction(signal) {
            Reaction::Wait => {}
            Reaction::Tidy => self.screen.line(TIDYING),
            Reaction::End => self.end(128 + signal),
        }
    }

    #[cfg(unix)]
    fn reaction(&self, signal: i32) -> Reaction {
        let mode = self.mode();
        let again = self.cancelled.swap(true, Ordering::SeqCst);
        let _ = (self.signal).compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
        match mode {
            _ if again => Reaction::End,
            Mode::AtOnce => Reaction::End,
            Mode::Prompt => Reaction::Wait,
            Mode::Tidy => Reaction::Tidy,
        }
    }

    fn mode(&self) -> Mode {
        let goes_on = |mode: &Mode| self.phases[*mode as usize].load(Ordering::SeqCst) > 0;
        let mut going_on = Mode::ALL.into_iter().filter(goes_on);
        going_on.next().unwrap_or(Mode::AtOnce)
    }

    /// Ends the process, leaves no half file, no question, and a terminal that shows what is
    /// typed.
    fn end(&self, code: i32) -> ! {
        self.forget_unfinished();
        #[cfg(unix)]
        {
            self.end_questions();
            // The C libraries of tokens may be at work: their clean-up at exit would pull
            // the ground from under them.
            signal_hook::low_level::exit(code)
        }
        #[cfg(not(unix))]
        std::process::exit(code)
    }

    /// Ends the process when its time is over and it does not end by itself: a vendor's
    /// module may block for ever, and so may whoever writes to standard input.
    pub(crate) fn end_at(self: &Arc<Self>, deadline: Instant) {
        let interrupt = Arc::clone(self);
        std::thread::spawn(move || {
            let wait = |grace| {
                let left = (deadline + grace).saturating_duration_since(Instant::now());
                std::thread::sleep(left);
                interrupt.mode()
            };
            let mode = match wait(GRACE) {
                Mode::Tidy => wait(TIDY_GRACE),
                mode => mode,
            };
            // Who asks for a PIN holds the screen.
            if mode != Mode::Prompt {
                interrupt.screen.clear();
            }
            let failure = Failure::from(Error::DeadlineExceeded);
            let failure = match mode {
                Mode::Tidy => failure.hint(
                    "what was begun is resolved when the token is used next, or by \
                     `claviger doctor --repair`",
                ),
                Mode::AtOnce | Mode::Prompt => failure,
            };
            output::report(&failure);
            interrupt.end(failure.status().into());
        });
    }

    /// The first signal that the process still reacted to.
    pub(crate) fn signal(&self) -> Option<u8> {
        let signal = self.signal.load(Ordering::SeqCst);
        u8::try_from(signal).ok().filter(|signal| *signal != 0)
    }

    /// From now on, until [`Interrupt::restore_terminal`], a terminal is silent.
    #[cfg(unix)]
    pub(crate) fn remember_terminal(&self, silenced: crate::questions::Silenced) {
        let mut known = self.silenced();
        // Who asks while another does finds it silent already; it may also have been stopped
        // by a signal that cannot be handled.
        if known.is_none() || silenced.showed() {
            *known = Some(silenced);
        }
    }

    /// Whether the process was stopped and went on since this was asked last.
    #[cfg(unix)]
    pub(crate) fn take_went_on(&self) -> bool {
        self.went_on.swap(false, Ordering::SeqCst)
    }

    /// From now on, until [`Interrupt::forget_pinentry`], this is not to be left behind.
    #[cfg(unix)]
    pub(crate) fn remember_pinentry(&self, started: crate::questions::Started) {
        self.pinentries().push(started);
    }

    /// It has ended, or was told to.
    #[cfg(unix)]
    pub(crate) fn forget_pinentry(&self, started: crate::questions::Started) {
        self.pinentries().retain(|known| *known != started);
    }

    #[cfg(unix)]
    fn pinentries(&self) -> std::sync::MutexGuard<'_, Vec<crate::questions::Started>> {
        lock(&self.pinentries)
    }

    /// Leaves neither a terminal that does not show what is typed nor a program that asks: the
    /// process ends.
    #[cfg(unix)]
    pub(crate) fn end_questions(&self) {
        self.restore_terminal();
        for started in self.pinentries().drain(..) {
            started.end();
        }
    }

    /// Lets the terminal show again what is typed.
    #[cfg(unix)]
    pub(crate) fn restore_terminal(&self) {
        if let Some(silenced) = self.silenced().take() {
            silenced.show();
        }
    }

    #[cfg(unix)]
    fn silenced(&self) -> std::sync::MutexGuard<'_, Option<crate::questions::Silenced>> {
        lock(&self.silenced)
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

    /// For as long as the result lives, what holds the PIN is being read: a pipe may hold it
    /// back for ever, and nothing is under way on the token.
    pub(crate) fn reading(self: &Arc<Self>) -> Phase {
        self.enter(Mode::AtOnce)
    }

    fn enter(self: &Arc<Self>, mode: Mode) -> Phase {
        if mode != Mode::AtOnce {
            self.listen_now();
        }
        self.phases[mode as usize].fetch_add(1, Ordering::SeqCst);
        Phase {
            mode,
            interrupt: Arc::clone(self),
        }
    }

    /// Has `path` removed if the process is ended by a signal.
    pub(crate) fn remember_unfinished(self: &Arc<Self>, path: &Path) {
        self.listen_now();
        *self.lock() = Some(path.into());
    }

    /// The same for a file that gets its name now, which takes no time: a signal that comes until
    /// it is [finished](Interrupt::finished) may end the process after it.
    pub(crate) fn remember_for_a_moment(&self, path: &Path) {
        #[cfg(unix)]
        self.at_once.hold();
        *self.lock() = Some(path.into());
    }

    /// The file is finished, or removed.
    pub(crate) fn finished(&self) {
        *self.lock() = None;
        #[cfg(unix)]
        if let Some(signal) = self.at_once.go_on() {
            self.end(128 + signal);
        }
    }

    fn forget_unfinished(&self) {
        if let Some(path) = self.lock().take() {
            let _ = std::fs::remove_file(path);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<PathBuf>> {
        lock(&self.unfinished)
    }
}

/// Signals end the process at once, by the handler itself.
#[cfg(unix)]
#[derive(Default)]
struct AtOnce {
    /// Whether this is how it is.
    is_so: AtomicBool,
    /// Whether they do, at this moment.
    ends: Arc<AtomicBool>,
    /// The last signal that came, or 0.
    came: Arc<AtomicUsize>,
}

#[cfg(unix)]
impl AtOnce {
    fn begin(&self) -> std::io::Result<()> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
        use signal_hook::flag::{register_conditional_shutdown, register_usize};
        self.ends.store(true, Ordering::SeqCst);
        let is_to_end = |signal: &i32| {
            let always = [SIGINT, SIGTERM].contains(signal);
            always || !claviger_streams::is_ignored(*signal)
        };
        let signals = [SIGINT, SIGTERM, SIGHUP, SIGQUIT].into_iter();
        for signal in signals.filter(is_to_end) {
            register_conditional_shutdown(signal, 128 + signal, Arc::clone(&self.ends))?;
            register_usize(
                signal,
                Arc::clone(&self.came),
                signal.unsigned_abs() as usize,
            )?;
        }
        self.is_so.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Whether it was so until now, and somebody listens next.
    fn is_over_with(&self) -> bool {
        self.is_so.swap(false, Ordering::SeqCst)
    }

    fn end(&self) {
        self.ends.store(false, Ordering::SeqCst);
    }

    /// From now on a signal waits for [`AtOnce::go_on`].
    fn hold(&self) {
        self.ends.store(false, Ordering::SeqCst);
    }

    /// Signals end the process again, if they did before; the one that came meanwhile.
    fn go_on(&self) -> Option<i32> {
        if !self.is_so.load(Ordering::SeqCst) {
            return None;
        }
        self.ends.store(true, Ordering::SeqCst);
        let came = self.came.load(Ordering::SeqCst);
        i32::try_from(came).ok().filter(|signal| *signal != 0)
    }
}

/// A time in which signals mean something else.
pub(crate) struct Phase {
    mode: Mode,
    interrupt: Arc<Interrupt>,
}

impl Drop for Phase {
    fn drop(&mut self) {
        self.interrupt.phases[self.mode as usize].fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use signal_hook::consts::{SIGINT, SIGTERM};

    fn quiet() -> Arc<Interrupt> {
        Arc::new(Interrupt::deaf(Screen::new()))
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
        assert_eq!(interrupt.reaction(SIGTERM), Reaction::Wait);
        assert_eq!(interrupt.reaction(SIGINT), Reaction::End);
        assert_eq!(interrupt.signal(), Some(SIGTERM as u8));
    }

    #[test]
    fn a_phase_within_a_phase_leads_back_to_it() {
        let interrupt = quiet();
        let _outer = interrupt.tidily();
        let prompting = interrupt.prompting();
        assert_eq!(interrupt.mode(), Mode::Prompt);
        drop(prompting);
        assert_eq!(interrupt.mode(), Mode::Tidy);
        let reading = interrupt.reading();
        assert_eq!(interrupt.mode(), Mode::AtOnce);
        drop(reading);
        assert_eq!(interrupt.mode(), Mode::Tidy);
    }

    #[test]
    fn phases_of_several_threads_end_in_any_order() {
        let interrupt = quiet();
        let (first, second) = (interrupt.prompting(), interrupt.prompting());
        drop(first);
        assert_eq!(interrupt.mode(), Mode::Prompt);
        drop(second);
        assert_eq!(interrupt.reaction(SIGINT), Reaction::End);

        let interrupt = quiet();
        let (tidying, prompting) = (interrupt.tidily(), interrupt.prompting());
        drop(tidying);
        assert_eq!(interrupt.mode(), Mode::Prompt);
        drop(prompting);
        assert_eq!(interrupt.reaction(SIGINT), Reaction::End);
    }
}
