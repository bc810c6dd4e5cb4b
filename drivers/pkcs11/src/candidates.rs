//! The attached tokens: which of them match a URI, their names, and opening one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, PoisonError};
use std::time::{Duration, Instant};

use claviger_token::shelf::Places;
use claviger_token::{
    Call, Detail, Error, Listed, PinSource, SlotInfo, TokenId, TokenInfo, Unreadable,
};
use cryptoki::slot::{Slot, TokenInfo as CkTokenInfo};

use crate::absence;
use crate::error::{Fault, describe, from_module};
use crate::gate::Entered;
use crate::library::Library;
use crate::list;
use crate::login::Login;
use crate::mechanisms;
use crate::module::Module;
use crate::name::{are_twins, former_ids, token_id};
use crate::one_call::OneCall;
use crate::quirks::{self, Quirks, Said, is_blank};
use crate::session::Connection;
use crate::token::{Living, Pkcs11Token, SharedToken};
use crate::trouble::Patience;
use crate::uri::{self, Uri};

/// So long at most a token that is being closed is waited for.
const CLOSING_TIME: Duration = Duration::from_secs(5);

/// So often a waiting call looks whether it was given up.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A module, and how it is named in a backend.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) module: Arc<Module>,
    /// Its file as it was given, and not what links lead to: that is another one tomorrow.
    pub(crate) path: PathBuf,
    pub(crate) named: Named,
}

/// How a module is named.
#[derive(Clone)]
pub(crate) enum Named {
    /// By its file, with what it is initialised with if that was said.
    ByPath(Option<String>),
    /// As p11-kit does.
    ByName(String),
}

/// A token that is there.
pub(crate) struct Candidate {
    pub(crate) source: Source,
    pub(crate) slot: Slot,
    /// Whether another token of the module says the same of itself, so that the slot alone
    /// tells them apart.
    has_twin: bool,
    token: CkTokenInfo,
    pub(crate) quirks: &'static Quirks,
}

/// What a look at modules gives.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) unreadable: Vec<Unreadable>,
    /// All tokens of each module, whether they fit or not.
    pub(crate) there: Vec<(Source, Vec<(Slot, CkTokenInfo)>)>,
}

/// The tokens in the modules that fit `uri`. Of several modules, one that fails does not hide
/// the others.
///
/// # Errors
/// [`Error::BadModule`] where `uri` names the one that fails; [`Error::DeadlineExceeded`],
/// [`Error::Cancelled`].
pub(crate) fn find(
    sources: &[Source],
    uri: &Uri,
    patience: Patience,
    call: &Call,
) -> Result<Found, Error> {
    let mut found = Found::default();
    for source in sources {
        let looked = found.add(source, uri, patience, call);
        match looked {
            Ok(()) => {}
            Err(over @ (Error::DeadlineExceeded | Error::Cancelled)) => return Err(over),
            Err(error) if uri.module_path.is_some() => return Err(error),
            Err(error) => found.unreadable.push(source.unreadable(error)),
        }
    }
    Ok(found)
}

impl Found {
    fn add(
        &mut self,
        source: &Source,
        uri: &Uri,
        patience: Patience,
        call: &Call,
    ) -> Result<(), Error> {
        let module = &source.module;
        let looked = module.look(patience, call).map_err(|fault| match fault {
            Fault::Ours(error) | Fault::Broken(error) => error,
            Fault::Gone(reason) => source.is_bad(reason),
            Fault::Module(error) => source.is_bad(describe(&error)),
            Fault::Input => Error::DecryptionFailed,
        });
        let (entered, sight) = looked?;
        let library = module.library();
        if let Some(missing) = absence::stated(&module.path, &library) {
            self.unreadable.push(source.unreadable(missing));
        }
        for (slot, error) in &sight.unreadable {
            let what = format!("slot {} of {}", slot.id(), source.path.display());
            let error = Error::System {
                what: format!("the token in {what} cannot be read"),
                reason: describe(error),
            };
            self.unreadable.push(Unreadable::new(what, error));
        }
        let tokens = &sight.tokens;
        for (slot, token) in tokens {
            if fits(uri, source, &library, *slot, token, &entered) {
                let is_twin = |(other, of): &(Slot, _)| other != slot && are_twins(of, token);
                let candidate = Candidate {
                    source: source.clone(),
                    slot: *slot,
                    has_twin: tokens.iter().any(is_twin),
                    quirks: quirks_of(module, &library, *slot, token, &entered),
                    token: token.clone(),
                };
                let only = (!candidate.has_twin).then_some(*slot);
                module.seen.note(candidate.id(), token.label(), only);
                self.candidates.push(candidate);
            }
        }
        self.there.push((source.clone(), sight.tokens));
        Ok(())
    }

