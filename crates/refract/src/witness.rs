//! Asks the kernel whether what the log claims is true.
//!
//! Takes peers that lines named and links that are already known; gives what an exact lookup finds,
//! in the terms of `core`. The local end, which the log does not say, is tried in the order that
//! [`Endpoints`] learned. It destroys nothing, remembers no user and decides nothing.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Instant,
};

use refract_core::{Found, Link, Moment, Peer, Sample};
use refract_kernel::{
    Error as KernelError,
    activity::Activity,
    lookups::Lookups,
    sock_diag::{Observed, SockDiag},
    sock_filter::ConnectionFilter,
};

use crate::{clock::Clock, endpoints::Endpoints, ports::Ports};

/// The kernel's socket table, looked into by exact names.
#[derive(Debug)]
pub struct Witness {
    sockets: SockDiag,
    at_other_ends: Lookups,
    endpoints: Endpoints,
    ports: Vec<RangeInclusive<u16>>,
    clock: Clock,
    /// Why the last lookup failed that did, for whoever asks.
    trouble: Option<KernelError>,
    /// Exact lookups so far.
    pub lookups: u64,
}

impl Witness {
    /// Opens it in the network namespace of the calling thread. It takes no capability.
    pub fn open(ports: &Ports, clock: Clock) -> Result<Self, KernelError> {
        Ok(Self {
            sockets: SockDiag::open()?,
            at_other_ends: Lookups::open()?,
            endpoints: Endpoints::default(),
            ports: ports.ranges().to_vec(),
            clock,
            trouble: None,
            lookups: 0,
        })
    }

    /// Takes over which addresses this host has.
    pub fn refresh(&mut self, addresses: &[IpAddr], ports: &Ports) {
        self.endpoints.refresh(addresses, ports);
    }

    /// A connection was found elsewhere: its local end is tried first from now on.
    pub fn learn(&mut self, local: SocketAddr, interface: u32) {
        self.endpoints.found_on(local, interface);
    }

    /// The connection of `peer` on a protected port whose handshake is done.
    pub fn look_up(&mut self, peer: Peer, now: Instant) -> Option<Found> {
        let observed = match self.look_up_observed(address_of(peer)) {
            Ok(observed) => observed?,
            Err(error) => {
                self.trouble = Some(error);
                return None;
            }
        };
        self.endpoints.found_on(observed.connection.local(), observed.connection.interface());
        Some(found(&observed, self.clock.moment(now)))
    }

    fn look_up_observed(&mut self, remote: SocketAddr) -> Result<Option<Observed>, KernelError> {
        let is_real = |it: &Observed| it.connection.state().has_completed_handshake();
        // What was right last time is right nearly always; all the others are one more question.
        let Some((likeliest, others)) = self.endpoints.for_peer(remote.ip()).split_first() else {
            return Ok(None);
        };
        self.lookups += 1;
        let observed = self.sockets.observe(likeliest.address, remote, likeliest.interface)?;
        if observed.as_ref().is_some_and(is_real) {
            return Ok(observed);
        }
        self.lookups += others.len() as u64;
        let locals = others.iter().map(|end| (end.address, end.interface));
        let mut found_at = None;
        self.at_other_ends.observe(locals, remote, |it| {
            // The same peer may have begun another at one end and be at work at the next.
            if is_real(&it) {
                found_at.get_or_insert(it);
            }
        })?;
        Ok(found_at)
    }

    /// How the payload of a known connection stands; `None` when it is gone.
    pub fn sample(&mut self, link: &Link, now: Instant) -> Option<Found> {
        let remote = address_of(link.peer);
        self.lookups += 1;
        match self.sockets.observe(link.local, remote, link.interface) {
            Ok(observed) => {
                let observed = observed.filter(|it| it.connection.cookie() == link.cookie)?;
                Some(found(&observed, self.clock.moment(now)))
            }
            Err(error) => {
                self.trouble = Some(error);
                // Not known to be gone: as it was.
                Some(Found { link: *link, sample: None })
            }
        }
    }

    /// Hands over every connection on a protected port whose handshake is done. It walks the whole
    /// table, milliseconds on a busy host: for the start only.
    pub fn walk(&mut self, now: Instant, mut each: impl FnMut(Found)) -> Result<(), KernelError> {
        let (moment, endpoints) = (self.clock.moment(now), &mut self.endpoints);
        // A table that changed under the walk gives doubles, or leaves out what is newer.
        let _ = self.sockets.observe_all(&ConnectionFilter::on(&self.ports), |observed| {
            let connection = &observed.connection;
            if connection.state().has_completed_handshake() {
                endpoints.found_on(connection.local(), connection.interface());
                each(found(&observed, moment));
            }
        })?;
        Ok(())
    }

    /// Whether anybody listens on a protected port.
    pub fn has_listener(&mut self) -> bool {
        match self.sockets.has_listener(&self.ports) {
            Ok(found) => found,
            Err(error) => {
                self.trouble = Some(error);
                false
            }
        }
    }

    /// Why a lookup failed since the last time this was asked.
    pub fn trouble(&mut self) -> Option<KernelError> {
        self.trouble.take()
    }
}

/// A client's end of a connection, in the terms of `core`.
#[must_use]
pub fn peer_at(remote: SocketAddr) -> Peer {
    Peer { address: remote.ip(), port: remote.port() }
}

/// The other way round from [`peer_at`].
#[must_use]
pub fn address_of(peer: Peer) -> SocketAddr {
    SocketAddr::new(peer.address, peer.port)
}

/// What the kernel described, in the terms of `core`.
#[must_use]
pub fn found(observed: &Observed, now: Moment) -> Found {
    let connection = &observed.connection;
    Found {
        link: Link {
            peer: peer_at(connection.remote()),
            local: connection.local(),
            interface: connection.interface(),
            cookie: connection.cookie(),
        },
        sample: observed.activity.as_ref().map(|activity| sample(activity, now)),
    }
}

/// Counters with ages, as counters with moments.
#[must_use]
pub fn sample(activity: &Activity, now: Moment) -> Sample {
    Sample {
        received: activity.received,
        acknowledged: activity.acknowledged,
        last_received: now.saturating_sub(activity.last_received),
        last_acknowledged: now.saturating_sub(activity.last_acknowledged),
    }
}
