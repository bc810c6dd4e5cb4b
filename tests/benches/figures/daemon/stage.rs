//! Homes, daemons, and the processes that a daemon is measured beside.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use claviger_client::Options;
use claviger_client::blocking::{Call, Client};
use claviger_client::request::{committer, raw};
use claviger_tests::SoftHsm;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::Bare;
use crate::exchange::claviger;
use crate::processes::multiply;

/// What is signed: as long as what the rawest server gets.
pub(super) const MESSAGE: [u8; 32] = [7; 32];

/// A daemon without a log, and one with a log in a file.
pub(super) const NO_AUDIT: &str = "[serve.audit]\nmode = \"off\"\n";
pub(super) const AUDIT: &str = "[serve.audit]\nfile = \"FOLDER/audit.jsonl\"\njournal = false\n";

/// Does this on one processor, with all processes that it starts: a wake-up of another one would
/// cost more than what is measured.
pub(super) fn on_one_processor<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let pinned = scope.spawn(|| {
            let mine = sched_getaffinity(None).unwrap();
            let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| mine.is_set(*cpu));
            let mut one = CpuSet::new();
            one.set(last.unwrap());
            sched_setaffinity(None, &one).unwrap();
            work()
        });
        pinned.join().unwrap()
    })
}

/// A folder with a home, whose identity `me` signs with a key on a token.
pub(super) struct Home<'a> {
    pub(super) token: &'a SoftHsm,
    folder: tempfile::TempDir,
}

impl<'a> Home<'a> {
    pub(super) fn new(token: &'a SoftHsm, settings: &str) -> Self {
        let folder = tempfile::tempdir_in(crate::folder()).unwrap();
        let home = Home { token, folder };
        home.write("pin", SoftHsm::PIN);
        home.write("message", MESSAGE);
        let path = home.path("");
        let settings = settings.replace("FOLDER", path.to_str().unwrap().trim_end_matches('/'));
        home.write("config.toml", settings);
        let mut private = std::fs::DirBuilder::new();
        private.mode(0o700).create(home.path("runtime")).unwrap();
        let backend = token.backend();
        home.run_with_pin(&["generate", "me", "--backend", &backend]);
        home
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
        let private = PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(self.path(name), private).unwrap();
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let (variable, conf) = self.token.environment();
        let mut command = Command::new(claviger());
        command
            .args(words)
            .env(variable, conf)
            .env("CLAVIGER_HOME", self.path("home"))
            .env("CLAVIGER_CONFIG", self.path("config.toml"))
            .env("XDG_RUNTIME_DIR", self.path("runtime"))
            .env_remove("CLAVIGER_DAEMON")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn run_with_pin(&self, words: &[&str]) {
        let words = [&["--pin-source", "file:pin"], words].concat();
        let status = self.command(&words).status().unwrap();
        assert!(status.success(), "claviger {words:?}");
    }

    /// Gives it so many identities, and as many keys to its token.
    pub(super) fn multiply(&self, count: u32) {
        multiply(self.folder.path(), count as usize);
        std::fs::remove_dir_all(self.path("home")).unwrap();
        std::fs::rename(self.path("many"), self.path("home")).unwrap();
        Bare::on(self.token).add_keys(1..count);
    }

    /// Starts its daemon, and gives it the PIN.
    pub(super) fn serve(&self) -> Beside {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let mut command = self.command(&["serve"]);
        command.stderr(log).stdout(Stdio::piped());
        let daemon = Beside::of(command);
        self.run_with_pin(&["unlock", &self.token.backend()]);
        daemon
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.path("runtime/claviger/api.sock")
    }

    pub(super) fn connect(&self) -> Client {
        Client::connect(Options::new(self.socket())).unwrap()
    }

    /// The least that a server does, on the same token.
    pub(super) fn rawest(&self, socket: &str) -> Beside {
        let (socket, pin) = (self.path(socket), self.path("pin"));
        let mut command = beside("serve");
        command.arg(socket);
        command
            .args([SoftHsm::module(), self.token.label()])
            .arg(pin);
        let (variable, conf) = self.token.environment();
        command.env(variable, conf);
        Beside::start(command)
    }
}

/// A program of `tests/examples/beside_daemon.rs`.
pub(super) fn beside(what: &str) -> Command {
    let program = claviger().with_file_name("examples").join("beside_daemon");
    let mut command = Command::new(program);
    command.arg(what);
    command
}

/// A process that says when it is ready. It ends with this.
pub(super) struct Beside {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Beside {
    /// One that ends with its standard input.
    pub(super) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Beside::of(command)
    }

    fn of(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut started = Beside {
            child,
            input,
            output,
        };
        assert!(!started.line().is_empty(), "{command:?} does not start");
        started
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    /// What it answers to a line.
    pub(super) fn ask(&mut self, question: &str) -> String {
        let mut input = self.input.as_ref().unwrap();
        input.write_all(format!("{question}\n").as_bytes()).unwrap();
        self.line()
    }

    /// The memory that it has in use (`VmRSS`), in KiB.
    pub(super) fn memory(&self) -> f64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse().unwrap()
    }

    /// The processor time that it has used, in ticks of 10 ms: `utime` and `stime` of proc(5).
    pub(super) fn ticks(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).unwrap();
        // The name of the program, in parentheses, may have spaces.
        let after = stat.rsplit(") ").next().unwrap();
        let mut fields = after.split(' ').skip(11);
        let mut next = || fields.next().unwrap().parse::<f64>().unwrap();
        next() + next()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if self.input.take().is_none() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// A signature by the daemon.
pub(super) fn commit(client: &Client) {
    let engine = committer("me");
    let signed = client.commit(&engine, &MESSAGE, &raw(), &Call::default());
    assert_eq!(signed.unwrap().bytes.len(), 64);
}

/// The median of ratios.
pub(super) fn middle(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}
