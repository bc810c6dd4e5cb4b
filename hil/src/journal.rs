//! The keys that the bench has made and not deleted yet, in a file beside the reports. If a run is
//! killed or its device is unplugged, the next run cleans up.
//!
//! An entry has what proves that a key is the bench's: its mark, and its public key once it is
//! made. The slot alone proves nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use claviger_token::sync::lock;
use claviger_token::{PublicKey, SlotId, TokenId, TokenInfo, Unfinished};
use serde::{Deserialize, Serialize};

use crate::error::HilError;

/// A key that the bench makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    token: TokenId,
    slot: String,
    /// Empty in files of versions that noted none.
    #[serde(default)]
    mark: String,
    #[serde(default, with = "as_text", skip_serializing_if = "Option::is_none")]
    public_key: Option<PublicKey>,
}

impl Entry {
    fn is_of(&self, token: &TokenInfo) -> bool {
        self.token == token.id || token.formerly.contains(&self.token)
    }

    fn is(&self, slot: &SlotId, mark: &str) -> bool {
        self.slot == slot.as_str() && self.mark == mark
    }
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
        let path = folder.join(FILE);
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

    /// A key is going to be made with this mark; false if that is written down already.
    pub(crate) fn makes(&self, token: &TokenId, slot: &SlotId, mark: &str) -> bool {
        self.change(|entries| {
            let noted = |entry: &Entry| entry.token == *token && entry.is(slot, mark);
            let is_new = !entries.iter().any(noted);
            if is_new {
                entries.push(Entry {
                    token: token.clone(),
                    slot: slot.as_str().into(),
                    mark: mark.into(),
                    public_key: None,
                });
            }
            is_new
        })
    }

    /// It was made, and this is its public half.
    pub(crate) fn made(&self, token: &TokenId, slot: &SlotId, mark: &str, key: &PublicKey) {
        self.change(|entries| {
            let noted = |entry: &&mut Entry| entry.token == *token && entry.is(slot, mark);
            let entry = entries.iter_mut().find(noted);
            let is_there = entry.is_some();
            if let Some(entry) = entry {
                entry.public_key = Some(key.clone());
            }
            is_there
        });
    }

    /// Nothing is left of the generation with this mark.
    pub(crate) fn is_discarded(&self, token: &TokenInfo, slot: &SlotId, mark: &str) {
        self.forget(|entry| entry.is_of(token) && entry.is(slot, mark));
    }

    /// The key with this public half is gone.
    pub(crate) fn is_deleted(&self, token: &TokenInfo, key: &PublicKey) {
        self.forget(|entry| entry.is_of(token) && entry.public_key.as_ref() == Some(key));
    }

    /// The keys of the bench on a token.
    pub(crate) fn left(&self, token: &TokenInfo) -> Vec<Unfinished> {
        let entries = lock(&self.entries);
        let ours = entries.iter().filter(|entry| entry.is_of(token));
        ours.map(|entry| Unfinished {
            slot: SlotId::new(&entry.slot),
            mark: entry.mark.clone(),
            public_key: entry.public_key.clone(),
        })
        .collect()
    }

    /// The slots with keys of the bench on a token.
    pub(crate) fn taken(&self, token: &TokenInfo) -> Vec<SlotId> {
        let mut slots: Vec<SlotId> = (self.left(token).into_iter())
            .map(|left| left.slot)
            .collect();
        slots.sort();
        slots.dedup();
        slots
    }

    fn forget(&self, is_gone: impl Fn(&Entry) -> bool) {
        self.change(|entries| {
            let before = entries.len();
            entries.retain(|entry| !is_gone(entry));
            entries.len() < before
        });
    }

    /// Writes down what `change` did, if it says that it did something.
    fn change(&self, change: impl FnOnce(&mut Vec<Entry>) -> bool) -> bool {
        let mut entries = lock(&self.entries);
        let changed = change(&mut entries);
        if changed {
            self.save(&entries);
        }
        changed
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

/// The file's name, in the folder of the reports.
pub(crate) const FILE: &str = "left-behind.json";

/// A public key as the text that it is exchanged as.
mod as_text {
    use claviger_token::PublicKey;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "serde wants it so")]
    pub(super) fn serialize<S>(key: &Option<PublicKey>, to: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
    {
        match key {
            Some(key) => to.serialize_str(&key.to_text()),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D>(from: D) -> Result<Option<PublicKey>, D::Error>
    where
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(from)?;
        let key = text.map(|text| PublicKey::from_text(&text));
        key.transpose().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use claviger_token::Algorithm;

    use super::*;

    fn token(serial: &str) -> TokenInfo {
        let id = TokenId {
            kind: "piv".into(),
            manufacturer: "m".into(),
            serial: serial.into(),
        };
        TokenInfo::new(id, "piv:")
    }

    /// RFC 8032 §7.1, test 1 and 2.
    fn keys() -> [PublicKey; 2] {
        [
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        ]
        .map(|hex| {
            let bytes = claviger_token::key::from_hex(hex).unwrap();
            PublicKey::from_bytes(Algorithm::Ed25519, &bytes).unwrap()
        })
    }

    #[test]
    fn what_was_left_behind_is_known_to_the_next_run_by_mark_and_public_key() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Journal::open(folder.path()).unwrap();
        let (one, slot) = (token("1"), SlotId::new("82#ab"));
        let [key, _] = keys();
        let journal = open();
        assert!(journal.makes(&one.id, &slot, "mark"));
        assert!(!journal.makes(&one.id, &slot, "mark"));
        drop(journal);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let journal = open();
        assert_eq!(journal.left(&token("2")), []);
        let mut left = Unfinished {
            slot: slot.clone(),
            mark: "mark".into(),
            public_key: None,
        };
        assert_eq!(journal.left(&one), [left.clone()]);
        assert_eq!(journal.taken(&one)[0].as_str(), "82#ab");
        journal.made(&one.id, &slot, "mark", &key);

        let journal = open();
        left.public_key = Some(key.clone());
        assert_eq!(journal.left(&one), [left]);
        journal.is_deleted(&one, &key);
        assert!(open().left(&one).is_empty());
        assert!(!folder.path().join(FILE).exists());
    }

    #[test]
    fn what_happens_to_another_key_of_the_same_slot_leaves_a_note_as_it_is() {
        let journal = Journal::in_memory();
        let (one, slot) = (token("1"), SlotId::new("82"));
        let [key, other] = keys();
        journal.makes(&one.id, &slot, "mark");
        journal.made(&one.id, &slot, "mark", &key);
        journal.is_deleted(&one, &other);
        journal.is_deleted(&token("2"), &key);
        journal.is_discarded(&one, &slot, "another mark");
        assert_eq!(journal.left(&one).len(), 1);
        journal.is_discarded(&one, &slot, "mark");
        assert_eq!(journal.left(&one), []);
    }

    #[test]
    fn a_file_of_a_version_without_marks_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let old = r#"[{"token":{"kind":"piv","manufacturer":"m","serial":"1"},"slot":"82#ab"}]"#;
        fs::write(path, old).unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        // Also where the token has another name by now.
        let mut renamed = token("1 (label)");
        renamed.formerly = vec![token("1").id];
        for token in [&token("1"), &renamed] {
            let left = journal.left(token);
            assert_eq!(left[0].slot.as_str(), "82#ab");
            assert_eq!((&*left[0].mark, &left[0].public_key), ("", &None));
        }
        journal.is_discarded(&renamed, &SlotId::new("82#ab"), "");
        assert_eq!(journal.left(&token("1")), []);
    }
}
