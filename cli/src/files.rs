//! Input and output: files, pipes and terminals.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use claviger_streams::Stream;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::new_file::NewFile;
use crate::output;
use crate::screen::Screen;
use crate::session::Session;

const BUFFER: usize = 1 << 16;

/// How many links are followed, as Linux does.
const MOST_LINKS: usize = 40;

/// Whether the path stands for standard input or output.
pub(crate) fn is_standard(path: Option<&Path>) -> bool {
    path.is_none_or(|path| path.as_os_str() == "-")
}

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// An open file of a process; the number, where the process is this one.
    Descriptor(Option<u32>),
    /// Anything else, behind all links; it need not be there.
    Path(PathBuf),
}

impl Target {
    /// Follows the links to it, the last of which may lead to nothing. A descriptor is not
    /// followed: what it is open on must never be replaced.
    fn of(path: &Path) -> io::Result<Self> {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            let Some(name) = path.file_name() else {
                return Ok(Target::Path(fs::canonicalize(&path)?));
            };
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => fs::canonicalize(folder)?,
                _ => fs::canonicalize(".")?,
            };
            if let Some(process) = of_descriptors(&folder) {
                let is_ours = process == std::process::id().to_string();
                let number = name.to_str().and_then(|name| name.parse().ok());
                return Ok(Target::Descriptor(number.filter(|_| is_ours)));
            }
            let place = folder.join(name);
            match fs::read_link(&place) {
                // An absolute path replaces what it is joined to.
                Ok(link) => path = folder.join(link),
                Err(_) => return Ok(Target::Path(place)),
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
            matches!(Target::of(path), Ok(Target::Descriptor(Some(0))))
        }
        _ => true,
    }
}

/// The file that a backend names as the source of its PIN (RFC 7512 §2.4, `pin-source`).
pub(crate) fn pin_file_of(backend: &str) -> Option<PathBuf> {
    let mut attributes = backend.split(['?', '&', ';']);
    let source = attributes.find_map(|text| text.strip_prefix("pin-source="))?;
    let mut bytes = Vec::new();
    let mut rest = source.bytes();
    while let Some(byte) = rest.next() {
        let hex = |byte: Option<u8>| char::from(byte?).to_digit(16);
        bytes.push(match byte {
            b'%' => u8::try_from(hex(rest.next())? << 4 | hex(rest.next())?).ok()?,
            byte => byte,
        });
    }
    let path = String::from_utf8(bytes).ok()?;
    let path = path.strip_prefix("file:").unwrap_or(&path);
    Some(path.strip_prefix("//").unwrap_or(path).into())
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
            if claviger_streams::was_closed(Stream::Input) {
                return Err(Failure::new("standard input is closed").coded("io"));
            }
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
            return Err(Failure::new(format!("{name} is a folder")).coded("io"));
        }
        Ok(Input {
            from: Box::new(file),
            length: metadata.is_file().then_some(metadata.len()),
            name,
        })
    }

    /// All of it, where it is no longer than `most` bytes.
    pub(crate) fn read_up_to(mut self, most: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let read = (&mut self.from)
            .take(most as u64 + 1)
            .read_to_end(&mut bytes);
        read.map_err(|e| self.failed(&e))?;
        if bytes.len() > most {
            let what = format!("{} is longer than {} KiB", self.name, most >> 10);
            return Err(Failure::new(what).coded("too-long"));
        }
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

/// What no output replaces: what the command reads, and everything in the home folder.
#[derive(Default)]
pub(crate) struct Kept {
    inputs: Vec<Identity>,
    home: Option<PathBuf>,
}

/// What a file is, whatever it is called.
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

/// What the path leads to, whatever it is.
fn identity_of(path: &Path) -> Option<Identity> {
    identity(&fs::metadata(path).ok()?, path)
}

/// The file that a path leads to; devices and pipes are not replaced.
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

    /// Keeps these, too; `None` is standard input.
    fn add<'a>(&mut self, inputs: impl IntoIterator<Item = Option<&'a Path>>) {
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

    /// Whether the path, which is behind all links, leads into the home folder.
    fn is_within_home(&self, target: &Path) -> bool {
        let Some(home) = self.home.as_deref().and_then(identity_of) else {
            return false;
        };
        let mut folders = target.ancestors();
        folders.any(|folder| identity_of(folder).as_ref() == Some(&home))
    }

    /// Whether a file of the home folder has another name outside, and this is it.
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
                    Ok(kind) if kind.is_file() && file_of(&path).as_ref() == Some(file) => {
                        return true;
                    }
                    _ => {}
                }
            }
        }
        false
    }
}

impl Session {
    /// Opens what a command writes to, which must not be what it reads: `inputs`, and where
    /// PINs come from.
    pub(crate) fn output<'a>(
        &self,
        path: Option<&Path>,
        privacy: Privacy,
        inputs: impl IntoIterator<Item = Option<&'a Path>>,
    ) -> Result<Output, Failure> {
        let mut kept = Kept::new(self.home().ok(), inputs);
        let secrets = self.secret_files();
        kept.add(secrets.iter().map(|path| Some(path.as_path())));
        Output::open(path, privacy, &kept, &self.interrupt)
    }
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
    New(BufWriter<NewFile>),
}

impl Output {
    /// Opens standard output, or gets ready to write the file.
    ///
    /// What the same command reads, and what is in the home folder, is not replaced: not by
    /// any of its names.
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
            Some(To::New(file)) => file
                .into_inner()
                .map_err(io::IntoInnerError::into_error)
                .and_then(|file| {
                    file.put_in_place(|name| self.interrupt.remember_unfinished(name))
                }),
        };
        done.map_err(|e| self.failed(&e))
    }

    /// The failure that an error of writing is.
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

        let circle = folder.path().join("circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        assert!(Target::of(&circle).is_err());
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
            let place = Target::of(Path::new(path)).unwrap();
            assert_eq!(place, Target::Descriptor(Some(number)), "{path}");
        }
        let of_another = Target::of(Path::new("/proc/1/fd/1"));
        assert!(!matches!(of_another, Ok(Target::Path(_))));
        assert!(is_stdin(None) && is_stdin(Some(Path::new("/dev/stdin"))));
        assert!(!is_stdin(Some(Path::new("stdin"))));
    }

    #[test]
    fn a_backend_says_which_file_its_pin_is_in() {
        let file = |backend| pin_file_of(backend).map(|path| path.display().to_string());
        for backend in [
            "pkcs11:token=a?module-path=/m.so&pin-source=file:/a%20b",
            "pkcs11:token=a?pin-source=/a b",
            "piv:serial=1;pin-source=file:///a%20b;slot=9c",
        ] {
            assert_eq!(file(backend).as_deref(), Some("/a b"), "{backend}");
        }
        assert_eq!(file("pkcs11:token=a"), None);
        assert_eq!(file("pkcs11:token=a?pin-source=%f"), None);
    }

    #[test]
    fn standard_input_has_two_names() {
        assert!(is_standard(None));
        assert!(is_standard(Some(Path::new("-"))));
        assert!(!is_standard(Some(Path::new("./-"))));
    }
}
