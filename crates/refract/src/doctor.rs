//! `refract doctor`: is everything there that enforcing takes?
//!
//! Takes the flags that the daemon is started with; prints one line for each thing looked at, with
//! the remedy where something is wrong. It looks and changes nothing, and works beside a running
//! daemon.

mod enforcement;

use std::{
    fs::{File, Metadata},
    io::{self, Write},
    path::Path,
    time::Instant,
};

use refract_core::Exemptions;
use refract_kernel::{
    Error as KernelError,
    host::HostEvents,
    sock_diag::{DestroySupport, SockDiag},
};

use crate::{
    cli::{EvidenceFlag, Flags},
    commands::print,
    container,
    daemon::settle_host,
    error::Error,
    health::{self, Recent},
    links,
    lock::LOCK_NAME,
    privilege, sandbox,
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
        vec![enforcement::rights(flags), sandbox(flags), daemon(), sockets(), listener(flags)],
        enforcement::firewall(flags),
        vec![access_log(&flags.access_log), recent_lines(flags), block_log(&flags.block_log)],
    ]
    .into_iter()
    .flatten()
    {
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

fn sandbox(flags: &Flags) -> Finding {
    if !flags.sandbox {
        return Finding::Notable("sandbox: off, as these flags say".to_owned());
    }
    match (sandbox::landlock_of_this_kernel(), sandbox::are_filtered_here()) {
        (Some(abi), true) => match sandbox::left_open_by_landlock(abi) {
            None => Finding::Good(format!("sandbox: this kernel has Landlock ABI {abi} and seccomp")),
            Some(sentence) => Finding::Notable(format!("sandbox: {sentence}; it has seccomp")),
        },
        (None, true) => Finding::Notable(
            "sandbox: this kernel has seccomp and no Landlock (it takes 5.13, and landlock among \
             the kernel parameter lsm=), or a container's filter of system calls hides it, so files \
             are not restricted"
                .to_owned(),
        ),
        (landlock, false) => Finding::Notable(format!(
            "sandbox: system calls are not restricted on this processor, files {}",
            if landlock.is_some() { "are" } else { "neither" }
        )),
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
            let refusal = rights_elsewhere("resetting connections")
                .unwrap_or_else(|| "resetting connections takes CAP_NET_ADMIN".to_owned());
            Finding::Bad(format!("sockets: {refusal}"))
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

/// Why the kernel permits an `act` to nobody here, if the right that it takes is held.
fn rights_elsewhere(act: &'static str) -> Option<String> {
    privilege::require_net_admin().is_ok().then(|| Error::RightsElsewhere { act }.to_string())
}

fn listener(flags: &Flags) -> Finding {
    if !flags.proto.tcp {
        return Finding::Good("listener: only UDP is enforced on, so none is needed".to_owned());
    }
    let looked =
        SockDiag::open().and_then(|mut sockets| sockets.has_listener(flags.dport.ranges()));
    listener_as(looked, container::is_one(), flags)
}

/// What it means that the look for a listener came to this.
fn listener_as(looked: Result<bool, KernelError>, is_container: bool, flags: &Flags) -> Finding {
    let (follows, remedy) = match (looked, flags.evidence) {
        (Ok(true), _) => {
            return Finding::Good("listener: somebody listens on a protected port".to_owned());
        }
        (Err(error), _) => {
            return Finding::Notable(format!("listener: could not be looked for: {error}"));
        }
        (Ok(false), _) if is_container => {
            return Finding::Bad(format!("listener: {}", container::OTHER_NETWORK));
        }
        (Ok(false), EvidenceFlag::Auto) => {
            ("--evidence=auto believes the log's word alone", ", or use --evidence=kernel")
        }
        (Ok(false), EvidenceFlag::Kernel) => {
            ("no line of the log can be verified and nothing is enforced", "")
        }
        (Ok(false), EvidenceFlag::Log) => ("there are no connections to be reset here", ""),
    };
    Finding::Notable(format!(
        "listener: nobody listens for TCP on {} in this network namespace, so {follows} until \
         somebody does: start refract where the proxy's sockets are{remedy}",
        flags.dport
    ))
}

fn access_log(path: &Path) -> Finding {
    if path == Path::new("-") {
        return Finding::Good("access log: standard input".to_owned());
    }
    match readable(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => {
            Finding::Notable(format!("access log: {} is readable and empty", path.display()))
        }
        Ok(_) => Finding::Good(format!("access log: {} is readable", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound && container::is_one() => {
            Finding::Bad(format!(
                "access log: {} is not there; {}",
                path.display(),
                container::MOUNT_LOG
            ))
        }
        Err(error) => Finding::Bad(format!(
            "access log: cannot read {}: {error}; name Xray's log with --access.log, and run as \
             root or with CAP_DAC_READ_SEARCH",
            path.display()
        )),
    }
}

/// What is at `path`, if it can be read; a FIFO is not tried, since whoever opens it is waited for.
fn readable(path: &Path) -> io::Result<Metadata> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_file() {
        File::open(path)?;
    }
    Ok(metadata)
}

fn recent_lines(flags: &Flags) -> Finding {
    let allow = flags.allow.iter().flat_map(|networks| networks.0.iter().copied()).collect();
    let mut exemptions = Exemptions::new(allow);
    match HostEvents::subscribe().and_then(|mut host| host.look()) {
        Ok(networks) => {
            settle_host(&mut exemptions, &networks);
        }
        Err(error) => return Finding::Bad(format!("this host's addresses: {error}")),
    }
    let target = LogTarget::from(&flags.access_log);
    if target == LogTarget::Stdin {
        return Finding::Notable("recent lines: standard input has no past".to_owned());
    }
    let unread = || Finding::Notable("recent lines: none could be read".to_owned());
    if readable(&flags.access_log).is_err() {
        return unread();
    }
    let recent = match Tail::open(&target, Instant::now()) {
        Ok(mut tail) => health::recent(&mut tail, &exemptions),
        Err(error) => return Finding::Bad(format!("recent lines: {error}")),
    };
    let Ok(Recent { counters: counts, crowd }) = recent else { return unread() };
    let proxy_users = usize::try_from(flags.shared_source_users).unwrap_or(usize::MAX);
    let complaints = health::complaints(&counts, &crowd, proxy_users);
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
    if let Err(error) = links::flags_to_write(path) {
        return Finding::Bad(format!("block log: cannot write {}: {error}", path.display()));
    }
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let looked =
        if path.exists() { writable(path) } else { writable(folder.unwrap_or(".".as_ref())) };
    match looked {
        Ok(()) => Finding::Good(format!("block log: {} can be written", path.display())),
        Err(errno) => Finding::Bad(format!(
            "block log: cannot write {}: {errno}; {}",
            path.display(),
            container::writable_place(container::is_one())
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn that_nobody_listens_is_told_with_what_follows_and_in_a_container_it_is_wrong() {
        for (evidence, follows) in [
            ("auto", "believes the log's word alone until somebody does"),
            ("kernel", "nothing is enforced until somebody does"),
            ("log", "there are no connections to be reset here until somebody does"),
        ] {
            let flag = format!("--evidence={evidence}");
            let flags = Cli::parse_from(["refract", &flag, "--dport=443"]).flags;
            let Finding::Notable(text) = listener_as(Ok(false), false, &flags) else {
                panic!("{evidence}: not a note");
            };
            for part in [
                "nobody listens for TCP on 443 in this network namespace, so ",
                follows,
                "start refract where the proxy's sockets are",
            ] {
                assert!(text.contains(part), "no `{part}` in {text}");
            }
            let Finding::Bad(text) = listener_as(Ok(false), true, &flags) else {
                panic!("{evidence}: not bad in a container");
            };
            assert!(text.contains("network_mode: host"), "{text}");
            assert!(matches!(listener_as(Ok(true), true, &flags), Finding::Good(_)));
        }
    }
}
