//! The commands of a PIV card: SP 800-73-4 part 2, §3, and Yubico's extensions.
//!
//! Each is a function that sends one command and parses its reply. No part of a reply is relied on
//! before it is checked.

use claviger_token::{Algorithm, Call, Pin, PublicKey};
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use crate::apdu::{Status, Transport};
use crate::error::Fault;
use crate::exchange::{Command, Reply, exchange};
use crate::firmware::{Version, algorithm};
use crate::policy::{PinPolicy, Policies, TouchPolicy};
use crate::slot::Slot;
use crate::tlv;

/// The PIV card application, without its version (SP 800-73-4 part 1, §2.2). Some cards
/// know it by no shorter name.
const PIV_AID: [u8; 9] = [0xa0, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, 0x10, 0x00];

/// YubiKeys before 5 tell their serial in the OTP application only.
const OTP_AID: [u8; 7] = [0xa0, 0x00, 0x00, 0x05, 0x27, 0x20, 0x01];

const CHUID: u32 = 0x5f_c102;
/// Where YubiKeys keep a management key that the PIN protects: an object that the
/// standard keeps for printed information, and so behind the PIN.
const PRINTED: u32 = 0x5f_c109;
/// What Yubico's tools note about the management key.
const ADMIN_DATA: u32 = 0x5f_ff00;

/// The key reference of the PIN.
const PIN: u8 = 0x80;
/// The key reference of the management key.
pub(crate) const MANAGEMENT: u8 = 0x9b;

/// A card during one transaction, and the circumstances of what is asked of it.
pub(crate) struct Card<'a> {
    transport: &'a mut dyn Transport,
    call: &'a Call,
}

/// How the PIN stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tries {
    /// It was given since the application was selected.
    Verified,
    /// It was not, and so many tries are left.
    Left(u8),
}

/// What the card did with a PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    /// It is wrong; so many tries are left, where the card says.
    Refused(Option<u8>),
}

/// What GET METADATA tells of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// The identifier of the key's algorithm, where it is given.
    pub(crate) algorithm: Option<u8>,
    pub(crate) pin: Option<PinPolicy>,
    pub(crate) touch: Option<TouchPolicy>,
    /// Whether the key was made on the card; `false` where it was imported.
    pub(crate) generated: Option<bool>,
    pub(crate) public_key: Option<PublicKey>,
    /// Whether a PIN or a management key is the published default.
    pub(crate) default: Option<bool>,
    /// Of a PIN: how many tries there are, and how many are left.
    pub(crate) tries: Option<(u8, u8)>,
}

/// What a card says of a slot when it is asked for metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shown {
    /// There is a key.
    Key(Metadata),
    /// There is no key.
    Nothing,
    /// It says neither: it has no such command, or answers something else.
    Silent,
}

/// What became of a key that was to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deleted {
    /// It is gone.
    Gone,
    /// There was none.
    WasNotThere,
    /// The card does not delete keys.
    Refused,
}

/// What the private key does in GENERAL AUTHENTICATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Signs a digest, a padded block or a message.
    Sign,
    /// Agrees on a secret with a peer's public key.
    Agree,
}

impl<'a> Card<'a> {
    pub(crate) fn new(transport: &'a mut dyn Transport, call: &'a Call) -> Self {
        Card { transport, call }
    }

