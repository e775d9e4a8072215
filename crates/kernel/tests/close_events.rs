//! What a live kernel announces when a TCP connection is over, and what it keeps to itself. The
//! second eye is a lookup of the same connection, before and after.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod support;
#[path = "support/tcp.rs"]
mod tcp;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    ops::RangeInclusive,
    time::Instant,
};

use refract_kernel::{
    close_events::{CloseEvents, Closed, Drained},
    sock_diag::{Observed, SockDiag, TcpState},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    thread::{CapabilitySet, capabilities, set_capabilities},
};
use support::Namespace;
use tcp::{LISTENERS, address, assert_accepts, assert_alive, close_in_turn, pair, patient};

const PORTS: [RangeInclusive<u16>; 1] = [443..=443];

/// An event waits within `seconds`, as `epoll` would see it.
fn is_readable(events: &CloseEvents, seconds: i64) -> bool {
    let patience = Timespec { tv_sec: seconds, tv_nsec: 0 };
    poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&patience)).unwrap() == 1
}

/// Everything that waits now.
#[track_caller]
fn drained(events: &mut CloseEvents) -> Vec<Closed> {
    let mut closed = Vec::new();
    assert_eq!(events.drain(|it| closed.push(it)).unwrap(), Drained::Whole);
    closed
}

/// The one event that comes next.
#[track_caller]
fn next(events: &mut CloseEvents) -> Closed {
    assert!(is_readable(events, 5), "no event came");
    let mut closed = drained(events);
    assert_eq!(closed.len(), 1, "{closed:?}");
    closed.remove(0)
}

#[track_caller]
fn observed(diag: &mut SockDiag, client: &TcpStream) -> Observed {
    let ends = (client.peer_addr().unwrap(), client.local_addr().unwrap());
    diag.observe(ends.0, ends.1, 0).unwrap().unwrap()
}

#[track_caller]
fn assert_is_the_end_of(closed: &Closed, observed: &Observed, received: u64, acknowledged: u64) {
    let connection = observed.connection;
    assert_eq!((closed.local, closed.remote), (connection.local(), connection.remote()));
    assert_eq!(closed.cookie, connection.cookie());
    let activity = closed.activity.unwrap();
    assert_eq!((activity.received, activity.acknowledged), (received, acknowledged));
}

#[test]
fn the_end_of_a_connection_is_heard_with_its_cookie_and_its_last_counters() {
    for (listen, to) in LISTENERS {
        let namespace = Namespace::new();
        namespace.inside(|| {
            let listener = TcpListener::bind(listen).unwrap();
            let mut diag = SockDiag::open().unwrap();
            let mut events = CloseEvents::subscribe(&PORTS).unwrap();
            assert!(events.is_filtered_by_kernel());
            assert_eq!(drained(&mut events), []);

            // The client closes first; nothing is left here.
            let (mut client, mut server) = pair(&listener, address(to));
            let before = observed(&mut diag, &client);
            server.write_all(&[1; 500]).unwrap();
            client.read_exact(&mut [0; 500]).unwrap();
            client.write_all(&[2; 1_000]).unwrap();
            close_in_turn(&client, &server);
            assert!(!is_readable(&events, 0), "the server has not closed its descriptor");
            let begun = Instant::now();
            drop(server);
            let closed = next(&mut events);
            let took = begun.elapsed();
            println!("{listen}: heard after {took:?}");
            assert_is_the_end_of(&closed, &before, 1_000, 500);
            assert_eq!(diag.observe_again(&before.connection).unwrap(), None);

            // The server closes first; TIME_WAIT delays nothing.
            let (mut client, mut server) = pair(&listener, address(to));
            assert_alive(&mut client, &mut server);
            let before = observed(&mut diag, &client);
            close_in_turn(&server, &client);
            drop(server);
            assert_is_the_end_of(&next(&mut events), &before, 1, 1);
            let left = diag.observe_again(&before.connection).unwrap().unwrap();
            assert_eq!(left.connection.state(), TcpState::TimeWait);

            // A reset is heard when the server closes its end. It has no FIN to count off.
            let (mut client, mut server) = pair(&listener, address(to));
            assert_alive(&mut client, &mut server);
            client.write_all(&[3; 9]).unwrap();
            server.read_exact(&mut [0; 9]).unwrap();
            let before = observed(&mut diag, &client);
            assert!(diag.destroy(&before.connection).unwrap());
            assert!(!is_readable(&events, 0));
            drop(server);
            assert_is_the_end_of(&next(&mut events), &before, 9, 0);

            // A listener is no connection.
            assert_accepts(&listener, address(to));
            next(&mut events);
            drop(listener);
            assert!(is_readable(&events, 5), "the kernel announces it all the same");
            assert_eq!(drained(&mut events), []);
        });
    }
}

