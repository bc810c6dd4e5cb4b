//! A token works again after it was unplugged and plugged in.

use std::panic::{AssertUnwindSafe, catch_unwind};

use claviger_token::Error;

use crate::bench::{Bench, OpenKey, refused};
use crate::check::{Skip, Theme};
use crate::subject::Plug;
use crate::subject::Subject;

/// What these checks are about.
pub(crate) const THEME: Theme = Theme::Removal;

pub(crate) fn a_token_that_went_away_works_again_when_it_is_back(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let plug = subject.plug().map_err(Skip)?;
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
    for _ in 0..3 {
        handle.work(&bench.call).unwrap();
        let out = Out(plug);
        plug.remove();
        refused!(handle.work(&bench.call), Error::TokenUnavailable { .. });
        drop(out);
        handle.work(&bench.call).unwrap();
    }
    Ok(())
}

pub(crate) fn what_stands_behind_the_token_may_restart(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    let spec = bench.any_spec()?;
    let made = bench.make(spec);
    let handle = OpenKey::of(&*bench.token, &made.key, spec.usage).unwrap();
    for _ in 0..3 {
        handle.work(&bench.call).unwrap();
        subject.restart().map_err(Skip)?;
        handle.work(&bench.call).unwrap();
    }
    Ok(())
}

/// A token that is out. Dropped, it is back, also where the check fails: before the keys
/// on it are deleted.
struct Out<'a>(&'a dyn Plug);

impl Drop for Out<'_> {
    fn drop(&mut self) {
        let insert = AssertUnwindSafe(|| self.0.insert());
        match std::thread::panicking() {
            false => insert(),
            // The check says already what failed.
            true => drop(catch_unwind(insert)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_out_is_put_back_where_a_check_fails() {
        struct Counted(std::sync::atomic::AtomicUsize);
        impl Plug for Counted {
            fn remove(&self) {}

            fn insert(&self) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                panic!("nobody put it in");
            }
        }
        let plug = Counted(0.into());
        let failed = catch_unwind(AssertUnwindSafe(|| {
            let _out = Out(&plug);
            panic!("the check");
        }));
        assert_eq!(failed.unwrap_err().downcast_ref(), Some(&"the check"));
        assert_eq!(plug.0.into_inner(), 1);
    }
}
