//! Errors of the bench.

use std::path::PathBuf;

use claviger_token::Error as TokenError;

/// Why the bench stopped, one variant per cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HilError {
    /// The configuration that was named is not there.
    #[error("there is no configuration at {}", .0.display())]
    NoConfig(PathBuf),
    /// The configuration makes no sense.
    #[error("{}: {reason}", path.display())]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never a PIN.
        reason: String,
    },
    /// A report cannot be written. Nothing was done to any device since.
    #[error("{} cannot be written: {reason}", path.display())]
    Unwritable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A report cannot be read.
    #[error("{} is no report of this bench: {reason}", path.display())]
    BadReport {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No device has the name that was asked for.
    #[error("no device fits `{wanted}`")]
    NoDevice {
        /// What was asked for.
        wanted: String,
        /// The devices that there are.
        present: Vec<String>,
    },
    /// No check has the name that was asked for.
    #[error("there is no check `{wanted}`")]
    NoCheck {
        /// What was asked for.
        wanted: String,
        /// The checks that there are.
        present: Vec<&'static str>,
    },
    /// A transcript does not fit what is asked now.
    #[error("the transcript {} no longer holds: {reason}", path.display())]
    Deviation {
        /// The transcript.
        path: PathBuf,
        /// What is different, and where.
        reason: String,
    },
    /// Devices with a row in the table of the README did not run.
    #[error("of the table in {}, these devices did not run: {}", path.display(), missing.join(", "))]
    NotRun {
        /// The document.
        path: PathBuf,
        /// The devices.
        missing: Vec<String>,
    },
    /// The table in the README is not what the suite gives.
    #[error("the table in {} is out of date", .0.display())]
    StaleReadme(PathBuf),
}

impl HilError {
    /// One sentence for a person: what to do next. Empty where nothing is to be said.
    pub fn hint(&self) -> String {
        match self {
            HilError::NoConfig(_) => {
                "copy hil/hil.example.toml; without --config virtual devices run, and attached \
                 ones are only read"
                    .into()
            }
            HilError::BadConfig { .. } => "hil/hil.example.toml explains every key".into(),
            HilError::Unwritable { .. } => "name another folder with --out".into(),
            HilError::BadReport { .. } => "give the results.jsonl that a run has written".into(),
            HilError::NoDevice { present, .. } => format!("there are: {}", present.join(", ")),
            HilError::NoCheck { present, .. } => format!("there are: {}", present.join(", ")),
            HilError::Deviation { .. } => {
                "if the change is meant, record the transcript anew".into()
            }
            HilError::NotRun { .. } => {
                "run `cargo xtask hil --virtual` without `--quick`; it says why a device does not start".into()
            }
            HilError::StaleReadme(_) => "run `cargo xtask hil --write-readme`".into(),
        }
    }
}

/// An error of a token as a person reads it: what, and what to do.
pub(crate) fn sentence(error: &TokenError) -> String {
    match hint(error) {
        None => error.to_string(),
        Some(hint) => format!("{error}; {hint}"),
    }
}

/// What to do about an error of a token, in the words of the bench; `None` where the error says
/// it all.
fn hint(error: &TokenError) -> Option<String> {
    match error {
        TokenError::NotReady { cure, .. } => return Some(cure.clone()),
        TokenError::NoToken { present, .. } if !present.is_empty() => {
            return Some(format!("attached are {}", present.join(", ")));
        }
        TokenError::AmbiguousToken { candidates, .. } => {
            return Some(format!("they are {}", candidates.join(", ")));
        }
        _ => {}
    }
    let hint = match error.code() {
        "pin-needed" => "say in hil.toml where it is: pin = \"env:VAR\"",
        "pin-source" | "pin-length" | "pin-wrong" | "pin-refused-before" => {
            "check the `pin` in hil.toml"
        }
        "pin-locked" => "unlock it with the vendor's tool (PUK or security officer)",
        "management-key-needed" => "say in hil.toml where it is: management-key = \"env:VAR\"",
        "management-key-wrong" => "check the `management-key` in hil.toml",
        "token-unavailable" => "insert the token and try again",
        "device-locked" => "unlock it and try again",
        "app-not-open" => "open the app and try again",
        "token-full" | "only-named-slots" => "make room on it",
        "token-read-only" => "remove the write protection",
        "deadline-exceeded" | "busy" => "try again later",
        _ => return None,
    };
    Some(hint.into())
}
