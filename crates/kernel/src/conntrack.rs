//! Connection tracking: make the kernel forget the UDP flows of a banned source.
//!
//! Takes networks and protected ports; deletes matching entries one by one and says how many. An
//! entry that is kept would let the source through wherever a rule accepts what is established.
//! Matching is done here, on a full dump: the kernel's own filter (`CTA_FILTER`) is inverted for
//! IPv6, and a delete without a tuple empties the whole table (both measured). So a delete can only
//! be written from an entry that the kernel sent, which has one. TCP is left alone: its
//! connections are reset, and tracking picks a live one up again anyway.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

use crate::{
    error::{Errno, Error},
    netlink::{Dumped, Family, Socket},
    networks::Networks,
    wire::{Attribute, Attributes, Message, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, Writer},
};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`, linux/netfilter/nfnetlink.h and
/// `nfnetlink_conntrack.h`: an entry in a dump.
const CT_NEW: u16 = 0x0100;
/// `IPCTNL_MSG_CT_GET`.
const CT_GET: u16 = 0x0101;
/// `IPCTNL_MSG_CT_DELETE`.
const CT_DELETE: u16 = 0x0102;
/// `struct nfgenmsg`: family, version, resource id. `AF_UNSPEC` asks for both families.
const AF_UNSPEC: u8 = 0;
const NFNETLINK_V0: u8 = 0;
const NFGENMSG_LEN: usize = 4;
/// `IPPROTO_UDP`.
const IPPROTO_UDP: u8 = 17;

// `enum ctattr_type`.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
// `enum ctattr_tuple`, `enum ctattr_ip`, `enum ctattr_l4proto`.
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;

/// How often an interrupted walk over the table is done in all.
const WALKS: usize = 2;

/// The connection tracking table of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    dumps: Socket,
    /// A socket of its own, so that entries are deleted while the dump runs and none is stored.
    deletes: Socket,
    request: Writer,
}

impl Conntrack {
    /// Opens the table of the calling thread's network namespace. Its use takes `CAP_NET_ADMIN`.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            dumps: Socket::open(Family::Netfilter)?,
            deletes: Socket::open(Family::Netfilter)?,
            request: Writer::new(),
        })
    }

    /// Deletes the UDP entries that a source in `sources`, or exactly one of the clients in `flows`,
    /// opened to one of `ports`, and hands the client of each to `deleted`. `ports` are those that
    /// the local sockets have, after any DNAT or REDIRECT.
    ///
    /// Nothing where the kernel tracks nothing. It walks the whole table, about 2 µs for each entry
    /// in it, and 5 µs more for each entry deleted.
    pub fn delete_udp(
        &mut self,
        sources: &Networks,
        flows: &[SocketAddr],
        ports: &[RangeInclusive<u16>],
        mut deleted: impl FnMut(SocketAddr),
    ) -> Result<(), Error> {
        let flows: HashSet<SocketAddr> =
            flows.iter().map(|flow| (flow.ip().to_canonical(), flow.port()).into()).collect();
        for _ in 0..WALKS {
            let is_meant = |entry: &Entry<'_>| {
                (sources.contains(entry.source.ip()) || flows.contains(&entry.source))
                    && ports.iter().any(|range| range.contains(&entry.socket_port))
            };
            if self.walk(is_meant, &mut deleted)? == Dumped::Whole {
                break;
            }
        }
        Ok(())
    }

    fn walk(
        &mut self,
        is_meant: impl Fn(&Entry<'_>) -> bool,
        deleted: &mut impl FnMut(SocketAddr),
    ) -> Result<Dumped, Error> {
        let Self { dumps, deletes, request } = self;
        write_dump(request, dumps.next_sequence());
        let mut outcome = Ok(());
        let mut deletion = Writer::new();
        let dumped = dumps.dumped(request, |message| {
            let Some(entry) = Entry::read(message).filter(&is_meant) else { return };
            if outcome.is_ok() {
                write_delete(&mut deletion, deletes.next_sequence(), &entry);
                outcome = match deletes.acknowledged(&deletion) {
                    Ok(Ok(())) => {
                        deleted(entry.source);
                        Ok(())
                    }
                    Ok(Err(Errno::NOENT)) => Ok(()),
                    Ok(Err(source)) => Err(Error::Refused {
                        operation: "delete",
                        object: format!("the conntrack entry of {}", entry.source),
                        source,
                    }),
                    Err(error) => Err(error),
                };
            }
        });
        outcome?;
        match dumped {
            Ok(Ok(dumped)) => Ok(dumped),
            // nfnetlink answers so for a subsystem that is not there and cannot be loaded.
            Ok(Err(Errno::INVAL | Errno::OPNOTSUPP)) => Ok(Dumped::Whole),
            Ok(Err(source)) => Err(Error::Refused {
                operation: "list",
                object: "the conntrack table".to_owned(),
                source,
            }),
            Err(error) if error.errno() == Some(Errno::NOBUFS) => Ok(Dumped::Interrupted),
            Err(error) => Err(error),
        }
    }
}

/// A UDP entry of the table. Whatever names it in a delete is kept as the kernel wrote it.
#[derive(Debug)]
struct Entry<'a> {
    /// Who opened the flow: the source of the original direction. No scope id.
    source: SocketAddr,
    /// The port of the socket that answers: the source port of the reply direction, which NAT has
    /// not touched.
    socket_port: u16,
    /// `nfgen_family`.
    family: u8,
    original: &'a [u8],
    id: &'a [u8],
    zone: Option<&'a [u8]>,
}

impl<'a> Entry<'a> {
    /// `None` for what is not UDP, and for what lacks a tuple or an id.
    fn read(message: Message<'a>) -> Option<Self> {
        if message.kind != CT_NEW {
            return None;
        }
        let (&[family, ..], attributes) = message.payload.split_first_chunk::<NFGENMSG_LEN>()?;
        let (mut original, mut reply, mut id, mut zone) = (None, None, None, None);
        for attribute in Attributes::new(attributes) {
            match attribute.kind {
                CTA_TUPLE_ORIG => original = Some(attribute),
                CTA_TUPLE_REPLY => reply = Some(attribute),
                CTA_ID => id = Some(attribute.payload),
                CTA_ZONE => zone = Some(attribute.payload),
                _ => {}
            }
        }
        let original = original?;
        Some(Self {
            source: (read_source_ip(&original)?, read_udp_source_port(&original)?).into(),
            socket_port: read_udp_source_port(&reply?)?,
            family,
            original: original.payload,
            id: id?,
            zone,
        })
    }
}

fn write_dump(request: &mut Writer, sequence: u32) {
    request.clear();
    request.begin(CT_GET, NLM_F_DUMP, sequence);
    request.put(&[AF_UNSPEC, NFNETLINK_V0, 0, 0]);
    request.end();
}

/// The only writer of a delete. It takes an entry, so that there is always a tuple in it.
fn write_delete(request: &mut Writer, sequence: u32, entry: &Entry<'_>) {
    request.clear();
    request.begin(CT_DELETE, NLM_F_ACK, sequence);
    request.put(&[entry.family, NFNETLINK_V0, 0, 0]);
    request.attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, entry.original);
    request.attribute(CTA_ID, entry.id);
    if let Some(zone) = entry.zone {
        request.attribute(CTA_ZONE, zone);
    }
    request.end();
}

fn read_source_ip(tuple: &Attribute<'_>) -> Option<IpAddr> {
    let ip = tuple.nested().find(|attribute| attribute.kind == CTA_TUPLE_IP)?;
    ip.nested().find_map(|attribute| match attribute.kind {
        CTA_IP_V4_SRC => Some(Ipv4Addr::from(<[u8; 4]>::try_from(attribute.payload).ok()?).into()),
        CTA_IP_V6_SRC => Some(Ipv6Addr::from(<[u8; 16]>::try_from(attribute.payload).ok()?).into()),
        _ => None,
    })
}

fn read_udp_source_port(tuple: &Attribute<'_>) -> Option<u16> {
    let protocol = tuple.nested().find(|attribute| attribute.kind == CTA_TUPLE_PROTO)?;
    let field = |kind| protocol.nested().find(|attribute| attribute.kind == kind);
    (field(CTA_PROTO_NUM)?.payload.first() == Some(&IPPROTO_UDP))
        .then(|| field(CTA_PROTO_SRC_PORT))
        .flatten()
        .and_then(|port| Some(u16::from_be_bytes(*port.payload.first_chunk()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Messages;

    /// `udp 17 29 src=10.9.0.2 dst=10.9.0.1 sport=1001 dport=9000 [UNREPLIED] src=10.9.0.1
    /// dst=10.9.0.2 sport=8443 dport=1001` after a REDIRECT of 9000 to 8443, in zone 7.
    #[rustfmt::skip]
    const ENTRY: [u8; 128] = [
        // nfgenmsg: AF_INET, version 0.
        2, 0, 0, 0,
        // CTA_TUPLE_ORIG, nested: CTA_TUPLE_IP, CTA_TUPLE_PROTO.
        52, 0, 1, 0x80,
            20, 0, 1, 0x80,   8, 0, 1, 0, 10, 9, 0, 2,   8, 0, 2, 0, 10, 9, 0, 1,
            28, 0, 2, 0x80,   5, 0, 1, 0, 17, 0, 0, 0,   6, 0, 2, 0, 0x03, 0xe9, 0, 0,
                              6, 0, 3, 0, 0x23, 0x28, 0, 0,
        // CTA_TUPLE_REPLY, nested, the same.
        52, 0, 2, 0x80,
            20, 0, 1, 0x80,   8, 0, 1, 0, 10, 9, 0, 1,   8, 0, 2, 0, 10, 9, 0, 2,
            28, 0, 2, 0x80,   5, 0, 1, 0, 17, 0, 0, 0,   6, 0, 2, 0, 0x20, 0xfb, 0, 0,
                              6, 0, 3, 0, 0x03, 0xe9, 0, 0,
        // CTA_ID.
        8, 0, 12, 0, 0xde, 0xad, 0xbe, 0xef,
        // CTA_ZONE.
        6, 0, 18, 0, 0, 7, 0, 0,
        // CTA_USE, which does not matter here.
        4, 0, 11, 0,
    ];

    fn read(payload: &[u8]) -> Option<Entry<'_>> {
        Entry::read(Message { kind: CT_NEW, flags: 2, sequence: 7, payload })
    }

    // conntrack -L, of both families at once.
    #[test]
    fn the_dump_asks_for_everything() {
        let mut request = Writer::new();
        write_dump(&mut request, 7);
        #[rustfmt::skip]
        let expected = [
            20, 0, 0, 0,   0x01, 0x01,   0x01, 0x03,   7, 0, 0, 0,   0, 0, 0, 0,
            0, 0, 0, 0,
        ];
        assert_eq!(request.bytes(), expected);
    }

    // conntrack -D -p udp -s 10.9.0.2 -d 10.9.0.1 --sport 1001 --dport 9000 --orig-zone 7, with the
    // entry's id, so that another one with the same tuple is not hit.
    #[test]
    fn a_delete_names_the_entry_by_its_tuple_its_id_and_its_zone() {
        let mut request = Writer::new();
        write_delete(&mut request, 7, &read(&ENTRY).unwrap());
        #[rustfmt::skip]
        let mut expected = vec![
            88, 0, 0, 0,   0x02, 0x01,   0x05, 0x00,   7, 0, 0, 0,   0, 0, 0, 0,
            2, 0, 0, 0,
        ];
        expected.extend(&ENTRY[4..56]);
        expected.extend([8, 0, 12, 0, 0xde, 0xad, 0xbe, 0xef]);
        expected.extend([6, 0, 18, 0, 0, 7, 0, 0]);
        assert_eq!(request.bytes(), expected);
    }

    #[test]
    fn an_entry_is_its_source_and_the_port_of_the_socket_behind_nat() {
        let entry = read(&ENTRY).unwrap();
        assert_eq!(entry.source, "10.9.0.2:1001".parse().unwrap());
        assert_eq!(entry.socket_port, 8443);
    }

    #[test]
    fn what_is_not_udp_or_has_no_tuple_is_no_entry() {
        let with = |at: usize, value: u8| {
            let mut entry = ENTRY;
            entry[at] = value;
            read(&entry).is_some()
        };
        assert!(with(0, 2));
        assert!(!with(36, 6), "TCP in the original tuple");
        assert!(!with(88, 6), "TCP in the reply tuple");
        assert!(!with(6, 99), "no original tuple");
        assert!(!with(58, 99), "no reply tuple");
        assert!(!with(110, 99), "no id");
        let deleted = Message { kind: CT_DELETE, flags: 0, sequence: 7, payload: &ENTRY };
        assert!(Entry::read(deleted).is_none());
    }

    #[test]
    fn no_entry_however_broken_makes_a_delete_without_a_tuple() {
        let mut request = Writer::new();
        let mut read_any = 0;
        for at in 0..ENTRY.len() {
            for value in 0..=255 {
                let mut bytes = ENTRY;
                bytes[at] = value;
                for end in [at, ENTRY.len()] {
                    let Some(entry) = read(&bytes[..end]) else { continue };
                    read_any += 1;
                    write_delete(&mut request, 7, &entry);
                    let messages: Vec<_> = Messages::new(request.bytes()).collect();
                    assert_eq!(messages.len(), 1);
                    let mut attributes = Attributes::new(&messages[0].payload[NFGENMSG_LEN..]);
                    let tuple = attributes.next().unwrap();
                    assert_eq!(tuple.kind, CTA_TUPLE_ORIG);
                    assert!(read_source_ip(&tuple).is_some());
                    assert_eq!(attributes.next().unwrap().kind, CTA_ID);
                }
            }
        }
        assert!(read_any > ENTRY.len());
    }
}
