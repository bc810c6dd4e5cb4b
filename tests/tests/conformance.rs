//! Every check of the conformance suite on every token that can be started.
//!
//! What cannot be shown on a token counts as ignored, and is said.

use std::process::ExitCode;
use std::sync::Arc;

use claviger_memory::MemoryDriver;
use claviger_token::conformance::{CHECKS, Outcome, Subject};
use claviger_token::{Access, Driver, Protection};
use libtest_mimic::{Arguments, Completion, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    trials.extend(checks("memory", || Memory(Arc::new(MemoryDriver::new()))));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Each check gets a token of its own.
fn checks<S: Subject + 'static>(token: &str, make: fn() -> S) -> Vec<Trial> {
    CHECKS
        .iter()
        .map(|check| {
            let name = format!("{token}::{}", check.name);
            let skipped = check.skipped(&make());
            if let Some(why) = skipped {
                eprintln!("SKIPPED {name}: {why}");
            }
            let run = move || match check.run(&make()) {
                Outcome::Passed => Ok(Completion::Completed),
                Outcome::Skipped(why) => Ok(Completion::ignored_with(why)),
            };
            Trial::ignorable_test(name, run).with_ignored_flag(skipped.is_some())
        })
        .collect()
}

struct Memory(Arc<MemoryDriver>);

impl Subject for Memory {
    fn driver(&self) -> Arc<dyn Driver> {
        self.0.clone()
    }

    fn backend(&self) -> String {
        "memory:".into()
    }

    fn access(&self) -> Access {
        Access::without_pin()
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Err("memory has no PIN")
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Err("there is always one memory")
    }

    fn protection(&self) -> Protection {
        Protection::NONE
    }
}
