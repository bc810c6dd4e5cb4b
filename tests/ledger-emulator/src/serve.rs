//! The emulator's protocol over TCP: an APDU goes out as `u32be(length) APDU`, its reply
//! comes back as `u32be(length of the data) data status`.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::device::{Device, Reply};
use crate::lock;

/// Sends one APDU to an emulator, or to a [`Server`], over a connection of its own; the
/// answer is data and status word.
///
/// Speculos sends every reply to whoever connected last: a program that is connected to
/// it waits in vain after this.
///
/// # Errors
/// When nobody answers.
pub fn exchange(address: SocketAddr, apdu: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let length = u32::try_from(apdu.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), apdu].concat())?;
    let length = read_length(&mut stream)?;
    read(&mut stream, length + 2)
}

/// A device behind a TCP port on loopback, as the emulator would be: every reply goes to
/// whoever connected last, whoever asked, or is lost. It is gone when it is dropped.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    device: Mutex<Box<dyn Device>>,
}

#[derive(Default)]
struct State {
    removed: bool,
    dropped: bool,
    /// Those that are open, and some that were; the last one gets the replies.
    streams: Vec<TcpStream>,
}

impl Server {
    /// Serves a device.
    pub fn start(device: impl Device) -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            device: Mutex::new(Box::new(device)),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || serving.accept(&listener));
        Server { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes the device away: connections end, whatever it is doing, and so do those to
    /// come.
    pub fn remove(&self) {
        self.shared.hang_up(|state| state.removed = true);
    }

    /// Brings the device back.
    pub fn insert(&self) {
        lock(&self.shared.state).removed = false;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.hang_up(|state| state.dropped = true);
        // This wakes the thread that accepts, which ends.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let mut state = lock(&self.state);
            if state.dropped {
                return;
            }
            if state.removed {
                continue;
            }
            state.streams.push(stream.try_clone().unwrap());
            let serving = Arc::clone(&self);
            // A connection that ends has ended: there is nobody to tell.
            thread::spawn(move || drop(serving.converse(stream)));
        }
    }

    fn converse(self: &Arc<Self>, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let length = read_length(&mut stream)?;
            let apdu = read(&mut stream, length)?;
            let serving = Arc::clone(self);
            let reply = Reply::new(move |reply| serving.send(&reply));
            lock(&self.device).take(&apdu, reply);
        }
    }

    fn send(&self, reply: &[u8]) {
        let length = reply.len().saturating_sub(2) as u32;
        if let Some(mut stream) = lock(&self.state).streams.last() {
            // Who is gone misses it.
            let _ = stream.write_all(&[&length.to_be_bytes(), reply].concat());
        }
    }

    fn hang_up(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn read_length(stream: &mut TcpStream) -> io::Result<usize> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    // An extended APDU has at most 65,544 bytes.
    if length > 0x1_0008 {
        return Err(io::Error::other(format!("{length} bytes are no APDU")));
    }
    Ok(length)
}

fn read(stream: &mut TcpStream, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_taken_away_ends_its_connections_and_comes_back() {
        let server = Server::start(|apdu: &[u8]| [apdu, &[0x90, 0]].concat());
        let ask = || exchange(server.address(), &[1, 2]);
        assert_eq!(ask().unwrap(), [1, 2, 0x90, 0]);
        let mut open = TcpStream::connect(server.address()).unwrap();
        open.write_all(&[0, 0, 0, 0]).unwrap();
        let mut answer = [0; 6];
        open.read_exact(&mut answer).unwrap();
        server.remove();
        assert_eq!(open.read(&mut answer).unwrap(), 0);
        assert!(ask().is_err());
        server.insert();
        assert!(ask().is_ok());
        let address = server.address();
        drop(server);
        assert!(exchange(address, &[]).is_err());
    }

    /// As Speculos does.
    #[test]
    fn a_reply_goes_to_whoever_connected_last() {
        let server = Server::start(|apdu: &[u8]| [apdu, &[0x90, 0]].concat());
        let [mut first, mut last] = [(); 2].map(|()| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            stream.write_all(&[0, 0, 0, 0]).unwrap();
            stream.read_exact(&mut [0; 6]).unwrap();
            stream
        });
        first.write_all(&[0, 0, 0, 1, 7]).unwrap();
        let mut answer = [0; 7];
        last.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0, 0, 0, 1, 7, 0x90, 0]);
    }
}
