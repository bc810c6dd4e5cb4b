//! Transcripts: the requests to a driver, and what went over the wire for them, without secrets.
//!
//! A transcript is a file of JSON lines ([`Line`]). The first is the [`Head`]. A call of
//! the driver's interface begins with a `call` and ends with a `done`; between the two is
//! what the driver asked of the device, in order. Handles that are dropped (`close`,
//! `drop`) answer nothing, so there is no `done`.
//!
//! Secrets are overwritten with as many bytes `5a`: PINs, PUKs, management keys and values derived
//! from them, agreed secrets, RSA plaintexts, and the object in which a YubiKey keeps its
//! management key. A PIN is a number, 0 for the first, so that a different PIN shows.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;

use claviger_token::Pin;
use claviger_token::key::to_hex;
use claviger_token::sync::lock;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::HilError;

/// What a transcript is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The version of this format: 1.
    pub transcript: u32,
    /// The conformance check that was recorded.
    pub check: String,
    /// What became of it.
    pub outcome: String,
    /// The driver's scheme. Transcripts of `piv` can be replayed.
    pub kind: String,
    /// What reports call the device.
    pub device: String,
    /// Its firmware.
    pub firmware: String,
    /// The version of Claviger that was at work.
    pub claviger: String,
}

/// One line of a transcript, after the head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "line")]
#[allow(missing_docs, reason = "the fields are what the variants say")]
pub enum Line {
    /// The driver is asked for something.
    Call { name: String, with: Value },
    /// What came of it: `{"ok": …}` or `{"error": "Variant"}`.
    Done { result: Value },
    /// The driver asks for a PIN, and gets this one, or none.
    Pin { given: Option<usize> },
    /// The driver asks for the management key.
    ManagementKey { given: bool },
    /// The driver asks which devices there are.
    List { found: Vec<String> },
    /// The driver opens one, and cannot where something is lost. It is `present` where
    /// there is a card all the same.
    Connect {
        to: String,
        lost: Option<String>,
        #[serde(default, skip_serializing_if = "is_false")]
        present: bool,
    },
    /// A transaction that could not be begun.
    NotBegun {
        lost: String,
        #[serde(default, skip_serializing_if = "is_false")]
        present: bool,
    },
    /// A command and its reply, in hexadecimal.
    Command {
        command: String,
        reply: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lost: Option<String>,
        #[serde(default, skip_serializing_if = "is_false")]
        present: bool,
        #[serde(default, skip_serializing_if = "is_false")]
        command_hidden: bool,
        #[serde(default, skip_serializing_if = "is_false")]
        reply_hidden: bool,
    },
}

fn is_false(value: &bool) -> bool {
    !value
}

/// What stands for a secret byte.
pub(crate) const HIDDEN: u8 = 0x5a;

/// Counts the commands to one device, and keeps them while a tape is in.
#[derive(Default)]
pub struct Tap {
    commands: AtomicU64,
    tape: Mutex<Option<Tape>>,
}

#[derive(Default)]
struct Tape {
    lines: Vec<Line>,
    thread: Option<ThreadId>,
    several_threads: bool,
    pins: Vec<Pin>,
}

