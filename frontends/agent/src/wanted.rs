//! What a signature is for: told from the bytes that a client sends, never from what it says.

use claviger_engine::Purpose;
use claviger_formats::ssh_request::SshRequest;
use claviger_formats::ssh_signature::scheme_named;
use claviger_service::ToBeSigned;
use claviger_token::{PublicKey, SignatureScheme};

use crate::bindings::{Bindings, Reason};

const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// A signature that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What is to be signed.
    pub what: ToBeSigned,
    /// What it is for, for people: `a login as git`.
    pub about: String,
}

impl Wanted {
    /// What `data` is that `key` is to sign, on a connection that is bound like this. `flags` are
    /// those of the request.
    ///
    /// # Errors
    /// [`Reason`].
    pub fn of(
        key: &PublicKey,
        data: Vec<u8>,
        flags: u32,
        bindings: &Bindings,
    ) -> Result<Self, Reason> {
        bindings.check()?;
        let scheme = scheme(key, flags)?;
        let (data, purpose, about) = match SshRequest::of(&data) {
            SshRequest::Login(login) => {
                if scheme_named(&login.algorithm) != scheme {
                    return Err("the login names another kind of signature than the request");
                }
                let to = bindings.destination(&login)?;
                let about = match &to.host {
                    Some(host) => format!("a login as {:?} to {host}", login.user),
                    None => format!("a login as {:?}", login.user),
                };
                let purpose = Purpose::SshLogin {
                    host: to.host,
                    forwarded: to.forwarded,
                };
                (data, purpose, about)
            }
            SshRequest::Signature {
                namespace,
                hash,
                digest,
            } => {
                let about = format!("an SSH signature for {namespace:?}");
                (digest, Purpose::SshSig { namespace, hash }, about)
            }
            SshRequest::Certificate => {
                let about = "an OpenSSH certificate".to_owned();
                (data, Purpose::SshCertificate, about)
            }
            _ => (data, Purpose::Raw, "raw data".to_owned()),
        };
        let what = ToBeSigned {
            data,
            purpose,
            scheme,
        };
        Ok(Wanted { what, about })
    }
}

/// How `key` is to sign.
fn scheme(key: &PublicKey, flags: u32) -> Result<Option<SignatureScheme>, Reason> {
    let is_rsa = key.algorithm().rsa_bits().is_some();
    Ok(match flags {
        _ if !is_rsa => SignatureScheme::of(key.algorithm()),
        // As OpenSSH does where both are set.
        _ if flags & RSA_SHA2_256 != 0 => Some(SignatureScheme::RsaPkcs1Sha256),
        _ if flags & RSA_SHA2_512 != 0 => Some(SignatureScheme::RsaPkcs1Sha512),
        _ => return Err("RSA with SHA-1 is not signed"),
    })
}

#[cfg(test)]
mod tests {
    use claviger_formats::ssh;
    use claviger_formats::sshsig;
    use claviger_token::Algorithm;
    use ssh_encoding::Encode;

    use super::*;

    const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7";

    fn ed25519() -> PublicKey {
        let secret = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        PublicKey::from_bytes(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap()
    }

    fn rsa() -> PublicKey {
        // Any odd number of 2,048 bits stands for a modulus.
        let modulus = [&[0xc0][..], &[1; 255]].concat();
        let key = PublicKey::from_rsa(&modulus, &[1, 0, 1]).unwrap();
        assert!(ssh::to_line(&key, "").unwrap().starts_with(&RSA[..20]));
        key
    }

    fn login(algorithm: &str) -> Vec<u8> {
        let mut data = Vec::new();
        let put = |data: &mut Vec<u8>, part: &[u8]| part.encode(data).unwrap();
        put(&mut data, &[7; 32]);
        data.push(50);
        for part in ["git", "ssh-connection", "publickey"] {
            put(&mut data, part.as_bytes());
        }
        data.push(1);
        put(&mut data, algorithm.as_bytes());
        put(&mut data, b"key");
        data
    }

    fn purpose(key: &PublicKey, data: Vec<u8>, flags: u32) -> Result<Purpose, Reason> {
        let wanted = Wanted::of(key, data, flags, &Bindings::default());
        wanted.map(|wanted| wanted.what.purpose)
    }

    #[test]
    fn each_kind_of_data_has_its_purpose() {
        let key = ed25519();
        let signature = sshsig::signed_data("git", b"hello").unwrap();
        let wanted = Wanted::of(&key, signature.clone(), 0, &Bindings::default()).unwrap();
        assert_eq!(wanted.what.data.len(), 64, "the engine makes the rest");
        assert!(matches!(
            wanted.what.purpose,
            Purpose::SshSig { namespace, .. } if namespace == "git"
        ));
        assert_eq!(
            purpose(&key, login("ssh-ed25519"), 0),
            Ok(Purpose::SshLogin {
                host: None,
                forwarded: true
            })
        );
        let mut certificate = Vec::new();
        let kind = b"ssh-ed25519-cert-v01@openssh.com";
        kind[..].encode(&mut certificate).unwrap();
        assert_eq!(purpose(&key, certificate, 0), Ok(Purpose::SshCertificate));
        assert_eq!(purpose(&key, b"anything".to_vec(), 0), Ok(Purpose::Raw));
        assert_eq!(purpose(&key, signature[..40].to_vec(), 0), Ok(Purpose::Raw));
        assert_eq!(purpose(&key, Vec::new(), 0), Ok(Purpose::Raw));
    }

    #[test]
    fn an_rsa_key_signs_with_the_hash_of_the_flags_and_never_with_sha_1() {
        let key = rsa();
        let scheme = |flags| {
            let wanted = Wanted::of(&key, b"anything".to_vec(), flags, &Bindings::default());
            wanted.map(|wanted| wanted.what.scheme)
        };
        assert_eq!(scheme(2), Ok(Some(SignatureScheme::RsaPkcs1Sha256)));
        assert_eq!(scheme(4), Ok(Some(SignatureScheme::RsaPkcs1Sha512)));
        assert_eq!(scheme(6), Ok(Some(SignatureScheme::RsaPkcs1Sha256)));
        assert!(scheme(0).is_err() && scheme(1).is_err());
    }

    #[test]
    fn a_login_is_signed_as_it_names_it() {
        let (rsa, ed25519) = (rsa(), ed25519());
        assert!(purpose(&rsa, login("rsa-sha2-512"), 4).is_ok());
        assert!(purpose(&rsa, login("rsa-sha2-512"), 2).is_err());
        assert!(purpose(&rsa, login("ssh-rsa"), 4).is_err());
        assert!(purpose(&ed25519, login("ssh-rsa"), 0).is_err());
        // Flags are for RSA keys only.
        assert!(purpose(&ed25519, login("ssh-ed25519"), 4).is_ok());
    }
}
