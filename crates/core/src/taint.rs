//! Which lines of the log may be a client's own words.
//!
//! Takes each line with what the grammar made of it; says whether it begins so soon after something
//! into which a client can write, a line feed included, that it may be the rest of that. Such a line
//! is *tainted*: on the kernel's evidence it changes nothing, and an honest line that happens to stand
//! there loses nothing but its word. Where the log's word has to do it is taken like any other, since
//! there every line is a mere claim. It reads no names and keeps no lines.

use memchr::memmem::Finder;

use crate::rejection::Rejection;

/// What Xray puts before the raw bytes of a name that is none (common/protocol/address.go).
const MARKER: &[u8] = b"invalid domain name: ";
/// The longest name that a client can put there: its length is one byte in every protocol, and in
/// DNS, whose answers are logged with the raw name too.
const AFTER_NAME: u64 = 256;
/// The longest name in a `SOCKS4a` request (8,091 bytes were seen) and what stands before it.
const AFTER_MALFORMED: u64 = 8_400;

/// Follows the stream of lines.
#[derive(Debug)]
pub struct Taint {
    marker: Finder<'static>,
    /// Bytes of the stream before the next line.
    position: u64,
    /// Lines that begin before this position are tainted.
    until: u64,
    names: u64,
}

impl Default for Taint {
    fn default() -> Self {
        Self { marker: Finder::new(MARKER), position: 0, until: 0, names: 0 }
    }
}

impl Taint {
    /// Takes the next line, without its line feed, and why it is no sighting, if it is none. Says
    /// whether it is tainted.
    pub fn follow(&mut self, line: &[u8], rejection: Option<Rejection>) -> bool {
        let start = self.position;
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX).saturating_add(1);
        self.position = start.saturating_add(length);
        let tainted = start < self.until;
        let Some(rejection) = rejection else { return tainted };
        let until = match rejection {
            Rejection::Refused => match self.marker.find(line) {
                Some(place) => {
                    self.names += 1;
                    let end = u64::try_from(place + MARKER.len()).unwrap_or(u64::MAX);
                    start.saturating_add(end).saturating_add(AFTER_NAME + 1)
                }
                None => return tainted,
            },
            // The name begins within the line; counted from its end, so that it is never too little.
            Rejection::DnsAnswer => self.position.saturating_add(AFTER_NAME),
            Rejection::Empty
            | Rejection::NoTimestamp
            | Rejection::Foreign
            | Rejection::MalformedSource
            | Rejection::NotAnAddress
            | Rejection::MalformedDestination
            | Rejection::MalformedDetour
            | Rejection::MalformedEnding => self.position.saturating_add(AFTER_MALFORMED),
            _ => return tainted,
        };
        self.until = self.until.max(until);
        tainted
    }

    /// How many lines had a name in them that is none.
    #[must_use]
    pub const fn invalid_names(&self) -> u64 {
        self.names
    }

    /// The stream was broken off, as by a line too long to be read: what comes next may belong to
    /// anything.
    pub fn interrupt(&mut self) {
        self.until = self.until.max(self.position.saturating_add(AFTER_MALFORMED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::parse;

    const HONEST: &str = "2026/11/23 10:00:00.000001 from 198.51.100.7:12345 accepted \
                          tcp:www.example.com:443 [vless-tcp -> direct] email: alice@example.com";

    /// Which of the honest lines among `lines` are tainted.
    fn tainted(lines: &[&str]) -> Vec<bool> {
        let mut taint = Taint::default();
        let follow = |line: &&str| {
            let parsed = parse(line.as_bytes());
            let tainted = taint.follow(line.as_bytes(), parsed.err());
            parsed.is_ok().then_some(tainted)
        };
        lines.iter().filter_map(follow).collect()
    }

    fn refused(name: &str) -> String {
        format!(
            "2026/11/23 09:44:41 from 198.51.100.21:41039 rejected  proxy/trojan: failed to read \
             address and port > common/protocol: invalid domain name: {name}"
        )
    }

    #[test]
    fn a_line_behind_a_name_that_is_none_is_tainted_and_the_one_after_is_not() {
        assert_eq!(
            tainted(&[HONEST, &refused("a"), HONEST, HONEST, HONEST]),
            [false, true, true, false]
        );
    }

    #[test]
    fn a_line_that_begins_as_late_as_a_name_can_is_tainted() {
        // A name of 255 bytes, the last of which is the line feed.
        let name = "x".repeat(254);
        assert_eq!(tainted(&[&refused(&name), HONEST]), [true]);
        let name = "x".repeat(300);
        assert_eq!(tainted(&[&refused(&name), HONEST]), [false], "no such name exists");
    }

    #[test]
    fn a_refused_line_without_a_name_taints_nothing() {
        let line = "2026/11/23 09:44:41 from 198.51.100.21:41039 rejected  proxy/vless/encoding: \
                    invalid request user id";
        assert_eq!(tainted(&[line, HONEST]), [false]);
    }

    #[test]
    fn the_rest_of_a_dns_answer_is_tainted() {
        let line = "2026/11/23 09:44:41 UDP:127.0.0.53:53 got answer: a";
        assert_eq!(tainted(&[line, HONEST, HONEST, HONEST]), [true, true, false]);
    }

    #[test]
    fn everything_that_fits_a_long_name_behind_a_broken_line_is_tainted() {
        let broken = "2026/11/23 09:44:41 from 198.51.100.21:41039 accepted tcp:a b";
        let mut lines = vec![broken];
        lines.extend([HONEST; 100]);
        let count = tainted(&lines).iter().filter(|tainted| **tainted).count();
        let expected = usize::try_from(AFTER_MALFORMED).unwrap().div_ceil(HONEST.len() + 1);
        assert_eq!(count, expected);
    }

    #[test]
    fn after_a_break_in_the_stream_nothing_is_believed_at_once() {
        let mut taint = Taint::default();
        assert!(!taint.follow(HONEST.as_bytes(), None));
        taint.interrupt();
        assert!(taint.follow(HONEST.as_bytes(), None));
    }
}
