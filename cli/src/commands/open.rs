//! Chooses the identity that opens a file: the named one, or one that can.

use std::io::Read;
use std::sync::Arc;

use claviger_engine::opener::{Holder, NotOpened, Opened, Opener};
use claviger_engine::{EngineError, EngineId, IdentityInfo, Node};
use claviger_formats::envelope::{Fit, Sealed, Stanzas};
use claviger_token::{KeyUse, PinSource};

use crate::daemon::{Daemon, Known};
use crate::engines::Engines;
use crate::failure::Failure;
use crate::pins::SharedPins;
use crate::session::Session;

/// Opens the header of a file: with the identity that was named, or with one that can.
pub(super) async fn header<R: Read>(
    session: &Session,
    engines: &Engines<'_>,
    named: Option<(EngineId, IdentityInfo)>,
    file: &Sealed<R>,
) -> Result<Opened, Failure> {
    let node = match engines {
        Engines::Here(_, node) => node,
        Engines::There(_, daemon, _) => return over_daemon(session, daemon, named, file),
    };
    match named {
        Some((who, _)) => {
            let opener = Opener::only(node, &EngineId::program(), &who, file.stanzas()).await?;
            open(session, node, opener).await.map_err(Not::for_who)
        }
        None => with_any(session, node, file.stanzas()).await,
    }
}

/// A daemon chooses as [`Opener`] does.
fn over_daemon<R: Read>(
    session: &Session,
    daemon: &Daemon,
    named: Option<(EngineId, IdentityInfo)>,
    file: &Sealed<R>,
) -> Result<Opened, Failure> {
    let _busy = session.screen.spin("asking the token");
    let Some((who, info)) = named else {
        // Of several tokens the daemon would ask for the PIN of one, and get that of another.
        let withheld = match SharedPins(Arc::clone(&session.pins)).is_one_for_all() {
            true => of_several(daemon, file)?,
            false => None,
        };
        let (who, file_key) = daemon.open(None, file.header(), withheld)?;
        tell(session, &who);
        return Ok(Opened::new(who, file_key));
    };
    let engine = info.decryption_engine.ok_or_else(|| {
        Failure::new(format!("`{who}` has no engine that decrypts")).coded("cannot-decrypt")
    })?;
    let (_, file_key) = daemon.open(Some(&engine), file.header(), None)?;
    Ok(Opened::new(who, file_key))
}

/// Why one PIN is given to no token: keys on several open the file, or may, as [`Opener`] judges.
fn of_several<R: Read>(daemon: &Daemon, file: &Sealed<R>) -> Result<Option<Failure>, Failure> {
    let mut fits = Vec::new();
    for Known { who, info, .. } in daemon.identities()? {
        let key = info.key(KeyUse::Decrypt).filter(|key| !key.deleted);
        if let Some(key) = key {
            let holder = Holder::of_attached(who, key.token.clone());
            fits.push((file.fits(&key.public_key), holder));
        }
    }
    let best = fits.iter().map(|(fit, _)| *fit).max();
    let holders: Vec<Holder> = (fits.into_iter())
        .filter(|(fit, _)| *fit != Fit::No && Some(*fit) == best)
        .map(|(_, holder)| holder)
        .collect();
    let mut tokens: Vec<_> = holders.iter().map(|holder| &holder.token).collect();
    tokens.sort();
    tokens.dedup();
    let is_one = tokens.len() < 2;
    Ok((!is_one).then(|| EngineError::PinForSeveralTokens { holders }.into()))
}

/// Says whose key it was that opened a file.
fn tell(session: &Session, who: &EngineId) {
    if session.screen.is_terminal() {
        session.screen.line(&format!("opened with `{who}`"));
    }
}

/// Finds an identity here that opens the file.
async fn with_any(session: &Session, node: &Node, file: &Stanzas) -> Result<Opened, Failure> {
    let opener = {
        let _busy = session.screen.spin("looking for a key");
        Opener::anybody(node, &EngineId::program(), file, &session.call()).await?
    };
    let opened = open(session, node, opener).await?;
    tell(session, &opened.who);
    Ok(opened)
}

/// Asks one after the other. What was interrupted on a token is resolved before it is used,
/// unless the PIN is not for it.
async fn open(session: &Session, node: &Node, mut opener: Opener) -> Result<Opened, Not> {
    loop {
        let token = opener.next()?.token().clone();
        if opener.next_gets_pin() {
            session.resolve_intents(node, &[token]).await?;
        }
        let _busy = session.screen.spin("asking the token");
        if let Some(opened) = opener.ask(&session.call()).await? {
            return Ok(opened);
        }
    }
}

/// Why it was not opened, and who was to open it.
struct Not(Failure, Option<EngineId>);

impl Not {
    /// Where that one was named there is no need to say so.
    fn for_who(self) -> Failure {
        self.0
    }
}

impl From<NotOpened> for Not {
    fn from(not: NotOpened) -> Self {
        Not(not.error.into(), not.who)
    }
}

impl From<Failure> for Not {
    fn from(failure: Failure) -> Self {
        Not(failure, None)
    }
}

impl From<Not> for Failure {
    fn from(Not(failure, who): Not) -> Self {
        match who {
            Some(who) => failure.said_of(&format!("to open it as `{who}`")),
            None => failure,
        }
    }
}
