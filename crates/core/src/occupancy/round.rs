//! The looks at the end of a slot, one connection after the other.
//!
//! Takes who is watched and which slot it is; gives the peers to look at, user by user, in the order
//! in which they are likely to have moved, and leaves a source as soon as one of its connections
//! moved. It holds names and peers, no counters, and judges nobody.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use foldhash::fast::RandomState;

use super::{
    occupant::{Occupant, Watch},
    presence::Measures,
};
use crate::{link::Link, moment::Moment, network::Source, sighting::Peer};

/// Connections of one source that are looked at for each slot, those that moved last.
const LIKELY_LOOKS: usize = 128;
/// As many more are looked at, of the others each in its turn: else whoever holds enough idle
/// connections could move his bytes unseen on another.
const OTHER_LOOKS: usize = 128;
/// How far the turn goes on from slot to slot: a prime above the number of connections, so that it
/// comes by everywhere, however many there are and however few slots are looked at.
const TURN: u64 = 1_000_003;

/// Who is watched, and how far the looks at the last slot are.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Bounded by the users that there are.
    watched: HashMap<Arc<[u8]>, Watch, RandomState>,
    /// The last slot whose looks were begun; 0 for none of this length.
    opened: u64,
    /// Users to be looked at, and the slot at whose end they are judged; without one it is only to
    /// know from where their counters grow.
    waiting: VecDeque<(Arc<[u8]>, Option<u64>)>,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    user: Arc<[u8]>,
    slot: Option<u64>,
    peers: VecDeque<(Source, Peer)>,
    moved: Vec<Source>,
}

impl Round {
    /// When the next look is due; long ago when it is due now.
    pub(super) fn due(&self, measures: Measures) -> Option<Moment> {
        if self.current.is_some() || !self.waiting.is_empty() {
            return Some(Moment::default());
        }
        (!self.watched.is_empty()).then(|| measures.end_of(self.opened.saturating_add(1)))
    }

    /// Watches a user, or no longer. Whoever is watched anew is looked at at once.
    pub(super) fn watch(&mut self, user: &Arc<[u8]>, watch: Watch, slot: u64) {
        if watch == Watch::Not {
            return self.unwatch(user);
        }
        if self.watched.is_empty() && self.waiting.is_empty() && self.current.is_none() {
            self.opened = slot.saturating_sub(1);
        }
        if self.watched.insert(Arc::clone(user), watch).is_none() {
            self.waiting.push_back((Arc::clone(user), None));
        }
    }

    /// Slots have another length from now on: who is watched stays so.
    pub(super) fn begin_anew(&mut self) {
        self.opened = 0;
        self.waiting.clear();
        self.current = None;
    }

    pub(super) fn unwatch(&mut self, user: &[u8]) {
        self.watched.remove(user);
    }

    pub(super) fn is_watched(&self, user: &[u8]) -> bool {
        self.watched.contains_key(user)
    }

    pub(super) fn watched(&self) -> impl Iterator<Item = &Arc<[u8]>> {
        self.watched.keys()
    }

    /// It is `slot` now: those before it have ended. Says how many of them cannot be looked at any
    /// more.
    pub(super) fn open(&mut self, slot: u64, slots_per_glance: u64) -> u64 {
        let Some(ended) = slot.checked_sub(1).filter(|ended| *ended > self.opened) else {
            return 0;
        };
        let mut late = if self.opened == 0 { 0 } else { ended - self.opened - 1 };
        let is_glance = ended / slots_per_glance > self.opened / slots_per_glance;
        self.opened = ended;
        if self.watched.is_empty() {
            return 0;
        }
        // Who is still waiting to be judged at the end of an earlier slot is judged at this one's, and
        // keeps his turn: else it would be the same who are never reached.
        let mut overdue: HashSet<Arc<[u8]>, RandomState> = HashSet::default();
        for (user, slot) in &mut self.waiting {
            if slot.is_some() {
                *slot = Some(ended);
                overdue.insert(Arc::clone(user));
            }
        }
        late += u64::from(!overdue.is_empty());
        for (user, watch) in &self.watched {
            if (*watch == Watch::Closely || is_glance) && !overdue.contains(user) {
                self.waiting.push_back((Arc::clone(user), Some(ended)));
            }
        }
        late
    }

