//! One line of the access log in, a [`Sighting`] or the [`Rejection`] of the line out.
//!
//! Takes the bytes between two line feeds, as V2Ray 4.x and 5.x and Xray 1.x to 26.x write them;
//! makes a claim "this user, from this peer". It is matched from the left, anchored at both ends,
//! split at single spaces (0x20) only, and nothing is ever searched for in the middle: what a
//! client can write into a destination or an administrator into an account's name stays where it
//! is. Each line costs time linear in its length and no memory.
//!
//! It does not know whether a line is true. A user can have Xray write a whole second line (a
//! newline in a domain name is echoed raw in the reason of a `rejected` line), and that line is
//! byte for byte an honest one. No parser can tell; only the kernel can.
//!
//! ```text
//! record  = time SP [ "from " ] source SP ( accepted / rejected )
//! time    = 4D "/" 2D "/" 2D SP 2D ":" 2D ":" 2D [ "." 6D ]
//! accepted= "accepted " to [ " [" [ inbound SP ( "->" / ">>" / "==>" ) SP ] outbound "]" ]
//!           [ " email: " the-whole-rest ]
//! rejected= "rejected " [ to ] SP reason
//! source  = [ "tcp:" / "udp:" ] ( ipv4 / "[" ipv6 [ "%" zone ] "]" ) ":" port
//!           / masked / "DNS" / "@" … / "unix:" … / nothing
//! to      = [ "tcp:" / "udp:" ] host ":" port / "//" … / scheme "://" … / "/" …
//! ```
//!
//! One carriage return at the end of a line is taken for a part of the line end: Xray writes none,
//! but a log that went through another system may mix both ends, and then one user would be two.

use std::net::IpAddr;

use memchr::{memchr, memchr_iter};

use crate::{
    address,
    rejection::Rejection,
    sighting::{Peer, Sighting, Transport},
};

/// The longest user name taken, bytes. Emails have at most 254 (RFC 5321 §4.5.3.1.3); panels make
/// names of their own, so there is room for those, but a name is kept in memory and must be bounded.
pub const USER_LIMIT: usize = 512;
/// The longest `inbound -> outbound` taken, bytes, for the same reason.
pub const DETOUR_LIMIT: usize = 512;
/// The longest host name in a destination, bytes: its length is one byte in every protocol.
const HOST_LIMIT: usize = 255;
/// How `maskAddress: full` writes every address. They are the only sources with a space in them.
const MASKED_WHOLE: [&[u8]; 2] = [b"[Masked IPv4]", b"[Masked IPv6]"];
/// The tag of the API in the documentation's examples and in every panel; its inbound and its
/// outbound share it.
const API_TAG: &[u8] = b"api";
/// Xray's inbounds for its own streams are named `xray.system.` and a UUID.
const SYSTEM_TAG_PREFIX: &[u8] = b"xray.system.";

/// Reads one line, without its line feed.
pub fn parse(line: &[u8]) -> Result<Sighting<'_>, Rejection> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(Rejection::Empty);
    }
    let rest = after_timestamp(line).ok_or(Rejection::NoTimestamp)?;
    let unprefixed = rest.strip_prefix(b"from ");
    let rest = unprefixed.unwrap_or(rest);
    // Nearly every line: read in one go what is otherwise first split and then read.
    if let Some((origin, rest)) = Origin::leading_ipv4(rest)
        && let Some(rest) = rest.strip_prefix(b" accepted ")
    {
        return accepted(origin, rest);
    }
    let (source, rest) = split_source(rest).ok_or(Rejection::Foreign)?;
    if let Some(rest) = rest.strip_prefix(b"accepted ") {
        return accepted(Origin::read(source)?, rest);
    }
    if let Some(rest) = rest.strip_prefix(b"rejected ") {
        return Err(refusal(Origin::read(source)?, rest));
    }
    if unprefixed.is_none() && is_dns_answer(rest) {
        return Err(Rejection::DnsAnswer);
    }
    Err(Rejection::Foreign)
}

/// The peer that a line which [`parse`] called [`Rejection::Refused`] names: whoever was there was
/// not let in, so nothing else that names that connection proves anybody.
#[must_use]
pub fn refused_peer(line: &[u8]) -> Option<Peer> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let rest = after_timestamp(line)?;
    let (source, rest) = split_source(rest.strip_prefix(b"from ").unwrap_or(rest))?;
    if !rest.starts_with(b"rejected ") {
        return None;
    }
    match Origin::read(source).ok()? {
        Origin::Peer { peer, .. } if peer.port != 0 => Some(peer),
        _ => None,
    }
}

