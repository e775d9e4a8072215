//! What one accepted log line says: who, from where, through which inbound.
//!
//! The vocabulary between the grammar ([`access`](crate::access)) and the
//! [`Roster`](crate::Roster). A sighting is a claim of the log, borrowed from the line; it proves
//! nothing and remembers nothing.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

/// One accepted log line: a user opened a stream from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting<'line> {
    /// Xray's `email` field as written: any bytes but a line feed, control characters included.
    /// Escape it before it is printed.
    pub user: &'line [u8],
    /// The client's end of the connection, as the log has it.
    pub peer: Peer,
    /// What the line says of the peer's transport.
    pub transport: Transport,
    /// The tag of the inbound; absent in V2Ray's lines, and for an inbound without a tag.
    pub inbound: Option<&'line [u8]>,
}

/// The exact address and port of one connection; IPv4-mapped addresses are folded to IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// The client's address, never an IPv4-mapped one when it comes from a log line.
    pub address: IpAddr,
    /// The client's port.
    pub port: u16,
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(out)
    }
}

/// The prefix in front of the peer.
///
/// Two lines that differ in it alone name the same peer: a mux sub-stream is logged with `tcp:`
/// where a plain stream of the same connection has no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// No prefix. Mostly TCP, but mKCP, XHTTP/3 and Hysteria are UDP and print the same.
    Unstated,
    /// `tcp:`.
    Tcp,
    /// `udp:`. Proves no address: a single spoofed datagram makes such a line.
    Udp,
}

impl Transport {
    /// The name in records: `unstated`, `tcp`, `udp`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unstated => "unstated",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_prints_as_the_log_has_it() {
        let peer = |address: &str| Peer { address: address.parse().unwrap(), port: 40833 };
        assert_eq!(peer("198.51.100.11").to_string(), "198.51.100.11:40833");
        assert_eq!(peer("2001:db8::11").to_string(), "[2001:db8::11]:40833");
    }
}
