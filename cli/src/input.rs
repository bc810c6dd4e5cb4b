//! What a command reads: a file, or standard input.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use claviger_streams::Stream;

use crate::failure::Failure;
use crate::paths::is_standard;
use crate::screen::Screen;

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
