//! A transaction that outlasts the operation that began it.
//!
//! Most callers open a card for one operation and close it. So the transaction of the opening
//! stays for what comes next: no other program comes in between, and nothing is checked twice.
//! Other programs wait no longer for it than for any other transaction: it ends after
//! [`OPERATIONS`] operations, or when none comes within [`IDLE`].
//!
//! A transaction borrows its connection to the card. So a thread keeps both and passes commands
//! on.
//!
//! PC/SC waits without a limit for the end of another program's transaction, in nearly every
//! function. So a request that has a deadline, or can be given up, waits for this thread instead.
//! When the request is over the thread still waits, and whoever wants the card next waits for the
//! same thread: there is one for each card, however many requests gave up.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use claviger_token::Call;
use zeroize::Zeroizing;

use crate::apdu::{Lost, Transport};
use crate::error::Fault;
use crate::reader::Link;

/// How long a transaction stays that nobody uses. libpcsclite looks every 100 ms whether
/// another program's transaction is over, so a shorter one is not over sooner for others.
pub(crate) const IDLE: Duration = Duration::from_millis(100);
/// How many operations the transaction of an opening is good for: to find a key, to use it,
/// and to use it again where the first try sent nothing. Closing is one more.
pub(crate) const OPERATIONS: u8 = 3;
/// So often it is looked whether the call was given up.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What the thread is told.
enum Ask {
    /// An operation begins.
    Begin,
    Transmit(Zeroizing<Vec<u8>>),
    /// The operation is over.
    Pause,
    /// The transaction ends with a reset.
    Reset,
}

/// A reply may be a secret.
type Answer = Result<Zeroizing<Vec<u8>>, Lost>;

/// A card whose transaction goes on.
pub(crate) struct Held {
    /// None once it is over.
    asks: Option<SyncSender<Ask>>,
    answers: Receiver<Answer>,
    thread: Option<JoinHandle<Option<Box<dyn Link>>>>,
    operations: u8,
    /// Whether it is known that the transaction began.
    has_begun: bool,
    /// Whether it goes on after the operation that it was begun for.
    pub(crate) stays: bool,
}

/// What was waited for in vain, for who comes next.
pub(crate) type Pending = Option<Held>;

/// Begins a transaction with the card to which `reach` leads, and waits for that as long as
/// `call` lasts.
///
/// # Errors
/// As `reach` and [`Link::begin`]; what [`Call::check`] says.
pub(crate) fn begin_in_time(
    pending: &mut Pending,
    reach: impl Fn() -> Result<Box<dyn Link>, Lost> + Clone + Send + 'static,
    call: &Call,
) -> Result<Held, Fault> {
    let mut left = pending.take();
    loop {
        let was_pending = left.is_some();
        let mut held = match left.take() {
            Some(held) => held,
            None => Held::begin(reach.clone()).map_err(Fault::Lost)?,
        };
        match held.wait(call) {
            Ok(true) => return Ok(held),
            Err(over @ Fault::Ours(_)) => {
                *pending = Some(held);
                return Err(over);
            }
            Err(fault) if !was_pending => return Err(fault),
            // It is over, or the card has gone since.
            Ok(false) | Err(_) => call.check()?,
        }
    }
}

