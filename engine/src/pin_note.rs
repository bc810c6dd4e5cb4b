//! The note that a PIN is being sent: a file for each token, in a folder beside the registry.
//!
//! A PIN is sent only when this note is on the disk. It is made at every login, so it is kept
//! out of the database: a record in a file that is there already takes one `fdatasync`, where a
//! transaction with the digests of its rows takes several and two milliseconds. The same file
//! is the lock of whoever sends a PIN to the token.
//!
//! | the file begins with | what it says |
//! | --- | --- |
//! | nothing | it was made, and no PIN was sent yet |
//! | `sent`, and the rest is as it was written | a PIN was sent, and its answer is not known |
//! | `done` | the answer of the last PIN is known |
//! | anything else | it was damaged: that counts as `sent`, with no number of tries |
//!
//! That the answer is known need not be on the disk: after a power cut the note says `sent`
//! again, and the next PIN is sent only where the token shows that no try was lost, or a person
//! says so.
//!
//! Earlier versions had the files in the folder `run`, among locks that may be removed while
//! nobody uses the home. What is there counts. A file is moved when a PIN is about to be sent to
//! its token; it stays where it is if the file system has no hard links, or if an earlier version
//! made another one since.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use claviger_token::TokenId;
use claviger_token::key::to_hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::lease::create_private;

/// What the file begins with. Both are of one length, so that one replaces the other in place.
const SENT: &[u8; 5] = b"sent\n";
const DONE: &[u8; 5] = b"done\n";

/// No note is longer, in bytes: a token's name is short.
const LONGEST: u64 = 64 << 10;

/// The folder in the home.
const FOLDER: &str = "pins";

/// How the names of the files begin.
const PREFIX: &str = "pin-";

/// A PIN that was sent and whose answer is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) token: TokenId,
    /// How many tries were left before, where that is known.
    pub(crate) tries: Option<u8>,
}

/// What stands in the file.
#[derive(Serialize, Deserialize)]
struct Content {
    kind: String,
    manufacturer: String,
    serial: String,
    tries: Option<u8>,
}

/// What a file says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// Nothing is open.
    Nothing,
    Sent(Note),
    /// It is not as it was written.
    Damaged,
}

/// Where the notes of a home are.
#[derive(Debug, Clone)]
pub(crate) struct PinNotes {
    /// It is made with the first note.
    folder: PathBuf,
    /// Where earlier versions had them.
    before: PathBuf,
}

/// A file that says that the answer of a PIN is not known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FoundNote {
    pub(crate) file: PathBuf,
    /// `None` where it cannot be read: which token it is about shows by its [name](is_about)
    /// only. The token gets no PIN all the same.
    pub(crate) note: Option<Note>,
}

impl PinNotes {
    /// Those of the home in this folder.
    pub(crate) fn of_home(home: &Path) -> Self {
        PinNotes {
            folder: home.join(FOLDER),
            before: home.join("run"),
        }
    }

