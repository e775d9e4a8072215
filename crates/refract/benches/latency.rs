//! How long after the log line the offender is out: measured, against the floor of this machine.
//!
//! `cargo bench -p refract --bench latency` makes a lab of its own (root, or `unshare -Urn`), feeds
//! the daemon with lines of real connections, and prints microseconds from the `write(2)` of the
//! line to two events: the address is a member of the kernel set, and the client's read fails with
//! ECONNRESET. In turns with it, in blocks, runs the *floor*: a bare loop in a process of its own
//! that does only what nobody can leave out (wake, read, one add, one lookup, one destroy) and
//! parses nothing. Gaps between samples are random, so that nobody's period is measured. Last, 500
//! offenders arrive in one write. Beside the numbers stands what is promised of them; a promise not
//! kept is printed and fails nothing, because a busy machine measures itself.
//!
//! Without `--bench` (as under `cargo test --benches`) it takes a few samples only, to prove that
//! it runs. `--floor-only` leaves the daemon out. With `REFRACT_TEST_FIREWALL=nftables` the daemon has
//! nftables; the floor has ipset all the same.

#[expect(dead_code, reason = "the benchmark uses its part of the lab")]
#[path = "../tests/support/mod.rs"]
mod support;

#[expect(dead_code, reason = "the benchmark uses its part of what is measured with")]
#[path = "measuring/mod.rs"]
mod measuring;

