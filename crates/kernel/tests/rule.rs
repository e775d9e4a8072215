//! The firewall rule in a live kernel, with both implementations of iptables, each test in network
//! namespaces of its own. The second eye is iptables itself, and real packets.

#![cfg(test)]

#[path = "support/iptables.rs"]
mod iptables;
#[path = "support/link.rs"]
mod link;
mod support;

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use iptables::{VARIANTS, input_rules, make_sets, mangle_rules};
use link::join;
use refract_kernel::{
    netlink::{Family, Socket},
    xtables::{
        NoIpv6, Protocol, Report, RulePlan, SetNames, State, Variant, Xtables, ports_from_text,
    },
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{SocketFlags, SocketType, bind, connect, ipproto, socket_with, sockopt},
    thread::{CapabilitySet, remove_capability_from_bounding_set},
};
use support::{Namespace, shell};

const V4: SetNames = SetNames { sources: "refract_banned_users", flows: "refract_banned_flows" };
const V6: SetNames = SetNames { sources: "refract_banned_users6", flows: "refract_banned_flows6" };
const TCP: &[Protocol] = &[Protocol::Tcp];
const BOTH: &[Protocol] = &[Protocol::Tcp, Protocol::Udp];

const TCP_443: &str =
    "-p tcp -m tcp --dport 443 -m set --match-set refract_banned_users src -j DROP";
const TCP_443_V6: &str =
    "-p tcp -m tcp --dport 443 -m set --match-set refract_banned_users6 src -j DROP";
const UDP_443: &str =
    "-p udp -m udp --dport 443 -m set --match-set refract_banned_users src -j DROP";
const FLOW_443: &str =
    "-p udp -m udp --dport 443 -m set --match-set refract_banned_flows src,src -j DROP";
const ESTABLISHED: &str = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";

fn xtables(program: &str, protocols: &[Protocol], ports: &str) -> Xtables {
    let ports = ports_from_text(ports).unwrap();
    let plan = RulePlan::new(protocols, &ports, V4, V6).unwrap();
    Xtables::find(Some(Path::new(program)), plan).unwrap()
}

fn both(state: State) -> Report {
    Report { v4: state, v6: Ok(state) }
}

/// Runs a test with each implementation, in a namespace that holds the sets.
fn with_each_variant(test: impl Fn(&str) + Sync) {
    for program in VARIANTS {
        Namespace::new().inside(|| {
            make_sets();
            test(program);
        });
    }
}

#[test]
fn an_empty_chain_gets_the_rule_and_its_twin() {
    with_each_variant(|program| {
        let xtables = xtables(program, TCP, "443");
        assert_eq!(xtables.check().unwrap(), both(State::Missing));
        assert_eq!(xtables.install().unwrap(), both(State::Missing));
        assert_eq!(xtables.check().unwrap(), both(State::InPlace));
        assert_eq!(input_rules(program), [TCP_443]);
        assert_eq!(input_rules(&program.replace("iptables", "ip6tables")), [TCP_443_V6]);
        assert_eq!(mangle_rules(program), [""; 0]);
        assert!(shell("ipset list -t refract_banned_users").contains("References: 1"));
        assert_eq!(xtables.references("refract_banned_users").unwrap(), 1);
        assert_eq!(xtables.references("refract_banned_users6").unwrap(), 1);
    });
}

#[test]
fn the_implementation_is_known() {
    let variants = VARIANTS.map(|program| xtables(program, TCP, "443").variant());
    assert_eq!(variants, [Variant::NfTables, Variant::Legacy]);
}

#[test]
fn either_implementation_is_found_by_its_name() {
    for (variant, program) in Variant::ALL.into_iter().zip(VARIANTS) {
        let plan = RulePlan::new(TCP, &[443..=443], V4, V6).unwrap();
        let found = Xtables::find_variant(variant, plan).unwrap().unwrap();
        assert_eq!((found.variant(), found.path()), (variant, Path::new(program)));
        assert_eq!(xtables(program, TCP, "443").variant().other(), variant.other());
    }
}

