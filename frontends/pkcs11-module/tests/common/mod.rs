//! A daemon in this process, for the module.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test program uses a part; what fails here is a test that fails"
)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use claviger_engine::grants::{NewGrant, Subject};
use claviger_engine::message::{RequestCommitment, RequestGenerateIdentity};
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Purpose, Registry};
use claviger_formats::certificate::{self, Chain};
use claviger_memory::MemoryDriver;
use claviger_pkcs11::Pkcs11Driver;
use claviger_service::{Listening, Service};
use claviger_token::{Access, Call, KeyUse, PublicKey};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A node, and a place for the socket of its daemon.
pub struct Stage {
    pub node: Node,
    pub folder: TempDir,
    runtime: Runtime,
}

/// A daemon that serves, as long as this lives.
pub struct Daemon(Option<Runtime>);

impl Stage {
    pub fn new() -> Self {
        let node = Node::builder(Registry::in_memory().unwrap())
            .driver(MemoryDriver::new())
            .driver(Pkcs11Driver::new())
            .build();
        Stage {
            node,
            folder: tempfile::tempdir().unwrap(),
            runtime: runtime(),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    /// Starts a daemon for the node.
    pub fn serve(&self) -> Daemon {
        let runtime = runtime();
        let entered = runtime.enter();
        let service = Service::builder(self.node.clone()).build();
        let _ = std::fs::remove_file(self.socket());
        let listening = Listening::bind("api", &self.socket(), 0o600).unwrap();
        runtime.spawn(async move { service.serve(vec![listening]).await });
        drop(entered);
        Daemon(Some(runtime))
    }

    /// Makes an identity that signs, in memory.
    pub fn in_memory(&self, name: &str, params: IdParams) -> PublicKey {
        self.generate(name, "memory:", params, Access::without_pin())
    }

    /// Makes an identity that signs.
    pub fn generate(
        &self,
        name: &str,
        backend: &str,
        params: IdParams,
        access: Access,
    ) -> PublicKey {
        let who = EngineId::local(name);
        let request = RequestGenerateIdentity {
            backend: Backend::from(backend),
            params,
            capabilities: Capabilities::Commit,
        };
        let call = Call::unlimited().using(access);
        let made = self.node.generate(&who, request, &call);
        self.runtime.block_on(made).unwrap();
        let info = self.node.registry().identity(&who).unwrap().unwrap();
        info.key(KeyUse::Sign).unwrap().public_key.clone()
    }

    /// Lets this user have digests signed by an identity.
    pub fn grant_digests(&self, name: &str) {
        let user = Subject::Uid(rustix::process::getuid().as_raw());
        let grant = NewGrant::parse(user, "", name, "sign", "prehash").unwrap();
        self.node.registry().add_grant(&grant).unwrap();
    }

    /// Makes a certificate of an identity by itself, for `localhost`; as PEM.
    pub fn certify(&self, name: &str) -> String {
        let who = EngineId::local(name);
        let info = self.node.registry().identity(&who).unwrap().unwrap();
        let key = &info.key(KeyUse::Sign).unwrap().public_key;
        let subject = format!("CN={name}").parse().unwrap();
        let names = ["localhost".parse().unwrap()];
        let unsigned = certificate::self_signed(key, &subject, &names, 2).unwrap();
        let request = RequestCommitment {
            purpose: Purpose::Certificate,
            data: unsigned.bytes().to_vec(),
        };
        let engine = info.commitment_engine.as_ref().unwrap();
        let call = Call::unlimited();
        let signed = self.node.commit_for(&who, engine, request, &call);
        let signature = self.runtime.block_on(signed).unwrap();
        let pem = unsigned.signed(&signature).unwrap();
        let chain = Chain::read(pem.as_bytes(), key).unwrap();
        let registry = self.node.registry();
        registry.set_certificate(&who, chain.ders(), 0).unwrap();
        pem
    }

    /// Logs out of all tokens.
    pub fn lock(&self) {
        for closing in self.node.lock_tokens(None) {
            let call = Call::unlimited();
            self.runtime.block_on(closing.done(&call)).unwrap();
        }
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // All that it has open ends with its runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(Duration::from_secs(20));
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// The module's file, where cargo put it.
pub fn module() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let file = "libclaviger_pkcs11_module.so";
    let mut folders = program.ancestors().skip(1).take(2);
    let found = folders.find_map(|folder: &Path| {
        let places = [folder.join(file), folder.join("deps").join(file)];
        places.into_iter().find(|path| path.is_file())
    });
    found.unwrap_or_else(|| panic!("{file} is not beside {}", program.display()))
}
