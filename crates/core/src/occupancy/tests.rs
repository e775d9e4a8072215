//! Short lives, told step by step; long ones are in `tests/sim.rs`, those told in files in
//! `tests/evidence`.

mod carried_on;
mod house;
mod restart;
mod scenarios;
mod spared;

use self::house::{House, at};
use super::*;
use crate::{
    accounts::AccountTerms,
    policy::{Action, Keep, Terms},
    sighting::{Sighting, Transport},
    verdict::{Eviction, Ground, Measure, Restraint},
};

/// The only eviction among `verdicts`, and the sources that go.
#[track_caller]
fn evicted(verdicts: &[Verdict]) -> (Eviction, Vec<String>) {
    let mut evictions = verdicts.iter().filter_map(|verdict| match verdict {
        Verdict::Evict(eviction) => Some(eviction),
        _ => None,
    });
    let eviction = evictions.next().unwrap_or_else(|| panic!("nobody goes: {verdicts:#?}"));
    assert!(evictions.next().is_none(), "{verdicts:#?}");
    let sources = eviction.offenders.iter().map(|it| it.source.to_string()).collect();
    (eviction.clone(), sources)
}

#[track_caller]
fn asked(verdicts: &[Verdict]) -> Vec<String> {
    let question = |verdict: &Verdict| match verdict {
        Verdict::Ask(question) => question.source.to_string(),
        other => panic!("only a question was expected: {other:#?}"),
    };
    verdicts.iter().map(question).collect()
}

/// Lets time pass until somebody is asked, or something else is decided.
fn until_asked(house: &mut House, moving: &[&str]) -> Vec<Verdict> {
    let each = (0..120).map(|_| house.pass(100, moving));
    each.into_iter().find(|verdicts| !verdicts.is_empty()).unwrap()
}

/// Both devices begin something every half second, and everything moves, until somebody goes.
fn browse_together(house: &mut House, user: &str, sources: &[&str]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for round in 0..16 {
        for source in sources {
            verdicts.extend(house.open(user, &format!("{source}:{}", 2_000 + round)));
            let open = house.everything();
            let is_theirs = |peer: &&String| {
                sources.iter().any(|source| peer.starts_with(&format!("{source}:")))
            };
            let theirs: Vec<&str> = open.iter().filter(is_theirs).map(String::as_str).collect();
            verdicts.extend(house.pass(300, &theirs));
            if verdicts.iter().any(|verdict| !matches!(verdict, Verdict::Ask(_))) {
                return verdicts;
            }
        }
    }
    verdicts
}

const BOTH: [&str; 2] = ["198.51.100.12", "198.51.100.11"];
const HOME: &str = "198.51.100.11:40001";
const HOME_AGAIN: &str = "198.51.100.11:40002";
const AWAY: &str = "198.51.100.12:50001";
const AWAY_AGAIN: &str = "198.51.100.12:50002";

#[test]
fn two_that_browse_at_once_are_too_many_after_a_window() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.pass(20_000, &[HOME]);
    house.open("alice", AWAY);
    let begun = house.now;
    let verdicts = browse_together(&mut house, "alice", &BOTH);
    assert!((4_000..=5_500).contains(&(house.now - begun)), "{}", house.now - begun);
    let (eviction, sources) = evicted(&verdicts);
    assert_eq!(sources, ["198.51.100.12"]);
    assert_eq!((eviction.ground, eviction.places), (Ground::Overlap, 1));
    assert_eq!(eviction.offenders[0].measure, Measure::Ban);
    assert_eq!(eviction.incumbents.len(), 1);
    let proof = eviction.proof.unwrap();
    assert_eq!(proof.exhibits.len(), 2);
    assert!(proof.exhibits.iter().all(|exhibit| exhibit.bytes.iter().sum::<u64>() > 3_000));
    assert_eq!(house.pass(20_000, &[HOME]), [], "nobody else is left");
}

#[test]
fn of_two_long_downloads_one_after_the_other_is_asked_and_the_last_answer_cuts() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    // Longer than any window, and without a line.
    house.pass(60_000, &[HOME]);
    house.open("alice", AWAY);
    let verdicts = until_asked(&mut house, &[HOME, AWAY]);
    assert_eq!(asked(&verdicts), ["198.51.100.11"]);
    assert_eq!(house.pass(300, &[AWAY]), []);
    let verdicts = house.open("alice", HOME_AGAIN);
    assert_eq!(asked(&verdicts), ["198.51.100.12"], "or a phone was coming back at that moment");
    assert_eq!(house.pass(300, &[HOME_AGAIN]), []);
    let verdicts = house.open("alice", AWAY_AGAIN);
    let (eviction, sources) = evicted(&verdicts);
    assert_eq!(sources, ["198.51.100.12"], "at that moment");
    let answers: Vec<_> =
        eviction.proof.unwrap().exhibits.iter().map(|it| it.answered.is_some()).collect();
    assert_eq!(answers, [true, true]);
    assert_eq!(house.occupancy.counters().answered, 2);
}

#[test]
fn what_moves_between_the_end_of_a_slot_and_the_look_at_it_moved_in_the_slot() {
    let mut house = House::new(Terms::default());
    house.late_by = 30;
    house.open("alice", HOME);
    house.pass(20_000, &[HOME]);
    house.open("alice", AWAY);
    let (eviction, _) = evicted(&browse_together(&mut house, "alice", &BOTH));
    let exhibits = eviction.proof.unwrap().exhibits;
    assert!(exhibits.iter().all(|it| it.moved[1..] == [true; 4]), "{exhibits:#?}");
}

