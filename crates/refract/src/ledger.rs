//! What we believe is banned, so that a set that vanished can be made again with what it held.
//!
//! Takes the bans that the kernel accepted and the answers of membership tests; gives the bans that
//! are still due. The kernel's set is the truth: a ban that the kernel no longer holds before its
//! time was lifted by the operator, and is forgotten here instead of being put back. A hand walks
//! over the entries, a few each second, dropping what has run out.

use std::time::{Duration, Instant};

use indexmap::IndexMap;
use refract_kernel::ban::BanTarget;

/// Most bans remembered: as many as the sets hold. Beyond it new bans are not remembered, which
/// only matters should the set vanish.
const CAPACITY: usize = 1 << 20;

/// The bans in force, with their ends.
#[derive(Debug, Default)]
pub struct Ledger {
    bans: IndexMap<BanTarget, Instant>,
    hand: usize,
}

impl Ledger {
    /// The kernel took a ban that lasts until `end`.
    pub fn banned(&mut self, target: BanTarget, end: Instant) {
        if self.bans.len() < CAPACITY || self.bans.contains_key(&target) {
            self.bans.insert(target, end);
        }
    }

    /// How much time a ban has left; none if it is not known.
    #[must_use]
    pub fn left(&self, target: &BanTarget, now: Instant) -> Duration {
        self.bans.get(target).map_or(Duration::ZERO, |end| end.saturating_duration_since(now))
    }

    /// The ban was lifted by hand.
    pub fn lifted(&mut self, target: &BanTarget) {
        self.bans.swap_remove(target);
    }

    /// The bans that have time left, with that time.
    #[must_use]
    pub fn due(&self, now: Instant) -> Vec<(BanTarget, Duration)> {
        self.bans
            .iter()
            .map(|(target, end)| (*target, end.saturating_duration_since(now)))
            .filter(|(_, left)| !left.is_zero())
            .collect()
    }

    /// How many bans have time left.
    #[must_use]
    pub fn count_due(&self, now: Instant) -> usize {
        self.bans.values().filter(|end| **end > now).count()
    }

    /// How many bans are remembered.
    #[must_use]
    pub fn count(&self) -> usize {
        self.bans.len()
    }

    /// Moves the hand over at most `count` entries: what has run out is dropped, and those that the
    /// kernel must still hold (they end later than `now + margin`) are returned for a test.
    pub fn next_to_test(&mut self, count: usize, now: Instant, margin: Duration) -> Vec<BanTarget> {
        let mut targets = Vec::new();
        for _ in 0..count.min(self.bans.len()) {
            if self.hand >= self.bans.len() {
                self.hand = 0;
            }
            match self.bans.get_index(self.hand) {
                Some((_, end)) if *end <= now => {
                    self.bans.swap_remove_index(self.hand);
                }
                Some((target, end)) => {
                    if *end > now + margin {
                        targets.push(*target);
                    }
                    self.hand += 1;
                }
                None => break,
            }
        }
        targets
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn target(last: u8) -> BanTarget {
        let address = IpAddr::V4(Ipv4Addr::new(198, 51, 100, last));
        BanTarget::Network { address, prefix: 32 }
    }

    #[test]
    fn only_bans_with_time_left_are_due() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.banned(target(1), now + Duration::from_secs(1));
        ledger.banned(target(2), now + Duration::from_secs(9));
        ledger.banned(target(3), now + Duration::from_secs(9));
        ledger.lifted(&target(3));
        let later = now + Duration::from_secs(5);
        assert_eq!(ledger.due(later), [(target(2), Duration::from_secs(4))]);
        assert_eq!((ledger.count_due(later), ledger.count()), (1, 2));
    }

    #[test]
    fn the_hand_reaches_every_ban_and_drops_what_ran_out() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        for last in 0..100 {
            let seconds = if last % 2 == 0 { 1 } else { 60 };
            ledger.banned(target(last), now + Duration::from_secs(seconds));
        }
        let later = now + Duration::from_secs(5);
        let mut tested = std::collections::HashSet::new();
        for _ in 0..20 {
            tested.extend(ledger.next_to_test(7, later, Duration::from_secs(1)));
        }
        assert_eq!(tested.len(), 50);
        assert_eq!(ledger.count(), 50);
    }

    #[test]
    fn a_ban_about_to_end_is_not_asked_for() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.banned(target(1), now + Duration::from_millis(500));
        assert_eq!(ledger.next_to_test(8, now, Duration::from_secs(1)), []);
        assert_eq!(ledger.count(), 1);
    }
}
