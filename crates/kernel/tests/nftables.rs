//! The nftables backend against the live kernel, each test in network namespaces of its own, with
//! `nft` and real packets as second eye.
#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

#[path = "support/link.rs"]
mod link;
#[path = "support/mptcp.rs"]
mod mptcp;
mod support;
#[path = "support/targets.rs"]
mod targets;
#[path = "support/udp.rs"]
mod udp;

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use link::{join, join_by};
use mptcp::{is_mptcp, mptcp_listener};
use refract_kernel::{
    Errno, Error,
    ban::{BanTarget, LONGEST_TIMEOUT, Unbannable},
    ban_set::{Carried, SetState},
    nftables::{Hook, NftPlan, NftTable, State, Strip},
    xtables::Protocol,
};
use support::{Namespace, shell};
use targets::{flow, host, network};
use udp::{arrives, server};

const MINUTE: Duration = Duration::from_mins(1);
/// How long a handshake is waited for that is not to come; one that is comes in microseconds.
const NO_HANDSHAKE: Duration = Duration::from_millis(500);

fn plan() -> NftPlan {
    NftPlan {
        protocols: vec![Protocol::Tcp, Protocol::Udp],
        ports: vec![443..=443, 2000..=2010, 65000..=65535],
        hook: Hook::Input,
        strip_mptcp: true,
        ipv6_prefix: 64,
        flows: true,
        default_timeout: MINUTE,
    }
}

fn open() -> NftTable {
    NftTable::open(plan()).unwrap()
}

fn installed() -> NftTable {
    let mut table = open();
    table.install().unwrap();
    table
}

/// A target for each kind of set.
fn one_of_each() -> [BanTarget; 7] {
    [
        host("203.0.113.9"),
        network("198.51.100.0", 24),
        host("2001:db8::7"),
        network("2001:db8:1:200::", 56),
        network("2001:db8:1:2::", 64),
        flow("203.0.113.10", 4433),
        flow("2001:db8::10", 4433),
    ]
}

#[track_caller]
fn ban(table: &mut NftTable, target: BanTarget, timeout: Duration) {
    table.ban(&[(target, timeout)]).pop().unwrap().unwrap();
}

fn listed() -> String {
    shell("nft list table inet refract")
}

/// How many seconds `nft` says an element has left.
#[track_caller]
fn seconds_left(table: &mut NftTable, target: BanTarget) -> u64 {
    let bans = table.list().unwrap();
    bans.iter().find(|ban| ban.target == target).unwrap().remaining.unwrap().as_secs()
}

/// What `nft` lists of the elements of a set, without their times.
#[track_caller]
fn elements(set: &str) -> BTreeSet<String> {
    let text = shell(&format!("nft list set inet refract {set}"));
    let Some((_, rest)) = text.split_once("elements = {") else { return BTreeSet::new() };
    let (inside, _) = rest.split_once('}').unwrap();
    let element = |it: &str| it.trim().split(" timeout ").next().unwrap().to_owned();
    inside.split(',').map(|it| element(it.split(" expires ").next().unwrap())).collect()
}

#[test]
fn the_table_reads_as_it_is_meant() {
    Namespace::new().inside(|| {
        let mut table = installed();
        for target in one_of_each() {
            ban(&mut table, target, 10 * MINUTE);
        }
        let shown = listed();
        let set = |name: &str, keys: &str| {
            format!("\tset {name} {{\n\t\ttype {keys}\n\t\tsize 1048576\n\t\ttimeout 1m\n")
        };
        for expected in [
            set("banned_users", "ipv4_addr"),
            set("banned_users6", "ipv6_addr"),
            set("banned_networks_24", "ipv4_addr"),
            set("banned_networks6_56", "ipv6_addr"),
            set("banned_networks6_64", "ipv6_addr"),
            set("banned_flows", "ipv4_addr . inet_service"),
            set("banned_flows6", "ipv6_addr . inet_service"),
        ] {
            assert!(shown.contains(&expected), "{expected}in {shown}");
        }
        let drop = "counter packets 0 bytes 0 drop comment \"refract\"";
        let chains = format!(
            "\tchain banned {{
\t\tip saddr @banned_users {drop}
\t\tip saddr & 255.255.255.0 == @banned_networks_24 {drop}
\t\tip6 saddr @banned_users6 {drop}
\t\tip6 saddr & ffff:ffff:ffff:ff00:: == @banned_networks6_56 {drop}
\t\tip6 saddr & ffff:ffff:ffff:ffff:: == @banned_networks6_64 {drop}
\t\tip saddr . udp sport @banned_flows {drop}
\t\tip6 saddr . udp sport @banned_flows6 {drop}
\t\ttcp flags syn reset tcp option mptcp comment \"refract\"
\t}}
|\tchain input {{
\t\ttype filter hook input priority filter - 10; policy accept;
\t\ttcp dport 443 jump banned comment \"refract\"
\t\ttcp dport 2000-2010 jump banned comment \"refract\"
\t\ttcp dport 65000-65535 jump banned comment \"refract\"
\t\tudp dport 443 jump banned comment \"refract\"
\t\tudp dport 2000-2010 jump banned comment \"refract\"
\t\tudp dport 65000-65535 jump banned comment \"refract\"
\t}}
"
        );
        for expected in chains.split('|') {
            assert!(shown.contains(expected), "{expected}in {shown}");
        }
        assert_eq!(elements("banned_networks6_64"), BTreeSet::from(["2001:db8:1:2::".to_owned()]));
        assert_eq!(elements("banned_flows"), BTreeSet::from(["203.0.113.10 . 4433".to_owned()]));
        // What `nft` prints, it also takes.
        shell("nft list table inet refract > /dev/null && nft -c list ruleset");
    });
}

