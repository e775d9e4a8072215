//! The loop: one thread, one epoll, from the first check to the last record.
//!
//! Takes the daemon's flags; runs until SIGTERM, SIGINT or the end of standard input. It joins the
//! rooms and owns the clock: tail → judge → enforce, with upkeep once a second. One error in one
//! step is said and the loop goes on; only the start can refuse.

mod start;

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use refract_core::Moment;
use refract_kernel::host::HostEvents;
use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, epoll, poll},
};
use tracing::{error, info, warn};

pub(crate) use self::start::settle_host;
use crate::{
    audit::{BlockLog, News as BlockNews, Outcome, Record},
    cli::Flags,
    enforce::Enforcer,
    error::Error,
    escape::printable,
    firewall::Firewall,
    health::Health,
    judge::Judge,
    lock::NamespaceLock,
    tail::{CHECK_EVERY, News as TailNews, Progress, Tail},
};

/// Upkeep, and the only thing that wakes an idle daemon.
const TICK: Duration = Duration::from_secs(1);
/// How often the log's health is judged.
const HEALTH_TICKS: u64 = 10;
/// Chunks of the log read before the loop looks at everything else again.
const CHUNKS_PER_TURN: usize = 16;
/// How long unfinished enforcements may take when the process is told to stop.
const FAREWELL: Duration = Duration::from_millis(500);
/// Bans tested a second for having been lifted by hand.
const LIFT_TESTS: usize = 256;
/// Silence at the start after which the operator is asked whether the path is right.
const SILENCE: Duration = Duration::from_mins(10);

/// What the loop waits for; the number is the epoll token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    Log = 0,
    Host = 1,
    Survey = 2,
    Ruleset = 3,
    Keeper = 4,
    Stop = 5,
    Reload = 6,
}

/// Runs the daemon until it is told to stop.
pub fn run(flags: &Flags) -> Result<(), Error> {
    let mut daemon = Daemon::start(flags)?;
    let served = daemon.serve();
    daemon.stop();
    served
}

struct Daemon {
    epoll: OwnedFd,
    started: Instant,
    tail: Tail,
    judge: Judge,
    enforcer: Enforcer,
    firewall: Option<Firewall>,
    block_log: BlockLog,
    host: HostEvents,
    flags: Flags,
    health: Health,
    stop: UnixStream,
    reload: UnixStream,
    ticks: u64,
    tail_checked: Instant,
    silence_said: bool,
    oversized_said: bool,
    _lock: Option<NamespaceLock>,
}

