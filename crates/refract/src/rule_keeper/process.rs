//! The rule keeper's own process: reads commands, runs iptables, answers.
//!
//! Takes its plan as arguments and one command a line on standard input, a socket; writes one answer
//! a line. It ends when standard input ends, never reads a log, and never does anything unasked. It
//! also starts the process that stands by, if told to: within its own sandbox, so that need not be
//! entered again (Landlock nests sixteen times at most).

use std::{
    env,
    ffi::OsString,
    io::{self, IoSliceMut, Write},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, ExitCode},
    sync::{Arc, atomic::AtomicBool},
};

use refract_kernel::{
    Error as KernelError,
    xtables::{NoIpv6, ProgramFailure, Protocol, Report, RulePlan, State, StripReport, Xtables},
};
use rustix::{
    cmsg_space,
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Signal, set_parent_process_death_signal},
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use super::{
    Confinement, LOCK_FILE_VARIABLE, OURSELVES, RuleKeeperError, SPARE,
    protocol::{Command, Failure, Found, RuleKeeperConfig, RuleSets, Strip, answer_to_text},
    start,
};
use crate::sandbox;

/// A command's length at most, bytes, with its line feed.
const COMMAND_LIMIT: usize = 16;
/// Where legacy iptables has its lock unless told otherwise (iptables, `XT_LOCK_NAME`).
const LOCK_FILE: &str = "/run/xtables.lock";

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
    let mut arguments = arguments.peekable();
    let confinement = arguments
        .next_if(|argument| confinement_of(argument).is_some())
        .and_then(|argument| confinement_of(&argument))
        .unwrap_or(Confinement::Free);
    let config = RuleKeeperConfig::from_arguments(arguments)?;
    let plan = config.plan()?;
    outlive_the_signals_to_the_daemon(confinement)
        .map_err(|source| RuleKeeperError::Io { source })?;
    if confinement == Confinement::Own {
        let lock_file = env::var_os(LOCK_FILE_VARIABLE).map(PathBuf::from);
        let lock_file = lock_file.as_deref().unwrap_or(Path::new(LOCK_FILE));
        sandbox::confine_rule_keeper(config.iptables.as_deref(), lock_file);
    }

    let mut keeper = Keeper { config, plan, xtables: None, unstrippable: None, spares: Vec::new() };
    let (commands, mut answers) = (io::stdin(), io::stdout().lock());
    while let Some(order) = next_order(commands.as_fd())? {
        let command = match order {
            Order::Obey(command) => command,
            Order::Spare(socket) => {
                keeper.start_spare(socket);
                continue;
            }
        };
        let outcome = keeper.obey(command).map_err(|error| Failure {
            sentence: error.to_string(),
            is_breakage: error.is_breakage(),
        });
        writeln!(answers, "{}", answer_to_text(command, &outcome))
            .and_then(|()| answers.flush())
            .map_err(|source| RuleKeeperError::Io { source })?;
    }
    Ok(())
}

fn confinement_of(argument: &OsString) -> Option<Confinement> {
    Confinement::ALL.into_iter().find(|it| argument == it.argument())
}

/// `systemctl stop` signals every process of the service, and `kill $(pidof refract)` every one of
/// our name. The daemon needs us until it is done and then closes our standard input, so the signals
/// change nothing here. A handler, unlike an ignored signal, is not handed down to iptables.
fn outlive_the_signals_to_the_daemon(confinement: Confinement) -> io::Result<()> {
    let nobody_looks = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM, SIGUSR1] {
        signal_hook::flag::register(signal, Arc::clone(&nobody_looks))?;
    }
    // Standard input ends with the daemon anyway; this ends us also while we wait for iptables. One
    // that another rule keeper started outlives that one: it is there to take its place.
    if confinement != Confinement::Inherited {
        set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    Ok(())
}

/// What the process is told.
#[derive(Debug)]
enum Order {
    Obey(Command),
    /// To start the next one, which speaks through this.
    Spare(OwnedFd),
}

