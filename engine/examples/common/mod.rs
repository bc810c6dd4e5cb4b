//! A node with one identity, for the examples.

use std::error::Error;

use claviger_engine::message::{RequestCommitment, RequestGenerateIdentity};
use claviger_engine::{Backend, Capabilities, EngineId, IdParams, Node, Purpose, Registry};
use claviger_memory::MemoryDriver;
use claviger_pkcs11::Pkcs11Driver;
use claviger_token::{Access, Call, PublicKey, StoredPin};
use tokio::runtime::Runtime;

/// A node and an identity with P-256 keys, on the token that the first argument names, with
/// the PIN in the variable `PIN`; without arguments, in the memory of this process:
///
/// ```sh
/// cargo run -p claviger-engine --example age_file
/// PIN=123456 cargo run -p claviger-engine --example age_file 'pkcs11:token=bench'
/// ```
///
/// The identity is not remembered: the registry lives as long as this process, and
/// [`Stage::end`] deletes the keys.
pub(crate) struct Stage {
    pub(crate) runtime: Runtime,
    pub(crate) node: Node,
    pub(crate) alice: EngineId,
    pub(crate) signs: EngineId,
}

impl Stage {
    pub(crate) fn set() -> Result<Self, Box<dyn Error>> {
        let backend = std::env::args().nth(1).unwrap_or_else(|| "memory:".into());
        let runtime = Runtime::new()?;
        let node = Node::builder(Registry::in_memory()?)
            .driver(MemoryDriver::new())
            .driver(Pkcs11Driver::new())
            .access(Access::with(StoredPin::Env("PIN".into())))
            .build();
        let alice = EngineId::local("alice");
        let request = RequestGenerateIdentity {
            backend: Backend::from(backend),
            params: IdParams::P256,
            capabilities: Capabilities::CommitAndDecrypt,
        };
        let call = Call::unlimited();
        let made = runtime.block_on(node.generate(&alice, request, &call))?;
        Ok(Stage {
            runtime,
            node,
            alice,
            signs: made.commitment_engine.ok_or("no key signs")?,
        })
    }

    /// The public half of the key that signs, or of the one that decrypts.
    pub(crate) fn public_key(
        &self,
        usage: claviger_token::KeyUse,
    ) -> Result<PublicKey, Box<dyn Error>> {
        let info = self.node.registry().identity(&self.alice)?;
        let info = info.ok_or("there is no identity")?;
        Ok(info.key(usage).ok_or("there is no key")?.public_key.clone())
    }

    /// A P-256 signature, as DER.
    #[allow(dead_code, reason = "not every example signs")]
    pub(crate) fn sign(&self, purpose: Purpose, data: Vec<u8>) -> Result<Vec<u8>, Box<dyn Error>> {
        let request = RequestCommitment { purpose, data };
        let call = Call::unlimited();
        let signed = self
            .node
            .commit_for(&self.alice, &self.signs, request, &call);
        let signature = self.runtime.block_on(signed)?;
        Ok(signature.to_der()?)
    }

    /// Destroys the keys.
    pub(crate) fn end(self) -> Result<(), Box<dyn Error>> {
        let request = claviger_engine::message::RequestDeleteIdentity {
            external_identity: self.alice.clone(),
            backend: Backend::LocalMemory,
        };
        let call = Call::unlimited();
        (self.runtime).block_on(self.node.delete(&self.alice, request, &call))?;
        Ok(())
    }
}
