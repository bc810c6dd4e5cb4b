//! A PKCS#11 module, through which programs use the identities of a Claviger daemon: `ssh`, `curl`,
//! NSS, OpenSC, and whatever loads `libclaviger_pkcs11_module.so`.
//!
//! | in PKCS#11 | here |
//! | --- | --- |
//! | a slot, and the token in it | an identity that the caller may use, with a key that signs |
//! | the token's label, its serial number | the identity's name, the beginning of its key's fingerprint |
//! | objects | the public key, the private key, the certificate and those that issued it |
//! | `C_Login` | the daemon is given the PIN of this one token, unless it needs none |
//! | `C_Sign` | a request to the daemon, which judges and notes it |
//!
//! | mechanism | what the daemon is asked for |
//! | --- | --- |
//! | `CKM_ECDSA_SHA256`, `CKM_ECDSA_SHA384`, `CKM_EDDSA`, `CKM_SHA256_RSA_PKCS` | a signature of the message (`raw`). The daemon refuses what begins like a signature for another purpose |
//! | `CKM_ECDSA`, `CKM_RSA_PKCS` | a signature of a digest (`prehash`), which needs a grant of its own |
//!
//! The module has no threads of its own. A child of the process that loaded it initialises it anew,
//! and shares no connection with its parent. If the daemon goes away, a call answers
//! `CKR_DEVICE_REMOVED`, and the next one works when the daemon is back.
//!
//! | module | idea |
//! | --- | --- |
//! | `lists`, `functions` | the functions of the standard, and the lists of them |
//! | `entry` | between C and the rest: pointers, and what is panicked |
//! | `process` | the state of one process |
//! | `sessions` | slots, sessions, searches and signatures |
//! | `tokens` | identities as tokens |
//! | `daemon` | requests to the daemon |
//! | `objects` | keys and certificates, and their attributes |
//! | `keys` | public keys, and the mechanisms that they have |
//! | `codes` | errors as PKCS#11 has them |

mod codes;
mod daemon;
mod entry;
mod functions;
mod keys;
mod lists;
mod objects;
mod process;
mod sessions;
mod tokens;

pub use lists::{C_GetFunctionList, C_GetInterface, C_GetInterfaceList};
