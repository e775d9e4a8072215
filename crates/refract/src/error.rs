//! Why Refract refuses or fails: operation, object, cause, and what the operator can do about it.
//!
//! Takes the errors of the kernel crate and of the operating system; makes one sentence each. Lines
//! of the log that are not taken are not errors: they are counted under their reason.

use std::{io, path::PathBuf};

use crate::{lock::LOCK_NAME, rule_keeper::RuleKeeperError, tail::TailError};

/// Everything that ends the daemon's start, or a command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The process may not do what enforcing takes.
    #[error(
        "{name} is missing: run refract as root, give the service \
         AmbientCapabilities={name} or the container cap_add {name}, \
         or look without touching anything with --dry-run"
    )]
    MissingCapability {
        /// As in capabilities(7).
        name: &'static str,
    },
    /// The lock of this network namespace is taken.
    #[error(
        "another refract already runs in this network namespace (it holds the abstract socket \
         @{LOCK_NAME}): stop it first; `ss -xap | grep @{LOCK_NAME}` shows its process"
    )]
    AlreadyRunning,
    /// The lock could not even be tried.
    #[error(
        "cannot bind the abstract socket @{LOCK_NAME} that keeps a second refract out: {source}"
    )]
    Lock {
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] refract_kernel::Error),
    /// A set that bears our name is of a type that cannot serve, and is not ours to replace.
    #[error(
        "the set {set} exists with type {found} and is used by a rule that is not refract's \
         ({users}): remove that rule or rename that set, then start refract again"
    )]
    ForeignSet {
        /// Its name, one of ours.
        set: String,
        /// Its type as the kernel calls it.
        found: String,
        /// The rules that refer to it, as iptables prints them.
        users: String,
    },
    /// The rule keeper failed at the start, when the rule must be there.
    #[error(transparent)]
    RuleKeeper(#[from] RuleKeeperError),
    /// The settings make no policy.
    #[error(transparent)]
    Policy(#[from] refract_core::Error),
    /// The access log cannot be followed at all.
    #[error(transparent)]
    Tail(#[from] TailError),
    /// `CAP_NET_ADMIN` does not reach as far as the sockets.
    #[error(
        "resetting connections is not permitted here, although CAP_NET_ADMIN is held: run refract \
         in the user namespace that owns this network namespace, or with the host's CAP_NET_ADMIN"
    )]
    ResetNotPermitted,
    /// A file, a socket or a process.
    #[error("cannot {operation} {object}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The block log could not be read by a command that answers from it.
    #[error("cannot read the block log {}: {source}", path.display())]
    BlockLog {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A given source is neither an address nor a network.
    #[error("{text:?} is not an address or a network such as 198.51.100.7 or 2001:db8::/64")]
    NotASource {
        /// As given.
        text: String,
    },
    /// Asked to lift bans that are not there.
    #[error("not banned: {sources}")]
    NotBanned {
        /// The sources asked for, comma separated.
        sources: String,
    },
}
