//! A card that says anything at all.

use crate::shared::{Input, SLOTS, driver, look, make_key, use_keys};

/// One input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let what = input.byte().unwrap_or(0) % 4;
    let mut replies = Vec::new();
    while let Some(length) = input.byte() {
        // The longest are not longer than this, and end well, as most do.
        let mut reply = input.bytes(usize::from(length)).to_vec();
        if length % 2 == 0 {
            reply.extend([0x90, 0x00]);
        }
        replies.push(reply);
    }
    replies.reverse();
    let answer = move |command: &[u8]| match (command.get(1), replies.len()) {
        // Without these a card is left alone at once.
        (Some(0xa4), _) => Some(vec![0x61, 0x00, 0x90, 0x00]),
        (Some(0xfd), _) => Some(vec![5, 7, 1, 0x90, 0x00]),
        (Some(0xf8), _) => Some(vec![0, 0, 0, 1, 0x90, 0x00]),
        _ => replies.pop(),
    };
    let driver = driver(answer);
    match what {
        0 => look(&driver),
        1 => use_keys(&driver),
        slot => make_key(&driver, SLOTS[usize::from(slot) % SLOTS.len()]),
    }
}
