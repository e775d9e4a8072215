//! Where somebody was seen who has no place there: a neighbour to others, and nothing else.
//!
//! Takes down who was confirmed where without a place of his own: users whose places nobody counts,
//! those whom a line named for another's connection, and what had to make room. The neighbours'
//! table knows them too, but by a hash that means nothing to another run; here they have their
//! names, for the state file. Bounded: the longest silent of sixteen goes, and when that was is
//! kept.

use std::{sync::Arc, time::Duration};

use crate::{
    bounded::{Bounded, Heard},
    moment::Moment,
    network::Source,
};

/// As many as a state file keeps.
pub(super) const CAPACITY: usize = 65_536;

/// Users and sources, with the last sign of life.
#[derive(Debug)]
pub(super) struct Visits {
    seen: Bounded<(Arc<[u8]>, Source), Seen>,
    /// The last sign of life of whoever was let go of, here or elsewhere.
    lost: Option<Moment>,
}

#[derive(Debug)]
struct Seen(Moment);

impl Heard for Seen {
    fn last_heard(&self) -> Moment {
        self.0
    }
}

impl Visits {
    pub(super) fn new(capacity: usize) -> Self {
        Self { seen: Bounded::new(capacity), lost: None }
    }

    /// `user` was seen at `source`.
    pub(super) fn note(&mut self, user: &Arc<[u8]>, source: Source, now: Moment) {
        let key = (Arc::clone(user), source);
        let (seen, evicted) = self.seen.get_or_insert(key, || Seen(now));
        seen.0 = seen.0.max(now);
        if let Some(evicted) = evicted {
            self.lose(evicted.0);
        }
    }

    /// He is there still, if he was noted there.
    pub(super) fn renew(&mut self, user: &Arc<[u8]>, source: Source, now: Moment) {
        if let Some(seen) = self.seen.get_mut(&(Arc::clone(user), source)) {
            seen.0 = seen.0.max(now);
        }
    }

    /// Somebody who was last seen at `seen` will not be told of to another run.
    pub(super) fn lose(&mut self, seen: Moment) {
        self.lost = self.lost.max(Some(seen));
    }

    /// When the last of those was seen.
    pub(super) const fn lost(&self) -> Option<Moment> {
        self.lost
    }

    /// The next `count` from `start` on.
    pub(super) fn slice(
        &self,
        start: usize,
        count: usize,
    ) -> impl Iterator<Item = (&Arc<[u8]>, Source, Moment)> {
        self.seen.slice(start, count).map(|((user, source), seen)| (user, *source, seen.0))
    }

    pub(super) fn len(&self) -> usize {
        self.seen.len()
    }

    /// Forgets those among the next `count` who were silent for `keep_for`.
    pub(super) fn sweep(&mut self, count: usize, keep_for: Duration, now: Moment) {
        self.seen.sweep(count, |seen| now.saturating_since(seen.0) < keep_for);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Moment {
        Moment::from_nanos(second * 1_000_000_000)
    }

    #[test]
    fn when_there_is_no_room_the_longest_silent_goes_and_it_is_known_when_he_was_there() {
        let mut visits = Visits::new(4);
        let source = |last| Source::of([198, 51, 100, last].into(), 32, 64);
        let user: Arc<[u8]> = b"carol".as_slice().into();
        for last in 1..=4 {
            visits.note(&user, source(last), at(u64::from(last)));
        }
        visits.renew(&user, source(1), at(10));
        visits.renew(&user, source(9), at(10));
        assert_eq!((visits.len(), visits.lost()), (4, None));
        visits.note(&user, source(5), at(11));
        assert_eq!((visits.len(), visits.lost()), (4, Some(at(2))));
        visits.note(&user, source(6), at(12));
        visits.lose(at(1));
        assert_eq!(visits.lost(), Some(at(3)));
        visits.sweep(100, Duration::from_secs(2), at(12));
        assert_eq!(visits.slice(0, 9).map(|it| it.2).collect::<Vec<_>>().len(), 2);
    }
}
