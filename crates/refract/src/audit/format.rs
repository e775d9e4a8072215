//! How a record reads: for people, and for machines.
//!
//! Takes a [`Record`]; makes one line. What came from the access log is escaped in both formats, so
//! that nothing in it ends a field or the line. It writes no file.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use refract_core::{Basis, Exhibit, Incumbent};
use serde::Serialize;

use super::{Action, Outcome, Record};
use crate::escape::{printable, quoted};

/// How records are written (`--block.format`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BlockFormat {
    /// `key=value` for people.
    Text,
    /// One JSON object a line.
    Json,
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
    let mut outcome = record.outcome.name().to_owned();
    if let Outcome::Failed(sentence) = &record.outcome {
        let _ = write!(outcome, " error={}", quoted(sentence.as_bytes()));
    }
    if let Some(proof) = &record.proof {
        let _ = write!(line, " slot={}ms", proof.slot.as_millis());
        let exhibits: Vec<_> = proof.exhibits.iter().map(exhibit).collect();
        let _ = write!(line, " proof={}", quoted(exhibits.join("; ").as_bytes()));
    }
    if let Some(Basis { source, ago }) = &record.basis {
        let _ = write!(line, " rests_on=\"{source} {}ms ago\"", ago.as_millis());
    }
    if !record.held.is_empty() {
        let held: Vec<_> = record.held.iter().map(held).collect();
        let _ = write!(line, " held={}", quoted(held.join("; ").as_bytes()));
    }
    if record.repeats > 0 {
        let _ = write!(line, " repeats={}", record.repeats);
    }
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

/// One who holds a place, for people.
fn held(incumbent: &Incumbent) -> String {
    let Incumbent { source, age, silence, .. } = incumbent;
    format!("{source} age {}ms silent {}ms", age.as_millis(), silence.as_millis())
}

/// One source of a proof, for people.
fn exhibit(exhibit: &Exhibit) -> String {
    let moved: String = exhibit.moved.iter().map(|moved| if *moved { '#' } else { '.' }).collect();
    let bytes: Vec<_> = exhibit.bytes.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "{} peer {} of {} seen {}ms arrived {}ms moved {moved} bytes {}",
        exhibit.source,
        exhibit.peer.map_or_else(|| "-".to_owned(), |peer| peer.to_string()),
        exhibit.open,
        exhibit.seen.as_millis(),
        exhibit.arrived.as_millis(),
        bytes.join(","),
    );
    if let Some(asked) = exhibit.asked {
        let _ = write!(text, " asked {}ms", asked.as_millis());
        match exhibit.answered {
            Some(answered) => {
                let _ = write!(text, " answered after {}ms", answered.as_millis());
            }
            None => text.push_str(" not answered"),
        }
    }
    text
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
        slot_ms: record.proof.as_ref().map(|proof| proof.slot.as_millis()),
        proof: record
            .proof
            .as_ref()
            .map(|proof| proof.exhibits.iter().map(WireExhibit::from).collect()),
        rests_on: record.basis.as_ref().map(WireBasis::from),
        held: record.held.iter().map(WireHeld::from).collect(),
        repeats: record.repeats,
        outcome: record.outcome.name(),
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
    #[serde(skip_serializing_if = "Option::is_none")]
    slot_ms: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proof: Option<Vec<WireExhibit>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rests_on: Option<WireBasis>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    held: Vec<WireHeld>,
    #[serde(skip_serializing_if = "is_zero")]
    repeats: u64,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The verdict that a record carries on.
#[derive(Serialize)]
struct WireBasis {
    source: String,
    ago_ms: u128,
}

impl From<&Basis> for WireBasis {
    fn from(basis: &Basis) -> Self {
        Self { source: basis.source.to_string(), ago_ms: basis.ago.as_millis() }
    }
}

/// One who holds a place.
#[derive(Serialize)]
struct WireHeld {
    source: String,
    age_ms: u128,
    silent_ms: u128,
}

impl From<&Incumbent> for WireHeld {
    fn from(incumbent: &Incumbent) -> Self {
        Self {
            source: incumbent.source.to_string(),
            age_ms: incumbent.age.as_millis(),
            silent_ms: incumbent.silence.as_millis(),
        }
    }
}

