//! Using the keys of an open token.

use std::sync::{Arc, Mutex};

use claviger_token::possession::Challenge;
use claviger_token::sync::lock;
use claviger_token::{
    Call, Decryptor, DigestSigner, Error, Event, KeyRef, KeySpec, KeyUse, PublicKey, Secret,
    Signature, SignatureScheme, Signer, SlotId, TokenInfo, Unwrap, agreement,
};
use zeroize::Zeroizing;

use crate::apdu::Status;
use crate::block::{digest_to_be_signed, to_be_signed};
use crate::card::{Operation, Shown, Tries};
use crate::connection::{Connection, How};
use crate::content::{Content, says_no_such_key};
use crate::error::Fault;
use crate::firmware::{Feature, algorithm_id};
use crate::policy::{PinPolicy, TouchPolicy};
use crate::seek::{Match, Sought, seek};
use crate::session::Session;
use crate::slot::{KeyName, Slot, parse_name};

/// A key on a token.
pub(crate) struct Key {
    connection: Arc<Connection>,
    /// Of its token, as it was when the key was found.
    info: TokenInfo,
    /// Where it was seen last.
    name: Mutex<KeyName>,
    public_key: PublicKey,
    spec: KeySpec,
    id: u8,
    /// What was seen when the slot was looked at last.
    checked: Mutex<Option<Checked>>,
}

#[derive(Clone, Copy)]
struct Checked {
    /// At which count of changes.
    at: u64,
    pin: PinPolicy,
    touch: TouchPolicy,
    /// Whether the card itself shows that this key is there.
    shown: bool,
}

impl Key {
    /// Finds the key.
    pub(crate) fn open(
        connection: &Arc<Connection>,
        info: &TokenInfo,
        (key, usage): (&KeyRef, KeyUse),
        call: &Call,
    ) -> Result<Self, Error> {
        let algorithm = key.public_key.algorithm();
        let spec = KeySpec { algorithm, usage };
        info.check_uses(spec)?;
        let name = parse_name(&key.slot)?;
        if name.usage.is_some_and(|made_for| made_for != usage) {
            return Err(does_not_use(info, spec));
        }
        let key = Key {
            connection: Arc::clone(connection),
            info: info.clone(),
            name: Mutex::new(name),
            public_key: key.public_key.clone(),
            spec,
            id: algorithm_id(algorithm).ok_or_else(|| does_not_use(info, spec))?,
            checked: Mutex::default(),
        };
        connection.run(call, How::REPEAT, |s| key.examine(s, true))?;
        Ok(key)
    }

    fn does_not_use(&self, wanted: KeySpec) -> Error {
        does_not_use(&self.info, wanted)
    }

    fn slot(&self) -> Slot {
        lock(&self.name).slot
    }

    fn slot_id(&self) -> SlotId {
        lock(&self.name).to_id()
    }

    /// What the key wants before it works. Looks at the card if something may have changed
    /// since that was done last.
    fn check(&self, session: &mut Session<'_>) -> Result<Checked, Fault> {
        let at = session.changes();
        let known = *lock(&self.checked);
        match known {
            Some(checked) if checked.at == at => Ok(checked),
            _ => self.examine(session, false),
        }
    }

    /// Makes sure that the key is on the card and may be used like this, and notes where it
    /// is. With `proof` a certificate does not do: it may be stale.
    fn examine(&self, session: &mut Session<'_>, proof: bool) -> Result<Checked, Fault> {
        let make = self.connection.make();
        let name = *lock(&self.name);
        let quick = self.glance(session, name)?;
        let (slot, checked) = match quick {
            Some(checked) => (name.slot, checked),
            None => match seek(session, &make, &name, &self.public_key, proof)? {
                Sought::At(slot, content, found) => {
                    self.check_use(slot, &content)?;
                    let (pin, touch) = content.policies(slot);
                    let checked = Checked {
                        at: session.changes(),
                        pin,
                        touch,
                        shown: found == Match::Yes && content.is_certain(),
                    };
                    (slot, checked)
                }
                Sought::Gone(content, _)
                    if content.names(&self.public_key) && name.mark.is_none() =>
                {
                    return Err(self.is_another(name.slot).into());
                }
                Sought::Gone(content, found) => {
                    return Err(self.is_gone(&content, found, name.slot));
                }
            },
        };
        *lock(&self.name) = name.in_slot(slot);
        *lock(&self.checked) = Some(checked);
        Ok(checked)
    }