#[test]
fn rules_are_counted_in_every_chain_and_by_looking_no_table_is_made() {
    let tables = || {
        ["ip_tables_names", "ip6_tables_names"]
            .map(|names| shell(&format!("sort /proc/thread-self/net/{names}")))
    };
    with_each_variant(|program| {
        let xtables = xtables(program, BOTH, "443");
        let counted = || (xtables.count().unwrap(), xtables.count_strip().unwrap());
        assert_eq!(counted(), (0, 0));
        xtables.remove().unwrap();
        assert_eq!(tables(), ["", ""]);
        shell(&format!("{program} -N mine && {program} -A mine {TCP_443}"));
        let with_one = tables();
        assert_eq!(counted(), (1, 0));
        assert_eq!(tables(), with_one);
        // Each family has one for TCP, for UDP, and for its flows.
        xtables.install().unwrap();
        shell(&format!("{program} -A FORWARD {TCP_443}"));
        assert_eq!(counted(), (7, 0));
        xtables.install_strip().unwrap();
        assert_eq!(counted(), (7, 2));
        xtables.remove().unwrap();
        xtables.remove_strip().unwrap();
        assert_eq!(counted(), (0, 0));
    });
}

#[test]
fn a_hundred_installations_leave_one_rule() {
    with_each_variant(|program| {
        let xtables = xtables(program, TCP, "443");
        xtables.install().unwrap();
        for _ in 0..100 {
            assert_eq!(xtables.install().unwrap(), both(State::InPlace));
        }
        assert_eq!(input_rules(program), [TCP_443]);
    });
}

#[test]
fn a_rule_below_an_accept_of_established_connections_goes_to_the_top() {
    with_each_variant(|program| {
        let xtables = xtables(program, TCP, "443");
        shell(&format!("{program} -A INPUT {ESTABLISHED} && {program} -A INPUT {TCP_443}"));
        assert_eq!(xtables.check().unwrap().v4, State::Displaced);
        assert_eq!(xtables.install().unwrap().v4, State::Displaced);
        assert_eq!(input_rules(program), [TCP_443, ESTABLISHED]);
        shell(&format!("{program} -I INPUT {ESTABLISHED}"));
        assert_eq!(xtables.install().unwrap().v4, State::Displaced);
        assert_eq!(input_rules(program), [TCP_443, ESTABLISHED, ESTABLISHED]);
    });
}

#[test]
fn duplicates_and_rules_of_an_earlier_plan_are_replaced() {
    with_each_variant(|program| {
        let stale = "-p tcp -m tcp --dport 8443 -m set --match-set refract_banned_users src \
                     -m comment --comment \"it\\'s \\\"old\\\"\" -j DROP";
        for rule in [stale, TCP_443, ESTABLISHED, TCP_443, UDP_443, FLOW_443, TCP_443] {
            // A listed rule is quoted for iptables-restore, not for a shell.
            let batch = format!("*filter\n-A INPUT {rule}\nCOMMIT\n").replace('\'', "'\"'\"'");
            shell(&format!("printf '%s' '{batch}' | {program}-restore --noflush"));
        }
        assert_eq!(input_rules(program)[0], stale);
        let xtables = xtables(program, TCP, "443");
        assert_eq!(xtables.install().unwrap().v4, State::Displaced);
        assert_eq!(input_rules(program), [TCP_443, ESTABLISHED]);
        shell(&format!("{program} -A INPUT {TCP_443}"));
        assert_eq!(xtables.install().unwrap().v4, State::Surplus);
        assert_eq!(input_rules(program), [TCP_443, ESTABLISHED]);
    });
}

#[test]
fn twenty_ports_take_two_rules_and_udp_two_more() {
    with_each_variant(|program| {
        let ports = "1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31,33,35,37,2000:2010";
        let xtables = xtables(program, BOTH, ports);
        xtables.install().unwrap();
        assert_eq!(xtables.check().unwrap(), both(State::InPlace));
        let first = "-m multiport --dports 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29 -m set";
        let second = "-m multiport --dports 31,33,35,37,2000:2010 -m set";
        assert_eq!(
            input_rules(program),
            [
                format!("-p tcp {first} --match-set refract_banned_users src -j DROP"),
                format!("-p tcp {second} --match-set refract_banned_users src -j DROP"),
                format!("-p udp {first} --match-set refract_banned_users src -j DROP"),
                format!("-p udp {second} --match-set refract_banned_users src -j DROP"),
                format!("-p udp {first} --match-set refract_banned_flows src,src -j DROP"),
                format!("-p udp {second} --match-set refract_banned_flows src,src -j DROP"),
            ]
        );
        assert_eq!(xtables.references("refract_banned_users").unwrap(), 4);
    });
}

