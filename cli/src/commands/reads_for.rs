//! `reads-for`: evidence of who reads for whom.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

use chrono::{DateTime, SecondsFormat, Utc};
use claviger_engine::evidence::{from_text, to_text};
use claviger_engine::{
    EngineError, EngineId, Evidence, EvidenceFile, Node, Party, Standing, Terms,
};
use claviger_token::{KeyUse, SignatureScheme, shell};
use serde::Serialize;

use super::{Answer, FINE};
use crate::daemon::Daemon;
use crate::failure::{FAILED, Failure};
use crate::hints;
use crate::input::Input;
use crate::new_file::Privacy;
use crate::output;
use crate::session::{self, Session};
use crate::views::PartyView;

/// No longer file of evidence is read, in bytes.
const LONGEST_FILE: usize = 64 << 20;

/// A piece of evidence in JSON.
#[derive(Serialize)]
struct EvidenceView {
    reader: PartyView,
    reads_for: PartyView,
    scheme: SignatureScheme,
    /// When it ends (RFC 3339), if it does.
    until: Option<String>,
    /// Whether it is relied on: `counts`, `ended`, `revoked`, `old-format`, or
    /// `reader-cannot-decrypt`.
    standing: &'static str,
    /// The command that grants it anew, where it is of the old format and the one who granted
    /// it is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    again: Option<String>,
    /// Whether the names in it still stand for these keys here, or for none.
    current: bool,
}

impl EvidenceView {
    fn of(node: &Node, evidence: &Evidence, standing: Standing) -> Result<Self, Failure> {
        let parties = [&evidence.from_identity, &evidence.to_identity];
        let mut current = true;
        for party in parties {
            let known = node.public_keys(&EngineId::local(party.name.clone()))?;
            current &= known.is_none_or(|keys| !keys.contradict(&party.keys));
        }
        let view = |party: &Party| {
            let name = node.name_here(party)?;
            Ok::<_, Failure>(PartyView::of(&Party {
                name,
                keys: party.keys.clone(),
            }))
        };
        let (reader, reads_for) = (view(parties[0])?, view(parties[1])?);
        let granter = EngineId::local(&*reads_for.name);
        let is_here = node.registry().identity(&granter)?.is_some();
        let again = format!(
            "claviger reads-for grant {} --by {}",
            shell::quoted(&reader.name),
            shell::quoted(&reads_for.name)
        );
        Ok(EvidenceView {
            reader,
            reads_for,
            scheme: evidence.proof.scheme(),
            until: end(evidence),
            standing: name(standing),
            again: (standing == Standing::OldFormat && is_here).then_some(again),
            current,
        })
    }

    /// What a person has to know of it.
    fn remark(&self) -> String {
        match (self.standing, &self.again) {
            ("old-format", Some(again)) => {
                return format!("old format, not relied on; grant it anew: {again}");
            }
            ("old-format", None) => {
                return "old format, not relied on; whoever granted it can grant it anew".into();
            }
            ("reader-cannot-decrypt", _) => {
                return "the reader has no key that decrypts, not relied on".into();
            }
            ("ended" | "revoked", _) => return format!("{}, not relied on", self.standing),
            _ => {}
        }
        match self.current {
            true => String::new(),
            false => "about other keys than these names stand for now".into(),
        }
    }
}

/// When evidence ends.
fn end(evidence: &Evidence) -> Option<String> {
    let Terms::V2 { until, .. } = evidence.terms else {
        return None;
    };
    let end = until?;
    let time = i64::try_from(end)
        .ok()
        .and_then(|end| DateTime::from_timestamp(end, 0));
    // Of an end that no calendar has, the number is shown.
    let text = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    Some(time.map_or_else(|| end.to_string(), text))
}

fn name(standing: Standing) -> &'static str {
    match standing {
        Standing::Counts => "counts",
        Standing::OldFormat => "old-format",
        Standing::ReaderCannotDecrypt => "reader-cannot-decrypt",
        Standing::Ended => "ended",
        Standing::Revoked => "revoked",
        _ => "unknown",
    }
}

pub(crate) async fn grant(session: &Session, reader: &str, by: &str, until: Option<u64>) -> Answer {
    let node = session.node(session.new_registry()?);
    let (who, info) = session::identity(node.registry(), by)?;
    let key = session::key(&who, &info, KeyUse::Sign)?;
    let from = session::somebody(&node, reader)?;
    if node
        .reads_for_chain(&EngineId::program(), &from, &who)?
        .is_some_and(|c| c.is_empty())
    {
        return Err(Failure::new(format!(
            "`{from}` has the same keys as `{who}`: it reads for it anyway"
        ))
        .coded("same-keys"));
    }
    let asker = EngineId::program();
    let evidence = match signing_daemon(session)? {
        Some(daemon) => {
            let sign = async |engine, request| daemon.commit_for(&engine, &request);
            node.grant_reads_for_signed(&asker, &from, &who, until, sign)
                .await?
        }
        None => {
            session
                .resolve_intents(&node, std::slice::from_ref(&key.token))
                .await?;
            let _busy = session.screen.spin("signing");
            let call = session.call();
            node.grant_reads_for(&asker, &from, &who, until, &call)
                .await?
        }
    };
    if session.json {
        output::print_json(&EvidenceView::of(&node, &evidence, Standing::Counts)?)?;
    } else {
        let until = end(&evidence).map_or(String::new(), |end| format!(" until {end}"));
        output::print(&format!(
            "{from} reads for {who}{until}\nnext: claviger encrypt {} --reads-for\n",
            shell::quoted(&who.name)
        ))?;
    }
    Ok(FINE)
}

