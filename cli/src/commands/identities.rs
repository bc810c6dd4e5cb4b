//! `identities` and `show`: read the registry, not the tokens.

use std::collections::BTreeSet;
use std::path::Path;

use claviger_engine::{EngineId, IdentityInfo};

use super::{Answer, FINE};
use crate::daemon::{Daemon, Known};
use crate::failure::Failure;
use crate::input::Input;
use crate::session::{self, Session};
use crate::views::{self, IdentityView, List};
use crate::{drivers, output};

/// Hands out every identity: those of the registry, and those of a daemon, whose keys may be in its
/// memory.
pub(super) fn each(
    session: &Session,
    mut take: impl FnMut(&EngineId, &IdentityInfo),
) -> Result<(), Failure> {
    let daemon = session.daemon()?;
    let mut shown = BTreeSet::new();
    if daemon.is_none_or(Daemon::shares_home) {
        session.registry()?.each_identity(|name, info| {
            take(&name, &info);
            shown.insert(name.name);
        })?;
    }
    let listed = daemon.map(Daemon::identities).transpose()?;
    for known in listed.into_iter().flatten() {
        if !shown.contains(&known.who.name) {
            take(&known.who, &known.info);
        }
    }
    Ok(())
}

pub(crate) fn list(session: &Session) -> Answer {
    if session.json {
        let mut views = Vec::new();
        each(session, |name, info| {
            views.push(IdentityView::brief(name, info));
        })?;
        output::print_json(&views)?;
        return Ok(FINE);
    }
    let mut list = List::new();
    each(session, |name, info| list.add(name, info))?;
    if list.is_empty() {
        output::print("no identities\n")?;
        output::complain(
            "hint",
            "`claviger tokens` lists the tokens, `claviger generate NAME --backend BACKEND` \
             makes an identity on one",
            "",
        );
    } else {
        output::print(&list.table())?;
    }
    Ok(FINE)
}

/// An identity of the registry, or of a daemon.
pub(super) fn known(session: &Session, name: &str) -> Result<Known, Failure> {
    let daemon = session.daemon()?;
    if daemon.is_none_or(Daemon::shares_home) {
        let registry = session.registry()?;
        let id = EngineId::local(name);
        if let Some(info) = registry.identity(&id)? {
            return Ok(Known {
                first_account: views::first_account(&registry, &info),
                who: id,
                info,
            });
        }
    }
    let known = daemon.map(|daemon| daemon.identity(name)).transpose()?;
    known.flatten().ok_or_else(|| session::no_identity(name))
}

pub(crate) fn show(session: &Session, name: &str, roots: Option<&Path>) -> Answer {
    let Known {
        who: name,
        info,
        first_account,
    } = known(session, name)?;
    let roots = roots.map(|file| read_roots(session, file)).transpose()?;
    if session.json {
        let view = IdentityView::full(&name, &info, roots.as_deref());
        output::print_json(&view.with_accounts(first_account))?;
    } else {
        let text = views::full(&name, &info, roots.as_deref());
        output::print(&(text + &views::accounts(first_account)))?;
    }
    Ok(FINE)
}

/// In bytes; a certificate takes about 2,000.
const LONGEST_ROOTS: usize = 1 << 20;

/// The certificates in a file, each as PEM.
fn read_roots(session: &Session, file: &Path) -> Result<Vec<String>, Failure> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = Input::open(Some(file), &session.screen)?.read_up_to(LONGEST_ROOTS)?;
    let text = String::from_utf8_lossy(&text);
    let roots: Vec<String> = text
        .split_inclusive(END)
        .filter_map(|part| Some(part[part.find("-----BEGIN CERTIFICATE-----")?..].to_owned()))
        .collect();
    match drivers::are_certificates(&roots) {
        true => Ok(roots),
        false => Err(
            Failure::new(format!("`{}` holds no certificates", file.display()))
                .coded("no-certificates")
                .hint("--attestation-root is a file of X.509 certificates in PEM"),
        ),
    }
}
