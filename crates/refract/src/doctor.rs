//! `refract doctor`: is everything there that enforcing takes?
//!
//! Takes the flags that the daemon is started with; prints one line for each thing looked at, with
//! the remedy where something is wrong. It looks and changes nothing, and works beside a running
//! daemon.

use std::{fs::File, io::Write, path::Path, time::Instant};

use refract_core::Exemptions;
use refract_kernel::{
    host::HostEvents,
    sock_diag::{DestroySupport, SockDiag},
    xtables::Xtables,
};

use crate::{
    cli::Flags,
    commands::print,
    daemon::settle_host,
    error::Error,
    firewall, health,
    lock::LOCK_NAME,
    privilege,
    tail::{LogTarget, Tail},
};

/// How one look ended.
enum Finding {
    Good(String),
    /// Works, but the operator should know.
    Notable(String),
    /// Nothing is enforced until this is mended.
    Bad(String),
}

/// Looks at everything; `false` when something keeps Refract from enforcing.
pub fn examine(flags: &Flags, out: &mut impl Write) -> Result<bool, Error> {
    let mut healthy = true;
    for finding in [
        rights(),
        daemon(),
        sockets(),
        sets(),
        rule(flags),
        access_log(&flags.access_log),
        recent_lines(flags),
        block_log(&flags.block_log),
    ] {
        let (mark, text) = match finding {
            Finding::Good(text) => ("ok  ", text),
            Finding::Notable(text) => ("note", text),
            Finding::Bad(text) => {
                healthy = false;
                ("BAD ", text)
            }
        };
        print(out, &format!("{mark}  {text}\n"))?;
    }
    Ok(healthy)
}

fn rights() -> Finding {
    match privilege::require_enforcing() {
        Ok(()) => Finding::Good("rights: CAP_NET_ADMIN and CAP_NET_RAW".to_owned()),
        Err(error) => Finding::Bad(format!("rights: {error}")),
    }
}

fn daemon() -> Finding {
    // Asking for the lock could keep a daemon out that starts this moment.
    match std::fs::read_to_string("/proc/thread-self/net/unix") {
        Ok(sockets) if sockets.lines().any(|line| line.ends_with(&format!(" @{LOCK_NAME}"))) => {
            Finding::Good("daemon: runs in this network namespace".to_owned())
        }
        Ok(_) => Finding::Notable("daemon: none runs in this network namespace".to_owned()),
        Err(error) => Finding::Notable(format!("daemon: cannot tell whether one runs: {error}")),
    }
}

fn sockets() -> Finding {
    match SockDiag::open().and_then(|mut sockets| sockets.supports_destroy()) {
        Ok(DestroySupport::Works) => {
            Finding::Good("sockets: connections can be found and reset".to_owned())
        }
        Ok(DestroySupport::NotPermitted) => {
            Finding::Bad("sockets: resetting connections takes CAP_NET_ADMIN".to_owned())
        }
        Ok(DestroySupport::NotBuilt) => Finding::Bad(
            "sockets: this kernel cannot reset connections (CONFIG_INET_DIAG_DESTROY): bans work, \
             but live connections only starve"
                .to_owned(),
        ),
        Ok(DestroySupport::NoDiagnostics) => Finding::Bad(
            "sockets: this kernel does not show its TCP sockets: modprobe tcp_diag".to_owned(),
        ),
        Err(error) => Finding::Notable(format!("sockets: could not be tried: {error}")),
    }
}

fn sets() -> Finding {
    match firewall::every_set().and_then(|mut sets| Ok(sets.list()?)) {
        Ok(bans) => Finding::Good(format!("sets: the kernel has ipset; {} bans", bans.len())),
        Err(error) => Finding::Bad(format!("sets: {error}")),
    }
}

fn rule(flags: &Flags) -> Finding {
    let looked = || -> Result<_, Error> {
        let plan = firewall::keeper_config(flags).plan()?;
        let xtables = Xtables::find(flags.iptables.as_deref(), plan)?;
        Ok((xtables.check()?, xtables))
    };
    match looked() {
        Ok((report, xtables)) if report.is_in_place() => Finding::Good(format!(
            "rule: at the top of INPUT ({} is {})",
            xtables.path().display(),
            xtables.variant()
        )),
        Ok((report, xtables)) => Finding::Notable(format!(
            "rule: not in place as these flags want it ({}, IPv4 {}, IPv6 {}); the daemon puts it \
             there",
            xtables.variant(),
            report.v4,
            report.v6.map_or_else(|why| why.to_string(), |state| state.to_string()),
        )),
        Err(error) => Finding::Bad(format!("rule: {error}")),
    }
}

fn access_log(path: &Path) -> Finding {
    if path == Path::new("-") {
        return Finding::Good("access log: standard input".to_owned());
    }
    match std::fs::metadata(path).and_then(|metadata| {
        if metadata.is_file() {
            File::open(path)?;
        }
        Ok(metadata)
    }) {
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => {
            Finding::Notable(format!("access log: {} is readable and empty", path.display()))
        }
        Ok(_) => Finding::Good(format!("access log: {} is readable", path.display())),
        Err(error) => Finding::Bad(format!(
            "access log: cannot read {}: {error}; name Xray's log with --access.log, and run as \
             root or with CAP_DAC_READ_SEARCH",
            path.display()
        )),
    }
}

fn recent_lines(flags: &Flags) -> Finding {
    let allow = flags.allow.iter().flat_map(|networks| networks.0.iter().copied()).collect();
    let mut exemptions = Exemptions::new(allow);
    match HostEvents::subscribe().and_then(|mut host| host.look()) {
        Ok(networks) => settle_host(&mut exemptions, &networks),
        Err(error) => return Finding::Bad(format!("this host's addresses: {error}")),
    }
    let target = LogTarget::from(&flags.access_log);
    if target == LogTarget::Stdin {
        return Finding::Notable("recent lines: standard input has no past".to_owned());
    }
    let counts = match Tail::open(&target, Instant::now()) {
        Ok(mut tail) => health::recent(&mut tail, &exemptions),
        Err(error) => return Finding::Bad(format!("recent lines: {error}")),
    };
    let Ok(counts) = counts else {
        return Finding::Notable("recent lines: none could be read".to_owned());
    };
    let complaints = health::complaints(&counts);
    if complaints.is_empty() {
        let reasons = counts.reasons();
        let others = if reasons.is_empty() { String::new() } else { format!("; {reasons}") };
        Finding::Good(format!(
            "recent lines: {} read, {} can be acted upon{others}",
            counts.lines, counts.sightings
        ))
    } else {
        Finding::Bad(format!("recent lines: {}", complaints.join("; ")))
    }
}

fn block_log(path: &Path) -> Finding {
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let looked =
        if path.exists() { writable(path) } else { writable(folder.unwrap_or(".".as_ref())) };
    match looked {
        Ok(()) => Finding::Good(format!("block log: {} can be written", path.display())),
        Err(errno) => Finding::Bad(format!(
            "block log: cannot write {}: {errno}; name another place with --block.log",
            path.display()
        )),
    }
}
