//! Carries verdicts out: bans, kills, and remembers what is still to be done about each.
//!
//! Takes all evictions of one read of the log; makes kernel state and, when an offender is settled,
//! one [`Record`]. The order is fixed: every offender of the read goes into the sets first, so that
//! a reconnect meets the ban; then each named connection is destroyed by exact lookup; then one
//! combined survey finds what else those sources have open, destroyed in slices; then a second pass
//! catches what was opened meanwhile. One error in one case never stops the others. It decides
//! nobody's guilt, writes no file, and in a dry run touches nothing.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use refract_core::{
    BanBrake, Eviction, Exemptions, Measure, Moment, Offender, Permit, Restraint, Source, Transport,
};
use refract_kernel::{
    ban::BanTarget,
    ban_sets::BanSets,
    sock_diag::{Connection, DestroySupport, SockDiag},
};

use crate::{
    audit::{Action, Outcome, Record},
    cli::Protocols,
    endpoints::Endpoints,
    error::Error,
    ledger::Ledger,
    ports::Ports,
    survey::{Findings, Request, Surveyor},
};
use tracing::warn;

/// Connections destroyed in one turn of the loop: at 3 to 5 µs each (measured) this stays well
/// below half a millisecond.
const SLICE: usize = 64;
/// Passes over a banned source's connections.
const PASSES: u8 = 2;
/// Pause before the second pass: what was being opened has come to an end or been found by then.
const PASS_PAUSE: Duration = Duration::from_millis(2);
/// Pause between the beginnings of two rounds. A dump takes a processor for most of a millisecond
/// and more (measured), so a stream of offenders shares one every so often instead of holding up
/// the next offender's ban.
const ROUND_PAUSE: Duration = Duration::from_millis(10);

/// What enforcement needs to know of the settings.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Transports enforced on.
    pub protocols: Protocols,
    /// Protected local ports.
    pub ports: Ports,
    /// How long a ban lasts.
    pub timeout: Duration,
    /// Bits of an IPv6 address that make a source.
    pub ipv6_prefix: u8,
    /// Most users banned in a minute; 0 is no bound.
    pub max_bans: u32,
}

/// The kernel side: absent in a dry run.
#[derive(Debug)]
pub struct Arms {
    /// The ban sets.
    pub sets: BanSets,
    /// For exact lookups and destruction.
    pub sockets: SockDiag,
    /// For everything that takes a dump.
    pub surveyor: Surveyor,
}

/// Enforcement with its unfinished business.
#[derive(Debug)]
pub struct Enforcer {
    terms: Terms,
    arms: Option<Arms>,
    brake: BanBrake,
    /// Where clients' connections end on this host.
    pub endpoints: Endpoints,
    /// What is banned.
    pub ledger: Ledger,
    waiting: Vec<Case>,
    round: Option<Round>,
    /// No round begins before.
    rested: Instant,
}

/// One user's offending source in one read of the log.
#[derive(Debug)]
struct Case {
    user: Box<[u8]>,
    source: Source,
    action: Action,
    reason: &'static str,
    peers: Vec<SocketAddr>,
    targets: Vec<BanTarget>,
    incumbents: Vec<String>,
    places: usize,
    inbound: Option<Box<[u8]>>,
    evidence: &'static str,
    /// The peers are TCP connections of a protected port, as far as the log can tell.
    tcp: bool,
    read_at: Instant,
    latency: Duration,
    killed: u32,
    flows: u32,
    troubles: Vec<String>,
}

/// The cases that one survey serves, and how far it is.
#[derive(Debug)]
struct Round {
    cases: Vec<Case>,
    /// The case of each banned network.
    by_network: HashMap<(IpAddr, u8), usize>,
    protocols: Protocols,
    ipv6_prefix: u8,
    pass: u8,
    stage: Stage,
    found: Vec<Connection>,
}

/// What a round is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The surveyor walks the table.
    Surveying,
    /// Its findings are destroyed, a slice a turn.
    Destroying,
    /// The next pass begins then.
    Resting(Instant),
}

impl Enforcer {
    /// Enforcement under `terms`; without `arms` it is a dry run.
    #[must_use]
    pub fn new(terms: Terms, arms: Option<Arms>) -> Self {
        let brake = BanBrake::new(terms.max_bans);
        Self {
            terms,
            arms,
            brake,
            endpoints: Endpoints::default(),
            ledger: Ledger::default(),
            waiting: Vec::new(),
            round: None,
            rested: Instant::now(),
        }
    }

    /// The kernel side, if this is not a dry run.
    pub fn arms(&mut self) -> Option<&mut Arms> {
        self.arms.as_mut()
    }

