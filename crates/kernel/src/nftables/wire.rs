//! Questions about our one table, and what the kernel lists of it. Pure.
//!
//! Takes names and keys; writes requests, and reads the answers about `inet refract`. What is of
//! another table is not read, and what an answer leaves out or garbles is `None`, never a guess. It
//! opens no socket, decides nothing and changes nothing.

use super::{
    plan::Hook,
    rule::{Expression, put_value, read_expressions, read_value},
    sets::Key,
};
use crate::wire::{Attribute, Attributes, Message, NLM_F_ACK, NLM_F_DUMP, Writer};

/// The name of our table.
pub(crate) const TABLE: &str = "refract";
/// `NFT_SET_INTERVAL`, `linux/netfilter/nf_tables.h`.
pub(crate) const INTERVALS: u32 = 0x04;
/// `NFT_SET_MAP` and `NFT_SET_OBJECT`: an element leads to something.
pub(crate) const MAPS: u32 = 0x08 | 0x40;
/// `NFT_SET_TIMEOUT`.
pub(crate) const TIMEOUTS: u32 = 0x10;

/// A set as it is to be, or as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: String,
    /// The number by which `nft` knows the type of its keys.
    pub(crate) key_type: u32,
    /// Bytes of a key.
    pub(crate) key_length: u32,
    /// `enum nft_set_flags`.
    pub(crate) flags: u32,
    /// Elements at most.
    pub(crate) size: Option<u32>,
    /// How long an element lasts that was added without a timeout, milliseconds.
    pub(crate) timeout: Option<u64>,
}

/// An element of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Key,
    /// To be added: how long it lasts, milliseconds. Listed: how long it has left.
    pub(crate) time: Option<u64>,
}

/// What a chain is hooked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChainHook {
    /// `filter`, `nat` or `route`.
    pub(crate) kind: String,
    /// `enum nf_inet_hooks`.
    pub(crate) number: u32,
    pub(crate) priority: i32,
    /// What becomes of a packet that passes all rules: `NF_ACCEPT` or `NF_DROP`.
    pub(crate) policy: u32,
}

/// A chain, with its hook if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) hook: Option<ChainHook>,
}

/// A listed rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedRule {
    pub(crate) chain: String,
    /// `None` for a rule that holds what no rule of ours does.
    pub(crate) expressions: Option<Vec<Expression>>,
}

impl Hook {
    /// The chain of ours that is hooked there.
    pub(crate) fn chain(self) -> Chain {
        let (name, number) = match self {
            Self::Input => ("input", NF_INET_LOCAL_IN),
            Self::Forward => ("forward", NF_INET_FORWARD),
        };
        let hook =
            ChainHook { kind: "filter".to_owned(), number, priority: PRIORITY, policy: NF_ACCEPT };
        Chain { name: name.to_owned(), hook: Some(hook) }
    }
}

/// Asks for the number that every change of any table raises.
pub(crate) fn write_get_generation(request: &mut Writer, sequence: u32) {
    begin(request, GETGEN, 0, sequence);
    request.end();
}

/// Asks for our table.
pub(crate) fn write_get_table(request: &mut Writer, sequence: u32) {
    begin(request, GETTABLE, 0, sequence);
    request.attribute_str(TABLE_NAME, TABLE);
    request.end();
}

/// Asks for the chains of this family; older kernels do not look at the table.
pub(crate) fn write_list_chains(request: &mut Writer, sequence: u32) {
    write_list(request, GETCHAIN, sequence);
}

/// Asks for the rules of our table.
pub(crate) fn write_list_rules(request: &mut Writer, sequence: u32) {
    write_list(request, GETRULE, sequence);
}

/// Asks for the sets of our table.
pub(crate) fn write_list_sets(request: &mut Writer, sequence: u32) {
    write_list(request, GETSET, sequence);
}

/// Asks for every element of a set.
pub(crate) fn write_list_elements(request: &mut Writer, sequence: u32, set: &str) {
    begin(request, GETSETELEM, NLM_F_DUMP, sequence);
    request.attribute_str(TABLE_NAME, TABLE);
    request.attribute_str(ELEMENTS_SET, set);
    request.end();
}

