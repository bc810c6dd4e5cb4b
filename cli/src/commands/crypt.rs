//! `encrypt` and `decrypt`: streams, however long, in a few buffers of memory.

use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use claviger_token::envelope::{self, EncryptError};
use claviger_token::{Error, KeyUse};
use zeroize::Zeroizing;

use super::{Answer, FINE};
use crate::failure::Failure;
use crate::files::{Input, Output, Privacy};
use crate::screen::Busy;
use crate::session::{self, Session};

const BUFFER: usize = 1 << 16;

pub(crate) fn encrypt(
    session: &Session,
    name: &str,
    file: Option<&Path>,
    to: Option<&Path>,
) -> Answer {
    let (who, info) = session::identity(&session.registry()?, name)?;
    let Some(key) = info.key(KeyUse::Decrypt) else {
        return Err(Failure::new(format!(
            "`{who}` has no key that decrypts: nobody could read what is encrypted to it"
        ))
        .hint(format!("it was given `{}` only", info.capabilities)));
    };
    if key.deleted {
        return Err(Failure::new(format!(
            "the key of `{who}` that decrypts was deleted with `{}`: nobody could read \
             what is encrypted to it",
            key.owner
        )));
    }
    let mut output = Output::open(to, Privacy::Public, &session.interrupt)?;
    if to.is_none() && output.is_terminal() {
        return Err(Failure::usage("a ciphertext is not for terminals to show")
            .hint("name a file with -o (-o - insists)"));
    }
    let mut input = Input::open(file, &session.screen)?;
    let busy = progress(session, "encrypting", &input, &output);
    let mut writer = match envelope::encrypt_stream(&[&key.public_key], &mut output) {
        Ok(writer) => writer,
        Err(EncryptError::Output(e)) => return Err(output.failed(&e)),
        Err(e) => return Err(Failure::new(e.to_string())),
    };
    let copied = copy(&mut input, &mut writer, busy.as_ref());
    let copied = copied.and_then(|()| writer.finish().map(drop).map_err(CopyError::Write));
    drop(busy);
    match copied {
        Ok(()) => {}
        Err(CopyError::Read(e)) => return Err(input.failed(&e)),
        Err(CopyError::Write(e)) => return Err(output.failed(&e)),
    }
    output.finish()?;
    Ok(FINE)
}

pub(crate) async fn decrypt(
    session: &Session,
    name: &str,
    file: Option<&Path>,
    to: Option<&Path>,
) -> Answer {
    let node = session.node(session.registry()?);
    let (who, info) = session::identity(node.registry(), name)?;
    let key = session::key(&who, &info, KeyUse::Decrypt)?;
    let Some(engine) = &info.decryption_engine else {
        return Err(Failure::new(format!("`{who}` has no engine that decrypts")));
    };
    let mut output = Output::open(to, Privacy::Private, &session.interrupt)?;
    let mut input = Input::open(file, &session.screen)?;

    session
        .settle(&node, std::slice::from_ref(&key.token))
        .await?;
    let call = session.call();
    let decryptor = {
        let _busy = session.screen.spin("asking the token");
        node.decryptor(&who, engine, &call).await?
    };
    let busy = progress(session, "decrypting", &input, &output);
    let counted = Counted {
        input: &mut input,
        busy: busy.as_ref(),
    };
    let mut reader = envelope::decrypt_stream(&*decryptor, counted, &call)?;
    let copied = copy(&mut reader, &mut output, None);
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
        Err(CopyError::Write(e)) => return Err(output.failed(&e)),
    }
    output.finish()?;
    Ok(FINE)
}

/// A sign of life, unless it would get between the lines of the plaintext.
fn progress(session: &Session, what: &'static str, input: &Input, output: &Output) -> Option<Busy> {
    (!output.is_terminal()).then(|| session.screen.count(what, input.length))
}

/// Counts what is read.
struct Counted<'a> {
    input: &'a mut Input,
    busy: Option<&'a Busy>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(buffer)?;
        if let Some(busy) = self.busy {
            busy.advance(count);
        }
        Ok(count)
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
