//! What age programs say to a plugin, and what they hear from it.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test program uses its part"
)]

pub mod plugin;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use claviger_engine::message::RequestGenerateIdentity;
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Registry};
use claviger_formats::age_plugin;
use claviger_formats::envelope::{Stanza, UnwrappedKey, read_stanza, wrap, write_stanza};
use claviger_memory::MemoryDriver;
use claviger_pkcs11::Pkcs11Driver;
use claviger_service::{Listening, Service};
use claviger_token::{Access, Call, KeyUse, PublicKey};
use tokio::runtime::Runtime;

/// The key of a file.
pub const FILE_KEY: [u8; 16] = *b"sixteen bytes of";

/// A stanza as text.
pub fn said(command: &str, words: &[&str], body: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    write_stanza(command, words, body, &mut text);
    text
}

/// A stanza of a file, as an age program hands it to a plugin.
pub fn handed(file: &str, stanza: &Stanza) -> Vec<u8> {
    let args = stanza.args.iter().map(String::as_str);
    let words: Vec<&str> = [file, &*stanza.tag].into_iter().chain(args).collect();
    said("recipient-stanza", &words, &stanza.body)
}

/// The file key, wrapped for a key.
pub fn wrapped(key: &PublicKey) -> Stanza {
    let file_key = UnwrappedKey::from_bytes(&FILE_KEY);
    wrap(key, &file_key).unwrap().stanzas.remove(0)
}

/// The stanzas in a text.
pub fn stanzas(text: &[u8]) -> Vec<Stanza> {
    let mut stanzas = Vec::new();
    let mut one = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let is_body = !one.is_empty();
        one.extend_from_slice(line);
        if is_body && line.len() <= 64 {
            stanzas.push(read_stanza(&one).unwrap());
            one.clear();
        }
    }
    assert!(one.is_empty(), "{}", String::from_utf8_lossy(&one));
    stanzas
}

/// A stanza on one line, to compare.
pub fn line(stanza: &Stanza) -> String {
    let words = [std::slice::from_ref(&stanza.tag), &stanza.args]
        .concat()
        .join(" ");
    match stanza.body.as_slice() {
        [] => words,
        body => format!("{words}: {}", String::from_utf8_lossy(body)),
    }
}

/// A daemon in this process, and its identities.
pub struct Daemon {
    runtime: Runtime,
    pub service: Service,
    pub socket: PathBuf,
    _ended: Receiver<()>,
    _folder: tempfile::TempDir,
}

impl Daemon {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let entered = runtime.enter();
        let node = Node::builder(Registry::in_memory().unwrap())
            .driver(MemoryDriver::new())
            .driver(Pkcs11Driver::new())
            .build();
        let service = Service::builder(node).build();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        let listening = Listening::bind("api", &socket, 0o600).unwrap();
        let (serving, (done, ended)) = (service.clone(), channel());
        runtime.spawn(async move {
            serving.serve(vec![listening]).await.unwrap();
            let _ = done.send(());
        });
        drop(entered);
        Daemon {
            runtime,
            service,
            socket,
            _ended: ended,
            _folder: folder,
        }
    }

    /// Makes an identity; the key to encrypt to it.
    pub fn generate(
        &self,
        name: &str,
        backend: &str,
        params: IdParams,
        access: Access,
    ) -> PublicKey {
        let who = EngineId::local(name);
        let node = self.service.node();
        let request = RequestGenerateIdentity {
            backend: Backend::from(backend),
            params,
            capabilities: Capabilities::Decrypt,
        };
        let call = Call::unlimited().using(access);
        self.runtime
            .block_on(node.generate(&who, request, &call))
            .unwrap();
        let info = node.registry().identity(&who).unwrap().unwrap();
        info.key(KeyUse::Decrypt).unwrap().public_key.clone()
    }

    /// Makes an identity in memory.
    pub fn in_memory(&self, name: &str, params: IdParams) -> PublicKey {
        self.generate(name, "memory:", params, Access::without_pin())
    }

    /// Logs out of all tokens.
    pub fn lock(&self) {
        for closing in self.service.node().lock_tokens(None) {
            let call = Call::unlimited();
            self.runtime.block_on(closing.done(&call)).unwrap();
        }
    }
}

/// The line of an identity file.
pub fn identity(key: &PublicKey, name: &str) -> String {
    age_plugin::identity_text(key, name).unwrap()
}

/// The line that means whichever needs no person.
pub const ANY: &str = "AGE-PLUGIN-CLAVIGER-1YGVP8X";

/// The plugin, in a folder of its own as age programs find it.
pub fn folder_with_plugin(folder: &Path, name: &str) {
    let plugin = env!("CARGO_BIN_EXE_age-plugin-claviger");
    std::os::unix::fs::symlink(plugin, folder.join(name)).unwrap();
}
