//! What is done to an offender, on the word of the log: which connections are reset and which are
//! not, what is banned and for how long.
//!
//! The daemon is the real one; the lines are as Xray writes them, about real connections; the
//! witnesses are the connections themselves, `ipset list`, `ss` and the rule's counters.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use support::{
    Result,
    access_log::accepted_line,
    eventually,
    lab::{Host, Lab, SERVER_V4, SERVER_V6},
    nft_table,
    peer::{Server, Talker, connect_from},
    sidecar::{Record, Sidecar},
    witness,
};

/// How long anything may take that happens at once.
const BOUND: Duration = Duration::from_secs(5);
const BANNED: &str = "refract_banned_users";
const BANNED6: &str = "refract_banned_users6";

#[test]
fn every_connection_of_the_newcomer_on_a_protected_port_is_reset_and_no_other() -> Result<()> {
    let mut lab = Lab::new()?;
    let incumbent = lab.add_client(&["198.51.100.11", "2001:db8:11::2"])?;
    let newcomer =
        lab.add_client(&["198.51.100.12", "198.51.100.13", "2001:db8:12::2", "2001:db8:12::3"])?;
    let stranger = lab.add_client(&["198.51.100.14", "2001:db8:14::2"])?;
    let server = lab.server();
    let (_https, _range) = (Server::echo(server, 443)?, Server::echo(server, 2005)?);
    let _only_v4 = Server::echo_at(server, "0.0.0.0:8443".parse().unwrap())?;
    let _unprotected = Server::echo(server, 2011)?;
    let sidecar = Sidecar::start(&lab, &["--dport=443,8443,2000-2010"])?;

    // Where the server is, what the line names, what else there is, and how the set shows it.
    for (at, named, others, set, member) in [
        (
            // IPv4 clients of a dual-stack listener: to the kernel their addresses are v4-mapped.
            IpAddr::from(SERVER_V4),
            ("198.51.100.12", 443),
            vec![("198.51.100.12", 443), ("198.51.100.12", 2005), ("198.51.100.12", 8443)],
            BANNED,
            "198.51.100.12",
        ),
        (
            SERVER_V4.into(),
            ("198.51.100.13", 8443),
            vec![("198.51.100.13", 8443), ("198.51.100.13", 443)],
            BANNED,
            "198.51.100.13",
        ),
        (
            // One device has the whole /64.
            SERVER_V6.into(),
            ("2001:db8:12::2", 443),
            vec![("2001:db8:12::2", 2005), ("2001:db8:12::3", 443)],
            BANNED6,
            "2001:db8:12::/64",
        ),
    ] {
        let talk = |host, source: &str, port| {
            Talker::connect(host, source.parse().unwrap(), SocketAddr::new(at, port))
        };
        let own = |host: &Host| if at.is_ipv4() { host.v4() } else { host.v6() };
        let user = format!("user-of-{member}");
        let held = Talker::connect(&incumbent, own(&incumbent)?, SocketAddr::new(at, 443))?;
        let named = talk(&newcomer, named.0, named.1)?;
        let others = others
            .iter()
            .map(|(source, port)| talk(&newcomer, source, *port))
            .collect::<Result<Vec<_>>>()?;
        let untouched = [
            held,
            Talker::connect(&stranger, own(&stranger)?, SocketAddr::new(at, 443))?,
            Talker::connect(&stranger, own(&stranger)?, SocketAddr::new(at, 2005))?,
            Talker::connect(&newcomer, named.local().ip(), SocketAddr::new(at, 2011))?,
        ];
        for talker in untouched.iter().chain([&named]).chain(&others) {
            talker.progress().wait_for_bytes(100, BOUND)?;
        }

        let lines =
            accepted_line(untouched[0].local(), &user) + &accepted_line(named.local(), &user);
        let record = sidecar.take_one(lines)?;
        named.wait_for_reset()?;
        for other in &others {
            other.wait_for_reset()?;
        }
        assert_eq!(record.action, "ban");
        assert_eq!(record.peers, [named.local()]);
        assert_eq!(record.killed as usize, 1 + others.len(), "{record:?}");
        assert!(witness::set_members(server, set)?.contains(&member.to_owned()));
        assert_eq!(
            witness::established_with(server, named.local().ip())?,
            [untouched[3].local()],
            "only the connection to the other port is left"
        );
        for talker in &untouched {
            talker.wait_for_answers()?;
        }

        // The listeners live, and the ban holds on every protected port and on no other.
        for port in [443, 2005] {
            Talker::connect(&incumbent, own(&incumbent)?, SocketAddr::new(at, port))?
                .wait_for_answers()?;
            assert_shut_out(&lab, &newcomer, set, named.local().ip(), SocketAddr::new(at, port))?;
        }
        Talker::connect(&newcomer, named.local().ip(), SocketAddr::new(at, 2011))?
            .wait_for_answers()?;
    }
    let only_v4 = SocketAddr::new(SERVER_V4.into(), 8443);
    Talker::connect(&incumbent, incumbent.v4()?, only_v4)?.wait_for_answers()?;
    assert_shut_out(&lab, &newcomer, BANNED, newcomer.v4()?, only_v4)
}

