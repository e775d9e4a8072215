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
//! | [`error`] | what can go wrong, as sentences |

pub mod ban;
pub mod ban_set;
pub mod ban_sets;
pub mod error;
pub mod ipset;
pub mod ipset_wire;
pub mod netlink;
pub mod wire;

pub use error::{Errno, Error};
