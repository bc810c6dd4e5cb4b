//! Errors from return values.

use claviger_token::{Error, TokenId};
use cryptoki::context::Function;
use cryptoki::error::{Error as Ck, RvError};

/// Why a step on a session failed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The module refused.
    Module(Ck),
    /// The session works, but the token behind it is not there or not logged in.
    Gone(String),
    /// The input cannot be opened; the module may still be busy with it.
    Input,
    /// Decided here; the session is as good as before.
    Ours(Error),
    /// Decided here; an operation may still be active in the session.
    Broken(Error),
}

impl From<Ck> for Fault {
    fn from(error: Ck) -> Self {
        Fault::Module(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Ours(error)
    }
}

impl Fault {
    /// Whether a new session, with a new login, may help.
    pub(crate) fn is_dead_session(&self) -> bool {
        match self {
            Fault::Module(Ck::Pkcs11(rv, function)) => {
                means_absent(*rv, *function) || matches!(rv, RvError::GeneralError)
            }
            Fault::Gone(_) => true,
            _ => false,
        }
    }

    /// Whether the session was said to be at work already when an operation was to begin, or
    /// not to be when one was to end. We never leave one so; tpm2-pkcs11 1.9.0 says it now
    /// and then when several threads sign. Nothing was done, and the session is closed.
    pub(crate) fn is_leftover(&self) -> bool {
        matches!(
            self,
            Fault::Module(
                Ck::Pkcs11(
                    RvError::OperationActive,
                    Function::SignInit | Function::DecryptInit | Function::FindObjectsInit
                ) | Ck::Pkcs11(
                    RvError::OperationNotInitialized,
                    Function::Sign | Function::Decrypt
                )
            )
        )
    }

