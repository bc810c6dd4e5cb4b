//! What a client of the ssh-agent sends: any bytes, and messages that were good once.

use std::sync::LazyLock;

use claviger_agent::bindings::Bindings;
use claviger_agent::messages::{LIMIT, Request, length};
use claviger_agent::wanted::Wanted;
use claviger_engine::Purpose;
use claviger_formats::ssh_request::{SshLogin, SshRequest};
use claviger_formats::{ssh, ssh_signature, sshsig};
use claviger_memory::MemoryDriver;
use claviger_token::{
    Algorithm, Call, Driver as _, KeyRef, KeySpec, NewKey, PublicKey, unfinished_mark,
};

use crate::shared::Input;

const SESSION: [u8; 32] = [7; 32];

/// A key that is also that of a host, and messages about it.
struct Subject {
    key: PublicKey,
    bind: Vec<u8>,
    messages: Vec<Vec<u8>>,
}

static SUBJECT: LazyLock<Subject> = LazyLock::new(|| {
    let call = Call::unlimited();
    let token = MemoryDriver::new().open("memory:", &call).unwrap();
    let spec = KeySpec::sign(Algorithm::Ed25519);
    let slot = token.free_slots(&[spec], &[], &call).unwrap().remove(0);
    let new = NewKey {
        slot: &slot,
        spec,
        mark: &unfinished_mark(),
    };
    let public_key = token.generate(&new, &call).unwrap().public_key;
    let key = KeyRef { slot, public_key };
    let signature = token.signer(&key, &call).unwrap().sign(&SESSION, &call);
    let signature = ssh_signature::to_wire(&signature.unwrap()).unwrap();
    let key = key.public_key;
    let wire = ssh::to_wire(&key).unwrap();
    let extension = b"session-bind@openssh.com";
    let bind = message(27, &[extension, &wire, &SESSION, &signature], &[0]);
    let git = sshsig::signed_data("git", b"text").unwrap();
    let login = login(&wire);
    let messages = vec![
        bind.clone(),
        message(13, &[&wire, &login], &[0; 4]),
        message(13, &[&wire, &git], &[0; 4]),
        message(22, &[b"words"], &[]),
        vec![11],
    ];
    Subject {
        key,
        bind,
        messages,
    }
});

fn message(kind: u8, parts: &[&[u8]], end: &[u8]) -> Vec<u8> {
    let parts = parts.iter().flat_map(|part| string(part));
    std::iter::once(kind)
        .chain(parts)
        .chain(end.iter().copied())
        .collect()
}

fn string(part: &[u8]) -> Vec<u8> {
    let length = u32::try_from(part.len()).unwrap().to_be_bytes();
    [&length[..], part].concat()
}

fn login(key: &[u8]) -> Vec<u8> {
    let method = b"publickey-hostbound-v00@openssh.com";
    [
        string(&SESSION),
        vec![50],
        string(b"git"),
        string(b"ssh-connection"),
        string(method),
        vec![1],
        string(b"ssh-ed25519"),
        string(key),
        string(key),
    ]
    .concat()
}

/// One input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let Subject {
        key,
        bind,
        messages,
    } = &*SUBJECT;
    let which = usize::from(input.byte().unwrap_or(0));
    let is_bound = which % 2 == 1;
    let message = match messages.get(which / 2 % (messages.len() + 1)) {
        Some(known) => input.patch(known),
        None => input.0.to_vec(),
    };
    if let Ok(Some(length)) = length(&message) {
        assert!((1..=LIMIT).contains(&length));
    }
    let mut bindings = Bindings::default();
    if let (true, Ok(Request::Bind(true_one))) = (is_bound, Request::parse(bind)) {
        bindings.bind(true_one).unwrap();
    }
    match Request::parse(&message) {
        Ok(Request::Bind(said)) => {
            let (host, session) = (said.host.clone(), said.session.clone());
            let bound = bindings.bind(said);
            // Nobody signs another session with this key.
            if bound.is_ok() && ssh::from_wire(&host).as_ref() == Ok(key) {
                assert!(session == SESSION || known_host(&bindings, &session).is_none());
            }
        }
        Ok(Request::Sign(said)) => judge(key, &said.data, said.flags, &bindings),
        _ => {}
    }
}

/// The host that a login in this session, which names none, is known to go to.
fn known_host(bindings: &Bindings, session: &[u8]) -> Option<String> {
    let login = [
        string(session),
        vec![50],
        string(b"git"),
        string(b"ssh-connection"),
        string(b"publickey"),
        vec![1],
        string(b"ssh-ed25519"),
        string(b"key"),
    ];
    let login = SshLogin::parse(&login.concat())?;
    bindings.destination(&login).ok()?.host
}

fn judge(key: &PublicKey, data: &[u8], flags: u32, bindings: &Bindings) {
    let Ok(wanted) = Wanted::of(key, data.to_vec(), flags, bindings) else {
        return;
    };
    match wanted.what.purpose {
        Purpose::SshSig { namespace, hash } => {
            let signed = sshsig::signed_data_of(&namespace, hash, &wanted.what.data);
            assert_eq!(signed.unwrap(), data);
        }
        Purpose::SshLogin { host, .. } => {
            assert_eq!(wanted.what.data, data);
            let login = SshLogin::parse(data).unwrap();
            let named = login.host.as_deref().map(ssh::fingerprint);
            assert!(named.is_none() || named == host);
        }
        Purpose::SshCertificate => assert_eq!(SshRequest::of(data), SshRequest::Certificate),
        purpose => {
            assert_eq!(purpose, Purpose::Raw);
            assert_eq!(SshRequest::of(data), SshRequest::Raw);
            assert_eq!(wanted.what.data, data);
        }
    }
}
