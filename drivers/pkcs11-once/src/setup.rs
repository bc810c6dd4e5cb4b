//! Calls before there is a session: an argument for `C_Initialize`, and a token with a malformed
//! clock.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr::{NonNull, null_mut};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error, Result, Rv, RvError};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki_sys::{
    CK_C_INITIALIZE_ARGS, CK_RV, CK_SLOT_ID, CK_TOKEN_INFO, CKF_CLOCK_ON_TOKEN, CKF_OS_LOCKING_OK,
};

/// What a module gets as the reserved argument of `C_Initialize`: a text. It is never freed,
/// since a module may keep the pointer.
#[derive(Debug, Clone, Copy)]
pub struct InitArgument(&'static CStr);

impl InitArgument {
    /// Hands `text` out for the life of the process.
    pub fn new(text: CString) -> Self {
        InitArgument(Box::leak(text.into_boxed_c_str()))
    }

    /// The text.
    pub fn text(&self) -> &CStr {
        self.0
    }
}

/// `C_Initialize`.
///
/// # Errors
/// What the module says.
pub fn initialise(
    module: &Pkcs11,
    flags: CInitializeFlags,
    argument: Option<&InitArgument>,
) -> Result<()> {
    module.initialize(match argument {
        None => CInitializeArgs::new(flags),
        // SAFETY: the text ends with a zero byte and is never freed. A module that wants
        // something else than a text there cannot be told by any user.
        Some(argument) => unsafe {
            CInitializeArgs::new_with_reserved(flags, NonNull::from(argument.0).cast())
        },
    })
}

/// `C_GetTokenInfo` without the clock.
#[derive(Debug, Clone, Copy)]
pub struct TokenInfos {
    token_info: unsafe extern "C" fn(CK_SLOT_ID, *mut CK_TOKEN_INFO) -> CK_RV,
    initialise: unsafe extern "C" fn(*mut std::ffi::c_void) -> CK_RV,
}

impl TokenInfos {
    /// Those of the module in the file `path`, as [`Once::of`](crate::Once::of) has it.
    ///
    /// # Errors
    /// As there.
    pub fn of(path: &Path) -> Result<Self> {
        let list = crate::functions(path)?;
        Ok(TokenInfos {
            token_info: list.C_GetTokenInfo.ok_or(Error::NullFunctionPointer)?,
            initialise: list.C_Initialize.ok_or(Error::NullFunctionPointer)?,
        })
    }

    /// What the token says of itself, as if it had no clock.
    ///
    /// # Errors
    /// What the module says, or [`Error::InvalidValue`] and the like where what it says makes
    /// no sense even so.
    pub fn without_clock(&self, slot: Slot) -> Result<TokenInfo> {
        let mut info = match self.ask(slot) {
            // p11-kit's modules make a new instance for each who asks for their functions.
            Err(Error::Pkcs11(RvError::CryptokiNotInitialized, _)) => {
                self.initialise()?;
                self.ask(slot)
            }
            other => other,
        }?;
        info.flags &= !CKF_CLOCK_ON_TOKEN;
        info.utcTime = [b' '; 16];
        TokenInfo::try_from(info)
    }

    fn ask(&self, slot: Slot) -> Result<CK_TOKEN_INFO> {
        let mut info = CK_TOKEN_INFO::default();
        // SAFETY: it writes one structure to where it is told.
        let rv = unsafe { (self.token_info)(slot.id() as CK_SLOT_ID, &raw mut info) };
        Rv::from(rv).into_result(Function::GetTokenInfo)?;
        Ok(info)
    }

    fn initialise(&self) -> Result<()> {
        let mut arguments = CK_C_INITIALIZE_ARGS {
            flags: CKF_OS_LOCKING_OK,
            pReserved: null_mut(),
            ..CK_C_INITIALIZE_ARGS::default()
        };
        // SAFETY: it reads one structure, and keeps no pointer to it.
        let rv = unsafe { (self.initialise)((&raw mut arguments).cast()) };
        Rv::from(rv).into_result(Function::Initialize)
    }
}
