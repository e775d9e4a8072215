//! The daemon's side of the rule keeper: a small process of our own that alone runs iptables.
//!
//! Takes one of three commands and never waits for it; gives back what the process answered, or
//! that it died, when its pipe becomes readable. Nothing that was read in a log ever goes to the
//! process. It decides neither when to look nor when to start the process again.

mod process;
mod protocol;

use std::{
    env,
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio, read, write},
    process::{Pid, PidfdFlags, pidfd_open},
};

pub use self::{
    process::run_process,
    protocol::{Command, Found, RuleKeeperConfig, RuleSets},
};

/// The hidden first argument that makes this program the rule keeper.
pub const ARGUMENT: &str = "rule-keeper";

/// This program, also after its file was replaced by a newer one.
const OURSELVES: &str = "/proc/self/exe";
/// The one variable of the environment that is handed on: where legacy iptables keeps its lock.
const LOCK_FILE_VARIABLE: &str = "XTABLES_LOCKFILE";

/// What can go wrong with the rule keeper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuleKeeperError {
    /// The process could not be started.
    #[error("cannot start the rule keeper {}: {source}", .program.display())]
    Start {
        /// The program that was to be run.
        program: PathBuf,
        /// Why it was not.
        source: io::Error,
    },
    /// The plan makes no rules.
    #[error(transparent)]
    Plan {
        /// What is wrong with it.
        source: refract_kernel::Error,
    },
    /// The process was started with an argument that the daemon does not give.
    #[error("the rule keeper does not take the argument {argument:?}; the daemon starts it")]
    Argument {
        /// The argument; empty if there is one too few.
        argument: OsString,
    },
    /// The process was told something that is no command.
    #[error("the rule keeper does not know the command {text:?}")]
    Command {
        /// What it was told.
        text: String,
    },
    /// A pipe or a signal handler failed.
    #[error("cannot speak with the rule keeper: {source}")]
    Io {
        /// How.
        source: io::Error,
    },
    /// A command failed.
    #[error("{sentence}")]
    Failed {
        /// What the process said about it.
        sentence: String,
    },
    /// The process died.
    #[error("the rule keeper died: {reason}")]
    Died {
        /// Its exit status, or what was wrong with its answer.
        reason: String,
    },
    /// The process did not answer in time.
    #[error("the rule keeper did not answer to {command} within {} s", .limit.as_secs_f32())]
    Silent {
        /// What it had been told.
        command: Command,
        /// How long it was waited for.
        limit: Duration,
    },
}

/// What comes from the rule keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A command is done.
    Done {
        /// Which one.
        command: Command,
        /// How the rules stood before.
        found: Found,
    },
    /// A command failed.
    Failed {
        /// Which one.
        command: Command,
        /// Why.
        sentence: String,
    },
    /// The process is gone, and with it what it had been told: see [`RuleKeeper::restart`].
    Died {
        /// Its exit status, or what was wrong with its answer.
        reason: String,
    },
}

/// The running process and what it was told.
#[derive(Debug)]
pub struct RuleKeeper {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// `None` once it died.
    process: Option<Process>,
    in_flight: Option<Command>,
    next: Option<Command>,
    received: Vec<u8>,
}

impl RuleKeeper {
    /// Starts the process: this program once more, in a process group of its own, where Ctrl-C does
    /// not reach it.
    ///
    /// Call it from a thread that lives as long as the daemon does: the kernel ends the process
    /// together with the thread that started it (`PR_SET_PDEATHSIG`).
    pub fn start(config: &RuleKeeperConfig) -> Result<Self, RuleKeeperError> {
        Self::start_program(Path::new(OURSELVES), config)
    }

    /// As [`Self::start`], for whoever is not Refract himself: a test.
    pub fn start_program(
        program: &Path,
        config: &RuleKeeperConfig,
    ) -> Result<Self, RuleKeeperError> {
        let arguments = config.to_arguments();
        // The process will refuse what it cannot read or plan: better to be told so here.
        RuleKeeperConfig::from_arguments(arguments.iter().cloned())?.plan()?;
        let mut keeper = Self {
            program: program.to_owned(),
            arguments,
            process: None,
            in_flight: None,
            next: None,
            received: Vec::new(),
        };
        keeper.restart()?;
        Ok(keeper)
    }

    /// Starts the process again, and tells it what was requested since it died.
    pub fn restart(&mut self) -> Result<(), RuleKeeperError> {
        self.bury();
        let process = Process::spawn(&self.program, &self.arguments);
        self.process =
            Some(process.map_err(|source| RuleKeeperError::Start {
                program: self.program.clone(),
                source,
            })?);
        if let Some(command) = self.next.take() {
            self.request(command);
        }
        Ok(())
    }

