//! The note that a PIN is being sent: a file for each token, beside the registry.
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

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use claviger_token::TokenId;
use claviger_token::key::to_hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What the file begins with. Both are of one length, so that one replaces the other in place.
const SENT: &[u8; 5] = b"sent\n";
const DONE: &[u8; 5] = b"done\n";

/// No note is longer, in bytes: a token's name is short.
const LONGEST: u64 = 64 << 10;

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

/// The file about a token in the folder.
pub(crate) fn path(folder: &Path, token: &TokenId) -> PathBuf {
    let mut hash = Sha256::new();
    for part in [&token.kind, &token.manufacturer, &token.serial] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    // A name for a file, whatever a token is called.
    folder.join(format!("{PREFIX}{}", to_hex(&hash.finalize()[..16])))
}

/// The file about a token, made where there is none.
///
/// # Errors
/// What the file system says.
pub(crate) fn open(folder: &Path, token: &TokenId) -> io::Result<File> {
    let mut options = File::options();
    options.create(true).truncate(false).write(true);
    options.open(path(folder, token))
}

/// Notes on the disk that a PIN is being sent to the token. `file` is the one at its [`path`];
/// `was_open` is whether it says that of an earlier PIN.
///
/// # Errors
/// What the file system says; then nothing may be sent, and the file says what it said, as far
/// as that can be written.
pub(crate) fn begin(file: &File, folder: &Path, note: &Note, was_open: bool) -> io::Result<()> {
    let is_new = file.metadata()?.len() == 0;
    if is_new {
        // A file whose name is lost says nothing. The folder may be as new.
        let above = folder.parent();
        for folder in [Some(folder), above].into_iter().flatten() {
            sync_folder(folder)?;
        }
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
        tracing::warn!(%error, "the note of a PIN that was not sent could not be taken back");
    }
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

/// Notes that the answer of the PIN is known. It need not reach the disk at once.
///
/// # Errors
/// What the file system says; then the note stays.
pub(crate) fn end(mut file: &File) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(DONE)
}

/// What is noted of the token, if its answer is not known.
///
/// # Errors
/// What the file system says.
pub(crate) fn of_token(folder: &Path, token: &TokenId) -> io::Result<Option<Note>> {
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

/// All PINs whose answer is not known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) notes: Vec<Note>,
    /// Files that cannot be read. Which token such a one is about shows by its [`path`] only; the
    /// token gets no PIN all the same.
    pub(crate) damaged: Vec<PathBuf>,
}

/// All PINs whose answer is not known.
///
/// # Errors
/// What the file system says.
pub(crate) fn all(folder: &Path) -> io::Result<Noted> {
    let mut noted = Noted::default();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(noted),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        match read(&entry.path())? {
            Said::Nothing => {}
            // That of another token is none of this one.
            Said::Sent(note) if path(folder, &note.token) == entry.path() => noted.notes.push(note),
            Said::Sent(_) | Said::Damaged => noted.damaged.push(entry.path()),
        }
    }
    Ok(noted)
}

/// Forgets that a PIN was sent to the token, if that is noted.
///
/// # Errors
/// What the file system says.
pub(crate) fn forget(folder: &Path, token: &TokenId) -> io::Result<()> {
    if of_token(folder, token)?.is_none() {
        return Ok(());
    }
    let file = File::options().write(true).open(path(folder, token))?;
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
    use super::*;

    fn token(serial: &str) -> TokenId {
        TokenId {
            kind: "piv".into(),
            manufacturer: "Some\nbody".into(),
            serial: serial.into(),
        }
    }

    fn sent(folder: &Path, serial: &str, tries: Option<u8>) -> PathBuf {
        let token = token(serial);
        let (file, path) = (open(folder, &token).unwrap(), path(folder, &token));
        begin(&file, folder, &Note { token, tries }, false).unwrap();
        path
    }

    #[test]
    fn what_was_sent_is_noted_until_its_answer_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert_eq!(of_token(folder, &token("1")).unwrap(), None);
        let path = sent(folder, "1", Some(3));
        let noted = of_token(folder, &token("1")).unwrap().unwrap();
        assert_eq!((noted.tries, &noted.token), (Some(3), &token("1")));
        assert_eq!(all(folder).unwrap().notes, [noted]);
        end(&File::options().write(true).open(path).unwrap()).unwrap();
        assert_eq!(of_token(folder, &token("1")).unwrap(), None);
        assert_eq!(all(folder).unwrap(), Noted::default());
        // What is left of a longer note is not taken for a part of this one.
        sent(folder, "1", None);
        let noted = of_token(folder, &token("1")).unwrap().unwrap();
        assert_eq!(noted.tries, None);
        forget(folder, &token("1")).unwrap();
        assert_eq!(all(folder).unwrap(), Noted::default());
    }

    #[test]
    fn a_note_that_cannot_be_made_leaves_none() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, token) = (folder.path(), token("1"));
        let note = Note {
            token: token.clone(),
            tries: Some(3),
        };
        let file = open(folder, &token).unwrap();
        // A folder that cannot be synchronised.
        assert!(begin(&file, &folder.join("gone"), &note, false).is_err());
        assert_eq!(of_token(folder, &token).unwrap(), None);
        // What was begun is taken back, to nothing or to what was there.
        for was_empty in [true, false] {
            write(&file, &note).unwrap();
            put_back(&file, was_empty);
            assert_eq!(of_token(folder, &token).unwrap(), None);
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
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let path = sent(folder, "1", Some(3));
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            let noted = of_token(folder, &token("1")).unwrap().unwrap();
            assert_eq!(noted.tries, None, "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            let noted = of_token(folder, &token("1")).unwrap();
            assert_eq!(
                noted.map(|noted| noted.tries),
                (at > 0).then_some(None),
                "{at}"
            );
        }
        fs::write(&path, vec![0; 4096]).unwrap();
        assert!(of_token(folder, &token("1")).unwrap().is_some());
        // That of another token is none of this one.
        fs::rename(sent(folder, "2", Some(3)), &path).unwrap();
        let noted = of_token(folder, &token("1")).unwrap().unwrap();
        assert_eq!(noted.tries, None);
    }
}
