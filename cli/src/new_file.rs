//! New files: a file gets its name only when it is complete.
//!
//! | where | while it is written | what a killed process leaves |
//! | --- | --- | --- |
//! | Linux, most file systems | a file without a name (`O_TMPFILE` of open(2)) | nothing |
//! | elsewhere | a hidden file beside it, locked | that file; the next process that writes there removes it |
//!
//! An existing file of that name stays until then.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// The prefix of hidden files, before random letters.
const PART: &str = ".claviger-part-";

/// The number of random letters.
const LETTERS: usize = 12;

/// The number of attempts to create a hidden file that another process removes before it is locked.
const ATTEMPTS: usize = 8;

/// Who may read a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privacy {
    /// Everyone whom the umask allows.
    Public,
    /// Its owner.
    Private,
}

/// What a power cut may do to a file once it has its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Nothing: its content is on the disk before it has its name, and its name after. For what
    /// may be the only copy.
    OnDisk,
    /// The system writes it in its own time, some seconds, as it does for other programs that make
    /// signatures (`ssh-keygen`, `pkcs11-tool`, `openssl`). A power cut before that may leave the
    /// file of before, none, or on some file systems an empty one. For what can be made again.
    InItsTime,
}

/// A file that is being written.
pub(crate) struct NewFile {
    content: Content,
    target: PathBuf,
    /// Whether there was a file of that name at the start.
    replaces: bool,
}

enum Content {
    #[cfg(target_os = "linux")]
    Unnamed(File),
    Named(NamedTempFile),
}

impl NewFile {
    /// Starts a new file for `target`.
    pub(crate) fn create(target: PathBuf, privacy: Privacy) -> io::Result<Self> {
        let folder = folder_of(&target);
        sweep(folder);
        let content = Content::in_folder(folder, privacy)?;
        let there = fs::metadata(&target).ok();
        #[cfg(unix)]
        if let Some(there) = &there {
            use std::os::unix::fs::PermissionsExt;
            // Whom its owner kept out of the old file is kept out of the new one.
            let mode = |m: &fs::Metadata| m.permissions().mode() & 0o777;
            let own = mode(&content.file().metadata()?);
            let stricter = own & mode(there);
            if stricter != own {
                let stricter = fs::Permissions::from_mode(stricter);
                content.file().set_permissions(stricter)?;
            }
        }
        Ok(NewFile {
            content,
            target,
            replaces: there.is_some(),
        })
    }

    /// Its temporary name, if it has one.
    pub(crate) fn name(&self) -> Option<&Path> {
        match &self.content {
            #[cfg(target_os = "linux")]
            Content::Unnamed(_) => None,
            Content::Named(file) => Some(file.path()),
        }
    }

    /// Gives it its name. `tell` is called with each temporary name before the file gets it.
    pub(crate) fn put_in_place(
        self,
        durability: Durability,
        tell: impl Fn(&Path),
    ) -> io::Result<()> {
        if durability == Durability::OnDisk {
            self.content.file().sync_all()?;
        }
        match self.content {
            Content::Named(file) => file.persist(&self.target).map_err(|e| e.error).map(drop)?,
            #[cfg(target_os = "linux")]
            Content::Unnamed(file) => name(&file, &self.target, self.replaces, tell)?,
        }
        if durability == Durability::OnDisk {
            sync(folder_of(&self.target));
        }
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.content.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.content.file().flush()
    }
}

impl Content {
    fn in_folder(folder: &Path, privacy: Privacy) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        if let Ok(file) = unnamed(folder, privacy) {
            return Ok(Content::Unnamed(file));
        }
        hidden(folder, privacy).map(Content::Named)
    }

    fn file(&self) -> &File {
        match self {
            #[cfg(target_os = "linux")]
            Content::Unnamed(file) => file,
            Content::Named(file) => file.as_file(),
        }
    }
}

/// The folder that a path is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Writes the names in the folder to the disk. Not every file system can; the file is in place
/// anyway.
fn sync(folder: &Path) {
    #[cfg(unix)]
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    #[cfg(not(unix))]
    let _ = folder;
}

/// A file without a name, in a folder whose file system has such files.
#[cfg(target_os = "linux")]
fn unnamed(folder: &Path, privacy: Privacy) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    // Without it the file cannot be given a name later.
    fs::metadata(DESCRIPTORS)?;
    let mode = match privacy {
        Privacy::Public => 0o666,
        Privacy::Private => 0o600,
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file: File = open(folder, flags, Mode::from_raw_mode(mode))?.into();
    file.lock()?;
    Ok(file)
}

#[cfg(target_os = "linux")]
const DESCRIPTORS: &str = "/proc/self/fd";

/// Gives this name to a file without one, and replaces the file that has the name; `replaces` is
/// whether one had it a moment ago.
#[cfg(target_os = "linux")]
fn name(file: &File, target: &Path, replaces: bool, tell: impl Fn(&Path)) -> io::Result<()> {
    if !replaces {
        match link(file, target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done,
        }
    }
    // A second name can only be given where there is none; a rename replaces.
    let make = |path: &Path| {
        tell(path);
        link(file, path)
    };
    let hidden = builder().make_in(folder_of(target), make)?;
    let hidden = hidden.into_temp_path();
    hidden.persist(target).map_err(|e| e.error)
}

