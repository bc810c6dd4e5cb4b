//! A decryptor for callers that may block.

use std::sync::Arc;

use claviger_token::token::Secret;
use claviger_token::{Call, Decryptor, Error, PublicKey, SlotId, Unwrap};

use crate::tokens::OpenToken;

/// A decryptor whose device operations run where its token wants them.
pub(crate) struct Routed {
    pub(crate) decryptor: Arc<dyn Decryptor>,
    /// Whether they run on the caller's thread.
    pub(crate) in_place: bool,
    pub(crate) token: Arc<OpenToken>,
}

impl Decryptor for Routed {
    fn public_key(&self) -> &PublicKey {
        self.decryptor.public_key()
    }

    fn slot(&self) -> SlotId {
        self.decryptor.slot()
    }

    fn confirm(&self, call: &Call) -> Result<(), Error> {
        if self.in_place {
            return self.decryptor.confirm(call);
        }
        let decryptor = Arc::clone(&self.decryptor);
        self.token
            .work_apart(call, move |call| decryptor.confirm(call))
    }

    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error> {
        if self.in_place {
            return self.decryptor.unwrap(request, call);
        }
        let decryptor = Arc::clone(&self.decryptor);
        match request {
            Unwrap::Agree { peer } => {
                let peer = peer.clone();
                self.token.work_apart(call, move |call| {
                    decryptor.unwrap(Unwrap::Agree { peer: &peer }, call)
                })
            }
            Unwrap::Oaep { ciphertext, label } => {
                let (ciphertext, label) = (ciphertext.to_vec(), label.to_vec());
                self.token.work_apart(call, move |call| {
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
