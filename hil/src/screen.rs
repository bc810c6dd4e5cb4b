//! The screen: one progress bar with the remaining time, and lines above it.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use claviger_token::Event;
use claviger_token::sync::lock;
use indicatif::{ProgressBar, ProgressStyle};

static BAR: LazyLock<Mutex<Option<ProgressBar>>> = LazyLock::new(Mutex::default);

/// Whether a person can be asked something.
pub(crate) fn someone_is_there() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Clears the bar away for as long as `work` takes.
pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
    let bar = lock(&BAR).clone();
    match bar {
        Some(bar) => bar.suspend(work),
        None => work(),
    }
}

/// A line for a person, on standard error.
pub fn line(text: impl Display) {
    aside(|| {
        let _ = writeln!(io::stderr(), "{text}");
    });
}

/// How far the run has come. Dropping it clears the bar.
pub struct Progress(Option<ProgressBar>);

impl Progress {
    /// Of so many steps nothing is done yet. Nothing is shown where nobody looks.
    pub fn start(steps: u64) -> Progress {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(steps);
            let style = "{bar:30} {pos}/{len}  {elapsed} so far, about {eta} left  {wide_msg}";
            let style = ProgressStyle::with_template(style);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        lock(&BAR).clone_from(&bar);
        Progress(bar)
    }

    /// What is being done.
    pub fn doing(&self, what: impl Display) {
        if let Some(bar) = &self.0 {
            bar.set_message(what.to_string());
        }
    }

    /// So many steps are done.
    pub fn advance(&self, steps: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(steps);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
        *lock(&BAR) = None;
    }
}

/// What a person at a device is told.
pub(crate) fn prompt(name: &str, event: &Event) {
    match event {
        Event::TouchNeeded { .. } => line(format_args!("touch {name}")),
        Event::ApprovalNeeded { .. } => line(format_args!("look at {name} and approve")),
        Event::UnlockNeeded { device } => line(format_args!("unlock the {device}")),
        Event::AppNeeded { device, app } => {
            line(format_args!("open the app {app} on the {device}"));
        }
        Event::TokenNeeded { .. } => line(format_args!("insert {name}")),
        _ => {}
    }
}

/// Whether somebody pressed Ctrl-C. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens to signals: the first is remembered, the second ends the process.
    pub fn listen() -> Interrupt {
        let interrupt = Interrupt::default();
        #[cfg(unix)]
        interrupt.start();
        interrupt
    }

    #[cfg(unix)]
    fn start(&self) {
        use signal_hook::consts::{SIGINT, SIGTERM};
        // Without a listener signals end the process.
        let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) else {
            return;
        };
        let interrupt = self.clone();
        std::thread::spawn(move || {
            for signal in signals.forever() {
                if interrupt.0.swap(true, Ordering::SeqCst) {
                    signal_hook::low_level::exit(128 + signal);
                }
                line(
                    "interrupted: tidying up on the device, and writing what there is (once \
                     more to end at once; the next run with the same --out tidies up then)",
                );
            }
        });
    }

    /// Has the run end soon, as if somebody had pressed Ctrl-C.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// True once the run is to end.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// Whether the run is to end.
    pub fn came(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
