//! `age-identity`: what other age programs need to use an identity through their plugin.

use claviger_engine::{EngineError, EngineId};
use claviger_formats::{age_plugin, envelope};
use claviger_token::KeyUse;
use serde::Serialize;

use super::{Answer, FINE, identities};
use crate::daemon::Known;
use crate::output;
use crate::session::Session;

/// An identity for age programs, in JSON.
#[derive(Serialize)]
struct View {
    name: String,
    /// The line of an identity file.
    identity: String,
    /// To encrypt to it with the plugin.
    recipient: String,
    /// To encrypt to it without the plugin.
    native_recipient: String,
}

pub(crate) fn print(session: &Session, name: &str) -> Answer {
    let Known { who, info, .. } = identities::known(session, name)?;
    let view = match info.key(KeyUse::Decrypt) {
        Some(key) if key.deleted => {
            let identity = key.owner.clone();
            return Err(EngineError::IdentityDeleted { identity }.into());
        }
        Some(key) => view(&who, &key.public_key),
        None => None,
    };
    let view = view.ok_or(EngineError::NoEncryptionKey { identity: who })?;
    match session.json {
        true => output::print_json(&view)?,
        false => output::print(&format!(
            "# identity: {}\n# public key: {}\n# native public key: {}\n{}\n",
            view.name, view.recipient, view.native_recipient, view.identity
        ))?,
    }
    Ok(FINE)
}

/// `None` if nothing can be encrypted to the key.
fn view(who: &EngineId, key: &claviger_token::PublicKey) -> Option<View> {
    Some(View {
        name: who.name.to_string(),
        identity: age_plugin::identity_text(key, &who.name)?,
        recipient: age_plugin::recipient_text(key)?,
        native_recipient: envelope::recipient_text(key)?.trim().to_owned(),
    })
}
