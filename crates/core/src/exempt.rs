//! Who may never be banned, nor counted.
//!
//! Takes the operator's allow list and, at run time, what the daemon knows of this host; answers
//! for one address (each line, so mostly by its first octet) or for a whole network (before a ban). It
//! finds out nothing by itself and bans nobody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    address,
    network::{Network, Source},
};

/// Why an address is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exemption {
    /// 127.0.0.0/8 and `::1`.
    Loopback,
    /// 0.0.0.0/8 ("this network", RFC 1122 §3.2.1.3) and `::`.
    Unspecified,
    /// 169.254.0.0/16 and `fe80::/10`.
    LinkLocal,
    /// 224.0.0.0/4 and `ff00::/8`.
    Multicast,
    /// 255.255.255.255.
    Broadcast,
    /// On the operator's allow list.
    AllowList,
    /// This host, or a network it is in.
    Host,
    /// A gateway of this host.
    Gateway,
}

impl Exemption {
    /// Every reason, in the order of [`index`](Self::index).
    pub const ALL: [Self; 8] = [
        Self::Loopback,
        Self::Unspecified,
        Self::LinkLocal,
        Self::Multicast,
        Self::Broadcast,
        Self::AllowList,
        Self::Host,
        Self::Gateway,
    ];

    /// The place in [`ALL`](Self::ALL), for counting.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name in counters and records, in `snake_case`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Unspecified => "unspecified",
            Self::LinkLocal => "link_local",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::AllowList => "allow_list",
            Self::Host => "host",
            Self::Gateway => "gateway",
        }
    }
}

/// The addresses that nobody may ban.
#[derive(Clone, Debug)]
pub struct Exemptions {
    allowed: Vec<Network>,
    host: Vec<Network>,
    gateways: Vec<IpAddr>,
    /// All of the three above and what is exempt everywhere, for the question each line asks.
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl Exemptions {
    /// The addresses that no host may ban, and those of the allow list.
    #[must_use]
    pub fn new(allowed: Vec<Network>) -> Self {
        let (host, gateways) = (Vec::new(), Vec::new());
        let (v4, v6) = (Ranges::new(Vec::new()), Ranges::new(Vec::new()));
        let mut exemptions = Self { allowed, host, gateways, v4, v6 };
        exemptions.index();
        exemptions
    }

    /// Replaces the operator's allow list. `true` when it is another.
    pub fn set_allowed(&mut self, allowed: Vec<Network>) -> bool {
        if self.allowed == allowed {
            return false;
        }
        self.allowed = allowed;
        self.index();
        true
    }

    /// Replaces what is known of this host: its addresses (or, if they are to be spared, the
    /// networks that it is in), and its gateways. `true` when they are others.
    pub fn set_host(&mut self, addresses: Vec<Network>, gateways: Vec<IpAddr>) -> bool {
        let gateways: Vec<IpAddr> = gateways.into_iter().map(address::folded).collect();
        if self.host == addresses && self.gateways == gateways {
            return false;
        }
        (self.host, self.gateways) = (addresses, gateways);
        self.index();
        true
    }

    /// Why `address` is exempt; `None` when it may be counted and banned.
    #[must_use]
    pub fn reason(&self, address: IpAddr) -> Option<Exemption> {
        let address = address::folded(address);
        let exempt = match address {
            IpAddr::V4(v4) => {
                let [first, ..] = v4.octets();
                self.v4.may_hold(first) && self.v4.holds(v4.to_bits())
            }
            IpAddr::V6(v6) => {
                let [first, ..] = v6.octets();
                self.v6.may_hold(first) && self.v6.holds(v6.to_bits())
            }
        };
        if exempt { self.overlaps(Network::single(address)) } else { None }
    }

    /// Why `network` may not be banned whole; `None` when it holds no exempt address.
    #[must_use]
    pub fn overlaps(&self, network: Network) -> Option<Exemption> {
        let everywhere = EVERYWHERE
            .into_iter()
            .find(|(address, prefix, _)| Network::covering(*address, *prefix).overlaps(network));
        match everywhere {
            Some((_, _, exemption)) => Some(exemption),
            None => self.listed(network),
        }
    }

    /// What a ban of `source` covers when the offending connection came from `peer`: an IPv4 address
    /// as it is; an IPv6 source whole, or the one address where it holds an exempt one.
    #[must_use]
    pub fn ban_target(&self, source: Source, peer: IpAddr) -> Network {
        if peer.is_ipv4() || self.overlaps(source.network()).is_some() {
            Network::single(peer)
        } else {
            source.network()
        }
    }

    /// Whether a ban of `source` leaves some of its addresses out when the offending connection came
    /// from `peer`.
    #[must_use]
    pub fn may_go_round_a_ban(&self, source: Source, peer: IpAddr) -> bool {
        self.ban_target(source, peer) != source.network()
    }

    fn listed(&self, network: Network) -> Option<Exemption> {
        let any = |networks: &[Network]| networks.iter().any(|other| other.overlaps(network));
        if any(&self.allowed) {
            Some(Exemption::AllowList)
        } else if any(&self.host) {
            Some(Exemption::Host)
        } else if self.gateways.iter().any(|gateway| network.contains(*gateway)) {
            Some(Exemption::Gateway)
        } else {
            None
        }
    }

    fn index(&mut self) {
        let gateways = self.gateways.iter().map(|gateway| Network::single(*gateway));
        let everywhere = EVERYWHERE.map(|(address, prefix, _)| Network::covering(address, prefix));
        let networks =
            self.allowed.iter().chain(&self.host).copied().chain(gateways).chain(everywhere);
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            let behind = u32::from(network.family().bits() - network.prefix());
            match network.address() {
                IpAddr::V4(first) => {
                    let hosts = u32::MAX.checked_shr(32 - behind).unwrap_or(0);
                    v4.push((first.to_bits(), first.to_bits() | hosts));
                }
                IpAddr::V6(first) => {
                    let hosts = u128::MAX.checked_shr(128 - behind).unwrap_or(0);
                    v6.push((first.to_bits(), first.to_bits() | hosts));
                }
            }
        }
        self.v4 = Ranges::new(v4);
        self.v6 = Ranges::new(v6);
    }
}

