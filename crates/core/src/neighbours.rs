//! Who else is at a source: the table that keeps a ban from hitting a neighbour.
//!
//! Takes "this user was seen at this source"; answers whether anybody else was within the time
//! that it remembers, and how many are known to be there. It is asked before each measure. It is
//! told of every connection that the kernel confirmed; where the log's word has to do, when a source
//! of a user is new or was not told for a while, so that a live session's lines do not touch it. It
//! knows users by a hash of their name only.
//!
//! Whoever can write lines into the log (any user, by a newline in a domain name) can make a source
//! look shared, which makes the measure against it milder. Nobody can make a shared source look
//! exclusive: two residents are enough, honest lines keep theirs fresh, and a table that ran over
//! vouches for no source that it might have forgotten.

use std::time::Duration;

use crate::{
    bounded::{Bounded, Heard},
    few::Few,
    moment::Moment,
    network::Source,
};

/// Sources known for their neighbours, per user: a phone has two or three addresses a day.
pub(crate) const NEIGHBOURS_PER_USER: usize = 2;

/// What the table knows of the company at a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Company {
    /// Nobody else was there.
    Alone,
    /// Somebody else was there.
    Shared,
    /// The source may have been forgotten and met again.
    Unknown,
}

/// Sources and the users last seen at each.
#[derive(Debug)]
pub(crate) struct Neighbours {
    sources: Bounded<Source, Residents>,
    remembered_for: Duration,
    /// How many users are kept for a source, at least two: whichever user is asked about, one of
    /// two is another, if there is one. The longest silent one makes room.
    kept: usize,
    /// Until when a source that is met for the first time may in truth have been forgotten.
    forgetful_until: Moment,
    evicted: u64,
}

#[derive(Debug)]
struct Residents {
    latest: Resident,
    /// Those who were the latest before, the one just before last.
    others: Few<Resident>,
    unknown_until: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Resident {
    user: u64,
    seen: Moment,
}

impl Residents {
    fn all(&self) -> impl Iterator<Item = &Resident> {
        std::iter::once(&self.latest).chain(self.others.iter())
    }
}

impl Heard for Residents {
    fn last_heard(&self) -> Moment {
        self.latest.seen
    }
}

impl Neighbours {
    pub(crate) fn new(capacity: usize, remembered_for: Duration, kept: usize) -> Self {
        Self {
            kept: kept.max(2),
            sources: Bounded::new(capacity),
            remembered_for,
            forgetful_until: Moment::default(),
            evicted: 0,
        }
    }

    /// Sources that were dropped before their time because the table was full.
    pub(crate) const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Takes down that `user` was seen at `source`.
    pub(crate) fn note(&mut self, source: Source, user: u64, now: Moment) {
        let resident = Resident { user, seen: now };
        let mut unknown_until = self.forgetful_until;
        let (residents, evicted) = self.sources.get_or_insert(source, || Residents {
            latest: resident,
            others: Few::new(),
            unknown_until,
        });
        if residents.latest.user != user {
            let before = residents.latest;
            residents.others.retain(|other| other.user != user);
            if residents.others.len() + 1 >= self.kept {
                let silent = residents.others.iter().min_by_key(|other| other.seen);
                let silent = silent.map(|other| other.user);
                residents.others.retain(|other| Some(other.user) != silent);
            }
            residents.others.push(before);
        }
        residents.latest = resident;
        if let Some(evicted) = evicted
            && now.saturating_since(evicted.latest.seen) < self.remembered_for
        {
            unknown_until = now.saturating_add(self.remembered_for);
            // The new source may be the very one that was dropped.
            residents.unknown_until = unknown_until;
            self.forgetful_until = unknown_until;
            self.evicted += 1;
        }
    }

