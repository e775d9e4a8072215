//! The daemon on the kernel's evidence: beside real connections, and a log that the test writes.
//!
//! Takes a lab, flags, lines and devices; gives the daemon's own counters (what SIGUSR1 prints), its
//! records, and whether two devices of one user are cut. A line has been read once the counter of
//! lines says so. It looks at no socket: who wants to know what became of one asks its owner.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    LabError, Result,
    access_log::AccessLog,
    daemon::Daemon,
    eventually,
    lab::{Host, Lab},
    peer::{Ending, Talker},
    sidecar::{Record, Sidecar},
    witness,
};

/// How long what happens at once may take, on a machine that has much else to do.
pub(crate) const BOUND: Duration = Duration::from_secs(30);
/// How often a device at work opens a connection.
const BROWSE_EVERY: Duration = Duration::from_millis(150);
/// Connections that a device at work keeps open.
const KEPT_OPEN: usize = 3;
/// The last line of what SIGUSR1 prints.
const LAST_OF_STATUS: &str = "status: log lines=";

/// What SIGUSR1 made the daemon print.
pub(crate) struct Status(Vec<String>);

impl Sidecar {
    /// Starts the daemon on the lab's server with `--evidence=kernel`, a window of a second and
    /// `flags`, which come last. The logs of an earlier one in this lab are gone on with.
    pub(crate) fn start_asking(lab: &Lab, flags: &[&str]) -> Result<Self> {
        Self::start(lab, &[&["--evidence=kernel", "--window=1s"], flags].concat())
    }

    /// Asks the daemon for its counters.
    pub(crate) fn status(&self) -> Result<Status> {
        Status::ask(self.daemon()?).map_err(|error| self.trouble(&error.to_string()))
    }

    /// Waits until the daemon has read all that is in the log by now, and gives its counters.
    pub(crate) fn settled(&self) -> Result<Status> {
        let written = self.lines_written()?;
        self.status_once("every line of the log to be read", |status| {
            Ok(status.count("lines")? >= written as u64)
        })
    }

    /// Waits until the daemon's counters are as wanted.
    pub(crate) fn status_once(
        &self,
        what: &str,
        mut is_wanted: impl FnMut(&Status) -> Result<bool>,
    ) -> Result<Status> {
        eventually(what, BOUND, || {
            let status = self.status()?;
            Ok(is_wanted(&status)?.then_some(status))
        })
        .map_err(|error| self.trouble(&error.to_string()))
    }

    /// How many connections at `source` were reset to ask whether anybody is there.
    pub(crate) fn asked(&self, source: &str) -> Result<usize> {
        let is_asked = |it: &&Record| it.action == "ask" && it.source == source && it.killed > 0;
        Ok(self.records()?.iter().filter(is_asked).count())
    }

    /// Waits for a record that is as wanted, and gives the first one.
    pub(crate) fn wait_for_record(
        &self,
        what: &str,
        is_wanted: impl Fn(&Record) -> bool,
    ) -> Result<Record> {
        eventually(what, BOUND, || Ok(self.records()?.into_iter().find(|it| is_wanted(it))))
            .map_err(|error| self.trouble(&error.to_string()))
    }

    /// Lets two devices of one user work at once until one of them is banned or disconnected, and
    /// gives the record, with the time since the second began; `bound` at most. Who begins with
    /// connections open already is the senior.
    pub(crate) fn until_cut(
        &self,
        senior: &mut Device<'_>,
        junior: &mut Device<'_>,
        bound: Duration,
    ) -> Result<(Record, Duration)> {
        senior.browse()?;
        junior.browse()?;
        let begun = Instant::now();
        let user = junior.user.clone();
        loop {
            // A reset on sight may be on record before the verdict that it follows from.
            let is_cut = |it: &Record| {
                it.user == user && ["ban", "kill"].contains(&&*it.action) && it.reason != "on_sight"
            };
            if let Some(record) = self.records()?.into_iter().find(is_cut) {
                return Ok((record, begun.elapsed()));
            }
            if begun.elapsed() > bound {
                let sentence = format!("{user}'s two devices were not cut within {bound:?}");
                return Err(self.trouble(&sentence));
            }
            thread::sleep(BROWSE_EVERY);
            senior.browse()?;
            junior.browse()?;
        }
    }
}

