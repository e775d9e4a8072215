//! The connection tracking table of a live kernel: which UDP entries go and which stay. The second
//! eye is `conntrack -L`.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

#[path = "support/link.rs"]
mod link;
mod support;

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    ops::RangeInclusive,
    time::Duration,
};

use link::join;
use refract_kernel::{conntrack::Conntrack, networks::Networks};
use support::Namespace;

const PORTS: [RangeInclusive<u16>; 2] = [443..=443, 8443..=8443];

/// A host that tracks what it receives, with UDP servers, and a neighbour with several addresses.
struct Tracked {
    here: Namespace,
    there: Namespace,
}

impl Tracked {
    fn new() -> Self {
        let (here, there) = (Namespace::new(), Namespace::new());
        join(&here, &there);
        there.run("ip addr add 10.9.0.3/24 dev eth0");
        there.run("ip addr add 2001:db8:9::3/64 dev eth0 nodad");
        for tool in ["iptables-nft", "ip6tables-nft"] {
            here.run(&format!("{tool} -A INPUT -m conntrack --ctstate NEW"));
        }
        Self { here, there }
    }

    /// A server that listens at `at`.
    fn serve(&self, at: &str) -> UdpSocket {
        let server = self.here.inside(|| UdpSocket::bind(at).unwrap());
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        server
    }

    /// Sends a datagram and sees it arrive at `server`.
    fn send(&self, from: &str, to: &str, server: &UdpSocket) {
        let client = self.there.inside(|| UdpSocket::bind(from).unwrap());
        client.send_to(b"x", to).unwrap();
        server.recv(&mut [0]).unwrap();
    }

    /// The entries as `conntrack -L` shows them: source, its port, and the port it sent to.
    fn entries(&self) -> BTreeSet<(String, u16, u16)> {
        ["ipv4", "ipv6"]
            .iter()
            .flat_map(|family| {
                let list = self.here.run(&format!("conntrack -L -f {family}"));
                list.lines().map(read_entry).collect::<Vec<_>>()
            })
            .filter(|(_, _, port)| *port != 0)
            .collect()
    }
}

/// `udp 17 29 src=… dst=… sport=… dport=… [UNREPLIED] src=…`: the first of each is the original
/// direction's. Without ports, as with ICMP, they are 0.
fn read_entry(line: &str) -> (String, u16, u16) {
    let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name));
    let port = |name| field(name).map_or(0, |port| port.parse().unwrap());
    (field("src=").unwrap().to_owned(), port("sport="), port("dport="))
}

fn networks(of: &[(&str, u8)]) -> Networks {
    of.iter().map(|(address, prefix)| (address.parse().unwrap(), *prefix)).collect()
}

fn expect(entries: &[(&str, u16, u16)]) -> BTreeSet<(String, u16, u16)> {
    entries.iter().map(|(source, from, to)| ((*source).to_owned(), *from, *to)).collect()
}

#[test]
fn only_the_entries_of_the_sources_on_the_ports_are_deleted() {
    let tracked = Tracked::new();
    let (https, dns) = (tracked.serve("[::]:443"), tracked.serve("[::]:53"));
    tracked.send("10.9.0.2:1001", "10.9.0.1:443", &https);
    tracked.send("10.9.0.2:1002", "10.9.0.1:443", &https);
    tracked.send("10.9.0.2:1003", "10.9.0.1:53", &dns);
    tracked.send("10.9.0.3:1001", "10.9.0.1:443", &https);
    tracked.send("[2001:db8:9::2]:1001", "[2001:db8:9::1]:443", &https);
    tracked.send("[2001:db8:9::2]:1003", "[2001:db8:9::1]:53", &dns);
    tracked.send("[2001:db8:9::3]:1001", "[2001:db8:9::1]:443", &https);
    assert_eq!(tracked.entries().len(), 7);
    let mut conntrack = tracked.here.inside(|| Conntrack::open().unwrap());

    let sources = networks(&[("10.9.0.2", 32), ("2001:db8:9::2", 128)]);
    assert_eq!(deleted(&mut conntrack, &sources, &[], &PORTS), 3);
    let others = expect(&[
        ("10.9.0.2", 1003, 53),
        ("10.9.0.3", 1001, 443),
        ("2001:db8:9::2", 1003, 53),
        ("2001:db8:9::3", 1001, 443),
    ]);
    assert_eq!(tracked.entries(), others);
    assert_eq!(deleted(&mut conntrack, &sources, &[], &PORTS), 0);
    assert_eq!(deleted(&mut conntrack, &Networks::default(), &[], &PORTS), 0);
    assert_eq!(deleted(&mut conntrack, &sources, &[], &[]), 0);
    assert_eq!(tracked.entries(), others);

    let prefix = networks(&[("2001:db8:9::", 64)]);
    assert_eq!(deleted(&mut conntrack, &prefix, &[], &PORTS), 1);
    assert_eq!(tracked.entries().len(), 3);
}

