//! Views of identities and keys, in JSON and for people.

use claviger_engine::{EngineId, IdentityInfo, KeyInfo, Origin, Party, Registry};
use claviger_formats::{envelope, ssh};
use claviger_token::{Algorithm, Attestation, KeyUse, Protection, PublicKey};
use serde::Serialize;

use crate::{drivers, output};

/// An identity in JSON.
#[derive(Serialize)]
pub(crate) struct IdentityView {
    name: String,
    backend: String,
    capabilities: Vec<&'static str>,
    commitment_engine: Option<String>,
    decryption_engine: Option<String>,
    /// The first account that this home takes, if the keys are derived from a seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_account: Option<u32>,
    keys: Vec<KeyView>,
}

/// A key of an identity in JSON.
#[derive(Serialize)]
struct KeyView {
    r#use: KeyUse,
    algorithm: Algorithm,
    token: String,
    slot: String,
    public_key: String,
    fingerprint: String,
    origin: Origin,
    protection: Option<Protection>,
    /// The identity that it was made or adopted for.
    owner: String,
    /// Whether it was destroyed or released with its owner.
    deleted: bool,
    #[serde(flatten)]
    forms: Option<Forms>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attestation: Option<AttestationView>,
}

/// The attestation of a token that it made a key.
#[derive(Serialize)]
struct AttestationView {
    #[serde(flatten)]
    attestation: Attestation,
    /// Whether the certificates lead to a given root; `null` if none was given.
    chain_ends_in_given_root: Option<bool>,
}

/// A public key in the forms of other programs.
#[derive(Serialize)]
struct Forms {
    ssh: Option<String>,
    age_recipient: Option<String>,
}

impl IdentityView {
    /// The view for `identities`.
    pub(crate) fn brief(name: &EngineId, info: &IdentityInfo) -> Self {
        IdentityView::new(name, info, |_| None, |_| None)
    }

    /// The view for `show`.
    pub(crate) fn full(name: &EngineId, info: &IdentityInfo, roots: Option<&[String]>) -> Self {
        let attestation = |key: &KeyInfo| {
            Some(AttestationView {
                attestation: key.attestation.clone()?,
                chain_ends_in_given_root: believed(key, roots),
            })
        };
        IdentityView::new(name, info, |key| Some(Forms::of(key, name)), attestation)
    }

    fn new(
        name: &EngineId,
        info: &IdentityInfo,
        forms: impl Fn(&KeyInfo) -> Option<Forms>,
        attestation: impl Fn(&KeyInfo) -> Option<AttestationView>,
    ) -> Self {
        let text = |engine: &Option<EngineId>| engine.as_ref().map(EngineId::to_string);
        IdentityView {
            name: name.to_string(),
            backend: info.backend.to_string(),
            capabilities: info.capabilities.names(),
            commitment_engine: text(&info.commitment_engine),
            decryption_engine: text(&info.decryption_engine),
            first_account: None,
            keys: info
                .keys
                .iter()
                .map(|key| KeyView::new(key, forms(key), attestation(key)))
                .collect(),
        }
    }
}

impl IdentityView {
    /// The same, with the first account of this home.
    pub(crate) fn with_accounts(self, first_account: Option<u32>) -> Self {
        IdentityView {
            first_account,
            ..self
        }
    }
}

/// The first account that the home of `registry` takes, for an identity with keys that are derived
/// from a seed.
pub(crate) fn first_account(registry: &Registry, info: &IdentityInfo) -> Option<u32> {
    let is_derived = info.keys.iter().any(is_derived);
    is_derived.then(|| registry.first_account())
}

/// The same for people.
pub(crate) fn accounts(first_account: Option<u32>) -> String {
    match first_account {
        Some(first) => format!("Ledger accounts of this home begin at {first}\n"),
        None => String::new(),
    }
}

impl KeyView {
    fn new(key: &KeyInfo, forms: Option<Forms>, attestation: Option<AttestationView>) -> Self {
        KeyView {
            r#use: key.usage,
            algorithm: key.public_key.algorithm(),
            token: key.token.to_string(),
            slot: key.slot.to_string(),
            public_key: key.public_key.to_text(),
            fingerprint: key.public_key.fingerprint().to_string(),
            origin: key.origin,
            protection: key.protection,
            owner: key.owner.to_string(),
            deleted: key.deleted,
            forms,
            attestation,
        }
    }
}

/// Whether a key's attestation leads to one of `roots`; `None` if there is nothing to check.
fn believed(key: &KeyInfo, roots: Option<&[String]>) -> Option<bool> {
    let attestation = key.attestation.as_ref()?;
    Some(drivers::leads_to(attestation, &key.public_key, roots?))
}

impl Forms {
    /// Each key in the forms for its use: nobody logs in with the key that decrypts, nor encrypts
    /// to the one that signs.
    fn of(key: &KeyInfo, name: &EngineId) -> Self {
        let (ssh, age_recipient) = match key.usage {
            KeyUse::Sign => (ssh::to_line(&key.public_key, &name.to_string()), None),
            KeyUse::Decrypt => (None, envelope::recipient_text(&key.public_key)),
        };
        let line = |text: String| text.trim_end().to_owned();
        Forms {
            ssh: ssh.map(line),
            age_recipient: age_recipient.map(line),
        }
    }
}

/// An identity in JSON for others: as `show` prints it, with fewer fields.
#[derive(Serialize)]
pub(crate) struct PartyView {
    pub(crate) name: String,
    keys: Vec<PartyKeyView>,
}

#[derive(Serialize)]
struct PartyKeyView {
    r#use: KeyUse,
    algorithm: Algorithm,
    public_key: String,
    fingerprint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_recipient: Option<String>,
}

