//! The operations of a private key: one signature, one agreement, one decryption, each on a session
//! and with a handle.

use claviger_token::{
    Algorithm, Call, KeySpec, Secret, Signature, SignatureScheme, Unwrap, agreement,
};
use cryptoki::context::Function;
use cryptoki::error::{Error as Ck, RvError};
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use sha2::{Digest, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use crate::error::{Fault, blames_input, describe, refuses_use};
use crate::token::Pkcs11Token;

/// A private key as a session has it.
#[derive(Clone, Copy)]
pub(crate) struct KeyHandle {
    pub(crate) object: ObjectHandle,
    /// Whether it wants the PIN for each operation.
    pub(crate) always_authenticate: bool,
}

/// What is signed: a message, or one whose digest is known.
#[derive(Clone, Copy)]
pub(crate) enum Text<'a> {
    Message(&'a [u8]),
    Digest(&'a [u8]),
}

impl Text<'_> {
    fn digest<D: Digest>(self) -> Vec<u8> {
        match self {
            Text::Message(message) => D::digest(message).to_vec(),
            Text::Digest(digest) => digest.to_vec(),
        }
    }

    /// The message itself, which some mechanisms and tokens want.
    fn message(self) -> Option<Vec<u8>> {
        match self {
            Text::Message(message) => Some(message.to_vec()),
            Text::Digest(_) => None,
        }
    }
}

impl Pkcs11Token {
    /// Signs `text` with a key of `algorithm`, in this scheme or in the usual one. Whether the
    /// signature is by the right key is not looked at.
    pub(crate) fn sign_with(
        &self,
        session: &Session,
        key: KeyHandle,
        (algorithm, scheme): (Algorithm, Option<SignatureScheme>),
        text: Text<'_>,
        call: &Call,
    ) -> Result<Signature, Fault> {
        let scheme = scheme.or(SignatureScheme::of(algorithm));
        let signed = self.sign_at_once(session, key, (algorithm, scheme), text, call);
        signed.map_err(|fault| self.name_refusal(fault, KeySpec::sign(algorithm)))
    }

    /// A key that does not show what it is for may say so only when it is used.
    fn name_refusal(&self, fault: Fault, spec: KeySpec) -> Fault {
        match fault {
            Fault::Module(error) if refuses_use(&error) => {
                Fault::Ours(self.not_usable(spec, &describe(&error)))
            }
            other => other,
        }
    }

    fn sign_at_once(
        &self,
        session: &Session,
        key: KeyHandle,
        (algorithm, scheme): (Algorithm, Option<SignatureScheme>),
        text: Text<'_>,
        call: &Call,
    ) -> Result<Signature, Fault> {
        let unsupported = || Fault::Ours(self.unsupported(KeySpec::sign(algorithm)));
        let scheme = scheme.ok_or_else(unsupported)?;
        let (mechanism, input) = match scheme {
            SignatureScheme::Ed25519 => {
                let pure = EddsaParams::new(EddsaSignatureScheme::Pure);
                (
                    Mechanism::Eddsa(pure),
                    text.message().ok_or_else(unsupported)?,
                )
            }
            scheme if self.hashes.contains(&algorithm) => (
                hashing(scheme).ok_or_else(unsupported)?,
                text.message().ok_or_else(unsupported)?,
            ),
            SignatureScheme::EcdsaP256Sha256 | SignatureScheme::EcdsaSecp256k1Sha256 => {
                (Mechanism::Ecdsa, text.digest::<Sha256>())
            }
            SignatureScheme::EcdsaP384Sha384 => (Mechanism::Ecdsa, text.digest::<Sha384>()),
            SignatureScheme::RsaPkcs1Sha256 => {
                let info = scheme.digest_info(&text.digest::<Sha256>());
                (Mechanism::RsaPkcs, info.ok_or_else(unsupported)?)
            }
            SignatureScheme::RsaPkcs1Sha512 => {
                let info = scheme.digest_info(&text.digest::<Sha512>());
                (Mechanism::RsaPkcs, info.ok_or_else(unsupported)?)
            }
            _ => return Err(unsupported()),
        };
        let length = signature_length(algorithm).ok_or_else(unsupported)?;
        let bytes = match self.one_call.of(&self.connection, session) {
            Some(once) => {
                session.sign_init(&mechanism, key.object)?;
                self.authenticate(session, key, call)?;
                let mut buffer = vec![0; length];
                let length = once.sign(session, &input, &mut buffer)?;
                buffer.truncate(length);
                buffer
            }
            None => {
                self.check_no_login_between(key, KeySpec::sign(algorithm))?;
                session.sign(&mechanism, key.object, &input)?
            }
        };
        let malformed = || self.malformed("C_Sign", "it is not a signature of this kind");
        Ok(finished(scheme, bytes).ok_or_else(malformed)?)
    }

    /// Performs the operation that opens something.
    pub(crate) fn unwrap_with(
        &self,
        session: &Session,
        key: KeyHandle,
        algorithm: Algorithm,
        request: Unwrap<'_>,
        call: &Call,
    ) -> Result<Secret, Fault> {
        let opened = match request {
            Unwrap::Agree { peer } => self.agree_with(session, key, peer.as_bytes()),
            Unwrap::Oaep { ciphertext, label } => {
                self.open_with(session, key, algorithm, ciphertext, label, call)
            }
        };
        opened.map_err(|fault| self.name_refusal(fault, KeySpec::decrypt(algorithm)))
    }

    /// Agrees with `peer` on 32 bytes.
    fn agree_with(&self, session: &Session, key: KeyHandle, peer: &[u8]) -> Result<Secret, Fault> {
        let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), peer));
        let derived = session.derive_key(&mechanism, key.object, &agreed_secret());
        let secret = derived.map_err(at_fault)?;
        let value = session.get_attributes(secret, &[AttributeType::Value]);
        // Of a session that fails here nothing is left: it is closed.
        session.destroy_object(secret)?;
        let value = value?.into_iter().find_map(|attribute| match attribute {
            Attribute::Value(value) => Some(Zeroizing::new(value)),
            _ => None,
        });
        let secret = value
            .filter(|secret| secret.len() == agreement::SECRET_LENGTH)
            .ok_or_else(|| {
                let reason = "the secret cannot be read or is not 32 bytes long";
                self.malformed("C_DeriveKey", reason)
            })?;
        agreement::unknown_to_others(secret).map_err(|_| Fault::Input)
    }

    /// Opens an RSAES-OAEP with SHA-256.
    fn open_with(
        &self,
        session: &Session,
        key: KeyHandle,
        algorithm: Algorithm,
        ciphertext: &[u8],
        label: &[u8],
        call: &Call,
    ) -> Result<Secret, Fault> {
        // NSS takes no other source, not even for an empty label.
        let source = PkcsOaepSource::data_specified(label);
        let oaep = PkcsOaepParams::new(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, source);
        let mechanism = Mechanism::RsaPkcsOaep(oaep);
        let opened = match self.one_call.of(&self.connection, session) {
            Some(once) => {
                session.decrypt_init(&mechanism, key.object)?;
                self.authenticate(session, key, call)?;
                let mut buffer = Zeroizing::new(vec![0; ciphertext.len()]);
                let opened = once.decrypt(session, ciphertext, &mut buffer);
                opened.map(|length| {
                    buffer.truncate(length);
                    buffer
                })
            }
            None => {
                self.check_no_login_between(key, KeySpec::decrypt(algorithm))?;
                session
                    .decrypt(&mechanism, key.object, ciphertext)
                    .map(Zeroizing::new)
            }
        };
        opened.map_err(|error| {
            // Some modules have one answer for bad padding and for a lost token.
            let vague = matches!(
                error,
                Ck::Pkcs11(
                    RvError::GeneralError | RvError::DeviceError,
                    Function::Decrypt
                )
            );
            match vague && self.connection.confirm(session).is_ok() {
                true => Fault::Input,
                false => at_fault(error),
            }
        })
    }

    /// Gives the PIN for the operation that was begun just now, where the key wants that.
    fn authenticate(&self, session: &Session, key: KeyHandle, call: &Call) -> Result<(), Fault> {
        match key.always_authenticate {
            true => self.connection.authenticate_once(session, call),
            false => Ok(()),
        }
    }

    /// Refuses a key that wants the PIN in the middle of what is one call of `cryptoki`.
    fn check_no_login_between(&self, key: KeyHandle, spec: KeySpec) -> Result<(), Fault> {
        let reason = "CKA_ALWAYS_AUTHENTICATE is true, and this module takes no PIN for a single \
                      operation";
        match key.always_authenticate {
            true => Err(Fault::Ours(self.not_usable(spec, reason))),
            false => Ok(()),
        }
    }
}