impl Status {
    /// Asks `daemon`, and waits for the whole of what it says.
    pub(crate) fn ask(daemon: &Daemon) -> Result<Self> {
        let count = |said: &str| said.matches(LAST_OF_STATUS).count();
        let before = count(&daemon.messages());
        daemon.signal(Signal::USR1)?;
        eventually("the daemon's status", BOUND, || {
            let said = daemon.messages();
            Ok(if count(&said) == before { None } else { Self::last_in(&said) })
        })
    }

    /// The last whole one in what a daemon has said.
    pub(crate) fn last_in(said: &str) -> Option<Self> {
        let lines: Vec<&str> =
            said.lines().filter_map(|line| line.split_once("status: ")).map(|(_, it)| it).collect();
        let end = lines.iter().rposition(|line| line.starts_with("log lines="))?;
        let lines = lines.get(..=end)?;
        let begun = lines.iter().rposition(|line| line.starts_with("evidence="))?;
        Some(Self(lines.get(begun..)?.iter().map(|line| (*line).to_owned()).collect()))
    }

    /// The first number that is called `name`.
    pub(crate) fn count(&self, name: &str) -> Result<u64> {
        let value = self
            .0
            .iter()
            .flat_map(|line| line.split_whitespace())
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
        value.ok_or_else(|| LabError::new(format!("no {name} in the status:\n{self}")))
    }

    /// The lines that begin with `text`.
    pub(crate) fn lines_with(&self, text: &str) -> Vec<&str> {
        self.0.iter().map(String::as_str).filter(|line| line.starts_with(text)).collect()
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0.join("\n"))
    }
}

/// A device of one user: its connections come from one address, and the log names each of them once
/// payload has come through.
pub(crate) struct Device<'a> {
    log: &'a AccessLog,
    host: &'a Host,
    source: IpAddr,
    server: SocketAddr,
    user: String,
    open: Vec<Talker>,
    /// Connections that were reset.
    pub(crate) resets: usize,
}

impl<'a> Device<'a> {
    /// A device of `user` on `host` at `source`, with nothing open yet.
    pub(crate) fn new(
        sidecar: &'a Sidecar,
        host: &'a Host,
        source: IpAddr,
        server: SocketAddr,
        user: &str,
    ) -> Self {
        let (log, user) = (sidecar.log(), user.to_owned());
        Self { log, host, source, server, user, open: Vec::new(), resets: 0 }
    }

    /// Opens one more connection, if it is let in, and closes the oldest beyond a few.
    pub(crate) fn browse(&mut self) -> Result<bool> {
        let is_reset =
            |talker: &Talker| matches!(talker.progress().ending(), Some(Ending::Reset(_)));
        let before = self.open.len();
        self.open.retain(|talker| !is_reset(talker));
        self.resets += before - self.open.len();
        let Ok(talker) = Talker::connect(self.host, self.source, self.server) else {
            return Ok(false);
        };
        // It may be reset on sight.
        if talker.progress().wait_for_bytes(1, BOUND).is_err() {
            return Ok(false);
        }
        self.log.accepted(talker.local(), &self.user)?;
        self.open.push(talker);
        if self.open.len() > KEPT_OPEN {
            self.open.remove(0);
        }
        Ok(true)
    }

    /// What it has open, and what was reset since it last opened anything.
    pub(crate) fn open(&self) -> &[Talker] {
        &self.open
    }
}

/// Connects from `source` and talks; the log says that it is `user`'s.
pub(crate) fn online(
    sidecar: &Sidecar,
    host: &Host,
    source: IpAddr,
    server: SocketAddr,
    user: &str,
) -> Result<Talker> {
    let talker = unnamed(host, source, server)?;
    sidecar.log().accepted(talker.local(), user)?;
    Ok(talker)
}

/// Connects from `source` and talks, and the log says nothing.
pub(crate) fn unnamed(host: &Host, source: IpAddr, server: SocketAddr) -> Result<Talker> {
    let talker = Talker::connect(host, source, server)?;
    talker.progress().wait_for_bytes(1, BOUND)?;
    Ok(talker)
}

/// The members of all of Refract's sets.
pub(crate) fn banned(host: &Host) -> Result<Vec<String>> {
    let mut members = Vec::new();
    for set in ["users", "users6", "flows", "flows6"] {
        members.extend(witness::set_members(host, &format!("refract_banned_{set}"))?);
    }
    Ok(members)
}

/// The resident memory of a process, kB (`VmRSS`, proc(5)).
pub(crate) fn resident(id: u32) -> Result<u64> {
    let path = format!("/proc/{id}/status");
    let status =
        fs::read_to_string(&path).map_err(LabError::while_trying(format!("read {path}")))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| LabError::new(format!("{path} has no VmRSS")))
}
