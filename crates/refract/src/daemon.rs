//! The loop: one thread, one epoll, from the first check to the last record.
//!
//! Takes the daemon's flags; runs until SIGTERM, SIGINT or the end of standard input. It joins the
//! rooms and owns the clock: tail → judge → enforce, with upkeep once a second. One error in one
//! step is said and the loop goes on; only the start can refuse.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use refract_core::{Exemptions, Moment, Network, Policy, Roster, Terms as PolicyTerms};
use refract_kernel::{
    ban::LONGEST_TIMEOUT,
    host::{HostEvents, HostNetworks},
};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tracing::{error, info, warn};

use crate::{
    adopt,
    audit::{BlockLog, News as BlockNews, Outcome, Record},
    cli::{EvidenceFlag, Flags},
    enforce::{Enforcer, Terms, arm},
    error::Error,
    escape::printable,
    firewall::Firewall,
    health::{self, Health},
    judge::Judge,
    lock::NamespaceLock,
    privilege,
    tail::{LogTarget, News as TailNews, Progress, Tail},
};

/// Upkeep, and the only thing that wakes an idle daemon.
const TICK: Duration = Duration::from_secs(1);
/// How often the log's health is judged.
const HEALTH_TICKS: u64 = 10;
/// The slow safety check for a missed inotify event.
const TAIL_TICKS: u64 = 5;
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
enum Source {
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
    epoll: std::os::fd::OwnedFd,
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
    silence_said: bool,
    _lock: Option<NamespaceLock>,
}

