//! A check: its theme, what it needs, and its outcome.

use std::fmt;

use crate::subject::Subject;

/// The topic of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    /// How tokens are found.
    Finding,
    /// PINs.
    Pin,
    /// Making, listing and deleting keys.
    Keys,
    /// Signatures.
    Signing,
    /// Decryption.
    Decryption,
    /// Late and cancelled calls.
    Deadlines,
    /// Full tokens.
    Full,
    /// Tokens that are unplugged and plugged in.
    Removal,
    /// Changes of other tools to the keys.
    OtherTools,
}

impl Theme {
    /// Every theme, in the order in which reports show them.
    pub const ALL: [Theme; 9] = [
        Theme::Finding,
        Theme::Pin,
        Theme::Keys,
        Theme::Signing,
        Theme::Decryption,
        Theme::Deadlines,
        Theme::Full,
        Theme::Removal,
        Theme::OtherTools,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Theme::Finding => "finding",
            Theme::Pin => "PIN",
            Theme::Keys => "keys",
            Theme::Signing => "signing",
            Theme::Decryption => "decryption",
            Theme::Deadlines => "deadlines",
            Theme::Full => "full",
            Theme::Removal => "removal",
            Theme::OtherTools => "other tools",
        }
    }
}

impl fmt::Display for Theme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One statement about tokens.
pub struct Check {
    /// The statement, as a sentence with underscores.
    pub name: &'static str,
    /// Its topic.
    pub theme: Theme,
    pub(crate) needs: fn(&dyn Subject) -> Result<(), &'static str>,
    pub(crate) body: fn(&dyn Subject) -> Result<(), Skip>,
}

impl Check {
    /// Why the check does not apply to `subject`, found without using the token.
    pub fn skipped(&self, subject: &dyn Subject) -> Option<&'static str> {
        (self.needs)(subject).err()
    }

    /// Runs the check.
    ///
    /// # Panics
    /// If the token does not conform to the statement.
    pub fn run(&self, subject: &dyn Subject) -> Outcome {
        let outcome = (self.needs)(subject)
            .map_err(Skip)
            .and_then(|()| (self.body)(subject));
        match outcome {
            Ok(()) => Outcome::Passed,
            Err(Skip(why)) => Outcome::Skipped(why),
        }
    }
}

/// The outcome of a check that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The token conforms.
    Passed,
    /// The check does not apply to this token, or cannot run on it; the reason.
    Skipped(&'static str),
}

/// The statement does not apply.
pub(crate) struct Skip(pub(crate) &'static str);
