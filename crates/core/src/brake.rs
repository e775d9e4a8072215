//! How many users may be banned in a minute.
//!
//! Takes the user of a verdict and the time; says whether his source may be banned or only his
//! connections be cut. A flood of verdicts, whoever caused it, then fills neither the set nor the
//! town's phones. It counts users, not bans: one user banned twice in a minute counts once.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use crate::moment::Moment;

/// The span over which distinct users are counted, and for which bans then pause.
const SPAN: Duration = Duration::from_mins(1);

/// Counts the distinct users banned in the running minute.
///
/// Bounded by its own limit: once as many users are counted, nobody is added until the minute is
/// over. Users are held as 64-bit keyed hashes; two that collide count as one.
#[derive(Debug)]
pub struct BanBrake {
    most: u32,
    hasher: RandomState,
    since: Moment,
    banned: HashSet<u64>,
}

/// What the brake says of one verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Permit {
    /// Ban.
    Granted,
    /// The bound is reached: cut, but do not ban.
    Withheld,
}

impl BanBrake {
    /// At most `most` distinct users a minute; 0 is no bound.
    #[must_use]
    pub fn new(most: u32) -> Self {
        Self { most, hasher: RandomState::new(), since: Moment::default(), banned: HashSet::new() }
    }

    /// Asks for one ban of `user` (compared without regard to ASCII case).
    pub fn permit(&mut self, user: &[u8], now: Moment) -> Permit {
        if self.most == 0 {
            return Permit::Granted;
        }
        if now.saturating_since(self.since) >= SPAN {
            self.since = now;
            self.banned.clear();
        }
        let user = self.hasher.hash_one(user.to_ascii_lowercase());
        if self.banned.contains(&user) {
            return Permit::Granted;
        }
        if u32::try_from(self.banned.len()).unwrap_or(u32::MAX) >= self.most {
            return Permit::Withheld;
        }
        self.banned.insert(user);
        Permit::Granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn the_bound_counts_distinct_users_in_a_minute() {
        let mut brake = BanBrake::new(2);
        assert_eq!(brake.permit(b"alice", at(100)), Permit::Granted);
        assert_eq!(brake.permit(b"ALICE", at(101)), Permit::Granted);
        assert_eq!(brake.permit(b"bob", at(102)), Permit::Granted);
        assert_eq!(brake.permit(b"carol", at(103)), Permit::Withheld);
        assert_eq!(brake.permit(b"alice", at(104)), Permit::Granted);
        assert_eq!(brake.permit(b"carol", at(160)), Permit::Granted);
    }

    #[test]
    fn zero_is_no_bound() {
        let mut brake = BanBrake::new(0);
        for user in 0..10_000u32 {
            assert_eq!(brake.permit(&user.to_ne_bytes(), at(1)), Permit::Granted);
        }
    }
}
