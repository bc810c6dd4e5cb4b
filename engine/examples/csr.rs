//! Makes a certificate signing request (PKCS#10, RFC 2986), signed on the token: for
//! `openssl req -verify -noout` and for certificate authorities.

mod common;

use std::error::Error;
use std::str::FromStr;

use claviger_engine::Purpose;
use claviger_token::KeyUse;
use common::Stage;
use p256::ecdsa::{DerSignature, VerifyingKey};
use p256::pkcs8::DecodePublicKey;
use signature::{Keypair, Signer};
use spki::{AlgorithmIdentifierOwned, DynSignatureAlgorithmIdentifier};
use x509_cert::builder::{Builder, RequestBuilder};
use x509_cert::der::EncodePem;
use x509_cert::der::pem::LineEnding;
use x509_cert::name::Name;

fn main() -> Result<(), Box<dyn Error>> {
    let stage = Stage::set()?;
    let public_key = stage.public_key(KeyUse::Sign)?;
    let key = OnToken {
        public: VerifyingKey::from_public_key_pem(&public_key.to_text())?,
        stage: &stage,
    };
    let subject = Name::from_str("CN=alice,O=Example")?;
    let request = RequestBuilder::new(subject, &key)?.build::<DerSignature>()?;
    print!("{}", request.to_pem(LineEnding::LF)?);
    stage.end()
}

/// A key on a token, as the crates of RustCrypto want one.
struct OnToken<'a> {
    public: VerifyingKey,
    stage: &'a Stage,
}

impl Keypair for OnToken<'_> {
    type VerifyingKey = VerifyingKey;

    fn verifying_key(&self) -> VerifyingKey {
        self.public
    }
}

impl Signer<DerSignature> for OnToken<'_> {
    fn try_sign(&self, message: &[u8]) -> Result<DerSignature, signature::Error> {
        let signed = self.stage.sign(Purpose::Certificate, message.to_vec());
        let der = signed.map_err(|error| signature::Error::from_source(error.to_string()))?;
        DerSignature::try_from(&*der)
    }
}

impl DynSignatureAlgorithmIdentifier for OnToken<'_> {
    fn signature_algorithm_identifier(&self) -> spki::Result<AlgorithmIdentifierOwned> {
        self.public.signature_algorithm_identifier()
    }
}
