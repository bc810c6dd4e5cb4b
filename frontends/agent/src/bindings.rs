//! Which SSH sessions a client is for (`session-bind@openssh.com`, OpenSSH `PROTOCOL.agent` §1).
//!
//! `ssh` says for each connection which session it is about to log in to, and proves it with the
//! host's signature over the id of the session. Where the agent is forwarded, the connection says so
//! first, for each machine on the way: what comes after that is said by the programs there.

use claviger_formats::ssh::{self, fingerprint};
use claviger_formats::ssh_request::SshLogin;
use claviger_formats::ssh_signature;
use ssh_encoding::Decode;

use crate::messages::SessionBind;

/// So many machines on the way OpenSSH takes.
const MOST: usize = 16;

/// The sessions of one connection, in the order in which they were bound.
#[derive(Debug, Default)]
pub struct Bindings {
    bound: Vec<Bound>,
    /// Something was said that could not be bound: who is at the other end is not known any more.
    is_broken: bool,
}

#[derive(Debug)]
struct Bound {
    /// `None`: the key or the signature is of a kind that is not supported, and nothing was verified.
    host: Option<Vec<u8>>,
    session: Vec<u8>,
    forwarding: bool,
}

/// Where a login goes, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Destination {
    /// The fingerprint of the host's key.
    pub host: Option<String>,
    /// Whether the request came through another machine, or may have: the connection is bound to
    /// nothing.
    pub forwarded: bool,
}

/// Why a session is not bound, or a login is not signed: the end of a sentence.
pub type Reason = &'static str;

impl Bindings {
    /// Binds the connection to a session.
    ///
    /// # Errors
    /// [`Reason`]. After that nothing is signed any more.
    pub fn bind(&mut self, bind: SessionBind) -> Result<(), Reason> {
        let bound = self.add(bind);
        self.is_broken |= bound.is_err();
        bound
    }

    /// Notes that something was said about a session that cannot be read. After that nothing is
    /// signed any more.
    pub fn spoil(&mut self) {
        self.is_broken = true;
    }

    /// Whether anything is signed on the connection.
    ///
    /// # Errors
    /// [`Reason`], if a session was not bound.
    pub fn check(&self) -> Result<(), Reason> {
        match self.is_broken {
            true => Err("a session of the connection could not be bound"),
            false => Ok(()),
        }
    }

    fn add(&mut self, bind: SessionBind) -> Result<(), Reason> {
        let SessionBind {
            host,
            session,
            signature,
            forwarding,
        } = bind;
        let known = ssh::from_wire(&host).ok().filter(|_| is_known(&signature));
        let is_supported = known.is_some();
        if known.is_some_and(|key| ssh_signature::verify(&key, &session, &signature).is_err()) {
            return Err("the host's signature over the session does not verify");
        }
        if self.bound.iter().any(|bound| !bound.forwarding) {
            return Err("the connection is bound to a login already");
        }
        let host = is_supported.then_some(host);
        if let Some(known) = self.bound.iter().find(|bound| bound.session == session) {
            return match known.host == host {
                true => Ok(()),
                false => Err("the session is bound to another host"),
            };
        }
        if self.bound.len() >= MOST {
            return Err("the connection is bound to 16 sessions already");
        }
        self.bound.push(Bound {
            host,
            session,
            forwarding,
        });
        Ok(())
    }

    /// Where a login goes.
    ///
    /// # Errors
    /// [`Reason`], if it is not the one that the connection is for.
    pub fn destination(&self, login: &SshLogin) -> Result<Destination, Reason> {
        self.check()?;
        // A host that knows this form of login compares the key with its own.
        let named = login.host.as_ref();
        let Some(last) = self.bound.last() else {
            // Nothing tells a program here from one on another machine.
            return Ok(Destination {
                host: named.map(|host| fingerprint(host)),
                forwarded: true,
            });
        };
        if last.session != login.session {
            // Programs on the other machine that do not say which session it is.
            return match last.forwarding {
                true => Ok(Destination {
                    host: named.map(|host| fingerprint(host)),
                    forwarded: true,
                }),
                false => Err("the login is of another session than the connection"),
            };
        }
        if last.forwarding {
            return Err("the login is of a session that the agent is forwarded to");
        }
        if let (Some(named), Some(bound)) = (named, &last.host)
            && named != bound
        {
            return Err("the login names another host than the connection");
        }
        let forwarded = self.bound.len() > 1;
        // A program on another machine may bind the session of any host that it talks to. Only what
        // is signed holds there.
        let bound = last.host.as_ref().filter(|_| !forwarded);
        Ok(Destination {
            host: bound.or(named).map(|host| fingerprint(host)),
            forwarded,
        })
    }
}

