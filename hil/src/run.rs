//! A run: device after device, check after check, figure after figure.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use claviger_conformance::{CHECKS, Subject as _};
use claviger_token::sync::lock;
use claviger_token::{
    Call, Deletion, Detail, Error, KeyRef, SlotInfo, SlotState, Token, TokenInfo, Unfinished,
};

use crate::bench::Bench;
use crate::config::{Config, Listed};
use crate::conformance::{self, quietly};
use crate::devices::{self, Common, Device, Sources};
use crate::error::{HilError, sentence};
use crate::guard::is_gone;
use crate::journal::{self, Journal};
use crate::measure;
pub use crate::measure::Times;
use crate::missing;
use crate::report::brief;
use crate::results::{Finding, Outcome, Results, Standing, Subject};
use crate::screen::{Interrupt, Progress, line};
#[cfg(feature = "pkcs11")]
use crate::spy;
use crate::transcript::{self, Head};
use crate::virtuals::Virtual;

/// What is to be done.
pub struct Options {
    /// The folder for reports.
    pub out: PathBuf,
    /// How long is measured; none for not at all.
    pub measure: Option<Times>,
    /// Whether transcripts are written.
    pub record: bool,
    /// The names of the devices that are wanted; empty for all.
    pub only: Vec<String>,
    /// The names of the checks that are wanted; empty for all.
    pub checks: Vec<String>,
    /// The virtual devices that are not started, and why.
    pub left_out: Vec<(String, String)>,
    /// This program, which is started again to count PKCS#11 calls; none to leave that
    /// out.
    pub program: Option<PathBuf>,
}

const INTERRUPTED: &str = "interrupted";

/// Runs, and gives what was found. It is in `results.jsonl` by then.
///
/// Before any device is asked for anything, it is seen that reports can be written. Those
/// of the last run are gone once all names are known to be right.
///
/// # Errors
/// [`HilError::Unwritable`], [`HilError::NoDevice`], [`HilError::BadReport`]. What is
/// wrong with a device is no error but a finding.
pub fn run(
    config: &Config,
    sources: Option<&Sources>,
    virtuals: &[Virtual],
    options: &Options,
    interrupt: &Interrupt,
) -> Result<Results, HilError> {
    let start = Instant::now();
    if let Some(unknown) =
        (options.checks.iter()).find(|c| CHECKS.iter().all(|check| check.name != **c))
    {
        return Err(HilError::NoCheck {
            wanted: unknown.clone(),
            present: CHECKS.iter().map(|check| check.name).collect(),
        });
    }
    crate::report::check_writable(&options.out)?;
    let common = Common {
        journal: Arc::new(Journal::open(&options.out)?),
        interrupt: interrupt.clone(),
    };
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|o| o == name);
    let attached = match sources {
        Some(sources) => devices::attached(sources, config, &common),
        None => Vec::new(),
    };
    let absent: Vec<&Listed> = (config.devices.iter())
        .filter(|_| sources.is_some())
        .filter(|listed| attached.iter().all(|d| d.subject.serial != listed.serial))
        .collect();
    check_wanted(&options.only, virtuals, &attached, &absent)?;
    // From here on the reports of the last run are gone.
    let mut run = Run {
        options,
        results: Results::create(&options.out)?,
        common,
        progress: Progress::start(0),
    };

    let attached: Vec<Device> = (attached.into_iter())
        .filter(|device| wanted(&device.subject.device))
        .collect();
    let virtuals: Vec<&Virtual> = virtuals.iter().filter(|v| wanted(v.name)).collect();
    let devices = attached.len() + virtuals.len();
    run.progress = Progress::start((devices * run.steps_of_one()) as u64);
    for listed in absent.into_iter().filter(|listed| wanted(name_of(listed))) {
        run.absent(listed)?;
    }
    for device in attached {
        run.device(device)?;
    }
    for one in virtuals {
        if interrupt.came() {
            break;
        }
        run.progress.doing(format_args!("{}: starting", one.name));
        // A device that is thrown away needs no journal.
        let common = Common {
            journal: Arc::new(Journal::in_memory()),
            interrupt: interrupt.clone(),
        };
        let left_out = options.left_out.iter().find(|(name, _)| name == one.name);
        let left_out = left_out.map(|(_, why)| &**why);
        if let Some(why) = left_out.or_else(|| one.missing()) {
            line(format_args!("{}: SKIPPED: {why}", one.name));
            run.skip_all(&not_started(one.name), why)?;
            run.progress.advance(run.steps_of_one() as u64);
            continue;
        }
        match one.start(&common) {
            Ok(device) => run.device(device)?,
            Err(_) if interrupt.came() => run.skip_all(&not_started(one.name), INTERRUPTED)?,
            Err(why) => {
                let subject = not_started(one.name);
                run.own_check(&subject, "it_starts", Err(why))?;
                run.skip_all(&subject, "it did not start")?;
                run.progress.advance(run.steps_of_one() as u64);
            }
        }
    }
    let end = Finding::End {
        complete: !interrupt.came(),
        seconds: start.elapsed().as_millis() as f64 / 1000.0,
    };
    run.results.add(None, end)?;
    Ok(run.results)
}

