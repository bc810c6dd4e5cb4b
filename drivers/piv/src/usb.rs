//! The USB ids of smartcards that are tokens by themselves.
//!
//! `udev/70-claviger.rules` gives access to the nodes for their vendors' tools; a test compares
//! the two.

use claviger_token::usb::{UsbFamily, UsbInterface, UsbNode};

/// CCID, through which pcscd reaches a card.
const fn smartcard(when_absent: &'static str) -> UsbInterface {
    UsbInterface {
        class: "0b",
        name: "a smartcard interface",
        when_absent,
    }
}

pub(crate) const USB: &[UsbFamily] = &[
    UsbFamily::new("YubiKey", "1050")
        .products(&[
            "0010", "0110", "0111", "0112", "0113", "0114", "0115", "0116", "0401", "0402", "0403",
            "0404", "0405", "0406", "0407", "0410",
        ])
        .nodes(&[UsbNode::Hidraw])
        .interface(smartcard("enable it: ykman config usb -e PIV")),
    UsbFamily::new("Nitrokey", "20a0")
        .products(&["4108", "4109", "42b2", "42f3"])
        .nodes(&[UsbNode::Hidraw])
        .interface(smartcard("use a device that shows one")),
    // Smartcards and nothing else.
    UsbFamily::new("Nitrokey", "20a0")
        .products(&["4107", "4211", "4230"])
        .interface(smartcard("use a device that shows one")),
];
