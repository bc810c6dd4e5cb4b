//! Claviger's driver for any PKCS#11 module.
//!
//! ```no_run
//! use claviger_pkcs11::Pkcs11Driver;
//! use claviger_token::{Access, Call, Driver, StoredPin};
//!
//! let access = Access::with(StoredPin::Env("PIN".into()));
//! let call = Call::unlimited().using(access);
//! let token = Pkcs11Driver::new().open("pkcs11:token=bench", &call)?;
//! for slot in token.slots(&call)? {
//!     println!("{}: {:?}", slot.slot, slot.fingerprint);
//! }
//! # Ok::<(), claviger_token::Error>(())
//! ```
//!
//! [`Pkcs11Driver`] lists and opens tokens by PKCS#11 URIs (RFC 7512): in the module
//! that the URI names, or in all modules that p11-kit is configured for. It implements
//! PKCS#11 v2.40 and, for Ed25519 and X25519, v3.0.
//!
//! | module | idea |
//! | --- | --- |
//! | [`uri`] | PKCS#11 URIs |
//! | [`modules`] | the configuration of p11-kit: which modules there are |
//! | [`quirks`] | what modules do differently, as data |
//! | `candidates` | the attached tokens, their names, opening one |
//! | `module` | loaded modules, one instance for each file |
//! | `gate` | who may call a module |
//! | `absence` | modules without a daemon, server or device |
//! | `mechanism_cache` | the mechanisms of tokens, cached |
//! | `seen` | where tokens were last attached, and which are missing |
//! | `session` | the login, the pool of sessions, recovery |
//! | `login` | when a PIN is sent |
//! | `token`, `keys` | the token's keys: templates, encodings, operations |
//! | `error` | errors from return values |
//!
//! # What is shared in a process
//! A module is loaded once, and a login belongs to the whole process (PKCS#11 v2.40 §2.6.8).
//! So each process opens a token once, whichever [`Pkcs11Driver`] is asked, and closes it with
//! its last user. Other code in the process that uses the module shares the login. It must use
//! [`with_module`], since modules with a [quirk](quirks::Quirks::forgets_tokens) are initialised
//! again to find a token, and it must not finalise the module.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

use claviger_token::backend::the_one;
use claviger_token::key::to_hex;
use claviger_token::needs::Need;
use claviger_token::{
    About, Call, Detail, Driver, Error, Listed, Listing, SlotId, Token, Unreadable,
};
use cryptoki::context::Pkcs11;

use crate::candidates::{Candidate, Found, Named, Source, find, is_named};
use crate::module::Module;
use crate::modules::{Configured, Locations};
use crate::token::Pkcs11Token;
use crate::trouble::Patience;
use crate::uri::Uri;

mod about;
mod absence;
mod candidates;
mod delete;
mod encoding;
mod error;
mod find;
mod gate;
mod generate;
mod key;
mod library;
mod list;
mod login;
mod mechanism_cache;
mod mechanisms;
mod module;
pub mod modules;
mod name;
mod needs;
mod object;
mod one_call;
mod operate;
pub mod quirks;
mod seen;
mod session;
mod token;
mod trouble;
pub mod uri;

/// What [`with_module`] hands out is a type of this crate.
pub use cryptoki;

/// The maximum number of attempts of a module that forgets tokens to find a token with a known
/// serial number or label. SoftHSM empties the file of a token for a moment at every login, so a
/// process that starts just then does not see the token.
const MOST_LOOKS: usize = 12;

/// Lists and opens PKCS#11 tokens.
#[derive(Debug, Clone)]
pub struct Pkcs11Driver {
    locations: Locations,
}

impl Pkcs11Driver {
    /// What the driver says of itself to people.
    pub const ABOUT: About = about::ABOUT;

    /// A driver that finds modules as p11-kit does on this system.
    pub fn new() -> Self {
        Pkcs11Driver::with_locations(Locations::of_this_system())
    }

    /// A driver that finds modules by the configuration in `locations`.
    pub fn with_locations(locations: Locations) -> Self {
        Pkcs11Driver { locations }
    }
}

