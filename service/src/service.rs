//! The daemon as its front-end holds it: built, served, drained.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use claviger_attached::Devices;
use claviger_client::frame::{self};
use claviger_client::wire::{self, Frame, frame::Content};
use claviger_engine::{EngineError, FoundTokens, Node};
use claviger_token::Call;
use claviger_token::sync::lock;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout_at};

use crate::asking::Confirm;
use crate::audit::{Audit, AuditError, Sealer};
use crate::connection::Connection;
use crate::guest::{FrontEnd, Guest};
use crate::limits::{Counted, Limits, Load, Loads, Taken};
use crate::metrics::{Metrics, Moment, serve_port, serve_socket};
use crate::outbox::Outbox;
use crate::pins::PinSettings;
use crate::policy::Rules;
use crate::replies::Hints;
use crate::session::Session;
use crate::settings::MetricsSettings;
use crate::shared::{GRACE, Living, Shared, State, TokensJson};
use crate::sockets::{Listening, SocketError};
use crate::{Caller, Refusal, notify};

/// So long nothing is accepted after the system refused to accept.
const PAUSE: Duration = Duration::from_millis(100);

/// A daemon. Clones are the same one.
///
/// It lives in a tokio runtime that has its timers and its I/O enabled.
#[derive(Clone)]
pub struct Service {
    pub(crate) shared: Arc<Shared>,
    /// Who serves sockets in protocols of their own.
    front_ends: Arc<[Arc<dyn FrontEnd>]>,
}

/// What a daemon is made of.
pub struct ServiceBuilder {
    node: Node,
    hints: Hints,
    tokens_json: TokensJson,
    program: String,
    home_id: String,
    is_system: bool,
    limits: Limits,
    audit: Audit,
    pins: PinSettings,
    devices: Devices,
    metrics: Option<Arc<Metrics>>,
    confirmer: Option<Arc<dyn Confirm>>,
    confirmed: Vec<String>,
    front_ends: Vec<Arc<dyn FrontEnd>>,
}

impl ServiceBuilder {
    /// One more front-end, which serves sockets in a protocol of its own.
    #[must_use]
    pub fn front_end(mut self, front_end: Arc<dyn FrontEnd>) -> Self {
        self.front_ends.push(front_end);
        self
    }

    /// The devices that programs attach. The node has a driver for them
    /// ([`AttachedDriver`](claviger_attached::AttachedDriver)); without one, none is served.
    #[must_use]
    pub fn devices(mut self, devices: Devices) -> Self {
        self.devices = devices;
        self
    }

    /// The figures that it counts in. By default it counts in none.
    #[must_use]
    pub fn metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Who asks a person to confirm the use of a key. By default nobody does, and what is to be
    /// confirmed is refused.
    #[must_use]
    pub fn confirmer(mut self, confirmer: Arc<dyn Confirm>) -> Self {
        self.confirmer = Some(confirmer);
        self
    }

    /// The identities of which a person confirms each use, whoever asks. By default there are none.
    #[must_use]
    pub fn confirmed(mut self, identities: Vec<String>) -> Self {
        self.confirmed = identities;
        self
    }

    /// The log of who used which key. By default there is none.
    #[must_use]
    pub fn audit(mut self, audit: Audit) -> Self {
        self.audit = audit;
        self
    }

    /// How PINs are handled.
    #[must_use]
    pub fn pins(mut self, pins: PinSettings) -> Self {
        self.pins = pins;
        self
    }

    /// What a person can do about an error. By default nothing is said.
    #[must_use]
    pub fn hints(mut self, hints: fn(&EngineError) -> String) -> Self {
        self.hints = hints;
        self
    }

    /// How tokens are shown, as JSON.
    #[must_use]
    pub fn tokens_json(mut self, show: fn(&FoundTokens) -> String) -> Self {
        self.tokens_json = show;
        self
    }

    /// The program and its version, which callers are told.
    #[must_use]
    pub fn program(mut self, program: impl Into<String>) -> Self {
        self.program = program.into();
        self
    }

    /// Whether it serves all users of the system, by their grants; by default it serves its own
    /// user.
    #[must_use]
    pub fn system(mut self, is_system: bool) -> Self {
        self.is_system = is_system;
        self
    }

