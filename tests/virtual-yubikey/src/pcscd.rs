//! A pcscd of this process's own, with readers that are virtual.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a fixture that fails is a test that fails"
)]

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rand_core::{OsRng, RngCore as _};
use rustix::process::geteuid;

use crate::card::Card;
use crate::faults::{Device, Faults, Smartcard};
use crate::serve::Plug;
use claviger_token::sync::lock;

/// The variable that tells libpcsclite where pcscd listens.
const SOCKET: &str = "PCSCLITE_CSOCK_NAME";

/// The reader driver, where distributions put it: Debian and Ubuntu, Fedora.
const DRIVERS: [&str; 2] = [
    "/usr/lib/pcsc/drivers/serial/libifdvpcd.so",
    "/usr/lib64/pcsc/drivers/serial/libifdvpcd.so",
];

/// How many readers there are. Two cards go into each.
const READERS: u16 = 2;
const SLOTS_PER_READER: u16 = 2;
const PORTS: u16 = READERS * SLOTS_PER_READER;

/// How long pcscd may take for anything. It looks at each slot every 0.4 s.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where pcscd puts its number, and where nothing else may be needed.
const RUN: &str = "/run/pcscd";

/// What runs beside this process: pcscd, another one for each line of the standard input,
/// until that ends, that is, until this process does, in whatever way.
///
/// pcscd gets its socket as from systemd (`sd_listen_fds(3)`): it comes as the standard
/// output. It looks for the drivers of readers that are real in a folder that has none. As
/// root it would take the place of the system's own pcscd, so it is nobody. One that is built with
/// polkit, as on Debian 13, would ask it who may use cards, and refuse everybody where it is not
/// there.
const SCRIPT: &str = r#"
exec 3<&1 1>&2
nobody="setpriv --reuid 65534 --regid 65534 --clear-groups"
test "$(id -u)" = 0 && $nobody true || nobody=
polkit=--disable-polkit
pcscd --help 2>&1 | grep -q -e $polkit || polkit=
start() {
    LISTEN_FDS=1 PCSCLITE_HP_DROPDIR=/run/pcscd \
    sh -c 'LISTEN_PID=$$ exec "$@"' sh $nobody pcscd $polkit --foreground --config "$PWD/reader.conf" \
    </dev/null &
}
start
while read -r _; do
    kill -KILL $! && wait $!
    start
    rm -f restarting
