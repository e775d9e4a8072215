//! Rules as the kernel holds them: expressions on registers, both ways. Pure.
//!
//! Takes expressions; writes the attributes of a rule, and reads those of a listed one. It knows the
//! expressions that rules of ours are made of; a rule with any other is none of ours and is not
//! read. Counters are read without their counts.

use crate::wire::{Attribute, Attributes, Writer};

/// `NFT_REG_1`, `linux/netfilter/nf_tables.h`: 16 bytes, where every comparison of ours looks.
pub(crate) const FIRST_REGISTER: u32 = 1;
/// `IPPROTO_TCP` and `IPPROTO_UDP`, `linux/in.h`.
pub(crate) const IPPROTO_TCP: u8 = 6;
pub(crate) const IPPROTO_UDP: u8 = 17;
/// `TCPOPT_MPTCP`, include/net/tcp.h; the kind that IANA assigned.
pub(crate) const TCPOPT_MPTCP: u8 = 30;

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The chain that it is in.
    pub(crate) chain: String,
    /// What it does, one after another, until one does not match.
    pub(crate) expressions: Vec<Expression>,
}

/// One step of a rule. Where none is named, the register is [`FIRST_REGISTER`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expression {
    /// Loads a property of the packet (`enum nft_meta_keys`).
    Meta(u32),
    /// Loads `length` bytes of a header.
    Payload {
        /// `enum nft_payload_bases`.
        base: u32,
        /// Bytes from the header's beginning.
        offset: u32,
        /// Bytes.
        length: u32,
        /// Where to.
        register: u32,
    },
    /// Goes on if the register is this.
    Equals(Vec<u8>),
    /// Goes on if the register is not this.
    Differs(Vec<u8>),
    /// Goes on if the register is not below this, byte by byte from the first.
    AtLeast(Vec<u8>),
    /// Goes on if the register is not above this.
    AtMost(Vec<u8>),
    /// Clears the bits that are not in the mask.
    And(Vec<u8>),
    /// Goes on if the key that begins in the register is in this set.
    Lookup(String),
    /// Counts packets and bytes.
    Count,
    /// Ends the rule: `NF_DROP`, or a jump to a chain.
    Verdict {
        /// `enum nft_verdicts`, or a verdict of `linux/netfilter.h`.
        code: i32,
        /// Where a jump goes.
        chain: Option<String>,
    },
    /// Overwrites a TCP option with no-operations.
    ResetTcpOption(u8),
}

impl Expression {
    pub(crate) fn family_is(family: u8) -> [Self; 2] {
        [Self::Meta(META_NFPROTO), Self::Equals(vec![family])]
    }

    pub(crate) fn protocol_is(protocol: u8) -> [Self; 2] {
        [Self::Meta(META_L4PROTO), Self::Equals(vec![protocol])]
    }

    pub(crate) fn network_header(offset: u32, length: u32, register: u32) -> Self {
        Self::Payload { base: PAYLOAD_NETWORK_HEADER, offset, length, register }
    }

    pub(crate) fn transport_header(offset: u32, length: u32, register: u32) -> Self {
        Self::Payload { base: PAYLOAD_TRANSPORT_HEADER, offset, length, register }
    }

    pub(crate) fn drop_packet() -> Self {
        Self::Verdict { code: NF_DROP, chain: None }
    }

