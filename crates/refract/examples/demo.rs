//! Refract at work, for somebody who has never seen it: `make demo`.
//!
//! Makes a network of its own out of namespaces, runs the real daemon in it beside a real proxy
//! (V2Ray or Xray when there is one, plain TCP connections and lines in Xray's format otherwise),
//! and shows what happens to two devices that share one account. Needs no root: without it, it
//! starts itself again under `unshare -Urn`. Takes the path of the `refract` binary, or finds the
//! one that was built with it. Changes nothing outside its network and leaves nothing behind.

#[expect(dead_code, reason = "the demo uses its part of the lab")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    env,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{self, Command, ExitCode},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use support::{
    LabError, Result,
    access_log::AccessLog,
    daemon::Daemon,
    eventually,
    lab::{Host, Lab, SERVER_V4},
    peer::{Ending, Progress, Server, Talker},
    proxy::{ALICE, Device, Program, Protocol, ProxyServer, Stream},
    witness,
};

const PORT: u16 = 443;
const PHONE: &str = "198.51.100.11";
const LAPTOP: &str = "198.51.100.12";
const SET: &str = "refract_banned_users";
/// Short, so that the demo is.
const WINDOW: &str = "2s";
const TIMEOUT: &str = "6s";
/// How often a device asks for something new.
const PACE: Duration = Duration::from_millis(200);
/// How long anything may take before the demo gives up.
const BOUND: Duration = Duration::from_secs(20);
/// Offenders in the measurement.
const OFFENDERS: u32 = 50;
/// The offenders' addresses, and those of the users' first devices (RFC 2544).
const OFFENDING: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
const HOLDING: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Output is folded at this width.
const WIDTH: usize = 96;

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        return without_root();
    }
    match binary().and_then(|binary| show(&binary).and_then(|()| measure(&binary))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the demo again as the root of a user namespace of its own; returns only if it cannot.
fn without_root() -> ExitCode {
    let error = match env::current_exe() {
        Ok(ourselves) => {
            Command::new("unshare").arg("-Urn").arg(ourselves).args(env::args_os().skip(1)).exec()
        }
        Err(error) => error,
    };
    eprintln!("demo: cannot start `unshare -Urn`: {error}; try again as root");
    ExitCode::FAILURE
}

/// The binary that was named, or the one beside this program (`target/PROFILE/refract`).
fn binary() -> Result<PathBuf> {
    let named = env::args_os().nth(1).map(PathBuf::from);
    let beside = || Some(env::current_exe().ok()?.parent()?.parent()?.join("refract"));
    named
        .or_else(beside)
        .filter(|path| path.is_file())
        .ok_or_else(|| LabError::new("no refract binary: build it, or name its path"))
}

/// Two devices, one account: the story.
fn show(binary: &Path) -> Result<()> {
    print_line("Refract at work, in a network of its own that is gone when this ends.");
    let mut lab = Lab::new()?;
    let phone_host = lab.add_client(&[PHONE])?;
    let laptop_host = lab.add_client(&[LAPTOP])?;
    let entrance = Entrance::open(&lab)?;

    headline("One server, two devices, one account");
    say(&format!("server   {SERVER_V4}   {}", entrance.describe()));
    say(&format!("phone    {PHONE}   {}, whose account it is", ALICE.email));
    say(&format!("laptop   {LAPTOP}   somebody whom she gave her password"));
    let flags = [
        format!("--dport={PORT}"),
        format!("--window={WINDOW}"),
        format!("--timeout={TIMEOUT}"),
        format!("--access.log={}", entrance.access_log().display()),
        format!("--block.log={}", lab.path("block.log").display()),
    ];
    print_line("");
    say(&format!("$ refract {}", flags.join(" ")));
    let daemon = Daemon::start(binary, lab.server(), &flags)?;
    say(&daemon.messages());

    headline("The first device works");
    let phone = entrance.admit(&lab, &phone_host)?;
    let download = phone.connect()?;
    download.progress().wait_for_bytes(download.plenty(), BOUND)?;
    say(&format!("phone    downloads, {} bytes so far", download.progress().received()));

    thread::scope(|scope| {
        let (over, is_over) = mpsc::channel::<()>();
        let browsing = scope.spawn(move || phone.browse_until(&is_over));

        headline("A second device joins with the same account");
        let laptop = entrance.admit(&lab, &laptop_host)?;
        let came = Instant::now();
        let before = download.progress().received();
        share_until_cut(&laptop)?;
        say(&format!("laptop   cut off {:.1} s after it came", came.elapsed().as_secs_f64()));
        download.progress().wait_for_bytes(1, BOUND)?;
        let more = download.progress().received() - before;
        say(&format!("phone    goes on, {more} bytes more, none lost"));
        drop(laptop);

        headline("What the kernel holds now");
        witness::wait_for_member(lab.server(), SET, LAPTOP, true, BOUND)?;
        run(lab.server(), "ipset", &["list", SET])?;
        run(lab.server(), "iptables", &["-S", "INPUT"])?;

        headline("Who, what, why: the audit trail");
        let record = witness::wait_for_line(&lab.path("block.log"), LAPTOP, BOUND)?;
        say("$ tail -n 1 block.log");
        say(&record);

        headline("The ban lifts by itself");
        drop(over);
        browsing.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))?;
        drop(download);
        say("phone    switched off");
        witness::wait_for_member(lab.server(), SET, LAPTOP, false, BOUND)?;
        say(&format!("the set has let go of {LAPTOP}: --timeout={TIMEOUT}, kept by the kernel"));
        let laptop = entrance.admit(&lab, &laptop_host)?;
        laptop.connect()?.progress().wait_for_bytes(1_000, BOUND)?;
        say("laptop   in again: one device at a time is what the account is for");
        Ok(())
    })?;
    daemon.terminate(BOUND).map(drop)
}

