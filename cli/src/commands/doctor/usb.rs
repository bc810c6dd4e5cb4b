//! Finds tokens on USB, and checks whether their device nodes can be opened.
//!
//! It sends nothing to them. On systems without sysfs it finds nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use claviger_token::needs::Need;
use claviger_token::usb::{UsbFamily, UsbInterface, UsbNode};
use claviger_token::{About, Error};

use super::Findings;
use super::udev::INSTALL;
use crate::{drivers, hints};

/// Where to look, and how a node is tried.
pub(super) struct Host {
    sys: PathBuf,
    dev: PathBuf,
    open: fn(&Path) -> io::Result<()>,
}

impl Host {
    /// The machine that this process runs on.
    pub(super) fn this() -> Self {
        Self {
            sys: "/sys".into(),
            dev: "/dev".into(),
            open,
        }
    }
}

/// What a token needs is to be written to as well.
fn open(node: &Path) -> io::Result<()> {
    (fs::File::options().read(true).write(true).open(node)).map(drop)
}

/// Reports for each plugged-in token whether its driver can reach it.
pub(super) fn check(host: &Host, needs: &[Need], findings: &mut Findings) {
    for device in entries(&host.sys.join("bus/usb/devices")) {
        let (Some(vendor), Some(product)) = (read(&device, "idVendor"), read(&device, "idProduct"))
        else {
            continue;
        };
        let Some((about, family)) = known(&vendor, &product) else {
            continue;
        };
        let what = format!(
            "the {} ({vendor}:{product}) that is plugged in",
            family.name
        );
        match &family.interface {
            Some(interface) => {
                let missing = missing(needs, about);
                check_interface(&device, &what, interface, missing, findings);
            }
            None => check_nodes(host, family, &device, &what, findings),
        }
    }
}

/// The family of a device, and its driver.
fn known(vendor: &str, product: &str) -> Option<(&'static About, &'static UsbFamily)> {
    let families = drivers::ABOUT
        .iter()
        .flat_map(|about| about.usb.iter().map(move |family| (about, family)));
    families
        .into_iter()
        .find(|(_, family)| family.has(vendor, product))
}

/// What the driver needs and misses.
fn missing<'a>(needs: &'a [Need], about: &About) -> Option<(&'a Need, &'a Error)> {
    let of_driver = needs.iter().filter(|need| about.serves(&need.backend));
    of_driver
        .filter_map(|need| Some((need, need.missing.as_ref()?)))
        .next()
}

fn check_interface(
    device: &Path,
    what: &str,
    interface: &UsbInterface,
    missing: Option<(&Need, &Error)>,
    findings: &mut Findings,
) {
    let is_it = |at: &PathBuf| read(at, "bInterfaceClass").as_deref() == Some(interface.class);
    if !interfaces(device).any(|at| is_it(&at)) {
        findings.note(
            format!("{what} does not show {}", interface.name),
            interface.when_absent,
        );
    } else if let Some((need, error)) = missing {
        findings.note(
            format!("{what} cannot be used: {error}"),
            hints::absent(&need.backend),
        );
    } else {
        findings.info(format!("{what} shows {}", interface.name));
    }
}

fn check_nodes(
    host: &Host,
    family: &UsbFamily,
    device: &Path,
    what: &str,
    findings: &mut Findings,
) {
    let nodes = (family.nodes.iter())
        .map(|kind| nodes(host, *kind, device))
        .find(|nodes| !nodes.is_empty())
        .unwrap_or_default();
    for node in &nodes {
        let shown = node.display();
        match (host.open)(node) {
            Ok(()) => findings.info(format!("{what} can be opened: {shown}")),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => findings.warning(
                format!("{what} cannot be opened: you have no access to {shown}"),
                format!(
                    "in a clone of Claviger's repository: {INSTALL}; over ssh or in a service, \
                     or if it is done already, see udev/README.md there"
                ),
            ),
            Err(error) => findings.warning(
                format!("{what} cannot be opened: {shown}: {error}"),
                "plug it in again; in a container, see that it is handed in",
            ),
        }
    }
    if nodes.is_empty() {
        findings.warning(format!("{what} has no device node"), "plug it in again");
    }
}

