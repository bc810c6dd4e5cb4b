//! A way to devices, and what is open of the tokens behind it.

use std::sync::Arc;

use claviger_token::TokenInfo;
use claviger_token::shelf::Shelf;

use crate::ethereum::Known;
use crate::field::{Field, Found};
use crate::slot::Accounts;
use crate::token::LedgerToken;
use crate::transport::Devices;
use crate::wallet::Wallet;

/// A way is one thing in a process: a device is opened once.
pub(crate) struct Way {
    pub(crate) field: Arc<Field>,
    wallets: Shelf<Wallet>,
    /// One for each wallet and each account that was asked for.
    tokens: Shelf<LedgerToken>,
}

impl Way {
    /// The way to `devices`; `tcp` is the address, where that is the way.
    pub(crate) fn new(devices: Box<dyn Devices>, tcp: Option<String>) -> Arc<Self> {
        Arc::new(Way {
            field: Field::new(devices, tcp),
            wallets: Shelf::default(),
            tokens: Shelf::default(),
        })
    }

    /// The wallet that showed itself.
    pub(crate) fn wallet(&self, known: &Known) -> Arc<Wallet> {
        let is_wanted = |wallet: &Wallet| wallet.id == known.id;
        self.wallets.find_or_make(is_wanted, || {
            Arc::new(Wallet::new(Arc::clone(&self.field), known))
        })
    }

    /// The token of the device that was found, for keys of these accounts.
    pub(crate) fn token(
        &self,
        (port, known): Found,
        info: &TokenInfo,
        accounts: Accounts,
    ) -> Arc<LedgerToken> {
        let wallet = self.wallet(&known);
        wallet.was_seen_at(port);
        // With another app on it, it is another one.
        let is_wanted = |token: &LedgerToken| token.is_for(&wallet, accounts, info);
        self.tokens.find_or_make(is_wanted, || {
            let wallet = Arc::clone(&wallet);
            Arc::new(LedgerToken::new(wallet, info.clone(), known, accounts))
        })
    }
}
