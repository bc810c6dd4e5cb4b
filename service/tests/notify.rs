//! What the service manager is told, at a socket of the test's own.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use claviger_engine::{Node, Registry};
use claviger_service::notify;

const CHILD: &str = "CLAVIGER_TEST_NOTIFIES";

#[test]
fn the_service_manager_is_told_how_the_daemon_is() {
    // The variables are those of a process: of this program, once more.
    if std::env::var_os(CHILD).is_some() {
        return notifies();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    let limit = Duration::from_secs(60);
    manager.set_read_timeout(Some(limit)).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_service_manager_is_told_how_the_daemon_is"])
        .env(CHILD, "1")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "20000")
        .env_remove("WATCHDOG_PID")
        .spawn()
        .unwrap();
    let next = || {
        let mut message = [0; 512];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    assert_eq!(next().trim_end(), "READY=1\nSTATUS=0 tokens, 0 locked");
    let reloading = next();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(next().trim_end(), "WATCHDOG=1\nSTATUS=1");
    assert_eq!(next().trim_end(), "WATCHDOG=1\nSTATUS=2");
    for _ in 3..=5 {
        assert_eq!(next().trim_end(), "WATCHDOG=1");
    }
    assert_eq!(next().trim_end(), "STOPPING=1\nSTATUS=ending");
    assert!(child.wait().unwrap().success());
}

fn notifies() {
    let node = Node::builder(Registry::in_memory().unwrap()).build();
    notify::ready(&notify::tokens(&node));
    notify::reloading();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (looks, enough) = (std::cell::Cell::new(0), tokio::sync::Notify::new());
        let status = || {
            looks.set(looks.get() + 1);
            if looks.get() == 5 {
                enough.notify_one();
            }
            looks.get().min(2).to_string()
        };
        tokio::select! {
            () = notify::keep_telling(status) => {}
            () = enough.notified() => {}
        }
    });
    notify::stopping();
}