impl Default for Exemptions {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

/// Sorted ranges of addresses, both ends included, none overlapping another.
#[derive(Clone, Debug)]
struct Ranges<T> {
    sorted: Vec<(T, T)>,
    /// By first octet: whether a range holds an address that begins with it.
    first_octets: [bool; 256],
}

impl<T: Ord + Copy + FirstOctet> Ranges<T> {
    fn new(mut ranges: Vec<(T, T)>) -> Self {
        ranges.sort_unstable();
        let mut sorted: Vec<(T, T)> = Vec::with_capacity(ranges.len());
        let mut first_octets = [false; 256];
        for (first, last) in ranges {
            for octet in first.first_octet()..=last.first_octet() {
                if let Some(mark) = first_octets.get_mut(usize::from(octet)) {
                    *mark = true;
                }
            }
            match sorted.last_mut() {
                Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
                _ => sorted.push((first, last)),
            }
        }
        Self { sorted, first_octets }
    }

    fn may_hold(&self, first_octet: u8) -> bool {
        self.first_octets.get(usize::from(first_octet)).is_some_and(|held| *held)
    }

    fn holds(&self, address: T) -> bool {
        let after = self.sorted.partition_point(|range| range.1 < address);
        self.sorted.get(after).is_some_and(|range| range.0 <= address)
    }
}

trait FirstOctet {
    fn first_octet(self) -> u8;
}

impl FirstOctet for u32 {
    fn first_octet(self) -> u8 {
        let [first, ..] = self.to_be_bytes();
        first
    }
}

impl FirstOctet for u128 {
    fn first_octet(self) -> u8 {
        let [first, ..] = self.to_be_bytes();
        first
    }
}

/// What is exempt on every host: address, prefix, why.
const EVERYWHERE: [(IpAddr, u8, Exemption); 9] = [
    (v4(127, 0), 8, Exemption::Loopback),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), 128, Exemption::Loopback),
    (v4(0, 0), 8, Exemption::Unspecified),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 128, Exemption::Unspecified),
    (v4(169, 254), 16, Exemption::LinkLocal),
    (v6(0xfe80), 10, Exemption::LinkLocal),
    (v4(224, 0), 4, Exemption::Multicast),
    (v6(0xff00), 8, Exemption::Multicast),
    (IpAddr::V4(Ipv4Addr::BROADCAST), 32, Exemption::Broadcast),
];

const fn v4(first: u8, second: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(first, second, 0, 0))
}

