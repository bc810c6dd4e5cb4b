//! Whether the services and libraries that the drivers need on this machine work.

use claviger_engine::{EngineId, Node, Registry};
use claviger_token::needs::{Need, Reach};
use claviger_token::{Error, TokenInfo};

use super::{AttachedTokens, Findings, note_seen, unreadable};
use crate::session::Session;
use crate::{drivers, hints};

/// Reports each need, and collects the tokens that are reached through it.
pub(super) async fn check(
    session: &Session,
    node: &Node,
    needs: &[Need],
    seen: &mut AttachedTokens,
    findings: &mut Findings,
) {
    for need in needs {
        match &need.missing {
            Some(error) => missing(node.registry(), need, error, findings),
            None => look(session, node, need, seen, findings).await,
        }
    }
}

fn missing(registry: &Registry, need: &Need, error: &Error, findings: &mut Findings) {
    // An unreadable registry is reported elsewhere.
    let identities = registry.identities().unwrap_or_default();
    let driver = drivers::of(&need.backend);
    let is_needed = identities
        .iter()
        .any(|(_, info)| driver.is_some_and(|about| about.serves(&info.backend.to_string())));
    let (what, steps) = (error.to_string(), hints::absent(&need.backend));
    match need.reach {
        Reach::Configured => findings.warning(what, steps),
        Reach::All if is_needed => findings.error(what, steps),
        Reach::All => findings.note(what, steps),
    }
}

async fn look(
    session: &Session,
    node: &Node,
    need: &Need,
    seen: &mut AttachedTokens,
    findings: &mut Findings,
) {
    let (who, call) = (EngineId::program(), session.call());
    match node.look(&who, Some(&need.backend), &call).await {
        Ok(found) => {
            let count = found.tokens.len();
            findings.info(format!("{} works; tokens: {count}", need.what));
            found
                .unreadable
                .iter()
                .for_each(|place| unreadable(place, findings));
            for (token, _) in &found.tokens {
                check_puk(token, findings);
            }
            note_seen(seen, found.tokens);
        }
        Err(error) => findings.warning(error.to_string(), hints::of_place(&error)),
    }
}

fn check_puk(token: &TokenInfo, findings: &mut Findings) {
    if token.notes.contains(&("puk_locked".into(), "true".into())) {
        findings.warning(
            format!(
                "the PUK of {} is blocked: it cannot unblock the PIN",
                token.id
            ),
            "keep the PIN: if that is blocked, too, only a reset with the vendor's tool helps, \
             which destroys the keys",
        );
    }
}
