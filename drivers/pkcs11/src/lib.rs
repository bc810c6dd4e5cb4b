//! Claviger's driver for any PKCS#11 module.
//!
//! [`Pkcs11Driver`] lists and opens tokens by PKCS#11 URIs (RFC 7512): in the module
//! that the URI names, or in all modules that p11-kit is configured for. What it
//! implements is of PKCS#11 v2.40 and, for Ed25519 and X25519, v3.0.
//!
//! | module | idea |
//! | --- | --- |
//! | [`uri`] | PKCS#11 URIs |
//! | [`modules`] | the configuration of p11-kit: which modules there are |
//! | [`quirks`] | what modules do differently, as data |
//! | `module` | loaded modules, one instance for each file |
//! | `session` | the login, the pool of sessions, recovery |
//! | `login` | when a PIN is sent, and when it is not |
//! | `token`, `keys` | the token's keys: templates, encodings, operations |
//! | `error` | from return values to errors |
//!
//! # What is shared in a process
//! A module is loaded once, and a login is the whole process's (PKCS#11 v2.40 §2.6.8).
//! So a token is opened once for each process, whichever [`Pkcs11Driver`] is asked, and
//! closed with its last user. Code in the same process that uses a module without
//! this driver shares the login with it; it works through [`with_module`], since
//! modules with a [quirk](quirks::Quirks::forgets_tokens) are initialised anew to find a
//! token again, and must not finalise the module.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use claviger_token::key::to_hex;
use claviger_token::{
    Access, Call, Driver, Error, Listing, PinSource, SlotId, SlotInfo, Token, TokenId, TokenInfo,
};
use cryptoki::context::Pkcs11;
use cryptoki::object::ObjectClass;
use cryptoki::slot::{Slot, TokenInfo as CkTokenInfo};

use crate::error::{describe, from_module};
use crate::login::Login;
use crate::module::{Entered, Module, lock};
use crate::modules::Places;
use crate::quirks::Quirks;
use crate::session::Connection;
use crate::token::{Living, Pkcs11Token, Place, read_keys, slot_info};
use crate::uri::Uri;

mod error;
mod keys;
mod login;
mod module;
pub mod modules;
pub mod quirks;
mod session;
mod token;
pub mod uri;

/// So long at most a token that is being closed is waited for.
const CLOSING_TIME: Duration = Duration::from_secs(5);

/// So often at most a module that forgets tokens looks for one that is known by its
/// serial. SoftHSM empties the file of a token for a moment at every login, so that
/// another process that starts just then does not see the token.
const MOST_LOOKS: usize = 12;

/// Lists and opens PKCS#11 tokens.
#[derive(Debug, Clone)]
pub struct Pkcs11Driver {
    places: Places,
}

impl Pkcs11Driver {
    /// A driver that finds modules as p11-kit does on this system.
    pub fn new() -> Self {
        Pkcs11Driver::with_places(Places::of_this_system())
    }

    /// A driver that finds modules by the configuration in `places`.
    pub fn with_places(places: Places) -> Self {
        Pkcs11Driver { places }
    }
}

impl Default for Pkcs11Driver {
    fn default() -> Self {
        Pkcs11Driver::new()
    }
}

impl Driver for Pkcs11Driver {
    fn scheme(&self) -> &'static str {
        uri::SCHEME
    }

    fn look(&self, backend: &str) -> Result<Listing, Error> {
        let uri = Uri::parse(backend)?;
        let modules = self.modules(&uri)?;
        let candidates = candidates(&modules, &uri)?;
        Ok(Listing {
            tokens: candidates.iter().map(|c| c.info(&uri)).collect(),
            unreadable: Vec::new(),
        })
    }

    fn slots(&self, token: &TokenInfo) -> Result<Vec<SlotInfo>, Error> {
        let uri = Uri::parse(&token.backend)?;
        let modules = self.modules(&uri)?;
        let found = candidates(&modules, &uri)?;
        let found = found.iter().find(|c| token_id(&c.token) == token.id);
        let candidate = found.ok_or_else(|| Error::TokenUnavailable {
            token: token.id.clone(),
            reason: "the module does not find it".into(),
        })?;
        let _entered = candidate.module.enter();
        let public = candidate.module.pkcs11.open_ro_session(candidate.slot);
        let public = public.and_then(|session| read_keys(&session, ObjectClass::PUBLIC_KEY));
        let public = public.map_err(|error| from_module(&error, &token.id))?;
        let slots = public.iter();
        Ok(slots
            .map(|key| slot_info(key, key.public_key(), key.public_uses(candidate.quirks)))
            .collect())
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        let id = Uri::parse(backend)?.id.filter(|id| !id.is_empty());
        Ok(id.map(|id| SlotId::new(to_hex(&id))))
    }

    fn open(&self, backend: &str, access: &Access, _: &Call) -> Result<Arc<dyn Token>, Error> {
        let uri = Uri::parse(backend)?;
        let modules = self.modules(&uri)?;
        let mut looks = 1;
        loop {
            match open_fitting(&modules, &uri, backend, access) {
                // A token that was there before may be just away.
                Err(Error::NoToken { .. } | Error::TokenUnavailable { .. })
                    if uri.serial.is_some() && looks < MOST_LOOKS && reset(&modules) =>
                {
                    looks += 1;
                }
                other => return other,
            }
        }
    }
}

