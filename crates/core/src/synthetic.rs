//! A made-up access log, for measuring and for tests of what reads one.
//!
//! Takes a [`Shape`]; makes lines, the same ones for the same shape. The default is the log that
//! other tools of this kind were measured with, so that figures can be put beside theirs: of each
//! 100 lines 80 have a bare peer, 12 a `tcp:` and 2 a `udp:` one, 3 are rejected, 2 are HTTP's
//! (no user) and 1 is a DNS answer; of each 20 users one is on IPv6 only. Only behind the feature
//! `synthetic`.

use std::fmt::{self, Write as _};

/// Nanoseconds between two lines: 50,000 lines a second, one each second for each of 50,000 users.
pub const LINE_INTERVAL_NANOS: u64 = 20_000;
/// Of this many users one is on IPv6 only.
const USERS_PER_IPV6_ONLY: u64 = 20;

/// How much of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Lines in all.
    pub lines: u64,
    /// Users whose lines they are, at least 1 and at most 2^20.
    pub users: u64,
    /// How many of the users are at two sources all the time.
    pub sharers: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { lines: 2_000_000, users: 50_000, sharers: 88 }
    }
}

/// The lines of one log, in order.
#[derive(Debug)]
pub struct SyntheticLog {
    shape: Shape,
    written: u64,
    random: u64,
}

impl SyntheticLog {
    /// A log of this shape.
    #[must_use]
    pub const fn new(shape: Shape) -> Self {
        Self { shape, written: 0, random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Appends the next line with its line feed; `false` when there is none left.
    pub fn append_line(&mut self, out: &mut Vec<u8>) -> bool {
        if self.written == self.shape.lines {
            return false;
        }
        // Writing to memory does not fail.
        let _ = self.write_line(&mut Text(out));
        self.written += 1;
        true
    }

    fn write_line(&mut self, out: &mut Text<'_>) -> fmt::Result {
        let micros = self.written * LINE_INTERVAL_NANOS / 1_000;
        let seconds = micros / 1_000_000;
        write!(
            out,
            "2026/11/23 {:02}:{:02}:{:02}.{:06} ",
            seconds / 3_600 % 24,
            seconds / 60 % 60,
            seconds % 60,
            micros % 1_000_000
        )?;
        let kind = self.below(100);
        let user = self.below(self.shape.users.max(1));
        let source = Source { user, second: user < self.shape.sharers && self.below(2) == 1 };
        let (port, host) = (1_024 + self.below(60_000), self.below(5_000));
        let inbound = ["vless-reality", "trojan-tls", "vmess-ws"]
            .get(usize::try_from(user % 3).unwrap_or_default())
            .copied()
            .unwrap_or_default();
        match kind {
            0..80 => write!(
                out,
                "from {source}:{port} accepted tcp:www.host-{host}.example.com:443 [{inbound} >> direct] email: user-{user:05}@example.com"
            )?,
            80..92 => write!(
                out,
                "from tcp:{source}:{port} accepted udp:203.0.113.{}:443 [{inbound} -> direct] email: user-{user:05}@example.com",
                host % 256
            )?,
            92..94 => write!(
                out,
                "from udp:{source}:{port} accepted udp:www.host-{host}.example.com:443 [{inbound} >> direct] email: user-{user:05}@example.com"
            )?,
            94..97 => write!(
                out,
                "from {source}:{port} rejected  proxy/vless/encoding: invalid request user id"
            )?,
            97..99 => write!(
                out,
                "from {source}:{port} accepted //www.host-{host}.example.com:443 [http >> direct]"
            )?,
            _ => write!(
                out,
                "UDP:127.0.0.53:53 got answer: www.host-{host}.example.com -> [192.0.2.5] 1.064427ms"
            )?,
        }
        out.write_char('\n')
    }

    /// A number below `bound` (xorshift64*; the tiny bias of the remainder does not matter here).
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// Where a user is, as a line has it.
struct Source {
    user: u64,
    second: bool,
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, second) = (self.user, u64::from(self.second));
        if user % USERS_PER_IPV6_ONLY == USERS_PER_IPV6_ONLY - 1 {
            return write!(out, "[2001:db8:{second:x}:{user:x}::{:x}]", user % 7 + 1);
        }
        // 20.0.0.0 and 40.0.0.0 on.
        let first = 20 + 20 * second + (user >> 16);
        write!(out, "{first}.{}.{}.7", user >> 8 & 255, user & 255)
    }
}

/// Formatting into bytes.
struct Text<'a>(&'a mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{Evidence, Moment, Policy, Rejection, Roster, Verdict, access};

    #[test]
    fn its_lines_are_what_it_says_and_only_the_sharers_are_evicted() {
        let shape = Shape { lines: 100_000, users: 1_000, sharers: 10 };
        let mut log = SyntheticLog::new(shape);
        let mut roster = Roster::new(Policy::default());
        let mut rejections = BTreeMap::new();
        let (mut taken, mut lines, mut line) = (0, 0, Vec::new());
        let mut evicted = BTreeMap::new();
        while log.append_line(&mut line) {
            let now = Moment::from_nanos(lines * LINE_INTERVAL_NANOS);
            lines += 1;
            match access::parse(line.strip_suffix(b"\n").unwrap()) {
                Ok(sighting) => {
                    taken += 1;
                    if let Verdict::Evict(eviction) = roster.observe(&sighting, Evidence::Log, now)
                    {
                        *evicted.entry(eviction.user).or_insert(0) += 1;
                    }
                }
                Err(rejection) => *rejections.entry(rejection.name()).or_insert(0) += 1,
            }
            line.clear();
        }
        assert_eq!(lines, shape.lines);
        assert_eq!(roster.len(), 1_000);
        assert_eq!(evicted.len(), 10, "each sharer, and nobody else");
        assert!(evicted.keys().all(|user| &**user < b"user-00010".as_slice()));
        let expected = [Rejection::DnsAnswer, Rejection::NoEmail, Rejection::Refused];
        assert_eq!(rejections.keys().copied().collect::<Vec<_>>(), expected.map(Rejection::name));
        let percent = |count: u64| count * 100 / lines;
        assert!((93..=95).contains(&percent(taken)), "{taken} of {lines}");
    }
}