impl PartyView {
    pub(crate) fn of(party: &Party) -> Self {
        let view = |usage, key: &PublicKey| PartyKeyView {
            r#use: usage,
            algorithm: key.algorithm(),
            public_key: key.to_text(),
            fingerprint: key.fingerprint().to_string(),
            age_recipient: (usage == KeyUse::Decrypt)
                .then(|| envelope::recipient_text(key))
                .flatten()
                .map(|text| text.trim_end().to_owned()),
        };
        let sign = party.keys.sign.iter().map(|key| view(KeyUse::Sign, key));
        let decrypt = party.keys.decrypt.iter();
        PartyView {
            name: party.name.to_string(),
            keys: sign
                .chain(decrypt.map(|key| view(KeyUse::Decrypt, key)))
                .collect(),
        }
    }

    /// In a few lines, for people.
    pub(crate) fn summary(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .keys
            .iter()
            .map(|key| {
                vec![
                    key.r#use.name().into(),
                    key.algorithm.name().into(),
                    key.fingerprint.clone(),
                ]
            })
            .collect();
        format!("{}\n{}", self.name, output::table("  ", &rows))
    }
}

/// The identities, for people: a row for each.
pub(crate) struct List(Vec<Vec<String>>);

impl List {
    pub(crate) fn new() -> Self {
        let header = ["NAME", "CAN", "ALGORITHM", "BACKEND"];
        List(vec![header.map(String::from).to_vec()])
    }

    pub(crate) fn add(&mut self, name: &EngineId, info: &IdentityInfo) {
        let mut algorithms: Vec<&str> = Vec::new();
        for key in &info.keys {
            let algorithm = key.public_key.algorithm().name();
            if !algorithms.contains(&algorithm) {
                algorithms.push(algorithm);
            }
        }
        let gone = info.keys.iter().find(|key| key.deleted);
        self.0.push(vec![
            name.to_string(),
            match gone {
                Some(key) => format!("nothing: `{}` was deleted", key.owner),
                None => info.capabilities.to_string(),
            },
            algorithms.join(","),
            info.backend.to_string(),
        ]);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.len() == 1
    }

    pub(crate) fn table(&self) -> String {
        output::table("", &self.0)
    }
}

/// One identity in a few lines, for people.
pub(crate) fn summary(name: &EngineId, info: &IdentityInfo) -> String {
    let mut text = format!("{name}\n");
    let rows: Vec<Vec<String>> = info
        .keys
        .iter()
        .map(|key| {
            vec![
                key.usage.name().into(),
                key.public_key.algorithm().name().into(),
                key.public_key.fingerprint().to_string(),
                format!("slot {}", key.slot),
            ]
        })
        .collect();
    text.push_str(&output::table("  ", &rows));
    text.push_str(&format!("  {}\n", info.backend));
    text
}

/// One identity in full, for people.
pub(crate) fn full(name: &EngineId, info: &IdentityInfo, roots: Option<&[String]>) -> String {
    let mut text = output::table(
        "",
        &[
            vec!["name".into(), name.to_string()],
            vec!["can".into(), info.capabilities.to_string()],
            vec!["backend".into(), info.backend.to_string()],
        ],
    );
    for key in &info.keys {
        text.push_str(&format!(
            "\n{} key: {}\n",
            key.usage,
            key.public_key.algorithm()
        ));
        if key.deleted {
            text.push_str(&format!(
                "  This key can no longer be used: `{}`, which it belonged to, was deleted.\n",
                key.owner
            ));
        }
        let mut rows = vec![
            vec!["token".into(), key.token.to_string()],
            vec!["slot".into(), key.slot.to_string()],
            vec![
                "fingerprint".into(),
                key.public_key.fingerprint().to_string(),
            ],
            vec!["origin".into(), origin(key, name)],
        ];
        if let Some(attestation) = &key.attestation {
            let facts = attestation
                .facts
                .iter()
                .map(|(what, is)| format!("{} {is}", what.replace('_', " ")));
            let facts: Vec<String> = facts.collect();
            rows.push(vec!["attested".into(), facts.join(", ")]);
            rows.extend(believed(key, roots).map(|believed| {
                let verdict = match believed {
                    true => "the certificates lead to a root that was given",
                    false => "NOT BELIEVED: the certificates lead to no root that was given",
                };
                vec!["".into(), verdict.into()]
            }));
        }
        let forms = Forms::of(key, name);
        rows.extend(forms.ssh.map(|ssh| vec!["ssh".into(), ssh]));
        rows.extend(forms.age_recipient.map(|age| vec!["age".into(), age]));
        text.push_str(&output::table("  ", &rows));
        text.push_str(key.public_key.to_text().trim_end());
        text.push('\n');
    }
    text
}

fn origin(key: &KeyInfo, name: &EngineId) -> String {
    let mut text = String::from(match key.origin {
        Origin::Generated if is_derived(key) => "derived on the token",
        Origin::Generated => "generated on the token",
        Origin::Adopted => "found on the token",
    });
    if key.owner != *name {
        text.push_str(&format!(", belongs to `{}`", key.owner));
    }
    match key.protection {
        // It is the seed that counts, and whoever set the device up was told to write it down.
        Some(Protection::FULL) if is_derived(key) => {
            text.push_str(", from its seed, which may be on paper");
        }
        Some(Protection::FULL) => text.push_str(", cannot leave it"),
        Some(protection) => {
            if let Some(missing) = protection.missing() {
                text.push_str(&format!(", but {missing}"));
            }
        }
        None => {}
    }
    text
}

/// Whether the token derives its keys from a seed.
fn is_derived(key: &KeyInfo) -> bool {
    key.token.kind == "ledger"
}
