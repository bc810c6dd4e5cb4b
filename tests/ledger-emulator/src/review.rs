//! How a person gets through a review: from screen to screen to where it is approved or
//! rejected, and not a step further when it is over.
//!
//! A device has two buttons or a touch screen. On both a review is a row of pages; the
//! home screen, and the menu behind it, are another. With two buttons the same press leads
//! on in either, so the pages of the menu are learnt first, when nothing is reviewed.

use std::thread;
use std::time::{Duration, Instant};

/// How long a screen may stay as it is.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon a screen shows what a press has done.
const SETTLED: Duration = Duration::from_millis(400);
/// How often it is looked at meanwhile.
const GLANCE: Duration = Duration::from_millis(5);
/// How long a button on a touch screen wants to be held; the system asks for 1.5 s and more.
const HELD: Duration = Duration::from_secs(3);
/// The most pages in a menu.
const MENU: usize = 16;

/// A button, or both of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Button {
    /// The left one: back.
    Left,
    /// The right one: on.
    Right,
    /// Both: what the screen says.
    Both,
}

/// A line on a screen, and where its middle is, in pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) text: String,
    pub(crate) x: u32,
    pub(crate) y: u32,
}

/// A device in somebody's hand.
pub(crate) trait Hand {
    /// The lines that it shows.
    fn screen(&self) -> Vec<Line>;
    /// The size of its touch screen, if it has one.
    fn touch_screen(&self) -> Option<(u32, u32)>;
    fn press(&self, button: Button);
    /// A finger goes down at the first point and up at the second one.
    fn touch(&self, from: (u32, u32), to: (u32, u32), held: Duration);
    /// Ends the test.
    fn fail(&self, what: &str) -> !;
}

/// All that is shown, its lines separated by single spaces.
pub(crate) fn text(screen: &[Line]) -> String {
    let lines: Vec<&str> = screen.iter().map(|line| &*line.text).collect();
    lines.join(" ")
}

/// What a person does about a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Approve,
    Reject,
}

/// How a review ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As it was decided.
    Decided,
    /// There was none, or it ended without the person.
    Gone,
}

/// The home screen, and the pages of the menu behind it.
#[derive(Debug)]
pub(crate) struct Home(Vec<String>);

impl Home {
    /// Learns them from a device that shows its home screen, and leaves it there.
    pub(crate) fn learn(hand: &impl Hand) -> Home {
        let mut home = Home(vec![text(&hand.screen())]);
        if hand.touch_screen().is_some() {
            return home;
        }
        for _ in 0..MENU {
            hand.press(Button::Right);
            let last = home.0.last().cloned().unwrap_or_default();
            let page = changed(hand, &last);
            // Around, or at the end.
            if home.0.contains(&page) {
                break;
            }
            home.0.push(page);
        }
        home.go_back(hand);
        home
    }

    fn has(&self, page: &str) -> bool {
        self.0.iter().any(|known| known == page)
    }

    fn is_first(&self, page: &str) -> bool {
        self.0.first().is_some_and(|first| first == page)
    }

    /// From a page of the menu to the home screen.
    fn go_back(&self, hand: &impl Hand) {
        for _ in 0..2 * MENU {
            let page = text(&hand.screen());
            if self.is_first(&page) || !self.has(&page) {
                return;
            }
            hand.press(Button::Left);
            changed(hand, &page);
        }
        hand.fail("the home screen is not to be found");
    }

    /// Whether the device asks nothing.
    pub(crate) fn is_shown(&self, screen: &[Line]) -> bool {
        let page = text(screen);
        page.is_empty() || self.has(&page) || is_status(screen)
    }

    /// Leads a review to its end, if there is one. It returns when the device has the
    /// decision, or when there is nothing left to decide.
    pub(crate) fn decide(&self, hand: &impl Hand, decision: Decision) -> End {
        let mut seen = (String::new(), Instant::now());
        loop {
            let screen = hand.screen();
            let page = text(&screen);
            if self.has(&page) {
                // One step too far, when it ended at just that moment.
                self.go_back(hand);
                return End::Gone;
            }
            if page != seen.0 {
                seen = (page.clone(), Instant::now());
            } else if seen.1.elapsed() > PATIENCE {
                hand.fail(&format!(
                    "no screen of this review lets anybody {}; {page:?} is shown",
                    match decision {
                        Decision::Approve => "approve",
                        Decision::Reject => "reject",
                    }
                ));
            }
            if page.is_empty() || is_status(&screen) {
                thread::sleep(GLANCE);
                continue;
            }
            let decided = match hand.touch_screen() {
                Some(size) => touch(hand, size, &screen, decision),
                None => self.press(hand, &page, decision),
            };
            if decided {
                return End::Decided;
            }
            changed(hand, &page);
        }
    }

