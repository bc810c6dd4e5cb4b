//! The command line.

use std::mem::take;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum, value_parser};
use claviger_engine::evidence::now;
use claviger_engine::{Capabilities, IdParams};
use claviger_formats::sshsig::FILE_NAMESPACE;

use crate::certificate_args::CertificateCommand;
use crate::daemon_args::{AuditCommand, DaemonOptions, GrantCommand, ServeOptions, duration};
use crate::help;
use crate::options::{HiddenTokenOptions, Limit, TokenOptions};

/// Make, use and destroy identities whose keys live in hardware
///
/// An identity is a name for one or two keys on a token: one that signs, one that decrypts. The
/// keys are made on the token and never leave it.
#[derive(Parser)]
#[command(
    name = "claviger",
    version,
    arg_required_else_help = true,
    after_help = "Try `claviger tokens` first; `claviger COMMAND --help` has examples.",
    after_long_help = help::EXAMPLES
)]
pub(crate) struct Args {
    /// Use the registry in this folder [env: CLAVIGER_HOME] [default: the XDG data folder]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    pub(crate) home: Option<PathBuf>,

    /// Answer in JSON
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) daemon: DaemonOptions,

    /// Options before the command; `command_line::read` adds those after it.
    #[command(flatten)]
    pub(crate) access: HiddenTokenOptions,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// List attached tokens and what is on them (no PIN needed)
    #[command(after_long_help = help::backends())]
    Tokens {
        /// Show only tokens that match this backend
        #[arg(long)]
        backend: Option<String>,
        /// Report how tokens come, go and change, until Ctrl-C or until --timeout
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        limit: Limit,
    },
    /// Make an identity: keys on a token, and a name for them
    #[command(after_long_help = help::with_backends(help::GENERATE))]
    Generate {
        /// The name of the identity
        name: String,
        /// Make the keys on this token
        #[arg(long)]
        backend: String,
        /// Make keys of this cryptosystem [default: p256]
        #[arg(long, value_parser = params())]
        params: Option<IdParams>,
        /// Let the identity commit (sign), decrypt, or commit,decrypt
        /// [default: all that the cryptosystem can]
        #[arg(long, value_parser = Capabilities::from_str)]
        capabilities: Option<Capabilities>,
        #[command(flatten)]
        access: TokenOptions,
    },
    /// Let another name use an identity, or adopt a key that is on a token already
    #[command(after_long_help = help::with_backends(help::CONNECT))]
    Connect {
        /// The new name
        name: String,
        /// Connect to this identity, to the key with this fingerprint (SHA256:…), or to both
        /// keys of a lost identity
        #[arg(long, value_name = "IDENTITY|FINGERPRINT[,FINGERPRINT]")]
        to: String,
        /// Look for the key on this token [default: on every token]
        #[arg(long)]
        backend: Option<String>,
        /// Let the new name commit (sign), decrypt, or commit,decrypt
        /// [default: all that the identity or the key can]
        #[arg(long, value_parser = Capabilities::from_str)]
        capabilities: Option<Capabilities>,
        #[command(flatten)]
        access: TokenOptions,
    },
    /// Delete an identity and destroy the keys that were made for it
    ///
    /// At a terminal, you are asked to confirm. A script is not asked.
    Delete {
        /// The identity
        name: String,
        /// Delete without asking
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        access: TokenOptions,
    },
    /// List the identities
    Identities,
    /// Show an identity, with its public keys as PEM, SSH key and age recipient
    Show {
        /// The identity
        name: String,
        /// Check whether the keys' attestations lead to a certificate (PEM) in this file
        #[arg(long, value_name = "FILE")]
        attestation_root: Option<PathBuf>,
    },
    /// Print an identity for other age programs, which use it through age-plugin-claviger
    #[command(after_long_help = help::AGE_IDENTITY)]
    AgeIdentity {
        /// The identity
        name: String,
    },
    /// Sign a file
    #[command(after_long_help = help::SIGN)]
    Sign {
        /// The identity
        name: String,
        /// The file to sign [default: -, standard input]
        file: Option<PathBuf>,
        /// Make a signature of this form [default: raw]
        #[arg(long, value_enum)]
        format: Option<Format>,
        /// Make an SSH signature for this namespace
        #[arg(long, default_value = FILE_NAMESPACE)]
        namespace: String,
        /// Write the signature to this file; - is standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        access: TokenOptions,
    },
    /// Verify a signature of any form (no token needed)
    ///
    /// Exit status 0: valid. 1: not valid, since the key did not make this signature over this
    /// message. 3: cannot be judged, since a file is missing, or the signature is of a form, a
    /// hash or a namespace that was not asked for. Standard output says `valid` with 0 only.
    #[command(after_long_help = help::VERIFY)]
    Verify {
        /// The identity or contact; with --allowed-signers, the principal
        name: String,
        /// Verify this signature
        #[arg(long, value_name = "FILE")]
        signature: PathBuf,
        /// The file that was signed [default: -, standard input]
        file: Option<PathBuf>,
        /// Accept an SSH signature for this namespace only
        #[arg(long, default_value = FILE_NAMESPACE)]
        namespace: String,
        /// Take the keys of NAME from this file of `ssh-keygen -Y verify`, not from the registry
        #[arg(long, value_name = "FILE")]
        allowed_signers: Option<PathBuf>,
    },
    /// Encrypt to identities and contacts (no token needed)
    #[command(after_long_help = help::ENCRYPT)]
    Encrypt {
        /// The identity or contact
        name: String,
        /// The file to encrypt [default: -, standard input]
        file: Option<PathBuf>,
        /// Encrypt to NAME, too; may be given several times
        #[arg(long, value_name = "NAME")]
        also: Vec<String>,
        /// Encrypt also to everyone who provably reads for a recipient
        #[arg(long)]
        reads_for: bool,
        /// Use the key of NAME, for whom a recipient provably reads, if it is cheaper; this
        /// discloses the data to NAME; may be given several times
        #[arg(long, value_name = "NAME")]
        via: Vec<String>,
        /// Like --via with everyone for whom a recipient provably reads
        #[arg(long, conflicts_with = "via")]
        via_any: bool,
        /// Rely on chains of at most N grants: 1 is what a recipient has granted itself
        /// [default: any number]
        #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
        depth: Option<u32>,
        /// Write the result to this file; - is standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Decrypt a file that was encrypted to an identity
    ///
    /// A file (-o) is written completely or not at all. Standard output receives authentic data as
    /// it is decrypted; only exit code 0 says that it is complete.
    #[command(override_usage = "claviger decrypt [OPTIONS] [NAME] [FILE]", after_long_help = help::DECRYPT)]
    Decrypt {
        /// The identity [default: any that can open the file], and the file to decrypt
        /// [default: -, standard input]
        #[arg(num_args = 0..=2, value_names = ["NAME", "FILE"])]
        words: Vec<PathBuf>,
        /// Write the result to this file; - is standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        access: TokenOptions,
    },
    /// Keep the public keys of others, to encrypt to them and verify their signatures
    #[command(after_long_help = help::CONTACT)]
    Contact {
        #[command(subcommand)]
        command: ContactCommand,
    },
    /// Grant, revoke and prove who can read what is encrypted to whom
    #[command(after_long_help = help::READS_FOR)]
    ReadsFor {
        #[command(flatten)]
        access: HiddenTokenOptions,
        #[command(subcommand)]
        command: ReadsForCommand,
    },
    /// Make requests for certificates, and keep certificates, of the keys of identities
    #[command(after_long_help = help::CERTIFICATE)]
    Certificate {
        #[command(flatten)]
        access: HiddenTokenOptions,
        #[command(subcommand)]
        command: CertificateCommand,
    },
    /// Report what is wrong with this set-up, and what to do about it
    Doctor {
        /// Resolve abandoned intents: finish or undo what was interrupted
        #[arg(long)]
        repair: bool,
        /// Forget which PINs a token rejected, so that they are sent to it again
        ///
        /// TOKEN is its serial number, kind:manufacturer/serial, or a backend. Nothing else is
        /// done.
        #[arg(long, value_name = "TOKEN", conflicts_with = "repair")]
        forget_refused_pin: Option<String>,
        /// Find the accounts of a Ledger that hold these keys, if the registry is lost
        ///
        /// FILE holds public keys in any form that `contact add` takes, or fingerprints, one a
        /// line; a fingerprint (SHA256:…) may stand in its place. The first accounts of every
        /// place where a home may begin are compared, up to 10,000; Ctrl-C ends the search.
        #[arg(
            long,
            value_name = "FILE",
            num_args = 1..,
            conflicts_with_all = ["repair", "forget_refused_pin", "this_is_the_home"]
        )]
        find_accounts: Vec<PathBuf>,
        /// Look for accounts on this Ledger
        #[arg(long, default_value = "ledger:", requires = "find_accounts")]
        backend: String,
        /// Resolve abandoned intents in this home, even if it is a copy or was restored
        ///
        /// Use this only if no other copy is in use: work that the other copy has completed since
        /// could be undone.
        #[arg(long, conflicts_with = "forget_refused_pin")]
        this_is_the_home: bool,
        #[command(flatten)]
        access: TokenOptions,
    },
    /// Run the daemon: it keeps tokens open, and signs and decrypts for other programs
    #[command(after_long_help = help::SERVE)]
    Serve {
        #[command(flatten)]
        options: ServeOptions,
    },
    /// Show the state of the daemon and of its tokens
    Status,
    /// Give the daemon a token's PIN, so that commands and programs need none
    ///
    /// The daemon keeps the PIN in memory that is not swapped out. It forgets the PIN when the token
    /// is removed, after --for, at `claviger lock`, before the machine sleeps, and when it ends.
    #[command(after_long_help = help::UNLOCK)]
    Unlock {
        /// The token: its serial number, kind:manufacturer/serial, or a backend
        token: String,
        /// Keep the PIN for this time, such as 45m or 8h [default: until the token is removed]
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        time: Option<Duration>,
        #[command(flatten)]
        access: TokenOptions,
    },
    /// Have the daemon forget a token's PIN, and log out of the token
    Lock {
        /// The token: its serial number, kind:manufacturer/serial, or a backend
        /// [default: every token]
        token: Option<String>,
    },
    /// Print what a shell evaluates so that SSH uses the daemon's keys
    #[command(after_long_help = help::AGENT_ENV)]
    AgentEnv,
    /// Print an identity's public key as a line for SSH
    ///
    /// If git runs it, the line begins with key::, as gpg.ssh.defaultKeyCommand requires.
    #[command(after_long_help = help::SSH_KEY)]
    SshKey {
        /// The identity
        name: String,
    },
    /// Print the file by which ssh-keygen and git verify the signatures of identities
    #[command(after_long_help = help::ALLOWED_SIGNERS)]
    AllowedSigners {
        /// The identities [default: all that sign]
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Write this principal, such as an e-mail address [default: the name of the identity]
        #[arg(long, value_name = "PRINCIPAL")]
        principal: Option<String>,
    },
    /// Grant other users of this machine the use of identities through the daemon
    #[command(after_long_help = help::GRANT)]
    Grant {
        #[command(subcommand)]
        command: GrantCommand,
    },
    /// Check the daemon's audit files
    #[command(after_long_help = help::AUDIT)]
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Back up all identities, contacts and evidence to a file, while others may use them
    #[command(after_long_help = help::BACKUP)]
    Backup {
        /// The file, which is written completely or not at all; - is standard output
        file: PathBuf,
    },
    /// Replace the registry with a backup
    #[command(after_long_help = help::RESTORE)]
    Restore {
        /// The backup
        file: PathBuf,
    },
    /// Show the configuration: defaults for what the command line leaves open
    #[command(after_long_help = help::CONFIG)]
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print a completion script for a shell
    #[command(after_long_help = help::COMPLETIONS)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages, one for each command, into a folder
    #[command(hide = true)]
    ManPages {
        /// The folder, which exists
        folder: PathBuf,
    },
}