impl Daemon {
    fn serve(&mut self) -> Result<(), Error> {
        let mut events = Vec::with_capacity(16);
        let mut next_tick = Instant::now() + TICK;
        // What was appended between opening the log and now.
        let mut unread = true;
        loop {
            events.clear();
            // A full enforcer makes the log wait, where it costs nothing.
            let wait = if unread && !self.enforcer.is_full() {
                Duration::ZERO
            } else {
                let now = Instant::now();
                let due = self.enforcer.due(now).map_or(next_tick, |due| due.min(next_tick));
                due.saturating_duration_since(now)
            };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timespec(wait))) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    return Err(Error::Io {
                        operation: "wait on",
                        object: "the epoll".to_owned(),
                        source: errno.into(),
                    });
                }
            }
            let woken = |wake: Wake| {
                events.iter().any(|event: &epoll::Event| event.data.u64() == wake as u64)
            };
            // Before the log: a line may come from an address that this host was given just now.
            if woken(Wake::Host) {
                self.look_at_host();
            }
            if woken(Wake::Log) {
                self.tail.woken(Instant::now());
                unread = true;
            }
            if unread {
                match self.read_log() {
                    Progress::More => {}
                    Progress::Drained => unread = false,
                    Progress::Ended => {
                        info!("the input has ended");
                        return Ok(());
                    }
                }
            }
            if woken(Wake::Stop) {
                return Ok(());
            }
            let now = Instant::now();
            let surveyed = woken(Wake::Survey);
            if surveyed || self.enforcer.due(now).is_some_and(|due| due <= now) {
                let block_log = &mut self.block_log;
                self.enforcer.advance(now, surveyed, |record| write_down(&record, block_log));
            }
            if let Some(firewall) = &mut self.firewall {
                if woken(Wake::Ruleset) {
                    firewall.ruleset_changed();
                }
                if woken(Wake::Keeper) {
                    firewall.keeper_answered();
                }
            }
            if woken(Wake::Reload) {
                drain(&self.reload);
                say_block(self.block_log.reopen());
                info!("opened the block log again");
            }
            if now >= next_tick {
                next_tick = now + TICK;
                unread |= self.tick(now);
            }
        }
    }

    /// Reads what the log has, a bounded number of chunks. All offenders of a chunk are banned before
    /// the next is read; their connections are killed when nothing more is to be banned.
    fn read_log(&mut self) -> Progress {
        let mut progress = Progress::More;
        for _ in 0..CHUNKS_PER_TURN {
            if self.enforcer.is_full() {
                break;
            }
            let read_at = Instant::now();
            let now = self.moment(read_at);
            let judge = &mut self.judge;
            progress = self.tail.read_chunk(read_at, |line| judge.take(line, now));
            judge.decide();
            if !judge.evictions.is_empty() {
                self.enforcer.ban(&mut judge.evictions, &judge.exemptions, read_at, now);
            }
            if progress != Progress::More {
                break;
            }
        }
        self.tell_tail();
        progress
    }

    /// The upkeep of every second; `true` when the log must be looked at again.
    fn tick(&mut self, now: Instant) -> bool {
        self.ticks += 1;
        let check_tail = now.saturating_duration_since(self.tail_checked) >= CHECK_EVERY;
        self.judge.tick(self.moment(now));
        if check_tail {
            self.tail_checked = now;
            self.tail.check(now);
            self.tell_tail();
        }
        let oversized = self.tail.counters().oversized;
        if oversized > 0 && !self.oversized_said {
            self.oversized_said = true;
            warn!(oversized, "a line of the log was longer than 16 KiB and was skipped");
        }
        if self.ticks.is_multiple_of(HEALTH_TICKS) {
            for warning in self.health.look(&self.judge.counters, now) {
                warn!("{warning}");
            }
        }
        if !self.silence_said
            && self.judge.counters.lines == 0
            && now.saturating_duration_since(self.started) > SILENCE
        {
            self.silence_said = true;
            warn!(
                "no line has been read since the start: check that --access.log is the file that \
                 Xray writes, and that its log level is not none"
            );
        }
        if let Some(firewall) = &mut self.firewall {
            let restarted = firewall.tick(&mut self.enforcer, now);
            if restarted && let Some(fd) = firewall.keeper_fd() {
                let token = epoll::EventData::new_u64(Wake::Keeper as u64);
                if let Err(errno) = epoll::add(&self.epoll, fd, token, epoll::EventFlags::IN) {
                    warn!("cannot watch the rule keeper: {errno}");
                }
            }
        }
        self.forget_lifted(now);
        check_tail
    }

    /// An operator may have lifted bans: they are not put back should a set vanish later.
    fn forget_lifted(&mut self, now: Instant) {
        let targets = self.enforcer.ledger.next_to_test(LIFT_TESTS, now, TICK);
        if targets.is_empty() {
            return;
        }
        let Some(arms) = self.enforcer.arms() else { return };
        match arms.sets.banned(&targets) {
            Ok(present) => {
                for (target, present) in targets.iter().zip(present) {
                    if !present {
                        self.enforcer.ledger.lifted(target);
                        info!(%target, "a ban was lifted by hand; it stays lifted");
                    }
                }
            }
            Err(error) => warn!("{error}"),
        }
    }

    fn look_at_host(&mut self) {
        let looked = match self.host.changed() {
            Ok(true) => self.host.look(),
            Ok(false) => return,
            Err(error) => Err(error),
        };
        match looked {
            Ok(networks) => {
                settle_host(&mut self.judge.exemptions, &networks);
                self.enforcer.endpoints.refresh(&networks.addresses, &self.flags.dport);
            }
            Err(error) => warn!("{error}"),
        }
    }

    fn tell_tail(&mut self) {
        while let Some(news) = self.tail.news() {
            match news {
                TailNews::Unreadable(_) => error!("{news}"),
                TailNews::Absent => {
                    let path = self.flags.access_log.as_os_str();
                    warn!(access_log = %printable(path.as_encoded_bytes()), "{news}");
                }
                TailNews::Unwatched(_) | TailNews::GivenUp(_) | TailNews::Truncated => {
                    warn!("{news}");
                }
                _ => info!("{news}"),
            }
        }
    }

    fn moment(&self, at: Instant) -> Moment {
        let since = at.saturating_duration_since(self.started).as_nanos();
        Moment::from_nanos(u64::try_from(since).unwrap_or(u64::MAX))
    }

    /// Finishes what is begun, within bounds, and says what stays behind.
    fn stop(mut self) {
        let end = Instant::now() + FAREWELL;
        while !self.enforcer.is_idle() && Instant::now() < end {
            let until = self.enforcer.due(Instant::now()).map_or(end, |due| due.min(end));
            if let Some(fd) = self.enforcer.survey_fd() {
                let left = timespec(until.saturating_duration_since(Instant::now()));
                let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
                // Whatever ends the wait, the loop's own condition decides.
                let _ = poll(&mut fds, Some(&left));
            }
            let block_log = &mut self.block_log;
            self.enforcer.advance(Instant::now(), true, |record| write_down(&record, block_log));
        }
        let block_log = &mut self.block_log;
        self.enforcer.settle_all(|record| write_down(&record, block_log));
        let (counters, read) = (&self.judge.counters, self.tail.counters());
        info!(
            lines = counters.lines,
            oversized = read.oversized,
            rotations = read.rotations,
            truncations = read.truncations,
            overflows = read.overflows,
            sightings = counters.sightings,
            offenders = counters.offenders,
            users = self.judge.users(),
            not_taken = %counters.reasons(),
            "what became of the log"
        );
        if let Some(firewall) = self.firewall.take() {
            firewall.stop();
            info!(
                bans = self.enforcer.ledger.count(),
                "stopped; the rule and the bans stay in the kernel and run out by themselves \
                 (refract uninstall removes them)"
            );
        } else {
            info!("stopped; nothing was touched");
        }
    }
}

