//! Quirks of modules, as data.
//!
//! A token is recognised by what it and its slot state, not by the library: behind p11-kit's proxy
//! or client the library is p11-kit. Only properties of the library itself, such as its speed, are
//! keyed by the library.

use claviger_token::{Algorithm, Pace};

/// How the tokens of one kind deviate from the standard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quirks {
    /// How a key pair is generated, so that a crash leaves no half of it.
    pub generate: Generate,
    /// The mechanism that generates X25519 key pairs.
    pub x25519: X25519,
    /// The Weierstrass curves that are known to work. The mechanism list (PKCS#11 v2.40 §2.3.3)
    /// states the sizes of curves, not the curves.
    pub curves: &'static [Algorithm],
    /// Whether the module hashes what RSA keys sign (`CKM_SHA256_RSA_PKCS`), instead of being given
    /// the hash (`CKM_RSA_PKCS`).
    pub rsa_hashes: bool,
    /// Whether RSA-OAEP works with SHA-256; the mechanism list does not state it.
    pub oaep_sha256: Oaep,
    /// Whether the token is unknown, so that what it states is tried.
    pub unknown: bool,
    /// Whether a public key's `CKA_VERIFY` and `CKA_ENCRYPT` can be set, and show the use of the
    /// private key.
    pub public_uses: bool,
    /// Whether a handle never refers to another object, so that a signature made with it need not
    /// be verified. This is assumed only of tokens for which a test shows it.
    pub unique_handles: bool,
    /// Whether handles are no longer unique after an object was destroyed, until `C_Finalize` and
    /// `C_Initialize`.
    pub reuses_handles: bool,
    /// Whether a serial number, if there is one, identifies a token of its maker. If not, the label
    /// is part of the token's name.
    pub unique_serial: bool,
    /// The owner of the PIN, if another driver reaches the same card: that driver's scheme and its
    /// name of the manufacturer. The serial number is the same.
    pub pin_of: Option<(&'static str, &'static str)>,
    /// Whether a token that was removed is found again only after `C_Finalize` and `C_Initialize`.
    pub forgets_tokens: bool,
    /// Whether the token always shows that a wrong PIN was sent since the last right one
    /// (`CKF_USER_PIN_COUNT_LOW`); the standard does not require it.
    pub shows_wrong_pins: bool,
    /// Where operations run.
    pub pace: Pace,
}

/// How a key pair is generated.
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

/// Whether RSA-OAEP works with SHA-256 and the label of age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oaep {
    /// It does.
    Works,
    /// It does not.
    Fails,
    /// Not tried.
    Untried,
}

/// The mechanism that generates X25519 key pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum X25519 {
    /// `CKM_EC_MONTGOMERY_KEY_PAIR_GEN`, as PKCS#11 v3.0 §2.3.7 has it.
    Montgomery,
    /// `CKM_EC_EDWARDS_KEY_PAIR_GEN` with the parameters of X25519.
    Edwards,
}

/// The assumptions about a token that is not in the table.
const STANDARD: Quirks = Quirks {
    generate: Generate::Direct,
    x25519: X25519::Montgomery,
    curves: &[Algorithm::P256, Algorithm::P384],
    rsa_hashes: false,
    oaep_sha256: Oaep::Untried,
    unknown: true,
    public_uses: true,
    unique_handles: false,
    reuses_handles: false,
    unique_serial: true,
    pin_of: None,
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
/// PINs are shown, but never lock it. Handles are numbers that only grow.
const SOFTHSM: Quirks = Quirks {
    generate: Generate::ViaSession,
    x25519: X25519::Edwards,
    curves: &[Algorithm::P256, Algorithm::P384, Algorithm::Secp256k1],
    oaep_sha256: Oaep::Fails,
    unknown: false,
    unique_handles: true,
    forgets_tokens: true,
    shows_wrong_pins: true,
    pace: Pace::Quick,
    ..STANDARD
};

/// Kryoptic 1.5.4. OAEP takes SHA-256. Wrong PINs are counted: the token says so after the
/// seventh, that one try is left after the ninth, and is locked after the tenth; but only
/// to the process that sent them, since its flags are read from the file at a login. What
/// cannot be read from its file is `CKR_DEVICE_MEMORY` or `CKR_GENERAL_ERROR`. It has its file
/// open, and does not notice when that is moved away. Handles are numbers that only grow.
const KRYOPTIC: Quirks = Quirks {
    oaep_sha256: Oaep::Works,
    unknown: false,
    unique_handles: true,
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
/// do not show. The token's maker and model are the TPM's, and the serial is all zeros; but the
/// slot says what the token says.
const TPM2: Quirks = Quirks {
    oaep_sha256: Oaep::Fails,
    unknown: false,
    rsa_hashes: true,
    public_uses: false,
    reuses_handles: true,
    ..STANDARD
};

/// opencryptoki 3.8.1. Every token of every kind that it has says that its serial is 123. A freed
/// handle is given to the next object at once.
const OPENCRYPTOKI: Quirks = Quirks {
    unique_serial: false,
    ..STANDARD
};

/// ykcs11 2.2.0: a YubiKey with the serial that its PIV application tells, which is what the
/// PIV driver calls it by.
const YKCS11: Quirks = Quirks {
    pin_of: Some(("piv", "Yubico")),
    ..STANDARD
};

/// What a module, a slot and a token state about themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Said<'a> {
    /// The library's manufacturer (`C_GetInfo`).
    pub library: &'a str,
    /// The token's manufacturer (`C_GetTokenInfo`).
    pub manufacturer: &'a str,
    /// The token's model.
    pub model: &'a str,
    /// The token's serial.
    pub serial: &'a str,
    /// The token's label.
    pub label: &'a str,
    /// The slot's manufacturer (`C_GetSlotInfo`), where the slot was asked.
    pub slot_manufacturer: &'a str,
    /// The slot's description.
    pub slot_description: &'a str,
}

impl Said<'_> {
    /// Whether the slot repeats the token's statements and the token has no serial number:
    /// tpm2-pkcs11.
    fn slot_is_token(&self) -> bool {
        is_blank(self.serial)
            && !self.label.is_empty()
            && self.slot_description == self.label
            && self.slot_manufacturer == self.manufacturer
    }
}

