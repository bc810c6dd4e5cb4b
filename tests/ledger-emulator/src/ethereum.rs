//! A model of Ledger's Ethereum app: as much of it as Claviger asks for.
//!
//! What it answers is checked against the real app's recorded answers, byte by byte.
//! Where the recording says nothing, status words are those of the app's published
//! source, and of the real Boilerplate app, which shares the code that takes APDUs apart.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bip32::{ChildNumber, Language, Mnemonic, XPrv};
use k256::ecdsa::SigningKey;
use sha3::{Digest, Keccak256};

use crate::configuration::Configuration;
use crate::device::{Device, Reply};
use crate::serve::Server;
use crate::{SEED, lock, reply};

/// What the user does when the device asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Approval {
    /// Approves, at once.
    #[default]
    Approve,
    /// Rejects, at once.
    Reject,
    /// Nothing, until the test decides otherwise.
    Hang,
}

/// The app that is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Running {
    /// The Ethereum app.
    #[default]
    Ethereum,
    /// Another one, or the dashboard (`BOLOS`): it says who it is, and refuses
    /// everything else.
    Other {
        /// Its name.
        name: String,
        /// With what it refuses: 6D00 where it knows the class E0, else 6E00.
        refusal: u16,
    },
}

/// A simulated Ledger with the Ethereum app open. Clones are the same device.
///
/// ```
/// use claviger_ledger_emulator::{Approval, Ethereum};
///
/// let app = Ethereum::new();
/// assert_eq!(app.answer(&[0xe0, 0x06, 0, 0, 0]), [0x02, 1, 23, 0, 0x90, 0x00]);
/// app.set_approval(Approval::Reject);
/// assert_eq!((app.exchanges().len(), app.prompts()), (1, 0));
/// ```
#[derive(Clone)]
pub struct Ethereum(Arc<Mutex<Ledger>>);

struct Ledger {
    seed: bip32::Seed,
    configuration: Configuration,
    approval: Approval,
    next_approvals: VecDeque<Approval>,
    locked: bool,
    running: Running,
    message: Option<Message>,
    review: Option<Review>,
    exchanges: Vec<Vec<u8>>,
    prompts: usize,
    interruptions: usize,
}

/// What the user is asked.
struct Review {
    /// What is given away if they approve.
    data: Vec<u8>,
    /// None when another command has been answered since: then nothing comes of it.
    reply: Option<Reply>,
}

/// A message to be signed, of which not everything has come yet.
struct Message {
    path: Vec<ChildNumber>,
    length: usize,
    received: Vec<u8>,
}

const OK: u16 = 0x9000;
const LOCKED: u16 = 0x5515;
const REJECTED: u16 = 0x6985;
const NOT_NOW: u16 = 0x6986;
const PATH_NOT_ALLOWED: u16 = 0x6a15;
const WRONG_DATA: u16 = 0x6a80;
const NO_MEMORY: u16 = 0x6a84;
const WRONG_LENGTH: u16 = 0x6a87;
const WRONG_P1_P2: u16 = 0x6b00;
const NO_SUCH_INSTRUCTION: u16 = 0x6d00;
const NO_SUCH_CLASS: u16 = 0x6e00;

/// What is left to do when the device has looked at a command.
enum Step {
    Done(Vec<u8>),
    /// Give this away if the user approves.
    Ask(Vec<u8>),
}

impl Ethereum {
    /// The device that the recording was made with: a Nano S Plus, and its seed.
    #[expect(clippy::new_without_default, reason = "it is as the other fixtures")]
    pub fn new() -> Ethereum {
        Ethereum::with_seed(SEED)
    }

    /// Another device with the same seed.
    pub fn configured(configuration: Configuration) -> Ethereum {
        let app = Ethereum::new();
        lock(&app.0).configuration = configuration;
        app
    }

    /// A device with another seed: twelve to twenty-four English words of BIP-39.
    ///
    /// # Panics
    /// When they are none.
    pub fn with_seed(words: &str) -> Ethereum {
        let mnemonic = Mnemonic::new(words, Language::English)
            .unwrap_or_else(|error| panic!("this is no seed phrase: {error}"));
        Ethereum(Arc::new(Mutex::new(Ledger {
            seed: mnemonic.to_seed(""),
            configuration: Configuration::nano_s_plus(),
            approval: Approval::default(),
            next_approvals: VecDeque::new(),
            locked: false,
            running: Running::default(),
            message: None,
            review: None,
            exchanges: Vec::new(),
            prompts: 0,
            interruptions: 0,
        })))
    }

