//! Slots, sessions, searches and signatures.

use std::collections::BTreeMap;

use claviger_client::request::{prehash, raw};
use claviger_client::wire::{Identity, StatusReply};
use cryptoki_sys::*;

use crate::daemon::Daemon;
use crate::entry::Done;
use crate::keys::Mechanism;
use crate::objects::PRIVATE;
use crate::tokens::Token;

/// The most bytes of a message that is handed in by and by.
const LONGEST_MESSAGE: usize = 64 << 20;

/// What a process has open.
#[derive(Default)]
pub(crate) struct Sessions {
    /// A slot's number is its place here, counted from 1: it stays as long as the module is
    /// initialised.
    tokens: Vec<Token>,
    was_listed: bool,
    /// Whether no daemon answered when the slots were last listed.
    is_away: bool,
    open: BTreeMap<CK_SESSION_HANDLE, Session>,
    last: CK_SESSION_HANDLE,
}

struct Session {
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    /// What a search has still to give, the last first.
    found: Option<Vec<CK_OBJECT_HANDLE>>,
    signature: Option<Signing>,
}

/// A signature that was begun.
#[derive(Clone)]
pub(crate) struct Signing {
    mechanism: Mechanism,
    message: Vec<u8>,
    /// Whether the message comes by and by.
    in_parts: bool,
}

/// What the daemon is to be asked for.
pub(crate) struct ToSign {
    engine: String,
    data: Vec<u8>,
    is_digest: bool,
    scheme: &'static str,
    length: usize,
}

type Template = Vec<(CK_ATTRIBUTE_TYPE, Vec<u8>)>;

impl Sessions {
    /// Whether the slots were never listed.
    pub(crate) fn is_new(&self) -> bool {
        !self.was_listed
    }

    /// Takes over which identities there are now.
    pub(crate) fn update(&mut self, identities: Vec<Identity>, status: &StatusReply) {
        self.was_listed = true;
        self.is_away = false;
        self.tokens
            .iter_mut()
            .for_each(|token| token.is_there = false);
        for mut now in identities.into_iter().filter_map(Token::of) {
            now.look_at(status);
            match self.tokens.iter_mut().find(|token| token.is_same(&now)) {
                Some(known) => {
                    known.is_there = true;
                    known.look_at(status);
                }
                None => self.tokens.push(now),
            }
        }
    }

    /// Takes over that no daemon answers. Its tokens are not listed, but sessions go on when it is
    /// back.
    pub(crate) fn update_away(&mut self) {
        self.was_listed = true;
        self.is_away = true;
    }

    /// Takes over that the daemon needs a login to a session's token.
    pub(crate) fn log_out(&mut self, handle: CK_SESSION_HANDLE) -> Done {
        let token = self.token_of(handle)?;
        token.is_logged_in = false;
        token.needs_login = true;
        Ok(())
    }

    /// Takes over the certificates of the identity of a session's token.
    ///
    /// # Errors
    /// `CKR_DEVICE_REMOVED`: there is no such identity any more, or it has another key.
    pub(crate) fn update_certificates(
        &mut self,
        handle: CK_SESSION_HANDLE,
        identity: Option<Identity>,
    ) -> Done {
        let token = self.token_of(handle)?;
        match identity.and_then(Token::of) {
            Some(now) if token.is_same(&now) => {
                token.objects = now.objects;
                Ok(())
            }
            _ => {
                token.is_there = false;
                Err(CKR_DEVICE_REMOVED)
            }
        }
    }

    /// The slots, or those with a token.
    pub(crate) fn slots(&self, only_with_token: bool) -> Vec<CK_SLOT_ID> {
        let numbered = (1..).zip(&self.tokens);
        let wanted =
            numbered.filter(|(_, token)| !only_with_token || (token.is_there && !self.is_away));
        wanted.map(|(slot, _)| slot).collect()
    }

    pub(crate) fn token(&self, slot: CK_SLOT_ID) -> Done<&Token> {
        let at = slot.checked_sub(1).map(|at| at as usize);
        let token = at.and_then(|at| self.tokens.get(at));
        token.ok_or(CKR_SLOT_ID_INVALID)
    }

