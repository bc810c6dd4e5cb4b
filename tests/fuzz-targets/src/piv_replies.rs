//! A card that says anything at all.

use crate::shared::{Input, driver, look, make_keys, use_keys};

/// One input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let ask = [look, use_keys, make_keys][usize::from(input.byte().unwrap_or(0) % 3)];
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
    ask(&driver(answer));
}
