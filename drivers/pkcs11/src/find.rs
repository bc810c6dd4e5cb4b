//! Finding a private key by its public key, and by nothing else.
//!
//! An RSA key has its modulus. A private key on a curve mostly has nothing: it shares a `CKA_ID`
//! with its public key or a certificate, and other keys may share it, too. So a key that was found
//! by an id is *presumed*, until its public key verifies a signature or an agreement of it. If
//! several private keys are possible, all are tried at once. A key whose public key is known to be
//! another one is not tried. What is presumed may be used, since its use proves it; it is never
//! destroyed.

use std::cell::Cell;

use claviger_token::possession::{self, Challenge};
use claviger_token::{Call, Error, Fingerprint, KeySpec, PublicKey, SlotId};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use rand_core::{OsRng, RngCore};

use crate::encoding::public_templates;
use crate::error::{Fault, is_stale_handle};
use crate::object::{KeyObject, Read, read_certificates, read_keys, slot_name};
use crate::operate::{KeyHandle, Text};
use crate::token::Pkcs11Token;
use claviger_token::key::{from_hex, to_hex};

/// So many private keys are tried at most to find one. Each that is tried makes a signature.
const MOST_TRIALS: usize = 16;

/// How it is known that a private key belongs to a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// It tells its public half, or has used it.
    Proven,
    /// It is the only one with the `CKA_ID` of the only public key.
    Presumed,
}

/// What is to be known of a private key that is looked for.
#[derive(Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// It is to be used: what it does shows whose half it is.
    Presumed,
    /// It is tried. One that cannot be tried remains presumed.
    Tried,
    /// It is to be destroyed, so one that cannot be tried is none. A key that wants the PIN for
    /// each use gets it, with this call, if it is the only possible one.
    Proven(&'a Call),
}

/// A private key that is, or is presumed to be, the one that is looked for.
pub(crate) struct Found {
    pub(crate) read: Read,
    pub(crate) proof: Proof,
}

impl Found {
    pub(crate) fn handle(&self) -> KeyHandle {
        self.read.handle()
    }
}

impl Read {
    pub(crate) fn handle(&self) -> KeyHandle {
        KeyHandle {
            object: self.handle,
            always_authenticate: self.key.always_authenticate,
        }
    }
}

/// What a search has found.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) found: Vec<Found>,
    /// What else is where the key was: the fingerprint of another, or what is known of it.
    pub(crate) instead: Option<String>,
    /// Why it cannot be told of a private key whether it is the one.
    pub(crate) doubt: Option<String>,
}

/// The outcome of using a private key to see whose half it is.
pub(crate) enum Trial {
    Ours,
    NotOurs,
    /// It cannot be used so, for this reason.
    Inconclusive(String),
}

/// A search for the private half of a public key.
pub(crate) struct Search<'a> {
    token: &'a Pkcs11Token,
    session: &'a Session,
    public_key: &'a PublicKey,
    wanted: Wanted<'a>,
    trials: Cell<usize>,
}

impl<'a> Search<'a> {
    pub(crate) fn new(
        token: &'a Pkcs11Token,
        session: &'a Session,
        public_key: &'a PublicKey,
        wanted: Wanted<'a>,
    ) -> Self {
        Search {
            token,
            session,
            public_key,
            wanted,
            trials: Cell::new(0),
        }
    }

    /// Looks in the slot where the key was last, then wherever its public half or a
    /// certificate is, and last among the private keys of which no public half is known.
    pub(crate) fn run(&self, slot: &SlotId) -> Result<Findings, Fault> {
        let mut ids: Vec<_> = parse_slot(slot).into_iter().collect();
        let mut findings = match ids.first() {
            Some(id) => self.with_id(id)?,
            // A name that is none of ours.
            None => Findings::default(),
        };
        if !findings.found.is_empty() {
            return Ok(findings);
        }
        findings.found = self.telling()?;
        for other in self.ids_of_public_half()? {
            if !findings.found.is_empty() {
                return Ok(findings);
            }
            if !ids.contains(&other) {
                let there = self.with_id(&other)?;
                findings.found = there.found;
                findings.doubt = findings.doubt.or(there.doubt);
                ids.push(other);
            }
        }
        if findings.found.is_empty() {
            let silent = self.without_public_half(&ids)?;
            findings.found = silent.found;
            findings.doubt = findings.doubt.or(silent.doubt);
        }
        Ok(findings)
    }

