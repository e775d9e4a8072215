//! Which close events are handed on, as classic BPF for the kernel.
//!
//! Takes port ranges; makes the program that the kernel runs on each event. It attaches nothing.

use std::ops::RangeInclusive;

use socket2::SockFilter;

/// The longest list of ranges that is tested in the kernel, one after another: three instructions
/// each, of the 4,096 that a program may have (`linux/bpf_common.h`, `BPF_MAXINSNS`), and within
/// the smallest common `net.core.optmem_max` (20 KiB).
const RANGES_IN_KERNEL: usize = 256;

/// The local port's place in a message: after `struct nlmsghdr` (16 bytes) and the family, state,
/// timer and retransmits of `struct inet_diag_msg`.
const LOCAL_PORT: u32 = 16 + 4;

// linux/bpf_common.h and linux/filter.h; a 16-bit load is big-endian, as the port is.
/// `BPF_LD | BPF_H | BPF_ABS`.
const LOAD_HALF: u16 = 0x28;
/// `BPF_JMP | BPF_JGE | BPF_K`.
const JUMP_IF_AT_LEAST: u16 = 0x35;
/// `BPF_JMP | BPF_JGT | BPF_K`.
const JUMP_IF_ABOVE: u16 = 0x25;
/// `BPF_RET | BPF_K`: how many bytes of the message to keep.
const KEEP: u16 = 0x06;

/// The program that keeps messages about local ports in `ranges`; `None` where they are too many.
pub(crate) fn program(ranges: &[RangeInclusive<u16>]) -> Option<Vec<SockFilter>> {
    if ranges.len() > RANGES_IN_KERNEL {
        return None;
    }
    let operation = |(code, yes, no, value)| SockFilter::new(code, yes, no, value);
    Some(instructions(ranges).map(operation).collect())
}

/// Code, how many instructions to skip when the test holds and when it does not, operand.
fn instructions(ranges: &[RangeInclusive<u16>]) -> impl Iterator<Item = (u16, u8, u8, u32)> + '_ {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sock_filter::ConnectionFilter;

    /// Runs the program on a message about `port`, as the kernel does: whether it keeps it.
    fn keeps(ranges: &[RangeInclusive<u16>], port: u16) -> bool {
        let program: Vec<_> = instructions(ranges).collect();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let (code, yes, no, value) = program[at];
            let holds = match code {
                LOAD_HALF => {
                    assert_eq!(value, 20);
                    accumulator = u32::from(port);
                    false
                }
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
        let program: Vec<_> = instructions(&[443..=450, 8443..=8443]).collect();
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
        assert!(program(&ranges).is_none());
        assert_eq!(program(&ranges[..256]).unwrap().len(), 1 + 3 * 256 + 1);
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
                prop_assert_eq!(keeps(&ranges, port), wanted, "{}", port);
            }
        }
    }
}
