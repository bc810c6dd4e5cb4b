//! The clients of a daemon that is killed again and again.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope};
use std::time::Duration;

use claviger_client::blocking::{Call, Client, Listener};
use claviger_client::peer::Expected;
use claviger_client::request::{Decrypt, Delete, Generate, committer, decryptor, raw};
use claviger_client::wire::{self, KeyUse};
use claviger_client::{Error, Options};
use claviger_tests::SoftHsm;
use claviger_token::key::to_hex;
use claviger_token::sync::lock;
use claviger_token::{PublicKey, Signature, Zeroizing};
use sha2::{Digest, Sha256};

use crate::common::Stage;
use crate::daemons::{ALICE, Tally, count};
use crate::report::Choices;

/// What the file says that clients open.
pub(crate) const LETTER: &[u8] = b"Meet me where the keys are kept.\n";

/// So many clients there are, and so many of them make identities, and open files. The others sign.
const CLIENTS: usize = 32;
const MAKERS: usize = 3;
const OPENERS: usize = 4;
/// A request that is not answered by then, over all daemons that die meanwhile, never is.
const NEVER: Duration = Duration::from_secs(60);
/// So long a client does nothing between two requests.
const PAUSE: Duration = Duration::from_millis(10);

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Sign,
    Open,
    Make,
}

impl Work {
    const ALL: [Work; 3] = [Work::Sign, Work::Open, Work::Make];

    fn name(self) -> &'static str {
        match self {
            Work::Sign => "signed",
            Work::Open => "opened",
            Work::Make => "made_or_deleted",
        }
    }

    fn of(number: usize) -> Work {
        match number {
            n if n < MAKERS => Work::Make,
            n if n < MAKERS + OPENERS => Work::Open,
            _ => Work::Sign,
        }
    }
}

/// What is known of the identity of a client that makes some.
#[derive(Debug, Clone)]
enum Fate {
    /// A request about it was not answered.
    Unknown,
    There(String),
    Gone(String),
}

/// The clients of one stage.
pub(crate) struct Clients<'a> {
    stage: &'a Stage,
    tally: &'a Tally,
    key: PublicKey,
    backend: String,
    sealed: Vec<u8>,
    fates: [Mutex<Fate>; MAKERS],
    /// The digests of what was signed, in hexadecimal.
    signed: Mutex<BTreeSet<String>>,
    done: [AtomicU64; 3],
}

/// Who gives the PIN of a stage's token.
struct Pin;

impl Listener for Pin {
    fn pin(&self, _: &wire::PinRequest) -> Option<Zeroizing<Vec<u8>>> {
        Some(Zeroizing::new(SoftHsm::PIN.as_bytes().to_vec()))
    }
}

impl<'a> Clients<'a> {
    pub(crate) fn new(stage: &'a Stage, tally: &'a Tally) -> Self {
        let keys = stage.json(&["show", ALICE])["keys"].clone();
        let signs = |key: &&serde_json::Value| key["use"] == "sign";
        let key = keys.as_array().unwrap().iter().find(signs).unwrap();
        let key = PublicKey::from_text(key["public_key"].as_str().unwrap()).unwrap();
        Clients {
            stage,
            tally,
            key,
            backend: stage.token.backend(),
            sealed: stage.read("letter.age"),
            fates: std::array::from_fn(|_| Mutex::new(Fate::Unknown)),
            signed: Mutex::default(),
            done: Default::default(),
        }
    }

