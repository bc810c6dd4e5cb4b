//! USB devices that are tokens: how to recognise them, and how programs reach them.

/// Tokens of one vendor that programs reach in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsbFamily {
    /// The name that people use, such as `YubiKey`.
    pub name: &'static str,
    /// The vendor id: four hexadecimal digits in lower case, as sysfs writes them.
    pub vendor: &'static str,
    /// The product ids; empty stands for all products of the vendor.
    pub products: &'static [&'static str],
    /// The device nodes that the user must be able to open, the preferred kind first.
    pub nodes: &'static [UsbNode],
    /// The interface that the driver uses through a service, if it opens no node itself. The
    /// nodes are then for the tools of the vendor.
    pub interface: Option<UsbInterface>,
}

/// A kind of device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsbNode {
    /// `/dev/hidraw0`
    Hidraw,
    /// `/dev/bus/usb/001/002`
    Usb,
}

/// An interface of a USB device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsbInterface {
    /// Its class (`bInterfaceClass`): two hexadecimal digits in lower case.
    pub class: &'static str,
    /// Its name, with an article: `a smartcard interface`.
    pub name: &'static str,
    /// What to do if the device does not show it; a verb first, no full stop.
    pub when_absent: &'static str,
}

impl UsbFamily {
    /// All products of a vendor.
    pub const fn new(name: &'static str, vendor: &'static str) -> Self {
        UsbFamily {
            name,
            vendor,
            products: &[],
            nodes: &[],
            interface: None,
        }
    }

    /// The same, but only these products.
    #[must_use]
    pub const fn products(mut self, products: &'static [&'static str]) -> Self {
        self.products = products;
        self
    }

    /// The same with the nodes that the user must be able to open.
    #[must_use]
    pub const fn nodes(mut self, nodes: &'static [UsbNode]) -> Self {
        self.nodes = nodes;
        self
    }

    /// The same, reached through an interface.
    #[must_use]
    pub const fn interface(mut self, interface: UsbInterface) -> Self {
        self.interface = Some(interface);
        self
    }

    /// Whether a device with these ids belongs to it.
    pub fn has(&self, vendor: &str, product: &str) -> bool {
        self.vendor == vendor && (self.products.is_empty() || self.products.contains(&product))
    }
}
