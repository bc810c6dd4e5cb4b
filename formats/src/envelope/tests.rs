//! What is encrypted opens, and nothing else does.

use std::io::{self, Read, Write};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use claviger_token::key::BadPublicKey;
use claviger_token::{Algorithm, PublicKey, SlotId, Unwrap};
use rsa::traits::PublicKeyParts;
use sha2::Sha256;

use super::*;

/// A device made of a private key, to compare with the age crate's own encryption.
struct Soft {
    public: PublicKey,
    private: Private,
}

enum Private {
    P256(p256::SecretKey),
    Rsa(Box<rsa::RsaPrivateKey>),
}

impl Soft {
    fn new(seed: u8) -> Self {
        let secret = p256::SecretKey::from_slice(&[seed; 32]).unwrap();
        let point = secret.public_key().to_sec1_bytes();
        Soft {
            public: PublicKey::from_bytes(Algorithm::P256, &point).unwrap(),
            private: Private::P256(secret),
        }
    }

    fn rsa() -> Self {
        let secret = rsa::RsaPrivateKey::new(&mut OsRng, 2048).unwrap();
        let (n, e) = (secret.n().to_bytes_be(), secret.e().to_bytes_be());
        Soft {
            public: PublicKey::from_rsa(&n, &e).unwrap(),
            private: Private::Rsa(Box::new(secret)),
        }
    }
}

impl Decryptor for Soft {
    fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn slot(&self) -> SlotId {
        SlotId::new("soft")
    }

    fn confirm(&self, _: &Call) -> Result<(), Error> {
        Ok(())
    }

    fn unwrap(&self, request: Unwrap<'_>, _: &Call) -> Result<Secret, Error> {
        match (&self.private, request) {
            (Private::P256(secret), Unwrap::Agree { peer }) => {
                let peer = p256::PublicKey::from_sec1_bytes(peer.as_bytes()).unwrap();
                let secret = secret.to_nonzero_scalar();
                let shared = p256::ecdh::diffie_hellman(secret, peer.as_affine());
                Ok(Zeroizing::new(shared.raw_secret_bytes().to_vec()))
            }
            (Private::Rsa(secret), Unwrap::Oaep { ciphertext, label }) => {
                let label = std::str::from_utf8(label).unwrap();
                let opened =
                    secret.decrypt(rsa::Oaep::new_with_label::<Sha256, _>(label), ciphertext);
                opened
                    .map(Zeroizing::new)
                    .map_err(|_| Error::DecryptionFailed)
            }
            _ => Err(Error::DecryptionFailed),
        }
    }
}

fn failed(device: &Soft, file: &[u8]) -> bool {
    matches!(
        decrypt(device, file, &Call::unlimited()),
        Err(Error::DecryptionFailed)
    )
}

#[test]
fn what_the_age_crate_encrypts_to_a_tagged_recipient_opens() {
    let device = Soft::new(3);
    for length in [0, 1, 64 * 1024, 200_000] {
        let plaintext = vec![7; length];
        let file = encrypt(&[&device.public], &plaintext).unwrap();
        assert_eq!(
            *decrypt(&device, &file, &Call::unlimited()).unwrap(),
            plaintext
        );
    }
}

#[test]
fn what_the_age_crate_encrypts_to_an_ssh_rsa_key_opens() {
    let device = Soft::rsa();
    let file = encrypt(&[&device.public, &Soft::new(3).public], b"hello").unwrap();
    let opened = decrypt(&device, &file, &Call::unlimited()).unwrap();
    assert_eq!(*opened, b"hello");
    assert_eq!(
        *decrypt(&Soft::new(3), &file, &Call::unlimited()).unwrap(),
        b"hello"
    );
    let other = encrypt(&[&Soft::new(3).public], b"hello").unwrap();
    let failed = decrypt(&device, &other, &Call::unlimited());
    assert!(matches!(failed, Err(Error::DecryptionFailed)));
}

#[test]
fn every_alteration_and_every_truncation_fails_alike() {
    let device = Soft::new(3);
    let file = encrypt(&[&device.public], b"attack at dawn").unwrap();
    for end in 0..file.len() {
        assert!(failed(&device, &file[..end]), "cut at {end}");
    }
    for i in 0..file.len() {
        let mut altered = file.clone();
        altered[i] ^= 1;
        assert!(failed(&device, &altered), "altered at {i}");
    }
    assert!(failed(&Soft::new(4), &file));
    assert!(failed(&device, &[file.as_slice(), b"more"].concat()));
}

#[test]
fn an_armored_file_opens() {
    let device = Soft::new(3);
    let key = recipient(&device.public).unwrap();
    let file = age::Encryptor::with_recipients(std::iter::once(key.as_ref() as _)).unwrap();
    let mut armored =
        age::armor::ArmoredWriter::wrap_output(Vec::new(), age::armor::Format::AsciiArmor).unwrap();
    let mut writer = file.wrap_output(&mut armored).unwrap();
    writer.write_all(b"hello").unwrap();
    writer.finish().unwrap();
    let armored = armored.finish().unwrap();
    assert_eq!(
        *decrypt(&device, &armored, &Call::unlimited()).unwrap(),
        b"hello"
    );
}

