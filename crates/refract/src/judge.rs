//! Lines of the log in, verdicts out.
//!
//! Joins the pure stages: the grammar, the taint, the transports enforced on, the exemptions, and
//! then the roster where the log's word has to do, or the occupancy where the kernel can be asked.
//! It collects the verdicts of one read, so that all of its offenders are banned together, and counts
//! what became of every line. It does no I/O: whoever calls it asks the kernel, through a closure.

use std::sync::Arc;

use refract_core::{
    Accounts, Batch, Brakes, Claim, Counters as RosterCounters, Eviction, Evidence, Exemptions,
    Found, Ground, Measure, Moment, Network, Occupancy, Peer, Policy, Rejection, Restraint, Roster,
    Sighting, Taint, Transport, Verdict,
    access::{hidden_sighting, parse, refused_peer},
    line::Line,
};

use crate::{
    cli::Protocols,
    crowd::Crowd,
    health::{Claims, Counters},
    hiding::Hiding,
};

/// Claims kept for one more look, when no local end was the right one; further ones are not kept.
const MOST_MISSED: usize = 32;

/// A claim whose peer was not found at any local end that was tried.
#[derive(Clone, Debug)]
pub struct Missed {
    /// The peer.
    pub peer: Peer,
    user: Box<[u8]>,
    transport: Transport,
    inbound: Option<Box<[u8]>>,
}

/// Verdicts that would have been bans, were it not for who else is at the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spared {
    /// Somebody else was seen there.
    pub shared_source: u64,
    /// Nobody can say whether somebody was.
    pub unknown_neighbours: u64,
    /// So many are there that it is a proxy.
    pub proxy: u64,
}

/// Asks the kernel for the connection of a peer.
pub type LookUp<'a> = &'a mut dyn FnMut(Peer) -> Option<Found>;

/// The decision stages with their state.
#[derive(Debug)]
pub struct Judge {
    roster: Roster,
    batch: Batch,
    /// Who is at work from where, by the kernel's evidence.
    pub occupancy: Occupancy,
    /// Which lines may be a client's own words.
    pub taint: Taint,
    /// What TCP verdicts rest on.
    pub grade: Evidence,
    /// How many bans there may be.
    pub brakes: Brakes,
    /// Whose addresses come from headers.
    pub hiding: Hiding,
    /// Who is at one address.
    pub crowd: Crowd,
    /// Who may never be banned.
    pub exemptions: Exemptions,
    protocols: Protocols,
    /// What became of the lines.
    pub counters: Counters,
    /// Whom his neighbours kept from a ban.
    pub spared: Spared,
    /// The verdicts of the read in hand.
    pub verdicts: Vec<Verdict>,
    /// A wider search is possible: claims that were found nowhere are kept for it. Otherwise they
    /// cost no memory, however many come.
    pub may_search: bool,
    missed: Vec<Missed>,
}

impl Judge {
    /// A judge who knows nobody yet.
    #[must_use]
    pub fn new(
        policy: Policy,
        accounts: Arc<Accounts>,
        brakes: Brakes,
        exemptions: Exemptions,
        protocols: Protocols,
    ) -> Self {
        Self {
            roster: Roster::with_accounts(policy, Arc::clone(&accounts)),
            batch: Batch::default(),
            occupancy: Occupancy::new(policy, accounts),
            taint: Taint::default(),
            grade: Evidence::Log,
            brakes,
            hiding: Hiding::default(),
            crowd: Crowd::default(),
            exemptions,
            protocols,
            counters: Counters::default(),
            spared: Spared::default(),
            verdicts: Vec::new(),
            may_search: false,
            missed: Vec::new(),
        }
    }

    /// Lives by other rules from now on.
    pub fn set_rules(&mut self, policy: Policy, accounts: Arc<Accounts>) {
        self.roster.set_rules(policy, Arc::clone(&accounts));
        self.occupancy.set_rules(policy, accounts);
    }

    /// Replaces the operator's allow list. Who is on it now holds no place any more.
    pub fn set_allowed(&mut self, allowed: Vec<Network>) {
        if self.exemptions.set_allowed(allowed) {
            self.spare_exempt();
        }
    }