    pub(crate) fn jump(chain: &str) -> Self {
        Self::Verdict { code: NFT_JUMP, chain: Some(chain.to_owned()) }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Meta(_) => "meta",
            Self::Payload { .. } => "payload",
            Self::Equals(_) | Self::Differs(_) | Self::AtLeast(_) | Self::AtMost(_) => "cmp",
            Self::And(_) => "bitwise",
            Self::Lookup(_) => "lookup",
            Self::Count => "counter",
            Self::Verdict { .. } => "immediate",
            Self::ResetTcpOption(_) => "exthdr",
        }
    }

    fn write(&self, request: &mut Writer) {
        let element = request.begin_nest(LIST_ELEM);
        request.attribute_str(EXPR_NAME, self.name());
        let data = request.begin_nest(EXPR_DATA);
        match self {
            Self::Meta(key) => {
                put_u32(request, META_KEY, *key);
                put_u32(request, META_DREG, FIRST_REGISTER);
            }
            Self::Payload { base, offset, length, register } => {
                put_u32(request, PAYLOAD_DREG, *register);
                put_u32(request, PAYLOAD_BASE, *base);
                put_u32(request, PAYLOAD_OFFSET, *offset);
                put_u32(request, PAYLOAD_LEN, *length);
            }
            Self::Equals(value) => write_comparison(request, CMP_EQ, value),
            Self::Differs(value) => write_comparison(request, CMP_NEQ, value),
            Self::AtLeast(value) => write_comparison(request, CMP_GTE, value),
            Self::AtMost(value) => write_comparison(request, CMP_LTE, value),
            Self::And(mask) => {
                put_u32(request, BITWISE_SREG, FIRST_REGISTER);
                put_u32(request, BITWISE_DREG, FIRST_REGISTER);
                // A mask is as long as an address.
                put_u32(request, BITWISE_LEN, u32::try_from(mask.len()).unwrap_or(u32::MAX));
                put_value(request, BITWISE_MASK, mask);
                put_value(request, BITWISE_XOR, &vec![0; mask.len()]);
            }
            Self::Lookup(set) => {
                put_u32(request, LOOKUP_SREG, FIRST_REGISTER);
                request.attribute_str(LOOKUP_SET, set);
            }
            Self::Count => {}
            Self::Verdict { code, chain } => {
                put_u32(request, IMMEDIATE_DREG, VERDICT_REGISTER);
                let value = request.begin_nest(IMMEDIATE_DATA);
                let verdict = request.begin_nest(DATA_VERDICT);
                request.attribute(VERDICT_CODE, &code.to_be_bytes());
                if let Some(chain) = chain {
                    request.attribute_str(VERDICT_CHAIN, chain);
                }
                request.end_nest(verdict);
                request.end_nest(value);
            }
            Self::ResetTcpOption(kind) => {
                request.attribute(EXTHDR_TYPE, &[*kind]);
                put_u32(request, EXTHDR_OP, EXTHDR_OP_TCPOPT);
            }
        }
        request.end_nest(data);
        request.end_nest(element);
    }

    fn read(element: Attribute<'_>) -> Option<Self> {
        let (mut name, mut data) = (None, Fields(Attributes::new(&[])));
        for attribute in element.nested() {
            match attribute.kind {
                EXPR_NAME => name = attribute.text(),
                EXPR_DATA => data = Fields(attribute.nested()),
                _ => {}
            }
        }
        match name? {
            "meta" => {
                data.is(META_DREG, FIRST_REGISTER)?;
                Some(Self::Meta(data.u32(META_KEY)?))
            }
            "payload" => Some(Self::Payload {
                base: data.u32(PAYLOAD_BASE)?,
                offset: data.u32(PAYLOAD_OFFSET)?,
                length: data.u32(PAYLOAD_LEN)?,
                register: data.u32(PAYLOAD_DREG)?,
            }),
            "cmp" => {
                data.is(CMP_SREG, FIRST_REGISTER)?;
                let value = data.value(CMP_DATA)?;
                match data.u32(CMP_OP)? {
                    CMP_EQ => Some(Self::Equals(value)),
                    CMP_NEQ => Some(Self::Differs(value)),
                    CMP_GTE => Some(Self::AtLeast(value)),
                    CMP_LTE => Some(Self::AtMost(value)),
                    _ => None,
                }
            }
            "bitwise" => {
                data.is(BITWISE_SREG, FIRST_REGISTER)?;
                data.is(BITWISE_DREG, FIRST_REGISTER)?;
                // Kernels before 5.6 have no other operation and name none.
                if data.find(BITWISE_OP).is_some() {
                    data.is(BITWISE_OP, BITWISE_BOOL)?;
                }
                let changes = data.value(BITWISE_XOR)?.iter().any(|byte| *byte != 0);
                if changes { None } else { Some(Self::And(data.value(BITWISE_MASK)?)) }
            }
            "lookup" => {
                data.is(LOOKUP_SREG, FIRST_REGISTER)?;
                let is_plain = data.find(LOOKUP_DREG).is_none()
                    && data.u32(LOOKUP_FLAGS).is_none_or(|flags| flags == 0);
                let set = data.find(LOOKUP_SET)?.text()?.to_owned();
                is_plain.then_some(Self::Lookup(set))
            }
            "counter" => Some(Self::Count),
            "immediate" => {
                data.is(IMMEDIATE_DREG, VERDICT_REGISTER)?;
                let verdict = Fields(data.find(IMMEDIATE_DATA)?.nested()).find(DATA_VERDICT)?;
                let verdict = Fields(verdict.nested());
                Some(Self::Verdict {
                    code: verdict.u32(VERDICT_CODE)?.cast_signed(),
                    chain: verdict
                        .find(VERDICT_CHAIN)
                        .and_then(|chain| Some(chain.text()?.to_owned())),
                })
            }
            "exthdr" => {
                data.is(EXTHDR_OP, EXTHDR_OP_TCPOPT)?;
                let is_reset = data.find(EXTHDR_DREG).is_none() && data.find(EXTHDR_SREG).is_none();
                let kind = *data.find(EXTHDR_TYPE)?.payload.first()?;
                is_reset.then_some(Self::ResetTcpOption(kind))
            }
            _ => None,
        }
    }
}

