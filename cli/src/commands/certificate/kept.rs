//! Certificates that are kept in the registry.

use std::path::Path;

use claviger_engine::EngineId;
use claviger_engine::evidence::now;
use claviger_formats::certificate::{Chain, LONGEST_FILE};
use claviger_token::{KeyUse, PublicKey};
use serde::Serialize;

use super::super::{Answer, FINE};
use crate::engines::Engines;
use crate::failure::Failure;
use crate::input::Input;
use crate::output;
use crate::session::{self, Session};

/// A certificate in JSON.
#[derive(Serialize)]
struct View {
    name: String,
    /// Of the key.
    fingerprint: String,
    subject: String,
    issuer: String,
    serial: String,
    names: Vec<String>,
    not_before: String,
    not_after: String,
    expired: bool,
    /// PEM: that of the key, and those that issued it.
    chain: String,
}

impl View {
    fn of(who: &EngineId, key: &PublicKey, chain: &Chain) -> Result<Self, Failure> {
        let [not_before, not_after] = chain.shown_times();
        Ok(View {
            name: who.to_string(),
            fingerprint: key.fingerprint().to_string(),
            subject: chain.subject(),
            issuer: chain.issuer(),
            serial: chain.serial(),
            names: chain.names(),
            not_before,
            not_after,
            expired: chain.check_time(now()).is_err(),
            chain: chain.to_pem()?,
        })
    }

    /// For people: programs that read PEM skip what is before it.
    fn lines(&self) -> String {
        let expired = if self.expired { " (expired)" } else { "" };
        let rows = [
            ("subject", self.subject.clone()),
            ("issuer", self.issuer.clone()),
            ("serial", self.serial.clone()),
            ("names", self.names.join(", ")),
            ("not before", self.not_before.clone()),
            ("not after", format!("{}{expired}", self.not_after)),
            ("key", self.fingerprint.clone()),
        ];
        let rows: Vec<Vec<String>> = rows
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| vec![name.to_owned(), value])
            .collect();
        output::table("", &rows)
    }
}

pub(super) fn import(session: &Session, name: &str, file: &Path) -> Answer {
    let engines = Engines::of(session, Session::writable_registry)?;
    let (who, info) = engines.identity(name)?;
    let key = &session::key(&who, &info, KeyUse::Sign)?.public_key;
    let input = Input::open(Some(file), &session.screen)?;
    let chain = Chain::read(&input.read_up_to(LONGEST_FILE)?, key)?;
    keep(&engines, &who, &chain)?;
    let view = View::of(&who, key, &chain)?;
    match session.json {
        true => output::print_json(&view)?,
        false => output::print(&view.lines())?,
    }
    Ok(FINE)
}

pub(super) fn show(session: &Session, name: &str) -> Answer {
    let engines = Engines::of(session, Session::registry)?;
    let (who, info) = engines.identity(name)?;
    let key = &session::key(&who, &info, KeyUse::Sign)?.public_key;
    let chain = match &engines {
        Engines::Here(_, node) => node.registry().certificate(key)?,
        Engines::There(_, daemon, _) => daemon.certificate(&who, key)?,
    };
    let chain = chain.ok_or_else(|| {
        Failure::new(format!("there is no certificate of `{who}`"))
            .coded("no-certificate")
            .hint("make a request for one: claviger certificate request NAME --subject CN=NAME")
    })?;
    let view = View::of(&who, key, &chain)?;
    match session.json {
        true => output::print_json(&view)?,
        false => output::print(&(view.lines() + &view.chain))?,
    }
    Ok(FINE)
}

/// Enters a certificate in the registry of these engines.
pub(super) fn keep(engines: &Engines<'_>, who: &EngineId, chain: &Chain) -> Result<(), Failure> {
    match engines {
        Engines::Here(_, node) => {
            let registry = node.registry();
            registry.set_certificate(who, chain.ders(), now())?;
            Ok(())
        }
        Engines::There(_, daemon, _) => daemon.import_certificate(who, chain.ders()),
    }
}

/// Prints a certificate that was made, in PEM.
pub(super) fn print_json(who: &EngineId, key: &PublicKey, pem: &[u8]) -> Result<(), Failure> {
    let chain = Chain::read(pem, key)?;
    output::print_json(&View::of(who, key, &chain)?)
}
