//! Logging in: when a PIN is sent, and when it is not.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex};

use claviger_token::{Error, PinSource, TokenId, TriesLeft};
use cryptoki::context::Pkcs11;
use cryptoki::error::{Error as Ck, RvError};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use rand_core::{OsRng, RngCore};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::error::from_module;
use crate::module::lock;

/// How to log in: with whose PIN, and how much may be risked.
pub(crate) struct Login<'a> {
    pub(crate) pins: &'a dyn PinSource,
    pub(crate) last_try: bool,
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
    pkcs11: &Pkcs11,
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
    let pin = match info.protected_authentication_path() {
        true => None,
        false => Some(vetted(login.pins.pin(token, info.label())?, info, token)?),
    };
    let refusal = match session.login(UserType::User, pin.as_ref()) {
        Ok(()) => return Ok(pin),
        // Somebody else was quicker; of this PIN nothing is known.
        Err(Ck::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => return Ok(None),
        Err(refusal) => refusal,
    };
    let Ck::Pkcs11(rv, _) = refusal else {
        return Err(failed(refusal));
    };
    if let (RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, Some(pin)) =
        (rv, &pin)
    {
        lock(&REFUSED).insert(trace(token, pin));
    }
    Err(match rv {
        RvError::PinIncorrect | RvError::PinInvalid => {
            after_refusal(pkcs11.get_token_info(slot).ok().as_ref(), token)
        }
        RvError::PinLenRange => pin_length(info, token),
        _ => failed(refusal),
    })
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

fn pin_length(info: &TokenInfo, token: &TokenId) -> Error {
    Error::PinLength {
        token: token.clone(),
        min: info.min_pin_length(),
        max: info.max_pin_length(),
    }
}

/// The PIN, if it is worth sending.
fn vetted(pin: SecretString, info: &TokenInfo, token: &TokenId) -> Result<SecretString, Error> {
    let length = pin.expose_secret().len();
    let max = info.max_pin_length();
    // A maximum of zero is no statement.
    if length < info.min_pin_length().max(1) || (max > 0 && length > max) {
        return Err(pin_length(info, token));
    }
    if lock(&REFUSED).contains(&trace(token, &pin)) {
        return Err(Error::PinRefusedBefore {
            token: token.clone(),
        });
    }
    Ok(pin)
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

/// Traces of the PINs that were refused in this process, each with its token.
static REFUSED: LazyLock<Mutex<HashSet<[u8; 32]>>> = LazyLock::new(Mutex::default);

/// Random for each process, so that a trace is worth nothing elsewhere.
static SALT: LazyLock<[u8; 32]> = LazyLock::new(|| {
    let mut salt = [0; 32];
    OsRng.fill_bytes(&mut salt);
    salt
});

fn trace(token: &TokenId, pin: &SecretString) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(*SALT);
    for part in [&token.kind, &token.manufacturer, &token.serial] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(pin.expose_secret());
    hash.finalize().into()
}