#[test]
fn removal_takes_ours_and_leaves_the_rules_of_others() {
    with_each_variant(|program| {
        let logs = "-m set --match-set refract_banned_users src -j LOG";
        let xtables = xtables(program, BOTH, "443");
        shell(&format!("{program} -A INPUT {ESTABLISHED} && {program} -A INPUT {logs}"));
        let own = format!("-s 192.0.2.9/32 {TCP_443}");
        shell(&format!("{program} -N mine && {program} -A mine {own}"));
        shell(&format!("{program} -t raw -A PREROUTING {TCP_443}"));
        xtables.install().unwrap();
        assert_eq!(xtables.remove().unwrap(), both(State::InPlace));
        assert_eq!(xtables.remove().unwrap(), both(State::Missing));
        assert_eq!(input_rules(program), [ESTABLISHED, logs]);
        assert!(shell(&format!("{program} -S mine")).contains(&own));

        assert!(shell("ipset list -t refract_banned_users").contains("References: 3"));
        assert_eq!(xtables.references("refract_banned_users").unwrap(), 0);
        let save = format!("{}-save", program.trim_start_matches("/usr/sbin/"));
        let mut foreign = xtables.foreign_rules("refract_banned_users");
        foreign.sort();
        assert_eq!(
            foreign,
            [
                format!("{save}: filter -A INPUT {logs}"),
                format!("{save}: filter -A mine {own}"),
                format!("{save}: raw -A PREROUTING {TCP_443}"),
            ]
        );
    });
}

#[test]
fn removal_where_nothing_ever_was_leaves_nothing() {
    for program in VARIANTS {
        Namespace::new().inside(|| {
            assert_eq!(xtables(program, BOTH, "443").remove().unwrap(), both(State::Missing));
            assert_eq!(input_rules(program), [""; 0]);
        });
    }
}

#[test]
fn a_rule_in_the_other_implementation_is_found_as_foreign() {
    Namespace::new().inside(|| {
        make_sets();
        xtables("/usr/sbin/iptables-legacy", TCP, "443").install().unwrap();
        let other = xtables("/usr/sbin/iptables-nft", TCP, "443");
        assert_eq!(other.check().unwrap(), both(State::Missing));
        let expected = [format!("iptables-legacy-save: filter -A INPUT {TCP_443}")];
        assert_eq!(other.foreign_rules("refract_banned_users"), expected);
    });
}

#[test]
fn a_set_that_is_not_there_is_named() {
    for program in VARIANTS {
        Namespace::new().inside(|| {
            let error = xtables(program, TCP, "443").install().unwrap_err().to_string();
            assert!(error.contains("Set refract_banned_users doesn't exist"), "{error}");
            assert!(error.starts_with(&format!("cannot install the rule with {program}-restore")));
        });
    }
}

#[test]
fn without_its_capabilities_iptables_names_them() {
    with_each_variant(|program| {
        xtables(program, TCP, "443").install().unwrap();
        for capability in [CapabilitySet::NET_RAW, CapabilitySet::NET_ADMIN] {
            thread::scope(|scope| {
                scope.spawn(|| {
                    // Of this thread only; what it starts cannot have it back.
                    remove_capability_from_bounding_set(capability).unwrap();
                    let error = xtables(program, TCP, "443").install().unwrap_err().to_string();
                    assert!(error.contains("CAP_NET_ADMIN"), "{capability:?}: {error}");
                });
            });
        }
    });
}

#[test]
fn a_program_that_is_broken_gives_one_sentence() {
    let find = |name: &str| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken_programs");
        let plan = RulePlan::new(TCP, &[443..=443], V4, V6).unwrap();
        let found = Xtables::find(Some(&directory.join(name)), plan);
        found.map_err(|error| error.to_string().replace(directory.to_str().unwrap(), ""))
    };
    for (name, expected) in [
        (
            "failing/iptables",
            "cannot ask the version of /failing/iptables: it ended with exit status: 1: this \
             iptables is broken",
        ),
        (
            "garbage/iptables",
            "cannot ask the version of /garbage/iptables: its answer is not that of an iptables",
        ),
        (
            "absent/iptables",
            "cannot ask the version of /absent/iptables: it is not there (install the package \
             iptables, or name the program by its path)",
        ),
        (
            "garbage/nftables",
            "cannot use /garbage/nftables: it is not an absolute path to a program named \
             iptables… (/usr/sbin/iptables-legacy)",
        ),
    ] {
        assert_eq!(find(name).unwrap_err(), expected);
    }

    let lying = find("lying/iptables").unwrap();
    for error in [lying.check(), lying.install(), lying.remove()].map(Result::unwrap_err) {
        assert!(error.to_string().ends_with("its answer is not that of an iptables"), "{error}");
    }

    let stubborn = find("stubborn/iptables").unwrap();
    assert_eq!(stubborn.variant(), Variant::Legacy);
    let nothing = Report { v4: State::Missing, v6: Err(NoIpv6::NoProgram) };
    assert_eq!(stubborn.check().unwrap(), nothing);
    assert_eq!(stubborn.remove().unwrap(), nothing);
    let error = stubborn.install().unwrap_err().to_string();
    assert!(error.ends_with("somebody else keeps changing chain INPUT"), "{error}");
}