    /// As backend strings, with the PIN source of `request`.
    pub(crate) fn backends(&self, request: &Uri) -> Vec<String> {
        self.candidates.iter().map(|c| c.backend(request)).collect()
    }
}

impl Source {
    fn is_bad(&self, reason: String) -> Error {
        Error::BadModule {
            path: self.path.display().to_string(),
            reason,
        }
    }

    fn unreadable(&self, error: Error) -> Unreadable {
        Unreadable::new(self.path.display().to_string(), error)
    }
}

fn quirks_of(
    module: &Module,
    library: &Library,
    slot: Slot,
    token: &CkTokenInfo,
    _: &Entered<'_>,
) -> &'static Quirks {
    // Only of what has no serial the slot tells something that is not known without it.
    let of_slot = is_blank(token.serial_number()).then(|| module.pkcs11.get_slot_info(slot));
    let of_slot = of_slot.and_then(Result::ok);
    quirks::of(&Said {
        library: &library.manufacturer,
        manufacturer: token.manufacturer_id(),
        model: token.model(),
        serial: token.serial_number(),
        label: token.label(),
        slot_manufacturer: of_slot.as_ref().map_or("", |slot| slot.manufacturer_id()),
        slot_description: of_slot.as_ref().map_or("", |slot| slot.slot_description()),
    })
}

