//! Every check of the conformance suite on every token that can be started.
//!
//! What cannot be shown on a token counts as ignored, and is said.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use claviger_ledger::{LONGEST_MESSAGE, LedgerDriver};
use claviger_ledger_emulator::{App, Approver, Ethereum, Server};
use claviger_memory::MemoryDriver;
use claviger_piv::{LONGEST_ED25519_MESSAGE, PivDriver};
use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::{Kryoptic, SoftHsm, Tpm};
use claviger_token::conformance::{CHECKS, Outcome, Plug, Subject};
use claviger_token::{Access, Driver, FixedPin, Protection};
use claviger_virtual_yubikey::{Card, Inserted, Pcscd};
use libtest_mimic::{Arguments, Completion, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if !arguments.list {
        SoftHsm::prepare();
        if Kryoptic::skipped().is_none() {
            Kryoptic::prepare();
        }
        // It takes a while, and cargo-nextest starts this program for each check.
        let others = |name: &String| arguments.exact && !name.starts_with("tpm");
        if Tpm::skipped().is_none() && !arguments.filter.as_ref().is_some_and(others) {
            Tpm::prepare();
        }
        Pcscd::prepare();
    }
    let mut trials = Vec::new();
    trials.extend(checks("memory", || Memory(Arc::new(MemoryDriver::new()))));
    trials.extend(checks("softhsm", Soft::default));
    match Kryoptic::skipped() {
        None => trials.extend(checks("kryoptic", Kry::default)),
        Some(why) => eprintln!("SKIPPED kryoptic: {why}"),
    }
    match Tpm::skipped() {
        None => trials.extend(checks("tpm", Tpm2::default)),
        Some(why) => eprintln!("SKIPPED tpm: {why}"),
    }
    trials.extend(checks("virtual-yubikey", YubiKey::default));
    trials.extend(checks("ledger-simulator", Simulator::default));
    match App::ethereum() {
        Ok(_) => trials.extend(checks("ledger", Speculos::default)),
        Err(why) => eprintln!("SKIPPED ledger: {why}"),
    }
    #[cfg(feature = "independent-card")]
    trials.extend(checks(
        "piv-authenticator",
        independent::Independent::default,
    ));
    #[cfg(not(feature = "independent-card"))]
    eprintln!("SKIPPED piv-authenticator: it is built with the feature independent-card only");
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Checks in which the driver initialises the module anew, to find a token that went
/// away. That ends every session of the process, the fixtures' own too, so these
/// checks run alone.
const ALONE: [&str; 2] = [
    "a_backend_that_fits_nothing_finds_no_token",
    "a_token_that_went_away_works_again_when_it_is_back",
];

/// Each check gets a token of its own.
fn checks<S: Subject + 'static>(token: &'static str, make: fn() -> S) -> Vec<Trial> {
    static TURN: RwLock<()> = RwLock::new(());
    for name in ALONE {
        assert!(CHECKS.iter().any(|check| check.name == name), "{name}");
    }
    CHECKS
        .iter()
        .map(|check| {
            let name = format!("{token}::{}", check.name);
            let skipped = check.skipped(&make());
            if let Some(why) = skipped {
                eprintln!("SKIPPED {name}: {why}");
            }
            let run = move || {
                // The driver initialises tpm2-pkcs11 anew after each deletion.
                let alone = ALONE.contains(&check.name) || token == "tpm";
                let _alone = alone.then(|| TURN.write().unwrap_or_else(PoisonError::into_inner));
                let _beside = (!alone).then(|| TURN.read().unwrap_or_else(PoisonError::into_inner));
                Ok(match check.run(&make()) {
                    Outcome::Passed => Completion::Completed,
                    Outcome::Skipped(why) => Completion::ignored_with(why),
                })
            };
            Trial::ignorable_test(name, run).with_ignored_flag(skipped.is_some())
        })
        .collect()
}

struct Memory(Arc<MemoryDriver>);

impl Subject for Memory {
    fn driver(&self) -> Arc<dyn Driver> {
        self.0.clone()
    }

    fn backend(&self) -> String {
        "memory:".into()
    }

