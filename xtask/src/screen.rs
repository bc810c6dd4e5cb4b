//! Text for people: colours on a terminal, plain text anywhere else.
//!
//! What a command *produces* goes to standard output, what it says about its work to
//! standard error. A reader who hangs up (`| head`) is no reason to stop.

use std::fmt;
use std::io::{self, IsTerminal, Write};

/// How a piece of text stands out on a terminal.
#[derive(Clone, Copy)]
pub(crate) enum Style {
    Plain,
    Heading,
    Command,
    Good,
    Bad,
    Quiet,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Heading => "\x1b[1;36m",
            Self::Command => "\x1b[1m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[1;31m",
            Self::Quiet => "\x1b[2m",
        }
    }
}

/// A line on standard output.
pub(crate) fn line(style: Style, text: impl fmt::Display) {
    let colours = colours(&io::stdout());
    write_line(&mut io::stdout(), colours, style, &text);
}

/// Text on standard output, as it is.
pub(crate) fn print(text: &str) {
    let mut out = io::stdout();
    // Nobody is left to tell.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A line on standard error.
pub(crate) fn note(style: Style, text: impl fmt::Display) {
    let colours = colours(&io::stderr());
    write_line(&mut io::stderr(), colours, style, &text);
}

/// The last line of a command that failed.
pub(crate) fn error(failure: &impl fmt::Display) {
    note(Style::Bad, format_args!("xtask: {failure}"));
}

fn write_line(out: &mut impl Write, colours: bool, style: Style, text: &dyn fmt::Display) {
    // Nobody is left to tell.
    let _ = if colours && !style.code().is_empty() {
        writeln!(out, "{}{text}\x1b[0m", style.code())
    } else {
        writeln!(out, "{text}")
    };
}

fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_the_text_is_plain() {
        let mut out = Vec::new();
        write_line(&mut out, false, Style::Bad, &"no key");
        assert_eq!(out, b"no key\n");
    }
}
