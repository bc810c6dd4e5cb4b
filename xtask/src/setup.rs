//! Installs what the other commands need: Debian and Ubuntu packages.
//!
//! It looks for the thing itself (a program, a library), so what came from elsewhere
//! counts, and it says what it is going to do before it does it.

mod archive;
mod proof;

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

pub(crate) use proof::softhsm_module;

use proof::Proof;

use crate::screen::{self, Style};
use crate::{Failure, Result, process};

/// What to say when nothing is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Voice {
    Talkative,
    Quiet,
}

/// Something that the build or the tests need, and the package that brings it.
struct Need {
    package: &'static str,
    purpose: &'static str,
    proof: Proof,
}

/// What a command needs; each needs what those before it do, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// To compile.
    Build,
    /// To show the main job.
    Demo,
    /// To run every test.
    Tests,
}

const BUILD: &[Need] = &[
    Need {
        package: "gcc",
        purpose: "compiles SQLite and BLST",
        proof: Proof::AnyProgram(&["cc", "gcc", "clang"]),
    },
    Need {
        package: "libc6-dev",
        purpose: "C headers for the same",
        proof: Proof::Header("stdio.h"),
    },
    Need {
        package: "pkg-config",
        purpose: "finds C libraries",
        proof: Proof::AnyProgram(&["pkg-config", "pkgconf"]),
    },
    Need {
        package: "libpcsclite-dev",
        purpose: "smartcard readers",
        proof: Proof::PkgConfigFile("libpcsclite.pc"),
    },
    Need {
        package: "libudev-dev",
        purpose: "USB devices",
        proof: Proof::PkgConfigFile("libudev.pc"),
    },
];

const DEMO: &[Need] = &[
    Need {
        package: "softhsm2",
        purpose: "PKCS#11 tokens in software",
        proof: Proof::SoftHsm("softhsm2-util"),
    },
    Need {
        package: "opensc",
        purpose: "pkcs11-tool: a second opinion on what a token holds",
        proof: Proof::Program("pkcs11-tool"),
    },
    Need {
        package: "openssl",
        purpose: "a second opinion on signatures",
        proof: Proof::Program("openssl"),
    },
];