    /// What it is.
    pub fn configuration(&self) -> Configuration {
        lock(&self.0).configuration.clone()
    }

    /// Answers one APDU with data and status word. If the user is asked, and hangs, so
    /// does this; if another command is answered meanwhile, the answer is empty.
    pub fn answer(&self, apdu: &[u8]) -> Vec<u8> {
        let (reply, given) = Reply::channel();
        lock(&self.0).take(apdu, reply);
        given.recv().unwrap_or_default()
    }

    /// [`Ethereum::answer`] for [`Usb::plug`](crate::Usb::plug) and [`Server::start`].
    /// While the user is asked, it answers other commands; as from a real device, the
    /// answer to the question does not come then.
    pub fn answerer(&self) -> impl Device + use<> {
        self.clone()
    }

    /// The same device behind a TCP port, as the emulator would be.
    pub fn serve(&self) -> Server {
        Server::start(self.answerer())
    }

    /// What the user does from now on, also about what they are being asked.
    pub fn set_approval(&self, approval: Approval) {
        let mut ledger = lock(&self.0);
        ledger.approval = approval;
        ledger.decide(approval);
    }

    /// What the user does the next time, or the time after those already said; after
    /// that, it is as [`Ethereum::set_approval`] says. `Hang` lasts until that is called.
    pub fn approve_next(&self, approval: Approval) {
        lock(&self.0).next_approvals.push_back(approval);
    }

    /// Locks the device, or unlocks it with its PIN. A locked device answers 5515 to
    /// everything.
    pub fn set_locked(&self, locked: bool) {
        lock(&self.0).locked = locked;
    }

    /// Opens an app, and closes the one that was open, whatever it was asking.
    pub fn open(&self, running: Running) {
        let mut ledger = lock(&self.0);
        ledger.running = running;
        ledger.message = None;
        ledger.review = None;
    }

    /// All APDUs that have come so far.
    pub fn exchanges(&self) -> Vec<Vec<u8>> {
        lock(&self.0).exchanges.clone()
    }

    /// How often the user has been asked so far.
    pub fn prompts(&self) -> usize {
        lock(&self.0).prompts
    }

    /// How many commands have come so far while the user was asked. Each of them costs the
    /// answer to the question; of a real app it also spoils what is approved.
    pub fn interruptions(&self) -> usize {
        lock(&self.0).interruptions
    }
}

impl Device for Ethereum {
    fn take(&mut self, apdu: &[u8], reply: Reply) {
        lock(&self.0).take(apdu, reply);
    }
}

impl Ledger {
    fn take(&mut self, apdu: &[u8], to: Reply) {
        self.exchanges.push(apdu.to_vec());
        self.interruptions += usize::from(self.review.is_some());
        let step = self.command(apdu);
        if let Some(review) = &mut self.review {
            review.reply = None;
        }
        match step {
            Ok(Step::Done(data)) => to.give(reply(&data, OK)),
            Err(status) => to.give(reply(&[], status)),
            Ok(Step::Ask(data)) => {
                self.prompts += 1;
                self.review = Some(Review {
                    data,
                    reply: Some(to),
                });
                let approval = self.next_approvals.pop_front().unwrap_or(self.approval);
                self.decide(approval);
            }
        }
    }

    /// The user does this about what they are asked, if they are.
    fn decide(&mut self, approval: Approval) {
        if approval == Approval::Hang {
            return;
        }
        if let Some(Review { data, reply: to }) = self.review.take()
            && let Some(to) = to
        {
            to.give(match approval {
                Approval::Approve => reply(&data, OK),
                _ => reply(&[], REJECTED),
            });
        }
    }

    /// Whether the app is occupied with a message, or with a question to the user.
    fn is_busy(&self) -> bool {
        self.message.is_some() || self.review.is_some()
    }

