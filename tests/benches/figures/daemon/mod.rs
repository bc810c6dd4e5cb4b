//! Figures of the daemon: what a signature costs that comes through its socket, what it gives many
//! callers, and what it holds in memory.
//!
//! All processes that are compared run on the same processors, and their rounds alternate. A figure
//! is the median of the ratios of each round.

mod latency;
mod load;
mod memory;
mod stage;

use crate::{Figure, progress};

/// The figures; with `is_long` its memory is watched over a million requests.
pub(crate) fn figures(is_long: bool) -> Vec<Figure> {
    progress("the daemon: one signature");
    let mut figures = said(latency::figures());
    progress("the daemon: many callers");
    figures.extend(said(load::figures()));
    progress("the daemon: memory");
    figures.extend(said(memory::figures(is_long)));
    figures
}

/// These figures, said at once: those that follow take their time.
fn said(figures: Vec<Figure>) -> Vec<Figure> {
    for Figure {
        name, value, what, ..
    } in &figures
    {
        eprintln!("bench: {name} {value:.3}: {what}");
    }
    figures
}
