//! One user: his presences in order of seniority, and how closely he is to be watched.
//!
//! Takes confirmed connections; keeps where he is and was, bounded. It judges nobody.

use std::{collections::VecDeque, time::Duration};

use super::presence::{Measures, Presence};
use crate::{
    bounded::Heard,
    moment::Moment,
    network::{Family, Source},
    overlap::{LATELY, Turns},
    sessions::Offence,
    sighting::Sighting,
};

/// Turns kept: as many as any rule counts, and some more.
const TURNS_KEPT: usize = 8;

/// How closely a user's counters are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Watch {
    /// He has no more sources than places.
    Not,
    /// He has, but no more of them are at work than he has places.
    Glance,
    /// Slot by slot.
    Closely,
}

/// One user.
#[derive(Debug, Default)]
pub(super) struct Occupant {
    /// The most senior first.
    pub(super) presences: Vec<Presence>,
    v4: OfFamily,
    v6: OfFamily,
    /// Between where he stayed when somebody was cut last and what is new in the other family.
    across: Course,
}

/// What is known of a user in one address family.
#[derive(Debug, Default)]
struct OfFamily {
    offence: Option<Offence>,
    course: Course,
}

/// Where a user goes from one source to another.
#[derive(Debug, Default)]
struct Course {
    /// Where he began last, and when.
    begun: Option<(Source, Moment)>,
    /// When he began elsewhere than before, the last few times.
    turns: VecDeque<Moment>,
}

impl Heard for Occupant {
    fn last_heard(&self) -> Moment {
        self.presences.iter().map(Presence::last_seen).max().unwrap_or_default()
    }

    fn is_pinned(&self) -> bool {
        self.presences.iter().any(|presence| !presence.connections.is_empty())
    }
}

impl Occupant {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The presence at `source`, and the one that made room for it where there were `most` of them;
    /// `None` when all of those have to stay.
    pub(super) fn enter(
        &mut self,
        source: Source,
        sighting: &Sighting<'_>,
        most: usize,
        now: Moment,
    ) -> Option<(&mut Presence, Option<Presence>)> {
        let place = self.presences.iter().position(|presence| presence.source == source);
        let mut gone = None;
        let place = if let Some(place) = place {
            place
        } else {
            if self.presences.len() >= most {
                gone = Some(self.make_room(now)?);
            }
            self.presences.push(Presence::new(source, sighting.peer, sighting.user, now));
            self.presences.len() - 1
        };
        let presence = self.presences.get_mut(place)?;
        presence.peer = sighting.peer;
        presence.transport = sighting.transport;
        if *presence.shown_as != *sighting.user {
            presence.shown_as = sighting.user.into();
        }
        Some((presence, gone))
    }

    /// Takes in a presence from elsewhere, at its rank.
    pub(super) fn insert(&mut self, presence: Presence) {
        let is_senior = |other: &Presence| other.first_seen <= presence.first_seen;
        let place = self.presences.partition_point(is_senior);
        self.presences.insert(place, presence);
    }

    pub(super) fn at_mut(&mut self, source: Source) -> Option<&mut Presence> {
        self.presences.iter_mut().find(|presence| presence.source == source)
    }

    pub(super) fn at(&self, source: Source) -> Option<&Presence> {
        self.presences.iter().find(|presence| presence.source == source)
    }

    /// His name as the latest line wrote it.
    pub(super) fn shown_as(&self) -> &[u8] {
        let latest = self.presences.iter().max_by_key(|presence| presence.last_seen());
        latest.map_or(&[], |presence| &presence.shown_as)
    }

    /// How closely he is to be watched; `places` is `None` for whoever has any number of them.
    pub(super) fn watch(&self, places: Option<usize>, measures: Measures, now: Moment) -> Watch {
        let Some(places) = places else { return Watch::Not };
        let closeness = |presences: &mut dyn Iterator<Item = &Presence>| {
            let (mut open, mut recent) = (0, 0);
            for presence in presences {
                open += usize::from(presence.may_be_at_work(measures, now));
                recent += usize::from(now.saturating_since(presence.last_seen()) < measures.window);
            }
            match (open > places, recent > places) {
                (false, _) => Watch::Not,
                (true, false) => Watch::Glance,
                (true, true) => Watch::Closely,
            }
        };
        let mut watch = Watch::Not;
        for family in [Family::V4, Family::V6] {
            let of_family = |presence: &&Presence| {
                presence.source.family() == family && presence.acted_until <= now
            };
            watch = watch.max(closeness(&mut self.presences.iter().filter(of_family)));
            for suspect in self.suspects(family, now) {
                let with_it = self.stayed_beside(family, now).chain([suspect]);
                watch = watch.max(closeness(&mut { with_it }));
            }
        }
        watch
    }

