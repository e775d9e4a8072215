//! The rule against MPTCP in a live kernel, with both implementations of iptables, each test in
//! network namespaces of its own. The second eye is iptables itself, `ss`, and real MPTCP peers.

#![cfg(test)]

#[path = "support/iptables.rs"]
mod iptables;
#[path = "support/link.rs"]
mod link;
#[path = "support/mptcp.rs"]
mod mptcp;
mod support;
#[path = "support/without_target.rs"]
mod without_target;

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::symlink,
    path::Path,
};

use iptables::{VARIANTS, input_rules, make_sets, mangle_rules};
use link::{join, join_by};
use mptcp::{is_mptcp, is_mptcp_to, mptcp_client, mptcp_listener};
use refract_kernel::{
    netlink::{Family, Socket},
    xtables::{
        NoStrip, Protocol, RulePlan, SetNames, State, StripReport, Xtables, ports_from_text,
    },
};
use rustix::net::{ipproto, sockopt};
use support::{Namespace, shell};
use without_target::{WithoutTarget, families, wrap};

const V4: SetNames = SetNames { sources: "refract_banned_users", flows: "refract_banned_flows" };
const V6: SetNames = SetNames { sources: "refract_banned_users6", flows: "refract_banned_flows6" };
const TCP: &[Protocol] = &[Protocol::Tcp];

const STRIP_443: &str = "-p tcp -m tcp --dport 443 --tcp-flags SYN SYN -m comment --comment refract \
                         -j TCPOPTSTRIP --strip-options 30";
const FOREIGN: [&str; 3] = [
    "-p tcp -m tcp --dport 443 --tcp-flags SYN SYN -j TCPOPTSTRIP --strip-options 30",
    "-p tcp -m tcp --dport 443 -m comment --comment \"not refract\" -j MARK --set-xmark 0x1/0xffffffff",
    "-p tcp -m tcp --dport 443 -m comment --comment refract -j MARK --set-xmark 0x1/0xffffffff",
];

fn xtables(program: &str, protocols: &[Protocol], ports: &str) -> Xtables {
    let ports = ports_from_text(ports).unwrap();
    let plan = RulePlan::new(protocols, &ports, V4, V6).unwrap();
    Xtables::find(Some(Path::new(program)), plan).unwrap()
}

fn both(state: State) -> StripReport {
    StripReport { v4: Ok(state), v6: Ok(state) }
}

fn with_each_variant(test: impl Fn(&str) + Sync) {
    for program in VARIANTS {
        Namespace::new().inside(|| test(program));
    }
}

#[test]
fn an_empty_chain_gets_the_rule_and_its_twin_once_and_removal_takes_both() {
    with_each_variant(|program| {
        let xtables = xtables(program, TCP, "443");
        assert_eq!(xtables.check_strip().unwrap(), both(State::Missing));
        assert_eq!(xtables.install_strip().unwrap(), both(State::Missing));
        for _ in 0..10 {
            assert_eq!(xtables.install_strip().unwrap(), both(State::InPlace));
        }
        assert_eq!(xtables.check_strip().unwrap(), both(State::InPlace));
        for tool in families(program) {
            assert_eq!(mangle_rules(&tool), [STRIP_443]);
        }
        assert_eq!(xtables.remove_strip().unwrap(), 2);
        assert_eq!(xtables.remove_strip().unwrap(), 0);
        for tool in families(program) {
            assert_eq!(mangle_rules(&tool), [""; 0]);
        }
    });
}

#[test]
fn rules_of_others_survive_and_duplicates_and_earlier_plans_do_not() {
    with_each_variant(|program| {
        make_sets();
        let stale = STRIP_443.replace("443", "8443");
        for tool in families(program) {
            for rule in [FOREIGN[0], STRIP_443, FOREIGN[1], &stale, STRIP_443, FOREIGN[2]] {
                shell(&format!("{tool} -w 5 -t mangle -A INPUT {rule}"));
            }
            shell(&format!("{tool} -w 5 -t mangle -A PREROUTING {STRIP_443}"));
            shell(&format!("{tool} -w 5 -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"));
        }
        let xtables = xtables(program, TCP, "443");
        assert_eq!(xtables.check_strip().unwrap(), both(State::Surplus));
        assert_eq!(xtables.install_strip().unwrap(), both(State::Surplus));
        for tool in families(program) {
            assert_eq!(mangle_rules(&tool), [STRIP_443, FOREIGN[0], FOREIGN[1], FOREIGN[2]]);
            // Its place does not matter.
            shell(&format!("{tool} -w 5 -t mangle -I INPUT {}", FOREIGN[0]));
        }
        assert_eq!(xtables.check_strip().unwrap(), both(State::InPlace));
        // The two rules do not know each other.
        xtables.install().unwrap();
        xtables.remove().unwrap();
        assert_eq!(xtables.check_strip().unwrap(), both(State::InPlace));
        assert_eq!(xtables.remove_strip().unwrap(), 2);
        for tool in families(program) {
            assert_eq!(mangle_rules(&tool), [FOREIGN[0], FOREIGN[0], FOREIGN[1], FOREIGN[2]]);
            assert!(shell(&format!("{tool} -w 5 -t mangle -S PREROUTING")).contains(STRIP_443));
            assert_eq!(input_rules(&tool), ["-p tcp -m tcp --dport 22 -j ACCEPT"]);
        }
    });
}