/// The nodes of a device.
fn nodes(host: &Host, kind: UsbNode, device: &Path) -> Vec<PathBuf> {
    match kind {
        UsbNode::Hidraw => interfaces(device)
            .flat_map(|interface| entries(&interface))
            .flat_map(|hid| entries(&hid.join("hidraw")))
            .filter_map(|class| Some(host.dev.join(class.file_name()?)))
            .collect(),
        UsbNode::Usb => (number(device, "busnum").zip(number(device, "devnum")))
            .map(|(bus, device)| host.dev.join(format!("bus/usb/{bus:03}/{device:03}")))
            .into_iter()
            .collect(),
    }
}

/// The interfaces of a device: the folders `1-2:1.0` in `1-2`.
fn interfaces(device: &Path) -> impl Iterator<Item = PathBuf> {
    (entries(device).into_iter()).filter(|at| at.join("bInterfaceClass").exists())
}

/// What is in a folder, in order; nothing if it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = (fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    entries
}

fn read(folder: &Path, attribute: &str) -> Option<String> {
    let text = fs::read_to_string(folder.join(attribute)).ok()?;
    Some(text.trim().to_ascii_lowercase())
}

fn number(device: &Path, attribute: &str) -> Option<u16> {
    read(device, attribute)?.parse().ok()
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    /// A machine in a folder: sysfs and nodes, as Linux lays them out.
    struct Machine {
        root: tempfile::TempDir,
        devices: u16,
    }

    impl Machine {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("sys/bus/usb/devices")).unwrap();
            fs::create_dir_all(root.path().join("dev/bus/usb/001")).unwrap();
            Self { root, devices: 0 }
        }

        /// Plugs a device in; an interface has a class, and a hidraw node if it is HID.
        fn plug(&mut self, id: &str, classes: &[&str]) {
            self.devices += 1;
            let n = self.devices;
            let (vendor, product) = id.split_once(':').unwrap();
            let device = self.path(&format!("sys/devices/pci0000:00/usb1/1-{n}"));
            let write = |path: &Path, attributes: &[(&str, &str)]| {
                fs::create_dir_all(path).unwrap();
                for (name, value) in attributes {
                    fs::write(path.join(name), format!("{value}\n")).unwrap();
                }
            };
            write(
                &device,
                &[
                    ("idVendor", vendor),
                    ("idProduct", product),
                    ("busnum", "1"),
                    ("devnum", &n.to_string()),
                ],
            );
            fs::write(self.path(&format!("dev/bus/usb/001/{n:03}")), "").unwrap();
            let bus = self.path("sys/bus/usb/devices");
            std::os::unix::fs::symlink(&device, bus.join(format!("1-{n}"))).unwrap();
            for (i, class) in classes.iter().enumerate() {
                let interface = device.join(format!("1-{n}:1.{i}"));
                write(&interface, &[("bInterfaceClass", class)]);
                std::os::unix::fs::symlink(&interface, bus.join(format!("1-{n}:1.{i}"))).unwrap();
                if *class == "03" {
                    let hid = interface.join(format!("0003:{}.0001", id.to_uppercase()));
                    fs::create_dir_all(hid.join(format!("hidraw/hidraw{n}{i}"))).unwrap();
                    fs::write(self.path(&format!("dev/hidraw{n}{i}")), "").unwrap();
                }
            }
        }

        fn path(&self, within: &str) -> PathBuf {
            self.root.path().join(within)
        }

        /// What `doctor` says: how bad it is, and what with the hint.
        fn says(
            &self,
            open: fn(&Path) -> io::Result<()>,
            smartcards_work: bool,
        ) -> Vec<(Level, String)> {
            let host = Host {
                sys: self.path("sys"),
                dev: self.path("dev"),
                open,
            };
            let mut findings = Findings::default();
            let error = Error::System {
                what: "the smartcard service cannot be reached".into(),
                reason: "pcscd is not running".into(),
            };
            let service = Need::new("the smartcard service", "piv:");
            let service = service.missing((!smartcards_work).then_some(error));
            check(&host, &[service], &mut findings);
            (findings.0.into_iter())
                .map(|finding| (finding.level, format!("{}; {}", finding.what, finding.hint)))
                .collect()
        }
    }

    fn refuse(_: &Path) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    #[track_caller]
    fn assert_one(said: &[(Level, String)], level: Level, parts: &[&str]) {
        let [(found, text)] = said else {
            panic!("not one finding: {said:?}");
        };
        assert_eq!(*found, level, "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    }

    #[test]
    fn a_machine_without_usb_or_tokens_gets_no_word() {
        let mut machine = Machine::new();
        machine.plug("1d6b:0002", &["09"]);
        machine.plug("1050:0031", &["ff"]);
        machine.plug("2581:f1d0", &["03"]);
        assert!(machine.says(refuse, false).is_empty());
        fs::remove_dir_all(machine.path("sys")).unwrap();
        assert!(machine.says(refuse, false).is_empty());
    }

    #[test]
    fn a_ledger_is_opened_over_hid_and_an_older_one_over_usb() {
        let mut machine = Machine::new();
        machine.plug("2c97:5011", &["03"]);
        assert_one(
            &machine.says(open, false),
            Level::Info,
            &["Ledger (2c97:5011)", "can be opened", "/dev/hidraw10"],
        );
        let mut machine = Machine::new();
        machine.plug("2581:1b7c", &["ff"]);
        assert_one(
            &machine.says(open, false),
            Level::Info,
            &["Ledger (2581:1b7c)", "/dev/bus/usb/001/001"],
        );
    }

    #[test]
    fn who_may_not_open_a_token_is_told_the_rule() {
        for (id, class, node) in [
            ("2c97:1011", "03", "/dev/hidraw10"),
            ("1050:0030", "ff", "/dev/bus/usb/001/001"),
        ] {
            let mut machine = Machine::new();
            machine.plug(id, &[class]);
            let said = machine.says(refuse, true);
            assert_one(&said, Level::Warning, &[id, node, "no access", INSTALL]);
        }
    }

    #[test]
    fn a_node_that_is_not_there_is_no_matter_of_rules() {
        let mut machine = Machine::new();
        machine.plug("1050:0030", &["ff"]);
        fs::remove_file(machine.path("dev/bus/usb/001/001")).unwrap();
        let said = machine.says(open, true);
        assert_one(&said, Level::Warning, &["YubiHSM 2", "No such file"]);
        assert!(!said[0].1.contains("70-claviger.rules"));
    }

    #[test]
    fn a_node_that_can_only_be_read_is_of_no_use() {
        let root = tempfile::tempdir().unwrap();
        // Of folders even the superuser can open for reading only.
        assert!(open(root.path()).is_err());
        assert!(fs::File::open(root.path()).is_ok());
    }

    #[test]
    fn a_smartcard_wants_the_service_and_no_rule() {
        for id in ["1050:0407", "20a0:4230"] {
            let mut machine = Machine::new();
            machine.plug(id, &["03", "0b"]);
            assert_one(&machine.says(refuse, true), Level::Info, &[id, "smartcard"]);
            let said = machine.says(refuse, false);
            assert_one(&said, Level::Note, &[id, "cannot be reached", "pcscd"]);
            assert!(!said[0].1.contains("udev/70"));
        }
    }

    #[test]
    fn a_yubikey_without_the_smartcard_interface_is_told_how_to_switch_it_on() {
        let mut machine = Machine::new();
        machine.plug("1050:0402", &["03"]);
        let said = machine.says(open, true);
        assert_one(&said, Level::Note, &["1050:0402", "ykman config usb"]);
    }
}
