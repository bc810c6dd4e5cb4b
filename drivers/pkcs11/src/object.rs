//! Key objects: their attributes and their meaning.

use claviger_token::key::to_hex;
use claviger_token::{Algorithm, KeySpec, KeyUse, Protection, PublicKey, SlotId};
use cryptoki::error::{Error as Ck, Result};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use crate::encoding::{EXPONENT, certified_key, curve, decode_point};
use crate::error::{Fault, is_stale_handle};

/// What is read of a key object. What it does not show is `None`.
#[derive(Debug, Default)]
pub(crate) struct KeyObject {
    /// `CKA_ID`, empty where it has none.
    pub(crate) id: Vec<u8>,
    pub(crate) label: String,
    key_type: Option<KeyType>,
    params: Option<Vec<u8>>,
    point: Option<Vec<u8>>,
    modulus: Option<Vec<u8>>,
    exponent: Option<Vec<u8>>,
    sign: Option<bool>,
    verify: Option<bool>,
    derive: Option<bool>,
    decrypt: Option<bool>,
    encrypt: Option<bool>,
    /// `CKA_ALWAYS_AUTHENTICATE`: a PIN for each single operation.
    pub(crate) always_authenticate: bool,
    /// `CKA_MODIFIABLE`: whether its label can be changed.
    pub(crate) modifiable: bool,
    local: bool,
    sensitive: bool,
    always_sensitive: bool,
    never_extractable: bool,
}

const READ: [AttributeType; 18] = [
    AttributeType::Id,
    AttributeType::Label,
    AttributeType::KeyType,
    AttributeType::EcParams,
    AttributeType::EcPoint,
    AttributeType::Modulus,
    AttributeType::PublicExponent,
    AttributeType::Sign,
    AttributeType::Verify,
    AttributeType::Derive,
    AttributeType::Decrypt,
    AttributeType::Encrypt,
    AttributeType::AlwaysAuthenticate,
    AttributeType::Modifiable,
    AttributeType::Local,
    AttributeType::Sensitive,
    AttributeType::AlwaysSensitive,
    AttributeType::NeverExtractable,
];

impl KeyObject {
    /// Reads a key object. Attributes that it has not, or not in a form that can be
    /// read, stay at their defaults.
    pub(crate) fn read(session: &Session, handle: ObjectHandle) -> Result<Self> {
        let attributes = match session.get_attributes(handle, &READ) {
            // A key type that the library does not know spoils the whole reply.
            Err(e) if !matches!(e, Ck::Pkcs11(..)) => session.get_attributes(handle, &READ[..2])?,
            other => other?,
        };
        let mut key = KeyObject {
            // The standard's default (PKCS#11 v2.40 §4.4.1).
            modifiable: true,
            ..KeyObject::default()
        };
        for attribute in attributes {
            key.take(attribute);
        }
        Ok(key)
    }

    /// What a certificate tells of a key: its names.
    pub(crate) fn named(id: Vec<u8>, label: String) -> Self {
        KeyObject {
            id,
            label,
            ..KeyObject::default()
        }
    }

    fn take(&mut self, attribute: Attribute) {
        match attribute {
            Attribute::Id(v) => self.id = v,
            Attribute::Label(v) => self.label = String::from_utf8_lossy(&v).into_owned(),
            Attribute::KeyType(v) => self.key_type = Some(v),
            Attribute::EcParams(v) => self.params = Some(v),
            Attribute::EcPoint(v) => self.point = Some(v),
            Attribute::Modulus(v) => self.modulus = Some(v),
            Attribute::PublicExponent(v) => self.exponent = Some(v),
            Attribute::Sign(v) => self.sign = Some(v),
            Attribute::Verify(v) => self.verify = Some(v),
            Attribute::Derive(v) => self.derive = Some(v),
            Attribute::Decrypt(v) => self.decrypt = Some(v),
            Attribute::Encrypt(v) => self.encrypt = Some(v),
            Attribute::AlwaysAuthenticate(v) => self.always_authenticate = v,
            Attribute::Modifiable(v) => self.modifiable = v,
            Attribute::Local(v) => self.local = v,
            Attribute::Sensitive(v) => self.sensitive = v,
            Attribute::AlwaysSensitive(v) => self.always_sensitive = v,
            Attribute::NeverExtractable(v) => self.never_extractable = v,
            _ => {}
        }
    }

