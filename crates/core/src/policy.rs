//! The rules of the house: how many sources, for how long, and who goes.
//!
//! Takes [`Terms`] as an operator wrote them; makes a [`Policy`] that only holds values the rest
//! of the crate can work with, so that nothing is checked twice. It reads no flags and no files.

use std::{fmt::Display, net::IpAddr, ops::RangeInclusive, time::Duration};

use crate::{error::Error, network::Source};

/// The most places a user can be given. Each source of a user is looked at for each of his lines
/// that begins a session, so there must be an end to them.
pub const PLACES_LIMIT: usize = 256;
/// The most users that can be remembered at once; each takes some 250 bytes.
pub const USERS_LIMIT: usize = 1 << 26;
/// Sources remembered per user beyond those that can be live at once, so that the ones he was at
/// earlier in the day are known again.
const SOURCES_BEYOND_PLACES: usize = 64;

/// Who stays when a user is at more sources than he has places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Keep {
    /// Whoever was there first; a newcomer is the offender.
    #[default]
    First,
    /// Whoever came last; the most senior are the offenders.
    Last,
}

/// What is done to an offender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ban his source where nobody else is, else reset his own connections only.
    #[default]
    Auto,
    /// Ban his source, unless it is a proxy.
    Ban,
    /// Reset his own connections, and again on sight.
    Kill,
}

/// A policy as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long a session counts as live after its last line.
    pub window: Duration,
    /// How many sources of one address family a user may hold at once, 1 to [`PLACES_LIMIT`].
    pub places: usize,
    /// Who stays.
    pub keep: Keep,
    /// Bits of an IPv4 address that make a source, 1 to 32.
    pub ipv4_prefix: u8,
    /// Bits of an IPv6 address that make a source, 1 to 128.
    pub ipv6_prefix: u8,
    /// How long a ban lasts.
    pub timeout: Duration,
    /// What is done to an offender.
    pub action: Action,
    /// Whether a source that only finishes is asked; else it is taken for a device.
    pub asking: bool,
    /// A source with so many users is a proxy of its own, 2 to 10,000.
    pub shared_source_users: usize,
    /// A user at so many sources in one window, half of them others' too, is behind a CDN, 2 to
    /// 1,000.
    pub cdn_sources: usize,
    /// Whether a peer that was logged with `udp:`, which proves no address, may be banned.
    pub udp_ban: bool,
    /// How many users are remembered at once, 1 to [`USERS_LIMIT`].
    pub users: usize,
    /// After how long a silence a user, and a source of his, is forgotten.
    pub forget_after: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(5),
            places: 1,
            keep: Keep::First,
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            timeout: Duration::from_mins(1),
            action: Action::Auto,
            asking: true,
            shared_source_users: 8,
            cdn_sources: 32,
            udp_ban: false,
            users: 262_144,
            forget_after: Duration::from_hours(24),
        }
    }
}

/// A policy that can be worked with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy(Terms);

impl Policy {
    /// Checks `terms`; the error names the first that cannot be, and what it takes.
    pub fn new(terms: Terms) -> Result<Self, Error> {
        within("places", terms.places, 1..=PLACES_LIMIT)?;
        within("ipv4-prefix", terms.ipv4_prefix, 1..=32)?;
        within("ipv6-prefix", terms.ipv6_prefix, 1..=128)?;
        within("users", terms.users, 1..=USERS_LIMIT)?;
        within("shared-source-users", terms.shared_source_users, 2..=10_000)?;
        within("cdn-sources", terms.cdn_sources, 2..=1_000)?;
        positive("window", terms.window)?;
        positive("timeout", terms.timeout)?;
        if terms.forget_after < terms.window.max(terms.timeout) {
            return Err(Error::OutOfRange {
                setting: "forget-after",
                value: format!("{:?}", terms.forget_after),
                range: format!(
                    "at least window and timeout, here {:?}",
                    terms.window.max(terms.timeout)
                ),
            });
        }
        Ok(Self(terms))
    }

    /// How long a session counts as live after its last line.
    #[must_use]
    pub const fn window(&self) -> Duration {
        self.0.window
    }

    /// How many sources of one address family a user may hold at once.
    #[must_use]
    pub const fn places(&self) -> usize {
        self.0.places
    }

