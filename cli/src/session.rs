//! What all commands share: settings, registry, node.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use claviger_engine::registry::{Action, Intent};
use claviger_engine::types::check_name;
use claviger_engine::{Backend, EngineError, EngineId, IdentityInfo, KeyInfo, Node, Registry};
use claviger_token::sync::lock;
use claviger_token::{Access, Advice, Call, Error, Event, KeyUse, TokenId};

use crate::args::{Args, Command};
use crate::config::Setting;
use crate::daemon::{self, Circumstances, Daemon};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::new_file::Privacy;
use crate::output_file::{Kept, Output};
use crate::pins::{Pins, SecretKind, SharedPins};
use crate::screen::Screen;
use crate::{drivers, home, output, paths};

/// The context of every command.
pub(crate) struct Session {
    home: Option<PathBuf>,
    last_try: bool,
    any_pin_length: bool,
    no_pin_ledger: bool,
    /// Whether the command makes one request, and nobody is asked for its PIN.
    is_one_request: bool,
    /// The deadline of the command.
    pub(crate) deadline: Option<Instant>,
    pub(crate) json: bool,
    pub(crate) pins: Arc<Pins>,
    pub(crate) management_keys: Arc<Pins>,
    factory_defaults: bool,
    daemon_choice: daemon::Choice,
    /// The daemon that the command uses, once that is known.
    daemon: OnceCell<Option<Daemon>>,
    pub(crate) screen: Screen,
    pub(crate) interrupt: Arc<Interrupt>,
    /// Each setting, and where its value comes from.
    pub(crate) settings: Vec<Setting>,
}

impl Session {
    pub(crate) fn new(args: &Args, settings: Vec<Setting>) -> Result<Self, Failure> {
        let screen = Screen::new();
        let interrupt = match args.command {
            // It changes nothing on a token, and its output has no name until it is whole.
            Command::Sign { .. } => Interrupt::listen_when_needed(screen.clone()),
            _ => Interrupt::listen(screen.clone()),
        };
        let deadline =
            (args.access.limit.timeout).and_then(|limit| Instant::now().checked_add(limit));
        if let Some(deadline) = deadline {
            interrupt.end_at(deadline);
        }
        let source = |kind, text: &Option<std::ffi::OsString>| {
            Pins::new(
                kind,
                text.as_deref(),
                args.access.pin_verbatim,
                deadline,
                screen.clone(),
                Arc::clone(&interrupt),
            )
        };
        let (pins, management_keys) = (
            source(SecretKind::Pin, &args.access.pin_source)?,
            source(SecretKind::ManagementKey, &args.access.management_key)?,
        );
        if pins.reads_stdin() && management_keys.reads_stdin() {
            return Err(Failure::usage(
                "the PIN and the management key cannot both come from standard input",
            ));
        }
        let is_sign = matches!(args.command, Command::Sign { .. });
        Ok(Session {
            home: args.home.clone(),
            is_one_request: is_sign && pins.asks_nobody(),
            last_try: args.access.last_try,
            any_pin_length: args.access.any_pin_length,
            no_pin_ledger: args.access.no_pin_ledger,
            deadline,
            json: args.json,
            pins,
            management_keys,
            factory_defaults: args.access.factory_defaults,
            daemon_choice: daemon::Choice::of(args)?,
            daemon: OnceCell::new(),
            screen,
            interrupt,
            settings,
        })
    }

    /// Refuses to read both a message and the PIN from standard input, since each reader would take
    /// from the other.
    pub(crate) fn check_input(&self, file: Option<&Path>) -> Result<(), Failure> {
        if self.pins.reads_stdin() && paths::is_stdin(file) {
            return Err(Failure::usage(
                "the PIN and the message cannot both come from standard input",
            )
            .hint("name a file, or another descriptor: --pin-source fd:3 3<FILE"));
        }
        Ok(())
    }

    /// The files of PINs and management keys that the command line names.
    pub(crate) fn secret_files(&self) -> Vec<PathBuf> {
        let sources = [&self.pins, &self.management_keys];
        sources.iter().filter_map(|source| source.file()).collect()
    }

