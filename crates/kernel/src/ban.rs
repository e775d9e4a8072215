//! What is banned, and for how long: the words that every ban backend shares.
//!
//! Takes addresses and durations as the caller has them; makes the one form in which they are
//! compared and sent, or says why there can be no such ban. It talks to no kernel.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use crate::error::{Errno, Error};

/// The longest timeout of a set entry, seconds: `(UINT_MAX >> 1) / MSEC_PER_SEC`
/// (`linux/netfilter/ipset/ip_set.h`, `IPSET_MAX_TIMEOUT`). The kernel cuts longer ones to it
/// without a word.
pub const LONGEST_TIMEOUT: Duration = Duration::from_secs(2_147_483);
/// The shortest IPv4 prefix that can be banned, by any backend, so that a ban can move from one to
/// the other: `hash:ip` holds a network address by address, and the kernel adds 65,536 of them in
/// one go.
pub const SHORTEST_IPV4_PREFIX: u8 = 16;

/// What a ban is laid upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BanTarget {
    /// Every packet from a network; a single address is a network of 32 or 128 bits.
    Network {
        /// Any address of the network.
        address: IpAddr,
        /// Leading bits that all of its addresses share.
        prefix: u8,
    },
    /// One UDP flow: what comes from this address and this source port.
    Flow {
        /// The client's address.
        address: IpAddr,
        /// The client's port.
        port: u16,
    },
}

/// A ban that the kernel has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Banned {
    /// Who, in canonical form.
    pub target: BanTarget,
    /// For how long: the time asked for, in whole seconds, rounded up.
    pub timeout: Duration,
    /// More was asked for than [`LONGEST_TIMEOUT`], which it got.
    pub clamped: bool,
}

/// A ban as it stands in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Who.
    pub target: BanTarget,
    /// The time it has left; `None` is for ever, which is never of our making.
    pub remaining: Option<Duration>,
}

/// Why there can be no such ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unbannable {
    /// `0.0.0.0`, `::`, or a network that begins with it: nobody's address.
    #[error("it is, or begins with, the unspecified address")]
    Unspecified,
    /// A prefix of no bits would ban everyone.
    #[error("a prefix of 0 bits is everybody")]
    Everybody,
    /// More prefix bits than the address has.
    #[error("the address has only {0} bits")]
    PrefixTooLong(u8),
    /// An IPv4 network that a backend would have to write out as too many addresses.
    #[error("an IPv4 network needs a prefix of {0} bits or more")]
    TooWide(u8),
    /// Port 0 comes from a header or a unix socket, never from a packet.
    #[error("no packet comes from port 0")]
    PortZero,
    /// A timeout of zero would mean "for ever" to the kernel.
    #[error("a ban has to last longer than no time")]
    NoTime,
}

impl BanTarget {
    /// The single address `address`.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self::Network { address, prefix: bits(address) }
    }

    /// The one form of this target: IPv4 out of IPv6 unwrapped, the bits after the prefix cleared.
    pub fn canonical(self) -> Result<Self, Unbannable> {
        match self {
            Self::Network { address, prefix } => network(address, prefix),
            Self::Flow { port: 0, .. } => Err(Unbannable::PortZero),
            Self::Flow { address, .. } if address.to_canonical().is_unspecified() => {
                Err(Unbannable::Unspecified)
            }
            Self::Flow { address, port } => {
                Ok(Self::Flow { address: address.to_canonical(), port })
            }
        }
    }

    /// Lifting `self` lifts `ban` too: the same flow, a flow from the network, or a network that
    /// holds the other. Both are in canonical form.
    #[must_use]
    pub fn lifts(self, ban: Self) -> bool {
        match (self, ban) {
            (Self::Flow { .. }, _) => self == ban,
            (Self::Network { address, prefix }, Self::Flow { address: source, .. }) => {
                masked(source, prefix) == Some(address)
            }
            (
                Self::Network { address, prefix },
                Self::Network { address: banned, prefix: length },
            ) => {
                let shared = prefix.min(length);
                bits(address) == bits(banned) && masked(address, shared) == masked(banned, shared)
            }
        }
    }
}

/// The notation of `ipset`: `192.0.2.1`, `2001:db8::/64`, `192.0.2.1,udp:4433`.
impl fmt::Display for BanTarget {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Network { address, prefix } if prefix == bits(address) => {
                write!(out, "{address}")
            }
            Self::Network { address, prefix } => write!(out, "{address}/{prefix}"),
            Self::Flow { address, port } => write!(out, "{address},udp:{port}"),
        }
    }
}

