//! [Kryoptic](https://github.com/latchset/kryoptic) as a PKCS#11 module.
//!
//! The published module has its default features, which need a newer OpenSSL than Debian's. This
//! package builds it with fewer.

use kryoptic_lib::fns::general::fn_get_function_list;
use kryoptic_lib::pkcs11::{CK_FUNCTION_LIST_PTR_PTR, CK_RV};

/// The symbol that every module has (PKCS#11 v2.40 §5.4).
#[unsafe(no_mangle)]
pub extern "C" fn C_GetFunctionList(list: CK_FUNCTION_LIST_PTR_PTR) -> CK_RV {
    fn_get_function_list(list)
}
