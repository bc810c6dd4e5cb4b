//! `backup` and `restore`: copies of the registry.

use std::borrow::Cow;
use std::io::Write as _;
use std::path::Path;

use claviger_engine::registry::Content;
use claviger_engine::{Registry, RegistryError};
use claviger_token::shell;
use serde::Serialize;

use super::{Answer, FINE};
use crate::failure::Failure;
use crate::new_file::Privacy;
use crate::output;
use crate::session::Session;
use crate::views;

/// What was backed up or restored, in JSON.
#[derive(Serialize)]
struct View<'a> {
    identities: usize,
    contacts: usize,
    evidence: usize,
    open_intents: usize,
    /// Not every path is text: what is not shows as U+FFFD.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_account: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved_aside: Option<Option<Cow<'a, str>>>,
}

impl View<'_> {
    fn of(content: &Content) -> Self {
        View {
            identities: content.identities,
            contacts: content.contacts,
            evidence: content.evidence,
            open_intents: content.open_intents,
            output: None,
            first_account: None,
            moved_aside: None,
        }
    }
}

pub(crate) fn backup(session: &Session, file: &Path) -> Answer {
    let backup = session.registry()?.backup()?;
    let mut output = session.output(Some(file), Privacy::Private, [])?;
    output
        .write_all(&backup.file)
        .map_err(|e| output.failed(&e))?;
    let is_apart = !output.is_stdout();
    output.finish()?;
    if session.json && is_apart {
        output::print_json(&View {
            output: Some(file.to_string_lossy()),
            first_account: Some(backup.first_account),
            ..View::of(&backup.content)
        })?;
    } else if is_apart {
        output::print(&format!(
            "{} backed up to {}\n{}",
            content(&backup.content),
            shell::quoted(&file.to_string_lossy()),
            views::accounts(Some(backup.first_account)),
        ))?;
    }
    Ok(FINE)
}

pub(crate) fn restore(session: &Session, file: &Path) -> Answer {
    let home = session.home()?;
    let name = file.to_string_lossy();
    let name = shell::quoted(&name);
    let restored = Registry::restore(&home, file).map_err(|error| match error {
        RegistryError::NotARegistry { .. } => {
            Failure::from(error).hint("`claviger backup FILE` makes a backup; nothing was changed")
        }
        RegistryError::Empty { .. }
        | RegistryError::Damaged { .. }
        | RegistryError::Altered { .. } => Failure::from(error)
            .said_of(&format!("the backup {name}"))
            .hint("take an older backup; nothing was changed"),
        RegistryError::NotPrivate { ref path, .. } if path == file => {
            Failure::from(error).hint(format!(
                "where you know who made it, restore a copy that is yours: install -m 600 {name} NEW \
                 && claviger restore NEW; nothing was changed"
            ))
        }
        other => other.into(),
    })?;
    let aside = restored.moved_aside.as_deref().map(Path::to_string_lossy);
    if session.json {
        output::print_json(&View {
            moved_aside: Some(aside),
            ..View::of(&restored.content)
        })?;
        return Ok(FINE);
    }
    let mut text = format!("{} restored from {name}\n", content(&restored.content));
    if let Some(aside) = aside {
        text.push_str(&format!(
            "the old registry is now {}\n",
            shell::quoted(&aside)
        ));
    }
    text.push_str(
        "next: claviger doctor (it lists keys on the attached tokens that the backup does not know)\n\
         if no other copy of this home is in use: claviger doctor --this-is-the-home\n",
    );
    output::print(&text)?;
    Ok(FINE)
}

fn content(content: &Content) -> String {
    let count = |number: usize, one: &str, several: &str| match number {
        1 => format!("1 {one}"),
        number => format!("{number} {several}"),
    };
    format!(
        "{}, {} and {}",
        count(content.identities, "identity", "identities"),
        count(content.contacts, "contact", "contacts"),
        count(content.evidence, "piece of evidence", "pieces of evidence"),
    )
}
