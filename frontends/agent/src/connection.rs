//! One client: its messages, one after the other, and their answers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use claviger_engine::Purpose;
use claviger_formats::ssh;
use claviger_service::{Guest, GuestError, GuestKey};
use claviger_token::Call;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::Zeroize;

use crate::Shared;
use crate::bindings::Bindings;
use crate::locks::Unlocked;
use crate::messages::{self, LIMIT, Malformed, Reply, Request, SignRequest};
use crate::wanted::Wanted;

/// So many bytes are read at once.
const PIECE: usize = 4 << 10;

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

/// The client's side: what it has sent, and whether it is still there.
struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
    patience: Duration,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream, guest: Guest, shared: Arc<Shared>) -> Self {
        Connection {
            client: Client {
                stream,
                buffer: Vec::new(),
                patience: guest.patience(),
            },
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
            let Some(mut message) = message else {
                return;
            };
            let reply = self.answer(&message).await;
            message.zeroize();
            if self.client.write(&reply.to_bytes()).await.is_err() {
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
                return Reply::Failure;
            }
        };
        if self.shared.locks.is_locked(uid) {
            return match request {
                Request::Unlock(passphrase) => {
                    unlocked(uid, self.shared.locks.unlock(uid, passphrase).await)
                }
                Request::List => Reply::Identities(Vec::new()),
                _ => Reply::Failure,
            };
        }
        match request {
            Request::List => self.list().await,
            Request::Sign(request) => self.sign(request).await,
            Request::Bind(bind) => match self.bindings.bind(bind) {
                Ok(()) => Reply::Success,
                Err(reason) => {
                    tracing::warn!(uid, reason, "an SSH session is not bound");
                    Reply::ExtensionFailure
                }
            },
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
            let (shared, identity, about) =
                (Arc::clone(&self.shared), identity.clone(), about.clone());
            Call::unlimited()
                .cancelled_by(Arc::clone(&cancelled))
                .watched_by(Arc::new(move |event| {
                    shared.notifier.tell(event, &identity, &about);
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

impl Client {
    /// The next message; `None` where the connection is over, for one reason or another.
    async fn message(&mut self) -> Option<Vec<u8>> {
        let mut end = None;
        loop {
            match messages::length(&self.buffer) {
                Ok(Some(length)) if self.buffer.len() >= length + 4 => {
                    return Some(self.take(length));
                }
                Ok(_) => {}
                Err(Malformed) => {
                    tracing::info!("a message of an SSH client is empty or longer than 256 KiB");
                    return None;
                }
            }
            let read = match self.buffer.is_empty() {
                true => self.read().await,
                false => {
                    let end = *end.get_or_insert_with(|| Instant::now() + self.patience);
                    timeout_at(end, self.read()).await.ok()?
                }
            };
            if read.ok()? == 0 {
                return None;
            }
        }
    }

    /// The message at the beginning of the buffer, which has all of it.
    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(length + 4);
        let mut taken = std::mem::replace(&mut self.buffer, rest);
        let message = taken.split_off(4);
        taken.zeroize();
        message
    }

    async fn read(&mut self) -> io::Result<usize> {
        self.buffer.reserve(PIECE);
        self.stream.read_buf(&mut self.buffer).await
    }

    /// Returns when the client is gone. What it sends meanwhile is kept, up to a message.
    async fn gone(&mut self) {
        loop {
            if self.buffer.len() > LIMIT {
                return std::future::pending().await;
            }
            match self.read().await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    async fn write(&mut self, reply: &[u8]) -> io::Result<()> {
        let written = timeout(self.patience, self.stream.write_all(reply)).await;
        written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}
