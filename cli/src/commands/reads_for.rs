//! `reads-for`: who reads for whom, and the evidence of it.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

use claviger_engine::evidence::{from_text, to_text};
use claviger_engine::{EngineError, EngineId, Evidence, Node};
use claviger_token::{KeyUse, SignatureScheme, shell};
use serde::Serialize;

use super::{Answer, FINE};
use crate::failure::{FAILED, Failure};
use crate::files::{Input, Privacy};
use crate::output;
use crate::session::{self, Session};
use crate::views::PartyView;

/// A piece of evidence in JSON.
#[derive(Serialize)]
struct EvidenceView {
    reader: PartyView,
    reads_for: PartyView,
    scheme: SignatureScheme,
    /// Whether the names in it still stand for these keys here, or for none.
    current: bool,
}

impl EvidenceView {
    fn of(node: &Node, evidence: &Evidence) -> Result<Self, Failure> {
        let parties = [&evidence.from_identity, &evidence.to_identity];
        let mut current = true;
        for party in parties {
            let known = node.public_keys(&EngineId::local(party.name.clone()))?;
            current &= known.is_none_or(|keys| !keys.contradict(&party.keys));
        }
        let [reader, reads_for] = parties.map(PartyView::of);
        Ok(EvidenceView {
            reader,
            reads_for,
            scheme: evidence.proof.scheme(),
            current,
        })
    }
}

pub(crate) async fn grant(session: &Session, reader: &str, by: &str) -> Answer {
    let node = session.node(session.new_registry()?);
    let (who, info) = session::identity(node.registry(), by)?;
    let key = session::key(&who, &info, KeyUse::Sign)?;
    let from = session::somebody(&node, reader)?;
    if node
        .reads_for_chain(&from, &who)?
        .is_some_and(|c| c.is_empty())
    {
        return Err(Failure::new(format!(
            "`{from}` has the same keys as `{who}`: it reads for it anyway"
        ))
        .coded("same-keys"));
    }
    session
        .settle(&node, std::slice::from_ref(&key.token))
        .await?;
    let evidence = {
        let _busy = session.screen.spin("signing");
        node.grant_reads_for(&from, &who, &session.call()).await?
    };
    if session.json {
        output::print_json(&EvidenceView::of(&node, &evidence)?)?;
    } else {
        output::print(&format!(
            "{from} reads for {who}\nnext: claviger encrypt {} --reads-for\n",
            shell::quoted(&who.name)
        ))?;
    }
    Ok(FINE)
}

pub(crate) fn list(session: &Session, about: Option<&str>) -> Answer {
    let node = session.node(session.registry()?);
    let evidence = match about {
        None => node.registry().all_evidence()?,
        Some(name) => {
            node.evidence_about(&session::somebody(&node, name)?)?
                .direct
        }
    };
    let views = evidence.iter().map(|piece| EvidenceView::of(&node, piece));
    let views = views.collect::<Result<Vec<_>, _>>()?;
    if session.json {
        output::print_json(&views)?;
    } else if views.is_empty() {
        output::print("no evidence\n")?;
    } else {
        let mut rows = vec![
            ["READER", "READS FOR", "SIGNED WITH", ""]
                .map(String::from)
                .to_vec(),
        ];
        rows.extend(views.iter().map(|view| {
            vec![
                view.reader.name.clone(),
                view.reads_for.name.clone(),
                view.scheme.name().into(),
                match view.current {
                    true => String::new(),
                    false => "about other keys than these names stand for now".into(),
                },
            ]
        }));
        output::print(&output::table("", &rows))?;
    }
    Ok(FINE)
}

/// The verdict in JSON.
#[derive(Serialize)]
struct Verdict {
    reader: String,
    identity: String,
    reads_for: bool,
    /// Through whom, from the reader on, if it does.
    chain: Option<Vec<String>>,
}

