//! The daemon under a supervisor: its status line, and that the loop still turns.
//!
//! Takes the tick of every second, which a loop that is stuck does not reach; tells the supervisor.
//! It changes nothing.

use std::time::Instant;

use refract_core::Evidence;
use tracing::warn;

use super::{Daemon, TICK};
use crate::status;

/// The status line is written again this often, and sooner when the grade or the number of bans has
/// changed.
const STATUS_TICKS: u64 = 10;

impl Daemon {
    /// The start is over.
    pub(super) fn tell_ready(&mut self, now: Instant) {
        if let Some(watchdog) = self.supervisor.watchdog().filter(|time| *time < 2 * TICK) {
            warn!(
                "the supervisor's watchdog waits for {watchdog:?}, and the loop reports once in \
                 {TICK:?}: set WatchdogSec to {:?} or more",
                2 * TICK
            );
        }
        self.status_key = self.status_key_at(now);
        let line = self.status_line(now);
        self.supervisor.ready(line);
    }

    /// The loop has come round to its upkeep.
    pub(super) fn tell_supervisor(&mut self, now: Instant) {
        if let Some(trouble) = self.supervisor.trouble() {
            warn!("{trouble}");
        }
        if !self.supervisor.is_there() {
            return;
        }
        let key = self.status_key_at(now);
        let is_due = key != self.status_key || self.ticks.is_multiple_of(STATUS_TICKS);
        self.status_key = key;
        let line = is_due.then(|| self.status_line(now));
        self.supervisor.alive(line);
    }

    fn status_key_at(&self, now: Instant) -> (Evidence, usize) {
        (self.grade.evidence, self.enforcer.ledger.count_due(now))
    }

    fn status_line(&self, now: Instant) -> String {
        let Self { judge, grade, settings, status_key: (_, bans), .. } = self;
        let bans = *bans;
        status::line(judge, grade, bans, settings.flags.dry_run, self.clock.moment(now))
    }
}
