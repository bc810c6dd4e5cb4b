//! Replays a transcript of a PIV card: the driver gets the same requests, a card with the recorded
//! replies stands behind it, and all results must be the same.
//!
//! A transcript has no secrets, so others take their place. A PIN is wrong or right as its recorded
//! answer says. The management key is the published one of a
//! [virtual card](claviger_virtual_yubikey::Card), which does that part. An agreed secret is bytes
//! `5a`. The signature in the mark of a key may differ, since the driver makes it. RSA decryption
//! cannot be replayed and is skipped. A card without metadata proves by a signature of random bytes
//! that it has a key before that is deleted; a replay ends there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use claviger_piv::PivDriver;
use claviger_piv::apdu::{Lost, Transport};
use claviger_piv::reader::{Link, Readers, Unreachable};
use claviger_token::key::{from_hex, to_hex};
use claviger_token::sync::lock;
use claviger_token::{
    Access, Call, Decryptor, Detail, Driver, Error, KeyRef, KeySpec, NewKey, Pin, PinSource,
    PublicKey, RefusedInProcess, Signer, SlotId, Token, TokenId, Unfinished, Unwrap,
};
use claviger_virtual_yubikey::{Card, ManagementAlgorithm};
use serde_json::Value;

use crate::error::HilError;
use crate::guard::{outcome, show};
use crate::transcript::{self, Line, meant};

/// How much was replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Calls of the driver's interface.
    pub calls: usize,
    /// Whether that is all of it; else the card was to prove something that only it can.
    pub to_the_end: bool,
}

/// Replays a transcript.
///
/// # Errors
/// [`HilError::BadReport`] where it is none, [`HilError::Deviation`] where something else
/// comes of it than then.
pub fn replay(path: &Path) -> Result<Replayed, HilError> {
    let (head, lines) = transcript::read(path)?;
    let bad = |reason: String| HilError::BadReport {
        path: path.into(),
        reason,
    };
    if (head.transcript, &*head.kind) != (1, "piv") {
        return Err(bad("only transcripts of PIV cards can be replayed".into()));
    }
    let player = Player::new(lines);
    let mut stage = Stage {
        driver: Arc::new(PivDriver::with_readers(player.clone())),
        player: player.clone(),
        access: access(&player),
        tokens: HashMap::new(),
        signers: HashMap::new(),
        decryptors: HashMap::new(),
    };
    let mut calls = 0;
    loop {
        let (done, uses_key) = match player.next() {
            None => break,
            Some(Line::Call { name, with }) => {
                let uses_key = matches!(&*name, "sign" | "sign_in" | "sign_digest" | "unwrap");
                (stage.perform(&name, &with), uses_key)
            }
            Some(_) => (Err("a call was to come".into()), true),
        };
        // What the card was asked goes before what came of it.
        let first = lock(&player.0).deviation.take();
        let (line, proof) = {
            let tape = lock(&player.0);
            (tape.at + 1, tape.proof)
        };
        if let Some(reason) = first.or(done.err()) {
            if proof && !uses_key {
                return Ok(Replayed {
                    calls,
                    to_the_end: false,
                });
            }
            return Err(HilError::Deviation {
                path: path.into(),
                reason: format!("line {line}: {reason}"),
            });
        }
        calls += 1;
    }
    Ok(Replayed {
        calls,
        to_the_end: true,
    })
}

/// The lines that are to come, and a card behind them. Clones are the same.
#[derive(Clone)]
struct Player(Arc<Mutex<Tape>>);

struct Tape {
    lines: Vec<Line>,
    at: usize,
    /// The first thing that was asked and is not in the transcript.
    deviation: Option<String>,
    /// Whether that was a signature of something else.
    proof: bool,
    /// Plays the part in which the management key is shown.
    card: Card,
    management_key: String,
}

const SELECT: [u8; 10] = [0x00, 0xa4, 0x04, 0x00, 0x05, 0xa0, 0x00, 0x00, 0x03, 0x08];