/// What a line that [`parse`] called [`Rejection::PortZero`] says all the same: its user chose, or
/// let somebody choose, a header that hides where he is.
#[must_use]
pub fn hidden_sighting(line: &[u8]) -> Option<Sighting<'_>> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let rest = after_timestamp(line)?;
    let (source, rest) = split_source(rest.strip_prefix(b"from ").unwrap_or(rest))?;
    let Origin::Peer { peer, transport, .. } = Origin::read(source).ok()? else { return None };
    let (to, rest) = split_destination(rest.strip_prefix(b"accepted ")?);
    check_destination(to).ok()?;
    let (detour, rest) = split_detour(rest).ok()?;
    let user = rest.strip_prefix(b" email: ").filter(|user| user.len() <= USER_LIMIT)?;
    (peer.port == 0).then_some(Sighting { user, peer, transport, inbound: detour.inbound })
}

/// What stands in front of `accepted` and `rejected`.
#[derive(Clone, Copy)]
enum Origin {
    Peer { peer: Peer, transport: Transport, zoned: bool },
    Masked,
    Dns,
    UnixSocket,
    Nothing,
}

impl Origin {
    /// The IPv4 peer at the front, and what follows it.
    fn leading_ipv4(rest: &[u8]) -> Option<(Self, &[u8])> {
        let (transport, bare) = split_transport(rest);
        let (address, rest) = address::leading_ipv4(bare)?;
        let (port, rest) = address::leading_port(rest.strip_prefix(b":")?)?;
        let peer = Peer { address: IpAddr::V4(address), port };
        Some((Self::Peer { peer, transport, zoned: false }, rest))
    }

    fn read(source: &[u8]) -> Result<Self, Rejection> {
        if let Some((peer, [])) = Self::leading_ipv4(source) {
            return Ok(peer);
        }
        let (transport, bare) = split_transport(source);
        if source.is_empty() {
            return Ok(Self::Nothing);
        }
        if source == b"DNS" {
            return Ok(Self::Dns);
        }
        if source.starts_with(b"@") || source.starts_with(b"unix:") {
            return Ok(Self::UnixSocket);
        }
        let (host, port) = split_port(bare).ok_or(Rejection::MalformedSource)?;
        if is_masked(host) {
            return Ok(Self::Masked);
        }
        let inside = bracketed(host).ok_or(Rejection::NotAnAddress)?;
        let (text, zoned) = match memchr(b'%', inside) {
            Some(percent) => (inside.get(..percent).unwrap_or_default(), true),
            None => (inside, false),
        };
        let address = address::ipv6(text).ok_or(Rejection::NotAnAddress)?;
        let peer = Peer { address: address::folded(IpAddr::V6(address)), port };
        Ok(Self::Peer { peer, transport, zoned })
    }
}

/// Syntax first, all of it; only then what the line is about. A line that is malformed behind its
/// source was broken by somebody, and is counted as that.
fn accepted(origin: Origin, rest: &[u8]) -> Result<Sighting<'_>, Rejection> {
    if masked_whole_end(rest).is_some() {
        return Err(Rejection::Masked);
    }
    let (to, rest) = split_destination(rest);
    check_destination(to)?;
    let (detour, rest) = split_detour(rest)?;
    let user = match rest {
        [] => None,
        _ => match rest.strip_prefix(b" email: ") {
            Some(user) if !user.is_empty() => Some(user),
            _ => return Err(Rejection::MalformedEnding),
        },
    };

    let (peer, transport, zoned) = match origin {
        Origin::Peer { peer, transport, zoned } => (peer, transport, zoned),
        Origin::Masked => return Err(Rejection::Masked),
        Origin::Dns => return Err(Rejection::DnsClient),
        Origin::UnixSocket => return Err(Rejection::UnixSocket),
        Origin::Nothing => return Err(Rejection::NoSource),
    };
    if detour.is_internal() {
        return Err(Rejection::Internal);
    }
    let user = user.ok_or(Rejection::NoEmail)?;
    check_peer(peer, zoned)?;
    if user.len() > USER_LIMIT {
        return Err(Rejection::EmailTooLong);
    }
    Ok(Sighting { user, peer, transport, inbound: detour.inbound })
}

