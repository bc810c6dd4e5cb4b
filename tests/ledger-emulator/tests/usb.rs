//! Programs that use plain hidapi, and Ledger's transport over it, find the devices of a
//! private USB. The program is this one, started again.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests and what they share"
)]

use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use claviger_ledger_emulator::{App, Approval, Emulator, Ethereum, Fault, Recording, Usb};
use ledger_transport::APDUCommand;
use ledger_transport_hid::TransportNativeHID;
use ledger_transport_hid::hidapi::HidApi;
use libtest_mimic::{Arguments, Trial};

/// Names what the program does when it is started again.
const CLIENT: &str = "CLAVIGER_TEST_HID_CLIENT";

fn main() -> ExitCode {
    if let Ok(what) = std::env::var(CLIENT) {
        client(&what);
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let test = |name: &str, run: fn()| {
        Trial::test(name, move || {
            run();
            Ok(())
        })
    };
    let skipped = Emulator::skipped();
    if let Some(why) = skipped {
        eprintln!("SKIPPED a_real_app_is_reached_through_hidraw: {why}");
    }
    let trials = vec![
        test("hidapi_lists_what_is_plugged_in", lists),
        test("what_needs_several_reports_arrives_whole", several_reports),
        test("the_recording_can_be_plugged_in", recording),
        test("faults_are_noticed", faults),
        test("silence_and_lying_lengths_are_waited_for", waits),
        test("a_device_that_is_unplugged_while_it_asks_is_gone", unplug),
        test("a_late_answer_comes_to_whoever_listens", late_answer),
        test(
            "what_is_no_report_of_ledgers_is_complained_about",
            complaints,
        ),
        test("a_real_app_is_reached_through_hidraw", real_app).with_ignored_flag(skipped.is_some()),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

// --- The program that is tested --------------------------------------------------------

fn client(what: &str) {
    let api = HidApi::new().unwrap();
    let (verb, argument) = what.split_once(' ').unwrap_or((what, ""));
    match verb {
        "list" => {
            for device in TransportNativeHID::list_ledgers(&api) {
                println!(
                    "{} {:04x}:{:04x} {:04x} interface {} {} {}",
                    device.path().to_str().unwrap(),
                    device.vendor_id(),
                    device.product_id(),
                    device.usage_page(),
                    device.interface_number(),
                    device.manufacturer_string().unwrap(),
                    device.product_string().unwrap(),
                );
            }
        }
        "exchange" => {
            let wanted = TransportNativeHID::list_ledgers(&api).last().unwrap();
            let device = TransportNativeHID::open_device(&api, wanted).unwrap();
            for apdu in argument.split(' ').map(from_hex) {
                let command = APDUCommand {
                    cla: apdu[0],
                    ins: apdu[1],
                    p1: apdu[2],
                    p2: apdu[3],
                    data: &apdu[5..],
                };
                match device.exchange(&command) {
                    Ok(answer) => {
                        println!("{}{:04x}", to_hex(answer.apdu_data()), answer.retcode());
                    }
                    Err(error) => println!("{error}"),
                }
            }
        }
        // One report, and those that come within a while.
        "report" => {
            let device = api.open(0x2c97, 0x5011).unwrap();
            device.write(&from_hex(argument)).unwrap();
            let mut buffer = [0; 64];
            loop {
                match device.read_timeout(&mut buffer, 200) {
                    Ok(0) => break,
                    Ok(count) => println!("{}", to_hex(&buffer[..count])),
                    Err(_) => {
                        println!("gone");
                        break;
                    }
                }
            }
        }
        _ => panic!("{what}"),
    }
}

fn spawn(usb: &Usb, what: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    usb.show_to(&mut command)
        .env(CLIENT, what)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn run(usb: &Usb, what: &str) -> Vec<String> {
    let output = spawn(usb, what).wait_with_output().unwrap();
    assert!(output.status.success(), "{what}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// --- Tests -----------------------------------------------------------------------------

const NAME_AND_VERSION: &str = "b001000000";
/// The same, as a report after its number.
const REPORT: &str = "0001010500000005b001000000";

fn report() -> String {
    format!("report {REPORT:0<130}")
}

/// m/44'/60'/0'/0/0
const PATH: &str = "058000002c8000003c800000000000000000000000";

fn lists() {
    let usb = Usb::new();
    assert_eq!(run(&usb, "list"), [""; 0]);
    let first = usb.plug(Ethereum::new().answerer());
    let second = usb.plug(Ethereum::new().answerer());
    let line =
        |number| format!("/dev/hidraw{number} 2c97:5011 ffa0 interface 0 Ledger Nano S Plus");
    let mut seen = run(&usb, "list");
    seen.sort();
    assert_eq!(seen, [line(0), line(1)]);
    first.unplug();
    assert_eq!(run(&usb, "list"), [line(1)]);
    drop(second);
    assert_eq!(run(&usb, "list"), [""; 0]);
}

fn several_reports() {
    let app = Ethereum::new();
    let usb = Usb::new();
    let device = usb.plug(app.answerer());
    let message = "61".repeat(255 - 25);
    let sign = format!("e0080000ff{PATH}000000e6{message}");
    let address = format!("e002000015{PATH}");
    let seen = run(&usb, &format!("exchange {sign} {address}"));
    let expected = [sign, address].map(|apdu| to_hex(&Ethereum::new().answer(&from_hex(&apdu))));
    assert_eq!(seen, expected);
    assert_eq!(app.exchanges().len(), 2);
    assert_eq!(device.complaints(), [""; 0]);
}

fn recording() {
    let recording = Recording::ethereum();
    let usb = Usb::new();
    let _device = usb.plug(recording.answerer());
    // One needs a length that the transport would not send.
    let exchanges = recording.exchanges();
    let apdus: Vec<_> = (exchanges.iter())
        .map(|exchange| to_hex(&exchange.apdu))
        .collect();
    let replies: Vec<_> = (exchanges.iter())
        .map(|exchange| to_hex(&exchange.reply))
        .collect();
    assert_eq!(run(&usb, &format!("exchange {}", apdus.join(" "))), replies);
}

fn faults() {
    let usb = Usb::new();
    let device = usb.plug(Ethereum::new().answerer());
    for (fault, error) in [
        (Fault::OutOfOrder, "Invalid sequence idx"),
        (Fault::OtherChannel, "Invalid channel"),
        (Fault::Truncated(4), "Incomplete header"),
        (Fault::LyingLength(1), "response was too short"),
    ] {
        device.fail_next(fault);
        let seen = run(&usb, &format!("exchange {NAME_AND_VERSION}"));
        assert!(seen[0].contains(error), "{fault:?}: {seen:?}");
        device.forget_unread();
    }
    device.fail_next(Fault::OutOfOrder);
    let seen = run(&usb, &format!("exchange e002000015{PATH}"));
    assert!(seen[0].contains("Invalid sequence idx"), "{seen:?}");
    device.forget_unread();
    // And then it works.
    let seen = run(&usb, &format!("exchange {NAME_AND_VERSION}"));
    assert!(seen[0].ends_with("9000"), "{seen:?}");
    device.fail_next(Fault::Unplug);
    assert_eq!(run(&usb, &report()), ["gone"]);
    assert_eq!(run(&usb, "list"), [""; 0]);
}

fn waits() {
    let usb = Usb::new();
    let device = usb.plug(Ethereum::new().answerer());
    device.fail_next(Fault::Silence);
    assert_eq!(run(&usb, &report()), [""; 0]);
    device.fail_next(Fault::LyingLength(400));
    let seen = run(&usb, &report());
    assert_eq!(seen.len(), 1);
    assert!(seen[0].starts_with("01010500000190"), "{seen:?}");
}

fn unplug() {
    let app = Ethereum::new();
    app.set_approval(Approval::Hang);
    let usb = Usb::new();
    let device = usb.plug(app.answerer());
    let child = spawn(&usb, &format!("exchange e00800001a{PATH}0000000161"));
    while app.prompts() == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let begun = Instant::now();
    device.unplug();
    let output = child.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Io error"), "{text}");
}

/// The answer to a question that nobody waits for any more comes to whoever listens.
fn late_answer() {
    let app = Ethereum::new();
    app.set_approval(Approval::Hang);
    let usb = Usb::new();
    let _device = usb.plug(app.answerer());
    let sign = format!("report 0001010500000020e00800001b{PATH}000000026869");
    assert_eq!(run(&usb, &format!("{sign:0<137}")), [""; 0]);
    app.set_approval(Approval::Approve);
    let seen = run(&usb, &report());
    // A signature has two reports, name and version one.
    assert!(seen[0].starts_with("010105000000431b"), "{seen:?}");
    assert!(seen[2].starts_with("01010500000019"), "{seen:?}");
}

fn complaints() {
    let usb = Usb::new();
    let app = Ethereum::new();
    let device = usb.plug(app.answerer());
    let wrong = report().replacen("0001010500", "0001010600", 1);
    assert_eq!(run(&usb, &wrong), [""; 0]);
    let wrong = report().replacen("0001010500", "0101010500", 1);
    assert_eq!(run(&usb, &wrong), [""; 0]);
    let complaints = device.complaints();
    assert!(complaints[0].contains("tag 06"), "{complaints:?}");
    assert!(complaints[1].contains("report number 01"), "{complaints:?}");
    assert_eq!(app.exchanges().len(), 0);
}

fn real_app() {
    let emulator = Emulator::start(App::Boil);
    let usb = Usb::new();
    let _device = usb.plug(move |apdu: &[u8]| emulator.exchange(apdu));
    let seen = run(&usb, &format!("exchange {NAME_AND_VERSION}"));
    let expected = [&b"\x01\x0bBoilerplate\x05"[..], b"2.3.1\x01\0\x90\0"].concat();
    assert_eq!(seen, [to_hex(&expected)]);
}