    /// One step with two buttons; whether it was the last one.
    fn press(&self, hand: &impl Hand, page: &str, decision: Decision) -> bool {
        // The last page rejects, and the one before it approves; that one is named after
        // what is asked.
        if !page.starts_with("Reject") && !page.starts_with("Cancel") {
            hand.press(Button::Right);
            return false;
        }
        if decision == Decision::Approve {
            hand.press(Button::Left);
            let approves = changed(hand, page);
            if approves == page || self.has(&approves) {
                return false;
            }
        }
        hand.press(Button::Both);
        true
    }
}

/// What the device says for a moment when a review has ended.
fn is_status(screen: &[Line]) -> bool {
    const ENDS: [&str; 5] = ["signed", "rejected", "cancelled", "verified", "approved"];
    let page = text(screen);
    page.split_whitespace().count() <= 3 && ENDS.iter().any(|end| page.ends_with(end))
}

/// One step on a touch screen; whether it was the last one.
fn touch(hand: &impl Hand, size: (u32, u32), screen: &[Line], decision: Decision) -> bool {
    let find = |begin: &str| screen.iter().find(|line| line.text.starts_with(begin));
    let tap = |line: &Line| hand.touch((line.x, line.y), (line.x, line.y), Duration::ZERO);
    if let Some(yes) = find("Yes, reject") {
        // Asked about a rejection: only who rejects gets there.
        tap(yes);
        return true;
    }
    match decision {
        Decision::Approve => {
            if let Some(hold) = find("Hold to") {
                let at = (hold.x, hold.y);
                hand.touch(at, at, HELD);
                return true;
            }
        }
        Decision::Reject => {
            if let Some(reject) = find("Reject").or_else(|| find("Cancel")) {
                tap(reject);
                return false;
            }
        }
    }
    if let Some(on) = find("Tap to continue") {
        tap(on);
    } else if find("Reject").or_else(|| find("Cancel")).is_some() || find("Swipe to").is_some() {
        // A page of a review: the next one comes from the right.
        let (width, height) = size;
        let from = (width * 3 / 4, height / 2);
        hand.touch(from, (width / 4, height / 2), Duration::ZERO);
    }
    false
}