#[test]
fn a_connection_that_is_already_gone_costs_a_ban_and_nobody_a_connection() -> Result<()> {
    let mut lab = Lab::new()?;
    let incumbent = lab.add_client(&["198.51.100.11"])?;
    let newcomer = lab.add_client(&["198.51.100.12"])?;
    let server = lab.server();
    let _echo = Server::echo(server, 443)?;
    let sidecar = Sidecar::start(&lab, &[])?;
    let at = SocketAddr::new(SERVER_V4.into(), 443);
    let held = Talker::connect(&incumbent, incumbent.v4()?, at)?;
    let gone = Talker::connect(&newcomer, newcomer.v4()?, at)?;
    gone.progress().wait_for_bytes(1, BOUND)?;
    let peer = gone.local();
    drop(gone);
    let wanted = peer.ip().to_string();
    eventually("the server to forget the connection", BOUND, || {
        let left = server.output("ss", &["-Htna", "dst", &wanted])?;
        Ok(left.is_empty().then_some(()))
    })?;

    let record = sidecar.take_one(accepted_line(held.local(), "a") + &accepted_line(peer, "a"))?;
    assert_eq!((record.action.as_str(), record.outcome.as_str()), ("ban", "ok"));
    assert_eq!((record.killed, record.error), (0, None));
    witness::wait_for_member(server, BANNED, "198.51.100.12", true, BOUND)?;
    held.wait_for_answers()?;
    Talker::connect(&incumbent, incumbent.v4()?, at)?.wait_for_answers()
}

#[test]
fn five_hundred_offenders_in_one_write_are_banned_within_a_tenth_of_a_second() -> Result<()> {
    const OFFENDERS: usize = 500;
    let mut lab = Lab::new()?;
    let incumbents = lab.add_client(&["198.51.100.11"])?;
    lab.own_prefix(&incumbents, "198.18.0.0/16")?;
    let newcomers = lab.add_client(&["198.51.100.12"])?;
    lab.own_prefix(&newcomers, "198.19.0.0/16")?;
    let server = lab.server();
    let _echo = Server::echo(server, 443)?;
    let sidecar = Sidecar::start(&lab, &[])?;

    let mut lines = String::new();
    let mut offenders = Vec::new();
    // Real devices for some of them, so that there is something to reset; addresses for the rest.
    let mut devices = Vec::new();
    for number in 0..OFFENDERS {
        let (high, low) = (number / 250, number % 250 + 1);
        let stays: IpAddr = format!("198.18.{high}.{low}").parse().unwrap();
        let goes: IpAddr = format!("198.19.{high}.{low}").parse().unwrap();
        let mut peers = [SocketAddr::new(stays, 40_000), SocketAddr::new(goes, 40_000)];
        if number.is_multiple_of(50) {
            let at = SocketAddr::new(SERVER_V4.into(), 443);
            let pair =
                [Talker::connect(&incumbents, stays, at)?, Talker::connect(&newcomers, goes, at)?];
            peers = [pair[0].local(), pair[1].local()];
            devices.push(pair);
        }
        for peer in peers {
            lines += &accepted_line(peer, &format!("user-{number}"));
        }
        offenders.push(goes.to_string());
    }
    offenders.sort_unstable();

    // The daemon reads this much at once, and bans all offenders of a read before it resets any.
    assert!(lines.len() < 128 * 1024);
    let written = Instant::now();
    sidecar.log().write(lines.as_bytes())?;
    let banned_after = eventually("all offenders to be in the set", BOUND, || {
        Ok(holds_as_many(server, OFFENDERS)?.then(|| written.elapsed()))
    })?;
    assert!(banned_after < Duration::from_millis(100), "it took {banned_after:?}");
    let mut members = witness::set_members(server, BANNED)?;
    members.sort_unstable();
    assert_eq!(members, offenders);

    let mut recorded: Vec<String> = sidecar
        .wait_for_records(OFFENDERS)?
        .into_iter()
        .inspect(|record| assert_eq!(record.outcome, "ok", "{record:?}"))
        .map(|record| record.source)
        .collect();
    recorded.sort_unstable();
    assert_eq!(recorded, offenders, "one record for each");
    for [stays, goes] in &devices {
        goes.wait_for_reset()?;
        stays.wait_for_answers()?;
    }
    // What was written before this has had all of its effect, and it was no more than that.
    assert!(sidecar.take("")?.is_empty());
    Ok(())
}

