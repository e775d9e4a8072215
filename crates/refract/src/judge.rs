//! Lines of the log in, evictions out.
//!
//! Joins the pure stages: the grammar, the transports enforced on, the exemptions, the roster. It
//! collects the evictions of one read, so that all of its offenders are banned together, and counts
//! what became of every line. It does no I/O and knows no kernel.

use refract_core::{
    Batch, Eviction, Evidence, Exemptions, Moment, Roster, Transport, Verdict, access::parse,
};

use crate::{cli::Protocols, health::Counters};

/// The decision stages with their state.
#[derive(Debug)]
pub struct Judge {
    roster: Roster,
    batch: Batch,
    /// Who may never be banned.
    pub exemptions: Exemptions,
    protocols: Protocols,
    /// What became of the lines.
    pub counters: Counters,
    /// The evictions of the read in hand.
    pub evictions: Vec<Eviction>,
}

impl Judge {
    /// A judge with an empty roster.
    #[must_use]
    pub fn new(roster: Roster, exemptions: Exemptions, protocols: Protocols) -> Self {
        Self {
            roster,
            batch: Batch::default(),
            exemptions,
            protocols,
            counters: Counters::default(),
            evictions: Vec::new(),
        }
    }

    /// Takes one line, without its newline, that was read at `now`.
    pub fn take(&mut self, line: &[u8], now: Moment) {
        self.counters.lines += 1;
        let sighting = match parse(line) {
            Ok(sighting) => sighting,
            Err(rejection) => return self.counters.reject(rejection),
        };
        // A peer without a prefix may be either: mKCP, XHTTP/3 and Hysteria print UDP peers bare.
        let enforced = match sighting.transport {
            Transport::Tcp => self.protocols.tcp,
            Transport::Udp => self.protocols.udp,
            Transport::Unstated => true,
        };
        if !enforced {
            self.counters.other_transport += 1;
            return;
        }
        if let Some(exemption) = self.exemptions.reason(sighting.peer.address) {
            return self.counters.exempt(exemption);
        }
        self.counters.sightings += 1;
        self.batch.push(&sighting, now);
        if self.batch.is_full() {
            self.decide();
        }
    }

    /// Decides on what was taken; call it at the end of each read, before acting on the
    /// [`evictions`](Self::evictions).
    pub fn decide(&mut self) {
        let Self { roster, batch, evictions, counters, .. } = self;
        batch.decide(roster, Evidence::Log, |verdict| {
            if let Verdict::Evict(eviction) = verdict {
                counters.offenders += eviction.offenders.len() as u64;
                evictions.push(eviction);
            }
        });
    }

    /// Lets the roster forget, a little at a time; call it once a second.
    pub fn tick(&mut self, now: Moment) {
        self.roster.tick(now);
    }

    /// Users in the roster.
    #[must_use]
    pub fn users(&self) -> usize {
        self.roster.len()
    }
}

#[cfg(test)]
mod tests {
    use refract_core::Policy;

    use super::*;

    fn judge(tcp: bool, udp: bool) -> Judge {
        let exemptions = Exemptions::new(vec!["10.0.0.0/8".parse().unwrap()]);
        Judge::new(Roster::new(Policy::default()), exemptions, Protocols { tcp, udp })
    }

    fn line(peer: &str) -> String {
        format!("2026/11/23 09:44:06 from {peer} accepted tcp:h.example:443 [in -> out] email: a@b")
    }

    #[test]
    fn a_second_source_becomes_an_eviction_once_decided() {
        let mut judge = judge(true, false);
        for peer in ["198.51.100.1:1", "198.51.100.2:2"] {
            judge.take(line(peer).as_bytes(), Moment::default());
        }
        assert_eq!(judge.evictions.len(), 0, "the batch waits for its end");
        judge.decide();
        assert_eq!(judge.evictions.len(), 1);
        assert_eq!((judge.counters.sightings, judge.counters.offenders), (2, 1));
        assert_eq!(judge.users(), 1);
    }

    #[test]
    fn exempt_addresses_and_other_transports_are_counted_and_never_sighted() {
        let mut judge = judge(true, false);
        for peer in ["198.51.100.1:1", "10.0.0.1:2", "udp:198.51.100.3:3", "tcp:198.51.100.1:4"] {
            judge.take(line(peer).as_bytes(), Moment::default());
        }
        judge.take(b"nonsense", Moment::default());
        judge.decide();
        assert_eq!(judge.evictions.len(), 0);
        assert_eq!((judge.counters.lines, judge.counters.sightings), (5, 2));
        assert_eq!(judge.counters.reasons(), "no_timestamp=1 allow_list=1 other_transport=1");
    }
}
