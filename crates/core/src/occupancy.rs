//! Who is at work from where, by the kernel's evidence: claims and counters in, verdicts out.
//!
//! Takes what lines claim, what the kernel's sockets say of it, and the time; makes [`Verdict`]s. A
//! claim counts only for a connection that the kernel confirmed ([`Occupancy::confirm`]); whether
//! somebody is at work there shows in the payload counters, which are asked for slot by slot, for
//! users with more sources than places only ([`Occupancy::probe`]). The rule itself is
//! [`overlap`]. It does no I/O and reads no clock.
//!
//! | room | what it does |
//! |---|---|
//! | `claims` | what lines claim and the kernel confirms becomes a connection with an owner, until it closes |
//! | `spared` | who became exempt is let go of |
//! | `connections` | which connections are open, and whose each is |
//! | `presence` | one user at one source: arrival, moves, what was begun and asked |
//! | `occupant` | one user: his presences, ranked, and what is to be looked at |
//! | `comeback` | the device that was cut, back in the other address family |
//! | `round` | the looks at the end of one slot, one after the other |
//! | `sentence` | who goes, and how far one may go against him |
//! | `standing` | what is remembered across restarts |
//! | `visits` | who else was where, by name, for another run |
//!
//! **What a forged line can do.** It names a peer. If the kernel has no such connection, nothing. If
//! it is a stranger's, the stranger's own line makes it a carrier of several users, which is nobody's
//! evidence; if it is the attacker's own, a tainted line changes nothing, and a connection that was
//! refused is nobody's.
//!
//! **Bounds.** Users (the longest silent of sixteen goes, unless it has connections open), the
//! sources of each (the longest silent one goes, but never one with connections open, nor the most
//! senior of a family; a source that does not fit is not taken, and what is opened there is reset),
//! connections (none goes; what does not fit is not taken), who is at which source, and who visited
//! which (the longest silent of sixteen).

mod claims;
mod comeback;
mod connections;
mod occupant;
mod presence;
mod round;
mod sentence;
mod spared;
mod standing;
mod visits;

use std::{sync::Arc, time::Duration};

pub use self::standing::Standing;
use self::{
    connections::{Connection, Connections, Movement, Owner, Regrouped, movement},
    occupant::{Occupant, Watch},
    presence::{Measures, Presence},
    round::Round,
    sentence::Exhibited,
    visits::Visits,
};
use crate::{
    accounts::{Accounts, Places},
    bounded::{Bounded, Heard, SWEPT_PER_TICK},
    brake::Brakes,
    identity,
    link::{Link, Sample},
    moment::Moment,
    neighbours::{NEIGHBOURS_PER_USER, Neighbours},
    network::{Family, Source},
    overlap::{self, Finding},
    policy::Policy,
    sighting::Peer,
    tags::Tags,
    verdict::Verdict,
};

/// How often in the time that neighbours are remembered for they are looked at anew: all open
/// connections, some tens of milliseconds for as many as are kept.
const RENEWED_IN_MEMORY: u32 = 8;
/// A user with more open sources than places, but no more of them at work, is looked at once in so
/// many slots: what was quiet may move again without any line.
const SLOTS_PER_GLANCE: u64 = 4;

/// The shortest time there is between two moments.
const INSTANT: Duration = Duration::from_nanos(1);

/// What is to be done about a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Claim {
    /// It is known, or it changes nothing: the kernel need not be asked.
    Settled,
    /// Look its peer up, and [confirm](Occupancy::confirm) what was found.
    LookUp,
}

