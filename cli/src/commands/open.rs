//! Which identity opens a file: the one that was named, or one that can.

use std::collections::HashMap;
use std::io::Read;

use claviger_engine::{EngineError, EngineId, IdentityInfo, KeyInfo, Node};
use claviger_token::envelope::{Fit, Sealed, UnwrappedKey};
use claviger_token::{Error, KeyUse, SlotInfo, TokenId, TokenInfo};

use crate::failure::Failure;
use crate::session::{self, Session};

/// A token, and what of its slots is seen without a PIN.
type Listed = (TokenInfo, Vec<SlotInfo>);

/// An identity whose key may open the file.
struct Candidate {
    who: EngineId,
    info: IdentityInfo,
    key: KeyInfo,
    fit: Fit,
    /// Somebody has to touch or approve, or may have to.
    needs_person: bool,
    needs_pin: bool,
}

impl Candidate {
    /// First what needs nobody, then what is sure, then what needs no PIN.
    fn order(&self) -> impl Ord + use<> {
        (self.needs_person, self.fit != Fit::Yes, self.needs_pin)
    }
}

/// Opens the file with the identity that was named.
pub(super) async fn with_named<R: Read>(
    session: &Session,
    node: &Node,
    name: &str,
    file: &Sealed<R>,
) -> Result<(EngineId, UnwrappedKey), Failure> {
    let (who, info) = session::identity(node.registry(), name)?;
    let key = session::key(&who, &info, KeyUse::Decrypt)?;
    if file.fits(&key.public_key) == Fit::No && !key.deleted {
        return Err(Error::DecryptionFailed.into());
    }
    session
        .settle(node, std::slice::from_ref(&key.token))
        .await?;
    let opened = unwrap(session, node, &who, &info, key, file).await?;
    match opened {
        Some(file_key) => Ok((who, file_key)),
        None => Err(Error::DecryptionFailed.into()),
    }
}

/// Finds an identity here that opens the file.
///
/// A PIN goes to a token only to use a key that opens the file or may. One PIN that was
/// given for whichever token asks goes to the one token of which the file says that its
/// key opens it, or to the only one whose key may; where there are several it goes to none.
/// A token that is not attached counts: it may be the one whose PIN was given.
pub(super) async fn with_any<R: Read>(
    session: &Session,
    node: &Node,
    file: &Sealed<R>,
) -> Result<(EngineId, UnwrappedKey), Failure> {
    let (mut here, away) = candidates(session, node, file).await?;
    if here.is_empty() {
        return Err(nobody(&away));
    }
    here.sort_by_key(Candidate::order);
    let mut failed: Option<Failure> = None;
    for candidate in &here {
        if candidate.needs_pin
            && session.pins.is_one_for_all()
            && *one_token(&here, &away)? != candidate.key.token
        {
            continue;
        }
        let Candidate { who, info, key, .. } = candidate;
        session
            .settle(node, std::slice::from_ref(&key.token))
            .await?;
        match unwrap(session, node, who, info, key, file).await {
            Ok(Some(file_key)) => {
                if session.screen.is_terminal() {
                    session.screen.line(&format!("opened with `{who}`"));
                }
                return Ok((who.clone(), file_key));
            }
            Ok(None) => {}
            Err(error) if may_go_on(&error) => failed = failed.or(Some(error.into())),
            // A PIN that was refused, a person who said no: that is for a person to see.
            Err(error) => {
                let failure = Failure::from(error);
                return Err(failure.said_of(&format!("to open it as `{who}`")));
            }
        }
    }
    Err(failed.unwrap_or_else(|| match away.is_empty() {
        true => Error::DecryptionFailed.into(),
        false => nobody(&away),
    }))
}

/// An identity that may open the file and whose token is not attached.
struct Away {
    who: EngineId,
    token: TokenId,
    fit: Fit,
}

/// The identities that may open the file and whose token is here, and those whose is not.
async fn candidates<R: Read>(
    session: &Session,
    node: &Node,
    file: &Sealed<R>,
) -> Result<(Vec<Candidate>, Vec<Away>), Failure> {
    let _busy = session.screen.spin("looking for a key");
    let (mut here, mut away): (Vec<Candidate>, Vec<_>) = Default::default();
    let mut tokens: HashMap<TokenId, Option<Listed>> = HashMap::new();
    let mut identities = node.registry().identities()?;
    // Who a key was made for goes before those who are connected to it.
    identities.sort_by_key(|(who, info)| {
        info.key(KeyUse::Decrypt)
            .is_some_and(|key| key.owner != *who)
    });
    for (who, info) in identities {
        let Some(key) = info
            .key(KeyUse::Decrypt)
            .filter(|key| !key.deleted)
            .cloned()
        else {
            continue;
        };
        let fit = file.fits(&key.public_key);
        let is_known = here.iter().any(|c| c.key.public_key == key.public_key);
        if fit == Fit::No || is_known {
            continue;
        }
        if !tokens.contains_key(&key.token) {
            let found = node.tokens(Some(&info.backend.to_string())).await;
            let found = found.unwrap_or_default();
            let it = found.into_iter().find(|(token, _)| token.id == key.token);
            tokens.insert(key.token.clone(), it);
        }
        let Some(Some((token, slots))) = tokens.get(&key.token) else {
            let token = key.token.clone();
            away.push(Away { who, token, fit });
            continue;
        };
        here.push(Candidate {
            needs_person: needs_person(&key, slots),
            needs_pin: token.login_required,
            who,
            info,
            key,
            fit,
        });
    }
    Ok((here, away))
}