impl Player {
    fn new(lines: Vec<Line>) -> Player {
        let asked = lines.iter().find_map(|line| match line {
            Line::Command { command, .. } => {
                let command = from_hex(command)?;
                matches!(command[..], [_, 0x87, _, 0x9b, ..]).then(|| command[2])
            }
            _ => None,
        });
        let (algorithm, length) = match asked {
            Some(0x08) => (ManagementAlgorithm::Aes128, 16),
            Some(0x0a) => (ManagementAlgorithm::Aes192, 24),
            Some(0x0c) => (ManagementAlgorithm::Aes256, 32),
            _ => (ManagementAlgorithm::TripleDes, 24),
        };
        let key: Vec<u8> = (1..=8u8).cycle().take(length).collect();
        let mut card = Card::builder().management_key(algorithm, &key).build();
        card.process(&SELECT);
        Player(Arc::new(Mutex::new(Tape {
            lines,
            at: 0,
            deviation: None,
            proof: false,
            card,
            management_key: to_hex(&key),
        })))
    }

    fn next(&self) -> Option<Line> {
        let mut tape = lock(&self.0);
        let line = tape.lines.get(tape.at).cloned();
        tape.at += 1;
        line
    }

    /// The next line, if it fits; else that is remembered.
    fn expect<T>(&self, asked: &str, fits: impl Fn(&Line) -> Option<T>) -> Result<T, Lost> {
        let mut tape = lock(&self.0);
        if let Some(found) = tape.lines.get(tape.at).and_then(fits) {
            tape.at += 1;
            return Ok(found);
        }
        // A driver that lost a card tries again: what counts is the first.
        if tape.deviation.is_none() {
            let next = tape.lines.get(tape.at);
            let proof = matches!(next, Some(Line::Command { command, .. })
                if command.starts_with("0087") && command.get(..10) == asked.get(..10));
            tape.deviation = Some(format!("asked now: {asked}; in the transcript: {next:?}"));
            tape.proof = proof;
        }
        Err(Lost::new("this is not in the transcript"))
    }

    /// What the card said to the same command before the PIN was asked for that was given
    /// just now.
    ///
    /// The driver lets the card go where a PIN comes late, and then begins again. A PIN that
    /// came in time then may come late now, on a machine that has other things to do.
    fn said_before_the_pin(&self, apdu: &[u8], asked: &str) -> Option<Vec<u8>> {
        // It selects the application, and looks how many tries are left.
        if !matches!(
            apdu,
            [0x00, 0xa4, ..] | [0x00, 0x20, _, _] | [0x00, 0x20, _, _, 0]
        ) {
            return None;
        }
        let tape = lock(&self.0);
        let said = |line: &Line| match line {
            Line::Command { command, reply, .. } if command == asked => reply.clone(),
            _ => None,
        };
        if tape.lines.get(tape.at).and_then(said).is_some() {
            return None;
        }
        match tape.lines.get(..tape.at)? {
            [before @ .., Line::Pin { .. }] => from_hex(&before.iter().rev().find_map(said)?),
            _ => None,
        }
    }

    fn is_next(&self, fits: impl Fn(&Line) -> bool) -> bool {
        let tape = lock(&self.0);
        tape.lines.get(tape.at).is_some_and(fits)
    }

    /// Why no transaction could be begun then, if that is what comes next.
    fn not_begun(&self) -> Option<Lost> {
        let mut tape = lock(&self.0);
        let lost = match tape.lines.get(tape.at) {
            Some(Line::NotBegun { lost, present }) => gone(lost, *present),
            _ => return None,
        };
        tape.at += 1;
        Some(lost)
    }

