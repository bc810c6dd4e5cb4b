//! What answers APDUs.

use std::sync::mpsc;

/// Something that answers APDUs, which [`Server`](crate::Server) puts behind a TCP port
/// and [`Usb`](crate::Usb) into a socket. A closure that makes data and status word of an
/// APDU is one.
pub trait Device: Send + 'static {
    /// Takes an APDU. The reply may be given at once, or later, after those to other
    /// APDUs, or never.
    fn take(&mut self, apdu: &[u8], reply: Reply);
}

impl<F: FnMut(&[u8]) -> Vec<u8> + Send + 'static> Device for F {
    fn take(&mut self, apdu: &[u8], reply: Reply) {
        reply.give(self(apdu));
    }
}

/// Where a reply goes.
pub struct Reply(Box<dyn FnOnce(Vec<u8>) + Send>);

impl Reply {
    pub(crate) fn new(give: impl FnOnce(Vec<u8>) + Send + 'static) -> Reply {
        Reply(Box::new(give))
    }

    /// One that can be waited for.
    pub(crate) fn channel() -> (Reply, mpsc::Receiver<Vec<u8>>) {
        let (sender, receiver) = mpsc::channel();
        // Where nobody waits, nobody misses it.
        let give = move |reply| drop(sender.send(reply));
        (Reply::new(give), receiver)
    }

    /// Gives the reply: data and status word.
    pub fn give(self, reply: Vec<u8>) {
        (self.0)(reply);
    }
}
