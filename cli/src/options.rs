//! Options that several commands share, in groups: each command has those that it can use.

use std::ffi::OsString;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use clap::{ArgMatches, Args, Command, FromArgMatches, Id};

// For commands that look at tokens. Not a comment for documentation: clap would take that for what
// the command does.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Token access")]
pub(crate) struct Limit {
    /// Give up after this many seconds; what was begun on a token is completed or undone first
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

// For commands that log in to tokens.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Token access")]
pub(crate) struct TokenOptions {
    /// Read the token's PIN from env:VAR, file:PATH, fd:N, prompt or pinentry
    ///
    /// Without this option, the PIN is asked for at the terminal. If there is no terminal, a
    /// pinentry asks, provided that there is a graphical screen (DISPLAY, WAYLAND_DISPLAY) and
    /// that --timeout is given. A `pin-source` in a PKCS#11 backend takes precedence. The PIN itself
    /// is never given on the command line.
    // Parsed later: an error of clap would repeat what may be a PIN.
    #[arg(long, value_name = "SOURCE")]
    pub(crate) pin_source: Option<OsString>,

    /// Take everything in the PIN source as the PIN, except one line break at its end
    ///
    /// Without this option, the first line is the PIN. What cannot be a PIN is refused unsent: a
    /// second line, a byte order mark, a zero byte, blanks at the ends.
    #[arg(long)]
    pub(crate) pin_verbatim: bool,

    /// Read a smartcard's management key, in hexadecimal, from env:VAR, file:PATH, fd:N, prompt or pinentry
    ///
    /// A PIV card requires it to make and delete keys, unless the card keeps it itself, behind
    /// the PIN.
    #[arg(long, value_name = "SOURCE")]
    pub(crate) management_key: Option<OsString>,

    /// Try the published PIN and management key that smartcards are delivered with
    #[arg(long)]
    pub(crate) factory_defaults: bool,

    /// Log in even if only one attempt remains before the token locks
    #[arg(long)]
    pub(crate) last_try: bool,

    /// Send a PIN even if the token states another length for PINs
    #[arg(long)]
    pub(crate) any_pin_length: bool,

    /// Send a PIN even if its rejection cannot be recorded: the home is read-only or full
    ///
    /// If the token rejects the PIN, the next command sends it again.
    #[arg(long)]
    pub(crate) no_pin_ledger: bool,

    #[command(flatten)]
    pub(crate) limit: Limit,
}

impl TokenOptions {
    /// Takes over the options of `closer`, those after the command, which win.
    pub(crate) fn take(&mut self, closer: TokenOptions) {
        self.pin_source = closer.pin_source.or(self.pin_source.take());
        self.management_key = closer.management_key.or(self.management_key.take());
        self.limit.timeout = closer.limit.timeout.or(self.limit.timeout);
        self.pin_verbatim |= closer.pin_verbatim;
        self.factory_defaults |= closer.factory_defaults;
        self.last_try |= closer.last_try;
        self.any_pin_length |= closer.any_pin_length;
        self.no_pin_ledger |= closer.no_pin_ledger;
    }
}

/// The same where they are taken before the command that uses them, and shown with that.
#[derive(Debug, Default)]
pub(crate) struct HiddenTokenOptions(TokenOptions);

impl Deref for HiddenTokenOptions {
    type Target = TokenOptions;

    fn deref(&self) -> &TokenOptions {
        &self.0
    }
}

impl DerefMut for HiddenTokenOptions {
    fn deref_mut(&mut self) -> &mut TokenOptions {
        &mut self.0
    }
}

impl FromArgMatches for HiddenTokenOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        TokenOptions::from_arg_matches(matches).map(HiddenTokenOptions)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl Args for HiddenTokenOptions {
    fn augment_args(command: Command) -> Command {
        hidden(command, TokenOptions::augment_args)
    }

    fn augment_args_for_update(command: Command) -> Command {
        hidden(command, TokenOptions::augment_args_for_update)
    }
}

/// Adds options that the help does not show.
fn hidden(command: Command, add: fn(Command) -> Command) -> Command {
    let shown: Vec<Id> = command
        .get_arguments()
        .map(|a| a.get_id().clone())
        .collect();
    add(command).mut_args(|arg| {
        let is_new = !shown.contains(arg.get_id());
        if is_new { arg.hide(true) } else { arg }
    })
}

impl From<Limit> for TokenOptions {
    fn from(limit: Limit) -> Self {
        TokenOptions {
            limit,
            ..TokenOptions::default()
        }
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

    #[test]
    fn times_are_positive_numbers() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "-1", "NaN", "inf", "1e40", "5s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
