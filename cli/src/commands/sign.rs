//! `sign` and `verify`.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

use claviger_engine::message::RequestCommitment;
use claviger_engine::{EngineId, KeyInfo, Purpose};
use claviger_formats::verdict::{self, CannotJudge, NotValid, Presented, Verdict};
use claviger_formats::{ssh, sshsig};
use claviger_token::signing::BadSignature;
use claviger_token::{Algorithm, KeyUse, PublicKey, Signature, SignatureScheme};
use serde::Serialize;
use sha2::Sha512;

use super::{Answer, FINE};
use crate::allowed_signers;
use crate::args::Format;
use crate::engines::Engines;
use crate::failure::Failure;
use crate::input::Input;
use crate::new_file::Privacy;
use crate::paths;
use crate::session::{self, Session};
use crate::{hints, output};

/// No signature is longer, in bytes: an SSH signature of a long RSA key takes about 3 KiB.
const LONGEST_SIGNATURE: usize = 64 << 10;

/// The longest list of allowed signers that is read, in bytes.
const LONGEST_LIST: usize = 16 << 20;

/// The form of the signature, and its output.
pub(crate) struct SignOptions<'a> {
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
    options: SignOptions<'_>,
) -> Answer {
    session.check_input(file)?;
    let engines = Engines::of(session, Session::registry)?;
    let (who, info) = engines.identity(name)?;
    let key = session::key(&who, &info, KeyUse::Sign)?;
    let Some(engine) = &info.commitment_engine else {
        let what = format!("`{who}` has no engine that signs");
        return Err(Failure::new(what).coded("cannot-sign"));
    };
    check_format(&key.public_key, options.format, options.namespace)?;
    let pin_file = paths::pin_file_of(&info.backend.to_string());
    let inputs = [file].into_iter().chain(pin_file.as_deref().map(Some));
    let mut output = session.output(options.output, Privacy::Public, inputs)?;
    if options.output.is_none() && options.format != Format::Sshsig && output.is_terminal() {
        return Err(Failure::usage("a signature is not for terminals to show")
            .hint("name a file with -o, or take --format sshsig, which is text (-o - insists)"));
    }
    let mut message = Input::open(file, &session.screen)?;
    warn_of_memory(&message, &key.public_key, options.format);

    engines
        .resolve_intents(std::slice::from_ref(&key.token))
        .await?;
    let signature = {
        let _busy = session.screen.spin("signing");
        match options.format {
            Format::Sshsig => {
                let request = for_ssh(&mut message, options.namespace)?;
                engines.commit_for(&who, engine, request).await?
            }
            Format::Raw | Format::Der => engines.commit_stream(&who, engine, &mut message).await?,
        }
    };
    let bytes = encode(&key.public_key, &signature, &options)
        .map_err(|e| Failure::new(format!("the token's answer is {e}")).coded("malformed-reply"))?;
    output.write_all(&bytes).map_err(|e| output.failed(&e))?;
    let apart = options.output.filter(|_| !output.is_stdout());
    output.finish_without_waiting()?;
    if let Some(file) = apart.filter(|_| session.json) {
        output::print_json(&SignatureView {
            name: who.to_string(),
            format: options.format.name(),
            scheme: signature.scheme(),
            fingerprint: key.public_key.fingerprint().to_string(),
            output: file.to_string_lossy(),
        })?;
    }
    Ok(FINE)
}

/// What is asked of the key for an SSH signature over a message of any length.
fn for_ssh(message: &mut Input, namespace: &str) -> Result<RequestCommitment, Failure> {
    let digest = verdict::hashed::<Sha512>(&mut *message);
    Ok(RequestCommitment {
        data: digest.map_err(|e| message.failed(&e))?,
        purpose: Purpose::SshSig {
            namespace: namespace.into(),
            hash: sshsig::Hash::Sha512,
        },
    })
}

/// From so many bytes on it is said that a message is held in memory.
const LONG: u64 = 32 << 20;

/// Says so where a long message has to be held in memory.
fn warn_of_memory(message: &Input, key: &PublicKey, format: Format) {
    let algorithm = key.algorithm();
    let is_whole = matches!(algorithm, Algorithm::Ed25519 | Algorithm::Bls12381);
    let Some(length) = message.length.filter(|length| *length > LONG) else {
        return;
    };
    if is_whole && format != Format::Sshsig {
        output::warn(
            &format!(
                "a {} signature of {algorithm} takes the message into memory: {} MiB",
                format.name(),
                length >> 20
            ),
            "an SSH signature (--format sshsig) takes none of it",
        );
    }
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
    if !ssh::has(key.algorithm()) {
        return Err(
            Failure::new(format!("SSH knows no signatures of {}", key.algorithm()))
                .coded("no-ssh-signature")
                .hint("take --format raw or --format der"),
        );
    }
    Ok(())
}

