//! Keeps what is known of open connections true: closes as they come, and a count of all when news
//! were lost.
//!
//! Takes the kernel's close events and, from a thread of its own, walks of the socket table; tells
//! the judge's occupancy what is gone, finds local ends that no interface has, and counts connections
//! that move and that no line ever named. It judges nobody and destroys nothing.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use refract_core::{Exemptions, Moment, Occupancy, Peer, Source};
use refract_kernel::{
    close_events::{CloseEvents, Drained},
    sock_diag::Observed,
};
use tracing::{info, warn};

use crate::{
    clock::Clock,
    error::Error,
    ports::Ports,
    survey::{Findings, Request, Surveyor},
    witness::{Witness, address_of, peer_at, sample},
};

/// Least pause between two walks after news were lost, or where the kernel sends none.
const RESYNC_PAUSE: Duration = Duration::from_secs(5);
/// Pause between two walks that only look for connections that no line named.
const ROUTINE_PAUSE: Duration = Duration::from_secs(15);
/// Least pause between two searches for local ends.
const SEARCH_PAUSE: Duration = Duration::from_secs(1);
/// How long a connection has to move before it counts as one that no line named.
const UNNAMED_FOR: Duration = Duration::from_secs(10);
/// Unnamed connections kept in mind at once; further ones are not looked at.
const MOST_UNNAMED: usize = 65_536;
/// Sources that unnamed connections are counted for; further ones only add to the sum.
const MOST_SOURCES: usize = 1_024;
/// The operator is told of unnamed connections at most this often.
const TELL_PAUSE: Duration = Duration::from_mins(10);

/// The watch over open connections.
#[derive(Debug)]
pub struct Census {
    closes: Option<CloseEvents>,
    surveyor: Surveyor,
    /// News were lost, or never come.
    is_behind: bool,
    /// A walk is under way.
    walking: bool,
    walked: Option<Instant>,
    searched: Option<Instant>,
    searching: bool,
    unnamed: HashMap<u64, Unnamed>,
    by_source: HashMap<Source, u64>,
    told: Option<Instant>,
    told_of: u64,
    /// Connections that moved for long and that no line named.
    pub unnamed_total: u64,
    /// How often close events were lost.
    pub lost: u64,
    /// Connections that only a walk found gone.
    pub found_gone: u64,
    /// Walks of the whole table.
    pub walks: u64,
}

#[derive(Debug)]
struct Unnamed {
    since: Moment,
    bytes: u64,
    counted: bool,
    seen: u64,
}

impl Census {
    /// Subscribes to closes on `ports`, where the kernel sends them, and starts the walking thread.
    pub fn start(ports: &Ports) -> Result<Self, Error> {
        let closes = match CloseEvents::subscribe(ports.ranges()) {
            Ok(closes) => {
                if !closes.has_whole_buffer() {
                    info!(
                        bytes = closes.receive_buffer(),
                        "the kernel grants only a small buffer for closed connections: after a \
                         burst of them the table is walked instead"
                    );
                }
                Some(closes)
            }
            Err(error) => {
                warn!("{error}: closed connections are found by walking the table every 5 s");
                None
            }
        };
        Ok(Self {
            is_behind: closes.is_none(),
            closes,
            surveyor: Surveyor::start(ports.ranges().to_vec(), false)?,
            walking: false,
            walked: None,
            searched: None,
            searching: false,
            unnamed: HashMap::new(),
            by_source: HashMap::new(),
            told: None,
            told_of: 0,
            unnamed_total: 0,
            lost: 0,
            found_gone: 0,
            walks: 0,
        })
    }

