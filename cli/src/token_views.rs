//! Tokens as JSON, written and read: a daemon hands them to the command so.

use claviger_engine::FoundTokens;
use claviger_token::{PublicKey, SlotInfo, TokenInfo};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::hints;

/// A token with its slots.
pub(crate) type Listed = (TokenInfo, Vec<SlotInfo>);

/// A token in JSON.
#[derive(Serialize, Deserialize)]
pub(crate) struct TokenView {
    #[serde(flatten)]
    info: TokenInfo,
    slots: Vec<SlotView>,
}

#[derive(Serialize, Deserialize)]
struct SlotView {
    #[serde(flatten)]
    info: SlotInfo,
    public_key: Option<String>,
}

impl From<Listed> for TokenView {
    fn from((info, slots): Listed) -> Self {
        let slot = |info: SlotInfo| SlotView {
            public_key: info.public_key.as_ref().map(|key| key.to_text()),
            info,
        };
        TokenView {
            info,
            slots: slots.into_iter().map(slot).collect(),
        }
    }
}

impl From<TokenView> for Listed {
    fn from(view: TokenView) -> Self {
        let slot = |slot: SlotView| {
            let mut info = slot.info;
            let key = slot.public_key.as_deref().map(PublicKey::from_text);
            info.public_key = key.and_then(Result::ok);
            info
        };
        (view.info, view.slots.into_iter().map(slot).collect())
    }
}

/// What was found, as a daemon hands it on.
pub(crate) fn to_json(found: &FoundTokens) -> String {
    let views: Vec<TokenView> = found.tokens.iter().cloned().map(TokenView::from).collect();
    // Text has no value that JSON cannot have.
    serde_json::to_string(&views).unwrap_or_default()
}

/// What a daemon handed on.
///
/// # Errors
/// It is something else.
pub(crate) fn from_json(text: &str) -> Result<Vec<Listed>, Failure> {
    let views: Vec<TokenView> = serde_json::from_str(text).map_err(|error| {
        Failure::new(format!(
            "the daemon's list of tokens cannot be read: {error}"
        ))
        .coded("daemon-protocol")
        .hint(hints::by_code("daemon-protocol"))
    })?;
    Ok(views.into_iter().map(Listed::from).collect())
}

#[cfg(test)]
mod tests {
    use claviger_token::{KeySpec, SlotName, TokenId};

    use super::*;

    #[test]
    fn what_a_daemon_hands_on_is_read_as_it_was() {
        let id = TokenId {
            kind: "pkcs11".into(),
            manufacturer: "x".into(),
            serial: "1".into(),
        };
        let mut token = TokenInfo::new(id, "pkcs11:serial=1");
        token
            .makes
            .push(KeySpec::sign(claviger_token::Algorithm::P256));
        token.notes.push(("firmware".into(), "5.7".into()));
        let slots = vec![
            SlotInfo::free(SlotName::new("9a")),
            SlotInfo::occupied(SlotName::new("9c")),
        ];
        let found = FoundTokens::new(vec![(token.clone(), slots.clone())], Vec::new());
        assert_eq!(from_json(&to_json(&found)).unwrap(), [(token, slots)]);
        let failure = from_json("[{}]").unwrap_err();
        assert_eq!(failure.code(), "daemon-protocol");
    }
}
