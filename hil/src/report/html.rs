//! The report for people: one page, for screen and paper. It loads nothing from elsewhere and runs
//! no script.

use std::fmt::Write as _;

use claviger_conformance::Theme;
use claviger_token::Algorithm;

use crate::report::svg::{Row, Scale, bars, course, ranking, rate};
use crate::report::units::time;
use crate::report::{Counts, brief, counts, devices, failed, row, sentence, verdict};
use crate::results::{Finding, Operation, Outcome, Record, Standing, Subject, Verb};

/// The page.
pub fn page(records: &[Record]) -> String {
    let mut page = String::new();
    let run = records.first().map(|record| &record.run);
    let (when, host, version, build) = run.map_or(("", "", "", ""), |run| {
        (&*run.run, &*run.host, &*run.claviger, &*run.build)
    });
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Claviger on devices, {}</title>\n<style>\n{}</style>\n</head>\n<body>\n\
         <header>\n<h1>Claviger on devices</h1>\n\
         <p class=\"soft\">{} · {} · Claviger {}, {} build</p>\n",
        escape(when),
        include_str!("style.css"),
        escape(&when.replace('T', " ").replace('Z', " UTC")),
        escape(host),
        escape(version),
        escape(build),
    );
    let bad = if failed(records) > 0 { " bad" } else { "" };
    let took = records.iter().find_map(|record| match &record.finding {
        Finding::End { complete, seconds } => Some((*complete, *seconds)),
        _ => None,
    });
    let took_text = took.map_or(String::new(), |(_, seconds)| {
        format!(", in {}", time(seconds * 1e6))
    });
    let _ = writeln!(
        page,
        "<p class=\"verdict{bad}\" id=\"verdict\">{}{took_text}.</p>",
        escape(&verdict(records))
    );
    if !took.is_some_and(|(complete, _)| complete) {
        page.push_str(
            "<p class=\"caution\">The run was interrupted: this is what there was by then.</p>\n",
        );
    }
    if build == "debug" {
        page.push_str(
            "<p class=\"caution\">This is a debug build: its figures are of no use.</p>\n",
        );
    }
    page.push_str("</header>\n<main>\n");
    failures(&mut page, records);
    matrix(&mut page, records);
    across(&mut page, records);
    each(&mut page, records);
    keys(&mut page, records);
    endurance(&mut page, records);
    left_out(&mut page, records);
    page.push_str(
        "</main>\n<footer>Latency is measured at the driver's interface, one operation at a \
         time: p95 is what nineteen of twenty did not exceed. Throughput is the median of \
         its rounds. The same figures are in <code>results.jsonl</code>; \
         <code>claviger-hil compare</code> shows what changed between two runs.</footer>\n\
         </body>\n</html>\n",
    );
    page
}

fn failures(page: &mut String, records: &[Record]) {
    let mut heading = true;
    for record in records {
        if let Finding::Check {
            check,
            outcome: Outcome::Failed,
            reason,
            ..
        } = &record.finding
        {
            if std::mem::take(&mut heading) {
                page.push_str("<section id=\"failures\">\n<h2>What failed</h2>\n");
            }
            let _ = writeln!(
                page,
                "<div class=\"failure\"><strong>{}</strong> — {}<code>{}</code></div>",
                escape(record.device()),
                escape(&sentence(check)),
                escape(&brief(reason))
            );
        }
    }
    if !heading {
        page.push_str("</section>\n");
    }
}

