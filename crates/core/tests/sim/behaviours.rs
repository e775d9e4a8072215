//! The lives that are lived: who is honest, who shares, and what must come of it.
//!
//! Each behaviour makes a [`Scene`] from random numbers, so that no two lives of it are alike. It
//! runs nothing.

use std::{net::IpAddr, sync::Arc, time::Duration};

use refract_core::{Keep, Terms};

use crate::{
    device::{
        Activity::{
            self, Browsing, Chat, Chunks, Mux, ShortBursts, StalledReader, Streaming, Sync,
        },
        Leave::{self, Closing, Lingering, Losing},
        Move, Network, Plan,
    },
    random::Random,
    world::{LogHabit, terms},
};

/// How long a life is, milliseconds.
pub(crate) const LIFE: u64 = 600_000;

/// One life: everybody on one server, for ten minutes.
pub(crate) struct Scene {
    pub(crate) plans: Vec<Plan>,
    pub(crate) terms: Terms,
    pub(crate) habit: LogHabit,
    /// When Refract is started anew.
    pub(crate) restart: Option<u64>,
}

/// What must come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expectation {
    /// Nobody is ever cut.
    Honest,
    /// In every life somebody is cut, at most so many milliseconds after the last device came.
    Caught(u64),
    /// The last device is cut, and nobody else ever.
    LastOnly,
    /// The last device is cut, and once more at most so many milliseconds after it has moved.
    Again(u64),
    /// Known to be seen late or not at all: shown, and nothing asserted.
    Shown,
}

/// A way to live.
pub(crate) struct Behaviour {
    pub(crate) name: String,
    pub(crate) expectation: Expectation,
    pub(crate) scene: Arc<dyn Fn(&mut Random) -> Scene + Send + std::marker::Sync>,
}

const EVERY: [Activity; 9] =
    [Browsing, Streaming, Chunks, Chat, Mux, Activity::Upload, StalledReader, Sync, ShortBursts];

/// Network number `n` of the world, by IPv4.
fn v4(n: u8) -> Network {
    Network { v4: Some(IpAddr::from([198, 51, 100, n])), v6: None }
}

/// The same by IPv6.
fn v6(n: u8) -> Network {
    let v6 = IpAddr::from([0x2001, 0xdb8, u16::from(n), 0, 0, 0, 0, 2]);
    Network { v4: None, v6: Some(v6) }
}

fn both(n: u8) -> Network {
    Network { v4: v4(n).v4, v6: v6(n).v6 }
}

fn plan(networks: &[Network], activities: &[Activity]) -> Plan {
    Plan {
        user: "alice",
        networks: networks.to_vec(),
        activities: activities.to_vec(),
        moves: Vec::new(),
        shifts: vec![(0, LIFE)],
        bad_wifi: false,
        slow: 0,
    }
}

/// Two or three things at once, as people do.
fn mixture(random: &mut Random) -> Vec<Activity> {
    let mut mixture = vec![random.pick(&[Browsing, Streaming, Chunks, Mux]), random.pick(&EVERY)];
    if random.chance(50) {
        mixture.push(Chat);
    }
    mixture
}

fn scene(plans: Vec<Plan>) -> Scene {
    Scene { plans, terms: terms(), habit: LogHabit::GOOD, restart: None }
}

/// A phone that moves among `networks`, `gap` apart; never to where it is.
fn moving(
    random: &mut Random,
    networks: &[Network],
    gap: (u64, u64),
    most: usize,
    leave: &[Leave],
) -> Plan {
    let mut plan = plan(networks, &mixture(random));
    let (mut at, mut here) = (random.between(10_000, 40_000), 0);
    while at < LIFE && plan.moves.len() < most {
        let to = (here + 1 + usize::from(networks.len() > 2 && random.chance(50))) % networks.len();
        plan.moves.push(Move { at, to, leave: random.pick(leave) });
        here = to;
        at += random.between(gap.0, gap.1);
    }
    plan
}

fn behaviour(
    name: impl Into<String>,
    expectation: Expectation,
    scene: impl Fn(&mut Random) -> Scene + Send + std::marker::Sync + 'static,
) -> Behaviour {
    Behaviour { name: name.into(), expectation, scene: Arc::new(scene) }
}