#[test]
fn a_quiet_exchange_in_both_directions_is_no_arrival_when_it_is_first_looked_at() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    let exchange = |house: &mut House, millis: u64| {
        let mut verdicts = Vec::new();
        for _ in 0..millis / 100 {
            let now = at(house.now + 100);
            for open in &mut house.open {
                open.sample.received += 10;
                open.sample.last_received = now;
            }
            verdicts.extend(house.pass(100, &[HOME, AWAY]));
        }
        verdicts
    };
    exchange(&mut house, 60_000);
    house.open("alice", AWAY);
    let each = (0..60).map(|_| exchange(&mut house, 100));
    let verdicts = each.into_iter().find(|verdicts| !verdicts.is_empty()).unwrap();
    assert_eq!(asked(&verdicts), ["198.51.100.11"], "who was there first");
    house.pass(100, &[]);
    assert_eq!(asked(&house.open("alice", HOME_AGAIN)), ["198.51.100.12"]);
    house.pass(100, &[]);
    let verdicts = house.open("alice", AWAY_AGAIN);
    assert_eq!(evicted(&verdicts).1, ["198.51.100.12"]);
}

#[test]
fn a_device_cut_in_the_other_family_makes_nobody_an_offender_in_the_first() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.pass(20_000, &[HOME]);
    house.open("alice", AWAY);
    browse_together(&mut house, "alice", &BOTH);
    house.open("alice", "[2001:db8:12::2]:50001");
    house.pass(6_000, &[]);
    assert!(house.open("alice", "198.51.100.99:1").is_empty(), "the phone moves on");
}

#[test]
fn a_phone_whose_old_network_still_moves_is_asked_and_left_alone() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.open("alice", HOME_AGAIN);
    house.pass(20_000, &[HOME, HOME_AGAIN]);
    house.open("alice", AWAY);
    let mut questions = 0;
    for second in 0..30 {
        let verdicts = house.pass(1_000, &[HOME, HOME_AGAIN, AWAY, AWAY_AGAIN]);
        questions += asked(&verdicts).len();
        if second == 7 {
            house.open("alice", AWAY_AGAIN);
        }
    }
    assert!((1..=2).contains(&questions), "{questions}");
}

#[test]
fn a_phone_that_comes_back_while_what_it_left_still_moves_is_left_alone() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.pass(10_000, &[HOME]);
    house.close(HOME);
    house.open("alice", AWAY);
    assert_eq!(house.pass(3_000, &[AWAY]), []);
    house.open("alice", HOME_AGAIN);
    let verdicts = house.pass(20_000, &[AWAY, HOME_AGAIN]);
    assert_eq!(asked(&verdicts), ["198.51.100.12"], "what it left is asked, and is silent then");
}

#[test]
fn an_idle_connection_elsewhere_is_nobody_at_work() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.pass(20_000, &[HOME]);
    house.open("alice", AWAY);
    house.open("alice", AWAY_AGAIN);
    assert_eq!(house.pass(60_000, &[AWAY, AWAY_AGAIN]), []);
}

#[test]
fn who_was_quiet_and_moves_again_without_a_line_is_seen() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.pass(5_000, &[HOME]);
    house.open("alice", AWAY);
    // Long idle at home, then the download there goes on.
    assert_eq!(house.pass(60_000, &[AWAY]), []);
    let verdicts = until_asked(&mut house, &[HOME, AWAY]);
    // He began away last, so what is at home has to show itself; and then, since that was long ago,
    // what is away.
    assert_eq!(asked(&verdicts), ["198.51.100.11"]);
    house.pass(100, &[AWAY]);
    let verdicts = house.open("alice", HOME_AGAIN);
    assert_eq!(asked(&verdicts), ["198.51.100.12"]);
    house.pass(100, &[HOME_AGAIN]);
    let verdicts = house.open("alice", AWAY_AGAIN);
    let (_, sources) = evicted(&verdicts);
    assert_eq!(sources, ["198.51.100.12"], "home is the senior all the same");
}

#[test]
fn the_last_to_come_stays_where_the_policy_says_so() {
    let mut house = House::new(Terms { keep: Keep::Last, ..Terms::default() });
    house.open("alice", HOME);
    house.pass(20_000, &[HOME]);
    house.open("alice", AWAY);
    let verdicts = browse_together(&mut house, "alice", &BOTH);
    assert_eq!(evicted(&verdicts).1, ["198.51.100.11"]);
}

#[test]
fn a_third_device_is_too_many_for_two_places() {
    let mut house = House::new(Terms { places: 2, ..Terms::default() });
    let third = "198.51.100.13:60001";
    for peer in [HOME, AWAY] {
        house.open("alice", peer);
        house.pass(10_000, &[HOME, AWAY]);
    }
    house.open("alice", third);
    let three = ["198.51.100.11", "198.51.100.12", "198.51.100.13"];
    let verdicts = browse_together(&mut house, "alice", &three);
    assert_eq!(evicted(&verdicts).1, ["198.51.100.13"]);
}

#[test]
fn the_two_families_of_one_phone_are_counted_apart() {
    let mut house = House::new(Terms::default());
    let v6 = "[2001:db8:11::2]:40003";
    house.open("alice", HOME);
    house.open("alice", v6);
    assert_eq!(house.pass(60_000, &[HOME, v6]), []);
}

const HOME6: &str = "[2001:db8:11::2]:40001";
const NEW6: &str = "[2001:db8:12::2]:50001";
const NEW6_AGAIN: &str = "[2001:db8:12::2]:50002";

/// Alice is at home, over both families, and a guest of hers was banned a while ago, over IPv4.
fn guest_is_banned(terms: Terms) -> House {
    let mut house = House::new(terms);
    house.open("alice", HOME);
    house.open("alice", HOME6);
    house.pass(20_000, &[HOME, HOME6]);
    house.open("alice", AWAY);
    let verdicts = browse_together(&mut house, "alice", &BOTH);
    assert_eq!(evicted(&verdicts).1, ["198.51.100.12"]);
    assert_eq!(house.pass(3_000, &[HOME, HOME6]), []);
    house
}

fn close_all_at(house: &mut House, address: &str) {
    let open = house.everything();
    open.iter().filter(|peer| peer.starts_with(address)).for_each(|peer| house.close(peer));
}

