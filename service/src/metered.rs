//! Counts each request, and how long it took.

use std::sync::Arc;
use std::time::Instant;

use claviger_client::wire::{
    EngineError, EngineMsg, daemon_request::Request as ToDaemon, engine_msg::Msg, frame::Content,
};

use crate::convert;
use crate::metrics::Metrics;
use crate::replies::Answer;
use crate::request::Asked;
use crate::session::Session;

/// A request that is counted when it is answered.
pub(crate) struct Metered {
    metrics: Arc<Metrics>,
    session: Arc<Session>,
    operation: &'static str,
    /// The engine whose token it needs, if it needs one.
    engine: Option<claviger_engine::EngineId>,
    begun: Instant,
}

impl Metered {
    /// Begins, if requests are counted.
    pub(crate) fn begin(session: &Arc<Session>, asked: &Asked) -> Option<Self> {
        let metrics = session.shared.metrics.as_ref()?;
        let (operation, engine) = match asked {
            Asked::Engine(message) => (of_engine(message), message.target.clone()),
            Asked::Daemon(request) => (request.request.as_ref().map_or("unknown", of_daemon), None),
        };
        Some(Metered {
            metrics: Arc::clone(metrics),
            session: Arc::clone(session),
            operation,
            engine: engine.and_then(|engine| convert::engine_id(engine).ok()),
            begun: Instant::now(),
        })
    }

    pub(crate) fn end(self, answer: &Answer) {
        let took = self.begun.elapsed();
        let token = self
            .engine
            .and_then(|engine| self.session.node.token_of(&engine));
        let outcome = outcome(&answer.first);
        (self.metrics).answered(self.operation, outcome, token.as_ref(), took);
    }
}

fn of_engine(message: &EngineMsg) -> &'static str {
    match &message.msg {
        Some(Msg::RequestGenerateIdentity(_)) => "generate",
        Some(Msg::RequestConnectIdentity(_)) => "connect",
        Some(Msg::RequestDeleteIdentity(_)) => "delete",
        Some(Msg::RequestCommitment(_)) => "sign",
        Some(Msg::RequestDecryption(_)) => "decrypt",
        Some(Msg::RequestEncrypt(_)) => "encrypt",
        Some(Msg::RequestReadsFor(_)) => "reads-for",
        Some(Msg::SubmitReadsForEvidence(_)) => "submit-evidence",
        Some(Msg::QueryReadsForEvidence(_)) => "query-evidence",
        _ => "unknown",
    }
}

fn of_daemon(request: &ToDaemon) -> &'static str {
    match request {
        ToDaemon::Status(_) => "status",
        ToDaemon::ListIdentities(_) => "list-identities",
        ToDaemon::ListTokens(_) => "list-tokens",
        ToDaemon::Unlock(_) => "unlock",
        ToDaemon::Lock(_) => "lock",
        ToDaemon::AddGrant(_) => "add-grant",
        ToDaemon::ListGrants(_) => "list-grants",
        ToDaemon::RemoveGrant(_) => "remove-grant",
        ToDaemon::ImportCertificate(_) => "import-certificate",
        ToDaemon::AttachDevice(_) => "attach-device",
        ToDaemon::DetachDevice(_) => "detach-device",
    }
}

/// `ok`, or the code of the error.
fn outcome(answer: &Content) -> &str {
    match answer {
        Content::Error(error) => &error.code,
        Content::Engine(reply) => match reply.msg.as_ref().and_then(error_of) {
            Some(error) => &error.code,
            None => "ok",
        },
        _ => "ok",
    }
}

fn error_of(reply: &Msg) -> Option<&EngineError> {
    match reply {
        Msg::ReplyGenerateIdentity(reply) => reply.err.as_ref(),
        Msg::ReplyConnectIdentity(reply) => reply.err.as_ref(),
        Msg::ReplyDeleteIdentity(reply) => reply.err.as_ref(),
        Msg::ReplyCommitment(reply) => reply.err.as_ref(),
        Msg::ReplyDecryption(reply) => reply.err.as_ref(),
        Msg::ReplyEncrypt(reply) => reply.err.as_ref(),
        Msg::ReplyReadsFor(reply) => reply.err.as_ref(),
        Msg::ReplySubmitReadsForEvidence(reply) => reply.err.as_ref(),
        Msg::ReplyReadsForEvidence(reply) => reply.err.as_ref(),
        _ => None,
    }
}
