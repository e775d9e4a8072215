//! Joins.
//!
//! | room | what it does |
//! |---|---|
//! | [`rule_keeper`] | the process that alone runs iptables, and the daemon's side of it |

pub mod rule_keeper;