    fn command(&mut self, apdu: &[u8]) -> Result<Step, u16> {
        if self.locked {
            return Err(LOCKED);
        }
        let [class, instruction, p1, p2, rest @ ..] = apdu else {
            return Err(WRONG_LENGTH);
        };
        let data = match rest {
            [] => rest,
            [length, data @ ..] if usize::from(*length) == data.len() => data,
            _ => return Err(WRONG_LENGTH),
        };
        if (*class, *instruction) == (0xb0, 0x01) {
            return Ok(Step::Done(self.name_and_version()));
        }
        if let Running::Other { refusal, .. } = self.running {
            return Err(refusal);
        }
        if *class != 0xe0 {
            return Err(NO_SUCH_CLASS);
        }
        match instruction {
            0x02 => self.address(*p1, *p2, data),
            0x06 => Ok(Step::Done(self.app_configuration())),
            0x08 => {
                let step = self.personal_sign(*p1, data);
                // What is refused ends the message, and what the user is asked.
                if step.is_err() {
                    self.message = None;
                    self.review = None;
                }
                step
            }
            0x18 if self.configuration.agrees => self.privacy(*p1, *p2, data),
            _ => Err(NO_SUCH_INSTRUCTION),
        }
    }

    fn name_and_version(&self) -> Vec<u8> {
        let (name, version) = match &self.running {
            Running::Ethereum => ("Ethereum", &self.configuration.version[..]),
            Running::Other { name, .. } => (&name[..], "1.0.0"),
        };
        let sized = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        [&[1][..], &sized(name), &sized(version), &[1, 0]].concat()
    }

    /// Flags (external data for tokens is needed), and the version without its suffix.
    fn app_configuration(&self) -> Vec<u8> {
        [&[0x02][..], &self.configuration.numbers()].concat()
    }

    /// The public key, the address and, with `p2`, the chain code; with `p1`, the user is
    /// asked to compare the address.
    fn address(&mut self, p1: u8, p2: u8, data: &[u8]) -> Result<Step, u16> {
        self.message = None;
        self.review = None;
        check_flags(p1, p2)?;
        let (path, rest) = parse_path(data)?;
        // A chain id, which only changes what the screen says.
        if !matches!(rest.len(), 0 | 8) {
            return Err(WRONG_DATA);
        }
        let key = self.key(&path)?;
        let public = (key.private_key().verifying_key()).to_encoded_point(false);
        let address = address(public.as_bytes());
        let mut answer = vec![public.len() as u8];
        answer.extend_from_slice(public.as_bytes());
        answer.push(address.len() as u8);
        answer.extend_from_slice(address.as_bytes());
        if p2 == 1 {
            answer.extend_from_slice(&key.attrs().chain_code);
        }
        Ok(ask_if(p1 == 1, answer))
    }

    /// EIP-191: signs a message, which may come in several pieces, for humans.
    ///
    /// The app wants memory twice: for the message when it begins, and for what the screen
    /// is to show when it is complete. A message that is a little too long is taken whole,
    /// and refused then.
    fn personal_sign(&mut self, p1: u8, data: &[u8]) -> Result<Step, u16> {
        let data = match (p1, self.message.is_some()) {
            (0x00, _) if self.is_busy() => return Err(NOT_NOW),
            (0x00, _) => {
                let (path, rest) = parse_path(data)?;
                let (length, rest) = rest.split_first_chunk().ok_or(WRONG_DATA)?;
                let length = u32::from_be_bytes(*length) as usize;
                if length > usize::from(u16::MAX) {
                    return Err(WRONG_DATA);
                }
                if length > 2 * self.configuration.longest_message {
                    return Err(NO_MEMORY);
                }
                self.message = Some(Message {
                    path,
                    length,
                    received: Vec::new(),
                });
                rest
            }
            (0x80, true) => data,
            (0x80, false) => return Err(WRONG_DATA),
            _ => return Err(WRONG_P1_P2),
        };
        let message = self.message.as_mut().ok_or(WRONG_DATA)?;
        message.received.extend_from_slice(data);
        if message.received.len() > message.length {
            return Err(WRONG_DATA);
        }
        if message.received.len() < message.length {
            return Ok(Step::Done(Vec::new()));
        }
        let Some(Message { path, received, .. }) = self.message.take() else {
            return Err(WRONG_DATA);
        };
        if received.len() > self.configuration.longest_message {
            return Err(NO_MEMORY);
        }
        let key = self.key(&path)?;
        Ok(Step::Ask(personal_signature(key.private_key(), &received)))
    }

