//! Finds what was changed in a log.
//!
//! What cannot be known is whether lines were cut off at the end, or changed from some line on to
//! the end by somebody who made all hashes anew: a seal covers what is before it, and nothing after.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::io::{self, BufRead, Read as _};

use claviger_token::{PublicKey, Signature};

use super::line::{Hash, LONGEST, NOTHING, Read, Seal, hash_of, hex};
use super::seal::statement;

/// The prefix of what a seal signs.
pub use claviger_engine::purpose::SEAL_PREFIX;

/// A seal is checked against the line that it covers up to, at most so many lines back.
const MOST_BACK: usize = 100_000;

/// More faults than this are counted, and not listed.
const MOST_FAULTS: usize = 100;

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The line, counted from 1 over all files that were read.
    pub line: u64,
    /// What.
    pub what: FaultKind,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// It is no line of a log.
    NotALine,
    /// The last line has no end: it was cut short.
    CutShort,
    /// It does not follow the line before: that one was altered, or lines between them were
    /// removed, added or moved.
    NotAfter,
    /// It has another number than the one that follows.
    Number {
        /// The number that it has.
        found: u64,
        /// The number that follows.
        expected: u64,
    },
    /// An end of what was not begun, or of what had ended.
    EndWithoutBegin {
        /// The id.
        id: u64,
    },
    /// The seal is not one by this key over these lines.
    BadSeal {
        /// Why not.
        reason: &'static str,
    },
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultKind::NotALine => f.write_str("this is not a line of an audit log"),
            FaultKind::CutShort => f.write_str("the last line was cut short"),
            FaultKind::NotAfter => f.write_str(
                "this does not follow the line before: that line was altered, or lines between \
                 them were removed, added or moved",
            ),
            FaultKind::Number { found, expected } => {
                write!(f, "this is line {found} of the log, but {expected} follows")
            }
            FaultKind::EndWithoutBegin { id } => write!(f, "this ends {id}, which did not begin"),
            FaultKind::BadSeal { reason } => write!(f, "the seal is not valid: {reason}"),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many lines there are.
    pub lines: u64,
    /// Whether the first line is the first of the log; else it goes on from a file that was not
    /// read.
    pub has_beginning: bool,
    /// What is wrong, at most 100 of them.
    pub faults: Vec<Fault>,
    /// How many faults there are.
    pub fault_count: u64,
    /// How many seals there are that were checked and are valid.
    pub seals: u64,
    /// How many there are that were not checked, since no key was given.
    pub unchecked_seals: u64,
    /// How many lines there are after what the last valid seal covers: whoever can write the file
    /// could have changed these, and cut off more. It is all of them where there is no seal.
    pub unsealed: u64,
    /// The ids of what began and has no end, at most 100: the daemon died meanwhile, or runs.
    pub without_end: Vec<u64>,
    /// How many of them there are.
    pub without_end_count: u64,
    /// Whether the last line says that the daemon ended there.
    pub is_closed: bool,
}

impl Report {
    /// Whether nothing is wrong. What is not sealed may be changed nevertheless.
    pub fn is_whole(&self) -> bool {
        self.fault_count == 0
    }
}

/// Reads one file. `key` is that of the seals.
///
/// # Errors
/// It cannot be read.
pub fn verify(reader: impl BufRead, key: Option<&PublicKey>) -> io::Result<Report> {
    let mut verifier = Verifier::new(key);
    verifier.read(reader)?;
    Ok(verifier.report())
}

/// Reads the files of a log, the oldest first.
pub struct Verifier<'a> {
    key: Option<&'a PublicKey>,
    report: Report,
    /// The number and the hash of the last line.
    last: Option<(u64, Hash)>,
    /// Those of lines before.
    before: VecDeque<(u64, Hash)>,
    /// What has begun and not ended.
    begun: BTreeSet<u64>,
    /// The line after which nothing is sealed.
    sealed: u64,
}

impl<'a> Verifier<'a> {
    /// `key` is that of the seals.
    pub fn new(key: Option<&'a PublicKey>) -> Self {
        Verifier {
            key,
            report: Report::default(),
            last: None,
            before: VecDeque::new(),
            begun: BTreeSet::new(),
            sealed: 0,
        }
    }

