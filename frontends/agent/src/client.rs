//! The client's side of a connection: what it has sent, and whether it is still there.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::{Zeroize, Zeroizing};

use crate::messages::{self, LIMIT, Malformed};

/// So many bytes are read at once.
const PIECE: usize = 4 << 10;

/// The longest message, with its length.
const MOST: usize = LIMIT + 4;

pub(crate) struct Client {
    stream: UnixStream,
    /// It never grows in place: that leaves what it held in freed memory.
    buffer: Vec<u8>,
    patience: Duration,
    is_flooding: bool,
}

impl Client {
    /// `patience` is the time in which a message that has begun must end, and a reply be read.
    pub(crate) fn new(stream: UnixStream, patience: Duration) -> Self {
        Client {
            stream,
            buffer: Vec::new(),
            patience,
            is_flooding: false,
        }
    }

    /// The next message; `None` where the connection is over, for one reason or another.
    pub(crate) async fn message(&mut self) -> Option<Zeroizing<Vec<u8>>> {
        let mut end = None;
        loop {
            match messages::length(&self.buffer) {
                Ok(Some(length)) if self.buffer.len() >= length + 4 => {
                    return Some(self.take(length));
                }
                Ok(_) => {}
                Err(Malformed) => {
                    tracing::info!("a message of an SSH client is empty or longer than 256 KiB");
                    return None;
                }
            }
            let read = match self.buffer.is_empty() {
                true => self.read().await,
                false => {
                    let end = *end.get_or_insert_with(|| Instant::now() + self.patience);
                    timeout_at(end, self.read()).await.ok()?
                }
            };
            if read.ok()? == 0 {
                return None;
            }
        }
    }

    /// The message at the beginning of the buffer, which has all of it.
    fn take(&mut self, length: usize) -> Zeroizing<Vec<u8>> {
        let rest = self.buffer.split_off(length + 4);
        let mut taken = Zeroizing::new(std::mem::replace(&mut self.buffer, rest));
        Zeroizing::new(taken.split_off(4))
    }

    async fn read(&mut self) -> io::Result<usize> {
        self.make_room();
        self.stream.read_buf(&mut self.buffer).await
    }

    /// Makes room for at least a byte: for the whole message, once its length is known. What the
    /// buffer held is wiped where it was: it may be a passphrase.
    fn make_room(&mut self) {
        if self.buffer.len() < self.buffer.capacity() {
            return;
        }
        let announced = messages::length(&self.buffer).ok().flatten();
        let whole = announced.map(|length| length + 4);
        let room = whole.filter(|whole| *whole > self.buffer.len());
        let mut larger = Vec::with_capacity(room.unwrap_or(self.buffer.len() + PIECE));
        larger.extend_from_slice(&self.buffer);
        drop(Zeroizing::new(std::mem::replace(&mut self.buffer, larger)));
    }

    /// Returns when the client is gone, or sends so much before its answer that this is not seen.
    /// What it sends meanwhile is kept.
    pub(crate) async fn gone(&mut self) {
        loop {
            if self.buffer.len() > MOST {
                tracing::info!("an SSH client sends more than 256 KiB before its answer");
                self.is_flooding = true;
                return;
            }
            match self.read().await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Whether it sent so much before an answer that its connection ends.
    pub(crate) fn is_flooding(&self) -> bool {
        self.is_flooding
    }

    pub(crate) async fn write(&mut self, reply: &[u8]) -> io::Result<()> {
        let written = timeout(self.patience, self.stream.write_all(reply)).await;
        written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is waited for comes by then, or never.
    const LONG: Duration = Duration::from_secs(30);

    fn pair() -> (UnixStream, Client) {
        let (peer, stream) = UnixStream::pair().unwrap();
        (peer, Client::new(stream, LONG))
    }

    #[tokio::test]
    async fn who_sends_more_than_a_message_before_its_answer_counts_as_gone() {
        let (mut peer, mut client) = pair();
        let flood = tokio::spawn(async move {
            // It ends with the connection.
            let _ = peer.write_all(&vec![0; 4 * MOST]).await;
            peer
        });
        timeout(LONG, client.gone()).await.unwrap();
        assert!(client.is_flooding() && client.buffer.len() <= 3 * MOST);
        drop(client);
        flood.await.unwrap();
    }

    #[tokio::test]
    async fn who_sends_one_message_before_its_answer_is_not_gone_until_it_is() {
        let (mut peer, mut client) = pair();
        let longest = [
            &u32::try_from(LIMIT).unwrap().to_be_bytes()[..],
            &[7; LIMIT],
        ]
        .concat();
        let sent = tokio::spawn(async move {
            peer.write_all(&longest).await.unwrap();
        });
        timeout(LONG, client.gone()).await.unwrap();
        sent.await.unwrap();
        assert!(!client.is_flooding());
        assert_eq!(client.message().await.unwrap().len(), LIMIT);
    }

    #[tokio::test]
    async fn what_is_read_of_a_message_stays_where_it_is_once_its_length_is_known() {
        for length in [20usize, 5000, 200_000, LIMIT] {
            let (mut peer, mut client) = pair();
            let announced = u32::try_from(length).unwrap().to_be_bytes();
            peer.write_all(&announced).await.unwrap();
            while client.buffer.len() < 4 {
                client.read().await.unwrap();
            }
            // The rest comes in pieces, and the room for it is made at once.
            let mut places = std::collections::HashSet::new();
            let mut left = length;
            while left > 0 {
                let piece = left.min(1000);
                peer.write_all(&vec![7; piece]).await.unwrap();
                left -= piece;
                while client.buffer.len() < length + 4 - left {
                    client.read().await.unwrap();
                }
                places.insert(client.buffer.as_ptr());
            }
            assert!(places.len() <= 2, "{length}: {}", places.len());
            assert_eq!(client.buffer.capacity(), PIECE.max(length + 4));
            assert_eq!(client.take(length).to_vec(), vec![7; length]);
        }
    }
}
