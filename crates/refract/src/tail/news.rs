//! What the tail has to tell besides lines: changes of the log, and what keeps it from reading.
//!
//! Takes error numbers and file types; makes values whose sentences a person can act on. It decides
//! nothing: what is logged, at which level, and whether to stop is said by whoever follows.

use std::{fmt, fs, path::Path};

use rustix::{fs::FileType, io::Errno};

/// Something happened to the log. Each is said when it happens and again only after it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The path names no file. Its directories are watched until one appears.
    Absent,
    /// A file appeared where none had been followed.
    Appeared,
    /// Another file took the log's name. The former one is still read until it has been quiet for
    /// [`super::OLD_IS_DONE_AFTER`].
    Rotated,
    /// The file was cut short or written anew, and is read from where it is new.
    Truncated,
    /// The log cannot be read, and why. It is tried again.
    Unreadable(Trouble),
    /// What was said to be unreadable is read.
    ReadableAgain,
    /// No watch could be set, so that changes are found at the next [`super::Tail::check`] only.
    Unwatched(Trouble),
    /// More old files than [`super::OLD_FILES_KEPT`] were unread, and one was left with so many
    /// bytes in it.
    GivenUp(u64),
    /// Standard input has ended: no line will come any more.
    Ended,
}

impl fmt::Display for News {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => out.write_str("the access log is not there; waiting for it"),
            Self::Appeared => out.write_str("the access log is there"),
            Self::Rotated => out.write_str("the access log was rotated"),
            Self::Truncated => out.write_str("the access log was truncated"),
            Self::Unreadable(trouble) | Self::Unwatched(trouble) => trouble.fmt(out),
            Self::ReadableAgain => out.write_str("the access log is readable again"),
            Self::GivenUp(bytes) => {
                write!(out, "too many rotated access logs at once: {bytes} bytes were left unread")
            }
            Self::Ended => out.write_str("standard input has ended"),
        }
    }
}

/// What keeps the log from being read or watched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The file's mode, or that of a directory before it, does not let us in.
    #[error(
        "cannot read {path} as {user}: permission denied; run as root, grant CAP_DAC_READ_SEARCH, \
         or let that user read the file and enter its directories"
    )]
    Denied {
        /// The log as it was named.
        path: String,
        /// Who we are: `name (uid 998)`.
        user: String,
    },
    /// The path names something that holds no log.
    #[error("cannot follow {path}: it is {kind}, not a file or a FIFO")]
    NotALog {
        /// The log as it was named.
        path: String,
        /// What it is instead.
        kind: &'static str,
    },
    /// The path leads into `/proc`, as a link to `/dev/stdout` does: to our own descriptors.
    #[error(
        "cannot follow {path}: it leads into /proc, probably to /dev/stdout; \
         make Xray write its access log to a file or a FIFO"
    )]
    OwnDescriptor {
        /// The log as it was named.
        path: String,
    },
    /// The kernel's limit on watches is reached.
    #[error(
        "cannot watch {path}: no inotify watch is left; raise the sysctl fs.inotify.max_user_watches"
    )]
    NoWatchLeft {
        /// What was to be watched.
        path: String,
    },
    /// Any other answer of the kernel.
    #[error("cannot {operation} {path}: {source}")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: String,
        /// The kernel's answer.
        source: Errno,
    },
}

impl Trouble {
    pub(super) fn reading(path: &Path, source: Errno) -> Self {
        let name = path.display().to_string();
        match source {
            Errno::ACCESS | Errno::PERM => Self::Denied { path: name, user: ourselves() },
            _ => Self::Failed { operation: "read", path: name, source },
        }
    }

    pub(super) fn watching(path: &Path, source: Errno) -> Self {
        let path = path.display().to_string();
        match source {
            Errno::NOSPC => Self::NoWatchLeft { path },
            _ => Self::Failed { operation: "watch", path, source },
        }
    }

    pub(super) fn not_a_log(path: &Path, kind: FileType) -> Self {
        let kind = match kind {
            FileType::Directory => "a directory",
            FileType::CharacterDevice => "a character device",
            FileType::BlockDevice => "a block device",
            FileType::Socket => "a socket",
            _ => "something else",
        };
        Self::NotALog { path: path.display().to_string(), kind }
    }
}

/// Why following could not even begin.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {object}: {source}")]
pub struct TailError {
    /// What was tried.
    pub operation: &'static str,
    /// On what.
    pub object: String,
    /// The kernel's answer.
    pub source: Errno,
}

/// The user whose rights the kernel checks, by name where `/etc/passwd` has one.
fn ourselves() -> String {
    let uid = rustix::process::geteuid().as_raw();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|user| {
        let mut fields = user.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    match name {
        Some(name) => format!("{name} (uid {uid})"),
        None => format!("uid {uid}"),
    }
}
