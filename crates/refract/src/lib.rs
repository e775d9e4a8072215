//! Joins: the daemon and its command line, where everything is that can wait or fail.
//!
//! | room | what it does |
//! |---|---|
//! | [`cli`] | the command line: flags, variables, defaults, one sentence for a mistake |
//! | [`ports`] | the protected ports |
//! | [`daemon`] | the loop: start, serve, upkeep, stop |
//! | [`tail`] | follows the log through every way in which it can be rotated |
//! | [`judge`] | one line in, at most one eviction out |
//! | [`enforce`] | carries evictions out: ban, kill, survey, second pass |
//! | [`survey`] | dumps of the socket table, on a thread of their own |
//! | [`endpoints`] | which local end a client's connection probably has |
//! | [`ledger`] | what we believe is banned |
//! | [`adopt`] | bans found at the start that no record explains |
//! | [`firewall`] | sets and rule: put in place, kept, taken away |
//! | [`rule_keeper`] | the process that alone runs iptables |
//! | [`audit`] | the block log |
//! | [`escape`] | attackers' bytes made safe to show |
//! | [`health`] | a log from which nothing can be enforced is noticed |
//! | [`telemetry`] | what is said on stderr |
//! | [`commands`] | `list`, `unban`, `why`, `uninstall` |
//! | [`doctor`] | `doctor` |
//! | [`lock`] | one daemon a network namespace |
//! | [`privilege`] | which rights this process has |
//! | [`error`] | why it refuses or fails, as sentences |

#![forbid(unsafe_code)]

pub mod adopt;
pub mod audit;
pub mod cli;
pub mod commands;
pub mod daemon;
pub mod doctor;
pub mod endpoints;
pub mod enforce;
pub mod error;
pub mod escape;
pub mod firewall;
pub mod health;
pub mod judge;
pub mod ledger;
pub mod lock;
pub mod ports;
pub mod privilege;
pub mod rule_keeper;
pub mod survey;
pub mod tail;
pub mod telemetry;