use std::{
    collections::{BTreeSet, VecDeque},
    env,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::ExitCode,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use measuring::{floor, gaps::Gaps, log_floor, nth, raw, samples};
use support::{
    LabError, Result,
    access_log::{AccessLog, accepted_line},
    daemon::Daemon,
    eventually,
    lab::{Host, Lab, SERVER_V4},
    peer::{CONNECT_BOUND, connect_from},
    process::Process,
    witness,
};

/// Every client address of the benchmark (RFC 2544: meant for benchmarks).
const CLIENTS: &str = "198.18.0.0/15";
/// First holders of a user's place, whom the daemon lets be.
const HOLDERS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// The daemon's offenders.
const DAEMON_OFFENDERS: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);
/// The floor's.
const FLOOR_OFFENDERS: Ipv4Addr = Ipv4Addr::new(198, 19, 128, 0);
/// The port that every offender speaks from; the addresses differ.
const CLIENT_PORT: u16 = 40_001;
/// Offenders in one write.
const BURST: u32 = 500;
/// How often the burst is measured.
const BURSTS: u32 = 5;
/// Samples of each event and subject in one turn.
const BLOCK: u32 = 100;
/// Turns with `--bench`: 2,000 samples of each event for each subject.
const BLOCKS: u32 = 20;
/// The gaps between samples.
const LEAST_GAP: Duration = Duration::from_micros(300);
/// Their spread.
const GAP_SPREAD: Duration = Duration::from_micros(1_100);
/// How long any single event may take before the benchmark gives up.
const BOUND: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match &arguments[..] {
        [word, rest @ ..] if word == log_floor::WORD => log_floor::run(rest),
        _ => measure(
            arguments.iter().any(|word| word == "--bench"),
            arguments.iter().any(|word| word == "--floor-only"),
        ),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("latency: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(is_full: bool, floor_only: bool) -> Result<()> {
    let mut lab = Lab::new()?;
    let client = lab.add_client(&["198.51.100.11"])?;
    lab.own_prefix(&client, CLIENTS)?;
    let server = lab.server();

    let mut subjects = vec![start_floor(&lab)?];
    if !floor_only {
        subjects.push(start_daemon(&lab)?);
    }
    for subject in &subjects {
        hold_connections(server, subject.port)?;
    }
    let blocks = if is_full { BLOCKS } else { 1 };
    let block = if is_full { BLOCK } else { 10 };
    server.run(|| {
        let readers = Readers::start(&client);
        let mut membership = raw::Membership::open()?;
        let mut gaps = Gaps::default();
        for subject in &mut subjects {
            subject.warm_up(&mut membership)?;
        }
        for _ in 0..blocks {
            for subject in &mut subjects {
                for _ in 0..block {
                    let sample = subject.time_to_reset(&readers, &mut gaps)?;
                    subject.to_reset.push(sample);
                    let sample = subject.time_to_member(&readers, &mut membership, &mut gaps)?;
                    subject.to_member.push(sample);
                }
            }
        }
        for _ in 0..BURSTS {
            for subject in &mut subjects {
                let sample = subject.time_to_burst(&mut membership, &mut gaps)?;
                subject.to_burst.push(sample);
            }
        }
        Ok(())
    })?;
    for subject in &subjects {
        subject.check_members(server)?;
    }
    print(&subjects);
    Ok(())
}

/// What is measured: a process that follows a log and bans into a set.
struct Subject {
    name: &'static str,
    log: AccessLog,
    set: &'static str,
    port: u16,
    /// Offenders have the addresses from here on, one after the other.
    offenders: Ipv4Addr,
    offended: u32,
    /// How many of them there were before it was warm.
    warmed_up: u32,
    to_reset: Vec<Duration>,
    to_member: Vec<Duration>,
    to_burst: Vec<Duration>,
    running: Running,
}

enum Running {
    Floor { _process: Process },
    Daemon { _daemon: Daemon },
}

fn start_floor(lab: &Lab) -> Result<Subject> {
    let set = "latency_floor";
    let log = AccessLog::open(lab.path("floor.log"))?;
    let port = 444;
    let arguments = [
        log.path().display().to_string(),
        set.to_owned(),
        SocketAddr::new(SERVER_V4.into(), port).to_string(),
        SocketAddr::new(FLOOR_OFFENDERS.into(), CLIENT_PORT).to_string(),
    ];
    let process = floor::start(lab.server(), set, log_floor::WORD, &arguments)?;
    let running = Running::Floor { _process: process };
    Ok(Subject::new("floor", log, set, (port, FLOOR_OFFENDERS), running))
}

fn start_daemon(lab: &Lab) -> Result<Subject> {
    let log = AccessLog::open(lab.path("access.log"))?;
    let port = 443;
    let flags = [
        format!("--access.log={}", log.path().display()),
        format!("--block.log={}", lab.path("block.log").display()),
        format!("--dport={port}"),
        // The word of the log: a line is the proof, so the clock starts at its write.
        "--evidence=log".to_owned(),
        "--window=2s".to_owned(),
        "--timeout=10m".to_owned(),
        // Each sample is another user, far more of them in a minute than the brake allows.
        "--max-bans=0".to_owned(),
    ];
    let daemon = Daemon::start(Path::new(env!("CARGO_BIN_EXE_refract")), lab.server(), &flags)?;
    let running = Running::Daemon { _daemon: daemon };
    Ok(Subject::new("refract", log, "refract_banned_users", (port, DAEMON_OFFENDERS), running))
}

impl Subject {
    fn new(
        name: &'static str,
        log: AccessLog,
        set: &'static str,
        (port, offenders): (u16, Ipv4Addr),
        running: Running,
    ) -> Self {
        Self {
            name,
            log,
            set,
            port,
            offenders,
            offended: 0,
            warmed_up: 0,
            to_reset: Vec::new(),
            to_member: Vec::new(),
            to_burst: Vec::new(),
            running,
        }
    }

    /// Offends until it acts: it may take no verdicts in its first window.
    fn warm_up(&mut self, membership: &mut raw::Membership) -> Result<()> {
        eventually(&format!("{} to act", self.name), BOUND, || {
            let offender = self.next_offender()?;
            self.log.write(self.offence(offender).as_bytes())?;
            let deadline = Instant::now() + Duration::from_millis(100);
            while Instant::now() < deadline {
                if membership.has(self.set, offender)? {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        })?;
        self.warmed_up = self.offended;
        Ok(())
    }

    /// From the write of the line to the client's ECONNRESET. Nothing else runs meanwhile.
    fn time_to_reset(&mut self, readers: &Readers, gaps: &mut Gaps) -> Result<Duration> {
        let (offender, line) = self.connected_offence(readers)?;
        thread::sleep(gaps.next(LEAST_GAP, GAP_SPREAD));
        let written = Instant::now();
        self.log.write(line.as_bytes())?;
        Ok(readers.reset_of(offender)?.duration_since(written))
    }

    /// From the write of the line to the first look that finds the address in the set.
    fn time_to_member(
        &mut self,
        readers: &Readers,
        membership: &mut raw::Membership,
        gaps: &mut Gaps,
    ) -> Result<Duration> {
        let (offender, line) = self.connected_offence(readers)?;
        thread::sleep(gaps.next(LEAST_GAP, GAP_SPREAD));
        let written = Instant::now();
        self.log.write(line.as_bytes())?;
        self.wait_for_member(membership, offender, written)?;
        let taken = written.elapsed();
        readers.reset_of(offender)?;
        Ok(taken)
    }

    /// From one write of [`BURST`] lines until all of those addresses are in the set.
    fn time_to_burst(
        &mut self,
        membership: &mut raw::Membership,
        gaps: &mut Gaps,
    ) -> Result<Duration> {
        let mut lines = String::new();
        let mut offenders = Vec::new();
        for _ in 0..BURST {
            let offender = self.next_offender()?;
            lines += &self.offence(offender);
            offenders.push(offender);
        }
        thread::sleep(gaps.next(LEAST_GAP, GAP_SPREAD));
        let written = Instant::now();
        self.log.write(lines.as_bytes())?;
        for offender in offenders {
            self.wait_for_member(membership, offender, written)?;
        }
        Ok(written.elapsed())
    }

    /// Every offender of this run is in the set, and nobody else: asked of `ipset` (or `nft`).
    fn check_members(&self, server: &Host) -> Result<()> {
        let found: BTreeSet<String> = witness::set_members(server, self.set)?.into_iter().collect();
        let name = |index| nth(self.offenders, index).to_string();
        let offenders: BTreeSet<String> = (0..self.offended).map(name).collect();
        if let Some(innocent) = found.difference(&offenders).next() {
            return Err(LabError::new(format!("{innocent} is in {} for nothing", self.set)));
        }
        // What was written while it warmed up may have been let off.
        match (self.warmed_up..self.offended).map(name).find(|offender| !found.contains(offender)) {
            Some(offender) => {
                Err(LabError::new(format!("{offender} is no longer in {}", self.set)))
            }
            None => Ok(()),
        }
    }

    /// The next offender, connected and blocked in its read, with the line that gives it away.
    fn connected_offence(&mut self, readers: &Readers) -> Result<(Ipv4Addr, String)> {
        let offender = self.next_offender()?;
        readers.connect(offender, self.port)?;
        Ok((offender, self.offence(offender)))
    }

    /// Takes the next address, and has somebody else hold its user's place.
    fn next_offender(&mut self) -> Result<Ipv4Addr> {
        let index = self.offended;
        self.offended += 1;
        if let Running::Daemon { .. } = self.running {
            let holder = SocketAddr::new(nth(HOLDERS, index).into(), CLIENT_PORT);
            self.log.accepted(holder, &user(index))?;
        }
        Ok(nth(self.offenders, index))
    }

    fn offence(&self, offender: Ipv4Addr) -> String {
        let index = u32::from(offender) - u32::from(self.offenders);
        accepted_line(SocketAddr::new(offender.into(), CLIENT_PORT), &user(index))
    }

    fn wait_for_member(
        &self,
        membership: &mut raw::Membership,
        offender: Ipv4Addr,
        since: Instant,
    ) -> Result<()> {
        while !membership.has(self.set, offender)? {
            if since.elapsed() > BOUND {
                return Err(LabError::new(format!("{} never banned {offender}", self.name)));
            }
            // A look that holds the processor would be what is measured.
            thread::yield_now();
        }
        Ok(())
    }
}

fn user(index: u32) -> String {
    format!("user{index:06}@example.com")
}

/// The clients: one thread on the client host, blocked in one connection's read at a time.
struct Readers {
    connect: Sender<(Ipv4Addr, u16)>,
    connected: Receiver<io::Result<()>>,
    reset: Receiver<(Ipv4Addr, io::Result<Instant>)>,
}

impl Readers {
    fn start(client: &Host) -> Self {
        let (connect, wanted) = mpsc::channel::<(Ipv4Addr, u16)>();
        let (tell_connected, connected) = mpsc::channel();
        let (tell_reset, reset) = mpsc::channel();
        client.start_thread(move || {
            for (source, port) in wanted {
                let source_socket = SocketAddr::new(source.into(), CLIENT_PORT);
                let server = SocketAddr::new(SERVER_V4.into(), port);
                let connection = connect_from(source_socket, server, CONNECT_BOUND);
                // Whoever no longer listens has given up on the measurement.
                match connection {
                    Ok(mut connection) => {
                        let _ = tell_connected.send(Ok(()));
                        let _ = tell_reset.send((source, await_reset(&mut connection)));
                    }
                    Err(error) => drop(tell_connected.send(Err(error))),
                }
            }
            Ok(())
        });
        Self { connect, connected, reset }
    }

    fn connect(&self, source: Ipv4Addr, port: u16) -> Result<()> {
        let what = format!("connect from {source} to port {port}");
        self.connect.send((source, port)).map_err(LabError::while_trying(&what))?;
        let answer = self.connected.recv().map_err(LabError::while_trying(&what))?;
        answer.map_err(LabError::while_trying(what))
    }

    /// When the read of `source` failed with ECONNRESET.
    fn reset_of(&self, source: Ipv4Addr) -> Result<Instant> {
        let what = format!("see the reset of {source}");
        let (who, when) = self.reset.recv_timeout(BOUND).map_err(LabError::while_trying(&what))?;
        if who == source {
            when.map_err(LabError::while_trying(what))
        } else {
            Err(LabError::new(format!("cannot {what}: {who} was reset")))
        }
    }
}

fn await_reset(connection: &mut TcpStream) -> io::Result<Instant> {
    match connection.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Instant::now()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("the connection ended without a reset")),
    }
}

/// A server that accepts, says nothing, and lets old connections go.
fn hold_connections(server: &Host, port: u16) -> Result<()> {
    let listener = server.run(|| {
        TcpListener::bind((IpAddr::from(Ipv6Addr::UNSPECIFIED), port))
            .map_err(LabError::while_trying(format!("listen on port {port}")))
    })?;
    thread::spawn(move || {
        let mut held = VecDeque::new();
        for connection in listener.incoming().map_while(io::Result::ok) {
            held.push_back(connection);
            if held.len() > 64 {
                held.pop_front();
            }
        }
    });
    Ok(())
}

fn print(subjects: &[Subject]) {
    println!("microseconds from the write(2) of the line; gaps of 0.3 to 1.4 ms at random");
    println!();
    samples::print_head("until");
    let burst = format!("{BURST} in one write, all set");
    for (until, samples_of) in [
        ("client sees ECONNRESET", (|subject| &subject.to_reset) as fn(&Subject) -> &Vec<_>),
        ("address is in the set", |subject| &subject.to_member),
        (burst.as_str(), |subject| &subject.to_burst),
    ] {
        for subject in subjects {
            samples::print_row(subject.name, until, samples_of(subject));
        }
    }
    if let [floor, refract] = subjects {
        println!();
        samples::print_promises(&floor.to_reset, &refract.to_reset);
    }
}