    /// What callers may take.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The daemon.
    pub fn build(self) -> Service {
        let (state, _) = watch::channel(State::Running);
        let rules = Rules::new(&self.node, self.is_system);
        rules.confirm(&self.confirmed);
        Service {
            front_ends: self.front_ends.into(),
            shared: Arc::new(Shared {
                rules,
                audits: self.audit.status().0 != "off",
                audit: self.audit,
                pins: self.pins,
                devices: self.devices,
                metrics: self.metrics,
                confirmer: self.confirmer,
                figures_at: Mutex::default(),
                keeper: OnceLock::new(),
                node: self.node,
                hints: self.hints,
                tokens_json: self.tokens_json,
                program: self.program,
                home_id: self.home_id,
                is_system: self.is_system,
                limits: ArcSwap::from_pointee(self.limits),
                loads: Loads::default(),
                begun_at: Instant::now(),
                state,
                is_draining: AtomicBool::new(false),
                is_forced: AtomicBool::new(false),
                in_flight: AtomicU32::new(0),
                answered: AtomicU64::new(0),
                connections: Mutex::default(),
                numbers: AtomicU64::new(0),
                ended: Notify::new(),
            }),
        }
    }
}

impl Service {
    /// Starts building a daemon for `node`.
    pub fn builder(node: Node) -> ServiceBuilder {
        let home_id = node.registry().home_id().ok().flatten();
        ServiceBuilder {
            node,
            hints: |_| String::new(),
            tokens_json: |_| String::new(),
            program: concat!("claviger-service ", env!("CARGO_PKG_VERSION")).to_owned(),
            home_id: home_id.unwrap_or_default(),
            is_system: false,
            limits: Limits::default(),
            audit: Audit::off(),
            pins: PinSettings::default(),
            devices: Devices::default(),
            metrics: None,
            confirmer: None,
            confirmed: Vec::new(),
            front_ends: Vec::new(),
        }
    }

    /// Serves until [`Service::drain`] is called. The files of the sockets are then removed, and
    /// connections may go on for as long as the draining lasts.
    ///
    /// # Errors
    /// Those of a socket that cannot be made part of the runtime.
    pub async fn serve(&self, sockets: Vec<Listening>) -> io::Result<()> {
        raise_file_limit();
        let watching = tokio::spawn(Arc::clone(self.shared.keeper()).watch());
        let mut accepting = tokio::task::JoinSet::new();
        for socket in sockets {
            let (name, listener, file) = socket.into_parts();
            let listener = registered(listener)?;
            let front_end = self.front_ends.iter().find(|one| one.serves(&name));
            let socket = Socket {
                front_end: front_end.cloned(),
                name,
            };
            let (shared, mut state) = (Arc::clone(&self.shared), self.shared.state.subscribe());
            accepting.spawn(async move {
                let _file = file;
                tokio::select! {
                    () = shared.accept(&socket, &listener) => {}
                    _ = state.wait_for(|state| *state != State::Running) => {
                        shared.accept_waiting(&socket, &listener);
                    }
                }
            });
        }
        let node = self.shared.node.clone();
        notify::ready(&notify::tokens(&node));
        let telling = tokio::spawn(notify::keep_telling(move || notify::tokens(&node)));
        while accepting.join_next().await.is_some() {}
        self.shared.ended.notify_waiters();
        self.shared.ended_for_good().await;
        // Its task may not be over before the process is.
        drop(lock(&self.shared.figures_at).take());
        watching.abort();
        telling.abort();
        Ok(())
    }

