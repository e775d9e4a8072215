//! Carries verdicts out: bans, kills, and remembers what is still to be done about each.
//!
//! Takes all evictions of one read of the log; makes kernel state and, when an offender is settled,
//! one [`Record`]. The order is fixed: every offender of the read goes into the sets first, so that
//! a reconnect meets the ban; then each named connection is destroyed by exact lookup; then one
//! combined survey finds what else those sources have open, destroyed in slices; then a second pass
//! catches what was opened meanwhile. One error in one case never stops the others. It decides
//! nobody's guilt, writes no file, and in a dry run touches nothing.

mod case;
mod round;

use std::{
    collections::{HashMap, VecDeque},
    mem,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use refract_core::{
    BanBrake, Eviction, Exemptions, Measure, Moment, Offender, Permit, Restraint, Source, Transport,
};
use refract_kernel::{
    Error as KernelError,
    ban::BanTarget,
    ban_sets::{BanSets, Installed},
    sock_diag::{DestroySupport, SockDiag},
};
use tracing::{error, warn};

use self::{case::Case, round::Round};
use crate::{
    audit::{Action, Record},
    cli::Protocols,
    endpoints::Endpoints,
    error::Error,
    ledger::Ledger,
    ports::Ports,
    survey::Surveyor,
};

/// Connections destroyed in one turn of the loop: at 3 to 7 µs each (measured) this stays below
/// half a millisecond.
const SLICE: usize = 64;
/// Named connections looked up and destroyed in one turn, at about 10 µs each (measured).
const NAMED_SLICE: usize = 32;
/// Cases that may be unfinished before the log has to wait: what is not read yet stays in the file.
const MOST_UNFINISHED: usize = 2048;
/// Pause between the beginnings of two rounds. A dump takes a processor for most of a millisecond
/// and more (measured), so a stream of offenders shares one every so often instead of holding up
/// the next offender's ban.
const ROUND_PAUSE: Duration = Duration::from_millis(10);
/// The brake is said to hold at most this often.
const BRAKE_PAUSE: Duration = Duration::from_mins(1);

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

/// What became of sets that were gone.
#[derive(Debug, Default)]
pub struct Remade {
    /// Each set, and what was done about it.
    pub installed: Vec<Installed>,
    /// Bans that are in force again.
    pub restored: usize,
    /// Why others are not.
    pub troubles: Vec<String>,
}

/// Enforcement with its unfinished business.
#[derive(Debug)]
pub struct Enforcer {
    terms: Terms,
    arms: Option<Arms>,
    brake: BanBrake,
    brake_said: Option<Moment>,
    /// Where clients' connections end on this host.
    pub endpoints: Endpoints,
    /// What is banned.
    pub ledger: Ledger,
    /// Banned, their named connections still to be killed.
    named: VecDeque<Case>,
    /// Waiting for a survey.
    waiting: Vec<Case>,
    round: Option<Round>,
    /// No round begins before.
    rested: Instant,
    /// Sets were found missing and made again since somebody last asked.
    remade: bool,
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
            brake_said: None,
            endpoints: Endpoints::default(),
            ledger: Ledger::default(),
            named: VecDeque::new(),
            waiting: Vec::new(),
            round: None,
            rested: Instant::now(),
            remade: false,
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

    /// Bans all offenders of one read. The rest follows from [`advance`](Self::advance), which is
    /// to be called as soon as there is nothing more to read.
    pub fn ban(
        &mut self,
        evictions: &mut Vec<Eviction>,
        exemptions: &Exemptions,
        read_at: Instant,
        now: Moment,
    ) {
        let mut cases = self.open_cases(evictions, exemptions, read_at, now);
        self.fill_sets(&mut cases);
        self.named.extend(cases);
    }

    /// When [`advance`](Self::advance) has something to do, besides when
    /// [`survey_fd`](Self::survey_fd) is readable: now, later, or not at all.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Instant> {
        if !self.named.is_empty() {
            return Some(now);
        }
        match &self.round {
            Some(round) => round.due(now),
            None => (!self.waiting.is_empty()).then_some(self.rested),
        }
    }

    /// So much is unfinished that no more of the log is to be read.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let surveyed = self.round.as_ref().map_or(0, |round| round.cases.len());
        self.named.len() + self.waiting.len() + surveyed >= MOST_UNFINISHED
    }

    /// Nothing is unfinished.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.named.is_empty() && self.waiting.is_empty() && self.round.is_none()
    }

    /// Does the next bit of unfinished work, at most a slice of it, if there is any to do by now:
    /// named connections first. `surveyed` says that [`survey_fd`](Self::survey_fd) is readable. Who
    /// is settled is handed over.
    pub fn advance(&mut self, now: Instant, surveyed: bool, mut settled: impl FnMut(Record)) {
        self.kill_named(&mut settled);
        self.begin_round(now);
        let (Some(round), Some(arms)) = (&mut self.round, &mut self.arms) else { return };
        let findings = if surveyed { arms.surveyor.findings() } else { None };
        if round.advance(now, findings, &arms.surveyor, &mut arms.sockets, &mut self.endpoints) {
            for case in mem::take(&mut round.cases) {
                settled(case.record(false));
            }
            self.round = None;
            self.begin_round(now);
        }
    }

    /// Gives up waiting, as at the end of the process: every unfinished case becomes a record now.
    pub fn settle_all(&mut self, mut settled: impl FnMut(Record)) {
        let surveyed = self.round.take().map(|round| round.cases).unwrap_or_default();
        let waiting = mem::take(&mut self.waiting);
        for case in surveyed.into_iter().chain(waiting).chain(mem::take(&mut self.named)) {
            settled(case.record(self.arms.is_none()));
        }
    }

    /// Makes sets that are gone again, and puts the bans back that are still due.
    pub fn make_sets_again(&mut self, now: Instant) -> Result<Remade, Error> {
        let Some(arms) = &mut self.arms else { return Ok(Remade::default()) };
        // Where one set cannot be made, the others still get their bans back.
        let installed = arms.sets.install();
        let due = self.ledger.due(now);
        let refused = arms.sets.ban(&due).into_iter().filter_map(Result::err);
        let troubles: Vec<String> = refused.map(|error| error.to_string()).collect();
        Ok(Remade { installed: installed?, restored: due.len() - troubles.len(), troubles })
    }

    /// Whether a ban found its set gone, so that sets were made again, since the last time this was
    /// asked: their rule is gone too.
    pub fn sets_were_remade(&mut self) -> bool {
        mem::take(&mut self.remade)
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
            // A session may be older than the address's exemption.
            let liable = |offender: &&Offender| exemptions.reason(offender.peer.address).is_none();
            for offender in eviction.offenders.iter().filter(liable) {
                let known = by_source.entry(offender.source).or_default();
                let same = known.iter().copied().find(|index| {
                    cases.get(*index).is_some_and(|case| {
                        case.user.eq_ignore_ascii_case(&eviction.user)
                            && case.tcp == (offender.transport != Transport::Udp)
                    })
                });
                let index = same.unwrap_or_else(|| {
                    let action = self.action(&eviction, offender, now);
                    let timeout = self.terms.timeout;
                    cases.push(Case::open(&eviction, offender, action, timeout, read_at));
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
                self.say_that_the_brake_holds(now);
                (Action::Kill, "max_bans_reached")
            }
            Measure::Ban => (Action::Ban, eviction.ground.name()),
            // The flow is dropped; the address, which one forged datagram may have named, is not.
            Measure::Kill(Restraint::UnprovenAddress) => (Action::Flow, eviction.ground.name()),
            Measure::Kill(restraint) => (Action::Kill, restraint.name()),
        }
    }

    fn say_that_the_brake_holds(&mut self, now: Moment) {
        let rested = |said| now.saturating_since(said) >= BRAKE_PAUSE;
        if self.brake_said.is_none_or(rested) {
            self.brake_said = Some(now);
            warn!(
                max_bans = self.terms.max_bans,
                "as many users as --max-bans allows were banned within a minute: further offenders \
                 are disconnected but not banned until the minute is over"
            );
        }
    }

    fn fill_sets(&mut self, cases: &mut [Case]) {
        let Some(arms) = &mut self.arms else { return };
        let now = Instant::now();
        // A line that was late finds its source banned already, perhaps for longer.
        let time_for = |target: &BanTarget| self.ledger.left(target, now).max(self.terms.timeout);
        let bans: Vec<(BanTarget, Duration)> = cases
            .iter()
            .flat_map(|case| case.targets.iter().map(|target| (*target, time_for(target))))
            .collect();
        if bans.is_empty() {
            return;
        }
        let mut results = arms.sets.ban(&bans);
        let is_missing = |error: &KernelError| matches!(error, KernelError::SetMissing { .. });
        if results.iter().any(|result| result.as_ref().is_err_and(is_missing))
            // Why not, is said where the sets are looked after every second.
            && self.make_sets_again(now).is_ok()
            && let Some(arms) = &mut self.arms
        {
            self.remade = true;
            results = arms.sets.ban(&bans);
        }
        let mut results = results.into_iter().zip(bans);
        for case in cases {
            for _ in 0..case.targets.len() {
                match results.next() {
                    Some((Ok(_), (target, time))) => self.ledger.banned(target, now + time),
                    Some((Err(error), _)) => case.trouble(error.to_string()),
                    None => case.trouble("the kernel gave no answer".to_owned()),
                }
            }
        }
    }

    fn kill_named(&mut self, settled: &mut impl FnMut(Record)) {
        let mut budget = NAMED_SLICE;
        while let Some(case) = self.named.front_mut() {
            if let Some(arms) = &mut self.arms
                && self.terms.protocols.tcp
                && case.tcp
                && !case.kill_named(&mut arms.sockets, &mut self.endpoints, &mut budget)
            {
                return;
            }
            let Some(mut case) = self.named.pop_front() else { return };
            case.banned_and_killed();
            if self.arms.is_some() && !case.targets.is_empty() {
                self.waiting.push(case);
            } else {
                settled(case.record(self.arms.is_none()));
            }
        }
    }

    fn begin_round(&mut self, now: Instant) {
        let Some(arms) = &self.arms else { return };
        if self.round.is_none() && !self.waiting.is_empty() && now >= self.rested {
            self.rested = now + ROUND_PAUSE;
            let cases = mem::take(&mut self.waiting);
            self.round = Some(Round::begin(cases, &self.terms, &arms.surveyor));
        }
    }
}