#[test]
fn the_banned_device_that_comes_back_in_the_other_family_goes_once_both_have_answered() {
    let mut house = guest_is_banned(Terms::default());
    assert!(house.open("alice", NEW6).is_empty(), "it may be her own phone");
    let arrived = house.now;
    let verdicts = until_asked(&mut house, &[HOME, NEW6]);
    assert!(house.now - arrived <= 2_000, "{}", house.now - arrived);
    assert_eq!(asked(&verdicts), ["198.51.100.11"]);
    let Verdict::Ask(question) = &verdicts[0] else { unreachable!() };
    assert_eq!(question.proof.exhibits.len(), 2, "of both families");
    assert_eq!(house.pass(200, &[NEW6]), []);
    assert_eq!(asked(&house.open("alice", HOME_AGAIN)), ["2001:db8:12::/64"]);
    assert_eq!(house.pass(200, &[HOME_AGAIN]), []);
    let (eviction, sources) = evicted(&house.open("alice", NEW6_AGAIN));
    assert_eq!((eviction.ground, &*sources[0]), (Ground::OtherFamily, "2001:db8:12::/64"));
    assert_eq!(eviction.offenders[0].measure, Measure::Ban);
    let stays: Vec<_> = eviction.incumbents.iter().map(|it| it.source.to_string()).collect();
    assert_eq!(stays, ["198.51.100.11"]);
    assert_eq!(house.occupancy.counters().other_family, 1);
}

#[test]
fn an_answer_from_before_a_device_came_in_the_other_family_proves_nothing_against_it() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.pass(20_000, &[HOME]);
    house.open("alice", AWAY);
    until_asked(&mut house, &[HOME, AWAY]);
    house.pass(200, &[AWAY]);
    house.open("alice", HOME_AGAIN);
    house.pass(200, &[HOME_AGAIN]);
    assert_eq!(evicted(&house.open("alice", AWAY_AGAIN)).1, ["198.51.100.12"]);

    house.pass(100, &[HOME_AGAIN]);
    house.open("alice", NEW6);
    assert_eq!(house.pass(2_000, &[HOME_AGAIN, NEW6]), []);
    let verdicts = house.open("alice", "198.51.100.11:40003");
    assert_eq!(asked(&verdicts), ["2001:db8:12::/64"]);
    house.pass(100, &[HOME_AGAIN]);
    assert_eq!(house.open("alice", NEW6_AGAIN), [], "home has answered, but that was before");
    let verdicts = until_asked(&mut house, &[HOME_AGAIN, NEW6_AGAIN]);
    assert_eq!(asked(&verdicts), ["198.51.100.11"]);
    house.pass(100, &[NEW6_AGAIN]);
    let (eviction, _) = evicted(&house.open("alice", "198.51.100.11:40004"));
    assert_eq!(eviction.ground, Ground::OtherFamily);
}

#[test]
fn without_the_question_a_device_in_the_other_family_goes_after_two_slots() {
    let mut house = guest_is_banned(Terms { asking: false, ..Terms::default() });
    house.open("alice", NEW6);
    let (eviction, _) = evicted(&house.pass(2_000, &[HOME, NEW6]));
    assert_eq!(eviction.ground, Ground::OtherFamily);
}

#[test]
fn a_phone_that_leaves_home_while_a_guest_of_the_other_family_is_banned_is_left_alone() {
    for asking in [true, false] {
        let mut house = guest_is_banned(Terms { asking, ..Terms::default() });
        close_all_at(&mut house, "198.51.100.11:");
        close_all_at(&mut house, "[2001:db8:11:");
        // Its next network is new in both families.
        let mut verdicts = house.open("alice", NEW6);
        verdicts.extend(house.open("alice", "198.51.100.13:1"));
        verdicts.extend(house.pass(40_000, &[NEW6, "198.51.100.13:1"]));
        assert_eq!(verdicts, [], "asking: {asking}");
    }
}

#[test]
fn a_phone_whose_old_network_lingers_beside_the_ban_of_a_guest_is_asked_and_left_alone() {
    let mut house = guest_is_banned(Terms::default());
    house.open("alice", NEW6);
    let mut questions = 0;
    for number in 0..40 {
        // What it opens anew, it opens where it is.
        house.open("alice", &format!("[2001:db8:12::2]:{}", 60_000 + number));
        let verdicts = house.pass(1_000, &[HOME, "198.51.100.11:2000", "198.51.100.11:2001", NEW6]);
        let sources = asked(&verdicts);
        assert!(sources.iter().all(|source| source == "198.51.100.11"), "{sources:?}");
        questions += sources.len();
    }
    assert!((1..=3).contains(&questions), "{questions}");
}

#[test]
fn a_phone_that_flaps_between_the_families_beside_the_ban_of_a_guest_is_left_alone() {
    // It opens something every now and then where it is, and what it has left goes on for a while.
    let habits = [(2_u64, 2), (3, 0), (4, 2), (6, 3)];
    let each = |(stays, most)| (0..=most).map(move |lingers| (stays * 1_000, lingers * 1_000));
    for (stays, lingers) in habits.into_iter().flat_map(each) {
        let mut house = guest_is_banned(Terms::default());
        close_all_at(&mut house, "198.51.100.11:");
        close_all_at(&mut house, "[2001:db8:11:");
        for step in 0..60_u64 {
            let (turn, after) = (step * 900 / stays, step * 900 % stays);
            let mut networks = ["[2001:db8:12::2]:", "198.51.100.11:"];
            if turn % 2 == 1 {
                networks.reverse();
            }
            let [here, left] = networks;
            if after >= lingers {
                close_all_at(&mut house, left);
            }
            let mut verdicts = house.open("alice", &format!("{here}{}", 61_000 + step));
            let open = house.everything();
            let moving: Vec<&str> = open.iter().map(String::as_str).collect();
            verdicts.extend(house.pass(900, &moving));
            let is_calm = |verdict: &Verdict| matches!(verdict, Verdict::Ask(_));
            assert!(verdicts.iter().all(is_calm), "{stays} {lingers}: {verdicts:#?}");
        }
    }
}

