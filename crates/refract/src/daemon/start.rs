//! The start: everything is checked before anything is touched.
//!
//! Takes the flags; makes a daemon whose sets and rule are in place and whose log is being followed,
//! or the one refusal that keeps it from starting. It reads no line of the log for a verdict.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Instant,
};

use jiff::Timestamp;
use refract_core::{
    Brakes, Evidence, Exemptions, Moment, Network, Places, Policy, Terms as PolicyTerms,
};
use refract_kernel::{
    ban::LONGEST_TIMEOUT,
    host::{HostEvents, HostNetworks},
};
use rustix::event::epoll;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use tracing::{info, warn};

use super::{Daemon, Wake, early::Early, reload::Reload, say_block};
use crate::{
    adopt,
    alarm::Alarm,
    audit::BlockLog,
    census::Census,
    cli::Flags,
    clock::Clock,
    config::{Settings, watch::PolicyWatch},
    container,
    enforce::{Enforcer, Terms, arm, require_reset},
    error::Error,
    escape::printable,
    firewall::Firewall,
    grade::Grade,
    health::{self, Health},
    judge::Judge,
    lock::NamespaceLock,
    netns::Entered,
    privilege,
    repeats::Repeats,
    sandbox::{Needs, Sandbox},
    state::{self, Memory, StateFile},
    supervisor::Supervisor,
    tail::{LogTarget, Tail},
    telemetry::Telemetry,
    witness::Witness,
};

impl Daemon {
    /// Checks everything before touching anything, then puts sets and rule in place and opens the
    /// log.
    pub(super) fn start(
        settings: Settings,
        namespace: Option<Entered>,
        telemetry: &mut Telemetry,
    ) -> Result<Self, Error> {
        let supervisor = Supervisor::from_environment();
        let flags = &settings.flags;
        let lock = if flags.dry_run { None } else { Some(right_to_enforce()?) };
        let clock = Clock::start();
        let started = Instant::now();
        let mut host = HostEvents::subscribe()?;
        let networks = host.look()?;
        let allow = flags.allow.iter().flat_map(|networks| networks.0.iter().copied()).collect();
        let mut exemptions = Exemptions::new(allow);
        settle_host(&mut exemptions, &networks);

        let (policy, terms) = rules(flags)?;
        let brakes = Brakes::new(flags.user_bans, flags.max_bans);
        let accounts = Arc::clone(&settings.accounts);
        let mut judge = Judge::new(policy, accounts, brakes, exemptions, flags.proto);
        let mut grade = Grade::new(flags.evidence, flags.proto);
        let mut witness = Witness::open(&flags.dport, clock)?;
        witness.refresh(&networks.addresses, &flags.dport);

        // From here on a signal ends the start in good order, as soon as the loop begins.
        let io = |operation, object: &str| {
            let object = object.to_owned();
            move |source: io::Error| Error::Io { operation, object, source }
        };
        let stop = on_signals(&[SIGTERM, SIGINT]).map_err(io("catch", "SIGTERM and SIGINT"))?;
        let reload = on_signals(&[SIGHUP]).map_err(io("catch", "SIGHUP"))?;
        let status = on_signals(&[SIGUSR1]).map_err(io("catch", "SIGUSR1"))?;
        let firewall = if flags.dry_run { None } else { Some(Firewall::start(flags)?) };
        let (firewall, bans) = firewall.unzip();
        let mut enforcer = Enforcer::new(terms.clone());
        enforcer.endpoints.refresh(&networks.addresses, &flags.dport);

        let sandbox = confine(flags, telemetry);
        if let Some(bans) = bans {
            enforcer.take_up(arm(bans, &terms)?);
        }
        let policy_watch = watch_policy(flags);
        let (block_log, news) = BlockLog::open(&flags.block_log, flags.block_format);
        say_block(news);
        let census = if grade.wants_kernel() { Some(Census::start(&flags.dport)?) } else { None };
        grade.look(true, started, || witness.has_listener());
        judge.grade = grade.evidence;
        recall(&mut judge, flags, &clock, census.is_some());
        let state = if flags.dry_run || census.is_none() {
            None
        } else {
            let file = StateFile::start(flags.state_path(), clock, started);
            Some(file.map_err(io("start", "the thread that writes the state file"))?)
        };
        let mut early = Early::default();
        if grade.wants_kernel() {
            early.look_at_table(&mut judge, &mut witness, &clock);
        }
        let mut tail = Tail::open(&LogTarget::from(&flags.access_log), started)?;
        if grade.wants_kernel() {
            early.read_back(&mut judge, &mut witness, &mut tail, &clock);
        }
        judge.occupancy.begin(clock.moment(Instant::now()));
        let health = Health::new(judge.occupancy.policy().shared_source_users());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(io("open", "an epoll"))?;

        let mut daemon = Self {
            epoll,
            started,
            clock,
            tail,
            judge,
            grade,
            witness,
            census,
            state,
            alarm: Alarm::new().map_err(io("make", "a timer"))?,
            repeats: Repeats::default(),
            enforcer,
            firewall,
            block_log,
            host,
            policy_watch,
            policy_reload: Reload::default(),
            settings,
            namespace,
            sandbox,
            health,
            stop,
            reload,
            status,
            supervisor,
            status_key: (Evidence::Log, 0),
            ticks: 0,
            tail_checked: started,
            silence_said: false,
            oversized_said: false,
            _lock: lock,
        };
        daemon.watch().map_err(io::Error::from).map_err(io("watch", "what the loop waits for"))?;
        daemon.adopt();
        daemon.introduce();
        Ok(daemon)
    }

