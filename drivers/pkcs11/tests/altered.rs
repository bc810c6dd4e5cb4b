//! Modules as others make them: SoftHSM behind a module that differs from it in one thing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use claviger_altered_module::AlteredModule;
use claviger_pkcs11::Pkcs11Driver;
use claviger_pkcs11::modules::Locations;
use claviger_tests::SoftHsm;
use claviger_token::{
    Access, Algorithm, Call, Detail, Driver, Error, Event, KeyRef, KeySpec, NewKey, Pin, PinTurn,
    PinVerdict, RefusedInProcess, RefusedPins, Signer, Token, TokenId, TokenInfo, TriesLeft,
};

const SPEC: KeySpec = KeySpec::sign(Algorithm::P256);

/// A module in front of SoftHSM that shows some of its tokens.
struct Stage {
    hsms: Vec<SoftHsm>,
    module: AlteredModule,
}

impl Stage {
    fn with(tokens: usize, lines: &[&str]) -> Self {
        let hsms: Vec<SoftHsm> = (0..tokens).map(|_| SoftHsm::new()).collect();
        let module = AlteredModule::of(SoftHsm::module().as_ref());
        let stage = Stage { hsms, module };
        stage.alter(lines);
        stage
    }

    fn new(lines: &[&str]) -> Self {
        Stage::with(1, lines)
    }

    fn alter(&self, lines: &[&str]) {
        let only: Vec<String> = (self.hsms.iter())
            .map(|hsm| format!("only {}", hsm.label()))
            .collect();
        let all: Vec<&str> = only
            .iter()
            .map(|line| &**line)
            .chain(lines.iter().copied())
            .collect();
        self.module.alter(&all);
    }

    /// With these attributes in the path, and more in the query.
    fn backend(&self, path: &str, query: &str) -> String {
        let module = self.module.path();
        format!("pkcs11:{path}?module-path={}{query}", module.display())
    }

    fn list(&self) -> Vec<TokenInfo> {
        Pkcs11Driver::new()
            .tokens(&self.backend("", ""), &Call::unlimited())
            .unwrap()
    }

    fn open(&self, access: &Access) -> Result<Arc<dyn Token>, Error> {
        open(&self.backend("", ""), access)
    }

    fn label(&self, number: usize) -> &str {
        self.hsms[number].label()
    }

    fn access(&self) -> Access {
        self.hsms[0].access()
    }

    /// A configuration of p11-kit that knows this module by a name.
    fn configured(&self, name: &str, path: &Path, more: &str) -> Locations {
        let folder = self.module.folder().join("modules");
        fs::create_dir_all(&folder).unwrap();
        let text = format!("module: {}\n{more}\n", path.display());
        fs::write(folder.join(format!("{name}.module")), text).unwrap();
        Locations {
            system_modules: folder,
            ..Locations::default()
        }
    }
}

fn open(backend: &str, access: &Access) -> Result<Arc<dyn Token>, Error> {
    Pkcs11Driver::new().open(backend, &Call::unlimited().using(access.clone()))
}

fn signer(token: &Arc<dyn Token>) -> Arc<dyn Signer> {
    let call = Call::unlimited();
    let slot = token.free_slots(&[SPEC], &[], &call).unwrap().remove(0);
    let new = NewKey {
        slot: &slot,
        spec: SPEC,
        mark: "mark",
    };
    let public_key = token.generate(&new, &call).unwrap().public_key;
    token
        .signer(&KeyRef { slot, public_key }, &Call::unlimited())
        .unwrap()
}

fn sign(signer: &Arc<dyn Signer>) -> Result<(), Error> {
    let signature = signer.sign(b"message", &Call::unlimited())?;
    signer.public_key().verify(b"message", &signature).unwrap();
    Ok(())
}

/// Notes whose PINs were sent and what became of them.
#[derive(Clone, Default)]
struct Noted(Arc<Mutex<Vec<Sent>>>);

/// To whom a PIN was sent, and what became of it.
type Sent = (TokenId, Option<PinVerdict>);

impl Noted {
    fn all(&self) -> Vec<Sent> {
        self.0.lock().unwrap().clone()
    }

    fn verdicts(&self) -> Vec<Option<PinVerdict>> {
        self.all().into_iter().map(|(_, verdict)| verdict).collect()
    }
}

impl RefusedPins for Noted {
    fn turn(&self, token: &TokenId, _: &Call) -> Result<Box<dyn PinTurn + '_>, Error> {
        self.0.lock().unwrap().push((token.clone(), None));
        Ok(Box::new(self.clone()))
    }
}

