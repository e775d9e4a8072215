//! Whoever abuses a brake stops nobody else's enforcement.
//!
//! One account at hundreds of sources, a crowd that shares one account, forged neighbours, a CDN in
//! front: each is held by its brake, is on record, and meanwhile two others who share an account are
//! cut as fast as ever. The daemon asks the kernel; everything is really connected.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use support::{
    LabError, Result,
    access_log::accepted_line,
    evidence::{BOUND, Device, banned, online},
    lab::SERVER_V6,
    peer::Talker,
    sidecar::{Record, Sidecar},
    stage::{AT, IN_TIME, JUNIOR, Stage},
};

const AT6: SocketAddr = SocketAddr::new(IpAddr::V6(SERVER_V6), 443);

#[test]
fn an_account_that_goes_through_a_prefix_of_ipv6_is_held_and_others_are_cut_meanwhile() -> Result<()>
{
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    let over = AtomicBool::new(false);
    let used = AtomicU32::new(0);
    let (record, most_banned) = thread::scope(|scope| {
        let rotating = scope.spawn(|| -> Result<()> {
            let mut open = VecDeque::new();
            // Somebody is at home, too.
            let mut home = Device::new(&sidecar, &stage.crowd, stage.crowd.v6()?, AT6, "rotator");
            while !over.load(Ordering::Relaxed) {
                let number = used.fetch_add(1, Ordering::Relaxed);
                if number.is_multiple_of(8) {
                    home.browse()?;
                }
                let [_, _, high, low] = number.to_be_bytes();
                let subnet = u16::from_be_bytes([high, low]);
                let source = Ipv6Addr::new(0x2001, 0xdb8, 0xf000, subnet, 0, 0, 0, 7);
                open.push_back(online(&sidecar, &stage.crowd, source.into(), AT6, "rotator")?);
                // He stays at each for somewhat longer than a window.
                if open.len() > 60 {
                    open.pop_front();
                }
                thread::sleep(Duration::from_millis(15));
            }
            // Who was there first has a place, and is asked for nothing more than that.
            assert!(home.browse()?, "shut out of his home");
            home.open()[0].wait_for_answers()
        });
        let worked = stage.sharers_are_cut(&sidecar, "sharer").and_then(|record| {
            // Until he has been at hundreds.
            let begun = Instant::now();
            while used.load(Ordering::Relaxed) < 300 && begun.elapsed() < 2 * BOUND {
                thread::sleep(Duration::from_millis(50));
            }
            Ok((record, banned(stage.lab.server())?))
        });
        over.store(true, Ordering::Relaxed);
        rotating.join().map_err(|_| LabError::new("the rotator panicked"))??;
        worked
    })?;
    assert_eq!((record.action.as_str(), record.reason.as_str()), ("ban", "overlap"));
    let used = used.load(Ordering::Relaxed);
    assert!(used >= 300, "only {used} prefixes");
    sidecar.settled()?;
    let records = sidecar.records()?;
    let status = sidecar.status()?;
    let of = |action: &str, reason: &str| {
        let is_wanted =
            |it: &&Record| it.user == "rotator" && it.action == action && it.reason == reason;
        records.iter().filter(is_wanted).count()
    };
    assert_eq!(of("ban", "overlap"), 10, "{}", sidecar.trouble("not ten bans"));
    let withheld = of("kill", "user_bans_reached");
    assert!(withheld >= 1, "{}", sidecar.trouble("no kill"));
    assert!(status.count("user_bans_withheld")? >= withheld as u64, "{status}");
    assert_eq!(status.count("max_bans_withheld")?, 0, "{status}");
    // Ten prefixes of his, and the sharer.
    assert_eq!(most_banned.len(), 11, "{most_banned:?}");
    assert!(most_banned.iter().filter(|member| member.ends_with("::/64")).count() == 10);
    Ok(())
}

