//! Whether a command uses a daemon, and which one.
//!
//! | what is said | what the command uses |
//! | --- | --- |
//! | `--no-daemon`, or `CLAVIGER_DAEMON` is empty | none |
//! | `--daemon SOCKET`, or `CLAVIGER_DAEMON=SOCKET` | this one, for all that a daemon does |
//! | nothing | the user's own, if it serves the command's home |
//! | nothing, but an option that no daemon takes | none |
//!
//! A daemon runs as the user, or, if it was named, as root or as the user `claviger`: the kernel says
//! which. A socket behind which nobody is counts as none, unless it was named.

mod convert;
mod listener;
pub(crate) mod mark;
mod requests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use claviger_client::blocking::{Call, Cancel, Client};
use claviger_client::peer::{self, Expected};
use claviger_client::request::{Request, raw};
use claviger_client::wire::{EngineId, Hello, Signature};
use claviger_client::{Error, Options, Refusal};
use claviger_engine::Registry;
use claviger_token::call::Watcher;

use crate::args::Args;
use crate::failure::Failure;
use crate::hints;
use crate::home::{self, has_registry};
use crate::input::Input;
use crate::pins::SharedPins;

use self::listener::Listener;
pub(crate) use self::requests::Known;

/// How often it is looked whether the command was interrupted.
const LOOK: Duration = Duration::from_millis(50);

/// Which daemon a command may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// None.
    Never,
    /// The user's own, if it serves the home.
    Own,
    /// The one at this socket.
    This(PathBuf),
}

impl Choice {
    /// # Errors
    /// A daemon was named, and an option given that no daemon takes.
    pub(crate) fn of(args: &Args) -> Result<Self, Failure> {
        let named = args.daemon.daemon.clone();
        let named = named.or_else(|| std::env::var_os("CLAVIGER_DAEMON").map(PathBuf::from));
        let of_this_process = [
            ("--last-try", args.access.last_try),
            ("--any-pin-length", args.access.any_pin_length),
            ("--no-pin-ledger", args.access.no_pin_ledger),
            ("--factory-defaults", args.access.factory_defaults),
        ];
        let mut given = of_this_process.iter().filter(|(_, is_given)| *is_given);
        Ok(match (args.daemon.no_daemon, named, given.next()) {
            (true, _, _) => Choice::Never,
            (false, Some(path), _) if path.as_os_str().is_empty() => Choice::Never,
            (false, Some(_), Some((option, _))) => {
                return Err(Failure::usage(format!("a daemon does not take {option}"))
                    .hint("leave it out, or add --no-daemon to work without the daemon"));
            }
            (false, Some(path), None) => Choice::This(path),
            (false, None, Some(_)) => Choice::Never,
            (false, None, None) => Choice::Own,
        })
    }
}

/// What a command brings to its daemon.
pub(crate) struct Circumstances<'a> {
    /// The home that the command line names.
    pub(crate) home: Option<&'a Path>,
    pub(crate) pins: SharedPins,
    pub(crate) management_keys: SharedPins,
    pub(crate) watcher: Watcher,
    /// That of the questions of the daemon.
    pub(crate) call: claviger_token::Call,
    pub(crate) deadline: Option<Instant>,
    pub(crate) cancelled: std::sync::Arc<AtomicBool>,
}

/// A daemon that a command uses.
pub(crate) struct Daemon {
    client: Client,
    listener: Listener,
    deadline: Option<Instant>,
    cancelled: std::sync::Arc<AtomicBool>,
    /// It was named: everything goes over it, since its home may be another one.
    was_named: bool,
}

impl Daemon {
    /// The daemon that a command uses, if any.
    ///
    /// # Errors
    /// A daemon that was named and cannot be used; one that speaks another version, or not at all.
    pub(crate) fn find(
        choice: &Choice,
        command: Circumstances<'_>,
    ) -> Result<Option<Self>, Failure> {
        match choice {
            Choice::Never => Ok(None),
            Choice::This(path) => {
                let client = connect(path, Expected::of_named())?;
                Ok(Some(Daemon::new(client, true, command)))
            }
            Choice::Own => {
                let Some(path) = peer::own_socket() else {
                    return Ok(None);
                };
                let client = match connect(&path, Expected::Own) {
                    Ok(client) => client,
                    Err(Error::NoDaemon { .. } | Error::OtherPeer { .. } | Error::Gone { .. }) => {
                        return Ok(None);
                    }
                    Err(error) => return Err(error.into()),
                };
                let is_ours = serves(&home::folder(command.home)?, client.home_id());
                Ok(is_ours.then(|| Daemon::new(client, false, command)))
            }
        }
    }

