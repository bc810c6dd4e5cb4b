//! The commands of the Ethereum app (its `doc/ethapp.adoc`).

use claviger_token::key::to_hex;
use claviger_token::{Algorithm, Error, PublicKey, TokenId, agreement};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::apdu::{Command, Exchange, LONGEST_DATA};
use crate::app::{App, counted};
use crate::backend::{SCHEME, SERIAL_DIGITS};
use crate::error::Fault;
use crate::slot::{Kind, Slot};
use crate::status::Status;

/// The longest message in bytes that any device is sent: the app writes it out in
/// hexadecimal to show it, in a buffer whose length is a number of 16 bits.
///
/// No device has the memory for that: see [`longest_message`]. What is too long for its
/// memory the device refuses itself.
pub const LONGEST_MESSAGE: usize = 32_766;

/// The longest message in bytes that the app was seen to sign on a device of this model,
/// as the first one after its start; after others it may be less.
///
/// Measured with printable text: 13,368 on a Flex with the app 1.22.0-dev, 9,012 on a Nano
/// S Plus with 1.23.0-dev. On other models nobody has measured it; the lower figure stands
/// for them.
pub fn longest_message(model: &str) -> usize {
    match model {
        "Flex" => 13_368,
        _ => 9_012,
    }
}

const SYSTEM: u8 = 0xb0;
const CLASS: u8 = 0xe0;
const HARDENED: u32 = 1 << 31;

/// What a device shows of itself when it is unlocked and the app is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) app: App,
    pub(crate) id: TokenId,
    /// The signing key of account 0.
    pub(crate) root: PublicKey,
    /// The decryption key of account 0; none where the app does not agree on keys.
    pub(crate) peer: Option<PublicKey>,
}

impl Known {
    /// The token is named after its seed, by its first key.
    pub(crate) fn new(app: App, root: PublicKey, peer: Option<PublicKey>) -> Result<Self, Fault> {
        let der = root.to_der();
        let der = der.ok_or_else(|| Fault::malformed(GET_ADDRESS, "not a key"))?;
        let mut serial = to_hex(&Sha256::digest(der));
        serial.truncate(SERIAL_DIGITS);
        let id = TokenId {
            kind: SCHEME.into(),
            manufacturer: "Ledger".into(),
            serial,
        };
        Ok(Known {
            app,
            id,
            root,
            peer,
        })
    }
}

impl Known {
    /// The kinds of key that the app has.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let has = |kind: &Kind| *kind == Kind::Signing || self.peer.is_some();
        Kind::ALL.into_iter().filter(has).collect()
    }

    /// The keys of account 0.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (Slot, PublicKey)> {
        let peer = self.peer.clone().map(|key| (Kind::Decryption, key));
        let keys = std::iter::once((Kind::Signing, self.root.clone())).chain(peer);
        keys.map(|(kind, key)| (Slot { account: 0, kind }, key))
    }
}

pub(crate) const NAME_AND_VERSION: &str = "GET APP NAME AND VERSION";
const GET_ADDRESS: &str = "GET ETH PUBLIC ADDRESS";
const SIGN: &str = "SIGN ETH PERSONAL MESSAGE";
const PRIVACY: &str = "PERFORM PRIVACY OPERATION";

/// Which app is open: every app answers that.
pub(crate) fn name_and_version() -> Command {
    Command {
        name: NAME_AND_VERSION,
        class: SYSTEM,
        instruction: 0x01,
        p1: 0,
        p2: 0,
        data: Vec::new(),
    }
}

/// The app that is open, of a reply to [`name_and_version`].
pub(crate) fn app_of(reply: &[u8]) -> Result<App, Fault> {
    App::parse(reply).ok_or_else(|| Fault::malformed(NAME_AND_VERSION, "not a name and a version"))
}

/// m/44'/60'/account'/0/0 (BIP 44), each step a number of 32 bits, after their count.
fn path(account: u32) -> Vec<u8> {
    let steps = [HARDENED | 44, HARDENED | 60, HARDENED | account, 0, 0];
    let mut path = vec![steps.len() as u8];
    path.extend(steps.iter().flat_map(|step| step.to_be_bytes()));
    path
}

fn command(name: &'static str, instruction: u8, p1: u8, p2: u8, data: Vec<u8>) -> Command {
    Command {
        name,
        class: CLASS,
        instruction,
        p1,
        p2,
        data,
    }
}

const SILENTLY: u8 = 0;
const WITH_APPROVAL: u8 = 1;

