//! Acts: what Refract does to the kernel, and what it asks of it.
//!
//! Std types in and out. It knows no users, reads no log and no clock, and decides nothing.
//!
//! | room | what it does |
//! |---|---|
//! | [`wire`] | the netlink format, both ways, pure |
//! | [`netlink`] | one socket: requests, dumps, events |
//! | [`ban`] | what is banned, in one form |
//! | [`ban_sets`] | the ban backend: our ipsets, and nothing but ours |
//! | [`ban_set`] | one of them: what it has to be, and how it becomes that |
//! | [`ipset`] | sets and their entries, one question and answer at a time |
//! | [`ipset_wire`] | the messages of ipset, both ways, pure |
//! | [`sock_diag`] | TCP connections: find, observe, list, reset |
//! | [`lookups`] | which of many local ends a client is connected to |
//! | [`message_filter`] | which answers and events of `sock_diag` the kernel hands on |
//! | [`sock_diag_wire`] | the messages of `sock_diag`, both ways, pure |
//! | [`close_events`] | when a TCP connection is gone |
//! | [`activity`] | what has moved on a connection |
//! | [`sock_filter`] | which connections a dump is to find |
//! | [`conntrack`] | UDP flows: forget those of a banned source |
//! | [`host`] | this host's own addresses and gateways, and when they change |
//! | [`ruleset_events`] | when somebody changes the nftables rules |
//! | [`nftables`] | the other ban backend: one nftables table of ours, sets and rules in it |
//! | [`networks`] | a set of address networks |
//! | [`xtables`] | the firewall rule, through the host's iptables |
//! | [`error`] | what can go wrong, as sentences |

pub mod activity;
pub mod ban;
pub mod ban_set;
pub mod ban_sets;
pub mod close_events;
pub mod conntrack;
pub mod error;
pub mod host;
pub mod ipset;
pub mod ipset_wire;
pub mod lookups;
pub mod message_filter;
pub mod netlink;
pub mod networks;
pub mod nftables;
pub mod ruleset_events;
pub mod sock_diag;
pub mod sock_diag_wire;
pub mod sock_filter;
pub mod wire;
pub mod xtables;

pub use error::{Errno, Error};
