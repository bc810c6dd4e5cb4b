//! What a daemon asks while it works on a request: it tells of touches and approvals, and wants PINs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use claviger_client::blocking;
use claviger_client::wire::{self, event::Kind, pin_request};
use claviger_token::call::Watcher;
use claviger_token::sync::lock;
use claviger_token::{Call, Event, ExposeSecret, KeyUse, PinSource, TriesLeft, Zeroizing};

use super::convert;
use crate::failure::Failure;
use crate::pins::SharedPins;

/// Shows events on the screen of the command, and gives PINs from its source.
pub(super) struct Listener {
    pins: SharedPins,
    management_keys: SharedPins,
    watcher: Watcher,
    call: Call,
    /// Why there was no PIN.
    failure: Mutex<Option<Failure>>,
    /// Whether no PIN is given.
    withholds: AtomicBool,
}

impl Listener {
    pub(super) fn new(
        pins: SharedPins,
        management_keys: SharedPins,
        watcher: Watcher,
        call: Call,
    ) -> Self {
        Listener {
            pins,
            management_keys,
            watcher,
            call,
            failure: Mutex::default(),
            withholds: AtomicBool::new(false),
        }
    }

    /// From now on gives no PIN, for this reason, or does again.
    pub(super) fn withhold(&self, why: Option<Failure>) {
        self.withholds.store(why.is_some(), Ordering::Relaxed);
        *lock(&self.failure) = why;
    }

    /// Why there was no PIN, once.
    pub(super) fn take_failure(&self) -> Option<Failure> {
        lock(&self.failure).take()
    }
}

impl blocking::Listener for Listener {
    fn event(&self, event: &wire::Event) {
        if let Some(event) = event_of(event) {
            (self.watcher)(&event);
        }
    }

    fn pin(&self, request: &wire::PinRequest) -> Option<Zeroizing<Vec<u8>>> {
        let source = match request.kind() {
            pin_request::Kind::Pin => &self.pins,
            pin_request::Kind::ManagementKey => &self.management_keys,
            pin_request::Kind::Unspecified => return None,
        };
        // However many tokens the daemon asks for.
        if self.withholds.load(Ordering::Relaxed) {
            return None;
        }
        let token = convert::token(request.token.clone()?);
        let tries = match request.tries_left.map(u8::try_from) {
            Some(Ok(left)) => TriesLeft::Exactly(left),
            _ => TriesLeft::Unknown,
        };
        match source.pin_with_tries(&token, &request.label, tries, &self.call) {
            Ok(pin) => {
                *lock(&self.failure) = None;
                Some(Zeroizing::new(pin.expose_secret().as_bytes().to_vec()))
            }
            Err(error) => {
                *lock(&self.failure) = Some(error.into());
                None
            }
        }
    }
}

/// What is waited for; `None` if it is of a later version.
fn event_of(event: &wire::Event) -> Option<Event> {
    let token = || event.token.clone().map(convert::token);
    Some(match event.kind() {
        Kind::Unspecified => return None,
        Kind::TouchNeeded => Event::TouchNeeded { token: token()? },
        Kind::ApprovalNeeded => Event::ApprovalNeeded { token: token()? },
        Kind::TokenNeeded => Event::TokenNeeded { token: token()? },
        Kind::PersonDone => Event::PersonDone { token: token()? },
        Kind::UnlockNeeded => Event::UnlockNeeded {
            device: event.device.clone(),
        },
        Kind::AppNeeded => Event::AppNeeded {
            device: event.device.clone(),
            app: event.detail.clone(),
        },
        Kind::ProofNeeded => Event::ProofNeeded {
            token: token()?,
            usage: match event.detail.as_str() {
                "sign" => KeyUse::Sign,
                "decrypt" => KeyUse::Decrypt,
                _ => return None,
            },
        },
    })
}