    /// Takes down what an earlier run remembers, in whatever order.
    pub(crate) fn recall(&mut self, source: Source, user: u64, seen: Moment) {
        let latest = self.sources.get(&source).map(|residents| residents.latest);
        let later = latest.filter(|latest| latest.seen > seen);
        if later.is_some_and(|later| later.user == user) {
            return;
        }
        self.note(source, user, seen);
        if let Some(later) = later {
            self.note(source, later.user, later.seen);
        }
    }

    /// Anybody may have been anywhere: until then no source is vouched for.
    pub(crate) fn doubt(&mut self, until: Moment) {
        self.forgetful_until = self.forgetful_until.max(until);
        let everywhere = self.sources.len();
        self.sources.sweep(everywhere, |residents| {
            residents.unknown_until = residents.unknown_until.max(until);
            true
        });
    }

    /// Until when a source that is met for the first time is not vouched for.
    pub(crate) const fn forgetful_until(&self) -> Moment {
        self.forgetful_until
    }

    /// Who is at `source` beside `user`.
    pub(crate) fn company(&self, source: Source, user: u64, now: Moment) -> Company {
        let Some(residents) = self.sources.get(&source) else {
            return if now < self.forgetful_until { Company::Unknown } else { Company::Alone };
        };
        let shared = residents
            .all()
            .any(|resident| resident.user != user && self.remembers(resident.seen, now));
        if shared {
            Company::Shared
        } else if now < residents.unknown_until {
            Company::Unknown
        } else {
            Company::Alone
        }
    }

    /// How many users are kept for a source.
    pub(crate) const fn kept(&self) -> usize {
        self.kept
    }

    /// How many users are known to be at `source`; no more are counted than are kept.
    pub(crate) fn count(&self, source: Source, now: Moment) -> usize {
        self.sources.get(&source).map_or(0, |residents| {
            residents.all().filter(|resident| self.remembers(resident.seen, now)).count()
        })
    }

    /// The sources at which at least `least` users are known to be, with how many.
    pub(crate) fn crowds(
        &self,
        least: usize,
        now: Moment,
    ) -> impl Iterator<Item = (Source, usize)> + '_ {
        self.sources
            .slice(0, usize::MAX)
            .map(move |(source, _)| (*source, self.count(*source, now)))
            .filter(move |(_, users)| *users >= least)
    }

    /// Drops what is too old among the next `count` sources.
    pub(crate) fn sweep(&mut self, count: usize, now: Moment) {
        let remembered_for = self.remembered_for;
        self.sources
            .sweep(count, |residents| now.saturating_since(residents.latest.seen) < remembered_for);
    }