#[test]
fn the_kernel_keeps_the_ends_on_other_ports_to_itself() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let protected = TcpListener::bind("[::]:443").unwrap();
        let other = TcpListener::bind("[::]:444").unwrap();
        let mut events = CloseEvents::subscribe(&PORTS).unwrap();
        let of_ranges = [400..=442, 444..=450, 8_443..=8_450];
        let mut of_others = CloseEvents::subscribe(&of_ranges).unwrap();
        // Too many for one program.
        let scattered: Vec<_> = (0..300).map(|n| 43 + 4 * n..=43 + 4 * n).collect();
        let mut unfiltered = CloseEvents::subscribe(&scattered).unwrap();
        assert!(events.is_filtered_by_kernel() && of_others.is_filtered_by_kernel());
        assert!(!unfiltered.is_filtered_by_kernel());

        // The client's own end is a connection of another local port as well.
        for to in ["127.0.0.1:444", "[::1]:444"] {
            drop(pair(&other, address(to)));
            assert_eq!(next(&mut of_others).local, address(to));
            assert!(!is_readable(&events, 0), "it would be, had it been sorted out here");
            assert!(is_readable(&unfiltered, 5));
            assert_eq!(drained(&mut unfiltered), []);
        }
        for to in ["127.0.0.1:443", "[::1]:443"] {
            drop(pair(&protected, address(to)));
            assert_eq!(next(&mut events).local, address(to));
            assert!(!is_readable(&of_others, 0));
            assert!(is_readable(&unfiltered, 5));
            let closed = drained(&mut unfiltered);
            assert_eq!(closed.iter().map(|it| it.local).collect::<Vec<_>>(), [address(to)]);
        }
        let mut nothing = CloseEvents::subscribe(&[]).unwrap();
        drop(pair(&protected, address("127.0.0.1:443")));
        next(&mut events);
        assert!(!is_readable(&nothing, 0));
        assert_eq!(drained(&mut nothing), []);
    });
}

/// Opens and closes `count` connections, a few hundred at a time.
fn open_and_close(listener: &TcpListener, count: usize) {
    for _ in 0..count.div_ceil(250) {
        let pairs: Vec<_> = (0..250).map(|_| pair(listener, address("127.0.0.1:443"))).collect();
        for (client, server) in pairs {
            close_in_turn(&client, &server);
        }
    }
}

#[test]
fn an_overflow_is_told_once_the_queue_is_empty_and_what_comes_after_is_heard() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        let listener = TcpListener::bind("[::]:443").unwrap();
        // The kernel serves the first subscriber last: what this one has heard, the other was told.
        let mut witness = CloseEvents::subscribe(&PORTS).unwrap();
        let mut events = CloseEvents::with_receive_buffer(&PORTS, 16 * 1024).unwrap();
        assert!(!events.has_whole_buffer());
        assert_eq!(events.receive_buffer(), 16 * 1024);
        for _ in 0..2 {
            open_and_close(&listener, 250);
            let mut witnessed = 0;
            while witnessed < 250 {
                assert!(is_readable(&witness, 5), "{witnessed} only");
                witnessed += drained(&mut witness).len();
            }
            let mut heard = 0;
            assert_eq!(events.drain(|_| heard += 1).unwrap(), Drained::Lost);
            assert!((1..250).contains(&heard), "{heard}");
            assert_eq!(drained(&mut events), [], "it is told once");
            drop(pair(&listener, address("127.0.0.1:443")));
            next(&mut events);
            next(&mut witness);
        }
    });
}

#[test]
fn a_flood_of_ends_is_handed_over_in_portions_and_none_is_lost() {
    /// One event's share of the receive buffer (measured).
    const EVENT: usize = 640;
    let namespace = Namespace::new();
    namespace.inside(|| {
        let listener = TcpListener::bind("[::]:443").unwrap();
        let mut events = CloseEvents::subscribe(&PORTS).unwrap();
        // As many as there is room for, where the kernel grants a small buffer only.
        let ends = (events.receive_buffer() / EVENT).min(10_000) / 250 * 250;
        assert!(ends == 10_000 || (!events.has_whole_buffer() && ends > 0), "{ends}");
        println!("{ends} ends");
        open_and_close(&listener, ends);
        // The kernel announces them from a worker of its own, so the last come a moment later.
        let mut cookies = BTreeSet::new();
        let mut calls = 0;
        loop {
            let mut portion = 0;
            let drained = events.drain(|closed| {
                portion += 1;
                assert!(cookies.insert(closed.cookie), "{closed:?} came twice");
            });
            calls += 1;
            assert!(portion <= 4_096);
            match drained.unwrap() {
                // An overflow takes a turn as well.
                Drained::More => assert!(portion >= 4_095, "{portion}"),
                Drained::Whole if cookies.len() == ends => break,
                Drained::Whole => assert!(is_readable(&events, 5), "{} only", cookies.len()),
                Drained::Lost => panic!("some of {ends} were lost"),
            }
        }
        assert!(calls > ends / 4_096, "{calls}");
    });
}

#[test]
fn without_the_capability_the_buffer_is_smaller_and_the_events_come_all_the_same() {
    let namespace = Namespace::new();
    namespace.inside(|| {
        // Capabilities are the thread's, and this thread ends with the namespace.
        let mut mine = capabilities(None).unwrap();
        mine.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, mine).unwrap();
        let listener = TcpListener::bind("[::]:443").unwrap();
        let mut diag = SockDiag::open().unwrap();
        let mut events = CloseEvents::subscribe(&PORTS).unwrap();
        assert!(!events.has_whole_buffer());
        let most = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap();
        assert_eq!(events.receive_buffer(), most.trim().parse::<usize>().unwrap());
        assert!(events.is_filtered_by_kernel());
        let client = patient(TcpStream::connect(address("127.0.0.1:443")).unwrap());
        let server = listener.accept().unwrap().0;
        let before = observed(&mut diag, &client);
        close_in_turn(&client, &server);
        drop(server);
        assert_is_the_end_of(&next(&mut events), &before, 0, 0);
    });
}
