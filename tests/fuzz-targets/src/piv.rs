//! A YubiKey, or a card of others, with keys in it, some of whose replies are not what they
//! should be.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock, Mutex};

use crate::shared::{Input, SLOTS, driver, look, make_key, use_keys};
use claviger_virtual_yubikey::{Algorithm, Card, Firmware, Nature, PrivateKey, Slot};

/// As many keys as a card makes in one input: one that is asked for, and two fillers of its slot.
const KEYS: usize = 3;

/// Cards are made once: that takes longer than all the rest. What was changed on one is undone
/// by a copy of it as it was.
static CARDS: LazyLock<[(Card, Arc<Mutex<Card>>); 6]> = LazyLock::new(|| {
    [
        (Firmware::V5_7_1, Nature::YUBIKEY),
        (Firmware::V5_2_4, Nature::YUBIKEY),
        (Firmware::V4_3_5, Nature::YUBIKEY),
        (Firmware::CANOKEY, Nature::CANOKEY),
        (Firmware::PIVAPPLET, Nature::PIVAPPLET),
        (Firmware::PICO, Nature::PICO),
    ]
    .map(|(firmware, nature)| {
        let key = PrivateKey::generate(Algorithm::P256);
        let pool = [(); KEYS].map(|()| PrivateKey::generate(Algorithm::P256));
        let card = Card::builder()
            .pool(pool)
            .serial(12_345_678)
            .firmware(firmware)
            .nature(nature)
            .imported(Slot::KEY_MANAGEMENT, key)
            .generated(Slot::AUTHENTICATION, Algorithm::P256)
            .build();
        (card.clone(), Arc::new(Mutex::new(card)))
    })
});

/// One input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let which = usize::from(input.byte().unwrap_or(0));
    let (as_made, card) = &CARDS[which % CARDS.len()];
    // How many replies are left alone, and what is done to the one after them.
    let mut patches = VecDeque::new();
    while let Some(skip) = input.byte() {
        let length = usize::from(input.byte().unwrap_or(0) % 16);
        patches.push_back((skip, input.bytes(length).to_vec()));
    }
    // A driver that asks for ever is a finding, too.
    let mut left = 20_000;
    let answering = Arc::clone(card);
    let answer = move |command: &[u8]| {
        left -= 1;
        assert!(left > 0, "it does not end");
        let reply = answering.lock().unwrap().process(command);
        match patches.front_mut() {
            Some((0, patch)) => {
                let patched = Input(patch).patch(&reply);
                patches.pop_front();
                Some(patched)
            }
            Some((skip, _)) => {
                *skip -= 1;
                Some(reply)
            }
            None => Some(reply),
        }
    };
    card.lock().unwrap().reset();
    let driver = driver(answer);
    match which / CARDS.len() % 3 {
        0 => look(&driver),
        1 => use_keys(&driver),
        _ => {
            make_key(&driver, SLOTS[which / CARDS.len() / 3 % SLOTS.len()]);
            *card.lock().unwrap() = as_made.clone();
        }
    }
}
