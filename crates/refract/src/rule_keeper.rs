//! The daemon's side of the rule keeper: a small process of our own that alone runs iptables.
//!
//! Takes one of three commands and never waits for it; gives back what the process answered, or
//! that it died, when its socket becomes readable. Nothing that was read in a log ever goes to the
//! process. Another one stands by, where asked for: the daemon's own sandbox lets it start none, so
//! the one at work starts the next. It decides neither when to look nor when to start the process
//! again.

mod process;
mod protocol;

use std::{
    env,
    ffi::OsString,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio, read, write},
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags,
        SocketType, sendmsg, shutdown, socketpair,
    },
    process::{Pid, PidfdFlags, pidfd_open},
};

use self::protocol::Failure;
pub use self::{
    process::run_process,
    protocol::{Command, Found, RuleKeeperConfig, RuleSets, Strip},
};

/// The hidden first argument that makes this program the rule keeper.
pub const ARGUMENT: &str = "rule-keeper";

/// This program, also after its file was replaced by a newer one.
const OURSELVES: &str = "/proc/self/exe";
/// The one variable of the environment that is handed on: where legacy iptables keeps its lock.
const LOCK_FILE_VARIABLE: &str = "XTABLES_LOCKFILE";
/// What the process is told besides commands: to start another one, which speaks through the socket
/// that comes along.
const SPARE: &[u8] = b"spare\n";

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
    /// The socket or a signal handler failed.
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
        /// iptables itself does not work, and the sentence names no remedy.
        is_breakage: bool,
    },
    /// The process died.
    #[error("the rule keeper died: {reason}")]
    Died {
        /// Its exit status, or what was wrong with its answer.
        reason: String,
    },
    /// The process died, so did the one that stood by, and none can be started.
    #[error(
        "every rule keeper died, and from within its sandbox refract can start none: start refract \
         again"
    )]
    NoneLeft,
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
        /// iptables itself does not work, and the sentence names no remedy.
        is_breakage: bool,
    },
    /// The process is gone, and with it what it had been told: see [`RuleKeeper::restart`].
    Died {
        /// Its exit status, or what was wrong with its answer.
        reason: String,
    },
}

/// Whether the process gives up what running iptables does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// It keeps what it was started with.
    Free,
    /// It enters a sandbox of its own before it reads its first command.
    Own,
    /// It was started by another rule keeper, within whatever sandbox that one is in.
    Inherited,
}

impl Confinement {
    const ALL: [Self; 3] = [Self::Free, Self::Own, Self::Inherited];

    fn argument(self) -> &'static str {
        match self {
            Self::Free => "--sandbox=off",
            Self::Own => "--sandbox=on",
            Self::Inherited => "--sandbox=inherited",
        }
    }
}

/// The running process and what it was told.
#[derive(Debug)]
pub struct RuleKeeper {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// `None` once it died.
    process: Option<Process>,
    /// Takes its place when it dies.
    spare: Option<Process>,
    keeps_spare: bool,
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
    pub fn start(
        config: &RuleKeeperConfig,
        confinement: Confinement,
    ) -> Result<Self, RuleKeeperError> {
        Self::start_program(Path::new(OURSELVES), config, confinement)
    }

    /// As [`Self::start`], for whoever is not Refract himself: a test.
    pub fn start_program(
        program: &Path,
        config: &RuleKeeperConfig,
        confinement: Confinement,
    ) -> Result<Self, RuleKeeperError> {
        let arguments = config.to_arguments();
        // The process will refuse what it cannot read or plan: better to be told so here.
        RuleKeeperConfig::from_arguments(arguments.iter().cloned())?.plan()?;
        let arguments = std::iter::once(confinement.argument().into()).chain(arguments).collect();
        let mut keeper = Self {
            program: program.to_owned(),
            arguments,
            process: None,
            spare: None,
            keeps_spare: false,
            in_flight: None,
            next: None,
            received: Vec::new(),
        };
        keeper.restart()?;
        Ok(keeper)
    }

