//! Addresses and ports as Go prints them, read from the front of hostile bytes.
//!
//! Takes bytes; makes an address or a number and what follows it. Strict where the log is strict:
//! Go prints no leading zeros, so `010.1.1.1` is nobody's address here (it is octal to some
//! readers and decimal to others). It resolves no names and judges no address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest text of an IPv6 address: `ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255`.
const IPV6_TEXT_LIMIT: usize = 45;

/// The dotted IPv4 address at the front, and what follows it.
pub(crate) fn leading_ipv4(bytes: &[u8]) -> Option<(Ipv4Addr, &[u8])> {
    let (first, rest) = leading_octet(bytes)?;
    let (second, rest) = leading_octet(rest.strip_prefix(b".")?)?;
    let (third, rest) = leading_octet(rest.strip_prefix(b".")?)?;
    let (fourth, rest) = leading_octet(rest.strip_prefix(b".")?)?;
    Some((Ipv4Addr::new(first, second, third, fourth), rest))
}

/// The whole of `bytes` as an IPv6 address.
pub(crate) fn ipv6(bytes: &[u8]) -> Option<Ipv6Addr> {
    if bytes.len() > IPV6_TEXT_LIMIT {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// The port at the front: decimal, at most 65535, no leading zero; and what follows it.
pub(crate) fn leading_port(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (first, mut rest) = leading_decimal(bytes)?;
    let mut number = u32::from(first);
    // One digit more than a port can have is read, so that it overflows instead of being left.
    for _ in 0..5 {
        let Some((digit, after)) = leading_decimal(rest) else { break };
        if number == 0 {
            return None;
        }
        number = number * 10 + u32::from(digit);
        rest = after;
    }
    Some((u16::try_from(number).ok()?, rest))
}

/// The whole of `bytes` as a port.
pub(crate) fn port(bytes: &[u8]) -> Option<u16> {
    match leading_port(bytes)? {
        (port, []) => Some(port),
        _ => None,
    }
}

/// An IPv4 address that was written as IPv6 is the same client.
pub(crate) fn folded(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

fn leading_octet(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let first = decimal(*first)?;
    let Some((second, after_second)) = leading_decimal(rest) else { return Some((first, rest)) };
    if first == 0 {
        return None;
    }
    let two = first * 10 + second;
    let Some((third, rest)) = leading_decimal(after_second) else {
        return Some((two, after_second));
    };
    let three = u16::from(two) * 10 + u16::from(third);
    Some((u8::try_from(three).ok()?, rest))
}

fn leading_decimal(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    Some((decimal(*first)?, rest))
}

fn decimal(byte: u8) -> Option<u8> {
    let value = byte.wrapping_sub(b'0');
    (value <= 9).then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_ipv4_address_is_four_plain_decimals() {
        for text in ["0.0.0.0", "1.2.3.4", "255.255.255.255", "10.0.99.100", "198.51.100.11"] {
            let (address, rest) = leading_ipv4(text.as_bytes()).unwrap();
            assert_eq!((address.to_string().as_str(), rest.len()), (text, 0));
        }
        for text in [
            "",
            "1",
            "1.2.3",
            "01.2.3.4",
            "1.2.3.00",
            "1.2.3.256",
            "1.2.3.999",
            "1..2.3",
            "a.b.c.d",
        ] {
            assert_eq!(leading_ipv4(text.as_bytes()), None, "{text}");
        }
        assert_eq!(leading_ipv4(b"1.2.3.4:5").unwrap().1, b":5");
        assert_eq!(leading_ipv4(b"1.2.3.2555").unwrap().1, b"5", "the caller sees the rest");
    }

    #[test]
    fn a_port_has_no_sign_no_zeros_in_front_and_no_more_than_16_bits() {
        assert_eq!(port(b"0"), Some(0));
        assert_eq!(port(b"65535"), Some(65535));
        for text in ["", "00", "01", "65536", "99999", "100000", "+1", "-1", "1 ", "1a", "\u{663}"]
        {
            assert_eq!(port(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_client() {
        assert_eq!(folded("::ffff:1.2.3.4".parse().unwrap()).to_string(), "1.2.3.4");
        assert_eq!(folded("2001:db8::1".parse().unwrap()).to_string(), "2001:db8::1");
    }

    proptest! {
        #[test]
        fn every_printed_address_reads_back(bits: u32, wide: u128, number: u16) {
            let narrow = Ipv4Addr::from(bits);
            prop_assert_eq!(leading_ipv4(narrow.to_string().as_bytes()).unwrap().0, narrow);
            let wide = Ipv6Addr::from(wide);
            prop_assert_eq!(ipv6(wide.to_string().as_bytes()), Some(wide));
            prop_assert_eq!(port(number.to_string().as_bytes()), Some(number));
        }
    }
}
