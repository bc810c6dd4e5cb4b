//! Errors between a caller and a token, one variant per cause.

use crate::{KeySpec, KeyUse, TokenId, shell};

/// A failed operation on a token.
///
/// Recovery is decided by the variant, never by the text: [`Error::advice`] says
/// what kind of next step helps, [`Error::hint`] says it in a sentence. No variant
/// carries a PIN, a key or a plaintext.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The backend string is not of a form that the driver understands.
    #[error("`{backend}` is not a backend: {reason}")]
    BadBackend {
        /// The string as it was given.
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
    /// The PKCS#11 module works, and what it works with is missing: a daemon, a server, a TPM.
    #[error("the module `{module}` cannot be used yet: {reason}")]
    NotReady {
        /// The module's file.
        module: String,
        /// What is missing, and what the module said.
        reason: String,
        /// What to do about it.
        cure: String,
    },
    /// No attached token fits the description.
    #[error("no token fits `{wanted}`")]
    NoToken {
        /// The description that nothing fits.
        wanted: String,
        /// The tokens that are there, as backend strings.
        present: Vec<String>,
    },
    /// Several attached tokens fit the description, and one is not guessed.
    #[error("`{wanted}` fits {} tokens", candidates.len())]
    AmbiguousToken {
        /// The description.
        wanted: String,
        /// Every token that fits, as a backend string that names just that one.
        candidates: Vec<String>,
    },
    /// The token was there and has gone, or its module no longer answers.
    #[error("the token {token} is not available ({reason})")]
    TokenUnavailable {
        /// The token.
        token: TokenId,
        /// What the device layer said.
        reason: String,
    },
    /// The token needs a PIN and there was none to be had.
    #[error("the token {token} needs a PIN")]
    PinNeeded {
        /// The token.
        token: TokenId,
    },
    /// The source that should have given a PIN did not.
    #[error("no PIN from {origin}: {reason}")]
    PinSource {
        /// The source, such as `file:/etc/pin`; never the PIN.
        origin: String,
        /// Why it gave none.
        reason: String,
    },
    /// The PIN's length is outside what the token takes; it was not sent.
    #[error(
        "the PIN for {token} has a length that this token cannot have set ({})",
        lengths(*min, *max)
    )]
    PinLength {
        /// The token.
        token: TokenId,
        /// Shortest PIN in bytes.
        min: usize,
        /// Longest PIN in bytes; `usize::MAX` where the token does not say.
        max: usize,
    },
    /// The token refused the PIN. It was sent once and is not sent again.
    #[error("the token {token} refused the PIN{tries}")]
    PinWrong {
        /// The token.
        token: TokenId,
        /// How many tries are left, as far as the token tells.
        tries: TriesLeft,
    },
    /// This PIN was refused by this token before; it was not sent again.
    #[error("this PIN was refused by {token} before and was not sent again")]
    PinRefusedBefore {
        /// The token.
        token: TokenId,
    },
    /// A PIN was sent to this token and its answer never came, so that it is not known
    /// whether it was refused; nothing was sent since.
    #[error(
        "a PIN was sent to {token} before, and it is not known whether it was refused; \
         nothing was sent again"
    )]
    PinUnsettled {
        /// The token.
        token: TokenId,
    },
    /// That the PIN is being sent could not be written down; so it was not sent.
    #[error(
        "the PIN was not sent to {token}, since that could not be written down first: {reason}"
    )]
    PinNotNoted {
        /// The token.
        token: TokenId,
        /// Why not.
        reason: String,
    },
    /// One wrong PIN would lock the token; nothing was sent.
    #[error("{token} has one PIN try left; nothing was sent")]
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
    /// The smartcard needs its management key and there was none to be had.
    #[error("{token} needs its management key")]
    ManagementKeyNeeded {
        /// The token.
        token: TokenId,
    },
    /// The management key is not the card's, or not of its algorithm.
    #[error("{token} refused the management key: {reason}")]
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
    /// The device is locked, and nobody unlocked it in time.
    #[error("the {device} is locked")]
    DeviceLocked {
        /// What it is, such as `Ledger Nano X`; who it is shows when it is unlocked.
        device: String,
    },
    /// The app that does the work is not open on the device, and nobody opened it in time.
    #[error("the app {app} is not open on the {device}{}", running_app(running))]
    AppNotOpen {
        /// What it is, such as `Ledger Nano X`.
        device: String,
        /// The app that is wanted.
        app: String,
        /// The app that is open instead, if one is.
        running: Option<String>,
    },
    /// The app on the device cannot do yet what is needed of it.
    #[error(
        "the app {app} on the {device} is of version {found}; {least} is the oldest that serves"
    )]
    AppTooOld {
        /// What it is, such as `Ledger Nano X`.
        device: String,
        /// The app.
        app: String,
        /// Its version.
        found: String,
        /// The oldest version that serves.
        least: String,
    },
    /// The person at the token refused.
    #[error("it was rejected on {token}")]
    Rejected {
        /// The token.
        token: TokenId,
    },
    /// The token refuses to destroy the key, and to overwrite it. It is as it was.
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
        /// The kind of key that was asked for.
        wanted: KeySpec,
        /// What the token does offer.
        supported: Vec<KeySpec>,
    },
    /// The key is there, and the token does not let it be used like this.
    #[error("the key on {token} cannot {}: {reason}", verb(*wanted))]
    NotUsable {
        /// The token.
        token: TokenId,
        /// What the key was wanted for.
        wanted: KeySpec,
        /// Why not, in the token's terms: `CKA_SIGN is false`.
        reason: String,
    },
    /// The token has a key with this public half, and does not have the private half of it. The
    /// key was not entered.
    #[error("{token} does not have the private half of {key}: {reason}")]
    NoPossession {
        /// The token.
        token: TokenId,
        /// The key's fingerprint.
        key: String,
        /// What shows it.
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
    /// The slots that are left have a purpose of their own and are taken only by name.
    #[error("{token} has only slots left that are used when they are named: {}", left.join(", "))]
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
    /// The slot holds a key or an object already; nothing was overwritten.
    #[error("slot {slot} of {token} is occupied")]
    SlotOccupied {
        /// The token.
        token: TokenId,
        /// The slot.
        slot: String,
    },
    /// The token is there but the key is not.
    #[error("the key {key} is not on {token}")]
    KeyNotFound {
        /// The token.
        token: TokenId,
        /// The key's fingerprint or its slot.
        key: String,
    },
    /// The slot holds another key than the one expected. It was not used.
    #[error("slot {slot} of {token} holds {found}, not {expected}")]
    KeyMismatch {
        /// The token.
        token: TokenId,
        /// The slot.
        slot: String,
        /// The expected key's fingerprint.
        expected: String,
        /// The fingerprint of the key found.
        found: String,
    },
    /// The token made a key that can leave it, or does not say that it cannot.
    #[error("{token} does not protect the key it made: {reason}")]
    NotProtected {
        /// The token.
        token: TokenId,
        /// Which protection is missing.
        reason: String,
    },
    /// The message is not of a form or size that the key can sign.
    #[error("the message cannot be signed: {reason}")]
    BadMessage {
        /// Why not.
        reason: String,
    },
    /// The ciphertext does not open. On purpose it is not said why.
    #[error("Decryption Failed")]
    DecryptionFailed,
    /// The file begins with a header that is longer than any that is read, whatever is in it;
    /// only whoever reads headers apart is told (`Sealed` of `claviger-formats`).
    #[error("the header of the file is longer than {} KiB", longest >> 10)]
    HeaderTooLong {
        /// The longest that is read, in bytes.
        longest: usize,
    },
    /// The deadline passed before the operation was done.
    #[error("the deadline passed before the token answered")]
    DeadlineExceeded,
    /// The caller gave the operation up.
    #[error("cancelled")]
    Cancelled,
    /// Too many operations wait for the token.
    #[error("the token {token} is busy")]
    Busy {
        /// The token.
        token: TokenId,
    },
    /// Any other refusal of the device, with the call and the status as it gave them.
    #[error("{call} on {token} failed: {status}")]
    Device {
        /// The token.
        token: TokenId,
        /// The device call, such as `C_Sign`.
        call: String,
        /// The status as the standard names it, such as `CKR_GENERAL_ERROR`.
        status: String,
    },
    /// The device's reply makes no sense.
    #[error("{token} answered {call} with something malformed: {reason}")]
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
        /// What the system said.
        reason: String,
    },
}