    fn transmit(&self, apdu: &[u8]) -> Result<Vec<u8>, Lost> {
        let asked = to_hex(apdu);
        let lost_part = |line: &Line| matches!(line, Line::Command { command, reply: None, .. } if command.starts_with("10db"));
        // The certificate with which a key is marked is signed anew; so what is written
        // is not compared, nor in how many parts.
        match apdu {
            [0x10, 0xdb, ..] if !self.is_next(lost_part) => return Ok(vec![0x90, 0x00]),
            [0x00, 0xdb, ..] => {
                let part = |line: &Line| matches!(line, Line::Command { command, .. } if command.starts_with("10db"));
                while self.is_next(part) {
                    lock(&self.0).at += 1;
                }
            }
            _ => {}
        }
        if let Some(said) = self.said_before_the_pin(apdu, &asked) {
            return Ok(said);
        }
        // A transaction that went on then may be over now, and the other way round.
        if let Some(lost) = self.not_begun() {
            return Err(lost);
        }
        let is_written = matches!(apdu, [_, 0xdb, ..]);
        let (recorded, hidden) = self.expect(&asked, |line| match line {
            Line::Command {
                command,
                reply,
                lost,
                present,
                command_hidden,
                reply_hidden,
            } => {
                let compared = match (is_written, command_hidden) {
                    (true, _) => 8,
                    (_, true) => 10,
                    _ => command.len().max(asked.len()),
                };
                let same = command.get(..compared.min(command.len()))
                    == asked.get(..compared.min(asked.len()));
                let answer = match reply {
                    Some(reply) => from_hex(reply).ok_or_else(|| Lost::new("not hexadecimal")),
                    None => Err(gone(lost.as_deref().unwrap_or_default(), *present)),
                };
                same.then_some((answer, *reply_hidden))
            }
            _ => None,
        })?;
        let recorded = recorded?;
        match apdu {
            [_, 0x87, _, 0x9b, ..] if hidden && recorded.ends_with(&[0x90, 0x00]) => {
                Ok(lock(&self.0).card.process(apdu))
            }
            _ => Ok(recorded),
        }
    }
}

/// What was lost then is lost now.
fn gone(reason: &str, present: bool) -> Lost {
    match present {
        true => Lost::unusable(reason),
        false => Lost::new(reason),
    }
}

impl Readers for Player {
    fn list(&self) -> Result<Vec<String>, Unreachable> {
        let found = self.expect("which readers there are", |line| match line {
            Line::List { found } => Some(found.clone()),
            _ => None,
        });
        found.map_err(|lost| Unreachable {
            what: "the transcript".into(),
            reason: lost.reason,
        })
    }

    fn connect(&self, reader: &str) -> Result<Box<dyn Link>, Lost> {
        let lost = self.expect(reader, |line| match line {
            Line::Connect { to, lost, present } if to == reader => {
                Some(lost.as_ref().map(|reason| gone(reason, *present)))
            }
            _ => None,
        })?;
        match lost {
            None => Ok(Box::new(self.clone())),
            Some(lost) => Err(lost),
        }
    }
}

impl Link for Player {
    fn begin(&mut self) -> Result<Box<dyn Transport + '_>, Lost> {
        match self.not_begun() {
            Some(lost) => Err(lost),
            None => Ok(Box::new(self.clone())),
        }
    }
}

impl Transport for Player {
    fn transmit(&mut self, apdu: &[u8]) -> Result<Vec<u8>, Lost> {
        Player::transmit(self, apdu)
    }

    /// Shows in the transcript by what comes after it.
    fn reset(self: Box<Self>) -> Result<(), Lost> {
        Ok(())
    }
}

/// For longer than this the driver does not wait for a PIN while it holds the card.
const LATE: Duration = Duration::from_millis(200);

/// Gives what the transcript says was given.
struct Given {
    player: Player,
    is_pin: bool,
}

impl PinSource for Given {
    fn pin(&self, token: &TokenId, _label: &str, _: &Call) -> Result<Pin, Error> {
        let is_pin = self.is_pin;
        let given = self.player.expect("a PIN or a key", |line| match line {
            Line::Pin { given } if is_pin => {
                Some(given.map(|n| format!("{}", 100_000 + n % 900_000)))
            }
            Line::ManagementKey { given } if !is_pin => Some(given.then(String::new)),
            _ => None,
        });
        // A person gave it then, and the driver did not hold the card for so long.
        let selects = |line: &Line| matches!(line, Line::Command { command, .. } if command.starts_with("00a4"));
        if is_pin && self.player.is_next(selects) {
            std::thread::sleep(LATE);
        }
        match given {
            Ok(Some(pin)) if is_pin => Ok(pin.into()),
            Ok(Some(_)) => Ok(lock(&self.player.0).management_key.clone().into()),
            _ => Err(Error::PinNeeded {
                token: token.clone(),
            }),
        }
    }
}

/// What the transcript says was given to all calls.
fn access(player: &Player) -> Access {
    let given = |is_pin| {
        let player = player.clone();
        Arc::new(Given { player, is_pin })
    };
    let mut access = Access::without_pin().with_pins(given(true));
    access.management_keys = given(false);
    access.refused_pins = Arc::new(RefusedInProcess::default());
    access
}

