//! The gate between the PIV driver and the cards: it counts and records commands, and blocks
//! writes to cards that are not listed.

use std::sync::Arc;

use claviger_piv::apdu::{Lost, Transport};
use claviger_piv::reader::{Link, Readers, Unreachable};
use claviger_token::Watch;
use claviger_token::key::to_hex;

use crate::transcript::{Line, Redactor, Tap};

/// Which commands reach the cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Those that read, and no others.
    ReadOnly,
    /// All.
    Open,
}

impl Gate {
    /// Whether a command may pass. What is not known to read does not.
    fn lets(self, apdu: &[u8]) -> bool {
        match (self, apdu) {
            (Gate::Open, _) => true,
            // SELECT, GET RESPONSE, GET DATA, GET METADATA, GET SERIAL, ATTEST, GET
            // VERSION.
            (_, [_, 0xa4 | 0xc0 | 0xcb | 0xf7..=0xf9 | 0xfd, ..]) => true,
            // VERIFY without a PIN: how many tries are left.
            (_, [_, 0x20, _, _] | [_, 0x20, _, _, 0]) => true,
            // The serial, in the OTP application of a YubiKey 4.
            (_, [_, 0x01, 0x10, ..]) => true,
            _ => false,
        }
    }
}

/// Readers, through a gate and past a tap. The readers of other devices are not seen.
#[derive(Clone)]
pub(crate) struct Tapped {
    pub(crate) inner: Arc<dyn Readers>,
    pub(crate) hidden: Arc<[String]>,
    pub(crate) gate: Gate,
    pub(crate) tap: Arc<Tap>,
}

impl Readers for Tapped {
    fn list(&self) -> Result<Vec<String>, Unreachable> {
        let mut found = self.inner.list()?;
        found.retain(|reader| !self.hidden.contains(reader));
        self.tap.write(|| Line::List {
            found: found.clone(),
        });
        Ok(found)
    }

    fn connect(&self, reader: &str) -> Result<Box<dyn Link>, Lost> {
        let link = self.inner.connect(reader);
        self.tap.write(|| Line::Connect {
            to: reader.into(),
            lost: link.as_ref().err().map(|lost| lost.reason.clone()),
            present: link.as_ref().is_err_and(|lost| lost.present),
        });
        Ok(Box::new(TappedLink {
            inner: link?,
            gate: self.gate,
            tap: Arc::clone(&self.tap),
            redactor: Redactor::default(),
        }))
    }

    fn watch(&self) -> Box<dyn Watch> {
        self.inner.watch()
    }
}

struct TappedLink {
    inner: Box<dyn Link>,
    gate: Gate,
    tap: Arc<Tap>,
    redactor: Redactor,
}

/// A way to a card, or none.
type Way<'a> = Result<Box<dyn Transport + 'a>, Lost>;

impl TappedLink {
    fn way<'a>(&'a mut self, begin: fn(&'a mut dyn Link) -> Way<'a>) -> Way<'a> {
        let TappedLink {
            inner,
            gate,
            tap,
            redactor,
        } = self;
        match begin(&mut **inner) {
            Ok(inner) => Ok(Box::new(TappedTransport {
                inner,
                gate: *gate,
                tap,
                redactor,
            })),
            Err(lost) => {
                tap.write(|| Line::NotBegun {
                    lost: lost.reason.clone(),
                    present: lost.present,
                });
                Err(lost)
            }
        }
    }
}

impl Link for TappedLink {
    fn begin(&mut self) -> Result<Box<dyn Transport + '_>, Lost> {
        self.way(|link| link.begin())
    }

    fn alone(&mut self) -> Result<Box<dyn Transport + '_>, Lost> {
        self.way(|link| link.alone())
    }
}

struct TappedTransport<'a> {
    inner: Box<dyn Transport + 'a>,
    gate: Gate,
    tap: &'a Tap,
    redactor: &'a mut Redactor,
}

impl Transport for TappedTransport<'_> {
    fn transmit(&mut self, apdu: &[u8]) -> Result<Vec<u8>, Lost> {
        if !self.gate.lets(apdu) {
            return Err(Lost::unusable("the bench only reads this card"));
        }
        self.tap.count();
        let answer = self.inner.transmit(apdu);
        if self.tap.is_recording() {
            let (command, command_hidden) = self.redactor.command(apdu);
            let reply = answer.as_ref().ok().map(|reply| self.redactor.reply(reply));
            self.tap.write(|| Line::Command {
                command: to_hex(&command),
                reply: reply.as_ref().map(|(reply, _)| to_hex(reply)),
                lost: answer.as_ref().err().map(|lost| lost.reason.clone()),
                present: answer.as_ref().is_err_and(|lost| lost.present),
                command_hidden,
                reply_hidden: reply.is_some_and(|(_, hidden)| hidden),
            });
        }
        answer
    }

    fn reset(self: Box<Self>) -> Result<(), Lost> {
        self.inner.reset()
    }
}

/// One of several readers.
#[derive(Clone)]
pub(crate) struct Only {
    pub(crate) inner: Arc<dyn Readers>,
    pub(crate) reader: String,
}

impl Readers for Only {
    fn list(&self) -> Result<Vec<String>, Unreachable> {
        let mut found = self.inner.list()?;
        found.retain(|reader| *reader == self.reader);
        Ok(found)
    }

    fn connect(&self, reader: &str) -> Result<Box<dyn Link>, Lost> {
        self.inner.connect(reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_nothing_through_that_could_write_or_costs_a_try() {
        let lets = |apdu: &[u8]| Gate::ReadOnly.lets(apdu);
        let mut passing: Vec<u8> = (0..=255)
            .filter(|&ins| lets(&[0, ins, 0, 0, 1, 0]))
            .collect();
        passing.sort_unstable();
        assert_eq!(passing, [0xa4, 0xc0, 0xcb, 0xf7, 0xf8, 0xf9, 0xfd]);
        assert!(lets(&[0, 0x20, 0, 0x80]));
        assert!(!lets(&[0, 0x20, 0, 0x80, 8, 1, 2, 3, 4, 5, 6, 7, 8]));
        // A VERIFY that takes the PIN's rights back is harmless, but nobody needs it.
        assert!(!lets(&[0, 0x20, 0xff, 0x80, 1, 0]));
        assert!(!lets(&[]));
    }
}
