//! The `refract` binary, run as an operator runs it.
//!
//! Takes the binary's path and its flags; starts it on a host and waits until it says that it is
//! ready. Ends it politely or not. It reads nothing that the daemon writes but its messages.

use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, ExitStatus},
    time::Duration,
};

use rustix::process::Signal;

use super::{Result, lab::Host, nft_table, process::Process};

/// The daemon is ready once one of its messages has this as a word of its own.
pub(crate) const READY: &str = "ready";
/// How long the daemon may take to be ready.
const START_BOUND: Duration = Duration::from_secs(10);
/// How long it may take to end. The kernel closes an inotify descriptor only after work that the end
/// of a namespace with tens of thousands of connections, in a test beside, holds up.
pub(crate) const FAREWELL_BOUND: Duration = Duration::from_mins(1);

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    process: Process,
}

impl Daemon {
    /// Starts `binary` with `flags` and waits until it is ready.
    pub(crate) fn start(binary: &Path, host: &Host, flags: &[String]) -> Result<Self> {
        Self::start_command(host, &command(binary, flags))
    }

    /// Starts `binary` with `flags` by way of a program that changes its own rights and then
    /// becomes it, such as `setpriv --bounding-set -all`.
    pub(crate) fn start_under(
        wrapper: &[&str],
        binary: &Path,
        host: &Host,
        flags: &[String],
    ) -> Result<Self> {
        let Some((program, arguments)) = wrapper.split_first() else {
            return Self::start(binary, host, flags);
        };
        let mut under = command::<&str>(Path::new(program), &[]);
        under.args(arguments).arg(binary).args(flags);
        Self::start_command(host, &under)
    }

    /// As [`start`](Self::start), for a command that ends up being the daemon: one with an
    /// environment, or run by a program that changes its rights first.
    pub(crate) fn start_command(host: &Host, command: &Command) -> Result<Self> {
        let process = Process::start(host, command)?;
        process.wait_for_line("that it is ready", START_BOUND, |line| {
            line.split(|character: char| !character.is_alphanumeric()).any(|word| word == READY)
        })?;
        Ok(Self { process })
    }

    /// The daemon's process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Everything it has said so far.
    pub(crate) fn messages(&self) -> String {
        self.process.said()
    }

    /// Waits for a message that contains `text`, and gives it.
    pub(crate) fn wait_for_message(&self, text: &str, bound: Duration) -> Result<String> {
        self.process.wait_for_line(text, bound, |line| line.contains(text))
    }

    /// Sends one signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits for its end, `bound` at most.
    pub(crate) fn wait(&self, bound: Duration) -> Result<ExitStatus> {
        self.process.wait(bound)
    }

    /// Sends SIGTERM and waits for its end, `bound` at most.
    pub(crate) fn terminate(self, bound: Duration) -> Result<ExitStatus> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(bound)
    }

    /// Ends it with SIGKILL, as a crash would.
    pub(crate) fn kill(self) -> Result<ExitStatus> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(FAREWELL_BOUND)
    }
}

/// `binary` with `arguments`, which are the whole configuration, whatever the caller's environment
/// holds, but for the firewall: that is the one that the tests are about, not what this machine would
/// choose.
pub(crate) fn command<A: AsRef<OsStr>>(binary: &Path, arguments: &[A]) -> Command {
    let mut command = Command::new(binary);
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("REFRACT_") {
            command.env_remove(name);
        }
    }
    command.env("REFRACT_FIREWALL", nft_table::firewall_under_test());
    command
}