    /// The file about a token, made where there is none.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn open(&self, token: &TokenId) -> io::Result<File> {
        self.take_over(token)?;
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        let path = path(&self.folder, token);
        match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_private(&self.folder)?;
                options.open(path)
            }
            opened => opened,
        }
    }

    /// The file about a token, for who cannot write to it.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn open_to_read(&self, token: &TokenId) -> io::Result<File> {
        File::open(path(&self.folder, token)).or_else(|_| File::open(path(&self.before, token)))
    }

    /// Moves the file of an earlier version. Whoever has it open and locked, has it so under its
    /// new name.
    fn take_over(&self, token: &TokenId) -> io::Result<()> {
        let old = path(&self.before, token);
        if !old.exists() {
            return Ok(());
        }
        create_private(&self.folder)?;
        // A link, and no renaming: the file of somebody else is not replaced.
        let new = path(&self.folder, token);
        if fs::hard_link(&old, &new).is_ok() || is_one_file(&old, &new) {
            sync_names(&self.folder)?;
            // What stays there counts, too.
            let _ = fs::remove_file(old);
        }
        Ok(())
    }

    /// Notes on the disk that a PIN is being sent to the token. `file` is the one that was
    /// [opened](PinNotes::open); `was_open` is whether it says that of an earlier PIN.
    ///
    /// # Errors
    /// What the file system says; then nothing may be sent, and the file says what it said, as
    /// far as that can be written.
    pub(crate) fn begin(&self, file: &File, note: &Note, was_open: bool) -> io::Result<()> {
        begin(file, &self.folder, note, was_open)
    }

    /// Notes that the answer of the PIN is known. It need not reach the disk at once.
    ///
    /// # Errors
    /// What the file system says; then the note stays.
    pub(crate) fn end(&self, file: &File, token: &TokenId) -> io::Result<()> {
        end(file)?;
        forget(&path(&self.before, token))
    }

    /// What is noted of the token, if its answer is not known.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn of_token(&self, token: &TokenId) -> io::Result<Option<Note>> {
        let now = of_token(&self.folder, token)?;
        let (new, old) = (path(&self.folder, token), path(&self.before, token));
        if is_one_file(&old, &new) {
            return Ok(now);
        }
        Ok(match (now, of_token(&self.before, token)?) {
            // They are of two PINs: what was left before both is not known.
            (Some(now), Some(_)) => Some(Note { tries: None, ..now }),
            (now, before) => now.or(before),
        })
    }

    /// All PINs whose answer is not known.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn all(&self) -> io::Result<Vec<FoundNote>> {
        let mut found = all(&self.folder)?;
        let mut before = all(&self.before)?;
        before.retain(|old| {
            let name = old.file.file_name().unwrap_or_default();
            !is_one_file(&old.file, &self.folder.join(name))
        });
        found.extend(before);
        Ok(found)
    }

    /// Forgets that a PIN was sent to the token, if that is noted.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn forget(&self, token: &TokenId) -> io::Result<()> {
        forget(&path(&self.folder, token))?;
        forget(&path(&self.before, token))
    }
}

/// Whether two names are of one file: who moved it was stopped in between.
fn is_one_file(one: &Path, other: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let file = |path: &Path| path.symlink_metadata().map(|file| (file.dev(), file.ino()));
        matches!((file(one), file(other)), (Ok(one), Ok(other)) if one == other)
    }
    #[cfg(not(unix))]
    {
        let _ = (one, other);
        false
    }
}

/// The file about a token in a folder.
fn path(folder: &Path, token: &TokenId) -> PathBuf {
    folder.join(file_name(token))
}

/// What the file about a token is called: a name for a file, whatever the token is called.
fn file_name(token: &TokenId) -> String {
    let mut hash = Sha256::new();
    for part in [&token.kind, &token.manufacturer, &token.serial] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    format!("{PREFIX}{}", to_hex(&hash.finalize()[..16]))
}

/// Whether a file is called as that about the token is.
pub(crate) fn is_about(file: &Path, token: &TokenId) -> bool {
    file.file_name()
        .is_some_and(|name| *name == *file_name(token))
}

fn begin(file: &File, folder: &Path, note: &Note, was_open: bool) -> io::Result<()> {
    let is_new = file.metadata()?.len() == 0;
    if is_new {
        sync_names(folder)?;
    }
    let begun = write(file, note);
    if begun.is_err() && !was_open {
        put_back(file, is_new);
    }
    begun
}

fn write(mut file: &File, note: &Note) -> io::Result<()> {
    let content = written(note)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&content)?;
    file.sync_data()
}

/// Nothing was sent, so the file must not say so.
fn put_back(file: &File, was_empty: bool) {
    let done = match was_empty {
        true => file.set_len(0),
        false => end(file),
    };
    if let Err(error) = done.and_then(|()| file.sync_data()) {
        tracing::warn!(%error, "the record of a PIN that was not sent could not be removed");
    }
}

/// The names in the folder and its own are on the disk: a file whose name is lost says nothing,
/// and the folder may be as new.
fn sync_names(folder: &Path) -> io::Result<()> {
    let above = folder.parent();
    let mut folders = [Some(folder), above].into_iter().flatten();
    folders.try_for_each(sync_folder)
}

/// The names in the folder are on the disk, where the file system can say so.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        Err(error) if cannot_sync(&error) => Ok(()),
        done => done,
    }
}

/// Whether the file system does not know how (EINVAL, ENOTSUP).
fn cannot_sync(error: &io::Error) -> bool {
    #[cfg(unix)]
    if rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::NOTSUP) {
        return true;
    }
    use io::ErrorKind::{InvalidInput, Unsupported};
    matches!(error.kind(), InvalidInput | Unsupported)
}

