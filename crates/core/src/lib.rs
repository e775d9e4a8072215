//! Decides: access-log lines in, verdicts out.
//!
//! Pure arithmetic on what others read and measured. No I/O, no clock (time is an argument), no
//! threads, no async, no serde, no unsafe code; so each decision can be replayed from a log, tested
//! in microseconds, fuzzed, and explained.
//!
//! ```text
//! bytes ─▶ line ─▶ access ─Sighting─▶ taint ─▶ exempt ─┬▶ occupancy ─┬─Verdict─▶ (somebody who acts)
//!                                                      └▶ roster ────┘
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
//! | [`accounts`] | what each user may, and which rule says so |
//! | `glob` | one name against one pattern |
//! | [`batch`] | a few sightings at a time, fetched from memory together |
//! | [`roster`] | who is live from where; sightings in, verdicts out |
//! | [`link`] | one connection by all of its names, and how its payload stands |
//! | [`taint`] | which lines may be a client's own words |
//! | [`occupancy`] | who is at work from where, by the kernel's evidence |
//! | [`overlap`] | the rule by which that is too many: a pure function |
//! | `sessions` | one user, and the rule by which the log alone decides |
//! | `neighbours` | who else is at a source |
//! | [`identity`] | names that differ in case alone are one user |
//! | `tags` | names of inbounds, each kept once |
//! | [`brake`] | how many users, and how many sources of one, may be banned in a minute |
//! | `few` | a list that is nearly always one item long |
//! | `bounded` | a map that never outgrows its capacity |
//! | [`verdict`] | what the roster and the occupancy say, and all that a record of it needs |
//! | [`moment`] | instants without a clock |
//! | `synthetic` | made-up access logs, behind a feature of that name |
//! | [`error`] | settings that cannot be, as sentences |

#![forbid(unsafe_code)]

pub mod access;
pub mod accounts;
mod address;
pub mod batch;
mod bounded;
pub mod brake;
pub mod error;
pub mod exempt;
mod few;
mod glob;
pub mod identity;
pub mod line;
pub mod link;
pub mod moment;
mod neighbours;
pub mod network;
pub mod occupancy;
pub mod overlap;
pub mod policy;
pub mod rejection;
pub mod roster;
mod sessions;
pub mod sighting;
#[cfg(any(test, feature = "synthetic"))]
pub mod synthetic;
mod tags;
pub mod taint;
pub mod verdict;

pub use accounts::{Account, AccountTerms, Accounts, Group, Places, Rule};
pub use batch::Batch;
pub use brake::{Brakes, Permit};
pub use error::Error;
pub use exempt::{Exemption, Exemptions};
pub use glob::is_pattern;
pub use link::{Found, Link, Sample};
pub use moment::Moment;
pub use network::{Family, Network, Source};
pub use occupancy::{Claim, Occupancy, Standing};
pub use policy::{Action, Keep, Policy, Terms};
pub use rejection::Rejection;
pub use roster::{Counters, Roster};
pub use sighting::{Peer, Sighting, Transport};
pub use taint::Taint;
pub use verdict::{
    Abstention, Basis, Eviction, Evidence, Exhibit, Ground, Incumbent, Measure, Offender, Proof,
    Question, Restraint, Verdict,
};
