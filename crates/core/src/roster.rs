//! Who is live from where: sightings and moments in, verdicts out.
//!
//! Takes what the log says ([`Sighting`]) and when it was read; makes a [`Verdict`] for each
//! sighting, by the rule in `sessions`. It does no I/O and reads no clock, so
//! the same sightings at the same moments always give the same verdicts. It does not ask whether
//! an address is exempt: that is [`Exemptions`](crate::Exemptions), before a sighting comes here.
//!
//! **What the log alone cannot prevent.** A line is a claim. Whoever can write one (any user, by a
//! newline in a domain name) can name a victim and an address: with `keep = first` the address is
//! cut off if the victim is live elsewhere, and the victim, if the forged address was there first.
//! The measure is the milder one where anybody else was seen at the address, and no address of the
//! [`Exemptions`](crate::Exemptions) comes this far; more than that takes evidence from the kernel.
//! In the other direction, whoever writes another user's line from his own address, or a flood of
//! lines, makes every measure against him the milder one: killed, and killed again, not banned.
//!
//! **Bounds.** Users, the sources of each, and the sources known for their neighbours are all
//! bounded; what goes when they are full is the longest silent of sixteen (users, neighbours) and
//! the longest silent that holds no place (the sources of one user). A line of a live session
//! evicts nothing and allocates nothing.

use std::{hint::black_box, mem, sync::Arc};

use crate::{
    accounts::{AccountTerms, Accounts, Places},
    bounded::{Bounded, Heard, SWEPT_PER_TICK},
    identity::{self, Identity},
    moment::Moment,
    neighbours::{Company, NEIGHBOURS_PER_USER, Neighbours},
    policy::{Action, Policy},
    sessions::{Arrival, Renewal, Ruling, Session, Sessions, note_interval},
    sighting::{Peer, Sighting, Transport},
    tags::Tags,
    verdict::{Basis, Eviction, Evidence, Measure, Offender, Restraint, Verdict},
};

/// What the roster had to let go since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Users dropped before their time because the roster was full.
    pub evicted_users: u64,
    /// Users dropped because they were silent for long enough.
    pub forgotten_users: u64,
    /// Sources whose neighbours were dropped before their time; for as long as such a loss could
    /// matter, offenders at sources that are met anew are killed instead of banned.
    pub evicted_neighbours: u64,
}

/// All users that were heard of, and where each of them is.
#[derive(Debug)]
pub struct Roster {
    policy: Policy,
    accounts: Arc<Accounts>,
    users: Bounded<Identity, Sessions>,
    neighbours: Neighbours,
    tags: Tags,
    counters: Counters,
    /// Where a name is folded that needs it; kept for its memory.
    scratch: Vec<u8>,
}

impl Heard for Sessions {
    fn last_heard(&self) -> Moment {
        self.last()
    }
}