#[test]
fn a_device_of_the_other_family_for_which_there_is_a_place_is_no_matter() {
    let mut house = House::new(Terms { places: 2, ..Terms::default() });
    let second = "198.51.100.13:1";
    for peer in [HOME, second] {
        house.open("alice", peer);
        house.pass(10_000, &[HOME, second]);
    }
    house.open("alice", AWAY);
    let three = ["198.51.100.11", "198.51.100.13", "198.51.100.12"];
    assert_eq!(evicted(&browse_together(&mut house, "alice", &three)).1, ["198.51.100.12"]);
    close_all_at(&mut house, "198.51.100.13");
    house.pass(6_000, &[HOME]);
    house.open("alice", NEW6);
    assert_eq!(house.pass(20_000, &[HOME, NEW6]), []);
}

#[test]
fn at_a_shared_source_only_his_own_connections_go_and_again_on_sight() {
    let mut house = House::new(Terms::default());
    let neighbour = "198.51.100.12:51000";
    house.open("bob", neighbour);
    house.open("alice", HOME);
    house.pass(10_000, &[HOME, neighbour]);
    house.open("alice", AWAY);
    let verdicts = browse_together(&mut house, "alice", &BOTH);
    let (eviction, _) = evicted(&verdicts);
    let offender = &eviction.offenders[0];
    assert_eq!(offender.measure, Measure::Kill(Restraint::SharedSource));
    let peers: Vec<_> = offender.links.iter().map(|link| link.peer.to_string()).collect();
    assert!(peers.iter().all(|peer| peer.starts_with("198.51.100.12:") && peer != neighbour));
    assert!(peers.contains(&AWAY.to_owned()));
    assert!(house.everything().contains(&neighbour.to_owned()), "he goes on");

    let verdicts = house.open("alice", AWAY_AGAIN);
    let (eviction, _) = evicted(&verdicts);
    assert_eq!(eviction.ground, Ground::OnSight);
    assert_eq!(eviction.offenders[0].links.len(), 1);
    assert!(house.open("bob", "198.51.100.12:51001").is_empty());
    house.pass(60_000, &[HOME, neighbour]);
    assert!(house.open("alice", AWAY_AGAIN).is_empty(), "the order has run out");
}

/// As many sources as are kept for a user with one place.
const MOST_SOURCES: usize = 66;

/// An idle connection from each of `numbers` sources.
fn idle_from(house: &mut House, user: &str, numbers: std::ops::RangeInclusive<u8>) -> Vec<Verdict> {
    numbers.flat_map(|number| house.open(user, &format!("203.0.113.{number}:1"))).collect()
}

#[test]
fn who_has_connections_open_at_as_many_sources_as_are_kept_is_reset_at_another() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    assert_eq!(idle_from(&mut house, "alice", 1..=65), []);
    assert_eq!(house.everything().len(), MOST_SOURCES);
    // Another user is there, who loses nothing.
    house.open("bob", "198.51.100.12:7");
    for peer in [AWAY, AWAY_AGAIN] {
        let (eviction, sources) = evicted(&house.open("alice", peer));
        assert_eq!((eviction.ground, &*sources[0]), (Ground::TooManySources, "198.51.100.12"));
        let offender = &eviction.offenders[0];
        assert_eq!(offender.measure, Measure::Kill(Restraint::TooManySources));
        let reset: Vec<_> = offender.links.iter().map(|link| link.peer.to_string()).collect();
        assert_eq!(reset, [peer], "and nothing else");
        let stays: Vec<_> = eviction.incumbents.iter().map(|it| it.source.to_string()).collect();
        assert_eq!(stays, ["198.51.100.11"]);
    }
    assert_eq!(house.occupancy.counters().too_many_sources, 2);
    assert!(house.open("alice", HOME_AGAIN).is_empty(), "he is there already");
    house.close("203.0.113.1:1");
    assert!(house.open("alice", AWAY).is_empty(), "there is room again");
}

#[test]
fn a_source_with_open_connections_makes_room_for_nobody() {
    // Two at home, of whom one is quiet; a guest opens connections from everywhere, and closes them.
    let mut house = House::new(Terms { places: 2, ..Terms::default() });
    let second = "198.51.100.13:1";
    house.open("alice", HOME);
    house.pass(1_000, &[HOME]);
    house.open("alice", second);
    house.pass(10_000, &[HOME]);
    idle_from(&mut house, "alice", 1..=100);
    for number in 1..=100 {
        house.close(&format!("203.0.113.{number}:1"));
    }
    house.pass(1_000, &[HOME]);
    house.open("alice", AWAY);
    house.pass(10_000, &[HOME, AWAY]);
    let three = ["198.51.100.11", "198.51.100.13", "198.51.100.12"];
    let (eviction, sources) = evicted(&browse_together(&mut house, "alice", &three));
    assert_eq!(sources, ["198.51.100.12"], "the guest, not whoever was quiet");
    assert_eq!(eviction.incumbents.len(), 2);
}

#[test]
fn idle_connections_from_however_many_sources_hide_nobody() {
    let mut house = House::new(Terms { asking: false, ..Terms::default() });
    house.open("alice", HOME);
    house.pass(20_000, &[HOME]);
    house.open("alice", AWAY);
    idle_from(&mut house, "alice", 1..=100);
    let verdicts = house.pass(6_000, &[HOME, AWAY]);
    assert_eq!(evicted(&verdicts).1, ["198.51.100.12"]);
}

#[test]
fn what_found_no_room_before_verdicts_fall_is_reset_when_it_is_named_again() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    idle_from(&mut house, "alice", 1..=65);
    house.occupancy.begin(at(house.now));
    assert!(house.open("alice", AWAY).is_empty());
    assert!(house.line("alice", AWAY).is_empty());
    house.pass(6_000, &[HOME]);
    let (eviction, _) = evicted(&house.line("alice", AWAY));
    assert_eq!(eviction.ground, Ground::TooManySources);
}

#[test]
fn what_found_no_room_is_taken_when_it_is_named_again_and_there_is_some() {
    let mut house = House::new(Terms { asking: false, ..Terms::default() });
    house.open("alice", HOME);
    idle_from(&mut house, "alice", 1..=65);
    house.occupancy.begin(at(house.now));
    house.open("alice", AWAY);
    house.close("203.0.113.1:1");
    house.pass(6_000, &[HOME, AWAY]);
    assert!(house.line("alice", AWAY).is_empty());
    let verdicts = house.pass(10_000, &[HOME, AWAY]);
    assert_eq!(evicted(&verdicts).1, ["198.51.100.12"]);
}

