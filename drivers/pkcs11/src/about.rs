//! What the driver says of itself to people.

use claviger_token::usb::{UsbFamily, UsbNode};
use claviger_token::{About, Example};

use crate::uri::SCHEME;

pub(crate) const ABOUT: About = About::new(SCHEME, "a PKCS#11 token")
    .written(
        "pkcs11:[ATTRIBUTE=VALUE;…][?module-path=FILE][&pin-source=SOURCE] (RFC 7512)",
        &[
            Example::new(
                "pkcs11:token=LABEL",
                "a token of a module that p11-kit knows",
            ),
            Example::new(
                "pkcs11:token=LABEL?module-path=/path/to/module.so",
                "a token of this module",
            ),
            Example::new(
                "pkcs11:serial=NUMBER?pin-source=file:/path/to/pin",
                "a token with a PIN source of its own",
            ),
        ],
    )
    .when_none(&[
        "attach the token",
        "if p11-kit does not know its module, name it: pkcs11:?module-path=/path/to/module.so",
    ])
    .usb(USB);

/// HSMs whose module opens them over USB.
const USB: &[UsbFamily] = &[UsbFamily::new("YubiHSM 2", "1050")
    .products(&["0030"])
    .nodes(&[UsbNode::Usb])];