impl Held {
    /// Begins a transaction with the card to which `reach` leads. The first operation may begin
    /// when it was [waited for](Held::wait): see [`Held::turn`].
    ///
    /// # Errors
    /// Where there is no thread for it.
    pub(crate) fn begin(
        reach: impl FnOnce() -> Result<Box<dyn Link>, Lost> + Send + 'static,
    ) -> Result<Held, Lost> {
        let (asks, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("card".into())
            .spawn(move || match reach() {
                Ok(mut link) => {
                    keep(&mut *link, &asked, &answer);
                    Some(link)
                }
                Err(lost) => {
                    // Who asked may have gone.
                    let _ = answer.send(Err(lost));
                    None
                }
            })
            .map_err(Lost::new)?;
        Ok(Held {
            asks: Some(asks),
            answers,
            thread: Some(thread),
            operations: 0,
            has_begun: false,
            stays: false,
        })
    }

    /// Waits until the transaction has begun, as long as `call` lasts. `false`: it began while
    /// nobody waited for it, and is over.
    ///
    /// # Errors
    /// As [`Link::begin`]; what [`Call::check`] says, and then it still begins.
    pub(crate) fn wait(&mut self, call: &Call) -> Result<bool, Fault> {
        while !self.has_begun {
            match self.answers.recv_timeout(call.at_most(LOOK_AGAIN)) {
                Ok(answer) => {
                    self.has_begun = true;
                    answer.map_err(Fault::Lost)?;
                }
                Err(RecvTimeoutError::Timeout) => call.check()?,
                Err(RecvTimeoutError::Disconnected) => return Err(Fault::Lost(over())),
            }
        }
        Ok(self.is_on())
    }

    /// Whether it was waited for with success.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether the transaction is still there, and good for one more operation, which
    /// begins.
    pub(crate) fn resumes(&mut self) -> bool {
        self.operations < OPERATIONS && {
            self.operations += 1;
            self.is_on()
        }
    }

    /// Whether the transaction is still there: then its last operation begins.
    pub(crate) fn is_on(&mut self) -> bool {
        self.ask(Ask::Begin).is_ok()
    }

    /// The way for the operation that was begun.
    pub(crate) fn turn(&mut self) -> Turn<'_> {
        Turn(self)
    }

    /// Ends the transaction, and gives the way to the card back.
    pub(crate) fn end(mut self) -> Option<Box<dyn Link>> {
        self.join()
    }

    fn join(&mut self) -> Option<Box<dyn Link>> {
        // The thread ends when nobody can ask it any more.
        self.asks = None;
        // If it panicked, the way to the card is lost, and it is looked for.
        self.thread.take()?.join().ok()?
    }

    fn ask(&self, ask: Ask) -> Answer {
        let asks = self.asks.as_ref().ok_or_else(over)?;
        asks.send(ask).map_err(|_| over())?;
        self.answers.recv().map_err(|_| over())?
    }
}

fn over() -> Lost {
    Lost::new("the transaction is over")
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nobody knows when one ends that still waits for others; it ends by itself.
        if self.has_begun {
            self.join();
        }
    }
}

/// The way to a card during one operation of a transaction that goes on.
pub(crate) struct Turn<'a>(&'a mut Held);

impl Transport for Turn<'_> {
    fn transmit(&mut self, apdu: &[u8]) -> Result<Vec<u8>, Lost> {
        let mut reply = self.0.ask(Ask::Transmit(Zeroizing::new(apdu.to_vec())))?;
        Ok(std::mem::take(&mut *reply))
    }

    fn reset(self: Box<Self>) -> Result<(), Lost> {
        self.0.ask(Ask::Reset).map(drop)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // It may be over by now.
        let _ = self.0.ask(Ask::Pause);
    }
}

/// Keeps a transaction, and passes commands on. Between operations it waits for [`IDLE`],
/// within one as long as that lasts.
fn keep(link: &mut dyn Link, asked: &Receiver<Ask>, answer: &SyncSender<Answer>) {
    let mut transport = match link.begin() {
        Ok(transport) => transport,
        Err(lost) => {
            // Who asked may have gone.
            let _ = answer.send(Err(lost));
            return;
        }
    };
    let mut at_work = false;
    let mut said = Ok(Zeroizing::default());
    while answer.send(said).is_ok() {
        let next = match at_work {
            true => asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => asked.recv_timeout(IDLE),
        };
        said = match next {
            Ok(Ask::Begin) => {
                at_work = true;
                Ok(Zeroizing::default())
            }
            Ok(Ask::Pause) => {
                at_work = false;
                Ok(Zeroizing::default())
            }
            Ok(Ask::Transmit(apdu)) => transport.transmit(&apdu).map(Zeroizing::new),
            Ok(Ask::Reset) => {
                let _ = answer.send(transport.reset().map(|()| Zeroizing::default()));
                return;
            }
            Err(_) => return,
        };
    }
}
