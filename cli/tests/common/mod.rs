//! A stage for the real command: a token, a home folder and a folder to work in.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test program uses a part; a stage that fails is a test that fails"
)]

mod daemon;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use claviger_tests::{SoftHsm, as_user};
pub(crate) use daemon::Daemon;
use serde_json::Value;
use tempfile::TempDir;

/// Whether these tests are those of `over_daemon`: there a daemon serves the home of each stage, and
/// every command uses it.
pub(crate) fn is_over_daemon() -> bool {
    module_path!().starts_with("over_daemon::")
}

/// Whether a test is to be skipped, since it is about commands that work by themselves: the daemon
/// of a stage does not know the service of a smartcard that is started later, and what one command
/// opened may still be open for the next. Says so.
pub(crate) fn needs_own_process() -> bool {
    if is_over_daemon() {
        eprintln!("SKIPPED: it is about commands that work by themselves");
    }
    is_over_daemon()
}

pub(crate) struct Stage {
    /// The daemon that commands use, if any. It ends before its folder.
    daemon: Option<Daemon>,
    pub(crate) token: SoftHsm,
    folder: TempDir,
    /// The file in which SoftHSM keeps the token's own state, and what was in it.
    token_file: (PathBuf, Vec<u8>),
}

impl Stage {
    /// An empty token and an empty home.
    pub(crate) fn new() -> Self {
        let token = SoftHsm::new();
        let mut stage = Stage {
            daemon: None,
            token_file: token_file(&token),
            token,
            folder: tempfile::tempdir().unwrap(),
        };
        stage.write("pin", SoftHsm::PIN);
        // No daemon of this machine has to do with it.
        fs::create_dir(stage.runtime()).unwrap();
        fs::set_permissions(stage.runtime(), fs::Permissions::from_mode(0o700)).unwrap();
        // The modules that this machine has for its users' tokens stay out of it.
        let p11_kit = stage.path("config/pkcs11");
        fs::create_dir_all(&p11_kit).unwrap();
        fs::write(p11_kit.join("pkcs11.conf"), "user-config: only\n").unwrap();
        if is_over_daemon() {
            stage.daemon = Some(Daemon::start(&stage));
        }
        stage
    }

    /// The folder of the user's own daemon.
    pub(crate) fn runtime(&self) -> PathBuf {
        self.path("runtime")
    }

    /// The same with an identity `alice` of P-256 keys.
    pub(crate) fn with_alice() -> Self {
        let stage = Stage::new();
        stage.generate("alice", &[]).succeeds();
        stage
    }

    /// Puts right what SoftHSM itself loses when it is killed: at each login it empties the
    /// file with the token's state before it writes it anew. To be called after each kill.
    pub(crate) fn heal(&self) {
        let (path, content) = &self.token_file;
        if fs::metadata(path).unwrap().len() < content.len() as u64 {
            fs::write(path, content).unwrap();
        }
    }

    /// Where SoftHSM keeps the token.
    pub(crate) fn token_folder(&self) -> &Path {
        self.token_file.0.parent().unwrap()
    }

