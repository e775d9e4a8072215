//! What can go wrong between Refract and the kernel: operation, object, and the kernel's answer.
//!
//! Takes raw error numbers and I/O errors; makes sentences that a person can act on. It decides
//! nothing: whether an error is fatal is said by whoever asked for the operation.

use std::{fmt, io, path::PathBuf};

use crate::xtables::ProgramFailure;

use crate::ban::{BanTarget, Unbannable};

/// An error number as the kernel sent it.
///
/// A type of our own because ipset answers with private codes from 4096 on, which the operating
/// system's error types do not hold (`uapi/linux/netfilter/ipset/ip_set.h`, `enum ipset_errno`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// `EPERM`.
    pub const PERM: Self = Self(1);
    /// `ENOENT`.
    pub const NOENT: Self = Self(2);
    /// `EEXIST`.
    pub const EXIST: Self = Self(17);
    /// `EINVAL`.
    pub const INVAL: Self = Self(22);
    /// `ENFILE`: a set of nftables is full.
    pub const NFILE: Self = Self(23);
    /// `ERESTART`: the nftables rules changed since a transaction was prepared.
    pub const RESTART: Self = Self(85);
    /// `EOPNOTSUPP`.
    pub const OPNOTSUPP: Self = Self(95);
    /// `EAFNOSUPPORT`.
    pub const AFNOSUPPORT: Self = Self(97);
    /// `ENOBUFS`: a receive buffer overflowed and messages were lost.
    pub const NOBUFS: Self = Self(105);
    /// `IPSET_ERR_PROTOCOL`.
    pub const IPSET_PROTOCOL: Self = Self(4097);
    /// `IPSET_ERR_FIND_TYPE`: the kernel has no such set type or revision.
    pub const IPSET_FIND_TYPE: Self = Self(4098);
    /// `IPSET_ERR_BUSY`: the set is referenced.
    pub const IPSET_BUSY: Self = Self(4100);
    /// `IPSET_ERR_TYPE_MISMATCH`: sets of different types cannot be swapped.
    pub const IPSET_TYPE_MISMATCH: Self = Self(4102);
    /// `IPSET_ERR_EXIST`: the element is (add) or is not (delete, test) there.
    pub const IPSET_EXIST: Self = Self(4103);
    /// `IPSET_ERR_TIMEOUT`: the set was made without timeouts.
    pub const IPSET_TIMEOUT: Self = Self(4107);
    /// `IPSET_ERR_HASH_FULL`.
    pub const IPSET_HASH_FULL: Self = Self(4352);
}

impl fmt::Display for Errno {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::PERM => out.write_str("not permitted (it takes CAP_NET_ADMIN)"),
            Self::RESTART => out.write_str("other rules kept changing meanwhile"),
            Self::IPSET_PROTOCOL => out.write_str("the kernel's ipset speaks another protocol"),
            Self::IPSET_FIND_TYPE => out.write_str("the kernel has no such set type"),
            Self::IPSET_BUSY => out.write_str("the set is in use by a rule"),
            Self::IPSET_TYPE_MISMATCH => out.write_str("the set is of another type"),
            Self::IPSET_EXIST => out.write_str("the element is already there, or is not"),
            Self::IPSET_TIMEOUT => out.write_str("the set was made without timeouts"),
            Self::IPSET_HASH_FULL => out.write_str("the set is full"),
            Self(code) if code < 4096 => {
                write!(out, "{}", io::Error::from_raw_os_error(code))
            }
            Self(code) => write!(out, "ipset error {code}"),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Errno({}: {self})", self.0)
    }
}

impl std::error::Error for Errno {}

/// Everything that this crate can fail at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel answered a request with an error number.
    #[error("cannot {operation} {object}: {source}")]
    Refused {
        /// What was asked for, as a verb: "add to", "create", "destroy".
        operation: &'static str,
        /// What it was asked of: a set's name, an address, a connection.
        object: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// A system call on a socket, file or process failed.
    #[error("cannot {operation} {object}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel was built or booted without something that is needed.
    #[error(
        "the kernel has no {feature}: load it with `modprobe {module}`, or use a kernel built \
         with CONFIG_{}", module.to_uppercase()
    )]
    Unsupported {
        /// What is missing, as an operator knows it.
        feature: String,
        /// The kernel module that has it; its name in capitals is the build option's.
        module: String,
    },
    /// There can be no such ban.
    #[error("cannot ban {target}: {source}")]
    Unbannable {
        /// What was to be banned.
        target: BanTarget,
        /// Why not.
        source: Unbannable,
    },
    /// A ban could not be made because its set is full.
    #[error(
        "cannot ban {target}: the set {set} is full; `{list}` shows who fills it, and entries \
         leave it when their timeouts end"
    )]
    SetFull {
        /// The set.
        set: String,
        /// The command that lists it.
        list: String,
        /// What was to be banned.
        target: BanTarget,
    },
    /// A set is gone: somebody destroyed it.
    #[error("the set {set} does not exist")]
    SetMissing {
        /// The set.
        set: String,
    },
    /// Sets of ours that rules still name cannot be destroyed.
    #[error("cannot destroy {}: in use by a firewall rule; remove the rule first", .sets.join(", "))]
    SetsInUse {
        /// The sets.
        sets: Vec<String>,
    },
    /// The table `inet refract` is another program's alone, as nftables' flag `owner` says.
    #[error(
        "the table inet refract belongs to another program (flag owner), which alone can change it: \
         end that program first"
    )]
    TableOwned,
    /// The kernel's answer cannot be understood.
    #[error("cannot understand the kernel's answer to {operation} {object}")]
    Malformed {
        /// What was asked for.
        operation: &'static str,
        /// On what.
        object: String,
    },
    /// A program of the firewall did not do what it was told.
    #[error("cannot {operation} {}: {source}", .program.display())]
    Program {
        /// What was tried, up to the program: "install the rule with".
        operation: &'static str,
        /// Its path.
        program: PathBuf,
        /// Why it did not.
        source: ProgramFailure,
    },
    /// A firewall rule that nobody can want.
    #[error("cannot plan the firewall rule: {reason}")]
    Plan {
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Error {
    /// Whether a program of the firewall does not work: [`ProgramFailure::is_breakage`].
    #[must_use]
    pub fn is_breakage(&self) -> bool {
        matches!(self, Self::Program { source, .. } if source.is_breakage())
    }

    /// The kernel's error number, when it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } => Some(*source),
            Self::Io { source, .. } => source.raw_os_error().map(Errno),
            Self::Program { source: ProgramFailure::Unrunnable(source), .. } => {
                source.raw_os_error().map(Errno)
            }
            Self::SetFull { .. } => Some(Errno::IPSET_HASH_FULL),
            Self::SetMissing { .. } => Some(Errno::NOENT),
            Self::SetsInUse { .. } => Some(Errno::IPSET_BUSY),
            Self::Unsupported { .. }
            | Self::Unbannable { .. }
            | Self::Program { .. }
            | Self::Plan { .. }
            | Self::TableOwned
            | Self::Malformed { .. } => None,
        }
    }
}
