//! TCP connections on a live kernel: what is found, what is reset, and what must never be hurt.
//! The second eye is the peer itself and `ss`.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

#[path = "support/link.rs"]
mod link;
mod support;
#[path = "support/tcp.rs"]
mod tcp;

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    ops::RangeInclusive,
    thread,
    time::Duration,
};

use link::join;
use refract_kernel::{
    netlink::Dumped,
    networks::Networks,
    sock_diag::{Connection, DestroySupport, SockDiag, TcpState},
    sock_filter::ConnectionFilter,
};
use rustix::{
    net::{AddressFamily, SocketType, bind, connect, socket, sockopt},
    thread::{CapabilitySet, capabilities, set_capabilities},
};
use support::Namespace;
use tcp::{LISTENERS, address, assert_accepts, assert_alive, close_in_turn, pair, patient};

const PORTS: [RangeInclusive<u16>; 1] = [443..=443];

/// A connection from `source` (port 0: any), which need not be on an interface.
fn connected_from(source: SocketAddr, to: SocketAddr) -> TcpStream {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let client = socket(family, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_reuseaddr(&client, true).unwrap();
    bind(&client, &source).unwrap();
    connect(&client, &to).unwrap();
    patient(TcpStream::from(client))
}

#[track_caller]
fn found(diag: &mut SockDiag, client: &TcpStream) -> Option<Connection> {
    diag.find(client.peer_addr().unwrap(), client.local_addr().unwrap()).unwrap()
}

/// `ss -tanH` in `namespace` shows the server's end of `client`.
fn ss_shows(namespace: &Namespace, client: &TcpStream) -> bool {
    let port = client.local_addr().unwrap().port();
    !namespace.run(&format!("ss -tanH sport = :443 and dport = :{port}")).is_empty()
}

fn dumped(
    diag: &mut SockDiag,
    filter: &ConnectionFilter<'_>,
) -> BTreeSet<(SocketAddr, SocketAddr)> {
    let mut found = BTreeSet::new();
    let whole = diag.connections(filter, |it| {
        assert!(found.insert((it.local(), it.remote())), "{it} came twice");
    });
    assert_eq!(whole.unwrap(), Dumped::Whole);
    found
}

#[test]
fn a_connection_is_found_and_reset_on_every_kind_of_listener() {
    for (listen, to) in LISTENERS {
        let namespace = Namespace::new();
        namespace.inside(|| {
            let listener = TcpListener::bind(listen).unwrap();
            let mut diag = SockDiag::open().unwrap();
            let (mut client, mut server) = pair(&listener, address(to));
            let (mut other_client, mut other_server) = pair(&listener, address(to));
            assert!(ss_shows(&namespace, &client));

            let connection = found(&mut diag, &client).unwrap();
            assert_eq!(connection.state(), TcpState::Established);
            assert_eq!(connection.local(), client.peer_addr().unwrap());
            assert_eq!(connection.remote(), client.local_addr().unwrap());
            assert_ne!(connection.cookie(), 0);
            assert!(diag.destroy(&connection).unwrap());

            let mut byte = [0];
            assert_eq!(client.read(&mut byte).unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(server.read(&mut byte).unwrap_err().kind(), ErrorKind::ConnectionAborted);
            assert!(!ss_shows(&namespace, &client));
            assert!(!diag.destroy(&connection).unwrap(), "it was gone already");
            let again = diag.find(connection.local(), connection.remote());
            assert_eq!(again.unwrap(), None);
            assert_alive(&mut other_client, &mut other_server);
            assert_accepts(&listener, address(to));
        });
    }
}

#[test]
fn an_ipv4_client_of_a_dual_stack_listener_is_found_by_its_mapped_address_too() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let listener = TcpListener::bind("[::]:443").unwrap();
        let mut diag = SockDiag::open().unwrap();
        let (client, server) = pair(&listener, address("127.0.0.1:443"));
        // This is how the server itself names the two ends.
        let (local, remote) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
        assert!(local.is_ipv6() && remote.is_ipv6());
        assert_eq!(diag.find(local, remote).unwrap(), found(&mut diag, &client));
        assert!(found(&mut diag, &client).is_some());

        let remotes = Networks::from_iter([("127.0.0.1".parse().unwrap(), 32)]);
        let expected = (client.peer_addr().unwrap(), client.local_addr().unwrap());
        let filter = ConnectionFilter::on(&PORTS).from(&remotes);
        assert_eq!(dumped(&mut diag, &filter), BTreeSet::from([expected]));
    });
}

