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
use hashbrown::HashTable;

use crate::moment::Moment;

/// How many entries are compared before one is evicted.
const VICTIM_CANDIDATES: usize = 16;
/// How many entries a caller who sweeps a few times a second looks at each time.
pub(crate) const SWEPT_PER_TICK: usize = 64;

/// A value that knows when it was last heard of.
pub(crate) trait Heard {
    fn last_heard(&self) -> Moment;

    /// Whether it may not make room for another.
    fn is_pinned(&self) -> bool {
        false
    }
}

/// At most `capacity` values.
///
/// The entries lie in a row, so that the hand can go round, and a table of small slots says where
/// each key is. Many users' slots fit into a processor's own memory when their entries do not: who
/// has several keys to look up finds all of their places first and waits for the entries together.
#[derive(Debug)]
pub(crate) struct Bounded<K, V> {
    slots: HashTable<Slot>,
    entries: Vec<Entry<K, V>>,
    hasher: RandomState,
    capacity: usize,
    hand: usize,
}

/// Where a key's entry is, and enough of its hash to be nearly sure without looking there.
#[derive(Clone, Copy, Debug)]
struct Slot {
    place: u32,
    tag: u32,
}

#[derive(Debug)]
struct Entry<K, V> {
    hash: u64,
    key: K,
    value: V,
}

