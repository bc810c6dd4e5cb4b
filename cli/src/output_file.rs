//! What a command writes: a file, standard output, a device or a pipe.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::new_file::{Durability, NewFile, Privacy};
use crate::output;
use crate::paths::{Target, is_standard};

const BUFFER: usize = 1 << 16;

/// Files that no output replaces: those that the command reads, and all in the home folder.
#[derive(Default)]
pub(crate) struct Kept {
    inputs: Vec<Identity>,
    home: Option<PathBuf>,
}

/// The identity of a file, whatever its name.
#[cfg(unix)]
type Identity = (u64, u64);
#[cfg(not(unix))]
type Identity = PathBuf;

#[cfg(unix)]
fn identity(metadata: &fs::Metadata, _: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(_: &fs::Metadata, path: &Path) -> Option<Identity> {
    fs::canonicalize(path).ok()
}

/// Whether an entry of a folder may be this file, as far as that shows without a look at it.
#[cfg(unix)]
fn may_be(entry: &fs::DirEntry, (_, inode): &Identity) -> bool {
    std::os::unix::fs::DirEntryExt::ino(entry) == *inode
}

#[cfg(not(unix))]
fn may_be(_: &fs::DirEntry, _: &Identity) -> bool {
    true
}

/// The identity of what the path leads to.
fn identity_of(path: &Path) -> Option<Identity> {
    identity(&fs::metadata(path).ok()?, path)
}

/// The identity of the file that the path leads to; `None` for devices and pipes, which are not
/// replaced.
fn file_of(path: &Path) -> Option<Identity> {
    let metadata = fs::metadata(path).ok()?;
    metadata.is_file().then(|| identity(&metadata, path))?
}

const STDIN: &str = "/dev/fd/0";
const STDOUT: &str = "/dev/fd/1";

impl Kept {
    pub(crate) fn new<'a>(
        home: Option<PathBuf>,
        inputs: impl IntoIterator<Item = Option<&'a Path>>,
    ) -> Self {
        let mut kept = Kept {
            inputs: Vec::new(),
            home,
        };
        kept.add(inputs);
        kept
    }

    /// Adds inputs; `None` is standard input.
    pub(crate) fn add<'a>(&mut self, inputs: impl IntoIterator<Item = Option<&'a Path>>) {
        let inputs = inputs.into_iter().filter_map(|path| match path {
            Some(path) if !is_standard(Some(path)) => file_of(path),
            _ => file_of(Path::new(STDIN)),
        });
        self.inputs.extend(inputs);
    }

    fn check(&self, place: &Target, path: Option<&Path>, name: &str) -> Result<(), Failure> {
        let is_read = || {
            Failure::new(format!(
                "{name} is what this command reads, and is left as it is"
            ))
            .coded("output-is-input")
            .hint("write to another file")
        };
        let is_home = || {
            Failure::new(format!(
                "{name} is in the home folder, and is left as it is"
            ))
            .coded("output-in-home")
            .hint("write to another folder")
        };
        let there = match place {
            Target::Path(target) => {
                if self.is_within_home(target) {
                    return Err(is_home());
                }
                file_of(target)
            }
            Target::Descriptor(Some(1)) => file_of(Path::new(STDOUT)),
            Target::Descriptor(_) => path.and_then(file_of),
        };
        let Some(there) = there else {
            return Ok(());
        };
        if self.inputs.contains(&there) {
            return Err(is_read());
        }
        match self.is_of_home(&there) {
            true => Err(is_home()),
            false => Ok(()),
        }
    }

    /// Whether the path, with all links resolved, is in the home folder.
    fn is_within_home(&self, target: &Path) -> bool {
        let Some(home) = self.home.as_deref().and_then(identity_of) else {
            return false;
        };
        let mut folders = target.ancestors();
        folders.any(|folder| identity_of(folder).as_ref() == Some(&home))
    }

    /// Whether this is another name of a file in the home folder.
    fn is_of_home(&self, file: &Identity) -> bool {
        let mut folders: Vec<PathBuf> = self.home.clone().into_iter().collect();
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(folder) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = entry.path();
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(path),
                    Ok(kind)
                        if kind.is_file()
                            && may_be(&entry, file)
                            && file_of(&path).as_ref() == Some(file) =>
                    {
                        return true;
                    }
                    _ => {}
                }
            }
        }
        false
    }
}

/// An output. A file appears complete when [`Output::finish`] is called, or not at all; an existing
/// file stays until then.
pub(crate) struct Output {
    to: Option<To>,
    name: String,
    interrupt: Arc<Interrupt>,
}

enum To {
    Stdout(BufWriter<io::Stdout>),
    /// A device or a pipe, which cannot be replaced.
    Special(BufWriter<File>),
    New(BufWriter<NewFile>),
}