/// Whether a serial number is blank or zero.
pub(crate) fn is_blank(serial: &str) -> bool {
    serial.chars().all(|c| ['0', ' ', '\0'].contains(&c))
}

/// A row of the table.
struct Row {
    fits: fn(&Said<'_>) -> bool,
    quirks: Quirks,
}

/// The first matching row counts. If the library is not the token's own, calls go through another
/// one, often across a socket, and the module behind it is not ours to restart.
const TABLE: [Row; 7] = [
    Row {
        fits: |said| said.library.starts_with("SoftHSM") && is_softhsm(said),
        quirks: SOFTHSM,
    },
    Row {
        fits: is_softhsm,
        quirks: Quirks {
            unique_handles: false,
            forgets_tokens: false,
            pace: STANDARD.pace,
            ..SOFTHSM
        },
    },
    Row {
        fits: |said| said.library.starts_with("Kryoptic") && is_kryoptic(said),
        quirks: KRYOPTIC,
    },
    Row {
        fits: is_kryoptic,
        quirks: Quirks {
            unique_handles: false,
            pace: STANDARD.pace,
            ..KRYOPTIC
        },
    },
    Row {
        fits: |said| said.library.starts_with("tpm2-software") || said.slot_is_token(),
        quirks: TPM2,
    },
    Row {
        fits: |said| said.manufacturer.starts_with("IBM") && said.serial == "123",
        quirks: OPENCRYPTOKI,
    },
    Row {
        fits: |said| said.manufacturer.starts_with("Yubico") && said.model.starts_with("YubiKey"),
        quirks: YKCS11,
    },
];

fn is_softhsm(said: &Said<'_>) -> bool {
    said.manufacturer.starts_with("SoftHSM")
}

fn is_kryoptic(said: &Said<'_>) -> bool {
    said.manufacturer.starts_with("Kryoptic")
}

/// The quirks of a token, by its statements.
pub fn of(said: &Said<'_>) -> &'static Quirks {
    let row = TABLE.iter().find(|row| (row.fits)(said));
    row.map_or(&STANDARD, |row| &row.quirks)
}

/// Whether a library finds a removed token again only after `C_Finalize` and `C_Initialize`.
pub(crate) fn library_forgets_tokens(library: &str) -> bool {
    let of_its_own = Said {
        library,
        manufacturer: library,
        ..Said::default()
    };
    of(&of_its_own).forgets_tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<'a>(library: &'a str, manufacturer: &'a str, model: &'a str) -> Said<'a> {
        Said {
            library,
            manufacturer,
            model,
            serial: "0a1b",
            label: "label",
            slot_manufacturer: "Somebody",
            slot_description: "slot 1",
        }
    }

    #[test]
    fn tokens_are_known_by_what_they_say_whatever_library_is_in_front() {
        let softhsm = |library| of(&said(library, "SoftHSM project", "SoftHSM v2"));
        assert_eq!(softhsm("SoftHSM"), &SOFTHSM);
        let remote = softhsm("PKCS#11 Kit");
        assert_eq!(remote.generate, Generate::ViaSession);
        assert_ne!(remote.pace, Pace::Quick);
        assert!(!remote.forgets_tokens);

        let kryoptic = |library| of(&said(library, "Kryoptic Project", "v1"));
        assert_eq!(kryoptic("Kryoptic"), &KRYOPTIC);
        assert_eq!(kryoptic("PKCS#11 Kit").oaep_sha256, Oaep::Works);
        assert_ne!(kryoptic("PKCS#11 Kit").pace, Pace::Quick);

        let tpm = Said {
            serial: "0000000000000000",
            slot_manufacturer: "IBM",
            slot_description: "label",
            ..said("PKCS#11 Kit", "IBM", "SW   TPM")
        };
        assert_eq!(of(&tpm), &TPM2);
        // NSS has no serial either.
        let nss = Said {
            manufacturer: "Mozilla Foundation",
            slot_manufacturer: "Mozilla Foundation",
            slot_description: "NSS User Private Key and Certificate Services",
            ..tpm
        };
        assert_eq!(of(&nss), &STANDARD);
    }

    #[test]
    fn of_an_unknown_token_nothing_good_is_assumed() {
        for unknown in [Said::default(), said("Somebody", "Somebody", "HSM")] {
            assert_eq!(of(&unknown), &STANDARD);
        }
        let kinds = [
            &STANDARD,
            &SOFTHSM,
            &KRYOPTIC,
            &TPM2,
            &OPENCRYPTOKI,
            &YKCS11,
        ];
        assert_eq!(
            kinds.map(|q| q.unique_handles),
            [false, true, true, false, false, false]
        );
    }

    #[test]
    fn a_serial_that_a_maker_gives_to_all_is_known() {
        let soft = Said {
            serial: "123",
            ..said("PKCS#11 Kit", "IBM", "Soft")
        };
        assert!(!of(&soft).unique_serial);
        assert!(
            of(&Said {
                serial: "124",
                ..soft
            })
            .unique_serial
        );
    }
}