impl Default for Pkcs11Driver {
    fn default() -> Self {
        Pkcs11Driver::new()
    }
}

impl Driver for Pkcs11Driver {
    fn about(&self) -> About {
        Pkcs11Driver::ABOUT
    }

    fn needs(&self, _: &Call) -> Vec<Need> {
        needs::of(&self.locations)
    }

    /// A module that cannot be used is polled ever more slowly.
    fn look(&self, backend: &str, detail: Detail, call: &Call) -> Result<Listing, Error> {
        call.check()?;
        let uri = Uri::parse(backend)?;
        let sources = self.sources(&uri, Patience::Slower, call);
        let Sources {
            usable,
            mut unreadable,
        } = match (sources, &uri.module_path) {
            // The same, whether it says so when it is initialised or when it is asked.
            (Err(error @ Error::NotReady { .. }), Some(path)) => {
                Sources::none_but(path.display().to_string(), error)
            }
            (sources, _) => sources?,
        };
        let mut found = look_again(&usable, &uri, call)?;
        let mut missing = std::mem::take(&mut found.there);
        missing.retain(|(source, there)| source.module.misses_a_token(there, call));
        let missing: Vec<Source> = missing.into_iter().map(|(source, _)| source).collect();
        let mut listing = listed(found, &uri, detail, call);
        if reset_unused(&missing, call)?
            && let Ok(found) = find(&usable, &uri, Patience::Slower, call)
        {
            let before = std::mem::replace(&mut listing, listed(found, &uri, detail, call));
            keep(&mut listing, before);
        }
        unreadable.extend(listing.unreadable);
        // What was not waited for is not missing.
        call.check()?;
        Ok(Listing::new(listing.tokens, unreadable))
    }

    fn named_slot(&self, backend: &str) -> Result<Option<SlotId>, Error> {
        let id = Uri::parse(backend)?.id.filter(|id| !id.is_empty());
        Ok(id.map(|id| SlotId::new(to_hex(&id))))
    }

    fn names_more(&self, backend: &str) -> Result<Option<&'static str>, Error> {
        Ok(Uri::parse(backend)?.names_more())
    }

    /// A token that is named by its manufacturer and serial is also found in another module
    /// than the one that is named, among those that are configured.
    fn open(&self, backend: &str, call: &Call) -> Result<Arc<dyn Token>, Error> {
        let uri = Uri::parse(backend)?;
        let in_place = self.sources(&uri, Patience::Now, call);
        match in_place.and_then(|sources| open_in(&sources.usable, &uri, backend, call)) {
            Err(error) if is_not_there(&error) => {
                let elsewhere = self.open_elsewhere(&uri, call);
                Ok(elsewhere.unwrap_or(Err(error))?)
            }
            other => Ok(other?),
        }
    }
}

/// Usable modules, and why others are not.
#[derive(Default)]
struct Sources {
    usable: Vec<Source>,
    unreadable: Vec<Unreadable>,
}

impl Pkcs11Driver {
    /// The modules to look at: the one that the URI names by its file, which must work, or
    /// those that are configured, as far as they do.
    fn sources(&self, uri: &Uri, patience: Patience, call: &Call) -> Result<Sources, Error> {
        if let Some(path) = &uri.module_path {
            let argument = uri.init_reserved.clone();
            let argument = argument.or_else(|| self.configured_argument(path));
            let module = Module::load(path, argument.as_deref(), patience, call)?;
            let source = Source {
                module,
                path: path.clone(),
                named: Named::ByPath(uri.init_reserved.clone()),
            };
            return Ok(Sources {
                usable: vec![source],
                ..Sources::default()
            });
        }
        let mut sources = Sources::default();
        let is_wanted = |configured: &Configured| {
            let name = uri.module_name.as_ref();
            name.is_none_or(|name| *name == configured.name || is_named(&configured.path, name))
        };
        for configured in self.locations.configured().into_iter().filter(is_wanted) {
            let Configured {
                name,
                path,
                init_reserved,
            } = configured;
            let argument = uri.init_reserved.as_deref().or(init_reserved.as_deref());
            match Module::load(&path, argument, patience, call) {
                Ok(module) => sources.add(Source {
                    module,
                    path,
                    named: Named::ByName(name),
                }),
                Err(over @ (Error::DeadlineExceeded | Error::Cancelled)) => return Err(over),
                Err(error) => {
                    tracing::warn!(%error, "module skipped");
                    let place = path.display().to_string();
                    sources.unreadable.push(Unreadable::new(place, error));
                }
            }
        }
        Ok(sources)
    }

