//! One user's offending source in one read of the log: what is done to it, and what became of that.
//!
//! Takes an eviction's offender; makes the targets of a ban, kills the connections that the log
//! named, and in the end makes the record. It bans nobody and starts no survey.

use std::{
    collections::{HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use refract_core::{
    Basis, Eviction, Evidence, Exemptions, Incumbent, Link, Measure, Offender, Proof, Restraint,
    Source, Transport,
};
use refract_kernel::{
    Error as KernelError,
    ban::BanTarget,
    sock_diag::{Connection, SockDiag},
};

use crate::{
    audit::{Action, Outcome, Record},
    endpoints::Endpoints,
    witness::address_of,
};

/// Peers that are named in one record; all of them are reset.
const MOST_PEERS: usize = 64;

/// An offender on his way from verdict to record.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) user: Box<[u8]>,
    pub(super) source: Source,
    pub(super) action: Action,
    reason: &'static str,
    peers: Vec<SocketAddr>,
    /// Those of the peers whose connections are still to be destroyed.
    unkilled: VecDeque<SocketAddr>,
    /// Connections that are still to be destroyed, each by all of its names.
    unkilled_links: VecDeque<Link>,
    /// The cookies of all that ever were among them.
    linked: HashSet<u64>,
    /// What a ban would cover, should there have to be one after all.
    fallback: Option<BanTarget>,
    /// Clients whose connections go on over another path of MPTCP. Each pass finds them.
    survivors: HashSet<SocketAddr>,
    proof: Option<Proof>,
    basis: Option<Basis>,
    held: Vec<Incumbent>,
    pub(super) targets: Vec<BanTarget>,
    incumbents: Vec<String>,
    places: usize,
    inbound: Option<Box<[u8]>>,
    evidence: &'static str,
    /// The peers are TCP connections of a protected port, as far as the log can tell.
    pub(super) tcp: bool,
    /// The verdict rests on the kernel's evidence: the connections are known by all their names.
    is_proven: bool,
    timeout: Duration,
    read_at: Instant,
    latency: Duration,
    killed: u32,
    flows: u32,
    troubles: Vec<String>,
}

impl Case {
    pub(super) fn open(
        eviction: &Eviction,
        offender: &Offender,
        (action, reason): (Action, &'static str),
        timeout: Duration,
        read_at: Instant,
    ) -> Self {
        Self {
            user: eviction.user.clone(),
            source: offender.source,
            action,
            reason,
            peers: Vec::new(),
            unkilled: VecDeque::new(),
            unkilled_links: VecDeque::new(),
            linked: HashSet::new(),
            fallback: None,
            survivors: HashSet::new(),
            proof: eviction.proof.clone(),
            basis: eviction.basis,
            held: match eviction.proof {
                Some(_) => Vec::new(),
                None => eviction.incumbents.clone(),
            },
            targets: Vec::new(),
            incumbents: eviction.incumbents.iter().map(|held| held.source.to_string()).collect(),
            places: eviction.places,
            inbound: offender.inbound.clone(),
            evidence: eviction.evidence.name(),
            is_proven: eviction.evidence == Evidence::Kernel,
            tcp: offender.transport != Transport::Udp,
            timeout,
            read_at,
            latency: Duration::ZERO,
            killed: 0,
            flows: 0,
            troubles: Vec::new(),
        }
    }

    /// Whether this is the same offender for the same reason. A verdict with its numbers stays
    /// apart from resets on sight of the same read: its record and its ban are its own.
    pub(super) fn is_of(&self, eviction: &Eviction, offender: &Offender) -> bool {
        self.source == offender.source
            && self.user.eq_ignore_ascii_case(&eviction.user)
            && self.tcp == (offender.transport != Transport::Udp)
            && self.proof.is_some() == eviction.proof.is_some()
    }

    /// Adds one more named connection of the same offender.
    pub(super) fn name(&mut self, offender: &Offender, exemptions: &Exemptions) {
        let peer = address_of(offender.peer);
        if self.is_proven {
            // A connection may be older than its address's exemption.
            let liable = |link: &&Link| exemptions.reason(link.peer.address).is_none();
            for link in offender.links.iter().filter(liable) {
                let peer = address_of(link.peer);
                if self.peers.len() < MOST_PEERS && !self.peers.contains(&peer) {
                    self.peers.push(peer);
                }
                if self.linked.insert(link.cookie) {
                    self.unkilled_links.push_back(*link);
                }
            }
            // The order is the last of the restraints: nobody else is there. A brake stays a brake.
            self.fallback = (offender.measure == Measure::Kill(Restraint::ByOrder))
                .then(|| ban_target(offender.source, peer.ip(), exemptions));
        } else if !self.peers.contains(&peer) {
            self.peers.push(peer);
            self.unkilled.push_back(peer);
        }
        match self.action {
            Action::Ban => {
                self.target(ban_target(offender.source, peer.ip(), exemptions));
                // A source may be several addresses, each of which is a target of its own.
                let mut addresses: Vec<IpAddr> =
                    offender.links.iter().map(|link| link.peer.address).collect();
                addresses.dedup();
                addresses.retain(|address| exemptions.reason(*address).is_none());
                for address in addresses {
                    self.target(ban_target(offender.source, address, exemptions));
                }
            }
            Action::Flow => {
                self.target(BanTarget::Flow { address: peer.ip(), port: peer.port() });
            }
            Action::Kill | Action::Adopted | Action::Ask | Action::Refrain => {}
        }
    }

    fn target(&mut self, target: BanTarget) {
        if !self.targets.contains(&target) {
            self.targets.push(target);
        }
    }

    /// The networks that are banned.
    pub(super) fn networks(&self) -> impl Iterator<Item = (IpAddr, u8)> {
        self.targets.iter().filter_map(|target| match target {
            BanTarget::Network { address, prefix } => Some((*address, *prefix)),
            BanTarget::Flow { .. } => None,
        })
    }

    /// The single flows that are banned.
    pub(super) fn flows(&self) -> impl Iterator<Item = SocketAddr> {
        self.targets.iter().filter_map(|target| match target {
            BanTarget::Flow { address, port } => Some(SocketAddr::new(*address, *port)),
            BanTarget::Network { .. } => None,
        })
    }

    /// The log named a connection from `peer`.
    pub(super) fn names(&self, peer: SocketAddr) -> bool {
        self.peers.contains(&peer)
    }

    /// Destroys named connections, `budget` at most, each found by its exact ends. `true` when none
    /// is left to be looked for.
    pub(super) fn kill_named(
        &mut self,
        sockets: &mut SockDiag,
        endpoints: &mut Endpoints,
        budget: &mut usize,
    ) -> bool {
        while *budget > 0 {
            let Some(link) = self.unkilled_links.pop_front() else { break };
            *budget -= 1;
            match find_link(&link, sockets) {
                Ok(Some(connection)) => self.kill(&connection, sockets, endpoints),
                // It was over before.
                Ok(None) => {}
                Err(error) => self.trouble(error.to_string()),
            }
        }
        while *budget > 0 {
            let Some(peer) = self.unkilled.pop_front() else { break };
            *budget -= 1;
            let found = endpoints
                .for_peer(peer.ip())
                .iter()
                .find_map(|local| sockets.find(local.address, peer).transpose());
            match found {
                Some(Ok(connection)) => self.kill(&connection, sockets, endpoints),
                Some(Err(error)) => self.trouble(error.to_string()),
                None => {}
            }
        }
        self.unkilled.is_empty() && self.unkilled_links.is_empty()
    }

    /// The clients whose reset may have spared an MPTCP connection: only a ban is sure to end one.
    pub(super) fn may_survive(&self) -> impl Iterator<Item = SocketAddr> {
        let asked = self.action == Action::Kill && self.is_proven && self.killed > 0;
        self.peers.iter().copied().filter(move |_| asked)
    }

    /// A reset did not end the connection of `client`: it goes on over another path.
    pub(super) fn survived(&mut self, client: SocketAddr) {
        self.survivors.insert(client);
    }

    /// Turns to a ban where resets did not help, if nobody else can be hit by it.
    pub(super) fn fall_back(&mut self) -> bool {
        if self.survivors.is_empty() || self.action != Action::Kill {
            return false;
        }
        if let Some(target) = self.fallback.take() {
            self.action = Action::Ban;
            self.reason = "mptcp_survives";
            self.targets.push(target);
            return true;
        }
        let survivors = self.survivors.len();
        self.trouble(format!(
            "{survivors} MPTCP connections survived their reset, and their source may not be \
             banned ({}); --strip-mptcp keeps clients from it",
            self.reason
        ));
        false
    }

    /// Ban and named connections are done with: the latency is taken.
    pub(super) fn banned_and_killed(&mut self) {
        self.latency = self.read_at.elapsed();
    }

    /// Destroys one connection of the offender.
    pub(super) fn kill(
        &mut self,
        connection: &Connection,
        sockets: &mut SockDiag,
        endpoints: &mut Endpoints,
    ) {
        endpoints.found(connection.local());
        match sockets.destroy(connection) {
            Ok(true) => self.killed += 1,
            // The client was faster.
            Ok(false) => {}
            Err(error) => self.trouble(error.to_string()),
        }
    }

    /// A conntrack entry of the offender was deleted.
    pub(super) fn flow_deleted(&mut self) {
        self.flows += 1;
    }

    /// A step failed; the record will say so.
    pub(super) fn trouble(&mut self, sentence: String) {
        if !self.troubles.contains(&sentence) {
            self.troubles.push(sentence);
        }
    }

    /// What is written down about it.
    pub(super) fn record(self, dry_run: bool) -> Record {
        Record {
            action: self.action,
            reason: self.reason,
            peers: self.peers,
            incumbents: self.incumbents,
            places: self.places,
            inbound: self.inbound.map(<[u8]>::into_vec),
            timeout: self.timeout,
            killed: self.killed,
            flows: self.flows,
            latency: self.latency,
            settled: self.read_at.elapsed(),
            evidence: self.evidence,
            proof: self.proof,
            basis: self.basis,
            held: self.held,
            outcome: Outcome::of(dry_run, &self.troubles),
            ..Record::of(self.user.into_vec(), self.source.to_string())
        }
    }
}

/// The connection of a link, if it is still the one with that cookie.
pub(super) fn find_link(
    link: &Link,
    sockets: &mut SockDiag,
) -> Result<Option<Connection>, KernelError> {
    let found = sockets.observe(link.local, address_of(link.peer), link.interface)?;
    Ok(found.map(|it| it.connection).filter(|connection| connection.cookie() == link.cookie))
}

/// What goes into the set.
fn ban_target(source: Source, address: IpAddr, exemptions: &Exemptions) -> BanTarget {
    let network = exemptions.ban_target(source, address);
    BanTarget::Network { address: network.address(), prefix: network.prefix() }
}

#[cfg(test)]
mod tests {
    use refract_core::Ground;

    use super::*;
    use crate::witness::peer_at;

    fn offender(peers: &[&str]) -> Offender {
        let link = |(cookie, text): (u64, &&str)| {
            let peer: SocketAddr = text.parse().unwrap();
            Link {
                peer: peer_at(peer),
                local: "203.0.113.1:443".parse().unwrap(),
                interface: 0,
                cookie,
            }
        };
        let links: Vec<Link> = (1..).zip(peers).map(link).collect();
        Offender {
            source: Source::of(links[0].peer.address, 24, 64),
            peer: links[0].peer,
            transport: Transport::Unstated,
            inbound: None,
            links,
            measure: Measure::Ban,
        }
    }

    fn named(offender: &Offender, exempt: &str) -> Case {
        let eviction = Eviction {
            user: (*b"alice").into(),
            ground: Ground::Overlap,
            offenders: vec![offender.clone()],
            incumbents: Vec::new(),
            places: 1,
            evidence: Evidence::Kernel,
            proof: None,
            basis: None,
        };
        let exemptions = Exemptions::new(vec![exempt.parse().unwrap()]);
        let action = (Action::Ban, "overlap");
        let timeout = Duration::from_mins(1);
        let mut case = Case::open(&eviction, offender, action, timeout, Instant::now());
        for _ in 0..2 {
            case.name(offender, &exemptions);
        }
        case
    }

    #[test]
    fn a_connection_that_became_exempt_is_neither_banned_nor_reset() {
        let offender = offender(&["198.51.100.7:1", "198.51.100.8:1"]);
        let case = named(&offender, "198.51.100.8/32");
        assert_eq!(case.unkilled_links, [offender.links[0]]);
        assert_eq!(case.targets, [BanTarget::host([198, 51, 100, 7].into())]);
    }

    #[test]
    fn what_survives_its_reset_is_banned_only_where_nobody_else_is_and_no_brake_holds() {
        for (restraint, is_banned) in [
            (Restraint::ByOrder, true),
            (Restraint::SharedSource, false),
            (Restraint::UserBans, false),
            (Restraint::MaxBans, false),
        ] {
            let measure = Measure::Kill(restraint);
            let offender = Offender { measure, ..offender(&["198.51.100.7:1"]) };
            let mut case = named(&offender, "192.0.2.1/32");
            (case.action, case.targets) = (Action::Kill, Vec::new());
            case.survived("198.51.100.7:1".parse().unwrap());
            assert_eq!(case.fall_back(), is_banned, "{restraint:?}");
            assert_eq!(case.targets.len(), usize::from(is_banned));
        }
    }

    #[test]
    fn a_client_that_survives_is_counted_once_however_often_it_is_found() {
        let measure = Measure::Kill(Restraint::SharedSource);
        let offender = Offender { measure, ..offender(&["198.51.100.7:1", "198.51.100.7:2"]) };
        let mut case = named(&offender, "192.0.2.1/32");
        case.action = Action::Kill;
        for client in ["198.51.100.7:1", "198.51.100.7:2"].repeat(2) {
            case.survived(client.parse().unwrap());
        }
        assert!(!case.fall_back());
        assert!(case.troubles[0].starts_with("2 MPTCP connections survived"), "{case:?}");
    }

    #[test]
    fn an_address_that_only_one_of_very_many_connections_is_from_is_banned_too() {
        let all: Vec<String> = (1..=MOST_PEERS + 1)
            .map(|port| format!("198.51.100.7:{port}"))
            .chain(["198.51.100.8:1".to_owned()])
            .collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let case = named(&offender(&all), "192.0.2.1/32");
        assert_eq!((case.peers.len(), case.targets.len()), (MOST_PEERS, 2));
    }

    #[test]
    fn each_address_of_a_source_is_banned_once() {
        let offender = offender(&["198.51.100.7:1", "198.51.100.7:2", "198.51.100.8:1"]);
        let case = named(&offender, "192.0.2.1/32");
        assert_eq!(case.unkilled_links.len(), 3);
        let hosts = [7, 8].map(|last| BanTarget::host([198, 51, 100, last].into()));
        assert_eq!(case.targets, hosts);
    }
}
