//! What goes wrong around the daemon and must not go wrong with it: news that were lost, a table with
//! tens of thousands of connections, a client that outlives its reset, a crash, and a state file that
//! is anything but one.
//!
//! The daemon asks the kernel; everything is really connected. The witnesses are the connections, the
//! sets, the records, the daemon's counters and its words.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    net::{AddressFamily, SocketType, bind, connect, ipproto, listen, socket, sockopt},
    process::{Resource, Rlimit, Signal, getrlimit, setrlimit},
};
use support::{
    LabError, Result,
    access_log::accepted_line,
    eventually,
    evidence::{BOUND, banned, online},
    lab::{Host, SERVER_V4},
    sidecar::{Record, Sidecar},
    stage::{AT, IN_TIME, JUNIOR, SENIOR, Stage},
    witness,
};

/// Where connections are kept that say nothing.
const PARKING: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_V4), 8443);
/// Where connections are closed as soon as they come.
const TURNSTILE: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_V4), 8444);
const PORTS: &str = "--dport=443,8443-8444";
/// Connections that may wait to be accepted.
const QUEUE: i32 = 32_768;

/// A server that closes whatever connects at once, on one thread.
struct Turnstile {
    listener: TcpListener,
    accepting: Option<JoinHandle<Result<()>>>,
}

impl Turnstile {
    fn start(host: &Host) -> Result<Self> {
        let listener = listener(host, TURNSTILE, None)?;
        let accepted = listener.try_clone().map_err(LabError::while_trying("share a listener"))?;
        let accepting = host.start_thread(move || {
            while accepted.accept().is_ok() {}
            Ok(())
        });
        Ok(Self { listener, accepting: Some(accepting) })
    }
}

impl Drop for Turnstile {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Listens and accepts nothing: the kernel finishes the handshakes and keeps the connections, which
/// takes no file on that side.
fn parking(host: &Host) -> Result<TcpListener> {
    host.output("sysctl", &["-qw", &format!("net.core.somaxconn={QUEUE}")])?;
    listener(host, PARKING, None)
}

/// Listens with a long queue; `protocol` is TCP if nothing is said.
fn listener(
    host: &Host,
    at: SocketAddr,
    protocol: Option<rustix::net::Protocol>,
) -> Result<TcpListener> {
    host.run(|| {
        let listening = || {
            let listener = socket(AddressFamily::INET, SocketType::STREAM, protocol)?;
            sockopt::set_socket_reuseaddr(&listener, true)?;
            bind(&listener, &at)?;
            listen(&listener, QUEUE)?;
            Ok::<_, rustix::io::Errno>(TcpListener::from(listener))
        };
        listening().map_err(LabError::while_trying(format!("listen on {at}")))
    })
}

/// Connects `count` times from addresses of the crowd, from `198.19.first.0` on, one each.
fn park(host: &Host, first: u8, count: u16) -> Result<Vec<TcpStream>> {
    host.run(|| {
        (0..count)
            .map(|number| {
                let [high, low] = number.to_be_bytes();
                dial(IpAddr::from([198, 19, first + high, low]), PARKING)
            })
            .collect()
    })
}

/// Connects; its end will be a reset. Call it inside a host.
fn dial(source: IpAddr, server: SocketAddr) -> Result<TcpStream> {
    let dialled = || {
        let connection = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseaddr(&connection, true)?;
        sockopt::set_socket_linger(&connection, Some(Duration::ZERO))?;
        bind(&connection, &SocketAddr::new(source, 0))?;
        connect(&connection, &server)?;
        Ok::<_, rustix::io::Errno>(TcpStream::from(connection))
    };
    dialled().map_err(LabError::while_trying(format!("connect from {source} to {server}")))
}

/// Goes through the turnstile from `source` until `over`, at least `least` times.
///
/// Ports come round in it. A port whose last connection the server has closed and its client not quite
/// is refused (`net/ipv4/tcp_minisocks.c`, `tcp_timewait_state_process`: a SYN in FIN-WAIT-2).
fn churn(source: IpAddr, least: u32, over: &AtomicBool) -> Result<u32> {
    const REFUSED_AT_MOST: u32 = 100;
    let (mut count, mut refused) = (0, 0);
    while count < least || !over.load(Ordering::Relaxed) {
        match dial(source, TURNSTILE) {
            Ok(_) => count += 1,
            Err(_) if refused < REFUSED_AT_MOST => refused += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// The lines that say whose parked connections are.
fn lines_of(parked: &[TcpStream], name: &str) -> Result<String> {
    let mut lines = String::new();
    for (number, connection) in parked.iter().enumerate() {
        let peer = connection.local_addr().map_err(LabError::while_trying("ask for a port"))?;
        lines += &accepted_line(peer, &format!("{name}-{number}"));
    }
    Ok(lines)
}

/// Lets this process have `count` files open at once, with those of the tests beside it.
fn allow_files(count: u64) -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= count) {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum }).map_err(
        LabError::while_trying(format!("open {count} files at once (ulimit -Hn is {maximum:?})")),
    )
}

#[test]
fn closes_that_were_lost_are_made_up_for_by_a_walk_that_churn_cannot_mislead() -> Result<()> {
    const STAYING: u16 = 1_000;
    const LEAVING: u16 = 200;
    /// More than the daemon's buffer holds: 16 MiB at 640 bytes each.
    const BURST: u32 = 32_000;
    allow_files(4_000)?;
    let stage = Stage::new()?;
    let _parking = parking(stage.lab.server())?;
    let _turnstile = Turnstile::start(stage.lab.server())?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[PORTS])?;
    let staying = park(&stage.crowd, 0, STAYING)?;
    let leaving = park(&stage.crowd, 100, LEAVING)?;
    sidecar.log().write(lines_of(&staying, "staying")?.as_bytes())?;
    sidecar.log().write(lines_of(&leaving, "leaving")?.as_bytes())?;
    let status = sidecar.settled()?;
    assert_eq!(status.count("connections")?, u64::from(STAYING + LEAVING), "{status}");
    assert_eq!((status.count("closes_lost")?, status.count("found_gone")?), (0, 0), "{status}");

