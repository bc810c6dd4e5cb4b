//! Between C and the rest: pointers that may be null, and panics that must not leave.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cryptoki_sys::{
    CK_RV, CK_ULONG, CKR_ARGUMENTS_BAD, CKR_BUFFER_TOO_SMALL, CKR_GENERAL_ERROR, CKR_OK,
};

/// What a function of the standard does, or why not.
pub(crate) type Done<T = ()> = Result<T, CK_RV>;

/// Runs a function of the standard. A panic ends in it: to unwind into C would end the program.
pub(crate) fn guarded(work: impl FnOnce() -> Done) -> CK_RV {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => CKR_OK,
        Ok(Err(code)) => code,
        Err(what) => {
            // What it holds may panic when it is dropped.
            std::mem::forget(what);
            CKR_GENERAL_ERROR
        }
    }
}

/// Writes a value where C wants it.
///
/// # Safety
/// `to` is null, or valid for a write.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Done {
    if to.is_null() {
        return Err(CKR_ARGUMENTS_BAD);
    }
    // SAFETY: it is not null, and the caller says that it is valid otherwise.
    unsafe { to.write(value) };
    Ok(())
}

/// Reads a structure that C hands in.
///
/// # Safety
/// `from` is null, or valid for a read, and what it points to is initialised.
pub(crate) unsafe fn get<T: Copy>(from: *const T) -> Done<T> {
    if from.is_null() {
        return Err(CKR_ARGUMENTS_BAD);
    }
    // SAFETY: it is not null, and the caller says that it is valid otherwise.
    Ok(unsafe { from.read() })
}

/// Values that C hands in.
///
/// # Safety
/// `from` is null, or valid for reads of `count` initialised values, as long as the result is used.
pub(crate) unsafe fn slice<'a, T>(from: *const T, count: CK_ULONG) -> Done<&'a [T]> {
    let count = usize::try_from(count).map_err(|_| CKR_ARGUMENTS_BAD)?;
    if count == 0 {
        return Ok(&[]);
    }
    let is_too_long = count > isize::MAX as usize / size_of::<T>().max(1);
    if from.is_null() || is_too_long {
        return Err(CKR_ARGUMENTS_BAD);
    }
    // SAFETY: it is not null, and no longer than a slice may be; the caller says the rest.
    Ok(unsafe { std::slice::from_raw_parts(from, count) })
}

/// Values that C hands in, to be changed.
///
/// # Safety
/// As for [`slice`], also for writes; nothing else uses them as long as the result is used.
pub(crate) unsafe fn slice_mut<'a, T>(from: *mut T, count: CK_ULONG) -> Done<&'a mut [T]> {
    let count = usize::try_from(count).map_err(|_| CKR_ARGUMENTS_BAD)?;
    if count == 0 {
        return Ok(&mut []);
    }
    let is_too_long = count > isize::MAX as usize / size_of::<T>().max(1);
    if from.is_null() || is_too_long {
        return Err(CKR_ARGUMENTS_BAD);
    }
    // SAFETY: it is not null, and no longer than a slice may be; the caller says the rest.
    Ok(unsafe { std::slice::from_raw_parts_mut(from, count) })
}

/// A buffer of C's for several values, and where its length stands. Without a buffer, only the
/// length is asked for (PKCS#11 2.40 §5.2).
pub(crate) struct Room<T> {
    to: *mut T,
    length: *mut CK_ULONG,
    has: usize,
}

impl<T: Copy> Room<T> {
    /// # Safety
    /// `length` is null or valid for reads and writes. `to` is null, or valid for as many writes as
    /// `length` says, as long as the result is used.
    pub(crate) unsafe fn new(to: *mut T, length: *mut CK_ULONG) -> Done<Self> {
        // SAFETY: as the caller says.
        let has = unsafe { get(length) }?;
        let has = match to.is_null() {
            true => 0,
            false => usize::try_from(has).map_err(|_| CKR_ARGUMENTS_BAD)?,
        };
        Ok(Room { to, length, has })
    }

    /// Whether only the length is asked for.
    pub(crate) fn is_question(&self) -> bool {
        self.to.is_null()
    }

    /// Says how many there are. Whether they are to be put there.
    ///
    /// # Errors
    /// `CKR_BUFFER_TOO_SMALL`.
    pub(crate) fn announce(&self, count: usize) -> Done<bool> {
        // SAFETY: it was read before, and whoever made this said that it can be written.
        unsafe { self.length.write(count as CK_ULONG) };
        match (self.is_question(), count <= self.has) {
            (true, _) => Ok(false),
            (false, true) => Ok(true),
            (false, false) => Err(CKR_BUFFER_TOO_SMALL),
        }
    }

    /// Puts values there, if they are wanted.
    ///
    /// # Errors
    /// `CKR_BUFFER_TOO_SMALL`.
    pub(crate) fn put(&self, values: &[T]) -> Done {
        if self.announce(values.len())? {
            // SAFETY: there is room for as many, as was just looked at; they are no values of C's,
            // so that they do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.to, values.len()) };
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_in_the_function() {
        std::panic::set_hook(Box::new(|_| {}));
        assert_eq!(guarded(|| panic!("on purpose")), CKR_GENERAL_ERROR);
        assert_eq!(guarded(|| Err(CKR_ARGUMENTS_BAD)), CKR_ARGUMENTS_BAD);
        assert_eq!(guarded(|| Ok(())), CKR_OK);
    }

    #[test]
    fn what_is_null_or_longer_than_memory_is_refused() {
        let null = std::ptr::null_mut::<u8>();
        let value = [7_u8; 4];
        // SAFETY: null, or as long as it says; what is longer than memory is not read.
        unsafe {
            assert_eq!(put(null, 1), Err(CKR_ARGUMENTS_BAD));
            assert_eq!(get(null.cast_const()), Err(CKR_ARGUMENTS_BAD));
            assert_eq!(slice(null.cast_const(), 0), Ok(&[][..]));
            assert_eq!(slice(null.cast_const(), 1), Err(CKR_ARGUMENTS_BAD));
            let longest = CK_ULONG::MAX;
            assert_eq!(slice(value.as_ptr(), longest), Err(CKR_ARGUMENTS_BAD));
            assert_eq!(slice(value.as_ptr(), 4), Ok(&value[..]));
            assert!(Room::new(null, std::ptr::null_mut()).is_err());
        }
    }

    #[test]
    fn a_length_is_told_before_the_values_and_a_small_buffer_is_left_alone() {
        let (mut buffer, mut length) = ([0_u8; 2], 2);
        // SAFETY: the buffer is as long as its length says.
        let room = |length: &mut CK_ULONG, to: *mut u8| unsafe { Room::new(to, length) };
        let question = room(&mut length, std::ptr::null_mut()).unwrap();
        assert_eq!(question.put(&[1, 2, 3]), Ok(()));
        assert_eq!(length, 3);
        length = 2;
        let small = room(&mut length, buffer.as_mut_ptr()).unwrap();
        assert_eq!(small.put(&[1, 2, 3]), Err(CKR_BUFFER_TOO_SMALL));
        assert_eq!((length, buffer), (3, [0, 0]));
        length = 2;
        let fits = room(&mut length, buffer.as_mut_ptr()).unwrap();
        assert_eq!(fits.put(&[9]), Ok(()));
        assert_eq!((length, buffer), (1, [9, 0]));
    }
}
