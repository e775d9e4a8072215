//! Users who hide behind a header: lines with port 0 on an inbound where others show their ports.
//!
//! Takes inbounds and users; gives each such user once. It acts on nobody: such a line names no
//! connection, so there is nobody to act on.

use std::collections::HashSet;

/// Inbounds and users kept; further ones are not looked at.
const MOST: usize = 1_024;

/// Who shows and who hides.
#[derive(Debug, Default)]
pub struct Hiding {
    showing: HashSet<Box<[u8]>>,
    /// The inbound that was taken in last, told at once: there are few, and this is asked for every
    /// line.
    latest: Option<Box<[u8]>>,
    named: HashSet<Box<[u8]>>,
    news: Vec<Box<[u8]>>,
}

impl Hiding {
    /// A line on this inbound had a port.
    pub fn shows(&mut self, inbound: Option<&[u8]>) {
        let Some(inbound) = inbound else { return };
        if self.latest.as_deref() == Some(inbound) || self.showing.len() >= MOST {
            return;
        }
        if !self.showing.contains(inbound) {
            self.showing.insert(inbound.into());
            self.latest = Some(inbound.into());
        }
    }

    /// A line of this user on this inbound had none.
    pub fn hides(&mut self, user: &[u8], inbound: Option<&[u8]>) {
        let others_show = inbound.is_some_and(|inbound| self.showing.contains(inbound));
        if others_show && self.named.len() < MOST && !self.named.contains(user) {
            self.named.insert(user.into());
            self.news.push(user.into());
        }
    }

    /// Who was found hiding since the last time this was asked; each user once.
    pub fn news(&mut self) -> Vec<Box<[u8]>> {
        std::mem::take(&mut self.news)
    }

    /// How many users were found hiding.
    #[must_use]
    pub fn count(&self) -> usize {
        self.named.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hides_where_others_show_is_named_once() {
        let mut hiding = Hiding::default();
        hiding.hides(b"alice", Some(b"ws"));
        assert!(hiding.news().is_empty(), "nobody shows a port there");
        hiding.shows(Some(b"ws"));
        for _ in 0..3 {
            hiding.hides(b"alice", Some(b"ws"));
            hiding.hides(b"bob", None);
        }
        assert_eq!(hiding.news(), [Box::from(&b"alice"[..])]);
        assert!(hiding.news().is_empty());
        assert_eq!(hiding.count(), 1);
    }

    #[test]
    fn a_flood_of_names_is_not_kept() {
        let mut hiding = Hiding::default();
        hiding.shows(Some(b"ws"));
        for number in 0..10_000u32 {
            hiding.shows(Some(&number.to_be_bytes()));
            hiding.hides(&number.to_be_bytes(), Some(b"ws"));
        }
        assert_eq!((hiding.count(), hiding.showing.len()), (MOST, MOST));
    }
}
