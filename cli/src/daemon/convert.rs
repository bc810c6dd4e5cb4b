//! From the wire to the types of the engine. Who speaks is a daemon that was believed, so what makes
//! no sense is a malformed reply and nothing worse.

use claviger_client::wire;
use claviger_engine::{Backend, Capabilities, EngineId, IdentityInfo, KeyInfo, Origin};
use claviger_token::{
    Algorithm, Attestation, Deletion, KeyRef, KeyUse, Protection, PublicKey, Signature, SlotId,
    TokenId,
};

/// A reply that cannot be understood; what is wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

type Result<T> = std::result::Result<T, Malformed>;

/// An identity, and the first account of its home.
pub(super) fn identity(from: wire::Identity) -> Result<(EngineId, IdentityInfo, Option<u32>)> {
    let who = engine(from.id.ok_or(Malformed("an identity without a name"))?)?;
    let mut uses = from.capabilities.iter().map(|usage| key_use(*usage));
    let uses: Vec<KeyUse> = uses.by_ref().collect::<Result<_>>()?;
    let capabilities = match uses.as_slice() {
        [KeyUse::Sign] => Capabilities::Commit,
        [KeyUse::Decrypt] => Capabilities::Decrypt,
        [_, _] => Capabilities::CommitAndDecrypt,
        _ => return Err(Malformed("an identity that can do nothing")),
    };
    let keys = from.keys.into_iter().map(key).collect::<Result<_>>()?;
    let mut info = IdentityInfo::new(Backend::from(from.backend), capabilities, keys);
    info.commitment_engine = from.commitment_engine.map(engine).transpose()?;
    info.decryption_engine = from.decryption_engine.map(engine).transpose()?;
    Ok((who, info, from.first_account))
}

fn key(from: wire::Key) -> Result<KeyInfo> {
    let owner = from.owner.ok_or(Malformed("a key without an owner"))?;
    let attestation = match from.attestation_json.as_str() {
        "" => None,
        text => {
            let parsed = serde_json::from_str::<Attestation>(text);
            Some(parsed.map_err(|_| Malformed("a malformed attestation"))?)
        }
    };
    let usage = key_use(from.usage)?;
    let token = token(from.token.ok_or(Malformed("a key on no token"))?);
    let key = KeyRef {
        slot: SlotId::new(from.slot),
        public_key: public_key(&from.public_key, &from.algorithm)?,
    };
    let origin = match from.origin.as_str() {
        "generated" => Origin::Generated,
        "adopted" => Origin::Adopted,
        _ => return Err(Malformed("an unknown origin of a key")),
    };
    let mut key = KeyInfo::new(usage, key, token, (origin, engine(owner)?));
    key.protection = from.protection.map(|stated| Protection {
        local: stated.local,
        sensitive: stated.sensitive,
        never_extractable: stated.never_extractable,
    });
    key.attestation = attestation;
    key.deleted = from.deleted;
    Ok(key)
}

fn public_key(bytes: &[u8], algorithm: &str) -> Result<PublicKey> {
    let key = match algorithm == Algorithm::Bls12381.name() {
        true => PublicKey::from_bytes(Algorithm::Bls12381, bytes),
        false => PublicKey::from_der(bytes),
    };
    key.map_err(|_| Malformed("a malformed public key"))
}

fn engine(from: wire::EngineId) -> Result<EngineId> {
    match from.node.is_empty() {
        true => Ok(EngineId::local(from.name)),
        false => Err(Malformed("a name of another node")),
    }
}

pub(super) fn token(from: wire::TokenId) -> TokenId {
    TokenId {
        kind: from.kind,
        manufacturer: from.manufacturer,
        serial: from.serial,
    }
}

fn key_use(from: i32) -> Result<KeyUse> {
    match wire::KeyUse::try_from(from) {
        Ok(wire::KeyUse::Sign) => Ok(KeyUse::Sign),
        Ok(wire::KeyUse::Decrypt) => Ok(KeyUse::Decrypt),
        _ => Err(Malformed("an unknown use of a key")),
    }
}

pub(super) fn to_key_uses(capabilities: Capabilities) -> Vec<wire::KeyUse> {
    let usage = |usage| match usage {
        KeyUse::Sign => wire::KeyUse::Sign,
        KeyUse::Decrypt => wire::KeyUse::Decrypt,
    };
    capabilities.uses().map(usage).collect()
}

pub(super) fn deletion(from: wire::Deletion) -> Result<Deletion> {
    match from {
        wire::Deletion::Destroyed => Ok(Deletion::Destroyed),
        wire::Deletion::NothingThere => Ok(Deletion::NothingThere),
        wire::Deletion::Foreign => Ok(Deletion::Foreign),
        wire::Deletion::Derived => Ok(Deletion::Derivable),
        wire::Deletion::Unspecified => Err(Malformed("no word of what became of a key")),
    }
}

pub(super) fn signature(from: wire::Signature) -> Result<Signature> {
    let bad = |_| Malformed("a malformed signature");
    let scheme = from
        .scheme
        .parse()
        .map_err(|_| Malformed("an unknown scheme"))?;
    Signature::new(scheme, from.bytes).map_err(bad)
}