/// Writes the expressions of a rule.
pub(crate) fn write_expressions(request: &mut Writer, expressions: &[Expression]) {
    for expression in expressions {
        expression.write(request);
    }
}

/// Reads them; `None` if there is one that is in no rule of ours.
pub(crate) fn read_expressions(list: Attribute<'_>) -> Option<Vec<Expression>> {
    list.nested().map(Expression::read).collect()
}

/// Appends a number as nftables takes it: big-endian, without saying so.
pub(crate) fn put_u32(request: &mut Writer, kind: u16, value: u32) {
    request.attribute(kind, &value.to_be_bytes());
}

/// Appends a value within its nest.
pub(crate) fn put_value(request: &mut Writer, kind: u16, value: &[u8]) {
    let nest = request.begin_nest(kind);
    request.attribute(DATA_VALUE, value);
    request.end_nest(nest);
}

/// Reads [`put_value`].
pub(crate) fn read_value(attribute: Attribute<'_>) -> Option<&[u8]> {
    Fields(attribute.nested()).find(DATA_VALUE).map(|value| value.payload)
}

fn write_comparison(request: &mut Writer, operation: u32, value: &[u8]) {
    put_u32(request, CMP_SREG, FIRST_REGISTER);
    put_u32(request, CMP_OP, operation);
    put_value(request, CMP_DATA, value);
}

/// The attributes of one expression, asked for by their number.
struct Fields<'a>(Attributes<'a>);

impl<'a> Fields<'a> {
    fn find(&self, kind: u16) -> Option<Attribute<'a>> {
        self.0.clone().find(|attribute| attribute.kind == kind)
    }

    fn u32(&self, kind: u16) -> Option<u32> {
        self.find(kind)?.u32_be()
    }

    fn value(&self, kind: u16) -> Option<Vec<u8>> {
        Some(read_value(self.find(kind)?)?.to_vec())
    }

    fn is(&self, kind: u16, expected: u32) -> Option<()> {
        (self.u32(kind)? == expected).then_some(())
    }
}

