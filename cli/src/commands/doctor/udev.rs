//! The udev rules, which give the user access to the device nodes of tokens.

/// How the rules are installed.
pub(crate) const INSTALL: &str = "sudo install -m 644 udev/70-claviger.rules /etc/udev/rules.d/ \
     && sudo udevadm control --reload && sudo udevadm trigger";
