//! How many PKCS#11 calls an operation takes, as OpenSC's `pkcs11-spy` sees it: a module
//! that writes down what the module behind it is asked.
//!
//! It is loaded by a process of its own, since a module is in a process once. It writes
//! down PINs and secrets as well; so its log lies in a folder for its owner's eyes only,
//! goes away with it, and is never passed on: what is kept of it are the names of the
//! functions, the mechanisms and the return values.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use claviger_pkcs11::Pkcs11Driver;
use claviger_token::conformance::Challenge;
use claviger_token::{Access, Call, Driver, Error, KeyRef, KeySpec, KeyUse, StoredPin, TokenInfo};
use secrecy::ExposeSecret as _;

use crate::bench::Bench;
use crate::error::sentence;
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

/// The calls of each operation, and what a transcript keeps of them.
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
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let log = folder.path().join("log");
    let pin = (bench.access.pins).pin(&info.id, &info.label);
    let pin = pin.map_err(|e| sentence(&e))?;

    let mut child = Command::new(program)
        .args(["spied", "--backend"])
        .arg(format!(
            "{}?module-path={}",
            elsewhere.backend,
            spy.display()
        ))
        .arg("--log")
        .arg(&log)
        .env("PKCS11SPY", &elsewhere.module)
        .env("PKCS11SPY_OUTPUT", &log)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("it could not be started: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that has ended says why itself.
        let _ = stdin.write_all(pin.expose_secret().as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let findings = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
    let log = fs::read(&log).map_err(|e| e.to_string())?;
    Ok((findings, harmless(&String::from_utf8_lossy(&log))))
}

/// The part of counting that is done in the process with the spy: prints the findings
/// as JSON.
///
/// # Errors
/// What the token says.
pub fn spied(backend: &str, log: &Path, interrupt: &Interrupt) -> Result<(), String> {
    let driver = Pkcs11Driver::new();
    let access = Access::with(StoredPin::Fd(0));
    let token = driver.open(backend, &access, &Call::unlimited());
    let token = token.map_err(|e| sentence(&e))?;
    let log = Log(log.into());
    let mut findings = Vec::new();
    for spec in token.info().supports.clone() {
        if interrupt.came() {
            break;
        }
        // A kind of key that fails is seen by the suite.
        if let Ok(counted) = one(&*token, spec, &log) {
            findings.extend(counted);
        }
    }
    let text = serde_json::to_string(&findings).map_err(|e| e.to_string())?;
    writeln!(std::io::stdout(), "{text}").map_err(|e| e.to_string())
}

fn one(token: &dyn claviger_token::Token, spec: KeySpec, log: &Log) -> Result<Vec<Finding>, Error> {
    const TIMES: u32 = 3;
    let call = Call::unlimited();
    let slot = token.free_slots(&[spec], &[], &call)?.remove(0);
    let begun = log.calls();
    let made = token.generate(&slot, spec, "claviger-hil", &call);
    let generated = log.calls() - begun;
    let counted = made.and_then(|made| {
        let key = KeyRef {
            slot: slot.clone(),
            public_key: made.public_key,
        };
        let mut work: Box<dyn FnMut() -> Result<(), Error>> = match spec.usage {
            KeyUse::Sign => {
                let signer = token.signer(&key)?;
                Box::new(move || signer.sign(b"claviger-hil", &Call::unlimited()).map(drop))
            }
            KeyUse::Decrypt => {
                let decryptor = token.decryptor(&key)?;
                let challenge = Challenge::new(&key.public_key);
                Box::new(move || {
                    let request = challenge.request();
                    decryptor.unwrap(request, &Call::unlimited()).map(drop)
                })
            }
        };
        work()?;
        let before = log.calls();
        for _ in 0..TIMES {
            work()?;
        }
        let calls = f64::from(log.calls() - before) / f64::from(TIMES);
        Ok((calls * 10.0).round() / 10.0)
    });
    token.delete(&slot, &call)?;
    let finding = |operation, calls| Finding::Calls {
        of: Operation {
            operation,
            algorithm: spec.algorithm,
        },
        unit: "pkcs11".into(),
        calls,
    };
    let verb = match spec.usage {
        KeyUse::Sign => Verb::Sign,
        KeyUse::Decrypt => Verb::Decrypt,
    };
    Ok(vec![
        finding(Verb::Generate, f64::from(generated)),
        finding(verb, counted?),
    ])
}

/// What the spy writes.
struct Log(PathBuf);

impl Log {
    /// How many calls there were so far.
    fn calls(&self) -> u32 {
        let text = fs::read(&self.0).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().filter_map(function).count() as u32
    }
}

/// The function that a line says is called: `17: C_Sign`.
fn function(line: &str) -> Option<&str> {
    let (number, name) = line.split_once(": ")?;
    let is_call = number.bytes().all(|b| b.is_ascii_digit()) && name.starts_with("C_");
    is_call.then(|| name.trim())
}

/// Functions, mechanisms and return values: nothing else of the log is passed on.
fn harmless(log: &str) -> String {
    let mut kept = String::new();
    for line in log.lines() {
        let line = line.trim();
        let is_plain = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b" _-=>".contains(&b))
        };
        if let Some(name) = function(line).filter(|name| is_plain(name)) {
            if !kept.is_empty() {
                kept.push('\n');
            }
            kept.push_str(name);
        } else if let Some(value) = line.strip_prefix("Returned:").filter(|v| is_plain(v)) {
            kept.push_str(" ->");
            kept.extend(
                value
                    .split_whitespace()
                    .skip(1)
                    .flat_map(|word| [" ", word]),
            );
        } else if let Some(mechanism) = line.strip_prefix("[in] pMechanism->type = ")
            && is_plain(mechanism)
        {
            kept.push(' ');
            kept.push_str(mechanism);
        }
    }
    kept.push('\n');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_the_log_are_names_and_return_values() {
        let log = "\n17: C_Login\n2026-11-20 14:00:00.123\n[in] hSession = 0x1\n\
                   [in] userType = CKU_USER\n[in] pPin[ulPinLen] 0000 / 8\n    \
                   00000000  74 72 30 6D 62 30 6E 65                          tr0mb0ne\n\
                   Returned:  0 CKR_OK\n\n18: C_SignInit\n[in] pMechanism->type = CKM_ECDSA   \n\
                   Returned:  0 CKR_OK\n";
        assert_eq!(
            harmless(log),
            "C_Login -> CKR_OK\nC_SignInit CKM_ECDSA -> CKR_OK\n"
        );
    }
}