impl PinTurn for Noted {
    fn begin(&mut self, _: &Pin, _: TriesLeft) -> Result<(), Error> {
        Ok(())
    }

    fn end(self: Box<Self>, _: &Pin, verdict: PinVerdict) {
        self.0.lock().unwrap().last_mut().unwrap().1 = Some(verdict);
    }
}

fn noting(access: Access) -> (Access, Noted) {
    let noted = Noted::default();
    let access = Access {
        refused_pins: Arc::new(noted.clone()),
        ..access
    };
    (access, noted)
}

#[test]
fn a_token_with_a_clock_that_makes_no_sense_is_listed_and_works() {
    let stage = Stage::new(&["clock malformed"]);
    let labels: Vec<String> = stage.list().into_iter().map(|token| token.label).collect();
    assert_eq!(labels, [stage.label(0)]);
    sign(&signer(&stage.open(&stage.access()).unwrap())).unwrap();
}

#[test]
fn tokens_that_a_maker_gives_one_serial_go_by_their_labels() {
    let stage = Stage::with(
        2,
        &[
            "token manufacturer IBM",
            "token model Soft",
            "token serial 123",
        ],
    );
    let mut tokens = stage.list();
    tokens.sort_by_key(|token| token.label != stage.label(0));
    let former = TokenId {
        kind: "pkcs11".into(),
        manufacturer: "IBM".into(),
        serial: "123".into(),
    };
    for (token, number) in tokens.iter().zip(0..) {
        assert_eq!(token.id.serial, format!("123/{}", stage.label(number)));
        assert_eq!(token.formerly, std::slice::from_ref(&former));
    }
    // What the one refuses, the other may be sent.
    let memory = Arc::new(RefusedInProcess::default());
    let wrong = Access {
        refused_pins: memory,
        ..Access::with(claviger_token::FixedPin::new("135791"))
    };
    for token in &tokens {
        let refused = open(&token.backend, &wrong).map(drop);
        assert!(
            matches!(refused, Err(Error::PinWrong { .. })),
            "{refused:?}"
        );
        let again = open(&token.backend, &wrong).map(drop);
        assert!(
            matches!(again, Err(Error::PinRefusedBefore { .. })),
            "{again:?}"
        );
    }
}

#[test]
fn of_twins_that_nobody_foresaw_both_are_listed_and_each_is_opened_by_its_label_only() {
    let stage = Stage::with(2, &["token serial 77"]);
    let tokens = stage.list();
    assert_eq!(tokens.len(), 2);
    assert_eq!(tokens[0].id, tokens[1].id);
    let access = stage.access();
    let either = open(&stage.backend("serial=77", ""), &access).map(drop);
    let Err(Error::AmbiguousToken { candidates, .. }) = either else {
        panic!("{either:?}");
    };
    let labels = [stage.label(0), stage.label(1)];
    for label in labels {
        assert!(
            candidates
                .iter()
                .any(|c| c.contains(&format!("token={label}")))
        );
    }
    let [first, second] = labels.map(|label| {
        let backend = stage.backend(&format!("serial=77;token={label}"), "");
        let token = open(&backend, &access).unwrap();
        assert_eq!(token.info().label, label);
        token
    });
    drop(signer(&first));
    let keys = |token: &Arc<dyn Token>| token.slots(&Call::unlimited()).unwrap().len();
    assert_eq!((keys(&first), keys(&second)), (1, 0));
    // Without a login, too.
    let seen = |token: &TokenInfo| {
        let found = Pkcs11Driver::new().look(&token.backend, Detail::Slots, &Call::unlimited());
        found.unwrap().slots_of(&token.id).unwrap().len()
    };
    let is_first = |token: &&TokenInfo| token.label == labels[0];
    assert_eq!(tokens.iter().find(is_first).map(seen), Some(1));
    assert_eq!(tokens.iter().find(|t| !is_first(t)).map(seen), Some(0));
}

