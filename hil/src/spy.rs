//! Counts the PKCS#11 calls of an operation with OpenSC's `pkcs11-spy`, a module that logs the
//! calls to another module.
//!
//! A process of its own loads it, since a process can load a module only once. It also logs PINs
//! and secrets. So it writes into a pipe, from which this process keeps only the names of
//! functions, mechanisms and return values. Nothing of it is ever in a file.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use claviger_conformance::Subject as _;
use claviger_pkcs11::Pkcs11Driver;
use claviger_token::{
    Access, Call, Deletion, Driver, Error, KeyRef, KeySpec, KeyUse, NewKey, SlotId, StoredPin,
    Token, TokenInfo, Unfinished, unfinished_mark,
};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::bench::Bench;
use crate::error::sentence;
use crate::measure::{challenge, tells_generation};
use crate::results::{Finding, Operation, Verb};
use crate::screen::Interrupt;

/// Where OpenSC keeps it: Debian and Ubuntu, Fedora, Arch.
const SPIES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/pkcs11-spy.so",
    "/usr/lib/aarch64-linux-gnu/pkcs11-spy.so",
    "/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so",
    "/usr/lib64/pkcs11-spy.so",
    "/usr/lib/pkcs11-spy.so",
];

/// What the lines begin with that are not the spy's, but of the process that it is in.
const OURS: &str = "claviger-hil: ";

/// The calls of each operation, and what a transcript keeps of them.
///
/// The keys that it takes are in the journal before they are made, and stay there:
/// whoever tidies up deletes them, and finds most of them gone.
///
/// # Errors
/// Why they cannot be counted.
pub(crate) fn count(
    program: &Path,
    bench: &Bench,
    info: &TokenInfo,
) -> Result<(Vec<Finding>, String), String> {
    let elsewhere = bench.elsewhere.as_ref();
    let elsewhere = elsewhere.ok_or("another process cannot use this token")?;
    let mut spies = SPIES.iter().map(Path::new);
    let spy = spies.find(|path| path.exists());
    let spy = spy.ok_or("pkcs11-spy of OpenSC is not installed")?;
    let pin = (bench.access.pins).pin(&info.id, &info.label, &Call::unlimited());
    let pin = pin.map_err(|e| sentence(&e))?;
    let places = places(bench, info).map_err(|e| sentence(&e))?;
    let places = places.iter().flat_map(|(slot, mark)| {
        [
            format!("--slot={}", slot.as_str()),
            format!("--mark={mark}"),
        ]
    });

    let mut child = Command::new(program)
        .args(["spied", "--backend"])
        .arg(format!(
            "{}?module-path={}",
            elsewhere.backend,
            spy.display()
        ))
        .args(places)
        .env("PKCS11SPY", &elsewhere.module)
        // Then it writes to the standard error, which is our pipe.
        .env_remove("PKCS11SPY_OUTPUT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("it could not be started: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that has ended says why itself.
        let _ = stdin.write_all(pin.expose_secret().as_bytes());
    }
    let mut seen = SpiedCalls::default();
    if let Some(log) = child.stderr.take() {
        // Where nobody listens any more, the child ends with the key that it is at.
        seen.all(log, &bench.guard.interrupt)
            .map_err(|e| e.to_string())?;
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    if bench.guard.interrupt.came() {
        return Err("interrupted".into());
    }
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    seen.kept.push('\n');
    Ok((seen.findings, seen.kept))
}

/// A slot and a mark for each kind of key, noted as those of a key of the bench.
fn places(bench: &Bench, info: &TokenInfo) -> Result<Vec<(SlotId, String)>, Error> {
    let call = Call::unlimited();
    let token = (bench.driver()).open(&bench.backend, &call.clone().using(bench.access.clone()))?;
    let mut places = Vec::new();
    for &spec in &info.makes {
        for slot in token.free_slots(&[spec], &[], &call)? {
            let mark = unfinished_mark();
            bench.guard.journal.makes(&info.id, &slot, &mark);
            places.push((slot, mark));
        }
    }
    Ok(places)
}

/// The part of counting that is done in the process with the spy: works with a key of each
/// kind in these slots, made with these marks, and says in the spy's log when it does what.
///
/// # Errors
/// What the token says.
pub fn spied(
    backend: &str,
    places: impl Iterator<Item = (String, String)>,
    interrupt: &Interrupt,
) -> Result<(), String> {
    let driver = Pkcs11Driver::new();
    let access = Access::with(StoredPin::Fd(0));
    let token = driver.open(backend, &Call::unlimited().using(access));
    let token = token.map_err(|e| sentence(&e))?;
    let makes = token.info().makes.clone();
    for (&spec, (slot, mark)) in makes.iter().zip(places) {
        let mut left = Unfinished {
            slot: SlotId::new(slot),
            mark,
            public_key: None,
        };
        // A kind of key that fails is seen by the suite.
        let _: Result<(), Error> = one(&*token, spec, &mut left);
        match token.discard(&left, &Call::unlimited()) {
            Ok(Deletion::Foreign) => return Err(format!("slot {} holds another key", left.slot)),
            Ok(_) => {}
            Err(error) => return Err(sentence(&error)),
        }
        if interrupt.came() || say("next").is_err() {
            break;
        }
    }
    Ok(())
}

/// A line of ours in the spy's log.
fn say(text: &str) -> std::io::Result<()> {
    writeln!(std::io::stderr(), "{OURS}{text}")
}

/// Makes a key, of which `left` tells then, and works with it.
fn one(token: &dyn Token, spec: KeySpec, left: &mut Unfinished) -> Result<(), Error> {
    const TIMES: u32 = 3;
    let call = Call::unlimited();
    let counted = |operation, times| {
        let of = Operation {
            operation,
            algorithm: spec.algorithm,
        };
        let counted = Counted { of, times };
        // Who does not listen misses it.
        let _ = say(&serde_json::to_string(&counted).unwrap_or_default());
    };
    let _ = say(BEGIN);
    let new = NewKey {
        slot: &left.slot,
        spec,
        mark: &left.mark,
    };
    let made = token.generate(&new, &call)?;
    left.public_key = Some(made.public_key.clone());
    if tells_generation(token.info(), spec) {
        counted(Verb::Generate, 1);
    }
    let key = KeyRef {
        slot: left.slot.clone(),
        public_key: made.public_key,
    };
    let (verb, mut work): (_, Box<dyn FnMut() -> Result<(), Error>>) = match spec.usage {
        KeyUse::Sign => {
            let signer = token.signer(&key, &Call::unlimited())?;
            let work = move || signer.sign(b"claviger-hil", &Call::unlimited()).map(drop);
            (Verb::Sign, Box::new(work))
        }
        KeyUse::Decrypt => {
            let decryptor = token.decryptor(&key, &Call::unlimited())?;
            let challenge = challenge(token.info(), &key.public_key)?;
            let work = move || {
                let request = challenge.request();
                decryptor.unwrap(request, &Call::unlimited()).map(drop)
            };
            (Verb::Decrypt, Box::new(work))
        }
    };
    work()?;
    let _ = say(BEGIN);
    for _ in 0..TIMES {
        work()?;
    }
    counted(verb, TIMES);
    Ok(())
}

/// Calls are counted from here.
const BEGIN: &str = "begin";

/// Calls were counted up to here.
#[derive(Serialize, Deserialize)]
struct Counted {
    of: Operation,
    times: u32,
}

/// What is kept of the log: functions, mechanisms and return values.
#[derive(Default)]
struct SpiedCalls {
    kept: String,
    findings: Vec<Finding>,
    calls: u32,
}

impl SpiedCalls {
    /// Reads the log to its end, or until somebody presses Ctrl-C.
    fn all(&mut self, log: impl Read, interrupt: &Interrupt) -> std::io::Result<()> {
        let mut log = BufReader::new(log);
        // One of the lines is a PIN.
        let mut line = Zeroizing::new(Vec::new());
        while !interrupt.came() && log.read_until(b'\n', &mut line)? > 0 {
            self.line(String::from_utf8_lossy(&line).trim());
            line.clear();
        }
        Ok(())
    }

    fn line(&mut self, line: &str) {
        let is_plain = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b" _-=>".contains(&b))
        };
        if let Some(ours) = line.strip_prefix(OURS) {
            if ours == BEGIN {
                self.calls = 0;
            } else if let Ok(Counted { of, times }) = serde_json::from_str(ours) {
                let calls = f64::from(self.calls) / f64::from(times.max(1));
                self.findings.push(Finding::Calls {
                    of,
                    unit: "pkcs11".into(),
                    calls: (calls * 10.0).round() / 10.0,
                });
            }
        } else if let Some(name) = function(line).filter(|name| is_plain(name)) {
            self.calls += 1;
            if !self.kept.is_empty() {
                self.kept.push('\n');
            }
            self.kept.push_str(name);
        } else if let Some(value) = line.strip_prefix("Returned:").filter(|v| is_plain(v)) {
            self.kept.push_str(" ->");
            let words = value.split_whitespace().skip(1);
            self.kept.extend(words.flat_map(|word| [" ", word]));
        } else if let Some(mechanism) = line.strip_prefix("[in] pMechanism->type = ")
            && is_plain(mechanism)
        {
            self.kept.push(' ');
            self.kept.push_str(mechanism.trim());
        }
    }
}

