//! What can be said on the command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum};
use claviger_engine::{Capabilities, IdParams};
use claviger_token::sshsig::FILE_NAMESPACE;

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

    /// Where the token's PIN comes from: env:VAR, file:PATH, fd:N or prompt
    ///
    /// Without it the PIN is asked for, if there is a terminal. A `pin-source` in the
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

A key that was found on a token is never destroyed: `claviger delete` only releases it.";

const SIGN: &str = "\
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
  claviger encrypt alice --also bob --reads-for letter.txt -o letter.age
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

Examples:
  claviger reads-for grant safe --by yk
  claviger encrypt yk --reads-for letter.txt -o letter.age    # yk or safe opens it
  claviger reads-for check safe yk
  claviger reads-for export evidence.json       # and import it on another machine";

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
        /// The cryptosystem
        #[arg(long, default_value = "p256", value_parser = params())]
        params: IdParams,
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
        /// The identity, or the fingerprint (SHA256:…) of the key to adopt
        #[arg(long, value_name = "IDENTITY|FINGERPRINT")]
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
        /// The form of the signature
        #[arg(long, value_enum, default_value_t = Format::Raw)]
        format: Format,
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
        /// Let everyone open it who provably reads for a recipient; and where a recipient
        /// has no key that decrypts, encrypt to one whom it provably reads for
        #[arg(long)]
        reads_for: bool,
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
        /// Settle in this home what was interrupted, though it is a copy or was restored
        ///
        /// Say so only where no other copy of it is in use: what the other has finished since
        /// could be undone here.
        #[arg(long, conflicts_with = "forget_refused_pin")]
        this_is_the_home: bool,
    },
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

/// The form of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The bytes as the scheme defines them; of ECDSA, r and s
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
        assert_eq!((params, capabilities), (IdParams::P256, None));
    }

    #[test]
    fn times_are_positive_numbers() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "-1", "NaN", "inf", "1e40", "5s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
