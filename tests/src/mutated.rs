//! Inputs that were good once: what no honest peer sends, and what finds its way in.

/// So many variants of `good`, the same in every run: bytes changed, taken out, put in, doubled
/// and moved, and the end cut off.
pub fn mutated(good: &[u8], count: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut random = Random(0x5eed ^ good.len() as u64);
    (0..count).map(move |_| {
        let mut bytes = good.to_vec();
        for _ in 0..=random.below(4) {
            change(&mut bytes, &mut random);
        }
        bytes
    })
}

fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    const TELLING: [&[u8]; 8] = [
        b"\n",
        b"->",
        b"---",
        b"=",
        b"\0",
        b"\xff\xff\xff\xff",
        b"-----BEGIN ",
        b" ",
    ];
    let at = random.below(bytes.len() + 1);
    let end = (at + 1 + random.below(40)).min(bytes.len());
    match random.below(8) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end)),
        2 => {
            let part = bytes[at..end].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, part);
        }
        3 => {
            let text = TELLING[random.below(TELLING.len())];
            bytes.splice(at..at, text.iter().copied());
        }
        4 => bytes[at..end].fill(random.byte()),
        5 => bytes[at..end].reverse(),
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.byte();
            }
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end.max(1) as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}
