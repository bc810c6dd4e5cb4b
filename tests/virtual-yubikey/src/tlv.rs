//! BER-TLV as PIV uses it, and DER, which is the same with its own tags (ITU-T X.690 §8.1).

/// One element: tag, value, and what comes after it.
pub(crate) type Element<'a> = (u32, &'a [u8], &'a [u8]);

/// Reads the first element; `None` where the bytes are none.
pub(crate) fn read(input: &[u8]) -> Option<Element<'_>> {
    let (&first, mut rest) = input.split_first()?;
    let mut tag = u32::from(first);
    if first & 0x1f == 0x1f {
        // Two bytes of tag are the most that PIV has (7F49, 5F2F, 7F61).
        let (&second, after) = rest.split_first()?;
        if second & 0x80 != 0 {
            return None;
        }
        tag = tag << 8 | u32::from(second);
        rest = after;
    }
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => {
            let (&bytes, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(bytes)), rest)
        }
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(length)?;
    Some((tag, value, rest))
}

/// All elements, if the input consists of them and nothing else.
pub(crate) fn all(mut input: &[u8]) -> Option<Vec<(u32, &[u8])>> {
    let mut elements = Vec::new();
    while !input.is_empty() {
        let (tag, value, rest) = read(input)?;
        elements.push((tag, value));
        input = rest;
    }
    Some(elements)
}

/// The value of the only element, if it has this tag.
pub(crate) fn only(input: &[u8], wanted: u32) -> Option<&[u8]> {
    match read(input)? {
        (tag, value, []) if tag == wanted => Some(value),
        _ => None,
    }
}

/// The value of the first element with this tag.
pub(crate) fn find<'a>(elements: &[(u32, &'a [u8])], wanted: u32) -> Option<&'a [u8]> {
    (elements.iter()).find_map(|&(tag, value)| (tag == wanted).then_some(value))
}

/// Writes an element whose value is `parts`, one after the other.
///
/// Values are shorter than 65,536 bytes: a card has nothing longer.
pub(crate) fn write(tag: u32, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(length + 6);
    let significant = tag.to_be_bytes().into_iter().skip_while(|&byte| byte == 0);
    out.extend(significant);
    let [.., high, low] = length.to_be_bytes();
    match length {
        0..0x80 => out.push(low),
        0x80..0x100 => out.extend([0x81, low]),
        _ => out.extend([0x82, high, low]),
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff] {
            for tag in [0x53, 0x7f49] {
                let value = vec![7; length];
                let mut written = write(tag, &[&value]);
                assert_eq!(read(&written), Some((tag, &value[..], &[][..])));
                assert_eq!(only(&written, tag), Some(&value[..]));
                written.pop();
                assert!(read(&written).is_none() || length == 0);
            }
        }
    }

    #[test]
    fn what_lies_about_its_length_is_nothing() {
        for bytes in [
            &[][..],
            &[0x7c],
            &[0x7f],
            &[0x7f, 0x49],
            &[0x7c, 0x80],
            &[0x7c, 0x81],
            &[0x7c, 0x82, 1],
            &[0x7c, 0x83, 0, 0, 1, 0],
            &[0x7c, 2, 0],
        ] {
            assert_eq!(read(bytes), None, "{bytes:02x?}");
        }
        assert_eq!(all(&[0x7c, 0, 1]), None);
    }
}
