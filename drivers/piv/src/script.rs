//! A card with scripted replies, for tests.

use std::collections::VecDeque;

use crate::apdu::{Lost, Transport};

/// Replies in order, each to the command that is expected, if one is.
#[derive(Default)]
pub(crate) struct Script {
    steps: VecDeque<(Option<Vec<u8>>, Vec<u8>)>,
    always: Option<Vec<u8>>,
    pub(crate) sent: Vec<Vec<u8>>,
}

impl Script {
    pub(crate) fn always(reply: &[u8]) -> Self {
        Script {
            always: Some(reply.into()),
            ..Script::default()
        }
    }

    pub(crate) fn expect(&mut self, command: &[u8], reply: &[u8]) {
        self.steps.push_back((Some(command.into()), reply.into()));
    }

    pub(crate) fn expect_any(&mut self, reply: &[u8]) {
        self.steps.push_back((None, reply.into()));
    }

    pub(crate) fn finish(&self) {
        assert!(self.steps.is_empty(), "not asked: {:02x?}", self.steps);
    }
}

impl Transport for Script {
    fn transmit(&mut self, apdu: &[u8]) -> Result<Vec<u8>, Lost> {
        self.sent.push(apdu.into());
        match (self.steps.pop_front(), &self.always) {
            (Some((expected, reply)), _) => {
                if let Some(expected) = expected {
                    assert_eq!(expected, apdu, "{expected:02x?} expected, not {apdu:02x?}");
                }
                Ok(reply)
            }
            (None, Some(reply)) => Ok(reply.clone()),
            (None, None) => Err(Lost::new("the script is over")),
        }
    }

    fn reset(self: Box<Self>) -> Result<(), Lost> {
        Err(Lost::new("a script is not reset"))
    }
}