    /// Forgets where he was silent for `keep_for`; `false` when nothing is left.
    pub(super) fn forget(&mut self, keep_for: Duration, now: Moment) -> bool {
        self.presences.retain(|presence| {
            !presence.connections.is_empty()
                || now.saturating_since(presence.last_seen()) < keep_for
        });
        !self.presences.is_empty()
    }

    pub(super) fn offend(&mut self, family: Family, offence: Offence) {
        self.of_mut(family).offence = Some(offence);
        self.across = Course::default();
    }

    /// A violation in the other family whose consequences last.
    pub(super) fn offence_beside(&self, family: Family, now: Moment) -> Option<Offence> {
        self.of(family.other()).offence.filter(|offence| now < offence.until)
    }

    /// Where the device that was cut in the other family may be back, or the user on his next
    /// network: the sources at which he was never seen before that violation.
    pub(super) fn suspects(&self, family: Family, now: Moment) -> impl Iterator<Item = &Presence> {
        let offence = self.offence_beside(family, now);
        self.presences.iter().filter(move |it| {
            it.source.family() == family
                && it.acted_until <= now
                && offence.is_some_and(|offence| offence.at < it.first_seen)
        })
    }

    /// Where he was in the other family when somebody was cut there, whoever that was left aside.
    pub(super) fn stayed_beside(
        &self,
        family: Family,
        now: Moment,
    ) -> impl Iterator<Item = &Presence> {
        let offence = self.offence_beside(family, now);
        self.presences.iter().filter(move |it| {
            it.source.family() == family.other()
                && it.acted_until <= now
                && offence.is_some_and(|offence| it.first_seen <= offence.at)
        })
    }

    /// He began something at `source`; an answer to a question is no turn of his own.
    pub(super) fn begins(&mut self, source: Source, begun: Moment, is_answer: bool) {
        let family = source.family();
        let is_here = |it: &Presence| it.source == source;
        let is_across = self.suspects(family, begun).any(is_here)
            || self.stayed_beside(family.other(), begun).any(is_here);
        self.of_mut(family).course.begins(source, begun, is_answer);
        if is_across {
            self.across.begins(source, begun, is_answer);
        }
    }

    /// What he turned between so far says nothing any more.
    pub(super) fn forget_turns(&mut self) {
        for course in [&mut self.v4.course, &mut self.v6.course, &mut self.across] {
            *course = Course::default();
        }
    }

    /// How often he turned of late.
    pub(super) fn turns(&self, family: Family, measures: Measures, now: Moment) -> Turns {
        self.of(family).course.turns(measures, now)
    }

    /// How often he turned of late between where he stayed when somebody was cut and what is new in
    /// the other family.
    pub(super) fn turns_across(&self, measures: Measures, now: Moment) -> Turns {
        self.across.turns(measures, now)
    }

    fn of(&self, family: Family) -> &OfFamily {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn of_mut(&mut self, family: Family) -> &mut OfFamily {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// The longest silent source goes, those under an order last. One with connections open stays:
    /// else whoever opens enough elsewhere could have it forgotten that somebody is at work there.
    /// Where he was first seen of all, in each family, stays too: else whoever turns up at enough
    /// sources could make a newcomer of him.
    fn make_room(&mut self, now: Moment) -> Option<Presence> {
        let senior = |family: Family| {
            let of_family = self.presences.iter().filter(|it| it.source.family() == family);
            of_family.min_by_key(|it| it.first_seen).map(|it| it.source)
        };
        let seniors = [senior(Family::V4), senior(Family::V6)];
        let (place, _) = self
            .presences
            .iter()
            .enumerate()
            .filter(|(_, presence)| presence.connections.is_empty())
            .filter(|(_, presence)| !seniors.contains(&Some(presence.source)))
            .min_by_key(|(_, presence)| {
                let is_ordered = presence.acted_until.max(presence.ordered_until) > now;
                (is_ordered, presence.last_seen())
            })?;
        Some(self.presences.remove(place))
    }
}

impl Course {
    fn begins(&mut self, source: Source, begun: Moment, is_answer: bool) {
        if let Some((before, at)) = self.begun {
            if begun < at {
                return;
            }
            if before != source && !is_answer {
                if self.turns.len() == TURNS_KEPT {
                    self.turns.pop_front();
                }
                self.turns.push_back(begun);
            }
        }
        self.begun = Some((source, begun));
    }

    fn turns(&self, measures: Measures, now: Moment) -> Turns {
        let within = |age: Duration| {
            let recent = self.turns.iter().filter(|turn| now.saturating_since(**turn) <= age);
            u32::try_from(recent.count()).unwrap_or(u32::MAX)
        };
        Turns { now: within(measures.window), lately: within(measures.window * LATELY) }
    }
}