    fn remembers(&self, seen: Moment, now: Moment) -> bool {
        now.saturating_since(seen) < self.remembered_for
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn source(last: u8) -> Source {
        Source::of([198, 51, 100, last].into(), 32, 64)
    }

    fn at(hours: u64) -> Moment {
        Moment::default().saturating_add(Duration::from_hours(hours))
    }

    #[test]
    fn a_user_is_no_neighbour_of_himself() {
        let mut neighbours = Neighbours::new(8, DAY, 2);
        assert_eq!(neighbours.company(source(1), 1, at(0)), Company::Alone);
        neighbours.note(source(1), 1, at(0));
        neighbours.note(source(1), 1, at(1));
        assert_eq!(neighbours.company(source(1), 1, at(1)), Company::Alone);
        assert_eq!(neighbours.company(source(1), 2, at(1)), Company::Shared);
    }

    #[test]
    fn a_neighbour_is_remembered_for_a_day() {
        let mut neighbours = Neighbours::new(8, DAY, 2);
        neighbours.note(source(1), 1, at(0));
        neighbours.note(source(1), 2, at(10));
        assert_eq!(neighbours.company(source(1), 2, at(23)), Company::Shared);
        assert_eq!(neighbours.company(source(1), 2, at(24)), Company::Alone);
        assert_eq!(neighbours.company(source(1), 1, at(24)), Company::Shared);
        assert_eq!(neighbours.company(source(1), 1, at(34)), Company::Alone);
    }

    #[test]
    fn a_third_user_does_not_hide_the_second() {
        let mut neighbours = Neighbours::new(8, DAY, 2);
        for user in [1, 2, 3, 3, 3] {
            neighbours.note(source(1), user, at(0));
        }
        for user in 1..=4 {
            assert_eq!(neighbours.company(source(1), user, at(1)), Company::Shared, "user {user}");
        }
    }

    #[test]
    fn so_many_users_are_counted_as_are_kept() {
        let mut neighbours = Neighbours::new(8, DAY, 4);
        for (hour, user) in [1, 2, 3, 3, 4, 5, 2].into_iter().enumerate() {
            neighbours.note(source(1), user, at(u64::try_from(hour).unwrap()));
        }
        assert_eq!(neighbours.count(source(1), at(6)), 4);
        assert_eq!(neighbours.count(source(1), at(27)), 3, "the third was seen a day ago");
        assert_eq!(neighbours.count(source(2), at(6)), 0);
    }

    #[test]
    fn a_table_that_ran_over_vouches_for_no_new_source() {
        let mut neighbours = Neighbours::new(4, DAY, 2);
        for last in 0..4 {
            neighbours.note(source(last), 1, at(u64::from(last)));
        }
        assert_eq!(neighbours.company(source(3), 1, at(4)), Company::Alone);
        neighbours.note(source(9), 1, at(4));
        assert_eq!((neighbours.sources.len(), neighbours.evicted()), (4, 1));
        assert_eq!(neighbours.company(source(9), 1, at(5)), Company::Unknown, "met after the loss");
        assert_eq!(neighbours.company(source(3), 1, at(5)), Company::Alone, "known all along");
        assert_eq!(neighbours.company(source(0), 2, at(5)), Company::Unknown, "this one was lost");
        assert_eq!(neighbours.company(source(9), 1, at(28)), Company::Alone, "a day later");
    }

    #[test]
    fn what_an_earlier_run_remembers_may_come_in_any_order() {
        for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
            let mut neighbours = Neighbours::new(8, DAY, 4);
            for hour in order {
                neighbours.recall(source(1), hour, at(hour));
            }
            neighbours.recall(source(1), order[0], at(order[0]));
            assert_eq!(neighbours.count(source(1), at(3)), 3);
            neighbours.sweep(100, at(26));
            assert_eq!(neighbours.count(source(1), at(26)), 1, "the one who was there last");
            assert_eq!(neighbours.company(source(1), 1, at(26)), Company::Shared, "{order:?}");
        }
    }

    #[test]
    fn where_a_memory_was_lost_no_source_is_vouched_for() {
        let mut neighbours = Neighbours::new(8, DAY, 2);
        neighbours.note(source(1), 1, at(0));
        neighbours.note(source(2), 1, at(0));
        neighbours.note(source(2), 2, at(0));
        neighbours.doubt(at(20));
        neighbours.note(source(3), 1, at(1));
        for (last, early) in [(1, Company::Unknown), (2, Company::Shared), (3, Company::Unknown)] {
            assert_eq!(neighbours.company(source(last), 1, at(19)), early);
        }
        for (last, late) in [(1, Company::Alone), (2, Company::Shared), (3, Company::Alone)] {
            assert_eq!(neighbours.company(source(last), 1, at(20)), late);
        }
    }

    #[test]
    fn sweeping_drops_what_is_a_day_old_and_nothing_else() {
        let mut neighbours = Neighbours::new(8, DAY, 2);
        for last in 0..6 {
            neighbours.note(source(last), 1, at(u64::from(last)));
        }
        neighbours.sweep(100, at(26));
        assert_eq!(neighbours.sources.len(), 3);
        assert_eq!(neighbours.evicted(), 0, "forgetting in time is no loss");
        neighbours.sweep(100, at(60));
        assert_eq!(neighbours.sources.len(), 0);
        neighbours.sweep(100, at(60));
    }
}