/// The driver, and what was opened so far.
struct Stage {
    driver: Arc<dyn Driver>,
    player: Player,
    access: Access,
    tokens: HashMap<u64, Arc<dyn Token>>,
    signers: HashMap<String, Arc<dyn Signer>>,
    decryptors: HashMap<String, Arc<dyn Decryptor>>,
}

type Told<T> = Result<T, String>;

impl Stage {
    /// Asks for what the transcript asks for, and compares what comes of it.
    fn perform(&mut self, name: &str, with: &Value) -> Told<()> {
        let result = match name {
            "close" => {
                self.tokens.remove(&number(with, "token")?);
                return Ok(());
            }
            "drop" => {
                let handle = text(with, "handle")?;
                self.signers.remove(&handle);
                self.decryptors.remove(&handle);
                return Ok(());
            }
            "look" => {
                let detail = match parse(with, "slots")? {
                    true => Detail::Slots,
                    false => Detail::Tokens,
                };
                let backend = long_text(with, "backend")?;
                let found = self.driver.look(&backend, detail, &Call::unlimited());
                outcome(&found, show::listing)
            }
            "open" => {
                let call = Call::unlimited().using(self.access.clone());
                let backend = long_text(with, "backend")?;
                let opened = self.driver.open(&backend, &call);
                let result = outcome(&opened, show::nothing);
                if let Ok(token) = opened {
                    self.tokens.insert(number(with, "as")?, token);
                }
                result
            }
            "sign" | "sign_in" | "sign_digest" => self.sign(name, with)?,
            "unwrap" | "confirm" => self.with_decryptor(name, with)?,
            _ => self.on_token(name, with)?,
        };
        match self.player.next() {
            Some(Line::Done { result: recorded }) if is_same(name, with, &recorded, &result) => {
                Ok(())
            }
            Some(Line::Done { result: recorded }) => {
                Err(format!("{name} gives {result}, and gave {recorded}"))
            }
            _ => Err(format!(
                "{name} no longer asks the card for as much as it did"
            )),
        }
    }

    fn on_token(&mut self, name: &str, with: &Value) -> Told<Value> {
        let token = self.tokens.get(&number(with, "token")?);
        let token = token.ok_or("the token is not open")?;
        let call = call(with).using(self.access.clone());
        Ok(match name {
            "slots" => outcome(&token.slots(&call), |found| show::slots(found)),
            "free_slots" => {
                let specs: Vec<KeySpec> = parse(with, "specs")?;
                let taken: Vec<SlotId> = parse(with, "taken")?;
                outcome(&token.free_slots(&specs, &taken, &call), |found| {
                    show::names(found)
                })
            }
            "generate" => {
                let slot = SlotId::new(long_text(with, "slot")?);
                let mark = meant_text(with, "mark")?;
                let new = NewKey {
                    slot: &slot,
                    spec: parse(with, "spec")?,
                    mark: &mark,
                };
                outcome(&token.generate(&new, &call), show::generated)
            }
            "name" => {
                let label = meant_text(with, "label")?;
                let named = token.name(&key_ref(with)?, &label, &call);
                outcome(&named, show::nothing)
            }
            "delete" => outcome(&token.delete(&key_ref(with)?, &call), show::deletion),
            "discard" => {
                let has_key = !with["public_key"].is_null();
                let left = Unfinished {
                    slot: SlotId::new(long_text(with, "slot")?),
                    mark: meant_text(with, "mark")?,
                    public_key: has_key.then(|| public_key(with)).transpose()?,
                };
                outcome(&token.discard(&left, &call), show::deletion)
            }
            "signer" | "decryptor" => {
                let key = key_ref(with)?;
                let handle = text(with, "as")?;
                if name == "signer" {
                    let signer = token.signer(&key, &Call::unlimited());
                    let result = outcome(&signer, show::nothing);
                    self.signers
                        .extend(signer.ok().map(|signer| (handle, signer)));
                    result
                } else {
                    let decryptor = token.decryptor(&key, &Call::unlimited());
                    let result = outcome(&decryptor, show::nothing);
                    self.decryptors
                        .extend(decryptor.ok().map(|decryptor| (handle, decryptor)));
                    result
                }
            }
            other => return Err(format!("there is no call {other}")),
        })
    }