impl Tap {
    /// How many commands went over the wire so far.
    pub fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self) {
        self.commands.fetch_add(1, Ordering::Relaxed);
    }

    /// Puts in an empty tape.
    pub(crate) fn start(&self) {
        *lock(&self.tape) = Some(Tape::default());
    }

    /// What was recorded since; `None` if several threads were at work, whose order is
    /// nobody's.
    pub(crate) fn stop(&self) -> Option<Vec<Line>> {
        let tape = lock(&self.tape).take()?;
        (!tape.several_threads).then_some(tape.lines)
    }

    pub(crate) fn is_recording(&self) -> bool {
        lock(&self.tape).is_some()
    }

    pub(crate) fn write(&self, line: impl FnOnce() -> Line) {
        if let Some(tape) = &mut *lock(&self.tape) {
            tape.lines.push(line());
        }
    }

    pub(crate) fn call(&self, name: &str, with: impl FnOnce() -> Value) {
        if let Some(tape) = &mut *lock(&self.tape) {
            let thread = std::thread::current().id();
            tape.several_threads |= *tape.thread.get_or_insert(thread) != thread;
            tape.lines.push(Line::Call {
                name: name.into(),
                with: with(),
            });
        }
    }

    pub(crate) fn pin(&self, pin: Option<&Pin>) {
        if let Some(tape) = &mut *lock(&self.tape) {
            let given = pin.map(|pin| {
                let same = |known: &Pin| known.expose_secret() == pin.expose_secret();
                tape.pins.iter().position(same).unwrap_or_else(|| {
                    tape.pins.push(pin.clone());
                    tape.pins.len() - 1
                })
            });
            tape.lines.push(Line::Pin { given });
        }
    }
}

/// Writes a transcript.
///
/// # Errors
/// [`HilError::Unwritable`].
pub fn write(path: &Path, head: &Head, lines: &[Line]) -> Result<(), HilError> {
    let unwritable = |reason: String| HilError::Unwritable {
        path: path.into(),
        reason,
    };
    let json = |line: serde_json::Result<String>| line.map_err(|e| unwritable(e.to_string()));
    let mut text = json(serde_json::to_string(head))?;
    for line in lines {
        text.push('\n');
        text.push_str(&json(serde_json::to_string(line))?);
    }
    text.push('\n');
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, text))
        .map_err(|e| unwritable(e.to_string()))
}

/// Reads a transcript.
///
/// # Errors
/// [`HilError::BadReport`].
pub fn read(path: &Path) -> Result<(Head, Vec<Line>), HilError> {
    let bad = |reason: String| HilError::BadReport {
        path: path.into(),
        reason,
    };
    let text = fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let head = serde_json::from_str(head).map_err(|e| bad(format!("line 1: {e}")))?;
    let lines = rest.lines().enumerate().map(|(index, line)| {
        serde_json::from_str(line).map_err(|e| bad(format!("line {}: {e}", index + 2)))
    });
    Ok((head, lines.collect::<Result<_, _>>()?))
}

/// Overwrites what is secret in the commands to one PIV card and in its replies.
#[derive(Default)]
pub(crate) struct Redactor {
    /// The data of the chained commands so far.
    chain: Vec<u8>,
    /// Whether the reply to this command is secret, and the pieces that follow.
    reply: bool,
    /// Whether a piece of the secret reply was there already.
    begun: bool,
}

/// The object with a YubiKey's management key, if it is kept behind the PIN.
const PRINTED: [u8; 5] = [0x5c, 0x03, 0x5f, 0xc1, 0x09];

impl Redactor {
    /// The command without its secrets, and whether there were any.
    pub(crate) fn command(&mut self, apdu: &[u8]) -> (Vec<u8>, bool) {
        let &[class, instruction, p1, p2, ref rest @ ..] = apdu else {
            return (apdu.to_vec(), false);
        };
        let data = rest
            .split_first()
            .map_or(0, |(&length, data)| usize::from(length).min(data.len()));
        let data = 5..5 + data;
        let bytes = apdu.get(data.clone()).unwrap_or_default();
        if instruction != 0xc0 {
            self.chain.extend_from_slice(bytes);
            self.begun = false;
            self.reply = match (instruction, p2) {
                (0x87, 0x9b) => true,
                (0x87, _) => opens(p1, &self.chain),
                (0xcb, _) => self.chain == PRINTED,
                _ => false,
            };
        }
        let hidden = !bytes.is_empty()
            && match (instruction, p2) {
                // VERIFY, CHANGE REFERENCE DATA, RESET RETRY COUNTER, IMPORT, SET
                // MANAGEMENT KEY; authentication with the management key.
                (0x20 | 0x24 | 0x2c | 0xfe | 0xff, _) | (0x87, 0x9b) => true,
                (0xdb, _) => self.chain.starts_with(&PRINTED),
                _ => false,
            };
        if class & 0x10 == 0 && instruction != 0xc0 {
            self.chain.clear();
        }
        let mut shown = apdu.to_vec();
        if hidden && let Some(bytes) = shown.get_mut(data) {
            bytes.fill(HIDDEN);
        }
        (shown, hidden)
    }

