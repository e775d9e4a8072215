//! Why Refract refuses or fails: operation, object, cause, and what the operator can do about it.
//!
//! Takes the errors of the kernel crate and of the operating system; makes one sentence each. Lines
//! of the log that are not taken are not errors: they are counted under their reason.

use std::{io, path::PathBuf};

use refract_kernel::{Errno, Error as KernelError, xtables::ProgramFailure};

use crate::{container, lock::LOCK_NAME, rule_keeper::RuleKeeperError, tail::TailError};

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
    /// The process may not do what iptables takes.
    #[error(
        "CAP_NET_RAW is missing, which iptables takes: run refract as root, give the service \
         AmbientCapabilities=CAP_NET_RAW or the container cap_add NET_RAW, or use \
         --firewall=nftables, which does without"
    )]
    MissingNetRaw,
    /// Rules that iptables made are to be removed where it cannot be used.
    #[error(
        "there are sets of refract's that rules of iptables look up, and those cannot be removed \
         from here, since {obstacle}: run `refract uninstall` {}",
        container::where_iptables_is(*.is_container)
    )]
    RulesOutOfReach {
        /// What keeps iptables from being used.
        obstacle: &'static str,
        /// Whether this is a container.
        is_container: bool,
    },
    /// iptables was ordered, and is there and does not work.
    #[error(
        "{failure}; mend it, name another with --iptables=PATH, or use --firewall=nftables, which \
         needs no program"
    )]
    BrokenIptables {
        /// What it did instead of what it was told.
        failure: String,
    },
    /// What iptables made cannot be removed, because it does not work.
    #[error(
        "{failure}; so the rule that looks up refract's sets is still there, and so are they: mend \
         iptables, or name one that works with --iptables=PATH, then run `refract uninstall` again"
    )]
    RulesLeftBehind {
        /// What it did instead of what it was told.
        failure: String,
    },
    /// Neither firewall can be used.
    #[error("no firewall can be used here: for iptables, {iptables}; for nftables, {nftables}")]
    NoFirewall {
        /// Why iptables and ipset cannot.
        iptables: String,
        /// Why nftables cannot.
        nftables: String,
    },
    /// A chain was named that only iptables knows.
    #[error(
        "nftables has no chain {chain} to hook: use --chain=INPUT, FORWARD or DOCKER-USER, or \
         --firewall=iptables"
    )]
    ChainOfIptables {
        /// Its name.
        chain: String,
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
    Kernel(#[from] KernelError),
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
    /// `CAP_NET_ADMIN` is held, and does not reach as far as this network namespace.
    #[error(
        "{act} is not permitted here, although CAP_NET_ADMIN is held: run refract in the user \
         namespace that owns this network namespace, or with the host's CAP_NET_ADMIN"
    )]
    RightsElsewhere {
        /// What was tried.
        act: &'static str,
    },
    /// Nothing is where `--netns` says.
    #[error(
        "there is no network namespace {}: start what makes it before refract (`ip netns list` \
         shows names, `lsns -t net` processes)",
        path.display()
    )]
    NamespaceAbsent {
        /// As given, a name with its directory.
        path: PathBuf,
    },
    /// Something else is where `--netns` says.
    #[error(
        "{} is not a network namespace: name one as `ip netns list` shows it, or a path such as \
         /proc/PID/ns/net",
        path.display()
    )]
    NotANamespace {
        /// As given, a name with its directory.
        path: PathBuf,
    },
    /// The rights to enter it are missing.
    #[error(
        "entering the network namespace {} is not permitted: run refract as root or with \
         CAP_SYS_ADMIN (and CAP_SYS_PTRACE for /proc/PID/ns/net of another user's process), or start \
         it there, with NetworkNamespacePath= of systemd or `nsenter --net={}`",
        path.display(),
        path.display()
    )]
    NamespaceNotPermitted {
        /// As given, a name with its directory.
        path: PathBuf,
    },
    /// The name means another namespace than the one that was entered, or none.
    #[error(
        "the network namespace {} {what}, so nothing can be enforced in the one that refract is in: \
         start refract again, as Restart=on-failure of systemd does",
        path.display()
    )]
    NamespaceReplaced {
        /// As given, a name with its directory.
        path: PathBuf,
        /// What became of it.
        what: &'static str,
    },
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

