//! Bans found in the kernel at the start: which of them no record explains.
//!
//! Takes the bans and the block log; makes one record, `adopted`, for each ban that the block log
//! does not explain, so that a crash between a ban and its record leaves no ban unaccounted for. A
//! record explains a ban if it says that the source was banned and for as long as that. It bans
//! nothing and lifts nothing: what is in the kernel stays until it runs out.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use refract_core::Network;
use refract_kernel::{ban::BanTarget, ban_sets::Ban};

use crate::{
    audit::{
        Action, Outcome, Record,
        reading::{self, Told},
    },
    commands::network_of,
};

/// How much longer than its record says a ban may be there: the kernel counts whole seconds, and
/// each time that a set is made again, or a ban moves to another, they are rounded up.
const TOLERANCE: Duration = Duration::from_secs(5);

/// A record for each ban that the block log does not explain at `now`.
#[must_use]
pub fn unexplained(bans: &[Ban], block_log: &Path, now: Timestamp) -> Vec<Record> {
    if bans.is_empty() {
        return Vec::new();
    }
    let mut explained = Explained::default();
    reading::latest(block_log).for_each(|told| explained.take(&told));
    bans.iter()
        .filter(|ban| !explained.covers(ban, now))
        .map(|ban| adopted(network_of(&ban.target), ban.remaining.unwrap_or_default()))
        .collect()
}

/// Until when there are bans, as far as records say so.
#[derive(Debug, Default)]
struct Explained {
    networks: Ends,
    flows: Ends,
}

/// When the latest ban of each source ends, by the length of their prefixes.
#[derive(Debug, Default)]
struct Ends(BTreeMap<u8, HashMap<Network, End>>);

/// When a ban ends; the later one is the greater one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    At(Timestamp),
    Never,
}

impl Explained {
    fn take(&mut self, told: &Told) {
        if told.outcome != Outcome::Done.name() {
            return;
        }
        let Ok(end) = told.time.checked_add(told.timeout) else { return };
        let end = End::At(end);
        match told.action {
            Action::Ban => self.networks.note(told.source, end),
            Action::Flow => self.flows.note(told.source, end),
            Action::Adopted => {
                // An operator's own may be without an end.
                let end = if told.timeout.is_zero() { End::Never } else { end };
                self.networks.note(told.source, end);
                self.flows.note(told.source, end);
            }
            Action::Kill | Action::Ask | Action::Refrain => {}
        }
    }

    /// Whether a record covers all of the time that a ban has left.
    fn covers(&self, ban: &Ban, now: Timestamp) -> bool {
        let ends = match ban.target {
            BanTarget::Network { .. } => &self.networks,
            BanTarget::Flow { .. } => &self.flows,
        };
        let left = ban.remaining.map(|left| left.saturating_sub(TOLERANCE));
        let end = left.map_or(Ok(End::Never), |left| now.checked_add(left).map(End::At));
        end.is_ok_and(|end| ends.reach(network_of(&ban.target), end))
    }
}

impl Ends {
    fn note(&mut self, source: Network, end: End) {
        let latest = self.0.entry(source.prefix()).or_default().entry(source).or_insert(end);
        *latest = end.max(*latest);
    }

    /// A ban is its source, or an address within it.
    fn reach(&self, network: Network, end: End) -> bool {
        self.0.range(..=network.prefix()).any(|(prefix, ends)| {
            let source = Network::covering(network.address(), *prefix);
            ends.get(&source).is_some_and(|latest| *latest >= end)
        })
    }
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

    use super::*;
    use crate::audit::{BlockFormat, line};

    fn ban(address: &str, left: u64) -> Ban {
        let address: IpAddr = address.parse().unwrap();
        let prefix = if address.is_ipv4() { 32 } else { 64 };
        Ban {
            target: BanTarget::Network { address, prefix },
            remaining: Some(Duration::from_secs(left)),
        }
    }

