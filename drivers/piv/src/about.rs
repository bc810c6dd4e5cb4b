//! What the driver says of itself to people.

use claviger_token::{About, Example};

use crate::backend::SCHEME;
use crate::usb::USB;

pub(crate) const ABOUT: About = About::new(SCHEME, "a PIV smartcard")
    .written(
        "piv:[serial=NUMBER][;slot=SLOT][;pin-policy=POLICY][;touch-policy=POLICY]",
        &[
            Example::new("piv:", "the smartcard, if only one is attached"),
            Example::new("piv:serial=NUMBER;slot=9c", "this card, and this slot"),
            Example::new(
                "piv:serial=NUMBER;touch-policy=always",
                "this card, and keys that require a touch for each use",
            ),
        ],
    )
    .when_none(&[
        "insert the smartcard; a USB token needs its CCID interface enabled",
        "install pcscd (sudo apt install pcscd), and check that it runs \
         (systemctl status pcscd.socket)",
        "over SSH or in a service, have polkit allow access to it",
    ])
    .usb(USB);
