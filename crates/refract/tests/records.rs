//! The record of an enforcement, as the block log and stderr have it, read by a stranger.
//!
//! The daemon and the connections are real. The block log is read as text and as JSON; what the
//! log's writer, an attacker, put into his name must stay inside its field, in each of the four.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use support::{
    LabError, Result,
    access_log::accepted_line,
    lab::{Host, Lab, SERVER_V4},
    peer::{Server, Talker},
    sidecar::Sidecar,
    witness,
};

const BOUND: Duration = Duration::from_secs(5);
/// A name with everything that a terminal, a line reader or a parser of records might obey; the
/// last bytes are a right-to-left override and no UTF-8.
const HOSTILE: &[u8] = b"x\" outcome=ok source=9.9.9.9 \\n\r\t\x00\x1b[2J\xe2\x80\xae\xff";
/// The same in print.
const IN_PRINT: &str = r#"x" outcome=ok source=9.9.9.9 \\n\r\t\x00\x1b[2J\u{202e}\xff"#;

/// An incumbent and a newcomer with two connections, on a server with a daemon.
struct Scene {
    held: Talker,
    named: Talker,
    unnamed: Talker,
}

impl Scene {
    fn new(incumbent: &Host, newcomer: &Host) -> Result<Self> {
        let at = SocketAddr::new(SERVER_V4.into(), 443);
        Ok(Self {
            held: Talker::connect(incumbent, incumbent.v4()?, at)?,
            named: Talker::connect(newcomer, newcomer.v4()?, at)?,
            unnamed: Talker::connect(newcomer, newcomer.v4()?, at)?,
        })
    }

    /// The lines by which `user` shares, in one write.
    fn offence(&self, user: &[u8]) -> Vec<u8> {
        let mut lines = Vec::new();
        for talker in [&self.held, &self.named] {
            let line = accepted_line(talker.local(), "");
            lines.extend_from_slice(line.trim_end_matches('\n').as_bytes());
            lines.extend_from_slice(user);
            lines.push(b'\n');
        }
        lines
    }

    fn wait_for_resets(&self) -> Result<()> {
        self.named.wait_for_reset()?;
        self.unnamed.wait_for_reset()
    }
}

fn lab_with_two_clients() -> Result<(Lab, Host, Host, Server)> {
    let mut lab = Lab::new()?;
    let incumbent = lab.add_client(&["198.51.100.11"])?;
    let newcomer = lab.add_client(&["198.51.100.12"])?;
    let echo = Server::echo(lab.server(), 443)?;
    Ok((lab, incumbent, newcomer, echo))
}

