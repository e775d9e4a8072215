//! Joins: the daemon and its command line, where everything is that can wait or fail.
//!
//! | room | what it does |
//! |---|---|
//! | [`cli`] | the command line: flags, variables, defaults, one sentence for a mistake |
//! | [`config`] | the policy file, and where each value comes from |
//! | [`check`] | `check` |
//! | [`ports`] | the protected ports |
//! | [`daemon`] | the loop: start, serve, upkeep, stop |
//! | [`tail`] | follows the log through every way in which it can be rotated |
//! | `way` | every directory on the way to a file, watched |
//! | [`judge`] | the lines of one read in, verdicts out |
//! | [`enforce`] | carries verdicts out: ban, kill, ask, survey, second pass |
//! | [`survey`] | walks of the socket table, on threads of their own |
//! | [`endpoints`] | which local end a client's connection probably has |
//! | [`alarm`] | wakes the loop at the end of a slot |
//! | [`clock`] | the one clock: instants as moments |
//! | [`witness`] | asks the kernel whether a claim is true |
//! | [`grade`] | what verdicts rest on, and why |
//! | [`census`] | which connections are gone, and which no line named |
//! | [`crowd`] | everybody at one address: what hides the clients |
//! | [`hiding`] | users behind a header where others show their ports |
//! | [`repeats`] | resets on sight, summed up |
//! | [`state`] | what must outlast a restart |
//! | [`status`] | a look inside |
//! | [`supervisor`] | what systemd is told: ready, alive, the status line |
//! | [`ledger`] | what we believe is banned |
//! | [`adopt`] | bans found at the start that no record explains |
//! | [`backend`] | where bans are kept: ipset or nftables |
//! | [`firewall`] | bans and rule: put in place, kept, moved, taken away |
//! | [`rule_keeper`] | the process that alone runs iptables |
//! | [`audit`] | the block log |
//! | [`escape`] | attackers' bytes made safe to show |
//! | [`health`] | a log from which nothing can be enforced is noticed |
//! | [`telemetry`] | what is said on stderr |
//! | [`commands`] | `list`, `unban`, `why`, `uninstall` |
//! | [`doctor`] | `doctor` |
//! | [`netns`] | the network namespace that is meant, entered by its name |
//! | [`sandbox`] | what the daemon does not need, given up |
//! | [`lock`] | one daemon a network namespace |
//! | [`container`] | whether this is a container, and the remedies there |
//! | [`privilege`] | which rights this process has |
//! | [`error`] | why it refuses or fails, as sentences |

#![forbid(unsafe_code)]

pub mod adopt;
pub mod alarm;
pub mod audit;
pub mod backend;
pub mod census;
pub mod check;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod container;
pub mod crowd;
pub mod daemon;
pub mod doctor;
pub mod endpoints;
pub mod enforce;
pub mod error;
pub mod escape;
pub mod firewall;
pub mod grade;
pub mod health;
pub mod hiding;
pub mod judge;
pub mod ledger;
pub mod links;
pub mod lock;
pub mod netns;
pub mod ports;
pub mod privilege;
pub mod repeats;
pub mod rule_keeper;
pub mod sandbox;
pub mod state;
pub mod status;
pub mod supervisor;
pub mod survey;
pub mod tail;
pub mod telemetry;
mod way;
pub mod witness;
