//! Uses of keys that a person confirms, each one.
//!
//! The configuration says so of an identity, or a grant of its uses. The person is asked after it
//! is known that the caller may use the key, and before the token is: a question keeps nobody from
//! the token. One question of a user is asked at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use claviger_engine::message::Msg;
use claviger_engine::opener::{Candidate, Opener};
use claviger_engine::policy::Operation;
use claviger_engine::{EngineError, EngineId, Purpose};
use claviger_token::{Call, Error, KeyUse};
use tokio::pin;
use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::auditing;
use crate::session::Session;

/// So often it is looked whether the request has ended meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The longest name in a question, in characters: callers choose some of them.
const LONGEST_NAME: usize = 80;

/// Has a person confirm what a request is about to do, if its use of a key is to be confirmed; the
/// caller may use it. Whether somebody was asked.
///
/// # Errors
/// [`EngineError::UseNotConfirmed`], what ends the request, and [`EngineError::Registry`].
pub(crate) async fn confirm(
    session: &Session,
    target: &EngineId,
    msg: &Msg,
    call: &Call,
) -> Result<bool, EngineError> {
    match msg {
        Msg::RequestCommitment(request) => {
            let identity = auditing::owner(KeyUse::Sign, target);
            let operation = Operation::Sign(&request.purpose);
            match session.policy.wants_confirmation(&identity, operation)? {
                true => ask_to_sign(session, &identity, &request.purpose, call).await,
                false => Ok(false),
            }
        }
        Msg::RequestDecryption(_) => {
            let identity = auditing::owner(KeyUse::Decrypt, target);
            let operation = Operation::Decrypt;
            if !session.policy.wants_confirmation(&identity, operation)? {
                return Ok(false);
            }
            let identity = identity.to_string();
            let what = format!("open a file as {}", named(&identity));
            ask(session, identity, &what, call).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The same for a signature through an agent.
///
/// # Errors
/// As [`confirm`].
pub(crate) async fn confirm_for_agent(
    session: &Session,
    identity: &EngineId,
    purpose: &Purpose,
    call: &Call,
) -> Result<bool, EngineError> {
    match session.policy.agent_wants_confirmation(identity, purpose)? {
        true => ask_to_sign(session, identity, purpose, call).await,
        false => Ok(false),
    }
}

async fn ask_to_sign(
    session: &Session,
    identity: &EngineId,
    purpose: &Purpose,
    call: &Call,
) -> Result<bool, EngineError> {
    let identity = identity.to_string();
    let purpose = auditing::purpose(purpose);
    let what = format!("sign as {} for {}", named(&identity), named(&purpose));
    ask(session, identity, &what, call).await?;
    Ok(true)
}

/// The same for a file that one of several identities may open: it is asked once for all of them.
///
/// # Errors
/// As [`confirm`].
pub(crate) async fn confirm_opening(
    session: &Session,
    opener: &Opener,
    call: &Call,
) -> Result<bool, EngineError> {
    let confirmed = opener.candidates().filter(|one| is_needed(session, one));
    let mut names: Vec<String> = confirmed.map(|one| one.owner().to_string()).collect();
    if names.is_empty() {
        return Ok(false);
    }
    names.sort();
    names.dedup();
    let identity = names.join(", ");
    let what = format!("open a file, perhaps as {}", named(&identity));
    ask(session, identity, &what, call).await?;
    Ok(true)
}

/// Whether a person has to confirm that the key of a candidate opens a file, or that is not known.
pub(crate) fn is_needed(session: &Session, candidate: &Candidate) -> bool {
    let operation = Operation::Decrypt;
    let wanted = (session.policy).wants_confirmation(&candidate.owner(), operation);
    wanted.unwrap_or(true)
}

async fn ask(
    session: &Session,
    identity: String,
    what: &str,
    call: &Call,
) -> Result<(), EngineError> {
    let refused = |reason: String| EngineError::UseNotConfirmed {
        identity: shortened(&identity),
        reason,
    };
    let Some(confirmer) = session.shared.confirmer.clone() else {
        return Err(refused("this daemon has nobody to ask".into()));
    };
    let turn = turn(session, call).await?;
    let question = format!("Allow this once?\n{} asks to {what}.", session.caller);
    let is_over = IsOver::default();
    let own = call.clone().cancelled_by(Arc::clone(&is_over.0));
    let own = match session.keeper.answers_within() {
        Some(limit) => own.no_longer_than(limit),
        None => own,
    };
    let answer = spawn_blocking(move || {
        // The next question waits until this one is no longer shown.
        let _turn = turn;
        confirmer.confirm(&question, &own)
    });
    pin!(answer);
    let answer = loop {
        match timeout(LOOK_AGAIN, answer.as_mut()).await {
            Ok(answer) => break answer,
            Err(_) if call.is_cancelled() => is_over.end(),
            Err(_) => {}
        }
    };
    match answer {
        Ok(Ok(true)) => Ok(call.check()?),
        Ok(Ok(false)) => Err(refused("it was declined".into())),
        Ok(Err(reason)) => {
            // Whose time is over hears that.
            call.check()?;
            Err(refused(reason))
        }
        Err(_) => Err(Error::Cancelled.into()),
    }
}

/// Whether nobody waits for an answer any more: the request is given up, or is dropped with its
/// connection.
#[derive(Default)]
struct IsOver(Arc<AtomicBool>);

impl IsOver {
    fn end(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for IsOver {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits until no other question of the caller's is asked.
async fn turn(session: &Session, call: &Call) -> Result<OwnedMutexGuard<()>, Error> {
    let turn = Arc::clone(&session.load.confirming).lock_owned();
    pin!(turn);
    loop {
        call.check()?;
        if let Ok(turn) = timeout(call.at_most(LOOK_AGAIN), turn.as_mut()).await {
            return Ok(turn);
        }
    }
}

/// A name as a person is shown it.
fn named(name: &str) -> String {
    format!("`{}`", shortened(name))
}

/// As much of a name as is shown, on one line.
fn shortened(name: &str) -> String {
    let printed = |c: char| if is_plain(c) { c } else { '\u{fffd}' };
    let mut text: String = name.chars().take(LONGEST_NAME).map(printed).collect();
    if name.chars().nth(LONGEST_NAME).is_some() {
        text.push('…');
    }
    text
}

/// Whether a character in a name neither ends it, nor hides, nor moves what stands around it.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '`'
            | '\u{ad}' | '\u{61c}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use claviger_engine::grants::{NewGrant, Subject};
    use claviger_engine::message::RequestGenerateIdentity;
    use claviger_engine::{Backend, Capabilities, IdParams, Node, Registry};
    use claviger_memory::MemoryDriver;

    use super::*;
    use crate::Caller;
    use crate::policy::Rules;

    /// Whether the user's own use of `alice` is confirmed: on the daemon's socket, on an agent's.
    fn confirmed(rules: &std::sync::Arc<Rules>, socket: &str) -> [bool; 2] {
        let policy = rules.judge(&Caller {
            uid: 7,
            gid: 7,
            socket: socket.into(),
        });
        let (alice, purpose) = (EngineId::local("alice"), Purpose::Evidence);
        let wanted = policy.wants_confirmation(&alice, Operation::Sign(&purpose));
        let by_agent = policy.agent_wants_confirmation(&alice, &purpose);
        [wanted, by_agent].map(Result::unwrap)
    }

    #[tokio::test]
    async fn a_grant_for_the_socket_of_an_agent_says_whether_uses_through_it_are_confirmed() {
        let node = Node::builder(Registry::in_memory().unwrap())
            .driver(MemoryDriver::new())
            .build();
        let request = RequestGenerateIdentity {
            backend: Backend::LocalMemory,
            params: IdParams::P256,
            capabilities: Capabilities::Commit,
        };
        let call = Call::unlimited();
        let alice = EngineId::local("alice");
        node.generate(&alice, request, &call).await.unwrap();
        let rules = Rules::of(&node, Some(7));
        assert_eq!(confirmed(&rules, "agent"), [false, false]);
        let grant = |socket, operation| {
            let new = NewGrant::parse(Subject::Uid(7), socket, "alice", operation, "");
            node.registry().add_grant(&new.unwrap()).unwrap();
        };
        // On the daemon's own socket its user needs no grant.
        grant("agent", "sign+confirm");
        assert_eq!(confirmed(&rules, "agent"), [false, true]);
        assert_eq!(confirmed(&rules, "api"), [false, false]);
        grant("agent", "sign");
        assert_eq!(confirmed(&rules, "agent"), [false, false]);
        rules.confirm(&["alice".into()]);
        assert_eq!(confirmed(&rules, "agent"), [true, true]);
    }

    #[test]
    fn what_a_caller_calls_something_is_one_short_line() {
        assert_eq!(named("a\nb"), "`a\u{fffd}b`");
        assert_eq!(named("git` for `ssh"), "`git\u{fffd} for \u{fffd}ssh`");
        let unseen =
            "\u{ad}\u{61c}\u{200b}\u{200f}\u{2028}\u{202a}\u{202e}\u{2060}\u{2069}\u{feff}";
        for c in unseen.chars() {
            assert_eq!(named(&format!("a{c}b")), "`a\u{fffd}b`", "{c:?}");
        }
        assert_eq!(named("zoë-é_1@日本"), "`zoë-é_1@日本`");
        let long = named(&"ä".repeat(LONGEST_NAME + 1));
        assert_eq!(long.chars().count(), LONGEST_NAME + 3);
    }
}
