//! Signatures verify, and altered ones do not.

use std::sync::Arc;

use claviger_token::{Algorithm, Call, Error, KeyUse, SignatureScheme, Signer, interop};

use crate::bench::{Bench, refused};
use crate::check::{Skip, Theme};
use crate::subject::Subject;

/// What these checks are about.
pub(crate) const THEME: Theme = Theme::Signing;

pub(crate) fn a_signature_verifies_and_an_altered_message_does_not(
    subject: &dyn Subject,
) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    for spec in bench.specs(KeyUse::Sign)? {
        let made = bench.make(spec);
        let public = &made.key.public_key;
        let signer = made.signer();
        let longest = match spec.algorithm {
            Algorithm::Ed25519 => subject.longest_ed25519_message(),
            _ => usize::MAX,
        };
        let longest = longest.min(subject.longest_message());
        let mut earlier = None;
        let long = vec![0xa5; 1 << 20];
        let bound = vec![0x5a; if longest < long.len() { longest } else { 1000 }];
        for message in [&b""[..], b"a", &[0; 200], &bound, &long] {
            if message.len() > longest {
                refused!(signer.sign(message, &bench.call), Error::BadMessage { .. });
                continue;
            }
            let signature = signer.sign(message, &bench.call).unwrap();
            assert_eq!(Some(signature.scheme()), signer.scheme());
            assert!(SignatureScheme::all_of(spec.algorithm).any(|s| s == signature.scheme()));
            (public.verify(message, &signature))
                .unwrap_or_else(|_| panic!("{spec}, {} bytes", message.len()));
            let altered = [message, b"."].concat();
            assert!(public.verify(&altered, &signature).is_err(), "{spec}");
            if let Some(earlier) = earlier.replace(signature) {
                assert!(public.verify(message, &earlier).is_err(), "{spec}");
            }
            if let Some(digests) = signer.of_digests() {
                let scheme = signer.scheme().unwrap();
                let digest = scheme.digest(message).unwrap();
                let signature = digests.sign_digest(&digest, &bench.call).unwrap();
                assert_eq!(public.verify(message, &signature), Ok(()), "{spec}");
                refused!(
                    digests.sign_digest(&digest[1..], &bench.call),
                    Error::BadMessage { .. }
                );
            }
        }
        for scheme in SignatureScheme::all_of(spec.algorithm) {
            match signer.sign_in(scheme, b"a", &bench.call) {
                Ok(signature) => {
                    assert_eq!(signature.scheme(), scheme);
                    assert_eq!(public.verify(b"a", &signature), Ok(()), "{spec}, {scheme}");
                }
                // RSA keys sign with either hash, wherever they are.
                Err(Error::BadMessage { .. }) if Some(scheme) != signer.scheme() => {
                    assert!(spec.algorithm.rsa_bits().is_none(), "{spec}, {scheme}");
                }
                Err(error) => panic!("{spec}, {scheme}: {error}"),
            }
        }
        if spec.algorithm == Algorithm::Secp256k1 {
            for i in 0..16 {
                let signature = signer.sign(&[i], &bench.call).unwrap();
                let signature = k256::ecdsa::Signature::from_slice(signature.as_bytes()).unwrap();
                assert!(signature.normalize_s().is_none(), "s is high");
            }
        }
    }
    Ok(())
}

pub(crate) fn a_handle_is_a_key_of_the_signature_crate(subject: &dyn Subject) -> Result<(), Skip> {
    fn signs<S>(handle: Arc<dyn Signer>, call: &Call)
    where
        S: interop::Scheme,
        S::VerifyingKey: signature::Verifier<S>,
    {
        use signature::{Keypair, Signer, Verifier};
        let key = interop::SigningKey::<S>::new(handle, call.clone()).unwrap();
        let signature = key.try_sign(b"conformance").unwrap();
        key.verifying_key()
            .verify(b"conformance", &signature)
            .unwrap();
    }

    let bench = Bench::open(subject);
    for spec in bench.specs(KeyUse::Sign)? {
        let made = bench.make(spec);
        let call = &bench.call;
        match made.signer().scheme() {
            Some(SignatureScheme::Ed25519) => {
                signs::<ed25519_dalek::Signature>(made.signer(), call);
            }
            Some(SignatureScheme::EcdsaP256Sha256) => {
                signs::<p256::ecdsa::Signature>(made.signer(), call);
            }
            Some(SignatureScheme::EcdsaP384Sha384) => {
                signs::<p384::ecdsa::Signature>(made.signer(), call);
            }
            Some(SignatureScheme::EcdsaSecp256k1Sha256) => {
                signs::<k256::ecdsa::Signature>(made.signer(), call);
            }
            Some(SignatureScheme::Eip191Secp256k1) => {
                signs::<interop::Eip191Signature>(made.signer(), call);
            }
            Some(SignatureScheme::RsaPkcs1Sha256) => {
                signs::<rsa::pkcs1v15::Signature>(made.signer(), call);
            }
            // The crate knows no type for these.
            Some(SignatureScheme::RsaPkcs1Sha512 | SignatureScheme::Bls12381G2Basic) => {
                let key =
                    interop::SigningKey::<p256::ecdsa::Signature>::new(made.signer(), call.clone());
                assert!(key.is_err());
            }
            Some(other) => panic!("{spec}: what {other} does for the crate is not checked"),
            None => panic!("{spec} does not sign"),
        }
    }
    Ok(())
}

pub(crate) fn eight_threads_sign_at_once(subject: &dyn Subject) -> Result<(), Skip> {
    let bench = Bench::open(subject);
    for spec in bench.specs(KeyUse::Sign)? {
        let (made, other) = (bench.make(spec), bench.make(spec));
        let handles = [made.signer(), other.signer()];
        // Keys that take long keep the threads waiting for each other all the more.
        let each = match spec.algorithm {
            Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => 3,
            _ => 16,
        };
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let signer = handles[usize::from(thread % 2)].clone();
                let call = &bench.call;
                scope.spawn(move || {
                    for i in 0..each {
                        let message = [thread, i];
                        let signature = signer.sign(&message, call).unwrap();
                        (signer.public_key().verify(&message, &signature)).unwrap();
                    }
                });
            }
        });
    }
    Ok(())
}