impl Roster {
    /// An empty roster under `policy`, which says how many places everybody has.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let default = Places::Limited(policy.places());
        let accounts = AccountTerms { default, ..AccountTerms::default() };
        // What a policy takes for a number of places, accounts take too.
        Self::with_accounts(policy, Arc::new(Accounts::new(accounts).unwrap_or_default()))
    }

    /// An empty roster under `policy`, where `accounts` say how many places each user has.
    #[must_use]
    pub fn with_accounts(policy: Policy, accounts: Arc<Accounts>) -> Self {
        // A neighbour was last told of up to one interval before he was last heard.
        let remembered_for = policy.forget_after() + note_interval(&policy);
        let capacity = policy.users().saturating_mul(NEIGHBOURS_PER_USER);
        Self {
            policy,
            accounts,
            users: Bounded::new(policy.users()),
            neighbours: Neighbours::new(capacity, remembered_for, kept_neighbours(&policy)),
            tags: Tags::default(),
            counters: Counters::default(),
            scratch: Vec::new(),
        }
    }

    /// Lives by other rules from now on; who is where is kept.
    pub fn set_rules(&mut self, policy: Policy, accounts: Arc<Accounts>) {
        (self.policy, self.accounts) = (policy, accounts);
    }

    /// From now on nobody holds a place at an address for which `is_exempt` holds. Lines from there
    /// are not to be brought here any more.
    pub fn spare(&mut self, is_exempt: impl Fn(&Peer) -> bool) {
        let everybody = self.users.len();
        self.users.sweep(everybody, |sessions| sessions.spare(&is_exempt));
    }

    /// Takes one sighting, read at `now`, and says what follows from it.
    pub fn observe(&mut self, sighting: &Sighting<'_>, evidence: Evidence, now: Moment) -> Verdict {
        self.observe_at(None, sighting, evidence, now)
    }

    /// As [`observe`](Self::observe), for a user who was found at `place` a moment ago.
    pub(crate) fn observe_at(
        &mut self,
        place: Option<usize>,
        sighting: &Sighting<'_>,
        evidence: Evidence,
        now: Moment,
    ) -> Verdict {
        // A name that is a key as it is needs no folding.
        if self.accounts.is_plain()
            && let Places::Limited(places) = self.accounts.default_places()
            && place.is_some_and(|place| self.users.is_at::<[u8]>(place, sighting.user))
        {
            return self.decide(place, sighting.user, places, sighting, evidence, now);
        }
        let mut scratch = mem::take(&mut self.scratch);
        let user = identity::folded(sighting.user, &mut scratch);
        let accounts = Arc::clone(&self.accounts);
        let account = accounts.of(user);
        let verdict = match account.places {
            Places::Ignored => Verdict::Admit,
            Places::Unlimited => {
                // He is a neighbour all the same.
                let source = self.policy.source(sighting.peer.address);
                let hash = self.users.hash_of::<[u8]>(account.identity);
                self.neighbours.note(source, hash, now);
                Verdict::Admit
            }
            Places::Limited(places) => {
                // He was looked for by his name as it was written, which may not be what counts.
                let place = place.filter(|place| self.users.is_at(*place, account.identity));
                self.decide(place, account.identity, places, sighting, evidence, now)
            }
        };
        self.scratch = scratch;
        verdict
    }

    /// Where a user probably is; nothing that is known of him is looked at. A name that is not
    /// folded already is not found, which costs [`observe_at`](Self::observe_at) but a search.
    pub(crate) fn likely_place(&self, user: &[u8]) -> Option<usize> {
        self.users.likely_place(self.users.hash_of(user))
    }

    /// Has what is known of the user at `place` fetched from memory.
    pub(crate) fn fetch(&self, place: usize) {
        black_box(self.users.at(place).map(Sessions::last));
    }

    /// Forgets a few of those who were silent for long enough; call it a few times a second. Each
    /// call looks at a bounded number of entries, so it never holds up the caller.
    pub fn tick(&mut self, now: Moment) {
        let policy = self.policy;
        let forgotten = self.users.sweep(SWEPT_PER_TICK, |sessions| sessions.forget(&policy, now));
        self.counters.forgotten_users += u64::try_from(forgotten).unwrap_or_default();
        self.neighbours.sweep(SWEPT_PER_TICK, now);
    }

    /// Users remembered now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether nobody is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What had to be let go so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters { evicted_neighbours: self.neighbours.evicted(), ..self.counters }
    }

    fn decide(
        &mut self,
        place: Option<usize>,
        user: &[u8],
        places: usize,
        sighting: &Sighting<'_>,
        evidence: Evidence,
        now: Moment,
    ) -> Verdict {
        let source = self.policy.source(sighting.peer.address);
        let arrival = Arrival { source, peer: sighting.peer, transport: sighting.transport };
        let known = match place {
            Some(place) => self.users.at_mut(place),
            None => self.users.get_mut(user),
        };
        if let Some(sessions) = known {
            match sessions.renew(arrival, &self.policy, now) {
                Renewal::Renewed => return Verdict::Admit,
                Renewal::RenewedAndDue => {
                    let user = self.users.hash_of::<[u8]>(user);
                    self.neighbours.note(source, user, now);
                    return Verdict::Admit;
                }
                Renewal::NotLive => {}
            }
        }

        let policy = self.policy.with_places(places);
        let user_hash = self.users.hash_of::<[u8]>(user);
        self.neighbours.note(source, user_hash, now);
        let tag = self.tags.keep(sighting.inbound);
        let (sessions, evicted) = self.users.get_or_insert(user.into(), Sessions::new);
        self.counters.evicted_users += u64::from(evicted.is_some());
        let ruling = sessions.judge(arrival, tag, &policy, now);
        let Ruling::Evict { ground, offenders, basis } = ruling else { return Verdict::Admit };
        let incumbents = sessions.incumbents(&policy, now);
        Verdict::Evict(Eviction {
            user: sighting.user.into(),
            ground,
            offenders: offenders
                .iter()
                .map(|offender| self.offender(offender, user_hash, now))
                .collect(),
            incumbents,
            places: policy.places(),
            evidence,
            proof: None,
            basis: basis.map(|(source, at)| Basis { source, ago: now.saturating_since(at) }),
        })
    }

    fn offender(&self, session: &Session, user_hash: u64, now: Moment) -> Offender {
        Offender {
            source: self.policy.source(session.peer.address),
            peer: session.peer,
            transport: session.transport,
            inbound: self.tags.name(session.tag).map(Box::from),
            links: Vec::new(),
            measure: self.measure(session, user_hash, now),
        }
    }

    fn measure(&self, session: &Session, user_hash: u64, now: Moment) -> Measure {
        let source = self.policy.source(session.peer.address);
        if session.transport == Transport::Udp && !self.policy.udp_ban() {
            return Measure::Kill(Restraint::UnprovenAddress);
        }
        let crowd = self.policy.shared_source_users().min(self.neighbours.kept());
        match (self.policy.action(), self.neighbours.company(source, user_hash, now)) {
            (Action::Ban, _) if self.neighbours.count(source, now) >= crowd => {
                Measure::Kill(Restraint::Proxy)
            }
            (Action::Ban, _) | (Action::Auto, Company::Alone) => Measure::Ban,
            (_, Company::Shared) => Measure::Kill(Restraint::SharedSource),
            (_, Company::Unknown) => Measure::Kill(Restraint::UnknownNeighbours),
            (Action::Kill, Company::Alone) => Measure::Kill(Restraint::ByOrder),
        }
    }
}

/// How many users are kept for a source. That there are two is enough, unless it is banned all the
/// same; whoever changes to that in a running process has it like this until the next start.
fn kept_neighbours(policy: &Policy) -> usize {
    match policy.action() {
        Action::Ban => policy.shared_source_users(),
        Action::Auto | Action::Kill => 2,
    }
}
