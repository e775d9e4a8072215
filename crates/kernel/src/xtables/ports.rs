//! Ports in rules: as iptables writes them, and how many go into one rule. Pure.
//!
//! Takes ranges of ports or their text; makes the other, and the groups that one `multiport` match
//! takes. It knows no rule.

use std::{fmt::Write as _, ops::RangeInclusive};

/// How many ports one `multiport` match takes (`XT_MULTI_PORTS`, `xt_multiport.h`); a
/// range takes two of them.
const MULTIPORT_SLOTS: usize = 15;

/// Ports as iptables writes them: `443,8443,2000:2010`.
#[must_use]
pub fn ports_to_text(ports: &[RangeInclusive<u16>]) -> String {
    let mut text = String::new();
    for range in ports {
        let comma = if text.is_empty() { "" } else { "," };
        let (first, last) = (range.start(), range.end());
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}{first}");
        if first != last {
            let _ = write!(text, ":{last}");
        }
    }
    text
}

/// Reads [`ports_to_text`].
#[must_use]
pub fn ports_from_text(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    text.split(',')
        .map(|range| {
            let (first, last) = range.split_once(':').unwrap_or((range, range));
            Some(port(first)?..=port(last)?)
        })
        .collect()
}

fn port(text: &str) -> Option<u16> {
    // `u16::from_str` also takes a plus sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Cuts the ports into groups of one rule each.
pub(super) fn groups_of_ports(ports: &[RangeInclusive<u16>]) -> Vec<Vec<RangeInclusive<u16>>> {
    let mut groups = Vec::new();
    let mut group = Vec::new();
    let mut taken = 0;
    for range in ports {
        let slots = if range.start() == range.end() { 1 } else { 2 };
        if taken + slots > MULTIPORT_SLOTS {
            groups.push(std::mem::take(&mut group));
            taken = 0;
        }
        taken += slots;
        group.push(range.clone());
    }
    groups.push(group);
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_survive_being_written_and_read() {
        for text in ["443", "1:65535", "443,2000:2010,8443"] {
            assert_eq!(ports_to_text(&ports_from_text(text).unwrap()), text);
        }
        for text in ["", ",", "443,", "+443", " 443", "65536", "1:2:3", "a", "443;reboot"] {
            assert_eq!(ports_from_text(text), None, "{text:?}");
        }
    }
}
