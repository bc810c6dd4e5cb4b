//! `contact`: public keys of others, under names.

use std::path::Path;

use claviger_engine::{EngineError, Party, types::check_name};
use serde::Serialize;

use super::{Answer, FINE};
use crate::contact_file;
use crate::failure::Failure;
use crate::input::Input;
use crate::names;
use crate::output;
use crate::session::Session;
use crate::views::PartyView;

pub(crate) fn add(session: &Session, name: &str, file: &Path) -> Answer {
    check_name(name).map_err(|reason| Failure::from(EngineError::BadName { reason }))?;
    let registry = session.new_registry()?;
    let input = Input::open(Some(file), &session.screen)?;
    let bytes = input.read_up_to(contact_file::LONGEST)?;
    let parsed = contact_file::parse(&bytes).map_err(|reason| {
        Failure::new(format!("`{}` cannot be used: {reason}", file.display()))
            .coded("bad-contact-file")
            .hint(
                "give a public key in PEM, a certificate, an SSH public key, an age recipient, or \
                 what `claviger show NAME --json` prints",
            )
    })?;
    for what in &parsed.left {
        output::warn(&format!("in `{}`, {what}", file.display()), "");
    }
    names::warn_of_lookalikes(&registry, name)?;
    let contact = Party {
        name: name.into(),
        keys: parsed.keys,
    };
    registry.add_contact(&contact)?;
    if session.json {
        output::print_json(&PartyView::of(&contact))?;
    } else {
        output::print(&format!("added {}", PartyView::of(&contact).summary()))?;
    }
    Ok(FINE)
}

pub(crate) fn list(session: &Session) -> Answer {
    let contacts = session.registry()?.contacts()?;
    let views: Vec<PartyView> = contacts.iter().map(PartyView::of).collect();
    if session.json {
        output::print_json(&views)?;
    } else if views.is_empty() {
        output::print("no contacts\n")?;
    } else {
        let texts = views.iter().map(PartyView::summary);
        output::print(&texts.collect::<String>())?;
    }
    Ok(FINE)
}

/// What was renamed, in JSON.
#[derive(Serialize)]
struct Renamed<'a> {
    name: &'a str,
    old: &'a str,
}

pub(crate) fn rename(session: &Session, old: &str, new: &str) -> Answer {
    check_name(new).map_err(|reason| Failure::from(EngineError::BadName { reason }))?;
    let registry = session.registry()?;
    names::warn_of_lookalikes(&registry, new)?;
    if !registry.rename_contact(old, new)? {
        return Err(none(old));
    }
    if session.json {
        output::print_json(&Renamed { name: new, old })?;
    } else {
        output::print(&format!("renamed `{old}` to `{new}`\n"))?;
    }
    Ok(FINE)
}

fn none(name: &str) -> Failure {
    let shown: String = name.chars().take(80).collect();
    Failure::new(format!("there is no contact `{shown}`"))
        .coded("no-contact")
        .hint("`claviger contact list` lists them")
}

/// What was removed, in JSON.
#[derive(Serialize)]
struct Removed<'a> {
    name: &'a str,
}

pub(crate) fn remove(session: &Session, name: &str) -> Answer {
    if !session.registry()?.remove_contact(name)? {
        return Err(none(name));
    }
    if session.json {
        output::print_json(&Removed { name })?;
    } else {
        output::print(&format!(
            "removed `{name}`; evidence about its keys stays\n"
        ))?;
    }
    Ok(FINE)
}