fn name_of(listed: &Listed) -> &str {
    listed.name.as_ref().unwrap_or(&listed.serial)
}

/// # Errors
/// [`HilError::NoDevice`] where a name that is asked for is nobody's.
fn check_wanted(
    only: &[String],
    virtuals: &[Virtual],
    attached: &[Device],
    absent: &[&Listed],
) -> Result<(), HilError> {
    let present: Vec<&str> = (virtuals.iter().map(|one| one.name))
        .chain(attached.iter().map(|device| &*device.subject.device))
        .chain(absent.iter().map(|listed| name_of(listed)))
        .collect();
    match only.iter().find(|name| !present.contains(&&***name)) {
        None => Ok(()),
        Some(wanted) => Err(HilError::NoDevice {
            wanted: wanted.clone(),
            present: present.into_iter().map(str::to_owned).collect(),
        }),
    }
}

struct Run<'a> {
    options: &'a Options,
    results: Results,
    common: Common,
    progress: Progress,
}

impl Run<'_> {
    /// How many steps a device counts: checks, and about as many for measuring.
    fn steps_of_one(&self) -> usize {
        CHECKS.len() * if self.options.measure.is_some() { 2 } else { 1 }
    }

    fn absent(&mut self, listed: &Listed) -> Result<(), HilError> {
        let subject = Subject {
            device: name_of(listed).into(),
            kind: String::new(),
            model: String::new(),
            serial: listed.serial.clone(),
            firmware: String::new(),
            standing: Standing::Listed,
        };
        let why = "it is listed, and not plugged in: plug it in, or take it off the list";
        self.own_check(&subject, "it_is_plugged_in", Err(why.into()))?;
        self.skip_all(&subject, "it is not plugged in")
    }

    fn skip_all(&mut self, subject: &Subject, why: &str) -> Result<(), HilError> {
        for finding in conformance::skipped(why) {
            self.results.add(Some(subject), finding)?;
        }
        Ok(())
    }

    /// One of the bench's own checks.
    fn own_check(
        &mut self,
        subject: &Subject,
        check: &str,
        outcome: Result<(), String>,
    ) -> Result<(), HilError> {
        if let Err(why) = &outcome {
            line(format_args!(
                "{}: {}: {}",
                subject.device,
                check.replace('_', " "),
                brief(why)
            ));
        }
        let finding = Finding::Check {
            check: check.into(),
            capability: "device".into(),
            outcome: match outcome {
                Ok(()) => Outcome::Passed,
                Err(_) => Outcome::Failed,
            },
            reason: outcome.err().unwrap_or_default(),
            seconds: 0.0,
        };
        self.results.add(Some(subject), finding)
    }

    fn device(&mut self, device: Device) -> Result<(), HilError> {
        let Device {
            subject,
            info,
            reader,
            bench,
            fault,
            _home,
        } = device;
        let finding = Finding::Device {
            makes: info.makes.clone(),
            uses: info.uses.clone(),
            notes: info.notes.clone(),
        };
        self.results.add(Some(&subject), finding)?;
        if let Some(why) = fault {
            self.own_check(&subject, "it_is_the_only_one_with_its_serial", Err(why))?;
        }
        match bench {
            Ok(bench) => self.bench(&subject, &info, &bench),
            Err(why) => {
                line(format_args!("{}: {why}", subject.device));
                let seen = reader
                    .look(&info.backend, Detail::Slots, &Call::unlimited())
                    .and_then(|found| found.slots_of(&info.id))
                    .map(drop)
                    .map_err(|e| sentence(&e));
                self.own_check(&subject, "it_shows_its_slots_without_a_pin", seen)?;
                self.skip_all(&subject, &why)?;
                self.progress.advance(self.steps_of_one() as u64);
                Ok(())
            }
        }
    }

    /// A device that may be written to.
    fn bench(
        &mut self,
        subject: &Subject,
        info: &TokenInfo,
        bench: &Bench,
    ) -> Result<(), HilError> {
        let name = &subject.device;
        self.progress.doing(format_args!("{name}: opening"));
        if self.common.interrupt.came() {
            return self.skip_all(subject, INTERRUPTED);
        }
        let before = match prepare(bench, info) {
            Err(_) if self.common.interrupt.came() => {
                return self.skip_all(subject, INTERRUPTED);
            }
            Ok(before) => {
                self.own_check(subject, "it_opens_and_has_room", Ok(()))?;
                before
            }
            Err(why) => {
                self.own_check(subject, "it_opens_and_has_room", Err(why))?;
                self.skip_all(subject, "it could not be prepared")?;
                self.progress.advance(self.steps_of_one() as u64);
                return Ok(());
            }
        };
        self.checks(subject, bench)?;
        if let Some(times) = self.options.measure {
            self.measure(subject, info, bench, times)?;
        }
        self.after(subject, info, bench, &before)
    }

    fn checks(&mut self, subject: &Subject, bench: &Bench) -> Result<(), HilError> {
        let mut gone = false;
        let options = self.options;
        let wanted =
            |name: &str| options.checks.is_empty() || options.checks.iter().any(|c| c == name);
        for check in CHECKS.iter().filter(|check| wanted(check.name)) {
            let name = check.name.replace('_', " ");
            self.progress
                .doing(format_args!("{}: {name}", subject.device));
            let stopped = match (self.common.interrupt.came(), gone) {
                (true, _) => Some(INTERRUPTED),
                (_, true) => Some("the device was unplugged"),
                _ => None,
            };
            if let Some(why) = stopped {
                let skipped = conformance::skipped(why);
                let this = |finding: &Finding| matches!(finding, Finding::Check { check: of, .. } if of == check.name);
                for finding in skipped.filter(this) {
                    self.results.add(Some(subject), finding)?;
                }
                continue;
            }
            let (finding, lines) = conformance::check(check, bench, self.options.record);
            if let Finding::Check {
                outcome, reason, ..
            } = &finding
            {
                if *outcome == Outcome::Failed {
                    let reason = brief(reason);
                    line(format_args!("{}: FAILED: {name}: {reason}", subject.device));
                    gone = !bench.is_there();
                }
                if let Some(lines) = lines {
                    let head = Head {
                        transcript: 1,
                        check: check.name.into(),
                        outcome: format!("{outcome:?}").to_lowercase(),
                        kind: subject.kind.clone(),
                        device: subject.device.clone(),
                        firmware: subject.firmware.clone(),
                        claviger: env!("CARGO_PKG_VERSION").into(),
                    };
                    let path = self
                        .transcripts(subject)
                        .join(format!("{}.jsonl", check.name));
                    transcript::write(&path, &head, &lines)?;
                }
            }
            self.results.add(Some(subject), finding)?;
            self.progress.advance(1);
        }
        Ok(())
    }

    fn transcripts(&self, subject: &Subject) -> PathBuf {
        // The name may be anything.
        let harmless = |c: char| {
            if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
                c
            } else {
                '_'
            }
        };
        let name: String = subject.device.chars().map(harmless).collect();
        self.options.out.join("transcripts").join(name)
    }

    fn measure(
        &mut self,
        subject: &Subject,
        info: &TokenInfo,
        bench: &Bench,
        times: Times,
    ) -> Result<(), HilError> {
        if self.common.interrupt.came() || !bench.is_there() {
            return Ok(());
        }
        // As many steps as there are checks, in equal parts.
        let parts = info.makes.len() + 1;
        let step = (CHECKS.len() / parts).max(1) as u64;
        let results = &mut self.results;
        let progress = &self.progress;
        let measured = quietly(|| {
            measure::measure(bench, info, times, (progress, step), &mut |finding| {
                results.add(Some(subject), finding)
            })
        });
        match measured {
            Ok(outcome) => outcome?,
            Err(why) => self.own_check(subject, "it_can_be_measured", Err(why))?,
        }
        #[cfg(feature = "pkcs11")]
        if info.id.kind == "pkcs11" && !self.common.interrupt.came() {
            self.spy(subject, info, bench)?;
        }
        self.progress
            .advance((CHECKS.len() as u64).saturating_sub(step * parts as u64));
        Ok(())
    }

    #[cfg(feature = "pkcs11")]
    fn spy(&mut self, subject: &Subject, info: &TokenInfo, bench: &Bench) -> Result<(), HilError> {
        let Some(program) = &self.options.program else {
            return Ok(());
        };
        self.progress
            .doing(format_args!("{}: counting calls", subject.device));
        match spy::count(program, bench, info) {
            Ok((findings, calls)) => {
                for finding in findings {
                    self.results.add(Some(subject), finding)?;
                }
                if self.options.record {
                    let path = self.transcripts(subject).join("pkcs11-calls.txt");
                    let folder = self.transcripts(subject);
                    std::fs::create_dir_all(folder)
                        .and_then(|()| std::fs::write(&path, calls))
                        .map_err(|e| HilError::Unwritable {
                            path,
                            reason: e.to_string(),
                        })?;
                }
                Ok(())
            }
            Err(reason) => {
                let finding = Finding::NotMeasured {
                    what: "PKCS#11 calls".into(),
                    reason,
                };
                self.results.add(Some(subject), finding)
            }
        }
    }

    /// Whether the device is as it was.
    fn after(
        &mut self,
        subject: &Subject,
        info: &TokenInfo,
        bench: &Bench,
        before: &[SlotInfo],
    ) -> Result<(), HilError> {
        // Even where somebody pressed Ctrl-C: through a driver without a guard.
        let outcome = tidy_up(bench, info).and_then(|left| {
            let token = (bench.make)().open(
                &bench.backend,
                &Call::unlimited().using(bench.access.clone()),
            )?;
            Ok((left, sorted(token.slots(&Call::unlimited())?)))
        });
        match outcome {
            Ok((left, after)) => {
                let lost = before.iter().filter(|slot| !after.contains(slot)).count();
                let more = after.iter().filter(|slot| !before.contains(slot)).count();
                let kept = match lost {
                    0 => Ok(()),
                    lost => Err(format!("{lost} slots are no longer what they were")),
                };
                self.own_check(subject, "what_was_there_is_still_there", kept)?;
                let clean = match (more, left.is_empty()) {
                    (0, true) => Ok(()),
                    (0, false) => Err(left.join("; ")),
                    (more, _) => Err(format!("{more} slots hold something that was not there")),
                };
                self.own_check(subject, "nothing_is_left_behind", clean)
            }
            Err(error) => {
                let left = bench.guard.journal.left(info).len();
                let why = format!(
                    "it cannot be looked at: {}; {left} keys of the bench may be left on it: \
                     run again with the same --out, and they are deleted",
                    sentence(&error)
                );
                self.own_check(subject, "nothing_is_left_behind", Err(why))
            }
        }
    }
}

