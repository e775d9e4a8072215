//! The lab proved by itself, before anything is proved in it: no daemon here.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use support::{
    Result,
    access_log::AccessLog,
    lab::{Lab, SERVER_V4, SERVER_V6},
    peer::{Ending, Server, Talker},
    process::Process,
    witness,
};

const BOUND: Duration = Duration::from_secs(5);

#[test]
fn two_clients_talk_from_their_own_addresses_and_one_can_be_reset_alone() -> Result<()> {
    let mut lab = Lab::new()?;
    let first = lab.add_client(&["198.51.100.11", "2001:db8:11::2"])?;
    let second = lab.add_client(&["198.51.100.12", "2001:db8:12::2"])?;
    let _echo = Server::echo(lab.server(), 443)?;
    for (server, source_one, source_two) in [
        (IpAddr::from(SERVER_V4), first.v4()?, second.v4()?),
        (IpAddr::from(SERVER_V6), first.v6()?, second.v6()?),
    ] {
        let one = Talker::connect(&first, source_one, SocketAddr::new(server, 443))?;
        let two = Talker::connect(&second, source_two, SocketAddr::new(server, 443))?;
        assert_eq!((one.local().ip(), two.local().ip()), (source_one, source_two));
        one.progress().wait_for_bytes(1_000, BOUND)?;
        two.progress().wait_for_bytes(1_000, BOUND)?;
        assert_eq!(witness::established_with(lab.server(), source_two)?, [two.local()]);

        let resets = witness::established_resets(&second)?;
        let peer = SocketAddr::new(source_two, two.local().port()).to_string();
        lab.server().output("ss", &["-K", "-tn", "dst", &peer])?;
        assert!(matches!(two.progress().wait_for_end(BOUND)?, Ending::Reset(_)));
        assert_eq!(witness::established_resets(&second)?, resets + 1);
        assert_eq!(witness::established_with(lab.server(), source_two)?, []);

        one.progress().wait_for_bytes(1_000, BOUND)?;
        assert_eq!(one.progress().ending(), None);
        // A quiet connection stays open; what was on its way when it fell silent still comes back.
        one.be_quiet();
        assert!(one.progress().wait_for_bytes(1_000, Duration::from_millis(300)).is_err());
        assert_eq!(one.progress().ending(), None);
        one.talk_on();
        one.progress().wait_for_bytes(1_000, BOUND)?;
    }
    Ok(())
}

#[test]
fn a_set_member_and_a_rule_are_seen_and_a_banned_client_does_not_get_in() -> Result<()> {
    let mut lab = Lab::new()?;
    let client = lab.add_client(&["198.51.100.11", "198.51.100.12"])?;
    let _echo = Server::echo(lab.server(), 443)?;
    let server = lab.server();
    server.output("ipset", &["create", "banned", "hash:ip", "timeout", "3"])?;
    server.output(
        "iptables",
        &["-I", "INPUT", "-m", "set", "--match-set", "banned", "src", "-j", "DROP"],
    )?;
    assert!(witness::input_rules(server, &client.v4()?)?.contains("--match-set banned src"));
    let target = SocketAddr::new(SERVER_V4.into(), 443);
    Talker::connect(&client, client.v4()?, target)?.progress().wait_for_bytes(1, BOUND)?;

    server.output("ipset", &["add", "banned", "198.51.100.11"])?;
    witness::wait_for_member(server, "banned", "198.51.100.11", true, BOUND)?;
    assert!(Talker::connect(&client, "198.51.100.11".parse().unwrap(), target).is_err());
    Talker::connect(&client, "198.51.100.12".parse().unwrap(), target)?
        .progress()
        .wait_for_bytes(1, BOUND)?;
    witness::wait_for_member(server, "banned", "198.51.100.11", false, BOUND)?;
    Talker::connect(&client, client.v4()?, target)?.progress().wait_for_bytes(1, BOUND)
}

#[test]
fn any_address_of_an_owned_prefix_can_be_spoken_from() -> Result<()> {
    let mut lab = Lab::new()?;
    let client = lab.add_client(&["198.51.100.11"])?;
    lab.own_prefix(&client, "198.18.0.0/15")?;
    let _echo = Server::echo(lab.server(), 443)?;
    for source in ["198.18.0.1", "198.19.200.7"] {
        let source = source.parse().unwrap();
        let talker = Talker::connect(&client, source, SocketAddr::new(SERVER_V4.into(), 443))?;
        talker.progress().wait_for_bytes(1, BOUND)?;
        assert_eq!(talker.local().ip(), source);
    }
    Ok(())
}

#[test]
fn a_process_is_heard_signalled_and_does_not_outlive_its_host() -> Result<()> {
    let lab = Lab::new()?;
    let mut script = Command::new("sh");
    script.args(["-c", "trap 'exit 7' TERM; echo listening >&2; while :; do sleep 0.05; done"]);
    let polite = Process::start(lab.server(), &script)?;
    polite.wait_for_line("listening", BOUND, |line| line == "listening")?;
    polite.signal(Signal::TERM)?;
    assert_eq!(polite.wait(BOUND)?.code(), Some(7));

    let mut sleeper = Command::new("sh");
    sleeper.args(["-c", "echo asleep; exec sleep 600"]);
    let orphan = Process::start(lab.server(), &sleeper)?;
    orphan.wait_for_line("asleep", BOUND, |line| line == "asleep")?;
    drop(lab);
    let status = orphan.wait(BOUND)?;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));

    let lab = Lab::new()?;
    let mut failing = Command::new("sh");
    failing.args(["-c", "echo no such flag >&2; exit 2"]);
    let process = Process::start(lab.server(), &failing)?;
    let error = process.wait_for_line("ready", BOUND, |line| line == "ready").unwrap_err();
    assert!(error.to_string().contains("it ended; it printed:\nno such flag"), "{error}");
    Ok(())
}

#[test]
fn a_log_line_reads_as_xray_writes_it() -> Result<()> {
    let lab = Lab::new()?;
    let log = AccessLog::open(lab.path("access.log"))?;
    log.accepted("198.51.100.11:33201".parse().unwrap(), "alice@example.com")?;
    log.accepted("[2001:db8:11::2]:33201".parse().unwrap(), "bob@example.com")?;
    let lines = witness::lines_with(log.path(), " from ")?;
    let (stamp, rest) = lines[0].split_at("2026/11/23 09:44:06.123456".len());
    assert!(stamp.chars().enumerate().all(|(at, character)| match at {
        4 | 7 => character == '/',
        10 => character == ' ',
        13 | 16 => character == ':',
        19 => character == '.',
        _ => character.is_ascii_digit(),
    }));
    assert_eq!(
        rest,
        " from 198.51.100.11:33201 accepted tcp:www.example.com:443 \
         [vless-tcp >> direct] email: alice@example.com"
    );
    assert!(lines[1].contains(" from [2001:db8:11::2]:33201 accepted "));
    Ok(())
}
