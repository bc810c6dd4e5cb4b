//! Keys as PKCS#11 has them: templates, mechanisms, and the encodings of what is
//! read back.

use claviger_token::{Algorithm, KeySpec, KeyUse, Protection, PublicKey};
use cryptoki::mechanism::{Mechanism, MechanismInfo, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use spki::der::asn1::{ObjectIdentifier, OctetStringRef, PrintableStringRef};
use spki::der::{Decode, Encode};

use crate::quirks::{Quirks, X25519};

/// The curves by the names that `CKA_EC_PARAMS` gives them: an object identifier
/// (RFC 5480 §2.1.1.1, RFC 8410 §3), or a string (PKCS#11 v3.0 §2.3.3).
const CURVES: [(Algorithm, &str, &str); 5] = [
    (Algorithm::P256, "1.2.840.10045.3.1.7", "secp256r1"),
    (Algorithm::P384, "1.3.132.0.34", "secp384r1"),
    (Algorithm::Secp256k1, "1.3.132.0.10", "secp256k1"),
    (Algorithm::Ed25519, "1.3.101.112", "edwards25519"),
    (Algorithm::X25519, "1.3.101.110", "curve25519"),
];

/// 65537, big-endian.
const EXPONENT: [u8; 3] = [1, 0, 1];

fn ec_params(algorithm: Algorithm) -> Option<Vec<u8>> {
    let (_, oid, _) = CURVES.iter().find(|(a, _, _)| *a == algorithm)?;
    ObjectIdentifier::new(oid).ok()?.to_der().ok()
}

fn curve(params: &[u8]) -> Option<Algorithm> {
    let found = if let Ok(oid) = ObjectIdentifier::from_der(params) {
        let oid = oid.to_string();
        CURVES.iter().find(|(_, o, _)| *o == oid)
    } else {
        let name = PrintableStringRef::from_der(params).ok()?;
        CURVES.iter().find(|(_, _, n)| *n == name.as_str())
    };
    found.map(|(algorithm, _, _)| *algorithm)
}

/// Reads a `CKA_EC_POINT`: the point in a DER OCTET STRING, as PKCS#11 v2.40 §2.3.3 has
/// it, or the bare point, as some modules give it. The lengths tell them apart.
pub(crate) fn decode_point(algorithm: Algorithm, value: &[u8]) -> Option<PublicKey> {
    PublicKey::from_bytes(algorithm, value).ok().or_else(|| {
        let inner = OctetStringRef::from_der(value).ok()?;
        PublicKey::from_bytes(algorithm, inner.as_bytes()).ok()
    })
}

/// The templates by which the public half of `key` can be found, in the encodings
/// that modules use.
pub(crate) fn public_templates(key: &PublicKey) -> Vec<Attribute> {
    if key.algorithm().rsa_bits().is_some() {
        return modulus(key).map(Attribute::Modulus).into_iter().collect();
    }
    let point = key.as_bytes();
    let der = OctetStringRef::new(point).and_then(|s| s.to_der()).ok();
    let encodings = der.into_iter().chain([point.to_vec()]);
    encodings.map(Attribute::EcPoint).collect()
}

fn modulus(key: &PublicKey) -> Option<Vec<u8>> {
    use rsa::pkcs1::DecodeRsaPublicKey;
    use rsa::traits::PublicKeyParts;
    let key = rsa::RsaPublicKey::from_pkcs1_der(key.as_bytes()).ok()?;
    Some(key.n().to_bytes_be())
}

/// What is read of a key object.
#[derive(Debug, Default)]
pub(crate) struct KeyObject {
    pub(crate) id: Vec<u8>,
    pub(crate) label: String,
    key_type: Option<KeyType>,
    params: Option<Vec<u8>>,
    point: Option<Vec<u8>>,
    modulus: Option<Vec<u8>>,
    exponent: Option<Vec<u8>>,
    sign: bool,
    verify: bool,
    derive: bool,
    decrypt: bool,
    encrypt: bool,
    /// `CKA_ALWAYS_AUTHENTICATE`: a PIN for each single operation.
    pub(crate) always_authenticate: bool,
    local: bool,
    sensitive: bool,
    always_sensitive: bool,
    never_extractable: bool,
}

const READ: [AttributeType; 17] = [
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
    AttributeType::Local,
    AttributeType::Sensitive,
    AttributeType::AlwaysSensitive,
    AttributeType::NeverExtractable,
];

impl KeyObject {
    /// Reads a key object. Attributes that it has not, or not in a form that can be
    /// read, stay at their defaults.
    pub(crate) fn read(session: &Session, handle: ObjectHandle) -> cryptoki::error::Result<Self> {
        use cryptoki::error::Error::Pkcs11;
        let attributes = match session.get_attributes(handle, &READ) {
            // A key type that the library does not know spoils the whole reply.
            Err(e) if !matches!(e, Pkcs11(..)) => session.get_attributes(handle, &READ[..2])?,
            other => other?,
        };
        let mut key = KeyObject::default();
        for attribute in attributes {
            key.take(attribute);
        }
        Ok(key)
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
            Attribute::Sign(v) => self.sign = v,
            Attribute::Verify(v) => self.verify = v,
            Attribute::Derive(v) => self.derive = v,
            Attribute::Decrypt(v) => self.decrypt = v,
            Attribute::Encrypt(v) => self.encrypt = v,
            Attribute::AlwaysAuthenticate(v) => self.always_authenticate = v,
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

    /// Whether the token lets this private key be used for `usage`.
    pub(crate) fn allows(&self, algorithm: Algorithm, usage: KeyUse) -> bool {
        match usage {
            KeyUse::Sign => self.sign,
            KeyUse::Decrypt if algorithm.rsa_bits().is_some() => self.decrypt,
            KeyUse::Decrypt => self.derive,
        }
    }

    /// What a private key may be used for.
    pub(crate) fn private_uses(&self) -> Vec<KeyUse> {
        let Some(algorithm) = self.algorithm() else {
            return Vec::new();
        };
        [KeyUse::Sign, KeyUse::Decrypt]
            .into_iter()
            .filter(|usage| algorithm.can(*usage) && self.allows(algorithm, *usage))
            .collect()
    }

    /// What the private half of a public key may be used for, as far as the public
    /// half tells: a key for agreement is one that does not verify.
    pub(crate) fn public_uses(&self, quirks: &Quirks) -> Vec<KeyUse> {
        let Some(algorithm) = self.algorithm().filter(|_| quirks.public_uses) else {
            return Vec::new();
        };
        let decrypts = match algorithm.rsa_bits() {
            Some(_) => self.encrypt,
            None => self.derive || !self.verify,
        };
        [(KeyUse::Sign, self.verify), (KeyUse::Decrypt, decrypts)]
            .into_iter()
            .filter(|(usage, may)| *may && algorithm.can(*usage))
            .map(|(usage, _)| usage)
            .collect()
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

/// How the keys of an algorithm are made and used.
struct Mechanisms {
    generate: Mechanism<'static>,
    operate: MechanismType,
    /// The size of the keys, in the mechanism's unit (bits).
    bits: usize,
}

fn mechanisms(spec: KeySpec, quirks: &Quirks) -> Option<Mechanisms> {
    let generate = match (spec.algorithm, quirks.x25519) {
        (Algorithm::P256 | Algorithm::P384 | Algorithm::Secp256k1, _) => Mechanism::EccKeyPairGen,
        (Algorithm::Ed25519, _) | (Algorithm::X25519, X25519::Edwards) => {
            Mechanism::EccEdwardsKeyPairGen
        }
        (Algorithm::X25519, X25519::Montgomery) => Mechanism::EccMontgomeryKeyPairGen,
        (Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096, _) => {
            Mechanism::RsaPkcsKeyPairGen
        }
        _ => return None,
    };
    let rsa = spec.algorithm.rsa_bits();
    let operate = match (spec.usage, spec.algorithm) {
        (KeyUse::Sign, Algorithm::Ed25519) => MechanismType::EDDSA,
        (KeyUse::Sign, _) if rsa.is_some() && quirks.rsa_hashes => MechanismType::SHA256_RSA_PKCS,
        (KeyUse::Sign, _) if rsa.is_some() => MechanismType::RSA_PKCS,
        (KeyUse::Sign, _) => MechanismType::ECDSA,
        (KeyUse::Decrypt, _) if rsa.is_some() => MechanismType::RSA_PKCS_OAEP,
        (KeyUse::Decrypt, _) => MechanismType::ECDH1_DERIVE,
    };
    let bits = match spec.algorithm {
        Algorithm::P384 => 384,
        _ => rsa.unwrap_or(256),
    };
    Some(Mechanisms {
        generate,
        operate,
        bits,
    })
}

/// The mechanism that makes keys of `spec`.
pub(crate) fn generation(spec: KeySpec, quirks: &Quirks) -> Option<Mechanism<'static>> {
    mechanisms(spec, quirks).map(|m| m.generate)
}

/// Every kind of key that a token offers, by its mechanisms and quirks.
pub(crate) fn supported(
    quirks: &Quirks,
    info: impl Fn(MechanismType) -> Option<MechanismInfo>,
) -> Vec<KeySpec> {
    let offers = |spec: KeySpec| -> Option<()> {
        let wanted = mechanisms(spec, quirks)?;
        let generate = info(wanted.generate.mechanism_type())?;
        let operate = info(wanted.operate)?;
        let works = match spec.usage {
            KeyUse::Sign => operate.sign(),
            KeyUse::Decrypt if wanted.operate == MechanismType::RSA_PKCS_OAEP => {
                operate.decrypt() && quirks.oaep_sha256
            }
            KeyUse::Decrypt => operate.derive(),
        };
        let weierstrass = [Algorithm::P256, Algorithm::P384, Algorithm::Secp256k1];
        let known =
            !weierstrass.contains(&spec.algorithm) || quirks.curves.contains(&spec.algorithm);
        // The Edwards and Montgomery mechanisms give sizes in units of every kind.
        let sized = !(weierstrass.contains(&spec.algorithm) || spec.algorithm.rsa_bits().is_some())
            || generate.max_key_size() == 0
            || (generate.min_key_size()..=generate.max_key_size()).contains(&wanted.bits);
        (generate.generate_key_pair() && works && known && sized).then_some(())
    };
    Algorithm::ALL
        .into_iter()
        .flat_map(|a| [KeySpec::sign(a), KeySpec::decrypt(a)])
        .filter(|spec| spec.algorithm.can(spec.usage) && offers(*spec).is_some())
        .collect()
}

/// The templates of the public and the private object of a new key.
pub(crate) fn templates(
    spec: KeySpec,
    quirks: &Quirks,
    id: &[u8],
    label: &str,
    token: bool,
) -> (Vec<Attribute>, Vec<Attribute>) {
    let rsa = spec.algorithm.rsa_bits();
    let signs = spec.usage == KeyUse::Sign;
    let common = [
        Attribute::Token(token),
        Attribute::Id(id.to_vec()),
        Attribute::Label(label.as_bytes().to_vec()),
    ];
    let mut public = common.to_vec();
    public.push(Attribute::Private(false));
    if quirks.public_uses {
        public.extend([
            Attribute::Verify(signs),
            Attribute::Encrypt(!signs && rsa.is_some()),
        ]);
    }
    match rsa {
        Some(bits) => public.extend([
            Attribute::ModulusBits((bits as u64).into()),
            Attribute::PublicExponent(EXPONENT.to_vec()),
        ]),
        None => public.extend(ec_params(spec.algorithm).map(Attribute::EcParams)),
    }
    let mut private = common.to_vec();
    private.extend([
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(signs),
        Attribute::Decrypt(!signs && rsa.is_some()),
        Attribute::Derive(!signs && rsa.is_none()),
        Attribute::Unwrap(false),
    ]);
    (public, private)
}

/// The template of the secret that a key agreement gives: a session object of 32
/// bytes that can be read.
pub(crate) fn agreed_secret() -> [Attribute; 6] {
    [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(32.into()),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

/// Finds the token objects of one class that fit `template`.
pub(crate) fn find(
    session: &Session,
    class: ObjectClass,
    template: impl IntoIterator<Item = Attribute>,
) -> cryptoki::error::Result<Vec<ObjectHandle>> {
    let mut full = vec![Attribute::Class(class), Attribute::Token(true)];
    full.extend(template);
    session.find_objects(&full)
}

/// The points of small order on Curve25519 and its twist, little-endian, without the
/// top bit, which X25519 ignores (RFC 7748 §5): agreement with one of them gives zero.
const SMALL_ORDER: [[u8; 32]; 7] = {
    let mut points = [[0; 32]; 7];
    points[1][0] = 1;
    points[2] = [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ];
    points[3] = [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ];
    // p - 1, p and p + 1, where p = 2^255 - 19.
    let mut i = 4;
    while i < 7 {
        points[i] = [0xff; 32];
        points[i][0] = 0xec + (i - 4) as u8;
        points[i][31] = 0x7f;
        i += 1;
    }
    points
};

/// Whether the peer's public key can be agreed with: a point on the curve, and not
/// one for which every secret gives the same.
pub(crate) fn is_sound_peer(algorithm: Algorithm, peer: &[u8]) -> bool {
    match algorithm {
        Algorithm::P256 => {
            peer.len() == 65 && peer[0] == 4 && PublicKey::from_bytes(algorithm, peer).is_ok()
        }
        Algorithm::X25519 => <[u8; 32]>::try_from(peer).is_ok_and(|mut point| {
            point[31] &= 0x7f;
            !SMALL_ORDER.contains(&point)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p256_key() -> PublicKey {
        let secret = p256::SecretKey::from_slice(&[7; 32]).unwrap();
        PublicKey::from_bytes(Algorithm::P256, &secret.public_key().to_sec1_bytes()).unwrap()
    }

    fn wrapped(point: &[u8]) -> Vec<u8> {
        [&[4, point.len() as u8], point].concat()
    }

    #[test]
    fn a_point_is_read_in_der_and_bare() {
        let key = p256_key();
        for value in [key.as_bytes().to_vec(), wrapped(key.as_bytes())] {
            assert_eq!(decode_point(Algorithm::P256, &value).as_ref(), Some(&key));
        }
        // A bare key that begins like an OCTET STRING is not mistaken for one.
        let bare = [&[4, 30][..], &[9; 30]].concat();
        let key = decode_point(Algorithm::X25519, &bare).unwrap();
        assert_eq!(key.as_bytes(), bare);
        assert_eq!(decode_point(Algorithm::X25519, &wrapped(&bare)), Some(key));
    }

    #[test]
    fn what_is_no_point_is_not_read() {
        let good = wrapped(p256_key().as_bytes());
        let mut bent = good.clone();
        bent[40] ^= 1;
        for value in [
            &[][..],
            &[4],
            &[4, 65],
            &good[..66],
            &bent,
            &[0; 67],
            &[4; 65],
        ] {
            assert_eq!(decode_point(Algorithm::P256, value), None, "{value:?}");
        }
        assert_eq!(decode_point(Algorithm::P384, &good), None);
    }

    #[test]
    fn curves_are_known_by_identifier_and_by_name() {
        for (algorithm, _, name) in CURVES {
            let params = ec_params(algorithm).unwrap();
            assert_eq!(curve(&params), Some(algorithm));
            let name = PrintableStringRef::new(name).unwrap().to_der().unwrap();
            assert_eq!(curve(&name), Some(algorithm));
        }
        for params in [&[][..], &[6], &[6, 1, 42], b"\x13\x01x", &[5, 0]] {
            assert_eq!(curve(params), None);
        }
        assert_eq!(ec_params(Algorithm::Rsa2048), None);
    }

    #[test]
    fn an_rsa_key_is_looked_for_by_its_modulus() {
        let modulus = [&[0xc5][..], &[0x11; 255]].concat();
        let key = PublicKey::from_rsa(&modulus, &EXPONENT).unwrap();
        let templates = public_templates(&key);
        assert!(matches!(&templates[..], [Attribute::Modulus(m)] if *m == modulus));
    }

    #[test]
    fn a_peer_of_small_order_is_refused() {
        let secret = x25519_dalek::StaticSecret::from([77; 32]);
        for mut point in SMALL_ORDER {
            for top in [0, 0x80] {
                point[31] = (point[31] & 0x7f) | top;
                let agreed = secret.diffie_hellman(&point.into());
                assert_eq!(agreed.as_bytes(), &[0; 32], "{point:?} is of small order");
                assert!(!is_sound_peer(Algorithm::X25519, &point));
            }
        }
        assert!(is_sound_peer(Algorithm::X25519, &[9; 32]));
        assert!(!is_sound_peer(Algorithm::X25519, &[9; 31]));
    }

    #[test]
    fn a_peer_that_is_not_on_the_curve_is_refused() {
        let key = p256_key();
        assert!(is_sound_peer(Algorithm::P256, key.as_bytes()));
        let mut bent = key.as_bytes().to_vec();
        bent[64] ^= 1;
        assert!(!is_sound_peer(Algorithm::P256, &bent));
        assert!(!is_sound_peer(Algorithm::P256, &[4; 65]));
        assert!(!is_sound_peer(Algorithm::P256, &[0]));
        assert!(!is_sound_peer(Algorithm::P384, key.as_bytes()));
    }
}