/// Opens the device, deletes what an earlier run left, makes room where that is allowed,
/// and gives what is on it.
fn prepare(bench: &Bench, info: &TokenInfo) -> Result<Vec<SlotInfo>, String> {
    let told = |error: Error| sentence(&error);
    let call = bench.call();
    for left in tidy_up(bench, info).map_err(told)? {
        line(format_args!("{}: {left}", bench.guard.name));
    }
    bench.renew();
    let opened = bench.driver().open(&bench.backend, &call);
    let token = opened.map_err(told)?;
    if bench.wipe && !info.derives {
        for slot in token.slots(&call).map_err(told)? {
            if let Some(key) = wiped(info, &slot) {
                // What the driver does not destroy stays.
                let _: Result<Deletion, Error> = token.delete(&key, &call);
            }
        }
    }
    let slots = token.slots(&call).map_err(told)?;
    let missing = missing::find(&*token, &slots, &call).map_err(told)?;
    *lock(&bench.guard.missing) = missing;
    bench.survey(&slots);
    // The suite makes a key of each kind at once, and two besides.
    let first = info.makes.first().copied();
    let specs: Vec<_> = info
        .makes
        .iter()
        .copied()
        .chain(first)
        .chain(first)
        .collect();
    match token.free_slots(&specs, &[], &call) {
        Ok(_) => Ok(sorted(slots)),
        Err(Error::TokenFull { .. } | Error::OnlyNamedSlots { .. }) => {
            let room = bench
                .room()
                .map(|room| format!(", and there is room for {room}"));
            Err(format!(
                "it is too full: the suite needs room for {} keys{}; delete some, or say \
                 `wipe = true` in hil.toml",
                specs.len(),
                room.unwrap_or_default()
            ))
        }
        Err(error) => Err(told(error)),
    }
}