/// Tries whether connections can be reset here. Refuses where that is not permitted; where the
/// kernel cannot do it at all, says so and goes on with bans alone.
pub fn require_reset() -> Result<(), Error> {
    match SockDiag::open()?.supports_destroy() {
        Ok(DestroySupport::Works) => {}
        Ok(DestroySupport::NotPermitted) => return Err(Error::ResetNotPermitted),
        Ok(DestroySupport::NotBuilt) => error!(
            "this kernel cannot reset connections (it was built without \
             CONFIG_INET_DIAG_DESTROY): a banned device is shut out, but keeps its dead connection"
        ),
        Ok(DestroySupport::NoDiagnostics) => error!(
            "this kernel does not show its TCP connections, so none can be reset: modprobe \
             tcp_diag; until then a banned device is shut out, but keeps its dead connection"
        ),
        Err(error) => warn!("could not try whether connections can be reset: {error}"),
    }
    Ok(())
}

/// Opens the kernel side of enforcement.
pub fn arm(sets: BanSets, terms: &Terms) -> Result<Arms, Error> {
    let sockets = SockDiag::open()?;
    let surveyor = Surveyor::start(terms.ports.ranges().to_vec(), terms.protocols.udp)?;
    Ok(Arms { sets, sockets, surveyor })
}
