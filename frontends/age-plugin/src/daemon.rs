//! Asks the daemon for file keys. It is looked for when it is needed: a file that no identity fits
//! needs none.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use claviger_client::blocking::{Call, Cancel, Client, Listener};
use claviger_client::daemon::Identities;
use claviger_client::request::{Decrypt, Decrypted, OpenUnattended, Request};
use claviger_client::wire::{self, EngineId, KeyUse, event::Kind, pin_request};
use claviger_client::{Error, Options};
use claviger_formats::age_plugin::Identity;
use claviger_formats::envelope::{Fit, Stanzas, UnwrappedKey};
use claviger_token::{PublicKey, TokenId};
use zeroize::Zeroizing;

use crate::identity::{Keys, NotOpened};
use crate::person::Person;

/// So often a person may say that the token is there now.
const MOST_ATTEMPTS: usize = 3;

/// The daemon, which may not be there.
pub struct Daemon {
    options: Option<Options>,
    client: Option<Client>,
    cancel: Cancel,
    /// The tokens for which nobody is asked for a PIN again: nobody gave one, or it did not help.
    closed: RefCell<BTreeSet<String>>,
}

impl Daemon {
    /// The daemon that is reached like this; `None` if none is to be used. `cancel` gives up what is
    /// asked of it.
    pub fn new(options: Option<Options>, cancel: Cancel) -> Self {
        let options = options.map(|options| Options {
            program: concat!("age-plugin-claviger ", env!("CARGO_PKG_VERSION")).into(),
            answers_pins: true,
            ..options
        });
        Daemon {
            options,
            client: None,
            cancel,
            closed: RefCell::default(),
        }
    }

    /// Opens a header with whichever key needs no person.
    fn open_unattended(
        &mut self,
        header: &[u8],
        person: &dyn Person,
    ) -> Result<UnwrappedKey, NotOpened> {
        let opened = self.ask(&OpenUnattended { header }, person);
        file_key(&opened.map_err(Failure::unattended)?)
    }

    /// Opens a header with a key, which a person may have to attach, to unlock or to touch.
    fn open_with(
        &mut self,
        (key, name): (&PublicKey, &str),
        header: &[u8],
        person: &dyn Person,
    ) -> Result<UnwrappedKey, NotOpened> {
        let engine = self.engine(key, name, person)?;
        let request = Decrypt {
            engine: &engine,
            data: header,
            header_only: true,
        };
        let mut attempts = 1;
        loop {
            let failure = match self.ask(&request, person) {
                Ok(opened) => return file_key(&opened),
                Err(failure) => failure,
            };
            let may_attach = failure.is_absence() && attempts < MOST_ATTEMPTS;
            let question = || format!("{}. Attach the token to go on", failure.message);
            if may_attach && person.confirm(&question(), "Go on", "Skip") == Some(true) {
                attempts += 1;
                continue;
            }
            return Err(match failure.code.as_str() {
                // Whether the stanza is for this key its caller knows.
                "decryption-failed" => NotOpened::Invalid,
                _ => NotOpened::Failed(failure.message),
            });
        }
    }

    /// The engine of the identity that has this key. It is called `name`, if that has not changed.
    fn engine(
        &mut self,
        key: &PublicKey,
        name: &str,
        person: &dyn Person,
    ) -> Result<EngineId, NotOpened> {
        let der = key.to_der().unwrap_or_default();
        let names = [name, ""];
        // Of an empty name all are listed.
        for &name in &names[usize::from(name.is_empty())..] {
            let listed = self.ask(&Identities { name }, person);
            let listed = listed.map_err(|failure| NotOpened::Failed(failure.message))?;
            let found = listed.into_iter().find(|identity| {
                identity.keys.iter().any(|its| {
                    its.usage() == KeyUse::Decrypt && its.public_key == der && !its.deleted
                })
            });
            if let Some(engine) = found.and_then(|identity| identity.decryption_engine) {
                return Ok(engine);
            }
        }
        let fingerprint = key.fingerprint();
        Err(NotOpened::Failed(match name {
            "" => format!("the daemon has no identity with the key {fingerprint}"),
            _ => format!("the daemon has no identity with the key of `{name}` ({fingerprint})"),
        }))
    }

    fn ask<Q: Request>(&mut self, request: &Q, person: &dyn Person) -> Result<Q::Reply, Failure> {
        let client = match self.client.take() {
            Some(client) => client,
            None => connect(self.options.clone())?,
        };
        let client = self.client.insert(client);
        let listener = Bridge {
            person,
            cancel: &self.cancel,
            closed: &self.closed,
            given: Cell::new(None),
        };
        let call = Call {
            cancel: Some(&self.cancel),
            listener: &listener,
            ..Call::default()
        };
        let answer = client.ask(request, &call);
        // Whatever went wrong after a PIN: nobody is asked for another one.
        if let (Err(_), Some(token)) = (&answer, listener.given.take()) {
            self.closed.borrow_mut().insert(token);
        }
        Ok(answer?)
    }
}