    /// The private keys with this `CKA_ID` that are the one, or presumed to be.
    fn with_id(&self, id: &[u8]) -> Result<Findings, Fault> {
        let private = self.keys_with_id(ObjectClass::PRIVATE_KEY, id)?;
        let handles: Vec<_> = private.iter().map(|read| read.handle).collect();
        let there = !handles.is_empty();
        let told = private.iter().find_map(|read| read.key.public_key());
        let (telling, silent): (Vec<_>, Vec<_>) = private
            .into_iter()
            .partition(|read| read.key.public_key().is_some());
        let mut findings = Findings {
            found: self.those_that_tell(telling),
            ..Findings::default()
        };
        if !findings.found.is_empty() {
            return Ok(findings);
        }
        let algorithm = self.public_key.algorithm();
        let silent: Vec<_> = silent
            .into_iter()
            .filter(|read| read.key.may_be(algorithm))
            .collect();
        let mut halves = match silent.is_empty() {
            true => Vec::new(),
            false => self.halves_with_id(id, &handles)?,
        };
        halves.retain(|half| half.algorithm() == algorithm);
        let one = silent.len() == 1;
        match &halves[..] {
            [half] if one && half == self.public_key => {
                self.presume(silent, &mut findings)?;
            }
            // It is the half of another key.
            [_] if one => {}
            _ => self.try_each(silent, &mut findings)?,
        }
        if findings.found.is_empty() && there {
            let other = told
                .as_ref()
                .or(halves.first().filter(|half| *half != self.public_key));
            findings.instead = Some(other.map_or_else(
                || "a private key whose public key is not known".into(),
                |other| other.fingerprint().to_string(),
            ));
        }
        Ok(findings)
    }

    fn presume(&self, silent: Vec<Read>, findings: &mut Findings) -> Result<(), Fault> {
        for read in silent {
            let trial = match self.wanted {
                Wanted::Presumed => None,
                Wanted::Tried => Some(self.try_key(&read)?),
                Wanted::Proven(call) => Some(self.try_only_key(&read, call)?),
            };
            let proof = match (trial, self.wanted) {
                (Some(Trial::Ours), _) => Proof::Proven,
                (Some(Trial::NotOurs), _) => continue,
                (Some(Trial::Inconclusive(reason)), Wanted::Proven(_)) => {
                    findings.doubt = Some(reason);
                    continue;
                }
                (Some(Trial::Inconclusive(_)) | None, _) => Proof::Presumed,
            };
            findings.found.push(Found { read, proof });
        }
        Ok(())
    }

    fn try_each(&self, silent: Vec<Read>, findings: &mut Findings) -> Result<(), Fault> {
        for read in silent {
            match self.try_key(&read)? {
                Trial::Ours => findings.found.push(Found {
                    read,
                    proof: Proof::Proven,
                }),
                Trial::NotOurs => {}
                Trial::Inconclusive(reason) => findings.doubt = Some(reason),
            }
        }
        Ok(())
    }

    fn those_that_tell(&self, telling: Vec<Read>) -> Vec<Found> {
        let ours = telling
            .into_iter()
            .filter(|read| read.key.public_key().as_ref() == Some(self.public_key));
        let proof = Proof::Proven;
        ours.map(|read| Found { read, proof }).collect()
    }

    /// The private keys that tell that they are the one, anywhere.
    fn telling(&self) -> Result<Vec<Found>, Fault> {
        let mut found = Vec::new();
        for template in public_templates(self.public_key) {
            let telling = read_keys(self.session, ObjectClass::PRIVATE_KEY, [template])?;
            found.extend(self.those_that_tell(telling));
        }
        Ok(found)
    }

    /// The ids of the public keys and the certificates that are the public half.
    fn ids_of_public_half(&self) -> Result<Vec<Vec<u8>>, Fault> {
        let mut ids = Vec::new();
        for public in self.public_halves()? {
            ids.push(public.key.id);
        }
        let certificates = read_certificates(self.session, [])?;
        let ours = certificates
            .into_iter()
            .filter(|c| c.key == *self.public_key);
        ids.extend(ours.map(|certificate| certificate.id));
        Ok(ids)
    }

