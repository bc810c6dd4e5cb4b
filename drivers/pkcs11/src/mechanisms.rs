//! The mechanisms of keys, the kinds of key that a token makes and uses with them, and the
//! templates of new keys.

use claviger_token::{Algorithm, KeySpec, KeyUse};
use cryptoki::mechanism::{Mechanism, MechanismInfo, MechanismType};
use cryptoki::object::Attribute;

use crate::encoding::{EXPONENT, ec_params};
use crate::quirks::{Oaep, Quirks, X25519};

const WEIERSTRASS: [Algorithm; 3] = [Algorithm::P256, Algorithm::P384, Algorithm::Secp256k1];

/// How the keys of an algorithm are made and used.
struct Mechanisms {
    generate: Mechanism<'static>,
    operate: MechanismType,
    /// Where the token does not have that one: it hashes by itself what is signed.
    hashing: Option<MechanismType>,
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
    let (operate, hashing) = match (spec.usage, spec.algorithm) {
        (KeyUse::Sign, Algorithm::Ed25519) => (MechanismType::EDDSA, None),
        (KeyUse::Sign, Algorithm::P384) => {
            (MechanismType::ECDSA, Some(MechanismType::ECDSA_SHA384))
        }
        (KeyUse::Sign, _) if rsa.is_some() => (
            MechanismType::RSA_PKCS,
            Some(MechanismType::SHA256_RSA_PKCS),
        ),
        (KeyUse::Sign, _) => (MechanismType::ECDSA, Some(MechanismType::ECDSA_SHA256)),
        (KeyUse::Decrypt, _) if rsa.is_some() => (MechanismType::RSA_PKCS_OAEP, None),
        (KeyUse::Decrypt, _) => (MechanismType::ECDH1_DERIVE, None),
    };
    let bits = match spec.algorithm {
        Algorithm::P384 => 384,
        _ => rsa.unwrap_or(256),
    };
    Some(Mechanisms {
        generate,
        operate,
        hashing,
        bits,
    })
}

/// The mechanism that makes keys of `spec`.
pub(crate) fn generation(spec: KeySpec, quirks: &Quirks) -> Option<Mechanism<'static>> {
    mechanisms(spec, quirks).map(|m| m.generate)
}

/// What a token offers, by its mechanisms and quirks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Offers {
    /// The kinds of key that it generates and works with.
    pub(crate) makes: Vec<KeySpec>,
    /// The kinds of key that it works with, whoever made them.
    pub(crate) uses: Vec<KeySpec>,
    /// Those of them of which it is not known whether they work.
    pub(crate) untried: Vec<KeySpec>,
    /// The algorithms for whose signatures the token hashes, and is to be given the message.
    pub(crate) hashes: Vec<Algorithm>,
}

/// What a token offers whose mechanisms are as `info` says.
pub(crate) fn offers(
    quirks: &Quirks,
    info: impl Fn(MechanismType) -> Option<MechanismInfo>,
) -> Offers {
    let mut offers = Offers::default();
    let specs = (Algorithm::ALL.into_iter())
        .flat_map(|algorithm| [KeySpec::sign(algorithm), KeySpec::decrypt(algorithm)])
        .filter(|spec| spec.algorithm.can(spec.usage));
    for spec in specs {
        let Some(wanted) = mechanisms(spec, quirks) else {
            continue;
        };
        let generate = info(wanted.generate.mechanism_type());
        let Some(tried) = is_tried(spec, quirks, generate.is_some()) else {
            continue;
        };
        let operates = |mechanism| {
            info(mechanism).is_some_and(|operate| {
                is_allowed(spec.usage, mechanism, &operate) && fits(spec, &operate, wanted.bits)
            })
        };
        let must_hash = quirks.rsa_hashes && spec.algorithm.rsa_bits().is_some();
        if must_hash && spec.usage == KeyUse::Sign || !operates(wanted.operate) {
            if !wanted.hashing.is_some_and(operates) {
                continue;
            }
            offers.hashes.push(spec.algorithm);
        }
        offers.uses.push(spec);
        if !tried {
            offers.untried.push(spec);
        }
        let makes =
            |info: &MechanismInfo| info.generate_key_pair() && fits(spec, info, wanted.bits);
        // A curve of which nothing is known is not made, only used.
        let is_known = tried || spec.algorithm.rsa_bits().is_some();
        if is_known && generate.as_ref().is_some_and(makes) {
            offers.makes.push(spec);
        }
    }
    offers
}

/// Whether keys of `spec` are known to work where their mechanism does; `None` where they are
/// known not to. Mechanisms do not tell of curves, nor of the hashes of OAEP.
fn is_tried(spec: KeySpec, quirks: &Quirks, generates: bool) -> Option<bool> {
    let unknown = quirks.unknown.then_some(false);
    match (spec.algorithm, spec.usage) {
        (algorithm, _) if WEIERSTRASS.contains(&algorithm) => {
            let known = quirks.curves.contains(&algorithm);
            known.then_some(true).or(unknown)
        }
        // ECDH1_DERIVE alone does not tell of this curve.
        (Algorithm::X25519, _) => generates.then_some(true).or(unknown),
        (algorithm, KeyUse::Decrypt) if algorithm.rsa_bits().is_some() => {
            match quirks.oaep_sha256 {
                Oaep::Works => Some(true),
                Oaep::Fails => None,
                Oaep::Untried => Some(false),
            }
        }
        _ => Some(true),
    }
}

fn is_allowed(usage: KeyUse, mechanism: MechanismType, info: &MechanismInfo) -> bool {
    match usage {
        KeyUse::Sign => info.sign(),
        KeyUse::Decrypt if mechanism == MechanismType::RSA_PKCS_OAEP => info.decrypt(),
        KeyUse::Decrypt => info.derive(),
    }
}

/// Whether keys of the size are among those of the mechanism. The Edwards and Montgomery
/// mechanisms give sizes in units of every kind, and ECDH serves these curves, too.
fn fits(spec: KeySpec, info: &MechanismInfo, bits: usize) -> bool {
    let sized = WEIERSTRASS.contains(&spec.algorithm) || spec.algorithm.rsa_bits().is_some();
    !sized
        || info.max_key_size() == 0
        || (info.min_key_size()..=info.max_key_size()).contains(&bits)
}

/// What a new key is to be called.
#[derive(Clone, Copy)]
pub(crate) struct Names<'a> {
    pub(crate) id: &'a [u8],
    pub(crate) label: &'a str,
}

/// The templates of the public and the private object of a new key, as objects of the `token`
/// or of the session.
pub(crate) fn templates(
    spec: KeySpec,
    quirks: &Quirks,
    names: Names<'_>,
    token: bool,
) -> (Vec<Attribute>, Vec<Attribute>) {
    let rsa = spec.algorithm.rsa_bits();
    let signs = spec.usage == KeyUse::Sign;
    let common = [
        Attribute::Token(token),
        Attribute::Id(names.id.to_vec()),
        Attribute::Label(names.label.as_bytes().to_vec()),
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
