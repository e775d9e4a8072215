//! What finding, observing, resetting and listing connections costs, at 200 and at 20,000 of them,
//! and how soon the end of one is heard.
//!
//! `cargo bench -p refract-kernel --bench sock_diag`, as root. The connections are held by child
//! processes, because one may not open so many files, in a namespace made for it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a step that fails ends the run")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    env,
    io::{BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use refract_kernel::{
    close_events::{CloseEvents, Drained},
    netlink::Dumped,
    networks::Networks,
    sock_diag::{Connection, SockDiag},
    sock_filter::ConnectionFilter,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{AddressFamily, SocketType, bind, connect, socket},
};
use support::Namespace;

/// Connections that one child holds, both ends of each.
const HELD: u16 = 5_000;
const HOLD: &str = "hold";

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let [_, verb, child, count] = arguments.as_slice()
        && verb == HOLD
    {
        return hold(child.parse().unwrap(), count.parse().unwrap());
    }
    let namespace = Namespace::new();
    namespace.run("sysctl -qw net.ipv4.tcp_max_syn_backlog=8192");
    namespace.inside(|| {
        exact_lookups();
        for (children, held) in [(1, 200), (4, HELD)] {
            let holders: Vec<Child> = (0..children).map(|n| start_holder(n, held)).collect();
            dumps(u32::from(held) * u32::from(children));
            for mut holder in holders {
                drop(holder.stdin.take());
                holder.wait().unwrap();
            }
        }
    });
}

/// The address of client `n` of a child: 127.(10 + child).x.y.
fn client(child: u8, n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(127, 10 + child, high, low)
}

/// Holds `count` IPv4 connections of a dual-stack socket until its standard input ends.
fn hold(child: u8, count: u16) {
    let at = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 1 + child).to_ipv6_mapped().into(), 443);
    let to = SocketAddr::new(at.ip().to_canonical(), 443);
    let listener = TcpListener::bind(at).unwrap();
    let held: Vec<_> = (0..count)
        .map(|n| {
            let stream = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            bind(&stream, &SocketAddr::new(client(child, n).into(), 0)).unwrap();
            connect(&stream, &to).unwrap();
            (stream, listener.accept().unwrap())
        })
        .collect();
    println!("holding {}", held.len());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn start_holder(child: u8, count: u16) -> Child {
    let mut holder = Command::new(env::current_exe().unwrap())
        .args([HOLD, &child.to_string(), &count.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready.trim(), format!("holding {count}"));
    holder
}

fn exact_lookups() {
    let mut diag = SockDiag::open().unwrap();
    let listener = TcpListener::bind("[::]:443").unwrap();
    let to = listener.local_addr().unwrap().port();
    let pairs: Vec<_> = (0..5_000)
        .map(|_| {
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).unwrap();
            (client, listener.accept().unwrap())
        })
        .collect();
    let ends: Vec<_> = pairs
        .iter()
        .map(|(client, _)| (client.peer_addr().unwrap(), client.local_addr().unwrap()))
        .collect();
    let nobody = SocketAddr::from((Ipv4Addr::new(127, 9, 9, 9), 9));
    let mut connections: Vec<Connection> = Vec::new();
    report(
        "find, hit",
        ends.iter().map(|(local, remote)| {
            timed(|| connections.push(diag.find(*local, *remote).unwrap().expect("a hit")))
        }),
    );
    report(
        "find, miss (a listener is there)",
        ends.iter()
            .map(|(local, _)| timed(|| assert_eq!(diag.find(*local, nobody).unwrap(), None))),
    );
    report(
        "observe, hit",
        ends.iter().map(|(local, remote)| {
            timed(|| assert!(diag.observe(*local, *remote, 0).unwrap().is_some()))
        }),
    );
    report(
        "observe, miss (a listener is there)",
        ends.iter()
            .map(|(local, _)| timed(|| assert_eq!(diag.observe(*local, nobody, 0).unwrap(), None))),
    );
    report(
        "observe again",
        connections
            .iter()
            .map(|connection| timed(|| assert!(diag.observe_again(connection).unwrap().is_some()))),
    );
    report(
        "destroy",
        connections.iter().map(|connection| timed(|| assert!(diag.destroy(connection).unwrap()))),
    );
    report(
        "destroy, gone already",
        connections.iter().map(|connection| timed(|| assert!(!diag.destroy(connection).unwrap()))),
    );
    report(
        "observe again, gone already",
        connections
            .iter()
            .map(|connection| timed(|| assert_eq!(diag.observe_again(connection).unwrap(), None))),
    );
    let mut events = CloseEvents::subscribe(&[443..=443]).unwrap();
    report(
        "from the close of a connection to its event",
        pairs.into_iter().map(|(client, server)| {
            drop(client);
            timed(|| {
                drop(server);
                poll(&mut [PollFd::new(&events, PollFlags::IN)], None).unwrap();
                assert_eq!(events.drain(|_| {}).unwrap(), Drained::Whole);
            })
        }),
    );
    closes(&listener, &mut events);
}

