//! A Ledger behind TCP: the emulator Speculos, or a simulation.
//!
//! Out go the length of the command (four bytes, big-endian) and the command; back come
//! the length of the data without the status word (four bytes, big-endian), the data, and
//! the status word. There is neither encryption nor authentication: it is for emulators
//! on the same machine.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::frame::LONGEST_REPLY;
use crate::transport::{Attached, Broken, Devices, Transport, Unreachable};

/// How long somebody may take to accept a connection, or a command.
const PATIENCE: Duration = Duration::from_secs(5);
/// The length of the data, before it.
const HEADER: usize = 4;
const STATUS: usize = 2;

/// What answers APDUs at one TCP address: an emulator.
#[derive(Debug, Clone)]
pub struct Tcp {
    /// `HOST:PORT`.
    pub address: String,
}

impl Devices for Tcp {
    /// Whether it is there shows when it is opened.
    fn list(&self) -> Result<Vec<Attached>, Unreachable> {
        Ok(vec![Attached {
            path: self.address.clone(),
            model: "emulator".into(),
        }])
    }

    fn shared_name(&self, path: &str) -> Option<String> {
        Some(format!("tcp {path}"))
    }

    fn connect(&self, path: &str) -> Result<Box<dyn Transport>, Broken> {
        let mut failure = Broken::Lost("the address cannot be resolved".into());
        for address in path.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    return Ok(Box::new(Stream {
                        stream,
                        received: Zeroizing::new(Vec::with_capacity(HEADER + LONGEST_REPLY)),
                    }));
                }
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Broken::Lost(error.to_string())
    }
}

struct Stream {
    stream: TcpStream,
    /// Of the reply that is coming in.
    received: Zeroizing<Vec<u8>>,
}

impl Stream {
    /// The length of the whole reply with its header, as soon as it is known.
    fn length(&self) -> Result<Option<usize>, Broken> {
        let Some((header, _)) = self.received.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let data = u32::from_be_bytes(*header) as usize;
        if data > LONGEST_REPLY - STATUS {
            return Err(Broken::Malformed(format!("a reply of {data} bytes")));
        }
        Ok(Some(HEADER + data + STATUS))
    }
}

impl Transport for Stream {
    fn send(&mut self, apdu: &[u8]) -> Result<(), Broken> {
        let length = u32::try_from(apdu.len());
        let length = length.map_err(|e| Broken::Malformed(e.to_string()))?;
        let message = [&length.to_be_bytes(), apdu].concat();
        Ok(self.stream.write_all(&message)?)
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Zeroizing<Vec<u8>>>, Broken> {
        let until = Instant::now() + wait;
        loop {
            let length = self.length()?;
            if length == Some(self.received.len()) {
                let reply = Zeroizing::new(self.received[HEADER..].to_vec());
                // Wipes what was there.
                self.received = Zeroizing::new(Vec::with_capacity(HEADER + LONGEST_REPLY));
                return Ok(Some(reply));
            }
            let left = until.saturating_duration_since(Instant::now());
            self.stream.set_nonblocking(left.is_zero())?;
            if !left.is_zero() {
                self.stream.set_read_timeout(Some(left))?;
            }
            // Never beyond the reply, so that the next one stays where it is.
            let wanted = length.unwrap_or(HEADER) - self.received.len();
            let mut buffer = Zeroizing::new([0; HEADER + LONGEST_REPLY]);
            let read = self.stream.read(&mut buffer[..wanted]);
            self.stream.set_nonblocking(false)?;
            match read {
                Ok(0) => return Err(Broken::Lost("the connection was closed".into())),
                Ok(read) => self.received.extend_from_slice(&buffer[..read]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
