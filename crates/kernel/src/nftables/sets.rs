//! Our sets of bans: their names, what their elements are made of, and the one rule of each. Pure.
//!
//! Takes ban targets; makes the set and the key that hold them, and reads them back. A network is an
//! element of a plain hash set all the same: each prefix length has a set of its own, whose rule
//! clears the other bits of a packet's source before it looks. A set of intervals would refuse an
//! address within a network that it already holds. It speaks to no kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::rule::{Expression, FIRST_REGISTER, Rule};
use crate::ban::{BanTarget, bits};

/// The chain with one rule for each set.
pub(crate) const BANNED_CHAIN: &str = "banned";

/// One of our sets of bans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum BanSet {
    /// IPv4 addresses.
    Users,
    /// IPv4 networks of this many bits.
    Networks(u8),
    /// IPv6 addresses.
    Users6,
    /// IPv6 networks of this many bits.
    Networks6(u8),
    /// IPv4 UDP flows.
    Flows,
    /// IPv6 UDP flows.
    Flows6,
}

/// The key of an element: an address, or an address and a port in the next four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    bytes: [u8; LONGEST_KEY],
    length: usize,
}

impl Key {
    /// The bytes, as long as any key of ours may be; `None` if there are more.
    pub(crate) fn new(given: &[u8]) -> Option<Self> {
        let mut bytes = [0; LONGEST_KEY];
        bytes.get_mut(..given.len())?.copy_from_slice(given);
        Some(Self { bytes, length: given.len() })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn of(address: &[u8], port: Option<u16>) -> Self {
        let port = port.map(u16::to_be_bytes);
        // A port fills the first two bytes of its register.
        let parts = address.iter().chain(port.iter().flatten()).copied();
        let mut bytes = [0; LONGEST_KEY];
        for (to, from) in bytes.iter_mut().zip(parts) {
            *to = from;
        }
        let length = address.len() + if port.is_some() { REGISTER } else { 0 };
        Self { bytes, length: length.min(LONGEST_KEY) }
    }
}

impl BanSet {
    /// The set that holds bans of `target`, which is in canonical form.
    pub(crate) fn of(target: BanTarget) -> Self {
        match target {
            BanTarget::Network { address, prefix } => match (address, prefix) {
                (IpAddr::V4(_), 32) => Self::Users,
                (IpAddr::V4(_), prefix) => Self::Networks(prefix),
                (IpAddr::V6(_), 128) => Self::Users6,
                (IpAddr::V6(_), prefix) => Self::Networks6(prefix),
            },
            BanTarget::Flow { address: IpAddr::V4(_), .. } => Self::Flows,
            BanTarget::Flow { address: IpAddr::V6(_), .. } => Self::Flows6,
        }
    }

