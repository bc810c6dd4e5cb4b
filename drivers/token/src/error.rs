//! Errors between a caller and a token, one variant per cause.

use crate::{KeySpec, KeyUse, TokenId};

/// A failed operation on a token.
///
/// Callers decide on recovery by the variant, never by the text. [`Error::code`] returns a stable
/// name for programs, and [`Error::advice`] the kind of next step that helps. The text states one
/// cause and names no option of any program; front-ends add advice. No variant carries a PIN, a key
/// or a plaintext.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver does not understand the backend string.
    #[error("`{backend}` is not a backend: {reason}")]
    BadBackend {
        /// The backend string.
        backend: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The PKCS#11 module could not be loaded or initialised.
    #[error("`{path}` cannot be used as a PKCS#11 module: {reason}")]
    BadModule {
        /// The file that was tried.
        path: String,
        /// What the loader or the module said.
        reason: String,
    },
    /// The PKCS#11 module works, but something that it depends on is missing: a daemon, a server, a
    /// TPM.
    #[error("the module `{module}` cannot be used yet: {reason}")]
    NotReady {
        /// The module's file.
        module: String,
        /// What is missing, and the module's error.
        reason: String,
        /// How to start it, or to get access to it.
        cure: String,
    },
    /// No attached token matches the backend.
    #[error("no attached token matches `{wanted}`")]
    NoToken {
        /// The backend string.
        wanted: String,
        /// The attached tokens, as backend strings.
        present: Vec<String>,
    },
    /// Several attached tokens match the backend. None of them is chosen.
    #[error("`{wanted}` matches {} tokens", candidates.len())]
    AmbiguousToken {
        /// The backend string.
        wanted: String,
        /// The matching tokens, each as a backend string that matches it alone.
        candidates: Vec<String>,
    },
    /// The token was unplugged, or its module no longer answers.
    #[error("the token {token} is not available ({reason})")]
    TokenUnavailable {
        /// The token.
        token: TokenId,
        /// The error of the device layer.
        reason: String,
    },
    /// The token requires a PIN, and no source gave one.
    #[error("the token {token} requires a PIN")]
    PinNeeded {
        /// The token.
        token: TokenId,
    },
    /// The PIN source failed.
    #[error("no PIN from {origin}: {reason}")]
    PinSource {
        /// The source, such as `file:/etc/pin`; never the PIN.
        origin: String,
        /// Why it gave none.
        reason: String,
    },
    /// The length of the PIN is outside the limits that the token states. The PIN was not sent.
    #[error(
        "the PIN was not sent to {token}: the token takes PINs of {}",
        lengths(*min, *max)
    )]
    PinLength {
        /// The token.
        token: TokenId,
        /// Shortest PIN in bytes.
        min: usize,
        /// Longest PIN in bytes; `usize::MAX` if the token states none.
        max: usize,
    },
    /// The token rejected the PIN. It was sent once and is not sent again.
    #[error("the token {token} rejected the PIN{tries}")]
    PinWrong {
        /// The token.
        token: TokenId,
        /// The remaining attempts, as far as the token reports them.
        tries: TriesLeft,
    },
    /// The token rejected this PIN before. It was not sent again.
    #[error("{token} rejected this PIN before; it was not sent again")]
    PinRefusedBefore {
        /// The token.
        token: TokenId,
    },
    /// A PIN was sent to this token before, and its answer was not received, so it may have been
    /// rejected. No PIN has been sent since.
    #[error(
        "a PIN was sent to {token} before, and it is not known whether it was rejected; \
         no PIN was sent since"
    )]
    PinUnsettled {
        /// The token.
        token: TokenId,
    },
    /// The record that a PIN is being sent could not be written. The PIN was not sent.
    #[error("the PIN was not sent to {token}: a rejection could not be recorded: {reason}")]
    PinNotNoted {
        /// The token.
        token: TokenId,
        /// Why not.
        reason: String,
    },
    /// One PIN attempt remains. No PIN was sent, since a wrong one would lock the token.
    #[error("{token} has one PIN attempt remaining; no PIN was sent")]
    PinFinalTry {
        /// The token.
        token: TokenId,
    },
    /// The token's PIN is locked.
    #[error("the PIN of {token} is locked")]
    PinLocked {
        /// The token.
        token: TokenId,
    },
    /// The token has no PIN yet, so nobody can log in.
    #[error("{token} has no user PIN yet")]
    PinNotSet {
        /// The token.
        token: TokenId,
    },
    /// Too many wrong PINs came from who asks. No further one of theirs is sent to the token, or
    /// compared with the one that it accepted, until the time is over.
    #[error("too many wrong PINs for {token}; the next one is taken in {seconds} s")]
    PinWait {
        /// The token.
        token: TokenId,
        /// The time that is left.
        seconds: u64,
    },
    /// The smartcard requires its management key, and no source gave one.
    #[error("{token} requires its management key")]
    ManagementKeyNeeded {
        /// The token.
        token: TokenId,
    },
    /// The smartcard rejected the management key, or the key is of another algorithm.
    #[error("{token} rejected the management key: {reason}")]
    ManagementKeyWrong {
        /// The token.
        token: TokenId,
        /// What is wrong with it; never the key.
        reason: String,
    },
    /// Nobody touched or approved in time.
    #[error("{token} was not touched in time")]
    NotTouched {
        /// The token.
        token: TokenId,
    },
    /// The device is locked and was not unlocked in time.
    #[error("the {device} is locked")]
    DeviceLocked {
        /// What it is, such as `Ledger Nano X`; who it is shows when it is unlocked.
        device: String,
    },
    /// The required app is not open on the device and was not opened in time.
    #[error("the app {app} is not open on the {device}{}", running_app(running))]
    AppNotOpen {
        /// What it is, such as `Ledger Nano X`.
        device: String,
        /// The required app.
        app: String,
        /// The app that is open, if any.
        running: Option<String>,
    },
    /// The app on the device is too old for the operation.
    #[error("the app {app} on the {device} has version {found}, which is older than {least}")]
    AppTooOld {
        /// What it is, such as `Ledger Nano X`.
        device: String,
        /// The app.
        app: String,
        /// Its version.
        found: String,
        /// The oldest version that supports the operation.
        least: String,
    },
    /// The request was rejected on the token.
    #[error("the request was rejected on {token}")]
    Rejected {
        /// The token.
        token: TokenId,
    },
    /// The token refuses to destroy or overwrite the key. The key is unchanged.
    #[error("{token} cannot destroy the key in slot {slot}")]
    CannotDestroy {
        /// The token.
        token: TokenId,
        /// The slot.
        slot: String,
    },
    /// The token does not offer this kind of key. Nothing was changed on it.
    #[error("{token} does not offer {wanted}")]
    Unsupported {
        /// The token.
        token: TokenId,
        /// The requested kind of key.
        wanted: KeySpec,
        /// The kinds of key that the token offers.
        supported: Vec<KeySpec>,
    },
    /// The key exists, but the token does not allow this use of it.
    #[error("the key on {token} cannot {}: {reason}", verb(*wanted))]
    NotUsable {
        /// The token.
        token: TokenId,
        /// The requested use.
        wanted: KeySpec,
        /// The reason in the token's terms, such as `CKA_SIGN is false`.
        reason: String,
    },
    /// The token has the public key, but not its private key. The key was not entered.
    #[error("{token} does not have the private half of {key}: {reason}")]
    NoPossession {
        /// The token.
        token: TokenId,
        /// The key's fingerprint.
        key: String,
        /// The evidence for it.
        reason: String,
    },
    /// The token does not have this slot.
    #[error("{token} has no slot {slot}")]
    NoSuchSlot {
        /// The token.
        token: TokenId,
        /// The slot.
        slot: String,
    },
    /// The remaining free slots are reserved and are used only if they are named.
    #[error("{token} has no free slots except those that are used only by name: {}", left.join(", "))]
    OnlyNamedSlots {
        /// The token.
        token: TokenId,
        /// Their names, such as `9a`.
        left: Vec<String>,
    },
    /// The token has no room for another key.
    #[error("the token {token} is full")]
    TokenFull {
        /// The token.
        token: TokenId,
    },
    /// The token cannot be written to.
    #[error("the token {token} is write-protected")]
    TokenReadOnly {
        /// The token.
        token: TokenId,
    },
    /// The slot already holds a key or an object. Nothing was overwritten.
    #[error("slot {slot} of {token} is occupied")]
    SlotOccupied {
        /// The token.
        token: TokenId,
        /// The slot.
        slot: String,
    },
    /// The token is attached, but the key is not on it.
    #[error("the key {key} is not on {token}")]
    KeyNotFound {
        /// The token.
        token: TokenId,
        /// The key's fingerprint or its slot.
        key: String,
    },
    /// The slot holds another key than expected, or one that cannot be identified. That key was
    /// neither used nor destroyed.
    #[error("slot {slot} of {token} holds {found}, not {expected}")]
    KeyMismatch {
        /// The token.
        token: TokenId,
        /// The slot.
        slot: String,
        /// The expected key's fingerprint.
        expected: String,
        /// The fingerprint of the key found, or what is known of it.
        found: String,
    },
    /// The token made a key that can leave it, or does not state that it cannot.
    #[error("{token} does not protect the key it made: {reason}")]
    NotProtected {
        /// The token.
        token: TokenId,
        /// The missing protection.
        reason: String,
    },
    /// The key cannot sign a message of this form or size.
    #[error("the message cannot be signed: {reason}")]
    BadMessage {
        /// Why not.
        reason: String,
    },
    /// The ciphertext cannot be decrypted. The reason is withheld on purpose.
    #[error("Decryption Failed")]
    DecryptionFailed,
    /// The header of the file is longer than the limit. Only code that reads headers separately
    /// gets this error (`Sealed` of `claviger-formats`).
    #[error("the header of the file is longer than {} KiB", longest >> 10)]
    HeaderTooLong {
        /// The limit in bytes.
        longest: usize,
    },
    /// The deadline passed before the operation was complete.
    #[error("the deadline passed before the token answered")]
    DeadlineExceeded,
    /// The caller cancelled the operation.
    #[error("cancelled")]
    Cancelled,
    /// Too many operations are waiting for the token.
    #[error("the token {token} is busy")]
    Busy {
        /// The token.
        token: TokenId,
    },
    /// Any other error of the device, with the call and the status.
    #[error("{call} on {token} failed: {status}")]
    Device {
        /// The token.
        token: TokenId,
        /// The device call, such as `C_Sign`.
        call: String,
        /// The status, by its name in the standard: `CKR_GENERAL_ERROR`.
        status: String,
    },
    /// The device's reply is malformed.
    #[error("the reply of {token} to {call} is malformed: {reason}")]
    MalformedReply {
        /// The token.
        token: TokenId,
        /// The device call.
        call: String,
        /// What is wrong with the reply.
        reason: String,
    },
    /// The operating system refused something that the driver needs.
    #[error("{what}: {reason}")]
    System {
        /// What was attempted.
        what: String,
        /// The error of the system.
        reason: String,
    },
}

