//! What modules do differently, as data.

use claviger_token::{Algorithm, Pace};

/// How the tokens of one kind differ from what the standard leads one to expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quirks {
    /// How a key pair is made so that a crash leaves no half of it behind.
    pub generate: Generate,
    /// With which mechanism X25519 key pairs are made.
    pub x25519: X25519,
    /// The Weierstrass curves that are known to work. The mechanism list (PKCS#11
    /// v2.40 §2.3.3) tells the sizes of curves, not which.
    pub curves: &'static [Algorithm],
    /// Whether the module is to hash what RSA keys sign (`CKM_SHA256_RSA_PKCS`), instead of
    /// being given the hash (`CKM_RSA_PKCS`).
    pub rsa_hashes: bool,
    /// Whether RSA-OAEP really works with SHA-256; the mechanism list does not tell.
    pub oaep_sha256: bool,
    /// Whether a public key's `CKA_VERIFY` and `CKA_ENCRYPT` can be chosen, and tell what the
    /// private key is for.
    pub public_uses: bool,
    /// Whether handles stop to be unique once an object was destroyed, until `C_Finalize` and
    /// `C_Initialize`.
    pub reuses_handles: bool,
    /// Whether a token that went away is seen again only after `C_Finalize` and
    /// `C_Initialize`.
    pub forgets_tokens: bool,
    /// Whether the token shows each time that a wrong PIN was given since the last right one
    /// (`CKF_USER_PIN_COUNT_LOW`); the standard lets it show nothing.
    pub shows_wrong_pins: bool,
    /// Where operations are to be run.
    pub pace: Pace,
}

/// How a key pair is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generate {
    /// With one `C_GenerateKeyPair` of token objects.
    Direct,
    /// As session objects, which die with the process, and then copied
    /// (`C_CopyObject`), so that every key object on the token has its `CKA_ID`. The
    /// standard keeps `CKA_LOCAL`, `CKA_ALWAYS_SENSITIVE` and `CKA_NEVER_EXTRACTABLE`
    /// through the copy (PKCS#11 v2.40 §4.4.1, §4.9).
    ViaSession,
}

/// With which mechanism X25519 key pairs are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum X25519 {
    /// `CKM_EC_MONTGOMERY_KEY_PAIR_GEN`, as PKCS#11 v3.0 §2.3.7 has it.
    Montgomery,
    /// `CKM_EC_EDWARDS_KEY_PAIR_GEN` with the parameters of X25519.
    Edwards,
}

/// What is assumed of a token that the table does not know.
const STANDARD: Quirks = Quirks {
    generate: Generate::Direct,
    x25519: X25519::Montgomery,
    curves: &[Algorithm::P256, Algorithm::P384],
    rsa_hashes: false,
    oaep_sha256: false,
    public_uses: true,
    reuses_handles: false,
    forgets_tokens: false,
    shows_wrong_pins: false,
    pace: Pace::Slow { workers: 4 },
};

/// SoftHSM 2.6.1. `C_GenerateKeyPair` of token objects writes an object attribute by
/// attribute, so that a crash leaves parts, some of them keys without a `CKA_ID`; it also
/// takes eight times as long as making session objects and copying them. A copy is
/// written at once; a crash in it leaves at most an empty file, or an object without any
/// attribute, which is no key and cannot be told from others' of that kind. OAEP takes
/// SHA-1 only.
/// A token whose folder was away stays invalid in a process even after it is back. Wrong
/// PINs are shown, but never lock it.
const SOFTHSM: Quirks = Quirks {
    generate: Generate::ViaSession,
    x25519: X25519::Edwards,
    curves: &[Algorithm::P256, Algorithm::P384, Algorithm::Secp256k1],
    rsa_hashes: false,
    oaep_sha256: false,
    public_uses: true,
    reuses_handles: false,
    forgets_tokens: true,
    shows_wrong_pins: true,
    pace: Pace::Quick,
};

