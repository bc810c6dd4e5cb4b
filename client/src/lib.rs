//! Speaks to a Claviger daemon.

/// The messages of the wire, made from `proto/claviger/v1`.
#[allow(missing_docs, reason = "they are made from the files in proto, which say what they are")]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/claviger.v1.rs"));
}