/// What became of claims, and what was done; counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Claims for a connection that the user is known to own.
    pub known: u64,
    /// Claims that the kernel confirmed.
    pub verified: u64,
    /// Claims for a peer that no connection has.
    pub unverified: u64,
    /// Claims too near to what a client wrote.
    pub tainted: u64,
    /// Claims for a connection that a `rejected` line had named.
    pub refused: u64,
    /// Claims for a connection that is older than this run and that nobody owned at its start, or
    /// whose address was exempt for a while.
    pub older: u64,
    /// Claims for a connection of another user: it carries several, and is evidence no more.
    pub carriers: u64,
    /// Claims of users who are ignored or have any number of places.
    pub unlimited: u64,
    /// Confirmed claims, connections that nobody owns, and connections whose users count elsewhere
    /// under other rules, that found no room.
    pub no_room: u64,
    /// Questions put.
    pub asked: u64,
    /// Questions answered.
    pub answered: u64,
    /// Violations by overlap.
    pub violations: u64,
    /// Connections from where a user's are reset on sight, and from where he was banned by other
    /// addresses.
    pub on_sight: u64,
    /// Connections from more sources than are kept for one user.
    pub too_many_sources: u64,
    /// Devices that came back in the other address family.
    pub other_family: u64,
    /// Violations and questions that were not acted upon because a CDN seems to be in front.
    pub behind_cdn: u64,
    /// Slots in which not everything could be looked at.
    pub late_slots: u64,
    /// Users dropped before their time because there was no room.
    pub evicted_users: u64,
    /// Sources whose neighbours were dropped before their time.
    pub evicted_neighbours: u64,
}

/// All users who were confirmed somewhere.
#[derive(Debug)]
pub struct Occupancy {
    policy: Policy,
    measures: Measures,
    accounts: Arc<Accounts>,
    occupants: Bounded<Arc<[u8]>, Occupant>,
    connections: Connections,
    neighbours: Neighbours,
    visits: Visits,
    tags: Tags,
    round: Round,
    /// Verdicts fall from here on.
    verdicts_from: Moment,
    verdicts: Vec<Verdict>,
    counters: Counters,
    /// Where a name is folded that needs it; kept for its memory.
    scratch: Vec<u8>,
    /// The hand of [`Self::standings`].
    exported: usize,
    /// When those who have connections open were last taken down as neighbours.
    renewed: Moment,
}

impl Occupancy {
    /// Nobody yet, under `policy`; `accounts` say how many places each user has.
    #[must_use]
    pub fn new(policy: Policy, accounts: Arc<Accounts>) -> Self {
        let capacity = policy.users().saturating_mul(NEIGHBOURS_PER_USER);
        Self {
            measures: Measures::of(policy.window()),
            accounts,
            occupants: Bounded::new(policy.users()),
            connections: Connections::default(),
            neighbours: Neighbours::new(
                capacity,
                policy.forget_after(),
                policy.shared_source_users(),
            ),
            visits: Visits::new(visits::CAPACITY),
            tags: Tags::default(),
            round: Round::default(),
            verdicts_from: Moment::default(),
            verdicts: Vec::new(),
            counters: Counters::default(),
            scratch: Vec::new(),
            exported: 0,
            renewed: Moment::default(),
            policy,
        }
    }

    /// Lets verdicts fall a window from `now` on: until then it is not known who was where. Nobody
    /// looked before, so no silence is known of where anything is open.
    pub fn begin(&mut self, now: Moment) {
        self.verdicts_from = now.saturating_add(self.measures.window);
        let everybody = self.occupants.len();
        self.occupants.sweep(everybody, |occupant| {
            let open = occupant.presences.iter_mut().filter(|it| !it.connections.is_empty());
            open.for_each(|presence| presence.may_have_moved(now));
            true
        });
        // Whose connections were adopted may go on without any line.
        let several: Vec<Arc<[u8]>> = self
            .occupants
            .slice(0, self.occupants.len())
            .filter(|(_, occupant)| occupant.presences.len() > 1 && occupant.is_pinned())
            .map(|(identity, _)| Arc::clone(identity))
            .collect();
        for identity in several {
            self.look_around(&identity, self.places_of(&identity), now);
        }
    }

    /// Lives by other rules from now on. What is known of users, sources and connections stays; how
    /// many users a source is counted to does not change before the next start.
    pub fn set_rules(&mut self, policy: Policy, accounts: Arc<Accounts>) {
        if policy.window() != self.policy.window() {
            self.measures = Measures::of(policy.window());
            self.round.begin_anew();
            let everybody = self.occupants.len();
            self.occupants.sweep(everybody, |occupant| {
                occupant.presences.iter_mut().for_each(Presence::forget_slots);
                true
            });
        }
        self.policy = policy;
        self.accounts = accounts;
        self.regroup();
    }

