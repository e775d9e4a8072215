//! A map that never outgrows its capacity: the one eviction rule of this crate.
//!
//! Takes keys and values that know when they were last heard of. **Longest silent of sixteen**:
//! when the map is full, a new key looks at sixteen entries from a hand that goes round, and the
//! one that was silent longest makes room. The hand then stands behind them, so that in time each
//! entry is looked at; nothing is sorted and nothing is scanned whole. A key that is already there
//! never evicts anything.

use std::{
    borrow::Borrow,
    hash::{BuildHasher, Hash},
};

use foldhash::fast::RandomState;
use indexmap::{Equivalent, IndexMap};

use crate::moment::Moment;

/// How many entries are compared before one is evicted.
const VICTIM_CANDIDATES: usize = 16;

/// A value that knows when it was last heard of.
pub(crate) trait Heard {
    fn last_heard(&self) -> Moment;
}

/// At most `capacity` values.
#[derive(Debug)]
pub(crate) struct Bounded<K, V> {
    entries: IndexMap<K, V, RandomState>,
    capacity: usize,
    hand: usize,
}

impl<K: Hash + Eq, V: Heard> Bounded<K, V> {
    /// An empty map for `capacity` values, at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { entries: IndexMap::default(), capacity: capacity.max(1), hand: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<&V> {
        self.entries.get(key)
    }

    /// The place of `key`, for [`get_mut_at`](Self::get_mut_at).
    pub(crate) fn place_of<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<usize> {
        self.entries.get_index_of(key)
    }

    /// The value of `key`, which [is at](Self::is_at) `place` if one is given.
    pub(crate) fn get_mut_at<Q: Hash + Equivalent<K> + ?Sized>(
        &mut self,
        place: Option<usize>,
        key: &Q,
    ) -> Option<&mut V> {
        match place {
            Some(place) => self.entries.get_index_mut(place).map(|(_, value)| value),
            None => self.entries.get_mut(key),
        }
    }

    /// Whether `key` is at `place`, where it was a moment ago: an entry that was dropped since may
    /// have moved it.
    pub(crate) fn is_at<Q: Equivalent<K> + ?Sized>(&self, place: usize, key: &Q) -> bool {
        self.entries.get_index(place).is_some_and(|(there, _)| key.equivalent(there))
    }

    /// The value at `place`.
    pub(crate) fn at(&self, place: usize) -> Option<&V> {
        self.entries.get_index(place).map(|(_, value)| value)
    }

    /// The hash of a key, the same for the life of this map.
    pub(crate) fn hash_of<Q: Hash + ?Sized>(&self, key: &Q) -> u64
    where
        K: Borrow<Q>,
    {
        self.entries.hasher().hash_one(key)
    }

    /// The value of `key`, made if there is none, and the value that had to make room for it.
    pub(crate) fn get_or_insert(
        &mut self,
        key: K,
        make: impl FnOnce() -> V,
    ) -> (&mut V, Option<V>) {
        let evicted = if self.entries.contains_key(&key) { None } else { self.make_room() };
        (self.entries.entry(key).or_insert_with(make), evicted)
    }

    /// Looks at the next `count` values, drops those that `keep` does not want, and says how many
    /// that were.
    pub(crate) fn sweep(&mut self, count: usize, mut keep: impl FnMut(&mut V) -> bool) -> usize {
        let mut dropped = 0;
        for _ in 0..count.min(self.entries.len()) {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let Some((_, value)) = self.entries.get_index_mut(self.hand) else { break };
            if keep(value) {
                self.hand += 1;
            } else {
                self.entries.swap_remove_index(self.hand);
                dropped += 1;
            }
        }
        dropped
    }

    fn make_room(&mut self) -> Option<V> {
        let length = self.entries.len();
        if length < self.capacity {
            return None;
        }
        let (_, victim) = (0..VICTIM_CANDIDATES.min(length))
            .map(|step| (self.hand + step) % length)
            .filter_map(|index| Some((self.entries.get_index(index)?.1.last_heard(), index)))
            .min()?;
        self.hand = (self.hand + VICTIM_CANDIDATES) % length;
        Some(self.entries.swap_remove_index(victim)?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct At(u64);

    impl Heard for At {
        fn last_heard(&self) -> Moment {
            Moment::from_nanos(self.0)
        }
    }

    fn full_of(count: u64) -> Bounded<u64, At> {
        let mut map = Bounded::new(usize::try_from(count).unwrap());
        for key in 0..count {
            assert_eq!(map.get_or_insert(key, || At(1000 - key)).1, None);
        }
        map
    }

    #[test]
    fn the_longest_silent_of_sixteen_makes_room() {
        let mut map = full_of(100);
        assert_eq!(map.get_or_insert(1000, || At(2000)).1, Some(At(985)), "the 16th");
        assert_eq!(map.get_or_insert(1001, || At(2000)).1, Some(At(969)), "the 32nd");
        assert_eq!(map.len(), 100);
    }

    #[test]
    fn a_key_that_is_there_evicts_nothing() {
        let mut map = full_of(4);
        assert_eq!(map.get_or_insert(2, || At(0)), (&mut At(998), None));
        assert_eq!(map.len(), 4);
    }

    #[test]
    fn a_flood_leaves_the_size_where_it_is() {
        let mut map = full_of(50);
        for key in 100..10_000 {
            assert!(map.get_or_insert(key, || At(key)).1.is_some());
            assert_eq!(map.len(), 50);
        }
    }

    #[test]
    fn a_map_of_one_holds_one() {
        let mut map = Bounded::new(0);
        map.get_or_insert(1, || At(1));
        assert_eq!(map.get_or_insert(2, || At(2)).1, Some(At(1)));
        assert_eq!((map.get(&1), map.get(&2)), (None, Some(&At(2))));
    }

    #[test]
    fn sweeping_goes_round_a_few_at_a_time() {
        let mut map = full_of(10);
        assert_eq!(map.sweep(3, |value| value.0 != 999), 1);
        assert_eq!(map.sweep(100, |_| true), 0);
        assert_eq!(map.sweep(9, |value| value.0 > 995), 5);
        assert_eq!(map.len(), 4);
        assert_eq!(map.sweep(100, |_| false), 4);
        assert_eq!(map.sweep(100, |_| false), 0, "nothing is left");
    }
}
