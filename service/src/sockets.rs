//! The sockets on which a daemon listens.
//!
//! A socket is bound under another name, gets its mode, begins to listen, and only then gets its own
//! name: there is no moment in which somebody can connect who must not. In the same step it takes
//! the place of a socket that a dead process left.

use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::geteuid;

/// The longest path of a Unix socket, in bytes (`sun_path` without its zero).
pub const LONGEST_PATH: usize = 107;

/// The name of a socket that has no other one.
pub const DEFAULT_NAME: &str = "api";

/// So many connections wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why a daemon does not listen on a socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The path is longer than a socket's may be.
    #[error("the path of the socket `{}` is longer than {LONGEST_PATH} bytes", .path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// A process listens there.
    #[error("a process listens on the socket `{}` already", .path.display())]
    Taken {
        /// The path.
        path: PathBuf,
    },
    /// There is something else, or a socket of another user.
    #[error("the socket `{}` cannot be made: {what} is there", .path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// Others could put a socket of theirs in its place.
    #[error("the socket cannot be in the folder `{}`: {why}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// It cannot be made.
    #[error("the socket `{}` cannot be made: {error}", .path.display())]
    Failed {
        /// The path.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// What the service manager handed over is no socket to listen on.
    #[error("the socket `{name}` that was handed over cannot be used: {reason}")]
    Inherited {
        /// Its name.
        name: String,
        /// Why not.
        reason: String,
    },
}

impl SocketError {
    /// A stable code: see ERRORS.md.
    pub fn code(&self) -> &'static str {
        match self {
            SocketError::TooLong { .. } => "socket-path-too-long",
            SocketError::Taken { .. } => "socket-taken",
            SocketError::InTheWay { .. } => "socket-in-the-way",
            SocketError::Folder { .. } => "socket-folder",
            SocketError::Failed { .. } => "socket-failed",
            SocketError::Inherited { .. } => "socket-inherited",
        }
    }
}

/// A socket on which the daemon listens. Its file is removed with it, if it is still this one's.
#[derive(Debug)]
pub struct Listening {
    name: Arc<str>,
    listener: UnixListener,
    file: Option<SocketFile>,
}

impl Listening {
    /// Listens on the socket `path`, which only users get to whom `mode` gives the right to write.
    /// The last folder of the path is made, for its owner alone, if it is not there.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(name: &str, path: &Path, mode: u32) -> Result<Self, SocketError> {
        let failed = |error: io::Error| SocketError::Failed {
            path: path.to_owned(),
            error,
        };
        let folder = match path.parent() {
            Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
            Some(folder) => folder,
            None => return Err(failed(io::ErrorKind::InvalidInput.into())),
        };
        let interim = folder.join(format!(".{:x}", std::process::id()));
        if [path, &interim]
            .iter()
            .any(|path| path.as_os_str().as_bytes().len() > LONGEST_PATH)
        {
            return Err(SocketError::TooLong {
                path: path.to_owned(),
            });
        }
        make_private(folder).map_err(failed)?;
        check_folder(folder)?;
        // Of two daemons that find the same dead socket one looks after the other is done.
        let turn = File::open(folder).map_err(failed)?;
        flock(&turn, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        check_free(path)?;
        let listener = listen(&interim, mode).map_err(failed)?;
        let file = fs::rename(&interim, path).and_then(|()| SocketFile::of(path));
        let file = file.map_err(|error| {
            let _ = fs::remove_file(&interim);
            failed(error)
        })?;
        Ok(Listening {
            name: name.into(),
            listener,
            file: Some(file),
        })
    }

    /// The sockets that the service manager handed over (`LISTEN_FDS`), with their names
    /// (`LISTEN_FDNAMES`); none if it handed over none. They are its to remove. To be called once,
    /// before the program starts threads.
    ///
    /// # Errors
    /// [`SocketError::Inherited`].
    pub fn inherited() -> Result<Vec<Self>, SocketError> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut handed_over = listenfd::ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..handed_over.len() {
            let name = names.split(':').nth(index).filter(|name| !name.is_empty());
            let name = name.unwrap_or(DEFAULT_NAME);
            let refused = |reason: String| SocketError::Inherited {
                name: name.to_owned(),
                reason,
            };
            let listener = handed_over.take_unix_listener(index);
            let listener = listener.map_err(|error| refused(error.to_string()))?;
            let listener = listener.ok_or_else(|| refused("it is not there".to_owned()))?;
            (listener.set_nonblocking(true)).map_err(|error| refused(error.to_string()))?;
            sockets.push(Listening {
                name: name.into(),
                listener,
                file: None,
            });
        }
        Ok(sockets)
    }

    /// Its name, which grants are about.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn into_parts(self) -> (Arc<str>, UnixListener, Option<SocketFile>) {
        (self.name, self.listener, self.file)
    }
}

