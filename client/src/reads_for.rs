//! Requests to the Reads For engine.

use crate::answer::{Answer, unexpected};
use crate::error::Error;
use crate::request::{Request, local, refused};
use crate::wire::{self, EngineId, EngineMsg, engine_msg::Msg, frame::Content};

/// Does one identity read for another?
#[derive(Debug, Clone)]
pub struct ReadsFor<'a> {
    /// Who would read.
    pub a: &'a EngineId,
    /// For whom.
    pub b: &'a EngineId,
}

impl Request for ReadsFor<'_> {
    type Reply = bool;

    fn content(&self, _: bool) -> Content {
        engine(Msg::RequestReadsFor(wire::RequestReadsFor {
            a: Some(self.a.clone()),
            b: Some(self.b.clone()),
        }))
    }

    fn reply(&self, answer: Answer) -> Result<bool, Error> {
        match answer.engine()?.0.msg {
            Some(Msg::ReplyReadsFor(reply)) => {
                refused(reply.err)?;
                Ok(reply.reads_for)
            }
            _ => Err(unexpected()),
        }
    }
}

/// Store evidence.
#[derive(Debug, Clone)]
pub struct SubmitEvidence<'a> {
    /// A grant as `claviger reads-for export` writes it.
    pub evidence: &'a [u8],
}

impl Request for SubmitEvidence<'_> {
    type Reply = ();

    fn content(&self, _: bool) -> Content {
        let evidence = self.evidence.to_vec();
        engine(Msg::SubmitReadsForEvidence(wire::SubmitReadsForEvidence {
            evidence,
        }))
    }

    fn reply(&self, answer: Answer) -> Result<(), Error> {
        match answer.engine()?.0.msg {
            Some(Msg::ReplySubmitReadsForEvidence(reply)) => refused(reply.err),
            _ => Err(unexpected()),
        }
    }
}

/// The evidence about an identity.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    /// The identity.
    pub about: &'a EngineId,
}

impl Request for Evidence<'_> {
    type Reply = Vec<Vec<u8>>;

    fn content(&self, _: bool) -> Content {
        let external_identity = Some(self.about.clone());
        engine(Msg::QueryReadsForEvidence(wire::QueryReadsForEvidence {
            external_identity,
        }))
    }

    fn reply(&self, answer: Answer) -> Result<Vec<Vec<u8>>, Error> {
        let mut evidence = Vec::new();
        for reply in answer.engines() {
            match reply? {
                Msg::ReplyReadsForEvidence(reply) => {
                    refused(reply.err)?;
                    evidence.extend(reply.evidence);
                }
                _ => return Err(unexpected()),
            }
        }
        Ok(evidence)
    }
}

fn engine(msg: Msg) -> Content {
    Content::Engine(EngineMsg {
        target: Some(local("reads_for")),
        mailbox: None,
        identity: String::new(),
        data_follows: false,
        msg: Some(msg),
    })
}
