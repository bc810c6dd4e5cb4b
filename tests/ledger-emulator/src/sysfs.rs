//! Devices for umockdev's preloaded library: it makes a program see this folder's `dev`
//! and `sys` in place of the system's, and passes what the program does with a device
//! through a socket in its folder `ioctl`.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Where the library is.
///
/// # Panics
/// Where it is not installed.
pub(crate) fn library() -> PathBuf {
    let lib = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(Path::new);
    let below = lib.into_iter().flat_map(|lib| {
        let folders = fs::read_dir(lib).into_iter().flatten().flatten();
        folders.map(|folder| folder.path())
    });
    (lib.into_iter().map(Path::to_path_buf).chain(below))
        .map(|folder| folder.join("libumockdev-preload.so.0"))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("umockdev is not installed: run `cargo xtask setup`"))
}

/// Ledger's report descriptor: usage page FFA0, usage 1, reports of 64 bytes either way.
const DESCRIPTOR: [u8; 34] = [
    0x06, 0xa0, 0xff, 0x09, 0x01, 0xa1, 0x01, 0x09, 0x03, 0x15, 0x00, 0x26, 0xff, 0x00, 0x75, 0x08,
    0x95, 0x40, 0x81, 0x08, 0x09, 0x04, 0x15, 0x00, 0x26, 0xff, 0x00, 0x75, 0x08, 0x95, 0x40, 0x91,
    0x08, 0xc0,
];

/// A Ledger Nano S Plus as the kernel shows it. It is gone when it is dropped.
pub(crate) struct Hidraw {
    root: PathBuf,
    number: usize,
    name: String,
    gone: Arc<AtomicBool>,
}

impl Hidraw {
    /// Shows a device, of this number, whose reports go through this terminal.
    pub(crate) fn new(root: &Path, number: usize, terminal: &Path) -> Hidraw {
        let hidraw = Hidraw {
            root: root.to_owned(),
            number,
            name: format!("hidraw{number}"),
            gone: Arc::default(),
        };
        hidraw.add_to_sys();
        hidraw.add_to_dev(terminal);
        let listener = UnixListener::bind(hidraw.socket()).unwrap();
        let gone = Arc::clone(&hidraw.gone);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if gone.load(Ordering::SeqCst) {
                    return;
                }
                // It ends when the program closes the device.
                thread::spawn(move || drop(serve(stream.unwrap())));
            }
        });
        hidraw.tell("add");
        hidraw
    }

    fn add_to_sys(&self) {
        let (name, number) = (&self.name, self.number);
        let (usb, interface, hid) = (self.usb(), self.interface(), self.hid());
        let hidraw = self.hidraw();

        let write = |folder: &Path, file: &str, text: &str| {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join(file), format!("{text}\n")).unwrap();
        };
        let belongs_to = |folder: &Path, subsystem: &str| {
            let subsystem = self.root.join("sys").join(subsystem);
            fs::create_dir_all(&subsystem).unwrap();
            link(&subsystem, &folder.join("subsystem"));
            subsystem
        };
        write(&usb, "uevent", "DEVTYPE=usb_device\nPRODUCT=2c97/5011/201");
        write(&usb, "idVendor", "2c97");
        write(&usb, "idProduct", "5011");
        write(&usb, "bcdDevice", "0201");
        write(&usb, "manufacturer", "Ledger");
        write(&usb, "product", "Nano S Plus");
        // All of Ledger's devices have this one.
        write(&usb, "serial", "0001");
        belongs_to(&usb, "bus/usb");
        write(&interface, "uevent", "DEVTYPE=usb_interface");
        write(&interface, "bInterfaceNumber", "00");
        belongs_to(&interface, "bus/usb");
        let uevent = "HID_ID=0003:00002C97:00005011\nHID_NAME=Ledger Nano S Plus\nHID_UNIQ=0001";
        write(&hid, "uevent", uevent);
        fs::write(hid.join("report_descriptor"), DESCRIPTOR).unwrap();
        belongs_to(&hid, "bus/hid");
        let uevent = format!("MAJOR={MAJOR}\nMINOR={number}\nDEVNAME={name}");
        write(&hidraw, "uevent", &uevent);
        write(&hidraw, "dev", &format!("{MAJOR}:{number}"));
        link(&hid, &hidraw.join("device"));
        let class = belongs_to(&hidraw, "class/hidraw");
        link(&hidraw, &class.join(name));
        fs::create_dir_all(self.by_number().parent().unwrap()).unwrap();
        link(&hidraw, &self.by_number());
    }

    /// Tells the programs that listen to udev.
    fn tell(&self, action: &str) {
        let path = self.hidraw();
        let path = path.strip_prefix(self.root.join("sys")).unwrap();
        let event = event(&[
            ("ACTION", action),
            ("DEVPATH", &format!("/{}", path.display())),
            ("SUBSYSTEM", "hidraw"),
            ("SEQNUM", "1"),
            ("MAJOR", &MAJOR.to_string()),
            ("MINOR", &self.number.to_string()),
            ("DEVNAME", &format!("/dev/{}", self.name)),
            ("USEC_INITIALIZED", "1"),
        ]);
        let socket = UnixDatagram::unbound().unwrap();
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("event") {
                // The program may have ended.
                let _ = socket.send_to(&event, entry.path());
            }
        }
    }

    fn add_to_dev(&self, terminal: &Path) {
        fs::create_dir_all(self.root.join("dev/.node")).unwrap();
        let number = format!("{MAJOR}:{}", self.number);
        symlink(number, self.root.join("dev/.node").join(&self.name)).unwrap();
        symlink(terminal, self.node()).unwrap();
        fs::create_dir_all(self.socket().parent().unwrap()).unwrap();
    }

    fn node(&self) -> PathBuf {
        self.root.join("dev").join(&self.name)
    }

    fn socket(&self) -> PathBuf {
        self.root.join("ioctl/dev").join(&self.name)
    }

    fn by_number(&self) -> PathBuf {
        (self.root.join("sys/dev/char")).join(format!("{MAJOR}:{}", self.number))
    }

    fn usb(&self) -> PathBuf {
        (self.root.join("sys/devices/pci0000:00/usb1")).join(format!("1-{}", self.number + 1))
    }

    fn interface(&self) -> PathBuf {
        (self.usb()).join(format!("1-{}:1.0", self.number + 1))
    }

    fn hid(&self) -> PathBuf {
        (self.interface()).join(format!("0003:2C97:5011.{:04X}", self.number + 1))
    }

    fn hidraw(&self) -> PathBuf {
        self.hid().join("hidraw").join(&self.name)
    }
}

