//! Which keys the bench made and has not deleted yet: in a file beside the reports, so
//! that a run that was killed, or whose device was unplugged, is tidied up by the next.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use claviger_token::{SlotId, TokenId};
use serde::{Deserialize, Serialize};

use crate::error::HilError;
use crate::lock;

/// A slot in which the bench makes a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    token: TokenId,
    slot: String,
}

/// The keys that are to be deleted.
pub(crate) struct Journal {
    path: Option<PathBuf>,
    entries: Mutex<Vec<Entry>>,
}

impl Journal {
    /// The journal in a folder, with what was left behind there.
    ///
    /// # Errors
    /// [`HilError::Unwritable`], [`HilError::BadReport`].
    pub(crate) fn open(folder: &Path) -> Result<Journal, HilError> {
        let path = folder.join("left-behind.json");
        let entries = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| HilError::BadReport {
                path: path.clone(),
                reason: e.to_string(),
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => {
                return Err(HilError::Unwritable {
                    path,
                    reason: e.to_string(),
                });
            }
        };
        Ok(Journal {
            path: Some(path),
            entries: Mutex::new(entries),
        })
    }

    /// A journal for devices that are thrown away.
    pub(crate) fn in_memory() -> Journal {
        Journal {
            path: None,
            entries: Mutex::default(),
        }
    }

    /// A key is going to be made; false if that is written down already.
    pub(crate) fn makes(&self, token: &TokenId, slot: &SlotId) -> bool {
        let mut entries = lock(&self.entries);
        let entry = Entry {
            token: token.clone(),
            slot: slot.as_str().into(),
        };
        let is_new = !entries.contains(&entry);
        if is_new {
            entries.push(entry);
            self.save(&entries);
        }
        is_new
    }

    /// The key is gone.
    pub(crate) fn is_gone(&self, token: &TokenId, slot: &SlotId) {
        let mut entries = lock(&self.entries);
        let before = entries.len();
        entries.retain(|entry| entry.token != *token || entry.slot != slot.as_str());
        if entries.len() < before {
            self.save(&entries);
        }
    }

    /// The slots with keys of the bench on a token.
    pub(crate) fn taken(&self, token: &TokenId) -> Vec<SlotId> {
        let entries = lock(&self.entries);
        let ours = entries.iter().filter(|entry| entry.token == *token);
        let names: BTreeSet<&str> = ours.map(|entry| &*entry.slot).collect();
        names.into_iter().map(SlotId::new).collect()
    }

    /// As long as it is not written down, the keys are still deleted by this run; so
    /// nothing is stopped where it cannot be.
    fn save(&self, entries: &[Entry]) {
        let Some(path) = &self.path else {
            return;
        };
        // Beside it first: a run that is killed meanwhile leaves what was there before.
        let fresh = path.with_extension("json.new");
        let written = match entries {
            [] => fs::remove_file(path),
            entries => serde_json::to_vec(entries)
                .map_err(std::io::Error::other)
                .and_then(|text| fs::write(&fresh, text))
                .and_then(|()| fs::rename(&fresh, path)),
        };
        if let Err(error) = written {
            crate::screen::line(format_args!(
                "{} cannot be written: {error}",
                path.display()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_behind_is_known_to_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let token = |serial: &str| TokenId {
            kind: "piv".into(),
            manufacturer: "m".into(),
            serial: serial.into(),
        };
        let slot = SlotId::new("82#ab");
        let journal = Journal::open(folder.path()).unwrap();
        assert!(journal.makes(&token("1"), &slot));
        assert!(!journal.makes(&token("1"), &slot));
        drop(journal);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let journal = Journal::open(folder.path()).unwrap();
        assert_eq!(journal.taken(&token("2")), []);
        assert_eq!(journal.taken(&token("1"))[0].as_str(), "82#ab");
        journal.is_gone(&token("1"), &slot);
        assert!(
            Journal::open(folder.path())
                .unwrap()
                .taken(&token("1"))
                .is_empty()
        );
        assert!(!folder.path().join("left-behind.json").exists());
    }
}
