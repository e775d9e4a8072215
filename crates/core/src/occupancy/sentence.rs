//! Who goes, and how far one may go against him.
//!
//! Takes the sources that were proven to be at work at once; makes the verdict, with the numbers
//! that prove it, and keeps what follows from it: no second verdict while it lasts, resets on sight,
//! and which addresses a ban named. It acts on nobody.

use std::sync::Arc;

use super::{Occupancy, connections::Owner, presence::Presence};
use crate::{
    brake::{Brakes, Permit},
    link::{Found, Link},
    moment::Moment,
    neighbours::Company,
    network::{Family, Source},
    overlap::SLOTS,
    policy::{Action, Keep},
    sessions::Offence,
    sighting::{Peer, Sighting},
    verdict::{
        Abstention, Basis, Eviction, Evidence, Exhibit, Ground, Incumbent, Measure, Offender,
        Proof, Question, Restraint, Verdict,
    },
};

/// Which sources of a user a proof shows, where they moved of late.
#[derive(Clone, Debug)]
pub(super) enum Exhibited {
    /// All of a family.
    Family(Family),
    /// These.
    These(Vec<Source>),
}

impl Exhibited {
    fn has(&self, source: Source) -> bool {
        match self {
            Self::Family(family) => source.family() == *family,
            Self::These(sources) => sources.contains(&source),
        }
    }
}

impl Occupancy {
    /// Puts the question to each of `sources`, unless a CDN seems to be in front.
    pub(super) fn ask_each(
        &mut self,
        identity: &Arc<[u8]>,
        sources: &[Source],
        exhibited: &Exhibited,
        places: usize,
        slot: u64,
        now: Moment,
    ) {
        if !self.refrain(identity, sources, exhibited, places, slot, now) {
            for source in sources {
                self.ask(identity, *source, exhibited, places, slot, now);
            }
        }
    }

    /// Puts the question to a source that only finishes.
    fn ask(
        &mut self,
        identity: &Arc<[u8]>,
        source: Source,
        exhibited: &Exhibited,
        places: usize,
        slot: u64,
        now: Moment,
    ) {
        let Some(occupant) = self.occupants.get::<[u8]>(identity) else { return };
        let Some(presence) = occupant.at(source) else { return };
        let connection = presence.liveliest().and_then(|peer| self.connections.get(peer));
        let Some(link) = connection.map(|connection| connection.link) else { return };
        let user = presence.shown_as.clone();
        if let Some(presence) = self.presence_mut(identity, source) {
            presence.is_asked(now);
        }
        let proof = self.proof(identity, exhibited, slot, now);
        self.counters.asked += 1;
        self.verdicts.push(Verdict::Ask(Question { user, source, link, places, proof }));
    }

    /// Where a CDN seems to be in front nobody is reset, not even to ask: says so, and leaves
    /// `sources` alone for as long as a ban would last. `false` when there is none.
    pub(super) fn refrain(
        &mut self,
        identity: &Arc<[u8]>,
        sources: &[Source],
        exhibited: &Exhibited,
        places: usize,
        slot: u64,
        now: Moment,
    ) -> bool {
        let Some(source) = sources.first().copied() else { return false };
        let is_present = |presence: &Presence| presence.is_present(self.measures, now);
        let Some(count) = self.behind_cdn(identity, is_present, now) else { return false };
        let Some(occupant) = self.occupants.get::<[u8]>(identity) else { return false };
        let user = occupant.shown_as().into();
        let proof = self.proof(identity, exhibited, slot, now);
        self.counters.behind_cdn += 1;
        let until = now.saturating_add(self.policy.timeout());
        for source in sources {
            if let Some(presence) = self.presence_mut(identity, *source) {
                presence.acted_until = until;
                presence.banned.clear();
            }
        }
        let restraint = Restraint::BehindCdn;
        let sources = count;
        let abstention = Abstention { user, restraint, sources, source, places, proof };
        self.verdicts.push(Verdict::Refrain(abstention));
        true
    }