    fn sign(&self, name: &str, with: &Value) -> Told<Value> {
        let signer = self.signers.get(&text(with, "handle")?);
        let signer = signer.ok_or("there is no such key")?;
        let signature = match name {
            "sign" => signer.sign(&bytes(with, "message")?, &call(with)),
            "sign_in" => {
                let scheme = text(with, "scheme")?.parse();
                let scheme = scheme.map_err(|_| "its scheme is unknown")?;
                signer.sign_in(scheme, &bytes(with, "message")?, &call(with))
            }
            _ => {
                let digests = signer.of_digests().ok_or("it signs no digests")?;
                digests.sign_digest(&bytes(with, "digest")?, &call(with))
            }
        };
        Ok(outcome(&signature, show::signature))
    }

    fn with_decryptor(&self, name: &str, with: &Value) -> Told<Value> {
        let decryptor = self.decryptors.get(&text(with, "handle")?);
        let decryptor = decryptor.ok_or("there is no such key")?;
        let call = call(with);
        if name == "confirm" {
            return Ok(outcome(&decryptor.confirm(&call), show::nothing));
        }
        let secret = match with.get("peer") {
            Some(_) => {
                let peer = bytes(with, "peer")?;
                // Of bytes that are no key the driver that was recorded said the same.
                match PublicKey::from_bytes(decryptor.public_key().algorithm(), &peer) {
                    Ok(peer) => decryptor.unwrap(Unwrap::Agree { peer: &peer }, &call),
                    Err(_) => Err(Error::DecryptionFailed),
                }
            }
            None => {
                let (ciphertext, label) = (bytes(with, "ciphertext")?, bytes(with, "label")?);
                let request = Unwrap::Oaep {
                    ciphertext: &ciphertext,
                    label: &label,
                };
                decryptor.unwrap(request, &call)
            }
        };
        Ok(outcome(&secret, show::secret))
    }
}

/// Whether the same came of it. What RSA opened is not in the transcript.
fn is_same(name: &str, with: &Value, recorded: &Value, now: &Value) -> bool {
    let is_rsa = name == "unwrap" && with.get("ciphertext").is_some();
    recorded == now || (is_rsa && recorded.get("ok").is_some())
}

fn number(with: &Value, name: &str) -> Told<u64> {
    with[name].as_u64().ok_or(format!("{name} is no number"))
}

fn text(with: &Value, name: &str) -> Told<String> {
    let text = with[name].as_str().ok_or(format!("{name} is no text"))?;
    Ok(text.to_owned())
}

fn bytes(with: &Value, name: &str) -> Told<Vec<u8>> {
    meant(&with[name]).ok_or(format!("{name} is no bytes"))
}

/// A text whose bytes are in the transcript: it may be anything.
fn meant_text(with: &Value, name: &str) -> Told<String> {
    String::from_utf8(bytes(with, name)?).map_err(|_| format!("{name} is no text"))
}

fn public_key(with: &Value) -> Told<PublicKey> {
    PublicKey::from_text(&text(with, "public_key")?).map_err(|e| format!("public_key: {e}"))
}

fn key_ref(with: &Value) -> Told<KeyRef> {
    Ok(KeyRef {
        slot: SlotId::new(long_text(with, "slot")?),
        public_key: public_key(with)?,
    })
}

/// A text that may be too long for a line.
fn long_text(with: &Value, name: &str) -> Told<String> {
    match with[name].get("utf8").and_then(meant) {
        Some(bytes) => String::from_utf8(bytes).map_err(|e| e.to_string()),
        None => text(with, name),
    }
}

fn parse<T: serde::de::DeserializeOwned>(with: &Value, name: &str) -> Told<T> {
    serde_json::from_value(with[name].clone()).map_err(|e| format!("{name}: {e}"))
}

fn call(with: &Value) -> Call {
    match with["late"].as_str() {
        Some("cancelled") => Call::unlimited().cancelled_by(Arc::new(AtomicBool::new(true))),
        Some(_) => Call::within(Duration::ZERO),
        None => Call::unlimited(),
    }
}
