//! A USB that is not there, and Ledger devices plugged into it.

use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr};

use crate::device::{Device, Reply};
use crate::frames::{CHANNEL, Joiner, REPORT, Report, split};
use crate::lock;
use crate::scratch::Scratch;
use crate::sysfs::{Hidraw, library};

/// A private USB. A program that it is shown to sees the devices that are plugged in, and
/// no others, whatever library it uses, as long as that goes through libudev and hidraw;
/// nobody else sees them, and none of it takes any rights.
///
/// It takes Debian's umockdev, whose library is preloaded into the program, so the
/// program has to be another process, and dynamically linked.
///
/// ```no_run
/// use claviger_ledger_emulator::{Ethereum, Fault, Usb};
///
/// let usb = Usb::new();
/// let device = usb.plug(Ethereum::new().answerer());
/// device.fail_next(Fault::Silence);
/// let mut command = std::process::Command::new("claviger");
/// let status = usb.show_to(&mut command).arg("tokens").status();
/// device.unplug();
/// ```
pub struct Usb {
    library: PathBuf,
    bus: Arc<Bus>,
}

struct Bus {
    folder: Scratch,
    devices: Mutex<usize>,
}

/// What a device does in place of its next reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Silence,
    /// The first report ends after so many bytes, and no other comes.
    Truncated(usize),
    /// The reports come last one first; a single one has a number that is too high.
    OutOfOrder,
    /// The reports are for a channel that nobody uses.
    OtherChannel,
    /// The first report says that the reply has so many bytes.
    LyingLength(u16),
    /// It is unplugged.
    Unplug,
}

/// A Ledger Nano S Plus that is plugged in. It is unplugged when this is dropped.
pub struct HidDevice {
    shared: Arc<Shared>,
    bridge: Mutex<Option<thread::JoinHandle<()>>>,
}

struct Shared {
    faults: Mutex<VecDeque<Fault>>,
    complaints: Mutex<Vec<String>>,
    /// Tells the thread that serves the device what there is to do.
    wake: Mutex<PipeWriter>,
    /// Held open, so the terminal keeps its settings while no program has it open.
    terminal: OwnedFd,
    hidraw: Mutex<Option<Hidraw>>,
}

const REPLY: u8 = b'r';
const STOP: u8 = b's';

impl Usb {
    /// A USB with nothing plugged in.
    ///
    /// # Panics
    /// Where umockdev is not installed.
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Usb {
        Usb {
            library: library(),
            bus: Arc::new(Bus {
                folder: Scratch::new(),
                devices: Mutex::new(0),
            }),
        }
    }

    /// Plugs in a device: what `answerer` gives of a simulated or recorded one, a closure
    /// over [`Emulator::exchange`](crate::Emulator::exchange), or a test's own.
    pub fn plug(&self, device: impl Device) -> HidDevice {
        let number = {
            let mut devices = lock(&self.bus.devices);
            *devices += 1;
            *devices - 1
        };
        let (master, terminal, path) = open_terminal();
        let (woken, wake) = io::pipe().unwrap();
        let hidraw = Hidraw::new(self.bus.folder.path(), number, &path);
        let shared = Arc::new(Shared {
            faults: Mutex::default(),
            complaints: Mutex::default(),
            wake: Mutex::new(wake),
            terminal,
            hidraw: Mutex::new(Some(hidraw)),
        });
        let (apdus, asked) = mpsc::channel();
        let (answered, replies) = mpsc::channel();
        spawn_app(device, asked, answered, Arc::clone(&shared));
        let bridge = Bridge {
            master,
            woken,
            joiner: Joiner::default(),
            received: Vec::new(),
            apdus,
            replies,
            shared: Arc::clone(&shared),
            _bus: Arc::clone(&self.bus),
        };
        let bridge = thread::spawn(move || bridge.run());
        HidDevice {
            shared,
            bridge: Mutex::new(Some(bridge)),
        }
    }

    /// Lets a program see this USB in place of the system's.
    pub fn show_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("LD_PRELOAD", &self.library)
            .env("UMOCKDEV_DIR", self.bus.folder.path())
    }
}

impl HidDevice {
    /// Does this in place of the next reply, or of the one after those that are to fail
    /// already.
    pub fn fail_next(&self, fault: Fault) {
        lock(&self.shared.faults).push_back(fault);
    }

    /// Takes the device away, whatever it is doing.
    pub fn unplug(&self) {
        self.shared.disappear();
        self.shared.wake(STOP);
        if let Some(bridge) = lock(&self.bridge).take() {
            let ended = bridge.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "the device's answers panicked"
            );
        }
    }

    /// What programs sent that is not as Ledger's devices want it. Nothing answers that.
    pub fn complaints(&self) -> Vec<String> {
        lock(&self.shared.complaints).clone()
    }

    /// Forgets reports that no program has read. The kernel does so when a program closes
    /// a device; here, they wait for the next program.
    pub fn forget_unread(&self) {
        tcflush(&self.shared.terminal, QueueSelector::IFlush).unwrap();
    }
}