#[test]
fn the_program_is_found_without_being_named() {
    let plan = RulePlan::new(TCP, &[443..=443], V4, V6).unwrap();
    let found = Xtables::find(None, plan).unwrap();
    assert!(found.path().is_absolute() && found.path().ends_with("iptables"), "{found:?}");
}

#[test]
fn only_the_nftables_implementation_wakes_its_listeners() {
    /// `NFNLGRP_NFTABLES` is group 7, linux/netfilter/nfnetlink.h.
    const NFTABLES_GROUP: u32 = 1 << 6;
    Namespace::new().inside(|| {
        make_sets();
        let mut listener = Socket::open_with_groups(Family::Netfilter, NFTABLES_GROUP).unwrap();
        let mut heard = || {
            let mut events = 0;
            assert!(listener.events(|_| events += 1).unwrap());
            events
        };
        // Events are queued before the change is acknowledged: there is nothing to wait for.
        let [nft, legacy] = VARIANTS.map(|program| xtables(program, TCP, "443"));
        legacy.install().unwrap();
        shell("iptables-legacy -F INPUT");
        legacy.install().unwrap();
        assert_eq!(heard(), 0);
        nft.install().unwrap();
        assert!(heard() > 0);
        nft.check().unwrap();
        nft.install().unwrap();
        assert_eq!(heard(), 0, "looking must not wake the one who looks when woken");
        shell("iptables-nft -F INPUT");
        assert!(heard() > 0);
        nft.install().unwrap();
        assert!(heard() > 0);
        shell("nft flush ruleset");
        assert!(heard() > 0);
        assert_eq!(nft.install().unwrap().v4, State::Missing);
    });
}

/// A server and a client namespace with a link between them. The server has the addresses 10.9.0.1
/// and `2001:db8:9::1`, the client .2 and .3 of both.
struct Link {
    server: Namespace,
    client: Namespace,
}

impl Link {
    fn new() -> Self {
        let (server, client) = (Namespace::new(), Namespace::new());
        join(&server, &client);
        server.inside(make_sets);
        client.run("ip addr add 10.9.0.3/24 dev eth0");
        client.run("ip addr add 2001:db8:9::3/64 dev eth0 nodad");
        Self { server, client }
    }

    /// Whether a connection from `source` to `server` is established within `patience`.
    fn connects(&self, source: &str, server: SocketAddr, patience: Duration) -> bool {
        self.client.inside(|| {
            let source = SocketAddr::new(source.parse::<IpAddr>().unwrap(), 0);
            let family = if source.is_ipv4() {
                rustix::net::AddressFamily::INET
            } else {
                rustix::net::AddressFamily::INET6
            };
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let tcp = Some(ipproto::TCP);
            let socket = socket_with(family, SocketType::STREAM, flags, tcp).unwrap();
            bind(&socket, &source).unwrap();
            assert_eq!(connect(&socket, &server), Err(rustix::io::Errno::INPROGRESS));
            let mut ready = [PollFd::new(&socket, PollFlags::OUT)];
            let patience = Timespec::try_from(patience).unwrap();
            let answered = poll(&mut ready, Some(&patience)).unwrap() > 0;
            answered && sockopt::socket_error(&socket).unwrap().is_ok()
        })
    }
}