    /// Where the card shows its keys, and the name says what this one is for, one command
    /// tells all.
    fn glance(&self, session: &mut Session<'_>, name: KeyName) -> Result<Option<Checked>, Fault> {
        let connection = &self.connection;
        if name.usage.is_none() || !connection.make().has(Feature::Metadata) {
            return Ok(None);
        }
        Ok(match session.card.shown(name.slot)? {
            Shown::Key(metadata) if metadata.public_key.as_ref() == Some(&self.public_key) => {
                Some(Checked {
                    at: session.changes(),
                    pin: metadata.pin.unwrap_or(PinPolicy::customary(name.slot)),
                    touch: metadata.touch.unwrap_or(TouchPolicy::Never),
                    shown: true,
                })
            }
            _ => None,
        })
    }

    fn check_use(&self, slot: Slot, content: &Content) -> Result<(), Fault> {
        let usage = self.spec.usage;
        let by_name = lock(&self.name).usage;
        if by_name == Some(usage) {
            return Ok(());
        }
        match content.certified_uses() {
            Some(uses) if !uses.contains(&usage) => Err(match content.is_ours() {
                // One of Claviger's keys has one use.
                true => self.does_not_use(self.spec),
                false => Error::NotUsable {
                    token: self.info.id.clone(),
                    wanted: self.spec,
                    reason: format!("the certificate in slot {slot} has another key usage"),
                },
            }
            .into()),
            _ => Ok(()),
        }
    }

    fn is_gone(&self, content: &Content, found: Match, slot: Slot) -> Fault {
        let token = self.info.id.clone();
        let expected = self.public_key.fingerprint().to_string();
        Fault::Ours(match found {
            Match::Another => Error::KeyMismatch {
                token,
                slot: slot.to_string(),
                expected,
                found: content
                    .public_key()
                    .filter(|k| **k != self.public_key)
                    .map_or("a key whose public key cannot be read".into(), |key| {
                        key.fingerprint().to_string()
                    }),
            },
            _ => Error::KeyNotFound {
                token,
                key: expected,
            },
        })
    }

    /// What it means that another key is in the slot than its certificate says: one of ours
    /// was replaced; of others it is not known that it ever was there.
    fn is_another(&self, slot: Slot) -> Error {
        match lock(&self.name).mark {
            Some(_) => Error::KeyMismatch {
                token: self.info.id.clone(),
                slot: slot.to_string(),
                expected: self.public_key.fingerprint().to_string(),
                found: "another key".into(),
            },
            None => self.no_possession(format!(
                "the certificate in slot {slot} is of another key than the one in it"
            )),
        }
    }

    /// What it means that the card does not have the private half.
    fn no_possession(&self, reason: String) -> Error {
        Error::NoPossession {
            token: self.info.id.clone(),
            key: self.public_key.fingerprint().to_string(),
            reason,
        }
    }

    /// GENERAL AUTHENTICATE alone, where nothing else is missing and it is one command.
    fn operate_alone(
        &self,
        session: &mut Session<'_>,
        operation: Operation,
        input: &[u8],
    ) -> Option<Zeroizing<Vec<u8>>> {
        let Checked { at, pin, touch, .. } = (*lock(&self.checked))?;
        let settled = at == session.changes()
            && input.len() <= LONGEST_IN_ONE_COMMAND
            && touch == TouchPolicy::Never
            && match pin {
                PinPolicy::Never => true,
                PinPolicy::Once => session.is_verified(),
                PinPolicy::Always => false,
            };
        settled
            .then(|| session.card.operate(self.slot(), self.id, operation, input))?
            .ok()
    }

    /// One GENERAL AUTHENTICATE, and before it only what is missing.
    fn operate(
        &self,
        operation: Operation,
        input: &[u8],
        call: &Call,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let connection = &self.connection;
        let done = connection.run_alone(call, |s| self.operate_alone(s, operation, input))?;
        if let Some(done) = done {
            return Ok(done);
        }
        connection.run(call, How::REPEAT, |session| {
            let checked = self.check(session)?;
            let before = self.slot();
            let done = self.ask(session, &checked, operation, input, call);
            // It may have been moved while nobody looked.
            match done {
                Err(fault) if fault.status().is_some() && session.fresh => {
                    let found = self.examine(session, true);
                    match found {
                        Ok(checked) if self.slot() != before => {
                            self.ask(session, &checked, operation, input, call)
                        }
                        Err(fault @ (Fault::Ours(_) | Fault::NotOurTurn)) => Err(fault),
                        _ => Err(self.explain(session, fault, operation, &checked)),
                    }
                }
                Err(fault) => Err(self.explain(session, fault, operation, &checked)),
                done => done,
            }
        })
    }