#[test]
fn an_endless_armored_line_is_not_read_to_its_end() {
    let mut endless = io::repeat(b'A').take(1 << 30);
    let begin = &b"-----BEGIN AGE ENCRYPTED FILE-----\n"[..];
    let refused = Sealed::read(begin.chain(&mut endless)).err();
    assert!(matches!(refused, Some(Error::DecryptionFailed)));
    assert!(endless.limit() > (1 << 30) - (1 << 20));
}

#[test]
fn a_recipient_reads_back_and_what_is_none_does_not() {
    let x25519 = PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap();
    for key in [Soft::new(3).public, x25519] {
        let text = recipient_text(&key).unwrap();
        assert_eq!(parse_recipient(&text), Ok(key));
        assert!(parse_recipient(&text[..text.len() - 1]).is_err());
    }
    for text in [
        "",
        "age1",
        "age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t",
    ] {
        assert_eq!(parse_recipient(text), Err(BadPublicKey), "{text}");
    }
}

#[test]
fn a_file_says_for_whom_it_is_where_its_stanzas_do() {
    let x25519 = PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap();
    let fits = |keys: &[&PublicKey]| {
        let file = encrypt(keys, b"hello").unwrap();
        let file = Sealed::read(file.as_slice()).unwrap();
        [&Soft::new(3).public, &Soft::new(4).public, &x25519].map(|key| file.fits(key))
    };
    let (p256, other) = (Soft::new(3).public, Soft::new(4).public);
    assert_eq!(fits(&[&p256]), [Fit::Yes, Fit::No, Fit::No]);
    assert_eq!(fits(&[&other]), [Fit::No, Fit::Yes, Fit::No]);
    assert_eq!(fits(&[&p256, &x25519]), [Fit::Yes, Fit::No, Fit::Maybe]);
}

#[test]
fn ten_thousand_stanzas_are_no_burden_and_none_is_no_file() {
    let stanza = |share: &str| format!("-> X25519 {share}\n{}\n", "A".repeat(43));
    let share = BASE64_STANDARD_NO_PAD.encode([9u8; 32]);
    let mac = format!("--- {}\n", "A".repeat(43));
    let of = |count: usize| {
        let header = stanza(&share).repeat(count);
        format!("age-encryption.org/v1\n{header}{mac}0123456789abcdef0123456789abcdef")
    };
    let key = PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap();
    let begun = std::time::Instant::now();
    let file = of(10_000);
    let file = Sealed::read(file.as_bytes()).unwrap();
    assert_eq!(file.stanzas().0.len(), 10_000);
    assert_eq!(file.fits(&key), Fit::Maybe);
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    assert!(Sealed::read(of(1).as_bytes()).is_ok());
    let none = of(0);
    assert!(failed(&Soft::new(3), none.as_bytes()));
}

#[test]
fn a_header_without_an_end_is_refused_before_it_is_in_memory() {
    let lines = b"-> X25519 a\n".repeat(2 << 20);
    for rest in [&lines[..], &b"a".repeat(16 << 20)] {
        for armor in [false, true] {
            let file = [b"age-encryption.org/v1\n-> x ", rest].concat();
            let file = match armor {
                false => file,
                true => armored(&file),
            };
            let mut left = &file[..];
            let refused = Sealed::read(&mut left).err();
            let longest = LONGEST_HEADER;
            assert!(matches!(refused, Some(Error::HeaderTooLong { longest: l }) if l == longest));
            let read = file.len() - left.len();
            assert!(read < 2 * LONGEST_HEADER, "{read} bytes were read");
            // Of a decryption it is said as little as of any.
            assert!(failed(&Soft::new(3), &file));
        }
    }
    // What does not begin like a header is no header, however long.
    let mut zeros = io::repeat(0).take(1 << 30);
    let refused = Sealed::read(&mut zeros).err();
    assert!(matches!(refused, Some(Error::DecryptionFailed)));
    assert!(zeros.limit() > (1 << 30) - (1 << 20));
}

fn armored(file: &[u8]) -> Vec<u8> {
    let format = age::armor::Format::AsciiArmor;
    let mut armored = age::armor::ArmoredWriter::wrap_output(Vec::new(), format).unwrap();
    armored.write_all(file).unwrap();
    armored.finish().unwrap()
}

#[test]
fn a_share_that_makes_every_secret_zero_is_for_nobody() {
    let key = PublicKey::from_bytes(Algorithm::X25519, &[9; 32]).unwrap();
    let fit = |share: [u8; 32]| {
        let share = BASE64_STANDARD_NO_PAD.encode(share);
        let body = "A".repeat(43);
        let text = format!("age-encryption.org/v1\n-> X25519 {share}\n{body}\n--- {body}\n");
        let file = [text.as_bytes(), &[0; 16]].concat();
        Sealed::read(file.as_slice()).unwrap().fits(&key)
    };
    assert_eq!(fit([9; 32]), Fit::Maybe);
    assert_eq!(fit([0; 32]), Fit::No);
}

#[test]
fn keys_that_only_sign_have_no_recipient() {
    let key = k256::SecretKey::from_slice(&[1; 32]).unwrap().public_key();
    let key = PublicKey::from_bytes(Algorithm::Secp256k1, &key.to_sec1_bytes()).unwrap();
    assert!(recipient(&key).is_err());
    assert!(matches!(
        encrypt(&[&key], b""),
        Err(EncryptError::NoRecipient(_))
    ));
}
