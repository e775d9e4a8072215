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