    /// Ends: begins nothing new, answers what was begun, and ends the connections. After `limit`
    /// the requests in flight are given up. Then it logs out of all tokens. Whether all ended by
    /// themselves.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.drain_then(limit, async {}).await.0
    }

    /// The same, and does `last` before it logs out; with what came of that.
    pub async fn drain_then<T>(&self, limit: Duration, last: impl Future<Output = T>) -> (bool, T) {
        let by_themselves = self.end_connections(limit).await;
        let done = last.await;
        self.shared.log_out().await;
        (by_themselves, done)
    }

    /// Seals its log as `identity`, with the PINs that the daemon has; each seal may take so long.
    /// To be called in its runtime.
    ///
    /// # Errors
    /// As [`Sealer::new`].
    pub fn sealer(&self, identity: &str, limit: Duration) -> Result<Sealer, AuditError> {
        let (shared, keeper) = (&self.shared, Arc::clone(self.shared.keeper()));
        let call = move || Call::within(limit).using(keeper.access_of_the_daemon());
        Sealer::new(&shared.audit, &shared.node, identity, call)
    }

    async fn end_connections(&self, limit: Duration) -> bool {
        let shared = &self.shared;
        notify::stopping();
        shared.is_draining.store(true, Ordering::SeqCst);
        shared.state.send_replace(State::Draining);
        shared.wake_all();
        if shared.ended_by(limit).await {
            return true;
        }
        shared.is_forced.store(true, Ordering::SeqCst);
        shared.wake_all();
        if !shared.ended_by(GRACE).await {
            shared.abort_all();
        }
        false
    }

    /// The node that it serves.
    pub fn node(&self) -> &Node {
        &self.shared.node
    }

    /// Shows its figures where `wanted` says, as long as the runtime lives: if it was built with
    /// [some](ServiceBuilder::metrics). To be called in its runtime.
    ///
    /// # Errors
    /// [`SocketError`] of the socket. That a port is taken is said in the log.
    pub fn show_metrics(&self, wanted: &MetricsSettings) -> Result<(), SocketError> {
        let Some(metrics) = &self.shared.metrics else {
            return Ok(());
        };
        let moment = |service: Service| move || service.moment();
        if let Some(path) = &wanted.socket {
            let (_, listener, file) = Listening::bind("metrics", path, 0o600)?.into_parts();
            *lock(&self.shared.figures_at) = file;
            let serving = serve_socket(Arc::clone(metrics), listener, moment(self.clone()));
            tokio::spawn(async move {
                if let Err(error) = serving.await {
                    tracing::warn!(%error, "figures are not shown at the socket");
                }
            });
        }
        if let Some(port) = wanted.port {
            let serving = serve_port(Arc::clone(metrics), port, moment(self.clone()));
            tokio::spawn(async move {
                if let Err(error) = serving.await {
                    tracing::warn!(%error, port, "figures are not shown at the port");
                }
            });
        }
        Ok(())
    }

    /// How it is, for [`Metrics::text`].
    pub fn moment(&self) -> Moment {
        let shared = &self.shared;
        let unlocked = shared
            .keeper
            .get()
            .map_or(0, |keeper| keeper.status().len());
        let wrong = shared.keeper.get().map(|keeper| keeper.wrong_pins());
        let (pins_rejected, pins_differed) = wrong.unwrap_or_default();
        Moment {
            connections: lock(&shared.connections).len(),
            in_flight: shared.in_flight.load(Ordering::Relaxed) as usize,
            unlocked,
            tokens: shared.node.token_states(),
            queues: shared.node.token_queues(),
            audit_fails: shared.audit.status().1.is_some(),
            pins_rejected,
            pins_differed,
        }
    }

    /// How it is.
    pub fn status(&self) -> wire::StatusReply {
        self.shared.status()
    }
}

/// A socket, and who serves it in another protocol than the daemon's wire.
struct Socket {
    name: Arc<str>,
    front_end: Option<Arc<dyn FrontEnd>>,
}

