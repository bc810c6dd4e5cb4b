//! Whose card it is, and what is known of it.

use claviger_token::key::to_hex;
use claviger_token::{TokenId, TokenInfo};

use crate::backend::{Backend, SCHEME};
use crate::card::Card;
use crate::error::Fault;
use crate::firmware::{Make, Version};

/// What a card shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: TokenId,
    /// As far as the card says, or more if that is known.
    pub(crate) make: Make,
    /// The serial that attestations name.
    pub(crate) serial: Option<u32>,
}

/// What answers when a card is selected.
pub(crate) enum Answer {
    /// A PIV card.
    Card(Identity),
    /// A PIV card that nothing tells from others.
    Nameless,
    /// A card without this application.
    Another,
}

/// Selects the PIV application and finds out whose it is.
///
/// The serial is asked for whatever the version is: cards that state an old one have it,
/// too.
pub(crate) fn identify(card: &mut Card<'_>) -> Result<Answer, Fault> {
    let Some(named) = card.select()? else {
        return Ok(Answer::Another);
    };
    let make = Make::new(card.version()?, named);
    let serial = match make.version() {
        Some(version) => match card.serial()? {
            None if version < Version(5, 0, 0) => {
                let serial = card.serial_of_otp()?;
                card.select()?;
                serial
            }
            serial => serial,
        },
        None => None,
    };
    let name = match serial {
        Some(serial) => Some(serial.to_string()),
        None => card.chuid_name()?.map(|name| to_hex(&name)),
    };
    Ok(match name {
        None => Answer::Nameless,
        Some(name) => Answer::Card(Identity {
            id: TokenId {
                kind: SCHEME.into(),
                manufacturer: make.manufacturer().into(),
                serial: name,
            },
            make,
            serial,
        }),
    })
}

/// What is known of a card of this make.
pub(crate) fn info(identity: &Identity, make: &Make, notes: Vec<(String, String)>) -> TokenInfo {
    let backend = Backend::for_serial(&identity.id.serial);
    let mut info = TokenInfo::new(identity.id.clone(), backend);
    info.model = make.model();
    info.makes = make.supports();
    info.uses = make.supports();
    info.untried = make.untried();
    info.remembered_as = remembered_as(identity, make);
    info.login_required = true;
    info.notes = notes;
    info
}

/// The name under which it is remembered what was tried on a card: the card and the firmware
/// that it states. Of Yubico's nothing has to be.
fn remembered_as(identity: &Identity, make: &Make) -> String {
    match make {
        Make::Yubico(_) => String::new(),
        Make::Stated { version, .. } => format!("{} {version}", identity.id),
        Make::Plain { .. } => identity.id.to_string(),
    }
}
