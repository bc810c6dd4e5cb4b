//! Listing the keys on a token.

use std::collections::{HashMap, HashSet};

use claviger_token::{Call, Error, KeySpec, KeyUse, PublicKey, SlotInfo};
use cryptoki::error::Error as Ck;
use cryptoki::object::ObjectClass;
use cryptoki::session::Session;

use crate::object::{KeyObject, Read, read_certificates, read_keys, slot_name};
use crate::quirks::Quirks;
use crate::token::Pkcs11Token;

/// The public keys and the certificates that can be seen without a login, each key once.
pub(crate) fn visible(
    session: &Session,
    quirks: &Quirks,
    uses: &[KeySpec],
) -> Result<Vec<SlotInfo>, Ck> {
    let public = read_keys(session, ObjectClass::PUBLIC_KEY, [])?;
    let mut slots: Vec<_> = (public.iter())
        .map(|Read { key, .. }| {
            let may = key.public_uses(quirks.public_uses, uses);
            slot_info(key, key.public_key(), may)
        })
        .collect();
    for certificate in read_certificates(session, [])? {
        let is_it = |slot: &SlotInfo| slot.public_key.as_ref() == Some(&certificate.key);
        if !slots.iter().any(is_it) {
            let key = KeyObject::named(certificate.id, certificate.label);
            let may = KeyObject::uses_of(certificate.key.algorithm(), uses);
            slots.push(slot_info(&key, Some(certificate.key), may));
        }
    }
    Ok(slots)
}

impl Pkcs11Token {
    /// The private keys with their public halves, and what else is in the way of a new key.
    pub(crate) fn list(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        self.connection.run(call, |session, _| {
            let private = read_keys(session, ObjectClass::PRIVATE_KEY, [])?;
            let public = read_keys(session, ObjectClass::PUBLIC_KEY, [])?;
            let secret = read_keys(session, ObjectClass::SECRET_KEY, [])?;
            if private.is_empty() {
                self.connection.confirm(session)?;
            }
            let mut halves = Halves::of(&private);
            for Read { key, .. } in &public {
                halves.add(&key.id, key.public_key());
            }
            if !private.is_empty() {
                for certificate in read_certificates(session, [])? {
                    halves.add(&certificate.id, Some(certificate.key));
                }
            }
            let mut slots = halves.slots(&private, &self.info.uses);
            // It is none that could be used.
            let public = public.iter().map(|read| (&read.key, "a public key alone"));
            let secret = secret.iter().map(|read| (&read.key, "a secret key"));
            let mut seen: HashSet<&[u8]> = private.iter().map(|read| &*read.key.id).collect();
            for (key, what) in public.chain(secret).filter(|(key, _)| !key.id.is_empty()) {
                if seen.insert(&key.id) {
                    let mut slot = slot_info(key, None, Vec::new());
                    slot.notes = vec![("holds".into(), what.into())];
                    slots.push(slot);
                }
            }
            Ok(slots)
        })
    }
}

/// The public halves that are told for each `CKA_ID`, without those that a private key tells
/// itself.
struct Halves<'a> {
    told: HashMap<&'a [u8], Vec<PublicKey>>,
    named: HashMap<Vec<u8>, Vec<PublicKey>>,
}

impl<'a> Halves<'a> {
    fn of(private: &'a [Read]) -> Self {
        let mut told: HashMap<&[u8], Vec<PublicKey>> = HashMap::new();
        for Read { key, .. } in private {
            told.entry(&key.id).or_default().extend(key.public_key());
        }
        Halves {
            told,
            named: HashMap::new(),
        }
    }

    fn add(&mut self, id: &[u8], half: Option<PublicKey>) {
        let (Some(half), Some(told)) = (half, self.told.get(id)) else {
            return;
        };
        let named = self.named.entry(id.to_vec()).or_default();
        if !told.contains(&half) && !named.contains(&half) {
            named.push(half);
        }
    }

    /// What is shown of the private keys. Where several keys have one id it is not known whose
    /// each half is; each is shown, since it is proven when the key is used.
    fn slots(mut self, private: &[Read], uses: &[KeySpec]) -> Vec<SlotInfo> {
        let mut slots = Vec::new();
        for (i, Read { key, .. }) in private.iter().enumerate() {
            let shown = |half: Option<PublicKey>| {
                let algorithm = half.as_ref().map(PublicKey::algorithm).or(key.algorithm());
                let may = algorithm.map(|algorithm| key.private_uses(algorithm, uses));
                slot_info(key, half, may.unwrap_or_default())
            };
            if let Some(half) = key.public_key() {
                slots.push(shown(Some(half)));
                continue;
            }
            let is_rival = |other: &Read| {
                other.key.id == key.id
                    && other.key.public_key().is_none()
                    && match (key.algorithm(), other.key.algorithm()) {
                        (Some(one), Some(other)) => one == other,
                        _ => true,
                    }
            };
            let more = private[i + 1..].iter().any(is_rival);
            let named = self.named.entry(key.id.clone()).or_default();
            let mut fitting: Vec<_> = named
                .extract_if(.., |half| key.may_be(half.algorithm()))
                .collect();
            // One for each rival that is still to come, and the rest for the last.
            if more && fitting.len() > 1 {
                named.extend(fitting.drain(1..));
            }
            match fitting.is_empty() {
                true => slots.push(shown(None)),
                false => slots.extend(fitting.into_iter().map(|half| shown(Some(half)))),
            }
        }
        slots
    }
}

fn slot_info(key: &KeyObject, public_key: Option<PublicKey>, uses: Vec<KeyUse>) -> SlotInfo {
    let mut slot = SlotInfo::occupied(slot_name(&key.id, public_key.as_ref()));
    slot.algorithm = key.algorithm();
    slot.uses = uses;
    slot.label.clone_from(&key.label);
    match public_key {
        Some(key) => slot.with_key(key),
        None => slot,
    }
}
