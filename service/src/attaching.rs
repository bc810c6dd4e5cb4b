//! Programs attach devices of their own.
//!
//! A device is its identity key, so the program first has it sign a fresh challenge. What the
//! device is asked for later goes through the [`devices`](crate::devices) of its connection.

use std::sync::Arc;
use std::time::Duration;

use claviger_attached::{AttachError, Description};
use claviger_client::device::{CHALLENGE, attachment_text};
use claviger_client::wire::{self, daemon_reply::Reply, frame::Content};
use claviger_engine::policy::Permission;
use claviger_engine::{EngineId, Policy};
use claviger_token::{Error, Signature, SignatureScheme};
use rand_core::{OsRng, RngCore};
use tokio::time::timeout;

use crate::Refusal;
use crate::audit::Outcome;
use crate::auditing::Noted;
use crate::device_messages as messages;
use crate::devices::DeviceLink;
use crate::limits::Counted;
use crate::replies::{self, Answer};
use crate::request::Request;

/// So long a program may take to answer a challenge.
const PROVING: Duration = Duration::from_secs(30);

/// So often it is looked whether the request was given up.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Request {
    pub(crate) async fn attach_device(self, wanted: wire::AttachDevice) -> Result<Answer, Refusal> {
        let session = &self.session;
        let (audit, caller) = (&session.shared.audit, &session.caller);
        let noted = Noted::new("attach-device", "");
        let asker = EngineId::program();
        if let Err(error) = session.policy.check(&asker, Permission::AttachDevice) {
            noted.refused(audit, caller, error.code());
            return Ok(self.failed(&error));
        }
        let device = wanted
            .device
            .ok_or(Refusal::BadRequest("there is no device"))?;
        let description = messages::description(device);
        let description = description.map_err(|bad| Refusal::BadDevice(bad.to_string()))?;
        let noted = Noted {
            purpose: description.serial().to_owned(),
            ..noted
        };
        if let Err(answer) = self.prove(&description, &noted).await {
            return Ok(answer);
        }
        let mut begun = match noted.begin(audit, caller).await {
            Ok(begun) => begun,
            Err(error) => return Ok(self.not_noted(&error)),
        };
        begun.on(Some(description.token()));
        let attached = self.plug(description);
        begun
            .end(match &attached {
                Ok(_) => Outcome::Done,
                Err(refusal) => Outcome::Failed(refusal.code()),
            })
            .await;
        let attached = attached?;
        // Nothing is awaited between this and the answer.
        session.devices.announce(attached.device);
        Ok(replies::from_daemon(Reply::DeviceAttached(attached)).into())
    }

    /// Whether the program has the identity key of its device.
    ///
    /// # Errors
    /// The answer to one that has not shown it.
    async fn prove(&self, description: &Description, noted: &Noted) -> Result<(), Answer> {
        let (shared, devices) = (&self.session.shared, &self.session.devices);
        let mut challenge = [0; CHALLENGE];
        OsRng.fill_bytes(&mut challenge);
        let id = self.line.id();
        let proof = devices.proof_of(id);
        let asked = wire::DeviceChallenge {
            challenge: challenge.to_vec(),
        };
        self.line.send(Content::DeviceChallenge(asked));
        let signature = self.proof(proof).await;
        devices.forget_proof(id);
        let signature = signature.map_err(|error| self.failed(&error.into()))?;
        let text = attachment_text(&shared.home_id, &challenge);
        let identity = description.identity();
        let scheme = SignatureScheme::of(identity.algorithm());
        let signature = scheme.and_then(|scheme| Signature::new(scheme, signature).ok());
        let verified = signature.is_some_and(|it| identity.verify(&text, &it).is_ok());
        match verified {
            true => Ok(()),
            false => {
                let refusal = Refusal::DeviceUnproven;
                noted.refused(&shared.audit, &self.session.caller, refusal.code());
                Err(refusal.into())
            }
        }
    }

    async fn proof(
        &self,
        mut proof: tokio::sync::oneshot::Receiver<Vec<u8>>,
    ) -> Result<Vec<u8>, Error> {
        let call = self.call.clone().no_longer_than(PROVING);
        loop {
            match timeout(call.at_most(LOOK_AGAIN), &mut proof).await {
                Ok(Ok(signature)) => return Ok(signature),
                // The connection has ended.
                Ok(Err(_)) => return Err(Error::Cancelled),
                Err(_) => call.check()?,
            }
        }
    }

    fn plug(&self, description: Description) -> Result<wire::DeviceAttached, Refusal> {
        let session = &self.session;
        let devices = &session.shared.devices;
        let most = session.shared.most_devices();
        let taken = session.load.take(Counted::Device, most);
        let taken = taken.ok_or(Refusal::Busy {
            what: "devices of one caller",
            most,
        })?;
        let serial = description.serial().to_owned();
        let device = session.devices.place(description.token(), taken)?;
        let link = DeviceLink {
            channel: Arc::clone(&session.devices),
            outbox: Arc::clone(&session.outbox),
            device,
        };
        match devices.attach(description, Arc::new(link)) {
            Ok(attachment) => {
                session.devices.plug(device, attachment);
                Ok(wire::DeviceAttached { device, serial })
            }
            Err(error) => {
                session.devices.unplug(device);
                Err(match error {
                    AttachError::Twice { .. } => Refusal::DeviceAttached,
                    AttachError::TooMany { most } => Refusal::Busy {
                        what: "devices",
                        most,
                    },
                    other => Refusal::BadDevice(other.to_string()),
                })
            }
        }
    }

    /// The token is absent from then on.
    pub(crate) fn detach_device(&self, wanted: &wire::DetachDevice) -> Result<Answer, Refusal> {
        match self.session.devices.unplug(wanted.device) {
            Some(_) => {
                let detached = Reply::DeviceDetached(wire::DeviceDetached {});
                Ok(replies::from_daemon(detached).into())
            }
            None => Err(Refusal::BadRequest("the connection has no such device")),
        }
    }
}