    pub(crate) fn token_mut(&mut self, slot: CK_SLOT_ID) -> Done<&mut Token> {
        let at = slot.checked_sub(1).map(|at| at as usize);
        let token = at.and_then(|at| self.tokens.get_mut(at));
        token.ok_or(CKR_SLOT_ID_INVALID)
    }

    /// The token in a slot, if it is there.
    pub(crate) fn present(&self, slot: CK_SLOT_ID) -> Done<&Token> {
        let token = self.token(slot)?;
        token.is_there.then_some(token).ok_or(CKR_TOKEN_NOT_PRESENT)
    }

    pub(crate) fn count(&self, slot: CK_SLOT_ID) -> CK_ULONG {
        let of_slot = |session: &&Session| session.slot == slot;
        self.open.values().filter(of_slot).count() as CK_ULONG
    }

    pub(crate) fn open(&mut self, slot: CK_SLOT_ID, flags: CK_FLAGS) -> Done<CK_SESSION_HANDLE> {
        self.present(slot)?;
        if flags & CKF_SERIAL_SESSION == 0 {
            return Err(CKR_SESSION_PARALLEL_NOT_SUPPORTED);
        }
        self.last += 1;
        let session = Session {
            slot,
            flags,
            found: None,
            signature: None,
        };
        self.open.insert(self.last, session);
        Ok(self.last)
    }

    pub(crate) fn close(&mut self, handle: CK_SESSION_HANDLE) -> Done {
        let closed = self
            .open
            .remove(&handle)
            .ok_or(CKR_SESSION_HANDLE_INVALID)?;
        self.log_out_without_session(closed.slot)
    }

    pub(crate) fn close_all(&mut self, slot: CK_SLOT_ID) -> Done {
        self.token(slot)?;
        self.open.retain(|_, session| session.slot != slot);
        self.log_out_without_session(slot)
    }

    /// With its last session an application is logged out (PKCS#11 2.40 §5.6).
    fn log_out_without_session(&mut self, slot: CK_SLOT_ID) -> Done {
        if self.count(slot) == 0 {
            self.token_mut(slot)?.is_logged_in = false;
        }
        Ok(())
    }

    fn session(&mut self, handle: CK_SESSION_HANDLE) -> Done<&mut Session> {
        self.open.get_mut(&handle).ok_or(CKR_SESSION_HANDLE_INVALID)
    }

    /// The token of a session.
    pub(crate) fn token_of(&mut self, handle: CK_SESSION_HANDLE) -> Done<&mut Token> {
        let slot = self.session(handle)?.slot;
        let token = self.token_mut(slot)?;
        token.is_there.then_some(token).ok_or(CKR_DEVICE_REMOVED)
    }

    pub(crate) fn info(&mut self, handle: CK_SESSION_HANDLE) -> Done<CK_SESSION_INFO> {
        let &mut Session { slot, flags, .. } = self.session(handle)?;
        let is_rw = flags & CKF_RW_SESSION != 0;
        let state = match (self.token(slot)?.is_logged_in, is_rw) {
            (false, false) => CKS_RO_PUBLIC_SESSION,
            (true, false) => CKS_RO_USER_FUNCTIONS,
            (false, true) => CKS_RW_PUBLIC_SESSION,
            (true, true) => CKS_RW_USER_FUNCTIONS,
        };
        Ok(CK_SESSION_INFO {
            slotID: slot,
            state,
            flags,
            ulDeviceError: 0,
        })
    }

    pub(crate) fn find(&mut self, handle: CK_SESSION_HANDLE, template: &Template) -> Done {
        if self.session(handle)?.found.is_some() {
            return Err(CKR_OPERATION_ACTIVE);
        }
        let objects = &self.token_of(handle)?.objects;
        let fitting = objects
            .handles()
            .filter(|object| objects.fits(*object, template));
        let mut found: Vec<_> = fitting.collect();
        found.reverse();
        self.session(handle)?.found = Some(found);
        Ok(())
    }

    pub(crate) fn found(
        &mut self,
        handle: CK_SESSION_HANDLE,
        most: usize,
    ) -> Done<Vec<CK_OBJECT_HANDLE>> {
        let found = self.session(handle)?.found.as_mut();
        let found = found.ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
        let left = found.len().saturating_sub(most);
        let mut next = found.split_off(left);
        next.reverse();
        Ok(next)
    }