    /// Asks the card for something that has to be done even if it is late.
    pub(crate) fn in_any_case<T>(&mut self, work: impl FnOnce(&mut Card<'_>) -> T) -> T {
        let call = Call::unlimited();
        work(&mut Card::new(&mut *self.transport, &call))
    }

    /// Sends a command. Before, the deadline counts; while the card works nobody can
    /// tell it to stop.
    fn send(&mut self, command: &Command<'_>) -> Result<Reply, Fault> {
        self.call.check()?;
        exchange(self.transport, command)
    }

    fn ask(
        &mut self,
        name: &'static str,
        [ins, p1, p2]: [u8; 3],
        data: &[u8],
    ) -> Result<Reply, Fault> {
        let command = Command {
            name,
            ins,
            p1,
            p2,
            data,
            answers: true,
        };
        self.send(&command)
    }

    fn tell(
        &mut self,
        name: &'static str,
        [ins, p1, p2]: [u8; 3],
        data: &[u8],
    ) -> Result<(), Fault> {
        let command = Command {
            name,
            ins,
            p1,
            p2,
            data,
            answers: false,
        };
        success(name, self.send(&command)?).map(drop)
    }

    /// SELECT: makes the PIV application the one that is spoken to, and gives the
    /// algorithms that it names, if it does (SP 800-73-4 part 2, §3.1.1). What PINs and
    /// keys were given before does not count any more on YubiKeys; on other cards it
    /// does if the application was selected already.
    ///
    /// `None`: the card has no such application.
    pub(crate) fn select(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let reply = self.ask("SELECT", [0xa4, 0x04, 0x00], &PIV_AID)?;
        match reply.status {
            Status::OK => {}
            Status::NOT_FOUND
            | Status::NOT_SUPPORTED
            | Status::NO_INSTRUCTION
            | Status::NO_CLASS
            | Status::WRONG_P1_P2 => return Ok(None),
            status => return Err(refused("SELECT", status)),
        }
        let template = tlv::find(&reply.data, 0x61).unwrap_or_default();
        let named = tlv::all(template).unwrap_or_default();
        let ids = named
            .iter()
            .filter(|tlv| tlv.tag == 0xac)
            .flat_map(|tlv| tlv::all(tlv.value).unwrap_or_default())
            .filter(|tlv| tlv.tag == 0x80)
            .flat_map(|tlv| tlv.value.iter().copied());
        Ok(Some(ids.collect()))
    }

    /// GET VERSION (Yubico); `None` on cards without it.
    pub(crate) fn version(&mut self) -> Result<Option<Version>, Fault> {
        let reply = self.ask("GET VERSION", [0xfd, 0, 0], &[])?;
        match (reply.status, &reply.data[..]) {
            (Status::OK, &[major, minor, patch]) => Ok(Some(Version(major, minor, patch))),
            _ => Ok(None),
        }
    }

    /// GET SERIAL (Yubico, since 5.0).
    pub(crate) fn serial(&mut self) -> Result<Option<u32>, Fault> {
        let reply = self.ask("GET SERIAL", [0xf8, 0, 0], &[])?;
        Ok(serial(&reply))
    }

    /// The serial of a YubiKey before 5, from its OTP application. The PIV application
    /// must be selected again afterwards.
    pub(crate) fn serial_of_otp(&mut self) -> Result<Option<u32>, Fault> {
        let selected = self.ask("SELECT", [0xa4, 0x04, 0x00], &OTP_AID)?;
        if selected.status != Status::OK {
            return Ok(None);
        }
        let reply = self.ask("GET SERIAL", [0x01, 0x10, 0x00], &[])?;
        Ok(serial(&reply))
    }

    /// The GUID of the cardholder unique identifier (SP 800-73-4 part 1, §3.1.2), or the
    /// FASC-N where there is no GUID.
    pub(crate) fn chuid_name(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let Some(chuid) = self.object(CHUID)? else {
            return Ok(None);
        };
        let named = |tag| {
            tlv::find(&chuid, tag)
                .filter(|name| (1..=32).contains(&name.len()) && name.iter().any(|b| *b != 0))
        };
        Ok(named(0x34).or(named(0x30)).map(<[u8]>::to_vec))
    }

    /// GET DATA: what is in a data object; `None` where there is none.
    pub(crate) fn object(&mut self, id: u32) -> Result<Option<Zeroizing<Vec<u8>>>, Fault> {
        const NAME: &str = "GET DATA";
        let reply = self.ask(NAME, [0xcb, 0x3f, 0xff], &tlv::encode(0x5c, &tag_list(id)))?;
        match reply.status {
            Status::OK => {}
            Status::NOT_FOUND | Status::NO_REFERENCE => return Ok(None),
            status => return Err(refused(NAME, status)),
        }
        if reply.data.is_empty() {
            return Ok(None);
        }
        let content = tlv::find(&reply.data, 0x53)
            .ok_or_else(|| Fault::malformed(NAME, "it is not a data object"))?;
        Ok((!content.is_empty()).then(|| Zeroizing::new(content.to_vec())))
    }

    /// PUT DATA: replaces what is in a data object. Nothing is put by emptiness, which
    /// removes it. Needs the management key.
    pub(crate) fn put_object(&mut self, id: u32, content: &[u8]) -> Result<(), Fault> {
        let mut data = tlv::encode(0x5c, &tag_list(id)).to_vec();
        tlv::push(&mut data, 0x53, content);
        self.tell("PUT DATA", [0xdb, 0x3f, 0xff], &data)
    }

    /// GET METADATA (Yubico, since 5.3) of a PIN, a PUK or the management key; `None` where
    /// the card tells nothing.
    ///
    /// Each tag is there or not: some cards leave the algorithm of a PIN out.
    pub(crate) fn metadata(&mut self, reference: u8) -> Result<Option<Metadata>, Fault> {
        const NAME: &str = "GET METADATA";
        let reply = self.ask(NAME, [0xf7, 0x00, reference], &[])?;
        match reply.status {
            Status::OK => parse_metadata(&reply.data)
                .map(Some)
                .ok_or_else(|| Fault::malformed(NAME, "it is not metadata")),
            Status::NOT_FOUND
            | Status::NO_REFERENCE
            | Status::NO_INSTRUCTION
            | Status::NO_CLASS
            | Status::WRONG_P1_P2
            | Status::NOT_SUPPORTED => Ok(None),
            status => Err(refused(NAME, status)),
        }
    }

    /// GET METADATA of a slot. Some cards answer for an empty one, without an algorithm and
    /// without a public key; that is no key, nor is it the word that there is none. An
    /// unknown reference (6A86) may be a slot that the card does not have, or one that its
    /// metadata do not know.
    pub(crate) fn shown(&mut self, slot: Slot) -> Result<Shown, Fault> {
        const NAME: &str = "GET METADATA";
        let reply = self.ask(NAME, [0xf7, 0x00, slot.reference()], &[])?;
        match reply.status {
            Status::OK => {}
            Status::NOT_FOUND | Status::NO_REFERENCE => return Ok(Shown::Nothing),
            Status::NO_INSTRUCTION
            | Status::NO_CLASS
            | Status::NOT_SUPPORTED
            | Status::WRONG_P1_P2
            | Status::WRONG_DATA => return Ok(Shown::Silent),
            status => return Err(refused(NAME, status)),
        }
        let metadata = parse_metadata(&reply.data)
            .ok_or_else(|| Fault::malformed(NAME, "it is not metadata"))?;
        let names_a_kind = metadata
            .algorithm
            .is_some_and(|id| !matches!(id, 0x00 | 0xff));
        Ok(match names_a_kind || metadata.public_key.is_some() {
            true => Shown::Key(metadata),
            false => Shown::Silent,
        })
    }

    /// The metadata of the PIN.
    pub(crate) fn pin_metadata(&mut self) -> Result<Option<Metadata>, Fault> {
        self.metadata(PIN)
    }

    /// How many tries of the PUK are left, where the card says.
    pub(crate) fn puk_tries(&mut self) -> Result<Option<u8>, Fault> {
        let metadata = self.metadata(0x81)?;
        Ok(metadata.and_then(|m| m.tries).map(|(_, left)| left))
    }

    /// VERIFY without a PIN: asks how it stands, and costs no try.
    pub(crate) fn tries(&mut self) -> Result<Tries, Fault> {
        const NAME: &str = "VERIFY";
        let status = self.ask(NAME, [0x20, 0x00, PIN], &[])?.status;
        match (status, status.tries()) {
            (Status::OK, _) => Ok(Tries::Verified),
            (Status::BLOCKED, _) => Ok(Tries::Left(0)),
            (_, Some(left)) => Ok(Tries::Left(left)),
            _ => Err(refused(NAME, status)),
        }
    }

    /// VERIFY with P1 = FF: the PIN given before does not count any more.
    pub(crate) fn forget_pin(&mut self) -> Result<(), Fault> {
        self.ask("VERIFY", [0x20, 0xff, PIN], &[]).map(drop)
    }

    /// VERIFY. The PIN is 6 to 8 bytes long and is filled up with FF.
    pub(crate) fn verify(&mut self, pin: &Pin) -> Result<Verdict, Fault> {
        const NAME: &str = "VERIFY";
        let mut padded = Zeroizing::new([0xff; 8]);
        for (to, from) in padded.iter_mut().zip(pin.expose_secret().as_bytes()) {
            *to = *from;
        }
        let command = Command {
            name: NAME,
            ins: 0x20,
            p1: 0,
            p2: PIN,
            data: padded.as_slice(),
            answers: false,
        };
        let status = self.send(&command)?.status;
        match (status, status.tries()) {
            (Status::OK, _) => Ok(Verdict::Accepted),
            (Status::BLOCKED, _) => Ok(Verdict::Refused(Some(0))),
            (Status::NOT_VERIFIED, _) => Ok(Verdict::Refused(
                match self.in_any_case(|card| card.tries()) {
                    Ok(Tries::Left(left)) => Some(left),
                    Ok(Tries::Verified) | Err(_) => None,
                },
            )),
            (_, Some(left)) => Ok(Verdict::Refused(Some(left))),
            _ => Err(refused(NAME, status)),
        }
    }

    /// GENERATE ASYMMETRIC KEY PAIR, which overwrites what is in the slot. Needs the
    /// management key.
    pub(crate) fn generate(
        &mut self,
        slot: Slot,
        id: u8,
        policies: Policies,
    ) -> Result<PublicKey, Fault> {
        const NAME: &str = "GENERATE ASYMMETRIC KEY PAIR";
        let mut control = vec![0x80, 1, id];
        if let Some(pin) = policies.pin {
            control.extend_from_slice(&[0xaa, 1, pin.id()]);
        }
        if let Some(touch) = policies.touch {
            control.extend_from_slice(&[0xab, 1, touch.id()]);
        }
        let data = tlv::encode(0xac, &control);
        let reply = self.ask(NAME, [0x47, 0, slot.reference()], &data)?;
        let data = success(NAME, reply)?;
        tlv::find(&data, 0x7f49)
            .and_then(|key| public_key(id, key))
            .ok_or_else(|| {
                Fault::malformed(NAME, "the generated key is not a valid key of this kind")
            })
    }

    /// GENERAL AUTHENTICATE with a private key.
    pub(crate) fn operate(
        &mut self,
        slot: Slot,
        id: u8,
        operation: Operation,
        input: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let tag = match operation {
            Operation::Sign => 0x81,
            Operation::Agree => 0x85,
        };
        let mut template = vec![0x82, 0x00];
        tlv::push(&mut template, tag, input);
        self.authenticate(id, slot.reference(), &template, 0x82)
    }

    /// GENERAL AUTHENTICATE (SP 800-73-4 part 2, §3.2.4): sends a dynamic
    /// authentication template and gives what the card puts at `wanted` into its own.
    pub(crate) fn authenticate(
        &mut self,
        id: u8,
        reference: u8,
        template: &[u8],
        wanted: u32,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        const NAME: &str = "GENERAL AUTHENTICATE";
        let data = tlv::encode(0x7c, template);
        let reply = self.ask(NAME, [0x87, id, reference], &data)?;
        let data = success(NAME, reply)?;
        tlv::find(&data, 0x7c)
            .and_then(|template| tlv::find(template, wanted))
            .map(|value| Zeroizing::new(value.to_vec()))
            .ok_or_else(|| Fault::malformed(NAME, "the response is missing"))
    }

    /// MOVE KEY to nowhere (Yubico, since 5.7), which destroys the key. Needs the
    /// management key. Cards that state such a firmware and do not have the command say so
    /// in more than one way.
    pub(crate) fn delete(&mut self, slot: Slot) -> Result<Deleted, Fault> {
        const NAME: &str = "MOVE KEY";
        let status = self.ask(NAME, [0xf6, 0xff, slot.reference()], &[])?.status;
        match status {
            Status::OK => Ok(Deleted::Gone),
            Status::NO_REFERENCE | Status::NOT_FOUND => Ok(Deleted::WasNotThere),
            Status::NO_INSTRUCTION
            | Status::NO_CLASS
            | Status::NOT_SUPPORTED
            | Status::WRONG_P1_P2 => Ok(Deleted::Refused),
            status => Err(refused(NAME, status)),
        }
    }

    /// ATTEST (Yubico, since 4.3): an X.509 certificate in DER about the key in `slot`;
    /// `None` where the card does not give one.
    pub(crate) fn attest(&mut self, slot: Slot) -> Result<Option<Vec<u8>>, Fault> {
        let reply = self.ask("ATTEST", [0xf9, slot.reference(), 0], &[])?;
        Ok((reply.status == Status::OK && !reply.data.is_empty()).then(|| reply.data.to_vec()))
    }

    /// Whether the management key is one that the PIN protects, by what Yubico's tools
    /// note.
    pub(crate) fn management_key_is_protected(&mut self) -> Result<bool, Fault> {
        const PROTECTED: u8 = 0x02;
        let admin = match self.object(ADMIN_DATA) {
            // Yubico's object is to others no object at all.
            Err(fault) if fault.status() == Some(Status::WRONG_DATA) => None,
            admin => admin?,
        };
        let Some(admin) = admin else {
            return Ok(false);
        };
        let flags = tlv::find(&admin, 0x80).and_then(|data| tlv::find(data, 0x81));
        Ok(matches!(flags, Some(&[flags]) if flags & PROTECTED != 0))
    }

    /// The management key that the PIN protects. The PIN must have been given.
    pub(crate) fn protected_management_key(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, Fault> {
        let Some(printed) = self.object(PRINTED)? else {
            return Ok(None);
        };
        let key = tlv::find(&printed, 0x88).and_then(|data| tlv::find(data, 0x89));
        Ok(key.map(|key| Zeroizing::new(key.to_vec())))
    }
}

/// `None`: these are no tags and values.
fn parse_metadata(data: &[u8]) -> Option<Metadata> {
    let tlvs = tlv::all(data)?;
    let value = |tag| tlvs.iter().find(|tlv| tlv.tag == tag).map(|tlv| tlv.value);
    let algorithm = match value(0x01) {
        Some(&[id]) => Some(id),
        _ => None,
    };
    let (pin, touch) = match value(0x02) {
        Some(&[pin, touch]) => (PinPolicy::from_id(pin), TouchPolicy::from_id(touch)),
        _ => (None, None),
    };
    let public_key = value(0x04).and_then(|key| match algorithm {
        Some(id) => public_key(id, key),
        None => any_public_key(key),
    });
    Some(Metadata {
        algorithm,
        pin,
        touch,
        generated: match value(0x03) {
            Some([1]) => Some(true),
            Some([2]) => Some(false),
            _ => None,
        },
        public_key,
        default: match value(0x05) {
            Some(&[flag]) => Some(flag != 0),
            _ => None,
        },
        tries: match value(0x06) {
            Some(&[all, left]) => Some((all, left)),
            _ => None,
        },
    })
}

fn refused(call: &'static str, status: Status) -> Fault {
    Fault::Status { call, status }
}

fn success(call: &'static str, reply: Reply) -> Result<Zeroizing<Vec<u8>>, Fault> {
    match reply.status {
        Status::OK => Ok(reply.data),
        status => Err(refused(call, status)),
    }
}

fn serial(reply: &Reply) -> Option<u32> {
    let bytes = <[u8; 4]>::try_from(&reply.data[..]).ok()?;
    (reply.status == Status::OK)
        .then(|| u32::from_be_bytes(bytes))
        .filter(|serial| *serial != 0)
}

/// The three bytes by which GET DATA names an object.
fn tag_list(id: u32) -> [u8; 3] {
    let [_, a, b, c] = id.to_be_bytes();
    [a, b, c]
}

/// A public key whose kind is not said, if its form allows one kind only.
fn any_public_key(bytes: &[u8]) -> Option<PublicKey> {
    let id = match (tlv::find(bytes, 0x81), tlv::find(bytes, 0x86)) {
        (Some(modulus), _) => match modulus.len() {
            256 => 0x07,
            384 => 0x05,
            512 => 0x16,
            _ => return None,
        },
        (None, Some(point)) => match point.len() {
            65 => 0x11,
            97 => 0x14,
            // Ed25519 and X25519 look alike.
            _ => return None,
        },
        (None, None) => return None,
    };
    public_key(id, bytes)
}

/// A public key as cards give it (SP 800-73-4 part 2, table 18).
fn public_key(id: u8, bytes: &[u8]) -> Option<PublicKey> {
    let algorithm = algorithm(id)?;
    let key = match algorithm {
        Algorithm::Rsa2048 | Algorithm::Rsa3072 | Algorithm::Rsa4096 => {
            PublicKey::from_rsa(tlv::find(bytes, 0x81)?, tlv::find(bytes, 0x82)?)
        }
        _ => PublicKey::from_bytes(algorithm, tlv::find(bytes, 0x86)?),
    };
    key.ok().filter(|key| key.algorithm() == algorithm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Script;
    use proptest::prelude::*;

    fn card<T>(script: &mut Script, work: impl FnOnce(&mut Card<'_>) -> T) -> T {
        let call = Call::unlimited();
        let done = work(&mut Card::new(script, &call));
        script.finish();
        done
    }

    #[test]
    fn asking_for_the_tries_sends_no_pin() {
        for (status, tries) in [
            (0x63c3_u16, Tries::Left(3)),
            (0x6983, Tries::Left(0)),
            (0x9000, Tries::Verified),
        ] {
            let mut script = Script::default();
            script.expect(&[0, 0x20, 0, 0x80, 0], &status.to_be_bytes());
            assert_eq!(card(&mut script, |c| c.tries()).unwrap(), tries);
        }
    }

    #[test]
    fn a_pin_is_filled_up_and_sent_without_expecting_data() {
        let pin = Pin::from("123456");
        let sent = [
            0, 0x20, 0, 0x80, 8, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0xff, 0xff,
        ];
        for (status, verdict) in [
            (0x9000_u16, Verdict::Accepted),
            (0x63c2, Verdict::Refused(Some(2))),
            (0x6983, Verdict::Refused(Some(0))),
        ] {
            let mut script = Script::default();
            script.expect(&sent, &status.to_be_bytes());
            assert_eq!(card(&mut script, |c| c.verify(&pin)).unwrap(), verdict);
        }
        // How many are left has to be asked for, and not every card tells it.
        for (status, left) in [
            (0x63c2_u16, Some(2)),
            (0x6983, Some(0)),
            (0x6300, None),
            (0x6d00, None),
        ] {
            let mut script = Script::default();
            script.expect(&sent, &[0x63, 0x00]);
            script.expect(&[0, 0x20, 0, 0x80, 0], &status.to_be_bytes());
            let verdict = card(&mut script, |c| c.verify(&pin)).unwrap();
            assert_eq!(verdict, Verdict::Refused(left));
        }
    }

    #[test]
    fn the_algorithms_of_a_card_are_what_it_names() {
        let mut script = Script::default();
        script.expect(
            &[0, 0xa4, 4, 0, 9, 0xa0, 0, 0, 3, 8, 0, 0, 0x10, 0, 0],
            &[
                0x61, 0x0d, 0x4f, 0x00, 0xac, 0x09, 0x80, 1, 0x11, 0x80, 1, 0x07, 0x06, 1, 0, 0x90,
                0x00,
            ],
        );
        assert_eq!(
            card(&mut script, |c| c.select()).unwrap(),
            Some(vec![0x11, 0x07])
        );
    }

    #[test]
    fn an_object_that_is_not_there_is_none_and_a_broken_one_an_error() {
        let object = |reply: &[u8]| {
            let mut script = Script::default();
            script.expect(
                &[0, 0xcb, 0x3f, 0xff, 5, 0x5c, 3, 0x5f, 0xc1, 0x02, 0],
                reply,
            );
            card(&mut script, |c| c.object(CHUID))
        };
        assert_eq!(object(&[0x6a, 0x82]).unwrap(), None);
        assert_eq!(object(&[0x53, 0, 0x90, 0]).unwrap(), None);
        assert_eq!(object(&[0x53, 1, 7, 0x90, 0]).unwrap().unwrap()[..], [7]);
        assert!(object(&[0x53, 9, 7, 0x90, 0]).is_err());
        assert!(object(&[0x69, 0x82]).is_err());
    }

    #[test]
    fn nothing_is_sent_after_the_deadline() {
        let mut script = Script::default();
        let call = Call::within(std::time::Duration::ZERO);
        let tries = Card::new(&mut script, &call).tries();
        let late = claviger_token::Error::DeadlineExceeded;
        assert!(matches!(tries, Err(Fault::Ours(e)) if e.to_string() == late.to_string()));
        assert!(script.sent.is_empty());
    }

    proptest! {
        #[test]
        fn no_reply_panics(reply in replies()) {
            let call = Call::unlimited();
            let slot = Slot::parse("82").unwrap();
            let run = |work: &dyn Fn(&mut Card<'_>)| {
                work(&mut Card::new(&mut Script::always(&reply), &call));
            };
            run(&|c| drop(c.select()));
            run(&|c| drop(c.version()));
            run(&|c| drop(c.serial()));
            run(&|c| drop(c.serial_of_otp()));
            run(&|c| drop(c.chuid_name()));
            run(&|c| drop(c.object(PRINTED)));
            run(&|c| drop(c.metadata(0x82)));
            run(&|c| drop(c.shown(slot)));
            run(&|c| drop(c.puk_tries()));
            run(&|c| drop(c.tries()));
            run(&|c| drop(c.verify(&Pin::from("12345678"))));
            for id in [0x07, 0x11, 0x14, 0xe0, 0xe1, 0x99] {
                run(&|c| drop(c.generate(slot, id, Policies::default())));
                run(&|c| drop(c.operate(slot, id, Operation::Sign, &[0; 300])));
            }
            run(&|c| drop(c.delete(slot)));
            run(&|c| drop(c.attest(slot)));
            run(&|c| drop(c.management_key_is_protected()));
            run(&|c| drop(c.protected_management_key()));
        }
    }

    /// Replies that look like some, so that the parsers get to their ends.
    fn replies() -> impl Strategy<Value = Vec<u8>> {
        let status = prop_oneof![
            Just(vec![0x90, 0x00]),
            Just(vec![0x61, 0x05]),
            Just(vec![0x6c, 0x05]),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        let tag = prop_oneof![
            Just(vec![0x7c]),
            Just(vec![0x53]),
            Just(vec![0x7f, 0x49]),
            Just(vec![0x61]),
            Just(vec![0x01, 0x01, 0x11, 0x04]),
            Just(vec![0x80]),
            Just(vec![0x88]),
            Just(vec![]),
        ];
        let value = proptest::collection::vec(any::<u8>(), 0..80);
        (proptest::collection::vec((tag, value), 0..4), status).prop_map(|(tlvs, status)| {
            let mut reply = Vec::new();
            for (tag, value) in tlvs.into_iter().rev() {
                let inner = [&value[..], &reply[..]].concat();
                reply = tag;
                reply.push(inner.len().min(0x7f) as u8);
                reply.extend(inner);
            }
            reply.extend(status);
            reply
        })
    }
}