    /// EIP-1024: the X25519 public key of a path, or with `p2`, and another public key,
    /// the shared secret; with `p1`, the user is asked.
    fn privacy(&mut self, p1: u8, p2: u8, data: &[u8]) -> Result<Step, u16> {
        if self.is_busy() {
            return Err(NOT_NOW);
        }
        check_flags(p1, p2)?;
        let (path, rest) = parse_path(data)?;
        let mut peer = x25519_dalek::X25519_BASEPOINT_BYTES;
        if p2 == 1 {
            peer = *rest.first_chunk().ok_or(WRONG_LENGTH)?;
        }
        let scalar = self.key(&path)?.to_bytes();
        let shared = x25519_dalek::x25519(scalar, peer);
        Ok(ask_if(p1 == 1, shared.to_vec()))
    }

    /// The key of a path, if the app may use it.
    fn key(&self, path: &[ChildNumber]) -> Result<XPrv, u16> {
        let hardened = |number| ChildNumber(number | ChildNumber::HARDENED_FLAG);
        let plain = ChildNumber;
        let allowed = path.starts_with(&[hardened(44), hardened(60)])
            || path.starts_with(&[hardened(45)])
            || path.starts_with(&[plain(12381), plain(3600)]);
        if !allowed {
            return Err(PATH_NOT_ALLOWED);
        }
        let root = XPrv::new(&self.seed).unwrap();
        let key = (path.iter()).try_fold(root, |key, child| key.derive_child(*child));
        // One path in 2^127 has no key.
        Ok(key.unwrap())
    }
}

fn check_flags(p1: u8, p2: u8) -> Result<(), u16> {
    if p1 > 1 || p2 > 1 {
        return Err(WRONG_P1_P2);
    }
    Ok(())
}

fn ask_if(ask: bool, answer: Vec<u8>) -> Step {
    if ask {
        Step::Ask(answer)
    } else {
        Step::Done(answer)
    }
}

/// A path, `n | n × u32be`, and what comes after it.
fn parse_path(data: &[u8]) -> Result<(Vec<ChildNumber>, &[u8]), u16> {
    let (count, rest) = data.split_first().ok_or(WRONG_DATA)?;
    if !(1..=10).contains(count) {
        return Err(WRONG_DATA);
    }
    let (path, rest) = (rest.split_at_checked(4 * usize::from(*count))).ok_or(WRONG_DATA)?;
    let path = path
        .as_chunks()
        .0
        .iter()
        .map(|number| ChildNumber(u32::from_be_bytes(*number)))
        .collect();
    Ok((path, rest))
}

/// An address in hexadecimal digits, with the checksum of EIP-55.
fn address(public: &[u8]) -> String {
    let hash = Keccak256::digest(&public[1..]);
    let digits = crate::recording::to_hex(&hash[12..]);
    let checksum = crate::recording::to_hex(&Keccak256::digest(&digits));
    (digits.chars().zip(checksum.chars()))
        .map(|(digit, check)| match check {
            '8'..='f' => digit.to_ascii_uppercase(),
            _ => digit,
        })
        .collect()
}

