//! What `age-plugin-claviger` does: age programs start it, and it opens their files through the
//! daemon (C2SP `age-plugin`).
//!
//! | module | idea |
//! | --- | --- |
//! | [`peer`] | the conversation with the age program: stanzas, in both directions |
//! | [`person`] | the user of that program: messages, questions, PINs |
//! | [`recipient`] | the state machine `recipient-v1`: wraps file keys; needs no daemon |
//! | [`identity`] | the state machine `identity-v1`: has file keys unwrapped |
//! | [`daemon`] | asks the daemon for file keys |
//!
//! The plugin has no key and knows no token. Files that it encrypts have native stanzas, as any age
//! program makes them for the same public key, and it opens such stanzas whoever made them.
#![forbid(unsafe_code)]

pub mod daemon;
pub mod identity;
pub mod peer;
pub mod person;
pub mod recipient;