    /// Gives what is missing, and asks for the operation.
    fn ask(
        &self,
        session: &mut Session<'_>,
        checked: &Checked,
        operation: Operation,
        input: &[u8],
        call: &Call,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        match checked.pin {
            PinPolicy::Never => {}
            PinPolicy::Once => drop(session.verify()?),
            PinPolicy::Always => session.verify_for_one()?,
        }
        let touched = checked.touch != TouchPolicy::Never;
        let token = || self.info.id.clone();
        if touched {
            call.tell(&Event::TouchNeeded { token: token() });
        }
        let done = session.card.operate(self.slot(), self.id, operation, input);
        if touched {
            call.tell(&Event::PersonDone { token: token() });
        }
        done
    }

    /// What a refusal means.
    fn explain(
        &self,
        session: &mut Session<'_>,
        fault: Fault,
        operation: Operation,
        checked: &Checked,
    ) -> Fault {
        let Some(status) = fault.status() else {
            return fault;
        };
        let touched = checked.touch != TouchPolicy::Never;
        // With the PIN given, or not needed, only the touch can have been missing.
        if touched
            && matches!(status, Status::SECURITY | Status::CONDITIONS)
            && (checked.pin == PinPolicy::Never
                || matches!(
                    session.card.in_any_case(|card| card.tries()),
                    Ok(Tries::Verified)
                ))
        {
            // Unless it is another key by now, which wants more.
            return match self.examine(session, false) {
                Err(Fault::Ours(
                    reason @ (Error::KeyNotFound { .. } | Error::KeyMismatch { .. }),
                )) => Fault::Ours(reason),
                _ => Fault::Ours(Error::NotTouched {
                    token: self.info.id.clone(),
                }),
            };
        }
        if operation == Operation::Sign && status == Status::WRONG_LENGTH {
            return Fault::Ours(Error::BadMessage {
                reason: "it is too long for the card".into(),
            });
        }
        // Otherwise it is tried again after a SELECT.
        if session.fresh && says_no_such_key(status) {
            let slot = self.slot();
            let is_ours = lock(&self.name).mark.is_some();
            return Fault::Ours(match checked.shown {
                false if is_ours => Error::KeyNotFound {
                    token: self.info.id.clone(),
                    key: self.public_key.fingerprint().to_string(),
                },
                false => self.no_possession(format!(
                    "slot {slot} has its certificate, but not the private key ({status})"
                )),
                // It has the key, and not the operation.
                true => Error::NotUsable {
                    token: self.info.id.clone(),
                    wanted: self.spec,
                    reason: format!("the card refuses the operation: {status}"),
                },
            });
        }
        fault
    }
}

fn does_not_use(info: &TokenInfo, wanted: KeySpec) -> Error {
    Error::Unsupported {
        token: info.id.clone(),
        wanted,
        supported: info.uses.clone(),
    }
}

/// Neither the command nor its reply is cut into pieces up to here.
const LONGEST_IN_ONE_COMMAND: usize = 128;

pub(crate) struct PivSigner(pub(crate) Key);

/// Ed25519 signs the message itself (RFC 8032 §5.1.6), so it has to fit into the card:
/// YubiKeys take about 3 KiB in one command, chained or not.
pub const LONGEST_ED25519_MESSAGE: usize = 3000;

impl Signer for PivSigner {
    fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    fn slot(&self) -> SlotId {
        self.0.slot_id()
    }

    /// Ed25519: messages of at most [`LONGEST_ED25519_MESSAGE`] bytes.
    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error> {
        let key = &self.0;
        let scheme = SignatureScheme::of(key.spec.algorithm);
        let scheme = scheme.ok_or_else(|| key.does_not_use(key.spec))?;
        self.sign_in(scheme, message, call)
    }