impl Output {
    /// Opens standard output, or prepares to write the file.
    ///
    /// Files that the same command reads and files in the home folder are not replaced, under any
    /// of their names.
    pub(crate) fn open(
        path: Option<&Path>,
        privacy: Privacy,
        kept: &Kept,
        interrupt: &Arc<Interrupt>,
    ) -> Result<Self, Failure> {
        let name = match path.filter(|_| !is_standard(path)) {
            None => "standard output".to_owned(),
            Some(path) => format!("`{}`", path.display()),
        };
        let failed = |e: &io::Error| Failure::writing(&name, e);
        let place = match path.filter(|_| !is_standard(path)) {
            None => Target::Descriptor(Some(1)),
            Some(path) => Target::of(path).map_err(|e| failed(&e))?,
        };
        if place == Target::Descriptor(Some(1)) {
            output::check_stdout()?;
        }
        kept.check(&place, path, &name)?;
        let to = To::open(&place, path, privacy).map_err(|e| failed(&e))?;
        if let To::New(file) = &to
            && let Some(name) = file.get_ref().name()
        {
            interrupt.remember_unfinished(name);
        }
        Ok(Output {
            to: Some(to),
            name,
            interrupt: Arc::clone(interrupt),
        })
    }

    /// Whether it is standard output, under any name.
    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self.to, Some(To::Stdout(_)))
    }

    /// Whether it is a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.to, Some(To::Stdout(_))) && io::stdout().is_terminal()
    }

    /// Completes the output and gives the file its name; both are on the disk then.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        self.complete(Durability::OnDisk)
    }

    /// The same without waiting for the disk, for what can be made again.
    pub(crate) fn finish_without_waiting(self) -> Result<(), Failure> {
        self.complete(Durability::InItsTime)
    }

    fn complete(mut self, durability: Durability) -> Result<(), Failure> {
        let done = match self.to.take() {
            None => Ok(()),
            Some(To::Stdout(mut stdout)) => stdout.flush(),
            Some(To::Special(mut file)) => file.flush(),
            Some(To::New(file)) => file
                .into_inner()
                .map_err(io::IntoInnerError::into_error)
                .and_then(|file| {
                    file.put_in_place(durability, |name| {
                        self.interrupt.remember_for_a_moment(name);
                    })
                }),
        };
        done.map_err(|e| self.failed(&e))
    }

    /// The failure for an error of writing.
    pub(crate) fn failed(&self, error: &io::Error) -> Failure {
        Failure::writing(&self.name, error)
    }
}

impl To {
    fn open(place: &Target, path: Option<&Path>, privacy: Privacy) -> io::Result<To> {
        // What a link leads to is replaced, not the link.
        let target = match (place, path) {
            (Target::Path(target), _) => target.clone(),
            // Others may have written to it: what is there stays.
            (Target::Descriptor(number), Some(path)) if *number != Some(1) => {
                let file = fs::OpenOptions::new().append(true).open(path)?;
                return Ok(To::Special(BufWriter::with_capacity(BUFFER, file)));
            }
            (Target::Descriptor(_), _) => {
                return Ok(To::Stdout(BufWriter::with_capacity(BUFFER, io::stdout())));
            }
        };
        let there = fs::metadata(&target).ok();
        match &there {
            Some(there) if there.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Some(there) if !there.is_file() => {
                let file = fs::OpenOptions::new().write(true).open(&target)?;
                return Ok(To::Special(BufWriter::with_capacity(BUFFER, file)));
            }
            _ => {}
        }
        let file = NewFile::create(target, privacy)?;
        Ok(To::New(BufWriter::with_capacity(BUFFER, file)))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            Some(To::Stdout(stdout)) => stdout.write(bytes),
            Some(To::Special(file)) => file.write(bytes),
            Some(To::New(file)) => file.write(bytes),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.to {
            Some(To::Stdout(stdout)) => stdout.flush(),
            Some(To::Special(file)) => file.flush(),
            Some(To::New(file)) => file.flush(),
            None => Ok(()),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // The temporary file goes with it.
        self.to = None;
        self.interrupt.finished();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::Screen;

    fn open(path: &Path, privacy: Privacy) -> Output {
        let interrupt = Interrupt::listen(Screen::new());
        Output::open(Some(path), privacy, &Kept::default(), &interrupt).unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let name = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        entries.map(name).collect()
    }

    #[test]
    fn a_file_that_is_not_finished_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut output = open(&path, Privacy::Public);
        output.write_all(b"half").unwrap();
        drop(output);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn what_was_there_stays_until_the_new_file_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        let mut output = open(&path, Privacy::Public);
        output.write_all(b"new").unwrap();
        output.flush().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        output.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[cfg(unix)]
    #[test]
    fn plaintexts_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        open(&path, Privacy::Private).finish().unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link_and_a_device_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut output = open(&link, Privacy::Public);
        output.write_all(b"new").unwrap();
        output.finish().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");

        open(Path::new("/dev/null"), Privacy::Public)
            .finish()
            .unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_nothing_is_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        let mut output = open(&link, Privacy::Public);
        output.write_all(b"new").unwrap();
        output.finish().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_is_no_more_open_than_the_old_one() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (old, privacy, new) in [
            (0o600, Privacy::Public, 0o600),
            (0o400, Privacy::Private, 0o400),
            (0o666, Privacy::Private, 0o600),
        ] {
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(old)).unwrap();
            open(&path, privacy).finish().unwrap();
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, new, "{old:o}");
            fs::remove_file(&path).unwrap();
        }
    }
}
