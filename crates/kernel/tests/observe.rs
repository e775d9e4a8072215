//! What a live kernel says has moved on a connection, and that it is that connection's. The second
//! eye is `ss`.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;
#[path = "support/tcp.rs"]
mod tcp;

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    ops::RangeInclusive,
    time::Duration,
};

use refract_kernel::{
    activity::Activity,
    lookups::Lookups,
    netlink::Dumped,
    sock_diag::{Observed, SockDiag, TcpState},
    sock_filter::ConnectionFilter,
};
use rustix::net::{
    AddressFamily, SocketType, bind, connect, ipproto, listen, shutdown, socket, sockopt,
};
use socket2::SockRef;
use support::Namespace;
use tcp::{LISTENERS, address, assert_accepts, assert_alive, close_in_turn, pair, patient};

const PORTS: [RangeInclusive<u16>; 1] = [443..=443];
/// The index of the loopback device, the first in every namespace.
const LOOPBACK: u32 = 1;

#[track_caller]
fn observed(diag: &mut SockDiag, client: &TcpStream) -> Observed {
    let ends = (client.peer_addr().unwrap(), client.local_addr().unwrap());
    diag.observe(ends.0, ends.1, 0).unwrap().unwrap()
}

#[track_caller]
fn counters(observed: &Observed) -> (u64, u64) {
    let Activity { received, acknowledged, .. } = observed.activity.unwrap();
    (received, acknowledged)
}

/// Observes until `wanted` holds, which time or the kernel's next packet makes true.
#[track_caller]
fn observed_until(
    diag: &mut SockDiag,
    client: &TcpStream,
    wanted: impl Fn(&Observed) -> bool,
) -> Observed {
    let begun = std::time::Instant::now();
    loop {
        let now = observed(diag, client);
        if wanted(&now) {
            return now;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "still {now:?}");
    }
}

#[test]
fn the_counters_are_the_payload_that_both_sides_moved() {
    for (listen, to) in LISTENERS {
        let namespace = Namespace::new();
        namespace.inside(|| {
            let listener = TcpListener::bind(listen).unwrap();
            let mut diag = SockDiag::open().unwrap();
            let (mut client, mut server) = pair(&listener, address(to));
            let fresh = observed(&mut diag, &client);
            assert_eq!(fresh.connection.state(), TcpState::Established);
            assert_eq!(fresh.connection.interface(), 0);
            assert_eq!(counters(&fresh), (0, 0), "the handshake is no payload");

            server.write_all(&[1; 500]).unwrap();
            client.read_exact(&mut [0; 500]).unwrap();
            // Carries the acknowledgement.
            client.write_all(&[2; 1_000]).unwrap();
            server.read_exact(&mut [0; 1_000]).unwrap();
            let moved = observed(&mut diag, &client);
            assert_eq!(counters(&moved), (1_000, 500));
            assert_eq!(moved.connection, fresh.connection);
            assert_eq!(
                diag.observe_again(&fresh.connection).unwrap().map(|it| counters(&it)),
                Some((1_000, 500))
            );

            let port = client.local_addr().unwrap().port();
            let shown = namespace.run(&format!("ss -tniH sport = :443 and dport = :{port}"));
            assert!(shown.contains(" bytes_received:1000 "), "{shown}");
            assert!(shown.contains(" bytes_acked:500 "), "{shown}");
            // Neither end read everything: what came counts, not what was read.
            client.write_all(&[3; 10]).unwrap();
            let more = observed_until(&mut diag, &client, |it| counters(it).0 != 1_000);
            assert_eq!(counters(&more), (1_010, 500));
        });
    }
}