/// Asks for one element of a set: it is acknowledged if it is there, else refused with `ENOENT`.
pub(crate) fn write_get_element(request: &mut Writer, sequence: u32, set: &str, key: Key) {
    begin(request, GETSETELEM, NLM_F_ACK, sequence);
    request.attribute_str(TABLE_NAME, TABLE);
    write_elements(request, set, &[Element { key, time: None }]);
    request.end();
}

pub(crate) fn read_generation(message: Message<'_>) -> Option<u32> {
    let (header, attributes) = split(message)?;
    (message.kind == NFNL_SUBSYS_NFTABLES | NEWGEN && header.len() == NFGENMSG.len())
        .then(|| find(attributes, GEN_ID)?.u32_be())?
}

/// The flags of our table (`enum nft_table_flags`).
pub(crate) fn read_table(message: Message<'_>) -> Option<u32> {
    let attributes = ours(message, NEWTABLE)?;
    find(attributes, TABLE_FLAGS)?.u32_be()
}

pub(crate) fn read_chain(message: Message<'_>) -> Option<Chain> {
    let attributes = ours(message, NEWCHAIN)?;
    let name = find(attributes.clone(), CHAIN_NAME)?.text()?.to_owned();
    let hook = match find(attributes.clone(), CHAIN_HOOK) {
        None => None,
        Some(hook) => Some(ChainHook {
            kind: find(attributes.clone(), CHAIN_TYPE)?.text()?.to_owned(),
            number: find(hook.nested(), HOOK_NUMBER)?.u32_be()?,
            priority: find(hook.nested(), HOOK_PRIORITY)?.u32_be()?.cast_signed(),
            policy: find(attributes, CHAIN_POLICY)?.u32_be()?,
        }),
    };
    Some(Chain { name, hook })
}

pub(crate) fn read_rule(message: Message<'_>) -> Option<ListedRule> {
    let attributes = ours(message, NEWRULE)?;
    Some(ListedRule {
        chain: find(attributes.clone(), RULE_CHAIN)?.text()?.to_owned(),
        expressions: find(attributes, RULE_EXPRESSIONS).and_then(read_expressions),
    })
}

pub(crate) fn read_set(message: Message<'_>) -> Option<Set> {
    let attributes = ours(message, NEWSET)?;
    let number = |kind| find(attributes.clone(), kind).and_then(|found| found.u32_be());
    let size = find(attributes.clone(), SET_DESC)
        .and_then(|desc| find(desc.nested(), DESC_SIZE))
        .and_then(|size| size.u32_be());
    Some(Set {
        name: find(attributes.clone(), SET_NAME)?.text()?.to_owned(),
        key_type: number(SET_KEY_TYPE)?,
        key_length: number(SET_KEY_LEN)?,
        // A set without flags is listed without them.
        flags: number(SET_FLAGS).unwrap_or_default(),
        size,
        timeout: find(attributes.clone(), SET_TIMEOUT).and_then(u64_be),
    })
}

/// The elements in one part of a list; one that cannot be read is left out.
pub(crate) fn read_elements(message: Message<'_>, elements: &mut Vec<Element>) {
    let Some(attributes) = ours(message, NEWSETELEM) else { return };
    let Some(list) = find(attributes, ELEMENTS_LIST) else { return };
    elements.extend(list.nested().filter_map(read_element));
}

fn read_element(element: Attribute<'_>) -> Option<Element> {
    let fields = element.nested();
    Some(Element {
        key: Key::new(read_value(find(fields.clone(), ELEM_KEY)?)?)?,
        time: match find(fields, ELEM_EXPIRATION) {
            None => None,
            Some(time) => Some(u64_be(time)?),
        },
    })
}

pub(super) fn write_elements(request: &mut Writer, set: &str, elements: &[Element]) {
    request.attribute_str(ELEMENTS_SET, set);
    let list = request.begin_nest(ELEMENTS_LIST);
    for Element { key, time } in elements {
        let element = request.begin_nest(LIST_ELEM);
        if let Some(time) = time {
            request.attribute(ELEM_TIMEOUT, &time.to_be_bytes());
        }
        put_value(request, ELEM_KEY, key.bytes());
        request.end_nest(element);
    }
    request.end_nest(list);
}