/// A `rejected` line is never a sighting. Its shape still matters: one that is off was not
/// written by Xray.
fn refusal(origin: Origin, rest: &[u8]) -> Rejection {
    if matches!(origin, Origin::Masked) {
        return Rejection::Masked;
    }
    let (to, reason) = split_destination(rest);
    if !to.is_empty()
        && let Err(rejection) = check_destination(to)
    {
        return rejection;
    }
    match reason {
        [b' ', _, ..] => Rejection::Refused,
        _ => Rejection::MalformedEnding,
    }
}

fn check_peer(peer: Peer, zoned: bool) -> Result<(), Rejection> {
    if peer.port == 0 {
        let unspecified = peer.address.is_unspecified();
        return Err(if unspecified { Rejection::UnixSocket } else { Rejection::PortZero });
    }
    if peer.address.is_loopback() {
        return Err(Rejection::Loopback);
    }
    if peer.address.is_unspecified() {
        return Err(Rejection::Unspecified);
    }
    let link_local = match peer.address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link_local || zoned { Err(Rejection::LinkLocal) } else { Ok(()) }
}

/// The tags of a line.
struct Detour<'line> {
    inbound: Option<&'line [u8]>,
    outbound: &'line [u8],
}

impl Detour<'_> {
    fn is_internal(&self) -> bool {
        self.inbound.is_some_and(|inbound| {
            (inbound == API_TAG && self.outbound == API_TAG)
                || inbound.starts_with(SYSTEM_TAG_PREFIX)
        })
    }
}

/// The first `]` closes the detour; a tag that holds one is not supported.
fn split_detour(rest: &[u8]) -> Result<(Detour<'_>, &[u8]), Rejection> {
    let Some(opened) = rest.strip_prefix(b" [") else {
        return Ok((Detour { inbound: None, outbound: b"" }, rest));
    };
    let (detour, closed) = memchr(b']', opened)
        .filter(|end| *end <= DETOUR_LIMIT)
        .and_then(|end| opened.split_at_checked(end))
        .ok_or(Rejection::MalformedDetour)?;
    let mut tags = Detour { inbound: None, outbound: detour };
    for space in memchr_iter(b' ', detour) {
        let (inbound, arrow) = detour.split_at_checked(space).unwrap_or_default();
        if let Some(outbound) = [b" -> ".as_slice(), b" >> ", b" ==> "]
            .into_iter()
            .find_map(|pattern| arrow.strip_prefix(pattern))
        {
            tags = Detour { inbound: Some(inbound), outbound };
            break;
        }
    }
    if tags.inbound.is_some_and(<[u8]>::is_empty) || tags.outbound.is_empty() {
        return Err(Rejection::MalformedDetour);
    }
    Ok((tags, closed.get(1..).unwrap_or_default()))
}

fn check_destination(to: &[u8]) -> Result<(), Rejection> {
    let (transport, bare) = split_transport(to);
    if transport == Transport::Unstated && (to.starts_with(b"/") || has_scheme(to)) {
        // A URL or path as the client sent it: anything visible, however long.
        let visible = to.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
        return if visible { Ok(()) } else { Err(Rejection::MalformedDestination) };
    }
    let (host, _) = split_port(bare).ok_or(Rejection::MalformedDestination)?;
    // Every byte is looked at, without an early end, so that many are looked at in one go.
    if host.iter().fold(true, |name, byte| name & is_host_byte(*byte)) {
        let named = host.len() <= HOST_LIMIT;
        return if named { Ok(()) } else { Err(Rejection::MalformedDestination) };
    }
    if is_masked(host) {
        return Err(Rejection::Masked);
    }
    match bracketed(host).and_then(address::ipv6) {
        Some(_) => Ok(()),
        None => Err(Rejection::MalformedDestination),
    }
}

/// What Xray's `isValidDomain` lets through (common/protocol/address.go); IPv4 is a part of it.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

fn has_scheme(to: &[u8]) -> bool {
    let scheme = to
        .iter()
        .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'.' | b'-'))
        .count();
    to.first().is_some_and(u8::is_ascii_alphabetic)
        && to.get(scheme..).is_some_and(|rest| rest.starts_with(b"://"))
}

