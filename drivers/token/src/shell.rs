//! Quoting for a shell: for commands that people are told to paste.

use std::borrow::Cow;

/// The text as one word of a POSIX shell, whatever is in it: as it is where nothing in it is
/// special, else in single quotes (XCU §2.2.2).
///
/// Labels, serials and names come from devices and files: one that holds a quote and a
/// semicolon is not to end the word that it stands in.
pub fn quoted(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "%+,-./=@_".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("'{}'", text.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word() {
        for (text, word) in [
            ("alice", "alice"),
            ("", "''"),
            ("/usr/lib/a.so", "/usr/lib/a.so"),
            ("pkcs11:token=bench", "'pkcs11:token=bench'"),
            ("piv:serial=1;slot=9c", "'piv:serial=1;slot=9c'"),
            ("x'; rm -rf ~; '", r"'x'\''; rm -rf ~; '\'''"),
            ("$(id)", "'$(id)'"),
            ("a b", "'a b'"),
            ("~", "'~'"),
        ] {
            assert_eq!(quoted(text), word);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for text in [
            "x'; exit 1; '",
            "$HOME `id` \\ \" ! * ? #",
            "a\nb",
            "",
            "Ελένη",
        ] {
            let script = format!("printf %s {}", quoted(text));
            let mut shell = std::process::Command::new("sh");
            let said = shell.args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), text);
        }
    }
}