/// `v` (27 or 28), `r` and `s`.
fn personal_signature(key: &SigningKey, message: &[u8]) -> Vec<u8> {
    let digest = Keccak256::new_with_prefix(b"\x19Ethereum Signed Message:\n")
        .chain_update(message.len().to_string())
        .chain_update(message)
        .finalize();
    let (signature, recovery) = key.sign_prehash_recoverable(&digest).unwrap();
    [&[27 + recovery.to_byte()][..], &signature.to_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::Recording;

    /// m/44'/60'/0'
    const PATH: [u8; 13] = [3, 0x80, 0, 0, 44, 0x80, 0, 0, 60, 0x80, 0, 0, 0];

    fn apdu(instruction: u8, p1: u8, p2: u8, data: &[&[u8]]) -> Vec<u8> {
        let data = data.concat();
        let head = [0xe0, instruction, p1, p2, data.len() as u8];
        [&head[..], &data].concat()
    }

    fn sign() -> Vec<u8> {
        apdu(0x08, 0, 0, &[&PATH, &[0, 0, 0, 2], b"hi"])
    }

    fn status(reply: &[u8]) -> u16 {
        u16::from_be_bytes(*reply.last_chunk().unwrap())
    }

    #[test]
    fn it_answers_everything_recorded_as_the_real_app_does() {
        let app = Ethereum::new();
        let exchanges = Recording::ethereum().exchanges();
        assert!(exchanges.len() >= 12);
        for recorded in &exchanges {
            assert_eq!(
                app.answer(&recorded.apdu),
                recorded.reply,
                "{}",
                recorded.name
            );
        }
        assert_eq!(app.exchanges().len(), exchanges.len());
        // Two signatures and a shared secret.
        assert_eq!(app.prompts(), 3);
    }

    #[test]
    fn the_user_rejects_or_approves_now_and_the_next_time() {
        let app = Ethereum::new();
        app.set_approval(Approval::Reject);
        app.approve_next(Approval::Approve);
        assert_eq!(status(&app.answer(&sign())), OK);
        assert_eq!(app.answer(&sign()), [0x69, 0x85]);
        assert_eq!(app.prompts(), 2);
    }

    #[test]
    fn a_user_who_hangs_may_still_decide() {
        for (approval, expected) in [(Approval::Approve, OK), (Approval::Reject, REJECTED)] {
            let app = Ethereum::new();
            app.set_approval(Approval::Hang);
            let asked = thread::spawn({
                let app = app.clone();
                move || app.answer(&sign())
            });
            while app.prompts() == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            assert!(!asked.is_finished());
            app.set_approval(approval);
            assert_eq!(status(&asked.join().unwrap()), expected);
        }
    }

    /// An app in which the user is asked to sign, and hangs; and where the answer comes.
    fn asking() -> (Ethereum, std::sync::mpsc::Receiver<Vec<u8>>) {
        let mut app = Ethereum::new();
        app.set_approval(Approval::Hang);
        let (reply, given) = Reply::channel();
        app.take(&sign(), reply);
        (app, given)
    }

    #[test]
    fn an_answer_may_be_late() {
        let (app, given) = asking();
        app.set_approval(Approval::Approve);
        assert_eq!(status(&given.recv().unwrap()), OK);
    }

    #[test]
    fn other_commands_are_answered_while_the_user_is_asked_whose_answer_is_lost() {
        let (app, given) = asking();
        assert_eq!(status(&app.answer(&[0xb0, 1, 0, 0, 0])), OK);
        assert!(given.recv().is_err());
        assert_eq!(status(&app.answer(&[0xe0, 6, 0, 0, 0])), OK);
        // The question is still on the screen.
        assert_eq!(status(&app.answer(&apdu(0x18, 0, 0, &[&PATH]))), NOT_NOW);
        app.set_approval(Approval::Approve);
        assert_eq!(status(&app.answer(&apdu(0x18, 0, 0, &[&PATH]))), OK);
    }

    #[test]
    fn a_question_is_withdrawn() {
        // By another signature, which is refused.
        let (app, _given) = asking();
        assert_eq!(status(&app.answer(&sign())), NOT_NOW);
        app.set_approval(Approval::Approve);
        assert_eq!(status(&app.answer(&sign())), OK);
        // By reading an address.
        let (app, _given) = asking();
        assert_eq!(status(&app.answer(&apdu(0x02, 0, 0, &[&PATH]))), OK);
        assert_eq!(status(&app.answer(&apdu(0x18, 0, 0, &[&PATH]))), OK);
        // By closing the app.
        let (app, given) = asking();
        app.open(Running::Ethereum);
        assert!(given.recv().is_err());
    }

    #[test]
    fn a_locked_device_and_another_app_say_so() {
        let app = Ethereum::new();
        app.set_locked(true);
        assert_eq!(app.answer(&[0xb0, 1, 0, 0, 0]), [0x55, 0x15]);
        app.set_locked(false);
        app.open(Running::Other {
            name: "Boilerplate".into(),
            refusal: 0x6d00,
        });
        assert_eq!(app.answer(&sign()), [0x6d, 0x00]);
        let name = app.answer(&[0xb0, 1, 0, 0, 0]);
        assert_eq!(&name[2..13], b"Boilerplate");
        app.open(Running::Ethereum);
        assert_eq!(status(&app.answer(&sign())), OK);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let app = Ethereum::new();
        let too_long = apdu(0x08, 0, 0, &[&PATH, &[0, 0, 0, 1], b"hi"]);
        let begun = apdu(0x08, 0, 0, &[&PATH, &[0, 0, 0, 3], b"hi"]);
        for (question, expected) in [
            (vec![0xe0], WRONG_LENGTH),
            (vec![0xe0, 2, 0, 0, 9], WRONG_LENGTH),
            (apdu(0x02, 2, 0, &[&PATH]), WRONG_P1_P2),
            (apdu(0x02, 0, 0, &[]), WRONG_DATA),
            (apdu(0x02, 0, 0, &[&PATH[..12]]), WRONG_DATA),
            (apdu(0x02, 0, 0, &[&[11]]), WRONG_DATA),
            (apdu(0x02, 0, 0, &[&PATH, &[1]]), WRONG_DATA),
            (apdu(0x18, 1, 1, &[&PATH, &[9; 31]]), WRONG_LENGTH),
            (apdu(0x08, 0x80, 0, &[b"i"]), WRONG_DATA),
            (too_long, WRONG_DATA),
            (begun.clone(), OK),
            (apdu(0x18, 0, 0, &[&PATH]), NOT_NOW),
            (begun, NOT_NOW),
            (apdu(0x08, 0x80, 0, &[b"i"]), WRONG_DATA),
        ] {
            assert_eq!(status(&app.answer(&question)), expected, "{question:02x?}");
        }
    }

    /// Sends a message of this length, and gives the status words.
    fn sign_long(app: &Ethereum, length: usize) -> Vec<u16> {
        let head = [&PATH[..], &(length as u32).to_be_bytes()].concat();
        let message = vec![b'x'; length];
        let (first, rest) = message.split_at(255 - head.len());
        let pieces = rest.chunks(255).map(|piece| apdu(0x08, 0x80, 0, &[piece]));
        let first = apdu(0x08, 0, 0, &[&head, first]);
        let replies = std::iter::once(first).chain(pieces);
        replies.map(|piece| status(&app.answer(&piece))).collect()
    }

    #[test]
    fn a_message_takes_as_much_memory_as_the_device_has() {
        for (configuration, longest) in [
            (Configuration::nano_s_plus(), 9_012),
            (Configuration::flex(), 13_368),
        ] {
            let app = Ethereum::configured(configuration);
            assert!(sign_long(&app, longest).iter().all(|status| *status == OK));
            let refused = sign_long(&app, longest + 1);
            let (last, others) = refused.split_last().unwrap();
            assert_eq!(*last, NO_MEMORY);
            assert!(others.iter().all(|status| *status == OK));
            assert_eq!(sign_long(&app, 3 * longest)[0], NO_MEMORY);
            assert_eq!(app.prompts(), 1);
            // It is not occupied with what it refused.
            assert_eq!(status(&app.answer(&sign())), OK);
        }
    }

    #[test]
    fn an_old_app_signs_and_does_not_know_how_to_agree() {
        let app = Ethereum::configured(Configuration::before_eip_1024());
        let key = app.answer(&apdu(0x18, 0, 0, &[&PATH]));
        assert_eq!(status(&key), NO_SUCH_INSTRUCTION);
        assert_eq!(status(&app.answer(&sign())), OK);
        assert_eq!(app.answer(&[0xe0, 6, 0, 0, 0]), [2, 1, 9, 17, 0x90, 0]);
    }

    #[test]
    fn commands_that_interrupt_a_question_are_counted() {
        let (app, _given) = asking();
        assert_eq!(app.interruptions(), 0);
        app.answer(&[0xb0, 1, 0, 0, 0]);
        assert_eq!(app.interruptions(), 1);
        app.set_approval(Approval::Approve);
        app.answer(&[0xb0, 1, 0, 0, 0]);
        assert_eq!(app.interruptions(), 1);
    }

    #[test]
    fn the_shared_secret_with_a_peer_of_low_order_is_zero_and_not_refused() {
        let app = Ethereum::new();
        let secret = app.answer(&apdu(0x18, 1, 1, &[&PATH, &[0; 32]]));
        assert_eq!(secret, reply(&[0; 32], OK));
    }

    #[test]
    fn another_seed_has_other_keys() {
        let words = "abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                     abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                     abandon abandon abandon abandon abandon art";
        let address = |app: Ethereum| app.answer(&apdu(0x02, 0, 0, &[&PATH]));
        assert_ne!(
            address(Ethereum::with_seed(words)),
            address(Ethereum::new())
        );
    }
}
