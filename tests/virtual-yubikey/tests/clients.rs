//! Other people's clients on the virtual YubiKey, through pcscd: Yubico's ykman and
//! ykcs11, and OpenSC. What they make of it has to be what they make of a real one.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests and what they share"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use claviger_piv::PivDriver;
use claviger_piv::reader::PcscReaders;
use claviger_pkcs11::Pkcs11Driver;
use claviger_token::sync::lock;
use claviger_token::{
    Access, Algorithm as KeyAlgorithm, Call, Detail, Driver as _, Error, FixedPin, KeyRef, KeySpec,
    NewKey, PublicKey, RefusedInProcess, SlotState, unfinished_mark,
};
use claviger_virtual_yubikey::{
    Algorithm, Builder, Card, Firmware, Inserted, ManagementAlgorithm, Pcscd, PrivateKey, ROOT,
    Slot, object,
};
use common::OpenSsl;

const PIN: &str = "246802";
const MANAGEMENT_KEY: &str = "0f0e0d0c0b0a090807060504030201000f0e0d0c0b0a0908";

fn yubikey(firmware: Firmware) -> Builder {
    let algorithm = firmware.management[0];
    Card::builder()
        .firmware(firmware)
        .pin(PIN)
        .management_key(algorithm, &common::hex(MANAGEMENT_KEY))
}

/// One test at a time. These clients open, and select, every card that there is, and so
/// end each other's sessions.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    lock(&ALONE)
}

/// Runs a program that uses PC/SC; the answer is what it printed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let (variable, socket) = Pcscd::environment();
    let output = command
        .env(variable, socket)
        .output()
        .unwrap_or_else(|error| {
            panic!("{command:?}: {error}: run `cargo xtask setup`");
        });
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

// --- ykman -------------------------------------------------------------------------

/// ykman, as `cargo xtask setup` installs it into the target folder.
fn ykman() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers");
    let folder = target.join("ykman");
    assert!(
        folder.join("installed").exists(),
        "{} is not installed: run `cargo xtask setup`",
        folder.display()
    );
    folder.join("bin/ykman")
}

#[track_caller]
fn run_ykman(yubikey: &Inserted, arguments: &[&str]) -> String {
    let mut command = Command::new(ykman());
    // Where it cannot open a card it kills other people's scdaemon with a program that it
    // looks for here.
    command.env("PATH", "");
    run(command
        .args(["--reader", yubikey.reader(), "piv"])
        .args(arguments))
}

/// Whether ykman, which comes from the network, is not to be asked. Says so.
fn quick(test: &str) -> bool {
    let quick = std::env::var_os("CLAVIGER_TEST_QUICK").is_some_and(|value| value == "1");
    if quick {
        eprintln!("SKIPPED {test}: CLAVIGER_TEST_QUICK is 1, and it takes ykman from PyPI");
    }
    quick
}

