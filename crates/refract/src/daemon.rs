//! The loop: one thread, one epoll, from the first check to the last record.
//!
//! Takes the daemon's flags; runs until SIGTERM, SIGINT or the end of standard input. It joins the
//! rooms and owns the clock: tail → judge → enforce, the looks at counters at the end of each slot,
//! and upkeep once a second. One error in one step is said and the loop goes on; only the start can
//! refuse.

mod early;
mod reload;
mod start;
mod supervised;

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use refract_core::{Evidence, Verdict};
use refract_kernel::{host::HostEvents, sock_diag::Connection};
use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, epoll, poll},
};
use tracing::{error, info, warn};

use self::reload::Reload;
pub(crate) use self::start::settle_host;
use crate::{
    alarm::Alarm,
    audit::{BlockLog, News as BlockNews, Outcome, Record},
    census::Census,
    clock::Clock,
    config::{Settings, shown, watch::PolicyWatch},
    container,
    enforce::Enforcer,
    error::Error,
    escape::printable,
    firewall::Firewall,
    grade::Grade,
    health::Health,
    judge::Judge,
    lock::NamespaceLock,
    netns::Entered,
    repeats::Repeats,
    sandbox::Sandbox,
    state::StateFile,
    status,
    supervisor::Supervisor,
    tail::{CHECK_EVERY, News as TailNews, Progress, Tail, Trouble},
    telemetry::Telemetry,
    witness::{Witness, peer_at},
};

/// Upkeep, and the only thing that wakes an idle daemon.
const TICK: Duration = Duration::from_secs(1);
/// How often the log's health is judged.
const HEALTH_TICKS: u64 = 10;
/// Chunks of the log read before the loop looks at everything else again.
const CHUNKS_PER_TURN: usize = 16;
/// Counters looked at in one turn of the loop, at about 2 µs each (measured).
const LOOKS_PER_TURN: usize = 256;
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
    Closes = 7,
    Walk = 8,
    Status = 9,
    Policy = 10,
    Alarm = 11,
}

/// Runs the daemon until it is told to stop.
pub fn run(
    settings: Settings,
    namespace: Option<Entered>,
    telemetry: &mut Telemetry,
) -> Result<(), Error> {
    let mut daemon = Daemon::start(settings, namespace, telemetry)?;
    daemon.tell_ready(Instant::now());
    let served = daemon.serve();
    daemon.stop();
    served
}

