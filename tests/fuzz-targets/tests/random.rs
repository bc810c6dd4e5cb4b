//! Random inputs for every fuzz target, in every run: they find nothing that a fuzzer would not,
//! and show that the targets hold and how quick they are. `tests/fuzz` has the fuzzer.

use std::time::{Duration, Instant};

/// How many inputs each target gets, unless the time is over before.
const INPUTS: u32 = 10_000;
const TIME: Duration = Duration::from_secs(10);

/// So many it has to get in that time, on the slowest machine.
const LEAST: u32 = 50;

/// xorshift64* (Vigna 2016): the same inputs each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Short ones more often than long ones.
    fn input(&mut self) -> Vec<u8> {
        let most = 1 << (self.next() % 9);
        let length = self.next() % (most + 1);
        (0..length).map(|_| self.next().to_be_bytes()[0]).collect()
    }
}

fn run(target: fn(&[u8])) {
    let mut random = Random(0x636c_6176_6967_6572);
    let begun = Instant::now();
    let mut done = 0;
    let wanted = std::env::var("CLAVIGER_FUZZ_INPUTS").ok();
    let (inputs, time) = match wanted.and_then(|number| number.parse().ok()) {
        Some(number) => (number, Duration::MAX),
        None => (INPUTS, TIME),
    };
    while done < inputs && begun.elapsed() < time {
        target(&random.input());
        done += 1;
    }
    let rate = f64::from(done) / begun.elapsed().as_secs_f64();
    println!("{done} inputs, {rate:.0} a second");
    assert!(done >= LEAST, "only {done} inputs");
}

macro_rules! targets {
    ($($target:ident: $test:ident,)*) => {
        $(
            #[test]
            fn $test() {
                run(claviger_fuzz_targets::$target::run);
            }
        )*

        #[test]
        fn every_target_of_the_fuzzer_is_run_here() {
            let manifest = include_str!("../../fuzz/Cargo.toml");
            let mut fuzzed: Vec<_> = manifest.lines().filter_map(|line| {
                line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\"")
            }).collect();
            fuzzed.sort_unstable();
            let mut here = vec![$(stringify!($target)),*];
            here.sort_unstable();
            assert_eq!(fuzzed, here);
        }
    };
}

targets! {
    age: random_age_files_break_nothing,
    agent: random_ssh_clients_break_no_agent,
    attestation: random_attestations_break_nothing,
    evidence: random_evidence_breaks_nothing,
    frames: random_frames_break_nothing,
    ledger: random_replies_of_a_ledger_break_nothing,
    piv: random_changes_of_a_cards_replies_break_nothing,
    piv_replies: random_replies_of_a_card_break_nothing,
    plugin: random_age_programs_break_no_plugin,
    public_key: random_public_keys_break_nothing,
    sshsig: random_ssh_signatures_break_nothing,
    uri: random_backends_break_nothing,
}
