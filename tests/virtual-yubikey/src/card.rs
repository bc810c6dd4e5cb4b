//! The card: commands in, replies out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand_core::{OsRng, RngCore as _};

use crate::apdu::{Command, Outcome, Status};
use crate::attest::Statement;
use crate::auth::{ManagementAlgorithm, ManagementKey, PinPolicy, Reference, Touch, TouchPolicy};
use crate::builder::{Builder, default_management_key, default_pin_policy};
use crate::firmware::Firmware;
use crate::keys::{Algorithm, PrivateKey};
use crate::nature::Nature;
use crate::objects::{ObjectId, Objects, Slot, object};
use crate::tlv;

/// Instructions (SP 800-73-4 part 2, §3; Yubico's extensions).
pub mod ins {
    /// SELECT.
    pub const SELECT: u8 = 0xa4;
    /// GET RESPONSE.
    pub const GET_RESPONSE: u8 = 0xc0;
    /// VERIFY.
    pub const VERIFY: u8 = 0x20;
    /// CHANGE REFERENCE DATA.
    pub const CHANGE_REFERENCE: u8 = 0x24;
    /// RESET RETRY COUNTER.
    pub const RESET_RETRY: u8 = 0x2c;
    /// GENERATE ASYMMETRIC KEY PAIR.
    pub const GENERATE: u8 = 0x47;
    /// GENERAL AUTHENTICATE.
    pub const AUTHENTICATE: u8 = 0x87;
    /// GET DATA.
    pub const GET_DATA: u8 = 0xcb;
    /// PUT DATA.
    pub const PUT_DATA: u8 = 0xdb;
    /// Yubico: MOVE KEY, and with P1 FF, DELETE KEY.
    pub const MOVE_KEY: u8 = 0xf6;
    /// Yubico: GET METADATA.
    pub const GET_METADATA: u8 = 0xf7;
    /// Yubico: GET SERIAL.
    pub const GET_SERIAL: u8 = 0xf8;
    /// Yubico: ATTEST.
    pub const ATTEST: u8 = 0xf9;
    /// Yubico: SET PIN RETRIES.
    pub const SET_RETRIES: u8 = 0xfa;
    /// Yubico: RESET.
    pub const RESET: u8 = 0xfb;
    /// Yubico: GET VERSION.
    pub const GET_VERSION: u8 = 0xfd;
    /// Yubico: IMPORT ASYMMETRIC KEY.
    pub const IMPORT: u8 = 0xfe;
    /// Yubico: SET MANAGEMENT KEY.
    pub const SET_MANAGEMENT_KEY: u8 = 0xff;

    /// In the OTP application: read its serial and other things.
    pub(super) const OTP_REQUEST: u8 = 0x01;
}

/// Key references that are no slots.
const PIN: u8 = 0x80;
const PUK: u8 = 0x81;
const MANAGEMENT: u8 = 0x9b;

/// Tags in the dynamic authentication template (SP 800-73-4 part 2, table 7).
const TEMPLATE: u32 = 0x7c;
const WITNESS: u32 = 0x80;
const CHALLENGE: u32 = 0x81;
const RESPONSE: u32 = 0x82;
const EXPONENTIATION: u32 = 0x85;

/// The PIV application; its first 5 and its first 9 bytes name it, too.
const PIV_AID: &[u8] = &[
    0xa0, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, 0x10, 0x00, 0x01, 0x00,
];
/// What SELECT answers: application template with its version and its authority.
const PIV_PROPERTIES: &[u8] = &[
    0x61, 0x11, 0x4f, 0x06, 0x00, 0x00, 0x10, 0x00, 0x01, 0x00, 0x79, 0x07, 0x4f, 0x05, 0xa0, 0x00,
    0x00, 0x03, 0x08,
];
const OTP_AID: &[u8] = &[0xa0, 0x00, 0x00, 0x05, 0x27, 0x20, 0x01];

/// How long all commands of a chain may be together.
const LONGEST_CHAIN: usize = 0x1_0000;

/// A YubiKey's PIV application, without hardware and without time: it does not wait, it
/// says how long it would have.
///
/// ```
/// use claviger_virtual_yubikey::Card;
///
/// let mut card = Card::builder().serial(12_345_678).pin("246802").build();
/// let select = [0x00, 0xa4, 0x04, 0x00, 0x05, 0xa0, 0x00, 0x00, 0x03, 0x08];
/// assert!(card.process(&select).ends_with(&[0x90, 0x00]));
/// assert_eq!(card.process(&[0x00, 0xf8, 0x00, 0x00])[..4], 12_345_678_u32.to_be_bytes());
/// ```
#[derive(Clone)]
pub struct Card {
    pub(crate) firmware: Firmware,
    pub(crate) nature: Nature,
    pub(crate) serial: u32,
    pub(crate) atr: Vec<u8>,
    pub(crate) root: Vec<u8>,
    pub(crate) pin: Reference,
    pub(crate) puk: Reference,
    pub(crate) management: ManagementKey,
    pub(crate) management_touch: TouchPolicy,
    pub(crate) keys: BTreeMap<Slot, Key>,
    pub(crate) objects: Objects,
    pub(crate) touch: Touch,
    pub(crate) keeps_rights: bool,
    /// Keys that were made before, in the order in which they are taken.
    pub(crate) pool: Vec<PrivateKey>,
    pub(crate) forgets_pin: bool,
    pub(crate) last_touch: Option<Instant>,
    pub(crate) waited: Duration,
    pub(crate) session: Session,
}