// A command on the configuration.
#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show each setting, and where its value comes from
    Show,
}

// A command on contacts.
#[derive(Subcommand)]
pub(crate) enum ContactCommand {
    /// Add somebody else's public keys under a name
    Add {
        /// The name of the contact
        name: String,
        /// Public keys: PEM, a certificate, SSH, an age recipient, or what `claviger show
        /// --json` printed on another machine; - is standard input
        ///
        /// A key is used for what it can do: to verify, to encrypt, or both. Neither the issuer
        /// nor the date of a certificate is checked.
        file: PathBuf,
    },
    /// List the contacts
    List,
    /// Rename a contact
    Rename {
        /// The contact
        old: String,
        /// The new name
        new: String,
    },
    /// Remove a contact
    Remove {
        /// The contact
        name: String,
    },
}

// A command on evidence.
#[derive(Subcommand)]
pub(crate) enum ReadsForCommand {
    /// Grant another to decrypt what is encrypted to an identity, signed by that identity
    Grant {
        /// The reader: an identity or a contact
        reader: String,
        /// Let READER read for this identity, which signs the grant
        #[arg(long, value_name = "IDENTITY")]
        by: String,
        /// Limit the grant to the beginning of a date, or to a time (RFC 3339, UTC by default)
        /// [default: until it is revoked]
        #[arg(long, value_name = "DATE", value_parser = moment)]
        until: Option<u64>,
        #[command(flatten)]
        access: TokenOptions,
    },
    /// Revoke a grant of an identity, signed by that identity
    ///
    /// Files that were encrypted before stay readable. Other machines rely on the grant until they
    /// import the revocation: export and import the evidence.
    Revoke {
        /// The reader
        reader: String,
        /// Revoke the grant of this identity, which signs the revocation
        #[arg(long, visible_alias = "for", value_name = "IDENTITY")]
        by: String,
        #[command(flatten)]
        access: TokenOptions,
    },
    /// List the evidence: all of it, or that about an identity or contact
    List {
        /// The identity or contact
        identity: Option<String>,
    },
    /// Check whether one provably reads for another: exit code 0 if so, else 1
    Check {
        /// The reader
        reader: String,
        /// The identity that it would read for
        identity: String,
    },
    /// Write all evidence to a file, for another machine
    Export {
        /// The file; - is standard output
        file: PathBuf,
    },
    /// Import the evidence in a file, if all of it verifies
    Import {
        /// The file; - is standard input
        file: PathBuf,
    },
}

