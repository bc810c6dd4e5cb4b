//! What to do after a failure: in the words of this command, keyed by the error's code.
//!
//! The crates below say what happened. Only this module knows which option or command helps.

use claviger_engine::opener::Holder;
use claviger_engine::{EngineError, RegistryError};
use claviger_formats::verdict::{CannotJudge, Looks};
use claviger_token::{Error as TokenError, KeySpec, KeyUse, shell};

use crate::drivers;

/// The hint for an engine's error; empty if there is nothing to do.
pub(crate) fn of(error: &EngineError) -> String {
    match error {
        EngineError::Token(error) | EngineError::KeyNotUsable { reason: error } => of_token(error),
        EngineError::Registry(error) => of_registry(error),
        EngineError::NoDriver { schemes, .. } => begin(schemes.iter().copied()),
        EngineError::KeyHasOwner { owner: None, .. } => String::new(),
        EngineError::KeyHasOwner {
            owner: Some(owner), ..
        } => format!(
            "connect to its identity: claviger connect NAME --to {}",
            shell::quoted(&owner.name)
        ),
        EngineError::InvalidEvidence { reason } => match by_code(reason.code()) {
            "" => reason.to_string(),
            hint => format!("{reason}; {hint}"),
        },
        EngineError::ReservedMessage { kind, .. } => reserved(kind).into(),
        EngineError::TokensAway { holders } => {
            format!("attach one of these tokens:{}", listed(holders))
        }
        EngineError::PinForSeveralTokens { holders } if !holders.is_empty() => format!(
            "name whose key to use: claviger decrypt NAME FILE, where NAME is one of:{}",
            listed(holders)
        ),
        other => by_code(other.code()).into(),
    }
}

/// The hint for a token's error.
pub(crate) fn of_token(error: &TokenError) -> String {
    match error {
        TokenError::BadBackend { backend, .. } => match drivers::of(backend) {
            Some(about) => format!("write it as {}", about.syntax),
            None => begin(drivers::ABOUT.iter().map(|about| about.scheme)),
        },
        TokenError::NotReady { cure, .. } => cure.clone(),
        TokenError::NoToken { wanted, present } => match present.is_empty() {
            true => format!("{}; `claviger doctor` says what is missing", absent(wanted)),
            false => format!("name one that is attached:{}", on_lines(present)),
        },
        TokenError::AmbiguousToken { candidates, .. } => {
            format!("name one of them:{}", on_lines(candidates))
        }
        TokenError::PinRefusedBefore { token } => format!(
            "give another PIN; if this one is right by now: {}",
            forget(&token.to_string())
        ),
        TokenError::PinUnsettled { token } => format!(
            "type the PIN (--pin-source prompt) and confirm that it is sent, or: {}",
            forget(&token.to_string())
        ),
        TokenError::Unsupported {
            wanted, supported, ..
        } if !supported.is_empty() => {
            let signs = KeySpec::sign(wanted.algorithm);
            let without = match wanted.usage == KeyUse::Decrypt && supported.contains(&signs) {
                true => "; --capabilities commit does without",
                false => "",
            };
            let supported = supported.iter().map(KeySpec::to_string);
            format!(
                "ask for what it offers: {}{without}",
                supported.collect::<Vec<_>>().join(", ")
            )
        }
        TokenError::AppNotOpen { app, .. } => {
            format!("open the app {app} on the device and try again")
        }
        TokenError::AppTooOld { app, .. } => {
            format!("update the app {app} with the vendor's own program")
        }
        TokenError::OnlyNamedSlots { token, left } => match left.first() {
            Some(slot) => format!(
                "name one in the backend, such as {}:slot={slot}, or delete identities that are \
                 no longer needed",
                token.kind
            ),
            None => by_code(error.code()).into(),
        },
        other => by_code(other.code()).into(),
    }
}

/// The hint for a place on this machine that cannot be read.
pub(crate) fn of_place(error: &EngineError) -> String {
    of_place_by(error.code()).unwrap_or_else(|| of(error))
}

/// The same for an error of this code, where it differs from that of other errors.
pub(crate) fn of_place_by(code: &str) -> Option<String> {
    let differs = code == "bad-module";
    differs.then(|| "install the module, or remove it from p11-kit's configuration".into())
}