    /// The public key objects that are the public half.
    pub(crate) fn public_halves(&self) -> Result<Vec<Read>, Fault> {
        let mut found = Vec::new();
        for template in public_templates(self.public_key) {
            let public = read_keys(self.session, ObjectClass::PUBLIC_KEY, [template])?;
            found.extend(
                public
                    .into_iter()
                    .filter(|read| read.key.public_key().as_ref() == Some(self.public_key)),
            );
        }
        Ok(found)
    }

    /// Of the private keys whose public half nothing tells, those that prove to be the one.
    fn without_public_half(&self, looked_at: &[Vec<u8>]) -> Result<Findings, Fault> {
        let algorithm = self.public_key.algorithm();
        let mut silent = read_keys(self.session, ObjectClass::PRIVATE_KEY, [])?;
        silent.retain(|read| {
            read.key.public_key().is_none()
                && read.key.may_be(algorithm)
                && !looked_at.contains(&read.key.id)
        });
        if silent.is_empty() {
            return Ok(Findings::default());
        }
        let public = read_keys(self.session, ObjectClass::PUBLIC_KEY, [])?;
        let mut named: Vec<_> = public.into_iter().map(|read| read.key.id).collect();
        let certificates = read_certificates(self.session, [])?;
        named.extend(certificates.into_iter().map(|certificate| certificate.id));
        silent.retain(|read| !named.contains(&read.key.id));
        let mut findings = Findings::default();
        self.try_each(silent, &mut findings)?;
        Ok(findings)
    }

    fn keys_with_id(&self, class: ObjectClass, id: &[u8]) -> Result<Vec<Read>, Fault> {
        // Not every module finds what has no id by an empty one.
        let template = (!id.is_empty()).then(|| Attribute::Id(id.to_vec()));
        let mut found = read_keys(self.session, class, template)?;
        found.retain(|read| read.key.id == id);
        Ok(found)
    }

    /// The public halves that the public keys and the certificates with this id tell, beside
    /// these private keys.
    fn halves_with_id(&self, id: &[u8], private: &[ObjectHandle]) -> Result<Vec<PublicKey>, Fault> {
        if matches!(self.wanted, Wanted::Presumed)
            && let Some(half) = self.only_half(id, private)
        {
            return Ok(vec![half]);
        }
        let public = self.keys_with_id(ObjectClass::PUBLIC_KEY, id)?;
        let template = (!id.is_empty()).then(|| Attribute::Id(id.to_vec()));
        let certificates = read_certificates(self.session, template)?;
        let certified = certificates.into_iter().filter(|c| c.id == id);
        let told = public.iter().filter_map(|read| read.key.public_key());
        let mut halves = Vec::new();
        for half in told.chain(certified.map(|c| c.key)) {
            if !halves.contains(&half) {
                halves.push(half);
            }
        }
        Ok(halves)
    }

    /// The public half that is looked for, where its public key is the only object with this id
    /// beside these private keys: then there is no certificate. This takes one search.
    fn only_half(&self, id: &[u8], private: &[ObjectHandle]) -> Option<PublicKey> {
        if id.is_empty() {
            return None;
        }
        // Whatever fails here fails again, and is told, where each class is searched.
        let all = self.session.find_objects(&[Attribute::Id(id.to_vec())]);
        let mut others = all.ok()?;
        let found = others.len();
        others.retain(|object| !private.contains(object));
        let [other] = others[..] else { return None };
        // A module that hides objects from such a search is asked class by class.
        if found != private.len() + 1 {
            return None;
        }
        let key = KeyObject::read(self.session, other).ok()?;
        let half = key.public_key().filter(|_| key.id == id);
        half.filter(|half| half == self.public_key)
    }

    /// Has a private key make a signature or an agreement, and looks whether it is by the
    /// private half of the public key.
    pub(crate) fn try_key(&self, read: &Read) -> Result<Trial, Fault> {
        match read.key.always_authenticate {
            // None that wants the PIN for each use is tried, so nothing waits.
            false => self.try_with(read, &Call::unlimited()),
            true => Ok(Trial::Inconclusive(
                "it requires the PIN for each use".into(),
            )),
        }
    }