fn encode(
    key: &PublicKey,
    signature: &Signature,
    options: &SignOptions<'_>,
) -> Result<Vec<u8>, BadSignature> {
    match options.format {
        Format::Raw => Ok(signature.as_bytes().to_vec()),
        Format::Der => signature.to_der(),
        Format::Sshsig => sshsig::to_pem(key, options.namespace, signature).map(String::into_bytes),
    }
}

/// What is to be verified, and by what.
pub(crate) struct Claim<'a> {
    pub(crate) name: &'a str,
    pub(crate) signature: &'a Path,
    pub(crate) file: Option<&'a Path>,
    pub(crate) namespace: &'a str,
    /// A file of who may sign with which key, instead of what is known here.
    pub(crate) allowed_signers: Option<&'a Path>,
}

/// The verdict in JSON, where the signature is valid; else there is an error.
#[derive(Serialize)]
struct ValidView {
    name: String,
    valid: bool,
    /// The form that the signature turned out to have.
    format: &'static str,
    /// The scheme with which it is valid.
    scheme: SignatureScheme,
    fingerprint: String,
}

/// Three verdicts: valid, not valid, or that it cannot be said; the last is also what every
/// failure comes to. Standard output says something where it is valid only.
pub(crate) fn verify(session: &Session, claim: &Claim<'_>) -> Answer {
    judge(session, claim)
        .map_err(Failure::unjudged)?
        .map_err(not_valid)
}

fn judge(session: &Session, claim: &Claim<'_>) -> Result<Result<u8, NotValid>, Failure> {
    output::check_stdout()?;
    let sources = [Some(claim.signature), claim.file];
    let sources = sources.into_iter().chain(claim.allowed_signers.map(Some));
    if sources.filter(|path| paths::is_stdin(*path)).count() > 1 {
        return Err(Failure::usage(
            "the signature and what was signed cannot both come from standard input",
        ));
    }
    let file = Input::open(Some(claim.signature), &session.screen)?;
    let signature = Presented::read(&file.read_up_to(LONGEST_SIGNATURE)?)
        .map_err(|reason| unjudged(&reason))?;
    let (who, key) = match claim.allowed_signers {
        None => known(session, claim.name)?,
        Some(list) => {
            let Presented::Ssh(signature) = &signature else {
                return Err(
                    Failure::new("only SSH signatures name the key that made them")
                        .coded("cannot-judge-unknown-form")
                        .hint("leave --allowed-signers away, and name an identity or a contact"),
                );
            };
            let list = Input::open(Some(list), &session.screen)?.read_up_to(LONGEST_LIST)?;
            match allowed_signers::find(&list, claim.name, signature)? {
                Some(key) => (EngineId::local(claim.name), key),
                None => return Ok(Err(NotValid::AnotherKey)),
            }
        }
    };
    let mut message = Input::open(claim.file, &session.screen)?;
    let length = message.length;
    let verdict = signature.judge(&key, claim.namespace, &mut message, length);
    let (format, scheme) = match verdict.map_err(|e| message.failed(&e))? {
        Verdict::Valid { form, scheme } => (form.name(), scheme),
        Verdict::NotValid(reason) => return Ok(Err(reason)),
        Verdict::CannotJudge(reason) => return Err(unjudged(&reason)),
    };
    if session.json {
        output::print_json(&ValidView {
            name: who.to_string(),
            valid: true,
            format,
            scheme,
            fingerprint: key.fingerprint().to_string(),
        })?;
    } else {
        output::print(&match is_said(key.algorithm(), scheme) {
            true => format!("valid ({scheme})\n"),
            false => "valid\n".into(),
        })?;
    }
    Ok(Ok(FINE))
}

/// Whether a scheme is worth mentioning: there are others, and it is not the usual one.
fn is_said(algorithm: Algorithm, scheme: SignatureScheme) -> bool {
    algorithm == Algorithm::Secp256k1 || SignatureScheme::of(algorithm) != Some(scheme)
}

fn not_valid(reason: NotValid) -> Failure {
    Failure::new(format!("not valid: {reason}")).coded(reason.code())
}

fn unjudged(reason: &CannotJudge) -> Failure {
    Failure::new(format!("the signature cannot be judged: {reason}"))
        .coded(reason.code())
        .hint(hints::of_verdict(reason))
}

/// The identity or contact of this name, and its key that signs.
pub(super) fn known(session: &Session, name: &str) -> Result<(EngineId, PublicKey), Failure> {
    let registry = session.registry()?;
    let Some(contact) = registry.contact(name)? else {
        let (who, info) = session::identity(&registry, name)?;
        let KeyInfo { public_key, .. } = session::key(&who, &info, KeyUse::Sign)?;
        return Ok((who, public_key.clone()));
    };
    let key = contact.keys.sign.ok_or_else(|| {
        Failure::new(format!(
            "no key of the contact `{name}` that signs is known"
        ))
        .coded("cannot-sign")
        .hint("remove the contact, and add it with a file that has one")
    })?;
    Ok((EngineId::local(name), key))
}