    sidecar.signal(Signal::STOP)?;
    let over = Arc::new(AtomicBool::new(false));
    let churning: Vec<_> = (1..=2)
        .map(|last| {
            let over = Arc::clone(&over);
            let source = IpAddr::from([198, 19, 200, last]);
            // The first half of each comes while nobody listens, the rest goes on under the walk.
            stage.crowd.start_thread(move || churn(source, BURST / 2, &over))
        })
        .collect();
    wait_for_drops(stage.lab.server())?;
    drop(leaving);
    sidecar.signal(Signal::CONT)?;
    let status = sidecar.status_once("the walk that finds what is gone", |status| {
        let gone = status.count("found_gone")? >= u64::from(LEAVING);
        Ok(gone && status.count("closes_lost")? >= 1)
    })?;
    let verified = status.count("verified")?;
    over.store(true, Ordering::Relaxed);
    for thread in churning {
        assert!(thread.join().map_err(|_| LabError::new("the churn panicked"))?? >= BURST / 2);
    }

    // Nobody who stayed was taken for gone: each is known as before.
    sidecar.log().write(lines_of(&staying, "staying")?.as_bytes())?;
    let status = sidecar.settled()?;
    assert_eq!(status.count("known")?, u64::from(STAYING), "{status}");
    assert_eq!(status.count("verified")?, verified, "{status}");
    assert_eq!(status.count("found_gone")?, u64::from(LEAVING), "{status}");
    let record = stage.sharers_are_cut(&sidecar, "sharer")?;
    assert_eq!(record.action, "ban");
    Ok(())
}