    /// The next connection of the user in hand; `find` knows whether it is still his.
    pub(super) fn next(&mut self, find: impl Fn(Peer, &Arc<[u8]>) -> Option<Link>) -> Option<Link> {
        let current = self.current.as_mut()?;
        while let Some((source, peer)) = current.peers.pop_front() {
            if current.slot.is_some() && current.moved.contains(&source) {
                continue;
            }
            if let Some(link) = find(peer, &current.user) {
                return Some(link);
            }
        }
        None
    }

    /// A connection of the user in hand moved in the slot.
    pub(super) fn moved(&mut self, source: Source) {
        if let Some(current) = &mut self.current {
            current.moved.push(source);
        }
    }

    /// The slot at whose end the user in hand is looked at.
    pub(super) fn slot_in_hand(&self) -> Option<u64> {
        self.current.as_ref()?.slot
    }

    /// All looks at the user in hand are done: he is let go.
    pub(super) fn finish_user(&mut self) -> Option<(Arc<[u8]>, Option<u64>)> {
        self.current.take().map(|current| (current.user, current.slot))
    }

    /// The next user to be looked at.
    pub(super) fn begin_user(&mut self) -> Option<(Arc<[u8]>, Option<u64>)> {
        self.waiting.pop_front()
    }

    /// Takes a user in hand.
    pub(super) fn plan(
        &mut self,
        user: &Arc<[u8]>,
        slot: Option<u64>,
        occupant: &Occupant,
        now: Moment,
    ) {
        let peers = occupant
            .presences
            .iter()
            .filter(|presence| presence.acted_until <= now)
            .flat_map(|presence| {
                let peers = planned(&presence.connections, slot.unwrap_or_default());
                peers.map(|peer| (presence.source, *peer))
            })
            .collect();
        self.current = Some(Current { user: Arc::clone(user), slot, peers, moved: Vec::new() });
    }
}

/// Which of the `open` connections, the one that moved last at the end, are looked at for `slot`.
fn planned(open: &[Peer], slot: u64) -> impl Iterator<Item = &Peer> {
    let (others, likely) = open.split_at(open.len().saturating_sub(LIKELY_LOOKS));
    let count = u64::try_from(others.len()).unwrap_or(u64::MAX).max(1);
    let turn = usize::try_from(slot.wrapping_mul(TURN) % count).unwrap_or_default();
    let (before, after) = others.split_at(turn);
    likely.iter().rev().chain(after.iter().chain(before).take(OTHER_LOOKS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_are_open_each_has_its_turn() {
        let open: Vec<Peer> =
            (0..1_152).map(|port| Peer { address: [198, 51, 100, 7].into(), port }).collect();
        for every in [1, 4] {
            let slots = (0..100).map(|turn| 1_000 + turn * every);
            let seen: HashSet<Peer> =
                slots.flat_map(|slot| planned(&open, slot)).copied().collect();
            assert_eq!(seen.len(), open.len(), "every {every} slots");
        }
        for count in [0, 1, 128, 129, 300] {
            let planned: Vec<_> = planned(&open[..count], 7).collect();
            assert_eq!(planned.len(), count.min(256));
        }
    }

    #[test]
    fn who_was_not_reached_in_one_slot_comes_first_in_the_next() {
        let mut round = Round::default();
        let users: Vec<Arc<[u8]>> = (0..100u8).map(|number| [number].as_slice().into()).collect();
        for user in &users {
            round.watch(user, Watch::Closely, 10);
        }
        while round.begin_user().is_some() {}
        let mut reached = HashSet::new();
        for slot in 11..15 {
            round.open(slot, 4);
            for _ in 0..25 {
                reached.extend(round.begin_user().map(|(user, _)| user));
            }
        }
        assert_eq!(reached.len(), users.len());
        round.open(15, 4);
        assert_eq!(round.waiting.len(), users.len(), "nobody waits twice");
    }

    #[test]
    fn a_glance_that_fell_into_a_slot_that_was_missed_is_made_up_for() {
        let mut round = Round::default();
        round.watch(&b"alice".as_slice().into(), Watch::Glance, 3);
        while round.begin_user().is_some() {}
        round.open(6, 4);
        assert_eq!(round.begin_user().map(|(_, slot)| slot), Some(Some(5)));
    }
}
