//! Another program that works on the tokens of a PKCS#11 module, and goes by `CKA_ID`.

use std::path::PathBuf;
use std::sync::Mutex;

use claviger_conformance::Others;
use claviger_token::key::{from_hex, to_hex};
use claviger_token::sync::lock;
use claviger_token::{Algorithm, KeyRef, KeySpec, KeyUse, PublicKey, SlotId};
use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use rand_core::{OsRng, RngCore as _};

/// Another program that works on a token, with the module's own functions. It is in this
/// process, because some tokens are of one process only, and because it is in the same
/// process that a freed handle is given to another object.
///
/// The driver under test has to have loaded the module before.
pub struct Neighbour {
    module: PathBuf,
    place: WhichToken,
    pin: &'static str,
    /// The keys that it made, and the labels that no other object has.
    made: Mutex<Vec<(PublicKey, String)>>,
}

enum WhichToken {
    Slot(u64),
    Label(String),
}

impl Neighbour {
    /// Works on the token in a slot of the module.
    pub fn in_slot(module: impl Into<PathBuf>, slot: u64, pin: &'static str) -> Neighbour {
        Neighbour::at(module.into(), WhichToken::Slot(slot), pin)
    }

    /// Works on the token of the module that has the label.
    pub fn with_label(module: impl Into<PathBuf>, label: &str, pin: &'static str) -> Neighbour {
        Neighbour::at(module.into(), WhichToken::Label(label.into()), pin)
    }

    fn at(module: PathBuf, place: WhichToken, pin: &'static str) -> Neighbour {
        let made = Mutex::default();
        Neighbour {
            module,
            place,
            pin,
            made,
        }
    }

    fn session<T>(&self, work: impl FnOnce(&Session) -> T) -> T {
        claviger_pkcs11::with_module(&self.module, |module| {
            let session = module.open_rw_session(self.slot(module)).unwrap();
            let pin = AuthPin::new(self.pin.into());
            match session.login(UserType::User, Some(&pin)) {
                Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => work(&session),
                Err(error) => panic!("{error}"),
            }
        })
        .unwrap()
    }

    fn slot(&self, module: &Pkcs11) -> Slot {
        let slots = module.get_all_slots().unwrap();
        let is_it = |slot: &Slot| match &self.place {
            WhichToken::Slot(number) => slot.id() == *number,
            WhichToken::Label(label) => {
                let info = module.get_token_info(*slot);
                info.is_ok_and(|info| info.label() == label)
            }
        };
        slots.into_iter().find(is_it).expect("the token is there")
    }

    /// Makes a pair with this `CKA_ID`, and notes it.
    fn make(
        &self,
        session: &Session,
        spec: KeySpec,
        id: &[u8],
        label: &str,
    ) -> Result<Pair, &'static str> {
        let pair = generate(session, spec, id, label)?;
        lock(&self.made).push((pair.key.clone(), label.into()));
        Ok(pair)
    }
}

impl Others for Neighbour {
    fn add_beside(&self, key: &KeyRef) -> Result<PublicKey, &'static str> {
        self.session(|session| {
            let id = id_of(&key.slot)?;
            let spec = spec_of(session, key, &id)?;
            let before = private_keys(session, &id).len();
            let pair = self.make(session, spec, &id, &label())?;
            if private_keys(session, &id).len() == before {
                session.destroy_object(pair.public).unwrap();
                session.destroy_object(pair.private).unwrap();
                return Err("a new key with the CKA_ID of another takes the place of that");
            }
            Ok(pair.key)
        })
    }

    fn replace(&self, key: &KeyRef) -> Result<PublicKey, &'static str> {
        self.session(|session| {
            let id = id_of(&key.slot)?;
            let spec = spec_of(session, key, &id)?;
            for object in with_id(session, &id) {
                session.destroy_object(object).unwrap();
            }
            Ok(self.make(session, spec, &id, &label())?.key)
        })
    }

    fn move_key(&self, key: &KeyRef) -> Result<(), &'static str> {
        let id = random();
        self.session(|session| rename(session, &id_of(&key.slot)?, &id))
    }

    fn unname(&self, key: &KeyRef) -> Result<(), &'static str> {
        self.session(|session| rename(session, &id_of(&key.slot)?, &[]))
    }

    fn mismatch(&self, spec: KeySpec) -> Result<KeyRef, &'static str> {
        self.session(|session| {
            let (id, label) = (random(), label());
            let public = self.make(session, spec, &id, &label)?;
            let private = generate(session, spec, &id, &label)?;
            session.destroy_object(public.private).unwrap();
            session.destroy_object(private.public).unwrap();
            Ok(KeyRef {
                slot: SlotId::new(to_hex(&id)),
                public_key: public.key,
            })
        })
    }

    fn has(&self, key: &PublicKey) -> bool {
        let label = label_of(&lock(&self.made), key);
        self.session(|session| {
            let objects = labelled(session, &label);
            let halves = objects.iter().filter(|object| {
                let public = public_key(session, **object, key.algorithm());
                public.is_none_or(|public| public == *key)
            });
            halves.count() == 2
        })
    }

    fn remove(&self, key: &PublicKey) {
        let label = label_of(&lock(&self.made), key);
        self.session(|session| {
            for object in labelled(session, &label) {
                session.destroy_object(object).unwrap();
            }
        });
    }
}

/// A key pair on a token.
struct Pair {
    key: PublicKey,
    public: ObjectHandle,
    private: ObjectHandle,
}