    /// Opens an output, which must not be one of `inputs` or a file with PINs.
    pub(crate) fn output<'a>(
        &self,
        path: Option<&Path>,
        privacy: Privacy,
        inputs: impl IntoIterator<Item = Option<&'a Path>>,
    ) -> Result<Output, Failure> {
        let mut kept = Kept::new(self.home().ok(), inputs);
        let secrets = self.secret_files();
        kept.add(secrets.iter().map(|path| Some(path.as_path())));
        Output::open(path, privacy, &kept, &self.interrupt)
    }

    pub(crate) fn home(&self) -> Result<PathBuf, Failure> {
        home::folder(self.home.as_deref())
    }

    /// The registry, for a command that writes to it; it is created if there is none.
    pub(crate) fn new_registry(&self) -> Result<Registry, Failure> {
        let registry = Registry::open(&self.home()?)?;
        registry.check_writable()?;
        Ok(registry)
    }

    /// The existing registry, for a command that writes to it.
    pub(crate) fn writable_registry(&self) -> Result<Registry, Failure> {
        let registry = self.registry()?;
        registry.check_writable()?;
        Ok(registry)
    }

    /// The existing registry. It is not created, since the home folder may be misspelt.
    pub(crate) fn registry(&self) -> Result<Registry, Failure> {
        let home = self.home()?;
        if !home::has_registry(&home) {
            return Err(
                Failure::new(format!("there is no registry in `{}`", home.display()))
                    .coded("no-registry")
                    .hint(
                        "the first `claviger generate` makes it; is this the folder that --home or \
                     CLAVIGER_HOME is to name?",
                    ),
            );
        }
        Ok(Registry::open(&home)?)
    }

    /// Which daemon the command may use.
    pub(crate) fn daemon_choice(&self) -> &daemon::Choice {
        &self.daemon_choice
    }

    /// The daemon that the command uses, if any.
    ///
    /// # Errors
    /// A daemon that was named, or serves this home, and cannot be used.
    pub(crate) fn daemon(&self) -> Result<Option<&Daemon>, Failure> {
        if self.daemon.get().is_none() {
            let command = Circumstances {
                home: self.home.as_deref(),
                pins: SharedPins(Arc::clone(&self.pins)),
                management_keys: SharedPins(Arc::clone(&self.management_keys)),
                watcher: self.watcher(),
                call: self.call(),
                deadline: self.deadline,
                cancelled: self.interrupt.flag(),
            };
            let _ = (self.daemon).set(Daemon::find(&self.daemon_choice, command)?);
        }
        Ok(self.daemon.get().and_then(Option::as_ref))
    }

    /// The daemon that the command is about.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub(crate) fn needed_daemon(&self) -> Result<&Daemon, Failure> {
        self.daemon()?.ok_or_else(|| {
            Failure::new("no daemon of yours serves this home")
                .coded("no-daemon")
                .hint("start it: claviger serve, or systemctl --user start claviger.socket")
        })
    }

    /// A node with every driver of this program.
    pub(crate) fn node(&self, registry: Registry) -> Node {
        let mut access = Access::with(SharedPins(Arc::clone(&self.pins)));
        access.last_try = self.last_try;
        access.any_pin_length = self.any_pin_length;
        access.management_keys = Arc::new(SharedPins(Arc::clone(&self.management_keys)));
        access.factory_defaults = self.factory_defaults;
        let node = Node::builder(registry).drivers(drivers::all());
        let mut builder = node.access(access);
        if self.no_pin_ledger {
            builder = builder.unnoted_pins(warner(self.screen.clone()));
        }
        builder.build()
    }

    /// The circumstances of the next request to a token.
    pub(crate) fn call(&self) -> Call {
        let call = match self.deadline {
            Some(deadline) => Call::within(deadline.saturating_duration_since(Instant::now())),
            None => Call::unlimited(),
        };
        let call = call
            .cancelled_by(self.interrupt.flag())
            .watched_by(self.watcher());
        match self.is_one_request {
            true => call.in_place(),
            false => call,
        }
    }

    /// Tells a person what a request waits for.
    pub(crate) fn watcher(&self) -> Arc<dyn Fn(&Event) + Send + Sync> {
        let screen = self.screen.clone();
        // What a touch or an approval is wanted for is said with it.
        let proof = Mutex::new(None);
        Arc::new(move |event| {
            let mut proof = lock(&proof);
            match event {
                Event::ProofNeeded { usage, .. } => *proof = Some(*usage),
                Event::PersonDone { .. } => *proof = None,
                _ => {}
            }
            if let Some(line) = line(event) {
                let why = proof.map(why).unwrap_or_default();
                screen.line(&format!("{line}{why}"));
            }
        })
    }

    /// Resolves abandoned intents on `tokens`, which the command is about to use, and warns of
    /// those on other tokens.
    ///
    /// # Errors
    /// Errors about the PIN, since the command itself would fail with the same.
    pub(crate) async fn resolve_intents(
        &self,
        node: &Node,
        tokens: &[TokenId],
    ) -> Result<(), Failure> {
        let open = node.registry().open_intents()?;
        if open.iter().any(|intent| tokens.contains(&intent.token)) {
            let _phase = self.interrupt.tidily();
            for (intent, error) in node
                .resolve_intents_with_pins_for(tokens, &self.call())
                .await?
            {
                if tokens.contains(&intent.token) && is_about_pin(&error) {
                    return Err(error.into());
                }
                warn_open(&intent, Some(&error));
            }
        } else {
            open.iter().for_each(|intent| warn_open(intent, None));
        }
        Ok(())
    }
}

