//! A floor as a process of its own, beside what is measured against it.
//!
//! Takes the word that makes this program a floor, the set that it bans into, and whatever else it
//! wants to know; makes the set, starts it, and waits until it is ready. What it does is its own.

use std::{env, process::Command, time::Duration};

use crate::support::{LabError, Result, lab::Host, process::Process};

/// What every floor prints once it is at work.
pub(crate) const READY: &str = "ready";
const START_BOUND: Duration = Duration::from_secs(5);

/// Makes `set` on `server`, and starts the floor that `word` and `arguments` describe.
pub(crate) fn start(server: &Host, set: &str, word: &str, arguments: &[String]) -> Result<Process> {
    server.output(
        "ipset",
        &["create", set, "hash:ip", "hashsize", "16384", "maxelem", "1048576", "timeout", "600"],
    )?;
    let ourselves = env::current_exe().map_err(LabError::while_trying("find this program"))?;
    let mut command = Command::new(ourselves);
    command.arg(word).args(arguments);
    let floor = Process::start(server, &command)?;
    floor.wait_for_line("that it is ready", START_BOUND, |line| line == READY)?;
    Ok(floor)
}