/// Backends, each as a word of a shell and on a line of its own.
fn on_lines(backends: &[String]) -> String {
    let lines = backends
        .iter()
        .map(|text| format!("\n  {}", shell::quoted(text)));
    lines.collect()
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

/// How many PIN tries are left, as far as a token tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TriesLeft {
    /// The token does not say.
    Unknown,
    /// At least one wrong PIN was given since the last right one (`CKF_USER_PIN_COUNT_LOW`).
    Low,
    /// This many.
    Exactly(u8),
    /// One (`CKF_USER_PIN_FINAL_TRY`).
    Final,
    /// All: the token shows that no wrong PIN was given since the last right one.
    All,
}

impl std::fmt::Display for TriesLeft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TriesLeft::Unknown | TriesLeft::All => Ok(()),
            TriesLeft::Low => f.write_str(" (the token reports that its count of tries is low)"),
            TriesLeft::Exactly(1) | TriesLeft::Final => f.write_str(" (one try left)"),
            TriesLeft::Exactly(n) => write!(f, " ({n} tries left)"),
        }
    }
}

/// The kind of next step that helps after an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Try again later, unchanged.
    Retry,
    /// Insert the token (or start what stands for it), then retry.
    InsertToken,
    /// Give the PIN, or another one.
    GivePin,
    /// Change the request.
    ChangeRequest,
    /// Nothing the caller can do in this process helps.
    GiveUp,
}

