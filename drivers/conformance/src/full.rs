//! A full token returns its own error.

use claviger_token::Error;

use crate::bench::{Bench, Made, OpenKey, refused};
use crate::check::{Skip, Theme};
use crate::subject::Subject;

/// What these checks are about.
pub(crate) const THEME: Theme = Theme::Full;

pub(crate) fn a_full_token_says_so(subject: &dyn Subject) -> Result<(), Skip> {
    let capacity = subject.capacity().map_err(Skip)?;
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let mut made: Vec<Made> = (0..capacity).map(|_| bench.make(spec)).collect();
    let before = bench.slots();
    refused!(
        bench.token.free_slots(&[spec], &[], &bench.call),
        Error::TokenFull { .. } | Error::OnlyNamedSlots { .. }
    );
    assert_eq!(bench.slots(), before);

    drop(made.pop());
    let last = bench.make(spec);
    let handle = OpenKey::of(&*bench.token, &last.key, spec.usage).unwrap();
    handle.work(&bench.call).unwrap();
    Ok(())
}
