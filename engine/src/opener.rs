//! Finds who can open a file, and with whose PIN.
//!
//! The stanzas of an age file name its recipients, but not every stanza does. An [`Opener`] finds
//! the identities whose keys may open the file, and asks their tokens in this order: first keys
//! that need no person, then keys that certainly match, then keys that need no PIN.
//!
//! A PIN is sent to a token only to use a key there that opens the file, or may. One PIN for all
//! tokens ([`PinSource::is_one_for_all`]) is the PIN of one of them:
//!
//! | tokens whose key opens the file; if the file names none, tokens whose key may | that PIN is sent to |
//! | --- | --- |
//! | one | it |
//! | several | none |
//!
//! A token that is not attached counts, since the PIN may be its PIN.
//!
//! ```
//! use claviger_engine::opener::{NotOpened, Opened, Opener};
//! use claviger_engine::{EngineId, Node};
//! use claviger_formats::envelope::Sealed;
//! use claviger_token::Call;
//!
//! async fn open(node: &Node, file: &Sealed<&[u8]>) -> Result<Opened, NotOpened> {
//!     let call = Call::unlimited();
//!     Opener::anybody(node, &EngineId::program(), file.stanzas(), &call).await?.open(&call).await
//! }
//! ```
//!
//! [`PinSource::is_one_for_all`]: claviger_token::PinSource::is_one_for_all

use std::collections::VecDeque;
use std::fmt;

use claviger_formats::envelope::{Fit, Stanzas, UnwrappedKey};
use claviger_token::{Call, Error, KeyUse, TokenId};

use crate::node::no_such;
use crate::policy::{self, Operation};
use crate::types::owner_by_name;
use crate::{EngineError, EngineId, Node};

use self::candidates::{blocking, candidates};

mod candidates;

/// The identities that may open a file, in the order in which they are asked.
pub struct Opener {
    node: Node,
    /// The sender of the request.
    asker: EngineId,
    stanzas: Stanzas,
    left: VecDeque<Candidate>,
    /// Those whose token is not attached.
    away: Vec<Away>,
    /// Those that are not asked, since they need a person.
    attended: Vec<Holder>,
    /// The owner of a PIN that was given for all tokens.
    pin_of: PinOf,
    /// Why the first one that was asked could not open it.
    failed: Option<NotOpened>,
    /// Whether anybody could be asked.
    had_candidates: bool,
}

/// An identity that may open a file.
#[derive(Debug, Clone)]
pub struct Candidate {
    who: EngineId,
    engine: EngineId,
    token: TokenId,
    fit: Fit,
    /// Whether a person has to touch or approve, or may have to.
    needs_person: bool,
    needs_pin: bool,
}

/// A file whose header is open.
#[non_exhaustive]
pub struct Opened {
    /// The identity whose key opened it.
    pub who: EngineId,
    /// The key of the payload, for [`Sealed::open`](claviger_formats::envelope::Sealed::open).
    pub file_key: UnwrappedKey,
}

/// Why a file was not opened.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error}")]
#[non_exhaustive]
pub struct NotOpened {
    /// The identity that was asked, if any.
    pub who: Option<EngineId>,
    /// The reason.
    pub error: EngineError,
}

/// An identity whose key may open a file, and where the key is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The identity.
    pub who: EngineId,
    /// The token with its key.
    pub token: TokenId,
    /// Whether the token is attached.
    pub attached: bool,
    /// The reason if it is not known whether it is attached.
    pub unreadable: Option<String>,
}

impl Opened {
    /// A file whose header the key of `who` opened.
    pub fn new(who: EngineId, file_key: UnwrappedKey) -> Self {
        Opened { who, file_key }
    }
}

impl Holder {
    /// An identity with its key on `token`, which is attached.
    pub fn of_attached(who: EngineId, token: TokenId) -> Self {
        Holder {
            who,
            token,
            attached: true,
            unreadable: None,
        }
    }
}

impl Opener {
    /// The identities of this node that may open a file with these stanzas and whose key the policy
    /// lets `asker` use. Their tokens are looked at without a PIN.
    ///
    /// # Errors
    /// [`EngineError::Registry`]; [`EngineError::NotAllowed`] if the policy allows none of them.
    pub async fn anybody(
        node: &Node,
        asker: &EngineId,
        stanzas: &Stanzas,
        call: &Call,
    ) -> Result<Self, EngineError> {
        let (mut here, away) = candidates(node, asker, stanzas, call).await?;
        here.sort_by_key(Candidate::order);
        let pin_of = match node.0.tokens.has_one_pin_for_all(call) {
            true => PinOf::among(&here, &away),
            false => PinOf::WhoeverAsks,
        };
        Ok(Opener::new((node, asker), stanzas, here, away, pin_of))
    }

