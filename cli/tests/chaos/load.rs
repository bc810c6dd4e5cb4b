//! More callers than there are processors, some of whom give up; and more requests than a
//! slow token can serve.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use claviger_engine::{Commitment, EngineError, EngineId};
use claviger_tests::SoftHsm;
use claviger_token::{Call, Error};
use claviger_virtual_yubikey::{Card, Fault, Pcscd, Rule};

use crate::grounds::YubiKey;
use crate::removals::{Subject, runtime};
use crate::report::{Choices, Report, millis, percentile, progress};

/// How many sign at once.
const CALLERS: u64 = 64;
/// How much the process may grow from the warm-up to the end, in KiB.
const GROWTH: u64 = 4096;
/// How many requests a slow token gets at once: more than its queue holds.
const BURST: u64 = 400;
/// How long the slow token takes for each.
const SLOW: Duration = Duration::from_millis(5);
/// *Busy* is said within this, on a machine with more to do.
const AT_ONCE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Tally {
    signed: AtomicU64,
    wrong: AtomicU64,
    /// Errors by what was asked for and what came.
    ended: [AtomicU64; 2],
    given_up: AtomicU64,
}

pub(crate) fn run(report: &mut Report, seconds: u64, seed: u64) {
    let runtime = runtime();
    if seconds > 0 {
        runtime.block_on(crowd(report, Duration::from_secs(seconds), seed));
    }
    runtime.block_on(burst(report));
}

/// What a caller does about its request.
#[derive(Clone, Copy, PartialEq)]
enum Patience {
    Unlimited,
    Deadline,
    Cancels,
    Leaves,
}

async fn crowd(report: &mut Report, time: Duration, seed: u64) {
    progress(format!("{CALLERS} callers for {} s", time.as_secs()));
    let token = SoftHsm::new();
    let subject = Arc::new(Subject::new(token.backend(), token.access()).await);
    let (tally, end) = (Arc::new(Tally::default()), Instant::now() + time);
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (subject, tally) = (Arc::clone(&subject), Arc::clone(&tally));
            let choices = Choices::new(seed, 100 + number);
            tokio::spawn(call(number, subject, tally, end, choices))
        })
        .collect();
    tokio::time::sleep(time / 4).await;
    let warm = resident();
    let mut errors = BTreeMap::<String, u64>::new();
    for caller in callers {
        for error in caller.await.unwrap() {
            *errors.entry(error).or_default() += 1;
        }
    }
    let last = resident();
    let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    report.figure("load_signed", value(&tally.signed));
    report.figure("load_deadlines_passed", value(&tally.ended[0]));
    report.figure("load_cancelled", value(&tally.ended[1]));
    report.figure("load_given_up", value(&tally.given_up));
    report.count("wrong_results", value(&tally.wrong));
    report.figure("load_rss_warm_kib", warm);
    report.figure("load_rss_end_kib", last);
    report.promise(value(&tally.wrong) == 0, "a signature was wrong under load");
    report.promise(
        last <= warm + GROWTH,
        format!("memory grew under load from {warm} to {last} KiB"),
    );
    for (error, times) in errors {
        report.promise(false, format!("under load, {times} times: {error}"));
    }
}

/// Signs until the end, and hands back the errors that it did not ask for.
async fn call(
    number: u64,
    subject: Arc<Subject>,
    tally: Arc<Tally>,
    end: Instant,
    mut choices: Choices,
) -> Vec<String> {
    let who = EngineId::local(format!("caller {number}"));
    let mut errors = Vec::new();
    let count = |counter: &AtomicU64| {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    for request in 0.. {
        if Instant::now() >= end {
            break;
        }
        let data = format!("{number}: {request}").into_bytes();
        let patience = match choices.below(10) {
            0 => Patience::Deadline,
            1 => Patience::Cancels,
            2 => Patience::Leaves,
            _ => Patience::Unlimited,
        };
        let soon = choices.between(Duration::ZERO, Duration::from_micros(300));
        let cancelled = Arc::new(AtomicBool::new(false));
        let circumstances = match patience {
            Patience::Deadline => Call::within(soon),
            Patience::Cancels => Call::unlimited().cancelled_by(Arc::clone(&cancelled)),
            _ => Call::unlimited(),
        };
        if patience == Patience::Cancels {
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                cancelled.store(true, Ordering::Relaxed);
            });
        }
        let signing = async {
            // Somebody else goes first, so that there is time to give up.
            tokio::task::yield_now().await;
            let done = subject
                .node
                .commit(&who, &subject.engine, data.clone(), &circumstances);
            done.await
        };
        let result: Result<Commitment, EngineError> = match patience {
            Patience::Leaves => tokio::select! {
                biased;
                () = turns(choices.below(3)) => {
                    count(&tally.given_up);
                    continue;
                }
                result = signing => result,
            },
            _ => signing.await,
        };
        match result {
            Ok(signature) => match subject.key.verify(&data, &signature) {
                Ok(()) => count(&tally.signed),
                Err(_) => count(&tally.wrong),
            },
            Err(EngineError::Token(Error::DeadlineExceeded)) if patience == Patience::Deadline => {
                count(&tally.ended[0]);
            }
            Err(EngineError::Token(Error::Cancelled)) if patience == Patience::Cancels => {
                count(&tally.ended[1]);
            }
            Err(error) => errors.push(error.to_string()),
        }
    }
    errors
}

/// Lets others go first so often.
async fn turns(number: u64) {
    for _ in 0..number {
        tokio::task::yield_now().await;
    }
}

/// Many requests at once on a token that is slow: what its queue does not hold is answered
/// *busy*, at once; the others are served.
async fn burst(report: &mut Report) {
    progress(format!("{BURST} requests at once on a slow token"));
    let yubikey = Pcscd::insert(Card::builder().pin(YubiKey::PIN).build());
    let subject = Arc::new(Subject::on_yubikey(&yubikey).await);
    let sign = |number: u64| {
        let subject = Arc::clone(&subject);
        async move {
            let (who, data) = (EngineId::local("caller"), number.to_be_bytes().to_vec());
            let begun = Instant::now();
            let call = Call::unlimited();
            let done = subject
                .node
                .commit(&who, &subject.engine, data.clone(), &call)
                .await;
            let valid = done.map(|signature| subject.key.verify(&data, &signature).is_ok());
            (valid, begun.elapsed())
        }
    };
    // The first one finds the key.
    assert!(sign(0).await.0.is_ok());
    yubikey.faults().add(Rule::new(Fault::Delay(SLOW)).always());
    let requests: Vec<_> = (0..BURST)
        .map(|number| tokio::spawn(sign(number)))
        .collect();
    let (mut served, mut busy, mut others) = (0, Vec::new(), Vec::new());
    for request in requests {
        match request.await.unwrap() {
            (Ok(true), _) => served += 1,
            (Err(EngineError::Token(Error::Busy { .. })), took) => busy.push(took),
            (other, _) => others.push(format!("{other:?}")),
        }
    }
    let slowest = percentile(&mut busy, 1.0);
    report.figure("burst_served", served);
    report.figure("burst_busy", busy.len());
    report.figure("burst_busy_slowest_ms", millis(slowest));
    report.promise(others.is_empty(), format!("in a burst: {others:?}"));
    report.promise(!busy.is_empty(), "the queue of a slow token has no bounds");
    report.promise(slowest < AT_ONCE, "busy was not said at once");
}

/// The process's memory, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}
