//! The block log: records of what was done in, appended lines out.
//!
//! One line a record, written with a single `write(2)`, so that lines never mix and a crash of
//! Refract loses none that was written. A disk that is full or a file that cannot be opened never
//! holds anything up: a trouble is reported to the caller once, and so is its end; opening is tried
//! again with each later record, and the same facts are on stderr. How it reads is [`line()`]'s business.

mod format;
pub mod reading;

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use refract_core::{Basis, Incumbent, Proof};
use serde::Serialize;

pub use self::format::{BlockFormat, line};
use crate::{container, links};

/// What was done to an offender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// His source went into the kernel set and every connection of it was reset.
    Ban,
    /// Only his own named connections were reset.
    Kill,
    /// Only the UDP flow that the log named was shut out.
    Flow,
    /// One connection was reset, to see whether a device is there that opens another.
    Ask,
    /// Nothing was done, though the user's places are taken more than once.
    Refrain,
    /// A ban found in the kernel at the start that no record explains.
    Adopted,
}

impl Action {
    /// As records have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ban => "ban",
            Self::Kill => "kill",
            Self::Flow => "flow",
            Self::Ask => "ask",
            Self::Refrain => "refrain",
            Self::Adopted => "adopted",
        }
    }

    /// The action that records have by this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ban, Self::Kill, Self::Flow, Self::Ask, Self::Refrain, Self::Adopted]
            .into_iter()
            .find(|action| action.name() == name)
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As intended.
    Done,
    /// Decided, and by order (`--dry-run`) not carried out.
    DryRun,
    /// At least one step failed; the sentence says which.
    Failed(String),
}

impl Outcome {
    /// As records have it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Done => "ok",
            Self::DryRun => "dry-run",
            Self::Failed(_) => "failed",
        }
    }

    /// How something ended in which `troubles` were met.
    #[must_use]
    pub fn of(is_dry_run: bool, troubles: &[String]) -> Self {
        match (is_dry_run, troubles) {
            (true, _) => Self::DryRun,
            (false, []) => Self::Done,
            (false, _) => Self::Failed(troubles.join("; ")),
        }
    }
}

/// What was done to one source of a user, or left undone.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it was written down.
    pub time: jiff::Timestamp,
    /// What was done.
    pub action: Action,
    /// Why this action and not another, where that needs saying.
    pub reason: &'static str,
    /// The user as the log wrote him; attackers' bytes.
    pub user: Vec<u8>,
    /// The offending source: an address or a network.
    pub source: String,
    /// The connections of it that the log named.
    pub peers: Vec<SocketAddr>,
    /// Who held the places.
    pub incumbents: Vec<String>,
    /// How many places the user has.
    pub places: usize,
    /// The inbound's tag, if the log names one; attackers' bytes.
    pub inbound: Option<Vec<u8>>,
    /// How long the ban lasts.
    pub timeout: Duration,
    /// Sockets destroyed.
    pub killed: u32,
    /// Conntrack entries deleted (UDP).
    pub flows: u32,
    /// From reading the line to the ban being in the set and the named connections being reset.
    pub latency: Duration,
    /// From reading the line to the last pass over the offender's other connections.
    pub settled: Duration,
    /// What the verdict rests on.
    pub evidence: &'static str,
    /// The numbers that proved it, if the kernel gave any.
    pub proof: Option<Proof>,
    /// The verdict that it carries on, where there are no numbers.
    pub basis: Option<Basis>,
    /// For how long the places have been held, where there are no numbers that say so.
    pub held: Vec<Incumbent>,
    /// How many further resets this record stands for, none of which has one of its own.
    pub repeats: u64,
    /// How it ended.
    pub outcome: Outcome,
}

impl Record {
    /// A record about `user` at `source` on the kernel's evidence, in which nothing was done yet.
    #[must_use]
    pub fn of(user: Vec<u8>, source: String) -> Self {
        Self {
            time: jiff::Timestamp::now(),
            action: Action::Kill,
            reason: "",
            user,
            source,
            peers: Vec::new(),
            incumbents: Vec::new(),
            places: 0,
            inbound: None,
            timeout: Duration::ZERO,
            killed: 0,
            flows: 0,
            latency: Duration::ZERO,
            settled: Duration::ZERO,
            evidence: "kernel",
            proof: None,
            basis: None,
            held: Vec::new(),
            repeats: 0,
            outcome: Outcome::Done,
        }
    }
}