    /// Starts the process again, or puts the one that stands by in its place, and tells it what was
    /// requested since it died.
    pub fn restart(&mut self) -> Result<(), RuleKeeperError> {
        self.bury();
        self.process = Some(match self.spare.take() {
            Some(spare) => spare,
            None => self.spawn()?,
        });
        if let Some(command) = self.next.take() {
            self.request(command);
        }
        if self.keeps_spare {
            self.ask_for_spare();
        }
        Ok(())
    }

    /// From now on another process stands by, to take the place of the one that dies. Call it while
    /// this process may still start others; later that is the rule keeper's own task.
    pub fn keep_spare(&mut self) -> Result<(), RuleKeeperError> {
        self.spare = Some(self.spawn()?);
        self.keeps_spare = true;
        Ok(())
    }

    /// Sees that one stands by, where one should; call it once a second. `false` when the former one
    /// had died.
    #[must_use]
    pub fn look_after_spare(&mut self) -> bool {
        let died = self.spare.as_ref().is_some_and(Process::is_gone);
        if died && let Some(mut spare) = self.spare.take() {
            spare.bury();
        }
        if self.keeps_spare && self.spare.is_none() {
            self.ask_for_spare();
        }
        !died
    }

    fn spawn(&self) -> Result<Process, RuleKeeperError> {
        Process::spawn(&self.program, &self.arguments).map_err(|source| {
            if self.keeps_spare {
                RuleKeeperError::NoneLeft
            } else {
                RuleKeeperError::Start { program: self.program.clone(), source }
            }
        })
    }

    /// Has the process start another one. Whether it could shows at that one's socket.
    fn ask_for_spare(&mut self) {
        let Some(process) = &self.process else { return };
        self.spare = process.ask_for_another().ok();
    }

    /// What to watch for readability; [`Self::answer`] is then to be called until `None`.
    /// There is another one after a restart, and none while the process is dead.
    #[must_use]
    pub fn answer_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.process.as_ref()?.socket.as_fd())
    }

    /// The number of the process, while it lives, if it is our own child.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        Some(self.process.as_ref()?.child.as_ref()?.id())
    }

    /// Tells the process to do something, without waiting. While it does something else, the newest
    /// request is remembered; a check never takes the place of one that changes something.
    pub fn request(&mut self, command: Command) {
        match &self.process {
            Some(process) if self.in_flight.is_none() => {
                self.in_flight = Some(command);
                // The socket is empty, so it takes a line; and if nobody reads any more, that shows
                // when it is read from.
                let _ = write(&process.socket, format!("{command}\n").as_bytes());
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
            match read(&process.socket, &mut chunk) {
                // It is reset where a command was on its way to a process that died.
                Ok(0) | Err(Errno::CONNRESET) => {
                    let status = self.bury();
                    let reason = status
                        .map_or("it closed its socket".to_owned(), |status| status.to_string());
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
                    Answer::Failed { command: failed, sentence, is_breakage }
                        if failed == command =>
                    {
                        return Err(RuleKeeperError::Failed { sentence, is_breakage });
                    }
                    Answer::Died { reason } => return Err(RuleKeeperError::Died { reason }),
                    Answer::Done { .. } | Answer::Failed { .. } => {}
                }
            }
            let Some(socket) = self.answer_fd() else {
                return Err(RuleKeeperError::Died { reason: "before it was asked".to_owned() });
            };
            match is_readable_by(socket, deadline) {
                Ok(true) => {}
                Ok(false) => return Err(RuleKeeperError::Silent { command, limit }),
                Err(source) => return Err(RuleKeeperError::Io { source }),
            }
        }
    }

    /// Ends the process by closing its input, which lets it finish what it is at; kills it if it is
    /// still there after `limit`. Gives its exit status, if it lived and can be known.
    #[must_use]
    pub fn stop(mut self, limit: Duration) -> Option<ExitStatus> {
        if let Some(spare) = self.spare.take() {
            spare.close();
        }
        let mut process = self.process.take()?;
        // The answers stay open: whoever writes one to nobody would take it for an error.
        process.close_input();
        // Whether it ended or time did, or it cannot be told: there is no more waiting.
        let _ = is_readable_by(process.end(), Instant::now() + limit);
        process.bury()
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
            Err(Failure { sentence, is_breakage }) => {
                Answer::Failed { command, sentence, is_breakage }
            }
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
        self.process.take()?.bury()
    }
}

