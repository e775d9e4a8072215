//! The slots that the daemon counts time in, and users who come one a slot.
//!
//! Takes lives; runs each on a thread of its own on the client host, begun at random within its
//! slot, so that one user at most is due at each slot's end. Slots begin at whole multiples of their
//! length on the kernel's monotonic clock, in every process of the host.

use std::{collections::VecDeque, thread::JoinHandle, time::Duration};

use rustix::{
    io::Errno,
    thread::clock_nanosleep_absolute,
    time::{ClockId, Timespec, clock_gettime},
};

use crate::{
    measuring::gaps::Gaps,
    support::{LabError, Result, lab::Host},
};

/// The daemon's window.
pub(crate) const WINDOW: Duration = Duration::from_secs(1);
/// A fifth of it.
pub(crate) const SLOT: Duration = Duration::from_millis(200);
/// Within this time everything has happened to a user.
pub(crate) const LIFE_BOUND: Duration = Duration::from_secs(3);
/// Slots from the one in which the second source comes to the one at whose end he is cut.
pub(crate) const SLOTS_TO_CUT: u64 = 4;
/// A life begins this long after its slot at the earliest,
const EARLIEST: Duration = Duration::from_millis(10);
/// and less than this later, so that the second source comes in the same slot.
const SPREAD: Duration = Duration::from_millis(120);
/// Lives under way at once, at the most.
const MOST_LIVES: usize = 32;

/// The time since the boot.
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    // Neither can be negative.
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// The number of the slot that `time` is in.
pub(crate) fn slot_of(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() / SLOT.as_nanos()).unwrap_or(u64::MAX)
}

/// When slot `number` is over.
pub(crate) fn end_of(number: u64) -> Duration {
    Duration::from_nanos(
        (number + 1).saturating_mul(u64::try_from(SLOT.as_nanos()).unwrap_or(u64::MAX)),
    )
}

/// How long before `time` the last slot ended.
pub(crate) fn since_deadline(time: Duration) -> Duration {
    time.saturating_sub(Duration::from_nanos(
        slot_of(time).saturating_mul(u64::try_from(SLOT.as_nanos()).unwrap_or(u64::MAX)),
    ))
}

/// Sleeps until `time`; not at all when it is past.
pub(crate) fn sleep_until(time: Duration) -> Result<()> {
    let until = Timespec::try_from(time).map_err(LabError::while_trying("take a time"))?;
    loop {
        match clock_nanosleep_absolute(ClockId::Monotonic, &until) {
            Err(Errno::INTR) => {}
            slept => return slept.map_err(LabError::while_trying("sleep")),
        }
    }
}

/// Begins the `count` lives that `next` makes, one a slot, and gives what they found, in order.
pub(crate) fn one_a_slot<T, Life>(
    client: &Host,
    count: u32,
    mut next: impl FnMut(u32) -> Life,
) -> Result<Vec<T>>
where
    T: Send + 'static,
    Life: FnOnce() -> Result<T> + Send + 'static,
{
    let mut gaps = Gaps::default();
    let mut lives = VecDeque::new();
    let mut found = Vec::new();
    let mut begin = end_of(slot_of(now()));
    for number in 0..count {
        sleep_until(begin + gaps.next(EARLIEST, SPREAD))?;
        lives.push_back(client.start_thread(next(number)));
        begin += SLOT;
        if lives.len() > MOST_LIVES
            && let Some(life) = lives.pop_front()
        {
            found.push(join(life)?);
        }
    }
    for life in lives {
        found.push(join(life)?);
    }
    Ok(found)
}

/// Waits for the end of a thread.
pub(crate) fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
}
