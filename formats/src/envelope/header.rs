//! The header of an age file: read completely, within a limit, before anything is decrypted.

use std::io::{self, BufRead, Read};

use age::armor::ArmoredReader;

/// The longest header that is read, in bytes: room for a thousand stanzas of the longest supported
/// kind (RSA of 4096 bits, 711 bytes each). Parsing a header of the shortest possible stanzas takes
/// 70 MiB of memory.
pub const LONGEST_HEADER: usize = 1 << 20;

/// The beginning of every age file.
const VERSION_LINE: &[u8] = b"age-encryption.org/v1\n";

/// A line of armor has 64 characters; others are more generous, within reason.
const LONGEST_ARMOR_LINE: usize = 1024;

/// Why there is no header.
pub(super) enum NoHeader {
    /// It cannot be read, or the file is not an age file.
    Unreadable(io::Error),
    /// It does not end within [`LONGEST_HEADER`].
    TooLong,
}

impl From<io::Error> for NoHeader {
    fn from(error: io::Error) -> Self {
        NoHeader::Unreadable(error)
    }
}

/// The header and the nonce behind it. The last line of a header is the first that begins
/// with `---`.
pub(super) fn read_header(input: &mut impl BufRead) -> Result<Vec<u8>, NoHeader> {
    const NONCE: u64 = 16;
    let mut header = Vec::new();
    let mut first = input.by_ref().take(VERSION_LINE.len() as u64);
    first.read_to_end(&mut header)?;
    if header != VERSION_LINE {
        return Err(io::Error::from(io::ErrorKind::InvalidData).into());
    }
    loop {
        let line = header.len();
        let room = (LONGEST_HEADER - line) as u64;
        input.by_ref().take(room).read_until(b'\n', &mut header)?;
        if !header[line..].ends_with(b"\n") {
            return Err(match header.len() == LONGEST_HEADER {
                true => NoHeader::TooLong,
                false => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
            });
        }
        if header[line..].starts_with(b"---") {
            break;
        }
    }
    input.by_ref().take(NONCE).read_to_end(&mut header)?;
    Ok(header)
}

/// A header in memory, which goes to its parser in one piece: the parser asks for line
/// after line and begins anew after each.
pub(super) struct Header<'a>(io::Cursor<&'a [u8]>);

impl<'a> Header<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Header(io::Cursor::new(bytes))
    }
}

impl Read for Header<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl BufRead for Header<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }

    fn read_until(&mut self, _: u8, bytes: &mut Vec<u8>) -> io::Result<usize> {
        whole_header(&mut self.0, bytes)
    }
}

/// Returns everything but the nonce at once.
fn whole_header<T: AsRef<[u8]>>(
    header: &mut io::Cursor<T>,
    bytes: &mut Vec<u8>,
) -> io::Result<usize> {
    let all = header.get_ref().as_ref();
    // The MAC's line is the last but for the nonce, which may hold line breaks, too.
    let mut end = 0;
    for line in all.split_inclusive(|byte| *byte == b'\n') {
        end += line.len();
        if line.starts_with(b"---") {
            break;
        }
    }
    let begin = usize::try_from(header.position()).unwrap_or(end).min(end);
    bytes.extend_from_slice(&all[begin..end]);
    header.set_position(end as u64);
    Ok(end - begin)
}

/// The original file: the header that was read already, and the rest.
pub struct Body<R: Read> {
    header: io::Cursor<Vec<u8>>,
    rest: ArmoredReader<io::BufReader<ArmorLines<R>>>,
}

impl<R: Read> Body<R> {
    pub(super) fn new(header: Vec<u8>, rest: ArmoredReader<io::BufReader<ArmorLines<R>>>) -> Self {
        Body {
            header: io::Cursor::new(header),
            rest,
        }
    }

    /// The header, and the nonce behind it.
    pub(super) fn header(&self) -> &[u8] {
        self.header.get_ref()
    }

    fn is_in_header(&self) -> bool {
        self.header.position() < self.header.get_ref().len() as u64
    }
}

impl<R: Read> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_in_header() {
            return self.header.read(buffer);
        }
        self.rest.read(buffer)
    }
}

impl<R: Read> BufRead for Body<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.is_in_header() {
            return self.header.fill_buf();
        }
        self.rest.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if self.is_in_header() {
            self.header.consume(count);
        } else {
            self.rest.consume(count);
        }
    }

    fn read_until(&mut self, _: u8, bytes: &mut Vec<u8>) -> io::Result<usize> {
        whole_header(&mut self.header, bytes)
    }
}

/// What `ArmoredReader` reads from: it takes an armored line into memory, however long it
/// is, and no line of a real file is longer than [`LONGEST_ARMOR_LINE`].
pub(super) struct ArmorLines<R> {
    input: R,
    /// How many bytes look like the beginning of an armored file; none once one does not.
    begins: Option<usize>,
    /// Of the line that is being read.
    length: usize,
}

impl<R> ArmorLines<R> {
    const BEGIN: &[u8] = b"-----BEGIN AGE ENCRYPTED FILE-----";

    pub(super) fn new(input: R) -> Self {
        ArmorLines {
            input,
            begins: Some(0),
            length: 0,
        }
    }
}

impl<R: Read> Read for ArmorLines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        for byte in &buffer[..count] {
            let Some(begins) = &mut self.begins else {
                break;
            };
            match Self::BEGIN.get(*begins) {
                Some(wanted) if wanted == byte => *begins += 1,
                // Binary files have lines of any length.
                Some(_) => self.begins = None,
                None => {}
            }
            self.length = if *byte == b'\n' { 0 } else { self.length + 1 };
            if self.length > LONGEST_ARMOR_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(count)
    }
}
