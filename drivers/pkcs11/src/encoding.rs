//! The encodings of public keys in objects: curves, points and certificates.

use claviger_token::key::to_hex;
use claviger_token::{Algorithm, PublicKey};
use cryptoki::object::Attribute;
use spki::der::asn1::{
    AnyRef, BitStringRef, ObjectIdentifier, OctetStringRef, PrintableStringRef, UintRef,
};
use spki::der::{Decode, Encode, Reader, SliceReader, Tag, TagNumber, Tagged};

/// The curves by the names that `CKA_EC_PARAMS` gives them: an object identifier
/// (RFC 5480 §2.1.1.1, RFC 8410 §3), or a string (PKCS#11 v3.0 §2.3.3).
const CURVES: [(Algorithm, &str, &str); 5] = [
    (Algorithm::P256, "1.2.840.10045.3.1.7", "secp256r1"),
    (Algorithm::P384, "1.3.132.0.34", "secp384r1"),
    (Algorithm::Secp256k1, "1.3.132.0.10", "secp256k1"),
    (Algorithm::Ed25519, "1.3.101.112", "edwards25519"),
    (Algorithm::X25519, "1.3.101.110", "curve25519"),
];

/// The same where the parameters are spelled out: p, a, b, the compressed base point and its
/// order, in hexadecimal without leading zeros (SEC 2 v2 §2).
const EXPLICIT: [(Algorithm, [&str; 5]); 3] = [
    (
        Algorithm::P256,
        [
            "ffffffff00000001000000000000000000000000ffffffffffffffffffffffff",
            "ffffffff00000001000000000000000000000000fffffffffffffffffffffffc",
            "5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b",
            "036b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
            "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
        ],
    ),
    (
        Algorithm::P384,
        [
            "fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe\
             ffffffff0000000000000000ffffffff",
            "fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe\
             ffffffff0000000000000000fffffffc",
            "b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875a\
             c656398d8a2ed19d2a85c8edd3ec2aef",
            "03aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a38\
             5502f25dbf55296c3a545e3872760ab7",
            "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf\
             581a0db248b0a77aecec196accc52973",
        ],
    ),
    (
        Algorithm::Secp256k1,
        [
            "fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f",
            "",
            "07",
            "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
            "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141",
        ],
    ),
];

/// 65537, big-endian.
pub(crate) const EXPONENT: [u8; 3] = [1, 0, 1];

/// The `CKA_EC_PARAMS` of a new key.
pub(crate) fn ec_params(algorithm: Algorithm) -> Option<Vec<u8>> {
    let (_, oid, _) = CURVES.iter().find(|(a, _, _)| *a == algorithm)?;
    ObjectIdentifier::new(oid).ok()?.to_der().ok()
}

/// The curve that `CKA_EC_PARAMS` names or spells out.
pub(crate) fn curve(params: &[u8]) -> Option<Algorithm> {
    let named = if let Ok(oid) = ObjectIdentifier::from_der(params) {
        let oid = oid.to_string();
        CURVES.iter().find(|(_, o, _)| *o == oid)
    } else if let Ok(name) = PrintableStringRef::from_der(params) {
        CURVES.iter().find(|(_, _, n)| *n == name.as_str())
    } else {
        return explicit_curve(params);
    };
    named.map(|(algorithm, _, _)| *algorithm)
}

/// The curve whose parameters these are, all of them: a curve with another base point has
/// the same points and other private keys (`ECParameters`, SEC 1 v2 §C.2).
fn explicit_curve(params: &[u8]) -> Option<Algorithm> {
    let read = AnyRef::from_der(params).ok()?.sequence(|r| {
        let _version = UintRef::decode(r)?;
        let prime = AnyRef::decode(r)?.sequence(|r| {
            let _field_type = ObjectIdentifier::decode(r)?;
            UintRef::decode(r)
        })?;
        let (a, b) = AnyRef::decode(r)?.sequence(|r| {
            let ab = (OctetStringRef::decode(r)?, OctetStringRef::decode(r)?);
            skip_rest(r)?;
            Ok(ab)
        })?;
        let base = OctetStringRef::decode(r)?;
        let order = UintRef::decode(r)?;
        skip_rest(r)?;
        let numbers = [
            prime.as_bytes(),
            a.as_bytes(),
            b.as_bytes(),
            order.as_bytes(),
        ];
        Ok((numbers.map(hex_number), compressed(base.as_bytes())))
    });
    let ([p, a, b, n], base) = read.ok()?;
    let read = [p, a, b, to_hex(&base?), n];
    let (algorithm, _) = EXPLICIT.iter().find(|(_, known)| read == *known)?;
    Some(*algorithm)
}