    /// What a module is initialised with that p11-kit is configured for.
    fn configured_argument(&self, path: &Path) -> Option<String> {
        let configured = self.locations.configured();
        // Mostly none takes an argument, and no files need to be compared.
        if configured.iter().all(|one| one.init_reserved.is_none()) {
            return None;
        }
        let real = path.canonicalize().ok()?;
        let mut configured = configured.into_iter();
        let is_it = |module: &Configured| module.path.canonicalize().is_ok_and(|path| path == real);
        configured.find(is_it)?.init_reserved
    }

    /// Opens the one token of the configured modules that says the same of itself as the one
    /// that the URI names; `None` where there is none, or the URI does not tell it from others.
    fn open_elsewhere(&self, uri: &Uri, call: &Call) -> Option<Result<Arc<Pkcs11Token>, Error>> {
        if uri.module_path.is_none() && uri.module_name.is_none() {
            return None;
        }
        let (_, _) = (uri.manufacturer.as_ref()?, uri.serial.as_ref()?);
        let anywhere = Uri {
            module_path: None,
            module_name: None,
            init_reserved: None,
            ..uri.clone()
        };
        let sources = self.sources(&anywhere, Patience::Slower, call).ok()?;
        let found = find(&sources.usable, &anywhere, Patience::Slower, call).ok()?;
        match &found.candidates[..] {
            [one] if one.has_telling_serial() => {
                tracing::info!(token = %one.id(), module = %one.source.path.display(), "found elsewhere");
                Some(one.open(&anywhere, call))
            }
            _ => None,
        }
    }
}

impl Sources {
    fn none_but(place: String, error: Error) -> Sources {
        Sources {
            unreadable: vec![Unreadable::new(place, error)],
            ..Sources::default()
        }
    }

    fn add(&mut self, source: Source) {
        let same = |known: &Source| Arc::ptr_eq(&known.module, &source.module);
        if !self.usable.iter().any(same) {
            self.usable.push(source);
        }
    }
}

/// Whether the token may be in another module.
fn is_not_there(error: &Error) -> bool {
    matches!(
        error,
        Error::BadModule { .. } | Error::NotReady { .. } | Error::NoToken { .. }
    )
}

/// The tokens in the modules that fit. One that is named may be just away when its module is
/// loaded, and is then looked for again; later whoever looks around comes again anyway.
fn look_again(sources: &[Source], uri: &Uri, call: &Call) -> Result<Found, Error> {
    let mut looks = 1;
    loop {
        let found = find(sources, uri, Patience::Slower, call)?;
        let is_fresh = |source: &Source| source.module.is_fresh();
        let is_done = !found.candidates.is_empty() || !names_a_token(uri);
        if is_done
            || looks == MOST_LOOKS
            || !sources.iter().all(is_fresh)
            || !reset_unused(sources, call)?
        {
            return Ok(found);
        }
        looks += 1;
    }
}

fn names_a_token(uri: &Uri) -> bool {
    uri.serial.is_some() || uri.token.is_some()
}

/// Opens the one token in the modules that fits.
fn open_in(
    sources: &[Source],
    uri: &Uri,
    backend: &str,
    call: &Call,
) -> Result<Arc<Pkcs11Token>, Error> {
    let mut looks = 1;
    loop {
        call.check()?;
        match open_fitting(sources, uri, backend, call) {
            // A token that was there before may be just away.
            Err(Error::NoToken { .. } | Error::TokenUnavailable { .. })
                if names_a_token(uri) && looks < MOST_LOOKS && reset(sources, call)? =>
            {
                looks += 1;
            }
            other => return other,
        }
    }
}

