//! Who is counted and who goes: sources, places, exemptions, the window; on the word of the log,
//! unless it is about a ban that leaves a part of its source out.
//!
//! The daemon is the real one and so is the clock; where a connection matters it is real too. The
//! records are the answer, `ipset list` is the witness. What is done to an offender is proved in
//! `enforcement.rs`.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use support::{
    Result,
    access_log::accepted_line,
    evidence::{BOUND, Device, online},
    lab::{Lab, SERVER_PRIVATE, SERVER_V4, SERVER_V6},
    peer::{Server, Talker},
    sidecar::{Record, Sidecar},
    stage::{AT, Stage},
    witness,
};

const BANNED: &str = "refract_banned_users";
const BANNED6: &str = "refract_banned_users6";

/// Lines that say that `user` opened a stream from each of `peers`, in that order.
fn lines(user: &str, peers: &[&str]) -> String {
    peers.iter().map(|peer| accepted_line(peer, user)).collect()
}

/// What a record says in few words: action, source, who held the places.
fn told(records: &[Record]) -> Vec<(&str, &str, Vec<&str>)> {
    records
        .iter()
        .map(|record| {
            let incumbents = record.incumbents.iter().map(String::as_str).collect();
            (record.action.as_str(), record.source.as_str(), incumbents)
        })
        .collect()
}

#[test]
fn an_exempt_peer_is_never_banned_and_never_counted() -> Result<()> {
    let mut lab = Lab::new()?;
    let gateway = lab.add_client(&["198.51.100.11", "2001:db8:11::2"])?;
    let allowed = lab.add_client(&["198.51.100.77", "2001:db8:77::2"])?;
    let server = lab.server();
    // The first client's end of its link, and its address, become this server's way out.
    server.output("ip", &["route", "add", "default", "via", "192.0.2.6"])?;
    let via = ["-6", "route", "add", "default", "via", "2001:db8:11::2", "dev", "to-client1"];
    server.output("ip", &[&via[..], &["onlink"]].concat())?;
    let _echo = Server::echo(server, 443)?;
    let allow = ["--allow=198.51.100.77,2001:db8:77::/48", "--allow=10.8.0.0/16"];
    let sidecar = Sidecar::start(&lab, &allow)?;
    server.output("ip", &["addr", "add", "203.0.113.7/32", "dev", "public0"])?;
    server.output("ip", &["addr", "add", "2001:db8:99::7/128", "dev", "public0", "nodad"])?;

    let (at, at6) =
        (SocketAddr::new(SERVER_V4.into(), 443), SocketAddr::new(SERVER_V6.into(), 443));
    let talkers = [
        Talker::connect(server, "127.0.0.1".parse().unwrap(), "127.0.0.1:443".parse().unwrap())?,
        Talker::connect(server, "::1".parse().unwrap(), "[::1]:443".parse().unwrap())?,
        Talker::connect(server, SERVER_V4.into(), at)?,
        Talker::connect(server, SERVER_V6.into(), at6)?,
        Talker::connect(server, SERVER_PRIVATE.into(), at)?,
        Talker::connect(server, "203.0.113.7".parse().unwrap(), at)?,
        Talker::connect(&allowed, allowed.v4()?, at)?,
        Talker::connect(&allowed, allowed.v6()?, at6)?,
        Talker::connect(&gateway, "192.0.2.6".parse().unwrap(), at)?,
        Talker::connect(&gateway, gateway.v6()?, at6)?,
    ];
    let mut exempt: Vec<String> = talkers.iter().map(|talker| talker.local().to_string()).collect();
    exempt.extend(
        [
            "[2001:db8:99::7]:1",
            "tcp:127.0.0.1:1",
            "[::ffff:127.0.0.1]:1",
            "10.8.200.1:1",
            "tcp:10.8.0.1:1",
            "169.254.7.7:1",
            "[fe80::7]:1",
            "[fe80::7%eth0]:1",
            "[2001:db8:5::7%eth0]:1",
            "224.0.0.1:1",
            "[ff02::1]:1",
            "255.255.255.255:1",
            "0.0.0.0:0",
            "0.0.0.0:1",
            "[::]:1",
            "198.51.100.99:0",
            "[2001:db8:5::7]:0",
            "198.51.*.*:1",
            "[2001:db8::/32]:1",
            "[Masked IPv4]:1",
            "[Masked IPv6]:1",
            "@",
            "@@xray",
            "unix:/run/xray.sock",
            "DNS",
        ]
        .map(str::to_owned),
    );

    // Behind an exempt peer the place is free for a first source; beside that one it is no
    // offence; a second source is one, and the exempt peer is not among the incumbents.
    let places = |number: usize| {
        [
            (format!("four-{number}"), format!("198.18.1.{number}"), format!("198.19.1.{number}")),
            (
                format!("six-{number}"),
                format!("2001:db8:a:{number}::/64"),
                format!("2001:db8:b:{number}::/64"),
            ),
        ]
    };
    let peer_at = |source: &str| match source.strip_suffix("/64") {
        Some(address) => format!("[{address}]:1"),
        None => format!("{source}:1"),
    };
    let mut all = String::new();
    for (number, peer) in (1..).zip(&exempt) {
        for (user, first, second) in places(number) {
            all += &lines(&user, &[peer, &peer_at(&first), peer, &peer_at(&second), peer]);
        }
    }
    let records = sidecar.take(all)?;
    for (number, peer) in (1..).zip(&exempt) {
        for (user, first, second) in places(number) {
            let mut of_user = records.clone();
            of_user.retain(|record| record.user == user);
            let wanted = ("ban", second.as_str(), vec![first.as_str()]);
            assert_eq!(told(&of_user), [wanted], "{user} at {peer}");
        }
    }
    for talker in &talkers {
        talker.wait_for_answers()?;
    }
    Ok(())
}