fn skip_rest<'a>(reader: &mut SliceReader<'a>) -> spki::der::Result<()> {
    while !reader.is_finished() {
        AnyRef::decode(reader)?;
    }
    Ok(())
}

fn hex_number(bytes: &[u8]) -> String {
    let first = bytes.iter().position(|byte| *byte != 0);
    to_hex(&bytes[first.unwrap_or(bytes.len())..])
}

/// A point in its compressed form (SEC 1 v2 §2.3.3).
fn compressed(point: &[u8]) -> Option<Vec<u8>> {
    match point {
        [2 | 3, ..] => Some(point.to_vec()),
        [4, xy @ ..] if xy.len() % 2 == 0 => {
            let head = 2 + (xy.last()? & 1);
            Some([&[head], &xy[..xy.len() / 2]].concat())
        }
        _ => None,
    }
}

/// Reads a `CKA_EC_POINT`: the point in a DER OCTET STRING, as PKCS#11 v2.40 §2.3.3 has
/// it, in a BIT STRING, as in certificates, or the bare point. The lengths tell them apart.
pub(crate) fn decode_point(algorithm: Algorithm, value: &[u8]) -> Option<PublicKey> {
    let read = |bytes: &[u8]| PublicKey::from_bytes(algorithm, bytes).ok();
    read(value)
        .or_else(|| read(OctetStringRef::from_der(value).ok()?.as_bytes()))
        .or_else(|| read(BitStringRef::from_der(value).ok()?.as_bytes()?))
}

/// The templates by which the public half of `key` can be found, in the encodings
/// that modules use.
pub(crate) fn public_templates(key: &PublicKey) -> Vec<Attribute> {
    if key.algorithm().rsa_bits().is_some() {
        return modulus(key).map(Attribute::Modulus).into_iter().collect();
    }
    let point = key.as_bytes();
    let octets = OctetStringRef::new(point).and_then(|s| s.to_der());
    let bits = BitStringRef::from_bytes(point).and_then(|s| s.to_der());
    let encodings = [octets, Ok(point.to_vec()), bits];
    let encodings = encodings.into_iter().filter_map(Result::ok);
    encodings.map(Attribute::EcPoint).collect()
}

fn modulus(key: &PublicKey) -> Option<Vec<u8>> {
    use rsa::pkcs1::DecodeRsaPublicKey;
    use rsa::traits::PublicKeyParts;
    let key = rsa::RsaPublicKey::from_pkcs1_der(key.as_bytes()).ok()?;
    Some(key.n().to_bytes_be())
}

