//! `generate` and `connect`: give a name its keys.

use claviger_engine::message::{RequestConnectIdentity, RequestGenerateIdentity};
use claviger_engine::{
    Backend, Capabilities, EngineError, EngineId, IdParams, IdentityInfo, KeyInfo,
};
use claviger_token::{Fingerprint, KeyUse, SlotInfo, TokenInfo, shell};

use super::{Answer, FINE};
use crate::daemon::Known;
use crate::engines::Engines;
use crate::failure::Failure;
use crate::names;
use crate::output;
use crate::session::{self, Session};
use crate::views::{self, IdentityView};

pub(crate) async fn generate(
    session: &Session,
    name: &str,
    backend: &str,
    params: IdParams,
    capabilities: Option<Capabilities>,
) -> Answer {
    let who = session::new_name(name)?;
    let engines = Engines::of(session, |session| {
        session::device(backend)?;
        session.new_registry()
    })?;
    let backend = engines.device(backend)?;
    let capabilities = capabilities.unwrap_or(match params.key(KeyUse::Decrypt) {
        Some(_) => Capabilities::CommitAndDecrypt,
        None => Capabilities::Commit,
    });
    check_name(&engines, &who)?;
    let request = RequestGenerateIdentity {
        backend,
        params,
        capabilities,
    };
    let made = {
        let _phase = session.interrupt.tidily();
        let _busy = session.screen.spin("making keys on the token");
        engines.generate(&who, request).await
    };
    if let Err(failure) = made {
        return Err(not_generated(&engines, &who, failure));
    }
    engines.warn_open()?;
    report(session, &engines, &who, "generated")
}

/// Refuses the name of a contact before a token is asked, and warns of names that look alike.
fn check_name(engines: &Engines<'_>, who: &EngineId) -> Result<(), Failure> {
    if engines.has_contact(&who.name)? {
        return Err(EngineError::NameIsContact.into());
    }
    if let Some(registry) = engines.registry()? {
        names::warn_of_lookalikes(registry, &who.name)?;
    }
    Ok(())
}

/// Says beside the reason what is left on the token.
fn not_generated(engines: &Engines<'_>, who: &EngineId, failure: Failure) -> Failure {
    let given_up = ["cancelled", "deadline-exceeded"].contains(&failure.code());
    let registry = engines.registry().ok().flatten();
    let open = registry.and_then(|registry| registry.open_intents().ok());
    let mut open = open.unwrap_or_default().into_iter();
    if open.any(|intent| intent.identity == *who) {
        failure.hint(
            "what was begun is undone when the token is used next, or by \
             `claviger doctor --repair`",
        )
    } else if given_up {
        failure.hint("nothing of it is left on the token")
    } else {
        failure
    }
}

pub(crate) async fn connect(
    session: &Session,
    name: &str,
    to: &str,
    backend: Option<&str>,
    capabilities: Option<Capabilities>,
) -> Answer {
    let who = session::new_name(name)?;
    let engines = Engines::of(session, |session| {
        backend.map(session::device).transpose()?;
        session.new_registry()
    })?;
    let given = backend.map(|backend| engines.device(backend)).transpose()?;
    check_name(&engines, &who)?;
    let request = if to.starts_with(Fingerprint::PREFIX) {
        adoption(session, &engines, &fingerprints(to)?, given, capabilities).await?
    } else {
        let (original, info) = engines.identity(to)?;
        if let Some(given) = given {
            check_token(session, &engines, &original, &info, &given).await?;
        }
        RequestConnectIdentity {
            external_identity: original,
            backend: info.backend,
            capabilities: capabilities.unwrap_or(info.capabilities),
        }
    };
    let connected = {
        let _busy = session.screen.spin("asking the token");
        engines.connect(&who, request).await
    };
    connected?;
    report(session, &engines, &who, "connected")
}