/// Whether a signature is of a kind that is verified: not with SHA-1.
fn is_known(signature: &[u8]) -> bool {
    let name = String::decode(&mut &signature[..]);
    name.is_ok_and(|name| ssh_signature::scheme_named(&name).is_some())
}

#[cfg(test)]
mod tests {
    use claviger_token::{Algorithm, PublicKey, Signature, SignatureScheme};
    use ed25519_dalek::{Signer, SigningKey};
    use ssh_encoding::Encode;

    use super::*;

    struct Host(SigningKey);

    impl Host {
        fn new(seed: u8) -> Self {
            Host(SigningKey::from_bytes(&[seed; 32]))
        }

        fn key(&self) -> Vec<u8> {
            let public = self.0.verifying_key();
            let key = PublicKey::from_bytes(Algorithm::Ed25519, public.as_bytes()).unwrap();
            ssh::to_wire(&key).unwrap()
        }

        fn fingerprint(&self) -> Option<String> {
            Some(fingerprint(&self.key()))
        }

        fn bind(&self, session: &[u8], forwarding: bool) -> SessionBind {
            let bytes = self.0.sign(session).to_bytes().to_vec();
            let signature = Signature::new(SignatureScheme::Ed25519, bytes).unwrap();
            SessionBind {
                host: self.key(),
                session: session.to_vec(),
                signature: ssh_signature::to_wire(&signature).unwrap(),
                forwarding,
            }
        }
    }

    /// A login in this session, to a host that it names or does not.
    fn login(session: &[u8], host: Option<&Host>) -> SshLogin {
        let mut data = Vec::new();
        let put = |data: &mut Vec<u8>, part: &[u8]| part.encode(data).unwrap();
        put(&mut data, session);
        data.push(50);
        let method = match host {
            Some(_) => "publickey-hostbound-v00@openssh.com",
            None => "publickey",
        };
        for part in ["git", "ssh-connection", method] {
            put(&mut data, part.as_bytes());
        }
        data.push(1);
        put(&mut data, b"ssh-ed25519");
        put(&mut data, b"key");
        if let Some(host) = host {
            put(&mut data, &host.key());
        }
        SshLogin::parse(&data).unwrap()
    }

    fn to(host: Option<String>, forwarded: bool) -> Result<Destination, Reason> {
        Ok(Destination { host, forwarded })
    }

    #[test]
    fn a_login_goes_to_the_host_of_its_session() {
        let (host, other) = (Host::new(1), Host::new(2));
        let mut bindings = Bindings::default();
        bindings.bind(host.bind(b"one", false)).unwrap();
        let at = |login: SshLogin| bindings.destination(&login);
        assert_eq!(at(login(b"one", None)), to(host.fingerprint(), false));
        assert_eq!(
            at(login(b"one", Some(&host))),
            to(host.fingerprint(), false)
        );
        assert!(at(login(b"one", Some(&other))).is_err());
        assert!(at(login(b"two", None)).is_err());
        assert!(at(login(b"two", Some(&host))).is_err());
    }

    #[test]
    fn a_connection_that_is_bound_to_nothing_knows_the_host_that_the_login_names_and_may_be_forwarded()
     {
        let (bindings, host) = (Bindings::default(), Host::new(1));
        let at = |login: SshLogin| bindings.destination(&login);
        assert_eq!(at(login(b"one", None)), to(None, true));
        assert_eq!(at(login(b"one", Some(&host))), to(host.fingerprint(), true));
    }