/// The hint for an error of the registry.
pub(crate) fn of_registry(error: &RegistryError) -> String {
    match error {
        RegistryError::NotARegistry { .. } => format!(
            "{}; if the registry was here, {RESTORE}",
            by_code("home-not-a-folder")
        ),
        RegistryError::Empty { .. } => format!("{RESTORE}; to begin anew, remove the file"),
        RegistryError::Lost { left, .. } => format!(
            "{RESTORE}; to begin anew, remove it: rm {}",
            shell::quoted(&left.display().to_string())
        ),
        RegistryError::NotPrivate { path, .. } => format!(
            "let only yourself write to it: chmod go-w {}",
            shell::quoted(&path.display().to_string())
        ),
        other => by_code(other.code()).into(),
    }
}

/// The hint for a signature that cannot be judged.
pub(crate) fn of_verdict(reason: &CannotJudge) -> String {
    match reason {
        CannotJudge::UnknownForm { looks, .. } => match looks {
            Some(Looks::Base64) => "decode it first: base64 -d".into(),
            Some(Looks::Hex) => "decode it first: xxd -r -p".into(),
            _ => "give a raw signature (of ECDSA, r and s), DER, or an SSH signature".into(),
        },
        CannotJudge::Namespace { found, .. } => format!(
            "to accept this namespace, add --namespace {}",
            shell::quoted(found)
        ),
        CannotJudge::Ssh(reason) => by_code(reason.code()).into(),
        CannotJudge::LengthUnknown => "name the file that holds the message".into(),
        CannotJudge::Changed => "try again".into(),
        _ => String::new(),
    }
}

/// The hint for an error code, if it does not depend on the fields of the error.
pub(crate) fn by_code(code: &str) -> &'static str {
    known(code).unwrap_or_default()
}

/// The hint if the registry is lost.
const RESTORE: &str = "restore a backup: claviger restore FILE; without one, adopt each key that \
     is still on a token: claviger connect NAME --to FINGERPRINT";

