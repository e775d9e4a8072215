//! Which local address and port a client's connection probably has.
//!
//! The log names only the client's end of a connection; an exact lookup in the kernel takes both.
//! Takes this host's addresses and the protected ports; gives the pairs of one family in the order
//! in which to try them, the pair that was right last time first. Pairs that turn up only in a dump
//! (an address that no interface has, a socket that is bound to a network device) are learned. It
//! asks the kernel nothing.

use std::net::{IpAddr, SocketAddr};

use crate::ports::Ports;

/// Most pairs kept for a family: beyond it a lookup by dump is cheaper than trying each (a third of
/// a microsecond a miss, measured), so the rest is left to the survey that follows every ban.
const MOST_PAIRS: usize = 256;

/// A local end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalEnd {
    /// Address and port.
    pub address: SocketAddr,
    /// The index of the network device that the socket is bound to; 0 for none.
    pub interface: u32,
}

/// The local ends worth trying, by family.
#[derive(Debug, Default)]
pub struct Endpoints {
    v4: Vec<LocalEnd>,
    v6: Vec<LocalEnd>,
}

impl Endpoints {
    /// Starts over with the addresses that this host has now. What was learned before and is still
    /// possible keeps its place at the front.
    pub fn refresh(&mut self, addresses: &[IpAddr], ports: &Ports) {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) =
            addresses.iter().partition(|address| address.is_ipv4());
        for (pairs, addresses) in [(&mut self.v4, v4), (&mut self.v6, v6)] {
            pairs.retain(|pair| addresses.contains(&pair.address.ip()));
            for port in ports.each() {
                for address in &addresses {
                    let address = SocketAddr::new(*address, port);
                    if pairs.len() >= MOST_PAIRS {
                        break;
                    }
                    if pairs.iter().all(|pair| pair.address != address) {
                        pairs.push(LocalEnd { address, interface: 0 });
                    }
                }
            }
        }
    }

    /// The pairs of the family of `peer`, the likeliest first.
    #[must_use]
    pub fn for_peer(&self, peer: IpAddr) -> &[LocalEnd] {
        if peer.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    /// The network device that sockets with this local end were found bound to; 0 for none.
    #[must_use]
    pub fn interface_of(&self, local: SocketAddr) -> u32 {
        let pair = self.for_peer(local.ip()).iter().find(|pair| pair.address == local);
        pair.map_or(0, |pair| pair.interface)
    }

    /// A connection was found with this local end: it is tried first from now on.
    pub fn found(&mut self, local: SocketAddr) {
        self.found_on(local, self.interface_of(local));
    }

    /// The same for a socket that is bound to a network device.
    pub fn found_on(&mut self, local: SocketAddr, interface: u32) {
        let pairs = if local.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let end = LocalEnd { address: local, interface };
        // An unbound socket is found with any device, a bound one only with its own.
        let known = pairs.iter().position(|pair| {
            pair.address == local && (interface == 0 || pair.interface == interface)
        });
        match known {
            Some(0) => {}
            Some(index) => {
                if let Some(head) = pairs.get_mut(..=index) {
                    head.rotate_right(1);
                }
            }
            None => {
                pairs.insert(0, end);
                pairs.truncate(MOST_PAIRS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_pair_that_was_right_is_tried_first_next_time() {
        let mut endpoints = Endpoints::default();
        let ports = "443,8443".parse().unwrap();
        endpoints.refresh(&addresses(&["203.0.113.1", "203.0.113.2", "2001:db8::1"]), &ports);
        let peer = "198.51.100.1".parse().unwrap();
        assert_eq!(endpoints.for_peer(peer).len(), 4);
        let right = "203.0.113.2:8443".parse().unwrap();
        endpoints.found(right);
        let first = endpoints.for_peer(peer).first().map(|pair| pair.address);
        assert_eq!(first, Some(right));
        assert_eq!(endpoints.for_peer(peer).len(), 4);
        assert_eq!(endpoints.for_peer("2001:db8::9".parse().unwrap()).len(), 2);
    }

    #[test]
    fn an_address_that_no_interface_has_is_learned() {
        let mut endpoints = Endpoints::default();
        let learned = "203.0.113.9:443".parse().unwrap();
        endpoints.found(learned);
        assert_eq!(endpoints.for_peer(learned.ip()), [LocalEnd { address: learned, interface: 0 }]);
    }

    #[test]
    fn a_socket_bound_to_a_device_is_found_there_from_then_on() {
        let mut endpoints = Endpoints::default();
        endpoints.refresh(&addresses(&["203.0.113.1"]), &"443".parse().unwrap());
        let local = "203.0.113.1:443".parse().unwrap();
        endpoints.found_on(local, 7);
        assert_eq!(endpoints.interface_of(local), 7);
        let ends: Vec<_> =
            endpoints.for_peer(local.ip()).iter().map(|pair| pair.interface).collect();
        assert_eq!(ends, [7, 0], "both are tried");
    }

    #[test]
    fn the_pairs_stay_within_their_bound() {
        let mut endpoints = Endpoints::default();
        endpoints.refresh(&addresses(&["203.0.113.1"]), &"1-65535".parse().unwrap());
        for last in 0..=255u8 {
            endpoints.found(SocketAddr::new([198, 18, 0, last].into(), 443));
        }
        let pairs = endpoints.for_peer("203.0.113.1".parse().unwrap());
        assert_eq!(pairs.len(), MOST_PAIRS);
    }

    #[test]
    fn an_address_that_is_gone_is_tried_no_more() {
        let mut endpoints = Endpoints::default();
        let ports = "443".parse().unwrap();
        endpoints.refresh(&addresses(&["203.0.113.1", "203.0.113.2"]), &ports);
        endpoints.refresh(&addresses(&["203.0.113.2"]), &ports);
        let ends = endpoints.for_peer("198.51.100.1".parse().unwrap());
        let ends: Vec<_> = ends.iter().map(|pair| pair.address.to_string()).collect();
        assert_eq!(ends, ["203.0.113.2:443"]);
    }
}
