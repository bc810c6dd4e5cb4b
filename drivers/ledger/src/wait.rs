//! Waiting for a person to do something on the device.

use std::time::{Duration, Instant};

use claviger_token::{Call, Error, Event, TokenId};

use crate::app::APP;
use crate::error::Fault;
use crate::port::{PATIENCE, nobody, slice};

/// Waits for a person to unlock a device or to open the app, by asking again and again.
pub(crate) struct Wait<'a> {
    call: &'a Call,
    /// Nobody can be told.
    in_vain: bool,
    begun: Option<Instant>,
    seen: Instant,
    told: Vec<Event>,
}

/// How often a device is asked whether a person has done what they were told.
const GENTLY: Duration = Duration::from_millis(500);
/// How long a device may be away when an app is opened or closed.
const AWAY: Duration = Duration::from_secs(10);

impl<'a> Wait<'a> {
    pub(crate) fn new(call: &'a Call) -> Self {
        Wait {
            call,
            in_vain: false,
            begun: None,
            seen: Instant::now(),
            told: Vec::new(),
        }
    }

    /// Where nobody can be told what to do, nobody is waited for.
    pub(crate) fn in_vain(call: &'a Call) -> Self {
        Wait {
            in_vain: true,
            ..Wait::new(call)
        }
    }

    /// Whether a device that was waited for may be back in a moment; then that moment
    /// has passed.
    pub(crate) fn is_back_soon(&mut self) -> Result<bool, Error> {
        let soon = self.begun.is_some() && self.seen.elapsed() < AWAY;
        if soon {
            self.pause()?;
        }
        Ok(soon)
    }

    /// Tells the caller what a person has to do, and lets a moment pass.
    ///
    /// # Errors
    /// What `fault` means, when there is no time left.
    pub(crate) fn for_person(&mut self, fault: Fault, token: &TokenId) -> Result<(), Error> {
        self.seen = Instant::now();
        let begun = *self.begun.get_or_insert(self.seen);
        let event = match &fault {
            Fault::Locked { device } => Event::UnlockNeeded {
                device: device.clone(),
            },
            Fault::NoApp { device, .. } => Event::AppNeeded {
                device: device.clone(),
                app: APP.into(),
            },
            // Nobody knows of which token it is, and it may as well be rejected.
            _ => Event::ApprovalNeeded { token: nobody() },
        };
        let out_of_time = match self.call.deadline() {
            Some(deadline) => deadline <= self.seen + GENTLY,
            None => begun.elapsed() >= PATIENCE,
        };
        if out_of_time || self.in_vain {
            return Err(fault.into_error(token));
        }
        if !self.told.contains(&event) {
            self.call.tell(&event);
            self.told.push(event);
        }
        self.pause()
    }

    fn pause(&self) -> Result<(), Error> {
        let until = Instant::now() + GENTLY;
        while Instant::now() < until {
            self.call.check()?;
            std::thread::sleep(slice(self.call));
        }
        Ok(())
    }
}
