//! A client of the card, and OpenSSL as a second opinion.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use claviger_virtual_yubikey::{Card, ManagementAlgorithm, ManagementKey, Status, ins};

/// Drives a card directly. Commands are short, with chaining, as old clients send them.
pub(crate) struct Client(pub(crate) Card);

impl Client {
    pub(crate) fn new(card: Card) -> Client {
        let mut client = Client(card);
        client.select();
        client
    }

    pub(crate) fn select(&mut self) {
        let reply = self.send(ins::SELECT, 0x04, 0x00, &[0xa0, 0, 0, 3, 8]);
        assert_eq!(reply.unwrap()[..2], [0x61, 0x11]);
    }

    /// Sends a command, in a chain where it is long, and collects its reply.
    pub(crate) fn send(&mut self, ins: u8, p1: u8, p2: u8, data: &[u8]) -> Result<Vec<u8>, Status> {
        let mut pieces = data.chunks(255).peekable();
        let mut answer = None;
        while let Some(piece) = pieces.next() {
            let class = if pieces.peek().is_some() { 0x10 } else { 0 };
            let length = u8::try_from(piece.len()).unwrap();
            let apdu = [&[class, ins, p1, p2, length][..], piece].concat();
            answer = Some(self.raw(&apdu));
        }
        let (mut reply, mut status) = answer.unwrap_or_else(|| self.raw(&[0, ins, p1, p2]));
        while status.0 & 0xff00 == 0x6100 {
            let (more, next) = self.raw(&[0, ins::GET_RESPONSE, 0, 0, 0]);
            reply.extend(more);
            status = next;
        }
        if status == Status::OK {
            Ok(reply)
        } else {
            assert!(reply.is_empty());
            Err(status)
        }
    }

    /// The same in one command of extended length.
    pub(crate) fn send_extended(
        &mut self,
        ins: u8,
        p1: u8,
        p2: u8,
        data: &[u8],
    ) -> (Vec<u8>, Status) {
        let length = u16::try_from(data.len()).unwrap().to_be_bytes();
        self.raw(&[&[0, ins, p1, p2, 0][..], &length, data, &[0, 0]].concat())
    }

    pub(crate) fn raw(&mut self, apdu: &[u8]) -> (Vec<u8>, Status) {
        let mut reply = self.0.process(apdu);
        let status = reply.split_off(reply.len() - 2);
        (reply, Status(u16::from_be_bytes([status[0], status[1]])))
    }

    pub(crate) fn verify(&mut self, pin: &str) -> Result<(), Status> {
        self.send(ins::VERIFY, 0, 0x80, &padded(pin)).map(drop)
    }

    pub(crate) fn tries(&mut self) -> Status {
        self.send(ins::VERIFY, 0, 0x80, &[])
            .err()
            .unwrap_or(Status::OK)
    }

    /// Mutual authentication.
    pub(crate) fn manage(&mut self, key: &ManagementKey) -> Result<(), Status> {
        let p1 = key.algorithm() as u8;
        let witness = self.send(ins::AUTHENTICATE, p1, 0x9b, &[0x7c, 2, 0x80, 0])?;
        let size = key.algorithm().block_size();
        let length = u8::try_from(size).unwrap();
        assert_eq!(witness[..4], [0x7c, length + 2, 0x80, length]);
        let witness = key.decrypt(&witness[4..]).unwrap();
        let challenge = vec![0x5a; size];
        let answer = [
            &[0x7c, 2 * length + 4, 0x80, length][..],
            &witness,
            &[0x81, length],
            &challenge,
        ]
        .concat();
        let reply = self.send(ins::AUTHENTICATE, p1, 0x9b, &answer)?;
        assert_eq!(reply[..4], [0x7c, length + 2, 0x82, length]);
        assert_eq!(reply[4..], key.encrypt(&challenge).unwrap());
        Ok(())
    }

    pub(crate) fn manage_default(&mut self) {
        let algorithm = self.0.firmware().management[0];
        let key = ManagementKey::new(algorithm, &ManagementKey::DEFAULT).unwrap();
        self.manage(&key).unwrap();
    }

    /// Whatever the management key has become, opens the card with the one in use.
    pub(crate) fn manage_opened(&mut self) {
        let key = self.0.management_key().clone();
        self.manage(&key).unwrap();
    }

