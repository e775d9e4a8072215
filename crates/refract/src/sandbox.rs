//! The daemon's own sandbox: what it holds and does not need, given up.
//!
//! Takes the files that go on being read and written; gives up capabilities, new privileges, every
//! other file (Landlock) and every other system call (seccomp), for the calling thread and all that
//! it starts: so it is entered before any other thread is. A step that this kernel does not know is
//! said and left out, and none ever keeps the daemon from starting. The rule keeper, which runs
//! iptables, has a wider one of its own. It opens nothing that the daemon then uses.

mod calls;
mod files;
mod rights;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use rustix::thread::{CapabilitySet, set_no_new_privs};
use tracing::{info, warn};

use self::{
    calls::Supervisor,
    files::{Confined, NotConfined},
    rights::names,
};
pub use self::{
    calls::are_filtered_here,
    files::{landlock_of_this_kernel, left_open_by_landlock},
};
use crate::{config::shown, supervisor};

/// What the daemon goes on needing.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Files that are opened for reading while it runs, wherever their links lead.
    pub reads: Vec<PathBuf>,
    /// Files that are made, written and replaced while it runs.
    pub writes: Vec<PathBuf>,
}

/// What is in force.
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    is_on: bool,
    capabilities: Vec<&'static str>,
    no_new_privs: bool,
    files: Option<Confined>,
    filters_calls: bool,
}

impl Sandbox {
    /// None, as `--sandbox=off` has it.
    #[must_use]
    pub fn off() -> Self {
        warn!("sandbox: off; what refract holds and does not need, it keeps");
        Self::default()
    }

    /// Enters it, as far as this kernel goes, and says what is in force. Call it while there is only
    /// one thread.
    #[must_use]
    pub fn enter(needs: &Needs) -> Self {
        let mut sandbox = Self { is_on: true, ..Self::default() };
        // Before the capabilities go: it takes none, but Landlock and seccomp without
        // CAP_SYS_ADMIN take this.
        match set_no_new_privs(true) {
            Ok(()) => sandbox.no_new_privs = true,
            Err(errno) => warn!("sandbox: new privileges stay possible: {errno}"),
        }
        sandbox.capabilities = keep_daemon_capabilities(needs);
        match files::confine_daemon(needs) {
            Ok(confined) => {
                for path in confined.everything() {
                    warn!(
                        "sandbox: {} is not there yet, so refract may {} wherever its user may; \
                         make the directory, then start refract again",
                        shown(&path.path),
                        path.may
                    );
                }
                for path in confined.too_early() {
                    info!(
                        "sandbox: the directory of {} is not there; should it come, refract is to be \
                         started again",
                        shown(path)
                    );
                }
                if let Some(sentence) = left_open_by_landlock(confined.abi) {
                    warn!("sandbox: {sentence}");
                }
                sandbox.files = Some(confined);
            }
            Err(sentence) => warn!("sandbox: {sentence}"),
        }
        let supervisor = match supervisor::socket_name() {
            Some(_) => Supervisor::Told,
            None => Supervisor::None,
        };
        match calls::filter(supervisor) {
            Ok(()) => sandbox.filters_calls = true,
            Err(sentence) => warn!("sandbox: {sentence}"),
        }
        info!("sandbox: {sandbox}");
        sandbox
    }

    /// What to add to the sentence about a file that could not be opened, if it may be because of
    /// the sandbox: where the way to `path` leads now, nothing could be read from the start on.
    #[must_use]
    pub fn remedy(&self, path: &Path) -> Option<String> {
        let confined = self.files.as_ref()?;
        (!confined.may_read(path)).then(|| {
            format!(
                "{} now leads out of the directories that the sandbox left to refract at its start; \
                 start refract again",
                shown(path)
            )
        })
    }
}

impl fmt::Display for Sandbox {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_on {
            return out.write_str("off");
        }
        let capabilities = match self.capabilities.as_slice() {
            [] => "none".to_owned(),
            some => some.join(" "),
        };
        write!(out, "capabilities {capabilities}")?;
        out.write_str(if self.no_new_privs { ", no_new_privs" } else { ", new privileges" })?;
        match &self.files {
            Some(files) => write!(out, ", landlock ABI {}", files.abi)?,
            None => out.write_str(", no landlock")?,
        }
        out.write_str(if self.filters_calls { ", seccomp" } else { ", no seccomp" })
    }
}

/// Keeps what destroying sockets, banning and reading Xray's log take, and what the files to be
/// written take here.
fn keep_daemon_capabilities(needs: &Needs) -> Vec<&'static str> {
    let mut keep = CapabilitySet::NET_ADMIN | CapabilitySet::DAC_READ_SEARCH;
    if let Some(path) = rights::out_of_reach(&needs.writes) {
        info!(
            "sandbox: CAP_DAC_OVERRIDE is kept, because {} can only be written with it; give it a \
             directory that belongs to refract's user",
            shown(&path)
        );
        keep |= CapabilitySet::DAC_OVERRIDE;
    }
    match rights::keep_only(keep, false) {
        Ok(kept) => names(kept),
        Err(errno) => {
            warn!("sandbox: cannot give up capabilities: {errno}");
            vec!["all"]
        }
    }
}

/// The sandbox of the process that runs iptables; `iptables` is where it was told to look for it.
/// What does not work is said on standard error, except where this kernel does not know it at all,
/// which the daemon says of itself.
pub(crate) fn confine_rule_keeper(iptables: Option<&Path>, lock_file: &Path) {
    if let Err(errno) = set_no_new_privs(true) {
        eprintln!("refract: the rule keeper can still gain privileges: {errno}");
    }
    // Root's iptables makes the lock with mode 0600, and another user's opens it to read.
    let keep = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::DAC_READ_SEARCH;
    if let Err(errno) = rights::keep_only(keep, true) {
        eprintln!("refract: the rule keeper cannot give up capabilities: {errno}");
    }
    match files::confine_rule_keeper(iptables, lock_file) {
        Ok(()) | Err(NotConfined::NoLandlock) => {}
        Err(error) => eprintln!("refract: the rule keeper: {error}"),
    }
}