#[test]
fn what_c_initialize_is_to_get_comes_from_p11_kit_or_from_the_backend() {
    let argument = "configDir='sql:/db' flags=readOnly";
    let wants = format!("wants {argument}");
    let in_uri = "&x-init-reserved=configDir='sql:/db'%20flags=readOnly";

    let stage = Stage::new(&[&wants]);
    let without = Pkcs11Driver::new().tokens(&stage.backend("", ""), &Call::unlimited());
    assert!(
        matches!(&without, Err(Error::BadModule { reason, .. }) if reason.contains("ARGUMENTS_BAD")),
        "{without:?}"
    );
    let tokens = Pkcs11Driver::new()
        .tokens(&stage.backend("", in_uri), &Call::unlimited())
        .unwrap();
    // The backend that is remembered says it again.
    assert!(tokens[0].backend.contains("x-init-reserved="), "{tokens:?}");
    sign(&signer(&open(&tokens[0].backend, &stage.access()).unwrap())).unwrap();
    // A process has one instance of it, and that has its argument.
    let other = stage.backend("", "&x-init-reserved=other");
    let other = Pkcs11Driver::new().tokens(&other, &Call::unlimited());
    assert!(matches!(other, Err(Error::BadModule { .. })), "{other:?}");

    let stage = Stage::new(&[&wants]);
    let more = format!("x-init-reserved: {argument}");
    let places = stage.configured("nss", &stage.module.path(), &more);
    let driver = Pkcs11Driver::with_locations(places);
    let listed = driver
        .look("pkcs11:", Detail::Tokens, &Call::unlimited())
        .unwrap();
    assert_eq!(listed.tokens.len(), 1, "{listed:?}");
    assert!(listed.tokens[0].info.backend.ends_with("?module-name=nss"));
    // Also where the module is named by its file.
    assert_eq!(
        driver
            .tokens(&stage.backend("", ""), &Call::unlimited())
            .unwrap()
            .len(),
        1
    );
    // Who wants the same module with another argument is told that this cannot be.
    stage.configured("other", &stage.module.path(), "x-init-reserved: other");
    let listed = driver
        .look("pkcs11:", Detail::Tokens, &Call::unlimited())
        .unwrap();
    assert_eq!(
        (listed.tokens.len(), listed.unreadable.len()),
        (1, 1),
        "{listed:?}"
    );
}

#[test]
fn a_module_without_locks_is_called_by_one_thread_at_a_time() {
    let stage = Stage::new(&["cannot lock"]);
    let token = stage.open(&stage.access()).unwrap();
    let signer = signer(&token);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    sign(&signer).unwrap();
                    stage.list();
                }
            });
        }
    });
    assert!(stage.module.calls("C_Sign") >= 160);
    assert!(!stage.module.overlapped());
}

#[test]
fn a_module_with_locks_is_called_by_several_threads_at_a_time() {
    let stage = Stage::new(&[]);
    let token = stage.open(&stage.access()).unwrap();
    let signer = signer(&token);
    let give_up = Instant::now() + Duration::from_secs(20);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !stage.module.overlapped() && Instant::now() < give_up {
                    sign(&signer).unwrap();
                }
            });
        }
    });
    assert!(stage.module.overlapped());
}

#[test]
fn a_token_that_does_not_say_what_it_offers_is_not_available() {
    let stage = Stage::new(&["answer C_GetMechanismList 0x5"]);
    let listed = Pkcs11Driver::new()
        .look(&stage.backend("", ""), Detail::Tokens, &Call::unlimited())
        .unwrap();
    assert!(listed.tokens.is_empty(), "{listed:?}");
    let [unreadable] = &listed.unreadable[..] else {
        panic!("{listed:?}");
    };
    assert!(unreadable.place.contains(stage.label(0)));
    let reason = unreadable.error.to_string();
    assert!(
        reason.contains("C_GetMechanismList: CKR_GENERAL_ERROR"),
        "{reason}"
    );
    let opened = stage.open(&stage.access()).map(drop);
    assert!(
        matches!(opened, Err(Error::TokenUnavailable { .. })),
        "{opened:?}"
    );
    assert_eq!(stage.module.calls("C_Login"), 0);
    stage.alter(&[]);
    assert_eq!(stage.list().len(), 1);
}

