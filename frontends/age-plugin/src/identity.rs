//! The state machine `identity-v1`: has file keys unwrapped, by whoever has the private keys.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};

use claviger_formats::age_plugin::{self, BadText, Identity};
use claviger_formats::envelope::{Fit, Stanza, Stanzas, UnwrappedKey};

use crate::peer::{Broken, Peer};
use crate::person::{Person, User, clean};

/// Whoever has private keys.
pub trait Keys {
    /// Unwraps the file key of a file for an identity. `person` may be told and asked what is
    /// needed.
    ///
    /// # Errors
    /// [`NotOpened`].
    fn open(
        &mut self,
        identity: &Identity,
        stanzas: &Stanzas,
        person: &dyn Person,
    ) -> Result<UnwrappedKey, NotOpened>;
}

/// Why a file was not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotOpened {
    /// It is not for this identity, as far as is known.
    NotFor,
    /// A stanza names the key of this identity, and does not open with it.
    Invalid,
    /// The identity may open it, but not like this: a person is told.
    Untried(String),
    /// The identity may open it, and failed.
    Failed(String),
}

/// What the age program wants.
#[derive(Default)]
struct Wanted {
    identities: Vec<Result<Identity, BadText>>,
    /// By their numbers.
    files: BTreeMap<u64, Vec<Stanza>>,
    /// What is wrong with a command.
    failure: Option<&'static str>,
}

/// Talks to an age program that decrypts.
///
/// # Errors
/// [`Broken`]. What is wrong with an identity or a file is told to the program.
pub fn run<R: BufRead, W: Write>(peer: &mut Peer<R, W>, keys: &mut dyn Keys) -> Result<(), Broken> {
    let mut wanted = Wanted::default();
    while let Some(command) = peer.command()? {
        wanted.take(command);
    }
    let user = User::of(peer);
    if let Some(message) = wanted.failure {
        user.send("error", &["internal"], message.as_bytes())?;
        return user.done();
    }
    let mut identities = Vec::new();
    let mut are_good = true;
    for (index, identity) in wanted.identities.into_iter().enumerate() {
        match identity {
            Ok(identity) => identities.push(identity),
            Err(error) => {
                are_good = false;
                let message = format!("not an identity: {error}");
                user.send(
                    "error",
                    &["identity", &index.to_string()],
                    message.as_bytes(),
                )?;
            }
        }
    }
    // With one that is unknown nothing is opened.
    if are_good {
        let mut told = BTreeSet::new();
        for (file, stanzas) in wanted.files {
            let opening = Opening {
                user: &user,
                file,
                stanzas: stanzas.into(),
                identities: &identities,
            };
            opening.run(keys, &mut told)?;
        }
    }
    user.done()
}

impl Wanted {
    /// Unknown commands, which may be grease, are ignored.
    fn take(&mut self, mut command: Stanza) {
        match (command.tag.as_str(), command.args.as_slice()) {
            ("add-identity", [text]) => {
                self.identities.push(age_plugin::parse_identity(text));
            }
            ("recipient-stanza", [file, _, ..]) => match file.parse::<u64>() {
                Ok(file)
                    if self
                        .files
                        .keys()
                        .next_back()
                        .is_none_or(|last| *last <= file) =>
                {
                    let mut words = command.args.drain(1..);
                    let stanza = Stanza {
                        tag: words.next().unwrap_or_default(),
                        args: words.collect(),
                        body: command.body,
                    };
                    self.files.entry(file).or_default().push(stanza);
                }
                Ok(_) => self.fail("the files of `recipient-stanza` are out of order"),
                Err(_) => self.fail("`recipient-stanza` names no file by its number"),
            },
            ("add-identity" | "recipient-stanza", _) => {
                self.fail("a command has other arguments than the protocol has for it");
            }
            _ => {}
        }
    }

    fn fail(&mut self, what: &'static str) {
        self.failure.get_or_insert(what);
    }
}

/// The opening of one file.
struct Opening<'a, 'p, R, W> {
    user: &'a User<'p, R, W>,
    file: u64,
    stanzas: Stanzas,
    identities: &'a [Identity],
}

impl<R: BufRead, W: Write> Opening<'_, '_, R, W> {
    /// `told` is what was told of identities already: it is not said again for each file.
    fn run(&self, keys: &mut dyn Keys, told: &mut BTreeSet<(usize, String)>) -> Result<(), Broken> {
        let malformed: Vec<usize> = self.stanzas.malformed().collect();
        if !malformed.is_empty() {
            for place in malformed {
                self.stanza_fails(place, "the stanza is malformed")?;
            }
            return Ok(());
        }
        let mut failures = Vec::new();
        for (index, identity) in self.in_order() {
            match keys.open(identity, &self.stanzas, self.user) {
                Ok(key) => {
                    let file = self.file.to_string();
                    return self.user.send("file-key", &[file], key.expose_bytes());
                }
                Err(NotOpened::NotFor) => {}
                Err(other) => failures.push((index, identity, other)),
            }
            if self.user.is_gone() {
                break;
            }
        }
        for (index, identity, failure) in failures {
            match failure {
                NotOpened::NotFor => {}
                NotOpened::Invalid => {
                    let place = match identity {
                        Identity::Key { key, .. } => self.stanzas.first_for(key),
                        Identity::Unattended => None,
                    };
                    self.stanza_fails(
                        place.unwrap_or_default(),
                        "the stanza names the key, and the key does not open it",
                    )?;
                }
                NotOpened::Untried(message) => {
                    if told.insert((index, message.clone())) {
                        self.user
                            .send::<&str>("msg", &[], clean(&message).as_bytes())?;
                    }
                }
                NotOpened::Failed(message) => {
                    if told.insert((index, message.clone())) {
                        let index = index.to_string();
                        let message = clean(&message);
                        self.user
                            .send("error", &["identity", &index], message.as_bytes())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The identities with their numbers: first those that need no person, then those that a stanza
    /// names.
    fn in_order(&self) -> Vec<(usize, &Identity)> {
        let mut all: Vec<_> = self.identities.iter().enumerate().collect();
        all.sort_by_key(|(_, identity)| match identity {
            Identity::Unattended => 0,
            Identity::Key { key, .. } => match self.stanzas.fits(key) {
                Fit::Yes => 1,
                Fit::Maybe => 2,
                Fit::No => 3,
            },
        });
        all
    }

    fn stanza_fails(&self, place: usize, message: &str) -> Result<(), Broken> {
        let [file, place] = [self.file.to_string(), place.to_string()];
        self.user
            .send("error", &["stanza", &file, &place], message.as_bytes())
    }
}