/// The key in a slot, if it may be deleted to make room: on a smartcard, whose slots are
/// its owner's for other things as well, only one that Claviger made.
fn wiped(info: &TokenInfo, slot: &SlotInfo) -> Option<KeyRef> {
    let by_claviger = |(name, value): &(String, String)| {
        name == "claviger" && matches!(&**value, "made" | "unfinished")
    };
    if info.id.kind == "piv" && !slot.notes.iter().any(by_claviger) {
        return None;
    }
    slot.key_ref()
}

/// Deletes the keys of the bench that are still on the device, and says which places hold
/// something of which nothing shows that it is the bench's: that stays.
fn tidy_up(bench: &Bench, info: &TokenInfo) -> Result<Vec<String>, Error> {
    bench.renew();
    let left = bench.guard.journal.left(info);
    if left.is_empty() {
        return Ok(Vec::new());
    }
    let call = bench.call();
    let token = (bench.make)().open(&bench.backend, &call)?;
    let mut not_shown = Vec::new();
    for left in left {
        if remove(&*token, &left, &call)? {
            (bench.guard.journal).is_discarded(info, &left.slot, &left.mark);
        } else {
            not_shown.push(not_shown_as_ours(&left));
        }
    }
    Ok(not_shown)
}

fn not_shown_as_ours(left: &Unfinished) -> String {
    let why = match (&left.public_key, &*left.mark) {
        (None, "") => "an earlier version noted nothing but the slot",
        _ => "neither its mark nor its public key shows it",
    };
    format!(
        "slot {} may hold a key of the bench ({why}), and nothing was deleted: delete the key \
         yourself, or take its entry out of {} in the folder of the reports",
        left.slot,
        journal::FILE
    )
}

