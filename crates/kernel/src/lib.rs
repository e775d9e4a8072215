//! Acts: what Refract does to the kernel, and what it asks of it.
//!
//! Std types in and out. It knows no users, reads no log and no clock, and decides nothing.
//!
//! | room | what it does |
//! |---|---|
//! | [`wire`] | the netlink format, both ways, pure |
//! | [`netlink`] | one socket: requests, dumps, events |
//! | [`xtables`] | the firewall rule, through the host's iptables |
//! | [`error`] | what can go wrong, as sentences |

pub mod error;
pub mod netlink;
pub mod wire;
pub mod xtables;

pub use error::{Errno, Error};