#[test]
fn behind_a_cdn_nobody_is_reset_for_his_many_sources() {
    let mut house = House::new(Terms::default());
    for number in 1..=100 {
        for (user, port) in [("alice", 1), ("bob", 2)] {
            assert!(house.open(user, &format!("203.0.113.{number}:{port}")).is_empty());
        }
    }
    let counters = house.occupancy.counters();
    assert_eq!((counters.too_many_sources, counters.no_room), (0, 2 * 34));
    assert_eq!(counters.behind_cdn, 2 * 34);
}

#[test]
fn by_order_nobody_is_banned() {
    let mut house = House::new(Terms { action: Action::Kill, ..Terms::default() });
    house.open("alice", HOME);
    house.open("alice", AWAY);
    let verdicts = browse_together(&mut house, "alice", &BOTH);
    let (eviction, _) = evicted(&verdicts);
    assert_eq!(eviction.offenders[0].measure, Measure::Kill(Restraint::ByOrder));
}

#[test]
fn by_order_nobody_is_banned_and_whether_others_are_there_is_said_all_the_same() {
    let mut house = House::new(Terms { action: Action::Kill, ..Terms::default() });
    house.open("bob", "198.51.100.12:7");
    house.open("alice", HOME);
    house.open("alice", AWAY);
    let verdicts = browse_together(&mut house, "alice", &BOTH);
    let (eviction, sources) = evicted(&verdicts);
    assert_eq!(sources, ["198.51.100.12"]);
    assert_eq!(eviction.offenders[0].measure, Measure::Kill(Restraint::SharedSource));
}

#[test]
fn nothing_happens_in_the_first_window() {
    let mut house = House::new(Terms::default());
    house.occupancy.begin(at(house.now));
    let begun = house.now;
    house.open("alice", HOME);
    house.open("alice", AWAY);
    let verdicts = browse_together(&mut house, "alice", &BOTH);
    assert!(house.now - begun >= 5_000, "{}", house.now - begun);
    assert_eq!(evicted(&verdicts).1, ["198.51.100.12"]);
}

#[test]
fn a_claim_without_a_connection_is_counted_and_kept_nowhere() {
    let mut house = House::new(Terms::default());
    for port in 1..1_000 {
        assert!(house.line("alice", &format!("6.6.6.6:{port}")).is_empty());
    }
    assert_eq!(house.occupancy.counters().unverified, 999);
    assert_eq!(house.occupancy.sizes(), (0, 0));
}

#[test]
fn a_strangers_connection_is_nobodys_evidence_whoever_names_it_first() {
    for forged_first in [true, false] {
        let mut house = House::new(Terms::default());
        house.open("alice", HOME);
        house.pass(10_000, &[HOME]);
        house.connect(AWAY);
        let order = if forged_first { ["alice", "bob"] } else { ["bob", "alice"] };
        for user in order {
            assert!(house.line(user, AWAY).is_empty());
        }
        house.open("alice", HOME_AGAIN);
        assert_eq!(house.pass(30_000, &[HOME, HOME_AGAIN, AWAY]), []);
        assert_eq!(house.occupancy.counters().carriers, 1);
        let link = house.open.iter().find(|open| open.link.peer == House::peer(AWAY)).unwrap().link;
        assert!(!house.occupancy.may_destroy(b"alice", link.peer, link.cookie));
    }
}

#[test]
fn a_tainted_claim_changes_nothing() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.connect(AWAY);
    assert!(house.claim("alice", AWAY, true).is_empty());
    house.open("alice", HOME_AGAIN);
    assert_eq!(house.pass(30_000, &[HOME, HOME_AGAIN, AWAY]), []);
    assert_eq!((house.occupancy.counters().tainted, house.occupancy.sizes()), (1, (1, 2)));
}

#[test]
fn a_connection_that_was_refused_is_nobodys_before_and_after() {
    for named_first in [true, false] {
        let mut house = House::new(Terms::default());
        house.open("alice", HOME);
        house.connect(AWAY);
        let found = house.found(House::peer(AWAY)).unwrap();
        if named_first {
            house.line("alice", AWAY);
        }
        house.occupancy.refuse(&found, at(house.now));
        assert!(house.occupancy.knows_as_refused(found.link.peer));
        house.line("alice", AWAY);
        house.open("alice", HOME_AGAIN);
        assert_eq!(house.pass(30_000, &[HOME, HOME_AGAIN, AWAY]), []);
        assert_eq!(house.occupancy.counters().refused, 1);
    }
}

#[test]
fn a_connection_older_than_the_run_is_owned_through_the_old_log_only() {
    let mut house = House::new(Terms::default());
    for peer in [HOME, AWAY] {
        house.connect(peer);
        let found = house.found(House::peer(peer)).unwrap();
        house.occupancy.older(&found, at(house.now));
    }
    let sighting = |peer: &str| Sighting {
        user: b"alice",
        peer: House::peer(peer),
        transport: Transport::Unstated,
        inbound: None,
    };
    house.occupancy.adopt(&sighting(HOME), false, at(1));
    house.line("alice", AWAY);
    assert_eq!(house.occupancy.counters().older, 1);
    house.line("alice", HOME);
    assert_eq!(house.occupancy.counters().known, 1);
    assert_eq!(house.pass(30_000, &[HOME, AWAY]), []);
    // What is opened now is owned, and the adopted one holds its seniority.
    let verdicts = browse_together(&mut house, "alice", &BOTH);
    assert_eq!(evicted(&verdicts).1, ["198.51.100.12"]);
}

