//! Bans found in the kernel at the start: which of them no record explains.
//!
//! Takes the bans and the block log; makes one record, `adopted`, for each ban that the block log
//! says nothing of, so that a crash between a ban and its record leaves no ban unaccounted for. It
//! bans nothing and lifts nothing: what is in the kernel stays until it runs out.

use std::{
    collections::{BTreeSet, HashSet},
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::Path,
    time::Duration,
};

use refract_core::Network;
use refract_kernel::ban_sets::Ban;

use crate::{
    audit::{Action, Record, open_to_read},
    commands::{network_of, source_of_record},
};

/// How much of the end of the block log is searched, bytes.
const SEARCHED: u64 = 16 * 1024 * 1024;

/// A record for each ban that the block log does not explain.
#[must_use]
pub fn unexplained(bans: &[Ban], block_log: &Path) -> Vec<Record> {
    if bans.is_empty() {
        return Vec::new();
    }
    let recorded = recorded_sources(block_log);
    let prefixes: BTreeSet<u8> = recorded.iter().map(|source| source.prefix()).collect();
    // A ban is its source, or an address within it.
    let is_recorded = |network: Network| {
        prefixes
            .range(..=network.prefix())
            .any(|prefix| recorded.contains(&Network::covering(network.address(), *prefix)))
    };
    bans.iter()
        .map(|ban| (ban, network_of(&ban.target)))
        .filter(|(_, network)| !is_recorded(*network))
        .map(|(ban, network)| adopted(network, ban.remaining.unwrap_or_default()))
        .collect()
}

fn recorded_sources(block_log: &Path) -> HashSet<Network> {
    // A log that is missing or unreadable explains nothing, which is what the records then say.
    let Ok(mut file) = open_to_read(block_log) else { return HashSet::new() };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    if file.seek(SeekFrom::Start(length.saturating_sub(SEARCHED))).is_err() {
        return HashSet::new();
    }
    BufReader::new(file)
        .split(b'\n')
        .map_while(Result::ok)
        .filter_map(|line| source_of_record(&String::from_utf8_lossy(&line)))
        .collect()
}

fn adopted(network: Network, remaining: Duration) -> Record {
    Record {
        action: Action::Adopted,
        reason: "found_at_start",
        timeout: remaining,
        evidence: "kernel_set",
        ..Record::of(Vec::new(), network.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use refract_kernel::ban::BanTarget;

    use super::*;
    use crate::audit::{BlockFormat, line};

    fn ban(address: &str) -> Ban {
        let address: IpAddr = address.parse().unwrap();
        let prefix = if address.is_ipv4() { 32 } else { 64 };
        Ban {
            target: BanTarget::Network { address, prefix },
            remaining: Some(Duration::from_secs(30)),
        }
    }

    #[test]
    fn only_bans_without_a_record_get_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block.log");
        let known = adopted("198.51.100.1".parse().unwrap(), Duration::from_secs(9));
        let known6 = adopted("2001:db8::/64".parse().unwrap(), Duration::from_secs(9));
        let written = [line(&known, BlockFormat::Text), line(&known6, BlockFormat::Json)].concat();
        std::fs::write(&path, written).unwrap();

        let exact = BanTarget::host("2001:db8::7".parse().unwrap());
        let exact = Ban { target: exact, remaining: None };
        let bans = [ban("198.51.100.1"), ban("198.51.100.2"), ban("2001:db8::"), exact];
        let records = unexplained(&bans, &path);
        let sources: Vec<_> = records.iter().map(|record| record.source.as_str()).collect();
        assert_eq!(sources, ["198.51.100.2"]);
    }

    #[test]
    fn without_a_block_log_every_ban_gets_a_record() {
        let missing = Path::new("/nonexistent/block.log");
        assert_eq!(unexplained(&[ban("198.51.100.1")], missing).len(), 1);
        assert_eq!(unexplained(&[], missing).len(), 0);
    }
}
