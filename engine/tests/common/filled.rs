//! A home with a row in each table of its registry.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use claviger_engine::grants::{NewGrant, Subject};
use claviger_engine::message::RequestCommitment;
use claviger_engine::{
    Capabilities, EngineError, EngineId, IdParams, Node, Party, Purpose, Registry, RegistryError,
    policy,
};
use claviger_formats::certificate;
use claviger_token::{KeyUse, Pin, PinVerdict, RefusedPins, TokenId, TriesLeft};
use rusqlite::Connection;
use tempfile::TempDir;

use super::{Device, call, connect, delete, generate, id, make, node};

/// A home with two identities that have keys of their own, two that are connected, one whose
/// keys are gone, contacts, evidence, a slot that is spent, PINs that were refused, and an
/// intent that was left open, and a certificate: a row in each table.
pub struct Home {
    folder: TempDir,
    pub device: Device,
}

impl Home {
    pub async fn new() -> Home {
        let (folder, device) = (in_memory(), Device::deriving());
        let home = Home { folder, device };
        let node = home.node();
        for name in ["alice", "mallory", "carol"] {
            make(&node, name, &home.device.backend()).await;
        }
        let somebodys = node.seen_by(Arc::new(User(1001)));
        make(&somebodys, "frank", &home.device.backend()).await;
        let (uid, signs) = (Subject::Uid(1002), "sshsig:file");
        let grant = NewGrant::parse(uid, "api", "frank", "sign", signs).unwrap();
        node.registry().add_grant(&grant).unwrap();
        for (name, to) in [("bob", "alice"), ("dave", "carol")] {
            let all = Capabilities::CommitAndDecrypt;
            let reply = connect(&node, name, to, &home.device.backend(), all).await;
            assert!(reply.err.is_none(), "{:?}", reply.err);
        }
        delete(&node, "carol", "carol").await.unwrap();
        certify(&node, "alice").await;
        for (name, of) in [("friend", "alice"), ("stranger", "mallory")] {
            let contact = Party {
                name: name.into(),
                keys: node.public_keys(&id(of)).unwrap().unwrap(),
            };
            node.registry().add_contact(&contact).unwrap();
        }
        for (reader, by) in [("mallory", "alice"), ("alice", "mallory")] {
            let granted = node
                .grant_reads_for(
                    &claviger_engine::EngineId::program(),
                    &id(reader),
                    &id(by),
                    None,
                    &call(),
                )
                .await;
            granted.unwrap();
        }
        let revoked = node
            .revoke_reads_for(
                &claviger_engine::EngineId::program(),
                &id("alice"),
                &id("mallory"),
                &call(),
            )
            .await;
        assert_eq!(revoked.unwrap().len(), 1);
        let token = |serial: &str| TokenId {
            kind: "piv".into(),
            manufacturer: "Yubico".into(),
            serial: serial.into(),
        };
        let (pins, pin) = (node.registry().refused_pins(), Pin::from("1234"));
        let refused = token("1");
        let mut turn = pins
            .turn(&refused, &claviger_token::Call::unlimited())
            .unwrap();
        turn.begin(&pin, TriesLeft::Exactly(3)).unwrap();
        turn.end(&pin, PinVerdict::Refused);
        // The answer of this one never comes.
        let silent = token("2");
        let mut turn = pins
            .turn(&silent, &claviger_token::Call::unlimited())
            .unwrap();
        turn.begin(&pin, TriesLeft::Exactly(2)).unwrap();
        drop(turn);
        // What comes from a registry of before is in the table, and not in a file.
        home.enter_sent_pins(&node);
        home.device.detach_after(1);
        let all = Capabilities::CommitAndDecrypt;
        let (backend, params) = (home.device.backend(), IdParams::Ed25519);
        generate(&node, "eve", &backend, params, all).await;
        home.device.attach();
        home
    }

    /// Moves what is noted of PINs that were sent from files to the table, as in a registry that
    /// was restored elsewhere.
    fn enter_sent_pins(&self, node: &Node) {
        let backup = node.registry().backup().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let file = elsewhere.path().join("backup");
        std::fs::write(&file, backup.file).unwrap();
        let db = Connection::open(self.file()).unwrap();
        db.execute("ATTACH ? AS backup", [file.to_str().unwrap()])
            .unwrap();
        db.execute_batch(
            "INSERT INTO sent_pin SELECT * FROM backup.sent_pin;
             UPDATE seal SET digests = (SELECT digests FROM backup.seal b WHERE b.name = seal.name)
             WHERE name = 'sent_pin'",
        )
        .unwrap();
        std::fs::remove_dir_all(self.folder.path().join("pins")).unwrap();
    }

    pub fn node(&self) -> Node {
        node(self.folder.path(), &self.device)
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path().join("registry.sqlite")
    }

    /// A node, where the registry opens.
    pub fn open_node(&self) -> Result<Node, RegistryError> {
        Ok(Node::builder(self.open()?)
            .driver(self.device.clone())
            .build())
    }

    pub fn open(&self) -> Result<Registry, RegistryError> {
        Registry::open(self.folder.path())
    }

    /// What somebody does who has the file, and nothing of ours.
    pub fn sql(&self, statements: &str) {
        Connection::open(self.file())
            .unwrap()
            .execute_batch(statements)
            .unwrap();
    }

    /// The whole file, where nobody has it open.
    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.file()).unwrap()
    }

    /// Puts another file in its place, with nothing beside it.
    pub fn put(&self, bytes: &[u8]) {
        for end in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", self.file().display()));
        }
        std::fs::write(self.file(), bytes).unwrap();
    }

    /// What is wrong with it.
    pub fn faults(&self) -> Vec<RegistryError> {
        self.open().unwrap().check().unwrap()
    }
}

/// Enters a certificate of an identity by itself.
async fn certify(node: &Node, name: &str) {
    let info = node.registry().identity(&id(name)).unwrap().unwrap();
    let key = &info.key(KeyUse::Sign).unwrap().public_key;
    let subject = "CN=somebody".parse().unwrap();
    let unsigned = certificate::self_signed(key, &subject, &[], 1).unwrap();
    let request = RequestCommitment {
        purpose: Purpose::Certificate,
        data: unsigned.bytes().to_vec(),
    };
    let engine = info.commitment_engine.as_ref().unwrap();
    let signed = node.commit_for(&id(name), engine, request, &call()).await;
    let pem = unsigned.signed(&signed.unwrap()).unwrap();
    let chain = certificate::Chain::read(pem.as_bytes(), key).unwrap();
    let entered = node.registry().set_certificate(&id(name), chain.ders(), 0);
    entered.unwrap();
}

/// One user, who may do everything.
pub struct User(pub u32);

impl policy::Policy for User {
    fn check(&self, _: &EngineId, _: policy::Permission<'_>) -> Result<(), EngineError> {
        Ok(())
    }

    fn subject(&self) -> Option<policy::Subject> {
        Some(policy::Subject {
            name: self.0.to_string().into(),
            uid: self.0,
        })
    }
}

/// A folder in memory, where the system has such a place: nothing here is about disks.
fn in_memory() -> TempDir {
    match Path::new("/dev/shm").is_dir() {
        true => tempfile::tempdir_in("/dev/shm").unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}