#[test]
fn the_ages_are_those_of_the_last_data_and_of_the_last_acknowledgement() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let listener = TcpListener::bind("[::]:443").unwrap();
        let mut diag = SockDiag::open().unwrap();
        let (mut client, mut server) = pair(&listener, address("127.0.0.1:443"));
        assert_alive(&mut client, &mut server);
        let age = Duration::from_millis(100);
        let quiet = observed_until(&mut diag, &client, |it| {
            let activity = it.activity.unwrap();
            activity.last_received >= age && activity.last_acknowledged >= age
        });
        assert!(quiet.activity.unwrap().last_received < Duration::from_secs(5));
        // The server speaks: only the acknowledgement is young.
        server.write_all(b"server").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
        let heard = observed_until(&mut diag, &client, |it| counters(it).1 == 7).activity.unwrap();
        assert!(heard.last_received >= age, "{heard:?}");
        assert!(heard.last_acknowledged < heard.last_received, "{heard:?}");
        // The client speaks: so is the data.
        client.write_all(b"client").unwrap();
        server.read_exact(&mut [0; 6]).unwrap();
        let answered = observed(&mut diag, &client).activity.unwrap();
        assert!(answered.last_received < heard.last_received, "{answered:?} after {heard:?}");
    });
}

#[test]
fn a_fin_is_counted_off_in_every_state_and_the_cookie_stays() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let listener = TcpListener::bind("[::]:443").unwrap();
        let mut diag = SockDiag::open().unwrap();
        let to = address("127.0.0.1:443");
        let is = |state| move |it: &Observed| it.connection.state() == state;

        // The client closes first, then this side: CLOSE_WAIT and nothing.
        let (mut client, mut server) = pair(&listener, to);
        assert_alive(&mut client, &mut server);
        client.shutdown(Shutdown::Write).unwrap();
        let half = observed_until(&mut diag, &client, is(TcpState::CloseWait));
        assert_eq!(counters(&half), (1, 1));
        close_in_turn(&client, &server);
        assert_eq!(diag.observe_again(&half.connection).unwrap(), None);

        // This side closes first: FIN_WAIT2, then TIME_WAIT, which counts nothing.
        let (mut client, mut server) = pair(&listener, to);
        assert_alive(&mut client, &mut server);
        let before = observed(&mut diag, &client);
        server.shutdown(Shutdown::Write).unwrap();
        let half = observed_until(&mut diag, &client, is(TcpState::FinWait2));
        assert_eq!(counters(&half), (1, 1));
        close_in_turn(&server, &client);
        let over = diag.observe_again(&before.connection).unwrap().unwrap();
        assert_eq!(over.connection.state(), TcpState::TimeWait);
        assert!(over.connection.state().has_completed_handshake());
        assert_eq!(over.connection.cookie(), before.connection.cookie());
        assert_eq!(over.activity, None);
        assert!(diag.destroy(&over.connection).unwrap());

        // This side's FIN is not acknowledged while the client does not hear it: FIN_WAIT1, then
        // CLOSING, since the client closes too.
        let (mut client, mut server) = pair(&listener, to);
        assert_alive(&mut client, &mut server);
        observed_until(&mut diag, &client, |it| counters(it) == (1, 1));
        namespace.run("iptables-nft -A INPUT -p tcp --sport 443 -j DROP");
        server.shutdown(Shutdown::Write).unwrap();
        let half = observed(&mut diag, &client);
        assert_eq!(half.connection.state(), TcpState::FinWait1);
        assert_eq!(counters(&half), (1, 1));
        client.shutdown(Shutdown::Write).unwrap();
        let half = observed(&mut diag, &client);
        assert_eq!(half.connection.state(), TcpState::Closing);
        assert_eq!(counters(&half), (1, 1));

        // Likewise after the client closed: LAST_ACK.
        namespace.run("iptables-nft -F INPUT");
        let (mut client, mut server) = pair(&listener, to);
        assert_alive(&mut client, &mut server);
        client.shutdown(Shutdown::Write).unwrap();
        observed_until(&mut diag, &client, is(TcpState::CloseWait));
        namespace.run("iptables-nft -A INPUT -p tcp --sport 443 -j DROP");
        server.shutdown(Shutdown::Write).unwrap();
        let half = observed(&mut diag, &client);
        assert_eq!(half.connection.state(), TcpState::LastAck);
        assert_eq!(counters(&half), (1, 1));
    });
}

