//! What is read and what is written: files, pipes and terminals.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use tempfile::NamedTempFile;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::screen::Screen;

const BUFFER: usize = 1 << 16;

/// How many links are followed, as Linux does.
const MOST_LINKS: usize = 40;

/// Whether the path stands for standard input or output.
pub(crate) fn is_standard(path: Option<&Path>) -> bool {
    path.is_none_or(|path| path.as_os_str() == "-")
}

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// An open file of a process; the number, where the process is this one.
    Descriptor(Option<u32>),
    /// Anything else, behind all links; it need not be there.
    Path(PathBuf),
}

impl Place {
    /// Follows the links to it, the last of which may lead to nothing. A descriptor is not
    /// followed: what it is open on must never be replaced.
    fn of(path: &Path) -> io::Result<Self> {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            let Some(name) = path.file_name() else {
                return Ok(Place::Path(fs::canonicalize(&path)?));
            };
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => fs::canonicalize(folder)?,
                _ => fs::canonicalize(".")?,
            };
            if let Some(process) = of_descriptors(&folder) {
                let is_ours = process == std::process::id().to_string();
                let number = name.to_str().and_then(|name| name.parse().ok());
                return Ok(Place::Descriptor(number.filter(|_| is_ours)));
            }
            let place = folder.join(name);
            match fs::read_link(&place) {
                // An absolute path replaces what it is joined to.
                Ok(link) => path = folder.join(link),
                Err(_) => return Ok(Place::Path(place)),
            }
        }
        Err(io::Error::other("too many links"))
    }
}

/// The process whose descriptors are in this folder, if any are: `/proc/N/fd`, or
/// `/proc/N/task/N/fd`. Where `/dev/fd` is no link into `/proc`, it is the own process.
fn of_descriptors(folder: &Path) -> Option<String> {
    let names: Option<Vec<&str>> = folder
        .components()
        .filter(|part| *part != Component::RootDir)
        .map(|part| part.as_os_str().to_str())
        .collect();
    match names?.as_slice() {
        ["dev", "fd"] => Some(std::process::id().to_string()),
        ["proc", process, "fd"] | ["proc", process, "task", _, "fd"] => Some((*process).into()),
        _ => None,
    }
}

/// Whether reading from the path is reading from standard input.
pub(crate) fn is_stdin(path: Option<&Path>) -> bool {
    match path {
        Some(path) if !is_standard(Some(path)) => {
            matches!(Place::of(path), Ok(Place::Descriptor(Some(0))))
        }
        _ => true,
    }
}

/// What is read.
pub(crate) struct Input {
    from: Box<dyn Read>,
    name: String,
    /// How long it is, where that is known.
    pub(crate) length: Option<u64>,
}

impl Input {
    /// Opens the file, or standard input.
    pub(crate) fn open(path: Option<&Path>, screen: &Screen) -> Result<Self, Failure> {
        let Some(path) = path.filter(|_| !is_standard(path)) else {
            let stdin = io::stdin();
            if stdin.is_terminal() && screen.is_terminal() {
                screen.line("reading from the terminal; Ctrl-D on a line of its own ends it");
            }
            return Ok(Input {
                from: Box::new(stdin.lock()),
                name: "standard input".into(),
                length: None,
            });
        };
        let name = format!("`{}`", path.display());
        let unreadable = |e: &io::Error| Failure::io(format!("{name} cannot be read"), e);
        let file = File::open(path).map_err(|e| unreadable(&e))?;
        let metadata = file.metadata().map_err(|e| unreadable(&e))?;
        if metadata.is_dir() {
            return Err(Failure::new(format!("{name} is a folder")));
        }
        Ok(Input {
            from: Box::new(file),
            length: metadata.is_file().then_some(metadata.len()),
            name,
        })
    }

    /// All of it.
    pub(crate) fn read_all(mut self) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let read = self.from.read_to_end(&mut bytes);
        read.map_err(|e| self.failed(&e))?;
        Ok(bytes)
    }

    /// The failure that an error of reading is.
    pub(crate) fn failed(&self, error: &io::Error) -> Failure {
        Failure::io(format!("{} cannot be read", self.name), error)
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.from.read(buffer)
    }
}

/// Who may read a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privacy {
    /// Everyone whom the umask lets.
    Public,
    /// Its owner.
    Private,
}

/// What is written. A file appears whole, when [`Output::finish`] is called, or not at
/// all; what stands in its place stays until then.
pub(crate) struct Output {
    to: Option<To>,
    name: String,
    interrupt: Arc<Interrupt>,
}

enum To {
    Stdout(BufWriter<io::Stdout>),
    /// A device or a pipe: nothing can be put in its place.
    Special(BufWriter<File>),
    New {
        file: BufWriter<NamedTempFile>,
        target: PathBuf,
    },
}