#[test]
fn installing_twice_leaves_one_table_and_keeps_the_bans() {
    Namespace::new().inside(|| {
        let mut table = open();
        assert_eq!(table.missing().unwrap().len(), 5);
        let report = table.install().unwrap();
        assert!(report.made_table);
        assert_eq!((report.found.state, report.strip), (State::Missing, Strip::InPlace));
        assert_eq!(report.sets.len(), 5);
        assert!(report.sets.iter().all(|set| set.state == SetState::Created));
        assert_eq!(table.missing().unwrap(), Vec::<String>::new());
        for target in one_of_each() {
            ban(&mut table, target, MINUTE);
        }
        let shape = || listed().lines().filter(|it| !it.contains("elements")).collect::<String>();
        let before = shape();
        for _ in 0..3 {
            let report = installed().install().unwrap();
            assert!(!report.made_table && !report.found.wants_repair(), "{report:?}");
            assert!(report.sets.iter().all(|set| set.state == SetState::Kept), "{report:?}");
            assert_eq!(report.sets.len(), 7);
        }
        assert_eq!(shape(), before);
        let bans: BTreeSet<_> = table.list().unwrap().iter().map(|ban| ban.target).collect();
        assert_eq!(bans, BTreeSet::from(one_of_each()));
    });
}

#[test]
fn bans_are_asked_for_listed_and_lifted() {
    Namespace::new().inside(|| {
        let mut table = installed();
        for target in one_of_each() {
            ban(&mut table, target, MINUTE);
        }
        assert_eq!(table.banned(&one_of_each()).unwrap(), [true; 7]);
        let asked = [
            (host("198.51.100.77"), true),
            (host("2001:db8:1:2::77"), true),
            (host("2001:db8:1:299::77"), true),
            (host("203.0.113.10"), false),
            (network("203.0.113.0", 24), false),
            (network("2001:db8:1:3::", 64), false),
            (flow("203.0.113.10", 4434), false),
            (host("0.0.0.0"), false),
        ];
        let there = table.banned(&asked.map(|(target, _)| target)).unwrap();
        assert_eq!(there, asked.map(|(_, expected)| expected));

        // As another process would that has no plan.
        let mut other = NftTable::open_as_found().unwrap();
        assert_eq!(other.lift(&[one_of_each()[0], host("192.0.2.1")]).unwrap(), [true, false]);
        assert_eq!(other.banned(&one_of_each()[..2]).unwrap(), [false, true]);
        // The address lifts the network that covers it, and the flow from it.
        assert!(other.unban(host("2001:db8:1:2::77")).unwrap());
        assert!(other.unban(host("203.0.113.10")).unwrap());
        assert!(!other.unban(host("203.0.113.10")).unwrap());
        assert!(other.unban(network("198.51.0.0", 16)).unwrap());
        let left: BTreeSet<_> = other.list().unwrap().iter().map(|ban| ban.target).collect();
        assert_eq!(left, [2, 3, 6].map(|place| one_of_each()[place]).into());
        assert!(matches!(other.install().unwrap_err(), Error::Plan { .. }));
    });
}

