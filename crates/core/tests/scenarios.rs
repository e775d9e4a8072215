//! Scenarios in files: `scenarios/*.toml`, each a policy, timed lines, and what must come of them.
//!
//! A bug from the field arrives as one more file. Each line goes the whole way: exemptions, then
//! the roster.

#![cfg(test)]

use std::{fs, net::SocketAddr, time::Duration};

use refract_core::{
    Action, Eviction, Evidence, Exemptions, Keep, Measure, Moment, Network, Peer, Policy, Roster,
    Sighting, Terms, Transport, Verdict,
};
use serde::Deserialize;

const SCENARIOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    /// What it shows, in a sentence.
    about: String,
    #[serde(default)]
    policy: PolicyTerms,
    #[serde(default)]
    allow: Vec<String>,
    line: Vec<Line>,
}

/// What differs from the defaults, times in milliseconds.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyTerms {
    window: Option<u64>,
    timeout: Option<u64>,
    forget_after: Option<u64>,
    places: Option<usize>,
    keep: Option<String>,
    ipv4_prefix: Option<u8>,
    ipv6_prefix: Option<u8>,
    udp_ban: Option<bool>,
    action: Option<String>,
    shared_source_users: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// Milliseconds since the start.
    at: u64,
    user: String,
    peer: SocketAddr,
    transport: Option<String>,
    inbound: Option<String>,
    /// `admit`, `exempt: WHY`, or `evict: GROUND`.
    verdict: String,
    /// `PEER ban`, or `PEER kill: WHY`, in order.
    #[serde(default)]
    offenders: Vec<String>,
    /// `PEER age MS silent MS`, in order; not compared when absent.
    incumbents: Option<Vec<String>>,
}

impl PolicyTerms {
    fn policy(&self) -> Policy {
        let mut terms = Terms::default();
        let set = |term: &mut Duration, millis: Option<u64>| {
            *term = millis.map_or(*term, Duration::from_millis);
        };
        set(&mut terms.window, self.window);
        set(&mut terms.timeout, self.timeout);
        set(&mut terms.forget_after, self.forget_after);
        terms.places = self.places.unwrap_or(terms.places);
        terms.ipv4_prefix = self.ipv4_prefix.unwrap_or(terms.ipv4_prefix);
        terms.ipv6_prefix = self.ipv6_prefix.unwrap_or(terms.ipv6_prefix);
        terms.udp_ban = self.udp_ban.unwrap_or(terms.udp_ban);
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
        terms.shared_source_users = self.shared_source_users.unwrap_or(terms.shared_source_users);
        Policy::new(terms).unwrap()
    }
}

impl Line {
    fn sighting(&self) -> Sighting<'_> {
        Sighting {
            user: self.user.as_bytes(),
            peer: Peer { address: self.peer.ip(), port: self.peer.port() },
            transport: match self.transport.as_deref() {
                None => Transport::Unstated,
                Some("tcp") => Transport::Tcp,
                Some("udp") => Transport::Udp,
                Some(other) => panic!("transport = {other:?}"),
            },
            inbound: self.inbound.as_deref().map(str::as_bytes),
        }
    }
}

fn offenders(eviction: &Eviction) -> Vec<String> {
    let measure = |measure| match measure {
        Measure::Ban => "ban".to_owned(),
        Measure::Kill(restraint) => format!("kill: {}", restraint.name()),
    };
    let each = eviction.offenders.iter();
    each.map(|offender| format!("{} {}", offender.peer, measure(offender.measure))).collect()
}

fn incumbents(eviction: &Eviction) -> Vec<String> {
    let each = eviction.incumbents.iter();
    each.map(|incumbent| {
        let (age, silence) = (incumbent.age.as_millis(), incumbent.silence.as_millis());
        format!("{} age {age} silent {silence}", incumbent.peer)
    })
    .collect()
}

fn play(name: &str, scenario: &Scenario) {
    let policy = scenario.policy.policy();
    let allowed = scenario.allow.iter().map(|text| text.parse::<Network>().unwrap()).collect();
    let exemptions = Exemptions::new(allowed);
    let mut roster = Roster::new(policy);
    let mut last = 0;
    for (number, line) in scenario.line.iter().enumerate() {
        let place = format!("{name} ({}), line {}", scenario.about, number + 1);
        assert!(line.at >= last, "{place}: time runs backwards");
        last = line.at;
        let now = Moment::default().saturating_add(Duration::from_millis(line.at));
        let sighting = line.sighting();
        if let Some(exemption) = exemptions.reason(sighting.peer.address) {
            assert_eq!(format!("exempt: {}", exemption.name()), line.verdict, "{place}");
            continue;
        }
        roster.tick(now);
        match roster.observe(&sighting, Evidence::Log, now) {
            Verdict::Admit => assert_eq!("admit", line.verdict, "{place}"),
            Verdict::Evict(eviction) => {
                assert_eq!(format!("evict: {}", eviction.ground.name()), line.verdict, "{place}");
                assert_eq!(offenders(&eviction), line.offenders, "{place}");
                if let Some(expected) = &line.incumbents {
                    assert_eq!(&incumbents(&eviction), expected, "{place}");
                }
                assert_eq!(&*eviction.user, line.user.as_bytes(), "{place}: as written");
                assert_eq!(eviction.places, policy.places(), "{place}");
                assert_eq!(eviction.evidence, Evidence::Log, "{place}");
                for offender in &eviction.offenders {
                    assert_eq!(offender.source, policy.source(offender.peer.address), "{place}");
                }
            }
            other => panic!("{place}: {other:?}"),
        }
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
    assert!(played >= 15, "only {played} scenarios were found in {SCENARIOS}");
}
