//! Virtual YubiKeys in readers of this process, without PC/SC.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use claviger_piv::PivDriver;
use claviger_piv::apdu::{Lost, Transport};
use claviger_piv::reader::{Link, Readers, Unreachable};
use claviger_token::sync::lock;
use claviger_token::{Access, Call, Detail, Driver, Error, FixedPin, SlotInfo, TokenInfo};
use claviger_virtual_yubikey::{
    Answer, Builder, Card, Device, Fault, Firmware, ROOT, Rule, Status, ins, object,
};

pub(crate) const PIN: &str = "246802";
/// The management key of cards as they are delivered.
pub(crate) const MANAGEMENT_KEY: &str = "010203040506070801020304050607080102030405060708";

/// A reader: a card that is in or out.
struct Reader {
    name: String,
    device: Device,
    present: bool,
    /// Counts resets and removals: who connected before one has to connect again.
    epoch: u64,
    /// Held by who has a transaction.
    turn: Arc<Mutex<()>>,
}

/// Readers in this process.
#[derive(Clone, Default)]
pub(crate) struct Desk(Arc<Mutex<Vec<Reader>>>, Arc<Begun>);

/// What readers lose, though cards keep their power.
#[derive(Default)]
struct Losses {
    /// The replies to so many commands with this instruction.
    replies: (u8, usize),
    /// So many resets.
    resets: usize,
}

/// How often cards were reached.
#[derive(Default)]
struct Begun {
    transactions: AtomicU64,
    single_commands: AtomicU64,
    /// How many threads wait for somebody else's transaction.
    waiting: AtomicU64,
    lost: Mutex<Losses>,
}

impl Desk {
    /// The next replies to commands with this instruction, and the next resets, do not come
    /// through. Cards do what they are told, and keep their power.
    pub(crate) fn lose(&self, replies: (u8, usize), resets: usize) {
        *lock(&self.1.lost) = Losses { replies, resets };
    }

    /// Whether all that was to be lost is.
    pub(crate) fn has_lost_it(&self) -> bool {
        let lost = lock(&self.1.lost);
        (lost.replies.1, lost.resets) == (0, 0)
    }

    pub(crate) fn with(devices: &[&Device]) -> Desk {
        let desk = Desk::default();
        for device in devices {
            desk.insert(device);
        }
        desk
    }

    pub(crate) fn driver(&self) -> PivDriver {
        PivDriver::with_readers_and_roots(self.clone(), ROOT).unwrap()
    }

    /// A driver that knows no maker of virtual cards.
    pub(crate) fn driver_that_trusts_nobody(&self) -> PivDriver {
        PivDriver::with_readers(self.clone())
    }

    /// Puts a card into a reader of its own.
    pub(crate) fn insert(&self, device: &Device) {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        device.card().reset();
        self.0.lock().unwrap().push(Reader {
            name: format!("Reader {number}"),
            device: device.clone(),
            present: true,
            epoch: number << 32,
            turn: Arc::default(),
        });
    }

    /// Takes out the card with this serial.
    pub(crate) fn remove(&self, device: &Device) {
        let serial = device.card().serial();
        let mut readers = self.0.lock().unwrap();
        readers.retain(|r| r.device.card().serial() != serial);
    }

    /// Puts `new` where `old` was.
    pub(crate) fn swap(&self, old: &Device, new: &Device) {
        let serial = old.card().serial();
        new.card().reset();
        let mut readers = self.0.lock().unwrap();
        let reader = readers
            .iter_mut()
            .find(|r| r.device.card().serial() == serial)
            .unwrap();
        reader.device = new.clone();
        reader.epoch += 1;
    }

    /// Resets the card, as another program does that shares it.
    pub(crate) fn reset(&self, device: &Device) {
        let serial = device.card().serial();
        let mut readers = self.0.lock().unwrap();
        let reader = readers
            .iter_mut()
            .find(|r| r.device.card().serial() == serial)
            .unwrap();
        reader.device.card().reset();
        reader.epoch += 1;
    }

    /// Puts a reader without a card beside the others.
    pub(crate) fn add_an_empty_reader(&self) {
        let device = Device::new(Card::builder().build());
        self.insert(&device);
        self.0.lock().unwrap().last_mut().unwrap().present = false;
    }

    /// How many transactions were begun so far, and how many commands were sent without one.
    pub(crate) fn begun(&self) -> (u64, u64) {
        let Begun {
            transactions,
            single_commands,
            ..
        } = &*self.1;
        (
            transactions.load(Ordering::Relaxed),
            single_commands.load(Ordering::Relaxed),
        )
    }

    /// How many threads wait for somebody else's transaction.
    pub(crate) fn waiting(&self) -> u64 {
        self.1.waiting.load(Ordering::SeqCst)
    }

    /// Whether somebody has a transaction with the card.
    pub(crate) fn is_busy(&self, device: &Device) -> bool {
        let serial = device.card().serial();
        let readers = self.0.lock().unwrap();
        let mut readers = readers.iter();
        let reader = readers
            .find(|r| r.device.card().serial() == serial)
            .unwrap();
        reader.turn.try_lock().is_err()
    }

    fn find<T>(&self, name: &str, work: impl FnOnce(&mut Reader) -> T) -> Result<T, Lost> {
        let mut readers = self.0.lock().unwrap();
        let reader = readers.iter_mut().find(|r| r.name == name && r.present);
        reader.map(work).ok_or_else(|| Lost::new("removed"))
    }
}