#[test]
fn a_ban_of_the_banned_takes_the_new_time_and_never_lets_go() {
    Namespace::new().inside(|| {
        let mut table = installed();
        let target = host("127.0.0.2");
        ban(&mut table, target, MINUTE);
        assert!(seconds_left(&mut table, target) <= 60);
        ban(&mut table, target, 10 * MINUTE);
        assert!(seconds_left(&mut table, target) > 590);
        ban(&mut table, target, MINUTE);
        assert!(seconds_left(&mut table, target) <= 60);
        // Twice at once, one of them new: the last word holds.
        let twice = [(target, MINUTE), (host("127.0.0.3"), MINUTE), (target, 5 * MINUTE)];
        assert!(table.ban(&twice).iter().all(Result::is_ok));
        assert!(seconds_left(&mut table, target) > 290);
        let new = host("127.0.0.4");
        assert!(table.ban(&[(new, MINUTE), (new, 5 * MINUTE)]).iter().all(Result::is_ok));
        assert!(seconds_left(&mut table, new) > 290);
        assert_eq!(elements("banned_users").len(), 3);

        let server = server("127.0.0.1");
        for round in 0..1_000 {
            ban(&mut table, target, MINUTE + Duration::from_secs(round));
            assert!(!arrives(("127.0.0.2", 0), &server), "after {round} bans");
        }
        assert_eq!(elements("banned_users").len(), 3);
    });
}

#[test]
fn timeouts_are_rounded_up_clamped_and_run_out() {
    Namespace::new().inside(|| {
        let mut table = installed();
        let server = server("127.0.0.1");
        let start = Instant::now();
        let outcomes = table.ban(&[
            (host("127.0.0.2"), Duration::from_millis(1_500)),
            (host("::ffff:203.0.113.10"), Duration::MAX),
        ]);
        let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
        assert_eq!((outcomes[0].timeout, outcomes[0].clamped), (Duration::from_secs(2), false));
        assert_eq!((outcomes[1].timeout, outcomes[1].clamped), (LONGEST_TIMEOUT, true));
        assert_eq!(outcomes[1].target, host("203.0.113.10"));
        assert!(seconds_left(&mut table, host("203.0.113.10")) > 2_147_400);
        // Nothing tells of the end of a ban, so a packet asks until it comes.
        while !arrives(("127.0.0.2", 0), &server) {
            assert!(start.elapsed() < MINUTE, "the ban does not end");
            std::thread::yield_now();
        }
        assert!(start.elapsed() >= Duration::from_millis(1_900), "{:?}", start.elapsed());
        assert_eq!(table.banned(&[host("127.0.0.2")]).unwrap(), [false]);
        ban(&mut table, host("127.0.0.2"), MINUTE);
        assert!(!arrives(("127.0.0.2", 0), &server));
    });
}

#[test]
fn only_the_banned_are_kept_out_and_only_from_the_protected_ports() {
    Namespace::new().inside(|| {
        shell("ip addr add 2001:db8:1:2::7/64 dev lo nodad; ip addr add 2001:db8:1:3::7/64 dev lo nodad");
        let mut table = installed();
        let (four, six) = (server("127.0.0.1"), server("::1"));
        let unprotected = std::net::UdpSocket::bind("127.0.0.1:444").unwrap();
        unprotected.set_nonblocking(true).unwrap();
        for target in [
            host("127.0.0.2"),
            network("127.0.5.0", 24),
            flow("127.0.0.3", 5000),
            network("2001:db8:1:2::", 64),
        ] {
            ban(&mut table, target, MINUTE);
        }
        for (from, to, expected) in [
            (("127.0.0.2", 0), &four, false),
            (("127.0.0.2", 0), &unprotected, true),
            (("127.0.5.77", 0), &four, false),
            (("127.0.6.77", 0), &four, true),
            (("127.0.0.3", 5000), &four, false),
            (("127.0.0.3", 5001), &four, true),
            (("127.0.0.4", 5000), &four, true),
            (("2001:db8:1:2::7", 0), &six, false),
            (("2001:db8:1:3::7", 0), &six, true),
        ] {
            assert_eq!(arrives(from, to), expected, "{from:?} to {to:?}");
        }
        ban(&mut table, host("2001:db8:1:3::7"), MINUTE);
        ban(&mut table, flow("::1", 5000), MINUTE);
        assert!(!arrives(("2001:db8:1:3::7", 0), &six));
        assert!(!arrives(("::1", 5000), &six) && arrives(("::1", 5001), &six));
    });
}

/// Whether a TCP client there reaches the listener.
fn connects(client: &Namespace, listener: &TcpListener) -> bool {
    let address = listener.local_addr().unwrap();
    client.inside(|| match TcpStream::connect_timeout(&address, NO_HANDSHAKE) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::TimedOut => false,
        Err(error) => panic!("{error}"),
    })
}

