//! The mechanisms of tokens, read once, since they do not change while a process runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use claviger_token::sync::lock;
use cryptoki::context::Pkcs11;
use cryptoki::error::{Error as Ck, RvError};
use cryptoki::mechanism::{MechanismInfo, MechanismType};
use cryptoki::slot::{Slot, TokenInfo};

/// The mechanisms of the tokens of one module.
#[derive(Default)]
pub(crate) struct MechanismCache(Mutex<HashMap<Whose, Arc<Known>>>);

/// Whose mechanisms they are: another token, or another firmware, may come into the slot.
type Whose = (Slot, [String; 5]);

/// What is known of the mechanisms of one token.
#[derive(Default)]
pub(crate) struct Known {
    list: Vec<MechanismType>,
    infos: Mutex<Vec<(MechanismType, Option<MechanismInfo>)>>,
}

impl MechanismCache {
    /// The mechanisms of the token in `slot`, which says `token` of itself.
    ///
    /// # Errors
    /// That of `C_GetMechanismList`; it is asked again the next time.
    pub(crate) fn of(
        &self,
        pkcs11: &Pkcs11,
        slot: Slot,
        token: &TokenInfo,
    ) -> Result<Arc<Known>, Ck> {
        let said = [
            token.manufacturer_id().to_owned(),
            token.model().into(),
            token.serial_number().into(),
            token.label().into(),
            token.firmware_version().to_string(),
        ];
        let whose = (slot, said);
        if let Some(known) = lock(&self.0).get(&whose) {
            return Ok(known.clone());
        }
        let fresh = Arc::new(Known {
            list: pkcs11.get_mechanism_list(slot)?,
            infos: Mutex::default(),
        });
        Ok(lock(&self.0).entry(whose).or_insert(fresh).clone())
    }
}

impl Known {
    /// What the token says of a mechanism, if it has it.
    ///
    /// # Errors
    /// That of `C_GetMechanismInfo`, where it is not that there is no such mechanism.
    pub(crate) fn info(
        &self,
        pkcs11: &Pkcs11,
        slot: Slot,
        mechanism: MechanismType,
    ) -> Result<Option<MechanismInfo>, Ck> {
        if !self.list.contains(&mechanism) {
            return Ok(None);
        }
        let is_it = |entry: &&(MechanismType, _)| entry.0 == mechanism;
        if let Some((_, info)) = lock(&self.infos).iter().find(is_it) {
            return Ok(*info);
        }
        let info = match pkcs11.get_mechanism_info(slot, mechanism) {
            Ok(info) => Some(info),
            Err(Ck::Pkcs11(RvError::MechanismInvalid, _)) => None,
            Err(error) => return Err(error),
        };
        lock(&self.infos).push((mechanism, info));
        Ok(info)
    }
}
