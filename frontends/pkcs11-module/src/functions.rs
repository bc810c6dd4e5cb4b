//! The functions of the standard (PKCS#11 2.40 and 3.0).
//!
//! Each does three things: it turns what C hands in into values, has the work done, and puts the
//! result where C wants it.
#![allow(
    non_snake_case,
    clippy::missing_safety_doc,
    reason = "the standard names them, and says what a caller has to do"
)]

use std::ffi::c_void;

use cryptoki_sys::*;
use rand_core::{OsRng, RngCore};

use crate::entry::{Done, Room, get, guarded, put, slice, slice_mut};
use crate::objects::Value;
use crate::process::Process;
use crate::tokens::{MANUFACTURER, VERSION, padded};

/// The version of the standard.
pub(crate) const V3_0: CK_VERSION = CK_VERSION { major: 3, minor: 0 };

/// What cannot be said, as a length.
const UNAVAILABLE: CK_ULONG = CK_ULONG::MAX;

pub(crate) unsafe extern "C" fn C_Initialize(arguments: *mut c_void) -> CK_RV {
    guarded(|| {
        let arguments = arguments.cast::<CK_C_INITIALIZE_ARGS>().cast_const();
        if !arguments.is_null() {
            // SAFETY: the standard has the caller hand in null, or these arguments.
            check_locking(&unsafe { get(arguments) }?)?;
        }
        Process::initialise()
    })
}

/// The locks of the system serve here; those of the caller are not used.
fn check_locking(arguments: &CK_C_INITIALIZE_ARGS) -> Done {
    let given = [
        arguments.CreateMutex.is_some(),
        arguments.DestroyMutex.is_some(),
        arguments.LockMutex.is_some(),
        arguments.UnlockMutex.is_some(),
    ];
    let count = given.iter().filter(|is_given| **is_given).count();
    match (count, arguments.flags & CKF_OS_LOCKING_OK != 0) {
        _ if !arguments.pReserved.is_null() => Err(CKR_ARGUMENTS_BAD),
        (1..=3, _) => Err(CKR_ARGUMENTS_BAD),
        (4, false) => Err(CKR_CANT_LOCK),
        _ => Ok(()),
    }
}

pub(crate) unsafe extern "C" fn C_Finalize(reserved: *mut c_void) -> CK_RV {
    guarded(|| match reserved.is_null() {
        true => Process::finalise(),
        false => Err(CKR_ARGUMENTS_BAD),
    })
}

pub(crate) unsafe extern "C" fn C_GetInfo(info: *mut CK_INFO) -> CK_RV {
    guarded(|| {
        Process::this()?.with(|_| Ok(()))?;
        let about = CK_INFO {
            cryptokiVersion: V3_0,
            manufacturerID: padded(MANUFACTURER),
            flags: 0,
            libraryDescription: padded("Identities of a Claviger daemon"),
            libraryVersion: VERSION,
        };
        // SAFETY: the standard has the caller hand in null or a valid pointer.
        unsafe { put(info, about) }
    })
}

pub(crate) unsafe extern "C" fn C_GetSlotList(
    only_with_token: CK_BBOOL,
    list: *mut CK_SLOT_ID,
    count: *mut CK_ULONG,
) -> CK_RV {
    guarded(|| {
        // SAFETY: the standard has the caller hand in a list as long as its count, or none.
        let room = unsafe { Room::new(list, count) }?;
        let process = Process::this()?;
        if process.with(|sessions| Ok(sessions.is_new()))? || room.is_question() {
            look(process)?;
        }
        let slots = process.with(|sessions| Ok(sessions.slots(only_with_token != CK_FALSE)))?;
        room.put(&slots)
    })
}

/// Looks which identities there are. Without a daemon there are none.
fn look(process: &Process) -> Done {
    let daemon = &process.daemon;
    let seen = daemon
        .identities("")
        .and_then(|identities| Ok((identities, daemon.status()?)));
    process.with(|sessions| {
        match seen {
            Err(CKR_DEVICE_REMOVED) => sessions.update_away(),
            seen => {
                let (identities, status) = seen?;
                sessions.update(identities, &status);
            }
        }
        Ok(())
    })
}

