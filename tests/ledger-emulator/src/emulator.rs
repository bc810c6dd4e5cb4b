//! Speculos, Ledger's emulator, with a real app in it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::configuration::Hardware;
use crate::install;
use crate::review::{Button, Decision, Hand, Home, Line, text};
use crate::scratch::Scratch;
use crate::serve;

/// How long the emulator may take to start, and its app to answer to a button.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a finger stays on a touch screen.
const TAP: Duration = Duration::from_millis(100);

/// Runs Speculos as it should have run by itself.
const SCRIPT: &str = include_str!("start.py");

/// The variable that names the Ethereum app.
const ETHEREUM: &str = "LEDGER_ETH_ELF";

/// An app for the emulator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum App {
    /// Ledger's Boilerplate, an example of an app: name and version, public keys,
    /// prompts. It signs transactions of its own, and agrees on no keys.
    Boil,
    /// The app in this file.
    Elf(PathBuf),
}

impl App {
    /// The Ethereum app that the variable `LEDGER_ETH_ELF` names.
    ///
    /// # Errors
    /// Why the test has to be skipped.
    ///
    /// # Panics
    /// Where the variable names a file that is not there.
    pub fn ethereum() -> Result<App, &'static str> {
        if let Some(why) = Emulator::skipped() {
            return Err(why);
        }
        let path = std::env::var_os(ETHEREUM).filter(|path| !path.is_empty());
        let path = path.map(PathBuf::from).ok_or(
            "LEDGER_ETH_ELF is not set: it names the Ethereum app's ELF, which is in no registry",
        )?;
        assert!(path.is_file(), "{ETHEREUM}={} is no file", path.display());
        Ok(App::Elf(path))
    }
}

/// A Speculos of its own, on loopback, with Speculos' published seed. It ends when it is
/// dropped, or with this process.
///
/// ```no_run
/// use claviger_ledger_emulator::{App, Emulator};
///
/// let emulator = Emulator::start(App::Boil);
/// emulator.learn_home();
/// let name_and_version = emulator.exchange(&[0xb0, 1, 0, 0, 0]);
/// let reply = std::thread::scope(|scope| {
///     let asked = scope.spawn(|| emulator.exchange(b"\xe0\x05\x01\x00\x0d\x03..."));
///     emulator.wait_for_text("Verify", std::time::Duration::from_secs(5));
///     emulator.approve();
///     asked.join()
/// });
/// ```
pub struct Emulator {
    /// Its standard input is what keeps it alive.
    child: Child,
    folder: Scratch,
    apdu: SocketAddr,
    rest: SocketAddr,
    hardware: Option<Hardware>,
    home: OnceLock<Home>,
}