fn end(mut file: &File) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(DONE)
}

fn of_token(folder: &Path, token: &TokenId) -> io::Result<Option<Note>> {
    let damaged = || Note {
        token: token.clone(),
        tries: None,
    };
    Ok(match read(&path(folder, token))? {
        Said::Nothing => None,
        Said::Sent(note) if note.token == *token => Some(note),
        Said::Sent(_) | Said::Damaged => Some(damaged()),
    })
}

fn all(folder: &Path) -> io::Result<Vec<FoundNote>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let file = entry.path();
        let note = match read(&file)? {
            Said::Nothing => continue,
            // That of another token is none of this one.
            Said::Sent(note) if is_about(&file, &note.token) => Some(note),
            Said::Sent(_) | Said::Damaged => None,
        };
        found.push(FoundNote { file, note });
    }
    Ok(found)
}

/// Forgets what a file says, if it says that a PIN was sent.
///
/// # Errors
/// What the file system says.
pub(crate) fn forget(file: &Path) -> io::Result<()> {
    if read(file)? == Said::Nothing {
        return Ok(());
    }
    let file = File::options().write(true).open(file)?;
    end(&file)?;
    file.sync_data()
}

fn read(path: &Path) -> io::Result<Said> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(LONGEST).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Said::Nothing),
        Err(error) => return Err(error),
    };
    if bytes.is_empty() || bytes.starts_with(DONE) {
        return Ok(Said::Nothing);
    }
    Ok(parse(&bytes).map_or(Said::Damaged, Said::Sent))
}

/// What follows the second line is of an earlier note, which was longer.
fn parse(bytes: &[u8]) -> Option<Note> {
    let mut lines = bytes.strip_prefix(SENT)?.split(|byte| *byte == b'\n');
    let (content, digest) = (lines.next()?, lines.next()?);
    // Its last line may have been cut off.
    lines.next()?;
    if digest != digest_of(content).as_bytes() {
        return None;
    }
    let Content {
        kind,
        manufacturer,
        serial,
        tries,
    } = serde_json::from_slice(content).ok()?;
    let token = TokenId {
        kind,
        manufacturer,
        serial,
    };
    Some(Note { token, tries })
}

fn written(note: &Note) -> io::Result<Vec<u8>> {
    let token = note.token.clone();
    let content = serde_json::to_vec(&Content {
        kind: token.kind,
        manufacturer: token.manufacturer,
        serial: token.serial,
        tries: note.tries,
    })?;
    let digest = digest_of(&content);
    Ok([SENT, &*content, b"\n", digest.as_bytes(), b"\n"].concat())
}

