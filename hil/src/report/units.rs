//! Quantities as people read them.

/// Microseconds as people read them.
pub(crate) fn time(micros: f64) -> String {
    let (value, unit) = match micros {
        m if m < 999.5 => (m, "µs"),
        m if m < 999_500.0 => (m / 1e3, "ms"),
        m if m < 120e6 => (m / 1e6, "s"),
        m => (m / 60e6, "min"),
    };
    // Three digits that matter, at most.
    let digits = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_three_digits() {
        for (micros, text) in [
            (0.0, "0 µs"),
            (1.0, "1 µs"),
            (43.41, "43.4 µs"),
            (100.0, "100 µs"),
            (999.9, "1 ms"),
            (3_812.0, "3.81 ms"),
            (1e6, "1 s"),
            (61e6, "61 s"),
            (600e6, "10 min"),
        ] {
            assert_eq!(time(micros), text);
        }
    }
}
