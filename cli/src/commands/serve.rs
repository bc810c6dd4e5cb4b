//! `serve`: the daemon, in the foreground.

mod reload;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use claviger_agent::SshAgent;
use claviger_attached::{AttachedDriver, Devices};
use claviger_client::peer::{SYSTEM_SOCKET, own_socket};
use claviger_engine::Node;
use claviger_memory::MemoryDriver;
use claviger_service::audit::{Audit, AuditError, AuditSettings, JOURNAL_SOCKET, Journal, Sealer};
use claviger_service::metrics::Metrics;
use claviger_service::pins::{PinSettings, credential};
use claviger_service::settings::{AuditMode, LogFormat, Settings};
use claviger_service::{
    AskPin, Confirm, HomeLock, HomeLockError, Listening, SecretBytes, SecretKind, Service,
    SocketError,
};
use claviger_token::{Call, Driver, ExposeSecret, PinSource, TokenId, TriesLeft};
use rustix::process::geteuid;
use serde::Serialize;
use signal_hook::consts::SIGHUP;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use self::reload::InForce;
use super::ssh::AGENT_SOCKET;
use super::{Answer, FINE};
use crate::config::Config;
use crate::daemon::mark;
use crate::daemon_args::ServeOptions;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::log::DaemonLog;
use crate::pins::{self, Pins, SharedPins};
use crate::screen::Screen;
use crate::session::{Session, describe};
use crate::{drivers, hints, output, pinentry, token_views};

/// How long a seal may take.
const SEALING: Duration = Duration::from_secs(60);

/// How long it is tried to resolve what an earlier daemon left behind.
const RESOLVING: Duration = Duration::from_secs(60);

/// Who may connect to a socket: its owner; of the system's daemon its group, too.
const OWN_MODE: u32 = 0o600;
const SYSTEM_MODE: u32 = 0o660;

/// That the daemon is ready, in JSON.
#[derive(Serialize)]
struct Ready<'a> {
    pid: u32,
    home: String,
    sockets: &'a [String],
}

/// Serves until it is told to end.
pub(crate) fn run(session: &Session, options: &ServeOptions, config: Config) -> Answer {
    let settings = &config.serve();
    if settings.log == LogFormat::Json {
        // All that is on standard error is JSON then.
        output::speak_json();
    }
    let log = DaemonLog::start(settings.log, settings.log_level);
    let mut signals = signals(session);
    let home = session.home()?;
    let registry = session.new_registry()?;
    let _lock = HomeLock::take(&home)?;
    if let Some(id) = registry.home_id()? {
        // A command that does not find the mark asks the registry.
        if let Err(error) = mark::leave(&home, &id) {
            tracing::warn!(%error, home = %home.display(), "commands have to ask the registry");
        }
    }
    let audit = open_audit(settings, options.system)?;
    let (sockets, names) = sockets(options, settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::io("the daemon cannot start", &e))?;
    let mut daemon = {
        let _runtime = runtime.enter();
        let devices = Devices::default();
        let drivers = all_drivers(&devices);
        let node = Node::builder(registry).drivers(drivers).build();
        let mut builder = Service::builder(node).devices(devices);
        if let Some(wanted) = &settings.metrics {
            builder = builder.metrics(Metrics::new(wanted.names));
        }
        let service = builder
            .program(concat!("claviger ", env!("CARGO_PKG_VERSION")))
            .system(options.system)
            .hints(hints::of)
            .tokens_json(token_views::to_json)
            .limits(settings.limits.clone())
            .audit(audit.clone())
            .pins(pins(session, settings)?)
            .front_end(Arc::new(SshAgent::new()))
            .confirmed(settings.confirm.clone())
            .confirmer(Arc::new(Dialog {
                screen: session.screen.clone(),
                interrupt: Arc::clone(&session.interrupt),
            }))
            .build();
        if let Some(wanted) = &settings.metrics {
            service.show_metrics(wanted)?;
        }
        let seal = settings.audit.seal.as_deref();
        let sealer = seal.map(|name| service.sealer(name, SEALING).map(Arc::new));
        Running {
            service,
            audit,
            sealer: sealer.transpose()?,
            in_force: InForce::new(settings.clone(), config, log),
        }
    };
    say_ready(session, &home, &names)?;
    let served = runtime.block_on(daemon.serve(session, sockets, &mut signals));
    // What still blocks on a device is not waited for.
    runtime.shutdown_background();
    served
}