    fn record(action: Action, source: &str, ago: u64, timeout: u64) -> Record {
        Record {
            action,
            time: Timestamp::now().checked_sub(Duration::from_secs(ago)).unwrap(),
            timeout: Duration::from_secs(timeout),
            ..Record::of(b"alice".to_vec(), source.to_owned())
        }
    }

    /// The sources of the bans that are not explained by `records`.
    fn left_over(records: &[Record], bans: &[Ban]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block.log");
        let format = |number: usize| [BlockFormat::Text, BlockFormat::Json][number % 2];
        let written = records.iter().enumerate().map(|(number, it)| line(it, format(number)));
        std::fs::write(&path, written.collect::<String>()).unwrap();
        let unexplained = unexplained(bans, &path, Timestamp::now());
        unexplained.into_iter().map(|record| record.source).collect()
    }

    #[test]
    fn only_bans_without_a_record_get_one() {
        let known = record(Action::Ban, "198.51.100.1", 30, 60);
        let known6 = record(Action::Ban, "2001:db8::/64", 30, 60);
        let exact = BanTarget::host("2001:db8::7".parse().unwrap());
        let exact = Ban { target: exact, remaining: Some(Duration::from_secs(30)) };
        let bans = [ban("198.51.100.1", 30), ban("198.51.100.2", 30), ban("2001:db8::", 30), exact];
        assert_eq!(left_over(&[known, known6], &bans), ["198.51.100.2"]);
    }

    #[test]
    fn only_a_record_of_a_ban_that_is_still_in_force_explains_one() {
        let source = "198.51.100.1";
        let done = |action, ago, timeout| record(action, source, ago, timeout);
        let ended = |outcome| Record { outcome, ..done(Action::Ban, 30, 60) };
        for (what, record, is_explained) in [
            ("a ban", done(Action::Ban, 30, 60), true),
            ("an adoption", done(Action::Adopted, 30, 60), true),
            ("a ban whose seconds were rounded", done(Action::Ban, 34, 60), true),
            ("a ban that is over", done(Action::Ban, 3_600, 60), false),
            ("a ban that would be over sooner", done(Action::Ban, 40, 60), false),
            ("a question", done(Action::Ask, 30, 60), false),
            ("a kill", done(Action::Kill, 30, 60), false),
            ("an abstention", done(Action::Refrain, 30, 60), false),
            ("a flow", done(Action::Flow, 30, 60), false),
            ("a dry run", ended(Outcome::DryRun), false),
            ("a failure", ended(Outcome::Failed("no room".to_owned())), false),
        ] {
            let left = left_over(&[record], &[ban(source, 30)]);
            assert_eq!(left.is_empty(), is_explained, "{what}");
        }
        let older = [done(Action::Ban, 3_600, 60), done(Action::Ban, 30, 60)];
        assert!(left_over(&older, &[ban(source, 30)]).is_empty(), "the latest counts");
    }

    #[test]
    fn a_flow_is_explained_by_its_own_record_and_a_ban_without_an_end_by_its_adoption() {
        let target = BanTarget::Flow { address: "198.51.100.1".parse().unwrap(), port: 7 };
        let flow = [Ban { target, remaining: Some(Duration::from_secs(30)) }];
        let source = "198.51.100.1";
        assert_eq!(left_over(&[record(Action::Flow, source, 30, 60)], &flow), [""; 0]);
        assert_eq!(left_over(&[record(Action::Ban, source, 30, 60)], &flow), [source]);

        let endless = [Ban { remaining: None, ..ban(source, 0) }];
        assert_eq!(left_over(&[record(Action::Ban, source, 30, 60)], &endless), [source]);
        let adopted = [record(Action::Adopted, source, 3_600, 0)];
        assert_eq!(left_over(&adopted, &endless), [""; 0], "once is enough");
    }

    #[test]
    fn without_a_block_log_every_ban_gets_a_record() {
        let (missing, now) = (Path::new("/nonexistent/block.log"), Timestamp::now());
        assert_eq!(unexplained(&[ban("198.51.100.1", 30)], missing, now).len(), 1);
        assert_eq!(unexplained(&[], missing, now).len(), 0);
    }
}
