//! The protected ports: the text of `--dport` in, sorted disjoint ranges out.
//!
//! It knows nothing of protocols or rules; how many rules a list of ports takes is the kernel
//! crate's business.

use std::{fmt, num::NonZeroU16, ops::RangeInclusive, str::FromStr};

/// Local ports of the protected connections: at least one, sorted, merged, never 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

impl Ports {
    /// The ranges in ascending order; no two of them touch.
    #[must_use]
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }

    /// Every single port, ascending.
    pub fn each(&self) -> impl Iterator<Item = u16> {
        self.0.iter().cloned().flatten()
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut ranges = text
            .split(',')
            .map(|part| {
                let part = part.trim();
                let (first, last) = part.split_once(['-', ':']).unwrap_or((part, part));
                let (first, last) = (port(first, part)?, port(last, part)?);
                if first > last {
                    return Err(format!("the range {part} runs backwards"));
                }
                Ok((first, last))
            })
            .collect::<Result<Vec<_>, String>>()?;
        ranges.sort_unstable();

        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Ok(Self(merged.into_iter().map(|(first, last)| first..=last).collect()))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(out, "{comma}{first}")?,
                (first, last) => write!(out, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

fn port(digits: &str, part: &str) -> Result<u16, String> {
    let digits = digits.trim();
    // `u16::from_str` takes a leading plus sign, which no port has.
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse::<NonZeroU16>() {
        Ok(number) if plain => Ok(number.get()),
        _ => Err(format!("{part:?} is not a port from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, shown: &str) {
        assert_eq!(text.parse::<Ports>().unwrap().to_string(), shown);
    }

    #[test]
    fn lists_and_ranges_are_sorted_and_merged() {
        check("443", "443");
        check("443,8443,2000-2010", "443,2000-2010,8443");
        check("2000:2010", "2000-2010");
        check("8443, 443 ,443", "443,8443");
        check("1-10,5-20,21", "1-21");
        check("65535,1-65535", "1-65535");
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        for text in ["", "0", "65536", "-1", "+443", "443,", "a", "443-", "10-5", "1-2-3", "4 43"] {
            let sentence = text.parse::<Ports>().expect_err(text);
            assert!(!sentence.is_empty(), "{text}");
        }
    }

    #[test]
    fn every_single_port_is_walked_once() {
        let ports: Ports = "443,2000-2002".parse().unwrap();
        assert_eq!(ports.each().collect::<Vec<_>>(), [443, 2000, 2001, 2002]);
    }
}
