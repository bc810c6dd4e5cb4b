//! What can go wrong between a card and its user, as switches that a test sets while
//! everything runs.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::apdu::Status;
use crate::card::{Card, Shape};
use claviger_token::sync::lock;

/// One thing that goes wrong with one command.
#[derive(Clone)]
pub enum Fault {
    /// The card is taken away before it has done anything.
    RemoveBefore,
    /// The card does what it was told and is taken away before it can say so.
    RemoveAfter,
    /// The card loses its session first, as after a reset that the reader did not notice:
    /// no application is selected, no PIN verified.
    Reset,
    /// The card does nothing but answer this.
    Status(Status),
    /// The card does nothing, and these bytes are the reply, status word or not.
    Reply(Vec<u8>),
    /// Only so many bytes of the reply arrive, the status word counted. With none, to the
    /// reader it is as if the card had been out of it for a moment.
    Truncate(usize),
    /// The reply's data are longer by these bytes.
    Extend(Vec<u8>),
    /// The length of the reply's first element is larger than what there is.
    LieAboutLength,
    /// The reply's data come like this.
    Shape(Shape),
    /// The reply comes so much later.
    Delay(Duration),
    /// The reply, status word included, becomes another.
    Alter(Arc<dyn Fn(Vec<u8>) -> Vec<u8> + Send + Sync>),
}

impl Fault {
    /// [`Fault::Alter`].
    pub fn alter(change: impl Fn(Vec<u8>) -> Vec<u8> + Send + Sync + 'static) -> Fault {
        Fault::Alter(Arc::new(change))
    }
}

/// A fault and the commands that it happens to: at first, the next one.
#[derive(Clone)]
pub struct Rule {
    fault: Fault,
    instruction: Option<u8>,
    skip: usize,
    times: usize,
}

impl Rule {
    /// `fault`, with the next command.
    pub fn new(fault: Fault) -> Rule {
        Rule {
            fault,
            instruction: None,
            skip: 0,
            times: 1,
        }
    }

    /// Only commands with this instruction, see [`ins`](crate::ins). Each part of a chain
    /// is a command.
    pub fn on(mut self, instruction: u8) -> Rule {
        self.instruction = Some(instruction);
        self
    }

    /// Not the first `skip` of them.
    pub fn after(mut self, skip: usize) -> Rule {
        self.skip = skip;
        self
    }

    /// So many of them.
    pub fn times(mut self, times: usize) -> Rule {
        self.times = times;
        self
    }

    /// All of them, until [`Faults::clear`].
    pub fn always(self) -> Rule {
        self.times(usize::MAX)
    }

    /// Whether the fault happens to this command; counts.
    fn strikes(&mut self, apdu: &[u8]) -> bool {
        let fits = (self.instruction).is_none_or(|wanted| apdu.get(1) == Some(&wanted));
        if !fits || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

/// A command and what was answered, as they crossed the wire: PINs included, so nothing
/// for anything but tests.
#[derive(Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The command.
    pub command: Vec<u8>,
    /// The reply; none if the card was taken away.
    pub reply: Option<Vec<u8>>,
}

impl Exchange {
    /// The command's instruction.
    pub fn instruction(&self) -> Option<u8> {
        self.command.get(1).copied()
    }

    /// The reply's status word.
    pub fn status(&self) -> Option<Status> {
        let &status = self.reply.as_ref()?.last_chunk()?;
        Some(Status(u16::from_be_bytes(status)))
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exchange { command, reply } = self;
        match reply {
            Some(reply) => write!(f, "{command:02x?} -> {reply:02x?}"),
            None => write!(f, "{command:02x?} -> removed"),
        }
    }
}

/// The switches of one card, and what was said so far.
#[derive(Default)]
pub struct Faults {
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<Exchange>>,
}

impl Faults {
    /// The next command fails like this.
    pub fn next(&self, fault: Fault) {
        self.add(Rule::new(fault));
    }

    /// Adds a rule. Of several that fit a command the oldest is taken.
    pub fn add(&self, rule: Rule) {
        lock(&self.rules).push(rule);
    }

