//! The messages of ipset, both ways and pure.
//!
//! Takes set names, targets and options; writes the requests of `ipset(8)`, without its line
//! numbers, and reads the kernel's answers. It opens no socket and decides nothing. What an answer
//! leaves out or garbles is `None`, never a guess.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use crate::{
    ban::{BanTarget, bits},
    wire::{
        Attribute, Attributes, Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, Writer,
    },
};

/// What a set is made of. `Unspecified` is read from sets that have no family, such as `list:set`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetFamily {
    /// `AF_INET`.
    Inet,
    /// `AF_INET6`.
    Inet6,
    /// `AF_UNSPEC`.
    Unspecified,
}

impl SetFamily {
    fn code(self) -> u8 {
        match self {
            Self::Inet => 2,
            Self::Inet6 => 10,
            Self::Unspecified => 0,
        }
    }

    fn of(code: u8) -> Self {
        match code {
            2 => Self::Inet,
            10 => Self::Inet6,
            _ => Self::Unspecified,
        }
    }
}

/// A hash set to be created, always with the timeout extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewSet<'a> {
    /// `hash:ip` and so on.
    pub type_name: &'a str,
    /// The revision of the type; see [`IpSets::revisions`](crate::ipset::IpSets::revisions).
    pub revision: u8,
    /// The family of its addresses.
    pub family: SetFamily,
    /// Timeout of entries that are added without one, seconds; 0 is for ever.
    pub timeout: u32,
    /// Buckets at first.
    pub hash_size: u32,
    /// Entries at most.
    pub max_elements: u32,
}

/// What a set says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `hash:ip` and so on.
    pub type_name: String,
    /// The revision of the type that it was created with.
    pub revision: u8,
    /// The family of its addresses.
    pub family: SetFamily,
    /// Default timeout, seconds; `None` without the timeout extension.
    pub timeout: Option<u32>,
    /// Buckets now; 0 where the type has none.
    pub hash_size: u32,
    /// Entries at most; 0 where the type has no such bound.
    pub max_elements: u32,
    /// Rules and other sets that name it.
    pub references: u32,
    /// Entries now; those that ran out are counted until the kernel collects them.
    pub entries: u32,
    /// It was made with `netmask` or `bitmask`: an entry stands for a whole network.
    pub masked: bool,
    /// It was made with `forceadd`: when full, an add throws out another entry.
    pub force_add: bool,
}

/// One entry of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it bans; `None` for what no target of ours can say (a MAC, an interface, a TCP port,
    /// an exception).
    pub target: Option<BanTarget>,
    /// Seconds left; 0 is for ever, `None` is a set without the timeout extension.
    pub timeout: Option<u32>,
}

/// What is done to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Add it, or give it this timeout if it is there.
    Add,
    /// Add it, or answer `IPSET_ERR_EXIST` if it is there.
    AddNew,
    /// Delete it, or answer `IPSET_ERR_EXIST` if it is not there.
    Delete,
    /// Answer `IPSET_ERR_EXIST` if it is not there. An address is also in a network's entry.
    Test,
}

/// One thing to do with one entry of one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation<'a> {
    /// What to do.
    pub verb: Verb,
    /// The set.
    pub set: &'a str,
    /// The entry, in canonical form.
    pub target: BanTarget,
    /// Seconds; 0 is for ever. `None` sends none: an added entry gets the set's default. An add or
    /// delete that carries one is refused with `IPSET_ERR_TIMEOUT` by a set without timeouts.
    pub timeout: Option<u32>,
}

impl Operation<'_> {
    /// Appends this operation's message.
    pub(crate) fn write(&self, request: &mut Writer, sequence: u32) {
        let (command, flags) = match self.verb {
            Verb::Add => (CMD_ADD, NLM_F_ACK),
            Verb::AddNew => (CMD_ADD, NLM_F_ACK | NLM_F_EXCL),
            Verb::Delete => (CMD_DEL, NLM_F_ACK | NLM_F_EXCL),
            Verb::Test => (CMD_TEST, NLM_F_ACK),
        };
        begin(request, command, flags, sequence);
        request.attribute_str(ATTR_SETNAME, self.set);
        let data = request.begin_nest(ATTR_DATA);
        match self.target {
            BanTarget::Network { address, prefix } => {
                put_address(request, address);
                if prefix != bits(address) {
                    request.attribute(ATTR_CIDR, &[prefix]);
                }
                self.put_timeout(request);
            }
            BanTarget::Flow { address, port } => {
                put_address(request, address);
                request.attribute(ATTR_PORT | NLA_F_NET_BYTEORDER, &port.to_be_bytes());
                self.put_timeout(request);
                request.attribute(ATTR_PROTO, &[IPPROTO_UDP]);
            }
        }
        request.end_nest(data);
        request.end();
    }

    fn put_timeout(&self, request: &mut Writer) {
        if let Some(timeout) = self.timeout {
            put_u32(request, ATTR_TIMEOUT, timeout);
        }
    }
}

/// `IPSET_CMD_PROTOCOL`: which protocols does the kernel speak?
pub(crate) fn write_protocol(request: &mut Writer, sequence: u32) {
    begin(request, CMD_PROTOCOL, 0, sequence);
    request.end();
}

