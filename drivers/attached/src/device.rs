//! Asking one attached device, and what of its answers is believed.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use claviger_token::{Call, Error, Event, KeyRef, PublicKey, TokenInfo};

use crate::description::{Description, MOST_KEYS};
use crate::devices::Devices;
use crate::link::{Asked, Failure, Happening, Reply, Request, StatedKey};

/// So long a request that has no deadline waits for a device, which may wait for a person.
const LONGEST: Duration = Duration::from_secs(600);

/// The characters of an error's text that are shown.
const SHOWN: usize = 200;

/// A device. It works again when it was away and is attached again.
#[derive(Clone)]
pub(crate) struct Device {
    devices: Devices,
    description: Arc<Description>,
    info: TokenInfo,
}

impl Device {
    pub(crate) fn new(devices: Devices, description: &Arc<Description>) -> Self {
        Device {
            devices,
            info: description.info(),
            description: Arc::clone(description),
        }
    }

    pub(crate) fn info(&self) -> &TokenInfo {
        &self.info
    }

    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    /// Asks the device for something that changes nothing on it.
    pub(crate) fn ask(&self, request: Request<'_>, call: &Call) -> Result<Reply, Error> {
        self.ask_patiently(request, Duration::ZERO, call)
    }

    /// Asks it for a change, whose outcome has to be known.
    pub(crate) fn change(&self, request: Request<'_>, call: &Call) -> Result<Reply, Error> {
        self.ask_patiently(request, self.devices.patience(), call)
    }

    fn ask_patiently(
        &self,
        request: Request<'_>,
        patience: Duration,
        call: &Call,
    ) -> Result<Reply, Error> {
        call.check()?;
        let serial = self.description.serial();
        let mut attached = self.devices.fitting(self.description.kind(), Some(serial));
        let Some(device) = attached.pop() else {
            return Err(self.gone());
        };
        let waits = Cell::new(false);
        let heard = |what| {
            let token = self.info.id.clone();
            waits.set(what != Happening::PersonDone);
            call.tell(&match what {
                Happening::TouchNeeded => Event::TouchNeeded { token },
                Happening::ApprovalNeeded => Event::ApprovalNeeded { token },
                Happening::PersonDone => Event::PersonDone { token },
            });
        };
        let limited = call.clone().no_longer_than(LONGEST);
        let reply = device.link.ask(&Asked {
            request,
            call: &limited,
            patience,
            heard: &heard,
        });
        if waits.get() {
            // The device went on, or nobody waits for the person any more.
            heard(Happening::PersonDone);
        }
        match reply {
            Ok(reply) => Ok(reply),
            Err(Failure::Ended(error)) => {
                if !patience.is_zero() {
                    device.link.end("it did not say what became of a change");
                }
                Err(error)
            }
            Err(failure) => Err(self.error(&request, failure)),
        }
    }

    fn error(&self, request: &Request<'_>, failure: Failure) -> Error {
        let token = self.info.id.clone();
        let (code, message) = match failure {
            Failure::Refused { code, message } => (code, shown(&message)),
            Failure::Malformed(reason) => return self.malformed(request.name(), reason),
            Failure::Gone => return self.gone(),
            Failure::Busy => return Error::Busy { token },
            Failure::Ended(error) | Failure::NotBegun(error) => return error,
        };
        match (&*code, request) {
            ("slot-occupied", Request::Generate { slot, .. }) => Error::SlotOccupied {
                token,
                slot: (*slot).into(),
            },
            ("token-full", Request::Generate { .. }) => Error::TokenFull { token },
            (
                "key-not-found",
                Request::SetLabel { public_key, .. }
                | Request::Sign { public_key, .. }
                | Request::Agree { public_key, .. }
                | Request::Delete { public_key, .. },
            ) => self.not_found(public_key),
            ("bad-message", Request::Sign { .. }) => Error::BadMessage { reason: message },
            ("decryption-failed", Request::Agree { .. }) => Error::DecryptionFailed,
            ("rejected", _) => Error::Rejected { token },
            ("not-touched", _) => Error::NotTouched { token },
            ("busy", _) => Error::Busy { token },
            ("cancelled", _) => Error::Cancelled,
            _ => Error::Device {
                token,
                call: request.name().into(),
                status: format!("{} ({message})", shown(&code)),
            },
        }
    }

    pub(crate) fn malformed(&self, call: &str, reason: &str) -> Error {
        Error::MalformedReply {
            token: self.info.id.clone(),
            call: call.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn not_found(&self, key: &PublicKey) -> Error {
        Error::KeyNotFound {
            token: self.info.id.clone(),
            key: key.fingerprint().to_string(),
        }
    }

    fn gone(&self) -> Error {
        Error::TokenUnavailable {
            token: self.info.id.clone(),
            reason: "no program attaches it".into(),
        }
    }

    /// All its keys.
    pub(crate) fn keys(&self, call: &Call) -> Result<Vec<StatedKey>, Error> {
        let Reply::Keys(keys) = self.ask(Request::List, call)? else {
            return Err(self.malformed("list", "it is the answer to something else"));
        };
        if keys.len() > MOST_KEYS {
            return Err(self.malformed("list", "it has more keys than it may have"));
        }
        let mut slots: Vec<&str> = keys.iter().map(|key| &*key.slot).collect();
        slots.sort_unstable();
        if slots.windows(2).any(|two| two[0] == two[1]) {
            return Err(self.malformed("list", "two keys are in one slot"));
        }
        Ok(keys)
    }

    /// The key with this public half, if the device shows it; of several the one in the slot.
    pub(crate) fn find(&self, wanted: &KeyRef, call: &Call) -> Result<Option<StatedKey>, Error> {
        let mut keys = self.keys(call)?;
        keys.retain(|key| key.public_key == wanted.public_key);
        let slot = wanted.slot.name();
        let at = keys.iter().position(|key| key.slot == slot).unwrap_or(0);
        Ok((at < keys.len()).then(|| keys.swap_remove(at)))
    }
}

/// What a device says of an error, as it is shown.
fn shown(text: &str) -> String {
    let seen = text.chars().filter(|c| !c.is_control());
    seen.take(SHOWN).collect()
}
