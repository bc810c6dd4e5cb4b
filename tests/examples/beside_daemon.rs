//! What the daemon is measured beside, each as a process of its own. `cargo xtask bench` starts
//! them:
//!
//! | words | what it does |
//! | --- | --- |
//! | `serve SOCKET MODULE LABEL PIN-FILE` | the least that a server of signatures does: 32 bytes in, one `C_Sign` with a handle that it has, 64 bytes out; a thread for each connection |
//! | `sign MODULE LABEL PIN-FILE` | for each number in the standard input so many signatures; it prints the median of their times and of `C_GetSessionInfo`, in µs |
//! | `flood SOCKET ENGINE` | asks a daemon for signatures as fast as it takes requests |
//! | `burn THREADS SHARE` | uses so many threads for this share of the time |
//!
//! Each ends with its standard input.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench that cannot run says so and ends"
)]

use std::io::{BufRead, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use claviger_client::frame::{self, Decoder, PROTOCOL};
use claviger_client::request::{Commit, Request, local, raw};
use claviger_client::wire::{Frame, Hello, frame::Content};
use claviger_pkcs11_once::Once;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

/// So many requests of a flood are in flight: more than a connection may have.
const FLOOD: usize = 256;

/// The time in which a burning thread works for its share.
const PERIOD: Duration = Duration::from_millis(2);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", socket, module, label, pin] => {
            let token = Token::open(module, label, pin);
            serve(socket, &token, Once::of(Path::new(module)).unwrap());
        }
        ["sign", module, label, pin] => sign(&Token::open(module, label, pin)),
        ["flood", socket, engine] => flood(socket, engine),
        ["burn", threads, share] => burn(threads.parse().unwrap(), share.parse().unwrap()),
        _ => panic!("beside_daemon serve | sign | flood | burn …"),
    }
}

/// A token that is open, and its key.
struct Token {
    module: Pkcs11,
    slot: Slot,
    key: ObjectHandle,
    /// The login lasts as long as a session.
    session: Session,
}

impl Token {
    fn open(path: &str, label: &str, pin: &str) -> Self {
        let module = Pkcs11::new(path).unwrap();
        let locks = CInitializeFlags::OS_LOCKING_OK;
        module.initialize(CInitializeArgs::new(locks)).unwrap();
        let mut slots = module.get_slots_with_token().unwrap().into_iter();
        let is_it = |slot: &_| module.get_token_info(*slot).unwrap().label() == label;
        let slot = slots.find(is_it).unwrap();
        let session = module.open_ro_session(slot).unwrap();
        let pin = AuthPin::new(std::fs::read_to_string(pin).unwrap().into());
        session.login(UserType::User, Some(&pin)).unwrap();
        let wanted = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Sign(true),
        ];
        let key = session.find_objects(&wanted).unwrap()[0];
        Token {
            module,
            slot,
            key,
            session,
        }
    }
}

fn serve(socket: &str, token: &Token, once: Once) {
    let listener = UnixListener::bind(socket).unwrap();
    println!("ready");
    end_with_input();
    let key = token.key;
    std::thread::scope(|scope| {
        for stream in listener.incoming() {
            let session = token.module.open_ro_session(token.slot).unwrap();
            scope.spawn(move || serve_one(stream.unwrap(), (once, key), &session));
        }
    });
}

fn serve_one(mut stream: UnixStream, (once, key): (Once, ObjectHandle), session: &Session) {
    let (mut digest, mut signature) = ([0; 32], [0; 64]);
    while stream.read_exact(&mut digest).is_ok() {
        session.sign_init(&Mechanism::Ecdsa, key).unwrap();
        let signed = once.sign(session, &digest, &mut signature);
        assert_eq!(signed.unwrap(), signature.len());
        if stream.write_all(&signature).is_err() {
            return;
        }
    }
}

fn sign(token: &Token) {
    let session = &token.session;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let count: usize = line.unwrap().parse().unwrap();
        let signing = || {
            let signed = session.sign(&Mechanism::Ecdsa, token.key, &[7; 32]);
            assert_eq!(signed.unwrap().len(), 64);
        };
        let signature = median(count, signing);
        let call = median(count, || {
            session.get_session_info().unwrap();
        });
        println!("{signature} {call}");
    }
}

fn median(count: usize, work: impl Fn()) -> f64 {
    let mut took: Vec<Duration> = (0..count)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[count / 2].as_secs_f64() * 1e6
}

fn flood(socket: &str, engine: &str) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let hello = Hello {
        version: PROTOCOL,
        ..Hello::default()
    };
    frame::write(&Frame::new(0, Content::Hello(hello)), &mut stream).unwrap();
    println!("ready");
    end_with_input();
    let engine = local(engine);
    let request = Commit {
        engine: &engine,
        data: &[7; 32],
        purpose: raw(),
    };
    let (mut decoder, mut last, mut in_flight) = (Decoder::new(), 0, 0);
    loop {
        let mut bytes = Vec::new();
        while in_flight < FLOOD {
            (last, in_flight) = (last + 1, in_flight + 1);
            let frame = Frame::new(last, request.content(false));
            frame::encode(&frame, &mut bytes).unwrap();
        }
        if stream.write_all(&bytes).is_err() {
            return;
        }
        // As many as were answered are asked for again.
        let Some(answer) = frame::read(&mut stream, &mut decoder).unwrap() else {
            return;
        };
        in_flight -= usize::from(answer.id != 0);
        while let Some(answer) = decoder.next_frame().unwrap() {
            in_flight -= usize::from(answer.id != 0);
        }
    }
}

fn burn(threads: usize, share: f64) {
    println!("ready");
    end_with_input();
    let work = PERIOD.mul_f64(share);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let begun = Instant::now();
                    while begun.elapsed() < work {
                        std::hint::spin_loop();
                    }
                    std::thread::sleep(PERIOD.saturating_sub(begun.elapsed()));
                }
            });
        }
    });
}

/// Ends the process with its standard input, that is, with the bench.
fn end_with_input() {
    std::io::stdout().flush().unwrap();
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}
