//! A decryptor for callers that may block.
//!
//! It is kept as long as its caller likes, and the token may be opened by somebody else's PIN
//! meanwhile. So whether the caller may use that login is looked at each time.

use std::sync::Arc;

use claviger_token::token::Secret;
use claviger_token::{Call, Decryptor, Error, PublicKey, SlotId, Unwrap};

use crate::EngineId;
use crate::pacer::Pacer;
use crate::tokens::{OpenToken, Tokens};
use crate::wants::WantsLater;

/// A decryptor whose device operations run where its token wants them.
pub(crate) struct Routed {
    pub(crate) decryptor: Arc<dyn Decryptor>,
    /// Whether they run on the caller's thread.
    pub(crate) in_place: bool,
    pub(crate) token: Arc<OpenToken>,
    pub(crate) tokens: Arc<Tokens>,
    /// Whose login it uses.
    pub(crate) who: EngineId,
    pub(crate) wants: WantsLater,
    pub(crate) pacer: Arc<Pacer>,
}

impl Routed {
    /// Refuses who must not use the login: to them the token wants a PIN.
    fn check_login(&self) -> Result<(), Error> {
        let checked = self.tokens.check_login(&self.token, &self.who);
        checked.map_err(|_| Error::PinNeeded {
            token: self.token.id().clone(),
        })
    }

    /// Lets the key work where its token wants that, if the policy still allows it then.
    fn work<T: Send + 'static>(
        &self,
        call: &Call,
        job: impl FnOnce(&dyn Decryptor, &Call) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        if self.in_place {
            self.wants.check_here()?;
            return job(&*self.decryptor, call);
        }
        let (decryptor, wants) = (Arc::clone(&self.decryptor), self.wants.clone());
        let pacer = Arc::clone(&self.pacer);
        self.token.work_apart(call, move |call| {
            wants.check_here()?;
            pacer.timed(|| job(&*decryptor, call))
        })
    }
}

impl Decryptor for Routed {
    fn public_key(&self) -> &PublicKey {
        self.decryptor.public_key()
    }

    fn slot(&self) -> SlotId {
        self.decryptor.slot()
    }

    fn confirm(&self, call: &Call) -> Result<(), Error> {
        self.check_login()?;
        self.work(call, |decryptor, call| decryptor.confirm(call))
    }

    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error> {
        self.check_login()?;
        if self.in_place {
            self.wants.check_here()?;
            return self.decryptor.unwrap(request, call);
        }
        match request {
            Unwrap::Agree { peer } => {
                let peer = peer.clone();
                self.work(call, move |decryptor, call| {
                    decryptor.unwrap(Unwrap::Agree { peer: &peer }, call)
                })
            }
            Unwrap::Oaep { ciphertext, label } => {
                let (ciphertext, label) = (ciphertext.to_vec(), label.to_vec());
                self.work(call, move |decryptor, call| {
                    let request = Unwrap::Oaep {
                        ciphertext: &ciphertext,
                        label: &label,
                    };
                    decryptor.unwrap(request, call)
                })
            }
        }
    }
}

/// Lets the key work on a thread that may block.
pub(crate) async fn apart<T: Send + 'static>(
    key: Routed,
    call: &Call,
    work: impl FnOnce(&Routed, &Call) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let thread = match key.in_place {
        true => None,
        false => {
            let (caller, token) = (key.tokens.caller(), key.token.id());
            Some(key.token.waiting.take(caller, token, call).await?)
        }
    };
    let (deadline, call) = (call.deadline(), key.token.noting(call));
    let done = tokio::task::spawn_blocking(move || {
        let _thread = thread;
        work(&key, &call)
    });
    let done = match deadline {
        None => done.await,
        Some(deadline) => tokio::time::timeout_at(deadline.into(), done)
            .await
            .unwrap_or(Ok(Err(Error::DeadlineExceeded))),
    };
    done.unwrap_or_else(|_| Err(Error::Cancelled))
}
