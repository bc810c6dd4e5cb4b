//! An open token and its keys.

use std::sync::Arc;
use std::time::Duration;

use claviger_token::agreement;
use claviger_token::sync::lock;
use claviger_token::{
    Call, Decryptor, Deletion, Derives, Error, GeneratedKey, KeyRef, KeySpec, KeyUse, NewKey,
    Protection, PublicKey, Secret, Signature, SignatureScheme, Signer, SlotId, SlotInfo, Token,
    TokenId, TokenInfo, Unfinished, Unwrap,
};

use crate::ethereum::{self, Known, LONGEST_MESSAGE};
use crate::port::Session;
use crate::slot::{Accounts, Kind, Slot};
use crate::wait::Wait;
use crate::wallet::{Use, Wallet, read};

/// How long it may take to look at a key where nobody can be told to do anything.
const LOOK: Duration = Duration::from_secs(10);

/// An open token.
pub(crate) struct LedgerToken {
    wallet: Arc<Wallet>,
    info: TokenInfo,
    /// What the device showed of itself.
    known: Known,
    /// Those for the keys that are generated.
    accounts: Accounts,
}

impl Token for LedgerToken {
    fn info(&self) -> &TokenInfo {
        &self.info
    }

    fn slots(&self, call: &Call) -> Result<Vec<SlotInfo>, Error> {
        call.check()?;
        self.wallet.slots(&self.known, self.accounts.named(), call)
    }

    /// The keys of one call are of one account where they are of different kinds: the
    /// first of which neither slot is taken.
    fn free_slots(
        &self,
        specs: &[KeySpec],
        taken: &[SlotId],
        call: &Call,
    ) -> Result<Vec<SlotId>, Error> {
        call.check()?;
        let kinds: Vec<Kind> = specs
            .iter()
            .map(|spec| self.kind(*spec))
            .collect::<Result<_, _>>()?;
        let used = lock(&self.wallet.used).clone();
        let free = |account: &u32| {
            Slot::of(*account).iter().all(|slot| {
                !taken.contains(&slot.id()) && !used.get(slot).is_some_and(|used| used.live)
            })
        };
        let mut accounts = self.accounts.range().filter(free);
        let mut chosen: Vec<Slot> = Vec::with_capacity(kinds.len());
        for kind in kinds {
            let has_room = |slot: &&Slot| {
                let other = Slot {
                    account: slot.account,
                    kind,
                };
                !chosen.contains(&other)
            };
            let begun = chosen.iter().find(has_room).map(|slot| slot.account);
            let account = begun.or_else(|| accounts.next());
            let account = account.ok_or_else(|| match self.accounts.named() {
                Some(account) => self.wallet.occupied(Slot { account, kind }),
                None => Error::TokenFull {
                    token: self.info.id.clone(),
                },
            })?;
            chosen.push(Slot { account, kind });
        }
        Ok(chosen.into_iter().map(Slot::id).collect())
    }

    /// Reads the public key: the device derives the private one whenever it is used.
    /// There is no place for a label.
    fn generate(
        &self,
        &NewKey { slot, spec, .. }: &NewKey<'_>,
        call: &Call,
    ) -> Result<GeneratedKey, Error> {
        let kind = self.kind(spec)?;
        call.check()?;
        let slot = Slot::parse(slot)?;
        let is_live = |used: &Use| used.live;
        if lock(&self.wallet.used).get(&slot).is_some_and(is_live) {
            return Err(self.wallet.occupied(slot));
        }
        if slot.kind != kind {
            return Err(Error::BadBackend {
                backend: slot.to_string(),
                reason: format!("this slot is for {}", slot.kind.spec()),
            });
        }
        let public_key = self.wallet.public_key(slot, call)?;
        let mut used = lock(&self.wallet.used);
        let used = used.entry(slot).or_default();
        // Another thread was quicker.
        if std::mem::replace(&mut used.live, true) {
            return Err(self.wallet.occupied(slot));
        }
        // It is derived inside the secure element and never leaves it.
        Ok(GeneratedKey::new(public_key, Protection::FULL))
    }

    /// There is no place for a label.
    fn name(&self, _: &KeyRef, _label: &str, call: &Call) -> Result<(), Error> {
        call.check()
    }