    /// The reply to the last command without its secrets, and whether there were any.
    pub(crate) fn reply(&mut self, reply: &[u8]) -> (Vec<u8>, bool) {
        if !reply.ends_with(&[0x90, 0x00]) {
            // A chain that is refused has ended.
            self.chain.clear();
        }
        let length = reply.len().saturating_sub(2);
        if !self.reply || length == 0 {
            return (reply.to_vec(), false);
        }
        let head = if self.begun { 0 } else { header(reply) };
        self.begun = true;
        let mut shown = reply.to_vec();
        if let Some(bytes) = shown.get_mut(head.min(length)..length) {
            bytes.fill(HIDDEN);
        }
        (shown, true)
    }
}

/// Whether GENERAL AUTHENTICATE agrees a secret or opens something, and does not sign.
fn opens(algorithm: u8, template: &[u8]) -> bool {
    let inside = template.get(header_of_one(template)..).unwrap_or_default();
    let mut rest = inside;
    while let [tag, ..] = *rest {
        let head = header_of_one(rest);
        match tag {
            // An exponentiation.
            0x85 => return true,
            // RSA both signs and opens. What is to be signed is padded (RFC 8017 §9.2).
            0x81 if matches!(algorithm, 0x05 | 0x06 | 0x07 | 0x16) => {
                let challenge = rest.get(head..).unwrap_or_default();
                return !challenge.starts_with(&[0x00, 0x01, 0xff]);
            }
            _ => {}
        }
        let length = value_length(rest);
        rest = rest.get(head + length..).unwrap_or_default();
    }
    false
}

/// The length of the tags and lengths before a secret: of a template (7C) and of what is
/// in it, or of an object.
fn header(reply: &[u8]) -> usize {
    let outer = header_of_one(reply);
    match reply {
        [0x7c, ..] => outer + header_of_one(reply.get(outer..).unwrap_or_default()),
        _ => outer,
    }
}

/// One byte of tag, and the length.
fn header_of_one(bytes: &[u8]) -> usize {
    match bytes.get(1) {
        Some(0x81) => 3,
        Some(0x82) => 4,
        _ => 2,
    }
}