/// Refuses a backend that is not that of the identity.
async fn check_token(
    session: &Session,
    engines: &Engines<'_>,
    who: &EngineId,
    info: &IdentityInfo,
    given: &Backend,
) -> Result<(), Failure> {
    if *given == info.backend {
        return Ok(());
    }
    let found = {
        let _busy = session.screen.spin("looking for the token");
        engines.tokens(Some(&given.to_string())).await?
    };
    let is_there = |key: &KeyInfo| found.iter().any(|(token, _)| token.id == key.token);
    if info.keys.iter().all(is_there) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "the keys of `{who}` are not on a token that fits `{given}`"
    ))
    .hint(format!(
        "leave --backend out; its backend is {}",
        info.backend
    )))
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The request to adopt a key, or the two of an identity, once it is clear on which token and
/// for what.
async fn adoption(
    session: &Session,
    engines: &Engines<'_>,
    sought: &[Fingerprint],
    given: Option<Backend>,
    capabilities: Option<Capabilities>,
) -> Result<RequestConnectIdentity, Failure> {
    let found = {
        let _busy = session.screen.spin("looking for the key");
        let asked = given.as_ref().map(Backend::to_string);
        engines.tokens(asked.as_deref()).await?
    };
    let holders: Vec<(&TokenInfo, Vec<&SlotInfo>)> = found
        .iter()
        .filter_map(|(token, slots)| {
            let slots = sought.iter().map(|key| slot_of(slots, key));
            Some((token, slots.collect::<Option<_>>()?))
        })
        .collect();
    let of_holder = |token: &TokenInfo| Backend::from(token.backend.clone());
    let backend = match (given, holders.as_slice()) {
        // It reaches several, of which one is meant.
        (Some(_), [(token, _)]) if found.len() > 1 => of_holder(token),
        (Some(given), _) => given,
        (None, [(token, _)]) => of_holder(token),
        (None, []) => return Err(not_seen(sought, &found)),
        (None, several) => {
            let backends = several
                .iter()
                .map(|(token, _)| shell::quoted(&token.backend));
            let backends: Vec<_> = backends.collect();
            return Err(
                Failure::new(format!("{} tokens hold this key", several.len()))
                    .coded("ambiguous-token")
                    .hint(format!(
                        "name one of them with --backend:\n  {}",
                        backends.join("\n  ")
                    )),
            );
        }
    };
    // A key that an interrupted generation left behind is not there to be adopted.
    let tokens: Vec<_> = found.iter().map(|(token, _)| token.id.clone()).collect();
    if let [_] = tokens.as_slice() {
        engines.resolve_intents(&tokens).await?;
    }
    let default = match holders.first().map(|(_, slots)| slots.as_slice()) {
        _ if sought.len() > 1 => Capabilities::CommitAndDecrypt,
        Some([slot]) if !slot.uses.contains(&KeyUse::Sign) => Capabilities::Decrypt,
        _ => Capabilities::Commit,
    };
    let names: Vec<String> = sought.iter().map(Fingerprint::to_string).collect();
    Ok(RequestConnectIdentity {
        external_identity: EngineId::local(names.join(",")),
        backend,
        capabilities: capabilities.unwrap_or(default),
    })
}

/// The keys that are to be adopted: one, or the two of an identity with a comma between them.
fn fingerprints(to: &str) -> Result<Vec<Fingerprint>, Failure> {
    let parsed = to.split(',').map(|text| {
        let none = |e| Failure::usage(format!("`{}` is no fingerprint: {e}", short(text)));
        text.parse().map_err(none)
    });
    let parsed = parsed.collect::<Result<Vec<Fingerprint>, _>>()?;
    match parsed.as_slice() {
        [_] => Ok(parsed),
        [one, other] if one != other => Ok(parsed),
        [_, _] => Err(Failure::usage("both fingerprints are those of one key")),
        _ => Err(Failure::usage("an identity has two keys at most")),
    }
}

/// No token shows all of the keys.
fn not_seen(sought: &[Fingerprint], found: &[(TokenInfo, Vec<SlotInfo>)]) -> Failure {
    let is_shown = |key: &&Fingerprint| {
        let mut tokens = found.iter();
        tokens.any(|(_, slots)| slot_of(slots, key).is_some())
    };
    match sought.iter().find(|key| !is_shown(key)) {
        Some(key) => Failure::new(format!("no token shows the key {key}"))
            .coded("key-not-found")
            .hint("if its public half is hidden behind the PIN, name the token with --backend"),
        None => Failure::new("the two keys are on different tokens")
            .coded("no-pair")
            .hint("adopt each under a name of its own; the keys of an identity are on one token"),
    }
}

fn slot_of<'a>(slots: &'a [SlotInfo], fingerprint: &Fingerprint) -> Option<&'a SlotInfo> {
    slots.iter().find(|slot| {
        let key = slot.public_key.as_ref();
        key.is_some_and(|key| key.fingerprint() == *fingerprint)
    })
}

/// Shows the new identity.
fn report(session: &Session, engines: &Engines<'_>, who: &EngineId, how: &str) -> Answer {
    let Known {
        info,
        first_account,
        ..
    } = engines.known(&who.name)?;
    if session.json {
        let view = IdentityView::full(who, &info, None);
        output::print_json(&view.with_accounts(first_account))?;
    } else {
        output::print(&format!(
            "{how} {}{}next: claviger show {}\n",
            views::summary(who, &info),
            views::accounts(first_account),
            shell::quoted(&who.name)
        ))?;
    }
    Ok(FINE)
}
