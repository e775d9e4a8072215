//! Networks, and the source that a peer belongs to.
//!
//! Takes addresses, prefixes and `10.0.0.0/8`; makes [`Network`]s that can be compared, and the
//! canonical [`Source`] of a peer. It knows no interfaces and looks nothing up.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::{address, error::Error};

/// The two address families; a user's sources are counted apart by it, because one phone uses both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Bits in an address of the family.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The one that it is not.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// An address and a prefix, with no bit set behind the prefix. Never an IPv4-mapped one: those are
/// folded to IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// The network of exactly these bits. A prefix that is too long, and a bit set behind it, are
    /// refused: whoever writes `10.0.0.1/8` means either less or more than that says.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, Error> {
        let limit = Family::from(address).bits();
        if prefix > limit {
            return Err(Error::PrefixTooLong { address, prefix, limit });
        }
        if masked(address, prefix) != address {
            return Err(Error::HostBits {
                address,
                prefix,
                masked: Self::covering(address, prefix),
            });
        }
        Ok(Self::covering(address, prefix))
    }

    /// The network of `prefix` bits around `address`; a prefix that is too long is the address.
    #[must_use]
    pub fn covering(address: IpAddr, prefix: u8) -> Self {
        let (address, prefix) = match (address, address::folded(address)) {
            // 96 bits say "IPv4-mapped", the rest is the IPv4 prefix. A shorter prefix covers more
            // than IPv4 and stays what it is.
            (IpAddr::V6(_), folded @ IpAddr::V4(_)) if prefix >= 96 => (folded, prefix - 96),
            _ => (address, prefix),
        };
        let prefix = prefix.min(Family::from(address).bits());
        Self { address: masked(address, prefix), prefix }
    }

    /// The network that holds `address` alone.
    #[must_use]
    pub fn single(address: IpAddr) -> Self {
        let address = address::folded(address);
        Self { address, prefix: Family::from(address).bits() }
    }

    /// The first address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// The prefix, bits.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// IPv4 or IPv6.
    #[must_use]
    pub fn family(self) -> Family {
        Family::from(self.address)
    }

    /// Whether it is one address only.
    #[must_use]
    pub fn is_single(self) -> bool {
        self.prefix == self.family().bits()
    }

    /// Whether `address` is in it; an IPv4-mapped address counts as IPv4.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        masked(address::folded(address), self.prefix) == self.address
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        if self.prefix <= other.prefix {
            self.contains(other.address)
        } else {
            other.contains(self.address)
        }
    }
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let not_a_network = || Error::NotANetwork { text: text.to_owned() };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| not_a_network())?;
        let Some(prefix) = prefix else { return Ok(Self::single(address)) };
        // A sign or a zero in front is not how anybody writes a prefix on purpose.
        let prefix = address::port(prefix.as_bytes()).ok_or_else(not_a_network)?;
        Self::new(address, u8::try_from(prefix).map_err(|_| not_a_network())?)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() {
            return self.address.fmt(out);
        }
        write!(out, "{}/{}", self.address, self.prefix)
    }
}

/// Where a user is: a client address in canonical form. One device owns a whole IPv6 prefix and
/// changes addresses within it at will, so an IPv6 source is a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(Network);

impl Source {
    /// The source of a peer at `address`, cut to the prefix of its family (bits).
    #[must_use]
    pub fn of(address: IpAddr, ipv4_prefix: u8, ipv6_prefix: u8) -> Self {
        let address = address::folded(address);
        let prefix = match address {
            IpAddr::V4(_) => ipv4_prefix,
            IpAddr::V6(_) => ipv6_prefix,
        };
        Self(Network::covering(address, prefix))
    }

    /// The addresses it stands for.
    #[must_use]
    pub const fn network(self) -> Network {
        self.0
    }

    /// IPv4 or IPv6.
    #[must_use]
    pub fn family(self) -> Family {
        self.0.family()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let behind = |bits: u8| u32::from(bits.saturating_sub(prefix));
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(behind(32)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(behind(128)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[track_caller]
    fn refused(text: &str, sentence: &str) {
        assert_eq!(text.parse::<Network>().unwrap_err().to_string(), sentence);
    }

    #[test]
    fn a_network_prints_as_it_is_written() {
        for text in ["10.0.0.0/8", "192.0.2.1", "0.0.0.0/0", "::/0", "2001:db8::/64", "::1"] {
            assert_eq!(network(text).to_string(), text);
        }
        assert_eq!(network("192.0.2.1/32").to_string(), "192.0.2.1");
        assert_eq!(network("2001:db8::1/128").to_string(), "2001:db8::1");
    }

    #[test]
    fn a_mapped_network_is_the_ipv4_network() {
        assert_eq!(network("::ffff:10.0.0.0/104"), network("10.0.0.0/8"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_eq!(network("::ffff:0:0/96"), network("0.0.0.0/0"));
        assert!(network("10.0.0.0/8").contains("::ffff:10.1.2.3".parse().unwrap()));
        assert_eq!(Network::covering("::ffff:10.0.0.1".parse().unwrap(), 64), network("::/64"));
    }

    #[test]
    fn what_is_no_network_is_refused_with_a_sentence() {
        refused(
            "10.0.0.1/8",
            "10.0.0.1/8 has bits set behind its prefix: write 10.0.0.0/8, or 10.0.0.1 alone",
        );
        refused("10.0.0.0/33", "/33 is too long for 10.0.0.0: at most /32");
        refused("::/129", "/129 is too long for ::: at most /128");
        for text in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0/8",
            "example.com",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            " 10.0.0.1",
            "::/256",
            "10.0.0.0/8/8",
        ] {
            let sentence = format!(
                "{text:?} is no network: write an address such as 192.0.2.1, or 192.0.2.0/24"
            );
            refused(text, &sentence);
        }
    }

    #[test]
    fn networks_overlap_when_one_holds_the_other() {
        assert!(network("10.0.0.0/8").overlaps(network("10.2.0.0/16")));
        assert!(network("10.2.0.0/16").overlaps(network("10.0.0.0/8")));
        assert!(network("0.0.0.0/0").overlaps(network("192.0.2.1")));
        assert!(!network("10.0.0.0/9").overlaps(network("10.128.0.0/9")));
        assert!(!network("0.0.0.0/0").overlaps(network("::/0")), "two families");
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_prefix() {
        let source = |text: &str| Source::of(text.parse().unwrap(), 32, 64).to_string();
        assert_eq!(source("198.51.100.11"), "198.51.100.11");
        assert_eq!(source("::ffff:198.51.100.11"), "198.51.100.11");
        assert_eq!(source("2001:db8:1:2:aaaa:bbbb:cccc:dddd"), "2001:db8:1:2::/64");
        assert_eq!(
            Source::of("198.51.100.11".parse().unwrap(), 24, 64).to_string(),
            "198.51.100.0/24"
        );
        assert_eq!(Source::of("2001:db8::1".parse().unwrap(), 32, 128).to_string(), "2001:db8::1");
    }

    proptest! {
        #[test]
        fn a_covering_network_holds_its_address(bits: u128, prefix in 0u8..=128, narrow: bool) {
            let address = if narrow {
                IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits >> 96).unwrap()))
            } else {
                IpAddr::V6(Ipv6Addr::from_bits(bits))
            };
            let network = Network::covering(address, prefix);
            prop_assert!(network.contains(address));
            prop_assert_eq!(network.to_string().parse::<Network>(), Ok(network));
        }
    }
}