#[test]
fn ykman_reports_makes_attests_moves_deletes_and_resets() {
    if quick("ykman_reports_makes_attests_moves_deletes_and_resets") {
        return;
    }
    let _alone = alone();
    let openssl = OpenSsl::new();
    let path = openssl.file("public", &[]);
    let file = path.to_str().unwrap();
    let yubikey = Pcscd::insert(yubikey(Firmware::V5_7_1).build());
    let ykman = |arguments: &[&str]| run_ykman(&yubikey, arguments);

    let info = ykman(&["info"]);
    assert!(info.contains("5.7.1"), "{info}");
    assert!(info.contains("AES192"), "{info}");
    for (slot, algorithm, name) in [
        ("9a", "ECCP256", "AUTHENTICATION"),
        ("9c", "ECCP384", "SIGNATURE"),
        ("82", "ED25519", "RETIRED1"),
    ] {
        let manage = ["-m", MANAGEMENT_KEY];
        ykman(
            &[
                &["keys", "generate"],
                &manage[..],
                &["-a", algorithm, slot, file],
            ]
            .concat(),
        );
        // This signs, and so shows that the signature fits the key.
        let sign = ["-P", PIN, "-s", "CN=test", slot, file];
        ykman(&[&["certificates", "generate"], &manage[..], &sign].concat());
        let info = ykman(&["info"]);
        assert!(info.contains(&format!("({name})")), "{info}");
        let id = object::certificate(Slot::new(u8::from_str_radix(slot, 16).unwrap()).unwrap());
        let stored = yubikey.card().object(id).unwrap().to_vec();
        openssl.file("certificate", common::value(&stored, &[0x70]));
        openssl
            .run("x509 -inform DER -in certificate -out pem")
            .unwrap();
        openssl.run("verify -check_ss_sig -CAfile pem pem").unwrap();

        let attestation = ykman(&["keys", "attest", slot, "-"]);
        openssl.file("statement", attestation.as_bytes());
        let card = yubikey.card();
        openssl.pem("root", "CERTIFICATE", card.root_certificate());
        openssl.pem("f9", "CERTIFICATE", card.attestation_certificate().unwrap());
        openssl
            .run("verify -CAfile root -untrusted f9 statement")
            .unwrap();
    }
    ykman(&["keys", "move", "-m", MANAGEMENT_KEY, "9a", "95"]);
    assert!(yubikey.card().key(Slot::AUTHENTICATION).is_none());
    ykman(&["keys", "delete", "-m", MANAGEMENT_KEY, "95"]);
    assert_eq!(yubikey.card().occupied().len(), 3);
    ykman(&["access", "change-pin", "-P", PIN, "-n", "864202"]);
    let protect = [
        "access",
        "change-management-key",
        "-a",
        "AES256",
        "-m",
        MANAGEMENT_KEY,
    ];
    ykman(&[&protect[..], &["-P", "864202", "--generate", "--protect"]].concat());
    assert_eq!(
        yubikey.card().management_key().algorithm(),
        ManagementAlgorithm::Aes256
    );
    assert!(yubikey.card().object(object::PRINTED).is_some());
    ykman(&["reset", "--force"]);
    assert_eq!(yubikey.card().occupied(), [Slot::ATTESTATION]);
}

#[test]
fn ykman_knows_an_old_firmware_and_does_with_it() {
    if quick("ykman_knows_an_old_firmware_and_does_with_it") {
        return;
    }
    let _alone = alone();
    let yubikey = Pcscd::insert(yubikey(Firmware::V4_3_5).build());
    let info = run_ykman(&yubikey, &["info"]);
    assert!(info.contains("4.3.5"), "{info}");
    let manage = ["-m", MANAGEMENT_KEY, "-a", "ECCP256", "9a", "-"];
    let public = run_ykman(&yubikey, &[&["keys", "generate"], &manage[..]].concat());
    assert!(public.contains("BEGIN PUBLIC KEY"), "{public}");
    assert_eq!(
        yubikey
            .card()
            .key(Slot::AUTHENTICATION)
            .unwrap()
            .algorithm(),
        Algorithm::P256
    );
}

// --- PKCS#11 modules ---------------------------------------------------------------

/// Where Debian puts a module, for whatever machine.
fn module(name: &str) -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten();
    let found = folders
        .map(|folder| folder.path().join(name))
        .find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not installed: run `cargo xtask setup`"))
}

/// The number of the slot that pkcs11-tool shows for a reader.
fn slot_number(module: &Path, yubikey: &Inserted) -> String {
    let slots = run(Command::new("pkcs11-tool")
        .arg("--module")
        .arg(module)
        .arg("-L"));
    let line = slots.lines().find(|line| line.contains(yubikey.reader()));
    let number = line.and_then(|line| line.split(['(', ')']).nth(1));
    number.unwrap_or_else(|| panic!("{slots}")).to_owned()
}

