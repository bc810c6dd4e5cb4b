//! Attached smartcards.

use std::sync::Arc;

use claviger_piv::reader::Readers;
use claviger_piv::{LONGEST_ED25519_MESSAGE, PivDriver};
use claviger_token::Driver;

use super::{AttachedToken, Way, found, not_looked_into};
use crate::readers::{Gate, Only, Tapped};
use crate::transcript::Tap;

/// One driver for each reader, so that each sees one card.
pub(super) fn attached(readers: &Arc<dyn Readers>) -> Vec<AttachedToken> {
    let names = readers.list().unwrap_or_else(|error| {
        not_looked_into(format_args!("{}: {}", error.what, error.reason));
        Vec::new()
    });
    let mut seen = Vec::new();
    for name in names {
        let only = Only {
            inner: Arc::clone(readers),
            reader: name.clone(),
        };
        let driver: Arc<dyn Driver> = Arc::new(PivDriver::with_readers(Tapped {
            inner: Arc::new(only),
            hidden: Arc::new([]),
            gate: Gate::ReadOnly,
            tap: Arc::default(),
        }));
        seen.extend(found(&*driver, "piv:").into_iter().map(|info| {
            let readers = Arc::clone(readers);
            AttachedToken {
                info,
                reader: Arc::clone(&driver),
                in_reader: Some(name.clone()),
                way: Box::new(move |hidden| way(&readers, &hidden)),
            }
        }));
    }
    seen
}

/// The way to a card past the readers of other devices.
fn way(readers: &Arc<dyn Readers>, hidden: &Arc<[String]>) -> Way {
    let tap = Arc::<Tap>::default();
    let tapped = |gate, tap: &Arc<Tap>| Tapped {
        inner: Arc::clone(readers),
        hidden: Arc::clone(hidden),
        gate,
        tap: Arc::clone(tap),
    };
    let open = tapped(Gate::Open, &tap);
    Way {
        make: Box::new(move || Arc::new(PivDriver::with_readers(open.clone()))),
        look: Arc::new(PivDriver::with_readers(tapped(
            Gate::ReadOnly,
            &Arc::default(),
        ))),
        tap,
        absent: "piv:serial=4294967295".into(),
        longest_message: usize::MAX,
        longest_ed25519_message: LONGEST_ED25519_MESSAGE,
        counts_commands: true,
        is_approved: false,
    }
}