impl Drop for Hidraw {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        // This wakes the thread that listens, which ends.
        let _ = UnixStream::connect(self.socket());
        let _ = fs::remove_file(self.node());
        let _ = fs::remove_file(self.root.join("dev/.node").join(&self.name));
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_file(self.root.join("sys/class/hidraw").join(&self.name));
        let _ = fs::remove_file(self.by_number());
        let _ = fs::remove_dir_all(self.usb());
        self.tell("remove");
    }
}

/// An event of a hidraw device as udev sends it to those who listen (`struct
/// monitor_netlink_header` of systemd's sd-device). Lengths are in the machine's own order;
/// what a filter in the kernel looks at, in that of networks.
fn event(properties: &[(&str, &str)]) -> Vec<u8> {
    const MAGIC: u32 = 0xfeed_cafe;
    const HEADER: u32 = 40;
    /// MurmurHash2 of `hidraw`.
    const SUBSYSTEM: u32 = 0xc2ca_f397;
    /// There is neither a devtype nor a tag, which takes two numbers.
    const NONE: [u8; 12] = [0; 12];
    let properties: String = properties
        .iter()
        .map(|(name, value)| format!("{name}={value}\0"))
        .collect();
    let mut event = b"libudev\0".to_vec();
    event.extend(MAGIC.to_be_bytes());
    for length in [HEADER, HEADER, properties.len() as u32] {
        event.extend(length.to_ne_bytes());
    }
    event.extend(SUBSYSTEM.to_be_bytes());
    event.extend(NONE);
    event.extend(properties.bytes());
    event
}

/// The number of a driver that is not there.
const MAJOR: u32 = 240;

/// A link that also holds from within the program, to which the folder is the root: it
/// has to be relative.
fn link(target: &Path, link: &Path) {
    let from: Vec<_> = link.parent().unwrap().components().collect();
    let to: Vec<_> = target.components().collect();
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n(std::path::Component::ParentDir, from.len() - common);
    let path: PathBuf = up.chain(to[common..].iter().copied()).collect();
    symlink(path, link).unwrap();
}

// --- What the program does with an open device ----------------------------------------

/// Requests and answers are three numbers each, in the machine's own order: the kind, and
/// two arguments.
const IOCTL: u64 = 1;
const READ: u64 = 7;
const WRITE: u64 = 8;
const DONE: u64 = 3;
const DO_IT_YOURSELF: u64 = 4;
const TAKE_INTO_MEMORY: u64 = 6;

/// `HIDIOCGRDESCSIZE`, `HIDIOCGRDESC` and `HIDIOCGRAWINFO` of Linux' `hidraw.h`.
const DESCRIPTOR_SIZE: u64 = 0x8004_4801;
const GET_DESCRIPTOR: u64 = 0x9004_4802;
const GET_INFO: u64 = 0x8008_4803;

/// The answer to an ioctl that there is not, `ENOTTY`.
const NO_SUCH_IOCTL: u64 = 25;

/// Answers for one open device until it is closed: ioctls here; reading and writing the
/// program does itself, on the terminal.
fn serve(mut stream: UnixStream) -> io::Result<()> {
    loop {
        let [kind, first, second] = receive(&mut stream)?;
        match (kind, first) {
            (READ | WRITE, _) => {
                send(&mut stream, [DO_IT_YOURSELF, 0, 0])?;
                let [_, result, error] = receive(&mut stream)?;
                send(&mut stream, [DONE, result, error])?;
            }
            (IOCTL, DESCRIPTOR_SIZE | GET_DESCRIPTOR | GET_INFO) => {
                let size = (DESCRIPTOR.len() as u32).to_ne_bytes();
                let memory = match first {
                    DESCRIPTOR_SIZE => size.to_vec(),
                    GET_DESCRIPTOR => [&size[..], &DESCRIPTOR].concat(),
                    _ => [
                        3_u32.to_ne_bytes().as_slice(),
                        &0x2c97_u16.to_ne_bytes(),
                        &0x5011_u16.to_ne_bytes(),
                    ]
                    .concat(),
                };
                send(&mut stream, [TAKE_INTO_MEMORY, second, memory.len() as u64])?;
                stream.write_all(&memory)?;
                send(&mut stream, [DONE, 0, 0])?;
            }
            _ => send(&mut stream, [DONE, u64::MAX, NO_SUCH_IOCTL])?,
        }
    }
}

fn receive(stream: &mut UnixStream) -> io::Result<[u64; 3]> {
    let mut numbers = [0; 3];
    for number in &mut numbers {
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes)?;
        *number = u64::from_ne_bytes(bytes);
    }
    Ok(numbers)
}

fn send(stream: &mut UnixStream, numbers: [u64; 3]) -> io::Result<()> {
    stream.write_all(&numbers.map(u64::to_ne_bytes).concat())
}