/// A key in a slot.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) private: PrivateKey,
    pub(crate) origin: Origin,
    pub(crate) pin: PinPolicy,
    pub(crate) touch: TouchPolicy,
}

/// Where a key comes from. The numbers are those on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Origin {
    /// Made on the card: it can be attested.
    Generated = 1,
    /// Brought from elsewhere.
    Imported = 2,
}

/// What a reset makes the card forget.
#[derive(Clone, Default)]
pub(crate) struct Session {
    application: Option<Application>,
    pin_verified: bool,
    /// The last command was a successful VERIFY: what "always" asks for.
    pin_fresh: bool,
    management: bool,
    /// What the answer to the last command has to be.
    challenge: Option<Challenge>,
    chain: Option<Chain>,
    /// What is left of the last reply.
    pending: Vec<u8>,
    /// A command that got 6Cxx, and its reply.
    held: Option<(Chain, Vec<u8>)>,
}

#[derive(Clone, Copy)]
enum Application {
    Piv,
    /// Only as much as it takes to learn an old one's serial.
    Otp,
}

/// The client has to prove that it has the management key.
#[derive(Clone)]
enum Challenge {
    /// Mutual: it sends back what the witness was before it was encrypted.
    Witness(Vec<u8>),
    /// Single: it sends back the challenge, encrypted.
    Plain(Vec<u8>),
}

#[derive(Clone, PartialEq, Eq)]
struct Chain {
    header: [u8; 3],
    data: Vec<u8>,
}

/// How a reply is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// As the command asked: up to Le bytes at once.
    #[default]
    AsAsked,
    /// In pieces of at most so many bytes (at least one), 61xx after each but the last.
    Pieces(usize),
    /// 6Cxx first, and the data when the command comes again.
    WrongLe,
}

impl Card {
    /// Makes a card as a test wants it.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Carries out one command and gives its reply, status word included.
    ///
    /// Any bytes are a command; none makes this panic.
    pub fn process(&mut self, apdu: &[u8]) -> Vec<u8> {
        self.process_shaped(apdu, Shape::AsAsked)
    }

    /// [`Card::process`], with a say in how the reply comes.
    pub fn process_shaped(&mut self, apdu: &[u8], shape: Shape) -> Vec<u8> {
        let (mut reply, status) = match self.receive(apdu, shape) {
            Ok(done) => done,
            Err(status) => (Vec::new(), status),
        };
        reply.extend(status.0.to_be_bytes());
        reply
    }

    /// What a reset does, warm or cold: the session is over.
    pub fn reset(&mut self) {
        self.session = Session::default();
    }

