//! Every check of the conformance suite on every token that can be started.
//!
//! What cannot be shown on a token counts as ignored, and is said.

use std::process::{Command, ExitCode};
use std::sync::{Arc, OnceLock, RwLock};

use claviger_conformance::{CHECKS, Outcome, Plug, Subject};
use claviger_ledger::LedgerDriver;
use claviger_ledger_emulator::{App, Approver, Configuration, Ethereum, Server};
use claviger_memory::MemoryDriver;
use claviger_tests::{
    Kryoptic, Nss, OpenCryptoki, OpenSc, P11KitClient, P11KitProxy, SoftHsm, Tpm, private,
};
use claviger_token::sync::{read, write};
use claviger_token::{Access, Driver, Protection};
use claviger_virtual_yubikey::Pcscd;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::pkcs11::Module;
use crate::yubikey::YubiKey;

#[path = "conformance/pkcs11.rs"]
mod pkcs11;
#[path = "conformance/yubikey.rs"]
mod yubikey;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    prepare(&arguments);
    let mut trials = Vec::new();
    trials.extend(checks("memory", || Memory(Arc::new(MemoryDriver::new()))));
    trials.extend(checks("softhsm", Module::<SoftHsm>::default));
    trials.extend(unless(
        Kryoptic::skipped(),
        "kryoptic",
        Module::<Kryoptic>::default,
    ));
    trials.extend(unless(Tpm::skipped(), "tpm", Module::<Tpm>::default));
    trials.extend(unless(Nss::skipped(), "nss", Module::<Nss>::default));
    trials.extend(unless(
        OpenCryptoki::skipped(),
        "opencryptoki",
        Module::<OpenCryptoki>::default,
    ));
    trials.extend(unless(
        P11KitClient::skipped(),
        "p11-kit-client",
        Module::<P11KitClient>::default,
    ));
    trials.extend(unless(
        P11KitProxy::skipped(),
        "p11-kit-proxy",
        Module::<P11KitProxy>::default,
    ));
    trials.extend(checks("virtual-yubikey", YubiKey::default));
    trials.extend(unless(OpenSc::skipped(), "opensc", OpenSc::default));
    trials.extend(checks("ledger-simulator", Simulator::default));
    trials.extend(checks("ledger-simulator-flex", Simulator::flex));
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

/// Starts what sets variables of the environment.
fn prepare(arguments: &Arguments) {
    // It takes a while, and cargo-nextest starts this program for each check.
    let is_asked_for = |token: &str| {
        let filter = arguments.filter.as_ref().filter(|_| arguments.exact);
        !arguments.list && filter.is_none_or(|name| name.starts_with(&format!("{token}::")))
    };
    if is_asked_for("opencryptoki") || is_asked_for("p11-kit-proxy") {
        private::enter();
    }
    if arguments.list {
        return;
    }
    SoftHsm::prepare();
    if is_asked_for("kryoptic") && Kryoptic::skipped().is_none() {
        Kryoptic::prepare();
    }
    if is_asked_for("tpm") && Tpm::skipped().is_none() {
        Tpm::prepare();
    }
    if is_asked_for("opencryptoki") && OpenCryptoki::skipped().is_none() {
        OpenCryptoki::prepare();
    }
    if is_asked_for("p11-kit-client") && P11KitClient::skipped().is_none() {
        P11KitClient::prepare();
    }
    if is_asked_for("p11-kit-proxy") && P11KitProxy::skipped().is_none() {
        P11KitProxy::prepare();
    }
    Pcscd::prepare();
}

/// The checks, unless the token cannot be had, which is said.
fn unless<S: Subject + 'static>(
    skipped: Option<&'static str>,
    token: &'static str,
    make: fn() -> S,
) -> Vec<Trial> {
    match skipped {
        None => checks(token, make),
        Some(why) => {
            eprintln!("SKIPPED {token}: {why}");
            Vec::new()
        }
    }
}

/// Checks in which the driver initialises the module anew, to find a token that went
/// away. That ends every session of the process, the fixtures' own too, so these
/// checks run alone.
const ALONE: [&str; 3] = [
    "a_backend_that_fits_nothing_finds_no_token",
    "what_stands_behind_the_token_may_restart",
    "a_token_that_went_away_works_again_when_it_is_back",
];