    /// Reads the next file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&mut self, mut reader: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let most = LONGEST as u64 + 1;
            reader.by_ref().take(most).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                return Ok(());
            }
            self.report.lines += 1;
            match line.strip_suffix(b"\n") {
                Some(line) => self.take(line),
                None if line.len() as u64 == most => {
                    self.fault(FaultKind::NotALine);
                    skip_line(&mut reader)?;
                }
                None => self.fault(FaultKind::CutShort),
            }
        }
    }

    /// What was found.
    pub fn report(mut self) -> Report {
        self.report.unsealed = self.report.lines - self.sealed;
        self.report.without_end_count = self.begun.len() as u64;
        self.report.without_end = self.begun.into_iter().take(MOST_FAULTS).collect();
        self.report
    }

    fn take(&mut self, text: &[u8]) {
        let Some(line) = Read::of(text) else {
            self.report.is_closed = false;
            return self.fault(FaultKind::NotALine);
        };
        self.follow(&line);
        let hash = hash_of(text);
        self.report.is_closed = line.kind == "close";
        match (&*line.kind, line.id, &line.seal) {
            ("begin", ..) => {
                self.begun.insert(line.n);
            }
            ("end", Some(id), _) => self.end(id),
            ("seal", _, Some(seal)) => self.seal(seal),
            ("seal", _, None) => self.fault(FaultKind::BadSeal {
                reason: "it is empty",
            }),
            _ => {}
        }
        self.last = Some((line.n, hash));
        self.before.push_back((line.n, hash));
        if self.before.len() > MOST_BACK {
            self.before.pop_front();
        }
    }

    fn end(&mut self, id: u64) {
        let has_begun = self.begun.remove(&id);
        // What began in a file that was not read may end here.
        let may_be_earlier = !self.report.has_beginning && self.is_before_first(id);
        if !has_begun && !may_be_earlier {
            self.fault(FaultKind::EndWithoutBegin { id });
        }
    }

    /// Whether the line of this number would be in a file before those that were read.
    fn is_before_first(&self, number: u64) -> bool {
        let first = self.last.map_or(number, |(last, _)| last + 2);
        number < first.saturating_sub(self.report.lines)
    }

    /// Compares the line with the one before.
    fn follow(&mut self, line: &Read) {
        match self.last {
            Some((number, hash)) => {
                if line.prev != hex(&hash) {
                    self.fault(FaultKind::NotAfter);
                }
                if line.n != number + 1 {
                    self.fault(FaultKind::Number {
                        found: line.n,
                        expected: number + 1,
                    });
                }
            }
            None => {
                let is_first = line.prev == hex(&NOTHING);
                self.report.has_beginning = is_first && line.n == 1;
                if is_first != (line.n == 1) {
                    self.fault(FaultKind::NotAfter);
                }
            }
        }
    }

    fn seal(&mut self, seal: &Seal) {
        let Some(key) = self.key else {
            self.report.unchecked_seals += 1;
            return;
        };
        let reason = match self.check(seal, key) {
            Ok(back) => {
                self.report.seals += 1;
                // The line of the seal itself is covered by no seal, and `lines` counts it.
                self.sealed = self.report.lines - 1 - back;
                return;
            }
            Err(reason) => reason,
        };
        self.fault(FaultKind::BadSeal { reason });
    }

    /// How many lines there are between what the seal covers and the seal.
    fn check(&self, seal: &Seal, key: &PublicKey) -> Result<u64, &'static str> {
        if seal.key != key.fingerprint().to_string() {
            return Err("another key made it");
        }
        let at = self.before.iter().rposition(|(n, _)| *n == seal.upto);
        let Some(at) = at else {
            return Err("the line that it covers up to is not there");
        };
        let (_, hash) = &self.before[at];
        if seal.hash != hex(hash) {
            return Err("the lines before it are others");
        }
        let malformed = "it is malformed";
        let scheme = seal.scheme.parse().map_err(|_| malformed)?;
        let bytes = unhex(&seal.signature).ok_or(malformed)?;
        let signature = Signature::new(scheme, bytes).map_err(|_| malformed)?;
        let signed = [SEAL_PREFIX, &statement(seal.upto, hash)].concat();
        key.verify(signed.as_bytes(), &signature)
            .map_err(|_| "the key did not make it")?;
        Ok((self.before.len() - 1 - at) as u64)
    }

    fn fault(&mut self, what: FaultKind) {
        self.report.fault_count += 1;
        if self.report.faults.len() < MOST_FAULTS {
            let line = self.report.lines;
            self.report.faults.push(Fault { line, what });
        }
    }
}

fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let (end, found) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), false),
        };
        reader.consume(end);
        if found {
            return Ok(());
        }
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let bytes = (0..text.len()).step_by(2);
    bytes
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}