/// Everybody who must never be cut.
pub(crate) fn honest() -> Vec<Behaviour> {
    let honest = Expectation::Honest;
    let mut all = vec![
        behaviour("at home, one thing", honest, |random| {
            scene(vec![plan(&[v4(1)], &[random.pick(&EVERY)])])
        }),
        behaviour("at home, several things, bad Wi-Fi", honest, |random| {
            scene(vec![Plan { bad_wifi: true, ..plan(&[v4(1)], &mixture(random)) }])
        }),
    ];
    for (name, leave) in [
        ("closing", Closing),
        ("lost", Losing),
        ("3 s of lingering", Lingering(2_000, 3_000)),
        ("12 s of lingering", Lingering(6_000, 12_000)),
        ("30 s of lingering", Lingering(15_000, 30_000)),
        ("60 s of lingering", Lingering(30_000, 60_000)),
    ] {
        all.push(behaviour(format!("Wi-Fi to LTE, {name}"), honest, move |random| {
            let once = moving(random, &[v4(1), v4(2)], (1, 2), 1, &[leave]);
            scene(vec![once])
        }));
        all.push(behaviour(format!("nine moves, {name}"), honest, move |random| {
            let networks = [v4(1), v4(2), v4(3)];
            let nine = moving(random, &networks, (20_000, 100_000), 9, &[leave]);
            scene(vec![nine])
        }));
        all.push(behaviour(format!("nine moves between two, {name}"), honest, move |random| {
            let nine = moving(random, &[v4(1), v4(2)], (20_000, 100_000), 9, &[leave]);
            scene(vec![nine])
        }));
    }
    for (name, leave) in [
        ("closing", Closing),
        ("lost", Losing),
        ("1 s of lingering", Lingering(300, 1_000)),
        ("3 s of lingering", Lingering(1_000, 3_000)),
    ] {
        all.push(behaviour(format!("flapping every 2-6 s, {name}"), honest, move |random| {
            scene(vec![moving(random, &[v4(1), v4(2)], (2_000, 6_000), 999, &[leave])])
        }));
    }
    all.extend(honest_in_their_own_way());
    all
}

fn honest_in_their_own_way() -> Vec<Behaviour> {
    let honest = Expectation::Honest;
    let everyday = [Closing, Losing, Lingering(1_000, 30_000)];
    vec![
        behaviour("late and lost lines, moves", honest, move |random| {
            let plan = moving(random, &[v4(1), v4(2)], (20_000, 80_000), 99, &everyday);
            Scene { habit: LogHabit::BAD, ..scene(vec![plan]) }
        }),
        behaviour("mux carrier that lingers", honest, |random| {
            let leave = [Lingering(5_000, 60_000)];
            let mux = moving(random, &[v4(1), v4(2), v4(3)], (20_000, 80_000), 99, &leave);
            scene(vec![Plan { activities: vec![Mux, Mux], ..mux }])
        }),
        behaviour("bad Wi-Fi, moves", honest, move |random| {
            let plan = moving(random, &[v4(1), v4(2)], (20_000, 80_000), 99, &everyday);
            scene(vec![Plan { bad_wifi: true, ..plan }])
        }),
        behaviour("stalled reader, moves", honest, move |random| {
            let plan = moving(random, &[v4(1), v4(2)], (20_000, 80_000), 99, &everyday);
            let activities = vec![StalledReader, StalledReader, Browsing];
            scene(vec![Plan { activities, ..plan }])
        }),
        behaviour("IPv4 and IPv6 at once, moves", honest, move |random| {
            let networks = [both(1), both(2), both(3)];
            scene(vec![moving(random, &networks, (20_000, 80_000), 99, &everyday)])
        }),
        behaviour("back after 4-25 s to what still moves", honest, |random| {
            let leave = [Lingering(30_000, 60_000)];
            let mut plan = moving(random, &[v4(1), v4(2)], (1, 2), 1, &leave);
            let mut at = plan.moves[0].at;
            while at < LIFE - 200_000 {
                at += random.between(4_000, 25_000);
                plan.moves.push(Move { at, to: 0, leave: leave[0] });
                at += 90_000;
                plan.moves.push(Move { at, to: 1, leave: leave[0] });
            }
            scene(vec![plan])
        }),
        behaviour("commuting", honest, |random| {
            let mut plan = plan(&[v4(1), v4(2), v4(3), v4(4)], &mixture(random));
            // Home, train (two cells' addresses, in and out of tunnels), office, home.
            let mut at = random.between(60_000, 120_000);
            plan.moves.push(Move {
                at,
                to: 1,
                leave: random.pick(&[Losing, Lingering(1, 30_000)]),
            });
            while at < 280_000 {
                at += random.between(10_000, 40_000);
                let to = random.pick(&[1, 2]);
                plan.moves.push(Move { at, to, leave: random.pick(&[Closing, Losing]) });
            }
            for (at, to) in [(330_000, 3), (430_000, 2), (500_000, 0)] {
                let at = at + random.between(0, 20_000);
                plan.moves.push(Move {
                    at,
                    to,
                    leave: random.pick(&[Losing, Lingering(1, 30_000)]),
                });
            }
            scene(vec![plan])
        }),
        behaviour("Refract restarted, moves", honest, move |random| {
            let plan = moving(random, &[v4(1), v4(2)], (10_000, 60_000), 99, &everyday);
            let restart = Some(random.between(100_000, 500_000));
            Scene { restart, ..scene(vec![plan]) }
        }),
        behaviour("IPv6 prefix that changes", honest, |random| {
            let leave = [Closing, Losing, Lingering(60_000, 120_000)];
            let networks = [v6(1), v6(2), v6(3)];
            scene(vec![moving(random, &networks, (60_000, 150_000), 99, &leave)])
        }),
    ]
}

