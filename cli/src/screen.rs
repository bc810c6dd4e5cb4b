//! Progress on a terminal: spinners and bars, on standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;
use claviger_token::sync::lock;

const TICK: Duration = Duration::from_millis(100);

/// Standard error, where a person may be looking. Clones are the same screen.
#[derive(Clone)]
pub(crate) struct Screen(Arc<Inner>);

struct Inner {
    is_terminal: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Screen(Arc::new(Inner {
            is_terminal: io::stderr().is_terminal(),
            bar: Mutex::default(),
        }))
    }

    /// Whether a person may be looking.
    pub(crate) fn is_terminal(&self) -> bool {
        self.0.is_terminal
    }

    fn bar(&self) -> Option<ProgressBar> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<ProgressBar>> {
        lock(&self.0.bar)
    }

    /// Shows that `what` is in progress, until the result is dropped.
    pub(crate) fn spin(&self, what: &'static str) -> Busy {
        self.show(|| {
            let bar = ProgressBar::new_spinner().with_message(what);
            bar.enable_steady_tick(TICK);
            bar
        })
    }

    /// Shows the progress through `total` bytes; if the total is unknown, the bytes so far.
    pub(crate) fn count(&self, what: &'static str, total: Option<u64>) -> Busy {
        let template = match total {
            Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {eta}",
            None => "{spinner} {msg} {bytes}",
        };
        self.show(|| {
            let bar = match total {
                Some(total) => ProgressBar::new(total),
                None => ProgressBar::new_spinner(),
            };
            let style = ProgressStyle::with_template(template);
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_message(what)
        })
    }

    /// Shows the progress in steps, once their number is known.
    pub(crate) fn steps(&self, what: &'static str) -> Busy {
        self.show(|| {
            let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}");
            ProgressBar::new(0)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_message(what)
        })
    }

    fn show(&self, make: impl FnOnce() -> ProgressBar) -> Busy {
        let bar = self.0.is_terminal.then(make);
        self.lock().clone_from(&bar);
        Busy {
            screen: self.clone(),
            bar,
        }
    }

    /// Removes the progress, for good.
    pub(crate) fn clear(&self) {
        if let Some(bar) = self.lock().take() {
            bar.finish_and_clear();
        }
    }

    /// Prints a line for a person, beside any progress.
    pub(crate) fn line(&self, text: &str) {
        self.aside(|| {
            let _ = writeln!(io::stderr(), "{}", output::one_line(text));
        });
    }

    /// Hides the progress while `work` runs.
    pub(crate) fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.bar() {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }
}

/// Progress that is shown until it is dropped.
pub(crate) struct Busy {
    screen: Screen,
    bar: Option<ProgressBar>,
}

impl Busy {
    /// Sets the steps that are done, and their number.
    pub(crate) fn reach(&self, done: u32, of: u32) {
        if let Some(bar) = &self.bar {
            bar.set_length(of.into());
            bar.set_position(done.into());
        }
    }

    /// Adds bytes.
    pub(crate) fn advance(&self, bytes: usize) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes as u64);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        *self.screen.lock() = None;
    }
}