impl Command {
    /// Takes out the token options after the command, if it has any.
    pub(crate) fn access(&mut self) -> Option<TokenOptions> {
        match self {
            Command::Tokens { limit, .. } => Some(take(limit).into()),
            Command::Generate { access, .. }
            | Command::Connect { access, .. }
            | Command::Delete { access, .. }
            | Command::Sign { access, .. }
            | Command::Decrypt { access, .. }
            | Command::Unlock { access, .. }
            | Command::Doctor { access, .. } => Some(take(access)),
            Command::ReadsFor { access, command } => {
                let mut all = take(&mut **access);
                if let ReadsForCommand::Grant { access, .. }
                | ReadsForCommand::Revoke { access, .. } = command
                {
                    all.take(take(access));
                }
                Some(all)
            }
            Command::Certificate { access, command } => {
                let mut all = take(&mut **access);
                if let CertificateCommand::Request { access, .. }
                | CertificateCommand::SelfSigned { access, .. } = command
                {
                    all.take(take(access));
                }
                Some(all)
            }
            _ => None,
        }
    }
}

/// The default cryptosystem.
pub(crate) const DEFAULT_PARAMS: IdParams = IdParams::P256;

/// The form of a signature.
#[derive(Default, Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The bytes as the scheme defines them; of ECDSA, r and s
    #[default]
    Raw,
    /// ECDSA in DER, which is what openssl reads; else as raw
    Der,
    /// An SSH signature, which is what `ssh-keygen -Y verify` reads
    Sshsig,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Der => "der",
            Format::Sshsig => "sshsig",
        }
    }
}