/// Tokens that are alone always: the driver initialises tpm2-pkcs11 anew after each
/// deletion.
const LONERS: [&str; 1] = ["tpm"];

/// Each check gets a token of its own.
fn checks<S: Subject + 'static>(token: &'static str, make: fn() -> S) -> Vec<Trial> {
    static TURN: RwLock<()> = RwLock::new(());
    for name in ALONE {
        assert!(CHECKS.iter().any(|check| check.name == name), "{name}");
    }
    CHECKS
        .iter()
        .filter(|check| is_asked_for(&format!("{token}::{}", check.name)))
        .map(|check| {
            let name = format!("{token}::{}", check.name);
            let skipped = check.skipped(&make());
            if let Some(why) = skipped {
                eprintln!("SKIPPED {name}: {why}");
            }
            let whole = name.clone();
            let run = move || {
                if token == "opensc" && !std::env::args().any(|argument| argument == "--exact") {
                    return in_a_process_of_its_own(&whole);
                }
                let alone = ALONE.contains(&check.name) || LONERS.contains(&token);
                let _alone = alone.then(|| write(&TURN));
                let _beside = (!alone).then(|| read(&TURN));
                Ok(match check.run(&make()) {
                    Outcome::Passed => Completion::Completed,
                    Outcome::Skipped(why) => Completion::ignored_with(why),
                })
            };
            Trial::ignorable_test(name, run).with_ignored_flag(skipped.is_some())
        })
        .collect()
}

/// Whether the check may run. To know of one whether it is skipped may take a card in a reader,
/// and cargo-nextest starts this program for each check.
fn is_asked_for(name: &str) -> bool {
    static ONLY: OnceLock<Option<String>> = OnceLock::new();
    let only = ONLY.get_or_init(|| {
        let arguments = Arguments::from_args();
        arguments.filter.filter(|_| arguments.exact)
    });
    only.as_ref().is_none_or(|only| only == name)
}

/// OpenSC 0.23 waits for itself where a card has gone that it knew, so it gets a process for
/// each check, as everything does from cargo-nextest.
fn in_a_process_of_its_own(name: &str) -> Result<Completion, Failed> {
    let program = std::env::current_exe()?;
    let output = Command::new(program).args(["--exact", name]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match (output.status.success(), said.contains(" 1 ignored")) {
        (true, false) => Ok(Completion::Completed),
        (true, true) => Ok(Completion::ignored_with(
            "it said so in a process of its own",
        )),
        (false, _) => Err(said.into()),
    }
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

/// A Ledger with a model of the Ethereum app, whose user approves everything.
#[derive(Default)]
struct Simulator {
    configuration: Option<Configuration>,
    app: OnceLock<(Ethereum, Server)>,
}

impl Simulator {
    fn flex() -> Self {
        Simulator {
            configuration: Some(Configuration::flex()),
            ..Simulator::default()
        }
    }

    fn app(&self) -> &(Ethereum, Server) {
        self.app.get_or_init(|| {
            let configuration = self.configuration.clone();
            let app = configuration.map_or_else(Ethereum::new, Ethereum::configured);
            let server = app.serve();
            (app, server)
        })
    }

    fn server(&self) -> &Server {
        &self.app().1
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
        self.app().0.configuration().longest_message
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

impl Speculos {
    fn approver(&self) -> &Approver {
        let start = || Approver::start(App::ethereum().expect("without it nothing is run"));
        self.0.get_or_init(start)
    }
}

impl Subject for Speculos {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(LedgerDriver::new())
    }

    fn backend(&self) -> String {
        let address = self.approver().apdu_address();
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
        self.approver().longest_message()
    }
}

/// A PIV card that others wrote.
#[cfg(feature = "independent-card")]
mod independent {
    use claviger_independent_card::Card;
    use claviger_piv::PivDriver;
    use claviger_token::FixedPin;
    use claviger_token::key::to_hex;
    use claviger_virtual_yubikey::Inserted;

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
