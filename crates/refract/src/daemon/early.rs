//! What was before the start: whose are the connections that are open?
//!
//! Takes one walk of the kernel's table and the recent past of the log; gives the open connections
//! their owners. That bans nobody; it only keeps a restart from turning an incumbent into a newcomer.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use refract_core::Moment;
use tracing::{info, warn};

use crate::{
    clock::Clock,
    judge::{Judge, Missed},
    tail::Tail,
    witness::Witness,
};

/// How much of the log's end is read back, bytes.
const READ_BACK: u64 = 64 * 1024 * 1024;
/// Claims near the log's end whose connections were not in the table yet; the oldest goes first.
const MOST_LATE: usize = 512;
/// The lines that are read back are put so long before the start, in their order.
const BEFORE: Duration = Duration::from_secs(1);

/// The look back.
#[derive(Debug, Default)]
pub(super) struct Early {
    open: usize,
}

impl Early {
    /// Takes down which connections are open. It goes before the log is opened, so that no
    /// connection of this run can be taken for an older one.
    pub(super) fn look_at_table(
        &mut self,
        judge: &mut Judge,
        witness: &mut Witness,
        clock: &Clock,
    ) {
        let now = Instant::now();
        let moment = clock.moment(now);
        let walked = witness.walk(now, |found| {
            self.open += 1;
            judge.occupancy.older(&found, moment);
        });
        if let Err(error) = walked {
            warn!("{error}: who owns the connections that are open is not known");
        }
    }

    /// Reads the log's end, and looks once more for what was opened since the table was looked at.
    pub(super) fn read_back(
        &mut self,
        judge: &mut Judge,
        witness: &mut Witness,
        tail: &mut Tail,
        clock: &Clock,
    ) {
        let begun = Instant::now();
        let start = clock.moment(begun).saturating_sub(BEFORE);
        let mut lines = 0u64;
        let mut late: VecDeque<Missed> = VecDeque::new();
        let moment_of = |line: u64| -> Moment {
            let nanos = Duration::from_nanos(line).min(BEFORE / 2);
            start.saturating_add(nanos)
        };
        let read = tail.read_back(READ_BACK, |line| {
            lines += 1;
            if let Some(missed) = judge.read_back(line, moment_of(lines)) {
                if late.len() == MOST_LATE {
                    late.pop_front();
                }
                late.push_back(missed);
            }
        });
        if let Err(trouble) = read {
            // What is read next is the rest of that.
            judge.taint.interrupt();
            warn!("{trouble}: who owns the connections that are open is not known");
        }
        for missed in late {
            lines += 1;
            if let Some(found) = witness.look_up(missed.peer, Instant::now()) {
                judge.adopt_missed(&missed, &found, moment_of(lines));
            }
        }
        if self.open > 0 {
            info!(
                open = self.open,
                owned = judge.occupancy.owned(),
                lines,
                milliseconds = begun.elapsed().as_millis(),
                "the recent log gave the open connections their owners"
            );
        }
    }
}