    /// The device is not asked: there is nothing on it that could be destroyed.
    fn delete(&self, key: &KeyRef, call: &Call) -> Result<Deletion, Error> {
        call.check()?;
        let slot = Slot::parse(&key.slot)?;
        let there = lock(&self.wallet.keys).get(&slot).cloned();
        match there.is_none_or(|there| there == key.public_key) {
            true => Ok(self.wallet.give_up(slot)),
            false => Ok(Deletion::Foreign),
        }
    }

    /// Neither is it here. What was not made by this process, or read by another one, has
    /// left nothing.
    fn discard(&self, left: &Unfinished, call: &Call) -> Result<Deletion, Error> {
        call.check()?;
        let slot = Slot::parse(&left.slot)?;
        let live = lock(&self.wallet.used).get(&slot).is_some_and(|u| u.live);
        let there = lock(&self.wallet.keys).get(&slot).cloned();
        match (&left.public_key, there) {
            (Some(key), Some(there)) if *key != there => Ok(Deletion::Foreign),
            (None, _) if !live => Ok(Deletion::NothingThere),
            _ => Ok(self.wallet.give_up(slot)),
        }
    }

    fn signer(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Signer>, Error> {
        Ok(Arc::new(self.key(key, KeyUse::Sign, call)?))
    }

    fn decryptor(&self, key: &KeyRef, call: &Call) -> Result<Arc<dyn Decryptor>, Error> {
        Ok(Arc::new(self.key(key, KeyUse::Decrypt, call)?))
    }

    fn derives(&self) -> Option<&dyn Derives> {
        Some(self)
    }
}

impl Derives for LedgerToken {
    fn derived(
        &self,
        account: u32,
        spec: KeySpec,
        call: &Call,
    ) -> Result<(SlotId, PublicKey), Error> {
        let kind = self.kind(spec)?;
        let slot = Slot { account, kind };
        let key = self.wallet.run(call, |session| read(session, slot))?;
        Ok((slot.id(), key))
    }
}

impl LedgerToken {
    pub(crate) fn new(
        wallet: Arc<Wallet>,
        info: TokenInfo,
        known: Known,
        accounts: Accounts,
    ) -> Self {
        LedgerToken {
            wallet,
            info,
            known,
            accounts,
        }
    }

    pub(crate) fn is_for(
        &self,
        wallet: &Arc<Wallet>,
        accounts: Accounts,
        info: &TokenInfo,
    ) -> bool {
        Arc::ptr_eq(&self.wallet, wallet) && self.accounts == accounts && self.info == *info
    }

    fn kind(&self, spec: KeySpec) -> Result<Kind, Error> {
        self.info.check_makes(spec)?;
        Kind::of(spec).ok_or_else(|| Error::Unsupported {
            token: self.info.id.clone(),
            wanted: spec,
            supported: self.info.makes.clone(),
        })
    }

    fn key(&self, key: &KeyRef, usage: KeyUse, call: &Call) -> Result<Key, Error> {
        let algorithm = key.public_key.algorithm();
        let app = &self.known.app;
        if usage == KeyUse::Decrypt && self.known.peer.is_none() && app.is_too_old() {
            return Err(app.clone().too_old(format!("Ledger {}", self.info.model)));
        }
        self.kind(KeySpec { algorithm, usage })?;
        let slot = Slot::parse(&key.slot)?;
        let wallet = Arc::clone(&self.wallet);
        let call = call.clone().no_longer_than(LOOK);
        let found = wallet.public_key_waiting(slot, &call, Wait::in_vain(&call))?;
        if found != key.public_key {
            return Err(mismatch(&wallet.id, slot, &key.public_key, &found));
        }
        let deletions = {
            let mut used = lock(&wallet.used);
            let used = used.entry(slot).or_default();
            if !used.live && used.deletions > 0 {
                return Err(wallet.not_found(&found));
            }
            used.live = true;
            used.deletions
        };
        Ok(Key {
            wallet,
            slot,
            public_key: found,
            deletions,
        })
    }
}

fn mismatch(token: &TokenId, slot: Slot, expected: &PublicKey, found: &PublicKey) -> Error {
    Error::KeyMismatch {
        token: token.clone(),
        slot: slot.to_string(),
        expected: expected.fingerprint().to_string(),
        found: found.fingerprint().to_string(),
    }
}

/// A key on a token.
struct Key {
    wallet: Arc<Wallet>,
    slot: Slot,
    public_key: PublicKey,
    /// How often it had been deleted when it was handed out.
    deletions: u64,
}

impl Key {
    fn check(&self, call: &Call) -> Result<(), Error> {
        call.check()?;
        let Key { wallet, slot, .. } = self;
        wallet.check_live(*slot, self.deletions, &self.public_key)
    }
}

/// r and s with the lower of the two s that there are: verifiers of Ethereum want it.
fn low(bytes: &[u8; 64]) -> Option<Vec<u8>> {
    let signature = k256::ecdsa::Signature::from_slice(bytes).ok()?;
    let signature = signature.normalize_s().unwrap_or(signature);
    Some(signature.to_bytes().to_vec())
}

impl Signer for Key {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn slot(&self) -> SlotId {
        self.slot.id()
    }