#[test]
fn a_handshake_that_is_not_finished_has_no_counters_and_its_cookie_stays() {
    let namespace = Namespace::new();
    // The server never sees the third packet.
    namespace.run("iptables-nft -A INPUT -p tcp --dport 443 --tcp-flags SYN,ACK ACK -j DROP");
    namespace.inside(|| {
        let listener = TcpListener::bind("[::]:443").unwrap();
        let mut diag = SockDiag::open().unwrap();
        let mut client = patient(TcpStream::connect("127.0.0.1:443").unwrap());
        let half = observed(&mut diag, &client);
        assert_eq!(half.connection.state(), TcpState::SynReceived);
        assert!(!half.connection.state().has_completed_handshake());
        assert_eq!(half.activity, None);

        namespace.run("iptables-nft -F INPUT");
        client.write_all(b"c").unwrap();
        let mut server = patient(listener.accept().unwrap().0);
        server.read_exact(&mut [0]).unwrap();
        let whole = diag.observe_again(&half.connection).unwrap().unwrap();
        assert_eq!(whole.connection.state(), TcpState::Established);
        assert_eq!(whole.connection.cookie(), half.connection.cookie());
        assert_eq!(counters(&whole), (1, 0));
    });
}

#[test]
fn a_listener_is_never_observed_and_another_connection_is_not_taken_for_the_earlier() {
    for (listen, to) in LISTENERS {
        let namespace = Namespace::new();
        namespace.inside(|| {
            let listener = TcpListener::bind(listen).unwrap();
            let mut diag = SockDiag::open().unwrap();
            let to = address(to);
            let source = SocketAddr::new(to.ip(), 40_000);
            let connected = || {
                let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let client = socket(family, SocketType::STREAM, None).unwrap();
                sockopt::set_socket_reuseaddr(&client, true).unwrap();
                bind(&client, &source).unwrap();
                connect(&client, &to).unwrap();
                (patient(TcpStream::from(client)), patient(listener.accept().unwrap().0))
            };
            assert_eq!(diag.observe(to, source, 0).unwrap(), None, "nobody yet");
            let (client, server) = connected();
            let earlier = diag.observe(to, source, 0).unwrap().unwrap().connection;
            assert!(diag.destroy(&earlier).unwrap());
            assert_eq!(diag.observe(to, source, 0).unwrap(), None);
            assert_eq!(diag.observe_again(&earlier).unwrap(), None);
            drop((client, server));

            let (mut client, mut server) = connected();
            let later = diag.observe(to, source, 0).unwrap().unwrap().connection;
            assert_eq!((later.local(), later.remote()), (earlier.local(), earlier.remote()));
            assert_eq!(diag.observe_again(&earlier).unwrap(), None);
            assert!(diag.observe_again(&later).unwrap().is_some());
            assert_alive(&mut client, &mut server);
            assert_accepts(&listener, to);
        });
    }
}

#[test]
fn of_many_ends_asked_about_at_once_those_are_given_that_have_the_peer() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let listener = TcpListener::bind("0.0.0.0:443").unwrap();
        let mut diag = SockDiag::open().unwrap();
        let right = address("127.0.0.77:443");
        let (mut client, mut server) = pair(&listener, right);
        let other = pair(&listener, address("127.0.0.5:443"));
        let remote = client.local_addr().unwrap();
        // More than go into one datagram. At each of them the kernel finds at least the listener.
        let ends = (1..=90).map(|last| (SocketAddr::from(([127, 0, 0, last], 443)), 0));
        let ends: Vec<_> = ends.chain([(address("[::1]:443"), 0)]).collect();
        let mut lookups = Lookups::open().unwrap();
        for _ in 0..3 {
            let mut given = Vec::new();
            lookups.observe(ends.clone(), remote, |it| given.push(it.connection)).unwrap();
            assert_eq!(given, [observed(&mut diag, &client).connection]);
            assert_eq!(given[0].local(), right);
            // No question is answered with what was left over.
            let others = || ends.iter().copied().filter(|(local, _)| *local != right);
            lookups.observe(others(), remote, |it| panic!("{it:?}")).unwrap();
            assert_alive(&mut client, &mut server);
        }

        drop((other, server, listener));
        let nobody = address("127.0.0.1:9");
        lookups.observe(ends, nobody, |it| panic!("{it:?}")).unwrap();
        lookups.observe([], remote, |it| panic!("{it:?}")).unwrap();
    });
}