#[test]
fn a_list_of_ports_is_one_rule_and_sixteen_are_two_and_udp_has_none() {
    with_each_variant(|program| {
        let tail = "--tcp-flags SYN SYN -m comment --comment refract -j TCPOPTSTRIP \
                    --strip-options 30";
        let (first, second) = ("1,3,5,7,9,11,13,15,17,19,21,23,25,27,29", "31");
        let ports = format!("{first},{second}");
        let sixteen = xtables(program, TCP, &ports);
        sixteen.install_strip().unwrap();
        assert_eq!(sixteen.check_strip().unwrap(), both(State::InPlace));
        for tool in families(program) {
            assert_eq!(
                mangle_rules(&tool),
                [
                    format!("-p tcp -m multiport --dports {first} -m tcp {tail}"),
                    format!("-p tcp -m tcp --dport {second} {tail}"),
                ]
            );
        }
        let udp = xtables(program, &[Protocol::Udp], "443");
        assert_eq!(udp.install_strip().unwrap(), both(State::Surplus));
        for tool in families(program) {
            assert_eq!(mangle_rules(&tool), [""; 0]);
        }
    });
}

#[test]
fn looking_and_removing_make_no_table_and_wake_nobody() {
    /// `NFNLGRP_NFTABLES` is group 7, linux/netfilter/nfnetlink.h.
    const NFTABLES_GROUP: u32 = 1 << 6;
    Namespace::new().inside(|| {
        let mut listener = Socket::open_with_groups(Family::Netfilter, NFTABLES_GROUP).unwrap();
        let mut heard = || {
            let mut events = 0;
            assert!(listener.events(|_| events += 1).unwrap());
            events
        };
        for program in VARIANTS {
            let xtables = xtables(program, TCP, "443");
            assert_eq!(xtables.check_strip().unwrap(), both(State::Missing));
            assert_eq!(xtables.remove_strip().unwrap(), 0);
        }
        assert_eq!(heard(), 0);
        assert_eq!(shell("nft list ruleset"), "");
        for names in ["ip_tables_names", "ip6_tables_names"] {
            assert_eq!(shell(&format!("cat /proc/thread-self/net/{names}")), "");
        }
        let nft = xtables(VARIANTS[0], TCP, "443");
        nft.install_strip().unwrap();
        assert!(heard() > 0);
        nft.check_strip().unwrap();
        nft.install_strip().unwrap();
        assert_eq!(heard(), 0, "looking must not wake the one who looks when woken");
    });
}

#[test]
fn an_iptables_without_the_extension_is_an_answer_and_no_error() {
    with_each_variant(|program| {
        for (extension, absence) in
            [("libxt_TCPOPTSTRIP.so", NoStrip::NoTarget), ("libxt_comment.so", NoStrip::NoComment)]
        {
            let directory = tempfile::tempdir().unwrap();
            let extensions = directory.path().join("extensions");
            fs::create_dir(&extensions).unwrap();
            let installed = shell("dirname $(find /usr/lib /lib -name libxt_TCPOPTSTRIP.so)");
            for entry in fs::read_dir(installed.lines().next().unwrap()).unwrap() {
                let entry = entry.unwrap();
                if entry.file_name() != extension {
                    symlink(entry.path(), extensions.join(entry.file_name())).unwrap();
                }
            }
            let script =
                format!("XTABLES_LIBDIR={} exec $REAL \"$@\"", extensions.to_str().unwrap());
            make_table(program);
            let name = wrap(directory.path(), program, &script, &script);
            let path = directory.path().join(name);
            let xtables = xtables(path.to_str().unwrap(), TCP, "443");
            let none = StripReport { v4: Err(absence), v6: Err(absence) };
            assert_eq!(xtables.check_strip().unwrap(), none);
            assert_eq!(xtables.install_strip().unwrap(), none);
            assert_eq!(xtables.remove_strip().unwrap(), 0);
        }
    });
}

/// Legacy iptables has the table only once somebody used it.
fn make_table(program: &str) {
    for tool in families(program) {
        shell(&format!("{tool} -w 5 -t mangle -S INPUT"));
    }
}