done
kill -KILL $!
rm -rf ./*
"#;

/// The pcscd of this process. It starts when it is first asked for, and ends with the
/// process.
///
/// It has a socket of its own and needs no rights; the variable `PCSCLITE_CSOCK_NAME` leads
/// there: this process and its children use it as they would the system's. Readers that are
/// real are not seen.
///
/// libpcsclite reads the variable once. Whatever else uses PC/SC in this process has to
/// come later: a program with other users of it calls [`Pcscd::prepare`] first.
///
/// ```no_run
/// use claviger_virtual_yubikey::{Card, Pcscd};
///
/// let yubikey = Pcscd::insert(Card::builder().pin("246802").build());
/// println!("{} is in {}", yubikey.card().serial(), yubikey.reader());
/// let (variable, socket) = Pcscd::environment(); // for processes that the test starts
/// ```
pub struct Pcscd {
    socket: PathBuf,
    slots: Vec<Slot>,
    taken: Mutex<Vec<bool>>,
    freed: Condvar,
    /// Its standard input is what keeps it alive.
    child: Mutex<Child>,
    /// While it is there, no other process of ours takes these ports.
    _lock: UdpSocket,
}

struct Slot {
    port: u16,
    reader: CString,
}

impl Pcscd {
    /// Starts it, and points this process to it. A test program that does this before it
    /// starts threads need not wonder who reads the environment meanwhile.
    ///
    /// # Panics
    /// Where it cannot be had.
    pub fn prepare() {
        Pcscd::of_this_process();
    }

    /// Puts a card into a free slot (there are four; it waits if none is free), and waits
    /// until pcscd has noticed. When the answer is dropped, the card is taken out.
    ///
    /// # Panics
    /// Where pcscd cannot be had, or does not notice.
    pub fn insert<C: Smartcard>(card: C) -> Inserted<C> {
        let pcscd = Pcscd::of_this_process();
        let index = pcscd.take_slot();
        let device = Device::new(card);
        let plug = Plug::new(pcscd.slots[index].port, device.clone()).unwrap();
        let inserted = Inserted {
            pcscd,
            index,
            device,
            plug: Some(plug),
        };
        inserted.insert();
        inserted
    }

    /// The variable with which another process reaches it, and its value.
    pub fn environment() -> (&'static str, PathBuf) {
        (SOCKET, Pcscd::of_this_process().socket.clone())
    }

    /// Kills it and starts another one in its place, which is there when this returns; so
    /// are the cards. To who uses PC/SC, the service has gone and come back.
    ///
    /// # Panics
    /// If it does not come back.
    pub fn restart() {
        let pcscd = Pcscd::of_this_process();
        let mut child = lock(&pcscd.child);
        let restarting = pcscd.socket.with_file_name("restarting");
        fs::write(&restarting, "").unwrap();
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let end = Instant::now() + PATIENCE;
        while restarting.exists() {
            assert!(Instant::now() < end, "pcscd does not end");
            thread::sleep(Duration::from_millis(5));
        }
        let back = offers(&pcscd.slots);
        assert!(back, "pcscd comes back without its readers");
        drop(child);
    }

    fn of_this_process() -> &'static Pcscd {
        static PCSCD: OnceLock<Pcscd> = OnceLock::new();
        PCSCD.get_or_init(Pcscd::start)
    }

    fn start() -> Pcscd {
        let driver = driver();
        let folder = folder();
        let socket = folder.join("pcscd.comm");
        // SAFETY: setting a variable races with code that reads the environment without
        // the standard library's lock, that is, C code. This runs once, before the
        // process first uses libpcsclite (which is what reads this variable), and the
        // test harness calls no other.
        unsafe { std::env::set_var(SOCKET, &socket) };
        // Somebody else may take a port just after it was found to be free.
        for _ in 0..5 {
            let (first, lock) = free_ports();
            let slots = configure(&folder, driver, first);
            let mut child = spawn(&folder, &socket);
            if offers(&slots) {
                return Pcscd {
                    socket,
                    taken: Mutex::new(vec![false; slots.len()]),
                    slots,
                    freed: Condvar::new(),
                    child: Mutex::new(child),
                    _lock: lock,
                };
            }
            drop(child.stdin.take());
            let _ = child.wait();
        }
        let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
        panic!("pcscd does not start. It said:\n{log}");
    }

    fn take_slot(&self) -> usize {
        let end = Instant::now() + Duration::from_secs(120);
        let mut taken = lock(&self.taken);
        loop {
            if let Some(free) = taken.iter().position(|taken| !taken) {
                taken[free] = true;
                return free;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no slot became free");
            let woken = self.freed.wait_timeout(taken, left);
            taken = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A card in a reader. Dropping it takes the card out.
pub struct Inserted<C: Smartcard = Card> {
    pcscd: &'static Pcscd,
    index: usize,
    device: Device<C>,
    plug: Option<Plug<C>>,
}

impl<C: Smartcard> Inserted<C> {
    /// The card. It answers nobody else until the guard is gone.
    pub fn card(&self) -> MutexGuard<'_, C> {
        self.device.card()
    }

    /// The card and its switches.
    pub fn device(&self) -> &Device<C> {
        &self.device
    }

    /// The switches, and the log of what was said.
    pub fn faults(&self) -> &Arc<Faults> {
        self.device.faults()
    }

    /// The reader's name in PC/SC.
    pub fn reader(&self) -> &str {
        self.slot().reader.to_str().unwrap()
    }

    /// Takes the card out, in the middle of whatever it is doing, and waits until pcscd
    /// has noticed.
    ///
    /// # Panics
    /// If pcscd does not notice.
    pub fn remove(&self) {
        self.plug().unplug();
        self.wait_for(pcsc::State::EMPTY);
    }

    /// Puts the card in again, after [`Inserted::remove`] or a fault, and waits until
    /// pcscd has noticed.
    ///
    /// # Panics
    /// If pcscd does not notice.
    pub fn insert(&self) {
        if !self.is_inserted() {
            // A card that comes back at once would not have been missed.
            self.wait_for(pcsc::State::EMPTY);
        }
        self.plug().plug();
        self.wait_for(pcsc::State::PRESENT);
    }

    /// Whether the card is in: a fault may have taken it out.
    pub fn is_inserted(&self) -> bool {
        self.plug().is_plugged()
    }

    /// Resets the card as another program does that shares it. Whoever is connected to it
    /// learns so from PC/SC with the next command.
    ///
    /// # Panics
    /// If the card cannot be shared.
    pub fn reset(&self) {
        let context = pcsc::Context::establish(pcsc::Scope::User).unwrap();
        let (mode, any) = (pcsc::ShareMode::Shared, pcsc::Protocols::ANY);
        let card = context.connect(&self.slot().reader, mode, any).unwrap();
        card.disconnect(pcsc::Disposition::ResetCard)
            .map_err(|(_, error)| error)
            .unwrap();
    }

    fn slot(&self) -> &Slot {
        &self.pcscd.slots[self.index]
    }

    fn plug(&self) -> &Plug<C> {
        // Only dropping takes it.
        self.plug.as_ref().unwrap()
    }

    #[track_caller]
    fn wait_for(&self, wanted: pcsc::State) {
        let context = pcsc::Context::establish(pcsc::Scope::User).unwrap();
        let mut states = [pcsc::ReaderState::new(
            self.slot().reader.clone(),
            pcsc::State::UNAWARE,
        )];
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match context.get_status_change(left, &mut states) {
                Ok(()) => {}
                Err(error) => panic!("waiting for {wanted:?}: {error}"),
            }
            if states[0].event_state().contains(wanted) {
                return;
            }
            states[0].sync_current_state();
        }
    }
}

impl<C: Smartcard> Drop for Inserted<C> {
    fn drop(&mut self) {
        self.plug = None;
        lock(&self.pcscd.taken)[self.index] = false;
        self.pcscd.freed.notify_one();
    }
}

/// # Panics
/// Where something is missing.
fn driver() -> &'static Path {
    let missing = |what| panic!("{what} is not installed: run `cargo xtask setup`");
    let pcscd = ["/usr/sbin/pcscd", "/usr/bin/pcscd", "/sbin/pcscd"];
    if !pcscd.into_iter().any(|path| Path::new(path).exists()) {
        missing("pcscd");
    }
    // The package makes it where systemd runs; it need not be writable.
    if !Path::new(RUN).is_dir() && fs::create_dir(RUN).is_err() {
        panic!("{RUN} is not there, without which no pcscd starts: run `cargo xtask setup`");
    }
    let found = DRIVERS
        .into_iter()
        .map(Path::new)
        .find(|path| path.exists());
    found.unwrap_or_else(|| missing("vsmartcard-vpcd"))
}

/// `pcscd-PID`, empty, in the target folder, or where everybody can read, and where the path
/// to its socket fits into what a socket's address has room for.
fn folder() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let target = program
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .map(|target| target.join("tmp"))
        .filter(|folder| folder.as_os_str().len() < 80 && !geteuid().is_root());
    let parent = target.unwrap_or_else(std::env::temp_dir);
    fs::create_dir_all(&parent).unwrap();
    sweep(&parent);
    let folder = parent.join(format!("pcscd-{}", std::process::id()));
    // A process with our number may have left one behind.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Removes the folders of processes that have ended.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).unwrap().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some(process) = name.strip_prefix("pcscd-") else {
            continue;
        };
        if !Path::new("/proc").join(process).exists() {
            // Others sweep too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Ports that follow one another and are free, below those that the system gives to
/// outgoing connections. The UDP port of the first number is the lock by which other
/// processes of ours, whoever runs them, know that the block is taken.
fn free_ports() -> (u16, UdpSocket) {
    for _ in 0..1000 {
        let block = u16::try_from(OsRng.next_u32() % 3000).unwrap();
        let first = 20_000 + block * PORTS;
        let Ok(locked) = UdpSocket::bind((Ipv4Addr::LOCALHOST, first)) else {
            continue;
        };
        let is_free = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        if (first..first + PORTS).all(is_free) {
            return (first, locked);
        }
    }
    panic!("no free ports between 20,000 and 32,000");
}

/// Writes the readers' configuration. Each reader has a copy of the driver of its own: a
/// driver keeps its slots in one table, however many readers it is loaded for.
fn configure(folder: &Path, driver: &Path, first: u16) -> Vec<Slot> {
    let mut text = String::new();
    let mut slots = Vec::new();
    for reader in 0..READERS {
        let name = format!("Yubico YubiKey CCID {}", char::from(b'A' + reader as u8));
        let copy = folder.join(format!("driver-{reader}.so"));
        let port = first + reader * SLOTS_PER_READER;
        fs::copy(driver, &copy).unwrap();
        text += &format!(
            "FRIENDLYNAME \"{name}\"\nDEVICENAME /dev/null:{port}\n\
             LIBPATH {}\nCHANNELID {port}\n\n",
            copy.display()
        );
        for slot in 0..SLOTS_PER_READER {
            slots.push(Slot {
                port: port + slot,
                reader: CString::new(format!("{name} 00 0{slot}")).unwrap(),
            });
        }
    }
    fs::write(folder.join("reader.conf"), text).unwrap();
    slots
}

fn spawn(folder: &Path, socket: &Path) -> Child {
    let log = File::create(folder.join("log")).unwrap();
    let _ = fs::remove_file(socket);
    let listener =
        UnixListener::bind(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
    fs::set_permissions(socket, fs::Permissions::from_mode(0o777)).unwrap();
    Command::new("sh")
        .args(["-c", SCRIPT])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(OwnedFd::from(listener))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("sh does not start: {error}"))
}

/// Whether pcscd offers all readers. It answers after it has started them: what is not there
/// then did not start.
fn offers(slots: &[Slot]) -> bool {
    let (answer, names) = mpsc::channel();
    // Where it does not start, its socket waits for it for ever.
    thread::spawn(move || {
        let context = pcsc::Context::establish(pcsc::Scope::User);
        let names = context.and_then(|context| context.list_readers_owned());
        let _ = answer.send(names.unwrap_or_default());
    });
    let names = names.recv_timeout(PATIENCE).unwrap_or_default();
    let offered = |slot: &Slot| names.iter().any(|name| **name == *slot.reader);
    slots.iter().all(offered)
}