/// The daemon that has the tokens of this home, if there is one: it signs, and the command stores.
fn signing_daemon(session: &Session) -> Result<Option<&Daemon>, Failure> {
    let daemon = session.daemon()?;
    Ok(daemon.filter(|daemon| daemon.shares_home()))
}

/// What was revoked, in JSON.
#[derive(Serialize)]
struct RevokedView<'a> {
    reader: &'a str,
    reads_for: &'a str,
    /// How many grants.
    revoked: usize,
}

pub(crate) async fn revoke(session: &Session, reader: &str, by: &str) -> Answer {
    let node = session.node(session.new_registry()?);
    let (who, info) = session::identity(node.registry(), by)?;
    let key = session::key(&who, &info, KeyUse::Sign)?;
    let (asker, from) = (EngineId::program(), EngineId::local(reader));
    let revoked = match signing_daemon(session)? {
        Some(daemon) => {
            let sign = async |engine, request| daemon.commit_for(&engine, &request);
            node.revoke_reads_for_signed(&asker, &from, &who, sign)
                .await?
        }
        None => {
            session
                .resolve_intents(&node, std::slice::from_ref(&key.token))
                .await?;
            let _busy = session.screen.spin("signing");
            node.revoke_reads_for(&asker, &from, &who, &session.call())
                .await?
        }
    };
    if session.json {
        output::print_json(&RevokedView {
            reader,
            reads_for: by,
            revoked: revoked.len(),
        })?;
    } else {
        output::print(&format!(
            "{from} no longer reads for {who}; files that were encrypted before stay readable\n\
             next: claviger reads-for export FILE, and import it where the grant was imported\n"
        ))?;
    }
    // Somebody else may let the same reader read.
    if node.public_keys(&from)?.is_some()
        && let Some(chain) = node.reads_for_chain(&EngineId::program(), &from, &who)?
        && let Some(piece) = chain.first()
    {
        let through = node.name_here(&piece.to_identity)?;
        output::warn(
            &format!("`{from}` still reads for `{who}`, through `{through}`"),
            "`claviger reads-for check` shows how",
        );
    }
    Ok(FINE)
}

