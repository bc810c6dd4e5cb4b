//! The udev rules give access to the tokens that `claviger doctor` knows, and to nothing else.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use claviger_ledger::LedgerDriver;
use claviger_piv::PivDriver;
use claviger_pkcs11::Pkcs11Driver;
use claviger_token::usb::{UsbFamily, UsbNode as Node};

#[path = "../../cli/src/commands/doctor/udev.rs"]
mod udev;

use udev::INSTALL;

/// The USB devices of every driver.
fn families() -> Vec<UsbFamily> {
    let abouts = [Pkcs11Driver::ABOUT, PivDriver::ABOUT, LedgerDriver::ABOUT];
    abouts.iter().flat_map(|about| about.usb).copied().collect()
}

const NAME: &str = "70-claviger.rules";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../udev")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

/// A rule, as far as ours go: what must be so, and what is then done.
#[derive(Debug, Default, PartialEq)]
struct Rule {
    /// Of `SUBSYSTEM`.
    subsystem: Option<Node>,
    /// Of `ATTRS`: anything above the device may have it. Of `ATTR`: the device itself must.
    is_above: Option<bool>,
    vendor: Option<String>,
    /// None stands for all.
    products: Vec<String>,
    uaccess: bool,
    group: Option<String>,
    mode: Option<String>,
}

/// Reads rules and refuses what it does not know: udev itself would only log it.
fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let lines = text.lines().enumerate();
    let rules = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    rules
        .map(|(n, line)| rule(line).map_err(|why| format!("line {}: {why}: {line}", n + 1)))
        .collect()
}

fn rule(line: &str) -> Result<Rule, String> {
    let mut rule = Rule::default();
    for part in line.split(", ") {
        let (left, value) = part
            .strip_suffix('"')
            .and_then(|part| part.split_once('"'))
            .ok_or_else(|| format!("{part} has no quoted value"))?;
        let bad = || format!("{part} is not known");
        if value.is_empty() || !value.chars().all(|c| c.is_ascii_alphanumeric() || c == '|') {
            return Err(bad());
        }
        let is_match = left.ends_with("==");
        if is_match && (rule.uaccess || rule.group.is_some() || rule.mode.is_some()) {
            return Err(format!("{part} comes after an assignment"));
        }
        let mut attribute = |is_above| match rule.is_above.replace(is_above) {
            Some(other) if other != is_above => Err("ATTR and ATTRS together".to_owned()),
            _ => Ok(()),
        };
        let twice = match left {
            "SUBSYSTEM==" => {
                let node = match value {
                    "hidraw" => Node::Hidraw,
                    "usb" => Node::Usb,
                    _ => return Err(bad()),
                };
                rule.subsystem.replace(node).is_some()
            }
            "ATTR{idVendor}==" | "ATTRS{idVendor}==" => {
                attribute(left.starts_with("ATTRS"))?;
                rule.vendor.replace(hex(value)?).is_some()
            }
            "ATTR{idProduct}==" | "ATTRS{idProduct}==" => {
                attribute(left.starts_with("ATTRS"))?;
                let ids = value.split('|').map(hex).collect::<Result<_, _>>()?;
                !std::mem::replace(&mut rule.products, ids).is_empty()
            }
            "TAG+=" if value == "uaccess" => std::mem::replace(&mut rule.uaccess, true),
            "GROUP=" => rule.group.replace(value.into()).is_some(),
            "MODE=" => rule.mode.replace(value.into()).is_some(),
            _ => return Err(bad()),
        };
        if twice {
            return Err(format!("{part} is there twice"));
        }
    }
    if rule.subsystem.is_none() || rule.vendor.is_none() {
        return Err("it is for any subsystem or vendor".into());
    }
    Ok(rule)
}

/// An id as sysfs writes it: capitals would never match.
fn hex(value: &str) -> Result<String, String> {
    let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    match value.len() == 4 && value.chars().all(is_digit) {
        true => Ok(value.into()),
        false => Err(format!("{value} is not an id")),
    }
}

impl Rule {
    /// Whether udev applies it to a node of a USB device with these ids. The ids are the
    /// device's own where the node is that of USB, and those of one above it for HID.
    fn fits(&self, node: Node, vendor: &str, product: &str) -> bool {
        self.subsystem == Some(node)
            && self.is_above == Some(node == Node::Hidraw)
            && self.vendor.as_deref() == Some(vendor)
            && (self.products.is_empty() || self.products.iter().any(|known| known == product))
    }
}

fn is_given(rules: &[Rule], node: Node, vendor: &str, product: &str) -> bool {
    (rules.iter()).any(|rule| rule.uaccess && rule.fits(node, vendor, product))
}