#[test]
fn a_json_record_says_who_what_why_and_how_long_it_took() -> Result<()> {
    let (lab, incumbent, newcomer, _echo) = lab_with_two_clients()?;
    let sidecar = Sidecar::start(&lab, &["--timeout=1m30s"])?;
    let scene = Scene::new(&incumbent, &newcomer)?;
    let (since, clock) = (jiff::Timestamp::now(), Instant::now());
    let record = sidecar.take_one(scene.offence(b"alice@example.com"))?;
    let took = clock.elapsed();
    scene.wait_for_resets()?;

    let time: jiff::Timestamp = record.time.parse().unwrap();
    assert!(since <= time && time <= jiff::Timestamp::now(), "{}", record.time);
    assert!(record.time.ends_with('Z') && record.time.len() == "2026-11-23T21:44:06.123456Z".len());
    assert_eq!((record.action.as_str(), record.reason.as_str()), ("ban", "places_held"));
    assert_eq!(record.user, "alice@example.com");
    assert_eq!(record.source, "198.51.100.12");
    assert_eq!(record.peers, [scene.named.local()]);
    assert_eq!((record.incumbents, record.places), (vec!["198.51.100.11".to_owned()], 1));
    let held: Vec<_> =
        record.held.iter().map(|it| (&*it.source, it.age_ms, it.silent_ms)).collect();
    assert_eq!(held, [("198.51.100.11", 0, 0)], "both lines were read at once");
    assert_eq!(record.inbound.as_deref(), Some("vless-tcp"));
    assert_eq!((record.timeout_s, record.killed, record.flows), (90, 2, 0));
    assert_eq!(record.evidence, "log");
    assert_eq!((record.outcome.as_str(), record.error), ("ok", None));
    assert!(0 < record.latency_us && record.latency_us < record.settled_us);
    assert!(u128::from(record.settled_us) <= took.as_micros());
    let mode = fs::metadata(sidecar.block_log()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
    Ok(())
}

#[test]
fn a_text_record_says_the_same_in_one_line() -> Result<()> {
    let (lab, incumbent, newcomer, _echo) = lab_with_two_clients()?;
    let sidecar = Sidecar::start(&lab, &["--block.format=text", "--timeout=1500ms"])?;
    let scene = Scene::new(&incumbent, &newcomer)?;
    sidecar.log().write(&scene.offence(b"alice@example.com"))?;
    scene.wait_for_resets()?;
    let record = witness::wait_for_line(sidecar.block_log(), "alice", BOUND)?;
    assert_eq!(witness::lines_with(sidecar.block_log(), "")?.len(), 1);

    let (time, rest) = record.split_once(' ').unwrap();
    time.parse::<jiff::Timestamp>().unwrap();
    let (latency, settled) = (micros(&record, "latency")?, micros(&record, "settled")?);
    assert!(0 < latency && latency < settled, "{record}");
    assert_eq!(
        rest,
        format!(
            "ban user=\"alice@example.com\" source=198.51.100.12 peer={} \
             incumbents=198.51.100.11 held=\"198.51.100.11 age 0ms silent 0ms\" \
             inbound=\"vless-tcp\" places=1 timeout=2s killed=2 flows=0 \
             latency={latency}us settled={settled}us evidence=log reason=places_held outcome=ok",
            scene.named.local()
        )
    );
    Ok(())
}

#[test]
fn a_hostile_name_stays_inside_its_field_in_the_text_of_block_log_and_stderr() -> Result<()> {
    let (lab, incumbent, newcomer, _echo) = lab_with_two_clients()?;
    let sidecar = Sidecar::start(&lab, &["--block.format=text", "--log.format=text"])?;
    let scene = Scene::new(&incumbent, &newcomer)?;
    sidecar.log().write(&scene.offence(HOSTILE))?;
    scene.wait_for_resets()?;
    let record = witness::wait_for_line(sidecar.block_log(), "198.51.100.12", BOUND)?;
    let quoted = format!("user=\"{}\" source=198.51.100.12 ", IN_PRINT.replace('"', "\\\""));
    assert!(record.contains(&quoted), "{record}\n{quoted}");
    assert_plain(&fs::read_to_string(sidecar.block_log()).unwrap());

    let message = sidecar.wait_for_message("enforced")?;
    let whose = message.find("user=").unwrap();
    assert!(message[whose..].contains(" source=\"198.51.100.12\" "), "{message}");
    assert_plain(&sidecar.messages());
    assert_eq!(why(&lab, &sidecar)?, format!("{record}\n"));
    Ok(())
}

#[test]
fn a_hostile_name_stays_inside_its_field_in_the_json_of_block_log_and_stderr() -> Result<()> {
    let (lab, incumbent, newcomer, _echo) = lab_with_two_clients()?;
    let sidecar = Sidecar::start(&lab, &["--log.format=json"])?;
    let scene = Scene::new(&incumbent, &newcomer)?;
    let record = sidecar.take_one(scene.offence(HOSTILE))?;
    scene.wait_for_resets()?;
    assert_eq!((record.user.as_str(), record.source.as_str()), (IN_PRINT, "198.51.100.12"));
    assert_plain(&fs::read_to_string(sidecar.block_log()).unwrap());

    let message = sidecar.wait_for_message("198.51.100.12")?;
    let fields: serde_json::Value = serde_json::from_str(&message).unwrap();
    assert_eq!((fields["user"].as_str(), fields["killed"].as_u64()), (Some(IN_PRINT), Some(2)));
    assert_eq!(fields["source"], "198.51.100.12");
    for line in sidecar.messages().lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
    assert_plain(&sidecar.messages());
    assert_eq!(why(&lab, &sidecar)?.lines().count(), 1);
    Ok(())
}

/// What `refract why` says of the newcomer.
fn why(lab: &Lab, sidecar: &Sidecar) -> Result<String> {
    let block_log = format!("--block.log={}", sidecar.block_log().display());
    let refract = env!("CARGO_BIN_EXE_refract");
    lab.server().output(refract, &["why", "198.51.100.12", &block_log])
}

/// The value of a field in microseconds.
fn micros(record: &str, field: &str) -> Result<u64> {
    let start = format!("{field}=");
    record
        .split(' ')
        .find_map(|word| word.strip_prefix(&start)?.strip_suffix("us")?.parse().ok())
        .ok_or_else(|| LabError::new(format!("no {field} in {record}")))
}

/// Nothing but printable ASCII and line ends.
#[track_caller]
fn assert_plain(text: &str) {
    assert!(text.chars().all(|character| matches!(character, ' '..='~' | '\n')), "{text:?}");
}