    /// The verdict on a violation.
    pub(super) fn sentence(
        &mut self,
        identity: &Arc<[u8]>,
        proven: &[Source],
        places: usize,
        slot: u64,
        brakes: &mut Brakes,
        now: Moment,
    ) {
        let Some(family) = proven.first().map(|source| source.family()) else { return };
        let of_family = Exhibited::Family(family);
        let proof = self.proof(identity, &of_family, slot, now);
        let Some(occupant) = self.occupants.get::<[u8]>(identity) else { return };
        let mut ranked: Vec<&Presence> =
            proven.iter().filter_map(|source| occupant.at(*source)).collect();
        match self.policy.keep() {
            Keep::First => ranked.sort_by_key(|presence| presence.first_seen),
            // The last to log in wins, however well he was known before.
            Keep::Last => ranked.sort_by_key(|presence| std::cmp::Reverse(presence.arrival)),
        }
        let mut offending: Vec<(Moment, Source)> = ranked
            .iter()
            .skip(places)
            .map(|presence| (presence.first_seen, presence.source))
            .collect();
        offending.sort_unstable();
        let incumbents = incumbents(ranked.into_iter().take(places), now);
        let user: Box<[u8]> = occupant.shown_as().into();

        self.counters.violations += 1;
        let sources: Vec<Source> = offending.iter().map(|(_, source)| *source).collect();
        if self.refrain(identity, &sources, &of_family, places, slot, now) {
            return;
        }
        let offenders: Vec<Offender> = offending
            .into_iter()
            .filter_map(|(_, source)| self.offend(identity, source, brakes, now))
            .collect();
        let Some(source) = offenders.first().map(|offender| offender.source) else { return };
        let until = now.saturating_add(self.policy.timeout());
        if let Some(occupant) = self.occupants.get_mut::<[u8]>(identity) {
            occupant.offend(family, Offence { at: now, until, source });
        }
        self.verdicts.push(Verdict::Evict(Eviction {
            user,
            ground: Ground::Overlap,
            offenders,
            incumbents,
            places,
            evidence: Evidence::Kernel,
            proof: Some(proof),
            basis: None,
        }));
    }

    /// What a confirmed new connection leads to by itself: a reset on sight.
    pub(super) fn on_arrival(
        &mut self,
        identity: &Arc<[u8]>,
        peer: Peer,
        places: usize,
        now: Moment,
    ) -> Option<Verdict> {
        let source = self.policy.source(peer.address);
        let presence = self.occupants.get::<[u8]>(identity)?.at(source)?;
        if presence.ordered_until <= now {
            return None;
        }
        self.counters.on_sight += 1;
        // Where nothing else stands against a ban, a brake did when the order was given. Which one is
        // not kept: an order outlives the minute of a brake, which may not hold by now.
        let restraint = self.restraint(identity, source, now).unwrap_or(Restraint::UserBans);
        let link = self.connections.get(peer).map(|connection| connection.link);
        let offender = self.offender(identity, source, link, Measure::Kill(restraint))?;
        self.again(identity, Ground::OnSight, offender, places, now)
    }

    /// Who was banned at the source of a connection that was [confirmed](Self::confirm) a moment ago
    /// goes again, if his ban named other addresses of it. Call it where a ban does not cover all of
    /// the source: elsewhere whoever is let in was so by the operator, or came before the ban.
    pub fn go_round_a_ban(&mut self, found: &Found, brakes: &mut Brakes, now: Moment) -> Verdict {
        self.banned_elsewhere(found.link, brakes, now).unwrap_or(Verdict::Admit)
    }

    fn banned_elsewhere(
        &mut self,
        link: Link,
        brakes: &mut Brakes,
        now: Moment,
    ) -> Option<Verdict> {
        let connection = self.connections.exact(link.peer, link.cookie)?;
        let Owner::User(identity) = &connection.owner else { return None };
        let (identity, source) = (Arc::clone(identity), connection.source);
        let places = self.places_of(&identity)?;
        let address = link.peer.address;
        let presence = self.occupants.get::<[u8]>(&identity)?.at(source)?;
        let is_banned = now < presence.acted_until && !presence.banned.is_empty();
        if !is_banned || presence.banned.contains(&address) {
            return None;
        }
        self.counters.on_sight += 1;
        let measure = self.measure(&identity, source, brakes, now);
        if measure == Measure::Ban {
            self.presence_mut(&identity, source)?.is_banned_at(address);
        }
        let offender = self.offender(&identity, source, Some(link), measure)?;
        self.again(&identity, Ground::StillBanned, offender, places, now)
    }

