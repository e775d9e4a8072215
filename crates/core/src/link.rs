//! What the kernel says of one connection: its name, and how its payload stands.
//!
//! The vocabulary between whoever asks the kernel and the [`Occupancy`](crate::Occupancy). It asks
//! nothing and remembers nothing.

use std::net::SocketAddr;

use crate::{moment::Moment, sighting::Peer};

/// One connection by all of its names: a tuple alone is used again, a cookie never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// The client's end.
    pub peer: Peer,
    /// This host's end.
    pub local: SocketAddr,
    /// The network device that the socket is bound to, by its index; 0 for none.
    pub interface: u32,
    /// The kernel's name for the socket, unique until the next boot.
    pub cookie: u64,
}

/// How the payload of a connection stands. Both counters grow only when the client really sends or
/// acknowledges; a FIN, which the kernel counts as a byte, is no payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Bytes that the client has sent.
    pub received: u64,
    /// Bytes that the client has acknowledged.
    pub acknowledged: u64,
    /// When data came last; means nothing while `received` is 0.
    pub last_received: Moment,
    /// When an acknowledgement came last, be it for payload or not.
    pub last_acknowledged: Moment,
}

impl Sample {
    /// Payload in both directions, bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.received.saturating_add(self.acknowledged)
    }
}

/// What an exact lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The connection.
    pub link: Link,
    /// Its payload; absent where the kernel keeps none, as for one that is all but over.
    pub sample: Option<Sample>,
}