// Of linux/netfilter/nf_tables.h, as everything that follows: lists and values.
const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
// `enum nft_meta_attributes` and `enum nft_meta_keys`.
const META_DREG: u16 = 1;
const META_KEY: u16 = 2;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
// `enum nft_payload_attributes` and `enum nft_payload_bases`.
const PAYLOAD_DREG: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LEN: u16 = 4;
const PAYLOAD_NETWORK_HEADER: u32 = 1;
const PAYLOAD_TRANSPORT_HEADER: u32 = 2;
// `enum nft_cmp_attributes` and `enum nft_cmp_ops`.
const CMP_SREG: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const CMP_LTE: u32 = 3;
const CMP_GTE: u32 = 5;
// `enum nft_bitwise_attributes` and `enum nft_bitwise_ops`.
const BITWISE_SREG: u16 = 1;
const BITWISE_DREG: u16 = 2;
const BITWISE_LEN: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const BITWISE_OP: u16 = 6;
const BITWISE_BOOL: u32 = 0;
// `enum nft_lookup_attributes`.
const LOOKUP_SET: u16 = 1;
const LOOKUP_SREG: u16 = 2;
const LOOKUP_DREG: u16 = 3;
const LOOKUP_FLAGS: u16 = 5;
// `enum nft_immediate_attributes`, `enum nft_verdict_attributes`, `NFT_REG_VERDICT`, and the
// verdicts.
const IMMEDIATE_DREG: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const VERDICT_REGISTER: u32 = 0;
const NFT_JUMP: i32 = -3;
const NF_DROP: i32 = 0;
// `enum nft_exthdr_attributes` and `enum nft_exthdr_op`. Without a register the option is reset,
// from Linux 5.18 on.
const EXTHDR_DREG: u16 = 1;
const EXTHDR_TYPE: u16 = 2;
const EXTHDR_OP: u16 = 6;
const EXTHDR_SREG: u16 = 7;
const EXTHDR_OP_TCPOPT: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn read_back(
        expressions: &[Expression],
        more: impl FnOnce(&mut Writer),
    ) -> Option<Vec<Expression>> {
        let mut request = Writer::new();
        let list = request.begin_nest(LIST_ELEM);
        write_expressions(&mut request, expressions);
        more(&mut request);
        request.end_nest(list);
        read_expressions(Attributes::new(request.bytes()).next().unwrap())
    }

    fn foreign(request: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
        let element = request.begin_nest(LIST_ELEM);
        request.attribute_str(EXPR_NAME, name);
        let nest = request.begin_nest(EXPR_DATA);
        data(request);
        request.end_nest(nest);
        request.end_nest(element);
    }

    #[test]
    fn every_expression_is_read_as_it_was_written() {
        let all = [
            Expression::Meta(META_L4PROTO),
            Expression::Equals(vec![6]),
            Expression::Differs(vec![0, 1]),
            Expression::AtLeast(vec![1, 187]),
            Expression::AtMost(vec![2, 0]),
            Expression::transport_header(2, 2, 9),
            Expression::And(vec![255, 255, 255, 0]),
            Expression::Lookup("banned_users".to_owned()),
            Expression::Count,
            Expression::drop_packet(),
            Expression::jump("banned"),
            Expression::ResetTcpOption(TCPOPT_MPTCP),
        ];
        assert_eq!(read_back(&all, |_| ()).unwrap(), all);
    }

    #[test]
    fn what_no_rule_of_ours_holds_is_not_taken_for_ours() {
        let lookup = |request: &mut Writer| {
            put_u32(request, LOOKUP_SREG, FIRST_REGISTER);
            request.attribute_str(LOOKUP_SET, "banned_users");
        };
        assert!(read_back(&[], |request| foreign(request, "lookup", lookup)).is_some());
        // NFT_LOOKUP_F_INV: whoever is not in the set.
        assert_eq!(
            read_back(&[], |request| foreign(request, "lookup", |request| {
                lookup(request);
                put_u32(request, LOOKUP_FLAGS, 1);
            })),
            None
        );
        // NFT_CMP_LT.
        assert_eq!(
            read_back(&[], |request| foreign(request, "cmp", |request| {
                write_comparison(request, 2, &[6]);
            })),
            None
        );
        // Bits that are turned round after the mask.
        assert_eq!(
            read_back(&[], |request| foreign(request, "bitwise", |request| {
                put_u32(request, BITWISE_SREG, FIRST_REGISTER);
                put_u32(request, BITWISE_DREG, FIRST_REGISTER);
                put_value(request, BITWISE_MASK, &[255]);
                put_value(request, BITWISE_XOR, &[1]);
            })),
            None
        );
        // A load of the option, and one into it, are no reset.
        for register in [EXTHDR_DREG, EXTHDR_SREG] {
            assert_eq!(
                read_back(&[], |request| foreign(request, "exthdr", |request| {
                    request.attribute(EXTHDR_TYPE, &[TCPOPT_MPTCP]);
                    put_u32(request, EXTHDR_OP, EXTHDR_OP_TCPOPT);
                    put_u32(request, register, FIRST_REGISTER);
                })),
                None
            );
        }
        assert_eq!(read_back(&[Expression::Count], |it| foreign(it, "log", |_| ())), None);
        assert_eq!(read_back(&[], |request| foreign(request, "meta", |_| ())), None);
    }
}