const fn v6(first: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exemptions() -> Exemptions {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let mut exemptions =
            Exemptions::new(networks(&["10.0.0.0/8", "10.1.0.0/16", "2001:db8:a::/48"]));
        exemptions.set_host(
            networks(&["203.0.113.1", "2001:db8::1"]),
            vec!["203.0.113.254".parse().unwrap(), "2001:db8::ffff".parse().unwrap()],
        );
        exemptions
    }

    #[test]
    fn each_exempt_address_has_its_reason() {
        let exemptions = exemptions();
        for (text, reason) in [
            ("127.0.0.1", Some(Exemption::Loopback)),
            ("127.255.255.255", Some(Exemption::Loopback)),
            ("::1", Some(Exemption::Loopback)),
            ("::ffff:127.0.0.1", Some(Exemption::Loopback)),
            ("0.0.0.0", Some(Exemption::Unspecified)),
            ("0.1.2.3", Some(Exemption::Unspecified)),
            ("::", Some(Exemption::Unspecified)),
            ("169.254.1.1", Some(Exemption::LinkLocal)),
            ("169.253.1.1", None),
            ("fe80::1", Some(Exemption::LinkLocal)),
            ("febf::1", Some(Exemption::LinkLocal)),
            ("fec0::1", None),
            ("224.0.0.1", Some(Exemption::Multicast)),
            ("239.255.255.255", Some(Exemption::Multicast)),
            ("ff02::1", Some(Exemption::Multicast)),
            ("240.0.0.1", None),
            ("255.255.255.255", Some(Exemption::Broadcast)),
            ("255.255.255.254", None),
            ("10.200.0.1", Some(Exemption::AllowList)),
            ("10.1.2.3", Some(Exemption::AllowList)),
            ("11.0.0.0", None),
            ("9.255.255.255", None),
            ("2001:db8:a:1::5", Some(Exemption::AllowList)),
            ("203.0.113.1", Some(Exemption::Host)),
            ("::ffff:203.0.113.1", Some(Exemption::Host)),
            ("203.0.113.2", None),
            ("2001:db8::1", Some(Exemption::Host)),
            ("2001:db8::2", None),
            ("203.0.113.254", Some(Exemption::Gateway)),
            ("2001:db8::ffff", Some(Exemption::Gateway)),
            ("198.51.100.11", None),
        ] {
            assert_eq!(exemptions.reason(text.parse().unwrap()), reason, "{text}");
        }
    }

    #[test]
    fn a_new_host_replaces_the_old_one() {
        let mut exemptions = exemptions();
        exemptions.set_host(vec!["203.0.113.2".parse().unwrap()], Vec::new());
        assert_eq!(exemptions.reason("203.0.113.1".parse().unwrap()), None);
        assert_eq!(exemptions.reason("203.0.113.254".parse().unwrap()), None);
        assert_eq!(exemptions.reason("203.0.113.2".parse().unwrap()), Some(Exemption::Host));
        assert_eq!(exemptions.reason("10.0.0.1".parse().unwrap()), Some(Exemption::AllowList));
    }

    #[test]
    fn a_source_that_holds_an_exempt_address_is_banned_by_the_exact_address() {
        let exemptions = exemptions();
        let target = |peer: &str, ipv4_prefix| {
            let peer = peer.parse().unwrap();
            exemptions.ban_target(Source::of(peer, ipv4_prefix, 64), peer).to_string()
        };
        assert_eq!(target("2001:db8:0:1::5", 32), "2001:db8:0:1::/64");
        assert_eq!(target("2001:db8::5", 32), "2001:db8::5", "the host is in the same /64");
        assert_eq!(target("198.51.100.9", 24), "198.51.100.9", "sets hold single IPv4 addresses");
        for (peer, ipv4_prefix, may) in [
            ("198.51.100.9", 32, false),
            ("198.51.100.9", 31, true),
            ("2001:db8:0:1::5", 32, false),
            ("2001:db8::5", 32, true),
        ] {
            let peer = peer.parse().unwrap();
            let source = Source::of(peer, ipv4_prefix, 64);
            assert_eq!(exemptions.may_go_round_a_ban(source, peer), may, "{peer}");
        }
    }

    #[test]
    fn everything_overlaps_something_exempt() {
        for text in ["0.0.0.0/0", "::/0"] {
            assert!(Exemptions::default().overlaps(text.parse().unwrap()).is_some(), "{text}");
        }
    }

    proptest! {
        /// The quick answer for an address is the slow answer for the network of that address.
        #[test]
        fn an_address_is_exempt_exactly_when_its_network_is(bits: u32, wide: u128, low in 0u32..4) {
            let exemptions = exemptions();
            let near = Ipv4Addr::new(203, 0, 113, 252).to_bits() | low;
            for address in [
                IpAddr::V4(Ipv4Addr::from_bits(bits)),
                IpAddr::V4(Ipv4Addr::from_bits(near)),
                IpAddr::V6(Ipv6Addr::from_bits(wide)),
            ] {
                let slow = exemptions.overlaps(Network::single(address));
                prop_assert_eq!(exemptions.reason(address), slow);
            }
        }
    }
}