#[test]
fn forty_devices_on_one_account_take_ten_bans_and_one_users_share_of_all() -> Result<()> {
    const DEVICES: u8 = 40;
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &["--max-bans=2"])?;
    let mut devices: Vec<Device<'_>> = (1..=DEVICES)
        .map(|last| Device::new(&sidecar, &stage.crowd, [198, 19, 0, last].into(), AT, "crowd"))
        .collect();
    let begun = Instant::now();
    let mut record = None;
    while begun.elapsed() < Duration::from_secs(3) || record.is_none() {
        for device in &mut devices {
            // Who is banned already is not waited for.
            if begun.elapsed() < Duration::from_millis(900) {
                device.browse()?;
            }
        }
        if record.is_none() && begun.elapsed() > Duration::from_millis(900) {
            record = Some(stage.sharers_are_cut(&sidecar, "sharer")?);
        }
        thread::sleep(Duration::from_millis(50));
    }
    let record = record.unwrap();
    assert_eq!((record.action.as_str(), record.reason.as_str()), ("ban", "overlap"));
    let status = sidecar.settled()?;
    let records = sidecar.records()?;
    let crowd = || records.iter().filter(|it| it.user == "crowd");
    let bans: BTreeSet<_> = crowd().filter(|it| it.action == "ban").map(|it| &it.source).collect();
    let withheld: BTreeSet<_> =
        crowd().filter(|it| it.reason == "user_bans_reached").map(|it| &it.source).collect();
    assert_eq!(bans.len(), 10, "{}", sidecar.trouble("not ten bans"));
    assert!(withheld.len() > 20 && bans.is_disjoint(&withheld), "{withheld:?}");
    assert!(status.count("user_bans_withheld")? >= withheld.len() as u64, "{status}");
    // The account has taken one of two, the sharers the other: there is none left.
    assert_eq!(status.count("max_bans_withheld")?, 0, "{status}");
    let record = {
        let device =
            |last: u8| Device::new(&sidecar, &stage.people, [198, 18, 4, last].into(), AT, "third");
        let (record, after) = sidecar.until_cut(&mut device(1), &mut device(2), BOUND)?;
        assert!(after < IN_TIME, "it took {after:?}");
        record
    };
    assert_eq!((record.action.as_str(), record.reason.as_str()), ("kill", "max_bans_reached"));
    assert_eq!(sidecar.status()?.count("max_bans_withheld")?, 1);
    sidecar.wait_for_message("as many users as --max-bans allows were banned")?;
    assert_eq!(banned(stage.lab.server())?.len(), 11);
    // Cut is cut: what he opens next dies, too.
    let again = online(&sidecar, &stage.people, [198, 18, 4, 2].into(), AT, "third")?;
    again.wait_for_reset()
}

#[test]
fn beyond_as_many_sources_as_are_kept_for_a_user_connections_are_reset_and_nobody_hides()
-> Result<()> {
    /// As many as are kept for a user with one place, without his home.
    const FLOOD: u16 = 65;
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    // No verdict falls in the first window.
    thread::sleep(Duration::from_secs(1));
    let source = |number: u16| Ipv6Addr::new(0x2001, 0xdb8, 0xf000, number, 0, 0, 0, 7).into();
    let device = |source| Device::new(&sidecar, &stage.crowd, source, AT6, "flooder");
    let (mut home, mut guest) = (device(stage.crowd.v6()?), device(source(0)));
    home.browse()?;
    let mut flood = (1..=FLOOD)
        .map(|number| {
            let talker = online(&sidecar, &stage.crowd, source(number), AT6, "flooder")?;
            talker.be_quiet();
            Ok(talker)
        })
        .collect::<Result<Vec<_>>>()?;
    let neighbour = online(&sidecar, &stage.crowd, source(0), AT6, "neighbour")?;
    let beyond = online(&sidecar, &stage.crowd, source(0), AT6, "flooder")?;
    beyond.wait_for_reset()?;
    let record = sidecar.wait_for_record("a reset", |it| it.reason == "too_many_sources")?;
    assert_eq!((&*record.action, &*record.outcome, record.killed), ("kill", "ok", 1));
    assert_eq!((&*record.source, &*record.peers), ("2001:db8:f000::/64", &[beyond.local()][..]));
    assert_eq!(record.incumbents, ["2001:db8:9::/64"]);
    assert_eq!(sidecar.settled()?.count("too_many_sources")?, 1);
    assert_eq!(banned(stage.lab.server())?, [""; 0]);
    neighbour.wait_for_answers()?;

    // With room for him he is seen, and cut as anybody else.
    drop(flood.pop());
    let begun = Instant::now();
    let record = loop {
        home.browse()?;
        guest.browse()?;
        let is_cut = |it: &Record| it.user == "flooder" && it.reason == "shared_source";
        if let Some(record) = sidecar.records()?.into_iter().find(is_cut) {
            break record;
        }
        assert!(begun.elapsed() < BOUND, "{}", sidecar.trouble("nobody was cut"));
        thread::sleep(Duration::from_millis(150));
    };
    assert_eq!((&*record.action, &*record.source), ("kill", "2001:db8:f000::/64"));
    neighbour.wait_for_answers()
}

