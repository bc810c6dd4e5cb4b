//! One client: its messages, one after the other, and their answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use claviger_engine::Purpose;
use claviger_formats::ssh;
use claviger_service::{Guest, GuestError, GuestKey};
use claviger_token::Call;
use tokio::net::UnixStream;

use crate::Shared;
use crate::bindings::Bindings;
use crate::client::Client;
use crate::locks::Unlocked;
use crate::messages::{self, Malformed, Reply, Request, SessionBind, SignRequest};
use crate::notifier::Told;
use crate::wanted::Wanted;

/// So long a signature may take, with all that it waits for.
const LONGEST: Duration = Duration::from_secs(180);

/// What a request to sign is refused as, before it comes to a key.
const REFUSED: &str = "not-for-purpose";

pub(crate) struct Connection {
    client: Client,
    guest: Guest,
    shared: Arc<Shared>,
    bindings: Bindings,
    /// The keys as they were listed last, with their names on the wire.
    listed: Vec<(Vec<u8>, GuestKey)>,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream, guest: Guest, shared: Arc<Shared>) -> Self {
        Connection {
            client: Client::new(stream, guest.patience()),
            guest,
            shared,
            bindings: Bindings::default(),
            listed: Vec::new(),
        }
    }

    /// Serves it until it is over, or the daemon ends.
    pub(crate) async fn run(mut self) {
        loop {
            let message = tokio::select! {
                message = self.client.message() => message,
                () = self.guest.ending() => return,
            };
            let Some(message) = message else {
                return;
            };
            let reply = self.answer(&message).await;
            drop(message);
            let written = self.client.write(&reply.to_bytes()).await;
            if written.is_err() || self.client.is_flooding() {
                return;
            }
        }
    }

    async fn answer(&mut self, message: &[u8]) -> Reply {
        let uid = self.guest.caller().uid;
        let request = match Request::parse(message) {
            Ok(request) => request,
            Err(Malformed) => {
                tracing::info!(uid, "a message of an SSH client is malformed");
                if messages::may_bind(message) {
                    self.bindings.spoil();
                }
                return Reply::Failure;
            }
        };
        if self.shared.locks.is_locked(uid) {
            return match request {
                Request::Unlock(passphrase) => {
                    unlocked(uid, self.shared.locks.unlock(uid, passphrase).await)
                }
                // It uses no key, and must not be missed.
                Request::Bind(bind) => self.bind(bind),
                Request::List => Reply::Identities(Vec::new()),
                _ => Reply::Failure,
            };
        }
        match request {
            Request::List => self.list().await,
            Request::Sign(request) => self.sign(request).await,
            Request::Bind(bind) => self.bind(bind),
            Request::Lock(passphrase) => match self.shared.locks.lock(uid, passphrase).await {
                true => {
                    tracing::info!(uid, "the SSH agent is locked");
                    Reply::Success
                }
                false => Reply::Failure,
            },
            Request::Unlock(_) => unlocked(uid, Unlocked::NotLocked),
            Request::RemoveAll => {
                let locked = self.guest.lock().await;
                let tokens = locked.len();
                tracing::info!(uid, tokens, "tokens are locked; no key is removed");
                Reply::Success
            }
            Request::Never(what) => {
                tracing::info!(uid, "{what}");
                Reply::Failure
            }
            Request::UnknownExtension(name) => {
                tracing::debug!(uid, name, "an SSH client uses an unknown extension");
                Reply::Failure
            }
            Request::Unknown(kind) => {
                tracing::debug!(uid, kind, "a message of an SSH client is unknown");
                Reply::Failure
            }
        }
    }

    fn bind(&mut self, bind: SessionBind) -> Reply {
        match self.bindings.bind(bind) {
            Ok(()) => Reply::Success,
            Err(reason) => {
                let uid = self.guest.caller().uid;
                tracing::warn!(uid, reason, "an SSH session is not bound");
                Reply::ExtensionFailure
            }
        }
    }

    async fn list(&mut self) -> Reply {
        match self.look().await {
            Ok(()) => {
                let keys = self.listed.iter();
                let named = keys.map(|(wire, key)| (wire.clone(), key.owner.name.to_string()));
                Reply::Identities(named.collect())
            }
            Err(error) => {
                tracing::warn!(%error, "keys are not listed");
                Reply::Failure
            }
        }
    }

    async fn look(&mut self) -> Result<(), GuestError> {
        let keys = self.guest.keys().await?.into_iter();
        self.listed = keys
            .filter_map(|key| Some((ssh::to_wire(&key.public_key)?, key)))
            .collect();
        Ok(())
    }

    /// The key that a client names. One that was not listed may have been made since.
    async fn find(&mut self, wire: &[u8]) -> Result<Option<GuestKey>, GuestError> {
        if !self.listed.iter().any(|(known, _)| known == wire) {
            self.look().await?;
        }
        let found = self.listed.iter().find(|(known, _)| known == wire);
        Ok(found.map(|(_, key)| key.clone()))
    }

    async fn sign(&mut self, request: SignRequest) -> Reply {
        let uid = self.guest.caller().uid;
        let key = match self.find(&request.key).await {
            Ok(Some(key)) => key,
            Ok(None) => return Reply::Failure,
            Err(error) => {
                tracing::warn!(%error, "a key is not looked up");
                return Reply::Failure;
            }
        };
        let identity = key.owner.name.to_string();
        let wanted = Wanted::of(&key.public_key, request.data, request.flags, &self.bindings);
        let Wanted { what, about } = match wanted {
            Ok(wanted) => wanted,
            Err(reason) => {
                tracing::warn!(uid, identity, reason, "an SSH client gets no signature");
                self.guest.refused(&identity, "ssh", REFUSED);
                return Reply::Failure;
            }
        };
        let is_raw = what.purpose == Purpose::Raw;
        let cancelled = Arc::<AtomicBool>::default();
        let call = {
            let shared = Arc::clone(&self.shared);
            let request = Told::new(&identity, &about);
            call(&cancelled).watched_by(Arc::new(move |event| {
                shared.notifier.tell(event, &request);
            }))
        };
        let mut signing = std::pin::pin!(self.guest.sign(&key, what, call));
        let signed = tokio::select! {
            biased;
            signed = &mut signing => signed,
            () = self.client.gone() => {
                // What a device has begun comes to its end.
                cancelled.store(true, Ordering::Relaxed);
                signing.await
            }
        };
        let reply = match signed {
            Ok(signature) => claviger_formats::ssh_signature::to_wire(&signature).ok(),
            Err(error) => {
                let code = error.code();
                tracing::info!(uid, identity, about, code, %error, "an SSH client gets no signature");
                if is_raw && code == "not-allowed" {
                    tracing::info!(
                        "raw data is signed if a grant names it: `claviger grant add --uid {uid} \
                         --identity {identity} --may sign --purpose raw`"
                    );
                }
                None
            }
        };
        reply.map_or(Reply::Failure, Reply::Signature)
    }
}

/// What a signature is waited for: not without end, and not once its client is gone.
fn call(cancelled: &Arc<AtomicBool>) -> Call {
    Call::within(LONGEST).cancelled_by(Arc::clone(cancelled))
}

fn unlocked(uid: u32, how: Unlocked) -> Reply {
    match how {
        Unlocked::Yes => {
            tracing::info!(uid, "the SSH agent is unlocked");
            return Reply::Success;
        }
        Unlocked::NotLocked => tracing::info!(uid, "the SSH agent is not locked"),
        Unlocked::Wrong => tracing::warn!(uid, "a passphrase does not unlock the SSH agent"),
        Unlocked::TooSoon => {
            tracing::warn!(uid, "no passphrase is taken so soon after wrong ones");
        }
    }
    Reply::Failure
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_signature_is_not_waited_for_without_end() {
        let now = Instant::now();
        let end = call(&Arc::default()).deadline().unwrap();
        assert!(end >= now + LONGEST && LONGEST <= Duration::from_secs(180));
    }
}
