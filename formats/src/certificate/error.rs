//! Why there is no certificate.

use claviger_token::{Algorithm, Fingerprint, SignatureScheme};

/// Why a request or a certificate was not made, or not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The subject names nobody.
    #[error("the subject is empty")]
    EmptySubject,
    /// The text is not a subject.
    #[error("`{subject}` is not a subject: {reason}")]
    BadSubject {
        /// The text.
        subject: String,
        /// Why not.
        reason: &'static str,
    },
    /// The text is not an alternative name.
    #[error("`{name}` is not an alternative name: {reason}")]
    BadAlternativeName {
        /// The text.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// X.509 has no signatures of such keys that other programs verify.
    #[error("no certificate can be signed by a key of {algorithm}")]
    Unsupported {
        /// The kind of key.
        algorithm: Algorithm,
    },
    /// The token signs in another scheme than certificates of the key do.
    #[error("the token signs with {found}, and a certificate of this key needs {needed}")]
    OtherScheme {
        /// What is needed.
        needed: SignatureScheme,
        /// What the token did.
        found: SignatureScheme,
    },
    /// The time cannot be written in a certificate.
    #[error("a certificate cannot be valid for {days} days")]
    BadPeriod {
        /// The time.
        days: u32,
    },
    /// It is not a certificate, or not one that can be read.
    #[error("it is not an X.509 certificate in PEM or DER: {reason}")]
    Malformed {
        /// Why not.
        reason: String,
    },
    /// None of the certificates is for the key.
    #[error("the certificate is for another key, not for {wanted}")]
    OtherKey {
        /// The key.
        wanted: Fingerprint,
    },
    /// Its time is over.
    #[error("the certificate expired on {on}")]
    Expired {
        /// The end of its time (UTC).
        on: String,
    },
    /// The certificates in the file are not a chain.
    #[error("the certificate of `{subject}` did not issue any other one in the file")]
    NotInChain {
        /// Whom it names.
        subject: String,
    },
}

impl CertificateError {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            CertificateError::EmptySubject => "certificate-empty-subject",
            CertificateError::BadSubject { .. } => "certificate-bad-subject",
            CertificateError::BadAlternativeName { .. } => "certificate-bad-name",
            CertificateError::Unsupported { .. } => "certificate-unsupported",
            CertificateError::OtherScheme { .. } => "certificate-other-scheme",
            CertificateError::BadPeriod { .. } => "certificate-bad-period",
            CertificateError::Malformed { .. } => "certificate-malformed",
            CertificateError::OtherKey { .. } => "certificate-other-key",
            CertificateError::Expired { .. } => "certificate-expired",
            CertificateError::NotInChain { .. } => "certificate-not-in-chain",
        }
    }
}

pub(super) fn malformed(error: &impl ToString) -> CertificateError {
    CertificateError::Malformed {
        reason: error.to_string(),
    }
}
