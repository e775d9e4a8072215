//! What the kernel's evidence costs: a known connection, a newcomer, a slot's end, an answer.
//!
//! `cargo bench -p refract --bench evidence` makes labs of its own (root, or `unshare -Urn`) and
//! drives the daemon with `--evidence=kernel`. It shows that lines of a known connection ask the
//! kernel nothing, what the look for a newcomer takes, and how long two kinds of proof take to the
//! offender's ECONNRESET: the end of a slot, and the answer to a question. Beside these stands a
//! *floor* of the same run, in turns with the daemon: a process of its own that does only what
//! nobody can leave out. A promise that was not kept is printed and fails nothing, because a busy
//! machine measures itself; but somebody who is reset and ought not to be fails the run.
//!
//! | room | what it measures |
//! |---|---|
//! | [`known`] | lines of a known connection: look-ups, system calls, processor time |
//! | [`newcomer`] | one look for a connection, 20,000 of them being open |
//! | [`deadline`] | from the end of a slot to ECONNRESET |
//! | [`answer`] | from the line that answers the last question to ECONNRESET |
//! | [`deadline_floor`] | the least that can be done at a slot's end |
//! | [`slots`] | the slots, and one user after the other in them |
//! | [`clients`] | both ends of the connections that move |
//!
//! Without `--bench` (as under `cargo test --benches`) it takes a few samples only, to prove that
//! it runs.

#[expect(dead_code, reason = "the benchmark uses its part of the lab")]
#[path = "../tests/support/mod.rs"]
mod support;

#[expect(dead_code, reason = "the benchmark uses its part of what is measured with")]
#[path = "measuring/mod.rs"]
mod measuring;

#[path = "evidence/answer.rs"]
mod answer;
#[path = "evidence/clients.rs"]
mod clients;
#[path = "evidence/deadline.rs"]
mod deadline;
#[path = "evidence/deadline_floor.rs"]
mod deadline_floor;
#[path = "evidence/known.rs"]
mod known;
#[path = "evidence/newcomer.rs"]
mod newcomer;
#[path = "evidence/slots.rs"]
mod slots;

use std::{env, path::Path, process::ExitCode, sync::Arc};

use measuring::log_floor;
use support::{
    Result,
    access_log::AccessLog,
    daemon::Daemon,
    lab::{Host, Lab},
};

/// Every client address of the benchmark (RFC 2544: meant for benchmarks).
const CLIENTS: &str = "198.18.0.0/15";
/// The daemon's protected port.
const DAEMON_PORT: u16 = 443;
/// The floors' port.
const FLOOR_PORT: u16 = 444;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match &arguments[..] {
        [word, rest @ ..] if word == log_floor::WORD => log_floor::run(rest),
        [word, rest @ ..] if word == deadline_floor::WORD => deadline_floor::run(rest),
        [word, rest @ ..] if word == newcomer::WORD => newcomer::hold(rest),
        _ => measure(arguments.iter().any(|word| word == "--bench")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("evidence: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(is_full: bool) -> Result<()> {
    newcomer::measure(is_full)?;
    println!();
    {
        let stage = Stage::set("on")?;
        known::measure(&stage)?;
        println!();
        answer::measure(&stage, is_full)?;
        println!();
    }
    // Where nobody is asked, the end of a slot is all the proof that there is.
    deadline::measure(&Stage::set("off")?, is_full)
}

/// The daemon that lives by the kernel's evidence, its log, and a host of clients.
struct Stage {
    daemon: Daemon,
    log: Arc<AccessLog>,
    client: Host,
    lab: Lab,
}

impl Stage {
    /// `ask` is the daemon's flag.
    fn set(ask: &str) -> Result<Self> {
        let mut lab = Lab::new()?;
        let client = lab.add_client(&["198.51.100.11"])?;
        lab.own_prefix(&client, CLIENTS)?;
        clients::serve(lab.server(), [DAEMON_PORT, FLOOR_PORT])?;
        let log = Arc::new(AccessLog::open(lab.path("access.log"))?);
        let flags = [
            format!("--access.log={}", log.path().display()),
            format!("--block.log={}", lab.path("block.log").display()),
            format!("--dport={DAEMON_PORT}"),
            "--evidence=kernel".to_owned(),
            format!("--ask={ask}"),
            format!("--window={}ms", slots::WINDOW.as_millis()),
            "--timeout=10m".to_owned(),
            // Each sample is another user, more of them in a minute than the brake allows.
            "--max-bans=0".to_owned(),
        ];
        let daemon = Daemon::start(Path::new(env!("CARGO_BIN_EXE_refract")), lab.server(), &flags)?;
        Ok(Self { daemon, log, client, lab })
    }
}