/// The function that a line says is called: `17: C_Sign`.
fn function(line: &str) -> Option<&str> {
    let (number, name) = line.split_once(": ")?;
    let is_call = number.bytes().all(|b| b.is_ascii_digit()) && name.starts_with("C_");
    is_call.then(|| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_the_log_are_names_and_return_values() {
        let log = "\n17: C_Login\n2026-11-20 14:00:00.123\n[in] hSession = 0x1\n\
                   [in] userType = CKU_USER\n[in] pPin[ulPinLen] 0000 / 8\n    \
                   00000000  74 72 30 6D 62 30 6E 65                          tr0mb0ne\n\
                   Returned:  0 CKR_OK\nclaviger-hil: begin\n\n18: C_SignInit\n\
                   [in] pMechanism->type = CKM_ECDSA   \nReturned:  0 CKR_OK\n\n\
                   19: C_Sign\nReturned:  0 CKR_OK\nclaviger-hil: \
                   {\"of\":{\"operation\":\"sign\",\"algorithm\":\"p256\"},\"times\":1}\n";
        let mut seen = SpiedCalls::default();
        seen.all(log.as_bytes(), &Interrupt::default()).unwrap();
        assert_eq!(
            seen.kept,
            "C_Login -> CKR_OK\nC_SignInit CKM_ECDSA -> CKR_OK\nC_Sign -> CKR_OK"
        );
        // From where it was to be counted.
        let [Finding::Calls { of, calls, .. }] = &seen.findings[..] else {
            panic!("{:?}", seen.findings);
        };
        assert_eq!((of.to_string(), *calls), ("sign p256".into(), 2.0));
    }
}
