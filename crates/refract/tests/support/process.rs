//! One child process inside a host.
//!
//! Takes a command; gives its output line by line as it comes, its signals and its end. The
//! process leads a group of its own, dies with the host's thread, and is killed with its group
//! when dropped. It knows nothing of what the command does.

use std::{
    io::{BufRead as _, BufReader, Read},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group,
        pidfd_open, waitid,
    },
};

use super::{LabError, Result, lab::Host};

/// A running child process.
pub(crate) struct Process {
    name: String,
    child: Child,
    said: Arc<Said>,
    streams: usize,
}

impl Process {
    /// Starts `command` on `host`, under `setpriv --pdeathsig` so that it cannot outlive it.
    pub(crate) fn start(host: &Host, command: &Command) -> Result<Self> {
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program());
        bound.args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => bound.env(key, value),
                None => bound.env_remove(key),
            };
        }
        bound.process_group(0);
        bound.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = host.spawn(bound)?;
        let said = Arc::new(Said::default());
        let out = child.stdout.take().map(|stream| read_lines(stream, &said));
        let err = child.stderr.take().map(|stream| read_lines(stream, &said));
        let name = format!("{} on {}", command.get_program().display(), host.name());
        Ok(Self { name, child, said, streams: out.into_iter().chain(err).count() })
    }

    /// The process id, also that of its group.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far, both streams.
    pub(crate) fn said(&self) -> String {
        self.said.lock().lines.join("\n")
    }

    /// Waits until it has printed a line for which `is_wanted` holds, and gives that line.
    pub(crate) fn wait_for_line(
        &self,
        what: &str,
        bound: Duration,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let deadline = Instant::now() + bound;
        let mut said = self.said.lock();
        loop {
            if let Some(line) = said.lines.iter().find(|line| is_wanted(line)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = said.ended == self.streams;
            if ended || left.is_zero() {
                let why = if ended { "it ended" } else { "it took too long" };
                let name = &self.name;
                let lines = said.lines.join("\n");
                return Err(LabError::new(format!(
                    "{name} did not print {what}: {why}; it printed:\n{lines}"
                )));
            }
            said = self
                .said
                .changed
                .wait_timeout(said, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Sends one signal to the process (not to its group).
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid()?, signal)
            .map_err(LabError::while_trying(format!("signal {}", self.name)))
    }

    /// Waits for its end, `bound` at most.
    pub(crate) fn wait(&self, bound: Duration) -> Result<ExitStatus> {
        let what = format!("wait for the end of {}", self.name);
        let pidfd = pidfd_open(self.pid()?, PidfdFlags::empty())
            .map_err(LabError::while_trying(what.as_str()))?;
        let timeout = Timespec::try_from(bound).map_err(LabError::while_trying(what.as_str()))?;
        let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout))
            .map_err(LabError::while_trying(what.as_str()))?;
        if ready == 0 {
            return Err(LabError::new(format!("{} was still there after {bound:?}", self.name)));
        }
        // It has ended, but the parent of a traced process learns of it only after the tracer.
        self.look(WaitIdOptions::empty())?.ok_or_else(|| LabError::new(format!("failed to {what}")))
    }

    /// The exit status, if it has ended. The id stays ours (a zombie) until this is dropped.
    pub(crate) fn ended(&self) -> Result<Option<ExitStatus>> {
        self.look(WaitIdOptions::NOHANG)
    }

    fn look(&self, how: WaitIdOptions) -> Result<Option<ExitStatus>> {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | how;
        let status = waitid(WaitId::Pid(self.pid()?), look)
            .map_err(LabError::while_trying(format!("look at {}", self.name)))?;
        Ok(status.map(|status| {
            // The encoding of wait(2): the exit code in the second byte, or the signal in the first.
            let code = status.exit_status().map(|code| code << 8);
            ExitStatus::from_raw(code.or_else(|| status.terminating_signal()).unwrap_or_default())
        }))
    }

    fn pid(&self) -> Result<Pid> {
        i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| LabError::new(format!("{} has no process id", self.name)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nobody has waited for the child, so its id cannot have become another's.
        if let Ok(pid) = self.pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// What a process has printed, and how many of its streams have ended.
#[derive(Default)]
struct Said {
    state: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    ended: usize,
}

impl Said {
    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a stream to its end on a thread that nobody waits for: a grandchild may hold it open.
fn read_lines(stream: impl Read + Send + 'static, said: &Arc<Said>) {
    let said = Arc::clone(said);
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(std::result::Result::ok) {
            said.lock().lines.push(String::from_utf8_lossy(&line).into_owned());
            said.changed.notify_all();
        }
        said.lock().ended += 1;
        said.changed.notify_all();
    });
}
