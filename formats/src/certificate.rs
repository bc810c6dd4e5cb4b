//! X.509 certificates (RFC 5280) and signing requests (PKCS#10, RFC 2986) of keys on tokens.
//!
//! Only what a key says of itself is made here: a request, and a certificate that it signs itself.
//! What is signed is made first ([`request`], [`self_signed`]), signed by the key as it is, and
//! then put together with the signature ([`Unsigned::signed`]). [`is_of_key`] tells such bytes from
//! all others, for whoever signs them, and [`begins_like_one`] what begins like any certificate.
//!
//! | module | idea |
//! | --- | --- |
//! | `names` | subjects, and alternative names |
//! | `making` | what is signed, and what comes of it |
//! | `chain` | a certificate from somebody else, with those that issued it |

mod algorithm;
mod chain;
mod error;
mod making;
mod names;

pub use chain::{Chain, LONGEST_CHAIN, LONGEST_FILE};
pub use error::CertificateError;
pub use making::{Unsigned, begins_like_one, is_of_key, request, self_signed};
pub use names::{AlternativeName, Subject};
