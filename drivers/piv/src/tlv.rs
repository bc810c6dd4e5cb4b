//! BER-TLV as PIV cards use it (ISO/IEC 7816-4 §5.2.2): tags of at most three bytes,
//! definite lengths.

use zeroize::Zeroizing;

/// One tag and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tlv<'a> {
    pub(crate) tag: u32,
    pub(crate) value: &'a [u8],
}

/// Takes one object off the front.
pub(crate) fn take(bytes: &[u8]) -> Option<(Tlv<'_>, &[u8])> {
    let (&first, mut rest) = bytes.split_first()?;
    let mut tag = u32::from(first);
    if first & 0x1f == 0x1f {
        loop {
            let (&next, after) = rest.split_first()?;
            rest = after;
            if tag >> 16 != 0 {
                return None;
            }
            tag = tag << 8 | u32::from(next);
            if next & 0x80 == 0 {
                break;
            }
        }
    }
    let (&length, mut rest) = rest.split_first()?;
    let length = match length {
        0..=0x7f => usize::from(length),
        0x81..=0x83 => {
            let (digits, after) = rest.split_at_checked(usize::from(length & 0x7f))?;
            rest = after;
            digits.iter().fold(0, |n, d| n << 8 | usize::from(*d))
        }
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(length)?;
    Some((Tlv { tag, value }, rest))
}

/// All objects in `bytes`; `None` where they do not end with it.
pub(crate) fn all(mut bytes: &[u8]) -> Option<Vec<Tlv<'_>>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (tlv, rest) = take(bytes)?;
        found.push(tlv);
        bytes = rest;
    }
    Some(found)
}

/// The value of the first object with this tag; `None` where there is none, or where
/// `bytes` is not well-formed up to there.
pub(crate) fn find(mut bytes: &[u8], tag: u32) -> Option<&[u8]> {
    loop {
        let (tlv, rest) = take(bytes)?;
        if tlv.tag == tag {
            return Some(tlv.value);
        }
        bytes = rest;
    }
}

/// Appends one object. Values are at most 16 MiB long, which nothing here reaches.
pub(crate) fn push(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    let bytes = tag.to_be_bytes();
    let zeros = bytes.iter().take(3).take_while(|b| **b == 0).count();
    out.extend_from_slice(&bytes[zeros..]);
    let [_, .., a, b, c] = value.len().to_be_bytes();
    match value.len() {
        0..=0x7f => out.push(c),
        0x80..=0xff => out.extend_from_slice(&[0x81, c]),
        0x100..=0xffff => out.extend_from_slice(&[0x82, b, c]),
        _ => out.extend_from_slice(&[0x83, a, b, c]),
    }
    out.extend_from_slice(value);
}

/// One object.
pub(crate) fn encode(tag: u32, value: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(value.len() + 8));
    push(&mut out, tag, value);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_have_the_shortest_form_and_all_forms_are_read() {
        assert_eq!(encode(0x5c, &[1])[..], [0x5c, 1, 1]);
        assert_eq!(encode(0x7f49, &[0; 200])[..4], [0x7f, 0x49, 0x81, 200]);
        assert_eq!(encode(0x53, &[0; 300])[..4], [0x53, 0x82, 1, 44]);
        let long = [0x53, 0x83, 0, 0, 1, 9];
        assert_eq!(find(&long, 0x53), Some(&[9][..]));
    }

    #[test]
    fn what_is_cut_off_is_nothing() {
        for bytes in [
            &[][..],
            &[0x7f],
            &[0x53],
            &[0x53, 2, 0],
            &[0x53, 0x82, 1],
            &[0x53, 0x80],
        ] {
            assert_eq!(take(bytes), None, "{bytes:02x?}");
        }
        assert_eq!(all(&[0x53, 0, 0x53]), None);
        assert_eq!(take(&[0x7f, 0xff, 0xff, 0xff, 0x01, 0x00]), None);
    }

    proptest! {
        #[test]
        fn whatever_is_written_reads_back(value in proptest::collection::vec(any::<u8>(), 0..70_000), tag in prop_oneof![Just(0x53), Just(0x7f49), Just(0x5fff01)]) {
            let bytes = encode(tag, &value);
            prop_assert_eq!(all(&bytes), Some(vec![Tlv { tag, value: &value }]));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = all(&bytes);
            let _ = find(&bytes, 0x53);
        }
    }
}