#[test]
fn ykcs11_makes_keys_and_signs_with_them() {
    let _alone = alone();
    let module = module("libykcs11.so.2");
    let yubikey = Pcscd::insert(yubikey(Firmware::V5_4_3).serial(7_654_321).build());
    let slot = slot_number(&module, &yubikey);
    let tool = |arguments: &str| {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(&module).args(["--slot", &slot]);
        run(command.args(arguments.split(' ')))
    };
    let slots = run(Command::new("pkcs11-tool")
        .arg("--module")
        .arg(&module)
        .arg("-L"));
    assert!(slots.contains("7654321"), "{slots}");

    let openssl = OpenSsl::new();
    let signature = openssl.file("signature", &[]);
    let signature = signature.to_str().unwrap();
    let input = openssl.file("input", &[0x42; 32]);
    let input = input.to_str().unwrap();
    for (id, kind, options, check) in [
        (
            1,
            "RSA:2048",
            "-m SHA256-RSA-PKCS",
            "dgst -sha256 -verify public -keyform DER -signature signature input",
        ),
        (
            2,
            "EC:secp256r1",
            "-m ECDSA --signature-format openssl",
            "pkeyutl -verify -pubin -inkey public -keyform DER -in input -sigfile signature",
        ),
        (
            3,
            "EC:secp384r1",
            "-m ECDSA --signature-format openssl",
            "pkeyutl -verify -pubin -inkey public -keyform DER -in input -sigfile signature",
        ),
    ] {
        tool(&format!(
            "--login --login-type so --so-pin {MANAGEMENT_KEY} --keypairgen --id {id} --key-type {kind}"
        ));
        let slot = [Slot::AUTHENTICATION, Slot::SIGNATURE, Slot::KEY_MANAGEMENT][id - 1];
        openssl.file("public", &yubikey.card().key(slot).unwrap().spki());
        tool(&format!(
            "--login --pin {PIN} --sign --id {id} {options} -i {input} -o {signature}"
        ));
        openssl.run(check).unwrap();
    }
}

#[test]
fn opensc_sees_a_piv_card_and_signs_with_it() {
    if quick("opensc_sees_a_piv_card_and_signs_with_it") {
        return;
    }
    let _alone = alone();
    let module = module("opensc-pkcs11.so");
    let openssl = OpenSsl::new();
    let path = openssl.file("public", &[]);
    let file = path.to_str().unwrap();
    let yubikey = Pcscd::insert(yubikey(Firmware::V5_7_1).build());
    // OpenSC shows keys that have certificates.
    for slot in ["9a", "9c"] {
        let manage = ["-m", MANAGEMENT_KEY];
        let generate = ["-a", "ECCP256", slot, file];
        run_ykman(
            &yubikey,
            &[&["keys", "generate"], &manage[..], &generate].concat(),
        );
        let sign = ["-P", PIN, "-s", "CN=test", slot, file];
        run_ykman(
            &yubikey,
            &[&["certificates", "generate"], &manage[..], &sign].concat(),
        );
    }
    let slot = slot_number(&module, &yubikey);
    let tool = |arguments: &str| {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(&module).args(["--slot", &slot]);
        run(command.args(arguments.split(' ')))
    };
    let signature = openssl.file("signature", &[]);
    let input = openssl.file("input", &[0x42; 32]);
    let (signature, input) = (signature.to_str().unwrap(), input.to_str().unwrap());
    // 2 is 9C, which wants the PIN just before each use.
    for (id, slot) in [(1, Slot::AUTHENTICATION), (2, Slot::SIGNATURE)] {
        let options = "-m ECDSA --signature-format openssl";
        tool(&format!(
            "--login --pin {PIN} --sign --id 0{id} {options} -i {input} -o {signature}"
        ));
        openssl.file("spki", &yubikey.card().key(slot).unwrap().spki());
        openssl
            .run("pkeyutl -verify -pubin -inkey spki -keyform DER -in input -sigfile signature")
            .unwrap();
    }
}

// --- What Claviger makes -----------------------------------------------------------

/// A key that Claviger's PIV driver makes. The card is let go of.
fn made_by_claviger(yubikey: &Inserted, spec: KeySpec) -> (String, PublicKey) {
    let access = Access {
        management_keys: std::sync::Arc::new(FixedPin::new(MANAGEMENT_KEY)),
        ..Access::with(FixedPin::new(PIN))
    };
    let driver = driver();
    let backend = format!("piv:serial={}", yubikey.card().serial());
    let call = Call::unlimited().using(access);
    let token = driver.open(&backend, &call).unwrap();
    let slot = token.free_slots(&[spec], &[], &call).unwrap().remove(0);
    let new = NewKey {
        slot: &slot,
        spec,
        mark: &unfinished_mark(),
    };
    let public_key = token.generate(&new, &call).unwrap().public_key;
    let key = KeyRef { slot, public_key };
    token.name(&key, "of Claviger", &call).unwrap();
    (key.slot.name().to_owned(), key.public_key)
}