/// `IPSET_CMD_TYPE`: which revisions of a set type does the kernel know?
pub(crate) fn write_type(request: &mut Writer, sequence: u32, type_name: &str, family: SetFamily) {
    begin(request, CMD_TYPE, 0, sequence);
    request.attribute_str(ATTR_TYPENAME, type_name);
    request.attribute(ATTR_FAMILY, &[family.code()]);
    request.end();
}

/// `IPSET_CMD_CREATE`, with `NLM_F_EXCL`: without it the kernel would keep a set of the other
/// family and say nothing.
pub(crate) fn write_create(request: &mut Writer, sequence: u32, name: &str, new: &NewSet<'_>) {
    begin(request, CMD_CREATE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence);
    request.attribute_str(ATTR_SETNAME, name);
    request.attribute_str(ATTR_TYPENAME, new.type_name);
    request.attribute(ATTR_REVISION, &[new.revision]);
    request.attribute(ATTR_FAMILY, &[new.family.code()]);
    let data = request.begin_nest(ATTR_DATA);
    put_u32(request, ATTR_TIMEOUT, new.timeout);
    put_u32(request, ATTR_HASHSIZE, new.hash_size);
    put_u32(request, ATTR_MAXELEM, new.max_elements);
    request.end_nest(data);
    request.end();
}

/// `IPSET_CMD_DESTROY`, with `NLM_F_EXCL`: without it the kernel says Ok to a set that is not there.
pub(crate) fn write_destroy(request: &mut Writer, sequence: u32, name: &str) {
    begin(request, CMD_DESTROY, NLM_F_ACK | NLM_F_EXCL, sequence);
    request.attribute_str(ATTR_SETNAME, name);
    request.end();
}

/// `IPSET_CMD_RENAME`.
pub(crate) fn write_rename(request: &mut Writer, sequence: u32, from: &str, to: &str) {
    write_pair(request, CMD_RENAME, sequence, from, to);
}

/// `IPSET_CMD_SWAP`.
pub(crate) fn write_swap(request: &mut Writer, sequence: u32, one: &str, other: &str) {
    write_pair(request, CMD_SWAP, sequence, one, other);
}

/// `IPSET_CMD_LIST` of one set: its entries and header, or only its header.
pub(crate) fn write_list(request: &mut Writer, sequence: u32, name: &str, only_header: bool) {
    begin(request, CMD_LIST, NLM_F_DUMP, sequence);
    request.attribute_str(ATTR_SETNAME, name);
    if only_header {
        put_u32(request, ATTR_FLAGS, FLAG_LIST_HEADER);
    }
    request.end();
}

fn write_pair(request: &mut Writer, command: u16, sequence: u32, one: &str, other: &str) {
    begin(request, command, NLM_F_ACK, sequence);
    request.attribute_str(ATTR_SETNAME, one);
    request.attribute_str(ATTR_SETNAME2, other);
    request.end();
}