pub(crate) unsafe extern "C" fn C_GetSlotInfo(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO) -> CK_RV {
    guarded(|| {
        let about = Process::this()?.with(|sessions| Ok(sessions.token(slot)?.slot_info()))?;
        // SAFETY: the standard has the caller hand in null or a valid pointer.
        unsafe { put(info, about) }
    })
}

pub(crate) unsafe extern "C" fn C_GetTokenInfo(
    slot: CK_SLOT_ID,
    info: *mut CK_TOKEN_INFO,
) -> CK_RV {
    guarded(|| {
        let process = Process::this()?;
        process.with(|sessions| sessions.present(slot).map(drop))?;
        // Somebody may have unlocked it meanwhile.
        let status = process.daemon.status()?;
        let about = process.with(|sessions| {
            let open = sessions.count(slot);
            let token = sessions.token_mut(slot)?;
            token.look_at(&status);
            Ok(token.token_info(open))
        })?;
        // SAFETY: the standard has the caller hand in null or a valid pointer.
        unsafe { put(info, about) }
    })
}

pub(crate) unsafe extern "C" fn C_GetMechanismList(
    slot: CK_SLOT_ID,
    list: *mut CK_MECHANISM_TYPE,
    count: *mut CK_ULONG,
) -> CK_RV {
    guarded(|| {
        // SAFETY: the standard has the caller hand in a list as long as its count, or none.
        let room = unsafe { Room::new(list, count) }?;
        let known = Process::this()?.with(|sessions| {
            let known = sessions.present(slot)?.objects.key().mechanisms();
            Ok(known.iter().map(|known| known.number).collect::<Vec<_>>())
        })?;
        room.put(&known)
    })
}

pub(crate) unsafe extern "C" fn C_GetMechanismInfo(
    slot: CK_SLOT_ID,
    mechanism: CK_MECHANISM_TYPE,
    info: *mut CK_MECHANISM_INFO,
) -> CK_RV {
    guarded(|| {
        let about = Process::this()?.with(|sessions| {
            let key = sessions.present(slot)?.objects.key();
            key.mechanism(mechanism).ok_or(CKR_MECHANISM_INVALID)?;
            Ok(key.mechanism_info())
        })?;
        // SAFETY: the standard has the caller hand in null or a valid pointer.
        unsafe { put(info, about) }
    })
}

pub(crate) unsafe extern "C" fn C_OpenSession(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    _application: *mut c_void,
    _notify: CK_NOTIFY,
    session: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    guarded(|| {
        if session.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let opened = Process::this()?.with(|sessions| sessions.open(slot, flags))?;
        // SAFETY: the standard has the caller hand in null or a valid pointer.
        unsafe { put(session, opened) }
    })
}

pub(crate) unsafe extern "C" fn C_CloseSession(session: CK_SESSION_HANDLE) -> CK_RV {
    guarded(|| Process::this()?.with(|sessions| sessions.close(session)))
}

pub(crate) unsafe extern "C" fn C_CloseAllSessions(slot: CK_SLOT_ID) -> CK_RV {
    guarded(|| Process::this()?.with(|sessions| sessions.close_all(slot)))
}

pub(crate) unsafe extern "C" fn C_GetSessionInfo(
    session: CK_SESSION_HANDLE,
    info: *mut CK_SESSION_INFO,
) -> CK_RV {
    guarded(|| {
        let about = Process::this()?.with(|sessions| sessions.info(session))?;
        // SAFETY: the standard has the caller hand in null or a valid pointer.
        unsafe { put(info, about) }
    })
}