pub(crate) fn check(session: &Session, reader: &str, identity: &str) -> Answer {
    let node = session.node(session.registry()?);
    let (a, b) = (
        session::somebody(&node, reader)?,
        session::somebody(&node, identity)?,
    );
    let evidence = node.reads_for_chain(&a, &b)?;
    // What is in the registry was verified when it came; one cannot look too often.
    if let Some(piece) = evidence.iter().flatten().find(|e| e.verify().is_err()) {
        return Err(Failure::new(format!(
            "the evidence that `{}` reads for `{}` was altered in the registry",
            piece.from_identity.name, piece.to_identity.name
        ))
        .coded("evidence-altered"));
    }
    let chain = evidence.map(|pieces| {
        let names = pieces
            .iter()
            .map(|piece| piece.to_identity.name.to_string());
        std::iter::once(a.to_string())
            .chain(names)
            .collect::<Vec<_>>()
    });
    let verdict = Verdict {
        reader: a.to_string(),
        identity: b.to_string(),
        reads_for: chain.is_some(),
        chain,
    };
    if session.json {
        output::print_json(&verdict)?;
    } else {
        output::print(&match &verdict.chain {
            None => format!("no: nothing proves that {a} reads for {b}\n"),
            Some(names) if names.len() > 1 => format!("yes: {}\n", names.join(" reads for ")),
            Some(_) => "yes: they have the same key\n".into(),
        })?;
    }
    Ok(match verdict.reads_for {
        true => FINE,
        false => FAILED,
    })
}

/// What was exported, in JSON.
#[derive(Serialize)]
struct ExportView<'a> {
    /// How many pieces.
    evidence: usize,
    /// Not every path is text: what is not shows as U+FFFD.
    output: Cow<'a, str>,
}

pub(crate) fn export(session: &Session, file: &Path) -> Answer {
    let evidence = session.registry()?.all_evidence()?;
    let text = to_text(&evidence).map_err(|e| Failure::new(format!("no evidence: {e}")))?;
    let mut output = session.output(Some(file), Privacy::Public, [])?;
    output
        .write_all(text.as_bytes())
        .map_err(|e| output.failed(&e))?;
    let is_apart = !output.is_stdout();
    output.finish()?;
    if session.json && is_apart {
        output::print_json(&ExportView {
            evidence: evidence.len(),
            output: file.to_string_lossy(),
        })?;
    }
    Ok(FINE)
}

/// What came of an import, in JSON.
#[derive(Serialize)]
struct ImportView {
    added: usize,
    known: usize,
}

pub(crate) async fn import(session: &Session, file: &Path) -> Answer {
    let node = session.node(session.new_registry()?);
    let text = Input::open(Some(file), &session.screen)?.read_all()?;
    let name = file.display();
    let evidence = from_text(&text).map_err(|_| {
        Failure::new(format!("`{name}` is not a file of evidence"))
            .coded("bad-evidence-file")
            .hint("`claviger reads-for export FILE` makes one; nothing was imported")
    })?;
    let names: Vec<_> = evidence.iter().map(names).collect();
    let imported = {
        let _busy = session.screen.spin("verifying");
        node.import_evidence(evidence).await
    };
    let imported = imported.map_err(|not| match (not.piece, not.error) {
        (Some(piece), EngineError::InvalidEvidence { reason }) => Failure::new(format!(
            "Invalid evidence provided. In `{name}`, number {}, {}: {reason}",
            piece + 1,
            names[piece]
        ))
        .hint("nothing was imported"),
        (_, error) => error.into(),
    })?;
    if session.json {
        output::print_json(&ImportView {
            added: imported.added,
            known: imported.known,
        })?;
    } else {
        output::print(&format!(
            "{} imported, {} known already\n",
            imported.added, imported.known
        ))?;
    }
    Ok(FINE)
}

/// What a piece says, for a complaint.
fn names(evidence: &Evidence) -> String {
    let short = |name: &str| name.chars().take(80).collect::<String>();
    format!(
        "that `{}` reads for `{}`",
        short(&evidence.from_identity.name),
        short(&evidence.to_identity.name)
    )
}