    /// The verdict on somebody against whom one fell a while ago.
    fn again(
        &self,
        identity: &Arc<[u8]>,
        ground: Ground,
        offender: Offender,
        places: usize,
        now: Moment,
    ) -> Option<Verdict> {
        let occupant = self.occupants.get::<[u8]>(identity)?;
        let others = occupant.presences.iter().filter(|it| {
            it.source != offender.source
                && it.acted_until <= now
                && it.is_present(self.measures, now)
        });
        let presence = occupant.at(offender.source)?;
        Some(Verdict::Evict(Eviction {
            user: presence.shown_as.clone(),
            ground,
            incumbents: incumbents(others, now),
            places,
            evidence: Evidence::Kernel,
            proof: None,
            basis: presence.acted_at.map(|at| Basis::of(offender.source, at, now)),
            offenders: vec![offender],
        }))
    }

    /// A user with connections open at as many sources as are kept for one opens another from
    /// elsewhere: what nobody can look at there is reset, or it would be where to hide. Whoever else
    /// is at that source does not matter, because nothing but this connection is touched.
    pub(super) fn turn_away(
        &mut self,
        identity: &Arc<[u8]>,
        sighting: &Sighting<'_>,
        places: usize,
        now: Moment,
    ) -> Verdict {
        let Some(connection) = self.connections.get(sighting.peer) else { return Verdict::Admit };
        let (source, link) = (connection.source, connection.link);
        if now < self.verdicts_from {
            return Verdict::Admit;
        }
        let is_open = |presence: &Presence| !presence.connections.is_empty();
        if self.behind_cdn(identity, is_open, now).is_some() {
            self.counters.behind_cdn += 1;
            return Verdict::Admit;
        }
        self.counters.too_many_sources += 1;
        let presences = self.occupants.get::<[u8]>(identity).map(|it| it.presences.as_slice());
        let others = presences.unwrap_or_default().iter().filter(|it| it.acted_until <= now);
        let mut incumbents = incumbents(others.filter(|it| is_open(it)), now);
        incumbents.truncate(places);
        Verdict::Evict(Eviction {
            user: sighting.user.into(),
            ground: Ground::TooManySources,
            offenders: vec![Offender {
                source,
                peer: sighting.peer,
                transport: sighting.transport,
                inbound: sighting.inbound.map(Box::from),
                links: vec![link],
                measure: Measure::Kill(Restraint::TooManySources),
            }],
            incumbents,
            places,
            evidence: Evidence::Kernel,
            proof: None,
            basis: None,
        })
    }

    /// The numbers of the sources that are to be shown, where they moved of late.
    pub(super) fn proof(
        &self,
        identity: &[u8],
        exhibited: &Exhibited,
        slot: u64,
        now: Moment,
    ) -> Proof {
        let presences = self.occupants.get(identity).map(|it| it.presences.as_slice());
        let mut presences: Vec<&Presence> = presences
            .unwrap_or_default()
            .iter()
            .filter(|it| exhibited.has(it.source) && it.moved_until(slot) != 0)
            .collect();
        presences.sort_by_key(|presence| presence.first_seen);
        let exhibits = presences
            .into_iter()
            .map(|presence| {
                let bits = presence.moved_until(slot);
                let mut moved = [false; SLOTS as usize];
                for (ago, mark) in moved.iter_mut().rev().enumerate() {
                    *mark = bits >> ago & 1 == 1;
                }
                let since = |moment| now.saturating_since(moment);
                Exhibit {
                    source: presence.source,
                    peer: presence.liveliest(),
                    open: presence.connections.len(),
                    seen: since(presence.first_seen),
                    arrived: since(presence.arrival),
                    moved,
                    bytes: presence.bytes_until(slot),
                    asked: presence.asked.map(since),
                    answered: presence
                        .asked
                        .zip(presence.answered)
                        .map(|(asked, answered)| answered.saturating_since(asked)),
                }
            })
            .collect();
        Proof { slot: self.measures.slot, exhibits }
    }