    /// Only `who`. The request means its token, so that token gets the PIN.
    ///
    /// # Errors
    /// [`EngineError::NotAllowed`] if the policy does not let `asker` use its key;
    /// [`EngineError::IdentityDoesNotExist`]; [`EngineError::CapabilitiesNotAvailable`] if it has
    /// no decryption key; [`Error::DecryptionFailed`] if the file is not for it.
    pub async fn only(
        node: &Node,
        asker: &EngineId,
        who: &EngineId,
        stanzas: &Stanzas,
    ) -> Result<Self, EngineError> {
        let wanted = who.clone();
        let info = blocking(node, move |node| node.registry().identity(&wanted)).await?;
        // Who is denied does not learn what there is.
        let key = info.as_ref().and_then(|info| info.key(KeyUse::Decrypt));
        let access = policy::Permission::Use {
            identity: key.map_or(who, |key| &key.owner),
            operation: Operation::Decrypt,
        };
        node.0.policy.check(asker, access)?;
        let info = info.ok_or(EngineError::IdentityDoesNotExist)?;
        let (Some(key), Some(engine)) = (info.key(KeyUse::Decrypt), &info.decryption_engine) else {
            return Err(EngineError::CapabilitiesNotAvailable);
        };
        let fit = stanzas.fits(&key.public_key);
        // Of a key that was deleted its engine says so.
        if fit == Fit::No && !key.deleted {
            return Err(Error::DecryptionFailed.into());
        }
        let candidate = Candidate {
            who: who.clone(),
            engine: engine.clone(),
            token: key.token.clone(),
            fit,
            needs_person: false,
            needs_pin: true,
        };
        let pin_of = PinOf::WhoeverAsks;
        Ok(Opener::new(
            (node, asker),
            stanzas,
            vec![candidate],
            vec![],
            pin_of,
        ))
    }

    /// The same with only those keys that need no person: nobody has to touch or approve. Whether
    /// somebody is asked for a PIN depends on the call.
    #[must_use]
    pub fn unattended(self) -> Self {
        self.without(|candidate| candidate.needs_person)
    }

    /// The same without those whose keys need a person for a reason that the caller knows.
    #[must_use]
    pub fn without(mut self, needs_person: impl Fn(&Candidate) -> bool) -> Self {
        let (attended, left): (Vec<_>, Vec<_>) = (self.left.into_iter()).partition(needs_person);
        self.attended.extend(attended.iter().map(Candidate::holder));
        self.left = left.into();
        self
    }

    /// Those that are asked, one after the other.
    pub fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.left.iter()
    }

    fn new(
        (node, asker): (&Node, &EngineId),
        stanzas: &Stanzas,
        here: Vec<Candidate>,
        away: Vec<Away>,
        pin_of: PinOf,
    ) -> Self {
        Opener {
            node: node.clone(),
            asker: asker.clone(),
            stanzas: stanzas.clone(),
            had_candidates: !here.is_empty(),
            left: here.into(),
            away,
            attended: Vec::new(),
            pin_of,
            failed: None,
        }
    }

    /// Asks one after another until one opens the file.
    ///
    /// # Errors
    /// [`NotOpened`]; [`Error::DecryptionFailed`] for all that depends on the file.
    pub async fn open(mut self, call: &Call) -> Result<Opened, NotOpened> {
        loop {
            self.next()?;
            if let Some(opened) = self.ask(call).await? {
                return Ok(opened);
            }
        }
    }

    /// The candidate that is asked next, for callers that have something to do on its token before.
    ///
    /// # Errors
    /// If no candidate is left: why the file was not opened.
    pub fn next(&self) -> Result<&Candidate, NotOpened> {
        self.left.front().ok_or_else(|| self.end())
    }

    /// Whether the token of the [next](Opener::next) candidate may get a PIN. If not, work on it
    /// before must not send one either.
    pub fn next_gets_pin(&self) -> bool {
        let next = self.left.front();
        next.is_some_and(|next| self.pin_of.is_for(&next.token))
    }

    /// Asks the [next](Opener::next) candidate. `None`: it does not open the file, or its token is
    /// not available; another one may.
    ///
    /// # Errors
    /// Errors that a person must see before others are asked: a rejected PIN, a rejected request;
    /// [`EngineError::PinForSeveralTokens`].
    pub async fn ask(&mut self, call: &Call) -> Result<Option<Opened>, NotOpened> {
        let Some(candidate) = self.left.pop_front() else {
            return Err(self.end());
        };
        let gets_pin = self.pin_of.is_for(&candidate.token);
        let call = match gets_pin {
            true => call.clone(),
            false => self.node.0.tokens.without_pin(call),
        };
        let Candidate { who, engine, .. } = candidate;
        match self
            .node
            .unwrap_as(&self.asker, (&who, &engine), &self.stanzas, &call)
            .await
        {
            Ok(Some(file_key)) => return Ok(Some(Opened { who, file_key })),
            Ok(None) => {}
            // The PIN that was given is not for it.
            Err(EngineError::Token(Error::PinNeeded { .. })) if !gets_pin => {
                if let PinOf::OneOfSeveral(holders) = &self.pin_of {
                    let holders = holders.clone();
                    return Err(EngineError::PinForSeveralTokens { holders }.into());
                }
            }
            Err(error) => {
                let goes_on = may_go_on(&error);
                let not = NotOpened {
                    who: Some(who),
                    error,
                };
                if !goes_on {
                    return Err(not);
                }
                self.failed.get_or_insert(not);
            }
        }
        Ok(None)
    }

    /// Why the file was not opened, after everybody was asked.
    fn end(&self) -> NotOpened {
        if let Some(failed) = &self.failed {
            return failed.clone();
        }
        if !self.attended.is_empty() {
            let holders = self.attended.clone();
            return EngineError::PersonNeeded { holders }.into();
        }
        let holders = || self.away.iter().map(Away::holder).collect();
        let error = match (self.away.is_empty(), self.had_candidates) {
            (true, true) => Error::DecryptionFailed.into(),
            (true, false) => EngineError::NobodyOpens,
            (false, _) => EngineError::TokensAway { holders: holders() },
        };
        error.into()
    }
}

