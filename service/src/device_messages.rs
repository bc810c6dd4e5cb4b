//! Between the wire's messages about devices and those of their driver.

use claviger_attached::{BadDescription, Description, Failure, Reply, Request, StatedKey};
use claviger_attached::{MOST_KEYS, Statement};
use claviger_client::device::LONGEST_MESSAGE;
use claviger_client::wire::{self, device_reply, device_request as asked};
use claviger_token::{Algorithm, KeySpec, KeyUse, Protection, PublicKey, Secret};

/// What a program states of its device.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn description(device: wire::Device) -> Result<Description, BadDescription> {
    let specs = |specs: Vec<wire::KeySpec>| -> Result<Vec<KeySpec>, BadDescription> {
        let specs = specs.iter().map(|one| spec(Some(one)));
        specs.collect::<Result<_, _>>().map_err(BadDescription)
    };
    let or_most = |number: u32, most: usize| match number {
        0 => most,
        number => number as usize,
    };
    let identity = PublicKey::from_der(&device.public_key);
    Description::new(Statement {
        kind: device.kind,
        label: device.label,
        model: device.model,
        identity: identity.map_err(|_| BadDescription("its identity key is none"))?,
        makes: specs(device.makes)?,
        uses: specs(device.uses)?,
        takes_digests: device.takes_digests,
        longest_message: or_most(device.longest_message, LONGEST_MESSAGE).min(LONGEST_MESSAGE),
        most_keys: or_most(device.most_keys, MOST_KEYS),
    })
}

/// A request to a device.
///
/// # Errors
/// [`Failure::Malformed`] for what cannot be said, which no driver asks for.
pub(crate) fn request(request: &Request<'_>) -> Result<asked::Request, Failure> {
    Ok(match request {
        Request::List => asked::Request::List(wire::DeviceList {}),
        Request::Generate { slot, spec, label } => asked::Request::Generate(wire::DeviceGenerate {
            slot: (*slot).to_owned(),
            spec: Some(wire::KeySpec {
                algorithm: spec.algorithm.name().to_owned(),
                usage: match spec.usage {
                    KeyUse::Sign => wire::KeyUse::Sign.into(),
                    KeyUse::Decrypt => wire::KeyUse::Decrypt.into(),
                },
            }),
            label: (*label).to_owned(),
        }),
        Request::SetLabel {
            slot,
            public_key,
            label,
        } => asked::Request::SetLabel(wire::DeviceSetLabel {
            slot: (*slot).to_owned(),
            public_key: encoded(public_key),
            label: (*label).to_owned(),
        }),
        Request::Sign {
            slot,
            public_key,
            scheme,
            data,
            is_digest,
        } => {
            if data.len() > LONGEST_MESSAGE {
                return Err(Failure::Malformed("the message is longer than a frame"));
            }
            asked::Request::Sign(wire::DeviceSign {
                slot: (*slot).to_owned(),
                public_key: encoded(public_key),
                scheme: scheme.name().to_owned(),
                data: data.to_vec(),
                is_digest: *is_digest,
            })
        }
        Request::Agree {
            slot,
            public_key,
            peer,
        } => asked::Request::Agree(wire::DeviceAgree {
            slot: (*slot).to_owned(),
            public_key: encoded(public_key),
            peer: encoded(peer),
        }),
        Request::Delete { slot, public_key } => asked::Request::Delete(wire::DeviceDelete {
            slot: (*slot).to_owned(),
            public_key: encoded(public_key),
        }),
    })
}

/// The reply of a device to a request.
///
/// # Errors
/// [`Failure`]: it does not do it, or the reply is none.
pub(crate) fn reply(request: &Request<'_>, reply: device_reply::Reply) -> Result<Reply, Failure> {
    match reply {
        device_reply::Reply::Failure(wire::DeviceFailure { code, message }) => {
            Err(Failure::Refused { code, message })
        }
        device_reply::Reply::Keys(all) => {
            if all.keys.len() > MOST_KEYS {
                return Err(Failure::Malformed("it has more keys than it may have"));
            }
            let keys = all.keys.into_iter().map(|key| {
                let spec = spec(key.spec.as_ref())?;
                StatedKey::new(key.slot, spec, &key.public_key, key.label)
            });
            let keys = keys.collect::<Result<_, _>>().map_err(Failure::Malformed)?;
            Ok(Reply::Keys(keys))
        }
        device_reply::Reply::Generated(made) => {
            let Request::Generate { spec, .. } = request else {
                return Err(Failure::Malformed("no key was to be made"));
            };
            let public_key = StatedKey::public_key(spec.algorithm, &made.public_key);
            Ok(Reply::Generated {
                public_key: public_key.map_err(Failure::Malformed)?,
                protection: Protection {
                    local: true,
                    sensitive: made.is_sensitive,
                    never_extractable: made.is_never_extractable,
                },
            })
        }
        device_reply::Reply::Signature(bytes) => Ok(Reply::Signature(bytes)),
        device_reply::Reply::Secret(mut secret) => Ok(Reply::Secret(Secret::new(std::mem::take(
            &mut secret.secret,
        )))),
        device_reply::Reply::Done(done) => Ok(Reply::Done(done)),
    }
}

fn spec(spec: Option<&wire::KeySpec>) -> Result<KeySpec, &'static str> {
    let spec = spec.ok_or("a key has no kind")?;
    let algorithm = spec.algorithm.parse::<Algorithm>();
    Ok(KeySpec {
        algorithm: algorithm.map_err(|_| "an algorithm is unknown")?,
        usage: match spec.usage() {
            wire::KeyUse::Sign => KeyUse::Sign,
            wire::KeyUse::Decrypt => KeyUse::Decrypt,
            wire::KeyUse::Unspecified => return Err("a key has no use"),
        },
    })
}

/// A public key as the wire has it.
fn encoded(key: &PublicKey) -> Vec<u8> {
    key.to_der().unwrap_or_else(|| key.as_bytes().to_vec())
}
