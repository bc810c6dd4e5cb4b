//! `tokens`: attached tokens, and what they show without a PIN.

use claviger_client::wire::UnreadablePlace;
use claviger_engine::{Registry, TokenChange, TokenState};
use claviger_token::needs::Need;
use claviger_token::{Algorithm, Error, KeySpec, KeyUse, SlotInfo, SlotState, TokenInfo};
use serde::Serialize;
use tokio::time::timeout_at;

use super::{Answer, FINE, doctor};
use crate::failure::Failure;
use crate::session::{self, Session};
use crate::token_views::{self, Listed, TokenView};
use crate::{drivers, hints, home, output};

/// The kind of smartcards, which have no labels and a fixed number of slots.
const PIV: &str = "piv";

/// The kind of Ledgers, which have no labels either.
const LEDGER: &str = "ledger";

pub(crate) async fn run(session: &Session, backend: Option<&str>) -> Answer {
    let (mut found, unreadable) = look(session, backend).await?;
    let missing = missing(session, backend, &found).await?;
    found.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
    let is_any = !found.is_empty();
    if session.json {
        let views: Vec<TokenView> = found.into_iter().map(TokenView::from).collect();
        output::print_json(&views)?;
    } else if found.is_empty() {
        output::print("no tokens\n")?;
        for about in drivers::ABOUT.iter().filter(|_| backend.is_none()) {
            let what = format!("to find {}", about.kind);
            output::complain(
                "hint",
                &format!("{what}: {}", hints::absent(about.scheme)),
                "",
            );
        }
    } else {
        let text: Vec<String> = found
            .iter()
            .map(|(info, slots)| text(info, slots))
            .collect();
        output::print(&text.join("\n"))?;
    }
    // Who finds the token that was named does not want to know of other places.
    let is_found = is_any && backend.is_some_and(names_a_token);
    for (what, hint) in unreadable.into_iter().filter(|_| !is_found) {
        output::warn(&what, &hint);
    }
    for (error, hint) in missing {
        output::warn(&error.to_string(), &hint);
    }
    Ok(FINE)
}

/// What is attached; and what cannot be read, with a hint.
type Found = (Vec<Listed>, Vec<(String, String)>);

/// Looks for tokens, or has a daemon do so.
async fn look(session: &Session, backend: Option<&str>) -> Result<Found, Failure> {
    if let Some(daemon) = session.daemon()? {
        backend.map(session::lasting).transpose()?;
        let _busy = session.screen.spin("looking for tokens");
        let reply = daemon.tokens(backend)?;
        let tokens = token_views::from_json(&reply.json)?;
        let unreadable = reply.unreadable.into_iter().map(of_daemon);
        return Ok((tokens, unreadable.collect()));
    }
    backend.map(session::device).transpose()?;
    let node = session.node(registry(session)?);
    let _busy = session.screen.spin("looking for tokens");
    let who = claviger_engine::EngineId::program();
    let found = node.look(&who, backend, &session.call()).await?;
    let unreadable = found.unreadable.iter().map(doctor::of_unreadable);
    Ok((found.tokens, unreadable.collect()))
}

/// What to say of a place that a daemon cannot read.
fn of_daemon(place: UnreadablePlace) -> (String, String) {
    let hint = hints::of_place_by(&place.code).unwrap_or(place.hint);
    (doctor::cannot_be_read(&place.place, place.message), hint)
}

/// Whether a backend tells one token from others, and not only where to look.
fn names_a_token(backend: &str) -> bool {
    let place = backend.split('?').next().unwrap_or_default();
    ["serial=", "token="]
        .iter()
        .any(|name| place.contains(name))
}

/// The registry, for what was tried on the tokens and which keys identities use; tokens can be
/// looked at without one.
fn registry(session: &Session) -> Result<Registry, Failure> {
    let home = session.home()?;
    let found = home::has_registry(&home).then(|| Registry::open(&home));
    match found {
        Some(Ok(registry)) => Ok(registry),
        Some(Err(error)) => {
            output::warn(&error.to_string(), &hints::of_registry(&error));
            Ok(Registry::in_memory()?)
        }
        None => Ok(Registry::in_memory()?),
    }
}

/// If no token was found: what its driver needs and misses, each with a hint.
///
/// # Errors
/// The same, if the backend names the driver.
async fn missing(
    session: &Session,
    backend: Option<&str>,
    found: &[(TokenInfo, Vec<SlotInfo>)],
) -> Result<Vec<(Error, String)>, Failure> {
    // Many have no smartcards, and do not want to be told each time.
    if !found.is_empty() {
        return Ok(Vec::new());
    }
    let call = session.call();
    // It blocks, like all that asks a device.
    let needs = tokio::task::spawn_blocking(move || drivers::needs(&call)).await;
    let is_meant = |need: &Need| {
        let about = drivers::of(&need.backend);
        backend.is_none_or(|backend| about.is_some_and(|about| about.serves(backend)))
    };
    let needs = needs.unwrap_or_default().into_iter().filter(is_meant);
    let mut missing = needs.filter_map(|need| Some((need.missing?, hints::absent(&need.backend))));
    match backend.and_then(|_| missing.next()) {
        Some((error, hint)) => Err(Failure::from(error).hint(hint)),
        None => Ok(missing.collect()),
    }
}

/// A change in JSON.
#[derive(Serialize)]
struct ChangeView<'a> {
    /// As identities name it.
    token: String,
    kind: &'a str,
    manufacturer: &'a str,
    serial: &'a str,
    before: TokenState,
    state: TokenState,
}

