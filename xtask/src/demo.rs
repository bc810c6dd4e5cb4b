//! Claviger's main job, shown with the real command on a throw-away token.
//!
//! [`steps`] has what is typed, what must result, and what it means. Everything else here prepares
//! the token and runs the steps.

mod json;

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;
use std::{env, fs};

use crate::scratch::Scratch;
use crate::screen::{self, Style};
use crate::{Failure, Result, process, setup};

const TOKEN: &str = "claviger-demo";
const PIN: &str = "271828";
const SO_PIN: &str = "31415926";
const LETTER: &str = "Meet me where the keys are kept.\n";

/// One thing that an operator does.
struct Step {
    title: &'static str,
    /// The words as one would type them.
    command: Vec<String>,
    expected: Expected,
    meaning: &'static str,
}

/// What must come of a step, beside its exit status.
enum Expected {
    Success,
    /// Success, and this on standard output.
    Says(&'static str),
    /// Success, and nothing like this on standard output.
    SaysNothingOf(&'static str),
    /// Success, and JSON on standard output whose signing key goes into a file.
    SigningKeyFor(&'static str),
    /// Exit status 1: understood, and refused.
    Refusal,
    /// It goes on, once it has said a line.
    GoesOn,
}

fn steps(module: &Path) -> Vec<Step> {
    use Expected::{GoesOn, Refusal, Says, SaysNothingOf, SigningKeyFor, Success};

    let module = module.display().to_string();
    let backend = format!("pkcs11:token={TOKEN}?module-path={module}");
    let with_pin = |words: &[&str]| {
        let mut command = vec!["claviger", "--pin-source", "file:pin"];
        command.extend(words);
        command.into_iter().map(String::from).collect()
    };
    let plain = |words: &[&str]| words.iter().copied().map(String::from).collect();
    let second_opinion = || {
        plain(&[
            "pkcs11-tool",
            "--module",
            &module,
            "--token-label",
            TOKEN,
            "--login",
            "--pin",
            PIN,
            "--list-objects",
        ])
    };
    let step = |title, command: Vec<String>, expected, meaning| Step {
        title,
        command,
        expected,
        meaning,
    };

    vec![
        step(
            "List the tokens",
            plain(&["claviger", "tokens"]),
            Says(TOKEN),
            "Tokens are identified by kind, manufacturer and serial; reader and slot numbers change.",
        ),
        step(
            "Generate an identity",
            with_pin(&[
                "generate",
                "alice",
                "--backend",
                &backend,
                "--params",
                "p256",
                "--capabilities",
                "commit,decrypt",
            ]),
            Success,
            "Two key pairs, one to sign and one to decrypt, made on the token. They never leave it.",
        ),
        step(
            "List the objects with another tool",
            second_opinion(),
            Says("never extractable"),
            "OpenSC's tool, logged in, shows the keys: made on the token, never extractable.",
        ),
        step(
            "Show the identity",
            plain(&["claviger", "show", "alice"]),
            Says("BEGIN PUBLIC KEY"),
            "The public keys, in the forms that other programs use.",
        ),
        step(
            "Sign a file",
            with_pin(&[
                "sign",
                "alice",
                "letter.txt",
                "--format",
                "der",
                "-o",
                "letter.sig",
            ]),
            Success,
            "The token signs. The private key stays on it.",
        ),
        step(
            "Verify the signature",
            plain(&[
                "claviger",
                "verify",
                "alice",
                "--signature",
                "letter.sig",
                "letter.txt",
            ]),
            Success,
            "This needs neither the token nor the PIN.",
        ),
        step(
            "Export the public key",
            plain(&["claviger", "--json", "show", "alice"]),
            SigningKeyFor("alice.pem"),
            "The public key whose use is \"sign\" went into alice.pem.",
        ),
        step(
            "Verify the signature with OpenSSL",
            plain(&[
                "openssl",
                "dgst",
                "-sha256",
                "-verify",
                "alice.pem",
                "-signature",
                "letter.sig",
                "letter.txt",
            ]),
            Says("Verified OK"),
            "OpenSSL agrees, with the public key alone.",
        ),
        step(
            "Encrypt a file to alice",
            plain(&[
                "claviger",
                "encrypt",
                "alice",
                "letter.txt",
                "-o",
                "letter.age",
            ]),
            Success,
            "An age file, made from the public key alone.",
        ),
        step(
            "Decrypt it",
            with_pin(&["decrypt", "alice", "letter.age"]),
            Says(LETTER),
            "The token opens the file key. The host decrypts the letter.",
        ),
        step(
            "Let bob decrypt with alice's keys, and nothing else",
            with_pin(&[
                "connect",
                "bob",
                "--to",
                "alice",
                "--capabilities",
                "decrypt",
            ]),
            Success,
            "A second identity on the same keys, with fewer capabilities.",
        ),
        step(
            "Bob decrypts",
            with_pin(&["decrypt", "bob", "letter.age"]),
            Says(LETTER),
            "He uses the same key on the same token.",
        ),
        step(
            "Bob tries to sign",
            with_pin(&["sign", "bob", "letter.txt"]),
            Refusal,
            "Refused, as expected: bob can only decrypt.",
        ),
        step(
            "List the identities",
            plain(&["claviger", "identities"]),
            Says("bob"),
            "The registry knows which identity uses which key. It holds no secrets.",
        ),
        step(
            "Start the daemon",
            plain(&["claviger", "serve"]),
            GoesOn,
            "It keeps tokens open. From now on every command of this home uses it.",
        ),
        step(
            "Unlock the token",
            with_pin(&["unlock", &backend, "--for", "8h"]),
            Success,
            "The daemon keeps the PIN, in memory that is not swapped out.",
        ),
        step(
            "Sign without a PIN",
            plain(&[
                "claviger",
                "sign",
                "alice",
                "letter.txt",
                "--format",
                "sshsig",
            ]),
            Says("BEGIN SSH SIGNATURE"),
            "Programs share the daemon's login. None of them gets the PIN.",
        ),
        step(
            "Show what the daemon does",
            plain(&["claviger", "status"]),
            Says("unlocked"),
            "Its tokens, and how many requests it has served.",
        ),
        step(
            "Lock the token",
            plain(&["claviger", "lock"]),
            Success,
            "The daemon forgets the PIN and logs out.",
        ),
        step(
            "Sign once more",
            plain(&["claviger", "sign", "alice", "letter.txt"]),
            Refusal,
            "Refused, as expected: the token is locked, and no PIN was given.",
        ),
        step(
            "Delete bob",
            with_pin(&["delete", "bob"]),
            Success,
            "The keys are alice's, so they stay.",
        ),
        step(
            "Delete alice",
            with_pin(&["delete", "alice"]),
            Success,
            "Alice's keys were generated here, so they are destroyed on the token.",
        ),
        step(
            "Check that the token is empty",
            second_opinion(),
            SaysNothingOf("Object"),
            "The same tool finds no object. Nothing was left behind.",
        ),
    ]
}

/// Plays the whole demonstration.
pub(crate) fn run() -> Result<()> {
    setup::run(setup::What::Demo, setup::Voice::Quiet)?;
    let module = setup::softhsm_module()
        .ok_or_else(|| Failure::new("SoftHSM2's module libsofthsm2.so was not found"))?;
    let claviger = build()?;
    let started = Instant::now();
    let stage = Stage::set(claviger.clone())?;

    let steps = steps(&module);
    let total = steps.len();
    for (index, step) in steps.iter().enumerate() {
        stage.play(step, index + 1, total)?;
    }
    drop(stage);

    let seconds = started.elapsed().as_secs_f64();
    screen::line(
        Style::Good,
        format_args!(
            "\nAll {total} steps succeeded, in {seconds:.1} s. \
             The token and everything else in the temporary folder are gone."
        ),
    );
    let program = claviger.strip_prefix(process::workspace());
    let program = program.unwrap_or(&claviger).display();
    screen::line(
        Style::Plain,
        format_args!(
            "\nWhat to try next:\n  \
             {program} tokens    list your own tokens\n  \
             {program} --help    all commands\n  \
             README.md{:width$}use it with your own token",
            "",
            width = format!("{program} tokens").len().saturating_sub(5),
        ),
    );
    Ok(())
}

/// Builds the command and says where it is.
fn build() -> Result<PathBuf> {
    screen::note(Style::Quiet, "Building the command ...");
    let mut cargo = process::cargo();
    cargo.args(["build", "--package", "claviger", "--bin", "claviger"]);
    // Cargo's progress stays on standard error; where the program is comes on standard
    // output, whatever the target folder is called.
    cargo.arg("--message-format=json-render-diagnostics");
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| process::could_not_start(&cargo, &error))?;
    if !output.status.success() {
        return Err(Failure::new("the command claviger could not be built")
            .hint("the compiler's message above says why"));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|message| json::string_after(message, "executable"))
        .map(PathBuf::from)
        .next_back()
        .ok_or_else(|| Failure::new("cargo built claviger but did not say where it is"))
}

/// A temporary folder with a token, a PIN, a letter and Claviger's home.
struct Stage {
    claviger: PathBuf,
    folder: Scratch,
    softhsm_conf: PathBuf,
    home: PathBuf,
    /// The daemon, once it was started.
    daemon: RefCell<Option<Child>>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Stage {
    fn set(claviger: PathBuf) -> Result<Self> {
        let folder = Scratch::new("demo")?;
        let softhsm_conf = folder.softhsm_conf()?;
        folder.write("pin", PIN)?;
        folder.write("letter.txt", LETTER)?;
        let stage = Self {
            claviger,
            home: folder.path().join("home"),
            folder,
            softhsm_conf,
            daemon: RefCell::default(),
        };
        fs::DirBuilder::new()
            .mode(0o700)
            .create(stage.runtime())
            .map_err(|error| Failure::new(format!("the folder of the daemon: {error}")))?;

        screen::line(
            Style::Heading,
            "\nA throw-away token, in a temporary folder",
        );
        let show = |text: &str| screen::line(Style::Command, format_args!("  $ {text}"));
        show(&format!("cd {}", stage.folder.path().display()));
        show(
            "export SOFTHSM2_CONF=$PWD/softhsm2.conf CLAVIGER_HOME=$PWD/home \
             XDG_RUNTIME_DIR=$PWD/runtime",
        );
        let words = [
            "softhsm2-util",
            "--init-token",
            "--free",
            "--label",
            TOKEN,
            "--so-pin",
            SO_PIN,
            "--pin",
            PIN,
        ];
        show(&process::quote_all(words.iter().map(OsStr::new)));
        let output = stage.perform(&words.map(String::from))?;
        indent(&output);
        if !output.status.success() {
            return Err(Failure::new("softhsm2-util could not make a token")
                .hint("its own message above says why"));
        }
        meaning("SoftHSM2 stands in for a real token. Your own tokens are not touched.");
        Ok(stage)
    }

    /// Shows one step, and stops the play if it went wrong.
    fn play(&self, step: &Step, number: usize, total: usize) -> Result<()> {
        let typed = process::quote_all(step.command.iter().map(OsStr::new));
        screen::line(
            Style::Heading,
            format_args!("\n{number}/{total}  {}", step.title),
        );
        screen::line(Style::Command, format_args!("  $ {typed}"));
        let output = match step.expected {
            Expected::GoesOn => self.start(&step.command)?,
            _ => self.perform(&step.command)?,
        };
        indent(&output);
        self.judge(&step.expected, &output).map_err(|what| {
            Failure::new(format!(
                "the demo stopped at step {number} of {total} ({}): {what}",
                step.title
            ))
            .hint(format!("the command was: {typed}"))
        })?;
        meaning(step.meaning);
        Ok(())
    }

    /// The folder of the daemon.
    fn runtime(&self) -> PathBuf {
        self.folder.path().join("runtime")
    }

    /// Starts a program that goes on; its output is the first line.
    fn start(&self, words: &[String]) -> Result<Output> {
        let mut command = self.command(words)?;
        let daemon = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut daemon = daemon.map_err(|error| process::could_not_start(&command, &error))?;
        let mut line = String::new();
        let said = daemon.stdout.take().map(BufReader::new);
        if let Some(mut said) = said {
            let read = said.read_line(&mut line);
            read.map_err(|error| Failure::new(format!("the daemon's output: {error}")))?;
        }
        let ended = daemon.try_wait().ok().flatten();
        self.daemon.replace(Some(daemon));
        Ok(Output {
            status: ended.unwrap_or_default(),
            stdout: line.into_bytes(),
            stderr: Vec::new(),
        })
    }

    fn perform(&self, words: &[String]) -> Result<Output> {
        let mut command = self.command(words)?;
        command
            .output()
            .map_err(|error| process::could_not_start(&command, &error))
    }

    fn command(&self, words: &[String]) -> Result<Command> {
        let (program, args) = words
            .split_first()
            .ok_or_else(|| Failure::new("a step of the demo has no command"))?;
        let program = match program.as_str() {
            "claviger" => self.claviger.clone().into_os_string(),
            other => OsString::from(other),
        };
        let mut command = Command::new(program);
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("CLAVIGER_") {
                command.env_remove(&name);
            }
        }
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("SOFTHSM2_CONF", &self.softhsm_conf)
            .env("CLAVIGER_HOME", &self.home)
            .env("XDG_RUNTIME_DIR", self.runtime())
            .stdin(Stdio::null());
        Ok(command)
    }

    /// What is wrong with a step's outcome, if anything.
    fn judge(&self, expected: &Expected, output: &Output) -> std::result::Result<(), String> {
        let said = String::from_utf8_lossy(&output.stdout);
        if let Expected::Refusal = expected {
            return match output.status.code() {
                Some(1) => Ok(()),
                _ => Err(format!("it should have been refused ({})", output.status)),
            };
        }
        if !output.status.success() {
            return Err(format!("it failed ({})", output.status));
        }
        match expected {
            Expected::GoesOn if said.is_empty() => Err("it did not start".into()),
            Expected::Success | Expected::Refusal | Expected::GoesOn => Ok(()),
            Expected::Says(text) if said.contains(text) => Ok(()),
            Expected::Says(text) => Err(format!("it did not say {:?}", text.trim())),
            Expected::SaysNothingOf(text) if said.contains(text) => {
                Err(format!("it should have found no {text}"))
            }
            Expected::SaysNothingOf(_) => Ok(()),
            Expected::SigningKeyFor(file) => {
                let key = json::signing_key(&said)
                    .ok_or("no key with \"use\": \"sign\" is in its answer")?;
                fs::write(self.folder.path().join(file), key)
                    .map_err(|error| format!("{file} could not be written: {error}"))
            }
        }
    }
}

fn meaning(text: &str) {
    screen::line(Style::Good, format_args!("  => {text}"));
}

/// Shows what a command said.
fn indent(output: &Output) {
    for stream in [&output.stdout, &output.stderr] {
        for text in String::from_utf8_lossy(stream).lines() {
            screen::line(Style::Quiet, format_args!("    {text}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backend_is_one_quoted_word() {
        let steps = steps(Path::new("/usr/lib/softhsm/libsofthsm2.so"));
        let generate = &steps[1].command;
        let typed = process::quote_all(generate.iter().map(OsStr::new));
        assert!(
            typed.contains(
                "'pkcs11:token=claviger-demo?module-path=/usr/lib/softhsm/libsofthsm2.so'"
            )
        );
    }

    #[test]
    fn a_refusal_is_expected_to_be_a_refusal_and_not_a_usage_error() {
        let stage = Stage {
            claviger: "/bin/false".into(),
            folder: Scratch::new("test").unwrap(),
            softhsm_conf: "unused".into(),
            home: "unused".into(),
            daemon: RefCell::default(),
        };
        let outcome = |script: &str, expected| {
            let words = ["sh", "-c", script].map(String::from);
            stage.judge(&expected, &stage.perform(&words).unwrap())
        };
        assert!(outcome("exit 1", Expected::Refusal).is_ok());
        assert!(outcome("exit 0", Expected::Refusal).is_err());
        assert!(outcome("exit 2", Expected::Refusal).is_err());
        assert!(outcome("exit 1", Expected::Success).is_err());
        assert!(outcome("echo some Object", Expected::SaysNothingOf("Object")).is_err());
        assert!(outcome("echo nothing", Expected::Says("Verified OK")).is_err());
    }
}