#[test]
fn where_the_kernel_tells_of_no_closes_a_walk_finds_what_is_gone() -> Result<()> {
    const STAYING: u16 = 100;
    const LEAVING: u16 = 40;
    let at_subscription = which_bind_subscribes_to_closes()?;
    let stage = Stage::new()?;
    let _parking = parking(stage.lab.server())?;
    let refusing = format!("inject=bind:error=EPERM:when={at_subscription}");
    let sidecar = Sidecar::start_under(
        &["strace", "-D", "-qq", "-o", "/dev/null", "-e", "trace=bind", "-e", &refusing],
        &stage.lab,
        &["--evidence=kernel", "--window=1s", PORTS],
    )?;
    sidecar.wait_for_message("closed connections are found by walking the table every 5 s")?;
    let staying = park(&stage.crowd, 0, STAYING)?;
    let leaving = park(&stage.crowd, 100, LEAVING)?;
    sidecar.log().write(lines_of(&staying, "staying")?.as_bytes())?;
    sidecar.log().write(lines_of(&leaving, "leaving")?.as_bytes())?;
    let status = sidecar.settled()?;
    assert_eq!(status.count("connections")?, u64::from(STAYING + LEAVING), "{status}");
    drop(leaving);
    let status = sidecar.status_once("the walk that finds what is gone", |status| {
        Ok(status.count("found_gone")? == u64::from(LEAVING))
    })?;
    assert_eq!(status.count("connections")?, u64::from(STAYING), "{status}");
    assert_eq!(status.count("closes_lost")?, 0, "{status}");
    let record = stage.sharers_are_cut(&sidecar, "sharer")?;
    assert_eq!(record.action, "ban");
    Ok(())
}

/// No kernel that has those groups refuses them to anybody, so it takes an `strace` to be refused: it
/// is to meddle with this call of the daemon's main thread.
fn which_bind_subscribes_to_closes() -> Result<usize> {
    let stage = Stage::new()?;
    let calls = stage.lab.path("calls");
    let sidecar = Sidecar::start_under(
        &["strace", "-D", "-qq", "-o", &calls.display().to_string(), "-e", "trace=bind"],
        &stage.lab,
        &["--evidence=kernel", "--window=1s", PORTS],
    )?;
    let read =
        || fs::read_to_string(&calls).map_err(LabError::while_trying("read what strace has seen"));
    let place = |calls: &str| {
        // SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY, linux/sock_diag.h.
        let mut calls = calls.lines().filter(|line| line.starts_with("bind("));
        calls.position(|call| call.contains("nl_groups=0x000005}"))
    };
    let place = eventually("the subscription to closes", BOUND, || Ok(place(&read()?)))?;
    sidecar.stop()?;
    Ok(place + 1)
}

/// Waits until the kernel had to drop news of closes (`/proc/net/netlink`, column Drops).
fn wait_for_drops(server: &Host) -> Result<()> {
    eventually("news that are dropped", Duration::from_mins(1), || {
        let sockets = server.run(|| {
            fs::read_to_string("/proc/thread-self/net/netlink")
                .map_err(LabError::while_trying("read the netlink sockets"))
        })?;
        // "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode"; 4 is NETLINK_SOCK_DIAG.
        let dropped = sockets.lines().skip(1).any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(1) == Some(&"4") && words.get(8).is_some_and(|drops| *drops != "0")
        });
        Ok(dropped.then_some(()))
    })
}

#[test]
fn among_twenty_thousand_connections_a_sharer_is_cut_in_time() -> Result<()> {
    const OPEN: u16 = 20_000;
    /// So many are closed by their clients, but not by the server: it keeps them open (`CLOSE_WAIT`).
    const HALF_CLOSED: usize = 4_000;
    allow_files(20_000)?;
    let stage = Stage::new()?;
    let _parking = parking(stage.lab.server())?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[PORTS])?;
    let (mut parked, mut lines) = (Vec::new(), String::new());
    for first in 0..5 {
        let mut some = park(&stage.crowd, 16 * first, OPEN / 5)?;
        lines += &lines_of(&some, &format!("parked-{first}"))?;
        if usize::from(first) * some.len() < HALF_CLOSED {
            for connection in some.drain(..) {
                sockopt::set_socket_linger(&connection, None)
                    .map_err(LabError::while_trying("close in good order"))?;
            }
        }
        parked.extend(some);
    }
    assert_eq!(parked.len() + HALF_CLOSED, usize::from(OPEN));
    sidecar.log().write(lines.as_bytes())?;
    let status = sidecar.settled()?;
    assert_eq!(status.count("connections")?, u64::from(OPEN), "{status}");
    let record = stage.sharers_are_cut(&sidecar, "sharer")?;
    assert_eq!((record.action.as_str(), record.outcome.as_str()), ("ban", "ok"));
    // From the end of the slot to the reset; a debug build on a busy machine has room in it.
    assert!(record.latency_us < 100_000, "{record:?}");
    let status = sidecar.settled()?;
    assert!(status.count("connections")? >= u64::from(OPEN), "{status}");
    assert_eq!(status.count("late_slots")?, 0, "{status}");
    // The same after a restart, which has to give all of them their owners back.
    sidecar.stop()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[PORTS])?;
    let status = sidecar.settled()?;
    assert!(status.count("connections")? >= u64::from(OPEN), "{status}");
    sidecar.log().write(lines.as_bytes())?;
    assert_eq!(sidecar.settled()?.count("known")?, u64::from(OPEN));
    let device = |last| stage.device(&sidecar, [198, 18, 4, last].into(), "another");
    let (record, after) = sidecar.until_cut(&mut device(1), &mut device(2), BOUND)?;
    assert_eq!((record.action.as_str(), record.source.as_str()), ("ban", "198.18.4.2"));
    assert!(after < IN_TIME, "it took {after:?}");
    Ok(())
}