    /// [`Search::try_key`] for the only key that is possible: it gets the PIN if it wants that.
    fn try_only_key(&self, read: &Read, call: &Call) -> Result<Trial, Fault> {
        match read.key.always_authenticate {
            true => self.try_with(read, call),
            false => self.try_key(read),
        }
    }

    fn try_with(&self, read: &Read, call: &Call) -> Result<Trial, Fault> {
        let algorithm = self.public_key.algorithm();
        let may = |spec: KeySpec| {
            self.token.info.uses.contains(&spec) && read.key.refuses(spec).is_none()
        };
        if self.trials.replace(self.trials.get() + 1) >= MOST_TRIALS {
            return Ok(Trial::Inconclusive("there are too many to try each".into()));
        }
        let tried = if may(KeySpec::sign(algorithm)) {
            self.try_to_sign(read, call)
        } else if may(KeySpec::decrypt(algorithm)) {
            self.try_to_open(read, call)
        } else {
            return Ok(Trial::Inconclusive("it neither signs nor decrypts".into()));
        };
        match tried {
            Ok(true) => Ok(Trial::Ours),
            Ok(false) => Ok(Trial::NotOurs),
            Err(Fault::Module(error)) if is_stale_handle(&error) => Ok(Trial::NotOurs),
            Err(fault) => {
                // A token that is away says nothing of the key.
                self.token.connection.confirm(self.session)?;
                match fault {
                    Fault::Input => Ok(Trial::NotOurs),
                    // Nor does a PIN that was not taken.
                    Fault::Gone(_) | Fault::Broken(_) => Err(fault),
                    other => {
                        let error = other.into_error(&self.token.info.id);
                        Ok(Trial::Inconclusive(error.to_string()))
                    }
                }
            }
        }
    }

    fn try_to_sign(&self, read: &Read, call: &Call) -> Result<bool, Fault> {
        let mut random = [0; 16];
        OsRng.fill_bytes(&mut random);
        let text = format!("{} {}", possession::PREFIX, to_hex(&random));
        let (key, algorithm) = (read.handle(), self.public_key.algorithm());
        let message = Text::Message(text.as_bytes());
        let signature =
            (self.token).sign_with(self.session, key, (algorithm, None), message, call)?;
        Ok(self.public_key.verify(text.as_bytes(), &signature).is_ok())
    }

    fn try_to_open(&self, read: &Read, call: &Call) -> Result<bool, Fault> {
        let Some(challenge) = Challenge::new(self.public_key) else {
            return Ok(false);
        };
        let (key, algorithm) = (read.handle(), self.public_key.algorithm());
        let request = challenge.request();
        let answer = (self.token).unwrap_with(self.session, key, algorithm, request, call)?;
        Ok(challenge.is_answered_by(&answer))
    }
}

impl Findings {
    /// The error where nothing was found.
    pub(crate) fn missing(self, token: &Pkcs11Token, key: &PublicKey, slot: &SlotId) -> Error {
        let (token, key) = (token.info.id.clone(), key.fingerprint().to_string());
        let doubt = self
            .doubt
            .map(|why| format!("a key that cannot be identified: {why}"));
        match doubt.or(self.instead) {
            Some(found) => Error::KeyMismatch {
                token,
                slot: slot.to_string(),
                expected: key,
                found,
            },
            None => Error::KeyNotFound { token, key },
        }
    }
}

/// The `CKA_ID` that a slot's name stands for: empty where the key has none, and the slot is
/// named by the fingerprint of its public half.
pub(crate) fn parse_slot(slot: &SlotId) -> Result<Vec<u8>, Error> {
    if slot.as_str().parse::<Fingerprint>().is_ok() {
        return Ok(Vec::new());
    }
    parse_id(slot)
}

/// The `CKA_ID` that a slot's name is.
pub(crate) fn parse_id(slot: &SlotId) -> Result<Vec<u8>, Error> {
    let id = from_hex(slot.as_str()).filter(|id| !id.is_empty());
    id.ok_or_else(|| Error::BadBackend {
        backend: slot.to_string(),
        reason: "a slot of a PKCS#11 token is a CKA_ID in hexadecimal".into(),
    })
}

/// Where a key was found.
pub(crate) fn place(found: &Found, key: &PublicKey) -> SlotId {
    slot_name(&found.read.key.id, Some(key))
}
