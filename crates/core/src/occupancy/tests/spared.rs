//! What becomes of those who are exempt all of a sudden.

use super::*;

/// He browses at one place while everything that is open moves.
fn browse(house: &mut House, user: &str, source: &str) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for round in 0..16 {
        verdicts.extend(house.open(user, &format!("{source}:{}", 3_000 + round)));
        let open = house.everything();
        let open: Vec<&str> = open.iter().map(String::as_str).collect();
        verdicts.extend(house.pass(500, &open));
    }
    verdicts
}

fn spare(house: &mut House, exempt: &str) {
    let exempt = House::peer(exempt).address;
    house.occupancy.spare(|peer| peer.address == exempt);
}

#[test]
fn who_is_exempt_by_now_holds_no_place_and_is_no_incumbent() {
    for keep in [Keep::First, Keep::Last] {
        let mut house = House::new(Terms { keep, ..Terms::default() });
        house.open("alice", HOME);
        house.pass(10_000, &[HOME]);
        house.open("alice", AWAY);
        house.pass(1_000, &[HOME, AWAY]);
        spare(&mut house, HOME);
        // What is open at home goes on; its lines do not come here any more.
        assert_eq!(browse(&mut house, "alice", "198.51.100.12"), []);
        let both = ["198.51.100.13", "198.51.100.12"];
        let (eviction, sources) = evicted(&browse_together(&mut house, "alice", &both));
        let incumbents: Vec<String> =
            eviction.incumbents.iter().map(|it| it.source.to_string()).collect();
        let expected = match keep {
            Keep::First => ["198.51.100.13", "198.51.100.12"],
            Keep::Last => ["198.51.100.12", "198.51.100.13"],
        };
        assert_eq!([sources, incumbents].concat(), expected);
        assert!(eviction.proof.unwrap().exhibits.iter().all(|it| it.seen.as_secs() < 60));
    }
}

#[test]
fn what_an_exempt_peer_left_open_is_nobodys_and_costs_nobody_his_memory() {
    let mut house = House::new(Terms::default());
    house.open("alice", HOME);
    house.open("bob", AWAY);
    spare(&mut house, HOME);
    assert_eq!((house.occupancy.owned(), house.occupancy.sizes().0), (1, 1));
    assert_eq!(house.line("alice", HOME), [], "should it be counted again");
    assert_eq!((house.occupancy.owned(), house.occupancy.counters().older), (1, 1));
}

#[test]
fn of_a_prefix_only_the_exempt_peers_are_let_go_of() {
    let mut house = House::new(Terms { ipv4_prefix: 24, ..Terms::default() });
    house.open("alice", HOME);
    house.open("alice", AWAY);
    spare(&mut house, HOME);
    assert_eq!((house.occupancy.owned(), house.occupancy.sizes().0), (1, 1));
    spare(&mut house, AWAY);
    assert_eq!((house.occupancy.owned(), house.occupancy.sizes().0), (0, 0));
}