#[test]
fn seniority_outlives_a_restart() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.pass(1_000, &[HOME]);
    house.close(HOME);
    house.open("alice", AWAY);
    house.pass(1_000, &[AWAY]);
    let mut standings = Vec::new();
    loop {
        let some = house.occupancy.standings(1);
        if some.is_empty() {
            break;
        }
        standings.extend(some);
    }
    assert_eq!(standings.len(), 2);

    let mut again = House::new(Terms::default());
    again.now = house.now;
    standings.reverse();
    for standing in &standings {
        again.occupancy.restore(standing, at(again.now));
    }
    again.now += 10_000;
    let verdicts = browse_together(&mut again, "alice", &BOTH);
    assert_eq!(evicted(&verdicts).1, ["198.51.100.12"], "home was there first, yesterday");
}

#[test]
fn what_a_phone_left_behind_is_nobody_after_a_restart_either() {
    // The older run saw the phone go from home to AWAY; after the restart it goes on from there.
    for remembered in [true, false] {
        let mut house = House::new(Terms::default());
        house.connect(HOME);
        house.now += 2_000;
        house.connect(AWAY);
        house.now += 3_000;
        let start = house.now;
        for (peer, seen) in [(HOME, 10_000), (AWAY, 12_000)] {
            let peer = House::peer(peer);
            let standing = Standing {
                identity: (*b"alice").into(),
                shown_as: (*b"alice").into(),
                source: house.occupancy.policy().source(peer.address),
                first_seen: at(seen),
                arrival: at(seen),
                last_move: at(start - 100),
                ordered_until: Moment::default(),
                ordered_at: None,
                is_visit: false,
            };
            if remembered {
                house.occupancy.restore(&standing, at(start));
            }
            let found = house.found(peer).unwrap();
            house.occupancy.older(&found, at(start));
        }
        for (peer, line) in [(HOME, 1), (AWAY, 2)] {
            let peer = House::peer(peer);
            let transport = Transport::Unstated;
            let sighting = Sighting { user: b"alice", peer, transport, inbound: None };
            house.occupancy.adopt(&sighting, false, at(start - 1_000 + line));
        }
        house.occupancy.begin(at(start));
        for open in &mut house.open {
            open.sample.received += 100;
            open.sample.last_received = at(start + 100);
        }
        house.pass(200, &[HOME, AWAY]);
        house.open("alice", AWAY_AGAIN);
        let verdicts = house.pass(7_000, &[HOME, AWAY, AWAY_AGAIN]);
        assert_eq!(asked(&verdicts), ["198.51.100.11"], "remembered: {remembered}");
    }
}

#[test]
fn users_of_one_group_share_its_places() {
    let group = crate::accounts::Group {
        name: "family".to_owned(),
        members: vec!["alice".to_owned(), "bob".to_owned()],
        places: Places::Limited(1),
    };
    let accounts = AccountTerms { groups: vec![group], ..AccountTerms::default() };
    let mut house = House::with(Terms::default(), accounts);
    house.open("alice", HOME);
    house.pass(10_000, &[HOME]);
    let mut verdicts = Vec::new();
    for round in 0..12 {
        verdicts.extend(house.open("bob", &format!("198.51.100.12:{}", 2_000 + round)));
        verdicts.extend(house.open("alice", &format!("198.51.100.11:{}", 2_000 + round)));
        let open = house.everything();
        let open: Vec<&str> = open.iter().map(String::as_str).collect();
        verdicts.extend(house.pass(500, &open));
    }
    verdicts
        .retain(|verdict| matches!(verdict, Verdict::Evict(it) if it.ground == Ground::Overlap));
    assert_eq!(evicted(&verdicts).1, ["198.51.100.12"]);
}

#[test]
fn who_has_any_number_of_places_is_a_neighbour_and_nothing_else() {
    let ignore = vec!["carol".to_owned()];
    let accounts = AccountTerms { ignore, ..AccountTerms::default() };
    let mut house = House::with(Terms::default(), accounts);
    house.open("carol", "198.51.100.12:1");
    house.open("carol", "198.51.100.99:1");
    house.open("alice", HOME);
    house.open("alice", AWAY);
    let verdicts = browse_together(&mut house, "alice", &BOTH);
    let (eviction, _) = evicted(&verdicts);
    assert_eq!(eviction.offenders[0].measure, Measure::Kill(Restraint::SharedSource));
}