/// `None` of a code that nobody thought of.
fn known(code: &str) -> Option<&'static str> {
    Some(match code {
        // Of tokens.
        "bad-backend" => "take the backend of a token from `claviger tokens`",
        "bad-module" => {
            "name the vendor's PKCS#11 library, built for this system: module-path=FILE"
        }
        "not-ready" | "no-token" => "`claviger doctor` says what is missing",
        "ambiguous-token" => "name one of them; `claviger tokens` lists them",
        "token-unavailable" => "insert the token and try again",
        "pin-needed" => {
            "give it with --pin-source env:VAR|file:PATH|fd:N|prompt|pinentry, or with \
             pin-source= in a PKCS#11 backend"
        }
        "pin-source" => "check the PIN source",
        "pin-length" => "check the PIN source; if the PIN is right, send it with --any-pin-length",
        "pin-wrong" => "check the PIN before you try again: a token locks after a few attempts",
        "pin-refused-before" => "give another PIN",
        "pin-unsettled" => "type the PIN (--pin-source prompt) and confirm that it is sent",
        "pin-not-noted" => {
            "check the permissions and the free space of the home folder; to send the PIN \
             without a record of its rejection, add --no-pin-ledger"
        }
        "pin-final-try" => "if you are sure of the PIN, add --last-try",
        "pin-locked" => "unlock it with the vendor's tool (PUK or security officer)",
        "pin-not-set" => {
            "set one as the security officer: pkcs11-tool --module MODULE --login \
             --login-type so --init-pin"
        }
        "pin-wait" => "wait, and look the PIN up meanwhile: no attempt was spent",
        "locked" => "unlock it: claviger unlock TOKEN; or give its PIN, which is not sent",
        "pin-differs" => "give the PIN that the token is unlocked with; no attempt was spent",
        "management-key-needed" => {
            "give it with --management-key env:VAR|file:PATH|fd:N|prompt|pinentry"
        }
        "management-key-wrong" => "check the source of the management key",
        "not-touched" => "try again, and touch it when it blinks",
        "device-locked" => "unlock it and try again",
        "app-not-open" => "open the app on the device and try again",
        "app-too-old" => "update the app with the vendor's own program",
        "cannot-destroy" => {
            "keep the identity, whose key still works, or reset the whole token with the \
             vendor's tool"
        }
        "unsupported" => "`claviger tokens` shows what the token offers",
        "not-usable" => {
            "name another key, or change the attributes of this one with the vendor's tool"
        }
        "no-possession" => {
            "name the key that the private half on the token belongs to; `claviger tokens` \
             lists them"
        }
        "no-such-slot" | "slot-occupied" => "name a free slot, or none",
        "only-named-slots" | "token-full" => "delete identities that are no longer needed",
        "token-read-only" => "remove the write protection",
        "key-not-found" => {
            "check whether somebody else deleted it, or whether it was made on another token"
        }
        "key-mismatch" => {
            "name the slot that holds the key; to delete it where nobody needs what is in the \
             slot now, remove that with the vendor's tool and try again"
        }
        "not-protected" => "use another token; the key was removed again",
        "deadline-exceeded" | "busy" => "try again later",
        "device" | "malformed-reply" => "`claviger doctor` shows the state of the token",
        // Of identities.
        "identity-exists" => "choose another name, or delete it first",
        "external-identity-not-found" => {
            "`claviger identities` lists the identities, `claviger tokens` the keys on tokens"
        }
        "capabilities-not-available" => {
            "ask for no more than the identity can do; a single key signs or decrypts, not both"
        }
        "identity-does-not-exist" => "`claviger identities` lists them",
        "identity-deleted" => "delete this identity too, and connect or generate it anew",
        "cannot-decrypt" => "ask for --capabilities commit, or for other --params",
        "no-driver" => "`claviger tokens` shows the backend of each token",
        "one-slot-for-two-keys" => "name no slot, or ask for one capability",
        "key-has-owner" => "connect to its identity",
        "derives-nothing" => {
            "`claviger doctor` lists keys on other tokens that no identity here uses"
        }
        "no-pair" => {
            "name one key that signs and one that decrypts; `claviger tokens` shows which does what"
        }
        "in-progress" | "reads-for-silent" => "try again in a moment",
        "deletion-unfinished" => {
            "insert the token and delete it again, or run: claviger doctor --repair"
        }
        "name-is-contact" => "choose another name, or remove the contact first",
        "no-encryption-key" => {
            "encrypt to somebody who has a key that decrypts; `claviger identities` and \
             `claviger contact list` show who does"
        }
        "evidence-exists" => "nothing needs to be done",
        "not-proven" | "no-such-grant" => "`claviger reads-for list` lists the grants",
        "nobody-opens" => "ask whom it was encrypted to; `claviger identities` lists who is here",
        "token-away" => "attach the token of one of its recipients",
        "person-needed" => "name the identity, and touch its token or approve on it",
        "use-not-confirmed" => "confirm it in the daemon's pinentry, which needs a screen",
        "pin-for-several-tokens" => "give each token its own PIN: --pin-source prompt",
        // Of the registry.
        "home-not-a-folder" => "name another folder with --home or CLAVIGER_HOME",
        "registry-copy" => "if no other copy is in use: claviger doctor --this-is-the-home",
        "registry-newer" => "use the newer program; nothing was changed",
        "registry-disk-full" => "free some space; nothing is lost",
        "registry-read-only" => "check the permissions of the home folder",
        "registry-busy" => "try again in a moment",
        "registry-in-use" => "end the other `claviger` processes of this home, and try again",
        "not-a-registry"
        | "registry-empty"
        | "registry-lost"
        | "registry-damaged"
        | "registry-row-altered" => RESTORE,
        "registry-not-private" => "let only yourself write to it",
        "name-is-identity" | "contact-exists" => "choose another name, or remove it first",
        "audit-unavailable" => {
            "free some space, or look at the permissions of the audit log; keys are used again then"
        }
        "audit-no-place" => "name a file: `[serve.audit] file`; or say mode = \"off\" there",
        "audit-cannot-seal" => {
            "name an identity with a signing key that no person has to touch or approve"
        }
        "bad-grant" => "`claviger grant add --help` lists operations and purposes",
        // Of a daemon.
        "no-daemon" => "start it: claviger serve; or do without: --no-daemon",
        "socket-path-too-long" => "name a socket in a folder with a shorter path",
        "socket-taken" => {
            "`claviger status` shows who serves there; or name another: --socket PATH"
        }
        "socket-in-the-way" => "look what it is, and remove it; or name another: --socket PATH",
        "socket-folder" => "name a folder that only you can write to: --socket PATH",
        "socket-failed" => "check the folder of the socket and its permissions",
        "socket-inherited" => "check the ListenStream= lines of claviger.socket",
        "daemon-running" => "`claviger status` shows it; a home has one daemon",
        "daemon-lock" => "check the permissions and the free space of the home folder",
        "draining" => "try again in a moment: another daemon may start",
        "caller-too-slow" => "try again",
        "data-too-long" => "have the header opened, and decrypt what follows it yourself",
        "bad-request" => "use the program and the daemon of one version",
        "no-grant" => "`claviger grant list` shows the numbers of the grants",
        "bad-device" => "correct how the program describes its device",
        "device-unproven" => "sign the challenge with the identity key of the device",
        "device-attached" => "end the other program that attaches the device",
        "connection-failed" | "daemon-silent" => "`claviger doctor` looks at the daemon",
        "daemon-not-trusted" => "do not use it: whoever runs it would get your PIN",
        "daemon-other-home" => "name its home with --home, or do without: --no-daemon",
        "daemon-gone" => "try again: nothing was done",
        "request-lost" => "look whether it was done before you try again",
        "protocol-version" => "restart the daemon after an update; both are one version then",
        "daemon-protocol"
        | "frame-too-long"
        | "frame-too-many-elements"
        | "frame-malformed"
        | "frame-truncated" => "check that it is a Claviger daemon, of the same version",
        // Of files.
        "evidence-malformed" => "ask for the file again; a newer version may have written it",
        "evidence-no-signer" => "let an identity grant it that has a signing key",
        "evidence-no-reader" => "grant it to an identity that has a decryption key",
        "evidence-bad-signature" => "ask the granter to grant it again: claviger reads-for grant",
        "evidence-other-keys" => {
            "`claviger identities` and `claviger contact list` show whose keys the name has here"
        }
        "ssh-signature-malformed" => "ask for the signature again, as ssh-keygen wrote it",
        "ssh-signature-version" => "update Claviger, or ask for a signature of version 1",
        "ssh-signature-hash" => {
            "ask for a signature with SHA-512: ssh-keygen -Y sign -O hashalg=sha512"
        }
        "ssh-signature-algorithm" => "ask for a signature by a key of another kind",
        "not-a-recipient" => "encrypt to a key that decrypts; `claviger contact list` shows them",
        "attestation-not-a-certificate" => "give X.509 certificates in PEM",
        // Of certificates.
        "certificate-empty-subject" | "certificate-bad-subject" => {
            "write the subject as in --subject 'CN=alice,O=Example'"
        }
        "certificate-bad-name" => {
            "name a host, an IP address, a mailbox or a URI: --san DNS:alice.example"
        }
        "certificate-unsupported" | "certificate-other-scheme" => {
            "make an identity whose key is P-256, P-384, Ed25519 or RSA, on a token that is not a \
             wallet"
        }
        "certificate-bad-period" => "name fewer days: --days 365",
        "certificate-malformed" => "give X.509 certificates in PEM, or one in DER",
        "certificate-other-key" => {
            "name the identity whose key was in the request; `claviger show NAME` shows its key"
        }
        "certificate-expired" => {
            "have the authority renew it: claviger certificate request NAME --subject SUBJECT"
        }
        "certificate-not-in-chain" => "leave the certificates away that did not issue it",
        // Nothing can be done about these, or the message says it all; of what depends on a
        // ciphertext nothing may be said.
        "bad-message"
        | "decryption-failed"
        | "header-too-long"
        | "cancelled"
        | "rejected"
        | "system"
        | "too-many-recipients"
        | "cannot-encrypt"
        | "not-allowed"
        | "backend-names-more"
        | "not-for-purpose"
        | "bad-name"
        | "no-such-engine"
        | "mailbox-full"
        | "mailbox-busy"
        | "name-taken"
        | "key-not-usable"
        | "invalid-evidence"
        | "evidence-bad-name"
        | "foreign-key-kind"
        | "foreign-key-malformed"
        | "foreign-key-no-use"
        | "attestation-empty"
        | "attestation-other-key"
        | "reserved-message"
        | "reply-too-long"
        | "registry-other" => "",
        _ => return None,
    })
}