impl Error {
    /// The same, for whoever holds the rights that `act` takes, where it is that they do not reach as far
    /// as this network namespace.
    #[must_use]
    pub fn or_rights_elsewhere(self, act: &'static str) -> Self {
        let is_refusal = match &self {
            Self::Kernel(KernelError::Program { source, .. }) => {
                matches!(source, ProgramFailure::NotPermitted)
            }
            Self::Kernel(error) => error.errno() == Some(Errno::PERM),
            _ => false,
        };
        if is_refusal { Self::RightsElsewhere { act } } else { self }
    }

    /// The same with the remedy, for whoever wants rules removed, where it is that iptables does not
    /// work.
    #[must_use]
    pub fn or_rules_left_behind(self) -> Self {
        match self {
            Self::Kernel(error) if error.is_breakage() => {
                Self::RulesLeftBehind { failure: error.to_string() }
            }
            error => error,
        }
    }

    /// The same with the remedy, for whoever ordered iptables, where it is that iptables does not work.
    #[must_use]
    pub fn or_broken_iptables(self) -> Self {
        let is_breakage = match &self {
            Self::Kernel(error) => error.is_breakage(),
            Self::RuleKeeper(RuleKeeperError::Failed { is_breakage, .. }) => *is_breakage,
            _ => false,
        };
        if is_breakage { Self::BrokenIptables { failure: self.to_string() } } else { self }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_iptables_that_does_not_work_comes_with_the_remedy_once_and_another_failure_with_its_own()
    {
        let remedy = "; mend it, name another with --iptables=PATH, or use --firewall=nftables, which \
                      needs no program";
        let failures = [
            (ProgramFailure::Unrunnable(io::Error::from_raw_os_error(8)), true),
            (ProgramFailure::TimedOut(Duration::from_secs(10)), true),
            (
                ProgramFailure::Exited {
                    status: "signal: 9".to_owned(),
                    complaint: "no".to_owned(),
                },
                true,
            ),
            (ProgramFailure::TooMuch, true),
            (ProgramFailure::Unintelligible, true),
            (ProgramFailure::NotFound, false),
            (ProgramFailure::NotPermitted, false),
            (ProgramFailure::NoChain { chain: "mine".to_owned() }, false),
        ];
        for (source, is_broken) in failures {
            let program = "/usr/sbin/iptables".into();
            let failed = KernelError::Program { operation: "check the rule with", program, source };
            let (sentence, is_breakage) = (failed.to_string(), failed.is_breakage());
            let expected = if is_broken { format!("{sentence}{remedy}") } else { sentence.clone() };
            let of_keeper = RuleKeeperError::Failed { sentence, is_breakage };
            for error in [Error::Kernel(failed), Error::RuleKeeper(of_keeper)] {
                let told = error.or_broken_iptables();
                assert_eq!(told.to_string(), expected);
                assert_eq!(told.or_broken_iptables().to_string(), expected);
            }
        }
    }

    #[test]
    fn a_refusal_of_a_right_that_is_held_says_where_it_would_count_and_no_other_failure_does() {
        let program = |source| KernelError::Program {
            operation: "list the rules with",
            program: "/usr/sbin/iptables".into(),
            source,
        };
        let refused = |source| KernelError::Refused {
            operation: "list",
            object: "the set".to_owned(),
            source,
        };
        let opened = KernelError::Io {
            operation: "open",
            object: "a socket".to_owned(),
            source: io::Error::from_raw_os_error(1),
        };
        for (error, is_refusal) in [
            (refused(Errno::PERM), true),
            (opened, true),
            (program(ProgramFailure::NotPermitted), true),
            (refused(Errno::NOENT), false),
            (program(ProgramFailure::Unrunnable(io::Error::from_raw_os_error(1))), false),
        ] {
            let before = error.to_string();
            let told = Error::Kernel(error).or_rights_elsewhere("lifting bans");
            assert_eq!(matches!(told, Error::RightsElsewhere { .. }), is_refusal, "{before}");
            assert_eq!(told.to_string().contains("lifting bans is not permitted"), is_refusal);
        }
    }
}
