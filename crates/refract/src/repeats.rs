//! Keeps resets on sight from filling the block log: three records, then a sum every ten seconds.
//! Of a user at too many sources they are one run, wherever the next one comes from.
//!
//! Takes records; gives those that are to be written now, and sums when they are due. A ban, and a
//! verdict with its proof, is always written. Nothing is left out of a sum. It writes nothing.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use refract_core::Ground;

use crate::audit::{Action, Record};

/// Records of one user at one source that are written as they come.
const WRITTEN: u32 = 3;
/// How often a sum is written.
const SUM_EVERY: Duration = Duration::from_secs(10);
/// After so long without a reset the next one is written as it comes.
const OVER_AFTER: Duration = Duration::from_mins(1);
/// Users at sources kept in mind; resets of further ones are written as they come.
const CAPACITY: usize = 4_096;

/// Which resets are being summed up.
#[derive(Debug, Default)]
pub struct Repeats {
    runs: HashMap<(Vec<u8>, String), Run>,
}

#[derive(Debug)]
struct Run {
    written: u32,
    last: Instant,
    /// When the sum was begun, and the record that it will be.
    sum: Option<(Instant, Record)>,
}

impl Repeats {
    /// Takes a record; gives it back if it is to be written now.
    pub fn take(&mut self, record: Record, now: Instant) -> Option<Record> {
        // A verdict with its numbers is no repetition of another.
        if record.action != Action::Kill || record.proof.is_some() {
            return Some(record);
        }
        let is_one_of_many = record.reason == Ground::TooManySources.name();
        let source = if is_one_of_many { String::new() } else { record.source.clone() };
        let key = (record.user.to_ascii_lowercase(), source);
        if self.runs.len() >= CAPACITY && !self.runs.contains_key(&key) {
            return Some(record);
        }
        let run = self.runs.entry(key).or_insert(Run { written: 0, last: now, sum: None });
        run.last = now;
        if run.written < WRITTEN {
            run.written += 1;
            return Some(record);
        }
        match &mut run.sum {
            Some((_, sum)) => {
                sum.repeats += 1;
                sum.killed = sum.killed.saturating_add(record.killed);
                sum.flows = sum.flows.saturating_add(record.flows);
                (sum.source, sum.peers) = (record.source, record.peers);
                sum.latency = sum.latency.max(record.latency);
                sum.settled = sum.settled.max(record.settled);
                if sum.outcome == crate::audit::Outcome::Done {
                    sum.outcome = record.outcome;
                }
            }
            None => run.sum = Some((now, Record { repeats: 1, ..record })),
        }
        None
    }

    /// The sums that are due; call it once a second.
    pub fn due(&mut self, now: Instant) -> Vec<Record> {
        let old = |since: Instant, age| now.saturating_duration_since(since) >= age;
        let mut due = Vec::new();
        for run in self.runs.values_mut() {
            due.extend(run.sum.take_if(|(begun, _)| old(*begun, SUM_EVERY)).map(|(_, sum)| sum));
        }
        self.runs.retain(|_, run| run.sum.is_some() || !old(run.last, OVER_AFTER));
        due
    }

    /// Every sum that was begun, as at the end of the process.
    pub fn all(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.runs)
            .into_values()
            .filter_map(|run| run.sum.map(|(_, sum)| sum))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(user: &str) -> Record {
        let record = Record::of(user.as_bytes().to_vec(), "198.51.100.12".to_owned());
        Record { killed: 1, reason: "on_sight", ..record }
    }

    #[test]
    fn three_are_written_and_the_rest_is_summed_up() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let written = (0..100).filter_map(|_| repeats.take(record("alice"), start)).count();
        assert_eq!(written, 3);
        assert!(repeats.take(record("bob"), start).is_some(), "somebody else");
        assert!(repeats.due(start + Duration::from_secs(9)).is_empty());
        let sums = repeats.due(start + Duration::from_secs(10));
        assert_eq!(sums.len(), 1);
        assert_eq!((sums[0].repeats, sums[0].killed), (97, 97));
        assert!(repeats.take(record("alice"), start + Duration::from_secs(11)).is_none());
        assert_eq!(repeats.all().len(), 1);
    }

    #[test]
    fn resets_of_a_user_at_too_many_sources_are_one_run() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        let at = |last: u8| Record {
            source: format!("198.51.100.{last}"),
            reason: "too_many_sources",
            ..record("alice")
        };
        assert_eq!((0..100).filter_map(|last| repeats.take(at(last), now)).count(), 3);
        let sums = repeats.all();
        assert_eq!((sums[0].repeats, &*sums[0].source), (97, "198.51.100.99"));
        assert_eq!(sums.len(), 1);
    }

    #[test]
    fn after_a_quiet_minute_records_are_written_again() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        for _ in 0..3 {
            repeats.take(record("alice"), start);
        }
        assert!(repeats.due(start + OVER_AFTER).is_empty());
        assert!(repeats.take(record("alice"), start + OVER_AFTER).is_some());
    }

    #[test]
    fn a_new_verdict_with_its_numbers_is_written_among_resets_on_sight() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        for _ in 0..10 {
            repeats.take(record("alice"), now);
        }
        let proof = refract_core::Proof { slot: Duration::from_secs(1), exhibits: Vec::new() };
        let proven = Record { proof: Some(proof), reason: "shared_source", ..record("alice") };
        assert!(repeats.take(proven, now).is_some());
    }

    #[test]
    fn a_ban_is_always_written_and_a_flood_of_names_too() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        for _ in 0..10 {
            let ban = Record { action: Action::Ban, ..record("alice") };
            assert!(repeats.take(ban, now).is_some());
        }
        for number in 0..2 * CAPACITY {
            assert!(repeats.take(record(&number.to_string()), now).is_some());
        }
        assert_eq!(repeats.runs.len(), CAPACITY);
    }
}