const TESTS: &[Need] = &[
    Need {
        package: "systemd",
        purpose: "checks the daemon's units",
        proof: Proof::AnyProgram(&["systemd-analyze"]),
    },
    Need {
        package: "libssl-dev",
        purpose: "compiles Kryoptic, a PKCS#11 token",
        proof: Proof::PkgConfigFile("libcrypto.pc"),
    },
    Need {
        package: "libsqlite3-dev",
        purpose: "compiles Kryoptic",
        proof: Proof::PkgConfigFile("sqlite3.pc"),
    },
    // tpm2-pkcs11 and tpm2-abrmd themselves are unpacked by the tests that use them: to
    // install them is to give every program here a module for PKCS#11, and a service.
    Need {
        package: "libtss2-esys-3.0.2-0",
        purpose: "what tpm2-pkcs11 speaks to a TPM with",
        proof: Proof::Library("libtss2-esys.so.0"),
    },
    Need {
        package: "libyaml-0-2",
        purpose: "what tpm2-pkcs11 keeps its notes with",
        proof: Proof::Library("libyaml-0.so.2"),
    },
    Need {
        package: "swtpm",
        purpose: "a TPM in software",
        proof: Proof::Program("swtpm"),
    },
    Need {
        package: "libtss2-tcti-tabrmd0",
        purpose: "reaches what lets a TPM serve many keys",
        proof: Proof::Library("libtss2-tcti-tabrmd.so.0"),
    },
    Need {
        package: "dbus",
        purpose: "what the same is reached through",
        proof: Proof::Program("dbus-daemon"),
    },
    // opencryptoki and p11-kit are unpacked by the tests that use them, too: installed, the
    // one starts a daemon and makes a group, the other registers a module.
    Need {
        package: "libitm1",
        purpose: "what opencryptoki keeps its objects with",
        proof: Proof::Library("libitm.so.1"),
    },
    Need {
        package: "libp11-kit0",
        purpose: "p11-kit, behind which modules are put",
        proof: Proof::Library("libp11-kit.so.0"),
    },
    Need {
        package: "libnss3-tools",
        purpose: "certutil: makes databases for NSS, a PKCS#11 token",
        proof: Proof::Program("certutil"),
    },
    Need {
        package: "openssh-client",
        purpose: "ssh-keygen: a second opinion on SSH signatures",
        proof: Proof::Program("ssh-keygen"),
    },
    Need {
        package: "age",
        purpose: "a second opinion on encrypted files",
        proof: Proof::Program("age-keygen"),
    },
    Need {
        package: "npm",
        purpose: "installs age-encryption into the target folder: a third opinion on them",
        proof: Proof::Program("npm"),
    },
    Need {
        package: "strace",
        purpose: "counts what a process has the disk do",
        proof: Proof::Program("strace"),
    },
    Need {
        package: "pcscd",
        purpose: "what smartcards are reached through",
        proof: Proof::AnyFile(&["/usr/sbin/pcscd", "/usr/bin/pcscd"]),
    },
    Need {
        package: "vsmartcard-vpcd",
        purpose: "a smartcard reader in software",
        proof: Proof::AnyFile(&[
            "/usr/lib/pcsc/drivers/serial/libifdvpcd.so",
            "/usr/lib64/pcsc/drivers/serial/libifdvpcd.so",
        ]),
    },
    Need {
        package: "ykcs11",
        purpose: "Yubico's PKCS#11 module: a second opinion on smartcards",
        proof: Proof::Library("libykcs11.so.2"),
    },
    Need {
        package: "libclang-dev",
        purpose: "compiles Kryoptic, and a PIV card that others wrote",
        proof: Proof::ClangLibrary,
    },
    Need {
        package: "python3-venv",
        purpose: "installs ykman (a third opinion) and Ledger's emulator into the target folder",
        proof: Proof::PythonModule("ensurepip"),
    },
    Need {
        package: "qemu-user-static",
        purpose: "runs apps for Ledger's devices in the emulator",
        proof: Proof::Program("qemu-arm-static"),
    },
    Need {
        package: "chromium",
        purpose: "opens the page that the bench for devices writes, as a reader would",
        proof: Proof::AnyProgram(&["chromium", "chromium-browser"]),
    },
    Need {
        package: "pinentry-curses",
        purpose: "asks for PINs, as other programs have them asked for",
        proof: Proof::Program("pinentry-curses"),
    },
    Need {
        package: "procps",
        purpose: "kill: ends programs as a user would",
        proof: Proof::Program("kill"),
    },
    Need {
        package: "umockdev",
        purpose: "plugs in USB devices that are not there",
        proof: Proof::Library("libumockdev-preload.so.0"),
    },
];

/// Installs what is missing; does nothing, and quickly, when nothing is.
pub(crate) fn run(what: What, voice: Voice) -> Result<()> {
    install_missing(what, voice)?;
    match what {
        What::Tests => make_folder_of_pcscd(),
        What::Build | What::Demo => Ok(()),
    }
}

/// No pcscd starts without its folder, which systemd makes, where it runs.
fn make_folder_of_pcscd() -> Result<()> {
    let folder = "/run/pcscd";
    if Path::new(folder).is_dir() {
        return Ok(());
    }
    let privilege = Privilege::of_this_user();
    let mut mkdir = privilege.command("mkdir");
    mkdir.arg(folder);
    if privilege == Privilege::None {
        return Err(Failure::new(format!(
            "{folder} is missing, without which no pcscd starts"
        ))
        .hint(format!("have an administrator run: mkdir {folder}")));
    }
    process::run(&mut mkdir)
}

fn install_missing(what: What, voice: Voice) -> Result<()> {
    let missing = missing(what);
    if missing.is_empty() {
        if voice == Voice::Talkative {
            screen::note(Style::Good, "Nothing was missing, nothing was installed.");
        }
        return Ok(());
    }

    screen::note(Style::Heading, "Missing on this machine:");
    for need in &missing {
        let Need {
            package, purpose, ..
        } = need;
        screen::note(Style::Plain, format_args!("  {package:<16} {purpose}"));
    }
    let packages: Vec<_> = missing.iter().map(|need| need.package).collect();
    if process::find_program("apt-get").is_none() {
        return Err(Failure::new(
            "packages are missing, and this system has no apt-get to install them",
        )
        .hint(format!(
            "install what your system calls: {}",
            packages.join(" ")
        )));
    }
    install(&missing)?;

    let still: Vec<_> = self::missing(what)
        .iter()
        .map(|need| need.package)
        .collect();
    if still.is_empty() {
        screen::note(Style::Good, "Everything is in place now.");
        Ok(())
    } else {
        Err(Failure::new(format!(
            "apt-get succeeded, but what these packages bring was not found: {}",
            still.join(" ")
        ))
        .hint("see whether another package diverts or replaces them"))
    }
}

