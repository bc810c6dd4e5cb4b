//! Errors as PKCS#11 has them.

use claviger_client::Error;
use cryptoki_sys::{
    CK_RV, CKR_DATA_INVALID, CKR_DATA_LEN_RANGE, CKR_DEVICE_ERROR, CKR_DEVICE_REMOVED,
    CKR_FUNCTION_CANCELED, CKR_FUNCTION_FAILED, CKR_FUNCTION_REJECTED,
    CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_PIN_INCORRECT, CKR_PIN_LEN_RANGE, CKR_PIN_LOCKED,
    CKR_USER_NOT_LOGGED_IN,
};

/// What the daemon answered, or why it did not answer.
pub(crate) fn of(error: &Error) -> CK_RV {
    match error {
        Error::Refused(_) => of_code(error.code()),
        Error::Deadline | Error::Cancelled => CKR_FUNCTION_CANCELED,
        Error::ReplyTooLong { .. } | Error::Input(_) => CKR_FUNCTION_FAILED,
        // It is not there, or is not the one that it was.
        _ => CKR_DEVICE_REMOVED,
    }
}

/// A code of the daemon's: see ERRORS.md.
fn of_code(code: &str) -> CK_RV {
    match code {
        "pin-wrong" | "pin-refused-before" | "pin-differs" => CKR_PIN_INCORRECT,
        "pin-locked" | "pin-final-try" => CKR_PIN_LOCKED,
        "pin-length" => CKR_PIN_LEN_RANGE,
        "pin-needed" | "pin-unsettled" | "locked" => CKR_USER_NOT_LOGGED_IN,
        "not-allowed" => CKR_KEY_FUNCTION_NOT_PERMITTED,
        "reserved-message" | "not-for-purpose" => CKR_DATA_INVALID,
        "bad-message" | "data-too-long" => CKR_DATA_LEN_RANGE,
        "no-token" | "token-unavailable" | "key-not-found" | "identity-deleted" | "draining"
        | "no-such-engine" => CKR_DEVICE_REMOVED,
        "deadline-exceeded" | "cancelled" => CKR_FUNCTION_CANCELED,
        "rejected" => CKR_FUNCTION_REJECTED,
        "device" | "malformed-reply" | "busy" => CKR_DEVICE_ERROR,
        _ => CKR_FUNCTION_FAILED,
    }
}