    /// Becomes readable when a survey is finished.
    #[must_use]
    pub fn survey_fd(&self) -> Option<BorrowedFd<'_>> {
        self.arms.as_ref().map(|arms| arms.surveyor.as_fd())
    }

    /// Bans and kills all offenders of one read. What is settled at once is handed to `settled`;
    /// the rest follows from [`advance`](Self::advance).
    pub fn enforce(
        &mut self,
        evictions: &mut Vec<Eviction>,
        exemptions: &Exemptions,
        read_at: Instant,
        now: Moment,
        mut settled: impl FnMut(Record),
    ) {
        let mut cases = self.open_cases(evictions, exemptions, read_at, now);
        self.ban(&mut cases);
        if let Some(arms) = &mut self.arms
            && self.terms.protocols.tcp
        {
            for case in cases.iter_mut().filter(|case| case.tcp) {
                kill_named(case, arms, &mut self.endpoints);
            }
        }
        for mut case in cases {
            case.latency = case.read_at.elapsed();
            if self.arms.is_some() && !case.targets.is_empty() {
                self.waiting.push(case);
            } else {
                settled(self.record(case));
            }
        }
        self.begin_round(Instant::now());
    }

    /// When [`advance`](Self::advance) has something to do, besides when
    /// [`survey_fd`](Self::survey_fd) is readable: now, later, or not at all.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        match self.round.as_ref().map(|round| round.stage) {
            Some(Stage::Destroying) => Some(Instant::now()),
            Some(Stage::Resting(until)) => Some(until),
            Some(Stage::Surveying) => None,
            None => (!self.waiting.is_empty()).then_some(self.rested),
        }
    }

    /// Nothing is unfinished.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.round.is_none() && self.waiting.is_empty()
    }

    /// Does the next bit of unfinished work, at most a slice of it, if there is any to do by now.
    pub fn advance(&mut self, now: Instant, mut settled: impl FnMut(Record)) {
        self.begin_round(now);
        let (Some(round), Some(arms)) = (&mut self.round, &mut self.arms) else { return };
        match round.stage {
            Stage::Surveying => {
                let Some(findings) = arms.surveyor.findings() else { return };
                round.take(findings);
            }
            Stage::Resting(until) if now < until => return,
            Stage::Resting(_) => return round.survey(&arms.surveyor),
            Stage::Destroying => {}
        }
        for _ in 0..SLICE {
            let Some(connection) = round.found.pop() else { break };
            round.destroy(&connection, &mut arms.sockets, &mut self.endpoints);
        }
        if !round.found.is_empty() {
            return;
        }
        if round.pass < PASSES {
            round.pass += 1;
            round.stage = Stage::Resting(now + PASS_PAUSE);
            return;
        }
        if let Some(round) = self.round.take() {
            for case in round.cases {
                settled(self.record(case));
            }
        }
        self.begin_round(now);
    }

    /// Gives up waiting, as at the end of the process: every unfinished case becomes a record now.
    pub fn settle_all(&mut self, mut settled: impl FnMut(Record)) {
        let unfinished = self.round.take().map(|round| round.cases).unwrap_or_default();
        for case in unfinished.into_iter().chain(std::mem::take(&mut self.waiting)) {
            settled(self.record(case));
        }
    }

    /// Puts the bans that are still due back into sets that were made again.
    ///
    /// Gives how many were put back, and what went wrong with the others.
    pub fn restore(&mut self, now: Instant) -> (usize, Vec<String>) {
        let due = self.ledger.due(now);
        let Some(arms) = &mut self.arms else { return (0, Vec::new()) };
        let troubles: Vec<String> = arms
            .sets
            .ban(&due)
            .into_iter()
            .filter_map(|result| result.err().map(|error| error.to_string()))
            .collect();
        (due.len() - troubles.len(), troubles)
    }

    fn open_cases(
        &mut self,
        evictions: &mut Vec<Eviction>,
        exemptions: &Exemptions,
        read_at: Instant,
        now: Moment,
    ) -> Vec<Case> {
        let mut cases: Vec<Case> = Vec::with_capacity(evictions.len());
        let mut by_source: HashMap<Source, Vec<usize>> = HashMap::new();
        for eviction in evictions.drain(..) {
            for offender in &eviction.offenders {
                let known = by_source.entry(offender.source).or_default();
                let same = known.iter().copied().find(|index| {
                    cases.get(*index).is_some_and(|case| {
                        case.user.eq_ignore_ascii_case(&eviction.user)
                            && case.tcp == (offender.transport != Transport::Udp)
                    })
                });
                let index = same.unwrap_or_else(|| {
                    let (action, reason) = self.action(&eviction, offender, now);
                    cases.push(Case::open(&eviction, offender, action, reason, read_at));
                    known.push(cases.len() - 1);
                    cases.len() - 1
                });
                if let Some(case) = cases.get_mut(index) {
                    case.name(offender, exemptions);
                }
            }
        }
        cases
    }

    /// What is done to an offender, and why that.
    fn action(
        &mut self,
        eviction: &Eviction,
        offender: &Offender,
        now: Moment,
    ) -> (Action, &'static str) {
        match offender.measure {
            Measure::Ban if self.brake.permit(&eviction.user, now) == Permit::Withheld => {
                (Action::Kill, "max_bans_reached")
            }
            Measure::Ban => (Action::Ban, eviction.ground.name()),
            // The flow is dropped; the address, which one forged datagram may have named, is not.
            Measure::Kill(Restraint::UnprovenAddress) => (Action::Flow, eviction.ground.name()),
            Measure::Kill(restraint) => (Action::Kill, restraint.name()),
        }
    }

    fn ban(&mut self, cases: &mut [Case]) {
        let Some(arms) = &mut self.arms else { return };
        let bans: Vec<(BanTarget, Duration)> = cases
            .iter()
            .flat_map(|case| case.targets.iter().map(|target| (*target, self.terms.timeout)))
            .collect();
        if bans.is_empty() {
            return;
        }
        let end = Instant::now() + self.terms.timeout;
        let mut results = arms.sets.ban(&bans).into_iter();
        for case in cases {
            for target in &case.targets {
                match results.next() {
                    Some(Ok(_)) => self.ledger.banned(*target, end),
                    Some(Err(error)) => case.troubles.push(error.to_string()),
                    None => case.troubles.push("the kernel gave no answer".to_owned()),
                }
            }
        }
    }

    fn begin_round(&mut self, now: Instant) {
        if self.round.is_some() || self.waiting.is_empty() || now < self.rested {
            return;
        }
        let Some(arms) = &self.arms else { return };
        self.rested = now + ROUND_PAUSE;
        let cases = std::mem::take(&mut self.waiting);
        let mut by_network = HashMap::new();
        for (index, case) in cases.iter().enumerate() {
            by_network.extend(case.networks().map(|network| (network, index)));
        }
        let mut round = Round {
            cases,
            by_network,
            protocols: self.terms.protocols,
            ipv6_prefix: self.terms.ipv6_prefix,
            pass: 1,
            stage: Stage::Surveying,
            found: Vec::new(),
        };
        round.survey(&arms.surveyor);
        self.round = Some(round);
    }

    fn record(&self, case: Case) -> Record {
        Record {
            time: jiff::Timestamp::now(),
            action: case.action,
            reason: case.reason,
            user: case.user.into_vec(),
            source: case.source.to_string(),
            peers: case.peers,
            incumbents: case.incumbents,
            places: case.places,
            inbound: case.inbound.map(<[u8]>::into_vec),
            timeout: self.terms.timeout,
            killed: case.killed,
            flows: case.flows,
            latency: case.latency,
            settled: case.read_at.elapsed(),
            evidence: case.evidence,
            outcome: match (&self.arms, case.troubles.is_empty()) {
                (None, _) => Outcome::DryRun,
                (Some(_), true) => Outcome::Done,
                (Some(_), false) => Outcome::Failed(case.troubles.join("; ")),
            },
        }
    }
}

