//! `delete`: keys that were made for an identity are destroyed, others released.

use claviger_engine::message::RequestDeleteIdentity;
use claviger_engine::{EngineId, KeyInfo, Origin};
use claviger_token::{Deletion, KeyUse};
use serde::Serialize;

use super::{Answer, FINE};
use crate::output;
use crate::session::{self, Session};

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

pub(crate) async fn run(session: &Session, name: &str) -> Answer {
    let node = session.node(session.registry()?);
    let (who, info) = session::identity(node.registry(), name)?;
    let request = RequestDeleteIdentity {
        external_identity: who.clone(),
        backend: info.backend.clone(),
    };
    let reply = {
        let _phase = session.interrupt.tidily();
        let _busy = session.screen.spin("deleting");
        node.delete(&who, request, &session.call()).await
    };
    if let Some(error) = reply.err {
        return Err(error.into());
    }
    session.warn_open(&node)?;
    let keys: Vec<Outcome> = info
        .keys
        .iter()
        .enumerate()
        .map(|(i, key)| Outcome::of(&who, key, reply.keys.get(i).copied()))
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
