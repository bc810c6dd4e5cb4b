//! Rejected PINs: shows the records, and clears them.

use claviger_engine::registry::PinNote;
use claviger_engine::registry::refused_pins::RefusedPinRecord;
use claviger_engine::{Registry, RegistryError};
use claviger_token::shell;
use serde::Serialize;

use super::Findings;
use crate::commands::{Answer, FINE};
use crate::failure::Failure;
use crate::home::has_registry;
use crate::output;
use crate::session::Session;

/// What was forgotten, in JSON.
#[derive(Serialize)]
struct Forgotten {
    /// The token; a damaged record by its own name, where its token is not known.
    token: String,
    refused_pins: u32,
}

/// Says which tokens have refused PINs on record.
pub(super) fn check(registry: &Registry, findings: &mut Findings) -> Result<(), RegistryError> {
    for record in registry.refused_pins().all()? {
        let token = &record.token;
        let name = token.to_string();
        let forget = format!(
            "claviger doctor --forget-refused-pin {}",
            shell::quoted(&name)
        );
        if record.refused > 0 {
            findings.note(
                format!("{token} {}; no such PIN is sent to it again", refused(&record)),
                format!(
                    "log in with the right PIN, which clears this; if a rejected PIN is right by now: {forget}"
                ),
            );
        }
        if record.unsettled {
            findings.note(
                format!("a PIN was sent to {token}, and it is not known whether it was rejected"),
                format!(
                    "type the PIN (--pin-source prompt) and confirm that it is sent, or let any \
                     PIN be sent again: {forget}"
                ),
            );
            // It may keep every command from the token.
            findings.last_comes_first();
        }
    }
    for note in unreadable(registry)? {
        let name = name_of(&note);
        findings.note(
            format!(
                "the record {name} of a PIN that was sent is damaged, and it is not known which \
                 token it is about"
            ),
            format!(
                "log in to that token with a typed PIN (--pin-source prompt) and confirm that it \
                 is sent, or let any PIN be sent again: \
                 claviger doctor --forget-refused-pin {}",
                shell::quoted(&name)
            ),
        );
        findings.last_comes_first();
    }
    Ok(())
}

/// The records of sent PINs of which it is not known which token they are about.
fn unreadable(registry: &Registry) -> Result<Vec<PinNote>, RegistryError> {
    let mut notes = registry.refused_pins().notes()?;
    notes.retain(|note| note.token.is_none());
    Ok(notes)
}

/// What such a record is called: as its file.
fn name_of(note: &PinNote) -> String {
    let name = note.file.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Forgets the refused PINs of the token that `name` names.
pub(crate) async fn forget(session: &Session, name: &str) -> Answer {
    // Where there is no registry none is made.
    let registry = match has_registry(&session.home()?) {
        true => session.registry()?,
        false => Registry::in_memory()?,
    };
    // The home and the folder of earlier versions may each have one.
    let mut damaged = unreadable(&registry)?;
    damaged.retain(|note| name_of(note) == name);
    if !damaged.is_empty() {
        let forget = |note| registry.refused_pins().forget_note(note);
        damaged.iter().try_for_each(forget)?;
        return forgotten(session, name, 0, "was damaged");
    }
    let all = registry.refused_pins().all()?;
    let is_named = |record: &&RefusedPinRecord| {
        record.token.serial == name || record.token.to_string() == name
    };
    let mut named: Vec<RefusedPinRecord> = all.iter().filter(is_named).cloned().collect();
    let node = session.node(registry);
    if named.is_empty()
        // What is no backend names nothing.
        && let Ok(tokens) = node.tokens(&claviger_engine::EngineId::program(), Some(name), &session.call()).await
    {
        let is_there =
            |record: &&RefusedPinRecord| (tokens.iter()).any(|(token, _)| token.id == record.token);
        named = all.iter().filter(is_there).cloned().collect();
    }
    let record = match named.as_slice() {
        [one] => one,
        [] => {
            return Err(
                Failure::new(format!("no rejected PIN of `{name}` is recorded"))
                    .coded("no-refused-pin")
                    .hint(on_record("recorded are", &all)),
            );
        }
        several => {
            return Err(Failure::new(format!(
                "`{name}` matches {} tokens with rejected PINs",
                several.len()
            ))
            .hint(on_record("name one of them:", several)));
        }
    };
    node.registry().refused_pins().forget(&record.token)?;
    let what = match record.refused {
        0 => "did not answer to a PIN".into(),
        _ => refused(record),
    };
    forgotten(session, &record.token.to_string(), record.refused, &what)
}

fn forgotten(session: &Session, name: &str, refused_pins: u32, what: &str) -> Answer {
    if session.json {
        output::print_json(&Forgotten {
            token: name.into(),
            refused_pins,
        })?;
    } else {
        output::print(&format!("forgotten: {name} {what}\n"))?;
    }
    Ok(FINE)
}

fn refused(record: &RefusedPinRecord) -> String {
    match record.refused {
        1 => "rejected a PIN".into(),
        several => format!("rejected {several} PINs"),
    }
}

fn on_record(title: &str, records: &[RefusedPinRecord]) -> String {
    if records.is_empty() {
        return "none are recorded".into();
    }
    let names = records.iter().map(|record| format!("\n  {}", record.token));
    format!("{title}{}", names.collect::<String>())
}