#[test]
fn at_a_shared_address_only_the_offenders_own_connection_is_reset() -> Result<()> {
    let mut lab = Lab::new()?;
    let home = lab.add_client(&["198.51.100.11"])?;
    let office = lab.add_client(&["198.51.100.12"])?;
    let server = lab.server();
    let _echo = Server::echo(server, 443)?;
    let sidecar = Sidecar::start(&lab, &[])?;
    let at = SocketAddr::new(SERVER_V4.into(), 443);
    let held = Talker::connect(&home, home.v4()?, at)?;
    let neighbour = Talker::connect(&office, office.v4()?, at)?;
    let unnamed = Talker::connect(&office, office.v4()?, at)?;
    let named = Talker::connect(&office, office.v4()?, at)?;
    assert!(sidecar.take(accepted_line(neighbour.local(), "bob"))?.is_empty());

    let lines = accepted_line(held.local(), "alice") + &accepted_line(named.local(), "alice");
    let record = sidecar.take_one(lines)?;
    named.wait_for_reset()?;
    assert_eq!((record.action.as_str(), record.reason.as_str()), ("kill", "shared_source"));
    assert_eq!((record.user.as_str(), record.killed), ("alice", 1));
    assert_eq!(record.outcome, "ok");
    for talker in [&held, &neighbour, &unnamed] {
        talker.wait_for_answers()?;
    }
    Talker::connect(&office, office.v4()?, at)?.wait_for_answers()?;
    let members = witness::set_members(server, BANNED)?;
    assert!(!members.contains(&"198.51.100.12".to_owned()), "{members:?}");
    Ok(())
}

#[test]
fn beyond_max_bans_an_offender_is_disconnected_but_not_banned() -> Result<()> {
    let mut lab = Lab::new()?;
    let incumbent = lab.add_client(&["198.51.100.11"])?;
    let one = lab.add_client(&["198.51.100.12"])?;
    let two = lab.add_client(&["198.51.100.13"])?;
    let server = lab.server();
    let _echo = Server::echo(server, 443)?;
    let sidecar = Sidecar::start(&lab, &["--max-bans=1"])?;
    let at = SocketAddr::new(SERVER_V4.into(), 443);
    let held = Talker::connect(&incumbent, incumbent.v4()?, at)?;
    let first = Talker::connect(&one, one.v4()?, at)?;
    let second = Talker::connect(&two, two.v4()?, at)?;
    for (user, offender) in [("alice", &first), ("bob", &second)] {
        let lines = accepted_line(held.local(), user) + &accepted_line(offender.local(), user);
        sidecar.log().write(lines.as_bytes())?;
        offender.wait_for_reset()?;
    }
    let mut records = sidecar.wait_for_records(2)?;
    records.sort_by(|left, right| left.user.cmp(&right.user));
    let said: Vec<_> = records
        .iter()
        .map(|record| {
            let Record { user, action, reason, killed, outcome, .. } = record;
            (user.as_str(), action.as_str(), reason.as_str(), *killed, outcome.as_str())
        })
        .collect();
    assert_eq!(
        said,
        [("alice", "ban", "places_held", 1, "ok"), ("bob", "kill", "max_bans_reached", 1, "ok")]
    );
    assert_eq!(witness::set_members(server, BANNED)?, ["198.51.100.12"]);
    // Not banned, so he gets in again; and is disconnected again when the log names him.
    let again = Talker::connect(&two, two.v4()?, at)?;
    again.wait_for_answers()?;
    sidecar.log().accepted(again.local(), "bob")?;
    again.wait_for_reset()?;
    held.wait_for_answers()
}

