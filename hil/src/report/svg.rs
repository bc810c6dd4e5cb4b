//! Plots, as SVG within the page. Colours come from the page's style.

use std::fmt::Write as _;

use crate::report::units::time;

/// A logarithmic scale of times, in microseconds, that covers what is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    low: i32,
    high: i32,
    width: f64,
}

/// What is left free at both ends for the labels of the ticks.
const MARGIN: f64 = 18.0;

impl Scale {
    /// For these values; from a power of ten to another.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>, width: f64) -> Scale {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for value in values.into_iter().filter(|value| *value > 0.0) {
            low = low.min(value);
            high = high.max(value);
        }
        if !low.is_finite() {
            (low, high) = (1.0, 10.0);
        }
        let low = low.log10().floor() as i32;
        let high = (high.log10().ceil() as i32).max(low + 1);
        Scale { low, high, width }
    }

    fn x(self, value: f64) -> f64 {
        let low = f64::from(self.low);
        let part = (value.max(1e-9).log10() - low) / (f64::from(self.high) - low);
        MARGIN + part.clamp(0.0, 1.0) * (self.width - 2.0 * MARGIN)
    }

    fn ticks(self) -> impl Iterator<Item = (f64, f64)> {
        (self.low..=self.high).map(move |power| {
            let value = 10f64.powi(power);
            (value, self.x(value))
        })
    }

    /// The labels of the scale.
    pub(crate) fn axis(self) -> String {
        let mut text = open(self.width, 14.0, "the scale of the plots below");
        // There is room for five.
        let step = if self.high - self.low > 4 { 2 } else { 1 };
        for (value, x) in self.ticks().step_by(step) {
            let _ = write!(
                text,
                "<text x=\"{x:.1}\" y=\"11\" text-anchor=\"middle\">{}</text>",
                time(value)
            );
        }
        text + "</svg>"
    }

    /// How times are distributed: from the fastest to the slowest a line, the middle 90 %
    /// pale, the middle half darker, the median a mark. `quantiles` are 0, 5, … 100 %.
    pub(crate) fn distribution(self, quantiles: &[f64], height: f64) -> String {
        let at = |index: usize| quantiles.get(index).copied().unwrap_or(0.0);
        let label = format!(
            "from {} to {}, half of them within {} to {}, median {}",
            time(at(0)),
            time(at(20)),
            time(at(5)),
            time(at(15)),
            time(at(10))
        );
        let mut text = open(self.width, height, &label);
        self.grid(&mut text, height);
        let middle = height / 2.0;
        let _ = write!(
            text,
            "<line class=\"whisker\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>",
            self.x(at(0)),
            self.x(at(20))
        );
        for (class, from, to, tall) in [("wide", 1, 19, 0.50), ("box", 5, 15, 0.66)] {
            let (left, right) = (self.x(at(from)), self.x(at(to)));
            let tall = height * tall;
            let _ = write!(
                text,
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{tall:.1}\" rx=\"1\"/>",
                middle - tall / 2.0,
                (right - left).max(1.5)
            );
        }
        let x = self.x(at(10));
        let _ = write!(
            text,
            "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/></svg>",
            height * 0.1,
            height * 0.9
        );
        text
    }

    fn grid(self, text: &mut String, height: f64) {
        for (_, x) in self.ticks() {
            let _ = write!(
                text,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{height}\"/>"
            );
        }
    }
}

/// A bar for each number of callers, with the number and what came of it.
pub(crate) fn bars(values: &[(usize, f64)]) -> String {
    const WIDTH: f64 = 170.0;
    const STEP: f64 = 13.0;
    let most = values.iter().map(|(_, value)| *value).fold(1e-9, f64::max);
    let label: Vec<String> = values
        .iter()
        .map(|(callers, value)| format!("{callers} at once: {} per second", rate(*value)))
        .collect();
    let mut text = open(WIDTH, STEP * values.len() as f64, &label.join(", "));
    for (index, (callers, value)) in values.iter().enumerate() {
        let y = STEP * index as f64;
        let length = 86.0 * value / most;
        let _ = write!(
            text,
            "<text x=\"8\" y=\"{:.1}\" text-anchor=\"end\">{callers}</text>\
             <rect class=\"box\" x=\"14\" y=\"{:.1}\" width=\"{length:.1}\" height=\"7\" rx=\"1\"/>\
             <text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{}/s</text>",
            y + 10.0,
            y + 3.0,
            length + 19.0,
            y + 10.0,
            rate(*value)
        );
    }
    text + "</svg>"
}

/// A name, and the quantiles of its distribution.
pub(crate) type Row<'a> = (&'a str, &'a [f64]);

/// About as wide as a name is drawn.
fn width(name: &str) -> f64 {
    let wide = |c: char| if c < '\u{1100}' { 6.6 } else { 11.5 };
    name.chars().map(wide).sum()
}

