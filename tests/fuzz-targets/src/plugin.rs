//! What an age program says to `age-plugin-claviger`: any bytes, and conversations that were good
//! once.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use age_plugin_claviger::identity::{Keys, NotOpened};
use age_plugin_claviger::peer::Peer;
use age_plugin_claviger::person::Person;
use age_plugin_claviger::{identity, recipient};
use claviger_formats::age_plugin::{self, Identity};
use claviger_formats::envelope::{Stanza, Stanzas, UnwrappedKey, read_stanza, wrap, write_stanza};
use claviger_memory::MemoryDriver;
use claviger_token::{
    Algorithm, Call, Decryptor, Driver as _, KeyRef, KeySpec, NewKey, Token, unfinished_mark,
};

use crate::shared::Input;

const FILE_KEY: [u8; 16] = *b"sixteen bytes of";

/// A key, and what an age program says to encrypt to it and to decrypt with it.
struct Subject {
    decryptor: Arc<dyn Decryptor>,
    /// The key is gone when it goes.
    _token: Arc<dyn Token>,
    encrypts: Vec<u8>,
    decrypts: Vec<u8>,
}

static SUBJECT: LazyLock<Subject> = LazyLock::new(|| {
    let call = Call::unlimited();
    let token = MemoryDriver::new().open("memory:", &call).unwrap();
    let spec = KeySpec::decrypt(Algorithm::P256);
    let slot = token.free_slots(&[spec], &[], &call).unwrap().remove(0);
    let new = NewKey {
        slot: &slot,
        spec,
        mark: &unfinished_mark(),
    };
    let public_key = token.generate(&new, &call).unwrap().public_key;
    let recipient = age_plugin::recipient_text(&public_key).unwrap();
    let identity = age_plugin::identity_text(&public_key, "alice").unwrap();
    let file_key = UnwrappedKey::from_bytes(&FILE_KEY);
    let wrapped = wrap(&public_key, &file_key).unwrap().stanzas.remove(0);
    let key = KeyRef { slot, public_key };
    let decryptor = token.decryptor(&key, &call).unwrap();

    let mut encrypts = said("add-recipient", &[&recipient], &[]);
    encrypts.extend(said("add-identity", &[&identity], &[]));
    encrypts.extend(said("extension-labels", &[], &[]));
    encrypts.extend(said("b0-grease", &["x"], &[1; 50]));
    encrypts.extend(said("wrap-file-key", &[], &FILE_KEY));
    encrypts.extend(said("done", &[], &[]));
    let mut decrypts = said("add-identity", &[&identity], &[]);
    let args: Vec<&str> = wrapped.args.iter().map(String::as_str).collect();
    for file in ["0", "1"] {
        let words = [&[file, wrapped.tag.as_str()], &args[..]].concat();
        decrypts.extend(said("recipient-stanza", &words, &wrapped.body));
    }
    decrypts.extend(said("done", &[], &[]));
    for _ in 0..4 {
        encrypts.extend(said("ok", &[], &[]));
        decrypts.extend(said("ok", &[], b"123456"));
    }
    Subject {
        decryptor,
        _token: token,
        encrypts,
        decrypts,
    }
});

fn said(command: &str, words: &[&str], body: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    write_stanza(command, words, body, &mut text);
    text
}

/// The key, behind a PIN that anything is.
struct InMemory;

impl Keys for InMemory {
    fn open(
        &mut self,
        _: &Identity,
        stanzas: &Stanzas,
        person: &dyn Person,
    ) -> Result<UnwrappedKey, NotOpened> {
        person.secret("Enter the PIN");
        // What the daemon gets can be read.
        if let Some(header) = stanzas.to_header() {
            let header = [&header[..], &[0; 16]].concat();
            claviger_formats::envelope::Sealed::read(&header[..]).unwrap();
        }
        let opened = stanzas.unwrap(&*SUBJECT.decryptor, &Call::unlimited());
        opened.unwrap().ok_or(NotOpened::NotFor)
    }
}

/// One input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let what = input.byte().unwrap_or(0);
    let (encrypts, valid) = match what % 2 {
        0 => (true, &SUBJECT.encrypts),
        _ => (false, &SUBJECT.decrypts),
    };
    let heard = match what / 2 % 2 {
        0 => input.0.to_vec(),
        _ => input.patch(valid),
    };
    let mut said = Vec::new();
    let mut peer = Peer::new(&heard[..], &mut said);
    let talked = match encrypts {
        true => recipient::run(&mut peer),
        false => identity::run(&mut peer, &mut InMemory),
    };
    let said = commands(&said);
    let with = |tag: &str| said.iter().filter(|one| one.tag == tag).count();
    // Only who was heard out is told that this is all.
    assert_eq!(talked.is_ok(), with("done") == 1);
    if talked.is_ok() && with("error") > 0 {
        assert_eq!(with("recipient-stanza"), 0);
    }
    let keys = said.iter().filter(|one| one.tag == "file-key");
    let mut files = BTreeSet::new();
    for key in keys {
        assert!(files.insert(&key.args), "two keys of one file");
        assert_eq!(key.body, FILE_KEY);
    }
}

/// What was said, which can be read.
fn commands(text: &[u8]) -> Vec<Stanza> {
    let mut commands = Vec::new();
    let mut one = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let is_body = !one.is_empty();
        one.extend_from_slice(line);
        if is_body && line.len() <= 64 {
            commands.push(read_stanza(&one).unwrap());
            one.clear();
        }
    }
    assert!(one.is_empty());
    commands
}