/// Initialises those of the modules anew that otherwise would not find a token again,
/// and says whether there are any.
fn reset(modules: &[Arc<Module>]) -> bool {
    modules.iter().filter(|module| module.reset()).count() > 0
}

fn open_fitting(
    modules: &[Arc<Module>],
    uri: &Uri,
    backend: &str,
    access: &Access,
) -> Result<Arc<dyn Token>, Error> {
    let fitting = candidates(modules, uri)?;
    match &fitting[..] {
        [one] => Ok(one.open(uri, access)?),
        [] => Err(Error::NoToken {
            wanted: backend.into(),
            present: backends(&candidates(modules, &Uri::default())?, uri),
        }),
        several => Err(Error::AmbiguousToken {
            wanted: backend.into(),
            candidates: backends(several, uri),
        }),
    }
}

impl Pkcs11Driver {
    /// The modules to look at: the one that the URI names, which must work, or those
    /// that are configured, as far as they do.
    fn modules(&self, uri: &Uri) -> Result<Vec<Arc<Module>>, Error> {
        if let Some(path) = &uri.module_path {
            return Ok(vec![Module::load(path)?]);
        }
        let mut modules: Vec<Arc<Module>> = Vec::new();
        for path in self.places.modules() {
            if !uri
                .module_name
                .as_ref()
                .is_none_or(|name| is_named(&path, name))
            {
                continue;
            }
            match Module::load(&path) {
                Ok(module) if modules.iter().any(|m| Arc::ptr_eq(m, &module)) => {}
                Ok(module) => modules.push(module),
                Err(error) => tracing::warn!(%error, "module skipped"),
            }
        }
        Ok(modules)
    }
}

/// Runs `work` with this process's instance of the module in the file `path`, loading it
/// first if need be.
///
/// Meanwhile the driver does not initialise the module anew; sessions that `work`
/// leaves open may be invalid afterwards. `work` must not use the driver.
///
/// # Errors
/// [`Error::BadModule`].
pub fn with_module<T>(path: &Path, work: impl FnOnce(&Pkcs11) -> T) -> Result<T, Error> {
    let module = Module::load(path)?;
    let _entered = module.enter();
    Ok(work(&module.pkcs11))
}

/// Whether `name` is the file's name without what systems add to it (RFC 7512 §2.3).
fn is_named(path: &Path, name: &str) -> bool {
    let Some(file) = path.file_name().and_then(|f| f.to_str()) else {
        return false;
    };
    let stem = file.split_once(".so").map_or(file, |(stem, _)| stem);
    [file, stem].contains(&name) || stem.strip_prefix("lib") == Some(name)
}

/// A token that is there.
struct Candidate {
    module: Arc<Module>,
    slot: Slot,
    /// Whether another token of the module says the same of itself, so that the slot alone
    /// tells them apart.
    has_twin: bool,
    token: CkTokenInfo,
    quirks: &'static Quirks,
}