impl Drop for HidDevice {
    fn drop(&mut self) {
        self.unplug();
    }
}

impl Shared {
    fn wake(&self, why: u8) {
        // The thread may have ended.
        let _ = lock(&self.wake).write_all(&[why]);
    }

    /// New programs do not find the device any more.
    fn disappear(&self) {
        lock(&self.hidraw).take();
    }
}

/// The device's app, which may take its time, has a thread of its own.
fn spawn_app(
    mut device: impl Device,
    asked: mpsc::Receiver<Vec<u8>>,
    answered: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
) {
    thread::spawn(move || {
        for apdu in asked {
            let (answered, shared) = (answered.clone(), Arc::clone(&shared));
            let reply = Reply::new(move |reply| {
                // A device that has been unplugged answers nobody.
                if answered.send(reply).is_ok() {
                    shared.wake(REPLY);
                }
            });
            device.take(&apdu, reply);
        }
    });
}

/// Carries APDUs from the terminal to the app, and replies back.
struct Bridge {
    /// When it is closed, programs that have the device open notice.
    master: OwnedFd,
    woken: PipeReader,
    joiner: Joiner,
    received: Vec<u8>,
    apdus: mpsc::Sender<Vec<u8>>,
    replies: mpsc::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
    /// Its folder stays as long as there are devices in it.
    _bus: Arc<Bus>,
}

impl Bridge {
    fn run(mut self) {
        loop {
            let mut sources = [
                PollFd::new(&self.woken, PollFlags::IN),
                PollFd::new(&self.master, PollFlags::IN),
            ];
            match poll(&mut sources, None) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled.unwrap(),
            };
            let [woken, written] = sources.map(|source| !source.revents().is_empty());
            if written {
                self.receive();
            }
            if woken {
                let mut why = [0];
                self.woken.read_exact(&mut why).unwrap();
                let plugged = why[0] == REPLY && self.reply();
                if !plugged {
                    self.shared.disappear();
                    return;
                }
            }
        }
    }

    /// Takes what a program has written: reports, each after a zero.
    fn receive(&mut self) {
        let mut buffer = [0; 4096];
        let count = rustix::io::read(&self.master, &mut buffer).unwrap();
        self.received.extend_from_slice(&buffer[..count]);
        while let Some((write, rest)) = self.received.split_first_chunk::<{ 1 + REPORT }>() {
            let joined = match write {
                [0, report @ ..] => self.joiner.push(report),
                [id, ..] => Err(format!("report number {id:02x} where 00 was expected")),
            };
            match joined {
                Ok(None) => {}
                Ok(Some(apdu)) => self.apdus.send(apdu).unwrap(),
                Err(complaint) => lock(&self.shared.complaints).push(complaint),
            }
            self.received = rest.to_vec();
        }
    }

    /// Gives the app's reply to the program, unless there is a fault to be made; whether
    /// the device is still plugged in.
    fn reply(&mut self) -> bool {
        let reply = self.replies.recv().unwrap();
        let length = reply.len() as u16;
        let fault = lock(&self.shared.faults).pop_front();
        let reports = match fault {
            Some(Fault::Unplug) => return false,
            Some(Fault::Silence) => Vec::new(),
            Some(Fault::Truncated(bytes)) => {
                let first = split(CHANNEL, length, &reply)[0];
                self.write(&first[..bytes]);
                Vec::new()
            }
            Some(Fault::OutOfOrder) => {
                let mut reports = split(CHANNEL, length, &reply);
                match &mut reports[..] {
                    [only] => only[4] = 1,
                    several => several.reverse(),
                }
                reports
            }
            Some(Fault::OtherChannel) => split(CHANNEL + 0x0101, length, &reply),
            Some(Fault::LyingLength(lie)) => split(CHANNEL, lie, &reply),
            None => split(CHANNEL, length, &reply),
        };
        for report in reports {
            let report: Report = report;
            self.write(&report);
        }
        true
    }

    fn write(&self, bytes: &[u8]) {
        // A terminal takes so few at once.
        assert_eq!(rustix::io::write(&self.master, bytes).unwrap(), bytes.len());
    }
}

/// A terminal that leaves bytes alone: both of its ends, and where the second one is.
fn open_terminal() -> (OwnedFd, OwnedFd, PathBuf) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = PathBuf::from(ptsname(&master, Vec::new()).unwrap().into_string().unwrap());
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
    let mut settings = tcgetattr(&terminal).unwrap();
    settings.make_raw();
    tcsetattr(&terminal, OptionalActions::Now, &settings).unwrap();
    (master, terminal, path)
}
