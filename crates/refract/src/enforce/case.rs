//! One user's offending source in one read of the log: what is done to it, and what became of that.
//!
//! Takes an eviction's offender; makes the targets of a ban, kills the connections that the log
//! named, and in the end makes the record. It bans nobody and starts no survey.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use refract_core::{Eviction, Exemptions, Offender, Source, Transport};
use refract_kernel::{
    ban::BanTarget,
    sock_diag::{Connection, SockDiag},
};

use crate::{
    audit::{Action, Outcome, Record},
    endpoints::Endpoints,
};

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
    pub(super) targets: Vec<BanTarget>,
    incumbents: Vec<String>,
    places: usize,
    inbound: Option<Box<[u8]>>,
    evidence: &'static str,
    /// The peers are TCP connections of a protected port, as far as the log can tell.
    pub(super) tcp: bool,
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
            targets: Vec::new(),
            incumbents: eviction.incumbents.iter().map(|held| held.source.to_string()).collect(),
            places: eviction.places,
            inbound: offender.inbound.clone(),
            evidence: eviction.evidence.name(),
            tcp: offender.transport != Transport::Udp,
            timeout,
            read_at,
            latency: Duration::ZERO,
            killed: 0,
            flows: 0,
            troubles: Vec::new(),
        }
    }

    /// Adds one more named connection of the same offender.
    pub(super) fn name(&mut self, offender: &Offender, exemptions: &Exemptions) {
        let peer = SocketAddr::new(offender.peer.address, offender.peer.port);
        if !self.peers.contains(&peer) {
            self.peers.push(peer);
            self.unkilled.push_back(peer);
        }
        let target = match self.action {
            Action::Ban => ban_target(offender, exemptions),
            Action::Flow => BanTarget::Flow { address: peer.ip(), port: peer.port() },
            Action::Kill | Action::Adopted => return,
        };
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
            let Some(peer) = self.unkilled.pop_front() else { break };
            *budget -= 1;
            let found = endpoints
                .for_peer(peer.ip())
                .iter()
                .find_map(|local| sockets.find(*local, peer).transpose());
            match found {
                Some(Ok(connection)) => self.kill(&connection, sockets, endpoints),
                Some(Err(error)) => self.trouble(error.to_string()),
                None => {}
            }
        }
        self.unkilled.is_empty()
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
            time: jiff::Timestamp::now(),
            action: self.action,
            reason: self.reason,
            user: self.user.into_vec(),
            source: self.source.to_string(),
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
            outcome: match (dry_run, self.troubles.is_empty()) {
                (true, _) => Outcome::DryRun,
                (false, true) => Outcome::Done,
                (false, false) => Outcome::Failed(self.troubles.join("; ")),
            },
        }
    }
}

/// What goes into the set: an IPv4 address as it is; an IPv6 source whole, unless it holds an
/// address that may never be banned: then the exact address.
fn ban_target(offender: &Offender, exemptions: &Exemptions) -> BanTarget {
    let address = offender.peer.address;
    if address.is_ipv4() {
        return BanTarget::host(address);
    }
    let network = exemptions.ban_target(offender.source, address);
    BanTarget::Network { address: network.address(), prefix: network.prefix() }
}
