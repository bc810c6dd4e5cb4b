//! A PIN in memory, and the protection of that memory.

use std::fmt;
use std::sync::Arc;

use secrecy::ExposeSecret;
use zeroize::{Zeroize, Zeroizing};

/// A PIN, or another secret that a person knows.
///
/// It is in memory that is not swapped out, as far as the limit allows (`RLIMIT_MEMLOCK`: a page
/// for each PIN). It is wiped when the last clone is dropped, and prints as `[REDACTED]`. Clones
/// share one copy.
#[derive(Clone)]
pub struct Pin(Arc<Locked>);

struct Locked {
    /// In it is a part that is aligned to pages, in which nothing else lies.
    memory: Zeroizing<Vec<u8>>,
    start: usize,
    length: usize,
    lock: Option<region::LockGuard>,
}

impl Locked {
    fn new(text: &str) -> Self {
        let page = region::page::size();
        let pages = text.len().div_ceil(page).max(1) * page;
        let mut memory = Zeroizing::new(vec![0; pages + page]);
        let start = memory.as_ptr().align_offset(page).min(page);
        // Where the limit does not allow it the PIN is as any other memory is.
        let lock = region::lock(memory[start..].as_ptr(), pages).ok();
        memory[start..start + text.len()].copy_from_slice(text.as_bytes());
        Locked {
            memory,
            start,
            length: text.len(),
            lock,
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Before it may be swapped out, and before it belongs to somebody else.
        self.memory.zeroize();
        self.lock = None;
    }
}

impl ExposeSecret<str> for Pin {
    fn expose_secret(&self) -> &str {
        let Locked {
            memory,
            start,
            length,
            ..
        } = &*self.0;
        // It was made of a `str`, and nothing writes to it.
        std::str::from_utf8(&memory[*start..start + length]).unwrap_or_default()
    }
}

impl From<&str> for Pin {
    fn from(text: &str) -> Self {
        Pin(Arc::new(Locked::new(text)))
    }
}

impl From<String> for Pin {
    /// Wipes `text`.
    fn from(text: String) -> Self {
        Pin::from(Zeroizing::new(text).as_str())
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin([REDACTED])")
    }
}

/// The environment variable that, set to `1`, allows debuggers and core files to see the memory of
/// this process.
pub const DUMPABLE: &str = "CLAVIGER_DEBUG_DUMPABLE";

/// Keeps the memory of this process private: no core file has it (`RLIMIT_CORE`), and on Linux no
/// other process of the user can attach to it or read `/proc/PID/mem` (`PR_SET_DUMPABLE`). Root
/// still can. Programs that it starts inherit only the limit.
///
/// Call it first in programs that handle PINs. [`DUMPABLE`] turns it off.
pub fn keep_memory_private() {
    if std::env::var_os(DUMPABLE).is_some_and(|value| value == "1") {
        return;
    }
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, setrlimit};
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        // It can only be lowered, and that is always allowed.
        let _ = setrlimit(Resource::Core, none);
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_what_it_was_made_of_and_its_clones_are_the_same_memory() {
        for text in ["", "1234", "Ελένη", &"9".repeat(10_000)] {
            let pin = Pin::from(text);
            let clone = pin.clone();
            assert_eq!(clone.expose_secret(), text);
            let same = std::ptr::eq(clone.expose_secret(), pin.expose_secret());
            assert!(same, "{}", text.len());
        }
        assert_eq!(format!("{:?}", Pin::from("1234")), "Pin([REDACTED])");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pin_lies_in_memory_that_is_not_swapped_out_and_lets_go_of_it() {
        // Other tests of this process have locked memory, too: so it is looked for where it is.
        let pin = Pin::from("1234");
        let address = pin.expose_secret().as_ptr() as usize;
        let locked = |address: usize| {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut inside = false;
            for line in maps.lines() {
                if let Some((from, to)) = line.split(' ').next().and_then(|r| r.split_once('-')) {
                    let number = |text| usize::from_str_radix(text, 16);
                    if let (Ok(from), Ok(to)) = (number(from), number(to)) {
                        inside = (from..to).contains(&address);
                    }
                }
                if inside && line.starts_with("VmFlags:") {
                    return line.split(' ').any(|flag| flag == "lo");
                }
            }
            false
        };
        assert!(locked(address), "is RLIMIT_MEMLOCK below a page here?");
        drop(pin);
        assert!(!locked(address));
    }
}