#[test]
fn every_known_token_is_given_to_the_user_and_nothing_else_is() {
    let rules = parse(&read(NAME)).unwrap();
    let families = families();
    let all_ids = || (0..=u16::MAX).map(|id| format!("{id:04x}"));
    let mut given = 0;
    let mut compare = |vendor: &str, product: &str| {
        for node in [Node::Hidraw, Node::Usb] {
            let family = families.iter().find(|family| family.has(vendor, product));
            let expected = family.is_some_and(|family| family.nodes.contains(&node));
            let found = is_given(&rules, node, vendor, product);
            assert_eq!(found, expected, "{vendor}:{product} {node:?}");
            given += u32::from(found);
        }
    };
    for vendor in ["2c97", "2581", "1050", "20a0"] {
        all_ids().for_each(|product| compare(vendor, &product));
    }
    for product in ["0000", "0030", "0407", "1011", "1b7c", "42b2"] {
        all_ids().for_each(|vendor| compare(&vendor, product));
    }
    assert!(given > 0);
    // By name, should table and rules go wrong together.
    for (node, vendor, product) in [
        (Node::Hidraw, "2c97", "1011"),
        (Node::Usb, "2c97", "4015"),
        (Node::Hidraw, "2581", "3b7c"),
        (Node::Usb, "2581", "1b7c"),
        (Node::Usb, "1050", "0030"),
        (Node::Hidraw, "1050", "0407"),
        (Node::Hidraw, "20a0", "42b2"),
    ] {
        assert!(
            is_given(&rules, node, vendor, product),
            "{vendor}:{product}"
        );
    }
    assert!(!is_given(&rules, Node::Usb, "1050", "0407"));
}

#[test]
fn no_id_is_in_two_families() {
    let families = families();
    assert!(families.len() >= 5, "{families:?}");
    for one in &families {
        for id in one.products {
            let having = families.iter().filter(|other| other.has(one.vendor, id));
            assert_eq!(having.count(), 1, "{}:{id}", one.vendor);
        }
    }
}

#[test]
fn nobody_but_the_user_at_the_screen_is_given_anything() {
    for rule in parse(&read(NAME)).unwrap() {
        assert!(
            rule.uaccess && rule.group.is_none() && rule.mode.is_none(),
            "{rule:?}"
        );
    }
}

#[test]
fn the_file_comes_before_the_rule_that_acts_on_the_tag() {
    let all: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".rules"))
        .collect();
    assert_eq!(all, [NAME]);
    assert!(NAME < "73-seat-late.rules");
}

#[test]
fn what_the_readme_says_works() {
    let readme = read("README.md");
    assert!(readme.contains(INSTALL));
    // The rules of a server, as the command there writes them.
    let (find, put) = (r#"TAG+="uaccess""#, r#", GROUP="claviger", MODE="0660""#);
    assert!(readme.contains(&format!("sed 's/{find}/&{put}/' udev/{NAME} ")));
    let plain = read(NAME);
    let grouped = parse(&plain.replace(find, &format!("{find}{put}"))).unwrap();
    let expected: Vec<Rule> = (parse(&plain).unwrap().into_iter())
        .map(|rule| Rule {
            group: Some("claviger".into()),
            mode: Some("0660".into()),
            ..rule
        })
        .collect();
    assert_eq!(grouped, expected);
}

#[test]
fn a_rule_with_a_slip_is_refused() {
    let good = r#"SUBSYSTEM=="usb", ATTR{idVendor}=="2c97", TAG+="uaccess""#;
    assert!(rule(good).is_ok());
    for (from, to) in [
        ("SUBSYSTEM==", "SUBSYSTEM="),
        ("SUBSYSTEM==", "SUBSYSTEMS=="),
        ("SUBSYSTEM", "SUBSYTEM"),
        ("\"usb\"", "\"usbraw\""),
        ("ATTR{idVendor}==", "ATTR{idVendor}="),
        ("idVendor", "idvendor"),
        ("2c97", "2C97"),
        ("2c97", "2c9"),
        ("2c97", "*"),
        ("TAG+=", "TAG=="),
        ("TAG+=", "TAG="),
        ("uaccess", "uacces"),
        ("uaccess\"", "uaccess"),
        (", TAG", " TAG"),
        (", TAG", ", SUBSYSTEM==\"usb\", TAG"),
        (", TAG", ", ATTRS{idProduct}==\"0001\", TAG"),
        ("SUBSYSTEM==\"usb\", ", ""),
        ("ATTR{idVendor}==\"2c97\", ", ""),
        (
            "TAG+=\"uaccess\"",
            "TAG+=\"uaccess\", ATTR{idProduct}==\"0001\"",
        ),
    ] {
        let slip = good.replacen(from, to, 1);
        assert_ne!(slip, good);
        assert!(rule(&slip).is_err(), "{slip}");
    }
}

#[test]
fn udev_itself_takes_the_rules() {
    // From systemd 254 on.
    let has_verify = Command::new("udevadm").args(["verify", "--help"]).output();
    if !has_verify.is_ok_and(|run| run.status.success()) {
        eprintln!("SKIPPED: there is no udevadm here that can verify rules");
        return;
    }
    let run = Command::new("udevadm")
        .args(["verify", "--resolve-names=never"])
        .arg(folder().join(NAME))
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
}