#[test]
fn a_socket_that_is_bound_to_a_device_is_found_on_that_device_only() {
    for (listen, to) in LISTENERS {
        let namespace = Namespace::new();
        namespace.inside(|| {
            let listener = TcpListener::bind(listen).unwrap();
            SockRef::from(&listener).bind_device(Some(b"lo")).unwrap();
            let mut diag = SockDiag::open().unwrap();
            let (mut client, mut server) = pair(&listener, address(to));
            let ends = (client.peer_addr().unwrap(), client.local_addr().unwrap());
            assert_eq!(diag.find(ends.0, ends.1).unwrap(), None);
            assert_eq!(diag.observe(ends.0, ends.1, 0).unwrap(), None);
            assert_eq!(diag.observe(ends.0, ends.1, LOOPBACK + 1).unwrap(), None);
            assert_alive(&mut client, &mut server);
            let bound = diag.observe(ends.0, ends.1, LOOPBACK).unwrap().unwrap();
            assert_eq!(bound.connection.interface(), LOOPBACK);
            assert_eq!(counters(&bound).0, 1);
            assert!(diag.observe_again(&bound.connection).unwrap().is_some());
            let mut listed = Vec::new();
            let whole = diag.connections(&ConnectionFilter::on(&PORTS), |it| listed.push(it));
            assert_eq!((whole.unwrap(), listed), (Dumped::Whole, vec![bound.connection]));

            assert!(diag.destroy(&bound.connection).unwrap());
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(diag.observe(ends.0, ends.1, LOOPBACK).unwrap(), None);
            assert!(!diag.destroy(&bound.connection).unwrap());
            assert_accepts(&listener, address(to));

            // The other way round it does not matter.
            let unbound = TcpListener::bind((address(to).ip(), 80)).unwrap();
            let (client, _server) = pair(&unbound, unbound.local_addr().unwrap());
            let ends = (client.peer_addr().unwrap(), client.local_addr().unwrap());
            let found = diag.observe(ends.0, ends.1, LOOPBACK).unwrap().unwrap();
            assert_eq!(found.connection.interface(), 0);
        });
    }
}

#[test]
fn a_dump_with_counters_gives_each_connection_its_own() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let listener = TcpListener::bind("[::]:443").unwrap();
        let plain = TcpListener::bind("0.0.0.0:8443").unwrap();
        let other = TcpListener::bind("[::]:80").unwrap();
        let ports = [443..=443, 8443..=8443];
        let mut diag = SockDiag::open().unwrap();
        let mut open = Vec::new();
        let mut expected = BTreeMap::new();
        for n in 0..300usize {
            let (listener, to) = match n % 4 {
                0 => (&listener, "127.0.0.1:443"),
                1 => (&listener, "[::1]:443"),
                2 => (&plain, "127.0.0.1:8443"),
                _ => (&other, "127.0.0.1:80"),
            };
            let (mut client, mut server) = pair(listener, address(to));
            client.write_all(&vec![0; n + 1]).unwrap();
            server.read_exact(&mut vec![0; n + 1]).unwrap();
            if n % 4 != 3 {
                // A client's port may be that of another one, to another port of the server.
                let ends = (client.peer_addr().unwrap(), client.local_addr().unwrap());
                expected.insert(ends, u64::try_from(n).unwrap() + 1);
            }
            open.push((client, server));
        }
        let mut found = BTreeMap::new();
        let whole = diag.observe_all(&ConnectionFilter::on(&ports), |it| {
            let ends = (it.connection.local(), it.connection.remote());
            assert_eq!(found.insert(ends, counters(&it).0), None);
        });
        assert_eq!(whole.unwrap(), Dumped::Whole);
        assert_eq!(found, expected);
    });
}

