//! Logs as the panels' users are written in them: the guide's lines, and a log that a panel empties.
//!
//! The panels themselves do not run here. The daemon reads the lines of the guide on the log's word,
//! and the record of an offence shows whom it took the user for.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{collections::BTreeSet, fs::OpenOptions, path::Path};

use support::{
    LabError, Result,
    daemon::command,
    guide::Guide,
    lab::Lab,
    sidecar::{Record, Sidecar},
};

#[test]
fn users_are_counted_under_the_names_that_panels_give_them() -> Result<()> {
    let lab = Lab::new()?;
    let sidecar = Sidecar::start(&lab, &[])?;
    let guide = Guide::read("panels.md")?;
    let shown = guide.block("log", "email: ")?;
    let names: Vec<&str> = shown.lines().filter_map(|line| line.split("email: ").nth(1)).collect();
    assert_eq!(names, ["k3v9x2ab", "17.alice", "42"]);
    let records = sidecar.take(shared(&shown))?;
    // Three at one address: the first is banned with it, the others only disconnected, and told first.
    assert_eq!(users(&records), BTreeSet::from_iter(names), "{records:#?}");
    // The panel empties the file while Xray writes on.
    OpenOptions::new()
        .write(true)
        .open(sidecar.log().path())
        .and_then(|log| log.set_len(0))
        .map_err(LabError::while_trying("empty the access log"))?;
    let later = shown.replace("17.alice", "18.bob").replace("198.51.100", "203.0.113");
    let records = sidecar.take(shared(&later))?;
    assert!(users(&records).contains("18.bob"), "{records:#?}");
    sidecar.stop()
}

#[test]
fn doctor_takes_a_panels_log_for_one_that_can_be_acted_upon() -> Result<()> {
    let lab = Lab::new()?;
    let log = lab.path("access.log");
    let shown = Guide::read("panels.md")?.block("log", "email: ")?;
    std::fs::write(&log, shown.repeat(10)).map_err(LabError::while_trying("write a log"))?;
    let mut doctor = command(Path::new(env!("CARGO_BIN_EXE_refract")), &["doctor", "--dport=443"]);
    doctor.arg(format!("--access.log={}", log.display()));
    let said = lab.server().finish(doctor)?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("ok    recent lines: 30 read, 30 can be acted upon\n"), "{said}");
    Ok(())
}

/// The lines, and each once more from somewhere else.
fn shared(lines: &str) -> String {
    lines.to_owned() + &lines.replace(".11:", ".12:")
}

fn users(records: &[Record]) -> BTreeSet<&str> {
    records.iter().map(|record| record.user.as_str()).collect()
}
