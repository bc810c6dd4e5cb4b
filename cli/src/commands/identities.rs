//! `identities` and `show`: read the registry, not the tokens.

use std::path::Path;

use super::{Answer, FINE};
use crate::failure::Failure;
use crate::input::Input;
use crate::session::{self, Session};
use crate::views::{self, IdentityView, List};
use crate::{drivers, output};

pub(crate) fn list(session: &Session) -> Answer {
    let registry = session.registry()?;
    if session.json {
        let mut views = Vec::new();
        registry.each_identity(|name, info| views.push(IdentityView::brief(&name, &info)))?;
        output::print_json(&views)?;
        return Ok(FINE);
    }
    let mut list = List::new();
    registry.each_identity(|name, info| list.add(&name, &info))?;
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

pub(crate) fn show(session: &Session, name: &str, roots: Option<&Path>) -> Answer {
    let registry = session.registry()?;
    let (name, info) = session::identity(&registry, name)?;
    let first_account = views::first_account(&registry, &info);
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
