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
    }
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
