//! Logging in: when a PIN is sent.

use std::sync::Arc;

use claviger_token::{
    Call, Error, Event, Pin, PinSource, PinVerdict, RefusedPins, TokenId, TriesLeft, refused,
};
use cryptoki::error::{Error as Ck, RvError};
use cryptoki::object::{Attribute, ObjectClass};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use secrecy::ExposeSecret;

use crate::error::from_module;
use crate::module::Module;
use crate::quirks::{self, Quirks};

/// How to log in: with whose PIN, and how much may be risked.
#[derive(Clone, Copy)]
pub(crate) struct Login<'a> {
    pub(crate) pins: &'a dyn PinSource,
    pub(crate) last_try: bool,
    /// Whether to send a PIN whose length the token says it does not take.
    pub(crate) any_length: bool,
    pub(crate) refused: &'a Arc<dyn RefusedPins>,
    /// For whose request.
    pub(crate) call: &'a Call,
}

/// Where to log in.
pub(crate) struct Door<'a> {
    pub(crate) module: &'a Module,
    pub(crate) slot: Slot,
    /// What the token said of itself a moment ago.
    pub(crate) info: &'a TokenInfo,
    pub(crate) id: &'a TokenId,
    pub(crate) quirks: &'static Quirks,
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
    door: &Door<'_>,
    session: &Session,
    how: &Login<'_>,
) -> Result<Option<Pin>, Error> {
    let Door { info, id, .. } = *door;
    if !info.login_required() || is_logged_in(session).map_err(|e| from_module(&e, id))? {
        return Ok(None);
    }
    check_flags(info, id, how.last_try)?;
    match info.protected_authentication_path() {
        true => login_at_device(door, session, how, UserType::User).map(|()| None),
        false => login_with_pin(door, session, how, UserType::User),
    }
}

/// Gives the PIN for the one operation that was begun with the session, by the same rules.
pub(crate) fn login_for_operation(
    door: &Door<'_>,
    session: &Session,
    how: &Login<'_>,
) -> Result<(), Error> {
    const ONCE: UserType = UserType::ContextSpecific;
    check_flags(door.info, door.id, how.last_try)?;
    match door.info.protected_authentication_path() {
        true => login_at_device(door, session, how, ONCE),
        false => login_with_pin(door, session, how, ONCE).map(drop),
    }
}

/// Where the PIN is typed at the token. PKCS#11 has no way to end that: the token does, when
/// nobody types.
fn login_at_device(
    door: &Door<'_>,
    session: &Session,
    how: &Login<'_>,
    user: UserType,
) -> Result<(), Error> {
    let token = door.id;
    how.call.check()?;
    how.call.tell(&Event::ApprovalNeeded {
        token: token.clone(),
    });
    let answer = session.login(user, None);
    how.call.tell(&Event::PersonDone {
        token: token.clone(),
    });
    match answer {
        Ok(()) | Err(Ck::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(Ck::Pkcs11(RvError::PinIncorrect, _)) => {
            let now = door.module.token_info(door.slot).ok();
            Err(after_refusal(now.as_ref(), door.id))
        }
        Err(other) => Err(from_module(&other, door.id)),
    }
}

fn login_with_pin(
    door: &Door<'_>,
    session: &Session,
    how: &Login<'_>,
    user: UserType,
) -> Result<Option<Pin>, Error> {
    let Door {
        module,
        slot,
        info,
        id,
        quirks,
    } = *door;
    let failed = |error: Ck| from_module(&error, id);
    let tries = tries_left(quirks, info);
    let pin = how.pins.pin_with_tries(id, info.label(), tries, how.call)?;
    if !how.any_length {
        check_length(&pin, info, id)?;
    }
    let holder = pin_holder(id, info, quirks);
    let mut shown_before = 0;
    // In the turn, since somebody else may have spent a try meanwhile.
    let tries_left = || {
        let before = module.token_info(slot).map_err(failed)?;
        check_flags(&before, id, how.last_try)?;
        check_answers(session, id)?;
        shown_before = shown(&before);
        Ok(tries_left(quirks, &before))
    };
    let asked = refused::PinAttempt {
        token: id,
        pin: &pin,
        pins: how.pins,
        label: info.label(),
        call: how.call,
    };
    let turn = refused::begin(&**how.refused, &holder, &asked, tries_left)?;
    // A copy for as long as the call takes; it is wiped.
    let sent = AuthPin::from(pin.expose_secret());
    let refusal = match session.login(user, Some(&sent)) {
        Ok(()) => {
            turn.end(&pin, PinVerdict::Accepted);
            return Ok(Some(pin));
        }
        Err(refusal) => refusal,
    };
    let after = module.token_info(slot).ok();
    let shown_after = after.as_ref().map(shown);
    let verdict = verdict(&refusal, shown_before, shown_after, quirks.shows_wrong_pins);
    if let Some(verdict) = verdict {
        turn.end(&pin, verdict);
    }
    match refusal {
        // Somebody else was quicker; of this PIN nothing is known.
        Ck::Pkcs11(RvError::UserAlreadyLoggedIn, _) => Ok(None),
        Ck::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid, _) => {
            Err(after_refusal(after.as_ref(), id))
        }
        Ck::Pkcs11(RvError::PinLenRange, _) => Err(pin_length(info, id)),
        other => Err(failed(other)),
    }
}