impl<K: Hash + Eq, V: Heard> Bounded<K, V> {
    /// An empty map for `capacity` values, at least one and at most 2^32 - 1.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            slots: HashTable::new(),
            entries: Vec::new(),
            hasher: RandomState::default(),
            capacity: capacity.clamp(1, u32::MAX as usize),
            hand: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let place = self.place_of(self.hash_of(key), key)?;
        self.entries.get(place).map(|entry| &entry.value)
    }

    pub(crate) fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let place = self.place_of(self.hash_of(key), key)?;
        self.at_mut(place)
    }

    /// Where the entry of a key with this hash probably is; it is not looked at.
    pub(crate) fn likely_place(&self, hash: u64) -> Option<usize> {
        let slot = self.slots.iter_hash(hash).find(|slot| slot.tag == tag_of(hash))?;
        Some(slot.place as usize)
    }

    /// The value at `place`.
    pub(crate) fn at(&self, place: usize) -> Option<&V> {
        self.entries.get(place).map(|entry| &entry.value)
    }

    /// The value at `place`.
    pub(crate) fn at_mut(&mut self, place: usize) -> Option<&mut V> {
        self.entries.get_mut(place).map(|entry| &mut entry.value)
    }

    /// Whether the entry of `key` is at `place`.
    pub(crate) fn is_at<Q: Eq + ?Sized>(&self, place: usize, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.entries.get(place).is_some_and(|entry| entry.key.borrow() == key)
    }

    /// The hash of a key, the same for the life of this map.
    pub(crate) fn hash_of<Q: Hash + ?Sized>(&self, key: &Q) -> u64
    where
        K: Borrow<Q>,
    {
        self.hasher.hash_one(key)
    }

    /// The value of `key`, made if there is none, and the value that had to make room for it.
    pub(crate) fn get_or_insert(
        &mut self,
        key: K,
        make: impl FnOnce() -> V,
    ) -> (&mut V, Option<V>) {
        let hash = self.hash_of(&key);
        if let Some(place) = self.place_of(hash, &key) {
            return (self.value_at(place), None);
        }
        let victim = self.victim();
        self.insert(Entry { hash, key, value: make() }, victim)
    }

    /// As [`get_or_insert`](Self::get_or_insert), for a map in which some may not make room: `None`
    /// when none of those looked at may.
    pub(crate) fn get_or_insert_unless_full(
        &mut self,
        key: K,
        make: impl FnOnce() -> V,
    ) -> Option<(&mut V, Option<V>)> {
        let hash = self.hash_of(&key);
        if let Some(place) = self.place_of(hash, &key) {
            return Some((self.value_at(place), None));
        }
        let victim = self.victim();
        if victim.and_then(|place| self.at(place)).is_some_and(Heard::is_pinned) {
            self.move_hand();
            return None;
        }
        Some(self.insert(Entry { hash, key, value: make() }, victim))
    }

    /// The keys and values at the next `count` places from `start` on.
    pub(crate) fn slice(&self, start: usize, count: usize) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().skip(start).take(count).map(|entry| (&entry.key, &entry.value))
    }

    /// Looks at the next `count` values, drops those that `keep` does not want, and says how many
    /// that were.
    pub(crate) fn sweep(&mut self, count: usize, mut keep: impl FnMut(&mut V) -> bool) -> usize {
        let mut dropped = 0;
        for _ in 0..count.min(self.entries.len()) {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let Some(entry) = self.entries.get_mut(self.hand) else { break };
            if keep(&mut entry.value) {
                self.hand += 1;
            } else {
                self.remove(self.hand);
                dropped += 1;
            }
        }
        dropped
    }

    fn place_of<Q: Eq + ?Sized>(&self, hash: u64, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        let is_it = |slot: &Slot| slot.tag == tag_of(hash) && self.is_at(slot.place as usize, key);
        self.slots.find(hash, is_it).map(|slot| slot.place as usize)
    }

    /// Takes a new entry in, for which `victim` makes room.
    fn insert(&mut self, entry: Entry<K, V>, victim: Option<usize>) -> (&mut V, Option<V>) {
        let evicted = victim.and_then(|victim| {
            self.move_hand();
            self.remove(victim)
        });
        self.push(entry);
        (self.value_at(self.entries.len() - 1), evicted)
    }

    #[expect(clippy::indexing_slicing, reason = "the place was found or made this moment")]
    fn value_at(&mut self, place: usize) -> &mut V {
        &mut self.entries[place].value
    }

    fn push(&mut self, entry: Entry<K, V>) {
        // The capacity, which is never exceeded, fits.
        let place = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        let slot = Slot { place, tag: tag_of(entry.hash) };
        let entries = &self.entries;
        self.slots.insert_unique(entry.hash, slot, |slot| {
            entries.get(slot.place as usize).map_or(0, |entry| entry.hash)
        });
        self.entries.push(entry);
    }

    /// Removes an entry; the last one takes its place.
    fn remove(&mut self, place: usize) -> Option<V> {
        let last = self.entries.len().checked_sub(1)?;
        let hash = self.entries.get(place)?.hash;
        self.slots.find_entry(hash, |slot| slot.place as usize == place).ok()?.remove();
        if place != last {
            let moved = self.entries.last()?.hash;
            let slot = self.slots.find_mut(moved, |slot| slot.place as usize == last)?;
            slot.place = u32::try_from(place).unwrap_or(u32::MAX);
        }
        Some(self.entries.swap_remove(place).value)
    }

    /// The hand goes on behind those that were looked at.
    fn move_hand(&mut self) {
        self.hand = (self.hand + VICTIM_CANDIDATES) % self.entries.len().max(1);
    }

    /// Who makes room where there is none: the longest silent of sixteen, and of those that may, if
    /// any may.
    fn victim(&self) -> Option<usize> {
        let length = self.entries.len();
        if length < self.capacity {
            return None;
        }
        let (_, _, victim) = (0..VICTIM_CANDIDATES.min(length))
            .map(|step| (self.hand + step) % length)
            .filter_map(|index| {
                let value = &self.entries.get(index)?.value;
                Some((value.is_pinned(), value.last_heard(), index))
            })
            .min()?;
        Some(victim)
    }
}

/// The half of a hash that the table of slots uses least.
#[expect(clippy::cast_possible_truncation, reason = "a tag is a part of the hash")]
fn tag_of(hash: u64) -> u32 {
    (hash >> 16) as u32
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

    #[derive(Debug, PartialEq)]
    struct Pinned(bool);

    impl Heard for Pinned {
        fn last_heard(&self) -> Moment {
            Moment::default()
        }

        fn is_pinned(&self) -> bool {
            self.0
        }
    }

    #[test]
    fn who_is_pinned_makes_room_for_nobody() {
        let mut map = Bounded::new(2);
        map.get_or_insert(1, || Pinned(true));
        map.get_or_insert(2, || Pinned(false));
        let made = map.get_or_insert_unless_full(3, || Pinned(true));
        assert_eq!(made.unwrap().1, Some(Pinned(false)));
        assert_eq!(map.get_or_insert_unless_full(4, || Pinned(true)), None);
        assert!(map.get_or_insert_unless_full(3, || Pinned(true)).is_some(), "it is there");
        assert_eq!(map.slice(0, 9).map(|(key, _)| *key).collect::<Vec<_>>(), [1, 3]);
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