    /// Lets go of everybody at an address that is exempt by now.
    pub fn spare_exempt(&mut self) {
        let Self { roster, occupancy, exemptions, .. } = self;
        let is_exempt = |peer: &Peer| exemptions.reason(peer.address).is_some();
        roster.spare(is_exempt);
        occupancy.spare(is_exempt);
        self.missed.retain(|missed| !is_exempt(&missed.peer));
    }

    /// Takes what was read at `now`: a line, or that one was skipped.
    pub fn read(&mut self, line: Line<'_>, now: Moment, look_up: LookUp<'_>) {
        match line {
            Line::Whole(line) => self.take(line, now, look_up),
            Line::Skipped => self.taint.interrupt(),
        }
    }

    /// The same from before the start, see [`take_back`](Self::take_back).
    pub fn read_back(&mut self, line: Line<'_>, moment: Moment) -> Option<Missed> {
        match line {
            Line::Whole(line) => self.take_back(line, moment),
            Line::Skipped => {
                self.taint.interrupt();
                None
            }
        }
    }

    /// Takes one line, without its newline, that was read at `now`.
    pub fn take(&mut self, line: &[u8], now: Moment, look_up: LookUp<'_>) {
        self.counters.lines += 1;
        let parsed = parse(line);
        let tainted = self.taint.follow(line, parsed.err());
        let sighting = match parsed {
            Ok(sighting) => sighting,
            Err(rejection) => return self.reject(line, rejection, tainted, now, look_up),
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
        if !tainted {
            self.hiding.shows(sighting.inbound);
            self.crowd.note(sighting.peer.address, sighting.user);
        }
        if self.grade == Evidence::Log || sighting.transport == Transport::Udp {
            self.batch.push(&sighting, now);
            if self.batch.is_full() {
                self.decide();
            }
        } else if self.occupancy.claim(&sighting, tainted) == Claim::LookUp
            && !self.confirm(&sighting, now, look_up)
            && self.may_search
            && self.missed.len() < MOST_MISSED
        {
            self.missed.push(Missed::of(&sighting));
        }
    }

    /// Takes a line from before the start: it only gives open connections their owners. The peer of
    /// a claim for a connection that was not in the table is handed back.
    pub fn take_back(&mut self, line: &[u8], moment: Moment) -> Option<Missed> {
        let parsed = parse(line);
        let tainted = self.taint.follow(line, parsed.err());
        let sighting = match parsed {
            Ok(sighting) => sighting,
            Err(Rejection::Refused) => {
                if !tainted {
                    self.occupancy.refuse_known(refused_peer(line)?);
                }
                return None;
            }
            Err(_) => return None,
        };
        let of_tcp = sighting.transport != Transport::Udp && self.protocols.tcp;
        if !of_tcp || self.exemptions.reason(sighting.peer.address).is_some() {
            return None;
        }
        if self.occupancy.adopt(&sighting, tainted, moment) || tainted {
            return None;
        }
        Some(Missed::of(&sighting))
    }

    /// Adopts a connection that was opened between the look at the table and the log's last line.
    pub fn adopt_missed(&mut self, missed: &Missed, found: &Found, moment: Moment) {
        // Many lines may name it: the first makes it known, and only that.
        if !self.occupancy.is_known(missed.peer, found.link.cookie) {
            self.occupancy.older(found, moment);
        }
        self.occupancy.adopt(&missed.sighting(), false, moment);
    }

    /// Decides on what was taken; call it at the end of each read, before acting on the
    /// [`verdicts`](Self::verdicts).
    pub fn decide(&mut self) {
        let Self { roster, batch, verdicts, .. } = self;
        batch.decide(roster, Evidence::Log, |verdict| match verdict {
            Verdict::Admit => {}
            verdict => verdicts.push(verdict),
        });
        self.verdicts.extend(self.occupancy.verdicts());
    }

    /// Takes the evictions out of the verdicts of the read in hand.
    pub fn evictions(&mut self) -> Vec<Eviction> {
        let mut evictions = Vec::new();
        self.verdicts = std::mem::take(&mut self.verdicts)
            .into_iter()
            .filter_map(|verdict| match verdict {
                Verdict::Evict(eviction) => {
                    self.counters.offenders += eviction.offenders.len() as u64;
                    // A reset on sight follows from a verdict that was counted.
                    if eviction.ground != Ground::OnSight {
                        eviction.offenders.iter().for_each(|it| self.spared.count(it.measure));
                    }
                    evictions.push(eviction);
                    None
                }
                verdict => Some(verdict),
            })
            .collect();
        evictions
    }

    /// The peers that are worth a wider search.
    #[must_use]
    pub fn missed(&self) -> Vec<Peer> {
        self.missed.iter().map(|missed| missed.peer).collect()
    }

    /// A wider search is over: looks again, now that more local ends are known.
    pub fn look_again(&mut self, now: Moment, look_up: LookUp<'_>) {
        for missed in std::mem::take(&mut self.missed) {
            let sighting = missed.sighting();
            if self.occupancy.claim(&sighting, false) == Claim::LookUp
                && let Some(found) = look_up(missed.peer)
            {
                self.confirmed(&sighting, &found, now);
            }
        }
    }

    /// Goes through as many as `most` looks at counters that are due at `now`.
    pub fn probe(
        &mut self,
        most: usize,
        now: Moment,
        mut sample: impl FnMut(&refract_core::Link) -> Option<Found>,
    ) {
        for _ in 0..most {
            let Some(link) = self.occupancy.probe(&mut self.brakes, now) else { break };
            match sample(&link) {
                Some(found) => {
                    if let Some(counters) = found.sample {
                        self.occupancy.probed(&link, Some(counters), now);
                    }
                }
                None => self.occupancy.probed(&link, None, now),
            }
        }
    }

    /// Lets both grades forget, a little at a time; call it once a second.
    pub fn tick(&mut self, now: Moment) {
        self.roster.tick(now);
        self.occupancy.tick(now);
    }

    /// Users that either grade knows.
    #[must_use]
    pub fn users(&self) -> usize {
        self.roster.len().max(self.occupancy.sizes().0)
    }

    /// What the memory of the log's word had to let go of.
    #[must_use]
    pub fn roster_counters(&self) -> RosterCounters {
        self.roster.counters()
    }

    /// What became of the claims so far.
    #[must_use]
    pub fn claims(&self) -> Claims {
        let it = self.occupancy.counters();
        let others = [it.known, it.verified, it.refused, it.older, it.carriers];
        Claims {
            all: others.iter().sum::<u64>() + it.unverified + it.tainted,
            unverified: it.unverified,
            tainted: it.tainted,
        }
    }

    fn reject(
        &mut self,
        line: &[u8],
        rejection: Rejection,
        tainted: bool,
        now: Moment,
        look_up: LookUp<'_>,
    ) {
        self.counters.reject(rejection);
        match rejection {
            Rejection::Refused if self.grade == Evidence::Kernel && !tainted => {
                if let Some(peer) = refused_peer(line)
                    && self.exemptions.reason(peer.address).is_none()
                    && !self.occupancy.knows_as_refused(peer)
                    && let Some(found) = look_up(peer)
                {
                    self.occupancy.refuse(&found, now);
                }
            }
            Rejection::PortZero if !tainted => {
                if let Some(Sighting { user, inbound, .. }) = hidden_sighting(line) {
                    self.hiding.hides(user, inbound);
                }
            }
            _ => {}
        }
    }

    fn confirm(&mut self, sighting: &Sighting<'_>, now: Moment, look_up: LookUp<'_>) -> bool {
        if let Some(found) = look_up(sighting.peer) {
            self.confirmed(sighting, &found, now);
            return true;
        }
        // Nothing follows from a claim for a connection that there is not, but that it is counted.
        let _ = self.occupancy.confirm(sighting, None, &mut self.brakes, now);
        false
    }

    fn confirmed(&mut self, sighting: &Sighting<'_>, found: &Found, now: Moment) {
        let mut verdict = self.occupancy.confirm(sighting, Some(found), &mut self.brakes, now);
        let address = found.link.peer.address;
        let source = self.occupancy.policy().source(address);
        if verdict == Verdict::Admit && self.exemptions.may_go_round_a_ban(source, address) {
            verdict = self.occupancy.go_round_a_ban(found, &mut self.brakes, now);
        }
        match verdict {
            Verdict::Admit => {}
            verdict => {
                // What fell before comes first: a reset on sight follows from it.
                self.verdicts.extend(self.occupancy.verdicts());
                self.verdicts.push(verdict);
            }
        }
    }
}

impl Spared {
    fn count(&mut self, measure: Measure) {
        match measure {
            Measure::Kill(Restraint::SharedSource) => self.shared_source += 1,
            Measure::Kill(Restraint::UnknownNeighbours) => self.unknown_neighbours += 1,
            Measure::Kill(Restraint::Proxy) => self.proxy += 1,
            Measure::Kill(_) | Measure::Ban => {}
        }
    }
}

impl Missed {
    fn of(sighting: &Sighting<'_>) -> Self {
        Self {
            peer: sighting.peer,
            user: sighting.user.into(),
            transport: sighting.transport,
            inbound: sighting.inbound.map(Box::from),
        }
    }