fn value_length(bytes: &[u8]) -> usize {
    match bytes {
        [_, 0x81, length, ..] => usize::from(*length),
        [_, 0x82, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
        [_, length, ..] => usize::from(*length),
        _ => 0,
    }
}

/// Bytes as a transcript has them: those that are all the same are counted.
pub(crate) fn shown(bytes: &[u8]) -> Value {
    match bytes {
        [first, rest @ ..] if bytes.len() > 64 && rest.iter().all(|byte| byte == first) => {
            serde_json::json!({ "byte": first, "times": bytes.len() })
        }
        _ => Value::String(to_hex(bytes)),
    }
}

/// The bytes that a transcript shows.
pub(crate) fn meant(value: &Value) -> Option<Vec<u8>> {
    if let Some(text) = value.as_str() {
        return claviger_token::key::from_hex(text);
    }
    let byte = u8::try_from(value.get("byte")?.as_u64()?).ok()?;
    let times = usize::try_from(value.get("times")?.as_u64()?).ok()?;
    // Nothing that is signed is longer.
    (times <= 1 << 24).then(|| vec![byte; times])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(apdus: &[(&[u8], &[u8])]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut redactor = Redactor::default();
        let one = |(command, reply): &(&[u8], &[u8])| {
            (redactor.command(command).0, redactor.reply(reply).0)
        };
        apdus.iter().map(one).collect()
    }

    #[test]
    fn pins_and_keys_are_overwritten() {
        for header in [
            [0x00, 0x20, 0x00, 0x80],
            [0x00, 0x24, 0x00, 0x80],
            [0x00, 0x2c, 0x00, 0x80],
            [0x00, 0xff, 0xff, 0xff],
            [0x10, 0xfe, 0x07, 0x9a],
            [0x00, 0x87, 0x03, 0x9b],
        ] {
            let command = [&header[..], &[3, 1, 2, 3]].concat();
            let shown = &seen(&[(&command, &[0x90, 0x00])])[0];
            assert_eq!(shown.0, [&header[..], &[3, 0x5a, 0x5a, 0x5a]].concat());
            assert_eq!(shown.1, [0x90, 0x00]);
        }
        // How many tries are left.
        let ask = [0x00, 0x20, 0x00, 0x80];
        assert_eq!(seen(&[(&ask, &[0x63, 0xc3])])[0].1, [0x63, 0xc3]);
    }

    #[test]
    fn agreed_secrets_are_overwritten_in_all_their_pieces_and_signatures_are_not() {
        let agree = [0x00, 0x87, 0x11, 0x82, 6, 0x7c, 4, 0x82, 0, 0x85, 0];
        let first = [0x7c, 6, 0x82, 4, 1, 2, 0x61, 2];
        let more = [0x00, 0xc0, 0, 0];
        let shown = seen(&[(&agree, &first), (&more, &[3, 4, 0x90, 0])]);
        assert_eq!(shown[0].1, [0x7c, 6, 0x82, 4, 0x5a, 0x5a, 0x61, 2]);
        assert_eq!(shown[1].1, [0x5a, 0x5a, 0x90, 0]);

        let sign = [0x00, 0x87, 0x11, 0x82, 7, 0x7c, 5, 0x82, 0, 0x81, 1, 9];
        let shown = seen(&[(&sign, &[0x7c, 3, 0x82, 1, 7, 0x90, 0])]);
        assert_eq!(shown[0].1, [0x7c, 3, 0x82, 1, 7, 0x90, 0]);
    }

    #[test]
    fn what_rsa_opens_is_overwritten_and_what_it_signs_is_not() {
        for (challenge, hidden) in [([0x00, 0x01, 0xff], false), ([0x00, 0x02, 0xff], true)] {
            // In two parts, as it does not fit into one.
            let begin = [0x10, 0x87, 0x07, 0x82, 5, 0x7c, 7, 0x82, 0, 0x81];
            let end = [&[0x00, 0x87, 0x07, 0x82, 4, 3][..], &challenge].concat();
            let reply = [0x7c, 3, 0x82, 1, 7, 0x90, 0];
            let shown = seen(&[(&begin, &[0x90, 0]), (&end, &reply)]);
            assert_eq!(shown[0].0, begin);
            assert_eq!(shown[1].0, end);
            assert_eq!(shown[1].1 != reply, hidden);
        }
    }

    #[test]
    fn a_management_key_that_the_card_keeps_is_overwritten() {
        let read = [&[0x00, 0xcb, 0x3f, 0xff, 5][..], &PRINTED, &[0]].concat();
        let shown = seen(&[(&read, &[0x53, 2, 8, 9, 0x90, 0])]);
        assert_eq!(shown[0].1, [0x53, 2, 0x5a, 0x5a, 0x90, 0]);
        let write = [&[0x10, 0xdb, 0x3f, 0xff, 6][..], &PRINTED, &[0x77]].concat();
        let rest = [0x00, 0xdb, 0x3f, 0xff, 1, 0x78];
        let shown = seen(&[(&write, &[0x90, 0]), (&rest, &[0x90, 0])]);
        assert_eq!(shown[0].0[5..], [0x5a; 6]);
        assert_eq!(shown[1].0[5..], [0x5a; 1]);
    }
}
