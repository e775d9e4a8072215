//! Which connections a dump is to find, said twice: as a test, and as a program for the kernel.
//!
//! Takes the protected ports and the remote networks; makes the predicate that decides, and the
//! `inet_diag` bytecode that spares the kernel most of what the predicate would turn down. The
//! bytecode may let too much through and never too little, so the answer does not depend on it.
//! It opens no socket.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use crate::networks::{AF_INET, AF_INET6, Networks};

/// The longest list of remotes, or of port ranges, that is tested in the kernel. It tests them one
/// after another, about 18 ns each for every socket; to describe a socket and turn it down here
/// takes about 0.5 µs (measured, `benches/sock_diag.rs`), so 30 tests are no gain any more.
const TESTS_IN_KERNEL: usize = 16;

// linux/inet_diag.h, `INET_DIAG_BC_*`.
const JMP: u8 = 1;
const S_GE: u8 = 2;
const S_LE: u8 = 3;
const D_COND: u8 = 8;
/// `sizeof(struct inet_diag_bc_op)`: code, yes, no.
const OPERATION_LEN: usize = 4;
/// A port comparison: the operation and a second one that holds the port in its `no`.
const PORT_TEST_LEN: usize = 8;
/// `sizeof(struct inet_diag_hostcond)` without the address: family, prefix, padding, port.
const HOST_CONDITION_LEN: usize = 8;

/// TCP connections on protected local ports, from anywhere or from some networks only.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionFilter<'a> {
    ports: &'a [RangeInclusive<u16>],
    remotes: Option<&'a Networks>,
}

impl<'a> ConnectionFilter<'a> {
    /// Every connection whose local port is in one of `ports`.
    #[must_use]
    pub fn on(ports: &'a [RangeInclusive<u16>]) -> Self {
        Self { ports, remotes: None }
    }

    /// Of these, the ones whose remote address is in one of `remotes`.
    #[must_use]
    pub fn from(self, remotes: &'a Networks) -> Self {
        Self { remotes: Some(remotes), ..self }
    }

    /// A connection with these ends (not IPv4-mapped) is meant.
    pub(crate) fn matches(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.has_port(local.port())
            && self.remotes.is_none_or(|remotes| remotes.contains(remote.ip()))
    }

    /// `port` is a protected one.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        self.ports.iter().any(|range| range.contains(&port))
    }

    /// The socket families in which such connections can be. An IPv4 connection of a dual-stack
    /// listener is an `AF_INET6` socket (measured), so IPv4 remotes are in both.
    pub(crate) fn families(&self) -> impl Iterator<Item = u8> {
        let nothing = self.ports.is_empty() || self.remotes.is_some_and(Networks::is_empty);
        let v4 = self.remotes.is_none_or(|remotes| remotes.iter().any(|(ip, _)| ip.is_ipv4()));
        [(AF_INET, !nothing && v4), (AF_INET6, !nothing)]
            .into_iter()
            .filter_map(|(family, wanted)| wanted.then_some(family))
    }

    /// The one protected port, for the request's own port field, which the kernel compares before
    /// it runs any bytecode; 0, which is no restriction, when there are several.
    pub(crate) fn sole_port(&self) -> u16 {
        match self.ports {
            [range] if range.start() == range.end() => *range.start(),
            _ => 0,
        }
    }

    /// The program for a dump of one socket family, or `None` when there is nothing to test in the
    /// kernel: all is asked for, or so much that the test is cheaper here.
    pub(crate) fn bytecode(&self, family: u8) -> Option<Vec<u8>> {
        let ports = if self.sole_port() != 0 || self.ports.len() > TESTS_IN_KERNEL {
            &[][..]
        } else {
            self.ports
        };
        let remotes: Vec<_> = self
            .remotes
            .filter(|remotes| remotes.len() <= TESTS_IN_KERNEL)
            .into_iter()
            .flat_map(Networks::iter)
            .filter(|(ip, _)| ip.is_ipv4() || family == AF_INET6)
            .collect();
        if ports.is_empty() && remotes.is_empty() {
            return None;
        }

        let ports_len = chain_len(ports.iter().map(|_| 2 * PORT_TEST_LEN));
        let length = ports_len + chain_len(remotes.iter().map(|(ip, _)| host_test_len(*ip)));
        let mut program = Program { bytes: Vec::with_capacity(length), length };
        for (place, range) in ports.iter().enumerate() {
            let end = program.bytes.len() + 2 * PORT_TEST_LEN;
            let is_last = place + 1 == ports.len();
            let otherwise = if is_last { program.reject() } else { end + OPERATION_LEN };
            program.port_test(S_GE, *range.start(), otherwise)?;
            program.port_test(S_LE, *range.end(), otherwise)?;
            if !is_last {
                program.operation(JMP, OPERATION_LEN, ports_len)?;
            }
        }
        for (place, (ip, prefix)) in remotes.iter().enumerate() {
            let end = program.bytes.len() + host_test_len(*ip);
            let is_last = place + 1 == remotes.len();
            let otherwise = if is_last { program.reject() } else { end + OPERATION_LEN };
            program.host_test(*ip, *prefix, otherwise)?;
            if !is_last {
                program.operation(JMP, OPERATION_LEN, length)?;
            }
        }
        Some(program.bytes)
    }
}

