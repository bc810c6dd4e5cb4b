//! The engines that a command asks: those of a node in this process, or those of a daemon.

use std::cell::OnceCell;

use claviger_engine::message::{
    RequestCommitment, RequestConnectIdentity, RequestDeleteIdentity, RequestGenerateIdentity,
};
use claviger_engine::{Backend, CommitStreamError, EngineId, IdentityInfo, Node, Registry};
use claviger_token::{Deletion, Signature, TokenId};

use crate::daemon::{Daemon, Known};
use crate::failure::Failure;
use crate::input::Input;
use crate::session::{self, Session};
use crate::token_views::{self, Listed};
use crate::views;

/// The engines that a command asks.
pub(crate) enum Engines<'a> {
    /// Those of this process.
    Here(&'a Session, Node),
    /// Those of a daemon.
    There(&'a Session, &'a Daemon, OnceCell<Box<Registry>>),
}

impl<'a> Engines<'a> {
    /// Those of the daemon that the command uses, or else of a node with the registry that `open`
    /// opens.
    pub(crate) fn of(
        session: &'a Session,
        open: impl FnOnce(&Session) -> Result<Registry, Failure>,
    ) -> Result<Self, Failure> {
        Ok(match session.daemon()? {
            Some(daemon) => Engines::There(session, daemon, OnceCell::new()),
            None => Engines::Here(session, session.node(open(session)?)),
        })
    }

    /// The registry; `None` if it is that of a daemon which may have another home.
    pub(crate) fn registry(&self) -> Result<Option<&Registry>, Failure> {
        match self {
            Engines::Here(_, node) => Ok(Some(node.registry())),
            Engines::There(_, daemon, _) if !daemon.shares_home() => Ok(None),
            Engines::There(session, _, registry) => {
                if registry.get().is_none() {
                    let _ = registry.set(Box::new(session.registry()?));
                }
                Ok(registry.get().map(Box::as_ref))
            }
        }
    }

    /// The identity of this name, if there is one.
    pub(crate) fn find(&self, name: &str) -> Result<Option<(EngineId, IdentityInfo)>, Failure> {
        match self {
            Engines::Here(_, node) => {
                let id = EngineId::local(name);
                let info = node.registry().identity(&id)?;
                Ok(info.map(|info| (id, info)))
            }
            Engines::There(_, daemon, _) => {
                let known = daemon.identity(name)?;
                Ok(known.map(|known| (known.who, known.info)))
            }
        }
    }

    /// An existing identity.
    pub(crate) fn identity(&self, name: &str) -> Result<(EngineId, IdentityInfo), Failure> {
        self.find(name)?.ok_or_else(|| session::no_identity(name))
    }

    /// An existing identity, and the first account of its home if its keys are derived.
    pub(crate) fn known(&self, name: &str) -> Result<Known, Failure> {
        match self {
            Engines::Here(_, node) => {
                let (who, info) = session::identity(node.registry(), name)?;
                Ok(Known {
                    first_account: views::first_account(node.registry(), &info),
                    who,
                    info,
                })
            }
            Engines::There(_, daemon, _) => {
                (daemon.identity(name)?).ok_or_else(|| session::no_identity(name))
            }
        }
    }

    /// Whether a contact has this name.
    pub(crate) fn has_contact(&self, name: &str) -> Result<bool, Failure> {
        Ok(match self.registry()? {
            Some(registry) => registry.contact(name)?.is_some(),
            None => false,
        })
    }

    /// Resolves what was interrupted on `tokens`, as [`Session::resolve_intents`]; a daemon does so
    /// by itself.
    pub(crate) async fn resolve_intents(&self, tokens: &[TokenId]) -> Result<(), Failure> {
        match self {
            Engines::Here(session, node) => session.resolve_intents(node, tokens).await,
            Engines::There(..) => Ok(()),
        }
    }

    /// Warns of what was interrupted.
    pub(crate) fn warn_open(&self) -> Result<(), Failure> {
        match self.registry()? {
            Some(registry) => session::warn_open_in(registry),
            None => Ok(()),
        }
    }

    /// The attached tokens that fit `backend`, or all.
    pub(crate) async fn tokens(&self, backend: Option<&str>) -> Result<Vec<Listed>, Failure> {
        match self {
            Engines::Here(session, node) => {
                let who = EngineId::program();
                Ok(node.tokens(&who, backend, &session.call()).await?)
            }
            Engines::There(_, daemon, _) => token_views::from_json(&daemon.tokens(backend)?.json),
        }
    }

    /// A backend, if these engines can serve it.
    pub(crate) fn device(&self, backend: &str) -> Result<Backend, Failure> {
        match self {
            Engines::Here(..) => session::device(backend),
            Engines::There(..) => session::lasting(backend),
        }
    }

    pub(crate) async fn generate(
        &self,
        who: &EngineId,
        request: RequestGenerateIdentity,
    ) -> Result<(), Failure> {
        match self {
            Engines::Here(session, node) => {
                node.generate(who, request, &session.call()).await?;
                Ok(())
            }
            Engines::There(_, daemon, _) => daemon.generate(who, &request),
        }
    }

    pub(crate) async fn connect(
        &self,
        who: &EngineId,
        request: RequestConnectIdentity,
    ) -> Result<(), Failure> {
        match self {
            Engines::Here(session, node) => {
                node.connect(who, request, &session.call()).await?;
                Ok(())
            }
            Engines::There(_, daemon, _) => daemon.connect(who, &request),
        }
    }

    pub(crate) async fn delete(
        &self,
        who: &EngineId,
        info: &IdentityInfo,
    ) -> Result<Vec<Deletion>, Failure> {
        match self {
            Engines::Here(session, node) => {
                let request = RequestDeleteIdentity {
                    external_identity: who.clone(),
                    backend: info.backend.clone(),
                };
                Ok(node.delete(who, request, &session.call()).await?)
            }
            Engines::There(_, daemon, _) => daemon.delete(who),
        }
    }

    pub(crate) async fn commit_for(
        &self,
        who: &EngineId,
        engine: &EngineId,
        request: RequestCommitment,
    ) -> Result<Signature, Failure> {
        match self {
            Engines::Here(session, node) => {
                let call = session.call();
                Ok(node.commit_for(who, engine, request, &call).await?)
            }
            Engines::There(_, daemon, _) => daemon.commit_for(engine, &request),
        }
    }

    pub(crate) async fn commit_stream(
        &self,
        who: &EngineId,
        engine: &EngineId,
        message: &mut Input,
    ) -> Result<Signature, Failure> {
        match self {
            Engines::Here(session, node) => {
                let call = session.call();
                let signed = node.commit_stream(who, engine, &mut *message, &call).await;
                signed.map_err(|error| match error {
                    CommitStreamError::Message(error) => message.failed(&error),
                    CommitStreamError::Engine(error) => error.into(),
                })
            }
            Engines::There(_, daemon, _) => daemon.commit_stream(engine, message),
        }
    }
}
