//! `doctor`: reports what is wrong with this set-up, and what to do about it.
//!
//! It changes nothing and asks for no PIN, unless `--repair` is given.

pub(super) mod accounts;
mod certificates;
mod daemon;
mod needs;
pub(super) mod pins;
mod udev;
mod unknown;
mod usb;

use std::collections::BTreeMap;
use std::path::Path;

use claviger_engine::{
    Backend, EngineError, EngineId, IdentityInfo, KeyInfo, Node, Origin, Registry, RegistryError,
};
use claviger_token::needs::Need;
use claviger_token::{Error, SlotInfo, TokenId, TokenInfo, Unreadable, shell};
use serde::Serialize;

use super::{Answer, FINE};
use crate::failure::{FAILED, Failure};
use crate::home::{REGISTRY, has_registry};
use crate::session::{Session, describe};
use crate::{drivers, hints, output};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Info,
    /// Not there, and perhaps not needed.
    Note,
    /// Works, but not as it should.
    Warning,
    /// Does not work.
    Error,
}

#[derive(Serialize)]
struct Finding {
    level: Level,
    what: String,
    hint: String,
    /// Of what is wrong with the registry: one of ERRORS.md.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    findings: Vec<Finding>,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, what: impl Into<String>, hint: impl Into<String>) {
        self.0.push(Finding {
            level,
            what: what.into(),
            hint: hint.into(),
            code: None,
        });
    }

    fn info(&mut self, what: impl Into<String>) {
        self.add(Level::Info, what, "");
    }

    fn note(&mut self, what: impl Into<String>, hint: impl Into<String>) {
        self.add(Level::Note, what, hint);
    }

    fn warning(&mut self, what: impl Into<String>, hint: impl Into<String>) {
        self.add(Level::Warning, what, hint);
    }

    fn error(&mut self, what: impl Into<String>, hint: impl Into<String>) {
        self.add(Level::Error, what, hint);
    }

    /// The registry is no good, or a part of it. The rest of the set-up may be.
    ///
    /// # Errors
    /// What is not about the registry.
    fn broken(&mut self, home: &Path, error: EngineError) -> Result<(), Failure> {
        let EngineError::Registry(error) = error else {
            return Err(error.into());
        };
        let path = home.join(REGISTRY);
        let what = match &error {
            RegistryError::NotAFolder { .. } | RegistryError::NotARegistry { .. } => {
                error.to_string()
            }
            _ => format!("{error} ({})", path.display()),
        };
        // Several looks may have found the same.
        if !self.0.iter().any(|finding| finding.what == what) {
            self.error(what, hints::of_registry(&error));
            if let Some(finding) = self.0.last_mut() {
                finding.code = Some(error.code());
            }
        }
        Ok(())
    }

    /// Has what was added last come before all else.
    fn last_comes_first(&mut self) {
        self.0.rotate_right(1);
    }

    fn is_well(&self) -> bool {
        (self.0.iter()).all(|finding| matches!(finding.level, Level::Info | Level::Note))
    }
}

/// The tokens that were seen, with what is on them.
type AttachedTokens = BTreeMap<TokenId, (TokenInfo, Vec<SlotInfo>)>;

fn note_seen(seen: &mut AttachedTokens, tokens: Vec<(TokenInfo, Vec<SlotInfo>)>) {
    seen.extend(
        tokens
            .into_iter()
            .map(|(token, slots)| (token.id.clone(), (token, slots))),
    );
}

pub(crate) async fn run(session: &Session, repair: bool) -> Answer {
    let mut findings = Findings::default();
    let home = session.home()?;
    let registry = check_home(&home, &mut findings)?;
    let has_registry = registry.is_some();
    let node = session.node(match registry {
        Some(registry) => registry,
        None => Registry::in_memory()?,
    });
    if has_registry {
        check_registry(&home, node.registry(), &mut findings)?;
        if let Err(error) = check_intents(session, &node, repair, &mut findings).await {
            findings.broken(&home, error)?;
        }
        if let Err(error) = pins::check(node.registry(), &mut findings) {
            findings.broken(&home, error.into())?;
        }
        if let Err(error) = certificates::check(node.registry(), &mut findings) {
            findings.broken(&home, error)?;
        }
    }
    daemon::check(session, &mut findings);
    {
        let _busy = session.screen.spin("looking at the tokens");
        let mut seen = AttachedTokens::new();
        let needs = needs(session).await;
        needs::check(session, &node, &needs, &mut seen, &mut findings).await;
        usb::check(&usb::Host::this(), &needs, &mut findings);
        if has_registry
            && let Err(error) = check_identities(session, &node, &mut seen, &mut findings).await
        {
            findings.broken(&home, error)?;
        }
        unknown::check(node.registry(), &seen, &mut findings);
    }
    let well = findings.is_well();
    if session.json {
        output::print_json(&Report {
            ok: well,
            findings: findings.0,
        })?;
    } else {
        output::print(&text(&findings))?;
    }
    Ok(if well { FINE } else { FAILED })
}

