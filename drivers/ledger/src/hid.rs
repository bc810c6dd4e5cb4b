//! Ledgers on USB.
//!
//! The crate `ledger-transport-hid` finds them. Its exchange of commands is not used. It waits up to
//! 10,000 seconds for a reply without a break, so that neither a deadline nor a cancellation could
//! end the wait. It also logs everything that goes over the wire, shared secrets included. What
//! remains is a few lines; see [`frame`](crate::frame).
//!
//! When an app is opened or closed, the device disappears for a moment and returns at another
//! path. So each search for a device lists the paths again.

use std::ffi::CString;
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use claviger_token::Watch;
use ledger_transport_hid::TransportNativeHID;
use ledger_transport_hid::hidapi::{DeviceInfo, HidApi, HidDevice, HidError};
use zeroize::Zeroizing;

use crate::frame::{Assembler, FRAME, frames};
use crate::transport::{Attached, Broken, Devices, Transport, Unreachable};

/// More do not wait to be read.
const MOST_FRAMES: usize = 64;

/// The Ledgers on this system's USB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usb;

impl Devices for Usb {
    fn list(&self) -> Result<Vec<Attached>, Unreachable> {
        let list = || -> Result<_, HidError> {
            let api = HidApi::new()?;
            let found = TransportNativeHID::list_ledgers(&api);
            let found = found.filter_map(|device| {
                Some(Attached {
                    path: device.path().to_str().ok()?.into(),
                    model: model(device),
                })
            });
            Ok(found.collect())
        };
        list().map_err(|error| Unreachable {
            what: "USB devices cannot be listed".into(),
            reason: error.to_string(),
        })
    }

    #[cfg(target_os = "linux")]
    fn watch(&self) -> Box<dyn Watch> {
        crate::udev::watch()
    }

    /// By the node and not by the path, which another device may have next. devtmpfs makes a
    /// new node, and gives it a number of its own, when a device is plugged in again. The times
    /// of the node are not part of its name: udev's rules change its owner and mode, and with
    /// them its times, while processes use it.
    #[cfg(unix)]
    fn shared_name(&self, path: &str) -> Option<String> {
        use std::os::unix::fs::MetadataExt;

        let node = std::fs::metadata(path).ok()?;
        let (dev, ino, rdev) = (node.dev(), node.ino(), node.rdev());
        Some(format!("node {dev} {ino} {rdev}"))
    }

    fn connect(&self, path: &str) -> Result<Box<dyn Transport>, Broken> {
        let path = CString::new(path).map_err(|e| Broken::Lost(e.to_string()))?;
        let api = HidApi::new()?;
        let device = api.open_path(&path)?;
        // What is left of an answer to another program.
        for _ in 0..MOST_FRAMES {
            if device.read_timeout(&mut [0; FRAME], 0)? == 0 {
                break;
            }
        }
        Ok(Box::new(Hid {
            device,
            assembler: Assembler::default(),
        }))
    }
}

impl From<HidError> for Broken {
    fn from(error: HidError) -> Self {
        Broken::Lost(error.to_string())
    }
}

/// The product as the device names it, or by its number where it does not.
fn model(device: &DeviceInfo) -> String {
    let named = device.product_string().unwrap_or_default().trim();
    let named = named.strip_prefix("Ledger").unwrap_or(named).trim();
    if !named.is_empty() {
        return named.into();
    }
    // The low byte says which interfaces there are.
    match device.product_id() >> 8 {
        0x10 => "Nano S",
        0x40 => "Nano X",
        0x50 => "Nano S Plus",
        0x60 => "Stax",
        0x70 => "Flex",
        _ => "device",
    }
    .into()
}

struct Hid {
    device: HidDevice,
    assembler: Assembler,
}

impl Transport for Hid {
    fn send(&mut self, apdu: &[u8]) -> Result<(), Broken> {
        let frames = frames(apdu).map_err(|e| Broken::Malformed(e.to_string()))?;
        for frame in frames {
            // Report 0: there are no others.
            let mut report = [0; FRAME + 1];
            report[1..].copy_from_slice(&frame);
            self.device.write(&report)?;
        }
        Ok(())
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Zeroizing<Vec<u8>>>, Broken> {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            let mut frame = Zeroizing::new([0; FRAME]);
            let read = self.device.read_timeout(&mut frame[..], milliseconds)?;
            if read == 0 {
                return Ok(None);
            }
            let reply = self.assembler.push(&frame[..read]);
            if let Some(reply) = reply.map_err(|e| Broken::Malformed(e.to_string()))? {
                return Ok(Some(reply));
            }
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    /// A folder that is removed with what is in it.
    struct Scratch(std::path::PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_device_keeps_its_name_when_udev_changes_its_node_and_a_new_node_has_another() {
        let folder = format!("claviger-node-{}", std::process::id());
        let folder = Scratch(std::env::temp_dir().join(folder));
        fs::create_dir(&folder.0).unwrap();
        let (node, new) = (folder.0.join("hidraw0"), folder.0.join("new"));
        fs::write(&node, "").unwrap();
        let name = || Usb.shared_name(node.to_str().unwrap()).unwrap();
        let changed = || fs::metadata(&node).unwrap().ctime();
        let (before, since) = (name(), changed());
        let end = Instant::now() + Duration::from_secs(20);
        let mut modes = [0o600, 0o660].into_iter().cycle();
        while changed() == since {
            assert!(Instant::now() < end, "the node's time does not change");
            let mode = modes.next().unwrap();
            fs::set_permissions(&node, Permissions::from_mode(mode)).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(name(), before);
        // Plugged in again: both nodes were there at once, so their numbers differ.
        fs::write(&new, "").unwrap();
        fs::rename(&new, &node).unwrap();
        assert_ne!(name(), before);
    }
}