/// What it takes to hear of 4,096 closes, all of which wait.
fn closes(listener: &TcpListener, events: &mut CloseEvents) {
    const CLOSES: usize = 4_096;
    let to = (Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port());
    let mut witness = CloseEvents::subscribe(&[443..=443]).unwrap();
    let pairs: Vec<_> = (0..CLOSES)
        .map(|_| (TcpStream::connect(to).unwrap(), listener.accept().unwrap()))
        .collect();
    drop(pairs);
    let mut witnessed = 0;
    while witnessed < CLOSES {
        poll(&mut [PollFd::new(&witness, PollFlags::IN)], None).unwrap();
        let _ = witness.drain(|_| witnessed += 1).unwrap();
    }
    report(
        "take 4,096 close events",
        [timed(|| {
            let _ = events.drain(|_| {}).unwrap();
        })]
        .into_iter(),
    );
}

fn dumps(connections: u32) {
    let mut diag = SockDiag::open().unwrap();
    let ports = [443..=443];
    let all = ConnectionFilter::on(&ports);
    report(
        &format!("{connections} connections: list all on the port"),
        (0..15).map(|_| timed(|| assert_eq!(list(&mut diag, &all), connections))),
    );
    report(
        &format!("{connections} connections: observe all on the port"),
        (0..15).map(|_| {
            timed(|| {
                let mut count = 0;
                assert_eq!(diag.observe_all(&all, |_| count += 1).unwrap(), Dumped::Whole);
                assert_eq!(count, connections);
            })
        }),
    );
    let other_port = TcpListener::bind("[::]:8443").unwrap();
    for (what, ports) in [
        ("one port listens", &[8443..=8443][..]),
        ("one of a range listens", &[8000..=9000]),
        ("no port listens", &[2000..=2010, 3000..=3010]),
    ] {
        let expected = what != "no port listens";
        report(
            &format!("{connections} connections: has_listener, {what}"),
            (0..100).map(|_| timed(|| assert_eq!(diag.has_listener(ports).unwrap(), expected))),
        );
    }
    drop(other_port);
    report(
        &format!("{connections} connections: list MPTCP, none there"),
        (0..100).map(|_| {
            timed(|| assert_eq!(diag.mptcp_connections(&all, |_, _| {}).unwrap(), Dumped::Whole))
        }),
    );
    for remotes in [1, 4, 8, 16, 17, 500, 2_000] {
        // One in four of them has a connection.
        let networks: Networks = (0..remotes)
            .map(|n| (IpAddr::from(client(if n % 4 == 0 { 0 } else { 200 }, n)), 32))
            .collect();
        let filter = ConnectionFilter::on(&ports).from(&networks);
        let label = format!("{connections} connections: list those of {remotes} remotes");
        report(
            &label,
            (0..15).map(|_| {
                timed(|| {
                    list(&mut diag, &filter);
                })
            }),
        );
    }
}

fn list(diag: &mut SockDiag, filter: &ConnectionFilter<'_>) -> u32 {
    let mut count = 0;
    assert_eq!(diag.connections(filter, |_| count += 1).unwrap(), Dumped::Whole);
    count
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn report(what: &str, times: impl Iterator<Item = Duration>) {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!(
        "{what}: min {:.2} µs, p50 {:.2} µs, p99 {:.2} µs",
        micros(at(0)),
        micros(at(50)),
        micros(at(99))
    );
}
