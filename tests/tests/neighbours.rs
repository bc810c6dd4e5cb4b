//! Two tokens in one module: what happens to the one is not felt at the other.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::SoftHsm;
use claviger_token::{
    Algorithm, Call, Driver, Error, KeyRef, KeySpec, NewKey, Signer, unfinished_mark,
};

fn signer(token: &SoftHsm) -> Arc<dyn Signer> {
    let call = Call::unlimited();
    let spec = KeySpec::sign(Algorithm::P256);
    let token = Pkcs11Driver::new()
        .open(&token.backend(), &Call::unlimited().using(token.access()))
        .unwrap();
    let slot = token.free_slots(&[spec], &[], &call).unwrap().remove(0);
    let mark = &unfinished_mark();
    let new = NewKey {
        slot: &slot,
        spec,
        mark,
    };
    let public_key = token.generate(&new, &call).unwrap().public_key;
    token
        .signer(&KeyRef { slot, public_key }, &Call::unlimited())
        .unwrap()
}

#[test]
fn a_token_that_is_pulled_and_put_back_does_not_disturb_its_neighbour() {
    let (pulled, steady) = (SoftHsm::new(), SoftHsm::new());
    let (pulled_key, steady_key) = (signer(&pulled), signer(&steady));
    let done = AtomicBool::new(false);
    let call = Call::unlimited();
    std::thread::scope(|scope| {
        let steady = [(); 4].map(|()| {
            scope.spawn(|| {
                let mut signed = 0;
                while !done.load(Ordering::Relaxed) {
                    steady_key.sign(b"steady", &call).unwrap();
                    signed += 1;
                }
                signed
            })
        });
        for _ in 0..10 {
            pulled_key.sign(b"pulled", &call).unwrap();
            pulled.remove();
            for _ in 0..3 {
                let refused = pulled_key.sign(b"pulled", &call);
                assert!(
                    matches!(refused, Err(Error::TokenUnavailable { .. })),
                    "{refused:?}"
                );
            }
            pulled.insert();
        }
        done.store(true, Ordering::Relaxed);
        let signed = steady.map(|thread| thread.join().unwrap());
        println!("signed {signed:?}");
        assert!(signed.iter().all(|count| *count > 0));
    });
}