fn missing(what: What) -> Vec<&'static Need> {
    needs(what).filter(|need| !need.proof.holds()).collect()
}

fn needs(what: What) -> impl Iterator<Item = &'static Need> {
    let all = [
        (What::Build, BUILD),
        (What::Demo, DEMO),
        (What::Tests, TESTS),
    ];
    let wanted = all.into_iter().filter(move |(least, _)| what >= *least);
    wanted.flat_map(|(_, needs)| needs)
}

/// Updates the lists, which say what the packages are called here, and installs them. It
/// says each before it does it.
fn install(needs: &[&Need]) -> Result<()> {
    let privilege = Privilege::of_this_user();
    if privilege == Privilege::None {
        let packages: Vec<_> = needs.iter().map(|need| need.package).collect();
        return Err(Failure::new(
            "packages are missing; installing them takes root's rights, and there is no sudo",
        )
        .hint(format!(
            "have an administrator run: apt-get install --no-install-recommends {}",
            packages.join(" ")
        )));
    }
    privilege.update();
    let apt = archive::Apt(privilege);
    let packages = needs.iter().map(|need| {
        let name = archive::name(need, &apt)?;
        if name != need.package {
            let says = format!("Here {} is called {name}.", need.package);
            screen::note(Style::Plain, says);
        }
        Ok(name)
    });
    let packages = packages.collect::<Result<Vec<_>>>()?;
    let mut install = privilege.apt_get();
    install.args(["-o", "DPkg::Lock::Timeout=300"]);
    install.args(["install", "-y", "--no-install-recommends"]);
    process::run(install.args(packages)).map_err(|failure| {
        failure.hint("apt-get's own message above says why; then run this command again")
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Privilege {
    Root,
    Sudo,
    None,
}

impl Privilege {
    fn of_this_user() -> Self {
        let root = Command::new("id")
            .arg("-u")
            .output()
            .is_ok_and(|output| output.stdout.trim_ascii() == b"0");
        if root {
            Self::Root
        } else if process::find_program("sudo").is_some() {
            Self::Sudo
        } else {
            Self::None
        }
    }

    /// `apt-get` that asks nothing, and whose output leaves our standard output alone.
    fn apt_get(self) -> Command {
        let mut command = self.command("env");
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]);
        command
    }

    /// Updates the lists. One broken third-party list fails that, and need not concern our
    /// packages.
    fn update(self) {
        if let Err(failure) = process::run(self.apt_get().arg("update")) {
            screen::note(
                Style::Bad,
                format_args!("{failure}; trying with the lists there are"),
            );
        }
    }

    /// A command with root's rights, whose output leaves our standard output alone.
    fn command(self, program: &str) -> Command {
        let mut command = match self {
            Self::Sudo => {
                let mut sudo = Command::new("sudo");
                sudo.arg(program);
                sudo
            }
            Self::Root | Self::None => Command::new(program),
        };
        command.stdout(Stdio::from(io::stderr()));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_needs_no_more_than_it_uses() {
        let packages = |what| -> Vec<_> { needs(what).map(|need| need.package).collect() };
        let demo = packages(What::Demo);
        assert_eq!(packages(What::Build), demo[..5]);
        assert_eq!(demo[5..], ["softhsm2", "opensc", "openssl"]);
        assert!(packages(What::Tests).starts_with(&demo));
        assert!(packages(What::Tests).contains(&"chromium"));
    }

    #[test]
    fn apt_get_is_shown_as_it_runs() {
        let mut command = Privilege::Sudo.apt_get();
        command.arg("update");
        assert_eq!(
            process::display(&command),
            "sudo env DEBIAN_FRONTEND=noninteractive apt-get -q update"
        );
    }
}
