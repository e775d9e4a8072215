//! The daemon as a sidecar of nobody: beside an access log that the test writes.
//!
//! Takes a lab, flags and lines; gives the records that the lines led to. It knows when a line has
//! had its effect, because it writes an offence of its own behind every line: the log is read in
//! order, so once that one is on record, so is everything before it. It looks at no kernel.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde::Deserialize;

use super::{
    LabError, Result,
    access_log::{AccessLog, accepted_line},
    daemon::{Daemon, FAREWELL_BOUND},
    eventually,
    lab::Lab,
    witness,
};

/// How long a line may take to have its effect on record.
const RECORD_BOUND: Duration = Duration::from_secs(10);
/// How the users of the offences begin that only mark a place in the log.
const MARKER: &str = "marker-";

/// A record of the block log in its JSON form; nothing more and nothing less is in it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) time: String,
    pub(crate) action: String,
    pub(crate) user: String,
    pub(crate) source: String,
    pub(crate) peers: Vec<SocketAddr>,
    pub(crate) incumbents: Vec<String>,
    pub(crate) inbound: Option<String>,
    pub(crate) places: usize,
    pub(crate) timeout_s: u64,
    pub(crate) killed: u32,
    pub(crate) flows: u32,
    pub(crate) latency_us: u64,
    pub(crate) settled_us: u64,
    pub(crate) evidence: String,
    pub(crate) reason: String,
    pub(crate) slot_ms: Option<u64>,
    pub(crate) proof: Option<Vec<Exhibit>>,
    pub(crate) rests_on: Option<Basis>,
    #[serde(default)]
    pub(crate) held: Vec<Held>,
    #[serde(default)]
    pub(crate) repeats: u64,
    pub(crate) outcome: String,
    pub(crate) error: Option<String>,
}

/// The verdict that a record carries on.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Basis {
    pub(crate) source: String,
    pub(crate) ago_ms: u64,
}

/// One who holds a place.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Held {
    pub(crate) source: String,
    pub(crate) age_ms: u64,
    pub(crate) silent_ms: u64,
}

/// One source of a record's proof.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exhibit {
    pub(crate) source: String,
    pub(crate) peer: Option<String>,
    pub(crate) open: usize,
    pub(crate) seen_ms: u64,
    pub(crate) arrived_ms: u64,
    pub(crate) moved: [bool; 5],
    pub(crate) bytes: [u64; 5],
    pub(crate) asked_ms: Option<u64>,
    pub(crate) answered_ms: Option<u64>,
}

/// A running daemon with its logs.
pub(crate) struct Sidecar {
    daemon: Option<Daemon>,
    log: AccessLog,
    block_log: PathBuf,
    /// Lines that were in the log before the start.
    older: usize,
    marked: AtomicU8,
}

impl Sidecar {
    /// Starts the daemon on the lab's server with `--evidence=log`, JSON records and `flags`, which
    /// come last.
    pub(crate) fn start(lab: &Lab, flags: &[&str]) -> Result<Self> {
        Self::start_under(&[], lab, flags)
    }

    /// The same by way of a program that changes its own rights first.
    pub(crate) fn start_under(wrapper: &[&str], lab: &Lab, flags: &[&str]) -> Result<Self> {
        let log = AccessLog::open(lab.path("access.log"))?;
        let elsewhere = flags.iter().find_map(|flag| flag.strip_prefix("--block.log="));
        let block_log = elsewhere.map_or_else(|| lab.path("block.log"), PathBuf::from);
        let mut all = vec![
            "--evidence=log".to_owned(),
            "--block.format=json".to_owned(),
            format!("--access.log={}", log.path().display()),
            format!("--block.log={}", block_log.display()),
        ];
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        // Examples, which include this file too, are built without it.
        let binary = option_env!("CARGO_BIN_EXE_refract")
            .ok_or_else(|| LabError::new("cannot tell where the refract binary is"))?;
        let older = lines_in(log.path())?;
        let daemon = Daemon::start_under(wrapper, Path::new(binary), lab.server(), &all)?;
        let marked = AtomicU8::new(0);
        Ok(Self { daemon: Some(daemon), log, block_log, older, marked })
    }

    /// The access log.
    pub(crate) fn log(&self) -> &AccessLog {
        &self.log
    }

    /// The block log's path.
    pub(crate) fn block_log(&self) -> &Path {
        &self.block_log
    }