fn params() -> impl TypedValueParser<Value = IdParams> {
    PossibleValuesParser::new(IdParams::ALL.map(IdParams::name)).try_map(|name| name.parse())
}

/// A future date or time (RFC 3339), in seconds since the beginning of 1970.
fn moment(text: &str) -> Result<u64, &'static str> {
    const FORM: &str = "not a date such as 2027-01-31, nor a time such as 2027-01-31T12:00:00Z";
    let is_date = text.len() == 10;
    let time = match is_date {
        true => NaiveDate::parse_from_str(text, "%Y-%m-%d")
            .map_err(|_| FORM)?
            .and_time(NaiveTime::MIN)
            .and_utc(),
        false => match DateTime::parse_from_rfc3339(text) {
            Ok(time) => time.to_utc(),
            Err(_) => NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S")
                .map_err(|_| FORM)?
                .and_utc(),
        },
    };
    match u64::try_from(time.timestamp()) {
        Ok(end) if end > now() => Ok(end),
        _ => Err("it is past"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn global_options_stand_before_or_behind_the_command() {
        for words in [
            ["claviger", "--json", "--home", "/h", "identities"],
            ["claviger", "identities", "--json", "--home", "/h"],
        ] {
            let args = Args::try_parse_from(words).unwrap();
            assert!(args.json);
            assert_eq!(args.home, Some("/h".into()));
        }
    }

    #[test]
    fn p256_is_the_default() {
        let args = Args::try_parse_from(["claviger", "generate", "a", "--backend", "x"]).unwrap();
        let Command::Generate {
            params,
            capabilities,
            ..
        } = args.command
        else {
            panic!("not generate");
        };
        assert_eq!(params.unwrap_or(DEFAULT_PARAMS), IdParams::P256);
        assert_eq!(capabilities, None);
    }

    #[test]
    fn an_end_is_a_date_or_a_time_in_utc_that_is_to_come() {
        for text in [
            "2100-01-01",
            "2100-01-01T00:00:00Z",
            "2100-01-01T02:00:00+02:00",
            "2100-01-01T00:00:00",
        ] {
            assert_eq!(moment(text), Ok(4_102_444_800), "{text}");
        }
        for text in [
            "",
            "1999-01-01",
            "2100-13-01",
            "2100-1-1",
            "tomorrow",
            "4102444800",
        ] {
            assert!(moment(text).is_err(), "{text}");
        }
    }
}