/// The next order, or `None` at the end of the input.
fn next_order(input: BorrowedFd<'_>) -> Result<Option<Order>, RuleKeeperError> {
    let (mut line, mut along) = (Vec::new(), None);
    while line.last() != Some(&b'\n') && line.len() < COMMAND_LIMIT {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        // Byte by byte, so that what comes along stays with its line; a look at the rules costs a
        // thousand times as much.
        let received = recvmsg(
            input,
            &mut [IoSliceMut::new(&mut byte)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        match received {
            Ok(received) if received.bytes == 0 => break,
            Ok(_) => line.extend(byte),
            Err(Errno::INTR) => continue,
            Err(Errno::CONNRESET) => break,
            Err(errno) => return Err(RuleKeeperError::Io { source: errno.into() }),
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                along = descriptors.last().or(along);
            }
        }
    }
    if line.is_empty() { Ok(None) } else { order_of(&line, along).map(Some) }
}

fn order_of(line: &[u8], along: Option<OwnedFd>) -> Result<Order, RuleKeeperError> {
    let text = String::from_utf8_lossy(line);
    match (text.strip_suffix('\n').and_then(Command::from_word), along) {
        (Some(command), _) => Ok(Order::Obey(command)),
        (None, Some(socket)) if line == SPARE => Ok(Order::Spare(socket)),
        (None, _) => Err(RuleKeeperError::Command { text: text.into_owned() }),
    }
}

struct Keeper {
    config: RuleKeeperConfig,
    plan: RulePlan,
    /// Found at the first command, and looked for again as long as it is not there.
    xtables: Option<Xtables>,
    /// Once an install found that MPTCP can be stripped in no family, no check looks again.
    unstrippable: Option<StripReport>,
    /// Those that were started to stand by: the last of them does, others may have died.
    spares: Vec<Child>,
}

impl Keeper {
    fn start_spare(&mut self, socket: OwnedFd) {
        self.spares.retain_mut(|spare| matches!(spare.try_wait(), Ok(None)));
        let mut arguments = vec![Confinement::Inherited.argument().into()];
        arguments.extend(self.config.to_arguments());
        let spare = start(Path::new(OURSELVES), &arguments, socket)
            .map_err(|source| RuleKeeperError::Start { program: OURSELVES.into(), source });
        match spare {
            Ok(spare) => self.spares.push(spare),
            // The daemon sees that its socket is closed; what is at work goes on working.
            Err(error) => eprintln!("refract: {error}"),
        }
    }

    fn obey(&mut self, command: Command) -> Result<Found, KernelError> {
        let xtables = match &self.xtables {
            Some(xtables) => xtables,
            None => match Xtables::find(self.config.iptables.as_deref(), self.plan.clone()) {
                Ok(found) => self.xtables.insert(found),
                Err(error) if command == Command::Remove && is_absence(&error) => {
                    let report = Report { v4: State::Missing, v6: Err(NoIpv6::NoProgram) };
                    return Ok(Found { report, variant: None, strip: Strip::Off });
                }
                Err(error) => return Err(error),
            },
        };
        let report = match command {
            Command::Install => xtables.install(),
            Command::Check => xtables.check(),
            Command::Remove => xtables.remove(),
        }?;
        // Only now: what becomes of MPTCP must not hold the drop rule up.
        let strip = match self.config.sets {
            RuleSets::Lasting => strip(xtables, command, &self.config, &mut self.unstrippable),
            RuleSets::Temporary => Strip::Off,
        };
        Ok(Found { report, variant: Some(xtables.variant()), strip })
    }
}

/// Obeys as far as MPTCP is concerned.
fn strip(
    xtables: &Xtables,
    command: Command,
    config: &RuleKeeperConfig,
    unstrippable: &mut Option<StripReport>,
) -> Strip {
    // Without TCP there is nothing to strip.
    let is_wanted = config.strip_mptcp && config.protocols.contains(&Protocol::Tcp);
    let outcome = match (command, is_wanted) {
        (Command::Check, false) => Ok(Strip::Off),
        (Command::Remove, _) | (Command::Install, false) => {
            xtables.remove_strip().map(|_| Strip::Off)
        }
        (Command::Install, true) => xtables.install_strip().map(|report| {
            let is_nowhere = report.v4.is_err() && report.v6.is_err();
            *unstrippable = is_nowhere.then_some(report);
            Strip::Wanted(report)
        }),
        (Command::Check, true) => match *unstrippable {
            Some(report) => Ok(Strip::Wanted(report)),
            None => xtables.check_strip().map(Strip::Wanted),
        },
    };
    outcome.unwrap_or_else(|error| Strip::Failed(error.to_string()))
}

fn is_absence(error: &KernelError) -> bool {
    matches!(error, KernelError::Program { source: ProgramFailure::NotFound, .. })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn read_all(text: &[u8]) -> Result<Vec<Order>, RuleKeeperError> {
        let (input, output) = UnixStream::pair().unwrap();
        (&output).write_all(text).unwrap();
        drop(output);
        let mut orders = Vec::new();
        while let Some(order) = next_order(input.as_fd())? {
            orders.push(order);
        }
        Ok(orders)
    }

    #[test]
    fn commands_are_read_one_a_line_until_the_end() {
        let orders = read_all(b"install\ncheck\nremove\n").unwrap();
        assert!(matches!(
            orders[..],
            [
                Order::Obey(Command::Install),
                Order::Obey(Command::Check),
                Order::Obey(Command::Remove)
            ]
        ));
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
            // Nothing comes along that a spare could speak through.
            "spare\n",
        ] {
            let refused = read_all(text.as_bytes());
            assert!(matches!(refused, Err(RuleKeeperError::Command { .. })), "{text:?}");
        }
    }
}
