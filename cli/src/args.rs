//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum, value_parser};
use claviger_engine::evidence::now;
use claviger_engine::{Capabilities, IdParams};
use claviger_formats::sshsig::FILE_NAMESPACE;

/// Identities whose keys live in hardware.
///
/// An identity is a name for one or two keys on a token: one that signs, one that
/// decrypts. The keys are made on the token and never leave it; this command makes,
/// uses and destroys them.
#[derive(Parser)]
#[command(
    name = "claviger",
    version,
    arg_required_else_help = true,
    after_help = "Try `claviger tokens` first; `claviger COMMAND --help` has examples.",
    after_long_help = EXAMPLES
)]
pub(crate) struct Args {
    /// The folder that remembers the identities [env: CLAVIGER_HOME] [default: the XDG data folder]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    pub(crate) home: Option<PathBuf>,

    /// Answer in JSON
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,

    /// Where the token's PIN comes from: env:VAR, file:PATH, fd:N, prompt or pinentry
    ///
    /// Without it the PIN is asked for, if there is a terminal; or by a pinentry, if there is a
    /// graphical screen (DISPLAY, WAYLAND_DISPLAY) and --timeout says how long. A `pin-source` in the
    /// backend goes first. The PIN itself is never given on the command line.
    // Parsed later: an error of clap would repeat what may be a PIN.
    #[arg(
        long,
        global = true,
        value_name = "SOURCE",
        help_heading = "Everywhere"
    )]
    pub(crate) pin_source: Option<std::ffi::OsString>,

    /// Take what the PIN source holds as it is, but for one line break at its end
    ///
    /// Otherwise the first line is the PIN, and what cannot be one is refused unsent: a second
    /// line, a byte order mark, a zero byte, blanks at the ends.
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) pin_verbatim: bool,

    /// Where a smartcard's management key comes from, in hexadecimal: env:VAR, file:PATH,
    /// fd:N or prompt
    ///
    /// It is needed to make and delete keys on a PIV card, unless the card keeps it
    /// itself, behind the PIN.
    #[arg(
        long,
        global = true,
        value_name = "SOURCE",
        help_heading = "Everywhere"
    )]
    pub(crate) management_key: Option<std::ffi::OsString>,

    /// Try the published PIN and management key that a smartcard was delivered with
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) factory_defaults: bool,

    /// Log in even if one wrong PIN would lock the token
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) last_try: bool,

    /// Send a PIN even if the token states another length for PINs
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) any_pin_length: bool,

    /// Send a PIN even if it cannot be noted that it is sent, since the home is read-only or
    /// its disk is full
    ///
    /// If the token rejects it, that is not remembered: the next command sends it again.
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) no_pin_ledger: bool,

    /// Give up after so many seconds; what was begun on a token is undone first
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        value_parser = seconds,
        help_heading = "Everywhere"
    )]
    pub(crate) timeout: Option<Duration>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  claviger tokens
  claviger generate alice --backend 'pkcs11:token=bench'
  claviger sign alice letter.txt --format sshsig -o letter.txt.sig
  claviger encrypt alice letter.txt -o letter.age
  claviger decrypt alice letter.age

