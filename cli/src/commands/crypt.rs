//! `encrypt` and `decrypt`: streams of any length, in a few buffers of memory.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use claviger_engine::opener::Opened;
use claviger_formats::envelope::{self, EncryptError, Sealed};
use claviger_token::{Error, KeyUse, PublicKey};
use serde::Serialize;
use zeroize::Zeroizing;

use super::recipients::{self, Addressee, AddresseeView, Whom};
use super::{Answer, FINE, open};
use crate::engines::Engines;
use crate::failure::Failure;
use crate::hints;
use crate::input::Input;
use crate::new_file::Privacy;
use crate::output;
use crate::output_file::Output;
use crate::paths;
use crate::screen::Busy;
use crate::session::{self, Session};

const BUFFER: usize = 1 << 16;

/// The recipients and the output.
pub(crate) struct EncryptOptions<'a> {
    pub(crate) whom: Whom<'a>,
    pub(crate) output: Option<&'a Path>,
}

/// An encrypted file in JSON.
#[derive(Serialize)]
struct EncryptedView<'a> {
    names: &'a [&'a str],
    /// The recipient of each key that opens it.
    recipients: Vec<&'a str>,
    /// Each of them with whose it is.
    to: &'a [AddresseeView],
    /// Not every path is text: what is not shows as U+FFFD.
    output: Cow<'a, str>,
}

/// A decrypted file in JSON.
#[derive(Serialize)]
struct DecryptedView<'a> {
    /// Whose key opened it.
    name: String,
    /// Not every path is text: what is not shows as U+FFFD.
    output: Cow<'a, str>,
}

pub(crate) async fn encrypt(
    session: &Session,
    file: Option<&Path>,
    options: EncryptOptions<'_>,
) -> Answer {
    let node = session.node(session.registry()?);
    let addressees = recipients::find(session, &node, &options.whom).await?;
    let mut output = session.output(options.output, Privacy::Public, [file])?;
    if options.output.is_none() && output.is_terminal() {
        return Err(Failure::usage("a ciphertext is not for terminals to show")
            .hint("name a file with -o (-o - insists)"));
    }
    let mut input = Input::open(file, &session.screen)?;
    recipients::tell(session, &options.whom, &addressees);
    let busy = progress(session, "encrypting", &input, &output);
    let keys: Vec<&PublicKey> = addressees.iter().map(Addressee::key).collect();
    let mut writer = match envelope::encrypt_stream(&keys, &mut output) {
        Ok(writer) => writer,
        Err(EncryptError::Output(e)) => return Err(output.failed(&e)),
        Err(e) => {
            let hint = hints::by_code(e.code());
            return Err(Failure::new(e.to_string()).coded(e.code()).hint(hint));
        }
    };
    let copied = copy(&mut input, &mut writer, busy.as_ref());
    let copied = copied.and_then(|()| writer.finish().map(drop).map_err(CopyError::Write));
    drop(busy);
    match copied {
        Ok(()) => {}
        Err(CopyError::Read(e)) => return Err(input.failed(&e)),
        Err(CopyError::Write(e)) => return Err(output.failed(&e)),
    }
    let apart = options.output.filter(|_| !output.is_stdout());
    output.finish()?;
    if let Some(file) = apart.filter(|_| session.json) {
        let views = addressees.iter().map(AddresseeView::of);
        let views: Vec<_> = views.collect();
        output::print_json(&EncryptedView {
            names: &options.whom.names,
            recipients: views.iter().map(|view| &*view.recipient).collect(),
            to: &views,
            output: file.to_string_lossy(),
        })?;
    }
    Ok(FINE)
}

pub(crate) async fn decrypt(session: &Session, words: &[PathBuf], to: Option<&Path>) -> Answer {
    let engines = Engines::of(session, Session::registry)?;
    let (name, file) = whom_and_what(&engines, words)?;
    session.check_input(file)?;
    let named = match &name {
        Some(name) => Some(engines.identity(name)?),
        None => None,
    };
    if let Some((who, info)) = &named {
        session::key(who, info, KeyUse::Decrypt)?;
    }
    let pin_file = named.as_ref().and_then(|(_, info)| {
        // Where the backend says so, the PIN comes from a file.
        paths::pin_file_of(&info.backend.to_string())
    });
    let inputs = [file].into_iter().chain(pin_file.as_deref().map(Some));
    let mut output = session.output(to, Privacy::Private, inputs)?;
    let mut input = Input::open(file, &session.screen)?;
    let length = input.length;
    let busy = OnceCell::new();
    let counted = Counted {
        input: &mut input,
        busy: &busy,
    };
    let sealed = Sealed::read(counted)?;
    let Opened { who, file_key, .. } = open::header(session, &engines, named, &sealed).await?;
    if !output.is_terminal() {
        let _ = busy.set(session.screen.count("decrypting", length));
    }
    let mut reader = sealed.open(file_key)?;
    let copied = match to.is_none() && output.is_terminal() {
        true => {
            let mut text = Text::to(&mut output);
            let copied = copy(&mut reader, &mut text, None);
            copied.and_then(|()| text.finish().map_err(CopyError::Write))
        }
        false => copy(&mut reader, &mut output, None),
    };
    drop(reader);
    drop(busy);
    match copied {
        Ok(()) => {}
        Err(CopyError::Read(e)) => {
            return Err(match envelope::read_error(&e) {
                Error::DecryptionFailed => Error::DecryptionFailed.into(),
                _ => input.failed(&e),
            });
        }
        Err(CopyError::Write(e)) if e.kind() == ErrorKind::InvalidData => {
            return Err(Failure::usage("the plaintext is not for terminals to show")
                .hint("name a file with -o (-o - insists)"));
        }
        Err(CopyError::Write(e)) => return Err(output.failed(&e)),
    }
    let apart = to.filter(|_| !output.is_stdout());
    output.finish()?;
    if let Some(file) = apart.filter(|_| session.json) {
        output::print_json(&DecryptedView {
            name: who.to_string(),
            output: file.to_string_lossy(),
        })?;
    }
    Ok(FINE)
}

