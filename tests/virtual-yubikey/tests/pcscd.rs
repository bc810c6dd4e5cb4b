//! Cards in readers: what PC/SC's users see of them, and what goes wrong.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests and what they share"
)]

use std::ffi::CString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use claviger_virtual_yubikey::{
    Algorithm, Builder, Card, Fault, Inserted, Origin, Pcscd, PinPolicy, PrivateKey, Rule, Shape,
    Slot, Touch, TouchPolicy, ins,
};

const SELECT: &[u8] = &[0x00, 0xa4, 0x04, 0x00, 0x05, 0xa0, 0x00, 0x00, 0x03, 0x08];
const SERIAL: &[u8] = &[0x00, ins::GET_SERIAL, 0x00, 0x00];
const VERIFY: &[u8] = b"\x00\x20\x00\x80\x08123456\xff\xff";
const TRIES: &[u8] = &[0x00, ins::VERIFY, 0x00, 0x80];
/// GENERAL AUTHENTICATE: a digest of zeros, P-256, slot 9A.
const SIGN: &[u8] = &[
    0x00, 0x87, 0x11, 0x9a, 0x26, 0x7c, 0x24, 0x82, 0x00, 0x81, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn connect(yubikey: &Inserted) -> pcsc::Card {
    let context = pcsc::Context::establish(pcsc::Scope::User).unwrap();
    let reader = CString::new(yubikey.reader()).unwrap();
    (context.connect(&reader, pcsc::ShareMode::Shared, pcsc::Protocols::ANY)).unwrap()
}

fn send(card: &pcsc::Card, apdu: &[u8]) -> Result<Vec<u8>, pcsc::Error> {
    let mut buffer = [0; pcsc::MAX_BUFFER_SIZE_EXTENDED];
    card.transmit(apdu, &mut buffer).map(<[u8]>::to_vec)
}

/// A card with a key in 9A that wants nothing but a touch, if that.
fn with_key(touch: TouchPolicy) -> Builder {
    let key = PrivateKey::generate(Algorithm::P256);
    Card::builder().key(
        Slot::AUTHENTICATION,
        key,
        Origin::Generated,
        PinPolicy::Never,
        touch,
    )
}

#[test]
fn clients_in_this_process_and_in_others_see_the_card() {
    let yubikey = Pcscd::insert(Card::builder().serial(0x0102_0304).build());
    let card = connect(&yubikey);
    assert_eq!(send(&card, SELECT).unwrap()[..2], [0x61, 0x11]);
    assert_eq!(send(&card, SERIAL).unwrap(), [1, 2, 3, 4, 0x90, 0x00]);
    let atr = yubikey.card().atr().to_vec();
    assert_eq!(card.status2_owned().unwrap().atr(), atr);

    let (variable, socket) = Pcscd::environment();
    let listed = Command::new("opensc-tool")
        .arg("--list-readers")
        .env(variable, socket)
        .output()
        .expect("opensc is not installed: run `cargo xtask setup`");
    let listed = String::from_utf8(listed.stdout).unwrap();
    let line = listed.lines().find(|line| line.contains(yubikey.reader()));
    assert!(line.is_some_and(|line| line.contains("Yes")), "{listed}");
    assert_eq!(yubikey.faults().count(ins::GET_SERIAL), 1);
}

#[test]
fn long_commands_and_replies_get_through_whole() {
    let yubikey = Pcscd::insert(Card::builder().object(0x5f_c105, &[7; 3000]).build());
    let card = connect(&yubikey);
    send(&card, SELECT).unwrap();
    let get = [
        0, 0xcb, 0x3f, 0xff, 0, 0, 5, 0x5c, 3, 0x5f, 0xc1, 0x05, 0, 0,
    ];
    assert_eq!(send(&card, &get).unwrap().len(), 3000 + 4 + 2);
    let too_much = [&[0, 0x20, 0, 0x80, 0, 0x20, 0][..], &[0; 0x2000]].concat();
    assert_eq!(send(&card, &too_much).unwrap(), [0x6a, 0x80]);
}

#[test]
fn five_cards_find_room_in_four_slots_if_one_leaves() {
    let four: Vec<_> = (1..=4)
        .map(|serial| thread::spawn(move || Pcscd::insert(Card::builder().serial(serial).build())))
        .collect();
    let mut four: Vec<_> = four
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    for (yubikey, serial) in four.iter().zip(1..) {
        let card = connect(yubikey);
        send(&card, SELECT).unwrap();
        assert_eq!(send(&card, SERIAL).unwrap()[..4], u32::to_be_bytes(serial));
    }
    let fifth = thread::spawn(|| Pcscd::insert(Card::builder().serial(5).build()));
    let left = four.pop().unwrap();
    let slot = left.reader().to_owned();
    drop(left);
    let fifth = fifth.join().unwrap();
    // Under `cargo test` others come and go, too.
    if std::env::var_os("NEXTEST").is_some() {
        assert_eq!(fifth.reader(), slot);
    }
    let card = connect(&fifth);
    send(&card, SELECT).unwrap();
    assert_eq!(send(&card, SERIAL).unwrap()[..4], 5_u32.to_be_bytes());
}

#[test]
fn a_card_taken_out_while_it_waits_for_a_touch_answers_nothing_and_can_come_back() {
    let card = with_key(TouchPolicy::Always).touch(Touch::After(Duration::from_secs(60)));
    let yubikey = Pcscd::insert(card.build());
    let card = connect(&yubikey);
    send(&card, SELECT).unwrap();
    let start = Instant::now();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| send(&card, SIGN));
        while yubikey.faults().count(ins::AUTHENTICATE) == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        yubikey.remove();
        waiting.join().unwrap().unwrap_err();
    });
    assert!(start.elapsed() < Duration::from_secs(20));
    send(&card, SELECT).unwrap_err();

    yubikey.insert();
    let card = connect(&yubikey);
    assert_eq!(send(&card, TRIES).unwrap(), [0x6d, 0x00]);
    send(&card, SELECT).unwrap();
    yubikey.card().set_touch(Touch::After(Duration::ZERO));
    assert!(send(&card, SIGN).unwrap().ends_with(&[0x90, 0x00]));
}