#[test]
fn an_ipv6_source_that_holds_an_exempt_address_is_banned_by_the_exact_address() -> Result<()> {
    let mut lab = Lab::new()?;
    let incumbent = lab.add_client(&["2001:db8:11::2"])?;
    // In the /64 of the server's own address, and in that of an allowed one.
    let near =
        lab.add_client(&["2001:db8::5", "2001:db8::6", "2001:db8:21::5", "2001:db8:21::6"])?;
    let server = lab.server();
    let _echo = Server::echo(server, 443)?;
    let sidecar = Sidecar::start(&lab, &["--allow=2001:db8:21::7"])?;
    let at = SocketAddr::new(SERVER_V6.into(), 443);
    for (offender, neighbour) in
        [("2001:db8::5", "2001:db8::6"), ("2001:db8:21::5", "2001:db8:21::6")]
    {
        let held = Talker::connect(&incumbent, incumbent.v6()?, at)?;
        let named = Talker::connect(&near, offender.parse().unwrap(), at)?;
        let unnamed = Talker::connect(&near, offender.parse().unwrap(), at)?;
        let neighbour = Talker::connect(&near, neighbour.parse().unwrap(), at)?;
        let peers = [held.local().to_string(), named.local().to_string()];
        let record = sidecar.take_one(lines(offender, &peers.each_ref().map(String::as_str)))?;
        named.wait_for_reset()?;
        unnamed.wait_for_reset()?;
        assert_eq!((record.action.as_str(), record.killed), ("ban", 2));
        let members = witness::set_members(server, BANNED6)?;
        assert!(members.contains(&offender.to_owned()), "{members:?}");
        assert!(!members.iter().any(|member| member.contains('/')), "{members:?}");
        neighbour.wait_for_answers()?;
        held.wait_for_answers()?;
    }
    Ok(())
}

