//! PKCS#11 modules under test.

use std::sync::{Arc, OnceLock};

use claviger_conformance::{Others, Plug, Subject};
use claviger_pkcs11::Pkcs11Driver;
use claviger_tests::{
    Kryoptic, Neighbour, Nss, OpenCryptoki, P11KitClient, P11KitProxy, SoftHsm, Tpm,
};
use claviger_token::{Access, Driver, FixedPin, KeyRef, KeySpec, Protection, PublicKey};

/// A token of a module, made when it is first asked for.
pub(crate) struct Module<T> {
    token: OnceLock<T>,
    driver: OnceLock<Arc<Pkcs11Driver>>,
    neighbour: OnceLock<Neighbour>,
}

/// What tokens of different modules do not have in common.
pub(crate) trait Fixture: Send + Sync + Sized + 'static {
    fn start() -> Self;

    fn driver() -> Pkcs11Driver {
        Pkcs11Driver::new()
    }

    fn backend(&self) -> String;

    /// The backend of a token that is not there.
    fn nowhere() -> String;

    fn access(&self) -> Access;

    fn neighbour(&self) -> Neighbour;

    const PROTECTION: Protection = Protection::FULL;

    /// Takes the token away, or says why that cannot be done.
    const REMOVE: Result<fn(&Self), &'static str>;

    /// Brings it back.
    const INSERT: fn(&Self) = |_| {};

    /// Restarts what stands behind the module, or says why that cannot be done.
    const RESTART: Result<fn(&Self), &'static str> =
        Err("the module is all that there is of the token");
}

impl<T> Default for Module<T> {
    fn default() -> Self {
        Module {
            token: OnceLock::new(),
            driver: OnceLock::new(),
            neighbour: OnceLock::new(),
        }
    }
}

impl<T: Fixture> Module<T> {
    fn token(&self) -> &T {
        self.token.get_or_init(T::start)
    }

    fn neighbour(&self) -> &Neighbour {
        self.neighbour.get_or_init(|| self.token().neighbour())
    }
}

impl<T: Fixture> Subject for Module<T> {
    fn driver(&self) -> Arc<dyn Driver> {
        self.driver.get_or_init(|| Arc::new(T::driver())).clone()
    }

    fn backend(&self) -> String {
        self.token().backend()
    }

    fn access(&self) -> Access {
        self.token().access()
    }

    fn protection(&self) -> Protection {
        T::PROTECTION
    }

    fn wrong_access(&self) -> Result<Access, &'static str> {
        Ok(Access::with(FixedPin::new("tr0mb0ni")))
    }

    fn absent_backend(&self) -> Result<String, &'static str> {
        Ok(T::nowhere())
    }

    fn others(&self) -> Result<&dyn Others, &'static str> {
        Ok(self)
    }

    fn can_restart(&self) -> Result<(), &'static str> {
        T::RESTART.map(drop)
    }

    fn restart(&self) -> Result<(), &'static str> {
        T::RESTART.map(|restart| restart(self.token()))
    }

    fn plug(&self) -> Result<&dyn Plug, &'static str> {
        T::REMOVE.map(|_| self as &dyn Plug)
    }
}

impl<T: Fixture> Plug for Module<T> {
    fn remove(&self) {
        let remove = T::REMOVE.expect("it is a plug only where this can be done");
        remove(self.token());
    }

    fn insert(&self) {
        T::INSERT(self.token());
    }
}

/// Asked only when there is a token: whether there are others is asked before.
impl<T: Fixture> Others for Module<T> {
    fn add_beside(&self, key: &KeyRef) -> Result<PublicKey, &'static str> {
        self.neighbour().add_beside(key)
    }

    fn replace(&self, key: &KeyRef) -> Result<PublicKey, &'static str> {
        self.neighbour().replace(key)
    }

    fn move_key(&self, key: &KeyRef) -> Result<(), &'static str> {
        self.neighbour().move_key(key)
    }

    fn unname(&self, key: &KeyRef) -> Result<(), &'static str> {
        self.neighbour().unname(key)
    }

    fn mismatch(&self, spec: KeySpec) -> Result<KeyRef, &'static str> {
        self.neighbour().mismatch(spec)
    }

    fn has(&self, key: &PublicKey) -> bool {
        self.neighbour().has(key)
    }

    fn remove(&self, key: &PublicKey) {
        self.neighbour().remove(key);
    }
}