    /// The key's algorithm, where it is one that Claviger knows.
    pub(crate) fn algorithm(&self) -> Option<Algorithm> {
        match self.key_type? {
            KeyType::EC | KeyType::EC_EDWARDS | KeyType::EC_MONTGOMERY => {
                curve(self.params.as_deref()?)
            }
            KeyType::RSA => Some(self.rsa()?.algorithm()),
            _ => None,
        }
    }

    /// Whether it may be a key of `algorithm`, as far as it tells.
    pub(crate) fn may_be(&self, algorithm: Algorithm) -> bool {
        match self.algorithm() {
            Some(own) => own == algorithm,
            // Without parameters or a modulus its type may still tell.
            None => match self.key_type {
                Some(KeyType::RSA) => algorithm.rsa_bits().is_some() && self.modulus.is_none(),
                Some(KeyType::EC | KeyType::EC_EDWARDS | KeyType::EC_MONTGOMERY) => {
                    algorithm.rsa_bits().is_none() && self.params.is_none()
                }
                Some(_) => false,
                None => true,
            },
        }
    }

    fn rsa(&self) -> Option<PublicKey> {
        let exponent = self.exponent.as_deref().filter(|e| !e.is_empty());
        PublicKey::from_rsa(self.modulus.as_deref()?, exponent.unwrap_or(&EXPONENT)).ok()
    }

    /// The public key, where this object tells it. Private RSA keys do; private keys
    /// on elliptic curves do on some tokens.
    pub(crate) fn public_key(&self) -> Option<PublicKey> {
        match self.key_type? {
            KeyType::RSA => self.rsa(),
            _ => decode_point(self.algorithm()?, self.point.as_deref()?),
        }
    }

    /// Why the token does not let this private key be used as `spec` says. What it does not
    /// say it may allow.
    pub(crate) fn refuses(&self, spec: KeySpec) -> Option<&'static str> {
        let (flag, reason) = match spec.usage {
            KeyUse::Sign => (self.sign, "CKA_SIGN is false"),
            KeyUse::Decrypt if spec.algorithm.rsa_bits().is_some() => {
                (self.decrypt, "CKA_DECRYPT is false")
            }
            KeyUse::Decrypt => (self.derive, "CKA_DERIVE is false"),
        };
        (flag == Some(false)).then_some(reason)
    }

    /// What a private key of `algorithm` may be used for. Where it shows none of it (as keys of
    /// tpm2-pkcs11), that is what the token does with such keys, `by_mechanism`.
    pub(crate) fn private_uses(
        &self,
        algorithm: Algorithm,
        by_mechanism: &[KeySpec],
    ) -> Vec<KeyUse> {
        let flag = |usage| match usage {
            KeyUse::Sign => self.sign,
            KeyUse::Decrypt if algorithm.rsa_bits().is_some() => self.decrypt,
            KeyUse::Decrypt => self.derive,
        };
        uses(algorithm, flag, by_mechanism)
    }

    /// What the private half of a public key may be used for, as far as the public
    /// half tells: a key for agreement is one that does not verify.
    pub(crate) fn public_uses(&self, tells: bool, by_mechanism: &[KeySpec]) -> Vec<KeyUse> {
        let Some(algorithm) = self.algorithm() else {
            return Vec::new();
        };
        let flag = |usage| match usage {
            _ if !tells => None,
            KeyUse::Sign => self.verify,
            KeyUse::Decrypt if algorithm.rsa_bits().is_some() => self.encrypt,
            KeyUse::Decrypt if self.derive == Some(true) => Some(true),
            KeyUse::Decrypt => self.verify.map(|verifies| !verifies),
        };
        uses(algorithm, flag, by_mechanism)
    }

    /// What a key of which only the public half is seen may be used for.
    pub(crate) fn uses_of(algorithm: Algorithm, by_mechanism: &[KeySpec]) -> Vec<KeyUse> {
        uses(algorithm, |_| None, by_mechanism)
    }

    /// What the token says of how it keeps the key; what it does not say is false.
    pub(crate) fn protection(&self) -> Protection {
        Protection {
            local: self.local,
            sensitive: self.sensitive && self.always_sensitive,
            never_extractable: self.never_extractable,
        }
    }
}

