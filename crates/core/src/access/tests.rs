//! The grammar's table: a line, and the sighting or the exact rejection of it.
//!
//! A new shape of line begins here, with an entry that fails.

use std::{collections::BTreeSet, net::IpAddr};

use proptest::prelude::*;

use super::*;

/// What a line says, written out: transport, peer, inbound (`-` for none) and user.
fn said(line: &[u8]) -> Result<String, Rejection> {
    parse(line).map(|sighting| {
        format!(
            "{} {} {} {}",
            sighting.transport.name(),
            sighting.peer,
            sighting.inbound.map_or("-".into(), String::from_utf8_lossy),
            String::from_utf8_lossy(sighting.user),
        )
    })
}

#[track_caller]
fn taken(line: &str, expected: &str) {
    assert_eq!(said(line.as_bytes()), Ok(expected.to_owned()), "{line}");
}

#[track_caller]
fn not_taken(line: &[u8], expected: Rejection) {
    assert_eq!(said(line), Err(expected), "{}", line.escape_ascii());
}

/// Lines that are sightings.
const TAKEN: &[(&str, &str)] = &[
    // Shapes by version.
    (
        "2026/11/23 09:46:16 198.51.100.11:40833 accepted tcp:127.0.0.1:8080 [direct] email: a@b",
        "unstated 198.51.100.11:40833 - a@b",
    ),
    (
        "2026/11/23 09:44:06 from 198.51.100.11:33201 accepted tcp:127.0.0.1:8080 [vless-tcp >> direct] email: a@b",
        "unstated 198.51.100.11:33201 vless-tcp a@b",
    ),
    (
        "2026/11/23 09:44:06.123456 from 198.51.100.11:33201 accepted tcp:127.0.0.1:8080 [vless-tcp -> direct] email: a@b",
        "unstated 198.51.100.11:33201 vless-tcp a@b",
    ),
    (
        "2026/11/23 09:44:06.123456 198.51.100.11:33201 accepted tcp:127.0.0.1:8080 email: a@b",
        "unstated 198.51.100.11:33201 - a@b",
    ),
    // Transports; the three name one peer.
    (
        "2026/11/23 09:45:04 from tcp:198.51.100.13:40203 accepted tcp:h:1 [i ==> o] email: a@b",
        "tcp 198.51.100.13:40203 i a@b",
    ),
    (
        "2026/11/23 09:45:35 from udp:198.51.100.11:36746 accepted udp:127.0.0.1:9999 [ss >> direct] email: a@b",
        "udp 198.51.100.11:36746 ss a@b",
    ),
    // IPv6, canonical or not; IPv4-mapped is the IPv4 client.
    (
        "2026/11/23 09:44:09 from [2001:db8::11]:37719 accepted tcp:h:1 [i >> o] email: a@b",
        "unstated [2001:db8::11]:37719 i a@b",
    ),
    (
        "2026/11/23 09:44:09 from [2001:0DB8:0::11]:37719 accepted tcp:h:1 [o] email: a@b",
        "unstated [2001:db8::11]:37719 - a@b",
    ),
    (
        "2026/11/23 09:44:09 from tcp:[::ffff:192.0.2.5]:37719 accepted tcp:h:1 [o] email: a@b",
        "tcp 192.0.2.5:37719 - a@b",
    ),
    // Destinations.
    (
        "2026/11/23 09:44:09 from 192.0.2.5:1 accepted tcp:[2001:db8::1]:443 [o] email: a@b",
        "unstated 192.0.2.5:1 - a@b",
    ),
    (
        "2026/11/23 09:44:09 from 192.0.2.5:1 accepted 127.0.0.1:8080 [ss22 >> o] email: a@b",
        "unstated 192.0.2.5:1 ss22 a@b",
    ),
    (
        "2026/11/23 09:44:09 from 192.0.2.5:1 accepted [::1]:8080 [ss22 >> o] email: a@b",
        "unstated 192.0.2.5:1 ss22 a@b",
    ),
    (
        "2026/11/23 09:44:09 from 192.0.2.5:1 accepted //www.example.com:443 [o] email: a@b",
        "unstated 192.0.2.5:1 - a@b",
    ),
    (
        "2026/11/23 09:44:09 from 192.0.2.5:1 accepted http://u:p@h:80/a%20b?x=[y]&z [o] email: a@b",
        "unstated 192.0.2.5:1 - a@b",
    ),
    (
        "2026/11/23 09:44:09 from 192.0.2.5:1 accepted /transparent?path [o] email: a@b",
        "unstated 192.0.2.5:1 - a@b",
    ),
    (
        "2026/11/23 09:44:09 from 192.0.2.5:1 accepted udp:_dmarc.ex-ample.com.:0 [o] email: a@b",
        "unstated 192.0.2.5:1 - a@b",
    ),
    // The name is the whole rest of the line, whatever is in it: a name in a panel cannot become
    // another user.
    (
        "2026/11/23 09:44:08 from 198.51.100.21:41253 accepted tcp:h:1 [i >> o] email: Weird User [x -> y] email: z@q",
        "unstated 198.51.100.21:41253 i Weird User [x -> y] email: z@q",
    ),
    (
        "2026/11/23 09:44:08 from 198.51.100.21:41253 accepted tcp:h:1 [i >> o] email: a from 9.9.9.9:1 accepted tcp:x:1 [a >> b] email: v@b",
        "unstated 198.51.100.21:41253 i a from 9.9.9.9:1 accepted tcp:x:1 [a >> b] email: v@b",
    ),
    (
        "2026/11/23 09:44:08 192.0.2.5:1 accepted tcp:h:1 email:  two spaces ",
        "unstated 192.0.2.5:1 -  two spaces ",
    ),
    (
        "2026/11/23 09:44:08 192.0.2.5:1 accepted tcp:h:1 email: $(id)\t\"; touch x #\u{1b}[31m\u{2028}\0",
        "unstated 192.0.2.5:1 - $(id)\t\"; touch x #\u{1b}[31m\u{2028}\0",
    ),
    // Tags: the first arrow divides, the first bracket closes.
    (
        "2026/11/23 09:44:08 192.0.2.5:1 accepted tcp:h:1 [my in -> my out >> x] email: a@b",
        "unstated 192.0.2.5:1 my in a@b",
    ),
    (
        "2026/11/23 09:44:08 192.0.2.5:1 accepted tcp:h:1 [a->b] email: a@b",
        "unstated 192.0.2.5:1 - a@b",
    ),
    (
        "2026/11/23 09:44:08 192.0.2.5:1 accepted tcp:h:1 [[in >> out] email: a@b",
        "unstated 192.0.2.5:1 [in a@b",
    ),
    (
        "2026/11/23 09:44:08 192.0.2.5:1 accepted tcp:h:1 [api -> direct] email: a@b",
        "unstated 192.0.2.5:1 api a@b",
    ),
    // Line ends of another system.
    ("2026/11/23 09:44:08 192.0.2.5:1 accepted tcp:h:1 email: a@b\r", "unstated 192.0.2.5:1 - a@b"),
    (
        "2026/11/23 09:44:08 192.0.2.5:1 accepted tcp:h:1 email: a\rb\r\r",
        "unstated 192.0.2.5:1 - a\rb\r",
    ),
    // The calendar.
    ("2024/02/29 23:59:59 192.0.2.5:1 accepted tcp:h:1 email: a", "unstated 192.0.2.5:1 - a"),
    (
        "2000/02/29 00:00:00 192.0.2.5:65535 accepted tcp:h:1 email: a",
        "unstated 192.0.2.5:65535 - a",
    ),
    // Addresses that a parser has no business judging: the exemptions do.
    ("2026/12/31 00:00:00 10.0.0.1:1 accepted tcp:h:1 email: a", "unstated 10.0.0.1:1 - a"),
    ("2026/12/31 00:00:00 224.0.0.1:1 accepted tcp:h:1 email: a", "unstated 224.0.0.1:1 - a"),
];