    /// Everything the daemon has said so far.
    pub(crate) fn messages(&self) -> String {
        self.daemon.as_ref().map(Daemon::messages).unwrap_or_default()
    }

    /// Waits for a message of the daemon that contains `text`, and gives it.
    pub(crate) fn wait_for_message(&self, text: &str) -> Result<String> {
        self.daemon()?.wait_for_message(text, RECORD_BOUND)
    }

    /// The daemon's process id.
    pub(crate) fn id(&self) -> Result<u32> {
        Ok(self.daemon()?.id())
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon()?.signal(signal)
    }

    /// Writes `lines` with one `write(2)`, waits until they have had their effect, and gives the
    /// records that they led to. Not for a daemon that may ban only so many users.
    pub(crate) fn take(&self, lines: impl AsRef<[u8]>) -> Result<Vec<Record>> {
        let before = self.records()?.len();
        let mark = self.marked.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let user = format!("{MARKER}{mark}@lab");
        // One source more than any daemon here has places; nobody is there.
        let offence = (1..=3).map(|last| accepted_line(format!("100.64.{mark}.{last}:1"), &user));
        let mut bytes = lines.as_ref().to_vec();
        bytes.extend(offence.collect::<String>().bytes());
        self.log.write(&bytes)?;
        let records = self.wait_for("what the lines led to", |records| {
            records.get(before..)?.iter().any(|record| record.user == user).then_some(())
        })?;
        let new = records.into_iter().skip(before);
        Ok(new.filter(|record| !record.user.starts_with(MARKER)).collect())
    }

    /// As [`take`](Self::take), when exactly one record must come of it.
    pub(crate) fn take_one(&self, lines: impl AsRef<[u8]>) -> Result<Record> {
        let mut records = self.take(lines)?;
        match records.pop() {
            Some(record) if records.is_empty() => Ok(record),
            last => {
                records.extend(last);
                Err(self.trouble(&format!("one record was expected, not {records:#?}")))
            }
        }
    }

    /// Waits until there are `count` records in all, and gives them.
    pub(crate) fn wait_for_records(&self, count: usize) -> Result<Vec<Record>> {
        let enough = |records: &[Record]| (records.len() >= count).then_some(());
        self.wait_for(&format!("{count} records"), enough)
    }

    /// Ends it with SIGKILL, as a crash would, and waits for that.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.daemon.take().ok_or_else(gone)?.kill().map(drop)
    }

    /// Ends the daemon as an operator does, and waits for that.
    pub(crate) fn stop(mut self) -> Result<()> {
        let status = self.daemon.take().ok_or_else(gone)?.terminate(FAREWELL_BOUND)?;
        if status.success() {
            Ok(())
        } else {
            Err(LabError::new(format!("SIGTERM ended the daemon with {status}")))
        }
    }

    /// The records so far.
    pub(crate) fn records(&self) -> Result<Vec<Record>> {
        let read = |line: &String| {
            let what = format!("read the record {line}");
            serde_json::from_str(line).map_err(LabError::while_trying(what))
        };
        witness::lines_with(&self.block_log, "")?.iter().map(read).collect()
    }

    fn wait_for(
        &self,
        what: &str,
        is_there: impl Fn(&[Record]) -> Option<()>,
    ) -> Result<Vec<Record>> {
        eventually(what, RECORD_BOUND, || {
            let records = self.records()?;
            Ok(is_there(&records).map(|()| records))
        })
        .map_err(|error| self.trouble(&error.to_string()))
    }

    /// Lines that were written to the log since the start.
    pub(super) fn lines_written(&self) -> Result<usize> {
        Ok(lines_in(self.log.path())? - self.older)
    }

    pub(super) fn daemon(&self) -> Result<&Daemon> {
        self.daemon.as_ref().ok_or_else(gone)
    }

    /// An error with all that the daemon knows.
    pub(crate) fn trouble(&self, sentence: &str) -> LabError {
        let records = witness::lines_with(&self.block_log, "").unwrap_or_default().join("\n");
        LabError::new(format!(
            "{sentence}\nthe daemon said:\n{}\nthe block log says:\n{records}",
            self.messages()
        ))
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.trouble("a test failed"));
        }
    }
}

fn lines_in(log: &Path) -> Result<usize> {
    let content = fs::read(log).map_err(LabError::while_trying("read the access log"))?;
    Ok(memchr::memchr_iter(b'\n', &content).count())
}

fn gone() -> LabError {
    LabError::new("the daemon is gone")
}