impl Readers for Desk {
    fn list(&self) -> Result<Vec<String>, Unreachable> {
        let readers = self.0.lock().unwrap();
        Ok(readers.iter().map(|r| r.name.clone()).collect())
    }

    fn connect(&self, reader: &str) -> Result<Box<dyn Link>, Lost> {
        let found = self.find(reader, |r| (r.device.clone(), r.epoch, r.turn.clone()))?;
        let (device, epoch, turn) = found;
        Ok(Box::new(InProcess {
            desk: self.clone(),
            reader: reader.into(),
            device,
            epoch,
            turn,
        }))
    }
}

struct InProcess {
    desk: Desk,
    reader: String,
    device: Device,
    epoch: u64,
    turn: Arc<Mutex<()>>,
}

impl InProcess {
    fn check(&self) -> Result<(), Lost> {
        match self.desk.find(&self.reader, |r| r.epoch)? {
            epoch if epoch == self.epoch => Ok(()),
            _ => Err(Lost::new("reset")),
        }
    }
}

impl InProcess {
    fn way(&self, counted: &AtomicU64) -> Result<Box<dyn Transport + '_>, Lost> {
        self.desk.1.waiting.fetch_add(1, Ordering::SeqCst);
        let turn = lock(&self.turn);
        self.desk.1.waiting.fetch_sub(1, Ordering::SeqCst);
        self.check()?;
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Transaction {
            link: self,
            _turn: turn,
        }))
    }
}

impl Link for InProcess {
    fn begin(&mut self) -> Result<Box<dyn Transport + '_>, Lost> {
        self.way(&self.desk.1.transactions)
    }

    fn alone(&mut self) -> Result<Box<dyn Transport + '_>, Lost> {
        self.way(&self.desk.1.single_commands)
    }
}

struct Transaction<'a> {
    link: &'a InProcess,
    _turn: MutexGuard<'a, ()>,
}

impl Transport for Transaction<'_> {
    fn transmit(&mut self, apdu: &[u8]) -> Result<Vec<u8>, Lost> {
        let link = self.link;
        link.check()?;
        match link.device.transmit(apdu) {
            Answer::Reply(reply, wait) => {
                std::thread::sleep(wait);
                let mut lost = lock(&link.desk.1.lost);
                let (instruction, left) = &mut lost.replies;
                if *left > 0 && apdu.get(1) == Some(instruction) {
                    *left -= 1;
                    return Err(Lost::new("a transmission error"));
                }
                Ok(reply)
            }
            Answer::Removed(_) => {
                link.desk.find(&link.reader, |r| {
                    r.device.card().reset();
                    r.epoch += 1;
                })?;
                Err(Lost::new("removed"))
            }
        }
    }

    fn reset(self: Box<Self>) -> Result<(), Lost> {
        let link = self.link;
        link.check()?;
        let resets = &mut lock(&link.desk.1.lost).resets;
        if *resets > 0 {
            *resets -= 1;
            return Err(Lost::new("a transmission error"));
        }
        link.desk.find(&link.reader, |r| {
            r.device.card().reset();
            r.epoch += 1;
        })
    }
}

/// A card of the plain standard, without Yubico's extensions.
pub(crate) fn plain_card() -> Device {
    plain_card_from(Card::builder())
}

/// The same, of an older edition.
pub(crate) fn old_plain_card() -> Device {
    plain_card_from(Card::builder().forgets_no_pin())
}

fn plain_card_from(card: Builder) -> Device {
    // A CHUID: FASC-N, GUID, expiration date (SP 800-73-4 part 1, table 9).
    let chuid = [
        &[0x30, 25][..],
        &[0xd4; 25],
        &[0x34, 16],
        &PLAIN_GUID,
        &[0x35, 8],
        b"20501231",
        &[0x3e, 0, 0xfe, 0],
    ]
    .concat();
    let card = card.firmware(Firmware::V4_3_5).pin(PIN);
    let card = card.object(object::CHUID, &chuid).keeps_rights();
    let device = Device::new(card.build());
    without_extensions(&device);
    device
}

pub(crate) const PLAIN_GUID: [u8; 16] = [0xab; 16];

/// Makes the card refuse the commands that are Yubico's.
pub(crate) fn without_extensions(device: &Device) {
    for instruction in [
        ins::GET_VERSION,
        ins::GET_SERIAL,
        ins::GET_METADATA,
        ins::ATTEST,
        ins::MOVE_KEY,
    ] {
        let unknown = Rule::new(Fault::Status(Status(0x6d00))).on(instruction);
        device.faults().add(unknown.always());
    }
}

/// The right PIN, and the management key.
pub(crate) fn access() -> Access {
    Access {
        management_keys: Arc::new(FixedPin::new(MANAGEMENT_KEY)),
        ..Access::with(FixedPin::new(PIN))
    }
}

/// A request that carries them.
pub(crate) fn call() -> Call {
    Call::unlimited().using(access())
}

/// The slots of a token that are visible without a PIN.
pub(crate) fn visible(driver: &dyn Driver, token: &TokenInfo) -> Result<Vec<SlotInfo>, Error> {
    let found = driver.look(&token.backend, Detail::Slots, &Call::unlimited())?;
    found.slots_of(&token.id)
}
