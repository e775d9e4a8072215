//! The whole of it: the real daemon beside a real proxy, with real devices on real connections.
//!
//! Every claim is checked by somebody else than Refract: the bytes that the devices get, the reset
//! packets that the second one counts, `ipset list`, `iptables -S`, `ss`.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    net::IpAddr,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use support::{
    Result,
    daemon::Daemon,
    eventually,
    lab::{Host, Lab, SERVER_V4, SERVER_V6},
    nft_table,
    proxy::{ALICE, BOB, Device, PACE, Program, Protocol, ProxyServer, REQUEST_BOUND, User},
    witness,
};

const PORT: u16 = 8443;
const WINDOW: Duration = Duration::from_secs(5);
/// As long as a ban lasts.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the second device may share: a first window without verdicts, one until it has settled,
/// and time to spare.
const CUT_BOUND: Duration = Duration::from_secs(20);

/// One run of the story: what the daemon believes, over which family.
struct Story {
    evidence: &'static str,
    server: IpAddr,
    set: &'static str,
    /// The second device as the set shows it.
    member: &'static str,
    /// The second device as any record shows it.
    name: &'static str,
}

const OVER_IPV4: Story = Story {
    evidence: "log",
    server: IpAddr::V4(SERVER_V4),
    set: "refract_banned_users",
    member: "198.51.100.12",
    name: "198.51.100.12",
};

const OVER_IPV6: Story = Story {
    evidence: "log",
    server: IpAddr::V6(SERVER_V6),
    set: "refract_banned_users6",
    member: "2001:db8:12::/64",
    name: "2001:db8:12:",
};

#[test]
fn the_second_device_is_cut_on_the_word_of_the_log() -> Result<()> {
    the_second_device_is_cut(&OVER_IPV4)
}

#[test]
fn the_second_device_is_cut_on_the_word_of_the_log_over_ipv6() -> Result<()> {
    the_second_device_is_cut(&OVER_IPV6)
}

#[test]
fn the_second_device_is_cut_on_the_evidence_of_the_kernel() -> Result<()> {
    the_second_device_is_cut(&Story { evidence: "auto", ..OVER_IPV4 })
}

#[test]
fn the_second_device_is_cut_on_the_evidence_of_the_kernel_over_ipv6() -> Result<()> {
    the_second_device_is_cut(&Story { evidence: "auto", ..OVER_IPV6 })
}

fn the_second_device_is_cut(story: &Story) -> Result<()> {
    let mut lab = Lab::new()?;
    let first = lab.add_client(&["198.51.100.11", "2001:db8:11::2"])?;
    let second = lab.add_client(&["198.51.100.12", "2001:db8:12::2"])?;
    let program = Program::find()?;
    let server = ProxyServer::start(&lab, &program, Protocol::Vless, PORT)?;
    let block_log = lab.path("block.log");
    let flags = flags(story, server.access_log(), &block_log);
    let daemon = Daemon::start(Path::new(env!("CARGO_BIN_EXE_refract")), lab.server(), &flags)?;
    tell_on_failure(&daemon, || {
        let device = |host, user| device(&lab, &program, &server, host, story, user);
        assert_rule_is_first(lab.server(), story)?;

        // The first device downloads, and asks for more now and then.
        let one = device(&first, &ALICE)?;
        let download = one.stream(REQUEST_BOUND)?;
        let bans_lifted = thread::scope(|scope| {
            let (over, is_over) = mpsc::channel::<()>();
            let asking = scope.spawn(move || one.ask_until(&is_over));

            // The second one comes, with the same account, and is cut.
            witness::watch_resets(&second, PORT)?;
            let two = device(&second, &ALICE)?;
            two.share_until_cut(CUT_BOUND)?;
            eventually("a reset packet", REQUEST_BOUND, || {
                Ok((witness::resets_seen(&second)? > 0).then_some(()))
            })?;
            witness::wait_for_member(lab.server(), story.set, story.member, true, PACE)?;
            let source = address_of(&second, story)?;
            assert_eq!(witness::established_with(lab.server(), source)?, []);
            assert!(two.fetch(1_000, Duration::from_secs(1)).is_err(), "a banned device got in");
            drop(two);
            assert_accounted_for(&block_log, story)?;

            // The ban lifts by itself. Another account is free to use that address.
            witness::wait_for_member(lab.server(), story.set, story.member, false, 2 * TIMEOUT)?;
            let bobs = device(&second, &BOB)?;
            bobs.fetch(100_000, REQUEST_BOUND)?;
            assert_eq!(witness::set_members(lab.server(), story.set)?, Vec::<String>::new());
            drop(bobs);

            // All the while the first device never lost a byte.
            download.progress().wait_for_bytes(10_000, REQUEST_BOUND)?;
            assert_eq!(download.progress().ending(), None);
            drop(over);
            asking.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
        });
        bans_lifted?;
        drop(download);

        // The first device has gone. Once it has been silent for the window, which only time can
        // bring, the second one has the place.
        thread::sleep(WINDOW + WINDOW / 5);
        let two = device(&second, &ALICE)?;
        let stream = two.stream(REQUEST_BOUND)?;
        stream.progress().wait_for_bytes(100_000, REQUEST_BOUND)?;
        two.fetch(100_000, REQUEST_BOUND)?;
        assert_eq!(stream.progress().ending(), None);
        assert_eq!(witness::set_members(lab.server(), story.set)?, Vec::<String>::new());
        assert_accounted_for(&block_log, story)
    })?;
    let status = daemon.terminate(support::daemon::FAREWELL_BOUND)?;
    assert!(status.success(), "SIGTERM ended the daemon with {status}");
    Ok(())
}

