//! Keys and certificates as objects, and their attributes.

use cryptoki_sys::*;
use x509_cert::certificate::Certificate;
use x509_cert::der::{Decode, Encode};

use crate::keys::{Kind, PublicKey};

/// The handles of the keys of a token; those of certificates come after them.
pub(crate) const PUBLIC: CK_OBJECT_HANDLE = 1;
pub(crate) const PRIVATE: CK_OBJECT_HANDLE = 2;
const FIRST_CERTIFICATE: CK_OBJECT_HANDLE = 3;

/// What an attribute is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Is(Vec<u8>),
    /// It is never shown.
    Sensitive,
    /// The object has no such attribute.
    None,
}

/// What the objects of a token are made of.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    label: String,
    key: PublicKey,
    /// The first is that of the key.
    certificates: Vec<Described>,
}

/// A certificate, and what of it attributes have.
#[derive(Debug, Clone)]
struct Described {
    der: Vec<u8>,
    subject: Vec<u8>,
    issuer: Vec<u8>,
    serial: Vec<u8>,
    /// The SubjectPublicKeyInfo.
    key: Vec<u8>,
}

impl Described {
    fn of(der: Vec<u8>) -> Option<Self> {
        let certificate = Certificate::from_der(&der).ok()?.tbs_certificate;
        Some(Described {
            subject: certificate.subject.to_der().ok()?,
            issuer: certificate.issuer.to_der().ok()?,
            serial: certificate.serial_number.to_der().ok()?,
            key: certificate.subject_public_key_info.to_der().ok()?,
            der,
        })
    }
}

impl Objects {
    pub(crate) fn new(label: &str, key: PublicKey) -> Self {
        Objects {
            label: label.to_owned(),
            key,
            certificates: Vec::new(),
        }
    }

    pub(crate) fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Takes the certificates of the key, in DER; one that cannot be read ends them.
    pub(crate) fn set_certificates(&mut self, ders: Vec<Vec<u8>>) {
        self.certificates = ders.into_iter().map_while(Described::of).collect();
    }

    /// The objects that there are. Some programs take the first certificate for that of the key.
    pub(crate) fn handles(&self) -> impl Iterator<Item = CK_OBJECT_HANDLE> + use<> {
        let certificates = self.certificates.len() as CK_OBJECT_HANDLE;
        (FIRST_CERTIFICATE..FIRST_CERTIFICATE + certificates).chain([PUBLIC, PRIVATE])
    }

    pub(crate) fn has(&self, handle: CK_OBJECT_HANDLE) -> bool {
        self.handles().any(|known| known == handle)
    }

    /// Whether an object has all of these attributes.
    pub(crate) fn fits(
        &self,
        handle: CK_OBJECT_HANDLE,
        template: &[(CK_ATTRIBUTE_TYPE, Vec<u8>)],
    ) -> bool {
        let is_it = |(kind, wanted): &(CK_ATTRIBUTE_TYPE, Vec<u8>)| {
            self.attribute(handle, *kind) == Value::Is(wanted.clone())
        };
        template.iter().all(is_it)
    }

    /// An attribute of an object that there is.
    pub(crate) fn attribute(&self, handle: CK_OBJECT_HANDLE, kind: CK_ATTRIBUTE_TYPE) -> Value {
        let own = match handle {
            PUBLIC => self.of_public(kind),
            PRIVATE => self.of_private(kind),
            other => {
                let at = other.checked_sub(FIRST_CERTIFICATE).map(|at| at as usize);
                match at.and_then(|at| Some((at, self.certificates.get(at)?))) {
                    Some((at, certificate)) => self.of_certificate(at, certificate, kind),
                    None => Value::None,
                }
            }
        };
        match own {
            Value::None => self.of_all(kind),
            found => found,
        }
    }

    fn of_all(&self, kind: CK_ATTRIBUTE_TYPE) -> Value {
        match kind {
            CKA_TOKEN => yes(),
            CKA_MODIFIABLE | CKA_COPYABLE | CKA_DESTROYABLE => no(),
            CKA_LABEL => Value::Is(self.label.clone().into_bytes()),
            CKA_ID => Value::Is(id(&self.key.der)),
            _ => Value::None,
        }
    }

