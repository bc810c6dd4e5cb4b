//! Logging in: when a PIN is sent, and when it is not.

use std::sync::Arc;

use claviger_token::{Error, PinSource, PinVerdict, RefusedPins, TokenId, TriesLeft};
use cryptoki::error::{Error as Ck, RvError};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use secrecy::{ExposeSecret, SecretString};

use crate::error::from_module;
use crate::module::Module;
use crate::quirks;

/// How to log in: with whose PIN, and how much may be risked.
pub(crate) struct Login<'a> {
    pub(crate) pins: &'a dyn PinSource,
    pub(crate) last_try: bool,
    pub(crate) refused: &'a Arc<dyn RefusedPins>,
}

/// Whether the user is logged in, as this session sees it.
pub(crate) fn is_logged_in(session: &Session) -> Result<bool, Ck> {
    let state = session.get_session_info()?.session_state();
    Ok(matches!(state, SessionState::RoUser | SessionState::RwUser))
}

/// Logs in where the token wants it, and gives the PIN that the token accepted just
/// now.
///
/// A login is the whole process's (PKCS#11 v2.40 §2.6.8). If somebody else in the
/// process is logged in, no PIN is sent: the module would answer "already logged in"
/// to a wrong one as well, and nothing would be known of it.
pub(crate) fn login(
    module: &Module,
    session: &Session,
    slot: Slot,
    info: &TokenInfo,
    token: &TokenId,
    login: &Login<'_>,
) -> Result<Option<SecretString>, Error> {
    let failed = |error: Ck| from_module(&error, token);
    if !info.login_required() || is_logged_in(session).map_err(failed)? {
        return Ok(None);
    }
    check_flags(info, token, login.last_try)?;
    if info.protected_authentication_path() {
        return match session.login(UserType::User, None) {
            Ok(()) | Err(Ck::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(None),
            Err(Ck::Pkcs11(RvError::PinIncorrect, _)) => {
                let now = module.pkcs11.get_token_info(slot).ok();
                Err(after_refusal(now.as_ref(), token))
            }
            Err(other) => Err(failed(other)),
        };
    }
    let pin = login.pins.pin(token, info.label())?;
    check_length(&pin, info, token)?;
    let mut turn = login.refused.turn(token)?;
    // Somebody else may have spent a try meanwhile.
    let before = module.pkcs11.get_token_info(slot).map_err(failed)?;
    check_flags(&before, token, login.last_try)?;
    turn.begin(&pin, tries_left(module, &before))?;
    let refusal = match session.login(UserType::User, Some(&pin)) {
        Ok(()) => {
            turn.end(&pin, PinVerdict::Accepted);
            return Ok(Some(pin));
        }
        Err(refusal) => refusal,
    };
    let after = module.pkcs11.get_token_info(slot);
    match (&refusal, &after) {
        (Ck::Pkcs11(RvError::UserAlreadyLoggedIn, _), _) => {
            turn.end(&pin, PinVerdict::NotJudged);
        }
        (Ck::Pkcs11(rv, _), _) if is_refusal(*rv) => turn.end(&pin, PinVerdict::Refused),
        // It says nothing about the PIN, but the token counted it.
        (_, Ok(after)) if shown(after) > shown(&before) => turn.end(&pin, PinVerdict::Refused),
        (_, Ok(_)) => turn.end(&pin, PinVerdict::NotJudged),
        // It has gone, and what it made of the PIN is not known.
        (_, Err(_)) => {}
    }
    match refusal {
        // Somebody else was quicker; of this PIN nothing is known.
        Ck::Pkcs11(RvError::UserAlreadyLoggedIn, _) => Ok(None),
        Ck::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid, _) => {
            Err(after_refusal(after.ok().as_ref(), token))
        }
        Ck::Pkcs11(RvError::PinLenRange, _) => Err(pin_length(info, token)),
        other => Err(failed(other)),
    }
}

/// Whether it says that the PIN is wrong. A PIN that is of no good length was not
/// compared.
fn is_refusal(rv: RvError) -> bool {
    matches!(
        rv,
        RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLocked
    )
}

fn check_flags(info: &TokenInfo, token: &TokenId, last_try: bool) -> Result<(), Error> {
    let token = token.clone();
    if info.user_pin_locked() {
        Err(Error::PinLocked { token })
    } else if info.user_pin_final_try() && !last_try {
        Err(Error::PinFinalTry { token })
    } else {
        Ok(())
    }
}

/// How far the count of tries has fallen, as far as the token shows it.
fn shown(info: &TokenInfo) -> u8 {
    if info.user_pin_locked() {
        3
    } else if info.user_pin_final_try() {
        2
    } else {
        u8::from(info.user_pin_count_low())
    }
}

fn tries_left(module: &Module, info: &TokenInfo) -> TriesLeft {
    let library = &module.library.manufacturer;
    let quirks = quirks::of(library, info.manufacturer_id(), info.model());
    match shown(info) {
        0 if quirks.shows_wrong_pins => TriesLeft::All,
        0 => TriesLeft::Unknown,
        1 => TriesLeft::Low,
        _ => TriesLeft::Final,
    }
}

fn pin_length(info: &TokenInfo, token: &TokenId) -> Error {
    Error::PinLength {
        token: token.clone(),
        min: info.min_pin_length(),
        max: longest_pin(info),
    }
}

/// A maximum of zero is no statement.
fn longest_pin(info: &TokenInfo) -> usize {
    match info.max_pin_length() {
        0 => usize::MAX,
        max => max,
    }
}

/// Refuses a PIN that is not worth sending.
fn check_length(pin: &SecretString, info: &TokenInfo, token: &TokenId) -> Result<(), Error> {
    let length = pin.expose_secret().len();
    if length < info.min_pin_length().max(1) || length > longest_pin(info) {
        return Err(pin_length(info, token));
    }
    Ok(())
}

/// What the token's flags say after it refused a PIN.
fn after_refusal(info: Option<&TokenInfo>, token: &TokenId) -> Error {
    let token = token.clone();
    let tries = match info {
        Some(info) if info.user_pin_locked() => return Error::PinLocked { token },
        Some(info) if info.user_pin_final_try() => TriesLeft::Final,
        Some(info) if info.user_pin_count_low() => TriesLeft::Low,
        _ => TriesLeft::Unknown,
    };
    Error::PinWrong { token, tries }
}