#[test]
fn a_listener_is_seen_at_any_address_and_a_connection_is_none() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let mut diag = SockDiag::open().unwrap();
        let scattered: Vec<_> = (0..50).map(|n| 443 + 20 * n..=443 + 20 * n).collect();
        let of_ports = [&[443..=443][..], &[80..=80, 400..=500], &[1..=65_535], &scattered];
        let mut has = |ports: &[RangeInclusive<u16>]| diag.has_listener(ports).unwrap();
        assert!(of_ports.iter().all(|ports| !has(ports)));
        assert!(!has(&[]));
        for at in ["0.0.0.0:443", "127.0.0.1:443", "[::]:443", "[::1]:443"] {
            let listener = TcpListener::bind(at).unwrap();
            assert!(of_ports.iter().all(|ports| has(ports)), "{at}");
            assert!(!has(&[]));
            assert!(!has(&[444..=65_535, 1..=442]), "{at}");
            // A connection outlives its listener and does not listen.
            let (_client, _server) = pair(&listener, listener_address(at));
            // A program that a test beside starts has a copy of the descriptor for a moment.
            shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
            drop(listener);
            assert!(of_ports.iter().all(|ports| !has(ports)), "{at}");
            namespace.run("ss -K -tn sport = :443 or dport = :443");
        }
    });
}

/// An address by which a listener at `at` can be reached.
fn listener_address(at: &str) -> SocketAddr {
    address(&at.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]"))
}

#[test]
fn an_mptcp_connection_outlives_its_last_subflow_and_is_listed() {
    for (listen_at, to) in LISTENERS {
        let namespace = Namespace::new();
        namespace.inside(|| {
            let mptcp = |at: SocketAddr| {
                let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                socket(family, SocketType::STREAM, Some(ipproto::MPTCP)).unwrap()
            };
            let listener = mptcp(address(listen_at));
            bind(&listener, &address(listen_at)).unwrap();
            listen(&listener, 16).unwrap();
            let listener = TcpListener::from(listener);
            let client = mptcp(address(to));
            connect(&client, &address(to)).unwrap();
            let mut client = patient(TcpStream::from(client));
            let mut server = patient(listener.accept().unwrap().0);
            assert_alive(&mut client, &mut server);
            // A client without MPTCP on the same listener.
            let (mut plain, mut plain_server) = pair(&listener, address(to));
            assert_alive(&mut plain, &mut plain_server);

            let mut diag = SockDiag::open().unwrap();
            assert!(diag.has_listener(&PORTS).unwrap());
            let ends = (client.peer_addr().unwrap(), client.local_addr().unwrap());
            let listed = |diag: &mut SockDiag, ports: &[RangeInclusive<u16>]| {
                let mut listed = Vec::new();
                let each = |local, remote| listed.push((local, remote));
                let whole = diag.mptcp_connections(&ConnectionFilter::on(ports), each);
                assert_eq!(whole.unwrap(), Dumped::Whole);
                listed
            };
            assert_eq!(listed(&mut diag, &PORTS), [ends]);
            assert_eq!(listed(&mut diag, &[1..=442, 443..=500]), [ends]);
            assert_eq!(listed(&mut diag, &[1..=442]), []);

            let subflow = diag.observe(ends.0, ends.1, 0).unwrap().unwrap();
            assert_eq!(counters(&subflow).0, 1);
            assert!(diag.destroy(&subflow.connection).unwrap());
            assert_eq!(diag.observe_again(&subflow.connection).unwrap(), None);
            assert_eq!(listed(&mut diag, &PORTS), [ends], "the whole is still there");
            let shown = namespace.run("ss -MnH sport = :443");
            assert_eq!(shown.lines().count(), 1, "{shown}");
            // Nobody was told.
            server.set_nonblocking(true).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
            assert_alive(&mut plain, &mut plain_server);
        });
    }
}
