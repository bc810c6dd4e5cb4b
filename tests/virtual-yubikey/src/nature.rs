//! What sets the cards of others apart from a YubiKey, as data. Each was seen on a card that
//! anybody can have (CanoKey, PivApplet, pico-openpgp) or follows from the standard.

use crate::apdu::Status;
use crate::firmware::Firmware;
use crate::keys::Algorithm;

/// How a card differs from a YubiKey of its firmware. At first, not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nature {
    /// The last retired slot: after it there are neither slots nor certificate objects.
    pub last_retired: u8,
    /// What GET METADATA says of a reference that the card does not know, and of an empty slot.
    pub unknown_reference: Status,
    /// Whether GET METADATA names the algorithm of a PIN or PUK (tag 01).
    pub names_algorithm_of_pins: bool,
    /// Whether GET METADATA answers for an empty slot, without saying that it is empty.
    pub metadata_of_empty_slots: bool,
    /// Whether ATTEST works, and the attestation key's certificate is there.
    pub attests: bool,
    /// Whether GENERATE and IMPORT take Yubico's policies for PIN and touch.
    pub takes_policies: bool,
    /// Whether GENERATE writes a certificate of the new key into the slot's object.
    pub writes_certificates: bool,
    /// Whether keys agree on secrets at all.
    pub agrees: bool,
    /// Whether its Ed25519 signatures are signatures.
    pub ed25519_verifies: bool,
    /// Whether SELECT is the only command that it answers.
    pub answers: bool,
}

impl Nature {
    /// A YubiKey.
    pub const YUBIKEY: Nature = Nature {
        last_retired: 0x95,
        unknown_reference: Status::REFERENCE_NOT_FOUND,
        names_algorithm_of_pins: true,
        metadata_of_empty_slots: false,
        attests: true,
        takes_policies: true,
        writes_certificates: false,
        agrees: true,
        ed25519_verifies: true,
        answers: true,
    };
    /// As CanoKey: it says that it is firmware 5.7.0, and has two retired slots, no MOVE KEY
    /// and nobody's attestation.
    pub const CANOKEY: Nature = Nature {
        last_retired: 0x83,
        attests: false,
        ..Nature::YUBIKEY
    };
    /// As PivApplet: its metadata lacks the algorithm of PINs, is there for empty slots, and
    /// an unknown reference is a wrong P2.
    pub const PIVAPPLET: Nature = Nature {
        unknown_reference: Status::WRONG_P1_P2,
        names_algorithm_of_pins: false,
        metadata_of_empty_slots: true,
        attests: false,
        ..Nature::YUBIKEY
    };
    /// As pico-openpgp: GENERATE leaves a certificate of the card's own in the slot.
    pub const PICO: Nature = Nature {
        writes_certificates: true,
        attests: false,
        ..Nature::YUBIKEY
    };
    /// It makes keys that never agree on anything.
    pub const WITHOUT_AGREEMENT: Nature = Nature {
        agrees: false,
        attests: false,
        ..Nature::YUBIKEY
    };
    /// Its Ed25519 signatures do not verify.
    pub const BROKEN_ED25519: Nature = Nature {
        ed25519_verifies: false,
        attests: false,
        ..Nature::YUBIKEY
    };
    /// It selects, and answers nothing else.
    pub const MUTE: Nature = Nature {
        answers: false,
        ..Nature::YUBIKEY
    };
}

const ALGORITHMS_OF_OTHERS: &[Algorithm] = &[
    Algorithm::Rsa2048,
    Algorithm::P256,
    Algorithm::P384,
    Algorithm::Ed25519,
    Algorithm::X25519,
];

impl Firmware {
    /// What a CanoKey says of itself.
    pub const CANOKEY: Firmware = Firmware {
        version: [5, 7, 0],
        algorithms: ALGORITHMS_OF_OTHERS,
        move_keys: false,
        ..Firmware::V5_7_1
    };
    /// What PivApplet says of itself.
    pub const PIVAPPLET: Firmware = Firmware {
        move_keys: false,
        ..Firmware::V5_4_3
    };
    /// What pico-openpgp says of itself.
    pub const PICO: Firmware = Firmware {
        version: [5, 7, 0],
        move_keys: false,
        ..Firmware::V5_7_1
    };
}
