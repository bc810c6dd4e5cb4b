//! Leases: whether the process that wrote a record is still alive.
//!
//! A node that writes records holds a lock on a file of its own, its lease. The system releases the
//! lock when the process ends, however it ends. So if the file of a lease can be locked, its process
//! is dead. Process ids are not used, since the system reuses them. The file is made for the first
//! record that bears the lease's name: a process that only reads has a name and no file.
//!
//! One more file has a shared lock of every process that has the registry open. A process that
//! replaces the registry takes it exclusively. Temporary files of a process bear the name of its
//! lease, and are removed with it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use claviger_token::key::to_hex;
use claviger_token::sync::lock;
use rand_core::{OsRng, RngCore};

/// How many hexadecimal digits a lease's name has.
const NAME: usize = 24;

/// The file that is locked by all who have the registry open.
const IN_USE: &str = "in-use";

/// What a lease's file is called until it is locked.
const FRESH: &str = ".new";

/// How long to wait for whoever replaces the registry.
const PATIENCE: Duration = Duration::from_secs(10);

/// So often it is tried.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// The sign of life of one node.
#[derive(Debug)]
pub(crate) struct Lease {
    name: String,
    /// Where the leases of others are; `None` where no other process shares the registry.
    folder: Option<PathBuf>,
    /// The locked file, once it is [shown](Lease::show).
    file: Mutex<Option<File>>,
    /// The file that all have locked; `None` for who only looks at the leases of others.
    in_use: Option<File>,
}

