//! What holds for every sequence of sightings.

#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use proptest::prelude::*;
use refract_core::{
    Eviction, Evidence, Family, Keep, Measure, Moment, Peer, Policy, Roster, Sighting, Source,
    Terms, Transport, Verdict,
};

/// One line, small enough a world that things meet: five users, four sources in each family.
#[derive(Clone, Copy, Debug)]
struct Line {
    after: Duration,
    user: u8,
    source: u8,
    family: Family,
    port: u16,
    udp: bool,
}

impl Line {
    fn address(self) -> IpAddr {
        match self.family {
            Family::V4 => [198, 51, 100, self.source].into(),
            Family::V6 => [0x2001, 0xdb8, 0, u16::from(self.source), 0, 0, 0, self.port].into(),
        }
    }

    fn observe(self, roster: &mut Roster, now: Moment) -> Verdict {
        let sighting = Sighting {
            user: &[b'u', self.user],
            peer: Peer { address: self.address(), port: self.port },
            transport: if self.udp { Transport::Udp } else { Transport::Unstated },
            inbound: Some(b"in"),
        };
        roster.observe(&sighting, Evidence::Log, now)
    }
}

prop_compose! {
    fn line()(
        after in prop_oneof![8 => 0u64..2_000, 2 => 2_000u64..20_000, 1 => 20_000u64..200_000],
        user in 0u8..5,
        source in 0u8..4,
        v6: bool,
        port in 1u16..,
        udp in prop::bool::weighted(0.1),
    ) -> Line {
        let family = if v6 { Family::V6 } else { Family::V4 };
        Line { after: Duration::from_millis(after), user, source, family, port, udp }
    }
}

prop_compose! {
    fn policy()(
        places in 1usize..4,
        last: bool,
        users in prop_oneof![Just(3usize), Just(1_000)],
        window in prop_oneof![Just(1u64), Just(5), Just(60)],
    ) -> Policy {
        Policy::new(Terms {
            places,
            keep: if last { Keep::Last } else { Keep::First },
            users,
            window: Duration::from_secs(window),
            forget_after: Duration::from_mins(5),
            ..Terms::default()
        })
        .unwrap()
    }
}

/// Plays lines and hands each verdict over, with the moment it was given at.
fn play(policy: Policy, lines: &[Line], mut each: impl FnMut(&Roster, Line, Moment, Verdict)) {
    let mut roster = Roster::new(policy);
    let mut now = Moment::default();
    for line in lines {
        now = now.saturating_add(line.after);
        roster.tick(now);
        let verdict = line.observe(&mut roster, now);
        each(&roster, *line, now, verdict);
    }
}

fn per_family(sources: impl Iterator<Item = Source>) -> [usize; 2] {
    let mut counts = [0; 2];
    for source in sources {
        counts[usize::from(source.family() == Family::V6)] += 1;
    }
    counts
}