#[test]
fn a_stale_tuple_finds_nothing_and_leaves_the_listener_alone() {
    for (listen, to) in LISTENERS {
        let namespace = Namespace::new();
        namespace.inside(|| {
            let listener = TcpListener::bind(listen).unwrap();
            let mut diag = SockDiag::open().unwrap();
            let (client, server) = pair(&listener, address(to));
            let connection = found(&mut diag, &client).unwrap();
            let ends = (connection.local(), connection.remote());
            // The client closes first, so that TIME_WAIT is on its side and nothing is on ours.
            close_in_turn(&client, &server);

            assert_eq!(diag.find(ends.0, ends.1).unwrap(), None);
            assert!(!diag.destroy(&connection).unwrap());
            // Never there at all.
            let nobody = SocketAddr::new(ends.1.ip(), 9);
            assert_eq!(diag.find(ends.0, nobody).unwrap(), None);
            assert_eq!(diag.find(ends.0, SocketAddr::new(ends.1.ip(), 0)).unwrap(), None);
            assert_accepts(&listener, address(to));
        });
    }
}

#[test]
fn a_connection_that_closes_while_it_is_reset_never_costs_the_listener() {
    for (listen, to) in LISTENERS {
        let namespace = Namespace::new();
        namespace.inside(|| {
            let listener = TcpListener::bind(listen).unwrap();
            let mut diag = SockDiag::open().unwrap();
            let (to_closer, closing) = std::sync::mpsc::sync_channel::<(TcpStream, TcpStream)>(0);
            let closer = thread::spawn(move || {
                for (client, server) in closing {
                    drop(client);
                    drop(server);
                }
            });
            let (mut reset, mut not_found, mut gone_between) = (0, 0, 0);
            for turn in 0..10_000 {
                // Every other one is looked up while it closes; the rest is reset at any time of
                // its closing, and half of that after a second look.
                let (client, server) = pair(&listener, address(to));
                let ends = (client.peer_addr().unwrap(), client.local_addr().unwrap());
                let before = (turn % 2 == 1).then(|| found(&mut diag, &client).unwrap());
                to_closer.send((client, server)).unwrap();
                for _ in 0..turn % 1_500 {
                    std::hint::spin_loop();
                }
                let observed = match &before {
                    Some(_) if turn % 4 == 1 => before,
                    Some(before) => diag.observe_again(before).unwrap().map(|it| it.connection),
                    None => diag.observe(ends.0, ends.1, 0).unwrap().map(|it| it.connection),
                };
                match observed.map(|connection| diag.destroy(&connection).unwrap()) {
                    Some(true) => reset += 1,
                    Some(false) => gone_between += 1,
                    None => not_found += 1,
                }
            }
            drop(to_closer);
            closer.join().unwrap();
            let outcomes = [reset, not_found, gone_between];
            assert!(outcomes.iter().all(|count| *count > 0), "no race: {outcomes:?}");
            assert_accepts(&listener, address(to));
        });
    }
}

