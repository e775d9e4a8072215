//! Notices a log from which nothing can be enforced, and says what to do about it.
//!
//! Takes counts of what became of the lines; makes warnings, each with its remedy, at most once in
//! a while per reason. Silence would be the worst answer: a masked log or a proxy in front make a
//! limiter useless without any error. It reads no log and changes no verdict.

use std::time::{Duration, Instant};

use refract_core::{Exemption, Exemptions, Rejection, access::parse};

use crate::tail::{Tail, Trouble};

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

/// What becomes of the last 64 KiB before the place where the log is followed from, parsed for this
/// alone. Nothing where the log is no regular file: what is in a FIFO has not been read yet.
pub fn recent(tail: &mut Tail, exemptions: &Exemptions) -> Result<Counters, Trouble> {
    let mut counters = Counters::default();
    tail.read_back(RECENT, |line| {
        counters.lines += 1;
        match parse(line) {
            Err(rejection) => counters.reject(rejection),
            Ok(sighting) => match exemptions.reason(sighting.peer.address) {
                Some(exemption) => counters.exempt(exemption),
                None => counters.sightings += 1,
            },
        }
    })?;
    Ok(counters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: u64) -> Counters {
        Counters { lines: count, ..Counters::default() }
    }

    #[track_caller]
    fn check(counters: &Counters, expected: &[&str]) {
        let found = complaints(counters);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (complaint, word) in found.iter().zip(expected) {
            assert!(complaint.contains(word), "{complaint}");
        }
    }

    #[test]
    fn each_useless_log_is_named_with_its_remedy() {
        for (rejection, word) in [
            (Rejection::Masked, "maskAddress"),
            (Rejection::PortZero, "PROXY protocol"),
            (Rejection::NoEmail, "email"),
            (Rejection::Loopback, "acceptProxyProtocol"),
            (Rejection::UnixSocket, "acceptProxyProtocol"),
            (Rejection::Foreign, "--access.log"),
        ] {
            let mut counters = lines(100);
            (0..90).for_each(|_| counters.reject(rejection));
            check(&counters, &[word]);
        }
        let mut counters = lines(100);
        (0..95).for_each(|_| counters.exempt(Exemption::Host));
        check(&counters, &["acceptProxyProtocol"]);
    }

    #[test]
    fn a_log_with_a_few_useless_lines_is_healthy() {
        let mut counters = lines(100);
        (0..89).for_each(|_| counters.reject(Rejection::NoEmail));
        check(&counters, &[]);
        check(&lines(0), &[]);
        let mut few = lines(19);
        (0..19).for_each(|_| few.reject(Rejection::Masked));
        check(&few, &[]);
    }

    #[test]
    fn lines_of_the_proxy_itself_do_not_dilute_a_judgement() {
        let mut counters = lines(1000);
        (0..900).for_each(|_| counters.reject(Rejection::DnsAnswer));
        (0..95).for_each(|_| counters.reject(Rejection::Masked));
        check(&counters, &["maskAddress"]);
    }

    #[test]
    fn a_warning_is_not_repeated_until_its_pause_is_over() {
        let (mut health, start) = (Health::default(), Instant::now());
        let mut counters = Counters::default();
        let more = |counters: &mut Counters| {
            counters.lines += 50;
            (0..50).for_each(|_| counters.reject(Rejection::Masked));
        };
        more(&mut counters);
        assert_eq!(health.look(&counters, start).len(), 1);
        more(&mut counters);
        assert_eq!(health.look(&counters, start + Duration::from_secs(10)).len(), 0);
        assert_eq!(health.look(&counters, start + PAUSE).len(), 0, "nothing new was read");
        more(&mut counters);
        assert_eq!(health.look(&counters, start + PAUSE).len(), 1);
    }

    #[test]
    fn the_reasons_are_listed_by_name_with_their_counts() {
        let mut counters = Counters { other_transport: 3, ..Counters::default() };
        counters.reject(Rejection::NoEmail);
        counters.exempt(Exemption::Gateway);
        assert_eq!(counters.reasons(), "no_email=1 gateway=1 other_transport=3");
    }
}