/// Tests that stand in a chain of which one has to hold: a jump past the rest between any two.
fn chain_len(tests: impl ExactSizeIterator<Item = usize>) -> usize {
    let jumps = tests.len().saturating_sub(1) * OPERATION_LEN;
    tests.sum::<usize>() + jumps
}

fn host_test_len(ip: IpAddr) -> usize {
    OPERATION_LEN + HOST_CONDITION_LEN + if ip.is_ipv4() { 4 } else { 16 }
}

/// Bytecode being written. All offsets are from the program's beginning; in the bytes they are
/// from the operation's own beginning, and forward only. `None` where one does not fit its field.
struct Program {
    bytes: Vec<u8>,
    length: usize,
}

impl Program {
    /// A jump to the end accepts, a jump four bytes past it rejects (`inet_diag_bc_run`).
    fn reject(&self) -> usize {
        self.length + OPERATION_LEN
    }

    /// `yes` is the operation's length, which is how far the kernel goes on when the test holds.
    fn operation(&mut self, code: u8, yes: usize, otherwise: usize) -> Option<()> {
        let no = u16::try_from(otherwise.checked_sub(self.bytes.len())?).ok()?;
        self.bytes.extend([code, u8::try_from(yes).ok()?]);
        self.bytes.extend(no.to_ne_bytes());
        Some(())
    }

    fn port_test(&mut self, code: u8, port: u16, otherwise: usize) -> Option<()> {
        self.operation(code, PORT_TEST_LEN, otherwise)?;
        self.bytes.extend([0, 0]);
        self.bytes.extend(port.to_ne_bytes());
        Some(())
    }

