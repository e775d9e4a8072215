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
    sock_diag::{Observed, SockDiag},
    sock_filter::ConnectionFilter,
};

use crate::{clock::Clock, endpoints::Endpoints, ports::Ports};

/// The kernel's socket table, looked into by exact names.
#[derive(Debug)]
pub struct Witness {
    sockets: SockDiag,
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
        let remote = address_of(peer);
        let ends = self.endpoints.for_peer(peer.address);
        let mut found_at = None;
        // What was right last time is right nearly always; all the others are one more question.
        for ends in [ends.get(..1), ends.get(1..)].into_iter().flatten().filter(|it| !it.is_empty())
        {
            self.lookups += ends.len() as u64;
            let locals = ends.iter().map(|end| (end.address, end.interface));
            let looked = self.sockets.observe_each(locals, remote, |observed| {
                // The same peer may have begun another at one end and be at work at the next.
                if observed.connection.state().has_completed_handshake() {
                    found_at.get_or_insert(observed);
                }
            });
            if let Err(error) = looked {
                self.trouble = Some(error);
            }
            if found_at.is_some() {
                break;
            }
        }
        let observed = found_at?;
        self.endpoints.found_on(observed.connection.local(), observed.connection.interface());
        Some(found(&observed, self.clock.moment(now)))
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
