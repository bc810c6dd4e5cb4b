//! `certificate`: requests for certificates, and certificates, of the keys of identities.

mod kept;

use std::io::Write;
use std::path::Path;

use claviger_client::wire;
use claviger_engine::grants::{NewGrant, Subject as Grantee};
use claviger_engine::message::RequestCommitment;
use claviger_engine::registry::{CertificateEntryError, GrantError};
use claviger_engine::{EngineId, KeyInfo, Purpose};
use claviger_formats::certificate::{
    AlternativeName, CertificateError, Subject, Unsigned, request, self_signed,
};
use claviger_token::KeyUse;
use rustix::process::getuid;
use serde::Serialize;

use super::{Answer, FINE};
use crate::certificate_args::{CertificateCommand, Names};
use crate::engines::Engines;
use crate::failure::Failure;
use crate::new_file::Privacy;
use crate::session::{self, Session};
use crate::{hints, output, paths};

pub(crate) async fn run(session: &Session, command: CertificateCommand) -> Answer {
    match command {
        CertificateCommand::Request {
            names,
            tls_only,
            output,
            ..
        } => make_request(session, &names, tls_only, output.as_deref()).await,
        CertificateCommand::SelfSigned {
            names,
            days,
            output,
            ..
        } => make_self_signed(session, &names, days, output.as_deref()).await,
        CertificateCommand::Import { name, file } => kept::import(session, &name, &file),
        CertificateCommand::Show { name } => kept::show(session, &name),
    }
}

/// A request in JSON.
#[derive(Serialize)]
struct RequestView {
    name: String,
    subject: String,
    names: Vec<String>,
    fingerprint: String,
    tls_only: bool,
    /// PEM.
    request: String,
}

async fn make_request(
    session: &Session,
    names: &Names,
    tls_only: bool,
    to: Option<&Path>,
) -> Answer {
    let (subject, others) = parse(names)?;
    let signer = Signer::find(session, &names.name)?;
    let unsigned = request(&signer.key.public_key, &subject, &others)?;
    let pem = signer.sign(session, &unsigned, to, |_| match tls_only {
        true => signer.grant_digests(),
        false => Ok(()),
    });
    let pem = pem.await?;
    if tls_only {
        output::warn(
            &format!(
                "this user may have digests signed by the key of `{}`, and so obtain any signature \
                 of it",
                signer.who
            ),
            "use the key for nothing but TLS; `claviger grant list` shows the grant",
        );
    }
    if session.json {
        output::print_json(&RequestView {
            name: signer.who.to_string(),
            subject: subject.to_string(),
            names: others.iter().map(ToString::to_string).collect(),
            fingerprint: signer.key.public_key.fingerprint().to_string(),
            tls_only,
            request: pem,
        })?;
    }
    Ok(FINE)
}

async fn make_self_signed(
    session: &Session,
    names: &Names,
    days: u32,
    to: Option<&Path>,
) -> Answer {
    let (subject, others) = parse(names)?;
    let signer = Signer::find(session, &names.name)?;
    let key = &signer.key.public_key;
    let unsigned = self_signed(key, &subject, &others, days)?;
    let pem = signer.sign(session, &unsigned, to, |pem| {
        let chain = claviger_formats::certificate::Chain::read(pem.as_bytes(), key)?;
        kept::keep(&signer.engines, &signer.who, &chain)
    });
    let pem = pem.await?;
    if session.json {
        kept::print_json(&signer.who, key, pem.as_bytes())?;
    }
    Ok(FINE)
}

fn parse(names: &Names) -> Result<(Subject, Vec<AlternativeName>), Failure> {
    let subject = names.subject.parse()?;
    let others = names.san.iter().map(|name| name.parse());
    Ok((subject, others.collect::<Result<_, CertificateError>>()?))
}

/// The identity whose key signs.
struct Signer<'a> {
    engines: Engines<'a>,
    who: EngineId,
    key: KeyInfo,
    engine: EngineId,
    pin_file: Option<std::path::PathBuf>,
}

impl<'a> Signer<'a> {
    fn find(session: &'a Session, name: &str) -> Result<Self, Failure> {
        let engines = Engines::of(session, Session::writable_registry)?;
        let (who, info) = engines.identity(name)?;
        let key = session::key(&who, &info, KeyUse::Sign)?.clone();
        let Some(engine) = info.commitment_engine.clone() else {
            let what = format!("`{who}` has no engine that signs");
            return Err(Failure::new(what).coded("cannot-sign"));
        };
        Ok(Signer {
            engines,
            who,
            key,
            engine,
            pin_file: paths::pin_file_of(&info.backend.to_string()),
        })
    }

    /// Has it signed, hands it to `then`, and writes it: to the file, or to standard output unless
    /// the answer is JSON.
    async fn sign(
        &self,
        session: &Session,
        unsigned: &Unsigned,
        to: Option<&Path>,
        then: impl FnOnce(&str) -> Result<(), Failure>,
    ) -> Result<String, Failure> {
        let inputs = self.pin_file.as_deref().map(Some);
        let output = match (to, session.json) {
            (None, true) => None,
            _ => Some(session.output(to, Privacy::Public, inputs)?),
        };
        let token = std::slice::from_ref(&self.key.token);
        self.engines.resolve_intents(token).await?;
        let request = RequestCommitment {
            data: unsigned.bytes().to_vec(),
            purpose: Purpose::Certificate,
        };
        let signature = {
            let _busy = session.screen.spin("signing");
            let engines = &self.engines;
            engines.commit_for(&self.who, &self.engine, request).await?
        };
        let pem = unsigned.signed(&signature)?;
        then(&pem)?;
        if let Some(mut output) = output {
            let written = output.write_all(pem.as_bytes());
            written.map_err(|e| output.failed(&e))?;
            output.finish_without_waiting()?;
        }
        Ok(pem)
    }

    /// Lets this user have digests signed by the key.
    fn grant_digests(&self) -> Result<(), Failure> {
        // Who is connected to an identity uses the engine of that one.
        let name = &*self.key.owner.name;
        match &self.engines {
            Engines::Here(_, node) => {
                let user = Grantee::Uid(getuid().as_raw());
                let grant = NewGrant::parse(user, "", name, "sign", "prehash");
                let added = grant.map_err(GrantError::from);
                let added = added.and_then(|grant| node.registry().add_grant(&grant));
                added.map(drop).map_err(|error| {
                    let code = error.code();
                    Failure::new(error.to_string())
                        .coded(code)
                        .hint(hints::by_code(code))
                })
            }
            Engines::There(_, daemon, _) => {
                let grant = wire::Grant {
                    subject: Some(wire::grant::Subject::Uid(getuid().as_raw())),
                    identity: name.to_owned(),
                    operation: "sign".to_owned(),
                    purpose: "prehash".to_owned(),
                    ..wire::Grant::default()
                };
                daemon.add_grant(grant).map(drop)
            }
        }
    }
}

impl From<CertificateError> for Failure {
    fn from(error: CertificateError) -> Self {
        let code = error.code();
        Failure::new(error.to_string())
            .coded(code)
            .hint(hints::by_code(code))
    }
}

impl From<CertificateEntryError> for Failure {
    fn from(error: CertificateEntryError) -> Self {
        match error {
            CertificateEntryError::Registry(error) => error.into(),
            CertificateEntryError::Certificate(error) => error.into(),
            other => {
                let code = other.code();
                Failure::new(other.to_string())
                    .coded(code)
                    .hint(hints::by_code(code))
            }
        }
    }
}