impl Keys for Daemon {
    fn open(
        &mut self,
        identity: &Identity,
        stanzas: &Stanzas,
        person: &dyn Person,
    ) -> Result<UnwrappedKey, NotOpened> {
        let Some(header) = stanzas.to_header() else {
            return Err(NotOpened::NotFor);
        };
        match identity {
            Identity::Unattended => self.open_unattended(&header, person),
            Identity::Key { key, name } => match stanzas.fits(key) {
                Fit::No => Err(NotOpened::NotFor),
                fit => {
                    let opened = self.open_with((key, name), &header, person);
                    opened.map_err(|not| match (not, fit) {
                        (NotOpened::Invalid, Fit::Maybe) => NotOpened::NotFor,
                        (not, _) => not,
                    })
                }
            },
        }
    }
}

fn connect(options: Option<Options>) -> Result<Client, Failure> {
    let options = options.ok_or_else(|| Failure {
        code: "no-daemon".into(),
        message:
            "there is no daemon to ask: XDG_RUNTIME_DIR is not set, or CLAVIGER_DAEMON is empty"
                .into(),
    })?;
    Ok(Client::connect(options)?)
}

fn file_key(opened: &Decrypted) -> Result<UnwrappedKey, NotOpened> {
    let key = opened.data.as_slice().try_into();
    let key = key.map_err(|_| NotOpened::Failed("the daemon sent no file key".into()))?;
    Ok(UnwrappedKey::from_bytes(key))
}

/// Why the daemon did not do it.
struct Failure {
    code: String,
    /// For people, with what they can do.
    message: String,
}

impl Failure {
    /// Whether the token is not there.
    fn is_absence(&self) -> bool {
        ["no-token", "token-unavailable", "token-away"].contains(&&*self.code)
    }

    /// What it means where nobody was to be asked.
    fn unattended(self) -> NotOpened {
        match self.code.as_str() {
            "nobody-opens" | "decryption-failed" => NotOpened::NotFor,
            "pin-needed" | "locked" | "person-needed" | "not-allowed" => {
                NotOpened::Untried(format!(
                    "{}, or give the identity that `claviger age-identity` prints",
                    self.message
                ))
            }
            _ if self.is_absence() => NotOpened::Untried(self.message),
            _ => NotOpened::Failed(self.message),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = error.code().to_owned();
        let advice = match code.as_str() {
            "no-daemon" => "; start it with `claviger serve`",
            "pin-needed" | "locked" => "; unlock the token with `claviger unlock`",
            "pin-refused-before" | "pin-unsettled" | "pin-locked" | "pin-final-try" => {
                "; `claviger doctor` says what to do"
            }
            _ => "",
        };
        let message = format!("{error}{advice}");
        Failure { code, message }
    }
}

/// Passes what the daemon says and asks on to a person.
struct Bridge<'a> {
    person: &'a dyn Person,
    cancel: &'a Cancel,
    closed: &'a RefCell<BTreeSet<String>>,
    /// The token whose PIN was given.
    given: Cell<Option<String>>,
}

impl Bridge<'_> {
    /// Nobody waits for what a person who is gone wanted.
    fn look(&self) {
        if self.person.is_gone() {
            self.cancel.cancel();
        }
    }
}

impl Listener for Bridge<'_> {
    fn event(&self, event: &wire::Event) {
        let token = || named(event.token.as_ref());
        let message = match event.kind() {
            Kind::TouchNeeded => format!("Touch {}", token()),
            Kind::ApprovalNeeded => format!("Approve on {}", token()),
            Kind::UnlockNeeded => format!("Unlock {}", event.device),
            Kind::AppNeeded => format!("Open the app {} on {}", event.detail, event.device),
            Kind::TokenNeeded => format!("Attach {}", token()),
            Kind::PersonDone | Kind::ProofNeeded | Kind::Unspecified => return,
        };
        self.person.tell(&message);
        self.look();
    }

    fn pin(&self, request: &wire::PinRequest) -> Option<Zeroizing<Vec<u8>>> {
        let token = named(request.token.as_ref());
        let is_wanted =
            request.kind() == pin_request::Kind::Pin && !self.closed.borrow().contains(&token);
        if !is_wanted {
            return None;
        }
        let label = match request.label.as_str() {
            "" => String::new(),
            label => format!("`{label}`, "),
        };
        let tries = match request.tries_left {
            Some(1) => ", 1 attempt remains".into(),
            Some(left) => format!(", {left} attempts remain"),
            None => String::new(),
        };
        let pin = self
            .person
            .secret(&format!("Enter the PIN of {label}{token}{tries}"));
        self.look();
        match pin {
            Some(_) => self.given.set(Some(token)),
            None => {
                self.closed.borrow_mut().insert(token);
            }
        }
        pin
    }
}

/// A token as messages call it.
fn named(token: Option<&wire::TokenId>) -> String {
    let token = token.cloned().unwrap_or_default();
    let token = TokenId {
        kind: token.kind,
        manufacturer: token.manufacturer,
        serial: token.serial,
    };
    token.to_string()
}