    /// Becomes readable when connections were closed.
    #[must_use]
    pub fn closes_fd(&self) -> Option<BorrowedFd<'_>> {
        self.closes.as_ref().map(AsFd::as_fd)
    }

    /// Becomes readable when a walk or a search is over.
    #[must_use]
    pub fn walk_fd(&self) -> BorrowedFd<'_> {
        self.surveyor.as_fd()
    }

    /// Takes the closes that wait, a bounded number of them.
    pub fn take_closes(&mut self, occupancy: &mut Occupancy, clock: &Clock, now: Instant) {
        let Some(closes) = &mut self.closes else { return };
        let moment = clock.moment(now);
        let drained = closes.drain(|closed| {
            let last = closed.activity.as_ref().map(|activity| sample(activity, moment));
            occupancy.closed(peer_at(closed.remote), closed.cookie, last, moment);
        });
        match drained {
            Ok(Drained::Lost) => {
                self.lost += 1;
                self.is_behind = true;
            }
            Ok(_) => {}
            Err(error) => {
                warn!("{error}: closed connections are found by walking the table every 5 s");
                self.closes = None;
                self.is_behind = true;
            }
        }
    }

    /// Asks for a walk where one is due; call it once a second.
    pub fn tick(&mut self, now: Instant) {
        let pause = if self.is_behind { RESYNC_PAUSE } else { ROUTINE_PAUSE };
        let rested = |walked| now.saturating_duration_since(walked) >= pause;
        if self.walking || !self.walked.is_none_or(rested) {
            return;
        }
        self.walked = Some(now);
        self.walking = self.surveyor.request(Request { census: true, ..Request::default() });
        // What is lost from here on is not in that walk.
        self.is_behind = self.closes.is_none();
    }

    /// Whether a claim that was found nowhere will have a search: one is under way, or may begin,
    /// which is at most once a second.
    #[must_use]
    pub fn may_search(&self, now: Instant) -> bool {
        let rested = |searched| now.saturating_duration_since(searched) >= SEARCH_PAUSE;
        self.searching || self.searched.is_none_or(rested)
    }

    /// Searches for peers that were found at no local end.
    pub fn search(&mut self, peers: &[Peer], now: Instant) {
        if peers.is_empty() || self.searching || !self.may_search(now) {
            return;
        }
        self.searched = Some(now);
        let peers = peers.iter().copied().map(address_of).collect();
        self.searching = self.surveyor.request(Request { peers, ..Request::default() });
    }

    /// Takes what a walk or a search found; `true` when a search is over.
    pub fn take_findings(
        &mut self,
        occupancy: &mut Occupancy,
        witness: &mut Witness,
        exemptions: &Exemptions,
        clock: &Clock,
    ) -> bool {
        let mut searched = false;
        while let Some(findings) = self.surveyor.findings() {
            let Findings { census, peers, troubles, .. } = findings;
            let failed = !troubles.is_empty();
            for trouble in troubles {
                warn!("{trouble}");
            }
            if peers.is_some() {
                (searched, self.searching) = (true, false);
            }
            for observed in peers.iter().flatten() {
                let connection = &observed.connection;
                witness.learn(connection.local(), connection.interface());
            }
            if let Some((begun, all)) = census {
                self.walking = false;
                self.walks += 1;
                let begun = clock.moment(begun);
                self.compare(&all, occupancy, begun);
                self.count_unnamed(&all, occupancy, exemptions, begun);
            } else if peers.is_none() {
                // The walk was interrupted: what it was to make up for still is.
                self.walking = false;
                self.is_behind |= !failed;
            }
        }
        searched
    }

    /// Drops what is not there any more. What was opened since the walk began cannot be in it.
    fn compare(&mut self, all: &[Observed], occupancy: &mut Occupancy, begun: Moment) {
        let there: HashSet<u64> = all.iter().map(|it| it.connection.cookie()).collect();
        for link in occupancy.links_before(begun) {
            if !there.contains(&link.cookie) {
                self.found_gone += 1;
                occupancy.closed(link.peer, link.cookie, None, begun);
            }
        }
    }

    fn count_unnamed(
        &mut self,
        all: &[Observed],
        occupancy: &Occupancy,
        exemptions: &Exemptions,
        begun: Moment,
    ) {
        let walk = self.walks;
        for observed in all {
            let connection = &observed.connection;
            let (peer, cookie) = (peer_at(connection.remote()), connection.cookie());
            if occupancy.is_known(peer, cookie) || exemptions.reason(peer.address).is_some() {
                continue;
            }
            let Some(activity) = &observed.activity else { continue };
            let bytes = activity.received.saturating_add(activity.acknowledged);
            if self.unnamed.len() >= MOST_UNNAMED && !self.unnamed.contains_key(&cookie) {
                continue;
            }
            let unnamed = self.unnamed.entry(cookie).or_insert(Unnamed {
                since: begun,
                bytes,
                counted: false,
                seen: walk,
            });
            unnamed.seen = walk;
            if bytes == unnamed.bytes {
                // It stood still: what it does from here on is another matter.
                unnamed.since = begun;
                continue;
            }
            unnamed.bytes = bytes;
            if !unnamed.counted && begun.saturating_since(unnamed.since) >= UNNAMED_FOR {
                unnamed.counted = true;
                self.unnamed_total += 1;
                let source = occupancy.policy().source(peer.address);
                if self.by_source.len() < MOST_SOURCES || self.by_source.contains_key(&source) {
                    *self.by_source.entry(source).or_default() += 1;
                }
            }
        }
        self.unnamed.retain(|_, unnamed| unnamed.seen == walk);
    }

    /// The source with the most connections that no line named, and how many it has.
    #[must_use]
    pub fn most_unnamed(&self) -> Option<(Source, u64)> {
        let most = self.by_source.iter().max_by_key(|(source, count)| (**count, **source));
        most.map(|(source, count)| (*source, *count))
    }

    /// Tells the operator when connections are going unnamed.
    pub fn tell(&mut self, now: Instant) {
        let rested = |told| now.saturating_duration_since(told) >= TELL_PAUSE;
        if self.unnamed_total == self.told_of || !self.told.is_none_or(rested) {
            return;
        }
        self.told = Some(now);
        let new = self.unnamed_total - self.told_of;
        self.told_of = self.unnamed_total;
        let most = self.most_unnamed().map(|(source, _)| source.to_string()).unwrap_or_default();
        warn!(
            connections = new,
            sources = self.by_source.len(),
            most,
            "connections on a protected port moved data for more than 10 s and no line named a \
             user for them: the log is losing lines, or these users have no email"
        );
    }
}