pub(crate) fn list(session: &Session, about: Option<&str>) -> Answer {
    let node = session.node(session.registry()?);
    let evidence = match about {
        None => node.registry().all_evidence()?,
        Some(name) => {
            node.evidence_about(&EngineId::program(), &session::somebody(&node, name)?)?
                .direct
        }
    };
    let standing = node.standing(&evidence)?;
    let views = evidence.iter().zip(standing);
    let views = views.map(|(piece, standing)| EvidenceView::of(&node, piece, standing));
    let views = views.collect::<Result<Vec<_>, _>>()?;
    if session.json {
        output::print_json(&views)?;
    } else if views.is_empty() {
        output::print("no evidence\n")?;
    } else {
        let mut rows = vec![
            ["READER", "READS FOR", "SIGNED WITH", "UNTIL", ""]
                .map(String::from)
                .to_vec(),
        ];
        rows.extend(views.iter().map(|view| {
            vec![
                view.reader.name.clone(),
                view.reads_for.name.clone(),
                view.scheme.name().into(),
                view.until.clone().unwrap_or_default(),
                view.remark(),
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
    /// Why grants of the one to the other are not relied on, if it does not.
    not_relied_on: Vec<&'static str>,
}

/// Why what `b` granted `a` is not relied on.
fn not_relied_on(node: &Node, a: &EngineId, b: &EngineId) -> Result<Vec<&'static str>, Failure> {
    let (from, to) = (node.public_keys(a)?, node.public_keys(b)?);
    let mut direct = node.evidence_about(&EngineId::program(), b)?.direct;
    direct.retain(|piece| {
        let parties = [&piece.from_identity, &piece.to_identity];
        parties.map(|party| Some(&party.keys)) == [from.as_ref(), to.as_ref()]
    });
    let standing = node.standing(&direct)?.into_iter().map(name);
    Ok(standing.filter(|name| *name != "counts").collect())
}

pub(crate) fn check(session: &Session, reader: &str, identity: &str) -> Answer {
    let node = session.node(session.registry()?);
    let (a, b) = (
        session::somebody(&node, reader)?,
        session::somebody(&node, identity)?,
    );
    let evidence = node.reads_for_chain(&EngineId::program(), &a, &b)?;
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
            .map(|piece| node.name_here(&piece.to_identity));
        let names = names.map(|name| name.map(|name| name.to_string()));
        std::iter::once(Ok(a.to_string()))
            .chain(names)
            .collect::<Result<Vec<_>, _>>()
    });
    let chain = chain.transpose()?;
    let not_relied_on = match chain {
        Some(_) => Vec::new(),
        None => not_relied_on(&node, &a, &b)?,
    };
    let verdict = Verdict {
        reader: a.to_string(),
        identity: b.to_string(),
        reads_for: chain.is_some(),
        chain,
        not_relied_on,
    };
    if session.json {
        output::print_json(&verdict)?;
    } else {
        output::print(&match &verdict.chain {
            None => match verdict.not_relied_on.last() {
                None => format!("no: nothing proves that {a} reads for {b}\n"),
                Some(&"old-format") => format!(
                    "no: a grant of {b} is of the old format and not relied on; \
                     claviger reads-for list shows how to grant it anew\n"
                ),
                Some(&"reader-cannot-decrypt") => {
                    format!("no: {a} has no key that decrypts, and so reads for nobody else\n")
                }
                Some(standing) => format!(
                    "no: the grant of {b} has {}\n",
                    match *standing {
                        "revoked" => "been revoked",
                        _ => "ended",
                    }
                ),
            },
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
    revocations: usize,
    /// Not every path is text: what is not shows as U+FFFD.
    output: Cow<'a, str>,
}

pub(crate) fn export(session: &Session, file: &Path) -> Answer {
    let registry = session.registry()?;
    // Whatever is granted in between is not revoked yet.
    let all = EvidenceFile {
        evidence: registry.all_evidence()?,
        revocations: registry.all_revocations()?,
    };
    let text = to_text(&all).map_err(|e| Failure::new(format!("no evidence: {e}")))?;
    let mut output = session.output(Some(file), Privacy::Public, [])?;
    output
        .write_all(text.as_bytes())
        .map_err(|e| output.failed(&e))?;
    let is_apart = !output.is_stdout();
    output.finish()?;
    if session.json && is_apart {
        output::print_json(&ExportView {
            evidence: all.evidence.len(),
            revocations: all.revocations.len(),
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
    /// So many of those that were added are of the old format, and not relied on.
    old_format: usize,
    /// So many revocations are new.
    revocations: usize,
    /// The contacts that were entered for keys whose names are taken here.
    contacts: Vec<String>,
}

pub(crate) async fn import(session: &Session, file: &Path) -> Answer {
    let node = session.node(session.new_registry()?);
    let text = Input::open(Some(file), &session.screen)?.read_up_to(LONGEST_FILE)?;
    let name = file.display();
    let read = from_text(&text).map_err(|_| {
        Failure::new(format!("`{name}` is not a file of evidence"))
            .coded("bad-evidence-file")
            .hint("`claviger reads-for export FILE` makes one; nothing was imported")
    })?;
    let pieces: Vec<_> = read.evidence.iter().map(names).collect();
    let imported = {
        let _busy = session.screen.spin("verifying");
        node.import_evidence(&EngineId::program(), read).await
    };
    let imported = imported.map_err(|not| match (not.piece, not.error) {
        (Some(piece), EngineError::InvalidEvidence { reason }) => {
            let what = match pieces.get(piece) {
                Some(names) => format!("number {}, {names}", piece + 1),
                None => format!("revocation number {}", piece + 1 - pieces.len()),
            };
            Failure::new(format!(
                "Invalid evidence provided. In `{name}`, {what}: {reason}"
            ))
            .coded("invalid-evidence")
            .hint(match hints::by_code(reason.code()) {
                "" => "nothing was imported".to_owned(),
                hint => format!("{hint}; nothing was imported"),
            })
        }
        (_, error) => error.into(),
    })?;
    for (old, new) in &imported.renamed {
        output::warn(
            &format!("`{old}` has other keys here than in `{name}`: those are the contact `{new}`"),
            &format!(
                "another name for it: claviger contact rename {} NAME",
                shell::quoted(new)
            ),
        );
    }
    if imported.of_version_1 > 0 {
        output::warn(
            &format!(
                "{} of them are of the old format: they are kept, and not relied on",
                imported.of_version_1
            ),
            "have whoever granted it grant it anew",
        );
    }
    if session.json {
        output::print_json(&ImportView {
            added: imported.added,
            known: imported.known,
            old_format: imported.of_version_1,
            revocations: imported.revocations,
            contacts: imported
                .renamed
                .iter()
                .map(|(_, new)| new.to_string())
                .collect(),
        })?;
    } else {
        let revoked = match imported.revocations {
            0 => String::new(),
            count => format!(", {count} revoked"),
        };
        output::print(&format!(
            "{} imported, {} already known{revoked}\n",
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