/// Whether a person has to touch or approve when the key is used, or may have to.
fn needs_person(key: &KeyInfo, slots: &[SlotInfo]) -> bool {
    let slot = slots.iter().find(|slot| slot.slot == key.slot);
    let noted = slot.map_or(&[][..], |slot| &slot.notes);
    let attested = key.attestation.as_ref().map_or(&[][..], |a| &a.facts);
    let mut facts = noted.iter().chain(attested);
    match facts.find(|(what, _)| what == "touch_policy") {
        Some((_, policy)) => policy != "never",
        None => matches!(&*key.token.kind, "piv" | "ledger"),
    }
}

/// The token that a PIN is for which was given for whichever token asks; to guess among
/// several is refused.
fn one_token<'a>(here: &'a [Candidate], away: &'a [Away]) -> Result<&'a TokenId, Failure> {
    let with_pin = || {
        let here = here.iter().filter(|candidate| candidate.needs_pin);
        let here = here.map(|candidate| (&candidate.key.token, candidate.fit));
        // Whether it wants one shows only when it is attached.
        here.chain(away.iter().map(|away| (&away.token, away.fit)))
    };
    let is_sure = with_pin().any(|(_, fit)| fit == Fit::Yes);
    let mut asked = with_pin().filter(|(_, fit)| !is_sure || *fit == Fit::Yes);
    let first = asked.next().map(|(token, _)| token);
    if let Some(token) = first
        && asked.all(|(other, _)| other == token)
    {
        return Ok(token);
    }
    let here = here.iter().map(|candidate| {
        let Candidate { who, key, .. } = candidate;
        format!("\n  {who} on {}", key.token)
    });
    let away = away
        .iter()
        .map(|Away { who, token, .. }| format!("\n  {who} on {token} (not attached)"));
    let names = here.chain(away);
    Err(Failure::new(
        "keys on several tokens may open this, and the PIN that was given is that of one",
    )
    .coded("pin-for-several-tokens")
    .hint(format!(
        "say with whose key: claviger decrypt NAME FILE, where NAME is one of{}",
        names.collect::<String>()
    )))
}

/// Whether another key may be tried after this error: the token is not to be had, and no
/// PIN was sent.
fn may_go_on(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Token(
            Error::TokenUnavailable { .. }
                | Error::NoToken { .. }
                | Error::KeyNotFound { .. }
                | Error::PinNeeded { .. }
                | Error::PinLocked { .. }
                | Error::PinFinalTry { .. }
        )
    )
}

fn nobody(away: &[Away]) -> Failure {
    if away.is_empty() {
        return Failure::new("no identity here can open this")
            .coded("nobody-opens")
            .hint("it was encrypted to others; `claviger identities` lists who is here");
    }
    let names = away
        .iter()
        .map(|Away { who, token, .. }| format!("\n  {who} on {token}"));
    Failure::new("no token that is attached can open this")
        .coded("token-away")
        .hint(format!(
            "attach one of those that may:{}",
            names.collect::<String>()
        ))
}

/// Lets an identity's key unwrap what may be for it.
async fn unwrap<R: Read>(
    session: &Session,
    node: &Node,
    who: &EngineId,
    info: &IdentityInfo,
    key: &KeyInfo,
    file: &Sealed<R>,
) -> Result<Option<UnwrappedKey>, EngineError> {
    let engine = info
        .decryption_engine
        .as_ref()
        .ok_or(EngineError::CapabilitiesNotAvailable)?;
    let _busy = session.screen.spin("asking the token");
    let call = session.call();
    session
        .pins
        .only_for(Some(std::slice::from_ref(&key.token)));
    let decryptor = node.decryptor(who, engine, &call).await;
    let unwrapped = decryptor.and_then(|decryptor| Ok(file.unwrap(&*decryptor, &call)?));
    session.pins.only_for(None);
    unwrapped
}