fn matrix(page: &mut String, records: &[Record]) {
    page.push_str(
        "<section id=\"matrix\">\n<h2>Devices and capabilities</h2>\n\
         <p class=\"soft\">How many checks passed, of those that were made. Grey: not \
         applicable, or not possible on this device; the reasons are at the end.</p>\n\
         <div class=\"scroll\"><table class=\"matrix\">\n<thead><tr><th>device</th>",
    );
    for capability in Theme::ALL {
        let _ = write!(page, "<th class=\"cell\">{capability}</th>");
    }
    page.push_str("<th class=\"cell\">the bench’s own</th></tr></thead>\n<tbody>\n");
    for subject in devices(records) {
        let name = &subject.device;
        let _ = write!(
            page,
            "<tr><td class=\"name\"><strong>{}</strong><small>{}</small></td>",
            escape(name),
            escape(&described(subject))
        );
        let own = counts(records, |record, capability| {
            record.device() == *name && capability == "device"
        });
        for counts in row(records, name).into_iter().chain([own]) {
            let _ = write!(page, "<td class=\"cell\">{}</td>", chip(counts));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n</section>\n");
}

fn described(subject: &Subject) -> String {
    let standing = match subject.standing {
        Standing::Virtual => "virtual",
        Standing::Listed => "listed",
        Standing::ReadOnly => "not listed: only read",
    };
    let firmware = match subject.model.contains(&*subject.firmware) {
        true => "",
        false => &*subject.firmware,
    };
    let parts = [&*subject.model, firmware, standing];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" · ")
}

fn chip(counts: Counts) -> String {
    let Counts {
        passed,
        skipped,
        failed,
    } = counts;
    match (passed, skipped, failed) {
        (0, 0, 0) => String::new(),
        (0, _, 0) => "<span class=\"chip idle\">–</span>".into(),
        (_, 0, 0) => format!("<span class=\"chip good\">{passed}</span>"),
        (_, _, 0) => format!(
            "<span class=\"chip good\" title=\"{skipped} skipped\">{passed} of {}</span>",
            passed + skipped
        ),
        _ => format!(
            "<span class=\"chip bad\">{failed} failed</span>{}",
            match passed {
                0 => String::new(),
                passed => format!(" <span class=\"chip good\">{passed}</span>"),
            }
        ),
    }
}

/// The latencies with one key on the device.
fn latencies(records: &[Record]) -> impl Iterator<Item = (&Record, Operation, &[f64])> {
    records.iter().filter_map(|record| match &record.finding {
        Finding::Latency {
            of,
            keys: 1,
            quantiles,
            ..
        } => Some((record, *of, &quantiles[..])),
        _ => None,
    })
}

/// The same operations on all devices that have them.
fn across(page: &mut String, records: &[Record]) {
    let figures: Vec<(Operation, Vec<Row<'_>>)> = [Verb::Sign, Verb::Decrypt, Verb::Generate]
        .into_iter()
        .flat_map(|operation| {
            Algorithm::ALL.map(|algorithm| Operation {
                operation,
                algorithm,
            })
        })
        .filter_map(|wanted| {
            let mut rows: Vec<Row<'_>> = Vec::new();
            for (record, of, quantiles) in latencies(records) {
                if of == wanted {
                    rows.push((record.device(), quantiles));
                }
            }
            (rows.len() > 1).then_some((wanted, rows))
        })
        .collect();
    if figures.is_empty() {
        return;
    }
    page.push_str(
        "<section id=\"across\">\n<h2>The same on different devices</h2>\n\
         <p class=\"soft\">How long one operation takes. The mark is the median, the dark bar \
         the middle half, the pale one the middle 90 %, the line goes from the fastest to the \
         slowest. The scales are logarithmic, and the same for each kind of operation.</p>\n<div class=\"panels\">\n",
    );
    for (of, rows) in &figures {
        let of_kind = figures
            .iter()
            .filter(|(other, _)| other.operation == of.operation);
        let values = of_kind.flat_map(|(_, rows)| rows.iter().flat_map(|(_, q)| q.iter().copied()));
        let scale = Scale::of(values, 300.0);
        let _ = writeln!(
            page,
            "<figure><figcaption><strong>{}</strong></figcaption>{}</figure>",
            escape(&title(*of)),
            ranking(rows, scale)
        );
    }
    page.push_str("</div>\n</section>\n");
}

fn title(of: Operation) -> String {
    format!("{}, {}", of.operation.name(), algorithm(of.algorithm))
}

fn algorithm(algorithm: Algorithm) -> String {
    match algorithm {
        Algorithm::P256 => "P-256".into(),
        Algorithm::P384 => "P-384".into(),
        Algorithm::Ed25519 => "Ed25519".into(),
        Algorithm::X25519 => "X25519".into(),
        Algorithm::Secp256k1 => "secp256k1".into(),
        Algorithm::Bls12381 => "BLS12-381".into(),
        rsa => rsa
            .rsa_bits()
            .map_or(rsa.to_string(), |bits| format!("RSA-{bits}")),
    }
}

/// Everything about each device.
fn each(page: &mut String, records: &[Record]) {
    let mut heading = true;
    for subject in devices(records) {
        let of_device = |record: &&Record| record.device() == subject.device;
        let own = latencies(records).filter(|(record, ..)| of_device(record));
        let scale = Scale::of(own.flat_map(|(_, _, quantiles)| quantiles.to_vec()), 240.0);
        let rows = records
            .iter()
            .filter(of_device)
            .filter_map(|record| match &record.finding {
                Finding::Latency {
                    of,
                    keys: 1,
                    samples,
                    p50,
                    p95,
                    p99,
                    quantiles,
                    ..
                } => Some((*of, *samples, [*p50, *p95, *p99], quantiles)),
                _ => None,
            });
        let mut rows: Vec<_> = rows.collect();
        if rows.is_empty() {
            continue;
        }
        rows.sort_by_key(|(of, ..)| of.operation != Verb::Sign && of.operation != Verb::Decrypt);
        if std::mem::take(&mut heading) {
            page.push_str("<section id=\"figures\">\n<h2>Each device</h2>\n");
        }
        let _ = write!(
            page,
            "<div class=\"device\"><h3>{}<small>{}</small></h3>\n<div class=\"scroll\"><table>\n\
             <thead><tr><th>operation</th><th>{}</th><th class=\"number\">p50</th>\
             <th class=\"number\">p95</th><th class=\"number\">p99</th>\
             <th class=\"number\">measured</th><th class=\"number\">{} each</th>\
             <th>with 1, 2, 8 callers</th></tr></thead>\n<tbody>\n",
            escape(&subject.device),
            escape(&described(subject)),
            scale.axis(),
            match &*subject.kind {
                "pkcs11" => "PKCS#11 calls",
                _ => "commands",
            }
        );
        for (of, samples, percentiles, quantiles) in rows {
            let calls = records
                .iter()
                .filter(of_device)
                .find_map(|record| match &record.finding {
                    Finding::Calls {
                        of: known, calls, ..
                    } if *known == of => Some(*calls),
                    _ => None,
                });
            let rates: Vec<(usize, f64)> = (records.iter().filter(of_device))
                .filter_map(|record| match &record.finding {
                    Finding::Throughput {
                        of: known,
                        callers,
                        per_second,
                        ..
                    } if *known == of => Some((*callers, *per_second)),
                    _ => None,
                })
                .collect();
            let _ = write!(
                page,
                "<tr><td class=\"name\">{}</td><td>{}</td>",
                escape(&title(of)),
                scale.distribution(quantiles, 26.0)
            );
            for percentile in percentiles {
                let _ = write!(page, "<td class=\"number\">{}</td>", time(percentile));
            }
            let _ = writeln!(
                page,
                "<td class=\"number\">{samples} ×</td><td class=\"number\">{}</td><td>{}</td></tr>",
                calls.map_or("–".into(), |calls| format!(
                    "{}",
                    (calls * 10.0).round() / 10.0
                )),
                if rates.is_empty() {
                    String::new()
                } else {
                    bars(&rates)
                }
            );
        }
        page.push_str("</tbody></table></div></div>\n");
    }
    if !heading {
        page.push_str("</section>\n");
    }
}

fn keys(page: &mut String, records: &[Record]) {
    let mut rows = String::new();
    for subject in devices(records) {
        let several = records.iter().filter_map(|record| match &record.finding {
            Finding::Latency { of, keys, p50, .. }
                if record.device() == subject.device && *keys > 1 =>
            {
                Some((*of, *keys, *p50))
            }
            _ => None,
        });
        let several: Vec<_> = several.collect();
        let Some((of, ..)) = several.first().copied() else {
            continue;
        };
        let one = latencies(records)
            .find(|(record, known, _)| record.device() == subject.device && *known == of)
            .and_then(|(_, _, quantiles)| quantiles.get(10).copied());
        let Some(one) = one else {
            continue;
        };
        let _ = write!(
            rows,
            "<tr><td class=\"name\">{}</td><td>{}</td><td class=\"number\">{}</td><td>",
            escape(&subject.device),
            escape(&title(of)),
            time(one)
        );
        let parts: Vec<String> = several
            .iter()
            .map(|(_, keys, p50)| {
                // Adding zero makes a negative zero a positive one.
                let percent = ((p50 / one - 1.0) * 100.0).round() + 0.0;
                format!("{} with {keys} keys ({percent:+.0} %)", time(*p50))
            })
            .collect();
        let _ = writeln!(rows, "{}</td></tr>", escape(&parts.join(", ")));
    }
    if !rows.is_empty() {
        let _ = write!(
            page,
            "<section id=\"keys\">\n<h2>With more keys on the device</h2>\n<div class=\"scroll\">\
             <table>\n<thead><tr><th>device</th><th>operation</th><th class=\"number\">p50 with one \
             key</th><th>p50 with more</th></tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n\
             </section>\n"
        );
    }
}

fn endurance(page: &mut String, records: &[Record]) {
    let mut heading = true;
    for record in records {
        if let Finding::Endurance {
            of,
            seconds,
            operations,
            errors,
            medians,
            slowest,
        } = &record.finding
        {
            if std::mem::take(&mut heading) {
                page.push_str(
                    "<section id=\"endurance\">\n<h2>Endurance</h2>\n<p class=\"soft\">The \
                     median over time, and above it, pale, the slowest.</p>\n\
                     <div class=\"panels\">\n",
                );
            }
            let errors: Vec<String> = errors
                .iter()
                .map(|(error, times)| format!("{times} × {error}"))
                .collect();
            let errors = match errors.is_empty() {
                true => "no errors".into(),
                false => errors.join("; "),
            };
            let _ = writeln!(
                page,
                "<figure><figcaption><strong>{}</strong>: {}, {operations} in {}, {}/s, {}\
                 </figcaption>{}</figure>",
                escape(record.device()),
                escape(&title(*of)),
                time(seconds * 1e6),
                rate(*operations as f64 / seconds.max(1e-9)),
                escape(&errors),
                course(medians, slowest, *seconds)
            );
        }
    }
    if !heading {
        page.push_str("</div>\n</section>\n");
    }
}

fn left_out(page: &mut String, records: &[Record]) {
    let mut rows = String::new();
    for subject in devices(records) {
        let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
        for record in records
            .iter()
            .filter(|record| record.device() == subject.device)
        {
            let (what, why) = match &record.finding {
                Finding::Check {
                    check,
                    outcome: Outcome::Skipped,
                    reason,
                    ..
                } => (sentence(check), reason),
                Finding::NotMeasured { what, reason } => (format!("Measuring {what}"), reason),
                _ => continue,
            };
            match reasons.iter_mut().find(|(known, _)| known == why) {
                Some((_, all)) => all.push(what),
                None => reasons.push((why, vec![what])),
            }
        }
        for (why, all) in reasons {
            let what = match &all[..] {
                [one] => escape(one),
                [first, ..] if all.len() <= 3 => {
                    let _ = first;
                    escape(&all.join("; "))
                }
                all => format!("{} checks", all.len()),
            };
            let _ = writeln!(
                rows,
                "<tr><td class=\"name\">{}</td><td>{what}</td><td>{}</td></tr>",
                escape(&subject.device),
                escape(&brief(why))
            );
        }
    }
    if !rows.is_empty() {
        let _ = write!(
            page,
            "<section id=\"left-out\">\n<h2>What was left out, and why</h2>\n<div class=\"scroll\">\
             <table>\n<thead><tr><th>device</th><th>what</th><th>why</th></tr></thead>\n<tbody>\n\
             {rows}</tbody></table></div>\n</section>\n"
        );
    }
}

/// Text that HTML takes for nothing else, in attributes too.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() && c != '\n' => safe.push('\u{fffd}'),
            // What has text run the other way, and look like another.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_says_of_itself_is_text_and_nothing_else() {
        assert_eq!(
            escape("<script>'\"&\u{1b}"),
            "&lt;script&gt;&#39;&quot;&amp;\u{fffd}"
        );
        assert_eq!(
            escape("a\u{202e}b\u{2066}\u{2069}\u{202a}"),
            "a\u{fffd}b\u{fffd}\u{fffd}\u{fffd}"
        );
    }
}
