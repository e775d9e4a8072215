//! What lines of a known connection cost: the same, however many they are, but for their reading.
//!
//! One client connects and is named once, and then 10,000 and 100,000 times more, each time in one
//! write. The daemon's `status` says how many look-ups there were. Two second eyes look from
//! outside: the kernel's own sum of the processor time of the daemon's thread, and, where there is an
//! `strace`, its system calls by name. That slows it down, so it is another pass over as many lines.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{DAEMON_PORT, Stage, clients::Client};
use crate::{
    measuring::samples,
    support::{
        LabError, Result, access_log::accepted_line, eventually, evidence::Status, process::Process,
    },
};

const USER: &str = "known@example.com";
const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 1);
const SOURCE_PORT: u16 = 40_001;
/// Lines in one write.
const LINES: [u32; 2] = [10_000, 100_000];
/// How long the daemon may take for anything here.
const BOUND: Duration = Duration::from_secs(20);
/// How long the daemon's thread has to be at rest to be done.
const QUIET: Duration = Duration::from_millis(50);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_micros(500);
/// System calls of the loop's own upkeep that may fall into one pass: a few each second.
const UPKEEP: u64 = 40;
/// What reads of the log and the waits between them are called.
const READS: [&str; 4] = ["read", "pread64", "epoll_pwait", "epoll_pwait2"];

/// Measures and prints.
pub(crate) fn measure(stage: &Stage) -> Result<()> {
    let client = stage.client.run(|| Client::connect(SOURCE, SOURCE_PORT, DAEMON_PORT))?;
    let line = accepted_line(client.local(), USER);
    stage.log.write(line.as_bytes())?;
    let mut before = eventually("the connection to be known", BOUND, || {
        Ok(Some(Counters::ask(stage)?).filter(|counters| counters.lines == 1))
    })?;

    println!("lines of one known connection, all in one write");
    println!();
    println!(
        "{:>10}{:>10}{:>16}{:>28}",
        "lines", "look-ups", "lines a second", "the same of its own time"
    );
    let mut lookups = 0;
    for lines in LINES {
        let pass = Pass::over(stage, &line, lines)?;
        let after = eventually("every line to be known", BOUND, || {
            let counters = Counters::ask(stage)?;
            Ok((counters.known == before.known + u64::from(lines)).then_some(counters))
        })?;
        println!(
            "{lines:>10}{:>10}{:>14.2} M{:>26.2} M",
            after.lookups - before.lookups,
            millions_a_second(lines, pass.elapsed),
            millions_a_second(lines, pass.worked),
        );
        lookups += after.lookups - before.lookups;
        before = after;
    }
    println!();
    println!("{lookups} look-ups for all of them; none: {}", samples::kept(lookups == 0));
    let mut others = Vec::new();
    for lines in LINES {
        let Some(calls) = count_calls(stage, &line, lines)? else {
            println!("strace is not here: system calls were NOT counted");
            return Ok(());
        };
        let of_reading: u64 = READS.iter().filter_map(|name| calls.get(*name)).sum();
        let all: u64 = calls.values().sum();
        let named: Vec<String> =
            calls.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("{lines} lines, {all} system calls: {}", named.join(", "));
        others.push(all - of_reading);
    }
    let most = others.iter().copied().max().unwrap_or_default();
    println!(
        "other than reads of the log and waits for it: {others:?}; at most {UPKEEP} of upkeep: {}",
        samples::kept(most <= UPKEEP)
    );
    Ok(())
}

/// What `SIGUSR1` makes the daemon say, as far as it is looked at here.
struct Counters {
    lookups: u64,
    known: u64,
    lines: u64,
}

impl Counters {
    fn ask(stage: &Stage) -> Result<Self> {
        let status = Status::ask(&stage.daemon)?;
        Ok(Self {
            lookups: status.count("lookups")?,
            known: status.count("known")?,
            lines: status.count("lines")?,
        })
    }
}

/// One pass over many lines.
struct Pass {
    elapsed: Duration,
    /// Processor time of the daemon's thread.
    worked: Duration,
}

impl Pass {
    /// Writes the lines, and watches until nothing is left to do about them.
    fn over(stage: &Stage, line: &str, lines: u32) -> Result<Self> {
        let text = line.repeat(usize::try_from(lines).unwrap_or_default());
        let at_first = worked(stage)?;
        let began = Instant::now();
        stage.log.write(text.as_bytes())?;
        let (mut last, mut changed) = (at_first, began);
        while began.elapsed() < BOUND {
            let worked = worked(stage)?;
            if worked != last {
                (last, changed) = (worked, Instant::now());
            } else if last != at_first && changed.elapsed() > QUIET {
                return Ok(Self {
                    elapsed: changed - began,
                    worked: last.saturating_sub(at_first),
                });
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Err(LabError::new("the daemon never came to rest"))
    }
}

/// The processor time of the daemon's thread: the first number of its `schedstat`, nanoseconds,
/// brought up to date at every tick of the kernel and when the thread goes to sleep.
fn worked(stage: &Stage) -> Result<Duration> {
    let what = "see how long the daemon was at work";
    let id = stage.daemon.id();
    let numbers = fs::read_to_string(format!("/proc/{id}/task/{id}/schedstat"))
        .map_err(LabError::while_trying(what))?;
    let nanos = numbers.split(' ').next().unwrap_or_default().parse();
    Ok(Duration::from_nanos(nanos.map_err(LabError::while_trying(what))?))
}

/// The system calls of the daemon's thread, by name, for as many lines; `None` without an strace.
fn count_calls(stage: &Stage, line: &str, lines: u32) -> Result<Option<BTreeMap<String, u64>>> {
    if Command::new("strace").arg("--version").output().is_err() {
        return Ok(None);
    }
    let summary = stage.lab.path("calls");
    let mut command = Command::new("strace");
    // Not its other threads: they walk the table and write records.
    command.args(["-c", "-U", "calls,name", "-p", &stage.daemon.id().to_string(), "-o"]);
    command.arg(&summary);
    let strace = Process::start(stage.lab.server(), &command)?;
    strace.wait_for_line("that it is attached", BOUND, |line| line.contains("attached"))?;
    Pass::over(stage, line, lines)?;
    strace.signal(Signal::INT)?;
    strace.wait(BOUND)?;
    let summary =
        fs::read_to_string(&summary).map_err(LabError::while_trying("read what strace counted"))?;
    let calls = summary.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let count = words.next()?.parse().ok()?;
        let name = words.next()?;
        (name != "total").then(|| (name.to_owned(), count))
    });
    Ok(Some(calls.collect()))
}

fn millions_a_second(lines: u32, time: Duration) -> f64 {
    f64::from(lines) / time.as_secs_f64() / 1e6
}