/// The public key in an X.509 certificate (RFC 5280 §4.1), where it is one that Claviger
/// knows. Nothing else of the certificate is looked at: its key is proven by use.
pub(crate) fn certified_key(certificate: &[u8]) -> Option<PublicKey> {
    const VERSION: TagNumber = TagNumber::N0;
    let spki = AnyRef::from_der(certificate).ok()?.sequence(|r| {
        let spki = AnyRef::decode(r)?.sequence(|r| {
            let first = AnyRef::decode(r)?;
            let has_version = matches!(
                first.tag(),
                Tag::ContextSpecific {
                    number: VERSION,
                    ..
                }
            );
            // The serial, the algorithm, the issuer, the validity and the subject.
            for _ in 0..(if has_version { 5 } else { 4 }) {
                AnyRef::decode(r)?;
            }
            let spki = AnyRef::decode(r)?.to_der()?;
            skip_rest(r)?;
            Ok(spki)
        })?;
        skip_rest(r)?;
        Ok(spki)
    });
    PublicKey::from_der(&spki.ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_token::key::from_hex;

    /// What `openssl ecparam -name … -param_enc explicit -outform der` writes (3.0.17): P-256
    /// and secp256k1, and P-256 once more with `-conv_form compressed -no_seed`.
    const OPENSSL: [(Algorithm, &str); 3] = [
        (
            Algorithm::P256,
            "3081f7020101302c06072a8648ce3d0101022100ffffffff00000001000000000000000000000000\
             ffffffffffffffffffffffff305b0420ffffffff00000001000000000000000000000000ffffffff\
             fffffffffffffffc04205ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2\
             604b031500c49d360886e704936a6678e1139d26b7819f7e900441046b17d1f2e12c4247f8bce6e5\
             63a440f277037d812deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce3357\
             6b315ececbb6406837bf51f5022100ffffffff00000000ffffffffffffffffbce6faada7179e84f3\
             b9cac2fc632551020101",
        ),
        (
            Algorithm::P384,
            "30820157020101303c06072a8648ce3d0101023100ffffffffffffffffffffffffffffffffffffff\
             fffffffffffffffffffffffffeffffffff0000000000000000ffffffff307b0430ffffffffffffff\
             fffffffffffffffffffffffffffffffffffffffffffffffffeffffffff0000000000000000ffffff\
             fc0430b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875ac656398d8a\
             2ed19d2a85c8edd3ec2aef031500a335926aa319a27a1d00896a6773a4827acdac73046104aa87ca\
             22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e\
             3872760ab73617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1\
             ce1d7e819d7a431d7c90ea0e5f023100ffffffffffffffffffffffffffffffffffffffffffffffff\
             c7634d81f4372ddf581a0db248b0a77aecec196accc52973020101",
        ),
        (
            Algorithm::Secp256k1,
            "3081e0020101302c06072a8648ce3d0101022100ffffffffffffffffffffffffffffffffffffffff\
             fffffffffffffffefffffc2f30440420000000000000000000000000000000000000000000000000\
             00000000000000000420000000000000000000000000000000000000000000000000000000000000\
             000704410479be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798483ada\
             7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8022100ffffffffffffffff\
             fffffffffffffffebaaedce6af48a03bbfd25e8cd0364141020101",
        ),
    ];

    fn p256_key() -> PublicKey {
        let secret = p256::SecretKey::from_slice(&[7; 32]).unwrap();
        PublicKey::from_bytes(Algorithm::P256, &secret.public_key().to_sec1_bytes()).unwrap()
    }

    fn octets(point: &[u8]) -> Vec<u8> {
        [&[4, point.len() as u8], point].concat()
    }

    fn bits(point: &[u8]) -> Vec<u8> {
        [&[3, point.len() as u8 + 1, 0], point].concat()
    }

    #[test]
    fn a_point_is_read_in_der_and_bare() {
        let key = p256_key();
        let point = key.as_bytes();
        for value in [point.to_vec(), octets(point), bits(point)] {
            assert_eq!(decode_point(Algorithm::P256, &value).as_ref(), Some(&key));
        }
        // A bare key that begins like an OCTET STRING is not mistaken for one.
        let bare = [&[4, 30][..], &[9; 30]].concat();
        let key = decode_point(Algorithm::X25519, &bare).unwrap();
        assert_eq!(key.as_bytes(), bare);
        assert_eq!(decode_point(Algorithm::X25519, &octets(&bare)), Some(key));
    }

    #[test]
    fn what_is_no_point_is_not_read() {
        let good = octets(p256_key().as_bytes());
        let mut bent = good.clone();
        bent[40] ^= 1;
        let mut odd_bits = bits(p256_key().as_bytes());
        odd_bits[2] = 1;
        for value in [
            &[][..],
            &[4],
            &[4, 65],
            &good[..66],
            &bent,
            &odd_bits,
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
    fn curves_are_known_by_parameters_that_are_spelled_out() {
        for (algorithm, hex) in OPENSSL {
            let der = from_hex(hex).unwrap();
            assert_eq!(curve(&der), Some(algorithm));
            // Every byte counts but the version, the type of the field, and the seed.
            let counts = |at: usize| {
                let mut bent = der.clone();
                bent[at] ^= 1;
                curve(&bent).is_none()
            };
            let base = hex
                .find("0479be")
                .or(hex.find("046b17"))
                .or(hex.find("04aa87"));
            let order = der.len() - 4;
            for at in [0, 40, base.unwrap() / 2 + 1, order] {
                assert!(counts(at), "{algorithm}: {at}");
            }
        }
        // Compressed, and without the seed.
        let (_, hex) = OPENSSL[0];
        let short = hex
            .replace("3081f7", "3081c0")
            .replace("305b", "3044")
            .replace("031500c49d360886e704936a6678e1139d26b7819f7e90", "")
            .replace(
                "0441046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342e2\
                 fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5",
                "0421036b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
            );
        assert_eq!(curve(&from_hex(&short).unwrap()), Some(Algorithm::P256));
    }

    #[test]
    fn an_rsa_key_is_looked_for_by_its_modulus() {
        let modulus = [&[0xc5][..], &[0x11; 255]].concat();
        let key = PublicKey::from_rsa(&modulus, &EXPONENT).unwrap();
        let templates = public_templates(&key);
        assert!(matches!(&templates[..], [Attribute::Modulus(m)] if *m == modulus));
    }

    #[test]
    fn what_is_no_certificate_certifies_nothing() {
        for bytes in [
            &[][..],
            &[0x30, 0],
            &[0x30, 2, 0x30, 0],
            &[0x30, 0x80],
            b"PEM",
        ] {
            assert_eq!(certified_key(bytes), None);
        }
    }
}