    fn access(&self) -> Access {
        Access::without_pin()
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Err("memory has no PIN")
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Err("there is always one memory")
    }

    fn protection(&self) -> Protection {
        Protection::NONE
    }
}

/// A SoftHSM2 token, made when it is first asked for.
#[derive(Default)]
struct Soft {
    token: OnceLock<SoftHsm>,
    driver: OnceLock<Arc<Pkcs11Driver>>,
}

impl Soft {
    fn token(&self) -> &SoftHsm {
        self.token.get_or_init(SoftHsm::new)
    }
}

impl Subject for Soft {
    fn driver(&self) -> Arc<dyn Driver> {
        self.driver
            .get_or_init(|| Arc::new(Pkcs11Driver::new()))
            .clone()
    }

    fn backend(&self) -> String {
        self.token().backend()
    }

    fn access(&self) -> Access {
        self.token().access()
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Ok(Access::with(FixedPin::new("tr0mb0ni")))
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Ok(SoftHsm::backend_for("nowhere"))
    }

    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        Ok(self)
    }
}

impl Plug for Soft {
    fn remove(&self) {
        self.token().remove();
    }

    fn insert(&self) {
        self.token().insert();
    }
}

/// A Kryoptic token, made when it is first asked for.
#[derive(Default)]
struct Kry {
    token: OnceLock<Kryoptic>,
    driver: OnceLock<Arc<Pkcs11Driver>>,
}

impl Kry {
    fn token(&self) -> &Kryoptic {
        self.token.get_or_init(Kryoptic::new)
    }
}

impl Subject for Kry {
    fn driver(&self) -> Arc<dyn Driver> {
        self.driver
            .get_or_init(|| Arc::new(Pkcs11Driver::new()))
            .clone()
    }

    fn backend(&self) -> String {
        self.token().backend()
    }

    fn access(&self) -> Access {
        self.token().access()
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Ok(Access::with(FixedPin::new("tr0mb0ni")))
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Ok(Kryoptic::backend_for("nowhere"))
    }

    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        Ok(self)
    }
}

impl Plug for Kry {
    fn remove(&self) {
        self.token().remove();
    }

    fn insert(&self) {
        self.token().insert();
    }
}

/// A token kept by a TPM, made when it is first asked for.
#[derive(Default)]
struct Tpm2 {
    token: OnceLock<Tpm>,
    driver: OnceLock<Arc<Pkcs11Driver>>,
}

impl Tpm2 {
    fn token(&self) -> &Tpm {
        self.token.get_or_init(Tpm::new)
    }
}

impl Subject for Tpm2 {
    fn driver(&self) -> Arc<dyn Driver> {
        self.driver
            .get_or_init(|| Arc::new(Pkcs11Driver::new()))
            .clone()
    }

    fn backend(&self) -> String {
        self.token().backend()
    }

    fn access(&self) -> Access {
        self.token().access()
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Ok(Access::with(FixedPin::new("tr0mb0ni")))
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Ok(Tpm::backend_for("nowhere"))
    }

    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        Err("a TPM cannot be pulled out")
    }
}

/// A virtual YubiKey behind a pcscd, plugged in when it is first asked for.
#[derive(Default)]
struct YubiKey(OnceLock<Inserted>);

impl YubiKey {
    const PIN: &str = "246802";
    /// The one with which cards are delivered.
    const MANAGEMENT_KEY: &str = "010203040506070801020304050607080102030405060708";

    fn card(&self) -> &Inserted {
        self.0
            .get_or_init(|| Pcscd::insert(Card::builder().pin(Self::PIN).build()))
    }
}

impl Subject for YubiKey {
    fn driver(&self) -> Arc<dyn Driver> {
        // All of these are one.
        Arc::new(PivDriver::new())
    }

    fn backend(&self) -> String {
        format!("piv:serial={}", self.card().card().serial())
    }

    fn access(&self) -> Access {
        Access {
            management_keys: Arc::new(FixedPin::new(Self::MANAGEMENT_KEY)),
            ..Access::with(FixedPin::new(Self::PIN))
        }
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Ok(Access::with(FixedPin::new("135791")))
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Ok("piv:serial=4294967295".into())
    }

