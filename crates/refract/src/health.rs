//! Notices a log from which nothing can be enforced, and says what to do about it.
//!
//! Takes counts of what became of the lines; makes warnings, each with its remedy, at most once in
//! a while per reason. Silence would be the worst answer: a masked log, a proxy in front or the wrong
//! port make a limiter useless without any error. It changes no verdict.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use refract_core::{Exemption, Exemptions, Rejection, access::parse};

use crate::{
    crowd::Crowd,
    tail::{Tail, Trouble},
};

/// What is wrong, as a sentence with its remedy.
pub type Warning = Cow<'static, str>;

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

/// What became of claims on the kernel's evidence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claims {
    /// All of them.
    pub all: u64,
    /// Those for a connection that there is not.
    pub unverified: u64,
    /// Those that proved nothing because of what stood before them.
    pub tainted: u64,
}

/// Share of the sightings, in percent, from which on it is said that too many are tainted.
const TAINTED_SHARE: u64 = 50;
const TAINTED: &str = "most lines stand too near to something that a client wrote, so they prove \
     nothing: somebody floods the log with names that are none, or another log is mixed into it (the \
     error log on the same output, dnsLog)";
const UNVERIFIED: &str = "hardly any connection that the log names is one that this network \
     namespace has on a protected port, so nothing is enforced: --dport must name the port that \
     clients connect to (a reverse proxy's, not Xray's), refract must run where their connections \
     end (on the reverse proxy's machine, in the container's network namespace), and UDP (mKCP, \
     Hysteria2, XHTTP/3) takes --proto=udp";

/// Watches the counters.
#[derive(Debug)]
pub struct Health {
    proxy_users: usize,
    claims: Claims,
    seen: Counters,
    warned: Vec<(Warning, Instant)>,
}

impl Health {
    /// Nothing was seen yet. An address of `proxy_users` users is a proxy.
    #[must_use]
    pub fn new(proxy_users: usize) -> Self {
        let (claims, seen, warned) = (Claims::default(), Counters::default(), Vec::new());
        Self { proxy_users, claims, seen, warned }
    }

    /// Looks at what was counted since the last judgement; gives the warnings that are due. `crowd`
    /// has followed since then, and begins anew.
    pub fn look(
        &mut self,
        counters: &Counters,
        claims: Claims,
        crowd: &mut Crowd,
        now: Instant,
    ) -> Vec<Warning> {
        if counters.lines - self.seen.lines < FEWEST_LINES {
            return Vec::new();
        }
        let counted = since(&self.seen, counters);
        let crowd = std::mem::take(crowd);
        let mut warnings = complaints(&counted, &crowd, self.proxy_users);
        let new = |of: fn(&Claims) -> u64| of(&claims).saturating_sub(of(&self.claims));
        let is_share = |part: u64, of: u64, share: u64| {
            of >= FEWEST_LINES && part.saturating_mul(100) >= of.saturating_mul(share)
        };
        if is_share(new(|it| it.tainted), counted.sightings, TAINTED_SHARE) {
            warnings.push(TAINTED.into());
        }
        if is_share(new(|it| it.unverified), new(|it| it.all), SHARE) {
            warnings.push(UNVERIFIED.into());
        }
        self.claims = claims;
        self.seen = counters.clone();
        self.warned.retain(|(_, at)| now.saturating_duration_since(*at) < PAUSE);
        warnings.retain(|warning| self.warned.iter().all(|(known, _)| known != warning));
        self.warned.extend(warnings.iter().map(|warning| (warning.clone(), now)));
        warnings
    }
}

