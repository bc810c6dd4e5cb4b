//! `grant`: who may use which identity through the daemon.

use claviger_client::wire::{self, grant::Subject};
use serde::Serialize;

use super::{Answer, FINE};
use crate::daemon_args::NewGrant;
use crate::output;
use crate::session::Session;

/// The purpose of signatures of digests.
const DIGESTS: &str = "prehash";

/// A grant in JSON.
#[derive(Serialize)]
struct View<'a> {
    id: u64,
    uid: Option<u32>,
    gid: Option<u32>,
    socket: Option<&'a str>,
    identity: Option<&'a str>,
    may: &'a str,
    purpose: Option<&'a str>,
}

impl<'a> View<'a> {
    fn of(grant: &'a wire::Grant) -> Self {
        let (uid, gid) = match grant.subject {
            Some(Subject::Uid(uid)) => (Some(uid), None),
            Some(Subject::Gid(gid)) => (None, Some(gid)),
            None => (None, None),
        };
        let text = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        View {
            id: grant.id,
            uid,
            gid,
            socket: text(&grant.socket),
            identity: text(&grant.identity),
            may: &grant.operation,
            purpose: text(&grant.purpose),
        }
    }

    /// The columns for people.
    fn row(&self) -> Vec<String> {
        let subject = match (self.uid, self.gid) {
            (Some(uid), _) => format!("uid {uid}"),
            (None, Some(gid)) => format!("gid {gid}"),
            (None, None) => "nobody".into(),
        };
        let text = |text: Option<&str>| text.unwrap_or("–").to_owned();
        vec![
            self.id.to_string(),
            subject,
            text(self.socket),
            text(self.identity),
            self.may.into(),
            text(self.purpose),
        ]
    }
}

pub(crate) fn add(session: &Session, new: NewGrant) -> Answer {
    let subject = match (new.uid, new.gid) {
        (Some(uid), _) => Some(Subject::Uid(uid)),
        (None, gid) => gid.map(Subject::Gid),
    };
    let grant = wire::Grant {
        id: 0,
        subject,
        socket: new.socket,
        identity: new.identity,
        operation: new.may,
        purpose: new.purpose,
    };
    let added = session.needed_daemon()?.add_grant(grant)?;
    if added.iter().any(|grant| grant.purpose == DIGESTS) {
        output::warn(
            "whoever may have digests signed can obtain any signature of this key, including \
             grants in its name",
            "use the key for nothing but TLS or ssh, or remove the grant: claviger grant list",
        );
    }
    show(session, &added)
}

pub(crate) fn list(session: &Session) -> Answer {
    let grants = session.needed_daemon()?.grants()?;
    show(session, &grants)
}

pub(crate) fn remove(session: &Session, id: u64) -> Answer {
    let removed = session.needed_daemon()?.remove_grant(id)?;
    show(session, &removed)
}

fn show(session: &Session, grants: &[wire::Grant]) -> Answer {
    let views: Vec<View<'_>> = grants.iter().map(View::of).collect();
    if session.json {
        output::print_json(&views)?;
    } else if views.is_empty() {
        output::print("no grants\n")?;
    } else {
        let header = ["ID", "WHO", "SOCKET", "IDENTITY", "MAY", "PURPOSE"];
        let mut rows = vec![header.map(String::from).to_vec()];
        rows.extend(views.iter().map(View::row));
        output::print(&output::table("", &rows))?;
    }
    Ok(FINE)
}
