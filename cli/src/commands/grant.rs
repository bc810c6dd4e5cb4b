//! `grant`: who may use which identity through the daemon.

use claviger_client::wire::{self, grant::Subject};
use claviger_engine::grants::CONFIRMED;
use claviger_formats::ssh;
use serde::Serialize;

use super::{Answer, FINE};
use crate::daemon_args::NewGrant;
use crate::failure::Failure;
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
    /// Whether a person confirms each use.
    confirm: bool,
}

impl<'a> View<'a> {
    fn of(grant: &'a wire::Grant) -> Self {
        let (uid, gid) = match grant.subject {
            Some(Subject::Uid(uid)) => (Some(uid), None),
            Some(Subject::Gid(gid)) => (None, Some(gid)),
            None => (None, None),
        };
        let text = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        let confirmed = grant.operation.strip_suffix(CONFIRMED);
        View {
            id: grant.id,
            uid,
            gid,
            socket: text(&grant.socket),
            identity: text(&grant.identity),
            may: confirmed.unwrap_or(&grant.operation),
            purpose: text(&grant.purpose),
            confirm: confirmed.is_some(),
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
            if self.confirm { "each use" } else { "–" }.into(),
        ]
    }
}

pub(crate) fn add(session: &Session, new: NewGrant) -> Answer {
    let subject = match (new.uid, new.gid) {
        (Some(uid), _) => Some(Subject::Uid(uid)),
        (None, gid) => gid.map(Subject::Gid),
    };
    let purpose = match &new.host {
        None => new.purpose,
        Some(host) => format!("{}:{}", new.purpose, fingerprint_of(host)?),
    };
    let grant = wire::Grant {
        id: 0,
        subject,
        socket: new.socket,
        identity: new.identity,
        operation: match new.confirm {
            true => format!("{}{CONFIRMED}", new.may),
            false => new.may,
        },
        purpose,
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

/// The fingerprint of a host's key, as SSH has it: given as such, as a public key, or by a file.
fn fingerprint_of(host: &str) -> Result<String, Failure> {
    if host.starts_with("SHA256:") {
        return Ok(host.to_owned());
    }
    let key = ssh::from_line(host).ok().or_else(|| {
        let text = std::fs::read_to_string(host).ok()?;
        ssh::from_line(text.lines().next()?).ok()
    });
    let wire = key.and_then(|key| ssh::to_wire(&key));
    let wire = wire.ok_or_else(|| {
        Failure::new(format!("`{host}` is no key of a host"))
            .coded("bad-host-key")
            .hint("give its fingerprint: ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub")
    })?;
    Ok(ssh::fingerprint(&wire))
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
        let header = [
            "ID", "WHO", "SOCKET", "IDENTITY", "MAY", "PURPOSE", "CONFIRM",
        ];
        let mut rows = vec![header.map(String::from).to_vec()];
        rows.extend(views.iter().map(View::row));
        output::print(&output::table("", &rows))?;
    }
    Ok(FINE)
}
