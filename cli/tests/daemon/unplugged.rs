//! A token that is pulled out while many requests wait for it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use claviger_client::blocking::{Call, Client, Listener};
use claviger_client::request::{committer, raw};
use claviger_client::{Error, wire};
use claviger_tests::SoftHsm;
use claviger_token::{PublicKey, Signature, Zeroizing};
use claviger_virtual_yubikey::{Card, Fault, Inserted, ManagementAlgorithm, Pcscd, Rule};

use super::common::{Daemon, Stage};
use super::{options, wait_until};

const PIN: &str = "246802";
const MANAGEMENT_KEY: [u8; 24] = [0xa5; 24];

/// How many requests wait, over so many connections.
const REQUESTS: usize = 100;
const CONNECTIONS: usize = 2;
/// Every second of them is over before the token is back; the others wait for it.
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(120);
/// So long a command takes the card, so that none of them is served soon.
const SLOW: Duration = Duration::from_millis(300);
/// So much later than its deadline a request may end on a machine with more to do.
const LATE: Duration = Duration::from_secs(20);

/// Who has the PINs of both tokens.
struct Pins;

impl Listener for Pins {
    fn pin(&self, request: &wire::PinRequest) -> Option<Zeroizing<Vec<u8>>> {
        let pin = match &*request.token.as_ref()?.kind {
            "piv" => PIN,
            _ => SoftHsm::PIN,
        };
        Some(Zeroizing::new(pin.as_bytes().to_vec()))
    }
}

/// A daemon whose caller has `alice` on SoftHSM2 and `card` on a YubiKey.
struct Bench {
    yubikey: Inserted,
    daemon: Daemon,
    stage: Stage,
}

impl Bench {
    fn new() -> Self {
        let card = Card::builder()
            .pin(PIN)
            .management_key(ManagementAlgorithm::Aes192, &MANAGEMENT_KEY);
        let yubikey = Pcscd::insert(card.build());
        let stage = Stage::with_alice();
        stage.write("card-pin", PIN);
        let hex = claviger_token::key::to_hex(&MANAGEMENT_KEY);
        stage.write("management-key", hex);
        let mut serve = stage.claviger(["--json", "serve"]);
        let (variable, socket) = Pcscd::environment();
        serve.env(variable, socket);
        let daemon = Daemon::run(&stage, serve);
        let backend = format!("piv:serial={}", yubikey.card().serial());
        let secrets = ["--pin-source", "file:card-pin"];
        let administrator = ["--management-key", "file:management-key"];
        let generate = ["generate", "card", "--backend", &backend];
        let only = ["--capabilities", "commit"];
        let words = [&secrets[..], &administrator, &generate, &only].concat();
        stage.run(words).succeeds();
        Bench {
            yubikey,
            daemon,
            stage,
        }
    }

    fn key(&self, name: &str) -> PublicKey {
        let key = self.stage.json(&["show", name])["keys"][0]["public_key"].clone();
        PublicKey::from_text(key.as_str().unwrap()).unwrap()
    }

    fn in_flight(&self) -> usize {
        let status = self.stage.json(&["status"]);
        let number = status["requests_in_flight"].as_u64().unwrap();
        usize::try_from(number).unwrap()
    }
}

/// Signs, and tells whether the answer is true.
fn sign(
    client: &Client,
    (name, key): (&str, &PublicKey),
    message: &str,
    deadline: Duration,
) -> Result<(), Error> {
    let call = Call {
        deadline: Some(deadline),
        listener: &Pins,
        ..Call::default()
    };
    let answer = client.commit(&committer(name), message.as_bytes(), &raw(), &call)?;
    let signature = Signature::new(answer.scheme.parse().unwrap(), answer.bytes).unwrap();
    key.verify(message.as_bytes(), &signature).unwrap();
    Ok(())
}

#[test]
fn while_a_token_is_away_each_request_ends_by_its_deadline_or_is_served_and_others_go_on() {
    let bench = Bench::new();
    let (card, alice) = (bench.key("card"), bench.key("alice"));
    let slow = Rule::new(Fault::Delay(SLOW)).always();
    bench.yubikey.faults().add(slow);
    let ended = AtomicUsize::new(0);
    let clients: Vec<Client> = (0..CONNECTIONS)
        .map(|_| Client::connect(options(&bench.stage)).unwrap())
        .collect();
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..REQUESTS)
            .map(|number| {
                let (client, card, ended) = (&clients[number % CONNECTIONS], &card, &ended);
                let limit = [SHORT, LONG][number / CONNECTIONS % 2];
                scope.spawn(move || {
                    let begun = Instant::now();
                    let message = format!("request {number}");
                    let signed = sign(client, ("card", card), &message, limit);
                    ended.fetch_add(1, Ordering::SeqCst);
                    (limit, begun.elapsed(), signed)
                })
            })
            .collect();
        let ended = || ended.load(Ordering::SeqCst);
        wait_until("a hundred requests", || {
            bench.in_flight() + ended() >= REQUESTS
        });
        bench.yubikey.remove();

        let other = Client::connect(options(&bench.stage)).unwrap();
        for number in 0..20 {
            let message = format!("another token, {number}");
            sign(&other, ("alice", &alice), &message, LATE).unwrap();
        }
        assert!(ended() < REQUESTS, "none waits for the token");

        // The daemon gives up itself what is over.
        wait_until("the end of those that are late", || {
            bench.in_flight() <= REQUESTS / 2 && ended() >= REQUESTS / 2
        });
        bench.yubikey.faults().clear();
        bench.yubikey.insert();
        for one in waiting {
            let (limit, took, signed) = one.join().unwrap();
            assert!(took < limit + LATE, "{took:?} of {limit:?}");
            match signed {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(limit, SHORT, "{error}");
                    let codes = ["no-token", "token-unavailable", "deadline-exceeded"];
                    assert!(codes.contains(&error.code()), "{}: {error}", error.code());
                }
            }
        }
    });
    assert_eq!(bench.in_flight(), 0);
    bench.daemon.stop();
}