/// The mechanism that hashes what is signed.
fn hashing(scheme: SignatureScheme) -> Option<Mechanism<'static>> {
    match scheme {
        SignatureScheme::EcdsaP256Sha256 | SignatureScheme::EcdsaSecp256k1Sha256 => {
            Some(Mechanism::EcdsaSha256)
        }
        SignatureScheme::EcdsaP384Sha384 => Some(Mechanism::EcdsaSha384),
        SignatureScheme::RsaPkcs1Sha256 => Some(Mechanism::Sha256RsaPkcs),
        SignatureScheme::RsaPkcs1Sha512 => Some(Mechanism::Sha512RsaPkcs),
        _ => None,
    }
}

fn at_fault(error: Ck) -> Fault {
    match blames_input(&error) {
        true => Fault::Input,
        false => error.into(),
    }
}

/// The length of the signatures of a key, in bytes, as tokens give them.
fn signature_length(algorithm: Algorithm) -> Option<usize> {
    match algorithm {
        Algorithm::Ed25519 | Algorithm::P256 | Algorithm::Secp256k1 => Some(64),
        Algorithm::P384 => Some(96),
        rsa => rsa.rsa_bits().map(|bits| bits / 8),
    }
}

/// The signature as the scheme wants it.
fn finished(scheme: SignatureScheme, bytes: Vec<u8>) -> Option<Signature> {
    let bytes = match scheme {
        SignatureScheme::EcdsaSecp256k1Sha256 => {
            let signature = k256::ecdsa::Signature::from_slice(&bytes).ok()?;
            signature
                .normalize_s()
                .map_or(bytes, |low| low.to_bytes().to_vec())
        }
        _ => bytes,
    };
    Signature::new(scheme, bytes).ok()
}

/// The template of the secret that a key agreement gives: a session object of 32
/// bytes that can be read.
fn agreed_secret() -> [Attribute; 6] {
    [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(32.into()),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}
