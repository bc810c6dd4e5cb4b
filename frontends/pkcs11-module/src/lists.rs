//! The lists of the functions, and the only functions that are exported: those that give them.
#![allow(
    non_snake_case,
    clippy::missing_safety_doc,
    reason = "the standard names them, and says what a caller has to do"
)]

use std::ffi::CStr;
use std::ptr::{addr_of, null_mut};

use cryptoki_sys::*;

use crate::entry::{Room, get, guarded, put};
use crate::functions::*;

const V2_40: CK_VERSION = CK_VERSION {
    major: 2,
    minor: 40,
};

/// A function that this module does not support, with any arguments.
trait Unsupported {
    const FUNCTION: Self;
}

macro_rules! unsupported {
    ($($argument:ident)*) => {
        impl<$($argument),*> Unsupported for unsafe extern "C" fn($($argument),*) -> CK_RV {
            const FUNCTION: Self = {
                unsafe extern "C" fn refuse<$($argument),*>($(_: $argument),*) -> CK_RV {
                    CKR_FUNCTION_NOT_SUPPORTED
                }
                refuse::<$($argument),*>
            };
        }
    };
}

unsupported!(A);
unsupported!(A B);
unsupported!(A B C);
unsupported!(A B C D);
unsupported!(A B C D E);
unsupported!(A B C D E F);
unsupported!(A B C D E F G);
unsupported!(A B C D E F G H);
unsupported!(A B C D E F G H I);

/// A list with the functions that both versions have, and those of the later one.
macro_rules! list {
    ($list:ident, $version:expr, $($more:tt)*) => {
        $list {
            version: $version,
            C_Initialize: Some(C_Initialize),
            C_Finalize: Some(C_Finalize),
            C_GetInfo: Some(C_GetInfo),
            C_GetFunctionList: Some(C_GetFunctionList),
            C_GetSlotList: Some(C_GetSlotList),
            C_GetSlotInfo: Some(C_GetSlotInfo),
            C_GetTokenInfo: Some(C_GetTokenInfo),
            C_GetMechanismList: Some(C_GetMechanismList),
            C_GetMechanismInfo: Some(C_GetMechanismInfo),
            C_InitToken: Some(Unsupported::FUNCTION),
            C_InitPIN: Some(Unsupported::FUNCTION),
            C_SetPIN: Some(Unsupported::FUNCTION),
            C_OpenSession: Some(C_OpenSession),
            C_CloseSession: Some(C_CloseSession),
            C_CloseAllSessions: Some(C_CloseAllSessions),
            C_GetSessionInfo: Some(C_GetSessionInfo),
            C_GetOperationState: Some(Unsupported::FUNCTION),
            C_SetOperationState: Some(Unsupported::FUNCTION),
            C_Login: Some(C_Login),
            C_Logout: Some(C_Logout),
            C_CreateObject: Some(Unsupported::FUNCTION),
            C_CopyObject: Some(Unsupported::FUNCTION),
            C_DestroyObject: Some(Unsupported::FUNCTION),
            C_GetObjectSize: Some(C_GetObjectSize),
            C_GetAttributeValue: Some(C_GetAttributeValue),
            C_SetAttributeValue: Some(Unsupported::FUNCTION),
            C_FindObjectsInit: Some(C_FindObjectsInit),
            C_FindObjects: Some(C_FindObjects),
            C_FindObjectsFinal: Some(C_FindObjectsFinal),
            C_EncryptInit: Some(Unsupported::FUNCTION),
            C_Encrypt: Some(Unsupported::FUNCTION),
            C_EncryptUpdate: Some(Unsupported::FUNCTION),
            C_EncryptFinal: Some(Unsupported::FUNCTION),
            C_DecryptInit: Some(Unsupported::FUNCTION),
            C_Decrypt: Some(Unsupported::FUNCTION),
            C_DecryptUpdate: Some(Unsupported::FUNCTION),
            C_DecryptFinal: Some(Unsupported::FUNCTION),
            C_DigestInit: Some(Unsupported::FUNCTION),
            C_Digest: Some(Unsupported::FUNCTION),
            C_DigestUpdate: Some(Unsupported::FUNCTION),
            C_DigestKey: Some(Unsupported::FUNCTION),
            C_DigestFinal: Some(Unsupported::FUNCTION),
            C_SignInit: Some(C_SignInit),
            C_Sign: Some(C_Sign),
            C_SignUpdate: Some(C_SignUpdate),
            C_SignFinal: Some(C_SignFinal),
            C_SignRecoverInit: Some(Unsupported::FUNCTION),
            C_SignRecover: Some(Unsupported::FUNCTION),
            C_VerifyInit: Some(Unsupported::FUNCTION),
            C_Verify: Some(Unsupported::FUNCTION),
            C_VerifyUpdate: Some(Unsupported::FUNCTION),
            C_VerifyFinal: Some(Unsupported::FUNCTION),
            C_VerifyRecoverInit: Some(Unsupported::FUNCTION),
            C_VerifyRecover: Some(Unsupported::FUNCTION),
            C_DigestEncryptUpdate: Some(Unsupported::FUNCTION),
            C_DecryptDigestUpdate: Some(Unsupported::FUNCTION),
            C_SignEncryptUpdate: Some(Unsupported::FUNCTION),
            C_DecryptVerifyUpdate: Some(Unsupported::FUNCTION),
            C_GenerateKey: Some(Unsupported::FUNCTION),
            C_GenerateKeyPair: Some(Unsupported::FUNCTION),
            C_WrapKey: Some(Unsupported::FUNCTION),
            C_UnwrapKey: Some(Unsupported::FUNCTION),
            C_DeriveKey: Some(Unsupported::FUNCTION),
            C_SeedRandom: Some(C_SeedRandom),
            C_GenerateRandom: Some(C_GenerateRandom),
            C_GetFunctionStatus: Some(C_GetFunctionStatus),
            C_CancelFunction: Some(C_CancelFunction),
            C_WaitForSlotEvent: Some(Unsupported::FUNCTION),
            $($more)*
        }
    };
}

