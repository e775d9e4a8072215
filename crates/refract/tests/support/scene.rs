//! A lab with a server whose daemon is started and stopped, beside a log of two lines an offence.
//!
//! Takes flags; gives daemons, bans by the log's word, their records, commands and scripts on the
//! server. It looks at no set and no rule.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;

use super::{
    LabError, Result,
    access_log::AccessLog,
    daemon::{self, Daemon},
    lab::{Host, Lab},
    witness,
};

/// How long a daemon may take to end. Where another test's table with a million elements is being
/// deleted, the kernel may hold everybody up who closes a socket of netfilter.
const END_BOUND: Duration = Duration::from_mins(1);

/// The lab, its logs, and the flags of every daemon here.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) block_log: PathBuf,
    log: AccessLog,
    flags: Vec<String>,
}

/// What a command that has ended said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Scene {
    /// A new one, without clients; verdicts rest on the log's word.
    pub(crate) fn new() -> Result<Self> {
        Self::with(&[])
    }

    /// A new one with more flags for every daemon.
    pub(crate) fn with(more: &[&str]) -> Result<Self> {
        let lab = Lab::new()?;
        let log = AccessLog::open(lab.path("access.log"))?;
        let block_log = lab.path("block.log");
        let flags = vec![
            "--evidence=log".to_owned(),
            format!("--access.log={}", log.path().display()),
            format!("--block.log={}", block_log.display()),
        ];
        let flags = flags.into_iter().chain(more.iter().map(ToString::to_string)).collect();
        Ok(Self { lab, block_log, log, flags })
    }

    pub(crate) fn server(&self) -> &Host {
        self.lab.server()
    }

    /// The flags of every daemon here, and `more`.
    pub(crate) fn flags(&self, more: &[&str]) -> Vec<String> {
        self.flags.iter().cloned().chain(more.iter().map(ToString::to_string)).collect()
    }

    /// Starts a daemon.
    pub(crate) fn start(&self, more: &[&str]) -> Result<Daemon> {
        Daemon::start(binary()?, self.server(), &self.flags(more))
    }

    /// Starts a daemon by way of a program that changes something first.
    pub(crate) fn start_under(&self, wrapper: &[&str], more: &[&str]) -> Result<Daemon> {
        Daemon::start_under(wrapper, binary()?, self.server(), &self.flags(more))
    }

    /// Runs `refract` with `arguments` to its end.
    pub(crate) fn refract(&self, arguments: &[&str]) -> Result<Ended> {
        self.finish(daemon::command(binary()?, arguments))
    }

    /// Runs a daemon that is expected to refuse, by way of `wrapper` if that is not empty.
    pub(crate) fn refused(&self, wrapper: &[&str], more: &[&str]) -> Result<Ended> {
        let flags = self.flags(more);
        let Some((program, arguments)) = wrapper.split_first() else {
            return self.finish(daemon::command(binary()?, &flags));
        };
        let mut command = daemon::command::<&str>(Path::new(program), &[]);
        command.args(arguments).arg(binary()?).args(flags);
        self.finish(command)
    }

    /// Runs a program that ends up being `refract`.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<Ended> {
        self.finish(daemon::command(Path::new(program), arguments))
    }

    fn finish(&self, command: Command) -> Result<Ended> {
        let output = self.server().finish(command)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        Ok(Ended { status: output.status.code(), out, err })
    }

    /// Writes the lines that make `offender` one, with an account of its own.
    pub(crate) fn offend(&self, offender: &str) -> Result<()> {
        let address: IpAddr =
            offender.parse().map_err(LabError::while_trying(format!("take {offender}")))?;
        self.offend_at(SocketAddr::new(address, 40_001))
    }

    /// The same for the connection from `peer`.
    pub(crate) fn offend_at(&self, peer: SocketAddr) -> Result<()> {
        let first = if peer.is_ipv4() { "198.51.100.1" } else { "2001:db8:1::1" };
        let first: IpAddr = first.parse().map_err(LabError::while_trying("take an address"))?;
        self.log.shared(&format!("user-of-{}", peer.ip()), SocketAddr::new(first, 40_000), peer)
    }

    /// The block log has one record of `offender`'s ban, one of each of the `adopted`, and no other.
    pub(crate) fn accounts_for(&self, offender: &str, adopted: &[&str]) -> Result<()> {
        let records = witness::lines_with(&self.block_log, "source=")?;
        let ban = format!(" ban user=\"user-of-{offender}\"");
        let adopted = adopted.iter().map(|source| (*source, " adopted "));
        let expected: Vec<_> = [(offender, &*ban)].into_iter().chain(adopted).collect();
        assert_eq!(records.len(), expected.len(), "{records:#?}");
        for (source, what) in expected {
            let of = format!(" source={source} ");
            let is_it = |record: &&String| record.contains(&of) && record.contains(what);
            assert_eq!(records.iter().filter(is_it).count(), 1, "{source} in {records:#?}");
        }
        Ok(())
    }

    /// Runs a script on the server.
    pub(crate) fn shell(&self, script: &str) -> Result<String> {
        self.server().output("sh", &["-ec", script])
    }
}

impl Ended {
    /// It was refused with status 1 and one sentence that has these parts.
    pub(crate) fn is_refusal(&self, parts: &[&str]) {
        self.is_refusal_with(1, parts);
    }

    /// It was refused with this status and one sentence that has these parts.
    pub(crate) fn is_refusal_with(&self, status: i32, parts: &[&str]) {
        assert_eq!(self.status, Some(status), "{self:?}");
        assert_eq!(
            self.err.lines().filter(|line| line.starts_with("refract: ")).count(),
            1,
            "{self:?}"
        );
        for part in parts {
            assert!(self.err.contains(part), "no `{part}` in {self:?}");
        }
    }
}

/// Ends a daemon as an operator does; where that fails, the error has all that it said.
pub(crate) fn stop(daemon: Daemon) -> Result<()> {
    daemon.signal(Signal::TERM)?;
    let trouble = |what: String| LabError::new(format!("{what}; it said:\n{}", daemon.messages()));
    let status = daemon.wait(END_BOUND).map_err(|error| trouble(error.to_string()))?;
    if !status.success() {
        return Err(trouble(format!("SIGTERM ended the daemon with {status}")));
    }
    drop(daemon);
    Ok(())
}

fn binary() -> Result<&'static Path> {
    // Examples, which include this file too, are built without it.
    option_env!("CARGO_BIN_EXE_refract")
        .map(Path::new)
        .ok_or_else(|| LabError::new("cannot tell where the refract binary is"))
}