#[test]
fn with_max_bans_0_there_is_no_bound() -> Result<()> {
    /// More than the default bound.
    const OFFENDERS: usize = 700;
    let lab = Lab::new()?;
    let sidecar = Sidecar::start(&lab, &["--max-bans=0"])?;
    let mut lines = String::new();
    for number in 0..OFFENDERS {
        for network in [18, 19] {
            let peer = format!("198.{network}.{}.{}:1", number / 250, number % 250 + 1);
            lines += &accepted_line(peer, &format!("user-{number}"));
        }
    }
    let records = sidecar.take(lines)?;
    assert_eq!(records.len(), OFFENDERS);
    assert!(records.iter().all(|record| record.action == "ban" && record.reason == "places_held"));
    let members = witness::set_members(lab.server(), BANNED)?;
    assert_eq!(members.iter().filter(|member| member.starts_with("198.19.")).count(), OFFENDERS);
    Ok(())
}

#[test]
fn a_ban_lifts_by_itself_after_whole_seconds_and_another_offence_is_another_ban() -> Result<()> {
    let mut lab = Lab::new()?;
    let incumbent = lab.add_client(&["198.51.100.11"])?;
    let newcomer = lab.add_client(&["198.51.100.12"])?;
    let server = lab.server();
    let _echo = Server::echo(server, 443)?;
    let sidecar = Sidecar::start(&lab, &["--timeout=500ms"])?;
    let at = SocketAddr::new(SERVER_V4.into(), 443);
    let held = Talker::connect(&incumbent, incumbent.v4()?, at)?;
    for _ in 0..2 {
        let offender = Talker::connect(&newcomer, newcomer.v4()?, at)?;
        offender.wait_for_answers()?;
        let banned = Instant::now();
        sidecar.log().write(
            (accepted_line(held.local(), "a") + &accepted_line(offender.local(), "a")).as_bytes(),
        )?;
        offender.wait_for_reset()?;
        assert_eq!(witness::set_members(server, BANNED)?, ["198.51.100.12"]);
        witness::wait_for_member(server, BANNED, "198.51.100.12", false, BOUND)?;
        let lasted = banned.elapsed();
        assert!(
            lasted > Duration::from_millis(900) && lasted < Duration::from_secs(2),
            "500ms are rounded up to a second, but the ban lasted {lasted:?}"
        );
    }
    let records = sidecar.wait_for_records(2)?;
    for record in &records {
        assert_eq!((record.action.as_str(), record.timeout_s, record.killed), ("ban", 1, 1));
    }
    Talker::connect(&newcomer, newcomer.v4()?, at)?.wait_for_answers()?;
    held.wait_for_answers()
}

