//! A real daemon for a stage.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Stage;

/// How long it may take to end.
const PATIENCE: Duration = Duration::from_secs(40);

/// A daemon that serves; it ends with this.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// The user's own, for the home of `stage`.
    pub(crate) fn start(stage: &Stage) -> Self {
        Daemon::run(stage, stage.claviger(["--json", "serve"]))
    }

    /// One that this command starts, once it is ready.
    pub(crate) fn run(stage: &Stage, mut command: Command) -> Self {
        let log = stage.runtime().join("log");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = command.stdout(Stdio::piped()).stderr(file).spawn();
        let mut child = child.unwrap();
        let mut ready = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut ready).unwrap();
        let daemon = Daemon { child, log };
        assert!(ready.contains("sockets"), "{ready}{}", daemon.log());
        daemon
    }

    /// What it logged, and those before it on the same stage.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Ends it without a warning.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as systemd does.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    fn wait(&mut self) -> ExitStatus {
        let late = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > late {
                let _ = self.child.kill();
                panic!("the daemon does not end: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // What it holds open does not outlive the stage.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