#[test]
fn the_cookie_of_an_earlier_connection_does_not_hit_a_later_one_with_the_same_tuple() {
    for (listen, to) in LISTENERS {
        let namespace = Namespace::new();
        namespace.inside(|| {
            let listener = TcpListener::bind(listen).unwrap();
            let mut diag = SockDiag::open().unwrap();
            let source = SocketAddr::new(address(to).ip(), 40_000);
            let earlier = connected_from(source, address(to));
            let _server = listener.accept().unwrap();
            let before = found(&mut diag, &earlier).unwrap();
            assert!(diag.destroy(&before).unwrap());
            drop(earlier);

            let mut later = connected_from(source, address(to));
            let mut server = patient(listener.accept().unwrap().0);
            let after = found(&mut diag, &later).unwrap();
            assert_eq!((after.local(), after.remote()), (before.local(), before.remote()));
            assert_ne!(after.cookie(), before.cookie());
            assert!(!diag.destroy(&before).unwrap());
            assert_alive(&mut later, &mut server);
        });
    }
}

#[test]
fn half_closed_and_closed_connections_are_what_they_are() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let listener = TcpListener::bind("[::]:443").unwrap();
        let mut diag = SockDiag::open().unwrap();
        let to = address("127.0.0.1:443");
        let mut rest = Vec::new();

        // The client closes one way: CLOSE_WAIT here.
        let (mut client, server) = pair(&listener, to);
        client.shutdown(Shutdown::Write).unwrap();
        (&server).read_to_end(&mut rest).unwrap();
        let half = found(&mut diag, &client).unwrap();
        assert_eq!(half.state(), TcpState::CloseWait);
        assert!(dumped(&mut diag, &ConnectionFilter::on(&PORTS)).contains(&(to, half.remote())));
        assert!(diag.destroy(&half).unwrap());
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);

        // The server closes one way: FIN_WAIT2 here, once the client's next byte says that it knows.
        let (mut client, mut server) = pair(&listener, to);
        server.shutdown(Shutdown::Write).unwrap();
        client.read_to_end(&mut rest).unwrap();
        client.write_all(b"c").unwrap();
        server.read_exact(&mut [0]).unwrap();
        let half = found(&mut diag, &client).unwrap();
        assert_eq!(half.state(), TcpState::FinWait2);
        assert!(diag.destroy(&half).unwrap());
        // To a side that has seen the end of the stream, a reset is a broken pipe.
        assert_eq!(client.write(b"c").unwrap_err().kind(), ErrorKind::BrokenPipe);

        // Both close, the server first: TIME_WAIT here.
        let (client, server) = pair(&listener, to);
        let ends = (client.peer_addr().unwrap(), client.local_addr().unwrap());
        close_in_turn(&server, &client);
        let over = diag.find(ends.0, ends.1).unwrap().unwrap();
        assert_eq!(over.state(), TcpState::TimeWait);
        assert!(!dumped(&mut diag, &ConnectionFilter::on(&PORTS)).contains(&ends));
        assert!(diag.destroy(&over).unwrap());
        assert_eq!(diag.find(ends.0, ends.1).unwrap(), None);
        assert_accepts(&listener, to);
    });
}

#[test]
fn a_handshake_that_is_not_finished_is_found_and_dropped() {
    let namespace = Namespace::new();
    // The server never sees the third packet.
    namespace.run(
        "iptables-nft -A INPUT -p tcp --dport 443 --tcp-flags SYN,ACK ACK -m mark ! --mark 1 -j DROP",
    );
    namespace.inside(|| {
        let listener = TcpListener::bind("[::]:443").unwrap();
        let mut diag = SockDiag::open().unwrap();
        let client = TcpStream::connect("127.0.0.1:443").unwrap();
        let half = found(&mut diag, &client).unwrap();
        assert_eq!(half.state(), TcpState::SynReceived);
        let ends = (half.local(), half.remote());
        assert_eq!(dumped(&mut diag, &ConnectionFilter::on(&PORTS)), BTreeSet::from([ends]));
        assert!(diag.destroy(&half).unwrap());
        assert_eq!(found(&mut diag, &client), None);
        namespace.run("iptables-nft -F INPUT");
        assert_accepts(&listener, address("127.0.0.1:443"));
    });
}

