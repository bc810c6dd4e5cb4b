//! `agent-env`, `ssh-key` and `allowed-signers`: for programs that use SSH keys.

use std::env;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use claviger_client::peer::own_socket;
use claviger_engine::{EngineId, IdentityInfo};
use claviger_formats::ssh;
use claviger_token::{KeyUse, PublicKey, shell};
use serde::Serialize;

use super::{Answer, FINE, identities};
use crate::daemon::{Choice, Known};
use crate::failure::Failure;
use crate::output;
use crate::session::Session;

/// The daemon's socket for SSH, beside the one for commands.
pub(crate) const AGENT_SOCKET: &str = "ssh.sock";

/// git sets this for the programs that it runs (git(1)).
const RUN_BY_GIT: &str = "GIT_PREFIX";

/// How git tells a key from the path of one (git-config(1), `user.signingKey`).
const GIT_PREFIX: &str = "key::";

#[derive(Serialize)]
struct AgentView {
    ssh_auth_sock: String,
}

#[derive(Serialize)]
struct KeyView {
    name: String,
    key: String,
}

#[derive(Serialize)]
struct SignerView {
    principal: String,
    key: String,
}

pub(crate) fn agent_env(session: &Session) -> Answer {
    let api = match session.daemon_choice() {
        Choice::This(socket) => Some(socket.clone()),
        Choice::Own | Choice::Never => own_socket(),
    };
    let socket = api.map(|api| api.with_file_name(AGENT_SOCKET));
    let socket = socket.filter(is_socket).ok_or_else(|| {
        Failure::new("no daemon of yours serves SSH")
            .coded("no-ssh-agent")
            .hint("start one: claviger serve")
    })?;
    let path = socket.display().to_string();
    match session.json {
        true => output::print_json(&AgentView {
            ssh_auth_sock: path,
        })?,
        false => {
            let quoted = shell::quoted(&path);
            output::print(&format!("SSH_AUTH_SOCK={quoted}; export SSH_AUTH_SOCK;\n"))?;
        }
    }
    Ok(FINE)
}

fn is_socket(path: &PathBuf) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

pub(crate) fn ssh_key(session: &Session, name: &str) -> Answer {
    let Known { who, info, .. } = identities::known(session, name)?;
    let line = line(&who, &info).ok_or_else(|| no_ssh_key(&who))?;
    match session.json {
        true => output::print_json(&KeyView {
            name: who.name.to_string(),
            key: line,
        })?,
        false => {
            let prefix = match env::var_os(RUN_BY_GIT) {
                Some(_) => GIT_PREFIX,
                None => "",
            };
            output::print(&format!("{prefix}{line}\n"))?;
        }
    }
    Ok(FINE)
}

pub(crate) fn allowed_signers(
    session: &Session,
    names: &[String],
    principal: Option<&str>,
) -> Answer {
    let mut signers = Vec::new();
    if names.is_empty() {
        identities::each(session, |who, info| signers.extend(signer(who, info)))?;
    }
    for name in names {
        let Known { who, info, .. } = identities::known(session, name)?;
        signers.push(signer(&who, &info).ok_or_else(|| no_ssh_key(&who))?);
    }
    let views = signers.into_iter().map(|(name, key)| {
        let principal = principal.unwrap_or(&name);
        Ok(SignerView {
            principal: written(principal).ok_or_else(|| bad_principal(principal))?,
            key,
        })
    });
    let views: Vec<SignerView> = views.collect::<Result<_, Failure>>()?;
    match session.json {
        true => output::print_json(&views)?,
        false => {
            let lines = views.iter();
            let lines = lines.map(|view| format!("{} {}\n", view.principal, view.key));
            output::print(&lines.collect::<String>())?;
        }
    }
    Ok(FINE)
}

fn signer(who: &EngineId, info: &IdentityInfo) -> Option<(String, String)> {
    Some((who.name.to_string(), ssh::to_line(key(info)?, "")?))
}

fn line(who: &EngineId, info: &IdentityInfo) -> Option<String> {
    ssh::to_line(key(info)?, &who.name)
}

fn key(info: &IdentityInfo) -> Option<&PublicKey> {
    let key = info.key(KeyUse::Sign).filter(|key| !key.deleted)?;
    Some(&key.public_key)
}

/// A principal as a list of allowed signers has it (ssh-keygen(1), "ALLOWED SIGNERS"): in quotes
/// where it has blanks. `None` if it would be a pattern, or several.
fn written(principal: &str) -> Option<String> {
    let is_special = |c: char| c.is_control() || "\"*?,".contains(c);
    if principal.is_empty() || principal.starts_with(['!', '#']) || principal.contains(is_special) {
        return None;
    }
    Some(match principal.contains(char::is_whitespace) {
        true => format!("\"{principal}\""),
        false => principal.to_owned(),
    })
}

fn no_ssh_key(who: &EngineId) -> Failure {
    let name = &who.name;
    Failure::new(format!(
        "`{name}` has no signing key of a kind that SSH knows"
    ))
    .coded("no-ssh-key")
    .hint("SSH knows P-256, P-384, Ed25519 and RSA")
}

fn bad_principal(principal: &str) -> Failure {
    Failure::new(format!(
        "`{principal}` cannot be a principal in a list of allowed signers"
    ))
    .coded("bad-principal")
    .hint("give another one: claviger allowed-signers NAME --principal PRINCIPAL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_stands_for_one_and_never_for_a_pattern() {
        for (principal, expected) in [
            ("alice", Some("alice")),
            ("alice@example.org", Some("alice@example.org")),
            ("Alice A.", Some("\"Alice A.\"")),
            ("", None),
            ("*", None),
            ("a?", None),
            ("a,b", None),
            ("!a", None),
            ("# a", None),
            ("a\"", None),
            ("a\nb", None),
        ] {
            assert_eq!(written(principal).as_deref(), expected, "{principal:?}");
        }
    }
}