impl Lease {
    /// A lease in `folder` of one of those who have the registry open. Nothing shows it there
    /// until [`Lease::show`].
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: the registry is being replaced.
    pub(crate) fn hold(folder: &Path) -> io::Result<Self> {
        create_private(folder)?;
        let in_use = in_use(folder)?;
        let give_up = Instant::now() + PATIENCE;
        loop {
            match in_use.try_lock_shared() {
                Ok(()) => return Ok(Lease::new(Some(folder), Some(in_use))),
                Err(TryLockError::WouldBlock) if Instant::now() < give_up => {
                    std::thread::sleep(TRY_AGAIN);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes a lease in `folder` as the only one who uses the registry.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: another process has it open.
    pub(crate) fn hold_alone(folder: &Path) -> io::Result<Self> {
        create_private(folder)?;
        let in_use = in_use(folder)?;
        in_use.try_lock()?;
        let lease = Lease::new(Some(folder), Some(in_use));
        lease.show()?;
        // Those of earlier versions have a lease and nothing else.
        match lease.sweep() {
            0 => Ok(lease),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn new(folder: Option<&Path>, in_use: Option<File>) -> Self {
        Lease {
            name: random_name(),
            folder: folder.map(Path::to_owned),
            file: Mutex::default(),
            in_use,
        }
    }

    /// Looks at the leases in `folder`, and takes none.
    pub(crate) fn observe(folder: &Path) -> Self {
        Lease::new(Some(folder), None)
    }

    /// A lease that no other process can see.
    pub(crate) fn unseen() -> Self {
        Lease::new(None, None)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The name, for a record that others read: from now on they see that its process lives.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn show(&self) -> io::Result<&str> {
        if let (Some(folder), Some(_)) = (&self.folder, &self.in_use) {
            let mut file = lock(&self.file);
            if file.is_none() {
                *file = Some(locked(folder, &self.name)?);
            }
        }
        Ok(&self.name)
    }

    /// A path for something that is removed when this process is dead and has not done so;
    /// `None` where it has no folder of its own.
    ///
    /// # Errors
    /// As [`Lease::show`].
    pub(crate) fn path_for(&self, what: &str) -> io::Result<Option<PathBuf>> {
        let Some(folder) = self.folder.as_ref().filter(|_| self.in_use.is_some()) else {
            return Ok(None);
        };
        Ok(Some(folder.join(format!("{}-{what}", self.show()?))))
    }

    /// Removes the files of the dead, and says how many others live.
    pub(crate) fn sweep(&self) -> usize {
        let Some(folder) = &self.folder else {
            return 0;
        };
        let mut others = 0;
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            // There are files of others here, too.
            let Some((lease, rest)) = name.to_str().and_then(parts) else {
                continue;
            };
            match rest {
                "" if lease == self.name => {}
                "" => others += usize::from(self.is_alive(lease)),
                FRESH => {
                    is_locked(&entry.path());
                }
                _ if !self.is_alive(lease) => {
                    let _ = fs::remove_file(entry.path());
                }
                _ => {}
            }
        }
        others
    }

    /// Whether the holder of the lease `name` lives. What cannot be found out is taken for
    /// alive: nothing is lost by waiting.
    pub(crate) fn is_alive(&self, name: &str) -> bool {
        if name == self.name {
            return true;
        }
        let path = self.folder.as_ref().map(|folder| folder.join(name));
        path.is_some_and(|path| is_locked(&path))
    }
}

/// Makes the file of a lease, and locks it.
fn locked(folder: &Path, name: &str) -> io::Result<File> {
    loop {
        let fresh = folder.join(format!("{name}{FRESH}"));
        let locked = File::create_new(&fresh).and_then(|file| {
            file.lock()?;
            // Under its own name the file is never seen unlocked.
            fs::rename(&fresh, folder.join(name))?;
            Ok(file)
        });
        match locked {
            // Somebody swept it away before it was locked.
            Err(error) if error.kind() == io::ErrorKind::NotFound && folder.is_dir() => {}
            Err(error) => {
                let _ = fs::remove_file(&fresh);
                return Err(error);
            }
            locked => return locked,
        }
    }
}

/// Whether somebody has the file locked, or may have. Where nobody has, it is removed: nobody
/// takes this name again.
fn is_locked(path: &Path) -> bool {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return error.kind() != io::ErrorKind::NotFound,
    };
    match file.try_lock() {
        Ok(()) => {
            let _ = fs::remove_file(path);
            false
        }
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => true,
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(folder), Some(_)) = (&self.folder, &*lock(&self.file)) {
            let _ = fs::remove_file(folder.join(&self.name));
        }
    }
}

/// Makes a folder that is its owner's alone: whoever can open a file can lock it, and would be
/// taken for a process that lives.
///
/// # Errors
/// What the file system says; it is not a folder of this user.
pub(crate) fn create_private(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let found = folder.symlink_metadata()?;
        if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
            let what = format!("`{}` is not a folder of this user", folder.display());
            return Err(io::Error::other(what));
        }
        // Earlier versions left that to the umask.
        if found.mode() & 0o077 != 0 {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        }
    }
    Ok(())
}

fn in_use(folder: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.create(true).append(true);
    options.open(folder.join(IN_USE))
}

fn random_name() -> String {
    let mut bytes = [0; NAME / 2];
    OsRng.fill_bytes(&mut bytes);
    to_hex(&bytes)
}

/// The lease's name that a file's name begins with, and what follows it.
fn parts(name: &str) -> Option<(&str, &str)> {
    let (lease, rest) = name.split_at_checked(NAME)?;
    let is_hex = lease.bytes().all(|byte| byte.is_ascii_hexdigit());
    let follows = rest.is_empty() || rest == FRESH || rest.starts_with('-');
    (is_hex && follows).then_some((lease, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lives_as_long_as_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let here = Lease::hold(folder.path()).unwrap();
        let there = Lease::hold(folder.path()).unwrap();
        let name = there.show().unwrap().to_owned();
        assert!(here.is_alive(&name));
        drop(there);
        assert!(!here.is_alive(&name));
    }

    #[test]
    fn who_only_reads_leaves_no_lease_and_still_keeps_others_from_being_alone() {
        let folder = tempfile::tempdir().unwrap();
        let files = || fs::read_dir(folder.path()).unwrap().count();
        let reads = Lease::hold(folder.path()).unwrap();
        assert_eq!((files(), reads.sweep()), (1, 0));
        let kind = Lease::hold_alone(folder.path()).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::WouldBlock);
        let name = reads.show().unwrap().to_owned();
        assert!(folder.path().join(&name).exists());
        assert_eq!(reads.show().unwrap(), name);
        drop(reads);
        assert_eq!(files(), 1);
    }

    #[test]
    fn files_of_the_dead_are_swept_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let here = Lease::hold(folder.path()).unwrap();
        let there = Lease::hold(folder.path()).unwrap();
        there.show().unwrap();
        let dead = folder.path().join("0123456789abcdef01234567");
        let other = folder.path().join("pin-0123");
        fs::write(&dead, "").unwrap();
        fs::write(&other, "").unwrap();
        here.sweep();
        assert!(!dead.exists() && other.exists());
        assert!(here.is_alive(there.name()) && here.is_alive(here.name()));
    }

    #[test]
    fn what_the_dead_began_is_swept_and_what_the_living_began_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let here = Lease::hold(folder.path()).unwrap();
        let there = Lease::hold(folder.path()).unwrap();
        let living = there.path_for("registry").unwrap().unwrap();
        let of_the_dead = ["0123456789abcdef01234567.new", "0123456789abcdef01234567-x"];
        let of_the_dead = of_the_dead.map(|name| folder.path().join(name));
        let begun = folder.path().join("89abcdef0123456789abcdef.new");
        for path in of_the_dead.iter().chain([&living, &begun]) {
            fs::write(path, "").unwrap();
        }
        let at_it = File::open(&begun).unwrap();
        at_it.lock().unwrap();
        assert_eq!(here.sweep(), 1);
        assert!(living.exists() && begun.exists());
        assert!(!of_the_dead.iter().any(|path| path.exists()));
    }

    #[test]
    fn who_wants_to_be_alone_waits_for_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let here = Lease::hold(folder.path()).unwrap();
        let kind = Lease::hold_alone(folder.path()).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::WouldBlock);
        drop(here);
        let alone = Lease::hold_alone(folder.path()).unwrap();
        drop(alone);
        // One of a version that has a lease and nothing else.
        let old = File::create(folder.path().join("0123456789abcdef01234567")).unwrap();
        old.lock().unwrap();
        let kind = Lease::hold_alone(folder.path()).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::WouldBlock);
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_can_lock_what_is_in_the_folder() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        fs::create_dir(&run).unwrap();
        fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
        let _lease = Lease::hold(&run).unwrap();
        assert_eq!(run.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&run, &link).unwrap();
        assert!(Lease::hold(&link).is_err());
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_taken_for_a_sign_of_life() {
        let folder = tempfile::tempdir().unwrap();
        let here = Lease::hold(folder.path()).unwrap();
        // Opening it fails, and not because it is not there.
        let name = "x".repeat(300);
        assert!(here.is_alive(&name));
    }

    #[test]
    fn a_file_left_behind_by_a_dead_process_is_no_sign_of_life() {
        let folder = tempfile::tempdir().unwrap();
        let here = Lease::hold(folder.path()).unwrap();
        fs::write(folder.path().join("0123"), "").unwrap();
        assert!(!here.is_alive("0123"));
        assert!(!folder.path().join("0123").exists());
    }
}