    /// The connections that nothing was heard of since `moment`, by a first line or a look at their
    /// counters; to be compared with a walk of the kernel's table that began then.
    #[must_use]
    pub fn links_before(&self, moment: Moment) -> Vec<Link> {
        self.connections.links(|connection| connection.sampled < moment)
    }

    /// Whether a connection may be destroyed when `user`'s source is banned: his own, and what is
    /// nobody's. What carries several users, or is another's, may not.
    #[must_use]
    pub fn may_destroy(&self, user: &[u8], peer: Peer, cookie: u64) -> bool {
        match self.connections.exact(peer, cookie).map(|it| &it.owner) {
            None | Some(Owner::Older | Owner::Refused) => true,
            Some(Owner::Several) => false,
            Some(Owner::User(owner)) => {
                let name = identity::folded_name(user);
                **owner == *self.accounts.identity_of(&name)
            }
        }
    }

    /// Whether anything is known of the connection: a line named it, or it is older than this run.
    #[must_use]
    pub fn is_known(&self, peer: Peer, cookie: u64) -> bool {
        self.connections.exact(peer, cookie).is_some()
    }

    /// When the counters are to be looked at next: at the end of a slot, or now; `None` while nobody
    /// is watched.
    #[must_use]
    pub fn due(&self) -> Option<Moment> {
        self.round.due(self.measures)
    }

    /// The next connection whose counters are wanted at `now`; give the answer to
    /// [`probed`](Self::probed). `None` when there is nothing more to look at before
    /// [`due`](Self::due).
    pub fn probe(&mut self, brakes: &mut Brakes, now: Moment) -> Option<Link> {
        self.open_round(now);
        loop {
            let Self { round, connections, occupants, .. } = self;
            if let Some(link) = round.next(|peer, owner| {
                let connection = connections.get(peer)?;
                let owned = matches!(&connection.owner, Owner::User(user) if user == owner);
                owned.then_some(connection.link)
            }) {
                return Some(link);
            }
            let Some((user, slot)) = round.finish_user() else {
                let (user, slot) = round.begin_user()?;
                match occupants.get::<[u8]>(&user) {
                    Some(occupant) => round.plan(&user, slot, occupant, now),
                    // He made room for another meanwhile.
                    None => round.unwatch(&user),
                }
                continue;
            };
            let places = self.places_of(&user);
            self.look_around(&user, places, now);
            if let (Some(slot), Some(places)) = (slot, places) {
                self.conclude(&user, places, slot, brakes, now);
            }
        }
    }

    /// How the payload of a connection that was [asked for](Self::probe) stands; `None` when it is
    /// gone.
    pub fn probed(&mut self, link: &Link, sample: Option<Sample>, now: Moment) {
        let Some(sample) = sample else {
            return self.closed(link.peer, link.cookie, None, now);
        };
        let measures = self.measures;
        let fresh = now.saturating_sub(measures.window);
        let Self { connections, occupants, round, counters, .. } = self;
        let connection = connections.get_mut(link.peer);
        let Some(connection) = connection.filter(|it| it.link.cookie == link.cookie) else {
            return;
        };
        let source = connection.source;
        let presence = match &connection.owner {
            Owner::User(owner) => {
                occupants.get_mut::<[u8]>(owner).and_then(|occupant| occupant.at_mut(source))
            }
            Owner::Several | Owner::Older | Owner::Refused => None,
        };
        if let Some(presence) = presence {
            let slot_start = measures.end_of(measures.slot_of(now).saturating_sub(2));
            let until = round.slot_in_hand().map(|slot| measures.end_of(slot));
            let owed = presence.owes_an_answer();
            let moved = take(presence, connection, sample, fresh, until, measures);
            counters.answered += u64::from(owed && !presence.owes_an_answer());
            if moved && presence.last_move >= slot_start {
                round.moved(source);
            }
        }
        (connection.sample, connection.sampled) = (Some(sample), now);
    }