/// With whose key, where that is said, and which file: `[NAME] [FILE]`. One word is the name
/// of an identity here, if there is one of that name, and else a file.
fn whom_and_what<'a>(
    engines: &Engines<'_>,
    words: &'a [PathBuf],
) -> Result<(Option<String>, Option<&'a Path>), Failure> {
    let text = |word: &Path| word.to_str().map(str::to_owned);
    match words {
        [] => Ok((None, None)),
        [word] => {
            let name = text(word);
            if let Some(name) = &name {
                if engines.find(name)?.is_some() {
                    return Ok((Some(name.clone()), None));
                }
                if engines.has_contact(name)? && !word.exists() {
                    return Err(Failure::new(format!(
                        "`{name}` is a contact: only its owner can decrypt what is for it"
                    ))
                    .coded("is-contact"));
                }
            }
            if paths::is_standard(Some(word)) || word.exists() {
                return Ok((None, Some(word)));
            }
            let shown: String = word.to_string_lossy().chars().take(80).collect();
            Err(
                Failure::new(format!("there is no identity `{shown}`, and no such file"))
                    .coded("no-identity")
                    .hint("`claviger identities` lists the identities"),
            )
        }
        [name, file, ..] => {
            let name = text(name).ok_or_else(|| {
                Failure::usage(format!("`{}` is the name of no identity", name.display()))
            })?;
            Ok((Some(name), Some(file)))
        }
    }
}

/// A sign of life, unless it would get between the lines of the plaintext.
fn progress(session: &Session, what: &'static str, input: &Input, output: &Output) -> Option<Busy> {
    (!output.is_terminal()).then(|| session.screen.count(what, input.length))
}

/// Counts what is read.
struct Counted<'a> {
    input: &'a mut Input,
    busy: &'a OnceCell<Busy>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(buffer)?;
        if let Some(busy) = self.busy.get() {
            busy.advance(count);
        }
        Ok(count)
    }
}

/// Lets through what a terminal shows as it is: text, without what would command it. What
/// was encrypted may come from anyone.
struct Text<W> {
    to: W,
    /// The first bytes of a character whose others are to come.
    rest: Zeroizing<Vec<u8>>,
}

impl<W: Write> Text<W> {
    fn to(to: W) -> Self {
        Text {
            to,
            rest: Zeroizing::default(),
        }
    }

    fn finish(self) -> std::io::Result<()> {
        match self.rest.is_empty() {
            true => Ok(()),
            false => Err(ErrorKind::InvalidData.into()),
        }
    }
}

impl<W: Write> Write for Text<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let all = Zeroizing::new([&self.rest[..], bytes].concat());
        let whole = match std::str::from_utf8(&all) {
            Ok(text) => text,
            Err(e) if e.error_len().is_none() => {
                std::str::from_utf8(&all[..e.valid_up_to()]).unwrap_or_default()
            }
            Err(_) => return Err(ErrorKind::InvalidData.into()),
        };
        let commands = |c: char| c.is_control() && c != '\n' && c != '\t';
        if whole.contains(commands) {
            return Err(ErrorKind::InvalidData.into());
        }
        self.to.write_all(whole.as_bytes())?;
        self.rest = Zeroizing::new(all[whole.len()..].to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

enum CopyError {
    Read(std::io::Error),
    Write(std::io::Error),
}

/// Copies all of it; of use where it matters which side failed.
fn copy(from: &mut impl Read, to: &mut impl Write, busy: Option<&Busy>) -> Result<(), CopyError> {
    let mut buffer = Zeroizing::new(vec![0; BUFFER]);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(CopyError::Read(e)),
        };
        to.write_all(&buffer[..count]).map_err(CopyError::Write)?;
        if let Some(busy) = busy {
            busy.advance(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&[u8]]) -> Option<Vec<u8>> {
        let mut shown = Vec::new();
        let mut text = Text::to(&mut shown);
        pieces
            .iter()
            .try_for_each(|piece| text.write_all(piece))
            .and_then(|()| text.finish())
            .ok()?;
        Some(shown)
    }

    #[test]
    fn text_is_shown_and_nothing_else() {
        let letter = "Ελένη,\n\tmeet me\n".as_bytes();
        let bytes: Vec<&[u8]> = letter.chunks(1).collect();
        assert_eq!(shown(&bytes).unwrap(), letter);
        for bad in [
            &b"\x1b[2J"[..],
            b"a\rb",
            b"\x7f",
            b"\xc2\x9b",
            b"\xff",
            b"a\xce",
        ] {
            assert_eq!(shown(&[letter, bad]), None, "{bad:?}");
            let pieces: Vec<&[u8]> = bad.chunks(1).collect();
            assert_eq!(shown(&pieces), None, "{bad:?}");
        }
    }
}
