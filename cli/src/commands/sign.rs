//! `sign` and `verify`.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

use claviger_engine::EngineId;
use claviger_token::signing::BadSignature;
use claviger_token::{KeyUse, PublicKey, Signature, SignatureScheme, sshsig};
use serde::Serialize;

use super::{Answer, FINE};
use crate::args::Format;
use crate::failure::{FAILED, Failure};
use crate::files::{self, Input, Output, Privacy};
use crate::output;
use crate::session::{self, Session};

/// What the signature is to look like, and where it goes.
pub(crate) struct Wanted<'a> {
    pub(crate) format: Format,
    pub(crate) namespace: &'a str,
    pub(crate) output: Option<&'a Path>,
}

/// What was signed, in JSON.
#[derive(Serialize)]
struct SignatureView<'a> {
    name: String,
    format: &'static str,
    scheme: SignatureScheme,
    fingerprint: String,
    /// Not every path is text: what is not shows as U+FFFD.
    output: Cow<'a, str>,
}

pub(crate) async fn sign(
    session: &Session,
    name: &str,
    file: Option<&Path>,
    wanted: Wanted<'_>,
) -> Answer {
    session.check_input(file)?;
    let node = session.node(session.registry()?);
    let (who, info) = session::identity(node.registry(), name)?;
    let key = session::key(&who, &info, KeyUse::Sign)?;
    let Some(engine) = &info.commitment_engine else {
        return Err(Failure::new(format!("`{who}` has no engine that signs")));
    };
    check_format(&key.public_key, wanted.format, wanted.namespace)?;
    let mut output = Output::open(wanted.output, Privacy::Public, &session.interrupt)?;
    if wanted.output.is_none() && wanted.format != Format::Sshsig && output.is_terminal() {
        return Err(Failure::usage("a signature is not for terminals to show")
            .hint("name a file with -o, or take --format sshsig, which is text (-o - insists)"));
    }
    let message = Input::open(file, &session.screen)?.read_all()?;

    session
        .settle(&node, std::slice::from_ref(&key.token))
        .await?;
    let data = match wanted.format {
        Format::Sshsig => sshsig::signed_data(wanted.namespace, &message).map_err(no_ssh)?,
        Format::Raw | Format::Der => message,
    };
    let signature = {
        let _busy = session.screen.spin("signing");
        node.commit(&who, engine, data, &session.call()).await?
    };
    let bytes = encode(&key.public_key, &signature, &wanted)
        .map_err(|e| Failure::new(format!("the token's answer is {e}")))?;
    output.write_all(&bytes).map_err(|e| output.failed(&e))?;
    let apart = wanted.output.filter(|_| !output.is_stdout());
    output.finish()?;
    if let Some(file) = apart.filter(|_| session.json) {
        output::print_json(&SignatureView {
            name: who.to_string(),
            format: wanted.format.name(),
            scheme: signature.scheme(),
            fingerprint: key.public_key.fingerprint().to_string(),
            output: file.to_string_lossy(),
        })?;
    }
    Ok(FINE)
}

/// Refuses what the key or the format cannot do, before the token is asked.
fn check_format(key: &PublicKey, format: Format, namespace: &str) -> Result<(), Failure> {
    if format != Format::Sshsig {
        return Ok(());
    }
    if namespace.is_empty() {
        return Err(Failure::usage(
            "the namespace of an SSH signature is not empty",
        ));
    }
    if key.to_ssh().is_none() {
        return Err(
            Failure::new(format!("SSH knows no signatures of {}", key.algorithm()))
                .hint("take --format raw or --format der"),
        );
    }
    Ok(())
}

fn no_ssh(_: BadSignature) -> Failure {
    Failure::usage("this cannot be the namespace of an SSH signature")
}

fn encode(
    key: &PublicKey,
    signature: &Signature,
    wanted: &Wanted<'_>,
) -> Result<Vec<u8>, BadSignature> {
    match wanted.format {
        Format::Raw => Ok(signature.as_bytes().to_vec()),
        Format::Der => signature.to_der(),
        Format::Sshsig => sshsig::to_pem(key, wanted.namespace, signature).map(String::into_bytes),
    }
}

/// The verdict in JSON.
#[derive(Serialize)]
struct Verdict {
    name: String,
    valid: bool,
    /// The form that the signature turned out to have, if it is valid.
    format: Option<&'static str>,
    /// The scheme with which it is valid, likewise.
    scheme: Option<SignatureScheme>,
    fingerprint: String,
}

pub(crate) fn verify(
    session: &Session,
    name: &str,
    signature: &Path,
    file: Option<&Path>,
    namespace: &str,
) -> Answer {
    if files::is_standard(Some(signature)) && files::is_standard(file) {
        return Err(Failure::usage(
            "the signature and what was signed cannot both come from standard input",
        ));
    }
    let registry = session.registry()?;
    let (who, key) = match registry.contact(name)? {
        Some(contact) => {
            let key = contact.keys.sign.ok_or_else(|| {
                Failure::new(format!(
                    "no key of the contact `{name}` that signs is known"
                ))
                .hint("remove the contact, and add it with a file that has one")
            })?;
            (EngineId::local(name), key)
        }
        None => {
            let (who, info) = session::identity(&registry, name)?;
            let key = session::key(&who, &info, KeyUse::Sign)?;
            (who, key.public_key.clone())
        }
    };
    let key = &key;
    let signature = Input::open(Some(signature), &session.screen)?.read_all()?;
    let message = Input::open(file, &session.screen)?.read_all()?;
    let found = check(key, namespace, &message, &signature);
    if session.json {
        output::print_json(&Verdict {
            name: who.to_string(),
            valid: found.is_some(),
            format: found.map(|(format, _)| format.name()),
            scheme: found.map(|(_, scheme)| scheme),
            fingerprint: key.fingerprint().to_string(),
        })?;
    } else {
        let several = SignatureScheme::all_of(key.algorithm()).count() > 1;
        output::print(&match found {
            Some((_, scheme)) if several => format!("valid ({scheme})\n"),
            Some(_) => "valid\n".into(),
            None => "not valid\n".to_owned(),
        })?;
    }
    Ok(match found {
        Some(_) => FINE,
        None => FAILED,
    })
}

/// The form and the scheme in which `signature` is a valid one, if any.
fn check(
    key: &PublicKey,
    namespace: &str,
    message: &[u8],
    signature: &[u8],
) -> Option<(Format, SignatureScheme)> {
    if sshsig::is_sshsig(signature) {
        sshsig::verify(key, namespace, message, signature).ok()?;
        return Some((Format::Sshsig, SignatureScheme::of(key.algorithm())?));
    }
    SignatureScheme::all_of(key.algorithm()).find_map(|scheme| {
        let forms = [
            (Format::Raw, Signature::new(scheme, signature.to_vec())),
            (Format::Der, Signature::from_der(scheme, signature)),
        ];
        forms.into_iter().find_map(|(format, signature)| {
            key.verify(message, &signature.ok()?).ok()?;
            Some((format, scheme))
        })
    })
}