#[test]
fn a_kernel_without_the_target_is_an_answer_and_no_error() {
    with_each_variant(|program| {
        let tools = WithoutTarget::new(program);
        make_table(program);
        let xtables = xtables(&tools.path(), TCP, "443");
        let none = StripReport { v4: Err(NoStrip::NoTarget), v6: Err(NoStrip::NoTarget) };
        assert_eq!(xtables.check_strip().unwrap(), none);
        assert_eq!(tools.attempts(), 0, "a look only rehearses");
        assert_eq!(xtables.install_strip().unwrap(), none);
        assert_eq!(tools.attempts(), 2, "one a family");
        assert_eq!(mangle_rules(program), [""; 0]);
    });
}

#[test]
fn mptcp_peers_speak_plain_tcp_where_the_rule_is_and_mptcp_where_it_is_not() {
    for program in VARIANTS {
        let (server, client) = (Namespace::new(), Namespace::new());
        join(&server, &client);
        let xtables = xtables(program, TCP, "443");
        let listeners =
            server.inside(|| ["10.9.0.1:443", "[2001:db8:9::1]:443"].map(mptcp_listener));
        let both_are = |expected: bool| {
            for listener in &listeners {
                let seen = is_mptcp(&server, &client, listener);
                assert_eq!(seen, Some(expected), "{program}: {listener:?}");
            }
        };
        both_are(true);
        server.inside(|| xtables.install_strip().unwrap());
        both_are(false);
        // A port that is not protected is none of our business.
        let other = server.inside(|| mptcp_listener("10.9.0.1:8443"));
        let address = other.local_addr().unwrap();
        let _talking = client.inside(|| mptcp_client(address));
        let (accepted, _) = other.accept().unwrap();
        assert_eq!(sockopt::socket_protocol(&accepted).unwrap(), Some(ipproto::MPTCP));

        server.inside(|| xtables.remove_strip().unwrap());
        both_are(true);
    }
}

#[test]
fn a_connection_from_before_the_rule_goes_on_as_it_is() {
    for program in VARIANTS {
        let (server, client) = (Namespace::new(), Namespace::new());
        join(&server, &client);
        let listener = server.inside(|| mptcp_listener("10.9.0.1:443"));
        let address = listener.local_addr().unwrap();
        let mut talking = client.inside(|| mptcp_client(address));
        let (mut accepted, _) = listener.accept().unwrap();
        server.inside(|| xtables(program, TCP, "443").install_strip().unwrap());
        for _ in 0..10 {
            talking.write_all(b"refract").unwrap();
            let mut heard = [0; 7];
            accepted.read_exact(&mut heard).unwrap();
            accepted.write_all(&heard).unwrap();
            talking.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"refract");
        }
        assert_eq!(sockopt::socket_protocol(&accepted).unwrap(), Some(ipproto::MPTCP));
        assert!(
            client
                .run("ss -HtniO state established dport = :443")
                .contains(" tcp-ulp-mptcp flags:M")
        );
    }
}

#[test]
fn behind_a_redirect_the_rule_is_for_the_port_of_the_socket() {
    for program in VARIANTS {
        let (server, client) = (Namespace::new(), Namespace::new());
        join(&server, &client);
        for tool in families(program) {
            server.run(&format!(
                "{tool} -t nat -A PREROUTING -p tcp --dport 443 -j REDIRECT --to-ports 8443"
            ));
        }
        let listeners =
            server.inside(|| ["10.9.0.1:8443", "[2001:db8:9::1]:8443"].map(mptcp_listener));
        for (port, expected) in [("443", true), ("8443", false)] {
            server.inside(|| xtables(program, TCP, port).install_strip().unwrap());
            for listener in &listeners {
                let mut address = listener.local_addr().unwrap();
                address.set_port(443);
                let seen = is_mptcp_to(address, &server, &client, listener);
                assert_eq!(seen, Some(expected), "{program}: {address}, a rule for {port}");
            }
        }
    }
}

#[test]
fn what_is_only_forwarded_keeps_its_mptcp() {
    for program in VARIANTS {
        let (router, client, server) = (Namespace::new(), Namespace::new(), Namespace::new());
        join(&router, &client);
        join_by(["eth1", "eth0"], 10, &router, &server);
        router.run("echo 1 > /proc/sys/net/ipv4/ip_forward");
        router.run("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        for (namespace, network) in [(&client, 9), (&server, 10)] {
            namespace.run(&format!("ip route add default via 10.{network}.0.1"));
            namespace.run(&format!("ip -6 route add default via 2001:db8:{network}::1"));
        }
        router.inside(|| xtables(program, TCP, "443").install_strip().unwrap());
        for at in ["10.10.0.2:443", "[2001:db8:10::2]:443"] {
            let listener = server.inside(|| mptcp_listener(at));
            assert_eq!(is_mptcp(&server, &client, &listener), Some(true), "{program}: {at}");
        }
    }
}