/// The log of who used which key: in a file, or in the journal alone. Where nothing takes it, one
/// that is required, also by default for the system, is an error; else there is none.
fn open_audit(settings: &Settings, is_system: bool) -> Result<Audit, Failure> {
    let wanted = &settings.audit;
    if wanted.mode == Some(AuditMode::Off) {
        return Ok(Audit::off());
    }
    let is_best_effort = wanted.mode == Some(AuditMode::BestEffort);
    let journal = match wanted.journal {
        true => Journal::connect(JOURNAL_SOCKET).map_err(|error| error.to_string()),
        false => Err("the journal is not wanted".to_owned()),
    };
    let is_required = wanted.mode == Some(AuditMode::Required) || (is_system && !is_best_effort);
    Ok(match (&wanted.file, journal) {
        (Some(file), journal) => {
            let settings = AuditSettings {
                is_best_effort,
                ..AuditSettings::of(file)
            };
            Audit::open(settings)?.with_journal(journal.ok())
        }
        (None, Ok(journal)) => Audit::to_journal(journal, is_best_effort),
        (None, Err(why)) if is_required => Err(AuditError::NoPlace { why })?,
        (None, Err(_)) => Audit::off(),
    })
}

/// Where PINs come from that no connection gives.
fn pins(session: &Session, settings: &Settings) -> Result<PinSettings, Failure> {
    let wanted = &settings.pins;
    let pinentry = match wanted.pinentry {
        true => Some(Window::open(session)?),
        false => None,
    };
    Ok(PinSettings {
        credentials: credential::folder().filter(|_| wanted.credentials),
        pinentry,
        longest_unlock: wanted.longest_unlock,
        answer_within: Some(wanted.answer_within),
    })
}

/// Asks a person by a pinentry.
struct Window {
    pins: SharedPins,
    management_keys: SharedPins,
}

impl Window {
    fn open(session: &Session) -> Result<Arc<dyn AskPin>, Failure> {
        let by = |kind| {
            let pinentry = Some(OsStr::new("pinentry"));
            let (screen, interrupt) = (session.screen.clone(), Arc::clone(&session.interrupt));
            Pins::new(kind, pinentry, false, None, screen, interrupt).map(SharedPins)
        };
        Ok(Arc::new(Window {
            pins: by(pins::SecretKind::Pin)?,
            management_keys: by(pins::SecretKind::ManagementKey)?,
        }))
    }
}

impl AskPin for Window {
    fn ask(
        &self,
        kind: SecretKind,
        token: &TokenId,
        label: &str,
        tries_left: Option<u32>,
        call: &Call,
    ) -> Option<SecretBytes> {
        let source = match kind {
            SecretKind::Pin => &self.pins,
            SecretKind::ManagementKey => &self.management_keys,
        };
        let tries = match tries_left.map(u8::try_from) {
            Some(Ok(left)) => TriesLeft::Exactly(left),
            _ => TriesLeft::Unknown,
        };
        let pin = source.pin_with_tries(token, label, tries, call).ok()?;
        Some(SecretBytes::new(pin.expose_secret().as_bytes().to_vec()))
    }
}

/// Has a person confirm uses of keys by a pinentry.
struct Dialog {
    screen: Screen,
    interrupt: Arc<Interrupt>,
}

impl Confirm for Dialog {
    fn confirm(&self, question: &str, call: &Call) -> Result<bool, String> {
        let question = output::printable(question);
        let is_wanted = || call.check().is_ok();
        // It may have the terminal for its screen.
        let answer = self.screen.aside(|| {
            let asked = (&*question, "Allow");
            pinentry::confirm(asked, &self.interrupt, call.deadline(), is_wanted)
        });
        answer.map_err(|no| match no {
            pinentry::NoAnswer::TooLate => "nobody answered in time".into(),
            pinentry::NoAnswer::Interrupted => "the daemon ends".into(),
            pinentry::NoAnswer::None(reason) => reason,
        })
    }
}

/// The signals of the process, which mean something else to a daemon.
fn signals(session: &Session) -> UnboundedReceiver<i32> {
    let (sender, receiver) = unbounded_channel();
    session.interrupt.hand_over(move |signal| {
        // Nobody listens any more when the process ends.
        let _ = sender.send(signal);
    });
    receiver
}

/// The drivers of commands, that of keys which live as long as the daemon, and that of devices which
/// programs attach to it.
fn all_drivers(devices: &Devices) -> Vec<Arc<dyn Driver>> {
    let own: [Arc<dyn Driver>; 2] = [
        Arc::new(MemoryDriver::new()),
        Arc::new(AttachedDriver::new(devices.clone())),
    ];
    drivers::all().into_iter().chain(own).collect()
}

