//! Which local address and port a client's connection probably has.
//!
//! The log names only the client's end of a connection; an exact lookup in the kernel takes both.
//! Takes this host's addresses and the protected ports; gives the pairs of one family in the order
//! in which to try them, the pair that was right last time first. Pairs that turn up only in a dump
//! (an address that no interface has) are learned. It asks the kernel nothing.

use std::net::{IpAddr, SocketAddr};

use crate::ports::Ports;

/// Most pairs kept for a family: beyond it a lookup by dump is cheaper than trying each (about a
/// microsecond a miss), so the rest is left to the survey that follows every ban.
const MOST_PAIRS: usize = 256;

/// The local ends worth trying, by family.
#[derive(Debug, Default)]
pub struct Endpoints {
    v4: Vec<SocketAddr>,
    v6: Vec<SocketAddr>,
}

impl Endpoints {
    /// Starts over with the addresses that this host has now. What was learned before and is still
    /// possible keeps its place at the front.
    pub fn refresh(&mut self, addresses: &[IpAddr], ports: &Ports) {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) =
            addresses.iter().partition(|address| address.is_ipv4());
        for (pairs, addresses) in [(&mut self.v4, v4), (&mut self.v6, v6)] {
            pairs.retain(|pair| addresses.contains(&pair.ip()));
            for port in ports.each() {
                for address in &addresses {
                    let pair = SocketAddr::new(*address, port);
                    if pairs.len() >= MOST_PAIRS {
                        break;
                    }
                    if !pairs.contains(&pair) {
                        pairs.push(pair);
                    }
                }
            }
        }
    }

    /// The pairs of the family of `peer`, the likeliest first.
    #[must_use]
    pub fn for_peer(&self, peer: IpAddr) -> &[SocketAddr] {
        if peer.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    /// A connection was found with this local end: it is tried first from now on.
    pub fn found(&mut self, local: SocketAddr) {
        let pairs = if local.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        match pairs.iter().position(|pair| *pair == local) {
            Some(0) => {}
            Some(index) => {
                if let Some(head) = pairs.get_mut(..=index) {
                    head.rotate_right(1);
                }
            }
            None => {
                pairs.insert(0, local);
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
        assert_eq!(endpoints.for_peer(peer).first(), Some(&right));
        assert_eq!(endpoints.for_peer(peer).len(), 4);
        assert_eq!(endpoints.for_peer("2001:db8::9".parse().unwrap()).len(), 2);
    }

    #[test]
    fn an_address_that_no_interface_has_is_learned() {
        let mut endpoints = Endpoints::default();
        let learned = "203.0.113.9:443".parse().unwrap();
        endpoints.found(learned);
        assert_eq!(endpoints.for_peer(learned.ip()), [learned]);
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
        assert_eq!(
            endpoints.for_peer("198.51.100.1".parse().unwrap()),
            ["203.0.113.2:443".parse().unwrap()]
        );
    }
}