/// How fast: from the line to the reset, on the word of the log, with nothing but sockets.
fn measure(binary: &Path) -> Result<()> {
    headline("How fast");
    let mut lab = Lab::new()?;
    let client = lab.add_client(&[PHONE])?;
    lab.own_prefix(&client, "198.18.0.0/15")?;
    let _echo = Server::echo(lab.server(), PORT)?;
    let log = AccessLog::open(lab.path("access.log"))?;
    let flags = [
        "--evidence=log".to_owned(),
        format!("--dport={PORT}"),
        format!("--window={WINDOW}"),
        format!("--access.log={}", log.path().display()),
        format!("--block.log={}", lab.path("block.log").display()),
    ];
    let daemon = Daemon::start(binary, lab.server(), &flags)?;
    let mut offenders = (0..).map(|index| Offender { index, client: &client, log: &log });
    // There may be no verdicts in the first window; the first one that falls is not counted.
    eventually("a first offender to be cut off", BOUND, || {
        offenders.next().map_or(Ok(None), |offender| offender.time_to_reset(PACE))
    })?;
    let mut taken = Vec::new();
    for offender in offenders.take(usize::try_from(OFFENDERS).unwrap_or_default()) {
        taken.push(offender.time_to_reset(BOUND)?.ok_or_else(|| {
            LabError::new(format!("offender {} was never cut off", offender.index))
        })?);
    }
    taken.sort_unstable();
    let micros = |at: usize| taken.get(at).map_or(0, Duration::as_micros);
    say(&format!("{OFFENDERS} offenders one by one, from the write of the log line to the reset:"));
    say(&format!(
        "fastest {} us, median {} us, slowest {} us, on this machine, now",
        micros(0),
        micros(taken.len() / 2),
        micros(taken.len() - 1),
    ));
    daemon.terminate(BOUND).map(drop)
}

/// A second source for a user whose place is held.
struct Offender<'lab> {
    index: u32,
    client: &'lab Host,
    log: &'lab AccessLog,
}

impl Offender<'_> {
    /// Connects, is given away by a line, and is reset; `None` if it is not within `bound`.
    fn time_to_reset(&self, bound: Duration) -> Result<Option<Duration>> {
        let user = format!("user{}@example.com", self.index);
        let nth = |first: Ipv4Addr| Ipv4Addr::from(u32::from(first) + self.index);
        self.log.accepted(SocketAddr::new(nth(HOLDING).into(), 40_000), &user)?;
        let server = SocketAddr::new(SERVER_V4.into(), PORT);
        let talker = Talker::connect(self.client, nth(OFFENDING).into(), server)?;
        talker.progress().wait_for_bytes(1, BOUND)?;
        let written = Instant::now();
        self.log.accepted(talker.local(), &user)?;
        Ok(match talker.progress().wait_for_end(bound) {
            Ok(Ending::Reset(when)) => Some(when.duration_since(written)),
            _ => None,
        })
    }
}

/// The way in: a real proxy, or what stands for one.
enum Entrance {
    Proxy { program: Program, server: ProxyServer },
    Echo { _server: Server, log: AccessLog, no_proxy: LabError },
}

