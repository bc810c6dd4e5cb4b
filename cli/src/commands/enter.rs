//! `generate` and `connect`: give a name its keys.

use claviger_engine::message::{RequestConnectIdentity, RequestGenerateIdentity};
use claviger_engine::{
    Backend, Capabilities, EngineError, EngineId, IdParams, IdentityInfo, KeyInfo, Node,
};
use claviger_token::{Error, Fingerprint, KeySpec, KeyUse, SlotInfo, TokenInfo, shell};

use super::{Answer, FINE};
use crate::failure::Failure;
use crate::hints;
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
    let backend = session::device(backend)?;
    let capabilities = capabilities.unwrap_or(match params.key(KeyUse::Decrypt) {
        Some(_) => Capabilities::CommitAndDecrypt,
        None => Capabilities::Commit,
    });
    let node = session.node(session.new_registry()?);
    no_contact(&node, &who)?;
    names::warn_of_lookalikes(node.registry(), name)?;
    let request = RequestGenerateIdentity {
        backend,
        params,
        capabilities,
    };
    let made = {
        let _phase = session.interrupt.tidily();
        let _busy = session.screen.spin("making keys on the token");
        node.generate(&who, request, &session.call()).await
    };
    if let Err(error) = made {
        return Err(not_generated(&node, &who, error));
    }
    session.warn_open(&node)?;
    report(session, &node, &who, "generated")
}

/// Refuses the name of a contact before a token is asked.
fn no_contact(node: &Node, who: &EngineId) -> Result<(), Failure> {
    match node.registry().contact(&who.name)? {
        Some(_) => Err(EngineError::NameIsContact.into()),
        None => Ok(()),
    }
}

/// Says beside the reason what is left on the token.
fn not_generated(node: &Node, who: &EngineId, error: EngineError) -> Failure {
    let given_up = matches!(
        error,
        EngineError::Token(Error::Cancelled | Error::DeadlineExceeded)
    );
    let only_decryption = match &error {
        EngineError::Token(Error::Unsupported {
            wanted, supported, ..
        }) => {
            wanted.usage == KeyUse::Decrypt && supported.contains(&KeySpec::sign(wanted.algorithm))
        }
        _ => false,
    };
    let hint = hints::of(&error);
    let failure = Failure::from(error);
    let open = node.registry().open_intents().unwrap_or_default();
    if open.iter().any(|intent| intent.identity == *who) {
        failure.hint(
            "what was begun is undone when the token is used next, or by \
             `claviger doctor --repair`",
        )
    } else if given_up {
        failure.hint("nothing of it is left on the token")
    } else if only_decryption {
        failure.hint(format!("{hint}; --capabilities commit does without"))
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
    let given = backend.map(session::device).transpose()?;
    let node = session.node(session.new_registry()?);
    no_contact(&node, &who)?;
    names::warn_of_lookalikes(node.registry(), name)?;
    let request = if to.starts_with(Fingerprint::PREFIX) {
        adoption(session, &node, &fingerprints(to)?, given, capabilities).await?
    } else {
        let (original, info) = session::identity(node.registry(), to)?;
        if let Some(given) = given {
            check_token(session, &node, &original, &info, &given).await?;
        }
        RequestConnectIdentity {
            external_identity: original,
            backend: info.backend,
            capabilities: capabilities.unwrap_or(info.capabilities),
        }
    };
    let connected = {
        let _busy = session.screen.spin("asking the token");
        node.connect(&who, request, &session.call()).await
    };
    connected?;
    report(session, &node, &who, "connected")
}

/// Refuses a backend that is not that of the identity.
async fn check_token(
    session: &Session,
    node: &Node,
    who: &EngineId,
    info: &IdentityInfo,
    given: &Backend,
) -> Result<(), Failure> {
    if *given == info.backend {
        return Ok(());
    }
    let found = {
        let _busy = session.screen.spin("looking for the token");
        node.tokens(
            &EngineId::program(),
            Some(&given.to_string()),
            &session.call(),
        )
        .await?
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
    node: &Node,
    sought: &[Fingerprint],
    given: Option<Backend>,
    capabilities: Option<Capabilities>,
) -> Result<RequestConnectIdentity, Failure> {
    let found = {
        let _busy = session.screen.spin("looking for the key");
        let asked = given.as_ref().map(Backend::to_string);
        node.tokens(&EngineId::program(), asked.as_deref(), &session.call())
            .await?
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
        session.resolve_intents(node, &tokens).await?;
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
fn report(session: &Session, node: &Node, who: &EngineId, how: &str) -> Answer {
    let (_, info) = session::identity(node.registry(), &who.name)?;
    let first_account = views::first_account(node.registry(), &info);
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