    /// The verdicts that fell since the last call.
    pub fn verdicts(&mut self) -> Vec<Verdict> {
        std::mem::take(&mut self.verdicts)
    }

    /// Forgets a few of those who were silent for long enough; call it a few times a second.
    pub fn tick(&mut self, now: Moment) {
        let keep_for = self.policy.forget_after();
        self.occupants.sweep(SWEPT_PER_TICK, |occupant| occupant.forget(keep_for, now));
        if now.saturating_since(self.renewed) >= keep_for / RENEWED_IN_MEMORY {
            self.renewed = now;
            self.renew_neighbours(now);
        }
        self.neighbours.sweep(SWEPT_PER_TICK, now);
        self.visits.sweep(SWEPT_PER_TICK, keep_for, now);
    }

    /// What was counted so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        Counters { evicted_neighbours: self.neighbours.evicted(), ..self.counters }
    }

    /// Users remembered, and connections known to be open.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        (self.occupants.len(), self.connections.len())
    }

    /// How many of the open connections have an owner.
    #[must_use]
    pub fn owned(&self) -> usize {
        self.connections.owned().count()
    }

    /// Who is watched, with the number of his sources that may be at work; at most `most`.
    #[must_use]
    pub fn watched(&self, most: usize, now: Moment) -> Vec<(Box<[u8]>, usize)> {
        self.round
            .watched()
            .filter_map(|user| {
                let occupant = self.occupants.get::<[u8]>(user)?;
                let at_work = |presence: &&Presence| presence.may_be_at_work(self.measures, now);
                let count = occupant.presences.iter().filter(at_work).count();
                Some((occupant.shown_as().into(), count))
            })
            .take(most)
            .collect()
    }

    /// Sources with so many users that they are proxies of their own, with how many are counted; at
    /// most `most`.
    #[must_use]
    pub fn proxies(&self, most: usize, now: Moment) -> Vec<(Source, usize)> {
        self.neighbours.crowds(self.policy.shared_source_users(), now).take(most).collect()
    }

    /// The policy it lives by.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The length of a slot.
    #[must_use]
    pub const fn slot(&self) -> Duration {
        self.measures.slot
    }

    /// Other rules may count a user in another group, or by himself: his open connections go there
    /// with him, so that nobody is taken for the others of the group that he was in.
    fn regroup(&mut self) {
        let accounts = Arc::clone(&self.accounts);
        for Regrouped { peer, source, before, after } in self.connections.regroup(&accounts) {
            let Some(occupant) = self.occupants.get_mut::<[u8]>(&before) else { continue };
            let Some(presence) = occupant.at_mut(source) else { continue };
            presence.loses(peer);
            let mut moved = presence.clone();
            if presence.connections.is_empty() {
                presence.forget_slots();
            }
            let Places::Limited(places) = accounts.places_of(&after) else { continue };
            let most = self.policy.with_places(places).sources_per_user();
            let made = self.occupants.get_or_insert_unless_full(after, Occupant::new);
            let Some((occupant, evicted)) = made else {
                self.counters.no_room += 1;
                continue;
            };
            self.counters.evicted_users += u64::from(evicted.is_some());
            let is_taken = if let Some(presence) = occupant.at_mut(source) {
                presence.opens(peer);
                true
            } else if occupant.presences.len() < most {
                moved.connections = vec![peer];
                occupant.insert(moved);
                true
            } else {
                self.counters.no_room += 1;
                false
            };
            if let Some(connection) = self.connections.get_mut(peer) {
                connection.is_outside = !is_taken;
            }
        }
    }

    /// Whoever has a connection open is at its source, however long ago he opened it.
    fn renew_neighbours(&mut self, now: Moment) {
        let Self { connections, occupants, neighbours, visits, .. } = self;
        for (owner, source) in connections.owned() {
            neighbours.note(source, occupants.hash_of::<[u8]>(owner), now);
            visits.renew(owner, source, now);
        }
    }

    fn presence_mut(&mut self, identity: &[u8], source: Source) -> Option<&mut Presence> {
        self.occupants.get_mut::<[u8]>(identity)?.at_mut(source)
    }

    /// Decides whether a user is watched from here on, and how closely.
    fn look_around(&mut self, identity: &Arc<[u8]>, places: Option<usize>, now: Moment) {
        let occupant = self.occupants.get::<[u8]>(identity);
        let watch = occupant.map_or(Watch::Not, |it| it.watch(places, self.measures, now));
        self.round.watch(identity, watch, self.measures.slot_of(now));
    }

    /// Begins the looks at the slots that have ended.
    fn open_round(&mut self, now: Moment) {
        let slot = self.measures.slot_of(now);
        self.counters.late_slots += self.round.open(slot, SLOTS_PER_GLANCE);
    }

    /// Judges a user as he stands at the end of `slot`.
    fn conclude(
        &mut self,
        identity: &Arc<[u8]>,
        places: usize,
        slot: u64,
        brakes: &mut Brakes,
        now: Moment,
    ) {
        if now < self.verdicts_from {
            return;
        }
        for family in [Family::V4, Family::V6] {
            let Some(occupant) = self.occupants.get::<[u8]>(identity) else { return };
            let (at, seen): (Vec<Source>, Vec<_>) = occupant
                .presences
                .iter()
                .filter(|presence| {
                    presence.source.family() == family && presence.acted_until <= now
                })
                .map(|presence| (presence.source, presence.occupied(slot, self.measures, now)))
                .unzip();
            if seen.len() <= places {
                continue;
            }
            let asking = self.policy.asking();
            let turns = asking.then(|| occupant.turns(family, self.measures, now));
            match overlap::judge(&seen, places, turns, overlap::USUAL, self.measures.slot, now) {
                Finding::Calm | Finding::Undecided => {}
                Finding::Ask(numbers) => {
                    let of_family = Exhibited::Family(family);
                    self.ask_each(identity, &named(&at, &numbers), &of_family, places, slot, now);
                }
                Finding::Violation(numbers) => {
                    self.sentence(identity, &named(&at, &numbers), places, slot, brakes, now);
                }
            }
        }
        for family in [Family::V4, Family::V6] {
            self.conclude_comebacks(identity, family, places, slot, brakes, now);
        }
    }

    fn places_of(&self, identity: &[u8]) -> Option<usize> {
        match self.accounts.places_of(identity) {
            Places::Limited(places) => Some(places),
            Places::Unlimited | Places::Ignored => None,
        }
    }
}