    fn scheme(&self) -> Option<SignatureScheme> {
        Some(SignatureScheme::Eip191Secp256k1)
    }

    /// Messages of at most [`LONGEST_MESSAGE`] bytes.
    fn sign(&self, message: &[u8], call: &Call) -> Result<Signature, Error> {
        self.check(call)?;
        if message.len() > LONGEST_MESSAGE {
            return Err(Error::BadMessage {
                reason: format!("a Ledger signs at most {LONGEST_MESSAGE} bytes"),
            });
        }
        let Key { wallet, slot, .. } = self;
        let sign =
            |session: &mut Session<'_>| ethereum::sign(session, &wallet.id, slot.account, message);
        let bytes = wallet.run(call, sign)?;
        let signature = low(&bytes)
            .and_then(|bytes| Signature::new(SignatureScheme::Eip191Secp256k1, bytes).ok())
            .filter(|signature| self.public_key.verify(message, signature).is_ok());
        if let Some(signature) = signature {
            return Ok(signature);
        }
        // It is checked here since nothing else shows that the device was given another
        // seed, or unlocked with the PIN of another.
        let found = wallet.run(call, |session| {
            session.forget();
            wallet.check_seed(session)?;
            read(session, *slot)
        })?;
        if found != self.public_key {
            return Err(mismatch(&wallet.id, *slot, &self.public_key, &found));
        }
        Err(Error::MalformedReply {
            token: wallet.id.clone(),
            call: "SIGN ETH PERSONAL MESSAGE".into(),
            reason: "the signature was not made by this key".into(),
        })
    }
}

impl Decryptor for Key {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn slot(&self) -> SlotId {
        self.slot.id()
    }

    fn confirm(&self, call: &Call) -> Result<(), Error> {
        self.check(call)?;
        let Key { wallet, slot, .. } = self;
        let found = wallet.run(call, |session| read(session, *slot))?;
        match found == self.public_key {
            true => Ok(()),
            false => Err(wallet.not_found(&self.public_key)),
        }
    }

    fn unwrap(&self, request: Unwrap<'_>, call: &Call) -> Result<Secret, Error> {
        self.check(call)?;
        let Unwrap::Agree { peer } = request else {
            return Err(Error::DecryptionFailed);
        };
        let peer = agreement::peer_bytes(self.public_key.algorithm(), peer)?;
        let Key { wallet, slot, .. } = self;
        let secret = wallet.run(call, |session| {
            ethereum::agree(session, &wallet.id, slot.account, peer)
        })?;
        agreement::unknown_to_others(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_high_s_is_made_low() {
        let key = k256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let signature: k256::ecdsa::Signature = k256::ecdsa::signature::Signer::sign(&key, b"m");
        let (r, s) = signature.split_scalars();
        let high = k256::ecdsa::Signature::from_scalars(r, -s).unwrap();
        assert_eq!(
            low(&high.to_bytes().into()),
            Some(signature.to_bytes().to_vec())
        );
        assert_eq!(low(&[0; 64]), None);
    }
}
