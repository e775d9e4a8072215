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
    time::Instant,
};

use refract_core::{Exemptions, Network, Policy, Roster, Terms as PolicyTerms};
use refract_kernel::{
    ban::LONGEST_TIMEOUT,
    host::{HostEvents, HostNetworks},
};
use rustix::event::epoll;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tracing::{info, warn};

use super::{Daemon, Wake, say_block};
use crate::{
    adopt,
    audit::BlockLog,
    cli::{EvidenceFlag, Flags},
    enforce::{Enforcer, Terms, arm, require_reset},
    error::Error,
    escape::printable,
    firewall::Firewall,
    health::{self, Health},
    judge::Judge,
    lock::NamespaceLock,
    privilege,
    tail::{LogTarget, Tail},
};

impl Daemon {
    /// Checks everything before touching anything, then puts sets and rule in place and opens the
    /// log.
    pub(super) fn start(flags: &Flags) -> Result<Self, Error> {
        let lock = if flags.dry_run {
            None
        } else {
            privilege::require_enforcing()?;
            let lock = NamespaceLock::take()?;
            require_reset()?;
            Some(lock)
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

        // From here on a signal ends the start in good order, as soon as the loop begins.
        let io = |operation, object: &str| {
            let object = object.to_owned();
            move |source: io::Error| Error::Io { operation, object, source }
        };
        let stop = on_signals(&[SIGTERM, SIGINT]).map_err(io("catch", "SIGTERM and SIGINT"))?;
        let reload = on_signals(&[SIGHUP]).map_err(io("catch", "SIGHUP"))?;
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
        add(self.stop.as_fd(), Wake::Stop)?;
        add(self.reload.as_fd(), Wake::Reload)
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
        // Both are the log's word today; a better grade will not get past this line unnoticed.
        let (EvidenceFlag::Auto | EvidenceFlag::Log) = self.flags.evidence;
        warn!(
            evidence = "log",
            "verdicts rest on the log's word alone: a change of network within the window looks \
             like a second device, and a forged line like a real one"
        );
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
            timeout = ?self.flags.timeout.min(LONGEST_TIMEOUT),
            dry_run = self.flags.dry_run,
            "ready"
        );
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

/// A socket that becomes readable when one of `signals` arrives.
fn on_signals(signals: &[i32]) -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, writer.try_clone()?)?;
    }
    Ok(reader)
}
