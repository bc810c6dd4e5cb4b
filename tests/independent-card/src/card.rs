//! `piv-authenticator` behind the commands that a reader sends.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a fixture that fails is a test that fails"
)]

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use claviger_virtual_yubikey::{Shape, Smartcard};
use iso7816::{Command, Status};
use piv_authenticator::{Authenticator, Client, Options};
use rand_core::{OsRng, RngCore as _};
use tempfile::TempDir;

use crate::platform::power_on;

/// The longest command, its parts put together, and the longest reply.
const LONGEST: usize = 7609;

/// Of a contact card that says nothing about itself.
const ATR: &[u8] = &[
    0x3b, 0x95, 0x13, 0x81, 0x01, 0x80, 0x73, 0xff, 0x01, 0x00, 0x0b,
];

/// A card as it is delivered: PIN 123456, PUK 12345678.
pub struct Card {
    /// What it stores.
    folder: TempDir,
    guid: [u8; 16],
    power: Option<Power>,
    /// The parts of a chained command so far.
    chain: Option<Command<LONGEST>>,
    /// What GET RESPONSE is to give.
    rest: Vec<u8>,
}

/// A card that runs, until this is dropped.
struct Power {
    commands: Option<Sender<Box<Command<LONGEST>>>>,
    replies: Receiver<(Vec<u8>, u16)>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Card {
    /// A new one, with a name of its own.
    #[allow(clippy::new_without_default, reason = "no two are the same")]
    pub fn new() -> Card {
        let mut guid = [0; 16];
        OsRng.fill_bytes(&mut guid);
        Card {
            folder: TempDir::new().unwrap(),
            guid,
            power: None,
            chain: None,
            rest: Vec::new(),
        }
    }

    /// The GUID in its CHUID, which is its name. It has no serial, or rather it has the
    /// same as all others.
    pub fn guid(&self) -> [u8; 16] {
        self.guid
    }

    fn receive(&mut self, apdu: &[u8]) -> (Vec<u8>, u16) {
        const GET_RESPONSE: u8 = 0xc0;
        let Ok(command) = Command::<LONGEST>::try_from(apdu) else {
            return (Vec::new(), Status::WrongLength.into());
        };
        if apdu[1] == GET_RESPONSE && !self.rest.is_empty() {
            return self.piece(Vec::new(), command.expected());
        }
        self.rest.clear();
        let whole = match self.chain.take() {
            None => command,
            Some(mut chain) => match chain.extend_from_command(&command) {
                Ok(()) => chain,
                Err(_) => return (Vec::new(), Status::WrongLength.into()),
            },
        };
        if whole.class().chain().not_the_last() {
            self.chain = Some(whole);
            return (Vec::new(), Status::Success.into());
        }
        let expected = whole.expected();
        let (reply, status) = self.power().ask(whole);
        if status != Status::Success.into() {
            return (reply, status);
        }
        self.piece(reply, expected)
    }

    /// As much of a reply as is asked for, or fits into a short one.
    fn piece(&mut self, reply: Vec<u8>, expected: usize) -> (Vec<u8>, u16) {
        self.rest.extend(reply);
        let room = if expected == 0 { 256 } else { expected };
        let later = self.rest.split_off(room.min(self.rest.len()));
        let now = std::mem::replace(&mut self.rest, later);
        match self.rest.len() {
            0 => (now, Status::Success.into()),
            left => (now, 0x6100 | u16::try_from(left).unwrap_or(0xff).min(0xff)),
        }
    }

    fn power(&mut self) -> &Power {
        let folder = self.folder.path();
        self.power
            .get_or_insert_with(|| Power::on(folder.to_owned(), self.guid))
    }
}

impl Power {
    fn on(folder: PathBuf, guid: [u8; 16]) -> Power {
        let (commands, incoming) = channel();
        let (outgoing, replies) = channel();
        // The platform's tables are on the stack.
        let thread = thread::Builder::new().stack_size(16 << 20);
        let thread = thread.spawn(move || {
            power_on(&folder, |client| serve(client, guid, &incoming, &outgoing));
        });
        Power {
            commands: Some(commands),
            replies,
            thread: Some(thread.unwrap()),
        }
    }

    fn ask(&self, command: Command<LONGEST>) -> (Vec<u8>, u16) {
        let commands = self.commands.as_ref().unwrap();
        let sent = commands.send(Box::new(command)).is_ok();
        let reply = self.replies.recv().ok().filter(|_| sent);
        reply.unwrap_or_else(|| {
            (
                Vec::new(),
                Status::UnspecifiedPersistentExecutionError.into(),
            )
        })
    }
}

impl Drop for Power {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic of its own was shown already.
            let _ = thread.join();
        }
    }
}

fn serve(
    client: impl Client,
    guid: [u8; 16],
    commands: &Receiver<Box<Command<LONGEST>>>,
    replies: &Sender<(Vec<u8>, u16)>,
) {
    let mut card = Authenticator::new(client, Options::new().uuid(Some(guid)));
    for command in commands {
        let mut reply = heapless::Vec::<u8, LONGEST>::new();
        let status = match card.respond(command.as_view(), &mut reply) {
            Ok(()) => Status::Success,
            Err(status) => status,
        };
        let data = match status {
            Status::Success => reply.to_vec(),
            _ => Vec::new(),
        };
        if replies.send((data, status.into())).is_err() {
            return;
        }
    }
}

impl Smartcard for Card {
    fn atr(&self) -> Vec<u8> {
        ATR.to_vec()
    }

    fn reset(&mut self) {
        self.power = None;
        self.chain = None;
        self.rest.clear();
    }

    fn transmit(&mut self, apdu: &[u8], _: Shape) -> (Vec<u8>, Duration) {
        let (mut reply, status) = self.receive(apdu);
        reply.extend(status.to_be_bytes());
        (reply, Duration::ZERO)
    }
}