/// What the drivers need on this machine; that a service does not answer keeps nobody else waiting.
async fn needs(session: &Session) -> Vec<Need> {
    let call = session.call();
    let needs = tokio::task::spawn_blocking(move || drivers::needs(&call));
    needs.await.unwrap_or_default()
}

fn text(findings: &Findings) -> String {
    let mut text = String::new();
    for finding in &findings.0 {
        let mark = match finding.level {
            Level::Info => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        text.push_str(&format!("{mark:8} {}\n", output::one_line(&finding.what)));
        if !finding.hint.is_empty() {
            text.push_str(&format!("{:8} hint: {}\n", "", finding.hint));
        }
    }
    text.push_str(match findings.is_well() {
        true => "nothing is wrong\n",
        false => "something is wrong\n",
    });
    text
}

/// Looks at the home folder, and opens the registry where there is one.
fn check_home(home: &Path, findings: &mut Findings) -> Result<Option<Registry>, Failure> {
    let shown = home.display();
    if !home.exists() {
        findings.info(format!(
            "the home folder {shown} is not there yet; the first identity makes it"
        ));
        return Ok(None);
    }
    if home.is_dir() && !has_registry(home) {
        findings.info(format!(
            "there is no registry in {shown} yet; the first identity makes it"
        ));
        check_permissions(home, findings);
        return Ok(None);
    }
    let registry = match Registry::open(home) {
        Ok(registry) => registry,
        Err(error) => {
            findings.broken(home, error.into())?;
            return Ok(None);
        }
    };
    match tempfile::NamedTempFile::new_in(home) {
        Ok(_) => findings.info(format!("the home folder {shown} is writable")),
        Err(error) => findings.error(
            format!("the home folder {shown} cannot be written to: {error}"),
            "check its permissions and the space that is left",
        ),
    }
    check_permissions(home, findings);
    Ok(Some(registry))
}

/// Looks through the registry.
fn check_registry(
    home: &Path,
    registry: &Registry,
    findings: &mut Findings,
) -> Result<(), Failure> {
    match registry.check() {
        Ok(faults) if faults.is_empty() => findings.info("the registry is intact"),
        Ok(faults) => {
            for fault in faults {
                findings.broken(home, fault.into())?;
            }
        }
        Err(error) => findings.broken(home, error.into())?,
    }
    Ok(())
}

#[cfg(unix)]
fn check_permissions(home: &Path, findings: &mut Findings) {
    use std::os::unix::fs::PermissionsExt;
    let Ok(metadata) = home.metadata() else {
        return;
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        findings.warning(
            format!(
                "others have access to the home folder {} (mode {mode:o}): \
                 whoever can write to it can replace keys",
                home.display()
            ),
            format!("chmod 700 {}", shell::quoted(&home.display().to_string())),
        );
    }
}

#[cfg(not(unix))]
fn check_permissions(_: &Path, _: &mut Findings) {}

/// Says what was interrupted, or resolves it.
async fn check_intents(
    session: &Session,
    node: &Node,
    repair: bool,
    findings: &mut Findings,
) -> Result<(), EngineError> {
    let open = node.registry().open_intents()?;
    if node.registry().is_copy() {
        let error = RegistryError::Copy;
        match open.is_empty() {
            true => findings.note(error.to_string(), hints::of_registry(&error)),
            false => findings.warning(error.to_string(), hints::of_registry(&error)),
        }
    }
    if open.is_empty() {
        findings.info("there are no abandoned intents");
        return Ok(());
    }
    if !repair {
        for intent in &open {
            findings.warning(
                describe(intent),
                "insert the token, then run: claviger doctor --repair",
            );
        }
        return Ok(());
    }
    let left = {
        let _phase = session.interrupt.tidily();
        let _busy = session.screen.spin("resolving what was interrupted");
        node.resolve_intents(&session.call()).await?
    };
    if session.interrupt.came() {
        return Err(Error::Cancelled.into());
    }
    for intent in &open {
        match left.iter().find(|(left, _)| left == intent) {
            None => findings.info(format!(
                "what was interrupted for `{}` on {} is resolved",
                intent.identity, intent.token
            )),
            Some((_, error)) => {
                findings.error(format!("{}: {error}", describe(intent)), hints::of(error));
            }
        }
    }
    Ok(())
}

fn unreadable(place: &Unreadable, findings: &mut Findings) {
    let (what, hint) = of_unreadable(place);
    findings.warning(what, hint);
}

/// What to say of a place that cannot be read.
pub(super) fn of_unreadable(Unreadable { place, error, .. }: &Unreadable) -> (String, String) {
    let what = cannot_be_read(place, error.to_string());
    (what, hints::of_place(&error.clone().into()))
}

/// That a place cannot be read.
pub(super) fn cannot_be_read(place: &str, reason: String) -> String {
    match reason.contains(place) {
        true => reason,
        false => format!("{} cannot be read: {reason}", output::one_line(place)),
    }
}

/// Looks whether the keys of each identity are there.
async fn check_identities(
    session: &Session,
    node: &Node,
    all_seen: &mut AttachedTokens,
    findings: &mut Findings,
) -> Result<(), EngineError> {
    let identities = node.registry().identities()?;
    findings.info(format!("identities: {}", identities.len()));
    let mut seen = BTreeMap::new();
    for (name, info) in &identities {
        if let Some(key) = info.keys.iter().find(|key| key.deleted) {
            findings.warning(
                format!(
                    "`{name}` cannot be used: `{}`, which it was connected to, was deleted",
                    key.owner
                ),
                format!("claviger delete {}", shell::quoted(&name.name)),
            );
            continue;
        }
        let Backend::LocalConnection { subtype } = &info.backend else {
            continue;
        };
        if !seen.contains_key(subtype) {
            let found = node
                .tokens(&EngineId::program(), Some(subtype), &session.call())
                .await;
            seen.insert(subtype.clone(), found);
        }
        match seen.get(subtype) {
            Some(Ok(tokens)) => check_identity(name, info, tokens, findings),
            Some(Err(error)) => {
                findings.error(
                    format!("`{name}` cannot be used: {error}"),
                    hints::of(error),
                );
            }
            None => {}
        }
    }
    let mut of_identities = AttachedTokens::new();
    for tokens in seen.into_values().flatten() {
        note_seen(&mut of_identities, tokens);
    }
    of_identities
        .values()
        .for_each(|(token, _)| check_token(token, findings));
    all_seen.extend(of_identities);
    Ok(())
}

fn check_identity(
    name: &EngineId,
    info: &IdentityInfo,
    tokens: &[(TokenInfo, Vec<SlotInfo>)],
    findings: &mut Findings,
) {
    let mut well = true;
    for key in &info.keys {
        let Some((_, slots)) = tokens.iter().find(|(token, _)| token.id == key.token) else {
            findings.warning(
                format!("the token of `{name}` is absent: {}", info.backend),
                "insert it; the identity is kept meanwhile",
            );
            return;
        };
        well &= check_key(name, key, slots, findings);
    }
    if well {
        findings.info(format!("the token of `{name}` is attached"));
    }
}

/// Whether the key is where it should be, as far as can be seen without a PIN.
fn check_key(name: &EngineId, key: &KeyInfo, slots: &[SlotInfo], findings: &mut Findings) -> bool {
    let what = format!("the key of `{name}` that is to {} ", key.usage);
    let delete = format!("claviger delete {}", shell::quoted(&name.name));
    // Others may have moved it, or put a key of theirs beside it.
    let is_it = |slot: &SlotInfo| slot.public_key.as_ref() == Some(&key.public_key);
    if slots.iter().any(is_it) {
        return true;
    }
    let there = slots.iter().find(|slot| key.slot.is_in(&slot.slot));
    match there.map(|slot| &slot.public_key) {
        Some(Some(found)) if *found != key.public_key => {
            findings.error(
                format!("{what}is not in slot {}: another key is there", key.slot),
                format!("if it is lost for good: {delete}"),
            );
            false
        }
        // Only what we made ourselves is sure to show its public half.
        None if key.origin == Origin::Generated => {
            findings.error(
                format!("{what}is not on the token any more (slot {})", key.slot),
                format!("somebody else deleted it; if it is lost for good: {delete}"),
            );
            false
        }
        _ => true,
    }
}

/// What a token says of its own state.
fn check_token(token: &TokenInfo, findings: &mut Findings) {
    for (name, value) in &token.notes {
        let what = match token.label.as_str() {
            "" => format!("the token {}", token.id),
            label => format!("the token {label} ({})", token.id),
        };
        match (name.as_str(), value.as_str()) {
            ("pin_locked", "true") => findings.error(
                format!("{what} has its PIN locked"),
                "unlock it with the vendor's tool (PUK or security officer)",
            ),
            ("pin_tries", "1") => findings.warning(
                format!("{what} has one PIN attempt remaining"),
                "if you are sure of the PIN, log in with --last-try",
            ),
            ("pin_tries", "low") => findings.warning(
                format!("{what} has rejected a PIN since the last login"),
                "if it was not you, find out who it was; the next login clears the count",
            ),
            ("write_protected", "true") => findings.warning(
                format!("{what} is write-protected: no keys can be made or destroyed on it"),
                "remove the write protection",
            ),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kind_of_token_needs_is_said_by_its_driver() {
        for text in [
            include_str!("doctor.rs"),
            include_str!("doctor/needs.rs"),
            include_str!("doctor/usb.rs"),
        ] {
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            for kind in [
                "pkcs11",
                "PKCS#11",
                "p11-kit",
                "smartcard",
                "PIV",
                "piv:",
                "YubiKey",
            ] {
                assert!(!code.contains(kind), "{kind}");
            }
        }
    }

    #[test]
    fn only_information_is_no_fault() {
        let mut findings = Findings::default();
        findings.info("a");
        findings.note("n", "h");
        assert!(findings.is_well());
        assert!(text(&findings).ends_with("nothing is wrong\n"));
        findings.warning("b", "c");
        assert!(!findings.is_well());
        assert!(text(&findings).contains("warning  b\n         hint: c\n"));
    }
}