    /// The name, as `nft` lists it.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Users => "banned_users".to_owned(),
            Self::Users6 => "banned_users6".to_owned(),
            Self::Networks(prefix) => format!("{NETWORKS}{prefix}"),
            Self::Networks6(prefix) => format!("{NETWORKS6}{prefix}"),
            Self::Flows => "banned_flows".to_owned(),
            Self::Flows6 => "banned_flows6".to_owned(),
        }
    }

    /// Reads [`Self::name`].
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let set = match name {
            "banned_users" => Self::Users,
            "banned_users6" => Self::Users6,
            "banned_flows" => Self::Flows,
            "banned_flows6" => Self::Flows6,
            _ => match (name.strip_prefix(NETWORKS), name.strip_prefix(NETWORKS6)) {
                (Some(prefix), _) => Self::Networks(prefix.parse().ok().filter(|it| *it < 32)?),
                (_, Some(prefix)) => Self::Networks6(prefix.parse().ok().filter(|it| *it < 128)?),
                (None, None) => return None,
            },
        };
        // `+24`, `024` and a prefix of no bits are names of somebody else's.
        (set.name() == name && set.prefix() > 0).then_some(set)
    }

    /// The type of its keys: what `nft` calls them by, and their length in bytes.
    pub(crate) fn key_type(self) -> (u32, u32) {
        match self {
            Self::Users | Self::Networks(_) => (TYPE_IPADDR, 4),
            Self::Users6 | Self::Networks6(_) => (TYPE_IP6ADDR, 16),
            Self::Flows => (TYPE_IPADDR << TYPE_BITS | TYPE_INET_SERVICE, 8),
            Self::Flows6 => (TYPE_IP6ADDR << TYPE_BITS | TYPE_INET_SERVICE, 20),
        }
    }

    /// The key of `target`, which is in canonical form.
    pub(crate) fn key(target: BanTarget) -> Key {
        let (address, port) = match target {
            BanTarget::Network { address, .. } => (address, None),
            BanTarget::Flow { address, port } => (address, Some(port)),
        };
        match address {
            IpAddr::V4(four) => Key::of(&four.octets(), port),
            IpAddr::V6(six) => Key::of(&six.octets(), port),
        }
    }

    /// What an element of this set bans; `None` where its rule would never find the key.
    pub(crate) fn target(self, key: &Key) -> Option<BanTarget> {
        let key = key.bytes();
        let (address, port) = match self {
            Self::Users | Self::Networks(_) | Self::Flows => (address4(key)?, key.get(4..)?),
            Self::Users6 | Self::Networks6(_) | Self::Flows6 => (address6(key)?, key.get(16..)?),
        };
        let target = match self {
            Self::Flows | Self::Flows6 => match *port {
                [high, low, 0, 0] => {
                    BanTarget::Flow { address, port: u16::from_be_bytes([high, low]) }
                }
                _ => return None,
            },
            _ if !port.is_empty() => return None,
            Self::Users | Self::Users6 => BanTarget::host(address),
            Self::Networks(prefix) | Self::Networks6(prefix) => {
                BanTarget::Network { address, prefix }
            }
        };
        target.canonical().ok().filter(|canonical| *canonical == target)
    }

    /// The sets in which `target` may be found banned: a single address is also in its networks.
    pub(crate) fn may_hold(self, target: BanTarget) -> bool {
        let BanTarget::Network { address, prefix } = target else {
            return self == Self::of(target);
        };
        self == Self::of(target)
            || prefix == bits(address)
                && matches!(
                    (self, address),
                    (Self::Networks(_), IpAddr::V4(_)) | (Self::Networks6(_), IpAddr::V6(_))
                )
    }

    /// The key by which this set holds the network that the address of `target` is in.
    pub(crate) fn key_in(self, target: BanTarget) -> Key {
        let network = match (self, target) {
            (
                Self::Networks(prefix) | Self::Networks6(prefix),
                BanTarget::Network { address, .. },
            ) => BanTarget::Network { address, prefix }.canonical().unwrap_or(target),
            _ => target,
        };
        Self::key(network)
    }

    /// The rule that drops what comes from a source in this set.
    pub(crate) fn rule(self) -> Rule {
        let (family, offset, length, next) = match self {
            Self::Users | Self::Networks(_) | Self::Flows => {
                (NFPROTO_IPV4, SOURCE_OFFSET, 4, SECOND_REGISTER)
            }
            Self::Users6 | Self::Networks6(_) | Self::Flows6 => {
                (NFPROTO_IPV6, SOURCE_OFFSET6, 16, FIFTH_REGISTER)
            }
        };
        let mut expressions = Vec::with_capacity(8);
        expressions.extend(Expression::family_is(family));
        if matches!(self, Self::Flows | Self::Flows6) {
            expressions.extend(Expression::protocol_is(super::rule::IPPROTO_UDP));
        }
        expressions.push(Expression::network_header(offset, length, FIRST_REGISTER));
        match self {
            Self::Networks(prefix) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
                expressions.push(Expression::And(mask.to_be_bytes().to_vec()));
            }
            Self::Networks6(prefix) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
                expressions.push(Expression::And(mask.to_be_bytes().to_vec()));
            }
            Self::Flows | Self::Flows6 => {
                expressions.push(Expression::transport_header(SOURCE_PORT_OFFSET, 2, next));
            }
            Self::Users | Self::Users6 => {}
        }
        expressions.extend([
            Expression::Lookup(self.name()),
            Expression::Count,
            Expression::drop_packet(),
        ]);
        Rule { chain: BANNED_CHAIN.to_owned(), expressions }
    }

    fn prefix(self) -> u8 {
        match self {
            Self::Networks(prefix) | Self::Networks6(prefix) => prefix,
            Self::Users | Self::Flows => 32,
            Self::Users6 | Self::Flows6 => 128,
        }
    }
}

fn address4(key: &[u8]) -> Option<IpAddr> {
    Some(Ipv4Addr::from(*key.first_chunk::<4>()?).into())
}

fn address6(key: &[u8]) -> Option<IpAddr> {
    Some(Ipv6Addr::from(*key.first_chunk::<16>()?).into())
}

