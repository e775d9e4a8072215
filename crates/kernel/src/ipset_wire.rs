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
    /// Seconds; 0 is for ever. `None` sends none: an added entry gets the set's default. A test
    /// that carries one is refused with `IPSET_ERR_TIMEOUT` by a set without timeouts.
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

/// `IPSET_CMD_DESTROY`.
pub(crate) fn write_destroy(request: &mut Writer, sequence: u32, name: &str) {
    begin(request, CMD_DESTROY, NLM_F_ACK, sequence);
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
        match field.kind {
            ATTR_IP => address = read_address(field),
            ATTR_CIDR => prefix = field.payload.first().copied(),
            ATTR_PORT => port = field.payload.first_chunk().map(|port| u16::from_be_bytes(*port)),
            ATTR_PROTO => protocol = field.payload.first().copied(),
            ATTR_TIMEOUT => timeout = field.u32_be(),
            // Counters and the comment do not change whom an entry bans; anything else does.
            ATTR_BYTES | ATTR_PACKETS | ATTR_COMMENT | ATTR_PAD => {}
            _ => understood = false,
        }
    }
    let target = match (address, prefix, port, protocol) {
        (Some(address), prefix, None, None) => {
            Some(BanTarget::Network { address, prefix: prefix.unwrap_or_else(|| bits(address)) })
        }
        (Some(address), None, Some(port), Some(IPPROTO_UDP)) => {
            Some(BanTarget::Flow { address, port })
        }
        _ => None,
    };
    Entry { target: target.filter(|_| understood), timeout }
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