impl Drop for RuleKeeper {
    fn drop(&mut self) {
        self.bury();
        if let Some(mut spare) = self.spare.take() {
            spare.bury();
        }
    }
}

#[derive(Debug)]
struct Process {
    /// Commands one way, answers the other.
    socket: OwnedFd,
    /// Absent where another rule keeper started it.
    child: Option<Child>,
    /// Readable when the process has ended; for our own child.
    ended: Option<OwnedFd>,
}

impl Process {
    fn spawn(program: &Path, arguments: &[OsString]) -> io::Result<Self> {
        let (socket, theirs) = pair()?;
        let child = start(program, arguments, theirs)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { socket, child: Some(child), ended: Some(ended) })
    }

    /// Has this process start another one.
    fn ask_for_another(&self) -> io::Result<Self> {
        let (socket, theirs) = pair()?;
        let descriptors = [theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        along.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(&self.socket, &[IoSlice::new(SPARE)], &mut along, SendFlags::NOSIGNAL)?;
        Ok(Self { socket, child: None, ended: None })
    }

    /// Whether one that says nothing has closed its socket, or says something after all.
    fn is_gone(&self) -> bool {
        read(&self.socket, &mut [0; 1]) != Err(Errno::AGAIN)
    }

    fn close_input(&self) {
        // It fails where the process is gone.
        let _ = shutdown(&self.socket, Shutdown::Write);
    }

    /// What is readable once it has ended, at the latest.
    fn end(&self) -> BorrowedFd<'_> {
        self.ended.as_ref().map_or(self.socket.as_fd(), AsFd::as_fd)
    }

    /// Lets go of a process that is at nothing: it ends with its input.
    fn close(mut self) {
        self.close_input();
        self.wait_for_end();
    }

    /// Makes sure that the process is gone, and gives its exit status where that can be known.
    /// Killing one that has ended by itself does not change its status.
    fn bury(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        if child.kill().is_ok() {
            return child.wait().ok();
        }
        // From within a sandbox nobody is killed. One that has closed its socket has ended, or is
        // about to; another ends once it is done with iptables.
        self.wait_for_end()
    }

    fn wait_for_end(&mut self) -> Option<ExitStatus> {
        let (child, ended) = self.child.as_mut().zip(self.ended.as_ref())?;
        let has_ended = is_readable_by(ended.as_fd(), Instant::now() + CLOSING);
        if has_ended.is_ok_and(|ended| ended) { child.wait().ok() } else { None }
    }
}

/// How long a process that is at nothing may take to end: some microseconds, on a machine that has
/// nothing else to do.
const CLOSING: Duration = Duration::from_millis(300);

/// A socket for each side; ours does not wait.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Starts a rule keeper that speaks through `socket`.
fn start(program: &Path, arguments: &[OsString], socket: OwnedFd) -> io::Result<Child> {
    let mut command = std::process::Command::new(program);
    command
        .arg0("refract")
        .arg(ARGUMENT)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(socket.try_clone()?))
        .stdout(Stdio::from(socket))
        .process_group(0);
    if let Some(file) = env::var_os(LOCK_FILE_VARIABLE) {
        command.env(LOCK_FILE_VARIABLE, file);
    }
    command.spawn()
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
