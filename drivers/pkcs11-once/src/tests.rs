//! With functions that do all that a module may do with a buffer. Meant to be run under a
//! sanitizer, too; CONTRIBUTING says how.
#![allow(unsafe_code, reason = "the functions of a module, played")]

use cryptoki_sys::{CKR_ARGUMENTS_BAD, CKR_BUFFER_TOO_SMALL, CKR_OK};

use super::*;

/// Writes as many bytes as it is given, reversed, where there is room.
unsafe extern "C" fn reverse(
    _: CK_SESSION_HANDLE,
    data: CK_BYTE_PTR,
    data_len: CK_ULONG,
    out: CK_BYTE_PTR,
    out_len: CK_ULONG_PTR,
) -> CK_RV {
    let length = usize::try_from(data_len).unwrap();
    // SAFETY: what the caller promises of the five.
    unsafe {
        if *out_len < data_len {
            *out_len = data_len;
            return CKR_BUFFER_TOO_SMALL;
        }
        for i in 0..length {
            *out.add(i) = *data.add(length - 1 - i);
        }
        *out_len = data_len;
    }
    CKR_OK
}

/// Takes a buffer of 64 bytes and no other, as NSS 3.125 does for Ed25519.
unsafe extern "C" fn exactly_64(
    _: CK_SESSION_HANDLE,
    _: CK_BYTE_PTR,
    _: CK_ULONG,
    out: CK_BYTE_PTR,
    out_len: CK_ULONG_PTR,
) -> CK_RV {
    // SAFETY: what the caller promises of the two.
    unsafe {
        if *out_len != 64 {
            return CKR_ARGUMENTS_BAD;
        }
        out.write_bytes(7, 64);
    }
    CKR_OK
}

/// Says that it wrote more than there is room for.
unsafe extern "C" fn boaster(
    _: CK_SESSION_HANDLE,
    _: CK_BYTE_PTR,
    _: CK_ULONG,
    _: CK_BYTE_PTR,
    out_len: CK_ULONG_PTR,
) -> CK_RV {
    // SAFETY: what the caller promises of it.
    unsafe { *out_len += 1 };
    CKR_OK
}

fn call(function: Finish, data: &[u8], buffer: &mut [u8]) -> Result<usize> {
    finish(function, Function::Sign, 1, data, buffer)
}

#[test]
fn what_the_module_writes_is_in_the_buffer_and_nowhere_else() {
    let mut room = [0xee; 8];
    assert_eq!(call(reverse, b"abc", &mut room[2..6]).unwrap(), 3);
    assert_eq!(room, *b"\xee\xeecba\xee\xee\xee");
    assert_eq!(call(reverse, b"", &mut []).unwrap(), 0);
    assert_eq!(call(reverse, b"", &mut room).unwrap(), 0);
}

#[test]
fn a_buffer_is_stated_at_its_own_length() {
    let mut room = [0; 64];
    assert_eq!(call(exactly_64, b"message", &mut room).unwrap(), 64);
    assert_eq!(room, [7; 64]);
    let bad = call(exactly_64, b"message", &mut [0; 144]);
    assert!(matches!(bad, Err(Error::Pkcs11(RvError::ArgumentsBad, _))));
}

#[test]
fn a_length_that_is_not_in_the_buffer_is_an_error() {
    for (function, room) in [(reverse as Finish, 2), (boaster, 8)] {
        let refused = call(function, b"abc", &mut vec![0; room]);
        assert!(
            matches!(
                refused,
                Err(Error::Pkcs11(RvError::BufferTooSmall, Function::Sign))
            ),
            "{refused:?}"
        );
    }
}