impl Case {
    fn open(
        eviction: &Eviction,
        offender: &Offender,
        action: Action,
        reason: &'static str,
        read_at: Instant,
    ) -> Self {
        Self {
            user: eviction.user.clone(),
            source: offender.source,
            action,
            reason,
            peers: Vec::new(),
            targets: Vec::new(),
            incumbents: eviction.incumbents.iter().map(|held| held.source.to_string()).collect(),
            places: eviction.places,
            inbound: offender.inbound.clone(),
            evidence: eviction.evidence.name(),
            tcp: offender.transport != Transport::Udp,
            read_at,
            latency: Duration::ZERO,
            killed: 0,
            flows: 0,
            troubles: Vec::new(),
        }
    }

    /// Adds one more named connection of the same offender.
    fn name(&mut self, offender: &Offender, exemptions: &Exemptions) {
        let peer = SocketAddr::new(offender.peer.address, offender.peer.port);
        if !self.peers.contains(&peer) {
            self.peers.push(peer);
        }
        let target = match self.action {
            Action::Ban => ban_target(offender, exemptions),
            Action::Flow => BanTarget::Flow { address: peer.ip(), port: peer.port() },
            Action::Kill | Action::Adopted => return,
        };
        if !self.targets.contains(&target) {
            self.targets.push(target);
        }
    }