#[test]
fn a_banned_tcp_peer_gets_no_handshake_and_another_does() {
    let (server, banned, other) = (Namespace::new(), Namespace::new(), Namespace::new());
    join(&server, &banned);
    join_by(["eth1", "eth0"], 10, &server, &other);
    let listen = |at: &str| server.inside(|| TcpListener::bind(at).unwrap());
    let mut table = server.inside(installed);
    let listeners = ["10.9.0.1:443", "[2001:db8:9::1]:2010"].map(listen);
    let others = ["10.10.0.1:443", "[2001:db8:10::1]:443"].map(listen);
    assert!(listeners.iter().all(|listener| connects(&banned, listener)));
    ban(&mut table, host("10.9.0.2"), MINUTE);
    ban(&mut table, network("2001:db8:9::", 64), MINUTE);
    assert!(!listeners.iter().any(|listener| connects(&banned, listener)));
    assert!(others.iter().all(|listener| connects(&other, listener)));
    // The drops are counted where an operator looks.
    let shown = server.run("nft list chain inet refract banned");
    let counted = |set: &str| {
        let rule = shown.lines().find(|rule| rule.contains(&format!("{set} counter"))).unwrap();
        !rule.contains("packets 0 ")
    };
    assert!(counted("@banned_users") && counted("@banned_networks6_64"), "{shown}");
    assert!(table.unban(host("10.9.0.2")).unwrap() && table.unban(host("2001:db8:9::2")).unwrap());
    assert!(listeners.iter().all(|listener| connects(&banned, listener)));
}

#[test]
fn in_the_forward_hook_it_is_kept_from_the_peers_behind() {
    let (router, client, server) = (Namespace::new(), Namespace::new(), Namespace::new());
    join(&router, &client);
    join_by(["eth1", "eth0"], 10, &router, &server);
    router.run("echo 1 > /proc/sys/net/ipv4/ip_forward");
    client.run("ip route add default via 10.9.0.1");
    server.run("ip route add default via 10.10.0.1");
    let (behind, here) = (
        server.inside(|| TcpListener::bind("10.10.0.2:443").unwrap()),
        router.inside(|| TcpListener::bind("10.9.0.1:443").unwrap()),
    );
    router.inside(|| {
        let mut table = installed();
        ban(&mut table, host("10.9.0.2"), MINUTE);
    });
    assert!(connects(&client, &behind) && !connects(&client, &here));
    // Another hook at the next start: the chain moves, the bans stay.
    let report = router.inside(|| {
        let forward = NftPlan { hook: Hook::Forward, ..plan() };
        NftTable::open(forward).unwrap().install().unwrap()
    });
    assert!(report.sets.iter().all(|set| set.state == SetState::Kept), "{report:?}");
    assert!(!connects(&client, &behind) && connects(&client, &here));
    let shown = router.run("nft list table inet refract");
    assert!(shown.contains("type filter hook forward priority filter - 10; policy accept;"));
    assert!(!shown.contains("chain input"), "{shown}");
}

#[test]
fn mptcp_peers_speak_plain_tcp_where_it_is_stripped() {
    let (server, client) = (Namespace::new(), Namespace::new());
    join(&server, &client);
    let listeners = server.inside(|| ["10.9.0.1:443", "[2001:db8:9::1]:443"].map(mptcp_listener));
    let other = server.inside(|| mptcp_listener("10.9.0.1:8443"));
    let both_are = |expected: bool| {
        for listener in &listeners {
            assert_eq!(is_mptcp(&server, &client, listener), Some(expected), "{listener:?}");
        }
    };
    both_are(true);
    server.inside(installed);
    both_are(false);
    assert_eq!(is_mptcp(&server, &client, &other), Some(true));
    // Not wanted any more: the rule goes.
    let report = server.inside(|| {
        let without = NftPlan { strip_mptcp: false, ..plan() };
        NftTable::open(without).unwrap().install().unwrap()
    });
    assert_eq!(report.strip, Strip::NotWanted);
    both_are(true);
}

