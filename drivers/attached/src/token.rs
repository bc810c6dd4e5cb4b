//! One attached device.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use claviger_token::key::to_hex;
use claviger_token::{
    Call, Decryptor, Deletion, Error, Event, GeneratedKey, KeyRef, KeySpec, KeyUse, NewKey,
    PublicKey, Signer, SlotId, SlotInfo, SlotName, Token, TokenInfo, Unfinished,
};
use rand_core::{OsRng, RngCore};

use crate::description::{Description, LONGEST_LABEL, MOST_KEYS};
use crate::devices::Devices;
use crate::key::AttachedKey;
use crate::link::{Asked, Failure, Happening, Reply, Request, StatedKey};

/// So long a request that has no deadline waits for a device, which may wait for a person.
const LONGEST: Duration = Duration::from_secs(600);

/// The digits of a slot that is named here.
const SLOT: usize = 32;

/// The characters of an error's text that are shown.
const SHOWN: usize = 200;

/// A device. It works again when the device was away and is attached again.
#[derive(Clone)]
pub(crate) struct AttachedToken {
    devices: Devices,
    description: Arc<Description>,
    info: TokenInfo,
}

impl AttachedToken {
    pub(crate) fn new(devices: Devices, description: &Arc<Description>) -> Self {
        AttachedToken {
            devices,
            info: description.info(),
            description: Arc::clone(description),
        }
    }

    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    /// Asks the device for something that changes nothing on it.
    pub(crate) fn ask(&self, request: Request<'_>, call: &Call) -> Result<Reply, Error> {
        self.ask_patiently(request, Duration::ZERO, call)
    }

    /// Asks it for a change, whose outcome has to be known.
    fn change(&self, request: Request<'_>, call: &Call) -> Result<Reply, Error> {
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
    fn keys(&self, call: &Call) -> Result<Vec<StatedKey>, Error> {
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

    fn handle(&self, wanted: &KeyRef, usage: KeyUse, call: &Call) -> Result<AttachedKey, Error> {
        let found = self.find(wanted, call)?;
        let key = found.ok_or_else(|| self.not_found(&wanted.public_key))?;
        if key.usage != usage {
            return Err(Error::NotUsable {
                token: self.info.id.clone(),
                wanted: KeySpec {
                    algorithm: key.public_key.algorithm(),
                    usage,
                },
                reason: "it was made for another use".into(),
            });
        }
        self.info.check_uses(KeySpec {
            algorithm: key.public_key.algorithm(),
            usage,
        })?;
        Ok(AttachedKey::new(self.clone(), key))
    }

    /// Destroys a key, and sees that it is gone.
    fn destroy(&self, key: &StatedKey, call: &Call) -> Result<Deletion, Error> {
        let (slot, public_key) = (&*key.slot, &key.public_key);
        let Reply::Done(was_there) = self.change(Request::Delete { slot, public_key }, call)?
        else {
            return Err(self.malformed("delete", "it is the answer to something else"));
        };
        let is_it = |other: &StatedKey| other.public_key == key.public_key;
        match (self.keys(call)?.iter().any(is_it), was_there) {
            (true, _) => Err(Error::CannotDestroy {
                token: self.info.id.clone(),
                slot: slot.into(),
            }),
            (false, true) => Ok(Deletion::Destroyed),
            (false, false) => Ok(Deletion::NothingThere),
        }
    }
}

impl Token for AttachedToken {
    fn info(&self) -> &TokenInfo {
        &self.info
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        let shown = |key: StatedKey| {
            let mut shown = SlotInfo::occupied(SlotName::new(key.slot)).with_key(key.public_key);
            shown.uses = vec![key.usage];
            shown.label = key.label;
            shown
        };
        Ok(self.keys(call)?.into_iter().map(shown).collect())
    }

    /// Slots have random names. So a key in a slot is known to be ours, though a program died
    /// before it could note the key itself.
    fn free_slots(
        &self,
        specs: &[KeySpec],
        _: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error> {
        for spec in specs {
            self.info.check_makes(*spec)?;
        }
        let room = self.description.stated().most_keys;
        if self.keys(call)?.len() + specs.len() > room {
            let token = self.info.id.clone();
            return Err(Error::TokenFull { token });
        }
        Ok(specs.iter().map(|_| SlotId::new(random_slot())).collect())
    }

    fn generate(
        &self,
        &NewKey { slot, spec, mark }: &NewKey<'_>,
        call: &Call,
    ) -> Result<GeneratedKey, Error> {
        self.info.check_makes(spec)?;
        let name = slot.name();
        if name.len() != SLOT || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            // A key of another program may be in one that is called otherwise.
            return Err(Error::NoSuchSlot {
                token: self.info.id.clone(),
                slot: name.chars().take(SHOWN).collect(),
            });
        }
        let request = Request::Generate {
            slot: name,
            spec,
            label: cut(mark),
        };
        match self.change(request, call)? {
            Reply::Generated {
                public_key,
                protection,
            } if public_key.algorithm() == spec.algorithm => {
                Ok(GeneratedKey::new(public_key, protection))
            }
            _ => Err(self.malformed("generate", "it is no key of the kind that was asked for")),
        }
    }

    fn name(&self, key: &KeyRef, label: &str, call: &Call) -> Result<(), Error> {
        let found = self.find(key, call)?;
        let found = found.ok_or_else(|| self.not_found(&key.public_key))?;
        let request = Request::SetLabel {
            slot: &found.slot,
            public_key: &found.public_key,
            label: cut(label),
        };
        match self.change(request, call)? {
            Reply::Done(_) => Ok(()),
            _ => Err(self.malformed("set-label", "it is the answer to something else")),
        }
    }

    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        match self.find(key, call)? {
            Some(found) => self.destroy(&found, call),
            None => Ok(Deletion::NothingThere),
        }
    }

    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        let keys = self.keys(call)?;
        match keys.iter().find(|key| left.slot.name() == key.slot) {
            Some(key) if !left.mark.is_empty() && key.label == left.mark => self.destroy(key, call),
            Some(_) => Ok(Deletion::Foreign),
            None => Ok(Deletion::NothingThere),
        }
    }

    fn signer(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error> {
        Ok(Arc::new(self.handle(key, KeyUse::Sign, call)?))
    }

    fn decryptor(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Decryptor>, Error> {
        Ok(Arc::new(self.handle(key, KeyUse::Decrypt, call)?))
    }
}

/// 128 random bits in hexadecimal.
fn random_slot() -> String {
    let mut random = [0; SLOT / 2];
    OsRng.fill_bytes(&mut random);
    to_hex(&random)
}

/// As much of a label as a key has.
fn cut(label: &str) -> &str {
    let mut length = label.len().min(LONGEST_LABEL);
    while !label.is_char_boundary(length) {
        length -= 1;
    }
    &label[..length]
}

/// What a device says of an error, as it is shown.
fn shown(text: &str) -> String {
    let seen = text.chars().filter(|c| !c.is_control());
    seen.take(SHOWN).collect()
}
