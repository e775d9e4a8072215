//! What records say, read back from the block log.
//!
//! Takes lines in either format; makes who was acted upon, how, when and for how long. The reverse
//! of `format` as far as anybody asks. A line that is torn, or no record, says nothing.

use std::{
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use refract_core::Network;
use serde::Deserialize;

use super::{Action, open_to_read};

/// How much of the end of the block log is read, bytes.
const READ: u64 = 16 * 1024 * 1024;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// When it was written.
    pub time: Timestamp,
    /// What was done.
    pub action: Action,
    /// To whom.
    pub source: Network,
    /// For how long.
    pub timeout: Duration,
    /// What it rested on.
    pub evidence: String,
    /// How it ended, in one word.
    pub outcome: String,
}

/// The fields of a record in JSON that are read.
#[derive(Deserialize)]
struct Wire {
    time: String,
    action: String,
    source: String,
    timeout_s: u64,
    evidence: String,
    outcome: String,
}

/// The records at the end of a block log, oldest first; none where it is missing or unreadable.
pub fn latest(block_log: &Path) -> impl Iterator<Item = Told> {
    let opened = open_to_read(block_log).ok().and_then(|mut file| {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        file.seek(SeekFrom::Start(length.saturating_sub(READ))).ok()?;
        Some(BufReader::new(file))
    });
    opened
        .into_iter()
        .flat_map(|reader| reader.split(b'\n').map_while(Result::ok))
        .filter_map(|line| told(&String::from_utf8_lossy(&line)))
}

/// What a line of the block log says.
#[must_use]
pub fn told(line: &str) -> Option<Told> {
    let wire = if line.starts_with('{') { serde_json::from_str(line).ok()? } else { text(line)? };
    Some(Told {
        time: wire.time.parse().ok()?,
        action: Action::named(&wire.action)?,
        source: wire.source.parse().ok()?,
        timeout: Duration::from_secs(wire.timeout_s),
        evidence: wire.evidence,
        outcome: wire.outcome,
    })
}

/// The source that a record is about, even where its line is torn behind that.
#[must_use]
pub fn source(line: &str) -> Option<Network> {
    let source = if line.starts_with('{') {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        value.get("source")?.as_str()?.to_owned()
    } else {
        field(line, "source")?.to_owned()
    };
    source.parse().ok()
}

fn text(line: &str) -> Option<Wire> {
    let (time, rest) = line.split_once(' ')?;
    let (action, _) = rest.split_once(' ')?;
    let field = |name| field(line, name).map(str::to_owned);
    Some(Wire {
        time: time.to_owned(),
        action: action.to_owned(),
        source: field("source")?,
        timeout_s: field("timeout")?.strip_suffix('s')?.parse().ok()?,
        evidence: field("evidence")?,
        outcome: field("outcome")?,
    })
}

/// The value of a field of a text record. What stands inside quotes is no field, whatever it looks
/// like: every quote within them is escaped.
fn field<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(' ')?;
    let (_, mut rest) = rest.split_once(' ')?;
    loop {
        let (name, value) = rest.trim_start().split_once('=')?;
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => {
                let end = end_of_quoted(quoted)?;
                (quoted.get(..end)?, quoted.get(end + 1..)?)
            }
            None => value.split_at(value.find([' ', '\n']).unwrap_or(value.len())),
        };
        if name == wanted {
            return Some(value);
        }
        rest = after;
    }
}

/// Where the text of a quoted field ends: the place of the closing quote.
fn end_of_quoted(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (place, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(place),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{
        super::{BlockFormat, Outcome, Record, line},
        *,
    };

    const ACTIONS: [Action; 6] =
        [Action::Ban, Action::Kill, Action::Flow, Action::Ask, Action::Refrain, Action::Adopted];

    #[test]
    fn what_is_written_is_read_again_in_both_formats() {
        for action in ACTIONS {
            for (outcome, word) in [
                (Outcome::Done, "ok"),
                (Outcome::DryRun, "dry-run"),
                (Outcome::Failed("no \" room outcome=ok".to_owned()), "failed"),
            ] {
                let record = Record {
                    action,
                    timeout: Duration::from_millis(59_001),
                    inbound: Some(b"a\" timeout=7s outcome=ok source=192.0.2.1".to_vec()),
                    outcome,
                    ..Record::of(b"x\" source=192.0.2.2 ".to_vec(), "2001:db8::/64".to_owned())
                };
                let expected = Told {
                    time: record.time.round(jiff::Unit::Microsecond).unwrap(),
                    action,
                    source: "2001:db8::/64".parse().unwrap(),
                    timeout: Duration::from_mins(1),
                    evidence: "kernel".to_owned(),
                    outcome: word.to_owned(),
                };
                for format in [BlockFormat::Text, BlockFormat::Json] {
                    let mut read = told(&line(&record, format)).unwrap();
                    read.time = read.time.round(jiff::Unit::Microsecond).unwrap();
                    // It is cut off behind the microseconds, not rounded.
                    let apart = read.time.duration_since(expected.time).abs();
                    assert!(apart <= jiff::SignedDuration::from_micros(1));
                    assert_eq!(Told { time: expected.time, ..read }, expected);
                }
            }
        }
    }

    #[test]
    fn a_torn_line_says_nothing_or_whom_it_is_about() {
        let record = Record::of(b"alice".to_vec(), "198.51.100.7".to_owned());
        let whole = line(&record, BlockFormat::Text);
        for end in 0..whole.len() - 3 {
            assert_eq!(told(&whole[..end]), None, "{}", &whole[..end]);
        }
        assert_eq!(source(&whole), "198.51.100.7".parse().ok());
        assert_eq!(source(&whole[..whole.len() / 2]), "198.51.100.7".parse().ok());
        for line in ["", " ", "x", "a b", "a b c", "a b c=", "a b c=\"", "{", "{}"] {
            assert_eq!((told(line), source(line)), (None, None), "{line}");
        }
    }
}
