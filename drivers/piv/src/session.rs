//! The card during one transaction: the PIN, and the management key's rights.

use claviger_token::{Error, Pin, PinTurn, PinVerdict, RefusedPins, TriesLeft};
use zeroize::Zeroizing;

use crate::administrator::Administrator;
use crate::card::{Card, MANAGEMENT, Metadata, Tries, Verdict};
use crate::error::Fault;
use crate::field::Field;
use crate::firmware::{Feature, Make};
use crate::identity::Identity;
use crate::management::{self, Cipher};

/// The card during one transaction, and what is known of it.
pub(crate) struct Session<'a> {
    pub(crate) card: Card<'a>,
    pub(crate) identity: &'a Identity,
    pub(crate) field: &'a Field,
    pub(crate) verified: &'a mut bool,
    pub(crate) pin: &'a mut Option<Pin>,
    pub(crate) changes: &'a mut u64,
    /// Whether the management key was given.
    pub(crate) administered: &'a mut bool,
    /// Whether the application was selected in this transaction: then a refusal is
    /// meant.
    pub(crate) fresh: bool,
    /// How many tries the PIN has, if that was just looked at in this transaction.
    pub(crate) tries: Option<TriesLeft>,
    /// Who says whose turn it is to send a PIN.
    pub(crate) turns: &'a dyn RefusedPins,
    /// Our turn, where that was waited for before the transaction began.
    pub(crate) turn: Option<Box<dyn PinTurn + 'a>>,
}

impl<'a> Session<'a> {
    /// Counts how often keys may have changed.
    pub(crate) fn changes(&self) -> u64 {
        *self.changes
    }

    /// Whether the PIN counts, as far as we know.
    pub(crate) fn is_verified(&self) -> bool {
        *self.verified
    }

    /// What the card is, as far as it is known by now.
    pub(crate) fn make(&self) -> Make {
        self.field.known(self.identity)
    }

    /// What the card is, with a look at who made it.
    pub(crate) fn proven_make(&mut self) -> Result<Make, Fault> {
        self.field.prove(&mut self.card, self.identity)
    }

    pub(crate) fn note_change(&mut self) {
        *self.changes += 1;
    }

    /// How many tries are left; refuses where a wrong PIN would lock the card.
    pub(crate) fn check_tries(&mut self, last_try: bool) -> Result<TriesLeft, Fault> {
        let token = self.identity.id.clone();
        let mut tries = self.card.tries()?;
        if tries == Tries::Verified {
            self.card.forget_pin()?;
            tries = self.card.tries()?;
        }
        match tries {
            Tries::Left(0) => Err(Error::PinLocked { token }.into()),
            Tries::Left(1) if !last_try => Err(Error::PinFinalTry { token }.into()),
            Tries::Left(left) => Ok(TriesLeft::Exactly(left)),
            // A card that does not forget; it does not tell either.
            Tries::Verified => Ok(TriesLeft::Unknown),
        }
    }

    /// Gives a PIN to the card, unless it was refused before or would be the last.
    pub(crate) fn give_pin(&mut self, pin: &Pin, last_try: bool) -> Result<(), Fault> {
        let mut turn = self.turn()?;
        let tries = match self.tries.take() {
            Some(tries) => tries,
            None => self.check_tries(last_try)?,
        };
        turn.begin(pin, tries)?;
        self.send_pin(pin, turn)
    }

    /// [`Session::give_pin`] for a person who decided to send it though it is not known what
    /// became of the last one.
    pub(crate) fn give_pin_anyway(&mut self, pin: &Pin, last_try: bool) -> Result<(), Fault> {
        let mut turn = self.turn()?;
        let tries = self.check_tries(last_try)?;
        turn.begin_anyway(pin, tries)?;
        self.send_pin(pin, turn)
    }

