//! Speculos, Ledger's emulator, with a real app in it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::install;
use crate::scratch::Scratch;
use crate::serve;

/// How long the emulator may take to start, and its app to answer to a button.
const PATIENCE: Duration = Duration::from_secs(30);

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

/// A button, or both of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Button {
    /// The left one: back.
    Left,
    /// The right one: on.
    Right,
    /// Both: what the screen says.
    Both,
}

/// A Speculos of its own, on loopback, with Speculos' published seed. It ends when it is
/// dropped, or with this process.
///
/// ```no_run
/// use claviger_ledger_emulator::{App, Emulator};
///
/// let emulator = Emulator::start(App::Boil);
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
        };
        emulator.apdu = emulator.wait_for_port("APDU");
        emulator.rest = emulator.wait_for_port("REST");
        emulator.wait_until(PATIENCE, "the app to show something", |text| {
            !text.is_empty()
        });
        emulator
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
        self.try_screen_text()
            .unwrap_or_else(|error| self.fail(&error.to_string()))
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

    /// Steps through a review's screens, and approves. It has to have begun: wait for
    /// its first screen.
    pub fn approve(&self) {
        // The screen before the one that rejects; it is named after what is asked.
        self.go_to_rejection();
        let rejection = self.screen_text();
        self.press(Button::Left);
        self.wait_until(PATIENCE, "the screen that approves", |text| {
            text != rejection
        });
        self.press(Button::Both);
    }

    /// Steps through a review's screens, and rejects. It has to have begun: wait for its
    /// first screen.
    pub fn reject(&self) {
        self.go_to_rejection();
        self.press(Button::Both);
    }

    /// A review's last screen is the one that rejects.
    fn go_to_rejection(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = self.screen_text();
            if text.starts_with("Reject") || text.starts_with("Cancel") {
                return;
            }
            if Instant::now() > end {
                self.fail(&format!(
                    "no screen of this review rejects; {text:?} is shown"
                ));
            }
            self.press(Button::Right);
        }
    }

    fn wait_until(&self, timeout: Duration, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + timeout;
        loop {
            let text = self.try_screen_text();
            match &text {
                Ok(text) if wanted(text) => return text.clone(),
                _ if Instant::now() > end => {
                    self.fail(&format!("waited for {what}; the screen shows {text:?}"))
                }
                _ => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn try_screen_text(&self) -> io::Result<String> {
        let answer = self.rest("GET /events?currentscreenonly=true", "")?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let events = answer["events"].as_array();
        let events = events.ok_or_else(|| io::Error::other("no events"))?;
        let lines = events.iter().filter_map(|event| event["text"].as_str());
        Ok(lines.map(str::trim).collect::<Vec<_>>().join(" "))
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
        let begin = format!("port {name} ");
        let end = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            // A line counts when it has its end.
            let lines = log.split_inclusive('\n');
            let mut ports = lines.filter_map(|line| line.strip_prefix(&begin)?.strip_suffix('\n'));
            if let Some(port) = ports.next() {
                return (Ipv4Addr::LOCALHOST, port.parse().unwrap()).into();
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

impl Drop for Emulator {
    fn drop(&mut self) {
        // It ends, with its whole process group, when its standard input does.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