impl Candidate {
    /// The identity.
    pub fn who(&self) -> &EngineId {
        &self.who
    }

    /// The token with its key.
    pub fn token(&self) -> &TokenId {
        &self.token
    }

    /// The identity whose key it is: another one may be connected to it.
    pub fn owner(&self) -> EngineId {
        owner_by_name(KeyUse::Decrypt, &self.engine.name).unwrap_or_else(|| self.engine.clone())
    }

    /// The order: keys that need no person, keys that certainly match, keys that need no PIN.
    fn order(&self) -> impl Ord + use<> {
        (self.needs_person, self.fit != Fit::Yes, self.needs_pin)
    }

    fn holder(&self) -> Holder {
        Holder {
            who: self.who.clone(),
            token: self.token.clone(),
            attached: true,
            unreadable: None,
        }
    }
}

impl From<EngineError> for NotOpened {
    fn from(error: EngineError) -> Self {
        NotOpened { who: None, error }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.who, self.token)?;
        match (self.attached, &self.unreadable) {
            (true, _) => Ok(()),
            (false, None) => f.write_str(" (not attached)"),
            (false, Some(reason)) => write!(f, " (cannot be read: {reason})"),
        }
    }
}

/// The owner of the node's PIN.
enum PinOf {
    /// The source knows the PIN of each token.
    WhoeverAsks,
    /// It is the PIN of this token.
    One(TokenId),
    /// It is the PIN of one of several tokens, unknown which.
    OneOfSeveral(Vec<Holder>),
}

impl PinOf {
    /// The owner of one PIN: the only token whose key opens the file according to its stanzas, or
    /// else the only one whose key may.
    fn among(here: &[Candidate], away: &[Away]) -> Self {
        let with_pin = || {
            let here = here.iter().filter(|candidate| candidate.needs_pin);
            let here = here.map(|candidate| (&candidate.token, candidate.fit));
            // Whether it wants one shows only when it is attached.
            here.chain(away.iter().map(|away| (&away.token, away.fit)))
        };
        let is_sure = with_pin().any(|(_, fit)| fit == Fit::Yes);
        let mut asked = with_pin().filter(|(_, fit)| !is_sure || *fit == Fit::Yes);
        let first = asked.next().map(|(token, _)| token);
        match first {
            Some(token) if asked.all(|(other, _)| other == token) => PinOf::One(token.clone()),
            _ => {
                let here = here.iter().map(Candidate::holder);
                PinOf::OneOfSeveral(here.chain(away.iter().map(Away::holder)).collect())
            }
        }
    }

    fn is_for(&self, token: &TokenId) -> bool {
        match self {
            PinOf::WhoeverAsks => true,
            PinOf::One(its) => its == token,
            PinOf::OneOfSeveral(_) => false,
        }
    }
}

/// An identity that may open the file and whose token is not attached.
struct Away {
    who: EngineId,
    token: TokenId,
    fit: Fit,
    unreadable: Option<String>,
}

impl Away {
    fn holder(&self) -> Holder {
        Holder {
            who: self.who.clone(),
            token: self.token.clone(),
            attached: false,
            unreadable: self.unreadable.clone(),
        }
    }
}

/// Whether another key may be tried after this error: the token is not available, and no PIN was
/// sent.
fn may_go_on(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Token(
            Error::TokenUnavailable { .. }
                | Error::NoToken { .. }
                | Error::KeyNotFound { .. }
                | Error::PinNeeded { .. }
                | Error::PinLocked { .. }
                | Error::PinFinalTry { .. }
        )
    )
}

impl Node {
    /// Has the Decryption engine `engine` unwrap the stanzas that may be for its key. `None`: there
    /// are none.
    async fn unwrap_as(
        &self,
        asker: &EngineId,
        (who, engine): (&EngineId, &EngineId),
        stanzas: &Stanzas,
        call: &Call,
    ) -> Result<Option<UnwrappedKey>, EngineError> {
        // An entry that is connected to an earlier key of this name opens nothing.
        let found = self.usable_as((asker, who), engine, Operation::Decrypt, call);
        let found = found.await?.ok_or_else(|| no_such(engine))?;
        let by = self.request(asker, &found, Operation::Decrypt, call);
        let unwrapped = found.unwrap(&self.0.tokens, stanzas, by).await;
        self.0.note_move(&found);
        if unwrapped.is_ok() {
            self.resolve_beside(asker, &found);
        }
        unwrapped
    }
}