/// How something is signed that is not signed as a document.
fn reserved(kind: &str) -> &'static str {
    match kind {
        "evidence" => {
            "make and sign it with `claviger reads-for grant` or `claviger reads-for revoke`"
        }
        "sshsig" | "ssh-login" | "ssh-certificate" | "tls" => {
            "sign the document as an SSH signature: claviger sign --format sshsig"
        }
        _ => "",
    }
}

fn forget(token: &str) -> String {
    format!(
        "claviger doctor --forget-refused-pin {}",
        shell::quoted(token)
    )
}

/// What to do where nothing is attached that `wanted` names, by what its driver says.
pub(crate) fn absent(wanted: &str) -> String {
    let steps = drivers::of(wanted).map_or(&[][..], |about| about.when_none);
    match steps.is_empty() {
        true => "attach the token".into(),
        false => steps.join("; "),
    }
}

/// What a backend begins with, by the schemes that there are.
fn begin(schemes: impl Iterator<Item = &'static str>) -> String {
    let mut schemes: Vec<String> = schemes.map(|scheme| format!("{scheme}:")).collect();
    let schemes = match schemes.pop() {
        Some(last) if !schemes.is_empty() => format!("{} or {last}", schemes.join(", ")),
        last => last.unwrap_or_default(),
    };
    format!("begin the backend with {schemes}; `claviger tokens` shows the backend of each token")
}