    /// Where it works.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file that nobody else can read: some of them hold PINs.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The names of the files in the folder, beside what the stage itself put there.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names
            .filter(|n| !["pin", "home", "config", "runtime"].contains(&n.as_str()))
            .collect();
        names.sort();
        names
    }

    /// Whether a process has begun a file in the folder: one that is hidden, or has no name.
    pub(crate) fn is_writing(&self, process: &Child) -> bool {
        let open = fs::read_dir(format!("/proc/{}/fd", process.id()));
        let open = open.into_iter().flatten().flatten();
        let mut open = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        let is_unnamed = |path: PathBuf| {
            path.starts_with(self.folder()) && path.to_string_lossy().ends_with(" (deleted)")
        };
        !self.files().is_empty() || open.any(is_unnamed)
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// Runs a script of a document, with the command as it is installed: `options` stand for
    /// what a person would be asked.
    pub(crate) fn script(&self, script: &str, options: &str) -> Command {
        let bin = self.path("bin");
        fs::create_dir(&bin).unwrap();
        let claviger = env!("CARGO_BIN_EXE_claviger");
        let wrapper = format!("#!/bin/sh\nexec '{claviger}' {options} \"$@\"\n");
        fs::write(bin.join("claviger"), wrapper).unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(bin.join("claviger"), mode).unwrap();
        let path = std::env::var("PATH").unwrap();
        let (variable, value) = self.token.environment();
        let mut command = Command::new("sh");
        command
            .args(["-e", "-x", "-c", script])
            .current_dir(self.folder())
            .env("PATH", format!("{}:{path}", bin.display()))
            .env(variable, value)
            .env("CLAVIGER_HOME", self.home())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_RUNTIME_DIR", self.runtime())
            .env_remove("CLAVIGER_DAEMON")
            .stdin(Stdio::null());
        command
    }

    /// The command without a PIN source, in the folder.
    pub(crate) fn claviger<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = as_user(env!("CARGO_BIN_EXE_claviger"));
        let (variable, value) = self.token.environment();
        command
            .args(words)
            .current_dir(self.folder.path())
            .env(variable, value)
            .env("CLAVIGER_HOME", self.home())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_RUNTIME_DIR", self.runtime())
            .env_remove("CLAVIGER_DAEMON")
            .env_remove("CLAVIGER_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs the command without a PIN source.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Outcome {
        Outcome::of(&mut self.claviger(words))
    }

    /// Runs the command with the right PIN.
    pub(crate) fn run_with_pin(&self, words: &[&str]) -> Outcome {
        self.run([&["--pin-source", "file:pin"], words].concat())
    }

    /// Runs the command with the right PIN and with `input` as its standard input.
    pub(crate) fn feed(&self, words: &[&str], input: &[u8]) -> Outcome {
        let mut command = self.claviger([&["--pin-source", "file:pin"], words].concat());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // The command may have seen enough.
            let _ = stdin.write_all(&input);
        });
        let outcome = Outcome(child.wait_with_output().unwrap());
        writer.join().unwrap();
        outcome
    }

    pub(crate) fn generate(&self, name: &str, more: &[&str]) -> Outcome {
        let backend = self.token.backend();
        self.run_with_pin(&[&["generate", name, "--backend", &backend], more].concat())
    }

    /// What `--json` with these words answers.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let outcome = self.run([&["--json"], words].concat());
        outcome.succeeds().json()
    }

    /// The names of the identities; none where nobody has made a registry yet.
    pub(crate) fn names(&self) -> Vec<String> {
        if !self.home().join("registry.sqlite").exists() {
            return Vec::new();
        }
        let identities = self.json(&["identities"]);
        let names = identities.as_array().unwrap().iter();
        names
            .map(|i| i["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Runs the command, with the PIN, in a namespace with mounts of its own: `script` makes
    /// them before it runs `"$@"`. None where the system does not let us.
    pub(crate) fn confined(&self, script: &str, words: &[&str]) -> Option<Outcome> {
        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(["-rm", "--propagation", "private"]);
            command
        };
        if !unshare().arg("true").status().is_ok_and(|s| s.success()) {
            eprintln!("SKIPPED: this system does not let us mount anything");
            return None;
        }
        let plain = self.claviger([&["--pin-source", "file:pin"], words].concat());
        let mut command = unshare();
        command.args(["sh", "-ec", script, "sh"]);
        command.arg(plain.get_program()).args(plain.get_args());
        command.envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))));
        command
            .env("HOME_FOLDER", self.home())
            .env("TOKEN_FOLDER", self.token_folder())
            .current_dir(self.path(""));
        Some(Outcome::of(&mut command))
    }

    /// What OpenSC's tool says, logged in.
    pub(crate) fn pkcs11_tool(&self, words: &[&str]) -> String {
        let mut command = Command::new("pkcs11-tool");
        let (variable, value) = self.token.environment();
        command.env(variable, value).args([
            "--module",
            SoftHsm::module(),
            "--token-label",
            self.token.label(),
            "--login",
            "--pin",
            SoftHsm::PIN,
        ]);
        Outcome::of(command.args(words)).succeeds().out()
    }

    /// The objects on the token, private ones included, in an order of ours: SoftHSM has
    /// none.
    pub(crate) fn objects(&self) -> String {
        let listed = self.pkcs11_tool(&["--list-objects"]);
        let mut objects: Vec<String> = Vec::new();
        for line in listed.lines() {
            match objects.last_mut() {
                Some(object) if line.starts_with(' ') => {
                    object.push('\n');
                    object.push_str(line);
                }
                _ => objects.push(line.into()),
            }
        }
        objects.sort();
        objects.join("\n")
    }

    /// How many private keys are on the token.
    pub(crate) fn private_keys(&self) -> usize {
        self.objects().matches("Private Key Object").count()
    }
}

fn token_file(token: &SoftHsm) -> (PathBuf, Vec<u8>) {
    let (_, conf) = token.environment();
    let label = token.label().as_bytes();
    let folders = fs::read_dir(conf.parent().unwrap().join("tokens")).unwrap();
    let files = folders.map(|folder| folder.unwrap().path().join("token.object"));
    let is_it = |content: &[u8]| content.windows(label.len()).any(|part| part == label);
    files
        .filter_map(|path| Some((path.clone(), fs::read(path).ok()?)))
        .find(|(_, content)| is_it(content))
        .unwrap()
}

pub(crate) struct Outcome(Output);

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Outcome(output)
    }
}

impl Outcome {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output();
        Outcome(output.unwrap_or_else(|e| panic!("{command:?} does not start: {e}")))
    }

    pub(crate) fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0.stdout
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.0.stdout).unwrap()
    }

    #[track_caller]
    pub(crate) fn succeeds(self) -> Self {
        assert_eq!(self.code(), Some(0), "{}{}", self.out(), self.err());
        self
    }

    /// Ends with this status, answers nothing, and its complaint has these words.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &str) -> Self {
        assert_eq!(self.code(), Some(code), "{}{}", self.out(), self.err());
        assert!(
            self.err().contains(words),
            "no {words:?} in: {}",
            self.err()
        );
        assert_eq!(self.out(), "");
        self
    }
}

/// Another program, for a second opinion.
pub(crate) fn program(name: &str, words: &[&str], folder: &Path, input: Option<&Path>) -> Outcome {
    let mut command = Command::new(name);
    command.args(words).current_dir(folder);
    if let Some(input) = input {
        command.stdin(fs::File::open(input).unwrap());
    }
    Outcome::of(&mut command)
}

/// Where OpenSC keeps the module that writes down what it is asked.
pub(crate) fn spy() -> PathBuf {
    let places = [
        "/usr/lib/x86_64-linux-gnu/pkcs11-spy.so",
        "/usr/lib/aarch64-linux-gnu/pkcs11-spy.so",
        "/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so",
        "/usr/lib64/pkcs11-spy.so",
        "/usr/lib/pkcs11-spy.so",
    ];
    let found = places.iter().map(Path::new).find(|path| path.exists());
    found
        .unwrap_or_else(|| panic!("pkcs11-spy.so of OpenSC is not installed: cargo xtask setup"))
        .into()
}