    fn host_test(&mut self, ip: IpAddr, prefix: u8, otherwise: usize) -> Option<()> {
        self.operation(D_COND, host_test_len(ip), otherwise)?;
        // -1 is any port. An AF_INET condition also holds for the IPv4 address mapped into an
        // AF_INET6 socket's.
        self.bytes.extend([if ip.is_ipv4() { AF_INET } else { AF_INET6 }, prefix, 0, 0]);
        self.bytes.extend((-1i32).to_ne_bytes());
        match ip {
            IpAddr::V4(v4) => self.bytes.extend(v4.octets()),
            IpAddr::V6(v6) => self.bytes.extend(v6.octets()),
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::tests::networks;

    // ss -tn '( sport >= :443 and sport <= :450 ) and ( dst 192.0.2.0/24 or dst 10.0.0.1 )'
    // sends the same bytes (iproute2 6.1, seen by strace).
    #[test]
    fn a_range_of_ports_and_two_remotes_are_the_program_that_ss_writes() {
        let remotes = networks(&["10.0.0.1/32", "192.0.2.0/24"]);
        let ports = [443..=450];
        let filter = ConnectionFilter::on(&ports).from(&remotes);
        #[rustfmt::skip]
        let expected = [
            // Offset 0: local port >= 443, else to 56, which is four past the end.
            2, 8, 56, 0,    0, 0, 0xbb, 0x01,
            // 8: local port <= 450, else to 56.
            3, 8, 48, 0,    0, 0, 0xc2, 0x01,
            // 16: remote in 192.0.2.0/24, any port, else to 36.
            8, 16, 20, 0,   2, 24, 0, 0,   255, 255, 255, 255,   192, 0, 2, 0,
            // 32: to 52, the end.
            1, 4, 20, 0,
            // 36: remote in 10.0.0.1/32, else to 56.
            8, 16, 20, 0,   2, 32, 0, 0,   255, 255, 255, 255,   10, 0, 0, 1,
        ];
        assert_eq!(filter.bytecode(AF_INET).unwrap(), expected);
        assert_eq!(filter.bytecode(AF_INET6).unwrap(), expected, "for mapped addresses");
        assert_eq!(filter.sole_port(), 0);
    }

    // As ss -tn6 'dst [2001:db8::]/32', with the port in the request instead.
    #[test]
    fn one_port_is_left_to_the_request_and_ipv6_is_not_asked_of_ipv4_sockets() {
        let remotes = networks(&["2001:db8::/32"]);
        let ports = [443..=443];
        let filter = ConnectionFilter::on(&ports).from(&remotes);
        #[rustfmt::skip]
        let expected = [
            8, 28, 32, 0,   10, 32, 0, 0,   255, 255, 255, 255,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(filter.sole_port(), 443);
        assert_eq!(filter.bytecode(AF_INET6).unwrap(), expected);
        assert_eq!(filter.families().collect::<Vec<_>>(), [AF_INET6]);
    }

    #[test]
    fn what_is_too_long_for_the_kernel_is_left_out_and_still_decides() {
        let remotes: Networks = (0u32..)
            .take(TESTS_IN_KERNEL + 1)
            .map(|n| (IpAddr::from(n.to_be_bytes()), 32))
            .collect();
        let ports: Vec<_> = (0..).take(TESTS_IN_KERNEL + 1).map(|n| 2 * n..=2 * n).collect();
        let both = ConnectionFilter::on(&ports).from(&remotes);
        assert_eq!(both.bytecode(AF_INET), None);
        let of_ports = ConnectionFilter::on(&ports[1..]).from(&remotes);
        assert_eq!(of_ports.bytecode(AF_INET).unwrap().len(), 16 * 16 + 15 * 4);
        let (local, remote) = ("10.0.0.1:4".parse().unwrap(), "0.0.0.9:1".parse().unwrap());
        assert!(both.matches(local, remote));
        assert!(!both.matches("10.0.0.1:5".parse().unwrap(), remote));
        assert!(!both.matches(local, "0.0.1.0:1".parse().unwrap()));
    }

    #[test]
    fn the_longest_program_fits_its_jumps_and_its_attribute() {
        let remotes: Networks = (0u128..)
            .take(TESTS_IN_KERNEL)
            .map(|n| (std::net::Ipv6Addr::from(n << 64).into(), 64))
            .collect();
        let ports: Vec<_> = (0..).take(TESTS_IN_KERNEL).map(|n| n..=n).collect();
        let filter = ConnectionFilter::on(&ports).from(&remotes);
        assert_eq!(filter.bytecode(AF_INET6).unwrap().len(), 16 * 20 - 4 + 16 * 32 - 4);
    }

    #[test]
    fn no_port_or_no_remote_is_no_connection() {
        let (some, none) = (networks(&["10.0.0.0/8"]), Networks::default());
        let ports = [443..=443];
        assert_eq!(ConnectionFilter::on(&[]).families().count(), 0);
        assert_eq!(ConnectionFilter::on(&ports).from(&none).families().count(), 0);
        assert_eq!(ConnectionFilter::on(&ports).from(&some).families().count(), 2);
        assert_eq!(ConnectionFilter::on(&ports).families().count(), 2);
        assert_eq!(ConnectionFilter::on(&ports).bytecode(AF_INET), None);
    }
}