#[test]
fn forty_devices_on_one_account_are_cut_and_no_more_than_ten_are_banned_in_a_minute() {
    let mut house = House::new(Terms::default());
    let peers: Vec<String> = (1..=40).map(|n| format!("198.51.100.{n}:1")).collect();
    let again: Vec<String> = (1..=40).map(|n| format!("198.51.100.{n}:2")).collect();
    let mut verdicts = Vec::new();
    for some in [&peers, &again] {
        house.pass(100, &[]);
        for peer in some {
            verdicts.extend(house.open("alice", peer));
        }
    }
    let moving: Vec<&str> = peers.iter().chain(&again).map(String::as_str).collect();
    verdicts.extend(house.pass(6_000, &moving));
    let offenders: Vec<_> = verdicts
        .iter()
        .filter_map(|verdict| match verdict {
            Verdict::Evict(eviction) => Some(eviction.offenders.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    let bans = offenders.iter().filter(|it| it.measure == Measure::Ban).count();
    assert_eq!((offenders.len(), bans), (39, 10));
    assert!(offenders.iter().all(|it| it.source.to_string() != "198.51.100.1"));
}

#[test]
fn many_sources_that_others_use_too_are_a_cdn() {
    let mut house = House::new(Terms::default());
    for n in 1..=40 {
        house.open("alice", &format!("198.51.100.{n}:1"));
        house.open(&format!("user{n}"), &format!("198.51.100.{n}:3"));
    }
    house.pass(100, &[]);
    for n in 1..=40 {
        house.open("alice", &format!("198.51.100.{n}:2"));
    }
    let peers: Vec<String> = (1..=40).map(|n| format!("198.51.100.{n}:2")).collect();
    let moving: Vec<&str> = peers.iter().map(String::as_str).collect();
    let verdicts = house.pass(6_000, &moving);
    assert!(matches!(&verdicts[..], [Verdict::Refrain(it)] if it.sources == 40), "{verdicts:#?}");
    assert_eq!(house.occupancy.counters().behind_cdn, 1);
}

#[test]
fn a_phone_that_comes_back_to_the_network_that_was_asked_is_left_alone() {
    for lingers in [false, true] {
        let mut house = House::new(Terms::default());
        house.open("alice", HOME);
        house.pass(20_000, &[HOME]);
        // On to the next network, while what was left behind still moves: it is asked.
        house.open("alice", AWAY);
        let verdicts = house.pass(5_000, &[HOME, AWAY]);
        assert_eq!(asked(&verdicts), ["198.51.100.11"]);
        assert_eq!(house.pass(2_000, &[AWAY]), []);
        // The signal is lost, and the phone is back where it was. What it has left now may be asked,
        // and nothing more.
        let mut verdicts = house.open("alice", HOME_AGAIN);
        let moving: &[&str] = if lingers { &[AWAY, HOME_AGAIN] } else { &[HOME_AGAIN] };
        verdicts.extend(house.pass(20_000, moving));
        assert!(asked(&verdicts).iter().all(|source| source == "198.51.100.12"));
    }
}

#[test]
fn a_neighbour_whose_one_connection_is_open_for_days_is_a_neighbour() {
    let mut house = House::new(Terms::default());
    house.open("bob", "198.51.100.12:51000");
    for _ in 0..40 {
        house.now += 3_600_000;
        for _ in 0..10 {
            house.occupancy.tick(at(house.now));
        }
    }
    house.open("alice", HOME);
    house.pass(10_000, &[HOME]);
    house.open("alice", AWAY);
    let (eviction, _) = evicted(&browse_together(&mut house, "alice", &BOTH));
    assert_eq!(eviction.offenders[0].measure, Measure::Kill(Restraint::SharedSource));
}

#[test]
fn whoever_comes_over_a_carrier_of_several_is_a_neighbour() {
    let mut house = House::new(Terms::default());
    house.open("alice", AWAY);
    house.line("bob", AWAY);
    let Occupancy { neighbours, occupants, policy, .. } = &house.occupancy;
    let source = policy.source(House::peer(AWAY).address);
    for user in [b"alice".as_slice(), b"bob"] {
        let company = neighbours.company(source, occupants.hash_of(user), at(house.now));
        assert_eq!(company, crate::neighbours::Company::Shared);
    }
}

fn family(name: &str, members: &[&str], places: usize) -> AccountTerms {
    let group = crate::accounts::Group {
        name: name.to_owned(),
        members: members.iter().map(ToString::to_string).collect(),
        places: Places::Limited(places),
    };
    AccountTerms { groups: vec![group], ..AccountTerms::default() }
}

#[test]
fn who_leaves_a_group_takes_his_open_connections_with_him() {
    for (after, is_calm) in [
        (family("home", &["mum", "dad"], 2), true),
        (family("family", &["mum", "kid"], 1), true),
        (AccountTerms::default(), true),
        (family("family", &["mum", "dad"], 1), false),
    ] {
        let mut house = House::with(Terms::default(), family("family", &["mum", "dad"], 2));
        house.open("mum", HOME);
        house.pass(10_000, &[HOME]);
        house.open("dad", AWAY);
        assert_eq!(house.pass(10_000, &[HOME, AWAY]), []);
        let accounts = Arc::new(Accounts::new(after.clone()).unwrap());
        house.occupancy.set_rules(*house.occupancy.policy(), accounts);
        let mut verdicts = house.open("mum", HOME_AGAIN);
        verdicts.extend(house.open("dad", AWAY_AGAIN));
        verdicts.extend(house.pass(10_000, &[HOME, HOME_AGAIN, AWAY, AWAY_AGAIN]));
        assert_eq!(verdicts.is_empty(), is_calm, "{after:?}: {verdicts:#?}");
    }
}

#[test]
fn who_had_to_make_room_is_not_watched_for_ever() {
    let mut house = House::new(Terms { users: 1, ..Terms::default() });
    for peer in [HOME, AWAY] {
        house.open("alice", peer);
        house.pass(100, &[HOME, AWAY]);
    }
    for peer in [HOME, AWAY] {
        house.close(peer);
    }
    house.open("bob", HOME_AGAIN);
    house.pass(5_000, &[]);
    assert_eq!(house.occupancy.due(), None);
}

#[test]
fn idle_connections_hide_nobody_however_many_they_are() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.pass(100, &[HOME]);
    for port in 1..=600 {
        house.open("alice", &format!("198.51.100.11:{port}"));
    }
    house.pass(10_000, &[HOME]);
    house.open("alice", AWAY);
    let verdicts = house.pass(30_000, &[HOME, AWAY]);
    assert!(matches!(&verdicts[0], Verdict::Ask(it) if it.link.peer == House::peer(HOME)));
}

#[test]
fn behind_a_cdn_nobody_is_reset_not_even_to_ask() {
    let mut house = House::new(Terms::default());
    for n in 1..=40 {
        house.open("alice", &format!("198.51.100.{n}:1"));
        house.open(&format!("user{n}"), &format!("198.51.100.{n}:3"));
    }
    let peers: Vec<String> = (1..=40).map(|n| format!("198.51.100.{n}:1")).collect();
    let moving: Vec<&str> = peers.iter().map(String::as_str).collect();
    // Long downloads through every edge, and nothing new is begun.
    let verdicts = house.pass(20_000, &moving);
    assert!(matches!(&verdicts[..], [Verdict::Refrain(it)] if it.sources == 40), "{verdicts:#?}");
    let counters = house.occupancy.counters();
    assert_eq!((counters.asked, counters.behind_cdn), (0, 1));
}

#[test]
fn a_flood_of_sources_makes_no_newcomer_of_the_owner() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.pass(10_000, &[HOME]);
    house.close(HOME);
    house.pass(600_000, &[]);
    // While she is away, somebody else is at one source after the other.
    for last in 20..220 {
        let peer = format!("198.51.100.{last}:1");
        house.open("alice", &peer);
        house.pass(1_000, &[]);
        house.close(&peer);
    }
    house.open("alice", AWAY);
    house.pass(20_000, &[AWAY]);
    let verdicts = browse_together(&mut house, "alice", &BOTH);
    assert_eq!(evicted(&verdicts).1, ["198.51.100.12"]);
}

#[test]
fn what_was_opened_after_the_end_of_a_slot_did_not_move_in_it() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.pass(5_000, &[HOME]);
    // A slot ends in 900 ms, and is looked at 400 ms after that: between the two somebody comes.
    house.open("alice", "198.51.100.13:1");
    house.pass(100, &[HOME]);
    let slot = house.occupancy.measures.slot_of(at(house.now));
    house.now += 1_100;
    house.open("alice", AWAY);
    let moves = house.open.last_mut().unwrap();
    moves.sample.acknowledged += 1_000;
    moves.sample.last_acknowledged = at(house.now + 100);
    house.now += 200;
    while let Some(link) = house.occupancy.probe(&mut house.brakes, at(house.now)) {
        let sample = house.found(link.peer).and_then(|found| found.sample);
        house.occupancy.probed(&link, sample, at(house.now));
    }
    let source = house.occupancy.policy.source(House::peer(AWAY).address);
    let presence = house.occupancy.presence_mut(b"alice", source).unwrap();
    assert_eq!(presence.moved_until(slot), 0);
    assert_eq!(presence.moved_until(slot + 1), 1);
}