/// Removes a key of the bench, by its public half where there is one, else by its mark.
/// False where nothing shows that what is there is the bench's.
fn remove(token: &dyn Token, left: &Unfinished, call: &Call) -> Result<bool, Error> {
    let removed = match &left.public_key {
        Some(public_key) => {
            let key = KeyRef {
                slot: left.slot.clone(),
                public_key: public_key.clone(),
            };
            token.delete(&key, call)
        }
        None => token.discard(left, call),
    };
    match removed {
        Ok(deletion) => Ok(is_gone(&deletion)),
        Err(Error::KeyMismatch { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Slots that can be compared: without what an operator is told of free ones, such as
/// that a key was destroyed there.
fn sorted(mut slots: Vec<SlotInfo>) -> Vec<SlotInfo> {
    let free = slots
        .iter_mut()
        .filter(|slot| slot.state == SlotState::Free);
    free.for_each(|slot| slot.notes.clear());
    slots.sort_by(|a, b| a.slot.cmp(&b.slot));
    slots
}

/// A virtual device that shows nothing of itself.
fn not_started(name: &str) -> Subject {
    Subject {
        device: name.into(),
        kind: String::new(),
        model: String::new(),
        serial: String::new(),
        firmware: String::new(),
        standing: Standing::Virtual,
    }
}