/// The file of a socket, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    is: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(SocketFile {
            path: path.to_owned(),
            is: identity(&fs::symlink_metadata(path)?),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |found: Metadata| identity(&found) == self.is;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn make_private(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn check_folder(folder: &Path) -> Result<(), SocketError> {
    let refused = |why| SocketError::Folder {
        folder: folder.to_owned(),
        why,
    };
    let found = fs::metadata(folder).map_err(|error| SocketError::Failed {
        path: folder.to_owned(),
        error,
    })?;
    match found.uid() {
        _ if !found.is_dir() => Err(refused("it is no folder")),
        owner if owner != 0 && owner != geteuid().as_raw() => {
            Err(refused("it belongs to another user"))
        }
        _ if found.mode() & 0o022 != 0 => Err(refused("others can write to it")),
        _ => Ok(()),
    }
}

/// Refuses what must not be replaced.
fn check_free(path: &Path) -> Result<(), SocketError> {
    let in_the_way = |what| SocketError::InTheWay {
        path: path.to_owned(),
        what,
    };
    let failed = |error| SocketError::Failed {
        path: path.to_owned(),
        error,
    };
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(failed)?,
    };
    if !found.file_type().is_socket() {
        return Err(in_the_way("something else"));
    }
    let us = geteuid().as_raw();
    if found.uid() != us && us != 0 {
        return Err(in_the_way("a socket of another user"));
    }
    match connect(path) {
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Err(SocketError::Taken {
            path: path.to_owned(),
        }),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(error.into())),
    }
}

/// Whether somebody listens, without waiting for them.
fn connect(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}

fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Nobody can connect yet: it does not listen.
    let listens = fs::set_permissions(path, Permissions::from_mode(mode))
        .and_then(|()| Ok(rustix::net::listen(&socket, BACKLOG)?));
    if let Err(error) = listens {
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn code(bound: Result<Listening, SocketError>) -> &'static str {
        bound.unwrap_err().code()
    }

    #[test]
    fn a_socket_has_its_mode_and_is_removed_with_its_listener() {
        let folder = folder();
        let path = folder.path().join("made").join("api.sock");
        let listening = Listening::bind("api", &path, 0o600).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(UnixStream::connect(&path).is_ok());
        let beside = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(beside, 1, "nothing else is left");
        drop(listening);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_is_not_taken_and_a_dead_one_is_replaced() {
        let folder = folder();
        let path = folder.path().join("api.sock");
        let first = Listening::bind("api", &path, 0o600).unwrap();
        assert_eq!(code(Listening::bind("api", &path, 0o600)), "socket-taken");
        assert!(
            UnixStream::connect(&path).is_ok(),
            "the first one is unharmed"
        );
        drop(first);
        // As a process that was killed leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(UnixStream::connect(&path).is_err());
        let _second = Listening::bind("api", &path, 0o600).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_socket_that_another_one_replaced_is_left() {
        let folder = folder();
        let path = folder.path().join("api.sock");
        let first = Listening::bind("api", &path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Listening::bind("api", &path, 0o600).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn what_is_in_the_way_is_left_as_it_is() {
        let folder = folder();
        let path = folder.path().join("api.sock");
        fs::write(&path, "a letter").unwrap();
        assert_eq!(
            code(Listening::bind("api", &path, 0o600)),
            "socket-in-the-way"
        );
        assert_eq!(fs::read(&path).unwrap(), b"a letter");
        let link = folder.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(
            code(Listening::bind("api", &link, 0o600)),
            "socket-in-the-way"
        );
    }

    #[test]
    fn a_folder_where_others_write_and_a_path_that_is_too_long_are_refused() {
        let folder = folder();
        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        for mode in [0o777, 0o770, 0o1777] {
            fs::set_permissions(&open, Permissions::from_mode(mode)).unwrap();
            let bound = Listening::bind("api", &open.join("api.sock"), 0o600);
            assert_eq!(code(bound), "socket-folder");
        }
        assert_eq!(fs::read_dir(&open).unwrap().count(), 0);
        let long = folder.path().join("x".repeat(LONGEST_PATH));
        assert_eq!(
            code(Listening::bind("api", &long, 0o600)),
            "socket-path-too-long"
        );
        let nowhere = folder.path().join("no/such/api.sock");
        assert_eq!(
            code(Listening::bind("api", &nowhere, 0o600)),
            "socket-failed"
        );
    }
}
