//! A TLS 1.3 server whose key stays on a token: rustls asks for one signature for each
//! handshake. The certificate is signed by the same key.

mod common;

use std::error::Error;
use std::fmt;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use claviger_engine::Purpose;
use claviger_engine::purpose::TlsSide;
use claviger_token::KeyUse;
use common::Stage;
use p256::ecdsa::{DerSignature, VerifyingKey};
use p256::pkcs8::{DecodePublicKey, EncodePublicKey};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ResolvesServerCertUsingSni;
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    SignatureAlgorithm, SignatureScheme, StreamOwned, version,
};
use spki::{AlgorithmIdentifierOwned, DynSignatureAlgorithmIdentifier, SubjectPublicKeyInfoOwned};
use x509_cert::builder::{Builder, CertificateBuilder, Profile};
use x509_cert::der::Encode;
use x509_cert::der::asn1::Ia5String;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::Validity;

const NAME: &str = "alice.example";

fn main() -> Result<(), Box<dyn Error>> {
    let key = Arc::new(OnToken {
        stage: Stage::set()?,
    });
    let certificate = certificate(&key)?;

    let mut certificates = ResolvesServerCertUsingSni::new();
    let chain = vec![certificate.clone()];
    certificates.add(
        NAME,
        CertifiedKey::new(chain, Arc::new(Shared(key.clone()))),
    )?;
    let server = ServerConfig::builder_with_protocol_versions(&[&version::TLS13])
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates));
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    let client = ClientConfig::builder_with_protocol_versions(&[&version::TLS13])
        .with_root_certificates(roots)
        .with_no_client_auth();

    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let greeter = std::thread::spawn(move || -> std::io::Result<()> {
        let connection = ServerConnection::new(Arc::new(server)).map_err(std::io::Error::other)?;
        let mut tls = StreamOwned::new(connection, listener.accept()?.0);
        tls.write_all(b"hello from a key on a token\n")?;
        tls.conn.send_close_notify();
        tls.flush()
    });
    let connection = ClientConnection::new(Arc::new(client), ServerName::try_from(NAME)?)?;
    let mut tls = StreamOwned::new(connection, TcpStream::connect(address)?);
    let mut text = String::new();
    tls.read_to_string(&mut text)?;
    print!("{text}");
    greeter.join().map_err(|_| "the server failed")??;
    drop(tls);
    Arc::into_inner(key).map_or(Ok(()), |key| key.stage.end())
}

/// A certificate for the key, good for an hour.
fn certificate(key: &Arc<OnToken>) -> Result<CertificateDer<'static>, Box<dyn Error>> {
    let public = VerifyingKey::from_public_key_pem(&key.public()?)?;
    let subject = Name::from_str(&format!("CN={NAME}"))?;
    let spki = SubjectPublicKeyInfoOwned::try_from(public.to_public_key_der()?.as_bytes())?;
    let validity = Validity::from_now(Duration::from_secs(3600))?;
    let signer = ForCertificates { public, key };
    let profile = Profile::Manual { issuer: None };
    let number = SerialNumber::from(1_u32);
    let mut builder = CertificateBuilder::new(profile, number, validity, subject, spki, &signer)?;
    let name = GeneralName::DnsName(Ia5String::new(NAME)?);
    builder.add_extension(&SubjectAltName(vec![name]))?;
    Ok(builder.build::<DerSignature>()?.to_der()?.into())
}

/// A P-256 key on a token.
struct OnToken {
    stage: Stage,
}

impl OnToken {
    fn public(&self) -> Result<String, Box<dyn Error>> {
        Ok(self.stage.public_key(KeyUse::Sign)?.to_text())
    }
}

/// The same, as rustls wants one.
#[derive(Clone)]
struct Shared(Arc<OnToken>);

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key on a token")
    }
}

impl SigningKey for Shared {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let ours = SignatureScheme::ECDSA_NISTP256_SHA256;
        offered
            .contains(&ours)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Shared {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        // The engine puts the beginning of the message there by itself (RFC 8446 §4.4.3), so
        // that a handshake is all that can be signed like this.
        let transcript = message
            .strip_prefix([b' '; 64].as_slice())
            .and_then(|rest| rest.strip_prefix(b"TLS 1.3, server CertificateVerify\0"))
            .ok_or_else(|| rustls::Error::General("no handshake of TLS 1.3".into()))?;
        let purpose = Purpose::Tls(TlsSide::Server);
        let signed = self.0.stage.sign(purpose, transcript.to_vec());
        signed.map_err(|error| rustls::Error::General(error.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// The same, as the builder of certificates wants one.
struct ForCertificates<'a> {
    public: VerifyingKey,
    key: &'a OnToken,
}

impl signature::Keypair for ForCertificates<'_> {
    type VerifyingKey = VerifyingKey;

    fn verifying_key(&self) -> VerifyingKey {
        self.public
    }
}

impl signature::Signer<DerSignature> for ForCertificates<'_> {
    fn try_sign(&self, message: &[u8]) -> Result<DerSignature, signature::Error> {
        let signed = self.key.stage.sign(Purpose::Certificate, message.to_vec());
        let der = signed.map_err(|error| signature::Error::from_source(error.to_string()))?;
        DerSignature::try_from(&*der)
    }
}

impl DynSignatureAlgorithmIdentifier for ForCertificates<'_> {
    fn signature_algorithm_identifier(&self) -> spki::Result<AlgorithmIdentifierOwned> {
        self.public.signature_algorithm_identifier()
    }
}
