//! Verdicts that carry an earlier one on say which.

use super::*;
use crate::{
    roster::Roster,
    verdict::{Basis, Evidence},
};

fn source(peer: &str) -> Source {
    Source::of(House::peer(peer).address, 32, 64)
}

/// The verdict fell within the last step of [`browse_together`].
fn is_about(ago: Duration, millis: u64) -> bool {
    (millis..=millis + 300).contains(&u64::try_from(ago.as_millis()).unwrap())
}

#[test]
fn a_reset_on_sight_names_the_order_also_after_a_restart() {
    let mut house = House::new(Terms { action: Action::Kill, ..Terms::default() });
    house.open("alice", HOME);
    house.pass(20_000, &[HOME]);
    house.open("alice", AWAY);
    evicted(&browse_together(&mut house, "alice", &BOTH));
    house.now += 3_000;
    let (eviction, _) = evicted(&house.open("alice", AWAY_AGAIN));
    assert_eq!((eviction.ground, eviction.proof), (Ground::OnSight, None));
    let order = eviction.basis.unwrap();
    assert_eq!(order.source, source(AWAY));
    assert!(is_about(order.ago, 3_000), "{order:?}");

    let mut after = House::new(Terms { action: Action::Kill, ..Terms::default() });
    after.now = house.now + 10_000;
    for standing in house.occupancy.standings(10) {
        after.occupancy.restore(&standing, at(after.now));
    }
    let (eviction, _) = evicted(&after.open("alice", AWAY_AGAIN));
    let ago = order.ago + Duration::from_secs(10);
    assert_eq!(eviction.basis, Some(Basis { ago, ..order }));
}

#[test]
fn a_device_in_the_other_family_names_who_was_cut_in_the_first() {
    let mut house = House::new(Terms { asking: false, ..Terms::default() });
    house.open("alice", HOME);
    house.pass(20_000, &[HOME]);
    house.open("alice", AWAY);
    let (eviction, _) = evicted(&browse_together(&mut house, "alice", &BOTH));
    assert_eq!(eviction.basis, None, "it has numbers of its own");
    house.pass(10_000, &[HOME]);
    let back = "[2001:db8:7::1]:1";
    house.open("alice", back);
    let (eviction, _) = evicted(&house.pass(2_000, &[HOME, back]));
    assert_eq!(eviction.ground, Ground::OtherFamily);
    assert_eq!(eviction.proof.unwrap().exhibits.len(), 2);
    let basis = eviction.basis.unwrap();
    assert_eq!(basis.source, source(AWAY));
    let seconds = basis.ago.as_secs();
    assert!((10..=12).contains(&seconds), "{basis:?}");
}

#[test]
fn on_the_logs_word_it_is_named_too() {
    let ago = |seconds| Duration::from_secs(seconds);
    for (keep, again, ground, cut) in [
        (Keep::First, "[2001:db8:7::1]:1", Ground::OtherFamily, AWAY),
        (Keep::Last, HOME_AGAIN, Ground::StillBanned, HOME),
    ] {
        let mut roster = Roster::new(Policy::new(Terms { keep, ..Terms::default() }).unwrap());
        let mut see = |peer, second: u64| {
            let (peer, transport) = (House::peer(peer), Transport::Unstated);
            let sighting = Sighting { user: b"alice", peer, transport, inbound: None };
            roster.observe(&sighting, Evidence::Log, at(second * 1_000))
        };
        assert_eq!(see(HOME, 10), Verdict::Admit);
        let (eviction, sources) = evicted(&[see(AWAY, 12)]);
        assert_eq!((eviction.basis, sources), (None, vec![source(cut).to_string()]));
        let (eviction, _) = evicted(&[see(again, 15)]);
        assert_eq!(eviction.ground, ground);
        assert_eq!(eviction.basis, Some(Basis { source: source(cut), ago: ago(3) }));
    }
}