fn driver() -> PivDriver {
    PivDriver::with_readers_and_roots(PcscReaders, ROOT).unwrap()
}

#[test]
fn ykman_sees_the_keys_that_claviger_makes() {
    if quick("ykman_sees_the_keys_that_claviger_makes") {
        return;
    }
    let _alone = alone();
    let openssl = OpenSsl::new();
    let yubikey = Pcscd::insert(yubikey(Firmware::V5_7_1).serial(7_654_322).build());
    for (spec, name) in [
        (KeySpec::sign(KeyAlgorithm::P256), "ECCP256"),
        (KeySpec::sign(KeyAlgorithm::Ed25519), "ED25519"),
        (KeySpec::decrypt(KeyAlgorithm::X25519), "X25519"),
    ] {
        let (slot, key) = made_by_claviger(&yubikey, spec);
        let info = run_ykman(&yubikey, &["keys", "info", &slot]);
        assert!(info.to_lowercase().contains(&slot), "{info}");
        assert!(info.contains(name) && info.contains("GENERATED"), "{info}");
        let exported = run_ykman(&yubikey, &["keys", "export", &slot, "-"]);
        openssl.file("key", exported.as_bytes());
        let spki = openssl.run("pkey -pubin -in key -outform DER").unwrap();
        assert_eq!(key.to_der().unwrap(), spki);
        let info = run_ykman(&yubikey, &["info"]);
        assert!(info.contains("of Claviger"), "{info}");
    }
}

#[test]
fn ykcs11_under_claviger_has_the_keys_that_claviger_makes() {
    let _alone = alone();
    let module = module("libykcs11.so.2");
    let yubikey = Pcscd::insert(yubikey(Firmware::V5_4_3).serial(7_654_323).build());
    let (_, key) = made_by_claviger(&yubikey, KeySpec::sign(KeyAlgorithm::P256));
    let (variable, socket) = Pcscd::environment();
    assert_eq!(std::env::var_os(variable).unwrap(), socket);

    let driver = Pkcs11Driver::new();
    let backend = format!("pkcs11:serial=7654323?module-path={}", module.display());
    let listed = driver.look(&backend, Detail::Slots, &Call::unlimited());
    let mut tokens = listed.unwrap().tokens;
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    let slots = tokens.remove(0).slots.unwrap();
    let fingerprint = key.fingerprint().to_string();
    let slot = slots
        .iter()
        .find(|slot| slot.fingerprint.as_ref() == Some(&fingerprint))
        .unwrap_or_else(|| panic!("{slots:?}"));
    assert_eq!(slot.public_key.as_ref(), Some(&key));

    let access = Access::with(FixedPin::new(PIN));
    let token = driver
        .open(&backend, &Call::unlimited().using(access))
        .unwrap();
    let signer = token.signer(&slot.key_ref().unwrap(), &Call::unlimited());
    let signature = signer.unwrap().sign(b"message", &Call::unlimited());
    key.verify(b"message", &signature.unwrap()).unwrap();
}

#[test]
fn a_pin_that_the_card_refused_is_not_sent_to_it_through_ykcs11_either() {
    let _alone = alone();
    let module = module("libykcs11.so.2");
    let yubikey = Pcscd::insert(yubikey(Firmware::V5_4_3).serial(7_654_329).build());
    let backends = [
        "piv:serial=7654329".to_owned(),
        format!("pkcs11:serial=7654329?module-path={}", module.display()),
    ];
    let wrong = Access {
        refused_pins: std::sync::Arc::new(RefusedInProcess::default()),
        ..Access::with(FixedPin::new("135791"))
    };
    let call = Call::unlimited();
    let refused = PivDriver::new()
        .open(&backends[0], &call.clone().using(wrong.clone()))
        .map(drop);
    assert!(
        matches!(refused, Err(Error::PinWrong { .. })),
        "{refused:?}"
    );
    let again = Pkcs11Driver::new()
        .open(&backends[1], &call.using(wrong))
        .map(drop);
    assert!(
        matches!(again, Err(Error::PinRefusedBefore { .. })),
        "{again:?}"
    );
    assert_eq!(yubikey.card().pin_tries(), 2);
}