Exit status: 0 success, 1 failure (of verify: a signature that is not valid), 2 usage,
3 verify cannot say whether the signature is valid,
128 and the number of the signal that ended it: 130 after Ctrl-C.
With --json a failure is one line on standard error: {\"error\":{\"code\":…,\"message\":…,\"hint\":…}}.
CLAVIGER_LOG=debug logs to standard error; no PIN is ever logged.";

const BACKENDS: &str = "\
Backends:
  pkcs11:token=LABEL                                     a token of a module that p11-kit knows
  pkcs11:token=LABEL?module-path=/path/to/module.so      a token of this module
  pkcs11:serial=NUMBER?pin-source=file:/path/to/pin      with a PIN source of its own
  piv:                                                   the one smartcard that is there
  piv:serial=NUMBER;slot=9c                              this one, and this slot of it
  piv:serial=NUMBER;touch-policy=always                  keys that want a touch each time
  ledger:                                                the one Ledger that is there
  ledger:serial=NUMBER;account=7                         this one, and this account of it
pkcs11: are RFC 7512 URIs; put all in quotes, and write what is special as %XX.
`claviger tokens` shows the backend of every token.";

const GENERATE: &str = "\
Examples:
  claviger generate alice --backend 'pkcs11:token=bench'
  claviger generate build-bot --params ed25519 --capabilities commit \\
      --backend 'pkcs11:token=ci?module-path=/usr/lib/softhsm/libsofthsm2.so' \\
      --pin-source env:CI_PIN";

const CONNECT: &str = "\
Examples:
  claviger connect bob --to alice --capabilities decrypt
  claviger connect old-key --to SHA256:xOYj... --backend 'pkcs11:token=bench'
  claviger connect alice --to SHA256:xOYj...,SHA256:Kq0d...    # both keys of a lost identity

A key that was found on a token is never destroyed: `claviger delete` only releases it.";

const SIGN: &str = "\
Messages may be longer than memory, but for raw signatures of Ed25519 and BLS keys, which are
over the message itself, and on tokens that hash by themselves (tpm2-pkcs11 with RSA).

A file that is itself what a key signs for another purpose is refused: a statement of who
reads for whom, or the data of an SSH signature.

Examples:
  claviger sign alice letter.txt --format der -o letter.sig
      openssl dgst -sha256 -verify alice.pem -signature letter.sig letter.txt
  claviger sign alice letter.txt --format sshsig -o letter.txt.sig
      ssh-keygen -Y verify -f allowed_signers -I alice -n file -s letter.txt.sig < letter.txt";

const VERIFY: &str = "\
A signature is not a name for what it signs: of one with ECDSA anybody can make a second that
is valid, too, and an SSH signature stays one however its lines are broken and whatever stands
behind it. Raw Ed25519 and BLS signatures take as much memory as the message; all other forms
take messages of any length.

Examples:
  claviger verify alice --signature letter.sig letter.txt
  claviger verify alice@example.org --allowed-signers ~/.ssh/allowed_signers \\
      --signature letter.txt.sig letter.txt";

const ENCRYPT: &str = "\
The result is an age file: whoever has the recipient that `claviger show NAME` prints can
make one, with any age program.

Examples:
  claviger encrypt alice letter.txt -o letter.age
  claviger encrypt alice --also bob letter.txt -o letter.age
  claviger encrypt yk --reads-for letter.txt -o letter.age          # and to whom yk lets read
  claviger encrypt yk --reads-for --depth 1 letter.txt -o letter.age
  tar c folder | claviger encrypt alice > folder.tar.age";

const DECRYPT: &str = "\
Without NAME it is found out which identity here can open the file. Keys that need no touch
and no approval are tried first. One PIN for whichever token asks is sent to none while keys
on several tokens may open the file: then say NAME.

A single word is the name of an identity, if there is one of that name, and else a file.

Examples:
  claviger decrypt letter.age
  claviger decrypt alice letter.age -o letter.txt
  claviger decrypt < letter.age";

const CONTACT: &str = "\
Examples:
  claviger show alice --json > alice.json       # on Alice's machine
  claviger contact add alice alice.json         # here
  claviger encrypt alice letter.txt -o letter.age
  claviger verify alice --signature letter.sig letter.txt";

const READS_FOR: &str = "\
A reads for B: whoever holds A's key can decrypt what is encrypted to B. B says so, with its
signing key, and the evidence is kept. It is about keys: who is made anew inherits nothing.
It is transitive: who reads for A reads for B, too. B can revoke it, or give it an end.

Examples:
  claviger reads-for grant safe --by yk
  claviger encrypt yk --reads-for letter.txt -o letter.age    # yk or safe opens it
  claviger reads-for check safe yk
  claviger reads-for export evidence.json       # and import it on another machine
  claviger reads-for grant deputy --by yk --until 2027-01-31
  claviger reads-for revoke safe --by yk";

const BACKUP: &str = "\
A backup holds names, public keys, contacts, evidence and where keys are; of PINs that tokens
refused, slow hashes. It holds no private key and no PIN.

Examples:
  claviger backup /media/usb/claviger.backup
  claviger restore /media/usb/claviger.backup";

const RESTORE: &str = "\
The registry that is there is moved aside, even if it is damaged. Nothing is changed if the
backup is damaged, or if another process has the registry open.

The restored home counts as a copy: what was interrupted is not resolved in it until
`claviger doctor --this-is-the-home`. Keys that were made after the backup are still on their
tokens: `claviger doctor` lists them, `claviger connect` adopts them.

Examples:
  claviger restore /media/usb/claviger.backup
  claviger doctor";

const CONFIG: &str = "\
The file is ~/.config/claviger/config.toml, or what CLAVIGER_CONFIG names; empty, it is none.
The command line and CLAVIGER_HOME go first. All of it may be left out:
  home = \"/srv/claviger\"
  pin-source = \"file:/run/secrets/pin\"      # or env:VAR, prompt, pinentry
  management-key = \"env:PIV_KEY\"
  params = \"ed25519\"                        # of generate
  format = \"sshsig\"                         # of sign
  [backends]
  bench = \"pkcs11:token=bench\"              # claviger generate alice --backend bench";

const COMPLETIONS: &str = "\
Examples:
  claviger completions bash > ~/.local/share/bash-completion/completions/claviger
  claviger completions zsh > ~/.zfunc/_claviger
  claviger completions fish > ~/.config/fish/completions/claviger.fish";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// List the tokens that are attached, and what is on them (no PIN needed)
    #[command(after_long_help = BACKENDS)]
    Tokens {
        /// Only those that this fits
        #[arg(long)]
        backend: Option<String>,
        /// Show how tokens come, go and change, until interrupted, or until --timeout is over
        #[arg(long)]
        watch: bool,
    },
    /// Make an identity: keys on a token, and a name for them
    #[command(after_long_help = format!("{GENERATE}\n\n{BACKENDS}"))]
    Generate {
        /// What to call it
        name: String,
        /// The token to make the keys on
        #[arg(long)]
        backend: String,
        /// The cryptosystem [default: p256]
        #[arg(long, value_parser = params())]
        params: Option<IdParams>,
        /// What it is to be able to do: commit (sign), decrypt, or commit,decrypt
        /// [default: all that the cryptosystem can]
        #[arg(long, value_parser = Capabilities::from_str)]
        capabilities: Option<Capabilities>,
    },
    /// Let another name use an identity, or adopt a key that is on a token already
    #[command(after_long_help = format!("{CONNECT}\n\n{BACKENDS}"))]
    Connect {
        /// The new name
        name: String,
        /// The identity, or the fingerprint (SHA256:…) of the key to adopt, or both
        /// fingerprints of a lost identity with a comma between them
        #[arg(long, value_name = "IDENTITY|FINGERPRINT[,FINGERPRINT]")]
        to: String,
        /// The token that the key is on [default: whichever has it]
        #[arg(long)]
        backend: Option<String>,
        /// What the new name is to be able to do: commit, decrypt, or commit,decrypt
        /// [default: all that the identity or the key can]
        #[arg(long, value_parser = Capabilities::from_str)]
        capabilities: Option<Capabilities>,
    },
    /// Delete an identity; the keys that were made for it are destroyed
    ///
    /// A person at a terminal is asked first; a script is not.
    Delete {
        /// The identity
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// List the identities
    Identities,
    /// Show one identity, with its public keys as PEM, SSH key and age recipient
    Show {
        /// The identity
        name: String,
        /// Certificates (PEM) of those whose attestations are believed: says whether the
        /// keys' attestations lead to one of them
        #[arg(long, value_name = "FILE")]
        attestation_root: Option<PathBuf>,
    },
    /// Sign a file
    #[command(after_long_help = SIGN)]
    Sign {
        /// The identity
        name: String,
        /// What to sign; standard input without it, or with -
        file: Option<PathBuf>,
        /// The form of the signature [default: raw]
        #[arg(long, value_enum)]
        format: Option<Format>,
        /// What an SSH signature is for
        #[arg(long, default_value = FILE_NAMESPACE)]
        namespace: String,
        /// Where the signature goes; - is standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check a signature (any of the forms; no token needed)
    ///
    /// Exit status 0: valid. 1: not valid, since the key did not make this signature over
    /// this message. 3: it cannot be said, since a file is missing, or the signature is of a
    /// form, a hash or a namespace that was not asked for. Standard output says `valid` with
    /// 0 only.
    #[command(after_long_help = VERIFY)]
    Verify {
        /// The identity or contact; with --allowed-signers, the principal
        name: String,
        /// The signature
        #[arg(long, value_name = "FILE")]
        signature: PathBuf,
        /// What was signed; standard input without it, or with -
        file: Option<PathBuf>,
        /// What an SSH signature must be for
        #[arg(long, default_value = FILE_NAMESPACE)]
        namespace: String,
        /// Take the keys of NAME from this file, which is one of `ssh-keygen -Y verify`, and
        /// not from the registry
        #[arg(long, value_name = "FILE")]
        allowed_signers: Option<PathBuf>,
    },
    /// Encrypt to identities and contacts (no token needed)
    #[command(after_long_help = ENCRYPT)]
    Encrypt {
        /// The identity or contact
        name: String,
        /// What to encrypt; standard input without it, or with -
        file: Option<PathBuf>,
        /// Another who is to be able to open it; may be given several times
        #[arg(long, value_name = "NAME")]
        also: Vec<String>,
        /// Encrypt also to everyone who provably reads for a recipient
        #[arg(long)]
        reads_for: bool,
        /// Let the data be disclosed to NAME, for whom a recipient provably reads, if that is
        /// the cheaper key; may be given several times
        #[arg(long, value_name = "NAME")]
        via: Vec<String>,
        /// Let the data be disclosed to anyone for whom a recipient provably reads
        #[arg(long, conflicts_with = "via")]
        via_any: bool,
        /// Rely on chains of at most N grants: 1 is what a recipient has granted itself
        /// [default: any number]
        #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
        depth: Option<u32>,
        /// Where the result goes; - is standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Decrypt what was encrypted to an identity
    ///
    /// A file (-o) is written whole or not at all. Standard output gets what is
    /// authentic as it comes; only exit status 0 says that it was all.
    #[command(override_usage = "claviger decrypt [OPTIONS] [NAME] [FILE]", after_long_help = DECRYPT)]
    Decrypt {
        /// The identity, if it is not to be found out; and what to decrypt: standard input
        /// without it, or with -
        #[arg(num_args = 0..=2, value_names = ["NAME", "FILE"])]
        words: Vec<PathBuf>,
        /// Where the result goes; - is standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Keep the public keys of others: encrypt to them, verify their signatures
    #[command(after_long_help = CONTACT)]
    Contact {
        #[command(subcommand)]
        command: ContactCommand,
    },
    /// Say and prove who can read what is encrypted to whom
    #[command(after_long_help = READS_FOR)]
    ReadsFor {
        #[command(subcommand)]
        command: ReadsForCommand,
    },
    /// Say what is wrong with this set-up, and what to do about it
    Doctor {
        /// Finish or undo what was interrupted
        #[arg(long)]
        repair: bool,
        /// Forget which PINs a token refused, so that they are sent to it again
        ///
        /// TOKEN is its serial, kind:manufacturer/serial, or a backend. Nothing else is
        /// done.
        #[arg(long, value_name = "TOKEN", conflicts_with = "repair")]
        forget_refused_pin: Option<String>,
        /// Find the accounts of a Ledger that keys are in, though the registry is lost that
        /// knew them
        ///
        /// FILE holds public keys in any form that `contact add` takes, or fingerprints, one
        /// a line; a fingerprint (SHA256:…) may stand in its place. The first accounts of
        /// every place where a home may begin are compared, up to 10,000: Ctrl-C ends that.
        #[arg(
            long,
            value_name = "FILE",
            num_args = 1..,
            conflicts_with_all = ["repair", "forget_refused_pin", "this_is_the_home"]
        )]
        find_accounts: Vec<PathBuf>,
        /// The Ledger to look on
        #[arg(long, default_value = "ledger:", requires = "find_accounts")]
        backend: String,
        /// Settle in this home what was interrupted, though it is a copy or was restored
        ///
        /// Say so only where no other copy of it is in use: what the other has finished since
        /// could be undone here.
        #[arg(long, conflicts_with = "forget_refused_pin")]
        this_is_the_home: bool,
    },
    /// Write all identities, contacts and evidence to a file, while others may use them
    #[command(after_long_help = BACKUP)]
    Backup {
        /// The file, which is written whole or not at all; - is standard output
        file: PathBuf,
    },
    /// Put a backup in the place of the registry
    #[command(after_long_help = RESTORE)]
    Restore {
        /// What `claviger backup` wrote
        file: PathBuf,
    },
    /// Look at the configuration: defaults for what the command line leaves open
    #[command(after_long_help = CONFIG)]
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Write what a shell needs to complete this command's words
    #[command(after_long_help = COMPLETIONS)]
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

/// What is done with the configuration.
#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say what is set, and where each value comes from
    Show,
}

/// What is done with contacts.
#[derive(Subcommand)]
pub(crate) enum ContactCommand {
    /// Enter somebody else's public keys under a name
    Add {
        /// What to call them
        name: String,
        /// Public keys: PEM, a certificate, SSH, an age recipient, or what `claviger show
        /// --json` printed on another machine; - is standard input
        ///
        /// A key is taken for what it can do: to sign, to decrypt, or both. Of a certificate
        /// neither the issuer nor the date is checked.
        file: PathBuf,
    },
    /// List the contacts
    List,
    /// Give a contact another name
    Rename {
        /// The contact
        old: String,
        /// The new name
        new: String,
    },
    /// Forget a contact
    Remove {
        /// The contact
        name: String,
    },
}

/// What is done with evidence.
#[derive(Subcommand)]
pub(crate) enum ReadsForCommand {
    /// Let another read what is encrypted to an identity: its signing key says so
    Grant {
        /// Who is to read: an identity or a contact
        reader: String,
        /// For whom: the identity that grants it
        #[arg(long, value_name = "IDENTITY")]
        by: String,
        /// Until when: a date, which is its beginning, or a time (RFC 3339, UTC where it does
        /// not say) [default: until it is revoked]
        #[arg(long, value_name = "DATE", value_parser = moment)]
        until: Option<u64>,
    },
    /// Revoke what an identity granted: its signing key says so
    ///
    /// What was encrypted before stays readable, and another machine goes on relying on the
    /// grant until it imports the revocation: export and import the evidence.
    Revoke {
        /// Who is not to read any more
        reader: String,
        /// For whom: the identity that granted it
        #[arg(long, visible_alias = "for", value_name = "IDENTITY")]
        by: String,
    },
    /// List the evidence, or that in which one identity or contact stands on either side
    List {
        /// The identity or contact
        identity: Option<String>,
    },
    /// Say whether it is proven that one reads for another: exit status 0 if it is, else 1
    Check {
        /// Who would read
        reader: String,
        /// For whom
        identity: String,
    },
    /// Write all evidence to a file, for another machine
    Export {
        /// The file; - is standard output
        file: PathBuf,
    },
    /// Take the evidence in a file, if all of it verifies
    Import {
        /// The file; - is standard input
        file: PathBuf,
    },
}

/// The cryptosystem where nobody says another.
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

/// A date or a time (RFC 3339) that is to come, in seconds since the beginning of 1970.
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

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds: f64 = text.parse().map_err(|_| "not a number")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(limit) if !limit.is_zero() => Ok(limit),
        _ => Err("not a number of seconds above 0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

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

    #[test]
    fn times_are_positive_numbers() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "-1", "NaN", "inf", "1e40", "5s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