#[test]
fn ten_thousand_bans_are_made_listed_and_lifted() {
    const MANY: u32 = 10_000;
    Namespace::new().inside(|| {
        let mut table = installed();
        let target = |n: u32| BanTarget::host(Ipv4Addr::from_bits(0x0a00_0001 + n).into());
        let bans: Vec<_> = (0..MANY).map(|n| (target(n), 10 * MINUTE)).collect();
        assert!(table.ban(&bans).iter().all(Result::is_ok));
        // Half of them again, and as many new ones, mixed.
        let mixed: Vec<_> = (MANY / 2..MANY + MANY / 2).map(|n| (target(n), 20 * MINUTE)).collect();
        assert!(table.ban(&mixed).iter().all(Result::is_ok));
        let listed = table.list().unwrap();
        assert_eq!(listed.len(), (MANY + MANY / 2) as usize);
        let is_long = |remaining: Option<Duration>| remaining.unwrap() > 11 * MINUTE;
        let long = listed.iter().filter(|ban| is_long(ban.remaining)).count();
        assert_eq!(long, MANY as usize);
        let shown = shell("nft list set inet refract banned_users | grep -o expires | wc -l");
        assert_eq!(shown.trim(), "15000");
        let held: Vec<_> = listed.iter().map(|ban| ban.target).collect();
        assert!(table.banned(&held).unwrap().iter().all(|there| *there));
        assert!(table.lift(&held).unwrap().iter().all(|lifted| *lifted));
        assert_eq!(table.list().unwrap(), []);
    });
}

#[test]
fn what_cannot_be_banned_is_refused_and_the_rest_is_banned() {
    Namespace::new().inside(|| {
        let mut table = installed();
        let outcomes = table.ban(&[
            (host("0.0.0.0"), MINUTE),
            (host("203.0.113.1"), MINUTE),
            (host("203.0.113.3"), Duration::ZERO),
            (network("203.0.113.4", 15), MINUTE),
            (network("198.51.100.0", 16), MINUTE),
            (flow("203.0.113.5", 0), MINUTE),
        ]);
        let refusals: Vec<_> = outcomes
            .iter()
            .map(|outcome| match outcome {
                Ok(_) => None,
                Err(Error::Unbannable { source, .. }) => Some(*source),
                Err(other) => panic!("{other}"),
            })
            .collect();
        assert_eq!(
            refusals,
            [
                Some(Unbannable::Unspecified),
                None,
                Some(Unbannable::NoTime),
                Some(Unbannable::TooWide(16)),
                None,
                Some(Unbannable::PortZero),
            ]
        );
        // One that the kernel refuses holds up no other either.
        shell("nft flush chain inet refract banned; nft delete set inet refract banned_flows");
        let outcomes = table.ban(&[
            (host("203.0.113.1"), 9 * MINUTE),
            (flow("203.0.113.5", 9), MINUTE),
            (host("203.0.113.2"), MINUTE),
        ]);
        let error = outcomes[1].as_ref().unwrap_err();
        assert_eq!(error.to_string(), "the set inet refract banned_flows does not exist");
        assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
        let expected = ["203.0.113.1", "203.0.113.2"].map(str::to_owned);
        assert_eq!(elements("banned_users"), BTreeSet::from(expected));
        assert_eq!(table.missing().unwrap(), ["banned_flows"]);
    });
}

#[test]
fn a_full_set_is_said_to_be_full_for_each_ban_that_did_not_fit() {
    Namespace::new().inside(|| {
        shell("nft add table inet refract");
        shell("nft 'add set inet refract banned_users { type ipv4_addr; size 2; flags timeout; }'");
        let mut table = open();
        let bans: Vec<_> =
            (1..=4).map(|last| (host(&format!("203.0.113.{last}")), MINUTE)).collect();
        let outcomes = table.ban(&bans);
        assert!(outcomes[0].is_ok() && outcomes[1].is_ok(), "{outcomes:?}");
        for refused in &outcomes[2..] {
            let error = refused.as_ref().unwrap_err().to_string();
            assert!(error.contains("`nft list set inet refract banned_users` shows"), "{error}");
        }
        // The banned can be banned anew.
        ban(&mut table, host("203.0.113.1"), 9 * MINUTE);
        table.install().unwrap();
        ban(&mut table, host("203.0.113.3"), MINUTE);
        assert_eq!(elements("banned_users").len(), 3);
    });
}

#[test]
fn without_a_table_there_is_nothing_and_the_errors_say_so() {
    Namespace::new().inside(|| {
        let mut table = open();
        assert_eq!(table.check().unwrap().state, State::Missing);
        assert_eq!(table.list().unwrap(), []);
        assert_eq!(table.banned(&one_of_each()).unwrap(), [false; 7]);
        assert_eq!(table.lift(&one_of_each()).unwrap(), [false; 7]);
        assert!(!table.unban(host("203.0.113.9")).unwrap());
        assert_eq!(table.uninstall().unwrap(), Vec::<String>::new());
        for (target, outcome) in
            one_of_each().iter().zip(table.ban(&one_of_each().map(|target| (target, MINUTE))))
        {
            let expected = format!("the set inet refract {} does not exist", table.set_of(*target));
            assert_eq!(outcome.unwrap_err().to_string(), expected);
        }
        assert_eq!(shell("nft list tables"), "");
    });
}