impl Error {
    /// A name for the variant that does not change, for programs: `pin-wrong`.
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

    /// The token that it is about, where that is known.
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

    /// What kind of next step helps.
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

    /// One sentence for a person: what to do next. Empty where nothing is to be said.
    pub fn hint(&self) -> String {
        match self {
            Error::BadBackend { backend, .. } if backend.starts_with("piv") => {
                "a backend for smartcards looks like piv: or piv:serial=12345678;slot=9c".into()
            }
            Error::BadBackend { backend, .. } if backend.starts_with("ledger") => {
                "a backend for Ledgers looks like ledger: or ledger:serial=0123456789abcdef;account=0"
                    .into()
            }
            Error::BadBackend { .. } => {
                "a backend looks like pkcs11:token=LABEL?module-path=/path/to/module.so".into()
            }
            Error::BadModule { .. } => {
                "module-path must name the vendor's PKCS#11 library, built for this system".into()
            }
            Error::NotReady { cure, .. } => cure.clone(),
            Error::NoToken { wanted, present } if present.is_empty() && wanted.starts_with("piv:") => {
                "insert the smartcard; a USB token needs its CCID interface enabled".into()
            }
            Error::NoToken { wanted, present }
                if present.is_empty()
                    && wanted.starts_with("ledger:")
                    && wanted.contains("tcp=") =>
            {
                "nothing answers at this address; start the emulator".into()
            }
            Error::NoToken { wanted, present }
                if present.is_empty() && wanted.starts_with("ledger:") =>
            {
                "plug the Ledger in and unlock it; Linux wants a udev rule for it".into()
            }
            Error::NoToken { present, .. } if present.is_empty() => {
                "no token is attached, or no module knows of it; name the module with ?module-path="
                    .into()
            }
            Error::NoToken { present, .. } => {
                format!("attached are:{}", on_lines(present))
            }
            Error::AmbiguousToken { candidates, .. } => {
                format!("name one of them:{}", on_lines(candidates))
            }
            Error::TokenUnavailable { .. } => "insert the token and try again".into(),
            Error::PinNeeded { .. } => {
                "give it with --pin-source env:VAR|file:PATH|fd:N|prompt, or pin-source= in the backend"
                    .into()
            }
            Error::PinSource { .. } => "check the PIN source".into(),
            Error::PinLength { .. } => {
                "check the PIN source; if the PIN is right all the same, say --any-pin-length".into()
            }
            Error::PinWrong { .. } => {
                "it was sent once; check the PIN before you try again, a token locks after a few"
                    .into()
            }
            Error::PinRefusedBefore { token } => format!(
                "give another PIN; if it is the right one by now: \
                 claviger doctor --forget-refused-pin {}",
                shell::quoted(&token.to_string())
            ),
            Error::PinUnsettled { token } => format!(
                "type the PIN (--pin-source prompt) and confirm that it is to be sent, or: \
                 claviger doctor --forget-refused-pin {}",
                shell::quoted(&token.to_string())
            ),
            Error::PinNotSet { .. } => {
                "set one as the security officer: pkcs11-tool --module MODULE --login \
                 --login-type so --init-pin"
                    .into()
            }
            Error::PinNotNoted { .. } => {
                "check the home folder: its permissions, and the space that is left; or send \
                 it without a note, so that no refusal is remembered: --no-pin-ledger"
                    .into()
            }
            Error::PinFinalTry { .. } => {
                "if you are sure of the PIN, ask for the last try with --last-try".into()
            }
            Error::PinLocked { .. } => {
                "unlock it with the vendor's tool (PUK or security officer)".into()
            }
            Error::Unsupported { supported, .. } => {
                let list: Vec<String> = supported.iter().map(KeySpec::to_string).collect();
                format!("it offers {}", list.join(", "))
            }
            Error::ManagementKeyNeeded { .. } => {
                "give it with --management-key env:VAR|file:PATH|fd:N|prompt".into()
            }
            Error::ManagementKeyWrong { .. } => "check the source of the management key".into(),
            Error::DeviceLocked { .. } => "unlock it and try again".into(),
            Error::AppNotOpen { app, .. } => {
                format!("open the app {app} on the device and try again")
            }
            Error::AppTooOld { app, .. } => {
                format!("update the app {app} with the vendor's own program")
            }
            Error::NotTouched { .. } => "try again, and touch it when it blinks".into(),
            Error::CannotDestroy { .. } => {
                "the identity is kept, and its key still works; only the vendor's tool can destroy it, by \
                 resetting the whole token".into()
            }
            Error::OnlyNamedSlots { left, .. } => format!(
                "name one in the backend, such as piv:slot={}, or delete identities that are no \
                 longer needed",
                left.first().map_or("9a", String::as_str)
            ),
            Error::TokenFull { .. } => "delete identities that are no longer needed".into(),
            Error::TokenReadOnly { .. } => "remove the write protection".into(),
            Error::NotUsable { .. } => {
                "name another key, or change this one's attributes with the vendor's tool".into()
            }
            Error::NoPossession { .. } => {
                "name the key that the private half on the token belongs to; `claviger tokens` \
                 lists what there is".into()
            }
            Error::SlotOccupied { .. } | Error::NoSuchSlot { .. } => {
                "name a free slot, or none".into()
            }
            Error::KeyNotFound { .. } => {
                "it was deleted by someone else, or this is not the token it was made on".into()
            }
            Error::KeyMismatch { .. } => {
                "name the slot that holds the key; if it is to be deleted and nobody needs what is \
                 there, remove that with the vendor's tool and try again".into()
            }
            Error::NotProtected { .. } => "the key was removed again; use another token".into(),
            Error::DeadlineExceeded | Error::Busy { .. } => "try again later".into(),
            Error::Device { .. } | Error::MalformedReply { .. } => {
                "`claviger doctor` shows the state of the token".into()
            }
            Error::BadMessage { .. }
            | Error::DecryptionFailed
            | Error::HeaderTooLong { .. }
            | Error::Cancelled
            | Error::Rejected { .. }
            | Error::System { .. } => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_pasted_is_one_word_whatever_a_device_calls_itself() {
        let token = TokenId {
            kind: "pkcs11".into(),
            manufacturer: "x'; rm -rf ~; '".into(),
            serial: "1".into(),
        };
        let hint = Error::PinRefusedBefore { token }.hint();
        let word = r"'pkcs11:x'\''; rm -rf ~; '\''/1'";
        assert!(hint.ends_with(word), "{hint}");
        let several = Error::AmbiguousToken {
            wanted: "pkcs11:".into(),
            candidates: vec![
                "pkcs11:token=a;serial=1".into(),
                "pkcs11:token=$(id)".into(),
            ],
        };
        assert_eq!(
            several.hint(),
            "name one of them:\n  'pkcs11:token=a;serial=1'\n  'pkcs11:token=$(id)'"
        );
    }
}
