//! What is left of an occupancy when another run takes over what it remembered.

use super::*;

fn standing(user: &str, peer: &str, seen: u64, ordered_until: u64) -> Standing {
    Standing {
        identity: user.as_bytes().into(),
        shown_as: user.as_bytes().into(),
        source: Source::of(House::peer(peer).address, 32, 64),
        first_seen: at(seen),
        arrival: at(seen),
        last_move: at(seen),
        ordered_until: at(ordered_until),
        ordered_at: None,
        is_visit: false,
    }
}

/// A later run that knows what the earlier one gives, a few at a time, after `pause`.
fn restarted(mut before: House, accounts: AccountTerms, pause: u64) -> House {
    let mut after = House::with(Terms::default(), accounts);
    after.now = before.now + pause;
    let now = at(after.now);
    let until = before.occupancy.untold_until(None);
    after.occupancy.doubt_neighbours(until, now);
    loop {
        let some = before.occupancy.standings(1);
        if some.is_empty() {
            break;
        }
        for standing in &some {
            after.occupancy.restore(standing, now);
        }
    }
    after
}

/// How far one goes against the junior of two who browse at [`BOTH`].
fn measure(house: &mut House) -> Measure {
    house.now += 10_000;
    house.open("alice", HOME);
    house.pass(1_000, &[HOME]);
    house.open("alice", AWAY);
    let (eviction, sources) = evicted(&browse_together(house, "alice", &BOTH));
    assert_eq!(sources, ["198.51.100.12"]);
    eviction.offenders[0].measure
}

#[test]
fn whoever_was_a_neighbour_before_a_restart_is_one_after_it() {
    let unlimited = || AccountTerms { ignore: vec!["carol".to_owned()], ..AccountTerms::default() };
    let hours = |hours: u64| hours * 3_600_000;
    let shared = Measure::Kill(Restraint::SharedSource);
    for (user, pause, expected) in [
        ("carol", 1_000, shared),
        ("carol", hours(23), shared),
        ("carol", hours(24), Measure::Ban),
        ("bob", hours(23), shared),
        ("bob", hours(24), Measure::Ban),
    ] {
        let mut house = House::with(Terms::default(), unlimited());
        house.open(user, "198.51.100.12:1");
        house.close("198.51.100.12:1");
        // Twice: what was taken over is given on.
        let between = restarted(house, unlimited(), 0);
        let mut after = restarted(between, unlimited(), pause);
        assert_eq!(measure(&mut after), expected, "{user} after {pause} ms");
    }
}

#[test]
fn a_second_name_on_one_connection_and_who_was_there_at_the_start_are_neighbours_after_a_restart() {
    let unlimited = || AccountTerms { ignore: vec!["carol".to_owned()], ..AccountTerms::default() };
    let mut carrier = House::with(Terms::default(), unlimited());
    carrier.open("alice", "198.51.100.11:1");
    carrier.now += 1_000;
    carrier.open("alice", "198.51.100.12:1");
    carrier.line("dave", "198.51.100.12:1");

    let mut older = House::with(Terms::default(), unlimited());
    older.connect("198.51.100.12:1");
    let peer = House::peer("198.51.100.12:1");
    older.occupancy.older(&older.found(peer).unwrap(), at(older.now));
    let transport = Transport::Unstated;
    let sighting = Sighting { user: b"carol", peer, transport, inbound: None };
    older.occupancy.adopt(&sighting, false, at(older.now));

    for house in [carrier, older] {
        let mut after = restarted(house, unlimited(), 1_000);
        assert_eq!(measure(&mut after), Measure::Kill(Restraint::SharedSource));
    }
}

#[test]
fn a_neighbour_who_stays_for_days_without_a_place_is_one_after_a_restart() {
    let unlimited = || AccountTerms { ignore: vec!["carol".to_owned()], ..AccountTerms::default() };
    let mut house = House::with(Terms::default(), unlimited());
    house.open("carol", "198.51.100.12:1");
    for _ in 0..40 {
        house.now += 3_600_000;
        for _ in 0..10 {
            house.occupancy.tick(at(house.now));
        }
    }
    let mut after = restarted(house, unlimited(), 1_000);
    assert_eq!(measure(&mut after), Measure::Kill(Restraint::SharedSource));
}

#[test]
fn where_not_everybody_is_told_of_nobody_is_known_to_be_alone() {
    let unknown = Measure::Kill(Restraint::UnknownNeighbours);
    let day = 24 * 3_600_000;
    for (is_left_out, pause, expected) in [
        (false, 1_000, Measure::Ban),
        (true, 1_000, unknown),
        (true, day - 60_000, unknown),
        // By then he would be forgotten anyway.
        (true, day, Measure::Ban),
    ] {
        let mut house = House::new(Terms::default());
        house.open("alice", HOME);
        let until = house.occupancy.untold_until(is_left_out.then_some(at(house.now)));
        let mut after = restarted(house, AccountTerms::default(), pause);
        let now = at(after.now);
        after.occupancy.doubt_neighbours(until, now);
        assert_eq!(measure(&mut after), expected, "{is_left_out} {pause}");
    }
}

#[test]
fn sources_of_another_prefix_leave_a_doubt() {
    let mut house = House::new(Terms { ipv4_prefix: 24, ..Terms::default() });
    house.open("bob", "198.51.100.12:1");
    let mut after = restarted(house, AccountTerms::default(), 1_000);
    assert_eq!(measure(&mut after), Measure::Kill(Restraint::UnknownNeighbours));
}

#[test]
fn what_a_clock_that_was_ahead_wrote_holds_nobody_up_for_longer_than_the_timeout() {
    let hour = 3_600_000;
    let mut house = House::new(Terms::default());
    let start = house.now;
    house.occupancy.restore(&standing("alice", HOME, start - 5_000, 0), at(start));
    let ahead = standing("alice", AWAY, start + hour, start + hour + 60_000);
    house.occupancy.restore(&ahead, at(start));
    let (eviction, _) = evicted(&house.open("alice", AWAY));
    assert_eq!(eviction.ground, Ground::OnSight, "an order that may be running");
    house.now = start + 60_000;
    assert_eq!(house.open("alice", AWAY_AGAIN), [], "none is longer than the timeout");
    house.close(AWAY_AGAIN);
    // Home is the senior, and each of both has to be seen at work now.
    house.now = start + 90_000;
    house.open("alice", HOME);
    assert_eq!(house.pass(20_000, &[HOME]), [], "nobody else is at work");
    let verdicts = browse_together(&mut house, "alice", &BOTH);
    assert_eq!(evicted(&verdicts).1, ["198.51.100.12"]);
}