#[test]
fn who_goes_on_from_an_address_that_his_ban_leaves_out_goes_again() -> Result<()> {
    let at6 = SocketAddr::new(SERVER_V6.into(), 443);
    let over_v4 = ["198.18.3.1", "198.18.4.7", "198.18.4.8", "198.18.4.9"];
    let over_v6 =
        ["2001:db8:f000:1::1", "2001:db8:f000:7::7", "2001:db8:f000:7::8", "2001:db8:f000:7::9"];
    for (user, flag, at, [home, banned, beside, neighbour]) in [
        ("four", "--ipv4-prefix=24", AT, over_v4),
        ("six", "--allow=2001:db8:f000:7::1", at6, over_v6),
    ] {
        // Other prefixes would leave a doubt about who is whose neighbour.
        let stage = Stage::new()?;
        let host = if at.is_ipv4() { &stage.people } else { &stage.crowd };
        let sidecar = Sidecar::start_asking(&stage.lab, &[flag])?;
        let device = |source: &str| Device::new(&sidecar, host, ip(source), at, user);
        let (mut senior, mut junior) = (device(home), device(banned));
        sidecar.until_cut(&mut senior, &mut junior, BOUND)?;
        let again = online(&sidecar, host, ip(beside), at, user)?;
        again.wait_for_reset()?;
        let is_it = |it: &Record| it.reason == "still_banned" && it.peers == [again.local()];
        let record = sidecar.wait_for_record("the second ban", is_it)?;
        assert_eq!((&*record.action, &*record.outcome, &*record.evidence), ("ban", "ok", "kernel"));
        assert!(Talker::connect(host, ip(beside), at).is_err(), "{beside} is let in");
        let set = if at.is_ipv4() { BANNED } else { BANNED6 };
        let mut members = witness::set_members(stage.lab.server(), set)?;
        members.sort_unstable();
        assert_eq!(members, [banned, beside]);
        // Nobody else there is meant.
        let neighbour = online(&sidecar, host, ip(neighbour), at, "bob")?;
        neighbour.wait_for_answers()?;
        sidecar.stop()?;
    }
    Ok(())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::from([0; 4]))
}

#[test]
fn one_device_at_several_addresses_of_one_source_or_of_both_families_is_one_place() -> Result<()> {
    let lab = Lab::new()?;
    let sidecar = Sidecar::start(&lab, &[])?;
    let phone = [
        "198.51.100.11:1",
        "[2001:db8:11::2]:1",
        "[2001:db8:11::3]:2",
        "198.51.100.11:3",
        "[::ffff:198.51.100.11]:4",
        "tcp:198.51.100.11:5",
    ];
    assert_eq!(told(&sidecar.take(lines("alice", &phone))?), []);
    // It holds the place in both families.
    let held = vec!["198.51.100.11", "2001:db8:11::/64"];
    let records = sidecar.take(lines("alice", &["198.51.100.12:1", "[2001:db8:11:1::2]:1"]))?;
    assert_eq!(
        told(&records),
        [("ban", "198.51.100.12", held.clone()), ("ban", "2001:db8:11:1::/64", held)]
    );
    assert!(
        witness::set_members(lab.server(), BANNED6)?.contains(&"2001:db8:11:1::/64".to_owned())
    );
    sidecar.stop()?;

    let sidecar = Sidecar::start(&lab, &["--ipv6-prefix=128"])?;
    let records = sidecar.take(lines("bob", &["[2001:db8:12::2]:1", "[2001:db8:12::3]:1"]))?;
    assert_eq!(told(&records), [("ban", "2001:db8:12::3", vec!["2001:db8:12::2"])]);
    assert!(witness::set_members(lab.server(), BANNED6)?.contains(&"2001:db8:12::3".to_owned()));
    Ok(())
}

#[test]
fn users_are_told_apart_by_their_whole_email_but_not_by_its_case() -> Result<()> {
    let lab = Lab::new()?;
    let sidecar = Sidecar::start(&lab, &[])?;
    let one = lines("Alice@Example.com", &["198.51.100.1:1"]);
    let record = sidecar.take_one(one + &lines("alice@example.COM", &["198.51.100.2:1"]))?;
    assert_eq!(
        (record.user.as_str(), record.source.as_str()),
        ("alice@example.COM", "198.51.100.2")
    );

    let spaced = lines("Weird User [a >> b] email: 1", &["198.51.100.3:1"]);
    let other = lines("Weird User [a >> b] email: 2", &["198.51.100.4:1"]);
    assert_eq!(told(&sidecar.take(spaced + &other)?), []);
    let record = sidecar.take_one(lines("weird user [A >> B] email: 1", &["198.51.100.5:1"]))?;
    assert_eq!(record.user, "weird user [A >> B] email: 1");
    assert_eq!(record.incumbents, ["198.51.100.3"]);
    Ok(())
}