#[test]
fn who_is_watched_stays_so_when_the_window_changes() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.pass(20_000, &[HOME]);
    house.open("alice", AWAY);
    house.pass(1_000, &[HOME, AWAY]);
    let late = house.occupancy.counters().late_slots;
    let policy = Policy::new(Terms { window: Duration::from_secs(10), ..Terms::default() });
    let accounts = Arc::clone(&house.occupancy.accounts);
    house.occupancy.set_rules(policy.unwrap(), accounts);
    assert_eq!(asked(&house.pass(12_000, &[HOME, AWAY])), ["198.51.100.11"]);
    assert_eq!(house.occupancy.counters().late_slots, late);
}

#[test]
fn who_has_many_places_is_seen_when_he_is_at_more_sources_than_those() {
    let alice = ("alice".to_owned(), Places::Limited(80));
    let accounts = AccountTerms { users: vec![alice], ..AccountTerms::default() };
    let mut house = House::with(Terms::default(), accounts);
    let mut verdicts = Vec::new();
    for round in 0..16 {
        for device in 1..=82 {
            verdicts.extend(house.open("alice", &format!("198.51.100.{device}:{}", 2_000 + round)));
        }
        let open = house.everything();
        let moving: Vec<&str> = open.iter().map(String::as_str).collect();
        verdicts.extend(house.pass(500, &moving));
        if verdicts.iter().any(|verdict| matches!(verdict, Verdict::Evict(_))) {
            break;
        }
    }
    let (eviction, sources) = evicted(&verdicts);
    assert_eq!(sources, ["198.51.100.81", "198.51.100.82"]);
    assert_eq!((eviction.ground, eviction.places), (Ground::Overlap, 80));
    assert_eq!(house.occupancy.counters().no_room, 0);
}

/// A guest at 198.51.102.7 of a house where a /24 is one source was banned.
fn banned_at_one_address_of_many(terms: Terms) -> House {
    let mut house = House::new(Terms { ipv4_prefix: 24, ..terms });
    house.open("alice", HOME);
    house.pass(20_000, &[HOME]);
    let together = ["198.51.102.7", "198.51.100.11"];
    house.open("alice", "198.51.102.7:1");
    assert_eq!(evicted(&browse_together(&mut house, "alice", &together)).1, ["198.51.102.0/24"]);
    house
}

/// What a new connection of a user at a source that a ban may leave out in part leads to.
fn go_round(house: &mut House, user: &str, peer: &str) -> Vec<Verdict> {
    let mut verdicts = house.open(user, peer);
    let found = house.found(House::peer(peer)).unwrap();
    let now = at(house.now);
    verdicts.extend(match house.occupancy.go_round_a_ban(&found, &mut house.brakes, now) {
        Verdict::Admit => None,
        verdict => Some(verdict),
    });
    house.obey(&mut verdicts);
    verdicts
}

#[test]
fn who_goes_on_from_another_address_of_the_source_that_he_was_banned_at_goes_again() {
    let mut house = banned_at_one_address_of_many(Terms::default());
    let (eviction, sources) = evicted(&go_round(&mut house, "alice", "198.51.102.8:1"));
    assert_eq!((eviction.ground, &*sources[0]), (Ground::StillBanned, "198.51.102.0/24"));
    let offender = &eviction.offenders[0];
    assert_eq!((offender.measure, offender.peer), (Measure::Ban, House::peer("198.51.102.8:1")));
    assert_eq!(offender.links.len(), 1);
    assert_eq!(house.occupancy.counters().on_sight, 1);
    // Whoever is let in where he was banned was so by the operator.
    for banned in ["198.51.102.7:9", "198.51.102.8:9"] {
        assert_eq!(go_round(&mut house, "alice", banned), [], "{banned}");
    }
    assert_eq!(go_round(&mut house, "bob", "198.51.102.9:1"), [], "somebody else");
    assert_eq!(go_round(&mut house, "alice", HOME_AGAIN), [], "where she is at home");
    house.pass(60_000, &[HOME]);
    assert_eq!(go_round(&mut house, "alice", "198.51.102.9:1"), [], "it has run out");
}

#[test]
fn who_goes_through_the_addresses_of_a_banned_source_is_reset_once_the_brake_holds() {
    let mut house = banned_at_one_address_of_many(Terms::default());
    let measures: Vec<Measure> = (20..32)
        .map(|last| {
            let verdicts = go_round(&mut house, "alice", &format!("198.51.102.{last}:1"));
            evicted(&verdicts).0.offenders[0].measure
        })
        .collect();
    assert_eq!(measures[..9], [Measure::Ban; 9]);
    assert_eq!(measures[9..], [Measure::Kill(Restraint::UserBans); 3]);
}