impl Daemon {
    /// Checks everything before touching anything, then puts sets and rule in place and opens the
    /// log.
    fn start(flags: &Flags) -> Result<Self, Error> {
        let lock = if flags.dry_run {
            None
        } else {
            privilege::require_enforcing()?;
            Some(NamespaceLock::take()?)
        };
        let started = Instant::now();
        let mut host = HostEvents::subscribe()?;
        let networks = host.look()?;
        let allow = flags.allow.iter().flat_map(|networks| networks.0.iter().copied()).collect();
        let mut exemptions = Exemptions::new(allow);
        settle_host(&mut exemptions, &networks);

        let timeout = flags.timeout.min(LONGEST_TIMEOUT);
        let policy = Policy::new(PolicyTerms {
            window: flags.window,
            places: usize::try_from(flags.limit).unwrap_or(usize::MAX),
            keep: flags.keep.into(),
            ipv4_prefix: flags.ipv4_prefix,
            ipv6_prefix: flags.ipv6_prefix,
            timeout,
            udp_ban: flags.udp_ban,
            forget_after: PolicyTerms::default().forget_after.max(timeout),
            ..PolicyTerms::default()
        })?;
        let terms = Terms {
            protocols: flags.proto,
            ports: flags.dport.clone(),
            timeout,
            ipv6_prefix: flags.ipv6_prefix,
            max_bans: flags.max_bans,
        };

        let (firewall, arms) = if flags.dry_run {
            (None, None)
        } else {
            let (firewall, sets) = Firewall::start(flags)?;
            (Some(firewall), Some(arm(sets, &terms)?))
        };
        let mut enforcer = Enforcer::new(terms, arms);
        enforcer.endpoints.refresh(&networks.addresses, &flags.dport);

        let (block_log, news) = BlockLog::open(&flags.block_log, flags.block_format);
        say_block(news);
        let tail = Tail::open(&LogTarget::from(&flags.access_log), started)?;
        let io = |operation, object: &str| {
            let object = object.to_owned();
            move |source: io::Error| Error::Io { operation, object, source }
        };
        let stop = on_signals(&[SIGTERM, SIGINT]).map_err(io("catch", "SIGTERM and SIGINT"))?;
        let reload = on_signals(&[SIGHUP]).map_err(io("catch", "SIGHUP"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(io("open", "an epoll"))?;

        let mut daemon = Self {
            epoll,
            started,
            tail,
            judge: Judge::new(Roster::new(policy), exemptions, flags.proto),
            enforcer,
            firewall,
            block_log,
            host,
            flags: flags.clone(),
            health: Health::default(),
            stop,
            reload,
            ticks: 0,
            silence_said: false,
            _lock: lock,
        };
        daemon.watch().map_err(io::Error::from).map_err(io("watch", "what the loop waits for"))?;
        daemon.adopt();
        daemon.introduce();
        Ok(daemon)
    }
}

impl Daemon {
    fn watch(&mut self) -> rustix::io::Result<()> {
        let add = |fd: BorrowedFd<'_>, source: Source| {
            let token = epoll::EventData::new_u64(source as u64);
            epoll::add(&self.epoll, fd, token, epoll::EventFlags::IN)
        };
        for fd in self.tail.sources() {
            add(fd, Source::Log)?;
        }
        add(self.host.as_fd(), Source::Host)?;
        if let Some(fd) = self.enforcer.survey_fd() {
            add(fd, Source::Survey)?;
        }
        if let Some(firewall) = &self.firewall {
            add(firewall.ruleset_fd(), Source::Ruleset)?;
            if let Some(fd) = firewall.keeper_fd() {
                add(fd, Source::Keeper)?;
            }
        }
        add(self.stop.as_fd(), Source::Stop)?;
        add(self.reload.as_fd(), Source::Reload)
    }

    /// Takes over the bans that an earlier run left in the kernel.
    fn adopt(&mut self) {
        let Some(arms) = self.enforcer.arms() else { return };
        match arms.sets.list() {
            Ok(bans) => {
                let now = Instant::now();
                for record in adopt::unexplained(&bans, &self.flags.block_log) {
                    say_block(self.block_log.append(&record));
                }
                if !bans.is_empty() {
                    info!(bans = bans.len(), "took over the bans that are in force");
                }
                for ban in bans {
                    if let Some(remaining) = ban.remaining {
                        self.enforcer.ledger.banned(ban.target, now + remaining);
                    }
                }
            }
            Err(error) => warn!("{error}"),
        }
    }

    fn introduce(&mut self) {
        if matches!(self.flags.evidence, EvidenceFlag::Auto | EvidenceFlag::Log) {
            warn!(
                evidence = "log",
                "verdicts rest on the log's word alone: a change of network within the window \
                 looks like a second device, and a forged line like a real one"
            );
        }
        if self.flags.timeout > LONGEST_TIMEOUT {
            warn!("--timeout is longer than the kernel can hold: bans last {LONGEST_TIMEOUT:?}");
        }
        // What keeps the log from being read is the tail's to say.
        let recent = health::recent(&mut self.tail, &self.judge.exemptions).unwrap_or_default();
        for complaint in health::complaints(&recent) {
            warn!("{complaint}");
        }
        self.tell_tail();
        info!(
            access_log = %printable(self.flags.access_log.as_os_str().as_encoded_bytes()),
            proto = %self.flags.proto,
            dport = %self.flags.dport,
            limit = self.flags.limit,
            window = ?self.flags.window,
            timeout = ?self.flags.timeout,
            dry_run = self.flags.dry_run,
            "ready"
        );
    }

    fn serve(&mut self) -> Result<(), Error> {
        let mut events = Vec::with_capacity(16);
        let mut next_tick = Instant::now() + TICK;
        // What was appended between opening the log and now.
        let mut unread = true;
        loop {
            events.clear();
            let wait = if unread {
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
            let woken = |source: Source| {
                events.iter().any(|event: &epoll::Event| event.data.u64() == source as u64)
            };
            // Before the log: a line may come from an address that this host was given just now.
            if woken(Source::Host) {
                self.look_at_host();
            }
            if woken(Source::Log) {
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
            if woken(Source::Stop) {
                return Ok(());
            }
            let now = Instant::now();
            if woken(Source::Survey) || self.enforcer.due(now).is_some_and(|due| due <= now) {
                let block_log = &mut self.block_log;
                self.enforcer.advance(now, |record| write_down(&record, block_log));
            }
            if let Some(firewall) = &mut self.firewall {
                if woken(Source::Ruleset) {
                    firewall.ruleset_changed();
                }
                if woken(Source::Keeper) {
                    firewall.keeper_answered();
                }
            }
            if woken(Source::Reload) {
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
        let check_tail = self.ticks.is_multiple_of(TAIL_TICKS);
        self.judge.tick(self.moment(now));
        if check_tail {
            self.tail.check(now);
            self.tell_tail();
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
                let token = epoll::EventData::new_u64(Source::Keeper as u64);
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
                let mut fds =
                    [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
                // Whatever ends the wait, the loop's own condition decides.
                let _ = rustix::event::poll(&mut fds, Some(&left));
            }
            let block_log = &mut self.block_log;
            self.enforcer.advance(Instant::now(), |record| write_down(&record, block_log));
        }
        let block_log = &mut self.block_log;
        self.enforcer.settle_all(|record| write_down(&record, block_log));
        let counters = &self.judge.counters;
        info!(
            lines = counters.lines,
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

/// Takes over what this host's own addresses and gateways are now.
pub(crate) fn settle_host(exemptions: &mut Exemptions, networks: &HostNetworks) {
    let own = networks
        .addresses
        .iter()
        .map(|address| Network::single(*address))
        .chain(
            networks.networks.iter().map(|(address, prefix)| Network::covering(*address, *prefix)),
        )
        .collect();
    exemptions.set_host(own, networks.gateways.clone());
}

/// One record, to the block log and to stderr.
fn write_down(record: &Record, block_log: &mut BlockLog) {
    say_block(block_log.append(record));
    let user = printable(&record.user);
    let (source, latency_us) = (&record.source, record.latency.as_micros());
    match &record.outcome {
        Outcome::Done => info!(
            action = record.action.name(),
            user,
            source,
            killed = record.killed,
            latency_us,
            reason = record.reason,
            "enforced"
        ),
        Outcome::DryRun => {
            info!(action = record.action.name(), user, source, reason = record.reason, "dry run");
        }
        Outcome::Failed(sentence) => error!(
            action = record.action.name(),
            user,
            source,
            killed = record.killed,
            "enforcement failed: {sentence}"
        ),
    }
}

fn say_block(news: Option<BlockNews>) {
    match news {
        Some(BlockNews::Trouble(sentence)) => error!("{sentence}"),
        Some(BlockNews::Recovered) => info!("the block log is written again"),
        None => {}
    }
}

/// A socket that becomes readable when one of `signals` arrives.
fn on_signals(signals: &[i32]) -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, writer.try_clone()?)?;
    }
    Ok(reader)
}

fn drain(stream: &UnixStream) {
    let mut bytes = [0; 64];
    while matches!(rustix::io::read(stream, &mut bytes), Ok(count) if count > 0) {}
}

fn timespec(duration: Duration) -> Timespec {
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
}