/// The tokens in `modules` that fit `uri`. Of several modules, one that fails does
/// not hide the others.
fn candidates(modules: &[Arc<Module>], uri: &Uri) -> Result<Vec<Candidate>, Error> {
    let mut found = Vec::new();
    for module in modules {
        let entered = module.enter();
        match module.tokens(&entered) {
            Ok(tokens) => found.extend(
                tokens
                    .iter()
                    .filter(|(slot, token)| fits(uri, module, *slot, token, &entered))
                    .map(|(slot, token)| Candidate {
                        module: module.clone(),
                        slot: *slot,
                        has_twin: tokens
                            .iter()
                            .any(|(other, of)| other != slot && are_twins(of, token)),
                        quirks: quirks::of(
                            &module.library.manufacturer,
                            token.manufacturer_id(),
                            token.model(),
                        ),
                        token: token.clone(),
                    }),
            ),
            Err(error) if uri.module_path.is_some() => {
                return Err(Error::BadModule {
                    path: module.path.display().to_string(),
                    reason: describe(&error),
                });
            }
            Err(error) => {
                let error = describe(&error);
                tracing::warn!(module = %module.path.display(), error, "module skipped");
            }
        }
    }
    Ok(found)
}

fn fits(uri: &Uri, module: &Module, slot: Slot, token: &CkTokenInfo, _: &Entered<'_>) -> bool {
    let same = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|w| w == is);
    let library = &module.library;
    let slot_fits = || {
        if uri.slot_description.is_none() && uri.slot_manufacturer.is_none() {
            return true;
        }
        module.pkcs11.get_slot_info(slot).is_ok_and(|info| {
            same(&uri.slot_description, info.slot_description())
                && same(&uri.slot_manufacturer, info.manufacturer_id())
        })
    };
    same(&uri.token, token.label())
        && same(&uri.manufacturer, token.manufacturer_id())
        && same(&uri.model, token.model())
        && same(&uri.serial, token.serial_number())
        && same(&uri.library_manufacturer, &library.manufacturer)
        && same(&uri.library_description, &library.description)
        && uri.library_version.is_none_or(|v| v == library.version)
        && uri.slot_id.is_none_or(|id| id == slot.id())
        && slot_fits()
}

/// The name of a token, by what it says of itself.
fn token_id(token: &CkTokenInfo) -> TokenId {
    TokenId {
        kind: uri::SCHEME.into(),
        manufacturer: token.manufacturer_id().into(),
        serial: telling_serial(token.serial_number(), token.label()),
    }
}

/// Whether two tokens have one name and one label.
fn are_twins(one: &CkTokenInfo, other: &CkTokenInfo) -> bool {
    one.label() == other.label()
        && one.serial_number() == other.serial_number()
        && one.manufacturer_id() == other.manufacturer_id()
}

/// The serial, or where that is blank or zero, as with all tokens of tpm2-pkcs11, `SERIAL/LABEL`.
fn telling_serial(serial: &str, label: &str) -> String {
    let blank = [' ', '\0'];
    let tells = serial.chars().any(|c| c != '0' && !blank.contains(&c));
    match tells || label.is_empty() {
        true => serial.into(),
        false => format!("{}/{label}", serial.trim_matches(blank)),
    }
}

fn backends(candidates: &[Candidate], request: &Uri) -> Vec<String> {
    candidates.iter().map(|c| c.backend(request)).collect()
}

/// Where each token is opened, so that it is opened once: the module, what the token says
/// of itself, and the slot where nothing else tells it from its twin.
type PlaceName = (PathBuf, TokenId, String, Option<Slot>);
static OPEN: LazyLock<Mutex<HashMap<PlaceName, Arc<Place>>>> = LazyLock::new(Mutex::default);

impl Candidate {
    /// A URI that names this token, with the PIN source of the request.
    fn backend(&self, request: &Uri) -> String {
        let said = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Uri {
            manufacturer: said(self.token.manufacturer_id()),
            model: said(self.token.model()),
            serial: said(self.token.serial_number()),
            token: said(self.token.label()),
            module_path: Some(self.module.path.clone()),
            pin_source: request.pin_source.clone(),
            ..Uri::default()
        }
        .to_string()
    }

    fn info(&self, request: &Uri) -> TokenInfo {
        let token = &self.token;
        TokenInfo {
            id: token_id(token),
            model: token.model().trim_end_matches('\0').into(),
            label: token.label().into(),
            backend: self.backend(request),
            makes: self.supports(),
            uses: self.supports(),
            untried: Vec::new(),
            remembered_as: String::new(),
            formerly: Vec::new(),
            durable: true,
            derives: false,
            pace: self.quirks.pace,
            login_required: token.login_required(),
            notes: self.notes(),
        }
    }

