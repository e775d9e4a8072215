//! A made-up kernel with an occupancy beside it: connections with counters, and a clock.
//!
//! Takes what clients do and what the log claims; does to its connections what verdicts say, and
//! gives the verdicts. It knows no rule.

use std::sync::Arc;

use crate::{
    accounts::{AccountTerms, Accounts, Places},
    brake::Brakes,
    link::{Found, Link, Sample},
    moment::Moment,
    occupancy::{Claim, Occupancy},
    policy::{Policy, Terms},
    sighting::{Peer, Sighting, Transport},
    verdict::Verdict,
};

/// A made-up kernel with an occupancy beside it: connections with counters, and a clock.
pub(super) struct House {
    pub(super) occupancy: Occupancy,
    pub(super) brakes: Brakes,
    pub(super) now: u64,
    pub(super) cookies: u64,
    pub(super) open: Vec<Open>,
    /// How much later than they are due counters are looked at, milliseconds.
    pub(super) late_by: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) link: Link,
    pub(super) sample: Sample,
}

pub(super) fn at(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

impl House {
    pub(super) fn new(terms: Terms) -> Self {
        let default = Places::Limited(terms.places);
        let accounts = AccountTerms { default, ..AccountTerms::default() };
        Self::with(terms, accounts)
    }

    pub(super) fn with(terms: Terms, accounts: AccountTerms) -> Self {
        let accounts = Arc::new(Accounts::new(accounts).unwrap());
        let mut house = Self {
            occupancy: Occupancy::new(Policy::new(terms).unwrap(), accounts),
            brakes: Brakes::new(10, 600),
            now: 0,
            cookies: 0,
            open: Vec::new(),
            late_by: 0,
        };
        house.occupancy.begin(at(0));
        house.now = 10_000;
        house
    }

    pub(super) fn peer(text: &str) -> Peer {
        let peer: std::net::SocketAddr = text.parse().unwrap();
        Peer { address: peer.ip(), port: peer.port() }
    }

    /// A client connects and sends its first bytes; no line yet.
    pub(super) fn connect(&mut self, peer: &str) -> Link {
        self.cookies += 1;
        let local = if peer.starts_with('[') { "[2001:db8::1]:443" } else { "203.0.113.1:443" };
        let link = Link {
            peer: Self::peer(peer),
            local: local.parse().unwrap(),
            interface: 0,
            cookie: self.cookies,
        };
        let sample = Sample {
            received: 500,
            acknowledged: 0,
            last_received: at(self.now),
            last_acknowledged: at(self.now),
        };
        self.open.push(Open { link, sample });
        link
    }

    /// The log claims that `user` opened a stream from `peer`.
    pub(super) fn line(&mut self, user: &str, peer: &str) -> Vec<Verdict> {
        self.claim(user, peer, false)
    }

    pub(super) fn claim(&mut self, user: &str, peer: &str, tainted: bool) -> Vec<Verdict> {
        let sighting = Sighting {
            user: user.as_bytes(),
            peer: Self::peer(peer),
            transport: Transport::Unstated,
            inbound: Some(b"vless"),
        };
        let mut verdicts = Vec::new();
        if self.occupancy.claim(&sighting, tainted) == Claim::LookUp {
            let found = self.found(sighting.peer);
            let now = at(self.now);
            match self.occupancy.confirm(&sighting, found.as_ref(), &mut self.brakes, now) {
                Verdict::Admit => {}
                verdict => verdicts.push(verdict),
            }
        }
        self.obey(&mut verdicts);
        verdicts
    }

    pub(super) fn found(&self, peer: Peer) -> Option<Found> {
        let open = self.open.iter().find(|open| open.link.peer == peer)?;
        Some(Found { link: open.link, sample: Some(open.sample) })
    }

    /// Connects and is logged.
    pub(super) fn open(&mut self, user: &str, peer: &str) -> Vec<Verdict> {
        self.connect(peer);
        self.line(user, peer)
    }

    /// The peers of all connections.
    pub(super) fn everything(&self) -> Vec<String> {
        self.open.iter().map(|open| open.link.peer.to_string()).collect()
    }

    pub(super) fn close(&mut self, peer: &str) {
        let peer = Self::peer(peer);
        if let Some(place) = self.open.iter().position(|open| open.link.peer == peer) {
            let open = self.open.remove(place);
            let now = at(self.now);
            self.occupancy.closed(peer, open.link.cookie, Some(open.sample), now);
        }
    }

    /// Lets `millis` pass; whoever is in `moving` downloads all the time.
    pub(super) fn pass(&mut self, millis: u64, moving: &[&str]) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        let moving: Vec<Peer> = moving.iter().map(|peer| Self::peer(peer)).collect();
        for _ in 0..millis / 100 {
            self.now += 100;
            let now = at(self.now + self.late_by);
            for open in self.open.iter_mut().filter(|open| moving.contains(&open.link.peer)) {
                open.sample.acknowledged += 1_000;
                open.sample.last_acknowledged = now;
            }
            if self.occupancy.due().is_some_and(|due| due <= now) {
                while let Some(link) = self.occupancy.probe(&mut self.brakes, now) {
                    let found = self.open.iter().find(|open| open.link == link);
                    let sample = found.map(|open| open.sample);
                    self.occupancy.probed(&link, sample, now);
                }
            }
            self.obey(&mut verdicts);
        }
        verdicts
    }

    /// Does to the made-up kernel what the verdicts say.
    pub(super) fn obey(&mut self, verdicts: &mut Vec<Verdict>) {
        verdicts.extend(self.occupancy.verdicts());
        let now = at(self.now);
        for verdict in verdicts.iter() {
            let links: Vec<Link> = match verdict {
                Verdict::Ask(question) => vec![question.link],
                Verdict::Evict(eviction) => {
                    eviction.offenders.iter().flat_map(|it| it.links.clone()).collect()
                }
                _ => Vec::new(),
            };
            for link in links {
                self.open.retain(|open| open.link != link);
                self.occupancy.closed(link.peer, link.cookie, None, now);
            }
        }
    }
}