impl Emulator {
    /// Why tests that need an emulator are to be skipped, if they are.
    pub fn skipped() -> Option<&'static str> {
        let quick = std::env::var_os("CLAVIGER_TEST_QUICK").is_some_and(|value| value == "1");
        quick.then_some("CLAVIGER_TEST_QUICK is 1, and it takes an emulator")
    }

    /// Starts the emulator, and waits until the app shows something.
    ///
    /// # Panics
    /// Where that does not happen, with what the emulator had to say.
    #[expect(clippy::needless_pass_by_value, reason = "it reads better")]
    pub fn start(app: App) -> Emulator {
        let speculos = install::speculos();
        let folder = Scratch::new();
        let log = File::create(folder.path().join("log")).unwrap();
        let elf = match &app {
            App::Boil => speculos.boil.canonicalize(),
            App::Elf(path) => path.canonicalize(),
        };
        let child = Command::new(&speculos.python)
            .args(["-c", SCRIPT])
            .arg(elf.unwrap_or_else(|error| panic!("{app:?}: {error}")))
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", speculos.python.display()));
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut emulator = Emulator {
            child,
            folder,
            apdu: nowhere,
            rest: nowhere,
            hardware: None,
            home: OnceLock::new(),
        };
        emulator.hardware = Hardware::of_target(&emulator.wait_for_line("target "));
        emulator.apdu = emulator.wait_for_port("APDU");
        emulator.rest = emulator.wait_for_port("REST");
        emulator.wait_until(PATIENCE, "the app to show something", |text| {
            !text.is_empty()
        });
        emulator
    }

    /// The device that the app was built for, where it is one that is known.
    pub fn hardware(&self) -> Option<Hardware> {
        self.hardware
    }

    /// Where it takes APDUs, each as `u32be(length) APDU`, and gives each reply as
    /// `u32be(length without status word) data status`. It sends replies to whoever
    /// connected last.
    pub fn apdu_address(&self) -> SocketAddr {
        self.apdu
    }

    /// Sends one APDU, over a connection of its own; the answer is data and status word.
    /// It takes as long as the user does.
    ///
    /// # Panics
    /// Where nobody answers.
    pub fn exchange(&self, apdu: &[u8]) -> Vec<u8> {
        serve::exchange(self.apdu, apdu).unwrap_or_else(|error| self.fail(&error.to_string()))
    }

    /// Presses and releases a button.
    pub fn press(&self, button: Button) {
        let name = match button {
            Button::Left => "left",
            Button::Right => "right",
            Button::Both => "both",
        };
        let body = r#"{"action": "press-and-release"}"#;
        self.rest(&format!("POST /button/{name}"), body)
            .unwrap_or_else(|error| self.fail(&error.to_string()));
    }

    /// What is on the screen, its lines separated by single spaces.
    pub fn screen_text(&self) -> String {
        text(&self.screen())
    }

    /// Waits until `needle` is on the screen; the answer is all that is.
    ///
    /// # Panics
    /// When it does not appear in time.
    pub fn wait_for_text(&self, needle: &str, timeout: Duration) -> String {
        self.wait_until(timeout, &format!("{needle:?}"), |text| {
            text.contains(needle)
        })
    }

    /// Learns what the device shows when it asks nothing: the home screen, where it is
    /// now, and the pages of the menu behind it. [`Emulator::approve`] and
    /// [`Emulator::reject`] leave these alone.
    pub fn learn_home(&self) {
        self.home.get_or_init(|| Home::learn(self));
    }

    /// Whether nothing is reviewed, as far as was [learnt](Emulator::learn_home).
    pub fn is_idle(&self) -> bool {
        self.home
            .get()
            .is_some_and(|home| home.is_shown(&self.screen()))
    }

    /// Goes through a review's screens, and approves; with buttons or on a touch screen. It
    /// returns when that is done, or when the review has ended by itself.
    ///
    /// # Panics
    /// Where the home screen was not [learnt](Emulator::learn_home), or no screen lets
    /// anybody approve.
    pub fn approve(&self) {
        self.decide(Decision::Approve);
    }

    /// Goes through a review's screens, and rejects, as [`Emulator::approve`] does.
    ///
    /// # Panics
    /// As [`Emulator::approve`] does.
    pub fn reject(&self) {
        self.decide(Decision::Reject);
    }

    fn decide(&self, decision: Decision) {
        match self.home.get() {
            Some(home) => home.decide(self, decision),
            None => self.fail("its home screen was not learnt"),
        };
    }

    fn wait_until(&self, timeout: Duration, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + timeout;
        loop {
            let shown = self.try_screen().map(|screen| text(&screen));
            match &shown {
                Ok(text) if wanted(text) => return text.clone(),
                _ if Instant::now() > end => {
                    self.fail(&format!("waited for {what}; the screen shows {shown:?}"))
                }
                _ => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn try_screen(&self) -> io::Result<Vec<Line>> {
        let answer = self.rest("GET /events?currentscreenonly=true", "")?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let events = answer["events"].as_array();
        let events = events.ok_or_else(|| io::Error::other("no events"))?;
        let lines = events.iter().filter_map(|event| {
            let number = |name: &str| event[name].as_u64().and_then(|n| u32::try_from(n).ok());
            let middle =
                |from: &str, size: &str| Some(number(from)? + number(size).unwrap_or_default() / 2);
            Some(Line {
                text: event["text"].as_str()?.trim().to_owned(),
                x: middle("x", "w").unwrap_or_default(),
                y: middle("y", "h").unwrap_or_default(),
            })
        });
        Ok(lines.collect())
    }

    /// One request; the answer is its body.
    fn rest(&self, request: &str, body: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.rest)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        write!(
            stream,
            "{request} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1);
        if status != Some("200") {
            return Err(io::Error::other(format!("{request}: {answer}")));
        }
        Ok(body.to_owned())
    }

    fn wait_for_port(&mut self, name: &str) -> SocketAddr {
        let port = self.wait_for_line(&format!("port {name} "));
        (Ipv4Addr::LOCALHOST, port.parse().unwrap()).into()
    }

    /// What follows `begin` in the first line of the log that has it.
    fn wait_for_line(&mut self, begin: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            // A line counts when it has its end.
            let lines = log.split_inclusive('\n');
            let mut rests = lines.filter_map(|line| line.strip_prefix(begin)?.strip_suffix('\n'));
            if let Some(rest) = rests.next() {
                return rest.to_owned();
            }
            if self.child.try_wait().unwrap().is_some() || Instant::now() > end {
                self.fail("it does not start");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> String {
        let log = fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        panic!("Speculos: {what}. It said:\n{}", self.log());
    }
}

impl Hand for Emulator {
    fn screen(&self) -> Vec<Line> {
        self.try_screen()
            .unwrap_or_else(|error| Emulator::fail(self, &error.to_string()))
    }

    fn touch_screen(&self) -> Option<(u32, u32)> {
        self.hardware.and_then(Hardware::touch_screen)
    }

    fn press(&self, button: Button) {
        Emulator::press(self, button);
    }

    fn touch(&self, from: (u32, u32), to: (u32, u32), held: Duration) {
        let body = serde_json::json!({
            "action": "press-and-release",
            "x": from.0, "y": from.1, "x2": to.0, "y2": to.1,
            "delay": held.max(TAP).as_secs_f64(),
        });
        self.rest("POST /finger", &body.to_string())
            .unwrap_or_else(|error| Emulator::fail(self, &error.to_string()));
    }

    fn fail(&self, what: &str) -> ! {
        Emulator::fail(self, what)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It ends, with its whole process group, when its standard input does.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
