//! Folders that go away again, and SoftHSM2 kept inside them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs, io, process};

use crate::{Failure, Result};

/// A folder of our own, readable by its owner only, removed when the value goes away.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new folder in the system's place for temporary files.
    pub(crate) fn new(purpose: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let nanoseconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.subsec_nanos());
        let unique = format!("{nanoseconds:x}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let name = format!("claviger-{purpose}-{}-{unique}", process::id());
        let path = env::temp_dir().join(name);
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        // A folder that is there already is somebody else's: `create` refuses it.
        builder.create(&path).map_err(|e| cannot_write(&path, &e))?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a new file into the folder, for its owner's eyes only: it may be a PIN.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options
            .open(&path)
            .and_then(|mut file| file.write_all(content.as_bytes()))
            .map_err(|e| cannot_write(&path, &e))?;
        Ok(path)
    }

    /// Gives SoftHSM2 a token folder in here and returns its configuration file, the
    /// value for `SOFTHSM2_CONF`. The user's own tokens are out of its reach.
    pub(crate) fn softhsm_conf(&self) -> Result<PathBuf> {
        let tokens = self.path.join("tokens");
        fs::create_dir(&tokens).map_err(|e| cannot_write(&tokens, &e))?;
        self.write(
            "softhsm2.conf",
            &format!(
                "directories.tokendir = {}\n\
                 objectstore.backend = file\n\
                 log.level = ERROR\n\
                 slots.removable = false\n",
                tokens.display()
            ),
        )
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed stays for the system's own clean-up.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A net under programs that bring their own SoftHSM2 configuration: should one forget
/// it, it finds an empty token folder and not the user's. The net lasts as long as the
/// returned folder.
pub(crate) fn keep_users_tokens_out(command: &mut Command) -> Result<Scratch> {
    let scratch = Scratch::new("softhsm2")?;
    command.env("SOFTHSM2_CONF", scratch.softhsm_conf()?);
    Ok(scratch)
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{} cannot be written: {error}", path.display()))
        .hint("TMPDIR may name another folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_folder_is_private_and_goes_away() {
        let scratch = Scratch::new("test").unwrap();
        let path = scratch.path().to_path_buf();
        scratch.write("pin", "1234").unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn softhsm2_is_pointed_at_the_scratch_folder() {
        let mut command = Command::new("true");
        let net = keep_users_tokens_out(&mut command).unwrap();
        let conf = fs::read_to_string(net.path().join("softhsm2.conf")).unwrap();
        assert!(conf.contains(&net.path().join("tokens").display().to_string()));
        assert!(
            command
                .get_envs()
                .any(|(name, value)| name == "SOFTHSM2_CONF" && value.is_some())
        );
    }
}
