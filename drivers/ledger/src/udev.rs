//! Events of udev: devices that are plugged in and unplugged.
//!
//! udev sends an event after its rules have run, so the device can be opened from then on.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use claviger_token::{Interval, Watch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use udev::{MonitorBuilder, MonitorSocket};

/// Only a udev that is running has this. In a container there is mostly none, and nothing
/// is told there.
const RUNNING: &str = "/run/udev/control";

/// What waits for HID devices to come and go.
pub(crate) fn watch() -> Box<dyn Watch> {
    if !Path::new(RUNNING).exists() {
        tracing::debug!("udev is not running; polling for devices");
        return Box::new(Interval);
    }
    match Monitor::new() {
        Ok(monitor) => Box::new(monitor),
        Err(error) => {
            tracing::debug!(%error, "udev cannot be read; polling for devices");
            Box::new(Interval)
        }
    }
}

/// Waits for what udev tells of HID devices.
struct Monitor(MonitorSocket);

impl Monitor {
    fn new() -> io::Result<Self> {
        let monitor = MonitorBuilder::new()?.match_subsystem("hidraw")?;
        Ok(Monitor(monitor.listen()?))
    }

    /// Whether udev told something within `limit`.
    fn next(&self, limit: Duration) -> io::Result<bool> {
        let until = Instant::now() + limit;
        loop {
            // All that came in is one piece of news.
            if self.0.iter().count() > 0 {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Watch for Monitor {
    fn wait(&mut self, limit: Duration) -> bool {
        self.next(limit).unwrap_or_else(|error| {
            tracing::debug!(%error, "udev cannot be read; polling for devices");
            Interval.wait(limit)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use claviger_ledger_emulator::{Ethereum, Usb};

    use super::*;

    const NOTHING: Duration = Duration::from_millis(100);
    const PATIENCE: Duration = Duration::from_secs(30);
    /// Is set in the process that a private USB is shown to.
    const SHOWN: &str = "CLAVIGER_TEST_SHOWN_A_USB";

    /// To be run by the test below.
    #[test]
    fn what_is_told() {
        if std::env::var_os(SHOWN).is_none() {
            return;
        }
        let mut monitor = Monitor::new().unwrap();
        assert!(!monitor.wait(NOTHING));
        println!("\nlistening");
        assert!(monitor.wait(PATIENCE), "nothing was told of the device");
        println!("\nplugged in");
        assert!(monitor.wait(PATIENCE), "nothing was told of its removal");
        assert!(!monitor.wait(NOTHING));
    }

    #[test]
    fn devices_that_come_and_go_are_told() {
        let usb = Usb::new();
        let mut listener = Command::new(std::env::current_exe().unwrap());
        listener
            .args(["--exact", "udev::tests::what_is_told", "--nocapture"])
            .env(SHOWN, "1")
            .stdout(Stdio::piped());
        let mut listener = usb.show_to(&mut listener).spawn().unwrap();
        let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
        let mut until = |wanted: &str| {
            let line = lines.find(|line| line.as_ref().is_ok_and(|line| line == wanted));
            assert!(line.is_some(), "it ended before it was {wanted}");
        };
        until("listening");
        let device = usb.plug(Ethereum::new().answerer());
        until("plugged in");
        device.unplug();
        let ended = listener.wait_with_output().unwrap();
        assert!(ended.status.success());
    }
}
