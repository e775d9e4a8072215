//! What can be wrong with a setting: the setting, what was written, and what it takes.
//!
//! Lines that are not ours to take are no errors but [`Rejection`](crate::Rejection)s.

use std::net::IpAddr;

use crate::network::Network;

/// Everything that this crate refuses to build.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text is no network.
    #[error("{text:?} is no network: write an address such as 192.0.2.1, or 192.0.2.0/24")]
    NotANetwork {
        /// What was written.
        text: String,
    },
    /// A prefix is longer than the address.
    #[error("/{prefix} is too long for {address}: at most /{limit}")]
    PrefixTooLong {
        /// The address in front of it.
        address: IpAddr,
        /// What was asked for, in bits.
        prefix: u8,
        /// What the address family takes.
        limit: u8,
    },
    /// Bits are set behind the prefix, so one of the two is a slip.
    #[error(
        "{address}/{prefix} has bits set behind its prefix: write {masked}, or {address} alone"
    )]
    HostBits {
        /// The address as written.
        address: IpAddr,
        /// The prefix as written.
        prefix: u8,
        /// The network with those bits cleared.
        masked: Network,
    },
    /// A number of the policy is out of its range.
    #[error("{setting} cannot be {value}: it takes {range}")]
    OutOfRange {
        /// The setting's name.
        setting: &'static str,
        /// What was asked for.
        value: String,
        /// What it takes, in words.
        range: String,
    },
    /// A user, a pattern or a group is in two rules.
    #[error("{name:?} is named twice, in {first} and in {second}: keep one")]
    NamedTwice {
        /// The name as written the second time.
        name: String,
        /// The list or group that names it first.
        first: String,
        /// The list or group that names it again.
        second: String,
    },
    /// A pattern stands where only one user can.
    #[error(
        "{name:?} is a pattern, where a user's full name is needed: write * and ? in limits or \
         ignore"
    )]
    NotAName {
        /// What was written.
        name: String,
    },
    /// A name is empty, or longer than any in the log.
    #[error("{name:?} is no name: it takes 1 to {limit} bytes")]
    NameLength {
        /// What was written.
        name: String,
        /// The most, bytes.
        limit: usize,
    },
    /// More of something than there is room for.
    #[error("there are too many {what}: at most {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The most.
        limit: usize,
    },
}