/// The open block log.
#[derive(Debug)]
pub struct BlockLog {
    path: PathBuf,
    format: BlockFormat,
    file: Option<File>,
    /// The last record was written in part: the next one begins on a line of its own.
    torn: bool,
    /// The trouble last reported, so that it is said once and not with every record.
    trouble: Option<String>,
}

/// What writing a record has to tell the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Records are being lost, and why.
    Trouble(String),
    /// Records are written again.
    Recovered,
}

impl BlockLog {
    /// Opens `path` for appending, creating it with mode 0640. Never fails: trouble is news.
    #[must_use]
    pub fn open(path: &Path, format: BlockFormat) -> (Self, Option<News>) {
        let mut log =
            Self { path: path.to_owned(), format, file: None, torn: false, trouble: None };
        let news = log.reopen();
        (log, news)
    }

    /// Opens the path again, as after a rotation.
    pub fn reopen(&mut self) -> Option<News> {
        match open(&self.path) {
            Ok(file) => {
                self.file = Some(file);
                self.trouble.take().map(|_| News::Recovered)
            }
            Err(error) => {
                self.file = None;
                self.report("open", &error)
            }
        }
    }

    /// Appends one record.
    pub fn append(&mut self, record: &Record) -> Option<News> {
        let reopened = if self.file.is_none() { self.reopen() } else { None };
        let Some(file) = &mut self.file else { return reopened };
        let mut line = line(record, self.format);
        if self.torn {
            line.insert(0, '\n');
        }
        match file.write(line.as_bytes()) {
            Ok(written) if written == line.len() => {
                self.torn = false;
                reopened.or_else(|| self.trouble.take().map(|_| News::Recovered))
            }
            Ok(written) => {
                self.torn |= written > 0;
                // A short write has no error of its own. As a rule the disk is full, which the next
                // write will say too, so that it is one trouble.
                self.report("write to", &rustix::io::Errno::NOSPC.into())
            }
            Err(error) => self.report("write to", &error),
        }
    }

    fn report(&mut self, operation: &str, error: &io::Error) -> Option<News> {
        let remedy = match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotFound => {
                format!(": {}", container::writable_place(container::is_one()))
            }
            _ => String::new(),
        };
        let trouble = format!(
            "cannot {operation} the block log {}: {error}; enforcement goes on, its records are \
             only here until that is mended{remedy}",
            self.path.display()
        );
        if self.trouble.as_ref() == Some(&trouble) {
            return None;
        }
        self.trouble = Some(trouble.clone());
        Some(News::Trouble(trouble))
    }
}

/// Opens a block log to read what it says. A FIFO or a device says nothing, and is refused instead
/// of waited for.
pub fn open_to_read(path: &Path) -> io::Result<File> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"))
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = links::flags_to_write(path)?;
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn record() -> Record {
        Record::of(b"alice@example.com".to_vec(), "198.51.100.12".to_owned())
    }

    #[test]
    fn the_file_is_made_for_its_owner_and_group_and_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block.log");
        for _ in 0..2 {
            let (mut log, news) = BlockLog::open(&path, BlockFormat::Text);
            assert_eq!(news, None);
            assert_eq!(log.append(&record()), None);
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & !0o640, 0, "mode {mode:o}");
    }

    #[test]
    fn trouble_is_said_once_and_so_is_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("block.log");
        let (mut log, news) = BlockLog::open(&path, BlockFormat::Text);
        assert!(matches!(news, Some(News::Trouble(_))));
        assert_eq!(log.append(&record()), None);
        std::fs::create_dir(folder.path().join("missing")).unwrap();
        assert_eq!(log.append(&record()), Some(News::Recovered));
        assert_eq!(log.append(&record()), None);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }
}
