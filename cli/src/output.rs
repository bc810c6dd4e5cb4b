//! Output for people and for programs.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use claviger_streams::Stream;
use serde::Serialize;

use crate::failure::Failure;

/// Whether failures are printed as JSON; known before there is a session.
static JSON: AtomicBool = AtomicBool::new(false);

/// Prints failures as JSON from now on.
pub(crate) fn speak_json() {
    JSON.store(true, Ordering::Relaxed);
}

/// Whether failures are printed as JSON.
pub(crate) fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Writes `text`, which ends in a line break, to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    write(printable(text).as_bytes())
}

/// Writes `value` to standard output as JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(format!("the answer is no JSON: {e}")).coded("no-json"))?;
    text.push('\n');
    write(text.as_bytes())
}

/// Writes `value` to standard output as JSON on one line.
pub(crate) fn print_json_line(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string(value)
        .map_err(|e| Failure::new(format!("the answer is no JSON: {e}")).coded("no-json"))?;
    text.push('\n');
    write(text.as_bytes())
}

/// Fails if standard output was closed from the start: output would be lost without an error.
pub(crate) fn check_stdout() -> Result<(), Failure> {
    match claviger_streams::was_closed(Stream::Output) {
        true => Err(Failure::new("standard output is closed").coded("output-lost")),
        false => Ok(()),
    }
}

fn write(bytes: &[u8]) -> Result<(), Failure> {
    check_stdout()?;
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|e| Failure::writing("standard output", &e))
}

/// Prints one cause and one hint on standard error.
pub(crate) fn complain(kind: &str, what: &str, hint: &str) {
    let mut text = format!("{kind}: {}\n", one_line(what));
    if !hint.is_empty() {
        text.push_str("hint: ");
        text.push_str(hint);
        text.push('\n');
    }
    // Where nobody listens there is nobody to tell that nobody listens.
    let _ = io::stderr().write_all(printable(&text).as_bytes());
}

/// Prints the failure on standard error: as one line of JSON if JSON was asked for.
pub(crate) fn report(failure: &Failure) {
    if !is_json() {
        if !failure.is_quiet() {
            complain("error", failure.message(), failure.advice());
        }
        return;
    }
    // The text of a device is escaped as JSON escapes it.
    if let Ok(text) = serde_json::to_string(&failure.view()) {
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Prints a warning.
pub(crate) fn warn(what: &str, hint: &str) {
    complain("warning", what, hint);
}

/// The text without control characters and without those that change the direction of text: labels
/// and serials come from devices, names from files.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    harmless_only(text, |c| is_harmless(c) || c == '\n')
}

/// The same for a value on one line.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    harmless_only(text, is_harmless)
}

fn is_harmless(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn harmless_only(text: &str, harmless: impl Fn(char) -> bool) -> Cow<'_, str> {
    // Most text is ASCII, of which that is known without a look at each character.
    let is_plain = |byte| matches!(byte, b' '..=b'~') || byte == b'\n' && harmless('\n');
    if text.bytes().all(is_plain) || text.chars().all(&harmless) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(
        text.chars()
            .map(|c| if harmless(c) { c } else { '\u{fffd}' })
            .collect(),
    )
}

/// Lines with aligned columns, each line indented.
pub(crate) fn table(indent: &str, rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let begins = text.len();
        text.push_str(indent);
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(&one_line(cell));
            let missing = width.saturating_sub(cell.chars().count());
            text.extend(std::iter::repeat_n(' ', missing + 2));
        }
        let ends = begins + text[begins..].trim_end().len();
        text.truncate(ends);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_cannot_talk_to_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\rc\n"), "a\u{fffd}[2Jb\u{fffd}c\n");
        assert_eq!(printable("Ελένη\n"), "Ελένη\n");
        assert_eq!(printable("a\u{202e}b\u{2066}"), "a\u{fffd}b\u{fffd}");
        assert_eq!(one_line("a\nerror: b"), "a\u{fffd}error: b");
        assert_eq!(table("", &[vec!["a\nb".into()]]), "a\u{fffd}b\n");
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_spaces_at_their_end() {
        let rows = [
            vec!["a".into(), "b".into()],
            vec!["ääää".into(), String::new()],
        ];
        assert_eq!(table("  ", &rows), "  a     b\n  ääää\n");
    }
}
