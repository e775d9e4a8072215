//! Notices when everybody is at one address: what is in front of Xray there hides the clients.
//!
//! Takes the sightings of a stretch of the log; says how many of them were at the address of the
//! first one, and how many users that were. Where nearly all of them are, the address of that first
//! one is the right one to look at, so no other is kept. It judges nobody.

use std::net::IpAddr;

/// Users told apart at most: every line may be compared with each.
const MOST_USERS: usize = 64;

/// Who was seen at the address of a stretch's first sighting.
#[derive(Debug, Default)]
pub struct Crowd {
    address: Option<IpAddr>,
    sightings: u64,
    users: Vec<Box<[u8]>>,
}

impl Crowd {
    /// A sighting of `user` at `address`.
    pub fn note(&mut self, address: IpAddr, user: &[u8]) {
        if *self.address.get_or_insert(address) != address {
            return;
        }
        self.sightings += 1;
        if self.users.len() < MOST_USERS && self.users.iter().all(|known| **known != *user) {
            self.users.push(user.into());
        }
    }

    /// The address, if at least `share` percent of `sightings` were there, and by so many users that
    /// it is a proxy.
    #[must_use]
    pub fn front(&self, sightings: u64, share: u64, proxy_users: usize) -> Option<IpAddr> {
        let nearly_all = self.sightings.saturating_mul(100) >= sightings.saturating_mul(share);
        let many = self.users.len() >= proxy_users.min(MOST_USERS);
        self.address.filter(|_| nearly_all && many)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const FRONT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 20));
    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 11));

    #[test]
    fn an_address_that_nearly_all_lines_and_many_users_are_at_is_a_front() {
        let mut crowd = Crowd::default();
        for number in 0..100u32 {
            crowd.note(if number % 10 == 9 { HOME } else { FRONT }, &(number % 8).to_be_bytes());
        }
        assert_eq!(crowd.front(100, 90, 8), Some(FRONT));
        assert_eq!(crowd.front(101, 90, 8), None, "one line too few");
        assert_eq!(crowd.front(100, 90, 9), None, "one user too few");
    }

    #[test]
    fn one_users_many_lines_are_no_crowd_and_names_are_not_kept_without_end() {
        let mut crowd = Crowd::default();
        (0..100).for_each(|_| crowd.note(FRONT, b"alice"));
        assert_eq!(crowd.front(100, 90, 2), None);
        (0..1_000u32).for_each(|number| crowd.note(FRONT, &number.to_be_bytes()));
        assert_eq!(crowd.users.len(), MOST_USERS);
        assert_eq!(crowd.front(1_100, 90, 10_000), Some(FRONT));
    }

    #[test]
    fn before_the_first_sighting_there_is_nobody() {
        assert_eq!(Crowd::default().front(0, 90, 2), None);
    }
}