#[test]
fn what_other_sources_and_other_ports_have_is_not_touched() {
    let (here, there) = (Namespace::new(), Namespace::new());
    join(&here, &there);
    there.run("ip addr add 10.9.0.3/24 dev eth0");
    let listener = here.inside(|| TcpListener::bind("[::]:443").unwrap());
    let other_port = here.inside(|| TcpListener::bind("[::]:80").unwrap());
    let mut diag = here.inside(|| SockDiag::open().unwrap());
    let from = |source: &str, to: &str| {
        let (source, to) = (address(source), address(to));
        there.inside(|| connected_from(source, to))
    };
    let mut banned = from("10.9.0.2:0", "10.9.0.1:443");
    let _banned_server = listener.accept().unwrap();
    let mut neighbour = from("10.9.0.3:0", "10.9.0.1:443");
    let mut neighbour_server = patient(listener.accept().unwrap().0);
    let mut v6 = from("[2001:db8:9::2]:0", "[2001:db8:9::1]:443");
    let mut v6_server = patient(listener.accept().unwrap().0);
    let mut admin = from("10.9.0.2:0", "10.9.0.1:80");
    let mut admin_server = patient(other_port.accept().unwrap().0);

    let remotes = Networks::from_iter([("10.9.0.2".parse().unwrap(), 32)]);
    let filter = ConnectionFilter::on(&PORTS).from(&remotes);
    let mut connections = Vec::new();
    let whole = diag.connections(&filter, |connection| connections.push(connection));
    assert_eq!(whole.unwrap(), Dumped::Whole);
    assert_eq!(connections.len(), 1);
    for connection in &connections {
        assert!(diag.destroy(connection).unwrap());
    }
    assert_eq!(banned.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_alive(&mut neighbour, &mut neighbour_server);
    assert_alive(&mut v6, &mut v6_server);
    assert_alive(&mut admin, &mut admin_server);
}

#[test]
fn a_dump_gives_exactly_the_wanted_connections_however_many_remotes_there_are() {
    const EACH: u16 = 400;
    let namespace = Namespace::new();
    namespace.run("ip -6 route add local fd00::/64 dev lo");
    namespace.run("sysctl -qw net.ipv6.ip_nonlocal_bind=1");
    namespace.inside(|| {
        let v4_source = |net: u8, n: u16| {
            let [high, low] = n.to_be_bytes();
            IpAddr::from(Ipv4Addr::new(127, net, high, low))
        };
        let v6_source = |n: u16| IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, n));
        let dual = TcpListener::bind("[::]:443").unwrap();
        let plain = TcpListener::bind("0.0.0.0:8443").unwrap();
        let other = TcpListener::bind("[::]:80").unwrap();
        let mut open: Vec<(TcpStream, TcpStream)> = Vec::new();
        let mut open_from = |listener: &TcpListener, source: IpAddr, to: &str| {
            let client = connected_from((source, 0).into(), address(to));
            open.push((client, listener.accept().unwrap().0));
        };
        for n in 0..EACH {
            open_from(&dual, v4_source(1, n), "127.0.0.1:443");
            open_from(&plain, v4_source(2, n), "127.0.0.1:8443");
            open_from(&dual, v6_source(n), "[::1]:443");
            // The same sources on a port that is not protected.
            if n % 10 == 0 {
                open_from(&other, v4_source(1, n), "127.0.0.1:80");
                open_from(&other, v6_source(n), "[::1]:80");
            }
        }
        let ends: Vec<_> = open
            .iter()
            .map(|(client, _)| (client.peer_addr().unwrap(), client.local_addr().unwrap()))
            .collect();
        let mut diag = SockDiag::open().unwrap();
        let sole = [443..=443];
        let several = [443..=443, 2000..=2010, 8443..=8443];
        let most = [1000..=9000];
        // More than the kernel is asked to test.
        let scattered: Vec<_> = (0..50).map(|n| 443 + 20 * n..=443 + 20 * n).collect();
        for ports in [&sole[..], &several, &most, &scattered] {
            let protected = |local: &SocketAddr| ports.iter().any(|it| it.contains(&local.port()));
            for count in [1, 12, 30, 500, 2000] {
                // Every other one is connected, as far as there are so many; families in turn.
                let remotes: Vec<IpAddr> = (0..count)
                    .map(|n| match n % 3 {
                        0 => v4_source(1, n),
                        1 => v4_source(2, n),
                        _ => v6_source(n),
                    })
                    .collect();
                let networks =
                    remotes.iter().map(|ip| (*ip, if ip.is_ipv4() { 32 } else { 128 })).collect();
                let expected: BTreeSet<_> = ends
                    .iter()
                    .filter(|(local, remote)| protected(local) && remotes.contains(&remote.ip()))
                    .copied()
                    .collect();
                let filter = ConnectionFilter::on(ports).from(&networks);
                assert_eq!(dumped(&mut diag, &filter), expected, "{ports:?}, {count} remotes");
                assert!(ports != sole || !expected.is_empty());
            }
            // Networks, and no restriction at all.
            let networks = Networks::from_iter([
                ("127.1.1.0".parse().unwrap(), 24),
                ("fd00::1:0".parse().unwrap(), 121),
            ]);
            let expected: BTreeSet<_> = ends
                .iter()
                .filter(|(local, remote)| protected(local) && networks.contains(remote.ip()))
                .copied()
                .collect();
            assert_eq!(dumped(&mut diag, &ConnectionFilter::on(ports).from(&networks)), expected);
            let all: BTreeSet<_> = ends.iter().filter(|it| protected(&it.0)).copied().collect();
            assert_eq!(dumped(&mut diag, &ConnectionFilter::on(ports)), all);
        }
        assert_eq!(dumped(&mut diag, &ConnectionFilter::on(&[])).len(), 0);
        let nobody = Networks::default();
        assert_eq!(dumped(&mut diag, &ConnectionFilter::on(&sole).from(&nobody)).len(), 0);
    });
}

