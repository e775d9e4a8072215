//! Claims become connections with owners.
//!
//! Takes what lines say and what the kernel has for it; keeps whose each open connection is, takes it
//! away again where lines contradict each other, and lets it go when it closes. What somebody begins
//! by it is told to his presence. It judges nobody: whether a verdict is due is asked elsewhere.

use std::sync::Arc;

use super::{
    Claim, Occupancy,
    connections::{Connection, Owner},
    occupant::Occupant,
    take,
};
use crate::{
    accounts::{Account, Places},
    bounded::Heard as _,
    brake::Brakes,
    identity,
    link::{Found, Sample},
    moment::Moment,
    network::Source,
    sighting::{Peer, Sighting},
    verdict::Verdict,
};

/// What became of a source that a connection was confirmed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// The user is known to be there.
    Taken,
    /// There are too many users.
    NoRoom,
    /// He has connections open at as many sources as are kept for one user.
    TooManySources,
}

impl Occupancy {
    /// Takes the claim of a line: does the kernel have to be asked about it? A claim for a
    /// connection that the user owns already costs one look into a table.
    pub fn claim(&mut self, sighting: &Sighting<'_>, tainted: bool) -> Claim {
        if tainted {
            self.counters.tainted += 1;
            return Claim::Settled;
        }
        let Some(connection) = self.connections.get(sighting.peer) else { return Claim::LookUp };
        let owner = match &connection.owner {
            Owner::User(owner) => owner,
            // Nobody's for as long as it is open, whoever is named for it.
            Owner::Several => {
                self.counters.carriers += 1;
                return Claim::Settled;
            }
            Owner::Older => {
                self.counters.older += 1;
                return Claim::Settled;
            }
            Owner::Refused => {
                self.counters.refused += 1;
                return Claim::Settled;
            }
        };
        let name = identity::folded(sighting.user, &mut self.scratch);
        // The rules need not be asked about a name that was looked up for this very connection.
        let is_his = *connection.named == *name || **owner == *self.accounts.identity_of(name);
        if is_his && !connection.is_outside {
            self.counters.known += 1;
            Claim::Settled
        } else {
            Claim::LookUp
        }
    }

