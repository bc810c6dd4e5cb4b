//! Plugs a card into vpcd, the reader driver of virtualsmartcard.
//!
//! The card connects to the driver's port. Each message is a length, two bytes, big
//! endian, and so many bytes: a single one is a control (0 off, 1 on, 2 reset, 4 asks for
//! the answer to reset), anything longer a command. A card that closes its connection has
//! been taken out. See
//! <https://frankmorgner.github.io/vsmartcard/virtualsmartcard/api.html>.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_linger, set_tcp_quickack};

use crate::faults::{Answer, Device, Smartcard};
use claviger_token::sync::lock;

/// A card in a reader's slot, or just outside of it.
pub(crate) struct Plug<C: Smartcard> {
    shared: Arc<Shared<C>>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared<C> {
    port: u16,
    device: Device<C>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    plugged: bool,
    stop: bool,
    stream: Option<TcpStream>,
}

impl<C: Smartcard> Plug<C> {
    /// The card lies beside the slot that listens on `port`.
    pub(crate) fn new(port: u16, device: Device<C>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            port,
            device,
            state: Mutex::new(State {
                plugged: false,
                stop: false,
                stream: None,
            }),
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name(format!("card-{port}"))
            .spawn(move || serving.run())?;
        Ok(Plug {
            shared,
            thread: Some(thread),
        })
    }

    /// Puts the card in; the reader notices soon.
    pub(crate) fn plug(&self) {
        lock(&self.shared.state).plugged = true;
        self.shared.changed.notify_all();
    }

    /// Takes the card out, whatever it is doing.
    pub(crate) fn unplug(&self) {
        let mut state = lock(&self.shared.state);
        state.unplug();
        self.shared.changed.notify_all();
    }

    /// Whether the card is in: a fault may have taken it out.
    pub(crate) fn is_plugged(&self) -> bool {
        lock(&self.shared.state).plugged
    }
}

impl<C: Smartcard> Drop for Plug<C> {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.shared.state);
            state.stop = true;
            state.unplug();
            self.shared.changed.notify_all();
        }
        if let Some(thread) = self.thread.take() {
            // It has nothing to say, and a panic of its own was shown already.
            let _ = thread.join();
        }
    }
}

impl State {
    fn unplug(&mut self) {
        self.plugged = false;
        if let Some(stream) = self.stream.take() {
            // This ends the thread's read. The driver learns of it when the thread drops
            // its half, and with it the connection.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

impl<C: Smartcard> Shared<C> {
    fn run(&self) {
        loop {
            {
                let state = lock(&self.state);
                let waiting = |state: &mut State| !state.plugged && !state.stop;
                let state = self.changed.wait_while(state, waiting);
                if state.unwrap_or_else(PoisonError::into_inner).stop {
                    return;
                }
            }
            let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) else {
                thread::sleep(Duration::from_millis(2));
                continue;
            };
            {
                let mut state = lock(&self.state);
                if !state.plugged {
                    continue;
                }
                state.stream = stream.try_clone().ok();
            }
            // Small messages go back and forth.
            let _ = stream.set_nodelay(true);
            // Closing resets the connection, see `vanish`.
            let _ = set_socket_linger(&stream, Some(Duration::ZERO));
            // However it ends: what is next depends on whether the card is to be in.
            let _ = self.serve(&stream);
            self.device.card().reset();
            lock(&self.state).stream = None;
            drop(stream);
        }
    }

    /// Serves until the connection ends, which is mostly as an error.
    fn serve(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        loop {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            // The driver sends the rest once this is acknowledged, which else takes the
            // kernel 40 ms, for each command.
            let _ = set_tcp_quickack(stream, true);
            let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut message)?;
            match message[..] {
                [0..=2] => self.device.card().reset(),
                [4] => {
                    let atr = self.device.card().atr();
                    send(stream, &atr)?;
                }
                [] | [_] => {}
                _ => {
                    let (reply, time) = match self.device.transmit(&message) {
                        Answer::Reply(reply, time) => (reply, time),
                        Answer::Removed(time) => {
                            self.wait(time);
                            lock(&self.state).unplug();
                            (Vec::new(), Duration::ZERO)
                        }
                    };
                    let removed = !self.wait(time) || reply.is_empty();
                    if removed {
                        return vanish(stream);
                    }
                    send(stream, &reply)?;
                }
            }
        }
    }

    /// Waits; false if the card is taken out meanwhile.
    fn wait(&self, time: Duration) -> bool {
        let Some(end) = Instant::now().checked_add(time) else {
            return true;
        };
        let mut state = lock(&self.state);
        while state.plugged {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }
}

fn send(mut stream: &TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat())
}

/// Ends the connection so that the driver reports an error: the length of a reply, and no
/// reply. If it just ended, the driver would report a reply of no bytes.
fn vanish(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.write_all(&[0, 1])
}
