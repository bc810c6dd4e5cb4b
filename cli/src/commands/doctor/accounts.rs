//! `doctor --find-accounts`: finds the accounts of a Ledger with the keys of a lost registry.

use std::path::{Path, PathBuf};

use claviger_engine::{FoundKey, Registry, Search, SoughtKey};
use claviger_token::{Fingerprint, KeyUse, shell};
use serde::Serialize;

use crate::commands::{Answer, FINE};
use crate::contact_file;
use crate::failure::{FAILED, Failure};
use crate::input::Input;
use crate::output;
use crate::screen::Screen;
use crate::session::{self, Session};

/// What was found, in JSON.
#[derive(Serialize)]
struct View {
    found: Vec<KeyView>,
    /// The fingerprints of those that were not.
    missing: Vec<String>,
}

#[derive(Serialize)]
struct KeyView {
    fingerprint: String,
    r#use: KeyUse,
    account: u32,
    slot: String,
    token: String,
    /// Reaches the account.
    backend: String,
}

pub(crate) async fn find(session: &Session, what: &[PathBuf], backend: &str) -> Answer {
    session::device(backend)?;
    let mut sought: Vec<SoughtKey> = Vec::new();
    for what in what {
        sought.extend(keys_of(session, what)?);
    }
    let mut missing: Vec<Fingerprint> = sought.iter().map(|key| key.fingerprint).collect();
    let node = session.node(Registry::in_memory()?);
    let tell = teller(session.screen.clone());
    let found = (node.find_accounts(
        &claviger_engine::EngineId::program(),
        backend,
        sought,
        &session.call(),
        tell,
    ))
    .await?;
    missing.retain(|wanted| found.iter().all(|key| key.fingerprint != *wanted));
    let status = match missing.is_empty() {
        true => FINE,
        false => FAILED,
    };
    if session.json {
        output::print_json(&View {
            found: found.iter().map(KeyView::of).collect(),
            missing: missing.iter().map(ToString::to_string).collect(),
        })?;
    } else {
        output::print(&text(&found, &missing))?;
    }
    Ok(status)
}

/// Says how far the search is, and at once what it finds: who ends it knows that much.
fn teller(screen: Screen) -> impl Fn(Search<'_>) + Send {
    let busy = screen.steps("deriving keys");
    move |search| {
        busy.reach(search.looked, search.of);
        if !screen.is_terminal() && search.looked.is_multiple_of(SAID_EVERY) {
            screen.line(&format!(
                "looked at {} of {} accounts",
                search.looked, search.of
            ));
        }
        for key in search.found {
            screen.line(&line(key));
        }
    }
}

/// Where nobody sees a bar it is said after so many accounts how far the search is.
const SAID_EVERY: u32 = 1_000;

/// The keys in a file, or one that is named by its fingerprint.
fn keys_of(session: &Session, what: &Path) -> Result<Vec<SoughtKey>, Failure> {
    let named = what
        .to_str()
        .filter(|text| text.starts_with(Fingerprint::PREFIX));
    if let Some(text) = named {
        let fingerprint = text
            .parse::<Fingerprint>()
            .map_err(|e| Failure::usage(format!("`{text}` is no fingerprint: {e}")))?;
        return Ok(vec![SoughtKey::from(fingerprint)]);
    }
    let bytes = Input::open(Some(what), &session.screen)?.read_up_to(contact_file::LONGEST)?;
    if let Some(fingerprints) = fingerprints(&bytes) {
        return Ok(fingerprints.into_iter().map(SoughtKey::from).collect());
    }
    let parsed = contact_file::parse(&bytes).map_err(|reason| {
        Failure::new(format!("`{}` cannot be used: {reason}", what.display()))
            .coded("bad-contact-file")
            .hint(
                "give public keys in a form that `claviger contact add` takes, or fingerprints \
                 (SHA256:…), one a line",
            )
    })?;
    let keys = parsed.keys.sign.iter().chain(&parsed.keys.decrypt);
    Ok(keys.map(SoughtKey::from).collect())
}

/// The fingerprints in a file that holds nothing else, one a line.
fn fingerprints(bytes: &[u8]) -> Option<Vec<Fingerprint>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let found: Vec<Fingerprint> = lines.map(|line| line.parse().ok()).collect::<Option<_>>()?;
    Some(found).filter(|found| !found.is_empty())
}

impl KeyView {
    fn of(key: &FoundKey) -> Self {
        KeyView {
            fingerprint: key.fingerprint.to_string(),
            r#use: key.spec.usage,
            account: key.account,
            slot: key.slot.to_string(),
            token: key.token.id.to_string(),
            backend: backend(key),
        }
    }
}

fn backend(key: &FoundKey) -> String {
    format!("{};account={}", key.token.backend, key.account)
}

fn text(found: &[FoundKey], missing: &[Fingerprint]) -> String {
    let mut text = String::new();
    for key in found {
        text.push_str(&format!("{}\n", line(key)));
    }
    for fingerprint in missing {
        text.push_str(&format!("{fingerprint} was not found\n"));
    }
    if !found.is_empty() {
        text.push_str("to adopt them:\n");
    }
    for (backend, keys) in by_account(found) {
        text.push_str(&format!(
            "  claviger connect NAME --to {} --backend {}\n",
            keys.join(","),
            shell::quoted(&backend)
        ));
    }
    text
}

fn line(key: &FoundKey) -> String {
    format!(
        "{} ({}) is in account {} of {}",
        key.fingerprint, key.spec, key.account, key.token.id
    )
}

/// For each account the backend that reaches it, and its keys.
fn by_account(found: &[FoundKey]) -> Vec<(String, Vec<String>)> {
    let mut accounts: Vec<(String, Vec<String>)> = Vec::new();
    for key in found {
        let (backend, fingerprint) = (backend(key), key.fingerprint.to_string());
        match accounts.iter_mut().find(|(known, _)| *known == backend) {
            Some((_, keys)) => keys.push(fingerprint),
            None => accounts.push((backend, vec![fingerprint])),
        }
    }
    accounts
}