    fn sign_in(
        &self,
        scheme: SignatureScheme,
        message: &[u8],
        call: &Call,
    ) -> Result<Signature, Error> {
        call.check()?;
        let key = &self.0;
        let unsupported = || key.does_not_use(key.spec);
        if !SignatureScheme::all_of(key.spec.algorithm).any(|known| known == scheme) {
            return Err(scheme.not_made_by_token());
        }
        if scheme == SignatureScheme::Ed25519 && message.len() > LONGEST_ED25519_MESSAGE {
            return Err(Error::BadMessage {
                reason: format!(
                    "with Ed25519 this token signs at most {LONGEST_ED25519_MESSAGE} bytes"
                ),
            });
        }
        let input = to_be_signed(key.spec.algorithm, scheme, message).ok_or_else(unsupported)?;
        self.signed(scheme, &input, call, |signature| {
            key.public_key.verify(message, signature).is_ok()
        })
    }

    fn of_digests(&self) -> Option<&dyn DigestSigner> {
        self.scheme()?.digest_length().map(|_| self as _)
    }
}

impl DigestSigner for PivSigner {
    fn sign_digest(&self, digest: &[u8], call: &Call) -> Result<Signature, Error> {
        call.check()?;
        let key = &self.0;
        let unsupported = || key.does_not_use(key.spec);
        let scheme = SignatureScheme::of(key.spec.algorithm).ok_or_else(unsupported)?;
        scheme.check_digest(digest)?;
        let input =
            digest_to_be_signed(key.spec.algorithm, scheme, digest).ok_or_else(unsupported)?;
        self.signed(scheme, &input, call, |signature| {
            key.public_key.verify_digest(digest, signature).is_ok()
        })
    }
}

impl PivSigner {
    /// Has the card sign, and checks what it gives.
    fn signed(
        &self,
        scheme: SignatureScheme,
        input: &[u8],
        call: &Call,
        is_ours: impl Fn(&Signature) -> bool,
    ) -> Result<Signature, Error> {
        let key = &self.0;
        // It is checked here since nothing else would show that somebody else made a
        // new key in the slot.
        let verified = |bytes: &[u8]| {
            let signature = Signature::from_der(scheme, bytes).ok();
            signature.filter(|signature| is_ours(signature))
        };
        if let Some(signature) = verified(&key.operate(Operation::Sign, input, call)?) {
            return Ok(signature);
        }
        let before = key.slot();
        let connection = &key.connection;
        let checked = connection.run(call, How::FRESH, |session| key.examine(session, true))?;
        if key.slot() != before
            && let Some(signature) = verified(&key.operate(Operation::Sign, input, call)?)
        {
            return Ok(signature);
        }
        Err(match checked.shown {
            true => {
                key.no_possession("the card lists it, but its signature does not verify".into())
            }
            false => key.is_another(before),
        })
    }
}

pub(crate) struct PivDecryptor(pub(crate) Key);

impl Decryptor for PivDecryptor {
    fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    fn slot(&self) -> SlotId {
        self.0.slot_id()
    }

    /// Where the card shows its keys, it is asked for the public half; else the key agrees
    /// with a peer of which this side knows the answer.
    fn confirm(&self, call: &Call) -> Result<(), Error> {
        let key = &self.0;
        let connection = &key.connection;
        let gone = || Error::KeyNotFound {
            token: key.info.id.clone(),
            key: key.public_key.fingerprint().to_string(),
        };
        let checked = connection.run(call, How::FRESH, |session| key.examine(session, false));
        let checked = checked.map_err(|error| match error {
            Error::KeyMismatch { .. } => gone(),
            other => other,
        })?;
        if checked.shown {
            return Ok(());
        }
        let challenge = Challenge::new(&key.public_key).ok_or_else(gone)?;
        match key.operate(Operation::Agree, challenge.sent(), call) {
            Ok(answer) if challenge.is_answered_by(&answer) => Ok(()),
            Ok(_) | Err(Error::NoPossession { .. } | Error::KeyMismatch { .. }) => Err(gone()),
            Err(error) => Err(error),
        }
    }

    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error> {
        call.check()?;
        let key = &self.0;
        let Unwrap::Agree { peer } = request else {
            return Err(Error::DecryptionFailed);
        };
        let peer = agreement::peer_bytes(key.spec.algorithm, peer)?;
        let secret = key.operate(Operation::Agree, peer, call)?;
        if secret.len() != agreement::SECRET_LENGTH {
            return Err(Error::MalformedReply {
                token: key.info.id.clone(),
                call: "GENERAL AUTHENTICATE".into(),
                reason: "the secret is not 32 bytes long".into(),
            });
        }
        agreement::unknown_to_others(secret)
    }
}