fn write_list(request: &mut Writer, kind: u16, sequence: u32) {
    begin(request, kind, NLM_F_DUMP, sequence);
    request.attribute_str(TABLE_NAME, TABLE);
    request.end();
}

pub(super) fn begin(request: &mut Writer, kind: u16, flags: u16, sequence: u32) {
    request.begin(NFNL_SUBSYS_NFTABLES | kind, flags, sequence);
    request.put(&NFGENMSG);
}

/// The attributes of a message of this kind that is about our table.
fn ours(message: Message<'_>, kind: u16) -> Option<Attributes<'_>> {
    let (header, attributes) = split(message)?;
    let is_ours = message.kind == NFNL_SUBSYS_NFTABLES | kind
        && header.first() == NFGENMSG.first()
        && find(attributes.clone(), TABLE_NAME)?.text() == Some(TABLE);
    is_ours.then_some(attributes)
}

fn split(message: Message<'_>) -> Option<(&[u8], Attributes<'_>)> {
    let (header, rest) = message.payload.split_at_checked(NFGENMSG.len())?;
    Some((header, Attributes::new(rest)))
}

fn find(mut attributes: Attributes<'_>, kind: u16) -> Option<Attribute<'_>> {
    attributes.find(|attribute| attribute.kind == kind)
}

fn u64_be(attribute: Attribute<'_>) -> Option<u64> {
    Some(u64::from_be_bytes(*attribute.payload.first_chunk()?))
}

/// `struct nfgenmsg`: `NFPROTO_INET`, version 0 (`linux/netfilter.h`, `linux/netfilter/nfnetlink.h`).
const NFGENMSG: [u8; 4] = [1, 0, 0, 0];
/// `NFNL_SUBSYS_NFTABLES << 8`, `linux/netfilter/nfnetlink.h`.
const NFNL_SUBSYS_NFTABLES: u16 = 10 << 8;
/// `NF_INET_LOCAL_IN` and `NF_INET_FORWARD`, `linux/netfilter.h`.
const NF_INET_LOCAL_IN: u32 = 1;
const NF_INET_FORWARD: u32 = 2;
/// `NF_ACCEPT`.
const NF_ACCEPT: u32 = 1;
/// Ten before `NF_IP_PRI_FILTER` (`linux/netfilter_ipv4.h`), where the usual filters are: they may
/// accept what is established, which only ends their own chain, but nothing is counted or logged
/// there that is dropped here. After destination nat (-100), so the port is the socket's.
const PRIORITY: i32 = -10;
// `enum nf_tables_msg_types`, linux/netfilter/nf_tables.h, as everything that follows.
pub(super) const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
pub(super) const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
pub(super) const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
pub(super) const NEWSET: u16 = 9;
const GETSET: u16 = 10;
pub(super) const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const NEWGEN: u16 = 15;
const GETGEN: u16 = 16;
// `NFTA_TABLE_NAME` is 1, as are `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE` and
// `NFTA_SET_ELEM_LIST_TABLE`.
pub(super) const TABLE_NAME: u16 = 1;
pub(super) const TABLE_FLAGS: u16 = 2;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_DESC: u16 = 9;
pub(super) const SET_TIMEOUT: u16 = 11;
pub(super) const DESC_SIZE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_TIMEOUT: u16 = 4;
const ELEM_EXPIRATION: u16 = 5;
const GEN_ID: u16 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        ban::BanTarget,
        nftables::sets::BanSet,
        wire::{HEADER_LEN, Messages},
    };

    // What the kernel lists of
    //   chain input { type filter hook input priority filter - 10; policy accept; … }
    const LISTED_CHAIN: &[&[u8]] = &[
        &[0x70, 0, 0, 0, 0x03, 0x0a, 2, 0, 1, 0, 0, 0, 0xe4, 0x15, 0, 0, 1, 0, 0, 3],
        &[12, 0, 1, 0], // NFTA_CHAIN_TABLE
        b"refract\0",
        &[10, 0, 3, 0], // NFTA_CHAIN_NAME
        b"input\0\0\0",
        &[12, 0, 2, 0], // NFTA_CHAIN_HANDLE
        &[0, 0, 0, 0, 0, 0, 0, 2],
        &[20, 0, 4, 0], // NFTA_CHAIN_HOOK
        &[8, 0, 1, 0],  //   NFTA_HOOK_HOOKNUM
        &[0, 0, 0, 1],
        &[8, 0, 2, 0], //   NFTA_HOOK_PRIORITY
        &[255, 255, 255, 246],
        &[8, 0, 5, 0], // NFTA_CHAIN_POLICY
        &[0, 0, 0, 1],
        &[11, 0, 7, 0], // NFTA_CHAIN_TYPE
        b"filter\0\0",
        &[8, 0, 10, 0], // NFTA_CHAIN_FLAGS
        &[0, 0, 0, 1],
        &[8, 0, 6, 0], // NFTA_CHAIN_USE
        &[0, 0, 0, 3],
    ];
    // set banned_users { type ipv4_addr; size 1048576; flags timeout; timeout 1m; }
    const LISTED_SET: &[&[u8]] = &[
        &[0x64, 0, 0, 0, 0x09, 0x0a, 2, 0, 1, 0, 0, 0, 0xe4, 0x15, 0, 0, 1, 0, 0, 3],
        &[12, 0, 1, 0], // NFTA_SET_TABLE
        b"refract\0",
        &[17, 0, 2, 0], // NFTA_SET_NAME
        b"banned_users\0\0\0\0",
        &[8, 0, 3, 0], // NFTA_SET_FLAGS
        &[0, 0, 0, 0x10],
        &[8, 0, 4, 0], // NFTA_SET_KEY_TYPE
        &[0, 0, 0, 7],
        &[8, 0, 5, 0], // NFTA_SET_KEY_LEN
        &[0, 0, 0, 4],
        &[12, 0, 11, 0], // NFTA_SET_TIMEOUT
        &[0, 0, 0, 0, 0, 0, 0xea, 0x60],
        &[12, 0, 9, 0], // NFTA_SET_DESC
        &[8, 0, 1, 0],  //   NFTA_SET_DESC_SIZE
        &[0, 0x10, 0, 0],
    ];
    // elements = { 203.0.113.9 . 4433 timeout 90s expires 89s752ms }
    const LISTED_ELEMENTS: &[&[u8]] = &[
        &[0x64, 0, 0, 0, 0x0c, 0x0a, 2, 0, 1, 0, 0, 0, 0xe4, 0x15, 0, 0, 1, 0, 0, 3],
        &[12, 0, 1, 0], // NFTA_SET_ELEM_LIST_TABLE
        b"refract\0",
        &[17, 0, 2, 0], // NFTA_SET_ELEM_LIST_SET
        b"banned_flows\0\0\0\0",
        &[48, 0, 3, 0], // NFTA_SET_ELEM_LIST_ELEMENTS
        &[44, 0, 1, 0], //   NFTA_LIST_ELEM
        &[16, 0, 1, 0], //     NFTA_SET_ELEM_KEY
        &[12, 0, 1, 0], //       NFTA_DATA_VALUE
        &[203, 0, 113, 9, 0x11, 0x51, 0, 0],
        &[12, 0, 4, 0], //     NFTA_SET_ELEM_TIMEOUT
        &[0, 0, 0, 0, 0, 1, 0x5f, 0x90],
        &[12, 0, 5, 0], //     NFTA_SET_ELEM_EXPIRATION
        &[0, 0, 0, 0, 0, 1, 0x5e, 0x98],
    ];
    // ip saddr & 255.255.255.0 == @banned_networks_24 counter drop comment "refract"
    const LISTED_RULE: &[u32] = &[
        0xc001_0000,
        0x060a_0208,
        0x0100_0000,
        0xe415_0000,
        0x0100_0003,
        0x0c00_0100,
        0x7265_6672,
        0x6163_7400,
        0x0b00_0200,
        0x6261_6e6e,
        0x6564_0000,
        0x0c00_0300,
        0x0000_0000,
        0x0000_000b,
        0x0c00_0600,
        0x0000_0000,
        0x0000_000a,
        0x6c01_0400,
        0x2400_0100,
        0x0900_0100,
        0x6d65_7461,
        0x0000_0000,
        0x1400_0200,
        0x0800_0200,
        0x0000_000f,
        0x0800_0100,
        0x0000_0001,
        0x2c00_0100,
        0x0800_0100,
        0x636d_7000,
        0x2000_0200,
        0x0800_0100,
        0x0000_0001,
        0x0800_0200,
        0x0000_0000,
        0x0c00_0300,
        0x0500_0100,
        0x0200_0000,
        0x3400_0100,
        0x0c00_0100,
        0x7061_796c,
        0x6f61_6400,
        0x2400_0200,
        0x0800_0100,
        0x0000_0001,
        0x0800_0200,
        0x0000_0001,
        0x0800_0300,
        0x0000_000c,
        0x0800_0400,
        0x0000_0004,
        0x4c00_0100,
        0x0c00_0100,
        0x6269_7477,
        0x6973_6500,
        0x3c00_0200,
        0x0800_0100,
        0x0000_0001,
        0x0800_0200,
        0x0000_0001,
        0x0800_0300,
        0x0000_0004,
        0x0800_0600,
        0x0000_0000,
        0x0c00_0400,
        0x0800_0100,
        0xffff_ff00,
        0x0c00_0500,
        0x0800_0100,
        0x0000_0000,
        0x3c00_0100,
        0x0b00_0100,
        0x6c6f_6f6b,
        0x7570_0000,
        0x2c00_0200,
        0x1700_0100,
        0x6261_6e6e,
        0x6564_5f6e,
        0x6574_776f,
        0x726b_735f,
        0x3234_0000,
        0x0800_0200,
        0x0000_0001,
        0x0800_0500,
        0x0000_0000,
        0x2c00_0100,
        0x0c00_0100,
        0x636f_756e,
        0x7465_7200,
        0x1c00_0200,
        0x0c00_0100,
        0x0000_0000,
        0x0000_0000,
        0x0c00_0200,
        0x0000_0000,
        0x0000_0000,
        0x3000_0100,
        0x0e00_0100,
        0x696d_6d65,
        0x6469_6174,
        0x6500_0000,
        0x1c00_0200,
        0x0800_0100,
        0x0000_0000,
        0x1000_0200,
        0x0c00_0200,
        0x0800_0100,
        0x0000_0000,
        0x0e00_0700,
        0x0008_7265,
        0x6672_6163,
        0x7400_0000,
    ];

    fn listed_rule() -> Vec<u8> {
        LISTED_RULE.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// Everything that can be read of a datagram.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Read {
        chains: Vec<Chain>,
        sets: Vec<Set>,
        rules: Vec<ListedRule>,
        elements: Vec<Element>,
        others: usize,
    }

    fn read(bytes: &[u8]) -> Read {
        let mut read = Read::default();
        for message in Messages::new(bytes) {
            read.chains.extend(read_chain(message));
            read.sets.extend(read_set(message));
            read.rules.extend(read_rule(message));
            read_elements(message, &mut read.elements);
            read.others += usize::from(read_table(message).is_some());
            read.others += usize::from(read_generation(message).is_some());
        }
        read
    }

    fn everything() -> Vec<u8> {
        [LISTED_CHAIN.concat(), LISTED_SET.concat(), LISTED_ELEMENTS.concat(), listed_rule()]
            .concat()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn what_the_kernel_lists_is_read() {
        let read = read(&everything());
        assert_eq!(read.chains, [Hook::Input.chain()]);
        let set = Set {
            name: "banned_users".to_owned(),
            key_type: 7,
            key_length: 4,
            flags: TIMEOUTS,
            size: Some(1 << 20),
            timeout: Some(60_000),
        };
        assert_eq!(read.sets, [set]);
        let target = BanTarget::Flow { address: [203, 0, 113, 9].into(), port: 4433 };
        let key = BanSet::key(target);
        assert_eq!(read.elements, [Element { key, time: Some(89_752) }]);
        assert_eq!(BanSet::Flows.target(&key), Some(target));
        let rule = BanSet::Networks(24).rule();
        let rule = ListedRule { chain: rule.chain, expressions: Some(rule.expressions) };
        assert_eq!(read.rules, [rule]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn what_is_of_another_table_or_family_is_not_read() {
        let name = everything();
        for at in 0..name.len() - 7 {
            if &name[at..at + 7] != b"refract" || name[at - 2..at] != [1, 0] {
                continue;
            }
            let mut other = everything();
            other[at] = b'R';
            assert_ne!(read(&other), read(&everything()), "{at}");
        }
        let mut ipv4 = LISTED_SET.concat();
        ipv4[HEADER_LEN] = 2;
        assert_eq!(read(&ipv4), Read::default());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn every_truncation_is_read_without_a_panic() {
        for whole in
            [LISTED_CHAIN.concat(), LISTED_SET.concat(), LISTED_ELEMENTS.concat(), listed_rule()]
        {
            for end in 0..whole.len() {
                // As the kernel would never send it: cut short and saying so.
                let mut cut = whole[..end].to_vec();
                if let Some(length) = cut.first_chunk_mut::<4>() {
                    *length = u32::try_from(end).unwrap().to_le_bytes();
                }
                let read = read(&cut);
                assert!(read.elements.len() + read.sets.len() + read.chains.len() <= 1, "{end}");
            }
        }
    }

    // nft get element inet refract banned_flows '{ 203.0.113.9 . 4433 }'
    #[test]
    #[cfg(target_endian = "little")]
    fn asking_for_an_element_has_these_bytes() {
        let target = BanTarget::Flow { address: [203, 0, 113, 9].into(), port: 4433 };
        let mut request = Writer::new();
        write_get_element(&mut request, 1, "banned_flows", BanSet::key(target));
        let golden: &[&[u8]] = &[
            &[76, 0, 0, 0], // nlmsg_len
            &[0x0d, 0x0a],  // nlmsg_type: NFT_MSG_GETSETELEM
            &[0x05, 0x00],  // nlmsg_flags: REQUEST, ACK
            &[1, 0, 0, 0],  // nlmsg_seq
            &[0, 0, 0, 0],  // nlmsg_pid
            &[1, 0, 0, 0],  // nfgenmsg: NFPROTO_INET
            &[12, 0, 1, 0], // NFTA_SET_ELEM_LIST_TABLE
            b"refract\0",
            &[17, 0, 2, 0], // NFTA_SET_ELEM_LIST_SET
            b"banned_flows\0\0\0\0",
            &[24, 0, 3, 0x80], // NFTA_SET_ELEM_LIST_ELEMENTS, nested
            &[20, 0, 1, 0x80], //   NFTA_LIST_ELEM, nested
            &[16, 0, 1, 0x80], //     NFTA_SET_ELEM_KEY, nested
            &[12, 0, 1, 0],    //       NFTA_DATA_VALUE
            &[203, 0, 113, 9],
            &[0x11, 0x51, 0, 0],
        ];
        assert_eq!(request.bytes(), golden.concat());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(
            kind in 0x0a00..0x0a10u16,
            payload in proptest::collection::vec(any::<u8>(), 0..256),
        ) {
            // With the table's name in front, so that the readers go on.
            let ours = [&[1, 0, 0, 0, 12, 0, 1, 0], b"refract\0".as_slice(), &payload].concat();
            for payload in [&payload, &ours] {
                let message = Message { kind, flags: 0, sequence: 0, payload };
                let _ = (read_table(message), read_chain(message), read_set(message));
                let _ = (read_rule(message), read_generation(message));
                read_elements(message, &mut Vec::new());
            }
        }

        #[test]
        fn a_list_with_a_changed_byte_is_read_without_a_panic(at in 0..760usize, byte: u8) {
            let mut bytes = everything();
            prop_assert!(bytes.len() == 760);
            bytes[at] = byte;
            let read = read(&bytes);
            prop_assert!(read.elements.len() <= 16 && read.rules.len() <= 1);
        }
    }
}