pub(crate) unsafe extern "C" fn C_Login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    length: CK_ULONG,
) -> CK_RV {
    guarded(|| {
        let process = Process::this()?;
        let token = process.with(|sessions| Ok(sessions.token_of(session)?.clone()))?;
        match user {
            CKU_USER => {}
            CKU_CONTEXT_SPECIFIC => return Err(CKR_OPERATION_NOT_INITIALIZED),
            _ => return Err(CKR_USER_TYPE_INVALID),
        }
        let status = process.daemon.status()?;
        let needs_login = process.with(|sessions| {
            let token = sessions.token_of(session)?;
            token.look_at(&status);
            match token.is_logged_in {
                true => Err(CKR_USER_ALREADY_LOGGED_IN),
                false => Ok(token.needs_login),
            }
        })?;
        // A PIN that nobody needs is not sent.
        if needs_login {
            if pin.is_null() {
                return Err(CKR_ARGUMENTS_BAD);
            }
            // SAFETY: it is not null, and the standard has the caller say how long it is.
            let pin = unsafe { slice(pin.cast_const(), length) }?;
            process.daemon.unlock(&token.device, &token.backend, pin)?;
        }
        process.with(|sessions| {
            let token = sessions.token_of(session)?;
            token.is_logged_in = true;
            token.needs_login = false;
            Ok(())
        })
    })
}

pub(crate) unsafe extern "C" fn C_LoginUser(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    length: CK_ULONG,
    _name: *mut CK_UTF8CHAR,
    name_length: CK_ULONG,
) -> CK_RV {
    match name_length {
        // SAFETY: what the caller hands in is handed on.
        0 => unsafe { C_Login(session, user, pin, length) },
        _ => CKR_FUNCTION_NOT_SUPPORTED,
    }
}

pub(crate) unsafe extern "C" fn C_Logout(session: CK_SESSION_HANDLE) -> CK_RV {
    guarded(|| {
        Process::this()?.with(|sessions| {
            let token = sessions.token_of(session)?;
            match std::mem::take(&mut token.is_logged_in) {
                true => Ok(()),
                false => Err(CKR_USER_NOT_LOGGED_IN),
            }
        })
    })
}

pub(crate) unsafe extern "C" fn C_GetObjectSize(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    size: *mut CK_ULONG,
) -> CK_RV {
    guarded(|| {
        Process::this()?.with(|sessions| check_object(sessions, session, object))?;
        // SAFETY: the standard has the caller hand in null or a valid pointer.
        unsafe { put(size, UNAVAILABLE) }
    })
}

fn check_object(
    sessions: &mut crate::sessions::Sessions,
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
) -> Done {
    match sessions.token_of(session)?.objects.has(object) {
        true => Ok(()),
        false => Err(CKR_OBJECT_HANDLE_INVALID),
    }
}

pub(crate) unsafe extern "C" fn C_GetAttributeValue(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    guarded(|| {
        let process = Process::this()?;
        process.with(|sessions| check_object(sessions, session, object))?;
        if template.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        // SAFETY: it is not null, and the standard has the caller say how many there are.
        let wanted = unsafe { slice_mut(template, count) }?;
        let objects = process.with(|sessions| Ok(sessions.token_of(session)?.objects.clone()))?;
        let mut done = Ok(());
        for attribute in wanted {
            let value = objects.attribute(object, attribute.type_);
            // SAFETY: the standard has the caller hand in attributes with no room, or with as much
            // as they say.
            if let Err(code) = unsafe { show(attribute, value) } {
                done = Err(code);
            }
        }
        done
    })
}

/// Puts a value where an attribute wants it.
///
/// # Safety
/// The attribute's value is null, or valid for as many writes as it says.
unsafe fn show(attribute: &mut CK_ATTRIBUTE, value: Value) -> Done {
    let value = match value {
        Value::Is(value) => value,
        Value::Sensitive => {
            attribute.ulValueLen = UNAVAILABLE;
            return Err(CKR_ATTRIBUTE_SENSITIVE);
        }
        Value::None => {
            attribute.ulValueLen = UNAVAILABLE;
            return Err(CKR_ATTRIBUTE_TYPE_INVALID);
        }
    };
    let length = value.len() as CK_ULONG;
    if !attribute.pValue.is_null() && attribute.ulValueLen < length {
        attribute.ulValueLen = UNAVAILABLE;
        return Err(CKR_BUFFER_TOO_SMALL);
    }
    if !attribute.pValue.is_null() {
        let to = attribute.pValue.cast::<u8>();
        // SAFETY: there is room for as many, as was just looked at, and they are no values of C's.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), to, value.len()) };
    }
    attribute.ulValueLen = length;
    Ok(())
}