    fn networks(&self) -> impl Iterator<Item = (IpAddr, u8)> {
        self.targets.iter().filter_map(|target| match target {
            BanTarget::Network { address, prefix } => Some((*address, *prefix)),
            BanTarget::Flow { .. } => None,
        })
    }
}

/// What goes into the set: an IPv4 address as it is; an IPv6 source whole, unless it holds an
/// address that may never be banned: then the exact address.
fn ban_target(offender: &Offender, exemptions: &Exemptions) -> BanTarget {
    let address = offender.peer.address;
    if address.is_ipv4() {
        return BanTarget::host(address);
    }
    let network = exemptions.ban_target(offender.source, address);
    BanTarget::Network { address: network.address(), prefix: network.prefix() }
}

fn request(cases: &[Case], protocols: Protocols) -> Request {
    let mut request = Request::default();
    for case in cases {
        if protocols.tcp {
            request.tcp.extend(case.networks());
        }
        request.udp.extend(case.networks());
        request.flows.extend(case.targets.iter().filter_map(|target| match target {
            BanTarget::Flow { address, port } => Some(SocketAddr::new(*address, *port)),
            BanTarget::Network { .. } => None,
        }));
    }
    request
}

fn kill_named(case: &mut Case, arms: &mut Arms, endpoints: &mut Endpoints) {
    for peer in &case.peers {
        let mut found = None;
        for local in endpoints.for_peer(peer.ip()) {
            match arms.sockets.find(*local, *peer) {
                Ok(Some(connection)) => {
                    found = Some((*local, connection));
                    break;
                }
                Ok(None) => {}
                Err(error) => {
                    case.troubles.push(error.to_string());
                    break;
                }
            }
        }
        if let Some((local, connection)) = found {
            endpoints.found(local);
            match arms.sockets.destroy(&connection) {
                Ok(true) => case.killed += 1,
                Ok(false) => {}
                Err(error) => case.troubles.push(error.to_string()),
            }
        }
    }
}

impl Round {
    fn survey(&mut self, surveyor: &Surveyor) {
        self.stage = Stage::Surveying;
        if !surveyor.request(request(&self.cases, self.protocols)) {
            self.take(Findings {
                troubles: vec!["the surveying thread is gone".to_owned()],
                ..Findings::default()
            });
        }
    }

    fn take(&mut self, findings: Findings) {
        self.stage = Stage::Destroying;
        self.found = findings.connections;
        for client in findings.flows {
            let flow = |case: &Case| case.peers.contains(&client);
            let index = self.case_of(client.ip()).or_else(|| self.cases.iter().position(flow));
            if let Some(case) = index.and_then(|index| self.cases.get_mut(index)) {
                case.flows += 1;
            }
        }
        for trouble in findings.troubles {
            for case in &mut self.cases {
                case.troubles.push(trouble.clone());
            }
        }
    }

    /// The case whose ban covers `address`: as itself, or as a part of its IPv6 source.
    fn case_of(&self, address: IpAddr) -> Option<usize> {
        let exact = (address, if address.is_ipv4() { 32 } else { 128 });
        let source = Source::of(address, 32, self.ipv6_prefix).network();
        self.by_network
            .get(&exact)
            .or_else(|| self.by_network.get(&(source.address(), source.prefix())))
            .copied()
    }

    fn destroy(
        &mut self,
        connection: &Connection,
        sockets: &mut SockDiag,
        endpoints: &mut Endpoints,
    ) {
        let index = self.case_of(connection.remote().ip());
        let Some(case) = index.and_then(|index| self.cases.get_mut(index)) else { return };
        endpoints.found(connection.local());
        match sockets.destroy(connection) {
            Ok(true) => case.killed += 1,
            Ok(false) => {}
            Err(error) => case.troubles.push(error.to_string()),
        }
    }
}

/// Opens the kernel side of enforcement.
pub fn arm(sets: BanSets, terms: &Terms) -> Result<Arms, Error> {
    let mut sockets = SockDiag::open()?;
    let refuse = |reason| Err(Error::NoReset { reason });
    match sockets.supports_destroy() {
        Ok(DestroySupport::Works) => {}
        Ok(DestroySupport::NotPermitted) => return refuse("it is not permitted"),
        Ok(DestroySupport::NotBuilt) => return refuse("it was built without that"),
        Ok(DestroySupport::NoDiagnostics) => return refuse("it shows no TCP sockets"),
        Err(error) => warn!("could not try whether connections can be reset: {error}"),
    }
    let surveyor = Surveyor::start(terms.ports.ranges().to_vec(), terms.protocols.udp)?;
    Ok(Arms { sets, sockets, surveyor })
}