struct Daemon {
    epoll: OwnedFd,
    started: Instant,
    clock: Clock,
    tail: Tail,
    judge: Judge,
    grade: Grade,
    witness: Witness,
    census: Option<Census>,
    state: Option<StateFile>,
    /// Rings at the end of a slot in which counters are to be looked at.
    alarm: Alarm,
    repeats: Repeats,
    enforcer: Enforcer,
    firewall: Option<Firewall>,
    block_log: BlockLog,
    host: HostEvents,
    settings: Settings,
    /// The network namespace, if it was entered by a name.
    namespace: Option<Entered>,
    sandbox: Sandbox,
    policy_watch: Option<PolicyWatch>,
    policy_reload: Reload,
    health: Health,
    stop: UnixStream,
    reload: UnixStream,
    status: UnixStream,
    supervisor: Supervisor,
    /// What the status line was written for: the grade, and how many bans are in force.
    status_key: (Evidence, usize),
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
                let looks = self.judge.occupancy.due().map(|due| self.clock.instant(due));
                let looks = looks.filter(|due| *due <= now || self.alarm.set(*due, now).is_err());
                [self.enforcer.due(now), looks, self.policy_due()]
                    .into_iter()
                    .flatten()
                    .fold(next_tick, Instant::min)
                    .saturating_duration_since(now)
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
            // The same: a client's port may be another connection's by now.
            if woken(Wake::Closes)
                && let Some(census) = &mut self.census
            {
                census.take_closes(&mut self.judge.occupancy, &self.clock, Instant::now());
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
            if woken(Wake::Alarm) {
                self.alarm.quiet();
            }
            if woken(Wake::Walk) {
                self.take_findings();
            }
            self.look_at_counters();
            let now = Instant::now();
            let surveyed = woken(Wake::Survey);
            if surveyed || self.enforcer.due(now).is_some_and(|due| due <= now) {
                self.advance(now, surveyed);
            }
            if let Some(firewall) = &mut self.firewall {
                if woken(Wake::Ruleset) {
                    firewall.ruleset_changed(&mut self.enforcer);
                }
                if woken(Wake::Keeper) {
                    firewall.keeper_answered();
                }
            }
            if woken(Wake::Reload) {
                self.reload_all();
            }
            if woken(Wake::Policy) {
                self.policy_may_have_changed(now);
            }
            if self.policy_due().is_some_and(|due| due <= now) {
                self.reload_policy(false);
            }
            if woken(Wake::Status) {
                drain(&self.status);
                self.say_status();
            }
            if now >= next_tick {
                next_tick = now + TICK;
                if let Some(namespace) = &self.namespace {
                    namespace.check()?;
                }
                unread |= self.tick(now);
            }
        }
    }

    /// What SIGHUP asks for.
    fn reload_all(&mut self) {
        drain(&self.reload);
        self.supervisor.reloading();
        say_block(self.block_log.reopen());
        info!("opened the block log again");
        self.reload_policy(true);
        self.supervisor.reloaded();
    }

    /// Reads what the log has, a bounded number of chunks. All offenders of a chunk are banned before
    /// the next is read; their connections are killed when nothing more is to be banned.
    fn read_log(&mut self) -> Progress {
        let mut progress = Progress::More;
        self.look_for_listener(false);
        let may_search = self.census.as_ref().map(|census| census.may_search(Instant::now()));
        self.judge.may_search = may_search.unwrap_or_default();
        for _ in 0..CHUNKS_PER_TURN {
            if self.enforcer.is_full() {
                break;
            }
            let read_at = Instant::now();
            let now = self.clock.moment(read_at);
            let Self { judge, witness, tail, .. } = self;
            let mut look_up = |peer| witness.look_up(peer, read_at);
            progress = tail.read_chunk(read_at, |line| judge.read(line, now, &mut look_up));
            judge.decide();
            self.obey(read_at);
            if progress != Progress::More {
                break;
            }
        }
        if let Some(census) = &mut self.census {
            census.search(&self.judge.missed(), Instant::now());
        }
        self.tell_tail();
        progress
    }

    /// Carries out what was decided: sets first, then questions; connections of offenders follow.
    fn obey(&mut self, read_at: Instant) {
        if self.judge.verdicts.is_empty() {
            return;
        }
        let by_log = |verdict: &Verdict| matches!(verdict, Verdict::Evict(it) if it.evidence == Evidence::Log);
        // The log's word does no longer if the kernel can be asked since a moment ago.
        if self.judge.verdicts.iter().any(by_log) && self.look_for_listener(true) {
            self.judge.verdicts.retain(|verdict| !by_log(verdict));
        }
        let now = self.clock.moment(read_at);
        let evictions = self.judge.evictions();
        if !evictions.is_empty() {
            let Judge { exemptions, brakes, .. } = &mut self.judge;
            self.enforcer.ban(evictions, exemptions, brakes, read_at, now);
        }
        for verdict in std::mem::take(&mut self.judge.verdicts) {
            let record = match verdict {
                // A connection may be older than its address's exemption.
                Verdict::Ask(question)
                    if self.judge.exemptions.reason(question.link.peer.address).is_none() =>
                {
                    self.enforcer.ask(question, read_at)
                }
                Verdict::Refrain(abstention) => {
                    warn!(
                        user = %printable(&abstention.user),
                        sources = abstention.sources,
                        "a user is at so many sources at once, most of them others' too, that a \
                         CDN must be in front: nobody can be told apart there, and nobody is \
                         banned; let the CDN's edge pass PROXY protocol on, or allow-list it"
                    );
                    self.enforcer.refrain(abstention)
                }
                _ => continue,
            };
            self.write_down(&record);
        }
    }

    /// Looks at the counters that are due, a bounded number of them, and acts on what they prove.
    fn look_at_counters(&mut self) {
        let now = Instant::now();
        let is_due = |due| self.clock.instant(due) <= now;
        if !self.judge.occupancy.due().is_some_and(is_due) {
            return;
        }
        let Self { judge, witness, .. } = self;
        judge.probe(LOOKS_PER_TURN, self.clock.moment(now), |link| witness.sample(link, now));
        judge.decide();
        self.obey(now);
    }

    fn take_findings(&mut self) {
        let Some(census) = &mut self.census else { return };
        let Self { judge, witness, clock, .. } = self;
        let Judge { occupancy, exemptions, .. } = judge;
        if census.take_findings(occupancy, witness, exemptions, clock) {
            let now = Instant::now();
            judge.look_again(clock.moment(now), &mut |peer| witness.look_up(peer, now));
            judge.decide();
            self.obey(now);
        }
    }

    fn advance(&mut self, now: Instant, surveyed: bool) {
        let Self { enforcer, judge, repeats, block_log, .. } = self;
        let occupancy = &judge.occupancy;
        let may_destroy = |user: &[u8], connection: &Connection| {
            occupancy.may_destroy(user, peer_at(connection.remote()), connection.cookie())
        };
        enforcer.advance(now, surveyed, &may_destroy, |record| {
            if let Some(record) = repeats.take(record, now) {
                write_down(&record, block_log);
            }
        });
    }

    fn write_down(&mut self, record: &Record) {
        write_down(record, &mut self.block_log);
    }

    /// `true` when the kernel can be asked from now on.
    fn look_for_listener(&mut self, at_once: bool) -> bool {
        let Self { grade, witness, .. } = self;
        let changed = grade.look(at_once, Instant::now(), || witness.has_listener());
        if changed {
            self.judge.grade = self.grade.evidence;
            self.judge.occupancy.begin(self.clock.moment(Instant::now()));
            info!(
                evidence = self.grade.evidence.name(),
                because = self.grade.reason,
                "from now on no line of the log is enough for a verdict on TCP"
            );
        }
        changed
    }

    fn say_status(&self) {
        let now = Instant::now();
        let at = (now, self.clock.moment(now));
        let census = self.census.as_ref();
        let firewall = self.firewall.as_ref();
        let Self { judge, grade, enforcer, witness, sandbox, .. } = self;
        let acting = (enforcer, firewall);
        let asked = (witness.lookups, self.tail.counters());
        for line in status::block(judge, grade, census, acting, asked, sandbox, at) {
            info!("status: {line}");
        }
    }

    /// The upkeep of every second; `true` when the log must be looked at again.
    fn tick(&mut self, now: Instant) -> bool {
        self.ticks += 1;
        self.tell_supervisor(now);
        let check_tail = now.saturating_duration_since(self.tail_checked) >= CHECK_EVERY;
        self.judge.tick(self.clock.moment(now));
        self.look_for_listener(false);
        if let Some(census) = &mut self.census {
            census.tick(now);
            census.tell(now);
        }
        if let Some(state) = &mut self.state
            && let Some(trouble) = state.tick(&mut self.judge.occupancy, now)
        {
            error!("{trouble}");
        }
        if let Some(trouble) = self.witness.trouble() {
            warn!("{trouble}");
        }
        for record in self.repeats.due(now) {
            self.write_down(&record);
        }
        for user in self.judge.hiding.news() {
            warn!(
                user = %printable(&user),
                "a user hides: his lines have port 0 on an inbound where others show theirs, so \
                 his address comes from a header that he may have written"
            );
        }
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
            let claims = self.judge.claims();
            let Judge { counters, crowd, .. } = &mut self.judge;
            for warning in self.health.look(counters, claims, crowd, now) {
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
        match arms.bans.banned(&targets) {
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
                if settle_host(&mut self.judge.exemptions, &networks) {
                    self.judge.spare_exempt();
                }
                self.witness.refresh(&networks.addresses, &self.settings.flags.dport);
                self.enforcer.endpoints.refresh(&networks.addresses, &self.settings.flags.dport);
            }
            Err(error) => warn!("{error}"),
        }
    }

    fn tell_tail(&mut self) {
        while let Some(news) = self.tail.news() {
            match news {
                TailNews::Unreadable(Trouble::Denied { .. })
                    if let Some(remedy) = self.sandbox.remedy(&self.settings.flags.access_log) =>
                {
                    error!("cannot read the access log: {remedy}");
                }
                TailNews::Unreadable(_) => error!("{news}"),
                TailNews::Absent => {
                    let path = &self.settings.flags.access_log;
                    let is_missing = path.parent().is_some_and(|folder| !folder.exists());
                    let remedy = match (is_missing, container::is_one()) {
                        (true, true) => container::MOUNT_LOG,
                        (true, false) => {
                            "its directory is not there either: mount or make it, or name the log \
                             that Xray writes with --access.log"
                        }
                        (false, _) => "if Xray writes another one, name that with --access.log",
                    };
                    warn!(access_log = %shown(path), "{news}; {remedy}");
                }
                TailNews::Unwatched(_) | TailNews::GivenUp(_) | TailNews::Truncated => {
                    warn!("{news}");
                }
                _ => info!("{news}"),
            }
        }
    }

    /// Finishes what is begun, within bounds, and says what stays behind.
    fn stop(mut self) {
        self.supervisor.stopping();
        let end = Instant::now() + FAREWELL;
        while !self.enforcer.is_idle() && Instant::now() < end {
            let until = self.enforcer.due(Instant::now()).map_or(end, |due| due.min(end));
            if let Some(fd) = self.enforcer.survey_fd() {
                let left = timespec(until.saturating_duration_since(Instant::now()));
                let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
                // Whatever ends the wait, the loop's own condition decides.
                let _ = poll(&mut fds, Some(&left));
            }
            self.advance(Instant::now(), true);
        }
        let block_log = &mut self.block_log;
        self.enforcer.settle_all(|record| write_down(&record, block_log));
        for record in self.repeats.all() {
            self.write_down(&record);
        }
        if let Some(state) = self.state.take()
            && let Some(trouble) = state.finish(&mut self.judge.occupancy)
        {
            error!("{trouble}");
        }
        self.say_status();
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
                "stopped; the rule and the bans stay in the kernel; the bans run out by themselves \
                 (refract uninstall removes both)"
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
                repeats = record.repeats,
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
