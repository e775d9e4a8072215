//! Notices a log from which nothing can be enforced, and says what to do about it.
//!
//! Takes counts of what became of the lines; makes warnings, each with its remedy, at most once in
//! a while per reason. Silence would be the worst answer: a masked log or a proxy in front make a
//! limiter useless without any error. It reads no log and changes no verdict.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    time::{Duration, Instant},
};

use refract_core::{Exemption, Exemptions, Rejection, access::parse};

/// Fewest lines from which a judgement is made.
const FEWEST_LINES: u64 = 20;
/// Share of the lines, in percent, that one reason must account for.
const SHARE: u64 = 90;
/// Pause before the same warning is given again.
const PAUSE: Duration = Duration::from_mins(10);
/// How much of the log's end is looked at before it is followed, bytes.
const RECENT: u64 = 64 * 1024;

/// What became of the lines so far.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Lines read.
    pub lines: u64,
    /// Lines taken as sightings.
    pub sightings: u64,
    /// Lines not taken, by reason, in the order of [`Rejection::ALL`].
    pub rejected: [u64; Rejection::ALL.len()],
    /// Sightings of addresses that may never be banned, by reason, in the order of
    /// [`Exemption::ALL`].
    pub exempt: [u64; Exemption::ALL.len()],
    /// Sightings on a transport that is not enforced on.
    pub other_transport: u64,
    /// Offenders that were acted upon.
    pub offenders: u64,
}

impl Counters {
    /// Counts a line that was not taken.
    pub fn reject(&mut self, rejection: Rejection) {
        if let Some(count) = self.rejected.get_mut(rejection.index()) {
            *count += 1;
        }
    }

    /// Counts a sighting of an exempt address.
    pub fn exempt(&mut self, exemption: Exemption) {
        if let Some(count) = self.exempt.get_mut(exemption.index()) {
            *count += 1;
        }
    }

    /// Every reason with a count, as `name=count` separated by spaces.
    #[must_use]
    pub fn reasons(&self) -> String {
        let rejected = Rejection::ALL.iter().map(|reason| reason.name()).zip(self.rejected);
        let exempt = Exemption::ALL.iter().map(|reason| reason.name()).zip(self.exempt);
        let other = [("other_transport", self.other_transport)];
        rejected
            .chain(exempt)
            .chain(other)
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name}={count}"))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// Watches the counters.
#[derive(Debug, Default)]
pub struct Health {
    seen: Counters,
    warned: Vec<(&'static str, Instant)>,
}

impl Health {
    /// Looks at what was counted since the last judgement; gives the warnings that are due.
    pub fn look(&mut self, counters: &Counters, now: Instant) -> Vec<&'static str> {
        if counters.lines - self.seen.lines < FEWEST_LINES {
            return Vec::new();
        }
        let mut warnings = complaints(&since(&self.seen, counters));
        self.seen = counters.clone();
        self.warned.retain(|(_, at)| now.saturating_duration_since(*at) < PAUSE);
        warnings.retain(|warning| self.warned.iter().all(|(known, _)| known != warning));
        self.warned.extend(warnings.iter().map(|warning| (*warning, now)));
        warnings
    }
}

/// What is wrong with a stretch of the log, as far as its counts tell.
#[must_use]
pub fn complaints(counts: &Counters) -> Vec<&'static str> {
    let rejected = |wanted: &[Rejection]| -> u64 {
        let counted = Rejection::ALL.iter().zip(counts.rejected);
        counted.filter(|(reason, _)| wanted.contains(reason)).map(|(_, count)| count).sum()
    };
    let exempt = |wanted: &[Exemption]| -> u64 {
        let counted = Exemption::ALL.iter().zip(counts.exempt);
        counted.filter(|(reason, _)| wanted.contains(reason)).map(|(_, count)| count).sum()
    };
    let proxied = rejected(&[Rejection::Loopback, Rejection::UnixSocket])
        + exempt(&[Exemption::Loopback, Exemption::Host, Exemption::Gateway]);
    // DNS lines and refused connections say nothing about how clients are logged.
    let relevant = counts.lines.saturating_sub(rejected(&[
        Rejection::DnsAnswer,
        Rejection::DnsClient,
        Rejection::Refused,
        Rejection::Internal,
        Rejection::Empty,
    ]));
    [
        (
            rejected(&[Rejection::Masked]),
            "client addresses in the access log are masked, so nobody can be told apart and \
             nothing is enforced: remove maskAddress from the log section of Xray's configuration",
        ),
        (
            rejected(&[Rejection::PortZero]),
            "client addresses in the access log come from a forwarded header (port 0): the packets \
             come from the reverse proxy, so an address cannot be banned here; let the proxy pass \
             PROXY protocol on instead",
        ),
        (
            rejected(&[Rejection::NoEmail]),
            "lines in the access log name no user, so nothing is enforced: give every client in \
             Xray's configuration an email (SOCKS, HTTP and dokodemo inbounds never log one)",
        ),
        (
            proxied,
            "nearly every line comes from this host itself: a reverse proxy in front of Xray hides \
             the clients; let it pass PROXY protocol on and set acceptProxyProtocol in Xray",
        ),
        (
            rejected(&[
                Rejection::NoTimestamp,
                Rejection::Foreign,
                Rejection::MalformedSource,
                Rejection::NotAnAddress,
                Rejection::MalformedDestination,
                Rejection::MalformedDetour,
                Rejection::MalformedEnding,
            ]),
            "lines in the access log are not Xray's access-log format, so they are not taken: \
             check that --access.log names the access log and not the error log",
        ),
    ]
    .into_iter()
    .filter(|(count, _)| {
        relevant >= FEWEST_LINES && count.saturating_mul(100) >= relevant.saturating_mul(SHARE)
    })
    .map(|(_, warning)| warning)
    .collect()
}

fn since(before: &Counters, now: &Counters) -> Counters {
    let mut counts = now.clone();
    counts.lines -= before.lines;
    for (count, earlier) in counts.rejected.iter_mut().zip(before.rejected) {
        *count -= earlier;
    }
    for (count, earlier) in counts.exempt.iter_mut().zip(before.exempt) {
        *count -= earlier;
    }
    counts
}

/// What is wrong with the end of the log as it stands before anything is followed: the last 64 KiB
/// are parsed for this alone. Nothing where the log is no regular file, or cannot be read: that is
/// the tail's to say.
#[must_use]
pub fn recent(log: &Path, exemptions: &Exemptions) -> Vec<&'static str> {
    complaints(&recent_counts(log, exemptions).unwrap_or_default())
}

/// What becomes of the lines in the last 64 KiB of the log.
pub fn recent_counts(log: &Path, exemptions: &Exemptions) -> io::Result<Counters> {
    let mut counters = Counters::default();
    // A FIFO would block, and what is in it belongs to the tail.
    if !std::fs::metadata(log)?.is_file() {
        return Ok(counters);
    }
    let mut file = File::open(log)?;
    let begin = file.metadata()?.len().saturating_sub(RECENT);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(RECENT).read_to_end(&mut bytes)?;
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    // What follows the last newline is not a line yet; what precedes the first is a part of one.
    lines.pop();
    let first = usize::from(begin > 0);
    for line in lines.iter().skip(first) {
        counters.lines += 1;
        match parse(line) {
            Err(rejection) => counters.reject(rejection),
            Ok(sighting) => match exemptions.reason(sighting.peer.address) {
                Some(exemption) => counters.exempt(exemption),
                None => counters.sightings += 1,
            },
        }
    }
    Ok(counters)
}