    /// Takes it down that the user goes from `source`, and says how.
    pub(super) fn offend(
        &mut self,
        identity: &Arc<[u8]>,
        source: Source,
        brakes: &mut Brakes,
        now: Moment,
    ) -> Option<Offender> {
        let measure = self.measure(identity, source, brakes, now);
        let offender = self.offender(identity, source, None, measure)?;
        let until = now.saturating_add(self.policy.timeout());
        let presence = self.presence_mut(identity, source)?;
        (presence.acted_at, presence.acted_until) = (Some(now), until);
        presence.banned.clear();
        match measure {
            Measure::Ban => {
                let links = offender.links.iter().map(|link| link.peer);
                links.chain([offender.peer]).for_each(|peer| presence.is_banned_at(peer.address));
            }
            Measure::Kill(_) => presence.ordered_until = until,
        }
        Some(offender)
    }

    /// How far one may go against a user at a source. Whoever is banned is counted by the brakes.
    fn measure(
        &self,
        identity: &Arc<[u8]>,
        source: Source,
        brakes: &mut Brakes,
        now: Moment,
    ) -> Measure {
        match self.restraint(identity, source, now) {
            Some(restraint) => Measure::Kill(restraint),
            None => match brakes.permit(identity, now) {
                Permit::Granted => Measure::Ban,
                Permit::Withheld(restraint) => Measure::Kill(restraint),
            },
        }
    }

    /// Why a source may not be banned; brakes aside. The operator's order comes last: whoever is to
    /// ban after all, because a reset did not help, has to know that nobody else is there.
    fn restraint(&self, identity: &[u8], source: Source, now: Moment) -> Option<Restraint> {
        if self.neighbours.count(source, now) >= self.policy.shared_source_users() {
            return Some(Restraint::Proxy);
        }
        if self.policy.action() == Action::Ban {
            return None;
        }
        match self.neighbours.company(source, self.occupants.hash_of::<[u8]>(identity), now) {
            Company::Shared => Some(Restraint::SharedSource),
            Company::Unknown => Some(Restraint::UnknownNeighbours),
            Company::Alone if self.policy.action() == Action::Kill => Some(Restraint::ByOrder),
            Company::Alone => None,
        }
    }

    fn offender(
        &self,
        identity: &[u8],
        source: Source,
        only: Option<Link>,
        measure: Measure,
    ) -> Option<Offender> {
        let presence = self.occupants.get(identity)?.at(source)?;
        let links = match only {
            Some(link) => vec![link],
            None => presence
                .connections
                .iter()
                .filter_map(|peer| self.connections.get(*peer))
                .map(|connection| connection.link)
                .collect(),
        };
        Some(Offender {
            source,
            peer: only.map_or(presence.peer, |link| link.peer),
            transport: presence.transport,
            inbound: self.tags.name(presence.tag).map(Box::from),
            links,
            measure,
        })
    }

    /// How many sources of a user count, if they are so many, and so many of them others' too, that
    /// the addresses must be a CDN's.
    fn behind_cdn(
        &self,
        identity: &[u8],
        counts: impl Fn(&Presence) -> bool,
        now: Moment,
    ) -> Option<usize> {
        let occupant = self.occupants.get(identity)?;
        let hash = self.occupants.hash_of(identity);
        let present: Vec<Source> = occupant
            .presences
            .iter()
            .filter(|presence| counts(presence))
            .map(|presence| presence.source)
            .collect();
        if present.len() < self.policy.cdn_sources() {
            return None;
        }
        let shared = present
            .iter()
            .filter(|source| self.neighbours.company(**source, hash, now) == Company::Shared)
            .count();
        (shared * 2 >= present.len()).then_some(present.len())
    }
}

/// Those who stay, the most senior first.
pub(super) fn incumbents<'a>(
    presences: impl Iterator<Item = &'a Presence>,
    now: Moment,
) -> Vec<Incumbent> {
    let mut presences: Vec<&Presence> = presences.collect();
    presences.sort_by_key(|presence| presence.first_seen);
    let incumbent = |presence: &Presence| Incumbent {
        source: presence.source,
        peer: presence.liveliest().unwrap_or(presence.peer),
        age: now.saturating_since(presence.first_seen),
        silence: now.saturating_since(presence.last_move),
    };
    presences.into_iter().map(incumbent).collect()
}
