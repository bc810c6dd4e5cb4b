//! Folders that go away again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder in the target folder that is removed when it is dropped. What a killed
/// process has left there, the next one removes.
pub(crate) struct Scratch(PathBuf);

/// Sockets are made in these folders, and a socket's path may have 107 bytes.
const LONGEST: usize = 60;
const PREFIX: &str = "ledger-";

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let parent = Some(target_folder())
            .filter(|folder| folder.as_os_str().len() < LONGEST)
            .unwrap_or_else(std::env::temp_dir);
        sweep(&parent);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
        // A process with our number may have left one behind.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Scratch(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `tmp` in the target folder in which this program was built.
pub(crate) fn target_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = (program.ancestors())
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .map_or_else(std::env::temp_dir, |target| target.join("tmp"));
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Removes the folders of processes that have ended.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).unwrap().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some((process, _)) = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'))
        else {
            continue;
        };
        if !Path::new("/proc").join(process).exists() {
            // Others sweep too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