/// A client's MPTCP connection that keeps talking.
struct Multipath {
    client: Arc<TcpStream>,
    over: Arc<AtomicBool>,
}

impl Multipath {
    /// Serves whoever speaks MPTCP, on threads that end with their clients, or with the process.
    fn serve(stage: &Stage) -> Result<()> {
        let listener = listener(stage.lab.server(), PARKING, Some(ipproto::MPTCP))?;
        let serving = stage.lab.server().start_thread(move || {
            while let Ok((connection, _)) = listener.accept() {
                thread::spawn(move || std::io::copy(&mut &connection, &mut &connection));
            }
            Ok(())
        });
        drop(serving);
        Ok(())
    }

    /// Connects and talks; what comes back has come once.
    fn start(stage: &Stage, source: IpAddr) -> Result<Self> {
        let client = stage.people.run(|| {
            let dialled = || {
                let client = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP))?;
                bind(&client, &SocketAddr::new(source, 0))?;
                connect(&client, &PARKING)?;
                Ok::<_, rustix::io::Errno>(TcpStream::from(client))
            };
            dialled().map_err(LabError::while_trying("connect with MPTCP"))
        })?;
        let pace = Duration::from_millis(20);
        let what = || LabError::while_trying("speak MPTCP");
        client.set_read_timeout(Some(BOUND)).map_err(what())?;
        (&client).write_all(b"mptcp").map_err(what())?;
        (&client).read_exact(&mut [0; 5]).map_err(what())?;
        client.set_read_timeout(Some(pace)).map_err(what())?;
        let client = Arc::new(client);
        let over = Arc::new(AtomicBool::new(false));
        let (speaking, until) = (Arc::clone(&client), Arc::clone(&over));
        let speaking = stage.people.start_thread(move || {
            let mut words = [b'm'; 64];
            while !until.load(Ordering::Relaxed) && (&*speaking).write_all(&words).is_ok() {
                // Nothing may come, once there is no path left.
                let _ = (&*speaking).read(&mut words);
                thread::sleep(pace);
            }
            Ok(())
        });
        drop(speaking);
        Ok(Self { client, over })
    }

    fn local(&self) -> Result<SocketAddr> {
        self.client.local_addr().map_err(LabError::while_trying("ask for a port"))
    }
}

impl Drop for Multipath {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.client.shutdown(std::net::Shutdown::Both);
    }
}

#[test]
fn a_multipath_connection_that_survives_its_reset_costs_a_ban() -> Result<()> {
    let (stage, sidecar) = multipath_stage()?;
    let (record, _multipath) = multipath_junior(&stage, &sidecar)?;
    assert_eq!((record.action.as_str(), record.reason.as_str()), ("ban", "mptcp_survives"));
    assert_eq!((record.outcome.as_str(), record.source), ("ok", JUNIOR.to_string()));
    assert_eq!(banned(stage.lab.server())?, [JUNIOR.to_string()]);
    Ok(())
}

