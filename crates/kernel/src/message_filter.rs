//! Which messages of `sock_diag` the kernel hands on, as classic BPF for it.
//!
//! Takes port ranges; makes the program that the kernel runs on each close event. Another program is
//! for the answers to lookups, and leaves connections and troubles of them. It attaches nothing.

use std::ops::RangeInclusive;

use socket2::SockFilter;

use crate::{error::Errno, sock_diag_wire::TcpState, wire::NLMSG_ERROR};

/// The longest list of ranges that is tested in the kernel, one after another: three instructions
/// each, of the 4,096 that a program may have (`linux/bpf_common.h`, `BPF_MAXINSNS`), and within
/// the smallest common `net.core.optmem_max` (20 KiB).
const RANGES_IN_KERNEL: usize = 256;

/// The kind's place in a `struct nlmsghdr`, `linux/netlink.h`.
const KIND: u32 = 4;
/// The code's place in a `struct nlmsgerr`, after the header (16 bytes).
const ERROR_CODE: u32 = 16;
/// The state's place in a `struct inet_diag_msg`, after the header and the family.
const STATE: u32 = 16 + 1;
/// The local port's place, after state, timer and retransmits.
const LOCAL_PORT: u32 = 16 + 4;

// linux/bpf_common.h and linux/filter.h; a load is big-endian, as the port is.
/// `BPF_LD | BPF_W | BPF_ABS`.
const LOAD_WORD: u16 = 0x20;
/// `BPF_LD | BPF_H | BPF_ABS`.
const LOAD_HALF: u16 = 0x28;
/// `BPF_LD | BPF_B | BPF_ABS`.
const LOAD_BYTE: u16 = 0x30;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const JUMP_IF_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGE | BPF_K`.
const JUMP_IF_AT_LEAST: u16 = 0x35;
/// `BPF_JMP | BPF_JGT | BPF_K`.
const JUMP_IF_ABOVE: u16 = 0x25;
/// `BPF_RET | BPF_K`: how many bytes of the message to keep.
const KEEP: u16 = 0x06;

/// Code, how many instructions to skip when the test holds and when it does not, operand.
type Instruction = (u16, u8, u8, u32);

/// The program that keeps events about local ports in `ranges`; `None` where they are too many.
pub(crate) fn closes_on(ranges: &[RangeInclusive<u16>]) -> Option<Vec<SockFilter>> {
    (ranges.len() <= RANGES_IN_KERNEL).then(|| assemble(on_ports(ranges)))
}

/// The program that drops the answers to lookups which found nobody, or only a listening socket,
/// and keeps all others.
pub(crate) fn connections_and_troubles() -> Vec<SockFilter> {
    assemble(NOT_IN_VAIN)
}

fn assemble(instructions: impl IntoIterator<Item = Instruction>) -> Vec<SockFilter> {
    let operation = |(code, yes, no, value)| SockFilter::new(code, yes, no, value);
    instructions.into_iter().map(operation).collect()
}

fn on_ports(ranges: &[RangeInclusive<u16>]) -> impl Iterator<Item = Instruction> + '_ {
    let tests = ranges.iter().flat_map(|range| {
        [
            // Below it: on to the next range.
            (JUMP_IF_AT_LEAST, 0, 2, u32::from(*range.start())),
            // Above it: likewise.
            (JUMP_IF_ABOVE, 1, 0, u32::from(*range.end())),
            (KEEP, 0, 0, u32::MAX),
        ]
    });
    std::iter::once((LOAD_HALF, 0, 0, LOCAL_PORT)).chain(tests).chain([(KEEP, 0, 0, 0)])
}

// What a message has in this machine's byte order is compared as a big-endian load sees it.
const AN_ERROR: u32 = u16::from_be_bytes(NLMSG_ERROR.to_ne_bytes()) as u32;
const NOT_FOUND: u32 = u32::from_be_bytes((-Errno::NOENT.0).to_ne_bytes());

const NOT_IN_VAIN: [Instruction; 8] = [
    (LOAD_HALF, 0, 0, KIND),
    (JUMP_IF_EQUAL, 0, 2, AN_ERROR),
    (LOAD_WORD, 0, 0, ERROR_CODE),
    (JUMP_IF_EQUAL, 2, 3, NOT_FOUND),
    (LOAD_BYTE, 0, 0, STATE),
    (JUMP_IF_EQUAL, 0, 1, TcpState::Listen as u32),
    (KEEP, 0, 0, 0),
    (KEEP, 0, 0, u32::MAX),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sock_filter::ConnectionFilter;

    /// Runs a program on a message, as the kernel does: whether it keeps it.
    fn keeps(program: impl IntoIterator<Item = Instruction>, message: &[u8]) -> bool {
        let program: Vec<_> = program.into_iter().collect();
        let load = |place: u32, length: usize| {
            let bytes = &message[place as usize..][..length];
            bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
        };
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let (code, yes, no, value) = program[at];
            let holds = match code {
                LOAD_WORD | LOAD_HALF | LOAD_BYTE => {
                    let length = [(LOAD_WORD, 4), (LOAD_HALF, 2), (LOAD_BYTE, 1)];
                    accumulator = load(value, length.iter().find(|it| it.0 == code).unwrap().1);
                    false
                }
                JUMP_IF_EQUAL => accumulator == value,
                JUMP_IF_AT_LEAST => accumulator >= value,
                JUMP_IF_ABOVE => accumulator > value,
                KEEP => return value != 0,
                _ => panic!("no such instruction: {code:#x}"),
            };
            at += 1 + usize::from(if holds { yes } else { no });
        }
    }

    // As `tcpdump -d` writes it:
    // (000) ldh [20]   (001) jge #443 jt 2 jf 4   (002) jgt #450 jt 4 jf 3   (003) ret #-1
    // (004) jge #8443 jt 5 jf 7   (005) jgt #8443 jt 7 jf 6   (006) ret #-1   (007) ret #0
    #[test]
    fn two_ranges_are_two_tests_of_the_big_endian_half_word_at_20() {
        let program: Vec<_> = on_ports(&[443..=450, 8443..=8443]).collect();
        #[rustfmt::skip]
        assert_eq!(program, [
            (0x28, 0, 0, 20),
            (0x35, 0, 2, 443),  (0x25, 1, 0, 450),  (0x06, 0, 0, 0xffff_ffff),
            (0x35, 0, 2, 8443), (0x25, 1, 0, 8443), (0x06, 0, 0, 0xffff_ffff),
            (0x06, 0, 0, 0),
        ]);
    }

    #[test]
    fn more_ranges_than_the_program_has_room_for_are_no_program() {
        let ranges: Vec<_> = (0..257).map(|n| 2 * n..=2 * n).collect();
        assert!(closes_on(&ranges).is_none());
        assert_eq!(closes_on(&ranges[..256]).unwrap().len(), 1 + 3 * 256 + 1);
    }

    #[test]
    fn of_the_answers_to_lookups_only_those_in_vain_are_dropped() {
        let answer = |kind: u16, payload: &[u8]| {
            let header = [&[0; 4][..], &kind.to_ne_bytes(), &[0; 10]].concat();
            [&header[..], payload, &[0; 8]].concat()
        };
        let error = |code: i32| answer(NLMSG_ERROR, &code.to_ne_bytes());
        let described = |state: TcpState| answer(20, &[2, state as u8, 0, 0]);
        for (message, is_kept) in [
            (error(-2), false),
            (error(-1), true),
            (error(0), true),
            (described(TcpState::Listen), false),
            (described(TcpState::Established), true),
            (described(TcpState::SynReceived), true),
            (described(TcpState::TimeWait), true),
        ] {
            assert_eq!(keeps(NOT_IN_VAIN, &message), is_kept, "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn the_program_keeps_exactly_the_ports_that_are_wanted(
            ends in proptest::collection::vec((any::<u16>(), 0u16..300), 0..40),
            port in any::<u16>(),
        ) {
            let ranges: Vec<_> =
                ends.iter().map(|(from, more)| *from..=from.saturating_add(*more)).collect();
            let edges = ranges.iter().flat_map(|range| [*range.start(), *range.end()]);
            let near = edges.flat_map(|edge| [edge.wrapping_sub(1), edge, edge.wrapping_add(1)]);
            for port in near.chain([port, 0, u16::MAX]) {
                let wanted = ConnectionFilter::on(&ranges).has_port(port);
                let mut event = [0; 24];
                event[20..22].copy_from_slice(&port.to_be_bytes());
                prop_assert_eq!(keeps(on_ports(&ranges), &event), wanted, "{}", port);
            }
        }
    }
}
