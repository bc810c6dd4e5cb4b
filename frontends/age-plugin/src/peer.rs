//! The conversation with the age program: commands and their answers, each of them a stanza.

use std::io::{self, BufRead, Read, Write};

use claviger_formats::envelope::{LONGEST_HEADER, Stanza, read_stanza, write_stanza};
use zeroize::Zeroizing;

/// The longest stanza, in bytes of text: as long as a header of a file may be, and the words before
/// it.
const LONGEST_STANZA: usize = LONGEST_HEADER + 1024;

/// The most bytes of text in one phase.
const LONGEST_PHASE: usize = 64 << 20;

/// The characters of a full line of a body.
const COLUMNS: usize = 64;

/// The command that ends a phase.
pub const DONE: &str = "done";

/// Why the conversation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The other side ended it.
    #[error("the age program ended the conversation early")]
    Ended,
    /// The other side broke the protocol.
    #[error("the age program broke the plugin protocol: {0}")]
    Protocol(&'static str),
    /// A read or a write failed.
    #[error("the age program cannot be reached: {0}")]
    System(#[from] io::Error),
}

/// The answer to a command.
#[derive(Debug)]
pub enum Reply {
    /// It was carried out; with what it asks for.
    Ok(Stanza),
    /// It was not.
    Fail,
    /// The other side does not know the command.
    Unsupported,
}

/// The other side.
pub struct Peer<R, W> {
    input: R,
    output: W,
    /// The bytes that it may still say in this phase.
    room: usize,
}

impl<R: BufRead, W: Write> Peer<R, W> {
    /// One that is read from and written to like this.
    pub fn new(input: R, output: W) -> Self {
        Peer {
            input,
            output,
            room: LONGEST_PHASE,
        }
    }

    /// The next command of a phase that the other side controls; `None` at its end.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn command(&mut self) -> Result<Option<Stanza>, Broken> {
        let stanza = self.receive()?;
        Ok((stanza.tag != DONE).then_some(stanza))
    }

    /// Sends a command of a phase that this side controls, and waits for the answer.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn ask<S: AsRef<str>>(
        &mut self,
        command: &str,
        arguments: &[S],
        body: &[u8],
    ) -> Result<Reply, Broken> {
        self.send(command, arguments, body)?;
        let answer = self.receive()?;
        match answer.tag.as_str() {
            "ok" => Ok(Reply::Ok(answer)),
            "fail" => Ok(Reply::Fail),
            "unsupported" => Ok(Reply::Unsupported),
            _ => Err(Broken::Protocol("it gave an unknown answer")),
        }
    }

    /// Ends a phase that this side controls.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn done(&mut self) -> Result<(), Broken> {
        self.send::<&str>(DONE, &[], &[])
    }

    fn send<S: AsRef<str>>(
        &mut self,
        kind: &str,
        arguments: &[S],
        body: &[u8],
    ) -> Result<(), Broken> {
        let mut text = Zeroizing::new(Vec::with_capacity(128 + 2 * body.len()));
        write_stanza(kind, arguments, body, &mut text);
        self.output.write_all(&text)?;
        Ok(self.output.flush()?)
    }

    fn receive(&mut self) -> Result<Stanza, Broken> {
        // There is room for what is secret, so that no copy of it stays behind as this grows.
        let mut text = Zeroizing::new(Vec::with_capacity(4096));
        let first = self.read_line(&mut text)?;
        if !text.starts_with(b"-> ") {
            return Err(Broken::Protocol("it sent something that is no stanza"));
        }
        // The body ends with a line that is shorter than the others.
        let mut begin = first;
        loop {
            let end = self.read_line(&mut text)?;
            match end - begin - 1 {
                COLUMNS => begin = end,
                length if length < COLUMNS => break,
                _ => return Err(Broken::Protocol("a line of a stanza is too long")),
            }
        }
        read_stanza(&text).ok_or(Broken::Protocol("it sent a malformed stanza"))
    }

    /// Appends a line; the length of the text after that.
    fn read_line(&mut self, text: &mut Vec<u8>) -> Result<usize, Broken> {
        let limit = (LONGEST_STANZA - text.len()).min(self.room);
        let mut line = self.input.by_ref().take(limit as u64);
        let length = line.read_until(b'\n', text)?;
        self.room -= length;
        match text.last() {
            Some(b'\n') if length > 0 => Ok(text.len()),
            _ if length == limit => Err(Broken::Protocol("it sent too much")),
            _ => Err(Broken::Ended),
        }
    }
}
