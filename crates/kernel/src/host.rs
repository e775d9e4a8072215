//! This host's own addresses and its gateways, and the news that they changed.
//!
//! Takes the kernel's address and route tables; makes the lists of what must never be banned: the
//! addresses on the interfaces, whole networks routed to this host (`ip route add local …`), and
//! the next hops of default routes. Needs no capability. It does not keep the lists: whoever hears
//! of a change looks again.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd},
};

use crate::{
    error::{Errno, Error},
    netlink::{Dumped, Family, Socket},
    networks::{AF_INET, AF_INET6},
    wire::{Attribute, Attributes, Message, NLM_F_DUMP, Writer, read_u16},
};

/// The most addresses, networks and gateways that a look keeps. A host has dozens; one that has
/// more than this says so, and [`HostNetworks::is_complete`] is false.
pub const CAPACITY: usize = 65_536;

/// How often an interrupted dump is done in all.
const WALKS: usize = 3;

// linux/rtnetlink.h.
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
/// `RTNLGRP_IPV4_IFADDR` (5), `RTNLGRP_IPV4_ROUTE` (7), `RTNLGRP_IPV6_IFADDR` (9) and
/// `RTNLGRP_IPV6_ROUTE` (11) as bits of the bind mask.
const GROUPS: u32 = 1 << (5 - 1) | 1 << (7 - 1) | 1 << (9 - 1) | 1 << (11 - 1);
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_VIA: u16 = 18;
/// `struct rtmsg`, and as many zero bytes as ask for everything.
const RTMSG_LEN: usize = 12;
/// `struct rtnexthop`: length, flags, hops, interface.
const NEXT_HOP_LEN: usize = 8;

// linux/if_addr.h.
const IFADDRMSG_LEN: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// What belongs to this host, and who carries its traffic. Sorted and without doubles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNetworks {
    /// Single addresses: of interfaces, and of `local` routes to one address.
    pub addresses: Vec<IpAddr>,
    /// `local` routes to more than one address, as (address, prefix length): `127.0.0.0/8`, `AnyIP`.
    pub networks: Vec<(IpAddr, u8)>,
    /// The next hops of the default routes of every table.
    pub gateways: Vec<IpAddr>,
    /// Nothing is missing: there were no more than [`CAPACITY`], and the tables stood still.
    pub is_complete: bool,
}

/// A subscription to changes of [`HostNetworks`], and the means to look at them.
#[derive(Debug)]
pub struct HostEvents {
    events: Socket,
    requests: Socket,
}

impl HostEvents {
    /// Subscribes in the network namespace of the calling thread.
    pub fn subscribe() -> Result<Self, Error> {
        Ok(Self {
            events: Socket::open_with_groups(Family::Route, GROUPS)?,
            requests: Socket::open(Family::Route)?,
        })
    }

    /// Takes all waiting events, without blocking. `true`: something of [`HostNetworks`] changed,
    /// or events were lost and it may have. Routes of other kinds, which a router changes all day,
    /// do not count.
    pub fn changed(&mut self) -> Result<bool, Error> {
        let mut changed = false;
        let whole = self.events.events(|message| {
            changed |= match message.kind {
                RTM_NEWADDR | RTM_DELADDR => true,
                RTM_NEWROUTE | RTM_DELROUTE => Route::read(message.payload).is_some(),
                _ => false,
            };
        })?;
        Ok(changed || !whole)
    }

    /// Reads the tables. On a router the walk passes over every route there is, and keeps only what
    /// [`HostNetworks`] names.
    pub fn look(&mut self) -> Result<HostNetworks, Error> {
        let mut seen = Seen { room: CAPACITY, ..Seen::default() };
        let addresses = self.walk(RTM_GETADDR, "the host's addresses", |message| {
            if message.kind == RTM_NEWADDR
                && let Some(address) = read_own_address(message.payload)
            {
                seen.keep(|seen| seen.addresses.insert(address));
            }
        })?;
        let routes = self.walk(RTM_GETROUTE, "the host's routes", |message| {
            if message.kind != RTM_NEWROUTE {
                return;
            }
            match Route::read(message.payload) {
                Some(Route::Local(address, length)) if is_single(address, length) => {
                    seen.keep(|seen| seen.addresses.insert(address));
                }
                Some(Route::Local(address, length)) => {
                    seen.keep(|seen| seen.networks.insert((address, length)));
                }
                Some(Route::Default(attributes)) => {
                    for gateway in gateways(attributes) {
                        seen.keep(|seen| seen.gateways.insert(gateway));
                    }
                }
                None => {}
            }
        })?;
        Ok(HostNetworks {
            is_complete: !seen.overflowed && [addresses, routes] == [Dumped::Whole; 2],
            addresses: seen.addresses.into_iter().collect(),
            networks: seen.networks.into_iter().collect(),
            gateways: seen.gateways.into_iter().collect(),
        })
    }