#[test]
fn what_cannot_be_read_is_listed_with_the_reason() {
    let stage = Stage::new(&["answer C_GetTokenInfo 0x5"]);
    let path = stage.module.path();
    let places = stage.configured("a", &path, "");
    stage.configured("b", Path::new("/nonexistent.so"), "");
    let driver = Pkcs11Driver::with_locations(places);
    let listed = driver
        .look("pkcs11:", Detail::Tokens, &Call::unlimited())
        .unwrap();
    assert!(listed.tokens.is_empty());
    let of = |place: &str| {
        let found = listed.unreadable.iter().find(|u| u.place.contains(place));
        found
            .unwrap_or_else(|| panic!("{listed:?}"))
            .error
            .to_string()
    };
    let slot = of("slot ");
    assert!(slot.contains("C_GetTokenInfo: CKR_GENERAL_ERROR"), "{slot}");
    assert!(slot.contains(&path.display().to_string()), "{slot}");
    assert!(of("/nonexistent.so").contains("No such file"));

    stage.alter(&["answer C_GetSlotList 0x7"]);
    let listed = driver
        .look("pkcs11:", Detail::Tokens, &Call::unlimited())
        .unwrap();
    let reasons: Vec<String> = listed
        .unreadable
        .iter()
        .map(|u| u.error.to_string())
        .collect();
    assert!(
        reasons
            .iter()
            .any(|r| r.contains("C_GetSlotList: CKR_ARGUMENTS_BAD")),
        "{reasons:?}"
    );
    // Whoever names the module wants it to work.
    let named = driver.look(&stage.backend("", ""), Detail::Tokens, &Call::unlimited());
    assert!(matches!(named, Err(Error::BadModule { .. })), "{named:?}");
}

/// A link that leads to another module when the system is brought up to date.
fn link(stage: &Stage, version: &str) -> PathBuf {
    let file = stage.module.folder().join(format!("lib.so.{version}"));
    fs::copy(stage.module.path(), &file).unwrap();
    let link = stage.module.folder().join("lib.so");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&file, &link).unwrap();
    link
}

#[test]
fn a_module_is_remembered_as_it_is_named_and_not_by_what_the_name_leads_to() {
    let stage = Stage::new(&[]);
    let path = link(&stage, "1.0");
    let backend = format!("pkcs11:?module-path={}", path.display());
    let named = Pkcs11Driver::new()
        .tokens(&backend, &Call::unlimited())
        .unwrap()
        .remove(0)
        .backend;
    assert!(
        named.ends_with(&format!("module-path={}", path.display())),
        "{named}"
    );
    drop(open(&named, &stage.access()).unwrap());
    fs::remove_file(stage.module.folder().join("lib.so.1.0")).unwrap();
    assert_eq!(link(&stage, "1.1"), path);
    sign(&signer(&open(&named, &stage.access()).unwrap())).unwrap();
}

#[test]
fn a_module_of_p11_kit_is_remembered_by_its_name_there() {
    let stage = Stage::new(&[]);
    let places = stage.configured("mine", &link(&stage, "1.0"), "");
    let driver = Pkcs11Driver::with_locations(places);
    let named = driver
        .tokens("pkcs11:", &Call::unlimited())
        .unwrap()
        .remove(0)
        .backend;
    assert!(named.ends_with("?module-name=mine"), "{named}");
    stage.configured("mine", &stage.module.path(), "");
    let opened = driver.open(&named, &Call::unlimited().using(stage.access()));
    sign(&signer(&opened.unwrap())).unwrap();
}

#[test]
fn a_token_with_a_serial_is_found_in_whatever_module_has_it() {
    let stage = Stage::new(&[]);
    let places = stage.configured("mine", &stage.module.path(), "");
    let driver = Pkcs11Driver::with_locations(places);
    let serial = stage.list().remove(0).id.serial;
    let call = Call::unlimited();
    let gone = |token: &str| {
        let backend = format!("pkcs11:{token}?module-path=/nonexistent.so");
        driver.open(&backend, &call.clone().using(stage.access()))
    };
    let whole = format!(
        "manufacturer=SoftHSM%20project;serial={serial};token={}",
        stage.label(0)
    );
    assert_eq!(gone(&whole).unwrap().info().label, stage.label(0));
    // A label is no serial.
    let by_label = gone(&format!("token={}", stage.label(0))).map(drop);
    assert!(
        matches!(by_label, Err(Error::BadModule { .. })),
        "{by_label:?}"
    );
}