    fn watch(&mut self) -> rustix::io::Result<()> {
        let add = |fd: BorrowedFd<'_>, wake: Wake| {
            let token = epoll::EventData::new_u64(wake as u64);
            epoll::add(&self.epoll, fd, token, epoll::EventFlags::IN)
        };
        for fd in self.tail.sources() {
            add(fd, Wake::Log)?;
        }
        add(self.host.as_fd(), Wake::Host)?;
        if let Some(fd) = self.enforcer.survey_fd() {
            add(fd, Wake::Survey)?;
        }
        if let Some(firewall) = &self.firewall {
            add(firewall.ruleset_fd(), Wake::Ruleset)?;
            if let Some(fd) = firewall.keeper_fd() {
                add(fd, Wake::Keeper)?;
            }
        }
        if let Some(census) = &self.census {
            if let Some(fd) = census.closes_fd() {
                add(fd, Wake::Closes)?;
            }
            add(census.walk_fd(), Wake::Walk)?;
        }
        if let Some(watch) = &self.policy_watch {
            add(watch.as_fd(), Wake::Policy)?;
        }
        add(self.alarm.as_fd(), Wake::Alarm)?;
        add(self.status.as_fd(), Wake::Status)?;
        add(self.stop.as_fd(), Wake::Stop)?;
        add(self.reload.as_fd(), Wake::Reload)
    }

    /// Takes over the bans that an earlier run left in the kernel.
    fn adopt(&mut self) {
        let Some(arms) = self.enforcer.arms() else { return };
        match arms.bans.list() {
            Ok(bans) => {
                let now = Instant::now();
                let block_log = &self.settings.flags.block_log;
                for record in adopt::unexplained(&bans, block_log, Timestamp::now()) {
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
        let (evidence, because) = (self.grade.evidence.name(), self.grade.reason);
        if self.grade.evidence == Evidence::Kernel {
            info!(
                evidence,
                because, "each claim of the log is checked against the kernel's sockets"
            );
        } else {
            warn!(
                evidence,
                because,
                "verdicts rest on the log's word alone: a change of network within the window \
                 looks like a second device, and a forged line like a real one"
            );
            if self.grade.is_for_want_of_a_listener() && container::is_one() {
                warn!("{}", container::OTHER_NETWORK);
            }
        }
        if self.settings.flags.timeout > LONGEST_TIMEOUT {
            warn!("--timeout is longer than the kernel can hold: bans last {LONGEST_TIMEOUT:?}");
        }
        // What keeps the log from being read is the tail's to say.
        let recent = health::recent(&mut self.tail, &self.judge.exemptions).unwrap_or_default();
        let proxy_users = self.judge.occupancy.policy().shared_source_users();
        for complaint in health::complaints(&recent.counters, &recent.crowd, proxy_users) {
            warn!("{complaint}");
        }
        self.tell_tail();
        info!(
            access_log = %printable(self.settings.flags.access_log.as_os_str().as_encoded_bytes()),
            proto = %self.settings.flags.proto,
            dport = %self.settings.flags.dport,
            limit = %self.settings.flags.limit,
            window = ?self.settings.flags.window,
            timeout = ?self.settings.flags.timeout.min(LONGEST_TIMEOUT),
            dry_run = self.settings.flags.dry_run,
            "ready"
        );
    }
}

/// Gives up what is not needed again: what was done so far takes more rights than what follows.
/// Threads are confined with the one that starts them, so there is none before this.
fn confine(flags: &Flags, telemetry: &mut Telemetry) -> Sandbox {
    let sandbox = if flags.sandbox { Sandbox::enter(&needs(flags)) } else { Sandbox::off() };
    telemetry.queue();
    sandbox
}

/// The files that the daemon opens while it runs.
fn needs(flags: &Flags) -> Needs {
    let mut needs = Needs { reads: vec![flags.config.clone()], writes: Vec::new() };
    if let LogTarget::Path(log) = LogTarget::from(&flags.access_log) {
        needs.reads.push(log);
    }
    needs.writes.push(flags.block_log.clone());
    if !flags.dry_run {
        needs.writes.push(flags.state_path());
    }
    needs
}

/// Whether this process may enforce here, and is the only one that does.
fn right_to_enforce() -> Result<NamespaceLock, Error> {
    privilege::require_net_admin()?;
    let lock = NamespaceLock::take()?;
    require_reset()?;
    Ok(lock)
}

/// Where the file cannot be watched, SIGHUP still has it read again.
fn watch_policy(flags: &Flags) -> Option<PolicyWatch> {
    match PolicyWatch::new(&flags.config) {
        Ok(watch) => Some(watch),
        Err(error) => {
            warn!(
                "cannot watch {}: {error}; after a change send SIGHUP",
                printable(flags.config.as_os_str().as_encoded_bytes())
            );
            None
        }
    }
}

/// The flags of `new` as far as they can change while the daemon runs, the rest as it was started.
pub(super) fn running_flags(new: &Flags, running: &Flags) -> Flags {
    Flags {
        config: running.config.clone(),
        proto: running.proto,
        dport: running.dport.clone(),
        access_log: running.access_log.clone(),
        block_log: running.block_log.clone(),
        block_format: running.block_format,
        log_format: running.log_format,
        state_file: running.state_file.clone(),
        evidence: running.evidence,
        dry_run: running.dry_run,
        firewall: running.firewall,
        chain: running.chain.clone(),
        iptables: running.iptables.clone(),
        strip_mptcp: running.strip_mptcp,
        sandbox: running.sandbox,
        netns: running.netns.clone(),
        ipv4_prefix: running.ipv4_prefix,
        ipv6_prefix: running.ipv6_prefix,
        shared_source_users: running.shared_source_users,
        ..new.clone()
    }
}

/// What flags mean: for the judge, and for the enforcer.
pub(super) fn rules(flags: &Flags) -> Result<(Policy, Terms), Error> {
    let timeout = flags.timeout.min(LONGEST_TIMEOUT);
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let policy = Policy::new(PolicyTerms {
        window: flags.window,
        // Whoever has any number of places never comes to this.
        places: match flags.limit {
            Places::Limited(places) => places,
            Places::Unlimited | Places::Ignored => 1,
        },
        keep: flags.keep.into(),
        action: flags.action.into(),
        asking: flags.ask,
        shared_source_users: count(flags.shared_source_users),
        cdn_sources: count(flags.cdn_sources),
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
    };
    Ok((policy, terms))
}

/// Takes over what an earlier run remembered. Where this one keeps a state file, none may be
/// missed.
fn recall(judge: &mut Judge, flags: &Flags, clock: &Clock, keeps_one: bool) {
    let path = flags.state_path();
    let now = clock.moment(Instant::now());
    let is_missed = || {
        let remembered_for = judge.occupancy.policy().forget_after();
        keeps_one && state::is_missed(&flags.block_log, remembered_for, Timestamp::now())
    };
    let name = printable(path.as_os_str().as_encoded_bytes());
    let found = match state::load(&path, clock) {
        Ok(None) if is_missed() => Err(format!(
            "the state file {name} is gone, though an earlier run enforced within a day"
        )),
        Ok(memory) => Ok(memory.unwrap_or_default()),
        Err(error) => Err(format!("cannot read the state file {name}: {error}")),
    };
    let memory = found.unwrap_or_else(|trouble| {
        warn!(
            "{trouble}; who was where first is not remembered, and as nobody is known to be alone \
             at an address, offenders are disconnected but not banned for a day (unless with \
             --action=ban)"
        );
        Memory { unknown_until: Moment::from_nanos(u64::MAX), ..Memory::default() }
    });
    judge.occupancy.doubt_neighbours(memory.unknown_until, now);
    for standing in &memory.standings {
        judge.occupancy.restore(standing, now);
    }
    // The allow list may be another than that run's.
    judge.spare_exempt();
    if !memory.standings.is_empty() {
        info!(standings = memory.standings.len(), "who was where first is remembered");
    }
}

/// Takes over what this host's own addresses and gateways are now; `true` when they are others.
pub(crate) fn settle_host(exemptions: &mut Exemptions, networks: &HostNetworks) -> bool {
    let own = networks
        .addresses
        .iter()
        .map(|address| Network::single(*address))
        .chain(
            networks.networks.iter().map(|(address, prefix)| Network::covering(*address, *prefix)),
        )
        .collect();
    exemptions.set_host(own, networks.gateways.clone())
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