// --- The crate `yubikey` -----------------------------------------------------------

/// Reads one card through the driver and through the crate, and compares what both say.
#[test]
fn claviger_and_the_crate_yubikey_read_the_same_card_alike() {
    use yubikey::piv::{Key, ManagementAlgorithmId, Origin, metadata};
    use yubikey::{PinPolicy, TouchPolicy};

    let _alone = alone();
    let mut card = yubikey(Firmware::V5_4_3).serial(7_654_324);
    for (reference, algorithm) in [
        (0x9a, Algorithm::P256),
        (0x9c, Algorithm::Rsa2048),
        (0x9e, Algorithm::P384),
        (0x95, Algorithm::P256),
    ] {
        let slot = Slot::new(reference).unwrap();
        let key = PrivateKey::generate(algorithm);
        let certificate = key.certificate_object().unwrap();
        card = card
            .imported(slot, key)
            .object(object::certificate(slot), &certificate);
    }
    let card = Pcscd::insert(card.build());
    made_by_claviger(&card, KeySpec::sign(KeyAlgorithm::P256));

    let listed = driver().look("piv:serial=7654324", Detail::Slots, &Call::unlimited());
    let listed = listed.unwrap().tokens.remove(0);
    let (found, slots) = (listed.info, listed.slots.unwrap());
    let ours: Vec<_> = slots
        .iter()
        .filter(|slot| slot.state == SlotState::Occupied)
        .collect();
    assert_eq!(ours.len(), 5);

    let mut readers = yubikey::reader::Context::open().unwrap();
    let reader = readers.iter().unwrap();
    let mut reader = reader.filter(|reader| reader.name() == card.reader());
    let mut theirs = reader.next().unwrap().open().unwrap();
    let note = |notes: &[(String, String)], name: &str| {
        let mut named = notes.iter().filter(|(n, _)| n == name);
        named.next().map(|(_, value)| value.clone()).unwrap()
    };
    assert_eq!(theirs.serial().to_string(), found.id.serial);
    assert_eq!(theirs.version().to_string(), note(&found.notes, "firmware"));
    let tries = theirs.get_pin_retries().unwrap().to_string();
    assert_eq!(tries, note(&found.notes, "pin_tries"));

    let mut keys = Key::list(&mut theirs).unwrap();
    // The key that attests others is none of Claviger's business.
    keys.retain(|key| u8::from(key.slot()) != Slot::ATTESTATION.reference());
    assert_eq!(keys.len(), ours.len());
    for key in keys {
        let reference = u8::from(key.slot());
        let ours = ours
            .iter()
            .find(|slot| slot.slot.as_str() == format!("{reference:02x}"))
            .unwrap();
        let said = metadata(&mut theirs, key.slot()).unwrap();
        let spki = der(&said.public.unwrap());
        assert_eq!(ours.public_key.as_ref().unwrap().to_der().unwrap(), spki);
        let certified = key
            .certificate()
            .cert
            .tbs_certificate
            .subject_public_key_info
            .clone();
        assert_eq!(spki, der(&certified));
        let subject = key.certificate().subject();
        assert_eq!(subject, format!("CN={}", ours.label));
        let ManagementAlgorithmId::Asymmetric(algorithm) = said.algorithm else {
            panic!("{:?}", said.algorithm);
        };
        let expected = match ours.algorithm.unwrap() {
            KeyAlgorithm::P256 => "EccP256",
            KeyAlgorithm::P384 => "EccP384",
            KeyAlgorithm::Rsa2048 => "Rsa2048",
            other => panic!("{other}"),
        };
        assert_eq!(format!("{algorithm:?}"), expected);
        let pin = match note(&ours.notes, "pin_policy").as_str() {
            "never" => PinPolicy::Never,
            "once" => PinPolicy::Once,
            _ => PinPolicy::Always,
        };
        assert_eq!(said.policy, Some((pin, TouchPolicy::Never)));
        let origin = match note(&ours.notes, "origin").as_str() {
            "generated" => Origin::Generated,
            _ => Origin::Imported,
        };
        assert_eq!(said.origin, Some(origin));
    }
}

fn der(key: &spki::SubjectPublicKeyInfoOwned) -> Vec<u8> {
    spki::der::Encode::to_der(key).unwrap()
}
