//! What a restart, and a change of the policy file, leave of what was known.
//!
//! Everything is really connected, and the daemon asks the kernel. What the rules are is told
//! beside the code; here is whether they get that far.

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use support::{
    LabError, Result,
    evidence::online,
    sidecar::{Record, Sidecar},
    stage::{AT, IN_TIME, JUNIOR, SENIOR, Stage},
};

/// A daemon with a policy file that says `policy`.
fn start(stage: &Stage, policy: &str) -> Result<Sidecar> {
    write(stage, policy)?;
    let config = format!("--config={}", stage.lab.path("refract.toml").display());
    Sidecar::start_asking(&stage.lab, &[&config])
}

fn write(stage: &Stage, policy: &str) -> Result<()> {
    let path = stage.lab.path("refract.toml");
    fs::write(path, policy).map_err(LabError::while_trying("write the policy file"))
}

fn told(record: &Record) -> (&str, &str) {
    (&record.action, &record.reason)
}

#[test]
fn a_neighbour_whose_places_nobody_counts_is_one_after_a_restart() -> Result<()> {
    let stage = Stage::new()?;
    let sidecar = start(&stage, "ignore = ['admin']\n")?;
    let mut admin = stage.device(&sidecar, JUNIOR, "admin");
    admin.browse()?;
    let status = sidecar.settled()?;
    assert_eq!(status.count("unlimited")?, 1, "{status}");
    drop(admin);
    sidecar.stop()?;
    let sidecar = start(&stage, "ignore = ['admin']\n")?;
    let record = stage.sharers_are_cut(&sidecar, "sharer")?;
    assert_eq!(told(&record), ("kill", "shared_source"));
    sidecar.stop()
}

#[test]
fn who_is_allowed_by_now_costs_nobody_else_his_place() -> Result<()> {
    let stage = Stage::new()?;
    let sidecar = start(&stage, "ask = false\n")?;
    let office = online(&sidecar, &stage.people, SENIOR, AT, "alice")?;
    sidecar.settled()?;
    write(&stage, &format!("ask = false\nallow = ['{SENIOR}']\n"))?;
    sidecar.wait_for_message("the policy was read again and is in force")?;
    // The office downloads on, and home is the only place that counts.
    let mut home = stage.device(&sidecar, JUNIOR, "alice");
    let begun = Instant::now();
    while begun.elapsed() < IN_TIME {
        home.browse()?;
        thread::sleep(Duration::from_millis(150));
    }
    assert_eq!(sidecar.records()?.len(), 0, "{:#?}", sidecar.records()?);
    office.wait_for_answers()?;
    sidecar.stop()
}

#[test]
fn where_the_state_file_is_gone_nobody_is_known_to_be_alone() -> Result<()> {
    let stage = Stage::new()?;
    let remembered = stage.lab.path("refract.state");
    for (user, expected) in [
        // Nothing is missed at the first start of all.
        ("first", ("ban", "overlap")),
        ("second", ("kill", "unknown_neighbours")),
    ] {
        let sidecar = start(&stage, "")?;
        let record = stage.sharers_are_cut(&sidecar, user)?;
        assert_eq!(told(&record), expected);
        assert_eq!(sidecar.messages().contains("refract.state is gone"), user == "second");
        sidecar.stop()?;
        if user == "first" {
            stage.lab.server().output(env!("CARGO_BIN_EXE_refract"), &["unban", "--all"])?;
            fs::remove_file(&remembered)
                .map_err(LabError::while_trying("remove the state file"))?;
        }
    }
    Ok(())
}