    /// Who stays.
    #[must_use]
    pub const fn keep(&self) -> Keep {
        self.0.keep
    }

    /// How long a ban lasts.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        self.0.timeout
    }

    /// What is done to an offender.
    #[must_use]
    pub const fn action(&self) -> Action {
        self.0.action
    }

    /// Whether a source that only finishes is asked.
    #[must_use]
    pub const fn asking(&self) -> bool {
        self.0.asking
    }

    /// How many users at a source make it a proxy.
    #[must_use]
    pub const fn shared_source_users(&self) -> usize {
        self.0.shared_source_users
    }

    /// How many sources of one user in one window may mean a CDN.
    #[must_use]
    pub const fn cdn_sources(&self) -> usize {
        self.0.cdn_sources
    }

    /// The same policy with another number of places, which is cut to [`PLACES_LIMIT`].
    #[must_use]
    pub fn with_places(self, places: usize) -> Self {
        Self(Terms { places: places.clamp(1, PLACES_LIMIT), ..self.0 })
    }

    /// Whether a peer that was logged with `udp:` may be banned.
    #[must_use]
    pub const fn udp_ban(&self) -> bool {
        self.0.udp_ban
    }

    /// How many users are remembered at once.
    #[must_use]
    pub const fn users(&self) -> usize {
        self.0.users
    }

    /// After how long a silence a user, and a source of his, is forgotten.
    #[must_use]
    pub const fn forget_after(&self) -> Duration {
        self.0.forget_after
    }

    /// How many sources of one user are remembered at once: all that can be live in the two
    /// address families together, and some more.
    #[must_use]
    pub const fn sources_per_user(&self) -> usize {
        let beyond = if self.0.cdn_sources > SOURCES_BEYOND_PLACES {
            self.0.cdn_sources
        } else {
            SOURCES_BEYOND_PLACES
        };
        2 * self.0.places + beyond
    }

    /// The source of a peer at `address`.
    #[must_use]
    pub fn source(&self, address: IpAddr) -> Source {
        Source::of(address, self.0.ipv4_prefix, self.0.ipv6_prefix)
    }
}

pub(crate) fn within<T: Copy + PartialOrd + Display>(
    setting: &'static str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), Error> {
    if range.contains(&value) {
        return Ok(());
    }
    let (value, range) = (value.to_string(), format!("{} to {}", range.start(), range.end()));
    Err(Error::OutOfRange { setting, value, range })
}

fn positive(setting: &'static str, value: Duration) -> Result<(), Error> {
    if value.is_zero() {
        return Err(Error::OutOfRange {
            setting,
            value: format!("{value:?}"),
            range: "more than zero".to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(terms: Terms, sentence: &str) {
        assert_eq!(Policy::new(terms).unwrap_err().to_string(), sentence);
    }

    #[test]
    fn the_defaults_are_a_policy() {
        assert_eq!(Policy::new(Terms::default()), Ok(Policy::default()));
    }

    #[test]
    fn a_term_out_of_its_range_is_refused_by_name() {
        let terms = Terms::default();
        refused(Terms { places: 0, ..terms }, "places cannot be 0: it takes 1 to 256");
        refused(Terms { places: 257, ..terms }, "places cannot be 257: it takes 1 to 256");
        refused(Terms { ipv4_prefix: 0, ..terms }, "ipv4-prefix cannot be 0: it takes 1 to 32");
        refused(Terms { ipv4_prefix: 33, ..terms }, "ipv4-prefix cannot be 33: it takes 1 to 32");
        refused(
            Terms { ipv6_prefix: 129, ..terms },
            "ipv6-prefix cannot be 129: it takes 1 to 128",
        );
        refused(Terms { users: 0, ..terms }, "users cannot be 0: it takes 1 to 67108864");
        refused(
            Terms { window: Duration::ZERO, ..terms },
            "window cannot be 0ns: it takes more than zero",
        );
        refused(
            Terms { timeout: Duration::ZERO, ..terms },
            "timeout cannot be 0ns: it takes more than zero",
        );
        refused(
            Terms { forget_after: Duration::from_secs(59), ..terms },
            "forget-after cannot be 59s: it takes at least window and timeout, here 60s",
        );
    }
}