/// From home to somewhere else, and back: first everything is closed, then the link is lost while
/// bytes come.
#[test]
fn a_phone_that_moves_from_one_network_to_another_is_never_cut() -> Result<()> {
    let story = Story { evidence: "auto", ..OVER_IPV4 };
    let mut lab = Lab::new()?;
    let home = lab.add_client(&["198.51.100.11"])?;
    let away = lab.add_client(&["198.51.100.12"])?;
    let program = Program::find()?;
    let server = ProxyServer::start(&lab, &program, Protocol::Vless, PORT)?;
    let block_log = lab.path("block.log");
    let flags = flags(&story, server.access_log(), &block_log);
    let daemon = Daemon::start(Path::new(env!("CARGO_BIN_EXE_refract")), lab.server(), &flags)?;
    tell_on_failure(&daemon, || {
        let settle = |host, lasting: Duration| {
            let phone = device(&lab, &program, &server, host, &story, &ALICE)?;
            let download = phone.stream(REQUEST_BOUND)?;
            let until = Instant::now() + lasting;
            while Instant::now() < until {
                phone.fetch(1_000, REQUEST_BOUND)?;
                thread::sleep(PACE);
            }
            download.progress().wait_for_bytes(10_000, REQUEST_BOUND)?;
            Ok((phone, download))
        };
        drop(settle(&home, WINDOW + WINDOW / 5)?);
        let out = settle(&away, WINDOW + WINDOW / 5)?;
        away.output("ip", &["link", "set", "eth0", "down"])?;
        let (_back, download) = settle(&home, 3 * WINDOW)?;
        assert_eq!(download.progress().ending(), None);
        assert_eq!(out.1.progress().ending(), None, "nobody could tell it");
        assert_eq!(witness::lines_with(&block_log, "")?, [""; 0]);
        assert_eq!(witness::set_members(lab.server(), story.set)?, [""; 0]);
        Ok(())
    })
}

fn flags(story: &Story, access_log: &Path, block_log: &Path) -> Vec<String> {
    vec![
        format!("--evidence={}", story.evidence),
        format!("--access.log={}", access_log.display()),
        format!("--block.log={}", block_log.display()),
        format!("--dport={PORT}"),
        format!("--timeout={}s", TIMEOUT.as_secs()),
        format!("--window={}s", WINDOW.as_secs()),
    ]
}

fn device<'host>(
    lab: &Lab,
    program: &Program,
    server: &ProxyServer,
    host: &'host Host,
    story: &Story,
    user: &User,
) -> Result<Device<'host>> {
    let addresses = (address_of(host, story)?, story.server);
    Device::start(lab, program, server, host, addresses, user)
}

fn address_of(host: &Host, story: &Story) -> Result<IpAddr> {
    if story.server.is_ipv4() { host.v4() } else { host.v6() }
}

fn assert_rule_is_first(server: &Host, story: &Story) -> Result<()> {
    if nft_table::is_under_test() {
        // Before the usual filters, and so first whatever they hold.
        let chain = server.output("nft", &["list", "chain", "inet", "refract", "input"])?;
        for part in ["hook input priority filter - 10", "tcp dport 8443 jump banned"] {
            assert!(chain.contains(part), "no `{part}` in {chain}");
        }
        return Ok(());
    }
    let rules = witness::input_rules(server, &story.server)?;
    // After the policy line, "-P INPUT ACCEPT".
    let rule = rules.lines().nth(1).unwrap_or_default();
    for part in ["-p tcp", "--dport 8443", &format!("--match-set {} src", story.set), "-j DROP"] {
        assert!(rule.contains(part), "no `{part}` in the first rule of INPUT:\n{rules}");
    }
    Ok(())
}

/// One record says who was cut, where, and that it was a ban.
fn assert_accounted_for(block_log: &Path, story: &Story) -> Result<()> {
    witness::wait_for_line(block_log, story.name, REQUEST_BOUND)?;
    let records = witness::lines_with(block_log, story.name)?;
    let [record] = &records[..] else { panic!("one record was expected: {records:#?}") };
    for part in [ALICE.email, "ban"] {
        assert!(record.contains(part), "no `{part}` in {record}");
    }
    Ok(())
}

/// What the daemon said belongs to any failure.
fn tell_on_failure(daemon: &Daemon, story: impl FnOnce() -> Result<()>) -> Result<()> {
    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(story));
    if !matches!(told, Ok(Ok(()))) {
        eprintln!("the daemon said:\n{}", daemon.messages());
    }
    told.unwrap_or_else(|cause| std::panic::resume_unwind(cause))
}