/// What is shown when it is no longer `page`, or after a moment.
fn changed(hand: &impl Hand, page: &str) -> String {
    let end = Instant::now() + SETTLED;
    loop {
        let now = text(&hand.screen());
        if (!now.is_empty() && now != page) || Instant::now() > end {
            return now;
        }
        thread::sleep(GLANCE);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A device with a menu and a review, each a row of pages.
    struct Toy {
        touch: bool,
        menu: Vec<&'static str>,
        review: Vec<&'static str>,
        state: RefCell<State>,
        /// The review ends by itself before this many presses.
        patience: usize,
    }

    #[derive(Default)]
    struct State {
        reviewing: bool,
        at: usize,
        presses: Vec<String>,
        decided: Option<Decision>,
        asked: bool,
    }

    const TALL: u32 = 600;
    const WIDE: u32 = 480;

    impl Toy {
        fn nano() -> Toy {
            Toy {
                touch: false,
                menu: vec!["Ethereum app is ready", "Settings", "App info", "Quit app"],
                review: vec![
                    "Review message",
                    "Message (1/2) Claviger: proof",
                    "Message (2/2) of possession",
                    "Sign message",
                    "Reject message",
                ],
                state: RefCell::default(),
                patience: usize::MAX,
            }
        }

        fn flex() -> Toy {
            Toy {
                touch: true,
                menu: vec!["Ethereum|This app enables signing|Quit app"],
                review: vec![
                    "Review message|Swipe to review|Reject",
                    "Message|Claviger: proof of possession|Reject|1 of 2",
                    "Sign message?|Hold to sign|Reject|2 of 2",
                ],
                state: RefCell::default(),
                patience: usize::MAX,
            }
        }

        fn ask(&self) {
            let mut state = self.state.borrow_mut();
            (state.reviewing, state.at, state.asked) = (true, 0, false);
            (state.presses, state.decided) = (Vec::new(), None);
        }

        fn decided(&self) -> Option<Decision> {
            self.state.borrow().decided
        }

        fn lines(&self) -> Vec<&'static str> {
            let state = self.state.borrow();
            let row = if state.reviewing {
                &self.review
            } else {
                &self.menu
            };
            match state.asked {
                true => vec!["Reject message?", "Yes, reject", "Go back to message"],
                false => row[state.at].split('|').collect(),
            }
        }

        fn did(&self, what: String) -> bool {
            let mut state = self.state.borrow_mut();
            state.presses.push(what);
            if state.reviewing && state.presses.len() > self.patience {
                (state.reviewing, state.at) = (false, 0);
            }
            state.reviewing
        }

        fn step(&self, by: isize) {
            let mut state = self.state.borrow_mut();
            let row = if state.reviewing {
                &self.review
            } else {
                &self.menu
            };
            let at = state.at.saturating_add_signed(by);
            state.at = at.min(row.len() - 1);
        }

        fn end(&self, decision: Decision) {
            let mut state = self.state.borrow_mut();
            (state.reviewing, state.at, state.asked) = (false, 0, false);
            state.decided = Some(decision);
        }
    }

    impl Hand for Toy {
        fn screen(&self) -> Vec<Line> {
            let lines = self.lines().into_iter().enumerate();
            lines
                .map(|(i, text)| Line {
                    text: text.into(),
                    x: WIDE / 2,
                    y: 100 * (i as u32 + 1),
                })
                .collect()
        }

        fn touch_screen(&self) -> Option<(u32, u32)> {
            self.touch.then_some((WIDE, TALL))
        }

        fn press(&self, button: Button) {
            assert!(!self.touch, "it has no buttons");
            let reviewing = self.did(format!("{button:?}"));
            match button {
                Button::Left => self.step(-1),
                Button::Right => self.step(1),
                Button::Both => {
                    assert!(reviewing, "something in the menu was chosen");
                    match self.lines()[..] {
                        ["Sign message"] => self.end(Decision::Approve),
                        ["Reject message"] => self.end(Decision::Reject),
                        ref page => panic!("{page:?} was chosen"),
                    }
                }
            }
        }

        fn touch(&self, from: (u32, u32), to: (u32, u32), held: Duration) {
            assert!(self.touch, "it has buttons");
            let lines = self.lines();
            if !self.did(format!("{from:?} {to:?} {held:?}")) {
                return;
            }
            if from.0 > to.0 {
                return self.step(1);
            }
            let touched = lines[(from.1 / 100 - 1) as usize];
            match touched {
                "Hold to sign" if held >= Duration::from_secs(2) => self.end(Decision::Approve),
                "Reject" => self.state.borrow_mut().asked = true,
                "Yes, reject" => self.end(Decision::Reject),
                other => panic!("{other:?} was touched for {held:?}"),
            }
        }

        fn fail(&self, what: &str) -> ! {
            panic!("{what}");
        }
    }

    #[test]
    fn a_review_is_approved_and_rejected_with_buttons_and_on_a_touch_screen() {
        for toy in [Toy::nano(), Toy::flex()] {
            let home = Home::learn(&toy);
            for decision in [Decision::Approve, Decision::Reject, Decision::Approve] {
                toy.ask();
                assert!(!home.is_shown(&toy.screen()));
                assert_eq!(home.decide(&toy, decision), End::Decided);
                assert_eq!(toy.decided(), Some(decision));
                assert!(home.is_shown(&toy.screen()));
            }
        }
    }

    #[test]
    fn a_review_that_ends_meanwhile_is_left_at_the_home_screen() {
        for (toy, most) in [(Toy::nano as fn() -> Toy, 5), (Toy::flex, 2)] {
            for patience in 0..most {
                let mut toy = toy();
                let home = Home::learn(&toy);
                toy.patience = patience;
                toy.ask();
                // The last press may have been the one that decides.
                if patience < most - 1 {
                    assert_eq!(home.decide(&toy, Decision::Approve), End::Gone);
                    assert_eq!(toy.decided(), None);
                }
                toy.patience = usize::MAX;
                assert_eq!(toy.state.borrow().at, 0, "{:?}", toy.state.borrow().presses);
                // The next one is approved.
                toy.ask();
                assert_eq!(home.decide(&toy, Decision::Approve), End::Decided);
            }
        }
    }

    #[test]
    fn nothing_is_pressed_where_nothing_is_asked() {
        for toy in [Toy::nano(), Toy::flex()] {
            let home = Home::learn(&toy);
            toy.state.borrow_mut().presses.clear();
            assert_eq!(home.decide(&toy, Decision::Approve), End::Gone);
            assert!(toy.state.borrow().presses.is_empty());
        }
    }

    #[test]
    fn what_is_said_when_a_review_has_ended_is_no_review() {
        let line = |text: &str| Line {
            text: text.into(),
            x: 0,
            y: 0,
        };
        assert!(is_status(&[line("Message signed")]));
        assert!(is_status(&[line("Operation"), line("rejected")]));
        assert!(!is_status(&[line("Review message")]));
        assert!(!is_status(&[line(
            "Message (1/9) the letter that you signed"
        )]));
    }
}
