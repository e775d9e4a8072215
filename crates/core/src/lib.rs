//! Decides: access-log lines in, verdicts out.
//!
//! Pure arithmetic on what others read and measured. No I/O, no clock (time is an argument), no
//! threads, no async, no serde, no unsafe code; so each decision can be replayed from a log, tested
//! in microseconds, fuzzed, and explained.
//!
//! ```text
//! bytes ─▶ line ─▶ access ─Sighting─▶ exempt ─▶ roster ─Verdict─▶ (somebody who acts)
//! ```
//!
//! | room | what it does |
//! |---|---|
//! | [`mod@line`] | bytes in, lines out |
//! | [`access`] | one line in, a sighting or the reason why not |
//! | [`sighting`] | what a line says: user, peer, transport, inbound |
//! | [`rejection`] | the reasons why a line is not taken |
//! | `address` | addresses and ports as Go prints them |
//! | [`network`] | networks, and the source that a peer belongs to |
//! | [`exempt`] | who may never be banned nor counted |
//! | [`policy`] | the rules of the house; only valid ones can be built |
//! | [`batch`] | a few sightings at a time, fetched from memory together |
//! | [`roster`] | who is live from where; sightings in, verdicts out |
//! | `sessions` | one user, and the rule by which the log alone decides |
//! | `neighbours` | who else is at a source |
//! | `identity` | names that differ in case alone are one user |
//! | `tags` | names of inbounds, each kept once |
//! | [`brake`] | how many users may be banned in a minute |
//! | `few` | a list that is nearly always one item long |
//! | `bounded` | a map that never outgrows its capacity |
//! | [`verdict`] | what the roster says, and all that a record of it needs |
//! | [`moment`] | instants without a clock |
//! | `synthetic` | made-up access logs, behind a feature of that name |
//! | [`error`] | settings that cannot be, as sentences |

#![forbid(unsafe_code)]

pub mod access;
mod address;
pub mod batch;
mod bounded;
pub mod brake;
pub mod error;
pub mod exempt;
mod few;
mod identity;
pub mod line;
pub mod moment;
mod neighbours;
pub mod network;
pub mod policy;
pub mod rejection;
pub mod roster;
mod sessions;
pub mod sighting;
#[cfg(any(test, feature = "synthetic"))]
pub mod synthetic;
mod tags;
pub mod verdict;

pub use batch::Batch;
pub use brake::{BanBrake, Permit};
pub use error::Error;
pub use exempt::{Exemption, Exemptions};
pub use moment::Moment;
pub use network::{Family, Network, Source};
pub use policy::{Keep, Policy, Terms};
pub use rejection::Rejection;
pub use roster::{Counters, Roster};
pub use sighting::{Peer, Sighting, Transport};
pub use verdict::{Eviction, Evidence, Ground, Incumbent, Measure, Offender, Restraint, Verdict};
