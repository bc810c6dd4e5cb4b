//! The USB ids of tokens, and the device nodes through which programs reach them.
//!
//! `udev/70-claviger.rules` gives access to the same nodes; a test compares the two.

/// Tokens of one vendor that are reached in the same way.
pub(crate) struct Family {
    /// What people call them.
    pub(crate) name: &'static str,
    /// The vendor's id, as sysfs writes it.
    pub(crate) vendor: &'static str,
    /// The products' ids; none stands for all of this vendor.
    pub(crate) products: &'static [&'static str],
    /// Whether we reach them through the smartcard service, which needs no rule.
    pub(crate) smartcard: bool,
    /// The kinds of node that a rule gives access to, the preferred one first.
    pub(crate) nodes: &'static [Node],
}

/// A kind of device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    /// `/dev/hidraw0`
    Hidraw,
    /// `/dev/bus/usb/001/002`
    Usb,
}

impl Family {
    /// Whether a device with these ids is one of them.
    pub(crate) fn has(&self, vendor: &str, product: &str) -> bool {
        self.vendor == vendor && (self.products.is_empty() || self.products.contains(&product))
    }
}

/// All that we know.
pub(crate) const FAMILIES: &[Family] = &[
    Family {
        name: "Ledger",
        vendor: "2c97",
        products: &[],
        smartcard: false,
        nodes: &[Node::Hidraw, Node::Usb],
    },
    Family {
        name: "Ledger",
        vendor: "2581",
        products: &["1b7c", "2b7c", "3b7c", "4b7c"],
        smartcard: false,
        nodes: &[Node::Hidraw, Node::Usb],
    },
    Family {
        name: "YubiHSM 2",
        vendor: "1050",
        products: &["0030"],
        smartcard: false,
        nodes: &[Node::Usb],
    },
    Family {
        name: "YubiKey",
        vendor: "1050",
        products: &[
            "0010", "0110", "0111", "0112", "0113", "0114", "0115", "0116", "0401", "0402", "0403",
            "0404", "0405", "0406", "0407", "0410",
        ],
        smartcard: true,
        nodes: &[Node::Hidraw],
    },
    Family {
        name: "Nitrokey",
        vendor: "20a0",
        products: &["4108", "4109", "42b2", "42f3"],
        smartcard: true,
        nodes: &[Node::Hidraw],
    },
    // Smartcards and nothing else.
    Family {
        name: "Nitrokey",
        vendor: "20a0",
        products: &["4107", "4211", "4230"],
        smartcard: true,
        nodes: &[],
    },
];

/// How the rules are installed.
pub(crate) const INSTALL: &str = "sudo install -m 644 udev/70-claviger.rules /etc/udev/rules.d/ \
     && sudo udevadm control --reload && sudo udevadm trigger";