fn fits(
    uri: &Uri,
    source: &Source,
    library: &Library,
    slot: Slot,
    token: &CkTokenInfo,
    _: &Entered<'_>,
) -> bool {
    let same = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|w| w == is);
    let slot_fits = || {
        if uri.slot_description.is_none() && uri.slot_manufacturer.is_none() {
            return true;
        }
        let info = source.module.pkcs11.get_slot_info(slot);
        info.is_ok_and(|info| {
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

/// Where each token is opened, so that it is opened once: the module, what the token says
/// of itself, and the slot where nothing else tells it from its twin.
type PlaceName = (PathBuf, TokenId, String, Option<Slot>);
static OPEN: LazyLock<Places<PlaceName, SharedToken>> = LazyLock::new(Places::default);

impl Candidate {
    pub(crate) fn module(&self) -> &Module {
        &self.source.module
    }

    /// The token's name.
    pub(crate) fn id(&self) -> TokenId {
        token_id(&self.token, self.quirks)
    }

    /// Whether its serial tells it from every other token.
    pub(crate) fn has_telling_serial(&self) -> bool {
        self.quirks.unique_serial && !is_blank(self.token.serial_number())
    }

    /// A URI that names this token, with the PIN source of the request.
    pub(crate) fn backend(&self, request: &Uri) -> String {
        let said = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let uri = Uri {
            manufacturer: said(self.token.manufacturer_id()),
            model: said(self.token.model()),
            serial: said(self.token.serial_number()),
            token: said(self.token.label()),
            pin_source: request.pin_source.clone(),
            ..Uri::default()
        };
        let uri = match self.source.named.clone() {
            Named::ByPath(init_reserved) => Uri {
                module_path: Some(self.source.path.clone()),
                init_reserved,
                ..uri
            },
            Named::ByName(name) => Uri {
                module_name: Some(name),
                ..uri
            },
        };
        uri.to_string()
    }

    /// What the driver says of the token.
    ///
    /// # Errors
    /// [`Error::TokenUnavailable`] where the token does not say what it offers.
    pub(crate) fn info(&self, request: &Uri, call: &Call) -> Result<TokenInfo, Error> {
        Ok(self.info_of(request, self.offers(call)?))
    }

    fn info_of(&self, request: &Uri, offers: mechanisms::Offers) -> TokenInfo {
        let token = &self.token;
        let mut info = TokenInfo::new(self.id(), self.backend(request));
        info.model = token.model().trim_end_matches('\0').into();
        info.label = token.label().into();
        info.makes = offers.makes;
        info.uses = offers.uses;
        info.untried = offers.untried;
        info.remembered_as = self.remembered_as();
        info.formerly = former_ids(token, self.quirks);
        info.pace = self.quirks.pace;
        info.login_required = token.login_required();
        info.notes = self.notes();
        info
    }

    /// [`Candidate::info`] in a list, with the slots that are visible without a login if `detail`
    /// asks for them.
    pub(crate) fn listed(
        &self,
        request: &Uri,
        detail: Detail,
        call: &Call,
    ) -> Result<Listed, Unreadable> {
        let visible = |info: &TokenInfo| self.visible(info, call);
        match self.info(request, call) {
            Ok(info) => Ok(Listed::with_slots(info, detail, visible)),
            Err(error) => Err(Unreadable::new(self.backend(request), error)),
        }
    }

    fn visible(&self, info: &TokenInfo, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        let _entered = self.module().enter(call)?;
        let session = self.module().pkcs11.open_ro_session(self.slot);
        let seen = session.and_then(|s| list::visible(&s, self.quirks, &info.uses));
        seen.map_err(|error| from_module(&error, &info.id))
    }

    fn offers(&self, call: &Call) -> Result<mechanisms::Offers, Error> {
        let module = self.module();
        let _entered = module.enter(call)?;
        let said = || {
            let known = module
                .mechanisms
                .of(&module.pkcs11, self.slot, &self.token)?;
            // What fails is remembered, since the other side wants no errors.
            let failure = std::cell::Cell::new(None);
            let offers = mechanisms::offers(self.quirks, |mechanism| {
                let info = known.info(&module.pkcs11, self.slot, mechanism);
                info.unwrap_or_else(|error| {
                    failure.set(Some(error));
                    None
                })
            });
            failure.take().map_or(Ok(offers), Err)
        };
        said().map_err(|error| Error::TokenUnavailable {
            token: self.id(),
            reason: format!("its mechanisms cannot be read: {}", describe(&error)),
        })
    }

    /// What was tried works, or does not, with this module and this model.
    fn remembered_as(&self) -> String {
        let library = self.module().library();
        let (major, minor) = library.version;
        let token = &self.token;
        format!(
            "{}:{} {} {major}.{minor}/{} {} {}",
            uri::SCHEME,
            library.manufacturer,
            library.description,
            token.manufacturer_id(),
            token.model().trim_end_matches('\0'),
            token.firmware_version()
        )
    }

    fn notes(&self) -> Vec<(String, String)> {
        let token = &self.token;
        let mut notes = vec![
            ("firmware".into(), token.firmware_version().to_string()),
            ("module".into(), self.source.path.display().to_string()),
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

    /// Opens the token, once for all in this process.
    pub(crate) fn open(&self, uri: &Uri, call: &Call) -> Result<Arc<Pkcs11Token>, Error> {
        let access = call.access();
        let pins: &dyn PinSource = match &uri.pin_source {
            Some(source) => source,
            None => &*access.pins,
        };
        let how = Login {
            pins,
            last_try: access.last_try,
            any_length: access.any_pin_length,
            refused: &access.refused_pins,
            call,
        };
        let id = self.id();
        let only_in = self.has_twin.then_some(self.slot);
        let name = (
            self.module().path.clone(),
            id.clone(),
            self.token.label().into(),
            only_in,
        );
        let place = OPEN.of(&name);
        // Held through the login: what a second login says depends on the first.
        let mut state = call.lock(&place.state)?;
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
            call.check()?;
            let left = give_up.saturating_duration_since(Instant::now());
            if state.living == 0 || left.is_zero() {
                break;
            }
            let pause = call.at_most(left.min(LOOK_AGAIN));
            let waited = place.closed.wait_timeout(state, pause);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        // Before a PIN is sent: a token that cannot even say that is not ready.
        let mut offers = self.offers(call)?;
        let hashes = std::mem::take(&mut offers.hashes);
        let info = self.info_of(uri, offers);
        let at = (self.slot, only_in);
        let connection =
            Connection::open(&self.source.module, at, &self.token, &id, self.quirks, &how)?;
        state.living += 1;
        let living = Living(place.clone());
        let token = Arc::new_cyclic(|me| Pkcs11Token {
            me: me.clone(),
            info,
            quirks: self.quirks,
            hashes,
            write_protected: self.token.write_protected(),
            connection,
            one_call: OneCall::default(),
            _living: living,
        });
        state.token = Arc::downgrade(&token);
        Ok(token)
    }
}

/// Whether `name` is the file's name without what systems add to it (RFC 7512 §2.3).
pub(crate) fn is_named(path: &Path, name: &str) -> bool {
    let Some(file) = path.file_name().and_then(|f| f.to_str()) else {
        return false;
    };
    let stem = file.split_once(".so").map_or(file, |(stem, _)| stem);
    [file, stem].contains(&name) || stem.strip_prefix("lib") == Some(name)
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
}
