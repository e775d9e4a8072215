//! Addresses, local networks and gateways of a live namespace, and the news about them. The second
//! eye is `ip`, which makes them.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

#[path = "support/link.rs"]
mod link;
mod support;

use std::net::IpAddr;

use link::join;
use refract_kernel::host::{CAPACITY, HostEvents, HostNetworks};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use support::Namespace;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[track_caller]
fn look(host: &mut HostEvents) -> HostNetworks {
    let seen = host.look().unwrap();
    assert!(seen.is_complete);
    seen
}

/// An event waits, as `epoll` would see it.
fn is_readable(host: &HostEvents) -> bool {
    poll(&mut [PollFd::new(host, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
        .unwrap()
        == 1
}

#[test]
fn addresses_come_and_go_and_are_noticed() {
    let (here, there) = (Namespace::new(), Namespace::new());
    join(&here, &there);
    let mut host = here.inside(|| HostEvents::subscribe().unwrap());
    let before = look(&mut host);
    for own in ["10.9.0.1", "2001:db8:9::1", "127.0.0.1", "::1"] {
        assert!(before.addresses.contains(&ip(own)), "{own} is missing");
    }
    assert!(!before.addresses.contains(&ip("10.9.0.2")), "the neighbour's");
    assert!(before.networks.contains(&(ip("127.0.0.0"), 8)));
    assert!(before.gateways.is_empty());

    for (prefix, own) in [("203.0.113.7/32", "203.0.113.7"), ("2001:db8:7::7/64", "2001:db8:7::7")]
    {
        host.changed().unwrap();
        assert!(!is_readable(&host) && !host.changed().unwrap());
        here.run(&format!("ip addr add {prefix} dev eth0"));
        assert!(is_readable(&host) && host.changed().unwrap());
        assert!(look(&mut host).addresses.contains(&ip(own)));
        here.run(&format!("ip addr del {prefix} dev eth0"));
        assert!(is_readable(&host) && host.changed().unwrap());
        assert!(!look(&mut host).addresses.contains(&ip(own)));
    }
}

#[test]
fn the_own_end_of_a_point_to_point_link_is_ours_and_the_other_is_not() {
    let (here, there) = (Namespace::new(), Namespace::new());
    join(&here, &there);
    here.run("ip addr add 192.0.2.1 peer 192.0.2.2 dev eth0");
    here.run("ip addr add 2001:db8:5::1 peer 2001:db8:5::2 dev eth0");
    let seen = look(&mut here.inside(|| HostEvents::subscribe().unwrap()));
    for (own, other) in [("192.0.2.1", "192.0.2.2"), ("2001:db8:5::1", "2001:db8:5::2")] {
        assert!(seen.addresses.contains(&ip(own)) && !seen.addresses.contains(&ip(other)));
    }
}

#[test]
fn a_network_routed_to_this_host_is_its_own() {
    let here = Namespace::new();
    let mut host = here.inside(|| HostEvents::subscribe().unwrap());
    host.changed().unwrap();
    for (route, address, length) in [
        ("ip -6 route add local 2001:db8:8::/64 dev lo", "2001:db8:8::", 64),
        ("ip route add local 198.51.100.0/24 dev lo table 77", "198.51.100.0", 24),
        ("ip route add local default dev lo table 100", "0.0.0.0", 0),
        ("ip -6 route add local default dev lo table 100", "::", 0),
    ] {
        here.run(route);
        assert!(host.changed().unwrap(), "{route}");
        assert!(look(&mut host).networks.contains(&(ip(address), length)), "{route}");
    }
}

#[test]
fn the_gateways_of_default_routes_are_found_wherever_they_are_written() {
    let (here, there) = (Namespace::new(), Namespace::new());
    join(&here, &there);
    let mut host = here.inside(|| HostEvents::subscribe().unwrap());
    for (route, gateways) in [
        ("ip route add default via 10.9.0.2", &["10.9.0.2"][..]),
        ("ip -6 route add default via fe80::2 dev eth0", &["fe80::2"]),
        ("ip route add default via 10.9.0.12 table 77", &["10.9.0.12"]),
        ("ip route add default via inet6 fe80::7 dev eth0 table 78", &["fe80::7"]),
        (
            "ip route add default table 79 nexthop via 10.9.0.21 nexthop via 10.9.0.22",
            &["10.9.0.21", "10.9.0.22"],
        ),
        (
            "ip -6 route add default table 79 nexthop via 2001:db8:9::21 nexthop via 2001:db8:9::22",
            &["2001:db8:9::21", "2001:db8:9::22"],
        ),
    ] {
        host.changed().unwrap();
        here.run(route);
        assert!(host.changed().unwrap(), "{route}");
        let seen = look(&mut host).gateways;
        for gateway in gateways {
            assert!(seen.contains(&ip(gateway)), "{route}: {seen:?}");
        }
    }
}

#[test]
fn a_route_to_somewhere_else_is_no_news() {
    let (here, there) = (Namespace::new(), Namespace::new());
    join(&here, &there);
    let mut host = here.inside(|| HostEvents::subscribe().unwrap());
    host.changed().unwrap();
    here.run("ip route add 198.51.100.0/24 via 10.9.0.2");
    assert!(is_readable(&host), "the kernel tells it");
    assert!(!host.changed().unwrap(), "and it does not concern this host");
    assert!(look(&mut host).gateways.is_empty());
}

#[test]
fn a_host_with_more_networks_than_are_kept_says_so() {
    let here = Namespace::new();
    let batch = tempfile::NamedTempFile::new().unwrap();
    let routes: Vec<String> = (0..=CAPACITY)
        .map(|n| format!("route add local 2001:db8:{:x}:{:x}::/64 dev lo", n >> 16, n & 0xffff))
        .collect();
    std::fs::write(&batch, routes.join("\n")).unwrap();
    here.run(&format!("ip -6 -batch {}", batch.path().display()));
    let seen = here.inside(|| HostEvents::subscribe().unwrap()).look().unwrap();
    assert!(!seen.is_complete);
    let kept = seen.addresses.len() + seen.networks.len() + seen.gateways.len();
    assert_eq!(kept, CAPACITY);
    assert!(seen.addresses.contains(&ip("127.0.0.1")), "the interfaces come first");
}