    /// The retired slots.
    fn capacity(&self) -> Result<usize, &'static str> {
        Ok(20)
    }

    fn longest_ed25519_message(&self) -> usize {
        LONGEST_ED25519_MESSAGE
    }

    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        Ok(self)
    }
}

impl Plug for YubiKey {
    fn remove(&self) {
        self.card().remove();
    }

    fn insert(&self) {
        self.card().insert();
    }
}

/// A Ledger with a model of the Ethereum app, whose user approves everything.
#[derive(Default)]
struct Simulator(OnceLock<Server>);

impl Simulator {
    fn server(&self) -> &Server {
        self.0.get_or_init(|| Ethereum::new().serve())
    }
}

impl Subject for Simulator {
    fn driver(&self) -> Arc<dyn Driver> {
        // All of these are one.
        Arc::new(LedgerDriver::new())
    }

    fn backend(&self) -> String {
        format!("ledger:tcp={}", self.server().address())
    }

    fn access(&self) -> Access {
        Access::without_pin()
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Err("a Ledger's PIN is given on the device")
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        let address = self.server().address();
        Ok(format!("ledger:serial=0123456789abcdef;tcp={address}"))
    }

    fn capacity(&self) -> Result<usize, &'static str> {
        Err("a Ledger has two thousand million accounts")
    }

    fn longest_message(&self) -> usize {
        LONGEST_MESSAGE
    }

    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        Ok(self)
    }
}

impl Plug for Simulator {
    fn remove(&self) {
        self.server().remove();
    }

    fn insert(&self) {
        self.server().insert();
    }
}

/// The real Ethereum app in Ledger's emulator, and somebody who approves everything.
#[derive(Default)]
struct Speculos(OnceLock<Approver>);

impl Subject for Speculos {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(LedgerDriver::new())
    }

    fn backend(&self) -> String {
        let start = || Approver::start(App::ethereum().expect("without it nothing is run"));
        let address = self.0.get_or_init(start).apdu_address();
        format!("ledger:tcp={address}")
    }

    fn access(&self) -> Access {
        Access::without_pin()
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Err("a Ledger's PIN is given on the device")
    }

    fn capacity(&self) -> Result<usize, &'static str> {
        Err("a Ledger has two thousand million accounts")
    }

    fn longest_message(&self) -> usize {
        LONGEST_MESSAGE
    }
}

/// A PIV card that others wrote.
#[cfg(feature = "independent-card")]
mod independent {
    use claviger_independent_card::Card;
    use claviger_token::key::to_hex;

    use super::*;

    /// As it is delivered, plugged in when it is first asked for.
    #[derive(Default)]
    pub(super) struct Independent(OnceLock<Inserted<Card>>);

    impl Independent {
        fn card(&self) -> &Inserted<Card> {
            self.0.get_or_init(|| Pcscd::insert(Card::new()))
        }
    }

    impl Subject for Independent {
        fn driver(&self) -> Arc<dyn Driver> {
            Arc::new(PivDriver::new())
        }

        fn backend(&self) -> String {
            format!("piv:serial={}", to_hex(&self.card().card().guid()))
        }

        fn access(&self) -> Access {
            Access {
                management_keys: Arc::new(FixedPin::new(YubiKey::MANAGEMENT_KEY)),
                ..Access::with(FixedPin::new("123456"))
            }
        }

        fn wrong_access(&self) -> Result<Access, &'static str> {
            Ok(Access::with(FixedPin::new("135791")))
        }

        fn absent_backend(&self) -> Result<String, &'static str> {
            Ok("piv:serial=4294967295".into())
        }

        /// The retired slots.
        fn capacity(&self) -> Result<usize, &'static str> {
            Ok(20)
        }

        fn plug(&self) -> Result<&dyn Plug, &'static str> {
            Ok(self)
        }
    }

    impl Plug for Independent {
        fn remove(&self) {
            self.card().remove();
        }

        fn insert(&self) {
            self.card().insert();
        }
    }
}