/// The other devices come between half a minute and a minute and a half after the first.
fn group(random: &mut Random, activities: &[&[Activity]]) -> Vec<Plan> {
    let mut plans = Vec::new();
    for (n, activities) in (1..).zip(activities) {
        let mut plan = plan(&[v4(n)], activities);
        if n > 1 {
            plan.shifts = vec![(random.between(30_000, 90_000), LIFE)];
        }
        plans.push(plan);
    }
    plans
}

/// Those who share an account and have to be cut.
pub(crate) fn sharing() -> Vec<Behaviour> {
    let caught = Expectation::Caught;
    vec![
        behaviour("two stream", caught(7_000), |random| {
            scene(group(random, &[&[Streaming], &[Streaming]]))
        }),
        behaviour("two browse", caught(150_000), |random| {
            scene(group(random, &[&[Browsing], &[Browsing]]))
        }),
        behaviour("one streams, the other browses", caught(60_000), |random| {
            scene(group(random, &[&[Streaming], &[Browsing]]))
        }),
        behaviour("one browses, the other streams", caught(60_000), |random| {
            scene(group(random, &[&[Browsing], &[Streaming]]))
        }),
        behaviour("two stream, answers 2 s late", caught(35_000), |random| {
            let mut plans = group(random, &[&[Streaming], &[Streaming]]);
            for plan in &mut plans {
                plan.slow = 2_000;
            }
            scene(plans)
        }),
        behaviour("two stream, bad Wi-Fi", caught(25_000), |random| {
            let mut plans = group(random, &[&[Streaming], &[Streaming]]);
            for plan in &mut plans {
                plan.bad_wifi = true;
            }
            scene(plans)
        }),
        behaviour("two stream, keep=last", caught(7_000), |random| {
            let plans = group(random, &[&[Streaming], &[Streaming]]);
            Scene { terms: Terms { keep: Keep::Last, ..terms() }, ..scene(plans) }
        }),
        behaviour("two stream, Refract restarted meanwhile", caught(10_000), |random| {
            let plans = group(random, &[&[Streaming], &[Streaming]]);
            let restart = Some(plans[1].shifts[0].0 + 2_000);
            Scene { restart, ..scene(plans) }
        }),
        behaviour("three devices on two places", caught(60_000), |random| {
            let plans = group(random, &[&[Streaming], &[Browsing], &[Streaming]]);
            Scene { terms: Terms { places: 2, ..terms() }, ..scene(plans) }
        }),
        behaviour("a phone that moves, and a second device", caught(100_000), |random| {
            let leave = [Closing, Losing, Lingering(1_000, 12_000)];
            let mut plans = vec![moving(random, &[v4(1), v4(3)], (40_000, 90_000), 99, &leave)];
            let mut other = plan(&[v4(2)], &[Streaming]);
            other.shifts = vec![(random.between(30_000, 90_000), LIFE)];
            plans.push(other);
            scene(plans)
        }),
        behaviour("forty devices", caught(20_000), |random| {
            let mut plans = Vec::new();
            for n in 1..=40 {
                let mut plan = plan(&[v4(n)], &[random.pick(&[Browsing, Streaming, Chunks])]);
                if n > 1 {
                    plan.shifts = vec![(random.between(20_000, 60_000), LIFE)];
                }
                // So many keep a debug build busy; what happens has happened by then.
                plan.shifts[0].1 = 120_000;
                plans.push(plan);
            }
            scene(plans)
        }),
    ]
}

/// IPv4 at home, and both families elsewhere.
fn both_elsewhere() -> Vec<Network> {
    vec![v4(1), both(2), both(3)]
}

/// IPv4 at home, and IPv6 only elsewhere.
fn one_family_each() -> Vec<Network> {
    vec![v4(1), v6(2)]
}

/// How long a guest's ban lasts in what follows: to the end.
const FOR_EVER: Duration = Duration::from_secs(LIFE / 1_000);

/// A guest who streams over IPv4 from half a minute on, and is cut.
fn guest() -> Plan {
    Plan { shifts: vec![(30_000, 60_000)], ..plan(&[v4(9)], &[Streaming]) }
}

