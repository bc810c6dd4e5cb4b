#!/usr/bin/env bash
# Packages: rustix 1.1.6 and libc 0.2.186 (crates.io); unshare of util-linux.
#
# socket_peercred fails for a caller that lives outside of the server's PID namespace, as one on the
# host that calls a server in a container. The kernel answers: it knows the caller's uid and gid, and
# says 0 for a process that has no number here. rustix has no such number, and returns an error
# without an errno, whose text is "Success". A server that judges by the uid has to ask the
# kernel itself, or refuse a caller that it could know.
#
# Output seen:
#   same namespace: rustix: uid as expected, kernel: uid as expected, pid is 0: false
#   another namespace: rustix: Success (os error 0), kernel: uid as expected, pid is 0: true
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"

mkdir -p src
cat >Cargo.toml <<'T'
[package]
name = "peer"
version = "0.0.0"
edition = "2021"
[dependencies]
rustix = { version = "=1.1.6", features = ["net", "process"] }
libc = "=0.2.186"
T
cat >src/main.rs <<'R'
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments[1] == "call" {
        let caller = UnixStream::connect(&arguments[2]).unwrap();
        // Stays until the server has looked.
        std::io::Read::read(&mut &caller, &mut [0]).unwrap();
        return;
    }
    let expected: u32 = arguments[3].parse().unwrap();
    let as_expected = |uid| if uid == expected { "uid as expected" } else { "another uid" };
    let listener = UnixListener::bind(&arguments[2]).unwrap();
    let (caller, _) = listener.accept().unwrap();
    let by_rustix = match rustix::net::sockopt::socket_peercred(&caller) {
        Ok(peer) => as_expected(peer.uid.as_raw()).to_owned(),
        Err(error) => error.to_string(),
    };
    let mut peer = libc::ucred { pid: -1, uid: u32::MAX, gid: u32::MAX };
    let mut length = std::mem::size_of_val(&peer) as u32;
    let (fd, level, name) = (caller.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED);
    let asked = unsafe {
        libc::getsockopt(fd, level, name, std::ptr::from_mut(&mut peer).cast(), &mut length)
    };
    assert_eq!(asked, 0);
    let is_nobody = peer.pid == 0;
    println!("rustix: {by_rustix}, kernel: {}, pid is 0: {is_nobody}", as_expected(peer.uid));
}
R
cargo build --quiet

# What a server that is started like this says of a caller from here.
look() {
    local name=$1
    shift
    rm -f socket
    "$@" >"$name" &
    while [ ! -S socket ]; do sleep 0.05; done
    target/debug/peer call socket
    wait $!
    echo "$name: $(cat "$name")"
}

here=$(look "same namespace" target/debug/peer serve socket "$(id -u)")
# Within the user namespace this user has the number 0.
there=$(look "another namespace" unshare --user --map-root-user --pid --fork \
    target/debug/peer serve socket 0)
printf '%s\n%s\n' "$here" "$there"
diff <(printf '%s\n%s\n' "$here" "$there") - <<'SEEN'
same namespace: rustix: uid as expected, kernel: uid as expected, pid is 0: false
another namespace: rustix: Success (os error 0), kernel: uid as expected, pid is 0: true
SEEN