fn running_app(running: &Option<String>) -> String {
    match running {
        Some(app) => format!(", but {app}"),
        None => String::new(),
    }
}

fn verb(wanted: KeySpec) -> &'static str {
    match wanted.usage {
        KeyUse::Sign => "sign",
        KeyUse::Decrypt => "decrypt",
    }
}

fn lengths(min: usize, max: usize) -> String {
    match max {
        usize::MAX => format!("at least {min} bytes"),
        max => format!("{min} to {max} bytes"),
    }
}

/// The remaining PIN attempts, as far as a token reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TriesLeft {
    /// The token does not report them.
    Unknown,
    /// At least one wrong PIN was sent since the last right one (`CKF_USER_PIN_COUNT_LOW`).
    Low,
    /// This many.
    Exactly(u8),
    /// One (`CKF_USER_PIN_FINAL_TRY`).
    Final,
    /// All of them: the token reports that no wrong PIN was sent since the last right one.
    All,
}

impl std::fmt::Display for TriesLeft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TriesLeft::Unknown | TriesLeft::All => Ok(()),
            TriesLeft::Low => f.write_str(" (the token reports few remaining attempts)"),
            TriesLeft::Exactly(1) | TriesLeft::Final => f.write_str(" (one attempt remaining)"),
            TriesLeft::Exactly(n) => write!(f, " ({n} attempts remaining)"),
        }
    }
}

