//! What a process has to do at the least that makes one signature: it loads the module, logs in,
//! finds the key, signs, and brings the signature to the disk. `cargo xtask bench` measures
//! `claviger sign` beside it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench that cannot run says so and ends"
)]

use std::fs::{self, File};
use std::io::Write;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use sha2::{Digest, Sha256};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [module, label, pin, message, output] = &words[..] else {
        panic!("bare_sign MODULE LABEL PIN-FILE MESSAGE OUTPUT");
    };
    let module = Pkcs11::new(module).unwrap();
    let locks = CInitializeFlags::OS_LOCKING_OK;
    module.initialize(CInitializeArgs::new(locks)).unwrap();
    let mut slots = module.get_slots_with_token().unwrap().into_iter();
    let is_it = |slot: &_| module.get_token_info(*slot).unwrap().label() == label;
    let session = module.open_ro_session(slots.find(is_it).unwrap()).unwrap();
    let pin = AuthPin::new(fs::read_to_string(pin).unwrap().into());
    session.login(UserType::User, Some(&pin)).unwrap();
    let wanted = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Sign(true),
    ];
    let key = session.find_objects(&wanted).unwrap()[0];
    let digest = Sha256::digest(fs::read(message).unwrap());
    let signature = session.sign(&Mechanism::Ecdsa, key, &digest).unwrap();
    let mut file = File::create(output).unwrap();
    file.write_all(&signature).unwrap();
    file.sync_all().unwrap();
}