static LIST_2_40: CK_FUNCTION_LIST = list!(CK_FUNCTION_LIST, V2_40,);

static LIST_3_0: CK_FUNCTION_LIST_3_0 = list!(CK_FUNCTION_LIST_3_0, V3_0,
    C_GetInterfaceList: Some(C_GetInterfaceList),
    C_GetInterface: Some(C_GetInterface),
    C_LoginUser: Some(C_LoginUser),
    C_SessionCancel: Some(C_SessionCancel),
    C_MessageEncryptInit: Some(Unsupported::FUNCTION),
    C_EncryptMessage: Some(Unsupported::FUNCTION),
    C_EncryptMessageBegin: Some(Unsupported::FUNCTION),
    C_EncryptMessageNext: Some(Unsupported::FUNCTION),
    C_MessageEncryptFinal: Some(Unsupported::FUNCTION),
    C_MessageDecryptInit: Some(Unsupported::FUNCTION),
    C_DecryptMessage: Some(Unsupported::FUNCTION),
    C_DecryptMessageBegin: Some(Unsupported::FUNCTION),
    C_DecryptMessageNext: Some(Unsupported::FUNCTION),
    C_MessageDecryptFinal: Some(Unsupported::FUNCTION),
    C_MessageSignInit: Some(Unsupported::FUNCTION),
    C_SignMessage: Some(Unsupported::FUNCTION),
    C_SignMessageBegin: Some(Unsupported::FUNCTION),
    C_SignMessageNext: Some(Unsupported::FUNCTION),
    C_MessageSignFinal: Some(Unsupported::FUNCTION),
    C_MessageVerifyInit: Some(Unsupported::FUNCTION),
    C_VerifyMessage: Some(Unsupported::FUNCTION),
    C_VerifyMessageBegin: Some(Unsupported::FUNCTION),
    C_VerifyMessageNext: Some(Unsupported::FUNCTION),
    C_MessageVerifyFinal: Some(Unsupported::FUNCTION),
);

/// The name of the standard's interface.
const NAME: &CStr = c"PKCS 11";

/// The interfaces, the one that is given by default first.
static INTERFACES: Interfaces = Interfaces([
    CK_INTERFACE {
        pInterfaceName: NAME.as_ptr().cast_mut().cast(),
        pFunctionList: addr_of!(LIST_3_0).cast_mut().cast(),
        flags: 0,
    },
    CK_INTERFACE {
        pInterfaceName: NAME.as_ptr().cast_mut().cast(),
        pFunctionList: addr_of!(LIST_2_40).cast_mut().cast(),
        flags: 0,
    },
]);

struct Interfaces([CK_INTERFACE; 2]);

// SAFETY: its pointers lead to what is never written.
unsafe impl Sync for Interfaces {}

impl Interfaces {
    fn with_version(&self, version: CK_VERSION) -> Option<&CK_INTERFACE> {
        let [of_3_0, of_2_40] = &self.0;
        match (version.major, version.minor) {
            (3, 0) => Some(of_3_0),
            (2, 40) => Some(of_2_40),
            _ => None,
        }
    }
}

/// Gives the functions of PKCS#11 2.40.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    guarded(|| {
        // SAFETY: the standard has the caller hand in null or a valid pointer.
        unsafe { put(list, addr_of!(LIST_2_40).cast_mut()) }
    })
}

/// Gives the interfaces (PKCS#11 3.0 §5.4.5).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterfaceList(
    interfaces: *mut CK_INTERFACE,
    count: *mut CK_ULONG,
) -> CK_RV {
    guarded(|| {
        // SAFETY: the standard has the caller hand in a list as long as its count, or none.
        let room = unsafe { Room::new(interfaces, count) }?;
        room.put(&INTERFACES.0)
    })
}

/// Gives an interface (PKCS#11 3.0 §5.4.6): of this name and version, or of any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterface(
    name: *mut CK_UTF8CHAR,
    version: *mut CK_VERSION,
    interface: *mut *mut CK_INTERFACE,
    flags: CK_FLAGS,
) -> CK_RV {
    guarded(|| {
        if interface.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        // SAFETY: null, or a text that ends with a zero byte, as the standard says.
        let is_ours = name.is_null() || unsafe { CStr::from_ptr(name.cast()) } == NAME;
        let wanted = match version.is_null() {
            true => V3_0,
            // SAFETY: it is not null, and the standard has the caller hand in a valid pointer.
            false => unsafe { get(version.cast_const()) }?,
        };
        // A child that was forked has to initialise the module anew.
        let found = INTERFACES.with_version(wanted);
        let found = found.filter(|found| is_ours && flags & !found.flags == 0);
        let found = found.map_or(null_mut(), |found| std::ptr::from_ref(found).cast_mut());
        match found.is_null() {
            true => Err(CKR_FUNCTION_FAILED),
            // SAFETY: it is not null, and the standard has the caller hand in a valid pointer.
            false => unsafe { put(interface, found) },
        }
    })
}