    /// Nothing goes wrong any more.
    pub fn clear(&self) {
        lock(&self.rules).clear();
    }

    /// Everything that was said, oldest first.
    pub fn log(&self) -> Vec<Exchange> {
        lock(&self.log).clone()
    }

    /// How many commands with this instruction came, parts of chains counted.
    pub fn count(&self, instruction: u8) -> usize {
        let log = lock(&self.log);
        log.iter()
            .filter(|exchange| exchange.instruction() == Some(instruction))
            .count()
    }

    /// Forgets what was said.
    pub fn clear_log(&self) {
        lock(&self.log).clear();
    }
}

/// What comes back from a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These bytes, after this time.
    Reply(Vec<u8>, Duration),
    /// Nothing: it was taken away, after this time.
    Removed(Duration),
}

/// What can be plugged in: the virtual YubiKey, or somebody else's card.
pub trait Smartcard: Send + 'static {
    /// The answer to reset.
    fn atr(&self) -> Vec<u8>;

    /// What a reset does, warm or cold.
    fn reset(&mut self);

    /// Carries out one command and gives its reply, status word included, and how much
    /// later it is to come. A card that has no say in a reply's shape gives its own.
    fn transmit(&mut self, apdu: &[u8], shape: Shape) -> (Vec<u8>, Duration);
}

impl Smartcard for Card {
    fn atr(&self) -> Vec<u8> {
        Card::atr(self).to_vec()
    }

    fn reset(&mut self) {
        Card::reset(self);
    }

    fn transmit(&mut self, apdu: &[u8], shape: Shape) -> (Vec<u8>, Duration) {
        (self.process_shaped(apdu, shape), self.take_wait())
    }
}

/// A card and its switches.
pub struct Device<C = Card> {
    card: Arc<Mutex<C>>,
    faults: Arc<Faults>,
}

impl<C> Clone for Device<C> {
    fn clone(&self) -> Self {
        Device {
            card: Arc::clone(&self.card),
            faults: Arc::clone(&self.faults),
        }
    }
}

impl<C: Smartcard> Device<C> {
    /// A card without faults.
    pub fn new(card: C) -> Self {
        Device {
            card: Arc::new(Mutex::new(card)),
            faults: Arc::default(),
        }
    }

