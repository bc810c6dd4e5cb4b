//! The recipients of a file: the named ones, and those that evidence adds. Each recipient is
//! listed.

use claviger_engine::encryption::MOST_RECIPIENTS;
use claviger_engine::{EngineError, EngineId, Node, Preference, Recipient, Via};
use claviger_formats::envelope;
use claviger_token::{Algorithm, KeyUse, PublicKey};
use serde::Serialize;

use crate::failure::Failure;
use crate::session::{self, Session};

/// Who is to be able to read something.
pub(crate) struct Whom<'a> {
    pub(crate) names: Vec<&'a str>,
    /// Everyone, too, who provably reads for them.
    pub(crate) reads_for: bool,
    /// To whom it may be disclosed for whom they provably read.
    pub(crate) via: &'a [String],
    /// To anyone.
    pub(crate) via_any: bool,
    /// How many grants a chain may have.
    pub(crate) depth: Option<u32>,
}

impl Whom<'_> {
    /// Whether evidence has a say.
    fn by_evidence(&self) -> bool {
        self.reads_for || self.via_any || !self.via.is_empty()
    }

    fn preference(&self, via: Vec<EngineId>) -> Preference {
        Preference {
            readers: self.reads_for,
            via: match (self.via_any, via.is_empty()) {
                (true, _) => Via::Anyone,
                (false, false) => Via::Named(via),
                (false, true) => Via::Nobody,
            },
            depth: (self.depth).map_or(usize::MAX, |depth| depth as usize),
        }
    }
}

/// One of those who will be able to read it.
pub(super) struct Addressee {
    recipient: Recipient,
    /// The name that was given, which led to it.
    through: EngineId,
}

impl Addressee {
    pub(super) fn key(&self) -> &PublicKey {
        &self.recipient.key
    }
}

/// An addressee in JSON.
#[derive(Serialize)]
pub(super) struct AddresseeView {
    name: String,
    /// The name that was given, which led to it.
    through: String,
    algorithm: Algorithm,
    fingerprint: String,
    /// As age has it.
    pub(super) recipient: String,
}

impl AddresseeView {
    pub(super) fn of(addressee: &Addressee) -> Self {
        let Addressee { recipient, through } = addressee;
        let text = envelope::recipient_text(&recipient.key).unwrap_or_default();
        AddresseeView {
            name: recipient.name.to_string(),
            through: through.to_string(),
            algorithm: recipient.key.algorithm(),
            fingerprint: recipient.key.fingerprint().to_string(),
            recipient: text.trim_end().to_owned(),
        }
    }
}

/// Finds them, each key once.
pub(super) async fn find(
    session: &Session,
    node: &Node,
    whom: &Whom<'_>,
) -> Result<Vec<Addressee>, Failure> {
    if whom.depth.is_some() && !whom.by_evidence() {
        return Err(
            Failure::usage("--depth bounds what evidence adds, and none is asked for")
                .hint("give --reads-for, --via NAME or --via-any as well"),
        );
    }
    let via = whom.via.iter().map(|name| session::somebody(node, name));
    let preference = whom.preference(via.collect::<Result<_, _>>()?);
    let mut found: Vec<Addressee> = Vec::new();
    for name in &whom.names {
        let through = session::somebody(node, name)?;
        check_alive(node, &through)?;
        let (call, me) = (session.call(), EngineId::program());
        let recipients = node.recipients(&me, &through, whom.by_evidence(), &preference, &call);
        for recipient in recipients.await? {
            if found.iter().all(|known| *known.key() != recipient.key) {
                let through = through.clone();
                found.push(Addressee { recipient, through });
            }
        }
    }
    match found.len() > MOST_RECIPIENTS {
        true => Err(EngineError::TooManyRecipients.into()),
        false => Ok(found),
    }
}

/// Refuses somebody whose key that decrypts is gone.
fn check_alive(node: &Node, who: &EngineId) -> Result<(), Failure> {
    let info = node.registry().identity(who)?;
    let key = info.as_ref().and_then(|info| info.key(KeyUse::Decrypt));
    match key.filter(|key| key.deleted) {
        None => Ok(()),
        Some(key) => Err(Failure::new(format!(
            "the key of `{who}` that decrypts was deleted with `{}`: nobody could read what is \
             encrypted to it",
            key.owner
        ))
        .coded("identity-deleted")),
    }
}

/// Lists them on standard error: always where evidence had a say, else for a person at a
/// terminal, who has named them.
pub(super) fn tell(session: &Session, whom: &Whom<'_>, addressees: &[Addressee]) {
    if !whom.by_evidence() && !session.screen.is_terminal() {
        return;
    }
    for addressee in addressees {
        let Addressee { recipient, through } = addressee;
        let why = match recipient.name == through.name {
            true => String::new(),
            false => format!(", by evidence about `{through}`"),
        };
        session.screen.line(&format!(
            "recipient: {} ({} {}){why}",
            recipient.name,
            recipient.key.algorithm(),
            recipient.key.fingerprint()
        ));
    }
}