#[test]
fn tampering_is_seen_and_put_right() {
    Namespace::new().inside(|| {
        let server = server("127.0.0.1");
        for (tampering, expected, keeps_bans) in [
            ("flush table inet refract", State::Missing, true),
            ("flush chain inet refract input", State::Missing, true),
            ("flush chain inet refract banned", State::Altered, true),
            (
                "flush chain inet refract input; delete chain inet refract input",
                State::Missing,
                true,
            ),
            ("delete table inet refract", State::Missing, false),
            ("flush ruleset", State::Missing, false),
            ("insert rule inet refract input accept", State::Altered, true),
            ("insert rule inet refract banned ip saddr 127.0.0.2 accept", State::Altered, true),
            ("add rule inet refract banned drop", State::Altered, true),
            ("add table inet refract { flags dormant; }", State::Altered, true),
            ("add chain inet refract input { policy drop; }", State::Altered, true),
            (
                "flush chain inet refract input; \
                 add rule inet refract input tcp dport 1-9 jump banned",
                State::Altered,
                true,
            ),
            (
                "flush chain inet refract input; delete chain inet refract input; \
                 add chain inet refract input { type filter hook input priority 10; }; \
                 add rule inet refract input udp dport 443 jump banned",
                State::Altered,
                true,
            ),
            (
                "flush chain inet refract input; flush chain inet refract banned; \
                 delete chain inet refract banned; \
                 add chain inet refract banned { type filter hook output priority 0; }",
                State::Missing,
                true,
            ),
        ] {
            let mut table = installed();
            ban(&mut table, host("127.0.0.2"), MINUTE);
            assert!(!arrives(("127.0.0.2", 0), &server) && arrives(("127.0.0.3", 0), &server));
            shell(&format!("nft '{tampering}'"));
            assert_eq!(table.check().unwrap().state, expected, "{tampering}");
            let report = table.install().unwrap();
            assert_eq!((report.found.state, report.strip), (expected, Strip::InPlace));
            assert!(!table.check().unwrap().wants_repair(), "{tampering}");
            assert_eq!(table.list().unwrap().len(), usize::from(keeps_bans), "{tampering}");
            assert_eq!(!arrives(("127.0.0.2", 0), &server), keeps_bans, "{tampering}");
            assert!(arrives(("127.0.0.3", 0), &server));
            shell("nft delete table inet refract");
        }
        // The rule against MPTCP is told of by itself.
        let mut table = installed();
        shell(
            "nft delete rule inet refract banned handle \
             $(nft -a list chain inet refract banned | sed -n 's/.*mptcp.*handle //p')",
        );
        let standing = table.check().unwrap();
        assert_eq!((standing.state, standing.strip), (State::InPlace, Strip::Missing));
        assert!(standing.wants_repair());
        assert_eq!(table.install().unwrap().strip, Strip::InPlace);
        assert!(listed().contains("reset tcp option mptcp"));
    });
}

#[test]
fn it_is_installed_also_while_others_change_rules_without_a_pause() {
    Namespace::new().inside(|| {
        let mut table = installed();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Each ban is a change of the rules, in a thread that inherits the namespace.
            let restless = scope.spawn(|| {
                let (mut other, mut changes) = (open(), 0u32);
                while !over.load(Ordering::Relaxed) {
                    ban(&mut other, host("203.0.113.9"), MINUTE);
                    changes += 1;
                }
                changes
            });
            for _ in 0..20 {
                shell("nft flush chain inet refract banned; nft flush chain inet refract input");
                assert_eq!(table.install().unwrap().found.state, State::Missing);
                assert!(!table.check().unwrap().wants_repair());
            }
            over.store(true, Ordering::Relaxed);
            assert!(restless.join().unwrap() > 20);
        });
        let shown = listed();
        assert_eq!(shown.matches("@banned_users counter").count(), 1, "{shown}");
        assert_eq!(shown.matches("tcp dport 443 jump").count(), 1, "{shown}");
        assert_eq!(table.list().unwrap().len(), 1);
    });
}