/// The account's secp256k1 key, shown to nobody.
pub(crate) fn signing_key(session: &mut dyn Exchange, account: u32) -> Result<PublicKey, Fault> {
    let reply = session.command(&command(GET_ADDRESS, 0x02, SILENTLY, 0, path(account)))?;
    // The key and the address made of it, each after its length.
    let key = counted(&reply.data).and_then(|(key, rest)| {
        let (address, rest) = counted(rest)?;
        (key.len() == 65 && address.len() == 40 && rest.is_empty()).then_some(key)
    });
    key.and_then(|key| PublicKey::from_bytes(Algorithm::Secp256k1, key).ok())
        .ok_or_else(|| Fault::malformed(GET_ADDRESS, "not a public key"))
}

/// The account's X25519 key (EIP-1024), shown to nobody.
pub(crate) fn decryption_key(session: &mut dyn Exchange, account: u32) -> Result<PublicKey, Fault> {
    let reply = session.command(&command(PRIVACY, 0x18, SILENTLY, 0, path(account)))?;
    PublicKey::from_bytes(Algorithm::X25519, &reply.data)
        .map_err(|_| Fault::malformed(PRIVACY, "not a public key"))
}

/// [`decryption_key`] of account 0, or that the app has none to give: that it does not
/// agree on keys is no reason to do without its signatures.
pub(crate) fn agreement(session: &mut dyn Exchange) -> Result<Option<PublicKey>, Fault> {
    match session.command(&command(PRIVACY, 0x18, SILENTLY, 0, path(0))) {
        Ok(reply) => Ok(PublicKey::from_bytes(Algorithm::X25519, &reply.data).ok()),
        Err(Fault::Status { .. } | Fault::Unknown { .. }) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Signs `message`, which is at most [`LONGEST_MESSAGE`] bytes long, as a personal
/// message (EIP-191): r and s. In as few commands as it fits into.
pub(crate) fn sign(
    session: &mut dyn Exchange,
    token: &TokenId,
    account: u32,
    message: &[u8],
) -> Result<[u8; 64], Fault> {
    let commands = sign_commands(account, message);
    let reply = session.approved(token, commands);
    let reply = reply.map_err(|fault| match fault {
        Fault::Status {
            status: Status::NO_MEMORY,
            ..
        } => Fault::Ours(Error::BadMessage {
            reason: "the device does not have enough memory for it".into(),
        }),
        Fault::Status {
            status: Status::WRONG_DATA,
            ..
        } => Fault::Ours(Error::BadMessage {
            reason: "the app does not accept it".into(),
        }),
        other => other,
    })?;
    // v, r, s.
    let signature = reply.data.split_first().map(|(_, signature)| signature);
    signature
        .and_then(|signature| signature.try_into().ok())
        .ok_or_else(|| Fault::malformed(SIGN, "not a signature"))
}

fn sign_commands(account: u32, message: &[u8]) -> Vec<Command> {
    let mut head = path(account);
    // Messages are not that long.
    head.extend_from_slice(&(message.len() as u32).to_be_bytes());
    let (first, rest) = message.split_at(message.len().min(LONGEST_DATA - head.len()));
    head.extend_from_slice(first);
    let more = rest.chunks(LONGEST_DATA);
    std::iter::once(command(SIGN, 0x08, 0x00, 0, head))
        .chain(more.map(|chunk| command(SIGN, 0x08, 0x80, 0, chunk.into())))
        .collect()
}

/// Agrees on a secret with the owner of `peer` (EIP-1024), after an approval. Without
/// one the app would give it too: so it is always asked for.
pub(crate) fn agree(
    session: &mut dyn Exchange,
    token: &TokenId,
    account: u32,
    peer: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let data = [path(account).as_slice(), peer].concat();
    let ask = command(PRIVACY, 0x18, WITH_APPROVAL, 1, data);
    let reply = session.approved(token, vec![ask])?;
    match reply.data.len() {
        agreement::SECRET_LENGTH => Ok(reply.data),
        _ => Err(Fault::malformed(PRIVACY, "not a shared secret")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_message_is_sent_whole_and_in_as_few_commands_as_it_takes(
            account in 0..HARDENED,
            message in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let commands = sign_commands(account, &message);
            prop_assert_eq!(commands.len(), (25 + message.len()).div_ceil(255));
            let data: Vec<u8> = commands.iter().flat_map(|c| c.data.clone()).collect();
            prop_assert_eq!(&data[..21], &path(account)[..]);
            prop_assert_eq!(&data[21..25], &(message.len() as u32).to_be_bytes());
            prop_assert_eq!(&data[25..], &message[..]);
            for (i, command) in commands.iter().enumerate() {
                prop_assert!(command.data.len() <= LONGEST_DATA);
                prop_assert_eq!(command.p1, if i == 0 { 0 } else { 0x80 });
            }
        }
    }
}
