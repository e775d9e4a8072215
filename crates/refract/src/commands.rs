//! The commands that work without a daemon: `list`, `unban`, `why`, `uninstall`.
//!
//! Takes parsed arguments; makes text on stdout or an error. They speak to the kernel and the block
//! log directly, so they answer the same whether a daemon runs or not. What a command prints from
//! the log was escaped when it was written; what it prints from the kernel are addresses.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use refract_core::Network;
use refract_kernel::ban::{Ban, BanTarget};

use crate::{
    audit::{open_to_read, reading},
    backend::every_backend,
    error::Error,
    firewall,
    lock::NamespaceLock,
    privilege,
};

/// The time that a ban without an end has left.
const FOR_EVER: Duration = Duration::MAX;

/// `refract list`: every ban in the kernel with the time it has left, the shortest first.
pub fn list(out: &mut impl Write) -> Result<(), Error> {
    privilege::require_net_admin()?;
    let longest = longest_bans().map_err(|error| error.or_rights_elsewhere("listing bans"))?;
    let mut bans: Vec<(BanTarget, Duration)> = longest.into_iter().collect();
    // One that lasts for ever is an operator's own, and comes last.
    bans.sort_by_key(|(target, time)| (*time, *target));
    let mut text = String::new();
    if bans.is_empty() {
        text.push_str("no bans\n");
    }
    for (target, time) in &bans {
        let time = if *time == FOR_EVER { "for ever".to_owned() } else { left(*time) };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<45} {time}", target.to_string());
    }
    print(out, &text)
}

/// Every ban with the longest time that it has left in any backend.
fn longest_bans() -> Result<HashMap<BanTarget, Duration>, Error> {
    let mut longest = HashMap::new();
    for mut backend in every_backend()? {
        for Ban { target, remaining } in backend.list()? {
            let time: &mut Duration = longest.entry(target).or_default();
            *time = remaining.unwrap_or(FOR_EVER).max(*time);
        }
    }
    Ok(longest)
}

/// `refract unban`: lifts the named bans, or all.
pub fn unban(sources: &[String], all: bool, out: &mut impl Write) -> Result<(), Error> {
    privilege::require_net_admin()?;
    let wanted: Vec<Network> = sources
        .iter()
        .map(|text| text.parse().map_err(|_| Error::NotASource { text: text.clone() }))
        .collect::<Result<_, _>>()?;

    let (lifted, found) =
        lift(&wanted, all).map_err(|error| error.or_rights_elsewhere("lifting bans"))?;
    for target in &lifted {
        print(out, &format!("lifted {target}\n"))?;
    }
    if all && lifted.is_empty() {
        print(out, "there was no ban to lift\n")?;
    }
    let missed: Vec<&str> = sources
        .iter()
        .zip(&found)
        .filter(|(_, found)| !**found)
        .map(|(text, _)| text.as_str())
        .collect();
    if missed.is_empty() { Ok(()) } else { Err(Error::NotBanned { sources: missed.join(", ") }) }
}

/// Lifts the bans that `wanted` name, or all: which were there, and whether each of `wanted` named one.
fn lift(wanted: &[Network], all: bool) -> Result<(BTreeSet<BanTarget>, Vec<bool>), Error> {
    let mut found = vec![false; wanted.len()];
    let mut lifted = BTreeSet::new();
    for mut backend in every_backend()? {
        let mut targets = Vec::new();
        for Ban { target, .. } in backend.list()? {
            let mut named = all;
            for (network, found) in wanted.iter().zip(&mut found) {
                let source =
                    BanTarget::Network { address: network.address(), prefix: network.prefix() };
                if source.lifts(target) {
                    named = true;
                    *found = true;
                }
            }
            if named {
                targets.push(target);
            }
        }
        let were_there = backend.lift(&targets)?;
        let there = targets.iter().zip(were_there).filter(|(_, was_there)| *was_there);
        lifted.extend(there.map(|(target, _)| *target));
    }
    Ok((lifted, found))
}

/// Where the block log is when nobody says: where the systemd unit has it, if that was ever used.
#[must_use]
pub fn usual_block_log() -> PathBuf {
    let of_unit = Path::new("/var/log/refract/block.log");
    let path = if of_unit.exists() { of_unit } else { Path::new("/var/log/xray/block.log") };
    path.to_owned()
}

/// `refract why`: the records of the block log that concern a source, oldest first.
pub fn why(source: &str, block_log: &Path, out: &mut impl Write) -> Result<(), Error> {
    let trouble = |error| Error::BlockLog { path: block_log.to_owned(), source: error };
    let wanted: Network =
        source.parse().map_err(|_| Error::NotASource { text: source.to_owned() })?;
    let mut reader = BufReader::new(open_to_read(block_log).map_err(trouble)?);
    let mut line = Vec::new();
    let mut found = false;
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(trouble)? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        if reading::source(&text).is_some_and(|recorded| recorded.overlaps(wanted)) {
            found = true;
            print(out, &text)?;
        }
    }
    if !found {
        print(out, &format!("no record of {wanted} in {}\n", block_log.display()))?;
    }
    Ok(())
}

/// The network that a ban covers; for a flow, its address.
pub(crate) fn network_of(target: &BanTarget) -> Network {
    match target {
        BanTarget::Network { address, prefix } => Network::covering(*address, *prefix),
        BanTarget::Flow { address, .. } => Network::single(*address),
    }
}

fn left(remaining: Duration) -> String {
    let seconds = remaining.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes:02}m{seconds:02}s"),
    }
}

/// Writes to a reader that may have gone away.
pub(crate) fn print(out: &mut impl Write, text: &str) -> Result<(), Error> {
    match out.write_all(text.as_bytes()) {
        // Whoever reads has seen enough (`refract list | head`).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|source| Error::Io {
            operation: "write to",
            object: "standard output".to_owned(),
            source,
        }),
    }
}

/// `refract uninstall`: removes refract's table, rules and sets; nothing else, and not while a daemon
/// runs, which would put them back.
pub fn uninstall(iptables: Option<&Path>, out: &mut impl Write) -> Result<(), Error> {
    privilege::require_net_admin()?;
    let _lock = NamespaceLock::take()?;
    let mut said = Vec::new();
    let removed = firewall::uninstall(iptables, &mut said);
    for line in said {
        print(out, &format!("{line}\n"))?;
    }
    removed.map_err(|error| {
        error.or_rights_elsewhere("removing rules and sets").or_rules_left_behind()
    })
}
