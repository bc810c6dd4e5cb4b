//! Chooses the identity that opens a file: the named one, or one that can.

use claviger_engine::opener::{NotOpened, Opened, Opener};
use claviger_engine::{EngineId, Node};
use claviger_formats::envelope::Stanzas;
use claviger_token::KeyUse;

use crate::failure::Failure;
use crate::session::{self, Session};

/// Opens the file with the identity that was named.
pub(super) async fn with_named(
    session: &Session,
    node: &Node,
    name: &str,
    file: &Stanzas,
) -> Result<Opened, Failure> {
    let (who, info) = session::identity(node.registry(), name)?;
    session::key(&who, &info, KeyUse::Decrypt)?;
    let opener = Opener::only(node, &EngineId::program(), &who, file).await?;
    open(session, node, opener).await.map_err(Not::for_who)
}

/// Finds an identity here that opens the file.
pub(super) async fn with_any(
    session: &Session,
    node: &Node,
    file: &Stanzas,
) -> Result<Opened, Failure> {
    let opener = {
        let _busy = session.screen.spin("looking for a key");
        Opener::anybody(node, &EngineId::program(), file, &session.call()).await?
    };
    let opened = open(session, node, opener).await?;
    if session.screen.is_terminal() {
        let line = format!("opened with `{}`", opened.who);
        session.screen.line(&line);
    }
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