    /// Our turn to send a PIN, if nobody has to be waited for: they may wait for the card.
    fn turn(&mut self) -> Result<Box<dyn PinTurn + 'a>, Fault> {
        match self.turn.take() {
            Some(turn) => Ok(turn),
            None => (self.turns.turn_at_once(&self.identity.id)?).ok_or(Fault::NotOurTurn),
        }
    }

    fn send_pin(&mut self, pin: &Pin, turn: Box<dyn PinTurn + '_>) -> Result<(), Fault> {
        let token = self.identity.id.clone();
        let left = match self.card.verify(pin) {
            Ok(Verdict::Accepted) => {
                turn.end(pin, PinVerdict::Accepted);
                *self.verified = true;
                *self.pin = Some(pin.clone());
                return Ok(());
            }
            Ok(Verdict::Refused(left)) => left,
            Err(fault) => {
                // The deadline passed before it was sent. Else no answer came, and how many
                // tries are left says next time whether that cost one.
                if let Fault::Ours(_) = fault {
                    turn.end(pin, PinVerdict::NotJudged);
                }
                return Err(fault);
            }
        };
        turn.end(pin, PinVerdict::Refused);
        (*self.verified, *self.pin) = (false, None);
        Err(Fault::Ours(match left {
            Some(0) => Error::PinLocked { token },
            left => Error::PinWrong {
                token,
                tries: left.map_or(TriesLeft::Unknown, TriesLeft::Exactly),
            },
        }))
    }

    /// Makes the PIN count, and says whether that took anything.
    pub(crate) fn verify(&mut self) -> Result<bool, Fault> {
        if *self.verified {
            return Ok(false);
        }
        let pin = self.retained()?;
        self.give_pin(&pin, false)?;
        Ok(true)
    }

    /// Makes the PIN count for just the next operation.
    pub(crate) fn verify_for_one(&mut self) -> Result<(), Fault> {
        if !self.verify()? {
            // The card accepted it in this session, so a try is not at risk; but
            // another application may be selected, which must not see it.
            match self.card.tries()? {
                Tries::Verified => {}
                Tries::Left(_) => {
                    *self.verified = false;
                    return self.verify().map(drop);
                }
            }
            let pin = self.retained()?;
            // It counts at this moment, and the tries are not shown meanwhile: to write
            // down before that it is sent would say nothing.
            let turn = self.turn()?;
            self.send_pin(&pin, turn)?;
        }
        Ok(())
    }

    fn retained(&self) -> Result<Pin, Fault> {
        self.pin.clone().ok_or_else(|| {
            Fault::Ours(Error::PinNeeded {
                token: self.identity.id.clone(),
            })
        })
    }

    /// Does `work` with the rights of the card administrator. They end with a SELECT, or,
    /// where that ends nothing, with the transaction.
    pub(crate) fn administer<T>(
        &mut self,
        by: &Administrator,
        work: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let done = self.authenticate(by).and_then(|()| work(self));
        if let Err(Fault::Lost(_)) = done {
            // It may have kept its power, and the rights: the transaction ends with a reset.
            return done;
        }
        let ends = self.make().select_ends_rights();
        if ends == Some(false) {
            return done;
        }
        let card = &mut self.card;
        let pin_counted = ends.is_none() && counts(card);
        // And with them the PIN's.
        *self.verified = false;
        match card.in_any_case(|card| card.select()) {
            // Of what the PIN showed to end, the administrator's rights are a part.
            Ok(_) if ends == Some(true) || (pin_counted && !counts(card)) => {
                *self.administered = false;
            }
            Ok(_) => {}
            // It is done, whatever becomes of the card now.
            Err(fault) => tracing::debug!(?fault, "the management session was not ended"),
        }
        done
    }

    fn authenticate(&mut self, by: &Administrator) -> Result<(), Fault> {
        let metadata = match self.make().has(Feature::Metadata) {
            true => self.card.metadata(MANAGEMENT)?,
            false => None,
        };
        let cipher = match &metadata {
            None => Cipher::Tdes,
            Some(Metadata {
                algorithm: None, ..
            }) => Cipher::Tdes,
            Some(Metadata {
                algorithm: Some(id),
                ..
            }) => Cipher::from_id(*id)
                .ok_or_else(|| Fault::malformed("GET METADATA", "an unknown management key"))?,
        };
        let is_default = metadata.and_then(|metadata| metadata.default);
        let token = &self.identity.id;
        if let Some(key) = &by.key {
            *self.administered = true;
            let done = management::authenticate(&mut self.card, cipher, key, token);
            by.note(token, done.is_ok());
            return done;
        }
        let protected = match self.card.management_key_is_protected()? {
            true => {
                self.verify()?;
                self.card.protected_management_key()?
            }
            false => None,
        };
        let key = match protected {
            Some(key) => key,
            None if by.may_try_default && is_default != Some(false) => {
                Zeroizing::new(management::FACTORY_DEFAULT.to_vec())
            }
            None => {
                let token = token.clone();
                return Err(Fault::Ours(Error::ManagementKeyNeeded { token }));
            }
        };
        *self.administered = true;
        management::authenticate(&mut self.card, cipher, &key, token)
    }
}

/// Whether the PIN counts at this moment, as far as the card says.
fn counts(card: &mut Card<'_>) -> bool {
    card.in_any_case(|card| card.tries())
        .is_ok_and(|tries| tries == Tries::Verified)
}
