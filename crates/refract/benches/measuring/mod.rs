//! What the benchmarks of this crate measure with: the floor, its netlink messages, and the numbers.
//!
//! | room | what it does |
//! |---|---|
//! | [`raw`] | the few netlink messages that it takes, apart from Refract's own |
//! | [`floor`] | a floor as a process of its own |
//! | [`log_floor`] | the least that can be done about a line |
//! | [`gaps`] | random waits, so that nobody's period is measured |
//! | [`samples`] | percentiles, rows, and whether a promise was kept |

pub(crate) mod floor;
pub(crate) mod gaps;
pub(crate) mod log_floor;
pub(crate) mod raw;
pub(crate) mod samples;

use std::net::Ipv4Addr;

/// The `number`th address from `first` on.
pub(crate) fn nth(first: Ipv4Addr, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first).wrapping_add(number))
}