    /// Lets them work until `ends`.
    pub(crate) fn begin<'scope>(
        &'a self,
        scope: &'scope Scope<'scope, '_>,
        mut choices: Choices,
        ends: &'a AtomicBool,
    ) where
        'a: 'scope,
    {
        for number in 0..CLIENTS {
            let pauses = Choices::new(choices.below(u64::MAX), number as u64);
            scope.spawn(move || self.work(number, pauses, ends));
        }
    }

    /// What is not as the clients were told, where these identities are there.
    pub(crate) fn untrue(&self, there: &BTreeSet<String>) -> Vec<String> {
        let of = |fate: &Mutex<Fate>| match lock(fate).clone() {
            Fate::There(name) if !there.contains(&name) => {
                Some(format!("`{name}` was made, and is not there"))
            }
            Fate::Gone(name) if there.contains(&name) => {
                Some(format!("`{name}` was deleted, and is there"))
            }
            _ => None,
        };
        self.fates.iter().filter_map(of).collect()
    }

    /// The digests of what they have signatures of.
    pub(crate) fn signed(&self) -> BTreeSet<String> {
        lock(&self.signed).clone()
    }

    /// How much was done of each work.
    pub(crate) fn done(&self) -> [(&'static str, u64); 3] {
        let done = |work: Work| self.done[work as usize].load(Ordering::Relaxed);
        Work::ALL.map(|work| (work.name(), done(work)))
    }

    fn work(&self, number: usize, mut pauses: Choices, ends: &AtomicBool) {
        let Some(client) = self.connect(ends) else {
            return;
        };
        let work = Work::of(number);
        for turn in 0u64.. {
            if ends.load(Ordering::Relaxed) {
                return;
            }
            match work {
                Work::Sign => self.sign(&client, &format!("client {number}, turn {turn}")),
                Work::Open => self.open(&client),
                Work::Make => self.make(&client, number, &format!("n{number}t{turn}"), ends),
            }
            thread::sleep(pauses.between(Duration::ZERO, PAUSE));
        }
    }

    /// The first daemon may not be there yet, and may be killed before it greets.
    fn connect(&self, ends: &AtomicBool) -> Option<Client> {
        let socket = self.stage.runtime().join("claviger/api.sock");
        let options = Options {
            // The commands of a stage may be those of another user.
            expected: Expected::Anyone,
            answers_pins: true,
            patience: NEVER,
            ..Options::new(socket)
        };
        while !ends.load(Ordering::Relaxed) {
            match Client::connect(options.clone()) {
                Ok(client) => return Some(client),
                Err(Error::NoDaemon { .. } | Error::Connect { .. } | Error::Gone { .. }) => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => {
                    let what = format!("a client does not reach the daemon: {error}");
                    self.tally.complain(&self.tally.failed, what);
                    return None;
                }
            }
        }
        None
    }

    fn call() -> Call<'static> {
        Call {
            deadline: Some(NEVER),
            listener: &Pin,
            ..Call::default()
        }
    }

    fn sign(&self, client: &Client, message: &str) {
        let engine = committer(ALICE);
        let answer = client.commit(&engine, message.as_bytes(), &raw(), &Self::call());
        if let Some(answer) = self.answered(message, answer) {
            let signature = answer.scheme.parse().ok();
            let signature = signature.and_then(|of| Signature::new(of, answer.bytes).ok());
            let is_true = signature
                .is_some_and(|signature| (self.key.verify(message.as_bytes(), &signature)).is_ok());
            lock(&self.signed).insert(to_hex(&Sha256::digest(message)));
            self.judge(Work::Sign, is_true, message);
        }
    }

    fn open(&self, client: &Client) {
        let request = Decrypt {
            engine: &decryptor(ALICE),
            data: &self.sealed,
            header_only: false,
        };
        let answer = client.ask(&request, &Self::call());
        if let Some(opened) = self.answered("a file", answer) {
            self.judge(Work::Open, *opened.data == LETTER, "a file");
        }
    }

    /// Makes an identity and deletes it, and knows afterwards that it is gone.
    fn make(&self, client: &Client, number: usize, identity: &str, ends: &AtomicBool) {
        let fate = |fate| *lock(&self.fates[number]) = fate;
        let request = Generate {
            identity,
            backend: &self.backend,
            params: "p256",
            capabilities: &[KeyUse::Sign],
        };
        fate(Fate::Unknown);
        let made = client.ask(&request, &Self::call());
        let is_made = self.answered(identity, made).is_some();
        if is_made {
            fate(Fate::There(identity.into()));
            self.judge(Work::Make, true, identity);
            thread::sleep(PAUSE);
        }
        let mut may_be_gone = !is_made;
        while !ends.load(Ordering::Relaxed) {
            fate(Fate::Unknown);
            let deleted = client.ask(&Delete { identity }, &Self::call());
            match deleted {
                Err(Error::Lost { .. }) => may_be_gone = true,
                // It was not made, or the daemon that is dead deleted it.
                Err(error) if may_be_gone && error.code() == "identity-does-not-exist" => {
                    return fate(Fate::Gone(identity.into()));
                }
                other => {
                    if self.answered(identity, other).is_some() {
                        fate(Fate::Gone(identity.into()));
                        self.judge(Work::Make, true, identity);
                    }
                    return;
                }
            }
            count(&self.tally.unknown);
        }
    }

    /// The answer, if there is one. Where there is none the daemon has died meanwhile.
    fn answered<T>(&self, what: &str, answer: Result<T, Error>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(Error::Lost { .. }) => {
                count(&self.tally.unknown);
                None
            }
            Err(error) => {
                let what = format!("{what}: {} ({error})", error.code());
                self.tally.complain(&self.tally.failed, what);
                None
            }
        }
    }

    fn judge(&self, work: Work, is_true: bool, what: &str) {
        if is_true {
            count(&self.done[work as usize]);
            self.tally.answered();
        } else {
            let what = format!("the answer about {what} is not true");
            self.tally.complain(&self.tally.untrue, what);
        }
    }
}
