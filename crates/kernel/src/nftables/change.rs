//! Changes to our one table, written as the messages of a transaction. Pure.
//!
//! Takes changes; writes them for one datagram, which the kernel takes as a whole or not at all. It
//! opens no socket, and what is to be changed is the business of others.

use super::{
    rule::{Rule, put_u32, write_expressions},
    wire::{
        CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TYPE, Chain, ChainHook, DESC_SIZE, Element,
        HOOK_NUMBER, HOOK_PRIORITY, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM, NEWTABLE, RULE_CHAIN,
        RULE_EXPRESSIONS, SET_DESC, SET_FLAGS, SET_KEY_LEN, SET_KEY_TYPE, SET_NAME, SET_TIMEOUT,
        Set, TABLE, TABLE_FLAGS, TABLE_NAME, begin, write_elements,
    },
};
use crate::wire::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, Writer};

/// One change of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Change<'a> {
    /// Makes the table, or wakes it if it is dormant.
    Table,
    /// Deletes the table and all that is in it.
    DeleteTable,
    /// Makes a chain.
    Chain(Chain),
    /// Deletes a chain and its rules.
    DeleteChain(&'a str),
    /// Deletes the rules of a chain.
    Flush(&'a str),
    /// Appends a rule.
    Rule(Rule),
    /// Makes a set.
    Set(Set),
    /// Deletes a set that no rule names.
    DeleteSet(&'a str),
    /// Adds elements; those that are there stay as they are before Linux 6.12 and get the new time
    /// from then on.
    Add(&'a str, &'a [Element]),
    /// Adds an element, or is refused with `EEXIST` if it is there.
    AddNew(&'a str, &'a Element),
    /// Deletes an element, or is refused with `ENOENT` if it is not there.
    Delete(&'a str, &'a Element),
}

impl Change<'_> {
    /// Appends this change's message, with `NLM_F_ACK` where the kernel's answer is waited for.
    pub(crate) fn write(&self, request: &mut Writer, sequence: u32, acknowledge: bool) {
        let (kind, flags) = match self {
            Self::Table => (NEWTABLE, NLM_F_CREATE),
            Self::DeleteTable => (DELTABLE, 0),
            Self::Chain(_) => (NEWCHAIN, NLM_F_CREATE),
            Self::DeleteChain(_) => (DELCHAIN, 0),
            Self::Flush(_) => (DELRULE, 0),
            Self::Rule(_) => (NEWRULE, NLM_F_CREATE | NLM_F_APPEND),
            Self::Set(_) => (NEWSET, NLM_F_CREATE | NLM_F_EXCL),
            Self::DeleteSet(_) => (DELSET, 0),
            Self::Add(..) => (NEWSETELEM, NLM_F_CREATE),
            Self::AddNew(..) => (NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL),
            Self::Delete(..) => (DELSETELEM, 0),
        };
        let flags = if acknowledge { flags | NLM_F_ACK } else { flags };
        begin(request, kind, flags, sequence);
        request.attribute_str(TABLE_NAME, TABLE);
        match self {
            Self::Table => put_u32(request, TABLE_FLAGS, 0),
            Self::DeleteTable => {}
            Self::Chain(chain) => write_chain(request, chain),
            Self::DeleteChain(name) => request.attribute_str(CHAIN_NAME, name),
            Self::Flush(chain) => request.attribute_str(RULE_CHAIN, chain),
            Self::Rule(rule) => write_rule(request, rule),
            Self::Set(set) => write_set(request, set, sequence),
            Self::DeleteSet(name) => request.attribute_str(SET_NAME, name),
            Self::Add(set, elements) => write_elements(request, set, elements),
            Self::AddNew(set, element) | Self::Delete(set, element) => {
                write_elements(request, set, std::slice::from_ref(*element));
            }
        }
        request.end();
    }
}

/// Begins a transaction; with a `generation`, the kernel refuses it (`ERESTART`) if the rules have
/// changed since.
pub(crate) fn write_batch_begin(request: &mut Writer, sequence: u32, generation: Option<u32>) {
    request.begin(BATCH_BEGIN, 0, sequence);
    request.put(&BATCH_HEADER);
    if let Some(generation) = generation {
        put_u32(request, BATCH_GENID, generation);
    }
    request.end();
}

/// Ends a transaction: the kernel takes all of it, or nothing.
pub(crate) fn write_batch_end(request: &mut Writer, sequence: u32) {
    request.begin(BATCH_END, 0, sequence);
    request.put(&BATCH_HEADER);
    request.end();
}

fn write_chain(request: &mut Writer, chain: &Chain) {
    request.attribute_str(CHAIN_NAME, &chain.name);
    let Some(ChainHook { kind, number, priority, policy }) = &chain.hook else { return };
    request.attribute_str(CHAIN_TYPE, kind);
    put_u32(request, CHAIN_POLICY, *policy);
    let hook = request.begin_nest(CHAIN_HOOK);
    put_u32(request, HOOK_NUMBER, *number);
    request.attribute(HOOK_PRIORITY, &priority.to_be_bytes());
    request.end_nest(hook);
}

fn write_rule(request: &mut Writer, rule: &Rule) {
    request.attribute_str(RULE_CHAIN, &rule.chain);
    let list = request.begin_nest(RULE_EXPRESSIONS);
    write_expressions(request, &rule.expressions);
    request.end_nest(list);
    request.attribute(RULE_USERDATA, COMMENT);
}

fn write_set(request: &mut Writer, set: &Set, id: u32) {
    request.attribute_str(SET_NAME, &set.name);
    put_u32(request, SET_FLAGS, set.flags);
    put_u32(request, SET_KEY_TYPE, set.key_type);
    put_u32(request, SET_KEY_LEN, set.key_length);
    // By this number a rule of the same transaction could name the set; the kernel insists on one.
    put_u32(request, SET_ID, id);
    if let Some(size) = set.size {
        let desc = request.begin_nest(SET_DESC);
        put_u32(request, DESC_SIZE, size);
        request.end_nest(desc);
    }
    if let Some(timeout) = set.timeout {
        request.attribute(SET_TIMEOUT, &timeout.to_be_bytes());
    }
}

/// `struct nfgenmsg` of a transaction: its `res_id` is the subsystem, big-endian.
const BATCH_HEADER: [u8; 4] = [0, 0, 0, 10];
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END` and `NFNL_BATCH_GENID`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const BATCH_GENID: u16 = 1;
/// `NLM_F_APPEND`, linux/netlink.h: at the end of the chain.
const NLM_F_APPEND: u16 = 0x800;
/// A comment as `nft` keeps it (`NFTNL_UDATA_RULE_COMMENT`, libnftnl's `udata.h`): type, length, text.
const COMMENT: &[u8] = b"\x00\x08refract\0";
// `enum nf_tables_msg_types` and two attributes, `linux/netfilter/nf_tables.h`.
const DELTABLE: u16 = 2;
const DELCHAIN: u16 = 5;
const DELRULE: u16 = 8;
const DELSET: u16 = 11;
const DELSETELEM: u16 = 14;
const RULE_USERDATA: u16 = 7;
const SET_ID: u16 = 10;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        ban::BanTarget,
        nftables::{
            plan::Hook,
            sets::BanSet,
            wire::{TIMEOUTS, write_list_sets},
        },
    };

    /// Compared field by field, each in a slice of its own.
    #[track_caller]
    fn check(change: &Change<'_>, golden: &[&[u8]]) {
        let mut request = Writer::new();
        change.write(&mut request, 1, false);
        let golden = golden.concat();
        assert_eq!(request.bytes(), golden, "{:02x?}", request.bytes());
        assert_eq!(usize::from(golden[0]) + 256 * usize::from(golden[1]), golden.len());
    }

    fn element(time: Option<Duration>) -> Element {
        let key = BanSet::key(BanTarget::host([203, 0, 113, 9].into()));
        let time = time.map(|time| u64::try_from(time.as_millis()).unwrap());
        Element { key, time }
    }

    // What `nft` sends before and after the changes of one command.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_transaction_begins_and_ends_with_these_bytes() {
        let mut request = Writer::new();
        write_batch_begin(&mut request, 1, None);
        write_batch_end(&mut request, 2);
        let golden: &[&[u8]] = &[
            &[20, 0, 0, 0],   // nlmsg_len
            &[0x10, 0x00],    // nlmsg_type: NFNL_MSG_BATCH_BEGIN
            &[0x01, 0x00],    // nlmsg_flags: REQUEST
            &[1, 0, 0, 0],    // nlmsg_seq
            &[0, 0, 0, 0],    // nlmsg_pid
            &[0, 0, 0, 0x0a], // nfgenmsg: NFNL_SUBSYS_NFTABLES
            &[20, 0, 0, 0],
            &[0x11, 0x00], // nlmsg_type: NFNL_MSG_BATCH_END
            &[0x01, 0x00],
            &[2, 0, 0, 0],
            &[0, 0, 0, 0],
            &[0, 0, 0, 0x0a],
        ];
        assert_eq!(request.bytes(), golden.concat());

        request.clear();
        write_batch_begin(&mut request, 1, Some(7));
        assert_eq!(request.bytes()[20..], [8, 0, 1, 0, 0, 0, 0, 7]); // NFNL_BATCH_GENID
    }

    // nft add table inet refract
    #[test]
    #[cfg(target_endian = "little")]
    fn adding_the_table_has_these_bytes() {
        check(
            &Change::Table,
            &[
                &[40, 0, 0, 0], // nlmsg_len
                &[0x00, 0x0a],  // nlmsg_type: NFT_MSG_NEWTABLE
                &[0x01, 0x04],  // nlmsg_flags: REQUEST, CREATE
                &[1, 0, 0, 0],  // nlmsg_seq
                &[0, 0, 0, 0],  // nlmsg_pid
                &[1, 0, 0, 0],  // nfgenmsg: NFPROTO_INET
                &[12, 0, 1, 0], // NFTA_TABLE_NAME
                b"refract\0",
                &[8, 0, 2, 0], // NFTA_TABLE_FLAGS
                &[0, 0, 0, 0],
            ],
        );
    }

    // nft delete table inet refract
    #[test]
    #[cfg(target_endian = "little")]
    fn deleting_the_table_has_these_bytes() {
        check(
            &Change::DeleteTable,
            &[
                &[32, 0, 0, 0],
                &[0x02, 0x0a], // nlmsg_type: NFT_MSG_DELTABLE
                &[0x01, 0x00], // nlmsg_flags: REQUEST
                &[1, 0, 0, 0],
                &[0, 0, 0, 0],
                &[1, 0, 0, 0],
                &[12, 0, 1, 0], // NFTA_TABLE_NAME
                b"refract\0",
            ],
        );
    }

    // nft add chain inet refract input '{ type filter hook input priority filter - 10; policy accept; }'
    #[test]
    #[cfg(target_endian = "little")]
    fn adding_the_hooked_chain_has_these_bytes() {
        check(
            &Change::Chain(Hook::Input.chain()),
            &[
                &[84, 0, 0, 0],
                &[0x03, 0x0a], // nlmsg_type: NFT_MSG_NEWCHAIN
                &[0x01, 0x04], // nlmsg_flags: REQUEST, CREATE
                &[1, 0, 0, 0],
                &[0, 0, 0, 0],
                &[1, 0, 0, 0],
                &[12, 0, 1, 0], // NFTA_CHAIN_TABLE
                b"refract\0",
                &[10, 0, 3, 0], // NFTA_CHAIN_NAME
                b"input\0",
                &[0, 0],        //   padding
                &[11, 0, 7, 0], // NFTA_CHAIN_TYPE
                b"filter\0",
                &[0],                  //   padding
                &[8, 0, 5, 0],         // NFTA_CHAIN_POLICY
                &[0, 0, 0, 1],         //   NF_ACCEPT
                &[20, 0, 4, 0x80],     // NFTA_CHAIN_HOOK, nested
                &[8, 0, 1, 0],         //   NFTA_HOOK_HOOKNUM
                &[0, 0, 0, 1],         //     NF_INET_LOCAL_IN
                &[8, 0, 2, 0],         //   NFTA_HOOK_PRIORITY
                &[255, 255, 255, 246], //     -10
            ],
        );
    }

    // nft add set inet refract banned_flows \
    //   '{ type ipv4_addr . inet_service; size 1048576; flags timeout; timeout 1m; }'
    // The tool adds notes of its own (NFTA_SET_USERDATA), which it lists the set without as well.
    #[test]
    #[cfg(target_endian = "little")]
    fn adding_a_set_has_these_bytes() {
        let (key_type, key_length) = BanSet::Flows.key_type();
        let set = Set {
            name: BanSet::Flows.name(),
            key_type,
            key_length,
            flags: TIMEOUTS,
            size: Some(1 << 20),
            timeout: Some(60_000),
        };
        check(
            &Change::Set(set),
            &[
                &[108, 0, 0, 0],
                &[0x09, 0x0a], // nlmsg_type: NFT_MSG_NEWSET
                &[0x01, 0x06], // nlmsg_flags: REQUEST, CREATE, EXCL
                &[1, 0, 0, 0],
                &[0, 0, 0, 0],
                &[1, 0, 0, 0],
                &[12, 0, 1, 0], // NFTA_SET_TABLE
                b"refract\0",
                &[17, 0, 2, 0], // NFTA_SET_NAME
                b"banned_flows\0",
                &[0, 0, 0],          //   padding
                &[8, 0, 3, 0],       // NFTA_SET_FLAGS
                &[0, 0, 0, 0x10],    //   NFT_SET_TIMEOUT
                &[8, 0, 4, 0],       // NFTA_SET_KEY_TYPE
                &[0, 0, 0x01, 0xcd], //   TYPE_IPADDR << 6 | TYPE_INET_SERVICE
                &[8, 0, 5, 0],       // NFTA_SET_KEY_LEN
                &[0, 0, 0, 8],       //   an address and a register for the port
                &[8, 0, 10, 0],      // NFTA_SET_ID
                &[0, 0, 0, 1],
                &[12, 0, 9, 0x80],               // NFTA_SET_DESC, nested
                &[8, 0, 1, 0],                   //   NFTA_SET_DESC_SIZE
                &[0, 0x10, 0, 0],                //     1,048,576
                &[12, 0, 11, 0],                 // NFTA_SET_TIMEOUT
                &[0, 0, 0, 0, 0, 0, 0xea, 0x60], // 60,000 ms
            ],
        );
    }

    // nft add rule inet refract banned ip saddr @banned_users counter drop comment '"refract"'
    // The tool also names the counter's start (0) and, in a transaction that makes it, the set's number.
    #[test]
    #[cfg(target_endian = "little")]
    fn adding_a_rule_has_these_bytes() {
        check(
            &Change::Rule(BanSet::Users.rule()),
            &[
                &[0x38, 0x01, 0, 0],
                &[0x06, 0x0a], // nlmsg_type: NFT_MSG_NEWRULE
                &[0x01, 0x0c], // nlmsg_flags: REQUEST, CREATE, APPEND
                &[1, 0, 0, 0],
                &[0, 0, 0, 0],
                &[1, 0, 0, 0],
                &[12, 0, 1, 0], // NFTA_RULE_TABLE
                b"refract\0",
                &[11, 0, 2, 0], // NFTA_RULE_CHAIN
                b"banned\0",
                &[0],               //   padding
                &[252, 0, 4, 0x80], // NFTA_RULE_EXPRESSIONS, nested
                &[36, 0, 1, 0x80],  //   NFTA_LIST_ELEM, nested
                &[9, 0, 1, 0],      //     NFTA_EXPR_NAME
                b"meta\0\0\0\0",
                &[20, 0, 2, 0x80], //     NFTA_EXPR_DATA, nested
                &[8, 0, 2, 0],     //       NFTA_META_KEY
                &[0, 0, 0, 15],    //         NFT_META_NFPROTO
                &[8, 0, 1, 0],     //       NFTA_META_DREG
                &[0, 0, 0, 1],     //         NFT_REG_1
                &[44, 0, 1, 0x80], //   NFTA_LIST_ELEM
                &[8, 0, 1, 0],
                b"cmp\0",
                &[32, 0, 2, 0x80],
                &[8, 0, 1, 0], //       NFTA_CMP_SREG
                &[0, 0, 0, 1],
                &[8, 0, 2, 0],     //       NFTA_CMP_OP
                &[0, 0, 0, 0],     //         NFT_CMP_EQ
                &[12, 0, 3, 0x80], //       NFTA_CMP_DATA, nested
                &[5, 0, 1, 0],     //         NFTA_DATA_VALUE
                &[2, 0, 0, 0],     //           NFPROTO_IPV4, padding
                &[52, 0, 1, 0x80], //   NFTA_LIST_ELEM
                &[12, 0, 1, 0],
                b"payload\0",
                &[36, 0, 2, 0x80],
                &[8, 0, 1, 0], //       NFTA_PAYLOAD_DREG
                &[0, 0, 0, 1],
                &[8, 0, 2, 0],  //       NFTA_PAYLOAD_BASE
                &[0, 0, 0, 1],  //         NFT_PAYLOAD_NETWORK_HEADER
                &[8, 0, 3, 0],  //       NFTA_PAYLOAD_OFFSET
                &[0, 0, 0, 12], //         saddr
                &[8, 0, 4, 0],  //       NFTA_PAYLOAD_LEN
                &[0, 0, 0, 4],
                &[48, 0, 1, 0x80], //   NFTA_LIST_ELEM
                &[11, 0, 1, 0],
                b"lookup\0\0",
                &[32, 0, 2, 0x80],
                &[8, 0, 2, 0], //       NFTA_LOOKUP_SREG
                &[0, 0, 0, 1],
                &[17, 0, 1, 0], //       NFTA_LOOKUP_SET
                b"banned_users\0\0\0\0",
                &[20, 0, 1, 0x80], //   NFTA_LIST_ELEM
                &[12, 0, 1, 0],
                b"counter\0",
                &[4, 0, 2, 0x80],
                &[48, 0, 1, 0x80], //   NFTA_LIST_ELEM
                &[14, 0, 1, 0],
                b"immediate\0\0\0",
                &[28, 0, 2, 0x80],
                &[8, 0, 1, 0],        //       NFTA_IMMEDIATE_DREG
                &[0, 0, 0, 0],        //         NFT_REG_VERDICT
                &[16, 0, 2, 0x80],    //       NFTA_IMMEDIATE_DATA, nested
                &[12, 0, 2, 0x80],    //         NFTA_DATA_VERDICT, nested
                &[8, 0, 1, 0],        //           NFTA_VERDICT_CODE
                &[0, 0, 0, 0],        //             NF_DROP
                &[14, 0, 7, 0],       // NFTA_RULE_USERDATA
                b"\x00\x08refract\0", //   NFTNL_UDATA_RULE_COMMENT
                &[0, 0],              //   padding
            ],
        );
    }

    // nft add element inet refract banned_users '{ 203.0.113.9 timeout 60s }'
    // The tool also gives the number of the set (NFTA_SET_ELEM_LIST_SET_ID).
    #[test]
    #[cfg(target_endian = "little")]
    fn adding_an_element_has_these_bytes() {
        let banned = element(Some(Duration::from_mins(1)));
        let rest: &[&[u8]] = &[
            &[1, 0, 0, 0],
            &[0, 0, 0, 0],
            &[1, 0, 0, 0],
            &[12, 0, 1, 0], // NFTA_SET_ELEM_LIST_TABLE
            b"refract\0",
            &[17, 0, 2, 0], // NFTA_SET_ELEM_LIST_SET
            b"banned_users\0",
            &[0, 0, 0],        //   padding
            &[32, 0, 3, 0x80], // NFTA_SET_ELEM_LIST_ELEMENTS, nested
            &[28, 0, 1, 0x80], //   NFTA_LIST_ELEM, nested
            &[12, 0, 4, 0],    //     NFTA_SET_ELEM_TIMEOUT
            &[0, 0, 0, 0, 0, 0, 0xea, 0x60],
            &[12, 0, 1, 0x80], //     NFTA_SET_ELEM_KEY, nested
            &[8, 0, 1, 0],     //       NFTA_DATA_VALUE
            &[203, 0, 113, 9],
        ];
        let rest = rest.concat();
        // nlmsg_type NFT_MSG_NEWSETELEM; nlmsg_flags REQUEST, CREATE, and EXCL for `create element`.
        let add = Change::Add("banned_users", std::slice::from_ref(&banned));
        check(&add, &[&[84, 0, 0, 0], &[0x0c, 0x0a], &[0x01, 0x04], &rest]);
        let create = Change::AddNew("banned_users", &banned);
        check(&create, &[&[84, 0, 0, 0], &[0x0c, 0x0a], &[0x01, 0x06], &rest]);
    }

    // nft delete element inet refract banned_users '{ 203.0.113.9 }'
    #[test]
    #[cfg(target_endian = "little")]
    fn deleting_an_element_has_these_bytes() {
        check(
            &Change::Delete("banned_users", &element(None)),
            &[
                &[72, 0, 0, 0],
                &[0x0e, 0x0a], // nlmsg_type: NFT_MSG_DELSETELEM
                &[0x01, 0x00], // nlmsg_flags: REQUEST
                &[1, 0, 0, 0],
                &[0, 0, 0, 0],
                &[1, 0, 0, 0],
                &[12, 0, 1, 0], // NFTA_SET_ELEM_LIST_TABLE
                b"refract\0",
                &[17, 0, 2, 0], // NFTA_SET_ELEM_LIST_SET
                b"banned_users\0",
                &[0, 0, 0],        //   padding
                &[20, 0, 3, 0x80], // NFTA_SET_ELEM_LIST_ELEMENTS, nested
                &[16, 0, 1, 0x80], //   NFTA_LIST_ELEM, nested
                &[12, 0, 1, 0x80], //     NFTA_SET_ELEM_KEY, nested
                &[8, 0, 1, 0],     //       NFTA_DATA_VALUE
                &[203, 0, 113, 9],
            ],
        );
    }

    // nft flush chain inet refract input; nft delete chain inet refract input;
    // nft delete set inet refract banned_users
    #[test]
    fn flushing_and_deleting_name_the_type_and_the_object() {
        for (change, kind, attribute, name) in [
            (Change::Flush("input"), 0x0a08, 2, "input"),
            (Change::DeleteChain("input"), 0x0a05, 3, "input"),
            (Change::DeleteSet("banned_users"), 0x0a0b, 2, "banned_users"),
        ] {
            let mut request = Writer::new();
            change.write(&mut request, 1, true);
            let message = crate::wire::Messages::new(request.bytes()).next().unwrap();
            // REQUEST and ACK: none of these may be made to pass over what is not there.
            assert_eq!((message.kind, message.flags), (kind, 0x05), "{change:?}");
            let attributes = crate::wire::Attributes::new(&message.payload[4..]);
            let attributes: Vec<_> =
                attributes.map(|it| (it.kind, it.text().unwrap().to_owned())).collect();
            let named = |kind, name: &str| (kind, name.to_owned());
            assert_eq!(attributes, [named(1, "refract"), named(attribute, name)]);
        }
    }

    #[test]
    fn only_a_question_lists() {
        // The bits of NLM_F_DUMP are those of other flags in a change; they must never meet.
        let mut request = Writer::new();
        write_list_sets(&mut request, 1);
        let message = crate::wire::Messages::new(request.bytes()).next().unwrap();
        assert_eq!((message.kind, message.flags), (0x0a0a, 0x0301));
    }
}