    fn new(client: Client, was_named: bool, command: Circumstances<'_>) -> Self {
        let Circumstances {
            deadline,
            cancelled,
            ..
        } = command;
        Daemon {
            client,
            listener: Listener::new(
                command.pins,
                command.management_keys,
                command.watcher,
                command.call,
            ),
            deadline,
            cancelled,
            was_named,
        }
    }

    /// Whether it serves the home of the command, so that what needs only the registry does not ask
    /// it.
    pub(crate) fn shares_home(&self) -> bool {
        !self.was_named
    }

    /// What it says of itself.
    pub(crate) fn hello(&self) -> Hello {
        self.client.hello()
    }

    fn ask<R: Request>(&self, request: &R) -> Result<R::Reply, Failure> {
        let answer = self.client.ask(request, &self.call(None));
        answer.map_err(|error| self.failure(error))
    }

    /// The same for what is undone if the command is interrupted: then the daemon is told, and its
    /// answer waited for.
    fn ask_tidily<R: Request>(&self, request: &R) -> Result<R::Reply, Failure> {
        let (cancel, is_over) = (Cancel::new(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| {
                while !is_over.load(Ordering::Acquire) {
                    if self.cancelled.load(Ordering::SeqCst) {
                        cancel.cancel();
                        return;
                    }
                    std::thread::park_timeout(LOOK);
                }
            });
            let answer = self.client.ask(request, &self.call(Some(&cancel)));
            is_over.store(true, Ordering::Release);
            watching.thread().unpark();
            answer.map_err(|error| self.failure(error))
        })
    }

    fn stream(&self, engine: &EngineId, message: &mut Input) -> Result<Signature, Failure> {
        let call = self.call(None);
        let signed = self.client.commit_stream(engine, message, &raw(), &call);
        signed.map_err(|error| match error {
            Error::Input(error) => message.failed(&error),
            other => self.failure(other),
        })
    }

    fn call<'a>(&'a self, cancel: Option<&'a Cancel>) -> Call<'a> {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        Call {
            deadline: self.deadline.map(left),
            cancel,
            listener: &self.listener,
            ..Call::default()
        }
    }

    /// Where there was no PIN the daemon knows only that, and the listener why.
    fn failure(&self, error: Error) -> Failure {
        let why = self.listener.take_failure();
        let why = why.filter(|_| ["pin-needed", "management-key-needed"].contains(&error.code()));
        why.unwrap_or_else(|| error.into())
    }
}

fn connect(path: &Path, expected: Expected) -> Result<Client, Error> {
    Client::connect(Options {
        expected,
        program: concat!("claviger ", env!("CARGO_PKG_VERSION")).into(),
        answers_pins: true,
        ..Options::new(path)
    })
}

/// Whether a daemon that serves the home with this id serves `home`.
fn serves(home: &Path, home_id: &str) -> bool {
    if home_id.is_empty() {
        return false;
    }
    // Where there is no registry the daemon would have made one.
    mark::is_of(home, home_id)
        || has_registry(home)
            && Registry::open(home).is_ok_and(|registry| {
                let id = registry.home_id();
                !registry.is_copy() && id.is_ok_and(|id| id.as_deref() == Some(home_id))
            })
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => (*refusal).into(),
            other => {
                let code = other.code().to_owned();
                let hint = hints::by_code(&code).into();
                Failure::told(code, other.to_string(), hint, None)
            }
        }
    }
}

impl From<Refusal> for Failure {
    fn from(mut refusal: Refusal) -> Self {
        // The daemon's own errors have no hint: that is a front-end's to give.
        let hint = match refusal.hint.is_empty() {
            true => hints::by_code(&refusal.code).into(),
            false => refusal.hint,
        };
        let token = refusal.fields.remove("token");
        Failure::told(refusal.code, refusal.message, hint, token)
    }
}
