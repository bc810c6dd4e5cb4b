//! OpenSSH's server for one login: unpacked, not installed, since its package starts a server for
//! everybody. It listens nowhere: each client starts one of its own, and speaks to it through pipes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::geteuid;

use crate::unpacked;

/// libwrap is in no other package that is installed.
const PACKAGES: [&str; 2] = ["openssh-server", "libwrap0"];

/// What a client that is no root cannot have: a server needs files of the system.
const AS_ROOT: &str = "mount --bind \"$0/passwd\" /etc/passwd; mount --bind \"$0/shadow\" /etc/shadow; \
                       mount -t tmpfs none /run; mkdir /run/sshd; exec \"$@\"";

/// A server, and a client that knows it.
pub struct Sshd {
    folder: PathBuf,
}

impl Sshd {
    /// One whose files are in `folder`, which must be there. `None` where this system does not let
    /// us: root needs a namespace of its own for mounts. Says so.
    ///
    /// # Panics
    /// Where OpenSSH cannot be had.
    pub fn new(folder: &Path) -> Option<Self> {
        if geteuid().is_root() && !can_mount() {
            eprintln!("SKIPPED: this system does not let us mount anything");
            return None;
        }
        let server = Sshd {
            folder: folder.to_owned(),
        };
        server.make_key();
        server.configure();
        Some(server)
    }

    /// The file with the host's public key.
    pub fn host_key(&self) -> PathBuf {
        self.folder.join("host_key.pub")
    }

    /// The file of the keys that log in.
    pub fn authorized_keys(&self) -> PathBuf {
        self.folder.join("authorized_keys")
    }

    /// The configuration of a client to which every host is this server.
    pub fn config(&self) -> PathBuf {
        self.folder.join("ssh_config")
    }

    /// `ssh` with the options that make every host this server. The agent is that of the
    /// environment.
    pub fn client(&self) -> Command {
        let mut command = Command::new("ssh");
        command.arg("-F").arg(self.config());
        command
    }

    fn make_key(&self) {
        let key = self.folder.join("host_key");
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        let made = keygen.arg(&key).output();
        let made = made.unwrap_or_else(|e| panic!("ssh-keygen: {e}: run `cargo xtask setup`"));
        assert!(made.status.success(), "{made:?}");
        let public = fs::read_to_string(self.host_key()).unwrap();
        fs::write(self.folder.join("known_hosts"), format!("* {public}")).unwrap();
    }

    fn configure(&self) {
        let folder = self.folder.display();
        let root = unpacked();
        let mut server = format!(
            "HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n\
             StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        );
        // From OpenSSH 9.8 and 10.0 on a server is several programs.
        for (option, program) in [
            ("SshdSessionPath", "sshd-session"),
            ("SshdAuthPath", "sshd-auth"),
        ] {
            let program = root.join("usr/lib/openssh").join(program);
            if program.exists() {
                server += &format!("{option} {}\n", program.display());
            }
        }
        let client = format!(
            "Host *\n  ProxyCommand {folder}/sshd\n  UserKnownHostsFile {folder}/known_hosts\n  \
             GlobalKnownHostsFile none\n  User {}\n  BatchMode yes\n  IdentityFile none\n",
            user()
        );
        let account = format!("root:x:0:0:root:{folder}:/bin/sh\n");
        let separate = "sshd:x:999:65534::/run/sshd:/usr/sbin/nologin\n";
        for (name, content) in [
            ("sshd_config", server),
            ("ssh_config", client),
            ("passwd", account + separate),
            ("shadow", "root:*:19000:0:99999:7:::\n".to_owned()),
            ("authorized_keys", String::new()),
            ("sshd", self.script(&root)),
        ] {
            let path = self.folder.join(name);
            fs::write(&path, content).unwrap();
            let mode = if name == "sshd" { 0o700 } else { 0o600 };
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        let readable = Permissions::from_mode(0o644);
        fs::set_permissions(self.folder.join("passwd"), readable).unwrap();
    }

    /// What a client starts.
    fn script(&self, root: &Path) -> String {
        let (folder, root) = (self.folder.display(), root.display());
        let libraries = format!("{root}/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        let server = format!("'{root}/usr/sbin/sshd' -i -e -f '{folder}/sshd_config'");
        let start = match geteuid().is_root() {
            true => {
                format!("unshare -m --propagation private sh -ec '{AS_ROOT}' '{folder}' {server}")
            }
            false => server,
        };
        format!("#!/bin/sh\nexport LD_LIBRARY_PATH='{libraries}'\nexec {start}\n")
    }
}

/// Who logs in: a server that is not root's lets in whom it runs as.
fn user() -> String {
    let said = Command::new("id").arg("-un").output().unwrap().stdout;
    String::from_utf8(said).unwrap().trim().to_owned()
}

fn can_mount() -> bool {
    let mut unshare = Command::new("unshare");
    unshare.args(["-m", "--propagation", "private", "true"]);
    unshare.output().is_ok_and(|output| output.status.success())
}

fn unpacked() -> PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| unpacked::unpacked("openssh-server", &PACKAGES))
        .clone()
}