#[test]
fn a_multipath_connection_that_survives_costs_no_ban_where_somebody_else_is() -> Result<()> {
    let (stage, sidecar) = multipath_stage()?;
    let bob = online(&sidecar, &stage.people, JUNIOR, AT, "bob")?;
    let (record, _multipath) = multipath_junior(&stage, &sidecar)?;
    assert_eq!((record.action.as_str(), record.outcome.as_str()), ("kill", "failed"));
    let sentence = record.error.unwrap_or_default();
    assert!(sentence.contains("MPTCP connections survived their reset"), "{sentence}");
    assert_eq!(banned(stage.lab.server())?, Vec::<String>::new());
    bob.wait_for_answers()
}

fn multipath_stage() -> Result<(Stage, Sidecar)> {
    let stage = Stage::new()?;
    let sidecar =
        Sidecar::start_asking(&stage.lab, &[PORTS, "--strip-mptcp=false", "--action=kill"])?;
    Ok((stage, sidecar))
}

/// Two share an account, and the junior speaks MPTCP; gives the record, and what the junior had open.
fn multipath_junior(stage: &Stage, sidecar: &Sidecar) -> Result<(Record, Vec<Multipath>)> {
    let mut senior = stage.device(sidecar, SENIOR, "sharer");
    senior.browse()?;
    Multipath::serve(stage)?;
    let mut open = Vec::new();
    let begun = Instant::now();
    loop {
        let is_cut = |it: &Record| it.user == "sharer" && it.action != "ask";
        if let Some(record) = sidecar.records()?.into_iter().find(is_cut) {
            return Ok((record, open));
        }
        if begun.elapsed() > BOUND {
            return Err(sidecar.trouble("nobody was cut"));
        }
        senior.browse()?;
        // Shut out, he cannot connect; the record follows.
        if let Ok(multipath) = Multipath::start(stage, JUNIOR) {
            sidecar.log().accepted(multipath.local()?, "sharer")?;
            open.push(multipath);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_ban_that_a_crash_left_without_a_record_is_adopted() -> Result<()> {
    let stage = Stage::new()?;
    let missing = stage.lab.path("missing");
    let block_log = missing.join("block.log");
    let flags = [
        format!("--block.log={}", block_log.display()),
        format!("--state.file={}", stage.lab.path("state").display()),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    // Nothing can be recorded there, so that the crash comes between the ban and its record.
    let sidecar = Sidecar::start_asking(&stage.lab, &flags)?;
    let mut senior = stage.device(&sidecar, SENIOR, "sharer");
    let mut junior = stage.device(&sidecar, JUNIOR, "sharer");
    eventually("the ban", BOUND, || {
        senior.browse()?;
        junior.browse()?;
        Ok((banned(stage.lab.server())? == [JUNIOR.to_string()]).then_some(()))
    })?;
    drop((senior, junior));
    sidecar.kill()?;
    assert!(!block_log.exists());
    assert_eq!(banned(stage.lab.server())?, [JUNIOR.to_string()], "a ban outlives a crash");
    fs::create_dir(&missing).map_err(LabError::while_trying("make a directory"))?;

    let sidecar = Sidecar::start_asking(&stage.lab, &flags)?;
    let record =
        sidecar.wait_for_record("that the ban was adopted", |it| it.action == "adopted")?;
    assert_eq!((record.source.as_str(), record.reason.as_str()), ("198.18.3.2", "found_at_start"));
    assert!((1..=60).contains(&record.timeout_s), "{record:?}");
    // Once is enough.
    sidecar.stop()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &flags)?;
    sidecar.status()?;
    assert_eq!(sidecar.records()?.len(), 1);
    Ok(())
}

#[test]
fn who_was_first_and_who_is_reset_on_sight_outlive_a_restart() -> Result<()> {
    let stage = Stage::new()?;
    let sidecar = Sidecar::start_asking(&stage.lab, &["--action=kill"])?;
    // One account was at two places, one after the other: no offence.
    for last in [1, 2] {
        let mut device = stage.device(&sidecar, [198, 18, 5, last].into(), "traveller");
        device.browse()?;
        // The line has to be read while the connection is there.
        sidecar.settled()?;
    }
    let record = stage.sharers_are_cut(&sidecar, "sharer")?;
    assert_eq!((record.action.as_str(), record.reason.as_str()), ("kill", "by_order"));
    sidecar.stop()?;

    let sidecar = Sidecar::start_asking(&stage.lab, &["--action=kill"])?;
    sidecar.wait_for_message("who was where first is remembered")?;
    let again = online(&sidecar, &stage.people, JUNIOR, AT, "sharer")?;
    again.wait_for_reset()?;
    let on_sight = sidecar.wait_for_record("a reset on sight", |it| {
        it.reason == "on_sight" && it.peers == [again.local()]
    })?;
    assert_eq!((on_sight.source.as_str(), on_sight.killed), ("198.18.3.2", 1));
    let order = on_sight.rests_on.unwrap();
    assert!(order.source == "198.18.3.2" && order.ago_ms < 60_000, "{order:?}");
    // Now the second place is used first, and is the junior all the same.
    let mut second = stage.device(&sidecar, [198, 18, 5, 2].into(), "traveller");
    let mut first = stage.device(&sidecar, [198, 18, 5, 1].into(), "traveller");
    second.browse()?;
    let (record, _) = sidecar.until_cut(&mut second, &mut first, BOUND)?;
    assert_eq!(record.source, "198.18.5.2");
    assert!(first.resets <= sidecar.asked("198.18.5.1")?, "reset without a question");
    Ok(())
}

#[test]
fn a_state_file_that_is_broken_or_somebody_elses_is_said_once_and_harms_nobody() -> Result<()> {
    let precious = "precious";
    for broken in ["garbage", "link", "directory", "version"] {
        let stage = Stage::new()?;
        let path = stage.lab.path("refract.state");
        let other = stage.lab.path("somebody-elses");
        let made = match broken {
            "garbage" => fs::write(&path, b"{\"version\":1,\"standings\":[\xff\xff"),
            "version" => fs::write(&path, b"{\"version\":99,\"standings\":[]}"),
            "directory" => fs::create_dir(&path),
            _ => {
                fs::write(&other, precious).and_then(|()| std::os::unix::fs::symlink(&other, &path))
            }
        };
        made.map_err(LabError::while_trying("make a state file"))?;
        let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
        let said = sidecar.wait_for_message("cannot read the state file")?;
        assert!(said.contains("refract.state"), "{said}");
        // Whose neighbours they are is not known any more.
        let record = stage.sharers_are_cut(&sidecar, "sharer")?;
        assert_eq!((&*record.action, &*record.reason), ("kill", "unknown_neighbours"));
        assert_eq!(sidecar.messages().matches("cannot read the state file").count(), 1);
        sidecar.stop()?;
        if broken == "link" {
            let left = fs::read_to_string(&other).map_err(LabError::while_trying("read it"))?;
            assert_eq!(left, precious);
        }
        if broken != "directory" {
            // It has been made anew, and is a file of ours again.
            let kind = fs::symlink_metadata(&path).map_err(LabError::while_trying("look"))?;
            assert!(kind.is_file(), "{broken}");
            let sidecar = Sidecar::start_asking(&stage.lab, &[])?;
            sidecar.wait_for_message("who was where first is remembered")?;
        }
    }
    Ok(())
}

#[test]
fn a_state_file_that_cannot_be_written_is_said_once() -> Result<()> {
    let stage = Stage::new()?;
    let nowhere = stage.lab.path("missing").join("refract.state");
    let sidecar =
        Sidecar::start_asking(&stage.lab, &[&format!("--state.file={}", nowhere.display())])?;
    let begun = Instant::now();
    stage.sharers_are_cut(&sidecar, "sharer")?;
    // It is written every ten seconds.
    eventually("the trouble with the state file", Duration::from_secs(15), || {
        Ok(sidecar.messages().contains("cannot write the state file").then_some(()))
    })?;
    while begun.elapsed() < Duration::from_secs(23) {
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(sidecar.messages().matches("cannot write the state file").count(), 1);
    assert!(witness::lines_with(sidecar.block_log(), "\"ban\"")?.len() == 1);
    sidecar.stop()
}

#[test]
fn a_policy_that_is_rewritten_a_thousand_times_half_of_them_broken_is_the_last_one_that_was_whole()
-> Result<()> {
    const REWRITES: u32 = 1_000;
    /// After so many, the daemon is waited for: a file that is never left alone is read seldom.
    const ROUND: u32 = 250;
    const READ: &str = "the policy was read again and is in force";
    const KEPT: &str = "the policy stays as it was";
    let stage = Stage::new()?;
    let path = stage.lab.path("refract.toml");
    let rewrite = |number: u32, text: &str| -> Result<()> {
        let new = path.with_extension("new");
        let written = if number.is_multiple_of(3) && number > 0 {
            // In place; all of them are of one length, so that there is no moment with less.
            let file = fs::OpenOptions::new().write(true).open(&path);
            file.and_then(|mut file| file.write_all(text.as_bytes()))
        } else {
            // As editors replace a file.
            fs::write(&new, text).and_then(|()| fs::rename(&new, &path))
        };
        written.map_err(LabError::while_trying("rewrite the policy"))
    };
    let whole = [
        "timeout = '30s'\n[limits]\n'twins' = 2    \n",
        "timeout = '40s'\n[limits]\n'twins' = 2    \n",
    ];
    let broken = "timeout = '50s'\n[limits]\n'twins' = 'two'\n";
    rewrite(0, whole[0])?;
    let sidecar = Sidecar::start_asking(&stage.lab, &[&format!("--config={}", path.display())])?;
    let device = |last: u8, user| stage.device(&sidecar, [198, 18, 5, last].into(), user);
    let mut twins = [device(1, "twins"), device(2, "twins")];
    let mut twins_browse = || -> Result<usize> {
        for twin in &mut twins {
            twin.browse()?;
        }
        Ok(twins.iter().map(|twin| twin.resets).sum())
    };
    thread::scope(|scope| {
        let rewriting = scope.spawn(|| -> Result<()> {
            for number in 0..REWRITES {
                // The last one is a broken one, and the last that is whole the second.
                let (text, told) = match number % 4 {
                    0 => (whole[0], READ),
                    2 => (whole[1], READ),
                    _ => (broken, KEPT),
                };
                let count = || sidecar.messages().matches(told).count();
                let before = count();
                rewrite(number, text)?;
                // Four in a row: what the first two lead to may still be about an earlier version.
                if number % ROUND >= ROUND - 4 {
                    eventually(told, BOUND, || Ok((count() > before).then_some(())))
                        .map_err(|error| sidecar.trouble(&error.to_string()))?;
                }
                let line = accepted_line("198.18.9.9:40000", "nobody");
                sidecar.log().write(line.repeat(10).as_bytes())?;
                thread::sleep(Duration::from_millis(4));
            }
            Ok(())
        });
        let record = stage.sharers_are_cut(&sidecar, "sharer")?;
        assert!([30, 40].contains(&record.timeout_s), "{record:?}");
        while !rewriting.is_finished() {
            assert_eq!(twins_browse()?, 0, "{}", sidecar.trouble("twins were cut"));
            thread::sleep(Duration::from_millis(100));
        }
        rewriting.join().map_err(|_| LabError::new("the writer panicked"))?
    })?;
    let status = sidecar.settled()?;
    // A device's own line may come when its connection has just been reset.
    let forged = u64::from(10 * REWRITES);
    assert!((forged..forged + 20).contains(&status.count("unverified")?), "{status}");

    // What holds is what was whole, and what was wrong is said to the point.
    sidecar.wait_for_message(&format!("{}:3:11: ", path.display()))?;
    let (mut first, mut second) = (device(3, "another"), device(4, "another"));
    let (record, _) = sidecar.until_cut(&mut first, &mut second, BOUND)?;
    assert_eq!((record.source.as_str(), record.timeout_s), ("198.18.5.4", 40));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(twins_browse()?, 0, "{}", sidecar.trouble("twins were cut"));
        thread::sleep(Duration::from_millis(100));
    }
    rewrite(0, "timeout = '20s'\n[limits]\n'twins' = 1\n")?;
    let record = eventually("the twins to be cut", BOUND, || {
        twins_browse()?;
        Ok(sidecar.records()?.into_iter().find(|it| it.user == "twins" && it.action == "ban"))
    })
    .map_err(|error| sidecar.trouble(&error.to_string()))?;
    assert_eq!((record.source.as_str(), record.places, record.timeout_s), ("198.18.5.2", 1, 20));
    Ok(())
}