/// What every fixture calls the same.
macro_rules! alike {
    ($fixture:ty) => {
        fn start() -> Self {
            <$fixture>::new()
        }

        fn backend(&self) -> String {
            self.backend()
        }

        fn nowhere() -> String {
            <$fixture>::backend_for("nowhere")
        }

        fn access(&self) -> Access {
            self.access()
        }
    };
}

impl Fixture for SoftHsm {
    alike!(SoftHsm);

    fn neighbour(&self) -> Neighbour {
        Neighbour::with_label(SoftHsm::module(), self.label(), SoftHsm::PIN)
    }

    const REMOVE: Result<fn(&Self), &'static str> = Ok(SoftHsm::remove);
    const INSERT: fn(&Self) = SoftHsm::insert;
}

impl Fixture for Kryoptic {
    alike!(Kryoptic);

    fn neighbour(&self) -> Neighbour {
        Neighbour::in_slot(Kryoptic::module(), self.slot(), Kryoptic::PIN)
    }

    const REMOVE: Result<fn(&Self), &'static str> = Ok(Kryoptic::remove);
    const INSERT: fn(&Self) = Kryoptic::insert;
}

impl Fixture for Tpm {
    alike!(Tpm);

    fn neighbour(&self) -> Neighbour {
        Neighbour::with_label(Tpm::module(), self.label(), Tpm::PIN)
    }

    const REMOVE: Result<fn(&Self), &'static str> = Err("a TPM cannot be pulled out");
}

impl Fixture for Nss {
    alike!(Nss);

    fn driver() -> Pkcs11Driver {
        Pkcs11Driver::with_locations(Nss::places())
    }

    fn neighbour(&self) -> Neighbour {
        Neighbour::with_label(Nss::module(), self.label(), Nss::PIN)
    }

    const PROTECTION: Protection = Protection {
        local: false,
        ..Protection::FULL
    };

    const REMOVE: Result<fn(&Self), &'static str> =
        Err("NSS keeps its databases open, and does not notice that one is away");
}

impl Fixture for OpenCryptoki {
    alike!(OpenCryptoki);

    fn neighbour(&self) -> Neighbour {
        Neighbour::in_slot(OpenCryptoki::module(), self.slot(), OpenCryptoki::PIN)
    }

    const REMOVE: Result<fn(&Self), &'static str> =
        Err("opencryptoki keeps its objects in memory, and does not notice that they are away");
    const RESTART: Result<fn(&Self), &'static str> = Ok(|_| OpenCryptoki::restart_daemon());
}

impl Fixture for P11KitClient {
    alike!(P11KitClient);

    fn neighbour(&self) -> Neighbour {
        Neighbour::with_label(P11KitClient::module(), self.label(), P11KitClient::PIN)
    }

    const REMOVE: Result<fn(&Self), &'static str> = Ok(P11KitClient::remove);
    const INSERT: fn(&Self) = P11KitClient::insert;
    const RESTART: Result<fn(&Self), &'static str> = Ok(|token| {
        token.remove();
        token.insert();
    });
}

impl Fixture for P11KitProxy {
    alike!(P11KitProxy);

    fn neighbour(&self) -> Neighbour {
        Neighbour::with_label(P11KitProxy::module(), self.label(), P11KitProxy::PIN)
    }

    const REMOVE: Result<fn(&Self), &'static str> =
        Err("what is behind the proxy is taken away where there is no proxy");
}