#[test]
fn what_is_behind_a_module_may_be_restarted_under_a_running_process() {
    let stage = Stage::new(&[]);
    let token = stage.open(&stage.access()).unwrap();
    let signer = signer(&token);
    sign(&signer).unwrap();
    for _ in 0..2 {
        stage.alter(&["dead"]);
        let dead = sign(&signer);
        assert!(
            matches!(dead, Err(Error::TokenUnavailable { .. })),
            "{dead:?}"
        );
        stage.alter(&[]);
        sign(&signer).unwrap();
    }
    // Also where nobody has a token of it open.
    drop((signer, token));
    stage.alter(&["dead"]);
    let listed =
        Pkcs11Driver::new().look(&stage.backend("", ""), Detail::Tokens, &Call::unlimited());
    assert!(listed.is_err(), "{listed:?}");
    stage.alter(&[]);
    // Who only looks around does so at his leisure.
    let give_up = Instant::now() + Duration::from_secs(10);
    while Pkcs11Driver::new()
        .tokens(&stage.backend("", ""), &Call::unlimited())
        .is_err()
    {
        assert!(Instant::now() < give_up);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(stage.list().len(), 1);
}

#[test]
fn that_the_pin_is_locked_is_no_verdict_on_the_pin_that_was_sent() {
    let stage = Stage::new(&["answer C_Login 0xa4"]);
    let (access, noted) = noting(stage.access());
    let locked = stage.open(&access).map(drop);
    assert!(matches!(locked, Err(Error::PinLocked { .. })), "{locked:?}");
    assert_eq!(noted.verdicts(), [Some(PinVerdict::NotJudged)]);
    stage.alter(&[]);
    stage.open(&access).unwrap();
    assert_eq!(noted.verdicts()[1..], [Some(PinVerdict::Accepted)]);
}

#[test]
fn a_token_without_a_pin_says_so() {
    let stage = Stage::new(&["answer C_Login 0x102"]);
    let (access, noted) = noting(stage.access());
    let unset = stage.open(&access).map(drop).unwrap_err();
    assert!(matches!(unset, Error::PinNotSet { .. }), "{unset:?}");
    assert_eq!(noted.verdicts(), [Some(PinVerdict::NotJudged)]);
}

#[test]
fn a_pin_of_another_length_than_stated_is_sent_where_that_is_asked_for_only() {
    let stage = Stage::new(&["token pin 20 30"]);
    let (access, noted) = noting(stage.access());
    let refused = stage.open(&access).map(drop).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::PinLength {
                min: 20,
                max: 30,
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(noted.verdicts(), []);
    let access = Access {
        any_pin_length: true,
        ..access
    };
    let token = stage.open(&access).unwrap();
    assert_eq!(noted.verdicts(), [Some(PinVerdict::Accepted)]);
    // The session that is lost is found again with the same PIN.
    let signer = signer(&token);
    stage.alter(&["token pin 20 30", "dead"]);
    sign(&signer).unwrap_err();
    stage.alter(&["token pin 20 30"]);
    sign(&signer).unwrap();
}

#[test]
fn what_does_not_change_is_asked_once_and_what_a_login_needs_each_time() {
    let stage = Stage::with(3, &[]);
    let driver = Pkcs11Driver::new();
    // As `claviger tokens` does it: one look at three.
    let backend = stage.backend("", "");
    let listed = driver.look(&backend, Detail::Slots, &Call::unlimited());
    for token in listed.unwrap().tokens {
        assert_eq!(token.slots.unwrap(), []);
    }
    let tokens = stage.list();
    let calls = |function| stage.module.calls(function);
    let mechanisms = calls("C_GetMechanismInfo");
    assert!((3..=3 * 16).contains(&mechanisms), "{mechanisms}");
    // Once for its length, and once for itself.
    assert_eq!(calls("C_GetMechanismList"), 3 * 2);
    assert_eq!(calls("C_GetTokenInfo"), 3 + 3);
    let opened = open(&tokens[0].backend, &stage.access()).unwrap();
    open(&tokens[0].backend, &stage.access()).unwrap();
    assert_eq!(calls("C_GetMechanismList"), 3 * 2);
    assert_eq!(calls("C_GetMechanismInfo"), mechanisms);
    // Two more looks, and once more in the turn of the PIN.
    assert_eq!(calls("C_GetTokenInfo"), 3 + 3 + 2 * 3 + 1);
    drop(opened);
}

#[test]
fn a_module_that_fails_is_asked_slower_and_slower_but_by_who_wants_it_at_once() {
    let failures = [
        ("C_Initialize", "answer C_Initialize 0x5"),
        ("C_Finalize", "answer C_GetSlotList 0x30"),
    ];
    for (function, line) in failures {
        let stage = Stage::new(&[line]);
        let places = stage.configured("bad", &stage.module.path(), "");
        let driver = Pkcs11Driver::with_locations(places);
        let asked = || stage.module.calls(function);
        let until = |seconds: f64| {
            let end = Instant::now() + Duration::from_secs_f64(seconds);
            while Instant::now() < end {
                let listed = driver
                    .look("pkcs11:", Detail::Tokens, &Call::unlimited())
                    .unwrap();
                assert_eq!(listed.unreadable.len(), 1);
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        until(0.3);
        assert_eq!(asked(), 1, "{function}");
        until(3.0);
        // After half a second, another one, and two more.
        assert_eq!(asked(), 3, "{function}");
        let wanted = stage.open(&stage.access()).map(drop);
        assert!(matches!(wanted, Err(Error::BadModule { .. })), "{wanted:?}");
        assert_eq!(asked(), 4, "{function}");
        stage.alter(&[]);
        stage.open(&stage.access()).unwrap();
        assert_eq!(
            driver.tokens("pkcs11:", &Call::unlimited()).unwrap().len(),
            1
        );
    }
}

#[test]
fn the_pin_of_a_card_that_another_driver_reaches_too_is_remembered_under_one_name() {
    let stage = Stage::new(&[
        "token manufacturer Yubico (www.yubico.com)",
        "token model YubiKey YK5",
        "token serial 12345678",
    ]);
    let (access, noted) = noting(stage.access());
    stage.open(&access).unwrap();
    let (token, _) = noted.all().remove(0);
    assert_eq!(token.to_string(), "piv:Yubico/12345678");
}

#[test]
fn a_token_that_is_just_away_is_looked_for_again_also_by_its_label() {
    type Look = fn(&Stage, &str) -> bool;
    let looks: [Look; 2] = [
        |stage, backend| open(backend, &stage.access()).is_ok(),
        |_, backend| {
            Pkcs11Driver::new()
                .tokens(backend, &Call::unlimited())
                .unwrap()
                .len()
                == 1
        },
    ];
    for look in looks {
        let stage = Stage::new(&[]);
        stage.module.alter(&["only nobody"]);
        let is_found = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(60));
                stage.alter(&[]);
            });
            look(
                &stage,
                &stage.backend(&format!("token={}", stage.label(0)), ""),
            )
        });
        assert!(is_found);
    }
}

