//! Virtual smartcards, in readers of this process.

use std::sync::Arc;

use claviger_piv::{LONGEST_ED25519_MESSAGE, PivDriver};
use claviger_token::{Access, FixedPin, Protection};
use claviger_virtual_yubikey::{
    Card, Device as CardDevice, Firmware, Neighbour as CardNeighbour, Smartcard,
};

use super::{ALL_THERE_IS, GENERATES_ALWAYS, Kind, Parts, Tray, Virtual, device, switch};
use crate::bench::{BoxedOthers, Possible};
use crate::devices::Device;
use crate::readers::{Gate, Tapped};
use crate::transcript::Tap;

pub(super) const VIRTUALS: &[Virtual] = &[
    Virtual {
        name: "yubikey-4.3.5",
        missing: || None,
        start: |parts| yubikey(parts, Firmware::V4_3_5, 4_350_001),
    },
    Virtual {
        name: "yubikey-5.4.3",
        missing: || None,
        start: |parts| yubikey(parts, Firmware::V5_4_3, 54_300_001),
    },
    Virtual {
        name: "yubikey-5.7.1",
        missing: || None,
        start: |parts| yubikey(parts, Firmware::V5_7_1, 57_100_001),
    },
    #[cfg(feature = "independent-card")]
    Virtual {
        name: "piv-authenticator",
        missing: || None,
        start: independent,
    },
];

fn yubikey(parts: &Parts<'_>, firmware: Firmware, serial: u32) -> Device {
    let yubikey = Card::builder().firmware(firmware).serial(serial);
    let yubikey = CardDevice::new(yubikey.pin("246802").build());
    let others = Box::new(CardNeighbour::on(yubikey.clone()));
    let (tray, serial) = (Tray::with(yubikey), serial.to_string());
    card(parts, tray, &serial, "246802", Ok(others))
}

#[cfg(feature = "independent-card")]
fn independent(parts: &Parts<'_>) -> Device {
    let independent = claviger_independent_card::Card::new();
    let serial = claviger_token::key::to_hex(&independent.guid());
    let tray = Tray::with(CardDevice::new(independent));
    let others = Err("no other program works on this card here");
    card(parts, tray, &serial, "123456", others)
}

/// The management key with which cards are delivered. Public knowledge.
const MANAGEMENT_KEY: &str = "010203040506070801020304050607080102030405060708";

fn card<C: Smartcard>(
    parts: &Parts<'_>,
    tray: Tray<C>,
    serial: &str,
    pin: &str,
    others: Possible<BoxedOthers>,
) -> Device {
    let tap = Arc::<Tap>::default();
    let tapped = Tapped {
        inner: Arc::new(tray.clone()),
        hidden: Arc::new([]),
        gate: Gate::Open,
        tap: Arc::clone(&tap),
    };
    let (off, on) = (tray.clone(), tray.clone());
    let kind = Kind {
        make: Box::new(move || Arc::new(PivDriver::with_readers(tapped.clone()))),
        backend: format!("piv:serial={serial}"),
        access: Access {
            management_keys: Arc::new(FixedPin::new(MANAGEMENT_KEY)),
            ..Access::with(FixedPin::new(pin))
        },
        wrong: Ok(Access::with(FixedPin::new("135791"))),
        absent: "piv:serial=4294967295".into(),
        plug: switch(move || off.take_out(), move || on.put_in()),
        others,
        restart: Err(ALL_THERE_IS),
        generates_none: Err(GENERATES_ALWAYS),
        protection: Protection::FULL,
        tap,
        max_keys: None,
        longest_message: usize::MAX,
        longest_ed25519_message: match parts.name {
            "yubikey-5.7.1" => LONGEST_ED25519_MESSAGE,
            _ => usize::MAX,
        },
        home: Box::new(tray),
    };
    device(parts, kind)
}
