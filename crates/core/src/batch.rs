//! A few sightings at a time, so that their users are fetched from memory together.
//!
//! Takes sightings as they are parsed; gives the verdicts on them in the same order. On a log of
//! many users most of the time goes into waiting for memory, a user's entry lying somewhere else
//! for every line. Looking all users of a batch up first lets the processor wait for them side by
//! side. What is decided, and in which order, does not depend on it.

use std::{iter, ops::Range};

use crate::{
    moment::Moment,
    roster::Roster,
    sighting::{Peer, Sighting, Transport},
    verdict::{Evidence, Verdict},
};

/// Sightings held at once: beyond that the processor has no more reads in flight.
const CAPACITY: usize = 32;

/// Sightings that wait for their verdicts. Bounded by [`Batch::is_full`], which the caller heeds.
#[derive(Debug, Default)]
pub struct Batch {
    /// The users' names and the inbounds' tags, one after the other; kept for its memory.
    text: Vec<u8>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    user: Range<usize>,
    inbound: Option<Range<usize>>,
    peer: Peer,
    transport: Transport,
    now: Moment,
}

impl Batch {
    /// Adds a sighting that was read at `now`.
    pub fn push(&mut self, sighting: &Sighting<'_>, now: Moment) {
        let user = self.keep(sighting.user);
        let inbound = sighting.inbound.map(|tag| self.keep(tag));
        let (peer, transport) = (sighting.peer, sighting.transport);
        self.waiting.push(Waiting { user, inbound, peer, transport, now });
    }

    /// It is time to [decide](Self::decide).
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= CAPACITY
    }

    /// Takes every sighting to the roster, in order, and hands each verdict to `on_verdict`. The
    /// batch is empty afterwards.
    pub fn decide(
        &mut self,
        roster: &mut Roster,
        evidence: Evidence,
        mut on_verdict: impl FnMut(Verdict),
    ) {
        // A single sighting has nobody to wait beside.
        let mut places = [None; CAPACITY];
        if self.waiting.len() > 1 {
            for (place, waiting) in places.iter_mut().zip(&self.waiting) {
                *place = roster.likely_place(self.text(&waiting.user));
            }
            places.iter().flatten().for_each(|place| roster.fetch(*place));
        }
        let places = places.into_iter().chain(iter::repeat(None));
        for (waiting, place) in self.waiting.iter().zip(places) {
            let sighting = Sighting {
                user: self.text(&waiting.user),
                peer: waiting.peer,
                transport: waiting.transport,
                inbound: waiting.inbound.as_ref().map(|range| self.text(range)),
            };
            on_verdict(roster.observe_at(place, &sighting, evidence, waiting.now));
        }
        self.waiting.clear();
        self.text.clear();
    }

    fn keep(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.text.len();
        self.text.extend_from_slice(bytes);
        start..self.text.len()
    }

    fn text(&self, range: &Range<usize>) -> &[u8] {
        self.text.get(range.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Policy,
        access::parse,
        synthetic::{LINE_INTERVAL_NANOS, Shape, SyntheticLog},
    };

    #[test]
    fn a_batch_decides_as_its_sightings_would_one_by_one() {
        let mut text = Vec::new();
        let mut log = SyntheticLog::new(Shape { lines: 20_000, users: 300, sharers: 9 });
        while log.append_line(&mut text) {}
        // Names that need folding are not found in advance.
        let text = String::from_utf8(text).unwrap().replace("email: user1", "email: User1");

        let (mut one_by_one, mut together) =
            (Roster::new(Policy::default()), Roster::new(Policy::default()));
        let (mut expected, mut given) = (Vec::new(), Vec::new());
        let mut batch = Batch::default();
        for (number, line) in (0u64..).zip(text.lines()) {
            let Ok(sighting) = parse(line.as_bytes()) else { continue };
            let now = Moment::from_nanos(number * LINE_INTERVAL_NANOS);
            expected.push(one_by_one.observe(&sighting, Evidence::Log, now));
            batch.push(&sighting, now);
            if batch.is_full() {
                batch.decide(&mut together, Evidence::Log, |verdict| given.push(verdict));
            }
        }
        batch.decide(&mut together, Evidence::Log, |verdict| given.push(verdict));
        assert!(expected.iter().any(|verdict| matches!(verdict, Verdict::Evict(_))));
        assert!(expected == given, "the verdicts differ");
    }
}
