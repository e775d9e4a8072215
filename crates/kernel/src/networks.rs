//! A set of address networks, asked "is this address in one of them?".
//!
//! Takes addresses with prefix lengths; answers by one binary search for each prefix length in
//! use, so that thousands of networks cost no more than a few. IPv4-mapped IPv6 addresses count as
//! the IPv4 addresses in them, on both sides. It holds nothing but the networks: no timeouts, no
//! users.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kernel's number for IPv4, `AF_INET`, `bits/socket.h`.
pub(crate) const AF_INET: u8 = 2;
/// The kernel's number for IPv6, `AF_INET6`, `bits/socket.h`.
pub(crate) const AF_INET6: u8 = 10;

/// Networks of both families. An IPv6 network never holds an IPv4 address, not even `::/0`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// Sorted and without doubles.
    networks: Vec<Network>,
    /// Each family and prefix length that occurs above.
    lengths: Vec<(Family, u8)>,
}

impl Networks {
    /// Every network as (first address, prefix length in bits): IPv4 before IPv6, wide before narrow.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
        self.networks.iter().map(|network| (network.address(), network.prefix))
    }

    /// How many networks there are, doubles counted once.
    #[must_use]
    pub fn len(&self) -> usize {
        self.networks.len()
    }

    /// There is no network, so no address is in one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// `address` is in one of the networks.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (family, bits) = bits_of(address.to_canonical());
        self.lengths.iter().any(|&(of, prefix)| {
            of == family
                && self.networks.binary_search(&Network::masked(family, prefix, bits)).is_ok()
        })
    }
}

/// Takes `(address, prefix length in bits)`. Host bits are ignored, and a length beyond the
/// family's is the single address.
impl FromIterator<(IpAddr, u8)> for Networks {
    fn from_iter<I: IntoIterator<Item = (IpAddr, u8)>>(networks: I) -> Self {
        let mut networks: Vec<_> = networks.into_iter().map(Network::from).collect();
        networks.sort_unstable();
        networks.dedup();
        let mut lengths: Vec<_> =
            networks.iter().map(|network| (network.family, network.prefix)).collect();
        lengths.dedup();
        Self { networks, lengths }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Network {
    family: Family,
    prefix: u8,
    /// The network's bits from the top, whatever the family; the rest is zero.
    bits: u128,
}

impl Network {
    fn masked(family: Family, prefix: u8, bits: u128) -> Self {
        let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        Self { family, prefix, bits: bits & mask }
    }

    fn address(self) -> IpAddr {
        match self.family {
            Family::V4 => {
                let [a, b, c, d, ..] = self.bits.to_be_bytes();
                Ipv4Addr::new(a, b, c, d).into()
            }
            Family::V6 => Ipv6Addr::from_bits(self.bits).into(),
        }
    }
}

impl From<(IpAddr, u8)> for Network {
    fn from((address, prefix): (IpAddr, u8)) -> Self {
        let (address, prefix) = match address.to_canonical() {
            // The first 96 bits of a mapped address say no more than that it is one.
            v4 @ IpAddr::V4(_) if address.is_ipv6() && prefix >= 96 => (v4, prefix - 96),
            v4 @ IpAddr::V4(_) if address.is_ipv4() => (v4, prefix),
            _ => (address, prefix),
        };
        let (family, bits) = bits_of(address);
        let longest = if family == Family::V4 { 32 } else { 128 };
        Self::masked(family, prefix.min(longest), bits)
    }
}

fn bits_of(address: IpAddr) -> (Family, u128) {
    match address {
        IpAddr::V4(v4) => (Family::V4, u128::from(v4.to_bits()) << 96),
        IpAddr::V6(v6) => (Family::V6, v6.to_bits()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Networks written as `192.0.2.0/24`.
    pub(crate) fn networks(texts: &[&str]) -> Networks {
        texts
            .iter()
            .map(|text| {
                let (address, prefix) = text.split_once('/').unwrap();
                (address.parse().unwrap(), prefix.parse().unwrap())
            })
            .collect()
    }

    #[track_caller]
    fn check(of: &[&str], inside: &[&str], outside: &[&str]) {
        let networks = networks(of);
        for address in inside {
            assert!(networks.contains(address.parse().unwrap()), "{address} is not in {of:?}");
        }
        for address in outside {
            assert!(!networks.contains(address.parse().unwrap()), "{address} is in {of:?}");
        }
    }

    #[test]
    fn an_address_is_in_the_network_that_covers_it() {
        check(
            &["10.1.2.3/32", "192.0.2.0/24", "2001:db8:1::/64", "2001:db8:2::5/128"],
            &["10.1.2.3", "192.0.2.255", "2001:db8:1::ffff", "2001:db8:2::5"],
            &["10.1.2.4", "192.0.3.0", "2001:db8:1:1::", "2001:db8:2::6", "::1"],
        );
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_in_it() {
        check(&["10.0.0.0/8"], &["::ffff:10.9.9.9"], &["::ffff:11.0.0.0", "::10.9.9.9"]);
        check(&["::ffff:10.0.0.0/104"], &["10.9.9.9", "::ffff:10.9.9.9"], &["11.0.0.0"]);
    }

    #[test]
    fn everything_of_one_family_is_nothing_of_the_other() {
        check(&["::/0"], &["::1", "2001:db8::1"], &["10.0.0.1", "::ffff:10.0.0.1"]);
        check(&["0.0.0.0/0"], &["10.0.0.1", "::ffff:10.0.0.1"], &["::1"]);
        check(&[], &[], &["::1", "10.0.0.1"]);
    }

    #[test]
    fn host_bits_and_overlong_prefixes_are_forgiven() {
        check(&["192.0.2.77/24"], &["192.0.2.1"], &["192.0.1.1"]);
        check(&["192.0.2.77/200"], &["192.0.2.77"], &["192.0.2.78"]);
        assert_eq!(networks(&["10.0.0.1/24", "10.0.0.2/24", "10.0.0.0/24"]).len(), 1);
    }

    #[test]
    fn the_networks_read_back_as_they_were_given() {
        let given = networks(&["2001:db8::/32", "10.0.0.0/8", "192.0.2.1/32"]);
        assert_eq!(given.iter().collect::<Networks>(), given);
        let texts: Vec<_> = given.iter().map(|(ip, prefix)| format!("{ip}/{prefix}")).collect();
        assert_eq!(texts, ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"]);
    }
}