    pub(crate) fn generate(
        &mut self,
        slot: u8,
        algorithm: u8,
        policies: &[u8],
    ) -> Result<Vec<u8>, Status> {
        let template = [&[0x80, 1, algorithm][..], policies].concat();
        self.send(ins::GENERATE, 0, slot, &tlv(&[0xac], &template))
    }

    pub(crate) fn sign(
        &mut self,
        slot: u8,
        algorithm: u8,
        challenge: &[u8],
    ) -> Result<Vec<u8>, Status> {
        self.authenticate(slot, algorithm, 0x81, challenge)
    }

    pub(crate) fn agree(
        &mut self,
        slot: u8,
        algorithm: u8,
        peer: &[u8],
    ) -> Result<Vec<u8>, Status> {
        self.authenticate(slot, algorithm, 0x85, peer)
    }

    fn authenticate(
        &mut self,
        slot: u8,
        algorithm: u8,
        tag: u8,
        data: &[u8],
    ) -> Result<Vec<u8>, Status> {
        let inner = [tlv(&[0x82], &[]), tlv(&[tag], data)].concat();
        let reply = self.send(ins::AUTHENTICATE, algorithm, slot, &tlv(&[0x7c], &inner))?;
        Ok(value(value(&reply, &[0x7c]), &[0x82]).to_vec())
    }

    pub(crate) fn put(&mut self, id: &[u8], content: &[u8]) -> Result<(), Status> {
        let data = [tlv(&[0x5c], id), tlv(&[0x53], content)].concat();
        self.send(ins::PUT_DATA, 0x3f, 0xff, &data).map(drop)
    }

    pub(crate) fn get(&mut self, id: &[u8]) -> Result<Vec<u8>, Status> {
        self.send(ins::GET_DATA, 0x3f, 0xff, &tlv(&[0x5c], id))
    }
}

pub(crate) fn padded(pin: &str) -> [u8; 8] {
    let mut padded = [0xff; 8];
    padded[..pin.len()].copy_from_slice(pin.as_bytes());
    padded
}

pub(crate) fn default_key(algorithm: ManagementAlgorithm) -> ManagementKey {
    ManagementKey::new(algorithm, &ManagementKey::DEFAULT).unwrap()
}

pub(crate) fn tlv(tag: &[u8], value: &[u8]) -> Vec<u8> {
    let length = match value.len() {
        length @ 0..=0x7f => vec![length as u8],
        length @ 0x80..=0xff => vec![0x81, length as u8],
        length => vec![0x82, (length >> 8) as u8, length as u8],
    };
    [tag, &length, value].concat()
}

/// The value of the element with which `bytes` begins.
pub(crate) fn value<'a>(bytes: &'a [u8], tag: &[u8]) -> &'a [u8] {
    let rest = bytes
        .strip_prefix(tag)
        .unwrap_or_else(|| panic!("no {tag:02x?} in {bytes:02x?}"));
    let (length, start) = match rest[0] {
        0x81 => (usize::from(rest[1]), 2),
        0x82 => (usize::from(rest[1]) << 8 | usize::from(rest[2]), 3),
        length => (usize::from(length), 1),
    };
    &rest[start..start + length]
}

pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

/// A folder with files for OpenSSL.
pub(crate) struct OpenSsl(tempfile::TempDir);

impl OpenSsl {
    pub(crate) fn new() -> OpenSsl {
        OpenSsl(tempfile::tempdir().unwrap())
    }

    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Runs `openssl` in the folder; the answer is its output if it was content.
    pub(crate) fn run(&self, arguments: &str) -> Result<Vec<u8>, String> {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .expect("openssl is not installed: run `cargo xtask setup`");
        if output.status.success() {
            Ok(output.stdout)
        } else {
            let errors = [output.stdout, output.stderr].concat();
            Err(String::from_utf8_lossy(&errors).into_owned())
        }
    }

    pub(crate) fn pem(&self, name: &str, label: &str, der: &[u8]) {
        self.file("der", der);
        let body = self.run("base64 -in der").unwrap();
        let text = [
            format!("-----BEGIN {label}-----\n").as_bytes(),
            &body,
            format!("-----END {label}-----\n").as_bytes(),
        ]
        .concat();
        self.file(name, &text);
    }
}