/// The ban as the kernel is to have it, and its timeout in seconds.
pub(crate) fn plan(target: BanTarget, timeout: Duration) -> Result<(Banned, u32), Error> {
    let target = target
        .canonical()
        .and_then(|target| match target {
            BanTarget::Network { address, prefix: ..SHORTEST_IPV4_PREFIX } if address.is_ipv4() => {
                Err(Unbannable::TooWide(SHORTEST_IPV4_PREFIX))
            }
            _ => Ok(target),
        })
        .map_err(|source| Error::Unbannable { target, source })?;
    let seconds = whole_seconds(timeout).map_err(|source| Error::Unbannable { target, source })?;
    let held = Duration::from_secs(seconds.into());
    Ok((Banned { target, timeout: held, clamped: held < timeout }, seconds))
}

/// The kernel's answer about one ban, once there is one.
pub(crate) type Answer = Option<Result<(), Errno>>;

/// What became of each ban: `answers` are those to the bans that could be planned, in their order,
/// and `refused` puts a refusal into words.
pub(crate) fn outcomes(
    planned: Vec<Result<(Banned, u32), Error>>,
    answers: Vec<Answer>,
    conversation: &Result<(), Error>,
    refused: impl Fn(BanTarget, Errno) -> Error,
) -> Vec<Result<Banned, Error>> {
    let mut answers = answers.into_iter();
    planned
        .into_iter()
        .map(|plan| {
            let (ban, _) = plan?;
            match answers.next().flatten() {
                Some(Ok(())) => Ok(ban),
                Some(Err(errno)) => Err(refused(ban.target, errno)),
                None => Err(unanswered(ban.target, conversation)),
            }
        })
        .collect()
}

/// The conversation broke off before the kernel's answer about this target.
fn unanswered(target: BanTarget, conversation: &Result<(), Error>) -> Error {
    let reason = match conversation {
        Ok(()) => "the kernel did not answer".to_owned(),
        Err(error) => error.to_string(),
    };
    Error::Io { operation: "ban", object: target.to_string(), source: io::Error::other(reason) }
}

/// `timeout` in whole seconds, rounded up, and never more than [`LONGEST_TIMEOUT`].
pub(crate) fn whole_seconds(timeout: Duration) -> Result<u32, Unbannable> {
    if timeout.is_zero() {
        return Err(Unbannable::NoTime);
    }
    let cut = timeout.min(LONGEST_TIMEOUT);
    let seconds = cut.as_secs() + u64::from(cut.subsec_nanos() > 0);
    // The cut value always fits; a ban is better long than lost.
    Ok(u32::try_from(seconds).unwrap_or(u32::MAX))
}

/// The number of bits of an address.
pub(crate) fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn network(address: IpAddr, prefix: u8) -> Result<BanTarget, Unbannable> {
    if prefix == 0 {
        return Err(Unbannable::Everybody);
    }
    let masked = masked(address, prefix).ok_or(Unbannable::PrefixTooLong(bits(address)))?;
    let (address, prefix) = match masked {
        // `::ffff:0:0/96` holds IPv4; a shorter prefix of it begins with zeros and is refused below.
        IpAddr::V6(six) => match six.to_ipv4_mapped() {
            Some(four) => (IpAddr::V4(four), prefix.saturating_sub(96)),
            None => (masked, prefix),
        },
        IpAddr::V4(_) => (masked, prefix),
    };
    if prefix == 0 {
        return Err(Unbannable::Everybody);
    }
    if address.is_unspecified() {
        return Err(Unbannable::Unspecified);
    }
    Ok(BanTarget::Network { address, prefix })
}

