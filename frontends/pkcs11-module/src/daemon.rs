//! Requests to the daemon. No lock of the module is held meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use claviger_client::blocking::{Call, Client, Listener};
use claviger_client::daemon::{Identities, Status, Unlock};
use claviger_client::request::{Commit, Request, local};
use claviger_client::wire::{self, Identity, PinRequest, Purpose, TokenId};
use claviger_client::{Error, Options};
use cryptoki_sys::CKR_DEVICE_REMOVED;
use zeroize::Zeroizing;

use crate::codes;
use crate::entry::Done;

/// How long the daemon may take to say what there is.
const TO_LIST: Duration = Duration::from_secs(20);
/// How long a person may take to touch or approve.
const TO_SIGN: Duration = Duration::from_secs(180);
/// How long a daemon is waited for that is restarted.
const PATIENCE: Duration = Duration::from_secs(1);

/// The daemon of this process. It is connected to when it is first asked something.
#[derive(Default)]
pub(crate) struct Daemon(Mutex<Option<Arc<Client>>>);

impl Daemon {
    /// The identities that the caller may use, or the one of this name, with its certificates.
    pub(crate) fn identities(&self, name: &str) -> Done<Vec<Identity>> {
        self.ask(&Identities { name }, TO_LIST, &())
    }

    /// How its tokens are.
    pub(crate) fn status(&self) -> Done<wire::StatusReply> {
        self.ask(&Status, TO_LIST, &())
    }

    /// Gives it the PIN of a token, and of no other one.
    pub(crate) fn unlock(&self, token: &TokenId, backend: &str, pin: &[u8]) -> Done {
        let pin = OnePin {
            token,
            pin: Mutex::new(Some(Zeroizing::new(pin.to_vec()))),
        };
        let request = Unlock { backend, for_s: 0 };
        self.ask(&request, TO_SIGN, &pin).map(drop)
    }

    /// Has data signed.
    pub(crate) fn sign(
        &self,
        engine: &str,
        data: &[u8],
        purpose: Purpose,
    ) -> Done<wire::Signature> {
        let engine = &local(engine);
        let request = Commit {
            engine,
            data,
            purpose,
        };
        self.ask(&request, TO_SIGN, &())
    }

    /// Lets go of the connection.
    pub(crate) fn leave(&self) {
        drop(self.client().take());
    }

    fn ask<R: Request>(
        &self,
        request: &R,
        limit: Duration,
        listener: &dyn Listener,
    ) -> Done<R::Reply> {
        let client = self.connected()?;
        let call = Call {
            listener,
            ..Call::within(limit)
        };
        client.ask(request, &call).map_err(|error| {
            if !matches!(error, Error::Refused(_)) {
                self.forget(&client);
            }
            codes::of(&error)
        })
    }

    /// The connection, or a new one. Whoever connects keeps others waiting that need one, too.
    fn connected(&self) -> Done<Arc<Client>> {
        let mut client = self.client();
        if let Some(client) = &*client {
            return Ok(Arc::clone(client));
        }
        let options = Options::from_environment().ok_or(CKR_DEVICE_REMOVED)?;
        let options = Options {
            program: concat!("claviger-pkcs11-module ", env!("CARGO_PKG_VERSION")).into(),
            answers_pins: true,
            patience: PATIENCE,
            ..options
        };
        let connected = Client::connect(options).map_err(|error| codes::of(&error))?;
        let connected = Arc::new(connected);
        *client = Some(Arc::clone(&connected));
        Ok(connected)
    }

    /// The next request makes a new connection: the daemon may be one of another home then.
    fn forget(&self, failed: &Arc<Client>) {
        let mut client = self.client();
        if client.as_ref().is_some_and(|now| Arc::ptr_eq(now, failed)) {
            *client = None;
        }
    }

    fn client(&self) -> MutexGuard<'_, Option<Arc<Client>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives a PIN for one token, once.
struct OnePin<'a> {
    token: &'a TokenId,
    pin: Mutex<Option<Zeroizing<Vec<u8>>>>,
}

impl Listener for OnePin<'_> {
    fn pin(&self, request: &PinRequest) -> Option<Zeroizing<Vec<u8>>> {
        let is_pin = request.kind() == wire::pin_request::Kind::Pin;
        match is_pin && request.token.as_ref() == Some(self.token) {
            true => self
                .pin
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
            false => None,
        }
    }
}
