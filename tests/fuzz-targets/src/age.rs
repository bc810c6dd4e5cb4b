//! age files: any bytes, and files that were good once.

use std::sync::{Arc, LazyLock};

use crate::shared::Input;
use claviger_formats::envelope;
use claviger_memory::MemoryDriver;
use claviger_token::{
    Algorithm, Call, Decryptor, Driver as _, KeyRef, KeySpec, NewKey, Token, unfinished_mark,
};

const TEXT: &[u8] = b"Meet me where the keys are kept.";

struct Subject {
    decryptor: Arc<dyn Decryptor>,
    /// The key is gone when it goes.
    _token: Arc<dyn Token>,
    file: Vec<u8>,
}

static SUBJECTS: LazyLock<Vec<Subject>> = LazyLock::new(|| {
    let token = MemoryDriver::new().open("memory:", &Call::unlimited());
    let (token, call) = (token.unwrap(), Call::unlimited());
    let supported = token.info().makes.clone();
    let candidates = [Algorithm::P256, Algorithm::X25519, Algorithm::Secp256k1];
    let specs = candidates.map(KeySpec::decrypt).into_iter();
    let subjects = specs.filter(|spec| supported.contains(spec)).map(|spec| {
        let slot = token.free_slots(&[spec], &[], &call).unwrap().remove(0);
        let new = NewKey {
            slot: &slot,
            spec,
            mark: &unfinished_mark(),
        };
        let public_key = token.generate(&new, &call).unwrap().public_key;
        let file = envelope::encrypt(&[&public_key], TEXT).unwrap();
        let key = KeyRef { slot, public_key };
        let decryptor = token.decryptor(&key, &Call::unlimited()).unwrap();
        // What was good once has to open, or nothing is tried that comes after the device.
        let opened = envelope::decrypt(&*decryptor, &file, &call).unwrap();
        assert_eq!(*opened, TEXT);
        Subject {
            decryptor,
            _token: Arc::clone(&token),
            file,
        }
    });
    let subjects: Vec<_> = subjects.collect();
    assert!(!subjects.is_empty());
    subjects
});

/// One input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let which = usize::from(input.byte().unwrap_or(0));
    let Subject {
        decryptor, file, ..
    } = &SUBJECTS[which / 2 % SUBJECTS.len()];
    let call = Call::unlimited();
    let opened = match which % 2 {
        0 => envelope::decrypt(&**decryptor, input.0, &call),
        _ => envelope::decrypt(&**decryptor, &input.patch(file), &call),
    };
    if let (1, Ok(opened)) = (which % 2, opened) {
        assert_eq!(*opened, TEXT);
    }
}
