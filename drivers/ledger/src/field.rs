//! The devices of one transport, and the choice among them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use claviger_token::sync::lock;
use claviger_token::{Call, Error, TokenId};

use crate::backend::Backend;
use crate::error::Fault;
use crate::ethereum::Known;
use crate::port::{Port, Shown, nobody};
use crate::transport::{Devices, Unreachable};
use crate::wait::Wait;

/// The devices that can be reached in one way.
pub(crate) struct Field {
    pub(crate) devices: Box<dyn Devices>,
    /// The address, where that is the way.
    pub(crate) tcp: Option<String>,
    ports: Mutex<BTreeMap<String, Arc<Port>>>,
}

/// What a device showed of itself.
pub(crate) struct Attached {
    pub(crate) port: Arc<Port>,
    pub(crate) shown: Result<Shown, Fault>,
}

impl Field {
    pub(crate) fn new(devices: Box<dyn Devices>, tcp: Option<String>) -> Arc<Self> {
        Arc::new(Field {
            devices,
            tcp,
            ports: Mutex::default(),
        })
    }

    /// The devices that are there. One that stayed where it was stays open.
    pub(crate) fn ports(&self) -> Result<Vec<Arc<Port>>, Unreachable> {
        let attached = self.devices.list()?;
        let mut ports = lock(&self.ports);
        ports.retain(|path, _| attached.iter().any(|device| device.path == *path));
        for device in attached {
            let path = device.path.clone();
            ports
                .entry(path)
                .or_insert_with(|| Arc::new(Port::new(device)));
        }
        Ok(ports.values().cloned().collect())
    }

    /// Whether there were devices when they were listed last.
    pub(crate) fn is_inhabited(&self) -> bool {
        !lock(&self.ports).is_empty()
    }

    /// What each device shows of itself.
    pub(crate) fn look(&self, call: &Call) -> Result<Vec<Attached>, Unreachable> {
        let seen = self.ports()?.into_iter().map(|port| Attached {
            shown: port.look(&*self.devices, call),
            port,
        });
        Ok(seen.collect())
    }

    /// The one device that is wanted. Waits for a person to unlock it and to open the
    /// app.
    pub(crate) fn find(&self, text: &str, wanted: &Backend, call: &Call) -> Result<Found, Error> {
        let nobody = TokenId {
            serial: wanted.serial.clone().unwrap_or_default(),
            ..nobody()
        };
        let mut wait = Wait::new(call);
        loop {
            let seen = self.look(call).map_err(unreachable)?;
            call.check()?;
            let (mut ready, mut held, mut failed) = (Vec::<Found>::new(), Vec::new(), None);
            for Attached { port, shown } in seen {
                match shown.map(|shown| shown.known) {
                    // The same seed on another device is the same token.
                    Ok(known) if ready.iter().any(|(_, other)| other.id == known.id) => {}
                    Ok(known) => ready.push((port, known)),
                    Err(fault @ (Fault::Locked { .. } | Fault::NoApp { .. } | Fault::Occupied)) => {
                        held.push((port, fault));
                    }
                    Err(fault) => failed = failed.or(self.failure(&port, fault)),
                }
            }
            let present: Vec<String> = ready.iter().map(|(_, known)| self.name(known)).collect();
            ready.retain(|(_, known)| wanted.fits(&known.id.serial));
            let undecided = wanted.serial.is_none() && ready.len() + held.len() > 1;
            if undecided && !ready.is_empty() {
                let held = held.iter().map(|(port, fault)| match fault {
                    Fault::Locked { .. } => format!("the {}, which is locked", port.device()),
                    Fault::Occupied => {
                        format!("the {}, which is busy with a review", port.device())
                    }
                    _ => format!("the {}, whose app is not open", port.device()),
                });
                return Err(Error::AmbiguousToken {
                    wanted: text.into(),
                    candidates: present.into_iter().chain(held).collect(),
                });
            }
            match (ready.pop(), held.into_iter().next()) {
                (Some(found), _) => return Ok(found),
                (None, Some((_, fault))) => wait.for_person(fault, &nobody)?,
                (None, None) if wait.is_back_soon()? => {}
                (None, None) => {
                    return Err(failed.unwrap_or_else(|| Error::NoToken {
                        wanted: text.into(),
                        present,
                    }));
                }
            }
        }
    }

    /// What it means that a device cannot be used. At an address nothing need be there.
    fn failure(&self, port: &Port, fault: Fault) -> Option<Error> {
        tracing::debug!(path = port.path, ?fault, "the device cannot be used");
        match fault {
            Fault::Lost { .. } if self.tcp.is_some() => None,
            Fault::Lost { reason, .. } => Some(Error::System {
                what: format!("the {} cannot be used", port.device()),
                reason,
            }),
            fault => Some(fault.into_error(&nobody())),
        }
    }

    pub(crate) fn name(&self, known: &Known) -> String {
        Backend::of(&known.id.serial, self.tcp.as_deref())
    }
}

/// A device, and what it showed of itself.
pub(crate) type Found = (Arc<Port>, Known);

pub(crate) fn unreachable(Unreachable { what, reason }: Unreachable) -> Error {
    Error::System { what, reason }
}