pub(crate) unsafe extern "C" fn C_FindObjectsInit(
    session: CK_SESSION_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    guarded(|| {
        let process = Process::this()?;
        let name = process.with(|sessions| Ok(sessions.token_of(session)?.name.clone()))?;
        // SAFETY: the standard has the caller say how many there are.
        let wanted = unsafe { slice(template.cast_const(), count) }?;
        let mut fitting = Vec::with_capacity(wanted.len());
        for attribute in wanted {
            let value = attribute.pValue.cast::<u8>().cast_const();
            // SAFETY: the standard has the caller say how long each is.
            let value = unsafe { slice(value, attribute.ulValueLen) }?;
            fitting.push((attribute.type_, value.to_vec()));
        }
        // A certificate may have come meanwhile.
        let identity = process.daemon.identities(&name)?.into_iter().next();
        process.with(|sessions| {
            sessions.update_certificates(session, identity)?;
            sessions.find(session, &fitting)
        })
    })
}

pub(crate) unsafe extern "C" fn C_FindObjects(
    session: CK_SESSION_HANDLE,
    objects: *mut CK_OBJECT_HANDLE,
    most: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    guarded(|| {
        if count.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        // SAFETY: the standard has the caller say how many fit.
        let room = unsafe { slice_mut(objects, most) }?;
        let found = Process::this()?.with(|sessions| sessions.found(session, room.len()))?;
        room[..found.len()].copy_from_slice(&found);
        // SAFETY: the standard has the caller hand in a valid pointer, and it is not null.
        unsafe { put(count, found.len() as CK_ULONG) }
    })
}

pub(crate) unsafe extern "C" fn C_FindObjectsFinal(session: CK_SESSION_HANDLE) -> CK_RV {
    guarded(|| Process::this()?.with(|sessions| sessions.end_search(session)))
}

pub(crate) unsafe extern "C" fn C_SignInit(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    guarded(|| {
        // SAFETY: the standard has the caller hand in null or a valid pointer.
        let mechanism = unsafe { get(mechanism.cast_const()) }?;
        // SAFETY: the standard has the caller say what its parameter is.
        unsafe { check_parameter(&mechanism) }?;
        let process = Process::this()?;
        process.with(|sessions| sessions.begin_signature(session, mechanism.mechanism, key))
    })
}

/// No mechanism here has a parameter, but for that of Ed25519, which may say that it is the plain
/// one (PKCS#11 3.0 §2.3.14).
///
/// # Safety
/// The parameter of `CKM_EDDSA` is null, or that of the standard if it is as long.
unsafe fn check_parameter(mechanism: &CK_MECHANISM) -> Done {
    let is_edwards = mechanism.mechanism == CKM_EDDSA
        && mechanism.ulParameterLen == size_of::<CK_EDDSA_PARAMS>() as CK_ULONG;
    if is_edwards {
        let parameter = mechanism.pParameter.cast::<CK_EDDSA_PARAMS>().cast_const();
        // SAFETY: it is null, or as long as it has to be; where it stands need not be aligned.
        let parameter = match parameter.is_null() {
            true => return Err(CKR_MECHANISM_PARAM_INVALID),
            false => unsafe { parameter.read_unaligned() },
        };
        return match parameter.phFlag == CK_FALSE && parameter.ulContextDataLen == 0 {
            true => Ok(()),
            false => Err(CKR_MECHANISM_PARAM_INVALID),
        };
    }
    match mechanism.ulParameterLen {
        0 => Ok(()),
        _ => Err(CKR_MECHANISM_PARAM_INVALID),
    }
}