/// The attributes of an ipset message: what follows its `struct nfgenmsg`.
fn attributes(message: Message<'_>) -> Attributes<'_> {
    Attributes::new(message.payload.get(NFGENMSG.len()..).unwrap_or_default())
}

/// The lowest and the highest protocol that the kernel speaks; a kernel that names no lowest has
/// only one.
pub(crate) fn read_protocol(message: Message<'_>) -> Option<RangeInclusive<u8>> {
    let (mut lowest, mut highest) = (None, None);
    for attribute in attributes(message) {
        match attribute.kind {
            ATTR_PROTOCOL => highest = attribute.payload.first().copied(),
            ATTR_PROTOCOL_MIN => lowest = attribute.payload.first().copied(),
            _ => {}
        }
    }
    let highest = highest?;
    Some(lowest.unwrap_or(highest)..=highest)
}

pub(crate) fn read_revisions(message: Message<'_>) -> Option<RangeInclusive<u8>> {
    let (mut lowest, mut highest) = (0, None);
    for attribute in attributes(message) {
        match attribute.kind {
            ATTR_REVISION => highest = attribute.payload.first().copied(),
            ATTR_REVISION_MIN => lowest = attribute.payload.first().copied()?,
            _ => {}
        }
    }
    Some(lowest..=highest?)
}

pub(crate) fn read_header(message: Message<'_>) -> Option<Header> {
    let (mut type_name, mut revision, mut family, mut data) = (None, None, None, None);
    for attribute in attributes(message) {
        match attribute.kind {
            ATTR_TYPENAME => type_name = attribute.text(),
            ATTR_REVISION => revision = attribute.payload.first().copied(),
            ATTR_FAMILY => family = attribute.payload.first().copied(),
            ATTR_DATA => data = Some(attribute),
            _ => {}
        }
    }
    let mut header = Header {
        type_name: type_name?.to_owned(),
        revision: revision?,
        family: SetFamily::of(family?),
        timeout: None,
        hash_size: 0,
        max_elements: 0,
        references: 0,
        entries: 0,
        masked: false,
        force_add: false,
    };
    for attribute in data?.nested() {
        match attribute.kind {
            ATTR_TIMEOUT => header.timeout = Some(attribute.u32_be()?),
            ATTR_HASHSIZE => header.hash_size = attribute.u32_be()?,
            ATTR_MAXELEM => header.max_elements = attribute.u32_be()?,
            ATTR_REFERENCES => header.references = attribute.u32_be()?,
            ATTR_ELEMENTS => header.entries = attribute.u32_be()?,
            ATTR_NETMASK | ATTR_BITMASK => header.masked = true,
            ATTR_CADT_FLAGS => header.force_add = attribute.u32_be()? & FLAG_WITH_FORCEADD != 0,
            _ => {}
        }
    }
    Some(header)
}

pub(crate) fn read_entries(message: Message<'_>, entries: &mut Vec<Entry>) {
    for list in attributes(message).filter(|attribute| attribute.kind == ATTR_ADT) {
        entries.extend(
            list.nested()
                .filter(|attribute| attribute.kind == ATTR_DATA)
                .map(|entry| read_entry(entry.nested())),
        );
    }
}

fn read_entry(fields: Attributes<'_>) -> Entry {
    let (mut address, mut prefix, mut port, mut protocol) = (None, None, None, None);
    let mut timeout = None;
    let mut understood = true;
    for field in fields {
        let read = match field.kind {
            ATTR_IP => {
                address = read_address(field);
                address.is_some()
            }
            ATTR_CIDR => {
                prefix = field.payload.first().copied();
                prefix.is_some()
            }
            ATTR_PORT => {
                port = field.payload.first_chunk().map(|port| u16::from_be_bytes(*port));
                port.is_some()
            }
            ATTR_PROTO => {
                protocol = field.payload.first().copied();
                protocol.is_some()
            }
            ATTR_TIMEOUT => {
                timeout = field.u32_be();
                timeout.is_some()
            }
            // Counters and the comment do not change whom an entry bans; anything else does.
            ATTR_BYTES | ATTR_PACKETS | ATTR_COMMENT | ATTR_PAD => true,
            _ => false,
        };
        understood &= read;
    }
    let target = match (address, prefix, port, protocol) {
        _ if !understood => None,
        (Some(address), prefix, None, None) => {
            Some(BanTarget::Network { address, prefix: prefix.unwrap_or_else(|| bits(address)) })
        }
        (Some(address), None, Some(port), Some(IPPROTO_UDP)) => {
            Some(BanTarget::Flow { address, port })
        }
        _ => None,
    };
    Entry { target, timeout }
}

fn read_address(field: Attribute<'_>) -> Option<IpAddr> {
    let address = field.nested().next()?;
    match address.kind {
        ATTR_IPADDR_IPV4 => Some(Ipv4Addr::from(*address.payload.first_chunk::<4>()?).into()),
        ATTR_IPADDR_IPV6 => Some(Ipv6Addr::from(*address.payload.first_chunk::<16>()?).into()),
        _ => None,
    }
}

fn begin(request: &mut Writer, command: u16, flags: u16, sequence: u32) {
    request.begin(NFNL_SUBSYS_IPSET | command, flags, sequence);
    request.put(&NFGENMSG);
    request.attribute(ATTR_PROTOCOL, &[PROTOCOL]);
}

fn put_u32(request: &mut Writer, kind: u16, value: u32) {
    request.attribute(kind | NLA_F_NET_BYTEORDER, &value.to_be_bytes());
}

fn put_address(request: &mut Writer, address: IpAddr) {
    let nest = request.begin_nest(ATTR_IP);
    match address {
        IpAddr::V4(four) => {
            request.attribute(ATTR_IPADDR_IPV4 | NLA_F_NET_BYTEORDER, &four.octets());
        }
        IpAddr::V6(six) => {
            request.attribute(ATTR_IPADDR_IPV6 | NLA_F_NET_BYTEORDER, &six.octets());
        }
    }
    request.end_nest(nest);
}

/// `struct nfgenmsg`: `AF_INET` as `ipset(8)` writes it (the kernel does not look), version 0.
const NFGENMSG: [u8; 4] = [2, 0, 0, 0];
/// `NFNL_SUBSYS_IPSET << 8`, `linux/netfilter/nfnetlink.h`.
const NFNL_SUBSYS_IPSET: u16 = 6 << 8;
/// `NLA_F_NET_BYTEORDER`, `linux/netlink.h`. ipset refuses numbers and addresses without it.
const NLA_F_NET_BYTEORDER: u16 = 0x4000;
/// `IPSET_PROTOCOL`; what follows is `uapi/linux/netfilter/ipset/ip_set.h`, too.
pub(crate) const PROTOCOL: u8 = 7;
const CMD_PROTOCOL: u16 = 1;
const CMD_CREATE: u16 = 2;
const CMD_DESTROY: u16 = 3;
const CMD_RENAME: u16 = 5;
const CMD_SWAP: u16 = 6;
const CMD_LIST: u16 = 7;
const CMD_ADD: u16 = 9;
const CMD_DEL: u16 = 10;
const CMD_TEST: u16 = 11;
const CMD_TYPE: u16 = 13;
// Attributes of a message.
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_SETNAME2: u16 = ATTR_TYPENAME;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_FLAGS: u16 = 6;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;
const ATTR_PROTOCOL_MIN: u16 = 10;
const ATTR_REVISION_MIN: u16 = ATTR_PROTOCOL_MIN;
// Attributes of an entry and of a set.
const ATTR_IP: u16 = 1;
const ATTR_CIDR: u16 = 3;
const ATTR_PORT: u16 = 4;
const ATTR_TIMEOUT: u16 = 6;
const ATTR_PROTO: u16 = 7;
const ATTR_CADT_FLAGS: u16 = 8;
// Attributes of a set.
const ATTR_BITMASK: u16 = 12;
const ATTR_HASHSIZE: u16 = 18;
const ATTR_MAXELEM: u16 = 19;
const ATTR_NETMASK: u16 = 20;
const ATTR_ELEMENTS: u16 = 24;
const ATTR_REFERENCES: u16 = 25;
// Attributes of an entry.
const ATTR_BYTES: u16 = 24;
const ATTR_PACKETS: u16 = 25;
const ATTR_COMMENT: u16 = 26;
const ATTR_PAD: u16 = 30;
// Attributes of an address.
const ATTR_IPADDR_IPV4: u16 = 1;
const ATTR_IPADDR_IPV6: u16 = 2;
/// `IPSET_FLAG_LIST_HEADER`.
const FLAG_LIST_HEADER: u32 = 1 << 2;
/// `IPSET_FLAG_WITH_FORCEADD`.
const FLAG_WITH_FORCEADD: u32 = 1 << 5;
const IPPROTO_UDP: u8 = 17;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Messages;

    const NAME: &str = "refract_banned_users";

    fn written(write: impl FnOnce(&mut Writer, u32)) -> Vec<u8> {
        let mut request = Writer::new();
        write(&mut request, 1);
        assert!(!request.is_oversized());
        request.bytes().to_vec()
    }

    #[track_caller]
    fn check(write: impl FnOnce(&mut Writer, u32), golden: &[&[u8]]) {
        assert_eq!(written(write), golden.concat());
    }

    fn operation(verb: Verb, target: BanTarget, timeout: Option<u32>) -> Vec<u8> {
        let operation = Operation { verb, set: NAME, target, timeout };
        written(|request, sequence| operation.write(request, sequence))
    }

    fn four() -> IpAddr {
        "203.0.113.9".parse().unwrap()
    }

    fn six() -> IpAddr {
        "2001:db8:1:2::".parse().unwrap()
    }

    // The literals below are what `strace -xx` shows of ipset 7.17 for the command above them, on
    // a little-endian machine, with sequence number 1, but for what is said there.

    // Every command of `ipset` begins with it.
    #[test]
    #[cfg(target_endian = "little")]
    fn the_question_for_the_protocol_has_these_bytes() {
        check(
            write_protocol,
            &[
                &[28, 0, 0, 0], // nlmsg_len
                &[0x01, 0x06],  // nlmsg_type: IPSET_CMD_PROTOCOL
                &[0x01, 0x00],  // nlmsg_flags: REQUEST
                &[1, 0, 0, 0],  // nlmsg_seq
                &[0, 0, 0, 0],  // nlmsg_pid
                &[2, 0, 0, 0],  // nfgenmsg: AF_INET, version 0, res_id 0
                &[5, 0, 1, 0],  // IPSET_ATTR_PROTOCOL
                &[7, 0, 0, 0],  //   7
            ],
        );
    }

    // ipset create x hash:ip: the question before it.
    #[test]
    #[cfg(target_endian = "little")]
    fn the_question_for_a_types_revisions_has_these_bytes() {
        check(
            |request, sequence| write_type(request, sequence, "hash:ip", SetFamily::Inet),
            &[
                &[48, 0, 0, 0], // nlmsg_len
                &[0x0d, 0x06],  // nlmsg_type: IPSET_CMD_TYPE
                &[0x01, 0x00],  // nlmsg_flags: REQUEST
                &[1, 0, 0, 0],  // nlmsg_seq
                &[0, 0, 0, 0],  // nlmsg_pid
                &[2, 0, 0, 0],  // nfgenmsg
                &[5, 0, 1, 0],  // IPSET_ATTR_PROTOCOL
                &[7, 0, 0, 0],  //   7
                &[12, 0, 3, 0], // IPSET_ATTR_TYPENAME
                b"hash:ip\0",
                &[5, 0, 5, 0], // IPSET_ATTR_FAMILY
                &[2, 0, 0, 0], //   AF_INET
            ],
        );
    }

    // ipset create refract_banned_users hash:ip family inet timeout 60 hashsize 16384 \
    //   maxelem 1048576
    // The tool asks for the newest revision (6) that it and the kernel know.
    #[test]
    #[cfg(target_endian = "little")]
    fn creating_a_set_has_these_bytes() {
        let new = NewSet {
            type_name: "hash:ip",
            revision: 4,
            family: SetFamily::Inet,
            timeout: 60,
            hash_size: 16_384,
            max_elements: 1 << 20,
        };
        check(
            |request, sequence| write_create(request, sequence, NAME, &new),
            &[
                &[112, 0, 0, 0], // nlmsg_len
                &[0x02, 0x06],   // nlmsg_type: IPSET_CMD_CREATE
                &[0x05, 0x06],   // nlmsg_flags: REQUEST, ACK, EXCL, CREATE
                &[1, 0, 0, 0],   // nlmsg_seq
                &[0, 0, 0, 0],   // nlmsg_pid
                &[2, 0, 0, 0],   // nfgenmsg
                &[5, 0, 1, 0],   // IPSET_ATTR_PROTOCOL
                &[7, 0, 0, 0],   //   7
                &[25, 0, 2, 0],  // IPSET_ATTR_SETNAME
                b"refract_banned_users\0",
                &[0, 0, 0],     //   padding
                &[12, 0, 3, 0], // IPSET_ATTR_TYPENAME
                b"hash:ip\0",
                &[5, 0, 4, 0],     // IPSET_ATTR_REVISION
                &[4, 0, 0, 0],     //   4
                &[5, 0, 5, 0],     // IPSET_ATTR_FAMILY
                &[2, 0, 0, 0],     //   AF_INET
                &[28, 0, 7, 0x80], // IPSET_ATTR_DATA, nested
                &[8, 0, 6, 0x40],  //   IPSET_ATTR_TIMEOUT, network byte order
                &[0, 0, 0, 60],    //     60 s
                &[8, 0, 18, 0x40], //   IPSET_ATTR_HASHSIZE, network byte order
                &[0, 0, 0x40, 0],  //     16,384
                &[8, 0, 19, 0x40], //   IPSET_ATTR_MAXELEM, network byte order
                &[0, 0x10, 0, 0],  //     1,048,576
            ],
        );
    }

    // ipset destroy six
    #[test]
    #[cfg(target_endian = "little")]
    fn destroying_a_set_has_these_bytes() {
        check(
            |request, sequence| write_destroy(request, sequence, "six"),
            &[
                &[36, 0, 0, 0], // nlmsg_len
                &[0x03, 0x06],  // nlmsg_type: IPSET_CMD_DESTROY
                &[0x05, 0x02],  // nlmsg_flags: REQUEST, ACK, EXCL
                &[1, 0, 0, 0],  // nlmsg_seq
                &[0, 0, 0, 0],  // nlmsg_pid
                &[2, 0, 0, 0],  // nfgenmsg
                &[5, 0, 1, 0],  // IPSET_ATTR_PROTOCOL
                &[7, 0, 0, 0],  //   7
                &[8, 0, 2, 0],  // IPSET_ATTR_SETNAME
                b"six\0",
            ],
        );
    }

    // ipset rename noext other
    #[test]
    #[cfg(target_endian = "little")]
    fn renaming_a_set_has_these_bytes() {
        check(
            |request, sequence| write_rename(request, sequence, "noext", "other"),
            &[
                &[52, 0, 0, 0], // nlmsg_len
                &[0x05, 0x06],  // nlmsg_type: IPSET_CMD_RENAME
                &[0x05, 0x00],  // nlmsg_flags: REQUEST, ACK
                &[1, 0, 0, 0],  // nlmsg_seq
                &[0, 0, 0, 0],  // nlmsg_pid
                &[2, 0, 0, 0],  // nfgenmsg
                &[5, 0, 1, 0],  // IPSET_ATTR_PROTOCOL
                &[7, 0, 0, 0],  //   7
                &[10, 0, 2, 0], // IPSET_ATTR_SETNAME
                b"noext\0",
                &[0, 0],        //   padding
                &[10, 0, 3, 0], // IPSET_ATTR_SETNAME2
                b"other\0",
                &[0, 0], //   padding
            ],
        );
    }

    // ipset swap refract_banned_users noext
    #[test]
    #[cfg(target_endian = "little")]
    fn swapping_two_sets_has_these_bytes() {
        check(
            |request, sequence| write_swap(request, sequence, NAME, "noext"),
            &[
                &[68, 0, 0, 0], // nlmsg_len
                &[0x06, 0x06],  // nlmsg_type: IPSET_CMD_SWAP
                &[0x05, 0x00],  // nlmsg_flags: REQUEST, ACK
                &[1, 0, 0, 0],  // nlmsg_seq
                &[0, 0, 0, 0],  // nlmsg_pid
                &[2, 0, 0, 0],  // nfgenmsg
                &[5, 0, 1, 0],  // IPSET_ATTR_PROTOCOL
                &[7, 0, 0, 0],  //   7
                &[25, 0, 2, 0], // IPSET_ATTR_SETNAME
                b"refract_banned_users\0",
                &[0, 0, 0],     //   padding
                &[10, 0, 3, 0], // IPSET_ATTR_SETNAME2
                b"noext\0",
                &[0, 0], //   padding
            ],
        );
    }

    // ipset list -t u
    // The tool sets NLM_F_ACK, which adds nothing to a dump.
    #[test]
    #[cfg(target_endian = "little")]
    fn asking_for_a_header_has_these_bytes() {
        check(
            |request, sequence| write_list(request, sequence, "u", true),
            &[
                &[44, 0, 0, 0], // nlmsg_len
                &[0x07, 0x06],  // nlmsg_type: IPSET_CMD_LIST
                &[0x01, 0x03],  // nlmsg_flags: REQUEST, DUMP
                &[1, 0, 0, 0],  // nlmsg_seq
                &[0, 0, 0, 0],  // nlmsg_pid
                &[2, 0, 0, 0],  // nfgenmsg
                &[5, 0, 1, 0],  // IPSET_ATTR_PROTOCOL
                &[7, 0, 0, 0],  //   7
                &[6, 0, 2, 0],  // IPSET_ATTR_SETNAME
                b"u\0",
                &[0, 0],          //   padding
                &[8, 0, 6, 0x40], // IPSET_ATTR_FLAGS, network byte order
                &[0, 0, 0, 4],    //   IPSET_FLAG_LIST_HEADER
            ],
        );
    }

    // ipset add refract_banned_users 203.0.113.9 timeout 60 -exist
    // The tool ends the data with a line number (attribute 9, eight bytes).
    #[test]
    #[cfg(target_endian = "little")]
    fn adding_an_address_has_these_bytes() {
        let golden: &[&[u8]] = &[
            &[80, 0, 0, 0], // nlmsg_len
            &[0x09, 0x06],  // nlmsg_type: IPSET_CMD_ADD
            &[0x05, 0x00],  // nlmsg_flags: REQUEST, ACK; no EXCL, so it refreshes
            &[1, 0, 0, 0],  // nlmsg_seq
            &[0, 0, 0, 0],  // nlmsg_pid
            &[2, 0, 0, 0],  // nfgenmsg
            &[5, 0, 1, 0],  // IPSET_ATTR_PROTOCOL
            &[7, 0, 0, 0],  //   7
            &[25, 0, 2, 0], // IPSET_ATTR_SETNAME
            b"refract_banned_users\0",
            &[0, 0, 0],        //   padding
            &[24, 0, 7, 0x80], // IPSET_ATTR_DATA, nested
            &[12, 0, 1, 0x80], //   IPSET_ATTR_IP, nested
            &[8, 0, 1, 0x40],  //     IPSET_ATTR_IPADDR_IPV4, network byte order
            &[203, 0, 113, 9], //       203.0.113.9
            &[8, 0, 6, 0x40],  //   IPSET_ATTR_TIMEOUT, network byte order
            &[0, 0, 0, 60],    //     60 s
        ];
        assert_eq!(operation(Verb::Add, BanTarget::host(four()), Some(60)), golden.concat());
    }

    // ipset add refract_banned_users 203.0.113.9 timeout 60
    #[test]
    #[cfg(target_endian = "little")]
    fn adding_only_what_is_new_differs_by_a_flag() {
        let mut refreshing = operation(Verb::Add, BanTarget::host(four()), Some(60));
        refreshing[7] = 0x02; // nlmsg_flags: and EXCL
        assert_eq!(operation(Verb::AddNew, BanTarget::host(four()), Some(60)), refreshing);
    }

    // ipset add refract_banned_users 2001:db8:1:2::/64 timeout 60 -exist
    // The tool ends the data with a line number, and writes a prefix of 128 bits out.
    #[test]
    #[cfg(target_endian = "little")]
    fn adding_a_network_has_these_bytes() {
        let golden: &[&[u8]] = &[
            &[100, 0, 0, 0], // nlmsg_len
            &[0x09, 0x06],   // nlmsg_type: IPSET_CMD_ADD
            &[0x05, 0x00],   // nlmsg_flags: REQUEST, ACK
            &[1, 0, 0, 0],   // nlmsg_seq
            &[0, 0, 0, 0],   // nlmsg_pid
            &[2, 0, 0, 0],   // nfgenmsg: AF_INET, whatever the set is
            &[5, 0, 1, 0],   // IPSET_ATTR_PROTOCOL
            &[7, 0, 0, 0],   //   7
            &[25, 0, 2, 0],  // IPSET_ATTR_SETNAME
            b"refract_banned_users\0",
            &[0, 0, 0],        //   padding
            &[44, 0, 7, 0x80], // IPSET_ATTR_DATA, nested
            &[24, 0, 1, 0x80], //   IPSET_ATTR_IP, nested
            &[20, 0, 2, 0x40], //     IPSET_ATTR_IPADDR_IPV6, network byte order
            &[0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0],
            &[5, 0, 3, 0],    //   IPSET_ATTR_CIDR
            &[64, 0, 0, 0],   //     64 bits
            &[8, 0, 6, 0x40], //   IPSET_ATTR_TIMEOUT, network byte order
            &[0, 0, 0, 60],   //     60 s
        ];
        let network = BanTarget::Network { address: six(), prefix: 64 };
        assert_eq!(operation(Verb::Add, network, Some(60)), golden.concat());
    }

    // ipset add refract_banned_users 203.0.113.9,udp:4433 timeout 60 -exist
    // The tool ends the data with a line number.
    #[test]
    #[cfg(target_endian = "little")]
    fn adding_a_flow_has_these_bytes() {
        let golden: &[&[u8]] = &[
            &[96, 0, 0, 0], // nlmsg_len
            &[0x09, 0x06],  // nlmsg_type: IPSET_CMD_ADD
            &[0x05, 0x00],  // nlmsg_flags: REQUEST, ACK
            &[1, 0, 0, 0],  // nlmsg_seq
            &[0, 0, 0, 0],  // nlmsg_pid
            &[2, 0, 0, 0],  // nfgenmsg
            &[5, 0, 1, 0],  // IPSET_ATTR_PROTOCOL
            &[7, 0, 0, 0],  //   7
            &[25, 0, 2, 0], // IPSET_ATTR_SETNAME
            b"refract_banned_users\0",
            &[0, 0, 0],          //   padding
            &[40, 0, 7, 0x80],   // IPSET_ATTR_DATA, nested
            &[12, 0, 1, 0x80],   //   IPSET_ATTR_IP, nested
            &[8, 0, 1, 0x40],    //     IPSET_ATTR_IPADDR_IPV4, network byte order
            &[203, 0, 113, 9],   //       203.0.113.9
            &[6, 0, 4, 0x40],    //   IPSET_ATTR_PORT, network byte order
            &[0x11, 0x51, 0, 0], //     4433
            &[8, 0, 6, 0x40],    //   IPSET_ATTR_TIMEOUT, network byte order
            &[0, 0, 0, 60],      //     60 s
            &[5, 0, 7, 0],       //   IPSET_ATTR_PROTO
            &[17, 0, 0, 0],      //     UDP
        ];
        let flow = BanTarget::Flow { address: four(), port: 4433 };
        assert_eq!(operation(Verb::Add, flow, Some(60)), golden.concat());
    }

    // ipset del refract_banned_users 203.0.113.9
    // The tool ends the data with a line number.
    #[test]
    #[cfg(target_endian = "little")]
    fn deleting_an_address_has_these_bytes() {
        let golden: &[&[u8]] = &[
            &[72, 0, 0, 0], // nlmsg_len
            &[0x0a, 0x06],  // nlmsg_type: IPSET_CMD_DEL
            &[0x05, 0x02],  // nlmsg_flags: REQUEST, ACK, EXCL: say so if it was not there
            &[1, 0, 0, 0],  // nlmsg_seq
            &[0, 0, 0, 0],  // nlmsg_pid
            &[2, 0, 0, 0],  // nfgenmsg
            &[5, 0, 1, 0],  // IPSET_ATTR_PROTOCOL
            &[7, 0, 0, 0],  //   7
            &[25, 0, 2, 0], // IPSET_ATTR_SETNAME
            b"refract_banned_users\0",
            &[0, 0, 0],        //   padding
            &[16, 0, 7, 0x80], // IPSET_ATTR_DATA, nested
            &[12, 0, 1, 0x80], //   IPSET_ATTR_IP, nested
            &[8, 0, 1, 0x40],  //     IPSET_ATTR_IPADDR_IPV4, network byte order
            &[203, 0, 113, 9], //       203.0.113.9
        ];
        assert_eq!(operation(Verb::Delete, BanTarget::host(four()), None), golden.concat());
    }

    // ipset test refract_banned_users 203.0.113.9
    #[test]
    #[cfg(target_endian = "little")]
    fn testing_for_an_address_has_these_bytes() {
        let golden: &[&[u8]] = &[
            &[72, 0, 0, 0], // nlmsg_len
            &[0x0b, 0x06],  // nlmsg_type: IPSET_CMD_TEST
            &[0x05, 0x00],  // nlmsg_flags: REQUEST, ACK
            &[1, 0, 0, 0],  // nlmsg_seq
            &[0, 0, 0, 0],  // nlmsg_pid
            &[2, 0, 0, 0],  // nfgenmsg
            &[5, 0, 1, 0],  // IPSET_ATTR_PROTOCOL
            &[7, 0, 0, 0],  //   7
            &[25, 0, 2, 0], // IPSET_ATTR_SETNAME
            b"refract_banned_users\0",
            &[0, 0, 0],        //   padding
            &[16, 0, 7, 0x80], // IPSET_ATTR_DATA, nested
            &[12, 0, 1, 0x80], //   IPSET_ATTR_IP, nested
            &[8, 0, 1, 0x40],  //     IPSET_ATTR_IPADDR_IPV4, network byte order
            &[203, 0, 113, 9], //       203.0.113.9
        ];
        assert_eq!(operation(Verb::Test, BanTarget::host(four()), None), golden.concat());
    }

    /// The kernel's answer to `ipset list flows`, of
    /// `ipset create flows hash:ip,port timeout 0; ipset add flows 203.0.113.9,udp:4433 timeout 60`.
    const LISTED_FLOWS: &[&[u8]] = &[
        &[196, 0, 0, 0],     // nlmsg_len
        &[0x07, 0x06],       // nlmsg_type: IPSET_CMD_LIST
        &[0x02, 0x00],       // nlmsg_flags: MULTI
        &[1, 0, 0, 0],       // nlmsg_seq
        &[0xef, 0x26, 0, 0], // nlmsg_pid
        &[2, 0, 0, 0],       // nfgenmsg
        &[5, 0, 1, 0],       // IPSET_ATTR_PROTOCOL
        &[7, 0, 0, 0],       //   7
        &[10, 0, 2, 0],      // IPSET_ATTR_SETNAME
        b"flows\0",
        &[0, 0],        //   padding
        &[17, 0, 3, 0], // IPSET_ATTR_TYPENAME
        b"hash:ip,port\0",
        &[0, 0, 0],        //   padding
        &[5, 0, 5, 0],     // IPSET_ATTR_FAMILY
        &[2, 0, 0, 0],     //   AF_INET
        &[5, 0, 4, 0],     // IPSET_ATTR_REVISION
        &[7, 0, 0, 0],     //   7
        &[6, 0, 11, 0x40], // IPSET_ATTR_INDEX
        &[0, 2, 0, 0],     //   2
        &[68, 0, 7, 0x80], // IPSET_ATTR_DATA, nested
        &[8, 0, 18, 0x40], //   IPSET_ATTR_HASHSIZE
        &[0, 0, 4, 0],     //     1024
        &[8, 0, 19, 0x40], //   IPSET_ATTR_MAXELEM
        &[0, 1, 0, 0],     //     65,536
        &[5, 0, 21, 0],    //   IPSET_ATTR_BUCKETSIZE
        &[12, 0, 0, 0],    //     12
        &[8, 0, 17, 0x40], //   IPSET_ATTR_INITVAL
        &[0x48, 0x07, 0x2c, 0x87],
        &[8, 0, 25, 0x40],   //   IPSET_ATTR_REFERENCES
        &[0, 0, 0, 0],       //     0
        &[8, 0, 26, 0x40],   //   IPSET_ATTR_MEMSIZE
        &[0, 0, 1, 0x18],    //     280
        &[8, 0, 24, 0x40],   //   IPSET_ATTR_ELEMENTS
        &[0, 0, 0, 1],       //     1
        &[8, 0, 6, 0x40],    //   IPSET_ATTR_TIMEOUT
        &[0, 0, 0, 0],       //     0
        &[44, 0, 8, 0x80],   // IPSET_ATTR_ADT, nested
        &[40, 0, 7, 0x80],   //   IPSET_ATTR_DATA, nested
        &[12, 0, 1, 0x80],   //     IPSET_ATTR_IP, nested
        &[8, 0, 1, 0],       //       IPSET_ATTR_IPADDR_IPV4
        &[203, 0, 113, 9],   //         203.0.113.9
        &[6, 0, 4, 0x40],    //     IPSET_ATTR_PORT
        &[0x11, 0x51, 0, 0], //       4433
        &[5, 0, 7, 0],       //     IPSET_ATTR_PROTO
        &[17, 0, 0, 0],      //       UDP
        &[8, 0, 6, 0x40],    //     IPSET_ATTR_TIMEOUT
        &[0, 0, 0, 59],      //       59 s
    ];

    fn headers_and_entries(bytes: &[u8]) -> (Vec<Header>, Vec<Entry>) {
        let (mut headers, mut entries) = (Vec::new(), Vec::new());
        for message in Messages::new(bytes) {
            headers.extend(read_header(message));
            read_entries(message, &mut entries);
        }
        (headers, entries)
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_captured_list_is_read() {
        let (headers, entries) = headers_and_entries(&LISTED_FLOWS.concat());
        assert_eq!(
            headers,
            [Header {
                type_name: "hash:ip,port".to_owned(),
                revision: 7,
                family: SetFamily::Inet,
                timeout: Some(0),
                hash_size: 1024,
                max_elements: 65_536,
                references: 0,
                entries: 1,
                masked: false,
                force_add: false,
            }]
        );
        let target = BanTarget::Flow { address: four(), port: 4433 };
        assert_eq!(entries, [Entry { target: Some(target), timeout: Some(59) }]);
    }

    /// An entry as `hash:net family inet6` lists it, with one field that a test may add.
    fn entry(timeout: Option<u32>, more: impl FnOnce(&mut Writer)) -> Entry {
        let mut fields = Writer::new();
        put_address(&mut fields, six());
        fields.attribute(ATTR_CIDR, &[64]);
        if let Some(timeout) = timeout {
            put_u32(&mut fields, ATTR_TIMEOUT, timeout);
        }
        more(&mut fields);
        read_entry(Attributes::new(fields.bytes()))
    }

    #[test]
    fn an_entry_is_a_target_only_if_it_bans_that_target_and_nothing_else() {
        let target = Some(BanTarget::Network { address: six(), prefix: 64 });
        assert_eq!(entry(None, |_| ()), Entry { target, timeout: None });
        assert_eq!(entry(Some(0), |_| ()), Entry { target, timeout: Some(0) });
        let commented = entry(Some(9), |fields| fields.attribute_str(ATTR_COMMENT, "abuse"));
        assert_eq!(commented, Entry { target, timeout: Some(9) });

        let none = Entry { target: None, timeout: Some(9) };
        // IPSET_FLAG_NOMATCH: an exception, the contrary of a ban.
        assert_eq!(entry(Some(9), |fields| put_u32(fields, ATTR_CADT_FLAGS, 4)), none);
        // IPSET_ATTR_IP_TO, IPSET_ATTR_IFACE.
        assert_eq!(entry(Some(9), |fields| fields.attribute(2, &[0; 8])), none);
        assert_eq!(entry(Some(9), |fields| fields.attribute_str(23, "eth0")), none);
        // A TCP port.
        let port = |fields: &mut Writer| {
            fields.attribute(ATTR_PORT, &[1, 187]);
            fields.attribute(ATTR_PROTO, &[6]);
        };
        assert_eq!(entry(Some(9), port), none);
        // Cut short: a port of one byte must not make it the ban of every port.
        assert_eq!(entry(Some(9), |fields| fields.attribute(ATTR_PORT, &[1])), none);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn every_truncation_of_a_list_is_read_without_a_panic() {
        let whole = LISTED_FLOWS.concat();
        for end in 0..whole.len() {
            // As the kernel would never send it: cut short and saying so.
            let mut cut = whole[..end].to_vec();
            if let Some(length) = cut.first_chunk_mut::<4>() {
                *length = u32::try_from(end).unwrap().to_le_bytes();
            }
            let (headers, entries) = headers_and_entries(&cut);
            assert!(headers.len() <= 1, "cut at {end}");
            assert!(entries.len() <= 1, "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(payload in proptest::collection::vec(any::<u8>(), 0..256)) {
            let message = Message { kind: 0, flags: 0, sequence: 0, payload: &payload };
            let _ = (read_header(message), read_protocol(message), read_revisions(message));
            read_entries(message, &mut Vec::new());
            let _ = read_entry(Attributes::new(&payload));
        }

        #[test]
        fn a_list_with_a_changed_byte_is_read_without_a_panic(at in 16..196usize, byte: u8) {
            let mut bytes = LISTED_FLOWS.concat();
            bytes[at] = byte;
            let (headers, entries) = headers_and_entries(&bytes);
            prop_assert!(headers.len() <= 1 && entries.len() <= 16);
        }
    }
}