/// Everything after the timestamp and its space; `None` when there is none or it cannot be.
fn after_timestamp(line: &[u8]) -> Option<&[u8]> {
    #[rustfmt::skip]
    let [
        y1, y2, y3, y4, b'/', o1, o2, b'/', d1, d2, b' ',
        h1, h2, b':', m1, m2, b':', s1, s2, rest @ ..
    ] = line else { return None };
    let pairs = [[y1, y2], [y3, y4], [o1, o2], [d1, d2], [h1, h2], [m1, m2], [s1, s2]];
    // One question for all digits: fourteen early ends would cost more than they save.
    if !pairs.as_flattened().iter().fold(true, |digits, byte| digits & byte.is_ascii_digit()) {
        return None;
    }
    let [century, year, month, day, hour, minute, second] =
        pairs.map(|[tens, ones]| (tens - b'0') * 10 + (ones - b'0'));
    let leap_year = year % 4 == 0 && (year != 0 || century % 4 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap_year => 29,
        2 => 28,
        _ => return None,
    };
    // Go's clock has no leap seconds.
    if !((1..=days).contains(&day) && hour < 24 && minute < 60 && second < 60) {
        return None;
    }
    match rest {
        [b' ', rest @ ..] => Some(rest),
        [b'.', digits @ ..] => {
            let (micros, rest) = digits.split_first_chunk::<6>()?;
            if micros.iter().all(u8::is_ascii_digit) { rest.strip_prefix(b" ") } else { None }
        }
        _ => None,
    }
}

/// The source, and what follows the space behind it; `None` when nothing does.
fn split_source(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let from = masked_whole_end(rest).unwrap_or(0);
    let space = from + memchr(b' ', rest.get(from..)?)?;
    Some((rest.get(..space)?, rest.get(space + 1..)?))
}

/// The destination, and what follows it with its leading space.
fn split_destination(rest: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr(b' ', rest).unwrap_or(rest.len());
    rest.split_at_checked(end).unwrap_or_default()
}

fn split_transport(text: &[u8]) -> (Transport, &[u8]) {
    if let Some(bare) = text.strip_prefix(b"tcp:") {
        (Transport::Tcp, bare)
    } else if let Some(bare) = text.strip_prefix(b"udp:") {
        (Transport::Udp, bare)
    } else {
        (Transport::Unstated, text)
    }
}

/// `host:port` at the last colon; a host with colons of its own stands in brackets.
fn split_port(text: &[u8]) -> Option<(&[u8], u16)> {
    let colon = text.iter().rposition(|byte| *byte == b':')?;
    let host = text.get(..colon)?;
    if host.is_empty() {
        return None;
    }
    Some((host, address::port(text.get(colon + 1..)?)?))
}

fn bracketed(host: &[u8]) -> Option<&[u8]> {
    host.strip_prefix(b"[")?.strip_suffix(b"]")
}

/// `198.*.*.*`, `[2001:db8::/32]`, `[Masked IPv4]`: what `maskAddress` makes of a host.
fn is_masked(host: &[u8]) -> bool {
    if MASKED_WHOLE.contains(&host) {
        return true;
    }
    let Some(inside) = bracketed(host) else {
        return memchr(b'*', host).is_some()
            && host.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'*'));
    };
    let Some(slash) = memchr(b'/', inside) else { return false };
    let (network, prefix) = inside.split_at_checked(slash).unwrap_or_default();
    network.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b':')
        && matches!(prefix.len(), 2..=4)
        && prefix.iter().skip(1).all(u8::is_ascii_digit)
}

/// Where a wholly masked host at the front ends.
fn masked_whole_end(text: &[u8]) -> Option<usize> {
    let (_, bare) = split_transport(text);
    let mask = MASKED_WHOLE.into_iter().find(|mask| bare.starts_with(mask))?;
    Some(text.len() - bare.len() + mask.len())
}

/// The words alone decide, not the rest: a name with a newline in it breaks the record in two, and
/// its first half must still be known for what it is.
fn is_dns_answer(rest: &[u8]) -> bool {
    [b"got answer: ".as_slice(), b"cache HIT: ", b"cache OPTIMISTE: "]
        .into_iter()
        .any(|words| rest.starts_with(words))
}

#[cfg(test)]
mod tests;