    #[test]
    fn on_a_forwarded_path_only_a_login_that_names_its_host_has_one() {
        let (gate, other) = (Host::new(1), Host::new(2));
        let mut bindings = Bindings::default();
        bindings.bind(gate.bind(b"s1", true)).unwrap();
        bindings.bind(gate.bind(b"s2", false)).unwrap();
        let at = |login: SshLogin| bindings.destination(&login);
        assert_eq!(at(login(b"s2", None)), to(None, true));
        assert_eq!(at(login(b"s2", Some(&gate))), to(gate.fingerprint(), true));
        assert!(at(login(b"s2", Some(&other))).is_err());
    }

    #[test]
    fn after_a_session_that_is_not_bound_nothing_is_signed() {
        let (host, other) = (Host::new(1), Host::new(2));
        let full = || {
            let mut bindings = Bindings::default();
            for session in 0..16u8 {
                bindings.bind(host.bind(&[session], true)).unwrap();
            }
            bindings
        };
        for refused in [host.bind(b"more", true), other.bind(&[3], true)] {
            let mut bindings = full();
            assert_eq!(bindings.check(), Ok(()));
            assert!(bindings.bind(refused).is_err());
            assert!(bindings.check().is_err());
            assert!(bindings.destination(&login(b"on", Some(&host))).is_err());
        }
        let mut bound = Bindings::default();
        bound.bind(host.bind(b"one", false)).unwrap();
        assert!(bound.bind(host.bind(b"two", false)).is_err());
        assert!(bound.check().is_err());
        assert!(bound.destination(&login(b"one", Some(&host))).is_err());
    }

    #[test]
    fn after_a_signature_that_does_not_verify_no_login_is_signed() {
        let host = Host::new(1);
        let mut bindings = Bindings::default();
        let mut forged = host.bind(b"one", false);
        forged.session = b"two".to_vec();
        assert!(bindings.bind(forged).is_err());
        assert!(bindings.destination(&login(b"two", None)).is_err());
        // A true one does not make it good.
        bindings.bind(host.bind(b"one", false)).unwrap();
        assert!(bindings.destination(&login(b"one", None)).is_err());
    }

    #[test]
    fn a_host_with_a_key_of_another_kind_is_not_known_unless_the_login_names_it() {
        let host = Host::new(1);
        let mut bindings = Bindings::default();
        let mut other = host.bind(b"one", false);
        other.host = b"a key of another kind".to_vec();
        bindings.bind(other).unwrap();
        let at = |login: SshLogin| bindings.destination(&login);
        assert_eq!(at(login(b"one", None)), to(None, false));
        assert_eq!(
            at(login(b"one", Some(&host))),
            to(host.fingerprint(), false)
        );
        assert!(at(login(b"two", None)).is_err());
    }

    #[test]
    fn what_comes_from_a_machine_on_the_way_is_forwarded() {
        let (gate, inner) = (Host::new(1), Host::new(2));
        let mut bindings = Bindings::default();
        bindings.bind(gate.bind(b"gate", true)).unwrap();
        // The programs there may know nothing of bindings.
        let old = bindings.destination(&login(b"inner", None));
        assert_eq!(old, to(None, true));
        assert!(bindings.destination(&login(b"gate", None)).is_err());
        bindings.bind(gate.bind(b"gate", true)).unwrap();
        bindings.bind(inner.bind(b"inner", false)).unwrap();
        let new = bindings.destination(&login(b"inner", Some(&inner)));
        assert_eq!(new, to(inner.fingerprint(), true));
        assert!(bindings.destination(&login(b"other", None)).is_err());
        // It is for this login, and for no other one.
        assert!(bindings.bind(gate.bind(b"again", true)).is_err());
    }

    #[test]
    fn a_session_belongs_to_one_host_and_there_are_sixteen_at_most() {
        let (host, other) = (Host::new(1), Host::new(2));
        let mut bindings = Bindings::default();
        bindings.bind(host.bind(b"one", true)).unwrap();
        assert!(bindings.bind(other.bind(b"one", true)).is_err());
        for session in 1..16u8 {
            bindings.bind(host.bind(&[session], true)).unwrap();
        }
        assert!(bindings.bind(host.bind(b"more", true)).is_err());
    }
}