    /// The error for the caller.
    pub(crate) fn into_error(self, token: &TokenId) -> Error {
        match self {
            Fault::Module(error) => from_module(&error, token),
            Fault::Gone(reason) => Error::TokenUnavailable {
                token: token.clone(),
                reason,
            },
            Fault::Input => Error::DecryptionFailed,
            Fault::Ours(error) | Fault::Broken(error) => error,
        }
    }
}

/// Return values that say that the session, the login or the token is gone.
fn means_absent(rv: RvError, function: Function) -> bool {
    let searches = matches!(function, Function::FindObjectsInit | Function::FindObjects);
    match rv {
        RvError::SessionHandleInvalid
        | RvError::SessionClosed
        | RvError::DeviceRemoved
        | RvError::DeviceError
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::SlotIdInvalid
        | RvError::UserNotLoggedIn
        | RvError::CryptokiNotInitialized => true,
        // Kryoptic has these two where it cannot read its file. A search needs nothing but
        // the token, and it cannot be full for what makes no object.
        RvError::GeneralError => searches,
        RvError::DeviceMemory => {
            searches
                || matches!(
                    function,
                    Function::SignInit
                        | Function::Sign
                        | Function::DecryptInit
                        | Function::Decrypt
                        | Function::GetAttributeValue
                )
        }
        _ => false,
    }
}

/// Whether the handle of an object is no longer one.
pub(crate) fn is_stale_handle(error: &Ck) -> bool {
    matches!(
        error,
        Ck::Pkcs11(RvError::KeyHandleInvalid | RvError::ObjectHandleInvalid, _)
    )
}

/// Whether the module itself has to be initialised (again).
pub(crate) fn is_uninitialised(error: &Ck) -> bool {
    matches!(error, Ck::Pkcs11(RvError::CryptokiNotInitialized, _))
}

/// Whether the module no longer reaches what its slots come from, such as a server (p11-kit's
/// client says `CKR_DEVICE_ERROR` from then on).
pub(crate) fn has_lost_its_tokens(error: &Ck) -> bool {
    matches!(
        error,
        Ck::Pkcs11(
            RvError::DeviceError
                | RvError::DeviceRemoved
                | RvError::TokenNotPresent
                | RvError::GeneralError
                | RvError::FunctionFailed,
            Function::GetSlotList
        )
    )
}

/// Whether there is no token in the slot that was asked about.
pub(crate) fn is_gone(error: &Ck) -> bool {
    matches!(
        error,
        Ck::Pkcs11(
            RvError::TokenNotPresent | RvError::SlotIdInvalid | RvError::DeviceRemoved,
            _
        )
    )
}

/// Whether what was to make an object made none, since there was no session or login to do
/// it with.
pub(crate) fn made_nothing(error: &Ck) -> bool {
    matches!(
        error,
        Ck::Pkcs11(
            RvError::UserNotLoggedIn
                | RvError::SessionHandleInvalid
                | RvError::SessionReadOnly
                | RvError::TokenWriteProtected
                | RvError::TokenNotPresent
                | RvError::CryptokiNotInitialized,
            _
        )
    )
}

/// Whether a refused private-key operation may be the fault of its input.
pub(crate) fn blames_input(error: &Ck) -> bool {
    matches!(
        error,
        Ck::Pkcs11(
            RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::DataInvalid
                | RvError::DataLenRange
                | RvError::ArgumentsBad
                | RvError::MechanismParamInvalid
                | RvError::DomainParamsInvalid
                | RvError::PublicKeyInvalid
                | RvError::FunctionFailed
                | RvError::BufferTooSmall,
            Function::Decrypt | Function::DeriveKey
        )
    )
}

/// Whether it says that the key is not to be used like this.
pub(crate) fn refuses_use(error: &Ck) -> bool {
    matches!(
        error,
        Ck::Pkcs11(
            RvError::KeyFunctionNotPermitted | RvError::KeyTypeInconsistent | RvError::KeySizeRange,
            Function::SignInit | Function::DecryptInit | Function::DeriveKey
        )
    )
}

/// The error for the caller.
pub(crate) fn from_module(error: &Ck, token: &TokenId) -> Error {
    let token = token.clone();
    let Ck::Pkcs11(rv, function) = error else {
        return not_a_return_value(error, token);
    };
    match rv {
        rv if means_absent(*rv, *function) => Error::TokenUnavailable {
            token,
            reason: format!("{}: {}", call(*function), status(*rv)),
        },
        RvError::DeviceMemory => Error::TokenFull { token },
        RvError::TokenWriteProtected
        | RvError::SessionReadOnly
        | RvError::SessionReadOnlyExists => Error::TokenReadOnly { token },
        RvError::PinLocked => Error::PinLocked { token },
        RvError::UserPinNotInitialized => Error::PinNotSet { token },
        RvError::DataLenRange if matches!(function, Function::Sign) => Error::BadMessage {
            reason: "it is too long for the token".into(),
        },
        RvError::SessionCount => Error::Busy { token },
        RvError::FunctionCanceled | RvError::Cancel => Error::Cancelled,
        // By the person at the token.
        RvError::FunctionRejected => Error::Rejected { token },
        rv => Error::Device {
            token,
            call: call(*function),
            status: status(*rv),
        },
    }
}

fn not_a_return_value(error: &Ck, token: TokenId) -> Error {
    match error {
        Ck::NullFunctionPointer | Ck::NotSupported | Ck::MissingSymbol(_) => Error::Device {
            token,
            call: "a function".into(),
            status: "not offered by the module".into(),
        },
        other => Error::MalformedReply {
            token,
            call: "a function".into(),
            reason: other.to_string(),
        },
    }
}

/// The function as the standard names it.
fn call(function: Function) -> String {
    format!("C_{function:?}")
}

/// The return value as the standard names it.
pub(crate) fn status(rv: RvError) -> String {
    match rv {
        RvError::VendorDefined(code) | RvError::UnknownErrorCode(code) => format!("{code:#010x}"),
        // Named like the constants, in another case.
        known => format!("{known:?}")
            .chars()
            .fold("CKR".to_owned(), |mut name, c| {
                if c.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(c.to_ascii_uppercase());
                name
            }),
    }
}

/// What to say of an error where no token is involved yet.
pub(crate) fn describe(error: &Ck) -> String {
    match error {
        Ck::Pkcs11(rv, function) => format!("{}: {}", call(*function), status(*rv)),
        Ck::MissingSymbol(_) => "it is not a PKCS#11 module".into(),
        Ck::LibraryLoading(error) => error.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> TokenId {
        TokenId {
            kind: "pkcs11".into(),
            manufacturer: "M".into(),
            serial: "1".into(),
        }
    }

    #[test]
    fn return_values_have_the_names_of_the_standard() {
        assert_eq!(status(RvError::GeneralError), "CKR_GENERAL_ERROR");
        assert_eq!(status(RvError::SlotIdInvalid), "CKR_SLOT_ID_INVALID");
        assert_eq!(status(RvError::VendorDefined(0x8000_0001)), "0x80000001");
    }

    #[test]
    fn return_values_become_the_error_that_says_what_to_do() {
        let of = |rv, function| from_module(&Ck::Pkcs11(rv, function), &token());
        let error = |rv| of(rv, Function::Sign);
        assert!(matches!(
            of(RvError::DeviceMemory, Function::GenerateKeyPair),
            Error::TokenFull { .. }
        ));
        assert!(matches!(
            error(RvError::DeviceMemory),
            Error::TokenUnavailable { .. }
        ));
        assert!(matches!(
            of(RvError::GeneralError, Function::FindObjectsInit),
            Error::TokenUnavailable { .. }
        ));
        assert!(matches!(error(RvError::GeneralError), Error::Device { .. }));
        assert!(matches!(
            error(RvError::SessionReadOnly),
            Error::TokenReadOnly { .. }
        ));
        assert!(matches!(
            error(RvError::FunctionRejected),
            Error::Rejected { .. }
        ));
        assert!(matches!(error(RvError::FunctionCanceled), Error::Cancelled));
        assert!(matches!(
            error(RvError::DeviceRemoved),
            Error::TokenUnavailable { .. }
        ));
        assert_eq!(
            error(RvError::KeyFunctionNotPermitted).to_string(),
            "C_Sign on pkcs11:M/1 failed: CKR_KEY_FUNCTION_NOT_PERMITTED"
        );
    }
}