impl Output {
    /// Opens standard output, or gets ready to write the file.
    pub(crate) fn open(
        path: Option<&Path>,
        privacy: Privacy,
        interrupt: &Arc<Interrupt>,
    ) -> Result<Self, Failure> {
        let (to, name) = match path.filter(|_| !is_standard(path)) {
            None => (
                To::Stdout(BufWriter::with_capacity(BUFFER, io::stdout())),
                "standard output".to_owned(),
            ),
            Some(path) => {
                let name = format!("`{}`", path.display());
                let to = To::open(path, privacy).map_err(|e| Failure::writing(&name, &e))?;
                (to, name)
            }
        };
        if let To::New { file, .. } = &to {
            interrupt.remember_unfinished(file.get_ref().path());
        }
        Ok(Output {
            to: Some(to),
            name,
            interrupt: Arc::clone(interrupt),
        })
    }

    /// Whether it is standard output, by whichever name.
    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self.to, Some(To::Stdout(_)))
    }

    /// Whether a person will look at it.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.to, Some(To::Stdout(_))) && io::stdout().is_terminal()
    }

    /// Puts the file where it belongs.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        let done = match self.to.take() {
            None => Ok(()),
            Some(To::Stdout(mut stdout)) => stdout.flush(),
            Some(To::Special(mut file)) => file.flush(),
            Some(To::New { file, target }) => put_in_place(file, &target),
        };
        done.map_err(|e| self.failed(&e))
    }

    /// The failure that an error of writing is.
    pub(crate) fn failed(&self, error: &io::Error) -> Failure {
        Failure::writing(&self.name, error)
    }
}

fn put_in_place(file: BufWriter<NamedTempFile>, target: &Path) -> io::Result<()> {
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(target).map_err(|e| e.error)?;
    Ok(())
}

impl To {
    fn open(path: &Path, privacy: Privacy) -> io::Result<To> {
        // What a link leads to is replaced, not the link.
        let target = match Place::of(path)? {
            Place::Descriptor(Some(1)) => {
                return Ok(To::Stdout(BufWriter::with_capacity(BUFFER, io::stdout())));
            }
            // Others may have written to it: what is there stays.
            Place::Descriptor(_) => {
                let file = fs::OpenOptions::new().append(true).open(path)?;
                return Ok(To::Special(BufWriter::with_capacity(BUFFER, file)));
            }
            Place::Path(target) => target,
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
        let folder = target.parent().unwrap_or(Path::new("/"));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".claviger-");
        #[cfg(unix)]
        if privacy == Privacy::Public {
            use std::os::unix::fs::PermissionsExt;
            // The umask takes its share.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let file = builder
            .tempfile_in(folder)
            // The name of the temporary file is of no interest to anyone.
            .map_err(|e| io::Error::from(e.kind()))?;
        #[cfg(unix)]
        if let Some(there) = there {
            use std::os::unix::fs::PermissionsExt;
            // Whom its owner kept out of the old file is kept out of the new one.
            let mode = |m: &fs::Metadata| m.permissions().mode() & 0o777;
            let stricter = mode(&file.as_file().metadata()?) & mode(&there);
            file.as_file()
                .set_permissions(fs::Permissions::from_mode(stricter))?;
        }
        Ok(To::New {
            file: BufWriter::with_capacity(BUFFER, file),
            target,
        })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.to {
            Some(To::Stdout(stdout)) => stdout.write(bytes),
            Some(To::Special(file)) => file.write(bytes),
            Some(To::New { file, .. }) => file.write(bytes),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.to {
            Some(To::Stdout(stdout)) => stdout.flush(),
            Some(To::Special(file)) => file.flush(),
            Some(To::New { file, .. }) => file.flush(),
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

    fn open(path: &Path, privacy: Privacy) -> Output {
        let interrupt = Interrupt::listen(Screen::new());
        Output::open(Some(path), privacy, &interrupt).unwrap()
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

        let circle = folder.path().join("circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        assert!(Place::of(&circle).is_err());
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

    #[cfg(target_os = "linux")]
    #[test]
    fn descriptors_are_known_by_all_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/stdout", &link).unwrap();
        for (path, number) in [
            ("/dev/stdin", 0),
            ("/dev/stdout", 1),
            ("/dev/stderr", 2),
            ("/dev/fd/7", 7),
            ("/proc/self/fd/7", 7),
            ("/proc/thread-self/fd/1", 1),
            (link.to_str().unwrap(), 1),
        ] {
            let place = Place::of(Path::new(path)).unwrap();
            assert_eq!(place, Place::Descriptor(Some(number)), "{path}");
        }
        let of_another = Place::of(Path::new("/proc/1/fd/1"));
        assert!(!matches!(of_another, Ok(Place::Path(_))));
        assert!(is_stdin(None) && is_stdin(Some(Path::new("/dev/stdin"))));
        assert!(!is_stdin(Some(Path::new("stdin"))));
    }

    #[test]
    fn standard_input_has_two_names() {
        assert!(is_standard(None));
        assert!(is_standard(Some(Path::new("-"))));
        assert!(!is_standard(Some(Path::new("./-"))));
    }
}