    /// The card. It answers nobody else until the guard is gone.
    pub fn card(&self) -> MutexGuard<'_, C> {
        lock(&self.card)
    }

    /// The switches.
    pub fn faults(&self) -> &Arc<Faults> {
        &self.faults
    }

    /// Has the card carry out a command, with what goes wrong. It does not wait: the
    /// answer says how long it would take.
    pub fn transmit(&self, apdu: &[u8]) -> Answer {
        let strikes = |rule: &mut Rule| rule.strikes(apdu).then(|| rule.fault.clone());
        let fault = lock(&self.faults.rules).iter_mut().find_map(strikes);
        let answer = self.carry_out(apdu, fault);
        lock(&self.faults.log).push(Exchange {
            command: apdu.to_vec(),
            reply: match &answer {
                Answer::Reply(reply, _) => Some(reply.clone()),
                Answer::Removed(_) => None,
            },
        });
        answer
    }

    fn carry_out(&self, apdu: &[u8], fault: Option<Fault>) -> Answer {
        let mut card = self.card();
        if let Some(Fault::Reset) = fault {
            card.reset();
        }
        let shape = match fault {
            Some(Fault::RemoveBefore) => return Answer::Removed(Duration::ZERO),
            Some(Fault::Reply(bytes)) => return Answer::Reply(bytes, Duration::ZERO),
            Some(Fault::Status(status)) => {
                return Answer::Reply(status.0.to_be_bytes().to_vec(), Duration::ZERO);
            }
            Some(Fault::Shape(shape)) => shape,
            _ => Shape::AsAsked,
        };
        let (mut reply, mut time) = card.transmit(apdu, shape);
        let status = reply.len() - 2;
        match fault {
            Some(Fault::RemoveAfter) => return Answer::Removed(time),
            Some(Fault::Truncate(length)) => reply.truncate(length),
            Some(Fault::Extend(bytes)) => {
                reply.splice(status..status, bytes);
            }
            Some(Fault::LieAboutLength) if status >= 2 => match reply[1] {
                0x81 if status >= 3 => reply[2] = 0xff,
                0x82 if status >= 4 => reply[2] = 0xff,
                _ => reply[1] = 0x7f,
            },
            Some(Fault::Delay(delay)) => time += delay,
            Some(Fault::Alter(change)) => reply = change(reply),
            _ => {}
        }
        Answer::Reply(reply, time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::ins;

    const SELECT: &[u8] = &[0x00, 0xa4, 0x04, 0x00, 0x05, 0xa0, 0x00, 0x00, 0x03, 0x08];
    const VERSION: &[u8] = &[0x00, 0xfd, 0x00, 0x00];
    const OK: &[u8] = &[5, 7, 1, 0x90, 0x00];

    fn device() -> Device {
        let device = Device::new(Card::builder().build());
        device.transmit(SELECT);
        device.faults().clear_log();
        device
    }

    fn replied(device: &Device) -> Vec<u8> {
        match device.transmit(VERSION) {
            Answer::Reply(reply, _) => reply,
            Answer::Removed(_) => panic!("removed"),
        }
    }

    #[test]
    fn every_fault_does_what_it_says_once() {
        let device = device();
        let faults = [
            (Fault::Status(Status::INTERNAL), &[0x6f, 0x00][..]),
            (Fault::Reply(vec![1, 2, 3]), &[1, 2, 3]),
            (Fault::Truncate(1), &[5]),
            (Fault::Extend(vec![9; 2]), &[5, 7, 1, 9, 9, 0x90, 0x00]),
            (Fault::LieAboutLength, &[5, 0x7f, 1, 0x90, 0x00]),
            (Fault::Shape(Shape::Pieces(1)), &[5, 0x61, 2]),
            (Fault::Shape(Shape::WrongLe), &[0x6c, 3]),
            (Fault::alter(|_| vec![7]), &[7]),
        ];
        for (fault, expected) in faults {
            device.faults().next(fault);
            assert_eq!(replied(&device), expected);
            assert_eq!(replied(&device), OK);
        }
        let delay = Duration::from_millis(5);
        device.faults().next(Fault::Delay(delay));
        assert_eq!(device.transmit(VERSION), Answer::Reply(OK.into(), delay));
        device.faults().next(Fault::Reset);
        assert_eq!(replied(&device), [0x6d, 0x00]);
        assert_eq!(replied(&device), [0x6d, 0x00]);
        assert_eq!(device.faults().count(ins::GET_VERSION), 19);
    }

    #[test]
    fn a_card_is_removed_before_or_after_it_did_what_it_was_told() {
        let device = device();
        let wrong_pin = [&[0, 0x20, 0, 0x80, 8][..], &[0x30; 8]].concat();
        for (fault, tries) in [(Fault::RemoveBefore, 3), (Fault::RemoveAfter, 2)] {
            device.faults().next(fault);
            assert_eq!(device.transmit(&wrong_pin), Answer::Removed(Duration::ZERO));
            assert_eq!(device.card().pin_tries(), tries);
        }
        assert_eq!(device.faults().log().last().unwrap().status(), None);
    }

    #[test]
    fn a_rule_picks_its_commands() {
        let device = device();
        let rule = Rule::new(Fault::Status(Status::INTERNAL));
        device
            .faults()
            .add(rule.on(ins::GET_VERSION).after(1).times(2));
        device.transmit(SELECT);
        let seen: Vec<_> = (0..4).map(|_| replied(&device) == OK).collect();
        assert_eq!(seen, [true, false, false, true]);
        device.faults().add(Rule::new(Fault::Truncate(0)).always());
        assert_eq!(replied(&device), [0; 0]);
        assert_eq!(replied(&device), [0; 0]);
        device.faults().clear();
        assert_eq!(replied(&device), OK);
    }
}