/// Warns of the abandoned intents in a registry.
pub(crate) fn warn_open_in(registry: &Registry) -> Result<(), Failure> {
    for intent in registry.open_intents()? {
        warn_open(&intent, None);
    }
    Ok(())
}

/// Warns once, before the first PIN that is sent without a record.
fn warner(screen: Screen) -> impl Fn(&TokenId) + Send + Sync {
    let said = AtomicBool::new(false);
    move |token| {
        if !said.swap(true, Ordering::Relaxed) {
            screen.aside(|| {
                output::warn(
                    &format!(
                        "the PIN is sent to {token}, though the registry cannot be written to and its \
                         rejection could not be recorded"
                    ),
                    "if the token rejects it, the next command sends it again and spends \
                     another attempt",
                );
            });
        }
    }
}

/// Why a new or adopted key is used.
fn why(usage: KeyUse) -> &'static str {
    match usage {
        KeyUse::Sign => " (to prove that the key can sign)",
        KeyUse::Decrypt => " (to prove that the key can decrypt)",
    }
}

/// The line for a person who has to act.
fn line(event: &Event) -> Option<String> {
    Some(match event {
        Event::TouchNeeded { token } => touch_line(token),
        Event::ApprovalNeeded { token } if token.kind == "ledger" => {
            match &*token.serial {
                // It shows an earlier request, and so not who it is.
                "" => "look at your Ledger, and approve or reject what it shows".into(),
                serial => format!("look at your Ledger ({serial}) and approve"),
            }
        }
        Event::ApprovalNeeded { token } => format!("approve this on the token {token}"),
        Event::UnlockNeeded { device } => format!("unlock the {device}"),
        Event::AppNeeded { device, app } => format!("open the app {app} on the {device}"),
        Event::TokenNeeded { token } => format!("waiting for the token {token}: insert it"),
        _ => return None,
    })
}

fn touch_line(token: &TokenId) -> String {
    match (&*token.kind, &*token.manufacturer) {
        ("piv", "Yubico") => format!("touch your YubiKey (serial {})", token.serial),
        _ => format!("touch the token {token}"),
    }
}

fn is_about_pin(error: &EngineError) -> bool {
    match error {
        EngineError::Token(
            Error::PinLocked { .. }
            | Error::PinFinalTry { .. }
            | Error::PinUnsettled { .. }
            | Error::PinNotNoted { .. },
        ) => true,
        EngineError::Token(error) => error.advice() == Advice::GivePin,
        _ => false,
    }
}

fn warn_open(intent: &Intent, error: Option<&EngineError>) {
    let reason = error.map(|e| format!(" ({e})")).unwrap_or_default();
    output::warn(
        &format!("{}{reason}", describe(intent)),
        "insert the token, then run: claviger doctor --repair",
    );
}