#[test]
fn tokens_are_known_by_what_they_say_behind_any_library() {
    let stage = Stage::new(&["library PKCS#11 Kit"]);
    let behind = stage.list().remove(0);
    stage.alter(&[]);
    let direct = Stage::new(&[]).list().remove(0);
    assert_eq!(behind.makes, direct.makes);
    assert!(behind.makes.contains(&KeySpec::sign(Algorithm::Secp256k1)));
}

#[test]
fn a_token_that_is_gone_for_good_is_looked_for_slower_and_slower() {
    let stage = Stage::with(2, &[]);
    assert_eq!(stage.list().len(), 2);
    let stays = stage.label(0).to_owned();
    stage.module.alter(&[&*format!("only {stays}")]);
    stage.module.forget_calls();
    for _ in 0..10 {
        let there: Vec<String> = stage.list().into_iter().map(|token| token.label).collect();
        assert_eq!(there, [&*stays]);
    }
    let anew = stage.module.calls("C_Initialize");
    assert!((1..=2).contains(&anew), "{anew}");
    // Another one that goes away is looked for at once.
    stage.module.alter(&["only nobody"]);
    stage.module.forget_calls();
    assert_eq!(stage.list().len(), 0);
    assert_eq!(stage.module.calls("C_Initialize"), 1);
    stage.alter(&[]);
    assert_eq!(stage.list().len(), 2);
}

#[test]
fn a_token_that_vanishes_while_it_is_read_is_not_another_token() {
    let stage = Stage::new(&["token vanishes"]);
    assert_eq!(stage.list(), []);
}

#[test]
fn who_opens_a_token_with_a_pin_pad_is_told_that_it_waits_and_when_it_goes_on() {
    // CKF_PROTECTED_AUTHENTICATION_PATH
    let pad = "token set 0x100";
    let stage = Stage::new(&[pad, "wait C_Login"]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&told);
    let call = Call::unlimited().watched_by(Arc::new(move |event| {
        listener.lock().unwrap().push(event.clone());
    }));
    let token = stage.list().remove(0).id;
    let backend = stage.backend("", "");
    let opening = std::thread::spawn(move || Pkcs11Driver::new().open(&backend, &call));
    let waits = Event::ApprovalNeeded {
        token: token.clone(),
    };
    let begun = Instant::now();
    while *told.lock().unwrap() != [waits.clone()] {
        assert!(begun.elapsed() < Duration::from_secs(20), "{told:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!opening.is_finished());
    // Somebody types the PIN.
    stage.alter(&[pad, "answer C_Login 0x0"]);
    opening.join().unwrap().unwrap();
    assert_eq!(*told.lock().unwrap(), [waits, Event::PersonDone { token }]);
}