/// Whole lines that are not taken.
const NOT_TAKEN: &[(&str, Rejection)] = &[
    ("", Rejection::Empty),
    ("\r", Rejection::Empty),
    // No time, or one that no clock shows.
    (" ", Rejection::NoTimestamp),
    ("from 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/11/23 09:44:08", Rejection::NoTimestamp),
    ("2026-11-23 09:44:08 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    (" 2026/11/23 09:44:08 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/00/23 09:44:08 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/13/23 09:44:08 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/11/00 09:44:08 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/11/31 09:44:08 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/02/29 09:44:08 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("1900/02/29 09:44:08 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/11/23 24:44:08 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/11/23 09:60:08 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/11/23 09:44:60 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/11/23 09:44:08.12345 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/11/23 09:44:08.1234567 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/11/23 09:44:08.12345x 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2026/11/23 09:44:08.", Rejection::NoTimestamp),
    ("2026/11/23T09:44:08 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
    ("2O26/11/23 09:44:08 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NoTimestamp),
];

/// What follows the time of lines that are not taken.
const NOT_TAKEN_AFTER_TIME: &[(&str, Rejection)] = &[
    // Not this log's, or not whole.
    ("", Rejection::Foreign),
    ("from", Rejection::Foreign),
    ("from ", Rejection::Foreign),
    ("[Warning] core: Xray 24.11.21 started", Rejection::Foreign),
    ("[Info] [1] proxy/vless: from 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::Foreign),
    ("from 192.0.2.5:1 Accepted tcp:h:1 email: a", Rejection::Foreign),
    ("from 192.0.2.5:1  accepted tcp:h:1 email: a", Rejection::Foreign),
    ("from 192.0.2.5:1 accepted", Rejection::Foreign),
    ("from 192.0.2.5:1\u{a0}accepted tcp:h:1 email: a", Rejection::Foreign),
    ("from\t192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from from 192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::Foreign),
    // Sources.
    ("from 192.0.2.5 accepted tcp:h:1 email: a", Rejection::MalformedSource),
    ("from 192.0.2.5: accepted tcp:h:1 email: a", Rejection::MalformedSource),
    ("from 192.0.2.5:65536 accepted tcp:h:1 email: a", Rejection::MalformedSource),
    ("from 192.0.2.5:01 accepted tcp:h:1 email: a", Rejection::MalformedSource),
    ("from 192.0.2.5:-1 accepted tcp:h:1 email: a", Rejection::MalformedSource),
    ("from 192.0.2.5:1x accepted tcp:h:1 email: a", Rejection::MalformedSource),
    ("from :1 accepted tcp:h:1 email: a", Rejection::MalformedSource),
    ("from [2001:db8::1] accepted tcp:h:1 email: a", Rejection::MalformedSource),
    ("from junk rejected  reason", Rejection::MalformedSource),
    ("from victim.example.com:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from 192.0.2.256:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from 192.0.2.05:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from 0300.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from 192.0.517:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from 192.0.2.5.6:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from 2001:db8::1:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from [192.0.2.5]:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from [2001:db8:::1]:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from [::ffff:192.0.2.05]:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from [2001:db8::1/129x]:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from tcp:udp:192.0.2.5:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    ("from 192.0.*.5x:1 accepted tcp:h:1 email: a", Rejection::NotAnAddress),
    // Destinations: what a client may send where Xray does not look (SOCKS4a, Hysteria).
    ("from 192.0.2.5:1 accepted  [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted tcp:h [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted tcp: [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted tcp::1 [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted tcp:h:65536 [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted tcp:h:1:2 [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted tcp:h\u{e9}:1 [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted tcp:a,b:1 [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted tcp:[::1]x:1 [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted tcp:[:::1]:1 [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted tcp://h:1 [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted http://a\tb [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted //h\u{7f} [o] email: a", Rejection::MalformedDestination),
    ("from 192.0.2.5:1 accepted 1http://h/ [o] email: a", Rejection::MalformedDestination),
    (
        "from 192.0.2.5:1 accepted tcp:x 1.1.1.1:1 accepted tcp:h:443 [vless-tcp -> direct] email: alice@example.com:443 [socks >> direct]",
        Rejection::MalformedDestination,
    ),
    ("from 192.0.2.5:1 rejected tcp:h reason", Rejection::MalformedDestination),
    // Tags.
    ("from 192.0.2.5:1 accepted tcp:h:1 [o email: a", Rejection::MalformedDetour),
    ("from 192.0.2.5:1 accepted tcp:h:1 [", Rejection::MalformedDetour),
    ("from 192.0.2.5:1 accepted tcp:h:1 [] email: a", Rejection::MalformedDetour),
    ("from 192.0.2.5:1 accepted tcp:h:1 [ -> o] email: a", Rejection::MalformedDetour),
    ("from 192.0.2.5:1 accepted tcp:h:1 [i -> ] email: a", Rejection::MalformedDetour),
    // What follows them.
    ("from 192.0.2.5:1 accepted tcp:h:1 [a]b >> o] email: a", Rejection::MalformedEnding),
    ("from 192.0.2.5:1 accepted tcp:h:1 [o]email: a", Rejection::MalformedEnding),
    ("from 192.0.2.5:1 accepted tcp:h:1 [o]  email: a", Rejection::MalformedEnding),
    ("from 192.0.2.5:1 accepted tcp:h:1 [o] [p] email: a", Rejection::MalformedEnding),
    ("from 192.0.2.5:1 accepted tcp:h:1 [o] email:a", Rejection::MalformedEnding),
    ("from 192.0.2.5:1 accepted tcp:h:1 [o] email: ", Rejection::MalformedEnding),
    ("from 192.0.2.5:1 accepted tcp:h:1 [o] emai", Rejection::MalformedEnding),
    ("from 192.0.2.5:1 accepted tcp:h:1 ", Rejection::MalformedEnding),
    (
        "from 192.0.2.5:1 accepted tcp:h:1 1.1.1.1:1 accepted tcp:h:443 email: v@b",
        Rejection::MalformedEnding,
    ),
    ("from 192.0.2.5:1 rejected ", Rejection::MalformedEnding),
    ("from 192.0.2.5:1 rejected  ", Rejection::MalformedEnding),
    ("from 192.0.2.5:1 rejected tcp:h:1", Rejection::MalformedEnding),
    // Nobody was let in, whatever the reason echoes.
    ("from 192.0.2.5:1 rejected  proxy/trojan: not a valid user", Rejection::Refused),
    ("192.0.2.5:1 rejected tcp:h:1 some reason", Rejection::Refused),
    (
        "from 192.0.2.5:1 rejected  common/protocol: invalid domain name: x 1.1.1.1:1 accepted tcp:h:443 [vless-tcp -> direct] email: alice@example.com",
        Rejection::Refused,
    ),
    // DNS, whole and cut by a newline in the name.
    (
        "UDP:127.0.0.53:5353 got answer: www.example.com -> [192.0.2.5] 1.064427ms",
        Rejection::DnsAnswer,
    ),
    ("UDP:127.0.0.53:5353 cache HIT: www.example.com -> [192.0.2.5]", Rejection::DnsAnswer),
    ("localhost cache OPTIMISTE: www.example.com -> [] <rcode 3>", Rejection::DnsAnswer),
    ("UDP:127.0.0.53:5353 got answer: a", Rejection::DnsAnswer),
    ("from UDP:127.0.0.53:5353 got answer: a", Rejection::Foreign),
    (
        "from DNS accepted udp:203.0.113.1:53 [xray.system.6a2ec799 -> dns-out]",
        Rejection::DnsClient,
    ),
    // Sources that are nobody's.
    ("from  accepted tcp:h:1 [i >> o] email: a", Rejection::NoSource),
    ("from @ accepted tcp:h:1 [i >> o] email: a", Rejection::UnixSocket),
    ("@ accepted tcp:h:1 email: a", Rejection::UnixSocket),
    ("from unix:@ accepted tcp:h:1 [i >> o] email: a", Rejection::UnixSocket),
    ("from 0.0.0.0:0 accepted tcp:h:1 [i >> o] email: a", Rejection::UnixSocket),
    ("from 192.0.2.66:0 accepted tcp:h:1 [i >> o] email: a", Rejection::PortZero),
    ("from [2001:db8::dead]:0 accepted tcp:h:1 [i >> o] email: a", Rejection::PortZero),
    ("from 127.0.0.1:5 accepted tcp:h:1 [i >> o] email: a", Rejection::Loopback),
    ("from [::1]:5 accepted tcp:h:1 [i >> o] email: a", Rejection::Loopback),
    ("from [::ffff:127.0.0.1]:5 accepted tcp:h:1 [i >> o] email: a", Rejection::Loopback),
    ("from 0.0.0.0:5 accepted tcp:h:1 [i >> o] email: a", Rejection::Unspecified),
    ("from [::]:5 accepted tcp:h:1 [i >> o] email: a", Rejection::Unspecified),
    ("from 169.254.7.7:5 accepted tcp:h:1 [i >> o] email: a", Rejection::LinkLocal),
    ("from [fe80::2]:5 accepted tcp:h:1 [i >> o] email: a", Rejection::LinkLocal),
    ("from [fe80::2%dmy0]:5 accepted tcp:h:1 [i >> o] email: a", Rejection::LinkLocal),
    ("from [2001:db8::2%eth0]:5 accepted tcp:h:1 [i >> o] email: a", Rejection::LinkLocal),
    // Masks, in the source or in the destination alone.
    ("from 198.*.*.*:42681 accepted tcp:h:1 [i >> o] email: a", Rejection::Masked),
    ("from tcp:198.51.100.*:40773 accepted tcp:127.0.*.*:80 [i >> o] email: a", Rejection::Masked),
    ("from [2001::/16]:43359 accepted tcp:h:1 [i >> o] email: a", Rejection::Masked),
    ("from [:::/32]:43359 accepted tcp:h:1 [i >> o] email: a", Rejection::Masked),
    (
        "from [Masked IPv4]:43033 accepted tcp:[Masked IPv4]:8080 [i >> o] email: a",
        Rejection::Masked,
    ),
    ("tcp:[Masked IPv6]:36887 accepted tcp:h:1 [i >> o] email: a", Rejection::Masked),
    ("from 192.0.2.5:1 accepted tcp:[Masked IPv6]:443 [i >> o] email: a", Rejection::Masked),
    ("from 192.0.2.5:1 accepted tcp:[2001:db8::/64]:443 [i >> o] email: a", Rejection::Masked),
    ("from [Masked IPv4]:37741 rejected  proxy/vless: invalid request user id", Rejection::Masked),
    // Xray's own streams.
    ("from 127.0.0.1:33950 accepted tcp:127.0.0.1:0 [api -> api]", Rejection::Internal),
    (
        "from 192.0.2.5:1 accepted tcp:h:1 [xray.system.6a2ec799 >> direct] email: a",
        Rejection::Internal,
    ),
    // Protocols and accounts without a name.
    ("from 192.0.2.5:1 accepted tcp:h:1 [socks >> o]", Rejection::NoEmail),
    ("192.0.2.5:1 accepted tcp:h:1", Rejection::NoEmail),
    ("192.0.2.5:1 accepted http://h/?q=\u{a0}email:\u{a0}victim@x [o]", Rejection::NoEmail),
];

fn after_time(rest: &str) -> Vec<u8> {
    format!("2026/11/23 09:44:08 {rest}").into_bytes()
}

#[test]
fn lines_that_are_sightings() {
    for (line, expected) in TAKEN {
        taken(line, expected);
    }
}

#[test]
fn lines_that_are_not() {
    for (line, expected) in NOT_TAKEN {
        not_taken(line.as_bytes(), *expected);
    }
    for (rest, expected) in NOT_TAKEN_AFTER_TIME {
        not_taken(&after_time(rest), *expected);
    }
}

#[test]
fn the_table_reaches_every_rejection() {
    let mut missing: BTreeSet<_> = Rejection::ALL.iter().map(|reason| reason.name()).collect();
    for (_, reason) in NOT_TAKEN.iter().chain(NOT_TAKEN_AFTER_TIME) {
        missing.remove(reason.name());
    }
    // Its lines are too long for the table: `what_is_kept_in_memory_is_bounded`.
    missing.remove(Rejection::EmailTooLong.name());
    assert_eq!(missing, BTreeSet::new());
}

#[test]
fn what_is_kept_in_memory_is_bounded() {
    let named =
        |length| after_time(&format!("192.0.2.5:1 accepted tcp:h:1 email: {}", "a".repeat(length)));
    assert_eq!(parse(&named(USER_LIMIT)).unwrap().user.len(), USER_LIMIT);
    not_taken(&named(USER_LIMIT + 1), Rejection::EmailTooLong);
    not_taken(&named(256 * 1024), Rejection::EmailTooLong);

    let tagged = |length| {
        after_time(&format!("192.0.2.5:1 accepted tcp:h:1 [{}] email: a", "t".repeat(length)))
    };
    assert!(parse(&tagged(DETOUR_LIMIT)).is_ok());
    not_taken(&tagged(DETOUR_LIMIT + 1), Rejection::MalformedDetour);

    let to =
        |length| after_time(&format!("192.0.2.5:1 accepted tcp:{}:1 email: a", "h".repeat(length)));
    assert!(parse(&to(HOST_LIMIT)).is_ok());
    not_taken(&to(HOST_LIMIT + 1), Rejection::MalformedDestination);
}

#[test]
fn a_url_may_be_as_long_as_the_client_likes() {
    let line =
        after_time(&format!("192.0.2.5:1 accepted http://h/{} [o] email: a", "x".repeat(300_000)));
    assert_eq!(said(&line), Ok("unstated 192.0.2.5:1 - a".to_owned()));
}

/// A second line that a newline made is byte for byte an honest one: the parser takes it, and says
/// so here. Its parent is refused, and what is left of the parent's tail has no time.
#[test]
fn a_forged_line_cannot_be_told_from_an_honest_one() {
    let written = b"2026/11/23 09:44:41 from 198.51.100.21:41039 rejected  proxy/trojan: failed to read address and port > common/protocol: invalid domain name: a\n2026/11/23 10:00:00.000001 from 6.6.6.6:12345 accepted tcp:www.example.com:443 [vless-tcp -> direct] email: alice@example.com\n:443 [socks >> direct]";
    let read: Vec<_> = written.split(|byte| *byte == b'\n').map(said).collect();
    assert_eq!(
        read,
        [
            Err(Rejection::Refused),
            Ok("unstated 6.6.6.6:12345 vless-tcp alice@example.com".to_owned()),
            Err(Rejection::NoTimestamp),
        ]
    );
}

/// Nothing but a line feed divides records, and the parser does not look for one.
#[test]
fn no_other_character_begins_a_second_record() {
    for divider in ["\r", "\u{2028}", "\u{2029}", "\u{85}", "\x0b", "\x0c", "\0", "\\n"] {
        let name =
            format!("bob{divider}2026/11/23 09:44:08 6.6.6.6:1 accepted tcp:h:1 email: alice");
        let line = after_time(&format!("192.0.2.5:1 accepted tcp:h:1 email: {name}"));
        assert_eq!(said(&line), Ok(format!("unstated 192.0.2.5:1 - {name}")));
    }
}

/// Parsing a hostile line costs what reading it costs. The bound is a count of bytes looked at, by
/// way of time: sixteen times the bytes, and ten times that for a busy machine.
#[test]
#[expect(clippy::disallowed_methods, reason = "the test measures time, the parser does not")]
fn time_is_linear_in_the_length_of_hostile_lines() {
    let patterns = [
        "A ",
        " from ",
        " email: ",
        "[",
        "]",
        " -> ",
        " accepted ",
        "tcp:",
        ":",
        "1.",
        "*",
        "%",
        "[Masked IPv4]",
    ];
    let fronts = [
        "",
        "from ",
        "from [",
        "from 192.0.2.5:1 accepted ",
        "from 192.0.2.5:1 accepted http://",
        "from 192.0.2.5:1 accepted tcp:h:1 [",
        "from 192.0.2.5:1 accepted tcp:h:1 [i -> o] email: ",
        "from 192.0.2.5:1 rejected  ",
    ];
    for front in fronts {
        for pattern in patterns {
            let lines = [64 * 1024, 1024 * 1024].map(|length| {
                after_time(&format!("{front}{}", pattern.repeat(length / pattern.len())))
            });
            let mut quickest = [std::time::Duration::MAX; 2];
            // Below some microseconds a clock says nothing.
            let short =
                |quickest: std::time::Duration| quickest.max(std::time::Duration::from_micros(20));
            // On a busy machine no single run says much.
            for _ in 0..30 {
                for (line, quickest) in lines.iter().zip(&mut quickest) {
                    let start = std::time::Instant::now();
                    let _ = std::hint::black_box(parse(std::hint::black_box(line)));
                    *quickest = start.elapsed().min(*quickest);
                }
                if quickest[1] < short(quickest[0]) * 160 {
                    break;
                }
            }
            assert!(quickest[1] < short(quickest[0]) * 160, "{front}{pattern}…: {quickest:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes_are_read_without_a_panic(line in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&line);
    }

    #[test]
    fn any_bytes_behind_an_honest_front_are_read_without_a_panic(
        front in 0..TAKEN.len(),
        cut in 0usize..200,
        tail in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut line = TAKEN[front].0.as_bytes().to_vec();
        line.truncate(cut);
        line.extend(tail);
        let _ = parse(&line);
    }

    /// Whatever is done to a line, the parser never takes a peer or a name that is not there.
    #[test]
    fn a_mutated_line_yields_only_what_it_holds(
        which in 0..TAKEN.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut line = TAKEN[which].0.as_bytes().to_vec();
        for (place, byte) in changes {
            let place = place.index(line.len());
            line[place] = byte;
        }
        if let Ok(sighting) = parse(&line) {
            let whole = line.strip_suffix(b"\r").unwrap_or(&line);
            prop_assert!(whole.ends_with(sighting.user));
            let mark = whole.len() - sighting.user.len() - b" email: ".len();
            prop_assert!(whole[mark..].starts_with(b" email: "));
            let port = format!(":{} accepted ", sighting.peer.port);
            prop_assert!(memchr::memmem::find(whole, port.as_bytes()).is_some());
            prop_assert_ne!(sighting.peer.port, 0);
        }
    }

    /// An honest line reads back as what it was made of.
    #[test]
    fn an_honest_line_says_what_xray_meant(
        bits: u128,
        narrow: bool,
        port in 1u16..,
        transport in prop::sample::select(vec![
            (Transport::Unstated, ""), (Transport::Tcp, "tcp:"), (Transport::Udp, "udp:"),
        ]),
        from: bool,
        micros in prop::option::of(0u32..1_000_000),
        inbound in prop::option::of("[a-z][a-z0-9-]{0,20}"),
        arrow in prop::sample::select(vec!["->", ">>", "==>"]),
        host in "[0-9A-Za-z._-]{1,60}",
        user in "[^\n\r]{1,60}",
    ) {
        let address = if narrow {
            IpAddr::from(u32::try_from(bits >> 96).unwrap().to_be_bytes())
        } else {
            IpAddr::from(bits.to_be_bytes())
        };
        let peer = Peer { address: address::folded(address), port };
        prop_assume!(check_peer(peer, false).is_ok());
        let time = micros.map_or(String::new(), |micros| format!(".{micros:06}"));
        let from = if from { "from " } else { "" };
        let tags = inbound.as_ref().map_or("out".to_owned(), |tag| format!("{tag} {arrow} out"));
        let line = format!(
            "2026/11/23 09:44:08{time} {from}{}{peer} accepted tcp:{host}:443 [{tags}] email: {user}",
            transport.1,
        );
        prop_assert_eq!(
            parse(line.as_bytes()),
            Ok(Sighting {
                user: user.as_bytes(),
                peer,
                transport: transport.0,
                inbound: inbound.as_ref().map(String::as_bytes),
            })
        );
    }
}

#[test]
fn a_refused_line_names_its_peer_and_no_other_line_does() {
    let refused = "2026/11/23 09:44:41 from 198.51.100.21:41039 rejected  proxy/trojan: no";
    let peer = refused_peer(refused.as_bytes()).map(|peer| peer.to_string());
    assert_eq!(peer.as_deref(), Some("198.51.100.21:41039"));
    let old = "2026/11/23 09:44:41 tcp:[2001:db8::1]:7 rejected  proxy/socks: no";
    let peer = refused_peer(old.as_bytes()).map(|peer| peer.to_string());
    assert_eq!(peer.as_deref(), Some("[2001:db8::1]:7"));
    for line in [
        "2026/11/23 09:44:41 from 198.51.100.21:0 rejected  a",
        "2026/11/23 09:44:41 from 198.51.100.21:1 accepted tcp:a:1 [x] email: b rejected  c",
        "2026/11/23 09:44:41 from @ rejected  a",
        "from 198.51.100.21:1 rejected  a",
        "",
    ] {
        assert_eq!(refused_peer(line.as_bytes()), None, "{line}");
    }
}

#[test]
fn a_line_with_port_zero_still_says_whose_it_is() {
    let line =
        b"2026/11/23 09:44:06 from 192.0.2.66:0 accepted tcp:a:1 [ws >> direct] email: alice";
    assert_eq!(parse(line), Err(Rejection::PortZero));
    let hidden = hidden_sighting(line).unwrap();
    assert_eq!((hidden.user, hidden.inbound), (&b"alice"[..], Some(&b"ws"[..])));
    let shown =
        b"2026/11/23 09:44:06 from 192.0.2.66:9 accepted tcp:a:1 [ws >> direct] email: alice";
    assert_eq!(hidden_sighting(shown), None);
}
