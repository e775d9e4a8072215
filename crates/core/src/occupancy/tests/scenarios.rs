//! Scenarios in files: `tests/evidence/*.toml`, each a policy, what happens, and what must come of
//! it. A story from the field arrives as one more file.

use std::{fs, time::Duration};

use serde::Deserialize;

use super::house::{House, at};
use crate::{
    policy::{Action, Keep, Terms},
    verdict::{Measure, Verdict},
};

const SCENARIOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/evidence");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// What it shows, in a sentence.
    about: String,
    #[serde(default)]
    policy: PolicyTerms,
    step: Vec<Step>,
}

/// What differs from the defaults, times in milliseconds.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyTerms {
    window: Option<u64>,
    timeout: Option<u64>,
    places: Option<usize>,
    keep: Option<String>,
    action: Option<String>,
    ask: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Step {
    /// Milliseconds since the start.
    at: u64,
    /// `USER PEER`: connects, sends its first bytes, and is logged.
    open: Option<String>,
    /// `PEER`: connects and sends; no line names it.
    connect: Option<String>,
    /// `USER PEER`: the log claims it.
    line: Option<String>,
    /// `USER PEER`: the same, too near to a client's own words.
    tainted: Option<String>,
    /// `PEER`: a `rejected` line names it.
    refuse: Option<String>,
    /// `PEER`: closes.
    close: Option<String>,
    /// Who moves bytes from here on; nobody else does.
    moving: Option<Vec<String>>,
    /// Everything that is decided from here to the next step.
    verdicts: Vec<String>,
}

impl PolicyTerms {
    fn terms(&self) -> Terms {
        let mut terms = Terms::default();
        let set = |term: &mut Duration, millis: Option<u64>| {
            *term = millis.map_or(*term, Duration::from_millis);
        };
        set(&mut terms.window, self.window);
        set(&mut terms.timeout, self.timeout);
        terms.places = self.places.unwrap_or(terms.places);
        terms.asking = self.ask.unwrap_or(terms.asking);
        terms.keep = match self.keep.as_deref() {
            None | Some("first") => Keep::First,
            Some("last") => Keep::Last,
            Some(other) => panic!("keep = {other:?}"),
        };
        terms.action = match self.action.as_deref() {
            None | Some("auto") => Action::Auto,
            Some("ban") => Action::Ban,
            Some("kill") => Action::Kill,
            Some(other) => panic!("action = {other:?}"),
        };
        terms
    }
}

/// `ask SOURCE`, `evict GROUND SOURCE ban`, `evict GROUND SOURCE kill: WHY`, `refrain WHY`.
fn words(verdict: &Verdict) -> Vec<String> {
    match verdict {
        Verdict::Admit => Vec::new(),
        Verdict::Ask(question) => vec![format!("ask {}", question.source)],
        Verdict::Refrain(abstention) => vec![format!("refrain {}", abstention.restraint.name())],
        Verdict::Evict(eviction) => {
            let ground = eviction.ground.name();
            let measure = |measure| match measure {
                Measure::Ban => "ban".to_owned(),
                Measure::Kill(restraint) => format!("kill: {}", restraint.name()),
            };
            let offenders = eviction.offenders.iter();
            let words =
                offenders.map(|it| format!("evict {ground} {} {}", it.source, measure(it.measure)));
            words.collect()
        }
    }
}

fn take(house: &mut House, step: &Step) -> Vec<Verdict> {
    let two = |text: &str| -> (String, String) {
        let (user, peer) = text.split_once(' ').unwrap();
        (user.to_owned(), peer.to_owned())
    };
    let mut verdicts = Vec::new();
    if let Some(text) = &step.open {
        let (user, peer) = two(text);
        verdicts.extend(house.open(&user, &peer));
    }
    if let Some(peer) = &step.connect {
        house.connect(peer);
    }
    if let Some(text) = &step.line {
        let (user, peer) = two(text);
        verdicts.extend(house.line(&user, &peer));
    }
    if let Some(text) = &step.tainted {
        let (user, peer) = two(text);
        verdicts.extend(house.claim(&user, &peer, true));
    }
    if let Some(peer) = &step.refuse {
        let found = house.found(House::peer(peer)).unwrap();
        house.occupancy.refuse(&found, at(house.now));
    }
    if let Some(peer) = &step.close {
        house.close(peer);
    }
    verdicts
}

fn play(name: &str, scenario: &Scenario) {
    let mut house = House::new(scenario.policy.terms());
    let start = house.now;
    let mut moving: Vec<String> = Vec::new();
    for (number, step) in scenario.step.iter().enumerate() {
        let place = format!("{name} ({}), step {}", scenario.about, number + 1);
        assert_eq!(house.now, start + step.at, "{place}: times are multiples of 100 in order");
        if let Some(peers) = &step.moving {
            moving.clone_from(peers);
        }
        let mut verdicts = take(&mut house, step);
        let next = scenario.step.get(number + 1).map_or(step.at, |next| next.at);
        let moving: Vec<&str> = moving.iter().map(String::as_str).collect();
        verdicts.extend(house.pass(next.saturating_sub(step.at), &moving));
        let words: Vec<String> = verdicts.iter().flat_map(words).collect();
        assert_eq!(words, step.verdicts, "{place}");
    }
}

#[test]
fn every_scenario_plays_out_as_written() {
    let mut played = 0;
    for entry in fs::read_dir(SCENARIOS).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let scenario: Scenario =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        play(&name, &scenario);
        played += 1;
    }
    assert!(played >= 10, "only {played} scenarios were found in {SCENARIOS}");
}
