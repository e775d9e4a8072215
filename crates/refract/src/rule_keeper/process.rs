//! The rule keeper's own process: reads commands, runs iptables, answers.
//!
//! Takes its plan as arguments and one command a line on standard input; writes one answer a line.
//! It ends when standard input ends, never reads a log, and never does anything unasked.

use std::{
    ffi::OsString,
    io::{self, BufRead, Read, Write},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use refract_kernel::{
    Error as KernelError,
    xtables::{NoIpv6, ProgramFailure, Report, RulePlan, State, Xtables},
};
use rustix::process::{Signal, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{
    RuleKeeperError,
    protocol::{Command, Found, RuleKeeperConfig, answer_to_text},
};

/// A command's length at most, bytes, with its line feed.
const COMMAND_LIMIT: u64 = 16;

/// The whole life of the process; `arguments` are those after [`super::ARGUMENT`]. A refusal is one
/// sentence on standard error and exit status 2.
pub fn run_process(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("refract: {error}");
            ExitCode::from(2)
        }
    }
}

fn serve(arguments: impl Iterator<Item = OsString>) -> Result<(), RuleKeeperError> {
    let config = RuleKeeperConfig::from_arguments(arguments)?;
    let plan = config.plan()?;
    outlive_the_signals_to_the_daemon().map_err(|source| RuleKeeperError::Io { source })?;

    let mut keeper = Keeper { config, plan, xtables: None };
    let (mut commands, mut answers) = (io::stdin().lock(), io::stdout().lock());
    while let Some(command) = next_command(&mut commands)? {
        let outcome = keeper.obey(command).map_err(|error| error.to_string());
        writeln!(answers, "{}", answer_to_text(command, &outcome))
            .and_then(|()| answers.flush())
            .map_err(|source| RuleKeeperError::Io { source })?;
    }
    Ok(())
}

/// `systemctl stop` signals every process of the service. The daemon needs us until it is done and
/// then closes our standard input, so the signals change nothing here. A handler, unlike an ignored
/// signal, is not handed down to iptables.
fn outlive_the_signals_to_the_daemon() -> io::Result<()> {
    let nobody_looks = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&nobody_looks))?;
    }
    // Standard input ends with the daemon anyway; this ends us also while we wait for iptables.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

/// The next command, or `None` at the end of the input.
fn next_command(input: &mut impl BufRead) -> Result<Option<Command>, RuleKeeperError> {
    let mut line = Vec::new();
    input
        .take(COMMAND_LIMIT)
        .read_until(b'\n', &mut line)
        .map_err(|source| RuleKeeperError::Io { source })?;
    if line.is_empty() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&line);
    match text.strip_suffix('\n').and_then(Command::from_word) {
        Some(command) => Ok(Some(command)),
        None => Err(RuleKeeperError::Command { text: text.into_owned() }),
    }
}

struct Keeper {
    config: RuleKeeperConfig,
    plan: RulePlan,
    /// Found at the first command, and looked for again as long as it is not there.
    xtables: Option<Xtables>,
}

impl Keeper {
    fn obey(&mut self, command: Command) -> Result<Found, KernelError> {
        let xtables = match &self.xtables {
            Some(xtables) => xtables,
            None => match Xtables::find(self.config.iptables.as_deref(), self.plan.clone()) {
                Ok(found) => self.xtables.insert(found),
                Err(error) if command == Command::Remove && is_absence(&error) => {
                    let report = Report { v4: State::Missing, v6: Err(NoIpv6::NoProgram) };
                    return Ok(Found { report, variant: None });
                }
                Err(error) => return Err(error),
            },
        };
        let report = match command {
            Command::Install => xtables.install(),
            Command::Check => xtables.check(),
            Command::Remove => xtables.remove(),
        }?;
        Ok(Found { report, variant: Some(xtables.variant()) })
    }
}

fn is_absence(error: &KernelError) -> bool {
    matches!(error, KernelError::Program { source: ProgramFailure::NotFound, .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_one_a_line_until_the_end() {
        let mut input = &b"install\ncheck\nremove\n"[..];
        for expected in [Some(Command::Install), Some(Command::Check), Some(Command::Remove), None]
        {
            assert_eq!(next_command(&mut input).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for text in [
            "\n",
            "check",
            " check\n",
            "check \n",
            "check\r\n",
            "CHECK\n",
            "flush\n",
            "check -j ACCEPT\n",
            "installinstallinstallinstall\n",
            "check\0\n",
        ] {
            let refused = next_command(&mut text.as_bytes());
            assert!(matches!(refused, Err(RuleKeeperError::Command { .. })), "{text:?}");
        }
    }
}
