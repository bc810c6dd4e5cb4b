//! Folders for what tests start.

use std::fs;
use std::path::{Path, PathBuf};

/// The target folder in which this program was built.
pub(crate) fn target() -> Option<PathBuf> {
    let program = std::env::current_exe().unwrap();
    (program.ancestors())
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .map(Path::to_owned)
}

/// An empty folder `KIND-PID` in `tmp` in the target folder, or where the path to a socket
/// in it fits into what a socket's address has room for. Those of processes that have
/// ended are removed.
pub(crate) fn of_this_process(kind: &str) -> PathBuf {
    let parent = (target().map(|target| target.join("tmp")))
        .filter(|parent| parent.as_os_str().len() < 80)
        .unwrap_or_else(std::env::temp_dir);
    let folder = parent.join(format!("{kind}-{}", std::process::id()));
    // A process with our number may have left one behind.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    sweep(&parent, kind);
    folder
}

/// What is in a folder.
pub(crate) fn content(folder: &Path) -> Vec<PathBuf> {
    (fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// Removes the folders of processes that have ended.
fn sweep(parent: &Path, kind: &str) {
    for folder in content(parent) {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let process = name.strip_prefix(kind).and_then(|n| n.strip_prefix('-'));
        let Some(process) = process else {
            continue;
        };
        if Path::new("/proc/self").exists() && !Path::new("/proc").join(process).exists() {
            // Others sweep too.
            let _ = fs::remove_dir_all(&folder);
        }
    }
}