/// One source of a proof.
#[derive(Serialize)]
struct WireExhibit {
    source: String,
    peer: Option<String>,
    open: usize,
    seen_ms: u128,
    arrived_ms: u128,
    moved: [bool; 5],
    bytes: [u64; 5],
    asked_ms: Option<u128>,
    answered_ms: Option<u128>,
}

impl From<&Exhibit> for WireExhibit {
    fn from(exhibit: &Exhibit) -> Self {
        Self {
            source: exhibit.source.to_string(),
            peer: exhibit.peer.map(|peer| peer.to_string()),
            open: exhibit.open,
            seen_ms: exhibit.seen.as_millis(),
            arrived_ms: exhibit.arrived.as_millis(),
            moved: exhibit.moved,
            bytes: exhibit.bytes,
            asked_ms: exhibit.asked.map(|asked| asked.as_millis()),
            answered_ms: exhibit.answered.map(|answered| answered.as_millis()),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use refract_core::Proof;

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
            proof: None,
            basis: None,
            held: Vec::new(),
            repeats: 0,
            outcome: Outcome::Done,
        }
    }

    #[test]
    fn the_numbers_that_prove_a_verdict_are_in_its_record() {
        let exhibit = |source: &str, asked: Option<u64>| Exhibit {
            source: refract_core::Source::of(source.parse().unwrap(), 32, 64),
            peer: Some(refract_core::Peer { address: source.parse().unwrap(), port: 7 }),
            open: 2,
            seen: Duration::from_mins(1),
            arrived: Duration::from_secs(5),
            moved: [true, false, true, true, true],
            bytes: [1, 0, 3, 4, 5],
            asked: asked.map(Duration::from_millis),
            answered: asked.map(|asked| Duration::from_millis(asked / 2)),
        };
        let exhibits = vec![exhibit("198.51.100.11", Some(300)), exhibit("198.51.100.12", None)];
        let proof = Some(Proof { slot: Duration::from_secs(1), exhibits });
        let proven = Record { evidence: "kernel", proof, repeats: 3, ..record() };
        let text = line(&proven, BlockFormat::Text);
        for part in [
            " slot=1000ms proof=\"198.51.100.11 peer 198.51.100.11:7 of 2 seen 60000ms arrived \
             5000ms moved #.### bytes 1,0,3,4,5 asked 300ms answered after 150ms; 198.51.100.12",
            " repeats=3 ",
            " evidence=kernel ",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        let value: serde_json::Value =
            serde_json::from_str(&line(&proven, BlockFormat::Json)).unwrap();
        assert_eq!(value["proof"][0]["answered_ms"], 150);
        assert_eq!(value["proof"][1]["bytes"][4], 5);
        assert_eq!((&value["slot_ms"], &value["repeats"]), (&1000.into(), &3.into()));
    }

    #[test]
    fn where_there_are_no_numbers_the_record_says_what_it_rests_on_and_who_held_the_places() {
        let source = |text: &str| refract_core::Source::of(text.parse().unwrap(), 32, 64);
        let incumbent = |last: &str, age, silence| Incumbent {
            source: source(last),
            peer: refract_core::Peer { address: last.parse().unwrap(), port: 7 },
            age: Duration::from_millis(age),
            silence: Duration::from_millis(silence),
        };
        let basis = Basis { source: source("198.51.100.12"), ago: Duration::from_millis(1_500) };
        let held =
            vec![incumbent("198.51.100.11", 61_616, 300), incumbent("2001:db8::1", 5_000, 0)];
        let record = Record { basis: Some(basis), held, repeats: 3, ..record() };
        let text = line(&record, BlockFormat::Text);
        let part = " rests_on=\"198.51.100.12 1500ms ago\" held=\"198.51.100.11 age 61616ms \
                    silent 300ms; 2001:db8::/64 age 5000ms silent 0ms\" repeats=3 ";
        assert!(text.contains(part), "{text}");
        let value: serde_json::Value =
            serde_json::from_str(&line(&record, BlockFormat::Json)).unwrap();
        assert_eq!(
            value["rests_on"],
            serde_json::json!({"source": "198.51.100.12", "ago_ms": 1_500})
        );
        assert_eq!(
            (&value["held"][0]["age_ms"], &value["held"][1]["silent_ms"]),
            (&61_616.into(), &0.into())
        );
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
}