/// One record, to the block log and to stderr.
fn write_down(record: &Record, block_log: &mut BlockLog) {
    say_block(block_log.append(record));
    let user = printable(&record.user);
    let inbound = printable(record.inbound.as_deref().unwrap_or(b"-"));
    let peers = record.peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let incumbents = record.incumbents.join(",");
    // One event for every outcome, so that the fields are the same in all of them.
    macro_rules! say {
        ($level:ident, $($message:tt)+) => {
            $level!(
                action = record.action.name(),
                user,
                source = record.source,
                peers,
                incumbents,
                inbound,
                places = record.places,
                timeout_s = record.timeout.as_secs(),
                killed = record.killed,
                flows = record.flows,
                latency_us = record.latency.as_micros(),
                settled_us = record.settled.as_micros(),
                evidence = record.evidence,
                reason = record.reason,
                $($message)+
            )
        };
    }
    match &record.outcome {
        Outcome::Done => say!(info, "enforced"),
        Outcome::DryRun => say!(info, "dry run"),
        Outcome::Failed(sentence) => say!(error, "enforcement failed: {sentence}"),
    }
}

fn say_block(news: Option<BlockNews>) {
    match news {
        Some(BlockNews::Trouble(sentence)) => error!("{sentence}"),
        Some(BlockNews::Recovered) => info!("the block log is written again"),
        None => {}
    }
}

fn drain(stream: &UnixStream) {
    let mut bytes = [0; 64];
    while matches!(rustix::io::read(stream, &mut bytes), Ok(count) if count > 0) {}
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
}