/// Describes an abandoned intent.
pub(crate) fn describe(intent: &Intent) -> String {
    let what = match intent.action {
        Action::Generate => "generation",
        Action::Delete => "deletion",
        Action::Name => "naming of the keys",
    };
    format!(
        "the {what} of `{}` on {} was interrupted and is not resolved",
        intent.identity, intent.token
    )
}

/// The name of a new identity.
pub(crate) fn new_name(name: &str) -> Result<EngineId, Failure> {
    check_name(name).map_err(|reason| Failure::from(EngineError::BadName { reason }))?;
    Ok(EngineId::local(name))
}

/// A backend, if this command can serve it.
pub(crate) fn device(backend: &str) -> Result<Backend, Failure> {
    if backend.starts_with("memory:") {
        return Err(Failure::new(
            "the backend `memory:` cannot be used here: its keys end with the process, \
             and this command ends when it has answered",
        )
        .coded("backend-not-served")
        .hint(
            "name a token; SoftHSM2 makes one without hardware; or start a daemon: claviger serve",
        ));
    }
    if backend.starts_with("attached:") {
        return Err(Failure::new(
            "the backend `attached:` cannot be used here: programs attach devices to a daemon",
        )
        .coded("backend-not-served")
        .hint("start a daemon, and the program that attaches the device: claviger serve"));
    }
    lasting(backend)
}

/// A backend, if a daemon can serve it: keys in memory live as long as the daemon.
pub(crate) fn lasting(backend: &str) -> Result<Backend, Failure> {
    match Backend::from(backend) {
        Backend::RemoteConnection { .. } => Err(Failure::new(
            "the backend `remote:` cannot be used here: this command only works with tokens \
             that are attached to this machine",
        )
        .coded("backend-not-served")
        .hint("name a token of this machine")),
        backend => Ok(backend),
    }
}

/// An existing identity.
pub(crate) fn identity(
    registry: &Registry,
    name: &str,
) -> Result<(EngineId, IdentityInfo), Failure> {
    let id = EngineId::local(name);
    match registry.identity(&id)? {
        Some(info) => Ok((id, info)),
        None => Err(no_identity(name)),
    }
}

/// There is no identity of this name.
pub(crate) fn no_identity(name: &str) -> Failure {
    let shown: String = name.chars().take(80).collect();
    let ellipsis = if shown.len() < name.len() { "…" } else { "" };
    Failure::new(format!("there is no identity `{shown}{ellipsis}`"))
        .coded("no-identity")
        .hint("`claviger identities` lists them")
}

/// An existing identity or contact.
pub(crate) fn somebody(node: &Node, name: &str) -> Result<EngineId, Failure> {
    let id = EngineId::local(name);
    match node.public_keys(&id)? {
        Some(_) => Ok(id),
        None => {
            let shown: String = name.chars().take(80).collect();
            Err(
                Failure::new(format!("there is no identity `{shown}`, and no contact"))
                    .coded("no-identity")
                    .hint("`claviger identities` and `claviger contact list` list them"),
            )
        }
    }
}

/// The key of an identity for a required use.
pub(crate) fn key<'a>(
    who: &EngineId,
    info: &'a IdentityInfo,
    usage: KeyUse,
) -> Result<&'a KeyInfo, Failure> {
    info.key(usage).ok_or_else(|| {
        let (code, what) = match usage {
            KeyUse::Sign => ("cannot-sign", "sign: it has no key that signs"),
            KeyUse::Decrypt => ("cannot-decrypt", "decrypt: it has no key that decrypts"),
        };
        Failure::new(format!("`{who}` cannot {what}"))
            .coded(code)
            .hint(format!("it was given `{}` only", info.capabilities))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_yubikey_is_called_what_its_owner_calls_it() {
        let token = |kind: &str, manufacturer: &str| TokenId {
            kind: kind.into(),
            manufacturer: manufacturer.into(),
            serial: "123".into(),
        };
        assert_eq!(
            touch_line(&token("piv", "Yubico")),
            "touch your YubiKey (serial 123)"
        );
        assert_eq!(
            touch_line(&token("pkcs11", "Yubico")),
            "touch the token pkcs11:Yubico/123"
        );
    }
}