fn evicted(verdict: Verdict) -> Option<Eviction> {
    match verdict {
        Verdict::Admit => None,
        Verdict::Evict(eviction) => Some(eviction),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_same_lines_give_the_same_verdicts(
        policy in policy(),
        lines in prop::collection::vec(line(), 0..200),
    ) {
        let run = || {
            let mut verdicts = Vec::new();
            play(policy, &lines, |_, _, _, verdict| verdicts.push(verdict));
            verdicts
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn an_eviction_is_whole(policy in policy(), lines in prop::collection::vec(line(), 0..200)) {
        play(policy, &lines, |_, line, _, verdict| {
            let Some(eviction) = evicted(verdict) else { return };
            let source = policy.source(line.address());
            let newcomer = eviction.offenders.iter().any(|offender| offender.source == source);
            let kept = eviction.incumbents.iter().any(|incumbent| incumbent.source == source);
            assert!(newcomer != kept, "the line's source goes or stays: {eviction:?}");
            assert!(!eviction.offenders.is_empty());
            let offenders: BTreeSet<_> = eviction.offenders.iter().map(|one| one.source).collect();
            let incumbents: BTreeSet<_> = eviction.incumbents.iter().map(|one| one.source).collect();
            assert!(offenders.is_disjoint(&incumbents), "{eviction:?}");
            for held in per_family(incumbents.into_iter()) {
                assert!(held <= policy.places(), "{eviction:?}");
            }
            for incumbent in &eviction.incumbents {
                assert!(incumbent.silence < policy.window() && incumbent.silence <= incumbent.age);
            }
            for offender in &eviction.offenders {
                assert_eq!(policy.source(offender.peer.address), offender.source);
                assert_eq!(offender.inbound.as_deref(), Some(b"in".as_slice()));
                if offender.transport == Transport::Udp {
                    assert_ne!(offender.measure, Measure::Ban, "a datagram proves no address");
                }
            }
        });
    }

    /// A model that knows nothing but the promise: whoever was heard within the window, and was
    /// not named an offender since, keeps his place.
    #[test]
    fn whoever_holds_a_place_keeps_it_with_keep_first(
        places in 1usize..4,
        lines in prop::collection::vec(line(), 0..300),
    ) {
        let policy = Policy::new(Terms { places, ..Terms::default() }).unwrap();
        let mut holding: BTreeMap<(u8, Source), Moment> = BTreeMap::new();
        play(policy, &lines, |_, line, now, verdict| {
            let key = (line.user, policy.source(line.address()));
            let live = |last: &Moment| now.saturating_since(*last) < policy.window();
            let held = holding.get(&key).is_some_and(live);
            let eviction = evicted(verdict);
            assert!(!(held && eviction.is_some()), "{key:?} held a place");
            if eviction.is_none() {
                holding.insert(key, now);
            }
            let mine = holding.iter().filter(|((user, _), last)| *user == line.user && live(last));
            for held in per_family(mine.map(|((_, source), _)| *source)) {
                assert!(held <= places, "{held} places are held");
            }
        });
    }

    /// Nobody is banned where another user was heard of within the time that is remembered.
    #[test]
    fn a_neighbour_is_never_banned(
        policy in policy(),
        lines in prop::collection::vec(line(), 0..300),
    ) {
        let mut heard: BTreeMap<Source, BTreeMap<u8, Moment>> = BTreeMap::new();
        play(policy, &lines, |_, line, now, verdict| {
            heard.entry(policy.source(line.address())).or_default().insert(line.user, now);
            let Some(eviction) = evicted(verdict) else { return };
            for offender in eviction.offenders {
                let shared = heard[&offender.source].iter().any(|(user, last)| {
                    *user != line.user && now.saturating_since(*last) < policy.forget_after()
                });
                assert!(!(shared && offender.measure == Measure::Ban), "{offender:?}");
            }
        });
    }

    #[test]
    fn the_roster_keeps_its_bounds_and_known_users_evict_nobody(
        users in 1usize..40,
        names in prop::collection::vec(0u8..200, 0..500),
    ) {
        let mut roster = Roster::new(Policy::new(Terms { users, ..Terms::default() }).unwrap());
        let mut now = Moment::default();
        for name in names {
            now = now.saturating_add(Duration::from_millis(10));
            let user = name.to_string();
            let sighting = Sighting {
                user: user.as_bytes(),
                peer: Peer { address: [198, 51, 100, name].into(), port: 1 },
                transport: Transport::Unstated,
                inbound: None,
            };
            prop_assert_eq!(roster.observe(&sighting, Evidence::Log, now), Verdict::Admit);
            prop_assert!(roster.len() <= users);
            let counters = roster.counters();
            prop_assert_eq!(roster.observe(&sighting, Evidence::Log, now), Verdict::Admit);
            prop_assert_eq!(roster.counters(), counters);
        }
    }

    #[test]
    fn silence_empties_the_roster(lines in prop::collection::vec(line(), 1..200)) {
        let policy = Policy::default();
        let mut roster = Roster::new(policy);
        for line in lines {
            let _ = line.observe(&mut roster, Moment::default());
        }
        let users = u64::try_from(roster.len()).unwrap();
        let over = Moment::default().saturating_add(policy.forget_after());
        roster.tick(Moment::from_nanos(over.as_nanos() - 1));
        prop_assert_eq!(roster.counters().forgotten_users, 0);
        roster.tick(over);
        prop_assert!(roster.is_empty());
        prop_assert_eq!(roster.counters().forgotten_users, users);
    }
}