/// `address` with the bits after the first `prefix` cleared; `None` if it has fewer bits.
fn masked(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    let cleared = u32::from(bits(address).checked_sub(prefix)?);
    Some(match address {
        IpAddr::V4(four) => {
            let mask = u32::MAX.checked_shl(cleared).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(four.to_bits() & mask))
        }
        IpAddr::V6(six) => {
            let mask = u128::MAX.checked_shl(cleared).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & mask))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> BanTarget {
        if let Some((address, port)) = text.split_once(",udp:") {
            return BanTarget::Flow {
                address: address.parse().unwrap(),
                port: port.parse().unwrap(),
            };
        }
        match text.split_once('/') {
            Some((address, prefix)) => BanTarget::Network {
                address: address.parse().unwrap(),
                prefix: prefix.parse().unwrap(),
            },
            None => BanTarget::host(text.parse().unwrap()),
        }
    }

    #[test]
    fn a_target_has_one_form() {
        for (given, canonical) in [
            ("203.0.113.9", Ok("203.0.113.9")),
            ("203.0.113.9/24", Ok("203.0.113.0/24")),
            ("::ffff:203.0.113.9", Ok("203.0.113.9")),
            ("::ffff:203.0.113.9/120", Ok("203.0.113.0/24")),
            ("2001:db8:1:2:3::7/64", Ok("2001:db8:1:2::/64")),
            ("2001:db8::7", Ok("2001:db8::7")),
            ("::1", Ok("::1")),
            ("::ffff:203.0.113.9,udp:4433", Ok("203.0.113.9,udp:4433")),
            ("2001:db8::7,udp:1", Ok("2001:db8::7,udp:1")),
            ("0.0.0.0", Err(Unbannable::Unspecified)),
            ("0.0.0.7/24", Err(Unbannable::Unspecified)),
            ("::", Err(Unbannable::Unspecified)),
            ("::ffff:0.0.0.0", Err(Unbannable::Unspecified)),
            ("::ffff:203.0.113.9/64", Err(Unbannable::Unspecified)),
            ("::ffff:203.0.113.9/96", Err(Unbannable::Everybody)),
            ("203.0.113.9/0", Err(Unbannable::Everybody)),
            ("2001:db8::/0", Err(Unbannable::Everybody)),
            ("203.0.113.9/33", Err(Unbannable::PrefixTooLong(32))),
            ("2001:db8::/129", Err(Unbannable::PrefixTooLong(128))),
            ("203.0.113.9,udp:0", Err(Unbannable::PortZero)),
            ("::ffff:0.0.0.0,udp:9", Err(Unbannable::Unspecified)),
        ] {
            let made = target(given).canonical();
            assert_eq!(made, canonical.map(target), "{given}");
            if let Ok(made) = made {
                assert_eq!(made.to_string(), canonical.unwrap(), "{given}");
                assert_eq!(made.canonical(), Ok(made), "{given}");
            }
        }
    }

    #[test]
    fn lifting_takes_what_covers_and_what_is_covered() {
        for (lifted, ban, expected) in [
            ("2001:db8:1:2::7", "2001:db8:1:2::/64", true),
            ("2001:db8:1:3::7", "2001:db8:1:2::/64", false),
            ("2001:db8:1:2::/64", "2001:db8:1:2::7", true),
            ("203.0.113.9", "203.0.113.9", true),
            ("203.0.113.9", "203.0.113.10", false),
            ("203.0.113.0/24", "203.0.113.10", true),
            ("203.0.113.9", "203.0.113.9,udp:4433", true),
            ("203.0.113.0/24", "203.0.113.9,udp:4433", true),
            ("203.0.113.8", "203.0.113.9,udp:4433", false),
            ("203.0.113.9,udp:4433", "203.0.113.9,udp:4433", true),
            ("203.0.113.9,udp:4433", "203.0.113.9,udp:4434", false),
            ("203.0.113.9,udp:4433", "203.0.113.9", false),
            ("32.1.0.0/16", "2001::/16", false),
            ("2001::/16", "32.1.0.0,udp:7", false),
        ] {
            assert_eq!(target(lifted).lifts(target(ban)), expected, "{lifted} lifts {ban}");
        }
    }

    #[test]
    fn a_timeout_is_rounded_up_and_cut_to_what_the_kernel_holds() {
        for (given, seconds) in [
            (Duration::from_nanos(1), Ok(1)),
            (Duration::from_millis(500), Ok(1)),
            (Duration::from_secs(1), Ok(1)),
            (Duration::from_millis(1001), Ok(2)),
            (Duration::from_mins(1), Ok(60)),
            (Duration::new(2_147_482, 999_999_999), Ok(2_147_483)),
            (LONGEST_TIMEOUT, Ok(2_147_483)),
            (LONGEST_TIMEOUT + Duration::from_nanos(1), Ok(2_147_483)),
            (Duration::MAX, Ok(2_147_483)),
            (Duration::ZERO, Err(Unbannable::NoTime)),
        ] {
            assert_eq!(whole_seconds(given), seconds, "{given:?}");
        }
    }
}
