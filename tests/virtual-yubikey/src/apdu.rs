//! Commands and status words (ISO/IEC 7816-4 §5; SP 800-73-4 part 2, §2.4).

/// The two bytes that end every reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// Done.
    pub const OK: Status = Status(0x9000);
    /// The length is wrong.
    pub const WRONG_LENGTH: Status = Status(0x6700);
    /// A PIN, a touch or the management key is wanted first.
    pub const SECURITY_STATUS: Status = Status(0x6982);
    /// No tries are left.
    pub const BLOCKED: Status = Status(0x6983);
    /// Not now, or not in this state.
    pub const CONDITIONS: Status = Status(0x6985);
    /// The data field is wrong.
    pub const WRONG_DATA: Status = Status(0x6a80);
    /// The card does not do this.
    pub const NOT_SUPPORTED: Status = Status(0x6a81);
    /// No such object or application.
    pub const NOT_FOUND: Status = Status(0x6a82);
    /// No room is left.
    pub const NO_SPACE: Status = Status(0x6a84);
    /// P1 or P2 is wrong.
    pub const WRONG_P1_P2: Status = Status(0x6a86);
    /// No such key or PIN.
    pub const REFERENCE_NOT_FOUND: Status = Status(0x6a88);
    /// There is no such instruction (here, or in this firmware).
    pub const UNKNOWN_INSTRUCTION: Status = Status(0x6d00);
    /// Secure messaging and logical channels are not offered.
    pub const UNKNOWN_CLASS: Status = Status(0x6e00);
    /// The card's own fault.
    pub const INTERNAL: Status = Status(0x6f00);

    /// `63 Cx`: the value was wrong, `tries` are left (four bits are all there is).
    pub fn wrong(tries: u8) -> Status {
        Status(0x63c0 | u16::from(tries.min(15)))
    }

    /// `61 xx`: so much data is left for GET RESPONSE; 00 stands for 256 or more.
    pub fn more(left: usize) -> Status {
        Status(0x6100 | u16::from(u8::try_from(left).unwrap_or(0)))
    }

    /// `6C xx`: send it again with this Le; 00 stands for 256 or more.
    pub fn wrong_le(right: usize) -> Status {
        Status(0x6c00 | u16::from(u8::try_from(right).unwrap_or(0)))
    }
}

/// What a command does: its data, or why not.
pub(crate) type Outcome = Result<Vec<u8>, Status>;

/// A command as it came, before its chain is put together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Command<'a> {
    pub(crate) class: u8,
    pub(crate) instruction: u8,
    pub(crate) p1: u8,
    pub(crate) p2: u8,
    pub(crate) data: &'a [u8],
    /// The most bytes of data that the reply may have. A YubiKey replies with data even
    /// to a command without Le, so its absence means "as many as the form allows".
    pub(crate) expected: usize,
}

impl<'a> Command<'a> {
    /// Class bit: more commands of this chain follow (ISO/IEC 7816-4 §5.3.3).
    pub(crate) const CHAINED: u8 = 0x10;

    /// Parses all seven cases, short and extended (ISO/IEC 7816-4 §5.1).
    pub(crate) fn parse(apdu: &'a [u8]) -> Result<Command<'a>, Status> {
        let (&[class, instruction, p1, p2], body) =
            apdu.split_first_chunk().ok_or(Status::WRONG_LENGTH)?;
        let short = |le: u8| if le == 0 { 256 } else { usize::from(le) };
        let extended = |le: [u8; 2]| match u16::from_be_bytes(le) {
            0 => 65_536,
            le => usize::from(le),
        };
        let (data, expected): (&[u8], usize) = match *body {
            [] => (&[], 256),
            [le] => (&[], short(le)),
            [0, a, b] => (&[], extended([a, b])),
            [0, a, b, ref rest @ ..] => {
                let length = usize::from(u16::from_be_bytes([a, b]));
                match rest.split_at_checked(length) {
                    _ if length == 0 => return Err(Status::WRONG_LENGTH),
                    Some((data, [])) => (data, 65_536),
                    Some((data, &[a, b])) => (data, extended([a, b])),
                    _ => return Err(Status::WRONG_LENGTH),
                }
            }
            [length, ref rest @ ..] => match rest.split_at_checked(usize::from(length)) {
                _ if length == 0 => return Err(Status::WRONG_LENGTH),
                Some((data, [])) => (data, 256),
                Some((data, &[le])) => (data, short(le)),
                _ => return Err(Status::WRONG_LENGTH),
            },
        };
        Ok(Command {
            class,
            instruction,
            p1,
            p2,
            data,
            expected,
        })
    }

    /// Whether it belongs to the same chain as `other`.
    pub(crate) fn continues(&self, other: [u8; 3]) -> bool {
        self.header() == other
    }

    /// Instruction, P1 and P2.
    pub(crate) fn header(&self) -> [u8; 3] {
        [self.instruction, self.p1, self.p2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(apdu: &[u8]) -> Result<(Vec<u8>, usize), Status> {
        Command::parse(apdu).map(|command| (command.data.to_vec(), command.expected))
    }

    #[test]
    fn all_seven_cases_are_understood() {
        assert_eq!(parsed(&[0, 1, 2, 3]), Ok((vec![], 256)));
        assert_eq!(parsed(&[0, 1, 2, 3, 5]), Ok((vec![], 5)));
        assert_eq!(parsed(&[0, 1, 2, 3, 0]), Ok((vec![], 256)));
        assert_eq!(parsed(&[0, 1, 2, 3, 1, 9]), Ok((vec![9], 256)));
        assert_eq!(parsed(&[0, 1, 2, 3, 1, 9, 7]), Ok((vec![9], 7)));
        assert_eq!(parsed(&[0, 1, 2, 3, 0, 1, 0]), Ok((vec![], 256)));
        assert_eq!(parsed(&[0, 1, 2, 3, 0, 0, 0]), Ok((vec![], 65_536)));
        assert_eq!(parsed(&[0, 1, 2, 3, 0, 0, 1, 9]), Ok((vec![9], 65_536)));
        assert_eq!(parsed(&[0, 1, 2, 3, 0, 0, 1, 9, 1, 0]), Ok((vec![9], 256)));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for apdu in [
            &[][..],
            &[0, 1, 2],
            &[0, 1, 2, 3, 2, 9],
            &[0, 1, 2, 3, 1, 9, 0, 0],
            &[0, 1, 2, 3, 0, 0],
            &[0, 1, 2, 3, 0, 0, 0, 9],
            &[0, 1, 2, 3, 0, 0, 2, 9],
            &[0, 1, 2, 3, 0, 0, 1, 9, 0],
        ] {
            assert_eq!(parsed(apdu), Err(Status::WRONG_LENGTH), "{apdu:02x?}");
        }
    }
}