#[test]
fn with_two_places_two_sources_stay_and_the_third_goes() -> Result<()> {
    let lab = Lab::new()?;
    let sidecar = Sidecar::start(&lab, &["--limit=2"])?;
    let two = ["198.51.100.1:1", "198.51.100.2:1", "198.51.100.1:2", "198.51.100.2:2"];
    assert_eq!(told(&sidecar.take(lines("alice", &two))?), []);
    let record = sidecar.take_one(lines("alice", &["198.51.100.3:1", "198.51.100.2:3"]))?;
    assert_eq!((record.source.as_str(), record.places), ("198.51.100.3", 2));
    assert_eq!(record.incumbents, ["198.51.100.1", "198.51.100.2"]);
    Ok(())
}

#[test]
fn keep_decides_whether_the_newcomer_or_the_senior_goes() -> Result<()> {
    for (keep, senior_goes) in [("--keep=first", false), ("--keep=last", true)] {
        let mut lab = Lab::new()?;
        let one = lab.add_client(&["198.51.100.11"])?;
        let two = lab.add_client(&["198.51.100.12"])?;
        let server = lab.server();
        let _echo = Server::echo(server, 443)?;
        let sidecar = Sidecar::start(&lab, &[keep])?;
        let at = SocketAddr::new(SERVER_V4.into(), 443);
        let senior = Talker::connect(&one, one.v4()?, at)?;
        let another_of_senior = Talker::connect(&one, one.v4()?, at)?;
        let newcomer = Talker::connect(&two, two.v4()?, at)?;
        let another_of_newcomer = Talker::connect(&two, two.v4()?, at)?;
        assert_eq!(told(&sidecar.take(accepted_line(senior.local(), "alice"))?), []);
        let record = sidecar.take_one(accepted_line(newcomer.local(), "alice"))?;

        let (mut goes, mut stays) = ([newcomer, another_of_newcomer], [senior, another_of_senior]);
        if senior_goes {
            std::mem::swap(&mut goes, &mut stays);
        }
        let (gone, stayed) = (goes[0].local(), stays[0].local().ip().to_string());
        assert_eq!((record.action.as_str(), record.killed), ("ban", 2), "{keep}");
        assert_eq!(record.peers, [gone], "{keep}");
        assert_eq!(record.incumbents, *std::slice::from_ref(&stayed), "{keep}");
        let members = witness::set_members(server, BANNED)?;
        assert!(members.contains(&gone.ip().to_string()), "{keep}: {members:?}");
        assert!(!members.contains(&stayed), "{keep}: {members:?}");
        for talker in &goes {
            talker.wait_for_reset()?;
        }
        for talker in &stays {
            talker.wait_for_answers()?;
        }
        // Lines of the one who stays go on to be no offence.
        assert_eq!(told(&sidecar.take(accepted_line(stays[1].local(), "alice"))?), []);
    }
    Ok(())
}

#[test]
fn a_source_holds_its_place_for_the_window_after_its_last_line_and_no_longer() -> Result<()> {
    const WINDOW: Duration = Duration::from_secs(2);
    /// With time to spare before the edge for a machine that is busy.
    const WITHIN: Duration = Duration::from_millis(1_500);
    let lab = Lab::new()?;
    let sidecar = Sidecar::start(&lab, &["--window=2s"])?;
    assert_eq!(told(&sidecar.take(lines("alice", &["198.51.100.1:1"]))?), []);
    // His last line is read after this moment and, as it has had its effect, before the next.
    let before = Instant::now();
    assert_eq!(told(&sidecar.take(lines("alice", &["198.51.100.1:2"]))?), []);
    let after = Instant::now();

    // Only time can bring the edge of the window.
    thread::sleep(WITHIN.saturating_sub(before.elapsed()));
    let record = sidecar.take_one(lines("alice", &["198.51.100.2:1"]))?;
    assert_eq!(record.source, "198.51.100.2");
    thread::sleep(WINDOW.saturating_sub(after.elapsed()));
    assert_eq!(told(&sidecar.take(lines("alice", &["198.51.100.3:1"]))?), []);
    let records = sidecar.take(lines("alice", &["198.51.100.1:3"]))?;
    assert_eq!(told(&records), [("ban", "198.51.100.1", vec!["198.51.100.3"])]);
    Ok(())
}