/// Initialises those of the modules anew that otherwise would not find a token again,
/// and says whether there are any.
fn reset(sources: &[Source], call: &Call) -> Result<bool, Error> {
    each(sources, |module| module.reset(call))
}

/// [`reset`] for those that nobody uses.
fn reset_unused(sources: &[Source], call: &Call) -> Result<bool, Error> {
    each(sources, |module| module.reset_unused(call))
}

/// Does this with each of the modules, and says whether it did with any.
fn each(sources: &[Source], reset: impl Fn(&Module) -> Result<bool, Error>) -> Result<bool, Error> {
    let mut any = false;
    for source in sources {
        any |= reset(&source.module)?;
    }
    Ok(any)
}

fn listed(found: Found, uri: &Uri, detail: Detail, call: &Call) -> Listing {
    let mut listing = Listing::new([], found.unreadable);
    for candidate in &found.candidates {
        match candidate.listed(uri, detail, call) {
            Ok(token) => listing.tokens.push(token),
            Err(place) => listing.unreadable.push(place),
        }
    }
    listing
}

/// Adds the tokens that were there a moment `before`: one may be just away when its module is
/// initialised anew.
fn keep(listing: &mut Listing, before: Listing) {
    for token in before.tokens {
        let same =
            |now: &Listed| now.info.id == token.info.id && now.info.label == token.info.label;
        if !listing.tokens.iter().any(same) {
            listing.tokens.push(token);
        }
    }
}

fn open_fitting(
    sources: &[Source],
    uri: &Uri,
    backend: &str,
    call: &Call,
) -> Result<Arc<Pkcs11Token>, Error> {
    let mut found = find(sources, uri, Patience::Now, call)?;
    let candidates = std::mem::take(&mut found.candidates);
    let names = |all: &[Candidate]| all.iter().map(|one| one.backend(uri)).collect();
    match the_one(backend, candidates, names)? {
        Some(one) => one.open(uri, call),
        None => Err(missing(sources, uri, backend, found, call)),
    }
}

/// Why nothing fits: the one module that was named may have nothing behind it.
fn missing(sources: &[Source], uri: &Uri, backend: &str, found: Found, call: &Call) -> Error {
    let mut errors = found.unreadable.into_iter().map(|place| place.error);
    let not_ready = errors.find(|error| matches!(error, Error::NotReady { .. }));
    if let ([_], Some(error)) = (sources, not_ready) {
        return error;
    }
    let present = find(sources, &Uri::default(), Patience::Slower, call);
    Error::NoToken {
        wanted: backend.into(),
        present: present.map_or_else(|_| Vec::new(), |present| present.backends(uri)),
    }
}

/// Runs `work` with this process's instance of the module in the file `path`, which is loaded first
/// if necessary.
///
/// Meanwhile the driver does not reinitialise the module. Sessions that `work` leaves open may be
/// invalid afterwards. `work` must not use the driver.
///
/// # Errors
/// [`Error::BadModule`], [`Error::NotReady`].
pub fn with_module<T>(path: &Path, work: impl FnOnce(&Pkcs11) -> T) -> Result<T, Error> {
    let call = Call::unlimited();
    let module = Module::load(path, None, Patience::Now, &call)?;
    let _entered = module.enter(&call)?;
    Ok(work(&module.pkcs11))
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
    fn a_module_that_was_named_must_be_one() {
        let (driver, call) = (
            Pkcs11Driver::with_locations(Locations::default()),
            Call::unlimited(),
        );
        for path in ["/", "/nonexistent.so", "/etc/passwd"] {
            let found = driver.tokens(&format!("pkcs11:?module-path={path}"), &call);
            assert!(matches!(found, Err(Error::BadModule { .. })), "{path}");
        }
        assert!(driver.tokens("pkcs11:", &call).unwrap().is_empty());
        let opened = driver.open("pkcs11:token=a", &call);
        assert!(matches!(opened, Err(Error::NoToken { .. })));
    }
}