/// The sources that `numbers` are the places of.
fn named(sources: &[Source], numbers: &[usize]) -> Vec<Source> {
    numbers.iter().filter_map(|number| sources.get(*number).copied()).collect()
}

/// Takes a new sample of a connection into account for its owner's presence; `true` when it moved.
///
/// A sample that is taken for the slot that ends at `until` is taken a little later, and the last
/// move may fall between the two: what moved since a sample from before the end, moved in that slot.
fn take(
    presence: &mut Presence,
    connection: &Connection,
    sample: Sample,
    fresh_since: Moment,
    until: Option<Moment>,
    measures: Measures,
) -> bool {
    if sample.received > 0 {
        presence.begins(connection.opened, sample.last_received, measures);
    }
    let Some(before) = connection.sample else { return false };
    match movement(before, connection.sampled, sample, fresh_since) {
        Movement::Still => false,
        Movement::Moved { at, bytes } => {
            if connection.sampled < fresh_since {
                // It was not looked at for so long that no silence is known of.
                presence.may_have_moved(at);
            }
            let soon_after = |until: &Moment| {
                connection.sampled < *until
                    && *until <= at
                    && at.saturating_since(*until) < measures.slot / 2
            };
            let in_slot = until.filter(soon_after).map(|until| until.saturating_sub(INSTANT));
            presence.moves(in_slot.unwrap_or(at), bytes, measures);
            presence.may_have_moved(at);
            presence.prefers(connection.link.peer);
            true
        }
        Movement::Perhaps { until } => {
            presence.may_have_moved(until);
            false
        }
    }
}

#[cfg(test)]
mod tests;