/// A guest is banned over IPv4, and whoever is honest goes on to networks that he never was at.
pub(crate) fn beside_a_ban() -> Vec<Behaviour> {
    let mut all = Vec::new();
    let mut beside = |name: String, networks: Vec<Network>, gap, most, leave: Leave| {
        all.push(behaviour(name, Expectation::LastOnly, move |random| {
            let mut phone = moving(random, &networks, gap, most, &[leave]);
            phone.activities = vec![Streaming, random.pick(&[Browsing, Chunks, Mux, Chat])];
            let late = 65_000 - phone.moves[0].at.min(65_000);
            phone.moves.iter_mut().for_each(|it| it.at += late);
            let terms = Terms { timeout: FOR_EVER, ..terms() };
            Scene { terms, ..scene(vec![phone, guest()]) }
        }));
    };
    for (name, leave) in [
        ("closing", Closing),
        ("lost", Losing),
        ("3 s of lingering", Lingering(2_000, 3_000)),
        ("30 s of lingering", Lingering(15_000, 30_000)),
        ("60 s of lingering", Lingering(30_000, 60_000)),
    ] {
        beside(format!("beside a ban, a move, {name}"), one_family_each(), (1, 2), 1, leave);
        beside(
            format!("beside a ban, nine moves, {name}"),
            one_family_each(),
            (20_000, 60_000),
            9,
            leave,
        );
        beside(
            format!("to both families, nine, {name}"),
            both_elsewhere(),
            (20_000, 60_000),
            9,
            leave,
        );
    }
    for (name, leave) in [
        ("closing", Closing),
        ("lost", Losing),
        ("1 s of lingering", Lingering(300, 1_000)),
        ("3 s of lingering", Lingering(1_000, 3_000)),
    ] {
        beside(
            format!("beside a ban, flapping, {name}"),
            one_family_each(),
            (2_000, 6_000),
            999,
            leave,
        );
    }
    all
}

/// The device that was cut comes back over the other family, and the first one goes on.
pub(crate) fn comebacks() -> Vec<Behaviour> {
    let mut all = Vec::new();
    for (name, activity, bound) in [
        ("comes back, both stream", [Streaming, Streaming], 7_000),
        ("comes back and browses, the first streams", [Streaming, Browsing], 90_000),
        ("comes back and streams, the first browses", [Browsing, Streaming], 60_000),
    ] {
        all.push(behaviour(name, Expectation::Again(bound), move |random| {
            let first = plan(&[v4(1)], &activity[..1]);
            let mut last = plan(&[v4(2), v6(2)], &activity[1..]);
            last.shifts = vec![(30_000, LIFE)];
            last.moves = vec![Move { at: random.between(200_000, 210_000), to: 1, leave: Closing }];
            let terms = Terms { timeout: FOR_EVER, ..terms() };
            Scene { terms, ..scene(vec![first, last]) }
        }));
    }
    all
}

/// Those who share and are seen late or not at all.
pub(crate) fn known_limits() -> Vec<Behaviour> {
    vec![
        behaviour("two watch videos in pieces", Expectation::Shown, |random| {
            scene(group(random, &[&[Chunks], &[Chunks]]))
        }),
        behaviour("two do several things", Expectation::Shown, |random| {
            let (one, other) = (mixture(random), mixture(random));
            scene(group(random, &[&one, &other]))
        }),
        behaviour("two on mux", Expectation::Shown, |random| {
            scene(group(random, &[&[Mux], &[Mux, Chat]]))
        }),
        behaviour("two upload", Expectation::Shown, |random| {
            scene(group(random, &[&[Activity::Upload], &[Activity::Upload]]))
        }),
        behaviour("two stream, late and lost lines", Expectation::Shown, |random| {
            let plans = group(random, &[&[Streaming], &[Streaming]]);
            Scene { habit: LogHabit::BAD, ..scene(plans) }
        }),
        behaviour("short bursts that rarely coincide", Expectation::Shown, |random| {
            scene(group(random, &[&[ShortBursts, Chat], &[ShortBursts, Chat]]))
        }),
        behaviour("one browses, the other chats", Expectation::Shown, |random| {
            scene(group(random, &[&[Browsing], &[Chat]]))
        }),
        behaviour("strict turns of 30 s", Expectation::Shown, |random| {
            let mut plans = group(random, &[&[Streaming], &[Streaming]]);
            let turn = |n: u64| (0..10).map(move |turn| (turn * 60 + n * 30) * 1_000);
            for (n, plan) in (0..).zip(&mut plans) {
                plan.shifts = turn(n).map(|from| (from, from + 30_000)).collect();
            }
            scene(plans)
        }),
        behaviour("one on IPv4, one on IPv6", Expectation::Shown, |random| {
            let mut plans = group(random, &[&[Streaming], &[Streaming]]);
            plans[1].networks = vec![v6(2)];
            scene(plans)
        }),
    ]
}