#[cfg(target_os = "linux")]
fn link(file: &File, path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};
    use std::os::fd::AsRawFd;
    let open = format!("{DESCRIPTORS}/{}", file.as_raw_fd());
    Ok(linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PART).rand_bytes(LETTERS);
    builder
}

/// A hidden file, locked for as long as it is open.
fn hidden(folder: &Path, privacy: Privacy) -> io::Result<NamedTempFile> {
    let mut builder = builder();
    #[cfg(unix)]
    if privacy == Privacy::Public {
        use std::os::unix::fs::PermissionsExt;
        // The umask takes its share.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    for _ in 0..ATTEMPTS {
        let file = builder
            .tempfile_in(folder)
            // The name of the temporary file is of no interest to anyone.
            .map_err(|e| io::Error::from(e.kind()))?;
        // Not every file system has locks.
        let is_locked = file.as_file().lock().is_ok();
        if !is_locked || file.path().exists() {
            return Ok(file);
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// Removes hidden files of this user's processes that have ended.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(is_part)
            && let Ok(found) = entry.metadata()
            && found.is_file()
            && is_own(&found)
            && let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether this is the name of one of our hidden files.
fn is_part(name: &str) -> bool {
    let letters = name.strip_prefix(PART).unwrap_or_default();
    letters.len() == LETTERS && letters.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(unix)]
fn is_own(found: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    found.uid() == rustix::process::geteuid().as_raw()
}

#[cfg(not(unix))]
fn is_own(_: &fs::Metadata) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let name = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }

    /// A file of each kind.
    fn begun(target: &Path, privacy: Privacy) -> Vec<NewFile> {
        let of = |content| NewFile {
            content,
            target: target.into(),
            replaces: target.exists(),
        };
        let folder = folder_of(target);
        let named = of(Content::Named(hidden(folder, privacy).unwrap()));
        vec![NewFile::create(target.into(), privacy).unwrap(), named]
    }

    #[test]
    fn of_each_kind_it_is_whole_or_not_there_and_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file");
        for at in 0..2 {
            for (before, text) in [(None, "new"), (Some("new"), "newer")] {
                let mut file = begun(&target, Privacy::Private).swap_remove(at);
                let is_unnamed = file.name().is_none();
                file.write_all(text.as_bytes()).unwrap();
                assert_eq!(fs::read_to_string(&target).ok().as_deref(), before);
                let told = RefCell::new(PathBuf::new());
                file.put_in_place(Durability::OnDisk, |name: &Path| {
                    // Whoever is told can remove it from the beginning.
                    assert!(!name.exists());
                    assert_eq!(fs::read_to_string(&target).ok().as_deref(), before);
                    told.replace(name.to_owned());
                })
                .unwrap();
                // It is not told again of a name that it was made with.
                let is_told = cfg!(target_os = "linux") && is_unnamed && before.is_some();
                let name = told.borrow().file_name().map(ToOwned::to_owned);
                let name = name.and_then(|name| name.into_string().ok());
                assert_eq!(name.as_deref().is_some_and(is_part), is_told);
                assert_eq!(fs::read_to_string(&target).unwrap(), text);
                assert_eq!(names(folder.path()), ["file"]);
            }
            fs::remove_file(&target).unwrap();
        }
        drop(begun(&target, Privacy::Private));
        assert!(names(folder.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn of_each_kind_a_plaintext_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file");
        for file in begun(&target, Privacy::Private) {
            let _ = fs::remove_file(&target);
            file.put_in_place(Durability::InItsTime, |_| {}).unwrap();
            let mode = target.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn what_the_dead_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let living = hidden(folder.path(), Privacy::Private).unwrap();
        let living_name = living.path().file_name().unwrap().to_str().unwrap();
        let stays = [
            living_name,
            ".claviger-part-short",
            ".claviger-backup",
            ".claviger-Old001",
            ".claviger-notes",
            ".claviger-my-notes-of-1999",
            ".claviger-part-aaaaaaaaaaa.",
            "claviger-part-aaaaaaaaaaaa",
        ];
        let goes = [".claviger-part-Dead00000000"];
        let a_week_ago = SystemTime::now() - Duration::from_secs(7 * 24 * 60 * 60);
        for name in stays.iter().skip(1).chain(&goes) {
            fs::write(path(name), "half a letter").unwrap();
            let old = File::options().write(true).open(path(name)).unwrap();
            old.set_modified(a_week_ago).unwrap();
        }
        NewFile::create(path("out"), Privacy::Private).unwrap();
        let mut stays = stays.map(str::to_owned);
        stays.sort();
        assert_eq!(names(folder.path()), stays);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn where_the_file_system_can_it_has_no_name_until_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = NewFile::create(folder.path().join("file"), Privacy::Private).unwrap();
        if let Some(name) = file.name() {
            eprintln!("SKIPPED: this file system has no files without a name: {name:?}");
            return;
        }
        assert!(names(folder.path()).is_empty());
    }
}
