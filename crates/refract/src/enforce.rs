//! Carries verdicts out: bans, kills, and remembers what is still to be done about each.
//!
//! Takes all evictions of one read of the log; makes kernel state and, when an offender is settled,
//! one [`Record`]. The order is fixed: every offender of the read goes into the sets first, so that
//! a reconnect meets the ban; then each named connection is destroyed by exact lookup; then one
//! combined survey finds what else those sources have open, destroyed in slices; then a second pass
//! catches what was opened meanwhile. One error in one case never stops the others. It decides
//! nobody's guilt, writes no file, and in a dry run touches nothing.

mod arms;
mod case;
mod measures;
mod round;

use std::{
    collections::VecDeque,
    mem,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use refract_core::{Abstention, Brakes, Eviction, Exemptions, Moment, Question};
use refract_kernel::{
    Error as KernelError, ban::BanTarget, ban_sets::Installed, sock_diag::Connection,
};

pub use self::arms::{Arms, arm, require_reset};
use self::{
    arms::speaks_mptcp,
    case::{Case, find_link},
    round::Round,
};
use crate::{
    audit::{Action, Outcome, Record},
    cli::Protocols,
    endpoints::Endpoints,
    error::Error,
    ledger::Ledger,
    ports::Ports,
    witness::address_of,
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

/// Pause before the first survey of a case. A walk through the kernel's table takes a processor for
/// milliseconds and lets nobody have it in between (262,144 buckets: 1.4 ms a family, measured), so
/// whoever was just reset, and the lines that come at the same moment, get it first.
const SURVEY_PAUSE: Duration = Duration::from_millis(1);

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
}

/// Says whether a connection may be destroyed when the source of a user, named first, is banned.
pub type MayDestroy<'a> = &'a dyn Fn(&[u8], &Connection) -> bool;

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
    brake_said: Option<Moment>,
    /// The kernel speaks MPTCP in this network namespace.
    mptcp: bool,
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
    /// Enforcement under `terms`: a dry run, until it is [armed](Self::take_up).
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            arms: None,
            brake_said: None,
            mptcp: speaks_mptcp(),
            endpoints: Endpoints::default(),
            ledger: Ledger::default(),
            named: VecDeque::new(),
            waiting: Vec::new(),
            round: None,
            rested: Instant::now(),
            remade: false,
        }
    }

    /// From now on it acts.
    pub fn take_up(&mut self, arms: Arms) {
        self.arms = Some(arms);
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
        evictions: Vec<Eviction>,
        exemptions: &Exemptions,
        brakes: &mut Brakes,
        read_at: Instant,
        now: Moment,
    ) {
        let mut cases = self.open_cases(evictions, exemptions, brakes, read_at, now);
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
    pub fn advance(
        &mut self,
        now: Instant,
        surveyed: bool,
        may_destroy: MayDestroy<'_>,
        mut settled: impl FnMut(Record),
    ) {
        self.kill_named(now, &mut settled);
        self.begin_round(now);
        let (Some(round), Some(arms)) = (&mut self.round, &mut self.arms) else { return };
        let findings = if surveyed { arms.surveyor.findings() } else { None };
        let means = (&mut arms.sockets, &mut self.endpoints);
        if round.advance(now, findings, &arms.surveyor, means, may_destroy) {
            let mut cases = mem::take(&mut round.cases);
            self.round = None;
            let mut fallen: Vec<Case> = cases.extract_if(.., Case::fall_back).collect();
            self.fill_sets(&mut fallen);
            for case in cases.into_iter().chain(fallen) {
                settled(case.record(false));
            }
            self.begin_round(now);
        }
    }

    /// Puts a question: resets that one connection, and writes down that it did.
    pub fn ask(&mut self, question: Question, read_at: Instant) -> Record {
        let mut troubles = Vec::new();
        let mut killed = 0;
        if let Some(arms) = &mut self.arms {
            match find_link(&question.link, &mut arms.sockets) {
                Ok(Some(connection)) => match arms.sockets.destroy(&connection) {
                    Ok(done) => killed = u32::from(done),
                    Err(error) => troubles.push(error.to_string()),
                },
                Ok(None) => {}
                Err(error) => troubles.push(error.to_string()),
            }
        }
        Record {
            action: Action::Ask,
            reason: "only_finishes",
            peers: vec![address_of(question.link.peer)],
            places: question.places,
            timeout: Duration::ZERO,
            killed,
            latency: read_at.elapsed(),
            settled: read_at.elapsed(),
            proof: Some(question.proof),
            outcome: Outcome::of(self.arms.is_none(), &troubles),
            ..Record::of(question.user.into_vec(), question.source.to_string())
        }
    }

    /// Writes down that nothing is done.
    #[must_use]
    pub fn refrain(&self, abstention: Abstention) -> Record {
        Record {
            action: Action::Refrain,
            reason: abstention.restraint.name(),
            places: abstention.places,
            timeout: Duration::ZERO,
            proof: Some(abstention.proof),
            outcome: Outcome::of(self.arms.is_none(), &[]),
            ..Record::of(abstention.user.into_vec(), abstention.source.to_string())
        }
    }

    /// Takes other terms for the bans from now on.
    pub fn set_terms(&mut self, terms: Terms) {
        self.terms = terms;
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
        let installed = arms.bans.install();
        let due = self.ledger.due(now);
        let refused = arms.bans.ban(&due).into_iter().filter_map(Result::err);
        let troubles: Vec<String> = refused.map(|error| error.to_string()).collect();
        Ok(Remade { installed: installed?, restored: due.len() - troubles.len(), troubles })
    }

    /// Whether a ban found its set gone, so that sets were made again, since the last time this was
    /// asked: their rule is gone too.
    pub fn sets_were_remade(&mut self) -> bool {
        mem::take(&mut self.remade)
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
        let mut results = arms.bans.ban(&bans);
        let is_missing = |error: &KernelError| matches!(error, KernelError::SetMissing { .. });
        if results.iter().any(|result| result.as_ref().is_err_and(is_missing))
            // Why not, is said where the sets are looked after every second.
            && self.make_sets_again(now).is_ok()
            && let Some(arms) = &mut self.arms
        {
            self.remade = true;
            results = arms.bans.ban(&bans);
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

    fn kill_named(&mut self, now: Instant, settled: &mut impl FnMut(Record)) {
        let mut budget = NAMED_SLICE;
        // Whoever has not been begun with keeps his turn.
        while budget > 0
            && let Some(case) = self.named.front_mut()
        {
            if let Some(arms) = &mut self.arms
                && self.terms.protocols.tcp
                && case.tcp
                && !case.kill_named(&mut arms.sockets, &mut self.endpoints, &mut budget)
            {
                // One with very many connections holds nobody else up.
                self.named.rotate_left(1);
                return;
            }
            let Some(mut case) = self.named.pop_front() else { return };
            case.banned_and_killed();
            let may_survive = self.mptcp && case.may_survive().next().is_some();
            if self.arms.is_some() && (!case.targets.is_empty() || may_survive) {
                if self.waiting.is_empty() {
                    self.rested = self.rested.max(now + SURVEY_PAUSE);
                }
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