/// What the key is for; where the token does not show it, what every token does.
fn spec_of(session: &Session, key: &KeyRef, id: &[u8]) -> Result<KeySpec, &'static str> {
    let found = private_keys(session, id);
    let found = found.first().ok_or("the key has no such CKA_ID")?;
    let signs = session.get_attributes(*found, &[AttributeType::Sign]);
    let decrypts = signs.is_ok_and(|signs| signs == [Attribute::Sign(false)]);
    let algorithm = key.public_key.algorithm();
    Ok(match decrypts {
        true => KeySpec::decrypt(algorithm),
        false => KeySpec::sign(algorithm),
    })
}

fn generate(
    session: &Session,
    spec: KeySpec,
    id: &[u8],
    label: &str,
) -> Result<Pair, &'static str> {
    let (mechanism, kind) = kind(spec.algorithm)?;
    let common = |private| {
        [
            Attribute::Token(true),
            Attribute::Private(private),
            Attribute::Id(id.to_vec()),
            Attribute::Label(label.into()),
        ]
    };
    let is_rsa = spec.algorithm.rsa_bits().is_some();
    let [for_public, for_private] = match spec.usage {
        KeyUse::Sign => [Attribute::Verify(true), Attribute::Sign(true)],
        KeyUse::Decrypt if is_rsa => [Attribute::Encrypt(true), Attribute::Decrypt(true)],
        KeyUse::Decrypt => [Attribute::Derive(true), Attribute::Derive(true)],
    };
    let mut public = common(false).to_vec();
    public.extend(kind);
    public.push(for_public);
    let mut private = common(true).to_vec();
    private.extend([
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        for_private,
    ]);
    let (public, private) = session
        .generate_key_pair(&mechanism, &public, &private)
        .map_err(|_| "the module generates no such key for others")?;
    let key = public_key(session, public, spec.algorithm).expect("a public key that is whole");
    Ok(Pair {
        key,
        public,
        private,
    })
}

fn kind(algorithm: Algorithm) -> Result<(Mechanism<'static>, Vec<Attribute>), &'static str> {
    let curve = |oid: &[u8]| {
        let parameters = vec![Attribute::EcParams(oid.to_vec())];
        (Mechanism::EccKeyPairGen, parameters)
    };
    match (algorithm, algorithm.rsa_bits()) {
        (_, Some(bits)) => Ok((
            Mechanism::RsaPkcsKeyPairGen,
            vec![
                Attribute::ModulusBits((bits as u64).into()),
                Attribute::PublicExponent(vec![1, 0, 1]),
            ],
        )),
        (Algorithm::P256, _) => Ok(curve(b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07")),
        (Algorithm::P384, _) => Ok(curve(b"\x06\x05\x2b\x81\x04\x00\x22")),
        _ => Err("the other program makes no such keys"),
    }
}

/// The public half that an object is; none if it is a private one.
fn public_key(session: &Session, object: ObjectHandle, algorithm: Algorithm) -> Option<PublicKey> {
    let class = session.get_attributes(object, &[AttributeType::Class]);
    if class.unwrap() != [Attribute::Class(ObjectClass::PUBLIC_KEY)] {
        return None;
    }
    if algorithm.rsa_bits().is_some() {
        let asked = [AttributeType::Modulus, AttributeType::PublicExponent];
        let said = session.get_attributes(object, &asked).unwrap();
        let [
            Attribute::Modulus(modulus),
            Attribute::PublicExponent(exponent),
        ] = &said[..]
        else {
            return None;
        };
        return PublicKey::from_rsa(modulus, exponent).ok();
    }
    let said = session.get_attributes(object, &[AttributeType::EcPoint]);
    let said = said.unwrap().pop();
    let Some(Attribute::EcPoint(point)) = said else {
        return None;
    };
    // The points of these curves are shorter than 128 bytes, so a DER header is two long.
    [&point[..], point.get(2..)?]
        .into_iter()
        .find_map(|point| PublicKey::from_bytes(algorithm, point).ok())
}

fn rename(session: &Session, from: &[u8], to: &[u8]) -> Result<(), &'static str> {
    for object in with_id(session, from) {
        let renamed = session.update_attributes(object, &[Attribute::Id(to.to_vec())]);
        renamed.map_err(|_| "the module does not change CKA_ID")?;
    }
    Ok(())
}

fn with_id(session: &Session, id: &[u8]) -> Vec<ObjectHandle> {
    session.find_objects(&[Attribute::Id(id.to_vec())]).unwrap()
}

fn private_keys(session: &Session, id: &[u8]) -> Vec<ObjectHandle> {
    let template = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Id(id.to_vec()),
    ];
    session.find_objects(&template).unwrap()
}

fn labelled(session: &Session, label: &str) -> Vec<ObjectHandle> {
    let label = [Attribute::Label(label.into())];
    session.find_objects(&label).unwrap()
}

fn id_of(slot: &SlotId) -> Result<Vec<u8>, &'static str> {
    from_hex(slot.as_str()).ok_or("the key has no CKA_ID")
}

fn label() -> String {
    format!("foreign-{}", to_hex(&random()))
}

fn random() -> Vec<u8> {
    OsRng.next_u64().to_be_bytes().to_vec()
}

fn label_of(made: &[(PublicKey, String)], key: &PublicKey) -> String {
    let found = made.iter().find(|(made, _)| made == key);
    found.expect("a key that it made").1.clone()
}