#[test]
fn one_flow_goes_and_its_neighbour_stays() {
    let tracked = Tracked::new();
    let https = tracked.serve("[::]:443");
    for from in ["10.9.0.2:1001", "10.9.0.2:1002"] {
        tracked.send(from, "10.9.0.1:443", &https);
    }
    for from in ["[2001:db8:9::2]:1001", "[2001:db8:9::2]:1002"] {
        tracked.send(from, "[2001:db8:9::1]:443", &https);
    }
    let mut conntrack = tracked.here.inside(|| Conntrack::open().unwrap());
    for peer in ["[::ffff:10.9.0.2]:1001", "[2001:db8:9::2]:1002"] {
        assert_eq!(
            deleted(&mut conntrack, &Networks::default(), &[peer.parse().unwrap()], &[53..=53]),
            0
        );
        assert_eq!(
            deleted(&mut conntrack, &Networks::default(), &[peer.parse().unwrap()], &[443..=443]),
            1
        );
    }
    let rest = expect(&[("10.9.0.2", 1002, 443), ("2001:db8:9::2", 1001, 443)]);
    assert_eq!(tracked.entries(), rest);
}

#[test]
fn the_port_is_the_one_that_the_socket_has_after_a_redirect() {
    let tracked = Tracked::new();
    for tool in ["iptables-nft", "ip6tables-nft"] {
        tracked.here.run(&format!(
            "{tool} -t nat -A PREROUTING -p udp --dport 9000 -j REDIRECT --to-ports 8443"
        ));
        tracked.here.run(&format!(
            "{tool} -t nat -A PREROUTING -p udp --dport 443 -j REDIRECT --to-ports 53"
        ));
    }
    let (protected, dns) = (tracked.serve("[::]:8443"), tracked.serve("[::]:53"));
    tracked.send("10.9.0.2:1001", "10.9.0.1:9000", &protected);
    tracked.send("10.9.0.2:1002", "10.9.0.1:443", &dns);
    tracked.send("[2001:db8:9::2]:1001", "[2001:db8:9::1]:9000", &protected);
    tracked.send("[2001:db8:9::2]:1002", "[2001:db8:9::1]:443", &dns);
    let mut conntrack = tracked.here.inside(|| Conntrack::open().unwrap());
    let everybody = networks(&[("0.0.0.0", 0), ("::", 0)]);
    assert_eq!(deleted(&mut conntrack, &everybody, &[], &PORTS), 2);
    let rest = expect(&[("10.9.0.2", 1002, 443), ("2001:db8:9::2", 1002, 443)]);
    assert_eq!(tracked.entries(), rest);
}

#[test]
fn an_entry_in_a_zone_of_its_own_is_deleted_too() {
    let tracked = Tracked::new();
    tracked.here.run("iptables-nft -t raw -A PREROUTING -p udp -s 10.9.0.2 -j CT --zone 7");
    let https = tracked.serve("0.0.0.0:443");
    tracked.send("10.9.0.2:1001", "10.9.0.1:443", &https);
    tracked.send("10.9.0.3:1001", "10.9.0.1:443", &https);
    assert!(tracked.here.run("conntrack -L -p udp").contains("zone=7"));
    let mut conntrack = tracked.here.inside(|| Conntrack::open().unwrap());
    assert_eq!(deleted(&mut conntrack, &networks(&[("10.9.0.2", 32)]), &[], &PORTS), 1);
    assert_eq!(tracked.entries(), expect(&[("10.9.0.3", 1001, 443)]));
}

#[test]
fn tcp_entries_stay() {
    let tracked = Tracked::new();
    let listener = tracked.here.inside(|| std::net::TcpListener::bind("0.0.0.0:443").unwrap());
    let _client = tracked.there.inside(|| std::net::TcpStream::connect("10.9.0.1:443").unwrap());
    let _server = listener.accept().unwrap();
    let mut conntrack = tracked.here.inside(|| Conntrack::open().unwrap());
    assert_eq!(deleted(&mut conntrack, &networks(&[("10.9.0.2", 32)]), &[], &PORTS), 0);
    assert_eq!(tracked.entries().len(), 1);
}

#[test]
fn where_nothing_is_tracked_there_is_nothing_to_delete() {
    let namespace = Namespace::new();
    let mut conntrack = namespace.inside(|| Conntrack::open().unwrap());
    assert_eq!(deleted(&mut conntrack, &networks(&[("10.9.0.2", 32)]), &[], &PORTS), 0);
}

/// How many entries a deletion took.
fn deleted(
    conntrack: &mut Conntrack,
    sources: &Networks,
    flows: &[SocketAddr],
    ports: &[RangeInclusive<u16>],
) -> usize {
    let mut clients = Vec::new();
    conntrack.delete_udp(sources, flows, ports, |client| clients.push(client)).unwrap();
    clients.len()
}
