//! Tells the person at the machine that a token waits: by the daemon's log, and by `notify-send` in
//! a graphical session.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use claviger_token::Event;
use claviger_token::sync::lock;

/// So many notes wait while one is shown. What comes then is only in the log.
const WAITING: usize = 4;

/// The longest text of a note, in characters.
const LONGEST: usize = 300;

/// How people are told.
pub(crate) struct Notifier {
    /// Shows a note, and returns when that is done; `None` where nobody sees it.
    show: Option<Show>,
    /// To the one thread that shows notes, once it is needed.
    notes: Mutex<Option<SyncSender<Note>>>,
}

type Show = Arc<dyn Fn(&Note) + Send + Sync>;

/// What is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    title: String,
    body: String,
}

/// A request, and what was told of it.
pub(crate) struct Told {
    identity: String,
    about: String,
    told: Mutex<HashSet<String>>,
}

impl Told {
    /// A request of which nothing was told: by which identity, and what it is for.
    pub(crate) fn new(identity: &str, about: &str) -> Self {
        Told {
            identity: identity.to_owned(),
            about: about.to_owned(),
            told: Mutex::default(),
        }
    }
}

impl Default for Notifier {
    fn default() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let has_screen = is_set("DISPLAY") || is_set("WAYLAND_DISPLAY");
        Notifier::with(has_screen.then(|| Arc::new(show) as Show))
    }
}

impl Notifier {
    fn with(show: Option<Show>) -> Self {
        Notifier {
            show,
            notes: Mutex::default(),
        }
    }

    /// Tells what a request waits for, once. It does not wait until somebody sees it.
    pub(crate) fn tell(&self, event: &Event, request: &Told) {
        let Some(title) = text(event) else {
            return;
        };
        if !lock(&request.told).insert(title.clone()) {
            return;
        }
        let Told {
            identity, about, ..
        } = request;
        tracing::info!(identity, about, "{title}");
        if let Some(show) = &self.show {
            let body = escaped(&format!("{about}, by {identity}"));
            self.hand_over(show, Note { title, body });
        }
    }

    fn hand_over(&self, show: &Show, note: Note) {
        let mut notes = lock(&self.notes);
        if notes.is_none() {
            *notes = started(Arc::clone(show));
        }
        if notes.as_ref().is_some_and(|to| to.try_send(note).is_err()) {
            tracing::debug!("a note is not shown: too many wait");
        }
    }
}

/// The thread that shows notes, which ends with the notifier.
fn started(show: Show) -> Option<SyncSender<Note>> {
    let (sender, notes) = sync_channel::<Note>(WAITING);
    let thread = thread::Builder::new().name("notes".into());
    match thread.spawn(move || notes.iter().for_each(|note| show(&note))) {
        Ok(_) => Some(sender),
        Err(error) => {
            tracing::warn!(%error, "no thread shows that a token waits");
            None
        }
    }
}

/// The text as it is shown: a desktop takes markup in it.
fn escaped(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(LONGEST) {
        match c {
            '&' => shown.push_str("&amp;"),
            '<' => shown.push_str("&lt;"),
            '>' => shown.push_str("&gt;"),
            c => shown.push(c),
        }
    }
    shown
}

fn text(event: &Event) -> Option<String> {
    Some(match event {
        Event::TouchNeeded { token } => format!("Touch {token}"),
        Event::ApprovalNeeded { token } => format!("Approve on {token}"),
        Event::UnlockNeeded { device } => format!("Unlock {device}"),
        Event::AppNeeded { device, app } => format!("Open the app {app} on {device}"),
        Event::TokenNeeded { token } => format!("Insert {token}"),
        _ => return None,
    })
}

fn show(note: &Note) {
    let shown = Command::new("notify-send")
        .args(["--app-name=Claviger", "--", &note.title, &note.body])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if let Err(error) = shown {
        tracing::debug!(%error, "notify-send does not start");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use super::*;

    /// What is waited for comes by then, or never.
    const LONG: Duration = Duration::from_secs(30);

    fn event(device: &str) -> Event {
        Event::UnlockNeeded {
            device: device.into(),
        }
    }

    /// A notifier, the notes that it begins to show, and what lets one of them end.
    fn watched() -> (Notifier, Receiver<Note>, SyncSender<()>) {
        let (shown, notes) = channel();
        let (go, gate) = sync_channel(100);
        let gate = Mutex::new(gate);
        let show = move |note: &Note| {
            let _ = shown.send(note.clone());
            let _ = lock(&gate).recv();
        };
        (Notifier::with(Some(Arc::new(show))), notes, go)
    }

    #[test]
    fn a_screen_that_hangs_holds_up_no_request_and_few_notes_wait_for_it() {
        let (notifier, notes, go) = watched();
        let tell = |n| notifier.tell(&event("safe"), &Told::new("bob", &format!("request {n}")));
        tell(0);
        assert_eq!(notes.recv_timeout(LONG).unwrap().body, "request 0, by bob");
        for n in 1..100 {
            tell(n);
        }
        assert!(notes.try_recv().is_err(), "one is shown at a time");
        for _ in 0..100 {
            go.send(()).unwrap();
        }
        drop(notifier);
        // The thread ends with the notifier.
        let later: Vec<_> = notes.iter().map(|note| note.body).collect();
        assert_eq!(later, [1, 2, 3, 4].map(|n| format!("request {n}, by bob")));
    }

    #[test]
    fn what_a_request_waits_for_is_told_once() {
        let (notifier, notes, go) = watched();
        let requests = ["one", "two"].map(|about| Told::new("bob", about));
        for _ in 0..50 {
            notifier.tell(&event("safe"), &requests[0]);
        }
        notifier.tell(&event("box"), &requests[0]);
        notifier.tell(&event("safe"), &requests[1]);
        drop((notifier, go));
        let told = notes.iter().map(|Note { title, body }| (title, body));
        let told: Vec<_> = told.collect();
        let expected = [("safe", "one"), ("box", "one"), ("safe", "two")];
        let expected = expected
            .map(|(device, about)| (format!("Unlock {device}"), format!("{about}, by bob")));
        assert_eq!(told, expected);
    }

    #[test]
    fn what_a_client_says_is_shown_as_text_and_not_as_markup() {
        let (notifier, notes, _go) = watched();
        let about = "a login as \"<a href='x'>&amp;</a>\"";
        notifier.tell(&event("safe"), &Told::new("bob", about));
        let shown = notes.recv_timeout(LONG).unwrap().body;
        let expected = "a login as \"&lt;a href='x'&gt;&amp;amp;&lt;/a&gt;\", by bob";
        assert_eq!(shown, expected);
        assert_eq!(escaped(&"ä".repeat(1000)).chars().count(), LONGEST);
    }
}