    fn of_key(&self, kind: CK_ATTRIBUTE_TYPE) -> Value {
        match (kind, &self.key.kind) {
            (CKA_KEY_TYPE, _) => number(self.key.key_type()),
            (CKA_SUBJECT, _) => match self.certificates.first() {
                Some(certificate) => Value::Is(certificate.subject.clone()),
                None => Value::Is(Vec::new()),
            },
            (CKA_START_DATE | CKA_END_DATE, _) => Value::Is(Vec::new()),
            (CKA_DERIVE | CKA_LOCAL, _) => no(),
            (CKA_KEY_GEN_MECHANISM, _) => number(CK_ULONG::MAX),
            (CKA_PUBLIC_KEY_INFO, _) => Value::Is(self.key.der.clone()),
            (CKA_EC_PARAMS, Kind::Ec { params, .. }) => Value::Is(params.clone()),
            // Only the public key has it, and programs ask the private one for it, too.
            (CKA_EC_POINT, Kind::Ec { point, .. }) => Value::Is(point.clone()),
            (CKA_MODULUS, Kind::Rsa { modulus, .. }) => Value::Is(modulus.clone()),
            (CKA_MODULUS_BITS, Kind::Rsa { modulus, .. }) => number(8 * modulus.len() as CK_ULONG),
            (CKA_PUBLIC_EXPONENT, Kind::Rsa { exponent, .. }) => Value::Is(exponent.clone()),
            _ => Value::None,
        }
    }

    fn of_public(&self, kind: CK_ATTRIBUTE_TYPE) -> Value {
        match kind {
            CKA_CLASS => number(CKO_PUBLIC_KEY),
            CKA_VERIFY => yes(),
            CKA_PRIVATE | CKA_ENCRYPT | CKA_VERIFY_RECOVER | CKA_WRAP | CKA_TRUSTED => no(),
            _ => self.of_key(kind),
        }
    }

    fn of_private(&self, kind: CK_ATTRIBUTE_TYPE) -> Value {
        match kind {
            CKA_CLASS => number(CKO_PRIVATE_KEY),
            CKA_PRIVATE
            | CKA_SIGN
            | CKA_SENSITIVE
            | CKA_ALWAYS_SENSITIVE
            | CKA_NEVER_EXTRACTABLE => yes(),
            CKA_EXTRACTABLE
            | CKA_DECRYPT
            | CKA_SIGN_RECOVER
            | CKA_UNWRAP
            | CKA_ALWAYS_AUTHENTICATE
            | CKA_WRAP_WITH_TRUSTED => no(),
            CKA_VALUE | CKA_PRIVATE_EXPONENT | CKA_PRIME_1 | CKA_PRIME_2 | CKA_EXPONENT_1
            | CKA_EXPONENT_2 | CKA_COEFFICIENT => Value::Sensitive,
            _ => self.of_key(kind),
        }
    }

    fn of_certificate(&self, at: usize, own: &Described, kind: CK_ATTRIBUTE_TYPE) -> Value {
        // 1: of the token's user, 2: of an authority (PKCS#11 2.40 §4.6.2).
        let category = if at == 0 { 1 } else { 2 };
        match kind {
            CKA_CLASS => number(CKO_CERTIFICATE),
            CKA_CERTIFICATE_TYPE => number(CKC_X_509),
            CKA_CERTIFICATE_CATEGORY => number(category),
            CKA_PRIVATE | CKA_TRUSTED => no(),
            CKA_SUBJECT => Value::Is(own.subject.clone()),
            CKA_ISSUER => Value::Is(own.issuer.clone()),
            CKA_SERIAL_NUMBER => Value::Is(own.serial.clone()),
            CKA_VALUE => Value::Is(own.der.clone()),
            CKA_ID => Value::Is(id(&own.key)),
            CKA_PUBLIC_KEY_INFO => Value::Is(own.key.clone()),
            CKA_URL | CKA_START_DATE | CKA_END_DATE => Value::Is(Vec::new()),
            _ => Value::None,
        }
    }
}

/// The id of all objects with this key, by its SubjectPublicKeyInfo.
fn id(der: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    sha2::Sha256::digest(der)[..20].to_vec()
}

fn yes() -> Value {
    Value::Is(vec![CK_TRUE])
}

fn no() -> Value {
    Value::Is(vec![CK_FALSE])
}

fn number(value: CK_ULONG) -> Value {
    Value::Is(value.to_ne_bytes().to_vec())
}