fn digest_of(content: &[u8]) -> String {
    to_hex(&Sha256::digest(content))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn token(serial: &str) -> TokenId {
        TokenId {
            kind: "piv".into(),
            manufacturer: "Some\nbody".into(),
            serial: serial.into(),
        }
    }

    fn home() -> (TempDir, PinNotes) {
        let home = tempfile::tempdir().unwrap();
        let notes = PinNotes::of_home(home.path());
        (home, notes)
    }

    fn sent(notes: &PinNotes, serial: &str, tries: Option<u8>) -> PathBuf {
        let token = token(serial);
        let (file, path) = (notes.open(&token).unwrap(), path(&notes.folder, &token));
        notes.begin(&file, &Note { token, tries }, false).unwrap();
        path
    }

    #[test]
    fn what_was_sent_is_noted_until_its_answer_is_known() {
        let (_home, notes) = home();
        let token = token("1");
        let noted = || notes.of_token(&token).unwrap();
        assert_eq!(noted(), None);
        let file = sent(&notes, "1", Some(3));
        let note = noted().unwrap();
        assert_eq!((note.tries, &note.token), (Some(3), &token));
        let note = Some(note);
        assert_eq!(notes.all().unwrap(), [FoundNote { file, note }]);
        notes.end(&notes.open(&token).unwrap(), &token).unwrap();
        assert_eq!((noted(), notes.all().unwrap()), (None, vec![]));
        // What is left of a longer note is not taken for a part of this one.
        sent(&notes, "1", None);
        assert_eq!(noted().unwrap().tries, None);
        notes.forget(&token).unwrap();
        assert_eq!((noted(), notes.all().unwrap()), (None, vec![]));
    }

    #[test]
    fn a_note_of_an_earlier_version_counts_and_is_moved() {
        let (home, notes) = home();
        let (run, token) = (home.path().join("run"), token("1"));
        fs::create_dir(&run).unwrap();
        let (old, new) = (path(&run, &token), sent(&notes, "1", Some(3)));
        fs::rename(&new, &old).unwrap();
        let noted = || notes.of_token(&token).unwrap().map(|note| note.tries);
        assert_eq!(noted(), Some(Some(3)));
        assert_eq!(notes.all().unwrap()[0].file, old);
        // Who has it locked has it so under its new name.
        let theirs = File::open(&old).unwrap();
        theirs.lock().unwrap();
        let ours = notes.open(&token).unwrap();
        assert!(ours.try_lock().is_err());
        assert!(new.exists() && !old.exists());
        assert_eq!(noted(), Some(Some(3)));
        fs::remove_dir_all(&run).unwrap();
        assert_eq!(noted(), Some(Some(3)));
        // Where there are two, both count until the answer is known.
        fs::create_dir(&run).unwrap();
        fs::copy(&new, &old).unwrap();
        let ours = notes.open(&token).unwrap();
        assert_eq!((noted(), notes.all().unwrap().len()), (Some(None), 2));
        notes.end(&ours, &token).unwrap();
        assert_eq!((noted(), notes.all().unwrap()), (None, vec![]));
    }

    #[cfg(unix)]
    #[test]
    fn a_note_whose_move_was_stopped_in_between_is_one_note_and_is_moved() {
        let (home, notes) = home();
        let (run, token) = (home.path().join("run"), token("1"));
        fs::create_dir(&run).unwrap();
        let (old, new) = (path(&run, &token), sent(&notes, "1", Some(3)));
        fs::hard_link(&new, &old).unwrap();
        let noted = || notes.of_token(&token).unwrap().map(|note| note.tries);
        assert_eq!((noted(), notes.all().unwrap().len()), (Some(Some(3)), 1));
        drop(notes.open(&token).unwrap());
        assert!(new.exists() && !old.exists());
        assert_eq!((noted(), notes.all().unwrap().len()), (Some(Some(3)), 1));
    }

    #[test]
    fn a_note_that_cannot_be_made_leaves_none() {
        let (_home, notes) = home();
        let token = token("1");
        let note = Note {
            token: token.clone(),
            tries: Some(3),
        };
        let file = notes.open(&token).unwrap();
        // A folder that cannot be synchronised.
        let gone = notes.folder.join("gone");
        assert!(begin(&file, &gone, &note, false).is_err());
        assert_eq!(notes.of_token(&token).unwrap(), None);
        // What was begun is taken back, to nothing or to what was there.
        for was_empty in [true, false] {
            write(&file, &note).unwrap();
            put_back(&file, was_empty);
            assert_eq!(notes.of_token(&token).unwrap(), None);
            assert_eq!(file.metadata().unwrap().len() == 0, was_empty);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_system_that_synchronises_no_folders_is_no_error() {
        use rustix::io::Errno;
        for (errno, is_none) in [
            (Errno::INVAL, true),
            (Errno::NOTSUP, true),
            (Errno::IO, false),
        ] {
            assert_eq!(cannot_sync(&errno.into()), is_none, "{errno}");
        }
    }

    #[test]
    fn a_note_that_was_damaged_anywhere_counts_as_a_pin_whose_answer_is_not_known() {
        let (_home, notes) = home();
        let path = sent(&notes, "1", Some(3));
        let noted = || notes.of_token(&token("1")).unwrap().map(|note| note.tries);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(noted(), Some(None), "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(noted(), (at > 0).then_some(None), "{at}");
        }
        fs::write(&path, vec![0; 4096]).unwrap();
        assert_eq!(noted(), Some(None));
        let found = notes.all().unwrap();
        assert_eq!((&found[0].file, &found[0].note), (&path, &None));
        assert!(is_about(&path, &token("1")) && !is_about(&path, &token("2")));
        // That of another token is none of this one.
        fs::rename(sent(&notes, "2", Some(3)), &path).unwrap();
        assert_eq!(noted(), Some(None));
    }
}