    /// Dumps a table of both address families. What an interrupted walk found is found again or
    /// was there a moment ago; either may be kept.
    fn walk(
        &mut self,
        kind: u16,
        object: &str,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<Dumped, Error> {
        for _ in 0..WALKS {
            let mut request = Writer::new();
            request.begin(kind, NLM_F_DUMP, self.requests.next_sequence());
            // AF_UNSPEC, and no further restriction.
            request.put(&[0; RTMSG_LEN]);
            request.end();
            match self.requests.dumped(&request, &mut each) {
                Ok(Ok(Dumped::Whole)) => return Ok(Dumped::Whole),
                Ok(Ok(Dumped::Interrupted)) => {}
                Err(error) if error.errno() == Some(Errno::NOBUFS) => {}
                Ok(Err(source)) => {
                    return Err(Error::Refused {
                        operation: "list",
                        object: object.to_owned(),
                        source,
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Dumped::Interrupted)
    }
}

/// Readable when an event waits.
impl AsFd for HostEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

#[derive(Default)]
struct Seen {
    addresses: BTreeSet<IpAddr>,
    networks: BTreeSet<(IpAddr, u8)>,
    gateways: BTreeSet<IpAddr>,
    room: usize,
    overflowed: bool,
}

impl Seen {
    /// Inserts while there is room; the first ones stay.
    fn keep(&mut self, insert: impl FnOnce(&mut Self) -> bool) {
        if self.room == 0 {
            self.overflowed = true;
        } else if insert(self) {
            self.room -= 1;
        }
    }
}

/// A route that says something about this host.
enum Route<'a> {
    /// Whatever is sent there arrives here.
    Local(IpAddr, u8),
    /// The way to everywhere, with its attributes.
    Default(Attributes<'a>),
}

impl<'a> Route<'a> {
    /// Reads a `struct rtmsg`: family, lengths of destination and source, TOS, table, protocol,
    /// scope, type, flags; then the attributes.
    fn read(payload: &'a [u8]) -> Option<Self> {
        let (header, attributes) = payload.split_first_chunk::<RTMSG_LEN>()?;
        let &[_family, length, _, _, _table, _protocol, _scope, kind, ..] = header;
        let attributes = Attributes::new(attributes);
        match (kind, length) {
            (RTN_UNICAST, 0) => Some(Self::Default(attributes)),
            (RTN_LOCAL, _) => {
                let destination = attributes.clone().find(|it| it.kind == RTA_DST);
                // `local default` has no destination to read: everything is this host's.
                let address = match (destination, header) {
                    (Some(destination), _) => read_ip(destination.payload)?,
                    (None, [AF_INET, ..]) => Ipv4Addr::UNSPECIFIED.into(),
                    (None, [AF_INET6, ..]) => Ipv6Addr::UNSPECIFIED.into(),
                    (None, _) => return None,
                };
                Some(Self::Local(address, length))
            }
            _ => None,
        }
    }
}

/// The next hops in a route's attributes, several of them in a multipath route.
fn gateways(attributes: Attributes<'_>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for attribute in attributes {
        match attribute.kind {
            RTA_MULTIPATH => {
                let mut rest = attribute.payload;
                while let Some(length) = read_u16(rest, 0).map(usize::from)
                    && let Some(hop) = rest.get(NEXT_HOP_LEN..length)
                {
                    found.extend(Attributes::new(hop).filter_map(|it| read_gateway(&it)));
                    rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                }
            }
            _ => found.extend(read_gateway(&attribute)),
        }
    }
    found
}

/// `RTA_VIA` is a `struct rtvia`: a 16-bit family, then the address; it lets an IPv4 route have an
/// IPv6 gateway.
fn read_gateway(attribute: &Attribute<'_>) -> Option<IpAddr> {
    match attribute.kind {
        RTA_GATEWAY => read_ip(attribute.payload),
        RTA_VIA => read_ip(attribute.payload.get(2..)?),
        _ => None,
    }
}

/// Reads a `struct ifaddrmsg` and what follows it. On a point-to-point link `IFA_ADDRESS` is the
/// other end, and `IFA_LOCAL` is there too.
fn read_own_address(payload: &[u8]) -> Option<IpAddr> {
    let attributes = Attributes::new(payload.get(IFADDRMSG_LEN..)?);
    let of_kind = |kind| attributes.clone().find(|attribute| attribute.kind == kind);
    read_ip(of_kind(IFA_LOCAL).or_else(|| of_kind(IFA_ADDRESS))?.payload)
}

fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| Ipv6Addr::from(v6).into())
}

fn is_single(address: IpAddr, length: u8) -> bool {
    length == if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `default nexthop via 10.9.0.21 dev eth0 nexthop via inet6 fe80::7 dev eth0`, table 79.
    #[rustfmt::skip]
    const MULTIPATH: [u8; 72] = [
        // rtmsg: AF_INET, destination /0, source /0, TOS, table, protocol, scope, type, flags.
        2, 0, 0, 0, 79, 3, 0, 1, 0, 0, 0, 0,
        // RTA_TABLE.
        8, 0, 15, 0, 79, 0, 0, 0,
        // RTA_MULTIPATH: two `struct rtnexthop`.
        52, 0, 9, 0,
            // 16 bytes, interface 2; RTA_GATEWAY.
            16, 0, 0, 0, 2, 0, 0, 0,   8, 0, 5, 0, 10, 9, 0, 21,
            // 32 bytes, interface 2; RTA_VIA with AF_INET6 and, as no link sets it, an RTA_FLOW.
            32, 0, 0, 0, 2, 0, 0, 0,   22, 0, 18, 0, 10, 0,
                0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0,
    ];

    fn gateways_of(payload: &[u8]) -> Vec<IpAddr> {
        match Route::read(payload) {
            Some(Route::Default(attributes)) => gateways(attributes),
            _ => Vec::new(),
        }
    }

    #[test]
    fn every_next_hop_of_a_default_route_is_a_gateway() {
        let expected: [IpAddr; 2] = ["10.9.0.21".parse().unwrap(), "fe80::7".parse().unwrap()];
        assert_eq!(gateways_of(&MULTIPATH), expected);
    }

    #[test]
    fn a_route_that_is_neither_local_nor_default_says_nothing() {
        let mut route = MULTIPATH;
        route[1] = 24;
        assert!(Route::read(&route).is_none(), "to a network");
        route[1] = 0;
        route[7] = 7;
        assert!(Route::read(&route).is_none(), "unreachable default");
    }

    #[test]
    fn no_truncation_and_no_false_length_of_a_route_is_read_past_its_end() {
        for end in 0..MULTIPATH.len() {
            let found = gateways_of(&MULTIPATH[..end]);
            assert!(found.is_empty(), "{end} bytes: {found:?}");
        }
        for at in [20, 24, 32, 40, 48] {
            for length in 0..=255 {
                let mut route = MULTIPATH;
                route[at] = length;
                assert!(gateways_of(&route).len() <= 2, "length {length} at {at}");
            }
        }
    }

    #[test]
    fn the_own_address_is_the_local_one_where_there_are_two() {
        // ifaddrmsg, IFA_ADDRESS 192.0.2.2 (the other end), IFA_LOCAL 192.0.2.1.
        #[rustfmt::skip]
        let message = [
            2, 32, 0, 0, 2, 0, 0, 0,
            8, 0, 1, 0, 192, 0, 2, 2,
            8, 0, 2, 0, 192, 0, 2, 1,
        ];
        assert_eq!(read_own_address(&message), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(read_own_address(&message[..16]), Some("192.0.2.2".parse().unwrap()));
        for end in 0..16 {
            assert_eq!(read_own_address(&message[..end]), None, "{end} bytes");
        }
    }

    #[test]
    fn the_first_ones_are_kept_when_there_is_no_room_for_more() {
        let mut seen = Seen { room: 2, ..Seen::default() };
        for last in [1, 1, 2] {
            seen.keep(|seen| seen.addresses.insert([10, 0, 0, last].into()));
        }
        assert!(!seen.overflowed, "a double takes no room");
        seen.keep(|seen| seen.networks.insert(([10, 0, 0, 0].into(), 8)));
        assert!(seen.overflowed && seen.networks.is_empty());
    }
}