    pub(crate) fn end_search(&mut self, handle: CK_SESSION_HANDLE) -> Done {
        let found = self.session(handle)?.found.take();
        found.map(drop).ok_or(CKR_OPERATION_NOT_INITIALIZED)
    }

    pub(crate) fn begin_signature(
        &mut self,
        handle: CK_SESSION_HANDLE,
        mechanism: CK_MECHANISM_TYPE,
        key: CK_OBJECT_HANDLE,
    ) -> Done {
        if self.session(handle)?.signature.is_some() {
            return Err(CKR_OPERATION_ACTIVE);
        }
        let token = self.token_of(handle)?;
        let known = token.objects.key().mechanism(mechanism);
        let mechanism = known.ok_or(CKR_MECHANISM_INVALID)?;
        match key {
            PRIVATE => {}
            other if token.objects.has(other) => return Err(CKR_KEY_FUNCTION_NOT_PERMITTED),
            _ => return Err(CKR_KEY_HANDLE_INVALID),
        }
        self.session(handle)?.signature = Some(Signing {
            mechanism,
            message: Vec::new(),
            in_parts: false,
        });
        Ok(())
    }

    /// Gives a signature up.
    pub(crate) fn cancel(&mut self, handle: CK_SESSION_HANDLE, flags: CK_FLAGS) -> Done {
        let session = self.session(handle)?;
        if flags & CKF_SIGN != 0 {
            session.signature = None;
        }
        if flags & CKF_FIND_OBJECTS != 0 {
            session.found = None;
        }
        Ok(())
    }

    /// Takes a part of the message.
    pub(crate) fn add(&mut self, handle: CK_SESSION_HANDLE, part: &[u8]) -> Done {
        let session = self.session(handle)?;
        let signing = session.signature.as_mut();
        let signing = signing.ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
        let refusal = match signing.mechanism.is_of_digests {
            true => Some(CKR_FUNCTION_NOT_SUPPORTED),
            false if signing.message.len() + part.len() > LONGEST_MESSAGE => {
                Some(CKR_DATA_LEN_RANGE)
            }
            false => None,
        };
        if let Some(refusal) = refusal {
            session.signature = None;
            return Err(refusal);
        }
        signing.in_parts = true;
        signing.message.extend_from_slice(part);
        Ok(())
    }

    /// The length of the signature that was begun, of a message in parts or at once.
    pub(crate) fn signature_length(
        &mut self,
        handle: CK_SESSION_HANDLE,
        in_parts: bool,
    ) -> Done<usize> {
        let signing = self.session(handle)?.signature.as_ref();
        match signing {
            Some(signing) if in_parts || !signing.in_parts => {}
            Some(_) => return Err(CKR_OPERATION_ACTIVE),
            None => return Err(CKR_OPERATION_NOT_INITIALIZED),
        }
        let token = self.token_of(handle)?;
        Ok(token.objects.key().signature_length())
    }

    /// Ends the signature that was begun: what the daemon is to be asked for. Of two threads that
    /// come here with one session, one gets it.
    pub(crate) fn end_signature(&mut self, handle: CK_SESSION_HANDLE, rest: &[u8]) -> Done<ToSign> {
        let signing = self.session(handle)?.signature.take();
        let signing = signing.ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
        let token = self.token_of(handle)?;
        let key = token.objects.key();
        let is_digest = signing.mechanism.is_of_digests;
        let data = match is_digest {
            true => key.digest(rest)?,
            false => [&signing.message[..], rest].concat(),
        };
        Ok(ToSign {
            engine: token.engine.clone(),
            data,
            is_digest,
            scheme: key.scheme(),
            length: key.signature_length(),
        })
    }
}

impl ToSign {
    /// The signature.
    pub(crate) fn sign(&self, daemon: &Daemon) -> Done<Vec<u8>> {
        let purpose = if self.is_digest { prehash() } else { raw() };
        let signed = daemon.sign(&self.engine, &self.data, purpose)?;
        // A wallet signs something else.
        match signed.scheme == self.scheme && signed.bytes.len() == self.length {
            true => Ok(signed.bytes),
            false => Err(CKR_MECHANISM_INVALID),
        }
    }
}