#[test]
fn sets_that_will_not_do_are_replaced_with_their_bans() {
    Namespace::new().inside(|| {
        shell("nft add table inet refract");
        for (set, element) in [
            (
                "banned_users { type ipv4_addr; timeout 9m; }",
                "banned_users { 127.0.0.2 timeout 5m }",
            ),
            ("banned_users6 { type ipv6_addr; }", "banned_users6 { 2001:db8::7 }"),
            (
                "banned_networks6_64 { type ipv6_addr; flags interval, timeout; }",
                "banned_networks6_64 { 2001:db8:1:2:: }",
            ),
            (
                "banned_networks_24 { type ipv4_addr; size 9; }",
                "banned_networks_24 { 198.51.100.0 }",
            ),
            ("banned_flows { type ipv4_addr; }", "banned_flows { 203.0.113.9 }"),
            ("theirs { type ipv4_addr; }", "theirs { 203.0.113.9 }"),
        ] {
            shell(&format!("nft 'add set inet refract {set}'"));
            shell(&format!("nft 'add element inet refract {element}'"));
        }
        let mut table = open();
        assert_eq!(table.missing().unwrap().len(), 5);
        let report = table.install().unwrap();
        let state =
            |name: &str| report.sets.iter().find(|it| it.set == name).unwrap().state.clone();
        let carried = |entries, left_behind| {
            SetState::Replaced(Carried { entries, left_behind, examples: Vec::new() })
        };
        assert_eq!(state("banned_users"), carried(1, 0));
        assert_eq!(state("banned_users6"), carried(1, 0));
        assert!(matches!(state("banned_networks6_64"), SetState::Replaced(it) if it.entries == 0));
        assert_eq!(state("banned_networks_24"), carried(1, 0));
        assert_eq!(state("banned_flows"), carried(0, 1));
        assert_eq!(state("banned_flows6"), SetState::Created);
        assert!((290..=300).contains(&seconds_left(&mut table, host("127.0.0.2"))));
        // It had no end; now it has that of an entry without one.
        assert!((50..=60).contains(&seconds_left(&mut table, host("2001:db8::7"))));
        assert_eq!(table.banned(&[network("198.51.100.0", 24)]).unwrap(), [true]);
        assert!(!arrives(("127.0.0.2", 0), &server("127.0.0.1")));
        assert_eq!(table.missing().unwrap(), Vec::<String>::new());
        assert!(!table.check().unwrap().wants_repair());
        assert_eq!(elements("theirs").len(), 1);
    });
}