const NETWORKS: &str = "banned_networks_";
const NETWORKS6: &str = "banned_networks6_";
/// An IPv6 address and a port.
const LONGEST_KEY: usize = 20;
/// `NFT_REG32_SIZE`, `linux/netfilter/nf_tables.h`: each part of a key begins in a register.
const REGISTER: usize = 4;
/// `NFT_REG32_01`: after a key part of four bytes.
const SECOND_REGISTER: u32 = 9;
/// `NFT_REG_2`, which is `NFT_REG32_04`: after a key part of 16 bytes.
const FIFTH_REGISTER: u32 = 2;
/// `TYPE_IPADDR`, `TYPE_IP6ADDR`, `TYPE_INET_SERVICE` and `TYPE_BITS` of nftables' `datatype.h`: the
/// kernel keeps the number, and `nft` shows the keys by it.
const TYPE_IPADDR: u32 = 7;
const TYPE_IP6ADDR: u32 = 8;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_BITS: u32 = 6;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`, `linux/netfilter.h`.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// `offsetof(struct iphdr, saddr)`, `linux/ip.h`.
const SOURCE_OFFSET: u32 = 12;
/// `offsetof(struct ipv6hdr, saddr)`, `linux/ipv6.h`.
const SOURCE_OFFSET6: u32 = 8;
/// `offsetof(struct udphdr, source)`, `linux/udp.h`.
const SOURCE_PORT_OFFSET: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_and_no_other_is_ours() {
        for set in [
            BanSet::Users,
            BanSet::Networks(1),
            BanSet::Networks(31),
            BanSet::Users6,
            BanSet::Networks6(64),
            BanSet::Networks6(127),
            BanSet::Flows,
            BanSet::Flows6,
        ] {
            assert_eq!(BanSet::from_name(&set.name()), Some(set));
        }
        for name in [
            "",
            "banned",
            "banned_users_of_mine",
            "banned_networks_",
            "banned_networks_0",
            "banned_networks_32",
            "banned_networks_+24",
            "banned_networks_024",
            "banned_networks6_128",
            "banned_networks6_64 ",
            "banned_networks6_999",
            "protected_ports",
        ] {
            assert_eq!(BanSet::from_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_target_is_read_back_from_its_key() {
        let six = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0, 0, 0, 7));
        for (target, name, length) in [
            (BanTarget::host([203, 0, 113, 9].into()), "banned_users", 4),
            (
                BanTarget::Network { address: [203, 0, 113, 9].into(), prefix: 24 },
                "banned_networks_24",
                4,
            ),
            (BanTarget::host(six), "banned_users6", 16),
            (BanTarget::Network { address: six, prefix: 64 }, "banned_networks6_64", 16),
            (BanTarget::Flow { address: [203, 0, 113, 9].into(), port: 443 }, "banned_flows", 8),
            (BanTarget::Flow { address: six, port: 443 }, "banned_flows6", 20),
        ] {
            let target = target.canonical().unwrap();
            let (set, key) = (BanSet::of(target), BanSet::key(target));
            assert_eq!((set.name().as_str(), key.bytes().len()), (name, length));
            assert_eq!(key.bytes().len(), set.key_type().1 as usize);
            assert_eq!(set.target(&key), Some(target));
        }
    }

    #[test]
    fn a_key_that_no_rule_finds_bans_nobody() {
        for (set, key) in [
            (BanSet::Users, &[203, 0, 113][..]),
            (BanSet::Users, &[203, 0, 113, 9, 0]),
            (BanSet::Users, &[0, 0, 0, 0]),
            // The rule clears the last byte before it looks.
            (BanSet::Networks(24), &[203, 0, 113, 9]),
            (BanSet::Users6, &[203, 0, 113, 9]),
            (BanSet::Flows, &[203, 0, 113, 9]),
            (BanSet::Flows, &[203, 0, 113, 9, 1, 187, 0, 1]),
            (BanSet::Flows, &[203, 0, 113, 9, 0, 0, 0, 0]),
            (BanSet::Flows, &[203, 0, 113, 9, 1, 187]),
        ] {
            assert_eq!(set.target(&Key::new(key).unwrap()), None, "{set:?} {key:?}");
        }
        assert_eq!(Key::new(&[0; 21]), None);
    }

    #[test]
    fn an_address_is_looked_for_in_the_networks_too_and_a_network_is_not() {
        let address = BanTarget::host([203, 0, 113, 9].into());
        assert!(BanSet::Users.may_hold(address) && BanSet::Networks(24).may_hold(address));
        assert!(!BanSet::Networks6(64).may_hold(address) && !BanSet::Flows.may_hold(address));
        assert_eq!(BanSet::Networks(24).key_in(address).bytes(), [203, 0, 113, 0]);
        assert_eq!(BanSet::Users.key_in(address).bytes(), [203, 0, 113, 9]);
        let network = BanTarget::Network { address: [203, 0, 113, 0].into(), prefix: 24 };
        assert!(BanSet::Networks(24).may_hold(network) && !BanSet::Networks(16).may_hold(network));
    }
}