    fn supports(&self) -> Vec<claviger_token::KeySpec> {
        let _entered = self.module.enter();
        let pkcs11 = &self.module.pkcs11;
        let offered = pkcs11.get_mechanism_list(self.slot).unwrap_or_default();
        keys::supported(self.quirks, |mechanism| {
            let offered = offered.contains(&mechanism);
            offered.then(|| pkcs11.get_mechanism_info(self.slot, mechanism).ok())?
        })
    }

    fn notes(&self) -> Vec<(String, String)> {
        let token = &self.token;
        let mut notes = vec![
            ("firmware".into(), token.firmware_version().to_string()),
            ("module".into(), self.module.path.display().to_string()),
        ];
        if token.user_pin_locked() {
            notes.push(("pin_locked".into(), "true".into()));
        } else if token.user_pin_final_try() {
            notes.push(("pin_tries".into(), "1".into()));
        } else if token.user_pin_count_low() {
            notes.push(("pin_tries".into(), "low".into()));
        }
        if token.write_protected() {
            notes.push(("write_protected".into(), "true".into()));
        }
        notes
    }

    fn open(&self, uri: &Uri, access: &Access) -> Result<Arc<Pkcs11Token>, Error> {
        let pins: &dyn PinSource = match &uri.pin_source {
            Some(source) => source,
            None => &*access.pins,
        };
        let how = Login {
            pins,
            last_try: access.last_try,
            refused: &access.refused_pins,
        };
        let id = token_id(&self.token);
        let only_in = self.has_twin.then_some(self.slot);
        let name = (
            self.module.path.clone(),
            id.clone(),
            self.token.label().into(),
            only_in,
        );
        let place: Arc<Place> = lock(&OPEN).entry(name).or_default().clone();
        // Held through the login: what a second login says depends on the first.
        let mut state = lock(&place.state);
        let give_up = Instant::now() + CLOSING_TIME;
        loop {
            if let Some(token) = state.token.upgrade() {
                // Before anything can fail: the last reference needs the lock.
                drop(state);
                if token.connection.has_failed() {
                    token.connection.revive(&how)?;
                }
                return Ok(token);
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if state.living == 0 || left.is_zero() {
                break;
            }
            let waited = place.closed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let connection =
            Connection::open(&self.module, self.slot, only_in, &self.token, &id, &how)?;
        let info = self.info(uri);
        state.living += 1;
        let living = Living(place.clone());
        let token = Arc::new_cyclic(|me| Pkcs11Token {
            me: me.clone(),
            info,
            quirks: self.quirks,
            write_protected: self.token.write_protected(),
            connection,
            _living: living,
        });
        state.token = Arc::downgrade(&token);
        Ok(token)
    }
}

/// Fails to compile where tokens and keys could not be shared by threads.
#[allow(dead_code)]
fn tokens_are_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Pkcs11Driver>();
    shared::<Pkcs11Token>();
    shared::<Arc<dyn Token>>();
    shared::<Arc<dyn claviger_token::Signer>>();
    shared::<Arc<dyn claviger_token::Decryptor>>();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_named_without_what_systems_add() {
        let path = Path::new("/usr/lib/softhsm/libsofthsm2.so");
        for name in ["softhsm2", "libsofthsm2", "libsofthsm2.so"] {
            assert!(is_named(path, name), "{name}");
        }
        assert!(!is_named(path, "softhsm"));
        assert!(is_named(
            Path::new("/x/opensc-pkcs11.so.1"),
            "opensc-pkcs11"
        ));
    }

    #[test]
    fn a_serial_that_tells_nothing_is_told_apart_by_the_label() {
        for (serial, label, told) in [
            ("0a1b", "label", "0a1b"),
            ("0000000000000000", "label", "0000000000000000/label"),
            ("", "label", "/label"),
            ("\0\0 ", "a/b", "/a/b"),
            ("0000", "", "0000"),
            ("", "", ""),
        ] {
            assert_eq!(telling_serial(serial, label), told);
        }
    }

    #[test]
    fn a_module_that_was_named_must_be_one() {
        let driver = Pkcs11Driver::with_places(Places::default());
        for path in ["/", "/nonexistent.so", "/etc/passwd"] {
            let found = driver.tokens(&format!("pkcs11:?module-path={path}"));
            assert!(matches!(found, Err(Error::BadModule { .. })), "{path}");
        }
        assert!(driver.tokens("pkcs11:").unwrap().is_empty());
        let opened = driver.open("pkcs11:token=a", &Access::without_pin(), &Call::unlimited());
        assert!(matches!(opened, Err(Error::NoToken { .. })));
    }
}