/// The sockets to listen on: those that were named, those that systemd hands over, or the usual one.
/// With each what to call it.
fn sockets(
    options: &ServeOptions,
    settings: &Settings,
) -> Result<(Vec<Listening>, Vec<String>), Failure> {
    let mode = match options.system {
        true => SYSTEM_MODE,
        false => OWN_MODE,
    };
    let mut sockets = Listening::inherited()?;
    let mut names: Vec<String> = sockets.iter().map(|one| one.name().to_string()).collect();
    let is_said = !options.socket.is_empty() || !sockets.is_empty();
    for wanted in settings.sockets.iter().filter(|_| !is_said) {
        sockets.push(Listening::bind(&wanted.name, &wanted.path, wanted.mode)?);
        names.push(wanted.path.display().to_string());
        if let Some(group) = &wanted.group {
            give_to(group, &wanted.path)?;
        }
    }
    let paths = match (options.socket.as_slice(), sockets.is_empty()) {
        ([], true) => {
            let api = usual_socket(options)?;
            let for_ssh = api.with_file_name(AGENT_SOCKET);
            vec![api, for_ssh]
        }
        (named, _) => named.to_vec(),
    };
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        sockets.push(Listening::bind(&name, &path, mode)?);
        names.push(path.display().to_string());
    }
    Ok((sockets, names))
}

/// Lets a group connect to a socket.
fn give_to(group: &str, socket: &Path) -> Result<(), Failure> {
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let number = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        match fields.next() {
            Some(found) if found == group => fields.nth(1)?.parse().ok(),
            _ => None,
        }
    });
    let number: u32 = number
        .ok_or_else(|| Failure::new(format!("there is no group `{group}`")).coded("bad-config"))?;
    std::os::unix::fs::chown(socket, None, Some(number))
        .map_err(|e| Failure::io(format!("`{}`", socket.display()), &e))
}

fn usual_socket(options: &ServeOptions) -> Result<PathBuf, Failure> {
    match (options.system, own_socket()) {
        (true, _) => Ok(SYSTEM_SOCKET.into()),
        (false, Some(path)) => Ok(path),
        (false, None) if geteuid().is_root() => Ok(SYSTEM_SOCKET.into()),
        (false, None) => Err(Failure::new(
            "there is no place for a socket: XDG_RUNTIME_DIR is not set",
        )
        .coded("no-socket-folder")
        .hint("name one: claviger serve --socket PATH")),
    }
}

fn say_ready(session: &Session, home: &Path, sockets: &[String]) -> Result<(), Failure> {
    match session.json {
        true => output::print_json_line(&Ready {
            pid: std::process::id(),
            home: home.display().to_string(),
            sockets,
        }),
        false => output::print(&format!("serving at {}\n", sockets.join(", "))),
    }
}

/// A daemon that runs.
struct Running {
    service: Service,
    audit: Audit,
    sealer: Option<Arc<Sealer>>,
    in_force: InForce,
}

impl Running {
    async fn serve(
        &mut self,
        session: &Session,
        sockets: Vec<Listening>,
        signals: &mut UnboundedReceiver<i32>,
    ) -> Answer {
        let service = self.service.clone();
        let serving = service.serve(sockets);
        tokio::pin!(serving);
        tokio::spawn(resolve_intents(service.node().clone()));
        if let Some(sealer) = self.sealer.clone() {
            tokio::spawn(async move { sealer.run().await });
        }
        loop {
            tokio::select! {
                served = &mut serving => {
                    served.map_err(|e| Failure::io("the daemon cannot listen", &e))?;
                    break;
                }
                signal = signals.recv() => match signal {
                    Some(SIGHUP) => self.reload(session),
                    _ => break,
                },
            }
        }
        let drain = self.in_force.settings().drain;
        let sealing = async {
            match &self.sealer {
                Some(sealer) => sealer.seal().await,
                None => Ok(()),
            }
        };
        let sealed = tokio::select! {
            // The sockets go as soon as the draining begins.
            ((_, sealed), _) = async { tokio::join!(service.drain_then(drain, sealing), serving) } => sealed,
            // Who says it twice wants it at once.
            _ = signals.recv() => Ok(()),
        };
        // The log has its end also where nothing can seal it.
        self.audit.close()?;
        sealed?;
        Ok(FINE)
    }
}

/// Resolves what an earlier daemon left behind, where that needs no PIN.
async fn resolve_intents(node: Node) {
    match node.resolve_intents(&Call::within(RESOLVING)).await {
        Ok(left) => {
            for (intent, error) in left {
                let what = describe(&intent);
                tracing::warn!(%error, hint = "claviger doctor --repair", "{what}");
            }
        }
        Err(error) => tracing::warn!(%error, "what an earlier daemon left is not resolved"),
    }
}

impl From<SocketError> for Failure {
    fn from(error: SocketError) -> Self {
        of_daemon(error.code(), &error)
    }
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Self {
        of_daemon(error.code(), &error)
    }
}

impl From<HomeLockError> for Failure {
    fn from(error: HomeLockError) -> Self {
        of_daemon(error.code(), &error)
    }
}

fn of_daemon(code: &'static str, error: &dyn std::error::Error) -> Failure {
    Failure::new(error.to_string())
        .coded(code)
        .hint(hints::by_code(code))
}
