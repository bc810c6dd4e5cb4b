//! `delete`: destroys the keys that were made for an identity, and releases others.

use std::io::{self, IsTerminal};

use claviger_engine::{EngineId, IdentityInfo, KeyInfo, Origin};
use claviger_token::{Deletion, Error, KeyUse};
use serde::Serialize;

use super::{Answer, FINE};
use crate::engines::Engines;
use crate::failure::Failure;
use crate::output;
use crate::prompt::{self, NoAnswer};
use crate::session::Session;

/// The answer in JSON.
#[derive(Serialize)]
struct DeletionView {
    name: String,
    keys: Vec<Outcome>,
}

#[derive(Serialize)]
struct Outcome {
    r#use: KeyUse,
    token: String,
    slot: String,
    fingerprint: String,
    /// `destroyed`, `nothing-there`, `derivable` or `released`.
    outcome: &'static str,
    #[serde(skip)]
    text: String,
}

pub(crate) async fn run(session: &Session, name: &str, is_sure: bool) -> Answer {
    let engines = Engines::of(session, Session::writable_registry)?;
    let (who, info) = engines.identity(name)?;
    if !is_sure {
        ask(session, &who, &info)?;
    }
    let deleted = {
        let _phase = session.interrupt.tidily();
        let _busy = session.screen.spin("deleting");
        engines.delete(&who, &info).await
    };
    let deleted = deleted?;
    engines.warn_open()?;
    let keys: Vec<Outcome> = info
        .keys
        .iter()
        .enumerate()
        .map(|(i, key)| Outcome::of(&who, key, deleted.get(i).copied()))
        .collect();
    if session.json {
        output::print_json(&DeletionView {
            name: who.to_string(),
            keys,
        })?;
    } else {
        let rows: Vec<Vec<String>> = keys
            .into_iter()
            .map(|key| vec![key.r#use.name().into(), key.fingerprint, key.text])
            .collect();
        output::print(&format!("deleted {who}\n{}", output::table("  ", &rows)))?;
    }
    Ok(FINE)
}

/// Asks a person who is there; a script goes on.
fn ask(session: &Session, who: &EngineId, info: &IdentityInfo) -> Result<(), Failure> {
    if !io::stdin().is_terminal() || !session.screen.is_terminal() {
        return Ok(());
    }
    let rows: Vec<Vec<String>> = info.keys.iter().map(|key| fate(who, key)).collect();
    let question = format!(
        "Delete `{}`?\n{}Type yes to delete it: ",
        output::one_line(&who.name),
        output::table("  ", &rows)
    );
    let _phase = session.interrupt.prompting();
    let answer = prompt::confirm(&question, &session.interrupt, session.deadline);
    match answer {
        Ok(true) => Ok(()),
        Ok(false) | Err(NoAnswer::Nothing | NoAnswer::NoText) => {
            Err(Failure::new("nothing was deleted").coded("not-confirmed"))
        }
        Err(NoAnswer::Interrupted) => Err(Error::Cancelled.into()),
        Err(NoAnswer::TooLate) => Err(Error::DeadlineExceeded.into()),
        Err(NoAnswer::Failed(e)) => Err(Failure::io("the terminal cannot be asked", &e)
            .hint("say --yes to delete without being asked")),
    }
}

/// What is to become of a key.
fn fate(who: &EngineId, key: &KeyInfo) -> Vec<String> {
    let is_lost = key.owner == *who && key.origin == Origin::Generated && !key.deleted;
    let fate = match is_lost {
        true if key.token.kind == "ledger" => {
            "is no longer used; it can be derived again from the seed".into()
        }
        true => format!("is destroyed on {}, for good", key.token),
        false => "is released; it is not destroyed".into(),
    };
    let fingerprint = key.public_key.fingerprint().to_string();
    vec![key.usage.name().into(), fingerprint, fate]
}

impl Outcome {
    fn of(who: &EngineId, key: &KeyInfo, deletion: Option<Deletion>) -> Self {
        let (outcome, text) = match deletion {
            Some(Deletion::Destroyed) => ("destroyed", "destroyed on the token".to_owned()),
            Some(Deletion::NothingThere) => {
                ("nothing-there", "was no longer on the token".to_owned())
            }
            Some(Deletion::Derivable) => (
                "derivable",
                "no longer used, but can be derived again from the token's seed".to_owned(),
            ),
            Some(Deletion::Foreign) => (
                "foreign",
                "was no longer on the token; another key is in its place and was left alone"
                    .to_owned(),
            ),
            None if key.deleted => ("released", format!("went with `{}`", key.owner)),
            None if key.owner != *who => ("released", format!("stays with `{}`", key.owner)),
            None if key.origin == Origin::Adopted => (
                "released",
                "released; it stays on the token, as it was found".to_owned(),
            ),
            None => ("released", "released".to_owned()),
        };
        Outcome {
            r#use: key.usage,
            token: key.token.to_string(),
            slot: key.slot.to_string(),
            fingerprint: key.public_key.fingerprint().to_string(),
            outcome,
            text,
        }
    }
}