#[test]
fn a_changed_timeout_leaves_bans_in_force_as_they_are_and_holds_for_the_next() -> Result<()> {
    let lab = Lab::new()?;
    let server = lab.server();
    let offence = |user: &str, newcomer: &str| {
        accepted_line("198.51.100.1:1", user) + &accepted_line(format!("{newcomer}:1"), user)
    };
    let left = |member: &str| witness::seconds_left(server, BANNED, member);
    let sidecar = Sidecar::start(&lab, &["--timeout=10m"])?;
    sidecar.take_one(offence("alice", "198.51.100.12"))?;
    assert!((590..=600).contains(&left("198.51.100.12")?.unwrap()));
    sidecar.stop()?;
    assert!(left("198.51.100.12")?.is_some(), "a ban outlives the daemon");

    let sidecar = Sidecar::start(&lab, &["--timeout=1m"])?;
    assert!((570..=600).contains(&left("198.51.100.12")?.unwrap()));
    let record = sidecar.take_one(offence("bob", "198.51.100.13"))?;
    assert_eq!(record.timeout_s, 60);
    assert!((50..=60).contains(&left("198.51.100.13")?.unwrap()));
    assert!((570..=600).contains(&left("198.51.100.12")?.unwrap()));
    Ok(())
}

#[test]
fn a_dry_run_without_any_right_records_everything_and_touches_nothing() -> Result<()> {
    let mut lab = Lab::new()?;
    let incumbent = lab.add_client(&["198.51.100.11", "2001:db8:11::2"])?;
    let newcomer = lab.add_client(&["198.51.100.12", "2001:db8:12::2"])?;
    let server = lab.server();
    let _echo = Server::echo(server, 443)?;
    let rightless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"];
    let refused = Sidecar::start_under(&rightless, &lab, &[]).err().unwrap().to_string();
    assert!(refused.contains("CAP_NET_ADMIN"), "{refused}");
    let sidecar = Sidecar::start_under(&rightless, &lab, &["--dry-run", "--proto=tcp,udp"])?;
    let mut talkers = Vec::new();
    for (at, stays, goes) in [
        (IpAddr::from(SERVER_V4), incumbent.v4()?, newcomer.v4()?),
        (IpAddr::from(SERVER_V6), incumbent.v6()?, newcomer.v6()?),
    ] {
        let at = SocketAddr::new(at, 443);
        let held = Talker::connect(&incumbent, stays, at)?;
        let named = Talker::connect(&newcomer, goes, at)?;
        let user = format!("user-of-{stays}");
        let lines = accepted_line(held.local(), &user) + &accepted_line(named.local(), &user);
        let record = sidecar.take_one(lines)?;
        assert_eq!((record.action.as_str(), record.outcome.as_str()), ("ban", "dry-run"));
        assert_eq!((record.user, record.peers), (user, vec![named.local()]));
        assert_eq!((record.killed, record.flows), (0, 0));
        talkers.extend([held, named]);
    }
    for talker in &talkers {
        talker.wait_for_answers()?;
    }
    assert_eq!(witness::sets(server)?, Vec::<String>::new());
    for family in [IpAddr::from(SERVER_V4), IpAddr::from(SERVER_V6)] {
        assert_eq!(witness::input_rules(server, &family)?.trim(), "-P INPUT ACCEPT");
    }
    let message = sidecar.wait_for_message("dry run")?;
    assert!(message.contains("user-of-198.51.100.11"), "{message}");
    sidecar.stop()
}

/// Whether the set of IPv4 addresses has `count` members, told as fast as can be.
fn holds_as_many(server: &Host, count: usize) -> Result<bool> {
    if nft_table::is_under_test() {
        let listing = server.output("nft", &["list", "set", "inet", "refract", "banned_users"])?;
        return Ok(listing.matches(" expires ").count() == count);
    }
    let header = server.output("ipset", &["list", "-terse", BANNED])?;
    Ok(header.lines().any(|line| line == format!("Number of entries: {count}")))
}

/// A connection from `source` is not answered, and it is our rule that eats its SYN.
fn assert_shut_out(
    lab: &Lab,
    host: &Host,
    set: &str,
    source: IpAddr,
    at: SocketAddr,
) -> Result<()> {
    let dropped = witness::packets_dropped(lab.server(), set)?;
    let answer = host.run(|| {
        let patience = Duration::from_millis(200);
        Ok(connect_from(SocketAddr::new(source, 0), at, patience).map_err(|error| error.kind()))
    })?;
    assert_eq!(answer.err(), Some(std::io::ErrorKind::TimedOut), "from {source} to {at}");
    assert!(witness::packets_dropped(lab.server(), set)? > dropped, "from {source} to {at}");
    Ok(())
}
