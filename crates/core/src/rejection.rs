//! Why a line was not taken: one name for every reason.
//!
//! A rejection is not an error. It is counted under its name, and a run of one of them tells an
//! operator what is wrong with a configuration (masked addresses, a proxy in front, no emails).

/// The reason why a log line is no sighting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// Nothing between two line ends.
    Empty,
    /// The line does not begin with a possible `YYYY/MM/DD hh:mm:ss` and, since Xray 25.1.30, six
    /// digits of a second. The rest of a record that an attacker broke begins like this.
    NoTimestamp,
    /// A timestamp, but neither `accepted` nor `rejected` where they belong: another log's line in
    /// the same stream (Xray's error log begins with a timestamp too), or an attacker's.
    Foreign,
    /// The source is no `host:port`.
    MalformedSource,
    /// The source is a `host:port` whose host is no IP address, or not written as Go writes one.
    NotAnAddress,
    /// The destination is not in the grammar; raw bytes of a client (`SOCKS4a`, Hysteria) end here.
    MalformedDestination,
    /// The `[inbound -> outbound]` part is not closed, or a tag in it is empty or overlong.
    MalformedDetour,
    /// An `accepted` line that goes on with something else than ` email: `, or a `rejected` line
    /// without its reason. A tag with `]` in it, which Xray allows and Refract does not, ends here.
    MalformedEnding,
    /// A well-formed `rejected` line: nobody was let in.
    Refused,
    /// An answer or cache hit that Xray's DNS client logged (`dnsLog`). The name in it is an
    /// attacker's to choose, newlines included.
    DnsAnswer,
    /// A stream of Xray's own DNS client (`from DNS`).
    DnsClient,
    /// No source at all: a mux sub-stream on an inbound that has none.
    NoSource,
    /// The peer is a Unix socket (`@`, `unix:`, and `0.0.0.0:0` since Xray 25.2.21).
    UnixSocket,
    /// `maskAddress` is on: the addresses in this log identify nobody.
    Masked,
    /// A stream inside Xray: `[api -> api]` or an `xray.system.` inbound.
    Internal,
    /// The line names no user: SOCKS, HTTP, dokodemo, WireGuard and TUN never do, and others only
    /// when the account has an `email`.
    NoEmail,
    /// Port 0: the address was taken from a header that the client may have written.
    PortZero,
    /// The peer is on this host (127.0.0.0/8, `::1`).
    Loopback,
    /// The peer's address is 0.0.0.0 or `::`, with a port.
    Unspecified,
    /// A link-local address, or one with a zone: it identifies nobody beyond one link.
    LinkLocal,
    /// The user's name is longer than [`USER_LIMIT`](crate::access::USER_LIMIT) bytes.
    EmailTooLong,
}

impl Rejection {
    /// Every reason, in the order of [`index`](Self::index).
    pub const ALL: [Self; 21] = [
        Self::Empty,
        Self::NoTimestamp,
        Self::Foreign,
        Self::MalformedSource,
        Self::NotAnAddress,
        Self::MalformedDestination,
        Self::MalformedDetour,
        Self::MalformedEnding,
        Self::Refused,
        Self::DnsAnswer,
        Self::DnsClient,
        Self::NoSource,
        Self::UnixSocket,
        Self::Masked,
        Self::Internal,
        Self::NoEmail,
        Self::PortZero,
        Self::Loopback,
        Self::Unspecified,
        Self::LinkLocal,
        Self::EmailTooLong,
    ];

    /// Where the reason stands in [`ALL`](Self::ALL), for an array of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name in counters and records, in `snake_case`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NoTimestamp => "no_timestamp",
            Self::Foreign => "foreign",
            Self::MalformedSource => "malformed_source",
            Self::NotAnAddress => "not_an_address",
            Self::MalformedDestination => "malformed_destination",
            Self::MalformedDetour => "malformed_detour",
            Self::MalformedEnding => "malformed_ending",
            Self::Refused => "refused",
            Self::DnsAnswer => "dns_answer",
            Self::DnsClient => "dns_client",
            Self::NoSource => "no_source",
            Self::UnixSocket => "unix_socket",
            Self::Masked => "masked",
            Self::Internal => "internal",
            Self::NoEmail => "no_email",
            Self::PortZero => "port_zero",
            Self::Loopback => "loopback",
            Self::Unspecified => "unspecified",
            Self::LinkLocal => "link_local",
            Self::EmailTooLong => "email_too_long",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_listed_once_and_under_its_index() {
        for (index, reason) in Rejection::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index, "{}", reason.name());
        }
        // The last variant of the enum is the last one listed, so none is left out.
        assert_eq!(Rejection::EmailTooLong.index() + 1, Rejection::ALL.len());
    }

    #[test]
    fn every_name_is_its_own() {
        let names: std::collections::BTreeSet<_> =
            Rejection::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Rejection::ALL.len());
    }
}