/// Kryoptic 1.5.4. OAEP takes SHA-256. Wrong PINs are counted: the token says so after the
/// seventh, that one try is left after the ninth, and is locked after the tenth; but only
/// to the process that sent them, since its flags are read from the file at a login. What
/// cannot be read from its file is `CKR_DEVICE_MEMORY` or `CKR_GENERAL_ERROR`. It has its file
/// open, and does not notice when that is moved away.
const KRYOPTIC: Quirks = Quirks {
    oaep_sha256: true,
    pace: Pace::Quick,
    ..STANDARD
};

/// tpm2-pkcs11 1.9.0. `CKM_RSA_PKCS` asks the TPM to decrypt, which a key that only signs
/// must not; `CKM_SHA256_RSA_PKCS` asks it to sign. OAEP takes SHA-256, but a TPM takes no
/// label that does not end with a zero byte (TPM 2.0 part 3, TPM2_RSA_Decrypt), so not
/// the one of age. `CKA_VERIFY` in a template sets the TPM's attribute for decryption and
/// `CKA_ENCRYPT` that for signing, and what contradicts the private half is refused. With
/// two keys (handles 1 to 4) and the first one destroyed, both halves of the next get
/// handle 3, which the second key still has; the TPM, asked to sign with what is found
/// there, refuses all further work (swtpm 0.7.1). Wrong PINs lock the TPM, which the flags
/// do not show.
const TPM2: Quirks = Quirks {
    rsa_hashes: true,
    public_uses: false,
    reuses_handles: true,
    ..STANDARD
};

/// A row of the table; an empty string fits everything.
struct Row {
    /// How the library's manufacturer begins (`C_GetInfo`).
    library: &'static str,
    /// How the token's manufacturer begins (`C_GetTokenInfo`).
    manufacturer: &'static str,
    /// How the token's model begins.
    model: &'static str,
    quirks: Quirks,
}

/// The first row that fits counts.
const TABLE: [Row; 4] = [
    Row {
        library: "SoftHSM",
        manufacturer: "SoftHSM",
        model: "",
        quirks: SOFTHSM,
    },
    // The same behind a p11-kit server: across a socket, and not ours to restart.
    Row {
        library: "",
        manufacturer: "SoftHSM",
        model: "",
        quirks: Quirks {
            forgets_tokens: false,
            pace: Pace::Slow { workers: 4 },
            ..SOFTHSM
        },
    },
    Row {
        library: "Kryoptic",
        manufacturer: "Kryoptic",
        model: "",
        quirks: KRYOPTIC,
    },
    // The token's manufacturer is the TPM's.
    Row {
        library: "tpm2-software",
        manufacturer: "",
        model: "",
        quirks: TPM2,
    },
];

/// The quirks of a token, by what the module and the token say of themselves.
pub fn of(library: &str, manufacturer: &str, model: &str) -> &'static Quirks {
    TABLE
        .iter()
        .find(|row| {
            library.starts_with(row.library)
                && manufacturer.starts_with(row.manufacturer)
                && model.starts_with(row.model)
        })
        .map_or(&STANDARD, |row| &row.quirks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_known_by_their_makers() {
        assert_eq!(of("SoftHSM", "SoftHSM project", "SoftHSM v2"), &SOFTHSM);
        let remote = of("PKCS#11 Kit", "SoftHSM project", "SoftHSM v2");
        assert_eq!(remote.generate, Generate::ViaSession);
        assert_ne!(remote.pace, Pace::Quick);
        assert_eq!(of("Kryoptic", "Kryoptic Project", "v1"), &KRYOPTIC);
        assert_eq!(of("tpm2-software.github.io", "IBM", "SW   TPM"), &TPM2);
        assert_eq!(of("", "", ""), &STANDARD);
        assert_eq!(of("Somebody", "Somebody", "HSM"), &STANDARD);
    }
}