#[test]
fn a_touch_takes_its_time_and_a_missed_one_ends_in_an_error() {
    let yubikey = Pcscd::insert(with_key(TouchPolicy::Always).build());
    let card = connect(&yubikey);
    send(&card, SELECT).unwrap();
    let delay = Duration::from_millis(300);
    yubikey.card().set_touch(Touch::After(delay));
    let start = Instant::now();
    assert!(send(&card, SIGN).unwrap().ends_with(&[0x90, 0x00]));
    assert!(start.elapsed() >= delay);
    yubikey.card().set_touch(Touch::Never(delay));
    let start = Instant::now();
    assert_eq!(send(&card, SIGN).unwrap(), [0x69, 0x82]);
    assert!(start.elapsed() >= delay);
}

#[test]
fn a_card_that_a_fault_takes_out_has_or_has_not_done_what_it_was_told() {
    let yubikey = Pcscd::insert(Card::builder().build());
    for (fault, tries) in [(Fault::RemoveBefore, 3), (Fault::RemoveAfter, 2)] {
        let card = connect(&yubikey);
        send(&card, SELECT).unwrap();
        yubikey.faults().add(Rule::new(fault).on(ins::VERIFY));
        let wrong = [&VERIFY[..5], &[0x30; 8]].concat();
        send(&card, &wrong).unwrap_err();
        assert!(!yubikey.is_inserted());
        assert_eq!(yubikey.card().pin_tries(), tries);
        yubikey.insert();
    }
}

#[test]
fn a_reset_by_another_is_told_by_pcsc_and_ends_the_session() {
    let yubikey = Pcscd::insert(Card::builder().build());
    let mut card = connect(&yubikey);
    send(&card, SELECT).unwrap();
    assert_eq!(send(&card, VERIFY).unwrap(), [0x90, 0x00]);
    yubikey.reset();
    assert_eq!(send(&card, TRIES), Err(pcsc::Error::ResetCard));
    card.reconnect(
        pcsc::ShareMode::Shared,
        pcsc::Protocols::ANY,
        pcsc::Disposition::LeaveCard,
    )
    .unwrap();
    send(&card, SELECT).unwrap();
    assert_eq!(send(&card, TRIES).unwrap(), [0x63, 0xc3]);
}

#[test]
fn malformed_replies_reach_the_client_as_they_are() {
    let yubikey = Pcscd::insert(Card::builder().serial(0x0102_0304).build());
    let card = connect(&yubikey);
    send(&card, SELECT).unwrap();
    for (fault, expected) in [
        (Fault::Truncate(1), &[1][..]),
        (Fault::Truncate(3), &[1, 2, 3]),
        (Fault::Extend(vec![5; 2]), &[1, 2, 3, 4, 5, 5, 0x90, 0x00]),
        (Fault::Reply(vec![0x7c]), &[0x7c]),
        (Fault::Shape(Shape::Pieces(1)), &[1, 0x61, 3]),
        (Fault::Shape(Shape::WrongLe), &[0x6c, 4]),
    ] {
        yubikey.faults().next(fault);
        assert_eq!(send(&card, SERIAL).unwrap(), expected);
        assert_eq!(send(&card, SERIAL).unwrap(), [1, 2, 3, 4, 0x90, 0x00]);
    }
    yubikey.faults().next(Fault::Truncate(0));
    send(&card, SERIAL).unwrap_err();
}

#[test]
fn nothing_is_left_of_pcscd_when_its_process_is_killed() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_claviger-virtual-yubikey"))
        .args(["sh", "-c", "echo $PCSCLITE_CSOCK_NAME; read until_the_end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = process.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let socket = PathBuf::from(line.trim());
    let folder = socket.parent().unwrap();
    assert!(socket.exists());
    assert!(!running_in(folder).is_empty());

    process.kill().unwrap();
    process.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    // Other processes of ours may sweep the folder away first.
    let empty = || fs::read_dir(folder).map_or(true, |mut files| files.next().is_none());
    while !running_in(folder).is_empty() || !empty() {
        assert!(Instant::now() < end, "left: {:?}", running_in(folder));
        thread::sleep(Duration::from_millis(10));
    }
    let _ = fs::remove_dir(folder);
}

/// The processes whose working folder it is.
fn running_in(folder: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .map(|process| process.path())
        .filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder))
        .collect()
}

#[test]
fn the_program_passes_on_what_its_command_says() {
    let program = env!("CARGO_BIN_EXE_claviger-virtual-yubikey");
    let run = |arguments: &[&str]| {
        let status = Command::new(program)
            .args(arguments)
            .stderr(Stdio::null())
            .status();
        status.unwrap().code()
    };
    assert_eq!(run(&["--serial", "7", "sh", "-c", "exit 7"]), Some(7));
    assert_eq!(run(&["--firmware", "1.0.0", "true"]), Some(2));
    assert_eq!(run(&[]), Some(2));
}