#[test]
fn a_large_set_that_will_not_do_is_carried_over_whole() {
    const MANY: usize = 20_000;
    Namespace::new().inside(|| {
        let numbers = 0..MANY;
        let addresses: Vec<_> =
            numbers.map(|n| format!("10.1.{}.{}", n / 200, n % 200 + 1)).collect();
        let script = format!(
            "add table inet refract\n\
             add set inet refract banned_users {{ type ipv4_addr; flags timeout; timeout 9m; }}\n\
             add element inet refract banned_users {{ {} }}\n",
            addresses.join(", ")
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("large.nft");
        std::fs::write(&path, script).unwrap();
        shell(&format!("nft -f {}", path.display()));
        let mut table = open();
        let report = table.install().unwrap();
        let users = report.sets.iter().find(|it| it.set == "banned_users").unwrap();
        assert!(
            matches!(&users.state, SetState::Replaced(it) if (it.entries, it.left_behind) == (MANY, 0)),
            "{users:?}"
        );
        assert_eq!(table.list().unwrap().len(), MANY);
        assert!(!table.check().unwrap().wants_repair());
    });
}

#[test]
fn bans_of_another_prefix_stay_in_force_and_empty_sets_go() {
    Namespace::new().inside(|| {
        shell("ip addr add 2001:db8:1:277::7/64 dev lo nodad");
        let server = server("::1");
        let with = |ipv6_prefix| NftTable::open(NftPlan { ipv6_prefix, ..plan() }).unwrap();
        let mut table = with(56);
        table.install().unwrap();
        ban(&mut table, network("2001:db8:1:200::", 56), MINUTE);
        ban(&mut table, network("2001:db8:5::", 48), MINUTE);
        assert!(table.unban(network("2001:db8:5::", 48)).unwrap());
        let mut table = with(64);
        let report = table.install().unwrap();
        assert!(report.sets.iter().any(|it| it.set == "banned_networks6_56"));
        assert!(!arrives(("2001:db8:1:277::7", 0), &server));
        let shown = listed();
        assert!(!shown.contains("banned_networks6_48"), "{shown}");
        assert!(shown.contains("& ffff:ffff:ffff:ffff:: == @banned_networks6_64"), "{shown}");
        assert!(table.unban(host("2001:db8:1:277::7")).unwrap());
        assert!(arrives(("2001:db8:1:277::7", 0), &server));
        // A whole address is one device: no set of networks at all.
        let mut table = with(128);
        table.install().unwrap();
        assert!(!listed().contains("networks"), "{}", listed());
        ban(&mut table, network("2001:db8:1:277::7", 128), MINUTE);
        assert!(!arrives(("2001:db8:1:277::7", 0), &server));
        // Without UDP, neither are there flows, nor is UDP looked at.
        let tcp = NftPlan { protocols: vec![Protocol::Tcp], flows: false, ..plan() };
        NftTable::open(tcp).unwrap().install().unwrap();
        assert!(!listed().contains("udp"), "{}", listed());
        assert!(arrives(("2001:db8:1:277::7", 0), &server));
    });
}

#[test]
fn uninstalling_deletes_our_table_and_no_other() {
    Namespace::new().inside(|| {
        for theirs in ["ip refract", "ip6 refract", "inet refract_of_mine", "inet filter"] {
            shell(&format!(
                "nft 'add table {theirs}; add chain {theirs} input; \
                 add rule {theirs} input tcp dport 443 drop'"
            ));
        }
        let before = shell("nft list ruleset");
        let mut table = installed();
        ban(&mut table, host("203.0.113.9"), MINUTE);
        let ours = table.uninstall().unwrap();
        assert_eq!(ours[0], "table inet refract");
        assert!(ours.contains(&"set inet refract banned_users".to_owned()), "{ours:?}");
        assert!(ours.contains(&"chain inet refract input".to_owned()), "{ours:?}");
        assert_eq!(shell("nft list ruleset"), before);
        assert_eq!(table.uninstall().unwrap(), Vec::<String>::new());

        // A start that is given up takes back what it made, and no table that was there.
        let report = table.install().unwrap();
        table.take_back(&report).unwrap();
        assert_eq!(shell("nft list ruleset"), before);
        table.install().unwrap();
        let report = table.install().unwrap();
        table.take_back(&report).unwrap();
        assert_eq!(table.check().unwrap().state, State::InPlace);
    });
}

#[test]
fn a_table_that_another_program_owns_is_said_to_be_so() {
    Namespace::new().inside(|| {
        let mut owner = std::process::Command::new("nft")
            .arg("-i")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = owner.stdin.take().unwrap();
        std::io::Write::write_all(
            &mut input,
            b"add table inet refract { flags owner; }\nlist tables\n",
        )
        .unwrap();
        let output = std::io::BufReader::new(owner.stdout.take().unwrap());
        let told = std::io::BufRead::lines(output).map_while(Result::ok);
        assert!(told.into_iter().any(|line| line.contains("table inet refract")));
        let error = open().install().unwrap_err();
        assert!(error.to_string().contains("flag owner"), "{error}");
        drop(input);
        owner.wait().unwrap();
        installed();
    });
}

#[test]
fn without_the_capability_the_error_names_it() {
    Namespace::new().inside(|| {
        let mut table = installed();
        let mut capabilities = rustix::thread::capabilities(None).unwrap();
        capabilities.effective -= rustix::thread::CapabilitySet::NET_ADMIN;
        rustix::thread::set_capabilities(None, capabilities).unwrap();
        let error = NftTable::open(plan()).unwrap_err();
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        // Also on a socket that was opened with it.
        let error = table.ban(&[(host("203.0.113.9"), MINUTE)]).pop().unwrap().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::PERM));
        assert_eq!(table.missing().unwrap_err().errno(), Some(Errno::PERM));
        assert_eq!(table.banned(&one_of_each()).unwrap_err().errno(), Some(Errno::PERM));
    });
}

#[test]
fn the_capability_is_the_only_one_that_is_needed() {
    Namespace::new().inside(|| {
        let only = rustix::thread::CapabilitySet::NET_ADMIN;
        let mut capabilities = rustix::thread::capabilities(None).unwrap();
        capabilities.effective = only;
        rustix::thread::set_capabilities(None, capabilities).unwrap();
        let mut table = installed();
        for target in one_of_each() {
            ban(&mut table, target, MINUTE);
        }
        assert_eq!(table.banned(&one_of_each()).unwrap(), [true; 7]);
        assert_eq!(table.list().unwrap().len(), 7);
        assert!(!table.check().unwrap().wants_repair());
        assert!(!table.uninstall().unwrap().is_empty());
    });
}