#[test]
fn neighbours_that_are_only_forged_spare_nobody_a_ban() -> Result<()> {
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    let over = AtomicBool::new(false);
    let record = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let lines: String = (0..8)
                    .map(|user| {
                        accepted_line(format!("{JUNIOR}:1{user}"), &format!("ghost-{user}"))
                    })
                    .collect();
                sidecar.log().write(lines.as_bytes())?;
                thread::sleep(Duration::from_millis(20));
            }
            Ok::<_, LabError>(())
        });
        let record = stage.sharers_are_cut(&sidecar, "sharer");
        over.store(true, Ordering::Relaxed);
        record
    })?;
    assert_eq!((record.action.as_str(), record.reason.as_str()), ("ban", "overlap"));
    let status = sidecar.settled()?;
    assert!(status.count("unverified")? > 100, "{status}");
    assert_eq!(status.lines_with("proxy source="), Vec::<&str>::new());
    assert_eq!(banned(stage.lab.server())?, [JUNIOR.to_string()]);
    Ok(())
}

#[test]
fn eight_users_whom_the_offender_plays_himself_spare_him_the_ban_and_not_the_cut() -> Result<()> {
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    let ghosts = (0..8)
        .map(|user| {
            let source = JUNIOR;
            online(&sidecar, &stage.people, source, AT, &format!("ghost-{user}"))
        })
        .collect::<Result<Vec<_>>>()?;
    let record = stage.sharers_are_cut(&sidecar, "sharer")?;
    assert_eq!((record.action.as_str(), record.reason.as_str()), ("kill", "proxy"));
    let again = online(&sidecar, &stage.people, JUNIOR, AT, "sharer")?;
    again.wait_for_reset()?;
    // Nobody else's address is a proxy for that.
    let status = sidecar.settled()?;
    assert_eq!(
        status.lines_with("proxy source="),
        [format!("proxy source={JUNIOR} users=8 (never banned)")]
    );
    let device =
        |last: u8| Device::new(&sidecar, &stage.people, [198, 18, 4, last].into(), AT, "other");
    let (record, after) = sidecar.until_cut(&mut device(1), &mut device(2), BOUND)?;
    assert_eq!((record.action.as_str(), record.source.as_str()), ("ban", "198.18.4.2"));
    assert!(after < IN_TIME, "it took {after:?}");
    for ghost in &ghosts {
        ghost.wait_for_answers()?;
    }
    Ok(())
}

#[test]
fn behind_a_cdn_nobody_is_cut_it_is_said_and_others_are_cut_meanwhile() -> Result<()> {
    const EDGES: u8 = 34;
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
    // Each edge carries several users, and each user comes through every edge.
    let through =
        |edge: u8, user: &str| online(&sidecar, &stage.crowd, [198, 19, 1, edge].into(), AT, user);
    let mut open: Vec<Talker> = Vec::new();
    for user in ["alice", "bob"] {
        for edge in 1..=EDGES {
            open.push(through(edge, user)?);
        }
    }
    let record = stage.sharers_are_cut(&sidecar, "sharer")?;
    assert_eq!((record.action.as_str(), record.reason.as_str()), ("ban", "overlap"));
    for edge in 1..=EDGES {
        for user in ["alice", "bob"] {
            open.push(through(edge, user)?);
        }
    }
    sidecar.wait_for_message("a CDN must be in front")?;
    let refrained = sidecar.wait_for_record("a refrain", |it| it.action == "refrain")?;
    assert_eq!((refrained.reason.as_str(), refrained.killed), ("behind_cdn", 0));
    assert!(refrained.proof.is_some_and(|proof| proof.len() >= 32));
    let status = sidecar.settled()?;
    assert!(status.count("behind_cdn")? >= 1, "{status}");
    let records = sidecar.records()?;
    let of_users = records.iter().filter(|it| it.user != "sharer");
    assert!(of_users.clone().all(|it| it.action == "refrain"), "{}", sidecar.trouble("not calm"));
    // One for each of the two, and one more for edges that came to it later.
    assert!((2..=4).contains(&of_users.count()), "{}", sidecar.trouble("too many words"));
    assert_eq!(status.count("asked")?, 0, "{status}");
    assert_eq!(banned(stage.lab.server())?, [JUNIOR.to_string()]);
    for talker in &open {
        talker.wait_for_answers()?;
    }
    Ok(())
}
