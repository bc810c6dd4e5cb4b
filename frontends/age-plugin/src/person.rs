//! The user of the age program: what the plugin tells them and asks them, through that program.

use std::cell::RefCell;
use std::io::{BufRead, Write};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use claviger_formats::envelope::Stanza;
use zeroize::Zeroizing;

use crate::peer::{Broken, Peer, Reply};

/// Who can be told and asked something.
pub trait Person {
    /// Shows a message, where it can be shown.
    fn tell(&self, message: &str);

    /// Asks for a secret; `None` if there is none, as without a terminal.
    fn secret(&self, message: &str) -> Option<Zeroizing<Vec<u8>>>;

    /// Asks whether to go on; `None` if nobody can be asked.
    fn confirm(&self, message: &str, yes: &str, no: &str) -> Option<bool>;

    /// Whether nobody is there any more.
    fn is_gone(&self) -> bool;
}

/// The user of a [`Peer`], in a phase that this side controls.
pub struct User<'a, R, W>(RefCell<State<'a, R, W>>);

struct State<'a, R, W> {
    peer: &'a mut Peer<R, W>,
    broken: Option<Broken>,
}

impl<'a, R: BufRead, W: Write> User<'a, R, W> {
    /// The user of this program.
    pub fn of(peer: &'a mut Peer<R, W>) -> Self {
        let broken = None;
        User(RefCell::new(State { peer, broken }))
    }

    /// Sends a command that only the program has to do with.
    ///
    /// # Errors
    /// [`Broken`], also if an earlier command found that.
    pub fn send<S: AsRef<str>>(
        &self,
        command: &str,
        arguments: &[S],
        body: &[u8],
    ) -> Result<(), Broken> {
        // A program that does not know it does without.
        let _ = self.ask(command, arguments, body);
        self.0.borrow_mut().broken.take().map_or(Ok(()), Err)
    }

    /// Ends the phase.
    ///
    /// # Errors
    /// [`Broken`], also if an earlier command found that.
    pub fn done(self) -> Result<(), Broken> {
        let State { peer, broken } = self.0.into_inner();
        match broken {
            Some(broken) => Err(broken),
            None => peer.done(),
        }
    }

    /// What the program answers with `ok`. After the conversation has broken it is not asked any
    /// more.
    fn ask<S: AsRef<str>>(&self, command: &str, arguments: &[S], body: &[u8]) -> Option<Stanza> {
        let mut state = self.0.borrow_mut();
        if state.broken.is_some() {
            return None;
        }
        match state.peer.ask(command, arguments, body) {
            Ok(Reply::Ok(answer)) => Some(answer),
            Ok(Reply::Fail | Reply::Unsupported) => None,
            Err(broken) => {
                state.broken = Some(broken);
                None
            }
        }
    }
}

impl<R: BufRead, W: Write> Person for User<'_, R, W> {
    fn tell(&self, message: &str) {
        self.ask::<&str>("msg", &[], clean(message).as_bytes());
    }

    fn secret(&self, message: &str) -> Option<Zeroizing<Vec<u8>>> {
        let answer = self.ask::<&str>("request-secret", &[], clean(message).as_bytes())?;
        let secret = Zeroizing::new(answer.body);
        (!secret.is_empty()).then_some(secret)
    }

    fn confirm(&self, message: &str, yes: &str, no: &str) -> Option<bool> {
        let buttons = [yes, no].map(|text| BASE64_STANDARD_NO_PAD.encode(text));
        let answer = self.ask("confirm", &buttons, clean(message).as_bytes())?;
        match answer.args.first()?.as_str() {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        }
    }

    fn is_gone(&self) -> bool {
        self.0.borrow().broken.is_some()
    }
}

/// A text without what a terminal would not show as it is: a token's label comes from its token.
pub(crate) fn clean(text: &str) -> String {
    let shown = |c: char| match c.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => c,
    };
    text.chars().map(shown).collect()
}
