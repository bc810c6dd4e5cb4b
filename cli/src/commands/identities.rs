//! `identities` and `show`: what the registry knows. No token is asked.

use super::{Answer, FINE};
use crate::output;
use crate::session::{self, Session};
use crate::views::{self, IdentityView};

pub(crate) fn list(session: &Session) -> Answer {
    let identities = session.registry()?.identities()?;
    if session.json {
        let views: Vec<IdentityView> = identities
            .iter()
            .map(|(name, info)| IdentityView::brief(name, info))
            .collect();
        output::print_json(&views)?;
    } else if identities.is_empty() {
        output::print("no identities\n")?;
        output::complain(
            "hint",
            "`claviger tokens` lists the tokens, `claviger generate NAME --backend BACKEND` \
             makes an identity on one",
            "",
        );
    } else {
        output::print(&views::list(&identities))?;
    }
    Ok(FINE)
}

pub(crate) fn show(session: &Session, name: &str) -> Answer {
    let (name, info) = session::identity(&session.registry()?, name)?;
    if session.json {
        output::print_json(&IdentityView::full(&name, &info))?;
    } else {
        output::print(&views::full(&name, &info))?;
    }
    Ok(FINE)
}