/// The kind of next step that helps after an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Try again later, unchanged.
    Retry,
    /// Insert the token, or start the service behind it, then retry.
    InsertToken,
    /// Give the PIN, or another one.
    GivePin,
    /// Change the request.
    ChangeRequest,
    /// The caller cannot recover in this process.
    GiveUp,
}

impl Error {
    /// The stable name of the variant, such as `pin-wrong`.
    pub fn code(&self) -> &'static str {
        match self {
            Error::BadBackend { .. } => "bad-backend",
            Error::BadModule { .. } => "bad-module",
            Error::NotReady { .. } => "not-ready",
            Error::NoToken { .. } => "no-token",
            Error::AmbiguousToken { .. } => "ambiguous-token",
            Error::TokenUnavailable { .. } => "token-unavailable",
            Error::PinNeeded { .. } => "pin-needed",
            Error::PinSource { .. } => "pin-source",
            Error::PinLength { .. } => "pin-length",
            Error::PinWrong { .. } => "pin-wrong",
            Error::PinRefusedBefore { .. } => "pin-refused-before",
            Error::PinUnsettled { .. } => "pin-unsettled",
            Error::PinNotNoted { .. } => "pin-not-noted",
            Error::PinFinalTry { .. } => "pin-final-try",
            Error::PinLocked { .. } => "pin-locked",
            Error::PinNotSet { .. } => "pin-not-set",
            Error::PinWait { .. } => "pin-wait",
            Error::ManagementKeyNeeded { .. } => "management-key-needed",
            Error::ManagementKeyWrong { .. } => "management-key-wrong",
            Error::NotTouched { .. } => "not-touched",
            Error::DeviceLocked { .. } => "device-locked",
            Error::AppNotOpen { .. } => "app-not-open",
            Error::AppTooOld { .. } => "app-too-old",
            Error::Rejected { .. } => "rejected",
            Error::CannotDestroy { .. } => "cannot-destroy",
            Error::Unsupported { .. } => "unsupported",
            Error::NotUsable { .. } => "not-usable",
            Error::NoPossession { .. } => "no-possession",
            Error::NoSuchSlot { .. } => "no-such-slot",
            Error::OnlyNamedSlots { .. } => "only-named-slots",
            Error::TokenFull { .. } => "token-full",
            Error::TokenReadOnly { .. } => "token-read-only",
            Error::SlotOccupied { .. } => "slot-occupied",
            Error::KeyNotFound { .. } => "key-not-found",
            Error::KeyMismatch { .. } => "key-mismatch",
            Error::NotProtected { .. } => "not-protected",
            Error::BadMessage { .. } => "bad-message",
            Error::DecryptionFailed => "decryption-failed",
            Error::HeaderTooLong { .. } => "header-too-long",
            Error::DeadlineExceeded => "deadline-exceeded",
            Error::Cancelled => "cancelled",
            Error::Busy { .. } => "busy",
            Error::Device { .. } => "device",
            Error::MalformedReply { .. } => "malformed-reply",
            Error::System { .. } => "system",
        }
    }

    /// The token concerned, if known.
    pub fn token(&self) -> Option<&TokenId> {
        match self {
            Error::TokenUnavailable { token, .. }
            | Error::PinNeeded { token }
            | Error::PinLength { token, .. }
            | Error::PinWrong { token, .. }
            | Error::PinRefusedBefore { token }
            | Error::PinUnsettled { token }
            | Error::PinNotNoted { token, .. }
            | Error::PinFinalTry { token }
            | Error::PinLocked { token }
            | Error::PinNotSet { token }
            | Error::PinWait { token, .. }
            | Error::ManagementKeyNeeded { token }
            | Error::ManagementKeyWrong { token, .. }
            | Error::NotTouched { token }
            | Error::Rejected { token }
            | Error::CannotDestroy { token, .. }
            | Error::Unsupported { token, .. }
            | Error::NotUsable { token, .. }
            | Error::NoPossession { token, .. }
            | Error::NoSuchSlot { token, .. }
            | Error::OnlyNamedSlots { token, .. }
            | Error::TokenFull { token }
            | Error::TokenReadOnly { token }
            | Error::SlotOccupied { token, .. }
            | Error::KeyNotFound { token, .. }
            | Error::KeyMismatch { token, .. }
            | Error::NotProtected { token, .. }
            | Error::Busy { token }
            | Error::Device { token, .. }
            | Error::MalformedReply { token, .. } => Some(token),
            Error::BadBackend { .. }
            | Error::BadModule { .. }
            | Error::NotReady { .. }
            | Error::NoToken { .. }
            | Error::AmbiguousToken { .. }
            | Error::PinSource { .. }
            | Error::DeviceLocked { .. }
            | Error::AppNotOpen { .. }
            | Error::AppTooOld { .. }
            | Error::BadMessage { .. }
            | Error::DecryptionFailed
            | Error::HeaderTooLong { .. }
            | Error::DeadlineExceeded
            | Error::Cancelled
            | Error::System { .. } => None,
        }
    }

    /// The kind of next step that helps.
    pub fn advice(&self) -> Advice {
        match self {
            Error::NoToken { .. } | Error::NotReady { .. } | Error::TokenUnavailable { .. } => {
                Advice::InsertToken
            }
            Error::PinNeeded { .. }
            | Error::PinSource { .. }
            | Error::PinLength { .. }
            | Error::PinWrong { .. }
            | Error::PinRefusedBefore { .. }
            | Error::ManagementKeyNeeded { .. }
            | Error::ManagementKeyWrong { .. } => Advice::GivePin,
            Error::DeadlineExceeded
            | Error::Cancelled
            | Error::Busy { .. }
            | Error::PinWait { .. }
            | Error::NotTouched { .. }
            | Error::DeviceLocked { .. }
            | Error::AppNotOpen { .. } => Advice::Retry,
            Error::BadBackend { .. }
            | Error::BadModule { .. }
            | Error::AmbiguousToken { .. }
            | Error::PinFinalTry { .. }
            | Error::PinUnsettled { .. }
            | Error::Unsupported { .. }
            | Error::NotUsable { .. }
            | Error::NoPossession { .. }
            | Error::NoSuchSlot { .. }
            | Error::OnlyNamedSlots { .. }
            | Error::SlotOccupied { .. }
            | Error::BadMessage { .. }
            | Error::KeyMismatch { .. } => Advice::ChangeRequest,
            Error::PinLocked { .. }
            | Error::PinNotSet { .. }
            | Error::PinNotNoted { .. }
            | Error::TokenFull { .. }
            | Error::TokenReadOnly { .. }
            | Error::KeyNotFound { .. }
            | Error::NotProtected { .. }
            | Error::CannotDestroy { .. }
            | Error::AppTooOld { .. }
            | Error::Rejected { .. }
            | Error::DecryptionFailed
            | Error::HeaderTooLong { .. }
            | Error::Device { .. }
            | Error::MalformedReply { .. }
            | Error::System { .. } => Advice::GiveUp,
        }
    }
}