/// A name that is drawn, cut where it is too long; whole for who points at it.
fn name(name: &str, room: f64) -> String {
    if width(name) <= room {
        return super::html::escape(name);
    }
    let mut cut = String::new();
    for c in name.chars() {
        cut.push(c);
        if width(&cut) + width("…") > room {
            cut.pop();
            break;
        }
    }
    format!(
        "<title>{}</title>{}…",
        super::html::escape(name),
        super::html::escape(&cut)
    )
}

/// Rows with a name, a distribution each, and the median.
pub(crate) fn ranking(rows: &[Row<'_>], scale: Scale) -> String {
    const STEP: f64 = 24.0;
    let longest = rows.iter().map(|(name, _)| width(name));
    let names = longest.fold(60.0, f64::max).min(240.0).ceil() + 4.0;
    let height = STEP * rows.len() as f64 + 18.0;
    let mut text = open(
        names + scale.width + 62.0,
        height,
        "medians and distributions",
    );
    for (index, (of, quantiles)) in rows.iter().enumerate() {
        let y = STEP * index as f64;
        let _ = write!(
            text,
            "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <g transform=\"translate({names} {y:.1})\">{}</g>\
             <text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            names - 4.0,
            y + 16.0,
            name(of, names - 4.0),
            scale.distribution(quantiles, STEP),
            names + scale.width + 4.0,
            y + 16.0,
            time(quantiles.get(10).copied().unwrap_or(0.0))
        );
    }
    let _ = write!(
        text,
        "<g transform=\"translate({names} {:.1})\">{}</g></svg>",
        STEP * rows.len() as f64 + 2.0,
        scale.axis()
    );
    text
}

/// A course over time: medians, and above them the slowest of each part.
pub(crate) fn course(medians: &[f64], slowest: &[f64], seconds: f64) -> String {
    const WIDTH: f64 = 520.0;
    const HEIGHT: f64 = 120.0;
    const LEFT: f64 = 54.0;
    let top = slowest.iter().copied().fold(1.0, f64::max).log10().ceil();
    let bottom = medians
        .iter()
        .copied()
        .filter(|m| *m > 0.0)
        .fold(f64::INFINITY, f64::min);
    let bottom = if bottom.is_finite() {
        bottom.log10().floor()
    } else {
        0.0
    };
    let span = (top - bottom).max(1.0);
    let y = |value: f64| HEIGHT - (value.max(1e-9).log10() - bottom) / span * (HEIGHT - 10.0);
    let mut text = open(WIDTH, HEIGHT + 20.0, "latency over time");
    for power in bottom as i32..=(bottom + span) as i32 {
        let value = 10f64.powi(power);
        let _ = write!(
            text,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{0:.1}\" y2=\"{0:.1}\"/>\
             <text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{3}</text>",
            y(value),
            LEFT - 6.0,
            y(value) + 4.0,
            time(value)
        );
    }
    for (class, values) in [("peak", slowest), ("curve", medians)] {
        let step = (WIDTH - LEFT) / (values.len().max(2) - 1) as f64;
        let points: Vec<String> = (values.iter().enumerate())
            .map(|(index, value)| format!("{:.1},{:.1}", LEFT + step * index as f64, y(*value)))
            .collect();
        let _ = write!(
            text,
            "<polyline class=\"{class}\" points=\"{}\"/>",
            points.join(" ")
        );
    }
    let _ = write!(
        text,
        "<text x=\"{LEFT}\" y=\"{0}\">0</text>\
         <text x=\"{WIDTH}\" y=\"{0}\" text-anchor=\"end\">{seconds:.0} s</text></svg>",
        HEIGHT + 16.0
    );
    text
}

fn open(width: f64, height: f64, label: &str) -> String {
    format!(
        "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"{}\">",
        super::html::escape(label)
    )
}

/// A number with three digits that matter.
pub(crate) fn rate(value: f64) -> String {
    match value {
        v if v >= 10_000.0 => format!("{:.0}k", v / 1000.0),
        v if v >= 1000.0 => format!("{:.1}k", v / 1000.0),
        v if v >= 10.0 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_or_cut_and_told_to_who_points_at_them() {
        let scale = Scale::of([10.0], 300.0);
        let quantiles = [10.0; 21];
        let name = "piv-authenticator-of-somebody";
        let drawn = ranking(&[(name, &quantiles)], scale);
        assert!(drawn.contains(&format!(">{name}</text>")), "{drawn}");
        let long = "<x>".repeat(100);
        let drawn = ranking(&[(&long, &quantiles), (name, &quantiles)], scale);
        let whole = format!("<title>{}</title>", super::super::html::escape(&long));
        assert!(drawn.contains(&whole) && drawn.contains("…</text>"));
        assert!(drawn.contains(&format!(">{name}</text>")));
    }
}