    /// The pipe to watch for readability; [`Self::answer`] is then to be called until `None`.
    /// There is another one after a restart, and none while the process is dead.
    #[must_use]
    pub fn answer_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.process.as_ref()?.answers.as_fd())
    }

    /// The number of the process, while it lives.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        Some(self.process.as_ref()?.child.id())
    }

    /// Tells the process to do something, without waiting. While it does something else, the newest
    /// request is remembered; a check never takes the place of one that changes something.
    pub fn request(&mut self, command: Command) {
        match &self.process {
            Some(process) if self.in_flight.is_none() => {
                self.in_flight = Some(command);
                // The pipe is empty, so it takes a line; and if nobody reads any more, that shows
                // at the other pipe.
                let _ = write(&process.commands, format!("{command}\n").as_bytes());
            }
            _ if command != Command::Check || self.next.is_none() => self.next = Some(command),
            _ => {}
        }
    }

    /// The next answer that is there, without waiting.
    pub fn answer(&mut self) -> Option<Answer> {
        loop {
            let process = self.process.as_ref()?;
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<_> = self.received.drain(..=end).collect();
                return Some(self.understand(line.strip_suffix(b"\n").unwrap_or_default()));
            }
            if self.received.len() > protocol::ANSWER_LIMIT {
                return Some(self.disown("its answer has no end"));
            }
            let mut chunk = [0; 512];
            match read(&process.answers, &mut chunk) {
                Ok(0) => {
                    let status = self.bury();
                    let reason = status
                        .map_or("it cannot be waited for".to_owned(), |status| status.to_string());
                    return Some(Answer::Died { reason });
                }
                Ok(length) => self.received.extend(chunk.iter().take(length)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(source) => return Some(self.disown(&source.to_string())),
            }
        }
    }

    /// Requests and waits for the answer, `limit` at most: for the start and the end of the daemon,
    /// when nothing else is under way. The answers to earlier requests are lost.
    pub fn ask_and_wait(
        &mut self,
        command: Command,
        limit: Duration,
    ) -> Result<Found, RuleKeeperError> {
        let deadline = Instant::now() + limit;
        self.request(command);
        loop {
            while let Some(answer) = self.answer() {
                match answer {
                    Answer::Done { command: done, found } if done == command => return Ok(found),
                    Answer::Failed { command: failed, sentence } if failed == command => {
                        return Err(RuleKeeperError::Failed { sentence });
                    }
                    Answer::Died { reason } => return Err(RuleKeeperError::Died { reason }),
                    Answer::Done { .. } | Answer::Failed { .. } => {}
                }
            }
            let Some(pipe) = self.answer_fd() else {
                return Err(RuleKeeperError::Died { reason: "before it was asked".to_owned() });
            };
            match is_readable_by(pipe, deadline) {
                Ok(true) => {}
                Ok(false) => return Err(RuleKeeperError::Silent { command, limit }),
                Err(source) => return Err(RuleKeeperError::Io { source }),
            }
        }
    }

    /// Ends the process by closing its input, which lets it finish what it is at; kills it if it is
    /// still there after `limit`. Gives its exit status, if it lived.
    #[must_use]
    pub fn stop(mut self, limit: Duration) -> Option<ExitStatus> {
        // The answers stay open: whoever writes one to nobody would take it for an error.
        let Process { mut child, commands, answers: _answers, end } = self.process.take()?;
        drop(commands);
        // Whether it ended or time did, or it cannot be told: there is no more waiting.
        let _ = is_readable_by(end.as_fd(), Instant::now() + limit);
        bury(&mut child)
    }

    fn understand(&mut self, line: &[u8]) -> Answer {
        let answer = str::from_utf8(line).ok().and_then(protocol::answer_from_text);
        let Some((command, outcome)) = answer.filter(|(to, _)| Some(*to) == self.in_flight) else {
            return self.disown("its answer cannot be understood");
        };
        self.in_flight = None;
        if let Some(next) = self.next.take() {
            self.request(next);
        }
        match outcome {
            Ok(found) => Answer::Done { command, found },
            Err(sentence) => Answer::Failed { command, sentence },
        }
    }

    /// Ends a process that cannot be relied on.
    fn disown(&mut self, reason: &str) -> Answer {
        self.bury();
        Answer::Died { reason: reason.to_owned() }
    }

    /// Forgets the process and all that it was told, and gives its exit status.
    fn bury(&mut self) -> Option<ExitStatus> {
        self.in_flight = None;
        self.received.clear();
        bury(&mut self.process.take()?.child)
    }
}

impl Drop for RuleKeeper {
    fn drop(&mut self) {
        self.bury();
    }
}

#[derive(Debug)]
struct Process {
    child: Child,
    commands: ChildStdin,
    answers: ChildStdout,
    /// Readable when the process has ended.
    end: OwnedFd,
}

impl Process {
    fn spawn(program: &Path, arguments: &[OsString]) -> io::Result<Self> {
        let mut command = std::process::Command::new(program);
        command
            .arg0("refract")
            .arg(ARGUMENT)
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        if let Some(file) = env::var_os(LOCK_FILE_VARIABLE) {
            command.env(LOCK_FILE_VARIABLE, file);
        }
        let mut child = command.spawn()?;
        let Some((commands, answers)) = child.stdin.take().zip(child.stdout.take()) else {
            return Err(io::Error::other("it has no pipes"));
        };
        ioctl_fionbio(&commands, true)?;
        ioctl_fionbio(&answers, true)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        let end = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { child, commands, answers, end })
    }
}

/// Makes sure that the process is gone, and gives its exit status. Killing one that has ended by
/// itself does not change its status.
fn bury(child: &mut Child) -> Option<ExitStatus> {
    // It fails only where there is nobody left to kill.
    let _ = child.kill();
    child.wait().ok()
}

fn is_readable_by(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut ready = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut ready, Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(source) => return Err(source.into()),
        }
    }
}