impl Shared {
    /// Accepts connections, whatever goes wrong with one.
    async fn accept(self: &Arc<Self>, socket: &Socket, listener: &UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.admit(socket, stream),
                // The peer has gone.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "no connection is accepted for a moment");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Those that have connected when the daemon ends are told so, and lose nothing.
    fn accept_waiting(self: &Arc<Self>, socket: &Socket, listener: &UnixListener) {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        while let std::task::Poll::Ready(Ok((stream, _))) = listener.poll_accept(&mut cx) {
            self.admit(socket, stream);
        }
    }

    fn admit(self: &Arc<Self>, socket: &Socket, stream: UnixStream) {
        let caller = match stream.peer_cred() {
            Ok(peer) => Caller {
                uid: peer.uid(),
                gid: peer.gid(),
                socket: Arc::clone(&socket.name),
            },
            Err(error) => {
                tracing::warn!(%error, "a connection of nobody is not served");
                return;
            }
        };
        let load = self.loads.of(caller.uid);
        match self.place_for(&load) {
            Ok(place) => self.spawn((stream, socket), caller, load, place),
            Err(refusal) => {
                tracing::info!(uid = caller.uid, %refusal, "a connection is refused");
                if socket.front_end.is_none() {
                    refuse(&stream, &refusal);
                }
            }
        }
    }

    fn place_for(&self, load: &Arc<Load>) -> Result<Taken, Refusal> {
        let most = self.limits().connections;
        if lock(&self.connections).len() >= most {
            let what = "connections";
            return Err(Refusal::Busy { what, most });
        }
        let most = self.limits().connections_of_caller;
        let what = "connections of one caller";
        load.take(Counted::Connection, most)
            .ok_or(Refusal::Busy { what, most })
    }

    fn spawn(
        self: &Arc<Self>,
        (stream, socket): (UnixStream, &Socket),
        caller: Caller,
        load: Arc<Load>,
        place: Taken,
    ) {
        let outbox = Arc::<Outbox>::default();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let living = Living {
            outbox: Arc::clone(&outbox),
            task: None,
        };
        lock(&self.connections).insert(number, living);
        let entered = Entered {
            shared: Arc::clone(self),
            number,
            _place: place,
        };
        let session = Session {
            node: self.rules.view(&caller),
            policy: self.rules.judge(&caller),
            keeper: Arc::clone(self.keeper()),
            _present: self.keeper().connected(&caller),
            shared: Arc::clone(self),
            caller,
            outbox,
            devices: Arc::default(),
            load,
        };
        let front_end = socket.front_end.clone();
        let task = tokio::spawn(async move {
            let _entered = entered;
            match front_end {
                Some(front_end) => front_end.serve(stream, Guest::new(session)).await,
                None => Connection::new(stream, Arc::new(session)).run().await,
            }
        });
        if let Some(living) = lock(&self.connections).get_mut(&number) {
            living.task = Some(task.abort_handle());
        }
    }

    /// Lets each connection look at what has changed.
    pub(crate) fn wake_all(&self) {
        let outboxes: Vec<_> = {
            let connections = lock(&self.connections);
            connections
                .values()
                .map(|living| Arc::clone(&living.outbox))
                .collect()
        };
        outboxes.iter().for_each(|outbox| outbox.wake());
    }

    fn abort_all(&self) {
        for living in lock(&self.connections).values() {
            if let Some(task) = &living.task {
                task.abort();
            }
        }
    }

    /// Waits until the last connection has ended.
    async fn ended_for_good(&self) {
        loop {
            let ended = self.ended.notified();
            if lock(&self.connections).is_empty() {
                return;
            }
            ended.await;
        }
    }

    /// Whether all connections have ended within `limit`.
    async fn ended_by(&self, limit: Duration) -> bool {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let ended = self.ended.notified();
            if lock(&self.connections).is_empty() && self.state.receiver_count() == 0 {
                return true;
            }
            if timeout_at(end, ended).await.is_err() {
                return false;
            }
        }
    }
}

/// A connection among those that live, as long as its task does.
struct Entered {
    shared: Arc<Shared>,
    number: u64,
    _place: Taken,
}

impl Drop for Entered {
    fn drop(&mut self) {
        lock(&self.shared.connections).remove(&self.number);
        self.shared.ended.notify_waiters();
    }
}

/// Says why the connection is not served, as far as that takes no waiting.
fn refuse(stream: &UnixStream, refusal: &Refusal) {
    let mut bytes = Vec::new();
    let said = Frame::new(0, Content::Error(refusal.to_wire()));
    if frame::encode(&said, &mut bytes).is_ok() {
        let _ = stream.try_write(&bytes);
    }
}

fn registered(listener: StdListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// As many files as the system allows: each connection is one.
fn raise_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!(%error, "the number of open files stays as it is");
        }
    }
}
