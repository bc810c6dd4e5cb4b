//! The plugin as it is installed, and an age program that the test plays.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use claviger_formats::envelope::{Stanza, read_stanza};

use super::{FILE_KEY, line, said};

/// The plugin, started by an age program.
pub struct Plugin {
    pub child: Child,
    pub to: ChildStdin,
    pub from: BufReader<ChildStdout>,
}

impl Plugin {
    /// Of the daemon on this socket, to decrypt.
    pub fn start(socket: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_age-plugin-claviger"))
            .arg("--age-plugin=identity-v1")
            .env("CLAVIGER_DAEMON", socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        Plugin { child, to, from }
    }

    pub fn says(&mut self, text: &[u8]) {
        self.to.write_all(text).unwrap();
    }

    /// What the plugin says next.
    pub fn next(&mut self) -> Stanza {
        let mut text = Vec::new();
        loop {
            let is_first = text.is_empty();
            let length = self.from.read_until(b'\n', &mut text).unwrap();
            assert!(length > 0, "the plugin ended");
            if !is_first && length <= 64 {
                return read_stanza(&text).unwrap();
            }
        }
    }

    /// Goes on to the end: what the plugin said. It gets `pins` one after another, and then none.
    pub fn hears_out(self, pins: &[&str]) -> Vec<String> {
        let mut pins = pins.iter();
        self.answered(|one| match (one.tag.as_str(), pins.len()) {
            ("request-secret", 0) => said("fail", &[], &[]),
            ("request-secret", _) => said("ok", &[], pins.next().unwrap().as_bytes()),
            ("confirm", _) => said("ok", &["no"], &[]),
            _ => said("ok", &[], &[]),
        })
    }

    /// The same with these answers.
    pub fn answered(mut self, mut answer: impl FnMut(&Stanza) -> Vec<u8>) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            let one = self.next();
            if one.tag == "done" {
                break;
            }
            self.says(&answer(&one));
            heard.push(line(&one));
        }
        assert!(self.child.wait().unwrap().success());
        heard
    }
}

/// What is heard when a file was opened.
pub fn key_of(file: usize) -> String {
    format!("file-key {file}: {}", String::from_utf8_lossy(&FILE_KEY))
}