/// Under which name it is remembered what became of the token's PINs: where another driver
/// reaches the same card, under its.
fn pin_holder(id: &TokenId, info: &TokenInfo, quirks: &Quirks) -> TokenId {
    let serial = info.serial_number();
    match quirks.pin_of {
        Some((kind, manufacturer)) if !quirks::is_blank(serial) => TokenId {
            kind: kind.into(),
            manufacturer: manufacturer.into(),
            serial: serial.into(),
        },
        _ => id.clone(),
    }
}

/// What the token made of a PIN that it did not accept, where that is known: by what it
/// answered, and by what it showed [before](shown) and after, if it is still there.
fn verdict(
    refusal: &Ck,
    before: u8,
    after: Option<u8>,
    shows_wrong_pins: bool,
) -> Option<PinVerdict> {
    match refusal {
        Ck::Pkcs11(rv, _) if is_refusal(*rv) => Some(PinVerdict::Refused),
        Ck::Pkcs11(RvError::UserAlreadyLoggedIn, _) => Some(PinVerdict::NotJudged),
        // It says nothing about the PIN, but the token counted it.
        _ if after.is_some_and(|after| after > before) => Some(PinVerdict::Refused),
        // A TPM in its lock-out says so to the right one, too.
        Ck::Pkcs11(RvError::PinLocked, _) => Some(PinVerdict::NotJudged),
        refusal if is_before_comparing(refusal) => Some(PinVerdict::NotJudged),
        _ if shows_wrong_pins && after == Some(0) => Some(PinVerdict::NotJudged),
        // It may have failed after it counted the PIN.
        _ => None,
    }
}

/// Whether it says that the PIN is wrong.
fn is_refusal(rv: RvError) -> bool {
    matches!(rv, RvError::PinIncorrect | RvError::PinInvalid)
}

/// Whether it says that no PIN was compared, or that the PIN is right but has to be changed. That a session was closed or a token removed
/// does not: either may happen while it is compared.
fn is_before_comparing(refusal: &Ck) -> bool {
    match refusal {
        Ck::Pkcs11(rv, _) => matches!(
            rv,
            RvError::PinLenRange
                | RvError::PinExpired
                | RvError::UserPinNotInitialized
                | RvError::UserAnotherAlreadyLoggedIn
                | RvError::UserTooManyTypes
                | RvError::UserTypeInvalid
                | RvError::SessionHandleInvalid
                | RvError::SessionReadOnlyExists
                | RvError::OperationNotInitialized
                | RvError::FunctionNotSupported
                | RvError::ArgumentsBad
                | RvError::CryptokiNotInitialized
        ),
        // The module was not called.
        _ => true,
    }
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

/// Refuses to send a PIN to a token that cannot even be searched: it would fail then, too, and
/// what it made of the PIN would not be known.
fn check_answers(session: &Session, token: &TokenId) -> Result<(), Error> {
    let any = [Attribute::Class(ObjectClass::DATA), Attribute::Token(true)];
    match session.find_objects(&any) {
        Ok(_) | Err(Ck::Pkcs11(RvError::UserNotLoggedIn, _)) => Ok(()),
        Err(error) => match from_module(&error, token) {
            gone @ Error::TokenUnavailable { .. } => Err(gone),
            _ => Ok(()),
        },
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

fn tries_left(quirks: &Quirks, info: &TokenInfo) -> TriesLeft {
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
fn check_length(pin: &Pin, info: &TokenInfo, token: &TokenId) -> Result<(), Error> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki::context::Function;

    #[test]
    fn a_pin_is_not_judged_only_where_nothing_can_have_compared_it() {
        use PinVerdict::{NotJudged, Refused};
        use RvError as Rv;
        let verdict = |rv, before, after, shows| {
            verdict(&Ck::Pkcs11(rv, Function::Login), before, after, shows)
        };
        for rv in [Rv::PinIncorrect, Rv::PinInvalid] {
            assert_eq!(verdict(rv, 0, Some(0), true), Some(Refused), "{rv:?}");
        }
        // It says how the token stands, and nothing of the PIN unless it counted that.
        assert_eq!(verdict(Rv::PinLocked, 0, Some(0), false), Some(NotJudged));
        assert_eq!(verdict(Rv::PinLocked, 2, Some(3), false), Some(Refused));
        for rv in [
            Rv::UserAlreadyLoggedIn,
            Rv::PinLenRange,
            Rv::PinExpired,
            Rv::UserPinNotInitialized,
            Rv::UserAnotherAlreadyLoggedIn,
            Rv::SessionHandleInvalid,
        ] {
            assert_eq!(verdict(rv, 0, Some(0), false), Some(NotJudged), "{rv:?}");
        }
        for rv in [
            Rv::DeviceError,
            Rv::DeviceRemoved,
            Rv::GeneralError,
            Rv::FunctionFailed,
            Rv::SessionClosed,
        ] {
            // It is not known, and the token shows nothing.
            assert_eq!(verdict(rv, 0, Some(0), false), None, "{rv:?}");
            assert_eq!(verdict(rv, 0, None, true), None, "{rv:?}");
            // It would show a wrong one.
            assert_eq!(verdict(rv, 0, Some(0), true), Some(NotJudged), "{rv:?}");
            assert_eq!(verdict(rv, 1, Some(1), true), None, "{rv:?}");
            assert_eq!(verdict(rv, 0, Some(1), false), Some(Refused), "{rv:?}");
        }
    }
}
