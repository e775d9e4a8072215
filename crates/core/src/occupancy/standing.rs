//! What is remembered across restarts: who was first seen where, who else was there, and who is
//! reset on sight.
//!
//! Takes and gives [`Standing`]s, a bounded number at a time. It writes no file, and believes none
//! that tells of the future: the clock may have been set back since it was written.

use std::{sync::Arc, time::Duration};

use super::{Occupancy, occupant::Occupant, presence::Presence};
use crate::{moment::Moment, network::Source, sighting::Peer};

/// One user at one source, as far as it outlives a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What counts the user's places: his folded name, or his group's key.
    pub identity: Box<[u8]>,
    /// His name as the last line from there wrote it.
    pub shown_as: Box<[u8]>,
    /// Where.
    pub source: Source,
    /// When he was first seen there: his seniority.
    pub first_seen: Moment,
    /// When he arrived there last.
    pub arrival: Moment,
    /// His last sign of life there.
    pub last_move: Moment,
    /// Until when new connections of his from there are reset on sight.
    pub ordered_until: Moment,
    /// When that was ordered.
    pub ordered_at: Option<Moment>,
    /// He was only seen there, with no place of his own: to others he is a neighbour, and to nobody
    /// anything else.
    pub is_visit: bool,
}

impl Occupancy {
    /// The standings of the next `count` users; an empty list when all have been given, after which
    /// it begins anew. Users who come or go meanwhile may be missing or double.
    pub fn standings(&mut self, count: usize) -> Vec<Standing> {
        let start = self.exported;
        let users = self.occupants.len();
        if let Some(start) = start.checked_sub(users) {
            let end = start.saturating_add(count);
            self.exported = if start >= self.visits.len() { 0 } else { users + end };
            return self.visits.slice(start, count).map(visit).collect();
        }
        let standings: Vec<Standing> = self
            .occupants
            .slice(start, count)
            .flat_map(|(identity, occupant)| {
                occupant.presences.iter().map(|presence| Standing {
                    identity: (**identity).into(),
                    shown_as: presence.shown_as.clone(),
                    source: presence.source,
                    first_seen: presence.first_seen,
                    arrival: presence.arrival,
                    last_move: presence.last_seen(),
                    ordered_until: presence.ordered_until,
                    ordered_at: presence.ordered_at(),
                    is_visit: false,
                })
            })
            .collect();
        self.exported = start.saturating_add(count).min(users);
        standings
    }

    /// Until when somebody may have been at a source without another run being told of it, if the
    /// latest of the standings that are left out is from `left_out`.
    #[must_use]
    pub fn untold_until(&self, left_out: Option<Moment>) -> Moment {
        let lost = self.visits.lost().max(left_out);
        let lost = lost.map(|lost| lost.saturating_add(self.policy.forget_after()));
        self.neighbours.forgetful_until().max(lost.unwrap_or_default())
    }

    /// Who was where before is not known, or not all of it, and somebody who was is remembered
    /// until `until`: before that nobody is known to be alone at a source.
    pub fn doubt_neighbours(&mut self, until: Moment, now: Moment) {
        self.neighbours.doubt(until.min(now.saturating_add(self.policy.forget_after())));
    }

    /// Takes over what an earlier run remembered. Moments are on this run's clock.
    pub fn restore(&mut self, standing: &Standing, now: Moment) {
        let standing = standing.believed(self.policy.timeout(), now);
        if now.saturating_since(standing.last_move) >= self.policy.forget_after() {
            return;
        }
        // The prefix of a source may have changed with the settings.
        let source = self.policy.source(standing.source.network().address());
        if source != standing.source {
            let forgotten = standing.last_move.saturating_add(self.policy.forget_after());
            return self.doubt_neighbours(forgotten, now);
        }
        let identity: Arc<[u8]> = (*standing.identity).into();
        let hash = self.occupants.hash_of::<[u8]>(&identity);
        self.neighbours.recall(source, hash, standing.last_move);
        if standing.is_visit {
            return self.visits.note(&identity, source, standing.last_move);
        }
        let places = self.places_of(&identity).unwrap_or(self.policy.places());
        let most = self.policy.with_places(places).sources_per_user();
        let made = self.occupants.get_or_insert_unless_full(identity, Occupant::new);
        let Some((occupant, evicted)) = made else { return };
        self.counters.evicted_users += u64::from(evicted.is_some());
        if occupant.presences.len() >= most || occupant.at(source).is_some() {
            return;
        }
        let peer = Peer { address: source.network().address(), port: 0 };
        let mut presence = Presence::new(source, peer, &standing.shown_as, now);
        presence.restore(standing.first_seen, standing.arrival, standing.last_move);
        (presence.acted_at, presence.ordered_until) = (standing.ordered_at, standing.ordered_until);
        occupant.insert(presence);
    }
}

fn visit((user, source, seen): (&Arc<[u8]>, Source, Moment)) -> Standing {
    Standing {
        identity: (**user).into(),
        shown_as: (**user).into(),
        source,
        first_seen: seen,
        arrival: seen,
        last_move: seen,
        ordered_until: Moment::default(),
        ordered_at: None,
        is_visit: true,
    }
}

impl Standing {
    /// Whether it says more than that the user was there once: an order that runs at `now`.
    #[must_use]
    pub fn is_ordered(&self, now: Moment) -> bool {
        now < self.ordered_until
    }

    /// What can be true of it at `now`: nothing was seen later, and no order lasts longer than one
    /// that is given now, for `timeout`.
    fn believed(&self, timeout: Duration, now: Moment) -> Self {
        Self {
            first_seen: self.first_seen.min(now),
            arrival: self.arrival.min(now),
            last_move: self.last_move.min(now),
            ordered_until: self.ordered_until.min(now.saturating_add(timeout)),
            ordered_at: self.ordered_at.map(|at| at.min(now)),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Moment {
        Moment::from_nanos(second * 1_000_000_000)
    }

    #[test]
    fn nothing_is_believed_that_is_later_than_now_or_lasts_longer_than_an_order_given_now() {
        let standing =
            |[first_seen, arrival, last_move, ordered_until, ordered_at]: [u64; 5]| Standing {
                identity: (*b"alice").into(),
                shown_as: (*b"Alice").into(),
                source: Source::of([198, 51, 100, 7].into(), 32, 64),
                first_seen: at(first_seen),
                arrival: at(arrival),
                last_move: at(last_move),
                ordered_until: at(ordered_until),
                ordered_at: Some(at(ordered_at)),
                is_visit: false,
            };
        for (written, believed) in [
            ([100, 200, 300, 0, 0], [100, 200, 300, 0, 0]),
            ([100, 200, 300, 1_050, 990], [100, 200, 300, 1_050, 990]),
            ([1_000, 1_000, 1_000, 1_060, 1_000], [1_000, 1_000, 1_000, 1_060, 1_000]),
            // Written while the clock was ahead.
            ([100, 200, 1_001, 1_061, 1_001], [100, 200, 1_000, 1_060, 1_000]),
            ([100, 4_700, 4_900, 4_960, 4_900], [100, 1_000, 1_000, 1_060, 1_000]),
            ([4_600, 4_700, 4_900, 4_960, 4_900], [1_000, 1_000, 1_000, 1_060, 1_000]),
            ([u64::MAX / 1_000_000_000; 5], [1_000, 1_000, 1_000, 1_060, 1_000]),
        ] {
            let told = standing(written).believed(Duration::from_mins(1), at(1_000));
            assert_eq!(told, standing(believed), "{written:?}");
        }
    }
}