/// The uses that `algorithm` has and `flag` does not deny; those of which nothing is said are
/// what the token does by its mechanisms.
fn uses(
    algorithm: Algorithm,
    flag: impl Fn(KeyUse) -> Option<bool>,
    by_mechanism: &[KeySpec],
) -> Vec<KeyUse> {
    let does = |usage| by_mechanism.contains(&KeySpec { algorithm, usage });
    [KeyUse::Sign, KeyUse::Decrypt]
        .into_iter()
        .filter(|usage| algorithm.can(*usage) && flag(*usage).unwrap_or_else(|| does(*usage)))
        .collect()
}

/// A key object that was read.
pub(crate) struct Read {
    pub(crate) handle: ObjectHandle,
    pub(crate) key: KeyObject,
}

/// Finds the objects of one class that fit `template`.
///
/// Without `CKA_TOKEN`: where SoftHSM is killed while it makes a key, one may remain on the
/// token that says that it is not there.
pub(crate) fn find(
    session: &Session,
    class: ObjectClass,
    template: impl IntoIterator<Item = Attribute>,
) -> Result<Vec<ObjectHandle>> {
    let mut full = vec![Attribute::Class(class)];
    full.extend(template);
    session.find_objects(&full)
}

/// Reads the keys of one class that fit `template`. What vanishes meanwhile is left out.
pub(crate) fn read_keys(
    session: &Session,
    class: ObjectClass,
    template: impl IntoIterator<Item = Attribute>,
) -> Result<Vec<Read>> {
    let mut found = Vec::new();
    for handle in find(session, class, template)? {
        match KeyObject::read(session, handle) {
            Ok(key) => found.push(Read { handle, key }),
            Err(error) if is_stale_handle(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// A certificate that is about a key that Claviger knows.
pub(crate) struct Certificate {
    /// `CKA_ID`: that of the private key (PKCS#11 v2.40 §4.6.3).
    pub(crate) id: Vec<u8>,
    pub(crate) label: String,
    pub(crate) key: PublicKey,
}

/// Reads the certificates that fit `template` and are about keys that Claviger knows.
pub(crate) fn read_certificates(
    session: &Session,
    template: impl IntoIterator<Item = Attribute>,
) -> Result<Vec<Certificate>> {
    const READ: [AttributeType; 3] = [
        AttributeType::Id,
        AttributeType::Label,
        AttributeType::Value,
    ];
    let mut found = Vec::new();
    for handle in find(session, ObjectClass::CERTIFICATE, template)? {
        let attributes = match session.get_attributes(handle, &READ) {
            Ok(attributes) => attributes,
            // It vanished, or has something that the library cannot read.
            Err(error) if is_stale_handle(&error) || !matches!(error, Ck::Pkcs11(..)) => continue,
            Err(error) => return Err(error),
        };
        let (mut id, mut label, mut key) = (Vec::new(), String::new(), None);
        for attribute in attributes {
            match attribute {
                Attribute::Id(v) => id = v,
                Attribute::Label(v) => label = String::from_utf8_lossy(&v).into_owned(),
                Attribute::Value(v) => key = certified_key(&v),
                _ => {}
            }
        }
        found.extend(key.map(|key| Certificate { id, label, key }));
    }
    Ok(found)
}

/// What a key is called as a slot: by its `CKA_ID` in hexadecimal, or, where that is empty, by
/// the fingerprint of its public half.
pub(crate) fn slot_name(id: &[u8], public_key: Option<&PublicKey>) -> SlotId {
    match (id, public_key) {
        ([], Some(key)) => SlotId::new(key.fingerprint().to_string()),
        _ => SlotId::new(to_hex(id)),
    }
}

pub(crate) fn vanished(fault: Fault) -> Fault {
    match fault {
        Fault::Module(error) if is_stale_handle(&error) => {
            Fault::Gone("an object disappeared after it was found".into())
        }
        other => other,
    }
}