    fn sighting(&self) -> Sighting<'_> {
        Sighting {
            user: &self.user,
            peer: self.peer,
            transport: self.transport,
            inbound: self.inbound.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use refract_core::{Link, Sample};

    use super::*;

    fn judge(tcp: bool, udp: bool) -> Judge {
        let exemptions = Exemptions::new(vec!["10.0.0.0/8".parse().unwrap()]);
        let (policy, accounts) = (Policy::default(), Arc::new(Accounts::default()));
        let protocols = Protocols { tcp, udp };
        Judge::new(policy, accounts, Brakes::new(10, 600), exemptions, protocols)
    }

    fn line(peer: &str) -> String {
        format!("2026/11/23 09:44:06 from {peer} accepted tcp:h.example:443 [in -> out] email: a@b")
    }

    fn peer(text: &str) -> Peer {
        let peer: std::net::SocketAddr = text.parse().unwrap();
        Peer { address: peer.ip(), port: peer.port() }
    }

    fn nobody(_: Peer) -> Option<Found> {
        None
    }

    #[test]
    fn a_second_source_becomes_an_eviction_once_decided() {
        let mut judge = judge(true, false);
        for peer in ["198.51.100.1:1", "198.51.100.2:2"] {
            judge.take(line(peer).as_bytes(), Moment::default(), &mut nobody);
        }
        assert_eq!(judge.verdicts.len(), 0, "the batch waits for its end");
        judge.decide();
        assert_eq!(judge.evictions().len(), 1);
        assert_eq!((judge.counters.sightings, judge.counters.offenders), (2, 1));
        assert_eq!(judge.users(), 1);
    }

    #[test]
    fn whom_neighbours_keep_from_a_ban_is_counted_by_the_reason() {
        let mut judge = judge(true, false);
        let see = |judge: &mut Judge, user: &str, peer: &str| {
            let line = line(peer).replace("a@b", user);
            judge.take(line.as_bytes(), Moment::default(), &mut nobody);
            judge.decide();
            judge.evictions().len()
        };
        assert_eq!(see(&mut judge, "a", "198.51.100.1:1"), 0);
        assert_eq!(see(&mut judge, "a", "198.51.100.2:1"), 1, "a ban");
        assert_eq!(judge.spared, Spared::default());
        assert_eq!(see(&mut judge, "b", "198.51.100.3:1"), 0);
        assert_eq!(see(&mut judge, "a", "198.51.100.3:2"), 1);
        assert_eq!(judge.spared, Spared { shared_source: 1, ..Spared::default() });
        for restraint in [Restraint::UnknownNeighbours, Restraint::Proxy, Restraint::ByOrder] {
            judge.spared.count(Measure::Kill(restraint));
        }
        assert_eq!(judge.spared, Spared { shared_source: 1, unknown_neighbours: 1, proxy: 1 });
    }

    #[test]
    fn exempt_addresses_and_other_transports_are_counted_and_never_sighted() {
        let mut judge = judge(true, false);
        for peer in ["198.51.100.1:1", "10.0.0.1:2", "udp:198.51.100.3:3", "tcp:198.51.100.1:4"] {
            judge.take(line(peer).as_bytes(), Moment::default(), &mut nobody);
        }
        judge.take(b"nonsense", Moment::default(), &mut nobody);
        judge.decide();
        assert_eq!(judge.verdicts.len(), 0);
        assert_eq!((judge.counters.lines, judge.counters.sightings), (5, 2));
        assert_eq!(judge.counters.reasons(), "no_timestamp=1 allow_list=1 other_transport=1");
    }

    #[test]
    fn who_is_allowed_by_now_holds_no_place_on_either_evidence() {
        for grade in [Evidence::Log, Evidence::Kernel] {
            let mut judge = judge(true, false);
            judge.grade = grade;
            let mut look_up = |peer: Peer| {
                let local = "203.0.113.1:443".parse().unwrap();
                let link = Link { peer, local, interface: 0, cookie: u64::from(peer.port) };
                Some(Found { link, sample: Some(Sample::default()) })
            };
            let mut take = |judge: &mut Judge, peer: &str| {
                judge.take(line(peer).as_bytes(), Moment::default(), &mut look_up);
                judge.decide();
                judge.evictions().len()
            };
            assert_eq!(take(&mut judge, "198.51.100.1:1"), 0);
            assert_eq!(judge.users(), 1);
            judge.set_allowed(vec!["198.51.100.1/32".parse().unwrap()]);
            assert_eq!((judge.users(), judge.occupancy.owned()), (0, 0));
            assert_eq!(take(&mut judge, "198.51.100.1:1"), 0);
            assert_eq!(take(&mut judge, "198.51.100.2:2"), 0, "nobody else is counted");
            assert_eq!(judge.users(), 1);
        }
    }

    #[test]
    fn on_the_kernels_evidence_each_connection_is_looked_up_once() {
        let mut judge = judge(true, false);
        judge.grade = Evidence::Kernel;
        let mut lookups = 0;
        let mut look_up = |peer: Peer| {
            lookups += 1;
            let link =
                Link { peer, local: "203.0.113.1:443".parse().unwrap(), interface: 0, cookie: 7 };
            Some(Found { link, sample: Some(Sample::default()) })
        };
        for _ in 0..100 {
            judge.take(line("198.51.100.1:1").as_bytes(), Moment::default(), &mut look_up);
        }
        assert_eq!(lookups, 1);
        assert_eq!(judge.occupancy.counters().known, 99);
    }

    #[test]
    fn a_tainted_line_that_says_rejected_takes_nobody_his_connection() {
        let mut judge = judge(true, false);
        judge.grade = Evidence::Kernel;
        let mut look_up = |peer: Peer| {
            let link =
                Link { peer, local: "203.0.113.1:443".parse().unwrap(), interface: 0, cookie: 7 };
            Some(Found { link, sample: Some(Sample::default()) })
        };
        let refused = "2026/11/23 09:44:41 from 198.51.100.1:1 rejected  proxy/trojan: no";
        let name =
            "2026/11/23 09:44:41 from 198.51.100.9:1 rejected  a > b: invalid domain name: x";
        let mut take = |judge: &mut Judge, text: &str| {
            judge.take(text.as_bytes(), Moment::default(), &mut look_up);
        };
        take(&mut judge, &line("198.51.100.1:1"));
        take(&mut judge, name);
        take(&mut judge, refused);
        assert!(!judge.occupancy.knows_as_refused(peer("198.51.100.1:1")));
        assert!(judge.occupancy.knows_as_refused(peer("198.51.100.9:1")), "the attacker's own");
        let mut judge = self::judge(true, false);
        judge.grade = Evidence::Kernel;
        take(&mut judge, &line("198.51.100.1:1"));
        take(&mut judge, refused);
        assert!(judge.occupancy.knows_as_refused(peer("198.51.100.1:1")));
    }

    #[test]
    fn what_follows_a_line_that_was_skipped_proves_nothing() {
        let local = "203.0.113.1:443".parse().unwrap();
        let found = |peer| {
            let link = Link { peer, local, interface: 0, cookie: 7 };
            Some(Found { link, sample: Some(Sample::default()) })
        };
        let line = line("198.51.100.1:1");
        let whole = Line::Whole(line.as_bytes());
        for is_read_back in [false, true] {
            let mut judge = judge(true, false);
            judge.grade = Evidence::Kernel;
            let take = |line, judge: &mut Judge| {
                if is_read_back {
                    let _ = judge.read_back(line, Moment::default());
                } else {
                    judge.read(line, Moment::default(), &mut |peer| found(peer));
                }
                judge.occupancy.owned()
            };
            if is_read_back {
                judge.occupancy.older(&found(peer("198.51.100.1:1")).unwrap(), Moment::default());
            }
            assert_eq!(take(Line::Skipped, &mut judge), 0);
            // A name that is not a name may be this long.
            for _ in 0..8_400usize.div_ceil(line.len() + 1) {
                assert_eq!(take(whole, &mut judge), 0);
            }
            assert_eq!(take(whole, &mut judge), 1);
        }
    }

    #[test]
    fn a_tainted_line_with_port_0_makes_nobody_a_hider() {
        let mut judge = judge(true, false);
        let mut take = |line: &str| {
            judge.take(line.as_bytes(), Moment::default(), &mut nobody);
            judge.hiding.count()
        };
        take(&line("198.51.100.1:1"));
        let refused = "2026/11/23 09:44:41 from 198.51.100.9:1 rejected  proxy/trojan: failed to \
                       read address and port > common/protocol: invalid domain name: a";
        take(refused);
        assert_eq!(take(&line("198.51.100.2:0")), 0);
        for _ in 0..4 {
            take(&line("198.51.100.1:1"));
        }
        assert_eq!(take(&line("198.51.100.2:0")), 1);
    }

    #[test]
    fn what_is_found_nowhere_is_kept_for_one_wider_search_and_within_bounds() {
        let mut judge = judge(true, false);
        (judge.grade, judge.may_search) = (Evidence::Kernel, true);
        for port in 1..=1_000 {
            let line = line(&format!("198.51.100.1:{port}"));
            judge.take(line.as_bytes(), Moment::default(), &mut nobody);
        }
        assert_eq!(judge.missed().len(), MOST_MISSED);
        judge.look_again(Moment::default(), &mut nobody);
        judge.may_search = false;
        judge.take(line("198.51.100.1:1").as_bytes(), Moment::default(), &mut nobody);
        assert_eq!(judge.missed().len(), 0);
        assert_eq!(judge.occupancy.counters().unverified, 1_001);
    }

    #[test]
    fn lines_that_name_one_connection_at_the_start_make_it_one() {
        let mut judge = judge(true, false);
        let name = peer("198.51.100.1:1");
        let local = "203.0.113.1:443".parse().unwrap();
        let link = Link { peer: name, local, interface: 0, cookie: 7 };
        let found = Found { link, sample: Some(Sample::default()) };
        let other = line("198.51.100.1:1").replace("a@b", "c@d");
        // All of them were read before any was looked up.
        let missed: Vec<Missed> = [&line("198.51.100.1:1"), &line("198.51.100.1:1"), &other]
            .iter()
            .filter_map(|text| judge.take_back(text.as_bytes(), Moment::default()))
            .collect();
        assert_eq!(missed.len(), 3);
        for missed in &missed[..2] {
            judge.adopt_missed(missed, &found, Moment::default());
        }
        assert_eq!(judge.occupancy.owned(), 1);
        judge.adopt_missed(&missed[2], &found, Moment::default());
        assert_eq!(judge.occupancy.owned(), 0, "it carries several");
    }

    #[test]
    fn a_tainted_line_names_nobody_as_hiding() {
        let mut judge = judge(true, false);
        let take = |judge: &mut Judge, text: &str| {
            judge.take(text.as_bytes(), Moment::default(), &mut nobody);
        };
        let name =
            "2026/11/23 09:44:41 from 198.51.100.9:1 rejected  a > b: invalid domain name: x";
        take(&mut judge, &line("198.51.100.1:1"));
        take(&mut judge, name);
        take(&mut judge, &line("198.51.100.2:0"));
        assert_eq!(judge.hiding.count(), 0);
        for _ in 0..4 {
            take(&mut judge, &line("198.51.100.2:0"));
        }
        assert_eq!(judge.hiding.count(), 1);
    }
}