impl Entrance {
    fn open(lab: &Lab) -> Result<Self> {
        let no_proxy = match Program::find() {
            Ok(program) => {
                let server = ProxyServer::start(lab, &program, Protocol::Vless, PORT)?;
                return Ok(Self::Proxy { program, server });
            }
            Err(error) => error,
        };
        let log = AccessLog::open(lab.path("access.log"))?;
        Ok(Self::Echo { _server: Server::echo(lab.server(), PORT)?, log, no_proxy })
    }

    fn describe(&self) -> String {
        match self {
            Self::Proxy { program, .. } => {
                format!("{} with VLESS on port {PORT}", program.path().display())
            }
            Self::Echo { no_proxy, .. } => {
                format!("plain TCP on port {PORT}, with lines as Xray writes them\n({no_proxy})")
            }
        }
    }

    fn access_log(&self) -> &Path {
        match self {
            Self::Proxy { server, .. } => server.access_log(),
            Self::Echo { log, .. } => log.path(),
        }
    }

    /// A device on `host` that has Alice's account.
    fn admit<'lab>(&'lab self, lab: &Lab, host: &'lab Host) -> Result<Guest<'lab>> {
        match self {
            Self::Proxy { program, server } => {
                let addresses = (host.v4()?, IpAddr::from(SERVER_V4));
                let device = Device::start(lab, program, server, host, addresses, &ALICE)?;
                Ok(Guest::Proxied(device))
            }
            Self::Echo { log, .. } => Ok(Guest::Plain { host, log }),
        }
    }
}

/// A device.
enum Guest<'lab> {
    Proxied(Device<'lab>),
    Plain { host: &'lab Host, log: &'lab AccessLog },
}

impl Guest<'_> {
    fn connect(&self) -> Result<Connection> {
        match self {
            Self::Proxied(device) => device.stream(2 * PACE).map(Connection::Stream),
            Self::Plain { host, log } => {
                let server = SocketAddr::new(SERVER_V4.into(), PORT);
                let talker = Talker::connect(host, host.v4()?, server)?;
                log.accepted(talker.local(), ALICE.email)?;
                Ok(Connection::Talker(talker))
            }
        }
    }

    /// Asks for something new every [`PACE`] until it is told to stop; every answer must come.
    fn browse_until(&self, is_over: &mpsc::Receiver<()>) -> Result<()> {
        while is_over.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
            self.connect()?.progress().wait_for_bytes(100, BOUND)?;
        }
        Ok(())
    }
}

/// One stream of a device.
enum Connection {
    Stream(Stream),
    Talker(Talker),
}

impl Connection {
    fn progress(&self) -> &Progress {
        match self {
            Self::Stream(stream) => stream.progress(),
            Self::Talker(talker) => talker.progress(),
        }
    }

    /// Bytes that take about a second.
    fn plenty(&self) -> u64 {
        match self {
            Self::Stream(_) => 100_000,
            Self::Talker(_) => 3_000,
        }
    }
}

/// Uses the account until the first stream ends; opening it may already fail.
fn share_until_cut(device: &Guest<'_>) -> Result<()> {
    let Ok(stream) = device.connect() else { return Ok(()) };
    say("laptop   downloads, too");
    let deadline = Instant::now() + BOUND;
    while Instant::now() < deadline {
        // That it fails is what is waited for.
        let _ = device.connect().and_then(|new| new.progress().wait_for_bytes(100, PACE));
        if stream.progress().wait_for_end(PACE).is_ok() {
            return Ok(());
        }
    }
    Err(LabError::new(format!("the second device still had its stream after {BOUND:?}")))
}

fn headline(text: &str) {
    print_line(&format!("\n== {text}\n"));
}

/// Prints `text` indented and folded, so that no line is wider than a page.
fn say(text: &str) {
    for line in text.lines() {
        let characters: Vec<char> = line.chars().collect();
        for piece in characters.chunks(WIDTH) {
            print_line(&format!("   {}", piece.iter().collect::<String>()));
        }
    }
}

fn run(host: &Host, program: &str, arguments: &[&str]) -> Result<()> {
    say(&format!("$ {program} {}", arguments.join(" ")));
    say(&host.output(program, arguments)?);
    print_line("");
    Ok(())
}

/// Prints a line. Nobody may be reading any more (`| head`); then there is nothing left to do, and
/// the kernel ends what was started.
fn print_line(text: &str) {
    if writeln!(io::stdout(), "{text}").is_err() {
        process::exit(1);
    }
}
