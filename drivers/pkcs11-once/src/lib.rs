//! The PKCS#11 calls that the crate `cryptoki` does not offer: above all `C_Sign` and `C_Decrypt`,
//! each called once, with a buffer whose length the caller knows.
//!
//! ```
//! use claviger_pkcs11_once::Once;
//! use cryptoki::error::Result;
//! use cryptoki::mechanism::Mechanism;
//! use cryptoki::object::ObjectHandle;
//! use cryptoki::session::Session;
//!
//! /// A P-256 signature of a digest: two calls, where `cryptoki` makes three.
//! fn sign(once: &Once, session: &Session, key: ObjectHandle, digest: &[u8]) -> Result<[u8; 64]> {
//!     let mut signature = [0; 64];
//!     session.sign_init(&Mechanism::Ecdsa, key)?;
//!     once.sign(session, digest, &mut signature)?;
//!     Ok(signature)
//! }
//! ```
//!
//! `cryptoki` (0.12.1) asks for the length of every result before it asks for the result. That
//! doubles the calls, and the work on devices that compute both times. NSS 3.125 even fails: it
//! states 144 bytes for an Ed25519 signature and then accepts only a buffer of 64. A PIN for one
//! operation (`CKA_ALWAYS_AUTHENTICATE`) must come between `C_SignInit` and `C_Sign`, which
//! `cryptoki` calls together.
//!
//! `cryptoki` exposes session handles, but not the functions of the module, so this crate asks
//! the module for them again. A session handle is a number that the module checks (PKCS#11 v2.40
//! §5.1.2). With the functions of another module, or of another instance of this one, it gives an
//! error. [`Once::know`] tells whether they belong together.
//!
//! This crate has all `unsafe` code of the drivers. CONTRIBUTING.md says how to run its tests under
//! a sanitizer.

use std::path::Path;

use cryptoki::context::Function;
use cryptoki::error::{Error, Result, Rv, RvError};
use cryptoki::session::Session;
use cryptoki_sys::{
    CK_BYTE_PTR, CK_FUNCTION_LIST, CK_RV, CK_SESSION_HANDLE, CK_SESSION_INFO, CK_ULONG,
    CK_ULONG_PTR,
};
use libloading::Library;

mod setup;

pub use setup::{InitArgument, TokenInfos, initialise};

/// `C_Sign` and `C_Decrypt` look the same: session, input, its length, output, its length.
type Finish = unsafe extern "C" fn(
    CK_SESSION_HANDLE,
    CK_BYTE_PTR,
    CK_ULONG,
    CK_BYTE_PTR,
    CK_ULONG_PTR,
) -> CK_RV;

type SessionInfo = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_SESSION_INFO) -> CK_RV;

type GetFunctionList = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;

/// The functions of a module that end an operation.
#[derive(Debug, Clone, Copy)]
pub struct Once {
    sign: Finish,
    decrypt: Finish,
    session_info: SessionInfo,
}

impl Once {
    /// Those of the module in the file `path`, which `cryptoki` has loaded already. It stays
    /// loaded for the life of the process.
    ///
    /// # Errors
    /// Where the file is no module, or has not all of the functions.
    pub fn of(path: &Path) -> Result<Self> {
        let list = functions(path)?;
        Ok(Once {
            sign: list.C_Sign.ok_or(Error::NullFunctionPointer)?,
            decrypt: list.C_Decrypt.ok_or(Error::NullFunctionPointer)?,
            session_info: list.C_GetSessionInfo.ok_or(Error::NullFunctionPointer)?,
        })
    }

    /// Whether these functions know the session. p11-kit's modules make a new instance for each
    /// who asks for their functions, and it has sessions of its own.
    pub fn know(&self, session: &Session) -> bool {
        let mut info = CK_SESSION_INFO::default();
        // SAFETY: it writes one structure to where it is told.
        let rv = unsafe { (self.session_info)(session.handle(), &raw mut info) };
        Rv::from(rv) == Rv::Ok
    }

    /// `C_Sign`, after [`Session::sign_init`]; gives the length of the signature in `buffer`.
    ///
    /// # Errors
    /// What the module says.
    pub fn sign(&self, session: &Session, data: &[u8], buffer: &mut [u8]) -> Result<usize> {
        finish(self.sign, Function::Sign, session.handle(), data, buffer)
    }

    /// `C_Decrypt`, after [`Session::decrypt_init`]; gives the length of the plaintext in
    /// `buffer`.
    ///
    /// # Errors
    /// What the module says.
    pub fn decrypt(&self, session: &Session, data: &[u8], buffer: &mut [u8]) -> Result<usize> {
        finish(
            self.decrypt,
            Function::Decrypt,
            session.handle(),
            data,
            buffer,
        )
    }
}

/// The functions of the module in the file `path`, which `cryptoki` has loaded already.
fn functions(path: &Path) -> Result<&'static CK_FUNCTION_LIST> {
    // SAFETY: the library is loaded already, so nothing of it is run.
    let library = unsafe { Library::new(path) }.map_err(Error::LibraryLoading)?;
    // SAFETY: the name has this type in every library that has it (PKCS#11 v2.40 §5.4). Only this
    // one is looked up: all that `cryptoki-sys` knows take a tenth of a millisecond.
    let get = unsafe { library.get::<GetFunctionList>(b"C_GetFunctionList\0") };
    let get = get.map_err(|_| Error::MissingSymbol("C_GetFunctionList"))?;
    let mut list = std::ptr::null_mut();
    // SAFETY: it writes one pointer to where it is told.
    Rv::from(unsafe { get(&raw mut list) }).into_result(Function::GetFunctionList)?;
    // What the functions point to is never unloaded.
    std::mem::forget(library);
    // SAFETY: after CKR_OK it is null or points to a list that lasts as long as the library
    // (PKCS#11 v2.40 §5.4).
    unsafe { list.as_ref() }.ok_or(Error::NullFunctionPointer)
}

fn finish(
    call: Finish,
    name: Function,
    session: CK_SESSION_HANDLE,
    data: &[u8],
    buffer: &mut [u8],
) -> Result<usize> {
    let mut length = buffer.len().try_into()?;
    // SAFETY: both lengths are those of what the pointers point to. The module reads the data,
    // though its type says otherwise, and writes no more than `length` bytes.
    let rv = unsafe {
        let (from, to) = (data.as_ptr().cast_mut(), buffer.as_mut_ptr());
        call(session, from, data.len().try_into()?, to, &raw mut length)
    };
    Rv::from(rv).into_result(name)?;
    let length = usize::try_from(length)?;
    match length <= buffer.len() {
        true => Ok(length),
        // It says that it wrote more than there is room for.
        false => Err(Error::Pkcs11(RvError::BufferTooSmall, name)),
    }
}

#[cfg(test)]
mod tests;