#[test]
fn a_banned_source_cannot_connect_and_another_can() {
    for program in VARIANTS {
        let link = Link::new();
        let (v4, v6) = link.server.inside(|| {
            let listeners =
                ["10.9.0.1:443", "[2001:db8:9::1]:443"].map(|at| TcpListener::bind(at).unwrap());
            xtables(program, TCP, "443").install().unwrap();
            shell(
                "ipset add refract_banned_users 10.9.0.2 && \
                 ipset add refract_banned_users6 2001:db8:9::2",
            );
            listeners.into()
        });
        let long = Duration::from_secs(10);
        let short = Duration::from_millis(300);
        for (banned, other, listener) in
            [("10.9.0.2", "10.9.0.3", &v4), ("2001:db8:9::2", "2001:db8:9::3", &v6)]
        {
            let server = listener.local_addr().unwrap();
            assert!(link.connects(other, server, long), "{program}: {other} is not banned");
            assert!(!link.connects(banned, server, short), "{program}: {banned} is banned");
        }
        link.server.inside(|| {
            for program in [program.to_owned(), program.replace("iptables", "ip6tables")] {
                let counters = shell(&format!("{program} -w 5 -L INPUT 1 -v -x -n"));
                let dropped = counters.split_whitespace().next().unwrap();
                assert!(dropped.parse::<u64>().unwrap() > 0, "{counters}");
            }
            shell(
                "ipset del refract_banned_users 10.9.0.2 && \
                 ipset del refract_banned_users6 2001:db8:9::2",
            );
        });
        assert!(link.connects("10.9.0.2", v4.local_addr().unwrap(), long));
        assert!(link.connects("2001:db8:9::2", v6.local_addr().unwrap(), long));
    }
}

#[test]
fn a_banned_flow_is_dropped_and_another_port_of_the_same_source_passes() {
    for program in VARIANTS {
        let link = Link::new();
        let server = link.server.inside(|| {
            xtables(program, &[Protocol::Udp], "443").install().unwrap();
            UdpSocket::bind("10.9.0.1:443").unwrap()
        });
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let [banned, other] = link
            .client
            .inside(|| ["10.9.0.2:4000", "10.9.0.2:4001"].map(|at| UdpSocket::bind(at).unwrap()));
        let mut byte = [0];
        let mut received = || server.recv(&mut byte).map(|_| byte[0]).unwrap();

        banned.send_to(&[1], "10.9.0.1:443").unwrap();
        assert_eq!(received(), 1);
        link.server.inside(|| shell("ipset add refract_banned_flows 10.9.0.2,udp:4000"));
        banned.send_to(&[2], "10.9.0.1:443").unwrap();
        other.send_to(&[3], "10.9.0.1:443").unwrap();
        assert_eq!(received(), 3);
    }
}

/// Lets a thread of the scope end also when the test fails meanwhile.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn no_packet_slips_through_while_the_rules_are_put_right() {
    for program in VARIANTS {
        let link = Link::new();
        let server = link.server.inside(|| {
            xtables(program, &[Protocol::Udp], "443").install().unwrap();
            shell("ipset add refract_banned_users 10.9.0.2");
            UdpSocket::bind("10.9.0.1:443").unwrap()
        });
        server.set_nonblocking(true).unwrap();
        let banned = link.client.inside(|| UdpSocket::bind("10.9.0.2:4000").unwrap());
        let over = AtomicBool::new(false);
        let sent = thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut sent = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    sent += u64::from(banned.send_to(&[1], "10.9.0.1:443").is_ok());
                }
                sent
            });
            let over = EndOnDrop(&over);
            link.server.inside(|| {
                let xtables = xtables(program, &[Protocol::Udp], "443");
                for _ in 0..20 {
                    shell(&format!("{program} -w 5 -A INPUT {UDP_443}"));
                    assert_eq!(xtables.install().unwrap().v4, State::Surplus);
                    shell(&format!("{program} -w 5 -I INPUT -s 192.0.2.1 -j ACCEPT"));
                    assert_eq!(xtables.install().unwrap().v4, State::Displaced);
                }
            });
            drop(over);
            sender.join().unwrap()
        });
        assert!(sent > 1000, "{sent} packets prove little");
        let slipped = server.recv(&mut [0]).map_err(|error| error.kind());
        assert_eq!(slipped, Err(io::ErrorKind::WouldBlock), "{program}");

        link.server.inside(|| shell("ipset del refract_banned_users 10.9.0.2"));
        server.set_nonblocking(false).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        banned.send_to(&[2], "10.9.0.1:443").unwrap();
        let mut byte = [0];
        server.recv(&mut byte).unwrap();
        assert_eq!(byte, [2]);
    }
}
