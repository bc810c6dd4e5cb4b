//! The state machine `recipient-v1`: wraps file keys for public keys. It asks nobody, and needs no
//! daemon.

use std::collections::BTreeSet;
use std::io::{BufRead, Write};

use claviger_formats::age_plugin::{self, Identity};
use claviger_formats::envelope::{Stanza, UnwrappedKey, parse_recipient, wrap};
use claviger_token::PublicKey;
use zeroize::Zeroizing;

use crate::peer::{Broken, Peer};
use crate::person::{User, clean};

/// What the age program wants.
#[derive(Default)]
struct Wanted {
    /// The keys of its recipients, and then of its identities.
    keys: Vec<PublicKey>,
    recipients: usize,
    identities: usize,
    file_keys: Vec<UnwrappedKey>,
    takes_labels: bool,
    failures: Vec<Failure>,
}

/// What the age program gets.
struct Wrapped {
    /// With the numbers of their files.
    stanzas: Vec<(usize, Stanza)>,
    /// Those of all recipients.
    labels: BTreeSet<String>,
}

/// What is wrong, as the protocol says it.
struct Failure {
    /// `recipient INDEX`, `identity INDEX` or `internal`.
    of: Vec<String>,
    message: String,
}

impl Failure {
    fn internal(message: String) -> Self {
        let of = vec!["internal".into()];
        Failure { of, message }
    }
}

/// Talks to an age program that encrypts.
///
/// # Errors
/// [`Broken`]. What is wrong with a recipient is told to the program.
pub fn run<R: BufRead, W: Write>(peer: &mut Peer<R, W>) -> Result<(), Broken> {
    let mut wanted = Wanted::default();
    while let Some(command) = peer.command()? {
        wanted.take(command);
    }
    let user = User::of(peer);
    match wanted.wrapped() {
        Ok(Wrapped { stanzas, labels }) => {
            if !labels.is_empty() {
                let labels: Vec<String> = labels.into_iter().collect();
                user.send("labels", &labels, &[])?;
            }
            for (file, stanza) in stanzas {
                let mut arguments = vec![file.to_string(), stanza.tag];
                arguments.extend(stanza.args);
                user.send("recipient-stanza", &arguments, &stanza.body)?;
            }
        }
        // With an error there are no stanzas.
        Err(failures) => {
            for Failure { of, message } in failures {
                user.send("error", &of, clean(&message).as_bytes())?;
            }
        }
    }
    user.done()
}

impl Wanted {
    /// Unknown commands, which may be grease, are ignored.
    fn take(&mut self, command: Stanza) {
        match (command.tag.as_str(), command.args.as_slice()) {
            ("add-recipient", [text]) => {
                let index = self.recipients;
                self.recipients += 1;
                match key_of_recipient(text) {
                    Ok(key) => self.keys.push(key),
                    Err(message) => self.fail(&["recipient", &index.to_string()], message),
                }
            }
            ("add-identity", [text]) => {
                let index = self.identities;
                self.identities += 1;
                match key_of_identity(text) {
                    Ok(key) => self.keys.push(key),
                    Err(message) => self.fail(&["identity", &index.to_string()], message),
                }
            }
            ("wrap-file-key", []) => match <&[u8; 16]>::try_from(command.body.as_slice()) {
                Ok(key) => {
                    self.file_keys.push(UnwrappedKey::from_bytes(key));
                    drop(Zeroizing::new(command.body));
                }
                Err(_) => self.fail(&["internal"], "a file key has 16 bytes".into()),
            },
            ("extension-labels", _) => self.takes_labels = true,
            ("add-recipient" | "add-identity" | "wrap-file-key", _) => {
                let message = format!("`{}` has other arguments", command.tag);
                self.fail(&["internal"], message);
            }
            _ => {}
        }
    }

    fn fail(&mut self, of: &[&str], message: String) {
        let of = of.iter().map(|&word| word.to_owned()).collect();
        self.failures.push(Failure { of, message });
    }

    fn wrapped(mut self) -> Result<Wrapped, Vec<Failure>> {
        if self.keys.is_empty() && self.failures.is_empty() {
            let failure = Failure::internal("there is no recipient".into());
            self.failures.push(failure);
        }
        let (mut stanzas, mut labels) = (Vec::new(), None);
        let each = self.file_keys.iter().enumerate();
        for (file, (key, file_key)) in each
            .flat_map(|(file, file_key)| self.keys.iter().map(move |key| (file, (key, file_key))))
        {
            match wrap(key, file_key) {
                Ok(wrapped) if *labels.get_or_insert(wrapped.labels.clone()) == wrapped.labels => {
                    stanzas.extend(wrapped.stanzas.into_iter().map(|stanza| (file, stanza)));
                }
                Ok(_) => self.failures.push(Failure::internal(
                    "its recipients cannot be combined in one file".into(),
                )),
                Err(error) => self.failures.push(Failure::internal(error.to_string())),
            }
        }
        let labels = labels.unwrap_or_default();
        if !labels.is_empty() && !self.takes_labels {
            let message = "the age program is too old for this recipient".into();
            self.failures.push(Failure::internal(message));
        }
        match self.failures.is_empty() {
            true => Ok(Wrapped { stanzas, labels }),
            false => Err(self.failures),
        }
    }
}

/// The key of a recipient of this plugin; or of a native one, which older age programs take for a
/// plugin's (`age1tag1…`).
fn key_of_recipient(text: &str) -> Result<PublicKey, String> {
    match age_plugin::parse_recipient(text) {
        Ok(key) => Ok(key),
        Err(error) => parse_recipient(text).map_err(|_| format!("not a recipient: {error}")),
    }
}

fn key_of_identity(text: &str) -> Result<PublicKey, String> {
    match age_plugin::parse_identity(text) {
        Ok(Identity::Key { key, .. }) => Ok(key),
        Ok(Identity::Unattended) => Err("nothing is encrypted to whichever identity opens it: \
             name one, as `claviger age-identity` prints it"
            .into()),
        Err(error) => Err(format!("not an identity: {error}")),
    }
}