/// `tokens --watch`: a line for each change, or a JSON object on a line.
pub(crate) async fn watch(session: &Session, backend: Option<&str>) -> Answer {
    if let Some(backend) = backend {
        session::device(backend)?;
    }
    let node = session.node(Registry::in_memory()?);
    let mut changes = node.token_changes(backend, &session.call()).await?;
    let kind = backend.and_then(|backend| backend.split(':').next());
    loop {
        let change = match session.deadline {
            None => changes.next().await,
            // Who wants to watch for a while has seen what there was.
            Some(deadline) => match timeout_at(deadline.into(), changes.next()).await {
                Ok(change) => change,
                Err(_) => return Ok(FINE),
            },
        };
        if kind.is_some_and(|kind| kind != change.token.kind) {
            continue;
        }
        let TokenChange {
            token,
            before,
            state,
            ..
        } = change;
        if session.json {
            output::print_json_line(&ChangeView {
                token: token.to_string(),
                kind: &token.kind,
                manufacturer: &token.manufacturer,
                serial: &token.serial,
                before,
                state,
            })?;
        } else {
            let token = token.to_string();
            let token = output::one_line(&token);
            output::print(&format!("{token} is {state} (was {before})\n"))?;
        }
    }
}

fn text(info: &TokenInfo, slots: &[SlotInfo]) -> String {
    let title = match info.label.as_str() {
        // Smartcards have no labels.
        "" if info.id.kind == PIV => &info.model,
        "" if info.id.kind == LEDGER => "Ledger",
        "" => "(no label)",
        label => label,
    };
    let mut text = format!("{}\n", output::one_line(title));
    let mut rows = vec![
        vec!["kind".into(), info.id.kind.clone()],
        vec!["manufacturer".into(), info.id.manufacturer.clone()],
        vec!["model".into(), info.model.clone()],
        vec!["serial".into(), info.id.serial.clone()],
        vec!["backend".into(), info.backend.clone()],
        vec!["generates".into(), kinds(&info.makes, &info.untried)],
        vec!["signs with".into(), algorithms(info, KeyUse::Sign)],
        vec!["decrypts with".into(), algorithms(info, KeyUse::Decrypt)],
    ];
    rows.extend(
        info.notes
            .iter()
            .map(|(name, value)| vec![name.replace('_', " "), value.clone()]),
    );
    rows.extend(free_slots(info, slots).map(|free| vec!["free slots".into(), free]));
    text.push_str(&output::table("  ", &rows));
    let occupied: Vec<&SlotInfo> = slots
        .iter()
        .filter(|slot| slot.state == SlotState::Occupied)
        .collect();
    if occupied.is_empty() {
        text.push_str(match info.login_required {
            true => "  no keys visible without a PIN\n",
            false => "  no keys\n",
        });
        return text;
    }
    text.push_str("  keys\n");
    let rows: Vec<Vec<String>> = occupied.into_iter().map(row).collect();
    text.push_str(&output::table("    ", &rows));
    text
}

/// The names of the free slots, on a token that has a fixed number of them.
fn free_slots(info: &TokenInfo, slots: &[SlotInfo]) -> Option<String> {
    let free = slots.iter().filter(|slot| slot.state == SlotState::Free);
    let names: Vec<&str> = free.map(|slot| slot.slot.as_str()).collect();
    match names.as_slice() {
        [] if info.id.kind == PIV => Some("none".into()),
        [] => None,
        names => Some(names.join(" ")),
    }
}

/// The algorithms that the token works with, and which of them nobody here has tried.
fn algorithms(info: &TokenInfo, usage: KeyUse) -> String {
    let of_use = |specs: &[KeySpec]| -> Vec<KeySpec> {
        let specs = specs.iter().filter(|spec| spec.usage == usage);
        specs.copied().collect()
    };
    kinds(&of_use(&info.uses), &of_use(&info.untried))
}

/// The algorithms of some kinds of key, and which of them nobody here has tried.
fn kinds(specs: &[KeySpec], untried: &[KeySpec]) -> String {
    let name = |algorithm: Algorithm| {
        let mut of_it = specs
            .iter()
            .filter(|spec| spec.algorithm == algorithm)
            .peekable();
        of_it.peek()?;
        Some(match of_it.all(|spec| untried.contains(spec)) {
            true => format!("{algorithm} (not tried)"),
            false => algorithm.to_string(),
        })
    };
    let names: Vec<String> = Algorithm::ALL.into_iter().filter_map(name).collect();
    match names.as_slice() {
        [] => "nothing".into(),
        names => names.join(", "),
    }
}

fn row(slot: &SlotInfo) -> Vec<String> {
    let uses: Vec<&str> = slot.uses.iter().map(|usage| usage.name()).collect();
    vec![
        slot.slot.to_string(),
        slot.algorithm.map_or("other", Algorithm::name).into(),
        uses.join(","),
        slot.fingerprint.clone().unwrap_or_default(),
        slot.label.clone(),
        policies(slot),
        identity(slot),
    ]
}

/// Which identity of the registry uses the key.
fn identity(slot: &SlotInfo) -> String {
    let mut notes = slot.notes.iter();
    let found = notes.find(|(name, _)| name == "identity");
    found.map_or_else(String::new, |(_, owner)| format!("identity {owner}"))
}

/// When the key wants the PIN and a touch, as far as the token says.
fn policies(slot: &SlotInfo) -> String {
    let names = [("pin_policy", "PIN"), ("touch_policy", "touch")];
    let policies = names.into_iter().filter_map(|(note, name)| {
        let (_, value) = slot.notes.iter().find(|(found, _)| found == note)?;
        Some(format!("{name} {value}"))
    });
    policies.collect::<Vec<_>>().join(", ")
}
