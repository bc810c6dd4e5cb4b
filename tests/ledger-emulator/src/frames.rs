//! APDUs in HID reports of 64 bytes, as Ledger's devices want them:
//! `u16be(channel) 05 u16be(number) data`, where the data of all frames together begins
//! with `u16be(length)`, and is padded with zeros.

/// What one report carries.
pub(crate) const REPORT: usize = 64;
/// The channel that everybody uses.
pub(crate) const CHANNEL: u16 = 0x0101;
const TAG: u8 = 0x05;
const HEADER: usize = 5;

pub(crate) type Report = [u8; REPORT];

/// A message in reports; `length` is what the first one says that there is.
pub(crate) fn split(channel: u16, length: u16, message: &[u8]) -> Vec<Report> {
    let data = [&length.to_be_bytes(), message].concat();
    data.chunks(REPORT - HEADER)
        .zip(0_u16..)
        .map(|(chunk, number)| {
            let mut report = [0; REPORT];
            report[..2].copy_from_slice(&channel.to_be_bytes());
            report[2] = TAG;
            report[3..HEADER].copy_from_slice(&number.to_be_bytes());
            report[HEADER..HEADER + chunk.len()].copy_from_slice(chunk);
            report
        })
        .collect()
}

/// Puts a message together, report by report.
#[derive(Default)]
pub(crate) struct Joiner {
    data: Vec<u8>,
    next: u16,
}

impl Joiner {
    /// The whole message with its last report.
    ///
    /// # Errors
    /// What is wrong with the report. The message is given up.
    pub(crate) fn push(&mut self, report: &Report) -> Result<Option<Vec<u8>>, String> {
        let joined = self.try_push(report);
        if !matches!(joined, Ok(None)) {
            *self = Joiner::default();
        }
        joined
    }

    fn try_push(&mut self, report: &Report) -> Result<Option<Vec<u8>>, String> {
        let channel = u16::from_be_bytes([report[0], report[1]]);
        let number = u16::from_be_bytes([report[3], report[4]]);
        if (channel, report[2], number) != (CHANNEL, TAG, self.next) {
            return Err(format!(
                "channel {channel:04x}, tag {:02x}, number {number} where 0101, 05, {} was expected",
                report[2], self.next
            ));
        }
        self.next += 1;
        self.data.extend_from_slice(&report[HEADER..]);
        let length = usize::from(u16::from_be_bytes([self.data[0], self.data[1]]));
        Ok(self.data.get(2..2 + length).map(<[u8]>::to_vec))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_any_length_survives() {
        for length in [0, 1, 57, 58, 116, 117, 260, 0xffff] {
            let message: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let reports = split(CHANNEL, length as u16, &message);
            let mut joiner = Joiner::default();
            let (last, first) = reports.split_last().unwrap();
            for report in first {
                assert_eq!(joiner.push(report), Ok(None));
            }
            assert_eq!(joiner.push(last), Ok(Some(message)));
        }
    }

    #[test]
    fn a_report_is_as_ledger_writes_it() {
        let report = split(CHANNEL, 5, &[0xb0, 1, 0, 0, 0])[0];
        assert_eq!(report[..12], [1, 1, 5, 0, 0, 0, 5, 0xb0, 1, 0, 0, 0]);
        assert_eq!(report[12..], [0; 52]);
    }

    #[test]
    fn a_report_that_does_not_belong_is_refused_and_the_next_message_is_not() {
        let reports = split(CHANNEL, 100, &[7; 100]);
        let mut joiner = Joiner::default();
        assert!(joiner.push(&reports[1]).is_err());
        assert!(joiner.push(&split(0x0202, 1, &[7])[0]).is_err());
        assert_eq!(joiner.push(&reports[0]), Ok(None));
        assert_eq!(joiner.push(&reports[1]), Ok(Some(vec![7; 100])));
    }
}
