//! The command line of the daemon, and of those who speak to it.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

// Whether commands use a daemon.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct DaemonOptions {
    /// Use the daemon at this socket, whatever its home [env: CLAVIGER_DAEMON]
    ///
    /// The daemon must run as you, as root or as the user `claviger`. Without this option, a
    /// command uses your own daemon if one runs for its home.
    #[arg(
        long,
        global = true,
        value_name = "SOCKET",
        conflicts_with = "no_daemon"
    )]
    pub(crate) daemon: Option<PathBuf>,

    /// Use no daemon
    #[arg(long, global = true)]
    pub(crate) no_daemon: bool,
}

// Of `serve`.
#[derive(Args, Debug)]
pub(crate) struct ServeOptions {
    /// Listen at this path; may be given several times
    /// [default: api.sock and ssh.sock in $XDG_RUNTIME_DIR/claviger; with --system: in /run/claviger]
    ///
    /// A socket that is called ssh.sock, or ssh-NAME.sock, is for SSH: `claviger agent-env`. Sockets
    /// that systemd passes on are used instead of the default.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Vec<PathBuf>,
    /// Serve every user of this machine, as grants allow
    ///
    /// Without this option, the daemon serves the user that it runs as.
    #[arg(long)]
    pub(crate) system: bool,
}

// A command on grants.
#[derive(Subcommand)]
pub(crate) enum GrantCommand {
    /// Grant a user or a group one operation
    Add(NewGrant),
    /// List the grants
    List,
    /// Revoke a grant
    Remove {
        /// Its number, as `claviger grant list` shows it
        id: u64,
    },
}

// A grant that is to be added.
#[derive(Args, Debug)]
pub(crate) struct NewGrant {
    /// Grant it to this user
    #[arg(long, value_name = "UID", required_unless_present = "gid")]
    pub(crate) uid: Option<u32>,
    /// Grant it to this group
    #[arg(long, value_name = "GID", conflicts_with = "uid")]
    pub(crate) gid: Option<u32>,
    /// Grant it on the socket of this name only [default: on every socket]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) socket: String,
    /// Grant it for this identity
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) identity: String,
    /// Grant this operation
    #[arg(long, value_name = "OPERATION", value_parser = operations())]
    pub(crate) may: String,
    /// Have a person confirm each use: sign and decrypt only
    ///
    /// The daemon asks by its pinentry. Whoever has another grant for the same without --confirm is
    /// not asked about.
    #[arg(long)]
    pub(crate) confirm: bool,
    /// Grant signatures for this purpose only: raw, sshsig, sshsig:NAMESPACE, ssh, ssh-forwarded,
    /// ssh-certificate, evidence, proof, tls, node, certificate or prehash [default: each but
    /// ssh-forwarded, ssh-certificate and prehash]
    ///
    /// ssh is a login from this machine, ssh-forwarded also one through a forwarded agent.
    ///
    /// prehash signs digests whose messages nobody sees. Whoever has it can obtain any signature of
    /// the key, including grants in its name. Programs that use the PKCS#11 module for TLS and ssh
    /// need it.
    #[arg(
        long,
        value_name = "PURPOSE",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) purpose: String,
    /// With --purpose ssh or ssh-forwarded: grant logins to this host only
    ///
    /// KEY is the fingerprint of the host's key, as `ssh-keygen -l` shows it, its public key, or a
    /// file with its public key.
    #[arg(long, value_name = "KEY")]
    pub(crate) host: Option<String>,
}

/// What can be granted.
pub(crate) const OPERATIONS: [&str; 10] = [
    "sign",
    "decrypt",
    "connect",
    "delete",
    "grant",
    "generate",
    "adopt",
    "list-tokens",
    "attach-device",
    "use-login",
];

fn operations() -> PossibleValuesParser {
    PossibleValuesParser::new(OPERATIONS)
}

// A command on audit files.
#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that no line of an audit log was altered, removed or added
    Verify {
        /// The files of the log, the oldest first
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Check the seals by the signing key of this identity or contact
        #[arg(long, value_name = "NAME")]
        sealed_by: Option<String>,
    },
}

/// A time such as `90`, `30s`, `45m`, `8h` or `2d`.
pub(crate) fn duration(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "not a time such as 45m or 8h";
    let units = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
    let unit = units.iter().find_map(|(unit, seconds)| {
        let number = text.strip_suffix(unit)?;
        Some((number, *seconds))
    });
    let (number, seconds) = unit.unwrap_or((text, 1));
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = match is_number {
        true => number.parse().map_err(|_| FORM)?,
        false => return Err(FORM),
    };
    match number.checked_mul(seconds) {
        // What is longer than this is no time that anybody means, and clocks can add it.
        Some(seconds @ 1..=3_153_600_000) => Ok(Duration::from_secs(seconds)),
        _ => Err(FORM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_or_is_in_seconds() {
        let seconds = |text| duration(text).map(|time| time.as_secs());
        for (text, time) in [
            ("90", 90),
            ("30s", 30),
            ("45m", 2_700),
            ("8h", 28_800),
            ("2d", 172_800),
        ] {
            assert_eq!(seconds(text), Ok(time), "{text}");
        }
        for text in [
            "",
            "h",
            "0",
            "0h",
            "-1h",
            "1.5h",
            "8 h",
            "8w",
            "99999999999999999999d",
            "ä",
        ] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
