//! The block log: records of enforcement in, appended lines out.
//!
//! One line an enforcement, written with a single `write(2)`, so that lines never mix and a crash
//! loses none that was written. What came from the access log is escaped in both formats. A disk
//! that is full or a file that cannot be opened never holds anything up: the trouble is reported to
//! the caller once, opening is tried again with later records, and the same facts are on stderr.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

use crate::escape::{printable, quoted};

/// How records are written (`--block.format`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BlockFormat {
    /// `key=value` for people.
    Text,
    /// One JSON object a line.
    Json,
}

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
            Self::Adopted => "adopted",
        }
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

/// One enforcement.
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
    /// How it ended.
    pub outcome: Outcome,
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
                // What the next write will say too, so that it is one trouble.
                self.report("write to", &rustix::io::Errno::NOSPC.into())
            }
            Err(error) => self.report("write to", &error),
        }
    }

    fn report(&mut self, operation: &str, error: &io::Error) -> Option<News> {
        let trouble = format!(
            "cannot {operation} the block log {}: {error}; enforcement goes on, its records are \
             only here until that is mended",
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
    // A FIFO that nobody reads is refused instead of waited for; a file does not notice.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(nonblocking).open(path)
}

/// The record as one line with its newline.
#[must_use]
pub fn line(record: &Record, format: BlockFormat) -> String {
    match format {
        BlockFormat::Text => text(record),
        BlockFormat::Json => json(record),
    }
}

fn text(record: &Record) -> String {
    let mut line = format!(
        "{:.6} {} user={} source={}",
        record.time,
        record.action.name(),
        quoted(&record.user),
        record.source,
    );
    // Writing to a String cannot fail.
    for (key, values) in [
        ("peer", record.peers.iter().map(ToString::to_string).collect::<Vec<_>>()),
        ("incumbents", record.incumbents.clone()),
    ] {
        if !values.is_empty() {
            let _ = write!(line, " {key}={}", values.join(","));
        }
    }
    let inbound = record.inbound.as_deref().map_or_else(|| "-".to_owned(), quoted);
    let outcome = match &record.outcome {
        Outcome::Done => "ok".to_owned(),
        Outcome::DryRun => "dry-run".to_owned(),
        Outcome::Failed(sentence) => format!("failed error={}", quoted(sentence.as_bytes())),
    };
    let _ = writeln!(
        line,
        " inbound={inbound} places={} timeout={}s killed={} flows={} latency={}us settled={}us \
         evidence={} reason={} outcome={outcome}",
        record.places,
        seconds(record.timeout),
        record.killed,
        record.flows,
        record.latency.as_micros(),
        record.settled.as_micros(),
        record.evidence,
        record.reason,
    );
    line
}

fn json(record: &Record) -> String {
    let wire = Wire {
        time: format!("{:.6}", record.time),
        action: record.action,
        user: printable(&record.user),
        source: &record.source,
        peers: &record.peers,
        incumbents: &record.incumbents,
        inbound: record.inbound.as_deref().map(printable),
        places: record.places,
        timeout_s: seconds(record.timeout),
        killed: record.killed,
        flows: record.flows,
        latency_us: record.latency.as_micros(),
        settled_us: record.settled.as_micros(),
        evidence: record.evidence,
        reason: record.reason,
        outcome: match &record.outcome {
            Outcome::Done => "ok",
            Outcome::DryRun => "dry-run",
            Outcome::Failed(_) => "failed",
        },
        error: match &record.outcome {
            Outcome::Failed(sentence) => Some(printable(sentence.as_bytes())),
            Outcome::Done | Outcome::DryRun => None,
        },
    };
    // Strings and numbers always serialise; should that ever change, the failure is the record.
    let mut line = serde_json::to_string(&wire)
        .unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()));
    line.push('\n');
    line
}

/// As the kernel holds it: whole seconds, rounded up.
fn seconds(timeout: Duration) -> u64 {
    timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0)
}

/// The JSON form; its keys are a promise to whoever reads the block log by machine.
#[derive(Serialize)]
struct Wire<'a> {
    time: String,
    action: Action,
    user: String,
    source: &'a str,
    peers: &'a [SocketAddr],
    incumbents: &'a [String],
    inbound: Option<String>,
    places: usize,
    timeout_s: u64,
    killed: u32,
    flows: u32,
    latency_us: u128,
    settled_us: u128,
    evidence: &'static str,
    reason: &'static str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn record() -> Record {
        Record {
            time: "2026-11-23T21:44:06.123456Z".parse().unwrap(),
            action: Action::Ban,
            reason: "places_held",
            user: b"alice@example.com".to_vec(),
            source: "198.51.100.12".to_owned(),
            peers: vec!["198.51.100.12:40833".parse().unwrap()],
            incumbents: vec!["198.51.100.11".to_owned()],
            places: 1,
            inbound: Some(b"vless-tcp".to_vec()),
            timeout: Duration::from_millis(59_001),
            killed: 2,
            flows: 0,
            latency: Duration::from_micros(42),
            settled: Duration::from_micros(1234),
            evidence: "log",
            outcome: Outcome::Done,
        }
    }

    #[test]
    fn a_record_reads_as_one_line_of_text() {
        assert_eq!(
            line(&record(), BlockFormat::Text),
            "2026-11-23T21:44:06.123456Z ban user=\"alice@example.com\" source=198.51.100.12 \
             peer=198.51.100.12:40833 incumbents=198.51.100.11 inbound=\"vless-tcp\" places=1 \
             timeout=60s killed=2 flows=0 latency=42us settled=1234us evidence=log \
             reason=places_held outcome=ok\n"
        );
    }

    #[test]
    fn a_record_is_one_json_object_a_line() {
        let written = line(&record(), BlockFormat::Json);
        let value: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(value["user"], "alice@example.com");
        assert_eq!(value["peers"][0], "198.51.100.12:40833");
        assert_eq!(value["timeout_s"], 60);
        assert_eq!(value["outcome"], "ok");
        assert_eq!(written.matches('\n').count(), 1);
    }

    #[test]
    fn attackers_bytes_stay_inside_their_field() {
        let mut hostile = record();
        hostile.user = b"x\" outcome=ok\n2026 ban user=\"y\x1b[31m\xff".to_vec();
        hostile.inbound = Some(b"a\tb".to_vec());
        hostile.outcome = Outcome::Failed("no \"room\"\nleft".to_owned());
        for format in [BlockFormat::Text, BlockFormat::Json] {
            let written = line(&hostile, format);
            assert_eq!(written.matches('\n').count(), 1, "{written}");
            assert!(written.bytes().all(|byte| byte == b'\n' || byte >= b' '), "{written}");
        }
        let written = line(&hostile, BlockFormat::Text);
        assert!(written.contains("user=\"x\\\" outcome=ok\\n2026 ban user=\\\"y\\x1b[31m\\xff\""));
        assert!(written.ends_with("outcome=failed error=\"no \\\"room\\\"\\nleft\"\n"));
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