/// What is wrong with a stretch of the log, as far as its counts tell. An address of `proxy_users`
/// users is a proxy.
#[must_use]
pub fn complaints(counts: &Counters, crowd: &Crowd, proxy_users: usize) -> Vec<Warning> {
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
    let told = [
        (
            rejected(&[Rejection::Masked]),
            "client addresses in the access log are masked, so nobody can be told apart and \
             nothing is enforced: remove maskAddress from the log section of Xray's configuration",
        ),
        (
            rejected(&[Rejection::PortZero]),
            "client addresses in the access log come from a forwarded header (port 0): the packets \
             come from the reverse proxy, so an address cannot be banned here; let the proxy pass \
             PROXY protocol on instead, and drop the header",
        ),
        (
            rejected(&[Rejection::NoEmail]),
            "lines in the access log name no user, so nothing is enforced: give every client in \
             Xray's configuration an email (SOCKS, HTTP and dokodemo inbounds never log one)",
        ),
        (
            proxied,
            "nearly every line comes from this host itself: a reverse proxy in front of Xray hides \
             the clients, so nobody is banned; let it pass PROXY protocol on, set \
             acceptProxyProtocol in Xray, and give its port as --dport",
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
    ];
    let front = crowd.front(counts.sightings, SHARE, proxy_users);
    let front = front.filter(|_| counts.sightings >= FEWEST_LINES).map(|address| {
        format!(
            "nearly every line is from {address}, whoever the user is: a reverse proxy there hides \
             the clients, so nobody can be told apart and nobody is banned; let it pass PROXY \
             protocol on, set acceptProxyProtocol in Xray, and run refract on that machine"
        )
    });
    told.into_iter()
        .filter(|(count, _)| {
            relevant >= FEWEST_LINES && count.saturating_mul(100) >= relevant.saturating_mul(SHARE)
        })
        .map(|(_, warning)| Warning::Borrowed(warning))
        .chain(front.map(Warning::Owned))
        .collect()
}

fn since(before: &Counters, now: &Counters) -> Counters {
    let mut counts = now.clone();
    counts.lines -= before.lines;
    counts.sightings -= before.sightings;
    for (count, earlier) in counts.rejected.iter_mut().zip(before.rejected) {
        *count -= earlier;
    }
    for (count, earlier) in counts.exempt.iter_mut().zip(before.exempt) {
        *count -= earlier;
    }
    counts
}

/// What the log's end looks like.
#[derive(Debug, Default)]
pub struct Recent {
    /// What becomes of its lines.
    pub counters: Counters,
    /// Who is at one address.
    pub crowd: Crowd,
}

/// What becomes of the last 64 KiB before the place where the log is followed from, parsed for this
/// alone. Nothing where the log is no regular file: what is in a FIFO has not been read yet.
pub fn recent(tail: &mut Tail, exemptions: &Exemptions) -> Result<Recent, Trouble> {
    let Recent { mut counters, mut crowd } = Recent::default();
    tail.read_back(RECENT, |line| {
        let Some(line) = line.whole() else { return };
        counters.lines += 1;
        match parse(line) {
            Err(rejection) => counters.reject(rejection),
            Ok(sighting) => {
                if let Some(exemption) = exemptions.reason(sighting.peer.address) {
                    counters.exempt(exemption);
                } else {
                    counters.sightings += 1;
                    crowd.note(sighting.peer.address, sighting.user);
                }
            }
        }
    })?;
    Ok(Recent { counters, crowd })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: u64) -> Counters {
        Counters { lines: count, ..Counters::default() }
    }

    #[track_caller]
    fn check(counters: &Counters, expected: &[&str]) {
        let found = complaints(counters, &Crowd::default(), 8);
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
        let (mut health, start) = (Health::new(8), Instant::now());
        let look = |health: &mut Health, counters: &Counters, now| {
            health.look(counters, Claims::default(), &mut Crowd::default(), now).len()
        };
        let mut counters = Counters::default();
        let more = |counters: &mut Counters| {
            counters.lines += 50;
            (0..50).for_each(|_| counters.reject(Rejection::Masked));
        };
        more(&mut counters);
        assert_eq!(look(&mut health, &counters, start), 1);
        more(&mut counters);
        assert_eq!(look(&mut health, &counters, start + Duration::from_secs(10)), 0);
        assert_eq!(look(&mut health, &counters, start + PAUSE), 0, "nothing new was read");
        more(&mut counters);
        assert_eq!(look(&mut health, &counters, start + PAUSE), 1);
    }

    #[test]
    fn a_log_in_which_most_lines_are_tainted_is_named() {
        let (mut health, start) = (Health::new(8), Instant::now());
        let mut look = |lines, claims| {
            let counters = Counters { lines, sightings: lines, ..Counters::default() };
            health.look(&counters, claims, &mut Crowd::default(), start)
        };
        let tainted = |tainted| Claims { all: tainted, tainted, ..Claims::default() };
        assert_eq!(look(100, tainted(49)), Vec::<Warning>::new());
        assert_eq!(look(200, tainted(99)), [TAINTED]);
        assert_eq!(look(300, tainted(199)), Vec::<Warning>::new(), "it was said just now");
    }

    #[test]
    fn a_log_that_names_other_connections_than_the_kernel_has_is_told_where_to_look() {
        let (mut health, start) = (Health::new(8), Instant::now());
        let mut look = |lines, all, unverified| {
            let counters = Counters { lines, sightings: lines, ..Counters::default() };
            let claims = Claims { all, unverified, ..Claims::default() };
            health.look(&counters, claims, &mut Crowd::default(), start)
        };
        // On the log's word there are no claims.
        assert_eq!(look(100, 0, 0), Vec::<Warning>::new());
        assert_eq!(look(200, 100, 89), Vec::<Warning>::new());
        assert_eq!(look(300, 200, 178), Vec::<Warning>::new());
        assert_eq!(look(400, 300, 268), [UNVERIFIED]);
    }

    #[test]
    fn users_who_are_all_at_one_address_are_behind_a_proxy_and_the_crowd_begins_anew() {
        let (mut health, start) = (Health::new(2), Instant::now());
        let (mut counters, mut crowd) = (Counters::default(), Crowd::default());
        let front = "198.51.100.20".parse().unwrap();
        for user in [&b"alice"[..], b"bob"].repeat(10) {
            (counters.lines, counters.sightings) = (counters.lines + 1, counters.sightings + 1);
            crowd.note(front, user);
        }
        let warnings = health.look(&counters, Claims::default(), &mut crowd, start);
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(warning.contains("from 198.51.100.20") && warning.contains("PROXY protocol"));
        assert_eq!(crowd.front(0, SHARE, 0), None);
    }

    #[test]
    fn the_reasons_are_listed_by_name_with_their_counts() {
        let mut counters = Counters { other_transport: 3, ..Counters::default() };
        counters.reject(Rejection::NoEmail);
        counters.exempt(Exemption::Gateway);
        assert_eq!(counters.reasons(), "no_email=1 gateway=1 other_transport=3");
    }
}