#[test]
fn a_udp_server_on_the_same_port_is_never_touched() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let server = UdpSocket::bind("[::]:443").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect("127.0.0.1:443").unwrap();
        client.send(b"1").unwrap();
        assert_eq!(server.recv(&mut [0]).unwrap(), 1);

        let mut diag = SockDiag::open().unwrap();
        let ends = (client.peer_addr().unwrap(), client.local_addr().unwrap());
        assert_eq!(diag.find(ends.0, ends.1).unwrap(), None);
        assert_eq!(diag.find(ends.1, ends.0).unwrap(), None);
        assert_eq!(dumped(&mut diag, &ConnectionFilter::on(&PORTS)).len(), 0);
        client.send(b"2").unwrap();
        assert_eq!(server.recv(&mut [0]).unwrap(), 1);
    });
}

#[test]
fn the_trial_of_a_reset_says_whether_it_works_and_harms_nobody() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let listeners: Vec<_> =
            ["127.0.0.1:443", "[::]:8443"].map(|at| TcpListener::bind(at).unwrap()).into();
        let mut diag = SockDiag::open().unwrap();
        let (mut client, mut server) = pair(&listeners[0], address("127.0.0.1:443"));
        assert_eq!(diag.supports_destroy().unwrap(), DestroySupport::Works);
        assert_alive(&mut client, &mut server);
        assert_accepts(&listeners[0], address("127.0.0.1:443"));
        assert_accepts(&listeners[1], address("127.0.0.1:8443"));

        // Capabilities are the thread's, and this thread ends with the namespace.
        let mut mine = capabilities(None).unwrap();
        mine.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, mine).unwrap();
        assert_eq!(diag.supports_destroy().unwrap(), DestroySupport::NotPermitted);
        let connection = found(&mut diag, &client).expect("to look takes no capability");
        let refusal = diag.destroy(&connection).unwrap_err().to_string();
        assert!(refusal.contains("CAP_NET_ADMIN"), "{refusal}");
        assert_alive(&mut client, &mut server);
    });
}