pub(crate) unsafe extern "C" fn C_Sign(
    session: CK_SESSION_HANDLE,
    data: *mut CK_BYTE,
    data_length: CK_ULONG,
    signature: *mut CK_BYTE,
    signature_length: *mut CK_ULONG,
) -> CK_RV {
    guarded(|| {
        // SAFETY: the standard has the caller say how long it is.
        let data = unsafe { slice(data.cast_const(), data_length) }?;
        // SAFETY: the standard has the caller hand in a buffer as long as it says, or none.
        let room = unsafe { Room::new(signature, signature_length) }?;
        sign(session, data, &room, false)
    })
}

/// Signs, if the signature fits; the length is told without the daemon.
fn sign(session: CK_SESSION_HANDLE, rest: &[u8], room: &Room<u8>, in_parts: bool) -> Done {
    let process = Process::this()?;
    let length = process.with(|sessions| sessions.signature_length(session, in_parts))?;
    if !room.announce(length)? {
        return Ok(());
    }
    let to_sign = process.with(|sessions| sessions.end_signature(session, rest))?;
    let signed = to_sign.sign(&process.daemon);
    if signed
        .as_ref()
        .is_err_and(|code| *code == CKR_USER_NOT_LOGGED_IN)
    {
        // The session may be closed by now, which is not what is answered.
        let _ = process.with(|sessions| sessions.log_out(session));
    }
    room.put(&signed?)
}

pub(crate) unsafe extern "C" fn C_SignUpdate(
    session: CK_SESSION_HANDLE,
    part: *mut CK_BYTE,
    length: CK_ULONG,
) -> CK_RV {
    guarded(|| {
        // SAFETY: the standard has the caller say how long it is.
        let part = unsafe { slice(part.cast_const(), length) }?;
        Process::this()?.with(|sessions| sessions.add(session, part))
    })
}

pub(crate) unsafe extern "C" fn C_SignFinal(
    session: CK_SESSION_HANDLE,
    signature: *mut CK_BYTE,
    signature_length: *mut CK_ULONG,
) -> CK_RV {
    guarded(|| {
        // SAFETY: the standard has the caller hand in a buffer as long as it says, or none.
        let room = unsafe { Room::new(signature, signature_length) }?;
        sign(session, &[], &room, true)
    })
}

pub(crate) unsafe extern "C" fn C_SessionCancel(
    session: CK_SESSION_HANDLE,
    flags: CK_FLAGS,
) -> CK_RV {
    guarded(|| Process::this()?.with(|sessions| sessions.cancel(session, flags)))
}

pub(crate) unsafe extern "C" fn C_SeedRandom(
    _: CK_SESSION_HANDLE,
    _: *mut CK_BYTE,
    _: CK_ULONG,
) -> CK_RV {
    CKR_RANDOM_SEED_NOT_SUPPORTED
}

pub(crate) unsafe extern "C" fn C_GenerateRandom(
    session: CK_SESSION_HANDLE,
    random: *mut CK_BYTE,
    length: CK_ULONG,
) -> CK_RV {
    guarded(|| {
        Process::this()?.with(|sessions| sessions.token_of(session).map(drop))?;
        // SAFETY: the standard has the caller say how long it is.
        let random = unsafe { slice_mut(random, length) }?;
        // The system's: tokens of the daemon give none away.
        let filled = OsRng.try_fill_bytes(random);
        filled.map_err(|_| CKR_FUNCTION_FAILED)
    })
}

pub(crate) unsafe extern "C" fn C_GetFunctionStatus(_: CK_SESSION_HANDLE) -> CK_RV {
    CKR_FUNCTION_NOT_PARALLEL
}

pub(crate) unsafe extern "C" fn C_CancelFunction(_: CK_SESSION_HANDLE) -> CK_RV {
    CKR_FUNCTION_NOT_PARALLEL
}