    /// How long the card has waited for touches since it was last asked; whoever serves
    /// it has to wait as long before handing over the reply.
    pub fn take_wait(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

/// What a test sees without a command, and does without asking.
impl Card {
    /// The firmware.
    pub fn firmware(&self) -> Firmware {
        self.firmware
    }

    /// The serial.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// The answer to reset.
    pub fn atr(&self) -> &[u8] {
        &self.atr
    }

    /// The root to which its attestations lead: a certificate, DER.
    pub fn root_certificate(&self) -> &[u8] {
        &self.root
    }

    /// The certificate of its attestation key, DER, if there is one.
    pub fn attestation_certificate(&self) -> Option<&[u8]> {
        tlv::find(&tlv::all(self.objects.get(object::ATTESTATION)?)?, 0x70)
    }

    /// The key in `slot`.
    pub fn key(&self, slot: Slot) -> Option<&PrivateKey> {
        self.keys.get(&slot).map(|key| &key.private)
    }

    /// The slots that hold keys, F9 included.
    pub fn occupied(&self) -> Vec<Slot> {
        self.keys.keys().copied().collect()
    }

    /// Takes the key in `slot` away, as another program does behind one's back.
    pub fn remove_key(&mut self, slot: Slot) {
        self.keys.remove(&slot);
    }

    /// Moves a key to another slot, as another program does with MOVE KEY: its certificate
    /// stays where it was.
    pub fn relocate_key(&mut self, from: Slot, to: Slot) {
        if let Some(key) = self.keys.remove(&from) {
            self.keys.insert(to, key);
        }
    }

    /// Puts a key into `slot`, as another program does that imports or makes one.
    pub fn put_key(&mut self, slot: Slot, private: PrivateKey, origin: Origin) {
        let (pin, touch) = (default_pin_policy(slot), TouchPolicy::Never);
        let key = Key {
            private,
            origin,
            pin,
            touch,
        };
        self.keys.insert(slot, key);
    }

    /// Writes a data object, as another program does; nothing to write means to delete.
    ///
    /// # Errors
    /// The status word of a card that does not take it.
    pub fn put_object(&mut self, id: ObjectId, content: &[u8]) -> Result<(), Status> {
        self.objects.write(id, content)
    }

    /// The content of a data object.
    pub fn object(&self, id: ObjectId) -> Option<&[u8]> {
        self.objects.get(id)
    }

    /// How many tries the PIN has left.
    pub fn pin_tries(&self) -> u8 {
        self.pin.left
    }

    /// How many tries the PUK has left.
    pub fn puk_tries(&self) -> u8 {
        self.puk.left
    }

    /// The management key.
    pub fn management_key(&self) -> &ManagementKey {
        &self.management
    }

    /// Uses up the PIN's tries.
    pub fn block_pin(&mut self) {
        self.pin.left = 0;
        self.session.pin_verified = false;
    }

    /// Uses up the PUK's tries.
    pub fn block_puk(&mut self) {
        self.puk.left = 0;
    }

    /// Changes the PIN, as another program does. At most eight bytes.
    pub fn change_pin(&mut self, pin: &str) {
        self.pin = Reference::new(pin.as_bytes(), self.pin.tries, Reference::PIN);
    }

    /// Changes the person at the card.
    pub fn set_touch(&mut self, touch: Touch) {
        self.touch = touch;
    }
}

/// Chains of commands and replies in pieces.
impl Card {
    fn receive(&mut self, apdu: &[u8], shape: Shape) -> Result<(Vec<u8>, Status), Status> {
        let command = Command::parse(apdu)?;
        if command.class & !Command::CHAINED != 0 {
            return Err(Status::UNKNOWN_CLASS);
        }
        if command.instruction == ins::GET_RESPONSE {
            if self.session.pending.is_empty() {
                return Err(Status::WRONG_DATA);
            }
            return Ok(self.piece(command.expected, shape));
        }
        self.session.pending.clear();
        let held = self.session.held.take();
        let mut whole = match self.session.chain.take() {
            Some(chain) if command.continues(chain.header) => chain,
            _ => Chain {
                header: command.header(),
                data: Vec::new(),
            },
        };
        whole.data.extend_from_slice(command.data);
        if whole.data.len() > LONGEST_CHAIN {
            return Err(Status::WRONG_LENGTH);
        }
        if command.class & Command::CHAINED != 0 {
            self.session.chain = Some(whole);
            return Ok((Vec::new(), Status::OK));
        }
        if let Some((_, reply)) = held.filter(|(held, _)| *held == whole) {
            self.session.pending = reply;
            return Ok(self.piece(command.expected, Shape::AsAsked));
        }
        let reply = self.execute(whole.header, &whole.data)?;
        if shape == Shape::WrongLe && !reply.is_empty() {
            let status = Status::wrong_le(reply.len());
            self.session.held = Some((whole, reply));
            return Err(status);
        }
        self.session.pending = reply;
        Ok(self.piece(command.expected, shape))
    }

    /// The next piece of what is pending.
    fn piece(&mut self, expected: usize, shape: Shape) -> (Vec<u8>, Status) {
        let most = match shape {
            Shape::Pieces(size) => expected.min(size.max(1)),
            Shape::AsAsked | Shape::WrongLe => expected,
        };
        let pending = &mut self.session.pending;
        let piece = pending.drain(..most.min(pending.len())).collect();
        let status = match pending.len() {
            0 => Status::OK,
            left => Status::more(left),
        };
        (piece, status)
    }
}

/// Instructions.
impl Card {
    fn execute(&mut self, [instruction, p1, p2]: [u8; 3], data: &[u8]) -> Outcome {
        if instruction == ins::SELECT {
            return self.select(p1, data);
        }
        // Both are worth something to the very next command only.
        let pin_fresh = std::mem::take(&mut self.session.pin_fresh);
        let challenge = self.session.challenge.take();
        let firmware = self.firmware;
        if !self.nature.answers {
            return Err(Status::INTERNAL);
        }
        match (self.session.application, instruction) {
            (Some(Application::Otp), ins::OTP_REQUEST) if p1 == 0x10 => {
                Ok(self.serial.to_be_bytes().to_vec())
            }
            (None | Some(Application::Otp), _) => Err(Status::UNKNOWN_INSTRUCTION),
            (_, ins::VERIFY) => self.verify(p1, p2, data),
            (_, ins::CHANGE_REFERENCE) => self.change_reference(p1, p2, data),
            (_, ins::RESET_RETRY) => self.reset_retry(p1, p2, data),
            (_, ins::GENERATE) => self.generate(p1, p2, data),
            (_, ins::AUTHENTICATE) if p2 == MANAGEMENT => {
                self.authenticate_management(p1, data, challenge)
            }
            (_, ins::AUTHENTICATE) => self.use_key(p1, p2, data, pin_fresh),
            (_, ins::GET_DATA) => self.get_data(p1, p2, data),
            (_, ins::PUT_DATA) => self.put_data(p1, p2, data),
            (_, ins::MOVE_KEY) if firmware.move_keys => self.move_key(p1, p2),
            (_, ins::GET_METADATA) if firmware.metadata => self.metadata(p1, p2),
            (_, ins::GET_SERIAL) if firmware.serial => Ok(self.serial.to_be_bytes().to_vec()),
            (_, ins::ATTEST) if self.nature.attests => self.attest(p1, p2),
            (_, ins::SET_RETRIES) => self.set_retries(p1, p2),
            (_, ins::RESET) => self.reset_application(),
            (_, ins::GET_VERSION) => Ok(firmware.version.to_vec()),
            (_, ins::IMPORT) => self.import(p1, p2, data),
            (_, ins::SET_MANAGEMENT_KEY) => self.set_management_key(p1, p2, data),
            _ => Err(Status::UNKNOWN_INSTRUCTION),
        }
    }

    /// SELECT by name. It ends the session of the application that was selected, be it
    /// the same, unless [`Builder::keeps_rights`]; where the name is of no application,
    /// nothing changes.
    fn select(&mut self, p1: u8, data: &[u8]) -> Outcome {
        if p1 != 0x04 {
            return Err(Status::WRONG_P1_P2);
        }
        let (application, reply) = if data.len() >= 5 && PIV_AID.starts_with(data) {
            (Application::Piv, PIV_PROPERTIES.to_vec())
        } else if data.starts_with(OTP_AID) && !self.firmware.serial {
            // Version, then programming sequence and touch level, of which there is none.
            let status = [&self.firmware.version[..], &[0, 0, 0]].concat();
            (Application::Otp, status)
        } else {
            return Err(Status::NOT_FOUND);
        };
        let same = matches!(
            (self.session.application, application),
            (Some(Application::Piv), Application::Piv)
        );
        if !(same && self.keeps_rights) {
            self.session = Session {
                application: Some(application),
                ..Session::default()
            };
        }
        Ok(reply)
    }

    /// SP 800-73-4 part 2, §3.2.1.
    fn verify(&mut self, p1: u8, p2: u8, data: &[u8]) -> Outcome {
        if p2 != PIN {
            return Err(Status::REFERENCE_NOT_FOUND);
        }
        match (p1, data.len()) {
            (0xff, _) if !self.forgets_pin => Err(Status::WRONG_P1_P2),
            (0xff, 0) => {
                self.session.pin_verified = false;
                Ok(Vec::new())
            }
            (0x00, 0) if self.session.pin_verified => Ok(Vec::new()),
            (0x00, 0) if self.pin.is_blocked() => Err(Status::BLOCKED),
            (0x00, 0) => Err(Status::wrong(self.pin.left)),
            (0x00, 8) => {
                let checked = self.pin.check(data);
                self.session.pin_verified = checked.is_ok();
                self.session.pin_fresh = checked.is_ok();
                checked.map(|()| Vec::new())
            }
            (0x00 | 0xff, _) => Err(Status::WRONG_DATA),
            _ => Err(Status::WRONG_P1_P2),
        }
    }

    /// SP 800-73-4 part 2, §3.2.2.
    fn change_reference(&mut self, p1: u8, p2: u8, data: &[u8]) -> Outcome {
        if p1 != 0 {
            return Err(Status::WRONG_P1_P2);
        }
        let (old, new) = halves(data)?;
        match p2 {
            PIN => {
                let changed = (self.pin.check(old))
                    .inspect_err(|_| self.session.pin_verified = false)
                    .and_then(|()| self.pin.change(new, Reference::PIN));
                changed.map(|()| Vec::new())
            }
            PUK => {
                self.puk.check(old)?;
                self.puk.change(new, Reference::PUK)?;
                Ok(Vec::new())
            }
            _ => Err(Status::REFERENCE_NOT_FOUND),
        }
    }

    /// SP 800-73-4 part 2, §3.2.3.
    fn reset_retry(&mut self, p1: u8, p2: u8, data: &[u8]) -> Outcome {
        if p1 != 0 {
            return Err(Status::WRONG_P1_P2);
        }
        if p2 != PIN {
            return Err(Status::REFERENCE_NOT_FOUND);
        }
        let (puk, new) = halves(data)?;
        self.puk.check(puk)?;
        self.pin.change(new, Reference::PIN)?;
        Ok(Vec::new())
    }

    /// SP 800-73-4 part 2, §3.3.2, with Yubico's policies.
    fn generate(&mut self, p1: u8, p2: u8, data: &[u8]) -> Outcome {
        self.managed()?;
        let slot = self.slot(p2).filter(|_| p1 == 0);
        let slot = slot.ok_or(Status::WRONG_P1_P2)?;
        let elements = tlv::only(data, 0xac).and_then(tlv::all);
        let elements = elements.ok_or(Status::WRONG_DATA)?;
        let algorithm = match tlv::find(&elements, 0x80) {
            Some(&[reference]) => self.algorithm(reference)?,
            _ => return Err(Status::WRONG_DATA),
        };
        let (pin, touch) = self.policies(slot, &elements)?;
        let private = self.next_key(algorithm)?;
        if self.nature.writes_certificates {
            let certificate = own_certificate(&private)?;
            self.objects
                .write(object::certificate(slot), &certificate)?;
        }
        let reply = tlv::write(0x7f49, &[&private.public_elements()]);
        let origin = Origin::Generated;
        self.keys.insert(
            slot,
            Key {
                private,
                origin,
                pin,
                touch,
            },
        );
        Ok(reply)
    }

    /// One of the pool, or else a new one.
    fn next_key(&mut self, algorithm: Algorithm) -> Result<PrivateKey, Status> {
        let mut pool = self.pool.iter();
        let Some(at) = pool.position(|key| key.algorithm() == algorithm) else {
            return PrivateKey::try_generate(algorithm);
        };
        let key = self.pool.remove(at);
        self.pool.push(key.clone());
        Ok(key)
    }

    /// Yubico's IMPORT ASYMMETRIC KEY.
    fn import(&mut self, p1: u8, p2: u8, data: &[u8]) -> Outcome {
        self.managed()?;
        let slot = self.slot(p2).ok_or(Status::WRONG_P1_P2)?;
        let algorithm = self.algorithm(p1).map_err(|_| Status::WRONG_P1_P2)?;
        let elements = tlv::all(data).ok_or(Status::WRONG_DATA)?;
        let (pin, touch) = self.policies(slot, &elements)?;
        let private = PrivateKey::import(algorithm, &elements)?;
        let origin = Origin::Imported;
        self.keys.insert(
            slot,
            Key {
                private,
                origin,
                pin,
                touch,
            },
        );
        Ok(Vec::new())
    }

    /// GENERAL AUTHENTICATE with a key in a slot: signing, decrypting, key agreement
    /// (SP 800-73-4 part 2, §3.2.4 and appendix A).
    fn use_key(&mut self, p1: u8, p2: u8, data: &[u8], pin_fresh: bool) -> Outcome {
        let slot = self.slot(p2).filter(|slot| *slot != Slot::ATTESTATION);
        let slot = slot.ok_or(Status::WRONG_P1_P2)?;
        let key = self.keys.get(&slot).ok_or(Status::WRONG_DATA)?.clone();
        if self.algorithm(p1) != Ok(key.private.algorithm()) {
            return Err(Status::WRONG_P1_P2);
        }
        let elements = tlv::only(data, TEMPLATE).and_then(tlv::all);
        let elements = elements.ok_or(Status::WRONG_DATA)?;
        let pin_satisfied = match key.pin {
            PinPolicy::Never => true,
            PinPolicy::Once => self.session.pin_verified,
            PinPolicy::Always => self.session.pin_verified && pin_fresh,
        };
        if !pin_satisfied {
            return Err(Status::SECURITY_STATUS);
        }
        if tlv::find(&elements, RESPONSE).is_none_or(|wanted| !wanted.is_empty()) {
            return Err(Status::WRONG_DATA);
        }
        let challenge = tlv::find(&elements, CHALLENGE);
        let peer = tlv::find(&elements, EXPONENTIATION);
        // A touch is asked for only when there is something to do with it.
        if challenge.is_some() == peer.is_some() {
            return Err(Status::WRONG_DATA);
        }
        self.touched(key.touch)?;
        let result = match (challenge, peer) {
            (Some(challenge), _) => self.sign(&key.private, challenge)?,
            (_, Some(_)) if !self.nature.agrees => return Err(Status::NOT_SUPPORTED),
            (_, Some(peer)) => key.private.agree(peer)?,
            (None, None) => return Err(Status::WRONG_DATA),
        };
        Ok(tlv::write(TEMPLATE, &[&tlv::write(RESPONSE, &[&result])]))
    }

    fn sign(&self, key: &PrivateKey, challenge: &[u8]) -> Outcome {
        let mut signature = key.sign(challenge)?;
        if let (PrivateKey::Ed25519(_), false) = (key, self.nature.ed25519_verifies)
            && let Some(first) = signature.first_mut()
        {
            *first ^= 1;
        }
        Ok(signature)
    }

    /// GENERAL AUTHENTICATE with the management key, single or mutual.
    fn authenticate_management(
        &mut self,
        p1: u8,
        data: &[u8],
        challenge: Option<Challenge>,
    ) -> Outcome {
        if ManagementAlgorithm::from_reference(p1) != Some(self.management.algorithm()) {
            return Err(Status::WRONG_P1_P2);
        }
        let elements = tlv::only(data, TEMPLATE).and_then(tlv::all);
        let elements = elements.ok_or(Status::WRONG_DATA)?;
        let element = |tag| tlv::find(&elements, tag);
        let reply = |tag, value: &[u8]| tlv::write(TEMPLATE, &[&tlv::write(tag, &[value])]);
        match (element(WITNESS), element(CHALLENGE), element(RESPONSE)) {
            (Some([]), None, _) => {
                let witness = self.random_block()?;
                let sent = self.management.encrypt(&witness).ok_or(Status::INTERNAL)?;
                self.session.challenge = Some(Challenge::Witness(witness));
                Ok(reply(WITNESS, &sent))
            }
            (None, Some([]), _) => {
                let sent = self.random_block()?;
                self.session.challenge = Some(Challenge::Plain(sent.clone()));
                Ok(reply(CHALLENGE, &sent))
            }
            (Some(witness), Some(theirs), _) => {
                let Some(Challenge::Witness(expected)) = challenge else {
                    return Err(Status::WRONG_DATA);
                };
                let answer = self.management.encrypt(theirs).ok_or(Status::WRONG_DATA)?;
                self.admit(witness == expected)?;
                Ok(reply(RESPONSE, &answer))
            }
            (None, None, Some(response)) => {
                let Some(Challenge::Plain(sent)) = challenge else {
                    return Err(Status::WRONG_DATA);
                };
                let expected = self.management.encrypt(&sent).ok_or(Status::INTERNAL)?;
                self.admit(response == expected)?;
                Ok(Vec::new())
            }
            _ => Err(Status::WRONG_DATA),
        }
    }

    fn random_block(&self) -> Outcome {
        let mut block = vec![0; self.management.algorithm().block_size()];
        OsRng
            .try_fill_bytes(&mut block)
            .map_err(|_| Status::INTERNAL)?;
        Ok(block)
    }

    fn admit(&mut self, proven: bool) -> Result<(), Status> {
        self.session.management = false;
        if !proven {
            return Err(Status::SECURITY_STATUS);
        }
        self.touched(self.management_touch)?;
        self.session.management = true;
        Ok(())
    }

    /// SP 800-73-4 part 2, §3.1.2.
    fn get_data(&self, p1: u8, p2: u8, data: &[u8]) -> Outcome {
        if [p1, p2] != [0x3f, 0xff] {
            return Err(Status::WRONG_P1_P2);
        }
        let id = tlv::only(data, 0x5c).and_then(object_id);
        let id = id.ok_or(Status::WRONG_DATA)?;
        self.has_object(id)?;
        self.objects.read(id, self.session.pin_verified)
    }

    /// SP 800-73-4 part 2, §3.3.1.
    fn put_data(&mut self, p1: u8, p2: u8, data: &[u8]) -> Outcome {
        self.managed()?;
        if [p1, p2] != [0x3f, 0xff] {
            return Err(Status::WRONG_P1_P2);
        }
        match tlv::all(data).as_deref() {
            Some(&[(0x5c, id), (0x53, content)]) => {
                let id = object_id(id).ok_or(Status::WRONG_DATA)?;
                self.has_object(id)?;
                self.objects.write(id, content)?;
                Ok(Vec::new())
            }
            _ => Err(Status::WRONG_DATA),
        }
    }

    /// Yubico's MOVE KEY (P1 is the empty slot that P2's key goes to) and DELETE KEY (P1
    /// is FF). F9's key stays where it is, but can be deleted.
    fn move_key(&mut self, p1: u8, p2: u8) -> Outcome {
        self.managed()?;
        let from = self.slot(p2).ok_or(Status::WRONG_P1_P2)?;
        if !self.keys.contains_key(&from) {
            return Err(Status::REFERENCE_NOT_FOUND);
        }
        let to = match p1 {
            0xff => None,
            to => Some(self.slot(to).ok_or(Status::WRONG_P1_P2)?),
        };
        let barred = |slot: Slot| slot == Slot::ATTESTATION || self.keys.contains_key(&slot);
        if to.is_some_and(|to| from == Slot::ATTESTATION || barred(to)) {
            return Err(Status::WRONG_P1_P2);
        }
        if let (Some(key), Some(to)) = (self.keys.remove(&from), to) {
            self.keys.insert(to, key);
        }
        Ok(Vec::new())
    }

    /// Yubico's GET METADATA.
    fn metadata(&self, p1: u8, p2: u8) -> Outcome {
        const ALGORITHM: u32 = 1;
        const POLICY: u32 = 2;
        const ORIGIN: u32 = 3;
        const PUBLIC: u32 = 4;
        const IS_DEFAULT: u32 = 5;
        const RETRIES: u32 = 6;
        if p1 != 0 {
            return Err(Status::WRONG_P1_P2);
        }
        let algorithm = match self.nature.names_algorithm_of_pins {
            true => tlv::write(ALGORITHM, &[&[0xff]]),
            false => Vec::new(),
        };
        let reference = |reference: &Reference| {
            [
                algorithm.clone(),
                tlv::write(IS_DEFAULT, &[&[reference.is_default.into()]]),
                tlv::write(RETRIES, &[&[reference.tries, reference.left]]),
            ]
            .concat()
        };
        match p2 {
            PIN => Ok(reference(&self.pin)),
            PUK => Ok(reference(&self.puk)),
            MANAGEMENT => Ok([
                tlv::write(ALGORITHM, &[&[self.management.algorithm() as u8]]),
                tlv::write(POLICY, &[&[0, self.management_touch as u8]]),
                tlv::write(IS_DEFAULT, &[&[self.management.is_default().into()]]),
            ]
            .concat()),
            _ => {
                let unknown = self.nature.unknown_reference;
                let slot = self.slot(p2).ok_or(unknown)?;
                let Some(key) = self.keys.get(&slot) else {
                    return match self.nature.metadata_of_empty_slots {
                        true => Ok(
                            [tlv::write(POLICY, &[&[0, 0]]), tlv::write(ORIGIN, &[&[0]])].concat(),
                        ),
                        false => Err(unknown),
                    };
                };
                Ok([
                    tlv::write(ALGORITHM, &[&[key.private.algorithm() as u8]]),
                    tlv::write(POLICY, &[&[key.pin as u8, key.touch as u8]]),
                    tlv::write(ORIGIN, &[&[key.origin as u8]]),
                    tlv::write(PUBLIC, &[&key.private.public_elements()]),
                ]
                .concat())
            }
        }
    }

    /// Yubico's ATTEST: only keys that were made here.
    fn attest(&self, p1: u8, p2: u8) -> Outcome {
        let slot = self
            .slot(p1)
            .filter(|slot| *slot != Slot::ATTESTATION && p2 == 0);
        let slot = slot.ok_or(Status::WRONG_P1_P2)?;
        let key = self.keys.get(&slot).ok_or(Status::WRONG_DATA)?;
        if key.origin != Origin::Generated {
            return Err(Status::WRONG_DATA);
        }
        let signer = self.keys.get(&Slot::ATTESTATION);
        let signer = signer.ok_or(Status::CONDITIONS)?;
        let certificate = self.attestation_certificate();
        let certificate = certificate.ok_or(Status::CONDITIONS)?;
        let statement = Statement {
            slot,
            key: &key.private,
            pin: key.pin,
            touch: key.touch,
            version: self.firmware.version,
            serial: self.firmware.serial.then_some(self.serial),
        };
        statement.sign(&signer.private, certificate)
    }

    /// Yubico's SET PIN RETRIES: PIN and PUK become the defaults again.
    fn set_retries(&mut self, pin: u8, puk: u8) -> Outcome {
        self.managed()?;
        if !self.session.pin_verified {
            return Err(Status::SECURITY_STATUS);
        }
        if pin == 0 || puk == 0 {
            return Err(Status::WRONG_P1_P2);
        }
        self.pin = Reference::new(Reference::PIN, pin, Reference::PIN);
        self.puk = Reference::new(Reference::PUK, puk, Reference::PUK);
        self.session.pin_verified = false;
        Ok(Vec::new())
    }

    /// Yubico's SET MANAGEMENT KEY; P2 is FF, FE or FD for touch never, always, cached.
    fn set_management_key(&mut self, p1: u8, p2: u8, data: &[u8]) -> Outcome {
        self.managed()?;
        let touch = match (p1, p2) {
            (0xff, 0xff) => TouchPolicy::Never,
            (0xff, 0xfe) => TouchPolicy::Always,
            (0xff, 0xfd) => TouchPolicy::Cached,
            _ => return Err(Status::WRONG_P1_P2),
        };
        let (&reference, key) = data.split_first().ok_or(Status::WRONG_DATA)?;
        let algorithm = ManagementAlgorithm::from_reference(reference)
            .filter(|algorithm| self.firmware.management.contains(algorithm));
        let algorithm = algorithm.ok_or(Status::WRONG_DATA)?;
        let key = tlv::only(key, u32::from(MANAGEMENT))
            .and_then(|key| ManagementKey::new(algorithm, key));
        self.management = key.ok_or(Status::WRONG_DATA)?;
        self.management_touch = touch;
        Ok(Vec::new())
    }

    /// Yubico's RESET, for whoever has used up both PIN and PUK.
    fn reset_application(&mut self) -> Outcome {
        if !self.pin.is_blocked() || !self.puk.is_blocked() {
            return Err(Status::CONDITIONS);
        }
        self.pin = Reference::new(Reference::PIN, 3, Reference::PIN);
        self.puk = Reference::new(Reference::PUK, 3, Reference::PUK);
        self.management = default_management_key(&self.firmware);
        self.management_touch = TouchPolicy::Never;
        self.keys.retain(|slot, _| *slot == Slot::ATTESTATION);
        self.objects.reset();
        self.session = Session {
            application: Some(Application::Piv),
            ..Session::default()
        };
        Ok(Vec::new())
    }
}

/// What instructions have in common.
impl Card {
    fn managed(&self) -> Result<(), Status> {
        match self.session.management {
            true => Ok(()),
            false => Err(Status::SECURITY_STATUS),
        }
    }

    /// The slot with this reference, if the card has it.
    fn slot(&self, reference: u8) -> Option<Slot> {
        let missing = self.nature.last_retired + 1..=0x95;
        Slot::new(reference).filter(|slot| !missing.contains(&slot.reference()))
    }

    /// Refuses the certificate objects of slots that the card does not have.
    fn has_object(&self, id: ObjectId) -> Result<(), Status> {
        let missing = Slot::all().filter(|slot| self.slot(slot.reference()).is_none());
        match missing.map(object::certificate).any(|object| object == id) {
            true => Err(Status::NOT_FOUND),
            false => Ok(()),
        }
    }

    fn policies(
        &self,
        slot: Slot,
        elements: &[(u32, &[u8])],
    ) -> Result<(PinPolicy, TouchPolicy), Status> {
        let given = elements.iter().any(|(tag, _)| [0xaa, 0xab].contains(tag));
        if given && !self.nature.takes_policies {
            return Err(Status::WRONG_DATA);
        }
        policies(slot, elements)
    }

    /// The algorithm with this reference, if the firmware has it.
    fn algorithm(&self, reference: u8) -> Result<Algorithm, Status> {
        Algorithm::from_reference(reference)
            .filter(|algorithm| self.firmware.algorithms.contains(algorithm))
            .ok_or(Status::WRONG_DATA)
    }

    fn touched(&mut self, policy: TouchPolicy) -> Result<(), Status> {
        let recent = |at: Instant| at.elapsed() < TouchPolicy::CACHED_FOR;
        match policy {
            TouchPolicy::Never => return Ok(()),
            TouchPolicy::Cached if self.last_touch.is_some_and(recent) => return Ok(()),
            TouchPolicy::Cached | TouchPolicy::Always => {}
        }
        match self.touch {
            Touch::After(delay) => {
                self.waited += delay;
                self.last_touch = Instant::now().checked_add(delay);
                Ok(())
            }
            Touch::Never(patience) => {
                self.waited += patience;
                Err(Status::SECURITY_STATUS)
            }
        }
    }
}

/// The content of a certificate object that the card makes up itself.
fn own_certificate(key: &PrivateKey) -> Outcome {
    let certificate = crate::attest::self_made(key)?;
    Ok([
        tlv::write(0x70, &[&certificate]),
        tlv::write(0x71, &[&[0]]),
        tlv::write(0xfe, &[]),
    ]
    .concat())
}

impl PrivateKey {
    /// The content of a certificate object that names this key, as other tools write it.
    /// `None` where this system's source of randomness fails.
    pub fn certificate_object(&self) -> Option<Vec<u8>> {
        own_certificate(self).ok()
    }
}

/// Two padded values, one after the other.
fn halves(data: &[u8]) -> Result<(&[u8], &[u8]), Status> {
    if data.len() != 16 {
        return Err(Status::WRONG_DATA);
    }
    Ok(data.split_at(8))
}

fn object_id(bytes: &[u8]) -> Option<ObjectId> {
    if !(1..=3).contains(&bytes.len()) {
        return None;
    }
    Some(
        bytes
            .iter()
            .fold(0, |id, &byte| id << 8 | ObjectId::from(byte)),
    )
}

/// The policies that a key is made or imported with; 0, and none, mean the default.
fn policies(slot: Slot, elements: &[(u32, &[u8])]) -> Result<(PinPolicy, TouchPolicy), Status> {
    let pin = match tlv::find(elements, 0xaa) {
        None | Some([0]) => default_pin_policy(slot),
        Some(&[value]) => PinPolicy::from_wire(value).ok_or(Status::WRONG_DATA)?,
        Some(_) => return Err(Status::WRONG_DATA),
    };
    let touch = match tlv::find(elements, 0xab) {
        None | Some([0]) => TouchPolicy::Never,
        Some(&[value]) => TouchPolicy::from_wire(value).ok_or(Status::WRONG_DATA)?,
        Some(_) => return Err(Status::WRONG_DATA),
    };
    Ok((pin, touch))
}
