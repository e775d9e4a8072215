//! How many users, and how many sources of one, may be banned in a minute.
//!
//! Takes the user of a verdict and the time; says whether his source may be banned or only his
//! connections be cut. A flood of verdicts, whoever caused it, then fills neither the set nor the
//! town's phones. There are two bounds: one counts the users, each once however often he is banned in
//! a minute; the other counts the bans of each user.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use crate::{moment::Moment, verdict::Restraint};

/// The span over which distinct users are counted, and for which bans then pause.
const SPAN: Duration = Duration::from_mins(1);

/// Counts the distinct users banned in the running minute.
///
/// Bounded by its own limit: once as many users are counted, nobody is added until the minute is
/// over. Users are held as 64-bit keyed hashes; two that collide count as one.
#[derive(Debug)]
struct BanBrake {
    most: u32,
    hasher: RandomState,
    since: Moment,
    banned: HashSet<u64>,
}

/// What the brakes say of one verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Permit {
    /// Ban.
    Granted,
    /// A bound is reached: cut, but do not ban.
    Withheld(Restraint),
}

impl BanBrake {
    /// At most `most` distinct users a minute; 0 is no bound.
    fn new(most: u32) -> Self {
        Self { most, hasher: RandomState::new(), since: Moment::default(), banned: HashSet::new() }
    }

    /// Asks for one ban of `user` (compared without regard to ASCII case).
    fn permit(&mut self, user: &[u8], now: Moment) -> Permit {
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
            return Permit::Withheld(Restraint::MaxBans);
        }
        self.banned.insert(user);
        Permit::Granted
    }
}

/// Counts the bans of each user's sources in the running minute, so that one account at many
/// sources does not fill the set.
///
/// Bounded: beyond [`USERS_COUNTED`] users in a minute, further ones are not counted, which the
/// other brake does anyway.
#[derive(Debug)]
struct UserBrake {
    most: u32,
    hasher: RandomState,
    since: Moment,
    bans: HashMap<u64, u32>,
}

/// Users whose bans are counted in a minute.
const USERS_COUNTED: usize = 65_536;

impl UserBrake {
    /// At most `most` bans a minute for one user's sources; 0 is no bound.
    fn new(most: u32) -> Self {
        Self { most, hasher: RandomState::new(), since: Moment::default(), bans: HashMap::new() }
    }

    /// Asks for one ban of `user` (compared without regard to ASCII case).
    fn permit(&mut self, user: &[u8], now: Moment) -> Permit {
        if self.most == 0 {
            return Permit::Granted;
        }
        if now.saturating_since(self.since) >= SPAN {
            self.since = now;
            self.bans.clear();
        }
        let user = self.hasher.hash_one(user.to_ascii_lowercase());
        if self.bans.len() >= USERS_COUNTED && !self.bans.contains_key(&user) {
            return Permit::Granted;
        }
        let bans = self.bans.entry(user).or_default();
        if *bans >= self.most {
            return Permit::Withheld(Restraint::UserBans);
        }
        *bans += 1;
        Permit::Granted
    }
}

/// Both brakes, one behind the other, with how often each of them held.
#[derive(Debug)]
pub struct Brakes {
    users: UserBrake,
    bans: BanBrake,
    /// Bans withheld because the user had as many already.
    pub user_bans_withheld: u64,
    /// Bans withheld because as many users had been banned.
    pub max_bans_withheld: u64,
}

impl Brakes {
    /// At most `user_bans` bans a minute for one user, and `max_bans` users; 0 is no bound.
    #[must_use]
    pub fn new(user_bans: u32, max_bans: u32) -> Self {
        Self {
            users: UserBrake::new(user_bans),
            bans: BanBrake::new(max_bans),
            user_bans_withheld: 0,
            max_bans_withheld: 0,
        }
    }

    /// Takes other bounds, and begins the minute anew where they differ.
    pub fn set_bounds(&mut self, user_bans: u32, max_bans: u32) {
        if self.users.most != user_bans {
            self.users = UserBrake::new(user_bans);
        }
        if self.bans.most != max_bans {
            self.bans = BanBrake::new(max_bans);
        }
    }

    /// Asks for one ban of `user`. Where his own bound is reached, it does not count towards the
    /// bound of all.
    pub fn permit(&mut self, user: &[u8], now: Moment) -> Permit {
        match self.users.permit(user, now) {
            Permit::Granted => {}
            withheld @ Permit::Withheld(_) => {
                self.user_bans_withheld += 1;
                return withheld;
            }
        }
        let permit = self.bans.permit(user, now);
        self.max_bans_withheld += u64::from(permit != Permit::Granted);
        permit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENOUGH: Permit = Permit::Withheld(Restraint::MaxBans);

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn the_bound_counts_distinct_users_in_a_minute() {
        let mut brake = BanBrake::new(2);
        assert_eq!(brake.permit(b"alice", at(100)), Permit::Granted);
        assert_eq!(brake.permit(b"ALICE", at(101)), Permit::Granted);
        assert_eq!(brake.permit(b"bob", at(102)), Permit::Granted);
        assert_eq!(brake.permit(b"carol", at(103)), ENOUGH);
        assert_eq!(brake.permit(b"alice", at(104)), Permit::Granted);
        assert_eq!(brake.permit(b"carol", at(160)), Permit::Granted);
    }

    #[test]
    fn zero_is_no_bound() {
        let mut brakes = Brakes::new(0, 0);
        for user in 0..10_000u32 {
            assert_eq!(brakes.permit(&user.to_ne_bytes(), at(1)), Permit::Granted);
            assert_eq!(brakes.permit(b"alice", at(1)), Permit::Granted);
        }
    }

    #[test]
    fn a_user_at_many_sources_reaches_his_own_bound_and_nobody_elses() {
        let mut brakes = Brakes::new(3, 2);
        for second in 0..3 {
            assert_eq!(brakes.permit(b"alice", at(second)), Permit::Granted);
        }
        let withheld = Permit::Withheld(Restraint::UserBans);
        assert_eq!(brakes.permit(b"Alice", at(3)), withheld);
        assert_eq!(brakes.permit(b"bob", at(4)), Permit::Granted);
        assert_eq!(brakes.permit(b"carol", at(5)), ENOUGH);
        assert_eq!((brakes.user_bans_withheld, brakes.max_bans_withheld), (1, 1));
        assert_eq!(brakes.permit(b"alice", at(60)), Permit::Granted, "a minute later");
    }

    #[test]
    fn no_more_users_are_counted_than_there_is_room_for() {
        let mut brake = UserBrake::new(1);
        for user in 0..2 * u32::try_from(USERS_COUNTED).unwrap() {
            let _ = brake.permit(&user.to_ne_bytes(), at(1));
        }
        assert_eq!(brake.bans.len(), USERS_COUNTED);
    }
}