    /// Takes what the kernel has for the peer of a claim: a connection after its handshake, or
    /// nothing.
    pub fn confirm(
        &mut self,
        sighting: &Sighting<'_>,
        found: Option<&Found>,
        brakes: &mut Brakes,
        now: Moment,
    ) -> Verdict {
        let Some(found) = found else {
            self.counters.unverified += 1;
            return Verdict::Admit;
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        let name = identity::folded(sighting.user, &mut scratch);
        let accounts = Arc::clone(&self.accounts);
        let account = accounts.of(name);
        let verdict = self.admit(sighting, name, account, found, brakes, now);
        self.scratch = scratch;
        verdict
    }

    /// A `rejected` line named `peer`: whether its connection is known as such already. If not, it is
    /// to be looked up and [refused](Self::refuse).
    #[must_use]
    pub fn knows_as_refused(&self, peer: Peer) -> bool {
        self.connections.get(peer).is_some_and(|it| it.owner == Owner::Refused)
    }

    /// The connection that a `rejected` line named is nobody's, however often it is named again.
    pub fn refuse(&mut self, found: &Found, now: Moment) {
        self.disown_as(found.link.peer, Owner::Refused);
        self.keep(found, Owner::Refused, Arc::default(), now);
    }

    /// The same for a line that was read back: only what was open at the start matters.
    pub fn refuse_known(&mut self, peer: Peer) {
        self.disown_as(peer, Owner::Refused);
    }

    /// A connection that is open at the start, before the log is read back.
    pub fn older(&mut self, found: &Found, now: Moment) {
        self.keep(found, Owner::Older, Arc::default(), now);
    }

    /// A line that was read back from before the start names a connection that is open: it gives it
    /// its owner, and nothing else. Call it in the order of the lines; `moment` puts the first such
    /// lines of sources into their order, and is before the start. `false` when no such connection
    /// is known to be open.
    pub fn adopt(&mut self, sighting: &Sighting<'_>, tainted: bool, moment: Moment) -> bool {
        let Some(connection) = self.connections.get_mut(sighting.peer) else { return false };
        if tainted {
            return true;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let name = identity::folded(sighting.user, &mut scratch);
        let accounts = Arc::clone(&self.accounts);
        match &connection.owner {
            Owner::User(owner) => {
                let identity = accounts.identity_of(name);
                if **owner != *identity {
                    self.becomes_several(sighting.peer, identity, moment);
                }
            }
            Owner::Older => {
                let account = accounts.of(name);
                let identity: Arc<[u8]> = account.identity.into();
                connection.owner = Owner::User(Arc::clone(&identity));
                // It is older than anything that was remembered or will be seen: who has nothing
                // else only finishes.
                (connection.named, connection.opened) = (name.into(), Moment::default());
                let (source, places) = (connection.source, account.places);
                let hash = self.occupants.hash_of::<[u8]>(&identity);
                self.neighbours.note(source, hash, moment);
                match places {
                    Places::Limited(places) => {
                        // Where there is no room for it, its next line will tell.
                        self.enter(Arc::clone(&identity), sighting, source, places, moment);
                    }
                    Places::Unlimited | Places::Ignored => {
                        self.visits.note(&identity, source, moment);
                    }
                }
            }
            Owner::Several | Owner::Refused => {}
        }
        self.scratch = scratch;
        true
    }

    /// A connection is gone; `sample` is how its payload stood in the end, if the kernel said so.
    pub fn closed(&mut self, peer: Peer, cookie: u64, sample: Option<Sample>, now: Moment) {
        let Some(connection) = self.connections.remove(peer, cookie) else { return };
        let Owner::User(owner) = &connection.owner else { return };
        let measures = self.measures;
        let fresh = now.saturating_sub(measures.window);
        if let Some(presence) = self.presence_mut(owner, connection.source) {
            presence.loses(peer);
            if let Some(sample) = sample {
                take(presence, &connection, sample, fresh, None, measures);
            }
        }
    }

    fn keep(&mut self, found: &Found, owner: Owner, named: Arc<[u8]>, now: Moment) -> bool {
        let connection = Connection {
            link: found.link,
            owner,
            source: self.policy.source(found.link.peer.address),
            named,
            opened: now,
            sample: found.sample,
            sampled: now,
            is_outside: false,
        };
        let kept = self.connections.keep(connection);
        self.counters.no_room += u64::from(!kept);
        kept
    }

    /// Takes the connection of `peer` away from its owner; `owner` says what it is from here on.
    pub(super) fn disown_as(&mut self, peer: Peer, owner: Owner) {
        let Some(connection) = self.connections.get_mut(peer) else { return };
        let source = connection.source;
        if let Owner::User(before) = std::mem::replace(&mut connection.owner, owner)
            && let Some(presence) = self.presence_mut(&before, source)
        {
            presence.loses(peer);
        }
    }

    /// Another user than its owner is named for the connection of `peer`.
    fn becomes_several(&mut self, peer: Peer, identity: &[u8], now: Moment) {
        self.disown_as(peer, Owner::Several);
        if let Some(connection) = self.connections.get(peer) {
            // A ban of its source would hit everybody whom it carries.
            let hash = self.occupants.hash_of(identity);
            self.neighbours.note(connection.source, hash, now);
            self.visits.note(&identity.into(), connection.source, now);
        }
    }

    /// A confirmed claim.
    fn admit(
        &mut self,
        sighting: &Sighting<'_>,
        name: &[u8],
        account: Account<'_>,
        found: &Found,
        brakes: &mut Brakes,
        now: Moment,
    ) -> Verdict {
        let Account { identity, places, .. } = account;
        let peer = found.link.peer;
        if let Some(known) = self.connections.get(peer) {
            if known.link.cookie == found.link.cookie {
                return self.named_again(sighting, account, now);
            }
            // The news of its end has not come yet, or was lost.
            let gone = known.link.cookie;
            self.closed(peer, gone, None, now);
        }
        self.counters.verified += 1;
        let named: Arc<[u8]> = name.into();
        let identity = if *name == *identity { Arc::clone(&named) } else { identity.into() };
        if !self.keep(found, Owner::User(Arc::clone(&identity)), named, now) {
            return Verdict::Admit;
        }
        let source = self.policy.source(peer.address);
        let hash = self.occupants.hash_of::<[u8]>(&identity);
        self.neighbours.note(source, hash, now);
        let Places::Limited(places) = places else {
            self.counters.unlimited += 1;
            self.visits.note(&identity, source, now);
            return Verdict::Admit;
        };
        match self.enter(Arc::clone(&identity), sighting, source, places, now) {
            Entry::Taken => {}
            Entry::NoRoom => return Verdict::Admit,
            Entry::TooManySources => return self.turn_away(&identity, sighting, places, now),
        }
        self.opened(&identity, source, peer, found.sample, now);
        if let Some(verdict) = self.on_arrival(&identity, peer, places, now) {
            return verdict;
        }
        self.look_around(&identity, Some(places), now);
        // What has just begun may be the answer that was waited for.
        if let Some(slot) = self.measures.slot_of(now).checked_sub(1)
            && self.round.is_watched(&identity)
        {
            self.conclude(&identity, places, slot, brakes, now);
        }
        Verdict::Admit
    }

    /// A claim for a connection that was named before.
    fn named_again(
        &mut self,
        sighting: &Sighting<'_>,
        account: Account<'_>,
        now: Moment,
    ) -> Verdict {
        let Account { identity, places, .. } = account;
        let peer = sighting.peer;
        let Some(connection) = self.connections.get(peer) else { return Verdict::Admit };
        match &connection.owner {
            Owner::User(owner) if **owner == *identity => {
                self.counters.known += 1;
                if connection.is_outside {
                    let (owner, source) = (Arc::clone(owner), connection.source);
                    return self.come_in(&owner, sighting, source, places, now);
                }
            }
            Owner::User(_) => {
                self.counters.carriers += 1;
                self.becomes_several(peer, identity, now);
            }
            Owner::Several => self.counters.carriers += 1,
            Owner::Older => self.counters.older += 1,
            Owner::Refused => self.counters.refused += 1,
        }
        Verdict::Admit
    }

    /// There was no room for the source of a connection: perhaps there is by now.
    fn come_in(
        &mut self,
        identity: &Arc<[u8]>,
        sighting: &Sighting<'_>,
        source: Source,
        places: Places,
        now: Moment,
    ) -> Verdict {
        let Places::Limited(places) = places else { return Verdict::Admit };
        match self.enter(Arc::clone(identity), sighting, source, places, now) {
            Entry::Taken => {
                if let Some(presence) = self.presence_mut(identity, source) {
                    // Nobody looked at it so far.
                    presence.may_have_moved(now);
                }
                self.look_around(identity, Some(places), now);
                Verdict::Admit
            }
            Entry::NoRoom => Verdict::Admit,
            Entry::TooManySources => self.turn_away(identity, sighting, places, now),
        }
    }

    /// Makes sure that there is a presence of the user at the source, with this connection, if there
    /// is room.
    fn enter(
        &mut self,
        identity: Arc<[u8]>,
        sighting: &Sighting<'_>,
        source: Source,
        places: usize,
        now: Moment,
    ) -> Entry {
        let tag = self.tags.keep(sighting.inbound);
        let most = self.policy.with_places(places).sources_per_user();
        let user = Arc::clone(&identity);
        let made = self.occupants.get_or_insert_unless_full(identity, Occupant::new);
        let Some((occupant, evicted)) = made else {
            self.counters.no_room += 1;
            return Entry::NoRoom;
        };
        if let Some(evicted) = evicted {
            self.counters.evicted_users += 1;
            self.visits.lose(evicted.last_heard());
        }
        let entered = occupant.enter(source, sighting, most, now);
        let is_taken = entered.is_some();
        if let Some((presence, gone)) = entered {
            presence.tag = tag;
            presence.opens(sighting.peer);
            if let Some(gone) = gone {
                self.visits.note(&user, gone.source, gone.last_seen());
            }
        }
        if let Some(connection) = self.connections.get_mut(sighting.peer) {
            connection.is_outside = !is_taken;
        }
        if is_taken {
            Entry::Taken
        } else {
            self.counters.no_room += 1;
            Entry::TooManySources
        }
    }

    /// A connection was confirmed for the first time: it is a move, and payload on it begins
    /// something.
    fn opened(
        &mut self,
        identity: &[u8],
        source: Source,
        peer: Peer,
        sample: Option<Sample>,
        now: Moment,
    ) {
        let measures = self.measures;
        let is_observed = self.round.is_watched(identity);
        let Some(occupant) = self.occupants.get_mut::<[u8]>(identity) else { return };
        let Some(presence) = occupant.at_mut(source) else { return };
        let owed = presence.owes_an_answer();
        if !is_observed && presence.connections.len() > 1 {
            // What else is open was not looked at, so no silence is known of.
            presence.may_have_moved(now);
        }
        presence.moves(now, sample.map_or(0, |sample| sample.bytes()), measures);
        presence.prefers(peer);
        let Some(sample) = sample.filter(|sample| sample.received > 0) else { return };
        presence.begins(now, sample.last_received, measures);
        let answered = owed && !presence.owes_an_answer();
        occupant.begins(source, now.min(sample.last_received), answered);
        self.counters.answered += u64::from(answered);
    }
}
