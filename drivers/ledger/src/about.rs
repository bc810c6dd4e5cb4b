//! What the driver says of itself to people.

use claviger_token::usb::{UsbFamily, UsbNode};
use claviger_token::{About, Example};

use crate::backend::SCHEME;

pub(crate) const ABOUT: About = About::new(SCHEME, "a Ledger")
    .written(
        "ledger:[serial=HEX][;account=NUMBER][;tcp=HOST:PORT]",
        &[
            Example::new("ledger:", "the Ledger, if only one is attached"),
            Example::new(
                "ledger:serial=0123456789abcdef;account=7",
                "this Ledger, and this account",
            ),
        ],
    )
    .when_none(&[
        "plug the Ledger in and unlock it",
        "on Linux, install the udev rule for it",
        "with tcp=, start the emulator at that address",
    ])
    .usb(USB);

/// Over HID; programs that use libusb open the USB node.
const USB: &[UsbFamily] = &[
    UsbFamily::new("Ledger", "2c97").nodes(&[UsbNode::Hidraw, UsbNode::Usb]),
    // The first models; 1b7c has no HID.
    UsbFamily::new("Ledger", "2581")
        .products(&["1b7c", "2b7c", "3b7c", "4b7c"])
        .nodes(&[UsbNode::Hidraw, UsbNode::Usb]),
];
