//! Refract at work, for somebody who has never seen it: `make demo`.
//!
//! Makes a network of its own out of namespaces, runs the real daemon in it beside a real proxy
//! (V2Ray or Xray when there is one, plain TCP connections and lines in Xray's format otherwise),
//! and shows what happens to two devices that share one account. Needs no root: without it, it
//! starts itself again under `unshare -Urn`. Takes the path of the `refract` binary, or finds the
//! one that was built with it. Changes nothing outside its network, leaves nothing behind and
//! installs nothing: what is missing is named.

#[expect(dead_code, reason = "the demo uses its part of the lab")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    collections::BTreeSet,
    env,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt as _,
    panic,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
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
/// No line of the output is wider, in characters.
const WIDTH: usize = 100;
/// What every line of a section begins with,
const INDENT: &str = "   ";
/// and what continues one that was too long.
const CONTINUED: &str = "       ";
/// Programs that the demo runs, and the Debian packages they come in.
const NEEDS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("ipset", "ipset"),
    ("iptables", "iptables"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
];
/// Where system programs are, which the search path of most users leaves out.
const SYSTEM_PROGRAMS: [&str; 2] = ["/usr/sbin", "/sbin"];

fn main() -> ExitCode {
    let demo = prepare().and_then(|()| binary()).and_then(|binary| {
        let begun = Instant::now();
        show(&binary)?;
        measure(&binary)?;
        headline("That was it");
        say(&format!(
            "{:.0} seconds; the network, the set and the rule are gone with the demo.",
            begun.elapsed().as_secs_f64()
        ));
        Ok(())
    });
    match demo {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes sure that everything is there and allowed. Goes on in a new process, with the same
/// arguments, where it takes a longer search path or the root of a user namespace of its own.
fn prepare() -> Result<()> {
    let ourselves = env::current_exe().map_err(LabError::while_trying("find this program"))?;
    let mut path: Vec<PathBuf> =
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    if SYSTEM_PROGRAMS.iter().any(|folder| !path.contains(&folder.into())) {
        path.extend(SYSTEM_PROGRAMS.map(PathBuf::from));
        let path = env::join_paths(path).map_err(LabError::while_trying("take PATH"))?;
        let error = Command::new(ourselves).args(env::args_os().skip(1)).env("PATH", path).exec();
        return Err(LabError::new(format!("cannot start itself again: {error}")));
    }
    let is_there = |program: &str| path.iter().any(|folder| folder.join(program).is_file());
    let missing: Vec<_> = NEEDS.into_iter().filter(|(program, _)| !is_there(program)).collect();
    if !missing.is_empty() {
        let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
        let packages: BTreeSet<_> = missing.iter().map(|(_, package)| *package).collect();
        return Err(LabError::new(format!(
            "not installed: {}. On Debian or Ubuntu: sudo apt-get install {}",
            programs.join(", "),
            packages.into_iter().collect::<Vec<_>>().join(" "),
        )));
    }

    let is_root = rustix::process::geteuid().is_root();
    let kind = if is_root { "-n" } else { "-Urn" };
    let tried = Command::new("unshare")
        .args([kind, "ip", "link", "set", "lo", "up"])
        .output()
        .map_err(LabError::while_trying("run unshare"))?;
    if !tried.status.success() {
        let said = String::from_utf8_lossy(&tried.stderr);
        let remedy = if is_root {
            "in a container, give it the capabilities SYS_ADMIN and NET_ADMIN".to_owned()
        } else {
            format!("try again as root: sudo {}", ourselves.display())
        };
        return Err(LabError::new(format!(
            "a network namespace cannot be made here ({}); {remedy}",
            said.trim()
        )));
    }
    if is_root {
        return Ok(());
    }
    let error =
        Command::new("unshare").arg(kind).arg(ourselves).args(env::args_os().skip(1)).exec();
    Err(LabError::new(format!("cannot run unshare: {error}")))
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
    print_line("It takes about ten seconds.");
    let mut lab = Lab::new()?;
    let phone_host = lab.add_client(&[PHONE])?;
    let laptop_host = lab.add_client(&[LAPTOP])?;
    let entrance = Entrance::open(&lab)?;

    headline("One server, two devices, one account");
    say(&format!("server   {:<15} {}", SERVER_V4.to_string(), entrance.describe()));
    say(&format!("phone    {PHONE:<15} {}, whose account it is", ALICE.email));
    say(&format!("laptop   {LAPTOP:<15} somebody whom she gave her password"));
    print_line("");
    say("The account is for one device at a time. Refract runs on the server and follows the log:");
    print_line("");
    let flags = [
        format!("--dport={PORT}"),
        "--evidence=log".to_owned(),
        format!("--window={WINDOW}"),
        format!("--timeout={TIMEOUT}"),
        format!("--access.log={}", entrance.access_log().display()),
        format!("--block.log={}", lab.path("block.log").display()),
    ];
    say(&format!("$ refract {}", flags.join(" ")));
    let daemon = Daemon::start(binary, lab.server(), &flags)?;
    say(&daemon.messages());

    headline("The first device works");
    let phone = entrance.admit(&lab, &phone_host)?;
    let download = phone.connect()?;
    download.progress().wait_for_bytes(download.plenty(), BOUND)?;
    say(&format!("phone    downloads: {} bytes so far", download.progress().received()));

    thread::scope(|scope| {
        let (over, is_over) = mpsc::channel::<()>();
        let browsing = scope.spawn(move || phone.browse_until(&is_over));

        headline("A second device joins with the same account");
        let laptop = entrance.admit(&lab, &laptop_host)?;
        let came = Instant::now();
        let before = download.progress().received();
        let cut = share_until_cut(&laptop)?;
        let lasted = cut.duration_since(came).as_millis();
        say(&format!("laptop   cut off, {lasted} ms after it began to connect"));
        download.progress().wait_for_bytes(1, BOUND)?;
        let more = download.progress().received() - before;
        say(&format!("phone    goes on: {more} bytes more since the laptop came"));

        headline("What the kernel holds now");
        witness::wait_for_member(lab.server(), SET, LAPTOP, true, BOUND)?;
        say("The banned address, with the seconds it has left:");
        run(lab.server(), "ipset", &["list", SET])?;
        say("and the rule that drops its packets:");
        run(lab.server(), "iptables", &["-S", "INPUT"])?;
        if laptop.connect().is_ok() {
            return Err(LabError::new("the banned device got in again"));
        }
        say("laptop   tries again: no answer");
        drop(laptop);

        headline("Who, what, why: the block log");
        let record = witness::wait_for_line(&lab.path("block.log"), LAPTOP, BOUND)?;
        say("$ tail -n 1 block.log");
        say(&record);
        print_line("");
        say("source      who was cut off, and which connection (peer) the proxy's log had named");
        say("incumbents  who held the account's one place (places=1)");
        say("killed      how many connections were reset");
        say(
            "latency     from reading the line to the address being banned and its connection reset",
        );

        headline("The ban lifts by itself");
        drop(over);
        browsing.join().unwrap_or_else(|cause| panic::resume_unwind(cause))?;
        drop(download);
        say("phone    switched off");
        witness::wait_for_member(lab.server(), SET, LAPTOP, false, BOUND)?;
        say(&format!("the set has let go of {LAPTOP}: --timeout={TIMEOUT}, kept by the kernel"));
        let laptop = entrance.admit(&lab, &laptop_host)?;
        laptop.connect()?.progress().wait_for_bytes(1_000, BOUND)?;
        say("laptop   is in again: the account is used from one place now, and that is its right");
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
    say(&format!(
        "{OFFENDERS} offenders, one by one, from the write of the log line to the reset that the \
         client sees:"
    ));
    say(&format!(
        "fastest {} us, median {} us, slowest {} us (a millionth of a second each), on this machine.",
        micros(0),
        micros(taken.len() / 2),
        micros(taken.len() - 1),
    ));
    say("`make bench` measures it with more care.");
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
                format!("{}, a real proxy: VLESS on port {PORT}", program.path().display())
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

/// Uses the account until the first stream ends, and gives the instant; opening it may already
/// fail.
fn share_until_cut(device: &Guest<'_>) -> Result<Instant> {
    say("laptop   downloads, too");
    let Ok(stream) = device.connect() else { return Ok(Instant::now()) };
    let deadline = Instant::now() + BOUND;
    while Instant::now() < deadline {
        // That it fails is what is waited for.
        let _ = device.connect().and_then(|new| new.progress().wait_for_bytes(100, PACE));
        match stream.progress().wait_for_end(PACE) {
            Ok(Ending::Reset(when) | Ending::Closed(when)) => return Ok(when),
            Ok(Ending::Failed(how)) => {
                return Err(LabError::new(format!("the second device's stream failed: {how}")));
            }
            Err(_) => {}
        }
    }
    Err(LabError::new(format!("the second device still had its stream after {BOUND:?}")))
}

fn headline(text: &str) {
    print_line(&format!("\n== {text}\n"));
}

/// Prints `text` indented, its lines folded between words.
fn say(text: &str) {
    for line in text.lines() {
        for piece in fold(line) {
            print_line(&piece);
        }
    }
}

/// `line` in pieces that are no wider than [`WIDTH`]. Spaces within a piece are kept.
fn fold(line: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut piece = INDENT.to_owned();
    let mut is_empty = true;
    for word in line.split(' ') {
        let space = usize::from(!is_empty);
        if !is_empty && piece.chars().count() + space + word.chars().count() > WIDTH {
            pieces.push(std::mem::replace(&mut piece, CONTINUED.to_owned()));
        } else if !is_empty {
            piece.push(' ');
        }
        piece += word;
        is_empty = false;
    }
    pieces.push(piece);
    pieces
}

fn run(host: &Host, program: &str, arguments: &[&str]) -> Result<()> {
    print_line("");
    say(&format!("$ {program} {}", arguments.join(" ")));
    say(host.output(program, arguments)?.trim_end());
    print_line("");
    Ok(())
}

/// Prints a line. Nobody may be reading any more (`| head`); then the demo ends without a word, and
/// unwinds, so that nothing stays behind.
fn print_line(text: &str) {
    if writeln!(io::stdout(), "{text}").is_err() {
        panic::resume_unwind(Box::new("nobody reads"));
    }
}