/// Backends, each as a word of a shell and on a line of its own.
fn on_lines(backends: &[String]) -> String {
    let lines = backends
        .iter()
        .map(|text| format!("\n  {}", shell::quoted(text)));
    lines.collect()
}

fn listed(holders: &[Holder]) -> String {
    let lines = holders.iter().map(|holder| format!("\n  {holder}"));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_token::TokenId;

    #[test]
    fn what_is_to_be_pasted_is_one_word_whatever_a_device_calls_itself() {
        let token = TokenId {
            kind: "pkcs11".into(),
            manufacturer: "x'; rm -rf ~; '".into(),
            serial: "1".into(),
        };
        let hint = of_token(&TokenError::PinRefusedBefore { token });
        let word = r"'pkcs11:x'\''; rm -rf ~; '\''/1'";
        assert!(hint.ends_with(word), "{hint}");
        let several = TokenError::AmbiguousToken {
            wanted: "pkcs11:".into(),
            candidates: vec![
                "pkcs11:token=a;serial=1".into(),
                "pkcs11:token=$(id)".into(),
            ],
        };
        assert_eq!(
            of_token(&several),
            "name one of them:\n  'pkcs11:token=a;serial=1'\n  'pkcs11:token=$(id)'"
        );
    }

    #[test]
    fn every_code_of_the_crates_below_has_a_hint_or_is_known_to_need_none() {
        let list = include_str!("../../ERRORS.md");
        let (below, _) = list.split_once("\n## Command\n").unwrap();
        let codes: Vec<&str> = below
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .collect();
        assert!(codes.len() > 80, "{codes:?}");
        let forgotten: Vec<_> = codes.iter().filter(|code| known(code).is_none()).collect();
        assert!(forgotten.is_empty(), "{forgotten:?}");
        assert_eq!(known("no such code"), None);
    }

    #[test]
    fn a_backend_that_is_malformed_is_answered_with_the_syntax_of_its_driver() {
        for about in drivers::ABOUT {
            let error = TokenError::BadBackend {
                backend: format!("{}:=", about.scheme),
                reason: "x".into(),
            };
            assert_eq!(of_token(&error), format!("write it as {}", about.syntax));
        }
    }

    #[test]
    fn where_no_token_is_attached_its_driver_says_what_to_look_at() {
        for about in drivers::ABOUT {
            let error = TokenError::NoToken {
                wanted: format!("{}:", about.scheme),
                present: Vec::new(),
            };
            let hint = of_token(&error);
            assert!(!about.when_none.is_empty(), "{}", about.scheme);
            for step in about.when_none {
                assert!(hint.contains(step), "{hint}");
            }
        }
    }

    #[test]
    fn a_backend_without_a_driver_is_answered_with_the_schemes_of_the_node() {
        let error = EngineError::NoDriver {
            backend: "nfc:".into(),
            schemes: vec!["cards", "safes"],
        };
        assert!(
            of(&error).starts_with("begin the backend with cards: or safes:;"),
            "{}",
            of(&error)
        );
    }
}
