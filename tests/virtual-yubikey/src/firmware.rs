//! What each firmware has, as data.
//!
//! From Yubico's release notes and technical manual: PIN and touch policies and
//! attestation since 4.x, the serial within PIV since 5.0, metadata since 5.3, AES
//! management keys since 5.4.2; Ed25519, X25519, RSA-3072 and RSA-4096, moving and
//! deleting keys, and an AES-192 management key from the factory since 5.7.

use crate::auth::ManagementAlgorithm;
use crate::keys::Algorithm;

/// A YubiKey's firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firmware {
    /// Major, minor, patch.
    pub version: [u8; 3],
    /// What keys it makes, takes and works with.
    pub algorithms: &'static [Algorithm],
    /// What management keys it takes; the first is the factory's.
    pub management: &'static [ManagementAlgorithm],
    /// Whether it has GET SERIAL. An older one tells its serial in the OTP application.
    pub serial: bool,
    /// Whether it has GET METADATA.
    pub metadata: bool,
    /// Whether keys can be moved and deleted.
    pub move_keys: bool,
    /// Its answer to reset, over USB.
    pub atr: &'static [u8],
}

const ALGORITHMS_4: &[Algorithm] = &[
    Algorithm::Rsa1024,
    Algorithm::Rsa2048,
    Algorithm::P256,
    Algorithm::P384,
];
const ALGORITHMS_5_7: &[Algorithm] = &[
    Algorithm::Rsa1024,
    Algorithm::Rsa2048,
    Algorithm::Rsa3072,
    Algorithm::Rsa4096,
    Algorithm::P256,
    Algorithm::P384,
    Algorithm::Ed25519,
    Algorithm::X25519,
];
/// "Yubikey4" in the historical bytes.
const ATR_4: &[u8] = &[
    0x3b, 0xf8, 0x13, 0x00, 0x00, 0x81, 0x31, 0xfe, 0x15, 0x59, 0x75, 0x62, 0x69, 0x6b, 0x65, 0x79,
    0x34, 0xd4,
];
/// "YubiKey" in the historical bytes.
const ATR_5: &[u8] = &[
    0x3b, 0xfd, 0x13, 0x00, 0x00, 0x81, 0x31, 0xfe, 0x15, 0x80, 0x73, 0xc0, 0x21, 0xc0, 0x57, 0x59,
    0x75, 0x62, 0x69, 0x4b, 0x65, 0x79, 0x40,
];

impl Firmware {
    /// The last YubiKey 4.
    pub const V4_3_5: Firmware = Firmware {
        version: [4, 3, 5],
        algorithms: ALGORITHMS_4,
        management: &[ManagementAlgorithm::TripleDes],
        serial: false,
        metadata: false,
        move_keys: false,
        atr: ATR_4,
    };
    /// A YubiKey 5 without metadata.
    pub const V5_2_4: Firmware = Firmware {
        version: [5, 2, 4],
        serial: true,
        atr: ATR_5,
        ..Firmware::V4_3_5
    };
    /// A YubiKey 5 with metadata and AES management keys.
    pub const V5_4_3: Firmware = Firmware {
        version: [5, 4, 3],
        management: &[
            ManagementAlgorithm::TripleDes,
            ManagementAlgorithm::Aes128,
            ManagementAlgorithm::Aes192,
            ManagementAlgorithm::Aes256,
        ],
        metadata: true,
        ..Firmware::V5_2_4
    };
    /// A YubiKey 5 with everything that this crate knows.
    pub const V5_7_1: Firmware = Firmware {
        version: [5, 7, 1],
        algorithms: ALGORITHMS_5_7,
        management: &[
            ManagementAlgorithm::Aes192,
            ManagementAlgorithm::TripleDes,
            ManagementAlgorithm::Aes128,
            ManagementAlgorithm::Aes256,
        ],
        move_keys: true,
        ..Firmware::V5_4_3
    };

    /// Every firmware that this crate knows, the oldest first.
    pub const ALL: [Firmware; 4] = [
        Firmware::V4_3_5,
        Firmware::V5_2_4,
        Firmware::V5_4_3,
        Firmware::V5_7_1,
    ];
}
