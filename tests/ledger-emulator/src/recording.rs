//! What the real Ethereum app said.

use std::sync::{Arc, Mutex};
use std::thread;

use serde::Deserialize;

use crate::device::Device;
use crate::serve::Server;
use crate::{lock, reply};

/// Exchanges recorded from the real Ethereum app 1.23.0-dev under [`SEED`](crate::SEED).
const ETHEREUM: &str = include_str!("../data/ledger-ethereum.json");

/// A device that knows recorded exchanges and no others. It fails the test, when it is
/// dropped, if it was asked for another.
///
/// ```no_run
/// let recording = claviger_ledger_emulator::Recording::ethereum();
/// let name_and_version = recording.answer(&[0xb0, 1, 0, 0, 0]);
/// let server = recording.serve();
/// ```
pub struct Recording {
    tape: Arc<Mutex<Tape>>,
}

/// One recorded exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What it shows.
    pub name: String,
    /// What was asked.
    pub apdu: Vec<u8>,
    /// Data and status word.
    pub reply: Vec<u8>,
}

struct Tape {
    exchanges: Vec<Exchange>,
    /// The exchange that was asked for last.
    last: Option<usize>,
    unexpected: Vec<Vec<u8>>,
}

/// The status word for a question that is not in the recording: no app gives it.
const NOT_RECORDED: u16 = 0x6f42;

impl Recording {
    /// The recorded exchanges of the Ethereum app.
    pub fn ethereum() -> Recording {
        #[derive(Deserialize)]
        struct File {
            exchanges: Vec<Line>,
        }
        #[derive(Deserialize)]
        struct Line {
            name: String,
            apdu: String,
            data: String,
            sw: String,
        }
        let file: File = serde_json::from_str(ETHEREUM).unwrap();
        let exchanges = (file.exchanges.into_iter())
            .map(|line| Exchange {
                name: line.name,
                apdu: from_hex(&line.apdu),
                reply: from_hex(&(line.data + &line.sw)),
            })
            .collect();
        Recording {
            tape: Arc::new(Mutex::new(Tape {
                exchanges,
                last: None,
                unexpected: Vec::new(),
            })),
        }
    }

    /// All that is recorded, in its order.
    pub fn exchanges(&self) -> Vec<Exchange> {
        lock(&self.tape).exchanges.clone()
    }

    /// What the app answered to this APDU: data and status word; 6F42 if that is not
    /// recorded.
    pub fn answer(&self, apdu: &[u8]) -> Vec<u8> {
        lock(&self.tape).answer(apdu)
    }

    /// [`Recording::answer`] for [`Usb::plug`](crate::Usb::plug) and [`Server::start`].
    pub fn answerer(&self) -> impl Device + use<> {
        let tape = Arc::clone(&self.tape);
        move |apdu: &[u8]| lock(&tape).answer(apdu)
    }

    /// The same device behind a TCP port.
    pub fn serve(&self) -> Server {
        Server::start(self.answerer())
    }

    /// The APDUs that are not recorded, and forgets them: for them the test does not
    /// fail any more.
    pub fn take_unexpected(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut lock(&self.tape).unexpected)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let unexpected = self.take_unexpected();
        if unexpected.is_empty() || thread::panicking() {
            return;
        }
        let mut text = String::from("the device was asked what is not in the recording:\n");
        for apdu in &unexpected {
            text += &format!("  {}\n", to_hex(apdu));
        }
        text += "in the recording are:\n";
        for Exchange { name, apdu, .. } in self.exchanges() {
            text += &format!("  {} ({name})\n", to_hex(&apdu));
        }
        panic!("{text}");
    }
}

impl Tape {
    fn answer(&mut self, apdu: &[u8]) -> Vec<u8> {
        let found = (self.exchanges.iter()).position(|exchange| exchange.apdu == apdu);
        // The rest of a message only has a meaning after its beginning.
        let continues = matches!(apdu, [0xe0, 0x08, 0x80, ..]);
        let follows = |index: usize| self.last.is_some_and(|last| last + 1 == index);
        match found {
            Some(index) if !continues || follows(index) => {
                self.last = found;
                self.exchanges[index].reply.clone()
            }
            _ => {
                self.last = None;
                self.unexpected.push(apdu.to_vec());
                reply(&[], NOT_RECORDED)
            }
        }
    }
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::serve::exchange;

    #[test]
    fn everything_recorded_is_answered_in_process_and_over_tcp() {
        let recording = Recording::ethereum();
        let server = recording.serve();
        for recorded in recording.exchanges() {
            assert_eq!(recording.answer(&recorded.apdu), recorded.reply);
        }
        for recorded in recording.exchanges() {
            let answer = exchange(server.address(), &recorded.apdu).unwrap();
            assert_eq!(answer, recorded.reply, "{}", recorded.name);
        }
    }

    #[test]
    #[should_panic(expected = "not in the recording:\n  e002000000\n")]
    fn another_question_fails_the_test() {
        let recording = Recording::ethereum();
        let server = recording.serve();
        let answer = exchange(server.address(), &[0xe0, 2, 0, 0, 0]).unwrap();
        assert_eq!(answer, [0x6f, 0x42]);
    }

    #[test]
    fn the_end_of_a_message_without_its_beginning_is_unexpected() {
        let recording = Recording::ethereum();
        let exchanges = recording.exchanges();
        let chunk = (exchanges.iter())
            .find(|exchange| exchange.name.ends_with("chunk1"))
            .unwrap();
        recording.answer(&chunk.apdu);
        assert_eq!(recording.take_unexpected(), slice::from_ref(&chunk.apdu));
    }
}
